"""What a guarded exchange does after it was closed, and when its client is closed under it (guarantee 2)."""

from __future__ import annotations

import pytest

import execsafe
from execsafe.errors import InvalidInput
from wrap.rig import MARKETABLE, a_rig, at_both_venues, buy, journal_of, quick

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(2)]


def a_guard(rig, **settings):
    exchange = rig.exchange()
    return execsafe.wrap(exchange, store=rig.url, profile=quick(rig.name), request_timeout_s=1.0, **settings)


async def leave(guarded, how):
    if how == "close":
        await buy(guarded, "before")  # without `async with`: opened on first use
        await guarded.close()
    else:
        async with guarded:
            await buy(guarded, "before")


@pytest.mark.parametrize("how", ["block", "close"])
@at_both_venues
async def test_a_closed_exchange_sends_no_orders(name, how):
    async with a_rig(name) as rig:
        guarded = a_guard(rig)
        await leave(guarded, how)
        [order] = rig.venue.open_orders()
        requests = len(rig.server.requests)
        for call in (
            lambda: buy(guarded, "after"),
            lambda: guarded.createLimitBuyOrder(rig.symbol, 0.01, 40_000),
            lambda: guarded.edit_order(order.venue_order_id, rig.symbol, "limit", "buy", 0.02),
            guarded.recover,
        ):
            with pytest.raises(InvalidInput, match="this exchange is closed"):
                await call()
        assert len(rig.server.requests) == requests
        assert len(rig.accepted()) == 1
        another = await rig.guard()
        assert await another.registry.find("after") is None


@pytest.mark.parametrize("how", ["block", "close"])
@at_both_venues
async def test_entering_again_opens_it_again_journal_and_all(name, how):
    async with a_rig(name) as rig:
        guarded = a_guard(rig)
        await leave(guarded, how)
        async with guarded:
            again = await buy(guarded, "before")
            new = await buy(guarded, "after", price=MARKETABLE)
            assert new["filled"] == 0.01
            assert await journal_of(guarded) != (0, 0)
        assert {entry.venue_order_id for entry in rig.accepted()} == {again["id"], new["id"]}
        with pytest.raises(InvalidInput, match="closed"):
            await buy(guarded, "once more")
