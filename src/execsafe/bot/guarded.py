"""The same pairs bot through execsafe: every order has a key, the hedge follows what filled, nothing is guessed.

There is no memory of signals done and no lock: the keys are the memory. A signal that is delivered again walks
through the same calls and gets the recorded answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import attrs

import execsafe
from execsafe.bot.pairs import Leg, Signal

_log = logging.getLogger("execsafe.bot.guarded")
_TRIES: Final = 5
_ENDED: Final = frozenset({"closed", "canceled", "expired", "rejected"})
_ZERO: Final = Decimal(0)


@attrs.frozen
class Holding:
    """What one order came to: signed quantity in base, sales negative."""

    symbol: str
    quantity: Decimal


class GuardedBot:
    """Trades signals on an exchange object from :func:`execsafe.wrap`.

    Args:
        exchange: the guarded exchange; its store is the bot's memory.
        instruments: limits by symbol, for what is too small to be traded.

    Attributes:
        book: what each order came to, by intent key. A repeated answer changes nothing.
        residuals: what could neither be hedged nor undone, in base of the leading leg, by signal id.
        unsettled: signals that wait for an order in doubt.
        again: how often a delivery was answered without doing anything.
    """

    name = "execsafe"

    def __init__(self, exchange: Any, instruments: Mapping[str, execsafe.Instrument]) -> None:
        self.exchange = exchange
        self.instruments = instruments
        self.book: dict[str, Holding] = {}
        self.residuals: dict[str, Decimal] = {}
        self.again: int = 0
        self.unsettled: dict[str, Signal] = {}

    async def handle(self, signal: Signal) -> None:
        """Carry a signal out, or go on with it where it stands."""
        try:
            await self._trade(signal)
            self.unsettled.pop(signal.id, None)
        except execsafe.AlreadyInFlight:
            self.again += 1  # another delivery of it is being carried out
        except execsafe.OutcomeUnknown:
            self.unsettled[signal.id] = signal  # journalled, counted, watched; looked at again at the end

    async def finish(self) -> None:
        """Settle what is open, then go on with the signals that had to wait for it."""
        await self.exchange.recover()
        for signal in list(self.unsettled.values()):
            await self.handle(signal)

    def positions(self) -> dict[str, Decimal]:
        """The book by symbol, for comparison with the venue's ledger."""
        symbols = {holding.symbol for holding in self.book.values()}
        return {s: sum((h.quantity for h in self.book.values() if h.symbol == s), _ZERO) for s in sorted(symbols)}

    # --- one signal -------------------------------------------------------------------------------

    async def _trade(self, signal: Signal) -> None:
        lead, hedge = signal.legs
        wanted = lead.quantity, hedge.quantity
        if signal.closes is not None:  # what is really held, not what was once asked for
            wanted = self._held(signal.closes, lead), self._held(signal.closes, hedge)
        led = await self._work(signal, lead, wanted[0], tries=1 if signal.closes is None else _TRIES)
        if not led:
            return
        target = self.instruments[hedge.symbol].floor_quantity(led * wanted[1] / wanted[0])
        hedged = await self._work(signal, hedge, target, tries=_TRIES)
        if hedged >= target:
            return
        surplus = led - hedged * wanted[0] / wanted[1]
        surplus -= await self._work(signal, lead, surplus, tries=_TRIES, undo=True)
        if self._is_tradable(lead, surplus):
            self.residuals[signal.id] = surplus
            _log.warning("%s: %s %s could neither be hedged nor undone", signal.id, surplus, lead.symbol)

    def _held(self, signal_id: str, leg: Leg) -> Decimal:
        """What the orders of a signal's leg left, as the quantity that an order on *leg*'s side would close."""
        prefix = f"{signal_id}/{leg.name}"
        held = sum((h.quantity for key, h in self.book.items() if key.startswith(prefix)), _ZERO)
        return max(_ZERO, -held if leg.side is execsafe.Side.BUY else held)

    async def _work(self, signal: Signal, leg: Leg, quantity: Decimal, *, tries: int, undo: bool = False) -> Decimal:
        """Trade *quantity* of a leg in at most *tries* orders; return what filled.

        Each order is for what is left and has a key of its own, so the keys of a signal are the same whenever
        it is delivered.
        """
        filled = _ZERO
        for number in range(1, tries + 1):
            rest = self.instruments[leg.symbol].floor_quantity(quantity - filled)
            if not self._is_tradable(leg, rest):
                break
            suffix = ("-undo" if undo else "") + ("" if number == 1 else f"-{number}")
            filled += await self._order(signal.key(leg, suffix), leg, rest, undo=undo)
        return filled

    def _is_tradable(self, leg: Leg, quantity: Decimal) -> bool:
        instrument = self.instruments[leg.symbol]
        worth = instrument.notional(quantity, min(leg.limit_price, leg.reverse_price))
        return quantity >= (instrument.min_quantity or instrument.step_size or _ZERO) and worth > (
            instrument.min_notional or _ZERO
        )

    async def _order(self, key: str, leg: Leg, quantity: Decimal, *, undo: bool) -> Decimal:
        import ccxt  # loaded already by whoever made the exchange

        side = leg.side.opposite if undo else leg.side
        price = leg.reverse_price if undo else leg.limit_price
        try:
            order = await self.exchange.create_order(
                leg.symbol, "limit", side.value, quantity, price, {"timeInForce": "IOC", "intentKey": key}
            )
        except (execsafe.NotPlaced, ccxt.BaseError):  # a definite no: nothing is there
            return _ZERO
        if order["status"] not in _ENDED:  # an immediate-or-cancel order does not rest: make sure of it
            order = await self.exchange.cancel_order(order["id"], leg.symbol)
        filled = Decimal(repr(order["filled"]))
        self.book[key] = Holding(leg.symbol, filled if side is execsafe.Side.BUY else -filled)
        return filled
