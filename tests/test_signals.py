"""SignalGate and SignalConsumer: at least once in, exactly one effect, and a reason for everything else.

The effect is counted in the ledger of a scripted venue, behind the real gateway.
"""

from __future__ import annotations

import logging
import random

import anyio
import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from execsafe.buses import dead_letter_topic
from execsafe.buses.memory import MemoryBus
from execsafe.core.funnel import Stage, WavePlan
from execsafe.core.payloads import read_signal
from execsafe.core.signals import DropReason, SignalPolicy
from execsafe.errors import (
    IntentConflict,
    InvalidInput,
    OutcomeUnknown,
    StoreUnavailable,
    TradingDenied,
    VenueUnavailable,
)
from execsafe.gateway import GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry
from execsafe.locks import DedupLock
from execsafe.model.event import EventType
from execsafe.model.intent import Intent
from execsafe.model.signal import ExecutionMode, SignalSide
from execsafe.signals import (
    TRADE_INTENTS,
    DeadLettered,
    Dropped,
    Executed,
    Handled,
    ModeCheck,
    Pending,
    Refused,
    SignalConsumer,
    SignalGate,
    SignalRecord,
    SignalState,
    Unfinished,
    Wave,
    result_of,
    submit_signal,
)
from execsafe.stores import codec
from execsafe.stores.memory import MemoryStore
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import ProcessKilled, count_steps, run_simulated, virtual_backends
from fakes import DROPPED, HANGS, LOST, PROFILE, REJECTED, FakeAdapter, FakeVenue, Fate, ScriptedStore

POLICY = GatewayPolicy(request_timeout_s=1.0)
LOOKS = LookPolicy(interval_s=1.0, spacing_s=0.0, timeout_s=1.0)


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class World:
    """What outlives a process: venue, store, bus, time. ``process()`` starts a new one."""

    def __init__(self, policy: SignalPolicy | None = None, fates: tuple[Fate, ...] = (), **gate) -> None:
        self.clock = VirtualClock()
        self.venue = FakeVenue(self.clock, PROFILE)
        self.store = ScriptedStore()
        self.store._is_open = True
        self.bus = MemoryBus(clock=self.clock, redeliver_after_s=60)
        self.policy = policy or SignalPolicy()
        self.fates = fates
        self.more = gate
        self.events = []
        self.process()

    def process(self) -> None:
        self.adapter = FakeAdapter(self.venue)
        self.adapter.creates.extend(self.fates)
        self.gate = SignalGate(self.store, self.policy, clock=self.clock, listeners=[self.events.append], **self.more)
        registry = IntentRegistry(self.store, clock=self.clock)
        self.gateway = OrderGateway(
            self.adapter,
            registry,
            policy=POLICY,
            looks=LOOKS,
            locks=DedupLock(clock=self.clock),
            checks=[ModeCheck(lambda: self.gate.mode)],
        )
        self.consumer = SignalConsumer(self.bus, self.gate, self.handle)
        self.works = []

    async def handle(self, work):
        self.works.append(work)

        async def build() -> Intent:
            return work.intent(quantity=1, limit_price=100)

        return result_of(await submit_signal(self.gateway, work, build))

    def payload(self, **changes) -> dict:
        base = {"symbol": "BTC/USDT", "side": "LONG", "timestamp": self.clock.now_ms(), "source": "test"}
        return {**base, **changes}

    async def run(self, **changes):
        return await self.gate.run(self.payload(**changes), self.handle)

    async def publish(self, **changes) -> None:
        await self.bus.publish(TRADE_INTENTS, self.payload(**changes))

    @property
    def orders(self):
        self.venue.settle()
        return self.venue.orders

    def record(self, signal_id: str, gate: str = "signals") -> SignalRecord | None:
        table = self.store._tables.get("signals")
        entry = table and table.records.get(f'["{gate}","{signal_id}"]')
        return entry.value if entry else None

    def kinds(self) -> list[EventType]:
        return [event.type for event in self.events]


@pytest.fixture
async def world():
    return World()


pytestmark = pytest.mark.anyio

# --- One signal, one effect ---------------------------------------------------------------------------------


async def test_a_fresh_signal_is_executed_once_and_acknowledged(world):
    await world.publish(signal_id="a")
    assert await world.consumer.drain() == 1
    assert len(world.orders) == 1
    assert world.record("a").state is SignalState.EXECUTED
    depth = await world.bus.depth(TRADE_INTENTS, "execsafe")
    assert (depth.waiting, depth.pending) == (0, 0)
    assert world.kinds() == [EventType.SIGNAL_RECEIVED, EventType.SIGNAL_ACCEPTED, EventType.SIGNAL_HANDLED]
    assert world.gate.funnel.ratio("opened_of_received").value == 1.0


@pytest.mark.row("S2-11", "D-03", "S4-27")
@pytest.mark.guarantee(6)
async def test_g6_the_same_signal_five_times_at_once_is_one_trade(world):
    outcomes = []

    async def call() -> None:
        outcomes.append(await world.run(signal_id="a"))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(call)
    assert len(world.orders) == 1
    assert sorted(type(o).__name__ for o in outcomes) == ["Handled"] + ["Unfinished"] * 4
    again = await world.run(signal_id="a", timestamp=outcomes[0].signal.at_ms)
    assert isinstance(again, Dropped)
    assert again.reason is DropReason.DUPLICATE
    assert len(world.orders) == 1


