"""Exits as decisions: how urgent, at which price, how much, and when to rest. No venue, no waiting."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from execsafe.core import exits
from execsafe.core.backoff import Backoff
from execsafe.core.exits import (
    EXIT_TRANSITIONS,
    REJECTS,
    AskMarket,
    Disagree,
    ExitPolicy,
    ExitReason,
    ExitState,
    Finish,
    Hold,
    Holding,
    Postpone,
    Progress,
    RejectClass,
    Send,
    Sight,
)
from execsafe.errors import InvalidInput, InvalidTransition
from execsafe.model.instrument import Instrument
from execsafe.model.intent import ErrorFacts
from execsafe.model.order import Side
from execsafe.model.position import Position, PositionSide
from execsafe.stores import codec

D = Decimal
SOON = Instrument(
    symbol="SOON/USDT", base="SOON", tick_size="0.0001", step_size="0.01", min_quantity="0.01", min_notional="5"
)
PERP = attrs.evolve(SOON, symbol="SOON/USDT:USDT")
POLICY = ExitPolicy()
RESTING = [ExitState.HELD, ExitState.UNKNOWN, ExitState.MISMATCH]


def position(quantity="36.06", **changes) -> Position:
    base = {"account": "default", "symbol": "SOON/USDT", "side": PositionSide.LONG, "position_id": "p1"}
    return Position(**{**base, "quantity": D(quantity), "opened_at_ms": 500, "updated_at_ms": 500, **changes})


def begun(reason=ExitReason.TAKE_PROFIT, held=None, **more):
    return exits.begun(None, held or position(), reason, now_ms=1_000, **more)


OPEN = position()


def decide(record=None, *, held=OPEN, bid="0.6944", holding=None, policy=POLICY, instrument=SOON, **progress):
    sight = Sight(position=held, holding=holding, reference=None if bid is None else D(bid))
    return exits.decide(record or begun(), sight, policy, instrument, Progress(**progress))


# --- The policy ---------------------------------------------------------------------------------------------


@pytest.mark.row("S0-01", "S0-11", "S0-17")
def test_the_defaults_are_the_seeds():
    assert (POLICY.never_market_sells, POLICY.max_slippage_bps, POLICY.exit_ioc_ttl_ms, POLICY.skip_under_min) == (
        False, 50, 3_000, False,
    )  # fmt: skip
    assert POLICY.ladder_bps == (50, 100, 200, 500)
    assert POLICY.attempts_max == 4
    assert [POLICY.backoff.envelope_ms(n) for n in (1, 2, 3)] == [400, 800, 1_600]


@pytest.mark.row("S0-01")
@pytest.mark.parametrize(
    "wrong",
    [
        {"max_slippage_bps": -1},
        {"max_slippage_bps": 10_000},
        {"max_slippage_bps": 1.5},
        {"panic_slippage_bps": True},
        {"exit_ioc_ttl_ms": 0},
        {"exit_ioc_ttl_ms": 2.5},
        {"ladder_bps": ()},
        {"ladder_bps": (100, 50)},
        {"ladder_bps": (50, 50)},
        {"ladder_bps": (50, 10_000)},
        {"ladder_bps": 50},
        {"never_market_sells": 1},
        {"skip_under_min": "no"},
        {"cool_down_ms": 0},
        {"cool_down_ms": 1_000, "cool_down_max_ms": 999},
        {"cool_down_factor": 0.5},
        {"breaker_threshold": 0},
        {"stuck_attempts": 0},
        {"stuck_after_ms": (5, 1)},
        {"approval_timeout_s": 0},
        {"approval_timeout_s": float("nan")},
        {"backoff": Backoff(max_attempts=None)},
        {"backoff": 4},
    ],
    ids=str,
)
def test_a_policy_that_cannot_work_is_refused(wrong):
    with pytest.raises(InvalidInput):
        ExitPolicy(**wrong)


@pytest.mark.row("S1-07", "D-18")
def test_the_priorities_are_the_seeds():
    in_order = sorted(ExitReason, key=lambda reason: reason.priority)
    assert in_order == [
        ExitReason.PANIC, ExitReason.TTL, ExitReason.STOP_LOSS, ExitReason.TAKE_PROFIT, ExitReason.TRAILING,
    ]  # fmt: skip
    assert [reason.priority for reason in in_order] == [1, 2, 3, 4, 5]
    assert ExitReason.STOP_LOSS.outranks(ExitReason.TAKE_PROFIT)
    assert not ExitReason.TAKE_PROFIT.outranks(ExitReason.TAKE_PROFIT)


@pytest.mark.row("S0-17", "S0-35")
@pytest.mark.parametrize(
    ("reason", "policy", "rungs"),
    [
        (ExitReason.TAKE_PROFIT, {}, (50,)),
        (ExitReason.TRAILING, {}, (50,)),
        (ExitReason.TTL, {}, (50, 100, 200)),
        (ExitReason.STOP_LOSS, {}, (50, 100, 200, 500)),
        (ExitReason.PANIC, {}, (50, 100, 200, 500)),
        (ExitReason.TAKE_PROFIT, {"max_slippage_bps": 30}, (30,)),
        (ExitReason.TAKE_PROFIT, {"max_slippage_bps": 150}, (50, 100, 150)),
        (ExitReason.TAKE_PROFIT, {"max_slippage_bps": 900}, (50, 100, 200, 500)),
        (ExitReason.TAKE_PROFIT, {"max_slippage_bps": 0}, (0,)),
    ],
)
def test_the_ladder_is_bounded_by_what_the_reason_is_worth(reason, policy, rungs):
    assert ExitPolicy(**policy).rungs(reason) == rungs


@given(
    st.lists(st.integers(0, 9_999), min_size=1, max_size=6, unique=True).map(sorted),
    st.integers(0, 9_999),
    st.sampled_from(list(ExitReason)),
)
@settings(max_examples=1_000, deadline=None)
def test_no_rung_is_ever_beyond_the_bound_and_the_ladder_never_falls(ladder, bound, reason):
    policy = ExitPolicy(ladder_bps=ladder, max_slippage_bps=bound)
    rungs = policy.rungs(reason)
    assert rungs
    assert list(rungs) == sorted(set(rungs))
    assert rungs[-1] <= policy.bound_bps(reason)


@pytest.mark.row("S0-16")
def test_a_rest_grows_until_its_cap():
    rests = [POLICY.cool_down(n) for n in range(1, 9)]
    assert rests == [10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000, 300_000]
    assert POLICY.cool_down(100_000) == 300_000


# --- Prices -------------------------------------------------------------------------------------------------


@pytest.mark.row("S0-35", "S0-10")
@pytest.mark.parametrize(
    ("side", "reference", "bps", "limit"),
    [
        (Side.SELL, "0.6944", 50, "0.6910"),  # 0.690928, up to the tick
        (Side.BUY, "0.6944", 50, "0.6978"),  # 0.697872, down to the tick
        (Side.SELL, "0.6944", 0, "0.6944"),
        (Side.BUY, "0.6944", 0, "0.6944"),
        (Side.SELL, "100", 500, "95"),
        (Side.BUY, "100", 500, "105"),
    ],
)
def test_a_limit_is_the_best_price_and_the_slippage_on_the_safe_side_of_the_tick(side, reference, bps, limit):
    assert exits.limit_from_slippage(side, D(reference), bps, SOON) == D(limit)


@pytest.mark.row("S0-35")
@pytest.mark.parametrize("reference", ["0", "-1", "NaN", "Infinity"])
def test_a_price_that_is_none_is_refused(reference):
    with pytest.raises(InvalidInput):
        exits.limit_from_slippage(Side.SELL, D(reference), 50, SOON)


@pytest.mark.row("S0-35")
@given(strategies.prices, st.integers(0, 9_999), strategies.sides, strategies.instruments())
@settings(max_examples=1_000, deadline=None)
def test_a_limit_never_gives_away_more_than_the_slippage(reference, bps, side, instrument):
    limit = exits.limit_from_slippage(side, reference, bps, instrument)
    exact = reference * (10_000 - bps if side is Side.SELL else 10_000 + bps) / 10_000
    if side is Side.SELL:
        assert limit >= exact
    else:
        assert limit <= exact
    if instrument.tick_size is None:
        assert limit == exact


# --- How much -----------------------------------------------------------------------------------------------


@pytest.mark.row("S0-10")
def test_what_the_fee_took_is_not_sold():
    """36.06 bought, 5 bps taken in base: 36.04197 is there, and 36.04 of it is on the step."""
    free = Holding(free=D("36.04197"), total=D("36.04197"))
    assert exits.sellable(D("36.06"), free, SOON) == D("36.04")
    assert exits.sellable(D("36.04197"), None, SOON) == D("36.04")


@given(
    strategies.quantities,
    st.none() | st.tuples(strategies.quantities, strategies.quantities),
    strategies.instruments(),
    st.none() | strategies.quantities,
)
@settings(max_examples=1_000, deadline=None)
@pytest.mark.guarantee(10)
def test_g10_what_is_sellable_is_never_more_than_is_wanted_free_or_allowed(want, held, instrument, most):
    holding = None if held is None else Holding(free=held[0], total=held[0] + held[1])
    instrument = attrs.evolve(instrument, max_quantity=most)
    quantity = exits.sellable(want, holding, instrument)
    assert 0 <= quantity <= want
    assert holding is None or quantity <= holding.free
    assert most is None or quantity <= most
    assert instrument.floor_quantity(quantity) == quantity


@pytest.mark.parametrize(("taken", "trusts", "counts"), [(1_499, False, False), (1_500, False, True), (0, True, True)])
def test_a_reading_counts_once_it_must_show_the_last_change(taken, trusts, counts):
    """Until then it may show how things were before: only the venue's own refusal makes it count at once."""
    held = Holding(free=D(1), total=D(1))
    found = exits.holding_that_counts(held, taken_at_ms=taken, changed_at_ms=1_000, lag_ms=500, trusts_venue=trusts)
    assert found == (held if counts else None)


