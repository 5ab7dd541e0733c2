"""Stops at the simulated venue: orders with a trigger, stops attached to positions, and when nothing protected one."""

import contextlib
from decimal import Decimal
from itertools import pairwise

import anyio
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from execsafe.errors import UnsupportedByVenue
from execsafe.model.order import OrderRequest, OrderStatus, Side
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.position import PositionSide, StopKind
from execsafe.ports import OrderRef
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import EPOCH_MS, VirtualClock
from execsafe.testing.faults import APPLIES, Fault, FaultPlan, Strike
from execsafe.testing.ledger import Happened
from execsafe.testing.sim_errors import BaseError
from execsafe.testing.venue import FillStep, NewOrder, RejectReason, SimVenue, VenueReject, linear

D = Decimal
T0 = EPOCH_MS
SPOT, PERP = "BTC/USDT", "BTC/USDT:USDT"
BUY, SELL = Side.BUY, Side.SELL


def submit(venue, side=BUY, quantity="1", price=None, *, at_ms=T0, symbol=PERP, **more):
    return venue.submit(
        NewOrder(
            symbol=symbol, side=side, quantity=D(quantity), type="limit" if price else "market",
            limit_price=price and D(price), **more,
        ),
        at_ms,
    )  # fmt: skip


def stop(venue, price="55000", side=SELL, quantity="1", *, limit=None, **more):
    return submit(venue, side, quantity, limit, **{"reduce_only": True, "trigger_price": D(price), **more})


def refused(call, *args, **more):
    with pytest.raises(VenueReject) as caught:
        call(*args, **more)
    return caught.value.reason


def happened(venue, *kinds):
    return [(e.at_ms - T0, e.what.value, e.reason) for e in venue.ledger.of(None, *kinds)]


class World:
    """A venue that attaches stops to positions, a connection to it, and what is scripted to go wrong."""

    def __init__(self, *strikes, stop_kind=StopKind.ATTACHED, **venue):
        self.clock = VirtualClock()
        self.venue = SimVenue(**venue)
        self.plan = FaultPlan.scripted(*strikes)
        self.adapter = SimAdapter(self.venue, clock=self.clock, plan=self.plan, stop_kind=stop_kind)

    async def order(self, side=BUY, key="a", kind="market", **more):
        request = OrderRequest(symbol=PERP, side=side, type=kind, quantity=D(1), client_order_id=key, **more)
        return await self.adapter.create_order(request)

    async def attach(self, price):
        await self.adapter.set_attached_stop(PERP, PositionSide.LONG, price and D(price))

    async def judged(self, call, *args, operation=Operation.SET_STOP):
        """What the error of a call means; None: there was none."""
        try:
            await call(*args)
        except BaseError as error:
            return self.adapter.judge(error, operation).meaning
        return None

    @property
    def attached(self):
        self.venue.advance(self.clock.now_ms())
        return self.venue.account.positions[PERP].stop_price


# --- orders with a trigger ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "above", "waits_at", "goes_at", "is_stop"),
    [
        (SELL, None, "55000.1", "55000", True),
        (SELL, False, "55000.1", "55000", True),
        (SELL, True, "64999.9", "65000", False),
        (BUY, None, "64999.9", "65000", True),
        (BUY, True, "64999.9", "65000", True),
        (BUY, False, "55000.1", "55000", False),
    ],
)
def test_a_trigger_order_sleeps_until_the_price_gets_there(side, above, waits_at, goes_at, is_stop):
    venue = SimVenue()
    submit(venue, side.opposite)
    placed = stop(venue, goes_at, side, trigger_above=above)

    venue.set_path(PERP, [(T0 + 10, waits_at), (T0 + 20, goes_at)])
    venue.advance(T0 + 19)
    assert (venue.order(placed.venue_order_id).triggered, placed.status) == (False, OrderStatus.OPEN)
    venue.advance(T0 + 20)

    ended = venue.order(placed.venue_order_id)
    assert (ended.status, ended.average_price) == (OrderStatus.CLOSED, D(goes_at))
    [entry] = venue.ledger.of(None, Happened.TRIGGERED)
    assert (entry.at_ms, entry.price, entry.trigger_price) == (T0 + 20, D(goes_at), D(goes_at))
    assert (entry.side, entry.reduce_only, entry.is_stop) == (side, True, is_stop)


