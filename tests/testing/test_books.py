"""Order books: what is shown, what a taker gets level by level, and what is left of the book."""

from decimal import Decimal

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from execsafe.errors import InvalidInput
from execsafe.model.order import OrderStatus, Side
from execsafe.model.position import BookLevel, Snapshot
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import EPOCH_MS, VirtualClock
from execsafe.testing.faults import Fault, FaultPlan, Strike
from execsafe.testing.ledger import Happened
from execsafe.testing.venue import FillStep, NewOrder, RejectReason, SimVenue, VenueReject
from execsafe.views import VenueReader

D = Decimal
T0 = EPOCH_MS
SPOT, PERP = "BTC/USDT", "BTC/USDT:USDT"
BIDS = [(59_990, 1), (59_980, 2), (59_900, 5)]
ASKS = [(60_010, 1), (60_020, 2), (60_100, 5)]


def booked(bids=BIDS, asks=ASKS, symbol=SPOT, **venue):
    venue = SimVenue(**venue)
    venue.set_book(symbol, bids, asks, T0)
    return venue


def submit(venue, side=Side.BUY, quantity="1", price=None, *, symbol=SPOT, at_ms=T0, **more):
    return venue.submit(
        NewOrder(
            symbol=symbol, side=side, quantity=D(quantity), type="limit" if price else "market",
            limit_price=price and D(price), **more,
        ),
        at_ms,
    )  # fmt: skip


def fills(order):
    return [(fill.price, fill.quantity) for fill in order.fills]


def shown(venue, depth=20, symbol=SPOT):
    book = venue.order_book(symbol, venue.now_ms, depth=depth)
    return [[(level.price, level.quantity) for level in side] for side in (book.bids, book.asks)]


# --- without a set book -------------------------------------------------------------------------------------


def test_without_a_set_book_there_is_one_deep_level_on_either_side_at_the_price():
    venue = SimVenue()

    assert shown(venue) == [[(60_000, 1_000_000)], [(60_000, 1_000_000)]]
    assert fills(submit(venue, quantity="100")) == [(60_000, 100)]


def test_a_spread_puts_bid_and_ask_beside_the_price_on_the_tick():
    """10 bps of 60,000 are 60: half on either side; takers pay it, resting orders wait for it."""
    venue = SimVenue(spread_bps=10)
    quote = venue.quotes([SPOT], T0)[SPOT]
    assert (quote.bid, quote.ask, quote.last) == (59_970, 60_030, 60_000)

    assert fills(submit(venue)) == [(60_030, 1)]
    assert fills(submit(venue, Side.SELL)) == [(59_970, 1)]
    resting = submit(venue, price="60000")
    assert resting.is_open
    venue.set_price(SPOT, "59970.01", T0 + 1)
    assert fills(venue.order(resting.venue_order_id)) == [(60_000, 1)]


def test_a_spread_is_rounded_away_from_the_price():
    quote = SimVenue(spread_bps="0.001").quotes([SPOT], T0)[SPOT]

    assert (quote.bid, quote.ask) == (D("59999.99"), D("60000.01"))


def test_post_only_is_judged_by_the_side_that_it_would_take():
    venue = SimVenue(spread_bps=10)
    assert submit(venue, price="60000", post_only=True).is_open
    with pytest.raises(VenueReject) as caught:
        submit(venue, price="60030", post_only=True)
    assert caught.value.reason is RejectReason.POST_ONLY


# --- taking -------------------------------------------------------------------------------------------------


def test_a_market_order_takes_level_by_level_and_what_it_took_is_gone():
    venue = booked()

    bought = submit(venue, quantity="2.5")

    assert fills(bought) == [(60_010, 1), (60_020, D("1.5"))]
    assert (bought.status, bought.average_price) == (OrderStatus.CLOSED, D("60016"))
    assert shown(venue)[1] == [(60_020, D("0.5")), (60_100, 5)]
    assert shown(venue)[0] == [(59_990, 1), (59_980, 2), (59_900, 5)]
    assert [entry.price for entry in venue.ledger.fills()] == [60_010, 60_020]


def test_a_market_order_that_empties_the_book_ends_with_what_it_got():
    venue = booked()

    sold = submit(venue, Side.SELL, "10")

    assert (sold.status, sold.filled_quantity) == (OrderStatus.EXPIRED, 8)
    assert shown(venue)[0] == []


@pytest.mark.parametrize("more", [{}, {"price": "59000", "time_in_force": "IOC"}])
@pytest.mark.row("S0-08")
def test_with_nobody_to_trade_with_an_order_expires_and_is_not_rejected(more):
    """ "No liquidity, no buyers" looks like this, not like a refusal for want of funds."""
    venue = booked(bids=[])

    sold = submit(venue, Side.SELL, **more)

    assert (sold.status, sold.filled_quantity) == (OrderStatus.EXPIRED, 0)
    assert venue.ledger.rejected() == []
    assert len(venue.ledger.of(None, Happened.EXPIRED)) == 1


