"""A call to a venue ends in time, and nobody but us can cancel it."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from execsafe._calls import CallAborted, within
from execsafe.errors import VenueUnavailable
from execsafe.gateway import Accepted, GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry
from execsafe.model.intent import Intent, IntentState
from execsafe.stores.memory import MemoryStore
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from fakes import FakeAdapter, FakeVenue

pytestmark = pytest.mark.anyio
LIMIT = Intent(key="k", symbol="BTC/USDT", side="buy", quantity=1, limit_price=100)


class TestOnBothLoops:
    @pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
    def anyio_backend(self, request):
        return virtual_backends()[request.param]

    async def test_it_ends_the_call_after_its_time_and_goes_on(self):
        ended = False
        with within(1.0):
            await anyio.sleep(2)
            ended = True
        assert not ended

    async def test_our_own_cancellation_passes_through(self):
        with anyio.move_on_after(1.0) as scope:
            with within(5.0):
                await anyio.sleep(10)
            pytest.fail("the caller was cancelled")
        assert scope.cancelled_caught

    async def test_an_error_passes_through(self):
        with pytest.raises(ValueError, match="no"), within(1.0):
            raise ValueError("no")


class TestOnAsyncio:
    """Nothing but trio itself can cancel a task of trio's; on asyncio anybody can raise the error."""

    @pytest.fixture
    def anyio_backend(self):
        return virtual_backends()[0]

    async def test_a_cancellation_that_nobody_asked_for_is_an_error_of_the_call(self):
        with pytest.raises(CallAborted), within(1.0):
            raise asyncio.CancelledError

    async def test_a_request_that_another_caller_cancelled_for_all_is_one_too(self):
        shared = asyncio.get_running_loop().create_future()

        async def wait() -> str:
            try:
                with within(5.0):
                    await shared
            except CallAborted:
                return "aborted"
            return "answered"

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        shared.cancel()
        assert await task == "aborted"

    async def test_a_task_that_is_cancelled_ends(self):
        async def wait() -> None:
            with within(5.0):
                await anyio.sleep(10)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    @pytest.mark.guarantee(4, 13)
    async def test_g4_a_client_that_gives_up_by_itself_leaves_a_doubt_and_no_dead_task(self):
        gateway, adapter, venue = await guarded()
        create = adapter.create_order

        async def accepted_and_given_up(request):
            await create(request)
            raise asyncio.CancelledError

        adapter.create_order = accepted_and_given_up
        outcome = await gateway.submit(LIMIT)
        assert isinstance(outcome, Accepted)
        assert len(venue.orders) == 1

    @pytest.mark.guarantee(13)
    async def test_g13_recovery_names_every_intent_whatever_its_client_raises(self):
        gateway, adapter, _ = await guarded(patience_s=1.0)

        async def given_up(*_args):
            raise asyncio.CancelledError

        adapter.create_order = adapter.look_up = given_up
        await gateway.submit(LIMIT)
        recovery = await gateway.recover()
        assert [record.state for record in recovery.unresolved] == [IntentState.UNRESOLVED]

    async def test_rules_that_cannot_be_read_for_that_reason_are_said_to_be_unavailable(self):
        gateway, adapter, venue = await guarded()

        async def given_up(_symbol):
            raise asyncio.CancelledError

        adapter.prepare = given_up
        with pytest.raises(VenueUnavailable):
            await gateway.submit(LIMIT)
        assert venue.orders == []


async def guarded(**policy):
    clock, store = VirtualClock(), MemoryStore()
    await store.open()
    venue = FakeVenue(clock)
    adapter = FakeAdapter(venue)
    gateway = OrderGateway(
        adapter,
        IntentRegistry(store, clock=clock),
        policy=GatewayPolicy(request_timeout_s=1.0, **policy),
        looks=LookPolicy(interval_s=0.5, spacing_s=0.0, timeout_s=1.0),
        clock=clock,
    )
    return gateway, adapter, venue
