"""Only what keeps within its instrument's limits, and is still fresh, can be sent."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from execsafe.core.approval import approve, check_fresh, check_reduces
from execsafe.errors import InvalidOrder, TradingDenied
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Attempt, Intent, IntentRecord
from execsafe.model.order import Side

INSTRUMENT = Instrument(
    symbol="BTC/USDT",
    step_size="0.01",
    tick_size="0.1",
    min_quantity="0.02",
    max_quantity=100,
    min_price=10,
    max_price=1_000_000,
    min_notional=10,
    max_notional=1_000_000,
)


def intent(**changes) -> Intent:
    base = {"key": "k", "symbol": "BTC/USDT", "side": "buy", "quantity": 1, "limit_price": 100}
    return Intent(**{**base, **changes})


@pytest.mark.parametrize(("side", "price"), [("buy", "100.0"), ("sell", "100.1")])
def test_quantity_and_price_are_put_on_the_grid_to_the_safe_side(side, price):
    one = intent(side=side, quantity="0.159", limit_price="100.07")
    approved = approve(one, INSTRUMENT, now_ms=0)
    assert (approved.intent, approved.quantity, approved.limit_price) == (one, Decimal("0.15"), Decimal(price))


BROKEN = {
    "less than a step": ({"quantity": "0.009"}, ["0.009", "0.01"]),
    "below the minimum quantity": ({"quantity": "0.019"}, ["0.019", "0.02"]),
    "above the maximum quantity": ({"quantity": "100.01"}, ["100.01", "100"]),
    "less than a tick": ({"limit_price": "0.05"}, ["0.05", "0.1"]),
    "below the minimum price": ({"limit_price": "9.99"}, ["9.9", "10"]),
    "above the maximum price": ({"limit_price": "1000000.1", "quantity": "0.02"}, ["1000000.1", "1000000"]),
    "below the minimum value": ({"quantity": "0.02", "limit_price": "499.9"}, ["9.998", "10"]),
    "above the maximum value": ({"quantity": 100, "limit_price": "10000.1"}, ["1000010", "1000000"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_limit_is_refused_with_the_numbers(name):
    """The message says what was asked and what the limit is, so that nobody has to look it up."""
    changes, numbers = BROKEN[name]
    with pytest.raises(InvalidOrder) as caught:
        approve(intent(**changes), INSTRUMENT, now_ms=0)
    assert all(number in str(caught.value) for number in numbers), str(caught.value)
    assert caught.value.intent_key == "k"


@pytest.mark.parametrize(
    "changes",
    [
        {"quantity": "0.02", "limit_price": 500},
        {"quantity": 100, "limit_price": 10_000},
        {"quantity": "0.5", "limit_price": 1_000_000},
        {"quantity": 1, "limit_price": 10},
    ],
)
def test_an_order_exactly_at_a_limit_passes(changes):
    approve(intent(**changes), INSTRUMENT, now_ms=0)


def test_what_has_no_price_or_only_reduces_is_not_judged_by_the_minimum_value():
    """Venues exempt exits of contracts, and nothing on spot; a market order's value is not known before."""
    approve(intent(quantity="0.02", limit_price=None), INSTRUMENT, now_ms=0)
    exits = {"symbol": "BTC/USDT:USDT", "reduce_only": True}
    approve(intent(quantity="0.02", **exits), INSTRUMENT, now_ms=0)
    for too_much_or_spot in (
        {"quantity": 100, "limit_price": 20_000, **exits},
        {"quantity": "0.02", "reduce_only": True},
    ):
        with pytest.raises(InvalidOrder):
            approve(intent(side="sell", **too_much_or_spot), INSTRUMENT, now_ms=0)


def test_the_contract_size_counts_towards_the_value():
    contracts = attrs.evolve(INSTRUMENT, contract_size="0.001")
    with pytest.raises(InvalidOrder):
        approve(intent(quantity=10), contracts, now_ms=0)
    approve(intent(quantity=100), contracts, now_ms=0)


def test_an_instrument_without_limits_changes_and_refuses_nothing():
    one = intent(quantity="0.123456789", limit_price="0.000000001")
    approved = approve(one, Instrument(symbol="BTC/USDT"), now_ms=0)
    assert (approved.quantity, approved.limit_price) == (one.quantity, one.limit_price)


@given(strategies.intents.filter(lambda i: i.fresh_until_ms is None), strategies.instruments())
def test_what_is_approved_is_never_more_than_was_asked(one, instrument):
    """Not in quantity, and in price not to the caller's disadvantage."""
    try:
        approved = approve(one, instrument, now_ms=0)
    except InvalidOrder:
        return
    assert 0 < approved.quantity <= one.quantity
    if one.limit_price is not None:
        assert approved.limit_price > 0
        assert approved.limit_price <= one.limit_price or one.side is Side.SELL
        assert approved.limit_price >= one.limit_price or one.side is Side.BUY


@pytest.mark.guarantee(17)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_g17_an_entry_is_refused_from_the_millisecond_after_its_freshness(until, now):
    one = intent(fresh_until_ms=until)
    if now <= until:
        approve(one, INSTRUMENT, now_ms=now)
    else:
        with pytest.raises(TradingDenied) as caught:
            approve(one, INSTRUMENT, now_ms=now)
        assert caught.value.context["reason"] == "stale"
        assert caught.value.intent_key == "k"


@pytest.mark.guarantee(17)
def test_g17_an_exit_is_never_refused_for_age():
    check_fresh(intent(fresh_until_ms=0, reduce_only=True), now_ms=10**15)
    check_fresh(intent(fresh_until_ms=None), now_ms=10**15)


# --- Exits that are none ------------------------------------------------------------------------------------


def sold(quantity, **changes):
    facts = {"key": "sale", "symbol": "BTC/USDT", "side": "sell", "quantity": 2, **changes}
    of = Intent(**facts)
    attempt = Attempt(number=1, client_order_id="c", quantity=of.quantity, filled_quantity=Decimal(quantity))
    return IntentRecord(intent=of, quantity=of.quantity, attempts=(attempt,))


@pytest.mark.guarantee(12)
def test_g12_a_spot_purchase_is_an_exit_only_as_far_as_it_buys_back_what_was_sold():
    """No venue holds it to anything: what merely calls itself reduce-only would pass every check made for entries."""
    back = Intent(key="k", symbol="BTC/USDT", side="buy", quantity=1, reduce_only=True)
    for undoes in ((), (sold("0.9"),), (sold(1, symbol="ETH/USDT"),), (sold(1, account="b"),), (sold(1, side="buy"),)):
        with pytest.raises(InvalidOrder, match="reduces nothing"):
            check_reduces(back, undoes)
    check_reduces(back, [sold("0.4"), sold("0.6")])


@pytest.mark.parametrize("changes", [{"side": "sell"}, {"symbol": "BTC/USDT:USDT"}, {"reduce_only": False}])
def test_what_the_venue_or_the_balance_bounds_is_not_asked(changes):
    check_reduces(
        Intent(**{"key": "k", "symbol": "BTC/USDT", "side": "buy", "quantity": 1, "reduce_only": True, **changes}), ()
    )
