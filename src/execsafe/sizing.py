"""PositionSizer: from a budget to a quantity that the venue takes, or to a rejection with all the numbers.

The steps and their order are in :mod:`execsafe.core.sizing`.
"""

from __future__ import annotations

from execsafe.core.sizing import (
    Sized,
    SizeLimit,
    SizeRejected,
    SizeResult,
    SizingPolicy,
    min_cost,
    size_order,
)
from execsafe.model.instrument import Instrument
from execsafe.model.units import Margin, Notional
from execsafe.model.values import Number

__all__ = [
    "Margin",
    "Notional",
    "PositionSizer",
    "SizeLimit",
    "SizeRejected",
    "SizeResult",
    "Sized",
    "SizingPolicy",
    "min_cost",
]


class PositionSizer:
    """Sizes orders; holds its policy and nothing else.

    Args:
        policy: how far a size may exceed its budget; ``SizingPolicy()`` allows 10 %.
    """

    def __init__(self, policy: SizingPolicy | None = None) -> None:
        self.policy: SizingPolicy = policy or SizingPolicy()

    def size(
        self, budget: Notional | Margin, price: Number, instrument: Instrument, *, leverage: Number = 1
    ) -> SizeResult:
        """The quantity for *budget* at *price*; see :func:`execsafe.core.sizing.size_order`.

        Raises:
            InvalidInput: a budget without its unit or of 0, a price not above 0, or a leverage below 1.
        """
        return size_order(self.policy, budget, price, instrument, leverage=leverage)

    def min_cost(self, instrument: Instrument, price: Number) -> Notional:
        """What the smallest order possible costs; see :func:`execsafe.core.sizing.min_cost`."""
        return min_cost(instrument, price)
