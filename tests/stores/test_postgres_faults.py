"""What a PostgreSQL store does when the server, the wire or the process fails, on a real server."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import attrs
import psycopg
import pytest

from execsafe.errors import (
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
    VersionConflict,
)
from execsafe.ports import Batch, Lease, LeaseRequest
from execsafe.stores import open_store
from execsafe.stores.postgres import PostgresStore
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, an_event
from postgres_proxy import Proxy
from postgres_server import Server, new_schema, schema_of, with_option

pytestmark = pytest.mark.anyio

CHILDREN = Path(__file__).with_name("postgres_children.py")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def postgres_dsn(postgres_server: Server) -> str:
    """Always a server of our own, as these tests change and stop it."""
    return postgres_server.dsn


@pytest.fixture
def admin(postgres_dsn: str) -> Iterator[psycopg.Connection]:
    """A session of its own."""
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def server(postgres_server: Server) -> Iterator[Server]:
    """A server that may be stopped; it runs again, as it was, for the next test."""
    yield postgres_server
    postgres_server.stop()
    postgres_server.start()


def lock_of(url: str) -> int:
    return PostgresStore(url)._options.settings.lock


async def until_one_waits(admin: psycopg.Connection) -> int:
    """The session that waits for a lock that *admin* holds."""
    with anyio.fail_after(10):
        while True:
            row = admin.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
            if row is not None:
                return int(row[0])
            await anyio.sleep(0.01)


def terminate(admin: psycopg.Connection, name: str = "execsafe") -> None:
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", (name,))


async def content(url: str) -> tuple[list[str], list[str]]:
    """The keys of the records, and the subjects of the events."""
    async with open_store(url) as store:
        keys = [stored.key for stored in await store.scan_open(COLLECTION)]
        return keys, [stored.event.subject for stored in await store.read_events(0, 100_000)]


async def alter(server: Server, setting: str) -> None:
    """Change a setting of the running server."""
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"ALTER SYSTEM SET {setting}")
        admin.execute("SELECT pg_reload_conf()")
    await anyio.sleep(0.2)


# --- the connection is lost -------------------------------------------------------------------------


async def test_a_connection_that_was_lost_while_idle_is_replaced(postgres_url: str, admin: psycopg.Connection) -> None:
    """Neither a write nor a read notices."""
    async with open_store(postgres_url) as store:
        await store.commit(a_batch(a_put("a")))
        terminate(admin)
        await store.commit(a_batch(a_put("b")))
        terminate(admin)
        assert len(await store.scan_open(COLLECTION)) == 2


async def test_a_connection_that_was_lost_while_it_waited_for_the_lock_is_replaced(
    postgres_url: str, admin: psycopg.Connection
) -> None:
    """Nothing can have been written yet, so the write is simply done again."""
    async with open_store(postgres_url) as store:
        admin.execute("SELECT pg_advisory_lock(%s::bigint)", (lock_of(postgres_url),))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.commit, a_batch(a_put(), events=(an_event(),)))
            admin.execute("SELECT pg_terminate_backend(%s)", (await until_one_waits(admin),))
            await until_one_waits(admin)
            admin.execute("SELECT pg_advisory_unlock(%s::bigint)", (lock_of(postgres_url),))
        assert len(await store.read_events(0)) == 1


async def test_a_connection_that_is_lost_within_a_transaction_leaves_nothing(
    postgres_url: str, admin: psycopg.Connection
) -> None:
    """Every caller of that transaction is told; the next one gets through."""
    async with open_store(postgres_url) as store:

        def cut(connection: psycopg.Connection) -> None:
            admin.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))

        with pytest.raises(StoreUnavailable):
            await store._write(cut)
        await store.commit(a_batch(a_put("b")))
    assert await content(postgres_url) == (["b"], [])


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_commit_whose_reply_is_lost_is_unknown(
    postgres_url: str, postgres_server: Server, delivered: bool
) -> None:
    """It says so, and is not repeated by itself. A repeat finds out: it conflicts, or it writes."""
    batch = a_batch(a_put("a"), events=(an_event(),))
    with Proxy(postgres_server.port) as proxy:
        url = postgres_url.replace(f":{postgres_server.port}/", f":{proxy.port}/")
        async with open_store(url) as store:
            proxy.cut(b"\nCOMMIT", delivered=delivered)
            with pytest.raises(StoreUnavailable, match="nothing is known of the write"):
                await store.commit(batch)
            assert proxy.has_cut
            if delivered:
                with pytest.raises(VersionConflict):
                    await store.commit(batch)
            else:
                await store.commit(batch)
    assert await content(postgres_url) == (["a"], ["subject-0"])


async def test_a_wire_that_falls_silent_is_given_up(postgres_url: str, postgres_server: Server) -> None:
    """Everything that is sent is taken, and never answered: no time-out of the server's or of TCP's ends that."""
    with Proxy(postgres_server.port) as proxy:
        url = postgres_url.replace(f":{postgres_server.port}/", f":{proxy.port}/")
        async with open_store(with_option(url, "lock_timeout_s=0.1&statement_timeout_s=0.3")) as store:
            for number in range(2):
                with anyio.fail_after(5):
                    await store.commit(a_batch(a_put(f"k{number}")))
                proxy.silence()
            with anyio.fail_after(5):
                assert len(await store.scan_open(COLLECTION)) == 2
            proxy.silence()


async def test_connections_that_are_lost_again_and_again_leave_every_write_whole_or_absent(
    postgres_url: str, admin: psycopg.Connection
) -> None:
    """What was acknowledged is there once, what was not is there with its event or not at all."""
    load = Load(postgres_url)
    async with anyio.create_task_group() as tasks:
        await tasks.start(load.run)
        for _ in range(20):
            await anyio.sleep(0.05)
            terminate(admin)
        load.ended = True
    await load.check()
    assert load.tokens, "nothing was ever acknowledged"


class Load:
    """Ten tasks that write all the time: a record, its event and a lease each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ended = False
        self.acknowledged: list[str] = []
        self.tokens: list[int] = []
        self.errors: list[StoreError] = []

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with open_store(self.url) as store, anyio.create_task_group() as tasks:
            task_status.started()
            for number in range(10):
                tasks.start_soon(self._write, store, f"w{number}")

    async def _write(self, store: PostgresStore, name: str) -> None:
        number = 0
        while not self.ended:
            number += 1
            key = f"{name}-{number}"
            event = attrs.evolve(an_event(), subject=key)
            request = LeaseRequest(name=key, holder="me", ttl_ms=1)
            try:
                lease = await store.commit(a_batch(a_put(key), events=(event,), acquire=request))
            except StoreUnavailable as error:
                self.errors.append(error)
                await anyio.sleep(0.02)
            else:
                assert isinstance(lease, Lease)
                self.acknowledged.append(key)
                self.tokens.append(lease.token)

    async def check(self) -> None:
        keys, subjects = await content(self.url)
        assert sorted(subjects) == sorted(keys)
        assert set(self.acknowledged) - set(keys) == set()
        assert len(set(self.tokens)) == len(self.tokens)
        async with open_store(self.url) as store:
            lease = await store.commit(Batch(now_ms=0, acquire=LeaseRequest(name="new", holder="me", ttl_ms=1)))
            assert lease is not None
            assert lease.token > max(self.tokens)


