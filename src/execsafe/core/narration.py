"""Events as a pure function of two versions of a record: what happened is what changed."""

from __future__ import annotations

from typing import Final

from execsafe.core.exposure import excess
from execsafe.model.event import Event, EventType
from execsafe.model.intent import TERMINAL, Attempt, AttemptState, Intent, IntentRecord, IntentState
from execsafe.model.order import ZERO
from execsafe.model.trusted import trusted
from execsafe.model.values import left_of

_new_event: Final = trusted(Event)
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
    AttemptState.VANISHED: EventType.ORDER_VANISHED,
}
_NEVER_WAS: Final = frozenset({IntentState.REJECTED, IntentState.FAILED_FINAL})
"""Verdicts that there is no such order; one that turns up is news, even if it has ended meanwhile."""
_ENDED: Final = {
    IntentState.FILLED: EventType.INTENT_FILLED,
    IntentState.CANCELED: EventType.INTENT_CANCELED,
    IntentState.EXPIRED: EventType.INTENT_EXPIRED,
    IntentState.FAILED_FINAL: EventType.INTENT_FAILED,
}


def narrate(before: IntentRecord | None, after: IntentRecord, *, now_ms: int) -> tuple[Event, ...]:
    """The events that lead from *before* to *after*; none when nothing changed."""
    subject, symbol = after.intent.identity, after.intent.symbol
    told: list[Event] = []
    known: tuple[Attempt, ...] = ()
    if before is None:
        kind = EventType.INTENT_RECORDED
        told.append(_new_event(type=kind, at_ms=now_ms, subject=subject, symbol=symbol, quantity=after.quantity))
    else:
        known = before.attempts
        _tell_intent(told, before, after, now_ms)
    for number, attempt in enumerate(after.attempts):
        was = known[number] if number < len(known) else None
        if attempt is not was:
            _tell_attempt(told, was, attempt, after.intent, now_ms)
    over = excess(after)
    if over > 0 and (before is None or excess(before) <= 0):
        kind = EventType.EXCESS_EXPOSURE
        told.append(_new_event(type=kind, at_ms=now_ms, subject=subject, symbol=symbol, quantity=over))
    end = _ENDED.get(after.state)
    if end is not None and (before is None or before.state is not after.state):
        filled = after.filled_quantity
        told.append(_new_event(type=end, at_ms=now_ms, subject=subject, symbol=symbol, quantity=filled))
    return tuple(told)


def _tell_intent(told: list[Event], before: IntentRecord, after: IntentRecord, now_ms: int) -> None:
    subject, symbol = after.intent.identity, after.intent.symbol
    is_over = before.state in _NEVER_WAS and after.state is not before.state
    if is_over or (before.state in TERMINAL and after.state not in TERMINAL):
        kind, note = EventType.INTENT_REVIVED, before.state.value
        told.append(_new_event(type=kind, at_ms=now_ms, subject=subject, symbol=symbol, note=note))
    if after.change is not None and after.change != before.change:
        kind, note = EventType.CHANGE_ASKED, "cancel" if after.change.is_cancel else "replace"
        quantity = after.change.quantity
        told.append(_new_event(type=kind, at_ms=now_ms, subject=subject, symbol=symbol, note=note, quantity=quantity))


def _tell_attempt(told: list[Event], before: Attempt | None, after: Attempt, intent: Intent, now_ms: int) -> None:
    was, filled = (None, ZERO) if before is None else (before.state, before.filled_quantity)
    kind = _kind(was, after.state)
    if kind is not None:
        told.append(
            _new_event(
                type=kind,
                at_ms=now_ms,
                subject=intent.identity,
                symbol=intent.symbol,
                attempt=after.number,
                client_order_id=after.client_order_id,
                venue_order_id=after.venue_order_id,
                error=after.error if kind in _EXPLAINED else None,
            )
        )
    if after.filled_quantity > filled:
        told.append(
            _new_event(
                type=EventType.ORDER_FILL,
                at_ms=now_ms,
                subject=intent.identity,
                symbol=intent.symbol,
                attempt=after.number,
                client_order_id=after.client_order_id,
                venue_order_id=after.venue_order_id,
                quantity=left_of(after.filled_quantity, filled),
            )
        )


def _kind(was: AttemptState | None, now: AttemptState) -> EventType | None:
    if now is was:
        return None
    entered = _ENTERED.get(now)
    if entered is not None or now is AttemptState.NOT_SENT:
        return entered
    if was is None or was is AttemptState.SENDING:
        return EventType.ORDER_ACKNOWLEDGED
    return EventType.ORDER_ADOPTED if was in _OVERTURNED else None
