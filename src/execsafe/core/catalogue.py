"""The catalogue of events: for each type how loud it is, what it means, and which details it carries.

Pure data. Logs, metrics and the page ``docs/content/events.md`` are drawn from it, so that a level is a property of the
type of an event (and of what it says, where that makes the difference) and never of the line of code that emits it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from execsafe.model.event import Event, EventType


class Level(enum.IntEnum):
    """How loud an event is; the numbers are those of :mod:`logging`."""

    DEBUG = 10  # the expected steps of every order
    INFO = 20  # a change of what is owned, or of what the bot does
    WARNING = 30  # refused, retried, waiting: the machine handles it
    ERROR = 40  # something was not done; it will be tried again
    CRITICAL = 50  # alarm: money may be at risk, somebody should look


@attrs.frozen
class Entry:
    """What is to be known about one type of event.

    Attributes:
        level: how loud it is.
        meaning: one sentence.
        details: names in ``Event.details``; which of them are there may depend on the case.
        seed: what the same fact was called in the systems that execsafe learned from.
    """

    level: Level
    meaning: str
    details: tuple[str, ...] = ()
    seed: tuple[str, ...] = ()


_D, _I, _W, _E, _C = Level.DEBUG, Level.INFO, Level.WARNING, Level.ERROR, Level.CRITICAL
_T = EventType
_EXIT: Final = ("exit", "account")
_STOP: Final = ("account", "side", "state", "held", "exposed_ms", "exposed_total_ms")
_ENTRY: Final = ("account", "side", "state")
_POSITION: Final = ("account", "side", "realized", "before")
_SIGNAL: Final = ("side", "source", "trace_id")
_LEVELS: Final = (
    "symbol", "order_id", "leverage", "volatility_factor", "adaptive_levels", "ilf_metadata", "trace_id", "unit",
)  # fmt: skip
_HEDGE_END: Final = ("verdict", "legs")

_ORDERS: Final = {
    _T.INTENT_RECORDED: Entry(_D, "An intent is durable; nothing is sent yet.", (), ("intent received",)),
    _T.ATTEMPT_SENDING: Entry(_D, "An attempt is durable and is about to be sent."),
    _T.ORDER_ACKNOWLEDGED: Entry(_I, "The venue has the order."),
    _T.ORDER_REJECTED: Entry(
        _W, "The venue definitely refused the order.", (), ("ORDER_FAILED", "submit error", "leverage error")
    ),
    _T.ORDER_IN_DOUBT: Entry(_W, "Nobody knows whether the venue has the order; it is being looked for."),
    _T.ORDER_ADOPTED: Entry(_I, "An order in doubt was found at the venue and is ours."),
    _T.ATTEMPT_ABSENT: Entry(_I, "An order in doubt is proven not to exist."),
    _T.ORDER_VANISHED: Entry(_W, "Every view has forgotten an order: it ended, with what its fills say."),
    _T.INTENT_UNRESOLVED: Entry(_C, "A doubt outlived all patience: counted as exposure, watched, for a person."),
    _T.ORDER_FILL: Entry(_I, "The cumulative filled quantity grew by this quantity.", (), ("Order filled",)),
    _T.INTENT_FILLED: Entry(_I, "The intent is filled."),
    _T.INTENT_CANCELED: Entry(_I, "The intent ended canceled, with this quantity filled."),
    _T.INTENT_EXPIRED: Entry(_I, "The intent ended expired, with this quantity filled."),
    _T.INTENT_FAILED: Entry(_W, "Proven not placed, and the attempts are spent.", (), ("FAILED_FINAL",)),
    _T.INTENT_REVIVED: Entry(_W, "Late evidence overturned a verdict."),
    _T.EXCESS_EXPOSURE: Entry(_C, "More may fill than was meant, by this quantity."),
    _T.CHANGE_ASKED: Entry(_D, "A wish to cancel or replace is durable."),
    _T.CALL_DEDUPLICATED: Entry(_I, "A repeat was answered from the record, refused or joined; nothing was sent."),
    _T.LISTENER_FAILED: Entry(_E, "A listener raised; order flow went on.", (), ("main handler",)),
}
_HEDGES: Final = {
    _T.HEDGE_STARTED: Entry(_I, "A trade of several legs began.", ("legs",)),
    _T.HEDGE_RECALCULATED: Entry(_I, "The hedge follows what filled."),
    _T.HEDGE_TOPPED_UP: Entry(_I, "The hedge was enlarged after a late fill."),
    _T.HEDGE_TRIMMED: Entry(_I, "The hedge was reduced."),
    _T.HEDGE_ABORTED: Entry(_W, "The trade is given up; what filled is being undone.", ("stage", *_HEDGE_END)),
    _T.HEDGE_UNWOUND: Entry(_W, "An aborted trade is verified flat.", _HEDGE_END),
    _T.HEDGE_COMPLETED: Entry(_I, "All legs are where they should be.", _HEDGE_END),
    _T.RESIDUAL_EXPOSURE: Entry(_C, "A part could be neither hedged nor undone.", _HEDGE_END),
}
_POSITIONS: Final = {
    _T.POSITION_OPENED: Entry(_I, "A position is held that was not.", _POSITION, ("position_created",)),
    _T.POSITION_CHANGED: Entry(_I, "The held quantity changed.", _POSITION),
    _T.POSITION_CLOSED: Entry(_I, "Nothing is held any more.", _POSITION),
    _T.ENTRY_STARTED: Entry(_I, "An entry with its stop began.", _ENTRY),
    _T.ENTRY_ROLLED_BACK: Entry(_E, "An entry could not be protected and was closed again.", _ENTRY),
    _T.ENTRY_FAILED: Entry(_W, "An entry ended without a position.", _ENTRY, ("position_error", "leverage error")),
    _T.ENTRY_SETTLED: Entry(_I, "What came of an entry is known, after it was not.", _ENTRY),
    _T.STOP_PLACED: Entry(
        _I, "The first stop of a position is verified at the venue.", _STOP, ("stop_loss_placed", "ENTRY_HOOK_SUCCESS")
    ),
    _T.STOP_MOVED: Entry(_I, "A stop has another price or quantity, verified.", _STOP),
    _T.STOP_FAILED: Entry(_E, "A stop could not be placed; it is tried again.", _STOP, ("sl_creation_failed",)),
    _T.STOP_MISSING: Entry(_E, "A stop that was verified is gone.", _STOP),
    _T.POSITION_UNPROTECTED: Entry(_C, "A position is without a verified stop for longer than one takes.", _STOP),
    _T.POSITION_DUST: Entry(_W, "What is held is too small to be protected or closed; it is left as it is.", _STOP),
    _T.PROTECTION_SWITCHED: Entry(_I, "Take-profit and stop changed places.", _STOP),
    _T.TRAILING_STOP_CREATED: Entry(_I, "A trailing stop follows the position.", _STOP, ("trailing_stop_created",)),
    _T.TRAILING_STOP_ACTIVATED: Entry(_I, "The trailing stop's activation was reached.", _STOP),
    _T.TRAILING_STOP_MOVED: Entry(_D, "The trailing stop followed the price.", _STOP),
    _T.BREAKEVEN_REACHED: Entry(_I, "The stop is at break-even.", _STOP),
}
_EXITS: Final = {
    _T.EXIT_REGISTERED: Entry(_I, "An exit began.", (*_EXIT, "display_id"), ("EXIT_INTENT_REGISTERED",)),
    _T.EXIT_DEDUPLICATED: Entry(
        _I,
        "The position is being exited already; nothing was sent.",
        (*_EXIT, "existing_reason", "new_reason", "age_ms"),
        ("EXIT_DEDUPLICATED",),
    ),
    _T.EXIT_UPGRADED: Entry(
        _I, "A more urgent reason took an exit over.", (*_EXIT, "existing_reason", "new_reason", "age_ms")
    ),
    _T.EXIT_STEP: Entry(_I, "One rung of the price ladder is being sent.", (*_EXIT, "leg", "attempt")),
    _T.EXIT_CLEARED: Entry(_I, "An exit is over.", (*_EXIT, "duration_ms", "orders", "end"), ("EXIT_INTENT_CLEARED",)),
    _T.EXIT_HELD: Entry(_W, "An exit waits; the note says for what.", (*_EXIT, "recheck_at_ms")),
    _T.EXIT_MISMATCH: Entry(_E, "The venue holds less than the book.", (*_EXIT, "venue_quantity"), ("Oversold",)),
    _T.EXIT_DUST: Entry(_I, "What is left is too small to be sold.", _EXIT),
    _T.STUCK_EXIT: Entry(
        _C,
        "An exit made no progress for too long.",
        (*_EXIT, "since_ms", "attempts", "last_code", "hold", "alarm"),
        ("StuckExit",),
    ),
    _T.APPROVAL_DENIED: Entry(_W, "A market order as the last resort was not approved.", _EXIT),
}
_INPUTS: Final = {
    _T.SIGNAL_RECEIVED: Entry(_D, "A signal arrived and could be read.", (*_SIGNAL, "age_ms"), ("intent received",)),
    _T.SIGNAL_ACCEPTED: Entry(_I, "A signal is durable and will be executed.", (*_SIGNAL, "age_ms"), ("ILF stored",)),
    _T.SIGNAL_DROPPED: Entry(
        _I,
        "A signal is not executed; the note says why.",
        (*_SIGNAL, "age_ms", "why"),
        ("drain skip", "stale skip", "hold/flat skip", "no ILF"),
    ),
    _T.SIGNAL_DEAD_LETTERED: Entry(
        _E, "A signal cannot be read or handled and was set aside.", (*_SIGNAL, "why"), ("ILF error",)
    ),
    _T.SIGNAL_HANDLED: Entry(_I, "A signal's work is done.", (*_SIGNAL, "why"), ("executed",)),
    _T.SIGNAL_FAILED: Entry(
        _E,
        "A signal's work failed; it comes again.",
        (*_SIGNAL, "error"),
        ("main handler", "store error", "levels error"),
    ),
    _T.PRICES_REFRESHED: Entry(_D, "Prices were read.", ("symbol_count", "hot_count"), ("MD_PORTFOLIO_CACHE_REFRESH",)),
    _T.PRICES_INVALIDATED: Entry(
        _D, "Prices are no longer trusted.", ("symbol_count",), ("MD_PORTFOLIO_CACHE_INVALIDATE",)
    ),
    _T.PRICES_STALE: Entry(_W, "A price is too old and could not be refreshed.", ("age_ms",), ("ticker error",)),
    _T.LEVELS_COMPUTED: Entry(_D, "Targets and stop of a position were computed.", _LEVELS),
    _T.LEVELS_PUBLISHED: Entry(_I, "The levels of a real position were published.", (), ("publish",)),
    _T.SIZE_REJECTED: Entry(_W, "No size fits between the limits."),
}
_UPKEEP: Final = {
    _T.TRADING_STATE_CHANGED: Entry(
        _E, "What may be sent changed; info when it is more than before.", ("before", "after", "reasons", "by")
    ),
    _T.BREAKER_TRIPPED: Entry(
        _E,
        "Something went wrong too often; it is paused.",
        ("reason", "state", "times", "until_ms", "why", *_EXIT, "rejects"),
    ),
    _T.ENTRY_CHECKED: Entry(_D, "An entry passed its checks; details are what was read.", ("checks",)),
    _T.ENTRY_DENIED: Entry(
        _W, "An entry was refused before sending.", ("reason", "message", "numbers", "checks"), ("SPREAD_WARNING",)
    ),
    _T.LEVERAGE_CONFIRMED: Entry(_D, "The venue confirmed the leverage.", (*_ENTRY, "leverage", "how")),
    _T.RECONCILED: Entry(_I, "Venue, book and registry were compared.", ("differences",)),
    _T.DIFFERENCE_FOUND: Entry(_E, "Venue and book differ.", ("kind", "account", "book", "venue", "fills")),
    _T.FOREIGN_ORDER_FOUND: Entry(_E, "The account has an order that is not ours.", ("kind", "account")),
    _T.ORPHAN_STOP_FOUND: Entry(_W, "A stop without its position was found.", ("kind", "account")),
    _T.FILL_INFERRED: Entry(_W, "A fill that no view states follows from the position.", ("account", "side")),
    _T.STUCK_ORDER_FOUND: Entry(_W, "An order rests for longer than it should.", ("kind", "account")),
    _T.VIEW_UNAVAILABLE: Entry(_W, "A view of the venue could not be read."),
    _T.STORE_SWEPT: Entry(
        _D,
        "Expired records were removed; also told when there were none.",
        ("removed", "remaining", "live", "oldest_age_ms"),
        ("ORDER_ROUTER_CLEANUP",),
    ),
    _T.HEALTH_CHANGED: Entry(
        _W,
        "A component's health changed; info when it is better than before.",
        ("before", "after", "consecutive_failures", "since_ms", "crashes"),
    ),
    _T.ALERT_RAISED: Entry(
        _E, "An alert rule holds; as loud as the alert.", ("level", "value", "limit", "samples", "for_ms")
    ),
    _T.ALERT_CLEARED: Entry(_I, "An alert rule no longer holds.", ("level", "value", "samples", "lasted_ms")),
}

GROUPS: Final[Mapping[str, Mapping[EventType, Entry]]] = MappingProxyType(
    {
        "Orders": _ORDERS,
        "Trades of several legs": _HEDGES,
        "Positions and their stops": _POSITIONS,
        "Exits": _EXITS,
        "Signals, prices, levels": _INPUTS,
        "Safety and upkeep": _UPKEEP,
    }
)
"""The catalogue by subject."""

CATALOGUE: Final[Mapping[EventType, Entry]] = MappingProxyType(
    {kind: entry for group in GROUPS.values() for kind, entry in group.items()}
)
"""Every type of event."""


def level_of(kind: EventType) -> Level:
    """How loud events of this type are. One that is not listed is an error in itself, and loud."""
    entry = CATALOGUE.get(kind)
    return Level.ERROR if entry is None else entry.level


# From good to bad: of a component's health, and of what may be sent.
_RANKS: Final = {"healthy": 0, "degraded": 1, "down": 2, "active": 0, "reduce_only": 1, "halted": 2}


def level_of_event(event: Event) -> Level:
    """How loud this event is: as its type, but an alert is as loud as it says, and what gets better is no trouble."""
    usual = level_of(event.type)
    if event.type is _T.ALERT_RAISED:
        return Level.__members__.get(event.note.upper(), usual)
    if event.type in {_T.HEALTH_CHANGED, _T.TRADING_STATE_CHANGED}:
        details = event.details.thaw()
        before, after = (_RANKS.get(str(details.get(name))) for name in ("before", "after"))
        return Level.INFO if before is not None and after is not None and after < before else usual
    return usual


def as_markdown() -> str:
    """The catalogue as tables."""
    parts: list[str] = []
    for title, group in GROUPS.items():
        rows = [_row(kind, entry) for kind, entry in group.items()]
        head = "| event | level | meaning | details | known elsewhere as |\n|---|---|---|---|---|"
        parts.append(f"## {title}\n\n{head}\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(kind: EventType, entry: Entry) -> str:
    details = ", ".join(f"`{name}`" for name in entry.details)
    seed = ", ".join(entry.seed)
    return f"| `{kind.value}` | {entry.level.name.lower()} | {entry.meaning} | {details} | {seed} |"
