"""The configuration file: checked whole, explained when wrong, and never a place for keys."""

from decimal import Decimal

import pytest

import execsafe
from execsafe.bot import config

LEAST = """
[venue]
exchange = "binanceusdm"
[strategy]
name = "waves"
symbols = ["ETH/USDT:USDT"]
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "bot.toml"
        path.write_text(text)
        return config.load(path)

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


def test_a_file_of_a_key_that_cannot_be_read_is_said_by_its_variable(load, tmp_path):
    with pytest.raises(execsafe.InvalidInput, match="EXECSAFE_API_KEY_FILE names cannot be read: No such file"):
        config.credentials(load(LEAST).venue, {"EXECSAFE_API_KEY_FILE": str(tmp_path / "none")})


def test_what_is_in_force_can_be_shown(load):
    lines = config.describe(load(LEAST + "[risk]\nposition_notional = 12.5\n"))
    assert "sandbox = true" in lines
    assert "position_notional = 12.5" in lines
    assert 'symbols = ["ETH/USDT:USDT"]' in lines
    assert 'mode = "live"' in lines


def test_amounts_are_exact():
    assert config.amount(0.1) == Decimal("0.1")
    assert config.amount("12.50") == Decimal("12.50")
