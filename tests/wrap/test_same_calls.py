"""The calls stay as they are: ccxt's names and shapes, with a key's promises behind them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from decimal import Decimal

import ccxt
import pytest

import execsafe
from execsafe.errors import IntentConflict, InvalidInput, StoreError, StoreUnavailable, UnsupportedByVenue
from execsafe.model.event import EventType
from execsafe.model.outcome import Operation
from execsafe.stores.memory import MemoryStore
from execsafe.testing.faults import Fault, Strike
from execsafe.testing.http import VenueServer
from execsafe.testing.venue import FillStep
from wrap.rig import (
    MARKETABLE,
    RESTING,
    VENUES,
    a_rig,
    at_both_venues,
    buy,
    journal_of,
    outcome,
    plainly,
    quick,
)  # fmt: skip

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(5)]


# --- a key stands for one intent for ever ----------------------------------------------------------------------------


@at_both_venues
async def test_the_same_key_with_another_payload_is_a_conflict_and_nothing_is_sent(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        await buy(guarded)
        journal = await journal_of(guarded)
        others = [
            (rig.symbol, "limit", "buy", 0.02, RESTING),
            (rig.symbol, "limit", "buy", 0.01, RESTING + 1),
            (rig.symbol, "limit", "sell", 0.01, RESTING),
            (rig.symbol, "market", "buy", 0.01, None),
            (rig.symbol, "limit", "buy", 0.01, RESTING, {"timeInForce": "IOC"}),
            (rig.symbol, "limit", "buy", 0.01, RESTING, {"postOnly": True}),
        ]
        restarted = await rig.guard()
        for *order, params in [(*other, {}) if len(other) == 5 else other for other in others]:
            for one in (guarded, restarted):
                with pytest.raises(IntentConflict, match="use a new key"):
                    await one.create_order(*order, {"intentKey": "k", **params})
        assert rig.orders_sent() == 1
        assert await journal_of(guarded) == journal


@at_both_venues
async def test_equal_payloads_are_equal_however_their_numbers_are_written(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        ways = [(0.01, 40_000), ("0.01", "40000"), ("0.0100", 40_000.0), (Decimal("1e-2"), 40000)]
        ends = [
            await guarded.create_order(rig.symbol, "limit", "buy", amount, price, {"intentKey": "k"})
            for amount, price in ways
        ]
        assert {end["id"] for end in ends} == {ends[0]["id"]}
        assert rig.orders_sent() == 1


@pytest.mark.parametrize("price", [RESTING, MARKETABLE])
@at_both_venues
async def test_a_repeat_returns_the_recorded_result_also_after_a_restart_and_sends_nothing(name, price):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        first = await buy(guarded, price=price)
        rig.assert_truthful(first)
        requests = len(rig.server.requests)
        again = await buy(guarded, price=price)
        await guarded.store.aclose()
        restarted = await buy(await rig.guard(rig.exchange(), ready=False), price=price)
        told = {"id", "clientOrderId", "status", "filled", "remaining", "amount", "average", "cost", "side", "symbol"}
        for repeat in (again, restarted):
            assert {key: repeat[key] for key in told} == {key: first[key] for key in told}
            assert set(repeat) == set(first)
        routes = {path.partition("?")[0] for _, _, path in rig.server.requests[requests:]}
        assert not any("order" in route for route in routes), routes


@at_both_venues
async def test_a_repeat_whose_market_has_been_delisted_since_still_has_its_result(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        first = await buy(guarded)
        del guarded.exchange.markets[rig.symbol]
        assert (await buy(guarded))["id"] == first["id"]


@at_both_venues
async def test_without_a_key_each_call_is_an_intent_of_its_own(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        orders = [await buy(guarded, None) for _ in range(3)]
        assert len({order["clientOrderId"] for order in orders}) == len(rig.accepted()) == 3
        assert len({order["intentKey"] for order in orders}) == 3


NEAR_MISSES = {
    "intentKey": ("intent_key", "intentkey", "IntentKey", "INTENT_KEY", "intent-key"),
    "join": ("Join", "JOIN", "_join"),
    "freshUntilMs": ("fresh_until_ms", "freshuntilms", "freshUntilMS", "fresh-until-ms"),
}


@at_both_venues
async def test_a_misspelt_key_is_refused_and_the_right_spelling_named(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        for right, wrongs in NEAR_MISSES.items():
            for wrong in wrongs:
                with pytest.raises(InvalidInput, match=f"write '{right}'"):
                    await buy(guarded, None, **{wrong: "signal-42"})
                with pytest.raises(InvalidInput, match=f"write '{right}'"):
                    await guarded.edit_order(order["id"], rig.symbol, price=39_000, params={wrong: "signal-42"})
        assert rig.orders_sent() == 1
        assert len(rig.accepted()) == 1


# --- names -----------------------------------------------------------------------------------------------------------

CALLS = {
    "createOrder": ("limit", "buy", 0.01, RESTING),
    "create_limit_order": ("buy", 0.01, RESTING),
    "createLimitOrder": ("buy", 0.01, RESTING),
    "create_limit_buy_order": (0.01, RESTING),
    "createLimitSellOrder": (0.01, 80_000),
    "create_market_order": ("sell", 0.01),
    "create_market_buy_order": (0.01,),
    "createMarketSellOrder": (0.01,),
    "create_post_only_order": ("limit", "buy", 0.01, RESTING),
    "create_stop_order": ("limit", "sell", 0.01, 49_000, 50_000),
    "createStopLimitOrder": ("sell", 0.01, 49_000, 50_000),
    "create_stop_market_order": ("sell", 0.01, 50_000),
    "create_trigger_order": ("limit", "sell", 0.01, 49_000, 50_000),
    "create_stop_loss_order": ("limit", "sell", 0.01, 49_000, 50_000),
    "createTakeProfitOrder": ("limit", "sell", 0.01, 71_000, 70_000),
}


def camel_case(name):
    first, *words = name.split("_")
    return first + "".join(word.capitalize() for word in words)


@at_both_venues
async def test_every_spelling_and_sibling_of_create_order_is_guarded(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard(request_timeout_s=0.5, profile=quick(name, expiry_window_s=5))
        await rig.exchange().create_order(rig.symbol, "market", "buy", 1)  # something to protect
        known = {method: call for method, call in CALLS.items() if guarded.has.get(camel_case(method)) is not False}
        assert set(CALLS) - set(known) == ({"create_stop_market_order"} if name == "binance" else set())
        rig.plan.script([Strike(Operation.CREATE, n, Fault.DROP_REPLY) for n in range(2, len(known) + 2)])

        async def call(method):
            return await getattr(guarded, method)(rig.symbol, *known[method], params={"intentKey": method})

        first = dict(zip(known, await asyncio.gather(*map(call, known)), strict=True))
        again = dict(zip(known, await asyncio.gather(*map(call, known)), strict=True))
        assert rig.orders_sent() - 1 == rig.plan.fired[Fault.DROP_REPLY] == len(known)
        for method, order in first.items():
            rig.assert_truthful(order, orders=len(known) + 1)
            assert again[method]["id"] == order["id"]
            sent, words = rig.venue.order(order["id"]).request, method.lower().replace("_", "")
            assert (sent.trigger_price is not None) is any(word in words for word in ("stop", "trigger", "takeprofit"))
            assert sent.post_only is ("postonly" in words)


@pytest.mark.parametrize("stop", ["triggerPrice", "stopPrice", "stopLossPrice"])
async def test_a_stop_in_doubt_is_looked_for_among_the_stops_whatever_its_parameter_is_called(stop):
    async with a_rig("bybit") as rig:
        guarded = await rig.guard()
        await guarded.create_market_buy_order(rig.symbol, 0.02)
        rig.strike(Fault.DROP_REPLY)
        rig.strike(Fault.LOOKUP_LAG, 10_000, Operation.LOOK_UP)  # so that the first view does not settle it
        order = await guarded.create_order(rig.symbol, "market", "sell", 0.01, None, {"intentKey": "k", stop: 50_000})
        rig.assert_truthful(order, orders=2)
        looks = [path for _, _, path in rig.server.requests if "orderLinkId=" in path]
        assert any("orderFilter=StopOrder" in path for path in looks)


async def test_a_reduce_only_sibling_reduces_only():
    async with a_rig("bybit") as rig:
        guarded = await rig.guard()
        await guarded.create_market_buy_order(rig.symbol, 0.02)
        order = await guarded.create_reduce_only_order(rig.symbol, "market", "sell", 0.01, None, {"intentKey": "k"})
        assert rig.venue.order(order["id"]).request.reduce_only
        assert order["filled"] == 0.01


@pytest.mark.parametrize(
    "method",
    ["create_orders", "createOrders", "create_order_ws", "createOrderWs", "edit_order_ws", "editOrders",
     "create_market_order_ws", "create_twap_order", "createLimitBuyOrderWs"],
)  # fmt: skip
@at_both_venues
async def test_ways_past_the_guard_are_refused_and_say_what_to_call_instead(name, method):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        if not hasattr(guarded.exchange, method):
            return
        with pytest.raises(UnsupportedByVenue, match="call create_order once for each order"):
            await getattr(guarded, method)(rig.symbol, "limit", "buy", 0.01, RESTING)
        assert rig.orders_sent() == 0


# --- what passes through ---------------------------------------------------------------------------------------------


@at_both_venues
async def test_everything_else_passes_through(name):
    async with a_rig(name) as rig:
        exchange = rig.exchange()
        guarded = await rig.guard(exchange)
        order = await buy(guarded)

        assert (await guarded.fetch_ticker(rig.symbol))["last"] == 60_000
        assert (await guarded.fetchTicker(rig.symbol))["last"] == 60_000
        [found] = await guarded.fetch_open_orders(rig.symbol)
        assert (found["id"], found["clientOrderId"]) == (order["id"], order["clientOrderId"])
        assert guarded.amount_to_precision(rig.symbol, 0.0123456789) == exchange.amount_to_precision(
            rig.symbol, 0.0123456789
        )
        for attribute in ("id", "options", "markets", "urls", "apiKey", "precisionMode"):
            assert getattr(guarded, attribute) is getattr(exchange, attribute)
        assert guarded.has == {name: guarded.has[name] and value for name, value in exchange.has.items()}
        guarded.options["mine"] = 1
        guarded.timeout = 1_234
        assert (exchange.options["mine"], exchange.timeout) == (1, 1_234)
        assert {"create_order", "fetch_ticker", "recover"} <= set(dir(guarded))
        assert repr(guarded) == f"<GuardedExchange {name} account='default'>"
        with pytest.raises(AttributeError):
            _ = guarded.no_such_thing
        assert not hasattr(guarded, "__len__")


@at_both_venues
async def test_what_the_caller_reads_is_evidence_and_credited(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        rig.move_price(39_000)
        if name == "binance":
            await guarded.fetch_order(order["id"], rig.symbol)
        else:
            await guarded.fetch_canceled_and_closed_orders(rig.symbol)
        again = await buy(guarded)
        rig.assert_truthful(again)
        assert (again["status"], again["filled"]) == ("closed", 0.01)


@at_both_venues
async def test_listeners_are_told_and_one_that_fails_disturbs_nothing(name, caplog):
    caplog.set_level(logging.CRITICAL)
    async with a_rig(name) as rig:

        def fails(event):
            raise RuntimeError("a listener's own defect")

        guarded = await rig.guard(listeners=(fails, rig.events.append))
        rig.assert_truthful(await buy(guarded, price=MARKETABLE))
        assert [event.type for event in rig.events] == [
            EventType.INTENT_RECORDED,
            EventType.ATTEMPT_SENDING,
            EventType.ORDER_ACKNOWLEDGED,
            EventType.ORDER_FILL,
            EventType.INTENT_FILLED,
        ] or name == "bybit"
        assert {event.subject for event in rig.events} == {"7.1:default/k/"}
        fills = [event.quantity for event in rig.events if event.type is EventType.ORDER_FILL]
        assert sum(fills) == plainly(0.01)
        stored = [row.event for row in await guarded.store.read_events(0)]
        assert stored == rig.events


# --- traps of the client ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.SERVER_ERROR_ACCEPTED, Fault.RESET_CONNECTION])
@at_both_venues
async def test_retries_that_the_client_was_told_to_make_are_not_made(name, fault):
    async with a_rig(name) as rig:
        options = {"maxRetriesOnFailure": 3, "maxRetriesOnFailureDelay": 1}
        guarded = await rig.guard(rig.exchange(timeout=100, options=options))
        rig.strike(fault, {Fault.HANG: None, Fault.SERVER_ERROR_ACCEPTED: 502, Fault.RESET_CONNECTION: 1}[fault])
        rig.assert_truthful(await buy(guarded))
        assert rig.orders_sent() == 1
        assert guarded.options["maxRetriesOnFailure"] == 3
        with pytest.raises(UnsupportedByVenue, match="maxRetriesOnFailure"):
            await buy(guarded, "other", maxRetriesOnFailure=2)


@at_both_venues
async def test_a_quantity_off_the_grid_is_rounded_down_before_it_is_journalled(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await guarded.create_order(rig.symbol, "limit", "buy", 0.0199999999, 40_000.129, {"intentKey": "k"})
        rig.assert_truthful(order)
        assert order["amount"] in {0.01999, 0.019}
        assert order["price"] in {40_000.12, 40_000.1}


@at_both_venues
async def test_an_order_that_ends_at_once_says_how_much_of_it_filled(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        rig.venue.schedule_fills(rig.symbol, [FillStep(0, 0.4)])
        for key, fault in (("heard", None), ("unheard", Fault.DROP_REPLY)):
            if fault is not None:
                rig.strike(fault)
            order = await buy(guarded, key, price=MARKETABLE, timeInForce="IOC")
            assert order["status"] in {"expired", "canceled"}
            assert (order["filled"], order["remaining"], order["average"]) == (0.004, 0.006, 60_000)
        rig.venue.schedule_fills(rig.symbol, None)
        filled = await buy(guarded, "all or nothing", price=MARKETABLE, timeInForce="FOK")
        assert (filled["status"], filled["filled"]) == ("closed", 0.01)


@at_both_venues
async def test_a_post_only_order_that_would_take_is_refused_or_ends_without_a_fill(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        for _ in range(2):
            end = await outcome(buy(guarded, price=MARKETABLE, postOnly=True))
            if name == "binance":
                assert type(end) is ccxt.OrderImmediatelyFillable
            else:  # it accepts the order and cancels it at once
                assert (end["status"], end["filled"], end["postOnly"]) == ("canceled", 0, True)
        assert rig.orders_sent() == 1
        assert rig.ledger.fills() == []


# --- the store fails -------------------------------------------------------------------------------------------------


class Broken(MemoryStore):
    """Works until told not to."""

    works = True

    async def commit(self, batch):
        if not self.works:
            raise StoreUnavailable("the disk is gone")
        return await super().commit(batch)


@at_both_venues
async def test_when_the_store_fails_entries_are_refused_and_cancels_and_exits_stay_possible(name):
    async with a_rig(name) as rig:
        store = Broken()
        guarded = await rig.guard(store=store)
        order = await buy(guarded)
        store.works = False
        with pytest.raises(StoreError):
            await buy(guarded, "entry")
        assert rig.orders_sent() == 1
        await guarded.cancel_order(order["id"], rig.symbol)
        assert rig.venue.order(order["id"]).status.value == "canceled"
        if name == "bybit":
            store.works = True
            await buy(guarded, "long", price=MARKETABLE)
            store.works = False
            order = (rig.symbol, "market", "sell", 0.01, None, {"intentKey": "exit", "reduceOnly": True})
            exits = [await outcome(guarded.create_order(*order)) for _ in range(2)]
            assert rig.ledger.position(rig.symbol) == 0, exits


@at_both_venues
async def test_a_journal_that_cannot_be_opened_refuses_entries_with_a_store_error(name):
    async with a_rig(name) as rig:
        guarded = execsafe.wrap(rig.exchange(), store=f"sqlite:///{rig.file.parent}/no/such/folder/o.db")
        with pytest.raises(StoreError):
            await buy(guarded)
        assert rig.orders_sent() == 0


def test_what_the_exchange_does_not_have_the_guarded_one_does_not_have_either():
    class Small:
        id = "binance"

        async def create_order(self, *order):
            raise NotImplementedError

    guarded = execsafe.wrap(Small(), store="memory://")
    assert [name for name in CALLS if hasattr(guarded, name)] == ["createOrder"]
    assert not hasattr(guarded, "fetch_ticker")


async def test_closing_closes_store_and_exchange():
    async with a_rig() as rig:
        guarded = await rig.guard()
        await buy(guarded)
        await guarded.close()
        assert guarded.exchange.session is None
        await asyncio.sleep(0)


# --- one journal for several venues ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def both_on_one_journal(patience_s):
    """Two exchanges that trade the same symbol, guarded with one journal and the default account."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = await stack.enter_async_context(VenueServer(client_timeout_ms=400))
        guards = []
        for name in VENUES:
            profile = quick(name, expiry_window_s=0.3, read_lag_s=0.05)
            settings = {"profile": profile, "request_timeout_s": 0.2, "look_interval_s": 0.05, "patience_s": patience_s}
            guarded = execsafe.wrap(server.exchange(name), store=f"sqlite:///{folder}/orders.db", **settings)
            guards.append(await stack.enter_async_context(guarded))
            await guarded.adapter.prepare("BTC/USDT")
        yield server, *guards


