"""The configuration file: checked whole, explained when wrong, and never a place for keys."""

import pathlib
import re
from decimal import Decimal

import attrs
import pytest

import execsafe
from execsafe.bot import config, pairs, waves

LEAST = """
[venue]
exchange = "binanceusdm"
[strategy]
name = "waves"
symbols = ["ETH/USDT:USDT"]
"""


@pytest.fixture
def load(tmp_path):
    def load(text, environment=None):
        path = tmp_path / "bot.toml"
        path.write_text(text)
        return config.load(path, environment)

    return load


def test_two_tables_are_enough_and_stay_in_the_sandbox(load):
    found = load(LEAST)
    assert (found.venue.sandbox, found.venue.live, found.run.mode) == (True, False, "live")
    assert found.strategy.symbols == ("ETH/USDT:USDT",)


@pytest.mark.parametrize("lines", ["live = true", "sandbox = false", "live = true\nsandbox = true"])
def test_real_money_needs_two_words(lines, load):
    with pytest.raises(execsafe.InvalidInput, match="both live = true and sandbox = false"):
        load(LEAST.replace("[strategy]", f"{lines}\n[strategy]"))
    assert load(LEAST.replace("[strategy]", "live = true\nsandbox = false\n[strategy]")).venue.live


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST.replace("exchange", "exchange_id"), "unknown name exchange_id"),
        (LEAST + "[risk]\nleverag = 3", r"unknown name leverag @ \$.risk \(did you mean leverage\?\)"),
        (LEAST + '[risk]\nleverage = "3"', r"must be int, was str @ \$.risk.leverage"),
        (LEAST + "[risk]\nleverage = true", "must be int, was bool"),
        (LEAST + "[risk]\nposition_notional = 0", "position_notional must be above 0"),
        (LEAST + "[risk]\nposition_notional = nan", "must be finite"),
        (LEAST + "[risk]\nposition_notional = nan", r"@ \$.risk.position_notional"),
        (LEAST + '[risk]\nposition_notional = "x"', r"not a number: 'x' @ \$.risk.position_notional"),
        (LEAST + "[risk]\nposition_notional = true", r"must be a number, was bool @ \$.risk.position_notional"),
        (LEAST + "[risk]\nunprotected_s = true", r"must be a number, was bool @ \$.risk.unprotected_s"),
        (LEAST + '[risk]\nunprotected_s = "5"', "must be a number, was str"),
        (LEAST + "[risk]\nunprotected_s = inf", r"must be finite @ \$.risk.unprotected_s"),
        (LEAST + '[run]\nmode = "on"', r"^'mode' must be 'live' or 'drain' or 'paper', was 'on' @ \$.run$"),
        (LEAST + '[run]\nstop = "kep"', r"^'stop' must be 'flat' or 'keep', was 'kep' @ \$.run$"),
        (LEAST + 'candle = "7x"', r"^candle must be like '5m', '1h' or '1d', was '7x' @ \$.strategy$"),
        (LEAST + "candle = 5", r"must be str, was int @ \$.strategy.candle"),
        (LEAST + "settings = 1", r"must be a table, was int @ \$.strategy.settings"),
        (LEAST.replace('["ETH/USDT:USDT"]', '"ETH/USDT:USDT"'), r"must be a list, was str @ \$.strategy.symbols"),
        (LEAST.replace('["ETH/USDT:USDT"]', "[1]"), "must be a list of texts, was int"),
        ("risk = 3\n" + LEAST, r"must be a table, was int @ \$.risk"),
        ('strategy = "waves"\n[[venue]]\n', r"must be a table, was list @ \$.venue; must be a table, was str @ \$.str"),
        (LEAST + "[rusk]\n", "unknown name rusk"),
        (LEAST.replace('["ETH/USDT:USDT"]', "[]"), "at least one symbol"),
        ("venue = 3", "venue"),
        ("[venue", "bot.toml"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text, message, load):
    with pytest.raises(execsafe.InvalidInput, match=message):
        load(text)


