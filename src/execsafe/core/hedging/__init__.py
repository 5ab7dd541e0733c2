"""Decisions about trades of several legs: how much to hedge, what to top up, when to give up and unwind."""

from execsafe.core.hedging.checks import check_plan
from execsafe.core.hedging.decide import decide
from execsafe.core.hedging.moves import Cancel, End, Learn, Move, Pause, Submit, Turn, Verify, Watch
from execsafe.core.hedging.quantities import exact_decimal, hedge_target, residual_of, wanted
from execsafe.core.hedging.retries import is_due, put_off
from execsafe.core.hedging.values import (
    Band,
    FillBands,
    HedgeLeg,
    HedgePlan,
    HedgePolicy,
    HedgeRecord,
    HedgeStage,
    LegExposure,
    LegTotals,
    PairRecord,
    Verdict,
)
from execsafe.core.hedging.views import (
    LegView,
    Reading,
    TurnedAway,
    exposures,
    turned_away_again,
    was_turned_away,
)

__all__ = [
    "Band",
    "Cancel",
    "End",
    "FillBands",
    "HedgeLeg",
    "HedgePlan",
    "HedgePolicy",
    "HedgeRecord",
    "HedgeStage",
    "Learn",
    "LegExposure",
    "LegTotals",
    "LegView",
    "Move",
    "PairRecord",
    "Pause",
    "Reading",
    "Submit",
    "Turn",
    "TurnedAway",
    "Verdict",
    "Verify",
    "Watch",
    "check_plan",
    "decide",
    "exact_decimal",
    "exposures",
    "hedge_target",
    "is_due",
    "put_off",
    "residual_of",
    "turned_away_again",
    "wanted",
    "was_turned_away",
]
