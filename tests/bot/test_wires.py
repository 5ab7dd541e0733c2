"""``[bus]``: signals of other programs through a real Redis server and the real ccxt client, and events back."""

import contextlib
import logging
import os
import signal
import sqlite3
import time

import anyio
import pytest

import execsafe
from execsafe.bot import config, doctor, live, rehearsal
from execsafe.core.payloads import read_envelope
from execsafe.stores.sqlite import SqliteStore
from execsafe.testing.http import VenueServer
from execsafe.testing.venue import SimVenue, linear
from servers import RedisServer

SYMBOL = "BTC/USDT:USDT"
FILE = """
[venue]
exchange = "binanceusdm"
[strategy]
name = "{strategy}"
symbols = ["BTC/USDT:USDT"]
[run]
store = "sqlite:///{folder}/bot.db"
[bus]
url = "{url}"
symbols = {{BTCUSDT = "BTC/USDT:USDT"}}
events = "events"
"""


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"  # ccxt's


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def load(tmp_path, redis):
    def load(strategy="signals", **changes):
        text = FILE.format(folder=tmp_path, url=redis.url("bot:", redeliver_after_s=2), strategy=strategy)
        for old, new in changes.values():
            text = text.replace(old, new)
        path = tmp_path / "bot.toml"
        path.write_text(text)
        return config.load(path, {})

    return load


def signal_of(number, *, side="LONG", symbol="BTCUSDT", at_ms=None):
    at_ms = round(time.time() * 1000) if at_ms is None else at_ms
    facts = {"signal_id": f"s-{number}", "symbol": symbol, "side": side, "timestamp": at_ms, "source": "elsewhere"}
    return [str(word) for pair in facts.items() for word in pair]


class Playing:
    """A bot at a simulated venue, for as long as the block lasts; then it is told to stop."""

    def __init__(self, settings, *, rate_limit=False, listeners=()):
        self.settings = settings
        self.rate_limit = rate_limit
        self.listeners = listeners
        self.venue = SimVenue([linear("BTC")], prices={SYMBOL: 50_000})
        self.result = None

    async def __aenter__(self):
        self.stack = contextlib.AsyncExitStack()
        server = await self.stack.enter_async_context(VenueServer({"binanceusdm": self.venue}))
        exchange = server.exchange("binanceusdm")
        exchange.enableRateLimit = self.rate_limit
        self.tasks = await self.stack.enter_async_context(anyio.create_task_group())
        self.tasks.start_soon(self._run, exchange)
        return self

    async def _run(self, exchange):
        self.result = await live.run(self.settings, exchange=exchange, listeners=self.listeners)

    async def __aexit__(self, *error):
        if error[0] is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return await self.stack.__aexit__(*error)

    def held(self):
        return self.venue.ledger.position(SYMBOL)

    def entries(self):
        return [order for order in self.venue.ledger.accepted() if order.trigger_price is None]

    def has_stop(self):
        return any(order.is_stop for order in self.venue.ledger.accepted())


async def until(fact, what, within_s=20):
    try:
        with anyio.fail_after(within_s):
            while not fact():
                await anyio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what}") from None


def is_done(redis, *, of):
    """Whether the group is done with everything of *of* messages."""
    said = redis.say("XINFO", "GROUPS", "bot:trade.intent")  # of its only group
    return (
        b"pending\n:0\n" in said and said.endswith(b"lag\n:0") and redis.say("XLEN", "bot:trade.intent") == b":%d" % of
    )


@pytest.mark.anyio
@pytest.mark.row("S2-01", "S1-45")
@pytest.mark.skipif(os.name == "nt", reason="signals")
async def test_a_signal_that_comes_five_times_opens_one_protected_position_and_events_go_out(redis, load):
    """Appended by a program that is not Python, and knows nothing of execsafe."""
    redis.say("XADD", "bot:trade.intent", "*", *signal_of(0, at_ms=1_600_000_000_000))  # of years ago
    async with Playing(load()) as bot:
        once = signal_of(1)
        for _ in range(5):
            redis.say("XADD", "bot:trade.intent", "*", *once)
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(2, symbol="DOGEUSDT"))
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(3, side="BUY"))
        await until(lambda: bot.held() > 0, "a position")
        await until(bot.has_stop, "its stop")
        await until(lambda: is_done(redis, of=8), "all is done with")
        assert redis.say("XLEN", "bot:trade.intent:dead") == b":2"
        assert len(bot.entries()) == 1
    assert [position.symbol for position in bot.result.leftover.positions] == [SYMBOL]
    assert bot.result.leftover.in_doubt == ()
    async with execsafe.open_bus(redis.url("bot:")) as bus:
        told = [read_envelope(message.fields) for message in await bus.read("events", "test", "1", limit=9_999)]
    assert {each.event_type for each in told} >= {"intent_recorded", "order_fill", "position_opened", "signal_handled"}
    numbers = [each.payload.thaw()["seq"] for each in told]
    assert numbers == sorted(set(numbers)), "each event once, in order"


