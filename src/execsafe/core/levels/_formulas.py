"""The formulas, as pure functions of policy and inputs."""

from __future__ import annotations

from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from typing import Final

from execsafe.core.feedback import adjustment
from execsafe.core.grid import FINEST
from execsafe.core.levels._policy import LevelsInput, LevelsPolicy
from execsafe.core.levels._results import Degraded, DegradedReason, Levels, LevelsWarning, StopBound
from execsafe.core.seed_levels import seed_numbers
from execsafe.errors import InvalidInput
from execsafe.model.position import PositionSide
from execsafe.model.units import Percent, PriceFraction
from execsafe.model.values import EXACT, Number, to_decimal, to_positive, total

_ZERO: Final = Decimal(0)
_ONE: Final = Decimal(1)
# Decimal's ln is correctly rounded, so every machine gets the same 34 digits (those of decimal128), whatever the
# current context. What is published keeps 24 places.
_MATH: Final = Context(prec=34, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation, DivisionByZero, Overflow])
_TP_BASE: Final = (Decimal("0.6"), Decimal("1.2"), Decimal("1.8"))
_TP_DIVISOR: Final = (Decimal(1), Decimal(2), Decimal(4))
_LEVERAGE_WEIGHT: Final = Decimal("0.8")
_VOLATILITY_WEIGHT: Final = Decimal("0.2")
_DIVERGENCE_WEIGHT: Final = Decimal("0.4")
_NEUTRAL_SHARE: Final = PriceFraction(0)


def compute_levels(policy: LevelsPolicy, given: LevelsInput) -> Levels | Degraded:
    """Levels for these inputs, or why there are none.

    Raises:
        InvalidInput: the leverage is above ``policy.leverage_max``.
    """
    if given.leverage > policy.leverage_max:
        raise InvalidInput(f"leverage {given.leverage} is above the highest allowed, {policy.leverage_max}")
    if policy.seed_compat:
        return _seed_levels(policy, given)
    room = stop_room(policy, given)
    if room < policy.sl_min:
        return _degraded(policy, given, room)
    lsf, factor = leverage_factor(given.leverage), adjustment(policy.feedback, given.average.trend, given.confidence)
    raw = raw_targets(policy, given, lsf, factor)
    targets = _lift(raw, policy.tp_min)
    stop, bound = _clamp(policy, raw_stop(policy, given, lsf, factor), room)
    scheme = harvest_scheme(policy, given.leverage)
    reward_risk = _reward_risk(targets, scheme, stop)
    return Levels(
        symbol=given.symbol,
        leverage=given.leverage,
        side=given.side,
        volatility_factor=given.volatility_factor,
        tp1=targets[0],
        tp2=targets[1],
        tp3=targets[2],
        sl=stop,
        lsf=lsf,
        harvest_scheme=scheme,
        adjustment=factor,
        avg_pnl_last_20=given.average.value,
        bound=bound,
        reward_risk=reward_risk,
        warnings=_warnings(policy, targets, reward_risk, bound, is_lifted=targets != raw),
    )


def leverage_factor(leverage: Number) -> Decimal:
    """LSF: 1 / (1 + ln(leverage + 1)), to 34 digits; 0.59 at 1, strictly falling."""
    shifted = _MATH.add(to_decimal(leverage, "leverage"), _ONE)
    return _MATH.divide(_ONE, _MATH.add(_ONE, shifted.ln(_MATH)))


def liquidation_distance(
    leverage: Number, maintenance_margin_rate: Number, side: PositionSide | None = None
) -> PriceFraction:
    """How far the price moves until an isolated linear position is liquidated, without fees and funding.

    From margin + profit = m · value, with the value at the new price: (1/L − m) / (1 − m) for a long and
    (1/L − m) / (1 + m) for a short, which is nearer. None takes the nearer one. Negative where the margin does not
    even cover the maintenance margin.
    """
    rate = to_decimal(maintenance_margin_rate, "maintenance_margin_rate")
    margin = _MATH.subtract(_MATH.divide(_ONE, to_positive(leverage, "leverage")), rate)
    whole = _MATH.subtract(_ONE, rate) if side is PositionSide.LONG else _MATH.add(_ONE, rate)
    if whole == 0:
        return PriceFraction(-1)
    return PriceFraction(_MATH.divide(margin, whole).quantize(FINEST, rounding=ROUND_FLOOR, context=EXACT))


def stop_room(policy: LevelsPolicy, given: LevelsInput) -> PriceFraction:
    """The farthest stop that still fills before liquidation: κ · (liquidation − fee − slippage)."""
    left = liquidation_distance(given.leverage, given.maintenance_margin_rate, given.side)
    left = left - policy.taker_fee - policy.slippage
    room = EXACT.multiply(policy.liquidation_share, left.value)
    return PriceFraction(room.quantize(FINEST, rounding=ROUND_FLOOR, context=EXACT))


def raw_targets(
    policy: LevelsPolicy, given: LevelsInput, lsf: Decimal, factor: Decimal
) -> tuple[PriceFraction, PriceFraction, PriceFraction]:
    """The three targets before any floor. They fall with leverage, in the ratio 1 : ½ : ¼."""
    scale = _MATH.multiply(_MATH.multiply(policy.base_tp.value, factor), _funding_factor(policy, given))
    first, second, third = (
        _rounded(_MATH.multiply(scale, _MATH.add(base, _MATH.divide(lsf, divisor))))
        for base, divisor in zip(_TP_BASE, _TP_DIVISOR, strict=True)
    )
    return first, second, third


