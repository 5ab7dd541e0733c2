"""Positions, balances, leverage and margin modes at the simulated venue, and how they are read through the port."""

from decimal import Decimal

import anyio
import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from execsafe.model.instrument import Instrument
from execsafe.model.order import OrderRequest, OrderStatus, Side
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.position import Balance, PositionSide, Snapshot, Unavailable
from execsafe.model.values import EXACT
from execsafe.ports import OrderRef
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import EPOCH_MS, VirtualClock
from execsafe.testing.faults import APPLIES, Fault, FaultPlan, Reading, Strike
from execsafe.testing.ledger import Happened
from execsafe.testing.sim_errors import BaseError
from execsafe.testing.venue import Market, NewOrder, RejectReason, SimVenue, VenueReject, linear
from execsafe.views import VenueReader

D = Decimal
T0 = EPOCH_MS
SPOT, PERP = "BTC/USDT", "BTC/USDT:USDT"
READS = {
    Reading.POSITIONS: lambda adapter: adapter.fetch_positions(),
    Reading.BALANCES: lambda adapter: adapter.fetch_balances(),
    Reading.OPEN_ORDERS: lambda adapter: adapter.fetch_open_orders(PERP),
    Reading.EXECUTIONS: lambda adapter: adapter.fetch_executions(PERP, since_ms=0),
    Reading.ORDER_BOOK: lambda adapter: adapter.fetch_order_book(PERP),
    Reading.QUOTES: lambda adapter: adapter.fetch_quotes([PERP]),
}


class World:
    """A venue, a connection to it, and what is scripted to go wrong."""

    def __init__(self, *strikes, **venue):
        self.clock = VirtualClock()
        self.venue = SimVenue(**venue)
        self.plan = FaultPlan.scripted(*strikes)
        self.adapter = SimAdapter(self.venue, clock=self.clock, plan=self.plan)
        self.reader = VenueReader(self.adapter, clock=self.clock)

    async def order(self, side=Side.BUY, quantity="1", price=None, symbol=PERP, key="a", **more):
        kind = "market" if price is None else "limit"
        request = OrderRequest(
            symbol=symbol, side=side, type=kind, quantity=D(quantity), limit_price=price and D(price),
            client_order_id=key, **more,
        )  # fmt: skip
        return await self.adapter.create_order(request)

    async def judged(self, operation, call, *args):
        """What the error of a call means; None: there was none."""
        try:
            await call(*args)
        except BaseError as error:
            return self.adapter.judge(error, operation).meaning
        return None


def submit(venue, side=Side.BUY, quantity="1", price=None, *, symbol=PERP, at_ms=T0, **more):
    return venue.submit(
        NewOrder(
            symbol=symbol, side=side, quantity=D(quantity), type="limit" if price else "market",
            limit_price=price and D(price), **more,
        ),
        at_ms,
    )  # fmt: skip


def refused(call, *args, **more):
    with pytest.raises(VenueReject) as caught:
        call(*args, **more)
    return caught.value.reason


# --- positions ----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_flat_account_has_no_positions_and_an_open_one_says_everything_about_them():
    world = World()
    assert await world.adapter.fetch_positions() == []
    await world.order(quantity="2")
    world.venue.set_price(PERP, 61_000, world.clock.now_ms())

    [position] = await world.adapter.fetch_positions()

    assert (position.symbol, position.side, position.quantity) == (PERP, PositionSide.LONG, 2)
    assert (position.entry_price, position.mark_price, position.leverage) == (60_000, 61_000, 10)
    assert position.stop_price is None


@pytest.mark.parametrize(
    ("side", "leverage", "expected"),
    [(Side.BUY, 10, "54300"), (Side.SELL, 10, "65700"), (Side.BUY, 3, "40300"), (Side.BUY, 1, "300")],
)
def test_a_position_is_liquidated_on_paper_where_its_isolated_margin_ends(side, leverage, expected):
    """60,000 × (1 ∓ 1/leverage ± 0.005), on the tick below."""
    market = attrs.evolve(linear(), leverage=D(leverage))
    venue = SimVenue([market])
    submit(venue, side)

    assert venue.fetch_positions(T0)[0].liquidation_price == D(expected)


def test_a_position_that_can_lose_no_more_than_its_margin_has_no_liquidation_price():
    market = attrs.evolve(linear(), leverage=D(1), maintenance_ratio=D(0))
    venue = SimVenue([market])
    submit(venue)

    assert venue.fetch_positions(T0)[0].liquidation_price is None


