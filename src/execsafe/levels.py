"""AdaptiveLevels: three targets, a stop and a harvest scheme from leverage and volatility, with their units.

The formulas and their rules are in :mod:`execsafe.core.levels`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from decimal import Decimal
from typing import Final

from execsafe.core.feedback import FeedbackPolicy, PnlAverage, Trend, next_trend
from execsafe.core.harvest import HarvestLeg, HarvestPlan, split_harvest
from execsafe.core.levels import (
    HARVEST_TIERS,
    Degraded,
    DegradedReason,
    HarvestTier,
    LevelPrices,
    Levels,
    LevelsInput,
    LevelsPolicy,
    LevelsWarning,
    StopBound,
    compute_levels,
    liquidation_distance,
)
from execsafe.errors import NoSafeStop
from execsafe.model.position import PositionSide
from execsafe.model.units import MarginReturn, to_margin_return
from execsafe.model.values import SYMBOL_LENGTH_MAX, Number, check_count, to_text, weighted_average

__all__ = [
    "HARVEST_TIERS",
    "AdaptiveLevels",
    "Degraded",
    "DegradedReason",
    "FeedbackPolicy",
    "HarvestLeg",
    "HarvestPlan",
    "HarvestTier",
    "LevelPrices",
    "Levels",
    "LevelsInput",
    "LevelsPolicy",
    "LevelsWarning",
    "PnlAverage",
    "PnlTracker",
    "StopBound",
    "Trend",
    "liquidation_distance",
    "split_harvest",
]

PNL_RING: Final = 20
_NO_RESULTS: Final = PnlAverage()


class AdaptiveLevels:
    """Computes levels; holds its policy and nothing else, so no call and no symbol influences another.

    Args:
        policy: constants of the formulas; ``LevelsPolicy()`` has the original's, in the units they were meant in.
    """

    def __init__(self, policy: LevelsPolicy | None = None) -> None:
        self.policy: LevelsPolicy = policy or LevelsPolicy()

    @classmethod
    def seed_compat(cls) -> AdaptiveLevels:
        """The original's published numbers to the last digit, for comparison with old data. Compat, do not trade.

        Their targets are percent, and their stop is always its clamp of 0.02; ``Levels.prices`` refuses them.
        """
        return cls(LevelsPolicy(seed_compat=True))

    def compute(
        self,
        *,
        symbol: str,
        leverage: Number,
        volatility_factor: Number = 1,
        side: PositionSide | str | None = None,
        exchange_divergence: Number = 0,
        funding_rate: Number | None = None,
        avg_pnl_last_20: PnlAverage | MarginReturn | Number | None = None,
        confidence: Number | None = None,
        maintenance_margin_rate: Number = Decimal("0.005"),
    ) -> Levels:
        """Levels as shares of the entry price.

        Args:
            symbol: only named in the result.
            leverage: 1 to ``policy.leverage_max``.
            volatility_factor: 0 is calm, 1 (the default) usual; widens the stop.
            side: "long" or "short"; None takes a bound that holds for both.
            exchange_divergence: how far venues disagree about the price; widens the stop. None by default.
            funding_rate: positive when longs pay. Used only with ``policy.funding_weight`` and a side.
            avg_pnl_last_20: mean of the latest results: what ``PnlTracker.average`` returns, or a return on margin
                (0.05 is +5 % of it), taken for an average of 20. Reported; used only with ``policy.feedback``.
            confidence: of the signal, 0 to 1. Used only with ``policy.feedback``.
            maintenance_margin_rate: of the venue's tier for this position; 0.5 %, the usual first tier.

        Raises:
            InvalidInput: NaN, infinity, or a number out of its range; a leverage below 1 is never taken for 1.
            NoSafeStop: at this leverage no stop of at least ``policy.sl_min`` comes before liquidation.
        """
        given = LevelsInput(
            symbol=symbol,
            leverage=leverage,
            side=side,
            volatility_factor=volatility_factor,
            exchange_divergence=exchange_divergence,
            funding_rate=funding_rate,
            average=self._average(avg_pnl_last_20),
            confidence=confidence,
            maintenance_margin_rate=maintenance_margin_rate,
        )
        found = self.evaluate(given)
        if isinstance(found, Levels):
            return found
        raise NoSafeStop(
            f"{symbol}: at leverage {leverage} a stop may be {found.room} away at most to come before liquidation, "
            f"and must be {found.needed} at least; leverage {found.leverage_fits} would fit",
            symbol=symbol,
            reason=found.reason.value,
            leverage_fits=str(found.leverage_fits),
        )

    def evaluate(self, given: LevelsInput) -> Levels | Degraded:
        """Levels for *given*, or a typed value that says why there are none: never other levels in their place.

        Raises:
            InvalidInput: the leverage is above ``policy.leverage_max``.
        """
        return compute_levels(self.policy, given)

    def _average(self, given: PnlAverage | MarginReturn | Number | None) -> PnlAverage:
        if given is None:
            return _NO_RESULTS
        if isinstance(given, PnlAverage):
            return given
        value, policy = to_margin_return(given), self.policy.feedback
        trend = Trend.NEUTRAL if policy is None else next_trend(policy, Trend.NEUTRAL, value, PNL_RING)
        return PnlAverage(value=value, count=PNL_RING, trend=trend)


class PnlTracker:
    """The latest results of each symbol, as returns on margin: 0.05 is +5 % of what was put up.

    In memory only: after a restart there is no trend until enough new results came.

    Args:
        feedback: when an average becomes a trend.
        size: results kept for each symbol; 20.
        symbols_max: symbols kept; the one that has been without results the longest makes room. 1,000 is more than
            a venue lists.
    """

    def __init__(
        self, feedback: FeedbackPolicy | None = None, *, size: int = PNL_RING, symbols_max: int = 1_000
    ) -> None:
        self.feedback: FeedbackPolicy = feedback or FeedbackPolicy()
        self._size = check_count(size, "size")
        self._symbols_max = check_count(symbols_max, "symbols_max")
        self._rings: OrderedDict[str, deque[Decimal]] = OrderedDict()
        self._averages: dict[str, PnlAverage] = {}

    def record(self, symbol: str, result: MarginReturn | Number) -> PnlAverage:
        """Add the result of one closed position and return the new average.

        Args:
            symbol: which.
            result: return on margin, after costs. For a price move of a position with leverage:
                ``PriceFraction(...).roe(leverage)``; a share of a price itself is refused.

        Raises:
            InvalidInput: no finite number, or in another unit.
        """
        value = to_margin_return(result).value
        name = to_text(symbol, "symbol", SYMBOL_LENGTH_MAX)
        ring = self._rings.setdefault(name, deque(maxlen=self._size))
        self._rings.move_to_end(name)
        ring.append(value)
        if len(self._rings) > self._symbols_max:
            oldest, _ = self._rings.popitem(last=False)
            self._averages.pop(oldest, None)
        mean = MarginReturn(weighted_average((Decimal(1), each) for each in ring) or 0)
        trend = next_trend(self.feedback, self.average(name).trend, mean, len(ring))
        self._averages[name] = PnlAverage(value=mean, count=len(ring), trend=trend)
        return self._averages[name]

    def average(self, symbol: str) -> PnlAverage:
        """The mean over what is kept of *symbol*; 0 over 0 results where there is nothing."""
        return self._averages.get(symbol, _NO_RESULTS)
