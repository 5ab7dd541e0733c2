"""What the engine of a store is asked to do, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from execsafe.errors import ExecsafeError, StoreUnavailable
from execsafe.ports import Batch


@attrs.define(eq=False)
class Job:
    """One piece of work, and then its result, or an error to be raised by whoever asked."""

    is_write: bool = attrs.field(init=False)
    result: Any = attrs.field(default=None, init=False)
    error: Exception | None = attrs.field(default=None, init=False)
    # Who waits for it, where somebody does; see _writer.
    host: Any = attrs.field(default=None, init=False)
    waiter: Any = attrs.field(default=None, init=False)

    def unwrap(self) -> Any:
        """The result.

        Raises:
            ExecsafeError: the work's own error, or the store's.
        """
        if self.error is not None:
            raise self.error
        return self.result


@attrs.define(eq=False)
class Commit(Job):
    """A batch to be written, and its values as rows; those that come one after another are written together."""

    is_write: bool = attrs.field(default=True, init=False)
    batch: Batch
    records: Sequence[tuple[Any, ...]]  # see _group
    events: Sequence[tuple[int, int, bytes]]


@attrs.define(eq=False)
class Work(Job):
    """Anything else; its argument is the engine's connection."""

    work: Callable[[Any], Any]
    is_write: bool = attrs.field(kw_only=True)


def closed() -> StoreUnavailable:
    """The error of a store that is not open."""
    return StoreUnavailable("the store is not open: call open() or use 'async with'")


def forked() -> StoreUnavailable:
    """The error of a store that was carried into a child process."""
    return StoreUnavailable("the store was opened before this process was forked: open one of its own here")


def run_each(jobs: Sequence[Any], connection: Any) -> None:
    """Run jobs one by one; what concerns only itself stays with it, what concerns the store goes up."""
    for job in jobs:
        job.result = job.error = None
        try:
            job.result = job.work(connection)
        except ExecsafeError as error:
            job.error = error
