"""How recent results change levels: rarely, by little, and not back and forth.

A plain threshold at zero is a cliff: an average of −0.0001 would cut everything by a tenth, and one small win would
restore it. So a trend needs a minimum of trades, begins only when the average is past its threshold by the
hysteresis, and lasts until the average is back at the threshold itself.
"""

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Any, Final

import attrs

from execsafe.errors import InvalidInput
from execsafe.model.units import MarginReturn, to_margin_return
from execsafe.model.values import EXACT, check_count, shorten, to_decimal

_ONE: Final = Decimal(1)
_ZERO_RETURN: Final = MarginReturn(0)


class Trend(enum.StrEnum):
    """Which way recent results point."""

    NEUTRAL = "neutral"
    LOSING = "losing"
    WINNING = "winning"


@attrs.frozen(kw_only=True)
class PnlAverage:
    """Mean result of the latest trades of one symbol, as a return on margin, over *count* of them."""

    value: MarginReturn = attrs.field(default=_ZERO_RETURN, converter=to_margin_return)
    count: int = 0
    trend: Trend = attrs.field(default=Trend.NEUTRAL, converter=Trend)


def _share(_instance: Any, attribute: attrs.Attribute[Decimal], value: Decimal) -> None:
    if not 0 <= value <= 1:
        raise InvalidInput(f"{attribute.name} must be 0 to 1, was {shorten(str(value))}")


def _count(_instance: Any, attribute: attrs.Attribute[int], value: int) -> None:
    check_count(value, attribute.name)


@attrs.frozen(kw_only=True)
class FeedbackPolicy:
    """What recent results and low confidence do to levels. Off unless it is given to ``LevelsPolicy(feedback=…)``.

    Cutting the stop's distance after losses brings more stop-outs, which are losses again: set ``adjusts_stop`` to
    False if that is not wanted.

    Attributes:
        loss_cut, win_boost: part by which levels shrink in a losing trend and grow in a winning one; 0.10.
        win_above: average above which a trend is winning; +30 % of margin. A trend is losing below 0.
        doubt_cut: part by which levels shrink at a confidence below ``confidence_min``; 0.05 below 0.5.
        trades_min: with fewer results there is no trend; 10, half of the ring.
        hysteresis: how far the average must be past its threshold before a trend begins; 2 % of margin.
        lowest, highest: the adjustment keeps within these; 0.8 to 1.2.
        adjusts_stop: whether the stop is adjusted like the targets; the original did.
    """

    loss_cut: Decimal = attrs.field(default=Decimal("0.10"), converter=to_decimal, validator=_share)
    win_boost: Decimal = attrs.field(default=Decimal("0.10"), converter=to_decimal, validator=_share)
    win_above: MarginReturn = attrs.field(default=MarginReturn("0.30"), converter=to_margin_return)
    doubt_cut: Decimal = attrs.field(default=Decimal("0.05"), converter=to_decimal, validator=_share)
    confidence_min: Decimal = attrs.field(default=Decimal("0.5"), converter=to_decimal, validator=_share)
    trades_min: int = attrs.field(default=10, validator=_count)
    hysteresis: MarginReturn = attrs.field(default=MarginReturn("0.02"), converter=to_margin_return)
    lowest: Decimal = attrs.field(default=Decimal("0.8"), converter=to_decimal)
    highest: Decimal = attrs.field(default=Decimal("1.2"), converter=to_decimal)
    adjusts_stop: bool = True

    def __attrs_post_init__(self) -> None:
        if not 0 < self.lowest <= 1 <= self.highest <= 2:  # noqa: PLR2004 - at most twice as far
            raise InvalidInput(f"lowest must be above 0 to 1 and highest 1 to 2, were {self.lowest} and {self.highest}")
        if self.hysteresis < _ZERO_RETURN or self.win_above < _ZERO_RETURN:
            raise InvalidInput("hysteresis and win_above must not be negative")


def next_trend(policy: FeedbackPolicy, previous: Trend, average: MarginReturn, count: int) -> Trend:
    """The trend after *count* results with this *average*, *previous* being the one before."""
    if count < policy.trades_min:
        return Trend.NEUTRAL
    past = _ZERO_RETURN if previous is Trend.LOSING else policy.hysteresis
    if average < -past:
        return Trend.LOSING
    past = _ZERO_RETURN if previous is Trend.WINNING else policy.hysteresis
    return Trend.WINNING if average > policy.win_above + past else Trend.NEUTRAL


def adjustment(policy: FeedbackPolicy | None, trend: Trend, confidence: Decimal | None) -> Decimal:
    """The factor for all levels; 1 without a policy, and where nothing is known."""
    if policy is None:
        return _ONE
    factor = _ONE
    if trend is Trend.LOSING:
        factor = EXACT.subtract(factor, policy.loss_cut)
    elif trend is Trend.WINNING:
        factor = EXACT.add(factor, policy.win_boost)
    if confidence is not None and confidence < policy.confidence_min:
        factor = EXACT.subtract(factor, policy.doubt_cut)
    return min(max(factor, policy.lowest), policy.highest)
