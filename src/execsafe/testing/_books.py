"""Prices and books of other people's orders at the simulated venue: what a taker meets, and what was shown when.

Without a set book a symbol has one deep level on either side of its price. A set book is finite: what is taken
from it is gone until the next one is set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final, TypeAlias

from execsafe.errors import InvalidInput
from execsafe.model.instrument import Instrument
from execsafe.model.order import ZERO, Side
from execsafe.model.position import BookLevel, OrderBook, Quote
from execsafe.model.values import EXACT, Number, left_of, to_decimal, to_positive
from execsafe.testing._orders import History

Levels: TypeAlias = Iterable[tuple[Number, Number]]
"""Pairs of price and quantity, in any order."""

DEEP: Final = Decimal(1_000_000)  # quantity of the one level where no book is set
_BPS: Final = Decimal("0.0001")
_HALF: Final = Decimal("0.5")


class Books:
    """Last prices and books by symbol, with their history. ``prices`` is read by everybody, changed by :meth:`move`."""

    def __init__(self, instruments: Mapping[str, Instrument], prices: dict[str, Decimal], spread_bps: Number) -> None:
        self._instruments = instruments
        self.prices: dict[str, Decimal] = prices
        half = EXACT.multiply(EXACT.multiply(to_decimal(spread_bps, "spread_bps"), _BPS), _HALF)
        self._factors: dict[Side, Decimal] = {Side.BUY: EXACT.add(1, half), Side.SELL: EXACT.subtract(1, half)}
        self._set: dict[str, OrderBook] = {}
        self._moved: defaultdict[str, History[Decimal]] = defaultdict(History)
        self._shown: defaultdict[str, History[OrderBook | None]] = defaultdict(History)
        for symbol, price in prices.items():
            self._moved[symbol].note(0, price)

    def move(self, symbol: str, price: Decimal, at_ms: int) -> None:
        """The last price is *price* from now on."""
        self.prices[symbol] = price
        self._moved[symbol].note(at_ms, price)

    def price_as_of(self, symbol: str, at_ms: int) -> Decimal:
        """The last price at that instant."""
        return self._moved[symbol].as_of(at_ms) or self.prices[symbol]

    # --- set books --------------------------------------------------------------------------------

    def is_set(self, symbol: str) -> bool:
        """Whether the symbol has a book of its own."""
        return symbol in self._set

    def put(self, symbol: str, bids: Levels, asks: Levels, at_ms: int) -> None:
        """Give the symbol a book of its own.

        Raises:
            InvalidInput: prices or quantities that are not above 0, or the best bid is not below the best ask.
        """
        book = OrderBook(symbol=symbol, bids=_levels(bids, Side.SELL), asks=_levels(asks, Side.BUY), at_ms=at_ms)
        if book.bids and book.asks and book.bids[0].price >= book.asks[0].price:
            raise InvalidInput(f"the bid {book.bids[0].price} is not below the ask {book.asks[0].price}")
        self._keep(symbol, book, at_ms)

    def clear(self, symbol: str, at_ms: int) -> None:
        """Back to one deep level on either side of the price."""
        self._set.pop(symbol, None)
        self._shown[symbol].note(at_ms, None)

    # --- taking -----------------------------------------------------------------------------------

    def touch(self, symbol: str, side: Side) -> Decimal | None:
        """The best price that a taker on *side* gets; None: there is nobody to trade with."""
        book = self._set.get(symbol)
        if book is None:
            return self._beside(symbol, self.prices[symbol], side)
        levels = book.levels(side)
        return levels[0].price if levels else None

    def available(self, symbol: str, side: Side, limit: Decimal | None) -> Decimal:
        """How much a taker on *side* would get, no worse than *limit*."""
        levels = self.depth(symbol, self.prices[symbol], self._set.get(symbol)).levels(side)
        return sum((level.quantity for level in levels if _within(level.price, side, limit)), ZERO)

    def worst(self, symbol: str, side: Side, quantity: Decimal) -> Decimal:
        """The worst price that a taker of *quantity* would get; the last price where there is nobody."""
        worst, levels = self.prices[symbol], self._set.get(symbol)
        if levels is None:
            return self._beside(symbol, worst, side)
        for level in levels.levels(side):
            worst = level.price
            quantity = left_of(quantity, level.quantity)
            if not quantity:
                break
        return worst

    def take(
        self, symbol: str, side: Side, quantity: Decimal, limit: Decimal | None, at_ms: int
    ) -> list[tuple[Decimal, Decimal]]:
        """Take up to *quantity* from a set book, best level first: pairs of price and quantity."""
        taken, left = [], []
        book = self._set[symbol]
        for level in book.levels(side):
            part = min(quantity, level.quantity) if _within(level.price, side, limit) else ZERO
            if part:
                taken.append((level.price, part))
                quantity = EXACT.subtract(quantity, part)
            if part < level.quantity:
                left.append(BookLevel(price=level.price, quantity=left_of(level.quantity, part)))
        bids, asks = (book.bids, tuple(left)) if side is Side.BUY else (tuple(left), book.asks)
        self._keep(symbol, OrderBook(symbol=symbol, bids=bids, asks=asks, at_ms=at_ms), at_ms)
        return taken

    # --- showing ----------------------------------------------------------------------------------

    def depth(self, symbol: str, price: Decimal, book: OrderBook | None, at_ms: int = 0) -> OrderBook:
        """*book*, or the one deep level on either side of *price* where there is none."""
        if book is not None:
            return book
        bid, ask = (self._beside(symbol, price, side) for side in (Side.SELL, Side.BUY))
        bids, asks = ((BookLevel(price=level, quantity=DEEP),) for level in (bid, ask))
        return OrderBook(symbol=symbol, bids=bids, asks=asks, at_ms=at_ms)

    def book_as_of(self, symbol: str, at_ms: int, levels: int) -> OrderBook:
        """The best *levels* of both sides at that instant."""
        book = self.depth(symbol, self.price_as_of(symbol, at_ms), self._shown[symbol].as_of(at_ms))
        return OrderBook(symbol=symbol, bids=book.bids[:levels], asks=book.asks[:levels], at_ms=at_ms)

    def quote_as_of(self, symbol: str, at_ms: int) -> Quote:
        """Best and last prices at that instant."""
        book = self.book_as_of(symbol, at_ms, 1)
        bid, ask = (levels[0].price if levels else None for levels in (book.bids, book.asks))
        return Quote(symbol=symbol, bid=bid, ask=ask, last=self.price_as_of(symbol, at_ms), at_ms=at_ms)

    def _beside(self, symbol: str, price: Decimal, side: Side) -> Decimal:
        """What a taker on *side* pays or gets beside *price*: the spread's half away, on the tick."""
        factor = self._factors[side]
        if factor == 1:
            return price
        return self._instruments[symbol].safe_limit_price(EXACT.multiply(price, factor), side.opposite)

    def _keep(self, symbol: str, book: OrderBook, at_ms: int) -> None:
        self._set[symbol] = book
        self._shown[symbol].note(at_ms, book)


def _levels(pairs: Levels, taker: Side) -> tuple[BookLevel, ...]:
    levels = [BookLevel(price=to_positive(p, "price"), quantity=to_positive(q, "quantity")) for p, q in pairs]
    return tuple(sorted(levels, key=lambda level: level.price, reverse=taker is Side.SELL))


def _within(price: Decimal, side: Side, limit: Decimal | None) -> bool:
    if limit is None:
        return True
    return price <= limit if side is Side.BUY else price >= limit
