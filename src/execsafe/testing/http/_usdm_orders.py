"""Orders of Binance USD-M futures as JSON: plain ones, and conditional ones in a namespace of their own.

A conditional ("algo") order has an ``algoId`` and our ``clientAlgoId``. Once it triggers it is over, and what trades
is another order: ``actualOrderId`` names it, in the namespace of plain orders, under a client id of the venue's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from execsafe.model.order import OrderStatus, Side
from execsafe.model.values import plain
from execsafe.testing._orders import NewOrder, RejectReason, SimFill, SimOrder, VenueReject
from execsafe.testing.http._binance_like import price_or_zero, window
from execsafe.testing.http._face import integer, market_id, number
from execsafe.testing.venue import Market

_ALGO_IDS: Final = 2_000_000  # the two namespaces have ids of their own
_ACTUAL_IDS: Final = 900_000_000
_STATUS: Final = {
    OrderStatus.CLOSED: "FILLED",
    OrderStatus.CANCELED: "CANCELED",
    OrderStatus.EXPIRED: "EXPIRED",
    OrderStatus.REJECTED: "REJECTED",
}
_ENDED_ALGO: Final = {
    OrderStatus.CANCELED: "CANCELED",
    OrderStatus.EXPIRED: "EXPIRED",
    OrderStatus.REJECTED: "REJECTED",
}
PLAIN_TYPES: Final = frozenset({"LIMIT", "MARKET"})
ALGO_TYPES: Final = frozenset({"STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET"})
TIMES_IN_FORCE: Final = {"GTC": "GTC", "IOC": "IOC", "FOK": "FOK", "GTX": "GTC"}


# --- Ids -------------------------------------------------------------------------------------------


def is_algo(order: SimOrder) -> bool:
    """Whether it was placed as a conditional order."""
    return order.request.trigger_price is not None and order.client_order_id is not None


def is_plain(order: SimOrder) -> bool:
    """Whether it is in the namespace of plain orders (now)."""
    return not is_algo(order) or order.triggered


def algo_id(order: SimOrder) -> int:
    """A conditional order's id."""
    return _ALGO_IDS + int(order.venue_order_id)


def order_id(order: SimOrder) -> int:
    """The id of the order that trades."""
    return int(order.venue_order_id) + (_ACTUAL_IDS if is_algo(order) else 0)


def venue_id(text: str | None, *, algo: bool) -> str | None:
    """The simulated venue's own id behind one of the two kinds; None where there is none."""
    if not text or not text.isdigit():
        return None
    value = int(text)
    if algo:
        return str(value - _ALGO_IDS)
    return str(value - _ACTUAL_IDS if value > _ACTUAL_IDS else value)


# --- Requests --------------------------------------------------------------------------------------


def new_order(params: Mapping[str, str], market: Market, *, algo: bool) -> NewOrder:
    """A create request. Raises VenueReject for what the venue would not understand."""
    kind, in_force = params.get("type", ""), params.get("timeInForce", "GTC")
    price, trigger, quantity = (number(params, name) for name in ("price", "triggerPrice", "quantity"))
    has_limit = kind in {"LIMIT", "STOP", "TAKE_PROFIT"}
    known = kind in (ALGO_TYPES if algo else PLAIN_TYPES) and in_force in TIMES_IN_FORCE
    if not known or quantity is None or (has_limit and price is None) or (algo and trigger is None):
        raise VenueReject(RejectReason.BAD_REQUEST)
    if algo and params.get("algoType") != "CONDITIONAL":
        raise VenueReject(RejectReason.BAD_REQUEST)
    if kind == "LIMIT" and "timeInForce" not in params:
        raise VenueReject(RejectReason.BAD_REQUEST)
    is_buy = params.get("side") == "BUY"
    return NewOrder(
        symbol=market.symbol,
        side=Side.BUY if is_buy else Side.SELL,
        quantity=quantity,
        type="limit" if has_limit else "market",
        limit_price=price if has_limit else None,
        client_order_id=params.get("clientAlgoId" if algo else "newClientOrderId"),
        time_in_force=TIMES_IN_FORCE[in_force],
        post_only=in_force == "GTX",
        reduce_only=params.get("reduceOnly", "").lower() == "true",
        trigger_price=trigger if algo else None,
        trigger_above=is_buy != kind.startswith("TAKE") if algo else None,
        signed_at_ms=integer(params, "timestamp"),
        window_ms=window(params),
    )


# --- Answers ---------------------------------------------------------------------------------------


