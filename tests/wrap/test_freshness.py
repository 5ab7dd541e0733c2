"""An entry that could not be sent in its time is not sent later, at whatever price there is then."""

from __future__ import annotations

import math

import anyio
import ccxt.async_support
import pytest

import execsafe
from execsafe.core.ghosts import default_patience_s
from execsafe.errors import InvalidInput, NotPlaced, TradingDenied
from execsafe.model.intent import IntentState
from execsafe.stores.memory import MemoryStore
from execsafe.testing.faults import Fault
from wrap.rig import PATIENCE_S, a_rig, at_both_venues, buy, record_of

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(17)]
LONG_AGO_MS = 1_000_000_000_000  # in 2001
DAY_MS = 86_400_000


class Clock:
    """A clock that is set forward by hand, for what an earlier process left behind."""

    def __init__(self, rig) -> None:
        self.rig, self.ahead_ms = rig, 0

    def now_ms(self) -> int:
        return self.rig.server.clock.now_ms() + self.ahead_ms


async def dies_while_sending(rig, **params):
    """The process ends with its request under way, which never arrives; the guard of the next one."""
    rig.strike(Fault.DROP_REQUEST)
    guarded = await rig.guard(request_timeout_s=0.3)
    with anyio.move_on_after(0.15):
        await buy(guarded, **params)
    assert rig.accepted() == []
    record = await record_of(guarded)
    await guarded.store.aclose()
    return record


@at_both_venues
async def test_an_order_of_hours_ago_is_proven_absent_and_not_sent_by_a_recovery(name):
    async with a_rig(name) as rig:
        await dies_while_sending(rig)
        clock = Clock(rig)
        clock.ahead_ms = DAY_MS // 4
        restarted = await rig.guard(clock=clock, request_timeout_s=0.3)
        recovery = await restarted.recover()
        assert [record.state for record in recovery.settled] == [IntentState.FAILED_FINAL]
        assert rig.accepted() == []
        with pytest.raises(NotPlaced):
            await buy(restarted)
        assert rig.accepted() == []


@pytest.mark.guarantee(4)
async def test_g4_an_order_older_than_the_venues_lists_is_neither_sent_nor_said_not_to_be_there():
    """Bybit lists what ended for a day: it may have been accepted, canceled and forgotten since."""
    async with a_rig("bybit") as rig:
        await dies_while_sending(rig)
        clock = Clock(rig)
        clock.ahead_ms = 2 * DAY_MS
        restarted = await rig.guard(clock=clock, request_timeout_s=0.3, patience_s=0.5)
        recovery = await restarted.recover()
        assert [record.state for record in recovery.unresolved] == [IntentState.UNRESOLVED]
        assert rig.accepted() == []


@at_both_venues
async def test_an_order_lost_a_moment_ago_is_sent_again_once_it_is_proven_lost(name):
    async with a_rig(name) as rig:
        await dies_while_sending(rig)
        restarted = await rig.guard(request_timeout_s=0.3)
        await restarted.recover()
        rig.assert_truthful(await buy(restarted))


@pytest.mark.parametrize("how", ["fresh_for_s", "freshUntilMs"])
async def test_an_order_that_may_wait_for_ever_is_sent_a_day_later(how):
    async with a_rig() as rig:
        clock = Clock(rig)
        rig.strike(Fault.DROP_REQUEST)
        guarded = await rig.guard(request_timeout_s=0.3, fresh_for_s=math.inf if how == "fresh_for_s" else 60.0)
        with anyio.move_on_after(0.15):
            await buy(guarded, **({"freshUntilMs": None} if how == "freshUntilMs" else {}))
        await guarded.store.aclose()
        clock.ahead_ms = DAY_MS
        restarted = await rig.guard(clock=clock, request_timeout_s=0.3)
        await restarted.recover()
        assert len(rig.accepted()) == 1


