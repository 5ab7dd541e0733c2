"""The judge of the waves: ledgers made by hand, with each kind of harm planted once."""

from collections import Counter
from decimal import Decimal

import attrs
import pytest

import execsafe
from execsafe.bot.verdict_waves import Meant, judge_waves, meant_by, stretches, wave_breaches
from execsafe.model.intent import Attempt, AttemptState, IntentRecord
from execsafe.testing.ledger import Gap
from execsafe.testing.venue import NewOrder, SimVenue, linear

START_MS = 1_700_000_000_000
BTC = "BTC/USDT:USDT"
BUY, SELL = execsafe.Side.BUY, execsafe.Side.SELL
ONE = Decimal("0.1")


class World:
    """A venue, and a bot's decisions; *ids* tells whether the bot gives its orders ids."""

    def __init__(self, *, ids=False):
        self.venue = SimVenue([linear("BTC")], prices={BTC: 50_000})
        self.ids = ids
        self.meant = []
        self.records = []
        self.now_ms = START_MS

    def order(self, purpose, side, quantity=ONE, *, copies=1, after_ms=10, signal="s1", meant=True, trigger=None):
        self.now_ms += after_ms
        name = f"{signal}-{purpose}-{len(self.meant)}" if self.ids else None
        if meant:
            ids = frozenset({name}) if self.ids else None
            self.meant.append(Meant(signal_id=signal, purpose=purpose, symbol=BTC, side=side, quantity=quantity,
                                    at_ms=self.now_ms, client_order_ids=ids))  # fmt: skip
        for _ in range(copies):
            self.venue.submit(
                NewOrder(
                    symbol=BTC, side=side, quantity=quantity, type="market", reduce_only=purpose != "entry",
                    trigger_price=None if trigger is None else Decimal(trigger),
                    trigger_above=None if trigger is None else side is BUY, client_order_id=name,
                ),
                self.now_ms,
            )  # fmt: skip
        if self.ids and meant:
            self.record(signal, purpose, side, quantity, name)

    def record(self, signal, purpose, side, quantity, name):
        filled = self.venue.ledger.filled_quantity(name)
        state = AttemptState.FILLED if filled else AttemptState.LIVE
        attempt = Attempt(number=1, client_order_id=name, quantity=quantity, filled_quantity=filled, state=state)
        intent = execsafe.Intent(key=signal, leg=f"{purpose}.{len(self.meant)}", symbol=BTC, side=side,
                                 quantity=quantity)  # fmt: skip
        over = execsafe.IntentState.FILLED if filled else execsafe.IntentState.LIVE
        self.records.append(IntentRecord(intent=intent, quantity=quantity, attempts=(attempt,), state=over))

    def judge(self, book=None, **more):
        return judge_waves(
            self.venue.ledger,
            signals=1,
            meant=self.meant,
            book={BTC: self.venue.ledger.position(BTC)} if book is None else book,
            prices={BTC: Decimal(50_000)},
            deadline_ms=1_000,
            **more,
        )

    def wait(self, ms):
        self.now_ms += ms
        self.venue.set_price(BTC, 50_000, self.now_ms)
        self.venue.advance(self.now_ms)


def guarantees(breaches):
    return Counter(breach.partition(":")[0] for breach in breaches)


@pytest.fixture(params=[False, True], ids=["without ids", "with ids"])
def world(request):
    return World(ids=request.param)


def position(world, *, stop=True, copies=1):
    world.order("entry", BUY, copies=copies)
    if stop:
        world.order("stop", SELL, trigger=49_500)


def test_a_protected_position_has_no_findings(world):
    position(world)
    found = world.judge()

    assert (found.opened, found.orders_meant, found.orders_accepted, found.copies_max) == (1, 2, 2, 1)
    assert (found.duplicates, found.excess, found.unprotected, found.flips, found.strays) == (0, {}, (), 0, 0)
    assert found.longest_ms == 10
    assert found.differences == {}
    if world.ids:
        assert wave_breaches(world.venue.ledger, world.records, found) == ()


