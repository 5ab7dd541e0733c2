"""A stop that follows the price: it never loosens, and both sides are mirror images."""

from __future__ import annotations

import decimal
import itertools
from decimal import Decimal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.trailing import (
    TRAILING_TRANSITIONS,
    Hold,
    HoldReason,
    MoveStop,
    TrailingPhase,
    TrailingPolicy,
    TrailingReason,
    TrailingStop,
    Triggered,
    needs_saving,
    step,
    with_stop,
)
from execsafe.errors import InvalidInput, InvalidTransition
from execsafe.model.position import PositionSide
from execsafe.model.units import Bps, Percent, PriceFraction
from execsafe.stores import codec

pytestmark = pytest.mark.row("S3-13", "S3-14")

P = TrailingPhase
EAGER = TrailingPolicy(min_interval_ms=0, min_improvement=Percent(0))


def stop_for(side="long", *, entry=100, stop=None, tick=None, policy=None) -> TrailingStop:
    return TrailingStop(
        side=side, entry_price=entry, stop_price=stop, tick_size=tick, policy=policy or TrailingPolicy()
    )


def follow(state, *prices, start_ms=0, gap_ms=60_000):
    """Feed prices a minute apart; the last state, and every decision."""
    decisions = []
    for n, price in enumerate(prices):
        state, decision = step(state, price, start_ms + n * gap_ms)
        decisions.append(decision)
    return state, decisions


# --- The life of a stop ------------------------------------------------------------------------------


def test_the_defaults_are_the_originals():
    policy = TrailingPolicy()
    assert (policy.activation, policy.callback) == (Percent(2).as_fraction(), Percent("0.5").as_fraction())
    assert policy.breakeven == Percent("0.5").as_fraction()
    assert policy.min_improvement == Bps(5).as_fraction()
    assert policy.emergency_improvement == Percent(1).as_fraction()
    assert (policy.min_interval_ms, policy.save_interval_ms) == (30_000, 10_000)
    assert policy.save_change == Percent("0.2").as_fraction()


@pytest.mark.parametrize(("side", "below", "at", "beyond"), [("long", "101.99", 102, 110), ("short", "98.01", 98, 90)])
def test_activation_is_above_entry_for_a_long_and_below_it_for_a_short(side, below, at, beyond):
    fresh = stop_for(side)
    assert fresh.phase is P.INACTIVE
    assert fresh.activation_price == at
    assert step(fresh, below, 0)[0].phase is P.WAITING
    assert step(fresh, at, 0)[0].phase is P.ACTIVE
    assert step(fresh, beyond, 0)[0].phase is P.ACTIVE


def test_a_long_waits_breaks_even_follows_and_triggers():
    state, decisions = follow(stop_for(stop=96), 100, "100.4", "100.5", "101", 102, 104, "103.6", "103.48", 90)
    assert decisions == [
        Hold(reason=HoldReason.NOT_ACTIVATED),
        Hold(reason=HoldReason.NOT_ACTIVATED),
        MoveStop(stop_price=Decimal(100), previous=Decimal(96), reason=TrailingReason.BREAKEVEN),
        Hold(reason=HoldReason.NOT_BETTER),
        MoveStop(stop_price=Decimal("101.49"), previous=Decimal(100), reason=TrailingReason.TRAILING),
        MoveStop(stop_price=Decimal("103.48"), previous=Decimal("101.49"), reason=TrailingReason.TRAILING),
        Hold(reason=HoldReason.NOT_BETTER),
        Triggered(stop_price=Decimal("103.48"), price=Decimal("103.48")),
        Hold(reason=HoldReason.TRIGGERED),
    ]
    assert state.phase is P.TRIGGERED


def test_a_short_does_the_same_downwards():
    _, decisions = follow(stop_for("short", stop=104), 100, "99.6", "99.5", "99", 98, 96, "96.4", "96.48", 110)
    assert [type(d) for d in decisions] == [Hold, Hold, MoveStop, Hold, MoveStop, MoveStop, Hold, Triggered, Hold]
    assert [d.stop_price for d in decisions if isinstance(d, MoveStop)] == [100, Decimal("98.49"), Decimal("96.48")]


