"""IntentRegistry: the durable record of what was meant; two writers never overwrite each other."""

from __future__ import annotations

import json
import logging
from decimal import Decimal

import anyio
import anyio.lowlevel
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core import transitions
from execsafe.core.exposure import worst_case
from execsafe.errors import (
    IntentConflict,
    InvalidInput,
    LeaseHeld,
    StaleFencingToken,
    StoreUnavailable,
    VersionConflict,
)
from execsafe.intents import COLLECTION, IntentRegistry, is_settled, lease_name, order_alias
from execsafe.model.event import EventType
from execsafe.model.intent import Amendment, Change, ErrorFacts, Intent, IntentRecord, IntentState
from execsafe.model.order import OrderReport, OrderStatus
from execsafe.ports import LeaseRequest
from execsafe.stores.memory import MemoryStore
from execsafe.testing.clock import ManualClock
from execsafe.testing.loop import virtual_backends
from fakes import ScriptedStore

pytestmark = pytest.mark.anyio
DAY_S = 86_400
ERROR = ErrorFacts(kind="InsufficientFunds")


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def store():
    async with ScriptedStore() as opened:
        yield opened


@pytest.fixture
def registry(store, clock):
    return IntentRegistry(store, clock=clock)


def intent(key: str = "k", **changes) -> Intent:
    return Intent(**{"key": key, "symbol": "BTC/USDT", "side": "buy", "quantity": 2, "limit_price": 100, **changes})


def sending(of: Intent, clock: ManualClock) -> IntentRecord:
    record = transitions.new_record(of, quantity=of.quantity, limit_price=of.limit_price, now_ms=clock.now_ms())
    return transitions.begin(record, client_order_id=f"c-{of.key}", deadline_ms=None, now_ms=clock.now_ms())


def request(of: Intent, holder: str = "me", ttl_ms: int = 10_000) -> LeaseRequest:
    return LeaseRequest(name=lease_name(of), holder=holder, ttl_ms=ttl_ms)


def report(of: Intent, status: OrderStatus = OrderStatus.OPEN, filled: int = 0, **changes) -> OrderReport:
    said = OrderReport(
        symbol=of.symbol,
        status=status,
        client_order_id=f"c-{of.key}",
        venue_order_id=f"v-{of.key}",
        filled_quantity=Decimal(filled),
    )
    return attrs.evolve(said, **changes)


async def created(registry: IntentRegistry, of: Intent) -> tuple[IntentRecord, object]:
    return await registry.create(sending(of, registry.clock), acquire=request(of))


def seen(said: OrderReport):
    return lambda record: transitions.observed(record, said, now_ms=0)


async def told(store: ScriptedStore) -> list[EventType]:
    return [stored.event.type for stored in await store.read_events(0)]


# --- Writing ahead ------------------------------------------------------------------------------------------


@pytest.mark.guarantee(2)
async def test_g2_record_lease_and_events_are_one_durable_step(registry, store):
    """A crash leaves all of it or nothing of it."""
    record, lease = await created(registry, intent())
    [commit] = store.commits
    assert commit.puts[0].value == record
    assert commit.acquire == request(intent())
    assert [e.type for e in commit.events] == [EventType.INTENT_RECORDED, EventType.ATTEMPT_SENDING]
    assert (record.version, record.state) == (1, IntentState.SENDING)
    assert lease.holder == "me"
    assert await registry.find("k") == record


@pytest.mark.guarantee(5)
async def test_g5_an_intent_is_recorded_once(registry, store):
    await created(registry, intent())
    with pytest.raises(VersionConflict):
        await created(registry, intent())
    assert len(store.commits) == 1


@pytest.mark.guarantee(5)
async def test_g5_the_same_key_with_another_payload_is_a_conflict(registry):
    await created(registry, intent())
    assert await registry.recorded(intent(fresh_until_ms=5)) is not None
    with pytest.raises(IntentConflict) as caught:
        await registry.recorded(intent(quantity=3))
    assert caught.value.intent_key == "k"
    assert await registry.recorded(intent("other")) is None


