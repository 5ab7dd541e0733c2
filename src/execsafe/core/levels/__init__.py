"""Targets and stop as shares of the entry price, from leverage and volatility.

    LSF    = 1 / (1 + ln(L + 1))
    tp_i   = base_tp · (a_i + LSF / d_i) · adjustment · (1 + k · funding)      a = 0.6, 1.2, 1.8   d = 1, 2, 4
    sl_raw = base_sl · (1 + 0.8 · (1 − LSF)) · (1 + 0.2 · volatility + 0.4 · divergence) · adjustment
    liq    = (1/L − m) / (1 − m) for a long, (1/L − m) / (1 + m) for a short   (isolated, linear)
    sl     = clamp(sl_raw, sl_min, min(sl_max, κ · (liq − fee − slippage)))

Rules:

1. All shares are fractions of the price, as types; what enters without its unit is refused.
2. Adjusting comes before clamping, and clamping is last: a bound is a bound.
3. tp1 < tp2 < tp3. Where tp1 would be below its floor the whole ladder is lifted, not one rung.
4. The stop is always nearer than liquidation. Where that leaves no room for a stop, there are no levels.
5. Same inputs, same levels: nothing is remembered between two calls.

LSF is the leverage sensitivity factor: 0.59 at 1x, falling. Higher leverage brings the targets nearer, and the stop
*farther away*, until the liquidation bound takes over.
"""

from execsafe.core.levels._formulas import compute_levels, leverage_factor, liquidation_distance
from execsafe.core.levels._policy import HARVEST_TIERS, HarvestTier, LevelsInput, LevelsPolicy, to_position_side
from execsafe.core.levels._results import Degraded, DegradedReason, LevelPrices, Levels, LevelsWarning, StopBound

__all__ = [
    "HARVEST_TIERS",
    "Degraded",
    "DegradedReason",
    "HarvestTier",
    "LevelPrices",
    "Levels",
    "LevelsInput",
    "LevelsPolicy",
    "LevelsWarning",
    "StopBound",
    "compute_levels",
    "leverage_factor",
    "liquidation_distance",
    "to_position_side",
]