@pytest.mark.row("S4-27", "D-03")
@pytest.mark.guarantee(6)
async def test_g6_the_same_content_excludes_others_only_while_it_is_in_flight(world):
    """Five different signals for one trade at once: one runs. One after the other: all run."""
    outcomes = []

    async def call(name: str) -> None:
        outcomes.append(await world.run(signal_id=name))

    async with anyio.create_task_group() as tasks:
        for name in "abcde":
            tasks.start_soon(call, name)
    assert len(world.orders) == 1
    dropped = [o for o in outcomes if isinstance(o, Dropped)]
    assert [o.reason for o in dropped] == [DropReason.IN_FLIGHT] * 4
    for name in "vwxyz":
        assert isinstance(await world.run(signal_id=name), Handled)
    assert len(world.orders) == 6
    repeat = await world.run(signal_id=dropped[0].signal.id, timestamp=dropped[0].signal.at_ms)
    assert repeat.reason is DropReason.DUPLICATE  # what was told to go stays away


@pytest.mark.guarantee(6)
async def test_g6_unrelated_signals_never_wait_for_each_other(world):
    begun = world.clock.now_ms()

    async def slow(work):
        await anyio.sleep(1)
        return Executed()

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(world.gate.run, world.payload(symbol=f"C{number}/USDT", signal_id=f"{number}"), slow)
    assert world.clock.now_ms() - begun < 1_100


async def test_a_known_id_with_other_content_is_a_dead_letter(world):
    await world.run(signal_id="a")
    conflict = await world.run(signal_id="a", side="SHORT")
    assert isinstance(conflict, DeadLettered)
    assert conflict.reason is DropReason.CONFLICTING_ID
    assert len(world.orders) == 1


@pytest.mark.row("S4-27")
async def test_a_minimum_interval_between_equal_contents_outlives_the_process():
    world = World(SignalPolicy(content_interval_s=10))
    assert isinstance(await world.run(signal_id="a"), Handled)
    world.process()
    await anyio.sleep(9)
    soon = await world.run(signal_id="b")
    assert soon.reason is DropReason.TOO_SOON
    assert isinstance(await world.run(signal_id="c", side="SHORT"), Handled)
    await anyio.sleep(1)
    assert isinstance(await world.run(signal_id="d"), Handled)


@pytest.mark.guarantee(6, 14, 17)
@pytest.mark.row("S4-27", "D-03")
async def test_g6_two_kinds_of_keys_an_identity_for_its_retention_and_a_content_while_in_flight(world):
    """The identity outlives its signal's last valid moment: forgotten, it is too old. The content is free at once."""
    at_ms = world.clock.now_ms()
    assert isinstance(await world.run(signal_id="a", timestamp=at_ms), Handled)
    assert isinstance(await world.run(signal_id="b"), Handled), "the same content, one after the other"
    retention_s = world.gate.policy.retention_s
    for age_s in (1, retention_s / 2, retention_s - 1):
        await anyio.sleep(at_ms / 1_000 + age_s - world.clock.now_ms() / 1_000)
        await world.gateway.registry.purge()
        assert (await world.run(signal_id="a", timestamp=at_ms)).reason is DropReason.DUPLICATE
    await anyio.sleep(10)
    await world.gateway.registry.purge()
    assert (await world.run(signal_id="a", timestamp=at_ms)).reason is DropReason.STALE
    assert len(world.orders) == 2


async def test_two_gates_with_two_names_each_execute_the_signal(world):
    payload = world.payload(signal_id="a")
    other = SignalGate(world.store, clock=world.clock, name="other")
    assert isinstance(await world.gate.run(payload, world.handle), Handled)
    assert isinstance(await other.run(payload, world.handle), Handled)
    assert len(world.orders) == 2


# --- Killed at every step -----------------------------------------------------------------------------------


@pytest.mark.row("S2-11")
@pytest.mark.guarantee(13)
@pytest.mark.parametrize(
    "fate", [Fate(reply_s=0.2), LOST, DROPPED, REJECTED], ids=["accepted", "reply lost", "lost", "no"]
)
def test_g13_killed_at_any_step_a_signal_is_resumed_and_its_effect_stays_one(fate):
    """The bus delivers it again; the new process finds how far it came."""

    async def begin(world: World) -> None:
        await world.bus.publish(TRADE_INTENTS, world.payload(signal_id="a"))
        world.store.hook = lambda _batch: anyio.sleep(0.001)
        await world.consumer.drain()

    async def go_on(world: World) -> None:
        for _ in range(3):
            world.clock.skip(61_000)
            await world.consumer.drain()

    def new_world() -> World:
        return World(SignalPolicy(), (fate,))

    steps = count_steps(begin, new_world())
    resumed = 0
    for step in range(1, steps + 1):
        world = new_world()
        with pytest.raises(ProcessKilled):
            run_simulated(begin, world, crash_at=step)
        world.process()
        if fate is REJECTED:
            world.adapter.creates.clear()
        run_simulated(go_on, world)
        record = world.record("a")
        if record is None:
            assert not world.orders  # killed before it was published
            continue
        resumed += any(work.is_resumed for work in world.works)
        assert record.state.is_terminal, step
        assert len(world.orders) == (record.state is SignalState.EXECUTED), step
        assert not world.bus._topics[TRADE_INTENTS].groups["execsafe"].pending, step
    assert resumed > 3


@pytest.mark.guarantee(13)
async def test_g13_a_signal_whose_message_is_lost_is_resumed_from_the_store(world):
    """A bus that dies with the process takes its messages along."""
    with anyio.move_on_after(0.3):
        world.adapter.creates.append(HANGS)
        await world.run(signal_id="a")
    world.bus = MemoryBus(clock=world.clock, redeliver_after_s=60)
    world.process()
    await anyio.sleep(61)
    assert world.record("a").state is SignalState.ACCEPTED
    with anyio.move_on_after(30):
        await world.consumer.run()
    assert world.record("a").state is SignalState.EXECUTED
    assert [work.is_resumed for work in world.works] == [True]
    assert len(world.orders) == 1