# --- the server fails -------------------------------------------------------------------------------


async def test_a_server_that_crashes_under_load_has_all_that_it_acknowledged(postgres_url: str, server: Server) -> None:
    """And the store goes on by itself once the server is back."""
    load = Load(postgres_url)
    async with anyio.create_task_group() as tasks:
        await tasks.start(load.run)
        for _ in range(3):
            await anyio.sleep(0.3)
            before = len(load.acknowledged)
            await anyio.to_thread.run_sync(lambda: server.stop(immediately=True))
            await anyio.sleep(0.1)
            await anyio.to_thread.run_sync(server.start)
        await anyio.sleep(0.3)
        load.ended = True
    assert load.errors
    assert len(load.acknowledged) > before > 0
    await load.check()


async def test_a_server_that_is_gone_is_a_typed_error_at_once(postgres_url: str, server: Server) -> None:
    """Without its store, nobody may trade; once it is back, everything works again."""
    async with open_store(postgres_url) as store:
        await store.commit(a_batch(a_put("a")))
        server.stop()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await store.commit(a_batch(a_put("b")))
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await store.find(COLLECTION, "a")
        server.start()
        await store.commit(a_batch(a_put("c")))
    assert await content(postgres_url) == (["a", "c"], [])


async def test_a_server_that_lacks_what_it_acknowledged_is_refused(server: Server) -> None:
    """A standby that was behind took over, or a backup was restored: here, yesterday's data directory."""
    url = with_option(server.dsn, f"schema={new_schema()}")
    async with open_store(url) as store:
        await store.commit(a_batch(a_put("a"), events=(an_event(1),)))
        server.stop()
        server.save()
        server.start()
        await store.commit(a_batch(a_put("b"), events=(an_event(2),)))
        server.stop()
        server.restore()
        server.start()
        for _ in range(2):
            with pytest.raises(StoreCorrupt, match="back in time"):
                await store.commit(a_batch(a_put("c")))
        with pytest.raises(StoreCorrupt, match="back in time"):
            await store.find(COLLECTION, "a")
    assert await content(url) == (["a"], ["subject-1"])