async def test_account_and_leg_are_part_of_the_identity(registry):
    one, other, third = intent(), intent(account="b"), intent(leg="hedge")
    first, _ = await created(registry, one)
    for of in (other, third):
        await registry.create(attrs.evolve(sending(of, registry.clock), attempts=()), acquire=request(of))
    assert (await registry.find("k")).intent == one
    assert (await registry.find("k", account="b")).intent == other
    assert (await registry.find("k", leg="hedge")).intent == third
    assert await registry.find("k", account="c") is None
    assert await registry.reload(first) == first


@pytest.mark.parametrize("key", ["", "a\nb", "x" * 201])
async def test_a_malformed_key_is_refused_also_when_reading(registry, key):
    with pytest.raises(InvalidInput):
        await registry.find(key)


async def test_a_record_is_found_by_every_id_it_ever_had(registry):
    record, lease = await created(registry, intent())
    record = await registry.advance(record, seen(report(intent())), lease=lease)
    assert await registry.find_client_order("default", "c-k") == record
    assert await registry.find_order("default", "BTC/USDT", "v-k") == record
    for miss in (("other", "BTC/USDT", "v-k"), ("default", "ETH/USDT", "v-k"), ("default", "BTC/USDT", "v")):
        assert await registry.find_order(*miss) is None
    assert await registry.find_client_order("other", "c-k") is None


def test_an_alias_names_one_order_whatever_separators_its_parts_hold():
    """Symbols hold colons, and so may accounts and ids: glued together they would mean two things."""
    parts = [("a", "B/U:U", "1"), ("a:B/U", "U", "1"), ("a", "B/U", "U:1"), ("a", "B", 'U","1'), ("a", 'B","U', "1")]
    assert len({order_alias(*p) for p in parts}) == len(parts)


@given(st.lists(st.text(max_size=20), min_size=3, max_size=3))
@settings(max_examples=1000, deadline=None)
def test_an_alias_is_the_json_of_its_parts(parts):
    """What earlier releases stored is still found."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    assert order_alias(*parts) == f"order:{text}"


async def test_a_write_changes_nothing_but_the_version(registry):
    """Records are written out field by field: one that was forgotten would fall back to its default."""
    first, lease = await created(registry, intent())
    changed = attrs.evolve(
        first,
        limit_price=Decimal(3),
        change=Change(asked_at_ms=1),
        amendment=Amendment(trigger_price=5),
        given_up=True,
        created_at_ms=4,
        updated_at_ms=5,
        ended_at_ms=6,
        venue="here",
        state=IntentState.CANCELED,
    )
    assert all(getattr(changed, f.name) != f.default for f in attrs.fields(IntentRecord))
    stored = await registry.advance(first, lambda _: changed, lease=lease)
    assert stored == attrs.evolve(changed, version=2)
    assert await registry.find("k") == stored


@pytest.mark.guarantee(5)
async def test_g5_a_look_that_costs_nothing_finds_what_is_recorded_and_hides_no_conflict():
    async with MemoryStore() as store:
        registry = IntentRegistry(store)
        assert await registry.at_hand(intent()) is None
        record, _ = await created(registry, intent())
        assert await registry.at_hand(intent()) == record
        assert await registry.at_hand(intent(fresh_until_ms=5)) == record  # not a part of the payload
        with pytest.raises(IntentConflict):
            await registry.at_hand(intent(quantity=3))
    assert await registry.at_hand(intent()) is None  # closed: the write that follows says so


@pytest.mark.guarantee(5)
async def test_g5_what_a_registry_has_not_met_is_not_looked_up_and_another_ones_record_is_refused_by_the_store(store):
    ours, other = IntentRegistry(store), IntentRegistry(store)
    record, _ = await created(other, intent())
    assert await ours.at_hand(intent()) is None
    with pytest.raises(VersionConflict):
        await created(ours, intent())
    assert await ours.find("k") == record
    assert await ours.at_hand(intent()) == record  # now it is known


# --- Version conflicts --------------------------------------------------------------------------------------


def between(store: ScriptedStore, action) -> None:
    """Let *action* happen once, between another writer's decision and its commit."""

    async def interfere() -> None:
        await action()

    def hook(_batch):
        store.hook = None
        return interfere()

    store.hook = hook


