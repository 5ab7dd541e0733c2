"""The matching core: what it accepts, what it fills, what its views show, and when."""

import contextlib
from decimal import ROUND_UP, Context, Decimal, localcontext

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from execsafe.model.order import OrderStatus, Side
from execsafe.model.venue import Dedup, View
from execsafe.testing.clock import EPOCH_MS
from execsafe.testing.ledger import Happened
from execsafe.testing.venue import FillStep, NewOrder, RejectReason, SimVenue, VenueReject

D = Decimal
T0 = EPOCH_MS
SPOT, PERP = "BTC/USDT", "BTC/USDT:USDT"


def order(key="a", quantity="1", price="50000", side=Side.BUY, symbol=SPOT, **more):
    kind = "market" if price is None else "limit"
    return NewOrder(
        symbol=symbol,
        side=side,
        quantity=D(quantity),
        type=kind,
        limit_price=price and D(price),
        client_order_id=key,
        **more,
    )


def refused(venue, request, at_ms=T0):
    with pytest.raises(VenueReject) as caught:
        venue.submit(request, at_ms)
    return caught.value.reason


# --- filling ------------------------------------------------------------------------------------------------


def test_a_market_order_fills_at_the_price_at_once():
    placed = SimVenue().submit(order(price=None), T0)

    assert (placed.status, placed.filled_quantity, placed.average_price) == (OrderStatus.CLOSED, 1, 60_000)


def test_a_limit_order_through_the_price_takes_and_gets_the_better_price():
    placed = SimVenue().submit(order(price="61000"), T0)

    assert placed.average_price == 60_000
    assert not placed.fills[0].is_maker


def test_a_resting_order_fills_at_its_limit_when_the_price_reaches_it():
    venue = SimVenue()
    placed = venue.submit(order(), T0)
    venue.set_price(SPOT, 50_001, T0 + 1)
    assert venue.order(placed.venue_order_id).is_open

    venue.set_price(SPOT, 50_000, T0 + 2)

    filled = venue.order(placed.venue_order_id)
    assert (filled.status, filled.average_price, filled.fills[0].is_maker) == (OrderStatus.CLOSED, 50_000, True)


def test_a_queued_price_path_fills_each_order_at_its_own_instant():
    venue = SimVenue()
    venue.submit(order(), T0)
    venue.set_path(SPOT, [(T0 + 100, 55_000), (T0 + 200, 49_000)])

    venue.advance(T0 + 10_000)

    assert [entry.at_ms for entry in venue.ledger.fills()] == [T0 + 200]


def test_fill_or_kill_and_immediate_or_cancel_leave_nothing_behind():
    venue = SimVenue()
    away = {tif: venue.submit(order(tif, time_in_force=tif), T0) for tif in ("IOC", "FOK")}
    assert {placed.status for placed in away.values()} == {OrderStatus.EXPIRED}
    venue.schedule_fills(SPOT, [FillStep(0, "0.25"), FillStep(500, "0.75")])

    part = venue.submit(order("part", price="60000", time_in_force="IOC"), T0)
    whole = venue.submit(order("whole", price="60000", time_in_force="FOK"), T0)

    assert (part.status, part.filled_quantity) == (OrderStatus.EXPIRED, D("0.25"))
    assert (whole.status, whole.filled_quantity) == (OrderStatus.EXPIRED, 0)
    venue.advance(T0 + 1_000)
    assert venue.ledger.filled_quantity("part") == D("0.25")


def test_a_schedule_fills_in_parts_and_what_it_leaves_out_never_fills():
    venue = SimVenue()
    venue.schedule_fills(SPOT, [FillStep(0, "0.4"), FillStep(1_000, "0.2")])
    resting = venue.submit(order("limit", price="60000"), T0)
    market = venue.submit(order("market", price=None), T0)
    assert [resting.filled_quantity, market.filled_quantity] == [D("0.4"), D("0.4")]

    venue.advance(T0 + 1_000)

    assert venue.order(resting.venue_order_id).leaves_quantity == D("0.4")
    assert venue.order(market.venue_order_id).status is OrderStatus.EXPIRED
    assert venue.ledger.filled_quantity("market") == D("0.6")


