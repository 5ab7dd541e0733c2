"""The HTTP faces of Binance USD-M futures and MEXC spot, through the real ccxt client.

What they share with the others is tested in test_http.py; here is what is theirs: conditional orders in a namespace
of their own, and the venues' own words.
"""

import asyncio

import ccxt.async_support
import pytest

from execsafe.testing.faults import Fault, Strike
from execsafe.testing.http import VenueServer
from execsafe.testing.ledger import Happened

pytestmark = pytest.mark.anyio

TIMEOUT_MS = 200
SYMBOLS = {"binanceusdm": "BTC/USDT:USDT", "mexc": "BTC/USDT"}
BOTH = pytest.mark.parametrize("name", list(SYMBOLS))
SWAP, SPOT = "BTC/USDT:USDT", "BTC/USDT"


@pytest.fixture
def anyio_backend():
    """ccxt runs on asyncio only, and the wire in real time."""
    return "asyncio"


@pytest.fixture
async def server():
    async with VenueServer(client_timeout_ms=TIMEOUT_MS) as running:
        yield running


async def ready(server, name):
    exchange = server.exchange(name, timeout=10_000)
    await exchange.load_markets()
    return exchange


async def create(exchange, client_id="xs1", price=50_000, **params):
    return await exchange.create_order(
        SYMBOLS[exchange.id], "limit", "buy", 0.01, price, {"clientOrderId": client_id, **params}
    )


async def look_up(exchange, client_id="xs1", **params):
    return await exchange.fetch_order(None, SYMBOLS[exchange.id], {"clientOrderId": client_id, **params})


async def raised_by(awaitable):
    try:
        await awaitable
    except Exception as error:
        return error
    return None


async def conditional(exchange, client_id="stop", side="sell", kind="market", price=None, **params):
    return await exchange.create_order(SWAP, kind, side, 0.01, price, {"clientOrderId": client_id, **params})


def move(server, price):
    server.venues["binanceusdm"].set_price(SWAP, price, server.clock.now_ms())


# --- both -----------------------------------------------------------------------------------------------------------


@BOTH
async def test_an_order_lives_its_life_through_the_real_client(server, name):
    exchange, symbol = await ready(server, name), SYMBOLS[name]
    placed = await create(exchange)
    assert (await look_up(exchange))["id"] == placed["id"]
    assert [order["clientOrderId"] for order in await exchange.fetch_open_orders(symbol)] == ["xs1"]

    server.venues[name].set_price(symbol, 49_000, server.clock.now_ms())

    found = await look_up(exchange)
    assert await exchange.fetch_open_orders(symbol) == []
    [trade] = await exchange.fetch_my_trades(symbol)
    [listed] = await exchange.fetch_orders(symbol)
    assert (found["status"], found["filled"], listed["status"]) == ("closed", 0.01, "closed")
    assert (trade["order"], trade["amount"], trade["price"]) == (placed["id"], 0.01, 50_000)


@BOTH
async def test_a_cancel_by_client_id_ends_the_order_once(server, name):
    exchange = await ready(server, name)
    await create(exchange)

    await exchange.cancel_order(None, SYMBOLS[name], {"clientOrderId": "xs1"})

    assert (await look_up(exchange))["status"] == "canceled"
    error = await raised_by(exchange.cancel_order(None, SYMBOLS[name], {"clientOrderId": "xs1"}))
    assert "-2011" in str(error)
    assert type(error).__name__ == ("OrderNotFound" if name == "binanceusdm" else "BadRequest")


@BOTH
async def test_a_cancel_by_the_venues_own_id_works_too(server, name):
    exchange = await ready(server, name)
    placed = await create(exchange)
    await exchange.cancel_order(placed["id"], SYMBOLS[name])
    assert (await exchange.fetch_order(placed["id"], SYMBOLS[name]))["status"] == "canceled"


@BOTH
async def test_an_order_that_nobody_placed_is_not_found_in_the_venues_words(server, name):
    error = await raised_by(look_up(await ready(server, name)))
    assert "-2013" in str(error)
    assert type(error).__name__ == ("OrderNotFound" if name == "binanceusdm" else "ExchangeError")


