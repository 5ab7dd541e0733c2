"""Loops that look after something: a pass that fails must not be the last one."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import PurePath

from execsafe.core.redaction import redact
from execsafe.errors import ExecsafeError


async def survived(step: Callable[[], Awaitable[object]], what: str, *, log: logging.Logger) -> bool:
    """Make one pass; whatever exception ends it is logged, by class and redacted. Whether it came to its end.

    A defect in somebody's adapter is no reason to leave every position without its keeper. Cancellation, and all else
    that is no ``Exception``, passes through. Who calls this in a loop waits between two passes, also after a failure.
    """
    try:
        await step()
    except Exception as error:  # noqa: BLE001 - whatever a user's adapter, store or listener raises
        for one in _leaves(error):
            level = logging.WARNING if isinstance(one, ExecsafeError) else logging.ERROR
            log.log(level, "%s failed (%s: %s%s); it comes again", what, type(one).__name__, _text(one), _place(one))
        return False
    return True


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
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ExecsafeError) or not frames:
        return ""
    return f", at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}"
