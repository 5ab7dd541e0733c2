"""An edit changes what it says, or is refused before the order is touched."""

from __future__ import annotations

import pytest

from execsafe.errors import InvalidInput, InvalidOrder, TradingDenied, UnsupportedByVenue
from wrap.rig import RESTING, a_rig, at_both_venues, buy, plainly, record_of

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(12)]


class NoMoreThan:
    """A pre-trade check."""

    def __init__(self, most) -> None:
        self.most = plainly(most)

    async def check(self, intent, instrument) -> None:
        if intent.quantity > self.most:
            raise TradingDenied(f"more than {self.most} {instrument.symbol}", reason="too_much")


@pytest.mark.parametrize("stop", ["triggerPrice", "stopPrice", "stopLossPrice", "takeProfitPrice"])
@at_both_venues
async def test_a_stop_is_moved_under_the_name_with_which_it_was_placed(name, stop):
    below = stop != "takeProfitPrice"
    first, moved = (50_000, 55_000) if below else (70_000, 75_000)
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        await guarded.create_market_buy_order(rig.symbol, 0.02)
        placed = await guarded.create_order(rig.symbol, "limit", "sell", 0.01, first - 1_000, {stop: first})
        edited = await guarded.edit_order(
            placed["id"], rig.symbol, "limit", "sell", 0.01, moved - 1_000, {stop: moved, "timeInForce": "GTC"}
        )
        assert (placed["triggerPrice"], edited["triggerPrice"]) == (first, moved)
        if stop in {"stopLossPrice", "takeProfitPrice"}:
            assert edited[stop] == moved
        *_, before, after = rig.accepted()
        triggers = [rig.venue.order(entry.venue_order_id).request.trigger_price for entry in (before, after)]
        assert triggers == [first, moved]
        later = await guarded.edit_order(edited["id"], rig.symbol, None, None, 0.005)
        assert (later["triggerPrice"], later["amount"]) == (moved, 0.005)


@at_both_venues
async def test_an_edit_into_a_post_only_order_makes_one(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        edited = await guarded.edit_order(order["id"], rig.symbol, price=41_000, params={"postOnly": True})
        assert edited["postOnly"] is True
        assert rig.venue.order(edited["id"]).request.post_only


@at_both_venues
async def test_what_an_edit_cannot_change_is_refused_by_name_and_the_order_stays(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        requests = len(rig.server.requests)
        bad = [
            ({"stopLossPrice": 30_000}, InvalidInput, "stopLossPrice"),
            ({"triggerPrice": 30_000}, InvalidInput, "triggerPrice"),
            ({"reduceOnly": True}, UnsupportedByVenue, "reduceOnly"),
            ({"leverage": 5}, UnsupportedByVenue, "leverage"),
            ({"timeInForce": 7}, InvalidInput, "time_in_force"),
            ({"postOnly": "yes"}, InvalidInput, "post_only"),
            ({"freshUntilMs": "soon"}, InvalidInput, "fresh_until_ms"),
        ]
        for params, kind, text in bad:
            with pytest.raises(kind, match=text):
                await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.02, 41_000, params)
        assert len(rig.server.requests) == requests
        params = {"postOnly": True, "timeInForce": "FOK"}
        with pytest.raises(InvalidOrder, match="post-only and FOK"):
            await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.02, 41_000, params)
        assert rig.venue.order(order["id"]).is_open
        same = {"intentKey": "k", "reduceOnly": False, "clientOrderId": order["clientOrderId"]}
        assert (await guarded.edit_order("", rig.symbol, amount=0.02, params=same))["amount"] == 0.02


@at_both_venues
async def test_a_check_refuses_a_create_and_an_edit_and_the_order_stays(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard(checks=[NoMoreThan("0.05")])
        with pytest.raises(TradingDenied, match=r"more than 0\.05"):
            await guarded.create_order(rig.symbol, "limit", "buy", 0.06, RESTING)
        order = await buy(guarded)
        with pytest.raises(TradingDenied, match=r"more than 0\.05"):
            await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.06)
        assert (rig.venue.order(order["id"]).is_open, rig.orders_sent()) == (True, 1)
        rig.venue.fill(order["id"], rig.server.clock.now_ms(), plainly(0.004))
        edited = await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.054)
        assert (edited["amount"], edited["filled"]) == (0.054, 0.004)


@at_both_venues
async def test_a_rest_below_the_minimum_is_refused_and_the_order_stays(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        rig.venue.fill(order["id"], rig.server.clock.now_ms(), plainly(0.0099))
        with pytest.raises(InvalidOrder):
            await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.00990001, 41_000)
        assert rig.venue.order(order["id"]).is_open
        assert (await record_of(guarded)).change is None


@pytest.mark.parametrize("wrong", [[object()], "check", [None]])
async def test_checks_that_are_none_are_refused(wrong):
    async with a_rig() as rig:
        with pytest.raises(InvalidInput, match="checks"):
            await rig.guard(checks=wrong)
