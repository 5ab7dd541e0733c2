"""Says what a start waits for: a desk that waits in silence looks like one that trades."""

from __future__ import annotations

import logging
from typing import Final, NoReturn

import anyio

import execsafe
from execsafe.buses.surviving import survived
from execsafe.safety import TripReason

_log = logging.getLogger("execsafe.bot.waiting")
_EVERY_S: Final = 15.0
_NAMED_MAX: Final = 5
_OPEN: Final = {execsafe.IntentState.LIVE}
CHECK_THE_KEY: Final = "check the key, its permissions, and sandbox or live"


def refusal(safety: execsafe.SafetyMonitor) -> str:
    """What holds entries back since the venue was asked a signed question, and what to do about it; empty: nothing."""
    for reason in (TripReason.AUTHENTICATION, TripReason.HEALTH):
        breaker = safety.record.breaker(reason)
        if reason in safety.reasons and breaker is not None:
            if reason is TripReason.AUTHENTICATION:
                return f"the venue refuses the key ({breaker.note}): {CHECK_THE_KEY}; once it works: execsafe reset"
            return f"the venue does not tell the balances ({breaker.note})"
    return ""


async def say_what_for(
    reconciler: execsafe.Reconciler, safety: execsafe.SafetyMonitor, registry: execsafe.IntentRegistry
) -> NoReturn:
    """Warn every quarter of a minute of what the barrier waits for, until cancelled."""

    async def say() -> None:
        _log.warning("no entry passes yet: %s", await _waits_for(reconciler, safety, registry))

    while True:
        await anyio.sleep(_EVERY_S)
        await survived(say, "saying what is waited for", log=_log)


async def _waits_for(
    reconciler: execsafe.Reconciler, safety: execsafe.SafetyMonitor, registry: execsafe.IntentRegistry
) -> str:
    """Everything that is known to be missing, in one sentence."""
    parts = [refusal(safety)]
    records = await registry.open_records(reconciler.account)
    parts.append(_named("not settled", [r.intent.key for r in records if r.state not in _OPEN]))
    last = reconciler.last
    if last is None:
        parts.append("venue, book and journal are being compared for the first time")
    else:
        parts.append(_named("could not be read", last.unread))
        parts.append(_named("differs, and is read a second time", [f"{f.symbol} ({f.kind})" for f in last.pending]))
    return "; ".join(filter(None, parts)) or "venue, book and journal are being compared"


def _named(what: str, names: list[str] | tuple[str, ...]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return f"{what}: {', '.join(names[:_NAMED_MAX])}{more}"
