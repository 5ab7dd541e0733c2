"""Finding an order again through the real ccxt clients: which request asks, what counts as found and as absent."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import attrs
import ccxt
import pytest

from execsafe.model.intent import Intent
from execsafe.model.order import OrderReport, OrderStatus, Side
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.venue import LookUp, View
from execsafe.ports import OrderRef
from execsafe.venues import _wire
from execsafe.venues._shapes import AnswerUnusable
from execsafe.venues.ccxt_adapter import CcxtAdapter
from execsafe.venues.profiles import PROFILES
from venues.offline import SPOT, SWAP, Sent, Wire, make

pytestmark = pytest.mark.anyio
SENT_AT_MS = 1_795_000_000_000


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """ccxt's asynchronous clients run on asyncio only."""
    return "asyncio"


def _error(body: Any, status: int = 400) -> dict[str, Any]:
    return {"_error": status, "body": body}


@attrs.frozen(kw_only=True)
class Case:
    """One view of one venue, with the answers that the venue documents."""

    name: str
    view: View
    path: str
    present: Callable[[str], Any]
    absent: Any
    symbol: str = SPOT
    id_in: str | None = None  # field of the request with our id; None: in the path or nowhere (scan)
    status: OrderStatus = OrderStatus.OPEN
    filled: str | None = "0.5"
    is_trigger: bool = False


def _binance(cid: str, **more: Any) -> dict[str, Any]:
    return {
        "symbol": "BTCUSDT",
        "orderId": 77,
        "clientOrderId": cid,
        "price": "50000",
        "origQty": "2",
        "executedQty": "0.5",
        "cummulativeQuoteQty": "25000",
        "avgPrice": "50000",
        "status": "PARTIALLY_FILLED",
        "timeInForce": "GTC",
        "type": "LIMIT",
        "side": "SELL",
        "time": SENT_AT_MS,
        "updateTime": SENT_AT_MS,
        **more,
    }


def _algo(cid: str, **more: Any) -> dict[str, Any]:
    return {
        "algoId": 77,
        "clientAlgoId": cid,
        "algoType": "CONDITIONAL",
        "orderType": "STOP_MARKET",
        "symbol": "BTCUSDT",
        "side": "SELL",
        "quantity": "2",
        "algoStatus": "NEW",
        "triggerPrice": "40000",
        "actualOrderId": "",
        "createTime": SENT_AT_MS,
        "updateTime": SENT_AT_MS,
        **more,
    }


def _bybit(cid: str, **more: Any) -> dict[str, Any]:
    row = {
        "orderId": "77",
        "orderLinkId": cid,
        "symbol": "BTCUSDT",
        "price": "50000",
        "qty": "2",
        "side": "Sell",
        "orderStatus": "PartiallyFilled",
        "orderType": "Limit",
        "cumExecQty": "0.5",
        "cumExecValue": "25000",
        "avgPrice": "50000",
        "leavesQty": "1.5",
        "createdTime": str(SENT_AT_MS),
        "updatedTime": str(SENT_AT_MS),
        **more,
    }
    return {"retCode": 0, "result": {"category": "spot", "list": [row]}}


_BYBIT_NONE = {"retCode": 0, "result": {"list": []}}


def _bybit_trades(cid: str) -> dict[str, Any]:
    row = {
        "symbol": "BTCUSDT",
        "orderId": "77",
        "orderLinkId": cid,
        "side": "Sell",
        "execId": "e1",
        "execPrice": "50000",
        "execQty": "0.5",
        "execFee": "1",
        "feeCurrency": "USDT",
        "execTime": str(SENT_AT_MS),
        "execType": "Trade",
    }
    return {"retCode": 0, "result": {"list": [row]}}


def _okx(cid: str, **more: Any) -> dict[str, Any]:
    row = {
        "instType": "SPOT",
        "instId": "BTC-USDT",
        "ordId": "77",
        "clOrdId": cid,
        "px": "50000",
        "sz": "2",
        "accFillSz": "0.5",
        "avgPx": "50000",
        "side": "sell",
        "ordType": "limit",
        "state": "partially_filled",
        "cTime": str(SENT_AT_MS),
        "uTime": str(SENT_AT_MS),
        **more,
    }
    return {"code": "0", "msg": "", "data": [row]}


