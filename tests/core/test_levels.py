"""The level formulas: golden values of the original, its unit bug as a test, and what holds for every input."""

from __future__ import annotations

import decimal
import itertools
import math
from decimal import Decimal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.feedback import FeedbackPolicy, PnlAverage, Trend, adjustment, next_trend
from execsafe.core.levels import (
    HARVEST_TIERS,
    Degraded,
    HarvestTier,
    Levels,
    LevelsInput,
    LevelsPolicy,
    LevelsWarning,
    StopBound,
    compute_levels,
    leverage_factor,
    liquidation_distance,
)
from execsafe.core.levels._formulas import raw_stop, raw_targets, stop_room
from execsafe.core.seed_levels import seed_numbers
from execsafe.errors import InvalidInput
from execsafe.model.position import PositionSide
from execsafe.model.units import Bps, MarginReturn, Percent, PriceFraction

pytestmark = pytest.mark.row("D-14", "S2-33")

POLICY = LevelsPolicy()
FREE = LevelsPolicy(taker_fee=Bps(0), slippage=Bps(0))


def inputs(**changes) -> LevelsInput:
    return LevelsInput(**{"symbol": "BTC/USDT:USDT", "leverage": 20, **changes})


def levels(policy=POLICY, **changes) -> Levels:
    found = compute_levels(policy, inputs(**changes))
    assert isinstance(found, Levels)
    return found


def near(share: PriceFraction, text: str) -> bool:
    return round(share.value, len(text) - 2) == Decimal(text)


# --- Golden values -----------------------------------------------------------------------------------


def test_the_data_point_in_one_unit():
    """L = 20 and volatility 1.5: the original's targets, and the stop that it meant to compute: 1.04 %."""
    found = levels(volatility_factor=1.5, confidence=0.91, funding_rate=-0.0001)
    assert near(found.tp1, "0.00847248")
    assert near(found.tp2, "0.01323624")
    assert near(found.tp3, "0.01861812")
    assert near(found.sl, "0.01041431")
    assert float(found.lsf) == 0.24724797930973505
    assert (found.adjustment, found.harvest_scheme) == (1, (Decimal("0.4"), Decimal("0.4"), Decimal("0.2")))
    assert found.bound is StopBound.FORMULA


def test_the_published_payload_to_the_last_digit():
    found = seed_numbers(leverage=Decimal(20), volatility_factor=Decimal("1.5"), exchange_divergence=Decimal(0))
    assert (found.lsf, found.tp1, found.tp2, found.tp3, found.sl) == (
        0.24724797930973505,
        0.847247979309735,
        1.3236239896548674,
        1.8618119948274339,
        0.02,
    )


def test_the_published_stop_was_never_adaptive():
    """It was computed in percent and clamped by a fraction: a constant, and read as percent fifty times too near."""
    stops = {
        seed_numbers(leverage=Decimal(lev), volatility_factor=Decimal(vf), exchange_divergence=Decimal(0)).sl
        for lev in range(1, 126)
        for vf in (0, 1, 2)
    }
    assert stops == {0.02}
    assert str(levels(volatility_factor=1.5).sl) == "1.0414311 %"


def test_the_stop_of_a_calm_market_is_a_quarter_nearer():
    assert near(levels(volatility_factor=0).sl, "0.0080")


@pytest.mark.parametrize(("leverage", "text"), [(1, "0.00664"), (125, "0.00831")])
def test_the_raw_stop_grows_with_leverage(leverage, text):
    """The original's comments said the opposite."""
    raw = raw_stop(POLICY, inputs(leverage=leverage, volatility_factor=0), leverage_factor(leverage), Decimal(1))
    assert near(raw, text)


@pytest.mark.parametrize(("volatility", "first"), [(0, 66), (1, 58), ("1.5", 55)])
def test_from_which_leverage_liquidation_decides(volatility, first):
    """A short at a maintenance margin rate of 0.5 %, costs left out: at 66x, 58x and 55x."""
    for side in ("short", None):
        cut = [
            leverage
            for leverage in range(1, 126)
            if levels(FREE, leverage=leverage, side=side, volatility_factor=volatility).bound is StopBound.LIQUIDATION
        ]
        assert cut == list(range(first, 126))


def test_the_clamp_alone_would_not_have_kept_the_stop_before_liquidation():
    """2 % is beyond 0.8 of the way from 34x on."""
    beyond = [
        lev for lev in range(1, 126) if stop_room(FREE, inputs(leverage=lev, side="short")) < Percent(2).as_fraction()
    ]
    assert beyond[0] == 34


