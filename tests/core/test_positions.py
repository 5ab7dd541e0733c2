"""Positions are a function of the set of evidence: repetition and order change nothing."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.evidence import OrderEvidence, curve_of, evidence_of, evidence_of_execution, join
from execsafe.core.positions import CLOSED_MAX, ChangeKind, Chapter, Page, absorb, changes, fold, learn
from execsafe.model.intent import Attempt, AttemptState, Intent, IntentRecord
from execsafe.model.order import Fee, Fill, Side
from execsafe.model.position import Execution, PositionSide
from execsafe.stores.codec import decode, encode, register

register(Page, "PositionPage")

PERPETUAL, SPOT = "BTC/USDT:USDT", "BTC/USDT"
D = Decimal


def page(symbol: str = PERPETUAL, **more) -> Page:
    return Page(account="default", symbol=symbol, **more)


def fill(trade_id: str, quantity, price, *, fee=None, currency="USDT") -> Fill:
    fees = () if fee is None else (Fee(cost=D(fee), currency=currency),)
    return Fill(trade_id=trade_id, quantity=D(quantity), price=D(price), fees=fees)


def order(key, side, filled, price=None, *, at_ms, live=False, fills=(), venue_id=None, number=1, symbol=PERPETUAL):
    """The evidence of one attempt, as its record shows it at *at_ms*."""
    attempt = Attempt(
        number=number,
        client_order_id=key,
        quantity=D(10),
        state=AttemptState.LIVE if live else AttemptState.CANCELED,
        venue_order_id=venue_id,
        filled_quantity=D(filled),
        average_price=None if price is None else D(price),
        fills=tuple(fills),
    )
    earlier = tuple(attrs.evolve(attempt, number=n, filled_quantity=D(0), fills=()) for n in range(1, number))
    intent = Intent(key=key, symbol=symbol, side=side, quantity=10)
    record = IntentRecord(intent=intent, quantity=D(10), attempts=(*earlier, attempt))
    return evidence_of(record, (), at_ms=at_ms)


def told(*pieces: tuple[OrderEvidence, ...], symbol: str = PERPETUAL, **more) -> Chapter:
    return fold(learn(page(symbol, **more), [piece for many in pieces for piece in many]))


def execution(trade_id, side, quantity, price, *, at_ms=1, venue_id=None) -> tuple[OrderEvidence, ...]:
    one = Execution(
        trade_id=trade_id, symbol=PERPETUAL, side=Side(side), quantity=D(quantity), price=D(price),
        venue_order_id=venue_id, at_ms=at_ms,
    )  # fmt: skip
    return (evidence_of_execution(one, at_ms=at_ms),)


# --- Arithmetic ---------------------------------------------------------------------------------------------


@pytest.mark.row("S1-22")
def test_nothing_filled_is_no_position():
    assert told() == Chapter()


@pytest.mark.row("S0-26", "S1-23")
def test_a_position_averages_its_entries_and_realises_its_exits_exactly():
    chapter = told(
        order("a", "buy", 1, 100, at_ms=1), order("b", "buy", 3, 200, at_ms=2), order("c", "sell", 2, 205, at_ms=3)
    )
    held = chapter.position
    assert (held.side, held.quantity, held.entry_price) == (PositionSide.LONG, D(2), D(175))
    assert (held.realized, held.opened_at_ms, held.updated_at_ms) == (D(60), 1, 3)


def test_a_short_gains_when_the_price_falls():
    chapter = told(order("a", "sell", 2, 100, at_ms=1), order("b", "buy", 2, 90, at_ms=2))
    [closed] = chapter.closed
    assert chapter.position is None
    assert (closed.side, closed.realized, closed.quantity) == (PositionSide.SHORT, D(20), D(0))


def test_a_fill_beyond_flat_opens_the_other_side_with_what_is_left():
    chapter = told(order("a", "buy", 1, 100, at_ms=1), order("b", "sell", 3, 110, at_ms=2))
    [closed] = chapter.closed
    held = chapter.position
    assert (closed.realized, held.side, held.quantity, held.entry_price) == (D(10), PositionSide.SHORT, D(2), D(110))
    assert held.position_id != closed.position_id


def test_profits_count_the_contract_size():
    chapter = told(order("a", "buy", 5, 100, at_ms=1), order("b", "sell", 5, 110, at_ms=2), contract_size=D("0.01"))
    assert chapter.closed[0].realized == D("0.5")


def test_fees_in_base_reduce_what_is_held_on_spot_and_only_there():
    fees = [fill("t1", 1, 100, fee="0.001", currency="BTC")]
    assert told(order("a", "buy", 1, 100, at_ms=1, fills=fees), symbol=SPOT).position.quantity == D("0.999")
    held = told(order("a", "buy", 1, 100, at_ms=1, fills=fees)).position
    assert (held.quantity, held.fees) == (D(1), (Fee(cost=D("0.001"), currency="BTC"),))


def test_selling_what_is_held_after_fees_closes_the_position():
    bought = order("a", "buy", 1, 100, at_ms=1, fills=[fill("t1", 1, 100, fee="0.001", currency="BTC")])
    sold = order("b", "sell", "0.999", 100, at_ms=2, fills=[fill("t2", "0.999", 100, fee="0.1")])
    chapter = told(bought, sold, symbol=SPOT)
    assert chapter.position is None
    assert chapter.closed[0].fees == (Fee(cost=D("0.001"), currency="BTC"), Fee(cost=D("0.1"), currency="USDT"))


def test_fills_without_a_price_make_a_position_without_an_entry_price():
    held = told(order("a", "buy", 1, at_ms=1)).position
    assert (held.quantity, held.entry_price) == (D(1), None)
    assert told(order("a", "buy", 1, at_ms=1), order("b", "buy", 1, 100, at_ms=2)).position.entry_price == D(100)


def test_the_price_of_a_growth_follows_from_the_averages():
    first, later = order("a", "buy", 1, 100, at_ms=1, live=True), order("a", "buy", 2, 150, at_ms=5)
    between = order("b", "sell", 1, 100, at_ms=3)
    held = told(first, between, later).position
    assert held.entry_price == D(200)  # the second one alone: (2 × 150 − 1 × 100) / 1


# --- Attempts and trades ------------------------------------------------------------------------------------


@pytest.mark.row("S0-36")
def test_what_an_ended_order_filled_counts_whatever_its_status():
    """An IOC order that ends canceled with a fill in it has filled that much."""
    assert told(order("a", "buy", "0.4", 100, at_ms=1)).position.quantity == D("0.4")


def test_attempts_of_one_intent_count_each_for_itself():
    """The same client order id is used again after proven absence; the attempts stay apart."""
    chapter = told(order("a", "buy", 1, 100, at_ms=1), order("a", "buy", 2, 100, at_ms=2, number=2))
    assert chapter.position.quantity == D(3)


@pytest.mark.guarantee(11)
def test_g11_late_growth_is_credited_to_what_is_held_when_it_becomes_known():
    before = told(order("a", "buy", 1, 100, at_ms=1), order("b", "sell", 1, 110, at_ms=2))
    after = told(
        order("a", "buy", 1, 100, at_ms=1), order("b", "sell", 1, 110, at_ms=2), order("a", "buy", 3, 100, at_ms=9)
    )
    assert before.position is None
    assert after.closed == before.closed, "the closed position is not rewritten"
    assert (after.position.quantity, after.position.opened_at_ms) == (D(2), 9)


def test_a_foreign_trade_counts_by_its_id_once():
    one, again = execution("t9", "buy", 2, 100), execution("t9", "buy", 2, 100, at_ms=7)
    assert told(one, again).position.quantity == D(2)


def test_a_trade_first_seen_as_foreign_is_not_counted_again_with_its_order():
    """It names the venue's order id; later the attempt in doubt turns out to be that order."""
    foreign = execution("t9", "buy", 2, 100, venue_id="77")
    ours = order("a", "buy", 2, 100, at_ms=5, venue_id="77", fills=[fill("t9", 2, 100)])
    without_trades = order("a", "buy", 3, 100, at_ms=5, venue_id="77")
    assert told(foreign, ours).position.quantity == D(2)
    assert told(foreign, without_trades).position.quantity == D(3)