def _okx_algo(cid: str, **more: Any) -> dict[str, Any]:
    """A conditional order as okx states it: its size, and no filled quantity."""
    row = {
        "actualPx": "",
        "actualSz": "0",
        "algoClOrdId": cid,
        "algoId": "77",
        "cTime": str(SENT_AT_MS),
        "instId": "BTC-USDT",
        "instType": "SPOT",
        "ordId": "",
        "ordPx": "40000",
        "ordType": "conditional",
        "side": "sell",
        "slTriggerPx": "41000",
        "state": "live",
        "sz": "2",
        "uTime": str(SENT_AT_MS),
        **more,
    }
    return {"code": "0", "msg": "", "data": [row]}


def _kraken(group: str, **more: Any) -> Callable[[str], Any]:
    def build(cid: str) -> Any:
        row = {
            "cl_ord_id": cid,
            "status": "open",
            "opentm": SENT_AT_MS / 1000,
            "vol": "2",
            "vol_exec": "0.5",
            "cost": "25000",
            "price": "50000",
            "descr": {"pair": "XBTUSD", "type": "sell", "ordertype": "limit", "price": "50000"},
            **more,
        }
        return {"error": [], "result": {group: {"77": row}}}

    return build


def _kucoin(cid: str) -> Any:
    row = {
        "id": "77",
        "symbol": "BTC-USDT",
        "type": "limit",
        "side": "sell",
        "price": "50000",
        "size": "2",
        "dealSize": "0.5",
        "dealFunds": "25000",
        "clientOid": cid,
        "isActive": True,
        "cancelExist": False,
        "createdAt": SENT_AT_MS,
    }
    return {"code": "200000", "data": row}


def _gate_row(cid: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "77",
        "text": f"t-{cid}",
        "create_time_ms": SENT_AT_MS,
        "update_time_ms": SENT_AT_MS,
        "status": "open",
        "currency_pair": "BTC_USDT",
        "type": "limit",
        "account": "spot",
        "side": "sell",
        "amount": "2",
        "price": "50000",
        "left": "1.5",
        "filled_total": "25000",
        "filled_amount": "0.5",
        "avg_deal_price": "50000",
        **more,
    }


def _gate_trade(cid: str) -> Any:
    return [
        {
            "id": "9",
            "create_time_ms": f"{SENT_AT_MS}.1",
            "order_id": "77",
            "side": "sell",
            "role": "taker",
            "amount": "0.5",
            "price": "50000",
            "fee": "1",
            "fee_currency": "USDT",
            "currency_pair": "BTC_USDT",
            "text": f"t-{cid}",
        }
    ]


def _bitget(cid: str) -> Any:
    row = {
        "symbol": "BTCUSDT",
        "orderId": "77",
        "clientOid": cid,
        "price": "50000",
        "size": "2",
        "orderType": "limit",
        "side": "sell",
        "status": "partially_filled",
        "priceAvg": "50000",
        "baseVolume": "0.5",
        "quoteVolume": "25000",
        "cTime": str(SENT_AT_MS),
    }
    return {"code": "00000", "msg": "success", "data": [row]}


def _coinbase(cid: str, **more: Any) -> Any:
    row = {
        "order_id": "77",
        "client_order_id": cid,
        "product_id": "BTC-USDT",
        "side": "SELL",
        "status": "OPEN",
        "filled_size": "0.5",
        "average_filled_price": "50000",
        "created_time": "2026-11-18T11:06:40Z",
        "order_configuration": {"limit_limit_gtc": {"base_size": "2", "limit_price": "50000"}},
        **more,
    }
    return {"orders": [row], "has_next": False, "cursor": ""}


def _htx(cid: str) -> Any:
    row = {
        "id": 77,
        "symbol": "btcusdt",
        "client-order-id": cid,
        "amount": "2",
        "price": "50000",
        "created-at": SENT_AT_MS,
        "type": "sell-limit",
        "field-amount": "0.5",
        "field-cash-amount": "25000",
        "state": "partial-filled",
    }
    return {"status": "ok", "data": row}


def _hyperliquid(cid: str) -> Any:
    row = {
        "coin": "BTC",
        "side": "A",
        "limitPx": "50000",
        "sz": "1.5",
        "oid": 77,
        "timestamp": SENT_AT_MS,
        "origSz": "2",
        "cloid": cid,
        "orderType": "Limit",
    }
    return {"status": "order", "order": {"order": row, "status": "open", "statusTimestamp": SENT_AT_MS}}