async def test_a_server_on_which_others_have_gone_on_without_our_commits_is_refused(server: Server) -> None:
    """Its counters are ahead of what this process has seen, but its own event is not there."""
    url = with_option(server.dsn, f"schema={new_schema()}")
    async with open_store(url) as store:
        server.stop()
        server.save()
        server.start()
        await store.commit(a_batch(a_put("b"), events=(an_event(2),)))
        server.stop()
        server.restore()
        server.start()
        async with open_store(url) as other:
            for number in range(3):
                await other.commit(a_batch(a_put(f"o{number}"), events=(an_event(10 + number),)))
        with pytest.raises(StoreCorrupt, match="back in time"):
            await store.commit(a_batch(a_put("c")))


async def test_another_store_behind_the_same_address_is_refused(postgres_url: str, admin: psycopg.Connection) -> None:
    """Also where the connection itself was never lost."""
    schema = schema_of(postgres_url)
    async with open_store(postgres_url) as store:
        await store.commit(a_batch(a_put("a")))
        admin.execute(f"UPDATE {schema}.meta SET store_id = gen_random_uuid(), commits = commits + 10")
        with pytest.raises(StoreCorrupt, match="another store"):
            await store.find(COLLECTION, "a")
    async with open_store(postgres_url) as store:  # reopened on purpose
        assert await store.find(COLLECTION, "a") is not None


async def test_what_was_only_read_may_not_vanish_either(postgres_url: str, admin: psycopg.Connection) -> None:
    """A decision may have been based on it."""
    async with open_store(postgres_url) as reader, open_store(postgres_url) as writer:
        await writer.commit(a_batch(a_put("a")))
        assert await reader.find(COLLECTION, "a") is not None
        admin.execute(f"DELETE FROM {schema_of(postgres_url)}.records")
        admin.execute(f"UPDATE {schema_of(postgres_url)}.meta SET commits = 0")
        with pytest.raises(StoreCorrupt, match="back in time"):
            await reader.find(COLLECTION, "a")


async def test_tables_that_vanish_are_not_made_again(postgres_url: str, admin: psycopg.Connection) -> None:
    """By a store that is open: it has seen what was in them."""
    async with open_store(postgres_url) as store:
        await store.commit(a_batch(a_put("a")))
        admin.execute(f"DROP SCHEMA {schema_of(postgres_url)} CASCADE")
        with pytest.raises(StoreCorrupt):
            await store.commit(a_batch(a_put("b")))