@pytest.mark.anyio
@pytest.mark.guarantee(17)
@pytest.mark.row("S2-12", "S2-20", "S2-23")
@pytest.mark.skipif(os.name == "nt", reason="signals")
async def test_g17_a_flat_signal_closes_the_position_and_what_was_said_before_it_opens_none(redis, load):
    """Its levels go out when it has opened, and not for what was never opened."""
    before_ms = round(time.time() * 1000) - 10_000
    async with Playing(load(change=('events = "events"', 'levels = "levels"'))) as bot:
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(1, at_ms=before_ms), "trace_id", "t-1", "regime", "calm")
        await until(bot.has_stop, "a protected position")
        await until(lambda: is_done(redis, of=1), "the entry is done with")
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(2, side="FLAT"))
        await until(lambda: bot.held() == 0, "it is closed")
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(3, at_ms=before_ms + 1))
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(4, side="FLAT", at_ms=before_ms - 1))
        await until(lambda: is_done(redis, of=4), "all is done with")
        assert bot.held() == 0
    assert bot.result.leftover.is_nothing
    assert bot.venue.open_orders(SYMBOL) == []
    [entry] = [order for order in bot.entries() if order.side is execsafe.Side.BUY]
    async with execsafe.open_bus(redis.url("bot:")) as bus:
        [message] = await bus.read("levels", "test", "1", limit=9)
    levels = read_envelope(message.fields)
    assert (levels.event_type, levels.unit, levels.trace_id) == ("adaptive_levels", "fraction", "t-1")
    payload = levels.payload.thaw()
    assert (payload["symbol"], payload["order_id"]) == (SYMBOL, entry.venue_order_id)
    assert payload["ilf_metadata"]["regime"] == "calm"
    assert set(payload["adaptive_levels"]) == {"tp1", "tp2", "tp3", "sl", "LSF", "harvest_scheme", "avg_pnl_last_20"}


@pytest.mark.anyio
@pytest.mark.row("S2-12")
@pytest.mark.skipif(os.name == "nt", reason="signals")
async def test_where_flat_closes_nothing_it_is_dropped(redis, load):
    async with Playing(load(change=('events = "events"', "flat_closes = false"))) as bot:
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(1))
        await until(bot.has_stop, "a protected position")
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(2, side="FLAT"))
        await until(lambda: is_done(redis, of=2), "both are done with")
        assert bot.held() > 0


@pytest.mark.anyio
@pytest.mark.guarantee(12)
@pytest.mark.skipif(os.name == "nt", reason="signals")
async def test_g12_a_bus_that_goes_away_and_comes_back_ends_nothing(redis, load, caplog):
    """What is held is looked after without it; what comes afterwards is executed."""
    redis.kill()
    with caplog.at_level(logging.WARNING):
        async with Playing(load()) as bot:
            await until(lambda: "reaching the bus failed" in caplog.text, "a warning")
            redis.start()
            redis.say("XADD", "bot:trade.intent", "*", *signal_of(1))
            await until(lambda: bot.held() > 0, "a position")
            redis.kill()
            await until(lambda: "could not read" in caplog.text, "a warning")
            redis.start()
            redis.say("XADD", "bot:trade.intent", "*", *signal_of(2))
            await until(lambda: is_done(redis, of=2), "the second signal is done with")
    assert bot.result.leftover.in_doubt == ()


