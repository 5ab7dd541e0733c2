"""A number with a unit cannot be taken for a number with another one."""

from __future__ import annotations

import copy
import decimal
import operator
import pickle
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.errors import InvalidInput
from execsafe.model.units import (
    Bps,
    Margin,
    MarginReturn,
    Notional,
    Percent,
    PriceFraction,
    share_validator,
    to_margin_return,
    to_price_fraction,
)
from execsafe.stores import codec

pytestmark = pytest.mark.row("D-14", "S2-32")

SHARES = [PriceFraction, Percent, Bps]
numbers = st.builds(
    lambda digits, places: Decimal(digits).scaleb(-places, decimal.Context(prec=60)),
    st.integers(-(10**24), 10**24),
    st.integers(0, 30),
)


@settings(max_examples=1000, deadline=None)
@given(numbers, st.sampled_from(SHARES), st.permutations(["as_fraction", "as_percent", "as_bps"]))
def test_conversions_lose_nothing_in_whatever_order(number, share, ways):
    """Also when the bot works with three digits."""
    with decimal.localcontext(decimal.Context(prec=3)):
        one = share(number)
        back = one
        for way in ways:
            back = getattr(back, way)()
        home = {PriceFraction: "as_fraction", Percent: "as_percent", Bps: "as_bps"}[share]
        assert getattr(back, home)() == one
        assert one.as_fraction().value * 0 == 0
    exact = decimal.Context(prec=100)
    assert exact.multiply(one.as_fraction().value, Decimal(100)) == one.as_percent().value
    assert exact.multiply(one.as_percent().value, Decimal(100)) == one.as_bps().value


@pytest.mark.parametrize("text", ["1e-40", "9.9e25", "0", "-0", "1e25"])
def test_whatever_one_unit_holds_the_others_hold_too(text):
    fraction = PriceFraction(Decimal(text))
    assert fraction.as_percent().as_bps().as_fraction() == fraction == fraction.as_bps().as_percent().as_fraction()


def test_the_same_share_in_three_units():
    assert Percent(1).as_fraction() == PriceFraction("0.01")
    assert Percent(1).as_bps() == Bps(100)
    assert Bps(5).as_percent() == Percent("0.05")


@pytest.mark.parametrize("op", [operator.add, operator.sub, operator.lt, operator.le, operator.gt, operator.ge])
@pytest.mark.parametrize("other", [Bps(1), PriceFraction(1), MarginReturn(1), Notional(1), 1, 1.0, Decimal(1)])
def test_arithmetic_and_order_stay_within_a_type(op, other):
    with pytest.raises(TypeError):
        op(Percent(1), other)
    with pytest.raises(TypeError):
        op(other, Percent(1))


def test_within_a_type_arithmetic_is_exact():
    with decimal.localcontext(decimal.Context(prec=2)):
        assert Percent("1.2345") + Percent("0.00005") == Percent("1.23455")
        assert Percent("1.2345") - Percent("0.00005") == Percent("1.23445")
        assert -Percent("1.2345") == Percent("-1.2345") < Percent("1.2345") == abs(Percent("-1.2345"))


def test_different_units_are_never_equal():
    assert Percent(1) != PriceFraction("0.01")
    assert Notional(1) != Margin(1)
    assert len({Percent(1), PriceFraction(1), Bps(1), MarginReturn(1)}) == 4


def test_floats_enter_by_their_text():
    assert Percent(0.1).value == Decimal("0.1")
    assert PriceFraction(0.847247979309735).value == Decimal("0.847247979309735")


@pytest.mark.parametrize("kind", [*SHARES, MarginReturn, Notional, Margin])
@pytest.mark.parametrize(
    "bad",
    [
        float("nan"),
        float("inf"),
        Decimal("nan"),
        Decimal("-inf"),
        Decimal("sNaN"),
        "nan",
        "1e5",
        True,
        None,
        [],
        "1e999",
    ],
)
def test_what_is_no_finite_number_is_refused(kind, bad):
    with pytest.raises(InvalidInput):
        kind(bad)


