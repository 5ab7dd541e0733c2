"""Before a PostgreSQL store is trusted: its URL, the server's settings, the tables that are found."""

from __future__ import annotations

import contextlib
import logging
import random
import subprocess
import sys
import traceback
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import anyio
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.bot import cli
from execsafe.errors import (
    InvalidInput,
    StoreCorrupt,
    StoreError,
    StoreReadOnly,
    StoreUnavailable,
    StoreVersionError,
)
from execsafe.ports import Batch, Durability, LeaseRequest
from execsafe.stores import open_store
from execsafe.stores.postgres import PostgresStore
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, a_record, an_event
from postgres_server import Server, schema_of, with_option

pytestmark = pytest.mark.anyio

_SECRET = "hunter2-CANARY"
_NOWHERE = f"postgresql://bot:{_SECRET}@127.0.0.1:1/db"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def postgres_dsn(postgres_server: Server) -> str:
    """Always a server of our own, as these tests change and stop it."""
    return postgres_server.dsn


@pytest.fixture
def admin(postgres_dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def filled(postgres_url: str) -> str:
    """A store with a record, an event and a lease."""
    async with open_store(postgres_url) as store:
        await store.commit(
            a_batch(
                a_put("k", aliases=("x",)),
                events=(an_event(),),
                acquire=LeaseRequest(name="lease", holder="me", ttl_ms=10),
            )
        )
    return postgres_url


async def refused(url: str, error: type[StoreError], match: str | None = None) -> StoreError:
    with pytest.raises(error, match=match) as caught:
        async with open_store(url):
            pass
    assert type(caught.value) is error
    return caught.value


def session(options: str) -> str:
    """The option of a URL that gives a session these settings."""
    return f"options={quote(options)}"


# --- the URL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "schema=",
        "schema=Upper",
        "schema=pg_own",
        "schema=a-b",
        "schema=a%22b",
        "schema=" + "a" * 64,
        "require=none",
        "require=always",
        "lock_timeout_s=0",
        "lock_timeout_s=nan",
        "lock_timeout_s=soon",
        "lock_timeout_s=11",
        "statement_timeout_s=1",
        "statement_timeout_s=601",
        "nosuch=1",
        f"password{_SECRET}",
        f"passwort={_SECRET}",
    ],
)
def test_a_malformed_option_is_refused_with_a_short_message(query: str) -> None:
    """Before anything is touched, and without a word of what may be a password."""
    with pytest.raises(InvalidInput) as caught:
        open_store(f"postgresql://bot:{_SECRET}@host/db?{query}")
    assert len(str(caught.value)) < 200
    assert _SECRET not in "".join(traceback.format_exception(caught.value))


@given(text=st.text(max_size=60))
def test_no_url_raises_anything_else(text: str) -> None:
    """It comes from a configuration file."""
    for url in (f"postgresql://{text}", f"postgresql://u:p@h/d?{text}", f"postgres://u:{text}@h/d"):
        with contextlib.suppress(InvalidInput):
            assert isinstance(open_store(url), PostgresStore)


def test_what_libpq_understands_is_passed_on() -> None:
    """With bounds on everything that could wait for ever, unless the URL sets its own."""
    url = "postgresql://me:a%2Fb+c@one:1,two:2/db?connect_timeout=9&schema=own&sslmode=require&require=process"
    options = PostgresStore(url)._options
    parameters = options.parameters
    assert (options.schema, options.require) == ("own", Durability.PROCESS)
    assert (parameters["host"], parameters["port"], parameters["password"]) == ("one,two", "1,2", "a/b+c")
    assert (parameters["connect_timeout"], parameters["sslmode"]) == ("9", "require")
    assert parameters["target_session_attrs"] == "read-write"
    assert int(parameters["tcp_user_timeout"]) > 0
    assert "target_session_attrs" not in PostgresStore("postgresql://one/db")._options.parameters


async def test_a_password_is_never_told(caplog: pytest.LogCaptureFixture) -> None:
    """Not in what is raised, nor in what led to it, nor in a log, nor in the store's own text."""
    caplog.set_level(logging.DEBUG)
    store = PostgresStore(_NOWHERE)
    with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
        await store.open()
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.context) + caplog.text
    told += repr(store) + str(store) + repr(store._options) + repr(store._engine)
    assert _SECRET not in told


