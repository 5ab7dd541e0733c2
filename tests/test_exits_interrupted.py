"""Cancelled or killed at any step, an exit closes in the end what it was to close, and never more (G10, G13).

Each scenario runs once undisturbed. Then it runs again, cancelled at a step, on both event loops, or killed there
without any clean-up. A new process recovers and the caller asks again, as a restarted bot would. What was sold is read
from the venue's ledger.
"""

from __future__ import annotations

import contextlib
from decimal import Decimal

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.exits import Deduplicated, Dust, Exited, ExitReason, Flat
from execsafe.model.position import PositionKey
from execsafe.testing.faults import Fault
from execsafe.testing.loop import ProcessKilled, run_simulated, run_simulated_trio
from execsafe.testing.venue import FillStep
from exit_rig import CALM, LONG, SHORT, SOON, SPOT, Desk
from turns import Turns, run_in_turns

D = Decimal
HELD = D("360.41")  # of 360.6 bought
POINTS = 40  # interrupted steps per scenario and way; the campaign takes all


@attrs.frozen
class Scenario:
    key: PositionKey = SOON
    faults: tuple[tuple[str, int, str], ...] = ()
    locks: bool = False
    fills: tuple[FillStep, ...] | None = None
    reasons: tuple[ExitReason, ...] = (ExitReason.STOP_LOSS,)

    @property
    def held(self) -> Decimal:
        return HELD if self.key is SOON else D(1)


# The first create is the entry's.
SCENARIOS = {
    "spot": Scenario(),
    "short": Scenario(key=SHORT),
    "answer lost": Scenario(faults=(("create", 2, "drop_reply"),)),
    "request lost": Scenario(faults=(("create", 2, "drop_request"),)),
    "request late": Scenario(faults=(("create", 2, "late_arrival_after_look"),)),
    "parts": Scenario(key=LONG, fills=(FillStep(0, "0.4"),)),
    "locked by a take-profit": Scenario(locks=True, faults=(("cancel", 1, "fill_during_cancel"),)),
    "oversold": Scenario(faults=(("create", 2, "reject_funds"),)),
    "taken over": Scenario(key=LONG, fills=(FillStep(0, "0.2"),), reasons=(ExitReason.TAKE_PROFIT, ExitReason.PANIC)),
}


