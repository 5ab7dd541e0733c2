"""Positions, balances, lists, prices and settings through the real ccxt clients, with answers as venues document them.

Nothing is sent. The rule under test: what is not stated is never empty, and nothing a venue listed is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.errors import InvalidInput, UnsupportedByVenue
from execsafe.model.order import Side
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.position import PositionSide, StopKind, Unavailable
from execsafe.venues import _account
from execsafe.venues._account_rows import ACCOUNTS
from execsafe.venues._account_rows import Trades as Pages
from execsafe.venues._asking import Answer, Ask
from execsafe.venues._shapes import AnswerUnusable
from execsafe.venues.ccxt_adapter import CcxtAdapter
from execsafe.views import VenueReader
from venues.offline import SPOT, SWAP, VENUES, Sent, Wire, make

pytestmark = pytest.mark.anyio

NOW_MS = 1_795_000_000_000
DAY_MS = 86_400_000
REFUSES_POSITIONS = {"kraken", "coinbase"}
SPOILED = {
    "html": "<html><body>502</body></html>",
    "nothing": "",
    "null": None,
    "an empty object": {},
    "an envelope without its list": {
        "success": True,
        "code": "0",
        "retCode": 0,
        "status": "ok",
        "msg": "",
        "error": [],
    },
    "an envelope with an empty object": {"code": "200000", "data": {}},
    "another list": {"retCode": 0, "code": "00000", "result": {"list": {}}, "data": {"items": None}},
}


class Noon:
    """A clock that stands still."""

    def now_ms(self) -> int:
        return NOW_MS


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """ccxt's asynchronous clients run on asyncio only."""
    return "asyncio"


def adapter(name: str, answer: Callable[[Sent], Any]) -> tuple[CcxtAdapter, Wire]:
    exchange = make(name)
    exchange.options.update(
        enableUnifiedAccount=True, enableUnifiedMargin=False, uta=False, unifiedAccount=False, leverageBrackets={}
    )
    if name == "htx":
        exchange.accounts = [{"id": "1", "type": "spot"}]
    wire = Wire(exchange, answer)
    return CcxtAdapter(exchange, clock=Noon()), wire


def answering(name: str, body: Any) -> CcxtAdapter:
    return adapter(name, lambda _: body)[0]


def symbols_of(made: CcxtAdapter) -> list[str]:
    return [symbol for symbol in (SPOT, SWAP) if symbol in made.exchange.markets]


# --- No answer is never an empty one --------------------------------------------------------------------------------


def _reads(made: CcxtAdapter) -> dict[str, Callable[[], Any]]:
    reads: dict[str, Callable[[], Any]] = {"positions": made.fetch_positions, "balances": made.fetch_balances}
    for symbol in symbols_of(made):
        reads[f"open orders of {symbol}"] = lambda symbol=symbol: made.fetch_open_orders(symbol)
        reads[f"fills of {symbol}"] = lambda symbol=symbol: made.fetch_executions(symbol, since_ms=NOW_MS - 1_000)
        reads[f"book of {symbol}"] = lambda symbol=symbol: made.fetch_order_book(symbol, depth=5)
        reads[f"quotes of {symbol}"] = lambda symbol=symbol: made.fetch_quotes([symbol])
    return reads


@pytest.mark.row("S3-27", "S3-28", "D-15")
@pytest.mark.guarantee(18)
@pytest.mark.parametrize("spoiled", SPOILED.values(), ids=SPOILED.keys())
@pytest.mark.parametrize("name", VENUES)
async def test_an_answer_that_is_none_is_never_read_as_an_empty_one(name: str, spoiled: Any) -> None:
    made = answering(name, spoiled)
    for what, read in _reads(made).items():
        try:
            value = await read()
        except Exception:
            continue
        pytest.fail(f"{what}: {value!r}")


async def test_the_reader_calls_such_an_answer_unavailable() -> None:
    made = answering("binanceusdm", "<html></html>")

    read = await VenueReader(made, clock=Noon()).positions()

    assert isinstance(read, Unavailable)
    assert read.error.kind == "AnswerUnusable"


# --- Positions ------------------------------------------------------------------------------------------------------


def _okx(**more: Any) -> dict[str, Any]:
    row = {"instId": "BTC-USDT-SWAP", "instType": "SWAP", "pos": "-3", "posSide": "net", "avgPx": "50000",
           "markPx": "51000", "lever": "5", "liqPx": "60000", "mgnMode": "cross", "uTime": "1"}  # fmt: skip
    return {"code": "0", "data": [{**row, **more}]}


