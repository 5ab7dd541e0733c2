"""Orders inside the simulated venue: requests, frozen states, and their history."""

from __future__ import annotations

import enum
import functools
from bisect import bisect_right
from collections.abc import Callable
from decimal import (
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    localcontext,
)
from typing import Final, Generic, ParamSpec, TypeVar

import attrs

from execsafe.model.order import ZERO, Fee, Fill, OrderReport, OrderStatus, Side
from execsafe.model.values import to_decimal

T = TypeVar("T")
P = ParamSpec("P")

CONTEXT: Final = Context(prec=28, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, DivisionByZero, Overflow])
"""The venue's own arithmetic: what a client does to the current decimal context changes nothing here."""


def in_own_context(method: Callable[P, T]) -> Callable[P, T]:
    """Have *method* calculate in :data:`CONTEXT`."""

    @functools.wraps(method)
    def calculating(*args: P.args, **kwargs: P.kwargs) -> T:
        with localcontext(CONTEXT):
            return method(*args, **kwargs)

    return calculating


class RejectReason(enum.StrEnum):
    """Why the venue refused a request. Each face words it as its venue does."""

    INSUFFICIENT_FUNDS = "insufficient_funds"
    LOT_SIZE = "lot_size"
    PRICE_FILTER = "price_filter"
    NOTIONAL = "notional"
    POST_ONLY = "post_only"
    REDUCE_ONLY = "reduce_only"
    DUPLICATE_ID = "duplicate_id"
    UNKNOWN_ORDER = "unknown_order"
    BAD_SYMBOL = "bad_symbol"
    BAD_REQUEST = "bad_request"
    EXPIRED_REQUEST = "expired_request"
    TIMESTAMP_AHEAD = "timestamp_ahead"
    RATE_LIMITED = "rate_limited"
    MAINTENANCE = "maintenance"
    BAD_KEY = "bad_key"
    STOP_WOULD_TRIGGER = "stop_would_trigger"  # the price is already beyond the stop
    NO_POSITION = "no_position"  # nothing that a stop could be attached to
    STOP_UNCHANGED = "stop_unchanged"  # this stop is attached already
    LEVERAGE_UNCHANGED = "leverage_unchanged"
    MARGIN_MODE_UNCHANGED = "margin_mode_unchanged"
    MARGIN_MODE_LOCKED = "margin_mode_locked"  # a position or an open order is in the way


class VenueReject(Exception):
    """The venue's definite no."""

    def __init__(self, reason: RejectReason, message: str = "") -> None:
        super().__init__(message or reason.value)
        self.reason = reason


@attrs.frozen(kw_only=True)
class NewOrder:
    """A create request as it arrives. Bound in time by ``deadline_ms``, or by ``signed_at_ms + window_ms``.

    All instants are as the client's clock had them; the venue judges them by its own.
    """

    symbol: str
    side: Side = attrs.field(converter=Side)
    quantity: Decimal
    type: str = "limit"
    limit_price: Decimal | None = None
    client_order_id: str | None = None
    time_in_force: str = "GTC"
    post_only: bool = False
    reduce_only: bool = False
    trigger_price: Decimal | None = None
    trigger_above: bool | None = None  # None: a stop, i.e. above for a buy and below for a sell
    signed_at_ms: int | None = None
    window_ms: int | None = None
    deadline_ms: int | None = None

    @property
    def is_stop(self) -> bool:
        """Whether its trigger guards against a loss: below the price for a sell, above it for a buy."""
        return self.trigger_price is not None and self.trigger_above in {None, self.side is Side.BUY}

    @property
    def dead_after_ms(self) -> int | None:
        """The last instant, by the venue's clock, at which it may be accepted; None: no limit."""
        windowed = self.signed_at_ms is not None and self.window_ms is not None
        ends = [self.deadline_ms, self.signed_at_ms + self.window_ms if windowed else None]  # type: ignore[operator]
        return min((end for end in ends if end is not None), default=None)


@attrs.frozen(kw_only=True)
class SimFill:
    """One execution."""

    trade_id: str
    venue_order_id: str
    quantity: Decimal
    price: Decimal
    fee: Decimal
    fee_currency: str
    at_ms: int
    is_maker: bool