@pytest.mark.parametrize("kind", [*SHARES, MarginReturn, Notional, Margin])
@pytest.mark.parametrize("bad", [Decimal("1e-200"), Decimal("1e99")])
def test_what_no_market_has_is_refused(kind, bad):
    with pytest.raises(InvalidInput, match="out of range"):
        kind(bad)


def test_a_bare_number_has_no_unit():
    with pytest.raises(InvalidInput, match=r"Percent\(2\)"):
        to_price_fraction(0.02)
    assert to_price_fraction(Percent(2)) == to_price_fraction(Bps(200)) == PriceFraction("0.02")


def test_text_comes_from_the_type():
    """The original printed 84.725 % for a target of 0.847 %, and 0.020 % for a stop of 2 %."""
    target, stop = Percent(0.847247979309735), PriceFraction("0.02")
    assert (f"{target:.3f}", f"{target.as_fraction():.3f}", f"{stop:.3f}") == ("0.847 %", "0.847 %", "2.000 %")
    assert (str(target), str(target.as_fraction()), str(target.as_bps())) == (
        "0.84724798 %",
        "0.84724798 %",
        "84.724798 bps",
    )
    assert (str(PriceFraction(0)), str(Percent(100)), str(Bps("2.50"))) == ("0 %", "100 %", "2.5 bps")
    assert repr(target) == "Percent('0.847247979309735')"
    assert (str(MarginReturn("0.05")), f"{MarginReturn('0.05'):.1f}") == ("5 % of margin", "5.0 % of margin")
    assert (str(Notional("6.60")), f"{Margin(6):.2f}", str(Margin(6)), f"{Notional(6):.1f}") == (
        "6.6",
        "6.00",
        "6",
        "6.0",
    )
    assert (repr(Notional(6)), repr(Margin("0.5"))) == ("Notional('6')", "Margin('0.5')")
    assert float(target) == 0.847247979309735


def test_a_return_on_margin_is_not_a_share_of_the_price():
    """0.847 % of the price is 16.9 % of the margin at 20x; read as a fraction it would be 1,694 %."""
    assert Percent(0.847247979309735).roe(20) == MarginReturn("0.169449595861947")
    assert str(PriceFraction(0.847247979309735).roe(20)).startswith("1694.4")
    assert to_margin_return(0.05) == to_margin_return(MarginReturn("0.05")) == MarginReturn("0.05")
    with pytest.raises(InvalidInput, match="roe"):
        to_margin_return(Percent(5))
    for leverage in (0, -1, float("nan")):
        with pytest.raises(InvalidInput):
            Percent(1).roe(leverage)


def test_a_share_of_a_price_is_exact():
    with decimal.localcontext(decimal.Context(prec=2)):
        assert Percent("0.5").of(Decimal("18.19")) == Decimal("0.09095")


@pytest.mark.row("S2-35")
def test_margin_times_leverage_is_notional():
    assert Margin(6).at(20) == Notional(120)
    with pytest.raises(InvalidInput):
        Margin(6).at(0)
    with pytest.raises(InvalidInput):
        Notional(-1)


def test_a_validator_names_the_field_and_both_bounds():
    field = type("Field", (), {"name": "callback"})
    check = share_validator(least=Decimal(0), most=Decimal("0.5"), above=True)
    check(None, field, None)
    check(None, field, Percent(50))
    with pytest.raises(InvalidInput, match="callback must be above 0 % to 50 %, was 0 %"):
        check(None, field, PriceFraction(0))
    with pytest.raises(InvalidInput, match="50"):
        check(None, field, Percent(51))
    share_validator(least=Decimal(0), most=Decimal(1))(None, field, Bps(0))


@pytest.mark.parametrize(
    "value", [Percent("1.5"), PriceFraction("-0.01"), Bps(3), MarginReturn(1), Notional(6), Margin(7)]
)
def test_units_copy_pickle_and_stay_frozen(value):
    assert copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value
    with pytest.raises(AttributeError):
        value.value = Decimal(2)


def test_units_are_stored_with_what_holds_them():
    codec.register(Percent)
    assert codec.decode(codec.encode(Percent("1.5"))) == Percent("1.5")
