"""Loops that look after something: a pass that fails must not be the last one, and is told without flooding the log."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import PurePath
from typing import Final, TypeAlias

import anyio
import attrs
from anyio.lowlevel import RunVar

from execsafe.core.redaction import redact
from execsafe.errors import ExecsafeError

_AGAIN_S: Final = 60.0
_LINES_MAX: Final = 5
_NAMES_MAX: Final = 200
_TEXTS_MAX: Final = 50
_QUIET_S: Final = 600.0

_Key: TypeAlias = tuple[int, str, str]  # the task, the logger, and what it is
_OTHERS: Final[_Key] = (0, "", "")


@attrs.define
class Trouble:
    """What is worth telling of one thing that fails again and again.

    A failure is told at once, the same one again after a minute at the soonest, and once that it works again. Of
    failures that differ, or that come and go, no more than five a minute are told. Times are seconds of the event loop.
    """

    last_s: float = 0.0
    _since_s: float = 0.0
    _times: int = 0
    _told: dict[str, float] = attrs.field(factory=dict)  # since it worked last
    _lines_s: list[float] = attrs.field(factory=list)  # of all that was told

    def failed(self, now_s: float) -> None:
        """Count a failure."""
        if self._times == 0:
            self._since_s = now_s
        self._times += 1
        self.last_s = now_s

    def is_news(self, failure: str, now_s: float) -> bool:
        """Whether to tell it, which is taken for done then."""
        self._lines_s = [at_s for at_s in self._lines_s if _is_recent(at_s, now_s)]
        is_repeated = failure in self._told and _is_recent(self._told[failure], now_s)
        if is_repeated or len(self._lines_s) >= _LINES_MAX:
            return False
        if len(self._told) >= _TEXTS_MAX:  # as many as that all differ: each is news in any case
            self._told.clear()
        self._told[failure] = now_s
        self._lines_s.append(now_s)
        return True

    def so_far(self, now_s: float) -> str:
        """How a line about a failure ends; empty for the first one."""
        return f", {self._length(now_s)} so far" if self._times > 1 else ""

    def ended(self, now_s: float) -> str:
        """It works. How long it did not, if that was told; else empty."""
        if not self._told:
            return ""
        length = self._length(now_s)
        self._times = 0
        self._told.clear()
        return length

    def is_forgotten(self, now_s: float) -> bool:
        """Whether nothing need be remembered of it while it works."""
        return not any(_is_recent(at_s, now_s) for at_s in self._lines_s)

    def _length(self, now_s: float) -> str:
        failures = "1 failure" if self._times == 1 else f"{self._times} failures"
        return f"{failures} in {max(0.0, now_s - self._since_s):.0f} s"


def _is_recent(at_s: float, now_s: float) -> bool:
    return 0 <= now_s - at_s < _AGAIN_S  # another event loop's time may be an earlier one


_troubles: Final = RunVar[dict[_Key, Trouble]]("execsafe_troubles")
"""What fails now, of each loop (which is a task), in this event loop."""


async def survived(step: Callable[[], Awaitable[object]], what: str, *, log: logging.Logger) -> bool:
    """Make one pass; whatever exception ends it is logged, by class and redacted. Whether it came to its end.

    A defect in somebody's adapter is no reason to leave every position without its keeper. Cancellation, and all else
    that is no ``Exception``, passes through. Who calls this in a loop waits between two passes, also after a failure.

    The first failure is told at once, and so is a different one; the same one again once a minute, with a count. When
    *what* works again, that is told, too.
    """
    try:
        await step()
    except Exception as error:  # noqa: BLE001 - whatever a user's adapter, store or listener raises
        _tell(error, what, log)
        return False
    _tell_end(what, log)
    return True


def _tell(error: Exception, what: str, log: logging.Logger) -> None:
    now_s = anyio.current_time()
    trouble = _trouble_with(what, log, now_s)
    trouble.failed(now_s)
    for one in _leaves(error):
        failure = f"{type(one).__name__}: {_text(one)}{_place(one)}"
        if trouble.is_news(failure, now_s):
            level = logging.WARNING if isinstance(one, ExecsafeError) else logging.ERROR
            log.log(level, "%s failed (%s); it comes again%s", what, failure, trouble.so_far(now_s))


def _tell_end(what: str, log: logging.Logger) -> None:
    troubles = _troubles.get({})
    if not troubles:
        return
    key, now_s = _key(what, log), anyio.current_time()
    trouble = troubles.get(key)
    if trouble is None:
        return
    if length := trouble.ended(now_s):
        log.info("%s works again after %s", what, length)
    if trouble.is_forgotten(now_s):
        del troubles[key]


def _trouble_with(what: str, log: logging.Logger, now_s: float) -> Trouble:
    """What is known of it. Names may hold ids, and are without end: beyond a bound they share what is known."""
    try:
        troubles = _troubles.get()
    except LookupError:
        troubles = {}
        _troubles.set(troubles)
    key = _key(what, log)
    if key not in troubles and len(troubles) >= _NAMES_MAX:
        for old in [old for old, trouble in troubles.items() if now_s - trouble.last_s > _QUIET_S]:
            del troubles[old]  # nobody tries it any more
        key = key if len(troubles) < _NAMES_MAX else _OTHERS
    return troubles.setdefault(key, Trouble())


def _key(what: str, log: logging.Logger) -> _Key:
    return anyio.get_current_task().id, log.name, what


def _leaves(error: Exception) -> Iterator[Exception]:
    if not isinstance(error, ExceptionGroup):
        yield error
        return
    for one in error.exceptions:
        yield from _leaves(one)


def _text(error: Exception) -> str:
    return redact(str(error))


def _place(error: Exception) -> str:
    """Where a defect is; what execsafe raises says enough itself."""
    if isinstance(error, ExecsafeError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    return f", at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}"
