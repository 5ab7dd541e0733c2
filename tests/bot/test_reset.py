"""``execsafe reset``: a person has looked, says so, and entries pass again."""

import hashlib
import logging

import anyio
import pytest

import execsafe
from execsafe.bot import cli, live, reset
from execsafe.ports import Batch
from execsafe.safety import COLLECTION, TradingState, TripReason

CONFIG = """
[venue]
exchange = "binance"
[strategy]
name = "waves"
symbols = ["BTC/USDT"]
[run]
store = "{url}"
"""


class AuthenticationError(Exception):
    """Named as ccxt's."""


@pytest.fixture
def anyio_backend():
    return "asyncio"  # as the command's


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bot.db"


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


def left_behind(url, *, key_refused=True, notes=(), told=()):
    """The store as a bot leaves it that is restricted for these reasons."""

    async def main():
        async with execsafe.open_store(url) as store:
            monitor = execsafe.SafetyMonitor(store)
            await monitor.open()
            if key_refused:
                monitor.caught(AuthenticationError())
            for event in told:
                monitor.on_event(event)
            for note in notes:
                await monitor.set(TradingState.HALTED, note=note)
            await monitor.refresh()

    anyio.run(main)


def found(url):
    """What the next start finds."""

    async def main():
        async with execsafe.open_store(url) as store:
            monitor = execsafe.SafetyMonitor(store)
            await monitor.open()
            return monitor.state, set(monitor.reasons)

    return anyio.run(main)


def shown(capsys):
    """As it was told, however it was wrapped."""
    return " ".join(capsys.readouterr().out.split())


def excess():
    at_ms = execsafe.SystemClock().now_ms()
    return execsafe.Event(type=execsafe.EventType.EXCESS_EXPOSURE, at_ms=at_ms, subject="7.9:default/signal-9")


def test_a_halt_is_shown_with_its_reason_and_ended(url, capsys):
    left_behind(url, told=[excess()])
    assert cli.main(["reset", "--store", url, "--note", "Ann: new key, nothing rests"]) == 0
    told = shown(capsys)
    assert "authentication: halted since 20" in told
    assert "the venue refuses the key" in told
    assert "(AuthenticationError)" in told
    assert "excess_exposure: halted since 20" in told
    assert ": default/signal-9" in told
    assert "Nothing restricts trading." in told
    assert found(url) == (TradingState.ACTIVE, set())


def test_only_the_reason_that_is_named_is_ended_and_the_status_says_that_another_stands(url, capsys):
    left_behind(url, notes=["strange fills"])
    assert cli.main(["reset", "--store", url, "--reason", "authentication", "--note", "new key"]) == 1
    told = shown(capsys)
    assert "(strange fills)" in told
    assert "Reset: authentication." in told
    assert "Still restricted by: manual." in told
    assert found(url) == (TradingState.HALTED, {TripReason.MANUAL})
    assert cli.main(["reset", "--store", url, "--reason", "authentication", "--note", "again"]) == 1
    assert "Nothing to reset." in capsys.readouterr().out


def test_the_store_is_found_by_the_configuration_or_the_environment(url, tmp_path, monkeypatch):
    (tmp_path / "bot.toml").write_text(CONFIG.format(url=url))
    left_behind(url)
    assert cli.main(["reset", "--config", str(tmp_path / "bot.toml"), "--note", "new key"]) == 0
    assert found(url) == (TradingState.ACTIVE, set())
    left_behind(url)
    monkeypatch.setenv("EXECSAFE_STORE", url)
    assert cli.main(["reset", "--note", "new key"]) == 0
    assert found(url) == (TradingState.ACTIVE, set())


