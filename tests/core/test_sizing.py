"""From a budget to a quantity: never above the budget and its tolerance, never below a minimum."""

from __future__ import annotations

import decimal
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.approval import approve
from execsafe.core.sizing import Sized, SizeLimit, SizeRejected, SizingPolicy, min_cost, size_order
from execsafe.errors import InvalidInput
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.units import Margin, Notional, Percent

pytestmark = pytest.mark.row("S3-20", "S3-21", "S3-22")

AVAX = Instrument(symbol="AVAX/USDT", step_size="0.001", min_quantity="1.0", min_notional=5)
POLICY = SizingPolicy()


def size(budget, price, *, policy=POLICY, leverage=1, **limits):
    return size_order(policy, budget, price, Instrument(symbol="X/USDT", **limits), leverage=leverage)


@pytest.mark.row("S3-23")
def test_a_budget_that_the_minimum_would_triple_is_refused_with_all_the_numbers():
    found = size_order(POLICY, Notional(6), "18.19", AVAX)
    assert isinstance(found, SizeRejected)
    assert found.reason is SizeLimit.MIN_QUANTITY
    assert (found.budget, found.allowed) == (Notional(6), Notional("6.60"))
    assert (found.quantity, found.price) == (Decimal("0.329"), Decimal("18.19"))
    assert (found.required_quantity, found.required) == (1, Notional("18.19"))
    assert (found.min_quantity, found.min_notional, found.step_size) == (1, 5, Decimal("0.001"))
    assert all(number in str(found) for number in ("0.329", "18.19", "6.6", "min_quantity", "AVAX/USDT"))
    assert "16.53636364" in found.hints[0]


@pytest.mark.row("S3-23")
def test_the_budget_that_a_hint_names_is_enough():
    found = size_order(POLICY, Notional(6), "18.19", AVAX)
    assert isinstance(size_order(POLICY, Notional("16.53636364"), "18.19", AVAX), Sized)
    assert isinstance(size_order(POLICY, Notional("16.536363"), "18.19", AVAX), SizeRejected)
    assert "3.03 times" in found.hints[1]


def test_a_quantity_is_floored_to_the_step():
    found = size(Notional(100), "18.19", step_size="0.1")
    assert (found.quantity, found.notional, found.limits) == (Decimal("5.4"), Notional("98.226"), (SizeLimit.STEP,))
    assert size(Notional(100), 25, step_size="0.1").limits == ()


def test_rounding_up_to_a_minimum_is_allowed_within_the_tolerance_only():
    assert size(Notional(10), 11, min_quantity=1, step_size="0.1").quantity == 1
    assert isinstance(size(Notional("9.99"), 11, min_quantity=1, step_size="0.1"), SizeRejected)
    strict = SizingPolicy(tolerance_ratio=0)
    assert isinstance(size(Notional(10), 11, min_quantity=1, step_size="0.1", policy=strict), SizeRejected)


def test_the_minimum_notional_is_met_on_the_step():
    """5 at 3 is 1.66…, on the step 1.7; the original forgot the tolerance on this path."""
    found = size(Notional("4.9"), 3, min_notional=5, step_size="0.1")
    assert (found.quantity, found.notional, found.limits) == (
        Decimal("1.7"), Notional("5.1"), (SizeLimit.STEP, SizeLimit.MIN_NOTIONAL)
    )  # fmt: skip
    refused = size(Notional("4.5"), 3, min_notional=5, step_size="0.1")
    assert (refused.reason, refused.required) == (SizeLimit.MIN_NOTIONAL, Notional("5.1"))


def test_one_step_may_already_be_too_much():
    found = size(Notional(6), 50_000, step_size="0.001")
    assert (found.reason, found.required, found.quantity) == (SizeLimit.STEP, Notional(50), 0)


def test_the_tolerance_is_checked_after_the_last_rounding():
    """A minimum within the tolerance whose next step is not."""
    found = size(Notional(10), 10, min_quantity="1.05", step_size="0.5")
    assert (found.reason, found.required) == (SizeLimit.MIN_QUANTITY, Notional(15))


def test_a_maximum_lowers_the_quantity_and_says_so():
    assert size(Notional(100), 1, max_quantity="50.5", step_size=1).quantity == 50
    found = size(Notional(100), 1, max_quantity=50, max_notional="20.5", step_size=1)
    assert (found.quantity, found.limits) == (20, (SizeLimit.MAX_NOTIONAL,))


def test_limits_that_contradict_each_other_are_named():
    found = size(Notional(100), 1, max_quantity=1, min_notional=5, step_size=1)
    assert (found.reason, found.max_quantity) == (SizeLimit.MAX_QUANTITY, 1)
    assert "max_quantity" in str(found)
    assert "contradict" in found.hints[0]


@pytest.mark.row("S2-35")
def test_notional_and_margin_are_not_the_same_budget():
    """6 with a leverage of 20 is a position worth 6, or one worth 120: the caller says which."""
    position = size_order(POLICY, Notional(120), "18.19", AVAX, leverage=20)
    assert position == size_order(POLICY, Margin(6), "18.19", AVAX, leverage=20)
    assert (position.quantity, position.notional) == (Decimal("6.597"), Notional("119.99943"))
    assert position.margin == Margin("5.9999715")
    assert isinstance(size_order(POLICY, Notional(6), "18.19", AVAX, leverage=20), SizeRejected)


