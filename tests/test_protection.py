"""ProtectionManager: what is held is covered by a verified stop, being closed, or raises an alarm."""

from __future__ import annotations

import contextlib
from decimal import Decimal

import anyio
import attrs
import pytest

from execsafe.core.trailing import TrailingPhase, TrailingPolicy
from execsafe.errors import StoreUnavailable
from execsafe.model.event import EventType
from execsafe.model.intent import Intent, IntentState
from execsafe.model.order import Side
from execsafe.model.outcome import Operation
from execsafe.model.position import PositionKey, PositionSide
from execsafe.model.units import Percent
from execsafe.model.venue import Expiry
from execsafe.ports import NotReleased, Released
from execsafe.protection import ProtectionPolicy, ProtectionState, StopRule
from execsafe.testing.adapter import SIM_PROFILE
from execsafe.testing.faults import Fault, Reading, Strike
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import NewOrder
from protection_rig import PERPETUAL, SPOT, World

pytestmark = pytest.mark.anyio
D = Decimal
E = EventType
S = ProtectionState
DEADLINE_MS = 10_000


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


@pytest.fixture(params=["order", "attached"])
def kind(request):
    return request.param


async def protected(world, process, quantity="0.1", **more):
    position = await process.buy(quantity, **more)
    [record] = await process.manager.check()
    assert record.is_safe
    return position, record


# --- Coverage -----------------------------------------------------------------------------------------------


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-11", "S3-14", "S1-14")
@pytest.mark.parametrize(("side", "stop"), [("buy", "57600.0"), ("sell", "62400.0")])
async def test_g10_a_position_that_nobody_planned_a_stop_for_gets_one_for_all_of_it(side, stop):
    world = World()
    process = world.process()
    position, record = await protected(world, process, side=side)
    assert world.stops() == [(D("0.1"), D(stop))]
    assert (record.state, record.stop_price, record.verified_quantity) == (S.STOP, D(stop), D("0.1"))
    assert world.exposed_ms() < 300
    assert world.kinds(E.STOP_PLACED, E.POSITION_UNPROTECTED) == [E.STOP_PLACED]
    assert process.manager.protection(position.position_id) == record


@pytest.mark.row("S3-10", "S3-26")
async def test_a_stop_that_the_venue_keeps_on_the_position_is_attached_and_read_back():
    world = World(attached=True)
    process = world.process()
    _, record = await protected(world, process)
    [shown] = await process.adapter.fetch_positions()
    assert shown.stop_price == record.verified_price == D("57600.0")
    assert world.stops() == []
    assert world.exposed_ms() < 300


@pytest.mark.row("S3-25", "S3-26")
async def test_not_modified_counts_only_when_the_same_stop_is_read_back():
    """The answer to the first request is lost, the second says "no change": what is there is read, not believed."""
    world = World(attached=True)
    process = world.process()
    process.plan.strike_next(Operation.SET_STOP, Fault.DROP_REPLY)
    _, record = await protected(world, process)
    assert record.verified_price == D("57600.0")
    again = await process.manager.check()
    assert again == (record,)


@pytest.mark.row("S3-18", "S3-12", "X-03")
async def test_a_hundred_passes_place_one_stop(kind):
    world = World(attached=kind == "attached")
    process = world.process()
    await protected(world, process)
    sent = len(world.venue.ledger)
    for _ in range(100):
        await process.manager.check()
    assert len(world.venue.ledger) == sent
    assert world.kinds().count(E.STOP_PLACED) == 1


@pytest.mark.row("S1-15", "S3-12")
async def test_a_position_that_grows_gets_a_stop_for_all_of_it_and_the_old_one_goes_afterwards():
    world = World()
    process = world.process()
    await protected(world, process)
    await process.buy("0.15", key="more")
    [record] = await process.manager.check()
    assert world.stops() == [(D("0.25"), record.stop_price)]
    assert world.kinds(E.STOP_PLACED, E.STOP_MOVED, E.STOP_MISSING) == [E.STOP_PLACED, E.STOP_MOVED]


@pytest.mark.row("S1-15")
@pytest.mark.parametrize("part", ["0.05", "0.1"])
async def test_a_stop_larger_than_what_is_left_can_only_reduce(part):
    """No order is moved for a partial exit: a reduce-only stop never opens the other side."""
    world = World()
    process = world.process()
    await protected(world, process)
    await process.gateway.submit(Intent(key="x", symbol=PERPETUAL, side="sell", quantity=part, reduce_only=True))
    await process.manager.check()
    world.price(50_000)
    await process.manager.check()
    assert world.held() == 0
    assert world.venue.ledger.flips(PERPETUAL) == []
    assert world.stops() == []