def _deribit(**more: Any) -> Callable[[str], Any]:
    def build(cid: str) -> Any:
        row = {
            "order_id": "77",
            "label": cid,
            "instrument_name": "BTC_USDT-PERPETUAL",
            "direction": "sell",
            "amount": 2,
            "filled_amount": 0.5,
            "average_price": 50000,
            "price": 50000,
            "order_state": "open",
            "order_type": "limit",
            "creation_timestamp": SENT_AT_MS,
            "last_update_timestamp": SENT_AT_MS,
            **more,
        }
        return {"result": [row]}

    return build


def _mexc_swap(cid: str) -> Any:
    row = {
        "orderId": "77",
        "symbol": "BTC_USDT",
        "externalOid": cid,
        "price": 50000,
        "vol": 2,
        "dealVol": 0.5,
        "dealAvgPrice": 50000,
        "side": 3,
        "state": 2,
        "orderType": 1,
        "createTime": SENT_AT_MS,
    }
    return {"success": True, "code": 0, "data": row}


ID, OPEN, CLOSED, TRADES = View.CLIENT_ID, View.OPEN_ORDERS, View.CLOSED_ORDERS, View.TRADES
NONE_2013 = _error({"code": -2013, "msg": "Order does not exist."})
CANCELED, EXISTS = OrderStatus.CANCELED, OrderStatus.UNKNOWN
CASES = [
    Case(name="binance", view=ID, path="/api/v3/order", id_in="origClientOrderId", present=_binance, absent=NONE_2013),
    Case(
        name="binance",
        view=ID,
        symbol=SWAP,
        path="/fapi/v1/order",
        id_in="origClientOrderId",
        present=lambda c: _binance(c, cumQuote="25000"),
        absent=NONE_2013,
    ),
    Case(
        name="binanceusdm",
        view=ID,
        symbol=SWAP,
        path="/fapi/v1/algoOrder",
        id_in="clientAlgoId",
        present=_algo,
        absent=NONE_2013,
        is_trigger=True,
        filled="0",
    ),
    Case(name="bybit", view=OPEN, path="/v5/order/realtime", id_in="orderLinkId", present=_bybit, absent=_BYBIT_NONE),
    Case(
        name="bybit",
        view=CLOSED,
        path="/v5/order/history",
        id_in="orderLinkId",
        present=lambda c: _bybit(c, orderStatus="PartiallyFilledCanceled"),
        absent=_BYBIT_NONE,
        status=OrderStatus.CLOSED,
    ),
    Case(
        name="bybit",
        view=TRADES,
        path="/v5/execution/list",
        id_in="orderLinkId",
        present=_bybit_trades,
        absent=_BYBIT_NONE,
        status=EXISTS,
    ),
    Case(
        name="bybit",
        view=OPEN,
        symbol=SWAP,
        path="/v5/order/realtime",
        id_in="orderLinkId",
        present=_bybit,
        absent=_BYBIT_NONE,
        is_trigger=True,
    ),
    Case(
        name="okx",
        view=ID,
        path="/api/v5/trade/order",
        id_in="clOrdId",
        present=_okx,
        absent=_error({"code": "51603", "msg": "Order does not exist", "data": []}),
    ),
    Case(
        name="okx",
        view=ID,
        path="/api/v5/trade/order-algo",
        id_in="algoClOrdId",
        present=_okx_algo,
        absent=_error({"code": "51603", "msg": "Order does not exist", "data": []}),
        is_trigger=True,
        filled="0",
    ),
    Case(name="mexc", view=ID, path="/api/v3/order", id_in="origClientOrderId", present=_binance, absent=NONE_2013),
    Case(
        name="mexc",
        view=ID,
        symbol=SWAP,
        path="/api/v1/private/order/external/BTC_USDT/",
        present=_mexc_swap,
        absent=_error({"success": False, "code": 2040, "message": "order not exist"}, 200),
    ),
    Case(
        name="kraken",
        view=OPEN,
        path="/0/private/OpenOrders",
        id_in="cl_ord_id",
        present=_kraken("open"),
        absent={"error": [], "result": {"open": {}}},
    ),
    Case(
        name="kraken",
        view=CLOSED,
        path="/0/private/ClosedOrders",
        id_in="cl_ord_id",
        present=_kraken("closed", status="canceled"),
        absent={"error": [], "result": {"closed": {}}},
        status=CANCELED,
    ),
    Case(
        name="kucoin",
        view=ID,
        path="/api/v1/order/client-order/",
        present=_kucoin,
        absent=_error({"code": "400100", "msg": "order not exist."}),
    ),
    Case(
        name="gate",
        view=ID,
        path="/api/v4/spot/orders/t-",
        present=_gate_row,
        absent=_error({"label": "ORDER_NOT_FOUND", "message": "Order not found"}),
    ),
    Case(
        name="gate",
        view=CLOSED,
        path="/api/v4/spot/orders",
        present=lambda c: [_gate_row("other", id="76"), _gate_row(c, status="cancelled")],
        absent=[_gate_row("other", id="76")],
        status=CANCELED,
    ),
    Case(
        name="gate",
        view=TRADES,
        path="/api/v4/spot/my_trades",
        present=_gate_trade,
        absent=_gate_trade("other"),
        status=EXISTS,
    ),
    Case(
        name="bitget",
        view=ID,
        path="/api/v2/spot/trade/orderInfo",
        id_in="clientOid",
        present=_bitget,
        absent=_error({"code": "43001", "msg": "The order does not exist"}),
    ),
    Case(
        name="coinbase",
        view=OPEN,
        path="/api/v3/brokerage/orders/historical/batch",
        present=_coinbase,
        absent=_coinbase("other"),
    ),
    Case(
        name="coinbase",
        view=CLOSED,
        path="/api/v3/brokerage/orders/historical/batch",
        present=lambda c: _coinbase(c, status="CANCELLED"),
        absent={"orders": []},
        status=CANCELED,
    ),
    Case(
        name="htx",
        view=ID,
        path="/v1/order/orders/getClientOrder",
        id_in="clientOrderId",
        present=_htx,
        absent=_error({"status": "error", "err-code": "base-record-invalid", "err-msg": "record invalid"}, 200),
    ),
    Case(
        name="hyperliquid",
        view=ID,
        symbol=SWAP,
        path="/info",
        id_in="oid",
        present=_hyperliquid,
        absent=_error({"status": "unknownOid"}, 200),
    ),
    Case(
        name="deribit",
        view=OPEN,
        symbol=SWAP,
        path="/api/v2/private/get_open_orders_by_instrument",
        present=_deribit(),
        absent=_deribit(label="other")("x"),
    ),
    Case(
        name="deribit",
        view=CLOSED,
        symbol=SWAP,
        path="/api/v2/private/get_order_history_by_instrument",
        present=_deribit(order_state="cancelled"),
        absent={"result": []},
        status=CANCELED,
    ),
]
IDS = [
    f"{c.name}-{c.view.value}-{'swap' if c.symbol == SWAP else 'spot'}{'-stop' if c.is_trigger else ''}" for c in CASES
]


