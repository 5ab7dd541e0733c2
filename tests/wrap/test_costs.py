"""An order is for a quantity: what ccxt would take for money to spend is refused, and buys nothing (guarantee 2)."""

from __future__ import annotations

import pytest

from execsafe.errors import UnsupportedByVenue
from execsafe.testing.http.server import default_venue
from execsafe.venues._details import DETAILS
from wrap.rig import RESTING, a_rig, at_both_venues, buy, journal_of, outcome

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(2)]

SPOT, CONTRACT = "BTC/USDT", "BTC/USDT:USDT"
SPOT_VENUES = ("binance", "bybit", "mexc")  # whose clients read amount × price of a spot market order as money


def ways_to_spend_100_usdt():
    """Methods of ccxt and their arguments."""
    for side in ("buy", "sell"):
        yield "create_market_order_with_cost", (SPOT, side, 100), {}
        yield f"create_market_{side}_order_with_cost", (SPOT, 100), {}
        yield "createMarketOrderWithCost", (SPOT, side, 100), {}
        yield "create_order", (SPOT, "market", side, 0.01), {"cost": 100}
        yield "create_order", (SPOT, "market", side, 0.01), {"quoteOrderQty": 100}
        yield "create_order", (SPOT, "market", side, None), {"cost": 100}
    yield "create_order", (SPOT, "market", "buy", 100, 1), {}
    yield "create_order", (SPOT, "Market", "buy", 0.001, 100_000), {}
    yield "create_market_order", (SPOT, "buy", 100, 1), {}
    yield "create_order", (SPOT, "market", "buy", 100, 1), {"triggerPrice": 70_000}


@pytest.mark.parametrize("name", SPOT_VENUES)
async def test_a_budget_is_never_taken_for_a_quantity(name):
    async with a_rig(name, default_venue(name)) as rig:
        guarded = await rig.guard(ready=False)
        for method, arguments, params in ways_to_spend_100_usdt():
            end = await outcome(getattr(guarded, method)(*arguments, params=params))
            assert isinstance(end, ValueError), (method, arguments, params, end)  # InvalidInput is one
        assert rig.accepted() == []
        assert rig.ledger.fills() == []
        assert await journal_of(guarded) == (0, 0)


@pytest.mark.parametrize("name", SPOT_VENUES)
async def test_the_refusal_says_how_to_give_the_order(name):
    async with a_rig(name, default_venue(name)) as rig:
        guarded = await rig.guard(ready=False)
        with pytest.raises(UnsupportedByVenue, match="quantity in base currency, without a price"):
            await guarded.create_order(SPOT, "market", "buy", 100, 1)
        with pytest.raises(UnsupportedByVenue, match="quantity in base currency, without a price"):
            await guarded.create_market_buy_order_with_cost(SPOT, 100)
        order = await guarded.create_order(SPOT, "market", "buy", 0.01)
        [accepted] = rig.accepted()
        assert (accepted.client_order_id, float(accepted.quantity)) == (order["clientOrderId"], 0.01)
        assert not any(guarded.has[name] for name in guarded.has if str(name).endswith("WithCost"))


@pytest.mark.parametrize("name", SPOT_VENUES)
async def test_a_market_sale_with_a_price_sells_the_quantity_as_it_does_without_the_guard(name):
    """A bot that gives a price with every order must still get out."""
    async with a_rig(name, default_venue(name)) as rig:
        guarded = await rig.guard(ready=False)
        await guarded.create_order(SPOT, "market", "buy", 0.05)
        order = await guarded.create_order(SPOT, "market", "sell", 0.02, 59_000)
        sold = rig.accepted()[-1]
        assert (sold.side.value, float(sold.quantity)) == ("sell", 0.02)
        assert (order["type"], order["filled"]) == ("market", 0.02)


async def test_a_spot_stop_that_is_a_market_order_is_not_edited_with_a_price_either():
    async with a_rig() as rig:
        guarded = await rig.guard()
        await guarded.create_order(SPOT, "market", "buy", 1)
        stop = await guarded.create_order(SPOT, "market", "sell", 0.5, None, {"triggerPrice": 50_000})
        with pytest.raises(UnsupportedByVenue, match="without a price"):
            await guarded.edit_order(stop["id"], SPOT, "market", "sell", 1, 1)
        assert rig.venue.order(stop["id"]).is_open
        assert len(rig.accepted()) == 2


@pytest.mark.parametrize("kind", ["market", "MARKET", "Market"])
@pytest.mark.parametrize("side", ["buy", "SELL"])
async def test_a_price_with_a_market_order_of_contracts_is_left_out_and_the_quantity_stands(kind, side):
    async with a_rig("bybit") as rig:
        guarded = await rig.guard()
        order = await guarded.create_order(CONTRACT, kind, side, 0.01, 30_000, {"intentKey": "k"})
        rig.assert_truthful(order)
        assert (order["filled"], order["type"], order["average"]) == (0.01, "market", 60_000)
        assert order["price"] != 30_000


async def test_a_price_that_bounds_the_slippage_of_a_market_order_stays(monkeypatch):
    async with a_rig() as rig:
        guarded = await rig.guard()
        monkeypatch.setattr(guarded.adapter, "details", DETAILS["hyperliquid"])
        sent = []

        async def create(*order):
            sent.append(order)
            return {"id": "1", "status": "closed", "clientOrderId": order[5]["newClientOrderId"]}

        guarded.exchange.create_order = create
        await outcome(guarded.create_order(SPOT, "market", "buy", 0.01, 61_000, {"intentKey": "k"}))
        assert {(order[3], order[4]) for order in sent} == {(0.01, 61_000)}


@at_both_venues
async def test_a_limit_order_has_a_price_as_ever(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        rig.assert_truthful(await buy(guarded, price=RESTING))
