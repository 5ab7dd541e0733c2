"""A position is split on the venue's grid, and nothing is lost on the way."""

from __future__ import annotations

import decimal
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.harvest import split_harvest
from execsafe.errors import InvalidInput
from execsafe.model.instrument import Instrument

SCHEME = ("0.4", "0.4", "0.2")


def split(quantity, scheme=SCHEME, *, prices=(1, 1, 1), **limits):
    return split_harvest(quantity, scheme, Instrument(symbol="SOON/USDT", **limits), prices=prices)


def legs(plan):
    return [(leg.target, leg.quantity) for leg in plan.legs]


def test_the_remainder_of_rounding_goes_to_the_last_leg():
    """Rounded down one by one, 36.06 became 36.05."""
    plan = split("36.06", step_size="0.01")
    assert legs(plan) == [(1, Decimal("14.42")), (2, Decimal("14.42")), (3, Decimal("7.22"))]
    assert plan.dust == 0


def test_what_is_off_the_step_is_dust():
    """A fee taken in the coin itself leaves such a position."""
    plan = split("36.04197", step_size="0.01")
    assert sum(leg.quantity for leg in plan.legs) == Decimal("36.04")
    assert plan.dust == Decimal("0.00197")
    assert split("0.009", step_size="0.01").legs == ()
    assert split("0.009", step_size="0.01").is_below_minimum


def test_six_dollars_cannot_be_sold_in_three_parts():
    plan = split(6, min_notional=5)
    assert legs(plan) == [(1, 6)]
    assert not plan.is_below_minimum


def test_a_leg_below_the_minimum_joins_the_nearer_one():
    assert legs(split(20, min_notional=5)) == [(1, 8), (2, 12)]
    assert legs(split(20, ("0.2", "0.2", "0.6"), min_notional=5)) == [(1, 8), (3, 12)]


def test_a_first_leg_below_the_minimum_takes_the_next_one_in():
    assert legs(split(20, ("0.2", "0.5", "0.3"), min_notional=5)) == [(1, 14), (3, 6)]
    assert legs(split(20, ("0.2", "0.5", "0.3"), min_notional=15)) == [(1, 20)]


def test_a_position_below_the_minimum_is_one_leg_and_says_so():
    plan = split(4, min_notional=5)
    assert legs(plan) == [(1, 4)]
    assert plan.is_below_minimum


def test_the_minimum_quantity_counts_too():
    assert legs(split(8, min_quantity=3, step_size=1)) == [(1, 3), (2, 5)]


def test_a_leg_is_valued_at_its_own_target():
    """A short's far target is worth less."""
    assert legs(split(15, prices=(1, 1, 1), min_notional=3)) == [(1, 6), (2, 6), (3, 3)]
    assert legs(split(15, prices=(1, "0.95", "0.9"), min_notional=3)) == [(1, 6), (2, 9)]


def test_a_target_without_a_share_has_no_leg():
    assert legs(split(10, (0, "0.5", "0.5"))) == [(2, 5), (3, 5)]
    assert legs(split(10, ("0.5", "0.5", 0))) == [(1, 5), (2, 5)]


@pytest.mark.parametrize("bad", [
    {"quantity": 0}, {"quantity": "nan"}, {"scheme": ("0.5", "0.4")}, {"scheme": ()}, {"prices": (1, 1)},
    {"prices": (1, 1, 0)},
])  # fmt: skip
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(InvalidInput):
        split(**{"quantity": 1, **bad})


schemes = st.tuples(st.integers(0, 500), st.integers(0, 500)).map(
    lambda parts: (Decimal(parts[0]) / 1000, Decimal(parts[1]) / 1000, 1 - Decimal(sum(parts)) / 1000)
)


@settings(max_examples=1000, deadline=None)
@given(
    held=st.integers(1, 10**7).map(lambda n: Decimal(n) / 10_000),
    scheme=schemes,
    step=st.sampled_from([None, Decimal("0.001"), Decimal("0.01"), Decimal("0.03"), Decimal(1), Decimal(7)]),
    least=st.none() | st.integers(1, 100).map(Decimal),
    worth=st.none() | st.integers(1, 100).map(Decimal),
    prices=st.lists(st.integers(50, 150).map(lambda n: Decimal(n) / 100), min_size=3, max_size=3),
)
def test_legs_and_dust_sum_to_the_position_and_every_leg_can_be_ordered(*, held, scheme, step, least, worth, prices):
    instrument = Instrument(symbol="X/USDT", step_size=step, min_quantity=least, min_notional=worth)
    with decimal.localcontext(decimal.Context(prec=3)):
        plan = split_harvest(held, scheme, instrument, prices=prices)
    assert sum(leg.quantity for leg in plan.legs) + plan.dust == held
    assert 0 <= plan.dust < (step or Decimal("1e-18"))
    assert [leg.target for leg in plan.legs] == sorted({leg.target for leg in plan.legs})
    for leg in plan.legs:
        assert leg.quantity > 0
        assert step is None or leg.quantity % step == 0
        fits = leg.quantity >= (least or 0) and leg.quantity * leg.price >= (worth or 0)
        assert fits or (plan.is_below_minimum and len(plan.legs) == 1)