@BOTH
async def test_signatures_keys_and_time_windows_are_enforced(server, name):
    wrong, unknown, late, ahead = [await ready(server, name) for _ in range(4)]
    wrong.secret, unknown.apiKey = "wrong", "nobody"
    late.nonce = lambda: late.milliseconds() - 60_000
    ahead.nonce = lambda: ahead.milliseconds() + 2_000

    errors = [await raised_by(exchange.fetch_open_orders(SYMBOLS[name])) for exchange in (wrong, unknown, late, ahead)]

    assert [type(error).__name__ for error in errors] == [
        "AuthenticationError", "AuthenticationError" if name == "binanceusdm" else "BadRequest",
        "InvalidNonce", "InvalidNonce",
    ]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("fault", "exists"), [(Fault.DROP_REPLY, 1), (Fault.DROP_REQUEST, 0), (Fault.HANG, 1)])
async def test_a_lost_request_and_a_lost_reply_look_the_same(server, name, fault, exists):
    exchange = await ready(server, name)
    server.plans[name].script([Strike("create", 1, fault)])
    exchange.timeout = TIMEOUT_MS

    error = await raised_by(create(exchange))

    assert type(error).__name__ == "RequestTimeout"
    assert len(server.venues[name].ledger.accepted("xs1")) == exists


@BOTH
async def test_a_part_of_an_order_fills_and_the_rest_is_canceled(server, name):
    exchange = await ready(server, name)
    server.plans[name].script([Strike("create", 1, Fault.PARTIAL_FILL, 400)])
    server.venues[name].schedule_fills(SYMBOLS[name], None)
    placed = await create(exchange, price=60_000)
    assert (await look_up(exchange))["filled"] >= 0.004

    await raised_by(exchange.cancel_order(placed["id"], SYMBOLS[name]))

    found = await look_up(exchange)
    assert found["status"] in {"canceled", "closed"}
    assert found["filled"] == sum(trade["amount"] for trade in await exchange.fetch_my_trades(SYMBOLS[name]))


@BOTH
async def test_an_order_that_must_fill_at_once_expires_where_nobody_sells(server, name):
    exchange, venue = await ready(server, name), server.venues[name]
    venue.set_book(SYMBOLS[name], [(59_000, 1)], [(60_000, "0.004"), (60_500, 1)], server.clock.now_ms())

    await create(exchange, price=60_100, timeInForce="IOC")

    found = await look_up(exchange)
    assert (found["filled"], found["status"]) == (0.004, "expired" if name == "binanceusdm" else "canceled")


# --- USD-M: the venue's words ---------------------------------------------------------------------------------------


@pytest.mark.row("S2-28", "S2-22")
@pytest.mark.parametrize(
    ("arguments", "params", "code", "error"),
    [
        (("limit", "buy", 0.001, 1_000), {}, "-4164", "InvalidOrder"),
        (("limit", "buy", 0.01, 60_000), {"postOnly": True}, "-5022", "OrderNotFillable"),
        (("market", "sell", 0.01, None), {"reduceOnly": True}, "-2022", "InvalidOrder"),
        (("limit", "buy", 999, 60_000), {}, "-2019", "InsufficientFunds"),
        (("market", "sell", 0.01, None), {"stopLossPrice": 61_000}, "-2021", "OrderImmediatelyFillable"),
    ],
)
async def test_usdm_refusals_arrive_as_the_classes_that_production_gives(server, arguments, params, code, error):
    server.venues["binanceusdm"].account.balances["USDT"] = 1_000_000
    raised = await raised_by((await ready(server, "binanceusdm")).create_order(SWAP, *arguments, params))

    assert (type(raised).__name__, f'"code":{code}' in str(raised)) == (error, True)


@pytest.mark.row("S2-22")
async def test_a_key_that_the_venue_does_not_know_is_an_authentication_error(server):
    exchange = await ready(server, "binanceusdm")
    exchange.apiKey = "testnet"
    error = await raised_by(create(exchange))
    assert (type(error).__name__, "-2015" in str(error)) == ("AuthenticationError", True)
    assert server.venues["binanceusdm"].ledger.received() == []