def test_a_stop_that_the_price_jumps_over_fills_where_the_price_is():
    venue = SimVenue()
    submit(venue)
    placed = stop(venue, "55000")

    venue.set_price(PERP, 40_000, T0 + 1)

    assert venue.order(placed.venue_order_id).average_price == 40_000


def test_a_stop_limit_rests_at_its_limit_when_the_price_has_jumped_over_it():
    venue = SimVenue()
    submit(venue)
    placed = stop(venue, "55000", limit="54900")

    venue.set_price(PERP, 50_000, T0 + 1)
    assert venue.order(placed.venue_order_id).is_open
    venue.set_price(PERP, 54_900, T0 + 2)

    assert venue.order(placed.venue_order_id).average_price == 54_900
    assert happened(venue, Happened.TRIGGERED) == [(1, "triggered", None)]


def test_a_triggered_ioc_limit_that_meets_nobody_expires():
    venue = SimVenue()
    submit(venue)
    placed = stop(venue, "55000", limit="54900", time_in_force="IOC")

    venue.set_price(PERP, 50_000, T0 + 1)

    assert venue.order(placed.venue_order_id).status is OrderStatus.EXPIRED


def test_a_reduce_only_stop_closes_what_there_is_and_stays_behind_when_something_else_has_closed_it():
    """An orphan: nothing cancels it but its owner, or a later trigger that finds nothing to close."""
    venue = SimVenue()
    submit(venue)
    placed = stop(venue, quantity="3")
    submit(venue, SELL, reduce_only=True, at_ms=T0 + 1)
    assert venue.open_orders(PERP) == [placed]

    venue.set_price(PERP, 50_000, T0 + 2)

    assert venue.order(placed.venue_order_id).status is OrderStatus.CANCELED
    assert venue.account.position(PERP) == 0


@pytest.mark.parametrize("rejects", [True, False])
def test_a_stop_that_the_price_has_passed_is_refused_or_goes_off_at_once_as_the_venue_does(rejects):
    venue = SimVenue(rejects_passed_stops=rejects)
    submit(venue)

    if rejects:
        assert refused(stop, venue, "60000") is RejectReason.STOP_WOULD_TRIGGER
        assert venue.account.position(PERP) == 1
        assert stop(venue, "59999.9").is_open
    else:
        assert stop(venue, "60000").status is OrderStatus.CLOSED


@pytest.mark.parametrize("price", ["0", "-1", "55000.05"])
def test_a_trigger_price_off_the_tick_is_refused(price):
    venue = SimVenue()
    submit(venue)

    assert refused(stop, venue, price) is RejectReason.PRICE_FILTER


@pytest.mark.anyio
async def test_a_stop_order_sent_through_the_port_is_one_with_an_id_of_its_own():
    world = World(stop_kind=StopKind.ORDER)
    await world.order()
    await world.order(SELL, "s", "stop_market", trigger_price=D(55_000), reduce_only=True)

    [report] = await world.adapter.fetch_open_orders(PERP)
    assert (report.client_order_id, report.trigger_price, report.reduce_only) == ("s", 55_000, True)
    await world.adapter.cancel_order(OrderRef(symbol=PERP, client_order_id="s"))
    assert await world.adapter.fetch_open_orders(PERP) == []


# --- stops attached to positions ----------------------------------------------------------------------------


@pytest.mark.row("S3-10")
def test_there_are_venues_where_a_stop_is_an_order_and_venues_where_it_belongs_to_the_position():
    attached, ordered = World(), World(stop_kind=StopKind.ORDER)

    assert (attached.adapter.stop_kind(PERP), ordered.adapter.stop_kind(PERP)) == (StopKind.ATTACHED, StopKind.ORDER)
    assert attached.adapter.stop_kind(SPOT) is StopKind.ORDER