async def test_a_stop_that_fires_closes_the_record(kind):
    world = World(attached=kind == "attached")
    process = world.process()
    position, _ = await protected(world, process)
    world.price(57_000)
    await anyio.sleep(1)
    assert await process.manager.check() == ()
    assert process.book.position("default", PERPETUAL) is None
    assert process.book.closed_positions("default", PERPETUAL)[0].position_id == position.position_id
    assert world.stops() == []
    await process.buy(key="next")
    [record] = await process.manager.check()
    assert record.position_id != position.position_id


@pytest.mark.row("S3-12")
async def test_a_stop_that_is_not_ours_is_never_taken_for_one():
    """The same symbol, quantity and price: it may belong to an older position, or to a person."""
    world = World()
    process = world.process()
    await process.buy()
    await process.gateway.submit(
        Intent(key="old", symbol=PERPETUAL, side="sell", quantity="0.1", trigger_price="57600", reduce_only=True)
    )
    await process.manager.check()
    assert len(world.stops()) == 2


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-12")
async def test_g10_our_own_stop_of_an_older_position_is_not_taken_for_the_new_ones():
    """Same symbol, side, quantity and price, placed by ourselves a moment ago: only its position is another one."""
    world = World()
    process = world.process()
    _, before = await protected(world, process)
    await process.gateway.submit(Intent(key="x", symbol=PERPETUAL, side="sell", quantity="0.1", reduce_only=True))
    await process.buy(key="next")
    assert world.stops() == [(D("0.1"), before.stop_price)], "nobody has looked yet, it rests"
    process.plan.strike_next(Operation.CANCEL, Fault.DROP_REQUEST)
    records = {record.position_id: record for record in await process.manager.check()}
    [record] = [known for known in records.values() if known.position_id != before.position_id]
    assert record.is_safe
    assert record.intent_key != before.intent_key
    assert len([e for e in world.venue.ledger.accepted() if e.is_stop]) == 2
    for _ in range(10):
        await anyio.sleep(1)
        await process.manager.check()
    assert world.stops() == [(D("0.1"), record.stop_price)]
    assert process.manager.protection(record.position_id).is_safe


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-12")
async def test_g10_a_stop_on_the_position_that_is_near_the_meant_one_is_not_taken_for_it():
    """Somebody attached one by hand, half a percent further away: what was meant is set instead. (One that is closer
    would be kept: it covers more, and what is attached to a position is never another one's.)"""
    world = World(attached=True)
    process = world.process()
    await process.buy()
    world.venue.set_attached_stop(PERPETUAL, D("57300"), world.clock.now_ms())
    await anyio.sleep(1)
    [record] = await process.manager.check()
    [shown] = await process.adapter.fetch_positions()
    assert shown.stop_price == record.verified_price == D("57600.0")


async def test_without_a_default_distance_a_bare_position_raises_the_alarm_and_is_left():
    world = World()
    process = world.process(policy=ProtectionPolicy(default_distance=None))
    await process.buy()
    await anyio.sleep(1)
    [record] = await process.manager.check()
    assert (record.alarmed, record.is_covered) == (True, False)
    assert world.kinds(E.POSITION_UNPROTECTED) == [E.POSITION_UNPROTECTED]
    assert (
        await process.manager.protect(process.book.position("default", PERPETUAL), StopRule(stop_price=59_000))
    ).is_safe


# --- Tries, deadline, closing -------------------------------------------------------------------------------