def test_trades_that_say_more_than_the_cumulative_quantity_are_believed():
    pieces = order("a", "buy", 1, 100, at_ms=1, venue_id="77"), execution("t1", "buy", "1.5", 100, venue_id="77")
    assert told(*pieces).position.quantity == D("1.5")


def test_growths_give_each_part_the_instant_at_which_it_filled():
    """A record that is read late still shows what was known when, by the events that told of it."""
    [late] = order("a", "buy", 3, 100, at_ms=50)
    intent = Intent(key="a", symbol=PERPETUAL, side="buy", quantity=10)
    attempt = Attempt(number=1, client_order_id="a", quantity=D(10), filled_quantity=D(3), average_price=D(100))
    record = IntentRecord(intent=intent, quantity=D(10), attempts=(attempt,))
    [timed] = evidence_of(record, [(1, 10, D(1)), (1, 30, D(2))], at_ms=50)
    assert [(level.quantity, level.learned_at_ms) for level in curve_of(timed)] == [(D(1), 10), (D(3), 30)]
    assert [(level.quantity, level.learned_at_ms) for level in curve_of(late)] == [(D(3), 50)]


def test_the_id_of_a_position_is_a_function_of_what_opened_it():
    one = told(order("a", "buy", 1, 100, at_ms=1)).position
    same = told(order("a", "buy", 5, 70, at_ms=9), order("z", "buy", 1, 1, at_ms=20)).position
    other = told(order("b", "buy", 1, 100, at_ms=1)).position
    assert one.position_id == same.position_id != other.position_id


