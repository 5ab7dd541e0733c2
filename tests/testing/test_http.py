"""The HTTP face, through the real ccxt client: its signing, parsing and error mapping on the wire of a simulated venue.

Real sockets on loopback and real time; a client that is to time out does so after 0.2 s.
"""

import asyncio
import json
import os
import signal
import sys
from decimal import Decimal

import aiohttp
import ccxt.async_support
import pytest

from execsafe.model.order import Side
from execsafe.model.outcome import Operation
from execsafe.testing.faults import Fault, Strike
from execsafe.testing.http import VenueServer, loopback_exchange, loopback_session
from execsafe.testing.venue import NewOrder

pytestmark = pytest.mark.anyio

TIMEOUT_MS = 200
SYMBOLS = {"binance": "BTC/USDT", "bybit": "BTC/USDT:USDT"}
BOTH = pytest.mark.parametrize("name", list(SYMBOLS))


@pytest.fixture
def anyio_backend():
    """ccxt runs on asyncio only, and the wire in real time."""
    return "asyncio"


@pytest.fixture
async def server():
    async with VenueServer(client_timeout_ms=TIMEOUT_MS) as running:
        yield running


async def ready(server, name):
    """A client whose next request is the one that is tested. It waits long: a busy machine is no finding."""
    exchange = server.exchange(name, timeout=10_000)
    await exchange.load_markets()
    if name == "bybit":
        await exchange.is_unified_enabled()
    return exchange


async def create_in_vain(exchange, **params):
    """Create with a client that gives up soon; what it raised."""
    exchange.timeout = TIMEOUT_MS
    try:
        return await raised_by(create(exchange, **params))
    finally:
        exchange.timeout = 10_000


async def create(exchange, client_id="xs1", price=50_000, **params):
    return await exchange.create_order(
        SYMBOLS[exchange.id], "limit", "buy", 0.01, price, {"clientOrderId": client_id, **params}
    )


async def look_up(exchange, client_id="xs1"):
    """The order, as each venue's own look-up by client id shows it; None where it does not."""
    symbol = SYMBOLS[exchange.id]
    if exchange.id == "bybit":
        for params in ({"openOnly": 0}, {"openOnly": 1}):
            for order in await exchange.fetch_open_orders(symbol, params={"orderLinkId": client_id, **params}):
                return order
        return None
    try:
        return await exchange.fetch_order(None, symbol, {"clientOrderId": client_id})
    except ccxt.async_support.OrderNotFound:
        return None


async def raised_by(awaitable):
    try:
        await awaitable
    except Exception as error:
        return type(error).__name__, type(error.__cause__).__name__
    return None, None


# --- a calm venue -------------------------------------------------------------------------------------------


@BOTH
async def test_an_order_lives_its_life_through_the_real_client(server, name):
    exchange, symbol = await ready(server, name), SYMBOLS[name]
    placed = await create(exchange)
    assert (await look_up(exchange))["id"] == placed["id"]
    assert [o["clientOrderId"] for o in await exchange.fetch_open_orders(symbol)] == ["xs1"]

    server.venues[name].set_price(symbol, 49_000, server.clock.now_ms())

    found = await look_up(exchange)
    assert await exchange.fetch_open_orders(symbol) == []
    [trade] = await exchange.fetch_my_trades(symbol)
    assert (found["status"], found["filled"]) == ("closed", 0.01)
    assert (trade["order"], trade["amount"], trade["price"]) == (placed["id"], 0.01, 50_000)
    assert server.venues[name].ledger.filled_quantity("xs1") == Decimal("0.01")


@BOTH
async def test_a_cancel_by_client_id_ends_the_order_once(server, name):
    exchange, symbol = await ready(server, name), SYMBOLS[name]
    await create(exchange)
    params = {"orderLinkId": "xs1"} if name == "bybit" else {"clientOrderId": "xs1"}

    await exchange.cancel_order(None, symbol, params)

    assert (await look_up(exchange))["status"] == "canceled"
    if name == "bybit":
        assert await exchange.fetch_open_orders(symbol, params={"orderLinkId": "xs1", "openOnly": 0}) == []
    assert (await raised_by(exchange.cancel_order(None, symbol, params)))[0] == "OrderNotFound"