LOSES = {
    "request lost": Fault.DROP_REQUEST,
    "reply lost": Fault.DROP_REPLY,
    "hangs": Fault.HANG,
    "5xx": Fault.SERVER_ERROR_NOT_ACCEPTED,
    "5xx although done": Fault.SERVER_ERROR_ACCEPTED,
    "late": Fault.DELAY_REQUEST,
    "broken answer": Fault.TRUNCATED_BODY,
    "rate limit": Fault.RATE_LIMITED,
}


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-07")
@pytest.mark.parametrize("name", LOSES)
async def test_g10_one_failed_try_is_followed_by_another_within_the_deadline(name, kind):
    world = World(attached=kind == "attached")
    process = world.process()
    await process.buy()
    operation = Operation.SET_STOP if world.attached else Operation.CREATE
    process.plan.strike_next(operation, LOSES[name])
    await process.manager.check()
    [record] = await process.manager.check()
    assert record.is_safe
    assert world.exposed_ms() < DEADLINE_MS
    await anyio.sleep(20)
    await process.gateway.recover()
    await process.manager.check()
    assert world.stops() == ([] if world.attached else [(D("0.1"), D("57600.0"))])


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-07", "S3-08", "S1-14", "D-07")
@pytest.mark.parametrize("fault", [Fault.REJECT_FUNDS, Fault.REJECT_FILTER])
async def test_g10_what_cannot_be_covered_in_three_tries_is_closed_with_what_is_held(fault):
    world = World()
    process = world.process()
    await process.buy()
    for number in range(3):
        process.plan.script([strike(Operation.CREATE, 2 + number, fault)])
    assert await process.manager.check() == ()
    assert world.held() == 0
    assert world.exposed_ms() < DEADLINE_MS
    assert world.kinds().count(E.STOP_FAILED) == 3
    [close] = [e for e in world.venue.ledger.accepted() if e.side.value == "sell"]
    assert (close.quantity, close.reduce_only) == (D("0.1"), True)


def strike(operation, ordinal, fault):
    return Strike(operation, ordinal, fault)


@pytest.mark.guarantee(10)
async def test_g10_a_stop_that_would_trigger_at_once_has_triggered(kind):
    """The price is through the stop before it is placed: out, not another try."""
    world = World(attached=kind == "attached")
    process = world.process()
    await process.buy()
    operation = Operation.SET_STOP if world.attached else Operation.CREATE
    process.plan.strike_next(operation, Fault.STOP_REJECTED)
    assert await process.manager.check() == ()
    assert world.held() == 0
    assert world.exposed_ms() < 1_000


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-07", "S1-14")
async def test_g10_the_alarm_is_raised_in_time_while_a_request_hangs():
    world = World()
    process = world.process(policy=ProtectionPolicy(alert_after_s=0.3))
    position = await process.buy()
    process.plan.strike_next(Operation.CREATE, Fault.HANG)
    await process.manager.check()
    [alarm] = [event for event in world.events if event.type is E.POSITION_UNPROTECTED]
    assert alarm.subject == position.position_id
    assert 300 <= alarm.at_ms - position.opened_at_ms < 400
    assert alarm.details.thaw()["held"] == "0.1"


async def test_a_position_that_may_not_be_closed_goes_on_trying_and_alarming():
    world = World()
    process = world.process(policy=ProtectionPolicy(close_unprotected=False))
    await process.buy()
    process.plan.script([strike(Operation.CREATE, 2 + number, Fault.REJECT_FILTER) for number in range(6)])
    for _ in range(8):
        await process.manager.check()
        await anyio.sleep(30)
    [record] = process.manager.protections()
    assert record.is_safe
    assert world.kinds().count(E.POSITION_UNPROTECTED) == 1
    assert world.kinds().count(E.STOP_FAILED) == 6


@pytest.mark.row("S3-09")
async def test_a_close_that_fails_is_tried_until_the_position_is_flat():
    world = World()
    process = world.process()
    position = await process.buy()
    process.plan.script([strike(Operation.CREATE, 2 + number, Fault.DROP_REQUEST) for number in range(2)])
    await process.manager.close(position.position_id)
    for _ in range(10):
        await process.manager.check()
        await anyio.sleep(5)
    assert world.held() == 0
    await process.manager.settle()  # the two requests that were lost
    assert await process.manager.check() == ()
    assert world.venue.ledger.flips(PERPETUAL) == []


@pytest.mark.row("S3-09", "D-05")
@pytest.mark.parametrize("fault", [Fault.DROP_REPLY, Fault.HANG, Fault.SERVER_ERROR_ACCEPTED])
async def test_a_close_whose_answer_is_lost_is_found_and_not_repeated(fault):
    world = World()
    process = world.process()
    position = await process.buy()
    await process.manager.check()
    process.plan.strike_next(Operation.CREATE, fault)
    assert await process.manager.close(position.position_id) is None
    sells = [e for e in world.venue.ledger.received() if e.side.value == "sell" and e.trigger_price is None]
    assert len(sells) == 1
    assert world.held() == 0


@pytest.mark.row("D-05", "S3-30")
async def test_a_position_that_somebody_else_closed_is_noticed_when_there_is_nothing_to_close():
    world = World()
    process = world.process()
    position = await process.buy()
    hand = NewOrder(symbol=PERPETUAL, side=Side.SELL, quantity=D("0.1"), type="market", reduce_only=True)
    world.venue.submit(hand, world.clock.now_ms())
    assert await process.manager.close(position.position_id) is None
    assert process.book.position("default", PERPETUAL) is None
    assert world.venue.ledger.flips(PERPETUAL) == []