# --- Properties ---------------------------------------------------------------------------------------------

_quantity = st.integers(1, 40).map(lambda n: D(n) / 8)
_price = st.one_of(st.none(), st.integers(90, 110).map(D))


@st.composite
def observations(draw, symbol=PERPETUAL):
    """Readings of a few orders over time, each cumulative, plus foreign trades: all that could ever be told."""
    found = []
    for number in range(draw(st.integers(1, 5))):
        side, at_ms, filled, fills = draw(st.sampled_from(["buy", "sell"])), draw(st.integers(1, 40)), D(0), []
        for reading in range(draw(st.integers(1, 3))):
            part = draw(_quantity)
            filled += part
            at_ms += draw(st.integers(0, 20))
            if draw(st.booleans()):
                currency = draw(st.sampled_from(["BTC", "USDT"]))
                fills.append(fill(f"t{number}.{reading}", part, 100, fee="0.01", currency=currency))
            found.append(
                order(
                    f"o{number}", side, filled, draw(_price), at_ms=at_ms, fills=fills, live=draw(st.booleans()),
                    venue_id=f"v{number}", symbol=symbol,
                )
            )  # fmt: skip
    for number in range(draw(st.integers(0, 3))):
        venue_id = draw(st.sampled_from([None, "v0", "elsewhere"]))
        side = draw(st.sampled_from(["buy", "sell"]))
        found.append(
            execution(f"f{number}", side, draw(_quantity), 100, at_ms=draw(st.integers(1, 80)), venue_id=venue_id)
        )
    return [piece for many in found for piece in many]


@pytest.mark.guarantee(11, 15)
@pytest.mark.row("S1-15", "X-04")
@settings(max_examples=1000, deadline=None)
@given(observations(), st.randoms(use_true_random=False), st.sampled_from([PERPETUAL, SPOT]))
def test_g11_repetition_and_order_of_evidence_change_nothing(pieces, rng, symbol):
    plain = fold(learn(page(symbol), pieces))
    shuffled = [*pieces, *rng.sample(pieces, rng.randint(0, len(pieces)))]
    rng.shuffle(shuffled)
    step_by_step = page(symbol)
    for piece in shuffled:
        step_by_step = learn(step_by_step, [piece])
    assert fold(step_by_step) == plain
    assert learn(step_by_step, shuffled) == step_by_step, "nothing new changes nothing"


@settings(max_examples=1000, deadline=None)
@given(observations())
def test_what_is_held_is_the_signed_sum_of_what_filled(pieces):
    """Whatever the order of events: the largest cumulative quantity of each order, and each trade once."""
    known = learn(page(), pieces)
    sums = {}
    for one in known.orders:
        sign = 1 if one.side is Side.BUY else -1
        traded = sum((t.fill.quantity for t in one.trades), D(0))
        if one.levels:
            sums[one.key] = sign * max(traded, *(level.quantity for level in one.levels))
        else:
            sums[one.key] = sign * traded
    held = fold(known).position
    assert (D(0) if held is None else held.signed_quantity) == sum(sums.values(), D(0))