async def test_binance_states_everything_in_its_answer_and_bybit_only_an_id(server):
    full = await create(await ready(server, "binance"), price=60_000)
    bare = await create(await ready(server, "bybit"), price=60_000)

    assert (full["status"], full["filled"], full["fees"]) == ("closed", 0.01, [{"currency": "BTC", "cost": 0.00001}])
    assert (bare["id"], bare["status"], bare["filled"]) == ("1", None, None)


@BOTH
async def test_a_second_order_with_a_live_id_is_refused_as_the_venue_words_it(server, name):
    exchange = await ready(server, name)
    await create(exchange)

    with pytest.raises(ccxt.async_support.InvalidOrder, match=r"-2010.*Duplicate order sent|110072") as caught:
        await create(exchange)

    assert type(caught.value) is ccxt.async_support.InvalidOrder  # never DuplicateOrderId
    assert len(server.venues[name].ledger.accepted("xs1")) == 1


async def test_on_binance_an_id_is_free_again_after_a_fill_and_on_bybit_never(server):
    binance, bybit = await ready(server, "binance"), await ready(server, "bybit")
    for exchange in (binance, bybit):
        await create(exchange, price=60_000)

    await create(binance, price=60_000)
    assert (await raised_by(create(bybit, price=60_000)))[0] == "InvalidOrder"

    assert server.venues["binance"].ledger.filled_quantity("xs1") == Decimal("0.02")


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("binance", ("limit", "buy", 0.00001, 50_000), "BadRequest"),  # NOTIONAL
        ("bybit", ("limit", "buy", 0.001, 1_000), "InvalidOrder"),
        ("binance", ("limit", "buy", 0.01, 60_000, {"postOnly": True}), "OrderImmediatelyFillable"),
        ("bybit", ("market", "sell", 0.01, None, {"reduceOnly": True}), "InvalidOrder"),
        ("binance", ("limit", "buy", 8_000, 50_000), "InsufficientFunds"),
        ("bybit", ("limit", "buy", 999, 999_999), "InsufficientFunds"),
    ],
)
async def test_refusals_arrive_as_the_classes_that_production_gives(server, name, arguments, error):
    server.venues[name].account.balances["USDT"] = Decimal(50_000_000)
    exchange = await ready(server, name)

    assert (await raised_by(exchange.create_order(SYMBOLS[name], *arguments)))[0] == error


async def test_bybit_accepts_a_crossing_post_only_order_and_cancels_it_afterwards(server):
    exchange = await ready(server, "bybit")

    placed = await create(exchange, price=60_000, postOnly=True)

    ended = await look_up(exchange)
    assert placed["id"] is not None
    assert (ended["status"], ended["filled"], ended["info"]["rejectReason"]) == (
        "canceled",
        0.0,
        "EC_PostOnlyWillTakeLiquidity",
    )


@BOTH
async def test_signatures_keys_and_time_windows_are_enforced(server, name):
    symbol = SYMBOLS[name]
    wrong, unknown, late, ahead = [await ready(server, name) for _ in range(4)]
    wrong.secret, unknown.apiKey = "wrong", "nobody"
    late.nonce = lambda: late.milliseconds() - 60_000
    ahead.nonce = lambda: ahead.milliseconds() + 2_000

    raised = [(await raised_by(exchange.fetch_open_orders(symbol)))[0] for exchange in (wrong, unknown, late, ahead)]

    assert raised == ["AuthenticationError", "AuthenticationError", "InvalidNonce", "InvalidNonce"]


async def test_signatures_cover_the_exact_bytes_whatever_they_are(server):
    """-2013 (no such order), not -1022 (bad signature)."""
    exchange = await ready(server, "binance")

    with pytest.raises(ccxt.async_support.OrderNotFound, match="-2013"):
        await exchange.privateGetOrder({"symbol": "BTCUSDT", "origClientOrderId": "a b%2C,+/é:"})


