"""What is refused before anything is sent, because the venue or its client would do something else."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import attrs
import ccxt.async_support as ccxt
import pytest

from execsafe.errors import InvalidInput, InvalidOrder, UnsupportedByVenue
from execsafe.model.intent import Intent
from execsafe.model.venue import Expiry
from execsafe.ports import OrderRef
from execsafe.venues._shapes import AnswerUnusable
from execsafe.venues.ccxt_adapter import CcxtAdapter
from execsafe.venues.profiles import PROFILES, UNKNOWN, family_of
from venues.offline import CONTRACT_ONLY, SPOT, SWAP, VENUES, Wire, make

A_QUANTITY = frozenset({"quantity", "qty", "amount", "Amount", "size", "sz", "major", "orderQty", "volume"})
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """ccxt's asynchronous clients need a running asyncio loop."""
    return "asyncio"


def intent(symbol: str = SPOT, **changes: Any) -> Intent:
    values = {"key": "k", "symbol": symbol, "side": "sell", "quantity": "2", "limit_price": "50000"}
    return Intent(**{**values, **changes})


def adapter(name: str, **profile: Any) -> CcxtAdapter:
    return CcxtAdapter(make(name), profile=attrs.evolve(PROFILES[name], **profile) if profile else None)


REFUSED_PARAMS = [
    "clientOrderId", "newClientOrderId", "orderLinkId", "clOrdId", "algoClOrdId", "text", "cl_ord_id", "label",
    "client_order_id", "userref", "quoteOrderQty", "cost", "closePosition", "createMarketBuyOrderRequiresPrice",
    "tgtCcy", "marketUnit", "sz", "qty", "quantity", "px", "side", "symbol", "type", "portfolioMargin", "test",
    "maxRetriesOnFailure", "callerMethodName", "recvWindow", "timestamp", "deadline", "valid_until", "stopPrice",
    "slTriggerPx", "unifiedAccount", "defaultUnifiedAccount", "account", "account-id", "settle", "category", "instId",
    "instrument_name", "currency_pair", "contract", "pair", "product_id", "contract_code", "defaultSubType",
    "defaultMarginMode", "orderFilter", "productType", "defaultCreateMarketBuyOrderRequiresPrice",
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_PARAMS)
async def test_parameters_that_would_undo_a_guarantee_are_refused_with_the_reason(name: str) -> None:
    """Ids, quantities, re-routing, retries and deadlines are the library's; the message says why."""
    with pytest.raises(UnsupportedByVenue, match=f"params\\['{name}'\\] is refused: \\w+"):
        adapter("binance").check(intent(params={name: 1}))


HTX_ACCOUNTS = {"status": "ok", "data": [{"id": 1, "type": "spot"}]}  # without which htx sends no order
RAW_MARKETS = {
    "symbol",
    "instId",
    "pair",
    "currency_pair",
    "contract",
    "product_id",
    "contract_code",
    "instrument_name",
}


@pytest.mark.parametrize(
    ("name", "symbol"), [(n, s) for n in VENUES for s in (SPOT, SWAP) if s in make(n).markets and n != "hyperliquid"]
)
async def test_no_venue_takes_another_market_from_the_parameters(name: str, symbol: str) -> None:
    """Under whatever raw name the venue's own request carries the market: as a parameter that name is refused."""
    exchange = make(name, options={"uta": False})
    venue, wire = CcxtAdapter(exchange), Wire(exchange, lambda _sent: HTX_ACCOUNTS)
    with contextlib.suppress(Exception):  # the answer is no order: here only the wire counts
        await exchange.create_order(symbol, "limit", "sell", 2, 50000, {})
    await exchange.close()
    market_id = exchange.market(symbol)["id"]
    carriers = {field for sent in wire.sent for field, value in sent.fields.items() if value == market_id}
    assert carriers
    assert carriers <= RAW_MARKETS
    for field in carriers:
        with pytest.raises(UnsupportedByVenue, match=f"'{field}'"):
            venue.check(intent(symbol, params={field: "ANOTHER"}))


