"""The life of an intent, as two tables and one function per observation.

Rules:

1. Every change of an attempt goes through ``ATTEMPT_TRANSITIONS``; a missing edge is an error.
2. The intent's state is derived from its attempts (``derive_state``) and checked against
   ``INTENT_TRANSITIONS``. Terminal states have edges too: late evidence wins (guarantee G11).
3. Filled quantities only grow, and only by what a report states.
4. An observation that says nothing new returns the same record, so that applying it twice changes nothing.

Times are Unix milliseconds and always an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Final

import attrs

from execsafe.core.exposure import room
from execsafe.errors import InvalidTransition
from execsafe.model.intent import (
    MAY_FILL,
    TERMINAL,
    Attempt,
    AttemptState,
    Change,
    ErrorFacts,
    Intent,
    IntentRecord,
    IntentState,
)
from execsafe.model.order import ZERO, Fill, OrderReport, OrderStatus
from execsafe.model.trusted import trusted
from execsafe.model.values import total, weighted_average

_new_record: Final = trusted(IntentRecord)
_new_attempt: Final = trusted(Attempt)
_A = AttemptState
_I = IntentState
_ENDS: Final = frozenset({_A.FILLED, _A.CANCELED, _A.EXPIRED, _A.REJECTED})
_SEEN: Final = frozenset({_A.LIVE}) | _ENDS
_OVER: Final = _ENDS | {_A.VANISHED}
_MAY_VANISH: Final = frozenset({_A.LIVE, _A.IN_DOUBT, _A.UNRESOLVED})

ATTEMPT_TRANSITIONS: Final[Mapping[AttemptState, frozenset[AttemptState]]] = {
    _A.SENDING: _SEEN | {_A.IN_DOUBT, _A.NOT_SENT},
    _A.IN_DOUBT: _SEEN | {_A.UNRESOLVED, _A.ABSENT, _A.VANISHED},
    _A.UNRESOLVED: _SEEN | {_A.IN_DOUBT, _A.VANISHED},
    _A.LIVE: _ENDS | {_A.VANISHED},
    # Verdicts and ends that late evidence may overturn:
    _A.NOT_SENT: _SEEN,
    _A.ABSENT: _SEEN,
    _A.REJECTED: frozenset({_A.LIVE, _A.FILLED, _A.CANCELED, _A.EXPIRED}),
    _A.CANCELED: frozenset({_A.LIVE, _A.FILLED}),
    _A.EXPIRED: frozenset({_A.LIVE, _A.FILLED}),
    _A.VANISHED: frozenset({_A.LIVE, _A.FILLED}),
    _A.FILLED: frozenset(),
}
"""Which state of an attempt may follow which."""

_ANY_OPEN: Final = frozenset({_I.SENDING, _I.IN_DOUBT, _I.UNRESOLVED, _I.LIVE})
_ANY_END: Final = frozenset({_I.FILLED, _I.CANCELED, _I.EXPIRED, _I.REJECTED})

INTENT_TRANSITIONS: Final[Mapping[IntentState, frozenset[IntentState]]] = {
    _I.RECORDED: frozenset({_I.SENDING, _I.LIVE, _I.FAILED_FINAL}) | _ANY_END,
    _I.SENDING: frozenset({_I.RECORDED, _I.IN_DOUBT, _I.LIVE}) | _ANY_END,
    _I.IN_DOUBT: frozenset({_I.RECORDED, _I.UNRESOLVED, _I.LIVE}) | _ANY_END,
    _I.UNRESOLVED: frozenset({_I.RECORDED, _I.IN_DOUBT, _I.LIVE}) | _ANY_END,
    _I.LIVE: frozenset({_I.RECORDED}) | _ANY_END,
    _I.FILLED: frozenset({_I.LIVE}),
    _I.CANCELED: frozenset({_I.LIVE, _I.FILLED, _I.EXPIRED, _I.REJECTED}),
    _I.EXPIRED: frozenset({_I.LIVE, _I.FILLED, _I.CANCELED}),
    _I.REJECTED: frozenset({_I.LIVE}) | _ANY_END - {_I.REJECTED},
    _I.FAILED_FINAL: frozenset({_I.LIVE}) | _ANY_END,
}
"""Which state of an intent may follow which. LIVE to RECORDED is a replacement being prepared."""

_OPEN_PRECEDENCE: Final = (
    (_A.UNRESOLVED, _I.UNRESOLVED),
    (_A.IN_DOUBT, _I.IN_DOUBT),
    (_A.SENDING, _I.SENDING),
    (_A.LIVE, _I.LIVE),
)
_NEVER_WERE: Final = frozenset({_A.NOT_SENT, _A.ABSENT})
_REPLACEABLE: Final = frozenset({_A.CANCELED, _A.EXPIRED, _A.FILLED, _A.VANISHED})
_END_OF: Final = {
    _A.CANCELED: _I.CANCELED,
    _A.EXPIRED: _I.EXPIRED,
    _A.FILLED: _I.CANCELED,
    _A.VANISHED: _I.CANCELED,
}
_REPORTED_END: Final = {
    OrderStatus.CLOSED: _A.CANCELED,  # closed with less than the quantity: the rest was canceled
    OrderStatus.CANCELED: _A.CANCELED,
    OrderStatus.EXPIRED: _A.EXPIRED,
    OrderStatus.REJECTED: _A.REJECTED,
}


# --- The derived state ---------------------------------------------------------------------------


def derive_state(record: IntentRecord) -> IntentState:
    """The intent's state, from its attempts: the least certain open attempt decides."""
    return _derive(record.attempts, record.quantity, record.change, given_up=record.given_up)