def test_a_post_only_order_that_would_take_is_refused_or_canceled_as_the_venue_does():
    assert refused(SimVenue(), order(price="60000", post_only=True)) is RejectReason.POST_ONLY
    venue = SimVenue(rejects_post_only=False)

    placed = venue.submit(order(price="60000", post_only=True), T0)

    ended = venue.order(placed.venue_order_id)
    assert placed.is_open
    assert (ended.status, ended.filled_quantity, ended.reason) == (OrderStatus.CANCELED, 0, RejectReason.POST_ONLY)


def test_a_stop_sleeps_until_its_trigger_and_then_trades():
    venue = SimVenue()
    stop = venue.submit(order(price=None, side=Side.SELL, trigger_price=D(55_000)), T0)
    assert stop.is_open

    venue.set_price(SPOT, 55_001, T0 + 1)
    assert venue.order(stop.venue_order_id).is_open
    venue.set_price(SPOT, 54_000, T0 + 2)

    assert venue.order(stop.venue_order_id).average_price == 54_000


def test_a_take_profit_triggers_on_the_other_side():
    venue = SimVenue()
    target = venue.submit(order(price=None, side=Side.SELL, trigger_price=D(65_000), trigger_above=True), T0)

    venue.set_price(SPOT, 66_000, T0 + 1)

    assert venue.order(target.venue_order_id).average_price == 66_000


# --- refusing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (order(quantity="0.000001"), RejectReason.LOT_SIZE),
        (order(quantity="0.000015"), RejectReason.LOT_SIZE),
        (order(quantity="9001"), RejectReason.LOT_SIZE),
        (order(price="50000.001"), RejectReason.PRICE_FILTER),
        (order(quantity="0.00001", price="50000"), RejectReason.NOTIONAL),
        (order(symbol="DOGE/USDT"), RejectReason.BAD_SYMBOL),
        (order(symbol=PERP, reduce_only=True), RejectReason.REDUCE_ONLY),
    ],
)
def test_orders_outside_the_filters_are_refused(request_, reason):
    venue = SimVenue()

    assert refused(venue, request_) is reason
    assert venue.ledger.accepted() == []


def test_funds_are_reserved_while_an_order_is_open_and_freed_when_it_ends():
    venue = SimVenue(balances={"USDT": 75_000})
    venue.submit(order("a"), T0)
    assert refused(venue, order("b")) is RejectReason.INSUFFICIENT_FUNDS

    venue.cancel(T0, client_order_id="a")

    assert venue.submit(order("b"), T0).is_open


@pytest.mark.parametrize(
    ("dedup", "while_open", "after_the_end"),
    [(Dedup.NONE, False, False), (Dedup.OPEN, True, False), (Dedup.WINDOW, True, True), (Dedup.FOREVER, True, True)],
)
def test_a_client_id_is_unique_as_far_as_the_venue_enforces_it(dedup, while_open, after_the_end):
    def is_duplicate(venue, at_ms):
        refusals = len(venue.ledger.rejected())
        with contextlib.suppress(VenueReject):
            venue.submit(order("same"), at_ms)
        return [entry.reason for entry in venue.ledger.rejected()][refusals:] == ["duplicate_id"]

    venue = SimVenue(dedup=dedup, dedup_window_ms=1_000)
    venue.submit(order("same"), T0)
    assert is_duplicate(venue, T0 + 1) is while_open
    for open_order in venue.open_orders():
        venue.cancel(T0 + 2, venue_order_id=open_order.venue_order_id)
    assert is_duplicate(venue, T0 + 3) is after_the_end
    if dedup is Dedup.WINDOW:
        assert not is_duplicate(venue, T0 + 1_000)


@pytest.mark.parametrize("skew_ms", [-400, 0, 400])
def test_a_request_is_accepted_to_the_last_millisecond_of_its_life_by_the_venues_clock(skew_ms):
    venue = SimVenue(skew_ms=skew_ms)
    last_ms = T0 + 5_000 - skew_ms

    assert venue.submit(order("a", deadline_ms=T0 + 5_000), last_ms).is_open
    assert refused(venue, order("b", deadline_ms=T0 + 5_000), last_ms + 1) is RejectReason.EXPIRED_REQUEST
    assert refused(venue, order("c", signed_at_ms=T0, window_ms=5_000), last_ms + 1) is RejectReason.EXPIRED_REQUEST


