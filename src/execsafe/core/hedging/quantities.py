"""How much: exact arithmetic of ratios, steps and minimums. Fractions inside, Decimals outside."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Final

from execsafe.model.instrument import Instrument
from execsafe.model.order import ZERO
from execsafe.model.values import EXACT, plain

_PLACES: Final = 60
_FINEST_STEP: Final = Decimal("1e-18")  # where the venue states none; finer than any of them takes


def exact_decimal(value: Fraction) -> Decimal:
    """*value* as a Decimal: exact if it has at most 60 decimal places, else cut there towards zero."""
    scaled = abs(value.numerator) * 10**_PLACES // value.denominator
    number = Decimal(plain(EXACT.scaleb(Decimal(scaled), -_PLACES)))
    return EXACT.minus(number) if value < 0 else number


def wanted(*, leg_quantity: Decimal, lead_quantity: Decimal, lead_held: Decimal, carried: Decimal = ZERO) -> Fraction:
    """What a hedge leg should hold: ``leg_quantity × lead_held / lead_quantity + carried``.

    Below 0 when more was carried over against its direction than this trade needs.
    """
    return Fraction(leg_quantity) * Fraction(lead_held) / Fraction(lead_quantity) + Fraction(carried)


def hedge_target(want: Fraction, instrument: Instrument) -> Decimal:
    """*want* rounded down to the step, at least 0: never more than wanted, and less than one step below it."""
    step = instrument.step_size or _FINEST_STEP
    return EXACT.multiply(Decimal(max(want, Fraction(0)) // Fraction(step)), step)


def residual_of(want: Fraction, held: Decimal) -> Decimal:
    """What is wanted and not held; negative: held beyond it."""
    return exact_decimal(want - Fraction(held))


def up_to_step(quantity: Fraction, instrument: Instrument) -> Decimal:
    """*quantity* rounded up to the step."""
    below = hedge_target(quantity, instrument)
    return below if Fraction(below) == quantity else EXACT.add(below, instrument.step_size or _FINEST_STEP)


def is_placeable(
    instrument: Instrument, quantity: Decimal, price: Decimal | None, *, reduce_only: bool = False
) -> bool:
    """Whether an order of *quantity* meets the minimums.

    The value is judged where a price is known; reduce-only orders are exempt from it, as at the venues.
    """
    if quantity <= 0 or (instrument.min_quantity is not None and quantity < instrument.min_quantity):
        return False
    if instrument.min_notional is None or price is None or reduce_only:
        return True
    return instrument.notional(quantity, price) >= instrument.min_notional


def at_most(instrument: Instrument, quantity: Decimal) -> Decimal:
    """*quantity*, capped at what one order may have."""
    return quantity if instrument.max_quantity is None else min(quantity, instrument.max_quantity)