SHORT_OF_3: dict[str, Any] = {
    "binanceusdm": [
        {"symbol": "BTCUSDT", "positionSide": "BOTH", "positionAmt": "-3", "entryPrice": "50000", "markPrice": "51000",
         "unRealizedProfit": "0", "liquidationPrice": "60000", "isolatedMargin": "0", "notional": "-153000",
         "initialMargin": "1", "maintMargin": "1", "updateTime": 1},
        {"symbol": "BTCUSDT", "positionSide": "BOTH", "positionAmt": "0", "entryPrice": "0", "markPrice": "51000",
         "notional": "0"},
    ],
    "bybit": {"retCode": 0, "result": {"category": "linear", "nextPageCursor": "", "list": [
        {"symbol": "BTCUSDT", "side": "Sell", "size": "3", "avgPrice": "50000", "markPrice": "51000", "leverage": "5",
         "liqPrice": "60000", "positionIdx": 0, "positionValue": "150000", "stopLoss": "55000", "takeProfit": "0"}]}},
    "okx": _okx(),
    "mexc": {"success": True, "code": 0, "data": [
        {"symbol": "BTC_USDT", "positionType": 2, "openType": 1, "holdVol": 3, "openAvgPrice": 50000,
         "liquidatePrice": 60000, "leverage": 5, "state": 1, "im": 1, "updateTime": 1}]},
    "kucoin": {"code": "200000", "data": [
        {"symbol": "XBTUSDTM", "currentQty": -3, "avgEntryPrice": 50000, "markPrice": 51000, "realLeverage": 5,
         "liquidationPrice": 60000, "crossMode": False, "maintMargin": 1, "posCost": 1, "posInit": 1}]},
    "gate": [{"contract": "BTC_USDT", "size": "-3", "entry_price": "50000", "mark_price": "51000", "leverage": "5",
              "liq_price": "60000", "value": "1", "margin": "1", "initial_margin": "1"}],
    "bitget": {"code": "00000", "data": [
        {"symbol": "BTCUSDT", "holdSide": "short", "total": "3", "openPriceAvg": "50000", "markPrice": "51000",
         "leverage": "5", "liquidationPrice": "60000", "marginMode": "crossed", "posMode": "one_way_mode",
         "marginSize": "1", "keepMarginRate": "0.1", "marginCoin": "USDT", "cTime": "1", "unrealizedPL": "0"}]},
    "htx": {"status": "ok", "code": 200, "ts": 1, "data": [
        {"contract_code": "BTC-USDT", "volume": "3", "cost_open": "50000", "direction": "sell", "lever_rate": "5",
         "last_price": "51000", "liquidation_price": "60000", "margin_mode": "cross", "position_side": "both"}]},
    "hyperliquid": {"assetPositions": [{"type": "oneWay", "position": {
        "coin": "BTC", "szi": "-3", "entryPx": "50000", "leverage": {"type": "cross", "value": 5},
        "liquidationPx": "60000", "marginUsed": "1", "positionValue": "153000", "unrealizedPnl": "0"}}]},
    "deribit": {"result": [
        {"instrument_name": "BTC_USDT-PERPETUAL", "direction": "sell", "size": -3.0, "average_price": 50000.0,
         "mark_price": 51000.0, "leverage": 5, "estimated_liquidation_price": 60000.0, "initial_margin": 1,
         "maintenance_margin": 1, "floating_profit_loss": 0, "realized_profit_loss": 0}]},
}  # fmt: skip


@pytest.mark.row("S3-31")
@pytest.mark.parametrize("name", SHORT_OF_3)
async def test_a_short_position_is_read_with_its_contracts_as_they_are(name: str) -> None:
    made, wire = adapter(name, lambda _: SHORT_OF_3[name])
    made.exchange.markets[SWAP]["contractSize"] = 1.0

    [position] = await made.fetch_positions()

    assert position.side is PositionSide.SHORT
    assert position.quantity == 3
    assert position.entry_price in {Decimal(50_000), None}
    assert all(request.method in {"GET", "POST"} for request in wire.sent)
    assert len(wire.sent) == 1


async def test_a_bybit_position_shows_the_stop_that_is_attached_to_it() -> None:
    [position] = await answering("bybit", SHORT_OF_3["bybit"]).fetch_positions()

    assert (position.symbol, position.stop_price, position.take_profit_price) == (SWAP, Decimal(55_000), None)
    assert (position.leverage, position.mark_price, position.liquidation_price) == (5, 51_000, 60_000)


@pytest.mark.parametrize("name", sorted(set(SHORT_OF_3) - {"mexc", "htx"}))
async def test_flat_positions_are_left_out(name: str) -> None:
    flat = {"binanceusdm": [], "bybit": {"retCode": 0, "result": {"list": []}}, "okx": {"code": "0", "data": []},
            "kucoin": {"code": "200000", "data": []}, "gate": [], "bitget": {"code": "00000", "data": None},
            "hyperliquid": {"assetPositions": []}, "deribit": {"result": []}}[name]  # fmt: skip
    assert list(await answering(name, flat).fetch_positions()) == []