async def test_a_symbol_that_the_client_takes_for_another_one_is_refused_by_name() -> None:
    """binance's client, told to trade swaps, makes a perpetual's order of a spot symbol; spot has no reduce-only."""
    exchange = make("binance", options={"defaultType": "swap"})
    venue = CcxtAdapter(exchange)
    venue._warm = True
    with pytest.raises(UnsupportedByVenue, match=f"takes this for {SWAP}.*use '{SWAP}'"):
        await venue.prepare(SPOT)
    with pytest.raises(UnsupportedByVenue, match="defaultType"):
        venue.prepared(SPOT)
    assert (await venue.prepare(SWAP)).symbol == SWAP


async def test_a_symbol_is_judged_by_the_options_as_they_are_now() -> None:
    """Users change them; what was prepared before is no longer what would be sent."""
    venue = adapter("binance")
    venue._warm = True
    assert venue.prepared(SPOT) is not None
    venue.exchange.options["defaultType"] = "swap"
    with pytest.raises(UnsupportedByVenue, match="takes this for"):
        venue.prepared(SPOT)


async def test_a_look_up_that_would_read_another_market_is_unreadable() -> None:
    """A process started again with other options must not prove a spot order absent from the contracts' orders."""
    venue = adapter("binance")
    venue.exchange.options["defaultType"] = "swap"
    wire = Wire(venue.exchange, lambda _sent: {"_error": 400, "body": {"code": -2013, "msg": "Order does not exist."}})
    ours = OrderRef(symbol=SPOT, client_order_id="ours", sent_at_ms=1)
    with pytest.raises(AnswerUnusable, match="takes BTC/USDT for"):
        await venue.look_up(venue.profile.lookups[0], ours)
    assert wire.sent == []


APART = [
    ("binance", {"defaultMarginMode": "cross"}, "options['defaultMarginMode']"),
    ("binance", {"marginMode": "isolated"}, "options['marginMode']"),
    ("binance", {"defaultSubType": "inverse"}, "options['defaultSubType']"),
    ("binance", {"fetchOrder": {"portfolioMargin": False}}, "options['fetchOrder']['portfolioMargin']"),
    ("mexc", {"defaultMarginMode": "isolated"}, "options['defaultMarginMode']"),
    ("mexc", {"defaultType": "margin"}, "options['defaultType']"),
    ("bitget", {"defaultMarginMode": "cross"}, "options['defaultMarginMode']"),
    ("kucoin", {"createOrder": {"marginMode": "cross"}}, "options['createOrder']['marginMode']"),
    ("kucoin", {"fetchOrder": {"uta": True}}, "options['fetchOrder']['uta']"),
]


@pytest.mark.parametrize(("name", "options", "named"), APART, ids=str)
async def test_options_that_part_orders_from_their_look_ups_are_refused_and_unreadable(
    name: str, options: dict[str, Any], named: str
) -> None:
    """Read when they count: before an order is sent, and before its absence is believed."""
    venue = adapter(name)
    venue.check(intent())
    wire = Wire(venue.exchange, lambda _sent: {"_error": 400, "body": {"code": -2013, "msg": "Order does not exist."}})
    venue.exchange.options.update(options)
    with pytest.raises(UnsupportedByVenue, match=re.escape(named)):
        venue.check(intent())
    if "createOrder" not in options:
        with pytest.raises(AnswerUnusable, match=re.escape(named)):
            await venue.look_up(venue.profile.lookups[0], OrderRef(symbol=SPOT, client_order_id="ours", sent_at_ms=1))
        assert wire.sent == []


async def test_a_margin_mode_of_contracts_is_no_such_option() -> None:
    """It says how a position is margined; the order is where it always was."""
    for name in ("binance", "bitget", "okx", "kucoin"):
        venue = adapter(name)
        venue.exchange.options.update({"defaultMarginMode": "isolated", "createOrder": {"marginMode": "isolated"}})
        venue.check(intent(SWAP))


ROUTES = [
    {name: value}
    for name, values in {
        "defaultType": ("margin", "future", "spot"),
        "defaultMarginMode": ("cross", "isolated"),
        "marginMode": ("cross", "isolated"),
        "defaultSubType": ("linear", "inverse"),
        "unifiedAccount": (True,),
        "portfolioMargin": (True,),
        "uta": (True,),
        "hf": (True,),
    }.items()
    for value in values
]