@pytest.mark.anyio
@pytest.mark.guarantee(10)
@pytest.mark.row("S3-07")
@pytest.mark.skipif(os.name == "nt", reason="signals")
async def test_g10_an_ordinary_entry_is_no_alarm_although_the_client_holds_its_requests_back(redis, load):
    """ccxt's rate limit alone takes half a second for an entry, its stop and the looks at both."""
    events = []
    async with Playing(load(), rate_limit=True, listeners=[events.append]) as bot:
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(1))
        await until(bot.has_stop, "a protected position")
        await until(lambda: is_done(redis, of=1), "the entry is done with")
    kinds = {event.type for event in events}
    assert execsafe.EventType.STOP_PLACED in kinds
    assert not kinds & {execsafe.EventType.POSITION_UNPROTECTED, execsafe.EventType.BREAKER_TRIPPED}


class FullDisk:
    """Stores of which no commit reaches the disk while it is full."""

    def __init__(self):
        self.is_full = False
        self.opened = 0

    def store_of(self, settings):
        return SqliteStore(settings.run.store.removeprefix("sqlite:///"), _connect=self._connect)

    def _connect(self, path, busy_timeout_s):
        disk = self
        disk.opened += 1

        class Connection(sqlite3.Connection):
            def execute(self, sql, *parameters):
                if sql == "COMMIT" and disk.is_full:
                    error = sqlite3.OperationalError("database or disk is full")
                    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
                    raise error
                return super().execute(sql, *parameters)

        return sqlite3.connect(
            path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, factory=Connection
        )


@pytest.mark.anyio
@pytest.mark.guarantee(12, 13)
@pytest.mark.skipif(os.name == "nt", reason="signals")
async def test_g12_a_bot_whose_disk_was_full_goes_on_with_what_it_held(redis, load, monkeypatch, caplog):
    """After a durable write that failed half way nothing works before the file is opened anew: the bot does that."""
    disk = FullDisk()
    monkeypatch.setattr(live, "store_of", disk.store_of)
    async with Playing(load()) as bot:
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(1))
        await until(lambda: is_done(redis, of=1), "a position")
        opened = disk.opened
        disk.is_full = True
        await until(lambda: disk.opened > opened, "it is opened anew, in vain", within_s=30)
        assert "nothing is looked after" in caplog.text
        disk.is_full = False
        redis.say("XADD", "bot:trade.intent", "*", *signal_of(2, side="FLAT"))
        await until(lambda: bot.held() == 0, "the position is known, and closed", within_s=60)
    assert bot.result.leftover.is_nothing
    assert len(bot.entries()) == 2


@pytest.mark.anyio
@pytest.mark.skipif(os.name == "nt", reason="signals")
async def test_a_start_whose_disk_is_full_says_so_and_ends(load, monkeypatch):
    disk = FullDisk()
    disk.is_full = True
    monkeypatch.setattr(live, "store_of", disk.store_of)
    async with VenueServer({"binanceusdm": SimVenue([linear("BTC")], prices={SYMBOL: 50_000})}) as server:
        with pytest.raises(execsafe.StoreError):
            await live.run(load(), exchange=server.exchange("binanceusdm"))


@pytest.mark.parametrize(
    ("strategy", "change", "message"),
    [
        ("signals", ('url = "', '# "'), "give \\[bus\\] a url"),
        ("signals", ("[bus]", '[bus]\nsignals = ""'), "give \\[bus\\] a url"),
        ("signals", ('url = "redis://', 'url = "kafka://'), "no bus for"),
        ("signals", ('url = "redis://', 'url = "memory://" #'), "reaches no other program"),
        ("pairs", ("symbols = [", 'symbols = ["ETH/USDT:USDT", '), 'signals = ""'),
    ],
)
def test_a_bus_that_cannot_work_is_refused_before_anything_else(strategy, change, message, load):
    settings = load(strategy, change=change)
    with pytest.raises(execsafe.InvalidInput, match=message):
        live.check(settings)
    live.check(settings, decides=False)  # what an earlier run left can be settled all the same


def test_names_of_symbols_that_are_not_traded_are_refused(load):
    with pytest.raises(execsafe.InvalidInput, match=r"BTCUSDT must be one of the strategy's symbols .BTC/USDT:USDT."):
        load(change=('{BTCUSDT = "BTC/USDT:USDT"}', '{BTCUSDT = "DOGE/USDT"}'))


@pytest.mark.guarantee(16)
@pytest.mark.parametrize(
    "url", ['redis://u:canary"q@host/0', "redis:/u:canary@host", "canary-4711", "redis://h?canary"]
)
def test_g16_whatever_the_environment_gives_for_a_url_is_not_shown(url, tmp_path):
    path = tmp_path / "bot.toml"
    path.write_text('[venue]\nexchange = "bybit"\n[strategy]\nname = "waves"\nsymbols = ["BTC/USDT:USDT"]\n')
    found = config.load(path, {"EXECSAFE_BUS": url, "EXECSAFE_STORE": url})
    assert "canary" not in "\n".join(config.describe(found)) + repr(found)


