"""The wire format of Binance spot: requests, answers and error codes as its REST API has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from execsafe.model.order import OrderStatus, Side
from execsafe.model.outcome import Operation
from execsafe.model.position import Quote
from execsafe.model.values import plain
from execsafe.testing._orders import NewOrder, RejectReason, SimFill, SimOrder, VenueReject
from execsafe.testing.faults import Reading, Strikes
from execsafe.testing.http._binance_like import BinanceLike, Refusals, Route, price_or_zero, window
from execsafe.testing.http._face import Answer, Refusal, integer, market_id, number
from execsafe.testing.venue import Market

_TYPES: Final = ("LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT",
                 "TAKE_PROFIT_LIMIT")  # fmt: skip

_REFUSALS: Final[Refusals] = {
    RejectReason.INSUFFICIENT_FUNDS: (400, -2010, "Account has insufficient balance for requested action."),
    RejectReason.LOT_SIZE: (400, -1013, "Filter failure: LOT_SIZE"),
    RejectReason.PRICE_FILTER: (400, -1013, "Filter failure: PRICE_FILTER"),
    RejectReason.NOTIONAL: (400, -1013, "Filter failure: NOTIONAL"),
    RejectReason.POST_ONLY: (400, -2010, "Order would immediately match and take."),
    RejectReason.REDUCE_ONLY: (400, -1106, "Parameter 'reduceOnly' sent when not required."),
    RejectReason.DUPLICATE_ID: (400, -2010, "Duplicate order sent."),
    RejectReason.UNKNOWN_ORDER: (400, -2011, "Unknown order sent."),
    RejectReason.BAD_SYMBOL: (400, -1121, "Invalid symbol."),
    RejectReason.BAD_REQUEST: (400, -1102, "Mandatory parameter was not sent, was empty/null, or malformed."),
    RejectReason.EXPIRED_REQUEST: (400, -1021, "Timestamp for this request is outside of the recvWindow."),
    RejectReason.TIMESTAMP_AHEAD: (
        400, -1021, "Timestamp for this request was 1000ms ahead of the server's time."),
    RejectReason.RATE_LIMITED: (
        429, -1003, "Too much request weight used; current limit is 6000 request weight per 1 MINUTE."),
    RejectReason.BAD_KEY: (401, -2015, "Invalid API-key, IP, or permissions for action."),
    RejectReason.STOP_WOULD_TRIGGER: (400, -2010, "Stop price would trigger immediately."),
}  # fmt: skip
_STATUS: Final = {
    OrderStatus.CLOSED: "FILLED",
    OrderStatus.CANCELED: "CANCELED",
    OrderStatus.EXPIRED: "EXPIRED",
    OrderStatus.REJECTED: "REJECTED",
}


class BinanceFace(BinanceLike):
    """Binance spot as ``api.binance.com`` serves it."""

    name: ClassVar[str] = "binance"
    hosts: ClassVar[tuple[str, ...]] = ("api.binance.com", "api1.binance.com", "api-gcp.binance.com")
    prefix: ClassVar[str] = "/api/v3"
    refusals: ClassVar[Refusals] = _REFUSALS

    def public_routes(self) -> dict[str, Route]:
        return {
            "GET /ping": Route(None, lambda *_: {}),
            "GET /time": Route(None, lambda _params, now_ms, _strikes: {"serverTime": now_ms + self.venue.skew_ms}),
            "GET /exchangeInfo": Route(None, self._exchange_info),
            **self.price_routes(("GET /ticker/price", "GET /ticker/bookTicker", "GET /ticker/24hr")),
        }

    def private_routes(self) -> dict[str, Route]:
        return {
            "POST /order": Route(Operation.CREATE, self._create),
            "POST /order/cancelReplace": Route(Operation.CREATE, self._cancel_replace),
            "DELETE /order": Route(Operation.CANCEL, self.cancel),
            "GET /order": Route(Operation.LOOK_UP, self.order, Reading.ORDER),
            "GET /openOrders": Route(Operation.LOOK_UP, self.open_orders, Reading.OPEN_ORDERS),
            "GET /allOrders": Route(Operation.LOOK_UP, self.all_orders, Reading.ORDER),
            "GET /myTrades": Route(Operation.LOOK_UP, self.my_trades, Reading.EXECUTIONS),
            "GET /account": Route(Operation.LOOK_UP, self._account, Reading.BALANCES),
        }

    def shown(self, order: SimOrder) -> dict[str, Any]:
        return _order(order)

    def shown_fill(self, order: SimOrder, fill: SimFill) -> dict[str, Any]:
        return _trade(order, fill)

    def shown_quote(self, key: str, quote: Quote) -> dict[str, Any]:
        best = {"bidPrice": quote.bid, "askPrice": quote.ask, "lastPrice": quote.last, "price": quote.last}
        sizes = {"bidQty": "1000" if quote.bid else "0", "askQty": "1000" if quote.ask else "0"}
        return {"symbol": key, **{name: price_or_zero(price) for name, price in best.items()}, **sizes}

    def _exchange_info(self, _params: Mapping[str, str], now_ms: int, _strikes: Strikes) -> Any:
        symbols = [_symbol_info(market) for market in self.listed(is_linear=False).values()]
        return {"timezone": "UTC", "serverTime": now_ms, "rateLimits": [], "exchangeFilters": [],
                "symbols": symbols}  # fmt: skip

    # --- orders -----------------------------------------------------------------------------------

    def _create(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        order = self.venue.submit(self._new_order(params), now_ms, strikes)
        return _created(order, params.get("newOrderRespType", "FULL"))

    def cancel(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        shown = super().cancel(params, now_ms, strikes)
        given = {"clientOrderId": params.get("newClientOrderId", f"c{shown['orderId']}")}
        return {**shown, "origClientOrderId": shown["clientOrderId"], "transactTime": now_ms, **given}

    def _cancel_replace(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Cancel, then create; not atomic, exactly as in the original."""
        signed_at_ms = integer(params, "timestamp")
        self.venue.check_time(signed_at_ms + window(params), signed_at_ms)
        old = {"origClientOrderId": params.get("cancelOrigClientOrderId", ""),
               "orderId": params.get("cancelOrderId", ""), "symbol": params.get("symbol", "")}  # fmt: skip
        result = {"cancelResult": "SUCCESS", "newOrderResult": "NOT_ATTEMPTED", "cancelResponse": None,
                  "newOrderResponse": None}  # fmt: skip
        try:
            result["cancelResponse"] = self.cancel(old, now_ms, strikes)
        except VenueReject as reject:
            result.update(cancelResult="FAILURE", cancelResponse=_error(self.refuse(reject)))
            if params.get("cancelReplaceMode") != "ALLOW_FAILURE":
                raise _replace_failed(400, -2022, "Order cancel-replace failed.", result) from None
        try:
            created = self._create(params, now_ms, strikes)
        except VenueReject as reject:
            result.update(newOrderResult="FAILURE", newOrderResponse=_error(self.refuse(reject)))
            if result["cancelResult"] == "FAILURE":
                raise _replace_failed(400, -2022, "Order cancel-replace failed.", result) from None
            raise _replace_failed(409, -2021, "Order cancel-replace partially failed.", result) from None
        result.update(newOrderResult="SUCCESS", newOrderResponse=created)
        if result["cancelResult"] == "FAILURE":
            raise _replace_failed(409, -2021, "Order cancel-replace partially failed.", result)
        return result

    def _account(self, _params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        balances = self.venue.fetch_balances(now_ms, strikes=strikes, lag_max_ms=self.lag_max_ms)
        rows = [
            {"asset": c, "free": plain(balances[c].free), "locked": plain(balances[c].used)} for c in sorted(balances)
        ]
        return {"makerCommission": 10, "takerCommission": 10, "canTrade": True, "canWithdraw": False,
                "updateTime": now_ms, "accountType": "SPOT", "balances": rows, "permissions": ["SPOT"]}  # fmt: skip

    # --- reading requests -------------------------------------------------------------------------

    def _new_order(self, params: Mapping[str, str]) -> NewOrder:
        kind, market = params.get("type", ""), self.market(params)
        price, trigger = number(params, "price"), number(params, "stopPrice")
        quantity, quote = number(params, "quantity"), number(params, "quoteOrderQty")
        if quantity is None and quote is not None:
            quantity = market.instrument.floor_quantity(quote / self.venue.prices[market.symbol])
        has_limit = kind.startswith("LIMIT") or kind.endswith("_LIMIT")
        if kind not in _TYPES or quantity is None or (has_limit and price is None):
            raise VenueReject(RejectReason.BAD_REQUEST)
        if kind in {"LIMIT", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"} and "timeInForce" not in params:
            raise VenueReject(RejectReason.BAD_REQUEST)
        if kind.startswith(("STOP", "TAKE")) and trigger is None:
            raise VenueReject(RejectReason.BAD_REQUEST)
        is_buy = params.get("side") == "BUY"
        return NewOrder(
            symbol=market.symbol,
            side=Side.BUY if is_buy else Side.SELL,
            quantity=quantity,
            type="limit" if has_limit else "market",
            limit_price=price if has_limit else None,
            client_order_id=params.get("newClientOrderId"),
            time_in_force=params.get("timeInForce", "GTC"),
            post_only=kind == "LIMIT_MAKER",
            trigger_price=trigger,
            trigger_above=None if trigger is None else is_buy != kind.startswith("TAKE"),
            signed_at_ms=integer(params, "timestamp"),
            window_ms=window(params),
        )


def _replace_failed(status: int, code: int, message: str, result: dict[str, Any]) -> Refusal:
    return Refusal(Answer.of({"code": code, "msg": message, "data": result}, status))


def _error(answer: Answer) -> Any:
    return json.loads(answer.body) if answer.body.startswith("{") else None


def _type(request: NewOrder) -> str:
    if request.trigger_price is None:
        return "LIMIT_MAKER" if request.post_only else request.type.upper()
    takes_profit = request.trigger_above is (request.side is Side.SELL)
    return ("TAKE_PROFIT" if takes_profit else "STOP_LOSS") + ("_LIMIT" if request.limit_price else "")


def _order(order: SimOrder) -> dict[str, Any]:
    request = order.request
    live = "PARTIALLY_FILLED" if order.filled_quantity else "NEW"
    return {
        "symbol": order.symbol.replace("/", ""),
        "orderId": int(order.venue_order_id),
        "orderListId": -1,
        "clientOrderId": order.client_order_id or f"web_{order.venue_order_id}",
        "price": plain(order.limit_price) if order.limit_price else "0.00000000",
        "origQty": plain(order.quantity),
        "executedQty": plain(order.filled_quantity),
        "origQuoteOrderQty": "0.000000",
        "cummulativeQuoteQty": plain(order.cost),
        "status": _STATUS.get(order.status, live),
        "timeInForce": request.time_in_force,
        "type": _type(request),
        "side": order.side.value.upper(),
        "stopPrice": plain(request.trigger_price) if request.trigger_price else "0.00000000",
        "icebergQty": "0.00000000",
        "time": order.created_at_ms,
        "updateTime": order.updated_at_ms,
        "isWorking": order.triggered,
        "workingTime": order.created_at_ms,
        "selfTradePreventionMode": "NONE",
    }


def _created(order: SimOrder, detail: str) -> dict[str, Any]:
    body = _order(order)
    head = {key: body[key] for key in ("symbol", "orderId", "orderListId", "clientOrderId")}
    head["transactTime"] = order.created_at_ms
    if detail == "ACK":
        return head
    hidden = {"icebergQty", "time", "updateTime", "isWorking"}
    if order.request.trigger_price is None:
        hidden.add("stopPrice")
    result = {**head, **{key: value for key, value in body.items() if key not in hidden}}
    if detail == "FULL":
        result["fills"] = [
            {
                "price": plain(fill.price),
                "qty": plain(fill.quantity),
                "commission": plain(fill.fee),
                "commissionAsset": fill.fee_currency,
                "tradeId": int(fill.trade_id),
            }
            for fill in order.fills
        ]
    return result


def _trade(order: SimOrder, fill: SimFill) -> dict[str, Any]:
    return {
        "symbol": order.symbol.replace("/", ""),
        "id": int(fill.trade_id),
        "orderId": int(order.venue_order_id),
        "orderListId": -1,
        "price": plain(fill.price),
        "qty": plain(fill.quantity),
        "quoteQty": plain(fill.quantity * fill.price),
        "commission": plain(fill.fee),
        "commissionAsset": fill.fee_currency,
        "time": fill.at_ms,
        "isBuyer": order.side is Side.BUY,
        "isMaker": fill.is_maker,
        "isBestMatch": True,
    }


def _symbol_info(market: Market) -> dict[str, Any]:
    instrument = market.instrument

    def limit(value: Any, default: str) -> str:
        return default if value is None else plain(value)

    step = limit(instrument.step_size, "0.00000001")
    lot = {"minQty": limit(instrument.min_quantity, step), "maxQty": limit(instrument.max_quantity, "9000"),
           "stepSize": step}  # fmt: skip
    return {
        "symbol": market_id(market),
        "status": "TRADING",
        "baseAsset": instrument.base,
        "baseAssetPrecision": 8,
        "quoteAsset": instrument.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": list(_TYPES),
        "icebergAllowed": True,
        "ocoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "cancelReplaceAllowed": True,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": limit(instrument.min_price, "0.01"),
             "maxPrice": limit(instrument.max_price, "1000000"), "tickSize": limit(instrument.tick_size, "0.01")},
            {"filterType": "LOT_SIZE", **lot},
            {"filterType": "MARKET_LOT_SIZE", **lot, "minQty": "0.00000000", "stepSize": "0.00000000"},
            {"filterType": "NOTIONAL", "minNotional": limit(instrument.min_notional, "0"),
             "applyMinToMarket": True, "maxNotional": "9000000", "applyMaxToMarket": False, "avgPriceMins": 5},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "NONE",
        "allowedSelfTradePreventionModes": ["NONE"],
    }  # fmt: skip
