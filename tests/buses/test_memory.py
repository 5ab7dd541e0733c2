"""The reference bus: nothing is lost before it is acknowledged, and nothing grows without bound."""

from __future__ import annotations

from decimal import Decimal

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.buses import BusDepth, dead_letter_topic, decode_fields
from execsafe.buses.memory import MemoryBus
from execsafe.buses.publishing import ConfirmedOrder, EventRelay, LevelsFacts, LevelsPublisher, preview_id
from execsafe.core import transitions
from execsafe.core.payloads import read_envelope
from execsafe.errors import CapacityExceeded, InvalidInput
from execsafe.model.event import Event, EventType
from execsafe.model.intent import Intent
from execsafe.model.order import OrderReport, OrderStatus
from execsafe.model.signal import IlfMetadata, PreviewId
from execsafe.ports import Batch
from execsafe.stores.memory import MemoryStore
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import run_simulated, virtual_backends


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus():
    return MemoryBus(clock=VirtualClock(), redeliver_after_s=60)


# --- Delivery -----------------------------------------------------------------------------------------------


@pytest.mark.row("S2-01")
async def test_every_group_gets_every_message_and_one_consumer_of_it_gets_each(bus):
    await bus.join_group("t", "a")
    await bus.join_group("t", "b")
    for number in range(4):
        await bus.publish("t", {"n": number})
    first = await bus.read("t", "a", "1", limit=3)
    rest = await bus.read("t", "a", "2", limit=3)
    assert [m.fields["n"] for m in [*first, *rest]] == ["0", "1", "2", "3"]
    assert len(await bus.read("t", "b", "1", limit=9)) == 4


async def test_what_is_not_acknowledged_is_delivered_again_to_whoever_reads(bus):
    sent = await bus.publish("t", {"n": 1})
    [one] = await bus.read("t", "g", "dies")
    assert await bus.read("t", "g", "other", wait_s=59) == []
    [again] = await bus.read("t", "g", "other", wait_s=2)
    assert (again.id, again.deliveries, one.deliveries) == (sent, 2, 1)
    assert await bus.ack("t", "g", sent)
    assert not await bus.ack("t", "g", sent)
    assert await bus.read("t", "g", "other", wait_s=1_000) == []


async def test_a_reader_is_woken_by_the_message(bus):
    got = []

    async def read() -> None:
        got.extend(await bus.read("t", "g", "1", wait_s=100))

    begun = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.sleep(3)
        await bus.publish("t", {"n": 1})
    assert len(got) == 1
    assert anyio.current_time() - begun < 4


async def test_a_dead_letter_says_why_and_is_pending_no_more(bus):
    await bus.publish("t", {"symbol": None})
    [message] = await bus.read("t", "g", "1")
    await bus.dead_letter("g", message, "malformed")
    [letter] = await bus.read(dead_letter_topic("t"), "ops", "1")
    assert decode_fields(letter.fields) == {
        "symbol": None,
        "dead_letter_reason": "malformed",
        "dead_letter_group": "g",
        "dead_letter_of": message.id,
    }
    assert await bus.depth("t", "g") == BusDepth(waiting=0, pending=0, kept=0)


async def test_unknown_groups_topics_and_ids_are_nothing_to_acknowledge(bus):
    await bus.publish("t", {})
    assert not await bus.ack("nowhere", "g", "1-1")
    assert not await bus.ack("t", "g", "1-1")
    await bus.join_group("t", "g")
    for wrong in ("1-1", "x", "", "1-", "1-" + "9" * 50):
        assert not await bus.ack("t", "g", wrong)
    assert await bus.depth("nowhere", "g") == BusDepth(waiting=0, pending=0, kept=0)


# --- Bounds -------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(14)
async def test_g14_a_full_topic_refuses_what_it_would_have_to_forget_for():
    bus = MemoryBus(clock=VirtualClock(), messages_max=3)
    await bus.join_group("t", "g")
    for number in range(3):
        await bus.publish("t", {"n": number})
    with pytest.raises(CapacityExceeded):
        await bus.publish("t", {"n": 3})
    [message] = await bus.read("t", "g", "1")
    with pytest.raises(CapacityExceeded):  # delivered is not done
        await bus.publish("t", {"n": 3})
    await bus.ack("t", "g", message.id)
    await bus.publish("t", {"n": 3})


@pytest.mark.guarantee(14)
async def test_g14_a_topic_that_nobody_reads_keeps_its_latest_messages():
    bus = MemoryBus(clock=VirtualClock(), messages_max=3, topics_max=1)
    for number in range(9):
        await bus.publish("t", {"n": number})
    assert [m.fields["n"] for m in await bus.read("t", "late", "1", limit=9)] == ["6", "7", "8"]
    with pytest.raises(CapacityExceeded):
        await bus.publish("other", {})


async def test_names_and_numbers_that_cannot_work_are_refused(bus):
    for wrong in ({"messages_max": 0}, {"redeliver_after_s": 0}, {"topics_max": True}):
        with pytest.raises(InvalidInput):
            MemoryBus(**wrong)
    with pytest.raises(InvalidInput):
        await bus.publish("", {})
    with pytest.raises(InvalidInput):
        await bus.read("t", "g\n", "1")
    with pytest.raises(InvalidInput):
        await bus.read("t", "g", "1", limit=0)


_STEPS = st.lists(st.sampled_from(["publish", "read", "read", "ack", "ack_late", "wait"]), max_size=30)


