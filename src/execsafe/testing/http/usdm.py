"""The wire format of Binance USD-M futures: requests, answers and error codes as its REST API has them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar, Final

from execsafe.model.order import ZERO
from execsafe.model.outcome import Operation
from execsafe.model.position import Quote, VenuePosition
from execsafe.model.values import plain
from execsafe.model.venue import View
from execsafe.testing._orders import RejectReason, SimFill, SimOrder, VenueReject
from execsafe.testing.faults import Reading, Strikes
from execsafe.testing.http import _usdm_orders as orders
from execsafe.testing.http._binance_like import BinanceLike, Refusals, Route, not_found, price_or_zero, said
from execsafe.testing.http._face import Reference, integer, market_id, number
from execsafe.testing.venue import Market

_REFUSALS: Final[Refusals] = {
    RejectReason.INSUFFICIENT_FUNDS: (400, -2019, "Margin is insufficient."),
    RejectReason.LOT_SIZE: (400, -1111, "Precision is over the maximum defined for this asset."),
    RejectReason.PRICE_FILTER: (400, -4014, "Price not increased by tick size."),
    RejectReason.NOTIONAL: (
        400, -4164, "Order's notional must be no smaller than 5.0 (unless you choose reduce only)"),
    RejectReason.POST_ONLY: (
        400, -5022, "Due to the order could not be executed as maker, the Post Only order will be rejected."),
    RejectReason.REDUCE_ONLY: (400, -2022, "ReduceOnly Order is rejected."),
    RejectReason.DUPLICATE_ID: (400, -4116, "ClientOrderId is duplicated."),
    RejectReason.UNKNOWN_ORDER: (400, -2011, "Unknown order sent."),
    RejectReason.BAD_SYMBOL: (400, -1121, "Invalid symbol."),
    RejectReason.BAD_REQUEST: (400, -1102, "Mandatory parameter was not sent, was empty/null, or malformed."),
    RejectReason.EXPIRED_REQUEST: (400, -1021, "Timestamp for this request is outside of the recvWindow."),
    RejectReason.TIMESTAMP_AHEAD: (
        400, -1021, "Timestamp for this request was 1000ms ahead of the server's time."),
    RejectReason.RATE_LIMITED: (
        429, -1003, "Too many requests; current limit of IP is 2400 requests per minute."),
    RejectReason.BAD_KEY: (401, -2015, "Invalid API-key, IP, or permissions for action."),
    RejectReason.STOP_WOULD_TRIGGER: (400, -2021, "Order would immediately trigger."),
    RejectReason.MARGIN_MODE_UNCHANGED: (400, -4046, "No need to change margin type."),
    RejectReason.MARGIN_MODE_LOCKED: (400, -4048, "Margin type cannot be changed if there exists position."),
}  # fmt: skip
_NONE: Final = "0"  # the id of no order
_MODES: Final = {"ISOLATED": "isolated", "CROSSED": "cross"}


class _Sought(Reference):
    symbol: str | None


class UsdmFace(BinanceLike):
    """Binance USD-M futures as ``fapi.binance.com`` serves them, in one-way mode.

    Conditional orders are in a namespace of their own, see :mod:`execsafe.testing.http._usdm_orders`.
    """

    name: ClassVar[str] = "binanceusdm"
    hosts: ClassVar[tuple[str, ...]] = ("fapi.binance.com",)
    prefix: ClassVar[str] = "/fapi"
    is_linear: ClassVar[bool] = True
    refusals: ClassVar[Refusals] = _REFUSALS

    def public_routes(self) -> dict[str, Route]:
        prices = self.price_routes(("GET /ticker/price", "GET /ticker/bookTicker", "GET /ticker/24hr"))
        routes = {
            "GET /ping": Route(None, lambda *_: {}),
            "GET /time": Route(None, lambda _params, now_ms, _strikes: {"serverTime": now_ms + self.venue.skew_ms}),
            "GET /exchangeInfo": Route(None, self._exchange_info),
            **prices,
        }
        versioned = {name.replace(" /", " /v1/"): route for name, route in routes.items()}
        return {**versioned, "GET /v2/ticker/price": prices["GET /ticker/price"]}

    def private_routes(self) -> dict[str, Route]:
        look, positions = Operation.LOOK_UP, Route(Operation.LOOK_UP, self._position_risk, Reading.POSITIONS)
        account = Route(look, self._account, Reading.BALANCES)
        balance = Route(look, self._balance, Reading.BALANCES)
        return {
            "POST /v1/order": Route(Operation.CREATE, self._create),
            "PUT /v1/order": Route(Operation.CREATE, self._modify),
            "DELETE /v1/order": Route(Operation.CANCEL, self._cancel),
            "GET /v1/order": Route(look, self._order, Reading.ORDER),
            "GET /v1/openOrders": Route(look, self.open_orders, Reading.OPEN_ORDERS),
            "GET /v1/allOrders": Route(look, self._all_orders, Reading.ORDER),
            "GET /v1/userTrades": Route(look, self._user_trades, Reading.EXECUTIONS),
            "POST /v1/algoOrder": Route(Operation.CREATE, self._create_algo),
            "DELETE /v1/algoOrder": Route(Operation.CANCEL, self._cancel_algo),
            "GET /v1/algoOrder": Route(look, self._algo_order, Reading.ORDER),
            "GET /v1/openAlgoOrders": Route(look, self._open_algo_orders, Reading.OPEN_ORDERS),
            "GET /v1/allAlgoOrders": Route(look, self._all_algo_orders, Reading.ORDER),
            "POST /v1/leverage": Route(Operation.SET_LEVERAGE, self._leverage),
            "POST /v1/marginType": Route(Operation.SET_MARGIN_MODE, self._margin_type),
            "GET /v1/leverageBracket": Route(None, self._brackets),
            "GET /v2/positionRisk": positions,
            "GET /v3/positionRisk": positions,
            "GET /v2/account": account,
            "GET /v3/account": account,
            "GET /v2/balance": balance,
            "GET /v3/balance": balance,
        }

    def shown(self, order: SimOrder) -> dict[str, Any]:
        return orders.shown(order)

    def shown_fill(self, order: SimOrder, fill: SimFill) -> dict[str, Any]:
        return orders.shown_fill(order, fill)

    def shown_quote(self, key: str, quote: Quote) -> dict[str, Any]:
        best = {"bidPrice": quote.bid, "askPrice": quote.ask, "lastPrice": quote.last, "price": quote.last}
        sizes = {"bidQty": "1000" if quote.bid else "0", "askQty": "1000" if quote.ask else "0"}
        shown = {name: price_or_zero(price) for name, price in best.items()}
        return {"symbol": key, **shown, **sizes, "time": self.venue.now_ms}

    def _exchange_info(self, _params: Mapping[str, str], now_ms: int, _strikes: Strikes) -> Any:
        symbols = [orders.symbol_info(market) for market in self.listed(is_linear=True).values()]
        return {"timezone": "UTC", "serverTime": now_ms, "rateLimits": [], "exchangeFilters": [],
                "assets": [], "symbols": symbols}  # fmt: skip

    # --- plain orders -----------------------------------------------------------------------------

    def _create(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        request = orders.new_order(params, self.market(params), algo=False)
        return orders.shown(self.venue.submit(request, now_ms, strikes))

    def _cancel(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        found = self._plain_by(params, self.venue.look(View.CLIENT_ID, now_ms, **self._sought(params)))
        target = found.venue_order_id if found is not None else _NONE
        return orders.shown(self.venue.cancel(now_ms, venue_order_id=target, strikes=strikes))

    def _modify(self, params: Mapping[str, str], now_ms: int, _strikes: Strikes) -> Any:
        found = self._plain_by(params, self.venue.look(View.CLIENT_ID, now_ms, **self._sought(params)))
        target = found.venue_order_id if found is not None else _NONE
        quantity, price = number(params, "quantity"), number(params, "price")
        return orders.shown(self.venue.amend(now_ms, venue_order_id=target, quantity=quantity, limit_price=price))

    def _order(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        found = self._plain_by(params, self.look(View.CLIENT_ID, now_ms, strikes, **self._sought(params)))
        if found is None:
            raise not_found()
        return orders.shown(found)

    def _sought(self, params: Mapping[str, str]) -> _Sought:
        by_id = orders.venue_id(params.get("orderId"), algo=False)
        mine = None if by_id else params.get("origClientOrderId") or "?"
        return {"symbol": self.market(params).symbol, "venue_order_id": by_id, "client_order_id": mine}

    @staticmethod
    def _plain_by(params: Mapping[str, str], found: list[SimOrder]) -> SimOrder | None:
        """The plain order that a request means: its client id is not that of the conditional order behind it."""
        order = found[-1] if found and orders.is_plain(found[-1]) else None
        if order is None or (orders.is_algo(order) and "orderId" not in params):
            return None
        return order if params.get("orderId") in {None, str(orders.order_id(order))} else None

    def _all_orders(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        rows = self.all_orders({**params, "orderId": ""}, now_ms, strikes)
        return [row for row in rows if row["orderId"] >= integer(params, "orderId")]

    def _user_trades(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        by_id = orders.venue_id(params.get("orderId"), algo=False)
        return self.my_trades({**params, "orderId": by_id} if by_id else params, now_ms, strikes)

    def _is_listed(self, order: SimOrder) -> bool:
        return super()._is_listed(order) and orders.is_plain(order)

    # --- conditional orders -----------------------------------------------------------------------

    def _create_algo(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        request = orders.new_order(params, self.market(params), algo=True)
        return orders.shown_algo(self.venue.submit(request, now_ms, strikes))

    def _cancel_algo(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        found = self.venue.look(View.CLIENT_ID, now_ms, **self._sought_algo(params))
        is_over = not found or not orders.is_algo(found[-1]) or found[-1].triggered  # then another order trades
        order = self.venue.cancel(
            now_ms, venue_order_id=_NONE if is_over else found[-1].venue_order_id, strikes=strikes
        )
        return {"algoId": orders.algo_id(order), "clientAlgoId": order.client_order_id, "code": "200", "msg": "success"}

    def _algo_order(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        found = self.look(View.CLIENT_ID, now_ms, strikes, **self._sought_algo(params))
        if not found or not orders.is_algo(found[-1]):
            raise not_found()
        return orders.shown_algo(found[-1])

    def _sought_algo(self, params: Mapping[str, str]) -> _Sought:
        by_id = orders.venue_id(params.get("algoId"), algo=True)
        symbol = self.market(params).symbol if "symbol" in params else None
        mine = None if by_id else params.get("clientAlgoId") or "?"
        return {"symbol": symbol, "venue_order_id": by_id, "client_order_id": mine}

    def _open_algo_orders(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        symbol = self.market(params).symbol if "symbol" in params else None
        shown = self.look(View.OPEN_ORDERS, now_ms, strikes, symbol=symbol)
        return [orders.shown_algo(order) for order in shown if orders.is_algo(order) and not order.triggered]

    def _all_algo_orders(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        symbol, since_ms = self.market(params).symbol, integer(params, "startTime")
        found = self.look(View.OPEN_ORDERS, now_ms, strikes, symbol=symbol)
        known = {order.venue_order_id: order for order in self.venue.look(View.CLOSED_ORDERS, now_ms, symbol=symbol)}
        known.update((order.venue_order_id, order) for order in found)
        return [
            orders.shown_algo(order)
            for order in sorted(known.values(), key=lambda order: int(order.venue_order_id))
            if orders.is_algo(order) and order.created_at_ms >= since_ms
        ][-integer(params, "limit", 500) :]

    # --- account ----------------------------------------------------------------------------------

    def _position_risk(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Positions, and rows of zero for symbols with nothing but open orders."""
        held = self.venue.fetch_positions(now_ms, strikes=strikes, lag_max_ms=self.lag_max_ms)
        by_symbol = {position.symbol: position for position in held}
        rows = []
        for key, market in self.listed(is_linear=True).items():
            position = by_symbol.get(market.symbol)
            has_orders = bool(self.venue.open_orders(market.symbol))
            if params.get("symbol", key) == key and (position is not None or has_orders):
                rows.append(self._risk(key, market, position, now_ms))
        return rows

    def _risk(self, key: str, market: Market, position: VenuePosition | None, now_ms: int) -> dict[str, Any]:
        price = self.venue.prices[market.symbol]
        signed, entry, liquidation = ZERO, ZERO, ZERO
        if position is not None:
            signed = position.quantity * position.side.sign
            entry, liquidation = position.entry_price or ZERO, position.liquidation_price or ZERO
            price = position.mark_price or price
        notional = market.instrument.notional(signed, price)
        margin = abs(notional) / self.venue.account.leverage(market.symbol)
        isolated = self.venue.account.margin_mode(market.symbol) == "isolated"
        return {
            "symbol": key, "positionSide": "BOTH", "positionAmt": plain(signed), "entryPrice": plain(entry),
            "breakEvenPrice": plain(entry), "markPrice": plain(price),
            "unRealizedProfit": plain(market.instrument.notional(signed, price - entry)),
            "liquidationPrice": plain(liquidation), "isolatedMargin": plain(margin) if isolated else "0",
            "notional": plain(notional), "marginAsset": market.instrument.quote, "isolatedWallet": "0",
            "initialMargin": plain(margin), "maintMargin": plain(abs(notional) * market.maintenance_ratio),
            "positionInitialMargin": plain(margin), "openOrderInitialMargin": "0", "adl": "0", "bidNotional": "0",
            "askNotional": "0", "updateTime": now_ms,
        }  # fmt: skip

    def _assets(self, now_ms: int, strikes: Strikes) -> list[dict[str, Any]]:
        balances = self.venue.fetch_balances(now_ms, strikes=strikes, lag_max_ms=self.lag_max_ms)
        settled = {market.instrument.quote for market in self.listed(is_linear=True).values()}
        return [
            {
                "asset": currency, "walletBalance": plain(balance.total), "balance": plain(balance.total),
                "unrealizedProfit": "0", "marginBalance": plain(balance.total), "maintMargin": "0",
                "initialMargin": plain(balance.used), "positionInitialMargin": plain(balance.used),
                "openOrderInitialMargin": "0", "crossWalletBalance": plain(balance.total), "crossUnPnl": "0",
                "availableBalance": plain(balance.free), "maxWithdrawAmount": plain(balance.free),
                "marginAvailable": True, "updateTime": now_ms,
            }
            for currency, balance in sorted(balances.items())
            if currency in settled
        ]  # fmt: skip

    def _account(self, _params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        return {"feeTier": 0, "canTrade": True, "assets": self._assets(now_ms, strikes), "positions": []}

    def _balance(self, _params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        return self._assets(now_ms, strikes)

    # --- settings ---------------------------------------------------------------------------------

    def _leverage(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        """Set it; the same again is no error here."""
        symbol, leverage = self.market(params).symbol, number(params, "leverage") or Decimal(0)
        try:
            self.venue.set_leverage(symbol, leverage, now_ms, strikes)
        except VenueReject as reject:
            if reject.reason is RejectReason.BAD_REQUEST:
                raise said(400, -4028, f"Leverage {plain(leverage)} is not valid") from None
            if reject.reason is not RejectReason.LEVERAGE_UNCHANGED:
                raise
        return {"symbol": params["symbol"], "leverage": int(leverage), "maxNotionalValue": "1000000"}

    def _margin_type(self, params: Mapping[str, str], now_ms: int, strikes: Strikes) -> Any:
        mode = _MODES.get(params.get("marginType", ""), "")
        self.venue.set_margin_mode(self.market(params).symbol, mode, now_ms, strikes)
        return {"code": 200, "msg": "success"}

    def _brackets(self, _params: Mapping[str, str], _now_ms: int, _strikes: Strikes) -> Any:
        return [
            {"symbol": market_id(market), "brackets": [
                {"bracket": 1, "initialLeverage": int(market.max_leverage), "notionalCap": 50_000_000,
                 "notionalFloor": 0, "maintMarginRatio": float(market.maintenance_ratio), "cum": 0.0}]}
            for market in self.listed(is_linear=True).values()
        ]  # fmt: skip
