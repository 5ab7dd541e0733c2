"""The file of an SQLite store: how it is made, who may own it, and what is refused instead of re-created."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from execsafe.errors import (
    StoreCorrupt,
    StoreError,
    StoreInsecure,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
    StoreVersionError,
)
from execsafe.stores import _sqlite_schema as schema
from execsafe.stores.sqlite import SqliteStore
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, an_event

pytestmark = pytest.mark.anyio
COMPANIONS = ("-journal", "-wal", "-shm")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


@pytest.fixture
async def filled(path: Path) -> Path:
    """A closed store with some hundred records."""
    async with SqliteStore(path, commit="inline") as store:
        for start in range(0, 200, 20):
            puts = [a_put(f"k{n:03}", number=n, aliases=(f"x{n}",)) for n in range(start, start + 20)]
            await store.commit(a_batch(*puts, events=(an_event(start),)))
    return path


async def _refused(path: Path, error: type[StoreError], **options: object) -> StoreError:
    """Opening raises *error*, and the file is left exactly as it was."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(error) as caught:
        await SqliteStore(path, **options).open()  # type: ignore[arg-type]
    assert (path.read_bytes() if path.is_file() else None) == before
    return caught.value


# --- Making one --------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
async def test_only_the_owner_can_read_what_is_stored(path: Path, mask: int, exclusive: bool) -> None:
    """Whatever the umask; the journal and the write-ahead log are as private as the file."""
    before = os.umask(mask)
    try:
        async with SqliteStore(path, exclusive=exclusive) as store:
            await store.commit(a_batch(a_put()))
            files = sorted(path.parent.iterdir())
            assert len(files) >= 2
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    finally:
        os.umask(before)


async def test_nothing_but_the_store_is_left_behind(path: Path) -> None:
    """It is made under another name and appears whole."""
    async with SqliteStore(path):
        pass
    assert {file.name for file in path.parent.iterdir()} <= {"orders.db", "orders.db-journal"}


async def test_many_may_start_at_once(path: Path) -> None:
    """One makes the file, all use it."""
    stores = [SqliteStore(path, busy_timeout_s=30) for _ in range(8)]
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.open)
    for number, store in enumerate(stores):
        await store.commit(a_batch(a_put(f"k{number}")))
    assert len(await stores[0].scan_open(COLLECTION)) == 8
    for store in stores:
        await store.aclose()


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    """It is not made: a wrong path should not look like a new store."""
    error = await _refused(tmp_path / "no" / "such" / "orders.db", StoreError)
    assert "directory" in str(error)
    (tmp_path / "file").touch()
    await _refused(tmp_path / "file" / "orders.db", StoreError)