@pytest.mark.anyio
@pytest.mark.row("S3-27")
@pytest.mark.guarantee(18)
async def test_no_positions_a_wrongly_empty_answer_and_no_answer_are_three_things():
    """Only the last is told apart by the reading itself: an empty answer needs a second source."""
    world = World(
        Strike("look_up", 1, Fault.POSITIONS_EMPTY),
        Strike("look_up", 2, Fault.LOOKUP_ERROR, reading=Reading.POSITIONS),
    )
    await world.order()

    answers = [await world.reader.positions() for _ in range(3)]

    assert isinstance(answers[0], Snapshot)
    assert answers[0].value == []  # wrong: the venue says so although the ledger knows better
    assert isinstance(answers[1], Unavailable)
    assert isinstance(answers[2], Snapshot)
    assert [position.quantity for position in answers[2].value] == [1]
    assert world.venue.ledger.position(PERP) == 1
    assert world.plan.fired == {Fault.POSITIONS_EMPTY: 1, Fault.LOOKUP_ERROR: 1}


@pytest.mark.anyio
async def test_a_lagging_reading_shows_the_position_of_a_moment_ago():
    world = World(Strike("look_up", 2, Fault.POSITIONS_LAG, 1_000), Strike("look_up", 3, Fault.POSITIONS_LAG, 1_000))
    await world.order()
    await anyio.sleep(5)
    await world.order(Side.SELL, "0.4", key="b")

    shown = [(await world.adapter.fetch_positions())[0].quantity for _ in range(2)]
    await anyio.sleep(2)
    shown.append((await world.adapter.fetch_positions())[0].quantity)

    assert shown == [D("0.6"), D(1), D("0.6")]


@pytest.mark.anyio
async def test_positions_and_balances_may_always_lag():
    world = World(account_lag_ms=1_000, balances={"USDT": 100_000})
    await world.order()
    assert await world.adapter.fetch_positions() == []
    assert (await world.adapter.fetch_balances())["USDT"].used == 0

    await anyio.sleep(1)

    assert [position.quantity for position in await world.adapter.fetch_positions()] == [1]
    assert (await world.adapter.fetch_balances())["USDT"].used == 6_000


# --- every reading ------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.row("S4-35")
@pytest.mark.parametrize("reading", READS)
async def test_every_reading_takes_time_and_meets_the_faults_of_looking_up(reading):
    for fault, names in (
        (Fault.LOOKUP_ERROR, {"ExchangeNotAvailable", "RequestTimeout"}),
        (Fault.RATE_LIMITED, {"RateLimitExceeded"}),
        (Fault.MAINTENANCE, {"OnMaintenance"}),
        (Fault.TIMESTAMP_REJECT, {"InvalidNonce"}),
    ):
        world = World(Strike("look_up", 1, fault))
        start_s = anyio.current_time()
        with pytest.raises(BaseError) as caught:
            await READS[reading](world.adapter)
        assert type(caught.value).__name__ in names
        assert anyio.current_time() > start_s
        assert world.plan.fired == {fault: 1}


@pytest.mark.anyio
@pytest.mark.parametrize("reading", READS)
async def test_every_reading_can_lag(reading):
    world = World()
    before = await READS[reading](world.adapter)
    await anyio.sleep(5)
    await world.order()
    await world.order(price="50000", key="b")
    world.venue.set_price(PERP, 55_000, world.clock.now_ms())
    world.plan.strike_next("look_up", Fault.LOOKUP_LAG, 4_000, reading)

    lagging = await READS[reading](world.adapter)

    assert world.plan.fired == {Fault.LOOKUP_LAG: 1}
    assert without_time(lagging) == without_time(before) != without_time(await READS[reading](world.adapter))


def without_time(answer):
    values = list(answer.values()) if isinstance(answer, dict) else answer if isinstance(answer, list) else [answer]
    return [attrs.evolve(value, at_ms=0) if hasattr(value, "at_ms") else value for value in values]


@pytest.mark.anyio
async def test_a_strike_on_one_kind_of_reading_lets_the_others_through():
    world = World(Strike("look_up", 1, Fault.RATE_LIMITED, reading=Reading.BALANCES))

    await world.adapter.fetch_positions()
    await world.adapter.fetch_quotes([PERP])
    assert isinstance(await world.reader.balances(), Unavailable)
    assert isinstance(await world.reader.balances(), Snapshot)


def test_what_is_no_reading_cannot_be_struck_as_one():
    with pytest.raises(ValueError, match="a create reads no positions"):
        FaultPlan.scripted(Strike("create", 1, Fault.HANG, reading="positions"))


