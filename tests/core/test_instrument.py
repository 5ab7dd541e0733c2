"""Rounding is exact, on the grid, and never to the dangerous side."""

from __future__ import annotations

import decimal
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import strategies
from execsafe.errors import InvalidInput
from execsafe.model.instrument import Instrument
from execsafe.model.order import Side

WIDE = decimal.Context(prec=400)
# Bots set the context's precision for their own arithmetic; it must not leak into ours.
PRECISIONS = st.sampled_from([4, 8, 28, 60])


def is_on_grid(value: Decimal, step: Decimal) -> bool:
    return WIDE.remainder(value, step) == 0


@given(strategies.instruments(), strategies.decimals(), PRECISIONS)
@example(Instrument(symbol="x", step_size="0.1"), Decimal("0." + "2" + "9" * 28), 28)
@example(Instrument(symbol="x", step_size="3"), Decimal(123456789012345678901234567890), 28)
def test_a_quantity_is_rounded_down_by_less_than_a_step(instrument, quantity, precision):
    """Never more than asked for; on the grid; the nearest such number; and rounding again changes nothing."""
    with decimal.localcontext(prec=precision):
        rounded = instrument.floor_quantity(quantity)
        again = instrument.floor_quantity(rounded)
    assert rounded <= quantity
    assert again == rounded
    if instrument.step_size is None:
        assert rounded == quantity
    else:
        assert is_on_grid(rounded, instrument.step_size)
        assert WIDE.subtract(quantity, rounded) < instrument.step_size


@given(strategies.instruments(), strategies.decimals(), st.sampled_from(list(Side)), PRECISIONS)
def test_a_limit_price_is_rounded_to_the_safe_side_by_less_than_a_tick(instrument, price, side, precision):
    """A buy never pays more, a sell never takes less than asked."""
    with decimal.localcontext(prec=precision):
        rounded = instrument.safe_limit_price(price, side)
        again = instrument.safe_limit_price(rounded, side)
    assert again == rounded
    if instrument.tick_size is None:
        assert rounded == price
        return
    assert is_on_grid(rounded, instrument.tick_size)
    gain = WIDE.subtract(price, rounded) if side is Side.BUY else WIDE.subtract(rounded, price)
    assert 0 <= gain < instrument.tick_size


@pytest.mark.parametrize(
    ("side", "expected"), [(Side.BUY, "100.0"), (Side.SELL, "100.1")], ids=["buy rounds down", "sell rounds up"]
)
def test_a_price_between_two_ticks(side, expected):
    instrument = Instrument(symbol="BTC/USDT", tick_size="0.1")
    assert instrument.safe_limit_price(Decimal("100.07"), side) == Decimal(expected)


@given(strategies.decimals(), strategies.decimals(), strategies.decimals(digits=3, places=3), PRECISIONS)
def test_notional_is_exact(quantity, price, contract_size, precision):
    """A minimum is missed or met by the true value, not by a rounded one."""
    instrument = Instrument(symbol="x", contract_size=contract_size)
    with decimal.localcontext(prec=precision):
        notional = instrument.notional(quantity, price)
    assert notional == WIDE.multiply(WIDE.multiply(quantity, price), contract_size)


@pytest.mark.parametrize("limit", ["step_size", "tick_size", "min_quantity", "max_notional", "contract_size"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), "1e5"])
def test_a_limit_without_meaning_is_refused(limit, value):
    """Zero is not "no limit": a venue's missing value is None."""
    with pytest.raises(InvalidInput):
        Instrument(symbol="BTC/USDT", **{limit: value})