@pytest.mark.guarantee(11)
async def test_g11_evidence_that_came_in_between_is_kept_and_the_change_decided_anew(registry, store, clock):
    """The stream credits a fill while the look-up is being recorded: both are in the result."""
    record, lease = await created(registry, intent())
    other = IntentRegistry(store, clock=clock)
    between(store, lambda: other.observe(report(intent(), filled=1)))
    result = await registry.advance(record, seen(report(intent(), OrderStatus.CANCELED, 0)), lease=lease)
    assert (result.version, result.state, result.filled_quantity) == (3, IntentState.CANCELED, 1)
    assert await registry.find("k") == result


@pytest.mark.guarantee(4, 11)
async def test_g4_a_verdict_that_evidence_overtook_is_not_written(registry, store, clock):
    """A reject and an ack race: whoever commits second sees what is there, and leaves it alone."""
    record, lease = await created(registry, intent())
    other = IntentRegistry(store, clock=clock)
    between(store, lambda: other.observe(report(intent())))
    result = await registry.advance(record, lambda r: transitions.refused(r, 1, ERROR, now_ms=0), lease=lease)
    assert result.state is IntentState.LIVE
    assert len(store.commits) == 2
    assert EventType.ORDER_REJECTED not in await told(store)


async def test_any_number_of_writers_lose_nothing(registry, store, clock):
    """Ten registries credit ten different fills of one order at once, each commit suspended in the middle."""
    record, _ = await created(registry, intent(quantity=10))
    await registry.advance(record, seen(report(intent())))
    store.hook = lambda _batch: anyio.lowlevel.checkpoint()
    stale = await registry.find("k")

    async def credit(n: int) -> None:
        said = report(intent(), filled=n)
        await IntentRegistry(store, clock=clock).advance(stale, seen(said))

    async with anyio.create_task_group() as tasks:
        for n in range(1, 11):
            tasks.start_soon(credit, n)
    final = await registry.find("k")
    assert final.filled_quantity == 10
    fills = [s.event.quantity for s in await store.read_events(0) if s.event.type is EventType.ORDER_FILL]
    assert sum(fills) == 10


async def test_a_record_that_never_stops_changing_is_an_error_and_no_endless_loop(registry, store, clock):
    record, _ = await created(registry, intent())
    other = IntentRegistry(store, clock=clock)
    busy = False

    async def touch() -> None:
        nonlocal busy
        busy = True
        newest = await other.find("k")
        await other.advance(newest, lambda r: attrs.evolve(r, updated_at_ms=r.updated_at_ms + 1))
        busy = False

    store.hook = lambda _batch: None if busy else touch()
    with pytest.raises(StoreUnavailable, match="kept changing"):
        await registry.advance(record, seen(report(intent())))


async def test_a_record_that_was_purged_meanwhile_is_not_written_again(registry, clock):
    record, lease = await created(registry, intent())
    ended = await registry.advance(record, seen(report(intent(), OrderStatus.CLOSED, 2)), lease=lease)
    clock.advance(s=8 * DAY_S)
    assert await registry.purge() == 1
    with pytest.raises(VersionConflict):
        await registry.advance(ended, lambda r: attrs.evolve(r, updated_at_ms=1))
    assert await registry.find("k") is None


