"""Cancelled or killed at any step, the gateway leaves a journal from which the same end is reached (guarantee G13).

Each scenario runs once undisturbed. Then it runs again for every step of the event loop: cancelled there, on both
event loops; or killed there, without any clean-up. Whatever is left is given to a new process that recovers, and the
caller repeats its call, as a restarted bot would. The venue's ledger and the journal must then be the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from decimal import Decimal

import anyio
import attrs
import pytest
import trio

from execsafe.core.exposure import worst_case
from execsafe.errors import InvalidInput
from execsafe.gateway import GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry
from execsafe.locks import DedupLock
from execsafe.model.intent import Intent, IntentRecord, IntentState
from execsafe.model.order import OrderStatus
from execsafe.model.venue import Expiry
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import ProcessKilled, run_simulated, run_simulated_trio
from fakes import BLACK_HOLE, DROPPED, HANGS, LOST, PROFILE, FakeAdapter, FakeVenue, Fate, ScriptedStore, late

LOOKS = LookPolicy(interval_s=1.0, spacing_s=0.0, timeout_s=1.0)
POLICY = GatewayPolicy(request_timeout_s=1.0)
INTENT = Intent(key="k", symbol="BTC/USDT", side="buy", quantity=1, limit_price=100)


class World:
    """What outlives a process: the venue, the store, the time."""

    def __init__(self, fates: list[Fate], profile=PROFILE) -> None:
        self.clock = VirtualClock()
        self.venue = FakeVenue(self.clock, profile, worst=True)
        self.store = ScriptedStore()
        self.store._is_open = True
        self.store.hook = lambda _batch: anyio.sleep(0.001)  # so that a commit, too, can be interrupted
        self.fates = fates
        self.processes = 0
        self.process()

    def process(self) -> OrderGateway:
        """A new one; nothing of the old one's memory is left."""
        self.processes += 1
        self.adapter = FakeAdapter(self.venue)
        self.adapter.creates.extend(self.fates)
        self.registry = IntentRegistry(self.store, clock=self.clock)
        self.gateway = OrderGateway(
            self.adapter,
            self.registry,
            policy=POLICY,
            looks=LOOKS,
            holder=f"p{self.processes}",
            locks=DedupLock(clock=self.clock),
        )
        return self.gateway

    def record(self) -> IntentRecord | None:
        stored = self.store._tables["intents"].records.get(INTENT.identity) if self.store._tables else None
        return None if stored is None else stored.value

    def end(self) -> tuple:
        """What there is in the end: by the ledger, and by the journal."""
        self.venue.settle()
        record = self.record()
        orders = sorted((o.status, o.request.quantity, o.filled) for o in self.venue.orders if o.may_own)
        return orders, record and (record.state, record.filled_quantity, record.quantity)

    def check(self) -> None:
        """At any moment: nothing in excess, and no order that the journal does not count."""
        record = self.record()
        owned = self.venue.may_own
        if record is None:
            assert owned == 0
            assert not self.adapter.sent
        else:
            assert owned <= worst_case(record) <= record.quantity


Action = Callable[[World], Awaitable[object]]


async def submits(world: World) -> None:
    await world.gateway.submit(INTENT)


async def cancels(world: World) -> None:
    await world.gateway.submit(INTENT)
    await world.gateway.cancel("k")


async def replaces(world: World) -> None:
    await world.gateway.submit(INTENT)
    if world.record().quantity == 1:
        with contextlib.suppress(InvalidInput):  # it ended before
            await world.gateway.replace("k", quantity=2, limit_price=101)


async def fills_and_cancels(world: World) -> None:
    await world.gateway.submit(INTENT)
    order = world.venue.orders[-1]
    if order.status is OrderStatus.OPEN:
        order.fill(Decimal("0.4") - order.filled)
    await world.gateway.cancel("k")


RELATIVE = attrs.evolve(PROFILE, expiry=Expiry.RELATIVE)
REJECTS = [Fate(reply_s=0.2, rejected=True)] * 9

SCENARIOS: dict[str, tuple[Action, list[Fate], object]] = {
    "accepted": (submits, [Fate(reply_s=0.2)], PROFILE),
    "accepted, relative expiry": (submits, [Fate(sign_s=0.1, reply_s=0.2)], RELATIVE),
    "filled at once": (submits, [Fate(reply_s=0.2, filled=Decimal(1))] * 9, PROFILE),
    "rejected": (submits, REJECTS, PROFILE),
    "reply lost": (submits, [LOST], PROFILE),
    "request lost": (submits, [DROPPED], PROFILE),
    "request lost, relative expiry": (submits, [BLACK_HOLE], RELATIVE),
    "hangs": (submits, [HANGS], PROFILE),
    "late": (submits, [late(5.4)], PROFILE),
    "canceled": (cancels, [Fate(reply_s=0.2)], PROFILE),
    "canceled after a fill": (fills_and_cancels, [Fate(reply_s=0.2)], PROFILE),
    "replaced": (replaces, [Fate(reply_s=0.2)], PROFILE),
}


def world_of(name: str) -> World:
    _, fates, profile = SCENARIOS[name]
    return World(fates, profile)


async def settle(world: World, action: Action) -> None:
    """A new process: it recovers, and the caller repeats what it had asked for."""
    world.fates = [f for f in world.fates if f.rejected or f.filled]  # the network is well again, the market the same
    world.process()
    await world.gateway.recover()
    world.check()
    await action(world)
    await anyio.sleep(60)


