"""What a trade of several legs came to: different types, so that no outcome can be taken for another."""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs

from execsafe.core.hedging import HedgeRecord, LegExposure, Verdict


@attrs.frozen(kw_only=True)
class Executed:
    """The leading leg filled, and the others hedge it to within one step; ``exposures`` has the exact rest."""

    key: str
    exposures: tuple[LegExposure, ...]
    reason: str = ""


@attrs.frozen(kw_only=True)
class Aborted:
    """Too little of the leading leg filled. Flat: what had filled was undone, and the venue shows nothing else."""

    key: str
    exposures: tuple[LegExposure, ...]
    reason: str = ""


@attrs.frozen(kw_only=True)
class Unwound:
    """The leading leg filled and could not be hedged. Flat, as for :class:`Aborted`."""

    key: str
    exposures: tuple[LegExposure, ...]
    reason: str = ""


@attrs.frozen(kw_only=True)
class ResidualExposure:
    """Something is left that could neither be hedged nor unwound. An alarm was raised.

    ``is_done`` False: ``recover()`` goes on trying, from ``retry_at_ms`` on, and an equal plan is refused until then.
    True: it is too small to be sold by any order.
    """

    key: str
    exposures: tuple[LegExposure, ...]
    reason: str = ""
    is_done: bool = False
    retry_at_ms: int | None = None


@attrs.frozen(kw_only=True)
class HandedOver:
    """Something is left, and the venue has refused for so long to unwind it that ``recover()`` sends nothing any more.

    ``exposures`` say what is left by the plan's own orders. A person acts next: look at the venue, close there what is
    really held (it may have been closed by other means), and then ``settle(key, note)``. An equal plan is refused until
    then. Should an order of the plan turn out to have filled, ``recover()`` goes on by itself.
    """

    key: str
    exposures: tuple[LegExposure, ...]
    reason: str = ""


@attrs.frozen(kw_only=True)
class ExposureUnknown:
    """An order is in doubt: ``in_doubt`` of the exposures may still fill. Nothing was guessed.

    ``recover()`` goes on with it, from ``retry_at_ms`` on or as soon as its fate is known, and an equal plan is refused
    until then.
    """

    key: str
    exposures: tuple[LegExposure, ...]
    reason: str = ""
    retry_at_ms: int | None = None


@attrs.frozen(kw_only=True)
class Deduplicated:
    """Nothing was sent by this call.

    ``reason`` is "in flight" (an equal trade runs at this moment), "unfinished" (an equal one could not be brought to
    its end yet) or "done" (the signal has been traded). ``result`` is what that one came to, where it is known.
    """

    key: str
    reason: str
    result: SettledResult | None = None


SettledResult: TypeAlias = Executed | Aborted | Unwound | ResidualExposure | HandedOver | ExposureUnknown
"""What a plan can come to."""

HedgeResult: TypeAlias = SettledResult | Deduplicated
"""Everything that ``execute()`` can return."""

_TYPES: Final[dict[Verdict, type[Executed | Aborted | Unwound]]] = {
    Verdict.NOT_STARTED: Aborted,
    Verdict.EXECUTED: Executed,
    Verdict.ABORTED: Aborted,
    Verdict.UNWOUND: Unwound,
}


def result_of(record: HedgeRecord) -> SettledResult | None:
    """The result that a record stands for; None while it has none."""
    if record.verdict is None:
        return None
    key, exposures, reason = record.key, record.exposures, record.reason
    if record.is_handed_over and not record.is_done:
        return HandedOver(key=key, exposures=exposures, reason=reason)
    at_ms = None if record.is_done else record.retry_at_ms
    if record.verdict is Verdict.RESIDUAL:
        return ResidualExposure(key=key, exposures=exposures, reason=reason, is_done=record.is_done, retry_at_ms=at_ms)
    if record.verdict is Verdict.UNKNOWN:
        return ExposureUnknown(key=key, exposures=exposures, reason=reason, retry_at_ms=at_ms)
    return _TYPES[record.verdict](key=key, exposures=exposures, reason=reason)


def in_the_dark(record: HedgeRecord) -> ExposureUnknown:
    """The result of a plan whose pass had no end."""
    return ExposureUnknown(key=record.key, exposures=record.exposures, reason=record.reason)
