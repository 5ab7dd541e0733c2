"""Positions, balances, prices and stops: what is owned, what it is worth, and what protects it."""

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Generic, TypeAlias, TypeVar

import attrs

from execsafe.model.intent import ErrorFacts
from execsafe.model.order import ZERO, Fee, Fill, Side
from execsafe.model.values import EXACT

T_co = TypeVar("T_co", covariant=True)


# --- Readings: a failed read is not an empty one ---------------------------------------------------


@attrs.frozen(kw_only=True)
class Snapshot(Generic[T_co]):
    """A reading that succeeded. ``taken_at_ms`` is when it *began*: what it shows is at least that new, less lag."""

    value: T_co
    taken_at_ms: int


@attrs.frozen(kw_only=True)
class Unavailable:
    """A reading that failed: nothing is known. It is never the same as an empty answer."""

    error: ErrorFacts
    at_ms: int


# --- Positions -------------------------------------------------------------------------------------


class PositionSide(enum.StrEnum):
    """Direction of a position. Spot holdings are LONG."""

    LONG = "long"
    SHORT = "short"

    @property
    def opening(self) -> Side:
        """The side of orders that enlarge it."""
        return Side.BUY if self is PositionSide.LONG else Side.SELL

    @property
    def closing(self) -> Side:
        """The side of orders that reduce it."""
        return self.opening.opposite

    @property
    def sign(self) -> int:
        """+1 for long, -1 for short."""
        return 1 if self is PositionSide.LONG else -1


@attrs.frozen(kw_only=True)
class PositionKey:
    """Which position: at most one per key is held at a time (one-way mode)."""

    account: str
    symbol: str
    side: PositionSide


@attrs.frozen(kw_only=True)
class Position:
    """What the book says is held. Built from fills; never edited by hand.

    Attributes:
        account, symbol, side: the key.
        quantity: held now, in the venue's order unit, net of fees taken in base on spot; 0 once closed.
        entry_price: average of what is held, quote per base; None where no fill stated a price.
        position_id: pure function of account, symbol, side and the fill that opened it.
        opened_at_ms, updated_at_ms: Unix ms of the first and of the latest fill.
        realized: profit in quote currency from what was closed, fees not counted.
        fees: charged so far, one per currency.
    """

    account: str
    symbol: str
    side: PositionSide
    quantity: Decimal = ZERO
    entry_price: Decimal | None = None
    position_id: str = ""
    opened_at_ms: int = 0
    updated_at_ms: int = 0
    realized: Decimal = ZERO
    fees: tuple[Fee, ...] = ()

    @property
    def key(self) -> PositionKey:
        """Account, symbol and side."""
        return PositionKey(account=self.account, symbol=self.symbol, side=self.side)

    @property
    def is_open(self) -> bool:
        """Whether anything is held."""
        return self.quantity > 0

    @property
    def signed_quantity(self) -> Decimal:
        """Positive for long, negative for short."""
        return self.quantity if self.side is PositionSide.LONG else -self.quantity


@attrs.frozen(kw_only=True)
class VenuePosition:
    """What a venue says is held. ``stop_price`` and ``take_profit_price`` are attached to the position itself."""

    symbol: str
    side: PositionSide
    quantity: Decimal
    entry_price: Decimal | None = None
    mark_price: Decimal | None = None
    liquidation_price: Decimal | None = None
    leverage: Decimal | None = None
    stop_price: Decimal | None = None
    take_profit_price: Decimal | None = None


@attrs.frozen(kw_only=True)
class Balance:
    """One currency of an account: ``total`` = ``free`` + ``used`` (locked by open orders or as margin)."""

    free: Decimal
    used: Decimal
    total: Decimal


# --- Prices ----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Quote:
    """Best prices of a symbol. None where the venue states none: a missing bid is not a bid of zero."""

    symbol: str
    bid: Decimal | None = None
    ask: Decimal | None = None
    last: Decimal | None = None
    at_ms: int = 0

    @property
    def mid(self) -> Decimal | None:
        """Middle of bid and ask."""
        if self.bid is None or self.ask is None:
            return None
        return EXACT.multiply(EXACT.add(self.bid, self.ask), Decimal("0.5"))


@attrs.frozen(kw_only=True)
class BookLevel:
    """Quantity offered at one price, in the venue's order unit."""

    price: Decimal
    quantity: Decimal


@attrs.frozen(kw_only=True)
class OrderBook:
    """Best levels first on both sides."""

    symbol: str
    bids: tuple[BookLevel, ...] = ()
    asks: tuple[BookLevel, ...] = ()
    at_ms: int = 0

    def levels(self, side: Side) -> tuple[BookLevel, ...]:
        """What an order on *side* would take: asks for a buy, bids for a sell."""
        return self.asks if side is Side.BUY else self.bids


# --- Executions read back from the venue -----------------------------------------------------------


@attrs.frozen(kw_only=True)
class Execution:
    """One fill as an account's trade list shows it. ``trade_id`` is the venue's."""

    trade_id: str
    symbol: str
    side: Side
    quantity: Decimal
    price: Decimal
    venue_order_id: str | None = None
    client_order_id: str | None = None
    fees: tuple[Fee, ...] = ()
    at_ms: int = 0

    @property
    def fill(self) -> Fill:
        """The same, as one of its order's fills."""
        return Fill(
            trade_id=self.trade_id,
            quantity=self.quantity,
            price=self.price,
            fees=self.fees,
            filled_at_ms=self.at_ms or None,
        )


# --- Stops -----------------------------------------------------------------------------------------


class StopKind(enum.StrEnum):
    """How a venue keeps a stop."""

    ORDER = "order"  # an order of its own, with an id
    ATTACHED = "attached"  # a property of the position, without an id


@attrs.frozen(kw_only=True)
class OrderStop:
    """A stop that is an order, placed through the gateway under this intent key and leg."""

    intent_key: str
    leg: str
    client_order_id: str
    venue_order_id: str | None = None


@attrs.frozen(kw_only=True)
class AttachedStop:
    """A stop that belongs to the position of *symbol* and *side*."""

    symbol: str
    side: PositionSide


StopHandle: TypeAlias = OrderStop | AttachedStop
"""How a placed stop is found again."""