def test_liquidation_distances():
    assert near(liquidation_distance(20, "0.005", PositionSide.LONG), "0.0452261")
    assert near(liquidation_distance(20, "0.005", PositionSide.SHORT), "0.0447761")
    assert liquidation_distance(20, "0.005") == liquidation_distance(20, "0.005", PositionSide.SHORT)
    assert liquidation_distance(1, 0, PositionSide.LONG) == PriceFraction(1)
    assert liquidation_distance(20, 1, PositionSide.LONG) < PriceFraction(0)


@pytest.mark.parametrize("side", list(PositionSide))
@pytest.mark.parametrize("leverage", [1, 3, 20, 125])
def test_at_the_liquidation_price_the_margin_is_what_must_be_maintained(side, leverage):
    """The formula against its definition: margin + profit = m · value at that price."""
    rate = Decimal("0.005")
    moved = 1 - side.sign * liquidation_distance(leverage, rate, side).value
    left = 1 / Decimal(leverage) + side.sign * (moved - 1)
    assert abs(left - rate * moved) < Decimal("1e-20")


def test_reward_and_risk_of_the_data_point():
    found = levels(volatility_factor=1.5)
    assert round(found.reward_risk, 2) == Decimal("1.19")
    assert found.warnings == ()


# --- Bounds and warnings -----------------------------------------------------------------------------


def test_a_target_is_never_below_its_floor_and_the_whole_ladder_rises():
    """Lifting one rung alone would make two of them equal."""
    policy = LevelsPolicy(base_tp=Percent("0.2"))
    found = levels(policy)
    assert found.tp1 == policy.tp_min < found.tp2 < found.tp3
    assert LevelsWarning.LADDER_LIFTED in found.warnings
    plain = levels()
    assert abs(found.tp3.value / found.tp1.value - plain.tp3.value / plain.tp1.value) < Decimal("1e-20")


def test_adjusting_comes_before_clamping():
    """The original clamped first, so 2 % could become 2.2 %."""
    policy = LevelsPolicy(base_sl=Percent(2), feedback=FeedbackPolicy())
    winning = PnlAverage(value="0.5", count=20, trend=Trend.WINNING)
    found = levels(policy, average=winning)
    assert found.adjustment == Decimal("1.1")
    assert (found.sl, found.bound) == (policy.sl_max, StopBound.SL_MAX)
    small = LevelsPolicy(base_sl=Bps(5), feedback=FeedbackPolicy())
    found = levels(small, average=PnlAverage(value="-0.5", count=20, trend=Trend.LOSING))
    assert (found.sl, found.bound) == (small.sl_min, StopBound.SL_MIN)


def test_warnings_say_what_the_levels_are_not_good_for():
    wide = levels(volatility_factor=8)
    assert LevelsWarning.REWARD_BELOW_RISK in wide.warnings
    assert wide.reward_risk < 1
    costly = levels(LevelsPolicy(spread=Percent(1)))
    assert costly.warnings == (LevelsWarning.TARGET_BELOW_COSTS,)
    assert levels(leverage=100).warnings == (LevelsWarning.STOP_CUT_BY_LIQUIDATION,)


@pytest.mark.row("S2-34")
def test_where_no_stop_fits_there_are_no_levels_rather_than_others():
    found = compute_levels(POLICY, inputs(leverage=100, maintenance_margin_rate="0.01", side="long"))
    assert isinstance(found, Degraded)
    assert found.room < PriceFraction(0) < found.needed == POLICY.sl_min
    below = levels(leverage=found.leverage_fits, maintenance_margin_rate="0.01", side="long")
    assert below.sl >= POLICY.sl_min
    above = compute_levels(
        POLICY, inputs(leverage=found.leverage_fits + 1, maintenance_margin_rate="0.01", side="long")
    )
    assert isinstance(above, Degraded)


@pytest.mark.row("S2-36")
def test_what_is_not_switched_on_is_not_used():
    plain = levels(side="long")
    more = levels(
        side="long", funding_rate="0.01", confidence="0.1", average=PnlAverage(value=-1, count=20, trend="losing")
    )
    assert attrs.evolve(more, avg_pnl_last_20=plain.avg_pnl_last_20) == plain


