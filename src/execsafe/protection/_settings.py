"""Leverage and margin mode: confirmed by the venue before an entry goes out, or it does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from execsafe._calls import within
from execsafe.core.opening import EntryPlan
from execsafe.model.outcome import Meaning, Operation
from execsafe.ports import ExchangeAdapter

_TIMEOUT_S: Final = 10.0


async def confirm_settings(adapter: ExchangeAdapter, plan: EntryPlan, *, tries: int) -> str:
    """Set what *plan* asks for; "" once the venue has confirmed all of it, else what it did not.

    "It is so already" is a confirmation. Setting again does no harm, so an answer that did not come is asked for again.
    """
    if plan.margin_mode is not None:
        mode = plan.margin_mode
        why = await _confirm(
            adapter, lambda: adapter.set_margin_mode(plan.symbol, mode), Operation.SET_MARGIN_MODE, tries
        )
        if why:
            return f"the margin mode was not confirmed: {why}"
    if plan.leverage is not None:
        leverage = plan.leverage
        why = await _confirm(
            adapter, lambda: adapter.set_leverage(plan.symbol, leverage), Operation.SET_LEVERAGE, tries
        )
        if why:
            return f"the leverage was not confirmed: {why}"
    return ""


async def _confirm(
    adapter: ExchangeAdapter, ask: Callable[[], Awaitable[None]], operation: Operation, tries: int
) -> str:
    why = "no answer"
    for _ in range(tries):
        try:
            with within(_TIMEOUT_S):
                await ask()
                return ""
        except Exception as error:  # noqa: BLE001 - judged, never guessed
            judged = adapter.judge(error, operation)
            if judged.meaning is Meaning.NO_CHANGE:
                return ""
            why = judged.facts.kind
            if judged.meaning is Meaning.REJECTED:
                break
    return why
