"""Orders through the real client with the journal on a server: what holds with a file holds there."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter

import pytest

from execsafe.errors import AlreadyInFlight
from execsafe.testing.faults import Fault
from wrap.rig import MARKETABLE, a_rig, buy, outcome

pytestmark = pytest.mark.anyio
CALLS = 50


@pytest.fixture
def anyio_backend():
    return "asyncio"  # ccxt's client runs on nothing else


@pytest.fixture(params=["redis", "postgres"])
def url(request):
    if request.param == "postgres":
        return request.getfixturevalue("postgres_url")
    return f"{request.getfixturevalue('redis_url')}?prefix=t{uuid.uuid4().hex[:12]}"


@pytest.mark.guarantee(6)
async def test_g6_of_fifty_identical_calls_of_two_guards_one_places_the_order(url):
    async with a_rig("binance") as rig:
        rig.url = url
        guards = [await rig.guard(), await rig.guard()]
        rig.strike(Fault.DROP_REPLY)  # so that it is in flight for as long as all of them ask
        ends = await asyncio.gather(*(outcome(buy(guards[n % 2], price=MARKETABLE)) for n in range(CALLS)))
        [order] = [end for end in ends if isinstance(end, dict)]
        rig.assert_truthful(order)
        assert Counter(type(end) for end in ends) == {dict: 1, AlreadyInFlight: CALLS - 1}
        assert rig.orders_sent() == 1


@pytest.mark.guarantee(3, 5)
@pytest.mark.parametrize("fault", [Fault.DROP_REPLY, Fault.DROP_REQUEST])
async def test_g3_g5_a_lost_reply_is_found_and_the_next_process_knows_the_result(url, fault):
    async with a_rig("bybit") as rig:
        rig.url = url
        first = await rig.guard()
        rig.strike(fault)
        order = await buy(first, price=MARKETABLE)
        rig.assert_truthful(order)
        assert len(rig.accepted()) == 1
        sent = rig.orders_sent()
        again = await buy(await rig.guard(), price=MARKETABLE)
        assert (again["id"], again["filled"]) == (order["id"], order["filled"])
        assert (len(rig.accepted()), rig.orders_sent()) == (1, sent)
