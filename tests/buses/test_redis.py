"""The bus on a real server: the contract, foreign writers, and a server that fails in every way."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from execsafe.buses import BusDepth, Message, open_bus
from execsafe.errors import BusUnavailable, CapacityExceeded, InvalidInput
from execsafe.testing.bus_contract import BusContract
from servers import RedisServer
from tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio


def age(server: RedisServer, key: str, group: str, seconds: float) -> None:
    """Bring about that all that is pending was delivered *seconds* ago, without waiting for it."""
    pending = server.say("XPENDING", key, group, "-", "+", "1000")
    if not pending or pending.startswith(b"-"):  # nothing, or no group
        return
    words = pending.split(b"\n")
    for number, consumer in zip(words[::4], words[1::4], strict=True):
        server.say("XCLAIM", key, group, consumer, "0", number, "IDLE", str(round(seconds * 1_000)), "JUSTID")


class TestContract(BusContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: RedisServer) -> None:
        self.server = redis_server

    def make_bus(self, directory, *, messages_max=10_000, redeliver_after_s=60.0):
        self.prefix = hashlib.sha256(str(directory).encode()).hexdigest()[:20] + ":"
        options = f"prefix={self.prefix}&messages_max={messages_max}&redeliver_after_s={redeliver_after_s}"
        return open_bus(f"redis://127.0.0.1:{self.server.port}/0?{options}")

    async def let_pass(self, bus, topic, group, seconds):
        age(self.server, self.prefix + topic, group, seconds)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """One of this test's own, which loses nothing that it acknowledged."""
    with RedisServer(tmp_path, appendfsync="always") as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[TcpProxy]:
    with TcpProxy(server.port) as proxy:
        yield proxy


def url(port: int, **options: object) -> str:
    query = "&".join(
        f"{name}={value}" for name, value in {"prefix": "", "timeout_s": 2, "redeliver_after_s": 60, **options}.items()
    )
    return f"redis://127.0.0.1:{port}/0?{query}"


# --- foreign writers and readers ---------------------------------------------------------------------------


@pytest.mark.row("S2-01")
async def test_what_other_programs_append_is_delivered(server: RedisServer) -> None:
    """Under the names that they use; the time of publication is the server's."""
    sent = server.say("XADD", "bot:stream:trade.intent", "*", "symbol", "BTCUSDT", "side", "LONG").decode()
    async with open_bus(url(server.port, prefix="bot:stream:")) as bus:
        [message] = await bus.read("trade.intent", "g", "1")
    assert message == Message(
        topic="trade.intent",
        id=sent,
        fields={"symbol": "BTCUSDT", "side": "LONG"},
        published_at_ms=int(sent.partition("-")[0]),
    )


async def test_a_name_that_stands_twice_in_a_message_has_no_single_value(server: RedisServer) -> None:
    """Whoever reads it as one side or the other would be guessing; bytes that are no text stay visible."""
    server.say("XADD", "t", "*", "side", "LONG", "side", "SHORT", "raw", b"\xff\xfe")
    async with open_bus(url(server.port)) as bus:
        [message] = await bus.read("t", "g", "1")
    assert message.fields == {"side": '["LONG", "SHORT"]', "raw": "\\xff\\xfe"}


