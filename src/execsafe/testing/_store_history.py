"""Random histories of a store beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

from hypothesis import strategies as st

from execsafe.errors import ExecsafeError
from execsafe.ports import Batch, LeaseRequest, Put, Store
from execsafe.testing._store_model import COLLECTION, StoreModel, a_put, an_event

_KEYS: Final = ("a", "b", "c")
_NAMES: Final = st.sampled_from(("x", "y", "a"))
_SMALL: Final = st.integers(0, 4)
STEPS: Final = ("commit", "commit", "commit", "commit", "purge", "set_cursor", "set_cursor", "delete_cursor", "restart")


class Suite(Protocol):
    """What a history needs of the contract suite."""

    def make_store(self, directory: Path) -> Store: ...

    async def reopen(self, store: Store, directory: Path) -> Store: ...


class History:
    """One history: each step draws what to do, does it to both, and :meth:`compare` looks at everything."""

    def __init__(self, suite: Suite, directory: Path, data: st.DataObject) -> None:
        self.suite = suite
        self.directory = directory
        self.store = suite.make_store(directory)
        self.model = StoreModel()
        self.data = data
        self.now_ms = 0

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.data.draw(strategy)

    async def commit(self) -> None:
        batch = self.a_batch()
        expected = self.model.refusal(batch)
        after = self.model.last_seq
        try:
            lease = await self.store.commit(batch)
        except ExecsafeError as error:
            assert type(error) is expected, error  # noqa: PT017
            return
        assert expected is None, batch
        self.model.apply(batch, lease, [e.seq for e in await self.store.read_events(after)])

    def a_batch(self) -> Batch:
        self.now_ms += self.draw(_SMALL)
        keys = self.draw(st.lists(st.sampled_from(_KEYS), max_size=2, unique=True))
        some_lease = st.sampled_from([None, None, *self.model.granted])
        request = st.builds(
            LeaseRequest, name=st.sampled_from("lm"), holder=st.sampled_from("gh"), ttl_ms=st.integers(1, 5)
        )
        return Batch(
            now_ms=self.now_ms,
            puts=tuple(self.a_put(key) for key in keys),
            events=tuple(an_event(at_ms=self.now_ms) for _ in range(self.draw(st.integers(0, 2)))),
            fence=self.draw(some_lease),
            acquire=self.draw(st.none() | request),
            release=self.draw(some_lease),
        )

    def a_put(self, key: str) -> Put:
        is_off = self.draw(st.integers(0, 7)) == 0
        return a_put(
            key,
            self.model.version(key) + is_off,
            number=self.now_ms,
            is_open=self.draw(st.booleans()),
            ended_at_ms=self.draw(st.none() | st.just(self.now_ms)),
            aliases=tuple(self.draw(st.lists(_NAMES, max_size=2))),
        )

    async def purge(self) -> None:
        before_ms = max(0, self.now_ms - self.draw(_SMALL))
        assert await self.store.purge(before_ms) == self.model.purge(before_ms)

    async def set_cursor(self) -> None:
        name = self.draw(st.sampled_from("pq"))
        seq = self.draw(st.sampled_from([0, *[seq for seq, _ in self.model.events]]))
        await self.store.set_cursor(name, seq)
        self.model.cursors[name] = max(seq, self.model.cursors.get(name, 0))

    async def delete_cursor(self) -> None:
        name = self.draw(st.sampled_from("pq"))
        await self.store.delete_cursor(name)
        self.model.cursors.pop(name, None)

    async def restart(self) -> None:
        self.store = await self.suite.reopen(self.store, self.directory)

    async def compare(self) -> None:
        model = self.model
        for name in {*_KEYS, "x", "y"}:
            put = model.records.get(name) or model.records.get(model.aliases.get(name, ""))
            found = await self.store.find(COLLECTION, name)
            expected = None if put is None else (put.key, put.value, put.version + 1)
            assert (found and (found.key, found.value, found.version)) == expected
        opened = [stored.key for stored in await self.store.scan_open(COLLECTION)]
        assert opened == sorted(key for key, put in model.records.items() if put.is_open)
        assert [(e.seq, e.event) for e in await self.store.read_events(0)] == model.events
        for name in "pq":
            assert await self.store.get_cursor(name) == model.cursors.get(name, 0)