async def test_a_second_usdm_order_with_a_live_id_is_refused(server):
    exchange = await ready(server, "binanceusdm")
    await create(exchange)
    error = await raised_by(create(exchange))
    assert (type(error).__name__, "-4116" in str(error)) == ("InvalidOrder", True)


async def test_a_usdm_order_is_changed_in_place(server):
    exchange = await ready(server, "binanceusdm")
    placed = await create(exchange)
    edited = await exchange.edit_order(placed["id"], SWAP, "limit", "buy", 0.02, 50_001)
    assert (edited["id"], edited["amount"], edited["price"]) == (placed["id"], 0.02, 50_001)


# --- USD-M: conditional orders --------------------------------------------------------------------------------------


@pytest.mark.row("S3-10", "S3-31")
async def test_a_conditional_order_is_in_its_own_namespace_only(server):
    exchange = await ready(server, "binanceusdm")
    stop = await conditional(exchange, triggerPrice=55_000)

    [listed] = await exchange.fetch_open_orders(SWAP, params={"trigger": True})

    assert (stop["id"], listed["id"], listed["clientOrderId"]) == (listed["id"], stop["id"], "stop")
    assert (listed["triggerPrice"], listed["info"]["orderType"]) == (55_000, "STOP_MARKET")
    assert await exchange.fetch_open_orders(SWAP) == []
    assert "-2013" in str(await raised_by(look_up(exchange, "stop")))
    assert "-2011" in str(await raised_by(exchange.cancel_order(None, SWAP, {"clientOrderId": "stop"})))
    assert "-2011" in str(await raised_by(exchange.cancel_order(stop["id"], SWAP)))
    assert (await look_up(exchange, "stop", trigger=True))["status"] == "open"


@pytest.mark.parametrize("by_id", [True, False])
async def test_a_conditional_order_is_canceled_in_its_own_namespace(server, by_id):
    exchange = await ready(server, "binanceusdm")
    stop = await conditional(exchange, triggerPrice=55_000)
    params = {"trigger": True} if by_id else {"trigger": True, "clientOrderId": "stop"}

    await exchange.cancel_order(stop["id"] if by_id else None, SWAP, params)

    assert (await look_up(exchange, "stop", trigger=True))["status"] == "canceled"
    assert "-2011" in str(await raised_by(exchange.cancel_order(stop["id"], SWAP, {"trigger": True})))


async def test_what_a_triggered_order_trades_is_another_order(server):
    exchange = await ready(server, "binanceusdm")
    await create(exchange, price=60_000)
    await conditional(exchange, triggerPrice=55_000, reduceOnly=True)
    move(server, 54_000)

    over = await look_up(exchange, "stop", trigger=True)
    actual = await exchange.fetch_order(over["info"]["actualOrderId"], SWAP)

    assert (over["status"], over["filled"], over["info"]["algoStatus"]) == ("closed", 0, "FINISHED")
    assert (actual["status"], actual["filled"], actual["average"]) == ("closed", 0.01, 54_000)
    assert actual["clientOrderId"] != "stop"
    assert actual["id"] != over["id"]
    assert (await exchange.fetch_my_trades(SWAP))[-1]["order"] == actual["id"]
    assert await exchange.fetch_my_trades(SWAP, params={"orderId": actual["id"]}) != []
    assert [order["id"] for order in await exchange.fetch_orders(SWAP)][-1] == actual["id"]
    assert [order["id"] for order in await exchange.fetch_orders(SWAP, params={"trigger": True})] == [over["id"]]


async def test_a_triggered_limit_rests_as_a_plain_order_and_is_canceled_as_one(server):
    exchange, venue = await ready(server, "binanceusdm"), server.venues["binanceusdm"]
    await conditional(exchange, kind="limit", price=58_000, triggerPrice=55_000)
    move(server, 54_000)

    [resting] = await exchange.fetch_open_orders(SWAP)

    assert (await look_up(exchange, "stop", trigger=True))["info"]["algoStatus"] == "TRIGGERED"
    assert await exchange.fetch_open_orders(SWAP, params={"trigger": True}) == []
    error = await raised_by(exchange.cancel_order(None, SWAP, {"clientOrderId": "stop", "trigger": True}))
    assert "-2011" in str(error)
    await exchange.cancel_order(resting["id"], SWAP)
    assert venue.open_orders() == []
    assert len(venue.ledger.of(None, Happened.TRIGGERED)) == 1


