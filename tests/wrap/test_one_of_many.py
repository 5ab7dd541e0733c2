"""Many identical calls at once, in one process and in several: exactly one order (bar 2)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from execsafe.errors import AlreadyInFlight, IntentConflict, OutcomeUnknown
from execsafe.model.event import EventType
from execsafe.testing.faults import Fault
from wrap.rig import MARKETABLE, RESTING, VENUES, a_rig, at_both_venues, at_once, buy, outcome, quick

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(6)]

CALLS, PROCESSES = 50, 4
HERE = Path(__file__).parent


async def ends_of(calls):
    ends = await asyncio.gather(*(outcome(call) for call in calls))
    orders = [end for end in ends if isinstance(end, dict)]
    return orders, Counter(type(end) for end in ends if not isinstance(end, dict))


@pytest.mark.parametrize("price", [RESTING, MARKETABLE])
@at_both_venues
async def test_of_fifty_identical_calls_at_once_one_places_the_order_and_the_others_are_told(name, price):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        orders, errors = await ends_of(buy(guarded, price=price) for _ in range(CALLS))
        [order] = orders
        rig.assert_truthful(order)
        assert errors == {AlreadyInFlight: CALLS - 1}
        assert rig.orders_sent() == 1
        told = [event for event in rig.events if event.type is EventType.CALL_DEDUPLICATED]
        assert len(told) == CALLS - 1


@at_both_venues
async def test_so_it_is_when_the_very_first_calls_still_have_to_load_the_markets(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard(ready=False)
        orders, errors = await ends_of(buy(guarded) for _ in range(CALLS))
        [order] = orders
        rig.assert_truthful(order)
        assert errors == {AlreadyInFlight: CALLS - 1}


@pytest.mark.parametrize("fault", [None, Fault.DROP_REPLY, Fault.DROP_REQUEST])
@at_both_venues
async def test_fifty_calls_that_join_share_one_order(name, fault):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        if fault is not None:
            rig.strike(fault)
        orders, errors = await ends_of(buy(guarded, join=True) for _ in range(CALLS))
        assert (len(orders), errors) == (CALLS, {})
        assert len({order["id"] for order in orders}) == 1
        for order in orders:
            rig.assert_truthful(order)


@at_both_venues
async def test_calls_that_join_share_a_doubt_too_instead_of_each_looking_for_it_again(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard(profile=quick(name, expiry="none"), patience_s=0.5)
        rig.strike(Fault.DROP_REQUEST)
        began = time.monotonic()
        orders, errors = await ends_of(buy(guarded, join=True) for _ in range(CALLS))
        assert (orders, errors) == ([], {OutcomeUnknown: CALLS})
        assert time.monotonic() - began < 2.5
        assert rig.orders_sent() == 1


@at_both_venues
async def test_calls_that_join_share_a_reject_too(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        rig.strike(Fault.REJECT_FUNDS)
        orders, errors = await ends_of(buy(guarded, join=True) for _ in range(CALLS))
        assert (orders, {kind.__name__ for kind in errors}, errors.total()) == ([], {"InsufficientFunds"}, CALLS)
        assert rig.orders_sent() == 1


@at_both_venues
async def test_the_same_key_with_another_payload_is_a_conflict_also_while_the_first_is_in_flight(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        ends = await asyncio.gather(
            *(outcome(buy(guarded, price=RESTING + n, join=True)) for n in range(CALLS)), return_exceptions=True
        )
        assert Counter(type(end) for end in ends) == {dict: 1, IntentConflict: CALLS - 1}
        assert len(rig.accepted()) == rig.orders_sent() == 1


@at_both_venues
async def test_two_guards_on_one_journal_exclude_each_other(name):
    async with a_rig(name) as rig:
        guards = [await rig.guard(), await rig.guard()]
        rig.strike(Fault.DROP_REPLY)
        orders, errors = await ends_of(buy(guards[n % 2]) for n in range(CALLS))
        [order] = orders
        rig.assert_truthful(order)
        assert errors == {AlreadyInFlight: CALLS - 1}
        assert rig.orders_sent() == 1


@at_both_venues
async def test_distinct_keys_one_after_another_and_all_at_once_are_all_placed(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard(request_timeout_s=5.0, profile=quick(name, expiry_window_s=5.0))
        first = [await buy(guarded, f"in turn {n}") for n in range(10)]
        second = await asyncio.gather(*(buy(guarded, f"at once {n}") for n in range(CALLS)))
        third = await asyncio.gather(*(buy(guarded, None) for _ in range(10)))
        ids = [order["id"] for order in [*first, *second, *third]]
        assert len(set(ids)) == len(rig.accepted()) == rig.orders_sent() == CALLS + 20


async def test_the_same_key_of_two_accounts_is_two_orders():
    async with a_rig() as rig:
        one, two = await rig.guard(account="one"), await rig.guard(account="two")
        await at_once(buy(one), buy(two))
        assert len(rig.accepted()) == 2


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def processes():
    """Four processes; give them a job and learn how the calls of all of them ended."""
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    path = os.pathsep.join([str(HERE.parent), *sys.path])
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "many.py"), **pipes, env={**os.environ, "PYTHONPATH": path}
        )
        for _ in range(PROCESSES)
    ]

    async def tell(line):
        for process in started:
            process.stdin.write(line.encode() + b"\n")

    async def answers():
        return [await process.stdout.readline() for process in started]

    async def run(rig, **params):
        job = {"name": rig.name, "server": rig.server.url, "store": rig.url, "calls": CALLS, "params": params}
        await tell(json.dumps(job))
        assert await answers() == [b"ready\n"] * PROCESSES
        await tell("go")
        return sum((Counter(json.loads(text)) for text in await answers()), Counter())

    yield run
    for process in started:
        process.stdin.close()
    for process in started:
        await process.wait()


@pytest.mark.parametrize("fault", [None, Fault.TRUNCATED_BODY, Fault.SERVER_ERROR_NOT_ACCEPTED])
@pytest.mark.parametrize("name", VENUES)
async def test_four_processes_with_fifty_calls_each_place_one_order(processes, name, fault):
    async with a_rig(name) as rig:
        if fault is not None:
            rig.strike(fault)
        ends = await processes(rig)
        assert len(rig.accepted()) == 1, ends
        assert ends.total() == PROCESSES * CALLS
        assert set(ends) == {rig.accepted()[0].venue_order_id, "AlreadyInFlight"}
        assert rig.orders_sent() == (2 if fault is Fault.SERVER_ERROR_NOT_ACCEPTED else 1)


@pytest.mark.parametrize("fault", [None, Fault.TRUNCATED_BODY])
@pytest.mark.parametrize("name", VENUES)
async def test_all_calls_of_four_processes_that_join_get_the_one_order(processes, name, fault):
    async with a_rig(name) as rig:
        if fault is not None:
            rig.strike(fault)
        ends = await processes(rig, join=True)
        assert len(rig.accepted()) == 1, ends
        assert ends == {rig.accepted()[0].venue_order_id: PROCESSES * CALLS}
        assert rig.orders_sent() == 1


async def test_calls_without_a_key_are_each_an_order_in_every_process(processes):
    async with a_rig() as rig:
        ends = await processes(rig, key=None)
        assert len(ends) == len(rig.accepted()) == PROCESSES * CALLS
