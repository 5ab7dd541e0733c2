"""Ends that no view shows: when a look may be taken for the end of an order that rested."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.core.endings import Trace, fills_of, trace
from execsafe.core.ghosts import Sighting
from execsafe.model.intent import Attempt
from execsafe.model.order import Fee, Side
from execsafe.model.position import Execution
from execsafe.model.venue import View

LISTS = (View.OPEN_ORDERS, View.CLOSED_ORDERS)
ABSENT = dict.fromkeys(View, Sighting.ABSENT)
LAG_MS = 3_000


def judged(views=LISTS, seen=None, *, at=LAG_MS, known=0, since=None):
    seen = ABSENT if seen is None else seen
    return trace(views, seen, looked_at_ms=at, known_at_ms=known, missing_since_ms=since, lag_ms=LAG_MS)


@pytest.mark.guarantee(4)
def test_g4_two_looks_a_lag_apart_prove_that_an_order_rests_no_more():
    """The first must have begun a lag after the journal last learned of it, the second a lag after the first ended."""
    assert judged(at=2_999) is Trace.UNCLEAR
    assert judged(at=3_000) is Trace.MISSING
    assert judged(at=6_400, since=3_500) is Trace.MISSING
    assert judged(at=6_499, since=3_500) is Trace.MISSING
    assert judged(at=6_500, since=3_500) is Trace.GONE


@pytest.mark.guarantee(18)
@pytest.mark.parametrize("view", LISTS)
def test_g18_one_view_that_could_not_be_read_proves_nothing(view):
    assert judged(seen={**ABSENT, view: Sighting.UNREADABLE}, at=9_999, since=0) is Trace.UNCLEAR
    assert judged(seen={}, at=9_999, since=0) is Trace.UNCLEAR


@pytest.mark.parametrize("view", LISTS)
def test_an_order_in_any_list_is_seen_whatever_the_others_say(view):
    assert judged(seen={**ABSENT, view: Sighting.PRESENT}, at=9_999, since=0) is Trace.SEEN


@pytest.mark.parametrize("views", [(), (View.CLOSED_ORDERS,), (View.TRADES,), (View.CLOSED_ORDERS, View.TRADES)])
def test_where_no_view_would_show_a_resting_order_its_absence_says_nothing(views):
    assert judged(views, at=99_999, since=0) is Trace.UNCLEAR


def test_trades_tell_what_filled_and_not_whether_the_rest_still_rests():
    """Bybit keeps the trades of an order for years, and forgets the order itself."""
    seen = {**ABSENT, View.TRADES: Sighting.PRESENT}
    assert judged((*LISTS, View.TRADES), seen, at=9_999, since=0) is Trace.GONE
    seen = {**ABSENT, View.TRADES: Sighting.UNREADABLE}
    assert judged((*LISTS, View.TRADES), seen, at=9_999, since=0) is Trace.GONE


@pytest.mark.guarantee(4, 18)
@given(
    views=st.sets(st.sampled_from(View)),
    seen=st.dictionaries(st.sampled_from(View), st.sampled_from(Sighting)),
    at=st.integers(0, 20_000),
    known=st.integers(0, 20_000),
    since=st.none() | st.integers(0, 20_000),
)
def test_g4_nothing_is_gone_but_by_two_complete_and_late_looks(views, seen, at, known, since):
    if judged(views, seen, at=at, known=known, since=since) is Trace.GONE:
        of_orders = views - {View.TRADES}
        assert of_orders & {View.CLIENT_ID, View.OPEN_ORDERS}
        assert all(seen[view] is Sighting.ABSENT for view in of_orders)
        assert at >= known + LAG_MS
        assert since is not None
        assert at >= since + LAG_MS


def test_the_fills_of_an_order_are_found_by_the_venues_id_or_by_ours():
    attempt = Attempt(number=1, client_order_id="c", quantity=Decimal(3), venue_order_id="v")
    fee = Fee(cost=Decimal("0.1"), currency="BTC")

    def execution(trade_id, **ids):
        facts = {"symbol": "BTC/USDT", "side": Side.BUY, "quantity": Decimal(1), "price": Decimal(100), "fees": (fee,)}
        return Execution(trade_id=trade_id, at_ms=7, **facts, **ids)

    listed = [
        execution("1", venue_order_id="v"),
        execution("2", client_order_id="c"),
        execution("3", venue_order_id="other", client_order_id="x"),
        execution("4"),
    ]
    found = fills_of(attempt, listed)
    assert [fill.trade_id for fill in found] == ["1", "2"]
    assert (found[0].fees, found[0].filled_at_ms, found[0].price) == ((fee,), 7, 100)
