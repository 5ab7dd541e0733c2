"""Batches that become durable together are judged as if they had come one after another."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.errors import InvalidInput, LeaseHeld, StoreUnavailable, VersionConflict
from execsafe.ports import Batch, LeaseRequest, Put
from execsafe.stores import _group as group
from execsafe.stores import _sqlite_schema as schema
from execsafe.stores._jobs import Job, Work
from execsafe.stores._sqlite_engine import Engine
from execsafe.stores._sqlite_tables import get_cursor, purge_records, set_cursor
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, an_event
from group_batches import batches, is_sound

TABLES = {
    "records": "collection, key, version, is_open, ended_at_ms, checksum, aliases, body",
    "aliases": "collection, alias, key",
    "leases": "name, holder, token, expires_at_ms",
    "events": "seq, at_ms, checksum, body",
    "meta": "fence",
}


class Tables:
    """A store's tables, in memory, under its engine."""

    def __init__(self) -> None:
        self.raw = sqlite3.connect(":memory:", isolation_level=None)
        self.raw.executescript(schema.SCHEMA)
        self.engine = Engine(Path("x.db"), busy_timeout_s=0, exclusive=True, check="quick")
        self.engine._connection, self.engine._pid = self.raw, os.getpid()

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.close()

    def commit(self, *batches: Batch) -> list[Any]:
        """The outcomes of one transaction; errors as their class and context."""
        jobs = [group.to_commit(batch) for batch in batches]
        self.engine.serve(jobs)
        return [job.result if job.error is None else (type(job.error), job.error.context) for job in jobs]  # type: ignore[attr-defined]

    def content(self) -> dict[str, list[Any]]:
        return {
            table: self.raw.execute(f"SELECT {columns} FROM {table} ORDER BY {columns}").fetchall()
            for table, columns in TABLES.items()
        }


@given(st.lists(st.lists(batches.filter(is_sound), min_size=4, max_size=8), min_size=1, max_size=4))
def test_a_group_does_what_its_batches_would_have_done_one_by_one(groups: list[list[Batch]]) -> None:
    """Every outcome, down to the tokens and what an error says, and every row."""
    with Tables() as together, Tables() as apart:
        for batches in groups:
            assert together.commit(*batches) == [apart.commit(batch)[0] for batch in batches]
            assert together.content() == apart.content()


def test_of_two_batches_that_want_one_alias_the_second_is_refused() -> None:
    """Although neither could see the other when it was queued; its event goes with it."""
    with Tables() as tables:
        first = a_batch(a_put("a", aliases=("x",)), events=(an_event(),))
        second = a_batch(a_put("b", aliases=("x",)), events=(an_event(),))
        outcomes = tables.commit(first, second)
        assert outcomes[0] is None
        assert outcomes[1][0] is InvalidInput
        assert outcomes[1][1]["owner"] == "a"
        assert [row[1] for row in tables.content()["records"]] == ["a"]
        assert len(tables.content()["events"]) == 1


def test_of_two_batches_that_want_one_lease_the_second_is_refused() -> None:
    """And a third one has it once the first has given it back, with a greater token."""
    wish = [LeaseRequest(name="l", holder=holder, ttl_ms=10) for holder in "pqr"]
    with Tables() as tables:
        first, second, third = tables.commit(
            Batch(now_ms=1, acquire=wish[0]),
            Batch(now_ms=2, acquire=wish[1]),
            Batch(now_ms=11, acquire=wish[2]),
        )
        assert second[0] is LeaseHeld
        assert third.token > first.token


def test_several_versions_of_a_record_in_one_transaction_leave_the_last() -> None:
    """With the aliases of all of them, and an event for each."""
    versions = [a_batch(a_put("a", n, number=n, aliases=(f"x{n}",)), events=(an_event(),)) for n in range(3)]
    with Tables() as tables:
        assert tables.commit(*versions) == [None, None, None]
        [(collection, key, version, *_, aliases, _)] = tables.content()["records"]
        assert (collection, key, version, aliases) == (COLLECTION, "a", 3, '["x0","x1","x2"]')
        assert len(tables.content()["events"]) == 3


