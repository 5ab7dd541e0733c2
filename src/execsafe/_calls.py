"""One call to a venue: within its own time-out, and ended by a cancellation of ours only."""

from __future__ import annotations

import asyncio
import functools
from types import TracebackType

import anyio


class CallAborted(Exception):
    """The client gave the call up by itself: what became of it is unknown."""


class within:  # noqa: N801 - reads as what it does: `with within(10.0): …`
    """``with within(timeout_s):`` ends the call inside after so many seconds, as ``anyio.move_on_after`` does.

    A client may raise ``CancelledError`` although nobody has cancelled its caller: ccxt does when a request that
    several callers share is cancelled by one of them. Such an error would pass through every ``except Exception`` and
    end the task without a word, so here it becomes :class:`CallAborted`.
    """

    __slots__ = ("_scope",)

    def __init__(self, timeout_s: float) -> None:
        self._scope = _new_scope(timeout_s)

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        is_foreign = isinstance(error, asyncio.CancelledError) and not _is_cancelled()
        swallowed = self._scope.__exit__(*((None,) * 3 if is_foreign else (kind, error, trace)))
        if is_foreign:
            raise CallAborted("the client gave the call up, and nobody had asked it to") from error
        return swallowed


def _new_scope(timeout_s: float) -> anyio.CancelScope:
    """``anyio.move_on_after(timeout_s)``, at half its price on asyncio.

    It would find out anew for every call, and three times, which library runs the event loop, and initialise the scope
    twice. What it makes on asyncio is always of one type, so that type is asked for once.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no asyncio here
        task = None
    if task is None:
        return anyio.move_on_after(timeout_s)
    return _asyncio_scope()(deadline=task.get_loop().time() + timeout_s)


@functools.cache
def _asyncio_scope() -> type[anyio.CancelScope]:
    return type(anyio.CancelScope())


def _is_cancelled() -> bool:
    """Whether somebody has cancelled the running asyncio task, which is where that error comes from."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
