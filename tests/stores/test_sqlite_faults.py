"""Faults under an SQLite store: locked, full, failing disks, killed processes. What is acknowledged is there."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from execsafe.errors import (
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StorePoisoned,
    StoreUnavailable,
)
from execsafe.stores import _sqlite_schema as schema
from execsafe.stores.sqlite import SqliteStore
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, an_event

pytestmark = pytest.mark.anyio
CAMPAIGN = Path(__file__).with_name("kill_campaign.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


@pytest.fixture(params=["thread", "inline"])
def commit(request: pytest.FixtureRequest) -> str:
    return request.param


def faulty(fault: Callable[[sqlite3.Connection, str], None]) -> Callable[[Path, float], sqlite3.Connection]:
    """Connections on which *fault* is called before every statement."""

    class Faulty(sqlite3.Connection):
        def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
            fault(self, sql)
            return super().execute(sql, *parameters)

    def connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
        return sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, factory=Faulty
        )

    return connect


def sqlite_error(name: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("as if from the disk")
    error.sqlite_errorname = name
    error.sqlite_errorcode = getattr(sqlite3, name)
    return error


# --- Locked ------------------------------------------------------------------------------------------


async def test_a_lock_held_too_long_is_a_typed_error_and_nothing_is_done(path: Path, commit: str) -> None:
    """The store works again as soon as the other process lets go."""
    async with SqliteStore(path, busy_timeout_s=0.05, commit=commit) as store:  # type: ignore[arg-type]
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreLocked):
            await store.commit(a_batch(a_put(), events=(an_event(),)))
        if not schema.WAL_IS_SAFE:
            with pytest.raises(StoreLocked):
                await store.find(COLLECTION, "k")
        with pytest.raises(StoreLocked):
            await SqliteStore(path, busy_timeout_s=0.05).open()
        other.execute("ROLLBACK")
        other.close()
        assert await store.find(COLLECTION, "k") is None
        assert await store.read_events(0) == []
        await store.commit(a_batch(a_put()))


@pytest.mark.skipif(schema.WAL_IS_SAFE, reason="with a write-ahead log readers do not hold writers up")
async def test_a_reader_that_holds_up_the_commit_leaves_nothing_half_done(path: Path, commit: str) -> None:
    """The lock fails at the very end: the whole transaction is taken back."""
    async with SqliteStore(path, busy_timeout_s=0.05, commit=commit) as store:  # type: ignore[arg-type]
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM records").fetchall()
        with pytest.raises(StoreLocked):
            await store.commit(a_batch(a_put(), events=(an_event(),)))
        reader.close()
        assert await store.find(COLLECTION, "k") is None
        await store.commit(a_batch(a_put()))


# --- Full, and failing ----------------------------------------------------------------------------------


async def test_a_full_store_says_so_and_keeps_what_it_has(path: Path, commit: str) -> None:
    """Nothing of the refused batch is there; reading goes on, and writing once there is space."""

    def fault(connection: sqlite3.Connection, sql: str) -> None:
        if sql.startswith("BEGIN"):
            sqlite3.Connection.execute(connection, f"PRAGMA max_page_count = {pages[0]}")

    pages = [2**30]
    async with SqliteStore(path, commit=commit, _connect=faulty(fault)) as store:  # type: ignore[arg-type]
        await store.commit(a_batch(a_put("first")))
        pages[0] = 1
        written = 0
        while True:
            try:
                await store.commit(a_batch(a_put(f"k{written}", aliases=(f"x{written}",)), events=(an_event(),)))
            except StoreFull:
                break
            written += 1
        assert len(await store.scan_open(COLLECTION)) == written + 1
        assert len(await store.read_events(0)) == written
        assert await store.find(COLLECTION, f"x{written}") is None
        pages[0] = 2**30
        await store.commit(a_batch(a_put("last")))


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("SQLITE_IOERR_FSYNC", StorePoisoned),
        ("SQLITE_IOERR_WRITE", StorePoisoned),
        ("SQLITE_FULL", StoreFull),
    ],
)
async def test_after_a_failed_flush_nothing_is_trusted_until_the_store_is_reopened(
    path: Path, commit: str, name: str, first: type[StoreError]
) -> None:
    """The system may have dropped what it could not write, and would report success the next time."""
    failing = [False]

    def fault(connection: sqlite3.Connection, sql: str) -> None:
        if failing[0] and sql == "COMMIT":
            raise sqlite_error(name)

    store = SqliteStore(path, commit=commit, _connect=faulty(fault))  # type: ignore[arg-type]
    await store.open()
    await store.commit(a_batch(a_put("before")))
    failing[0] = True
    with pytest.raises(first):
        await store.commit(a_batch(a_put("during")))
    failing[0] = False
    calls: list[Callable[[], object]] = [
        lambda: store.commit(a_batch(a_put("after"))),
        lambda: store.find(COLLECTION, "before"),
        lambda: store.scan_open(COLLECTION),
        lambda: store.purge(0),
    ]
    for call in calls:
        with pytest.raises(StorePoisoned):
            await call()  # type: ignore[misc]
    await store.aclose()
    await store.open()
    assert await store.find(COLLECTION, "before") is not None
    assert await store.find(COLLECTION, "during") is None
    await store.commit(a_batch(a_put("after")))
    await store.aclose()


async def test_damage_found_on_the_way_stops_everything(path: Path, commit: str) -> None:
    """Not only the call that met it."""
    failing = [False]

    def fault(connection: sqlite3.Connection, sql: str) -> None:
        if failing[0] and sql.startswith("SELECT"):
            raise sqlite_error("SQLITE_CORRUPT")

    async with SqliteStore(path, commit=commit, _connect=faulty(fault)) as store:  # type: ignore[arg-type]
        failing[0] = True
        with pytest.raises(StoreCorrupt):
            await store.find(COLLECTION, "k")
        failing[0] = False
        with pytest.raises(StoreCorrupt):
            await store.commit(a_batch(a_put()))


@pytest.mark.parametrize(
    "where", ["BEGIN", "FROM records", "INTO records", "UPDATE records", "INTO aliases", "INTO events", "COMMIT"]
)
async def test_a_defect_in_the_store_neither_commits_by_halves_nor_stops_it(
    path: Path, commit: str, where: str
) -> None:
    """Any exception inside a transaction takes all of it back."""
    failing = [False]

    def fault(connection: sqlite3.Connection, sql: str) -> None:
        if failing[0] and where in sql:
            raise ZeroDivisionError

    async with SqliteStore(path, commit=commit, _connect=faulty(fault)) as store:  # type: ignore[arg-type]
        await store.commit(a_batch(a_put("old")))
        failing[0] = True
        with pytest.raises(StoreUnavailable):
            await store.commit(a_batch(a_put(aliases=("x",)), a_put("old", 1), events=(an_event(),)))
        failing[0] = False
        assert await store.find(COLLECTION, "k") is None
        await store.commit(a_batch(a_put(), a_put("old", 1)))


async def test_the_nth_failing_statement_changes_nothing(path: Path) -> None:
    """For every n until a batch gets through; once with every kind of error."""
    countdown = [0, ""]

    def fault(connection: sqlite3.Connection, sql: str) -> None:
        countdown[0] -= 1  # type: ignore[operator]
        if countdown[0] == 0:
            raise sqlite_error(str(countdown[1]))

    for name in ("SQLITE_IOERR_READ", "SQLITE_FULL", "SQLITE_BUSY", "SQLITE_NOMEM", "SQLITE_CORRUPT"):
        key = name.lower()
        batch = a_batch(a_put(key, aliases=(f"{key}-x",)), events=(an_event(),))
        for n in range(1, 100):
            store = SqliteStore(path, commit="inline", _connect=faulty(fault))
            countdown[0] = -1
            await store.open()
            events = len(await store.read_events(0))
            countdown[:] = [n, name]
            try:
                await store.commit(batch)
            except StoreError:
                countdown[0] = -1
                await store.aclose()
                await store.open()
                assert await store.find(COLLECTION, f"{key}-x") is None
                assert len(await store.read_events(0)) == events
                await store.aclose()
            else:
                countdown[0] = -1
                assert await store.find(COLLECTION, f"{key}-x") is not None
                await store.aclose()
                break
        assert 5 < n < 20


# --- The real thing: another process ------------------------------------------------------------------------


def run(*arguments: object, limit_s: int = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CAMPAIGN), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=limit_s)


@pytest.fixture
def anyio_backend() -> str:
    """The processes below choose their own; one run of them is enough here."""
    return "asyncio"


@pytest.mark.parametrize("options", ["commit=thread", "commit=inline", "exclusive=true"])
async def test_what_a_killed_process_had_acknowledged_is_there(path: Path, options: str) -> None:
    """A hundred and twenty processes are killed (-9) while eight tasks write as fast as they can.

    Every acknowledged record is there, and the others are there whole or not at all: with alias and event.
    """
    done = run("kill", path, options, 40)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, acknowledged, stored = map(int, done.stdout.split())
    assert kills == 40
    assert stored >= acknowledged > kills


async def test_four_processes_count_on_one_record_exactly(path: Path) -> None:
    """Compare-and-set over processes: nothing is lost and nothing counted twice; tokens never repeat."""
    done = run("count", path, 4, 40)
    assert done.returncode == 0, done.stdout + done.stderr
    total, version, tokens = map(int, done.stdout.split())
    assert (total, version, tokens) == (160, 161, 160)


async def test_a_forked_child_must_open_its_own(path: Path) -> None:
    """The inherited store refuses instead of hanging or writing through a shared descriptor."""
    done = run("fork", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["StoreUnavailable", "own", "parent"]


async def test_a_file_that_may_not_grow_is_a_typed_error(path: Path) -> None:
    """The operating system's own limit on file size; what was acknowledged before is there."""
    done = run("limit", path)
    assert done.returncode == 0, done.stdout + done.stderr
    error, written, stored = done.stdout.split()
    assert error in {"StoreFull", "StorePoisoned"}
    assert int(stored) >= int(written) > 0


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt install strace")


