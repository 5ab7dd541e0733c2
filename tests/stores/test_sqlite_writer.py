"""The writer thread of an SQLite store: group commit, cancellation, several event loops, and the end of it all."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from execsafe.errors import InvalidInput, StoreLocked, StoreUnavailable, VersionConflict
from execsafe.stores import _writer
from execsafe.stores.sqlite import SqliteStore
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, an_event

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


class Recorder:
    """Counts the transactions of a store, and can hold one up."""

    def __init__(self) -> None:
        self.commits = 0
        self.failing = False
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def connect(self, path: Path, busy_timeout_s: float) -> sqlite3.Connection:
        recorder = self

        class Recording(sqlite3.Connection):
            def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
                if sql.startswith("BEGIN") and recorder.failing:
                    error = sqlite3.OperationalError("database is locked")
                    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_BUSY, "SQLITE_BUSY"
                    raise error
                if sql == "COMMIT":
                    recorder.commits += 1
                    recorder.waiting.set()
                    assert recorder.gate.wait(30)
                return super().execute(sql, *parameters)

        return sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, factory=Recording
        )

    async def until_waiting(self) -> None:
        await anyio.to_thread.run_sync(self.waiting.wait, 30)


async def test_what_queues_up_behind_a_flush_shares_the_next_one(path: Path) -> None:
    """A hundred callers cost two transactions, not a hundred; a refused one among them disturbs nobody."""
    recorder = Recorder()
    refused: list[str] = []
    async with SqliteStore(path, _connect=recorder.connect) as store:

        async def put(key: str, version: int = 0) -> None:
            try:
                await store.commit(a_batch(a_put(key, version), events=(an_event(),)))
            except VersionConflict:
                refused.append(key)

        recorder.gate.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put, "first")
            await recorder.until_waiting()
            for number in range(100):
                tasks.start_soon(put, f"k{number}", int(number in {7, 77}))
            await anyio.wait_all_tasks_blocked()
            recorder.gate.set()
        assert recorder.commits == 2
        assert sorted(refused) == ["k7", "k77"]
        assert len(await store.scan_open(COLLECTION)) == 99
        assert len(await store.read_events(0)) == 99


async def test_batches_of_one_transaction_see_each_other(path: Path) -> None:
    """Of two that were queued with the same expectation, one wins and one is told."""
    recorder = Recorder()
    outcomes: list[str] = []
    async with SqliteStore(path, _connect=recorder.connect) as store:

        async def put(number: int) -> None:
            try:
                await store.commit(a_batch(a_put("same", number=number)))
                outcomes.append("stored")
            except VersionConflict as error:
                outcomes.append(f"conflict with {error.context['version']}")

        recorder.gate.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.commit, a_batch(a_put("first")))
            await recorder.until_waiting()
            for number in range(3):
                tasks.start_soon(put, number)
            await anyio.wait_all_tasks_blocked()
            recorder.gate.set()
        assert sorted(outcomes) == ["conflict with 1", "conflict with 1", "stored"]
        assert recorder.commits == 2


async def test_the_event_loop_goes_on_while_the_disk_works(path: Path) -> None:
    """A flush that hangs hangs its caller only."""
    recorder = Recorder()
    async with SqliteStore(path, _connect=recorder.connect) as store:
        recorder.gate.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.commit, a_batch(a_put()))
            await recorder.until_waiting()
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            recorder.gate.set()


async def busy_until(is_done: Callable[[], bool]) -> None:
    """Be an event loop that is never idle: it would keep the interpreter from the writer for seconds."""
    while not is_done():
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def on_pause(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What the next pauses of the event loop do first, one each. A pause is as long as the writer needs."""
    todo: list[Callable[[], object]] = []
    stand_still = _writer.Writer.stand_still

    def standing_still(self: _writer.Writer, now_s: float) -> None:
        if todo and now_s - self._stood_at_s > _writer._PATIENCE_S:  # otherwise there is no pause
            todo.pop(0)()
        stand_still(self, now_s)

    monkeypatch.setattr(_writer, "_STAND_STILL_S", 30)
    monkeypatch.setattr(_writer.Writer, "stand_still", standing_still)
    return todo


