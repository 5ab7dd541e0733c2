"""``PartialFillHedger``: hedge what filled, top up late fills, unwind what cannot be hedged."""

from execsafe.core.hedging import Band, FillBands, HedgeLeg, HedgePlan, HedgePolicy, LegExposure
from execsafe.hedging.hedger import HedgeRecovery, PartialFillHedger
from execsafe.hedging.results import (
    Aborted,
    Deduplicated,
    Executed,
    ExposureUnknown,
    HandedOver,
    HedgeResult,
    ResidualExposure,
    SettledResult,
    Unwound,
)

__all__ = [
    "Aborted",
    "Band",
    "Deduplicated",
    "Executed",
    "ExposureUnknown",
    "FillBands",
    "HandedOver",
    "HedgeLeg",
    "HedgePlan",
    "HedgePolicy",
    "HedgeRecovery",
    "HedgeResult",
    "LegExposure",
    "PartialFillHedger",
    "ResidualExposure",
    "SettledResult",
    "Unwound",
]
