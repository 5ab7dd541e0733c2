"""What follows from book, journal and venue: nothing from one reading alone, and nothing twice."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.backoff import Backoff
from execsafe.core.findings import (
    Backing,
    BookFill,
    CancelOrder,
    Finding,
    Findings,
    Kind,
    Observation,
    OrderSeen,
    Owner,
    ReconcilePolicy,
    Settle,
    inferred_fill,
    is_marked,
)
from execsafe.core.holdings import next_foreign_fill, was_seen_before
from execsafe.core.ids import client_order_id
from execsafe.core.reconcile import decide
from execsafe.errors import InvalidInput
from execsafe.model.event import EventType
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Attempt, AttemptState, ErrorFacts, Intent, IntentRecord, IntentState
from execsafe.model.order import Side
from execsafe.model.position import (
    Balance,
    Execution,
    Position,
    PositionSide,
    Snapshot,
    Unavailable,
    VenuePosition,
)
from execsafe.model.venue import IdEncoding, IdRule
from execsafe.stores.codec import decode, encode, register

register(Findings, "ReconciliationFindings")  # as the shell does
D = Decimal
SYMBOL, OTHER, SPOT = "BTC/USDT:USDT", "ETH/USDT:USDT", "BTC/USDT"
T0 = 1_000_000_000
STEP = Instrument(symbol=SYMBOL, base="BTC", quote="USDT", step_size="0.1")
POLICY = ReconcilePolicy()
NEW = Findings(account="default")
DOWN = Unavailable(error=ErrorFacts(kind="RequestTimeout"), at_ms=T0)
MISSING = Unavailable(error=ErrorFacts(kind="UnsupportedByVenue"), at_ms=T0)


def long(quantity, symbol=SYMBOL, **more):
    signed = D(quantity)
    side = PositionSide.LONG if signed > 0 else PositionSide.SHORT
    facts = {"position_id": f"p-{symbol}", "entry_price": D(100), "updated_at_ms": 0, **more}
    return Position(account="default", symbol=symbol, side=side, quantity=abs(signed), **facts)


def shown(quantity, symbol=SYMBOL, **more):
    signed = D(quantity)
    side = PositionSide.LONG if signed > 0 else PositionSide.SHORT
    return VenuePosition(symbol=symbol, side=side, quantity=abs(signed), entry_price=D(101), mark_price=D(99), **more)


def record(key="k", state=IntentState.LIVE, *, symbol=SYMBOL, at_ms=0, limit_price=90, **more):
    intent = Intent(key=key, symbol=symbol, side="sell", quantity=1, limit_price=limit_price, **more)
    attempt = Attempt(
        number=1, client_order_id=f"c-{key}", quantity=D(1), state=AttemptState.LIVE, prepared_at_ms=at_ms
    )
    price = None if limit_price is None else D(limit_price)
    return IntentRecord(
        intent=intent, quantity=D(1), limit_price=price, attempts=(attempt,), state=state,
        created_at_ms=at_ms, updated_at_ms=at_ms,
    )  # fmt: skip


def seen(at_ms=T0, *, book=(), venue=(), orders=(), backing=Backing.UNREAD, **more):
    """One observation, in which every reading began when the pass did."""
    positions = venue if isinstance(venue, Unavailable) else Snapshot(value=tuple(venue), taken_at_ms=at_ms)
    listing = orders if isinstance(orders, Unavailable) else Snapshot(value=tuple(orders), taken_at_ms=at_ms)
    facts = {
        "account": "default", "at_ms": at_ms, "lag_ms": 2_500, "book": tuple(book), "positions": positions,
        "orders": {SYMBOL: listing}, "backing": {SYMBOL: backing}, "instruments": {SYMBOL: STEP}, **more,
    }  # fmt: skip
    return Observation(**facts)


def after(*observations, policy=POLICY, start=NEW):
    """The decision on the last of several passes."""
    known = start
    for one in observations:
        result = decide(known, one, policy)
        known = result.record
    return result


def later(one, ms=11_000, **changes):
    return seen(T0 + ms, **{**one, **changes})


def kinds(result):
    return [event.type for event in result.events]


# --- Positions ----------------------------------------------------------------------------------------------


@pytest.mark.row("S3-32")
@pytest.mark.parametrize(("venue", "differs"), [("1", False), ("1.09", False), ("1.1", True), ("0.9", True)])
def test_less_than_a_lot_step_is_no_difference(venue, differs):
    result = after(seen(book=[long(1)], venue=[shown(venue)]))
    assert bool(result.pending) is differs
    assert result.is_complete is not differs


def test_without_a_known_step_quantities_are_compared_to_the_last_digit():
    assert after(seen(book=[long(1)], venue=[shown("1.00000001")], instruments={})).pending
    assert not after(seen(book=[long(1)], venue=[shown("1.00")], instruments={})).pending


@pytest.mark.parametrize(
    ("book", "venue", "kind"),
    [
        ([long(1)], [], Kind.PHANTOM_POSITION),
        ([], [shown(1)], Kind.UNKNOWN_POSITION),
        ([long(1)], [shown(2)], Kind.QUANTITY),
        ([long(1)], [shown(-1)], Kind.QUANTITY),
        ([long(1)], [shown(2), shown(-1)], Kind.TWO_SIDED),
    ],
)
def test_a_difference_is_told_once_a_second_later_reading_shows_the_same(book, venue, kind):
    one = {"book": book, "venue": venue}
    first = after(seen(**one))
    assert ([f.kind for f in first.pending], kinds(first), first.is_complete) == ([kind], [], False)
    too_soon = after(seen(**one), later(one, 9_999))
    assert too_soon.pending
    assert not too_soon.differences
    second = after(seen(**one), later(one))
    assert ([f.kind for f in second.differences], kinds(second)) == (
        [kind], [EventType.DIFFERENCE_FOUND, EventType.RECONCILED],
    )  # fmt: skip
    assert second.is_complete
    third = after(seen(**one), later(one), later(one, 22_000))
    assert (kinds(third), third.actions) == ([], ())


def test_where_only_spot_is_traded_nothing_waits_for_positions_that_cannot_be_read():
    spot = attrs.evolve(seen(book=[long(1, SPOT)], venue=DOWN, instruments={}), orders={}, balances=balances(1, T0))
    assert "positions" not in after(spot).unread
    assert "positions" in after(seen(book=[long(1)], venue=DOWN)).unread


def test_a_difference_that_changes_starts_anew():
    assert after(seen(book=[long(1)]), later({"book": [long(1)]}, venue=[shown("0.5")])).pending
    assert not after(seen(book=[long(1)]), later({"book": [long(1)]}, venue=[shown(1)])).record.findings


@pytest.mark.guarantee(18)
@pytest.mark.row("D-15", "S3-27", "S3-28")
def test_g18_an_unreadable_view_confirms_nothing_and_takes_nothing_back():
    one = {"book": [long(1)], "backing": Backing.NOT_OFFERED}
    blind = after(seen(**one), later(one, venue=DOWN))
    assert (len(blind.pending), blind.actions, blind.unread) == (1, (), ("positions",))
    assert kinds(blind) == [EventType.VIEW_UNAVAILABLE]
    assert blind.events[0].error == blind.error == DOWN.error, "somebody wants to know why"
    again = after(seen(**one), later(one, venue=DOWN), later(one, 22_000, venue=DOWN))
    assert kinds(again) == []
    assert len(again.pending) == 1


@pytest.mark.parametrize("state", [IntentState.SENDING, IntentState.IN_DOUBT, IntentState.UNRESOLVED])
def test_nothing_is_compared_while_an_order_of_the_symbol_is_in_doubt(state):
    result = after(seen(book=[long(1)], intents=(record(state=state, at_ms=T0),)))
    assert (result.verified, result.pending, result.is_complete) == ((), (), False)


def test_nothing_is_compared_with_a_reading_that_may_be_older_than_the_last_fill():
    assert not after(seen(book=[long(1)], active_ms={SYMBOL: T0 - 2_499})).pending
    assert after(seen(book=[long(1)], active_ms={SYMBOL: T0 - 2_500})).pending


@pytest.mark.row("S3-29", "S3-30", "S3-31")
@pytest.mark.parametrize(
    ("backing", "quantity"),
    [(Backing.BACKS_BOOK, 1), (Backing.BACKS_VENUE, 0), (Backing.UNREAD, None), (Backing.NOT_OFFERED, None)],
)
def test_what_two_of_three_sources_say_is_verified(backing, quantity):
    [verified] = after(seen(book=[long(1)], backing=backing)).verified
    assert verified.quantity == quantity


@pytest.mark.row("S3-29", "D-15")
@pytest.mark.parametrize("backing", list(Backing))
def test_a_fill_is_inferred_only_where_no_list_of_fills_is_offered(backing):
    one = {"book": [long(1)], "backing": backing}
    result = after(seen(**one), later(one))
    assert len(result.actions) == (backing is Backing.NOT_OFFERED)


def test_no_fill_is_inferred_while_our_own_orders_cannot_be_seen():
    one = {"book": [long(1)], "backing": Backing.NOT_OFFERED, "orders": DOWN}
    assert after(seen(**one), later(one)).actions == ()


def test_an_inferred_fill_closes_what_is_missing_at_a_known_price():
    one = {"book": [long(-1)], "venue": [shown("-0.4")], "backing": Backing.NOT_OFFERED}
    [action] = after(seen(**one), later(one)).actions
    fill = action.execution
    assert (fill.side, fill.quantity, fill.price) == (Side.BUY, D("0.6"), D(99))


@pytest.mark.parametrize(("book", "venue"), [([], [shown(1)]), ([long(1)], [shown(2)]), ([long(1)], [shown(-1)])])
def test_a_fill_that_opens_is_inferred_only_where_the_policy_adopts(book, venue):
    one = {"book": book, "venue": venue, "backing": Backing.NOT_OFFERED}
    assert after(seen(**one), later(one)).actions == ()
    adopts = ReconcilePolicy(adopt_foreign=True)
    assert isinstance(after(seen(**one), later(one), policy=adopts).actions[0], BookFill)
    never = ReconcilePolicy(adopt_foreign=True, infer_fills=False)
    assert after(seen(**one), later(one), policy=never).actions == ()


def test_long_and_short_at_once_are_told_and_never_booked():
    one = {"book": [long(1)], "venue": [shown(2), shown(-1.5)], "backing": Backing.NOT_OFFERED}
    assert after(seen(**one), later(one), policy=ReconcilePolicy(adopt_foreign=True)).actions == ()


def test_no_fill_is_inferred_without_a_price():
    one = {"book": [long(1, entry_price=None)], "backing": Backing.NOT_OFFERED}
    assert after(seen(**one), later(one)).actions == ()


@pytest.mark.guarantee(13)
def test_g13_a_fill_that_could_not_be_booked_is_booked_again_under_the_same_id_and_told_once():
    one = {"book": [long(1)], "backing": Backing.NOT_OFFERED}
    second = after(seen(**one), later(one))
    fourth = after(seen(**one), later(one), later(one, 12_000), later(one, 22_000))
    assert fourth.actions == second.actions
    assert kinds(second) == [EventType.DIFFERENCE_FOUND, EventType.FILL_INFERRED, EventType.RECONCILED]
    assert EventType.FILL_INFERRED not in kinds(fourth)


@pytest.mark.guarantee(15)
def test_g15_the_id_of_an_inferred_fill_is_a_pure_function_of_the_finding():
    found = Finding(
        kind=Kind.QUANTITY, symbol=SYMBOL, subject="p", book_quantity=D("1.0"), venue_quantity=D("0.5"),
        price=D(1), first_seen_ms=T0,
    )  # fmt: skip
    same = attrs.evolve(found, book_quantity=D(1), price=D(2), confirmed=True, acted_at_ms=5)
    assert inferred_fill("a", found).trade_id == inferred_fill("a", same).trade_id
    others = [{"venue_quantity": D("0.4")}, {"subject": "q"}, {"first_seen_ms": T0 + 1}, {"symbol": OTHER}]
    ids = {inferred_fill("a", attrs.evolve(found, **change)).trade_id for change in others}
    assert len(ids | {inferred_fill("a", found).trade_id, inferred_fill("b", found).trade_id}) == len(others) + 2


# --- Spot ---------------------------------------------------------------------------------------------------


def balances(total, at_ms=T0, currency="BTC"):
    amount = D(total)
    return Snapshot(value={currency: Balance(free=amount, used=D(0), total=amount)}, taken_at_ms=at_ms)


@pytest.mark.parametrize(
    ("total", "booked", "told"),
    [("1", False, False), ("5", False, False), ("0.999", True, True), ("0.997", False, True), ("0", False, True)],
)
def test_on_spot_a_surplus_is_nobodys_business_a_fee_is_booked_and_a_shortage_is_told(total, booked, told):
    def one(at_ms):
        spot = {"book": [long(1, SPOT)], "orders": (), "instruments": {}}
        return attrs.evolve(seen(at_ms, **spot), orders={}, balances=balances(total, at_ms))

    result = after(one(T0), one(T0 + 11_000))
    assert bool(result.actions) is booked
    assert (EventType.DIFFERENCE_FOUND in kinds(result)) is told


def test_what_two_spot_markets_hold_of_one_currency_is_short_only_once():
    book = [long(1, "BTC/USDC", position_id="c"), long(1, "BTC/USDT", position_id="t")]
    one = attrs.evolve(seen(book=book), orders={}, instruments={}, balances=balances("1.5"))
    assert [(f.symbol, f.difference) for f in after(one).pending] == [("BTC/USDC", D("-0.5"))]


def test_a_venue_without_positions_is_complete_for_spot_and_never_for_derivatives():
    spot = attrs.evolve(seen(book=[long(1, SPOT)], venue=MISSING), orders={}, balances=balances("1"))
    assert after(spot).is_complete
    assert after(attrs.evolve(spot, balances=MISSING)).is_complete
    assert not after(attrs.evolve(spot, balances=DOWN)).is_complete
    assert not after(seen(book=[long(1)], venue=MISSING)).is_complete


# --- Fills of others ----------------------------------------------------------------------------------------


def fill(side, quantity):
    return Execution(trade_id=f"{side}{quantity}", symbol=SYMBOL, side=Side(side), quantity=D(quantity), price=D(1))


@pytest.mark.parametrize(
    ("held", "venue", "fills", "expected"),
    [
        (1, 0, [fill("sell", 1)], (0, Backing.BACKS_VENUE)),
        (1, 0, [fill("buy", 1), fill("sell", "0.4")], (1, Backing.BACKS_VENUE)),
        (1, 0, [], (None, Backing.BACKS_BOOK)),
        (1, 0, [fill("buy", 1)], (None, Backing.BACKS_BOOK)),
        (1, "0.5", [fill("sell", 1)], (None, Backing.BACKS_BOOK)),  # more than is missing: not this one
        (1, 1, [fill("sell", 1)], (None, Backing.BACKS_BOOK)),
        (0, 1, [fill("buy", 1)], (None, Backing.BACKS_VENUE)),  # opens: not ours
        (1, -1, [fill("sell", 2)], (None, Backing.BACKS_VENUE)),
        (-1, 0, [fill("buy", 1)], (0, Backing.BACKS_VENUE)),
    ],
)
def test_foreign_fills_that_reduce_are_taken_where_they_explain_what_is_missing(held, venue, fills, expected):
    assert next_foreign_fill(D(held), D(venue), D("0.1"), fills, POLICY) == expected


def test_foreign_fills_that_open_are_taken_where_the_policy_adopts():
    adopts = ReconcilePolicy(adopt_foreign=True)
    assert next_foreign_fill(D(0), D(1), D(0), [fill("buy", 1)], adopts) == (0, Backing.BACKS_VENUE)


# --- Orders -------------------------------------------------------------------------------------------------


def order(owner, **more):
    facts = {"symbol": SYMBOL, "owner": owner, "venue_order_id": "7", "quantity": D(1), **more}
    return OrderSeen(**facts)


OUR_STOP = order(Owner.OURS, is_stop=True, identity="i")


@pytest.mark.row("S3-28")
def test_a_stop_of_ours_goes_once_two_readings_show_it_without_position():
    one = {"orders": [OUR_STOP]}
    assert (after(seen(**one)).actions, kinds(after(seen(**one)))) == ((), [])
    second = after(seen(**one), later(one))
    assert kinds(second) == [EventType.ORPHAN_STOP_FOUND, EventType.RECONCILED]
    assert second.actions == (CancelOrder(symbol=SYMBOL, identity="i", venue_order_id="7"),)
    assert after(seen(**one), later(one), later(one, 12_000)).actions == ()
    assert len(after(seen(**one), later(one), later(one, 22_000)).actions) == 1  # still there: asked again


@pytest.mark.row("S3-28", "D-15")
@pytest.mark.parametrize(
    "change",
    [
        {"book": [long(1)], "venue": [shown(1)]},
        {"book": [long(1)]},
        {"venue": [shown(1)]},
        {"venue": DOWN},
        {"orders": DOWN},
        {"active_ms": {SYMBOL: T0 - 40_000}},
        {"intents": (record(state=IntentState.IN_DOUBT, at_ms=T0),)},
        {"orders": [attrs.evolve(OUR_STOP, is_kept=True)]},
        {"orders": [attrs.evolve(OUR_STOP, is_stop=False)]},
        {"orders": [attrs.evolve(OUR_STOP, since_ms=T0 - 40_000)]},
        {"orders": [attrs.evolve(OUR_STOP, owner=Owner.ENDED)]},
        {"orders": [attrs.evolve(OUR_STOP, owner=Owner.FOREIGN)]},
        {"orders": [attrs.evolve(OUR_STOP, owner=Owner.LOST, identity="")]},
    ],
)
def test_no_stop_is_canceled_on_less_than_two_agreeing_sources_and_some_age(change):
    one = {"orders": [OUR_STOP], **change}
    result = after(seen(**one), later(one))
    assert [action for action in result.actions if isinstance(action, CancelOrder)] == []


def test_on_spot_no_balance_says_whose_coins_a_stop_would_sell():
    stop = attrs.evolve(OUR_STOP, symbol=SPOT)
    one = attrs.evolve(seen(), orders={SPOT: Snapshot(value=(stop,), taken_at_ms=T0)}, balances=balances("1"))
    assert after(one, attrs.evolve(one, at_ms=T0 + 11_000)).actions == ()


@pytest.mark.row("S4-14")
def test_foreign_and_lost_orders_are_told_at_once_and_once():
    one = {"orders": [order(Owner.FOREIGN), order(Owner.LOST, venue_order_id="8")]}
    first = after(seen(**one))
    assert kinds(first) == [EventType.FOREIGN_ORDER_FOUND, EventType.FOREIGN_ORDER_FOUND, EventType.RECONCILED]
    assert sorted(event.note for event in first.events[:2]) == ["foreign", "lost"]
    part = [attrs.evolve(o, quantity=D("0.5")) for o in one["orders"]]
    assert kinds(after(seen(**one), later({"orders": part}))) == []
    assert after(seen(**one), later({"orders": []})).record.findings == ()
    assert len(after(seen(**one), later({"orders": DOWN})).record.findings) == 2


def test_an_account_in_which_others_trade_a_lot_stays_small_and_our_own_findings_stay():
    crowd = [order(Owner.FOREIGN, venue_order_id=str(number)) for number in range(1_000)]
    lost = order(Owner.LOST, venue_order_id="zz")
    result = after(seen(orders=[*crowd, lost]))
    assert len(result.record.findings) == 500
    assert Kind.LOST_ORDER in {found.kind for found in result.record.findings}
    assert kinds(after(seen(orders=[*crowd, lost]), seen(orders=[lost, *crowd[::-1]]))) == []


@pytest.mark.row("S4-14")
def test_ours_are_recognised_by_marker_alphabet_and_length_only():
    ours = client_order_id(account="a", key="k", leg="", generation=3, rule=IdRule())
    assert is_marked(ours, IdRule())
    for foreign in (None, "", "xs", ours[:-1], ours + "a", ours.upper(), "yy" + ours[2:], ours[:-1] + "1"):
        assert not is_marked(foreign, IdRule())
    assert not is_marked("123456", IdRule(encoding=IdEncoding.INT63))


@pytest.mark.row("S1-44")
@pytest.mark.parametrize(
    ("one", "stuck"),
    [
        (record(state=IntentState.SENDING), True),
        (record(state=IntentState.UNRESOLVED), True),
        (record(limit_price=None), True),
        (record(time_in_force="ioc"), True),
        (record(), False),
        (record(limit_price=None, trigger_price=50, reduce_only=True), False),
    ],
)
def test_what_ends_by_itself_and_does_not_is_stuck_and_settled(one, stuck):
    young = attrs.evolve(seen(300_000 - 1), intents=(one,))
    assert decide(NEW, young, POLICY).actions == ()
    result = decide(NEW, attrs.evolve(seen(300_000), intents=(one,)), POLICY)
    assert result.actions == ((Settle(),) if stuck else ())
    assert (EventType.STUCK_ORDER_FOUND in kinds(result)) is stuck


@pytest.mark.parametrize("ratio", ["-0.1", "0.06"])
def test_a_fee_that_could_hide_a_position_is_refused(ratio):
    with pytest.raises(InvalidInput):
        ReconcilePolicy(unstated_fee_ratio=ratio)
    with pytest.raises(InvalidInput):
        ReconcilePolicy(infer_fills="yes")


# --- Any world ----------------------------------------------------------------------------------------------

quantities = st.sampled_from(["-1", "-0.55", "0", "0.05", "0.5", "1", "2"]).map(D)
owners = st.sampled_from(list(Owner))
policies = st.builds(
    ReconcilePolicy,
    adopt_foreign=st.booleans(),
    infer_fills=st.booleans(),
    cancel_orphan_stops=st.booleans(),
    cancel_lost_stops=st.booleans(),
    stuck_after_s=st.sampled_from([1.0, 300.0]),
    orphan_age_s=st.sampled_from([1.0, 60.0]),
)


@st.composite
def moments(draw, at_ms):
    """What an account may look like at one instant, readings that fail included."""
    venue = {symbol: draw(quantities) for symbol in (SYMBOL, OTHER)}
    book = {symbol: draw(st.one_of(st.just(venue.get(symbol, D(1))), quantities)) for symbol in (*venue, SPOT)}
    listings = {}
    for symbol in (SYMBOL, OTHER, SPOT):
        number = draw(st.integers(0, 3))
        orders = [
            order(
                draw(owners), symbol=symbol, venue_order_id=f"{symbol}{n}", is_stop=draw(st.booleans()),
                identity=f"i{n}", is_kept=draw(st.booleans()), since_ms=draw(st.sampled_from([0, at_ms - 30_000])),
            )
            for n in range(number)
        ]  # fmt: skip
        orders = [o if o.owner in {Owner.OURS, Owner.ENDED} else attrs.evolve(o, identity="") for o in orders]
        listings[symbol] = draw(st.sampled_from([DOWN, Snapshot(value=tuple(orders), taken_at_ms=at_ms)]))
    shows = tuple(shown(q, symbol) for symbol, q in venue.items() if q)
    intents = st.builds(record, st.just("k"), st.sampled_from([IntentState.LIVE, IntentState.IN_DOUBT]))
    one = seen(
        at_ms,
        book=[long(q, symbol) for symbol, q in book.items() if q],
        venue=draw(st.sampled_from([shows, shows, shows, DOWN])),
        balances=draw(st.sampled_from([None, DOWN, balances("0.499", at_ms), balances("1", at_ms)])),
        intents=tuple(draw(st.lists(intents, max_size=1))),
        active_ms=draw(st.sampled_from([{}, {SYMBOL: at_ms - 1_000}, {OTHER: at_ms - 30_000}])),
    )
    backing = {symbol: draw(st.sampled_from(list(Backing))) for symbol in (SYMBOL, OTHER)}
    return attrs.evolve(one, orders=listings, backing=backing)


@st.composite
def histories(draw):
    """A few passes, some of which see the same world again a little later."""
    found, at_ms = [], T0
    for _ in range(draw(st.integers(1, 4))):
        at_ms += draw(st.sampled_from([1_000, 12_000, 70_000]))
        again = found and draw(st.booleans())
        found.append(_moved(found[-1], at_ms) if again else draw(moments(at_ms)))
    return found


def _moved(one, at_ms):
    """The same world, read again at another instant."""

    def read(view):
        return attrs.evolve(view, taken_at_ms=at_ms) if isinstance(view, Snapshot) else view

    orders = {symbol: read(view) for symbol, view in one.orders.items()}
    return attrs.evolve(one, at_ms=at_ms, positions=read(one.positions), balances=read(one.balances), orders=orders)


def _acted(one, actions):
    """*one* as it looks, to the same readings of the venue, once the actions are carried out."""
    book = {held.symbol: held.signed_quantity for held in one.book}
    orders = dict(one.orders)
    for action in actions:
        if isinstance(action, BookFill):
            sign = 1 if action.execution.side is Side.BUY else -1
            symbol = action.execution.symbol
            book[symbol] = book.get(symbol, D(0)) + sign * action.execution.quantity
        elif isinstance(action, CancelOrder) and action.identity:
            view = orders[action.symbol]
            ended = tuple(
                attrs.evolve(o, owner=Owner.ENDED) if o.identity == action.identity and o.owner is Owner.OURS else o
                for o in view.value
            )
            orders[action.symbol] = attrs.evolve(view, value=ended)
    held = tuple(long(q, symbol) for symbol, q in sorted(book.items()) if q)
    return attrs.evolve(one, book=held, orders=orders)


@pytest.mark.guarantee(15)
@pytest.mark.row("S1-21", "D-08")
@settings(max_examples=1_000, deadline=None)
@given(histories(), policies)
def test_g15_a_second_pass_over_the_same_snapshot_tells_and_does_nothing(history, policy):
    known = NEW
    for one in history:
        result = decide(known, one, policy)
        assert decide(known, one, policy) == result
        # Not carried out yet: the same inferred fills may be asked for, which count once.
        undone = decide(result.record, one, policy)
        assert undone.events == ()
        assert set(undone.actions) <= {action for action in result.actions if isinstance(action, BookFill)}
        second = decide(result.record, _acted(one, result.actions), policy)
        assert second.events == ()
        assert second.actions == ()
        # As it is after a restart: from what was stored.
        known = decode(encode(result.record))
        assert known == result.record


@pytest.mark.guarantee(18)
@pytest.mark.row("D-15", "S3-28")
@settings(max_examples=1_000, deadline=None)
@given(histories(), policies)
def test_g18_nothing_is_done_that_two_readings_and_two_sources_do_not_back(history, policy):
    known = NEW
    for one in history:
        result = decide(known, one, policy)
        held = {position.symbol: position.signed_quantity for position in one.book}
        for action in result.actions:
            if isinstance(action, CancelOrder):
                assert isinstance(one.orders[action.symbol], Snapshot)
                assert isinstance(one.positions, Snapshot)
                assert action.symbol not in held
                assert action.symbol not in {p.symbol for p in one.positions.value}
            if isinstance(action, BookFill):
                fill_ = action.execution
                assert one.at_ms >= fill_.at_ms + 10_000
                assert fill_.symbol == SPOT or one.backing[fill_.symbol] is Backing.NOT_OFFERED
                assert fill_.symbol == SPOT or isinstance(one.orders[fill_.symbol], Snapshot)
                left = held.get(fill_.symbol, D(0)) + fill_.quantity * (1 if fill_.side is Side.BUY else -1)
                assert policy.adopt_foreign or abs(left) < abs(held[fill_.symbol])
        known = result.record


# --- The barrier --------------------------------------------------------------------------------------------

MANY = tuple(f"S{number}/USDT:USDT" for number in range(5))
BEFORE, MEANWHILE = T0 - 1, T0 + 30_000
readings = st.sampled_from([None, DOWN, *(Snapshot(value=(), taken_at_ms=ms) for ms in (BEFORE, T0, MEANWHILE))])


@pytest.mark.guarantee(12, 18)
@settings(max_examples=500, deadline=None)
@given(st.lists(readings, min_size=len(MANY), max_size=len(MANY)), readings.filter(lambda reading: reading is not None))
def test_g12_the_barrier_is_lifted_only_when_every_symbol_was_read_since_the_pass_began(listings, positions):
    """A reading that failed, one that was never made, and one from before the pass all keep it closed."""
    orders = {symbol: listing for symbol, listing in zip(MANY, listings, strict=True) if listing is not None}
    one = Observation(account="default", at_ms=T0, symbols=frozenset(MANY), positions=positions, orders=orders)
    result = decide(NEW, one, POLICY)
    views = [*listings, positions]
    are_read = all(isinstance(view, Snapshot) and view.taken_at_ms >= T0 for view in views)
    assert result.lifts_barrier is are_read
    assert len(result.unread) == sum(not isinstance(v, Snapshot) or v.taken_at_ms < T0 for v in views)


@pytest.mark.parametrize("reads", [None, 5, Backoff(deadline_s=30.0, max_attempts=None), Backoff(deadline_s=None)])
def test_a_policy_under_which_a_view_might_be_read_for_ever_is_refused(reads):
    with pytest.raises(InvalidInput):
        ReconcilePolicy(reads=reads)


@pytest.mark.parametrize("more", [{"reads_at_once": 0}, {"read_spacing_s": -1}])
def test_a_policy_without_a_look_budget_is_refused(more):
    with pytest.raises(InvalidInput):
        ReconcilePolicy(**more)


@pytest.mark.parametrize(("after_ms", "is_same"), [(0, True), (2_499, True), (2_500, True), (2_500, False)])
def test_a_difference_was_seen_before_only_by_a_reading_that_began_a_read_lag_earlier(after_ms, is_same):
    facts = {"kind": Kind.PHANTOM_POSITION, "symbol": SYMBOL, "subject": "p", "book_quantity": D(1)}
    record = attrs.evolve(NEW, findings=(Finding(**facts, first_seen_ms=T0),))
    found = Finding(**{**facts, "book_quantity": D(1 if is_same else 2)}, first_seen_ms=T0 + after_ms)
    assert was_seen_before(record, found, 2_500) is (is_same and after_ms == 2_500)