def _derive(attempts: tuple[Attempt, ...], quantity: Decimal, change: Change | None, *, given_up: bool) -> IntentState:
    states = [a.state for a in attempts]
    for attempt_state, intent_state in _OPEN_PRECEDENCE:
        if attempt_state in states:
            return intent_state
    filled = total([a.filled_quantity for a in attempts])
    if filled >= quantity:
        return _I.FILLED
    last = states[-1] if states else _A.NOT_SENT
    if _wants_more(last, change, given_up=given_up):
        return _I.RECORDED
    if last in _NEVER_WERE:
        # Failed only if there never was an order: a replaced one that ended without a fill did exist.
        existed = filled > 0 or any(a.state in _OVER for a in attempts)
        return _I.CANCELED if existed or (change is not None and change.is_cancel) else _I.FAILED_FINAL
    if last is _A.REJECTED:
        return _I.CANCELED if filled > 0 else _I.REJECTED
    return _END_OF[last]


def _may_fill(attempts: tuple[Attempt, ...]) -> bool:
    return not MAY_FILL.isdisjoint([a.state for a in attempts])


def wants_more(record: IntentRecord) -> bool:
    """Whether another attempt is due: the last one never existed, or a replacement was asked for."""
    last = _A.NOT_SENT if record.last is None else record.last.state
    return _wants_more(last, record.change, given_up=record.given_up)


def _wants_more(last: AttemptState, change: Change | None, *, given_up: bool) -> bool:
    if given_up or (change is not None and change.is_cancel):
        return False
    return last in _NEVER_WERE or (change is not None and last in _REPLACEABLE)