@pytest.mark.anyio
async def test_where_stops_are_orders_none_can_be_attached():
    world = World(stop_kind=StopKind.ORDER)
    await world.order()

    with pytest.raises(UnsupportedByVenue):
        await world.attach("55000")


@pytest.mark.anyio
@pytest.mark.row("S3-10")
async def test_an_attached_stop_is_read_back_from_the_position_and_has_no_order():
    world = World()
    await world.order()
    await world.attach("55000")

    assert [p.stop_price for p in await world.adapter.fetch_positions()] == [55_000]
    assert await world.adapter.fetch_open_orders(PERP) == []
    await world.attach("56000")
    assert [p.stop_price for p in await world.adapter.fetch_positions()] == [56_000]
    await world.attach(None)
    assert [p.stop_price for p in await world.adapter.fetch_positions()] == [None]
    reasons = [reason for _, _, reason in happened(world.venue, Happened.STOP_ATTACHED, Happened.STOP_REMOVED)]
    assert reasons == [None, "replaced", None, "removed"]


@pytest.mark.parametrize("side", list(Side))
def test_an_attached_stop_closes_the_whole_position_whatever_it_has_become(side):
    venue, sign = SimVenue(), 1 if side is BUY else -1
    submit(venue, side)
    venue.set_attached_stop(PERP, D(60_000 - sign * 5_000), T0)
    submit(venue, side, "0.7", at_ms=T0 + 1)

    venue.set_price(PERP, 60_000 - sign * 6_000, T0 + 2)

    assert venue.account.position(PERP) == 0
    closing = venue.ledger.fills()[-1]
    assert (closing.quantity, closing.side, closing.client_order_id, closing.reduce_only) == (
        D("1.7"), side.opposite, None, True,
    )  # fmt: skip
    assert happened(venue, Happened.STOP_REMOVED, Happened.TRIGGERED) == [
        (2, "stop_removed", "triggered"),
        (2, "triggered", None),
    ]
    assert venue.executions(PERP, T0 + 2)[-1].client_order_id is None


@pytest.mark.parametrize(("quantity", "after"), [("1", 0), ("3", -2)])
def test_an_attached_stop_ends_with_its_position(quantity, after):
    """Flat or flipped: the next position has none, and nothing is left behind that could trigger."""
    venue = SimVenue()
    submit(venue)
    venue.set_attached_stop(PERP, D(55_000), T0)

    submit(venue, SELL, quantity, at_ms=T0 + 1)
    assert happened(venue, Happened.STOP_REMOVED) == [(1, "stop_removed", "flat")]
    venue.set_price(PERP, 50_000, T0 + 2)

    assert venue.account.position(PERP) == after
    submit(venue, BUY, str(1 - after), at_ms=T0 + 3)
    assert [position.stop_price for position in venue.fetch_positions(T0 + 3)] == [None]


def test_an_attached_stop_survives_a_partial_close():
    venue = SimVenue()
    submit(venue)
    venue.set_attached_stop(PERP, D(55_000), T0)

    submit(venue, SELL, "0.4", reduce_only=True, at_ms=T0 + 1)

    assert [position.stop_price for position in venue.fetch_positions(T0 + 1)] == [55_000]


@pytest.mark.parametrize(
    ("price", "side", "reason"),
    [
        (D(60_000), None, RejectReason.STOP_WOULD_TRIGGER),
        (D(61_000), None, RejectReason.STOP_WOULD_TRIGGER),
        (D("55000.05"), None, RejectReason.PRICE_FILTER),
        (D(-1), None, RejectReason.PRICE_FILTER),
        (D(55_000), PositionSide.SHORT, RejectReason.NO_POSITION),
        (None, None, RejectReason.STOP_UNCHANGED),
    ],
)
def test_a_stop_that_cannot_be_attached_is_refused(price, side, reason):
    venue = SimVenue()
    submit(venue)

    assert refused(venue.set_attached_stop, PERP, price, T0, side=side) is reason
    assert venue.ledger.of(None, Happened.STOP_ATTACHED, Happened.STOP_REMOVED) == []


