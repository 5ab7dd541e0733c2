"""The words and tables of trading safety: states, reasons, what gives a reason and what takes it away."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from execsafe.errors import InvalidInput, TradingDenied, VenueUnavailable
from execsafe.model.event import EventType
from execsafe.model.values import check_count, check_seconds, shorten

AUTH_KINDS: Final = frozenset({"AuthenticationError", "PermissionDenied", "AccountNotEnabled", "AccountSuspended"})
"""Class names of errors that say the key itself is refused (ccxt's)."""


class TradingState(enum.StrEnum):
    """What may be sent."""

    ACTIVE = "active"
    REDUCE_ONLY = "reduce_only"  # exits only; ends by itself, through a probe
    HALTED = "halted"  # exits only; ends by hand

    @property
    def rank(self) -> int:
        """0 for the least restricted."""
        return _RANKS[self]


_RANKS: Final = {TradingState.ACTIVE: 0, TradingState.REDUCE_ONLY: 1, TradingState.HALTED: 2}


class DenyReason(enum.StrEnum):
    """Why an entry was refused before sending. Values are stable: ``TradingDenied.context["reason"]``."""

    HALTED = "halted"
    REDUCE_ONLY = "reduce_only"
    PROBING = "probing"  # half open: one entry is on trial, this is another
    STATE_UNKNOWN = "state_unknown"  # the trading state could not be read
    SPREAD = "spread"
    DEPTH = "depth"
    PRICE_BAND = "price_band"
    RATE_LIMIT = "rate_limit"
    ORDER_NOTIONAL = "order_notional"
    SYMBOL_EXPOSURE = "symbol_exposure"
    GROSS_EXPOSURE = "gross_exposure"
    LEVERAGE = "leverage"
    FEED_STALE = "feed_stale"
    NO_READING = "no_reading"  # what must be known could not be read
    HEALTH = "health"
    STALE = "stale"  # the gateway's own: the intent is too old
    CHECK_FAILED = "check_failed"  # the gateway's own: a check raised or did not answer
    MODE = "mode"  # the execution mode does not allow it here
    DRAINING = "draining"  # nothing new is begun; what was accepted is the next process's, or waits for the mode's end
    DUPLICATE_SYMBOL = "duplicate_symbol"  # another entry in this symbol is under way
    NOT_RECONCILED = "not_reconciled"  # the start-up barrier
    RECONCILIATION_STALE = "reconciliation_stale"
    DIFFERENCE = "difference"  # venue and book differ
    LOST_ORDER = "lost_order"  # an order with our marker that no journal knows

    @property
    def is_for_now(self) -> bool:
        """Whether it says "not now" and not "no": it ends by itself, and the same entry may be tried again while fresh.

        What could not be read is for now; what was read, and was against the entry, is for good.
        """
        return self in _FOR_NOW


_FOR_NOW: Final = frozenset(
    {
        DenyReason.REDUCE_ONLY,
        DenyReason.PROBING,
        DenyReason.STATE_UNKNOWN,
        DenyReason.RATE_LIMIT,
        DenyReason.FEED_STALE,
        DenyReason.NO_READING,
        DenyReason.HEALTH,
        DenyReason.CHECK_FAILED,
        DenyReason.DRAINING,
        DenyReason.NOT_RECONCILED,
        DenyReason.RECONCILIATION_STALE,
    }
)


def is_for_now(error: BaseException | None) -> bool:
    """Whether an entry was refused for now only: nothing was sent, and a little later it may pass."""
    if isinstance(error, TradingDenied):
        reason = error.context.get("reason")
        return reason in set(DenyReason) and DenyReason(reason).is_for_now
    return isinstance(error, VenueUnavailable)


class TripReason(enum.StrEnum):
    """Why trading is restricted."""

    MANUAL = "manual"
    AUTHENTICATION = "authentication"
    EXCESS_EXPOSURE = "excess_exposure"
    UNRESOLVED = "unresolved"
    MISMATCH = "mismatch"
    REJECT_RATIO = "reject_ratio"
    STORE_FAILURE = "store_failure"
    STUCK_EXIT = "stuck_exit"
    UNPROTECTED = "unprotected"
    RESIDUAL = "residual"
    HEALTH = "health"


@attrs.frozen
class Rule:
    """What a reason does: the state it leads to, and whether only a person ends it."""

    state: TradingState
    by_hand: bool
    meaning: str


_HALTED, _REDUCE = TradingState.HALTED, TradingState.REDUCE_ONLY
RULES: Final[Mapping[TripReason, Rule]] = MappingProxyType(
    {
        TripReason.MANUAL: Rule(_REDUCE, True, "somebody said so"),
        TripReason.AUTHENTICATION: Rule(
            _HALTED, True, "the venue refuses the key: wrong, expired, or of another endpoint"
        ),
        TripReason.EXCESS_EXPOSURE: Rule(_HALTED, True, "more may fill than was meant"),
        TripReason.UNRESOLVED: Rule(_REDUCE, False, "orders whose fate is not known"),
        TripReason.MISMATCH: Rule(_REDUCE, False, "venue and book differ"),
        TripReason.REJECT_RATIO: Rule(_REDUCE, False, "too many orders are rejected"),
        TripReason.STORE_FAILURE: Rule(_REDUCE, False, "the store fails: nothing could be remembered"),
        TripReason.STUCK_EXIT: Rule(_REDUCE, False, "a position cannot be exited"),
        TripReason.UNPROTECTED: Rule(_REDUCE, False, "a position has no verified stop"),
        TripReason.RESIDUAL: Rule(_REDUCE, False, "a leg could be neither hedged nor undone"),
        TripReason.HEALTH: Rule(_REDUCE, False, "a component is down"),
    }
)
"""The table: every reason, what it leads to and how it ends."""

_T = EventType
STARTS: Final[Mapping[EventType, TripReason]] = MappingProxyType(
    {
        _T.EXCESS_EXPOSURE: TripReason.EXCESS_EXPOSURE,
        _T.INTENT_UNRESOLVED: TripReason.UNRESOLVED,
        _T.DIFFERENCE_FOUND: TripReason.MISMATCH,
        _T.EXIT_MISMATCH: TripReason.MISMATCH,
        _T.STUCK_EXIT: TripReason.STUCK_EXIT,
        _T.POSITION_UNPROTECTED: TripReason.UNPROTECTED,
        _T.RESIDUAL_EXPOSURE: TripReason.RESIDUAL,
    }
)
"""Events that give a reason, with their subject as its cause."""
ENDS: Final[Mapping[EventType, tuple[TripReason, ...]]] = MappingProxyType(
    {
        _T.ORDER_ADOPTED: (TripReason.UNRESOLVED,),
        _T.ATTEMPT_ABSENT: (TripReason.UNRESOLVED,),
        _T.INTENT_FILLED: (TripReason.UNRESOLVED,),
        _T.INTENT_CANCELED: (TripReason.UNRESOLVED,),
        _T.INTENT_EXPIRED: (TripReason.UNRESOLVED,),
        _T.INTENT_FAILED: (TripReason.UNRESOLVED,),
        _T.ORDER_REJECTED: (TripReason.UNRESOLVED,),
        _T.EXIT_CLEARED: (TripReason.STUCK_EXIT, TripReason.MISMATCH),
        _T.STOP_PLACED: (TripReason.UNPROTECTED,),
        _T.STOP_MOVED: (TripReason.UNPROTECTED,),
        _T.ENTRY_SETTLED: (TripReason.UNPROTECTED,),
        _T.POSITION_CLOSED: (TripReason.UNPROTECTED, TripReason.STUCK_EXIT, TripReason.MISMATCH),
        _T.HEDGE_UNWOUND: (TripReason.RESIDUAL,),
        _T.HEDGE_COMPLETED: (TripReason.RESIDUAL,),
    }
)
"""Events that take the cause with their subject away again."""
PROBE_GOOD: Final = frozenset({_T.ORDER_ACKNOWLEDGED, _T.ORDER_ADOPTED, _T.ORDER_FILL, _T.INTENT_FILLED})
"""What a probe that worked looks like."""
PROBE_BAD: Final = frozenset({_T.ORDER_REJECTED, _T.ORDER_IN_DOUBT, _T.INTENT_UNRESOLVED, _T.INTENT_FAILED})
"""What a probe that failed looks like; a doubt is no success."""
PROBE_PROVES: Final[Mapping[EventType, TripReason]] = MappingProxyType(
    {_T.ORDER_REJECTED: TripReason.REJECT_RATIO, _T.INTENT_UNRESOLVED: TripReason.UNRESOLVED}
)
"""The reason of which a failed probe is one more case. A lost answer is no case of a missing stop."""


@attrs.frozen(kw_only=True)
class SafetyPolicy:
    """When trading is restricted, and for how long.

    Attributes:
        unresolved_max: as many intents without a known fate restrict trading. 1: each one may be a position nobody
            knows of.
        reject_ratio: share of rejects among answered orders that restricts trading. 0.5: every other order is refused.
        reject_samples_min: with fewer answers there is no ratio. 10: one reject of one is no pattern.
        reject_window_s: over which both are counted. 300 s.
        cool_down_s: how long a breaker stays open the first time. 60 s.
        cool_down_factor, cool_down_max_s: each further time it stays open this much longer, up to that. 2 and an hour.
        escalate_after: a breaker that trips more often than this halts trading until somebody looks. 5. A probe that
            failed only counts for the reason that it proves; for the others it makes the cool-down longer.
        calm_s: after this long without tripping it starts from the first time again. An hour.
        probe_timeout_s: a probe without an answer gives its place to another. 60 s.
        critical_components: components whose being down restricts trading; None: any.
    """

    unresolved_max: int = 1
    reject_ratio: float = 0.5
    reject_samples_min: int = 10
    reject_window_s: float = 300.0
    cool_down_s: float = 60.0
    cool_down_factor: float = 2.0
    cool_down_max_s: float = 3_600.0
    escalate_after: int = 5
    calm_s: float = 3_600.0
    probe_timeout_s: float = 60.0
    critical_components: frozenset[str] | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse thresholds with which nothing would trip, or nothing would come back."""
        for name in ("unresolved_max", "reject_samples_min", "escalate_after"):
            check_count(getattr(self, name), name)
        for name in ("reject_window_s", "cool_down_s", "cool_down_max_s", "calm_s", "probe_timeout_s"):
            check_seconds(getattr(self, name), name)
        if not 0 < self.reject_ratio <= 1:
            raise InvalidInput(f"reject_ratio must be above 0 and at most 1, was {shorten(self.reject_ratio)}")
        if not 1 <= self.cool_down_factor <= 100:  # noqa: PLR2004
            raise InvalidInput(f"cool_down_factor must be 1 to 100, was {shorten(self.cool_down_factor)}")

    def cool_down_ms(self, times: int) -> int:
        """How long a breaker stays open when it trips for the *times*-th time."""
        try:
            wanted_s = self.cool_down_s * self.cool_down_factor ** (times - 1)
        except OverflowError:
            wanted_s = self.cool_down_max_s
        return round(min(wanted_s, self.cool_down_max_s) * 1000)

    def limit(self, reason: TripReason) -> int:
        """How many causes it takes."""
        return self.unresolved_max if reason is TripReason.UNRESOLVED else 1