async def test_what_was_decided_is_read_back_and_not_decided_anew(world):
    """The price moved while the process was down: the recorded intent is submitted, not a new one."""
    calls = []

    async def handle(work):
        async def build():
            calls.append(1)
            return work.intent(quantity=len(calls), limit_price=100)

        await submit_signal(world.gateway, work, build)
        return Pending()

    payload = world.payload(signal_id="a")
    for _ in range(2):
        assert isinstance(await world.gate.run(payload, handle), Unfinished)
    assert len(calls) == len(world.orders) == 1

    async def foreign():
        return Intent(key="other", symbol="BTC/USDT", side="buy", quantity=1)

    async def wrong(work):
        await submit_signal(world.gateway, work, foreign, leg="x")
        return Executed()

    outcome = await world.gate.run(payload, wrong)
    assert (outcome.why, outcome.note) == ("failed", InvalidInput.__name__)


_SIGNALS, _NONE = st.integers(0, 1), st.just(0)
_DELIVERIES = st.lists(
    st.one_of(
        st.tuples(st.just("deliver"), _SIGNALS, st.sampled_from([0, 290_000, 300_000, 300_001, -5_000, -5_001])),
        st.tuples(st.just("again"), _SIGNALS, _NONE),
        st.tuples(st.just("again"), _SIGNALS, _NONE),
        st.tuples(st.just("restart"), _NONE, _NONE),
        st.tuples(st.just("pass"), _NONE, st.sampled_from([1_000, 10_000, 61_000])),
        st.tuples(st.just("mode"), _NONE, st.integers(0, 1)),
        st.tuples(st.sampled_from(["reply lost", "refuse"]), _NONE, _NONE),
        st.tuples(st.sampled_from(["blind", "store"]), _NONE, st.integers(0, 1)),
    ),
    max_size=14,
)


class Story:
    """Plays steps against one world; ``sent`` is all that any of its processes sent, and when."""

    def __init__(self) -> None:
        self.world = World()
        self.earlier: list = []
        self.payloads: dict[int, dict] = {}
        self.drained: set[int] = set()

    @property
    def sent(self) -> list:
        return [*self.earlier, *zip(self.world.adapter.sent, self.world.adapter.sent_at_ms, strict=True)]

    async def play(self, what: str, number: int, value: int) -> None:
        world = self.world
        if what == "deliver" and number not in self.payloads:
            stamp = world.clock.now_ms() - value
            self.payloads[number] = world.payload(signal_id=f"s{number}", symbol=f"C{number}/USDT", timestamp=stamp)
        if what in {"deliver", "again"} and number in self.payloads:
            outcome = await world.gate.run(self.payloads[number], world.handle)
            if isinstance(outcome, Dropped) and outcome.reason is DropReason.DRAIN:
                self.drained.add(number)
        else:
            self.disturb(what, value)

    def disturb(self, what: str, value: int) -> None:
        world = self.world
        match what:
            case "restart":
                self.earlier, mode = self.sent, world.gate.mode
                world.process()
                world.gate.mode = mode
            case "mode":
                world.gate.mode = "drain" if value else "live"
            case "store":
                world.store.is_down = bool(value)
            case "blind":
                world.adapter.reads_fail = bool(value)
            case "pass":
                world.clock.skip(value)
            case "reply lost" | "refuse":
                world.adapter.creates.append(LOST if what == "reply lost" else REJECTED)


@pytest.mark.row("S2-03", "S2-07", "S2-10", "S2-11", "S4-27", "D-03")
@pytest.mark.guarantee(6, 17)
@settings(max_examples=1_000, deadline=None)
@given(_DELIVERIES)
@example([("reply lost", 0, 0), ("blind", 0, 1), ("deliver", 0, 0), ("blind", 0, 0), ("again", 0, 0)])
@example([("mode", 0, 1), ("deliver", 0, 0), ("mode", 0, 0), ("again", 0, 0)])
def test_g17_g6_whatever_arrives_however_often_each_order_is_the_one_of_a_signal_that_was_fresh(steps):
    """By the ledger: at most one order per signal, sent in time, and none for what was drained."""
    story = Story()
    for step in steps:
        run_simulated(story.play, *step)
    owners = [request.symbol for request, _ in story.sent]
    assert len(owners) == len(set(owners))
    for request, at_ms in story.sent:
        number = int(request.symbol[1])
        assert number not in story.drained
        assert -5_000 <= at_ms - story.payloads[number]["timestamp"] <= 300_000
    assert all(story.world.gate.funnel.pending_at(stage) >= 0 for stage in Stage)


# --- Freshness ----------------------------------------------------------------------------------------------


@pytest.mark.row("S2-07", "S2-04")
@pytest.mark.guarantee(17)
async def test_g17_a_signal_that_ages_on_the_way_is_refused_right_before_the_send(world):
    """Received at 299 s, a slow reading takes two more: nothing is sent."""

    async def slow(work):
        async def build():
            await anyio.sleep(2)
            return work.intent(quantity=1, limit_price=100)

        return result_of(await submit_signal(world.gateway, work, build))

    outcome = await world.gate.run(world.payload(timestamp=world.clock.now_ms() - 299_000), slow)
    assert isinstance(outcome, Handled)
    assert outcome.result.reason is DropReason.STALE
    assert not world.adapter.sent


@pytest.mark.row("S3-35")
@pytest.mark.guarantee(17)
async def test_g17_a_signal_that_waits_for_its_symbol_is_judged_by_its_age_again(world):
    async def slow(work):
        await anyio.sleep(30)
        return Executed()

    outcomes = []

    async def short() -> None:
        await anyio.sleep(1)
        payload = world.payload(side="SHORT", timestamp=world.clock.now_ms() - 290_000)
        outcomes.append(await world.gate.run(payload, world.handle))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.gate.run, world.payload(), slow)
        tasks.start_soon(short)
    assert outcomes[0].result.reason is DropReason.STALE
    assert not world.works


