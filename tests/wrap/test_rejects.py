"""Definite rejects: the client's own exception, once, remembered for the key; and duplicate ids, which are none."""

from __future__ import annotations

import asyncio
import re

import ccxt
import pytest

from execsafe.errors import InvalidOrder, OutcomeUnknown, VenueUnavailable
from execsafe.model.event import EventType
from execsafe.model.intent import IntentState
from execsafe.model.outcome import Operation
from execsafe.testing.faults import Fault, Strike
from execsafe.testing.venue import SimVenue
from wrap.rig import MARKETABLE, RESTING, a_rig, at_both_venues, at_once, buy, journal_of, outcome, quick, record_of

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(5)]

# What the bare client raises at each venue for the same wire.
CLASSES = {
    Fault.REJECT_FUNDS: {"binance": ccxt.InsufficientFunds, "bybit": ccxt.InsufficientFunds},
    Fault.REJECT_FILTER: {"binance": ccxt.InvalidOrder, "bybit": ccxt.BadRequest},
    Fault.RATE_LIMITED: {"binance": ccxt.DDoSProtection, "bybit": ccxt.RateLimitExceeded},
    Fault.TIMESTAMP_REJECT: {"binance": ccxt.InvalidNonce, "bybit": ccxt.InvalidNonce},
}


async def rejected(name, fault):
    async with a_rig(name) as rig:
        bare = rig.exchange()
        await bare.load_markets()
        rig.strike(fault)
        plain = await outcome(bare.create_order(rig.symbol, "limit", "buy", 0.01, RESTING))
        before = rig.orders_sent()

        guarded = await rig.guard()
        rig.strike(fault)
        error = await outcome(buy(guarded))
        assert type(error) is type(plain) is CLASSES[fault][name]
        assert re.sub(r"\d{13}", "time", str(error)) == re.sub(r"\d{13}", "time", str(plain))
        assert rig.orders_sent() == before + 1

        again = await outcome(buy(guarded))
        await guarded.store.aclose()
        restarted = await outcome(buy(await rig.guard()))
        for repeat in (again, restarted):
            assert type(repeat) is type(plain)
            assert str(repeat) == str(error)
        assert rig.orders_sent() == before + 1
        assert rig.accepted() == []
        kinds = [event.type for event in rig.events if event.type is not EventType.CALL_DEDUPLICATED]
        assert kinds == [EventType.INTENT_RECORDED, EventType.ATTEMPT_SENDING, EventType.ORDER_REJECTED]

        fresh = await buy(await rig.guard(), "a new key is a new try")
        rig.assert_truthful(fresh)


@at_both_venues
async def test_a_definite_reject_raises_what_the_bare_client_raises_once_and_for_the_key_for_ever(name):
    await at_once(*(rejected(name, fault) for fault in CLASSES))


