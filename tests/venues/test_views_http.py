"""Positions, balances, lists, prices and settings: the adapter, the real ccxt client, HTTP, and the simulated venues.

What is read is judged by the venue's own books; what is set, by its hidden ledger.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import attrs
import pytest

from execsafe.core.backoff import Backoff
from execsafe.core.pacing import PacingPolicy
from execsafe.model.order import Side
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.position import PositionSide, Snapshot, Unavailable
from execsafe.testing.faults import Fault, Reading
from execsafe.testing.http import VenueServer
from execsafe.testing.ledger import Happened
from execsafe.testing.venue import FillStep, SimVenue
from execsafe.venues.ccxt_adapter import CcxtAdapter
from execsafe.views import VenueReader

pytestmark = pytest.mark.anyio

SYMBOL = {"binance": "BTC/USDT", "binanceusdm": "BTC/USDT:USDT", "bybit": "BTC/USDT:USDT", "mexc": "BTC/USDT"}
FACES = list(SYMBOL)
CONTRACTS = ["binanceusdm", "bybit"]
TIMEOUT_MS = 300
ROUTES = {
    "binance": {
        "balances": "GET /api/v3/account", "open orders": "GET /api/v3/openOrders", "fills": "GET /api/v3/myTrades",
        "book": "GET /api/v3/depth", "quotes": "GET /api/v3/ticker/24hr",
    },
    "binanceusdm": {
        "positions": "GET /fapi/v3/positionRisk", "balances": "GET /fapi/v3/account",
        "open orders": "GET /fapi/v1/openOrders", "stop orders": "GET /fapi/v1/openAlgoOrders",
        "fills": "GET /fapi/v1/userTrades", "book": "GET /fapi/v1/depth", "quotes": "GET /fapi/v1/ticker/bookTicker",
    },
    "bybit": {
        "positions": "GET /v5/position/list", "balances": "GET /v5/account/wallet-balance",
        "open orders": "GET /v5/order/realtime", "fills": "GET /v5/execution/list",
        "book": "GET /v5/market/orderbook", "quotes": "GET /v5/market/tickers",
    },
    "mexc": {
        "balances": "GET /api/v3/account", "open orders": "GET /api/v3/openOrders", "fills": "GET /api/v3/myTrades",
        "book": "GET /api/v3/depth", "quotes": "GET /api/v3/ticker/24hr",
    },
}  # fmt: skip
EVERY_READ = [(name, what) for name, routes in ROUTES.items() for what in routes]
SETTINGS = {
    Operation.SET_LEVERAGE: {"binanceusdm": "POST /fapi/v1/leverage", "bybit": "POST /v5/position/set-leverage"},
    Operation.SET_MARGIN_MODE: {
        "binanceusdm": "POST /fapi/v1/marginType",
        "bybit": "POST /v5/account/set-margin-mode",
    },
    Operation.SET_STOP: {"bybit": "POST /v5/position/trading-stop"},
}
EVERY_SETTING = [(name, operation) for operation, routes in SETTINGS.items() for name in routes]


@pytest.fixture
def anyio_backend() -> str:
    """ccxt runs on asyncio only, and the wire in real time."""
    return "asyncio"


@attrs.define(eq=False)
class Rig:
    """One face, a client on it, and the adapter around the client."""

    name: str
    server: VenueServer
    adapter: CcxtAdapter

    @property
    def symbol(self) -> str:
        return SYMBOL[self.name]

    @property
    def venue(self) -> SimVenue:
        return self.server.venues[self.name]

    @property
    def now_ms(self) -> int:
        return self.server.clock.now_ms()

    def strike(self, operation: Operation, fault: Fault, value: int | None = None, **more: Any) -> None:
        self.server.plans[self.name].strike_next(operation, fault, value, **more)

    async def buy(self, quantity: float = 0.01, price: float = 61_000, **params: Any) -> dict[str, Any]:
        """Filled at once at 60,000, unless the price says otherwise."""
        return await self.adapter.exchange.create_order(self.symbol, "limit", "buy", quantity, price, params)

    async def read(self, what: str) -> Any:
        symbol, since_ms = self.symbol, self.now_ms - 3_600_000
        reads: dict[str, Callable[[], Any]] = {
            "positions": self.adapter.fetch_positions,
            "balances": self.adapter.fetch_balances,
            "open orders": lambda: self.adapter.fetch_open_orders(symbol),
            "stop orders": lambda: self.adapter.fetch_open_orders(symbol),
            "fills": lambda: self.adapter.fetch_executions(symbol, since_ms=since_ms),
            "book": lambda: self.adapter.fetch_order_book(symbol, depth=5),
            "quotes": lambda: self.adapter.fetch_quotes([symbol]),
        }
        return await reads[what]()

    async def set(self, operation: Operation) -> None:
        if operation is Operation.SET_LEVERAGE:
            await self.adapter.set_leverage(self.symbol, Decimal(5))
        elif operation is Operation.SET_MARGIN_MODE:
            await self.adapter.set_margin_mode(self.symbol, "isolated")
        else:
            await self.adapter.set_attached_stop(self.symbol, PositionSide.LONG, Decimal(55_000))

    async def judged(self, operation: Operation) -> Meaning:
        """What setting it again means."""
        try:
            await self.set(operation)
        except Exception as error:
            return self.adapter.judge(error, operation).meaning
        return Meaning.NO_CHANGE  # the answer says that it is as asked for

    def is_set(self, operation: Operation) -> bool:
        """Whether the venue has it."""
        self.server.advance()
        account = self.venue.account
        if operation is Operation.SET_LEVERAGE:
            return account.leverage(self.symbol) == 5
        if operation is Operation.SET_MARGIN_MODE:
            return account.margin_mode(self.symbol) == "isolated"
        return account.positions[self.symbol].stop_price == 55_000


@contextlib.asynccontextmanager
async def a_rig(
    name: str, venue: SimVenue | None = None, *, adapter_type: type[CcxtAdapter] = CcxtAdapter
) -> AsyncIterator[Rig]:
    venues = None if venue is None else {name: venue}
    async with VenueServer(venues, client_timeout_ms=TIMEOUT_MS) as server:
        adapter = adapter_type(server.exchange(name, timeout=10_000))
        await adapter.prepare(SYMBOL[name])
        if name == "binanceusdm":
            await adapter.exchange.load_leverage_brackets()
        yield Rig(name=name, server=server, adapter=adapter)


# --- What is there ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTRACTS)
async def test_a_position_is_read_as_the_venue_has_it(name: str) -> None:
    async with a_rig(name) as rig:
        assert list(await rig.adapter.fetch_positions()) == []
        await rig.buy()
        rig.venue.set_price(rig.symbol, 60_500, rig.now_ms)

        [held] = await rig.adapter.fetch_positions()

        assert (held.symbol, held.side, held.quantity) == (rig.symbol, PositionSide.LONG, Decimal("0.01"))
        assert (held.entry_price, held.mark_price, held.liquidation_price) == (60_000, 60_500, 54_300)

        await rig.adapter.exchange.create_order(rig.symbol, "market", "sell", 0.03)
        [held] = await rig.adapter.fetch_positions()
        assert (held.side, held.quantity) == (PositionSide.SHORT, Decimal("0.02"))

        await rig.adapter.exchange.create_order(rig.symbol, "market", "buy", 0.02)
        assert list(await rig.adapter.fetch_positions()) == []


async def test_rows_of_zero_are_no_positions() -> None:
    """USD-M lists symbols that have nothing but open orders."""
    async with a_rig("binanceusdm") as rig:
        await rig.buy(price=50_000)
        assert list(await rig.adapter.fetch_positions()) == []
        assert any("positionRisk" in path for _, _, path in rig.server.requests)


@pytest.mark.parametrize("name", FACES)
async def test_balances_say_what_is_free_and_what_is_locked(name: str) -> None:
    async with a_rig(name) as rig:
        await rig.buy(price=50_000)

        usdt = (await rig.adapter.fetch_balances())["USDT"]

        assert usdt.used == (50 if rig.name in CONTRACTS else 500)
        assert usdt.free + usdt.used == usdt.total == rig.venue.account.balances["USDT"]


@pytest.mark.row("S1-13")
@pytest.mark.parametrize("name", ["binance", "mexc"])
async def test_what_a_resting_sell_locks_is_not_free(name: str) -> None:
    async with a_rig(name) as rig:
        await rig.adapter.exchange.create_order(rig.symbol, "limit", "sell", 2, 70_000)
        base = (await rig.adapter.fetch_balances())["BTC"]
        assert (base.used, base.free) == (2, rig.venue.account.free("BTC"))


@pytest.mark.parametrize("name", FACES)
async def test_a_partial_fill_is_an_open_order_and_an_execution(name: str) -> None:
    async with a_rig(name) as rig:
        rig.venue.schedule_fills(rig.symbol, (FillStep(0, "0.4"),))
        placed = await rig.buy(clientOrderId="mine")

        [order] = await rig.adapter.fetch_open_orders(rig.symbol)
        [fill] = await rig.adapter.fetch_executions(rig.symbol, since_ms=rig.now_ms - 60_000)

        assert (order.client_order_id, order.venue_order_id, order.side) == ("mine", placed["id"], Side.BUY)
        assert (order.quantity, order.filled_quantity, order.limit_price) == (
            Decimal("0.01"), Decimal("0.004"), Decimal(61_000),
        )  # fmt: skip
        assert (fill.venue_order_id, fill.quantity, fill.price, fill.side) == (
            placed["id"], Decimal("0.004"), Decimal(60_000), Side.BUY,
        )  # fmt: skip
        [true] = rig.venue.order("1").fills
        assert (fill.trade_id, fill.at_ms, fill.fees[0].cost) == (true.trade_id, true.at_ms, true.fee)
        assert fill.client_order_id in {"mine", None}


@pytest.mark.parametrize(("name", "page"), [("binance", 1_000), ("binanceusdm", 1_000), ("bybit", 100), ("mexc", 100)])
async def test_more_fills_than_a_page_holds_are_all_read(name: str, page: int) -> None:
    async with a_rig(name) as rig:
        start_ms = rig.now_ms
        await rig.buy(quantity=20, price=50_000)
        for n in range(page + 5):
            rig.venue.fill("1", start_ms + n, Decimal("0.01"))

        fills = await rig.adapter.fetch_executions(rig.symbol, since_ms=start_ms - 1_000)

        assert [fill.trade_id for fill in fills] == [str(n + 1) for n in range(page + 5)]


@pytest.mark.parametrize("name", FACES)
async def test_book_and_quotes_show_what_is_offered(name: str) -> None:
    async with a_rig(name) as rig:
        rig.venue.set_book(rig.symbol, [(59_990, 1), (59_980, "2.5")], [(60_010, 3)], rig.now_ms)

        book = await rig.adapter.fetch_order_book(rig.symbol, depth=5)
        quote = (await rig.adapter.fetch_quotes([rig.symbol]))[rig.symbol]

        assert [(level.price, level.quantity) for level in book.bids] == [(59_990, 1), (59_980, Decimal("2.5"))]
        assert [(level.price, level.quantity) for level in book.asks] == [(60_010, 3)]
        assert (quote.bid, quote.ask, quote.last) == (59_990, 60_010, 60_000)


@pytest.mark.parametrize("name", FACES)
async def test_a_book_without_buyers_has_no_bid(name: str) -> None:
    async with a_rig(name) as rig:
        rig.venue.set_book(rig.symbol, [], [(60_010, 3)], rig.now_ms)

        book = await rig.adapter.fetch_order_book(rig.symbol)
        quote = (await rig.adapter.fetch_quotes([rig.symbol]))[rig.symbol]

        assert (book.bids, quote.bid, quote.ask) == ((), None, 60_010)


# --- Stops -----------------------------------------------------------------------------------------------------------


@pytest.mark.row("S3-10", "S3-31")
@pytest.mark.parametrize("name", ["binance", "binanceusdm", "bybit"])
async def test_a_stop_order_is_among_the_open_orders_with_its_trigger(name: str) -> None:
    async with a_rig(name) as rig:
        await rig.buy()
        more = {"triggerDirection": "descending"} if name == "bybit" else {}
        contract = {"reduceOnly": True} if name in CONTRACTS else {}
        await rig.adapter.exchange.create_order(
            rig.symbol,
            "market",
            "sell",
            0.009,
            None,
            {"clientOrderId": "stop", "triggerPrice": 55_000, **more, **contract},
        )

        [stop] = await rig.adapter.fetch_open_orders(rig.symbol)

        assert (stop.client_order_id, stop.side, stop.quantity) == ("stop", Side.SELL, Decimal("0.009"))
        assert (stop.trigger_price, stop.reduce_only) == (55_000, True if name in CONTRACTS else None)

        rig.venue.set_price(rig.symbol, 54_000, rig.now_ms)
        assert list(await rig.adapter.fetch_open_orders(rig.symbol)) == []


@pytest.mark.row("S3-10", "S3-26")
async def test_an_attached_stop_is_read_back_from_the_position_and_ends_with_it() -> None:
    async with a_rig("bybit") as rig:
        await rig.buy()
        await rig.adapter.set_attached_stop(rig.symbol, PositionSide.LONG, Decimal(55_000))
        assert [held.stop_price for held in await rig.adapter.fetch_positions()] == [55_000]

        await rig.adapter.set_attached_stop(rig.symbol, PositionSide.LONG, None)
        assert [held.stop_price for held in await rig.adapter.fetch_positions()] == [None]

        await rig.adapter.set_attached_stop(rig.symbol, PositionSide.LONG, Decimal(54_000))
        rig.venue.set_price(rig.symbol, 53_000, rig.now_ms)
        assert list(await rig.adapter.fetch_positions()) == []


@pytest.mark.row("S3-25", "S3-26")
async def test_a_stop_that_is_there_already_is_no_error_and_is_the_same_stop() -> None:
    async with a_rig("bybit") as rig:
        await rig.buy()
        await rig.set(Operation.SET_STOP)

        assert await rig.judged(Operation.SET_STOP) is Meaning.NO_CHANGE
        assert [held.stop_price for held in await rig.adapter.fetch_positions()] == [55_000]


@pytest.mark.parametrize("price", [61_000, 60_000])
async def test_a_stop_beyond_the_price_is_refused(price: int) -> None:
    async with a_rig("bybit") as rig:
        await rig.buy()
        with pytest.raises(Exception, match="10001") as caught:
            await rig.adapter.set_attached_stop(rig.symbol, PositionSide.LONG, Decimal(price))
        assert rig.adapter.judge(caught.value, Operation.SET_STOP).meaning is Meaning.REJECTED


async def test_a_stop_without_a_position_is_refused() -> None:
    async with a_rig("bybit") as rig:
        with pytest.raises(Exception, match="zero position") as caught:
            await rig.set(Operation.SET_STOP)
        assert rig.adapter.judge(caught.value, Operation.SET_STOP).meaning is Meaning.REJECTED


# --- Leverage and margin mode ----------------------------------------------------------------------------------------


@pytest.mark.row("S2-27", "S3-25", "D-16")
@pytest.mark.parametrize(("name", "operation"), EVERY_SETTING)
async def test_a_setting_is_made_and_made_again_without_harm(name: str, operation: Operation) -> None:
    async with a_rig(name) as rig:
        if operation is Operation.SET_STOP:
            await rig.buy()
        assert not rig.is_set(operation)

        await rig.set(operation)

        assert rig.is_set(operation)
        assert await rig.judged(operation) is Meaning.NO_CHANGE
        assert rig.is_set(operation)


@pytest.mark.row("S2-27")
@pytest.mark.parametrize(("name", "operation"), EVERY_SETTING)
async def test_a_setting_whose_reply_is_lost_is_unknown_and_asking_again_tells(name: str, operation: Operation) -> None:
    async with a_rig(name) as rig:
        if operation is Operation.SET_STOP:
            await rig.buy()
        rig.strike(operation, Fault.DROP_REPLY)
        rig.adapter.exchange.timeout = TIMEOUT_MS

        with pytest.raises(Exception, match=r".") as caught:
            await rig.set(operation)

        assert rig.adapter.judge(caught.value, operation).meaning is Meaning.UNKNOWN
        assert rig.is_set(operation)
        rig.adapter.exchange.timeout = 10_000
        assert await rig.judged(operation) is Meaning.NO_CHANGE


@pytest.mark.row("S2-27")
@pytest.mark.parametrize(("name", "operation"), EVERY_SETTING)
async def test_a_setting_that_never_arrived_is_unknown_and_is_made_by_the_next_try(
    name: str, operation: Operation
) -> None:
    async with a_rig(name) as rig:
        if operation is Operation.SET_STOP:
            await rig.buy()
        rig.strike(operation, Fault.DROP_REQUEST)
        rig.adapter.exchange.timeout = TIMEOUT_MS
        with pytest.raises(Exception, match=r".") as caught:
            await rig.set(operation)
        assert rig.adapter.judge(caught.value, operation).meaning is Meaning.UNKNOWN
        assert not rig.is_set(operation)

        rig.adapter.exchange.timeout = 10_000
        await rig.set(operation)
        assert rig.is_set(operation)


@pytest.mark.parametrize("body", ["", "<html></html>", '{"code":'])
@pytest.mark.parametrize(("name", "operation"), EVERY_SETTING)
async def test_a_setting_answered_with_garbage_is_unknown(name: str, operation: Operation, body: str) -> None:
    async with a_rig(name) as rig:
        if operation is Operation.SET_STOP:
            await rig.buy()
        rig.server.spoil(SETTINGS[operation][name], body)
        with pytest.raises(Exception, match=r".") as caught:
            await rig.set(operation)
        assert rig.adapter.judge(caught.value, operation).meaning is Meaning.UNKNOWN
        assert rig.is_set(operation)


@pytest.mark.parametrize("name", CONTRACTS)
async def test_a_leverage_that_the_venue_does_not_offer_is_refused(name: str) -> None:
    async with a_rig(name) as rig:
        rig.venue.markets[rig.symbol] = attrs.evolve(rig.venue.markets[rig.symbol], max_leverage=Decimal(20))
        with pytest.raises(Exception, match=r".") as caught:
            await rig.adapter.set_leverage(rig.symbol, Decimal(50))
        assert rig.adapter.judge(caught.value, Operation.SET_LEVERAGE).meaning in {Meaning.REJECTED, Meaning.UNKNOWN}
        assert rig.venue.account.leverage(rig.symbol) == 10


async def test_a_margin_mode_is_locked_while_a_position_is_open() -> None:
    async with a_rig("binanceusdm") as rig:
        await rig.buy()
        with pytest.raises(Exception, match="-4048") as caught:
            await rig.set(Operation.SET_MARGIN_MODE)
        assert rig.adapter.judge(caught.value, Operation.SET_MARGIN_MODE).meaning is not Meaning.NO_CHANGE
        assert not rig.is_set(Operation.SET_MARGIN_MODE)


# --- When reading fails ----------------------------------------------------------------------------------------------


@pytest.mark.row("S3-27", "S3-28", "D-15")
@pytest.mark.guarantee(18)
@pytest.mark.parametrize("body", ["", "<html></html>", "{}", '{"code":', "null"])
@pytest.mark.parametrize(("name", "what"), EVERY_READ)
async def test_an_answer_that_is_none_makes_the_view_unreadable(name: str, what: str, body: str) -> None:
    async with a_rig(name) as rig:
        await rig.buy(price=50_000)
        rig.server.spoil(ROUTES[name][what], body)
        with pytest.raises(Exception, match=r"."):
            await rig.read(what)
        await rig.read(what)


class Unwaiting(CcxtAdapter):
    """Asks again at once after a refusal for coming too often."""

    pacing = PacingPolicy(pauses=Backoff(base_s=0.0001, cap_s=0.0001, jitter=0.0, max_attempts=None), longest_s=0.0001)


@pytest.mark.row("S4-18")
@pytest.mark.parametrize("fault", [Fault.LOOKUP_ERROR, Fault.RATE_LIMITED, Fault.MAINTENANCE])
@pytest.mark.parametrize("name", FACES)
async def test_what_the_venue_refuses_to_show_is_unavailable_and_never_empty(name: str, fault: Fault) -> None:
    async with a_rig(name, adapter_type=Unwaiting) as rig:
        reader = VenueReader(rig.adapter, clock=rig.server.clock)
        reads: list[Callable[[], Any]] = [reader.balances, lambda: reader.open_orders(rig.symbol)]
        reads += [lambda: reader.order_book(rig.symbol), lambda: reader.quotes([rig.symbol])]
        reads += [reader.positions] if name in CONTRACTS else []
        for read in reads:
            rig.strike(Operation.LOOK_UP, fault, 502 if fault is Fault.LOOKUP_ERROR else None)
            assert isinstance(await read(), Unavailable)
            rig.venue.set_maintenance(0)
            assert isinstance(await read(), Snapshot)


@pytest.mark.row("S3-27")
@pytest.mark.parametrize("name", CONTRACTS)
async def test_a_venue_that_lies_about_its_positions_cannot_be_told_from_a_flat_one(name: str) -> None:
    """A well-formed empty list is an answer. Whoever acts on it must ask twice, or know better from the fills."""
    async with a_rig(name) as rig:
        await rig.buy()
        rig.strike(Operation.LOOK_UP, Fault.POSITIONS_EMPTY, reading=Reading.POSITIONS)

        assert list(await rig.adapter.fetch_positions()) == []
        assert len(await rig.adapter.fetch_positions()) == 1
        [fill] = await rig.adapter.fetch_executions(rig.symbol, since_ms=rig.now_ms - 60_000)
        assert fill.quantity == Decimal("0.01")


async def test_what_was_set_is_in_the_ledger() -> None:
    async with a_rig("bybit") as rig:
        await rig.buy()
        await rig.set(Operation.SET_LEVERAGE)
        await rig.set(Operation.SET_STOP)
        happened = [entry.what for entry in rig.venue.ledger.entries]
        assert happened.count(Happened.LEVERAGE_SET) == 1
        assert happened.count(Happened.STOP_ATTACHED) == 1