def _settle(
    before: IntentRecord,
    now_ms: int,
    *,
    attempts: tuple[Attempt, ...],
    change: Change | None,
    given_up: bool,
) -> IntentRecord:
    """*before* with new facts and all that follows from them. Checks the edge."""
    quantity, limit_price, amendment = before.quantity, before.limit_price, before.amendment
    if change is not None and change.quantity is not None and not _may_fill(attempts):
        # A replacement's terms count from the moment at which the replaced order can no longer fill.
        quantity = max(change.quantity, total(a.filled_quantity for a in attempts))
        limit_price = change.limit_price if change.limit_price is not None else limit_price
        amendment = change.amendment if change.amendment is not None else amendment
    state = _derive(attempts, quantity, change, given_up=given_up)
    if state is not before.state and state not in INTENT_TRANSITIONS[before.state]:
        raise InvalidTransition(
            f"an intent cannot go from {before.state.value} to {state.value}", intent_key=before.intent.key
        )
    has_ended = state in TERMINAL
    return _new_record(
        intent=before.intent,
        quantity=quantity,
        limit_price=limit_price,
        attempts=attempts,
        state=state,
        change=change,
        given_up=given_up or has_ended,  # late evidence may revive its orders, never its sending
        created_at_ms=before.created_at_ms,
        updated_at_ms=now_ms,
        ended_at_ms=(before.ended_at_ms or now_ms) if has_ended else None,
        version=before.version,
        venue=before.venue,
        amendment=amendment,
    )


def _replace(record: IntentRecord, attempt: Attempt, now_ms: int) -> IntentRecord:
    old = record.attempts[attempt.number - 1]
    if attempt.state is old.state:
        if attempt == old:
            return record
    elif attempt.state not in ATTEMPT_TRANSITIONS[old.state]:
        raise InvalidTransition(
            f"an attempt cannot go from {old.state.value} to {attempt.state.value}",
            intent_key=record.intent.key,
            client_order_id=old.client_order_id,
        )
    attempts = tuple([attempt if each is old else each for each in record.attempts])
    return _settle(record, now_ms, attempts=attempts, change=record.change, given_up=record.given_up)


# --- What we do ----------------------------------------------------------------------------------


def new_record(
    intent: Intent, *, quantity: Decimal, limit_price: Decimal | None, now_ms: int, venue: str = ""
) -> IntentRecord:
    """A record of what is meant, with the rounded *quantity* and *limit_price*; nothing sent yet."""
    return _new_record(
        intent=intent,
        quantity=quantity,
        limit_price=limit_price,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
        venue=venue,
    )


def generation(record: IntentRecord) -> int:
    """Which client order id comes next: one more for every attempt that was an order, and has ended.

    After proven absence the id stays the same: should an assumption of the proof be wrong, a venue that
    enforces uniqueness still stops the second order.
    """
    return len([a for a in record.attempts if a.state in _OVER])


def begin(record: IntentRecord, *, client_order_id: str, deadline_ms: int | None, now_ms: int) -> IntentRecord:
    """Journal the next attempt, for all that may still be sent.

    Raises:
        InvalidTransition: there is no room, or the record does not want more.
    """
    quantity = room(record)
    if quantity <= 0 or not wants_more(record) or _may_fill(record.attempts):
        raise InvalidTransition(
            f"nothing may be sent in state {record.state.value} with room for {quantity}",
            intent_key=record.intent.key,
        )
    attempt = _new_attempt(
        number=len(record.attempts) + 1,
        client_order_id=client_order_id,
        quantity=quantity,
        limit_price=record.limit_price,
        prepared_at_ms=now_ms,
        deadline_ms=deadline_ms,
    )
    change = None if record.change is None else _served(record.change)
    attempts = (*record.attempts, attempt)
    return _settle(record, now_ms, attempts=attempts, change=change, given_up=record.given_up)


def _served(change: Change) -> Change | None:
    return change if change.is_cancel else None


def give_up(record: IntentRecord, *, now_ms: int) -> IntentRecord:
    """Make no further attempt. Only the derived state says whether that is a failure."""
    if record.given_up:
        return record
    return _settle(record, now_ms, attempts=record.attempts, change=record.change, given_up=True)


def ask_change(record: IntentRecord, change: Change, *, now_ms: int) -> IntentRecord:
    """Journal the wish to cancel or replace, unless it has ended; a replacement never displaces a cancel."""
    if record.state.is_terminal or change == record.change or (record.change is not None and record.change.is_cancel):
        return record
    return _settle(record, now_ms, attempts=record.attempts, change=change, given_up=record.given_up)