@pytest.mark.guarantee(10, 13)
async def test_g13_a_position_that_was_bare_while_no_process_ran_gets_its_stop_before_it_is_closed():
    """The deadline is for those who can act: ten minutes later the next process begins with all its tries."""
    world = World()
    first = world.process()
    await first.buy()
    first.plan.script([strike(Operation.CREATE, 2 + number, Fault.REJECT_FILTER) for number in range(2)])
    with anyio.move_on_after(0.5):
        await first.manager.check()
    assert first.manager.protections()[0].failures > 0
    await anyio.sleep(600)
    second = world.process()
    [record] = await second.manager.recover()
    assert record.is_safe
    assert world.held() == D("0.1")


# --- What cannot be read, what is lost ----------------------------------------------------------------------


@pytest.mark.guarantee(18)
@pytest.mark.row("S3-28", "D-15", "S3-27")
async def test_g18_a_failed_reading_cancels_and_places_nothing(kind):
    world = World(attached=kind == "attached")
    process = world.process()
    await protected(world, process)
    entries = len(world.venue.ledger)
    reading = Reading.POSITIONS if world.attached else Reading.OPEN_ORDERS
    for _ in range(20):
        process.plan.strike_next(Operation.LOOK_UP, Fault.LOOKUP_ERROR, reading=reading)
        await process.manager.check()
        await anyio.sleep(5)
    assert len(world.venue.ledger) == entries
    assert process.manager.protections()[0].is_safe


@pytest.mark.guarantee(18)
@pytest.mark.row("S3-27", "S3-28")
async def test_g18_an_empty_list_of_positions_takes_no_stop_away():
    world = World(attached=True)
    process = world.process()
    await protected(world, process)
    entries = len(world.venue.ledger)
    for _ in range(5):
        process.plan.strike_next(Operation.LOOK_UP, Fault.POSITIONS_EMPTY)
        await process.manager.check()
    assert len(world.venue.ledger) == entries
    assert process.book.position("default", PERPETUAL) is not None
    assert E.STOP_MISSING not in world.kinds()
    assert process.manager.protections()[0].is_safe


@pytest.mark.guarantee(18)
@pytest.mark.row("S3-28", "D-15")
@pytest.mark.parametrize("look_fails", [False, True])
async def test_g18_a_list_that_does_not_show_stops_leads_to_no_second_one(look_fails, monkeypatch):
    """Some lists of open orders leave stop orders out. Absence counts only when every view says so."""
    world = World()
    process = world.process()
    await protected(world, process)

    async def nothing(_symbol):
        return []

    monkeypatch.setattr(process.adapter, "fetch_open_orders", nothing)
    await anyio.sleep(10)
    for number in range(20):
        if look_fails:
            strikes = [Strike(Operation.LOOK_UP, n, Fault.LOOKUP_ERROR, None, Reading.ORDER) for n in range(1, 400)]
            process.plan.script(strikes)
        await process.manager.check()
        assert process.manager.protections()[0].is_safe, number
    assert len(world.venue.ledger.received()) == 2
    assert len(world.stops()) == 1


@pytest.mark.guarantee(10)
async def test_g10_a_stop_that_vanished_is_replaced(kind):
    """Nobody canceled it and nobody was told; every view says that it is not there."""
    world = World(attached=kind == "attached")
    process = world.process()
    await process.buy()
    operation = Operation.SET_STOP if world.attached else Operation.CREATE
    process.plan.strike_next(operation, Fault.STOP_LOST, 200)
    await process.manager.check()
    await anyio.sleep(4)
    await process.manager.check()
    [record] = process.manager.protections()
    assert record.is_safe
    assert E.STOP_MISSING in world.kinds()
    assert world.held() == D("0.1")
    assert world.exposed_ms(until_ms=world.clock.now_ms()) < 5_000
    before = len(world.venue.ledger)
    for _ in range(10):
        await process.manager.check()
    assert len(world.venue.ledger) <= before + 1, "what is lost is asked for once, and not again in every pass"


