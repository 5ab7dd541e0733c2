"""What an exit asks of its surroundings, besides the venue: approval, and somebody to reconcile with."""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

import attrs

from execsafe.core.exits import ExitReason
from execsafe.model.intent import ErrorFacts
from execsafe.model.position import PositionKey


@attrs.frozen(kw_only=True)
class MarketRequest:
    """A market order that wants approval: the price ladder is spent and the position is still open.

    Attributes:
        key, position_id: which position.
        quantity: how much would be sold (or bought, for a short), in the venue's order unit.
        reason: why the position is being closed.
        since_ms: since when nothing could be closed, Unix ms.
        attempts: orders of this exit so far.
    """

    key: PositionKey
    position_id: str
    quantity: Decimal
    reason: ExitReason
    since_ms: int
    attempts: int


class ApprovalGate(Protocol):
    """Who may allow a market order: a person, or a rule."""

    async def approve(self, request: MarketRequest) -> bool:
        """Whether this order may go out at any price. Raising and taking too long mean no."""
        ...


class DenyMarket:
    """Never allows a market order. The default."""

    async def approve(self, request: MarketRequest) -> bool:  # noqa: ARG002 - whatever is asked
        """No."""
        return False


@attrs.frozen(kw_only=True)
class PositionMismatch:
    """The venue holds less than the book says.

    Attributes:
        key, position_id: which position.
        position_quantity: what the book says is held.
        venue_quantity: what the venue says; None where it only refused an order.
        error: the refusal, where there was one.
        at_ms: Unix ms.
    """

    key: PositionKey
    position_id: str
    position_quantity: Decimal
    venue_quantity: Decimal | None
    error: ErrorFacts | None
    at_ms: int

    @property
    def is_phantom(self) -> bool:
        """Whether the venue says that nothing is held at all."""
        return self.venue_quantity is not None and self.venue_quantity <= 0


class MismatchHandler(Protocol):
    """Who finds out why book and venue differ. The exit itself only reads again and sells less, never more."""

    async def reconcile(self, mismatch: PositionMismatch) -> object:
        """Compare, and correct the book where there is evidence. May raise; the exit rests and asks again later."""
        ...
