"""What leaves the machine when an order is sent: the real ccxt clients, with the network cut off below signing."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from typing import Any

import anyio
import attrs
import ccxt
import pytest

from execsafe.errors import UnsupportedByVenue
from execsafe.model.intent import Intent
from execsafe.model.order import OrderReport, OrderRequest, OrderStatus, Side
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.venue import Expiry
from execsafe.ports import OrderRef
from execsafe.venues._shapes import AnswerUnusable
from execsafe.venues.ccxt_adapter import CcxtAdapter
from execsafe.venues.profiles import PROFILES
from venues.offline import SPOT, SWAP, VENUES, Sent, Wire, make

pytestmark = pytest.mark.anyio
NOW_MS, EXPIRES_IN_MS = 1_795_000_000_000, 8_345
DEADLINE_MS = NOW_MS + EXPIRES_IN_MS


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """ccxt's asynchronous clients run on asyncio only."""
    return "asyncio"


# Fields that carry our id: venue, market -> where it must be.
ID_FIELD = {
    "binance": "newClientOrderId",
    "binanceusdm": "newClientOrderId",
    "bybit": "orderLinkId",
    "okx": "clOrdId",
    "mexc": "newClientOrderId",
    "kraken": "cl_ord_id",
    "kucoin": "clientOid",
    "gate": "text",
    "bitget": "clientOid",
    "coinbase": "client_order_id",
    "htx": "client-order-id",
    "deribit": "label",
}
CONTRACT_ID_FIELD = {**ID_FIELD, "mexc": "externalOid", "htx": "client_order_id"}
ORDER_PATHS = {
    "binance": ("/api/v3/order", "/fapi/v1/order"),
    "binanceusdm": ("/fapi/v1/order",),
    "bybit": ("/v5/order/create",),
    "okx": ("/api/v5/trade/batch-orders",),
    "mexc": ("/api/v3/order", "/api/v1/private/order/create"),
    "kraken": ("/0/private/AddOrder",),
    "kucoin": ("/api/v1/orders",),
    "gate": ("/api/v4/spot/orders", "/api/v4/futures/usdt/orders"),
    "bitget": ("/api/v2/spot/trade/place-order", "/api/v2/mix/order/place-order"),
    "coinbase": ("/api/v3/brokerage/orders",),
    "htx": ("/v1/order/orders/place", "/v5/trade/order"),
    "hyperliquid": ("/exchange",),
    "deribit": ("/api/v2/private/sell",),
}
MODES: dict[str, Any] = {
    "/v5/user/query-api": {"retCode": 0, "result": {"unified": 1, "uta": 1}},
    "/v5/account/info": {"retCode": 0, "result": {"unifiedMarginStatus": 6}},
    "/api/ua/v1/account/mode": {"code": "200000", "data": {"selfAccountMode": "CLASSIC"}},
    "/api/v4/account/detail": {"key": {"mode": 1}},
    "/api/v3/account/settings": ccxt.ExchangeError("bitget classic account"),
    "/v1/account/accounts": {"status": "ok", "data": [{"id": 1, "type": "spot", "state": "working"}]},
}


def answer_modes(sent: Sent) -> Any:
    return MODES.get(sent.path, {})


def markets() -> list[tuple[str, str]]:
    return [(name, symbol) for name in VENUES for symbol in (SPOT, SWAP) if symbol in make(name).markets]


def an_intent(symbol: str, **changes: Any) -> Intent:
    # Whole numbers: some venues count contracts.
    values = {"key": "signal-42", "symbol": symbol, "side": "sell", "quantity": "2", "limit_price": "50000"}
    return Intent(**{**values, **changes})


def a_request(adapter: CcxtAdapter, intent: Intent, **changes: Any) -> OrderRequest:
    request = OrderRequest(
        symbol=intent.symbol,
        side=intent.side,
        type=intent.type,
        quantity=intent.quantity,
        client_order_id=adapter.client_order_id(intent, 0),
        limit_price=intent.limit_price,
        time_in_force=intent.time_in_force,
        post_only=intent.post_only,
        reduce_only=intent.reduce_only,
        trigger_price=intent.trigger_price,
        deadline_ms=123,  # in our time, which is not the venue's
        expires_in_ms=EXPIRES_IN_MS,
        params=intent.params,
    )
    return attrs.evolve(request, **changes)


