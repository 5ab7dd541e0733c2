"""Signals: reading their time and side, and deciding whether one may be executed. Pure.

A time that cannot be read is never replaced by "now": that would make every old signal fresh.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Final, TypeAlias

import attrs

from execsafe.core.retention import check_retention, dedup_retention_ms
from execsafe.errors import InvalidInput, InvalidTimestamp
from execsafe.model.signal import INSTANT_END_MS, ExecutionMode, Signal, SignalSide, SizeUnit
from execsafe.model.values import EXACT, check_seconds, plain, shorten, to_decimal
from execsafe.model.venue import Word

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_DIGITS: Final = re.compile(r"[1-9][0-9]{8,19}(\.[0-9]{1,12})?", re.ASCII)

_FIRST_MS: Final = 100_000_000_000

# One instant between 1973 and 5138 is in exactly one of these ranges, whatever its unit.
_UNITS: Final = (
    (Decimal(10) ** 8, Decimal(10) ** 11, Decimal(1_000)),  # seconds
    (Decimal(10) ** 11, Decimal(10) ** 14, Decimal(1)),
    (Decimal(10) ** 14, Decimal(10) ** 17, Decimal("0.001")),  # microseconds
    (Decimal(10) ** 17, Decimal(10) ** 20, Decimal("0.000001")),  # nanoseconds
)

# --- Time --------------------------------------------------------------------------------------------


def parse_event_time(value: object) -> int:
    """*value* as integer Unix milliseconds.

    Numbers, and text of digits, are seconds, milliseconds, microseconds or nanoseconds, told apart by their
    magnitude: an instant from 1973 to 5138 fits one unit only. Text and datetimes need an offset (``Z``, ``+02:00``).
    Parts of a millisecond are dropped, so that a signal is never made younger than it is.

    Raises:
        InvalidTimestamp: missing, unreadable, without an offset, or no instant from 1973 to 5138.
    """
    if isinstance(value, datetime):
        return _from_datetime(value)
    if isinstance(value, str):
        text = value.strip()
        return _from_number(Decimal(text)) if _DIGITS.fullmatch(text) else _from_text(text)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise InvalidTimestamp(f"a time must be a number or text, was {shorten(type(value).__name__)}")
    try:
        return _from_number(to_decimal(value, "time"))
    except InvalidInput as error:
        raise InvalidTimestamp(str(error)) from None


def _from_number(number: Decimal) -> int:
    for least, end, to_ms in _UNITS:
        if least <= number < end:
            return int(EXACT.multiply(number, to_ms))
    raise InvalidTimestamp(f"{shorten(plain(number))} is no instant from 1973 to 5138 in s, ms, µs or ns")


def _from_text(text: str) -> int:
    try:
        return _from_datetime(datetime.fromisoformat(text))
    except InvalidTimestamp:
        raise
    except (ValueError, OverflowError):
        raise InvalidTimestamp(f"{shorten(text)} is neither digits nor ISO-8601") from None


def _from_datetime(moment: datetime) -> int:
    if moment.utcoffset() is None:
        raise InvalidTimestamp(f"{moment.isoformat()} has no offset: it could be any of 24 instants")
    try:
        at_ms = (moment - _EPOCH) // _MS
    except OverflowError:
        at_ms = 0
    if not _FIRST_MS <= at_ms < INSTANT_END_MS:
        raise InvalidTimestamp(f"{moment.isoformat()} is not from 1973 to 5138")
    return at_ms


def event_time_text(at_ms: int) -> str:
    """*at_ms* as ISO-8601 in UTC, with its offset."""
    return (_EPOCH + at_ms * _MS).isoformat(timespec="milliseconds")


def candle_closed_at_ms(opened_at: object, timeframe_s: float) -> int:
    """When a candle closed, Unix ms: the time of a signal that was computed from it.

    Exchanges date candles by their opening. A signal dated so would be older than it is by one candle, and a 5-minute
    candle's signal stale at birth.

    Raises:
        InvalidTimestamp: see :func:`parse_event_time`.
        InvalidInput: *timeframe_s* is not above 0.
    """
    return parse_event_time(opened_at) + _ms(check_seconds(timeframe_s, "timeframe_s"))


# --- Side --------------------------------------------------------------------------------------------

SIDE_ALIASES: Final[Mapping[str, SignalSide]] = MappingProxyType(
    {"buy": SignalSide.LONG, "sell": SignalSide.SHORT, "close": SignalSide.FLAT, "neutral": SignalSide.HOLD}
)
"""A usual vocabulary, to be opted in to. It is not the default, because "sell" may also mean "close the long"."""


def parse_side(text: str, aliases: Mapping[str, SignalSide] | None = None) -> SignalSide:
    """What *text* says: long, short, flat or hold, in any case; more only by *aliases* (names in lower case).

    Raises:
        InvalidInput: any other word.
    """
    word = text.lower()
    if word in _SIDES:
        return _SIDES[word]
    if aliases is not None and word in aliases:
        return aliases[word]
    known = ", ".join(sorted({*_SIDES, *(aliases or ())}))
    raise InvalidInput(f"side {shorten(text)} is none of {known}; an alias must be declared (side_aliases)", side=text)


_SIDES: Final = {side.value: side for side in SignalSide}


# --- Policy ------------------------------------------------------------------------------------------


class OnFuture(Word):
    """What becomes of a signal whose time is ahead by more than the skew allowed."""

    REJECT = "reject"
    CLAMP = "clamp"  # its age counts from the moment at which the bus took it


class OnFlat(Word):
    """What a flat signal means."""

    SKIP = "skip"
    EXIT = "exit"  # handed on as an exit, however old it is, as long as a repeat of it would be recognised


def _aliases(value: Mapping[str, SignalSide | str]) -> Mapping[str, SignalSide]:
    return MappingProxyType({name.lower(): SignalSide(side) for name, side in value.items()})


def _symbols(value: Mapping[str, str] | None) -> Mapping[str, str] | None:
    return None if value is None else MappingProxyType(dict(value))


@attrs.frozen(kw_only=True, eq=False)
class SignalPolicy:
    """Which signals may be executed.

    Attributes:
        mode: what is done with those that may. LIVE.
        max_age_s: age up to which a signal may be executed, itself included. 300 s, the seed's limit.
        max_future_skew_s: how far a signal's time may be ahead of our clock, and of the bus's. 5 s: far above the
            error of a synchronised clock, far below a mistaken unit or time zone.
        on_future: what becomes of those further ahead. REJECT.
        on_flat: whether a flat signal is an exit. SKIP, as in the seed. With EXIT it counts which was said later, not
            which came later: an entry that is older than an exit is not sent, and an exit does not close what a later
            signal opened.
        delivery_delay_s: longest time between receipt and the end of execution, redelivery after a crash included.
            It only lengthens how long a signal must be remembered. 600 s.
        retention_s: for how long the store keeps what ended, and how old an exit may be at most: no longer than the
            retention of whoever calls
            ``Store.purge`` (``IntentRegistry``'s is a week, as here). Refused if shorter than age + skew + delay: a
            repeat could outlive its record and be executed again.
        content_interval_s: least time between two accepted signals with the same symbol and side, whatever their
            ids; exits are never too soon. 0: they only exclude each other while in flight.
        side_aliases: further words for sides (:data:`SIDE_ALIASES`). None: strict.
        size_unit: whether ``position_size_usd`` is notional or margin. NOTIONAL, as the seed used it.
        symbols: the sender's symbols to unified ones; a symbol that is not in it is refused. None: taken as sent.

    Raises:
        InvalidInput: a time out of range, or a retention that forgets too early.
    """

    mode: ExecutionMode = attrs.field(default=ExecutionMode.LIVE, converter=ExecutionMode)
    max_age_s: float = 300.0
    max_future_skew_s: float = 5.0
    on_future: OnFuture = attrs.field(default=OnFuture.REJECT, converter=OnFuture)
    on_flat: OnFlat = attrs.field(default=OnFlat.SKIP, converter=OnFlat)
    delivery_delay_s: float = 600.0
    retention_s: float = 7 * 86_400.0
    content_interval_s: float = 0.0
    side_aliases: Mapping[str, SignalSide] = attrs.field(factory=dict, converter=_aliases)
    size_unit: SizeUnit = attrs.field(default=SizeUnit.NOTIONAL, converter=SizeUnit)
    symbols: Mapping[str, str] | None = attrs.field(default=None, converter=_symbols)

    def __attrs_post_init__(self) -> None:
        """Refuse what could not work, above all forgetting too early."""
        check_seconds(self.max_age_s, "max_age_s")
        check_seconds(self.max_future_skew_s, "max_future_skew_s", least=0)
        check_seconds(self.delivery_delay_s, "delivery_delay_s", least=0)
        check_seconds(self.content_interval_s, "content_interval_s", least=0)
        check_seconds(self.retention_s, "retention_s")
        least_ms = dedup_retention_ms(self.max_age_ms, self.max_future_skew_ms, _ms(self.delivery_delay_s))
        check_retention(_ms(self.retention_s), max(least_ms, _ms(self.content_interval_s)))

    @property
    def max_age_ms(self) -> int:
        """:attr:`max_age_s` in milliseconds."""
        return _ms(self.max_age_s)

    @property
    def max_future_skew_ms(self) -> int:
        """:attr:`max_future_skew_s` in milliseconds."""
        return _ms(self.max_future_skew_s)

    @property
    def exit_age_max_ms(self) -> int:
        """How old an exit may be: up to this age the store still knows whether it was executed."""
        return _ms(self.retention_s) - self.max_future_skew_ms

    @property
    def content_interval_ms(self) -> int:
        """:attr:`content_interval_s` in milliseconds."""
        return _ms(self.content_interval_s)


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)


# --- The decision ------------------------------------------------------------------------------------


class DropReason(enum.StrEnum):
    """Why a signal went no further. One list for all stages, so that every drop can be counted."""

    # on receipt
    HOLD = "hold"
    FLAT = "flat"
    DRAIN = "drain"
    STALE = "stale"
    FUTURE = "future"
    DUPLICATE = "duplicate"  # this id was handled before
    IN_FLIGHT = "in_flight"  # another signal for the same symbol and side is being executed
    TOO_SOON = "too_soon"  # content_interval_s
    SUPERSEDED = "superseded"  # a signal that was said later wants the symbol otherwise
    # to the dead letters: somebody has to look
    MALFORMED = "malformed"
    INVALID_TIMESTAMP = "invalid_timestamp"
    UNKNOWN_SIDE = "unknown_side"
    UNKNOWN_SYMBOL = "unknown_symbol"
    CONFLICTING_ID = "conflicting_id"  # a known id with other content
    POISON = "poison"  # its execution failed again and again
    # on the way to an order
    SIZE = "size"
    MIN_QUANTITY = "min_quantity"
    RISK = "risk"
    DENIED = "denied"  # by a check or the trading state
    INVALID_ORDER = "invalid_order"
    REJECTED = "rejected"  # by the venue
    NOT_PLACED = "not_placed"  # proven, all attempts spent
    NOTHING_FILLED = "nothing_filled"
    ROLLED_BACK = "rolled_back"  # it filled, could not be protected, and is flat again
    NOT_ATTEMPTED = "not_attempted"  # the wave reached its target: not a failure


@attrs.frozen(kw_only=True)
class Seen:
    """What is remembered of an id: digest of its content, until when it was fresh, whether its execution has ended."""

    fingerprint: str
    is_ended: bool
    fresh_until_ms: int | None = None


@attrs.frozen(kw_only=True)
class Accept:
    """Execute it.

    Attributes:
        fresh_until_ms: the last millisecond at which an entry may be sent; None for exits.
        is_resumed: it was accepted before, and its execution never ended.
    """

    fresh_until_ms: int | None
    is_resumed: bool = False


@attrs.frozen(kw_only=True)
class Drop:
    """Do not execute it; nothing is wrong with it that somebody would have to look at."""

    reason: DropReason
    note: str = ""


@attrs.frozen(kw_only=True)
class DeadLetter:
    """Do not execute it; somebody has to look at it."""

    reason: DropReason
    note: str = ""


Decision: TypeAlias = Accept | Drop | DeadLetter
"""Everything that a signal can come to on receipt."""


def decide(
    signal: Signal,
    now_ms: int,
    policy: SignalPolicy,
    seen: Seen | None = None,
    *,
    published_at_ms: int | None = None,
    mode: ExecutionMode | None = None,
) -> Decision:
    """Decide on a signal that was just received.

    What was accepted before and did not end is resumed whatever its age: it may have orders that must be settled.
    Entries that it has not sent yet are still refused by their ``fresh_until_ms``.

    Args:
        signal: what arrived.
        now_ms: our clock, Unix ms.
        policy: the limits.
        seen: what is remembered of its id; None: nothing.
        published_at_ms: when the bus took it, by the bus's clock. A signal may not be ahead of that either: one that
            waited on the bus would otherwise grow into the present.
        mode: the mode now, where it was switched since; None: the policy's.
    """
    if seen is not None:
        if seen.fingerprint != signal.fingerprint:
            note = f"id {shorten(signal.id)} was used before for another signal"
            return DeadLetter(reason=DropReason.CONFLICTING_ID, note=note)
        if seen.is_ended:
            return Drop(reason=DropReason.DUPLICATE)
        return Accept(fresh_until_ms=seen.fresh_until_ms, is_resumed=True)
    mode = policy.mode if mode is None else mode
    if signal.side is SignalSide.HOLD:
        return Drop(reason=DropReason.HOLD)
    if signal.side is SignalSide.FLAT and policy.on_flat is OnFlat.SKIP:
        return Drop(reason=DropReason.FLAT)
    if mode is ExecutionMode.DRAIN:
        return Drop(reason=DropReason.DRAIN, note=f"age {age_ms(signal, now_ms)} ms")
    if signal.side is SignalSide.FLAT:
        return _decide_exit(signal, now_ms, policy, published_at_ms)
    return _decide_entry(signal, now_ms, policy, published_at_ms)


def _decide_exit(signal: Signal, now_ms: int, policy: SignalPolicy, published_at_ms: int | None) -> Decision:
    # By either clock: what was said or published so long ago may come from a stream that is read once more.
    known_ms = [at_ms for at_ms in (signal.at_ms, published_at_ms) if at_ms]
    age = now_ms - min(known_ms, default=now_ms)
    if age > policy.exit_age_max_ms:
        note = f"age {age} ms: it may have been executed, and forgotten since"
        return DeadLetter(reason=DropReason.STALE, note=note)
    return Accept(fresh_until_ms=None)


def _decide_entry(signal: Signal, now_ms: int, policy: SignalPolicy, published_at_ms: int | None) -> Decision:
    taken_ms = now_ms if published_at_ms is None else min(now_ms, published_at_ms)
    ahead_ms = signal.at_ms - taken_ms
    if ahead_ms > policy.max_future_skew_ms and policy.on_future is OnFuture.REJECT:
        note = f"{ahead_ms} ms ahead, at most {policy.max_future_skew_ms} ms are allowed"
        return Drop(reason=DropReason.FUTURE, note=note)
    # An age of exactly max_age_s still executes. Time ahead of when the signal was taken over adds nothing.
    until_ms = min(signal.at_ms, taken_ms) + policy.max_age_ms
    if now_ms > until_ms:
        age = now_ms - until_ms + policy.max_age_ms
        return Drop(reason=DropReason.STALE, note=f"age {age} ms, at most {policy.max_age_ms} ms are allowed")
    return Accept(fresh_until_ms=until_ms)


def said_at_ms(signal: Signal, received_at_ms: int) -> int:
    """When it was said, as far as that counts for which of two was said later; never later than it was received."""
    return min(signal.at_ms, received_at_ms) if signal.at_ms > 0 else received_at_ms


UNDONE_BY: Final[Mapping[SignalSide, tuple[SignalSide, ...]]] = MappingProxyType(
    {
        SignalSide.LONG: (SignalSide.FLAT,),
        SignalSide.SHORT: (SignalSide.FLAT,),
        SignalSide.FLAT: (SignalSide.LONG, SignalSide.SHORT),
        SignalSide.HOLD: (),
    }
)
"""Which signals, said later, leave nothing of what a signal wants."""


def is_superseded(side: SignalSide, said_ms: int, latest_ms: Mapping[SignalSide, int]) -> bool:
    """Whether it was said before what it would undo: an exit before an entry, or an entry before an exit.

    What was said at the same time counts as it arrived.

    Args:
        side: of the signal.
        said_ms: of the signal, see :func:`said_at_ms`.
        latest_ms: the same, by side, of the latest entry that was executed and the latest exit that was accepted.
    """
    return any(latest_ms.get(other, 0) > said_ms for other in UNDONE_BY[side])


def is_late(fresh_until_ms: int | None, now_ms: int) -> bool:
    """Whether an entry may no longer be sent; exits (None) always may."""
    return fresh_until_ms is not None and now_ms > fresh_until_ms


def age_ms(signal: Signal, now_ms: int) -> int:
    """Age by our clock; negative for a time ahead of it."""
    return now_ms - signal.at_ms


def decide_content(last_at_ms: int | None, now_ms: int, policy: SignalPolicy) -> Drop | None:
    """Whether a signal with the same symbol and side came too soon after one accepted at *last_at_ms*."""
    if last_at_ms is None or policy.content_interval_ms == 0:
        return None
    if now_ms - last_at_ms >= policy.content_interval_ms:
        return None
    note = f"{now_ms - last_at_ms} ms after the last one, at least {policy.content_interval_ms} ms are required"
    return Drop(reason=DropReason.TOO_SOON, note=note)
