"""``run``, ``resolve`` and ``doctor``: the real ccxt client over HTTP, and what a person is told."""

import asyncio
import os
import pathlib
import signal
import subprocess
import sys

import anyio
import pytest

import execsafe
from execsafe.bot import cli, config, doctor, live
from execsafe.bot.desk import TradingDesk
from execsafe.bot.policy import DeskPolicy
from execsafe.locks import Leases
from execsafe.testing import sim_errors
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.http import VenueServer
from execsafe.testing.venue import SimVenue, linear

FILE = """
[venue]
exchange = "binance"
[strategy]
name = "waves"
symbols = ["BTC/USDT"]
[run]
store = "sqlite:///{folder}/bot.db"
"""


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "bot.toml"
    found.write_text(FILE.format(folder=tmp_path))
    return found


@pytest.fixture
def no_keys(monkeypatch):
    for name in list(os.environ):
        if name.startswith("EXECSAFE_"):
            monkeypatch.delenv(name)


def examined(settings, **changes):
    async def main():
        async with VenueServer() as server:
            exchange = server.exchange("binance", **changes)
            return await doctor.examine(settings, exchange=exchange)

    return {finding.what: finding for finding in asyncio.run(main())}


@pytest.mark.row("S2-22")
def test_the_doctor_finds_a_healthy_venue_healthy(path):
    found = examined(config.load(path))
    assert {finding.what for finding in found.values() if finding.is_fine is False} == set()
    assert found["symbol BTC/USDT"].says.startswith("step 0.00001")
    assert "USDT" in found["account"].says
    assert "not there yet" in found["store"].says
    assert not (path.parent / "bot.db").exists(), "looking creates nothing"


def test_the_doctor_says_which_symbol_is_not_listed(path):
    path.write_text(path.read_text().replace("BTC/USDT", "BTC/USDTT"))
    found = examined(config.load(path))
    assert found["symbol BTC/USDTT"].is_fine is False
    assert "near" in found["symbol BTC/USDTT"].says


@pytest.mark.row("S2-22")
def test_the_doctor_says_that_a_key_is_refused_and_does_not_show_it(path):
    found = examined(config.load(path), apiKey="canary-key-4711", secret="canary-secret-4711")
    assert found["account"].is_fine in {False, True}
    assert "canary" not in " ".join(finding.says for finding in found.values())


def test_the_doctor_without_keys_says_where_they_come_from(path, no_keys, capsys):
    assert cli.main(["doctor", "--config", str(path)]) == 1
    assert "EXECSAFE_API_KEY" in capsys.readouterr().out


def test_run_shows_what_is_in_force(path, no_keys, capsys):
    assert cli.main(["run", "--config", str(path), "--show"]) == 0
    out = capsys.readouterr().out
    assert "sandbox = true" in out
    assert 'name = "waves"' in out


@pytest.mark.parametrize(("account", "prefix"), [("default", "EXECSAFE_"), ("main", "EXECSAFE_MAIN_")])
def test_run_without_keys_starts_nothing_and_says_where_it_looked(account, prefix, path, no_keys, capsys):
    path.write_text(path.read_text().replace("[strategy]", f'account = "{account}"\n[strategy]'))
    assert cli.main(["run", "--config", str(path)]) == 2
    told = capsys.readouterr().err
    assert f"needs apiKey, secret: set {prefix}API_KEY and {prefix}API_SECRET in the environment" in told
    assert not (path.parent / "bot.db").exists()


def test_a_venue_whose_credentials_the_bot_cannot_take_is_said_to_be_one(path, no_keys, capsys):
    path.write_text(path.read_text().replace('"binance"', '"hyperliquid"'))
    assert cli.main(["run", "--config", str(path)]) == 2
    assert "the bot has no variable for privateKey, walletAddress" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "resolve", "doctor"])
