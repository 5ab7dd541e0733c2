"""Telling listeners, without their defects reaching order flow."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from execsafe.model.event import Event
from execsafe.ports import Listener

_log = logging.getLogger("execsafe.events")


def tell(listeners: Sequence[Listener], *events: Event) -> None:
    """Tell every listener of every event; one that raises is logged and ignored."""
    for listener in listeners:
        for event in events:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - whatever a listener raises
                _log.exception("a listener failed on %s", event.type.value)