def raw_stop(policy: LevelsPolicy, given: LevelsInput, lsf: Decimal, factor: Decimal) -> PriceFraction:
    """The stop's distance before any bound. It *grows* with leverage, to 1.8 × ``base_sl`` at most in a calm market."""
    adjusts = policy.feedback is None or policy.feedback.adjusts_stop
    base = _MATH.multiply(policy.base_sl.value, factor if adjusts else _ONE)
    by_leverage = _MATH.add(_ONE, _MATH.multiply(_LEVERAGE_WEIGHT, _MATH.subtract(_ONE, lsf)))
    by_market = total(
        (
            _ONE,
            EXACT.multiply(_VOLATILITY_WEIGHT, given.volatility_factor),
            EXACT.multiply(_DIVERGENCE_WEIGHT, given.exchange_divergence),
        )
    )
    return _rounded(_MATH.multiply(_MATH.multiply(base, by_leverage), by_market))


def harvest_scheme(policy: LevelsPolicy, leverage: Decimal) -> tuple[Decimal, ...]:
    """Which share is taken at each target: the first tier that reaches up to *leverage*."""
    tiers = policy.harvest_tiers
    return next(t.shares for t in tiers if t.leverage_max is None or leverage <= t.leverage_max)


def _funding_factor(policy: LevelsPolicy, given: LevelsInput) -> Decimal:
    """A side that pays funding takes its profit earlier, one that is paid can wait; without a side it is off."""
    if given.funding_rate is None or given.side is None:
        return _ONE
    paid_by_longs = given.funding_rate
    received = paid_by_longs.copy_negate() if given.side is PositionSide.LONG else paid_by_longs
    return EXACT.add(_ONE, EXACT.multiply(policy.funding_weight, received))


def _lift(
    raw: tuple[PriceFraction, PriceFraction, PriceFraction], floor: PriceFraction
) -> tuple[PriceFraction, PriceFraction, PriceFraction]:
    """The ladder as it would be with a ``base_tp`` for which the first target is at its floor."""
    if raw[0] >= floor:
        return raw
    _, second, third = (_rounded(_MATH.divide(_MATH.multiply(rung.value, floor.value), raw[0].value)) for rung in raw)
    return floor, second, third


def _clamp(policy: LevelsPolicy, raw: PriceFraction, room: PriceFraction) -> tuple[PriceFraction, StopBound]:
    most, bound = (policy.sl_max, StopBound.SL_MAX) if policy.sl_max <= room else (room, StopBound.LIQUIDATION)
    if raw > most:
        return most, bound
    return (policy.sl_min, StopBound.SL_MIN) if raw < policy.sl_min else (raw, StopBound.FORMULA)


def _reward_risk(targets: tuple[PriceFraction, ...], scheme: tuple[Decimal, ...], stop: PriceFraction) -> Decimal:
    reward = total(EXACT.multiply(share, target.value) for share, target in zip(scheme, targets, strict=True))
    return _MATH.divide(reward, stop.value)


def _warnings(
    policy: LevelsPolicy, targets: tuple[PriceFraction, ...], reward_risk: Decimal, bound: StopBound, *, is_lifted: bool
) -> tuple[LevelsWarning, ...]:
    costs = policy.taker_fee + policy.taker_fee + policy.spread
    found = {
        LevelsWarning.REWARD_BELOW_RISK: reward_risk < 1,
        LevelsWarning.TARGET_BELOW_COSTS: targets[0] < costs,
        LevelsWarning.STOP_CUT_BY_LIQUIDATION: bound is StopBound.LIQUIDATION,
        LevelsWarning.LADDER_LIFTED: is_lifted,
    }
    return tuple(warning for warning, holds in found.items() if holds)


def _degraded(policy: LevelsPolicy, given: LevelsInput, room: PriceFraction) -> Degraded:
    rate = given.maintenance_margin_rate
    whole = EXACT.subtract(_ONE, rate) if given.side is PositionSide.LONG else EXACT.add(_ONE, rate)
    distance = _MATH.divide(policy.sl_min.value, policy.liquidation_share)
    distance = _MATH.add(distance, _MATH.add(policy.taker_fee.value, policy.slippage.value))
    fits = _MATH.divide(_ONE, _MATH.add(_MATH.multiply(distance, whole), rate))
    return Degraded(
        symbol=given.symbol,
        leverage=given.leverage,
        side=given.side,
        reason=DegradedReason.NO_ROOM_BEFORE_LIQUIDATION,
        room=room,
        needed=policy.sl_min,
        leverage_fits=fits.quantize(Decimal("0.01"), rounding=ROUND_FLOOR, context=EXACT),
    )


def _seed_levels(policy: LevelsPolicy, given: LevelsInput) -> Levels:
    numbers = seed_numbers(
        leverage=given.leverage,
        volatility_factor=given.volatility_factor,
        exchange_divergence=given.exchange_divergence,
    )
    first, second, third = (Percent(tp).as_fraction() for tp in (numbers.tp1, numbers.tp2, numbers.tp3))
    stop, scheme = PriceFraction(numbers.sl), harvest_scheme(policy, given.leverage)
    return Levels(
        symbol=given.symbol,
        leverage=given.leverage,
        side=given.side,
        volatility_factor=given.volatility_factor,
        tp1=first,
        tp2=second,
        tp3=third,
        sl=stop,
        lsf=to_decimal(numbers.lsf),
        harvest_scheme=scheme,
        adjustment=_ONE,
        avg_pnl_last_20=given.average.value,
        bound=StopBound.SL_MAX,
        reward_risk=_reward_risk((first, second, third), scheme, stop),
        published=numbers,
    )


def _rounded(number: Decimal) -> PriceFraction:
    return PriceFraction(number.quantize(FINEST, rounding=ROUND_HALF_EVEN, context=EXACT))
