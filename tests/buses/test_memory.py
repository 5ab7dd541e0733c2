"""The reference bus: nothing is lost before it is acknowledged, and nothing grows without bound."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest

from execsafe.buses import BusDepth
from execsafe.buses.memory import MemoryBus
from execsafe.buses.publishing import (
    LEVELS_TOPIC,
    ConfirmedOrder,
    EventRelay,
    LevelsFacts,
    LevelsPublisher,
    LevelsRelay,
    levels_event,
    preview_id,
)
from execsafe.core import transitions
from execsafe.core.payloads import read_envelope
from execsafe.errors import CapacityExceeded, InvalidInput
from execsafe.model.event import Event, EventType
from execsafe.model.intent import Intent
from execsafe.model.order import OrderReport, OrderStatus
from execsafe.model.signal import IlfMetadata, PreviewId
from execsafe.ports import Batch
from execsafe.stores.memory import MemoryStore
from execsafe.testing.bus_contract import BusContract
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


pytestmark = pytest.mark.anyio


@pytest.fixture
async def bus():
    return MemoryBus(clock=VirtualClock(), redeliver_after_s=60)


class TestContract(BusContract):
    def make_bus(self, directory, *, messages_max=10_000, redeliver_after_s=60.0):
        self.clock = VirtualClock()
        return MemoryBus(clock=self.clock, messages_max=messages_max, redeliver_after_s=redeliver_after_s)

    async def let_pass(self, bus, topic, group, seconds):
        self.clock.skip(round(seconds * 1_000))


async def test_a_redelivery_wakes_whoever_waits(bus):
    sent = await bus.publish("t", {"n": 1})
    await bus.read("t", "g", "dies")
    assert await bus.read("t", "g", "other", wait_s=59) == []
    [again] = await bus.read("t", "g", "other", wait_s=2)
    assert (again.id, again.deliveries) == (sent, 2)


async def test_what_every_group_is_done_with_is_forgotten_at_once(bus):
    sent = await bus.publish("t", {"n": 1})
    await bus.read("t", "g", "1")
    await bus.ack("t", "g", sent)
    assert await bus.depth("t", "g") == BusDepth(waiting=0, pending=0, kept=0)


@pytest.mark.guarantee(14)
async def test_g14_there_are_only_so_many_topics():
    bus = MemoryBus(clock=VirtualClock(), topics_max=1)
    await bus.publish("t", {"n": 1})
    with pytest.raises(CapacityExceeded):
        await bus.publish("other", {"n": 1})


async def test_numbers_that_cannot_work_are_refused():
    for wrong in ({"messages_max": 0}, {"redeliver_after_s": 0}, {"topics_max": True}):
        with pytest.raises(InvalidInput):
            MemoryBus(**wrong)


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


@pytest.mark.row("S2-20", "S2-21")
async def test_levels_in_the_outbox_go_out_once_among_whatever_else_happened(bus):
    """As the publisher publishes them; a signal without a trace leaves the position's id."""
    store = MemoryStore()
    await store.open()
    order = ConfirmedOrder.of(record_of(1, OrderStatus.OPEN))
    told = [
        levels_event(order, facts, subject="position-1", at_ms=1_700_000_000_000)
        for facts in (FACTS, attrs.evolve(FACTS, trace_id=""))
    ]
    other = Event(type=EventType.ORDER_FILL, at_ms=1, subject="s")
    await store.commit(Batch(now_ms=1, events=(*[other] * 150, told[0], *[other] * 150, told[1])))
    assert await LevelsRelay(store, bus).relay() == 2
    assert await LevelsRelay(store, bus).relay() == 0
    await LevelsPublisher(bus, clock=VirtualClock()).publish(order, FACTS)
    first, second, published = [read_envelope(m.fields) for m in await bus.read(LEVELS_TOPIC, "g", "1", limit=9)]
    assert attrs.evolve(first, at_ms=0) == attrs.evolve(published, at_ms=0)
    assert second.trace_id == "position-1"
    assert first.at_ms == 1_700_000_000_000


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