def spot(key):
    return "BTC/USDT", "limit", "buy", 0.01, RESTING, {"intentKey": key}


async def test_a_key_of_another_venues_order_is_a_conflict_and_never_answered_with_that_order():
    async with both_on_one_journal(2.0) as (server, one, two):
        order = await one.create_order(*spot("signal"))
        with pytest.raises(IntentConflict, match="belongs to an order at binance"):
            await two.create_order(*spot("signal"))
        assert server.venues["bybit"].ledger.received() == []
        await two.create_order(*spot("signal, second leg"))
        await two.cancel_order(order["id"])  # by venue id alone: its own, although the other has the same
        assert server.venues["binance"].order(order["id"]).is_open
        assert server.venues["bybit"].open_orders() == []


async def test_what_is_in_doubt_at_one_venue_is_never_looked_for_or_placed_at_another():
    async with both_on_one_journal(2.0) as (server, one, two):
        server.plans["bybit"].strike_next(Operation.CREATE, Fault.DROP_REPLY)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(two.create_order(*spot("signal")), 0.1)
        requests = len(server.requests)
        recovery = await one.recover()
        assert (recovery.settled, recovery.unresolved, len(server.requests)) == ((), (), requests)
        assert [record.intent.key for record in (await two.recover()).settled] == ["signal"]
        accepted = {name: len(venue.ledger.accepted()) for name, venue in server.venues.items()}
        assert accepted == {"binance": 0, "bybit": 1}
