"""Fail-fast claims on keys: exactly one caller runs, the others are told at once, wait, or join.

The lock saves work and money; it is not what keeps orders single. That is the registry's write-ahead
record, and it holds with this lock removed.
"""

from execsafe.locks._claims import Claim, LockStatistics
from execsafe.locks._dedup import DedupLock, Hold, OnBusy
from execsafe.locks._leases import Leases

__all__ = ["Claim", "DedupLock", "Hold", "Leases", "LockStatistics", "OnBusy"]
