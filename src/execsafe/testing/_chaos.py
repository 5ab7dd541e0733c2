"""What goes wrong in the hosts and in the store of a simulated run, besides what the venue's fault plan does."""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Collection
from typing import Final


class HostFault(enum.StrEnum):
    """What happens to a process. Each may strike before and after every call into a store or a venue."""

    KILL = "kill"  # it does nothing more; requests on the wire go on
    PAUSE = "pause"  # frozen for a while, often longer than its leases (a stopped process, a paused machine)
    CANCEL = "cancel"  # the call at hand is cancelled
    CLOCK_STEP = "clock_step"  # a restarted process has another clock, within the declared skew


class StoreFault(enum.StrEnum):
    """What happens to a call into the store."""

    STORE_REFUSES = "store_refuses"  # an error, nothing written
    COMMIT_UNKNOWN = "commit_unknown"  # an error although written
    SLOW_REPLY = "slow_reply"  # written at once, told late, often after the caller's time-out
    LATE_COMMIT = "late_commit"  # written late, often after the caller's time-out
    STORE_UNREADABLE = "store_unreadable"  # a read fails
    STORE_OUTAGE = "store_outage"  # everything fails for a while


KINDS: Final = frozenset({*HostFault, *StoreFault})
"""All of them."""

_ENABLED_RATE: Final = 0.35
_WRITES: Final = (
    StoreFault.STORE_REFUSES,
    StoreFault.COMMIT_UNKNOWN,
    StoreFault.SLOW_REPLY,
    StoreFault.LATE_COMMIT,
    StoreFault.STORE_OUTAGE,
)
_READS: Final = (StoreFault.STORE_UNREADABLE, StoreFault.STORE_OUTAGE)


class ChaosPlan:
    """Decides when a process or the store fails.

    Args:
        seed: same seed and same course of events, same faults.
        enabled: what may happen; None: a random third of everything ("swarm testing").

    Attributes:
        fired: how often each has happened.
    """

    def __init__(self, seed: int, enabled: Collection[str] | None = None) -> None:
        self.random = random.Random(f"{seed}/chaos")
        drawn = [kind for kind in sorted(KINDS) if self.random.random() < _ENABLED_RATE]
        self._enabled = frozenset(drawn) if enabled is None else frozenset(enabled) & KINDS
        self._host_rate = self.random.choice((0.005, 0.02, 0.05))
        self._store_rate = self.random.choice((0.02, 0.05, 0.1))
        self._outage_ends_ms = 0
        self._stopped = False
        self.fired: Counter[str] = Counter()

    def allows(self, kind: str) -> bool:
        """Whether *kind* may happen in this run, now."""
        return kind in self._enabled and not self._stopped

    def stop(self) -> None:
        """Nothing happens any more, and the store works."""
        self._stopped = True
        self._outage_ends_ms = 0

    def host(self) -> HostFault | None:
        """What strikes at one boundary; a clock only steps when a process starts."""
        if self._stopped or self.random.random() >= self._host_rate:
            return None
        kinds = (HostFault.KILL, HostFault.PAUSE, HostFault.CANCEL)
        kind = kinds[self.random.randrange(len(kinds))]
        return kind if kind in self._enabled else None

    def store(self, now_ms: int, *, is_write: bool) -> StoreFault | None:
        """What strikes one call into the store."""
        if self._stopped:
            return None
        if now_ms < self._outage_ends_ms:
            return StoreFault.STORE_OUTAGE
        if self.random.random() >= self._store_rate:
            return None
        kinds = _WRITES if is_write else _READS
        kind = kinds[self.random.randrange(len(kinds))]
        if kind not in self._enabled:
            return None
        if kind is StoreFault.STORE_OUTAGE:
            self._outage_ends_ms = now_ms + self.random.randint(500, 20_000)
        self.fired[kind] += 1
        return kind