async def test_a_time_of_its_own_is_not_part_of_the_payload_and_ends_the_call_before_anything_is_sent():
    async with a_rig() as rig:
        guarded = await rig.guard()
        now_ms = rig.server.clock.now_ms()
        with pytest.raises(TradingDenied, match="stale"):
            await buy(guarded, freshUntilMs=now_ms - 1)
        assert await guarded.registry.find("k") is None
        for malformed in ("soon", 1.5, -1, True):
            with pytest.raises(InvalidInput, match=r"fresh_until_ms|freshUntilMs"):
                await buy(guarded, freshUntilMs=malformed)
        order = await buy(guarded, freshUntilMs=now_ms + 60_000)
        for other in ({}, {"freshUntilMs": now_ms - 1}, {"freshUntilMs": None}):
            assert (await buy(guarded, **other))["id"] == order["id"]
        assert rig.orders_sent() == 1


@pytest.mark.parametrize("in_seconds", [1_900_000_000, 1_900_000_000.5, 0, -1])
async def test_a_time_in_seconds_is_refused_and_the_unit_named(in_seconds):
    async with a_rig() as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        with pytest.raises(InvalidInput, match="freshUntilMs is in Unix milliseconds"):
            await buy(guarded, "late", freshUntilMs=in_seconds)
        with pytest.raises(InvalidInput, match="freshUntilMs is in Unix milliseconds"):
            await guarded.edit_order(order["id"], rig.symbol, price=39_000, params={"freshUntilMs": in_seconds})
        assert (rig.orders_sent(), rig.venue.order(order["id"]).is_open) == (1, True)


async def test_exits_are_never_too_late():
    async with a_rig("bybit") as rig:
        guarded = await rig.guard()
        await guarded.create_market_buy_order(rig.symbol, 0.02)
        params = {"reduceOnly": True, "freshUntilMs": LONG_AGO_MS}
        order = await guarded.create_order(rig.symbol, "market", "sell", 0.01, None, params)
        assert order["filled"] == 0.01


@at_both_venues
async def test_an_order_is_edited_long_after_its_own_time(name):
    """An edit is a new decision, with a time of its own; it is sent again after a proof like any other."""
    async with a_rig(name) as rig:
        clock = Clock(rig)
        guarded = await rig.guard(clock=clock)
        order = await buy(guarded)
        clock.ahead_ms = DAY_MS
        rig.strike(Fault.DROP_REQUEST)
        edited = await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.02, 41_000)
        assert (edited["status"], edited["amount"]) == ("open", 0.02)
        with pytest.raises(TradingDenied, match="stale"):
            await guarded.edit_order(edited["id"], rig.symbol, price=42_000, params={"freshUntilMs": LONG_AGO_MS})
        eternal = await rig.guard(clock=clock, fresh_for_s=math.inf)
        clock.ahead_ms *= 2
        assert (await eternal.edit_order(edited["id"], rig.symbol, price=39_000))["status"] == "open"


@pytest.mark.parametrize("name", ["binance", "bybit", "kraken", "kucoin"])
@pytest.mark.parametrize("timeout_s", [1.0, 10.0, 60.0])
async def test_the_usual_time_is_a_minute_or_what_a_proof_takes(name, timeout_s):
    exchange = getattr(ccxt.async_support, name)()
    guarded = execsafe.wrap(exchange, store=MemoryStore(), request_timeout_s=timeout_s, patience_s=PATIENCE_S)
    assert guarded.fresh_for_s == max(60.0, default_patience_s(execsafe.profile_for(name), timeout_s))
    await exchange.close()


@pytest.mark.parametrize("wrong", [0, -1, math.nan, "60", True])
async def test_a_time_that_is_none_is_refused(wrong):
    async with a_rig() as rig:
        with pytest.raises(InvalidInput, match="fresh_for_s"):
            execsafe.wrap(rig.exchange(), store="memory://", fresh_for_s=wrong)
