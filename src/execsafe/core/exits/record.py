"""What is known of one exit, and how it changes. Every change is a pure function of the record and what was learned."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

import attrs

from execsafe.core.exits.policy import ExitPolicy, ExitReason
from execsafe.errors import InvalidInput, InvalidTransition
from execsafe.model.intent import ErrorFacts
from execsafe.model.order import ZERO
from execsafe.model.position import Position, PositionKey, PositionSide
from execsafe.model.values import EXACT, left_of, plain, shorten, weighted_average

_ID_LENGTH_MAX: Final = 120


class ExitState(enum.StrEnum):
    """Where an exit stands."""

    WORKING = "working"  # somebody is on it, or was when their process died
    HELD = "held"  # rests until ``recheck_at_ms``; nothing of it is at the venue
    UNKNOWN = "unknown"  # quarantined: one of its orders is in doubt, and nothing else is sent before that is settled
    MISMATCH = "mismatch"  # the venue holds less than the book: rests until they agree
    CLOSED = "closed"  # what was wanted is closed
    DUST = "dust"  # what is left is below the venue's minimum

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more is done about it."""
        return self in {ExitState.CLOSED, ExitState.DUST}


_S = ExitState
_RESTS: Final = frozenset({_S.HELD, _S.UNKNOWN, _S.MISMATCH})
_ENDS: Final = frozenset({_S.CLOSED, _S.DUST})

EXIT_TRANSITIONS: Final[Mapping[ExitState, frozenset[ExitState]]] = {
    _S.WORKING: _RESTS | _ENDS,
    _S.HELD: frozenset({_S.WORKING}),
    _S.UNKNOWN: frozenset({_S.WORKING}),
    _S.MISMATCH: frozenset({_S.WORKING}),
    _S.CLOSED: frozenset({_S.WORKING}),  # a new exit of the same position: the next sequence number
    _S.DUST: frozenset({_S.WORKING}),
}
"""Which state of an exit may follow which."""


class Hold(enum.StrEnum):
    """Why an exit rests."""

    NO_PRICE = "no_price"  # no bid (to sell) or ask (to buy) is known; the last price is no substitute
    NO_LIQUIDITY = "no_liquidity"  # nobody trades within the slippage allowed
    APPROVAL_DENIED = "approval_denied"  # only a market order could help, and nobody approved of one
    REJECTED = "rejected"  # the venue refuses, and would again
    PROTECTED = "protected"  # own stops or take-profits lock the balance and could not be released
    LOCKED = "locked"  # it is there, but something else locks it
    UNAVAILABLE = "unavailable"  # the venue could not be asked, or not in time
    STORE = "store"  # the journal fails: nothing is sent that it does not know of
    MISMATCH = "mismatch"  # the venue holds less than the book
    IN_DOUBT = "in_doubt"  # an order of the exit may or may not exist