async def test_edits_go_through_cancel_replace_on_binance_and_amend_on_bybit(server):
    for name, symbol in SYMBOLS.items():
        exchange = await ready(server, name)
        placed = await create(exchange)
        edited = await exchange.edit_order(placed["id"], symbol, "limit", "buy", 0.02, 50_001)
        [left] = await exchange.fetch_open_orders(symbol)
        assert (left["amount"], left["price"], left["id"]) == (0.02, 50_001, edited["id"])
        assert (edited["id"] == placed["id"]) is (name == "bybit")


async def test_a_failed_replacement_says_which_half_failed(server):
    exchange = await ready(server, "binance")
    placed = await create(exchange)

    class_name, _ = await raised_by(exchange.edit_order(placed["id"], "BTC/USDT", "limit", "buy", 8_000, 50_000))

    assert class_name == "BadResponse"  # -2021: canceled, not replaced
    assert server.venues["binance"].open_orders() == []


async def test_positions_balances_tickers_and_stops_are_served(server):
    bybit, binance = await ready(server, "bybit"), await ready(server, "binance")
    await bybit.create_order("BTC/USDT:USDT", "market", "sell", 0.5)
    [position] = await bybit.fetch_positions(["BTC/USDT:USDT"])
    assert (position["side"], position["contracts"], position["entryPrice"]) == ("short", 0.5, 60_000)
    assert (await bybit.fetch_ticker("BTC/USDT:USDT"))["last"] == (await binance.fetch_ticker("BTC/USDT"))["last"]
    assert (await binance.fetch_balance())["BTC"]["free"] == 10_000_000

    stop = {"stopLossPrice": 65_000, "reduceOnly": True}
    await bybit.create_order("BTC/USDT:USDT", "market", "buy", 0.5, None, stop)
    server.venues["bybit"].set_price("BTC/USDT:USDT", 66_000, server.clock.now_ms())

    assert server.venues["bybit"].account.position("BTC/USDT:USDT") == 0


# --- faults on the wire: what ccxt raises -------------------------------------------------------------------

# fault, its value; what ccxt raises, and from what (one for both venues, or binance / bybit); does the order exist?
TABLE = {
    "never arrives": (Fault.DROP_REQUEST, None, "RequestTimeout < TimeoutError", 0),
    "ghost": (Fault.DROP_REPLY, None, "RequestTimeout < TimeoutError", 1),
    "hang": (Fault.HANG, None, "RequestTimeout < TimeoutError", 1),
    "closed before": (Fault.RESET_CONNECTION, 0, "ExchangeNotAvailable < ServerDisconnectedError", 0),
    "closed after": (Fault.RESET_CONNECTION, 1, "ExchangeNotAvailable < ServerDisconnectedError", 1),
    "truncated": (Fault.TRUNCATED_BODY, None, "ExchangeError < ClientPayloadError", 1),
    "502 after": (Fault.SERVER_ERROR_ACCEPTED, 502, "ExchangeNotAvailable", 1),
    "503 before": (Fault.SERVER_ERROR_NOT_ACCEPTED, 503, "ExchangeNotAvailable", 0),
    "504 after": (Fault.SERVER_ERROR_ACCEPTED, 504, "RequestTimeout", 1),
    "maintenance": (Fault.MAINTENANCE, None, "ExchangeNotAvailable", 0),
    "rate limit": (Fault.RATE_LIMITED, None, "DDoSProtection / RateLimitExceeded", 0),
    "timestamp": (Fault.TIMESTAMP_REJECT, None, "InvalidNonce", 0),
    "funds": (Fault.REJECT_FUNDS, None, "InsufficientFunds", 0),
    "filter": (Fault.REJECT_FILTER, None, "InvalidOrder / BadRequest", 0),
    "200 empty": (Fault.EMPTY_OK, 0, "nothing", 1),
    "200 html": (Fault.EMPTY_OK, 1, "nothing", 1),
    "200 list": (Fault.EMPTY_OK, 2, "nothing / ExchangeError", 1),
}