def test_a_request_from_more_than_a_second_in_the_future_is_refused():
    venue = SimVenue()

    assert venue.submit(order("a", signed_at_ms=T0 + 1_000), T0).is_open
    assert refused(venue, order("b", signed_at_ms=T0 + 1_001), T0) is RejectReason.TIMESTAMP_AHEAD


def test_under_maintenance_everything_is_refused_until_it_ends():
    venue = SimVenue()
    venue.set_maintenance(T0 + 1_000)

    assert refused(venue, order(), T0) is RejectReason.MAINTENANCE
    with pytest.raises(VenueReject):
        venue.look(View.OPEN_ORDERS, T0)
    assert venue.submit(order(), T0 + 1_000).is_open


def test_only_an_open_order_can_be_canceled():
    venue = SimVenue()
    venue.submit(order(price="60000"), T0)

    for reference in ({"client_order_id": "a"}, {"client_order_id": "never"}, {"venue_order_id": "77"}):
        with pytest.raises(VenueReject) as caught:
            venue.cancel(T0, **reference)
        assert caught.value.reason is RejectReason.UNKNOWN_ORDER


# --- amending -----------------------------------------------------------------------------------------------


def test_an_amend_changes_total_and_price_in_place_and_may_fill():
    venue = SimVenue()
    placed = venue.submit(order(), T0)
    venue.fill(placed.venue_order_id, T0 + 1, D("0.5"))

    amended = venue.amend(T0 + 2, client_order_id="a", quantity=D(2), limit_price=D(60_000))

    assert (amended.status, amended.filled_quantity, amended.venue_order_id) == (OrderStatus.CLOSED, 2, "1")


def test_an_amend_below_what_has_filled_is_refused():
    venue = SimVenue()
    placed = venue.submit(order(), T0)
    venue.fill(placed.venue_order_id, T0, D("0.5"))

    with pytest.raises(VenueReject):
        venue.amend(T0, client_order_id="a", quantity=D("0.5"))


# --- views --------------------------------------------------------------------------------------------------


def test_a_view_shows_an_order_and_each_later_change_only_after_its_lag():
    lags = {View.CLIENT_ID: 0, View.OPEN_ORDERS: 500, View.CLOSED_ORDERS: 1_500, View.TRADES: 800}
    venue = SimVenue(read_lag_ms=lags)
    placed = venue.submit(order(), T0)
    venue.fill(placed.venue_order_id, T0 + 2_000)

    def shown(view, at_ms):
        return [o.status for o in venue.look(view, at_ms, client_order_id="a")]

    venue.at(T0 + 2_000, lambda _: None)
    assert shown(View.CLIENT_ID, T0 + 2_000) == [OrderStatus.CLOSED]
    assert shown(View.OPEN_ORDERS, T0 + 2_499) == [OrderStatus.OPEN]  # already filled, still shown as open
    assert shown(View.OPEN_ORDERS, T0 + 2_500) == []
    assert shown(View.TRADES, T0 + 2_799) == []
    assert shown(View.TRADES, T0 + 2_800) == [OrderStatus.CLOSED]
    assert shown(View.CLOSED_ORDERS, T0 + 3_499) == []
    assert shown(View.CLOSED_ORDERS, T0 + 3_500) == [OrderStatus.CLOSED]


def test_a_new_order_is_invisible_until_its_lag_has_passed():
    venue = SimVenue(read_lag_ms=500)
    venue.submit(order(), T0)

    assert venue.look(View.CLIENT_ID, T0 + 499, client_order_id="a") == []
    assert len(venue.look(View.CLIENT_ID, T0 + 500, client_order_id="a")) == 1


def test_the_look_up_by_client_id_shows_the_latest_order_of_that_id():
    venue = SimVenue(dedup=Dedup.NONE)
    for _ in range(2):
        venue.submit(order(), T0)

    assert [o.venue_order_id for o in venue.look(View.CLIENT_ID, T0, client_order_id="a")] == ["2"]
    assert len(venue.look(View.OPEN_ORDERS, T0, client_order_id="a")) == 2


def test_a_lost_id_index_hides_orders_from_the_id_view_only_and_frees_their_ids():
    venue = SimVenue()
    venue.submit(order(), T0)
    venue.lose_id_index()

    assert venue.look(View.CLIENT_ID, T0, client_order_id="a") == []
    assert len(venue.look(View.OPEN_ORDERS, T0, client_order_id="a")) == 1
    assert venue.submit(order(), T0).is_open