# --- What next ----------------------------------------------------------------------------------------------


@pytest.mark.row("S0-17", "S0-35")
def test_the_ladder_goes_down_rung_by_rung_for_a_stop_loss():
    record = begun(ExitReason.STOP_LOSS)
    steps = [decide(record, rung=n, attempts=n) for n in range(4)]
    assert [s.slippage_bps for s in steps] == [50, 100, 200, 500]
    assert [s.limit_price for s in steps] == [D("0.6910"), D("0.6875"), D("0.6806"), D("0.6597")]
    assert {s.quantity for s in steps} == {D("36.06")}


@pytest.mark.row("S0-18", "S0-19")
def test_a_market_order_is_asked_for_only_when_the_ladder_is_spent_and_never_if_forbidden():
    assert decide(rung=3, attempts=4) == AskMarket(quantity=D("36.06"))
    strict = ExitPolicy(never_market_sells=True)
    assert decide(rung=3, attempts=4, policy=strict) == Postpone(hold=Hold.NO_LIQUIDITY)


@pytest.mark.row("S0-35", "S0-19")
def test_without_a_bid_nothing_is_sent():
    assert decide(bid=None) == Postpone(hold=Hold.NO_PRICE)


@pytest.mark.row("S0-33")
def test_what_no_order_can_be_made_of_is_dust():
    assert decide(held=position("0.009")) == Finish(state=ExitState.DUST, quantity=D("0.009"))
    worthless = decide(held=position("7.19"))  # 4.99 USDT
    assert worthless == Finish(state=ExitState.DUST, quantity=D("7.19"))
    assert isinstance(decide(held=position("7.21")), (Send, AskMarket))


