"""What becomes of an order whose reply, or whose request, got lost: one order, truthfully reported (bar 3)."""

from __future__ import annotations

import asyncio

import pytest

import execsafe
from execsafe.errors import OutcomeUnknown
from execsafe.model.event import EventType
from execsafe.model.intent import IntentState
from execsafe.model.outcome import Operation
from execsafe.testing.faults import Fault, Strike
from execsafe.testing.venue import FillStep, SimVenue
from wrap.rig import (
    MARKETABLE,
    READ_LAG_S,
    RESTING,
    SKEW_S,
    TIMEOUT_S,
    WINDOW_S,
    a_rig,
    at_both_venues,
    at_once,
    buy,
    outcome,
    quick,
    record_of,
)  # fmt: skip

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(3, 4)]

AFTER_ACCEPTANCE = (
    (Fault.DROP_REPLY, None),
    (Fault.HANG, None),
    (Fault.TRUNCATED_BODY, None),
    (Fault.RESET_CONNECTION, 1),
    (Fault.SERVER_ERROR_ACCEPTED, 502),
    (Fault.SERVER_ERROR_ACCEPTED, 504),
    (Fault.EMPTY_OK, 0),
    (Fault.EMPTY_OK, 1),
    (Fault.EMPTY_OK, 2),
)
BEFORE_ACCEPTANCE = (
    (Fault.DROP_REQUEST, None),
    (Fault.RESET_CONNECTION, 0),
    (Fault.SERVER_ERROR_NOT_ACCEPTED, 503),
    (Fault.MAINTENANCE, 300),
)


async def adopted(name, fault, value, price, **config):
    async with a_rig(name, SimVenue(read_lag_ms=round(READ_LAG_S * 500))) as rig:
        # A longer window: a disk that stands still before the request goes out must not make it come too late.
        guarded = await rig.guard(rig.exchange(**config), profile=quick(name, expiry_window_s=2.0))
        rig.strike(fault, value)
        order = await buy(guarded, price=price)
        rig.assert_truthful(order)
        assert rig.orders_sent() == rig.plan.fired[fault] == 1
        assert order["filled"] == (0.01 if price == MARKETABLE else 0)


@pytest.mark.parametrize("price", [RESTING, MARKETABLE])
@at_both_venues
async def test_an_order_whose_reply_got_lost_is_adopted(name, price):
    await at_once(*(adopted(name, fault, value, price) for fault, value in AFTER_ACCEPTANCE))


@at_both_venues
async def test_it_is_adopted_too_when_the_client_times_out_before_the_guard(name):
    await at_once(*(adopted(name, f, None, RESTING, timeout=200) for f in (Fault.DROP_REPLY, Fault.HANG)))


