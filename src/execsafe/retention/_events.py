"""Sweeps as events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from execsafe.buses.telling import tell
from execsafe.model.event import Event, EventType
from execsafe.model.values import Params
from execsafe.retention._store import Sweep

if TYPE_CHECKING:
    from execsafe.ports import Clock, Listener


def tell_sweeps(name: str, listeners: Sequence[Listener], *, clock: Clock) -> Callable[[Sweep], None]:
    """An ``on_sweep`` for :meth:`TTLStore.run_sweeper` that tells listeners of every sweep as ``store_swept``.

    Also of one that removed nothing: otherwise silence could mean that nothing was due, or that no sweep runs.

    Args:
        name: which store; the subject of the events.
        listeners: told of them. One that raises is logged and ignored.
        clock: source of Unix milliseconds.
    """

    def on_sweep(sweep: Sweep) -> None:
        details = {
            "removed": sweep.removed,
            "remaining": sweep.remaining,
            "live": sweep.live,
            "oldest_age_ms": sweep.oldest_age_ms,
        }
        kind = EventType.STORE_SWEPT
        tell(listeners, Event(type=kind, at_ms=clock.now_ms(), subject=name, details=Params.of(details)))

    return on_sweep