# --- what the server promises -----------------------------------------------------------------------


async def test_a_server_that_stops_being_durable_is_noticed_at_the_next_commit(
    postgres_url: str, server: Server
) -> None:
    """The setting is named; nothing is written; a correction is noticed as well."""
    async with open_store(postgres_url) as store:
        await alter(server, "synchronous_commit = off")
        with pytest.raises(StoreUnavailable, match="synchronous_commit = off") as caught:
            await store.commit(a_batch(a_put("a")))
        assert caught.value.context["setting"] == "synchronous_commit = off"
        await alter(server, "synchronous_commit = on")
        await store.commit(a_batch(a_put("b")))
    assert await content(postgres_url) == (["b"], [])


async def test_a_reload_of_the_configuration_does_not_come_between_check_and_commit(
    postgres_url: str, server: Server
) -> None:
    """The setting that was checked is the one that the commit obeys."""
    async with open_store(postgres_url) as store:
        found: list[str] = []

        def reload(connection: psycopg.Connection) -> None:
            with psycopg.connect(server.dsn, autocommit=True) as admin:
                admin.execute("ALTER SYSTEM SET synchronous_commit = off")
                admin.execute("SELECT pg_reload_conf()")
            time.sleep(0.2)
            row = connection.execute("SELECT current_setting('synchronous_commit')").fetchone()
            found.append("" if row is None else row[0])

        await store._write(reload)
        assert found == ["on"]
        await alter(server, "synchronous_commit = on")


async def test_a_server_that_becomes_read_only_is_a_typed_error(postgres_url: str, admin: psycopg.Connection) -> None:
    """A standby, or a provider that protects a full disk."""
    schema = schema_of(postgres_url)
    async with open_store(postgres_url) as store:
        admin.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        try:
            terminate(admin)
            with pytest.raises(StoreReadOnly):
                await store.commit(a_batch(a_put("a")))
        finally:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
        terminate(admin)
        await store.commit(a_batch(a_put("b")))
    assert admin.execute(f"SELECT key FROM {schema}.records").fetchall() == [("b",)]


# --- time-outs --------------------------------------------------------------------------------------


async def test_a_lock_held_too_long_is_a_typed_error_and_nothing_is_done(
    postgres_url: str, admin: psycopg.Connection
) -> None:
    """Reads need no lock, and go on."""
    async with open_store(with_option(postgres_url, "lock_timeout_s=0.2")) as store:
        await store.commit(a_batch(a_put("a")))
        admin.execute("SELECT pg_advisory_lock(%s::bigint)", (lock_of(postgres_url),))
        with pytest.raises(StoreLocked):
            await store.commit(a_batch(a_put("b")))
        assert len(await store.scan_open(COLLECTION)) == 1
        admin.execute("SELECT pg_advisory_unlock(%s::bigint)", (lock_of(postgres_url),))
        await store.commit(a_batch(a_put("c")))
    assert await content(postgres_url) == (["a", "c"], [])


async def test_a_deadlock_with_an_administrator_is_resolved_by_trying_again(
    postgres_url: str, admin: psycopg.Connection
) -> None:
    """Who locks our tables and then waits for our lock: our transaction is taken back, as we find out first."""
    schema = schema_of(postgres_url)
    lock = lock_of(postgres_url)
    url = with_option(postgres_url, "options=-c%20deadlock_timeout%3D300ms")
    async with open_store(url) as store, anyio.create_task_group() as tasks:
        admin.execute(f"BEGIN; LOCK TABLE {schema}.events; SET LOCAL deadlock_timeout = '5s'")
        tasks.start_soon(store.commit, a_batch(a_put("a"), events=(an_event(),)))
        await anyio.sleep(0.15)
        await anyio.to_thread.run_sync(lambda: admin.execute(f"SELECT pg_advisory_xact_lock({lock})"))
        admin.execute("ROLLBACK")
    assert await content(postgres_url) == (["a"], ["subject-0"])


