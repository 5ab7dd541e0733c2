"""Processes that share a PostgreSQL store; run by ``test_postgres_faults.py``."""

from __future__ import annotations

import sys
import time

import anyio
import attrs

from execsafe.errors import ExecsafeError, StoreUnavailable, VersionConflict
from execsafe.ports import Batch, LeaseRequest
from execsafe.stores import open_store
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, an_event


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def identical(url: str) -> None:
    """Once told, fifty tasks write the same, key by key; prints the keys of which one was told that it has."""
    async with open_store(url) as store:

        async def write(key: str) -> None:
            try:
                await store.commit(a_batch(a_put(key, aliases=(f"{key}x",)), events=(an_event(),)))
            except VersionConflict:
                return
            print(key)

        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        for number in range(20):
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(write, f"k{number:02}")


async def hold(url: str) -> None:
    """Takes a lease for a short time, waits to be told, and writes under it although it may have passed on."""
    async with open_store(url) as store:
        request = LeaseRequest(name="lease", holder="first", ttl_ms=300)
        lease = await store.commit(Batch(now_ms=now_ms(), acquire=request))
        print(lease.token, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        try:
            await store.commit(a_batch(a_put("late"), now_ms=now_ms(), fence=lease))
            print("written")
        except ExecsafeError as error:
            print(type(error).__name__)


async def count(url: str, name: str, seconds: str) -> None:
    """Five tasks count on one record, each step with an event of its own; prints the steps that were acknowledged."""
    deadline = time.monotonic() + float(seconds)
    async with open_store(url) as store:
        print("ready", flush=True)

        async def step(subject: str) -> None:
            found = await store.find(COLLECTION, "counter")
            version, number = (0, 0) if found is None else (found.version, found.value.updated_at_ms)
            put = a_put("counter", version, number=number + 1)
            await store.commit(a_batch(put, events=(attrs.evolve(an_event(), subject=subject),)))
            print(subject)

        async def work(task: int) -> None:
            number = 0
            while time.monotonic() < deadline:
                number += 1
                try:
                    await step(f"{name}-{task}-{number}")
                except VersionConflict:
                    continue
                except StoreUnavailable:
                    await anyio.sleep(0.05)

        async with anyio.create_task_group() as tasks:
            for task in range(5):
                tasks.start_soon(work, task)


if __name__ == "__main__":
    anyio.run({"identical": identical, "hold": hold, "count": count}[sys.argv[1]], *sys.argv[2:])
