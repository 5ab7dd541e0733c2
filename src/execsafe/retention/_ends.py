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
    """Ends in order: ``keys[i]`` ended at ``ends[i]``; those before ``start`` were taken out.

    While it is filled it may hold one more end than keys: see :meth:`Ends.push`.
    """

    __slots__ = ("ends", "keys", "start")

    def __init__(self) -> None:
        self.keys: list[K] = []
        self.ends: list[int] | array[int] = []  # packed when the block is full; appending to a list costs less
        self.start = 0


class Ends(Generic[K]):
    """Queue of keys in order of their end, in ticks of the store's clock; not thread-safe.

    All records live equally long after their end, so this is also the order of expiry: blocks of plain arrays
    (17 bytes an entry) do what a timer wheel would do, exactly to the tick. A key that came back to life leaves
    a *void* entry, always before its valid one, which is skipped when it surfaces; the queue is rebuilt before
    void entries make up half of it.

    Attributes:
        newest: the latest end in the queue; ``NEVER`` if the queue is empty.
        tail: the block that is being filled.
    """

    def __init__(self) -> None:
        self._blocks: deque[_Block[K]] = deque()
        self._void: dict[K, int] = {}
        self._void_count = 0
        self.newest = NEVER
        self.start_block()

    def push(self, key: K, ended_at: int) -> bool:
        """Add an end; whether it is the only one now. :meth:`TTLStore.put_ended` has the usual case written out.

        The end goes in before the key: a finaliser that the garbage collector runs in between may come back to
        the store and push or take, and then finds an end that has no key yet, which waits for it.
        """
        is_only = self.newest == NEVER
        if is_only or ended_at >= self.newest:
            self.newest = ended_at
        else:
            ended_at = self.newest  # reported late, it is filed with the newest: kept longer, never shorter
        tail = self.tail
        tail.ends.append(ended_at)
        tail.keys.append(key)
        if len(tail.keys) >= BLOCK:
            self.start_block()
        return is_only

    def void(self, key: K) -> None:
        """Forget the entry of *key*."""
        self._void[key] = self._void.get(key, 0) + 1
        self._void_count += 1
        is_much = self._void_count > BLOCK and self._void_count * 2 > len(self._blocks) * BLOCK
        if is_much and len(self.tail.keys) == len(self.tail.ends):  # else somebody is in the middle of push()
            self._rebuild()

    def first(self) -> int:
        """The earliest end, be it void; ``NEVER`` if there is none."""
        block = self._blocks[0]
        return block.ends[block.start] if block.start < len(block.keys) else NEVER

    def first_valid(self) -> int:
        """The earliest end that is not void."""
        while self._void and self.first() != NEVER and self._is_void(self._blocks[0].keys[self._blocks[0].start]):
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

    def start_block(self) -> None:
        """Pack the tail and put an empty one behind it: the only block that may be empty."""
        if self._blocks:
            self.tail.ends = array("q", self.tail.ends)
        self.tail: _Block[K] = _Block()
        self._blocks.append(self.tail)

    def _cut(self, until: int, count: int) -> list[K]:
        block = self._blocks[0]
        stop = min(block.start + count, len(block.keys))
        stop = bisect_right(block.ends, until, block.start, stop)
        keys = block.keys[block.start : stop]
        block.start = stop
        if stop == len(block.ends):
            if block is self.tail:
                self.start_block()
                self.newest = NEVER
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
        self.newest = NEVER
        self.start_block()
        for block in blocks:
            for key, end in zip(block.keys[block.start :], block.ends[block.start :], strict=True):
                if not self._is_void(key):
                    self.push(key, end)