@pytest.mark.row("D-15")
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("binanceusdm", [{"symbol": "BTCUSDT", "positionAmt": "5", "entryPrice": "0", "notional": "5"}]),
        ("binanceusdm", [{"symbol": "BTCUSDT", "positionAmt": "5", "entryPrice": "9"}]),
        ("binanceusdm", [{"symbol": "BTCUSDT", "entryPrice": "9", "notional": "5"}]),
        ("bybit", {"retCode": 0, "result": {"list": [{"symbol": "BTCUSDT", "size": "3", "positionIdx": 0}]}}),
        ("bybit", {"retCode": 0, "result": {"list": [{"symbol": "BTCUSDT", "side": "Buy", "positionIdx": 0}]}}),
        ("okx", _okx(pos=None)),
        ("okx", _okx(pos="")),
        ("mexc", {"success": True, "data": [{"symbol": "BTC_USDT", "holdVol": 3, "openAvgPrice": 1}]}),
    ],
)
async def test_a_row_that_lacks_size_side_or_price_is_no_flat_position(name: str, row: Any) -> None:
    """ccxt drops binance's rows without an entry price, and takes a missing type at mexc for a short."""
    with pytest.raises(AnswerUnusable):
        await answering(name, row).fetch_positions()


async def test_two_rows_for_one_side_of_a_symbol_are_not_added_up() -> None:
    body = {"code": "0", "data": _okx()["data"] * 2}
    with pytest.raises(AnswerUnusable, match="same side"):
        await answering("okx", body).fetch_positions()


async def test_both_sides_of_a_hedged_account_are_two_positions() -> None:
    body = {"code": "0", "data": [*_okx(pos="3", posSide="short")["data"], *_okx(pos="2", posSide="long")["data"]]}

    held = await answering("okx", body).fetch_positions()

    assert {(position.side.value, position.quantity) for position in held} == {("short", 3), ("long", 2)}


async def test_bybit_is_asked_for_every_currency_that_its_contracts_settle_in_and_page_by_page() -> None:
    full = [{**SHORT_OF_3["bybit"]["result"]["list"][0], "symbol": f"{n}USDT"} for n in range(200)]

    def answer(sent: Sent) -> Any:
        rows: list[Any] = []
        cursor = ""
        if sent.fields["settleCoin"] == "USDT":
            rows, cursor = (
                (full, "next") if "cursor" not in sent.fields else (SHORT_OF_3["bybit"]["result"]["list"], "")
            )
        return {"retCode": 0, "result": {"list": rows, "nextPageCursor": cursor}}

    made, wire = adapter("bybit", answer)
    usdc = {**made.exchange.markets[SWAP], "symbol": "BTC/USDC:USDC", "id": "BTCPERP", "settle": "USDC"}
    made.exchange.markets["BTC/USDC:USDC"] = usdc

    held = await made.fetch_positions()

    assert len(held) == 201
    assert [(sent.fields["settleCoin"], sent.fields.get("cursor")) for sent in wire.sent] == [
        ("USDC", None), ("USDT", None), ("USDT", "next"),
    ]  # fmt: skip


async def test_a_full_page_without_a_way_on_is_no_complete_list() -> None:
    rows = [{**_okx()["data"][0], "instId": f"X{n}-USDT-SWAP"} for n in range(100)]
    with pytest.raises(AnswerUnusable, match="full page"):
        await answering("okx", {"code": "0", "data": rows}).fetch_positions()


@pytest.mark.row("S3-31")
@pytest.mark.parametrize("name", sorted(REFUSES_POSITIONS))
async def test_a_venue_without_positions_says_so(name: str) -> None:
    with pytest.raises(UnsupportedByVenue, match=f"{name}: no positions: "):
        await answering(name, {}).fetch_positions()


@pytest.mark.row("D-15")
@pytest.mark.parametrize("name", ["gate", "bitget"])
async def test_an_account_whose_mode_cannot_be_read_is_not_taken_for_a_classic_one(name: str) -> None:
    """ccxt swallows that failure and reads the classic account: empty, where everything is in the unified one."""
    made = CcxtAdapter(make(name), clock=Noon())
    empty = {"gate": [], "bitget": {"code": "00000", "data": []}}[name]
    mode = ("/api/v4/account/detail", "/api/v3/account/settings")
    Wire(made.exchange, lambda sent: TimeoutError() if sent.path in mode else empty)
    with pytest.raises(TimeoutError):
        await made.fetch_positions()


# --- Balances -------------------------------------------------------------------------------------------------------


