"""``PositionOpener`` and ``ProtectionManager``: entries that come with their stop, and stops as an invariant."""

from execsafe.core.opening import EntryPlan, OpeningPolicy, OpeningState
from execsafe.core.protection.record import Protection, ProtectionPolicy, ProtectionState, StopRule
from execsafe.protection._outcomes import Active, EntryDust, EntryFailed, EntryUnknown, OpenOutcome, RolledBack
from execsafe.protection.manager import ProtectionManager
from execsafe.protection.opener import PositionOpener

__all__ = [
    "Active",
    "EntryDust",
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