@pytest.mark.anyio
async def test_a_symbol_that_is_not_listed_is_an_error_and_no_empty_answer():
    adapter, symbol = World().adapter, "DOGE/USDT"
    for read in (
        adapter.fetch_open_orders(symbol),
        adapter.fetch_executions(symbol, since_ms=0),
        adapter.fetch_order_book(symbol),
    ):
        with pytest.raises(BaseError) as caught:
            await read
        assert type(caught.value).__name__ == "BadSymbol"
    assert (await adapter.fetch_quotes([symbol, SPOT])).keys() == {SPOT}


@pytest.mark.anyio
async def test_open_orders_are_all_orders_whoever_placed_them_stops_included():
    world = World()
    await world.order()
    submit(world.venue, Side.SELL, "0.5", "70000", client_order_id="foreign", at_ms=world.clock.now_ms())
    await world.order(Side.SELL, key="stop", trigger_price=D(55_000), reduce_only=True)
    await world.order(symbol=SPOT, price="50000", key="elsewhere")

    shown = {report.client_order_id: report for report in await world.adapter.fetch_open_orders(PERP)}

    assert shown.keys() == {"foreign", "stop"}
    assert (shown["foreign"].trigger_price, shown["foreign"].reduce_only) == (None, False)
    assert (shown["stop"].trigger_price, shown["stop"].reduce_only) == (55_000, True)
    assert (shown["stop"].status, shown["stop"].quantity) == (OrderStatus.OPEN, 1)


@pytest.mark.anyio
async def test_executions_are_told_oldest_first_with_their_ids_and_fees_from_an_instant_on():
    world = World()
    await world.order(quantity="2", key="a")
    await anyio.sleep(10)
    middle_ms = world.clock.now_ms()
    await world.order(Side.SELL, "0.5", key="b")
    await world.order(symbol=SPOT, key="other")

    first, second = await world.adapter.fetch_executions(PERP, since_ms=0)

    assert (first.client_order_id, first.side, first.quantity, first.price) == ("a", Side.BUY, 2, 60_000)
    assert (second.client_order_id, second.side, second.quantity) == ("b", Side.SELL, D("0.5"))
    assert [(fee.currency, fee.cost) for fee in second.fees] == [("USDT", D("16.5"))]
    assert [e.trade_id for e in world.venue.ledger.fills()][:2] == [first.trade_id, second.trade_id]
    assert await world.adapter.fetch_executions(PERP, since_ms=middle_ms) == [second]


# --- balances -----------------------------------------------------------------------------------------------


def soon(**market):
    """A cheap coin on spot, as in the field: fee 5 bps, taken from what is bought."""
    return Market(
        instrument=Instrument(
            symbol="SOON/USDT", base="SOON", quote="USDT", tick_size="0.0001", step_size="0.01", min_notional="1"
        ),
        taker_fee=D("0.0005"),
        maker_fee=D("0.0005"),
        **market,
    )


@pytest.mark.row("S0-10")
def test_what_a_spot_buy_leaves_to_sell_is_less_than_what_filled():
    venue = SimVenue([soon()], prices={"SOON/USDT": "0.6944"}, balances={"USDT": 1_000})
    bought = submit(venue, quantity="36.06", symbol="SOON/USDT")

    held = venue.fetch_balances(T0)["SOON"]

    assert bought.filled_quantity == D("36.06")
    assert held == Balance(free=D("36.04197"), used=D(0), total=D("36.04197"))
    whole = refused(submit, venue, Side.SELL, "36.06", symbol="SOON/USDT")
    floored = submit(venue, Side.SELL, "36.04", symbol="SOON/USDT")
    assert whole is RejectReason.INSUFFICIENT_FUNDS
    assert floored.filled_quantity == D("36.04")


@pytest.mark.anyio
@pytest.mark.row("S0-08", "S1-13")
async def test_a_spot_sell_of_what_a_resting_sell_has_locked_is_refused_for_want_of_funds():
    """What one bot took for "no buyers" (30005 Oversold): a resting take-profit holds the whole balance."""
    world = World(balances={"USDT": 100_000, "BTC": 1})
    await world.order(Side.SELL, "1", "65000", symbol=SPOT, key="target")
    assert (await world.adapter.fetch_balances())["BTC"] == Balance(free=D(0), used=D(1), total=D(1))

    meaning = await world.judged(Operation.CREATE, lambda: world.order(Side.SELL, "1", symbol=SPOT, key="exit"))
    assert meaning is Meaning.REJECTED
    [refusal] = world.venue.ledger.rejected("exit")
    assert refusal.reason == "insufficient_funds"

    [resting] = await world.adapter.fetch_open_orders(SPOT)
    await world.adapter.cancel_order(OrderRef(symbol=SPOT, client_order_id=resting.client_order_id))
    assert (await world.order(Side.SELL, "1", symbol=SPOT, key="exit2")).filled_quantity == 1