async def test_a_stop_that_somebody_canceled_is_replaced_at_once():
    world = World()
    process = world.process()
    await protected(world, process)
    [order] = world.venue.open_orders(PERPETUAL)
    world.venue.cancel(world.clock.now_ms(), venue_order_id=order.venue_order_id)
    [record] = await process.manager.check()
    assert world.stops() == [(D("0.1"), record.stop_price)]
    assert world.kinds(E.STOP_PLACED, E.STOP_MISSING, E.STOP_MOVED) == [E.STOP_PLACED, E.STOP_MISSING, E.STOP_MOVED]


# --- Moving -------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-16")
async def test_g10_moving_a_stop_leaves_no_moment_without_one(kind):
    world = World(attached=kind == "attached")
    process = world.process()
    position, _ = await protected(world, process)
    placed_ms = world.clock.now_ms()
    for price in (58_000, "58500.07", 59_000):
        await process.manager.move_stop(position.position_id, price)
    record = process.manager.protection(position.position_id)
    assert record.verified_price == D(59_000)
    gaps = world.venue.ledger.protection_gaps(PERPETUAL)
    assert all(gap.to_ms <= placed_ms for gap in gaps)
    assert world.stops() == ([] if world.attached else [(D("0.1"), D(59_000))])
    assert world.kinds().count(E.STOP_PLACED) == 1
    assert world.kinds().count(E.STOP_MOVED) == 3


@pytest.mark.row("S3-14")
async def test_a_stop_never_loosens(kind):
    world = World(attached=kind == "attached")
    process = world.process()
    position, _ = await protected(world, process)
    await process.manager.move_stop(position.position_id, 59_000)
    await process.manager.move_stop(position.position_id, 58_000)
    await process.manager.protect(position, StopRule(distance=Percent(5)))
    assert process.manager.protection(position.position_id).verified_price == D(59_000)


async def test_an_attached_stop_that_a_person_set_closer_is_kept():
    world = World(attached=True)
    process = world.process()
    await protected(world, process)
    await process.adapter.set_attached_stop(PERPETUAL, PositionSide.LONG, D(59_500))
    [record] = await process.manager.check()
    assert record.stop_price == record.verified_price == D(59_500)


@pytest.mark.row("S3-32")
async def test_the_stop_is_on_the_tick_toward_the_entry():
    world = World(prices={PERPETUAL: "60000.3"})
    process = world.process()
    position = await process.buy()
    record = await process.manager.protect(position, StopRule(distance=Percent("5.917")))
    assert record.stop_price == D("56450.1")  # 60000.3 × 0.94083 = 56450.08…: up, never farther away


# --- Trailing -----------------------------------------------------------------------------------------------

TRAILING = TrailingPolicy()


@pytest.mark.row("S3-13", "S3-14", "S3-18", "S3-19")
async def test_a_trailing_stop_is_created_activated_and_moved_and_one_of_each_is_told():
    world = World()
    process = world.process(policy=ProtectionPolicy(trailing=TRAILING))
    await protected(world, process)
    for price in (60_100, 60_400, 61_300, 62_000, 61_900):
        world.price(price)
        await anyio.sleep(31)
        await process.manager.check()
    [record] = process.manager.protections()
    assert record.trailing.phase is TrailingPhase.ACTIVE
    assert record.verified_price == D("61690.0")  # 62,000 less 0.5 %
    assert world.stops() == [(D("0.1"), D("61690.0"))]
    told = world.kinds(
        E.POSITION_OPENED, E.STOP_PLACED, E.TRAILING_STOP_CREATED, E.TRAILING_STOP_ACTIVATED, E.BREAKEVEN_REACHED
    )
    assert sorted(told) == sorted(set(told)), "one position, one stop, one trailing stop"
    assert len(told) == 5
    assert E.TRAILING_STOP_MOVED in world.kinds()


@pytest.mark.row("S3-15")
async def test_a_trailing_stop_survives_a_restart_with_its_best_price():
    world = World()
    policy = ProtectionPolicy(trailing=TRAILING)
    first = world.process(policy=policy)
    await protected(world, first)
    world.price(62_000)
    await first.manager.check()
    before = first.manager.protections()
    second = world.process(policy=policy)
    world.price(61_900)
    after = await second.manager.recover()
    assert [(p.stop_price, p.trailing.best_price, p.trailing.phase) for p in after] == [
        (p.stop_price, p.trailing.best_price, p.trailing.phase) for p in before
    ]
    assert world.kinds().count(E.TRAILING_STOP_CREATED) == 1


