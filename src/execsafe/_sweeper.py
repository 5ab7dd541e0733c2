"""Forgets what ended longer ago than the retention, now and then, for who has no loop of their own for it."""

from __future__ import annotations

import logging
from typing import Final

from execsafe.errors import ExecsafeError
from execsafe.intents import IntentRegistry

_log = logging.getLogger("execsafe.wrap")
_EVERY_MS: Final = 3_600_000
_AGAIN_MS: Final = 60_000  # after a sweep that found something: it takes out so many at a time, and may not be through


class Sweeper:
    """Purges a registry's store at most once an hour, in steps that no order waits long for."""

    def __init__(self, registry: IntentRegistry) -> None:
        self._registry = registry
        self._due_ms = registry.clock.now_ms() + _EVERY_MS

    def is_due(self) -> bool:
        """Whether it is time again; also after a clock was set back by more than that time."""
        return not 0 < self._due_ms - self._registry.clock.now_ms() <= _EVERY_MS

    async def sweep(self) -> None:
        """Take out one step's worth. A store that fails is not the order's trouble: it is logged."""
        self._due_ms = self._registry.clock.now_ms() + _EVERY_MS
        try:
            if await self._registry.purge() > 0:
                self._due_ms = self._registry.clock.now_ms() + _AGAIN_MS
        except ExecsafeError as error:
            _log.warning("ended records could not be purged (%s)", type(error).__name__)
