"""From events and a ledger to what a report shows."""

import itertools
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import execsafe
from execsafe.bot import stories
from execsafe.bot.targets import Targets
from execsafe.core.funnel import Funnel, Stage
from execsafe.core.signals import DropReason
from execsafe.model.intent import ErrorFacts
from execsafe.model.values import Params
from execsafe.testing.venue import NewOrder, SimVenue, linear

START_MS = 1_700_000_000_000
BTC = "BTC/USDT:USDT"
BUY, SELL = execsafe.Side.BUY, execsafe.Side.SELL
KIND = execsafe.EventType


def event(kind, at_ms=0, subject="p1", **more):
    return execsafe.Event(type=kind, at_ms=START_MS + at_ms, subject=subject, **more)


# --- ghosts -----------------------------------------------------------------------------------------------------


def doubt(at_ms, subject="a", attempt=1):
    return event(KIND.ORDER_IN_DOUBT, at_ms, subject, attempt=attempt, error=ErrorFacts(kind="RequestTimeout"))


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        (KIND.ORDER_ADOPTED, "found"),
        (KIND.ATTEMPT_ABSENT, "proven absent"),
        (KIND.INTENT_UNRESOLVED, "unresolved"),
        (KIND.ORDER_REJECTED, "refused"),
    ],
)
def test_a_doubt_tells_why_it_was_and_how_it_was_settled(kind, verdict):
    [ghost] = stories.ghosts_of([doubt(0), event(kind, 700, "a", attempt=1)])

    assert ghost.cause == "RequestTimeout"
    assert ghost.verdict.startswith(verdict)
    assert ghost.settled_at_ms - ghost.doubted_at_ms == 700


def test_each_attempt_in_doubt_is_a_ghost_of_its_own_and_one_may_stay_open():
    told = [doubt(0), event(KIND.ATTEMPT_ABSENT, 10, "a", attempt=1), doubt(20, attempt=2), doubt(30, "b")]
    first, second, third = stories.ghosts_of([*told, event(KIND.ORDER_ADOPTED, 50, "a", attempt=2)])

    assert (first.verdict, second.settled_at_ms) == ("proven absent", START_MS + 50)
    assert (third.settled_at_ms, third.verdict) == (None, "not settled")


def test_late_evidence_settles_what_was_given_up():
    told = [doubt(0), event(KIND.INTENT_UNRESOLVED, 10, "a"), event(KIND.ORDER_ADOPTED, 99, "a", attempt=1)]
    [ghost] = stories.ghosts_of(told)

    assert ghost.verdict.startswith("found")


def test_an_order_is_named_by_key_and_leg():
    intent = execsafe.Intent(key="waves/ETH:x/1", leg="entry.1", symbol=BTC, side="buy", quantity="1")
    other = execsafe.Intent(key="k", symbol=BTC, side="buy", quantity="1", account="second")

    assert stories.order_name(intent.identity) == "waves/ETH:x/1 #entry.1"
    assert stories.order_name(other.identity) == "second: k"
    assert stories.order_name("no identity") == "no identity"


# --- the funnel -------------------------------------------------------------------------------------------------


def test_the_funnel_has_every_stage_and_the_reasons_of_all_drops():
    counts = Funnel().enter(Stage.RECEIVED).enter(Stage.RECEIVED).enter(Stage.ADAPTED)
    counts = counts.drop(Stage.RECEIVED, DropReason.STALE).drop(Stage.ADAPTED, DropReason.STALE)
    shown = stories.funnel_of(counts)

    assert shown.stages[:2] == (("received", 2), ("adapted", 1))
    assert shown.drops == {"stale": 2}


def test_durable_events_tell_a_funnel_too():
    told = [event(KIND.SIGNAL_ACCEPTED)] * 3 + [event(KIND.SIGNAL_HANDLED, note="executed")] * 2
    told.append(event(KIND.SIGNAL_HANDLED, note="denied"))
    shown = stories.funnel_of_events(told)

    assert shown.stages == (("accepted", 3), ("handled", 3), ("executed", 2))
    assert shown.drops == {"denied": 1}
    assert stories.funnel_of_events([event(KIND.ORDER_FILL)]) is None


# --- positions from a ledger ------------------------------------------------------------------------------------


class World:
    def __init__(self):
        self.venue = SimVenue([linear("BTC")], prices={BTC: 50_000})
        self.now_ms = START_MS
        self.tape = []

    def price(self, price, after_ms=100):
        self.now_ms += after_ms
        self.venue.set_price(BTC, price, self.now_ms)
        self.tape.append((self.now_ms, Decimal(price)))

    def order(self, side, quantity="0.1", trigger=None, after_ms=10, *, reduce_only=False):
        self.now_ms += after_ms
        self.venue.submit(
            NewOrder(
                symbol=BTC, side=side, quantity=Decimal(quantity), type="market",
                reduce_only=reduce_only or bool(trigger),
                trigger_price=None if trigger is None else Decimal(trigger),
                trigger_above=None if trigger is None else side is BUY,
            ),
            self.now_ms,
        )  # fmt: skip

    def positions(self):
        return stories.positions_in_ledger(self.venue.ledger, BTC, self.tape)