async def test_a_relative_path_is_taken_from_the_working_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd characters in it are only characters."""
    monkeypatch.chdir(path.parent)
    async with SqliteStore("a b?c#d%20e;.db") as store:
        await store.commit(a_batch(a_put()))
    assert (path.parent / "a b?c#d%20e;.db").stat().st_size > 0


# --- Who owns it -------------------------------------------------------------------------------------


async def test_a_symbolic_link_is_refused(filled: Path) -> None:
    """To the file itself, to nowhere, and in place of a companion."""
    link = filled.with_name("link.db")
    link.symlink_to(filled)
    assert "symbolic link" in str(await _refused(link, StoreInsecure))
    nowhere = filled.with_name("nowhere.db")
    nowhere.symlink_to(filled.with_name("target.db"))
    await _refused(nowhere, StoreInsecure)
    assert not filled.with_name("target.db").exists()
    for suffix in COMPANIONS:
        companion = filled.with_name(filled.name + suffix)
        companion.unlink(missing_ok=True)
        companion.symlink_to(filled.with_name("target.db"))
        await _refused(filled, StoreInsecure)
        companion.unlink()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666, 0o601])
async def test_a_file_that_is_open_to_others_is_refused(filled: Path, mode: int) -> None:
    """Read or write, group or others."""
    filled.chmod(mode)
    await _refused(filled, StoreInsecure)


async def test_what_is_not_a_file_is_refused(path: Path) -> None:
    """A directory, a pipe."""
    path.mkdir()
    await _refused(path, StoreInsecure)
    path.rmdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(StoreInsecure):
        await SqliteStore(path).open()


async def test_a_directory_that_anyone_may_write_to_is_refused_unless_sticky(tmp_path: Path) -> None:
    """There anyone could put another file in our file's place; in /tmp they cannot."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o777)
    await _refused(directory / "orders.db", StoreInsecure)
    directory.chmod(0o1777)
    async with SqliteStore(directory / "orders.db"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_somebody_elses_file_is_refused(filled: Path) -> None:
    """Even by root: the owner could change it under our feet."""
    os.chown(filled, 65534, 65534)
    await _refused(filled, StoreInsecure)


_OPEN_AS_NOBODY = """
import os, sys, anyio
import anyio._backends._asyncio  # everything is imported before the right to read it is given up
from execsafe.stores.sqlite import SqliteStore
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
async def main():
    try:
        await SqliteStore(sys.argv[1], commit="inline").open()
    except Exception as error:
        print(type(error).__name__)
anyio.run(main)
"""


@pytest.fixture
def as_nobody(path: Path):
    """Run in a process without root's right to ignore permissions; the files are that user's."""
    is_root = os.geteuid() == 0
    reachable = Path("/tmp") / f"execsafe-{os.getpid()}"  # pytest's own directory is closed to other users
    reachable.mkdir(mode=0o700)

    def run(prepare) -> str:
        target = reachable / "orders.db"
        shutil.copy(path, target)
        target.chmod(0o600)
        if is_root:
            for file in (reachable, target):
                os.chown(file, 65534, 65534)
        prepare(target)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", _OPEN_AS_NOBODY, str(target)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    yield run
    reachable.chmod(0o700)
    shutil.rmtree(reachable)


async def test_a_read_only_file_is_found_out_when_the_store_is_opened(filled: Path, as_nobody) -> None:
    """And not at the first order."""
    assert as_nobody(lambda target: target.chmod(0o400)) == StoreReadOnly.__name__


async def test_a_read_only_directory_is_found_out_when_the_store_is_opened(filled: Path, as_nobody) -> None:
    """No journal could be written beside the file."""
    assert as_nobody(lambda target: target.parent.chmod(0o500)) == StoreReadOnly.__name__


async def test_a_new_store_in_a_read_only_directory_is_refused(filled: Path, as_nobody) -> None:
    """With the same error."""

    def prepare(target: Path) -> None:
        target.unlink()
        target.parent.chmod(0o500)

    assert as_nobody(prepare) == StoreReadOnly.__name__


# --- What is in it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("companion", ["", *COMPANIONS])
async def test_an_empty_file_is_damage_and_not_a_new_store(path: Path, companion: str) -> None:
    """Whatever lies beside it: a store that lost its content would send every order again."""
    for file in (path, path.with_name(path.name + companion)):
        file.touch(0o600)
    await _refused(path, StoreCorrupt)


async def test_a_missing_file_whose_log_is_there_is_damage(path: Path) -> None:
    """Its last commits are in that log."""
    path.with_name("orders.db-wal").write_bytes(b"log")
    await _refused(path, StoreCorrupt)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"x", b"SQLite format 3\0", b"\0" * 4096, b"garbage " * 4096])
async def test_garbage_is_refused(path: Path, content: bytes) -> None:
    """At any length."""
    path.write_bytes(content)
    path.chmod(0o600)
    await _refused(path, StoreCorrupt)


async def test_a_file_cut_short_is_refused(filled: Path) -> None:
    """At every page, and in the middle of one."""
    whole = filled.read_bytes()
    lengths = [*range(4_096, len(whole), 4_096), *range(2_000, len(whole), 20_480)]
    assert len(lengths) > 10
    for length in lengths:
        filled.write_bytes(whole[:length])
        await _refused(filled, StoreCorrupt)


async def test_a_flipped_byte_is_refused_or_makes_no_difference(filled: Path) -> None:
    """Anywhere: in headers, in the tree, in a key, in a record's content.

    The full check compares indexes with their tables, and every record carries a checksum. What remains is
    free space, where a flip changes nothing.
    """
    whole = filled.read_bytes()
    expected = await _content(filled)
    refused = 0
    positions = [*range(0, 100, 9), *range(100, len(whole), 997)]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 0x15
        filled.write_bytes(damaged)
        try:
            assert await _content(filled) == expected, position
        except StoreError:
            refused += 1
    assert refused > len(positions) // 2


async def _content(path: Path) -> object:
    async with SqliteStore(path, commit="inline") as store:
        found = [await store.find(COLLECTION, f"x{n}") for n in range(200)]
        missing = [n for n, stored in enumerate(found) if stored is None]
        assert not missing
        return found, await store.scan_open(COLLECTION), await store.read_events(0)


