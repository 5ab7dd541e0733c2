"""A whole guarded submit: check → claim → journal → send → classify → record, without a network.

The venue is a stub that answers at once, so that what remains is what the guarantees cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import sqlite3
import sys
import tracemalloc
from decimal import Decimal

import attrs
import pytest

import execsafe
from execsafe.core.ids import client_order_id
from execsafe.core.transitions import new_record
from execsafe.intents import IntentRegistry
from execsafe.model.intent import ErrorFacts
from execsafe.stores.memory import MemoryStore

GRID = execsafe.Instrument(symbol="BTC/USDT", step_size="0.001", tick_size="0.01", min_notional="5")
MANY = 64


class Instant(execsafe.ExchangeAdapter):
    """Accepts and fills everything."""

    profile = execsafe.VenueProfile(
        name="instant",
        expiry="absolute",
        definite_ack=True,
        lookups=(execsafe.LookUp(view="client_id", method="fetch_order"),),
    )

    async def prepare(self, symbol):
        return GRID

    def prepared(self, symbol):
        return GRID

    def check(self, intent):
        return None

    def client_order_id(self, intent, generation):
        rule = self.profile.client_order_id
        return client_order_id(account=intent.account, key=intent.key, leg=intent.leg, generation=generation, rule=rule)

    async def create_order(self, request):
        return execsafe.OrderReport(
            symbol=request.symbol,
            status=execsafe.OrderStatus.CLOSED,
            client_order_id=request.client_order_id,
            venue_order_id=request.client_order_id,
            filled_quantity=request.quantity,
        )

    async def cancel_order(self, order):
        return None

    async def look_up(self, lookup, order):
        return None

    def judge(self, error, operation):
        return execsafe.Judged(meaning=execsafe.Meaning.UNKNOWN, facts=ErrorFacts(kind=type(error).__name__))


_numbers = itertools.count()


def intents(count):
    return [
        execsafe.Intent(
            key=f"k{next(_numbers)}", symbol="BTC/USDT", side="buy", quantity="0.015", limit_price="50000.07"
        )
        for _ in range(count)
    ]


@pytest.fixture
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


def gateway(store=None):
    store = MemoryStore() if store is None else store
    asyncio.run(store.open())
    return execsafe.OrderGateway(Instant(), IntentRegistry(store))


async def one_after_another(door, todo):
    for intent in todo:
        await door.submit(intent)


def test_submit_in_memory(beside, ratio, loop):
    """Beside a bare awaited call under a lock."""
    door = gateway()
    lock = asyncio.Lock()

    async def noop():
        return None

    async def floor(todo):
        for _ in todo:
            async with lock:
                await noop()

    def ours(todo):
        loop.run_until_complete(one_after_another(door, todo))

    def bare(todo):
        loop.run_until_complete(floor(todo))

    mine, theirs = beside(ours, bare, per=200, rounds=15, prepare=(lambda: intents(200), lambda: intents(200)))
    ratio("guarded submit in memory", mine, theirs, floor="asyncio.Lock + no-op", reach=200)


def test_submit_in_memory_beside_ccxt(beside, ratio, loop):
    """Beside what ccxt itself computes for an order: build, sign, parse, with the network stubbed out."""
    import ccxt.async_support as ccxt

    exchange = ccxt.binance({"apiKey": "k", "secret": "s", "enableRateLimit": False})
    market = {"id": "BTCUSDT", "symbol": "BTC/USDT", "base": "BTC", "quote": "USDT", "baseId": "BTC", "quoteId": "USDT"}
    market |= {
        "type": "spot",
        "spot": True,
        "swap": False,
        "contract": False,
        "linear": None,
        "inverse": None,
        "active": True,
        "info": {"orderTypes": ["LIMIT"]},
    }
    market |= {"precision": {"amount": 0.001, "price": 0.01}, "limits": {}}
    exchange.set_markets([market])
    body = '{"symbol":"BTCUSDT","orderId":28,"clientOrderId":"x","transactTime":1507725176595,"price":"50000.07",'
    body += '"origQty":"0.015","executedQty":"0.015","status":"FILLED","type":"LIMIT","side":"BUY","fills":[]}'

    async def fetch(url, method="GET", headers=None, body_=None):
        return exchange.parse_json(body)

    exchange.fetch = fetch
    door = gateway()

    async def floor(todo):
        for _ in todo:
            await exchange.create_order("BTC/USDT", "limit", "buy", 0.015, 50000.07)

    def ours(todo):
        loop.run_until_complete(one_after_another(door, todo))

    def theirs(todo):
        loop.run_until_complete(floor(todo))

    mine, ccxt_ns = beside(ours, theirs, per=100, rounds=15, prepare=(lambda: intents(100), lambda: intents(100)))
    floor_is = "ccxt create_order, network stubbed"
    # Of a quarter, the time-out's cancel scope and what the stub itself computes would take two fifths.
    ratio("guarded submit in memory", mine, ccxt_ns, floor=floor_is, reach=0.75, aim=0.25)
    loop.run_until_complete(exchange.close())


def test_replay_in_memory(beside, ratio, loop):
    """A repeat of a known key, beside its first time."""
    door = gateway()
    known = intents(200)
    loop.run_until_complete(one_after_another(door, known))

    def again(todo):
        loop.run_until_complete(one_after_another(door, todo))

    mine, first = beside(again, again, per=200, rounds=15, prepare=(lambda: known, lambda: intents(200)))
    ratio("repeat of a known key", mine, first, floor="its first time", reach=0.1)


@pytest.mark.parametrize("reduce_only", [False, True], ids=["entry", "exit"])
def test_memory_of_what_a_registry_has_met(benchmark, ratio, loop, reduce_only):
    """What stays in memory of an ended intent, so that no exit goes out twice while the journal fails."""
    registry = IntentRegistry(MemoryStore())
    times = 20_000 if benchmark.enabled else 100
    known = [attrs.evolve(each, reduce_only=reduce_only) for each in intents(times)]
    now_ms = registry.clock.now_ms()
    begun = [new_record(each, quantity=each.quantity, limit_price=None, now_ms=now_ms) for each in known]
    ended = [attrs.evolve(each, ended_at_ms=now_ms) for each in begun]
    identities = sum(sys.getsizeof(each.identity) for each in known) / times

    def grown():
        gc.collect()
        tracemalloc.start()
        for record in ended:
            registry._remember(record)
        size = tracemalloc.get_traced_memory()[0] / times
        tracemalloc.stop()
        return size

    # The text of the identity goes with the record where the store keeps that in memory; elsewhere it is counted here.
    name = f"remembered {'exit' if reduce_only else 'entry'}, bytes"
    ratio(name, grown() + identities, 320, floor="320 bytes", reach=1.0)
    benchmark(lambda: None)


def raw_commits(database, rows, groups):
    """*groups* transactions of *rows* rows each, with the pragmas of the store."""
    mode = "WAL" if sqlite3.sqlite_version_info >= (3, 51, 3) else "PERSIST"
    database.execute(f"PRAGMA journal_mode={mode}")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS t (k TEXT PRIMARY KEY, v BLOB) WITHOUT ROWID")
    number = itertools.count(database.execute("SELECT count(*) FROM t").fetchone()[0])

    def work():
        for _ in range(groups):
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT INTO t VALUES (?, ?)", [(f"k{next(number)}", b"x" * 700) for _ in range(rows)])
            database.execute("COMMIT")

    return work


@pytest.mark.parametrize("callers", [1, MANY])
def test_durable_submit(beside, ratio, loop, tmp_path, callers):
    """Per durable commit (a submit has two), beside raw commits of as many rows as there are callers."""
    (tmp_path / "journal").mkdir(mode=0o700)
    store = execsafe.open_store(f"sqlite:///{tmp_path}/journal/orders.db")
    door = gateway(store)
    groups = 20 if callers == 1 else 2

    async def together(todo):
        await asyncio.gather(*(one_after_another(door, todo[i::callers]) for i in range(callers)))

    def ours(todo):
        loop.run_until_complete(together(todo))

    count = callers * groups
    with contextlib.closing(sqlite3.connect(tmp_path / "raw.db", isolation_level=None)) as database:
        raw = raw_commits(database, callers, 2 * groups)
        prepare = (lambda: intents(count), lambda: None)
        mine, floor = beside(ours, lambda _: raw(), per=2 * count, rounds=6, prepare=prepare)
    name = f"durable commit of a submit, {callers} caller{'s' if callers > 1 else ''}"
    # A commit of ours is a record, its alias, its events and a lease, encoded and checked; the floor is one row.
    reach, aim = (3.0, 1.4) if callers == 1 else (18.0, 2.0)
    ratio(name, mine, floor, floor=f"raw SQLite commit of {callers} rows, per row", reach=reach, aim=aim)
    loop.run_until_complete(store.aclose())


def test_the_stub_does_what_a_venue_does(loop):
    """Guards the benchmark: every submit is accepted and filled."""
    outcome = loop.run_until_complete(gateway().submit(intents(1)[0]))
    assert isinstance(outcome, execsafe.Accepted)
    assert outcome.record.filled_quantity == Decimal("0.015")