def test_a_second_order_for_one_decision_is_a_duplicate_and_what_it_fills_is_excess():
    world = World()
    position(world, copies=3)
    found = world.judge()

    assert (found.duplicates, found.copies_max) == (2, 3)
    assert found.duplicates_by_signal == {"s1": 2}
    assert found.orders_per_meant == {3: 1, 1: 1}
    assert found.excess == {BTC: 2 * ONE}
    assert found.excess_usdt == 2 * ONE * 50_000


def test_an_order_that_nobody_decided_on_is_a_stray(world):
    world.order("entry", BUY, meant=False)

    assert (world.judge().strays, world.judge().duplicates) == (1, 1)


def test_a_stop_is_not_taken_for_an_exit_nor_an_exit_for_a_stop():
    world = World()
    position(world)
    world.order("exit", SELL)
    found = world.judge()

    assert (found.orders_meant, found.duplicates, found.strays) == (3, 0, 0)


def test_a_position_without_a_stop_for_too_long_is_counted_with_how_long(world):
    position(world, stop=False)
    world.wait(1_500)
    world.order("exit", SELL, after_ms=0)
    found = world.judge()

    assert [bare.lasted_ms for bare in found.unprotected] == [1_500]
    assert found.longest_ms == 1_500


@pytest.mark.guarantee(10)
def test_g10_nobody_being_told_of_it_is_a_breach_and_being_told_is_none():
    world = World(ids=True)
    position(world, stop=False)
    world.wait(1_500)
    found = world.judge()
    alarm = execsafe.Event(
        type=execsafe.EventType.POSITION_UNPROTECTED, at_ms=world.now_ms - 500, subject="p", symbol=BTC
    )

    assert guarantees(wave_breaches(world.venue.ledger, world.records, found)) == {"G10": 1}
    assert wave_breaches(world.venue.ledger, world.records, found, [alarm]) == ()
    elsewhere = attrs.evolve(alarm, symbol="ETH/USDT:USDT")
    assert guarantees(wave_breaches(world.venue.ledger, world.records, found, [elsewhere])) == {"G10": 1}


def test_an_exit_that_turns_the_position_around_is_a_breach():
    world = World(ids=True)
    position(world)
    world.order("entry", SELL, 2 * ONE)  # asked to reduce, and not reduce-only
    found = world.judge()

    assert found.flips == 1
    assert guarantees(wave_breaches(world.venue.ledger, world.records, found))["G10"] == 1


def test_an_order_that_the_journal_does_not_have_is_a_breach():
    world = World(ids=True)
    position(world)
    world.order("entry", BUY, meant=False)
    found = world.judge()

    assert guarantees(wave_breaches(world.venue.ledger, world.records, found))["G2"] == 1


def test_a_book_that_is_off_differs():
    world = World(ids=True)
    world.order("entry", BUY)
    world.order("exit", SELL)
    found = world.judge(book={BTC: ONE})

    assert found.differences == {BTC: (0, ONE)}
    assert found.difference_usdt == ONE * 50_000
    assert guarantees(wave_breaches(world.venue.ledger, world.records, found)) == {"G11": 1}


def test_gaps_without_a_pause_are_one_stretch():
    gaps = [Gap(0, 10, ONE), Gap(10, 30, 2 * ONE), Gap(40, 50, ONE)]

    assert [(s.from_ms, s.to_ms, s.quantity) for s in stretches(BTC, gaps)] == [(0, 30, 2 * ONE), (40, 50, ONE)]


def test_what_the_journal_means_leaves_out_what_was_refused():
    world = World(ids=True)
    position(world)
    refused = attrs.evolve(world.records[0].attempts[0], state=AttemptState.REJECTED)
    records = [attrs.evolve(world.records[0], attempts=(refused,)), world.records[1]]
    entry, stop = meant_by(records)

    assert entry.client_order_ids == frozenset()
    assert (stop.purpose, len(stop.client_order_ids)) == ("stop", 1)
