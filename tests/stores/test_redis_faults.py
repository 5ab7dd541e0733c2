"""A Redis store whose server is killed, replaced, full, demoted or silent: real servers on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from execsafe.errors import (
    LeaseHeld,
    StaleFencingToken,
    StoreCorrupt,
    StoreReadOnly,
    StoreUnavailable,
    VersionConflict,
)
from execsafe.ports import Durability
from execsafe.stores import open_store
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, a_record, acquire, an_event
from servers import RedisServer
from tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """One of this test's own, which loses nothing that it acknowledged."""
    with RedisServer(tmp_path, appendfsync="always") as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[TcpProxy]:
    with TcpProxy(server.port) as proxy:
        yield proxy


def through(proxy: TcpProxy, **options: str) -> str:
    query = "&".join(f"{name}={value}" for name, value in {"prefix": "test", **options}.items())
    return f"redis://127.0.0.1:{proxy.port}/0?{query}"


async def numbers_of(store) -> set[str]:
    return {stored.key for stored in await store.scan_open(COLLECTION)}


# --- scripts and connections --------------------------------------------------------------------------


async def test_a_server_that_forgot_the_scripts_is_told_them_again(server: RedisServer) -> None:
    async with open_store(server.url()) as store:
        await store.commit(a_batch(a_put("a")))
        server.say("SCRIPT", "FLUSH")
        await store.commit(a_batch(a_put("b")))
        server.say("SCRIPT", "FLUSH")
        assert await numbers_of(store) == {"a", "b"}


async def test_a_connection_that_was_killed_is_replaced(server: RedisServer) -> None:
    """At once: the store sees it end, and the next call needs no second try."""
    async with open_store(server.url()) as store:
        for number in range(5):
            await store.commit(a_batch(a_put(f"k{number}")))
            server.say("CLIENT", "KILL", "TYPE", "normal")
            await noticed(store)
        assert await numbers_of(store) == {f"k{number}" for number in range(5)}


async def test_a_lost_answer_leaves_a_write_that_a_repetition_meets(server: RedisServer, proxy: TcpProxy) -> None:
    """The script ran, its answer did not arrive: unknown, not sent twice, and found by whoever asks again."""
    async with open_store(through(proxy)) as store:
        await store.commit(a_batch(a_put("warm")))
        batch = a_batch(a_put("k"), events=(an_event(),))
        proxy.lose_next_answer()
        with pytest.raises(StoreUnavailable, match="nothing is known of the write"):
            await store.commit(batch)
        assert proxy.has_lost.is_set()
        with pytest.raises(VersionConflict):
            await store.commit(batch)
        assert len(await store.read_events(0)) == 1


async def test_all_callers_are_told_when_their_connection_ends(server: RedisServer, proxy: TcpProxy) -> None:
    """Nobody waits for ever, and the store goes on."""
    outcomes: list[str] = []

    async def commit(number: int) -> None:
        try:
            await store.commit(a_batch(a_put(f"k{number}")))
            outcomes.append("stored")
        except StoreUnavailable:
            outcomes.append("unknown")

    async with open_store(through(proxy)) as store:
        await store.commit(a_batch(a_put("warm")))
        proxy.lose_next_answer()
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(commit, number)
        assert len(outcomes) == 20
        assert "unknown" in outcomes
        assert {"warm"} <= await numbers_of(store)


async def test_a_silent_server_is_given_up_in_time(server: RedisServer) -> None:
    """Every call has a time-out of its own, connecting included; afterwards the store works again."""
    async with open_store(server.url(timeout_s="0.3")) as store:
        await store.commit(a_batch(a_put("a")))
        server.send(signal.SIGSTOP)
        try:
            for call in (store.find(COLLECTION, "a"), store.commit(a_batch(a_put("b")))):
                with anyio.fail_after(2), pytest.raises(StoreUnavailable, match=r"within 0\.3 s"):
                    await call
        finally:
            server.send(signal.SIGCONT)
        assert "a" in await numbers_of(store)