def test_nothing_can_be_attached_to_no_position_nor_on_spot():
    venue = SimVenue()

    assert refused(venue.set_attached_stop, PERP, D(55_000), T0) is RejectReason.NO_POSITION
    assert refused(venue.set_attached_stop, SPOT, D(55_000), T0) is RejectReason.BAD_SYMBOL


@pytest.mark.anyio
@pytest.mark.row("S3-25")
async def test_the_same_stop_again_is_no_change():
    world = World()
    await world.order()

    meanings = [await world.judged(world.attach, "55000") for _ in range(2)]

    assert meanings == [None, Meaning.NO_CHANGE]
    assert len(world.venue.ledger.of(None, Happened.STOP_ATTACHED)) == 1


@pytest.mark.anyio
async def test_a_definite_no_to_a_stop_is_told_as_one():
    world = World(Strike("set_stop", 2, Fault.STOP_REJECTED))
    assert await world.judged(world.attach, "55000") is Meaning.REJECTED
    await world.order()

    assert await world.judged(world.attach, "55000") is Meaning.REJECTED
    assert await world.judged(world.attach, "61000") is Meaning.REJECTED
    assert world.attached is None
    assert world.plan.fired == {Fault.STOP_REJECTED: 1}


@pytest.mark.anyio
@pytest.mark.row("S4-35")
@pytest.mark.parametrize("fault", [f for f in Fault if Operation.SET_STOP in APPLIES[f]])
async def test_attaching_a_stop_meets_the_faults_of_the_wire(fault):
    """Done, not done, or done later: the caller cannot tell from silence, and the position can."""
    world = World(Strike("set_stop", 1, fault, 1 if fault is Fault.RESET_CONNECTION else None))
    await world.order()

    meaning = await world.judged(world.attach, "55000")
    await anyio.sleep(60)

    not_done = {
        Fault.DROP_REQUEST, Fault.SERVER_ERROR_NOT_ACCEPTED, Fault.RATE_LIMITED, Fault.MAINTENANCE,
        Fault.TIMESTAMP_REJECT, Fault.STOP_REJECTED, Fault.STOP_LOST,
    }  # fmt: skip
    assert (world.attached is None) is (fault in not_done)
    assert world.plan.fired == {fault: 1}
    if fault in {Fault.DROP_REQUEST, Fault.DROP_REPLY, Fault.DELAY_REQUEST, Fault.HANG, Fault.TRUNCATED_BODY}:
        assert meaning is Meaning.UNKNOWN


@pytest.mark.anyio
async def test_after_a_lost_reply_the_same_stop_is_no_change():
    world = World(Strike("set_stop", 1, Fault.DROP_REPLY))
    await world.order()

    assert [await world.judged(world.attach, "55000") for _ in range(2)] == [Meaning.UNKNOWN, Meaning.NO_CHANGE]


# --- faults of stops ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_stop_order_may_be_refused_because_it_would_trigger_at_once():
    world = World(Strike("create", 2, Fault.STOP_REJECTED), stop_kind=StopKind.ORDER)
    await world.order()

    meaning = await world.judged(
        lambda: world.order(SELL, "s", trigger_price=D(55_000), reduce_only=True), operation=Operation.CREATE
    )

    assert meaning is Meaning.REJECTED
    assert [entry.reason for entry in world.venue.ledger.rejected("s")] == ["stop_would_trigger"]


@pytest.mark.anyio
async def test_a_stop_rejection_strikes_stops_only():
    world = World(Strike("create", 1, Fault.STOP_REJECTED), Strike("create", 1, Fault.STOP_LOST))

    assert (await world.order()).filled_quantity == 1
    assert world.plan.fired == {}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", list(StopKind))