@pytest.mark.row("S0-33")
def test_a_contracts_remainder_is_sent_below_the_minimum_value_unless_told_to_skip_it():
    held = position("7", symbol=PERP.symbol)
    record = begun(held=held)
    assert isinstance(decide(record, held=held, instrument=PERP), Send)
    skipping = decide(record, held=held, instrument=PERP, policy=ExitPolicy(skip_under_min=True))
    assert skipping == Finish(state=ExitState.DUST, quantity=D(7))


@pytest.mark.row("S0-33")
def test_a_rung_at_which_the_value_falls_below_the_minimum_is_not_sent():
    """The venue judges the value at the order's own price, and would refuse it."""
    record = begun(ExitReason.STOP_LOSS)
    assert isinstance(decide(record, held=position("7.25"), rung=0), Send)
    assert decide(record, held=position("7.25"), rung=3) == AskMarket(quantity=D("7.25"))


@pytest.mark.row("D-05")
@pytest.mark.parametrize(
    ("free", "total", "decision"),
    [
        ("36.06", "36.06", Send),
        ("20", "36.06", Send),  # what is free goes first
        ("20", "20", Send),
        ("0", "36.06", Postpone(hold=Hold.LOCKED)),
        ("1", "36.06", Postpone(hold=Hold.LOCKED)),  # free, but not worth an order
        ("0", "0", Disagree(position_quantity=D("36.06"), venue_quantity=D(0))),
        ("0", "0.004", Disagree(position_quantity=D("36.06"), venue_quantity=D("0.004"))),
    ],
)
def test_the_venues_word_only_ever_makes_it_less(free, total, decision):
    found = decide(holding=Holding(free=D(free), total=D(total)))
    if decision is Send:
        assert found.quantity == min(D(free), D("36.06"))
    else:
        assert found == decision


