"""Prices and quantities on a grid, up or down, exactly."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from execsafe.model.values import EXACT, Number, to_positive

FINEST: Final = Decimal("1e-24")
"""The grid where an instrument states none: finer than any market's, and still within what is accepted as a number."""


def on_grid(value: Decimal, grid: Decimal | None, *, up: bool) -> Decimal:
    """*value* (not negative) on the multiples of *grid*; None: of ``FINEST``."""
    step = FINEST if grid is None else grid
    below = EXACT.multiply(EXACT.divide_int(value, step), step)
    return EXACT.add(below, step) if up and below < value else below


def to_average(value: Number, name: str = "price") -> Decimal:
    """A price that may be an average: its endless digits are cut at ``FINEST``.

    Averages have up to 28 digits wherever the point is, which for coins worth little are more places than are
    accepted from outside.

    Raises:
        InvalidInput: not a number above 0.
    """
    if isinstance(value, Decimal) and value.is_finite() and _places(value) > _places(FINEST) and value.adjusted() < 0:
        value = value.quantize(FINEST, rounding=ROUND_HALF_EVEN, context=EXACT)
    return to_positive(value, name)


def _places(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0
