"""The judge: what it says of ledgers that were made by hand, with each kind of harm planted once."""

from collections import Counter
from decimal import Decimal

import attrs
import pytest

import execsafe
from execsafe.bot import verdict
from execsafe.bot.scenes import SPOT as INSTRUMENTS
from execsafe.bot.verdict import Played
from execsafe.model.intent import Attempt, AttemptState, IntentRecord
from execsafe.testing.venue import Market, NewOrder, SimVenue

START_MS = 1_700_000_000_000


class World:
    """A venue, the signals that were played on it, and a journal of what was sent."""

    def __init__(self, *signals):
        self.venue = SimVenue([Market(instrument=i, fee_in_base=False) for i in INSTRUMENTS.values()])
        self.played = [Played(signal, START_MS + 1_000 * n) for n, signal in enumerate(signals)]
        self.records = []
        self.now_ms = START_MS

    def order(self, signal, leg, ratio=1, *, suffix="", journal=True, copies=1, state=None):
        """Have an order accepted that fills *ratio* of the leg, and journal it."""
        undo = "undo" in suffix
        side = leg.side.opposite if undo else leg.side
        quantity = INSTRUMENTS[leg.symbol].floor_quantity(leg.quantity * Decimal(str(ratio)))
        key = f"{signal.id}/{leg.name}{suffix}"
        self.now_ms = max(self.now_ms + 1, next(p.started_at_ms for p in self.played if p.signal is signal))
        self.venue.set_price(leg.symbol, leg.close, self.now_ms)
        price = leg.reverse_price if undo else leg.limit_price
        for _ in range(copies):
            self.venue.submit(
                NewOrder(
                    symbol=leg.symbol, side=side, quantity=quantity, limit_price=price, client_order_id=key,
                    time_in_force="IOC",
                ),
                self.now_ms,
            )  # fmt: skip
        if journal:
            label = f"{leg.name}{suffix}"
            self.record(signal, label, leg, side=side, quantity=quantity, state=state or execsafe.IntentState.FILLED)

    def record(self, signal, label, leg, *, side, quantity, state, limit_price="leg"):
        never = state in {execsafe.IntentState.REJECTED, execsafe.IntentState.FAILED_FINAL}
        filled = Decimal(0) if never else quantity
        attempt = Attempt(
            number=1, client_order_id=f"{signal.id}/{label}", quantity=quantity, filled_quantity=filled,
            state=AttemptState.FILLED,
        )  # fmt: skip
        intent = execsafe.Intent(
            key=signal.id, leg=label, symbol=leg.symbol, side=side, quantity=quantity,
            limit_price=leg.limit_price if limit_price == "leg" else limit_price,
        )  # fmt: skip
        self.records.append(IntentRecord(intent=intent, quantity=quantity, attempts=(attempt,), state=state))

    def trade(self, signal, ratio=1):
        for leg in signal.legs:
            self.order(signal, leg, ratio)

    def judge(self, book=None):
        ledger = self.venue.ledger
        truth = {symbol: ledger.position(symbol) for symbol in INSTRUMENTS}
        return verdict.judge(
            ledger,
            self.played,
            meant=verdict.meant_of(self.records, self.played),
            book=truth if book is None else book,
            instruments=INSTRUMENTS,
            records=self.records,
        )

    def breaches(self, reported=(), **judged):
        return verdict.breaches(self.venue.ledger, self.records, self.judge(**judged), reported)


@pytest.fixture
def world(trade):
    return World(*trade)


def guarantees(breaches):
    return Counter(breach.partition(":")[0] for breach in breaches)


def test_a_clean_trade_has_no_findings_and_no_breach(world, trade):
    for signal in trade:
        world.trade(signal)
    found = world.judge()

    assert (found.orders_accepted, found.orders_meant, found.orders_per_signal_max, found.copies_max) == (4, 4, 2, 1)
    assert (found.duplicates, found.excess, found.naked, found.differences, found.strays) == (0, {}, (), {}, 0)
    assert world.breaches() == ()


def test_a_duplicate_is_counted_as_an_order_and_as_excess(world, trade):
    entry = trade[0]
    world.order(entry, entry.lead, copies=2)
    world.order(entry, entry.hedge)
    found = world.judge()

    assert (found.duplicates, found.copies_max) == (1, 2)
    assert found.duplicates_by_signal == {entry.id: 1}
    assert found.excess == {"ETH/BTC": entry.lead.quantity}
    assert found.excess_btc == entry.lead.quantity * entry.lead.close
    assert guarantees(world.breaches())["G1"] == 2  # by intent, and by signal


def test_an_order_on_top_of_a_refused_one_is_a_duplicate_although_two_keys_were_used(world, trade):
    """A false "rejected" must not hide behind the next try's key."""
    entry = trade[0]
    world.order(entry, entry.lead, state=execsafe.IntentState.REJECTED)
    world.order(entry, entry.lead, suffix="-2")
    world.order(entry, entry.hedge)

    assert world.judge().duplicates == 1
    assert guarantees(world.breaches())["G4"] == 1


