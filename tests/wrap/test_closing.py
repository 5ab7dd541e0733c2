"""What a guarded exchange does after it was closed, and when its client is closed under it (guarantee 2)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys

import ccxt.async_support
import pytest

import execsafe
from execsafe.errors import InvalidInput, VenueUnavailable
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
        if how == "close":
            with pytest.raises(VenueUnavailable, match="nothing was sent"):
                await guarded.cancel_order(order.venue_order_id, rig.symbol)
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


# --- the client is closed under the guard ----------------------------------------------------------------------------


async def close_session(exchange):
    await exchange.session.close()


async def close_exchange(exchange):
    await exchange.close()


@pytest.mark.parametrize("close", [close_session, close_exchange])
@at_both_venues
async def test_nothing_is_journalled_or_looked_for_when_the_clients_session_is_closed(name, close):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        await close(guarded.exchange)
        journal, requests = await journal_of(guarded), len(rig.server.requests)
        for call in (
            lambda: buy(guarded, "after"),
            lambda: guarded.create_market_buy_order(rig.symbol, 0.01),
            lambda: guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.02),
            lambda: guarded.cancel_order(order["id"], rig.symbol),
            lambda: guarded.cancel_order("4711", rig.symbol),
            guarded.recover,
        ):
            with pytest.raises(VenueUnavailable, match="nothing was sent"):
                await call()
        assert await journal_of(guarded) == journal
        assert len(rig.server.requests) == requests
        assert len(rig.accepted()) == 1
        another = await rig.guard()
        assert (await buy(another, "after"))["status"] == "open"


async def test_two_guards_on_one_exchange_can_be_used_one_after_the_other_but_not_beyond_a_close():
    async with a_rig() as rig:
        exchange = rig.exchange()
        one = await rig.guard(exchange)
        async with execsafe.wrap(exchange, store=rig.url, profile=quick("binance")) as other:
            await buy(other, "other")
        await buy(one, "one")
        assert len(rig.accepted()) == 2
        await other.close()
        with pytest.raises(VenueUnavailable, match=r"open\(\) is called"):
            await buy(one, "late")


# --- nothing is left behind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
async def test_who_has_the_exchange_itself_may_go_on_with_it_after_the_block_however_it_was_left(fails):
    async with a_rig() as rig:
        exchange = rig.exchange()
        with contextlib.suppress(ZeroDivisionError):
            async with execsafe.wrap(exchange, store=rig.url, profile=quick("binance")) as guarded:
                await buy(guarded)
                if fails:
                    raise ZeroDivisionError
        assert guarded.is_closed
        assert (await exchange.fetch_ticker(rig.symbol))["symbol"] == rig.symbol


async def test_a_store_that_fails_to_close_does_not_keep_the_exchange_open(monkeypatch):
    async with a_rig() as rig:
        guarded = a_guard(rig)
        await buy(guarded)
        close = guarded.store.aclose

        async def fails():
            await close()
            raise execsafe.StoreError("disk full")

        monkeypatch.setattr(guarded.store, "aclose", fails)
        with pytest.raises(execsafe.StoreError):
            await guarded.close()
        assert guarded.exchange.session is None


def test_an_object_that_is_not_closed_is_left_as_it_is():
    class Small:
        id = "binance"

        async def create_order(self, *order):
            raise NotImplementedError

    async def main():
        async with execsafe.wrap(Small(), store="memory://") as guarded:
            assert not guarded.is_closed
        assert guarded.is_closed

    asyncio.run(main())


A_BOT = """
import asyncio, ccxt.async_support as ccxt, execsafe

exchange = ccxt.binance({"apiKey": "canary-key", "secret": "canary-secret", "timeout": 200})
exchange.urls["api"] = {name: "http://localhost:9" for name in exchange.urls["api"]}  # nobody listens there

async def main():
    BLOCK
        try:
            await guarded.create_order("BTC/USDT", "limit", "buy", 0.01, 60000)
        except ccxt.NetworkError as error:
            print("not reached")

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "block",
    [
        "async with execsafe.wrap(exchange, store='memory://') as guarded:",
        "guarded = execsafe.wrap(exchange, store='memory://')\n    if True:",  # never closed
    ],
)
def test_a_process_that_ends_says_nothing_of_an_unclosed_session_nor_of_a_filter_that_failed(block):
    done = subprocess.run(
        [sys.executable, "-c", A_BOT.replace("BLOCK", block)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "not reached"
    assert "Traceback" not in done.stderr
    assert "canary" not in done.stderr
    if "with" in block:
        assert done.stderr == ""


def test_a_log_line_that_cannot_be_redacted_is_dropped(caplog, monkeypatch):
    exchange = ccxt.async_support.binance({"apiKey": "canary-key"})
    adapter = execsafe.CcxtAdapter(exchange)
    caplog.set_level(logging.DEBUG)
    exchange.logger.warning("requires %s", "canary-key")
    assert [record.getMessage() for record in caplog.records] == ["requires ***"]
    exchange.logger.warning("a number: %d", "canary-key")

    def fails(_text):
        raise ImportError("sys.meta_path is None, Python is likely shutting down")

    monkeypatch.setattr(exchange.logger, "_redact", fails)
    exchange.logger.warning("canary-key")
    assert len(caplog.records) == 1
    assert adapter.exchange is exchange