@pytest.mark.row("S2-09", "S2-10", "S2-06", "D-11")
@pytest.mark.guarantee(17)
@pytest.mark.parametrize(
    ("stamp", "reason"),
    [(-300_001, DropReason.STALE), (25_300, DropReason.FUTURE), (None, DropReason.INVALID_TIMESTAMP)],
)
async def test_g17_old_future_and_unreadable_times_execute_nothing(world, stamp, reason):
    timestamp = "2023-11-14T22:13:20" if stamp is None else world.clock.now_ms() + stamp
    outcome = await world.run(timestamp=timestamp)
    assert outcome.reason is reason
    assert not world.works
    assert world.events[-1].note == reason.value


async def test_a_doubt_is_settled_however_old_the_signal_has_become(world):
    """The order may exist: it is looked for, but no new one is sent."""
    world.adapter.reads_fail = True
    world.adapter.creates.append(LOST)
    payload = world.payload(signal_id="a")
    assert (await world.gate.run(payload, world.handle)).why == "pending"
    world.adapter.reads_fail = False
    await anyio.sleep(1_000)
    outcome = await world.gate.run(payload, world.handle)
    assert isinstance(outcome.result, Executed)
    assert len(world.orders) == 1


# --- Modes --------------------------------------------------------------------------------------------------


@pytest.mark.row("S2-03", "S2-05")
async def test_drained_signals_are_acknowledged_and_never_executed_afterwards():
    world = World(SignalPolicy(mode="drain"))
    await world.publish(signal_id="a")
    assert await world.consumer.drain() == 1
    assert (await world.bus.depth(TRADE_INTENTS, "execsafe")).pending == 0
    payload = world.payload(signal_id="b")
    drained = await world.gate.run(payload, world.handle)
    assert (drained.reason, drained.age_ms) == (DropReason.DRAIN, 0)
    with pytest.raises(InvalidInput):
        world.gate.mode = "on"
    world.gate.mode = "live"
    assert (await world.gate.run(payload, world.handle)).reason is DropReason.DUPLICATE
    assert not world.works


@pytest.mark.row("S2-03")
async def test_the_mode_is_asked_again_where_orders_leave(world):
    """Switched while a signal is being executed: its entry is refused for now, exits pass."""

    async def handle(work):
        world.gate.mode = ExecutionMode.DRAIN
        return await world.handle(work)

    outcome = await world.gate.run(world.payload(), handle)
    assert outcome.why == "pending"
    assert "the mode is drain" in outcome.note
    assert not world.adapter.sent
    exit_ = Intent(key="x", symbol="BTC/USDT", side="sell", quantity=1, limit_price=100, reduce_only=True)
    await world.gateway.submit(exit_)
    assert len(world.adapter.sent) == 1
    world.gate.mode = ExecutionMode.LIVE
    [outcome] = await world.gate.resume(world.handle)
    assert isinstance(outcome.result, Executed)
    assert len(world.adapter.sent) == 2


@pytest.mark.row("S2-23", "D-13")
async def test_paper_and_live_are_kept_apart(world):
    """Paper orders never reach a real venue, live ones no simulation; what was played counts for nothing live."""
    payload = world.payload(signal_id="a")
    world.gate.mode = ExecutionMode.PAPER
    played = await world.gate.run(payload, world.handle)
    assert played.result.reason is DropReason.DENIED
    paper = ModeCheck(lambda: ExecutionMode.LIVE, is_paper_venue=True)
    with pytest.raises(TradingDenied):
        await paper.check(world.works[0].intent(quantity=1), None)
    world.gate.mode = ExecutionMode.LIVE
    assert isinstance((await world.gate.run(payload, world.handle)).result, Executed)


@pytest.mark.row("S2-12")
async def test_a_flat_signal_is_an_exit_where_the_policy_says_so():
    world = World(SignalPolicy(on_flat="exit"))
    works = []

    async def close(work):
        works.append(work)
        with pytest.raises(InvalidInput, match="side"):
            work.intent(quantity=1)
        exit_ = work.intent(quantity=1, side="sell", reduce_only=True, limit_price=100)
        return result_of(await world.gateway.submit(exit_))

    outcome = await world.gate.run(world.payload(side="FLAT", timestamp=world.clock.now_ms() - 10**8), close)
    assert isinstance(outcome.result, Executed)
    assert works[0].fresh_until_ms is None


@pytest.mark.guarantee(13)
async def test_g13_a_signal_that_comes_between_the_ends_of_a_dead_process_claims_is_not_lost(world):
    """The claim of its identity has lapsed, that of its content a moment later: it is not another signal's."""
    dead = DedupLock(store=world.store, clock=world.clock)
    payload = world.payload(signal_id="a")

    async def claim():
        async with dead.hold(("content", "signals", "BTC/USDT", "long")):
            await anyio.sleep(20)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(claim)
        await anyio.sleep(1)
        assert isinstance(await world.gate.run(payload, world.handle), Unfinished)
    assert isinstance((await world.gate.run(payload, world.handle)).result, Executed)


class Holding:
    """A handler with a position: entries open it, exits close it, an entry beside it is refused.

    Entries in *doubtful* are in doubt until :meth:`settle`; exits wait for that.
    """

    def __init__(self, world, doubtful=()):
        self.world = world
        self.doubtful = set(doubtful)
        self.held = None
        self.begun = set()
        self.closed = []

    def settle(self):
        self.doubtful.clear()

    async def __call__(self, work):
        signal, is_in_doubt = work.signal, self.begun & self.doubtful
        if signal.side is SignalSide.FLAT:
            return Pending(note="in doubt") if is_in_doubt else self._close(signal)
        if signal.id not in self.begun:
            if work.is_late(self.world.clock.now_ms()):
                return Refused(reason=DropReason.STALE)
            if self.held is not None:
                return Refused(reason=DropReason.DENIED)
            self.held = signal
            self.begun.add(signal.id)
        return Pending(note="in doubt") if signal.id in self.doubtful else Executed()

    def _close(self, signal):
        if self.held is not None:
            self.closed.append((self.held.at_ms, signal.at_ms))
        self.held = None
        return Executed()