async def test_a_balance_is_read_to_the_last_digit_that_the_venue_wrote() -> None:
    """A float holds 15 digits: rounded up, it would be more than there is to sell."""
    written = "123456789012.12345678"
    assert Decimal(repr(float(written))) > Decimal(written)
    nothing = {"asset": "ETH", "free": "0.0", "locked": "0"}
    body = {"updateTime": 1, "balances": [{"asset": "BTC", "free": written, "locked": "0.00000001"}, nothing]}

    found = await answering("binance", body).fetch_balances()

    assert set(found) == {"BTC"}
    assert found["BTC"].free == Decimal(written)
    assert found["BTC"].total == Decimal("123456789012.12345679")
    assert found["BTC"].used == Decimal("0.00000001")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("binanceusdm", {"assets": [{"asset": "USDT", "availableBalance": "90", "initialMargin": "10",
                                     "marginBalance": "100", "updateTime": 1}]}),
        ("bybit", {"retCode": 0, "result": {"list": [{"accountType": "UNIFIED", "coin": [
            {"coin": "USDT", "walletBalance": "100", "locked": "4", "totalPositionIM": "5", "totalOrderIM": "1"}]}]}}),
        ("okx", {"code": "0", "data": [{"details": [{"ccy": "USDT", "eq": "100", "availEq": "90"}]}]}),
        ("mexc", {"balances": [{"asset": "USDT", "free": "90", "locked": "10"}]}),
        ("kraken", {"error": [], "result": {"USDT": {"balance": "100", "hold_trade": "10"}}}),
        ("kucoin", {"code": "200000", "data": [
            {"currency": "USDT", "type": "trade", "balance": "100", "available": "90", "holds": "10"}]}),
        ("gate", [{"currency": "USDT", "available": "90", "locked": "10"}]),
        ("bitget", {"code": "00000", "data": [{"coin": "USDT", "available": "90", "frozen": "10", "locked": "0"}]}),
        ("htx", {"status": "ok", "data": {"list": [{"currency": "USDT", "type": "trade", "balance": "90"},
                                                  {"currency": "USDT", "type": "frozen", "balance": "10"}]}}),
        ("deribit", {"result": {"summaries": [
            {"currency": "USDT", "available_funds": 90, "equity": 100, "initial_margin": 10, "balance": 100}]}}),
    ],
)  # fmt: skip
async def test_free_used_and_total_are_read_as_each_venue_states_them(name: str, body: Any) -> None:
    found = await answering(name, body).fetch_balances()

    assert (found["USDT"].free, found["USDT"].used, found["USDT"].total) == (90, 10, 100)


async def test_a_currency_with_one_figure_only_is_not_guessed() -> None:
    with pytest.raises(AnswerUnusable, match="USDT"):
        await answering("mexc", {"balances": [{"asset": "USDT", "free": "90"}]}).fetch_balances()


# --- Open orders ----------------------------------------------------------------------------------------------------


def _algo_and_plain(sent: Sent) -> Any:
    if sent.path.endswith("/openAlgoOrders"):
        return [{"algoId": 7, "clientAlgoId": "mine", "algoType": "CONDITIONAL", "orderType": "STOP_MARKET",
                 "symbol": "BTCUSDT", "side": "SELL", "quantity": "2", "algoStatus": "NEW", "triggerPrice": "40000",
                 "reduceOnly": True, "actualOrderId": "", "createTime": 1, "updateTime": 1}]  # fmt: skip
    return [{"symbol": "BTCUSDT", "orderId": 7, "clientOrderId": "web", "price": "50000", "origQty": "2",
             "executedQty": "0.5", "cumQuote": "1", "avgPrice": "1", "status": "PARTIALLY_FILLED", "type": "LIMIT",
             "side": "BUY", "reduceOnly": False, "stopPrice": "0", "time": 1, "updateTime": 1}]  # fmt: skip


@pytest.mark.row("S3-31", "S3-10")
async def test_plain_and_conditional_orders_are_listed_together_although_their_ids_are_equal() -> None:
    made, wire = adapter("binanceusdm", _algo_and_plain)

    plain, stop = await made.fetch_open_orders(SWAP)

    assert [sent.path for sent in wire.sent] == ["/fapi/v1/openOrders", "/fapi/v1/openAlgoOrders"]
    assert (plain.client_order_id, plain.filled_quantity, plain.trigger_price) == ("web", Decimal("0.5"), None)
    assert (stop.client_order_id, stop.trigger_price, stop.reduce_only) == ("mine", Decimal(40_000), True)
    assert stop.filled_quantity == 0
    assert (plain.reduce_only, stop.side, plain.venue_order_id, stop.venue_order_id) == (False, Side.SELL, "7", "7")


async def test_every_namespace_must_answer() -> None:
    made = adapter("binanceusdm", lambda sent: "" if "Algo" in sent.path else _algo_and_plain(sent))[0]
    with pytest.raises(Exception, match=r".") as caught:
        await made.fetch_open_orders(SWAP)
    assert made.judge(caught.value, Operation.LOOK_UP).meaning is Meaning.UNKNOWN


