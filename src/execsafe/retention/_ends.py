"""In which order records ended."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

K = TypeVar("K", bound="Hashable")

BLOCK: Final = 512
"""Ends per block: a sweep holds the lock for one block, some 50 µs."""
NEVER: Final = 1 << 62
_FIRST: Final = 2  # the tail's length after the first push; each entry takes two places
_FULL: Final = 2 * BLOCK


class _Block(Generic[K]):
    """Ends in order: ``keys[i]`` ended at ``ends[i]``; those before ``start`` were taken out."""

    __slots__ = ("ends", "keys", "start")

    def __init__(self, keys: list[K], ends: list[int]) -> None:
        self.keys = keys
        self.ends = array("q", ends)
        self.start = 0


class Ends(Generic[K]):
    """Queue of keys in order of their end, in ticks of the store's clock; not thread-safe.

    All records live equally long after their end, so this is also the order of expiry: blocks of plain arrays
    (17 bytes an entry) do what a timer wheel would do, exactly to the tick. A key that came back to life leaves
    a *void* entry, always before its valid one, which is skipped when it surfaces; the queue is rebuilt before
    void entries make up half of it.

    Wherever an object is made the garbage collector may run a finaliser that comes back to the store. So an
    entry is added, and the tail replaced, by a single operation on objects that were made before.

    Attributes:
        tail: what was pushed last, as end, key, end, key … It is put in order and packed into a block when that
            is full or something is to be taken from it: a push alone compares and converts nothing.
        brim: length of the tail from which on a push is followed by :meth:`settle`.
    """

    def __init__(self) -> None:
        self.tail: list[Any] = []
        self.brim = _FIRST
        self._blocks: deque[_Block[K]] = deque()
        self._newest = -NEVER  # the latest end in the blocks
        self._void: dict[K, int] = {}
        self._void_count = 0

    def push(self, key: K, ended_at: int) -> bool:
        """Add an end; whether the queue was empty. :meth:`TTLStore.put_ended` has this written out."""
        entry = (ended_at, key)
        tail = self.tail
        tail += entry
        return len(tail) >= self.brim and self.settle()

    def settle(self) -> bool:
        """What a push up to the brim leaves to do; whether the queue was empty before it."""
        if len(self.tail) >= _FULL:
            self._pack()
        was_empty, self.brim = self.brim == _FIRST, _FULL
        return was_empty

    def void(self, key: K) -> None:
        """Forget the entry of *key*."""
        self._void[key] = self._void.get(key, 0) + 1
        self._void_count += 1
        if self._void_count > BLOCK and self._void_count * 2 > (len(self._blocks) + 1) * BLOCK:
            self._rebuild()

    def first(self) -> int:
        """The earliest end, be it void; ``NEVER`` if there is none."""
        if self._blocks:
            return self._blocks[0].ends[self._blocks[0].start]
        return max(self._newest, self.tail[0]) if self.tail else NEVER

    def first_valid(self) -> int:
        """The earliest end that is not void."""
        while self._void and self.first() != NEVER and self._is_void(self._first_key()):
            self._cut(NEVER, 1)
        return self.first()

    def take(self, until: int, count: int = BLOCK) -> list[K]:
        """Take out at most *count* keys that ended at or before *until*; [] only if there is none."""
        while (first := self.first()) != NEVER and first <= until:
            keys = self._cut(until, count)
            if self._void:
                keys = [key for key in keys if not self._is_void(key)]
            if keys:
                return keys
        return []

    def _first_key(self) -> K:
        key: K = self._blocks[0].keys[self._blocks[0].start] if self._blocks else self.tail[1]
        return key

    def _pack(self) -> None:
        """Make the tail a block. An end reported late is filed with the latest: kept longer, never shorter."""
        fresh: list[Any] = []
        tail, self.tail = self.tail, fresh
        ends, keys = tail[::2], tail[1::2]
        if ends[0] < self._newest or ends != sorted(ends):
            ends = list(accumulate(ends, max, initial=self._newest))[1:]
        self._newest = ends[-1]
        self._blocks.append(_Block(keys, ends))

    def _cut(self, until: int, count: int) -> list[K]:
        if not self._blocks:
            self._pack()
        block = self._blocks[0]
        stop = bisect_right(block.ends, until, block.start, min(block.start + count, len(block.keys)))
        start, block.start = block.start, max(block.start, stop)
        if block.start == len(block.keys) and self._blocks and self._blocks[0] is block:
            self._blocks.popleft()
            self._note_emptiness()
        return block.keys[start:stop]

    def _note_emptiness(self) -> None:
        if not self._blocks and not self.tail:
            self.brim = _FIRST  # so that the next push says that it is the first one

    def _is_void(self, key: K) -> bool:
        """Whether the earliest entry of *key* is void; it is taken as seen."""
        void = self._void.get(key)
        if void is None:
            return False
        self._void_count -= 1
        if void == 1:
            del self._void[key]
        else:
            self._void[key] = void - 1
        return True

    def _rebuild(self) -> None:
        if self.tail:
            self._pack()
        blocks, self._blocks = self._blocks, deque()
        self._newest = -NEVER
        for block in blocks:
            for key, end in zip(block.keys[block.start :], block.ends[block.start :], strict=True):
                if not self._is_void(key):
                    self.push(key, end)
        self._note_emptiness()