async def test_a_price_beyond_where_the_trailing_stop_belongs_closes_the_position():
    """The move was held back by its rate limit, or the venue was slow: the place itself counts."""
    world = World()
    process = world.process(policy=ProtectionPolicy(trailing=TRAILING))
    await protected(world, process)
    await process.manager.on_price(PERPETUAL, 62_000)
    await process.manager.on_price(PERPETUAL, 62_200)  # within 30 s: not moved
    await process.manager.on_price(PERPETUAL, 61_880)  # below 62,200 less 0.5 %, above the stop that rests
    assert world.held() == 0
    assert world.stops() == []


async def test_quotes_that_cannot_be_read_move_nothing():
    world = World()
    process = world.process(policy=ProtectionPolicy(trailing=TRAILING))
    await protected(world, process)
    world.price(62_000)
    process.plan.strike_next(Operation.LOOK_UP, Fault.LOOKUP_ERROR, reading=Reading.QUOTES)
    [record] = await process.manager.check()
    assert (record.trailing.phase, record.trailing.best_price) == (TrailingPhase.WAITING, D(60_000))


# --- Spot: one order locks all ------------------------------------------------------------------------------


@pytest.mark.row("S1-13")
async def test_on_spot_a_stop_covers_what_is_left_after_the_fee():
    world = World()
    process = world.process()
    position, record = await protected(world, process, symbol=SPOT)
    assert position.quantity == D("0.0999")
    assert world.stops(SPOT) == [(D("0.0999"), record.stop_price)]


@pytest.mark.row("S1-13", "S0-37")
async def test_on_spot_a_stop_is_moved_by_way_of_its_proven_end():
    """Two resting sells cannot lock the same coins. The window is measured, and short."""
    world = World()
    process = world.process()
    position, _ = await protected(world, process, symbol=SPOT)
    record = await process.manager.move_stop(position.position_id, 59_000)
    assert world.stops(SPOT) == [(D("0.0999"), D(59_000))]
    assert 0 < record.exposed_ms < 1_000
    assert world.exposed_ms(SPOT) < 1_000


@pytest.mark.row("S1-09", "S0-37")
async def test_a_take_profit_rests_instead_of_a_stop_and_is_switched():
    world = World()
    process = world.process()
    position = await process.buy(symbol=SPOT)
    record = await process.manager.protect(position, StopRule(stop_price=58_000), take_profit_price=63_000)
    assert (record.state, record.is_safe) == (S.TAKE_PROFIT, True)
    [order] = world.venue.open_orders(SPOT)
    assert (order.limit_price, order.quantity) == (D(63_000), D("0.0999"))
    await process.manager.check()
    assert len(world.venue.open_orders(SPOT)) == 1
    record = await process.manager.switch_to_stop(position.position_id)
    assert (record.state, record.is_safe) == (S.STOP, True)
    assert world.stops(SPOT) == [(D("0.0999"), D(58_000))]
    assert [e.note for e in world.events if e.type is E.PROTECTION_SWITCHED] == [
        "switching_to_sl->sl",
        "tp->switching_to_sl",
    ][::-1]


@pytest.mark.row("S0-37")
async def test_what_the_take_profit_fills_while_it_is_switched_is_counted():
    world = World()
    process = world.process()
    position = await process.buy(symbol=SPOT)
    await process.manager.protect(position, StopRule(stop_price=58_000), take_profit_price=63_000)
    process.plan.strike_next(Operation.CANCEL, Fault.FILL_DURING_CANCEL, 400)
    await process.manager.switch_to_stop(position.position_id)
    held = process.book.position("default", SPOT).quantity
    assert D(0) < held < D("0.0999")
    assert world.stops(SPOT) == [(held, D(58_000))]


@pytest.mark.row("S0-37")
async def test_a_switch_whose_cancel_cannot_be_proven_raises_the_alarm_and_never_goes_back():
    world = World()
    process = world.process()
    position = await process.buy(symbol=SPOT)
    await process.manager.protect(position, StopRule(stop_price=58_000), take_profit_price=63_000)
    process.plan.script([strike(Operation.CANCEL, number, Fault.DROP_REQUEST) for number in range(1, 4)])
    record = await process.manager.switch_to_stop(position.position_id)
    assert record.state is S.SWITCHING_TO_STOP
    await anyio.sleep(1)
    await process.manager.check()
    assert E.POSITION_UNPROTECTED in world.kinds()
    for _ in range(12):
        await anyio.sleep(5)
        await process.manager.check()
    assert process.book.position("default", SPOT) is None or world.stops(SPOT) != []
    assert S.TAKE_PROFIT not in {p.state for p in process.manager.protections()}