def test_the_first_stop_triggers_before_anything_was_activated():
    state, (decision,) = follow(stop_for(stop=96), 96)
    assert decision == Triggered(stop_price=Decimal(96), price=Decimal(96))
    assert state.phase is P.TRIGGERED


def test_without_breakeven_and_activation_there_is_nothing_to_do():
    policy = TrailingPolicy(breakeven=None)
    state, decisions = follow(stop_for(policy=policy), 100, 101, "101.9", 50)
    assert set(decisions) == {Hold(reason=HoldReason.NOT_ACTIVATED)}
    assert (state.phase, state.stop_price) == (P.WAITING, None)


# --- Moves that are not worth an order ---------------------------------------------------------------


def active(policy=None, **more):
    """Active since now=0 at 110, stop at 109.45."""
    return step(stop_for(policy=policy, **more), 110, 0)[0]


def test_moves_keep_an_interval():
    state = active()
    assert step(state, 111, 29_999)[1] == Hold(reason=HoldReason.TOO_SOON)
    assert isinstance(step(state, 111, 30_000)[1], MoveStop)


def test_a_move_of_one_percent_does_not_wait():
    state = active()
    assert step(state, "111.09", 1)[1] == Hold(reason=HoldReason.TOO_SOON)
    assert isinstance(step(state, "111.1", 1)[1], MoveStop)


def test_a_move_too_small_is_no_order_even_later():
    state = active()
    assert step(state, "110.054", 10**9)[1] == Hold(reason=HoldReason.TOO_SMALL)
    assert isinstance(step(state, "110.055", 10**9)[1], MoveStop)


def test_a_clock_that_was_set_back_does_not_hold_up_moves():
    assert isinstance(step(active(), 111, -(10**9))[1], MoveStop)


def test_a_move_that_was_held_back_still_triggers():
    """The rate limit decides when the venue is told, not where the stop belongs."""
    state, held = step(active(), 111, 1_000)
    assert held == Hold(reason=HoldReason.TOO_SOON)
    assert step(state, "110.4", 2_000)[1] == Triggered(stop_price=Decimal("110.445"), price=Decimal("110.4"))


def test_what_the_venue_kept_is_what_counts():
    """The move failed: the next price decides again from the stop that is in force."""
    before = active()
    moved, decision = step(before, 112, 60_000)
    assert isinstance(decision, MoveStop)
    kept = with_stop(moved, before.stop_price)
    assert kept.best_price == 112
    assert step(kept, 112, 120_000)[1] == attrs.evolve(decision, previous=before.stop_price)
    assert with_stop(moved, None).stop_price is None


# --- Ticks -------------------------------------------------------------------------------------------


@pytest.mark.row("S3-11")
@pytest.mark.parametrize(("side", "price", "expected"), [("long", "110.7", "110.2"), ("short", "90.3", "90.7")])
def test_the_stop_is_on_the_tick_toward_the_price(side, price, expected):
    """110.1465 becomes 110.2: never farther from the price than allowed."""
    _, decision = step(stop_for(side, tick="0.1"), price, 0)
    assert decision.stop_price == Decimal(expected)


@pytest.mark.parametrize(("side", "price", "expected"), [("long", 110, 105), ("short", 90, 95), ("long", 112, 110)])
def test_a_tick_coarser_than_the_callback_never_puts_the_stop_at_the_best_price(side, price, expected):
    _, decision = step(stop_for(side, tick=5), price, 0)
    assert decision.stop_price == expected


def test_a_tick_coarser_than_the_price_leaves_no_place_for_a_stop():
    _, decision = step(stop_for(tick=500), 110, 0)
    assert decision == Hold(reason=HoldReason.NOT_ACTIVATED)


def test_an_entry_price_with_endless_digits_is_taken():
    """Averages of coins worth little have more places than are accepted from outside."""
    average = decimal.Context(prec=28).divide(Decimal("0.00001234"), Decimal(7))
    state, decision = step(stop_for(entry=average, policy=EAGER), "0.000002", 0)
    assert isinstance(decision, MoveStop)
    assert step(state, "0.0000021", 1)[0].stop_price > state.stop_price


# --- Nothing of zero ---------------------------------------------------------------------------------


