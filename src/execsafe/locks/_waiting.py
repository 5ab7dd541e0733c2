"""How a task waits for something that another thread or event loop will do."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import anyio
import attrs
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from collections.abc import Callable


def _running_loop() -> Any:
    """The event loop that runs in this thread: asyncio's loop or trio's token; None outside of both."""
    try:
        return current_token().native_token
    except RuntimeError:
        return None


class Doorbell:
    """One-shot event: made and awaited in one event loop, rung from any thread.

    Rung within its own loop it takes effect at once, which keeps simulated runs deterministic; from anywhere
    else it goes through the loop's thread-safe queue.
    """

    __slots__ = ("_event", "_loop")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._loop = _running_loop()

    def ring(self) -> bool:
        """Wake the waiter. False: its event loop is gone, nobody will wake."""
        loop = self._loop
        try:
            if loop is _running_loop():
                self._event.set()
            else:
                # asyncio's loop and trio's token name the same thing differently.
                post: Callable[[Callable[[], object]], object] = (
                    getattr(loop, "run_sync_soon", None) or loop.call_soon_threadsafe
                )
                post(self._event.set)
        except RuntimeError:  # asyncio: the loop is closed; trio: RunFinishedError
            return False
        return True

    async def wait(self) -> None:
        """Return when it was rung; at once if that was before."""
        await self._event.wait()


class Purpose(enum.Enum):
    """What a waiter came for."""

    WATCH = enum.auto()  # only to see the claim end
    OWN = enum.auto()  # to have the key next
    SHARE = enum.auto()  # for the result; to have the key next if there is none


@attrs.frozen
class Outcome:
    """How a run ended, as its joiners see it: *value*, or *error* with the leader's traceback."""

    value: Any = None
    error: Exception | None = None

    def unwrap(self) -> Any:
        """Return the value or raise the error."""
        if self.error is None:
            return self.value
        # Every joiner raises the same object: without this its traceback would grow with each of them.
        raise self.error.with_traceback(self.error.__traceback__)