def test_ended_orders_are_forgotten_after_their_retention_but_the_ledger_remembers():
    venue = SimVenue(retention_ms=1_000)
    venue.submit(order("ended", price="60000"), T0)
    venue.submit(order("open"), T0)

    venue.advance(T0 + 1_001)

    assert venue.look(View.CLOSED_ORDERS, T0 + 1_001) == []
    assert [o.client_order_id for o in venue.look(View.OPEN_ORDERS, T0 + 1_001)] == ["open"]
    assert len(venue.ledger.accepted("ended")) == 1


# --- positions ----------------------------------------------------------------------------------------------


def perp(venue, side, quantity, price=None, **more):
    return venue.submit(order(None, quantity, price, side, PERP, **more), T0)


def test_a_position_averages_in_realises_out_and_flips():
    venue = SimVenue(balances={"USDT": 1_000_000})
    perp(venue, Side.BUY, "1")
    venue.set_price(PERP, 70_000, T0)
    perp(venue, Side.BUY, "1")
    assert venue.account.positions[PERP].entry_price == 65_000

    perp(venue, Side.SELL, "3")

    assert venue.account.position(PERP) == -1
    assert venue.account.positions[PERP].entry_price == 70_000
    fees = sum(entry.fee for entry in venue.ledger.fills())
    assert venue.account.balances["USDT"] == 1_000_000 + 2 * 5_000 - fees


def test_a_short_gains_when_the_price_falls():
    venue = SimVenue(balances={"USDT": 1_000_000})
    perp(venue, Side.SELL, "1")
    venue.set_price(PERP, 50_000, T0)
    perp(venue, Side.BUY, "1")

    fees = sum(entry.fee for entry in venue.ledger.fills())
    assert venue.account.balances["USDT"] == 1_000_000 + 10_000 - fees


def test_what_a_reduce_only_order_cannot_close_does_not_stay_behind():
    venue = SimVenue()
    perp(venue, Side.BUY, "1")

    closing = perp(venue, Side.SELL, "5", "59000", reduce_only=True)

    assert (closing.status, closing.filled_quantity) == (OrderStatus.CANCELED, 1)
    assert venue.open_orders() == []


def test_reduce_only_orders_never_flip_a_position():
    venue = SimVenue()
    perp(venue, Side.BUY, "1")

    closing = perp(venue, Side.SELL, "5", reduce_only=True)

    assert closing.filled_quantity == 1
    assert not closing.is_open
    assert venue.account.position(PERP) == 0
    assert refused(venue, order(price=None, side=Side.SELL, symbol=PERP, reduce_only=True)) is RejectReason.REDUCE_ONLY


def test_two_resting_exits_together_close_no_more_than_there_is():
    venue = SimVenue()
    perp(venue, Side.BUY, "1")
    for _ in range(2):
        perp(venue, Side.SELL, "1", "65000", reduce_only=True)

    venue.set_price(PERP, 66_000, T0 + 1)

    assert venue.account.position(PERP) == 0
    assert venue.open_orders() == []


# --- properties ---------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.sampled_from([SPOT, PERP]),
            st.sampled_from(list(Side)),
            st.integers(1, 30),
            st.sampled_from([None, 55_000, 60_000, 65_000]),
            st.sampled_from(["GTC", "IOC", "FOK"]),
            st.booleans(),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("amend"), st.integers(0, 9), st.integers(1, 40)),
        st.tuples(st.just("price"), st.sampled_from([SPOT, PERP]), st.integers(50_000, 70_000)),
        st.tuples(st.just("fill"), st.integers(1, 10)),
        st.tuples(
            st.just("schedule"),
            st.sampled_from([SPOT, PERP]),
            st.lists(st.tuples(st.integers(0, 900), st.integers(1, 500)), min_size=1, max_size=2),
        ),
        st.tuples(st.just("wait"), st.integers(1, 2_000)),
    ),
    max_size=40,
)