@attrs.frozen(kw_only=True)
class ExitRecord:
    """One exit, as it is stored: one per position, the latest.

    Attributes:
        account, symbol, side: which position; ``venue`` where it is held.
        position_id: which life of it.
        sequence: the how-manieth exit of that life, from 1.
        reason, first_reason: for what it runs now, and for what it was begun.
        wanted: how much to close in all; None: everything.
        closed_quantity, closed_value: what its settled orders closed, and its value in quote × order unit.
        legs: how many of its orders are settled and counted.
        state, hold: where it stands, and why it rests.
        fruitless: passes in a row that closed nothing; barren: orders in a row that closed nothing.
        rejects: rejects in a row with the same code; ``last_error`` is the latest refusal.
        dust: what was left when it ended as DUST.
        trusts_venue: the venue refused for want of position or balance, so that its readings count at once.
        alarms: how many of the policy's alarms were raised since it last closed something.
        started_at_ms, progress_at_ms, recheck_at_ms, ended_at_ms: Unix ms. ``progress_at_ms`` is when it last closed
            something, or began; ``recheck_at_ms`` until when it rests.
        version: of the stored record.
    """

    account: str
    symbol: str
    side: PositionSide
    venue: str = ""
    position_id: str = ""
    sequence: int = 1
    reason: ExitReason
    first_reason: ExitReason
    wanted: Decimal | None = None
    closed_quantity: Decimal = ZERO
    closed_value: Decimal = ZERO
    legs: int = 0
    state: ExitState = ExitState.WORKING
    hold: Hold | None = None
    fruitless: int = 0
    barren: int = 0
    rejects: int = 0
    last_error: ErrorFacts | None = None
    dust: Decimal = ZERO
    trusts_venue: bool = False
    alarms: int = 0
    started_at_ms: int = 0
    progress_at_ms: int = 0
    recheck_at_ms: int = 0
    ended_at_ms: int | None = None
    version: int = 0

    @property
    def key(self) -> PositionKey:
        """Which position."""
        return PositionKey(account=self.account, symbol=self.symbol, side=self.side)

    @property
    def intent_key(self) -> str:
        """Key of all its orders: position, first reason and sequence. No time in it: a repeat is the same order."""
        life = self.position_id or f"{self.side.value}:{self.symbol}"
        if len(life) > _ID_LENGTH_MAX:
            life = hashlib.sha256(life.encode()).hexdigest()
        return f"exit:{life}:{self.first_reason.value}:{self.sequence}"

    @property
    def average_price(self) -> Decimal | None:
        """Of what was closed; None as long as nothing is."""
        if self.closed_quantity <= 0 or self.closed_value <= 0:
            return None
        return weighted_average([(self.closed_quantity, EXACT.divide(self.closed_value, self.closed_quantity))])

    def is_about(self, position: Position) -> bool:
        """Whether *position* is the one that this exit was begun for, and not a later one in the same symbol."""
        if position.key != self.key:
            return False
        # Late evidence may give a position another id, but not a beginning after the exit's.
        return position.position_id == self.position_id or position.opened_at_ms <= self.started_at_ms

    def want_of(self, position: Position) -> Decimal:
        """How much of *position* is still to be closed."""
        if self.wanted is None:
            return position.quantity
        return min(position.quantity, left_of(self.wanted, self.closed_quantity))


def leg_name(number: int) -> str:
    """Leg of the exit's *number*-th order, from 1."""
    return f"rung.{number}"


# --- Names for people ------------------------------------------------------------------------------

_DISPLAY: Final = re.compile(r"EXIT-(\d{1,16})-([^-\s]{1,64})-([0-9a-f]{8})", re.ASCII)


def display_id(record: ExitRecord, quantity: Decimal) -> str:
    """``EXIT-{ms}-{SYMBOL}-{8 hex}``, for logs and screens only: it names the time, so it must key nothing."""
    symbol = record.symbol.partition(":")[0].replace("/", "").replace("-", "")
    text = "|".join((record.symbol, record.position_id, record.first_reason.value, plain(quantity)))
    return f"EXIT-{record.started_at_ms}-{symbol}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def parse_display_id(text: str) -> tuple[int, str, str]:
    """Unix ms, symbol without separators, and digest of a display id.

    Raises:
        InvalidInput: anything else.
    """
    found = _DISPLAY.fullmatch(text)
    if found is None:
        raise InvalidInput(f"not an exit id such as EXIT-1761926919371-SOONUSDT-7bc679db: {shorten(text)}")
    return int(found[1]), found[2], found[3]


# --- Changes ---------------------------------------------------------------------------------------


def _moved(record: ExitRecord, state: ExitState) -> ExitState:
    if state is not record.state and state not in EXIT_TRANSITIONS[record.state]:
        raise InvalidTransition(f"an exit cannot go from {record.state.value} to {state.value}")
    return state


def begun(
    before: ExitRecord | None,
    position: Position,
    reason: ExitReason,
    *,
    wanted: Decimal | None = None,
    venue: str = "",
    now_ms: int,
) -> ExitRecord:
    """A new exit of *position*. *before* is the stored one of the same key, which must have ended."""
    if before is not None and not before.state.is_terminal:
        raise InvalidTransition(f"an exit that is {before.state.value} must end before the next one begins")
    same_life = before is not None and before.position_id == position.position_id
    return ExitRecord(
        account=position.account,
        symbol=position.symbol,
        side=position.side,
        position_id=position.position_id,
        venue=venue,
        sequence=before.sequence + 1 if before is not None and same_life else 1,
        reason=reason,
        first_reason=reason,
        wanted=wanted,
        started_at_ms=now_ms,
        progress_at_ms=now_ms,
        recheck_at_ms=now_ms,
        version=0 if before is None else before.version,
    )


