"""How long to leave a venue alone that turned a request away for coming too often.

A venue that says 429 and is asked on says 418, and then bans for minutes, then days. So the answer is obeyed: until the
instant that it names, or for pauses that double where it names none. Decides, and does not wait.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

import attrs

from execsafe.core.backoff import Backoff
from execsafe.model.values import check_seconds

_PAUSES: Final = Backoff(base_s=1.0, cap_s=60.0, jitter=0.0, max_attempts=None)
_UNTIL: Final = re.compile(r"banned until (\d{13})(?!\d)", re.ASCII)
_SECONDS: Final = re.compile(r"\d{1,9}(?:\.\d{1,3})?", re.ASCII)
_DATE_LENGTH_MAX: Final = 40


@attrs.frozen(kw_only=True)
class PacingPolicy:
    """How to obey.

    Attributes:
        pauses: the pauses where the venue names no time: 1 s, doubled with every further refusal, up to a minute.
            Cancels and exits are tried again after such a pause, even if the venue named a later time.
        longest_s: how much of a time that the venue names is believed. Three days: the longest ban in the field.
    """

    pauses: Backoff = _PAUSES
    longest_s: float = 3 * 86_400.0

    def __attrs_post_init__(self) -> None:
        """Refuse a time that is none."""
        check_seconds(self.longest_s, "longest_s", most=30 * 86_400.0)


@attrs.frozen(kw_only=True)
class Pace:
    """What is known of a venue's patience. Unix milliseconds.

    ``not_before_ms``: when to ask again; ``urgent_from_ms``: when what must get through may be tried again.
    """

    refusals: int = 0
    refused_at_ms: int = 0
    not_before_ms: int = 0
    urgent_from_ms: int = 0


def slowed(pace: Pace, policy: PacingPolicy, *, retry_after_s: float | None, began_ms: int, now_ms: int) -> Pace:
    """After the refusal of a request that began at *began_ms*. It never shortens what an earlier one asked for.

    Requests that were under way together are refused together: that is one refusal, and doubles the pause once.
    """
    is_same = pace.refusals > 0 and began_ms <= pace.refused_at_ms
    refusals = pace.refusals if is_same else pace.refusals + 1
    pause_ms = policy.pauses.envelope_ms(refusals)
    named_ms = 0 if retry_after_s is None else round(min(retry_after_s, policy.longest_s) * 1000)
    return Pace(
        refusals=refusals,
        refused_at_ms=now_ms,
        not_before_ms=max(pace.not_before_ms, now_ms + max(pause_ms, named_ms)),
        urgent_from_ms=max(pace.urgent_from_ms, now_ms + pause_ms),
    )


def eased(pace: Pace, *, began_ms: int, now_ms: int) -> Pace:
    """After an answer to a request that began at *began_ms*.

    One that was under way when the refusal came says nothing. A later one shows that urgent requests get through; the
    time that the venue named is obeyed all the same: its limits differ by kind of request.
    """
    if began_ms <= pace.refused_at_ms:
        return pace
    return Pace() if now_ms >= pace.not_before_ms else attrs.evolve(pace, urgent_from_ms=0)


def asked_pause_s(error: BaseException, headers: Mapping[str, object], *, now_ms: int) -> float | None:
    """How long the venue asks to be left alone: its ``Retry-After`` header, or "banned until"; None: not said."""
    header = next((str(value) for name, value in headers.items() if name.lower() == "retry-after"), "")
    asked = _retry_after_s(header, now_ms)
    until = _UNTIL.search(str(error))
    left_s = None if until is None else max(0.0, (int(until[1]) - now_ms) / 1000)
    return max((s for s in (asked, left_s) if s is not None), default=None)


def _retry_after_s(header: str, now_ms: int) -> float | None:
    """Seconds, or a date (RFC 9110, section 10.2.3)."""
    if _SECONDS.fullmatch(header):
        return float(header)
    try:
        at = parsedate_to_datetime(header[:_DATE_LENGTH_MAX])
    except (TypeError, ValueError):
        return None
    return max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - now_ms / 1000)