def test_a_file_that_is_not_there_is_said_in_one_line(command, tmp_path, capsys):
    assert cli.main([command, "--config", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err == f"execsafe: there is no configuration at {tmp_path / 'none.toml'}\n"
    assert cli.main([command, "--config", str(tmp_path)]) == 2
    assert f"the configuration {tmp_path} cannot be read: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"waves"', '"wave"'), "no strategy 'wave'; there are pairs, signals, waves, or your own as module:Class"),
        (('"binance"', '"binanse"'), "ccxt has no exchange 'binanse'; did you mean binance?"),
        (("bot.db", "nowhere/bot.db"), "nowhere for the store: create it first"),
        (("[run]", "[run]\nsignal_age_max_s = 1e30"), "execsafe: signal_age_max_s must be"),
        (("[run]", "[run]\nsignal_age_max_s = 1e7"), "execsafe: signal_age_max_s: records would be forgotten"),
        (("[run]", "[run]\nreconcile_s = 1e9"), "execsafe: reconcile_s must be"),
        (("[run]", "[run]\nprotect_s = 1e9"), "execsafe: protect_s must be"),
        (("[run]", "[risk]\nunprotected_s = 1e9\n[run]"), "execsafe: unprotected_s must be"),
        (("[run]", "[risk]\nspread_max_bps = 1000000\n[run]"), "execsafe: spread_max_bps must be"),
        (("[run]", "[risk]\ngross_notional_max = 1e300\n[run]"), "execsafe: gross_notional_max is out of range"),
    ],
)
def test_what_is_wrong_without_asking_anybody_is_said_before_anything_else(change, message, path, monkeypatch, capsys):
    """Not below the line that says LIVE, and not after a minute in which the venue was asked for its rules."""
    monkeypatch.setattr(live, "_reach", None)
    monkeypatch.setenv("EXECSAFE_API_KEY", "k")
    monkeypatch.setenv("EXECSAFE_API_SECRET", "s")
    path.write_text(path.read_text().replace(*change))
    for command in (["run"], ["run", "--show"], ["resolve"]):
        assert cli.main([*command, "--config", str(path)]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert message in told.err
        assert told.err.count("\n") == 1


def test_the_doctor_says_that_a_run_could_not_create_its_store(path):
    path.write_text(path.read_text().replace("bot.db", "nowhere/bot.db"))
    found = examined(config.load(path))["store"]
    assert found.is_fine is False
    assert "nowhere for the store: create it first" in found.says


def test_a_damaged_store_is_named_with_what_to_do(tmp_path, capsys):
    path = tmp_path / "orders.db"

    async def create():
        async with execsafe.open_store(f"sqlite:///{path}"):
            pass

    asyncio.run(create())
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\x00" * 4_000 + whole[4_100:])
    assert cli.main(["intents", f"sqlite:///{path}"]) == 2
    told = capsys.readouterr().err
    assert str(path) in told
    assert "Keep a copy of the file" in told
    assert told.count("\n") == 1


def test_an_exchange_in_the_sandbox_talks_to_the_sandbox(path, monkeypatch):
    monkeypatch.setenv("EXECSAFE_API_KEY", "k")
    monkeypatch.setenv("EXECSAFE_API_SECRET", "s")

    async def main():
        exchange = live.make_exchange(config.load(path))
        try:
            return str(exchange.urls["api"])
        finally:
            await exchange.close()

    assert "testnet" in asyncio.run(main())
    path.write_text(path.read_text().replace('"binance"', '"binance"\nlive = true\nsandbox = false'))
    assert "testnet" not in asyncio.run(main())
    path.write_text(path.read_text().replace('"binance"', '"nobody"'))
    with pytest.raises(execsafe.InvalidInput, match="no exchange"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "symbol", "works"),
    [
        ("binanceusdm", "BTC/USDT:USDT", False),
        ("binance", "BTC/USDT:USDT", False),
        ("binancecoinm", "BTC/USD:BTC", False),
        ("binance", "BTC/USDT", True),
        ("bybit", "BTC/USDT:USDT", True),
    ],
)
def test_a_sandbox_that_ccxt_signs_no_request_for_is_refused_at_the_start(name, symbol, works, path, monkeypatch):
    """Without a request: with the first one the run would have begun, and could read neither positions nor balances."""
    monkeypatch.setenv("EXECSAFE_API_KEY", "k")
    monkeypatch.setenv("EXECSAFE_API_SECRET", "s")
    path.write_text(path.read_text().replace('"binance"', f'"{name}"').replace("BTC/USDT", symbol))
    if works:
        assert live.make_exchange(config.load(path)).isSandboxModeEnabled
        return
    with pytest.raises(
        execsafe.InvalidInput, match=f"{name} has no sandbox for contracts any more .ccxt: NotSupported"
    ):
        live.make_exchange(config.load(path))
    path.write_text(path.read_text().replace("[strategy]", "live = true\nsandbox = false\n[strategy]"))
    assert not live.make_exchange(config.load(path)).isSandboxModeEnabled


