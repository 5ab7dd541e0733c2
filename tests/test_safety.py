"""SafetyMonitor at the gateway: what it refuses, what a restart finds, and what happens when the store fails."""

from __future__ import annotations

import anyio
import attrs
import pytest

from execsafe.core.safety import DenyReason, SafetyPolicy, TradingState, TripReason
from execsafe.errors import InvalidInput, StoreError, StoreUnavailable, TradingDenied, VersionConflict
from execsafe.gateway import Accepted, GatewayPolicy, OrderGateway, Rejected, Unknown
from execsafe.ghosts import LookPolicy
from execsafe.health import HealthMonitor
from execsafe.intents import IntentRegistry
from execsafe.model.event import Event, EventType
from execsafe.model.instrument import Instrument
from execsafe.model.intent import ErrorFacts, Intent
from execsafe.model.position import Snapshot, Unavailable
from execsafe.ports import Batch
from execsafe.safety import SafetyMonitor
from execsafe.stores.codec import decode, encode
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from fakes import HANGS, LISTS, REJECTED, FakeAdapter, FakeVenue, Fate, ScriptedStore

pytestmark = pytest.mark.anyio
LOOKS = LookPolicy(interval_s=1.0, spacing_s=0.0, timeout_s=1.0)
POLICY = SafetyPolicy(reject_samples_min=3)
INSTRUMENT = Instrument(symbol="BTC/USDT")