async def send(
    name: str, symbol: str, config: dict[str, Any] | None = None, **changes: Any
) -> tuple[CcxtAdapter, Wire, list[Sent]]:
    """Prepare, then create; the requests of create alone are returned."""
    exchange = make(name, **(config or {}))
    exchange.milliseconds = lambda: NOW_MS
    wire = Wire(exchange, answer_modes)
    profile = attrs.evolve(PROFILES[name], expiry="none") if (name, symbol) == ("mexc", SWAP) else None
    adapter = CcxtAdapter(exchange, profile=profile)
    intent = an_intent(symbol, **changes)
    adapter.check(intent)
    await adapter.prepare(symbol)
    wire.sent.clear()
    # The empty answer is unusable everywhere; here only the request counts.
    with pytest.raises(Exception) as raised:  # noqa: PT011
        await adapter.create_order(a_request(adapter, intent))
    assert adapter.judge(raised.value, Operation.CREATE).meaning is Meaning.UNKNOWN
    await exchange.close()
    return adapter, wire, wire.sent


@pytest.mark.parametrize(("name", "symbol"), markets())
async def test_one_request_to_the_order_endpoint_with_our_id_in_the_field_that_arrives(name: str, symbol: str) -> None:
    """After prepare, create_order makes exactly one request, which carries our id and none that ccxt invents."""
    adapter, _, sent = await send(name, symbol)
    assert [request.path for request in sent] == [p for p in ORDER_PATHS[name] if p == sent[0].path]
    ours = adapter.client_order_id(an_intent(symbol), 0)
    fields = sent[0].fields
    if name == "hyperliquid":
        assert fields["action"]["orders"][0]["c"] == ours
        assert fields["action"]["type"] == "order"
        assert "builder" not in fields["action"]
        return
    carried = fields[(CONTRACT_ID_FIELD if symbol == SWAP else ID_FIELD)[name]]
    assert str(carried) == ("t-" if name == "gate" else "") + ours
    for invented in ("x-TKT5PX2F", "x-cvBPrNm9", "6b9ad766b55dBCDE", "ccxt-"):
        assert invented not in sent[0].everything


@pytest.mark.parametrize(("name", "symbol"), markets())
async def test_quantity_and_price_arrive_exactly(name: str, symbol: str) -> None:
    """No truncation, no float noise: the journalled numbers are the ones on the wire."""
    _, _, sent = await send(name, symbol)
    numbers = {Decimal(text) for text in _numbers(sent[0].fields)}
    assert {Decimal(2), Decimal(50000)} <= numbers or {Decimal(-2), Decimal(50000)} <= numbers