@given(
    said=st.lists(st.sampled_from(["LONG", "SHORT", "FLAT"]), min_size=1, max_size=8),
    order=st.randoms(use_true_random=False),
    doubtful=st.sets(st.integers(0, 7)),
    repeats=st.integers(0, 3),
)
@example(said=["LONG", "FLAT", "SHORT"], order=None, doubtful=set(), repeats=0)
@example(said=["FLAT", "LONG"], order=random.Random(0), doubtful={1}, repeats=0)
@pytest.mark.guarantee(17)
def test_g17_out_of_order_an_exit_closes_what_was_said_before_it_and_nothing_else(said, order, doubtful, repeats):
    """However late, early, often and doubtful each comes: nothing that is held in the end was said before an exit."""

    async def play():
        world = World(SignalPolicy(on_flat="exit"))
        holding = Holding(world, {f"s-{number}" for number in doubtful})
        begun_ms = world.clock.now_ms()
        sent = [
            world.payload(side=side, signal_id=f"s-{number}", timestamp=begun_ms - 10_000 + 1_000 * number)
            for number, side in enumerate(said)
        ]
        arriving = sent + sent[:repeats]
        if order is not None:
            order.shuffle(arriving)
        for payload in arriving:
            await world.gate.run(payload, holding)
            await anyio.sleep(0.01)
        await world.gate.resume(holding)
        holding.settle()
        await world.gate.resume(holding)
        assert await world.gate.resume(holding) == []
        exits = [payload["timestamp"] for payload in sent if payload["side"] == "FLAT"]
        assert all(opened < closed for opened, closed in holding.closed)
        assert holding.held is None or all(at_ms < holding.held.at_ms for at_ms in exits)

    run_simulated(play)


async def test_of_an_exit_and_an_entry_of_one_candle_the_later_arrival_counts():
    """Both bear the time at which the candle closed."""
    world = World(SignalPolicy(on_flat="exit"))
    holding = Holding(world)
    for side in ("LONG", "FLAT", "SHORT"):
        await world.gate.run(world.payload(side=side), holding)
    assert holding.held.side is SignalSide.SHORT
    await world.gate.run(world.payload(side="FLAT", signal_id="again"), holding)
    assert holding.held is None


async def test_no_exit_is_left_out_because_another_one_runs_or_just_ran():
    """The second was said after an entry that the first one did not close."""
    world = World(SignalPolicy(on_flat="exit", content_interval_s=60))
    holding, at_work, go_on = Holding(world), anyio.Event(), anyio.Event()

    async def slowly(work):
        result = await holding(work)
        at_work.set()
        await go_on.wait()
        return result

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.gate.run, world.payload(side="FLAT", signal_id="a"), slowly)
        await at_work.wait()
        holding.held = read_signal(world.payload(), world.policy)
        waits = await world.gate.run(world.payload(side="FLAT", signal_id="b"), slowly)
        assert isinstance(waits, Unfinished), "it does not hold up its reader for longer than a second"
        assert world.record("b").state is SignalState.ACCEPTED
        go_on.set()
    await world.gate.resume(slowly)
    assert holding.held is None
    assert world.record("b").state is SignalState.EXECUTED


@pytest.mark.guarantee(6, 17)
async def test_g17_an_exit_in_one_process_waits_for_the_entry_that_another_one_is_at():
    """Both have the same store. Said later, the exit closes what comes of the entry."""
    world = World(SignalPolicy(on_flat="exit"))
    other = SignalGate(world.store, world.policy, clock=world.clock)
    holding = Holding(world)

    async def slowly(work):
        await anyio.sleep(3)
        return await holding(work)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.gate.run, world.payload(side="LONG", signal_id="in"), slowly)
        await anyio.sleep(0.5)
        waits = await other.run(world.payload(side="FLAT", signal_id="out"), holding)
        assert isinstance(waits, Unfinished)
    assert holding.held is not None
    await other.resume(holding)
    assert holding.held is None


async def test_an_entry_that_was_put_off_and_that_an_exit_has_overtaken_sends_nothing():
    """Whatever is older than the exit and comes later neither."""
    world = World(SignalPolicy(on_flat="exit"))
    holding, begun_ms = Holding(world), world.clock.now_ms()

    async def not_now(work):
        return Pending(note="there is no price", attempted=False)

    await world.gate.run(world.payload(side="LONG", signal_id="in"), not_now)
    await anyio.sleep(1)
    await world.gate.run(world.payload(side="FLAT", signal_id="out"), holding)
    await world.gate.resume(holding)
    assert holding.held is None
    assert world.record("in").reason is DropReason.STALE
    await world.gate.run(world.payload(side="SHORT", signal_id="older", timestamp=begun_ms), holding)
    assert world.record("older").reason is DropReason.SUPERSEDED


async def test_without_exits_nothing_is_superseded_and_nothing_more_is_remembered(world):
    for side in ("FLAT", "LONG", "SHORT"):
        await world.run(side=side, timestamp=world.clock.now_ms() - (side == "LONG"))
    assert len(world.works) == 2
    assert "signal_contents" not in world.store._tables


# --- Results ------------------------------------------------------------------------------------------------


@pytest.mark.row("S2-26", "S2-23", "D-13")
@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        (Fate(filled=1), Executed(note="filled")),
        (Fate(), Executed(note="live")),
        (REJECTED, Refused(reason=DropReason.REJECTED, note="Refused")),
        (LOST, Executed(note="live")),
    ],
)
async def test_the_result_is_what_the_orders_record_says(world, fate, expected):
    world.adapter.creates.append(attrs.evolve(fate, filled=fate.filled))
    outcome = await world.run()
    assert outcome.result == expected


