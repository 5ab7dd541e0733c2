"""Orders as the venue knows them: requests that go out, reports and fills that come back."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import attrs

from execsafe.model.values import EMPTY_PARAMS, Params

ZERO = Decimal(0)


class Side(enum.StrEnum):
    """Direction of an order."""

    BUY = "buy"
    SELL = "sell"

    @property
    def opposite(self) -> Side:
        """The other side."""
        return Side.SELL if self is Side.BUY else Side.BUY


class OrderStatus(enum.StrEnum):
    """What a venue says about an order. Quantities, never the status, are the truth about fills."""

    OPEN = "open"
    CLOSED = "closed"  # ended with whatever filled_quantity says
    CANCELED = "canceled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    UNKNOWN = "unknown"  # the report proves that the order exists, not what became of it

    @property
    def is_terminal(self) -> bool:
        """Whether the order can no longer fill, according to this report."""
        return self not in {OrderStatus.OPEN, OrderStatus.UNKNOWN}


@attrs.frozen(kw_only=True)
class Fee:
    """A fee charged (positive) or rebated (negative), in *currency*."""

    cost: Decimal
    currency: str


@attrs.frozen(kw_only=True)
class Fill:
    """One execution. ``trade_id`` is the venue's; the same id is the same fill."""

    trade_id: str
    quantity: Decimal
    price: Decimal
    fees: tuple[Fee, ...] = ()
    filled_at_ms: int | None = None


@attrs.frozen(kw_only=True)
class OrderRequest:
    """Exactly what goes to the venue for one attempt.

    ``deadline_ms`` (Unix ms, our clock) is the journalled instant after which it can no longer be accepted, None
    where the venue can enforce none. ``expires_in_ms`` is what is left of it when the venue takes a deadline in the
    request: a duration, because the clock that signs and the venue's own are not ours.
    """

    symbol: str
    side: Side
    type: str
    quantity: Decimal
    client_order_id: str
    limit_price: Decimal | None = None
    time_in_force: str | None = None
    post_only: bool = False
    reduce_only: bool = False
    trigger_price: Decimal | None = None
    deadline_ms: int | None = None
    expires_in_ms: int | None = None
    params: Params = EMPTY_PARAMS


@attrs.frozen(kw_only=True)
class OrderReport:
    """What one reading of the venue said about one order.

    ``filled_quantity`` is cumulative; None means that the reading did not state it, as with ``trigger_price`` and
    ``reduce_only`` (which listings of open orders state). ``raw`` is the venue client's own structure, for display
    only: it is never journalled nor compared.
    """

    symbol: str
    status: OrderStatus = OrderStatus.UNKNOWN
    client_order_id: str | None = None
    venue_order_id: str | None = None
    side: Side | None = None
    quantity: Decimal | None = None
    filled_quantity: Decimal | None = None
    average_price: Decimal | None = None
    limit_price: Decimal | None = None
    fills: tuple[Fill, ...] = ()
    reported_at_ms: int | None = None
    trigger_price: Decimal | None = None
    reduce_only: bool | None = None
    raw: Mapping[str, Any] | None = attrs.field(default=None, eq=False, repr=False)
