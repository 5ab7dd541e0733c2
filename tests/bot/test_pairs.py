"""The pairs strategy and its candles: a pure function of prices, with identities that never change."""

import csv
import hashlib
import itertools
from decimal import Decimal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import execsafe
from execsafe.bot.candles import RECORDED, Candle, paired, parse, recorded
from execsafe.bot.pairs import Pairs, PairsPolicy, signals
from execsafe.bot.scenes import SPOT as INSTRUMENTS

PAIR = (INSTRUMENTS["ETH/BTC"], INSTRUMENTS["LTC/BTC"])
FIVE_MIN_MS = 300_000


def of_the_recorded_candles(policy=None):
    return list(signals(paired(recorded("ETH/BTC"), recorded("LTC/BTC")), PAIR, policy))


def market(*closes):
    """Candles of both symbols, five minutes apart, from pairs of closing prices."""
    return [
        (Candle(n * FIVE_MIN_MS, Decimal(str(a))), Candle(n * FIVE_MIN_MS, Decimal(str(b))))
        for n, (a, b) in enumerate(closes)
    ]


prices = st.decimals("0.0001", "10", places=6)
markets = st.lists(st.tuples(prices, prices), max_size=60).map(lambda closes: market(*closes))
small = PairsPolicy(window=4, entry_z=1.2, exit_z=0.2)


# --- candles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", RECORDED)
def test_the_recorded_candles_are_forty_hours_without_a_gap(symbol):
    candles = recorded(symbol)

    assert len(candles) == 480
    assert {b.opened_at_ms - a.opened_at_ms for a, b in itertools.pairwise(candles)} == {FIVE_MIN_MS}


def test_candles_of_an_unknown_symbol_are_refused_by_name():
    with pytest.raises(execsafe.InvalidInput, match=r"XMR/BTC.*ETH/BTC, LTC/BTC"):
        recorded("XMR/BTC")


@pytest.mark.parametrize(
    "rows",
    [
        ["1,nan"], ["1,0"], ["1,-1"], ["1,Infinity"], ["x,1"], ["1,x"], ["1"],
        ["2,1", "1,1"], ["1,1", "1,1"],
    ],
)  # fmt: skip
def test_a_row_that_is_no_candle_is_refused_instead_of_traded_on(rows):
    with pytest.raises(execsafe.InvalidInput, match=r"line \d"):
        list(parse(["timestamp_ms,close", *rows]))


def test_what_only_one_side_has_is_left_out_of_the_pairs():
    a, b, c = (Candle(n, Decimal(1)) for n in (1, 2, 3))

    assert paired([a, b], [b, c]) == ((b, b),)


# --- signals ----------------------------------------------------------------------------------------------------


def test_the_signals_of_the_recorded_candles_are_these():
    """Golden: the demo's figures in the documentation hang on them. Identities above all must never change."""
    found = of_the_recorded_candles()
    facts = [(s.id, [(x.side.value, str(x.quantity), str(x.limit_price)) for x in s.legs]) for s in found]

    assert len(found) == 48
    assert facts[:2] == [
        (
            "pairs/ETH/BTC~LTC/BTC/1516290900000/entry",
            [("buy", "5.468", "0.091616"), ("sell", "28.98", "0.017212")],
        ),
        (
            "pairs/ETH/BTC~LTC/BTC/1516292100000/exit",
            [("sell", "5.468", "0.091626"), ("buy", "28.98", "0.017135")],
        ),
    ]
    assert hashlib.sha256(repr(facts).encode()).hexdigest()[:16] == "c30b473ac5b0cb21"


def test_a_dear_first_symbol_is_sold_and_bought_back_when_the_ratio_returns():
    found = list(signals(market((1, 1), (1.1, 1), (1, 1), (1.1, 1), (2, 1), (1.05, 1)), PAIR, small))

    assert [(s.lead.side.value, s.hedge.side.value, s.closes is None) for s in found] == [
        ("sell", "buy", True),
        ("buy", "sell", False),
    ]
    assert found[1].closes == found[0].id