async def test_take_profits_trigger_on_the_other_side(server):
    exchange, venue = await ready(server, "binanceusdm"), server.venues["binanceusdm"]
    await create(exchange, price=60_000)
    profit = await conditional(exchange, "profit", takeProfitPrice=65_000, reduceOnly=True)
    assert profit["info"]["orderType"] == "TAKE_PROFIT_MARKET"

    move(server, 66_000)

    assert venue.account.position(SWAP) == 0


# --- MEXC -----------------------------------------------------------------------------------------------------------


@pytest.mark.row("S0-08", "D-16")
@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("market", "sell", 50, None), "30005", "InsufficientFunds"),
        (("limit", "buy", 9_000, 60_000), "30004", "InsufficientFunds"),
        (("limit", "buy", 0.00001, 50_000), "30002", "InvalidOrder"),
    ],
)
async def test_mexc_refusals_arrive_as_the_classes_that_production_gives(server, arguments, code, error):
    account = server.venues["mexc"].account
    account.balances.update(BTC=1, USDT=1_000)
    raised = await raised_by((await ready(server, "mexc")).create_order(SPOT, *arguments))

    assert (type(raised).__name__, f'"code":{code}' in str(raised)) == (error, True)


@pytest.mark.row("S0-08", "S1-13")
async def test_a_sell_of_what_a_resting_order_locks_is_oversold(server):
    server.venues["mexc"].account.balances["BTC"] = 1
    exchange = await ready(server, "mexc")
    await exchange.create_order(SPOT, "limit", "sell", 1, 70_000)

    error = await raised_by(exchange.create_order(SPOT, "market", "sell", 0.5))

    assert "30005" in str(error)
    assert server.venues["mexc"].ledger.rejected()[0].reason == "insufficient_funds"


@pytest.mark.parametrize("client_id", ["with space", "x" * 33, "a.b"])
async def test_mexc_takes_client_ids_of_its_own_alphabet_only(server, client_id):
    error = await raised_by(create(await ready(server, "mexc"), client_id))
    assert "700008" in str(error)
    assert server.venues["mexc"].ledger.received() == []


async def test_mexc_sends_acknowledgements_and_forgets_our_id_in_them(server):
    placed = await create(await ready(server, "mexc"), price=60_000)
    assert (placed["clientOrderId"], placed["status"], placed["id"]) == (None, None, "C02__1")


async def test_mexc_drops_stop_parameters_and_sends_the_order_at_once(server):
    """Which is why the adapter refuses them: see the notes by venue."""
    exchange = await ready(server, "mexc")
    await exchange.create_order(SPOT, "market", "sell", 0.01, None, {"stopLossPrice": 50_000})
    assert len(server.venues["mexc"].ledger.of(None, Happened.FILLED)) == 1


async def test_a_page_of_html_becomes_an_order_whose_id_is_the_page(server):
    """ccxt takes text for an id; nobody else may."""
    exchange = await ready(server, "mexc")
    server.plans["mexc"].script([Strike("create", 1, Fault.EMPTY_OK, 1)])

    placed = await create(exchange)

    assert placed["id"].startswith("<html>")
    assert (await look_up(exchange))["id"] == "C02__1"


# --- the server -----------------------------------------------------------------------------------------------------


async def test_a_spoiled_answer_comes_once_and_what_was_asked_is_done(server):
    exchange = await ready(server, "mexc")
    server.spoil("POST /api/v3/order", '{"code":')
    assert (await create(exchange))["id"] != "C02__1"
    assert (await look_up(exchange))["status"] == "open"

    server.spoil("GET /api/v3/openOrders", "", 502)
    errors = await asyncio.gather(raised_by(exchange.fetch_open_orders(SPOT)))
    assert isinstance(errors[0], ccxt.async_support.ExchangeNotAvailable)
    assert len(await exchange.fetch_open_orders(SPOT)) == 1
