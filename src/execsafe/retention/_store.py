"""The map itself: life cycle, access, sweeping."""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import anyio
import attrs
from anyio.lowlevel import checkpoint

from execsafe._mutex import let_go
from execsafe.clock import SystemClock, Ticks
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
        ttl_ms, retain_ms = math.ceil(ttl_s * 1_000), math.ceil(retain_s * 1_000)
        check_retention(ttl_ms, retain_ms)
        self._is_bounded = max_entries is not None
        self._max_entries = max_entries or 0
        self._ticks = Ticks.of(SystemClock() if clock is None else clock)
        self._read = self._ticks.read
        self._ttl = ttl_ms * self._ticks.per_ms
        self._retain = retain_ms * self._ticks.per_ms
        self._sweep_interval_s = sweep_interval_s
        self._on_evict = on_evict
        # Re-entrant: a finaliser that the garbage collector runs in a critical section may come back to us.
        self._mutex = threading.RLock()
        self._acquire, self._release = self._mutex.acquire, self._mutex.release  # see execsafe._mutex
        self._live: dict[K, V] = {}  # every record is in one of the two
        self._ended: dict[K, V] = {}
        self._ends = Ends[K]()
        self._aliases: dict[K, list[Hashable]] = {}
        self._key_of: dict[Hashable, K] = {}
        self._due = NEVER  # tick before which nothing expires; read without the lock

    # --- Life cycle ----------------------------------------------------------------------------------

    def put_live(self, key: K, value: V) -> None:
        """Insert or replace; the record is live (again).

        Raises:
            CapacityExceeded: no room, and nothing that may go. Nothing was changed.
        """
        live, ended, is_done = self._live, self._ended, False
        try:
            self._acquire()
            if not (key in live or key in ended or (self._is_bounded and len(live) + len(ended) >= self._max_entries)):
                live[key] = value
                is_done = True
        except BaseException:
            let_go(self._mutex)
            raise
        self._release()
        if not is_done:
            self._put(key, value, None)

    def put_ended(self, key: K, value: V, now_ms: int | None = None) -> None:
        """Insert or replace a record that has ended; *now_ms* as in :meth:`mark_ended`.

        Raises:
            CapacityExceeded: no room, and nothing that may go. Nothing was changed.
        """
        ended_at = self._read()
        if now_ms is not None:
            ended_at = self._end(now_ms, ended_at)
        live, ended, is_done = self._live, self._ended, False
        try:
            self._acquire()
            if not (key in ended or key in live or (self._is_bounded and len(live) + len(ended) >= self._max_entries)):
                ended[key] = value
                ends, entry = self._ends, (ended_at, key)  # Ends.push(), written out
                tail = ends.tail
                tail += entry
                if len(tail) >= ends.brim and ends.settle():
                    self._due = ended_at + self._ttl
                is_done = True
        except BaseException:
            let_go(self._mutex)
            raise
        self._release()
        if not is_done:
            self._put(key, value, ended_at)

    def mark_ended(self, key: K, now_ms: int | None = None) -> bool:
        """From here on the record ages; False if it is unknown. Of two calls the first one counts.

        Args:
            key: of the record.
            now_ms: when it ended, Unix ms; None: now. Times in the future count as now, and times before the
                latest end known as that (which keeps the record longer, never shorter).
        """
        ended_at = self._read()
        if ended_at >= self._due:
            self._expire(ended_at)
        if now_ms is not None:
            ended_at = self._end(now_ms, ended_at)
        live, is_known = self._live, True
        try:
            self._acquire()
            if key in live:
                self._ended[key] = live[key]
                del live[key]
                if self._ends.push(key, ended_at):
                    self._due = ended_at + self._ttl
            else:
                is_known = key in self._ended
        except BaseException:
            let_go(self._mutex)
            raise
        self._release()
        return is_known

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
            if key not in self._live and key not in self._ended:
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
        now = self._read()
        if now >= self._due:
            self._expire(now)
        value = self._ended.get(key, _MISSING)
        if value is _MISSING:
            value = self._live.get(key, _MISSING)
            if value is _MISSING:
                with self._mutex:  # it may have passed from one to the other between the two looks
                    value = self._ended.get(key, self._live.get(key, default))
        return value

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
            value = self._live.pop(key, _MISSING)
            if value is _MISSING:
                value = self._ended.pop(key, _MISSING)
                if value is _MISSING:
                    return default
                self._ends.void(key)
            self._forget_aliases(key)
            return value

    def items(self) -> list[tuple[K, V]]:
        """Snapshot of all records: the live ones in order of insertion, then the ended ones in order of their end."""
        self._fresh()
        with self._mutex:
            return [*self._live.items(), *self._ended.items()]

    def __contains__(self, key: object) -> bool:
        return self.get(key, _MISSING) is not _MISSING  # type: ignore[arg-type]  # a key of another type is not there

    def __len__(self) -> int:
        self._fresh()
        with self._mutex:
            return self._count()

    def __iter__(self) -> Iterator[K]:
        """Iterate over a snapshot of the keys, in the order of :meth:`items`."""
        self._fresh()
        with self._mutex:
            return iter([*self._live, *self._ended])

    # --- Sweeping ------------------------------------------------------------------------------------

    def sweep(self, now_ms: int | None = None) -> Sweep:
        """Remove all that expired by *now_ms* (Unix ms; None: now). O(removed), in short critical steps."""
        now = self._read() if now_ms is None else self._ticks.at_ms(now_ms)
        return self._sweep_made(sum(self._chunks(now)), now)

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
            now, removed = self._read(), 0
            for count in self._chunks(now):
                removed += count
                await checkpoint()
            swept = self._sweep_made(removed, now)
            _log.info("swept: removed %d, remaining %d, live %d", removed, swept.remaining, swept.live)
            if on_sweep is not None:
                _call_safely("on_sweep", on_sweep, swept)

    # --- Inside --------------------------------------------------------------------------------------

    def _end(self, given_ms: int, now: int) -> int:
        """The end that a caller gave, as tick: not in the future, and not before what a block can hold."""
        return max(-NEVER, min(now, self._ticks.at_ms(given_ms)))

    def _fresh(self) -> int:
        """Remove what is due; the time."""
        now = self._read()
        if now >= self._due:
            self._expire(now)
        return now

    def _expire(self, now: int) -> None:
        for _ in self._chunks(now):
            pass

    def _put(self, key: K, value: V, ended_at: int | None) -> None:
        now = self._fresh()
        with self._mutex:
            was_live, has_ended = key in self._live, key in self._ended
            out: list[K] = []
            if self._is_bounded and not was_live and not has_ended and self._count() >= self._max_entries:
                out = self._make_room(now)
            values = self._remove(out)
            if has_ended:
                self._ends.void(key)
            replaced = self._live.get(key), self._ended.pop(key, None)  # dropped outside of the lock
            if ended_at is None:
                self._live[key] = value
            else:
                self._ended[key] = value
                self._live.pop(key, None)
                if self._ends.push(key, ended_at):
                    self._due = ended_at + self._ttl
        del replaced
        self._tell_evicted(out, values)

    def _count(self) -> int:
        return len(self._live) + len(self._ended)

    def _make_room(self, now: int) -> list[K]:
        keys = self._ends.take(now - self._retain, 1)
        if not keys:
            live, total = len(self._live), self._count()
            raise CapacityExceeded(
                f"all {total} entries are live ({live}) or must still be remembered",
                live=live,
                ended=total - live,
                max_entries=self._max_entries,
            )
        return keys

    def _chunks(self, now: int) -> Iterator[int]:
        """Remove what expired, block by block; yields how much, outside of the lock."""
        while True:
            with self._mutex:
                keys = self._ends.take(now - self._ttl)
                values = self._remove(keys)
                self._due = min(NEVER, self._ends.first() + self._ttl)
            if not keys:
                return
            self._tell_evicted(keys, values)
            yield len(keys)

    def _remove(self, keys: list[K]) -> list[V]:
        """Take the records out; their values are dropped by the caller, outside of the lock."""
        values = list(map(self._ended.pop, keys))
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

    def _sweep_made(self, removed: int, now: int) -> Sweep:
        with self._mutex:
            first = self._ends.first_valid()
            return Sweep(
                removed=removed,
                remaining=self._count(),
                live=len(self._live),
                oldest_age_ms=None if first == NEVER else max(0, (now - first) // self._ticks.per_ms),
            )


def _call_safely(name: str, hook: Callable[..., object], *args: object) -> None:
    try:
        hook(*args)
    except Exception as error:  # noqa: BLE001 - a hook's defect does not stop order flow
        _log.warning("%s failed (%s)", name, type(error).__name__)