def test_funding_counts_with_the_sign_of_the_side():
    """Longs pay a positive rate and leave earlier, shorts receive it and can wait; the original raised both."""
    policy = LevelsPolicy(funding_weight="0.8")
    pays, gets = (levels(policy, side=side, funding_rate="0.001").tp1 for side in ("long", "short"))
    assert pays < levels(policy).tp1 < gets
    assert levels(policy, side="long", funding_rate="-0.001").tp1 == gets
    assert levels(policy, side=None, funding_rate="0.001").tp1 == levels(policy).tp1
    assert float(pays) == pytest.approx(float(levels().tp1) * (1 - 0.8 * 0.001), rel=1e-12)


@pytest.mark.parametrize(("leverage", "tier"), [(1, 0), (10, 0), ("10.01", 1), (30, 1), ("30.01", 2), (125, 2)])
def test_the_edges_of_a_harvest_tier_belong_to_it(leverage, tier):
    assert levels(leverage=leverage).harvest_scheme == HARVEST_TIERS[tier].shares


def test_harvest_schemes_of_the_original():
    assert [[float(share) for share in tier.shares] for tier in HARVEST_TIERS] == [
        [0.3, 0.3, 0.4],
        [0.4, 0.4, 0.2],
        [0.5, 0.3, 0.2],
    ]


# --- Feedback ----------------------------------------------------------------------------------------


def test_the_factors_that_feedback_can_reach():
    """The bounds of 0.8 and 1.2 never bind with the default steps."""
    reached = {
        adjustment(FeedbackPolicy(), trend, c) for trend in Trend for c in (None, Decimal("0.49"), Decimal("0.5"))
    }
    assert reached == {Decimal(text) for text in ("0.85", "0.90", "0.95", "1", "1.05", "1.1")}
    assert adjustment(FeedbackPolicy(lowest="0.95", highest="1.05"), Trend.LOSING, Decimal(0)) == Decimal("0.95")
    assert adjustment(None, Trend.LOSING, Decimal(0)) == 1


def test_a_trend_needs_trades_and_more_than_a_scratch():
    policy = FeedbackPolicy()
    assert next_trend(policy, Trend.NEUTRAL, MarginReturn(-1), 9) is Trend.NEUTRAL
    assert next_trend(policy, Trend.NEUTRAL, MarginReturn(-1), 10) is Trend.LOSING
    assert next_trend(policy, Trend.NEUTRAL, MarginReturn("-0.0001"), 20) is Trend.NEUTRAL
    assert next_trend(policy, Trend.NEUTRAL, MarginReturn("-0.0201"), 20) is Trend.LOSING
    assert next_trend(policy, Trend.LOSING, MarginReturn("-0.0001"), 20) is Trend.LOSING
    assert next_trend(policy, Trend.LOSING, MarginReturn(0), 20) is Trend.NEUTRAL
    assert next_trend(policy, Trend.NEUTRAL, MarginReturn("0.31"), 20) is Trend.NEUTRAL
    assert next_trend(policy, Trend.NEUTRAL, MarginReturn("0.33"), 20) is Trend.WINNING
    assert next_trend(policy, Trend.WINNING, MarginReturn("0.31"), 20) is Trend.WINNING
    assert next_trend(policy, Trend.WINNING, MarginReturn("0.30"), 20) is Trend.NEUTRAL
    assert next_trend(policy, Trend.WINNING, MarginReturn(-1), 20) is Trend.LOSING


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.integers(-25, 60), min_size=1, max_size=30))
def test_a_trend_never_flips_twice_within_the_hysteresis(averages):
    """Leaving and entering the same trend takes a move of at least the hysteresis."""
    policy, trend, left_at = FeedbackPolicy(), Trend.NEUTRAL, {}
    for average in (MarginReturn(Decimal(a) / 100) for a in averages):
        after = next_trend(policy, trend, average, 20)
        if after is not trend:
            left_at[trend] = average
            if after is not Trend.NEUTRAL and after in left_at:
                assert abs(average - left_at[after]) > policy.hysteresis
        trend = after


def test_the_stop_can_be_left_out_of_feedback():
    losing = PnlAverage(value="-0.5", count=20, trend=Trend.LOSING)
    both = levels(LevelsPolicy(feedback=FeedbackPolicy()), average=losing)
    targets_only = levels(LevelsPolicy(feedback=FeedbackPolicy(adjusts_stop=False)), average=losing)
    assert both.tp1 == targets_only.tp1 < levels().tp1
    assert both.sl < targets_only.sl == levels().sl
    assert near(both.tp1, "0.00762523")


