"""A rehearsal: one's own strategy and figures, the real client over HTTP, a venue that is not real."""

import os
from collections import Counter
from decimal import Decimal

import pytest

import execsafe
from execsafe.bot import cli, config, rehearsal
from execsafe.bot.leftover import Leftover
from execsafe.bot.rehearsal import Difference, Rehearsal, RehearsalPolicy
from execsafe.bot.runner import RunResult
from execsafe.model.outcome import Operation
from execsafe.testing.faults import Fault, FaultPlan
from execsafe.testing.http import VenueServer
from execsafe.testing.venue import SimVenue

FILE = """
[venue]
exchange = "{exchange}"
[strategy]
name = "{name}"
symbols = {symbols}
[strategy.settings]
{settings}
[run]
store = "sqlite:///{folder}/bot.db"
stop = "flat"
"""
PERPETUALS = ["SOL/USDT:USDT", "AVAX/USDT:USDT", "DOT/USDT:USDT"]
WAVES = {"exchange": "bybit", "name": "waves", "symbols": PERPETUALS, "settings": "every_minutes = 15"}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a configuration; there is no key anywhere."""
    for name in list(os.environ):
        if name.startswith("EXECSAFE_"):
            monkeypatch.delenv(name)

    def write(**changes):
        path = tmp_path / "bot.toml"
        path.write_text(FILE.format(folder=tmp_path, **{**WAVES, **changes}))
        return path

    return write


@pytest.mark.guarantee(1, 10)
def test_g1_g10_a_strategy_is_rehearsed_without_a_key_and_ends_knowing_what_it_owns(written, tmp_path, capsys):
    path = written()
    assert cli.main(["run", "--config", str(path), "--rehearse", "--candles", "40", "--seed", "3"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Rehearsal: waves at a simulated bybit, through the real ccxt client; much goes wrong on the way." in told
    assert "bybit 40 of 40 candles" in told
    assert "open: Handled" in told or "open: Unfinished" in told
    assert "What the bot knows to own is what the venue's own ledger says. Flat, and nothing is in doubt." in told
    # The journal that is meant for real orders is not touched.
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_goes_wrong_if_that_is_wanted(written, capsys):
    path = written(exchange="okx", name="pairs", symbols=["SOL/USDT", "AVAX/USDT"], settings="budget = 50")
    assert cli.main(["run", "--config", str(path), "--rehearse", "--candles", "12", "--no-faults"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "pairs at a simulated binance (it stands in for okx), through the real ccxt client; nothing goes wrong" in told
    )
    assert "0 times something went wrong" in told


@pytest.mark.parametrize(
    ("exchange", "symbols", "played"),
    [
        ("bybit", ["A/USDT:USDT"], "bybit"),
        ("bybit", ["A/USDT"], "binance"),
        ("mexc", ["A/USDT"], "mexc"),
        ("binance", ["A/USDT:USDT"], "binanceusdm"),
        ("kraken", ["A/USDT:USDT", "B/USDT:USDT"], "binanceusdm"),
    ],
)
def test_a_venue_that_is_not_simulated_has_a_stand_in_of_its_kind(written, exchange, symbols, played):
    assert rehearsal.venue_of(config.load(written(exchange=exchange, symbols=symbols))) == played


def test_spot_and_contracts_are_not_rehearsed_together(written, capsys):
    path = written(symbols=["SOL/USDT", "AVAX/USDT:USDT"])
    assert cli.main(["run", "--config", str(path), "--rehearse"]) == 2
    assert "spot or contracts, not both" in capsys.readouterr().err


@pytest.mark.parametrize("candles", ["0", "-1", "100000"])
def test_there_are_only_so_many_candles(written, capsys, candles):
    assert cli.main(["run", "--config", str(written()), "--rehearse", "--candles", candles]) == 2
    assert "candles" in capsys.readouterr().err


def test_symbols_made_of_the_same_recording_have_other_prices_at_every_moment():
    symbols = [f"{base}/USDT:USDT" for base in "ABCDE"]
    made = rehearsal._candles({symbol: rehearsal._market(symbol) for symbol in symbols}, 300)
    closes = [tuple(candle.close for candle in made[symbol]) for symbol in symbols]
    assert len(set(closes)) == len(symbols)
    assert {len(own) for own in closes} == {300}


def test_a_difference_or_a_doubt_is_a_failure():
    calm = Rehearsal(
        venue="bybit",
        run=RunResult(results=Counter(), leftover=Leftover()),
        orders=3,
        fired={},
        differences=(),
        bare_ms=None,
    )
    differs = Difference(symbol="A/USDT", venue=Decimal(2), book=Decimal(1))
    told = " ".join(rehearsal.closing(Rehearsal(**{**vars_of(calm), "differences": (differs,)})))
    assert calm.is_sound
    assert "A/USDT: the venue has 2, the bot knows of 1." in told
    assert not Rehearsal(**{**vars_of(calm), "differences": (differs,)}).is_sound


def vars_of(rehearsed):
    return {name: getattr(rehearsed, name) for name in ("venue", "run", "orders", "fired", "differences", "bare_ms")}


def test_a_policy_plays_at_least_one_candle():
    with pytest.raises(execsafe.InvalidInput, match="candles"):
        RehearsalPolicy(candles=0)


@pytest.mark.anyio
async def test_nothing_goes_wrong_any_more_once_the_candles_end_also_where_they_end_early():
    """What a signal ends is to end in good order, as what has run its course."""
    symbol = "A/USDT:USDT"
    market = rehearsal._market(symbol)
    candles = rehearsal._candles({symbol: market}, 3)
    server = VenueServer({"bybit": SimVenue([market], prices={symbol: 1})})
    plan = server.plans["bybit"] = FaultPlan(7, {Fault.DROP_REPLY: 1.0})
    moments = rehearsal._PlayedFeed(server, server.venues["bybit"], candles, 300_000, lambda _: None).moments(0)
    await anext(moments)
    assert plan.draw(Operation.CREATE).first(Fault.DROP_REPLY) is Fault.DROP_REPLY
    await moments.aclose()
    assert plan.draw(Operation.CREATE).first(Fault.DROP_REPLY) is None
