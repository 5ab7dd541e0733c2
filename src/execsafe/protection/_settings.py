"""Leverage and margin mode: confirmed by the venue before an entry goes out, or it does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import attrs

from execsafe._calls import within
from execsafe.core.opening import EntryPlan
from execsafe.model.outcome import Meaning, Operation
from execsafe.ports import ExchangeAdapter

_TIMEOUT_S: Final = 10.0


@attrs.frozen
class Unconfirmed:
    """What the venue did not confirm: it refused, or nothing is known because it could not be asked."""

    why: str
    is_refused: bool


async def confirm_settings(adapter: ExchangeAdapter, plan: EntryPlan, *, tries: int) -> Unconfirmed | None:
    """Set what *plan* asks for; None once the venue has confirmed all of it, else what it did not.

    "It is so already" is a confirmation. Setting again does no harm, so an answer that did not come is asked for again.
    """
    if plan.margin_mode is not None:
        mode = plan.margin_mode
        lack = await _confirm(
            adapter, lambda: adapter.set_margin_mode(plan.symbol, mode), Operation.SET_MARGIN_MODE, tries
        )
        if lack is not None:
            return attrs.evolve(lack, why=f"the margin mode was not confirmed: {lack.why}")
    if plan.leverage is not None:
        leverage = plan.leverage
        lack = await _confirm(
            adapter, lambda: adapter.set_leverage(plan.symbol, leverage), Operation.SET_LEVERAGE, tries
        )
        if lack is not None:
            return attrs.evolve(lack, why=f"the leverage was not confirmed: {lack.why}")
    return None


async def _confirm(
    adapter: ExchangeAdapter, ask: Callable[[], Awaitable[None]], operation: Operation, tries: int
) -> Unconfirmed | None:
    why = "no answer"
    for _ in range(tries):
        try:
            with within(_TIMEOUT_S):
                await ask()
                return None
        except Exception as error:  # noqa: BLE001 - judged, never guessed
            judged = adapter.judge(error, operation)
            if judged.meaning is Meaning.NO_CHANGE:
                return None
            why = judged.facts.kind
            if judged.meaning is Meaning.REJECTED:
                return Unconfirmed(why, is_refused=not _passes(error))
    return Unconfirmed(why, is_refused=False)


def _passes(error: Exception) -> bool:
    """Whether a "no" is about the moment (rate, clock, maintenance), not about what was asked."""
    return any(cls.__name__ == "NetworkError" for cls in type(error).__mro__)
