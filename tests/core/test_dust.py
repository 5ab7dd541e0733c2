"""What is too small for any order, and what an entry must be worth so that its stop is not."""

from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from execsafe.core.dust import is_below_quantity, is_dust
from execsafe.core.opening import EntryPlan, OpeningPolicy
from execsafe.core.protection.foresight import check_stop, planned_stop
from execsafe.core.protection.record import StopRule
from execsafe.errors import InvalidInput, InvalidOrder
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.units import Percent

D = Decimal
SPOT = Instrument(symbol="X/Y", step_size="0.01", min_quantity="0.02", min_notional="5", tick_size="0.1")
PERPETUAL = Instrument(symbol="X/Y:Y", step_size="0.01", min_quantity="0.02", min_notional="5", tick_size="0.1")
POLICY = OpeningPolicy()
quantities = st.decimals("0.001", 10, places=3)
prices = st.decimals(1, 1_000, places=1)


@pytest.mark.parametrize(
    ("quantity", "price", "instrument", "expected"),
    [
        pytest.param("0.02", "250", SPOT, False, id="exactly the minimums"),
        pytest.param("0.019", "1000", SPOT, True, id="below the minimum quantity once on the step"),
        pytest.param("0.029", "200", SPOT, True, id="worth enough only with what is off the step"),
        pytest.param("0.02", "249.9", SPOT, True, id="worth too little"),
        pytest.param("0.02", None, SPOT, False, id="worth nobody knows how much"),
        pytest.param("0.02", "1", PERPETUAL, False, id="reduce-only orders may be worth any little"),
        pytest.param("0.019", None, PERPETUAL, True, id="a contract below the minimum quantity"),
    ],
)
def test_dust_is_what_no_order_can_be_made_of(quantity, price, instrument, expected):
    assert is_dust(D(quantity), None if price is None else D(price), instrument) is expected


def test_contracts_are_judged_by_their_value_where_that_is_asked_for():
    assert is_dust(D("0.02"), D(1), PERPETUAL, contracts_exempt=False)


def plan(quantity, stop, symbol="X/Y", **more) -> EntryPlan:
    return EntryPlan(key="k", symbol=symbol, side="long", quantity=quantity, stop=stop, **more)


@pytest.mark.guarantee(10)
@given(quantity=quantities, price=prices, percent=st.decimals(1, 50, places=1), fee=st.decimals(0, "0.005", places=4))
def test_g10_whatever_fee_is_taken_an_entry_that_passes_leaves_enough_for_its_stop(quantity, price, percent, fee):
    wanted = plan(quantity, StopRule(distance=Percent(percent)), limit_price=price)
    try:
        leg = planned_stop(wanted, SPOT, price, POLICY)
        check_stop(
            Intent(
                key="s", symbol="X/Y", side="sell", quantity=leg.quantity, trigger_price=leg.price, reduce_only=True
            ),
            SPOT,
            POLICY,
            now_ms=0,
        )
    except InvalidInput:
        assume(False)
    left = SPOT.floor_quantity(quantity * (1 - fee))
    assert not is_below_quantity(left, SPOT)
    assert not is_dust(left, leg.price, SPOT)


def test_a_stop_worth_just_the_minimum_is_too_close_to_it():
    stop = Intent(key="s", symbol="X/Y", side="sell", quantity="0.02", trigger_price="250", reduce_only=True)
    with pytest.raises(InvalidOrder, match=r"5\.25 is wanted"):
        check_stop(stop, SPOT, POLICY, now_ms=0)
    check_stop(stop, SPOT, OpeningPolicy(stop_margin_ratio=0), now_ms=0)


def test_the_stop_of_a_contract_is_for_all_that_is_bought_whatever_it_is_worth():
    leg = planned_stop(plan("0.02", StopRule(stop_price=1), symbol="X/Y:Y"), PERPETUAL, None, POLICY)
    assert (leg.quantity, leg.price) == (D("0.02"), D(1))


def test_a_distance_without_a_price_cannot_be_judged():
    with pytest.raises(InvalidInput, match="no price is known"):
        planned_stop(plan(1, StopRule(distance=Percent(4))), SPOT, None, POLICY)