@pytest.mark.row("S1-13")
def test_a_stop_order_on_spot_locks_what_it_would_sell():
    venue = SimVenue(balances={"BTC": 1})
    submit(venue, Side.SELL, "0.6", symbol=SPOT, trigger_price=D(55_000))

    assert venue.fetch_balances(T0)["BTC"].free == D("0.4")
    assert refused(submit, venue, Side.SELL, "0.5", symbol=SPOT) is RejectReason.INSUFFICIENT_FUNDS


def test_an_amend_cannot_ask_for_more_than_there_is():
    venue = SimVenue(balances={"BTC": 1})
    resting = submit(venue, Side.SELL, "0.6", "70000", symbol=SPOT)

    reason = refused(venue.amend, T0 + 1, venue_order_id=resting.venue_order_id, quantity=D("1.1"))
    venue.amend(T0 + 2, venue_order_id=resting.venue_order_id, quantity=D(1))

    assert reason is RejectReason.INSUFFICIENT_FUNDS
    assert venue.fetch_balances(T0 + 2)["BTC"].free == 0


def test_margin_is_used_by_positions_and_by_orders_that_would_enlarge_them():
    venue = SimVenue(balances={"USDT": 100_000})
    submit(venue, quantity="1")
    submit(venue, quantity="1", price="50000")
    submit(venue, Side.SELL, "1", "70000", reduce_only=True)

    balance = venue.fetch_balances(T0)["USDT"]

    assert balance.used == 6_000 + 5_000
    assert balance.total == 100_000 - 33
    assert balance.free == balance.total - balance.used


# --- leverage and margin mode -------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.row("S2-27")
async def test_leverage_is_set_shown_and_decides_the_margin():
    world = World(balances={"USDT": 100_000})
    await world.adapter.set_leverage(PERP, D(5))
    await world.order()

    assert (await world.adapter.fetch_positions())[0].leverage == 5
    assert (await world.adapter.fetch_balances())["USDT"].used == 12_000
    [entry] = world.venue.ledger.of(None, Happened.LEVERAGE_SET)
    assert (entry.symbol, entry.quantity) == (PERP, 5)


@pytest.mark.anyio
@pytest.mark.row("S3-25")
async def test_already_so_is_no_change_and_no_failure():
    world = World()
    await world.adapter.set_leverage(PERP, D(5))

    leverage = await world.judged(Operation.SET_LEVERAGE, world.adapter.set_leverage, PERP, D(5))
    mode = await world.judged(Operation.SET_MARGIN_MODE, world.adapter.set_margin_mode, PERP, "cross")

    assert (leverage, mode) == (Meaning.NO_CHANGE, Meaning.NO_CHANGE)
    assert len(world.venue.ledger.of(None, Happened.LEVERAGE_SET)) == 1


@pytest.mark.anyio
@pytest.mark.row("S2-27")
@pytest.mark.parametrize("leverage", ["0.5", "126"])
async def test_leverage_that_is_not_offered_is_refused(leverage):
    world = World()

    meaning = await world.judged(Operation.SET_LEVERAGE, world.adapter.set_leverage, PERP, D(leverage))

    assert meaning is Meaning.REJECTED
    assert world.venue.account.leverage(PERP) == 10


def test_leverage_cannot_be_lowered_below_what_the_account_can_margin():
    venue = SimVenue(balances={"USDT": 10_000})
    submit(venue)

    assert refused(venue.set_leverage, PERP, D(2), T0) is RejectReason.INSUFFICIENT_FUNDS
    assert venue.account.leverage(PERP) == 10
    venue.set_leverage(PERP, D(7), T0)
    assert venue.account.leverage(PERP) == 7


@pytest.mark.anyio
async def test_the_margin_mode_is_locked_while_a_position_or_an_order_is_open():
    world = World()
    await world.adapter.set_margin_mode(PERP, "isolated")
    assert world.venue.account.margin_mode(PERP) == "isolated"
    await world.order(price="50000")

    assert refused(world.venue.set_margin_mode, PERP, "cross", world.clock.now_ms()) is RejectReason.MARGIN_MODE_LOCKED
    assert await world.judged(Operation.SET_MARGIN_MODE, world.adapter.set_margin_mode, PERP, "cross") is (
        Meaning.REJECTED
    )
    assert refused(world.venue.set_margin_mode, PERP, "hedged", world.clock.now_ms()) is RejectReason.BAD_REQUEST


