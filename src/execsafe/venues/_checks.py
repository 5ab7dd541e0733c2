"""What must not be asked of a venue, because its client would do something else. Decided before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from execsafe.errors import InvalidOrder, UnsupportedByVenue
from execsafe.model.instrument import is_contract
from execsafe.model.intent import STOP_PRICES, TRAILING_PARAMS, Intent
from execsafe.model.order import OrderRequest, Side
from execsafe.model.values import plain, shorten
from execsafe.model.venue import Expiry, VenueProfile
from execsafe.venues import _parsing, _routing
from execsafe.venues._details import Details, Stops
from execsafe.venues._shapes import markets_of, options_of
from execsafe.venues.profiles import PROFILES, family_of

_IDS: Final = frozenset(
    {
        "clientOrderId",
        "newClientOrderId",
        "clientAlgoId",
        "newClientStrategyId",
        "orderLinkId",
        "clOrdId",
        "algoClOrdId",
        "externalOid",
        "clientOid",
        "text",
        "cl_ord_id",
        "userref",
        "client_order_id",
        "client-order-id",
        "client_id",
        "label",
        "origClientOrderId",
    }
)
_QUANTITIES: Final = frozenset(
    {
        "cost",
        "quoteOrderQty",
        "quoteAmount",
        "quoteSize",
        "quote_size",
        "base_size",
        "marketUnit",
        "tgtCcy",
        "createMarketBuyOrderRequiresPrice",
        "closePosition",
        "closeFraction",
        "quantity",
        "qty",
        "sz",
        "size",
        "amount",
        "volume",
        "vol",
        "funds",
        "notional",
        "order_configuration",
        "grouping",
        "side",
        "symbol",
        "price",
        "px",
        "limitPrice",
        "type",
        "ordType",
        "orderType",
        "ordertype",
    }
)
_ELSEWHERE: Final = frozenset(
    {
        "test",
        "validate",
        "method",
        "tradingStopEndpoint",
        "defaultType",
        "defaultMarginMode",
        "subType",
        "stock",
        # another account
        "vaultAddress",
        "subAccountAddress",
        "account",
        "account-id",
        "account_id",
        "accountId",
        "accountMode",
        "accountType",
        "tradeType",
        # another market, by the raw names that venues have for it, or another list of orders
        "settle",
        "category",
        "productType",
        "marginCoin",
        "instType",
        "instId",
        "instrument_name",
        "currency_pair",
        "contract",
        "contract_code",
        "market",
        "pair",
        "product_id",
        "orderFilter",
    }
)
_RESENDING: Final = frozenset(
    {"maxRetriesOnFailure", "defaultMaxRetriesOnFailure", "maxRetriesOnFailureDelay", "callerMethodName"}
)
_DEADLINES: Final = frozenset({"timestamp", "recvWindow", "deadline", "valid_until", "expTime", "expiresAfter"})
_ATTACHED: Final = frozenset({"stopLoss", "takeProfit", "attachAlgoOrds"})
_RAW_STOPS: Final = frozenset(
    {"stopPrice", "triggerPx", "slTriggerPx", "tpTriggerPx", "trigger_price", "stop_price", "stop-price"}
    | {"sl_trigger_price", "tp_trigger_price", "price2", "stop", "trigger"}
)
# By this option ccxt says that the amount of a market buy is, or can be, money; its value decides only when.
_COST_OPTION: Final = "createMarketBuyOrderRequiresPrice"
# Venues without a row and without the option, whose market buys are by cost all the same.
_BUYS_BY_COST: Final = frozenset(
    {"bigone", "bitrue", "bittrade", "btse", "coincheck", "coinmate", "indodax", "luno", "mercado", "toobit", "zebpay"}
)
# ccxt's unified types, and raw ones that are plain limit orders.
_TYPES: Final = frozenset({"limit", "market", "limit_maker", "post_only", "ioc", "fok"})
_REASONS: Final = (
    (_IDS, "client order ids are derived from the intent key, so that the order can be found again"),
    (
        _routing.with_defaults(_QUANTITIES),
        "it would change side, price or quantity, or the unit of the quantity, behind the journal's back",
    ),
    (
        _routing.ACCOUNTS,
        "it would send the order to another account than look-ups read; set it in the exchange's options instead",
    ),
    (_routing.with_defaults(_ELSEWHERE), "it would send the order where look-ups do not see it"),
    (_RESENDING, "an order is sent once; it is sent again only after proof"),
    (_DEADLINES, "the request's deadline is journalled and set by the adapter"),
    (_RAW_STOPS, "raw stop parameters are not understood here; use triggerPrice, stopLossPrice or takeProfitPrice"),
)


def is_market(request: OrderRequest) -> bool:
    """Whether it is to be filled at once, at whatever price."""
    return request.type.lower() == "market"


def is_stop(request: OrderRequest) -> bool:
    """Whether it waits for a price."""
    return request.trigger_price is not None or any(name in request.params.thaw() for name in STOP_PRICES)


def check(intent: Intent, profile: VenueProfile, details: Details | None, exchange: object) -> None:
    """Raise UnsupportedByVenue, with the reason, for what this venue or its client would misunderstand.

    *details* is None for a venue that has no row: there, ccxt's own statement of features decides about stops.
    """
    params = intent.params.thaw()
    for names, reason in _REASONS:
        for name in sorted(names & set(params)):
            raise _refused(intent, f"params[{name!r}] is refused: {reason}")
    if params.get("marginMode") is not None and not is_contract(intent.symbol) and family_of(profile.name) != "okx":
        raise _refused(intent, "params['marginMode'] on spot sends the order where look-ups do not see it")
    methods = [lookup.method for lookup in profile.lookups]
    apart = _routing.option_apart(exchange, intent.symbol, details or Details(), methods)
    if apart is not None:
        raise _refused(intent, f"the exchange's {apart} parts orders from their look-ups: unset it")
    if details is not None and details.has_no_expiry_on_contracts and is_contract(intent.symbol):
        _check_expiry(intent, profile)
    _check_market(intent, profile, details or Details(), exchange)
    _check_stops(intent, params, profile, details, exchange)


def _refused(intent: Intent, text: str) -> UnsupportedByVenue:
    return UnsupportedByVenue(f"{intent.symbol}: {text}", intent_key=intent.key)


def _check_expiry(intent: Intent, profile: VenueProfile) -> None:
    if profile.expiry is not Expiry.NONE:
        raise _refused(
            intent,
            f"{profile.name} enforces no expiry on contracts: a lost order could never be proven absent. Accept that "
            "with profile=attrs.evolve(profile_for(...), expiry='none')",
        )


def _check_market(intent: Intent, profile: VenueProfile, details: Details, exchange: object) -> None:
    if family_of(profile.name) in PROFILES and intent.type.lower() not in _TYPES:
        raise _refused(intent, f"orders of type {shorten(intent.type)} may be filed where look-ups do not see them")
    if intent.type.lower() != "market":
        return
    spot = not is_contract(intent.symbol)
    options = options_of(exchange)
    if spot and intent.side is Side.BUY:
        if details.buys_by_cost or (family_of(profile.name) not in PROFILES and _may_buy_by_cost(exchange, options)):
            raise _refused(
                intent,
                f"a spot market buy on {_name_of(exchange, profile)} takes the amount of quote currency to spend, not "
                "a quantity: use a limit order (with timeInForce 'IOC')",
            )
        if family_of(profile.name) == "bybit" and options.get("enableUnifiedAccount") is False:
            raise _refused(intent, "a classic bybit account takes a spot market buy in quote currency")
    if details.price_for_market and intent.limit_price is None:
        raise _refused(intent, f"{profile.name} needs a price for a market order, to bound its slippage")
    largest = _parsing.number(_parsing.field(markets_of(exchange).get(intent.symbol) or {}, "limits.market.max"))
    if largest and intent.quantity > largest:
        raise InvalidOrder(
            f"{intent.symbol}: quantity {plain(intent.quantity)} is above the maximum of a market order, "
            f"{plain(largest)}",
            intent_key=intent.key,
        )


def _may_buy_by_cost(exchange: object, options: Mapping[str, Any]) -> bool:
    """Whether ccxt might send the amount of a spot market buy as money to spend, at a venue without a row."""
    return _COST_OPTION in options or getattr(exchange, "id", None) in _BUYS_BY_COST


def _name_of(exchange: object, profile: VenueProfile) -> str:
    """The exchange's own name, for messages."""
    return str(getattr(exchange, "id", None) or profile.name)