async def test_an_order_that_ended_without_a_fill_executed_nothing(world):
    async def handle(work):
        outcome = await world.gateway.submit(work.intent(quantity=1, limit_price=100))
        world.orders[0].end()
        await world.gateway.refresh(outcome.record)
        return result_of(await world.gateway.submit(outcome.record.intent))

    outcome = await world.gate.run(world.payload(), handle)
    assert outcome.result.reason is DropReason.NOTHING_FILLED


@pytest.mark.row("S2-16")
async def test_a_market_order_needs_no_price(world):
    async def handle(work):
        async def build():
            return work.intent(quantity=1)

        return result_of(await submit_signal(world.gateway, work, build))

    assert isinstance((await world.gate.run(world.payload(), handle)).result, Executed)
    [sent] = world.adapter.sent
    assert (sent.type, sent.limit_price) == ("market", None)


@pytest.mark.parametrize("error", [OutcomeUnknown("?"), StoreUnavailable("?"), VenueUnavailable("?")])
async def test_what_cannot_be_known_now_is_not_acknowledged(world, error):
    async def handle(work):
        raise error

    await world.publish(signal_id="a")
    world.consumer = SignalConsumer(world.bus, world.gate, handle)
    await world.consumer.drain()
    assert (await world.bus.depth(TRADE_INTENTS, "execsafe")).pending == 1
    assert world.record("a").state is SignalState.ACCEPTED
    assert world.record("a").failures == 0


async def test_a_handler_that_keeps_failing_ends_in_the_dead_letters(world):
    async def handle(work):
        raise IntentConflict("apiKey=abcdefgh secret")

    await world.publish(signal_id="a")
    world.consumer = SignalConsumer(world.bus, world.gate, handle)
    for _ in range(4):
        await world.consumer.drain()
        await anyio.sleep(61)
    assert world.record("a").state is SignalState.DEAD_LETTERED
    [letter] = await world.bus.read(dead_letter_topic(TRADE_INTENTS), "ops", "1", wait_s=0)
    assert letter.fields["dead_letter_reason"] == "poison"
    assert letter.fields["signal_id"] == "a"
    assert world.consumer.health().failures == 3
    assert world.gate.funnel.dropped == {(Stage.VALIDATED, DropReason.POISON): 1}


async def test_a_secret_in_a_handlers_error_is_not_logged(world, caplog):
    async def handle(work):
        raise RuntimeError("GET /order?apiKey=abcdefghij&signature=0123456789")

    await world.gate.run(world.payload(), handle)
    assert "RuntimeError" in caplog.text
    assert "abcdefghij" not in caplog.text
    assert "0123456789" not in caplog.text


@pytest.mark.row("S3-35")
async def test_an_execution_beyond_its_budget_is_cancelled_and_handed_out_again(world):
    async def handle(work):
        if not work.is_resumed:
            await anyio.sleep_forever()
        return Executed()

    payload = world.payload(signal_id="a")
    begun_ms = world.clock.now_ms()
    outcome = await world.gate.run(payload, handle)
    assert (outcome.why, world.clock.now_ms() - begun_ms) == ("failed", 60_000)
    assert isinstance(await world.gate.run(payload, handle), Handled)


async def test_a_handler_that_returns_nothing_has_failed(world):
    async def handle(work):
        return None

    outcome = await world.gate.run(world.payload(), handle)
    assert (outcome.why, outcome.note) == ("failed", "it returned NoneType")


@pytest.mark.guarantee(12)
async def test_g12_without_the_store_nothing_is_executed_and_nothing_acknowledged(world):
    await world.publish(signal_id="a")
    world.store.is_down = True
    await world.consumer.drain()
    assert not world.works
    assert world.consumer.health().store_failures == 1
    world.store.is_down = False
    await anyio.sleep(61)
    await world.consumer.drain()
    assert len(world.orders) == 1


async def test_a_commit_that_was_carried_out_and_reported_as_failed_repeats_nothing(world):
    world.store.fails_after = True
    payload = world.payload(signal_id="a")
    assert (await world.gate.run(payload, world.handle)).why == "store"
    world.store.fails_after = False
    await anyio.sleep(61)
    await world.gate.run(payload, world.handle)
    assert len(world.orders) <= 1


# --- The funnel and waves -----------------------------------------------------------------------------------


@pytest.mark.row("S3-01", "S3-02", "S3-03", "S3-46")
async def test_a_wave_opens_its_target_and_counts_the_rest_as_not_attempted(world):
    """The seed's wave: 57 received, 13 valid, 9 attempted, 8 opened, 1 rejected, 4 not attempted."""
    wave = Wave(WavePlan(target=8, buffer=3), world.handle, clock=world.clock)
    world.adapter.creates.extend([Fate()] * 3 + [REJECTED] + [Fate()] * 20)
    for number in range(57):
        side = "LONG" if number < 13 else "HOLD"
        await world.gate.run(world.payload(symbol=f"C{number}/USDT", side=side, signal_id=f"s{number}"), wave)
    funnel = world.gate.funnel
    assert [funnel.at(stage) for stage in Stage] == [57, 57, 13, 9, 8]
    assert funnel.dropped == {
        (Stage.ADAPTED, DropReason.HOLD): 44,
        (Stage.VALIDATED, DropReason.NOT_ATTEMPTED): 4,
        (Stage.ATTEMPTED, DropReason.REJECTED): 1,
    }
    assert (funnel.ratio("opened_of_attempted").count, funnel.ratio("opened_of_attempted").out_of) == (8, 9)
    assert len(world.orders) == 8


