"""``ExitManager``: exits with dedup, priorities, price ladder, sellable amount, breaker and stuck-position alarm."""

from execsafe.core.exits import ExitPolicy, ExitReason, ExitRecord, ExitState, Hold, limit_from_slippage
from execsafe.exits.faces import ApprovalGate, DenyMarket, MarketRequest, MismatchHandler, PositionMismatch
from execsafe.exits.manager import ExitManager
from execsafe.exits.results import (
    Deduplicated,
    Dust,
    Exited,
    ExitResult,
    Flat,
    Held,
    Mismatch,
    PartiallyExited,
    Stuck,
    UnknownExit,
)
from execsafe.exits.stats import ExitStats, OpenExit, RejectCount

__all__ = [
    "ApprovalGate",
    "Deduplicated",
    "DenyMarket",
    "Dust",
    "ExitManager",
    "ExitPolicy",
    "ExitReason",
    "ExitRecord",
    "ExitResult",
    "ExitState",
    "ExitStats",
    "Exited",
    "Flat",
    "Held",
    "Hold",
    "MarketRequest",
    "Mismatch",
    "MismatchHandler",
    "OpenExit",
    "PartiallyExited",
    "PositionMismatch",
    "RejectCount",
    "Stuck",
    "UnknownExit",
    "limit_from_slippage",
]
