"""The face of the levels: one call, typed shares, seven published keys, prices on the tick."""

from __future__ import annotations

import ast
import decimal
import json
import math
import pathlib
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.levels import LevelsInput
from execsafe.errors import InvalidInput, NoSafeStop
from execsafe.levels import (
    AdaptiveLevels,
    Degraded,
    FeedbackPolicy,
    LevelsPolicy,
    PnlAverage,
    PnlTracker,
    Trend,
)
from execsafe.model.instrument import Instrument
from execsafe.model.position import PositionSide
from execsafe.model.units import MarginReturn, Percent, PriceFraction

KEYS = ["tp1", "tp2", "tp3", "sl", "LSF", "harvest_scheme", "avg_pnl_last_20"]
SOON = Instrument(symbol="SOON/USDT", tick_size="0.0001", step_size="0.01", min_notional=5)


def compute(**changes):
    return AdaptiveLevels().compute(**{"symbol": "BTC/USDT", "leverage": 20, "volatility_factor": 1.5, **changes})


# --- The payload -------------------------------------------------------------------------------------


@pytest.mark.row("S2-33", "D-14")
def test_the_published_payload_is_reproduced_to_the_last_digit():
    """Compat, do not trade: targets in percent, the stop at its clamp."""
    payload = AdaptiveLevels.seed_compat().compute(
        symbol="BTCUSDT", leverage=20, volatility_factor=1.5, confidence=0.91, funding_rate=-0.0001, avg_pnl_last_20=0.0
    ).to_payload()  # fmt: skip
    assert list(payload.items()) == [
        ("tp1", 0.847247979309735),
        ("tp2", 1.3236239896548674),
        ("tp3", 1.8618119948274339),
        ("sl", 0.02),
        ("LSF", 0.24724797930973505),
        ("harvest_scheme", [0.4, 0.4, 0.2]),
        ("avg_pnl_last_20", 0.0),
    ]


@pytest.mark.parametrize("leverage", [1, 5, 10, 15, 20, 64, 125])
@pytest.mark.parametrize("volatility", [0, 0.7, 1.0, 1.5])
def test_compatibility_follows_the_original_at_other_inputs(leverage, volatility):
    """Its formulas written out once more, in floats."""
    lsf = 1.0 / (1.0 + math.log(leverage + 1.0))
    payload = AdaptiveLevels.seed_compat().compute(
        symbol="X", leverage=leverage, volatility_factor=volatility
    ).to_payload()  # fmt: skip
    assert payload["LSF"] == lsf
    assert [payload[key] for key in ("tp1", "tp2", "tp3")] == [0.6 + lsf, 1.2 + lsf / 2.0, 1.8 + lsf / 4.0]
    assert payload["sl"] == 0.02


@pytest.mark.row("D-14")
def test_compatibility_levels_have_units_but_no_prices():
    found = AdaptiveLevels.seed_compat().compute(symbol="X", leverage=20, volatility_factor=1.5)
    assert found.tp1 == Percent("0.847247979309735").as_fraction()
    assert found.sl == PriceFraction("0.02")
    with pytest.raises(InvalidInput, match="comparison only"):
        found.prices("long", 100, Instrument(symbol="X"))


@pytest.mark.row("S2-19")
def test_the_payload_has_exactly_the_published_keys_and_adjustment_when_asked_for():
    found = compute()
    assert list(found.to_payload()) == KEYS
    assert list(found.to_payload(adjustment=True)) == [*KEYS, "adjustment"]
    assert found.to_payload(adjustment=True)["adjustment"] == 1.0


@pytest.mark.row("D-14", "S2-32")
def test_by_default_all_published_levels_are_in_one_unit():
    payload = compute().to_payload()
    assert [round(payload[key], 8) for key in ("tp1", "tp2", "tp3", "sl")] == [
        0.00847248, 0.01323624, 0.01861812, 0.01041431
    ]  # fmt: skip
    assert (f"{compute().tp1:.3f}", f"{compute().sl:.3f}") == ("0.847 %", "1.041 %")
    assert (f"{payload['tp1']:.3%}", f"{payload['sl']:.3%}") == ("0.847%", "1.041%")


@pytest.mark.row("S2-30")
@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 100), st.integers(0, 300).map(lambda n: n / 100), st.booleans(), st.integers(-50, 50))
def test_a_payload_is_plain_json_and_survives_it(leverage, volatility, adjustment, pnl):
    found = compute(leverage=leverage, volatility_factor=volatility, avg_pnl_last_20=pnl / 100)
    payload = found.to_payload(adjustment=adjustment)
    assert json.loads(json.dumps(payload, allow_nan=False)) == payload
    assert {type(value) for key, value in payload.items() if key != "harvest_scheme"} == {float}
    assert payload["avg_pnl_last_20"] == pnl / 100


