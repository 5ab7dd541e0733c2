"""``PositionOpener`` and ``ProtectionManager``: entries that come with their stop, and stops as an invariant."""

from execsafe.core.opening import EntryPlan, OpeningPolicy, OpeningState
from execsafe.core.protection.record import Protection, ProtectionPolicy, ProtectionState, StopRule
from execsafe.protection.manager import ProtectionManager
from execsafe.protection.opener import Active, EntryFailed, EntryUnknown, OpenOutcome, PositionOpener, RolledBack

__all__ = [
    "Active",
    "EntryFailed",
    "EntryPlan",
    "EntryUnknown",
    "OpenOutcome",
    "OpeningPolicy",
    "OpeningState",
    "PositionOpener",
    "Protection",
    "ProtectionManager",
    "ProtectionPolicy",
    "ProtectionState",
    "RolledBack",
    "StopRule",
]