def test_neutral_feedback_reproduces_the_data_point():
    found = levels(LevelsPolicy(feedback=FeedbackPolicy()), confidence="0.91", volatility_factor="1.5")
    assert found == levels(confidence="0.91", volatility_factor="1.5")


# --- What is refused ---------------------------------------------------------------------------------

BAD = [float("nan"), float("inf"), -1, "-0.1", True, None, "many", "1e3"]


@pytest.mark.parametrize("name", ["leverage", "volatility_factor", "exchange_divergence", "maintenance_margin_rate"])
@pytest.mark.parametrize("bad", BAD)
def test_inputs_are_finite_and_not_negative(name, bad):
    with pytest.raises(InvalidInput, match=name):
        inputs(**{name: bad})


@pytest.mark.parametrize("changes", [
    {"leverage": 0}, {"leverage": "0.99"}, {"confidence": 2}, {"confidence": -1}, {"funding_rate": 2},
    {"funding_rate": "nan"}, {"volatility_factor": 1001}, {"maintenance_margin_rate": 2}, {"side": "buy"},
    {"side": 1}, {"symbol": ""},
])  # fmt: skip
def test_inputs_out_of_range_are_refused(changes):
    with pytest.raises(InvalidInput):
        inputs(**changes)


@pytest.mark.row("S2-43")
def test_leverage_is_an_input_with_a_limit():
    """Choosing it is out of scope; a wrong one is never corrected in silence."""
    with pytest.raises(InvalidInput, match="126"):
        compute_levels(POLICY, inputs(leverage=126))
    with pytest.raises(InvalidInput, match="50"):
        compute_levels(LevelsPolicy(leverage_max=50), inputs(leverage=51))


@pytest.mark.parametrize("changes", [
    {"base_tp": 0.01}, {"base_sl": "0.005"}, {"base_tp": Percent(0)}, {"base_tp": Percent(26)},
    {"base_sl": Percent(-1)}, {"sl_min": Percent(3)}, {"liquidation_share": 0}, {"liquidation_share": 2},
    {"leverage_max": "0.5"},
    {"harvest_tiers": ()}, {"harvest_tiers": HARVEST_TIERS[:2]}, {"harvest_tiers": HARVEST_TIERS[::-1]},
    {"taker_fee": Percent(11)}, {"funding_weight": 2},
])  # fmt: skip
def test_a_policy_that_makes_no_sense_cannot_be_built(changes):
    with pytest.raises(InvalidInput):
        LevelsPolicy(**changes)


@pytest.mark.parametrize(
    "shares", [(1,), ("0.5", "0.5"), ("0.3", "0.3", "0.3"), ("0.6", "0.6", "-0.2"), (0.1, 0.2, 0.71)]
)
def test_a_harvest_scheme_has_three_shares_that_sum_to_one(shares):
    with pytest.raises(InvalidInput):
        HarvestTier(shares=shares)
    assert HarvestTier(shares=(0.1, 0.2, 0.7)).shares[2] == Decimal("0.7")


@pytest.mark.parametrize("changes", [
    {"loss_cut": 2}, {"doubt_cut": -1}, {"trades_min": 0}, {"hysteresis": "-0.1"}, {"win_above": -1}, {"lowest": 0},
    {"highest": "0.9"}, {"win_above": Percent(30)},
])  # fmt: skip
def test_a_feedback_that_makes_no_sense_cannot_be_built(changes):
    with pytest.raises(InvalidInput):
        FeedbackPolicy(**changes)


# --- What holds for every input ----------------------------------------------------------------------

leverages = st.integers(1, 125)
sides = st.sampled_from([*PositionSide, None])
given_inputs = st.builds(
    LevelsInput,
    symbol=st.just("BTC/USDT"),
    leverage=leverages | st.integers(100, 12_500).map(lambda n: Decimal(n) / 100),
    side=sides,
    volatility_factor=st.integers(0, 400).map(lambda n: Decimal(n) / 100),
    exchange_divergence=st.integers(0, 200).map(lambda n: Decimal(n) / 100),
    funding_rate=st.none() | st.integers(-300, 300).map(lambda n: Decimal(n) / 10_000),
    average=st.builds(PnlAverage, trend=st.sampled_from(list(Trend))),
    confidence=st.none() | st.integers(0, 100).map(lambda n: Decimal(n) / 100),
    maintenance_margin_rate=st.integers(0, 200).map(lambda n: Decimal(n) / 10_000),
)
given_policies = st.builds(
    LevelsPolicy,
    base_tp=st.integers(1, 500).map(Bps),
    base_sl=st.integers(1, 500).map(Bps),
    funding_weight=st.integers(0, 10).map(lambda n: Decimal(n) / 10),
    feedback=st.none() | st.just(FeedbackPolicy()),
    liquidation_share=st.integers(1, 10).map(lambda n: Decimal(n) / 10),
)