@pytest.mark.row("S2-18")
def test_arguments_go_by_name_only():
    """A call that left out the symbol once shifted every argument by one."""
    with pytest.raises(TypeError):
        AdaptiveLevels().compute("BTC/USDT", 20)
    with pytest.raises(TypeError):
        AdaptiveLevels().compute(leverage=20)


@pytest.mark.row("D-14")
def test_no_level_is_declared_as_a_bare_number():
    """Only the reproduction of the original has floats called sl and tp."""
    found = []
    for path in (pathlib.Path(__file__).parents[1] / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.target if isinstance(node, ast.AnnAssign) else node
            called = getattr(name, "id", getattr(name, "arg", ""))
            kind = ast.unparse(node.annotation) if getattr(node, "annotation", None) else ""
            if called in {"sl", "tp", "tp1", "tp2", "tp3"} and "float" in kind and path.name != "seed_levels.py":
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


# --- Refusals ----------------------------------------------------------------------------------------


@pytest.mark.row("S2-17")
@pytest.mark.parametrize("changes", [
    {"leverage": 0}, {"leverage": -5}, {"leverage": float("nan")}, {"leverage": 126}, {"volatility_factor": -1},
    {"volatility_factor": float("inf")}, {"avg_pnl_last_20": float("nan")}, {"avg_pnl_last_20": Percent(5)},
    {"side": "BUY"}, {"confidence": 1.1}, {"exchange_divergence": -1}, {"symbol": ""},
])  # fmt: skip
def test_a_number_that_makes_no_sense_is_refused_never_replaced(changes):
    """The original took a leverage of 0 for 1, and computed on."""
    with pytest.raises(InvalidInput) as caught:
        compute(**changes)
    assert isinstance(caught.value, ValueError)


@pytest.mark.row("S2-34")
def test_too_much_leverage_is_an_error_or_a_value_as_the_caller_likes():
    with pytest.raises(NoSafeStop) as caught:
        compute(leverage=125, maintenance_margin_rate="0.01")
    assert caught.value.context["reason"] == "no_room_before_liquidation"
    fits = caught.value.context["leverage_fits"]
    assert fits in str(caught.value)
    assert compute(leverage=fits, maintenance_margin_rate="0.01").sl >= PriceFraction("0.0015")
    given_ = LevelsInput(symbol="X", leverage=125, maintenance_margin_rate="0.01")
    assert isinstance(AdaptiveLevels().evaluate(given_), Degraded)


def test_sides_are_read_in_either_case():
    assert compute(side="LONG") == compute(side="long") == compute(side=PositionSide.LONG)


# --- Prices ------------------------------------------------------------------------------------------


@pytest.mark.row("S3-11")
def test_a_stop_is_rounded_toward_the_entry_and_targets_away_from_it():
    found = compute()
    longs = found.prices("long", "0.6944", SOON)
    assert (longs.sl, longs.targets) == (Decimal("0.6872"), (Decimal("0.7003"), Decimal("0.7036"), Decimal("0.7074")))
    shorts = found.prices("SHORT", "0.6944", SOON)
    assert (shorts.sl, shorts.targets) == (Decimal("0.7016"), (Decimal("0.6885"), Decimal("0.6852"), Decimal("0.6814")))


def test_a_tick_wider_than_the_stop_is_refused():
    coarse = Instrument(symbol="X", tick_size=5)
    for side in ("long", "short"):
        with pytest.raises(NoSafeStop, match="tick"):
            compute().prices(side, 100, coarse)
        with pytest.raises(NoSafeStop):
            compute().prices(side, "102.5", coarse)


def test_a_target_at_zero_is_refused():
    wide = AdaptiveLevels(LevelsPolicy(sl_min=Percent(20), sl_max=Percent(30)))
    found = wide.compute(symbol="X", leverage=1, side="short")
    with pytest.raises(NoSafeStop, match="zero"):
        found.prices("short", "0.95", Instrument(symbol="X", tick_size=1))


def test_levels_of_one_side_are_not_used_for_the_other():
    """A long's liquidation is farther away than a short's."""
    with pytest.raises(InvalidInput, match="compute them again"):
        compute(side="long").prices("short", 100, SOON)
    for nothing in (None, "buy"):
        with pytest.raises(InvalidInput):
            compute().prices(nothing, 100, SOON)


ticks = st.sampled_from([None, *(Decimal(text) for text in ("0.0001", "0.01", "0.05", "0.3", "1"))])


@settings(max_examples=1000, deadline=None)
@given(
    st.integers(1, 100),
    st.sampled_from(list(PositionSide)),
    st.integers(10**6, 10**10).map(lambda n: Decimal(n) / 10**4),
    ticks,
)
def test_prices_are_on_the_tick_in_order_and_never_farther_than_allowed(leverage, side, entry, tick):
    found = compute(leverage=leverage, side=side)
    instrument = Instrument(symbol="X", tick_size=tick)
    expected = attempt(found, side, entry, instrument)
    with decimal.localcontext(decimal.Context(prec=3)):
        assert attempt(found, side, entry, instrument) == expected
    if expected is None:
        assert tick is not None
        assert entry * found.sl.value <= tick
        return
    sign = side.sign
    assert 0 < sign * (entry - expected.sl) <= entry * found.sl.value
    distances = [sign * (price - entry) for price in expected.targets]
    assert distances == sorted(distances)
    for distance, share in zip(distances, found.targets, strict=True):
        assert 0 <= distance - entry * share.value < (tick or Decimal("1e-20"))
    assert tick is None or all(price % tick == 0 for price in (expected.sl, *expected.targets))


def attempt(found, side, entry, instrument):
    try:
        return found.prices(side, entry, instrument)
    except NoSafeStop:
        return None


def test_levels_split_a_position():
    found = compute()
    plan = found.harvest("36.06", found.prices("long", "0.6944", SOON), SOON)
    assert [leg.quantity for leg in plan.legs] == [Decimal("14.42"), Decimal("14.42"), Decimal("7.22")]
    assert [leg.price for leg in plan.legs] == [Decimal("0.7003"), Decimal("0.7036"), Decimal("0.7074")]


# --- Memory ------------------------------------------------------------------------------------------


def test_two_symbols_share_nothing():
    """The original changed a singleton's base for one symbol and kept it for all."""
    machine = AdaptiveLevels(LevelsPolicy(feedback=FeedbackPolicy()))
    before = machine.compute(symbol="A", leverage=20)
    machine.compute(symbol="B", leverage=100, avg_pnl_last_20=-1, confidence=0)
    assert machine.compute(symbol="A", leverage=20) == before


def test_a_tracker_keeps_twenty_results_of_each_symbol():
    tracker = PnlTracker()
    assert tracker.average("A") == PnlAverage()
    for _ in range(5):
        tracker.record("A", 1)
    for _ in range(20):
        tracker.record("A", "0.05")
    tracker.record("B", -1)
    assert tracker.average("A") == PnlAverage(value="0.05", count=20)
    assert (tracker.average("B").value, tracker.average("B").count) == (MarginReturn(-1), 1)


def test_a_tracker_knows_its_unit():
    tracker = PnlTracker()
    assert tracker.record("A", Percent(1).roe(20)).value == MarginReturn("0.2")
    for bad in (Percent(1), float("nan"), None):
        with pytest.raises(InvalidInput):
            tracker.record("A", bad)
    with pytest.raises(InvalidInput):
        tracker.record("", 1)
    assert tracker.average("A").count == 1


def test_a_tracker_is_bounded():
    tracker = PnlTracker(symbols_max=2)
    for symbol in ("A", "B", "A", "C"):
        tracker.record(symbol, 1)
    assert [tracker.average(symbol).count for symbol in "ABC"] == [2, 0, 1]
    for bad in ({"size": 0}, {"symbols_max": 0}):
        with pytest.raises(InvalidInput):
            PnlTracker(**bad)


def test_results_reach_the_levels():
    """In the original they went to a method that did not exist, and the average stayed at zero for ever."""
    policy = FeedbackPolicy()
    tracker, machine = PnlTracker(policy), AdaptiveLevels(LevelsPolicy(feedback=policy))

    def adjustment():
        found = machine.compute(symbol="A", leverage=20, avg_pnl_last_20=tracker.average("A"))
        assert found.avg_pnl_last_20 == tracker.average("A").value
        return found.adjustment

    for _ in range(9):
        tracker.record("A", "-0.1")
    assert adjustment() == 1
    tracker.record("A", "-0.1")
    assert (adjustment(), tracker.average("A").trend) == (Decimal("0.9"), Trend.LOSING)
    tracker.record("A", "0.99")  # −0.0009 on average: not yet back
    assert tracker.average("A").value < MarginReturn(0)
    assert adjustment() == Decimal("0.9")
    tracker.record("A", "0.05")
    assert adjustment() == 1


def test_a_bare_average_is_a_return_on_margin_over_twenty():
    machine = AdaptiveLevels(LevelsPolicy(feedback=FeedbackPolicy()))
    assert machine.compute(symbol="A", leverage=20, avg_pnl_last_20=0.4).adjustment == Decimal("1.1")
    assert machine.compute(symbol="A", leverage=20, avg_pnl_last_20=MarginReturn("-0.1")).adjustment == Decimal("0.9")
    assert machine.compute(symbol="A", leverage=20, confidence=0.4).adjustment == Decimal("0.95")
    assert AdaptiveLevels().compute(symbol="A", leverage=20, avg_pnl_last_20=0.4).adjustment == 1
