"""From a decision to be flat to an exit: what is held in a symbol is closed, once what is opening there has settled."""

from __future__ import annotations

import execsafe
from execsafe import exits, signals
from execsafe.signals import SignalResult, SignalWork


class Closings:
    """Takes flat signals and ``Close`` decisions to the exits.

    An exit that has begun is in the journal and goes on until it has ended: the signal is done with then.
    """

    def __init__(
        self,
        *,
        exits_: execsafe.ExitManager,
        opener: execsafe.PositionOpener,
        book: execsafe.PositionBook,
        account: str,
    ) -> None:
        self._exits = exits_
        self._opener = opener
        self._book = book
        self._account = account

    async def handle(self, work: SignalWork) -> SignalResult:
        """Execute one flat signal. What is still opening may become a position: it is waited for."""
        symbol = work.signal.symbol
        if self._is_opening(symbol):
            return signals.Pending(note="an opening of the symbol has not ended", attempted=False)
        if work.mode is execsafe.ExecutionMode.PAPER:
            return signals.Executed(note=f"on paper: close {symbol}")
        came = await self.close(symbol)
        return signals.Executed(note="nothing is held" if _is_flat(came) else type(came).__name__)

    async def close(self, symbol: str) -> exits.ExitResult | execsafe.TradingDenied:
        """Close what is held in *symbol*, whatever it came from."""
        await self._book.catch_up()
        position = self._book.position(self._account, symbol)
        if position is not None:
            return await self._exits.exit(position.key, exits.ExitReason.TTL)
        why = "an opening has not ended" if self._is_opening(symbol) else "nothing is held"
        return execsafe.TradingDenied(f"{symbol}: {why}", reason="flat")

    def is_closing(self, symbol: str) -> bool:
        """Whether something is held in *symbol*, and its exit has begun."""
        position = self._book.position(self._account, symbol)
        return position is not None and self._exits.is_exiting(position.key)

    def _is_opening(self, symbol: str) -> bool:
        plans = [opening.plan for opening in self._opener.openings()]
        return any((plan.account, plan.symbol) == (self._account, symbol) for plan in plans)


def _is_flat(came: exits.ExitResult | execsafe.TradingDenied) -> bool:
    return isinstance(came, (execsafe.TradingDenied, exits.Flat))
