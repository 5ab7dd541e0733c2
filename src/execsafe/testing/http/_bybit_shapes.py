"""Bybit's answers as JSON: envelopes, pages, orders, executions, instruments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from execsafe.model.order import OrderStatus
from execsafe.model.values import plain
from execsafe.testing._orders import RejectReason, SimFill, SimOrder
from execsafe.testing.http._face import Answer, integer, market_id
from execsafe.testing.venue import Market


def envelope(result: Any, now_ms: int, code: int = 0, message: str = "OK") -> Answer:
    """What every answer comes in."""
    body = {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": now_ms}
    return Answer.of(body)


def page(params: Mapping[str, str], rows: list[dict[str, Any]], default: int) -> dict[str, Any]:
    """The newest first, a page at a time; the cursor is how many were shown."""
    start, limit = integer(params, "cursor"), integer(params, "limit", default)
    newest = rows[::-1][start : start + limit]
    more = str(start + limit) if start + limit < len(rows) else ""
    return {"category": params["category"], "list": newest, "nextPageCursor": more}


def _status(order: SimOrder) -> str:
    if order.status is OrderStatus.CLOSED:
        return "Filled"
    if order.is_open:
        return "Untriggered" if not order.triggered else "PartiallyFilled" if order.filled_quantity else "New"
    if order.status is OrderStatus.REJECTED:
        return "Rejected"
    if not order.triggered:
        return "Deactivated"
    return "PartiallyFilledCanceled" if order.filled_quantity else "Cancelled"


def shown(order: SimOrder) -> dict[str, Any]:
    """An order."""
    request = order.request
    fees = sum((fill.fee for fill in order.fills), start=0 * order.quantity)
    refused = order.reason is RejectReason.POST_ONLY
    return {
        "symbol": order.symbol.split(":")[0].replace("/", ""),
        "orderId": order.venue_order_id,
        "orderLinkId": order.client_order_id or "",
        "orderType": request.type.capitalize(),
        "side": order.side.value.capitalize(),
        "price": plain(order.limit_price) if order.limit_price else "0",
        "qty": plain(order.quantity),
        "leavesQty": plain(order.leaves_quantity),
        "cumExecQty": plain(order.filled_quantity),
        "cumExecValue": plain(order.cost),
        "cumExecFee": plain(fees),
        "avgPrice": plain(order.average_price) if order.average_price else "",
        "orderStatus": _status(order),
        "timeInForce": "PostOnly" if request.post_only else request.time_in_force,
        "reduceOnly": request.reduce_only,
        "closeOnTrigger": False,
        "triggerPrice": plain(request.trigger_price) if request.trigger_price else "",
        "triggerDirection": 0 if request.trigger_above is None else 1 if request.trigger_above else 2,
        "stopOrderType": "Stop" if request.trigger_price else "",
        "rejectReason": "EC_PostOnlyWillTakeLiquidity" if refused else "EC_NoError",
        "cancelType": "UNKNOWN",
        "positionIdx": 0,
        "createdTime": str(order.created_at_ms),
        "updatedTime": str(order.updated_at_ms),
    }


def shown_fill(order: SimOrder, fill: SimFill) -> dict[str, Any]:
    """An execution."""
    body = shown(order)
    return {
        **{key: body[key] for key in ("symbol", "orderId", "orderLinkId", "side", "orderType")},
        "orderPrice": body["price"],
        "orderQty": body["qty"],
        "leavesQty": body["leavesQty"],
        "execId": fill.trade_id,
        "execPrice": plain(fill.price),
        "execQty": plain(fill.quantity),
        "execValue": plain(fill.quantity * fill.price),
        "execFee": plain(fill.fee),
        "feeCurrency": fill.fee_currency,
        "execType": "Trade",
        "execTime": str(fill.at_ms),
        "isMaker": fill.is_maker,
    }


def _text(value: Any, default: str) -> str:
    return default if value is None else plain(value)


def linear_info(market: Market) -> dict[str, Any]:
    """An entry of instruments-info for a perpetual."""
    instrument = market.instrument
    largest = _text(instrument.max_quantity, "1000")
    return {
        "symbol": market_id(market), "contractType": "LinearPerpetual", "status": "Trading",
        "baseCoin": instrument.base, "quoteCoin": instrument.quote, "settleCoin": instrument.quote,
        "launchTime": "1585526400000", "deliveryTime": "0", "deliveryFeeRate": "", "priceScale": "2",
        "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
        "priceFilter": {"minPrice": _text(instrument.min_price, "0.1"),
                        "maxPrice": _text(instrument.max_price, "1999999.8"),
                        "tickSize": _text(instrument.tick_size, "0.1")},
        "lotSizeFilter": {"maxOrderQty": largest, "maxMktOrderQty": largest, "postOnlyMaxOrderQty": largest,
                          "minOrderQty": _text(instrument.min_quantity, "0.001"),
                          "qtyStep": _text(instrument.step_size, "0.001"),
                          "minNotionalValue": _text(instrument.min_notional, "5")},
        "unifiedMarginTrade": True, "fundingInterval": 480, "copyTrading": "none",
    }  # fmt: skip


def spot_info(market: Market) -> dict[str, Any]:
    """An entry of instruments-info for spot."""
    instrument = market.instrument
    return {
        "symbol": market_id(market), "baseCoin": instrument.base, "quoteCoin": instrument.quote,
        "innovation": "0", "status": "Trading", "marginTrading": "none",
        "lotSizeFilter": {"basePrecision": _text(instrument.step_size, "0.000001"), "quotePrecision": "0.00000001",
                          "minOrderQty": _text(instrument.min_quantity, "0.00001"),
                          "maxOrderQty": _text(instrument.max_quantity, "100"),
                          "minOrderAmt": _text(instrument.min_notional, "5"), "maxOrderAmt": "8000000"},
        "priceFilter": {"tickSize": _text(instrument.tick_size, "0.01")},
    }  # fmt: skip
