"""A stop that follows the price: when it starts, where it belongs, and when moving it is worth an order.

Rules:

1. Every change of phase goes through ``TRAILING_TRANSITIONS``; there is no way back, and none out of TRIGGERED.
2. The stop never loosens: for a long it only rises, for a short it only falls.
3. Long and short are mirror images: the same sentences with the sign of the side.
4. Where the stop belongs is a function of the best price seen, of nothing else. Rate limits decide only whether the
   venue is told now or later; a price beyond the place where the stop belongs triggers, told or not.
5. A policy or state with a zero in it cannot be built: a callback of zero would put the stop at the best price itself.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

import attrs

from execsafe.core.grid import FINEST, on_grid, to_average
from execsafe.errors import InvalidInput, InvalidTransition
from execsafe.model.position import PositionSide
from execsafe.model.units import PriceFraction, PriceShare, share_validator, to_price_fraction
from execsafe.model.values import EXACT, Number, shorten, to_limit, to_positive, to_price
from execsafe.model.venue import Word

_ZERO: Final = Decimal(0)
_SECOND_MS: Final = 1_000
_DAY_MS: Final = 86_400_000


class TrailingPhase(Word):
    """Where a trailing stop is in its life."""

    INACTIVE = "inactive"  # no price seen yet
    WAITING = "waiting"  # the price has not reached the activation price
    ACTIVE = "active"  # the stop follows the best price
    TRIGGERED = "triggered"  # the price reached the stop: leave


_P = TrailingPhase

TRAILING_TRANSITIONS: Final[Mapping[TrailingPhase, frozenset[TrailingPhase]]] = {
    _P.INACTIVE: frozenset({_P.WAITING, _P.ACTIVE, _P.TRIGGERED}),
    _P.WAITING: frozenset({_P.ACTIVE, _P.TRIGGERED}),
    _P.ACTIVE: frozenset({_P.TRIGGERED}),
    _P.TRIGGERED: frozenset(),
}
"""Which phase may follow which."""


def _to_share(value: PriceShare | None) -> PriceFraction | None:
    return None if value is None else to_price_fraction(value)


_MOST: Final = Decimal("0.99")  # a share of the price above zero and below all of it
_above_zero: Final = share_validator(least=_ZERO, most=_MOST, above=True)
_not_negative: Final = share_validator(least=_ZERO, most=_MOST)


def _whole_ms(_instance: Any, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or not 0 <= value <= _DAY_MS:
        raise InvalidInput(f"{attribute.name} must be whole milliseconds, 0 to {_DAY_MS}, was {shorten(value)}")


@attrs.frozen(kw_only=True)
class TrailingPolicy:
    """When a stop starts to follow, how closely, and how often the venue is told. Shares of a price carry their unit.

    Attributes:
        activation: gain over the entry price from which the stop follows; 2 %.
        callback: distance of the stop from the best price seen, as a share of that price; 0.5 %.
        breakeven: gain over the entry price from which the stop is at the entry price at least; 0.5 %, None: never.
        min_improvement: smallest move worth an order, as a share of the stop's price; 0.05 %.
        min_interval_ms: shortest time between two moves; 30 s, so that a trend does not use up the rate limit.
        emergency_improvement: a move of at least this much does not wait for ``min_interval_ms``; 1 %.
        save_interval_ms, save_change: the best price is worth saving after 10 s, or at once when it moved by 0.2 %
            (see :func:`needs_saving`): losing the newest one in a crash costs at most that much.
    """

    activation: PriceFraction = attrs.field(
        default=PriceFraction("0.02"), converter=to_price_fraction, validator=_above_zero
    )
    callback: PriceFraction = attrs.field(
        default=PriceFraction("0.005"), converter=to_price_fraction, validator=_above_zero
    )
    breakeven: PriceFraction | None = attrs.field(
        default=PriceFraction("0.005"), converter=_to_share, validator=_above_zero
    )
    min_improvement: PriceFraction = attrs.field(
        default=PriceFraction("0.0005"), converter=to_price_fraction, validator=_not_negative
    )
    min_interval_ms: int = attrs.field(default=30 * _SECOND_MS, validator=_whole_ms)
    emergency_improvement: PriceFraction = attrs.field(
        default=PriceFraction("0.01"), converter=to_price_fraction, validator=_above_zero
    )
    save_interval_ms: int = attrs.field(default=10 * _SECOND_MS, validator=_whole_ms)
    save_change: PriceFraction = attrs.field(
        default=PriceFraction("0.002"), converter=to_price_fraction, validator=_not_negative
    )

    def __attrs_post_init__(self) -> None:
        if self.emergency_improvement < self.min_improvement:
            raise InvalidInput(
                f"emergency_improvement ({self.emergency_improvement}) must not be below "
                f"min_improvement ({self.min_improvement})"
            )


def _to_side(value: PositionSide | str) -> PositionSide:
    try:
        return PositionSide(value)
    except ValueError:
        raise InvalidInput(f"side must be 'long' or 'short', was {shorten(value)}") from None


def _to_entry_price(value: Number) -> Decimal:
    return to_average(value, "entry_price")


@attrs.frozen(kw_only=True)
class TrailingStop:
    """A position's trailing stop, as it is after the last price. Built new, or read back: validated either way.

    Attributes:
        side: of the position.
        entry_price: average price at which it was opened.
        tick_size: grid of the venue's prices; None: no grid.
        policy: when and how it follows.
        phase: where it is in its life.
        best_price: highest price seen for a long, lowest for a short; None before the first one.
        stop_price: the stop that is in force (at first the one placed with the entry); None: there is none.
        moved_at_ms: Unix ms of the last move; None: never moved.
        best_at_ms: Unix ms at which ``best_price`` was seen.
    """

    side: PositionSide = attrs.field(converter=_to_side)
    entry_price: Decimal = attrs.field(converter=_to_entry_price)
    tick_size: Decimal | None = attrs.field(default=None, converter=to_limit)
    policy: TrailingPolicy = TrailingPolicy()
    phase: TrailingPhase = attrs.field(default=TrailingPhase.INACTIVE, converter=TrailingPhase)
    best_price: Decimal | None = attrs.field(default=None, converter=to_price)
    stop_price: Decimal | None = attrs.field(default=None, converter=to_price)
    moved_at_ms: int | None = None
    best_at_ms: int | None = None

    def __attrs_post_init__(self) -> None:
        if (self.best_price is None) is not (self.phase is _P.INACTIVE):
            raise InvalidInput(f"a trailing stop that is {self.phase} cannot have the best price {self.best_price}")

    @property
    def activation_price(self) -> Decimal:
        """From here on the stop follows: above the entry price for a long, below it for a short."""
        return _beyond(self.entry_price, self.policy.activation, self.side.sign)


# --- Decisions ---------------------------------------------------------------------------------------


class TrailingReason(enum.StrEnum):
    """Why the stop moves."""

    BREAKEVEN = "breakeven"
    TRAILING = "trailing"


class HoldReason(enum.StrEnum):
    """Why nothing is done."""

    NOT_ACTIVATED = "not_activated"
    NOT_BETTER = "not_better"  # the stop belongs where it is
    TOO_SMALL = "too_small"  # less than min_improvement
    TOO_SOON = "too_soon"  # within min_interval_ms of the last move
    TRIGGERED = "triggered"  # over


@attrs.frozen(kw_only=True)
class Hold:
    """Leave the stop where it is."""

    reason: HoldReason


@attrs.frozen(kw_only=True)
class MoveStop:
    """Move the stop to *stop_price*, on the tick. *previous* is where it was; None: there was none."""

    stop_price: Decimal
    previous: Decimal | None
    reason: TrailingReason


@attrs.frozen(kw_only=True)
class Triggered:
    """The price reached *stop_price*, the place where the stop belongs: see that the position is closed."""

    stop_price: Decimal
    price: Decimal


TrailingDecision: TypeAlias = Hold | MoveStop | Triggered
"""What to do after a price."""


def step(state: TrailingStop, price: Number, now_ms: int) -> tuple[TrailingStop, TrailingDecision]:
    """What one price changes, and what to do about it.

    The new state takes a ``MoveStop`` as done. Save it, then act; if the venue kept another stop, say so with
    :func:`with_stop`.

    Args:
        state: as it was.
        price: the price that triggers stops at the venue (mark or last), quote per base.
        now_ms: Unix ms. A clock that was set back does not hold up moves.

    Raises:
        InvalidInput: *price* is not a number above 0.
    """
    if state.phase is _P.TRIGGERED:
        return state, Hold(reason=HoldReason.TRIGGERED)
    paid = to_positive(price, "price")
    seen = _see(state, paid, now_ms)
    place, reason = _belongs(seen)
    line = _tighter(seen.side.sign, place, seen.stop_price)
    if line is not None and not _is_better(seen.side.sign, paid, line):
        return _enter(seen, _P.TRIGGERED), Triggered(stop_price=line, price=paid)
    if place is None or reason is None:
        return seen, Hold(reason=HoldReason.NOT_ACTIVATED)
    holds = _hold_reason(seen, place, now_ms)
    if holds is not None:
        return seen, Hold(reason=holds)
    moved = attrs.evolve(seen, stop_price=place, moved_at_ms=now_ms)
    return moved, MoveStop(stop_price=place, previous=seen.stop_price, reason=reason)


def with_stop(state: TrailingStop, stop_price: Number | None) -> TrailingStop:
    """The same state when the stop really in force is *stop_price* (read back from the venue; None: there is none).

    What was seen of the price is kept, so the next step decides again from what is true.
    """
    return attrs.evolve(state, stop_price=stop_price)


def needs_saving(saved: TrailingStop | None, current: TrailingStop) -> bool:
    """Whether *current* is worth a write, *saved* being what a restart would find.

    Always when the phase or the stop changed; for the best price alone, as the policy says.
    """
    if saved is None or (saved.phase, saved.stop_price) != (current.phase, current.stop_price):
        return True
    if saved.best_price == current.best_price or saved.best_price is None or current.best_price is None:
        return saved.best_price != current.best_price
    policy = current.policy
    moved = EXACT.subtract(current.best_price, saved.best_price).copy_abs()
    if moved >= policy.save_change.of(saved.best_price):
        return True
    return not _is_within(policy.save_interval_ms, saved.best_at_ms, current.best_at_ms or 0)


# --- The rules, written once for both sides ----------------------------------------------------------


def _see(state: TrailingStop, price: Decimal, now_ms: int) -> TrailingStop:
    sign = state.side.sign
    if state.best_price is not None and not _is_better(sign, price, state.best_price):
        return state
    reached = not _is_better(sign, state.activation_price, price)
    phase = _P.ACTIVE if reached else _P.WAITING if state.phase is _P.INACTIVE else state.phase
    return _enter(state, phase, best_price=price, best_at_ms=now_ms)


def _enter(state: TrailingStop, phase: TrailingPhase, **changes: Any) -> TrailingStop:
    if phase is not state.phase and phase not in TRAILING_TRANSITIONS[state.phase]:
        raise InvalidTransition(f"a trailing stop that is {state.phase} cannot become {phase}")
    return attrs.evolve(state, phase=phase, **changes)


def _belongs(state: TrailingStop) -> tuple[Decimal | None, TrailingReason | None]:
    """Where the stop belongs after the best price seen, and why; (None, None): nowhere yet."""
    sign, policy, best = state.side.sign, state.policy, state.best_price
    if best is None:
        return None, None
    trail = _place(state, _beyond(best, policy.callback, -sign)) if state.phase is _P.ACTIVE else None
    even = None
    if policy.breakeven is not None and not _is_better(sign, _beyond(state.entry_price, policy.breakeven, sign), best):
        even = _place(state, state.entry_price)
    place = _tighter(sign, trail, even)
    if place is None:
        return None, None
    return place, TrailingReason.TRAILING if place == trail else TrailingReason.BREAKEVEN


def _place(state: TrailingStop, stop: Decimal) -> Decimal | None:
    """*stop* on the tick, toward the price (never farther away than allowed), yet short of the best price itself."""
    sign, best, tick = state.side.sign, state.best_price or stop, state.tick_size or FINEST
    rounded = on_grid(stop, tick, up=sign > 0)
    if not _is_better(sign, best, rounded):  # the tick is coarser than the callback
        last = on_grid(best, tick, up=sign < 0)
        rounded = last if last != best else EXACT.subtract(last, tick if sign > 0 else tick.copy_negate())
    return rounded if rounded > 0 else None


def _hold_reason(state: TrailingStop, place: Decimal, now_ms: int) -> HoldReason | None:
    current, policy = state.stop_price, state.policy
    if current is None:
        return None
    if not _is_better(state.side.sign, place, current):
        return HoldReason.NOT_BETTER
    gain = EXACT.subtract(place, current).copy_abs()
    if gain < policy.min_improvement.of(current):
        return HoldReason.TOO_SMALL
    is_soon = _is_within(policy.min_interval_ms, state.moved_at_ms, now_ms)
    return HoldReason.TOO_SOON if is_soon and gain < policy.emergency_improvement.of(current) else None


def _is_within(interval_ms: int, since_ms: int | None, now_ms: int) -> bool:
    return since_ms is not None and 0 <= now_ms - since_ms < interval_ms


def _is_better(sign: int, one: Decimal, other: Decimal) -> bool:
    """Whether *one* is farther in the direction in which the position gains."""
    return one > other if sign > 0 else one < other


def _tighter(sign: int, one: Decimal | None, other: Decimal | None) -> Decimal | None:
    if one is None or other is None:
        return other if one is None else one
    return one if _is_better(sign, one, other) else other


def _beyond(price: Decimal, share: PriceFraction, sign: int) -> Decimal:
    distance = share.of(price)
    return EXACT.add(price, distance) if sign > 0 else EXACT.subtract(price, distance)
