"""The map itself: life cycle, access, sweeping."""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import anyio
import attrs
from anyio.lowlevel import checkpoint

from execsafe.clock import SystemClock
from execsafe.core.retention import check_retention
from execsafe.errors import CapacityExceeded, InvalidInput
from execsafe.model.values import check_count, check_seconds, shorten
from execsafe.retention._ends import NEVER, Ends

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from anyio.abc import TaskStatus

    from execsafe.ports import Clock

_log = logging.getLogger(__name__)
K = TypeVar("K", bound="Hashable")
V = TypeVar("V")
D = TypeVar("D")

_MISSING: Final[Any] = object()


@attrs.frozen(kw_only=True)
class Sweep:
    """What one sweep did; also made when it removed nothing, so that silence means that no sweep ran.

    Attributes:
        removed: records removed by it.
        remaining: records left, live ones included.
        live: live ones among these.
        oldest_age_ms: time since the end of the oldest ended record left; None if there is none. It stays
            below the time to live plus the sweep interval while sweeps run.
    """

    removed: int
    remaining: int
    live: int
    oldest_age_ms: int | None


class TTLStore(Generic[K, V]):
    """Bounded, thread-safe map whose ended records expire; live ones stay.

    >>> orders = TTLStore[str, str](max_entries=10_000)
    >>> orders.put_live("a1", "sent")
    >>> orders.mark_ended("a1")  # from now on 7200 s are left to it
    True

    Access costs O(1) amortised: whoever comes first after something expired removes it. :meth:`run_sweeper`
    does so without any traffic; memory of an expired record is returned within the sweep interval.

    Args:
        ttl_s: life after the end, seconds. The default of two hours outlives every late fill and replay seen.
        max_entries: bound on all records, live ones included; None: unbounded.
        retain_s: an ended record younger than this does not make room for others either: what it must not
            forget, e.g. :func:`~execsafe.core.retention.dedup_retention_ms`, as seconds. 0: age is no excuse.
        clock: source of all ages.
        sweep_interval_s: pause between two sweeps of :meth:`run_sweeper`, seconds.
        on_evict: called with key and value of a record that expired or made room (not of one that was popped
            or replaced), in the thread and call that noticed, outside of the lock.

    Raises:
        InvalidInput: a time is not positive, *max_entries* below 1, or ``ttl_s < retain_s``.
    """

    def __init__(
        self,
        *,
        ttl_s: float = 7_200.0,
        max_entries: int | None,
        retain_s: float = 0.0,
        clock: Clock | None = None,
        sweep_interval_s: float = 3_600.0,
        on_evict: Callable[[K, V], object] | None = None,
    ) -> None:
        check_seconds(ttl_s, "ttl_s")
        check_seconds(sweep_interval_s, "sweep_interval_s")
        check_seconds(retain_s, "retain_s", least=0)
        if max_entries is not None:
            check_count(max_entries, "max_entries")
        self._ttl_ms = math.ceil(ttl_s * 1_000)
        self._retain_ms = math.ceil(retain_s * 1_000)
        check_retention(self._ttl_ms, self._retain_ms)
        self._max_entries = NEVER if max_entries is None else max_entries
        self._now_ms = (SystemClock() if clock is None else clock).now_ms
        self._sweep_interval_s = sweep_interval_s
        self._on_evict = on_evict
        # Re-entrant: a value's finaliser may come back to us while we drop it.
        self._mutex = threading.RLock()
        self._values: dict[K, V] = {}
        self._live: set[K] = set()
        self._ends = Ends[K]()
        self._aliases: dict[K, list[Hashable]] = {}
        self._key_of: dict[Hashable, K] = {}
        self._due_ms = NEVER  # nothing expires before; read without the lock

    # --- Life cycle ----------------------------------------------------------------------------------

    def put_live(self, key: K, value: V) -> None:
        """Insert or replace; the record is live (again).

        Raises:
            CapacityExceeded: no room, and nothing that may go. Nothing was changed.
        """
        with self._mutex:
            if key not in self._values and len(self._values) < self._max_entries:  # the usual case, quickly
                self._values[key] = value
                self._live.add(key)
                return
        self._put(key, value, None)

    def put_ended(self, key: K, value: V, now_ms: int | None = None) -> None:
        """Insert or replace a record that has ended; *now_ms* as in :meth:`mark_ended`.

        Raises:
            CapacityExceeded: no room, and nothing that may go. Nothing was changed.
        """
        ended_at_ms = self._now_ms() if now_ms is None else min(now_ms, self._now_ms())
        with self._mutex:
            if key not in self._values and len(self._values) < self._max_entries:
                self._values[key] = value
                self._ends.push(key, ended_at_ms)
                if self._due_ms == NEVER:
                    self._due_ms = self._ends.first() + self._ttl_ms
                return
        self._put(key, value, ended_at_ms)

    def mark_ended(self, key: K, now_ms: int | None = None) -> bool:
        """From here on the record ages; False if it is unknown. Of two calls the first one counts.

        Args:
            key: of the record.
            now_ms: when it ended, Unix ms; None: now. Times in the future count as now, and times before the
                latest end known as that (which keeps the record longer, never shorter).
        """
        clock_ms = self._fresh()
        with self._mutex:
            if key not in self._live:
                return key in self._values
            self._live.remove(key)
            self._file(key, clock_ms if now_ms is None else min(now_ms, clock_ms))
            return True

    def is_live(self, key: K) -> bool:
        """Whether the record is there and has not ended."""
        return key in self._live

    def add_alias(self, key: K, alias: Hashable) -> bool:
        """Make the record findable by *alias* too, for as long as it exists; False if it is unknown.

        Raises:
            InvalidInput: the alias belongs to another record.
        """
        self._fresh()
        with self._mutex:
            if key not in self._values:
                return False
            owner = self._key_of.setdefault(alias, key)
            if owner != key:
                raise InvalidInput(f"the alias {shorten(alias)} belongs to another record")
            aliases = self._aliases.setdefault(key, [])
            if alias not in aliases:
                aliases.append(alias)
            return True

    # --- Access --------------------------------------------------------------------------------------

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: K, default: object = None) -> object:
        """The record's value."""
        self._fresh()
        return self._values.get(key, default)

    def key_of(self, alias: Hashable) -> K | None:
        """The key of the record with that alias."""
        self._fresh()
        return self._key_of.get(alias)

    @overload
    def pop(self, key: K) -> V | None: ...
    @overload
    def pop(self, key: K, default: D) -> V | D: ...
    def pop(self, key: K, default: object = None) -> object:
        """Remove the record, live or not, and return its value."""
        self._fresh()
        with self._mutex:
            value = self._values.pop(key, _MISSING)
            if value is _MISSING:
                return default
            self._forget_aliases(key)
            if key in self._live:
                self._live.remove(key)
            else:
                self._ends.void(key)
            return value

    def items(self) -> list[tuple[K, V]]:
        """Snapshot of all records, oldest insertion first."""
        self._fresh()
        with self._mutex:
            return list(self._values.items())

    def __contains__(self, key: object) -> bool:
        self._fresh()
        return key in self._values

    def __len__(self) -> int:
        self._fresh()
        return len(self._values)

    def __iter__(self) -> Iterator[K]:
        """Iterate over a snapshot of the keys."""
        self._fresh()
        with self._mutex:
            return iter(list(self._values))

    # --- Sweeping ------------------------------------------------------------------------------------

    def sweep(self, now_ms: int | None = None) -> Sweep:
        """Remove all that expired by *now_ms* (Unix ms; None: now). O(removed), in short critical steps."""
        now_ms = self._now_ms() if now_ms is None else now_ms
        return self._sweep_made(sum(self._chunks(now_ms)), now_ms)

    async def run_sweeper(
        self,
        *,
        on_sweep: Callable[[Sweep], object] | None = None,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Sweep every ``sweep_interval_s`` until cancelled; run it in a task group.

        Every sweep is logged and given to *on_sweep*, also if it removed nothing. Other tasks run in between.
        """
        task_status.started()
        while True:
            await anyio.sleep(self._sweep_interval_s)
            now_ms, removed = self._now_ms(), 0
            for count in self._chunks(now_ms):
                removed += count
                await checkpoint()
            swept = self._sweep_made(removed, now_ms)
            _log.info("swept: removed %d, remaining %d, live %d", removed, swept.remaining, swept.live)
            if on_sweep is not None:
                _call_safely("on_sweep", on_sweep, swept)

    # --- Inside --------------------------------------------------------------------------------------

    def _fresh(self) -> int:
        """Remove what is due; the time."""
        now_ms = self._now_ms()
        if now_ms >= self._due_ms:
            for _ in self._chunks(now_ms):
                pass
        return now_ms

    def _put(self, key: K, value: V, ended_at_ms: int | None) -> None:
        clock_ms = self._fresh()
        with self._mutex:
            is_new = key not in self._values
            out: list[K] = []
            if is_new and len(self._values) >= self._max_entries:
                out = self._make_room(clock_ms)
            values = self._remove(out)
            if not is_new and key not in self._live:
                self._ends.void(key)
            self._values[key] = value
            if ended_at_ms is None:
                self._live.add(key)
            else:
                self._live.discard(key)
                self._file(key, ended_at_ms)
        self._tell_evicted(out, values)

    def _file(self, key: K, ended_at_ms: int) -> None:
        self._ends.push(key, ended_at_ms)
        if self._due_ms == NEVER:
            self._due_ms = self._ends.first() + self._ttl_ms

    def _make_room(self, now_ms: int) -> list[K]:
        keys = self._ends.take(now_ms - self._retain_ms, 1)
        if not keys:
            live, total = len(self._live), len(self._values)
            raise CapacityExceeded(
                f"all {total} entries are live ({live}) or must still be remembered",
                live=live,
                ended=total - live,
                max_entries=self._max_entries,
            )
        return keys

    def _chunks(self, now_ms: int) -> Iterator[int]:
        """Remove what expired, block by block; yields how much, outside of the lock."""
        while True:
            with self._mutex:
                keys = self._ends.take(now_ms - self._ttl_ms)
                values = self._remove(keys)
                self._due_ms = min(NEVER, self._ends.first() + self._ttl_ms)
            if not keys:
                return
            self._tell_evicted(keys, values)
            yield len(keys)

    def _remove(self, keys: list[K]) -> list[V]:
        """Take the records out; their values are dropped by the caller, outside of the lock."""
        values = list(map(self._values.pop, keys))
        if self._aliases:
            for key in keys:
                self._forget_aliases(key)
        return values

    def _forget_aliases(self, key: K) -> None:
        for alias in self._aliases.pop(key, ()):
            del self._key_of[alias]

    def _tell_evicted(self, keys: list[K], values: list[V]) -> None:
        if self._on_evict is not None:
            for key, value in zip(keys, values, strict=True):
                _call_safely("on_evict", self._on_evict, key, value)

    def _sweep_made(self, removed: int, now_ms: int) -> Sweep:
        with self._mutex:
            first = self._ends.first_valid()
            return Sweep(
                removed=removed,
                remaining=len(self._values),
                live=len(self._live),
                oldest_age_ms=None if first == NEVER else max(0, now_ms - first),
            )


def _call_safely(name: str, hook: Callable[..., object], *args: object) -> None:
    try:
        hook(*args)
    except Exception as error:  # noqa: BLE001 - a hook's defect does not stop order flow
        _log.warning("%s failed (%s)", name, type(error).__name__)
