"""A Redis store that somebody else has touched: what does not fit is refused, and nothing is re-created."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from execsafe.errors import StoreCorrupt, StoreError, StoreVersionError, VersionConflict
from execsafe.stores import _redis_scripts as scripts
from execsafe.stores import open_store
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, acquire, an_event
from servers import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def store(server: RedisServer):
    """A store with something in each of its parts."""
    server.say("FLUSHDB")
    async with open_store(server.url()) as store:
        await store.commit(
            a_batch(
                a_put("a", number=1, aliases=("x", "y")),
                a_put("b", number=2, aliases=("z",)),
                a_put("c", is_open=False, ended_at_ms=1, aliases=("w",)),
                events=(an_event(0), an_event(1)),
            )
        )
        await acquire(store, ttl_ms=10**15)
        await store.set_cursor("consumer", 1)
        yield store


def key(name: str) -> str:
    return f"{{test}}:{name}"


def field(name: str) -> str:
    return f"{COLLECTION}\0{name}"


async def refused(server: RedisServer, store, error: type[StoreError] = StoreCorrupt, match: str = "") -> None:
    """By the store that is open, every call, and by one that is opened now; the server's content stays as it is."""
    before = server.content()
    for call in (store.find(COLLECTION, "a"), store.find(COLLECTION, "nothing"), store.commit(a_batch(a_put("new")))):
        with pytest.raises(error, match=match):
            await call
    with pytest.raises(error, match=match):
        await open_store(server.url()).open()
    assert server.content() == before


# --- parts of it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in scripts.KEY_NAMES if name != "meta"])
async def test_a_part_that_is_missing_is_noticed_by_every_call(server: RedisServer, store, name: str) -> None:
    """Evicted, expired or deleted: what is not found must not look as if it had never been stored."""
    assert server.say("DEL", key(name)) == b":1"
    await refused(server, store, match="removed from it or added")


@pytest.mark.parametrize("name", scripts.KEY_NAMES)
async def test_a_part_of_another_type_is_refused(server: RedisServer, store, name: str) -> None:
    server.say("SET", key(name), "something else")
    await refused(server, store, match="something else is kept")


@pytest.mark.parametrize(
    "command",
    [
        ("HDEL", key("records"), field("a")),
        ("HDEL", key("aliases"), field("x")),
        ("HSET", key("aliases"), field("new"), "a"),
        ("ZREM", key("open"), field("a")),
        ("ZREM", key("ended"), f"{1:019} {field('c')}"),
        ("HDEL", key("leases"), "lease"),
        ("XDEL", key("events"), "1-0"),
        ("HSET", key("cursors"), "another", f"{1:019}"),
    ],
    ids=lambda command: f"{command[0]} {command[1]}",
)
async def test_one_entry_less_or_more_is_noticed(server: RedisServer, store, command: tuple[str, ...]) -> None:
    assert server.say(*command) == b":1"
    await refused(server, store, match="removed from it or added")


@pytest.mark.parametrize(
    ("name", "value"),
    [("fence", "many"), ("revision", "-1"), ("seq", "7"), ("forgotten", ""), ("schema", "0"), ("schema", "one")],
)
async def test_a_head_that_makes_no_sense_is_refused(server: RedisServer, store, name: str, value: str) -> None:
    server.say("HSET", key("meta"), name, value)
    await refused(server, store, match="damaged")


async def test_a_store_of_a_newer_release_is_refused(server: RedisServer, store) -> None:
    server.say("HSET", key("meta"), "schema", "2")
    await refused(server, store, StoreVersionError, match="newer execsafe")


async def test_a_store_without_its_head_is_not_made_again(server: RedisServer, store) -> None:
    """What is left under the prefix belongs to somebody, whoever that is."""
    server.say("DEL", key("meta"))
    with pytest.raises(StoreCorrupt, match="has lost the store"):
        await store.find(COLLECTION, "a")
    with pytest.raises(StoreCorrupt, match="its head is missing"):
        await open_store(server.url()).open()
    assert server.say("EXISTS", key("meta")) == b":0"


async def test_a_counter_that_went_back_is_noticed(server: RedisServer, store) -> None:
    """The fence by the leases that it gave, the count of events by the events: before anything is written."""
    server.say("HSET", key("meta"), "fence", f"{0:019}")
    with pytest.raises(StoreCorrupt, match="token that was never given"):
        await acquire(store)
    server.say("HSET", key("meta"), "fence", f"{1:019}", "seq", f"{1:019}")
    async with open_store(server.url()) as other:
        before = server.content()
        with pytest.raises(StoreCorrupt, match="count of events went back"):
            await other.commit(a_batch(a_put("new", aliases=("v",)), events=(an_event(2),)))
    assert server.content() == before


# --- rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"60000", b"60001"),
        (b"1 1  4 ", b"2 1  4 "),
        (b"1 1  4 ", b"1 0  4 "),
        (b"1 1  4 ", b"1 0 0000000000000000001 4 "),
        (b"1 1  4 ", b"1 1  5 "),
        (b"1 1  4 ", b"x"),
        (b"1 1  4 ", b"1 1  999999 "),
    ],
)
async def test_a_changed_row_is_noticed(server: RedisServer, store, old: bytes, new: bytes) -> None:
    """Its body, its version, its end: a decision is based on each of them."""
    row = server.say("HGET", key("records"), field("a"))
    assert old in row
    server.say("HSET", key("records"), field("a"), row.replace(old, new))
    with pytest.raises(StoreCorrupt, match="damaged"):
        await store.find(COLLECTION, "a")
    with pytest.raises(StoreCorrupt, match="damaged"):
        await store.scan_open(COLLECTION)
    assert (await store.find(COLLECTION, "b")) is not None


