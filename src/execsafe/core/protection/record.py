"""The record of one position's protection, what can be seen of it, and the thresholds."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

import attrs

from execsafe.core.grid import on_grid
from execsafe.core.rejects import RejectClass
from execsafe.core.trailing import TrailingPolicy, TrailingStop
from execsafe.errors import InvalidInput, InvalidTransition
from execsafe.model.instrument import Instrument
from execsafe.model.order import ZERO
from execsafe.model.position import Position, PositionSide, StopKind
from execsafe.model.units import PriceFraction, PriceShare, to_price_fraction
from execsafe.model.values import EXACT, check_count, check_seconds, shorten, to_price

_RETRY_MAX_MS: Final = 5_000
_REFUSED_CLOSE_MAX_MS: Final = 60_000
_NOT_FOR_NOW: Final = frozenset({RejectClass.POSITION, RejectClass.STOP})
WOULD_TRIGGER: Final = frozenset({"OrderImmediatelyFillable"})
"""Refusals of a stop that say that the price is through it already."""


class ProtectionState(enum.StrEnum):
    """How a position is protected."""

    UNPROTECTED = "unprotected"  # nothing is known to cover it
    STOP = "sl"  # covered by a stop
    TAKE_PROFIT = "tp"  # a take-profit rests instead of a stop, as meant
    SWITCHING_TO_STOP = "switching_to_sl"  # the take-profit goes, the stop comes
    RELEASED = "released"  # handed over to an exit for a while
    CLOSING = "closing"  # could not be covered, or reached its stop: being closed
    DUST = "dust"  # too small to be protected or closed: left as it is
    CLOSED = "closed"  # flat, and nothing of ours is left at the venue


_S = ProtectionState
_ANY: Final = frozenset({_S.UNPROTECTED, _S.STOP, _S.RELEASED, _S.CLOSING, _S.DUST, _S.CLOSED})

PROTECTION_TRANSITIONS: Final[Mapping[ProtectionState, frozenset[ProtectionState]]] = {
    _S.UNPROTECTED: _ANY | {_S.TAKE_PROFIT},
    _S.STOP: _ANY,
    _S.TAKE_PROFIT: frozenset({_S.SWITCHING_TO_STOP, _S.RELEASED, _S.CLOSING, _S.DUST, _S.CLOSED}),
    # Never back to the take-profit: it may be gone already.
    _S.SWITCHING_TO_STOP: _ANY,
    _S.RELEASED: frozenset({_S.UNPROTECTED, _S.CLOSING, _S.CLOSED}),
    _S.CLOSING: frozenset({_S.DUST, _S.CLOSED}),
    # Closed again where somebody asks for it: its price may have risen. One that has grown gets a record of its own.
    _S.DUST: frozenset({_S.CLOSING, _S.CLOSED}),
    _S.CLOSED: frozenset(),
}
"""Which state may follow which."""


def _distance(value: PriceShare | None) -> PriceFraction | None:
    return None if value is None else to_price_fraction(value)


@attrs.frozen(kw_only=True)
class ProtectionPolicy:
    """How quickly a position must be covered, and what happens otherwise. The seed's figures, but for the alarm.

    Attributes:
        alert_after_s: a position that is not covered for so long raises POSITION_UNPROTECTED, which restricts trading;
            2 s. The seed's 0.3 s is below what a ccxt client with its rate limit needs for three requests (a look at
            the fill, the stop, a look at the stop: 0.5 to 0.7 s without any distance), so that every entry would be
            an alarm.
        deadline_s: a position that is not covered for so long is closed; 10 s: room for three tries.
        tries: how often a stop is tried before the position is closed; 3.
        retry_s: pause after the first failed try, doubled after each; 0.2 s, so that three tries fit the deadline.
        try_timeout_s: how long one request is waited for before the next step is decided; 2 s.
        default_distance: of the stop of a position for which nobody named one; 4 % of its entry price. None: such a
            position only raises the alarm.
        close_unprotected: close what cannot be covered. False: alarm, and go on trying.
        release_s: how long a released position is left to its exit before it is protected again; 30 s.
        interval_s: pause between two passes of ``run()``; 1 s.
        trailing: how stops follow the price by default; None: they stay.
    """

    alert_after_s: float = 2.0
    deadline_s: float = 10.0
    tries: int = 3
    retry_s: float = 0.2
    try_timeout_s: float = 2.0
    default_distance: PriceFraction | None = attrs.field(default=PriceFraction("0.04"), converter=_distance)
    close_unprotected: bool = True
    release_s: float = 30.0
    interval_s: float = 1.0
    trailing: TrailingPolicy | None = None

    def __attrs_post_init__(self) -> None:
        for name in ("alert_after_s", "deadline_s", "retry_s", "try_timeout_s", "release_s", "interval_s"):
            check_seconds(getattr(self, name), name, most=86_400.0)
        check_count(self.tries, "tries")
        distance = self.default_distance
        if distance is not None and not 0 < distance.value < 1:
            raise InvalidInput(f"default_distance must be above 0 and below the whole price, was {shorten(distance)}")


# --- The record ------------------------------------------------------------------------------------


class Purpose(enum.StrEnum):
    """What an order of a position is for; the first part of its leg's name."""

    STOP = "stop"
    TAKE = "take"
    CLOSE = "close"