def play(steps):
    """Apply random operations; whatever the venue refuses is refused."""
    venue, now_ms = SimVenue(balances={"USDT": 500_000, "BTC": 5}), T0
    for count, (what, *rest) in enumerate(steps):
        now_ms += 10
        try:
            if what == "submit":
                symbol, side, units, price, tif, reduces = rest
                quantity = str(D(units) / 10)
                venue.submit(
                    order(f"c{count % 10}", quantity, price, side, symbol, time_in_force=tif, reduce_only=reduces),
                    now_ms,
                )
            elif what == "cancel":
                venue.cancel(now_ms, client_order_id=f"c{rest[0]}")
            elif what == "amend":
                venue.amend(now_ms, client_order_id=f"c{rest[0]}", quantity=D(rest[1]) / 10)
            elif what == "price":
                venue.set_price(rest[0], rest[1], now_ms)
            elif what == "fill" and venue.open_orders():
                first = venue.open_orders()[0]
                if first.triggered:
                    venue.fill(first.venue_order_id, now_ms, D(rest[0]) / 10)
            elif what == "schedule":
                venue.schedule_fills(rest[0], [FillStep(after, D(ratio) / 1_000) for after, ratio in sorted(rest[1])])
            elif what == "wait":
                now_ms += rest[0]
        except VenueReject:
            pass
    venue.advance(now_ms + 10_000)
    return venue


@given(STEPS)
def test_fills_never_exceed_the_quantity_of_their_order(steps):
    venue = play(steps)
    totals, filled = {}, {}
    for entry in venue.ledger:
        if entry.what in {Happened.ACCEPTED, Happened.AMENDED}:
            totals[entry.venue_order_id] = entry.quantity
        elif entry.what is Happened.FILLED:
            assert entry.quantity > 0
            filled[entry.venue_order_id] = filled.get(entry.venue_order_id, 0) + entry.quantity
            assert filled[entry.venue_order_id] <= totals[entry.venue_order_id]


@given(STEPS)
def test_balances_and_positions_are_exactly_what_the_ledger_adds_up_to(steps):
    """No money appears or vanishes; spot balances are never overdrawn by an order."""
    venue = play(steps)
    btc, position = D(5), D(0)
    usdt, entry_value = D(500_000), D(0)
    for entry in venue.ledger.fills():
        signed = entry.quantity if entry.side is Side.BUY else -entry.quantity
        if entry.fee_currency == "USDT":
            usdt -= entry.fee
        else:
            btc -= entry.fee
        usdt -= signed * entry.price
        if entry.symbol == SPOT:
            btc += signed
        else:
            position += signed
    held = venue.account.positions.get(PERP)
    if held is not None:
        assert held.quantity == position
        entry_value = held.quantity * held.entry_price
    assert venue.account.balances["BTC"] == btc >= 0
    # A perpetual moves no principal: add what the position stands in the books at.
    assert abs(venue.account.balances["USDT"] - (usdt + entry_value)) < D("1e-12")


@given(STEPS)
def test_reservations_are_those_of_the_open_orders_and_views_agree_with_the_ledger(steps):
    venue = play(steps)
    needed = {}
    for placed in venue.open_orders():
        for currency, amount in venue.account.need(placed, venue.prices[placed.symbol]).items():
            needed[currency] = needed.get(currency, 0) + amount
        assert venue.ledger.open_quantity(placed.client_order_id) >= placed.leaves_quantity
    for currency in ("USDT", "BTC"):
        if not any(o.limit_price is None for o in venue.open_orders()):
            assert venue.account.reserved[currency] == needed.get(currency, 0)
    now_ms = venue.now_ms
    shown = {o.venue_order_id for view in (View.OPEN_ORDERS, View.CLOSED_ORDERS) for o in venue.look(view, now_ms)}
    assert shown == {entry.venue_order_id for entry in venue.ledger.accepted()}


@given(STEPS)
@settings(max_examples=30)
def test_the_same_steps_give_the_same_ledger(steps):
    assert play(steps).ledger.digest() == play(steps).ledger.digest()


@given(STEPS)
@settings(max_examples=100)
def test_what_a_client_does_to_the_decimal_context_changes_nothing_at_the_venue(steps):
    """ccxt sets rounding and traps for the whole thread, a bot its own precision."""
    expected = play(steps).ledger.digest()
    with localcontext(Context(prec=3, rounding=ROUND_UP)):
        assert play(steps).ledger.digest() == expected
