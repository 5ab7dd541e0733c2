"""The execution mode, asked again at the order gate: where an order would leave, whoever wants to send it."""

from __future__ import annotations

from collections.abc import Callable

from execsafe.core.safety import DenyReason
from execsafe.errors import TradingDenied
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.signal import ExecutionMode


class ModeCheck:
    """A pre-trade check: entries go to a real venue in LIVE only, and to a paper venue in PAPER only.

    ``OrderGateway(..., checks=[ModeCheck(lambda: gate.mode)])``. Exits pass in every mode.

    Args:
        mode: says the mode now.
        is_paper_venue: whether the gateway's venue is a simulation.
    """

    def __init__(self, mode: Callable[[], ExecutionMode], *, is_paper_venue: bool = False) -> None:
        self._mode = mode
        self._allowed = ExecutionMode.PAPER if is_paper_venue else ExecutionMode.LIVE

    async def check(self, intent: Intent, instrument: Instrument) -> None:  # noqa: ARG002 - the port's signature
        """Refuse an entry in another mode.

        Raises:
            TradingDenied: with the reason ``"draining"``, which is for now, or ``"mode"``.
        """
        mode = self._mode()
        if mode is not self._allowed and not intent.reduce_only:
            reason = DenyReason.DRAINING if mode is ExecutionMode.DRAIN else DenyReason.MODE
            raise TradingDenied(
                f"the mode is {mode.value}, and this venue takes entries in {self._allowed.value} only",
                intent_key=intent.key,
                reason=reason.value,
                mode=mode.value,
            )