class Bench:
    """An adapter on a real client that answers with *answer*."""

    def __init__(self, case: Case, answer: Any) -> None:
        self.exchange = make(case.name)
        self.exchange.options.update(
            enableUnifiedAccount=True, enableUnifiedMargin=False, uta=False, unifiedAccount=False
        )
        if case.name == "hyperliquid":
            self.exchange.marketsByIdAndType = {}
        self.wire = Wire(self.exchange, answer if callable(answer) else lambda _: answer)
        self.adapter = CcxtAdapter(self.exchange)
        intent = Intent(key="signal-42", symbol=case.symbol, side="sell", quantity="2", limit_price="50000")
        self.ours = self.adapter.client_order_id(intent, 0)
        self.ref = OrderRef(
            symbol=case.symbol,
            client_order_id=self.ours,
            side=Side.SELL,
            is_trigger=case.is_trigger,
            sent_at_ms=SENT_AT_MS,
        )
        self.lookup: LookUp = next(x for x in PROFILES[case.name].lookups if x.view is case.view)

    async def look(self, ref: OrderRef | None = None) -> OrderReport | None:
        try:
            return await self.adapter.look_up(self.lookup, ref or self.ref)
        finally:
            await self.exchange.close()

    def answer(self, body: Any) -> None:
        self.wire.answer = lambda _: body