async def test_a_bad_value_that_only_libpq_knows_is_told_without_the_password() -> None:
    for query in ("port=none", "sslmode=always", "connect_timeout=soon", f"sslpassword={_SECRET}&port=x"):
        error = await refused(f"postgresql://bot:{_SECRET}@127.0.0.1/db?{query}", StoreUnavailable)
        assert _SECRET not in "".join(traceback.format_exception(error))


def test_without_psycopg_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from execsafe import InvalidInput, open_store\n"
        "try: open_store('postgresql://u:hunter2@host/db')\n"
        "except InvalidInput as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'execsafe[postgres]'" in told
    assert "hunter2" not in told


def test_psycopg_is_loaded_only_where_it_is_used() -> None:
    code = (
        "import sys, execsafe; from execsafe.stores import open_store; open_store('memory://');"
        "open_store('sqlite:///x.db'); assert not {'psycopg', 'psycopg_binary'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("host", "hostaddr", "mode", "warns"),
    [
        ("127.0.0.1", "127.0.0.1", None, False),
        ("::1", "::1", None, False),
        ("localhost", "127.0.0.1", None, False),
        ("/var/run/postgresql", "", None, False),
        ("db.example", "10.0.0.7", None, True),
        ("10.0.0.7", "10.0.0.7", "prefer", True),
        ("db.example", "127.0.0.1", "disable", False),  # a tunnel
        ("db.example", "10.0.0.7", "require", False),
        ("db.example", "10.0.0.7", "verify-full", False),
    ],
)
def test_a_connection_that_anyone_could_read_is_warned_of(
    host: str, hostaddr: str, mode: str | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    parameters = {} if mode is None else {"sslmode": mode}
    info = SimpleNamespace(host=host, hostaddr=hostaddr, get_parameters=lambda: parameters)
    PostgresStore("postgresql://x/y")._engine._warn_of_open_text(SimpleNamespace(info=info))  # type: ignore[arg-type]
    assert ("sslmode" in caplog.text) is warns


# --- the server -------------------------------------------------------------------------------------


async def test_a_database_that_does_not_exist_is_named_as_such(postgres_dsn: str) -> None:
    await refused(postgres_dsn.removesuffix("/postgres") + "/nosuch", StoreUnavailable, "nosuch")


@pytest.mark.parametrize("setting", ["synchronous_commit=off", "fsync=off"])
async def test_a_server_that_promises_less_than_is_required_is_refused(
    postgres_url: str, postgres_server: Server, setting: str
) -> None:
    """It is named; whoever accepts it is told what is left of the promise."""
    if setting.startswith("fsync"):
        postgres_server.stop()
        postgres_server.start("-c", setting)
    else:
        postgres_url = with_option(postgres_url, session(f"-c {setting}"))
    try:
        await refused(postgres_url, StoreUnavailable, setting.replace("=", " = "))
        async with open_store(with_option(postgres_url, "require=process")) as store:
            assert store.durability is Durability.PROCESS
            await store.commit(a_batch(a_put()))
    finally:
        postgres_server.stop()
        postgres_server.start()
    if setting.startswith("fsync"):
        async with open_store(with_option(postgres_url, "require=process")) as store:
            assert store.durability is Durability.POWER, "it is what the server says now"


@pytest.mark.parametrize("value", ["on", "local", "remote_write", "remote_apply"])
async def test_a_server_that_flushes_before_it_answers_is_durable(postgres_url: str, value: str) -> None:
    async with open_store(with_option(postgres_url, session(f"-c synchronous_commit={value}"))) as store:
        assert store.durability is Durability.POWER


async def test_a_read_only_server_is_found_out_when_the_store_is_opened(filled: str) -> None:
    """And a new store is not made there."""
    read_only = session("-c default_transaction_read_only=on")
    await refused(with_option(filled, read_only), StoreReadOnly, "read-only")
    other = filled.replace(schema_of(filled), schema_of(filled) + "x")
    await refused(with_option(other, read_only), StoreReadOnly, "read-only")


async def test_missing_privileges_are_named(filled: str, admin: psycopg.Connection, postgres_dsn: str) -> None:
    """An administrator may make the schema for a user that may not."""
    schema = schema_of(filled)
    user = f"{schema}_user"
    url = filled.replace("postgres@", f"{user}@")
    admin.execute(f"CREATE ROLE {user} LOGIN")
    try:
        await refused(url, StoreReadOnly, "USAGE")
        admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO {user}")
        await refused(url, StoreReadOnly, "privilege")
        admin.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {user}")
        async with open_store(url) as store:
            await store.commit(a_batch(a_put("other")))
        admin.execute(f"DROP SCHEMA {schema} CASCADE")
        await refused(url, StoreReadOnly, "privilege")
        admin.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {user}")
        async with open_store(url) as store:
            await store.commit(a_batch(a_put("own")))
    finally:
        admin.execute(f"DROP OWNED BY {user} CASCADE")
        admin.execute(f"DROP ROLE {user}")


async def test_a_database_that_cannot_hold_every_name_is_refused(postgres_dsn: str, admin: psycopg.Connection) -> None:
    admin.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        await refused(postgres_dsn.removesuffix("/postgres") + "/latin", StoreUnavailable, "UTF8")
    finally:
        admin.execute("DROP DATABASE latin")


async def test_whatever_a_role_or_database_has_set_does_not_change_what_is_found(filled: str) -> None:
    """Its search path, its output formats, its isolation level."""
    options = (
        "-c search_path=pg_catalog -c bytea_output=escape -c default_transaction_isolation=serializable"
        " -c standard_conforming_strings=off -c escape_string_warning=off -c IntervalStyle=iso_8601"
    )
    name = "back\\slash'quote"
    async with open_store(with_option(filled, session(options))) as store:
        await store.commit(a_batch(a_put(name, aliases=("\\'",))))
        found = await store.find(COLLECTION, "\\'")
        assert found is not None
        assert (found.key, found.value) == (name, a_record())
        assert len(await store.read_events(0)) == 1


# --- the tables -------------------------------------------------------------------------------------


async def test_many_may_start_at_once(postgres_url: str) -> None:
    """One makes the tables, the others find them."""
    stores = [open_store(postgres_url) for _ in range(8)]
    async with anyio.create_task_group() as tasks:
        for store in stores:
            tasks.start_soon(store.open)
    for number, store in enumerate(stores):
        await store.commit(a_batch(a_put(f"k{number}")))
    for store in stores:
        assert len(await store.scan_open(COLLECTION)) == 8
        await store.aclose()


@pytest.mark.parametrize(
    "table",
    ["events (id int)", "meta (id int)", "meta (application text, version int)", "records AS SELECT 1 AS x"],
)
async def test_somebody_elses_tables_are_refused_and_left_alone(
    postgres_url: str, admin: psycopg.Connection, table: str
) -> None:
    schema = schema_of(postgres_url)
    admin.execute(f"CREATE SCHEMA {schema}")
    admin.execute(f"CREATE TABLE {schema}.{table}")
    await refused(postgres_url, StoreCorrupt, "execsafe's")
    found = admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall()
    assert found == [(table.partition(" ")[0],)]


async def test_tables_of_other_names_in_the_schema_do_not_matter(postgres_url: str, admin: psycopg.Connection) -> None:
    admin.execute(f"CREATE SCHEMA {schema_of(postgres_url)}")
    admin.execute(f"CREATE TABLE {schema_of(postgres_url)}.theirs (id int)")
    async with open_store(postgres_url) as store:
        await store.commit(a_batch(a_put()))


@pytest.mark.parametrize(("version", "error"), [(2, StoreVersionError), (1_000, StoreVersionError), (0, StoreCorrupt)])
async def test_another_schema_version_is_refused(
    filled: str, admin: psycopg.Connection, version: int, error: type[StoreError]
) -> None:
    """Also by a store that was open while another process upgraded it, as soon as it connects again."""
    async with open_store(filled) as store:
        admin.execute(f"UPDATE {schema_of(filled)}.meta SET version = {version}")
        await refused(filled, error)
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'execsafe'")
        with pytest.raises(error):
            await store.commit(a_batch(a_put("b")))


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE {s}.aliases",
        "ALTER TABLE {s}.records SET UNLOGGED",
        "UPDATE {s}.meta SET fence = 0",
        "UPDATE {s}.meta SET seq = 0",
        "DELETE FROM {s}.meta",
        "UPDATE {s}.meta SET application = 'theirs'",
    ],
)
async def test_tables_that_are_damaged_are_refused(filled: str, admin: psycopg.Connection, damage: str) -> None:
    admin.execute(damage.format(s=schema_of(filled)))
    await refused(filled, StoreCorrupt)