async def test_a_statement_that_takes_too_long_is_a_typed_error_and_nothing_is_done(
    postgres_url: str, admin: psycopg.Connection
) -> None:
    schema = schema_of(postgres_url)
    async with open_store(with_option(postgres_url, "lock_timeout_s=0.2&statement_timeout_s=0.4")) as store:
        admin.execute(
            f"CREATE FUNCTION {schema}.slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(5); RETURN NEW; END $$;"
            f"CREATE TRIGGER slow BEFORE INSERT ON {schema}.events FOR EACH ROW EXECUTE FUNCTION {schema}.slow()"
        )
        with pytest.raises(StoreUnavailable, match="time-out"):
            await store.commit(a_batch(a_put("a"), events=(an_event(),)))
        admin.execute(f"DROP TRIGGER slow ON {schema}.events")
        await store.commit(a_batch(a_put("b")))
    assert await content(postgres_url) == (["b"], [])


async def test_a_commit_that_waits_for_a_standby_which_is_gone_is_unknown(postgres_url: str, server: Server) -> None:
    """No time-out of the server's ends that wait. It is given up, also by whoever closes the store."""
    async with open_store(with_option(postgres_url, "lock_timeout_s=0.1&statement_timeout_s=0.4")) as store:
        await alter(server, "synchronous_standby_names = 'ghost'")
        try:
            with anyio.fail_after(5), pytest.raises(StoreUnavailable, match="nothing is known of the write"):
                await store.commit(a_batch(a_put("a")))
            with anyio.fail_after(5):
                await store.aclose()
        finally:
            await alter(server, "synchronous_standby_names = ''")
    assert await content(postgres_url) == (["a"], [])


async def test_a_wait_for_a_standby_that_is_broken_off_is_told(
    postgres_url: str, server: Server, admin: psycopg.Connection
) -> None:
    """The server calls it a success, with a warning: what it acknowledges is on no other machine yet."""
    async with open_store(postgres_url) as store:
        await alter(server, "synchronous_standby_names = 'ghost'")

        async def commit() -> None:
            with pytest.raises(StoreUnavailable, match="on the server alone"):
                await store.commit(a_batch(a_put("a")))

        waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        try:
            with anyio.fail_after(5):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(commit)
                    while admin.execute(waiting).fetchone() is None:
                        await anyio.sleep(0.01)
        finally:
            await alter(server, "synchronous_standby_names = ''")
        with pytest.raises(VersionConflict):
            await store.commit(a_batch(a_put("a")))


async def test_whoever_stands_still_within_a_transaction_loses_the_lock(postgres_url: str) -> None:
    """Before those who wait for it give up."""
    async with (
        open_store(with_option(postgres_url, "lock_timeout_s=0.5")) as sleeper,
        open_store(with_option(postgres_url, "lock_timeout_s=0.6")) as other,
        anyio.create_task_group() as tasks,
    ):

        async def sleep() -> None:
            with pytest.raises(StoreUnavailable):
                await sleeper._write(lambda _: time.sleep(1))

        tasks.start_soon(sleep)
        await anyio.sleep(0.1)
        await other.commit(a_batch(a_put("a")))
    assert await content(postgres_url) == (["a"], [])


async def test_a_cancelled_callers_write_is_carried_out(postgres_url: str, admin: psycopg.Connection) -> None:
    """As every store says: callers shield what they want to know of."""
    async with open_store(postgres_url) as store:
        admin.execute("SELECT pg_advisory_lock(%s::bigint)", (lock_of(postgres_url),))
        with anyio.move_on_after(0.1):
            await store.commit(a_batch(a_put("a")))
        admin.execute("SELECT pg_advisory_unlock(%s::bigint)", (lock_of(postgres_url),))
    assert await content(postgres_url) == (["a"], [])


