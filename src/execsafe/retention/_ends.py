"""In which order records ended."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

K = TypeVar("K", bound="Hashable")

BLOCK: Final = 512
"""Ends per block: a sweep holds the lock for one block, some 50 µs."""
NEVER: Final = 1 << 62


class _Block(Generic[K]):
    """Ends in order: ``keys[i]`` ended at ``ends[i]``; those before ``start`` were taken out."""

    __slots__ = ("ends", "keys", "start")

    def __init__(self) -> None:
        self.keys: list[K] = []
        self.ends = array("q")
        self.start = 0


class Ends(Generic[K]):
    """Queue of keys in order of their end; not thread-safe.

    All records live equally long after their end, so this is also the order of expiry: blocks of plain arrays
    (17 bytes an entry) do what a timer wheel would do, exactly to the millisecond. A key that came back to
    life leaves a *void* entry, always before its valid one, which is skipped when it surfaces; the queue is
    rebuilt before void entries make up half of it.
    """

    def __init__(self) -> None:
        self._blocks: deque[_Block[K]] = deque()
        self._newest = -NEVER
        self._void: dict[K, int] = {}
        self._void_count = 0

    def push(self, key: K, ended_at_ms: int) -> None:
        newest = self._newest
        if ended_at_ms > newest:
            newest = self._newest = ended_at_ms
        blocks = self._blocks
        if not blocks or len(blocks[-1].keys) >= BLOCK:
            blocks.append(_Block())
        block = blocks[-1]
        block.keys.append(key)
        block.ends.append(newest)  # an end reported late is filed with the newest: kept longer, never shorter

    def void(self, key: K) -> None:
        """Forget the entry of *key*."""
        self._void[key] = self._void.get(key, 0) + 1
        self._void_count += 1
        if self._void_count > BLOCK and self._void_count * 2 > len(self._blocks) * BLOCK:
            self._rebuild()

    def first(self) -> int:
        """The earliest end, be it void; far in the future if there is none."""
        if not self._blocks:
            return NEVER
        block = self._blocks[0]
        return block.ends[block.start]

    def first_valid(self) -> int:
        """The earliest end that is not void."""
        while self._void and self._blocks and self._is_void(self._blocks[0].keys[self._blocks[0].start]):
            self._cut(NEVER, 1)
        return self.first()

    def take(self, until_ms: int, count: int = BLOCK) -> list[K]:
        """Take out at most *count* keys that ended at or before *until_ms*; [] only if there is none."""
        while self.first() <= until_ms:
            keys = self._cut(until_ms, count)
            if self._void:
                keys = [key for key in keys if not self._is_void(key)]
            if keys:
                return keys
        return []

    def _cut(self, until_ms: int, count: int) -> list[K]:
        block = self._blocks[0]
        stop = min(block.start + count, len(block.keys))
        stop = bisect_right(block.ends, until_ms, block.start, stop)
        keys = block.keys[block.start : stop]
        block.start = stop
        if stop == len(block.keys):
            self._blocks.popleft()
        return keys

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
        blocks, self._blocks = self._blocks, deque()
        self._newest = -NEVER
        for block in blocks:
            for key, end in zip(block.keys[block.start :], block.ends[block.start :], strict=True):
                if not self._is_void(key):
                    self.push(key, end)