async def test_a_stop_that_was_accepted_may_vanish_without_a_word(kind):
    operation, ordinal = ("set_stop", 1) if kind is StopKind.ATTACHED else ("create", 2)
    world = World(Strike(operation, ordinal, Fault.STOP_LOST, 3_000), stop_kind=kind)
    await world.order()
    if kind is StopKind.ATTACHED:
        await world.attach("55000")
        assert world.attached == 55_000
    else:
        await world.order(SELL, "s", trigger_price=D(55_000), reduce_only=True)
        assert len(await world.adapter.fetch_open_orders(PERP)) == 1
    assert world.venue.ledger.protection_gaps(PERP)[1:] == []

    await anyio.sleep(4)

    assert world.attached is None
    assert await world.adapter.fetch_open_orders(PERP) == []
    gone = Happened.STOP_REMOVED if kind is StopKind.ATTACHED else Happened.CANCELED
    assert [reason for _, _, reason in happened(world.venue, gone)] == ["lost"]
    assert world.venue.ledger.of(None, Happened.CANCEL_RECEIVED) == []
    world.venue.set_price(PERP, 50_000, world.clock.now_ms())
    assert world.venue.account.position(PERP) == 1


def test_a_stop_that_was_moved_before_it_could_be_lost_stays():
    venue, plan = SimVenue(), FaultPlan.scripted(Strike("set_stop", 1, Fault.STOP_LOST, 1_000))
    submit(venue)
    venue.set_attached_stop(PERP, D(55_000), T0, strikes=plan.draw(Operation.SET_STOP))
    venue.set_attached_stop(PERP, D(56_000), T0 + 500)

    venue.advance(T0 + 2_000)

    assert venue.fetch_positions(T0 + 2_000)[0].stop_price == 56_000


def test_a_stop_that_went_off_before_it_could_be_lost_is_an_order_like_any_other():
    venue, plan = SimVenue(), FaultPlan.scripted(Strike("create", 1, Fault.STOP_LOST, 1_000))
    submit(venue)
    request = NewOrder(
        symbol=PERP, side=SELL, quantity=D(1), limit_price=D(54_900), trigger_price=D(55_000), reduce_only=True
    )
    placed = venue.submit(request, T0, plan.draw(Operation.CREATE))
    venue.set_price(PERP, 50_000, T0 + 500)

    venue.advance(T0 + 2_000)

    assert venue.order(placed.venue_order_id).is_open


# --- what the ledger says of protection ---------------------------------------------------------------------


def gaps(venue, **more):
    return [(gap.from_ms - T0, gap.to_ms - T0, gap.quantity) for gap in venue.ledger.protection_gaps(PERP, **more)]


@pytest.mark.guarantee(10)
def test_a_position_is_bare_from_its_fill_to_its_stop_and_from_the_end_of_the_stop_on():
    venue = SimVenue()
    submit(venue, at_ms=T0 + 10)
    placed = stop(venue, at_ms=T0 + 250)
    assert gaps(venue) == [(10, 250, 1)]
    venue.cancel(T0 + 900, venue_order_id=placed.venue_order_id)

    venue.advance(T0 + 1_000)

    assert gaps(venue) == [(10, 250, 1), (900, 1_000, 1)]
    assert gaps(venue, until_ms=T0 + 500) == [(10, 250, 1)]
    submit(venue, SELL, at_ms=T0 + 1_200)
    assert gaps(venue) == [(10, 250, 1), (900, 1_200, 1)]


def test_what_is_done_within_a_millisecond_is_no_gap_but_what_is_bare_now_is_always_shown():
    venue = SimVenue()
    submit(venue, at_ms=T0 + 10)
    assert gaps(venue) == [(10, 10, 1)]

    stop(venue, at_ms=T0 + 10)

    assert gaps(venue) == []


def test_a_stop_covers_its_own_quantity_only_and_several_add_up():
    venue = SimVenue()
    submit(venue)
    stop(venue, quantity="0.6", at_ms=T0 + 100)
    stop(venue, "54000", quantity="0.4", at_ms=T0 + 200)
    submit(venue, quantity="0.5", at_ms=T0 + 300)
    submit(venue, SELL, "0.5", reduce_only=True, at_ms=T0 + 400)

    assert gaps(venue) == [(0, 100, 1), (100, 200, D("0.4")), (300, 400, D("0.5"))]


