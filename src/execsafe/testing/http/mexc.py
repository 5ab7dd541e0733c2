"""The wire format of MEXC spot (v3): requests, answers and error codes as its REST API has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar, Final

from execsafe.model.order import OrderStatus, Side
from execsafe.model.outcome import Operation
from execsafe.model.position import Quote
from execsafe.model.values import plain
from execsafe.testing._orders import NewOrder, RejectReason, SimFill, SimOrder, VenueReject
from execsafe.testing.faults import Reading, Strikes
from execsafe.testing.http._binance_like import BinanceLike, Refusals, Route, price_or_zero, said, window
from execsafe.testing.http._face import Answer, Job, WireRequest, integer, market_id, number
from execsafe.testing.venue import Market

_REFUSALS: Final[Refusals] = {
    RejectReason.INSUFFICIENT_FUNDS: (400, 30004, "Insufficient position"),
    RejectReason.LOT_SIZE: (400, 400, "amount scale is invalid"),
    RejectReason.PRICE_FILTER: (400, 400, "price scale is invalid"),
    RejectReason.NOTIONAL: (400, 30002, "The minimum transaction volume cannot be less than:1USDT"),
    RejectReason.DUPLICATE_ID: (400, 603, "repeated request"),
    RejectReason.UNKNOWN_ORDER: (400, -2011, "Unknown order sent."),
    RejectReason.BAD_SYMBOL: (400, -1121, "Invalid symbol."),
    RejectReason.BAD_REQUEST: (400, 700004, "Mandatory parameter was not sent, was empty/null, or malformed."),
    RejectReason.EXPIRED_REQUEST: (400, 700003, "Timestamp for this request is outside of the recvWindow."),
    RejectReason.TIMESTAMP_AHEAD: (400, 700003, "Timestamp for this request is outside of the recvWindow."),
    RejectReason.RATE_LIMITED: (429, 429, "Too Many Requests"),
    RejectReason.BAD_KEY: (400, 10072, "Api key info invalid"),
}  # fmt: skip
_FUTURES: Final = frozenset({"/api/v1/contract/detail", "/api/v1/private/position/open_positions"})
_OVERSOLD: Final = (400, 30005, "Oversold")
_CLIENT_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,32}", re.ASCII)
_ID_PREFIX: Final = "C02__"
_TYPES: Final = {
    "LIMIT": "GTC",
    "MARKET": "IOC",
    "LIMIT_MAKER": "GTC",
    "IMMEDIATE_OR_CANCEL": "IOC",
    "FILL_OR_KILL": "FOK",
}
_BY_FORCE: Final = {"IOC": "IMMEDIATE_OR_CANCEL", "FOK": "FILL_OR_KILL"}


class MexcFace(BinanceLike):
    """MEXC spot as ``api.mexc.com`` serves it.

    Create answers are acknowledgements. Stop parameters are not understood: such an order goes out at once, which is
    why no adapter may send one. Of futures there are neither markets nor positions.
    """

    name: ClassVar[str] = "mexc"
    hosts: ClassVar[tuple[str, ...]] = ("api.mexc.com",)
    prefix: ClassVar[str] = "/api/v3"
    key_header: ClassVar[str] = "x-mexc-apikey"
    refusals: ClassVar[Refusals] = _REFUSALS
    bad_signature: ClassVar[tuple[int, int, str]] = (400, 700002, "Signature for this request is not valid.")

    def read(self, request: WireRequest) -> Job:
        if request.path in _FUTURES:
            return Job(act=lambda _now_ms, _strikes: Answer.of({"success": True, "code": 0, "data": []}))
        return super().read(request)

    def public_routes(self) -> dict[str, Route]:
        return {
            "GET /ping": Route(None, lambda *_: {}),
            "GET /time": Route(None, lambda _params, now_ms, _strikes: {"serverTime": now_ms + self.venue.skew_ms}),
            "GET /exchangeInfo": Route(None, self._exchange_info),
            **self.price_routes(("GET /ticker/price", "GET /ticker/bookTicker", "GET /ticker/24hr")),
        }

    def private_routes(self) -> dict[str, Route]:
        look = Operation.LOOK_UP
        return {
            "POST /order": Route(Operation.CREATE, self._create),
            "DELETE /order": Route(Operation.CANCEL, self._cancel),
            "GET /order": Route(look, self._order, Reading.ORDER),
            "GET /openOrders": Route(look, self.open_orders, Reading.OPEN_ORDERS),
            "GET /allOrders": Route(look, self.all_orders, Reading.ORDER),
            "GET /myTrades": Route(look, self._my_trades, Reading.EXECUTIONS),
            "GET /account": Route(look, self._account, Reading.BALANCES),
        }

    # --- orders -----------------------------------------------------------------------------------

    def _create(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        request = self._new_order(params)
        try:
            order = self.venue.submit(request, now_ms, strikes)
        except VenueReject as reject:
            if reject.reason is RejectReason.INSUFFICIENT_FUNDS and request.side is Side.SELL:
                raise said(*_OVERSOLD) from None
            raise
        body = self.shown(order)
        stated = ("symbol", "orderId", "orderListId", "price", "origQty", "type", "side")
        return {**{name: body[name] for name in stated}, "transactTime": order.created_at_ms}

    def _cancel(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        return self.cancel(_own_id(params), now_ms, strikes)

    def _order(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        return self.order(_own_id(params), now_ms, strikes)

    def _my_trades(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """At most 100 at once."""
        limit = str(min(integer(params, "limit", 100), 100))
        return self.my_trades({**_own_id(params), "limit": limit}, now_ms, strikes)

    def _new_order(self, params: Mapping[str, str]) -> NewOrder:
        kind, market = params.get("type", ""), self.market(params)
        price, quantity = number(params, "price"), number(params, "quantity")
        quote, client_id = number(params, "quoteOrderQty"), params.get("newClientOrderId")
        if client_id is not None and not _CLIENT_ID.fullmatch(client_id):
            raise said(400, 700008, "Illegal characters found in parameter 'newClientOrderId'; legal range is "
                                    "'^[a-zA-Z0-9-_]{1,32}$'.")  # fmt: skip
        if quantity is None and quote is not None:
            quantity = market.instrument.floor_quantity(quote / self.venue.prices[market.symbol])
        is_market = kind == "MARKET"
        if kind not in _TYPES or quantity is None or (price is None and not is_market):
            raise VenueReject(RejectReason.BAD_REQUEST)
        return NewOrder(
            symbol=market.symbol,
            side=Side.BUY if params.get("side") == "BUY" else Side.SELL,
            quantity=quantity,
            type="market" if is_market else "limit",
            limit_price=None if is_market else price,
            client_order_id=client_id,
            time_in_force="GTC" if is_market else _TYPES[kind],
            post_only=kind == "LIMIT_MAKER",
            signed_at_ms=integer(params, "timestamp"),
            window_ms=window(params),
        )

    # --- answers ----------------------------------------------------------------------------------

    def shown(self, order: SimOrder) -> dict[str, Any]:
        return {
            "symbol": order.symbol.replace("/", ""),
            "orderId": _ID_PREFIX + order.venue_order_id,
            "orderListId": -1,
            "clientOrderId": order.client_order_id or "",
            "price": price_or_zero(order.limit_price, "0"),
            "origQty": plain(order.quantity),
            "executedQty": plain(order.filled_quantity),
            "cummulativeQuoteQty": plain(order.cost),
            "status": _status(order),
            "timeInForce": None,
            "type": _type(order.request),
            "side": order.side.value.upper(),
            "stopPrice": None,
            "icebergQty": None,
            "time": order.created_at_ms,
            "updateTime": order.updated_at_ms,
            "isWorking": True,
            "origQuoteOrderQty": plain(order.quantity * (order.limit_price or Decimal(0))),
        }

    def shown_fill(self, order: SimOrder, fill: SimFill) -> dict[str, Any]:
        return {
            "symbol": order.symbol.replace("/", ""),
            "id": fill.trade_id,
            "orderId": _ID_PREFIX + order.venue_order_id,
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
            "isSelfTrade": False,
            "clientOrderId": order.client_order_id,
        }

    def shown_quote(self, key: str, quote: Quote) -> dict[str, Any]:
        best = {"bidPrice": quote.bid, "askPrice": quote.ask, "lastPrice": quote.last, "price": quote.last}
        sizes = {"bidQty": "1000" if quote.bid else "0", "askQty": "1000" if quote.ask else "0"}
        shown = {name: price_or_zero(price, "0") for name, price in best.items()}
        return {"symbol": key, **shown, **sizes, "closeTime": self.venue.now_ms}

    def _account(self, _params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        balances = self.venue.fetch_balances(now_ms, strikes=strikes, lag_max_ms=self.lag_max_ms)
        rows = [
            {"asset": currency, "free": plain(balance.free), "locked": plain(balance.used)}
            for currency, balance in sorted(balances.items())
        ]
        return {"makerCommission": None, "takerCommission": None, "canTrade": True, "canWithdraw": True,
                "canDeposit": True, "updateTime": None, "accountType": "SPOT", "balances": rows,
                "permissions": ["SPOT"]}  # fmt: skip

    def _exchange_info(self, _params: Mapping[str, str], now_ms: int, _strikes: Strikes) -> Any:
        symbols = [_symbol_info(market) for market in self.listed(is_linear=False).values()]
        return {"timezone": "CST", "serverTime": now_ms, "rateLimits": [], "exchangeFilters": [], "symbols": symbols}


def _own_id(params: Mapping[str, str]) -> dict[str, str]:
    changed = {name: params[name].removeprefix(_ID_PREFIX) for name in ("orderId",) if name in params}
    return {**params, **changed}


def _status(order: SimOrder) -> str:
    if order.is_open:
        return "PARTIALLY_FILLED" if order.filled_quantity else "NEW"
    if order.status is OrderStatus.CLOSED:
        return "FILLED"
    return "PARTIALLY_CANCELED" if order.filled_quantity else "CANCELED"


def _type(request: NewOrder) -> str:
    if request.post_only:
        return "LIMIT_MAKER"
    return _BY_FORCE.get(request.time_in_force, request.type.upper())


def _digits(step: Decimal | None, default: int) -> int:
    exponent = step.normalize().as_tuple().exponent if step is not None else -default
    return max(0, -exponent) if isinstance(exponent, int) else default


def _symbol_info(market: Market) -> dict[str, Any]:
    instrument = market.instrument
    quantity_digits, price_digits = _digits(instrument.step_size, 6), _digits(instrument.tick_size, 2)
    return {
        "symbol": market_id(market),
        "status": "1",
        "baseAsset": instrument.base,
        "baseAssetPrecision": quantity_digits,
        "quoteAsset": instrument.quote,
        "quotePrecision": price_digits,
        "quoteAssetPrecision": price_digits,
        "baseCommissionPrecision": quantity_digits,
        "quoteCommissionPrecision": price_digits,
        "orderTypes": ["LIMIT", "MARKET", "LIMIT_MAKER"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "quoteAmountPrecision": plain(instrument.min_notional) if instrument.min_notional else "1",
        "baseSizePrecision": plain(instrument.min_quantity) if instrument.min_quantity else "0",
        "permissions": ["SPOT"],
        "filters": [],
        "maxQuoteAmount": "2000000",
        "makerCommission": plain(market.maker_fee),
        "takerCommission": plain(market.taker_fee),
        "quoteAmountPrecisionMarket": plain(instrument.min_notional) if instrument.min_notional else "1",
        "maxQuoteAmountMarket": "100000",
        "fullName": instrument.base,
        "tradeSideType": 1,
    }