def test_spot_has_neither_leverage_nor_margin_mode():
    venue = SimVenue()

    assert refused(venue.set_leverage, SPOT, D(2), T0) is RejectReason.BAD_SYMBOL
    assert refused(venue.set_margin_mode, SPOT, "isolated", T0) is RejectReason.BAD_SYMBOL


@pytest.mark.anyio
@pytest.mark.row("S2-27", "S4-35")
@pytest.mark.parametrize("fault", [f for f in Fault if Operation.SET_LEVERAGE in APPLIES[f]])
async def test_a_setting_meets_the_faults_of_the_wire_and_only_the_venue_knows_what_came_of_it(fault):
    world = World(Strike("set_leverage", 1, fault, 1 if fault is Fault.RESET_CONNECTION else None))

    meaning = await world.judged(Operation.SET_LEVERAGE, world.adapter.set_leverage, PERP, D(5))
    await anyio.sleep(60)
    world.venue.advance(world.clock.now_ms())

    refused_at_the_door = {Fault.RATE_LIMITED, Fault.MAINTENANCE, Fault.TIMESTAMP_REJECT}
    lost = {Fault.DROP_REQUEST, Fault.SERVER_ERROR_NOT_ACCEPTED}
    assert (world.venue.account.leverage(PERP) == 10) is (fault in refused_at_the_door | lost)
    assert len(world.venue.ledger.of(None, Happened.LEVERAGE_SET)) <= 1
    assert world.plan.fired == {fault: 1}
    if fault in {Fault.DROP_REQUEST, Fault.DROP_REPLY, Fault.DELAY_REQUEST, Fault.HANG, Fault.TRUNCATED_BODY}:
        assert meaning is Meaning.UNKNOWN


@pytest.mark.anyio
async def test_after_a_lost_reply_the_same_setting_is_no_change():
    world = World(Strike("set_leverage", 1, Fault.DROP_REPLY))

    meanings = [await world.judged(Operation.SET_LEVERAGE, world.adapter.set_leverage, PERP, D(5)) for _ in range(2)]

    assert meanings == [Meaning.UNKNOWN, Meaning.NO_CHANGE]


# --- properties ---------------------------------------------------------------------------------------------

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("trade"), st.sampled_from(list(Side)), st.integers(1, 30), st.booleans()),
        st.tuples(st.just("rest"), st.sampled_from(list(Side)), st.integers(1, 30), st.integers(550, 650)),
        st.tuples(st.just("price"), st.integers(500, 700)),
        st.tuples(st.just("leverage"), st.integers(1, 130)),
        st.tuples(st.just("stop"), st.one_of(st.none(), st.integers(500, 700))),
    ),
    max_size=25,
)


@given(MOVES)
@settings(max_examples=300, deadline=None)
def test_readings_are_what_the_account_was_at_that_instant(moves):
    """At every instant of the past: total = free + used, positions as the ledger adds them up, flat ones unseen."""
    venue, expected = SimVenue([linear()], balances={"USDT": 300_000}), {}
    for count, (what, *rest) in enumerate(moves):
        now_ms = T0 + 100 * count
        try:
            if what == "trade":
                submit(venue, rest[0], D(rest[1]) / 10, at_ms=now_ms, reduce_only=rest[2])
            elif what == "rest":
                submit(venue, rest[0], D(rest[1]) / 10, 100 * rest[2], at_ms=now_ms)
            elif what == "price":
                venue.set_price(PERP, 100 * rest[0], now_ms)
            elif what == "leverage":
                venue.set_leverage(PERP, D(rest[0]), now_ms)
            else:
                venue.set_attached_stop(PERP, rest[0] and 100 * D(rest[0]), now_ms)
        except VenueReject:
            pass
        held = venue.account.positions.get(PERP)
        stop_price = held.stop_price if held and held.quantity else None
        expected[now_ms] = venue.ledger.position(PERP), stop_price, venue.account.free("USDT")
    end_ms = T0 + 100 * len(moves) + 1_000
    venue.advance(end_ms)
    for at_ms, (quantity, stop_price, free) in expected.items():
        venue.account_lag_ms = end_ms - at_ms
        shown = [(p.side.sign * p.quantity, p.stop_price) for p in venue.fetch_positions(end_ms)]
        assert shown == ([(quantity, stop_price)] if quantity else [])
        balance = venue.fetch_balances(end_ms)["USDT"]
        assert (balance.free, balance.used) == (free, EXACT.subtract(balance.total, free))
    final = venue.ledger.exposure_over_time(PERP)
    assert (final[-1][1] if final else 0) == venue.account.position(PERP)