def merged(record: ExitRecord, reason: ExitReason, wanted: Decimal | None, *, now_ms: int) -> ExitRecord:
    """*record* with another wish in it: the more urgent reason and the larger quantity. The same if it adds nothing.

    *wanted* counts from now on: what was closed before does not serve it. A more urgent reason need not wait for the
    end of a rest: it may try what the other one was not allowed to.
    """
    if record.state.is_terminal:
        return record
    is_upgrade = reason.outranks(record.reason)
    larger: Decimal | None = None
    if record.wanted is not None and wanted is not None:
        larger = max(record.wanted, EXACT.add(record.closed_quantity, wanted))
    if not is_upgrade:
        return record if larger == record.wanted else attrs.evolve(record, wanted=larger)
    return attrs.evolve(record, reason=reason, wanted=larger, recheck_at_ms=now_ms, fruitless=0, rejects=0)


def resumed(record: ExitRecord) -> ExitRecord:
    """Somebody works on it (again)."""
    if record.state is ExitState.WORKING:
        return record
    return attrs.evolve(record, state=_moved(record, ExitState.WORKING), hold=None)


def settled(record: ExitRecord, filled: Decimal, price: Decimal | None, *, now_ms: int) -> ExitRecord:
    """The next of its orders has ended with *filled*."""
    after = attrs.evolve(record, legs=record.legs + 1, barren=record.barren + 1, rejects=0)
    if filled <= 0:
        return after
    return attrs.evolve(
        after,
        closed_quantity=EXACT.add(record.closed_quantity, filled),
        closed_value=EXACT.add(record.closed_value, EXACT.multiply(filled, price or ZERO)),
        progress_at_ms=now_ms,
        fruitless=0,
        barren=0,
        last_error=None,
        alarms=0,
    )


def refused(record: ExitRecord, error: ErrorFacts, *, is_about_position: bool = False) -> ExitRecord:
    """The order was refused: by the venue, or by a check on the way there."""
    known = record.last_error
    same = known is not None and (known.kind, known.code) == (error.kind, error.code)
    return attrs.evolve(
        record,
        rejects=record.rejects + 1 if same else 1,
        last_error=error,
        trusts_venue=record.trusts_venue or is_about_position,
    )


def is_tripped(record: ExitRecord, policy: ExitPolicy) -> bool:
    """Whether the same refusal came so often that the breaker holds the exit."""
    return record.rejects >= policy.breaker_threshold


_REST_IN: Final = {Hold.MISMATCH: ExitState.MISMATCH, Hold.IN_DOUBT: ExitState.UNKNOWN}


def rested(record: ExitRecord, hold: Hold, policy: ExitPolicy, *, made_progress: bool, now_ms: int) -> ExitRecord:
    """Nothing more can be done now. The rest grows from fruitless pass to fruitless pass."""
    fruitless = 1 if made_progress else record.fruitless + 1
    rest_ms = policy.cool_down_max_ms if is_tripped(record, policy) else policy.cool_down(fruitless)
    return attrs.evolve(
        record,
        state=_moved(record, _REST_IN.get(hold, ExitState.HELD)),
        hold=hold,
        fruitless=fruitless,
        recheck_at_ms=now_ms + rest_ms,
    )


def ended(record: ExitRecord, state: ExitState, *, dust: Decimal = ZERO, now_ms: int) -> ExitRecord:
    """CLOSED, or DUST with what is left."""
    return attrs.evolve(record, state=_moved(record, state), hold=None, dust=dust, ended_at_ms=now_ms)


def with_wish_of(record: ExitRecord, newer: ExitRecord) -> ExitRecord:
    """*record* with what others may have changed in the stored one meanwhile: its reason and how much is wanted."""
    if newer.version == record.version:
        return record
    was_upgraded = newer.reason is not record.reason
    return attrs.evolve(
        record,
        reason=newer.reason,
        wanted=newer.wanted,
        fruitless=0 if was_upgraded else record.fruitless,
        rejects=0 if was_upgraded else record.rejects,
        version=newer.version,
    )


def alarms_due(record: ExitRecord, policy: ExitPolicy, *, now_ms: int) -> int:
    """How many alarms its standstill is worth; those above ``record.alarms`` are still to be raised."""
    if record.state.is_terminal:
        return record.alarms
    crossed = sum(1 for after_ms in policy.stuck_after_ms if now_ms - record.progress_at_ms >= after_ms)
    return max(record.alarms, crossed, int(record.barren >= policy.stuck_attempts))