def test_a_position_has_its_prices_its_stop_and_the_time_without_one():
    world = World()
    world.price(50_000)
    world.order(BUY)
    world.order(SELL, trigger=49_500, after_ms=240)
    for price in (50_400, 50_200, 49_400):
        world.price(price)
    [position] = world.positions()

    assert (position.side, position.entry_price, position.outcome) == ("long", 50_000, "closed by its stop")
    assert [price for _, price in position.prices] == [50_000, 50_400, 50_200, 49_400]
    assert [price for _, price in position.stop] == [49_500, 49_500]
    assert position.unprotected_ms == 240
    assert position.closed_at_ms == world.now_ms


def test_a_stop_that_moves_is_a_step():
    world = World()
    world.order(SELL)
    world.order(BUY, trigger=50_500)
    world.order(BUY, trigger=50_100, after_ms=500)
    world.price(49_000)
    [position] = world.positions()

    assert [price for _, price in position.stop[:2]] == [50_500, 50_100]
    assert (position.side, position.outcome, position.closed_at_ms) == ("short", "still held at the end", None)


def test_positions_follow_each_other_and_one_that_turns_around_is_two():
    world = World()
    world.order(BUY)
    world.order(SELL, reduce_only=True)
    world.order(BUY)
    world.order(SELL, "0.3")
    positions = world.positions()

    assert [p.side for p in positions] == ["long", "long", "short"]
    assert [p.closed_at_ms is None for p in positions] == [False, False, True]
    assert [p.name for p in positions] == ["BTC 1", "BTC 2", "BTC 3"]


@given(st.lists(st.tuples(st.sampled_from([BUY, SELL]), st.integers(1, 5)), max_size=20))
def test_every_position_lies_between_its_own_fills_whatever_was_traded(orders):
    world = World()
    for side, size in orders:
        world.order(side, f"0.{size}")
    positions = world.positions()
    held = world.venue.ledger.position(BTC)

    assert [p.closed_at_ms is None for p in positions[-1:]] == ([held != 0] if positions else [])
    for before, after in itertools.pairwise(positions):
        assert before.opened_at_ms <= before.closed_at_ms <= after.opened_at_ms


def test_exposure_begins_flat_and_lasts_to_the_end():
    world = World()
    world.order(BUY)
    world.price(51_000)
    world.order(SELL, "0.04", reduce_only=True)

    assert [held for _, held in stories.exposure_of(world.venue.ledger, [BTC, "X"])[BTC]] == [
        0, Decimal("0.1"), Decimal("0.06"), Decimal("0.06"),
    ]  # fmt: skip


def targets(position_id="p1"):
    levels = tuple(Decimal(price) for price in (50_400, 50_800, 51_200, 49_500))
    return Targets(position_id=position_id, account="default", symbol=BTC, side="long", legs=(), levels=levels)


def test_a_position_gets_the_levels_and_the_reason_of_its_exit_from_what_the_bot_told():
    world = World()
    world.order(BUY)
    opened_ms = world.now_ms - START_MS
    world.order(SELL, reduce_only=True, after_ms=500)
    told = [
        event(KIND.POSITION_OPENED, opened_ms + 30, symbol=BTC),
        event(KIND.EXIT_REGISTERED, opened_ms + 400, "x", symbol=BTC, note="take_profit"),
    ]
    [position] = stories.named(world.positions(), told, [targets()])

    assert [level.name for level in position.levels] == ["TP1", "TP2", "TP3", "SL"]
    assert position.outcome == "exit: take profit"


def test_a_position_that_the_bot_never_knew_of_stays_without_levels():
    world = World()
    world.order(BUY)
    world.order(SELL, reduce_only=True)
    late = event(KIND.POSITION_OPENED, 60_000, symbol=BTC)
    [position] = stories.named(world.positions(), [late], [targets()])

    assert position.levels == ()


# --- positions from events alone --------------------------------------------------------------------------------


def test_events_alone_tell_entry_levels_stops_and_what_was_realized():
    side = Params.of({"side": "long"})
    told = [
        event(KIND.POSITION_OPENED, 0, symbol=BTC, price=Decimal(50_000), details=side),
        event(KIND.STOP_PLACED, 200, symbol=BTC, price=Decimal(49_500)),
        event(KIND.STOP_MOVED, 900, symbol=BTC, price=Decimal(50_000)),
        event(KIND.STOP_MOVED, 950, "other", symbol=BTC, price=Decimal(1)),
        event(KIND.POSITION_CLOSED, 1_500, symbol=BTC, details=Params.of({"realized": "12.5"})),
    ]
    [position] = stories.positions_in_events(told, [targets()])

    assert (position.side, position.entry_price, position.prices) == ("long", 50_000, ())
    assert [price for _, price in position.stop] == [49_500, 50_000, 50_000]
    assert position.outcome == "closed, realized 12.5"
    assert len(position.levels) == 4
