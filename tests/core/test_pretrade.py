"""What is asked before an entry goes out: each refusal has its reason and its numbers."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.exposure import worst_case
from execsafe.core.pretrade import (
    DepthGuard,
    ExposureLimits,
    Pending,
    PreTradePolicy,
    PriceBand,
    RateLimit,
    SpreadGuard,
    exposure_finding,
    feed_finding,
    judge_book,
    order_finding,
    pending_of,
    take_token,
    worst_exposure,
)
from execsafe.core.safety import DenyReason
from execsafe.errors import InvalidInput
from execsafe.model.intent import Attempt, AttemptState, Intent, IntentRecord, IntentState
from execsafe.model.order import Side
from execsafe.model.position import BookLevel, OrderBook, Position, PositionSide
from execsafe.model.units import Bps, Percent

T0 = 1_700_000_000_000


def book(bid="99.95", ask="100.05", quantity="10", **more) -> OrderBook:
    def side(price):
        return () if price is None else (BookLevel(price=Decimal(price), quantity=Decimal(quantity)),)

    return OrderBook(symbol="BTC/USDT", bids=side(bid), asks=side(ask), **more)


def intent(**changes) -> Intent:
    return Intent(**{"key": "k", "symbol": "BTC/USDT", "side": "buy", "quantity": 1, "limit_price": 100, **changes})


# --- Spread -------------------------------------------------------------------------------------------------


@pytest.mark.row("S3-34", "S0-24")
@pytest.mark.parametrize(
    ("bid", "ask", "warns", "blocks"),
    [
        ("99.95", "100.05", False, False),  # exactly 0.10 %
        ("99.945", "100.055", True, False),  # the 0.11 % that was only logged
        ("99.75", "100.25", True, False),  # exactly 0.50 %
        ("99.749", "100.251", False, True),
    ],
)
def test_the_spread_is_warned_of_above_010_and_blocks_above_050_percent_of_the_middle(bid, ask, warns, blocks):
    found = SpreadGuard().judge(book(bid, ask))
    assert (found.warning, found.reason) == (warns, DenyReason.SPREAD if blocks else None)
    assert found.numbers["spread_ratio"]
    if warns or blocks:
        assert "%" in found.message


@pytest.mark.row("S3-34")
def test_the_block_is_configurable():
    wide = book("99.945", "100.055")
    assert SpreadGuard(block=Percent("0.10")).judge(wide).reason is DenyReason.SPREAD
    assert SpreadGuard(block=None).judge(book("50", "150")).reason is None
    with pytest.raises(InvalidInput):
        SpreadGuard(warn=Bps(20), block=Bps(10))
    with pytest.raises(InvalidInput):
        SpreadGuard(warn=0.001)


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 10**9), st.integers(0, 10**9), st.integers(1, 10_000))
def test_the_spread_is_judged_exactly(bid, gap, block_bps):
    """Against fractions: no rounding on the edge lets one through."""
    guard = SpreadGuard(warn=Bps(1), block=Bps(block_bps))
    ratio = Fraction(gap) / (Fraction(2 * bid + gap) / 2)
    found = guard.judge(book(str(bid), str(bid + gap)))
    assert (found.reason is DenyReason.SPREAD) == (ratio > Fraction(block_bps, 10_000))


@pytest.mark.guarantee(12)
@pytest.mark.parametrize("empty", [book(bid=None), book(ask=None), book("101", "100")], ids=["bid", "ask", "crossed"])
def test_g12_a_book_that_says_nothing_refuses(empty):
    found = SpreadGuard().judge(empty)
    assert found.reason is DenyReason.NO_READING
    if not (empty.bids and empty.asks):
        assert DepthGuard().judge(intent(), empty).reason is DenyReason.NO_READING
        assert PriceBand().judge(intent(), empty).reason is DenyReason.NO_READING


# --- Depth, band, feed --------------------------------------------------------------------------------------


@pytest.mark.row("S0-24")
def test_the_book_must_hold_the_order_near_the_middle_on_both_sides():
    thin_exit = attrs.evolve(book(), bids=(BookLevel(price=Decimal("99.95"), quantity=Decimal("0.9")),))
    assert DepthGuard().judge(intent(), book()).reason is None
    assert DepthGuard().judge(intent(quantity=11), book()).reason is DenyReason.DEPTH
    found = DepthGuard().judge(intent(), thin_exit)
    assert found.reason is DenyReason.DEPTH
    assert found.numbers == {"entry_depth": "10", "exit_depth": "0.9", "need": "1"}
    assert DepthGuard(exit_side=False).judge(intent(), thin_exit).reason is None
    assert DepthGuard(coverage=11).judge(intent(), book()).reason is DenyReason.DEPTH


@pytest.mark.row("S0-24")
def test_what_is_offered_far_away_does_not_count():
    far = attrs.evolve(book(quantity="0.5"))
    far = attrs.evolve(far, asks=(*far.asks, BookLevel(price=Decimal("100.51"), quantity=Decimal(100))))
    guard = DepthGuard(exit_side=False)
    assert guard.judge(intent(), far).reason is DenyReason.DEPTH
    near = attrs.evolve(far, asks=(*far.asks, BookLevel(price=Decimal("100.5"), quantity=Decimal("0.5"))))
    assert guard.judge(intent(), near).reason is None


@pytest.mark.parametrize(
    ("changes", "both", "refused"),
    [
        ({"limit_price": 105}, False, False),
        ({"limit_price": "105.01"}, False, True),
        ({"limit_price": 1_000}, False, True),
        ({"limit_price": 10}, False, False),  # a ladder far below
        ({"limit_price": 10}, True, True),
        ({"side": "sell", "limit_price": 95}, False, False),
        ({"side": "sell", "limit_price": "94.99"}, False, True),
        ({"side": "sell", "limit_price": 1_000}, True, True),
        ({"limit_price": None}, False, False),
        ({"limit_price": 121, "trigger_price": 120}, False, False),  # a stop is judged by its own trigger
        ({"limit_price": 150, "trigger_price": 120}, False, True),
    ],
)
def test_a_price_that_only_a_fat_finger_types_is_refused(changes, both, refused):
    found = PriceBand(both_sides=both).judge(intent(**changes), book())
    assert (found.reason is DenyReason.PRICE_BAND) == refused


@pytest.mark.row("S3-17", "X-05")
@pytest.mark.parametrize(("age_ms", "passes"), [(0, True), (5_000, True), (5_001, False), (-5_001, False)])
def test_a_price_too_old_or_from_the_future_is_no_price(age_ms, passes):
    assert (feed_finding(age_ms, 5.0).reason is None) == passes
    assert feed_finding(None, 5.0).reason is DenyReason.NO_READING


def test_everything_the_book_says_is_said_with_its_numbers():
    found = judge_book(PreTradePolicy(), intent(), book(), age_ms=100)
    assert [f.check for f in found] == ["feed", "spread", "depth", "price_band"]
    assert all(f.reason is None and f.numbers for f in found)
    none = PreTradePolicy(spread=None, depth=None, band=None)
    assert not none.needs_book


# --- Rate ---------------------------------------------------------------------------------------------------


def test_a_bucket_gives_its_tokens_at_once_and_then_one_by_one():
    limit, full = RateLimit(orders=3, per_s=3.0), 0
    for _ in range(3):
        full, wait_ms = take_token(limit, full, now_ms=T0)
        assert wait_ms == 0
    assert take_token(limit, full, now_ms=T0) == (full, 1_000)
    assert take_token(limit, full, now_ms=T0 + 999)[1] == 1
    assert take_token(limit, full, now_ms=T0 + 1_000)[1] == 0


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5_000), st.lists(st.integers(-500, 2_000), max_size=60))
def test_no_window_ever_sees_more_than_the_bucket_and_its_refill(orders, per_ms, pauses):
    """In any span of time: at most a full bucket, and what was refilled meanwhile. Clocks may step back."""
    limit, full, now_ms, taken = RateLimit(orders=orders, per_s=per_ms / 1000), 0, T0, []
    for pause in pauses:
        now_ms += pause
        full, wait_ms = take_token(limit, full, now_ms=now_ms)
        if wait_ms == 0:
            taken.append(now_ms)
        else:
            assert take_token(limit, full, now_ms=now_ms + wait_ms)[1] == 0
    high = 0
    marks = [high := max(high, at) for at in taken]  # a step back gives nothing away
    for i in range(len(marks)):
        for j in range(i, len(marks)):
            assert j - i + 1 <= orders + Fraction((marks[j] - marks[i]) * orders, per_ms)


# --- Exposure -----------------------------------------------------------------------------------------------


def record(state=IntentState.LIVE, attempt=AttemptState.LIVE, filled="0", **changes) -> IntentRecord:
    one = intent(**changes)
    tried = Attempt(
        number=1, client_order_id="c", quantity=one.quantity, state=attempt, filled_quantity=Decimal(filled)
    )
    return IntentRecord(intent=one, quantity=one.quantity, attempts=(tried,), state=state)


def position(quantity, side=PositionSide.LONG, symbol="BTC/USDT") -> Position:
    return Position(account="default", symbol=symbol, side=side, quantity=Decimal(quantity))


@pytest.mark.parametrize(
    ("one", "adds"),
    [
        (record(), "1"),
        (record(filled="0.4"), "0.6"),
        (record(IntentState.IN_DOUBT, AttemptState.IN_DOUBT), "1"),
        (record(IntentState.UNRESOLVED, AttemptState.UNRESOLVED), "1"),
        (record(IntentState.RECORDED, AttemptState.ABSENT), "1"),
        (record(IntentState.CANCELED, AttemptState.CANCELED, filled="0.4"), None),
        (record(reduce_only=True), None),
    ],
)
def test_what_an_open_intent_may_still_add_counts_and_a_doubt_counts_in_full(one, adds):
    found = pending_of(one)
    assert (found and found.quantity) == (adds and Decimal(adds))


_POSITIONS = st.builds(position, st.integers(1, 9).map(str), st.sampled_from(PositionSide), st.sampled_from("AB"))
_PENDING = st.builds(
    lambda symbol, side, quantity: Pending(symbol=symbol, side=side, quantity=Decimal(quantity)),
    st.sampled_from("AB"),
    st.sampled_from(Side),
    st.integers(1, 9),
)


@pytest.mark.guarantee(1)
@settings(max_examples=1000, deadline=None)
@given(
    st.lists(_POSITIONS, max_size=2, unique_by=lambda p: p.symbol),
    st.lists(_PENDING, max_size=6),
    st.data(),
)
def test_g1_no_choice_of_fills_ends_above_the_worst_exposure(positions, pending, data):
    worst = worst_exposure(positions, pending)
    held = {p.symbol: p.signed_quantity for p in positions}
    for item in pending:
        filled = data.draw(st.integers(0, int(item.quantity)))
        held[item.symbol] = held.get(item.symbol, Decimal(0)) + (filled if item.side is Side.BUY else -filled)
    assert all(abs(quantity) <= worst[symbol] for symbol, quantity in held.items())


def test_the_worst_case_is_the_registrys_own():
    one = record(IntentState.IN_DOUBT, AttemptState.IN_DOUBT, filled="0.25")
    assert worst_case(one) == one.filled_quantity + pending_of(one).quantity


def test_each_bound_is_inclusive_and_names_itself():
    limits = ExposureLimits(max_order_notional=100, max_symbol_notional=200, max_gross_notional=300)
    assert order_finding(limits, Decimal(100)).reason is None
    assert order_finding(limits, Decimal("100.01")).reason is DenyReason.ORDER_NOTIONAL
    assert exposure_finding(limits, "A", {"A": Decimal(200), "B": Decimal(100)}).reason is None
    assert exposure_finding(limits, "A", {"A": Decimal("200.01")}).reason is DenyReason.SYMBOL_EXPOSURE
    gross = exposure_finding(limits, "A", {"A": Decimal(200), "B": Decimal("100.01")})
    assert gross.reason is DenyReason.GROSS_EXPOSURE
    assert gross.numbers == {"symbol_notional": "200", "gross_notional": "300.01"}
    assert not ExposureLimits(max_order_notional=1).needs_exposure
    with pytest.raises(InvalidInput):
        ExposureLimits(max_order_notional=0)