def shown(order: SimOrder) -> dict[str, Any]:
    """An order that trades."""
    request = order.request
    live = "PARTIALLY_FILLED" if order.filled_quantity else "NEW"
    kind = request.type.upper()
    return {
        "orderId": order_id(order),
        "symbol": _key(order),
        "status": _STATUS.get(order.status, live),
        "clientOrderId": _client_id(order),
        "price": price_or_zero(order.limit_price, "0"),
        "avgPrice": price_or_zero(order.average_price, "0.00000"),
        "origQty": plain(order.quantity),
        "executedQty": plain(order.filled_quantity),
        "cumQty": plain(order.filled_quantity),
        "cumQuote": plain(order.cost),
        "timeInForce": "GTX" if request.post_only else request.time_in_force,
        "type": kind,
        "reduceOnly": request.reduce_only,
        "closePosition": False,
        "side": order.side.value.upper(),
        "positionSide": "BOTH",
        "stopPrice": "0",
        "workingType": "CONTRACT_PRICE",
        "priceProtect": False,
        "origType": kind,
        "priceMatch": "NONE",
        "selfTradePreventionMode": "NONE",
        "goodTillDate": 0,
        "time": order.created_at_ms,
        "updateTime": order.updated_at_ms,
    }


def shown_algo(order: SimOrder) -> dict[str, Any]:
    """A conditional order."""
    request = order.request
    is_over = order.triggered and not order.is_open
    status = ("FINISHED" if is_over else "TRIGGERED") if order.triggered else _ENDED_ALGO.get(order.status, "NEW")
    takes_profit = request.trigger_above is (request.side is Side.SELL)
    kind = ("TAKE_PROFIT" if takes_profit else "STOP") + ("" if request.limit_price else "_MARKET")
    return {
        "algoId": algo_id(order),
        "clientAlgoId": order.client_order_id,
        "algoType": "CONDITIONAL",
        "orderType": kind,
        "symbol": _key(order),
        "side": order.side.value.upper(),
        "positionSide": "BOTH",
        "timeInForce": request.time_in_force,
        "quantity": plain(order.quantity),
        "algoStatus": status,
        "actualOrderId": str(order_id(order)) if order.triggered else "",
        "actualPrice": price_or_zero(order.average_price, "0.00000"),
        "triggerPrice": plain(request.trigger_price) if request.trigger_price else "0.00",
        "price": price_or_zero(order.limit_price, "0.00"),
        "icebergQuantity": None,
        "selfTradePreventionMode": "EXPIRE_MAKER",
        "workingType": "CONTRACT_PRICE",
        "priceMatch": "NONE",
        "closePosition": False,
        "priceProtect": False,
        "reduceOnly": request.reduce_only,
        "createTime": order.created_at_ms,
        "updateTime": order.updated_at_ms,
        "triggerTime": order.updated_at_ms if order.triggered else 0,
        "goodTillDate": 0,
    }


def shown_fill(order: SimOrder, fill: SimFill) -> dict[str, Any]:
    """An execution."""
    return {
        "symbol": _key(order),
        "id": int(fill.trade_id),
        "orderId": order_id(order),
        "side": order.side.value.upper(),
        "price": plain(fill.price),
        "qty": plain(fill.quantity),
        "realizedPnl": "0",
        "quoteQty": plain(fill.quantity * fill.price),
        "commission": plain(fill.fee),
        "commissionAsset": fill.fee_currency,
        "time": fill.at_ms,
        "positionSide": "BOTH",
        "buyer": order.side is Side.BUY,
        "maker": fill.is_maker,
    }


def symbol_info(market: Market) -> dict[str, Any]:
    """An entry of exchangeInfo."""
    instrument = market.instrument

    def limit(value: Any, default: str) -> str:
        return default if value is None else plain(value)

    step = limit(instrument.step_size, "0.001")
    lot = {"minQty": limit(instrument.min_quantity, step), "maxQty": limit(instrument.max_quantity, "1000"),
           "stepSize": step}  # fmt: skip
    return {
        "symbol": market_id(market),
        "pair": market_id(market),
        "contractType": "PERPETUAL",
        "deliveryDate": 4133404800000,
        "onboardDate": 1569398400000,
        "status": "TRADING",
        "baseAsset": instrument.base,
        "quoteAsset": instrument.quote,
        "marginAsset": instrument.quote,
        "pricePrecision": 2,
        "quantityPrecision": 3,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": limit(instrument.min_price, "0.10"),
             "maxPrice": limit(instrument.max_price, "4529764"), "tickSize": limit(instrument.tick_size, "0.10")},
            {"filterType": "LOT_SIZE", **lot},
            {"filterType": "MARKET_LOT_SIZE", **lot},
            {"filterType": "MIN_NOTIONAL", "notional": limit(instrument.min_notional, "5")},
        ],
        "orderTypes": sorted(PLAIN_TYPES | ALGO_TYPES),
        "timeInForce": ["GTC", "IOC", "FOK", "GTX"],
    }  # fmt: skip


def _key(order: SimOrder) -> str:
    return order.symbol.split(":")[0].replace("/", "")


def _client_id(order: SimOrder) -> str:
    if is_algo(order):
        return f"algo_{algo_id(order)}"  # the venue's: ours belongs to the conditional order
    return order.client_order_id or f"web_{order.venue_order_id}"
