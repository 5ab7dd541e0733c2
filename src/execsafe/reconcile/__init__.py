"""``Reconciler``: venue, book and journal are compared at the start and ever after; entries wait for it."""

from execsafe.core.findings import Finding, Kind, ReconcilePolicy, Source, Verified, Vote
from execsafe.core.reconcile import Reconciliation
from execsafe.reconcile._barrier import EntryBarrier
from execsafe.reconcile.reconciler import Reconciler, StopKeeper

__all__ = [
    "EntryBarrier",
    "Finding",
    "Kind",
    "ReconcilePolicy",
    "Reconciler",
    "Reconciliation",
    "Source",
    "StopKeeper",
    "Verified",
    "Vote",
]