def test_a_position_with_nothing_at_the_venue_is_a_phantom():
    assert Disagree(position_quantity=D(1), venue_quantity=D(0)).is_phantom
    assert not Disagree(position_quantity=D(1), venue_quantity=D("0.004")).is_phantom


@pytest.mark.parametrize(
    "held", [None, position("0"), position(position_id="p2", opened_at_ms=2_000), position(side=PositionSide.SHORT)]
)
def test_an_exit_ends_with_its_position_and_never_touches_the_next_one(held):
    assert decide(held=held) == Finish(state=ExitState.CLOSED)


def test_a_position_that_late_evidence_named_anew_is_still_the_same():
    assert isinstance(decide(held=position(position_id="p2", opened_at_ms=500)), Send)


@pytest.mark.row("S0-36")
def test_a_part_is_wanted_only_once():
    record = begun(wanted=D(10))
    assert decide(record).quantity == D(10)
    after = exits.settled(record, D(4), D("0.69"), now_ms=1)
    assert decide(after, held=position("32.06"), bid="1").quantity == D(6)
    done = exits.settled(after, D(6), D("0.69"), now_ms=2)
    assert decide(done, held=position("26.06")) == Finish(state=ExitState.CLOSED)


def test_more_than_the_venue_takes_at_once_goes_in_slices():
    capped = attrs.evolve(SOON, max_quantity="10.005")
    assert decide(instrument=capped).quantity == D("10.00")


@pytest.mark.row("S0-11", "S0-36")
def test_a_full_fill_costs_no_attempt_a_part_none_of_the_price_and_being_turned_away_neither():
    start = Progress(rung=1, attempts=1)
    assert start.after(quantity=D(2), filled=D(2)) == start
    assert start.after(quantity=D(2), filled=D(1)) == Progress(rung=1, attempts=2)
    assert start.after(quantity=D(2), filled=D(0)) == Progress(rung=2, attempts=2)
    assert start.after(quantity=D(2), filled=D(0), was_turned_away=True) == Progress(rung=1, attempts=2)


@pytest.mark.row("S0-11")
def test_pauses_grow_come_before_every_repetition_only_and_are_the_same_on_replay():
    record, policy = begun(), ExitPolicy(backoff=Backoff(jitter=0.0))
    assert [exits.pause_ms(record, policy, n) for n in range(6)] == [0, 400, 800, 1_600, 0, 0]
    jittered = [exits.pause_ms(record, POLICY, n) for n in range(4)]
    assert jittered == [exits.pause_ms(record, POLICY, n) for n in range(4)]
    assert all(e / 2 <= p <= e for p, e in zip(jittered[1:], [400, 800, 1_600], strict=True))
    other = begun(held=position(position_id="p9"))
    assert exits.pause_ms(other, POLICY, 3) != exits.pause_ms(record, POLICY, 3)


# --- The sum of fills, whatever happens -----------------------------------------------------------------------

fill = st.tuples(
    st.integers(0, 4),  # quarters of the order that fill
    st.sampled_from(["ok", "refused", "locked"]),
    st.sampled_from([None, *ExitReason]),  # a wish that comes meanwhile
    st.integers(0, 3),  # quarters of the position that an entry adds late
)