@settings(max_examples=1_000, deadline=None)
@given(_STEPS)
def test_nothing_is_lost_and_nothing_acknowledged_comes_again(steps):
    """Against a list of what was published and a set of what was acknowledged."""

    async def main() -> None:
        clock = VirtualClock()
        bus = MemoryBus(clock=clock, redeliver_after_s=60)
        await bus.join_group("t", "g")
        published, acked, held = [], set(), []
        for step in steps:
            if step == "publish":
                published.append(await bus.publish("t", {"n": len(published)}))
            elif step == "read":
                for message in await bus.read("t", "g", "1", limit=2, wait_s=0):
                    assert message.id not in acked
                    held.append(message.id)
            elif step == "wait":
                clock.skip(61_000)
            elif held:
                message_id = held.pop(0 if step == "ack_late" else -1)
                acked.add(message_id) if await bus.ack("t", "g", message_id) else None
        clock.skip(61_000)
        rest = {m.id for m in await bus.read("t", "g", "1", limit=99, wait_s=0)}
        assert rest == set(published) - acked
        assert (await bus.depth("t", "g")).kept == len(rest)

    run_simulated(main)


# --- Levels -------------------------------------------------------------------------------------------------

FACTS = LevelsFacts(
    levels={"tp1": "0.00847248", "sl": "0.01041431", "harvest_scheme": ["0.4", "0.4", "0.2"]},
    unit="fraction",
    trace_id="t-1",
    leverage=Decimal(20),
    volatility_factor=Decimal("1.5"),
    ilf=IlfMetadata(regime="trend", funding_rate="0.0001"),
)


def record_of(filled: int, status: OrderStatus):
    one = Intent(key="k", symbol="BTC/USDT", side="buy", quantity=2, limit_price=100)
    record = transitions.new_record(one, quantity=one.quantity, limit_price=one.limit_price, now_ms=1)
    record = transitions.begin(record, client_order_id="cid", deadline_ms=None, now_ms=1)
    report = OrderReport(
        symbol="BTC/USDT",
        status=status,
        client_order_id="cid",
        venue_order_id="77",
        quantity=Decimal(2),
        filled_quantity=Decimal(filled),
    )
    return transitions.observed(record, report, now_ms=2)


@pytest.mark.row("S2-20", "S2-24")
async def test_levels_of_a_position_go_out_in_an_envelope_with_their_unit(bus):
    events = []
    publisher = LevelsPublisher(bus, listeners=[events.append], clock=VirtualClock())
    await publisher.publish(ConfirmedOrder.of(record_of(1, OrderStatus.OPEN)), FACTS)
    [message] = await bus.read(publisher.topic, "g", "1")
    envelope = read_envelope(message.fields)
    assert (envelope.event_type, envelope.unit, envelope.schema_version) == ("adaptive_levels", "fraction", 1)
    assert (envelope.trace_id, envelope.source) == ("t-1", "execsafe")
    assert envelope.payload.thaw() == {
        "symbol": "BTC/USDT",
        "order_id": "77",
        "leverage": "20",
        "volatility_factor": "1.5",
        "adaptive_levels": {"tp1": "0.00847248", "sl": "0.01041431", "harvest_scheme": ["0.4", "0.4", "0.2"]},
        "ilf_metadata": {"atr_value": None, "exchange_divergence": None, "funding_rate": "0.0001", "regime": "trend"},
    }
    assert [event.type for event in events] == [EventType.LEVELS_PUBLISHED]


@pytest.mark.row("S2-23", "S2-24", "S2-26", "D-13")
@pytest.mark.parametrize("status", [OrderStatus.OPEN, OrderStatus.CANCELED, OrderStatus.REJECTED, OrderStatus.EXPIRED])
async def test_an_order_of_which_nothing_filled_confirms_no_levels(status):
    """Whatever was answered to the submit: there is no position to which they belong."""
    with pytest.raises(InvalidInput, match="preview"):
        ConfirmedOrder.of(record_of(0, status))
    assert ConfirmedOrder.of(record_of(1, status)).filled_quantity == 1


@pytest.mark.row("S2-23", "S2-24", "S2-25", "D-13")
async def test_previews_go_to_a_topic_of_their_own_under_unique_ids(bus):
    publisher = LevelsPublisher(bus, clock=VirtualClock())
    one = await publisher.preview("BTC/USDT", FACTS)
    other = await publisher.preview("BTC/USDT", attrs.evolve(FACTS, trace_id="t-2"))
    assert isinstance(one, PreviewId)
    assert len({one, other, preview_id("ETH/USDT", FACTS)}) == 3
    assert one == preview_id("BTC/USDT", FACTS)
    assert await bus.read(publisher.topic, "g", "1", wait_s=0) == []
    messages = await bus.read(publisher.preview_topic, "g", "1", limit=9)
    assert [read_envelope(m.fields).payload.thaw()["order_id"] for m in messages] == [one.text, other.text]


# --- The outbox ---------------------------------------------------------------------------------------------


async def test_the_outbox_reaches_the_bus_in_order_and_survives_a_bus_that_fails(bus):
    store = MemoryStore()
    await store.open()
    events = tuple(
        Event(type=EventType.ORDER_FILL, at_ms=1_700_000_000_000, subject=f"s{n}", quantity=Decimal(n))
        for n in range(250)
    )
    await store.commit(Batch(now_ms=1, events=events))
    publish, left = bus.publish, iter(range(120))

    async def fails_later(topic, fields):
        if next(left, None) is None:
            raise ConnectionError("down")
        return await publish(topic, fields)

    bus.publish = fails_later
    with pytest.raises(ConnectionError):
        await EventRelay(store, bus).relay()
    bus.publish = publish
    assert await EventRelay(store, bus).relay() == 130
    assert await EventRelay(store, bus).relay() == 0
    messages = await bus.read("events", "g", "1", limit=999)
    payloads = [read_envelope(m.fields).payload.thaw() for m in messages]
    assert [p["subject"] for p in payloads] == [f"s{n}" for n in range(250)]
    assert payloads[7]["quantity"] == "7"