def test_an_ioc_order_takes_to_its_limit_and_the_rest_expires():
    venue = booked()

    bought = submit(venue, quantity="5", price="60050", time_in_force="IOC")

    assert fills(bought) == [(60_010, 1), (60_020, 2)]
    assert (bought.status, bought.leaves_quantity) == (OrderStatus.EXPIRED, 0)
    assert shown(venue)[1] == [(60_100, 5)]


@pytest.mark.parametrize(("quantity", "filled"), [("3", 3), ("3.1", 0)])
def test_a_fok_order_takes_all_or_nothing(quantity, filled):
    venue = booked()

    bought = submit(venue, quantity=quantity, price="60050", time_in_force="FOK")

    assert bought.filled_quantity == filled
    assert shown(venue)[1] == ([(60_100, 5)] if filled else [(60_010, 1), (60_020, 2), (60_100, 5)])


def test_a_limit_order_takes_to_its_limit_and_the_rest_waits_for_the_next_book():
    venue = booked()
    placed = submit(venue, quantity="5", price="60050")
    assert (placed.status, placed.filled_quantity) == (OrderStatus.OPEN, 3)

    venue.set_book(SPOT, BIDS, [(60_040, "0.5"), (60_060, 9)], T0 + 1)
    assert venue.order(placed.venue_order_id).filled_quantity == D("3.5")
    venue.set_book(SPOT, BIDS, [(60_000, 9)], T0 + 2)

    ended = venue.order(placed.venue_order_id)
    assert fills(ended)[2:] == [(60_050, D("0.5")), (60_050, D("1.5"))]  # at its own limit, as a maker
    assert [fill.is_maker for fill in ended.fills] == [False, False, True, True]
    assert ended.status is OrderStatus.CLOSED
    assert shown(venue)[1] == [(60_000, D("7.5"))]


def test_a_resting_order_that_the_price_passes_fills_whatever_the_book_says():
    venue = booked()
    placed = submit(venue, price="59000")

    venue.set_price(SPOT, 58_000, T0 + 1)

    assert fills(venue.order(placed.venue_order_id)) == [(59_000, 1)]
    assert shown(venue)[1][0] == (60_010, 1)


def test_a_triggered_stop_gets_what_the_book_has():
    venue = booked(symbol=PERP)
    submit(venue, quantity="4", symbol=PERP)
    stop = submit(venue, Side.SELL, "4", symbol=PERP, trigger_price=D(58_000), reduce_only=True)
    venue.set_book(PERP, [(57_000, 1), (56_000, 2)], [], T0 + 1)

    venue.set_price(PERP, 58_000, T0 + 2)

    ended = venue.order(stop.venue_order_id)
    assert fills(ended) == [(57_000, 1), (56_000, 2)]
    assert ended.status is OrderStatus.EXPIRED
    assert venue.account.position(PERP) == 1


def test_a_reduce_only_order_takes_no_more_from_the_book_than_the_position_is():
    venue = booked(symbol=PERP)
    submit(venue, quantity="2", symbol=PERP)

    closing = submit(venue, Side.SELL, "8", symbol=PERP, reduce_only=True)

    assert closing.filled_quantity == 2
    assert shown(venue, symbol=PERP)[0] == [(59_980, 1), (59_900, 5)]
    assert venue.account.position(PERP) == 0


def test_two_exits_that_a_book_meets_together_close_no_more_than_there_is():
    venue = booked(symbol=PERP)
    submit(venue, quantity="1", symbol=PERP)
    orders = [submit(venue, Side.SELL, "1", "61000", symbol=PERP, reduce_only=True) for _ in range(2)]

    venue.set_book(PERP, [(61_000, 5)], [], T0 + 1)

    assert [venue.order(o.venue_order_id).status for o in orders] == [OrderStatus.CLOSED, OrderStatus.CANCELED]
    assert venue.account.position(PERP) == 0
    assert shown(venue, symbol=PERP)[0] == [(61_000, 4)]


def test_funds_are_checked_against_the_worst_level_that_would_be_taken():
    venue = booked(balances={"USDT": 120_030})

    with pytest.raises(VenueReject) as caught:
        submit(venue, quantity="2")
    assert caught.value.reason is RejectReason.INSUFFICIENT_FUNDS
    assert fills(submit(venue, quantity="1")) == [(60_010, 1)]
    assert venue.account.balances["USDT"] >= 0