async def _places(name: str, options: dict[str, Any]) -> tuple[set[str], set[str]] | None:
    """Where the order went, and where it was looked for; None where the order is refused."""
    exchange = make(name, options={"uta": False, **options})
    venue, wire = CcxtAdapter(exchange), Wire(exchange, lambda sent: HTX_ACCOUNTS if "accounts" in sent.path else {})
    ours = OrderRef(symbol=SPOT, client_order_id=venue.client_order_id(intent(), 0), sent_at_ms=1)
    try:
        venue.check(intent())
        with contextlib.suppress(Exception):  # the answer is no order: here only the wire counts
            await exchange.create_order(SPOT, "limit", "sell", 2, 50000, {})
        created = {f"{sent.path} {sent.fields.get('account')}" for sent in wire.sent if sent.method == "POST"}
        wire.sent.clear()
        for lookup in venue.profile.lookups:
            with contextlib.suppress(Exception):
                await venue.look_up(lookup, ours)
    except UnsupportedByVenue:
        return None
    finally:
        await exchange.close()
    return created, {f"{sent.path} {sent.fields.get('account')}" for sent in wire.sent}


@pytest.mark.parametrize("name", sorted(set(VENUES) - CONTRACT_ONLY))
async def test_an_option_that_passes_moves_orders_and_look_ups_alike(name: str) -> None:
    """Over all options that name an account: both go elsewhere than without it, or none of them."""
    usual = await _places(name, {})
    assert usual is not None
    assert all(usual)
    for options in ROUTES:
        places = await _places(name, options)
        if places is not None and places[0]:  # else refused, by us or by the client itself
            assert (places[0] == usual[0]) is (places[1] == usual[1]), options


async def test_an_object_without_a_market_method_takes_symbols_for_themselves() -> None:
    """Not everything of ccxt's shape has one."""

    class Shape:
        id = "shape"

        def __init__(self) -> None:
            self.markets = {SPOT: {"symbol": "stated otherwise", "base": "BTC", "quote": "USDT"}}

        async def create_order(self, *_arguments: object) -> dict[str, Any]:
            return {}

    assert (await CcxtAdapter(Shape()).prepare(SPOT)).symbol == SPOT


async def test_other_parameters_pass() -> None:
    """What does not touch a guarantee is the caller's business."""
    adapter("binance").check(intent(params={"selfTradePrevention": "EXPIRE_MAKER", "icebergAmount": 1}))
    adapter("okx").check(intent(params={"marginMode": "isolated"}))
    adapter("bybit").check(intent(SWAP, params={"positionIdx": 1}))


async def test_a_spot_margin_order_would_not_be_found_by_the_look_ups() -> None:
    """binance files it in another account."""
    with pytest.raises(UnsupportedByVenue, match="look-ups do not see"):
        adapter("binance").check(intent(params={"marginMode": "cross"}))


@pytest.mark.parametrize("name", ["gate", "bitget", "coinbase", "htx"])
async def test_a_market_buy_by_cost_is_refused_and_a_sell_is_not(name: str) -> None:
    """There, a spot market buy's quantity would be money to spend."""
    with pytest.raises(UnsupportedByVenue, match="quote currency"):
        adapter(name).check(intent(side="buy", type="market", limit_price=None))
    adapter(name).check(intent(side="sell", type="market", limit_price=None))
    adapter(name).check(intent(side="buy"))


def _unlisted() -> list[str]:
    """ccxt's exchanges without a row that trade spot."""
    found = []
    for name in ccxt.exchanges:
        has = getattr(ccxt, name)().has
        if family_of(name) not in PROFILES and has.get("spot") is not False and has.get("createOrder"):
            found.append(name)
    return found