@pytest.mark.parametrize("case", CASES, ids=IDS)
async def test_an_order_is_found_by_our_id(case: Case) -> None:
    """The right endpoint is asked with our id, and the venue's figures come back."""
    bench = Bench(case, None)
    bench.answer(case.present(bench.ours))
    report = await bench.look()
    assert report is not None
    assert len(bench.wire.sent) == 1
    sent = bench.wire.sent[0]
    assert sent.path.startswith(case.path)
    assert "None" not in sent.url
    if case.id_in is not None:
        assert sent.fields[case.id_in] == bench.ours
    assert (report.venue_order_id, report.client_order_id, report.symbol) == ("77", bench.ours, case.symbol)
    assert report.status is case.status
    assert report.filled_quantity == (None if case.filled is None else Decimal(case.filled))
    assert report.side in {Side.SELL, None}


@pytest.mark.parametrize("case", CASES, ids=IDS)
async def test_an_order_that_the_view_does_not_have_is_absent(case: Case) -> None:
    """The venue's own words for "not there" are None."""
    bench = Bench(case, case.absent)
    assert await bench.look() is None


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("body", ["<html>", "", {}, [], None], ids=["html", "empty", "object", "list", "null"])
async def test_a_read_that_fails_is_not_an_empty_read(case: Case, body: Any) -> None:
    """G18: HTML, nothing or a stranger's JSON in place of an answer is never absence.

    ccxt makes an empty list of an answer that is none, hence the answer below it is looked at.
    """
    bench = Bench(case, body)
    failure: Exception | None = None
    try:
        assert await bench.look() is None
    except Exception as error:
        failure = error
    if failure is None:
        assert isinstance(body, list), "only an empty list may be an empty answer"
    else:
        assert bench.adapter.judge(failure, Operation.LOOK_UP).meaning is not Meaning.NOT_FOUND


@pytest.mark.parametrize("case", [c for c in CASES if c.view is ID], ids=lambda c: c.name)
async def test_an_answer_about_another_order_is_unreadable(case: Case) -> None:
    """An id that the venue did not filter by proves nothing: neither found nor absent."""
    bench = Bench(case, case.present("xsother0000000000z"))
    with pytest.raises(AnswerUnusable):
        await bench.look()


@pytest.mark.parametrize(
    "case",
    # ccxt reads the side of mexc swap orders wrongly, so there it is not compared.
    [c for c in CASES if c.view is not TRADES and (c.name, c.symbol) != ("mexc", SWAP)],
    ids=lambda c: f"{c.name}-{c.view.value}",
)
async def test_an_order_with_our_id_and_another_side_is_unreadable(case: Case) -> None:
    """Something is wrong with an order that carries our id and is not ours: no verdict is built on it."""
    bench = Bench(case, None)
    bench.answer(case.present(bench.ours))
    with pytest.raises(AnswerUnusable):
        await bench.look(attrs.evolve(bench.ref, side=Side.BUY))


async def test_bybit_is_never_asked_by_a_parameter_that_it_ignores() -> None:
    """The unified clientOrderId would return everybody's orders; and what comes back is filtered again."""
    case = CASES[3]
    bench = Bench(case, _bybit("somebody-elses"))
    assert await bench.look() is None
    assert "clientOrderId" not in bench.wire.sent[0].fields


async def test_a_stop_on_bybit_is_looked_for_among_all_kinds_of_orders() -> None:
    """Stops may be filed under a filter of their own: absent only when every kind says so."""
    case = CASES[6]
    bench = Bench(case, _BYBIT_NONE)
    assert await bench.look() is None
    assert [sent.fields.get("orderFilter") for sent in bench.wire.sent] == [None, "StopOrder", "tpslOrder"]


async def test_a_full_page_is_not_absence() -> None:
    """A scan that filled its page may have missed the order."""
    case = next(c for c in CASES if c.name == "gate" and c.view is CLOSED)
    bench = Bench(case, [_gate_row("other", id=str(i)) for i in range(100)])
    with pytest.raises(AnswerUnusable):
        await bench.look()
    assert _wire._bodies.get() is None  # nothing goes on collecting answers
    assert bench.wire.sent[0].fields["limit"] == "100"
    assert int(bench.wire.sent[0].fields["from"]) * 1000 < SENT_AT_MS