@attrs.frozen(kw_only=True)
class Leg:
    """One order that may protect or close the position; written down before it is sent."""

    number: int
    purpose: Purpose
    quantity: Decimal
    price: Decimal | None = None  # trigger of a stop, limit of a take-profit
    lost: bool = False  # acknowledged once, and in no reading any more

    @property
    def name(self) -> str:
        """The leg of its intent."""
        return f"{self.purpose.value}.{self.number}"


@attrs.frozen(kw_only=True)
class Protection:
    """All that is known and wanted about the protection of one position. Times in Unix ms.

    Attributes:
        stop_price: where the stop belongs. None: nowhere yet.
        take_profit_price: where the take-profit belongs, in the states that have one.
        legs: orders that are not proven gone; ``issued`` counts all there ever were.
        verified_price, verified_quantity: of the stop that covers it now; None and 0: none does.
        failures, retry_at_ms: failed tries in a row, and when the next may begin.
        exposed_since_ms: since when it is not covered; None: it is. ``exposed_ms`` sums up all such times so far.
        acting_since_ms: since when this process has tried to cover it; the deadline counts from here, because nobody
            could do anything while none was running.
        alarmed: POSITION_UNPROTECTED was raised for the present time without cover.
        placed: a stop has covered it at least once.
        released_until_ms: until when an exit has it.
        dust: what was held when it was found to be DUST.
    """

    position_id: str
    account: str
    symbol: str
    side: PositionSide
    kind: StopKind = StopKind.ORDER
    state: ProtectionState = _S.UNPROTECTED
    stop_price: Decimal | None = None
    take_profit_price: Decimal | None = None
    trailing: TrailingStop | None = None
    legs: tuple[Leg, ...] = ()
    issued: int = 0
    verified_price: Decimal | None = None
    verified_quantity: Decimal = ZERO
    failures: int = 0
    retry_at_ms: int = 0
    exposed_since_ms: int | None = None
    exposed_ms: int = 0
    acting_since_ms: int | None = None
    alarmed: bool = False
    placed: bool = False
    released_until_ms: int = 0
    dust: Decimal = ZERO

    @property
    def intent_key(self) -> str:
        """Key of all its intents; the leg tells them apart."""
        return f"protect:{self.position_id}"

    @property
    def is_covered(self) -> bool:
        """Whether a stop (or, as meant, a take-profit) is known to cover all of it."""
        return self.exposed_since_ms is None

    @property
    def is_safe(self) -> bool:
        """Whether a stop that was verified covers it now, or a take-profit as was meant."""
        return self.is_covered and self.state in {_S.STOP, _S.TAKE_PROFIT} and self.verified_quantity > 0

    def is_over(self, position: Position) -> bool:
        """Whether *position* needs a new record: this one is closed, or was left as dust and has changed since."""
        return self.state is _S.CLOSED or (self.state is _S.DUST and self.dust != position.quantity)


# --- What is seen ----------------------------------------------------------------------------------


class Seen(enum.StrEnum):
    """What is known of a leg's order."""

    UNSENT = "unsent"  # not in the journal: never sent
    IN_DOUBT = "in_doubt"
    ACKNOWLEDGED = "acknowledged"  # too recently for a reading to show it, or nothing can be read
    LIVE = "live"  # a reading shows it
    MISSING = "missing"  # acknowledged, and late enough no view shows it
    GONE = "gone"  # ended; what it filled is in the book


@attrs.frozen(kw_only=True)
class LegView:
    """One leg as it is seen. ``error`` is the class name of the venue's refusal, ``refusal`` what that asks for."""

    leg: Leg
    seen: Seen
    leaves: Decimal = ZERO
    error: str | None = None
    refusal: RejectClass | None = None

    @property
    def is_refused_close(self) -> bool:
        """Whether the venue would not close the position by it, and would refuse the same again."""
        return self.leg.purpose is Purpose.CLOSE and self.refusal in _NOT_FOR_NOW

    @property
    def rests(self) -> bool:
        """Whether it is known to be at the venue."""
        return self.seen in {Seen.LIVE, Seen.ACKNOWLEDGED}


@attrs.frozen(kw_only=True)
class Observation:
    """What was seen for one decision.

    ``position``: the book's, None once it is closed. ``readable``: the venue answered. ``attached_price``: the stop
    attached to the position, where the venue keeps it so. ``overlaps``: orders can be reduce-only, so that an old and
    a new stop may rest together. ``price``: at which it could be closed now; read only once the venue has refused an
    order, because it may have been too small. ``closing_elsewhere``: an order of somebody else's may still
    close a released position, and the venue would let a stop do so once more.
    """

    position: Position | None
    instrument: Instrument
    legs: tuple[LegView, ...] = ()
    readable: bool = True
    attached_price: Decimal | None = None
    overlaps: bool = True
    price: Decimal | None = None
    closing_elsewhere: bool = False