async def test_whoever_waits_long_lets_the_thread_work(path: Path, on_pause: list[Callable[[], object]]) -> None:
    """The disk goes on only once the event loop stands still."""
    recorder, done = Recorder(), False
    async with SqliteStore(path, _connect=recorder.connect) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(busy_until, lambda: done)
        recorder.gate.clear()
        on_pause.append(recorder.gate.set)
        await store.commit(a_batch(a_put()))
        done = True


async def test_whoever_waits_long_lets_the_thread_work_although_others_were_served(
    path: Path, monkeypatch: pytest.MonkeyPatch, on_pause: list[Callable[[], object]]
) -> None:
    """Tasks of one event loop share a timer: the first one's success must not end the care for the second."""
    monkeypatch.setattr(_writer, "_STAND_STILL_S", 0.02)
    recorder, served = Recorder(), set[str]()
    first, second = threading.Event(), threading.Event()
    gates = iter([first, second])
    monkeypatch.setattr(recorder.gate, "wait", lambda timeout: next(gates, second).wait(timeout))

    def go_on_once_the_first_is_served() -> None:
        (second.set if served else first.set)()
        on_pause.append(go_on_once_the_first_is_served)

    async with SqliteStore(path, _connect=recorder.connect) as store, anyio.create_task_group() as tasks:

        async def put(key: str) -> None:
            await store.commit(a_batch(a_put(key=key)))
            served.add(key)

        tasks.start_soon(put, "a")
        await recorder.until_waiting()
        tasks.start_soon(put, "b")
        await anyio.wait_all_tasks_blocked()
        on_pause.append(go_on_once_the_first_is_served)
        await busy_until(lambda: len(served) == 2)


