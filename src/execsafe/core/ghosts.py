"""Verdicts on orders in doubt.

Two rules, and nothing else, allow a resend:

* *Silence is not absence.* An order is absent only when **every** declared view was read and says so.
* *An early look proves nothing.* That look must have **begun** at or after the request's deadline plus the
  clock skew plus the venue's read lag. One millisecond earlier there is a history with two orders.
  Where there are several views, a second such look must follow that begins a read lag after the first ended: an
  order that ends moves from one list to another, and lists that lag differently can both miss it once.
  *A late look proves nothing* either: it must begin while the views still show an order that ended when it was sent.

A venue without request expiry has no deadline: there absence is never proven, whatever the patience.

Nor is it where the venue itself said that the order is there (a duplicate-id reject). What such looks prove then is
that it *has ended*: whatever rests is shown. What it filled is for :mod:`execsafe.core.endings` to find out.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import attrs

from execsafe.model.intent import Attempt
from execsafe.model.venue import Expiry, VenueProfile, View

_SHOWS_WHAT_RESTS = frozenset({View.CLIENT_ID, View.OPEN_ORDERS})


class Sighting(enum.StrEnum):
    """What one view said in one look."""

    PRESENT = "present"
    ABSENT = "absent"
    UNREADABLE = "unreadable"  # a failed read is not an empty read


class Verdict(enum.StrEnum):
    """What to do about an order in doubt."""

    FOUND = "found"  # adopt it
    ABSENT = "absent"  # proven: may be sent again
    ENDED = "ended"  # proven: it was there, and rests no more
    LOOK_AGAIN = "look_again"
    UNRESOLVED = "unresolved"  # escalate; it still counts


@attrs.frozen(kw_only=True)
class Doubt:
    """One submit whose outcome is unknown. Times in Unix milliseconds.

    ``proof_at_ms``: a look that begins then or later can prove absence; None: none can.
    ``patience_ends_ms``: when to escalate.
    ``confirm_after_ms``: how long after one such look a second one must begin; 0: one is enough.
    ``proof_ends_ms``: from when on the views may have forgotten the order; None: they do not.
    ``exists``: the venue said that an order with this id is there, or was.
    """

    proof_at_ms: int | None
    patience_ends_ms: int
    confirm_after_ms: int = 0
    proof_ends_ms: int | None = None
    exists: bool = False


def doubt_of(attempt: Attempt, profile: VenueProfile, *, since_ms: int, patience_s: float) -> Doubt:
    """The doubt about *attempt*, watched since *since_ms*."""
    ends = since_ms + round(patience_s * 1000)
    margin = round((profile.clock_skew_s + profile.read_lag_s) * 1000)
    if attempt.exists:
        learned_at_ms = max(since_ms, attempt.deadline_ms or 0)
        return Doubt(
            proof_at_ms=learned_at_ms + margin if shows_what_rests(profile.views) else None,
            patience_ends_ms=ends,
            confirm_after_ms=margin,
            exists=True,
        )
    if attempt.deadline_ms is None or profile.expiry is Expiry.NONE:
        return Doubt(proof_at_ms=None, patience_ends_ms=ends)
    return Doubt(
        proof_at_ms=attempt.deadline_ms + margin,
        patience_ends_ms=ends,
        confirm_after_ms=round(profile.read_lag_s * 1000) if len(profile.views) > 1 else 0,
        proof_ends_ms=None
        if profile.history_s is None
        else attempt.prepared_at_ms + round(profile.history_s * 1000) - margin,
    )


def of_orders(views: Iterable[View]) -> tuple[View, ...]:
    """The views that show orders as such: lists of trades say nothing about what rests."""
    return tuple(view for view in views if view is not View.TRADES)


def shows_what_rests(views: Iterable[View]) -> bool:
    """Whether an order that rests would be seen in one of *views*."""
    return not _SHOWS_WHAT_RESTS.isdisjoint(views)


def is_absent_everywhere(
    doubt: Doubt, views: Iterable[View], seen: Mapping[View, Sighting], *, looked_at_ms: int
) -> bool:
    """Whether a look that began at *looked_at_ms* was late enough, but not too late, and found the order nowhere."""
    declared = of_orders(views) if doubt.exists else tuple(views)
    all_absent = bool(declared) and all(seen.get(view) is Sighting.ABSENT for view in declared)
    remembered = doubt.proof_ends_ms is None or looked_at_ms < doubt.proof_ends_ms
    return all_absent and doubt.proof_at_ms is not None and looked_at_ms >= doubt.proof_at_ms and remembered


def judge(
    doubt: Doubt,
    views: Iterable[View],
    seen: Mapping[View, Sighting],
    *,
    looked_at_ms: int,
    absent_since_ms: int | None = None,
) -> Verdict:
    """The one safe next step. *looked_at_ms* is when the look **began**.

    *absent_since_ms* is when the first look that found the order nowhere (:func:`is_absent_everywhere`) **ended**;
    None: there was none before this one.
    """
    if Sighting.PRESENT in seen.values():
        return Verdict.FOUND
    if is_absent_everywhere(doubt, views, seen, looked_at_ms=looked_at_ms):
        confirmed = absent_since_ms is not None and looked_at_ms >= absent_since_ms + doubt.confirm_after_ms
        if not confirmed and doubt.confirm_after_ms > 0:
            return Verdict.LOOK_AGAIN  # a proof that is half done is brought to its end, whatever the patience
        return Verdict.ENDED if doubt.exists else Verdict.ABSENT
    return Verdict.UNRESOLVED if looked_at_ms >= doubt.patience_ends_ms else Verdict.LOOK_AGAIN


def next_look_ms(doubt: Doubt, *, now_ms: int, interval_ms: int, absent_since_ms: int | None = None) -> int:
    """When to look again: after the interval, but exactly on the instants at which a verdict becomes possible."""
    at = now_ms + interval_ms
    confirm_at_ms = None if absent_since_ms is None else absent_since_ms + doubt.confirm_after_ms
    for instant in (doubt.proof_at_ms, confirm_at_ms, doubt.patience_ends_ms):
        if instant is not None and now_ms < instant < at:
            at = instant
    return at


def default_patience_s(profile: VenueProfile, request_timeout_s: float) -> float:
    """Long enough for a proof where one is possible, with room for a few failed reads."""
    window = 0.0 if profile.expiry is Expiry.NONE else profile.expiry_window_s
    return request_timeout_s + window + profile.clock_skew_s + 2 * profile.read_lag_s + 15.0