@attrs.frozen(kw_only=True)
class StopRule:
    """Where the stop of a position belongs: at a price, or at a distance from its entry; and whether it trails."""

    stop_price: Decimal | None = attrs.field(default=None, converter=to_price)
    distance: PriceFraction | None = attrs.field(default=None, converter=_distance)
    trailing: TrailingPolicy | None = None


@attrs.frozen(kw_only=True)
class SendLeg:
    """Submit this leg (again): the same leg is never two orders. ``patient``: until its doubt is resolved."""

    leg: Leg
    patient: bool = False


@attrs.frozen(kw_only=True)
class CancelLeg:
    """Cancel this leg, and see it end. ``patient``: until its doubt is resolved."""

    leg: Leg
    patient: bool = False


@attrs.frozen(kw_only=True)
class AttachStop:
    """Attach a stop to the position, and read it back."""

    stop_price: Decimal


Action: TypeAlias = SendLeg | CancelLeg | AttachStop
"""What to do next; then look and decide again."""


# --- Changes of the record --------------------------------------------------------------------------


def new_protection(position: Position, *, kind: StopKind, now_ms: int) -> Protection:
    """The record of a position that nothing covers yet: exposed since it was opened."""
    return Protection(
        position_id=position.position_id,
        account=position.account,
        symbol=position.symbol,
        side=position.side,
        kind=kind,
        exposed_since_ms=min(now_ms, position.opened_at_ms),
    )


def stop_price_for(side: PositionSide, entry_price: Decimal, distance: PriceShare, instrument: Instrument) -> Decimal:
    """The stop at *distance* from the price at which it was really entered, on the tick toward the entry.

    Toward the entry: never farther away than allowed.

    Raises:
        InvalidInput: the distance is not above 0, or reaches beyond a price of 0.
    """
    share = to_price_fraction(distance)
    if not 0 < share.value < 1:
        raise InvalidInput(f"the distance of a stop must be above 0 and below the whole price, was {share}")
    offset = EXACT.multiply(share.of(entry_price), Decimal(side.sign))
    return on_grid(EXACT.subtract(entry_price, offset), instrument.tick_size, up=side is PositionSide.LONG)


def tightened(protection: Protection, stop_price: Decimal) -> Protection:
    """*protection* with its stop at *stop_price*, or where it is if that is closer to the price: it never loosens."""
    current = protection.stop_price
    if current is not None:
        is_long = protection.side is PositionSide.LONG
        stop_price = max(current, stop_price) if is_long else min(current, stop_price)
    return protection if stop_price == current else attrs.evolve(protection, stop_price=stop_price)


def resumed(protection: Protection) -> Protection:
    """The record as a new process takes it up: with all its tries, and its deadline still to come."""
    return attrs.evolve(protection, acting_since_ms=None, failures=0, retry_at_ms=0)


def enter(protection: Protection, state: ProtectionState, **changes: Any) -> Protection:
    """*protection* in *state*.

    Raises:
        InvalidTransition: the table has no such edge.
    """
    if state is not protection.state and state not in PROTECTION_TRANSITIONS[protection.state]:
        raise InvalidTransition(f"a protection cannot go from {protection.state.value} to {state.value}")
    return attrs.evolve(protection, state=state, **changes)


def given_up(protection: Protection) -> Protection:
    """Not to be protected any more, but to be closed."""
    return enter(protection, _S.CLOSING, failures=0, retry_at_ms=0)


def refused(protection: Protection, error: str, policy: ProtectionPolicy, *, now_ms: int) -> Protection:
    """A try has failed for *error* (a class name). A stop that would trigger at once has triggered."""
    if error in WOULD_TRIGGER and protection.state is not _S.CLOSING:
        return given_up(protection)
    return failed(protection, policy, now_ms=now_ms)


def released(protection: Protection, policy: ProtectionPolicy, *, now_ms: int) -> Protection:
    """Left to an exit for a while."""
    until_ms = now_ms + round(policy.release_s * 1000)
    if protection.state in {_S.CLOSING, _S.DUST, _S.CLOSED}:
        return protection
    return enter(
        protection,
        _S.RELEASED,
        released_until_ms=until_ms,
        exposed_since_ms=None,
        acting_since_ms=None,
        verified_price=None,
        verified_quantity=ZERO,
    )


def failed(protection: Protection, policy: ProtectionPolicy, *, now_ms: int) -> Protection:
    """One more try has failed, or its outcome is unknown."""
    pause_ms = min(_RETRY_MAX_MS, round(policy.retry_s * 1000) << min(protection.failures, 16))
    return attrs.evolve(protection, failures=protection.failures + 1, retry_at_ms=now_ms + pause_ms)


def held_off(protection: Protection, policy: ProtectionPolicy, *, now_ms: int) -> Protection:
    """The venue would not close the position: as a rule it is closed already, and only the book does not know yet."""
    pause_ms = min(_REFUSED_CLOSE_MAX_MS, round(policy.retry_s * 1000) << min(protection.failures, 16))
    return attrs.evolve(protection, retry_at_ms=max(protection.retry_at_ms, now_ms + pause_ms))
