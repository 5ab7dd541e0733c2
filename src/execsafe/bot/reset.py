"""``execsafe reset``: a person has looked at what restricts trading, and ends it.

No lease is needed, so a bot may run meanwhile: it reads what others wrote before each entry, and every second.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final

import attrs

import execsafe
from execsafe.bot.journal import age
from execsafe.core.safety import RULES, Breaker, SafetyRecord
from execsafe.safety import COLLECTION, TripReason

_log = logging.getLogger("execsafe.bot.reset")
_DESK: Final = "default"
_NAMED_MAX: Final = 3
_LENGTHS: Final = re.compile(r"^\d+\.\d+:")  # with which an intent's identity begins: nothing for people


@attrs.frozen(kw_only=True)
class Reset:
    """What it came to: the trading state *before* and *after*, and which reasons were ended."""

    before: SafetyRecord
    after: SafetyRecord
    ended: tuple[TripReason, ...]


async def reset(store: execsafe.Store, reasons: Collection[TripReason], *, note: str) -> Reset:
    """End what restricts trading, for the *reasons* named or all that stand. Opens and closes the store.

    What nothing restricts is left as it is.

    Raises:
        InvalidInput: *note* is empty, too long (200) or not printable.
        StoreError: the state cannot be read or written.
    """
    try:
        await store.open()
        if await stored_state(store) is None:  # a monitor would begin one
            return Reset(before=SafetyRecord(), after=SafetyRecord(), ended=())
        monitor = execsafe.SafetyMonitor(store, name=_DESK)
        await monitor.refresh()
        before = monitor.record
        chosen = tuple(reason for reason in monitor.reasons if not reasons or reason in reasons)
        if chosen:
            await monitor.reset(*chosen, note=note)
        return Reset(before=before, after=monitor.record, ended=chosen)
    finally:
        await store.aclose()


def reasons_named(names: Collection[str]) -> tuple[TripReason, ...]:
    """The reasons of those *names*.

    Raises:
        InvalidInput: there is no such reason.
    """
    for name in names:
        if name not in set(TripReason):
            raise execsafe.InvalidInput(f"no reason is called {name!r}; there are {', '.join(sorted(TripReason))}")
    return tuple(TripReason(name) for name in names)


async def stored_state(store: execsafe.Store) -> SafetyRecord | None:
    """What the store tells of the desk's trading state; None if no desk has worked on it. Only reads.

    Raises:
        StoreError: it cannot be read.
    """
    stored = await store.find(COLLECTION, _DESK)
    return stored.value if stored is not None and isinstance(stored.value, SafetyRecord) else None


def standing(record: SafetyRecord) -> list[Breaker]:
    """Everything that restricts trading, the worst first."""
    found = [breaker for breaker in record.breakers if breaker.ended_at_ms is None]
    return sorted(found, key=lambda breaker: (-breaker.state.rank, breaker.since_ms))


def lines(record: SafetyRecord, *, now_ms: int) -> list[str]:
    """What restricts trading, since when, why, and about what; a sentence for each reason."""
    return [_line(record, breaker, now_ms) for breaker in standing(record)]


def needs_a_person(record: SafetyRecord) -> bool:
    """Whether something restricts trading that does not end by itself."""
    return any(breaker.by_hand for breaker in standing(record))


def command(config: object = "FILE") -> str:
    """What to type."""
    return f"execsafe reset --config {shlex.quote(str(config))} --note WHY"


def teller(config: object) -> execsafe.Listener:
    """A listener that says, when something trips that only a person ends, how that is done."""

    def tell(event: execsafe.Event) -> None:
        if event.type is not execsafe.EventType.BREAKER_TRIPPED:
            return
        facts = event.details.thaw()
        if facts.get("until_ms") is None:
            why = f" ({facts['why']})" if facts.get("why") else ""
            _log.error(
                "trading is %s: %s%s. No entry passes until you have looked, and said so: %s",
                facts.get("state"),
                facts.get("reason"),
                why,
                command(config),
            )

    return tell


def _line(record: SafetyRecord, breaker: Breaker, now_ms: int) -> str:
    since = datetime.fromtimestamp(breaker.since_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    ends = "until reset by hand" if breaker.by_hand else "and ends by itself"
    meaning, note = RULES[breaker.reason].meaning, f" ({breaker.note})" if breaker.note else ""
    subjects = [_LENGTHS.sub("", cause.subject) for cause in record.causes if cause.reason is breaker.reason]
    more = f" and {len(subjects) - _NAMED_MAX} more" if len(subjects) > _NAMED_MAX else ""
    about = f": {', '.join(subjects[:_NAMED_MAX])}{more}" if subjects else ""
    return (
        f"{breaker.reason.value}: {breaker.state.value} since {since} ({age(now_ms - breaker.since_ms)} ago), {ends}; "
        f"{meaning}{note}{about}"
    )