async def test_a_changed_record_is_noticed_when_it_is_read(filled: Path) -> None:
    """A valid database with one digit changed: nothing is decided on it."""
    connection = sqlite3.connect(filled)
    old, new = b'"updated_at_ms":7,', b'"updated_at_ms":8,'
    connection.execute("UPDATE records SET body = replace(body, ?, ?) WHERE key = 'k007'", (old, new))
    connection.execute("UPDATE events SET at_ms = 5 WHERE seq = 3")
    connection.execute("UPDATE records SET is_open = 0, ended_at_ms = 1 WHERE key = 'k009'")
    connection.execute("UPDATE records SET version = 5 WHERE key = 'k010'")
    connection.commit()
    connection.close()
    async with SqliteStore(filled) as store:
        for key in ("k007", "k009", "k010"):
            with pytest.raises(StoreCorrupt):
                await store.find(COLLECTION, key)
        with pytest.raises(StoreCorrupt):
            await store.scan_open(COLLECTION)
        with pytest.raises(StoreCorrupt):
            await store.read_events(0)
        assert await store.find(COLLECTION, "k008") is not None


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM aliases WHERE alias = 'x7'",
        "UPDATE aliases SET key = 'k008' WHERE alias = 'x7'",
        "UPDATE records SET aliases = '[' WHERE key = 'k007'",
        "DROP TABLE leases",
        "DROP TABLE meta",
        "DELETE FROM meta",
        "INSERT INTO leases VALUES ('lease', 'me', 9, 9)",
    ],
)
async def test_tables_that_contradict_each_other_are_refused(filled: Path, damage: str) -> None:
    """An alias that lost its record, a token that was never given, a table that is not there."""
    connection = sqlite3.connect(filled)
    connection.execute(damage)
    connection.commit()
    connection.close()
    await _refused(filled, StoreCorrupt)


async def test_another_applications_database_is_refused(path: Path) -> None:
    """Nothing is added to it."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE trades (id)")
    connection.close()
    path.chmod(0o600)
    await _refused(path, StoreVersionError)


@pytest.mark.parametrize(
    ("version", "error"), [(2, StoreVersionError), (2**31 - 1, StoreVersionError), (0, StoreCorrupt)]
)
async def test_another_schema_is_refused(filled: Path, version: int, error: type[StoreError]) -> None:
    """A newer execsafe has been here, or nobody we know."""
    connection = sqlite3.connect(filled)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    await _refused(filled, error)


# --- Settings that durability rests on ---------------------------------------------------------------


@pytest.mark.parametrize(("exclusive", "mode"), [(False, "persist"), (True, "wal")])
async def test_the_settings_in_force_are_the_durable_ones(path: Path, exclusive: bool, mode: str) -> None:
    """Read back from the connection that writes."""
    if not exclusive and schema.WAL_IS_SAFE:
        mode = "wal"
    async with SqliteStore(path, commit="inline", exclusive=exclusive) as store:
        connection = store._engine._connection
        assert connection is not None
        values = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "journal_mode", "locking_mode", "busy_timeout", "application_id")
        }
    assert values == {
        "synchronous": 2,
        "journal_mode": mode,
        "locking_mode": "exclusive" if exclusive else "normal",
        "busy_timeout": 5_000,
        "application_id": 0x45585346,
    }


@pytest.mark.parametrize(
    ("pragma", "error"),
    [
        ("synchronous = FULL", StoreUnavailable),
        (f"journal_mode = {'wal' if schema.WAL_IS_SAFE else 'persist'}", StoreLocked),
    ],
)
async def test_a_setting_that_sqlite_ignores_is_not_taken_on_trust(
    path: Path, pragma: str, error: type[StoreError]
) -> None:
    """A pragma fails silently; what it should have set is read back."""

    class Deaf(sqlite3.Connection):
        def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
            if pragma in sql:
                sql = "PRAGMA synchronous = OFF" if "sync" in sql else "SELECT 'delete'"
            return super().execute(sql, *parameters)

    with pytest.raises(error):
        await SqliteStore(path, _connect=_connecting(Deaf)).open()


def _connecting(factory: type[sqlite3.Connection]):
    def connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
        return sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, factory=factory
        )

    return connect


@pytest.mark.skipif(schema.WAL_IS_SAFE, reason="this SQLite shares a write-ahead log safely")
async def test_a_log_that_this_sqlite_cannot_share_is_put_away(filled: Path) -> None:
    """A store left in WAL mode is converted while nobody uses it, and refused while somebody does."""
    other = sqlite3.connect(filled)
    assert other.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal"
    other.execute("SELECT count(*) FROM records").fetchone()
    with pytest.raises(StoreLocked):
        await SqliteStore(filled, busy_timeout_s=0.01).open()
    other.close()
    async with SqliteStore(filled) as store:
        assert len(await store.scan_open(COLLECTION)) == 200
        # Somebody else switches it back under our feet: nothing more is written.
        other = sqlite3.connect(filled)
        other.execute("PRAGMA journal_mode = WAL")
        with pytest.raises(StoreUnavailable):
            await store.commit(a_batch(a_put("new")))
        other.close()


async def test_an_exclusive_store_keeps_all_others_out(path: Path) -> None:
    """And is kept out by them; afterwards the file is as before."""
    async with SqliteStore(path, exclusive=True) as owner:
        await owner.commit(a_batch(a_put()))
        with pytest.raises(StoreLocked):
            await SqliteStore(path, busy_timeout_s=0.01).open()
        with pytest.raises(StoreLocked):
            await SqliteStore(path, busy_timeout_s=0.01, exclusive=True).open()
    async with SqliteStore(path) as shared:
        assert await shared.find(COLLECTION, "k") is not None