def test_an_amended_stop_covers_its_new_total():
    venue = SimVenue()
    submit(venue, quantity="2")
    placed = stop(venue, quantity="2")

    venue.amend(T0 + 100, venue_order_id=placed.venue_order_id, quantity=D("0.5"))
    venue.advance(T0 + 200)

    assert gaps(venue) == [(100, 200, D("1.5"))]


@pytest.mark.parametrize(
    "more",
    [
        {"reduce_only": False},  # could open the opposite
        {"price": "65000", "trigger_above": True},  # a take-profit
        {"side": BUY, "price": "65000", "reduce_only": False},  # would enlarge it
    ],
)
def test_what_does_not_protect_does_not_count(more):
    venue = SimVenue()
    submit(venue)
    stop(venue, at_ms=T0 + 10, **more)
    venue.advance(T0 + 100)

    assert gaps(venue) == [(0, 100, 1)]


def test_a_triggered_stop_protects_no_more():
    venue = SimVenue()
    submit(venue)
    stop(venue, "55000", limit="54900")
    venue.set_price(PERP, 50_000, T0 + 100)
    venue.advance(T0 + 300)

    assert gaps(venue) == [(100, 300, 1)]


def test_an_attached_stop_covers_all_of_a_position_and_a_replacement_leaves_no_gap():
    venue = SimVenue()
    submit(venue)
    venue.set_attached_stop(PERP, D(55_000), T0 + 40)
    submit(venue, quantity="3", at_ms=T0 + 50)
    venue.set_attached_stop(PERP, D(56_000), T0 + 60)
    venue.set_attached_stop(PERP, None, T0 + 70)
    venue.set_attached_stop(PERP, D(56_000), T0 + 80)
    venue.set_price(PERP, 50_000, T0 + 90)

    assert gaps(venue) == [(0, 40, 1), (70, 80, 4)]


def test_a_short_is_protected_by_a_buy():
    venue = SimVenue()
    submit(venue, SELL)
    stop(venue, "65000", BUY, at_ms=T0 + 30)

    assert gaps(venue) == [(0, 30, 1)]


def test_on_spot_a_stop_need_not_be_reduce_only_and_fees_and_dust_are_not_held():
    venue = SimVenue(balances={"USDT": 100_000})
    submit(venue, symbol=SPOT)
    stop(venue, quantity="0.999", symbol=SPOT, reduce_only=False, at_ms=T0 + 20)
    submit(venue, quantity="0.00012", symbol=SPOT, at_ms=T0 + 50)
    venue.advance(T0 + 100)
    ledger = venue.ledger

    assert ledger.protection_gaps(SPOT) == [(T0, T0 + 20, D("0.999")), (T0 + 50, T0 + 100, D("0.00011988"))]
    assert ledger.exposure_over_time(SPOT) == [(T0, D("0.999")), (T0 + 50, D("0.99911988"))]


def test_dust_needs_no_stop():
    venue = SimVenue()
    submit(venue)
    submit(venue, SELL, "0.999", at_ms=T0 + 10)
    venue.advance(T0 + 100)

    assert gaps(venue) == [(0, 10, 1), (10, 100, D("0.001"))]
    assert gaps(venue, dust=D("0.001")) == [(0, 10, 1)]


def test_exposure_over_time_is_signed_and_ends_at_zero_when_flat():
    venue = SimVenue()
    submit(venue, at_ms=T0 + 1)
    submit(venue, SELL, "3", at_ms=T0 + 2)
    submit(venue, at_ms=T0 + 3)
    submit(venue, at_ms=T0 + 3)

    assert venue.ledger.exposure_over_time(PERP) == [(T0 + 1, 1), (T0 + 2, -2), (T0 + 3, 0)]
    assert venue.ledger.exposure_over_time(SPOT) == []


@pytest.mark.guarantee(10)
def test_a_flip_is_one_order_that_closes_and_then_opens_the_other_way():
    venue = SimVenue()
    submit(venue, client_order_id="entry")
    submit(venue, SELL, client_order_id="exit")
    submit(venue, SELL, client_order_id="short")
    assert venue.ledger.flips(PERP) == []  # one closes, another one opens

    submit(venue, BUY, "2", client_order_id="too much")

    assert [entry.client_order_id for entry in venue.ledger.flips(PERP)] == ["too much"]


