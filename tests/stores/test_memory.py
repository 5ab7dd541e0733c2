"""What only the memory store promises."""

from __future__ import annotations

import threading

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.errors import VersionConflict
from execsafe.stores.memory import MemoryStore
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, an_event

pytestmark = pytest.mark.anyio


async def test_values_are_kept_as_they_are() -> None:
    """Nothing is encoded: the very same object comes back."""
    async with MemoryStore() as store:
        put = a_put()
        await store.commit(a_batch(put))
        found = await store.find(COLLECTION, "k")
        assert found is not None
        assert found.value is put.value


async def test_no_call_yields_to_the_event_loop() -> None:
    """It is the fast path; whoever needs a checkpoint makes one."""
    calls = 0
    async with MemoryStore() as store:
        coroutines = [
            store.commit(a_batch(a_put(), events=(an_event(),))),
            store.find(COLLECTION, "k"),
            store.scan_open(COLLECTION),
            store.read_events(0),
            store.set_cursor("c", 1),
            store.get_cursor("c"),
            store.purge(1),
        ]
        for coroutine in coroutines:
            with pytest.raises(StopIteration):
                coroutine.send(None)  # it ends without waiting once
            calls += 1
    assert calls == 7


def test_threads_share_one_store() -> None:
    """Eight event loops in eight threads count on one record; none is lost."""
    store = MemoryStore()
    errors: list[BaseException] = []

    async def count() -> None:
        for _ in range(50):
            while True:
                found = await store.find(COLLECTION, "k")
                assert found is not None
                try:
                    await store.commit(a_batch(a_put(version=found.version)))
                    break
                except VersionConflict:
                    continue

    def run() -> None:
        try:
            anyio.run(count)
        except BaseException as error:
            errors.append(error)

    async def begin() -> None:
        await store.open()
        await store.commit(a_batch(a_put()))

    anyio.run(begin)
    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []

    async def version() -> int:
        found = await store.find(COLLECTION, "k")
        assert found is not None
        return found.version

    assert anyio.run(version) == 401


@given(ends=st.lists(st.integers(0, 500_000), max_size=30), before=st.integers(0, 500_000), limit=st.integers(0, 20))
async def test_purge_finds_exactly_what_is_old(ends: list[int], before: int, limit: int) -> None:
    """Across the minutes in which it keeps ended records, in any order of ending."""
    async with MemoryStore() as store:
        for number, ended_at_ms in enumerate(ends):
            await store.commit(a_batch(a_put(f"k{number}", is_open=False, ended_at_ms=ended_at_ms)))
        old = sum(ended_at_ms < before for ended_at_ms in ends)
        assert await store.purge(before, limit) == min(old, limit)
        assert await store.purge(before) == old - min(old, limit)
        left = [n for n in range(len(ends)) if await store.find(COLLECTION, f"k{n}") is not None]
        assert left == [n for n, ended_at_ms in enumerate(ends) if ended_at_ms >= before]


async def test_nothing_is_kept_of_what_was_purged() -> None:
    """Memory is bounded by what is open and what is young (G14)."""
    async with MemoryStore() as store:
        for number in range(300):
            put = a_put(f"k{number}", aliases=(f"x{number}",))
            await store.commit(a_batch(put, events=(an_event(),)))
            for version in (1, 2, 3):  # ends twice, revived in between
                ended = a_put(f"k{number}", version, is_open=version == 2, ended_at_ms=number * 1_000)
                await store.commit(a_batch(ended))
        assert await store.purge(10**9) == 300
        table = store._tables[COLLECTION]
        assert not any((table.records, table.aliases, table.open, table.ended, store._events))