@BOTH
@pytest.mark.parametrize("row", list(TABLE))
async def test_what_ccxt_makes_of_each_fault(server, name, row):
    fault, value, outcome, exists = TABLE[row]
    exchange = await ready(server, name)
    server.plans[name].script([Strike("create", 1, fault, value)])

    error, cause = await (create_in_vain(exchange) if "Timeout <" in outcome else raised_by(create(exchange)))

    binance, _, bybit = outcome.partition(" / ")
    expected = bybit if bybit and name == "bybit" else binance
    assert (f"{error} < {cause}" if "<" in expected else error or "nothing") == expected
    assert len(server.venues[name].ledger.accepted("xs1")) == exists
    assert server.plans[name].fired == {fault: 1}


@BOTH
async def test_an_unusable_ok_comes_back_as_an_order_without_an_id(server, name):
    """ccxt raises nothing: whoever trusts it owns an order and does not know."""
    exchange = await ready(server, name)
    server.plans[name].script([Strike("create", 1, Fault.EMPTY_OK, 1)])

    answer = await create(exchange)

    assert (answer["id"], answer["status"]) == (None, None)
    assert (await look_up(exchange))["status"] == "open"


@BOTH
async def test_a_late_request_lands_after_its_client_gave_up(server, name):
    exchange, ledger = await ready(server, name), server.venues[name].ledger
    server.plans[name].script([Strike("create", 1, Fault.DELAY_REQUEST, 1_000)])
    sent_ms = server.clock.now_ms()
    assert (await create_in_vain(exchange))[0] == "RequestTimeout"
    assert ledger.received() == []

    await asyncio.sleep(1)

    assert (await look_up(exchange))["status"] == "open"
    assert ledger.accepted("xs1")[0].at_ms >= sent_ms + 1_000


async def test_a_request_that_lands_beyond_its_window_is_refused(server):
    exchange = await ready(server, "binance")
    server.plans["binance"].script([Strike("create", 1, Fault.DELAY_REQUEST, 400)])
    await create_in_vain(exchange, recvWindow=300)
    await asyncio.sleep(0.4)

    assert await look_up(exchange) is None
    assert [entry.reason for entry in server.venues["binance"].ledger.rejected()] == ["expired_request"]
    assert server.venues["binance"].ledger.accepted() == []


async def test_a_duplicate_delivery_fills_a_second_time_behind_the_clients_back(server):
    exchange = await ready(server, "binance")
    server.plans["binance"].script([Strike("create", 1, Fault.DUPLICATE_DELIVERY, 50)])
    await create(exchange, price=60_000)
    await asyncio.sleep(0.1)
    server.advance()

    assert server.venues["binance"].ledger.filled_quantity("xs1") == Decimal("0.02")


async def test_a_reordered_create_arrives_after_the_cancel(server):
    exchange = await ready(server, "binance")
    server.plans["binance"].script([Strike("create", 1, Fault.REORDER)])
    await create_in_vain(exchange)

    missed = await raised_by(exchange.cancel_order(None, "BTC/USDT", {"clientOrderId": "xs1"}))
    await asyncio.sleep(0.01)

    assert missed[0] == "OrderNotFound"
    assert (await look_up(exchange))["status"] == "open"


@BOTH
async def test_fills_and_cancels_play_their_tricks_on_the_wire_too(server, name):
    exchange, symbol, plan = await ready(server, name), SYMBOLS[name], server.plans[name]
    plan.script(
        [
            Strike("create", 1, Fault.PARTIAL_FILL, 400),
            Strike("create", 2, Fault.FILL_BEFORE_ACK),
            Strike("cancel", 1, Fault.FILL_DURING_CANCEL, 1_000),
            Strike("cancel", 2, Fault.CANCEL_OK_STILL_LIVE, -1),
        ]
    )
    part = await create(exchange, "part", 60_000)
    await create(exchange, "quick")
    assert (await look_up(exchange, "part"))["filled"] == 0.004
    assert (await look_up(exchange, "quick"))["status"] == "closed"
    assert (await raised_by(exchange.cancel_order(part["id"], symbol)))[0] == "OrderNotFound"
    stays = await create(exchange, "stays")

    await exchange.cancel_order(stays["id"], symbol)

    assert (await look_up(exchange, "stays"))["status"] == "open"
    assert len(plan.fired) == 4