def test_a_ratio_that_does_not_move_gives_no_signal():
    assert list(signals(market(*[(1, 1)] * 50), PAIR, small)) == []


@given(markets)
def test_signals_alternate_between_opening_a_trade_and_closing_that_trade(candles):
    found = list(signals(candles, PAIR, small))

    assert [s.closes for s in found[::2]] == [None] * len(found[::2])
    assert [s.closes for s in found[1::2]] == [s.id for s in found[::2]][: len(found[1::2])]
    for opened, closed in zip(found[::2], found[1::2], strict=False):
        assert [x.quantity for x in closed.legs] == [x.quantity for x in opened.legs]
        assert [x.side for x in closed.legs] == [x.side.opposite for x in opened.legs]


@given(markets, st.integers(0, 60))
def test_a_signal_depends_on_nothing_that_comes_after_it(candles, cut):
    """A bot that is restarted, or fed candle by candle, makes the same decisions under the same identities."""
    whole, part = list(signals(candles, PAIR, small)), list(signals(candles[:cut], PAIR, small))

    assert part == whole[: len(part)]
    assert all(s.at_ms >= cut * FIVE_MIN_MS for s in whole[len(part) :])


@given(markets)
def test_every_leg_is_on_the_venues_grid_and_marketable(candles):
    by_time = {pair[0].opened_at_ms: pair for pair in candles}
    for signal in signals(candles, PAIR, small):
        for leg, instrument, candle in zip(signal.legs, PAIR, by_time[signal.at_ms], strict=True):
            assert leg.quantity == instrument.floor_quantity(leg.quantity)
            assert leg.limit_price % instrument.tick_size == 0
            high, low = max(leg.limit_price, leg.reverse_price), min(leg.limit_price, leg.reverse_price)
            assert low <= candle.close <= high
            assert (leg.limit_price == high) is (leg.side is execsafe.Side.BUY)


def test_every_signal_of_a_run_has_an_id_of_its_own():
    ids = [signal.id for signal in of_the_recorded_candles()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "values",
    [{"window": 1}, {"exit_z": 2.0}, {"exit_z": -1.0}, {"budget": Decimal(0)}, {"slippage_bps": Decimal(10_000)}],
)
def test_a_policy_that_could_not_work_is_refused(values):
    with pytest.raises(execsafe.InvalidInput):
        attrs.evolve(PairsPolicy(), **values)


def test_the_shipped_candles_carry_prices_and_nothing_else():
    """They are public market data; a column that somebody adds by mistake would be published."""
    from importlib import resources

    for name in RECORDED.values():
        with (resources.files("execsafe.bot") / "data" / name).open(encoding="ascii") as lines:
            assert next(csv.reader(lines)) == ["timestamp_ms", "open", "high", "low", "close", "volume"]


def test_as_a_strategy_it_decides_what_the_signals_say():
    names = "ETH/BTC", "LTC/BTC"
    strategy = Pairs(names, {})

    class Desk:
        def instrument(self, symbol):
            return INSTRUMENTS[symbol]

        def position(self, symbol):
            return None

    pairs = paired(recorded("ETH/BTC"), recorded("LTC/BTC"))
    decided = [d for pair in pairs for d in strategy.on_candles(dict(zip(names, pair, strict=True)), Desk())]
    assert decided == [signal.as_trade() for signal in of_the_recorded_candles()]
    assert len({decision.id for decision in decided}) == len(decided) > 10
    assert list(strategy.on_candles({"ETH/BTC": pairs[0][0]}, Desk())) == []


def test_as_a_strategy_it_takes_two_symbols_and_no_unknown_settings():
    with pytest.raises(execsafe.InvalidInput, match="two symbols"):
        Pairs(("ETH/BTC",), {})
    with pytest.raises(execsafe.InvalidInput, match="unknown name windw"):
        Pairs(("ETH/BTC", "LTC/BTC"), {"windw": 3})