async def test_a_connection_that_went_silent_costs_one_call(server: RedisServer, proxy: TcpProxy) -> None:
    """The time-out ends it for all: the next call has a new one."""
    async with open_store(through(proxy, timeout_s="0.3")) as store:
        await store.commit(a_batch(a_put("a")))
        proxy.silence()
        with pytest.raises(StoreUnavailable, match=r"within 0\.3 s"):
            await store.find(COLLECTION, "a")
        assert await store.find(COLLECTION, "a") is not None


async def test_a_server_that_is_not_there_is_unavailable(server: RedisServer) -> None:
    server.kill()
    store = open_store(server.url())
    with pytest.raises(StoreUnavailable, match=r"cannot be reached \(ConnectionRefusedError\)"):
        await store.open()
    await store.aclose()


async def test_cancelled_commits_are_whole_or_absent_and_cost_no_connection(server: RedisServer) -> None:
    """At any point of the call."""
    async with open_store(server.url()) as store:
        await store.commit(a_batch(a_put("warm")))
        before = server.say("INFO", "stats")
        for number in range(60):
            with anyio.move_on_after(number * 0.000_01):
                await store.commit(a_batch(a_put(f"k{number}"), events=(an_event(number),)))
        stored = await numbers_of(store) - {"warm"}
        assert stored == {f"k{e.event.subject[8:]}" for e in await store.read_events(0)}
        assert connections(server.say("INFO", "stats")) == connections(before) + 1  # the second look itself


def connections(info: bytes) -> int:
    [line] = [line for line in info.splitlines() if line.startswith(b"total_connections_received:")]
    return int(line.partition(b":")[2])


# --- a kill of the server -----------------------------------------------------------------------------


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(server: RedisServer) -> None:
    """Records, events and cursors are there, numbers and tokens go on; what was not acknowledged is whole or absent."""
    acknowledged: list[int] = []

    async def write() -> None:
        number = 0
        while True:
            try:
                await store.commit(a_batch(a_put(f"k{number}"), events=(an_event(number),)))
            except StoreUnavailable:
                return
            acknowledged.append(number)
            number += 1

    async with open_store(server.url()) as store:
        for round_ in range(3):
            lease = await acquire(store, name=f"lease-{round_}")
            last_seq = max((e.seq for e in await store.read_events(0, limit=10**6)), default=0)
            acknowledged.clear()
            store_before = await numbers_of(store)
            await purge_open(store, store_before)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(write)
                await anyio.sleep(0.1)
                server.kill()
            server.start()
            assert {f"k{number}" for number in acknowledged} <= await numbers_of(store)
            events = await store.read_events(last_seq, limit=10**6)
            assert [int(e.event.subject[8:]) for e in events][: len(acknowledged)] == acknowledged
            assert (await acquire(store, name=f"again-{round_}")).token > lease.token


async def purge_open(store, keys) -> None:
    """End and delete all of *keys*."""
    for key in keys:
        found = await store.find(COLLECTION, key)
        await store.commit(a_batch(a_put(key, found.version, is_open=False, ended_at_ms=1)))
    await store.purge(2)


async def test_a_server_that_lost_everything_is_refused_and_not_filled_again(tmp_path: Path) -> None:
    """By whoever has seen it, also after a close and an open; a new process knows nothing, and starts anew."""
    with RedisServer(tmp_path, appendonly="no") as server:
        store = open_store(server.url(require="none"))
        await store.open()
        assert store.durability is Durability.NONE
        await acquire(store)
        server.kill()
        server.start()
        await noticed(store)
        for _ in range(2):
            with pytest.raises(StoreCorrupt, match="has lost the store"):
                await store.commit(a_batch(a_put()))
            with pytest.raises(StoreCorrupt, match="has lost the store"):
                await store.find(COLLECTION, "k")
        await store.aclose()
        with pytest.raises(StoreCorrupt, match="has lost the store"):
            await store.open()
        assert server.say("DBSIZE") == b":0"
        await store.aclose()
        async with open_store(server.url(require="none")) as other:
            await other.commit(a_batch(a_put()))
        with pytest.raises(StoreCorrupt, match="another store"):
            await store.open()
        await store.aclose()