@pytest.mark.row("S3-02", "S3-35")
async def test_candidates_of_a_wave_at_once_never_open_more_than_its_target(world):
    attempts = []

    async def slow(work):
        attempts.append(work.signal.symbol)
        await anyio.sleep(1)
        if len(attempts) == 2:
            raise TradingDenied("no")
        return Executed()

    wave = Wave(WavePlan(target=2, buffer=2), slow, clock=world.clock)
    async with anyio.create_task_group() as tasks:
        for number in range(6):
            payload = world.payload(symbol=f"C{number}/USDT", signal_id=f"s{number}")
            tasks.start_soon(world.gate.run, payload, wave)
    assert (wave.opened, wave.under_way) == (2, 0)
    assert wave.opened + wave.failed == len(attempts) <= 4


async def test_nobody_takes_the_place_of_a_candidate_in_doubt_until_the_doubt_is_settled(world):
    """Refused in its place for good, the others would be missing once the doubt has come to nothing."""
    ends = {"a": None}

    async def handle(work):
        if work.signal.id == "a" and ends["a"] is None:
            raise OutcomeUnknown("?")
        return ends.get(work.signal.id) or Executed()

    wave = Wave(WavePlan(target=1, buffer=5), handle, wait_s=1, clock=world.clock)
    await world.gate.run(world.payload(signal_id="a"), wave)
    second = await world.gate.run(world.payload(symbol="ETH/USDT", signal_id="b"), wave)
    assert second.why == "pending"
    assert (wave.opened, wave.failed, wave.under_way) == (0, 0, 1)
    assert [outcome.why for outcome in await world.gate.resume(wave)] == ["pending", "pending"]
    ends["a"] = Refused(reason=DropReason.NOTHING_FILLED)
    results = [outcome.result for outcome in await world.gate.resume(wave)]
    assert results == [ends["a"], Executed()]
    assert (wave.opened, wave.failed, wave.under_way) == (1, 1, 0)


@pytest.mark.row("S3-02")
async def test_a_candidate_refused_for_now_keeps_its_place_and_is_tried_again(world):
    """A book that cannot be read for a moment, a breaker that cools down: nobody said no."""
    tries = []

    async def handle(work):
        tries.append(work.signal.id)
        if world.clock.now_ms() < opens_ms:
            raise TradingDenied("no book", reason="no_reading")
        return Executed()

    opens_ms = world.clock.now_ms() + 20_000
    wave = Wave(WavePlan(target=1, buffer=0), handle, wait_s=30, clock=world.clock)
    first = await world.gate.run(world.payload(signal_id="a"), wave)
    assert first.why == "pending"
    assert (wave.under_way, wave.failed) == (1, 0)
    await world.gate.resume(wave)
    await anyio.sleep(21)
    (again,) = await world.gate.resume(wave)
    assert again.result == Executed()
    assert tries == ["a"] * 3


@pytest.mark.row("S3-02")
async def test_a_candidate_that_is_refused_for_now_again_and_again_gives_its_place_up(world):
    async def handle(work):
        if work.signal.id == "a":
            raise TradingDenied("no book", reason="no_reading")
        return Executed()

    wave = Wave(WavePlan(target=1, buffer=0), handle, wait_s=5, clock=world.clock)
    async with anyio.create_task_group() as tasks:
        for name, of in (("a", "BTC/USDT"), ("b", "ETH/USDT")):
            tasks.start_soon(world.gate.run, world.payload(symbol=of, signal_id=name), wave)
            await anyio.sleep(0.1)
    for _ in range(3):
        await anyio.sleep(3)
        await world.gate.resume(wave)
    assert (await world.gate.find("b")).state is SignalState.EXECUTED
    assert (await world.gate.find("a")).reason is DropReason.NOT_ATTEMPTED
    assert (wave.opened, wave.failed, wave.under_way) == (1, 0, 0)


@pytest.mark.guarantee(13)
@pytest.mark.row("S3-02", "S3-05")
async def test_g13_a_wave_goes_on_after_a_restart_with_what_was_done_by_then(world):
    """Opened, spent and begun candidates count on; one that only waited is asked again whether it is needed."""
    ends = {"a": Executed(), "b": Refused(reason=DropReason.REJECTED), "c": None, "d": Executed(), "e": Executed()}
    handled = []

    async def handle(work):
        handled.append(work.signal.id)
        if ends[work.signal.id] is None:
            raise OutcomeUnknown("?")
        return ends[work.signal.id]

    def wave():
        plan = WavePlan(target=2, buffer=1)
        return Wave(plan, handle, wait_s=1, clock=world.clock, store=world.store, name="evening")

    first = wave()
    for name in "abcd":
        await world.gate.run(world.payload(symbol=f"{name}/USDT", signal_id=name), first)
    assert handled == ["a", "b", "c"]
    successor = wave()
    assert [outcome.why for outcome in await world.gate.resume(successor)] == ["pending", "pending"]
    assert handled == ["a", "b", "c", "c"]
    assert (successor.opened, successor.failed, successor.under_way) == (1, 1, 1)
    ends["c"] = Executed()
    c, d = await world.gate.resume(successor)
    assert (c.result, d.result.reason) == (Executed(), DropReason.NOT_ATTEMPTED)
    late = await world.gate.run(world.payload(symbol="e/USDT", signal_id="e"), wave())
    assert late.result.reason is DropReason.NOT_ATTEMPTED
    assert handled == ["a", "b", "c", "c", "c"]


async def test_no_candidate_is_handed_out_before_it_is_written_down_that_it_was(world):
    handled = []

    async def handle(work):
        handled.append(work.signal.id)
        return Executed()

    shut = MemoryStore()
    wave = Wave(WavePlan(target=1), handle, clock=world.clock, store=shut, name="evening")
    outcome = await world.gate.run(world.payload(signal_id="a"), wave)
    assert outcome.why == "pending"
    assert (handled, wave.under_way) == ([], 0)
    await shut.open()
    (outcome,) = await world.gate.resume(wave)
    assert outcome.result == Executed()
    await shut.aclose()