def test_a_flip_in_two_fills_is_one_too():
    venue = SimVenue()
    submit(venue)
    venue.schedule_fills(PERP, [FillStep(0, "0.5"), FillStep(100, "0.5")])

    submit(venue, SELL, "2", client_order_id="too much")
    venue.advance(T0 + 100)

    assert [(entry.at_ms, entry.quantity) for entry in venue.ledger.flips(PERP)] == [(T0 + 100, 1)]


# --- properties ---------------------------------------------------------------------------------------------

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("trade"), st.sampled_from(list(Side)), st.integers(1, 9), st.booleans()),
        st.tuples(st.just("stop"), st.sampled_from(list(Side)), st.integers(1, 9), st.integers(1, 15)),
        st.tuples(st.just("attach"), st.one_of(st.none(), st.integers(-15, 15))),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
        st.tuples(st.just("price"), st.integers(-15, 15)),
        st.tuples(st.just("wait"), st.integers(1, 50)),
    ),
    max_size=30,
)


def play(venue, move, now_ms):
    what, *rest = move
    if what == "trade":
        submit(venue, rest[0], D(rest[1]) / 10, at_ms=now_ms, reduce_only=rest[2])
    elif what == "stop":
        away = -rest[2] if rest[0] is SELL else rest[2]
        stop(venue, str(60_000 + 1_000 * away), rest[0], D(rest[1]) / 10, at_ms=now_ms)
    elif what == "attach":
        venue.set_attached_stop(PERP, None if rest[0] is None else D(60_000 + 1_000 * rest[0]), now_ms)
    elif what == "cancel" and venue.open_orders():
        chosen = venue.open_orders()[rest[0] % len(venue.open_orders())]
        venue.cancel(now_ms, venue_order_id=chosen.venue_order_id)
    elif what == "price":
        venue.set_price(PERP, 60_000 + 1_000 * rest[0], now_ms)


def bare(venue):
    """What is uncovered now, told from the venue's own state rather than from its ledger."""
    position = venue.account.positions.get(PERP)
    if position is None or position.stop_price is not None:
        return D(0)
    closing = SELL if position.quantity > 0 else BUY
    stops = [o for o in venue.open_orders(PERP) if not o.triggered and o.side is closing and o.request.is_stop]
    return max(D(0), abs(position.quantity) - sum((o.leaves_quantity for o in stops), D(0)))


@given(MOVES)
@settings(max_examples=1_000, deadline=None)
def test_gaps_are_exactly_when_the_state_of_the_venue_left_something_bare(moves):
    venue, now_ms, seen = SimVenue([linear()]), T0, {}
    for move in moves:
        now_ms += move[1] if move[0] == "wait" else 7
        with contextlib.suppress(VenueReject):
            play(venue, move, now_ms)
        venue.advance(now_ms)
        seen[now_ms] = bare(venue)
    venue.advance(now_ms + 5)
    told = venue.ledger.protection_gaps(PERP)
    for at_ms, quantity in seen.items():
        assert sum((gap.quantity for gap in told if gap.from_ms <= at_ms < gap.to_ms), D(0)) == quantity
    assert all(before.to_ms <= after.from_ms for before, after in pairwise(told))


@given(MOVES)
@settings(max_examples=1_000, deadline=None)
def test_neither_reduce_only_orders_nor_attached_stops_ever_flip_a_position(moves):
    venue, now_ms = SimVenue([linear()]), T0
    for move in moves:
        now_ms += 7
        with contextlib.suppress(VenueReject):
            play(venue, move, now_ms)
    assert [entry for entry in venue.ledger.flips(PERP) if entry.reduce_only] == []
    held = venue.account.positions.get(PERP)
    assert held is None or held.quantity or held.stop_price is None
    assert venue.ledger.position(PERP) == venue.account.position(PERP)
