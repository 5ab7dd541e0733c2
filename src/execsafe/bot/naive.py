"""The pairs bot as it is usually written: plain ccxt, catch and retry, positions kept in memory.

Not a straw man. Amounts and prices are on the venue's grid, network errors are told from refusals, retries are
few and back off, a signal that was carried out is not carried out again. What is missing is what most bots
miss: after a time-out nobody asks whether the order is there, and what comes twice at once is done twice.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import anyio

from execsafe.bot.pairs import Leg, Signal

_log = logging.getLogger("execsafe.bot.naive")
TRIES: Final = 3
BACKOFF_S: Final = 0.1


class NaiveBot:
    """Trades signals on a ``ccxt.async_support`` exchange.

    Attributes:
        book: what the bot believes its orders came to, by symbol, signal id and leg name: in base, sales negative.
        meant: how many orders it decided on, by signal id and leg name. A retry is not a decision.
        retries: how often it sent again.
        given_up: how many orders it takes for failed.
    """

    name = "plain ccxt"

    def __init__(self, exchange: Any) -> None:
        self.exchange = exchange
        self.book: defaultdict[tuple[str, str, str], float] = defaultdict(float)
        self.meant: Counter[tuple[str, str]] = Counter()
        self.retries: int = 0
        self.given_up: int = 0
        self._done: set[str] = set()

    async def handle(self, signal: Signal) -> None:
        """Carry a signal out, unless that was done before."""
        if signal.id in self._done:
            return
        amounts = [self._amount(signal, leg) for leg in signal.legs]
        lead, hedge = signal.legs
        if amounts[0] and not await self._place(signal, lead, amounts[0]):
            return
        if amounts[1]:
            await self._place(signal, hedge, amounts[1])
        # Only now: a signal that failed may be delivered again.
        self._done.add(signal.id)

    async def look(self, prices: Mapping[str, Decimal]) -> None:
        """Nothing to do between signals."""

    async def finish(self) -> None:
        """Nothing is left to do: what failed, failed."""

    def positions(self) -> dict[str, Decimal]:
        """The book, for comparison with the venue's ledger."""
        totals: defaultdict[str, float] = defaultdict(float)
        for (symbol, _, _), amount in self.book.items():
            totals[symbol] += amount
        return {symbol: Decimal(repr(round(amount, 8))) for symbol, amount in totals.items()}

    def _amount(self, signal: Signal, leg: Leg) -> float:
        if signal.closes is None:
            return float(leg.quantity)
        import ccxt

        held = abs(self.book[leg.symbol, signal.closes, leg.name])
        try:
            return float(self.exchange.amount_to_precision(leg.symbol, held))
        except ccxt.InvalidOrder:  # nothing, or less than the venue trades
            return 0.0

    async def _place(self, signal: Signal, leg: Leg, amount: float) -> bool:
        import ccxt  # loaded already by whoever made the exchange

        self.meant[signal.id, leg.name] = 1
        side, price = leg.side.value, float(leg.limit_price)
        for attempt in range(TRIES):
            try:
                order = await self.exchange.create_order(
                    leg.symbol, "limit", side, amount, price, {"timeInForce": "IOC"}
                )
            except ccxt.NetworkError as error:  # a time-out, a reset, a 5xx, a rate limit: try again
                _log.debug("%s: %s, attempt %d", signal.id, type(error).__name__, attempt + 1)
                self.retries += attempt + 1 < TRIES
                await anyio.sleep(BACKOFF_S * 2**attempt)
            except ccxt.BaseError as error:  # refused
                _log.debug("%s: %s", signal.id, type(error).__name__)
                break
            else:
                filled = order["filled"] if order["filled"] is not None else amount
                self.book[leg.symbol, signal.id, leg.name] += filled if side == "buy" else -filled
                return True
        self.given_up += 1
        return False