@pytest.mark.guarantee(5)
async def test_g5_a_new_record_is_never_taken_for_the_one_that_is_there(registry, store):
    """Same key, another order: a change that was decided for the new one is not applied to the old one."""
    await created(registry, intent())
    other = intent(quantity=3)
    new = transitions.new_record(other, quantity=other.quantity, limit_price=None, now_ms=0)
    with pytest.raises(VersionConflict):
        await registry.advance(new, lambda r: transitions.give_up(r, now_ms=0))
    assert not (await registry.find("k")).given_up
    assert len(store.commits) == 1


async def test_a_change_that_alters_nothing_writes_nothing(registry, store):
    record, lease = await created(registry, intent())
    assert await registry.advance(record, lambda r: r, lease=lease) is record
    assert len(store.commits) == 1


# --- Leases -------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(7)
async def test_g7_a_holder_whose_lease_passed_on_can_no_longer_write(registry, clock):
    """Paused longer than its lease: whatever it decided then, the new holder decides now."""
    record, stale = await created(registry, intent())
    clock.advance(ms=10_001)
    fresh = await registry.take_lease(intent(), request(intent(), "other"))
    assert fresh.token > stale.token
    with pytest.raises(StaleFencingToken):
        await registry.advance(record, seen(report(intent())), lease=stale)
    assert await registry.find("k") == record
    await registry.advance(record, seen(report(intent())), lease=fresh)


@pytest.mark.guarantee(7)
async def test_g7_a_lease_excludes_others_until_it_ends_and_is_renewed_by_its_holder(registry, clock):
    _, lease = await created(registry, intent())
    with pytest.raises(LeaseHeld) as caught:
        await registry.take_lease(intent(), request(intent(), "other"))
    assert caught.value.context["expires_at_ms"] == lease.expires_at_ms
    clock.advance(ms=5_000)
    renewed = await registry.take_lease(intent(), request(intent()))
    assert (renewed.token, renewed.expires_at_ms) == (lease.token, lease.expires_at_ms + 5_000)


@pytest.mark.guarantee(7)
async def test_g7_the_lease_goes_back_in_the_commit_that_settles(registry, store):
    """Not a write later: a crash in between would make the next one wait for the lease to expire."""
    record, lease = await created(registry, intent())
    record = await registry.advance(record, seen(report(intent())), lease=lease, release_when=is_settled)
    assert record.state is IntentState.LIVE
    assert (store.commits[-1].fence, store.commits[-1].release) == (lease, lease)
    assert len(store.commits) == 2
    await registry.take_lease(intent(), request(intent(), "other"))


async def test_the_lease_stays_as_long_as_something_is_in_doubt(registry, store):
    record, lease = await created(registry, intent())
    doubt = lambda r: transitions.doubted(r, 1, None, deadline_ms=None, now_ms=0)  # noqa: E731
    await registry.advance(record, doubt, lease=lease, release_when=is_settled)
    assert store.commits[-1].release is None
    with pytest.raises(LeaseHeld):
        await registry.take_lease(intent(), request(intent(), "other"))


async def test_the_lease_goes_back_also_when_nothing_was_left_to_write(registry):
    """Evidence came first, by another way."""
    record, lease = await created(registry, intent())
    live = await registry.advance(record, seen(report(intent())))
    assert await registry.advance(live, lambda r: r, lease=lease, release_when=is_settled) is live
    await registry.take_lease(intent(), request(intent(), "other"))


async def test_giving_back_a_lease_that_passed_on_takes_nothing_away(registry, clock):
    _, stale = await created(registry, intent())
    clock.advance(ms=10_001)
    fresh = await registry.take_lease(intent(), request(intent(), "other"))
    await registry.release_lease(stale)
    with pytest.raises(LeaseHeld):
        await registry.take_lease(intent(), request(intent()))
    await registry.release_lease(fresh)
    await registry.take_lease(intent(), request(intent()))