def test_all_mistakes_are_said_at_once(load):
    with pytest.raises(execsafe.InvalidInput) as caught:
        load(LEAST + '[risk]\nleverage = "3"\npositions_max = 1.5\n')
    assert "leverage" in str(caught.value)
    assert "positions_max" in str(caught.value)


@pytest.mark.parametrize("line", ['apiKey = "x"', 'secret = "x"', '[venue.options]\nAPI_KEY = "x"', 'password = "x"'])
@pytest.mark.guarantee(16)
@pytest.mark.row("S2-42")
def test_g16_a_file_with_a_credential_is_refused_without_showing_it(line, load):
    with pytest.raises(execsafe.InvalidInput, match="environment only") as caught:
        load(LEAST.replace("[strategy]", line.replace("x", "canary-4711") + "\n[strategy]"))
    assert "canary" not in str(caught.value)


def test_keys_come_from_the_environment_or_from_a_file_that_it_names(load, tmp_path):
    (tmp_path / "secret").write_text("s3\n")
    environment = {"EXECSAFE_API_KEY": "k1", "EXECSAFE_API_SECRET_FILE": str(tmp_path / "secret"), "OTHER": "x"}
    found = load(LEAST)
    assert config.credentials(found.venue, environment) == {"apiKey": "k1", "secret": "s3"}
    main = load(LEAST.replace("[strategy]", 'account = "main"\n[strategy]')).venue
    assert config.credentials(main, environment) == {}
    assert config.credentials(main, {"EXECSAFE_MAIN_API_KEY": "k2"}) == {"apiKey": "k2"}


def test_an_empty_variable_is_as_good_as_none(load, tmp_path):
    """A compose file hands on EXECSAFE_STORE="" where nobody has set it: that must not switch the file's value off."""
    text = LEAST + '[run]\nstore = "sqlite:////var/bot.db"\n[bus]\nurl = "redis://localhost"\n'
    (tmp_path / "store").write_text("sqlite:////run/bot.db\n")
    empty = dict.fromkeys(("EXECSAFE_STORE", "EXECSAFE_STORE_FILE", "EXECSAFE_BUS", "EXECSAFE_API_KEY"), "")
    found = load(text, empty)
    assert (found.run.store, found.bus.url) == ("sqlite:////var/bot.db", "redis://localhost")
    assert config.credentials(found.venue, empty) == {}
    assert load(text, {**empty, "EXECSAFE_STORE_FILE": str(tmp_path / "store")}).run.store == "sqlite:////run/bot.db"


def test_an_empty_file_for_a_variable_is_a_mistake(load, tmp_path):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(execsafe.InvalidInput, match="the file that EXECSAFE_BUS_FILE names is empty"):
        load(LEAST, {"EXECSAFE_BUS_FILE": str(tmp_path / "empty")})


@pytest.mark.parametrize("account", ["my acc", "", "a-b", "ünï", "main\\n"])
def test_an_account_whose_variables_no_shell_could_set_is_refused(account, load):
    with pytest.raises(execsafe.InvalidInput, match=r"'account' must be letters, digits and _.*EXECSAFE_MAIN_API_KEY"):
        load(LEAST.replace("[strategy]", f'account = "{account}"\n[strategy]'))


@pytest.mark.guarantee(16)
def test_g16_symbols_of_senders_may_be_called_anything_and_a_key_among_them_is_not_shown(load):
    found = load(LEAST + '[bus]\nsymbols = {KEYUSDT = "ETH/USDT:USDT", TOKENUSDT = "ETH/USDT:USDT"}')
    assert set(found.bus.symbols) == {"KEYUSDT", "TOKENUSDT"}
    with pytest.raises(execsafe.InvalidInput, match=r"bus: apiKey must be one of .*symbols .ETH/USDT:USDT.") as caught:
        load(LEAST + '[bus.symbols]\nETHUSDT = "ETH/USDT:USDT"\napiKey = "canary-4711"')
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "served_at"),
    [("127.0.0.1:9464", "127.0.0.1:9464"), ("[::1]:9464", "::1:9464"), ("::1:9464", "::1:9464"), ("", "")],
)
def test_metrics_are_served_at_an_address_of_either_kind(address, served_at, load):
    assert load(LEAST + f'[run]\nmetrics = "{address}"').run.metrics == served_at