@pytest.mark.parametrize(
    "line",
    [
        'group = "a\\nb"',
        'signals = "a\\tb"',
        'events = "a\\nb"',
        'events = "x"\nsignals = "x"',
        'levels = "trade.intent"',
        'events = "x"\nlevels = "x"',
    ],
)
def test_topics_and_groups_that_cannot_work_are_refused(line, load):
    with pytest.raises(execsafe.InvalidInput):
        load(change=('events = "events"', line))


def test_a_file_that_holds_a_key_may_be_named(tmp_path):
    path = tmp_path / "bot.toml"
    url = "postgresql://bob@localhost/db?sslkey=/etc/bot.key&sslcert=/etc/bot.crt"
    least = '[venue]\nexchange = "bybit"\n[strategy]\nname = "waves"\nsymbols = ["BTC/USDT:USDT"]\n'
    path.write_text(f'{least}[run]\nstore = "{url}"\n')
    assert config.load(path, {}).run.store == url


def test_each_bot_has_a_group_of_its_own_unless_one_is_given(load):
    assert load().group == "execsafe:binanceusdm:default"
    assert load(change=('events = "events"', 'group = "mine"')).group == "mine"


@pytest.mark.anyio
async def test_a_rehearsal_without_signals_is_refused(load):
    with pytest.raises(execsafe.InvalidInput, match="no signals from outside"):
        await rehearsal.rehearse(load(), rehearsal.RehearsalPolicy(candles=1))


@pytest.mark.anyio
async def test_the_doctor_looks_at_the_bus(redis, load):
    redis.say("XADD", "bot:trade.intent", "*", *signal_of(1))
    settings = load()
    async with VenueServer() as server:
        found = await doctor.examine(settings, exchange=server.exchange("binanceusdm"))
        says = {finding.what: finding.says for finding in found}
        assert says["bus"] == "it answers; 1 signals wait, 0 are under way"
        redis.kill()
        found = await doctor.examine(settings, exchange=server.exchange("binanceusdm"))
    async with VenueServer() as server:
        without = load(change=('url = "', '# "'))
        found += await doctor.examine(without, exchange=server.exchange("binanceusdm"))
    assert any("give [bus] a url" in finding.says and finding.is_fine is False for finding in found)
    [bus] = [finding for finding in found if finding.what == "bus"]
    assert bus.is_fine is False
    assert "cannot be reached" in bus.says


@pytest.mark.guarantee(16)
@pytest.mark.row("S2-42")
@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("store", "postgresql://bob:canary-4711@localhost/db"),
        ("store", "postgresql://localhost/db?password=canary-4711"),
        ("store", "postgresql://localhost/db?sslpassword=canary-4711"),
        ("url", "rediss://:canary-4711@localhost/0"),
        ("url", "rediss://user:canary/4711@localhost/0"),
        ("url", "rediss://user:canary#?4711@localhost/0"),
    ],
)
def test_g16_a_url_with_a_password_comes_from_the_environment_and_is_never_shown(name, url, tmp_path, capsys):
    table = "run" if name == "store" else "bus"
    least = '[venue]\nexchange = "binanceusdm"\n[strategy]\nname = "waves"\nsymbols = ["BTC/USDT:USDT"]\n'
    path = tmp_path / "bot.toml"
    path.write_text(f'{least}[{table}]\n{name} = "{url}"\n')
    with pytest.raises(execsafe.InvalidInput, match=rf"{name} holds a password.* EXECSAFE_") as caught:
        config.load(path, {})
    assert "canary" not in str(caught.value)
    path.write_text(least)
    variable = "EXECSAFE_STORE" if name == "store" else "EXECSAFE_BUS"
    (tmp_path / "secret").write_text(f"{url}\n")
    for environment in ({variable: url}, {f"{variable}_FILE": str(tmp_path / "secret")}):
        found = config.load(path, environment)
        assert url in {found.run.store, found.bus.url}
        assert "canary" not in "\n".join(config.describe(found)) + repr(found)
    assert capsys.readouterr().out == ""