async def test_an_order_that_ccxt_filters_out_is_not_absent() -> None:
    """The venue lists our id under a symbol that ccxt does not take for ours: unreadable."""
    case = next(c for c in CASES if c.name == "kraken" and c.view is OPEN)
    bench = Bench(case, None)
    bench.exchange.options["marketsByAltname"] = {}
    bench.answer(case.present(bench.ours))
    with pytest.raises(AnswerUnusable):
        await bench.look()


async def test_two_orders_under_one_id_are_unreadable() -> None:
    """Where the venue does not enforce unique ids, a second order is an alarm, not a look-up result."""
    case = next(c for c in CASES if c.name == "gate" and c.view is CLOSED)
    bench = Bench(case, None)
    bench.answer([_gate_row(bench.ours, id="1"), _gate_row(bench.ours, id="2")])
    with pytest.raises(AnswerUnusable):
        await bench.look()


async def test_a_triggered_stop_is_followed_to_the_order_that_it_became() -> None:
    """binance calls a triggered stop finished with nothing filled; the fill is another order's."""
    case = CASES[2]
    bench = Bench(case, None)

    def answer(sent: Sent) -> Any:
        if sent.path == "/fapi/v1/algoOrder":
            return _algo(bench.ours, algoStatus="FINISHED", actualOrderId="991")
        assert sent.fields["orderId"] == "991"
        return _binance("autoclose", orderId=991, status="FILLED", executedQty="2", cumQuote="80000")

    bench.wire.answer = answer
    report = await bench.look()
    assert report is not None
    assert (report.status, report.filled_quantity) == (OrderStatus.CLOSED, Decimal(2))
    assert (report.venue_order_id, report.client_order_id) == ("77", bench.ours)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("NEW", OrderStatus.OPEN),
        ("CANCELED", OrderStatus.CANCELED),
        ("EXPIRED", OrderStatus.EXPIRED),
        ("REJECTED", OrderStatus.REJECTED),
    ],
)
async def test_a_stop_that_was_never_set_off_has_filled_nothing(status: str, state: OrderStatus) -> None:
    """No filled quantity is stated of conditional orders: without this, a canceled one could never be settled."""
    case = CASES[2]
    bench = Bench(case, None)
    bench.answer(_algo(bench.ours, algoStatus=status))
    report = await bench.look()
    assert report is not None
    assert (report.status, report.filled_quantity) == (state, 0)


async def test_a_stop_that_was_set_off_and_then_canceled_has_what_its_order_filled() -> None:
    """Whatever the conditional order is called, the order that it became counts."""
    bench = Bench(CASES[2], None)

    def answer(sent: Sent) -> Any:
        if sent.path == "/fapi/v1/algoOrder":
            return _algo(bench.ours, algoStatus="CANCELED", actualOrderId="991")
        return _binance("autoclose", orderId=991, status="CANCELED", executedQty="0.5", cumQuote="80000")

    bench.wire.answer = answer
    report = await bench.look()
    assert report is not None
    assert (report.status, report.filled_quantity) == (OrderStatus.CANCELED, Decimal("0.5"))


@pytest.mark.parametrize(
    "refusal",
    [
        _error({"code": -2011, "msg": "Unknown order sent."}),
        _error({"code": -20124, "msg": "Invalid algo id or it has been completed."}),
        _error({"code": -20999, "msg": "words that nobody has listed"}),
        ccxt.RequestTimeout("no answer"),
    ],
    ids=["unknown", "completed", "unlisted", "lost"],
)
@pytest.mark.parametrize("named", ["991", ""], ids=["set off", "waiting"])
async def test_a_stop_that_cannot_be_canceled_is_followed_to_the_order_that_it_became(refusal: Any, named: str) -> None:
    """In whatever words the venue refuses: what the look-up says counts. Otherwise the refusal stands."""
    bench = Bench(CASES[2], None)

    def answer(sent: Sent) -> Any:
        if sent.path == "/fapi/v1/algoOrder":
            return refusal if sent.method == "DELETE" else _algo(bench.ours, algoStatus="NEW", actualOrderId=named)
        return _binance("autoclose", orderId=991, status="CANCELED")

    bench.wire.answer = answer
    with contextlib.nullcontext() if named else pytest.raises(ccxt.BaseError):
        await bench.adapter.cancel_order(bench.ref)
    await bench.exchange.close()
    canceled = [sent.fields["orderId"] for sent in bench.wire.sent if sent.path == "/fapi/v1/order"]
    assert canceled == [named] * bool(named)