# --- Evidence -----------------------------------------------------------------------------------------------


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("by", ["client id", "venue id", "both"])
async def test_g11_evidence_is_taken_in_by_either_id(registry, by):
    record, lease = await created(registry, intent())
    await registry.advance(record, seen(report(intent())), lease=lease)
    said = report(intent(), filled=1)
    if by == "client id":
        said = attrs.evolve(said, venue_order_id=None)
    elif by == "venue id":
        said = attrs.evolve(said, client_order_id=None)
    result = await registry.observe(said)
    assert result.filled_quantity == 1
    assert await registry.observe(said) == result


@pytest.mark.guarantee(11)
async def test_g11_evidence_revives_what_had_ended(registry, store):
    record, _ = await created(registry, intent())
    rejected = await registry.advance(record, lambda r: transitions.refused(r, 1, ERROR, now_ms=0))
    assert rejected.state is IntentState.REJECTED
    assert await registry.open_records() == []
    revived = await registry.observe(report(intent(), filled=1))
    assert (revived.state, worst_case(revived)) == (IntentState.LIVE, 2)
    assert await registry.open_records() == [revived]
    assert EventType.INTENT_REVIVED in await told(store)


@pytest.mark.parametrize(
    "foreign",
    [
        {"client_order_id": "c-x", "venue_order_id": "v-x"},
        {"client_order_id": None, "venue_order_id": "v-x"},
        {"client_order_id": None, "venue_order_id": None},
        {"symbol": "ETH/USDT"},
    ],
)
async def test_what_is_not_ours_is_not_taken_in(registry, store, foreign):
    """FI-11: the same symbol, side and amount are no evidence; and an id belongs to its symbol."""
    record, lease = await created(registry, intent())
    await registry.advance(record, seen(report(intent())), lease=lease)
    assert await registry.observe(attrs.evolve(report(intent(), filled=1), **foreign)) is None
    assert await registry.observe(report(intent(), filled=1), account="other") is None
    assert len(store.commits) == 2


# --- Events -------------------------------------------------------------------------------------------------


async def test_events_are_durable_before_listeners_hear_of_them_and_in_the_same_order(store, clock):
    heard = []
    registry = IntentRegistry(store, clock=clock, listeners=[lambda e: heard.append((e, len(store.commits)))])
    record, lease = await created(registry, intent())
    await registry.advance(record, seen(report(intent(), OrderStatus.CLOSED, 2)), lease=lease)
    assert [e for e, _ in heard] == [s.event for s in await store.read_events(0)]
    assert [e.type for e, _ in heard] == [
        EventType.INTENT_RECORDED,
        EventType.ATTEMPT_SENDING,
        EventType.ORDER_ACKNOWLEDGED,
        EventType.ORDER_FILL,
        EventType.INTENT_FILLED,
    ]
    assert [n for _, n in heard] == [1, 1, 2, 2, 2]


async def test_nobody_hears_of_what_was_not_written(store, clock):
    heard = []
    registry = IntentRegistry(store, clock=clock, listeners=[heard.append])
    store.is_down = True
    with pytest.raises(StoreUnavailable):
        await created(registry, intent())
    assert heard == []


async def test_a_listener_that_raises_disturbs_neither_the_flow_nor_the_others(store, clock, caplog):
    heard = []

    def broken(event):
        raise RuntimeError("listener")

    registry = IntentRegistry(store, clock=clock, listeners=[broken, heard.append])
    with caplog.at_level(logging.ERROR, logger="execsafe"):
        record, _ = await created(registry, intent())
        registry.note(EventType.CALL_DEDUPLICATED, intent())
    assert record.version == 1
    assert len(heard) == 3
    assert len(caplog.records) == 3


async def test_a_note_is_told_but_not_stored(store, clock):
    heard = []
    registry = IntentRegistry(store, clock=clock, listeners=[heard.append])
    registry.note(EventType.CALL_DEDUPLICATED, intent())
    assert [e.type for e in heard] == [EventType.CALL_DEDUPLICATED]
    assert heard[0].subject == intent().identity
    assert await told(store) == []


# --- Failing and slow stores --------------------------------------------------------------------------------


