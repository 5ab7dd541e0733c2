"""Which of ccxt's calls are guarded, which pass, and which are refused because they could place orders unseen."""

from __future__ import annotations

import inspect

import ccxt.async_support
import pytest
from ccxt.base.types import Entry

import execsafe
from execsafe._ccxt_calls import is_cancel, is_refused, snake_case
from execsafe.errors import UnsupportedByVenue
from execsafe.model.intent import IntentState
from wrap.rig import a_rig, at_both_venues, buy, plainly, record_of

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(2)]

# As they stand in ccxt, by what they do.
PLACING = (
    "close_position closePosition close_all_positions create_convert_trade createConvertTrade create_orders "
    "create_order_ws edit_orders edit_order_ws create_twap_order create_spot_order create_uta_orders request fetch2 "
    "private_post_order privatePostOrder private_post_order_oco private_post_order_cancelreplace "
    "private_post_order_cancel_replace fapiPrivatePostOrder fapiprivate_post_batchorders fapiPrivatePutOrder "
    "dapiPrivatePostOrder sapiPostMarginOrder papiPostUmOrder sapiPostAlgoSpotNewOrderTwap "
    "sapiPostConvertAcceptQuote privatePostV5OrderCreate privatePostV5OrderAmend privatePostV5OrderCreateBatch "
    "privatePostV5PositionTradingStop privatePostTradeOrder privatePostTradeBatchOrders privatePostTradeClosePosition "
    "privatePostTradeOrderAlgo privatePostAssetConvertTrade privatePostAddOrder privatePostEditOrder "
    "privateSpotPostOrders privateFuturesPostSettleOrders privateFuturesPutSettleOrdersOrderId "
    "privateSpotPatchOrdersOrderId privateMixPostV2MixOrderPlaceOrder privateMixPostV2MixOrderClosePositions "
    "v3PrivatePostBrokerageOrders v3PrivatePostBrokerageOrdersClosePosition v2PrivatePostAccountsAccountIdBuys "
    "contractPrivatePostOrderSubmit contractPrivatePostPositionCloseAll contractPrivatePostPositionReverse "
    "spotPrivatePostV1OrderOrdersPlace privatePostExchange privateGetBuy privateGetSell privateGetEdit "
    "privateGetClosePosition private_get_edit_by_label "
    "privateMixPostMixV1PlanPlacePlan private_mix_post_mix_v1_plan_placeplan privateSpotPostSpotV1PlanPlacePlan "
    "privateMixPostMixV1PlanPlaceTPSL privateMixPostMixV1PlanPlacePositionsTPSL privateMixPostMixV1PlanPlaceTrailStop "
    "privateMixPostMixV1PlanModifyPlan privateSpotPostSpotV1PlanModifyPlan privateMixPostMixV1PlanModifyTPSLPlan "
    "privateMixPostMixV1TraceFollowerCloseByAll privateMixPostMixV1TraceFollowerCloseByTrackingNo "
    "privateMixPostMixV1TraceModifyTPSL privateMixPostMixV1TraceFollowerSetTpsl privatePostV5PositionMovePositions "
    "privatePostAccountMovePositions privateUtaPostV3AccountMovePositions sapiPostBswapSwap privateEarnPostStakingSwap "
    "v2PrivatePostMySwapNow sapiPostLendingAutoInvestPlanAdd sapiPostLendingAutoInvestOneOff"
)
CANCELING = (
    "cancel_orders cancelOrders cancel_all_orders cancelAllOrders cancel_order_ws cancel_orders_ws "
    "cancel_all_orders_ws cancel_orders_for_symbols cancel_orders_with_client_order_ids cancel_spot_order"
)
PASSING = (
    "fetch_order fetch_open_orders fetch_positions watch_orders set_leverage set_position_mode transfer withdraw "
    "cancel_all_orders_after load_markets amount_to_precision private_get_order privateGetOpenOrders "
    "fapiPrivatePostLeverage fapiPrivatePostMarginType privatePostV5PositionSetLeverage "
    "privatePostV5AccountSetMarginMode private_post_balance privatePostOpenOrders privatePostQueryOrders "
    "privatePostTradesHistory privatePostWithdraw privateDeleteOrder fapiPrivateDeleteAllOpenOrders "
    "privatePostTradeCancelOrder publicGetPostTrade public_get_depth create_sub_account createDepositAddress "
    "v1PrivatePostPrivateGetOpenOrders privateMixPostMixV1PlanCancelPlan privateSpotPostSpotV1PlanCurrentPlan "
    "privateCopyPostV2CopyMixFollowerSettingTpsl privatePostV5PositionSetTpslMode sapiPostBswapLiquidityAdd "
    "contractPrivatePostSwapApiV1SwapFee contractPrivatePostSwapApiV1SwapPositionInfo"
)


@pytest.mark.parametrize("name", PLACING.split())
def test_what_can_place_an_order_is_refused(name):
    assert is_refused(snake_case(name))


@pytest.mark.parametrize("name", [*PASSING.split(), *CANCELING.split()])
def test_what_can_place_none_is_not_refused(name):
    assert not is_refused(snake_case(name))
    assert is_cancel(snake_case(name)) is (name in CANCELING.split())


