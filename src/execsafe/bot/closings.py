"""From a decision to be flat to an exit: what is held in a symbol is closed, once what is opening there has settled."""

from __future__ import annotations

from typing import Final

import anyio

import execsafe
from execsafe import exits, protection, signals
from execsafe.signals import SignalRecord, SignalResult, SignalWork

_AGAIN_S: Final = 1.0
_PATIENCE_S: Final = 60.0  # outlives the claim of a process that was killed in the middle of an exit
_NOT_BEGUN: Final = frozenset({protection.OpeningState.NOT_SENT, protection.OpeningState.FAILED})


class Closings:
    """Takes flat signals and ``Close`` decisions to the exits.

    An exit that is in the journal goes on until it has ended: the signal is done with then, and only then. Where the
    exits could not even begin (the store was away, or a process that was killed still has the claim) it comes again.
    """

    def __init__(
        self,
        *,
        gate: execsafe.SignalGate,
        exits_: execsafe.ExitManager,
        opener: execsafe.PositionOpener,
        book: execsafe.PositionBook,
        account: str,
    ) -> None:
        self._gate = gate
        self._exits = exits_
        self._opener = opener
        self._book = book
        self._account = account

    async def handle(self, work: SignalWork) -> SignalResult:
        """Execute one flat signal. What is still opening may become a position: it is waited for."""
        symbol = work.signal.symbol
        if self._is_opening(symbol):
            return signals.Pending(note="an opening of the symbol has not ended", attempted=False)
        if await self._is_later_one_begun(work):
            return signals.Pending(note="a later entry has begun and not ended", attempted=False)
        if work.mode is execsafe.ExecutionMode.PAPER:
            return signals.Executed(note=f"on paper: close {symbol}")
        came = await self._try(symbol)
        if came is None:
            return signals.Executed(note="nothing is held")
        note = type(came).__name__
        return signals.Executed(note=note) if self._is_begun(symbol, came) else signals.Pending(note=note)

    async def close(self, symbol: str) -> exits.ExitResult | execsafe.TradingDenied:
        """Close what is held in *symbol*, whatever it came from; once it has begun, it goes on by itself."""
        came = await self._try(symbol)
        with anyio.move_on_after(_PATIENCE_S):
            while came is not None and not self._is_begun(symbol, came):
                await anyio.sleep(_AGAIN_S)
                came = await self._try(symbol)
        if came is not None:
            return came
        why = "an opening has not ended" if self._is_opening(symbol) else "nothing is held"
        return execsafe.TradingDenied(f"{symbol}: {why}", reason="flat")

    def is_closing(self, symbol: str) -> bool:
        """Whether something is held in *symbol*, and its exit has begun."""
        position = self._book.position(self._account, symbol)
        return position is not None and self._exits.is_exiting(position.key)

    async def is_awaited(self, work: SignalWork) -> bool:
        """Whether an exit of the symbol that was said before *work*, an entry, has not ended.

        Raises:
            StoreError: that cannot be known.
        """
        said_ms = await self._said_ms(work)
        return any(exit_.said_at_ms <= said_ms for exit_ in await self._unfinished(work, is_exit=True))

    async def _try(self, symbol: str) -> exits.ExitResult | None:
        """One call of the exits; None: nothing is held."""
        await self._book.catch_up()
        position = self._book.position(self._account, symbol)
        if position is None:
            return None
        came = await self._exits.exit(position.key, exits.ExitReason.TTL)
        return None if isinstance(came, exits.Flat) else came

    def _is_begun(self, symbol: str, came: exits.ExitResult) -> bool:
        return isinstance(came, (exits.Exited, exits.Dust)) or self.is_closing(symbol)

    def _is_opening(self, symbol: str) -> bool:
        plans = [opening.plan for opening in self._opener.openings()]
        return any((plan.account, plan.symbol) == (self._account, symbol) for plan in plans)

    async def _is_later_one_begun(self, work: SignalWork) -> bool:
        """Whether what is held may be of an entry that was said later, and was interrupted before that was recorded."""
        said_ms = await self._said_ms(work)
        for entry in await self._unfinished(work, is_exit=False):
            if entry.said_at_ms > said_ms:
                opening = await self._opener.find(self._gate.key_of(entry), account=self._account)
                if opening is not None and opening.state not in _NOT_BEGUN:
                    return True
        return False

    async def _unfinished(self, work: SignalWork, *, is_exit: bool) -> list[SignalRecord]:
        return [
            record
            for record in await self._gate.unfinished()
            if record.signal.symbol == work.signal.symbol
            and record.signal.id != work.signal.id
            and (record.signal.side is execsafe.SignalSide.FLAT) is is_exit
        ]

    async def _said_ms(self, work: SignalWork) -> int:
        record = await self._gate.find(work.signal.id)
        return work.signal.at_ms if record is None else record.said_at_ms