@pytest.mark.guarantee(12)
async def test_g12_a_write_that_takes_too_long_is_reported_as_unknown(store, clock):
    registry = IntentRegistry(store, clock=clock, store_timeout_s=3.0)
    store.hook = lambda _batch: anyio.sleep_forever()
    began = anyio.current_time()
    with pytest.raises(StoreUnavailable, match="3"):
        await created(registry, intent())
    assert anyio.current_time() - began == pytest.approx(3.0)


@pytest.mark.guarantee(13)
async def test_g13_a_write_that_was_begun_is_finished_whoever_cancels_the_caller(registry, store):
    """Half-known writes are the store's worst case: the caller's cancellation does not make one."""
    store.hook = lambda _batch: anyio.sleep(1)
    with anyio.move_on_after(0.5):
        await created(registry, intent())
    assert (await registry.find("k")).version == 1


# --- Bounded ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(14)
async def test_g14_only_what_ended_longer_ago_than_the_retention_is_forgotten(registry, clock):
    """Open and doubtful records stay, however old; ended ones exactly as long as promised."""
    for key in ("live", "doubtful", "unresolved", "filled"):
        record, lease = await created(registry, intent(key))
        if key in {"live", "filled"}:
            filled = 2 if key == "filled" else 0
            await registry.advance(record, seen(report(intent(key), filled=filled)), lease=lease)
        else:
            record = await registry.advance(
                record, lambda r: transitions.doubted(r, 1, None, deadline_ms=None, now_ms=0)
            )
            if key == "unresolved":
                await registry.advance(record, lambda r: transitions.left_unresolved(r, 1, now_ms=0))
    ended_ms = (await registry.find("filled")).ended_at_ms
    clock.set(ended_ms + 7 * DAY_S * 1_000)
    assert await registry.purge() == 0
    clock.set(ended_ms + 7 * DAY_S * 1_000 + 1)
    assert await registry.purge() == 1
    assert await registry.find("filled") is None
    assert {r.intent.key for r in await registry.open_records()} == {"live", "doubtful", "unresolved"}


async def test_a_retention_longer_than_the_epoch_keeps_everything(store):
    registry = IntentRegistry(store, clock=ManualClock(1_000), retention_s=10_000)
    assert await registry.purge() == 0


async def test_open_records_are_listed_per_account_in_a_fixed_order(registry):
    for key, account in (("b", "x"), ("a", "y"), ("c", "x")):
        of = intent(key, account=account)
        await registry.create(sending(of, registry.clock), acquire=request(of))
    assert [r.intent.key for r in await registry.open_records("x")] == ["b", "c"]
    assert [r.intent.key for r in await registry.open_records()] == ["b", "c", "a"]
    assert await registry.open_records("z") == []


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["retention_s", "store_timeout_s"])
def test_durations_without_meaning_are_refused(name, value):
    with pytest.raises(InvalidInput):
        IntentRegistry(ScriptedStore(), **{name: value})


async def test_a_foreign_record_in_the_collection_is_not_taken_for_an_intent(registry, store):
    from execsafe.errors import StoreCorrupt
    from execsafe.ports import Batch, Put

    put = Put(collection=COLLECTION, key=intent().identity, value=intent(), version=0)
    await store.commit(Batch(now_ms=0, puts=(put,)))
    with pytest.raises(StoreCorrupt):
        await registry.find("k")