async def test_two_processes_at_one_wave_open_no_more_than_its_target(world):
    async def handle(work):
        await anyio.sleep(0.1)
        return Executed()

    plan = WavePlan(target=2, buffer=1)
    one, other = (Wave(plan, handle, wait_s=1, clock=world.clock, store=world.store, name="evening") for _ in range(2))
    outcomes = []

    async def run(name, wave):
        outcomes.append(await world.gate.run(world.payload(symbol=f"{name}/USDT", signal_id=name), wave))

    async with anyio.create_task_group() as tasks:
        for number, name in enumerate("abcdef"):
            tasks.start_soon(run, name, (one, other)[number % 2])
    executed = [o for o in outcomes if isinstance(getattr(o, "result", None), Executed)]
    assert len(executed) == 2


@pytest.mark.parametrize("half", [{"name": "evening"}, {"store": MemoryStore()}])
def test_a_wave_that_is_to_survive_needs_a_store_and_a_name(half):
    with pytest.raises(InvalidInput, match="both"):
        Wave(WavePlan(), Executed, **half)


async def test_a_candidate_that_waits_too_long_is_put_off_or_too_old(world):
    async def slow(work):
        await anyio.sleep(50)
        raise TradingDenied("no")

    wave = Wave(WavePlan(target=1, buffer=1), slow, wait_s=10, clock=world.clock)
    outcomes = []

    async def call(name, after_s, age_s):
        await anyio.sleep(after_s)
        payload = world.payload(symbol=f"{name}/USDT", signal_id=name, timestamp=world.clock.now_ms() - age_s * 1_000)
        outcomes.append(await world.gate.run(payload, wave))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, "a", 0, 0)
        tasks.start_soon(call, "b", 1, 0)
        tasks.start_soon(call, "c", 45, 297)
    put_off, failed, late = outcomes
    assert put_off.why == "pending"
    assert failed.result.reason is DropReason.DENIED
    assert late.result.reason is DropReason.STALE


# --- The consumer -------------------------------------------------------------------------------------------


@pytest.mark.row("S2-04", "S2-39", "S2-01")
async def test_a_running_consumer_says_its_limits_and_knows_its_health(world, caplog):
    caplog.set_level(logging.INFO, "execsafe.signals")
    async with anyio.create_task_group() as tasks:
        await tasks.start(world.consumer.run)
        await anyio.sleep(5)
        assert world.consumer.health().last_event_age_ms is None
        await world.publish(signal_id="a")
        await anyio.sleep(7)
        health = world.consumer.health()
        tasks.cancel_scope.cancel()
    assert "mode live: signals are executed within 300 s" in caplog.text
    assert (health.read, health.acknowledged, health.failures, health.bus_failures) == (1, 1, 0, 0)
    assert health.lag_ms == 0
    assert 6_900 <= health.last_event_age_ms <= 7_000


async def test_a_bus_that_fails_neither_ends_the_consumer_nor_loses_a_signal(world):
    read, ack = world.bus.read, world.bus.ack
    failures = iter([True] * 5)

    async def bad_read(*args, **kwargs):
        if next(failures, False):
            raise ConnectionError("down")
        return await read(*args, **kwargs)

    async def bad_ack(*args):
        world.bus.ack = ack
        raise ConnectionError("down")

    world.bus.read, world.bus.ack = bad_read, bad_ack
    await world.publish(signal_id="a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.consumer.run)
        await anyio.sleep(200)
        tasks.cancel_scope.cancel()
    health = world.consumer.health()
    assert (health.bus_failures, health.bus_failures_in_row, health.read, health.acknowledged) == (6, 0, 2, 1)
    assert len(world.orders) == 1


async def test_malformed_messages_become_dead_letters_with_their_reason(world):
    await world.publish(side="BUY")
    await world.publish(timestamp="?")
    await world.consumer.drain()
    letters = await world.bus.read(dead_letter_topic(TRADE_INTENTS), "ops", "1", limit=9, wait_s=0)
    assert [letter.fields["dead_letter_reason"] for letter in letters] == ["unknown_side", "invalid_timestamp"]
    assert world.kinds() == [EventType.SIGNAL_DEAD_LETTERED] * 2
    assert world.gate.funnel.at(Stage.RECEIVED) == 2
    assert world.gate.funnel.at(Stage.ADAPTED) == 0


@pytest.mark.row("S2-15")
async def test_a_listener_that_raises_disturbs_nothing(world, caplog):
    def broken(_event):
        raise RuntimeError("no")

    gate = SignalGate(world.store, clock=world.clock, listeners=[broken, world.events.append])
    assert isinstance(await gate.run(world.payload(), world.handle), Handled)
    assert len(world.events) == 3


@pytest.mark.guarantee(14)
async def test_g14_ended_signals_leave_with_the_retention_and_live_ones_never(world):
    async def later(work):
        return Pending()

    await world.run(signal_id="a")
    await world.gate.run(world.payload(symbol="ETH/USDT", signal_id="b"), later)
    await anyio.sleep(8 * 86_400)
    await world.gateway.registry.purge()
    assert world.record("a") is None
    assert world.record("b").state is SignalState.ACCEPTED
    assert "a" not in world.gate._tally
    assert "b" in world.gate._tally


async def test_records_survive_the_codec(world):
    await world.run(signal_id="a", leverage="20", confidence=0.85, extra_field=[1, None])
    record = world.record("a")
    assert codec.decode(codec.encode(record)) == record


async def test_a_budget_or_a_name_that_cannot_work_is_refused(world):
    for wrong in ({"budget_s": 0}, {"failures_max": 0}, {"name": ""}, {"name": "x" * 33}, {"store_timeout_s": -1}):
        with pytest.raises(InvalidInput):
            SignalGate(world.store, **wrong)
