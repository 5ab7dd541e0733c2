"""Events as a pure function of two versions of a record: what happened is what changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from execsafe.core.exposure import excess
from execsafe.model.event import Event, EventType
from execsafe.model.intent import Attempt, AttemptState, IntentRecord, IntentState
from execsafe.model.order import ZERO
from execsafe.model.values import left_of

_OVERTURNED: Final = frozenset(
    {
        AttemptState.IN_DOUBT,
        AttemptState.UNRESOLVED,
        AttemptState.ABSENT,
        AttemptState.NOT_SENT,
        AttemptState.REJECTED,
    }
)
_EXPLAINED: Final = frozenset({EventType.ORDER_REJECTED, EventType.ORDER_IN_DOUBT, EventType.INTENT_UNRESOLVED})
_ENTERED: Final = {
    AttemptState.SENDING: EventType.ATTEMPT_SENDING,
    AttemptState.REJECTED: EventType.ORDER_REJECTED,
    AttemptState.IN_DOUBT: EventType.ORDER_IN_DOUBT,
    AttemptState.ABSENT: EventType.ATTEMPT_ABSENT,
    AttemptState.UNRESOLVED: EventType.INTENT_UNRESOLVED,
}
_ENDED: Final = {
    IntentState.FILLED: EventType.INTENT_FILLED,
    IntentState.CANCELED: EventType.INTENT_CANCELED,
    IntentState.EXPIRED: EventType.INTENT_EXPIRED,
    IntentState.FAILED_FINAL: EventType.INTENT_FAILED,
}


def narrate(before: IntentRecord | None, after: IntentRecord, *, now_ms: int) -> tuple[Event, ...]:
    """The events that lead from *before* to *after*; none when nothing changed."""
    subject = after.intent.identity
    told: list[Event] = []
    if before is None:
        told.append(Event(type=EventType.INTENT_RECORDED, at_ms=now_ms, subject=subject, quantity=after.quantity))
    else:
        told.extend(_about_intent(before, after, subject, now_ms))
    for attempt in after.attempts:
        was = before.attempts[attempt.number - 1] if before and attempt.number <= len(before.attempts) else None
        if attempt is not was:
            told.extend(_about_attempt(was, attempt, subject, now_ms))
    over = excess(after)
    if over > 0 and (before is None or excess(before) <= 0):
        told.append(Event(type=EventType.EXCESS_EXPOSURE, at_ms=now_ms, subject=subject, quantity=over))
    if after.state in _ENDED and (before is None or before.state is not after.state):
        filled = after.filled_quantity
        told.append(Event(type=_ENDED[after.state], at_ms=now_ms, subject=subject, quantity=filled))
    return tuple(told)


def _about_intent(before: IntentRecord, after: IntentRecord, subject: str, now_ms: int) -> Iterator[Event]:
    if before.state.is_terminal and not after.state.is_terminal:
        yield Event(type=EventType.INTENT_REVIVED, at_ms=now_ms, subject=subject, note=before.state.value)
    if after.change is not None and after.change != before.change:
        note = "cancel" if after.change.is_cancel else "replace"
        yield Event(
            type=EventType.CHANGE_ASKED, at_ms=now_ms, subject=subject, note=note, quantity=after.change.quantity
        )


def _about_attempt(before: Attempt | None, after: Attempt, subject: str, now_ms: int) -> Iterator[Event]:
    kind = _kind(None if before is None else before.state, after.state)
    grown = left_of(after.filled_quantity, ZERO if before is None else before.filled_quantity)
    if kind is not None:
        yield Event(
            type=kind,
            at_ms=now_ms,
            subject=subject,
            attempt=after.number,
            client_order_id=after.client_order_id,
            venue_order_id=after.venue_order_id,
            error=after.error if kind in _EXPLAINED else None,
        )
    if grown > 0:
        yield Event(
            type=EventType.ORDER_FILL,
            at_ms=now_ms,
            subject=subject,
            attempt=after.number,
            client_order_id=after.client_order_id,
            venue_order_id=after.venue_order_id,
            quantity=grown,
        )


def _kind(was: AttemptState | None, now: AttemptState) -> EventType | None:
    if now is was or now is AttemptState.NOT_SENT:
        return None
    if now in _ENTERED:
        return _ENTERED[now]
    if was is None or was is AttemptState.SENDING:
        return EventType.ORDER_ACKNOWLEDGED
    return EventType.ORDER_ADOPTED if was in _OVERTURNED else None