@pytest.mark.row("S2-35")
@pytest.mark.parametrize("bad", [6, 6.0, "6", Decimal(6), None, Percent(6), Notional(0), Margin(0)])
def test_a_budget_without_its_meaning_is_refused(bad):
    with pytest.raises(InvalidInput, match="budget"):
        size(bad, 1)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), None, True])
def test_prices_and_leverage_are_numbers_above_zero(bad):
    with pytest.raises(InvalidInput):
        size(Notional(1), bad)
    with pytest.raises(InvalidInput):
        size(Notional(1), 1, leverage=bad)
    with pytest.raises(InvalidInput):
        min_cost(AVAX, bad)


def test_a_leverage_below_one_is_refused():
    with pytest.raises(InvalidInput, match="at least 1"):
        size(Margin(1), 1, leverage="0.5")


@pytest.mark.parametrize("bad", [-1, 2, float("nan"), None])
def test_a_tolerance_is_a_ratio(bad):
    with pytest.raises(InvalidInput):
        SizingPolicy(tolerance_ratio=bad)


def test_contracts_count_by_their_size():
    found = size(Notional(100), 10_000, contract_size="0.001", step_size=1)
    assert (found.quantity, found.notional) == (10, Notional(100))


def test_without_a_grid_the_budget_is_used_to_the_last_digit_that_matters():
    found = size(Notional(10), 3)
    assert found.quantity == Decimal("3.333333333333333333")
    Intent(key="k", symbol="X/USDT", side="buy", quantity=found.quantity)


def test_an_average_price_with_endless_digits_is_taken():
    average = decimal.Context(prec=28).divide(Decimal("0.00001234"), Decimal(7))
    assert isinstance(size(Notional(10), average, step_size=1), Sized)


@pytest.mark.row("S3-24")
def test_the_cost_of_the_smallest_order_is_what_to_filter_by():
    """18 a coin, sold whole, costs more than 60,000 a coin, sold in crumbs."""
    bitcoin = Instrument(symbol="BTC/USDT", step_size="0.00001", min_quantity="0.00001", min_notional=5)
    assert min_cost(AVAX, "18.19") == Notional("18.19")
    assert min_cost(bitcoin, 60_000) == Notional("5.4")
    assert min_cost(Instrument(symbol="X", step_size="0.1"), 3) == Notional("0.3")
    assert min_cost(Instrument(symbol="X"), 3) == Notional(0)


# --- What holds for every instrument -----------------------------------------------------------------

small = st.integers(1, 10**6).map(lambda n: Decimal(n) / 1000)
instruments = st.builds(
    Instrument,
    symbol=st.just("X/USDT"),
    step_size=st.none() | st.sampled_from([Decimal(text) for text in ("0.001", "0.01", "0.03", "1", "7", "100")]),
    min_quantity=st.none() | small,
    min_notional=st.none() | small,
    max_quantity=st.none() | small,
    max_notional=st.none() | small,
    contract_size=st.sampled_from([Decimal(1), Decimal("0.001"), Decimal(10)]),
)
budgets = small.map(Notional) | small.map(Margin)
tolerances = st.sampled_from([Decimal(0), Decimal("0.1"), Decimal("0.5")])


@settings(max_examples=1000, deadline=None)
@given(instruments, budgets, small, st.integers(1, 125), tolerances)
def test_a_size_is_never_above_the_budget_nor_below_a_minimum(instrument, budget, price, leverage, tolerance):
    policy = SizingPolicy(tolerance_ratio=tolerance)
    worth = budget.value * (leverage if isinstance(budget, Margin) else 1)
    with decimal.localcontext(decimal.Context(prec=3)):
        found = size_order(policy, budget, price, instrument, leverage=leverage)
    with decimal.localcontext(decimal.Context(prec=200)):
        if isinstance(found, Sized):
            check_size(found, instrument, price, leverage, worth=worth, tolerance=tolerance)
        else:
            check_rejection(found, instrument, price, worth * (1 + tolerance))


def check_size(found, instrument, price, leverage, *, worth, tolerance):
    notional = found.quantity * price * instrument.contract_size
    assert found.notional.value == notional <= worth * (1 + tolerance)
    assert found.margin.value * leverage >= notional
    assert found.quantity > 0
    # The one door to the venue agrees.
    intent = Intent(key="k", symbol="X/USDT", side="buy", quantity=found.quantity, limit_price=price)
    assert approve(intent, instrument, now_ms=0).quantity == found.quantity
    if not {SizeLimit.MIN_QUANTITY, SizeLimit.MIN_NOTIONAL} & set(found.limits) and found.limits != (SizeLimit.STEP,):
        assert notional <= worth


def check_rejection(found, instrument, price, allowed):
    """There really is no quantity that would do."""
    step = instrument.step_size or Decimal("1e-18")
    quantity = found.required_quantity
    assert quantity % step == 0
    if quantity > step:  # one step less breaks a minimum
        less = quantity - step
        assert less < (instrument.min_quantity or 0) or (
            less * price * instrument.contract_size < (instrument.min_notional or 0)
        )
    too_dear = found.required.value > allowed
    most = min(instrument.max_quantity or Decimal("1e30"), (instrument.max_notional or Decimal("1e30")) / price)
    assert (
        too_dear
        or quantity > most
        or quantity * price * instrument.contract_size > (instrument.max_notional or Decimal("1e30"))
    )
    assert found.allowed.value == allowed