def test_top_ups_under_their_own_keys_are_no_duplicates(world, trade):
    entry = trade[0]
    world.order(entry, entry.lead)
    world.order(entry, entry.hedge, Decimal("0.5"))
    world.order(entry, entry.hedge, Decimal("0.5"), suffix="-2")
    found = world.judge()

    assert (found.duplicates, found.copies_max, found.orders_per_signal_max) == (0, 1, 3)
    assert world.breaches() == ()


def test_a_side_without_the_other_is_naked_and_a_breach_only_if_nobody_was_told(world, trade):
    entry = trade[0]
    world.order(entry, entry.lead)
    found = world.judge()

    assert found.naked == (entry.id, trade[1].id)  # the exit did not change it
    assert found.naked_btc == pytest.approx(entry.lead.quantity * entry.lead.close * 2, rel=Decimal("0.02"))
    assert guarantees(world.breaches()) == {"G9": 2}
    assert world.breaches(reported=[entry.id, trade[1].id]) == ()


def test_what_was_undone_is_not_naked(world, trade):
    entry = trade[0]
    world.order(entry, entry.lead)
    world.order(entry, entry.lead, suffix="-undo")

    assert world.judge().naked == ()
    assert world.breaches() == ()


def test_a_market_order_that_undoes_a_leg_belongs_to_the_signal_that_the_journal_names(world, trade):
    entry = trade[0]
    world.order(entry, entry.lead)
    side, quantity = entry.lead.side.opposite, entry.lead.quantity
    world.now_ms += 1
    world.venue.submit(
        NewOrder(symbol=entry.lead.symbol, side=side, quantity=quantity, type="market",
                 client_order_id=f"{entry.id}/close-1.1"),
        world.now_ms,
    )  # fmt: skip
    state = execsafe.IntentState.FILLED
    world.record(entry, "close-1.1", entry.lead, side=side, quantity=quantity, state=state, limit_price=None)

    assert (world.judge().naked, world.judge().strays) == ((), 0)
    assert world.breaches() == ()


@pytest.mark.row("S0-28", "S2-38")
def test_how_often_orders_came_to_exist_is_counted_where_one_was_meant(world, trade):
    entry = trade[0]
    world.order(entry, entry.lead, copies=3)
    world.order(entry, entry.hedge, Decimal("0.5"))
    world.order(entry, entry.hedge, Decimal("0.5"), suffix="-2")

    assert world.judge().orders_per_meant == {3: 1, 1: 2}


def test_a_rest_that_nobody_could_trade_is_not_naked(world, trade):
    entry = trade[0]
    world.order(entry, entry.lead, Decimal("0.6"))
    world.order(entry, entry.hedge, Decimal("0.5998"))

    assert world.judge().naked == ()


def test_closing_more_than_the_trade_held_is_excess(world, trade):
    world.trade(trade[0], Decimal("0.5"))
    world.trade(trade[1], 1)
    found = world.judge()

    assert found.excess == {x.symbol: x.quantity / 2 for x in trade[0].legs}
    assert guarantees(world.breaches())["G1"] == 1


def test_a_book_that_is_off_by_one_step_differs(world, trade):
    world.trade(trade[0])
    held = trade[0].lead.quantity
    book = {"ETH/BTC": held - Decimal("0.001"), "LTC/BTC": -trade[0].hedge.quantity}

    assert world.judge(book).differences == {"ETH/BTC": (held, held - Decimal("0.001"))}
    assert guarantees(world.breaches(book=book)) == {"G11": 1}


def test_a_difference_is_not_held_against_a_bot_that_says_it_does_not_know_yet(world, trade):
    entry = trade[0]
    world.order(entry, entry.lead, state=execsafe.IntentState.UNRESOLVED)
    world.order(entry, entry.hedge)
    book = {"LTC/BTC": -entry.hedge.quantity}

    assert world.judge(book).differences
    assert world.breaches(book=book) == ()


def test_an_order_that_the_journal_does_not_have_is_a_breach(world, trade):
    world.trade(trade[0])
    world.order(trade[1], trade[1].lead, journal=False)
    world.order(trade[1], trade[1].hedge)

    assert guarantees(world.breaches())["G2"] == 1


def test_an_order_that_no_signal_asked_for_is_a_stray_and_a_duplicate(world, trade):
    leg = trade[0].lead
    world.order(trade[0], attrs.evolve(leg, limit_price=leg.limit_price * 2), journal=False)
    found = world.judge()

    assert (found.strays, found.duplicates) == (1, 1)


def test_a_journal_that_missed_a_fill_is_a_breach(world, trade):
    world.trade(trade[0])
    record = world.records[0]
    attempt = attrs.evolve(record.attempts[0], filled_quantity=Decimal(1))
    world.records[0] = attrs.evolve(record, attempts=(attempt,))

    assert guarantees(world.breaches()) == {"G11": 1}


def test_signals_that_ask_alike_get_the_orders_that_came_after_them(trade):
    """A later signal may have the same symbol, side and limit price as an earlier one."""
    entry = trade[0]
    later = attrs.evolve(entry, id=f"{entry.id}-again")
    world = World(entry, later)
    world.trade(entry)
    world.trade(later)
    found = world.judge()

    assert {key: facts.orders for key, facts in found.legs.items()} == {
        (s.id, leg.name): 1 for s in (entry, later) for leg in entry.legs
    }
