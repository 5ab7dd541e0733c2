"""What happened, for listeners and for the outbox."""

from __future__ import annotations

import enum
from decimal import Decimal

import attrs

from execsafe.model.intent import ErrorFacts
from execsafe.model.values import EMPTY_PARAMS, Params, to_params


class EventType(enum.StrEnum):
    """The catalogue. Values are stable: they are stored and matched by users."""

    INTENT_RECORDED = "intent_recorded"
    ATTEMPT_SENDING = "attempt_sending"
    ORDER_ACKNOWLEDGED = "order_acknowledged"
    ORDER_REJECTED = "order_rejected"
    ORDER_IN_DOUBT = "order_in_doubt"
    ORDER_ADOPTED = "order_adopted"  # found by looking, after a doubt
    ATTEMPT_ABSENT = "attempt_absent"  # proven not to exist
    ORDER_VANISHED = "order_vanished"  # it was there, and every view has forgotten it: ended
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

    # Pairs and other trades of several legs
    HEDGE_STARTED = "hedge_started"
    HEDGE_RECALCULATED = "hedge_recalculated"  # the hedge follows a partial fill
    HEDGE_TOPPED_UP = "hedge_topped_up"
    HEDGE_TRIMMED = "hedge_trimmed"
    HEDGE_ABORTED = "hedge_aborted"
    HEDGE_UNWOUND = "hedge_unwound"  # verified flat
    HEDGE_COMPLETED = "hedge_completed"
    RESIDUAL_EXPOSURE = "residual_exposure"  # alarm: what could not be hedged nor unwound

    # Positions and their protection
    POSITION_OPENED = "position_opened"
    POSITION_CHANGED = "position_changed"
    POSITION_CLOSED = "position_closed"
    ENTRY_STARTED = "entry_started"
    ENTRY_ROLLED_BACK = "entry_rolled_back"
    ENTRY_FAILED = "entry_failed"
    ENTRY_SETTLED = "entry_settled"  # what came of an entry that was unknown is known
    STOP_PLACED = "stop_placed"  # verified at the venue
    STOP_MOVED = "stop_moved"
    STOP_FAILED = "stop_failed"
    STOP_MISSING = "stop_missing"
    POSITION_UNPROTECTED = "position_unprotected"  # alarm: for longer than a stop takes
    POSITION_DUST = "position_dust"  # too small to be protected or closed
    PROTECTION_SWITCHED = "protection_switched"
    TRAILING_STOP_CREATED = "trailing_stop_created"
    TRAILING_STOP_ACTIVATED = "trailing_stop_activated"
    TRAILING_STOP_MOVED = "trailing_stop_moved"
    BREAKEVEN_REACHED = "breakeven_reached"

    # Exits
    EXIT_REGISTERED = "exit_registered"
    EXIT_DEDUPLICATED = "exit_deduplicated"
    EXIT_UPGRADED = "exit_upgraded"  # a more urgent reason took over
    EXIT_STEP = "exit_step"  # one rung of the price ladder was sent
    EXIT_CLEARED = "exit_cleared"
    EXIT_HELD = "exit_held"  # waits: no liquidity, no approval, cool-down
    EXIT_MISMATCH = "exit_mismatch"  # the venue holds less than the book: reconcile
    EXIT_DUST = "exit_dust"
    STUCK_EXIT = "stuck_exit"  # alarm
    APPROVAL_DENIED = "approval_denied"

    # Signals, prices, levels, sizes
    SIGNAL_RECEIVED = "signal_received"
    SIGNAL_ACCEPTED = "signal_accepted"
    SIGNAL_DROPPED = "signal_dropped"  # note: the reason
    SIGNAL_DEAD_LETTERED = "signal_dead_lettered"
    SIGNAL_HANDLED = "signal_handled"
    SIGNAL_FAILED = "signal_failed"
    PRICES_REFRESHED = "prices_refreshed"
    PRICES_INVALIDATED = "prices_invalidated"
    PRICES_STALE = "prices_stale"
    LEVELS_COMPUTED = "levels_computed"
    LEVELS_PUBLISHED = "levels_published"
    SIZE_REJECTED = "size_rejected"

    # Safety, reconciliation, upkeep
    TRADING_STATE_CHANGED = "trading_state_changed"
    BREAKER_TRIPPED = "breaker_tripped"
    ENTRY_CHECKED = "entry_checked"  # passed; details: what was read
    ENTRY_DENIED = "entry_denied"
    LEVERAGE_CONFIRMED = "leverage_confirmed"
    RECONCILED = "reconciled"
    DIFFERENCE_FOUND = "difference_found"
    FOREIGN_ORDER_FOUND = "foreign_order_found"
    ORPHAN_STOP_FOUND = "orphan_stop_found"
    FILL_INFERRED = "fill_inferred"
    STUCK_ORDER_FOUND = "stuck_order_found"
    VIEW_UNAVAILABLE = "view_unavailable"
    STORE_SWEPT = "store_swept"
    HEALTH_CHANGED = "health_changed"
    ALERT_RAISED = "alert_raised"
    ALERT_CLEARED = "alert_cleared"


@attrs.frozen(kw_only=True)
class Event:
    """One fact. Never holds secrets.

    Attributes:
        type: what happened.
        at_ms: when it was noticed, Unix ms.
        subject: what it is about: the identity of the intent (``IntentRecord.intent.identity``), the id of the
            position, plan or signal, or the name of the component.
        attempt, client_order_id, venue_order_id: which attempt, where it is about one.
        quantity: how much: meant (recorded), newly filled (fill), filled in all (ends), or in excess.
        error: why, for rejects and doubts.
        note: the state before (revived), "cancel" or "replace" (change asked), "rejected" or "joined" (deduplicated),
            the reason (dropped, denied, held).
        symbol, price: where it is about one.
        details: further facts, plain JSON; the catalogue lists them for each type.
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
    symbol: str = ""
    price: Decimal | None = None
    details: Params = attrs.field(default=EMPTY_PARAMS, converter=to_params)
