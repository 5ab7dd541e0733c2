"""The waves strategy: a pure function of candles."""

from decimal import Decimal

import pytest

import execsafe
from execsafe.bot.candles import Candle, recorded
from execsafe.bot.strategy import Close, Open, Strategy
from execsafe.bot.waves import Waves

ETH, LTC = "ETH/USDT:USDT", "LTC/USDT:USDT"


class Desk:
    def __init__(self, held=()):
        self.held = set(held)

    def instrument(self, symbol):
        return execsafe.Instrument(symbol=symbol)

    def position(self, symbol):
        return execsafe.Position(account="a", symbol=symbol, side="long") if symbol in self.held else None


def play(strategy, desk, count=480):
    eth, ltc = recorded("ETH/BTC")[:count], recorded("LTC/BTC")[:count]
    return [list(strategy.on_candles({ETH: a, LTC: b}, desk)) for a, b in zip(eth, ltc, strict=True)]


@pytest.fixture
def settings():
    return {"every_minutes": 60, "window": 12}


def test_a_wave_comes_at_its_hour_and_takes_what_has_moved(settings):
    waves = [decisions for decisions in play(Waves((ETH, LTC), settings), Desk()) if decisions]
    assert len(waves) > 10
    for wave in waves:
        for decision in wave:
            assert isinstance(decision, Open)
            at_ms = int(decision.id.rpartition("/")[2])
            assert at_ms % 3_600_000 == 0
            assert Decimal(0) < decision.volatility_factor <= 3


def test_the_same_candles_give_the_same_decisions_with_the_same_ids(settings):
    first = play(Waves((ETH, LTC), settings), Desk())
    assert play(Waves((ETH, LTC), settings), Desk()) == first
    ids = [decision.id for wave in first for decision in wave]
    assert len(set(ids)) == len(ids)


def test_candles_that_come_late_to_a_wave_do_not_make_it_larger(settings):
    """The venue publishes those of one symbol late: both have moved, and the wave wants one position."""
    at_once, alone = Waves((ETH, LTC), {**settings, "most": 1}), Waves((ETH, LTC), {**settings, "most": 1})
    together = play(at_once, Desk())
    apart = []
    for eth, ltc in zip(recorded("ETH/BTC")[:480], recorded("LTC/BTC")[:480], strict=True):
        apart.append([d for candles in ({ETH: eth}, {LTC: ltc}) for d in alone.on_candles(candles, Desk())])
    assert max(map(len, together)) == max(map(len, apart)) == 1
    assert [bool(wave) for wave in apart] == [bool(wave) for wave in together]


def test_what_is_held_already_is_not_opened_again(settings):
    decisions = [d for wave in play(Waves((ETH, LTC), settings), Desk([ETH])) for d in wave]
    assert {decision.symbol for decision in decisions} == {LTC}


def test_against_the_move_is_the_other_side_of_with_it(settings):
    with_it = play(Waves((ETH, LTC), settings), Desk())
    against = play(Waves((ETH, LTC), {**settings, "follow": False}), Desk())
    assert [[d.side for d in wave] for wave in against] == [
        [{"long": "short", "short": "long"}[d.side] for d in wave] for wave in with_it
    ]


def test_a_candle_that_is_missing_stops_nothing(settings):
    strategy = Waves((ETH, LTC), settings)
    for candle in recorded("ETH/BTC"):
        strategy.on_candles({ETH: candle}, Desk())
    assert list(strategy.on_candles({}, Desk())) == []


@pytest.mark.parametrize("bad", [{"every": 1}, {"every_minutes": 0}, {"window": 1}, {"least_move_bps": float("nan")}])
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(execsafe.InvalidInput):
        Waves((ETH,), bad)


def test_a_strategy_without_settings_refuses_some():
    class Quiet(Strategy):
        def on_candles(self, candles, desk):
            return [Close(id="x", symbol=ETH)]

    assert Quiet((ETH,), {}).symbols == (ETH,)
    with pytest.raises(execsafe.InvalidInput, match="takes no settings, was given a, b"):
        Quiet((ETH,), {"b": 1, "a": 2})


@pytest.mark.parametrize("bad", [{"side": "up"}, {"volatility_factor": float("nan")}, {"confidence": "high"}])
def test_a_decision_that_cannot_be_is_refused(bad):
    with pytest.raises(execsafe.InvalidInput):
        Open(**{"id": "x", "symbol": ETH, "side": "long", **bad})


def test_a_flat_market_has_no_waves(settings):
    flat = [Candle(n * 300_000, Decimal(5)) for n in range(200)]
    strategy = Waves((ETH,), settings)
    assert [list(strategy.on_candles({ETH: candle}, Desk())) for candle in flat] == [[]] * 200