@pytest.mark.guarantee(10)
@pytest.mark.row("S0-36")
@given(st.integers(1, 4_000), st.lists(fill, max_size=25), st.none() | st.integers(1, 4_000))
@settings(max_examples=1_000, deadline=None)
def test_g10_the_sum_of_fills_never_exceeds_the_position(hundredths, course, wanted_hundredths):
    """Any course of parts, refusals, locks, upgrades and late entries: at every instant closed ≤ held in all."""
    held_in_all = held = D(hundredths) / 100
    wanted = None if wanted_hundredths is None else D(wanted_hundredths) / 100
    record = begun(held=position(str(held)), wanted=wanted)
    progress = Progress()
    is_partial = wanted is not None
    for quarters, what, wish, more in course:
        if wish is not None:
            record = exits.merged(record, wish, None if is_partial else D(1), now_ms=1)
            is_partial = is_partial and record.wanted is not None
        free = held / 2 if what == "locked" else held
        holding = Holding(free=free, total=held)
        book = position(str(held)) if held else None
        step = exits.decide(record, Sight(position=book, holding=holding, reference=D("0.7")), POLICY, SOON, progress)
        if not isinstance(step, (Send, AskMarket)):
            break
        filled = D(0) if what == "refused" else SOON.floor_quantity(step.quantity * quarters / 4)
        record = exits.settled(record, filled, D("0.7"), now_ms=1)
        progress = progress.after(quantity=step.quantity, filled=filled)
        held -= filled
        assert held >= 0
        assert record.closed_quantity <= held_in_all
        assert record.wanted is None or wanted is None or record.closed_quantity <= record.wanted
        added = held * more / 4
        held, held_in_all = held + added, held_in_all + added


# --- What a reject asks for -----------------------------------------------------------------------------------


@pytest.mark.row("S0-08", "S0-09", "S0-12", "D-05")
@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (("InsufficientFunds", 'mexc {"msg":"Oversold","code":30005}', "30005"), RejectClass.POSITION),
        (("InvalidOrder", 'mexc {"msg":"","code":30005}', "30005"), RejectClass.POSITION),
        (("InvalidOrder", "mexc Oversold", None), RejectClass.POSITION),
        (("InsufficientFunds", "mexc", "30004"), RejectClass.POSITION),
        (
            ("InsufficientFunds", 'binance {"code":-2010,"msg":"Account has insufficient balance"}', "-2010"),
            RejectClass.POSITION,
        ),
        (("InvalidOrder", 'binanceusdm {"code":-2022,"msg":"ReduceOnly"}', "-2022"), RejectClass.POSITION),
        (("InvalidOrder", 'bybit {"retCode":110017}', "110017"), RejectClass.POSITION),
        (("InvalidOrder", "okx", "51205"), RejectClass.POSITION),
        (("ExchangeError", "okx", "51023"), RejectClass.POSITION),
        (("InvalidOrder", "okx", "51112"), RejectClass.POSITION),
        (("ExchangeError", "okx", "51169"), RejectClass.POSITION),
        (("InvalidOrder", 'gate {"label":"POSITION_EMPTY","message":""}', "POSITION_EMPTY"), RejectClass.POSITION),
        (
            ("InvalidOrder", 'mexc {"code":2009,"message":"Position is nonexistent or closed"}', "2009"),
            RejectClass.POSITION,
        ),
        (("InvalidOrder", 'another {"code":2009,"message":"Invalid price"}', "2009"), RejectClass.STOP),
        (("ExchangeError", 'bitget {"code":"22002","msg":"No position to close"}', "22002"), RejectClass.POSITION),
        (("ExchangeError", 'another {"code":"22002","msg":"Invalid price"}', "22002"), RejectClass.STOP),
        (("ExchangeError", "okx", "50061"), RejectClass.RETRY),
        (("ExchangeError", "binance", "-5028"), RejectClass.RETRY),
        (("DDoSProtection", 'binance {"code":-2015,"msg":"Invalid API-key"}', "-2015"), RejectClass.STOP),
        (("AuthenticationError", 'binanceusdm {"code":-2015,"msg":"Invalid API-key"}', "-2015"), RejectClass.STOP),
        (("InvalidOrder", "sim reduce_only", None), RejectClass.POSITION),
        (("OrderNotFillable", "", None), RejectClass.NO_FILL),
        (("RateLimitExceeded", "429", None), RejectClass.RETRY),
        (("DDoSProtection", "418", None), RejectClass.RETRY),
        (("InvalidNonce", "", "-1021"), RejectClass.RETRY),
        (("VenueUnavailable", "asked to be left alone", None), RejectClass.RETRY),
        (("ExchangeNotAvailable", "POST https://x/order?reduceOnly=true", None), RejectClass.RETRY),
        (("AuthenticationError", "", None), RejectClass.STOP),
        (("BadSymbol", "", None), RejectClass.STOP),
        (("InvalidOrder", "lot size", "-1013"), RejectClass.STOP),
        (("SomethingNew", "nobody has seen this", None), RejectClass.STOP),
    ],
    ids=str,
)  # fmt: skip
def test_a_refusal_is_repeated_only_where_that_can_help(facts, kind):
    error, message, code = facts
    assert exits.reject_class(ErrorFacts(kind=error, message=message, code=code)) is kind