@settings(max_examples=300, deadline=None)
@given(st.lists(observations(), min_size=3, max_size=3))
def test_joining_is_associative_commutative_and_idempotent(many):
    pieces = [piece for some in many for piece in some]
    for key in {piece.key for piece in pieces}:
        a, b, c = ([p for p in pieces if p.key == key] * 3)[:3]
        assert join(a, join(b, c)) == join(join(a, b), c)
        assert join(a, b) == attrs.evolve(join(b, a), side=a.side)
        assert join(join(a, b), b) == join(a, b)


@pytest.mark.guarantee(14)
@settings(max_examples=300, deadline=None)
@given(observations(), st.randoms(use_true_random=False))
def test_g14_absorbing_old_evidence_changes_no_position(pieces, rng):
    """Whatever is absorbed when, as long as evidence comes in the order in which it is learned."""
    ordered = sorted(pieces, key=lambda p: max(x.learned_at_ms for x in (*p.levels, *p.trades)))
    ordered = [attrs.evolve(p, is_live=False) for p in ordered if p.levels or p.venue_order_id is None]
    known, kept = page(), {}
    for piece in ordered:
        recalled = [] if piece.key in {o.key for o in known.orders} else [kept[piece.key]] if piece.key in kept else []
        known = learn(known, [piece], recalled)
        before = fold(known)
        known, gone = absorb(known, forget_before_ms=0, orders_max=rng.choice([1, 2, 4]))
        kept.update({o.key: o for o in gone})
        assert fold(known) == before
        assert decode(encode(known)) == known


@pytest.mark.guarantee(11, 14)
def test_g11_late_fills_of_an_order_that_was_absorbed_count_what_is_new():
    known = page()
    for number in range(9):
        known = learn(known, order(f"o{number}", "buy", 1, 100, at_ms=number))
    known, gone = absorb(known, forget_before_ms=0, orders_max=4)
    first = next(o for o in gone if o.key == "o0#1")
    later = learn(known, order("o0", "buy", 3, 100, at_ms=4), [first])
    assert fold(known).position.quantity == D(9)
    assert fold(later).position.quantity == D(11)
    assert fold(learn(later, order("o0", "buy", 3, 100, at_ms=4))) == fold(later)


@pytest.mark.guarantee(14)
def test_g14_a_page_stays_small_and_keeps_what_may_still_fill():
    known = learn(page(), order("resting", "buy", 1, 100, at_ms=1, live=True))
    for number in range(2_000):
        side = "buy" if number % 2 else "sell"
        known = learn(known, order(f"o{number}", side, 2, 100, at_ms=number + 2))
        known, _ = absorb(known, forget_before_ms=number - 1_000)
    assert len(known.orders) <= 65
    assert "resting#1" in {o.key for o in known.orders}
    assert len(known.base.closed) <= CLOSED_MAX
    assert fold(known).position.quantity == D(1)
    assert len(encode(known)) < 100_000


# --- Changes ------------------------------------------------------------------------------------------------


def kinds(before: Chapter, after: Chapter):
    return [change.kind for change in changes(before, after)]


def test_changes_tell_opened_changed_closed_in_the_order_of_the_positions():
    opened = told(order("a", "buy", 1, 100, at_ms=1))
    grown = told(order("a", "buy", 2, 100, at_ms=1))
    flipped = told(order("a", "buy", 2, 100, at_ms=1), order("b", "sell", 3, 100, at_ms=2))
    assert kinds(Chapter(), opened) == [ChangeKind.OPENED]
    assert kinds(opened, grown) == [ChangeKind.CHANGED]
    assert kinds(grown, flipped) == [ChangeKind.CLOSED, ChangeKind.OPENED]
    assert kinds(flipped, flipped) == []


def test_a_position_that_later_evidence_explains_otherwise_is_closed_under_its_old_id():
    short = told(order("b", "sell", 1, 100, at_ms=5))
    both = told(order("b", "sell", 1, 100, at_ms=5), order("a", "buy", 1, 90, at_ms=1))
    [gone, closed] = changes(short, both)
    assert (gone.kind, gone.position.side, gone.position.quantity) == (ChangeKind.CLOSED, PositionSide.SHORT, D(0))
    assert (closed.kind, closed.position.side) == (ChangeKind.CLOSED, PositionSide.LONG)