def test_a_fill_schedule_takes_its_parts_from_the_book():
    venue = booked()
    venue.schedule_fills(SPOT, [FillStep(0, "0.5"), FillStep(1_000, "0.5")])

    placed = submit(venue, quantity="2", price="60050")
    assert fills(placed) == [(60_010, 1)]
    venue.advance(T0 + 1_000)

    assert fills(venue.order(placed.venue_order_id)) == [(60_010, 1), (60_020, 1)]


def test_a_cleared_book_is_the_deep_one_again():
    venue = booked(bids=[], asks=[])
    waiting = submit(venue, price="60000")
    assert waiting.is_open

    venue.clear_book(SPOT, T0 + 1)

    assert fills(venue.order(waiting.venue_order_id)) == [(60_000, 1)]
    assert shown(venue) == [[(60_000, 1_000_000)], [(60_000, 1_000_000)]]


@pytest.mark.parametrize(
    ("bids", "asks"), [([(100, 1)], [(100, 1)]), ([(101, 1)], [(100, 1)]), ([(0, 1)], []), ([], [(100, 0)])]
)
def test_an_impossible_book_is_refused(bids, asks):
    with pytest.raises(InvalidInput):
        SimVenue().set_book(SPOT, bids, asks)


# --- reading ------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_books_and_quotes_are_read_best_first_and_as_deep_as_asked():
    venue = booked(bids=BIDS[::-1], asks=ASKS[::-1])
    adapter = SimAdapter(venue, clock=VirtualClock())

    book = await adapter.fetch_order_book(SPOT, depth=2)
    quotes = await adapter.fetch_quotes([SPOT, PERP])

    assert book.bids == (BookLevel(price=D(59_990), quantity=D(1)), BookLevel(price=D(59_980), quantity=D(2)))
    assert book.levels(Side.BUY)[0].price == 60_010
    assert [(q.bid, q.ask, q.last) for q in quotes.values()] == [(59_990, 60_010, 60_000), (60_000, 60_000, 60_000)]


@pytest.mark.anyio
async def test_a_side_without_orders_has_no_price():
    venue = booked(bids=[])
    quote = (await SimAdapter(venue, clock=VirtualClock()).fetch_quotes([SPOT]))[SPOT]

    assert (quote.bid, quote.ask, quote.mid) == (None, 60_010, None)


@pytest.mark.anyio
async def test_a_book_may_be_shown_without_bids_although_there_are_some():
    clock, plan = VirtualClock(), FaultPlan.scripted(Strike("look_up", 1, Fault.BOOK_EMPTY))
    reader = VenueReader(SimAdapter(SimVenue(), clock=clock, plan=plan), clock=clock)
    await reader.quotes([SPOT])  # of another kind: the fault waits for a book

    first, second = [await reader.order_book(SPOT) for _ in range(2)]

    assert isinstance(first, Snapshot)
    assert (first.value.bids, len(first.value.asks)) == ((), 1)
    assert len(second.value.bids) == 1
    assert plan.fired == {Fault.BOOK_EMPTY: 1}


# --- properties ---------------------------------------------------------------------------------------------

LEVELS = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 40)), max_size=6)
LIMITS = st.one_of(st.none(), st.integers(-250, 250))
ORDERS = st.tuples(st.sampled_from(list(Side)), st.integers(1, 120), LIMITS, st.sampled_from(["GTC", "IOC", "FOK"]))


@given(LEVELS, LEVELS, ORDERS)
@settings(max_examples=1_000, deadline=None)
def test_a_taker_gets_the_best_there_is_and_nothing_is_made_or_lost(bids, asks, order):
    """Every fill is within the limit, no better level is left, and book before = book after + fills."""
    side, quantity, limit, tif = order
    venue = SimVenue()
    venue.set_book(SPOT, [(60_000 - d, q) for d, q in bids], [(60_000 + d, q) for d, q in asks], T0)
    before = shown(venue)[side is Side.BUY]
    price = None if limit is None else 60_000 + limit
    placed = submit(venue, side, D(quantity), price, time_in_force=tif)

    after = shown(venue)[side is Side.BUY]
    sign = 1 if side is Side.BUY else -1
    assert sum(q for _, q in before) == sum(q for _, q in after) + placed.filled_quantity
    assert all(price is None or sign * fill.price <= sign * price for fill in placed.fills)
    paid = [sign * fill.price for fill in placed.fills]
    assert paid == sorted(paid)
    assert not after or not paid or paid[-1] <= sign * after[0][0]
    reachable = sum(q for p, q in before if price is None or sign * p <= sign * price)
    expected = min(quantity, reachable)
    assert placed.filled_quantity == (expected if tif != "FOK" or reachable >= quantity else 0)
    rests = tif == "GTC" and price is not None and placed.filled_quantity < quantity
    assert placed.is_open is rests