OKX_STOP = next(case for case in CASES if case.path == "/api/v5/trade/order-algo")


@pytest.mark.parametrize(
    ("state", "filled", "status"),
    [
        ("live", "0", OrderStatus.OPEN),
        ("partially_filled", "0.5", OrderStatus.OPEN),
        ("canceled", "0.5", OrderStatus.CANCELED),
        ("filled", "2", OrderStatus.CLOSED),
    ],
)
async def test_a_triggered_okx_stop_has_what_the_order_filled_that_it_became(
    state: str, filled: str, status: OrderStatus
) -> None:
    """okx calls the stop effective, which ccxt reads as wholly filled; both orders carry the stop's id."""
    bench = Bench(OKX_STOP, None)

    def answer(sent: Sent) -> Any:
        if sent.path == "/api/v5/trade/order-algo":
            return _okx_algo(bench.ours, ordId="991", state="effective")
        assert sent.fields["ordId"] == "991"
        return _okx("", algoClOrdId=bench.ours, algoId="77", ordId="991", state=state, accFillSz=filled)

    bench.wire.answer = answer
    report = await bench.look()
    assert report is not None
    assert (report.status, report.filled_quantity, report.venue_order_id) == (status, Decimal(filled), "77")


async def test_an_okx_stop_that_was_split_into_several_orders_is_known_to_exist_only() -> None:
    """The fills of one of them would be too little, its end too early."""
    bench = Bench(OKX_STOP, None)

    def answer(sent: Sent) -> Any:
        if sent.path == "/api/v5/trade/order-algo":
            return _okx_algo(bench.ours, ordId="991", ordIdList=["991", "992"], state="effective")
        return _okx("", algoClOrdId=bench.ours, algoId="77", ordId="991", sz="1", state="filled", accFillSz="1")

    bench.wire.answer = answer
    report = await bench.look()
    assert report is not None
    assert (report.status, report.filled_quantity) == (OrderStatus.UNKNOWN, None)


async def test_a_filled_quantity_of_the_stops_own_does_not_keep_from_following_it() -> None:
    """Whatever the conditional order says of itself, what trades is the order that it became."""
    bench = Bench(CASES[2], None)

    def answer(sent: Sent) -> Any:
        if sent.path == "/fapi/v1/algoOrder":
            return _algo(bench.ours, algoStatus="FINISHED", actualOrderId="991", executedQty="2")
        return _binance("autoclose", orderId=991, status="NEW", executedQty="0", cumQuote="0")

    bench.wire.answer = answer
    report = await bench.look()
    assert report is not None
    assert (report.status, report.filled_quantity) == (OrderStatus.OPEN, 0)


async def test_a_triggered_stop_whose_order_is_no_longer_shown_is_not_absent() -> None:
    """The venue listed the stop itself: "not found" is said of the other order, and proves nothing about ours."""
    bench = Bench(CASES[2], None)

    def answer(sent: Sent) -> Any:
        if sent.path == "/fapi/v1/algoOrder":
            return _algo(bench.ours, algoStatus="FINISHED", actualOrderId="991")
        return NONE_2013

    bench.wire.answer = answer
    report = await bench.look()
    assert report is not None
    assert (report.status, report.filled_quantity, report.venue_order_id) == (OrderStatus.UNKNOWN, None, "77")


async def test_a_triggered_stop_whose_order_is_not_named_is_known_to_exist_only() -> None:
    """Closed with nothing filled says nothing about a stop that triggered."""
    case = CASES[2]
    bench = Bench(case, None)
    bench.answer(_algo(bench.ours, algoStatus="TRIGGERED"))
    report = await bench.look()
    assert report is not None
    assert (report.status, report.filled_quantity) == (OrderStatus.UNKNOWN, None)


async def test_executions_prove_existence_and_what_filled_at_least() -> None:
    """A list of trades never says that the rest is gone."""
    case = next(c for c in CASES if c.name == "bybit" and c.view is TRADES)
    bench = Bench(case, None)
    bench.answer(_bybit_trades(bench.ours))
    report = await bench.look()
    assert report is not None
    assert report.status is OrderStatus.UNKNOWN
    assert [(fill.trade_id, fill.quantity) for fill in report.fills] == [("e1", Decimal("0.5"))]