def _numbers(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [n for item in value.values() for n in _numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in _numbers(item)]
    text = str(value)
    return [text] if text.replace(".", "", 1).removeprefix("-").isdigit() else []


@pytest.mark.parametrize(("name", "symbol"), markets())
async def test_the_deadline_is_in_the_request_as_the_profile_says(name: str, symbol: str) -> None:
    """Absolute deadlines name the journalled instant; relative windows are the profile's; else there is none."""
    adapter, _, sent = await send(name, symbol)
    request, window_ms = sent[0], round(adapter.profile.expiry_window_s * 1000)
    if name in {"binance", "binanceusdm"}:
        assert int(request.fields["timestamp"]) + int(request.fields["recvWindow"]) == DEADLINE_MS
    elif name == "kraken":
        assert request.fields["deadline"] == "2026-11-18T11:06:48.345Z"
    elif name == "deribit":
        assert request.fields["valid_until"] == str(DEADLINE_MS)
    elif name == "okx":
        assert request.headers["expTime"] == str(DEADLINE_MS)
    elif name == "gate":
        assert request.headers["x-gate-exptime"] == str(DEADLINE_MS)
    elif name == "bybit":
        assert request.headers["X-BAPI-RECV-WINDOW"] == str(window_ms)
    elif (name, symbol) == ("mexc", SPOT):
        assert request.fields["recvWindow"] == str(window_ms)
    else:
        assert adapter.profile.expiry is Expiry.NONE
        assert str(DEADLINE_MS) not in request.everything


@pytest.mark.parametrize("name", ["okx", "gate"])
async def test_the_deadline_header_belongs_to_one_request_only(name: str) -> None:
    """Requests that run at the same time do not inherit the order's deadline, nor do later ones."""
    exchange = make(name)
    gate = anyio.Event()
    wire = Wire(exchange, answer_modes)
    plain_fetch = exchange.fetch

    async def slow_fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        answer = await plain_fetch(url, method, headers, body)
        await gate.wait()
        return answer

    exchange.milliseconds = lambda: NOW_MS
    adapter = CcxtAdapter(exchange)
    await adapter.prepare(SPOT)
    exchange.fetch = slow_fetch
    wire.sent.clear()

    async def create(expires_in_ms: int) -> None:
        intent = an_intent(SPOT, key=f"k{expires_in_ms}")
        with pytest.raises(AnswerUnusable):
            await adapter.create_order(a_request(adapter, intent, expires_in_ms=expires_in_ms))

    async def read() -> None:
        await exchange.fetch_open_orders(SPOT)

    async with anyio.create_task_group() as group:
        group.start_soon(create, 1111)
        group.start_soon(read)
        group.start_soon(create, 2222)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    header = adapter.profile.expiry_param.removeprefix("header:")  # type: ignore[union-attr]
    with pytest.raises(AnswerUnusable):
        await adapter.create_order(a_request(adapter, an_intent(SPOT, key="later")))
    await exchange.fetch_open_orders(SPOT)  # in the same task, afterwards
    assert [header in request.headers for request in wire.sent[3:]] == [True, False]
    del wire.sent[3:]
    assert sorted(str(request.headers.get(header)) for request in wire.sent) == [
        str(NOW_MS + 1111),
        str(NOW_MS + 2222),
        "None",
    ]
    await exchange.close()


@pytest.mark.parametrize(("name", "symbol"), markets())
async def test_ccxt_does_not_send_an_order_again(name: str, symbol: str) -> None:
    """With ccxt told to retry failed requests, an order whose answer is lost still goes out once, reads may repeat."""
    exchange = make(name)
    exchange.options["maxRetriesOnFailure"] = 3
    wire = Wire(exchange, answer_modes)
    profile = attrs.evolve(PROFILES[name], expiry="none") if (name, symbol) == ("mexc", SWAP) else None
    adapter = CcxtAdapter(exchange, profile=profile)
    intent = an_intent(symbol)
    await adapter.prepare(symbol)
    wire.answer = lambda _: ccxt.RequestTimeout("lost")
    wire.sent.clear()
    with pytest.raises(ccxt.RequestTimeout):
        await adapter.create_order(a_request(adapter, intent))
    assert len(wire.sent) == 1
    assert "maxRetries" not in wire.sent[0].everything
    await exchange.close()


class Session:
    """Stands for an aiohttp session as far as silent re-sends are concerned."""

    _retry_connection = True

    async def close(self) -> None:
        return None


async def test_silent_resends_are_off_before_an_order_that_is_sent_with_get() -> None:
    """deribit places orders with GET, which aiohttp repeats on a dropped connection: also on a later session."""
    exchange = make("deribit")
    adapter = CcxtAdapter(exchange)
    await adapter.prepare(SWAP)
    later = Session()

    async def fetch(url: str, *args: Any, **kwargs: Any) -> Any:
        assert exchange.session is later
        assert later._retry_connection is False
        return {}

    exchange.session, exchange.fetch = later, fetch
    with pytest.raises(Exception):  # noqa: B017, PT011
        await adapter.create_order(a_request(adapter, an_intent(SWAP)))
    assert later._retry_connection is False
    await exchange.close()


async def test_a_session_that_only_posts_orders_keeps_its_settings() -> None:
    """POST is never repeated by the HTTP client: nothing is changed for other requests."""
    exchange = make("binance")
    adapter = CcxtAdapter(exchange)
    exchange.session = session = Session()
    Wire(exchange, answer_modes)
    with pytest.raises(AnswerUnusable):
        await adapter.create_order(a_request(adapter, an_intent(SPOT)))
    assert session._retry_connection is True
    await exchange.close()


@pytest.mark.parametrize(("name", "symbol"), [pair for pair in markets() if pair[0] != "hyperliquid"])
async def test_a_market_order_keeps_its_quantity_in_base_currency(name: str, symbol: str) -> None:
    """The price of a market order is not passed on: some venues would make it an amount of money to spend."""
    _, _, sent = await send(name, symbol, side="sell", type="market")
    numbers = {abs(Decimal(text)) for text in _numbers(sent[0].fields)}
    assert Decimal(2) in numbers
    assert Decimal(100000) not in numbers
    assert "quoteOrderQty" not in sent[0].everything
    if name == "bybit" and symbol == SPOT:
        assert sent[0].fields["marketUnit"] == "baseCoin"


@pytest.mark.parametrize("name", ["binance", "bybit", "okx", "mexc", "kraken", "kucoin"])
async def test_a_spot_market_buy_is_in_base_currency_or_refused(name: str) -> None:
    """Where a spot market buy is accepted it buys the quantity that was asked for."""
    _, _, sent = await send(name, SPOT, side="buy", type="market")
    numbers = {abs(Decimal(text)) for text in _numbers(sent[0].fields)}
    assert Decimal(2) in numbers
    assert Decimal(100000) not in numbers
    if name == "okx":
        assert sent[0].fields["tgtCcy"] == "base_ccy"


STOPS = {
    ("binance", SPOT): {"stopPrice": "40000", "type": "STOP_LOSS_LIMIT"},
    ("binance", SWAP): {"triggerPrice": "40000", "algoType": "CONDITIONAL", "clientAlgoId": None},
    ("binanceusdm", SWAP): {"triggerPrice": "40000", "algoType": "CONDITIONAL", "clientAlgoId": None},
    ("bybit", SPOT): {"triggerPrice": "40000", "orderFilter": "StopOrder", "orderLinkId": None},
    ("bybit", SWAP): {"triggerPrice": "40000", "triggerDirection": "2", "orderLinkId": None},
    ("okx", SPOT): {"triggerPx": "40000", "algoClOrdId": None, "clOrdId": None},
    ("okx", SWAP): {"triggerPx": "40000", "algoClOrdId": None, "clOrdId": None},
    ("kraken", SPOT): {"ordertype": "stop-loss-limit", "price": "40000", "cl_ord_id": None},
    ("kucoin", SPOT): {"stop": "loss", "stopPrice": "40000", "clientOid": None},
    ("deribit", SWAP): {"type": "stop_limit", "trigger_price": "40000", "label": None},
}


@pytest.mark.parametrize(("name", "symbol"), list(STOPS))
async def test_a_stop_order_goes_out_as_a_stop_with_our_id(name: str, symbol: str) -> None:
    """A trigger price never becomes a stray parameter of a plain order (None: our id)."""
    adapter, _, sent = await send(name, symbol, trigger_price="40000", reduce_only=True)
    ours = adapter.client_order_id(an_intent(symbol), 0)
    assert len(sent) == 1
    for field, value in STOPS[name, symbol].items():
        assert str(sent[0].fields[field]) == (ours if value is None else value), field


async def test_stop_orders_of_the_remaining_venues_go_out_as_stops() -> None:
    """coinbase nests its stop (a sell triggers downwards), hyperliquid its trigger."""
    _, _, sent = await send("coinbase", SPOT, trigger_price="40000")
    stop = sent[0].fields["order_configuration"]["stop_limit_stop_limit_gtc"]
    assert (stop["stop_price"], stop["stop_direction"]) == ("40000", "STOP_DIRECTION_STOP_DOWN")
    _, _, sent = await send("hyperliquid", SWAP, trigger_price="40000")
    assert sent[0].fields["action"]["orders"][0]["t"]["trigger"]["tpsl"] == "sl"


@pytest.mark.parametrize(("name", "symbol"), markets())
@pytest.mark.parametrize("param", ["triggerPrice", "stopLossPrice", "takeProfitPrice"])
async def test_every_stop_parameter_is_either_refused_or_not_a_plain_order(name: str, symbol: str, param: str) -> None:
    """Whatever check() lets through differs on the wire from the plain order, beyond the parameter itself."""
    exchange = make(name)
    adapter = CcxtAdapter(exchange, profile=attrs.evolve(PROFILES[name], expiry="none"))
    intent = an_intent(
        symbol,
        params={
            param: 40000,
            **(
                {"triggerDirection": "descending"}
                if name == "bybit" and symbol == SWAP and param == "triggerPrice"
                else {}
            ),
        },
    )
    try:
        adapter.check(intent)
    except UnsupportedByVenue:
        await exchange.close()
        return
    wire = Wire(exchange, answer_modes)
    await adapter.prepare(symbol)
    wire.sent.clear()
    with pytest.raises(Exception) as raised:  # noqa: PT011
        await adapter.create_order(a_request(adapter, intent))
    if not wire.sent:  # ccxt refused it locally
        assert adapter.judge(raised.value, Operation.CREATE).meaning is Meaning.REJECTED
        return
    fields = json.dumps(wire.sent[0].fields)
    assert any(word in fields for word in ("stop", "STOP", "rigger", "slTrigger", "tpTrigger", "take"))
    plain = await send(name, symbol, params={})
    stray = {k for k in wire.sent[0].fields if k == param} if name not in {"binance", "binanceusdm", "bybit"} else set()
    assert not stray, f"{param} went out as it is"
    assert (
        set(wire.sent[0].fields) != set(plain[2][0].fields)
        or wire.sent[0].path != plain[2][0].path
        or name in {"hyperliquid", "coinbase"}
    )
    await exchange.close()


async def test_reduce_only_is_sent_for_contracts_and_dropped_on_spot() -> None:
    """Spot has no reduce-only: there it would be a stray parameter that binance refuses."""
    _, _, spot = await send("binance", SPOT, reduce_only=True)
    _, _, swap = await send("binance", SWAP, reduce_only=True)
    assert "reduceOnly" not in spot[0].fields
    assert swap[0].fields["reduceOnly"] == "true"


async def test_flags_reach_the_venue() -> None:
    """Time in force and post-only are ccxt's unified parameters."""
    _, _, sent = await send("binance", SPOT, time_in_force="IOC")
    assert sent[0].fields["timeInForce"] == "IOC"
    _, _, sent = await send("binance", SPOT, post_only=True)
    assert sent[0].fields["type"] == "LIMIT_MAKER"


async def test_a_change_that_ccxt_would_make_is_refused_before_sending() -> None:
    """Off-grid quantities are truncated and prices rounded by ccxt: refused, as definitely not placed."""
    exchange = make("binance")
    wire = Wire(exchange, answer_modes)
    adapter = CcxtAdapter(exchange)
    for changes in ({"quantity": Decimal("0.123456789")}, {"limit_price": Decimal("50000.126")}):
        with pytest.raises(UnsupportedByVenue) as raised:
            await adapter.create_order(a_request(adapter, an_intent(SPOT), **changes))
        assert adapter.judge(raised.value, Operation.CREATE).meaning is Meaning.REJECTED
    assert wire.sent == []
    await exchange.close()


async def test_numbers_that_no_float_can_hold_are_sent_exactly() -> None:
    """A quantity of more digits than a float has goes out as text."""
    exchange = make("binance")
    exchange.markets[SPOT]["precision"]["amount"] = 1e-8
    wire = Wire(exchange, answer_modes)
    adapter = CcxtAdapter(exchange)
    with pytest.raises(AnswerUnusable):
        await adapter.create_order(a_request(adapter, an_intent(SPOT), quantity=Decimal("123456789012.12345678")))
    assert wire.sent[0].fields["quantity"] == "123456789012.12345678"
    await exchange.close()


# --- what comes back ---------------------------------------------------------------------------------------------

BINANCE_FULL = {
    "symbol": "BTCUSDT",
    "orderId": 28,
    "clientOrderId": "",
    "transactTime": 1507725176595,
    "price": "50000.00",
    "origQty": "2.0",
    "executedQty": "1.5",
    "cummulativeQuoteQty": "75000.0",
    "status": "PARTIALLY_FILLED",
    "timeInForce": "GTC",
    "type": "LIMIT",
    "side": "SELL",
    "fills": [
        {"price": "50000", "qty": "1.0", "commission": "0.001", "commissionAsset": "BNB", "tradeId": 56},
        {"price": "50000", "qty": "0.5", "commission": "25", "commissionAsset": "USDT", "tradeId": 57},
    ],
}


async def acknowledged(name: str, symbol: str, body: Any) -> OrderReport:
    exchange = make(name)
    wire = Wire(exchange, answer_modes)
    adapter = CcxtAdapter(exchange)
    await adapter.prepare(symbol)
    wire.answer = lambda _: body
    try:
        return await adapter.create_order(a_request(adapter, an_intent(symbol)))
    finally:
        await exchange.close()


async def test_a_full_answer_states_status_fills_and_fees() -> None:
    """binance answers with the matching engine's result."""
    report = await acknowledged("binance", SPOT, BINANCE_FULL)
    assert report.status is OrderStatus.OPEN
    assert (report.filled_quantity, report.quantity, report.average_price) == (
        Decimal("1.5"),
        Decimal(2),
        Decimal(50000),
    )
    assert [(f.trade_id, f.quantity, f.fees[0].currency) for f in report.fills] == [
        ("56", Decimal("1.0"), "BNB"),
        ("57", Decimal("0.5"), "USDT"),
    ]


@pytest.mark.parametrize(
    ("name", "symbol", "body"),
    [
        ("bybit", SPOT, {"retCode": 0, "result": {"orderId": "77", "orderLinkId": ""}}),
        (
            "bybit",  # not stated today; should an acknowledgement ever echo figures, it is still asynchronous
            SWAP,
            {"retCode": 0, "result": {"orderId": "77", "orderStatus": "Filled", "qty": "2", "cumExecQty": "2"}},
        ),
        ("okx", SPOT, {"code": "0", "data": [{"ordId": "77", "clOrdId": "", "sCode": "0"}]}),
        ("kucoin", SPOT, {"code": "200000", "data": {"orderId": "77"}}),
        ("mexc", SPOT, {"symbol": "BTCUSDT", "orderId": "77", "price": "50000", "origQty": "2", "type": "LIMIT"}),
        ("kraken", SPOT, {"error": [], "result": {"descr": {"order": "sell 2 XBTUSD @ limit 50000"}, "txid": ["77"]}}),
        ("bitget", SPOT, {"code": "00000", "data": {"orderId": "77", "clientOid": ""}}),
        ("htx", SPOT, {"status": "ok", "data": "77"}),
        ("binance", SPOT, {"symbol": "BTCUSDT", "orderId": 77, "clientOrderId": "", "transactTime": 1}),
        (
            "hyperliquid",
            SWAP,
            {
                "status": "ok",
                "response": {
                    "type": "order",
                    "data": {"statuses": [{"filled": {"totalSz": "2", "avgPx": "5", "oid": 77}}]},
                },
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bare_acknowledgement_proves_existence_and_nothing_else(name: str, symbol: str, body: Any) -> None:
    """Placeholders of the client (filled 0, closed means full) are not taken for the venue's word."""
    report = await acknowledged(name, symbol, body)
    assert report.venue_order_id == "77"
    assert report.filled_quantity is None
    assert report.status is OrderStatus.UNKNOWN


@pytest.mark.parametrize("body", ["<html>busy</html>", "", [], {}, {"foo": 1}])
@pytest.mark.parametrize("name", ["binance", "bybit", "okx"])
async def test_an_answer_without_order_id_is_no_answer(name: str, body: Any) -> None:
    """HTTP 200 with HTML, nothing or a stranger's JSON does not raise in ccxt: here it means UNKNOWN."""
    exchange = make(name)
    wire = Wire(exchange, answer_modes)
    adapter = CcxtAdapter(exchange)
    await adapter.prepare(SPOT)
    wire.answer = lambda _: body
    with pytest.raises(Exception) as raised:  # noqa: PT011
        await adapter.create_order(a_request(adapter, an_intent(SPOT)))
    assert adapter.judge(raised.value, Operation.CREATE).meaning is Meaning.UNKNOWN
    await exchange.close()


async def test_an_answer_about_another_order_is_no_answer() -> None:
    """A stranger's client id in the answer proves nothing about ours."""
    with pytest.raises(AnswerUnusable):
        await acknowledged("binance", SPOT, {**BINANCE_FULL, "clientOrderId": "somebody-elses"})


# --- canceling ---------------------------------------------------------------------------------------------------

CANCEL_FIELD = {
    "binance": "origClientOrderId",
    "binanceusdm": "origClientOrderId",
    "bybit": "orderLinkId",
    "okx": "clOrdId",
    "mexc": "origClientOrderId",
    "kraken": "cl_ord_id",
    "bitget": "clientOid",
}


@pytest.mark.parametrize(("name", "symbol"), [pair for pair in markets() if pair[0] not in {"coinbase", "deribit"}])
@pytest.mark.parametrize("by", ["our id", "venue id"])
async def test_a_cancel_names_the_order_by_the_id_that_the_venue_understands(name: str, symbol: str, by: str) -> None:
    """One request, with our id in the venue's field, or its own id where we know it; nothing is left None."""
    exchange = make(name)
    wire = Wire(exchange, answer_modes)
    adapter = CcxtAdapter(exchange)
    await adapter.prepare(symbol)
    wire.sent.clear()
    ours = adapter.client_order_id(an_intent(symbol), 0)
    ref = OrderRef(
        symbol=symbol, client_order_id=ours, venue_order_id=None if by == "our id" else "774411", side=Side.SELL
    )
    with contextlib.suppress(Exception):  # the empty answer
        await adapter.cancel_order(ref)
    assert len(wire.sent) == 1
    sent = wire.sent[0]
    assert (ours if by == "our id" else "774411") in sent.everything
    assert "None" not in sent.url
    assert "null" not in sent.body
    if by == "our id" and symbol == SPOT and name in CANCEL_FIELD:
        assert sent.fields[CANCEL_FIELD[name]] == ours
    if by == "our id" and name == "gate":
        assert f"t-{ours}" in sent.path
    await exchange.close()


async def test_where_no_cancel_by_our_id_exists_the_order_is_found_first() -> None:
    """coinbase cancels by its own id only: the look-ups supply it; without it, nothing is claimed."""
    exchange = make("coinbase")
    adapter = CcxtAdapter(exchange)
    ours = adapter.client_order_id(an_intent(SPOT), 0)
    row = {"order_id": "ab-1", "client_order_id": ours, "product_id": "BTC-USDT", "side": "SELL", "status": "OPEN"}
    wire = Wire(
        exchange,
        lambda s: (
            {"orders": [row]}
            if "batch" in s.path and "cancel" not in s.path
            else {"results": [{"success": True, "order_id": "ab-1"}]}
        ),
    )
    await adapter.cancel_order(OrderRef(symbol=SPOT, client_order_id=ours, side=Side.SELL))
    assert wire.sent[-1].fields == {"order_ids": ["ab-1"]}
    wire.answer = lambda _: {"orders": []}
    with pytest.raises(AnswerUnusable):
        await adapter.cancel_order(OrderRef(symbol=SPOT, client_order_id=ours))
    await exchange.close()