def test_the_configuration_of_the_documentation_can_be_run_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXECSAFE_API_KEY", "k")
    monkeypatch.setenv("EXECSAFE_API_SECRET", "s")
    page = pathlib.Path(__file__).parents[2] / "docs" / "content" / "running.md"
    (tmp_path / "bot.toml").write_text(page.read_text().partition("```toml\n")[2].partition("```")[0])
    settings = config.load(tmp_path / "bot.toml")
    live.check(settings)
    assert live.make_exchange(settings).isSandboxModeEnabled


def test_resolve_settles_at_the_venue_what_an_earlier_run_left(path):
    settings = config.load(path)

    async def main():
        async with VenueServer() as server:
            exchange = server.exchange("binance")
            store = execsafe.open_store(settings.run.store)
            gateway = execsafe.OrderGateway(execsafe.CcxtAdapter(exchange), execsafe.IntentRegistry(store))
            await store.open()
            await gateway.submit(
                execsafe.Intent(key="k", symbol="BTC/USDT", side="buy", quantity="0.01", limit_price="60000")
            )
            await store.aclose()
            return await live.resolve(settings, exchange=exchange)

    leftover = asyncio.run(main())
    assert leftover.in_doubt == ()


def test_the_module_runs_as_a_command(path):
    done = subprocess.run(
        [sys.executable, "-m", "execsafe", "run", "--config", str(path), "--show"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "sandbox = true" in done.stdout) == (0, True), done.stderr


class Unreachable:
    """A venue's client without a network."""

    def __init__(self, error):
        self.error = error
        self.is_closed = False

    def __call__(self, _config):
        import ccxt.async_support as ccxt

        exchange = ccxt.binanceusdm({"apiKey": "k" * 8, "secret": "s" * 8})
        original = exchange.close

        async def load_markets(*_args, **_kwargs):
            raise self.error

        async def close():
            self.is_closed = True
            await original()

        exchange.load_markets, exchange.close = load_markets, close
        return exchange


@pytest.mark.parametrize("command", ["run", "resolve"])
@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError("no route to host"), id="the network"),
        pytest.param(RuntimeError("https://example.com/?signature=0123456789abcdef"), id="anything else"),
    ],
)
def test_a_venue_that_cannot_be_reached_is_one_sentence_and_could_not_be_done(
    command, error, path, monkeypatch, capsys
):
    """Status 1 would say that something is in doubt: nothing was sent."""
    venue = Unreachable(error)
    monkeypatch.setattr(live, "make_exchange", venue)
    assert cli.main([command, "--config", str(path)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "could not be asked at the start, and nothing was done" in told
    assert "0123456789abcdef" not in told
    assert venue.is_closed


class Deaf(SimAdapter):
    """Its positions cannot be read; somebody presses Ctrl-C, or says kill, while the barrier waits for them."""

    signal = signal.SIGTERM

    async def fetch_positions(self):
        os.kill(os.getpid(), self.signal)
        raise sim_errors.ExchangeNotAvailable("away")


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_run_whose_barrier_would_never_pass(number, path, monkeypatch, capsys):
    symbol, url = "BTC/USDT:USDT", f"sqlite:///{path.parent}/bot.db"
    path.write_text(path.read_text().replace("BTC/USDT", symbol))
    adapter = Deaf(SimVenue([linear("BTC")], prices={symbol: 50_000}), clock=execsafe.SystemClock())
    adapter.signal = number
    monkeypatch.setattr(live, "make_exchange", lambda _: Client())
    monkeypatch.setattr(
        live, "_desk", lambda *_, **__: TradingDesk(adapter, execsafe.open_store(url), DeskPolicy(), symbols=(symbol,))
    )
    assert cli.main(["run", "--config", str(path)]) == 0
    told = capsys.readouterr().out
    assert "Stopped before it had begun" in told
    assert "Flat" not in told, "nobody has looked"

    async def is_free():
        async with execsafe.open_store(url) as store:
            await Leases(store, execsafe.SystemClock().now_ms, None, 1_000).acquire("desk", waits=False, deadline=0)

    asyncio.run(is_free())


class Silent(SimAdapter):
    """Never answers; somebody presses Ctrl-C meanwhile."""

    was_cancelled = False

    async def prepare(self, symbol):
        await anyio.wait_all_tasks_blocked()  # whoever would listen to signals by now does
        os.kill(os.getpid(), signal.SIGINT)
        try:
            with anyio.fail_after(20):
                await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.was_cancelled = True
            raise


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_one_ctrl_c_ends_a_start_whose_venue_never_answers_at_once(path, monkeypatch):
    """Nothing was begun yet that would have to be brought to an end in good order."""
    symbol, url = "BTC/USDT:USDT", f"sqlite:///{path.parent}/bot.db"
    adapter = Silent(SimVenue([linear("BTC")], prices={symbol: 50_000}), clock=execsafe.SystemClock())
    monkeypatch.setattr(live, "make_exchange", lambda _: Client())
    monkeypatch.setattr(
        live, "_desk", lambda *_, **__: TradingDesk(adapter, execsafe.open_store(url), DeskPolicy(), symbols=(symbol,))
    )
    assert cli.main(["run", "--config", str(path)]) == 130
    assert adapter.was_cancelled
    assert not (path.parent / "bot.db").exists()


@pytest.mark.parametrize("command", ["run", "resolve"])
def test_a_key_that_is_refused_ends_the_start_with_one_line_and_status_2(command, path, monkeypatch, capsys):
    class Refusing(SimAdapter):
        async def fetch_balances(self):
            raise sim_errors.AuthenticationError("Invalid API-key")

    symbol, url = "BTC/USDT:USDT", f"sqlite:///{path.parent}/bot.db"
    adapter = Refusing(SimVenue([linear("BTC")], prices={symbol: 50_000}), clock=execsafe.SystemClock())
    monkeypatch.setattr(live, "make_exchange", lambda _: Client())
    monkeypatch.setattr(
        live, "_desk", lambda *_, **__: TradingDesk(adapter, execsafe.open_store(url), DeskPolicy(), symbols=(symbol,))
    )
    assert cli.main([command, "--config", str(path)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "the venue refuses the key (AuthenticationError: Invalid API-key): check the key, its permissions" in told
    assert not (path.parent / "bot.db").exists()


class Client:
    async def close(self):
        """As ccxt's."""


# --- By hand ------------------------------------------------------------------------------------------------


def an_unresolved_intent(url):
    """A venue that takes no deadline, and a request that never arrived: nothing can be proven."""

    async def main():
        async with VenueServer() as server:
            client = server.exchange("binance", timeout=100)
            profile = execsafe.VenueProfile(name="binance", lookups=execsafe.profile_for("binance").lookups)
            quick = {"patience_s": 0.1, "look_interval_s": 0.05}
            async with execsafe.wrap(client, store=url, profile=profile, **quick) as guarded:
                await guarded.load_markets()
                server.plans["binance"].strike_next("create", "drop_request")
                params = {"intentKey": "signal-42"}
                with pytest.raises(execsafe.OutcomeUnknown):
                    await guarded.create_order("BTC/USDT", "limit", "buy", 0.01, 60000, params)

    asyncio.run(main())


def test_what_nothing_can_prove_is_settled_by_hand(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/orders.db"
    an_unresolved_intent(url)
    assert cli.main(["intents", url]) == 0
    assert "unresolved" in capsys.readouterr().out
    assert cli.main(["resolve", "--store", url, "--absent", "signal-42", "--note", "Ann: not in the history"]) == 0
    assert "failed_final" in capsys.readouterr().out
    assert cli.main(["intents", url]) == 0
    assert "no open intents" in capsys.readouterr().out
    assert cli.main(["resolve", "--store", url, "--absent", "signal-42", "--note", "again"]) == 2
    assert "not unresolved" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        ["--store", "sqlite:///x.db"],
        ["--store", "sqlite:///x.db", "--absent", "k"],
        ["--config", "bot.toml", "--absent", "k", "--note", "seen"],
        [],
    ],
)
def test_settling_by_hand_needs_a_key_and_a_note(given, no_keys, capsys):
    assert cli.main(["resolve", *given]) == 2
    assert "--note" in capsys.readouterr().err
