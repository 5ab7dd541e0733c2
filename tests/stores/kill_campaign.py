"""Processes that write, and are killed. Run by test_sqlite_faults.py, which says what must come out.

Arguments: kill PATH OPTIONS ROUNDS | count PATH PROCESSES TIMES | fork PATH | limit PATH
| write PATH OPTIONS COUNT [PRAGMA]
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial

import anyio
import anyio._backends._asyncio
import anyio._backends._trio  # what a child needs is imported before it is forked: a hundred imports saved
import anyio.lowlevel

import execsafe.stores.sqlite  # noqa: F401
from execsafe.errors import LeaseHeld, StoreError, VersionConflict
from execsafe.ports import Batch, LeaseRequest
from execsafe.stores import open_store
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, an_event

TASKS = 8


def child(work: Callable[[], None]) -> int:
    """Fork; the child never returns."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)


def url(path: str, options: str) -> str:
    return f"sqlite:///{path}?busy_timeout_s=60&{options}"


def record(key: str) -> Batch:
    return a_batch(a_put(key, aliases=(f"x-{key}",)), events=(an_event(),))


def kill(path: str, options: str, rounds: str) -> None:
    """Print how many were killed, how many records they had acknowledged, and how many are there."""
    choose = random.Random(options)
    acknowledged: set[str] = set()
    for round_ in range(int(rounds)):
        reading, writing = os.pipe()
        backend = "trio" if round_ % 4 == 0 else "asyncio"
        run = partial(anyio.run, write_for_ever, path, options, f"r{round_}", writing, backend=backend)
        pid = child(run)
        os.close(writing)
        text = b""
        for _ in range(choose.randrange(20)):  # after so many pieces of news, whatever the speed of the disk
            text += os.read(reading, 4_096)
        time.sleep(choose.uniform(0, 0.001))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while chunk := os.read(reading, 65_536):
            text += chunk
        os.close(reading)
        acknowledged.update(text.decode().rpartition("\n")[0].split())
    stored = anyio.run(check, path, options, acknowledged)
    print(rounds, len(acknowledged), stored)


async def write_for_ever(path: str, options: str, prefix: str, pipe: int) -> None:
    async with open_store(url(path, options)) as store:

        async def write(task: int) -> None:
            number = 0
            while True:
                key = f"{prefix}-{task}-{number}"
                await store.commit(record(key))
                os.write(pipe, f"{key}\n".encode())
                number += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for task in range(TASKS):
                tasks.start_soon(write, task)


async def check(path: str, options: str, acknowledged: set[str]) -> int:
    async with open_store(url(path, options)) as store:
        stored = {s.key for s in await store.scan_open(COLLECTION)}
        lost = acknowledged - stored
        assert not lost, f"lost: {lost}"
        for key in stored:
            found = await store.find(COLLECTION, f"x-{key}")
            assert found is not None, f"{key} without its alias"
            assert found.key == key
        events = len(await store.read_events(0, limit=10**6))
        assert events == len(stored), f"{events} events for {len(stored)} records"
        return len(stored)


def count(path: str, processes: str, times: str) -> None:
    """Print the counter, its version, and how many different fencing tokens were given."""
    anyio.run(begin, path)
    reading, writing = os.pipe()
    pids = [child(lambda: anyio.run(increment, path, int(times), writing)) for _ in range(int(processes))]
    os.close(writing)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
    tokens = os.read(reading, 1_000_000).split()
    total, version = anyio.run(read, path)
    print(total, version, len(set(tokens)))


async def begin(path: str) -> None:
    async with open_store(url(path, "commit=inline")) as store:
        await store.commit(a_batch(a_put("counter")))


async def increment(path: str, times: int, pipe: int) -> None:
    async with open_store(url(path, "commit=thread")) as store:
        for _ in range(times):
            while True:
                found = await store.find(COLLECTION, "counter")
                assert found is not None
                put = a_put("counter", found.version, number=found.value.updated_at_ms + 1)
                request = LeaseRequest(name=f"lease-{found.version}", holder=str(os.getpid()), ttl_ms=1)
                try:
                    lease = await store.commit(a_batch(put, acquire=request))
                except (VersionConflict, LeaseHeld):
                    continue
                assert lease is not None
                os.write(pipe, f"{lease.token}\n".encode())
                break


async def read(path: str) -> tuple[int, int]:
    async with open_store(url(path, "commit=inline")) as store:
        found = await store.find(COLLECTION, "counter")
        assert found is not None
        return found.value.updated_at_ms, found.version


def fork(path: str) -> None:
    """Use a store in a forked child, then one that the child opened itself, then the parent's again."""
    anyio.run(forking, path)


async def forking(path: str) -> None:
    async with open_store(url(path, "commit=thread")) as store:
        await store.commit(record("parent"))
        pid = os.fork()
        if pid == 0:
            try:
                await store.commit(record("child"))
            except StoreError as error:
                print(type(error).__name__, flush=True)
            await store.aclose()
            async with open_store(url(path, "commit=inline")) as own:
                await own.commit(record("own"))
                print("own", flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222
        await store.commit(record("after"))
        keys = {s.key for s in await store.scan_open(COLLECTION)}
        assert keys == {"parent", "own", "after"}, keys
        print("parent")


def limit(path: str) -> None:
    """Write until the file may not grow any more; print the error, what was acknowledged, and what is there."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
    error, written = anyio.run(fill, path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error, len(written), anyio.run(check, path, "commit=inline", written))


async def fill(path: str) -> tuple[str, set[str]]:
    written: set[str] = set()
    async with open_store(url(path, "commit=thread")) as store:
        try:
            while True:
                await store.commit(record(f"k{len(written)}"))
                written.add(f"k{len(written)}")
        except StoreError as error:
            return type(error).__name__, written


def write(path: str, options: str, number: str, pragma: str = "") -> None:
    """Print the key of each record once it is acknowledged, or the error that ends it.

    A pragma weakens the store after it has checked itself: so that a test can see whether it would notice.
    """
    anyio.run(write_some, path, options, int(number), pragma)


async def write_some(path: str, options: str, number: int, pragma: str) -> None:
    try:
        async with open_store(url(path, options)) as store:
            if pragma:
                store._engine._connection.execute(f"PRAGMA {pragma}")
            for n in range(number):
                await store.commit(record(f"k{n}"))
                print(f"k{n}", flush=True)
    except StoreError as error:
        print(type(error).__name__)


if __name__ == "__main__":
    {f.__name__: f for f in (kill, count, fork, limit, write)}[sys.argv[1]](*sys.argv[2:])