async def test_a_store_that_may_not_be_made_has_to_be_there(server: RedisServer) -> None:
    """So that a new process does not take a server without its data for a new one."""
    with pytest.raises(StoreCorrupt, match="create=false"):
        await open_store(server.url(create="false")).open()
    assert server.say("DBSIZE") == b":0"
    async with open_store(server.url(create="true")) as store:
        await store.commit(a_batch(a_put("a")))
    async with open_store(server.url(create="false")) as store:
        assert await numbers_of(store) == {"a"}


# --- failover -----------------------------------------------------------------------------------------


@pytest.fixture
def replica(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A second server, in step with the first."""
    with RedisServer(tmp_path_factory.mktemp("replica"), replicaof=f"127.0.0.1 {server.port}") as replica:
        yield replica


async def in_step(server: RedisServer, replica: RedisServer) -> None:
    """Wait until all of the primary's writes have arrived."""
    with anyio.fail_after(10):
        while b"master_link_status:up" not in replica.say("INFO", "replication"):
            await anyio.sleep(0.02)
        marker = os.urandom(4).hex()
        server.say("SET", "marker", marker)
        while replica.say("GET", "marker") != marker.encode():
            await anyio.sleep(0.01)


async def test_a_replica_is_refused(server: RedisServer, replica: RedisServer) -> None:
    """When it is opened, and when the server becomes one while it is in use."""
    async with open_store(server.url()) as store:
        await store.commit(a_batch(a_put("a")))
        await in_step(server, replica)
        with pytest.raises(StoreReadOnly):
            await open_store(replica.url()).open()
        server.say("REPLICAOF", "127.0.0.1", str(replica.port))
        with pytest.raises(StoreReadOnly):
            await store.commit(a_batch(a_put("b")))


async def test_a_failover_without_loss_goes_unnoticed(
    server: RedisServer, replica: RedisServer, proxy: TcpProxy
) -> None:
    async with open_store(through(proxy)) as store:
        lease = await acquire(store, ttl_ms=1)
        await in_step(server, replica)
        await fail_over(store, replica, proxy)
        await store.commit(a_batch(a_put("a"), fence=lease))
        assert (await acquire(store, now_ms=10, holder="other")).token > lease.token


@pytest.mark.parametrize("writes_of_others", [0, 5])
async def test_a_replica_that_took_over_without_our_last_write_is_refused(
    server: RedisServer, replica: RedisServer, proxy: TcpProxy, writes_of_others: int
) -> None:
    """Although it has more writes than the old primary by then: acknowledged ones are missing."""
    async with open_store(through(proxy)) as store:
        await store.commit(a_batch(a_put("a")))
        await in_step(server, replica)
        replica.say("REPLICAOF", "NO", "ONE")
        await store.commit(a_batch(a_put("lost")))
        await fail_over(store, replica, proxy)
        async with open_store(replica.url()) as other:
            for number in range(writes_of_others):
                await other.commit(a_batch(a_put(f"k{number}")))
        for _ in range(2):
            with pytest.raises(StoreCorrupt, match="went back in time"):
                await store.find(COLLECTION, "lost")
            with pytest.raises(StoreCorrupt, match="went back in time"):
                await store.commit(a_batch(a_put("b")))
        with pytest.raises(StoreCorrupt):
            await acquire(store)
        async with open_store(replica.url()) as other:
            assert await other.find(COLLECTION, "b") is None


async def test_what_was_read_of_others_may_not_be_lost_either(
    server: RedisServer, replica: RedisServer, proxy: TcpProxy
) -> None:
    async with open_store(through(proxy)) as store, open_store(server.url()) as other:
        await in_step(server, replica)
        replica.say("REPLICAOF", "NO", "ONE")
        await other.commit(a_batch(a_put("lost")))
        assert await store.find(COLLECTION, "lost") is not None
        await fail_over(store, replica, proxy)
        with pytest.raises(StoreCorrupt, match="went back in time"):
            await store.find(COLLECTION, "lost")
        async with open_store(replica.url()) as third:  # until there are more revisions than before
            for number in range(5):
                await third.commit(a_batch(a_put(f"k{number}")))
        with pytest.raises(StoreCorrupt, match="went back in time"):
            await store.find(COLLECTION, "lost")


async def fail_over(store, replica: RedisServer, proxy: TcpProxy) -> None:
    """What a sentinel does: promote, point the address there, end the old connections."""
    replica.say("REPLICAOF", "NO", "ONE")
    proxy.target = replica.port
    proxy.cut()
    await noticed(store)


async def noticed(store) -> None:
    """Let *store* see that its connection has ended; its first call would be told so instead."""
    with anyio.fail_after(10):
        while store._client._line._link.is_usable:
            await anyio.sleep(0.001)


# --- no room ------------------------------------------------------------------------------------------


async def test_a_full_server_refuses_writes_and_can_still_be_read_and_purged(server: RedisServer) -> None:
    async with open_store(server.url()) as store:
        lease = await acquire(store)
        await store.commit(a_batch(a_put("a"), a_put("b", is_open=False, ended_at_ms=1), events=(an_event(),)))
        server.say("CONFIG", "SET", "maxmemory", "1")
        refused = [
            store.commit(a_batch(a_put("c"))),
            store.commit(a_batch(events=(an_event(1),))),
            store.commit(a_batch(a_put("a", 1), fence=lease, release=lease)),
            store.set_cursor("c", 1),
            open_store(server.url()).open(),
        ]
        for call in refused:
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                await call
        found = await store.find(COLLECTION, "a")
        assert found is not None
        assert (found.value, found.version) == (a_record("k"), 1)
        assert len(await store.read_events(0)) == 1
        await store.commit(a_batch(release=lease))
        assert await store.purge(10) == 1
        server.say("CONFIG", "SET", "maxmemory", "0")
        await store.commit(a_batch(a_put("c"), a_put("a", 1)))
        assert await numbers_of(store) == {"a", "c"}


# --- several processes --------------------------------------------------------------------------------

_RACER = """
import sys, anyio
from execsafe.errors import VersionConflict
from execsafe.stores import open_store
from execsafe.testing._store_model import a_batch, a_put, an_event

async def main(url, rounds):
    async def claim(round_):
        batch = a_batch(a_put(f"k{round_}", aliases=(f"x{round_}",)), events=(an_event(round_),))
        try:
            await store.commit(batch)
            print(round_)
        except VersionConflict:
            pass
    async with open_store(url) as store:
        for round_ in range(rounds):
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(claim, round_)

anyio.run(main, sys.argv[1], int(sys.argv[2]), backend=sys.argv[3])
"""
_ROUNDS = 10


def test_of_identical_commits_by_many_processes_exactly_one_wins(redis_url: str) -> None:
    """Four processes, half of them on each event loop, fifty tasks each."""
    url = f"{redis_url}?prefix=race-{os.urandom(6).hex()}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, url, str(_ROUNDS), backend],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for backend in ("asyncio", "trio") * 2
    ]
    told = [racer.communicate(timeout=60)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert sorted(int(number) for text in told for number in text.split()) == list(range(_ROUNDS))

    async def look() -> None:
        async with open_store(url) as store:
            assert len(await store.read_events(0)) == _ROUNDS
            assert {stored.version for stored in await store.scan_open(COLLECTION)} == {1}

    anyio.run(look)


async def test_a_lease_has_one_holder_over_all_connections(server: RedisServer) -> None:
    async with open_store(server.url()) as one, open_store(server.url()) as two:
        first = await acquire(one, holder="one")
        with pytest.raises(LeaseHeld) as caught:
            await acquire(two, holder="two", now_ms=9)
        assert caught.value.context["holder"] == "one"
        assert (await acquire(two, holder="two", now_ms=10)).token == first.token + 1
        with pytest.raises(StaleFencingToken):
            await one.commit(a_batch(a_put(), fence=first))