def test_every_row_of_the_table_is_reachable():
    for row in REJECTS:
        facts = ErrorFacts(kind=row.error or "-", message=row.text or "", code=row.code)
        assert exits.reject_class(facts) is row.kind


# --- The record -----------------------------------------------------------------------------------------------


@pytest.mark.row("S0-13", "S0-07")
def test_the_key_of_an_exit_names_no_time_and_its_display_id_does():
    one = begun()
    later = exits.begun(None, position(), ExitReason.TAKE_PROFIT, now_ms=99_000)
    assert one.intent_key == later.intent_key == "exit:p1:take_profit:1"
    shown = exits.display_id(one, D("36.06"))
    assert exits.parse_display_id(shown) == (1_000, "SOONUSDT", shown[-8:])
    assert exits.parse_display_id("EXIT-1761926919371-SOONUSDT-7bc679db") == (1761926919371, "SOONUSDT", "7bc679db")
    assert exits.display_id(begun(held=position(symbol=PERP.symbol)), D(1)).split("-")[2] == "SOONUSDT"
    with pytest.raises(InvalidInput):
        exits.parse_display_id("EXIT-x-SOONUSDT-7bc679db")


def test_a_key_fits_whatever_the_position_is_called():
    assert len(begun(held=position(position_id="p" * 500)).intent_key) <= 200
    assert begun(held=position(position_id="")).intent_key == "exit:long:SOON/USDT:take_profit:1"


@pytest.mark.row("S0-15")
def test_a_new_exit_of_the_same_position_has_the_next_number_and_of_another_the_first():
    closed = exits.ended(begun(), ExitState.CLOSED, now_ms=2_000)
    assert exits.begun(closed, position(), ExitReason.PANIC, now_ms=3_000).sequence == 2
    assert exits.begun(closed, position(position_id="p2"), ExitReason.PANIC, now_ms=3_000).sequence == 1
    with pytest.raises(InvalidTransition):
        exits.begun(begun(), position(), ExitReason.PANIC, now_ms=3_000)


@pytest.mark.row("S0-15")
def test_only_the_listed_changes_are_possible():
    assert set(EXIT_TRANSITIONS) == set(ExitState)
    for state in RESTING:
        record = attrs.evolve(begun(), state=state)
        assert exits.resumed(record).state is ExitState.WORKING
        with pytest.raises(InvalidTransition):
            exits.ended(record, ExitState.CLOSED, now_ms=1)
        with pytest.raises(InvalidTransition):
            exits.rested(
                attrs.evolve(record, state=ExitState.CLOSED), Hold.REJECTED, POLICY, made_progress=False, now_ms=1
            )


@pytest.mark.row("S1-07", "D-18")
def test_a_more_urgent_wish_takes_over_at_once_and_a_lesser_one_changes_nothing():
    resting = exits.rested(begun(), Hold.NO_LIQUIDITY, POLICY, made_progress=False, now_ms=1_000)
    assert exits.merged(resting, ExitReason.TRAILING, None, now_ms=2_000) == resting
    assert exits.merged(resting, ExitReason.TAKE_PROFIT, None, now_ms=2_000) == resting
    urgent = exits.merged(resting, ExitReason.STOP_LOSS, None, now_ms=2_000)
    assert (urgent.reason, urgent.first_reason) == (ExitReason.STOP_LOSS, ExitReason.TAKE_PROFIT)
    assert urgent.recheck_at_ms == 2_000
    assert urgent.intent_key == resting.intent_key
    ended = exits.ended(begun(), ExitState.CLOSED, now_ms=1)
    assert exits.merged(ended, ExitReason.PANIC, None, now_ms=2) == ended


@pytest.mark.row("S1-07")
@pytest.mark.parametrize(
    ("running", "reason", "wish", "wanted"),
    [
        (10, ExitReason.TAKE_PROFIT, 3, 10),  # 4 are closed: 3 more make 7
        (10, ExitReason.TAKE_PROFIT, 9, 13),
        (10, ExitReason.STOP_LOSS, 3, 10),
        (10, ExitReason.STOP_LOSS, None, None),
        (None, ExitReason.STOP_LOSS, 3, None),
        (10, ExitReason.TRAILING, 9, 13),  # less urgent, but not lost
    ],
)
def test_the_larger_of_two_wishes_counts(running, reason, wish, wanted):
    record = exits.settled(begun(wanted=None if running is None else D(running)), D(4), D(1), now_ms=1)
    after = exits.merged(record, reason, None if wish is None else D(wish), now_ms=2)
    assert after.wanted == (None if wanted is None else D(wanted))