def test_where_nothing_is_restricted_it_says_so_and_changes_nothing(url, path, capsys):
    left_behind(url, key_refused=False)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    assert cli.main(["reset", "--store", url, "--note", "to be sure"]) == 0
    assert capsys.readouterr().out == "Nothing to reset.\nNothing restricts trading.\n"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_a_store_without_a_desk_is_not_given_a_state(url, capsys):
    async def state():
        async with execsafe.open_store(url) as store:
            return await store.find(COLLECTION, "default")

    assert anyio.run(state) is None
    assert cli.main(["reset", "--store", url, "--note", "to be sure"]) == 0
    assert "Nothing to reset." in capsys.readouterr().out
    assert anyio.run(state) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--note", ""], "note"),
        (["--note", "x", "--reason", "auth"], "no reason is called 'auth'; there are authentication, excess_exposure"),
    ],
)
def test_what_cannot_be_understood_changes_nothing(given, message, url, capsys):
    left_behind(url)
    assert cli.main(["reset", "--store", url, *given]) == 2
    assert message in capsys.readouterr().err
    assert found(url) == (TradingState.HALTED, {TripReason.AUTHENTICATION})


def test_a_store_that_is_not_there_is_not_created(url, path, capsys):
    assert cli.main(["reset", "--store", url, "--note", "x"]) == 2
    assert "there is no store at" in capsys.readouterr().err
    assert not path.exists()


def test_what_a_kill_left_unwritten_is_seen_and_ended_as_well(url, capsys):
    """The event is in the store's outbox, and the next start would halt because of it."""
    left_behind(url, key_refused=False)

    async def killed():
        async with execsafe.open_store(url) as store:
            await store.commit(Batch(now_ms=execsafe.SystemClock().now_ms(), events=(excess(),)))

    anyio.run(killed)
    assert cli.main(["reset", "--store", url, "--note", "nothing rests"]) == 0
    assert "excess_exposure: halted" in capsys.readouterr().out
    assert found(url) == (TradingState.ACTIVE, set())


@pytest.mark.anyio
async def test_a_bot_that_runs_meanwhile_sees_it(url):
    changes, is_active = [], anyio.Event()

    def listen(event):
        if event.type is execsafe.EventType.TRADING_STATE_CHANGED:
            changes.append(event.note)
            if event.note == "halted->active":
                is_active.set()

    arguments = ["reset", "--store", url, "--note", "new key"]
    async with execsafe.open_store(url) as store, anyio.create_task_group() as tasks:
        monitor = execsafe.SafetyMonitor(store, listeners=[listen])
        await monitor.open()
        monitor.caught(AuthenticationError())
        await monitor.refresh()
        await tasks.start(monitor.run)
        assert await anyio.to_thread.run_sync(cli.main, arguments) == 0
        with anyio.fail_after(30):
            await is_active.wait()
        await monitor.check(
            execsafe.Intent(key="k", symbol="BTC/USDT", side="buy", quantity="1", limit_price="1"),
            execsafe.Instrument(symbol="BTC/USDT"),
        )
        tasks.cancel_scope.cancel()
    assert changes == ["active->halted", "halted->active"]


# --- Where a person is told of the command ------------------------------------------------------------------------


def test_a_start_that_finds_a_halt_says_how_it_is_ended(url, tmp_path, monkeypatch, capsys):
    """Also what trips while it runs: both are the same event of the monitor."""
    monkeypatch.setenv("EXECSAFE_API_KEY", "k")
    monkeypatch.setenv("EXECSAFE_API_SECRET", "s")
    config = tmp_path / "my bot.toml"
    config.write_text(CONFIG.format(url=url))
    left_behind(url)

    async def run(_config, *, exchange, listeners):
        await exchange.close()
        async with execsafe.open_store(url) as store:
            await execsafe.SafetyMonitor(store, listeners=listeners).open()
        raise execsafe.VenueUnavailable("enough")

    monkeypatch.setattr(live, "run", run)
    assert cli.main(["run", "--config", str(config)]) == 2
    told = capsys.readouterr().err
    assert "trading is halted: authentication (AuthenticationError). No entry passes until" in told
    assert f"execsafe reset --config '{config}' --note WHY" in told


def test_what_ends_by_itself_asks_for_nobody(caplog):
    at_ms = execsafe.SystemClock().now_ms()
    tell = reset.teller("bot.toml")
    for until_ms in (at_ms, None):
        details = {"reason": "mismatch", "state": "reduce_only", "until_ms": until_ms, "why": ""}
        tell(execsafe.Event(type=execsafe.EventType.BREAKER_TRIPPED, at_ms=at_ms, subject="default", details=details))
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("trading is reduce_only: mismatch. No entry passes until you have looked")