@pytest.mark.row("S0-37", "S1-14")
async def test_a_take_profit_that_cannot_be_placed_becomes_a_stop():
    world = World()
    process = world.process()
    position = await process.buy(symbol=SPOT)
    process.plan.script([strike(Operation.CREATE, 2 + number, Fault.REJECT_FILTER) for number in range(3)])
    record = await process.manager.protect(position, StopRule(stop_price=58_000), take_profit_price=63_000)
    assert (record.state, record.is_safe) == (S.STOP, True)


# --- Release to exits ---------------------------------------------------------------------------------------


def key(symbol=PERPETUAL):
    return PositionKey(account="default", symbol=symbol, side=PositionSide.LONG)


@pytest.mark.row("S1-13", "D-05")
@pytest.mark.parametrize("symbol", [PERPETUAL, SPOT])
async def test_a_released_position_has_nothing_of_ours_at_the_venue(symbol):
    world = World()
    process = world.process()
    await protected(world, process, symbol=symbol)
    assert isinstance(await process.manager.release(key(symbol)), Released)
    assert world.venue.open_orders(symbol) == []
    await process.manager.check()
    assert world.venue.open_orders(symbol) == [], "it is left to its exit for a while"


async def test_an_attached_stop_is_released_by_removing_it():
    world = World(attached=True)
    process = world.process()
    await protected(world, process)
    assert isinstance(await process.manager.release(key()), Released)
    [shown] = await process.adapter.fetch_positions()
    assert shown.stop_price is None


@pytest.mark.guarantee(10)
async def test_g10_what_an_exit_leaves_is_protected_again():
    world = World()
    process = world.process()
    await protected(world, process)
    await process.manager.release(key())
    await process.gateway.submit(Intent(key="x", symbol=PERPETUAL, side="sell", quantity="0.04", reduce_only=True))
    await process.manager.resume(key())
    assert [quantity for quantity, _ in world.stops()] == [D("0.06")]
    await process.manager.release(key())
    await anyio.sleep(31)
    await process.manager.check()
    assert [quantity for quantity, _ in world.stops()] == [D("0.06")], "an exit that died keeps nothing bare"


@pytest.mark.guarantee(10)
@pytest.mark.parametrize("fills", [True, False])
async def test_g10_on_spot_no_stop_comes_back_beside_an_exit_that_may_still_sell(fills):
    """The account owns more than the position: a stop beside the exit's sale could sell the same twice."""
    world = World(balances={"USDT": 1_000_000, "BTC": 5})
    process = world.process()
    await protected(world, process, "1", symbol=SPOT)
    await process.manager.release(key(SPOT))
    held = process.book.position("default", SPOT).quantity
    process.plan.strike_next(Operation.CREATE, Fault.DROP_REPLY if fills else Fault.DROP_REQUEST)
    look_up, process.adapter.look_up = process.adapter.look_up, _fails
    with anyio.move_on_after(1):
        sale = Intent(key="x", symbol=SPOT, side="sell", quantity=held, reduce_only=True)
        await process.gateway.submit(sale)
    await anyio.sleep(31)
    for _ in range(3):
        await process.manager.check()
        await anyio.sleep(1)
    assert world.stops(SPOT) == []
    assert E.POSITION_UNPROTECTED in world.kinds()
    world.price(50_000, SPOT)  # through where the stop would rest
    process.adapter.look_up = look_up
    await process.gateway.recover()
    await process.manager.check()
    [sale] = [o for o in world.venue.ledger.accepted() if o.side is Side.SELL and not o.is_stop]
    assert sale.quantity == held
    assert world.held(SPOT) == D("0.001"), "the fee of the entry, in the account and not in the position"
    assert process.manager.protections() == ()


async def _fails(*_asked):
    raise ConnectionError("orders cannot be looked up now")


@pytest.mark.guarantee(18)
async def test_g18_what_cannot_be_seen_to_end_is_not_released_and_is_protected_again():
    world = World()
    process = world.process()
    await protected(world, process)
    process.plan.script([strike(Operation.CANCEL, number, Fault.DROP_REQUEST) for number in range(1, 20)])
    answer = await process.manager.release(key())
    assert isinstance(answer, NotReleased)
    assert "stop.1" in answer.reason
    [record] = process.manager.protections()
    assert record.state is S.UNPROTECTED
    process.plan.script([])
    await process.manager.check()
    assert process.manager.protections()[0].is_safe