def injected(fault: str, path: Path, *, exclusive: bool) -> tuple[int, list[str]]:
    """Run a writer in which the system itself fails; its exit code, and what it printed."""
    options = "exclusive=true" if exclusive else "commit=inline"
    strace = ["strace", "-f", "-o", os.devnull, "-e", f"inject={fault}"]
    command = [*strace, sys.executable, str(CAMPAIGN), "write", str(path), options, "12"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.split()


@needs_strace
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize(
    ("fault", "errors"),
    [
        ("fdatasync:error=EIO:when=20+", {"StorePoisoned"}),
        ("pwrite64:error=ENOSPC:when=60+", {"StoreFull", "StorePoisoned"}),
        ("pwrite64:error=EIO:when=60+", {"StorePoisoned"}),
    ],
)
async def test_a_disk_that_fails_is_a_typed_error(path: Path, fault: str, errors: set[str], exclusive: bool) -> None:
    """The kernel's own error at a flush or a write; afterwards everything acknowledged is there."""
    code, printed = injected(fault, path, exclusive=exclusive)
    assert code == 0
    assert printed[-1] in errors
    await _all_there(path, printed[:-1])


@needs_strace
@pytest.mark.parametrize("exclusive", [False, True])
async def test_killed_exactly_at_a_write(path: Path, exclusive: bool) -> None:
    """Not at a random moment but at chosen writes to the file or its journal."""
    for nth in (30, 37, 44, 51):
        target = path.with_name(f"{nth}.db")
        code, printed = injected(f"pwrite64:signal=KILL:when={nth}", target, exclusive=exclusive)
        assert code in {-signal.SIGKILL, 128 + signal.SIGKILL}
        await _all_there(target, printed)


async def _all_there(path: Path, keys: list[str]) -> None:
    async with SqliteStore(path) as store:
        stored = {s.key for s in await store.scan_open(COLLECTION)}
        assert stored >= set(keys)
        assert len(await store.read_events(0)) == len(stored)
        with anyio.fail_after(5):
            await store.commit(a_batch(a_put("afterwards")))