@at_both_venues
async def test_a_lost_reply_to_a_partial_fill_is_adopted_with_what_had_filled(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        rig.venue.schedule_fills(rig.symbol, [FillStep(0, 0.4)])
        rig.strike(Fault.DROP_REPLY)
        order = await buy(guarded, price=MARKETABLE)
        rig.assert_truthful(order)
        assert (order["status"], order["filled"], order["remaining"]) == ("open", 0.004, 0.006)


@pytest.mark.parametrize("looks", ["fail", "lag"])
@at_both_venues
async def test_looks_that_fail_or_lag_delay_the_adoption_and_prove_nothing(name, looks):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        rig.strike(Fault.DROP_REPLY)
        fault, value = (Fault.LOOKUP_ERROR, 502) if looks == "fail" else (Fault.LOOKUP_LAG, 10_000)
        for ordinal in range(1, 10):
            rig.plan.script([Strike(Operation.LOOK_UP, ordinal, fault, value)])
        order = await buy(guarded, price=MARKETABLE)
        rig.assert_truthful(order)
        assert rig.plan.fired[fault] == 9
        assert rig.orders_sent() == 1


# --- the request got lost --------------------------------------------------------------------------------------------


async def placed_in_the_end(name, fault, value, price):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        rig.strike(fault, value)
        order = await buy(guarded, price=price)
        rig.assert_truthful(order)
        assert rig.plan.fired[fault] == 1
        assert rig.orders_sent() == 2
        record = await record_of(guarded)
        assert record.attempts[0].state.value == "absent"
        assert len({attempt.client_order_id for attempt in record.attempts}) == 1


@pytest.mark.parametrize("price", [RESTING, MARKETABLE])
@at_both_venues
async def test_an_order_whose_request_got_lost_is_placed_once_in_the_end(name, price):
    await at_once(*(placed_in_the_end(name, fault, value, price) for fault, value in BEFORE_ACCEPTANCE))


@at_both_venues
async def test_a_request_that_is_lost_every_time_ends_as_not_placed_and_the_venue_has_nothing(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard(profile=quick(name, expiry_window_s=0.2, read_lag_s=0.05), request_timeout_s=0.2)
        for ordinal in range(1, 9):
            rig.plan.script([Strike(Operation.CREATE, ordinal, Fault.DROP_REQUEST)])
        with pytest.raises(execsafe.NotPlaced, match="proven not to be at the venue after 4 attempts"):
            await buy(guarded)
        with pytest.raises(execsafe.NotPlaced):
            await buy(guarded)
        assert rig.accepted() == []
        assert rig.orders_sent() == 4
        assert (await record_of(guarded)).state is IntentState.FAILED_FINAL


# --- the request arrives late ----------------------------------------------------------------------------------------


async def late_within_the_deadline(name, skew_ms, fault, value, price):
    venue = SimVenue(skew_ms=skew_ms, read_lag_ms=round(READ_LAG_S * 1000))
    async with a_rig(name, venue) as rig:
        guarded = await rig.guard(profile=quick(name, expiry_window_s=1.0))
        rig.strike(fault, value)
        order = await buy(guarded, price=price)
        rig.assert_truthful(order)
        assert rig.orders_sent() == 1
        assert EventType.ORDER_IN_DOUBT in {event.type for event in rig.events}


@at_both_venues
async def test_a_request_that_arrives_after_the_time_out_but_within_its_deadline_is_adopted(name):
    late = round(TIMEOUT_S * 1000) + 200
    last = (Fault.LATE_ARRIVAL_AFTER_LOOK, None)
    await at_once(
        *(
            late_within_the_deadline(name, skew_ms, *fault, price)
            for skew_ms in (-round(SKEW_S * 1000), 0, round(SKEW_S * 1000))
            for fault in ((Fault.DELAY_REQUEST, late), last)
            for price in (RESTING, MARKETABLE)
        )
    )


@at_both_venues
async def test_a_request_that_arrives_after_its_deadline_is_refused_and_the_order_placed_once_by_a_second(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        # A relative window begins when the request is signed.
        rig.strike(Fault.DELAY_REQUEST, round(WINDOW_S * 1000) + 250)
        order = await buy(guarded, price=MARKETABLE)
        await asyncio.sleep(0.3)
        rig.assert_truthful(order)
        assert rig.orders_sent() == 2


@at_both_venues
async def test_without_expiry_and_uniqueness_a_lost_request_stays_unknown_and_is_adopted_when_it_arrives(name):
    async with a_rig(name, SimVenue(dedup="none")) as rig:
        profile = quick(name, expiry="none", dedup="none")
        guarded = await rig.guard(profile=profile, patience_s=0.3)
        rig.strike(Fault.DELAY_REQUEST, 1_800)
        for _ in range(2):
            with pytest.raises(OutcomeUnknown, match="do not resend"):
                await buy(guarded, price=MARKETABLE)
            assert (await record_of(guarded)).state is IntentState.UNRESOLVED
        unsettled = await guarded.recover()
        assert [record.intent.key for record in unsettled.unresolved] == ["k"]
        await rig.until_accepted()
        order = await buy(guarded, price=MARKETABLE)
        rig.assert_truthful(order)
        assert rig.orders_sent() == 1
        assert EventType.ORDER_ADOPTED in {event.type for event in rig.events}
        assert EventType.INTENT_FAILED not in {event.type for event in rig.events}


@at_both_venues
async def test_recovering_after_the_late_arrival_adopts_it_in_a_new_process_too(name):
    async with a_rig(name, SimVenue(dedup="none")) as rig:
        profile = quick(name, expiry="none", dedup="none")
        guarded = await rig.guard(profile=profile, patience_s=0.3)
        rig.strike(Fault.DELAY_REQUEST, 1_000)
        with pytest.raises(OutcomeUnknown):
            await buy(guarded)
        await guarded.store.aclose()
        await rig.until_accepted()

        again = await rig.guard(profile=profile, patience_s=0.3)
        settled = await again.recover()
        assert [(r.intent.key, r.state) for r in settled.settled] == [("k", IntentState.LIVE)]
        rig.assert_truthful(await buy(again))
        assert rig.orders_sent() == 1


@at_both_venues
async def test_without_expiry_but_with_uniqueness_for_ever_there_are_never_two(name):
    async with a_rig(name, SimVenue(dedup="forever")) as rig:
        guarded = await rig.guard(profile=quick(name, expiry="none", dedup="forever"), patience_s=0.2)
        rig.strike(Fault.DELAY_REQUEST, 1_200)
        answers = []
        while not answers or isinstance(answers[-1], Exception):
            answers.append(await outcome(buy(guarded, price=MARKETABLE)))
        assert {type(answer) for answer in answers[:-1]} == {OutcomeUnknown}
        rig.assert_truthful(answers[-1])
        assert rig.orders_sent() == 1


async def test_a_request_that_the_network_delivers_twice_is_one_order_where_ids_are_unique_for_ever():
    async with a_rig("bybit") as rig:
        guarded = await rig.guard()
        rig.strike(Fault.DUPLICATE_DELIVERY, 50)
        order = await buy(guarded, price=MARKETABLE)
        await asyncio.sleep(0.1)
        rig.assert_truthful(order)


# --- the caller goes away --------------------------------------------------------------------------------------------


@at_both_venues
async def test_a_caller_that_gives_up_waiting_finds_its_order_when_it_asks_again(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        rig.strike(Fault.DROP_REPLY)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(buy(guarded), 0.15)
        assert (await record_of(guarded)).state is IntentState.IN_DOUBT
        rig.assert_truthful(await buy(guarded))
        assert rig.orders_sent() == 1


@at_both_venues
async def test_a_request_that_was_lost_under_a_cancelled_call_is_not_taken_for_placed(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        rig.strike(Fault.DROP_REQUEST)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(buy(guarded), 0.15)
        settled = await guarded.recover()
        assert [record.state for record in settled.settled] == [IntentState.LIVE]
        rig.assert_truthful(await buy(guarded))
        assert rig.orders_sent() == 2
