"""``EntryBarrier``: the question that a gateway asks before an entry, answered by reconciliation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from execsafe.errors import TradingDenied
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent

Admission: TypeAlias = Callable[[Intent], None]
"""Returns if an entry may go out, raises TradingDenied if not."""

_WHY: Final = {
    "not_reconciled": "venue, book and journal have not been compared yet",
    "reconciliation_stale": "the venue could not be read for too long",
    "difference": "venue and book differ",
    "lost_order": "an order bears our marker, and no journal of ours knows it",
}


def denied(intent: Intent, reason: str) -> TradingDenied:
    """The refusal of an entry for one of the reasons above."""
    return TradingDenied(f"{intent.symbol}: {_WHY[reason]}; nothing was sent", intent_key=intent.key, reason=reason)


class EntryBarrier:
    """Denies every entry of an account until its reconciler lets it pass. Exits are never asked about.

    It is made before the gateway, and given to the gateway (``checks``) and to the reconciler (``entries``). An account
    without a reconciler stays closed.
    """

    def __init__(self) -> None:
        self._admissions: dict[str, Admission] = {}

    def watch(self, account: str, admission: Admission) -> None:
        """Ask *admission* about the entries of *account* from now on."""
        self._admissions[account] = admission

    async def check(self, intent: Intent, instrument: Instrument) -> None:  # noqa: ARG002 - every symbol's is the same
        """Refuse an entry that no reconciliation backs.

        Raises:
            TradingDenied: ``reason`` says why, see :meth:`Reconciler.admit`.
        """
        admission = self._admissions.get(intent.account)
        if admission is None:
            raise denied(intent, "not_reconciled")
        admission(intent)