@pytest.mark.parametrize(
    "address", ["9464", ":9464", "127.0.0.1:0", "127.0.0.1:65536", "[::1]", "[]:9464", "[::1:9464"]
)
def test_an_address_at_which_nobody_would_find_the_metrics_is_refused(address, load):
    with pytest.raises(execsafe.InvalidInput, match=r"'metrics' must be like '127.0.0.1:9464' or '\[::1\]:9464'"):
        load(LEAST + f'[run]\nmetrics = "{address}"')


def test_a_file_of_a_key_that_cannot_be_read_is_said_by_its_variable(load, tmp_path):
    with pytest.raises(execsafe.InvalidInput, match="EXECSAFE_API_KEY_FILE names cannot be read: No such file"):
        config.credentials(load(LEAST).venue, {"EXECSAFE_API_KEY_FILE": str(tmp_path / "none")})


def test_what_is_in_force_can_be_shown(load):
    lines = config.describe(load(LEAST + "[risk]\nposition_notional = 12.5\n"))
    assert "sandbox = true" in lines
    assert "position_notional = 12.5" in lines
    assert 'symbols = ["ETH/USDT:USDT"]' in lines
    assert 'mode = "live"' in lines


def test_where_a_store_with_a_relative_path_lies_is_shown(load, tmp_path, monkeypatch):
    """It depends on the directory that the bot is started in."""
    monkeypatch.chdir(tmp_path)
    lines = config.describe(load(LEAST + '[run]\nstore = "sqlite:///my%20bot.db?busy_timeout_s=5"', {}))
    assert f"# that is {tmp_path}/my bot.db" in lines
    assert "# that is" not in "\n".join(config.describe(load(LEAST + '[run]\nstore = "sqlite:////var/bot.db"', {})))


def test_amounts_are_exact():
    assert config.amount(0.1) == Decimal("0.1")
    assert config.amount("12.50") == Decimal("12.50")


# --- What the documentation says of it ------------------------------------------------------------------------------

RUNNING = pathlib.Path(__file__).parents[2] / "docs" / "content" / "running.md"
TABLES = {f"`[{field.name}]`": field.type for field in attrs.fields(attrs.resolve_types(config.BotConfig))}
SETTINGS = {
    "`[strategy.settings]` of `waves`": waves.WavesPolicy,
    "`[strategy.settings]` of `pairs`": pairs.PairsPolicy,
}


def documented(head):
    """The keys under *head* and their defaults, from every table of the page that has it."""
    tables = re.findall(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", RUNNING.read_text(), re.MULTILINE)
    cells = [row.split("|")[1:3] for table in tables for row in table.splitlines()]
    return {key.strip(" `"): default.strip(" `") for key, default in cells}


def default_of(field):
    match field.default:
        case attrs.NOTHING:
            return "must be given"
        case attrs.Factory() | "":
            return ""
        case bool():
            return str(field.default).lower()
        case float():
            return f"{field.default:g}"
    return str(field.default)


@pytest.mark.parametrize(("head", "table"), [*TABLES.items(), *SETTINGS.items()], ids=str)
def test_every_key_is_documented_with_its_default(head, table):
    assert documented(head) == {field.name: default_of(field) for field in attrs.fields(table)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config.RiskConfig(slippage_bps=20_000), "slippage_bps must be below 1000, was 20000"),
        (lambda: config.RunConfig(reconcile_s=300), "entries are refused when the latest comparison is as old as that"),
    ],
)
def test_what_would_refuse_every_entry_or_take_any_price_is_refused(make, message):
    with pytest.raises(execsafe.InvalidInput, match=message):
        make()
