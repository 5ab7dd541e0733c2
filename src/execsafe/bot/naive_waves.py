"""The waves bot as it is usually written: an entry in a try, its stop in another, positions in a dictionary.

Not a straw man either. Amounts and prices are on the grid, refusals are told from network errors, stops and exits are
reduce-only, a symbol that is held is not entered again, a signal that was carried out is not carried out again. What
is missing is what most bots miss: asking what became of a request that nobody answered, and looking after a stop once
it was asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import anyio
import attrs

from execsafe.bot import naive
from execsafe.bot.strategy import Open
from execsafe.bot.verdict_waves import Meant
from execsafe.model.order import Side
from execsafe.model.position import PositionSide

_log = logging.getLogger("execsafe.bot.naive_waves")
_NOTIONAL: Final = 1_000.0
_STOP_RATIO: Final = 0.01
_TARGET_RATIO: Final = 0.012
_CANDLES_MAX: Final = 30


@attrs.define(kw_only=True)
class Held:
    """A position as the bot believes it to be. ``stop_id`` None: there is no stop."""

    signal_id: str
    side: PositionSide
    amount: float
    entry_price: float
    stop_id: str | None = None
    candles: int = 0
    is_closing: bool = False


class NaiveWaves:
    """Trades ``Open`` decisions on a ``ccxt.async_support`` exchange.

    Attributes:
        held: what the bot believes to hold, by symbol.
        meant: every order it decided on, by signal id and purpose. A retry is no decision.
        retries, given_up: how often it sent again, and how many orders it takes for failed.
    """

    name = "plain ccxt"

    def __init__(self, exchange: Any) -> None:
        self.exchange = exchange
        self.held: dict[str, Held] = {}
        self.meant: dict[tuple[str, str], Meant] = {}
        self.prices: dict[str, float] = {}
        self.retries: int = 0
        self.given_up: int = 0
        self._done: set[str] = set()

    async def handle(self, wish: Open) -> None:
        """Open a position and place its stop, unless that was done before or the symbol is held."""
        if wish.id in self._done or wish.symbol in self.held:
            return
        price = float(self.exchange.price_to_precision(wish.symbol, await self._price(wish.symbol)))
        amount = float(self.exchange.amount_to_precision(wish.symbol, _NOTIONAL / price))
        order = await self._create(self._decide(wish.id, "entry", wish.symbol, wish.side.opening, amount))
        if order is None:
            return
        filled = order["filled"] if order["filled"] is not None else amount
        if not filled:
            return
        held = Held(signal_id=wish.id, side=wish.side, amount=filled, entry_price=order["average"] or price)
        self.held[wish.symbol] = held
        self._done.add(wish.id)
        stop_price = held.entry_price * (1 - wish.side.sign * _STOP_RATIO)
        params = {"stopLossPrice": float(self.exchange.price_to_precision(wish.symbol, stop_price)), "reduceOnly": True}
        stop = await self._create(self._decide(wish.id, "stop", wish.symbol, wish.side.closing, filled), params)
        held.stop_id = None if stop is None else stop["id"]

    async def look(self, prices: Mapping[str, Decimal]) -> None:
        """Take profit, forget what the stop must have closed, and give up what has been held for too long."""
        self.prices = {symbol: float(price) for symbol, price in prices.items()}
        for symbol, held in list(self.held.items()):
            held.candles += 1
            gain = (self.prices[symbol] / held.entry_price - 1) * held.side.sign
            if gain <= -_STOP_RATIO and held.stop_id is not None:
                self.held.pop(symbol, None)  # the stop is at the venue; it will have done its work
            elif gain >= _TARGET_RATIO or gain <= -_STOP_RATIO or held.candles > _CANDLES_MAX:
                await self._exit(symbol, held)

    async def finish(self) -> None:
        """Close what is held."""
        for symbol, held in list(self.held.items()):
            await self._exit(symbol, held)

    def positions(self) -> dict[str, Decimal]:
        """The book, for comparison with the venue's ledger."""
        return {symbol: held.side.sign * Decimal(repr(held.amount)) for symbol, held in self.held.items()}

    async def _price(self, symbol: str) -> float:
        if symbol in self.prices:
            return self.prices[symbol]
        ticker = await self.exchange.fetch_ticker(symbol)
        return float(ticker["last"])

    async def _exit(self, symbol: str, held: Held) -> None:
        import ccxt  # loaded already by whoever made the exchange

        if held.is_closing:
            return
        held.is_closing = True
        decided = self._decide(held.signal_id, "exit", symbol, held.side.closing, held.amount)
        order = await self._create(decided, {"reduceOnly": True})
        held.is_closing = False
        if order is None:
            return  # with the next candle
        if self.held.get(symbol) is held:
            del self.held[symbol]
        if held.stop_id is not None:
            try:
                await self.exchange.cancel_order(held.stop_id, symbol, {"trigger": True})
            except ccxt.BaseError as error:
                _log.debug("%s: the stop was not canceled: %s", held.signal_id, type(error).__name__)

    def _decide(self, signal_id: str, purpose: str, symbol: str, side: Side, amount: float) -> Meant:
        decided = Meant(
            signal_id=signal_id,
            purpose=purpose,
            symbol=symbol,
            side=side,
            quantity=Decimal(repr(amount)),
            at_ms=self.exchange.milliseconds(),
        )
        self.meant.setdefault((signal_id, purpose), decided)
        return decided

    async def _create(self, decided: Meant, params: Mapping[str, Any] | None = None) -> Any:
        import ccxt  # loaded already by whoever made the exchange

        symbol, side, amount = decided.symbol, decided.side.value, float(decided.quantity)
        for attempt in range(naive.TRIES):
            try:
                return await self.exchange.create_order(symbol, "market", side, amount, None, dict(params or {}))
            except ccxt.NetworkError as error:  # a time-out, a reset, a 5xx, a rate limit: try again
                _log.debug("%s: %s, attempt %d", decided.signal_id, type(error).__name__, attempt + 1)
                self.retries += attempt + 1 < naive.TRIES
                await anyio.sleep(naive.BACKOFF_S * 2**attempt)
            except ccxt.BaseError as error:  # refused
                _log.debug("%s: %s %s", decided.signal_id, decided.purpose, type(error).__name__)
                break
        self.given_up += 1
        return None