async def test_messages_that_others_trimmed_are_told_and_not_waited_for(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A writer with MAXLEN may remove what was delivered and not executed yet."""
    async with open_bus(url(server.port)) as bus:
        for number in range(3):
            await bus.publish("t", {"n": number})
        await bus.read("t", "g", "dies", limit=2)
        age(server, "t", "g", 61)
        server.say("XTRIM", "t", "MAXLEN", "1")
        with caplog.at_level(logging.ERROR, logger="execsafe.buses"):
            messages = await bus.read("t", "g", "1", limit=9)
        assert [message.fields["n"] for message in messages] == ["2"]
        assert "2 messages were removed from topic t before group g was done with them" in caplog.text
        assert await bus.depth("t", "g") == BusDepth(waiting=0, pending=1, kept=1)


async def test_a_topic_that_others_overfilled_is_brought_back_to_its_bound(server: RedisServer) -> None:
    """In pages; only what every group is done with."""
    async with open_bus(url(server.port, messages_max=10)) as bus:
        await bus.join_group("t", "g")
        for number in range(1_200):
            server.say("XADD", "t", "*", "n", str(number))
        with pytest.raises(CapacityExceeded):
            await bus.publish("t", {"n": "mine"})
        first = await bus.read("t", "g", "1", limit=1_200)
        kept = [*first, *await bus.read("t", "g", "1", limit=1_200)]
        assert (len(first), len(kept)) == (1_000, 1_200)
        for message in kept[5:]:
            await bus.ack("t", "g", message.id)
        await bus.publish("t", {"n": "mine"})
        assert await bus.depth("t", "g") == BusDepth(waiting=1, pending=5, kept=server_length(server, "t"))
        assert server_length(server, "t") <= 10


async def test_the_depth_counts_also_where_the_server_cannot_say(server: RedisServer) -> None:
    """After a removal from the middle the server has no count of what waits."""
    async with open_bus(url(server.port)) as bus:
        sent = [await bus.publish("t", {"n": number}) for number in range(1_100)]
        await bus.read("t", "g", "1")
        server.say("XDEL", "t", sent[500])
        assert server.say("XINFO", "GROUPS", "t").endswith(b"lag\n$-1")
        assert (await bus.depth("t", "g")).waiting == 1_098


def server_length(server: RedisServer, key: str) -> int:
    return int(server.say("XLEN", key)[1:])


# --- a server that fails -------------------------------------------------------------------------------------


async def test_a_lost_answer_to_a_read_costs_time_and_no_message(server: RedisServer, proxy: TcpProxy) -> None:
    """It was delivered to nobody who knows of it, and is delivered again when it is due."""
    async with open_bus(url(proxy.port)) as bus:
        await bus.read("t", "g", "1", wait_s=0)  # from now on the server knows the script
        await bus.publish("t", {"n": 1})
        proxy.lose_next_answer()
        with pytest.raises(BusUnavailable, match="nothing is known"):
            await bus.read("t", "g", "1", wait_s=0)
        assert await bus.read("t", "g", "1", wait_s=0) == []
        age(server, "t", "g", 61)
        [message] = await bus.read("t", "g", "1", wait_s=0)
        assert (message.fields, message.deliveries) == ({"n": "1"}, 2)


async def test_lost_answers_to_acknowledgements_and_dead_letters_are_asked_again(
    server: RedisServer, proxy: TcpProxy
) -> None:
    """Neither is done twice."""
    async with open_bus(url(proxy.port)) as bus:
        for number in range(3):
            await bus.publish("t", {"n": number})
        [first, one, other] = await bus.read("t", "g", "1", limit=3)
        await bus.dead_letter("g", first, "malformed")
        proxy.lose_next_answer()
        with pytest.raises(BusUnavailable):
            await bus.ack("t", "g", one.id)
        assert not await bus.ack("t", "g", one.id)
        proxy.lose_next_answer()
        with pytest.raises(BusUnavailable):
            await bus.dead_letter("g", other, "malformed")
        await bus.dead_letter("g", other, "malformed")
        assert server_length(server, "t:dead") == 2
        assert (await bus.depth("t", "g")).pending == 0


async def test_a_lost_answer_to_a_publication_says_that_nothing_is_known(server: RedisServer, proxy: TcpProxy) -> None:
    """Whoever publishes it again publishes it twice: readers know it by its own id."""
    async with open_bus(url(proxy.port)) as bus:
        await bus.publish("t", {"n": 0})
        proxy.lose_next_answer()
        with pytest.raises(BusUnavailable, match="nothing is known of the write"):
            await bus.publish("t", {"n": 1})
        assert server_length(server, "t") == 2


async def test_who_waits_is_told_when_its_connection_ends_and_comes_again(server: RedisServer) -> None:
    """The next read has a new connection."""
    async with open_bus(url(server.port)) as bus:
        await bus.join_group("t", "g")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_killed_while_waiting, bus)
            await anyio.sleep(0.1)
            server.say("CLIENT", "KILL", "TYPE", "normal")
        await bus_works(bus)


async def _killed_while_waiting(bus) -> None:
    with pytest.raises(BusUnavailable):
        await bus.read("t", "g", "1", wait_s=100)


async def bus_works(bus) -> None:
    """Within a few tries: a connection that just ended may be met once more."""
    for _ in range(3):
        with contextlib.suppress(BusUnavailable):
            await bus.publish("works", {"n": 1})
            assert await bus.read("works", "g", "1", wait_s=5)
            return
    raise AssertionError("the bus does not come back")


@pytest.mark.parametrize("call", ["publish", "read", "wait"])
async def test_a_silent_server_is_given_up_in_time(server: RedisServer, call: str) -> None:
    """Every call has a time-out of its own; afterwards the bus works again."""
    async with open_bus(url(server.port, timeout_s=0.3, redeliver_after_s=0.1)) as bus:
        await bus.join_group("t", "g")
        calls = {
            "publish": lambda: bus.publish("t", {"n": 1}),
            "read": lambda: bus.read("t", "g", "1", wait_s=0),
            "wait": lambda: bus.read("t", "g", "1", wait_s=100),
        }
        async with anyio.create_task_group() as tasks:
            if call == "wait":
                tasks.start_soon(_later, server)
            else:
                server.send(signal.SIGSTOP)
            try:
                with anyio.fail_after(5), pytest.raises(BusUnavailable, match=r"within 0\.3 s"):
                    await calls[call]()
            finally:
                server.send(signal.SIGCONT)
        await bus_works(bus)


async def _later(server: RedisServer) -> None:
    await anyio.sleep(0.2)
    server.send(signal.SIGSTOP)


async def test_a_server_that_was_killed_delivers_again_what_was_not_acknowledged(server: RedisServer) -> None:
    """Messages, groups, and what is pending are on its disk."""
    async with open_bus(url(server.port)) as bus:
        sent = [await bus.publish("t", {"n": number}) for number in range(3)]
        read = await bus.read("t", "g", "1", limit=2)
        await bus.ack("t", "g", read[0].id)
        server.kill()
        with pytest.raises(BusUnavailable):
            await bus.publish("t", {"n": 9})
        server.start()
        age(server, "t", "g", 61)
        again = await bus.read("t", "g", "1", limit=9)
        assert [message.id for message in again] == sent[1:]


async def test_a_server_that_lost_everything_starts_anew(server: RedisServer) -> None:
    """The group is made again, and gets all that comes: that silence is no message does not make it final."""
    async with open_bus(url(server.port)) as bus:
        await bus.publish("t", {"n": 1})
        [old] = await bus.read("t", "g", "1")
        server.say("FLUSHALL")
        assert not await bus.ack("t", "g", old.id)
        await bus.dead_letter("g", old, "malformed")
        assert await bus.read("t", "g", "1", wait_s=0) == []
        await bus.publish("t", {"n": 2})
        assert [message.fields["n"] for message in await bus.read("t", "g", "1")] == ["2"]


async def test_a_server_that_forgot_the_scripts_is_told_them_again(server: RedisServer) -> None:
    async with open_bus(url(server.port)) as bus:
        await bus.publish("t", {"n": 1})
        server.say("SCRIPT", "FLUSH")
        await bus.publish("t", {"n": 2})
        assert len(await bus.read("t", "g", "1", limit=9)) == 2


async def test_a_full_server_refuses_and_keeps_what_is_pending(server: RedisServer) -> None:
    """A dead letter that cannot be written leaves its message pending; acknowledging works."""
    async with open_bus(url(server.port)) as bus:
        for number in range(2):
            await bus.publish("t", {"n": number})
        [one, other] = await bus.read("t", "g", "1", limit=2)
        server.say("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BusUnavailable, match="memory is full"):
            await bus.publish("t", {"n": 2})
        with pytest.raises(BusUnavailable, match="memory is full"):
            await bus.dead_letter("g", one, "malformed")
        assert await bus.ack("t", "g", other.id)
        assert (await bus.depth("t", "g")).pending == 1


async def test_something_else_under_the_topics_name_is_refused(server: RedisServer) -> None:
    server.say("SET", "t", "text")
    async with open_bus(url(server.port)) as bus:
        for call in (
            lambda: bus.publish("t", {"n": 1}),
            lambda: bus.read("t", "g", "1", wait_s=0),
            lambda: bus.join_group("t", "g"),
            lambda: bus.ack("t", "g", "1-1"),
            lambda: bus.depth("t", "g"),
        ):
            with pytest.raises(BusUnavailable, match="something else is kept"):
                await call()
    assert server.say("GET", "t") == b"text"


# --- opening -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, {}, "maxmemory-policy noeviction"),
        ({"appendonly": "no"}, {"require": "process"}, "appendonly yes"),
        ({"appendfsync": "everysec"}, {"require": "power"}, "appendfsync always"),
        ({"replicaof": "127.0.0.1 1"}, {}, "replica"),
    ],
)
async def test_a_server_that_may_lose_what_is_relied_on_is_refused(
    tmp_path: Path, settings: dict[str, str], options: dict[str, str], message: str
) -> None:
    """With the setting that has to change."""
    with RedisServer(tmp_path, **settings) as server, pytest.raises(BusUnavailable, match=message):
        await open_bus(url(server.port, **options)).open()


async def test_a_server_without_a_disk_is_enough_where_nothing_is_required(tmp_path: Path) -> None:
    with RedisServer(tmp_path, appendonly="no", maxmemory_policy="volatile-lru") as server:
        async with open_bus(url(server.port)) as bus:
            await bus_works(bus)


async def test_a_password_is_in_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(tmp_path) as server:
        server.say("CONFIG", "SET", "requirepass", "right-canary")
        right = open_bus(f"redis://:right-canary@127.0.0.1:{server.port}/0")
        async with right as bus:
            await bus_works(bus)
            told = repr(bus) + str(bus)
        wrong = open_bus(f"redis://:wrong-canary@127.0.0.1:{server.port}/0")
        with pytest.raises(BusUnavailable, match="password") as caught:
            await wrong.open()
        told += repr(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)
        assert "canary" not in told + caplog.text


async def test_a_server_that_is_not_there_is_unavailable(server: RedisServer) -> None:
    server.kill()
    with pytest.raises(BusUnavailable, match=r"cannot be reached \(ConnectionRefusedError\)"):
        await open_bus(url(server.port)).open()


async def test_a_bus_that_is_not_open_says_so(server: RedisServer) -> None:
    """Before, after, and for those who still wait when it is closed; it can be opened again."""
    bus = open_bus(url(server.port))
    with pytest.raises(BusUnavailable, match="not open"):
        await bus.publish("t", {"n": 1})
    await bus.open()
    await bus.open()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_killed_while_waiting, bus)
        await anyio.sleep(0.1)
        await bus.aclose()
    await bus.aclose()
    with pytest.raises(BusUnavailable, match="not open"):
        await bus.read("t", "g", "1")
    async with bus:
        await bus_works(bus)
    assert server.say("CLIENT", "LIST").count(b"\n") <= 1


async def test_cancelled_waits_leave_no_connection_behind(server: RedisServer) -> None:
    """At any point of the call."""
    async with open_bus(url(server.port)) as bus:
        for number in range(30):
            with anyio.move_on_after(number * 0.000_2):
                await bus.read("t", "g", str(number), wait_s=100)
        await bus_works(bus)
        await anyio.sleep(0.05)
        assert server.say("CLIENT", "LIST").count(b" name=") <= 3


async def test_a_bus_belongs_to_the_event_loop_that_opened_it(server: RedisServer) -> None:
    bus = open_bus(url(server.port))
    async with bus:
        message = await anyio.to_thread.run_sync(_used_elsewhere, bus)
        assert "another event loop" in message


def _used_elsewhere(bus) -> str:
    async def use() -> str:
        with pytest.raises(BusUnavailable) as caught:
            await bus.publish("t", {"n": 1})
        return str(caught.value)

    return anyio.run(use)


# --- URLs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "redis",
        "kafka://host",
        "memory://name",
        "memory://?prefix=x",
        "memory://?messages_max=-1",
        "redis://",
        "redis://host/x",
        "redis://host:99999",
        "redis://host?unknown=1",
        "redis://host?prefix=a b",
        "redis://host?messages_max=0",
        "redis://host?messages_max=1e3",
        "redis://host?redeliver_after_s=0",
        "redis://host?redeliver_after_s=nan",
        "redis://host?require=always",
        "redis://host?timeout_s=inf",
        "redis://host?ca_file=/x",
        "redis://host?prefix=a&prefix=b",
        "redis://host#x",
        "redis://ho\nst",
        "redis://" + "x" * 5_000,
    ],
)
def test_a_url_that_names_no_bus_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidInput):
        open_bus(wrong)


def test_a_bus_across_a_network_in_clear_text_warns() -> None:
    with pytest.warns(UserWarning, match="rediss://") as caught:
        open_bus("redis://example.com/0")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("scheme", ["redis", "rediss", "valkey", "valkeys"])
def test_a_bus_whose_client_is_missing_names_its_extra(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coredis", None)
    ours = ("coredis.", "execsafe._redis", "execsafe.buses.redis", "execsafe.buses._redis")
    for name in [name for name in sys.modules if name.startswith(ours)]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InvalidInput, match=r"needs coredis.*execsafe\[redis\]") as caught:
        open_bus(f"{scheme}://user:hunter2@host/0")
    assert "hunter2" not in str(caught.value)


async def test_a_bus_in_memory_is_picked_by_its_url_too() -> None:
    async with open_bus("memory://?messages_max=1&redeliver_after_s=5&topics_max=2") as bus:
        await bus.publish("t", {"n": 1})
        await bus.publish("t", {"n": 2})
        assert (await bus.depth("t", "g")).kept == 1


# --- found by review -----------------------------------------------------------------------------------------


@pytest.mark.guarantee(14)
async def test_g14_readers_keep_a_topic_at_its_bound_to_which_only_others_write(server: RedisServer) -> None:
    """Who appends with XADD and without MAXLEN would fill the server."""
    async with open_bus(url(server.port, messages_max=20)) as bus:
        await bus.join_group("t", "slow")
        for number in range(600):
            server.say("XADD", "t", "*", "n", str(number))
            [message] = await bus.read("t", "g", "1", wait_s=0)
            await bus.ack("t", "g", message.id)
        assert server_length(server, "t") == 600, "another group needs them"
        for message in await bus.read("t", "slow", "1", limit=600, wait_s=0):
            await bus.ack("t", "slow", message.id)
        await bus.read("t", "g", "1", wait_s=0)
        assert server_length(server, "t") <= 20


async def test_messages_wider_than_any_of_ours_can_be_put_aside(server: RedisServer) -> None:
    """With as many of their fields as a dead letter holds, and a word about the others."""
    words = [word for number in range(9_000) for word in (f"name-{number}", "x")]
    server.say("XADD", "t", "*", *words)
    async with open_bus(url(server.port)) as bus:
        [message] = await bus.read("t", "g", "1")
        assert len(message.fields) == 9_000
        await bus.dead_letter("g", message, "malformed")
        [letter] = await bus.read("t:dead", "ops", "1")
        assert letter.fields["dead_letter_left_out"] == "8000 fields"
        assert (await bus.depth("t", "g")).pending == 0


@pytest.mark.parametrize("number", ["10000000000000000000-1", "5-18446744073709551615", f"{2**64 - 1}-{2**64 - 1}"])
async def test_ids_at_the_end_of_all_numbers_are_ids(server: RedisServer, number: str) -> None:
    server.say("XADD", "t", number, "n", "1")
    async with open_bus(url(server.port, messages_max=1)) as bus:
        [message] = await bus.read("t", "g", "1")
        assert message.id == number
        assert await bus.depth("t", "g") == BusDepth(waiting=0, pending=1, kept=1)
        assert await bus.ack("t", "g", number)
        assert not await bus.ack("t", "g", f"{2**64}-1")
        assert await bus.read("t", "g", "1", wait_s=0) == []


@pytest.mark.parametrize("call", ["publish", "read"])
async def test_a_server_that_became_a_replica_is_left_for_the_one_behind_its_address(
    server: RedisServer, proxy: TcpProxy, tmp_path_factory: pytest.TempPathFactory, call: str
) -> None:
    """Nobody cuts the connection: a service address keeps those that are there."""
    with RedisServer(tmp_path_factory.mktemp("other"), appendfsync="always") as other:
        async with open_bus(url(proxy.port)) as bus:
            await bus.publish("t", {"n": 1})
            proxy.target = other.port
            server.say("REPLICAOF", "127.0.0.1", str(other.port))
            calls = {"publish": lambda: bus.publish("t", {"n": 2}), "read": lambda: bus.read("t", "g", "1", wait_s=0)}
            with pytest.raises(BusUnavailable, match="replica"):
                await calls[call]()
            await bus_works(bus)
            assert other.say("EXISTS", "works") == b":1"


async def test_opening_at_the_same_time_and_closing_while_connecting_leaves_nothing(server: RedisServer) -> None:
    async def read(bus) -> None:
        with contextlib.suppress(BusUnavailable):
            await bus.read("t", "g", "1", wait_s=100)

    for number in range(20):
        bus = open_bus(url(server.port))
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(bus.open)
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(read, bus)
            await anyio.sleep(number * 0.000_3)
            await bus.aclose()
    await anyio.sleep(0.1)
    assert server.say("CLIENT", "LIST").count(b" name=") == 1  # this one


async def test_who_opens_it_while_another_one_gives_up_is_told_or_has_it(server: RedisServer) -> None:
    """Never a bus that seems open and is not."""
    for number in range(30):
        bus = open_bus(url(server.port))
        told: list[str] = []

        async def open_and_use(bus=bus, told=told) -> None:
            try:
                await bus.open()
            except BusUnavailable:
                told.append("not open")
            else:
                told.append(await bus.publish("t", {"n": 1}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_and_use)
            with anyio.move_on_after(number * 0.000_3):
                await bus.open()
        assert len(told) == 1
        await bus.aclose()


async def test_the_keys_of_a_store_are_no_place_for_topics(server: RedisServer) -> None:
    """Its outbox is a stream, and called events."""
    with pytest.raises(InvalidInput, match=r"write \{execsafe\}:bus: instead"):
        open_bus(url(server.port, prefix="{execsafe}:"))
    async with open_bus(url(server.port, prefix="{execsafe}:bus:")) as bus:
        await bus_works(bus)


async def test_wrong_types_are_refused_as_such(server: RedisServer) -> None:
    wrong: list = [None, 1, b"t", ["t"]]
    async with open_bus(url(server.port)) as bus, open_bus("memory://") as memory:
        for one in (bus, memory):
            for value in wrong:
                with pytest.raises(InvalidInput):
                    open_bus(value)
                with pytest.raises(InvalidInput):
                    await one.publish(value, {"n": 1})
                with pytest.raises(InvalidInput):
                    await one.publish("t", value)
                with pytest.raises(InvalidInput):
                    await one.ack(value, "g", "1-1")
                with pytest.raises(InvalidInput):
                    await one.depth("t", value)
                assert not await one.ack("t", "g", value)
            assert len(await one.read("t", "g", "1", limit=2**70, wait_s=0)) == 0


@pytest.mark.guarantee(16)
def test_g16_a_url_that_cannot_be_read_is_not_repeated_anywhere() -> None:
    with pytest.raises(InvalidInput) as caught:
        open_bus("redis://user:canary-4711:x@host:canary-4711/0")
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert "canary" not in "".join(map(repr, chain))