# --- What we learn -------------------------------------------------------------------------------


def not_sent(record: IntentRecord, number: int, *, now_ms: int) -> IntentRecord:
    """The attempt was journalled but provably never handed to the network."""
    return _replace(record, attrs.evolve(record.attempts[number - 1], state=_A.NOT_SENT), now_ms)


def refused(record: IntentRecord, number: int, error: ErrorFacts, *, now_ms: int) -> IntentRecord:
    """The venue definitely said no."""
    attempt = record.attempts[number - 1]
    if attempt.state is not _A.SENDING:
        return record  # evidence came first
    after = _replace(record, attrs.evolve(attempt, state=_A.REJECTED, error=error), now_ms)
    return give_up(after, now_ms=now_ms)


def doubted(
    record: IntentRecord,
    number: int,
    error: ErrorFacts | None,
    *,
    deadline_ms: int | None,
    exists: bool = False,
    now_ms: int,
) -> IntentRecord:
    """Nobody knows what became of the attempt. *deadline_ms*: after it the request can no longer land."""
    attempt = record.attempts[number - 1]
    if attempt.state not in {_A.SENDING, _A.UNRESOLVED, _A.IN_DOUBT}:
        return record
    doubt = attrs.evolve(
        attempt,
        state=_A.IN_DOUBT,
        error=error if error is not None else attempt.error,
        deadline_ms=deadline_ms,
        exists=exists or attempt.exists,
        doubted_at_ms=attempt.doubted_at_ms if attempt.state is _A.IN_DOUBT else now_ms,
    )
    return _replace(record, doubt, now_ms)


def proven_absent(record: IntentRecord, number: int, *, now_ms: int) -> IntentRecord:
    """The attempt never became an order, and can no longer."""
    attempt = record.attempts[number - 1]
    if attempt.state is not _A.IN_DOUBT:
        return record
    return _replace(record, attrs.evolve(attempt, state=_A.ABSENT), now_ms)


def left_unresolved(record: IntentRecord, number: int, *, now_ms: int) -> IntentRecord:
    """Patience is over without proof: escalate, keep counting, keep watching."""
    attempt = record.attempts[number - 1]
    if attempt.state is not _A.IN_DOUBT:
        return record
    return _replace(record, attrs.evolve(attempt, state=_A.UNRESOLVED), now_ms)


def declared_absent(record: IntentRecord, note: str, *, now_ms: int) -> IntentRecord:
    """A person says that what is unresolved does not exist at the venue. Nothing is sent for it any more.

    It is a word and no proof: should the order turn up, it counts again like any other late evidence.
    """
    facts = ErrorFacts(kind="DeclaredAbsent", message=note)
    unresolved = [attempt for attempt in record.attempts if attempt.state is _A.UNRESOLVED]
    for attempt in unresolved:
        record = doubted(record, attempt.number, facts, deadline_ms=attempt.deadline_ms, now_ms=now_ms)
        record = proven_absent(record, attempt.number, now_ms=now_ms)
    return give_up(record, now_ms=now_ms) if unresolved else record


def vanished(record: IntentRecord, number: int, fills: tuple[Fill, ...], *, now_ms: int) -> IntentRecord:
    """The order was there, and no view shows it any more; *fills* is all that the list of fills holds of it."""
    attempt = record.attempts[number - 1]
    if attempt.state not in _MAY_VANISH or not attempt.exists:
        return record
    known = _merge_fills(attempt.fills, fills)
    filled = max(attempt.filled_quantity, total([fill.quantity for fill in known]))
    average = attempt.average_price
    if filled > attempt.filled_quantity:
        average = weighted_average((fill.quantity, fill.price) for fill in known)
    state = _A.FILLED if filled >= attempt.quantity else _A.VANISHED
    after = attrs.evolve(attempt, state=state, filled_quantity=filled, average_price=average, fills=known)
    return _replace(record, after, now_ms)