async def test_g4_an_order_id_that_the_venue_gives_out_again_does_not_keep_the_outcome_from_being_written():
    """A reset test network counts its order ids from 1 again; the journal of before is still there."""
    async with MemoryStore() as store:
        registry = IntentRegistry(store)
        for key in ("before", "after"):
            intent = Intent(key=key, symbol="BTC/USDT", side="buy", quantity=1, limit_price=100)
            record = transitions.new_record(intent, quantity=intent.quantity, limit_price=intent.limit_price, now_ms=1)
            sending = transitions.begin(record, client_order_id=f"c-{key}", deadline_ms=None, now_ms=1)
            request = LeaseRequest(name=lease_name(intent), holder="h", ttl_ms=1_000)
            stored, _ = await registry.create(sending, acquire=request)
            told = OrderReport(
                symbol="BTC/USDT", status=OrderStatus.OPEN, client_order_id=f"c-{key}", venue_order_id="1"
            )
            await registry.advance(stored, lambda r, told=told: transitions.observed(r, told, now_ms=2))

        written = await registry.find("after")
        assert written is not None
        assert written.state is IntentState.LIVE


@pytest.mark.guarantee(5, 11)
async def test_g11_two_venues_that_give_out_the_same_order_id_each_keep_their_own(clock):
    """Order ids are unique at one venue only; one store may serve several."""
    store = MemoryStore()
    await store.open()
    registry = IntentRegistry(store, clock=clock)
    for venue in ("a", "b"):
        of = intent(f"at-{venue}")
        record = attrs.evolve(sending(of, clock), venue=venue)
        stored, lease = await registry.create(record, acquire=request(of))
        await registry.advance(stored, seen(report(of, venue_order_id="1")), lease=lease)
    for venue in ("a", "b"):
        found = await registry.find_order("default", "BTC/USDT", "1", venue=venue)
        assert found.intent.key == f"at-{venue}"
        told = report(intent("?"), filled=1, client_order_id=None, venue_order_id="1")
        assert (await registry.observe(told, venue=venue)).filled_quantity == 1
    assert await registry.find_order("default", "BTC/USDT", "1", venue="c") is None
    assert [r.filled_quantity for r in await registry.open_records()] == [1, 1]


# --- By hand ------------------------------------------------------------------------------------------------


async def unresolved(registry, clock, key="k"):
    record, lease = await created(registry, intent(key))
    now_ms = clock.now_ms()
    doubt = await registry.advance(
        record, lambda r: transitions.doubted(r, 1, None, deadline_ms=None, now_ms=now_ms), lease=lease
    )
    return await registry.advance(doubt, lambda r: transitions.left_unresolved(r, 1, now_ms=now_ms), lease=lease)


@pytest.mark.guarantee(4)
async def test_an_unresolved_intent_ends_by_the_word_of_a_person_and_is_never_sent_again(registry, clock):
    await unresolved(registry, clock)
    ended = await registry.declare_absent("k", note="looked at the venue")
    assert (ended.state, ended.given_up) == (IntentState.FAILED_FINAL, True)
    assert (ended.last.error.kind, ended.last.error.message) == ("DeclaredAbsent", "looked at the venue")
    assert await registry.open_records() == []
    with pytest.raises(InvalidInput, match="not unresolved"):
        await registry.declare_absent("k", note="again")


@pytest.mark.guarantee(11)
async def test_g11_an_order_that_turns_up_after_it_was_said_not_to_be_there_counts_again(registry, clock):
    await unresolved(registry, clock)
    await registry.declare_absent("k", note="looked at the venue")
    again = await registry.observe(report(intent(), filled=1))
    assert (again.state, again.filled_quantity) == (IntentState.LIVE, 1)


async def test_what_is_not_unresolved_is_not_ended_by_a_word(registry, clock):
    """An order that is live, or still being looked for, is not there for a person to talk away."""
    record, lease = await created(registry, intent())
    for key in ("k", "other"):
        with pytest.raises(InvalidInput):
            await registry.declare_absent(key, note="looked")
    await registry.advance(record, seen(report(intent())), lease=lease)
    with pytest.raises(InvalidInput, match="is live"):
        await registry.declare_absent("k", note="looked")


@pytest.mark.parametrize("note", ["", "a\nb", "x" * 501, None])
async def test_a_word_without_a_name_to_it_is_refused(note, registry, clock):
    await unresolved(registry, clock)
    with pytest.raises(InvalidInput):
        await registry.declare_absent("k", note=note)