@pytest.mark.row("S3-15")
@pytest.mark.parametrize("name", ["activation", "callback", "breakeven", "emergency_improvement"])
@pytest.mark.parametrize("bad", [Percent(0), Percent(-1), Percent(100), 0, 0.02, "2 %"])
def test_a_policy_with_a_zero_or_without_units_cannot_be_built(name, bad):
    with pytest.raises(InvalidInput):
        TrailingPolicy(**{name: bad})


@pytest.mark.parametrize("bad", [-1, 1.5, True, None, 86_400_001])
def test_times_are_whole_milliseconds(bad):
    with pytest.raises(InvalidInput):
        TrailingPolicy(min_interval_ms=bad)
    with pytest.raises(InvalidInput):
        TrailingPolicy(save_interval_ms=bad)


def test_an_emergency_is_not_smaller_than_an_ordinary_move():
    with pytest.raises(InvalidInput, match="emergency_improvement"):
        TrailingPolicy(min_improvement=Percent(2))


@pytest.mark.parametrize(
    "changes",
    [
        {"entry_price": 0},
        {"entry_price": "nan"},
        {"stop_price": 0},
        {"tick_size": 0},
        {"best_price": 0, "phase": "active"},
        {"phase": "active"},
        {"best_price": 110},
        {"side": "buy"},
        {"phase": "running"},
    ],
)
def test_a_state_that_makes_no_sense_cannot_be_built(changes):
    with pytest.raises(InvalidInput):
        TrailingStop(**{"side": "long", "entry_price": 100, **changes})


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), None, True])
def test_a_price_that_is_none_is_refused(bad):
    with pytest.raises(InvalidInput):
        step(stop_for(), bad, 0)


@pytest.mark.row("S3-15")
def test_a_stop_that_was_stored_comes_back_as_it_was_or_not_at_all():
    codec.register(TrailingStop)
    state = active(tick="0.1")
    data = codec.encode(state)
    assert codec.decode(data) == state
    assert step(codec.decode(data), 120, 10**6) == step(state, 120, 10**6)
    broken = data.replace(b'"callback":{"value":"0.005"}', b'"callback":{"value":"0"}')
    assert broken != data
    with pytest.raises(codec.StoreCorrupt):
        codec.decode(broken)


# --- The table ---------------------------------------------------------------------------------------


def test_every_phase_is_in_the_table_and_there_is_no_way_back():
    assert set(TRAILING_TRANSITIONS) == set(P)
    order = list(P)
    for phase, following in TRAILING_TRANSITIONS.items():
        assert all(order.index(after) > order.index(phase) for after in following)
    assert TRAILING_TRANSITIONS[P.TRIGGERED] == frozenset()


def test_a_phase_that_the_table_does_not_allow_is_a_defect(monkeypatch):
    monkeypatch.setitem(TRAILING_TRANSITIONS, P.WAITING, frozenset())
    waiting = step(stop_for(), 100, 0)[0]
    with pytest.raises(InvalidTransition):
        step(waiting, 110, 1)


# --- Saving ------------------------------------------------------------------------------------------


def test_the_best_price_is_saved_when_losing_it_would_matter():
    saved = active()
    assert needs_saving(None, saved)
    assert not needs_saving(saved, saved)
    assert not needs_saving(saved, attrs.evolve(saved, best_price="110.21", best_at_ms=9_999))
    assert needs_saving(saved, attrs.evolve(saved, best_price="110.22", best_at_ms=1))
    assert needs_saving(saved, attrs.evolve(saved, best_price="110.01", best_at_ms=10_000))
    assert needs_saving(saved, attrs.evolve(saved, stop_price=109))
    assert needs_saving(stop_for(), step(stop_for(), 100, 0)[0])


# --- Properties --------------------------------------------------------------------------------------