@at_both_venues
async def test_a_key_that_the_venue_refuses_is_an_authentication_error(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        guarded.apiKey = "revoked"
        for _ in range(2):
            with pytest.raises(ccxt.AuthenticationError):
                await buy(guarded)
        assert (rig.accepted(), rig.orders_sent()) == ([], 1)


async def test_so_it_is_when_it_is_refused_while_the_account_is_asked_for_its_mode_and_then_nothing_is_journalled():
    async with a_rig("bybit") as rig:
        guarded = await rig.guard(rig.exchange(apiKey="revoked"), ready=False)
        with pytest.raises(ccxt.AuthenticationError):
            await buy(guarded)
        assert (rig.orders_sent(), await journal_of(guarded)) == (0, (0, 0))


@at_both_venues
async def test_a_venue_that_cannot_be_asked_for_its_markets_is_unavailable_and_nothing_is_journalled(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard(ready=False)
        faces, rig.server._faces = rig.server._faces, {}  # everything is answered with 404 and HTML
        with pytest.raises(VenueUnavailable, match=r"ExchangeNotAvailable.*nothing was sent"):
            await buy(guarded)
        assert (rig.orders_sent(), await journal_of(guarded)) == (0, (0, 0))
        rig.server._faces = faces
        rig.assert_truthful(await buy(guarded))


@at_both_venues
async def test_a_caller_that_leaves_while_the_markets_are_loaded_does_not_disturb_the_others(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard(ready=False)
        leaving, staying = (asyncio.create_task(buy(guarded, key)) for key in ("leaves", "stays"))
        while not rig.server.requests:
            await asyncio.sleep(0)
        leaving.cancel()
        rig.assert_truthful(await staying)
        assert leaving.cancelled()


async def test_a_refused_connection_is_a_reject_because_nothing_was_sent():
    async with a_rig() as rig:
        guarded = await rig.guard()
        await rig.server._runner.cleanup()
        with pytest.raises(ccxt.ExchangeNotAvailable):
            await buy(guarded)
        assert (await record_of(guarded)).state is IntentState.REJECTED
        assert rig.orders_sent() == 0


# --- duplicates ------------------------------------------------------------------------------------------------------


@at_both_venues
async def test_an_id_that_the_venue_has_already_is_looked_up_and_its_order_adopted(name):
    """The journal was lost (here: two of them), and the same decision is made again."""
    async with a_rig(name) as rig:
        lost = await rig.guard(store="memory://")
        first = await buy(lost)
        guarded = await rig.guard()
        order = await buy(guarded)
        rig.assert_truthful(order)
        assert (order["id"], rig.orders_sent()) == (first["id"], 2)
        doubt = [event.error for event in rig.events if event.type is EventType.ORDER_IN_DOUBT]
        assert [(facts.kind, "uplicate" in facts.message) for facts in doubt] == [("InvalidOrder", True)]


async def test_an_id_used_up_by_a_filled_order_is_adopted_where_ids_are_unique_for_ever():
    async with a_rig("bybit") as rig:
        await buy(await rig.guard(store="memory://"), price=MARKETABLE)
        order = await buy(await rig.guard(), price=MARKETABLE)
        rig.assert_truthful(order)
        assert order["filled"] == 0.01


@at_both_venues
async def test_a_duplicate_that_no_view_shows_stays_unknown_and_is_never_sent_again(name):
    async with a_rig(name, SimVenue(dedup="forever")) as rig:
        await buy(await rig.guard(store="memory://"))
        # Its views may lag for longer than anybody waits: neither absence nor an end can be proven in time.
        guarded = await rig.guard(profile=quick(name, expiry_window_s=0.2, read_lag_s=60.0), patience_s=1.0)
        for ordinal in range(1, 1_000):
            rig.plan.script([Strike(Operation.LOOK_UP, ordinal, Fault.LOOKUP_LAG, 60_000)])
        with pytest.raises(OutcomeUnknown):
            await buy(guarded)
        assert (await record_of(guarded)).state is IntentState.UNRESOLVED
        assert rig.orders_sent() == 2
        rig.plan.stop()
        rig.assert_truthful(await buy(guarded))
        assert rig.orders_sent() == 2


async def test_a_reject_that_arrives_after_the_time_out_is_an_unknown_proven_absent_and_then_placed():
    """The venue refuses a request that nobody hears about: the next attempt is the order."""
    async with a_rig() as rig:
        guarded = await rig.guard()
        rig.plan.script([Strike(Operation.CREATE, 1, Fault.REJECT_FUNDS), Strike(Operation.CREATE, 1, Fault.HANG)])
        rig.assert_truthful(await buy(guarded))
        assert rig.orders_sent() == 2
        assert [entry.reason for entry in rig.ledger.rejected()] == ["insufficient_funds"]


@pytest.mark.guarantee(12)
async def test_g12_a_spot_purchase_that_calls_itself_reduce_only_is_refused():
    """It would go out as a plain purchase: the venue knows no such thing on spot."""
    async with a_rig("binance") as rig:
        guarded = await rig.guard()
        with pytest.raises(InvalidOrder, match="reduces nothing"):
            await guarded.create_order(rig.symbol, "market", "buy", 0.01, None, {"reduceOnly": True})
        assert rig.orders_sent() == 0