async def test_an_order_that_several_filters_show_is_listed_once() -> None:
    row = {"orderId": "7", "orderLinkId": "mine", "symbol": "BTCUSDT", "price": "0", "qty": "2", "side": "Sell",
           "orderStatus": "Untriggered", "orderType": "Market", "cumExecQty": "0", "leavesQty": "2", "avgPrice": "",
           "triggerPrice": "40000", "reduceOnly": True, "createdTime": "1", "updatedTime": "1"}  # fmt: skip
    made, wire = adapter("bybit", lambda _: {"retCode": 0, "result": {"list": [row], "nextPageCursor": "x"}})

    [order] = await made.fetch_open_orders(SPOT)

    assert [sent.fields.get("orderFilter") for sent in wire.sent] == [None, "StopOrder", "tpslOrder"]
    assert (order.client_order_id, order.trigger_price) == ("mine", Decimal(40_000))


@pytest.mark.parametrize("missing", ["algoId", "side"])
async def test_an_open_order_without_id_or_side_is_unusable(missing: str) -> None:
    def answer(sent: Sent) -> Any:
        rows = _algo_and_plain(sent)
        return (
            [{name: value for name, value in row.items() if name != missing} for row in rows]
            if "Algo" in sent.path
            else []
        )

    with pytest.raises(AnswerUnusable):
        await adapter("binanceusdm", answer)[0].fetch_open_orders(SWAP)


# --- Fills ----------------------------------------------------------------------------------------------------------


class Trades:
    """A venue's trade list: *count* fills a minute apart, at most *page* per answer, for at most a day."""

    def __init__(self, count: int, page: int = 1_000, *, apart_ms: int = 60_000, newest_first: bool = False) -> None:
        self.times = [NOW_MS - (count - n) * apart_ms for n in range(count)]
        self.page, self.newest_first = page, newest_first
        self.asked: list[tuple[int, int]] = []

    def __call__(self, sent: Sent) -> Any:
        start, end = int(sent.fields["startTime"]), int(sent.fields["endTime"])
        assert end - start < DAY_MS
        self.asked.append((start, end))
        rows = [_fill(n, at_ms) for n, at_ms in enumerate(self.times) if start <= at_ms <= end]
        return rows[::-1][: self.page] if self.newest_first else rows[: self.page]


def _fill(n: int, at_ms: int, **more: Any) -> dict[str, Any]:
    return {"symbol": "BTCUSDT", "id": n + 1, "orderId": 9, "orderListId": -1, "price": "50000.01",
            "qty": "0.12345678", "quoteQty": "1", "commission": "0.1", "commissionAsset": "BNB", "time": at_ms,
            "isBuyer": n % 2 == 0, "isMaker": False, **more}  # fmt: skip


@pytest.mark.parametrize("newest_first", [False, True])
async def test_fills_are_complete_whatever_the_page_and_its_order(newest_first: bool) -> None:
    venue = Trades(3_500, newest_first=newest_first)
    made = adapter("binance", venue)[0]

    fills = await made.fetch_executions(SPOT, since_ms=NOW_MS - 4 * DAY_MS)

    assert [fill.trade_id for fill in fills] == [str(n + 1) for n in range(3_500)]
    assert {fill.side for fill in fills} == {Side.BUY, Side.SELL}
    assert (fills[0].quantity, fills[0].price) == (Decimal("0.12345678"), Decimal("50000.01"))
    assert (fills[0].fees[0].cost, fills[0].fees[0].currency) == (Decimal("0.1"), "BNB")


@settings(max_examples=1_000, deadline=None)
@given(
    times=st.lists(st.integers(NOW_MS - 3 * DAY_MS, NOW_MS), max_size=40),
    since_ms=st.integers(NOW_MS - 3 * DAY_MS, NOW_MS),
    page=st.integers(1, 7),
    order=st.sampled_from([1, -1]),
)
def test_whatever_the_times_fills_are_complete_or_an_error(
    times: list[int], since_ms: int, page: int, order: int
) -> None:
    """Any page, any order, any bunching of fills: all of them, each once, or AnswerUnusable."""
    rows = [_fill(n, at_ms) for n, at_ms in enumerate(times)]

    class Venue:
        clock, details, exchange_id, exchange = Noon(), None, "binance", None

        async def ready(self) -> None: ...

    async def asked(_adapter: Any, _method: str, _symbol: str, start: int, *_limit: Any, **given: Any) -> Answer:
        end = given["params"]["until"]
        shown = [row for row in rows if start <= row["time"] <= end][::order][:page]
        return Answer(value=[{**row, "side": "buy", "amount": "1", "timestamp": row["time"], "symbol": SPOT,
                              "id": str(row["id"])} for row in shown], rows=tuple(shown))  # fmt: skip

    limited = Pages(how=Ask(page=page), window_ms=DAY_MS)
    row = attrs.evolve(ACCOUNTS["binance"], spot_trades=limited)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_account, "ask", asked)
        patch.setattr(_account, "account_of", lambda _: row)
        try:
            found = asyncio.run(_account.executions(Venue(), SPOT, since_ms))  # type: ignore[arg-type]
        except AnswerUnusable:
            assert max(times.count(at_ms) for at_ms in times) >= page
            return
    assert [fill.at_ms for fill in found] == sorted(at_ms for at_ms in times if at_ms >= since_ms)


