"""What the stores cost, beside the cheapest thing that does the same work on the same machine in the same minute.

Both sides of a ratio are measured in turns, so that a busy disk slows both. `pytest benchmarks --benchmark-enable`
gives the figures; without it each runs a few times, as a test.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from commits import BODY, COLLECTION, EVENT, EVENT_BODY, RECORD, batch, side_by_side

from execsafe.ports import Batch
from execsafe.stores import _sqlite_schema as schema
from execsafe.stores import codec, open_store

MODES = {"shared": "", "exclusive": "&exclusive=true"}


@pytest.fixture
def report(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Print a line, and keep it with the benchmark."""

    def say(name: str, **figures: float) -> None:
        for key, value in figures.items():
            benchmark.extra_info[f"{name} {key}"] = value
        with capsys.disabled():
            print(f"\n  {name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in figures.items()), end="")

    return say


def raw_connection(path: Path, mode: str) -> sqlite3.Connection:
    """The same bytes under the same key, with the same promise, and nothing else."""
    connection = sqlite3.connect(path, isolation_level=None)
    if mode == "exclusive":
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute(f"PRAGMA journal_mode = {'WAL' if mode == 'exclusive' else 'PERSIST'}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE raw (id INTEGER PRIMARY KEY, key TEXT UNIQUE, body BLOB)")
    return connection


def raw_commit(connection: sqlite3.Connection, keys: list[str]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO raw (key, body) VALUES (?, ?)", [(key, BODY) for key in keys])
    connection.execute("COMMIT")


def same_connection(path: Path, mode: str) -> sqlite3.Connection:
    """The store's own tables and settings."""
    path.touch(0o600)
    schema.create(path)
    connection = schema.connect(path, 0)
    if mode == "exclusive":
        schema.claim(connection)
    schema.configure(connection, exclusive=mode == "exclusive")
    return connection


def same_commit(connection: sqlite3.Connection, keys: list[str]) -> None:
    """What a commit of a record with its alias and an event has to write, known beforehand and checked by nobody."""
    records = [(1, 1, 0, f'["x{key}"]', BODY, COLLECTION, key) for key in keys]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        "INSERT INTO records (version, is_open, checksum, aliases, body, collection, key) VALUES (?, ?, ?, ?, ?, ?, ?)",
        records,
    )
    connection.executemany("INSERT INTO aliases VALUES (?, ?, ?)", [(COLLECTION, f"x{key}", key) for key in keys])
    connection.executemany("INSERT INTO events (at_ms, checksum, body) VALUES (1, 0, ?)", [(EVENT_BODY,)] * len(keys))
    connection.execute("COMMIT")


async def timed(work: Any) -> float:
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("commit", ["thread", "inline"])
def test_one_durable_commit(benchmark: Any, report: Any, ratio: Any, *, tmp_path: Path, commit: str, mode: str) -> None:
    """One caller, one record with its alias: against a raw commit of the same bytes."""
    times = 400 if benchmark.enabled else 3

    async def main() -> None:
        ours, raws = [], []
        raw = raw_connection(tmp_path / "raw.db", mode)
        async with open_store(f"sqlite:///{tmp_path}/x.db?commit={commit}{MODES[mode]}") as store:
            for number in range(times):
                ours.append(await timed(store.commit(batch(f"k{number}"))))
                start = time.perf_counter()
                raw_commit(raw, [f"k{number}"])
                raws.append(time.perf_counter() - start)
        raw.close()
        report(
            f"durable commit, {commit}, {mode}",
            ours_p50_us=median(ours) * 1e6,
            ours_p99_us=quantiles(ours, n=100)[98] * 1e6,
            raw_p50_us=median(raws) * 1e6,
        )
        if benchmark.enabled:
            # The floor writes two pages: a row, and its key. Ours writes four: a row, its key, its place among the open
            # ones, its alias. A thread is handed the work and hands back the result: two wakes of a sleeping
            # processor, 70 µs here, whatever the disk costs.
            reach = {"inline": 1.5, "thread": 1.8}[commit]
            name = f"durable commit, {commit}, {mode}"
            ratio(
                name, median(ours) * 1e9, median(raws) * 1e9, floor="raw SQLite commit of a row", reach=reach, aim=1.4
            )

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


@pytest.mark.parametrize("mode", MODES)
def test_64_durable_callers(benchmark: Any, report: Any, ratio: Any, tmp_path: Path, mode: str) -> None:
    """A record with its alias each: against raw transactions of 64 rows."""

    async def main() -> None:
        raw = raw_connection(tmp_path / "raw.db", mode)
        async with open_store(f"sqlite:///{tmp_path}/x.db?{MODES[mode][1:]}") as store:
            rounds = 12 if benchmark.enabled else 1
            ours, floor = await side_by_side(store, batch, lambda keys: raw_commit(raw, keys), rounds)
        raw.close()
        report(f"64 callers, {mode}", ours_rows_s=ours, raw_rows_s=floor, share=ours / floor)
        if benchmark.enabled:
            # The floor writes one row with one key, encodes nothing, checks nothing and wakes nobody: see below.
            name, reach = "raw SQLite commit of 64 rows, per row", {"shared": 3.8, "exclusive": 5.8}[mode]
            ratio(f"64 durable callers, {mode}", 1e9 / ours, 1e9 / floor, floor=name, reach=reach, aim=2)

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


@pytest.mark.parametrize("mode", MODES)
def test_64_durable_callers_beside_the_same_rows(
    benchmark: Any, report: Any, ratio: Any, tmp_path: Path, mode: str
) -> None:
    """A record, its alias and an event each, as a submit commits them: against raw transactions of just these rows."""

    def make(key: str) -> Batch:
        return attrs.evolve(batch(key), events=(EVENT,))

    async def main() -> None:
        raw = same_connection(tmp_path / "raw.db", mode)
        async with open_store(f"sqlite:///{tmp_path}/x.db?{MODES[mode][1:]}") as store:
            rounds = 12 if benchmark.enabled else 1
            ours, floor = await side_by_side(store, make, lambda keys: same_commit(raw, keys), rounds)
        raw.close()
        report(f"64 callers, same rows, {mode}", ours_commits_s=ours, raw_commits_s=floor, share=ours / floor)
        if benchmark.enabled:
            # Loop and thread take turns, since all 64 wait for one flush: a turn costs what both cost together. With
            # 13 µs here for the floor, what it does itself, the record and the event as JSON are another 6, their
            # checks and sums 3, a future that a thread resolves and the task that it wakes 4, and the decision 2.
            name = "raw SQLite commit of 64 times the same three rows, per three"
            reach = {"shared": 2.5, "exclusive": 3.4}[mode]
            ratio(f"64 durable callers, same rows, {mode}", 1e9 / ours, 1e9 / floor, floor=name, reach=reach, aim=2)

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("commit", ["thread", "inline"])
def test_durable_commit_on_a_busy_event_loop(
    benchmark: Any, report: Any, ratio: Any, *, tmp_path: Path, commit: str, backend: str
) -> None:
    """Another task computes for 1 ms at a time and yields in between: the writer has to get its turn."""
    times = 200 if benchmark.enabled else 3

    async def main() -> None:
        ours: list[float] = []

        async def busy() -> None:
            while len(ours) < times:
                end = time.perf_counter() + 0.001
                while time.perf_counter() < end:
                    pass
                await anyio.lowlevel.checkpoint()

        async with (
            open_store(f"sqlite:///{tmp_path}/x.db?commit={commit}") as store,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(busy)
            for number in range(times):
                seconds = await timed(store.commit(batch(f"k{number}")))
                ours.append(seconds)
        name, p99_ms = f"busy event loop, {commit}, {backend}", quantiles(ours, n=100)[98] * 1e3
        report(name, p50_ms=median(ours) * 1e3, p99_ms=p99_ms)
        if benchmark.enabled:
            ratio(f"{name}, p99, ms", p99_ms, 10, floor="10 ms", aim=1.0)

    benchmark.pedantic(lambda: anyio.run(main, backend=backend), rounds=1)


def test_one_commit_in_memory(benchmark: Any, report: Any, ratio: Any) -> None:
    """Against awaiting a no-op under an asyncio.Lock."""
    times = 20_000 if benchmark.enabled else 50

    async def main() -> None:
        lock = asyncio.Lock()

        async def nothing() -> None:
            pass

        async with open_store("memory://") as store:
            batches = [batch(f"k{number}") for number in range(times)]
            gc.collect()
            gc.disable()  # pytest's own heap is not what is measured
            start = time.perf_counter()
            for each in batches:
                await store.commit(each)
            ours = (time.perf_counter() - start) / times
            start = time.perf_counter()
            for _ in range(times):
                async with lock:
                    await nothing()
            floor = (time.perf_counter() - start) / times
            gc.enable()
        report("commit in memory", us=ours * 1e6, lock_and_no_op_us=floor * 1e6)
        if benchmark.enabled:
            ratio("commit in memory", ours * 1e9, floor * 1e9, floor="asyncio.Lock + no-op", reach=5.0)

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


def test_memory_of_an_ended_record(benchmark: Any, report: Any, ratio: Any) -> None:
    """What the store adds to the record itself, with one alias; keys and values not counted."""
    times = 20_000 if benchmark.enabled else 100

    async def main() -> None:
        batches = [batch(f"k{number}", is_open=False, ended_at_ms=number) for number in range(times)]
        async with open_store("memory://") as store:
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for each in batches:
                await store.commit(each)
            size = (tracemalloc.get_traced_memory()[0] - before) / times
            tracemalloc.stop()
        report("ended record in memory", bytes=size)
        if benchmark.enabled:
            ratio("ended record in memory, bytes", size, 320, floor="320 bytes", aim=1.0)

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


def test_codec(benchmark: Any, report: Any, ratio: Any) -> None:
    """A record with one attempt, beside what the standard library's JSON in C takes for the same text."""
    times = 2_000 if benchmark.enabled else 20

    def per_call(work: Callable[[Any], object], values: list[Any]) -> float:
        """The best of several, in ns."""
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter_ns()
            for value in values:
                work(value)
            best = min(best, (time.perf_counter_ns() - start) / len(values))
        return best

    def main() -> None:
        records = [batch(f"k{number}").puts[0].value for number in range(times)]
        bodies = [codec.encode(record) for record in records]
        texts = [body.decode() for body in bodies]
        trees = [json.loads(text) for text in texts]
        encode, decode = per_call(codec.encode, records), per_call(codec.decode, bodies)
        report(
            "codec",
            bytes=len(BODY),
            encode_us=encode / 1e3,
            encode_the_next_version_us=per_call(codec.encode, [RECORD] * times) / 1e3,
            decode_us=decode / 1e3,
        )
        if benchmark.enabled:
            # Types, numbers, enums and three frozen objects come on top of the JSON itself.
            ratio("encode a record", encode, per_call(json.dumps, trees), floor="json.dumps of its tree", reach=1.1)
            ratio("decode a record", decode, per_call(json.loads, texts), floor="json.loads of its text", reach=2.5)

    benchmark.pedantic(main, rounds=1)


def test_opening_and_recovering(benchmark: Any, report: Any, ratio: Any, tmp_path: Path) -> None:
    """A store of many ended and 1,000 open records: examine it, and read the open ones."""
    ended, opened = (99_000, 1_000) if benchmark.enabled else (90, 10)

    async def main() -> None:
        url = f"sqlite:///{tmp_path}/x.db"
        async with open_store(url) as store:
            keys = [f"k{number:06}" for number in range(ended + opened)]
            for start in range(0, len(keys), 1_000):
                puts = [
                    attrs.evolve(
                        batch(key).puts[0], is_open=number < opened, ended_at_ms=None if number < opened else 1
                    )
                    for number, key in enumerate(keys[start : start + 1_000], start)
                ]
                await store.commit(Batch(now_ms=1, puts=tuple(puts)))
        figures, scans, raws = {}, [], []
        for check in ("full", "quick"):
            store = open_store(f"{url}?check={check}")
            figures[f"open_{check}_ms"] = await timed(store.open()) * 1e3
            for _ in range(5):
                scans.append(await timed(store.scan_open(COLLECTION)) * 1e3)
                raws.append(raw_scan(tmp_path / "x.db") * 1e3)
            await store.aclose()
        report(f"store of {ended + opened:,} records", **figures, scan_open_ms=min(scans), raw_scan_ms=min(raws))
        if benchmark.enabled:
            # The floor looks into nothing. Only to check the sums and to read the JSON, in C, is 4.2 times as much.
            name = f"scan of {opened:,} open records"
            ratio(name, min(scans) * 1e6, min(raws) * 1e6, floor="raw SELECT of their columns", reach=13, aim=5)

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


def raw_scan(path: Path) -> float:
    """Seconds for the columns alone."""
    raw = sqlite3.connect(path)
    start = time.perf_counter()
    raw.execute("SELECT key, version, body FROM records WHERE is_open AND collection = ?", (COLLECTION,)).fetchall()
    seconds = time.perf_counter() - start
    raw.close()
    return seconds
