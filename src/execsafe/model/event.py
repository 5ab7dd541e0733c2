"""What happened, for listeners and for the outbox."""

from __future__ import annotations

import enum
from decimal import Decimal

import attrs

from execsafe.model.intent import ErrorFacts


class EventType(enum.StrEnum):
    """The catalogue. Values are stable: they are stored and matched by users."""

    INTENT_RECORDED = "intent_recorded"
    ATTEMPT_SENDING = "attempt_sending"
    ORDER_ACKNOWLEDGED = "order_acknowledged"
    ORDER_REJECTED = "order_rejected"
    ORDER_IN_DOUBT = "order_in_doubt"
    ORDER_ADOPTED = "order_adopted"  # found by looking, after a doubt
    ATTEMPT_ABSENT = "attempt_absent"  # proven not to exist
    INTENT_UNRESOLVED = "intent_unresolved"
    ORDER_FILL = "order_fill"  # cumulative filled quantity grew
    INTENT_FILLED = "intent_filled"
    INTENT_CANCELED = "intent_canceled"
    INTENT_EXPIRED = "intent_expired"
    INTENT_FAILED = "intent_failed"
    INTENT_REVIVED = "intent_revived"  # late evidence against an earlier verdict
    EXCESS_EXPOSURE = "excess_exposure"  # more may fill than was meant: alarm
    CHANGE_ASKED = "change_asked"
    CALL_DEDUPLICATED = "call_deduplicated"
    LISTENER_FAILED = "listener_failed"


@attrs.frozen(kw_only=True)
class Event:
    """One fact. Never holds secrets.

    Attributes:
        type: what happened.
        at_ms: when it was noticed, Unix ms.
        subject: identity of the intent (``IntentRecord.intent.identity``).
        attempt, client_order_id, venue_order_id: which attempt, where it is about one.
        quantity: how much: meant (recorded), newly filled (fill), filled in all (ends), or in excess.
        error: why, for rejects and doubts.
        note: the state before (revived), "cancel" or "replace" (change asked), "rejected" or "joined" (deduplicated).
    """

    type: EventType
    at_ms: int
    subject: str
    attempt: int | None = None
    client_order_id: str | None = None
    venue_order_id: str | None = None
    quantity: Decimal | None = None
    error: ErrorFacts | None = None
    note: str = ""
