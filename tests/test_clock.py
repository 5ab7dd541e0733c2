"""The system's clock: carried by elapsed time, a suspend included; freshness never behind the wall clock."""

from __future__ import annotations

import time

import anyio
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import execsafe
from execsafe.clock import SystemClock, Ticks, earliest_ms, latest_ms, wall_ahead_ms
from execsafe.model.intent import Intent
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.faults import Fault, FaultPlan
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import SimVenue

MS = 1_000_000
HOUR_MS = 3_600_000


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


@attrs.define
class Machine:
    """A machine whose time is moved by hand: elapsed time only ever grows, the wall clock may be set."""

    elapsed_ns: int = 5 * MS
    wall_ns: int = 1_700_000_000_000 * MS

    def clock(self) -> SystemClock:
        return SystemClock(elapsed_ns=lambda: self.elapsed_ns, wall_ns=lambda: self.wall_ns)

    def pass_ms(self, passed_ms: int, step_ms: int) -> None:
        self.elapsed_ns += passed_ms * MS
        self.wall_ns += (passed_ms + step_ms) * MS


@given(st.lists(st.tuples(st.integers(0, 10 * HOUR_MS), st.integers(-10 * HOUR_MS, 10 * HOUR_MS)), max_size=20))
def test_the_clock_counts_what_has_passed_whatever_is_done_to_the_wall_clock(moves):
    """It never goes back and never jumps; what freshness is judged by is never behind either of the two.

    By what it is judged whether something is over is never ahead of either, and how far they are apart is known.
    """
    machine = Machine()
    clock = machine.clock()
    expected = clock.now_ms()
    for passed_ms, step_ms in moves:
        machine.pass_ms(passed_ms, step_ms)
        expected += passed_ms
        assert clock.now_ms() == expected
        assert clock.latest_ms() == latest_ms(clock) == max(expected, machine.wall_ns // MS)
        assert clock.earliest_ms() == earliest_ms(clock) == min(expected, machine.wall_ns // MS)
        assert clock.wall_ahead_ms() == wall_ahead_ms(clock) == machine.wall_ns // MS - expected


def test_a_process_that_stands_still_between_two_readings_of_the_clocks_finds_no_difference():
    """It is stopped for three seconds after every reading; only the second time the wall clock was set."""
    machine, stopped_ms = Machine(), [0]

    def reading(name):
        told = getattr(machine, name)
        machine.pass_ms(stopped_ms[0], 0)
        return told

    clock = SystemClock(elapsed_ns=lambda: reading("elapsed_ns"), wall_ns=lambda: reading("wall_ns"))
    stopped_ms[0] = 3_000
    assert clock.wall_ahead_ms() == 0
    for step_ms in (-HOUR_MS, 2 * HOUR_MS):
        machine.pass_ms(0, step_ms)
        assert abs(clock.wall_ahead_ms() - (machine.wall_ns // MS - clock.now_ms())) <= 6_000


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="a clock of Linux")
def test_a_suspend_counts(monkeypatch):
    """On Linux the clock that stands still during a suspend is not the one that is read."""
    running = {time.CLOCK_BOOTTIME: 7 * MS, time.CLOCK_MONOTONIC: 3 * MS}
    monkeypatch.setattr(time, "clock_gettime_ns", running.__getitem__)
    monkeypatch.setattr(time, "monotonic_ns", lambda: running[time.CLOCK_MONOTONIC])
    clock = SystemClock()
    before = clock.now_ms()
    running[time.CLOCK_BOOTTIME] += HOUR_MS * MS
    assert clock.now_ms() - before == HOUR_MS


def test_another_clock_is_taken_as_it_is():
    """Only the system's has a second opinion."""

    class Fixed:
        def now_ms(self) -> int:
            return 42

    assert latest_ms(Fixed()) == earliest_ms(Fixed()) == 42
    assert wall_ahead_ms(Fixed()) == 0


@given(st.integers(0, 10**17), st.integers(0, 10**19), st.integers(0, 10**13))
def test_ticks_tell_the_same_time_as_their_clock(elapsed_ns, wall_ns, passed_ns):
    """A deadline in ticks is reached in the very reading in which the clock reaches it."""
    machine = Machine(elapsed_ns, wall_ns)
    clock = machine.clock()
    ticks = Ticks.of(clock)
    deadline_ms = clock.now_ms() + passed_ns // MS
    for step_ns in (passed_ns, MS - 1, 1):
        machine.elapsed_ns += step_ns
        assert ticks.to_ms(ticks.read()) == clock.now_ms()
        assert (ticks.read() >= ticks.at_ms(deadline_ms)) == (clock.now_ms() >= deadline_ms)
    assert ticks.to_ms(ticks.at_ms(deadline_ms)) == deadline_ms
    assert ticks.at_ms(deadline_ms + 1) - ticks.at_ms(deadline_ms) == ticks.per_ms


def test_ticks_of_a_clock_of_ones_own_are_what_it_says():
    """A subclass may tell another time than the clock that it descends from."""

    class Ahead(SystemClock):
        def now_ms(self) -> int:
            return super().now_ms() + HOUR_MS

    class InSeconds:
        def now_ms(self) -> float:
            return time.time()

    clock = Ahead()
    ticks = Ticks.of(clock)
    assert 0 <= clock.now_ms() - ticks.to_ms(ticks.read()) < HOUR_MS / 2
    with pytest.raises(TypeError):
        Ticks.of(InSeconds()).read()


def an_intent(clock, **changes):
    base = {"key": "k", "symbol": "BTC/USDT", "side": "buy", "quantity": "0.01", "limit_price": "50000"}
    return Intent(**{**base, "fresh_until_ms": clock.now_ms() + 10_000, **changes})


@pytest.mark.anyio
@pytest.mark.guarantee(17)
@pytest.mark.parametrize("step_ms", [0, HOUR_MS, -HOUR_MS])
async def test_g17_what_grew_old_while_the_machine_was_paused_is_not_sent(step_ms):
    """A paused machine counts no time; its wall clock tells afterwards. A wall clock set back makes nothing stale."""
    true, steps = VirtualClock(), [0]
    wall = SystemClock(elapsed_ns=lambda: true.now_ms() * MS, wall_ns=lambda: (true.now_ms() + steps[0]) * MS)
    venue = SimVenue()
    async with execsafe.open_store("memory://") as store:
        registry = execsafe.IntentRegistry(store, clock=wall)
        gateway = execsafe.OrderGateway(SimAdapter(venue, clock=true), registry)
        entry = an_intent(wall)
        steps[0] = step_ms
        outcome = await gateway.submit(entry)
        assert isinstance(outcome, execsafe.NeverPlaced if step_ms > 0 else execsafe.Accepted)
        leaving = an_intent(wall, key="out", side="sell", reduce_only=True, fresh_until_ms=None)
        await gateway.submit(leaving)
    sent = [order.client_order_id for order in venue.ledger.accepted()]
    assert len(sent) == (1 if step_ms > 0 else 2)  # the exit always


@pytest.mark.anyio
async def test_a_clock_that_was_set_back_an_hour_does_not_keep_looks_waiting():
    """Whoever hands in the bare wall clock: the look budget starts anew."""

    class Wall:
        step_ms = 0

        def now_ms(self) -> int:
            return true.now_ms() + self.step_ms

    true = VirtualClock()
    wall, venue, plan = Wall(), SimVenue(), FaultPlan.none()
    async with execsafe.open_store("memory://") as store:
        adapter = SimAdapter(venue, clock=true, plan=plan)
        gateway = execsafe.OrderGateway(adapter, execsafe.IntentRegistry(store, clock=wall))
        for key, step_ms in (("before", 0), ("after", -HOUR_MS)):
            wall.step_ms = step_ms
            plan.strike_next("create", Fault.DROP_REPLY)
            began_ms = true.now_ms()
            with anyio.fail_after(600):
                await gateway.submit(an_intent(wall, key=key, fresh_until_ms=None))
            assert true.now_ms() - began_ms < 120_000