@pytest.mark.parametrize("venue", ["binance", "bybit", "okx", "kraken", "gate", "mexc", "bitget", "kucoin", "htx"])
def test_no_endpoint_that_writes_orders_by_its_path_is_overlooked(venue):
    """Over all of ccxt's endpoints of a venue: whatever is named after an order and writes is refused, or harmless."""
    harmless = ("cancel", "history", "info", "detail", "status", "query", "get_order", "open", "closed", "hisorders")
    kind = getattr(ccxt.async_support, venue)
    for name in dir(kind):
        entry = inspect.getattr_static(kind, name)
        if isinstance(entry, Entry) and entry.method in {"POST", "PUT", "PATCH"} and "order" in entry.path.lower():
            snake = snake_case(name)
            assert is_refused(snake) or any(word in snake.replace("_orders", "_order") for word in harmless), name


@pytest.mark.parametrize("name", ["private_post_order", "privatePostOrder", "close_position", "request"])
async def test_a_refused_call_sends_nothing_says_why_and_names_the_way_out(name):
    async with a_rig() as rig:
        guarded = await rig.guard()
        requests = len(rig.server.requests)
        with pytest.raises(UnsupportedByVenue, match=r"past the guard.*\.exchange"):
            await getattr(guarded, name)({"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.01"})
        assert len(rig.server.requests) == requests
        assert callable(getattr(guarded.exchange, name))


@pytest.mark.parametrize("venue", ["binance", "bybit", "okx"])
async def test_the_features_say_no_to_what_is_refused_and_are_otherwise_the_exchanges(venue):
    exchange = getattr(ccxt.async_support, venue)()
    guarded = execsafe.wrap(exchange, store="memory://")
    changed = {name for name, value in exchange.has.items() if guarded.has[name] != value}
    assert {"createOrders", "createOrderWs", "editOrders", "closePosition"} & set(exchange.has) <= {
        name for name in exchange.has if not guarded.has[name]
    }
    assert all(is_refused(snake_case(name)) for name in changed)
    assert guarded.has["createOrder"] is True
    await exchange.close()


# --- cancels beside the guard ----------------------------------------------------------------------------------------


def cancels_many(rig, guarded, ids=None, *, fails=None):
    """Give the exchange object a call of several cancels, as venues have them; the simulated one takes them singly."""
    bare = rig.exchange()

    async def cancel(*_args, **_kwargs):
        open_orders = await bare.fetch_open_orders(rig.symbol)
        ended = [await bare.cancel_order(o["id"], rig.symbol) for o in open_orders if ids is None or o["id"] in ids]
        if fails is not None:
            raise fails
        return ended

    guarded.exchange.cancel_all_orders = guarded.exchange.cancelOrders = guarded.exchange.cancel_orders = cancel


@at_both_venues
async def test_after_a_cancel_of_all_orders_the_journal_knows_what_became_of_its_own(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        orders = [await buy(guarded, f"k{n}") for n in range(3)]
        rig.venue.fill(orders[0]["id"], rig.server.clock.now_ms(), plainly(0.004))
        cancels_many(rig, guarded)
        await guarded.cancel_all_orders(rig.symbol)
        assert rig.venue.open_orders() == []
        assert await guarded.registry.open_records() == []
        again = await buy(guarded, "k0")
        assert (again["status"], again["filled"]) == ("canceled", 0.004)
        assert rig.orders_sent() == 3


@at_both_venues
async def test_a_cancel_of_named_orders_leaves_the_others_as_they_are(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        first, second = await buy(guarded, "k1"), await buy(guarded, "k2")
        cancels_many(rig, guarded, {first["id"]})
        await guarded.cancelOrders([first["id"]], rig.symbol)
        assert (await record_of(guarded, "k1")).state is IntentState.CANCELED
        assert (await record_of(guarded, "k2")).state is IntentState.LIVE
        assert [order.venue_order_id for order in rig.venue.open_orders()] == [second["id"]]


@at_both_venues
async def test_a_cancel_whose_reply_is_lost_is_raised_and_read_all_the_same(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        await buy(guarded)
        cancels_many(rig, guarded, fails=ccxt.async_support.RequestTimeout("lost"))
        with pytest.raises(ccxt.async_support.RequestTimeout):
            await guarded.cancel_all_orders(rig.symbol)
        assert (await record_of(guarded)).state is IntentState.CANCELED


async def test_a_cancel_passes_also_when_the_store_fails(monkeypatch):
    async with a_rig() as rig:
        guarded = await rig.guard()
        await buy(guarded)
        cancels_many(rig, guarded)

        async def fails(*_args, **_kwargs):
            raise execsafe.StoreError("disk full")

        monkeypatch.setattr(guarded.registry, "open_records", fails)
        assert len(await guarded.cancel_all_orders(rig.symbol)) == 1
        assert rig.venue.open_orders() == []


async def test_a_cancel_of_another_symbol_reads_nothing_of_this_one():
    async with a_rig() as rig:
        guarded = await rig.guard()
        await buy(guarded)
        cancels_many(rig, guarded, set())
        for symbol, reads in (("ETH/USDT", 0), (rig.symbol, 1), (None, 1)):
            before = sum("/api/v3/order?" in path and method == "GET" for method, _, path in rig.server.requests)
            await guarded.cancel_all_orders(symbol)
            after = sum("/api/v3/order?" in path and method == "GET" for method, _, path in rig.server.requests)
            assert after - before == reads