@attrs.frozen(kw_only=True)
class SimOrder:
    """One state of an order. ``pruned`` ones are no longer shown by any order view."""

    venue_order_id: str
    request: NewOrder
    quantity: Decimal
    limit_price: Decimal | None
    created_at_ms: int
    updated_at_ms: int
    status: OrderStatus = OrderStatus.OPEN
    filled_quantity: Decimal = ZERO
    cost: Decimal = ZERO
    fills: tuple[SimFill, ...] = ()
    triggered: bool = True
    reason: RejectReason | None = None

    @property
    def client_order_id(self) -> str | None:
        """Ours."""
        return self.request.client_order_id

    @property
    def symbol(self) -> str:
        """Unified symbol."""
        return self.request.symbol

    @property
    def side(self) -> Side:
        """Direction."""
        return self.request.side

    @property
    def leaves_quantity(self) -> Decimal:
        """What may still fill."""
        return CONTEXT.subtract(self.quantity, self.filled_quantity) if self.is_open else ZERO

    @property
    def is_open(self) -> bool:
        """Whether it may still fill."""
        return self.status is OrderStatus.OPEN

    @property
    def average_price(self) -> Decimal | None:
        """Volume-weighted; None before the first fill."""
        return CONTEXT.divide(self.cost, self.filled_quantity) if self.filled_quantity else None

    def report(self) -> OrderReport:
        """This state in execsafe's own words."""
        return OrderReport(
            symbol=self.symbol,
            status=self.status,
            client_order_id=self.client_order_id,
            venue_order_id=self.venue_order_id,
            side=self.side,
            quantity=self.quantity,
            filled_quantity=self.filled_quantity,
            average_price=self.average_price,
            limit_price=self.limit_price,
            fills=tuple(_report_fill(fill) for fill in self.fills),
            reported_at_ms=self.updated_at_ms,
            trigger_price=self.request.trigger_price,
            reduce_only=self.request.reduce_only,
        )


def fees_of(fill: SimFill) -> tuple[Fee, ...]:
    """The fee of one execution, in execsafe's own words."""
    return (Fee(cost=fill.fee, currency=fill.fee_currency),) if fill.fee else ()


def _report_fill(fill: SimFill) -> Fill:
    return Fill(
        trade_id=fill.trade_id, quantity=fill.quantity, price=fill.price, fees=fees_of(fill), filled_at_ms=fill.at_ms
    )


class History(Generic[T]):
    """A value over time, so that a lagging view can show how it was."""

    def __init__(self) -> None:
        self._states: list[tuple[int, T]] = []

    def note(self, at_ms: int, value: T) -> None:
        """It is *value* from now on."""
        if self._states and self._states[-1][0] == at_ms:
            self._states[-1] = (at_ms, value)
        else:
            self._states.append((at_ms, value))

    def as_of(self, at_ms: int) -> T | None:
        """The value at that instant; None before the first."""
        index = bisect_right(self._states, at_ms, key=lambda state: state[0])
        return self._states[index - 1][1] if index else None


class Tracked:
    """An order with its whole history, so that a lagging view can show how it was."""

    def __init__(self, order: SimOrder) -> None:
        self.now: SimOrder = order
        self._times = [order.updated_at_ms]
        self._states = [order]
        self.matching = False  # a fill schedule is at work
        self.pruned = False  # gone from the order views
        self.indexed = True  # found by client id
        self.reserved: dict[str, Decimal] = {}

    def change(self, now_ms: int, **changes: object) -> SimOrder:
        """Move to a new state."""
        self.now = attrs.evolve(self.now, updated_at_ms=now_ms, **changes)  # type: ignore[arg-type]
        self._times.append(now_ms)
        self._states.append(self.now)
        return self.now

    def as_of(self, at_ms: int) -> SimOrder | None:
        """The state at that instant; None before the order existed."""
        index = bisect_right(self._times, at_ms)
        return self._states[index - 1] if index else None


def _ratio(value: Decimal | str | int | float) -> Decimal:
    return to_decimal(value, "ratio")


@attrs.frozen
class FillStep:
    """Part of a fill schedule: that ratio of the order fills so long after it became marketable."""

    after_ms: int
    ratio: Decimal = attrs.field(converter=_ratio)


AT_ONCE: Final = (FillStep(0, 1),)
"""Everything fills at once."""