async def test_a_row_under_another_name_is_noticed(server: RedisServer, store) -> None:
    server.say("HSET", key("records"), field("a"), server.say("HGET", key("records"), field("b")))
    with pytest.raises(StoreCorrupt, match="checksum"):
        await store.find(COLLECTION, "a")


async def test_an_alias_that_leads_elsewhere_is_noticed(server: RedisServer, store) -> None:
    """Otherwise one order's reports would be another's."""
    server.say("HSET", key("aliases"), field("x"), "b")
    with pytest.raises(StoreCorrupt, match="leads to another record"):
        await store.find(COLLECTION, "x")
    server.say("HSET", key("aliases"), field("y"), "nobody")
    with pytest.raises(StoreCorrupt, match="does not lead to a record"):
        await store.find(COLLECTION, "y")


@pytest.mark.parametrize(("name", "value"), [("body", b"{}"), ("sum", b"00000000"), ("at", b"0" * 18 + b"9")])
async def test_a_changed_event_is_noticed(server: RedisServer, store, name: str, value: bytes) -> None:
    entry = server.say("XRANGE", key("events"), "2-0", "2-0").splitlines()
    fields = dict(zip(entry[1::2], entry[2::2], strict=True))
    assert name.encode() in fields
    fields[name.encode()] = value
    server.say("XDEL", key("events"), "2-0")
    server.say("XADD", key("events"), "3-0", *(word for pair in fields.items() for word in pair))
    assert len(await store.read_events(0, limit=1)) == 1
    with pytest.raises(StoreCorrupt, match="event 3 is damaged"):
        await store.read_events(0)


async def test_a_damaged_ended_record_is_not_purged_by_halves(server: RedisServer, store) -> None:
    row = server.say("HGET", key("records"), field("c"))
    server.say("HSET", key("records"), field("c"), row.replace(b"1 0 0", b"1 0 9"))
    with pytest.raises(StoreCorrupt, match="another end"):
        await store.purge(10)
    assert server.say("HEXISTS", key("records"), field("c")) == b":1"
    assert server.say("HEXISTS", key("aliases"), field("w")) == b":1"


async def test_an_index_that_leads_to_nothing_is_noticed(server: RedisServer, store) -> None:
    """Where another entry makes up for the one that is missing."""
    for name, other in (("c", "d"), ("a", "e")):
        server.say("HSET", key("records"), field(other), server.say("HGET", key("records"), field(name)))
        server.say("HDEL", key("records"), field(name))
    with pytest.raises(StoreCorrupt, match="an ended record is missing"):
        await store.purge(10)
    async with open_store(server.url()) as other:
        with pytest.raises(StoreCorrupt, match="an open record is missing"):
            await other.scan_open(COLLECTION)


# --- size ----------------------------------------------------------------------------------------------


async def test_a_purge_goes_in_slices_and_leaves_nothing_behind(server: RedisServer, store) -> None:
    """More than one slice of records with aliases, of leases and of events."""
    count = 1_200
    for start in range(0, count, 100):
        numbers = range(start, start + 100)
        puts = [a_put(f"k{n}", is_open=False, ended_at_ms=n, aliases=(f"a{n}", f"b{n}")) for n in numbers]
        await store.commit(a_batch(*puts, events=tuple(an_event(n, at_ms=n) for n in numbers)))
    for number in range(600):
        await acquire(store, name=f"lease-{number}", ttl_ms=10)
    await store.set_cursor("consumer", 10**6)
    assert await store.purge(1_000, limit=700) == 700
    assert await store.purge(1_000) == 301  # one of them was there before
    assert await store.find(COLLECTION, "a999") is None
    assert await store.find(COLLECTION, "a1000") is not None
    assert [e.event.at_ms for e in await store.read_events(0)] == list(range(1_000, count))
    assert server.say("HLEN", key("leases")) == b":1"
    assert server.say("ZCARD", key("expiring")) == b":1"
    assert server.say("HLEN", key("aliases")) == b":%d" % (3 + 2 * (count - 1_000))
    await store.commit(a_batch(a_put("k1", aliases=("a2",))))


async def test_a_store_that_wrote_long_ago_is_not_taken_for_one_that_lost_its_writes(
    server: RedisServer, store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last write is forgotten by a purge, and it goes on."""
    monkeypatch.setattr(scripts, "WITNESSED", 5)
    async with open_store(server.url()) as other:
        for number in range(10):
            await other.commit(a_batch(a_put(f"k{number}")))
        await other.purge(0)
        assert server.say("HLEN", key("witnesses")) == b":1"
        assert await store.find(COLLECTION, "k9") is not None
        await store.commit(a_batch(a_put("k10")))
        assert server.say("HLEN", key("witnesses")) == b":2"
        with pytest.raises(VersionConflict):
            await store.commit(a_batch(a_put("k10")))