def test_a_pass_takes_over_what_others_wrote_meanwhile_and_keeps_what_it_learnt():
    mine = exits.settled(attrs.evolve(begun(), version=3), D(4), D(1), now_ms=5)
    newer = attrs.evolve(begun(), reason=ExitReason.PANIC, version=4)
    taken = exits.with_wish_of(mine, newer)
    assert (taken.reason, taken.closed_quantity, taken.version) == (ExitReason.PANIC, D(4), 4)
    assert exits.with_wish_of(mine, attrs.evolve(newer, version=3)) is mine


@pytest.mark.row("S0-16", "S0-12")
def test_the_same_refusal_again_and_again_trips_the_breaker():
    no, other = ErrorFacts(kind="A", code="1"), ErrorFacts(kind="A", code="2")
    record = begun()
    for count in (1, 2, 3):
        record = exits.refused(record, no)
        assert record.rejects == count
    assert exits.is_tripped(record, POLICY)
    rest = exits.rested(record, Hold.REJECTED, POLICY, made_progress=False, now_ms=0)
    assert rest.recheck_at_ms == POLICY.cool_down_max_ms
    assert exits.refused(record, other).rejects == 1
    assert not exits.is_tripped(exits.settled(record, D(1), D(1), now_ms=1), POLICY)


@pytest.mark.row("S0-16", "S0-19")
def test_rests_escalate_from_fruitless_pass_to_fruitless_pass_and_start_anew_after_progress():
    record, rests = begun(), []
    for progress in (False, False, True, False):
        record = exits.rested(exits.resumed(record), Hold.NO_LIQUIDITY, POLICY, made_progress=progress, now_ms=0)
        rests.append(record.recheck_at_ms)
    assert rests == [10_000, 20_000, 10_000, 20_000]
    assert record.state is ExitState.HELD


@pytest.mark.row("S1-04")
def test_a_doubt_and_a_mismatch_are_states_of_their_own():
    for hold, state in ((Hold.IN_DOUBT, ExitState.UNKNOWN), (Hold.MISMATCH, ExitState.MISMATCH)):
        assert exits.rested(begun(), hold, POLICY, made_progress=False, now_ms=0).state is state


@pytest.mark.row("S0-20", "S0-23", "S1-44")
def test_alarms_are_due_by_time_and_by_attempts_and_start_anew_after_progress():
    record = begun()
    due = [exits.alarms_due(record, POLICY, now_ms=1_000 + s * 1_000) for s in (59, 60, 299, 300, 900, 9_000)]
    assert due == [0, 1, 1, 2, 3, 3]
    fast = attrs.evolve(record, barren=12)
    assert exits.alarms_due(fast, POLICY, now_ms=1_001) == 1
    better = exits.settled(attrs.evolve(fast, alarms=1), D(1), D(1), now_ms=1_002)
    assert (better.alarms, exits.alarms_due(better, POLICY, now_ms=1_003)) == (0, 0)


def test_the_average_price_is_of_all_that_was_closed():
    record = exits.settled(exits.settled(begun(), D(1), D("0.7"), now_ms=1), D(3), D("0.6"), now_ms=2)
    assert record.average_price == D("0.625")
    assert begun().average_price is None


def test_a_record_survives_the_codec():
    import execsafe.exits  # noqa: F401 - registers it

    record = exits.refused(begun(wanted=D("1.5")), ErrorFacts(kind="A", message="m", code="1"))
    assert codec.decode(codec.encode(record)) == record


@pytest.mark.row("S0-35")
def test_slippage_is_counted_from_the_best_price_of_the_pass():
    """Not from the level below the one that was just eaten."""
    assert exits.anchored(None, D(10), Side.SELL) == 10
    assert exits.anchored(D(10), D(9), Side.SELL) == 10
    assert exits.anchored(D(10), D(11), Side.SELL) == 11
    assert exits.anchored(D(10), D(9), Side.BUY) == 9
    assert exits.anchored(D(10), D(11), Side.BUY) == 10
    assert exits.anchored(D(10), None, Side.SELL) is None
