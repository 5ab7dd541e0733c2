"""The questions that are asked before an entry goes out."""

from __future__ import annotations

from collections.abc import Sequence

from execsafe._calls import within
from execsafe.errors import TradingDenied
from execsafe.model.intent import Intent
from execsafe.ports import ExchangeAdapter, PreTradeCheck


class EntryChecks:
    """Pre-trade checks as one question, within one time-out. What cannot be asked is refused; exits always pass."""

    def __init__(self, adapter: ExchangeAdapter, checks: Sequence[PreTradeCheck], *, timeout_s: float) -> None:
        self._adapter = adapter
        self._checks = tuple(checks)
        self._timeout_s = timeout_s

    async def ask(self, intent: Intent) -> None:
        """Return if this intent may go out.

        Raises:
            TradingDenied: a check refused, failed, or did not answer in time.
        """
        if not self._checks or intent.reduce_only:
            return
        why = "did not answer in time"
        try:
            with within(self._timeout_s):
                instrument = self._adapter.prepared(intent.symbol) or await self._adapter.prepare(intent.symbol)
                for check in self._checks:
                    await check.check(intent, instrument)
                return
        except TradingDenied:
            raise
        except Exception as error:  # noqa: BLE001 - a question without an answer is a no
            why = f"failed: {type(error).__name__}"
        raise TradingDenied(f"a pre-trade check {why}", intent_key=intent.key, reason="check_failed")
