"""TTLStore: a bounded map for records with a life cycle.

A record is *live* until it is marked as ended, and expires a fixed time after that. Rules:

1. What is live is never evicted, neither by age nor for room.
2. Age counts from the end, by the store's own clock; never from creation, never from a field of the record.
3. What is expired is gone for every reader at once; memory is returned by sweeps, which time drives.
4. If a bound is set, the oldest ended record makes room for a new one; if none may go, the caller is told.
5. A record's aliases go with it.
"""

from execsafe.retention._events import tell_sweeps
from execsafe.retention._store import Sweep, TTLStore

__all__ = ["Sweep", "TTLStore", "tell_sweeps"]