@settings(max_examples=1000, deadline=None)
@given(given_policies, given_inputs)
def test_levels_are_ordered_bounded_and_nearer_than_liquidation(policy, given):
    found = compute_levels(policy, given)
    room = stop_room(policy, given)
    if isinstance(found, Degraded):
        assert room < policy.sl_min
        return
    assert policy.tp_min <= found.tp1 < found.tp2 < found.tp3 < PriceFraction(1)
    assert policy.sl_min <= found.sl <= policy.sl_max
    assert found.sl <= room < liquidation_distance(given.leverage, given.maintenance_margin_rate, given.side)
    assert min(found.harvest_scheme) >= 0
    assert sum(found.harvest_scheme) == 1
    if found.bound is StopBound.LIQUIDATION:
        assert found.sl == room
    assert (found.reward_risk < 1) is (LevelsWarning.REWARD_BELOW_RISK in found.warnings)


@pytest.mark.parametrize("side", list(PositionSide))
@pytest.mark.parametrize("volatility", [0, "1.5", 10])
def test_the_stop_comes_before_liquidation_at_every_leverage(side, volatility):
    """Both sides, 1x to 125x, fees and slippage included; a short's bound holds where the side is not known."""
    for leverage in range(1, 126):
        limit = liquidation_distance(leverage, "0.005", side) - POLICY.taker_fee - POLICY.slippage
        assert levels(leverage=leverage, side=side, volatility_factor=volatility).sl < limit
        assert levels(leverage=leverage, volatility_factor=volatility).sl < limit


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.integers(100, 12_500), min_size=2, max_size=2, unique=True))
def test_lsf_is_strictly_decreasing_and_bounded(pair):
    low, high = (Decimal(n) / 100 for n in sorted(pair))
    assert 0 < leverage_factor(high) < leverage_factor(low) <= leverage_factor(1) < Decimal("0.5907")


@settings(max_examples=1000, deadline=None)
@given(leverages)
def test_lsf_agrees_with_floating_point(leverage):
    assert float(leverage_factor(leverage)) == pytest.approx(1 / (1 + math.log(leverage + 1)), rel=1e-15)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.integers(100, 12_500), min_size=2, max_size=2, unique=True), sides)
def test_targets_fall_with_leverage_in_the_ratio_of_their_weights(pair, side):
    """Sensitivities 1 : 1/2 : 1/4; and the raw stop grows."""
    low, high = (Decimal(n) / 100 for n in sorted(pair))
    at = [inputs(leverage=leverage, side=side) for leverage in (low, high)]
    near_, far = (raw_targets(POLICY, one, leverage_factor(one.leverage), Decimal(1)) for one in at)
    falls = [a.value - b.value for a, b in zip(near_, far, strict=True)]
    assert falls[0] > 0
    assert abs(falls[0] - 2 * falls[1]) < Decimal("1e-22")
    assert abs(falls[0] - 4 * falls[2]) < Decimal("1e-22")
    before, after = (raw_stop(POLICY, one, leverage_factor(one.leverage), Decimal(1)) for one in at)
    calm_most = POLICY.base_sl.value * Decimal("1.8") * Decimal("1.2")
    assert before < after < PriceFraction(calm_most)


@settings(max_examples=1000, deadline=None)
@given(given_inputs)
def test_the_current_decimal_context_changes_nothing_but_the_context(given):
    expected = compute_levels(LevelsPolicy(funding_weight="0.8", feedback=FeedbackPolicy()), given)
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)):
        assert compute_levels(LevelsPolicy(funding_weight="0.8", feedback=FeedbackPolicy()), given) == expected


def test_the_stop_grows_with_volatility_and_divergence():
    stops = [
        raw_stop(POLICY, inputs(volatility_factor=vf, exchange_divergence=xd), leverage_factor(20), Decimal(1))
        for vf, xd in [(0, 0), (1, 0), (1, "0.5"), (2, "0.5"), (2, 1)]
    ]
    assert all(a < b for a, b in itertools.pairwise(stops))