class AuthenticationError(Exception):
    """Named as ccxt's."""


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class World:
    """One venue, one store, any number of processes that watch each other's state."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.venue = FakeVenue(self.clock, LISTS)
        self.store = ScriptedStore()
        self.store._is_open = True
        self.events: list[Event] = []
        self.adapter, self.registry, self.gateway, self.monitor = self.process("p1")

    def process(self, holder: str):
        adapter = FakeAdapter(self.venue)
        monitor = SafetyMonitor(self.store, clock=self.clock, policy=POLICY, listeners=[self.events.append])
        registry = IntentRegistry(self.store, clock=self.clock, listeners=[monitor.on_event])
        policy = GatewayPolicy(request_timeout_s=1.0, patience_s=3.0)
        gateway = OrderGateway(
            adapter, registry, policy=policy, looks=LOOKS, checks=[monitor], clock=self.clock, holder=holder
        )
        return adapter, registry, gateway, monitor

    def told(self, kind: EventType) -> list[Event]:
        return [event for event in self.events if event.type is kind]


@pytest.fixture
async def world():
    return World()


def intent(key: str = "k", **changes) -> Intent:
    return Intent(**{"key": key, "symbol": "BTC/USDT", "side": "buy", "quantity": 1, "limit_price": 100, **changes})


async def deny_reason(gateway, key: str) -> str:
    with pytest.raises(TradingDenied) as caught:
        await gateway.submit(intent(key))
    return caught.value.context["reason"]


async def test_nothing_wrong_nothing_refused(world):
    await world.monitor.open(world.registry)
    assert isinstance(await world.gateway.submit(intent()), Accepted)
    assert world.monitor.state is TradingState.ACTIVE
    assert world.events == []


@pytest.mark.guarantee(12)
@pytest.mark.parametrize("state", [TradingState.REDUCE_ONLY, TradingState.HALTED])
async def test_g12_a_restricted_state_refuses_entries_and_lets_exits_and_cancels_pass(world, state):
    await world.gateway.submit(intent("resting"))
    await world.monitor.set(state, note="maintenance")
    assert await deny_reason(world.gateway, "entry") == state.value
    assert isinstance(await world.gateway.submit(intent("exit", side="sell", reduce_only=True)), Accepted)
    assert isinstance(await world.gateway.cancel("resting"), Accepted)
    assert [o.request.reduce_only for o in world.venue.orders] == [False, True]
    await world.monitor.set(TradingState.ACTIVE, note="done")
    assert isinstance(await world.gateway.submit(intent("entry")), Accepted)


async def test_a_denial_says_why_with_the_reason_and_the_state(world):
    await world.monitor.set(TradingState.HALTED, note="strange fills")
    with pytest.raises(TradingDenied, match="strange fills") as caught:
        await world.gateway.submit(intent())
    assert caught.value.context["state"] == "halted"
    [denied] = world.told(EventType.ENTRY_DENIED)
    assert denied.subject == intent().identity
    assert denied.details.thaw()["reason"] == DenyReason.HALTED


@pytest.mark.row("S2-22")
@pytest.mark.guarantee(4)
async def test_a_refused_key_at_an_order_halts_trading(world):
    world.adapter.judge = lambda error, operation: attrs.evolve(
        FakeAdapter.judge(world.adapter, error, operation), facts=ErrorFacts(kind=type(error).__name__)
    )
    world.adapter.creates.append(Fate(arrive_s=None, error=AuthenticationError("Invalid API-key, IP, or permissions")))
    assert isinstance(await world.gateway.submit(intent("first")), Unknown)  # a client's word proves nothing here
    assert world.monitor.state is TradingState.HALTED
    assert await deny_reason(world.gateway, "second") == "halted"


@pytest.mark.row("S2-22")
async def test_the_self_check_asks_one_signed_question_before_trading(world):
    class Reader:
        reading = Unavailable(error=ErrorFacts(kind="AuthenticationError"), at_ms=0)

        async def balances(self):
            return self.reading

    reader = Reader()
    assert not await world.monitor.self_check(reader)
    assert world.monitor.reasons == (TripReason.AUTHENTICATION,)
    assert await deny_reason(world.gateway, "k") == "halted"
    await world.monitor.reset(note="new key")
    reader.reading = Unavailable(error=ErrorFacts(kind="TimeoutError"), at_ms=0)
    assert not await world.monitor.self_check(reader)
    assert world.monitor.state is TradingState.REDUCE_ONLY
    reader.reading = Snapshot(value={}, taken_at_ms=0)
    assert await world.monitor.self_check(reader)
    await anyio.sleep(60)
    assert isinstance(await world.gateway.submit(intent("k2")), Accepted)
    assert world.monitor.state is TradingState.ACTIVE


@pytest.mark.row("S2-22")
async def test_an_exception_that_no_event_tells_of_can_be_handed_in(world):
    wrapped = StoreUnavailable("x")
    wrapped.__cause__ = AuthenticationError("401")
    world.monitor.caught(ValueError("something else"))
    world.monitor.caught(VersionConflict("somebody else was first: nothing is broken"))
    assert world.monitor.state is TradingState.ACTIVE
    world.monitor.caught(StoreUnavailable("down"))
    assert world.monitor.reasons == (TripReason.STORE_FAILURE,)
    world.monitor.caught(wrapped)
    assert world.monitor.state is TradingState.HALTED


@pytest.mark.row("S0-16")
async def test_rejects_trip_a_probe_fails_then_another_one_closes_the_breaker(world):
    world.adapter.creates.extend([REJECTED] * 4)
    for n in range(3):
        assert isinstance(await world.gateway.submit(intent(f"r{n}")), Rejected)
    assert await deny_reason(world.gateway, "d") == "reduce_only"
    await anyio.sleep(60)
    assert isinstance(await world.gateway.submit(intent("probe 1")), Rejected)
    await anyio.sleep(119)
    assert await deny_reason(world.gateway, "d") == "reduce_only"
    await anyio.sleep(1)
    assert isinstance(await world.gateway.submit(intent("probe 2")), Accepted)
    assert world.monitor.state is TradingState.ACTIVE
    assert len(world.told(EventType.BREAKER_TRIPPED)) == 2
    assert [e.note for e in world.told(EventType.TRADING_STATE_CHANGED)] == [
        "active->reduce_only",
        "reduce_only->active",
    ]


async def test_of_two_processes_one_sends_the_probe(world):
    _, _, gateway, monitor = world.process("p2")
    await world.monitor.refresh()
    world.adapter.creates.extend([REJECTED] * 3)
    for n in range(3):
        await world.gateway.submit(intent(f"r{n}"))
    await world.monitor.refresh()
    await anyio.sleep(60)
    world.adapter.creates.append(Fate(reply_s=0.5))
    ends = []

    async def send(which, key):
        try:
            ends.append(type(await which.submit(intent(key))).__name__)
        except TradingDenied as error:
            ends.append(error.context["reason"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send, world.gateway, "a")
        tasks.start_soon(send, gateway, "b")
    assert sorted(ends) == ["Accepted", "probing"]
    await anyio.sleep(2)
    await monitor.refresh()
    await world.monitor.refresh()
    assert {monitor.state, world.monitor.state} == {TradingState.ACTIVE}


@pytest.mark.guarantee(12, 13)
async def test_g12_what_tripped_survives_a_restart(world):
    await world.monitor.set(TradingState.HALTED, note="by hand")
    _, registry, gateway, monitor = world.process("p2")
    await monitor.open(registry)
    assert monitor.state is TradingState.HALTED
    assert await deny_reason(gateway, "k") == "halted"


@pytest.mark.guarantee(13)
async def test_g13_what_happened_between_the_last_write_and_a_crash_is_read_from_the_outbox(world):
    """The process died before its monitor wrote anything: the event is durable, so the trip is."""
    await world.monitor.open()
    stuck = Event(type=EventType.STUCK_EXIT, at_ms=world.clock.now_ms(), subject="p1")
    await world.store.commit(Batch(now_ms=world.clock.now_ms(), events=(stuck,)))
    *_, monitor = world.process("p2")
    await monitor.open()
    assert monitor.reasons == (TripReason.STUCK_EXIT,)
    await monitor.refresh()
    assert monitor.record.breaker(TripReason.STUCK_EXIT).times == 1, "read once"


async def test_an_event_that_was_heard_and_is_read_again_from_the_outbox_counts_once(world):
    await world.monitor.open()
    event = Event(type=EventType.STUCK_EXIT, at_ms=world.clock.now_ms(), subject="p1")
    await world.store.commit(Batch(now_ms=world.clock.now_ms(), events=(event,)))
    world.monitor.on_event(event)
    over = attrs.evolve(event, type=EventType.EXIT_CLEARED)
    world.monitor.on_event(over)
    await anyio.sleep(60)
    await world.monitor.refresh()
    await world.monitor.check(intent(), INSTRUMENT)
    assert world.monitor.record.causes == ()


@pytest.mark.guarantee(12)
async def test_g12_another_process_is_stopped_too(world):
    _, _, gateway, _ = world.process("p2")
    assert isinstance(await gateway.submit(intent("before")), Accepted)
    await world.monitor.set(TradingState.HALTED, note="by hand")
    await anyio.sleep(1)
    assert await deny_reason(gateway, "after") == "halted"


async def test_two_hands_at_once_both_count(world):
    *_, other = world.process("p2")
    await world.monitor.open()
    await other.open()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: world.monitor.set(TradingState.HALTED, note="one"))
        other.on_event(Event(type=EventType.STUCK_EXIT, at_ms=0, subject="p1"))
        tasks.start_soon(other.refresh)
    await world.monitor.refresh()
    assert set(world.monitor.reasons) == {TripReason.MANUAL, TripReason.STUCK_EXIT}


@pytest.mark.guarantee(4, 12)
async def test_g12_an_unresolved_order_stops_entries_until_it_is_found(world):
    world.adapter.creates.append(HANGS)
    world.adapter.reads_fail = True
    assert isinstance(await world.gateway.submit(intent("lost")), Unknown)
    assert await deny_reason(world.gateway, "next") == "reduce_only"
    _, registry, gateway, monitor = world.process("p2")
    await monitor.open(registry)
    assert monitor.reasons == (TripReason.UNRESOLVED,)
    await gateway.recover()  # this process can read
    await anyio.sleep(60)
    assert isinstance(await gateway.submit(intent("next")), Accepted)
    assert monitor.state is TradingState.ACTIVE


@pytest.mark.row("X-05")
@pytest.mark.guarantee(12)
async def test_g12_a_failing_store_lets_no_entry_pass_and_its_return_is_probed(world):
    await world.monitor.open()
    world.store.is_down = True
    await anyio.sleep(1)
    with pytest.raises(TradingDenied) as caught:
        await world.monitor.check(intent(), INSTRUMENT)
    assert caught.value.context["reason"] == "state_unknown"
    await world.monitor.check(intent(reduce_only=True, side="sell"), INSTRUMENT)
    assert world.monitor.reasons == (TripReason.STORE_FAILURE,)
    with pytest.raises(StoreError):
        await world.monitor.set(TradingState.HALTED, note="holds here at once")
    assert world.monitor.state is TradingState.HALTED
    world.store.is_down = False
    await world.monitor.set(TradingState.ACTIVE, note="ok")
    assert await deny_reason(world.gateway, "soon") == "reduce_only"
    await anyio.sleep(60)
    assert isinstance(await world.gateway.submit(intent("probe")), Accepted)
    assert world.monitor.state is TradingState.ACTIVE


@pytest.mark.guarantee(12)
async def test_g12_a_store_that_never_answers_is_a_store_that_fails(world):
    async def hang(collection, key):
        await anyio.sleep_forever()

    world.store.find = hang
    with pytest.raises(TradingDenied) as caught:
        await world.monitor.check(intent(), INSTRUMENT)
    assert caught.value.context["reason"] == "state_unknown"


async def test_a_write_that_was_done_and_reported_as_failed_changes_nothing_twice(world):
    await world.monitor.open()
    world.store.fails_after = True
    with pytest.raises(StoreError):
        await world.monitor.set(TradingState.REDUCE_ONLY, note="x")
    world.store.fails_after = False
    await world.monitor.refresh()
    *_, other = world.process("p2")
    await other.open()
    assert other.record.breaker(TripReason.MANUAL).times == 1


async def test_it_keeps_watch_in_the_background_whatever_the_store_does(world):
    async with anyio.create_task_group() as tasks:
        await tasks.start(world.monitor.run)
        world.monitor.on_event(Event(type=EventType.STUCK_EXIT, at_ms=0, subject="p1"))
        world.store.is_down = True
        await anyio.sleep(5)
        world.store.is_down = False
        await anyio.sleep(5)
        tasks.cancel_scope.cancel()
    *_, other = world.process("p2")
    await other.open()
    assert TripReason.STUCK_EXIT in other.reasons


async def test_a_listener_that_raises_stops_nothing(world):
    def bad(event):
        raise ZeroDivisionError

    monitor = SafetyMonitor(world.store, clock=world.clock, listeners=[bad, world.events.append])
    await monitor.set(TradingState.HALTED, note="x")
    assert monitor.state is TradingState.HALTED
    assert world.told(EventType.TRADING_STATE_CHANGED)


@pytest.mark.row("S3-38")
async def test_a_component_that_is_down_stops_entries(world):
    health = HealthMonitor(clock=world.clock, listeners=[world.monitor.on_event])
    for _ in range(5):
        health.failed("prices", ConnectionError())
    assert await deny_reason(world.gateway, "k") == "reduce_only"
    health.ok("prices")
    await anyio.sleep(60)
    assert isinstance(await world.gateway.submit(intent("k2")), Accepted)


async def test_the_record_can_be_stored_on_disk(world):
    world.monitor.on_event(Event(type=EventType.INTENT_UNRESOLVED, at_ms=0, subject="i"))
    await world.monitor.set(TradingState.HALTED, note="n")
    assert decode(encode(world.monitor.record)) == world.monitor.record


@pytest.mark.parametrize("note", ["", "x" * 201, "a\nb"])
async def test_a_hand_must_say_why_in_one_line(world, note):
    with pytest.raises(InvalidInput):
        await world.monitor.set(TradingState.HALTED, note=note)
    with pytest.raises(InvalidInput):
        await world.monitor.reset(note=note)
    assert world.monitor.state is TradingState.ACTIVE


@pytest.mark.guarantee(14)
async def test_g14_what_cannot_be_written_is_bounded(world):
    """A store that is down for days while a component flaps."""
    await world.monitor.open()
    world.store.is_down = True
    for n in range(3_000):
        kind = EventType.STUCK_EXIT if n % 2 == 0 else EventType.EXIT_CLEARED
        world.monitor.on_event(Event(type=kind, at_ms=n, subject="p1"))
    assert len(world.monitor._pending) <= 1_000
    assert len(world.monitor._events) <= 1_000
    world.store.is_down = False
    await world.monitor.refresh()
    assert (world.monitor._pending, world.monitor._events) == ([], [])