@BOTH
async def test_look_ups_lag_fail_and_miss(server, name):
    exchange, plan = await ready(server, name), server.plans[name]
    await create(exchange, price=60_000)
    await asyncio.sleep(0.01)

    def strike_both(fault, value=None):  # a bybit look-up asks twice
        ordinal = plan._ordinals[Operation.LOOK_UP]
        plan.script([Strike("look_up", ordinal + ask, fault, value) for ask in ((1, 2) if name == "bybit" else (1,))])

    strike_both(Fault.LOOKUP_LAG, 60_000)
    assert await look_up(exchange) is None
    strike_both(Fault.LOOKUP_MISSES_CLOSED)
    assert await look_up(exchange) is None
    plan.strike_next("look_up", Fault.LOOKUP_ERROR, 503)
    assert (await raised_by(look_up(exchange)))[0] == "ExchangeNotAvailable"
    assert (await look_up(exchange))["status"] == "closed"
    strike_both(Fault.ID_INDEX_LOST)
    assert await look_up(exchange) is None


async def test_every_request_that_arrives_is_recorded(server):
    """What arrived can be counted, so that silent resends below ccxt show."""
    exchange = await ready(server, "binance")
    before = len(server.requests)

    await create(exchange)

    [(method, host, path)] = server.requests[before:]
    assert (method, host, path) == ("POST", "api.binance.com", "/api/v3/order")


# --- in a process of its own --------------------------------------------------------------------------------


async def control(url, method, path, body=None):
    async with aiohttp.ClientSession() as session, session.request(method, f"{url}/_sim/{path}", json=body) as answer:
        return answer.status, await answer.text()


async def test_a_venue_in_its_own_process_survives_its_clients_and_shows_its_ledger(tmp_path):
    ledger_file = tmp_path / "ledger.jsonl"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "execsafe.testing.http", "--ledger-file", str(ledger_file)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        url = json.loads(await process.stdout.readline())["url"]
        assert (await control(url, "POST", "faults/binance", [{"operation": "create", "fault": "drop_reply"}]))[
            0
        ] == 200
        async with loopback_session(url) as session:
            exchange = loopback_exchange("binance", session, {"timeout": 10_000})
            await exchange.load_markets()
            assert (await create_in_vain(exchange))[0] == "RequestTimeout"
            await exchange.close()
        await control(url, "POST", "price/binance", {"symbol": "BTC/USDT", "price": 49_000})

        state = json.loads((await control(url, "GET", "state/binance"))[1])
        entries = [json.loads(line) for line in (await control(url, "GET", "ledger/binance"))[1].splitlines()]

        assert (state["open_orders"], state["fired"]) == ([], {"drop_reply": 1})
        assert [entry["what"] for entry in entries] == ["received", "accepted", "filled"]
        written = [json.loads(line) for line in ledger_file.read_text().splitlines()]
        assert written == [{"venue": "binance", **entry} for entry in entries]
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "state/nowhere", None, 404),
        ("GET", "nothing/binance", None, 404),
        ("POST", "faults/binance", [{"operation": "create", "fault": "no such"}], 400),
        ("POST", "price/binance", {"symbol": "BTC/USDT"}, 400),
        ("POST", "calm/binance", None, 200),
    ],
)
async def test_control_requests_are_checked(server, method, path, body, status):
    assert (await control(server.url, method, path, body))[0] == status


async def test_unknown_hosts_and_routes_get_a_404(server):
    exchange = await ready(server, "binance")

    assert (await raised_by(exchange.sapiGetSystemStatus()))[0] is not None
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/api/v3/time") as answer:
        assert answer.status == 404


async def test_one_venue_may_stand_behind_a_face_that_a_test_has_prepared(server):
    server.venues["binance"].submit(
        NewOrder(symbol="BTC/USDT", side=Side.BUY, quantity=Decimal(1), limit_price=Decimal(50_000)),
        server.clock.now_ms(),
    )
    exchange = await ready(server, "binance")

    assert len(await exchange.fetch_open_orders("BTC/USDT")) == 1