async def test_no_unlisted_venue_is_sent_a_market_buy_as_money_to_spend() -> None:
    """All of ccxt's other exchanges, whatever the option for it says: refused, or a quantity on the wire."""
    sent_as: dict[str, set[str]] = {}
    for name in _unlisted():
        for option in ({}, {"createMarketBuyOrderRequiresPrice": False}):
            exchange = make(name, options=option)
            for listed in exchange.markets.values():  # what some clients read of a market
                listed.update(numericId=1, uppercaseId="BTCUSDT")
                listed["info"].update(symbol_id="1", baseCurrency="1", quoteCurrency="2")
            venue, wire = CcxtAdapter(exchange), Wire(exchange, lambda _sent: {})
            buy = intent(side="buy", type="market", limit_price=None, quantity="0.0123")
            with contextlib.suppress(Exception):  # refused, or the answer is no order: here only the wire counts
                venue.check(buy)
                await exchange.create_order(SPOT, "market", "buy", 0.0123, None, {})
            names = {n for s in wire.sent for n, v in s.fields.items() if str(v) in {"0.0123", "0.01"}}
            sent_as.setdefault(name, set()).update(names)
            await exchange.close()
    assert sum(map(bool, sent_as.values())) > 20  # the wire is looked at
    money = {name: names for name, names in sent_as.items() if not names <= A_QUANTITY}
    assert money == {}


@pytest.mark.parametrize(("name", "option"), [("xt", None), ("lbank", False), ("digifinex", True), ("luno", None)])
async def test_a_market_buy_by_cost_on_an_unlisted_venue_says_what_to_do(name: str, option: bool | None) -> None:
    """Whichever value ccxt's option has; a sell, and a limit order, pass."""
    options = {} if option is None else {"createMarketBuyOrderRequiresPrice": option}
    venue = CcxtAdapter(make(name, options=options))
    with pytest.raises(UnsupportedByVenue, match=f"on {name} takes the amount of quote currency.*use a limit order"):
        venue.check(intent(side="buy", type="market", limit_price=None))
    venue.check(intent(side="sell", type="market", limit_price=None))
    venue.check(intent(side="buy"))


async def test_a_classic_bybit_account_buys_by_cost() -> None:
    """Known only once the account's mode has been read."""
    classic = adapter("bybit")
    market_buy = intent(side="buy", type="market", limit_price=None)
    classic.check(market_buy)
    classic.exchange.options["enableUnifiedAccount"] = False
    with pytest.raises(UnsupportedByVenue, match="classic"):
        classic.check(market_buy)


async def test_hyperliquid_needs_a_price_to_bound_a_market_orders_slippage() -> None:
    """ccxt computes the limit price from it."""
    with pytest.raises(UnsupportedByVenue, match="slippage"):
        adapter("hyperliquid").check(intent(SWAP, type="market", limit_price=None))
    adapter("hyperliquid").check(intent(SWAP, type="market"))


async def test_a_market_order_above_the_venues_market_maximum_is_refused() -> None:
    """binance states a maximum of its own for market orders."""
    venue = adapter("binance")
    venue.exchange.markets[SPOT]["limits"]["market"] = {"min": 0, "max": 1.5}
    with pytest.raises(InvalidOrder, match=r"maximum of a market order, 1\.5"):
        venue.check(intent(type="market", limit_price=None))
    venue.check(intent())


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("mexc", SPOT),
        ("mexc", SWAP),
        ("htx", SPOT),
        ("htx", SWAP),
        ("gate", SPOT),
        ("bitget", SPOT),
        ("bitget", SWAP),
        ("kucoin", SWAP),
    ],
)
@pytest.mark.parametrize("how", ["trigger_price", "triggerPrice", "stopLossPrice", "takeProfitPrice"])
async def test_a_stop_that_would_go_out_at_once_or_be_lost_is_refused(name: str, symbol: str, how: str) -> None:
    """A dropped stop parameter leaves a plain order; a stop without our id could not be found again."""
    stop = {"trigger_price": "40000"} if how == "trigger_price" else {"params": {how: 40000}}
    with pytest.raises(UnsupportedByVenue):
        adapter(name, expiry="none").check(intent(symbol, **stop))


@pytest.mark.parametrize(("name", "symbol"), [("kraken", SPOT), ("coinbase", SPOT), ("deribit", SWAP)])
async def test_trigger_price_is_refused_where_only_stop_loss_price_is_understood(name: str, symbol: str) -> None:
    """As a parameter it would be stray, or trigger the wrong way; as the intent's own field it is translated."""
    with pytest.raises(UnsupportedByVenue, match="does not understand triggerPrice"):
        adapter(name).check(intent(symbol, params={"triggerPrice": 40000}))
    adapter(name).check(intent(symbol, trigger_price="40000"))