# --- several processes ------------------------------------------------------------------------------


def child(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, CHILDREN, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


async def until_ready(children: list[subprocess.Popen[str]]) -> None:
    for each in children:
        assert each.stdout is not None
        assert await anyio.to_thread.run_sync(each.stdout.readline) == "ready\n"


async def test_of_identical_writes_by_four_processes_exactly_one_wins(postgres_url: str) -> None:
    """Fifty at once from each, twenty times over; they also make the tables, all at once."""
    children = [child("identical", postgres_url) for _ in range(4)]
    await until_ready(children)
    for each in children:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    won = [key for each in children for key in each.communicate(timeout=60)[0].split()]
    assert [each.returncode for each in children] == [0] * 4
    keys = [f"k{number:02}" for number in range(20)]
    assert sorted(won) == keys
    assert await content(postgres_url) == (keys, ["subject-0"] * 20)


@pytest.mark.campaign
async def test_processes_count_exactly_while_the_server_crashes_again_and_again(
    postgres_url: str, server: Server
) -> None:
    """Every step is there once, with its event, and all that were acknowledged are among them, in one order."""
    children = [child("count", postgres_url, f"p{number}", "30") for number in range(3)]
    await until_ready(children)
    chance = random.Random(7)
    for _ in range(30):
        await anyio.sleep(chance.uniform(0.3, 1.2))
        if chance.random() < 0.5:
            server.stop(immediately=True)
            await anyio.sleep(chance.uniform(0, 0.3))
            server.start()
        else:
            with psycopg.connect(server.dsn, autocommit=True) as admin:
                terminate(admin)
    acknowledged = [step for each in children for step in each.communicate(timeout=60)[0].split()]
    assert [each.returncode for each in children] == [0] * 3
    async with open_store(postgres_url) as store:
        found = await store.find(COLLECTION, "counter")
        events = await store.read_events(0, 1_000_000)
    assert found is not None
    assert found.version == found.value.updated_at_ms == len(events) >= len(acknowledged) > 100
    assert set(acknowledged) <= {each.event.subject for each in events}
    assert [each.seq for each in events] == list(range(1, len(events) + 1))


async def test_the_late_write_of_a_process_that_was_stopped_is_fenced(postgres_url: str) -> None:
    """Its lease ran out while it stood still, and passed on."""
    with child("hold", postgres_url) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        token = int(await anyio.to_thread.run_sync(holder.stdout.readline))
        holder.send_signal(signal.SIGSTOP)
        try:
            await anyio.sleep(0.4)
            async with open_store(postgres_url) as store:
                request = LeaseRequest(name="lease", holder="second", ttl_ms=60_000)
                lease = await store.commit(Batch(now_ms=time.time_ns() // 1_000_000, acquire=request))
                assert lease is not None
                assert lease.token > token
        finally:
            holder.send_signal(signal.SIGCONT)
        told, _ = await anyio.to_thread.run_sync(lambda: holder.communicate("go\n", timeout=30))
        assert told.strip() == "StaleFencingToken"
    assert await content(postgres_url) == ([], [])


async def test_a_forked_child_must_open_its_own(postgres_url: str) -> None:
    """And leaves its parent's connection alone, also when it ends."""
    code = f"""
import os, warnings, anyio
from execsafe.errors import StoreUnavailable
from execsafe.stores import open_store
from execsafe.testing._store_model import a_batch, a_put
warnings.simplefilter("ignore", DeprecationWarning)

async def main():
    async with open_store({postgres_url!r}) as store:
        await store.commit(a_batch(a_put("a")))
        pid = os.fork()
        if pid == 0:
            try:
                store.commit(a_batch(a_put("b"))).send(None)
            except StoreUnavailable:
                store.aclose().close()
                del store
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        await store.commit(a_batch(a_put("c")))

anyio.run(main)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code]
    done = await anyio.run_process(command, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert await content(postgres_url) == (["a", "c"], [])
