"""Constants and inputs of the level formulas, validated."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import attrs

from execsafe.core.feedback import FeedbackPolicy, PnlAverage
from execsafe.core.harvest import check_scheme
from execsafe.errors import InvalidInput
from execsafe.model.position import PositionSide
from execsafe.model.units import PriceFraction, share_validator, to_price_fraction
from execsafe.model.values import SYMBOL_LENGTH_MAX, Number, shorten, text_validator, to_decimal

_ZERO: Final = Decimal(0)
_ONE: Final = Decimal(1)
_TARGETS: Final = 3
_FACTOR_MAX: Final = 1_000  # beyond it somebody mistook the unit
_NO_RESULTS: Final = PnlAverage()


def _to_scheme(shares: Sequence[Number]) -> tuple[Decimal, ...]:
    scheme = check_scheme(shares)
    if len(scheme) != _TARGETS:
        raise InvalidInput(f"a harvest scheme has three shares, one for each target, had {len(scheme)}")
    return scheme


@attrs.frozen(kw_only=True)
class HarvestTier:
    """Which share to take at each target, up to and including ``leverage_max`` (None: without limit)."""

    leverage_max: int | None = None
    shares: tuple[Decimal, ...] = attrs.field(converter=_to_scheme)


HARVEST_TIERS: Final = (
    HarvestTier(leverage_max=10, shares=("0.3", "0.3", "0.4")),
    HarvestTier(leverage_max=30, shares=("0.4", "0.4", "0.2")),
    HarvestTier(shares=("0.5", "0.3", "0.2")),
)
"""More is taken early the higher the leverage. The edges 10 and 30 belong to the tier below them."""


def _check_tiers(_instance: Any, _attribute: Any, tiers: tuple[HarvestTier, ...]) -> None:
    edges = [tier.leverage_max for tier in tiers]
    finite = [edge for edge in edges if edge is not None]
    if not edges or edges[-1] is not None or len(finite) != len(edges) - 1 or sorted(set(finite)) != finite:
        raise InvalidInput("harvest_tiers must have rising leverage_max, and none in the last")


def _part(_instance: Any, attribute: attrs.Attribute[Decimal], value: Decimal) -> None:
    if not 0 <= value <= 1:
        raise InvalidInput(f"{attribute.name} must be 0 to 1, was {shorten(str(value))}")


_LEAST: Final = Decimal("0.0001")  # one basis point: less is no price move
_target = share_validator(least=_LEAST, most=Decimal("0.25"))  # the farthest target stays below the price
_bound = share_validator(least=_LEAST, most=Decimal("0.5"))
_cost = share_validator(least=_ZERO, most=Decimal("0.1"))


@attrs.frozen(kw_only=True)
class LevelsPolicy:
    """Constants of the formulas. Shares of a price are given with their unit: ``Percent(1)``, ``Bps(5)``, ….

    Attributes:
        base_tp, base_sl: 1 % and 0.5 %, the original's.
        tp_min: least distance of the first target; 0.3 %, the original's.
        sl_min, sl_max: 0.15 % and 2 %, the original's bounds, in the unit they were meant in.
        liquidation_share: κ, the part of the way to liquidation that the stop may use; 0.8 leaves a fifth for a
            stop that fills late.
        taker_fee: one side's; 5 bps, the usual first tier.
        slippage: what a stop may lose between trigger and fill; 5 bps, half of the spread from which a book counts
            as wide. With it 125x still has room for a stop.
        spread: expected between bid and ask; 10 bps. It counts as a cost for the warning about ``tp1``.
        leverage_max: higher leverage is refused; 125, the highest that the venues in scope offer.
        harvest_tiers: see :data:`HARVEST_TIERS`.
        funding_weight: k. 0 (off) by default; the original's was 0.8, but it was never passed a rate.
        feedback: what recent results do; None (off) by default, as in what the original deployed.
        seed_compat: publish the original's numbers; see :mod:`execsafe.core.seed_levels`. Not for trading.
    """

    base_tp: PriceFraction = attrs.field(default=PriceFraction("0.01"), converter=to_price_fraction, validator=_target)
    base_sl: PriceFraction = attrs.field(default=PriceFraction("0.005"), converter=to_price_fraction, validator=_bound)
    tp_min: PriceFraction = attrs.field(default=PriceFraction("0.003"), converter=to_price_fraction, validator=_target)
    sl_min: PriceFraction = attrs.field(default=PriceFraction("0.0015"), converter=to_price_fraction, validator=_bound)
    sl_max: PriceFraction = attrs.field(default=PriceFraction("0.02"), converter=to_price_fraction, validator=_bound)
    liquidation_share: Decimal = attrs.field(default=Decimal("0.8"), converter=to_decimal, validator=_part)
    taker_fee: PriceFraction = attrs.field(
        default=PriceFraction("0.0005"), converter=to_price_fraction, validator=_cost
    )
    slippage: PriceFraction = attrs.field(default=PriceFraction("0.0005"), converter=to_price_fraction, validator=_cost)
    spread: PriceFraction = attrs.field(default=PriceFraction("0.001"), converter=to_price_fraction, validator=_cost)
    leverage_max: Decimal = attrs.field(default=Decimal(125), converter=to_decimal)
    harvest_tiers: tuple[HarvestTier, ...] = attrs.field(default=HARVEST_TIERS, converter=tuple, validator=_check_tiers)
    funding_weight: Decimal = attrs.field(default=_ZERO, converter=to_decimal, validator=_part)
    feedback: FeedbackPolicy | None = None
    seed_compat: bool = False

    def __attrs_post_init__(self) -> None:
        if self.sl_min > self.sl_max:
            raise InvalidInput(f"sl_min ({self.sl_min}) must not be above sl_max ({self.sl_max})")
        if self.liquidation_share == 0 or self.leverage_max < 1:
            raise InvalidInput("liquidation_share must be above 0, leverage_max at least 1")


# --- Inputs ----------------------------------------------------------------------------------------


def to_position_side(value: PositionSide | str | None) -> PositionSide | None:
    """LONG or SHORT in either case, or None. BUY is refused: it may open a long or close a short.

    Raises:
        InvalidInput: anything else.
    """
    if value is None:
        return None
    try:
        return PositionSide(value.lower())
    except (ValueError, AttributeError):
        raise InvalidInput(f"side must be 'long' or 'short', was {shorten(value)}") from None


def _within(name: str, number: Decimal, low: int, high: int) -> Decimal:
    if not low <= number <= high:
        raise InvalidInput(f"{name} must be {low} to {high}, was {shorten(str(number))}")
    return number


# Named converters: attrs and its mypy plugin want functions.


def _to_leverage(value: Number) -> Decimal:
    leverage = to_decimal(value, "leverage")
    if leverage < 1:
        raise InvalidInput(f"leverage must be at least 1, was {shorten(str(leverage))}")
    return leverage


def _to_volatility(value: Number) -> Decimal:
    return _within("volatility_factor", to_decimal(value, "volatility_factor"), 0, _FACTOR_MAX)


def _to_divergence(value: Number) -> Decimal:
    return _within("exchange_divergence", to_decimal(value, "exchange_divergence"), 0, _FACTOR_MAX)


def _to_funding(value: Number | None) -> Decimal | None:
    return None if value is None else _within("funding_rate", to_decimal(value, "funding_rate"), -1, 1)


def _to_confidence(value: Number | None) -> Decimal | None:
    return None if value is None else _within("confidence", to_decimal(value, "confidence"), 0, 1)


def _to_margin_rate(value: Number) -> Decimal:
    return _within("maintenance_margin_rate", to_decimal(value, "maintenance_margin_rate"), 0, 1)


@attrs.frozen(kw_only=True)
class LevelsInput:
    """What levels are computed from.

    Attributes:
        symbol: only named, never looked up.
        leverage: 1 or more.
        side: of the position; None takes the bound of a short, which is the nearer one.
        volatility_factor: 0 is calm, 1 usual, at most 1,000; widens the stop.
        exchange_divergence: how far venues disagree about the price, 0 to 1,000; widens the stop.
        funding_rate: of the next period, −1 to 1, positive when longs pay; None: not known.
        average: of recent results.
        confidence: of the signal, 0 to 1; None: not known.
        maintenance_margin_rate: m, 0 to 1, of the venue's tier for the position's size; 0.5 %, the usual first tier.
    """

    symbol: str = attrs.field(validator=text_validator("symbol", SYMBOL_LENGTH_MAX))
    leverage: Decimal = attrs.field(converter=_to_leverage)
    side: PositionSide | None = attrs.field(default=None, converter=to_position_side)
    volatility_factor: Decimal = attrs.field(default=_ONE, converter=_to_volatility)
    exchange_divergence: Decimal = attrs.field(default=_ZERO, converter=_to_divergence)
    funding_rate: Decimal | None = attrs.field(default=None, converter=_to_funding)
    average: PnlAverage = attrs.field(default=_NO_RESULTS)
    confidence: Decimal | None = attrs.field(default=None, converter=_to_confidence)
    maintenance_margin_rate: Decimal = attrs.field(default=Decimal("0.005"), converter=_to_margin_rate)
