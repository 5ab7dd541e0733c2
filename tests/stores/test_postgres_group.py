"""Batches that become durable together in PostgreSQL are judged as if they had come one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execsafe.ports import Batch
from execsafe.stores import open_store
from execsafe.stores._group import to_commit
from execsafe.stores._postgres_group import State
from execsafe.stores._postgres_schema import Meta, write_meta
from execsafe.stores._postgres_script import Script
from execsafe.testing._store_model import a_put, an_event
from group_batches import batches, is_sound
from postgres_server import drop, new_schema, with_option

TABLES = {
    "records": "id, collection, key, version, is_open, ended_at_ms, checksum, aliases, body",
    "aliases": "id, collection, alias, key, record_id",
    "leases": "id, name, holder, token, expires_at_ms",
    "events": "seq, at_ms, checksum, body",
    "meta": "fence, seq",
}


class Tables:
    """A store's tables, empty; what is done to them within ``with`` is undone."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.raw = connection
        self.meta = Meta("", 0, 0, 0)

    def __enter__(self) -> Tables:
        self.raw.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self.raw.execute("ROLLBACK")

    def commit(self, *batches: Batch) -> list[Any]:
        """The outcomes of one group; errors as their class and context."""
        script = Script()
        state = State(script, batches)
        state.read(script.run(self.raw) if script else [], self.meta)
        jobs = [to_commit(batch) for batch in batches]
        state.judge(jobs)
        script = Script()
        state.write(script)
        if script:
            self.meta = state.counted()
            write_meta(script, self.meta)
            script.run(self.raw)
        return [job.result if job.error is None else (type(job.error), job.error.context) for job in jobs]  # type: ignore[attr-defined]

    def content(self) -> dict[str, list[Any]]:
        return {
            table: self.raw.execute(f"SELECT {columns} FROM {table} ORDER BY {columns}").fetchall()
            for table, columns in TABLES.items()
        }


@pytest.fixture(scope="module")
def connection(postgres_dsn: str) -> Iterator[psycopg.Connection]:
    schema = new_schema()

    async def create() -> None:
        async with open_store(with_option(postgres_dsn, f"schema={schema}")):
            pass

    anyio.run(create)
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(f"SET search_path = {schema}")
        yield connection
    drop(postgres_dsn, schema)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(groups=st.lists(st.lists(batches.filter(is_sound), min_size=4, max_size=8), min_size=1, max_size=4))
def test_a_group_does_what_its_batches_would_have_done_one_by_one(
    connection: psycopg.Connection, groups: list[list[Batch]]
) -> None:
    """Every outcome, down to the tokens and what an error says, and every row."""
    with Tables(connection) as together:
        at_once = [(together.commit(*group), together.content()) for group in groups]
    with Tables(connection) as apart:
        assert at_once == [([apart.commit(batch)[0] for batch in group], apart.content()) for group in groups]


def test_a_group_may_be_large(connection: psycopg.Connection) -> None:
    """Every record and every alias is found again."""
    with Tables(connection) as tables:
        fresh = [Batch(now_ms=1, puts=(a_put(f"k{n}", aliases=(f"x{n}",)),), events=(an_event(),)) for n in range(600)]
        assert tables.commit(*fresh) == [None] * 600
        assert [error["version"] for _, error in tables.commit(*fresh)] == [1] * 600
        assert [row[0] for row in tables.content()["events"]] == list(range(1, 601))