async def test_a_position_that_the_stop_closed_while_it_was_released_is_known_to_be_closed():
    world = World()
    process = world.process()
    await protected(world, process)
    process.plan.strike_next(Operation.CANCEL, Fault.FILL_DURING_CANCEL, 1_000)
    await process.manager.release(key())
    assert process.book.position("default", PERPETUAL) is None
    assert world.held() == 0


async def test_a_position_that_was_never_looked_at_is_left_to_its_exit_too():
    world = World()
    process = world.process()
    await process.buy()
    assert isinstance(await process.manager.release(key()), Released)
    await process.manager.check()
    assert world.stops() == []


async def test_a_position_that_is_being_closed_is_not_handed_over():
    """Two that sell the same holding would sell it twice on spot."""
    world = World()
    process = world.process()
    position = await process.buy(symbol=SPOT)
    process.plan.script([strike(Operation.CREATE, 2, Fault.REJECT_FILTER)])
    with anyio.move_on_after(0.15):
        await process.manager.close(position.position_id)
    answer = await process.manager.release(key(SPOT))
    assert isinstance(answer, NotReleased)
    assert "being closed" in answer.reason
    assert await process.manager.check() == ()


async def test_releasing_what_is_not_held_is_released():
    world = World()
    process = world.process()
    assert isinstance(await process.manager.release(key()), Released)


# --- Crashes ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(10, 13)
@pytest.mark.row("S1-17")
@pytest.mark.parametrize("after_ms", range(0, 120, 8))
async def test_g13_a_pass_that_is_cancelled_anywhere_is_taken_up_by_the_next_process(after_ms, kind):
    world = World(attached=kind == "attached")
    first = world.process()
    await first.buy()
    with anyio.move_on_after(after_ms / 1000):
        await first.manager.check()
    second = world.process()
    for _ in range(3):
        await second.gateway.recover()
        await second.manager.recover()
    [record] = second.manager.protections()
    assert record.is_safe
    assert world.stops() == ([] if world.attached else [(D("0.1"), D("57600.0"))])
    assert world.exposed_ms() < DEADLINE_MS


@pytest.mark.guarantee(13)
async def test_g13_a_process_killed_at_any_write_leaves_one_stop_and_one_record():
    """The store dies at the n-th write, and with it the process; a new one takes over."""

    class Killed(BaseException):
        pass

    for kill_at in range(1, 12):
        world = World()
        first = world.process()
        await first.buy()
        count = 0

        def hook(batch, kill_at=kill_at):
            nonlocal count
            count += 1
            if count == kill_at:
                raise Killed

        world.store.hook = hook
        with contextlib.suppress(Killed, BaseExceptionGroup):
            await first.manager.check()
        world.store.hook = None
        second = world.process()
        await second.gateway.recover()
        [record] = await second.manager.recover()
        await second.manager.check()
        assert record.is_safe
        assert world.stops() == [(D("0.1"), D("57600.0"))]


@pytest.mark.guarantee(12)
async def test_g12_without_a_store_the_pass_fails_loudly_and_the_stop_stays():
    world = World()
    process = world.process()
    await protected(world, process)
    world.store.is_down = True
    with pytest.raises(StoreUnavailable):
        await process.manager.check()
    world.store.is_down = False
    assert (await process.manager.check())[0].is_safe
    assert len(world.stops()) == 1


async def test_the_loop_goes_on_after_a_failed_pass():
    world = World()
    process = world.process()
    await process.buy()
    world.store.is_down = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(process.manager.run)
        await anyio.sleep(1.5)
        world.store.is_down = False
        await anyio.sleep(3)
        assert process.manager.protections()[0].is_safe
        tasks.cancel_scope.cancel()


async def test_two_processes_that_protect_the_same_position_place_one_stop_each_at_most_and_agree():
    world = World()
    first, second = world.process(), world.process()
    await first.buy()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.manager.check)
        tasks.start_soon(second.manager.check)
    await first.manager.check()
    await second.manager.check()
    assert [q for q, _ in world.stops()] == [D("0.1")]


async def test_a_venue_without_request_expiry_is_protected_all_the_same():
    """There absence is never proven: a lost request stays in doubt, and another stop is placed."""
    world = World(profile=attrs.evolve(SIM_PROFILE, expiry=Expiry.NONE))
    process = world.process()
    await process.buy()
    process.plan.strike_next(Operation.CREATE, Fault.DROP_REQUEST)
    await process.manager.check()
    [record] = await process.manager.check()
    assert record.is_safe
    assert (await process.registry.find(record.intent_key, leg="stop.1")).state is not IntentState.FILLED