def undisturbed(name: str) -> tuple[tuple, int]:
    """How it ends, and in how many steps."""
    world = world_of(name)
    action = SCENARIOS[name][0]
    steps: list[int] = []
    run_simulated(action, world, on_step=steps.append)
    world.check()
    return world.end(), len(steps)


@pytest.mark.guarantee(1, 13)
@pytest.mark.parametrize("name", SCENARIOS)
def test_g13_cancelled_at_any_step_of_asyncio_the_same_end_is_reached(name):
    """By a cancel scope around the call: every await of it is hit."""
    end, steps = undisturbed(name)
    action = SCENARIOS[name][0]
    interrupted = 0
    for k in range(1, steps + 1):
        world = world_of(name)
        scopes: list[anyio.CancelScope] = []

        async def guarded(world=world, scopes=scopes) -> bool:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await action(world)
            return scope.cancelled_caught

        def cancel(step: int, k=k, scopes=scopes) -> None:
            if step == k and scopes:
                scopes[0].cancel()

        interrupted += run_simulated(guarded, world, on_step=cancel)
        world.check()
        run_simulated(settle, world, action)
        world.check()
        assert world.end() == end, f"cancelled at step {k} of {steps}"
    assert interrupted > 3


@pytest.mark.guarantee(1, 13)
@pytest.mark.parametrize("name", SCENARIOS)
def test_g13_cancelled_natively_at_any_step_of_asyncio_the_same_end_is_reached(name):
    """By ``task.cancel()``, as asyncio's own time-outs do it: no anyio shield keeps that out."""
    end, steps = undisturbed(name)
    action = SCENARIOS[name][0]
    interrupted = 0
    for k in range(1, steps + 1):
        world = world_of(name)
        try:
            run_simulated(action, world, cancel_at=k)
        except asyncio.CancelledError:
            interrupted += 1
        world.check()
        run_simulated(settle, world, action)
        world.check()
        assert world.end() == end, f"cancelled at step {k} of {steps}"
    assert interrupted > 3


class CancelAt(trio.abc.Instrument):
    def __init__(self, k: int, scopes: list[anyio.CancelScope]) -> None:
        self.k, self.scopes, self.steps = k, scopes, 0

    def before_task_step(self, task) -> None:
        if self.scopes:
            self.steps += 1
            if self.steps == self.k:
                self.scopes[0].cancel()


@pytest.mark.guarantee(1, 13)
@pytest.mark.parametrize("name", SCENARIOS)
def test_g13_cancelled_at_any_step_of_trio_the_same_end_is_reached(name):
    end, _ = undisturbed(name)
    action = SCENARIOS[name][0]
    k, interrupted = 0, 0
    while True:
        k += 1
        world = world_of(name)
        scopes: list[anyio.CancelScope] = []
        instrument = CancelAt(k, scopes)

        async def guarded(world=world, scopes=scopes, instrument=instrument) -> bool:
            trio.lowlevel.add_instrument(instrument)
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await action(world)
            trio.lowlevel.remove_instrument(instrument)
            return scope.cancelled_caught

        interrupted += run_simulated_trio(guarded, world)
        world.check()
        run_simulated(settle, world, action)
        world.check()
        assert world.end() == end, f"cancelled at step {k}"
        if instrument.steps < k:
            break
    assert interrupted > 3


@pytest.mark.guarantee(1, 2, 13)
@pytest.mark.parametrize("name", SCENARIOS)
def test_g13_killed_at_any_step_the_same_end_is_reached(name):
    """No handler and no finally block runs; what counts is what was durable before."""
    end, steps = undisturbed(name)
    action = SCENARIOS[name][0]
    for k in range(1, steps + 1):
        world = world_of(name)
        with pytest.raises(ProcessKilled):
            run_simulated(action, world, crash_at=k)
        world.check()
        run_simulated(settle, world, action)
        world.check()
        assert world.end() == end, f"killed at step {k} of {steps}"


def killed_twice(name: str, stride: int) -> None:
    end, steps = undisturbed(name)
    action = SCENARIOS[name][0]
    for k in range(1, steps + 1, stride):
        j = 1
        while True:
            world = world_of(name)
            with pytest.raises(ProcessKilled):
                run_simulated(action, world, crash_at=k)
            try:
                run_simulated(settle, world, action, crash_at=j)
            except ProcessKilled:
                world.check()
                run_simulated(settle, world, action)
            else:
                break
            world.check()
            assert world.end() == end, f"killed at step {k}, and recovering at step {j}"
            j += stride


@pytest.mark.guarantee(1, 2, 13)
@pytest.mark.parametrize("name", ["request lost", "late", "replaced"])
def test_g13_killed_again_while_recovering_the_same_end_is_reached(name):
    killed_twice(name, stride=7)


@pytest.mark.campaign
@pytest.mark.guarantee(1, 2, 13)
@pytest.mark.parametrize("name", SCENARIOS)
def test_g13_killed_at_every_pair_of_steps_the_same_end_is_reached(name):
    killed_twice(name, stride=1)


@pytest.mark.guarantee(13)
def test_g13_the_scenarios_end_as_they_are_meant_to():
    """Else the comparisons above would compare nothing."""
    states = {name: undisturbed(name)[0][1][0] for name in SCENARIOS}
    assert states == {
        **dict.fromkeys(SCENARIOS, IntentState.LIVE),
        "filled at once": IntentState.FILLED,
        "rejected": IntentState.REJECTED,
        "canceled": IntentState.CANCELED,
        "canceled after a fill": IntentState.CANCELED,
    }