@pytest.mark.parametrize(
    ("damage", "call"),
    [
        ("UPDATE {s}.records SET body = set_byte(body, 5, 0)", "find"),
        ("UPDATE {s}.records SET version = 7", "find"),
        ("UPDATE {s}.records SET key = 'other'", "find"),
        ("UPDATE {s}.records SET is_open = false", "find"),
        ("UPDATE {s}.records SET ended_at_ms = 1", "find"),
        ("UPDATE {s}.events SET body = set_byte(body, 5, 0)", "read_events"),
        ("UPDATE {s}.records SET aliases = '[broken'", "commit"),
        ("UPDATE {s}.records SET aliases = '[broken', is_open = false, ended_at_ms = 1", "purge"),
    ],
)
async def test_damage_is_noticed_when_it_is_met(filled: str, admin: psycopg.Connection, damage: str, call: str) -> None:
    admin.execute(damage.format(s=schema_of(filled)))
    calls: dict[str, tuple[Any, ...]] = {
        "find": (COLLECTION, "k"),
        "read_events": (0,),
        "commit": (a_batch(a_put("k", 1, aliases=("y",))),),
        "purge": (100,),
    }
    async with open_store(filled) as store:
        with pytest.raises(StoreCorrupt):
            await getattr(store, call)(*calls[call])


