"""A bot whose store fails half way through a durable write is begun anew, with everything read again."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Protocol, TypeVar

import anyio

import execsafe
from execsafe.core.backoff import Backoff

T = TypeVar("T")

_log = logging.getLogger("execsafe.bot")
_PAUSES: Final = Backoff(base_s=1.0, cap_s=30.0, jitter=0.0, max_attempts=None)
_LONG_S: Final = 60.0  # a run that lasted longer was well
# What may pass while the machine comes to itself again. A store that is damaged, or another desk's, does not.
_PASSING: Final = (
    execsafe.StorePoisoned,
    execsafe.StoreUnavailable,
    execsafe.StoreFull,
    execsafe.StoreReadOnly,
    execsafe.VenueUnavailable,
)


class Stoppable(Protocol):
    """What a signal ends."""

    def request_stop(self) -> None:
        """End in good order."""
        ...


class Stop:
    """A wish to stop, whichever run it finds, or none."""

    def __init__(self) -> None:
        self._run: Stoppable | None = None
        self._asked: anyio.Event = anyio.Event()

    @property
    def is_asked(self) -> bool:
        """Whether it was said."""
        return self._asked.is_set()

    def request_stop(self) -> None:
        """Stop the present run, and begin no other."""
        self._asked.set()
        if self._run is not None:
            self._run.request_stop()

    def follow(self, run: Stoppable) -> None:
        """From now on *run* is the one that is to be stopped."""
        self._run = run
        if self.is_asked:
            run.request_stop()

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until somebody wants to stop."""
        with anyio.move_on_after(seconds):
            await self._asked.wait()


class Again(Generic[T]):
    """Runs something, and runs it again when its store fails half way through a durable write.

    After that nobody knows what is on disk before the store is opened again, and nothing that was read of it before
    counts. What cannot be opened yet is tried again, until somebody wants to stop.

    Args:
        run: makes everything and runs it; told whether it is the first time.
        stop: ends the tries.
        failed: told of each failure after which there is another try.
    """

    def __init__(
        self,
        run: Callable[[bool], Awaitable[T]],
        stop: Stop,
        *,
        failed: Callable[[execsafe.ExecsafeError], object] = lambda _: None,
    ) -> None:
        self._run = run
        self._stop = stop
        self._failed = failed
        self._has_begun = False
        self._begun_s: float | None = None  # of the present run
        self._tries = 0

    async def note_begun(self) -> None:
        """To be called once a run looks after things: a first start that fails before that is not tried again."""
        self._has_begun = True
        self._begun_s = anyio.current_time()

    async def until_it_ends(self) -> T:
        """What the last run came to.

        Raises:
            ExecsafeError: it could not be started, or it was to be stopped and could not be opened for that.
        """
        while True:
            self._begun_s = None
            try:
                return await self._run(not self._has_begun)
            except Exception as error:
                passing = _passing(error)
                if passing is None or not self._has_begun or self._stop.is_asked:
                    raise
                await self._pause(passing)
                if self._stop.is_asked:
                    raise

    async def _pause(self, error: execsafe.ExecsafeError) -> None:
        was_well = self._begun_s is not None and anyio.current_time() - self._begun_s > _LONG_S
        self._tries = 1 if was_well else self._tries + 1
        seconds = _PAUSES.envelope_ms(self._tries) / 1_000
        _log.critical(
            "nothing is looked after: %s (%s); everything is read again in %g s", error, type(error).__name__, seconds
        )
        self._failed(error)
        await self._stop.pause(seconds)


def _passing(error: Exception) -> execsafe.ExecsafeError | None:
    """The error, or the first of a group of such, if it is one that may pass; else None."""
    if not isinstance(error, ExceptionGroup):
        return error if isinstance(error, _PASSING) else None
    found = [_passing(one) for one in error.exceptions]
    return None if None in found else found[0]
