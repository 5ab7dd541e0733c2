"""Which part of a position is taken at which target, on the venue's grid.

Rules:

1. The legs and the dust sum exactly to the position; nothing is lost to rounding.
2. Each leg is on the step; what rounding leaves over goes to the last leg. Dust is what is off the step altogether.
3. A leg below the venue's minimum joins the leg before it, the first one the leg after it. Joined legs are taken at
   the nearer target: profit is never waited for longer than planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import attrs

from execsafe.core.grid import to_average
from execsafe.errors import InvalidInput
from execsafe.model.instrument import Instrument
from execsafe.model.values import EXACT, Number, shorten, to_decimal, to_positive, total

_ZERO: Final = Decimal(0)
_ONE: Final = Decimal(1)


@attrs.frozen(kw_only=True)
class HarvestLeg:
    """One part of the position. ``target`` counts from 1: which of the targets it is taken at, and its price."""

    target: int
    quantity: Decimal
    price: Decimal


@attrs.frozen(kw_only=True)
class HarvestPlan:
    """The legs, nearest target first.

    Attributes:
        legs: at least one where the position has at least one step.
        dust: what is less than one step and cannot be ordered; 0 on the grid.
        is_below_minimum: the whole position is below a minimum of the venue; its only leg can be sent only where the
            venue exempts orders that reduce a position.
    """

    legs: tuple[HarvestLeg, ...]
    dust: Decimal
    is_below_minimum: bool = False


def check_scheme(shares: Sequence[Number]) -> tuple[Decimal, ...]:
    """The shares of a harvest scheme: none negative, exactly 1 in all.

    Raises:
        InvalidInput: anything else.
    """
    scheme = tuple(to_decimal(share, "share") for share in shares)
    if not scheme or min(scheme) < 0 or total(scheme) != 1:
        raise InvalidInput(f"shares must not be negative and must sum to 1, were {shorten([str(s) for s in scheme])}")
    return scheme


def split_harvest(
    quantity: Number, scheme: Sequence[Number], instrument: Instrument, *, prices: Sequence[Number]
) -> HarvestPlan:
    """Split a position into the legs of *scheme*.

    Args:
        quantity: what is held, in the venue's order unit.
        scheme: the share of each target, nearest first; 1 in all.
        instrument: its step and minimums.
        prices: the price of each target, for the minimum notional.

    Raises:
        InvalidInput: a quantity or price that is not above 0, a scheme that does not sum to 1, or not one price for
            each share.
    """
    held, shares = to_positive(quantity, "quantity"), check_scheme(scheme)
    targets = tuple(to_average(price) for price in prices)
    if len(targets) != len(shares):
        raise InvalidInput(f"{len(shares)} shares need as many prices, were {len(targets)}")
    sellable = instrument.floor_quantity(held)
    dust = EXACT.subtract(held, sellable)
    if sellable == 0:
        return HarvestPlan(legs=(), dust=dust, is_below_minimum=True)
    parts = [instrument.floor_quantity(EXACT.multiply(sellable, share)) for share in shares[:-1]]
    parts.append(EXACT.subtract(sellable, total(parts)))
    legs = [HarvestLeg(target=n, quantity=q, price=p) for n, (q, p) in enumerate(zip(parts, targets, strict=True), 1)]
    joined = _join(legs, instrument)
    return HarvestPlan(legs=joined, dust=dust, is_below_minimum=_is_too_small(joined[0], instrument))


def _join(legs: list[HarvestLeg], instrument: Instrument) -> tuple[HarvestLeg, ...]:
    kept: list[HarvestLeg] = []  # farthest target first
    carried = _ZERO
    for leg in reversed(legs[1:]):
        grown = attrs.evolve(leg, quantity=EXACT.add(leg.quantity, carried))
        if _is_too_small(grown, instrument):
            carried = grown.quantity
        else:
            kept.append(grown)
            carried = _ZERO
    first = attrs.evolve(legs[0], quantity=EXACT.add(legs[0].quantity, carried))
    while kept and first.quantity > 0 and _is_too_small(first, instrument):
        first = attrs.evolve(first, quantity=EXACT.add(first.quantity, kept.pop().quantity))
    nearest = (first,) if first.quantity > 0 else ()
    return (*nearest, *reversed(kept))


def _is_too_small(leg: HarvestLeg, instrument: Instrument) -> bool:
    if leg.quantity <= 0 or (instrument.min_quantity is not None and leg.quantity < instrument.min_quantity):
        return True
    notional = instrument.notional(leg.quantity, leg.price)
    return instrument.min_notional is not None and notional < instrument.min_notional