async def test_fills_before_the_instant_asked_for_are_left_out() -> None:
    venue = Trades(10)
    fills = await adapter("binance", venue)[0].fetch_executions(SPOT, since_ms=venue.times[7])
    assert [fill.trade_id for fill in fills] == ["8", "9", "10"]


async def test_more_fills_in_one_instant_than_a_page_holds_are_not_called_complete() -> None:
    venue = Trades(1_001, apart_ms=0)
    with pytest.raises(AnswerUnusable, match="full page"):
        await adapter("binance", venue)[0].fetch_executions(SPOT, since_ms=NOW_MS - DAY_MS)


async def test_a_period_of_years_is_refused_before_anything_is_asked() -> None:
    venue = Trades(1)
    with pytest.raises(InvalidInput):
        await adapter("binance", venue)[0].fetch_executions(SPOT, since_ms=0)
    assert venue.asked == []


@pytest.mark.parametrize("missing", ["id", "qty", "price", "time"])
async def test_a_fill_that_lacks_something_is_unusable(missing: str) -> None:
    row = _fill(0, NOW_MS)
    del row[missing]
    with pytest.raises(AnswerUnusable):
        await answering("binance", [row]).fetch_executions(SPOT, since_ms=NOW_MS - 1)


async def test_fills_of_an_exchange_whose_pages_nobody_knows_are_refused() -> None:
    made = answering("binance", [])
    made.exchange_id = "somewhere"
    with pytest.raises(UnsupportedByVenue, match="complete"):
        await made.fetch_executions(SPOT, since_ms=NOW_MS)


# --- Prices ---------------------------------------------------------------------------------------------------------


async def test_a_book_has_the_depth_asked_for_although_the_venue_takes_certain_depths_only() -> None:
    levels = [[str(50_000 - n), "0.5"] for n in range(20)]
    made, wire = adapter("binanceusdm", lambda _: {"lastUpdateId": 1, "T": 7, "bids": levels, "asks": [["50001", "0"]]})

    book = await made.fetch_order_book(SWAP, depth=12)

    assert wire.sent[0].fields["limit"] == "20"
    assert len(book.bids) == 12
    assert (book.bids[0].price, book.bids[0].quantity, book.at_ms) == (Decimal(50_000), Decimal("0.5"), 7)
    assert book.asks == ()


@pytest.mark.parametrize("body", [{"bids": [["1", "1"]]}, {"asks": [["1", "1"]]}, {"bids": None, "asks": []}])
async def test_a_book_with_one_side_only_is_not_a_book(body: Any) -> None:
    with pytest.raises(AnswerUnusable):
        await answering("binance", {"lastUpdateId": 1, **body}).fetch_order_book(SPOT)


async def test_a_missing_bid_is_not_a_bid_of_zero() -> None:
    row = {"symbol": "BTCUSDT", "bidPrice": "0.00000000", "bidQty": "0", "askPrice": "50001", "askQty": "1",
           "lastPrice": "50000"}  # fmt: skip

    found = await answering("binance", [row]).fetch_quotes([SPOT])

    assert (found[SPOT].bid, found[SPOT].ask, found[SPOT].last, found[SPOT].mid) == (None, 50_001, 50_000, None)


class Bare:
    """An object of ccxt's shape that is not ccxt."""

    id = "somewhere"

    async def create_order(self, *_: Any) -> Any: ...

    async def fetch_tickers(self, _symbols: Any, _params: Any) -> Any:
        return {SPOT: {"bid": 0, "ask": "50001", "last": None}}

    async def fetch_positions(self, _symbols: Any, _params: Any) -> Any:
        return []


async def test_an_object_of_ccxts_shape_is_believed() -> None:
    made = CcxtAdapter(Bare(), clock=Noon())
    quote = (await made.fetch_quotes([SPOT]))[SPOT]
    assert (quote.bid, quote.ask, quote.last, quote.at_ms) == (None, 50_001, None, NOW_MS)
    assert list(await made.fetch_positions()) == []
    with pytest.raises(UnsupportedByVenue, match="fetchBalance"):
        await made.fetch_balances()


