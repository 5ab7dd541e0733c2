"""``execsafe doctor`` and what there is before it: it only looks, and says what an earlier run left."""

import anyio
import pytest

import execsafe
from execsafe.bot import cli, config, doctor
from execsafe.safety import TradingState
from execsafe.testing.http import VenueServer
from postgres_server import postgres_dsn, postgres_server, postgres_url, schema_of  # noqa: F401 - fixtures
from servers import RedisServer

FILE = """
[venue]
exchange = "binance"
[strategy]
name = "waves"
symbols = ["BTC/USDT"]
"""


@pytest.fixture
def redis(tmp_path):
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def load(tmp_path):
    def load(store, more=""):
        path = tmp_path / "bot.toml"
        path.write_text(FILE + more)
        return config.load(path, {"EXECSAFE_STORE": store})

    return load


def examined(settings):
    async def main():
        async with VenueServer() as server:
            return await doctor.examine(settings, exchange=server.exchange("binance"))

    return {finding.what: finding for finding in anyio.run(main)}


def created(url):
    async def main():
        async with execsafe.open_store(url):
            pass

    anyio.run(main)


def restricted(url, act):
    async def main():
        async with execsafe.open_store(url) as store:
            monitor = execsafe.SafetyMonitor(store)
            await monitor.open()
            await act(monitor)
            await monitor.refresh()

    anyio.run(main)


# --- Looking changes nothing ---------------------------------------------------------------------------------------


def test_an_empty_redis_server_stays_empty_and_the_missing_store_is_said(load, redis):
    """With its bus, too. A misspelt prefix must not look like a healthy store."""
    settings = load(redis.url("journal"), f'[bus]\nurl = "{redis.url("bot:")}"\n')
    found = examined(settings)
    assert redis.say("DBSIZE") == b":0"
    assert found["store"].says == "the server answers, and has no such store yet; a run creates it"
    assert found["store"].is_fine is None


def test_a_redis_store_that_is_there_is_found(load, redis):
    created(redis.url("journal"))
    before = sorted(redis.say("KEYS", "*").split())
    for options in ({}, {"create": "false"}, {"create": "true"}):
        found = examined(load(redis.url("journal", **options)))
        assert (found["store"].is_fine, found["store"].says.endswith("; 0 open intents")) == (True, True)
    assert sorted(redis.say("KEYS", "*").split()) == before


def test_a_store_that_no_run_may_create_is_missed(load, redis):
    found = examined(load(redis.url("journal", create="false")))
    assert found["store"].is_fine is False
    assert "the server has no such store" in found["store"].says


def test_a_redis_store_that_is_not_there_is_no_damaged_file(redis, capsys):
    assert cli.main(["intents", redis.url("journall")]) == 2
    told = capsys.readouterr().err
    assert "the server has no such store" in told
    assert "file" not in told
    assert redis.say("DBSIZE") == b":0"


def test_a_postgresql_database_gets_no_schema(load, postgres_url, postgres_dsn):  # noqa: F811 - fixtures
    import psycopg

    found = examined(load(postgres_url))
    assert (found["store"].is_fine, "a run creates it" in found["store"].says) == (None, True)
    with psycopg.connect(postgres_dsn) as connection:
        asked = "SELECT count(*) FROM pg_namespace WHERE nspname = %s"
        assert connection.execute(asked, (schema_of(postgres_url),)).fetchone() == (0,)
    created(postgres_url)
    assert examined(load(postgres_url))["store"].is_fine is True


def test_a_store_in_memory_survives_nothing(load):
    found = examined(load("memory://"))["store"]
    assert (found.is_fine, found.says) == (False, "survives nothing; it is in memory")


# --- What an earlier run left ---------------------------------------------------------------------------------------


def test_a_halt_is_said_with_the_command_that_ends_it(load, tmp_path, monkeypatch, capsys):
    url = f"sqlite:///{tmp_path}/bot.db"
    settings = load(url)
    created(url)
    assert "trading" not in examined(settings)
    restricted(url, lambda monitor: monitor.set(TradingState.HALTED, note="strange fills"))
    found = examined(settings)["trading"]
    assert found.is_fine is False
    assert found.says.startswith("manual: halted since 20")
    assert "(strange fills). No entry passes until you have looked, and said so: execsafe reset" in found.says
    monkeypatch.setenv("EXECSAFE_STORE", url)
    assert cli.main(["doctor", "--config", str(tmp_path / "bot.toml")]) == 1
    assert "execsafe reset --config FILE --note WHY" in " ".join(capsys.readouterr().out.split())


def test_what_ends_by_itself_is_worth_a_note(load, tmp_path):
    url = f"sqlite:///{tmp_path}/bot.db"

    async def differ(monitor):
        at_ms = execsafe.SystemClock().now_ms()
        monitor.on_event(execsafe.Event(type=execsafe.EventType.DIFFERENCE_FOUND, at_ms=at_ms, subject="BTC/USDT"))

    restricted(url, differ)
    found = examined(load(url))["trading"]
    assert found.is_fine is None
    assert "mismatch: reduce_only since 20" in found.says
    assert "and ends by itself; venue and book differ" in found.says
    assert "execsafe reset" not in found.says