@pytest.mark.parametrize("taken", [a_put("a"), a_put("b", aliases=("x",))], ids=["key", "alias"])
def test_what_was_taken_not_to_exist_is_noticed_and_all_is_done_again_once(taken: Put) -> None:
    """Also what came before it in the transaction, whatever it was: the first try has left no trace."""
    ended = a_put("ended", is_open=False, ended_at_ms=1)
    with Tables() as tables:
        tables.commit(a_batch(a_put("a", aliases=("x",)), ended))
        begun: list[str] = []
        tables.raw.set_trace_callback(lambda sql: begun.append(sql) if sql.startswith("BEGIN") else None)
        jobs = [
            Work(lambda connection: set_cursor(connection, "c", 7), is_write=True),
            group.to_commit(a_batch(a_put("new", aliases=("y",)), events=(an_event(),))),
            Work(lambda connection: purge_records(connection, 10, 10), is_write=True),
            group.to_commit(a_batch(taken, events=(an_event(),))),
        ]
        tables.engine.serve(jobs)
        assert len(begun) == 2
        assert [job.error is None for job in jobs] == [True, True, True, False]
        assert jobs[2].result == 1
        assert [row[1:3] for row in tables.content()["records"]] == [("a", 1), ("new", 1)]
        assert [row[1:] for row in tables.content()["aliases"]] == [("x", "a"), ("y", "new")]
        assert len(tables.content()["events"]) == 1
        assert get_cursor(tables.raw, "c") == 7


def test_of_several_reasons_to_refuse_a_batch_the_first_counts() -> None:
    """Although at first only the second put's is seen: the first one's record was taken not to exist."""
    with Tables() as tables:
        tables.commit(a_batch(a_put("a"), a_put("b")))
        [(kind, context)] = tables.commit(a_batch(a_put("a"), a_put("b", 2)))
        assert (kind, context["key"]) == (VersionConflict, "a")


@pytest.mark.parametrize("count", [15, 16, 17, 255, 256, 257, 600])
def test_a_group_may_be_larger_than_one_question(count: int) -> None:
    """Every record and every alias is found again, whatever the number."""
    with Tables() as tables:
        fresh = [a_put(f"k{n}", aliases=(f"x{n}",)) for n in range(count)]
        assert tables.commit(a_batch(*fresh)) == [None]
        assert tables.commit(*[a_batch(put) for put in fresh]) == [
            (VersionConflict, {"collection": COLLECTION, "key": f"k{n}", "version": 1, "expected": 0})
            for n in range(count)
        ]
        assert tables.commit(a_batch(*[a_put(f"k{n}", 1) for n in range(count)])) == [None]


@pytest.mark.parametrize("where", ["INTO records", "INTO aliases", "INTO events", "INTO leases", "UPDATE meta"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_defect_while_a_group_is_written_fails_all_of_it(tmp_path: Path, where: str, size: int) -> None:
    """Nothing of any of its batches is there, each caller is told, and the next group gets through."""
    failing = [True]
    engine = Engine(
        tmp_path / "x.db", busy_timeout_s=0, exclusive=False, check="quick", connect=_faulty(where, failing)
    )
    engine.open()

    def jobs() -> list[Job]:
        return [
            group.to_commit(
                Batch(
                    now_ms=1,
                    puts=(a_put(f"k{n}", aliases=(f"x{n}",)),),
                    events=(an_event(),),
                    acquire=LeaseRequest(name=f"l{n}", holder="p", ttl_ms=1),
                )
            )
            for n in range(size)
        ]

    broken, whole = jobs(), jobs()
    engine.serve(broken)
    assert [type(job.error) for job in broken] == [StoreUnavailable] * size
    failing[0] = False
    engine.serve(whole)
    assert [job.error for job in whole] == [None] * size
    assert [job.result.token for job in whole] == list(range(1, size + 1))
    engine.close()


def _faulty(where: str, failing: list[bool]) -> Callable[[Path, float], sqlite3.Connection]:
    class Faulty(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            self.fail(sql, bool(parameters))
            return super().execute(sql, *parameters)

        def executemany(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            self.fail(sql, True)
            return super().executemany(sql, *parameters)

        def fail(self, sql: str, is_ours: bool) -> None:
            if failing[0] and is_ours and where in sql:
                raise ZeroDivisionError

    def connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
        return sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, factory=Faulty
        )

    return connect