async def test_spot_and_contracts_are_quoted_in_one_call_and_unquoted_symbols_left_out() -> None:
    def answer(sent: Sent) -> Any:
        if sent.path == "/api/v3/ticker/24hr":
            return [{"symbol": "BTCUSDT", "bidPrice": "1", "bidQty": "1", "askPrice": "2", "askQty": "1"}]
        if sent.path == "/fapi/v1/ticker/bookTicker":
            return {"symbol": "BTCUSDT", "bidPrice": "3", "askPrice": "4", "time": 9}
        return [{"symbol": "BTCUSDT", "price": "3.5", "time": 9}]

    made = adapter("binance", answer)[0]
    made.exchange.markets["ETH/USDT"] = {**made.exchange.markets[SPOT], "symbol": "ETH/USDT", "id": "ETHUSDT"}

    found = await made.fetch_quotes([SPOT, "ETH/USDT", SWAP])

    assert {symbol: (quote.bid, quote.ask) for symbol, quote in found.items()} == {SPOT: (1, 2), SWAP: (3, 4)}
    assert (found[SWAP].last, found[SWAP].at_ms) == (Decimal("3.5"), 9)


# --- Settings -------------------------------------------------------------------------------------------------------

UNCHANGED = [
    ("bybit", "110043", Operation.SET_LEVERAGE),
    ("bybit", "140043", Operation.SET_LEVERAGE),
    ("bybit", "34036", Operation.SET_LEVERAGE),
    ("bybit", "110026", Operation.SET_MARGIN_MODE),
    ("bybit", "34040", Operation.SET_STOP),
    ("binanceusdm", "-4046", Operation.SET_MARGIN_MODE),
    ("binanceusdm", "-4059", Operation.SET_MARGIN_MODE),
    ("binanceusdm", "-4059", Operation.SET_LEVERAGE),
]


def _call(made: CcxtAdapter, operation: Operation) -> Any:
    if operation is Operation.SET_LEVERAGE:
        return made.set_leverage(SWAP, Decimal(5))
    if operation is Operation.SET_MARGIN_MODE:
        return made.set_margin_mode(SWAP, "isolated")
    return made.set_attached_stop(SWAP, PositionSide.LONG, Decimal(40_000))


def _refusal(name: str, code: str) -> dict[str, Any]:
    message = "No need to change margin type." if code == "-4046" else "not modified"
    body = {"retCode": int(code), "retMsg": message} if name == "bybit" else {"code": int(code), "msg": message}
    return {"_error": 400, "body": body}


@pytest.mark.row("S3-25", "D-16")
@pytest.mark.parametrize(("name", "code", "operation"), UNCHANGED)
async def test_already_so_is_told_by_code_and_operation(name: str, code: str, operation: Operation) -> None:
    made = answering(name, _refusal(name, code))

    with pytest.raises(Exception, match=r".") as caught:
        await _call(made, operation)

    assert made.judge(caught.value, operation).meaning is Meaning.NO_CHANGE
    for other in (Operation.CREATE, Operation.CANCEL, Operation.LOOK_UP):
        assert made.judge(caught.value, other).meaning is not Meaning.NO_CHANGE


@pytest.mark.row("S3-25", "D-16")
def test_a_leverage_code_says_nothing_of_a_stop() -> None:
    made = answering("bybit", None)
    error = type("BadRequest", (type("ExchangeError", (type("BaseError", (Exception,), {}),), {}),), {})
    unchanged = error('bybit {"retCode":110043,"retMsg":"leverage not modified"}')
    assert made.judge(unchanged, Operation.SET_STOP).meaning is Meaning.REJECTED
    assert made.judge(unchanged, Operation.SET_MARGIN_MODE).meaning is Meaning.REJECTED


@pytest.mark.row("S3-25")
async def test_a_no_change_that_the_client_keeps_to_itself_is_told_all_the_same() -> None:
    made = answering("binanceusdm", _refusal("binanceusdm", "-4046"))
    made.exchange.options["setMarginMode"] = {"throwMarginModeAlreadySet": False}

    with pytest.raises(Exception, match="already so") as caught:
        await made.set_margin_mode(SWAP, "cross")

    assert made.judge(caught.value, Operation.SET_MARGIN_MODE).meaning is Meaning.NO_CHANGE


@pytest.mark.row("S3-25")
async def test_bybits_silent_30084_is_told_too() -> None:
    made = answering("bybit", {"retCode": 30084, "retMsg": "Isolated not modified", "result": {}})

    with pytest.raises(Exception, match="already so") as caught:
        await made.set_margin_mode(SWAP, "isolated")

    assert made.judge(caught.value, Operation.SET_MARGIN_MODE).meaning is Meaning.NO_CHANGE


@pytest.mark.row("S2-27")
async def test_a_leverage_counts_as_set_when_the_answer_repeats_it() -> None:
    made, wire = adapter("binanceusdm", lambda sent: {"symbol": "BTCUSDT", "leverage": 5, "maxNotionalValue": "1"})

    await made.set_leverage(SWAP, Decimal(5))

    assert (wire.sent[0].path, wire.sent[0].fields["leverage"]) == ("/fapi/v1/leverage", "5")
    with pytest.raises(AnswerUnusable, match="the answer says 5"):
        await made.set_leverage(SWAP, Decimal(7))