async def test_an_event_loop_with_time_to_spare_does_not_stand_still(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the disk is: the thread has the interpreter whenever it wants it."""
    pauses: list[float] = []
    monkeypatch.setattr(_writer.Writer, "stand_still", lambda _self, now_s: pauses.append(now_s))
    recorder = Recorder()
    async with SqliteStore(path, _connect=recorder.connect) as store:
        recorder.gate.clear()
        threading.Timer(0.3, recorder.gate.set).start()
        await store.commit(a_batch(a_put()))
    assert len(pauses) <= 1  # what it computed before it waited may count


async def test_pauses_become_rare_while_they_are_of_no_use(
    path: Path, monkeypatch: pytest.MonkeyPatch, on_pause: list[Callable[[], object]]
) -> None:
    """And are made in time again once one was."""
    recorder = Recorder()
    async with SqliteStore(path, _connect=recorder.connect) as store:
        writer = store._writer
        assert writer is not None

        def go_on_once_rare() -> None:
            if writer.patience_s == _writer._PATIENCE_S_MAX:
                monkeypatch.setattr(_writer, "_STAND_STILL_S", 30)
                recorder.gate.set()
            else:
                on_pause.append(go_on_once_rare)

        monkeypatch.setattr(_writer, "_STAND_STILL_S", 0.002)
        recorder.gate.clear()
        on_pause.append(go_on_once_rare)
        done = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(busy_until, lambda: done)
            await store.commit(a_batch(a_put()))
            done = True
        assert writer.patience_s == _writer._PATIENCE_S


async def test_a_disk_that_hangs_takes_little_from_the_event_loop(path: Path) -> None:
    """Those moments are short and become rare: everything else goes on."""
    recorder = Recorder()
    turns, done = 0, False

    async def busy() -> None:
        nonlocal turns
        while not done:
            await anyio.sleep(0.001)
            turns += 1

    async with SqliteStore(path, _connect=recorder.connect) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(busy)
        recorder.gate.clear()
        threading.Timer(0.5, recorder.gate.set).start()
        async with anyio.create_task_group() as commits:
            for number in range(64):
                commits.start_soon(store.commit, a_batch(a_put(f"k{number}")))
        done = True
    assert turns > 2  # a loop that waited for the disk would have turned once, whatever else the machine does


async def test_a_cancelled_callers_write_is_carried_out(path: Path) -> None:
    """The caller sees the cancellation at once; the record is there."""
    recorder = Recorder()
    async with SqliteStore(path, _connect=recorder.connect) as store:
        recorder.gate.clear()
        returned = False

        async def put() -> None:
            nonlocal returned
            await store.commit(a_batch(a_put("cancelled")))
            returned = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put)
            await recorder.until_waiting()
            tasks.cancel_scope.cancel()
        assert not returned
        recorder.gate.set()
        assert await store.find(COLLECTION, "cancelled") is not None


async def test_closing_finishes_what_is_queued_and_then_refuses(path: Path) -> None:
    """Nothing that was accepted is dropped; the file is released."""
    recorder = Recorder()
    store = SqliteStore(path, _connect=recorder.connect)
    await store.open()
    recorder.gate.clear()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.commit, a_batch(a_put("a")))
        await recorder.until_waiting()
        tasks.start_soon(store.commit, a_batch(a_put("b")))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(store.aclose)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(StoreUnavailable):
            await store.commit(a_batch(a_put("c")))
        recorder.gate.set()
    async with SqliteStore(path, exclusive=True) as other:
        assert [s.key for s in await other.scan_open(COLLECTION)] == ["a", "b"]


async def test_a_cancelled_close_closes_all_the_same(path: Path) -> None:
    """A time-out around the shutdown leaves no thread and no lock behind."""
    before = set(threading.enumerate())
    store = SqliteStore(path, exclusive=True)
    await store.open()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.aclose()
    assert not [t for t in threading.enumerate() if t.name == "execsafe-store"]
    assert len(set(threading.enumerate()) - before) <= 1  # anyio may keep a worker of its own
    async with SqliteStore(path, exclusive=True):
        pass


async def test_a_cancelled_open_leaves_nothing_open(path: Path) -> None:
    """Neither a thread nor the file."""
    store = SqliteStore(path, exclusive=True)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.open()
    assert not [t for t in threading.enumerate() if t.name == "execsafe-store"]
    async with SqliteStore(path, exclusive=True):
        pass


@pytest.mark.parametrize("commit", ["thread", "inline"])
async def test_a_failed_open_can_be_tried_again(path: Path, commit: str) -> None:
    """Once the cause is gone; until then every call says that the store is not open."""
    path.touch(0o600)
    store = SqliteStore(path, commit=commit)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(Exception, match="is empty"):
            await store.open()
        with pytest.raises(StoreUnavailable):
            await store.find(COLLECTION, "k")
    path.unlink()
    await store.open()
    await store.commit(a_batch(a_put()))
    await store.aclose()


@pytest.mark.parametrize("commit", ["thread", "inline"])
async def test_several_event_loops_share_one_store(path: Path, commit: str) -> None:
    """asyncio and trio in their own threads, all writing through the one writer."""
    async with SqliteStore(path, commit=commit) as store:  # type: ignore[arg-type]

        def another_loop(name: str, backend: str) -> None:
            async def main() -> None:
                async with anyio.create_task_group() as tasks:
                    for number in range(20):
                        tasks.start_soon(store.commit, a_batch(a_put(f"{name}-{number}")))

            anyio.run(main, backend=backend)

        async with anyio.create_task_group() as tasks:
            for number, backend in enumerate(["asyncio", "trio", "asyncio", "trio"]):
                tasks.start_soon(anyio.to_thread.run_sync, another_loop, f"loop{number}", backend)
            for number in range(20):
                tasks.start_soon(store.commit, a_batch(a_put(f"here-{number}")))
        assert len(await store.scan_open(COLLECTION)) == 100


async def test_an_event_loop_that_ended_while_it_waited_disturbs_nobody(path: Path) -> None:
    """Its write is carried out, and the next caller is served."""
    recorder = Recorder()
    async with SqliteStore(path, _connect=recorder.connect) as store:
        recorder.gate.clear()

        def short_life() -> None:
            async def main() -> None:
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(store.commit, a_batch(a_put("orphan")))
                        await recorder.until_waiting()
                        scope.cancel()

            anyio.run(main)

        await anyio.to_thread.run_sync(short_life)
        recorder.gate.set()
        assert await store.find(COLLECTION, "orphan") is not None


async def test_each_caller_of_a_failed_transaction_gets_an_error_of_its_own(path: Path) -> None:
    """One exception object raised in two tasks would mix up their tracebacks."""
    recorder = Recorder()
    caught: list[StoreUnavailable] = []
    async with SqliteStore(path, busy_timeout_s=0, _connect=recorder.connect) as store:

        async def put(key: str) -> None:
            try:
                await store.commit(a_batch(a_put(key)))
            except StoreUnavailable as error:
                caught.append(error)

        recorder.gate.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put, "first")
            await recorder.until_waiting()
            recorder.failing = True
            for number in range(3):
                tasks.start_soon(put, f"k{number}")
            await anyio.wait_all_tasks_blocked()
            recorder.gate.set()
        assert [type(error) for error in caught] == [StoreLocked] * 3
        assert len({id(error) for error in caught}) == 3
        assert [s.key for s in await store.scan_open(COLLECTION)] == ["first"]


async def test_a_store_that_was_forgotten_warns_and_lets_go(path: Path) -> None:
    """Its thread ends and its file is released."""
    store = SqliteStore(path, exclusive=True)
    await store.open()
    thread = next(t for t in threading.enumerate() if t.name == "execsafe-store")
    await anyio.lowlevel.checkpoint()  # trio keeps the latest time-out, and with it all that was waiting, until then
    with pytest.warns(ResourceWarning, match="not closed"):
        del store
        gc.collect()
    await anyio.to_thread.run_sync(thread.join, 10)
    assert not thread.is_alive()
    async with SqliteStore(path, exclusive=True):
        pass


async def test_a_store_that_is_forgotten_while_its_lock_is_held_lets_go_all_the_same(path: Path) -> None:
    """Garbage is collected at any time and by any thread, also by the store's own in the midst of its work."""
    store = SqliteStore(path)
    await store.open()
    writer = store._writer
    assert writer is not None

    def collect() -> None:
        with writer._lock:
            writer.stop()

    await anyio.to_thread.run_sync(collect, abandon_on_cancel=True)
    await anyio.to_thread.run_sync(writer._thread.join, 10)
    assert not writer._thread.is_alive()
    await store.aclose()


async def test_nobody_stands_still_once_all_is_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread has gone to sleep, and would not end the pause."""
    monkeypatch.setattr(_writer, "_STAND_STILL_S", 30)
    async with SqliteStore(path) as store:
        await store.commit(a_batch(a_put()))
        writer = store._writer
        assert writer is not None
        while not writer._is_asleep:
            await anyio.sleep(0.001)
        start = time.perf_counter()
        writer.stand_still(start)
        assert time.perf_counter() - start < 10


async def test_inline_needs_no_thread_and_never_yields(path: Path) -> None:
    """So that it works on a virtual clock, and nothing comes between two calls."""
    before = set(threading.enumerate())
    order: list[str] = []

    async def other() -> None:
        order.append("other")

    async with SqliteStore(path, commit="inline") as store, anyio.create_task_group() as tasks:
        assert set(threading.enumerate()) <= before
        tasks.start_soon(other)
        await store.commit(a_batch(a_put()))
        await store.find(COLLECTION, "k")
        order.append("store")
    assert order == ["store", "other"]


async def test_a_value_that_cannot_be_stored_is_refused_before_it_is_queued(path: Path) -> None:
    """The transaction of the others never sees it."""
    recorder = Recorder()
    async with SqliteStore(path, _connect=recorder.connect) as store:
        with pytest.raises(InvalidInput):
            await store.commit(a_batch(a_put(value=object())))
        assert recorder.commits == 0


async def test_a_purge_of_many_is_cut_into_slices(path: Path) -> None:
    """No order waits behind ten thousand deletions."""
    recorder = Recorder()
    async with SqliteStore(path, _connect=recorder.connect) as store:
        puts = [a_put(f"k{n}", is_open=False, ended_at_ms=n) for n in range(1_200)]
        await store.commit(a_batch(*puts))
        before = recorder.commits
        assert await store.purge(10_000, limit=1_100) == 1_100
        assert recorder.commits - before == 4
        assert await store.purge(10_000) == 100


async def test_disk_space_of_what_was_purged_is_used_again(path: Path) -> None:
    """The file is as large as the most it ever held at once, not as everything it ever held."""
    async with SqliteStore(path, commit="inline") as store:
        sizes = []
        for round_ in range(6):
            keys = [f"{round_}-{number}" for number in range(200)]
            puts = [a_put(key, is_open=False, ended_at_ms=round_, aliases=(f"x{key}",)) for key in keys]
            await store.commit(a_batch(*puts, events=(an_event(at_ms=round_),) * 200))
            await store.purge(round_ + 1)
            sizes.append(path.stat().st_size)
        assert sizes[-1] <= sizes[1]
