"""One call of a handler: what it came to, whatever it raises."""

from __future__ import annotations

import logging
from typing import Final

import anyio

from execsafe.core.redaction import redact
from execsafe.core.safety import is_for_now
from execsafe.core.signals import DropReason
from execsafe.errors import InvalidOrder, TradingDenied, UnsupportedByVenue
from execsafe.model.values import shorten
from execsafe.signals.work import NOT_NOW, Executed, Pending, Refused, SignalHandler, SignalResult, SignalWork

_log = logging.getLogger("execsafe.signals")
_NOTE_LENGTH_MAX: Final = 300
_RESULTS: Final = (Executed, Refused, Pending)


async def result_of_handler(work: SignalWork, handler: SignalHandler, budget_s: float) -> SignalResult | str:
    """What the handler came to; text: how it failed."""
    try:
        with anyio.move_on_after(budget_s):
            result: object = await handler(work)  # whatever it really returns
            return result if isinstance(result, _RESULTS) else f"it returned {type(result).__name__}"
        return f"no end within {budget_s:g} s"
    except TradingDenied as error:
        if is_for_now(error):
            return Pending(note=_brief(error), attempted=False)
        is_stale = error.context.get("reason") == "stale"
        return Refused(reason=DropReason.STALE if is_stale else DropReason.DENIED, note=_brief(error))
    except (InvalidOrder, UnsupportedByVenue) as error:
        return Refused(reason=DropReason.INVALID_ORDER, note=_brief(error))
    except NOT_NOW as error:
        return Pending(note=type(error).__name__)
    except Exception as error:  # noqa: BLE001 - whatever a handler raises
        _log.error("the handler failed on signal %s: %s", shorten(work.signal.id, 200), _brief(error))
        return type(error).__name__[:_NOTE_LENGTH_MAX]


def _brief(error: Exception) -> str:
    # What a venue's client says may hold a signed URL.
    return redact(f"{type(error).__name__}: {error}")[:_NOTE_LENGTH_MAX]