async def test_two_stops_in_one_order_and_trailing_without_id_are_refused() -> None:
    """ccxt sends both to an endpoint that takes no client order id."""
    with pytest.raises(UnsupportedByVenue, match="two stop prices"):
        adapter("bybit").check(intent(SWAP, params={"stopLossPrice": 1, "takeProfitPrice": 2}))
    with pytest.raises(UnsupportedByVenue, match="trailing"):
        adapter("bybit").check(intent(SWAP, params={"trailingAmount": 10}))
    adapter("binance").check(intent(SWAP, params={"trailingPercent": 1}))


@pytest.mark.parametrize("param", ["stopLoss", "takeProfit"])
async def test_an_attached_stop_is_refused_where_it_would_be_dropped(param: str) -> None:
    """binance sends it as garbage, and attaches nothing."""
    attached = {param: {"triggerPrice": 40000}}
    with pytest.raises(UnsupportedByVenue, match="attached"):
        adapter("binance").check(intent(SWAP, params=attached))
    adapter("bybit").check(intent(SWAP, params=attached))


@pytest.mark.parametrize("kind", ["STOP_MARKET", "trigger", "oco", "iceberg", "twap", "conditional", "move_order_stop"])
async def test_raw_order_types_that_live_in_a_namespace_of_their_own_are_refused(kind: str) -> None:
    """The look-ups of a plain order would not see them."""
    with pytest.raises(UnsupportedByVenue, match="look-ups do not see"):
        adapter("okx").check(intent(type=kind))
    adapter("okx").check(intent(type="post_only"))


async def test_mexc_swaps_need_the_callers_word_that_absence_is_unprovable() -> None:
    """Their requests carry no window, although spot's do."""
    with pytest.raises(UnsupportedByVenue, match="expiry='none'"):
        adapter("mexc").check(intent(SWAP))
    adapter("mexc", expiry="none").check(intent(SWAP))
    adapter("mexc").check(intent(SPOT))


async def test_expiry_is_weaker_where_the_venue_does_not_enforce_it() -> None:
    """okx honours the deadline for orders and not for stop orders, mexc for spot only."""
    okx = adapter("okx")
    assert okx.expiry(intent()) is Expiry.ABSOLUTE
    assert okx.expiry(intent(trigger_price="40000")) is Expiry.NONE
    assert okx.expiry(intent(params={"stopLossPrice": 1})) is Expiry.NONE
    assert adapter("mexc").expiry(intent(SPOT)) is Expiry.RELATIVE
    assert adapter("mexc").expiry(intent(SWAP)) is Expiry.NONE
    assert adapter("binance").expiry(intent(SWAP, trigger_price="1")) is Expiry.ABSOLUTE


async def test_at_an_unknown_venue_ccxts_statement_of_features_decides() -> None:
    """A stop parameter that ccxt does not call supported would be dropped."""
    exchange = make("binance")
    exchange.id = "newvenue"
    unknown = CcxtAdapter(exchange)
    assert unknown.profile.expiry is UNKNOWN.expiry
    stop = intent(params={"stopLossPrice": 40000})
    exchange.feature_value = lambda symbol, method, name: None
    with pytest.raises(UnsupportedByVenue, match="plain order at once"):
        unknown.check(stop)
    exchange.feature_value = lambda symbol, method, name: True
    unknown.check(stop)


async def test_verbose_mode_is_refused_at_construction_and_later() -> None:
    """It prints signed requests; a subclass that redacts its output may allow it."""
    exchange = make("binance")
    later = CcxtAdapter(exchange)
    exchange.verbose = True
    with pytest.raises(UnsupportedByVenue, match="verbose"):
        CcxtAdapter(exchange)
    with pytest.raises(UnsupportedByVenue, match="verbose"):
        later.check(intent())

    class Loud(CcxtAdapter):
        allow_verbose = True

    Loud(exchange).check(intent())


def test_a_synchronous_exchange_is_refused() -> None:
    """Its calls would block the loop, and no time-out would reach them."""
    import ccxt

    with pytest.raises(InvalidInput, match="async_support"):
        CcxtAdapter(ccxt.binance())  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no create_order"):
        CcxtAdapter(object())  # type: ignore[arg-type]