# --- names ------------------------------------------------------------------------------------------


async def test_names_of_any_length_and_alphabet_are_kept_apart(postgres_url: str) -> None:
    """An index could not take the longest ones whole. No two differ in their beginning."""
    letters = random.Random(7)
    tail = "".join(chr(letters.randrange(0x10000, 0x1F000)) for _ in range(1_023))
    names = [f"{head}{tail}" for head in "ab"] + [f"{tail}{end}" for end in "ab"]
    async with open_store(postgres_url) as store:
        for name in names:
            await store.commit(a_batch(a_put(name, collection=name, aliases=(name,))))
            await store.commit(Batch(now_ms=0, acquire=LeaseRequest(name=name, holder=name, ttl_ms=1)))
            await store.set_cursor(name, 1)
        for name in names:
            assert [stored.key for stored in await store.scan_open(name)] == [name]


async def test_keys_are_ordered_as_python_orders_them(postgres_url: str, admin: psycopg.Connection) -> None:
    """Whatever the database's own language is."""
    letters = random.Random(7)
    keys = {"".join(letters.choices("aAbBzZ éÉß-_0漢\U0001f0a1\uffee", k=3)) for _ in range(300)}
    async with open_store(postgres_url) as store:
        await store.commit(a_batch(*[a_put(key) for key in keys]))
        assert [stored.key for stored in await store.scan_open(COLLECTION)] == sorted(keys)
    collation = admin.execute(
        "SELECT collname FROM pg_attribute JOIN pg_collation c ON c.oid = attcollation"
        " WHERE attrelid = %s::regclass AND attname = 'key'",
        (f"{schema_of(postgres_url)}.records",),
    ).fetchall()
    assert collation == [("C",)]


async def test_a_store_that_is_not_there_is_made_only_where_that_is_wanted(postgres_url: str) -> None:
    """A server without its data is no empty store."""
    looking = with_option(postgres_url, "create=false")
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match="holds no store"):
            await open_store(looking).open()
    async with open_store(postgres_url), open_store(looking) as store:
        assert await store.scan_open(COLLECTION) == []
    with pytest.raises(InvalidInput, match="create must be"):
        open_store(with_option(postgres_url, "create=no"))


def test_who_only_looks_makes_no_store(postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands that read a journal say so to every server."""
    for _ in range(2):
        assert cli.main(["intents", postgres_url]) == 2
        assert "holds no store" in capsys.readouterr().err