sides = st.sampled_from(list(PositionSide))
moves = st.lists(st.integers(-300, 300), min_size=1, max_size=25)  # tenths of a percent, from the entry price
ticks = st.sampled_from([None, Decimal("0.01"), Decimal("0.5"), Decimal(3), Decimal(40)])
policies = st.builds(
    TrailingPolicy,
    activation=st.integers(1, 100).map(Bps),
    callback=st.integers(1, 200).map(Bps),
    breakeven=st.none() | st.integers(1, 100).map(Bps),
    min_improvement=st.integers(0, 30).map(Bps),
    emergency_improvement=st.integers(30, 100).map(Bps),
    min_interval_ms=st.sampled_from([0, 1_000, 30_000]),
)


def price_of(side: PositionSide, move: int) -> Decimal:
    """Up is a gain for a long, down for a short."""
    return Decimal(100) + side.sign * Decimal(move) / 10


@settings(max_examples=1000, deadline=None)
@given(
    side=sides,
    path=moves,
    gaps=st.lists(st.integers(-40_000, 40_000), min_size=25, max_size=25),
    tick=ticks,
    policy=policies,
    has_stop=st.booleans(),
)
def test_the_stop_never_loosens_and_phases_never_go_back(*, side, path, gaps, tick, policy, has_stop):
    """Whatever the prices do, and the clock."""
    state = stop_for(side, stop=price_of(side, -250) if has_stop else None, tick=tick, policy=policy)
    order = list(P)
    clock = itertools.accumulate(gaps)
    for move, now_ms in zip(path, clock, strict=False):
        price = price_of(side, move)
        after, decision = step(state, price, now_ms)
        assert order.index(after.phase) >= order.index(state.phase)
        if state.stop_price is not None:
            assert side.sign * after.stop_price >= side.sign * state.stop_price
        if isinstance(decision, MoveStop):
            assert (decision.stop_price, decision.previous) == (after.stop_price, state.stop_price)
            # On the losing side of the best price, so it does not trigger by itself the moment it is placed.
            assert side.sign * decision.stop_price < side.sign * price
            assert tick is None or decision.stop_price % tick == 0
        else:
            assert after.stop_price == state.stop_price
        assert isinstance(decision, Triggered) is (after.phase is P.TRIGGERED and state.phase is not P.TRIGGERED)
        state = after


def belongs(side: PositionSide, best: Decimal, policy: TrailingPolicy) -> Decimal | None:
    """The rule in one line for each side, written independently of the code."""
    sign = side.sign
    gain = sign * (best - 100) / 100
    places = []
    if gain >= policy.activation.value:
        places.append(best * (1 - sign * policy.callback.value))
    if policy.breakeven is not None and gain >= policy.breakeven.value:
        places.append(Decimal(100))
    return (max if sign > 0 else min)(places, default=None)


@settings(max_examples=1000, deadline=None)
@given(moves, policies)
def test_both_sides_follow_the_same_rule_with_the_sign_changed(path, policy):
    eager = attrs.evolve(policy, min_improvement=Bps(0), min_interval_ms=0)
    phases = {}
    for side in PositionSide:
        state, best = stop_for(side, policy=eager), None
        for move in path:
            price = price_of(side, move)
            state, decision = step(state, price, 0)
            best = price if best is None else (max if side.sign > 0 else min)(best, price)
            place = belongs(side, best, eager)
            if place is not None and side.sign * price <= side.sign * place:
                assert decision == Triggered(stop_price=place, price=price)
                break
            assert state.stop_price == place
            phases.setdefault(side, []).append(state.phase)
    # A callback is a share of the best price, so a short's is a little nearer: it may end earlier, never later.
    longs, shorts = phases.get(PositionSide.LONG, []), phases.get(PositionSide.SHORT, [])
    assert len(shorts) <= len(longs)
    assert longs[: len(shorts)] == shorts


@settings(max_examples=1000, deadline=None)
@given(sides, moves, policies, ticks)
def test_the_current_decimal_context_changes_nothing(side, path, policy, tick):
    def run():
        return follow(stop_for(side, entry="100.12345678", tick=tick, policy=policy), *prices)

    prices = [price_of(side, move) + Decimal("0.12345678") for move in path]
    expected = run()
    with decimal.localcontext(decimal.Context(prec=3)):
        assert run() == expected


def test_shares_may_be_given_in_any_unit():
    assert TrailingPolicy(activation=Bps(200)) == TrailingPolicy(activation=PriceFraction("0.02")) == TrailingPolicy()