class World:
    """What outlives a process."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.desk = Desk()

    async def prepare(self) -> None:
        desk, scenario = self.desk, self.scenario
        await desk.open(scenario.key.symbol, "360.6" if scenario.key is SOON else "1", scenario.key.side.opening)
        if scenario.locks:
            await desk.lock(SPOT, HELD, "0.8")
        desk.plan.script(scenario.faults)
        desk.venue.schedule_fills(scenario.key.symbol, scenario.fills)

    async def act(self) -> None:
        async with anyio.create_task_group() as tasks:
            for reason in self.scenario.reasons:
                tasks.start_soon(self.desk.exits.exit, self.scenario.key, reason)
                await anyio.sleep(0.05)

    async def after_a_restart(self, *, recovers_orders: bool) -> None:
        desk = self.desk
        await anyio.sleep(60)
        desk.venue.schedule_fills(self.scenario.key.symbol, None)
        self.check()
        keys = desk.protections.keys
        desk.start()
        desk.protections.keys = keys
        await desk.book.open()
        if recovers_orders:
            await desk.gateway.recover()
        await desk.exits.recover()
        self.check()
        for _ in range(30):
            result = await desk.exits.exit(self.scenario.key, ExitReason.STOP_LOSS)
            if isinstance(result, (Exited, Dust, Flat)):
                break
            await anyio.sleep(15)
        else:
            raise AssertionError(result)

    def check(self) -> None:
        """Never more than was held: sold, and what could still be sold, at every instant."""
        desk, key = self.desk, self.scenario.key
        assert desk.sold(key.symbol, key.side.closing) <= self.scenario.held
        ids = {e.client_order_id for e in desk.venue.ledger.accepted() if e.side is key.side.closing}
        if not self.scenario.locks:  # a take-profit and the exit after it are two orders for the same
            assert desk.venue.ledger.worst_case(ids) <= self.scenario.held

    async def judge(self) -> None:
        desk, key = self.desk, self.scenario.key
        self.check()
        left = self.scenario.held - desk.sold(key.symbol, key.side.closing)
        assert left == 0 or (key is SOON and left < D("7.21"))  # less is not worth an order there
        assert desk.venue.open_orders() == []
        assert await desk.store.scan_open("exits") == []
        assert await desk.registry.open_records() == []
        assert desk.exits.stats().duplicates_executed == 0


async def cancelled(name: str, turns: Turns) -> int:
    world = World(SCENARIOS[name])
    await world.prepare()
    with anyio.CancelScope() as turns.scope:
        await world.act()
    turns.scope, steps = None, turns.count
    assert world.desk.exits._locks.statistics().in_flight == 0
    await world.after_a_restart(recovers_orders=steps % 2 == 0)
    await world.judge()
    return steps


def run_cancelled(name: str, backend: str, at: int | None = None) -> int:
    turns = Turns(at)
    return run_in_turns(backend, turns, cancelled, name, turns)


def points(steps: int, most: int | None) -> range:
    return range(1, steps + 1, 1 if most is None else max(1, steps // most))


@pytest.mark.guarantee(10, 13)
@pytest.mark.row("S1-03", "S1-04", "S1-05")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("most", [POINTS, pytest.param(None, marks=pytest.mark.campaign)], ids=["some", "all"])
def test_g13_an_exit_cancelled_at_any_step_closes_what_was_wanted_and_no_more(name, backend, most):
    steps = run_cancelled(name, backend)
    assert steps > 20
    for at in points(steps, most):
        run_cancelled(name, backend, at)


def run_killed(name: str, at: int | None) -> int:
    world = World(SCENARIOS[name])
    steps: list[int] = []

    async def live() -> None:
        await world.prepare()
        loops[0].before = loops[0].steps
        await world.act()
        steps.append(loops[0].steps - loops[0].before)

    async def afterwards() -> None:
        await world.after_a_restart(recovers_orders=at is not None and at % 2 == 0)
        await world.judge()

    loops: list = []

    def on_step(number: int) -> None:
        if at is not None and getattr(loops[0], "before", None) is not None and number == loops[0].before + at:
            loops[0].kill()

    with contextlib.suppress(ProcessKilled):
        run_simulated(live, on_step=on_step, on_loop=loops.append)
    run_simulated(afterwards)
    return steps[0] if steps else 0


@pytest.mark.guarantee(10, 13)
@pytest.mark.row("S1-05")
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("most", [POINTS, pytest.param(None, marks=pytest.mark.campaign)], ids=["some", "all"])
def test_g13_an_exit_killed_at_any_step_closes_what_was_wanted_and_no_more(name, most):
    steps = run_killed(name, None)
    assert steps > 20
    for at in points(steps, most):
        run_killed(name, at)


# --- Whatever goes wrong ------------------------------------------------------------------------------------

WRONG = [
    Fault.DROP_REQUEST, Fault.DROP_REPLY, Fault.DELAY_REQUEST, Fault.LATE_ARRIVAL_AFTER_LOOK, Fault.HANG,
    Fault.TRUNCATED_BODY, Fault.RESET_CONNECTION, Fault.SERVER_ERROR_ACCEPTED, Fault.SERVER_ERROR_NOT_ACCEPTED,
    Fault.EMPTY_OK, Fault.RATE_LIMITED, Fault.MAINTENANCE, Fault.TIMESTAMP_REJECT, Fault.REJECT_FUNDS,
    Fault.REJECT_FILTER, Fault.PARTIAL_FILL, Fault.FILL_DURING_CANCEL, Fault.LOOKUP_LAG, Fault.LOOKUP_ERROR,
    Fault.POSITIONS_EMPTY, Fault.POSITIONS_LAG, Fault.BOOK_EMPTY,
]  # fmt: skip


@attrs.frozen
class Course:
    seed: int
    key: PositionKey
    faults: dict[Fault, float]
    calls: list[tuple[int, ExitReason, int | None]]  # after ms, reason, hundredths of the position
    entries: list[tuple[int, int]]  # after ms, hundredths of the first entry
    processes: int


courses = st.builds(
    Course,
    seed=st.integers(0, 10**6),
    key=st.sampled_from([SOON, LONG, SHORT]),
    faults=st.dictionaries(st.sampled_from(WRONG), st.sampled_from([0.1, 0.3]), max_size=5),
    calls=st.lists(
        st.tuples(st.integers(0, 4_000), st.sampled_from(list(ExitReason)), st.none() | st.integers(1, 100)),
        min_size=1,
        max_size=6,
    ),
    entries=st.lists(st.tuples(st.integers(0, 4_000), st.integers(1, 100)), max_size=2),
    processes=st.integers(1, 2),
)


async def play(course: Course) -> None:
    """Exits of several reasons at once, by several processes, with entries in between and everything going wrong."""
    desk = Desk(seed=course.seed, policy=attrs.evolve(CALM, ladder_bps=(50, 100)))
    first = D("60") if course.key is SOON else D(1)
    await desk.open(course.key.symbol, first, course.key.side.opening)
    managers = [desk.exits]
    for _ in range(course.processes - 1):
        managers.append(desk.start())
        await desk.book.open()
    desk.plan.rates = course.faults

    async def ask(number: int, after_ms: int, reason: ExitReason, hundredths: int | None) -> None:
        await anyio.sleep(after_ms / 1000)
        quantity = None if hundredths is None else max(first * hundredths / 100, D("0.01"))
        await managers[number % len(managers)].exit(course.key, reason, quantity=quantity)

    async def enter(number: int, after_ms: int, hundredths: int) -> None:
        await anyio.sleep(after_ms / 1000)
        from execsafe.errors import ExecsafeError
        from execsafe.model.intent import Intent

        quantity = max(first * hundredths / 100, D("8") if course.key is SOON else D("0.001"))
        intent = Intent(key=f"e{number}", symbol=course.key.symbol, side=course.key.side.opening, quantity=quantity)
        with contextlib.suppress(ExecsafeError):
            await desk.gateway.submit(intent)

    async with anyio.create_task_group() as tasks:
        for number, call in enumerate(course.calls):
            tasks.start_soon(ask, number, *call)
        for number, entry in enumerate(course.entries):
            tasks.start_soon(enter, number, *entry)
    never_more_than_held(desk, course.key)
    assert all(m.stats().duplicates_executed == 0 for m in managers)
    desk.plan.stop()
    await anyio.sleep(120)
    await desk.gateway.recover()
    await desk.exits.recover()
    for _ in range(40):
        result = await desk.exits.exit(course.key, ExitReason.PANIC)
        if isinstance(result, (Exited, Dust, Flat)):
            break
        await anyio.sleep(60)
        await desk.gateway.recover()
    never_more_than_held(desk, course.key)
    assert not isinstance(result, Deduplicated)
    assert desk.book.position("default", course.key.symbol) is None or isinstance(result, Dust), result


def never_more_than_held(desk: Desk, key: PositionKey) -> None:
    """At no instant of the ledger was less than nothing held."""
    desk.venue.advance(desk.clock.now_ms())
    held = D(0)
    for e in desk.venue.ledger.fills():
        if e.symbol != key.symbol:
            continue
        gone = e.fee if e.fee_currency == "SOON" else D(0)
        held += (e.quantity if e.side is key.side.opening else -e.quantity) - gone
        assert held >= 0, f"flipped by order {e.client_order_id}"


@pytest.mark.guarantee(10)
@pytest.mark.row("S0-36", "S1-07", "D-18")
@pytest.mark.parametrize("runner", [run_simulated, run_simulated_trio], ids=["asyncio", "trio"])
def test_g10_exits_never_exceed_the_position_whatever_goes_wrong(runner):
    @given(courses)
    @settings(max_examples=150, deadline=None)
    def search(course: Course) -> None:
        runner(play, course, seed=course.seed)

    search()