def observed(record: IntentRecord, report: OrderReport, *, now_ms: int) -> IntentRecord:
    """Take in what a reading of the venue says about one of our orders, whenever it comes.

    A report that matches none of the record's orders changes nothing.
    """
    attempt = _attempt_of(record, report)
    if attempt is None:
        return record
    fills = _merge_fills(attempt.fills, report.fills)
    filled = max(attempt.filled_quantity, report.filled_quantity or ZERO)
    if fills:
        filled = max(filled, total([fill.quantity for fill in fills]))
    grew = filled > attempt.filled_quantity
    after = _new_attempt(
        number=attempt.number,
        client_order_id=attempt.client_order_id,
        quantity=attempt.quantity,
        limit_price=attempt.limit_price,
        state=_next_state(attempt, report, filled),
        prepared_at_ms=attempt.prepared_at_ms,
        deadline_ms=attempt.deadline_ms,
        venue_order_id=attempt.venue_order_id or report.venue_order_id,
        filled_quantity=filled,
        average_price=_average(attempt, report, fills, grew=grew),
        fills=fills,
        exists=True,
        doubted_at_ms=attempt.doubted_at_ms,
        error=attempt.error,
    )
    return _replace(record, after, now_ms)


def revived(record: IntentRecord, report: OrderReport, *, looked_at_ms: int, lag_ms: int, now_ms: int) -> IntentRecord:
    """An order that had ended rests after all, says a reading that began at *looked_at_ms*.

    Only one begun *lag_ms* after the journal learned of the end counts: an earlier one may show what was before.
    """
    attempt = _attempt_of(record, report)
    if attempt is None or attempt.state not in _OVER or attempt.state in {_A.FILLED, _A.REJECTED}:
        return record  # a rejected one comes back by itself: see `observed`
    if report.status is not OrderStatus.OPEN or looked_at_ms < record.updated_at_ms + lag_ms:
        return record
    return _replace(record, attrs.evolve(attempt, state=_A.LIVE), now_ms)


def _attempt_of(record: IntentRecord, report: OrderReport) -> Attempt | None:
    """Ownership is by id only. An id reused after proven absence belongs to the latest attempt that has it."""
    latest_first = record.attempts[::-1]
    if report.venue_order_id is not None:
        for attempt in latest_first:
            if attempt.venue_order_id == report.venue_order_id:
                return attempt
    if report.client_order_id is None:
        return None
    named = [a for a in latest_first if a.client_order_id == report.client_order_id]
    for attempt in named:
        if attempt.venue_order_id is None or report.venue_order_id is None:
            return attempt
    return None


def _next_state(attempt: Attempt, report: OrderReport, filled: Decimal) -> AttemptState:
    if filled >= attempt.quantity:
        return _A.FILLED
    if attempt.state in _OVER and attempt.state is not _A.REJECTED:
        return attempt.state  # a view that lags does not bring an ended order back
    end = _REPORTED_END.get(report.status)
    if end in _REPLACEABLE and report.filled_quantity is None:
        return _A.LIVE  # ended, but with how much? What replaced it would come on top: read again
    if end is _A.REJECTED and filled > 0:
        return _A.CANCELED
    return _A.LIVE if end is None else end


def _merge_fills(known: tuple[Fill, ...], new: tuple[Fill, ...]) -> tuple[Fill, ...]:
    if not new:
        return known
    ids = {fill.trade_id for fill in known}
    added = {fill.trade_id: fill for fill in new if fill.trade_id not in ids}
    return (*known, *added.values()) if added else known


def _average(attempt: Attempt, report: OrderReport, fills: tuple[Fill, ...], *, grew: bool) -> Decimal | None:
    if report.average_price is not None and (grew or attempt.average_price is None):
        return report.average_price
    if fills and (grew or attempt.average_price is None):
        return weighted_average((f.quantity, f.price) for f in fills)
    return attempt.average_price