@pytest.mark.row("S2-27")
@pytest.mark.parametrize("operation", [Operation.SET_LEVERAGE, Operation.SET_MARGIN_MODE, Operation.SET_STOP])
@pytest.mark.parametrize("body", ["<html></html>", "", None, {}])
async def test_a_setting_that_nobody_confirmed_is_not_done(operation: Operation, body: Any) -> None:
    made = answering("bybit", body)
    with pytest.raises(Exception, match=r".") as caught:
        await _call(made, operation)
    assert made.judge(caught.value, operation).meaning is Meaning.UNKNOWN


@pytest.mark.parametrize("name", VENUES)
async def test_settings_are_refused_with_the_reason_where_they_cannot_be_made(name: str) -> None:
    made, wire = adapter(name, lambda _: {})
    symbol = symbols_of(made)[0]
    if symbol == SPOT:
        for call in (made.set_leverage(SPOT, Decimal(2)), made.set_margin_mode(SPOT, "cross")):
            with pytest.raises(UnsupportedByVenue):
                await call
        with pytest.raises(UnsupportedByVenue, match="an order of its own"):
            await made.set_attached_stop(SPOT, PositionSide.LONG, Decimal(1))
    assert made.stop_kind(symbol) is StopKind.ORDER
    assert wire.sent == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("okx", "with each order"), ("mexc", "in one call"), ("deribit", "account"), ("hyperliquid", "in one call"),
     ("gate", "setMarginMode"), ("htx", "setMarginMode")],
)  # fmt: skip
async def test_margin_modes_that_ccxt_cannot_set_are_refused(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedByVenue, match=reason):
        await answering(name, {}).set_margin_mode(SWAP, "isolated")


@pytest.mark.parametrize(
    ("name", "path"),
    [("okx", "/api/v5/account/set-leverage"), ("kucoin", "/api/v2/changeCrossUserLeverage"),
     ("bitget", "/api/v2/mix/account/set-leverage"), ("htx", "/v5/position/lever"), ("hyperliquid", "/exchange"),
     ("gate", "/api/v4/futures/usdt/positions/BTC_USDT/leverage")],
)  # fmt: skip
async def test_leverage_goes_out_once_where_ccxt_can_set_it(name: str, path: str) -> None:
    code = {"kucoin": "200000", "bitget": "00000"}.get(name, "0")
    made, wire = adapter(name, lambda _: {"status": "ok", "code": code, "data": [{"lever": "3"}], "response": {}})

    await made.set_leverage(SWAP, Decimal(3))
    assert [sent.path for sent in wire.sent] == [path]


@pytest.mark.parametrize("leverage", ["0", "-1", "0.5", "NaN", "Infinity"])
async def test_a_leverage_that_is_none_is_refused(leverage: str) -> None:
    with pytest.raises(InvalidInput):
        await answering("bybit", {}).set_leverage(SWAP, Decimal(leverage))


async def test_a_margin_mode_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput):
        await answering("bybit", {}).set_margin_mode(SWAP, "both")


@pytest.mark.row("S3-10")
async def test_bybit_keeps_the_stop_of_a_position_attached_to_it() -> None:
    made, wire = adapter("bybit", lambda _: {"retCode": 0, "retMsg": "OK", "result": {}})

    await made.set_attached_stop(SWAP, PositionSide.LONG, Decimal("40000.01"))
    await made.set_attached_stop(SWAP, PositionSide.LONG, None)

    assert made.stop_kind(SWAP) is StopKind.ATTACHED
    assert made.stop_kind(SPOT) is StopKind.ORDER
    assert [(sent.path, sent.fields["stopLoss"]) for sent in wire.sent] == [
        ("/v5/position/trading-stop", "40000.01"), ("/v5/position/trading-stop", "0"),
    ]  # fmt: skip
    assert wire.sent[0].fields["tpslMode"] == "Full"


async def test_a_stop_off_the_price_grid_is_refused_before_it_is_sent() -> None:
    made, wire = adapter("bybit", lambda _: {})
    with pytest.raises(UnsupportedByVenue, match="price grid"):
        await made.set_attached_stop(SWAP, PositionSide.LONG, Decimal("40000.005"))
    assert wire.sent == []


@pytest.mark.row("S0-08", "D-16")
@pytest.mark.parametrize("kind", ["InsufficientFunds", "InvalidOrder", "ExchangeError"])
def test_an_oversold_sell_is_a_definite_no_whatever_class_ccxt_makes_of_it(kind: str) -> None:
    made = answering("mexc", None)
    base = type("ExchangeError", (type("BaseError", (Exception,), {}),), {})
    error = base if kind == "ExchangeError" else type(kind, (base,), {})
    judged = made.judge(error('mexc {"code":30005,"msg":"Oversold"}'), Operation.CREATE)
    assert (judged.meaning, judged.facts.code) == (Meaning.REJECTED, "30005")