def _check_stops(
    intent: Intent, params: Mapping[str, Any], profile: VenueProfile, details: Details | None, exchange: object
) -> None:
    if _ATTACHED & set(params) and not profile.attached_stops:
        raise _refused(intent, f"{profile.name} would drop an attached stop: place it as an order of its own")
    if not intent.is_trigger:
        return
    asked = {name for name in STOP_PRICES if name in params}
    if intent.trigger_price is not None:
        asked.add(stop_name(intent.symbol, details))
    if not profile.stop_orders:
        raise _refused(intent, f"{profile.name} would lose a stop order, or send it at once: {profile.notes}")
    if len(asked) > 1:
        raise _refused(intent, "two stop prices in one order: ccxt sends them where our client order id is lost")
    if TRAILING_PARAMS & set(params) and (details is None or not details.trailing):
        raise _refused(intent, f"{profile.name} takes trailing stops without our client order id")
    understood = _understood(intent.symbol, details, exchange, asked)
    for name in sorted(asked - understood):
        raise _refused(intent, f"{profile.name} does not understand {name} here: it would send a plain order at once")


def stops_of(symbol: str, details: Details | None) -> Stops:
    """The venue's stop row for this kind of market."""
    found = details or Details()
    return found.contract_stops if is_contract(symbol) else found.spot_stops


def stop_name(symbol: str, details: Details | None) -> str:
    """The parameter under which a stop's trigger price goes out."""
    return stops_of(symbol, details).stop_as


def _understood(symbol: str, details: Details | None, exchange: object, asked: set[str]) -> frozenset[str]:
    if details is not None:
        return stops_of(symbol, details).params
    feature_value = getattr(exchange, "feature_value", None)
    if not callable(feature_value):
        return frozenset(asked)  # not ccxt: the profile's word counts
    try:
        return frozenset(name for name in asked if feature_value(symbol, "createOrder", name) is True)
    except Exception:  # noqa: BLE001 - an unknown market or a partial object: nothing is known to be understood
        return frozenset()
