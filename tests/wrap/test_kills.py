"""A process is killed with SIGKILL between two steps; the next one settles what it left (guarantee 13)."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from execsafe.model.intent import IntentState
from execsafe.model.outcome import Operation
from execsafe.testing.faults import Fault, Strike
from wrap.rig import RESTING, a_rig, at_both_venues, buy, plainly, record_of

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(2, 13)]

HERE = Path(__file__).parent


async def killed_process(rig):
    """It dies once the venue has seen five creates and two cancels."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    arguments = [str(HERE / "dies.py"), rig.name, rig.server.url, rig.url]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=env)
    try:
        async with asyncio.timeout(60):
            while rig.plan._ordinals[Operation.CREATE] < 5 or rig.plan._ordinals[Operation.CANCEL] < 2:
                assert process.returncode is None
                await asyncio.sleep(0.01)
    finally:
        process.kill()
        await process.wait()


@at_both_venues
async def test_what_a_killed_process_left_between_two_steps_is_settled_by_the_next_one(name):
    async with a_rig(name) as rig:
        rig.plan.script(
            [
                Strike(Operation.CREATE, 4, Fault.HANG),
                Strike(Operation.CREATE, 5, Fault.DROP_REQUEST),
                Strike(Operation.CANCEL, 1, Fault.DROP_REQUEST),
                Strike(Operation.CANCEL, 2, Fault.HANG),
            ]
        )
        await killed_process(rig)
        assert len(rig.accepted()) == 4
        [rests, canceled, _edited, arrived] = rig.accepted()
        rig.venue.fill(rests.venue_order_id, rig.server.clock.now_ms(), plainly(0.004))

        guarded = await rig.guard(ready=False)
        recovery = await guarded.recover()
        assert (recovery.unresolved, recovery.held_elsewhere) == ((), ())
        states = {record.intent.key: record.state for record in recovery.settled}
        assert states == {
            "rests": IntentState.LIVE,
            "arrives": IntentState.LIVE,
            "is lost": IntentState.LIVE,
            "is canceled": IntentState.CANCELED,
            "is edited": IntentState.LIVE,
        }
        at_venue = {order.client_order_id: order for order in rig.venue.open_orders()}
        record = {key: await record_of(guarded, key) for key in states}
        assert at_venue.keys() == {
            record[key].last.client_order_id for key in ("rests", "arrives", "is lost", "is edited")
        }
        assert record["arrives"].last.venue_order_id == arrived.venue_order_id
        assert record["is canceled"].last.venue_order_id == canceled.venue_order_id
        assert record["rests"].filled_quantity == plainly(0.004)
        edited = at_venue[record["is edited"].last.client_order_id]
        assert (edited.quantity, edited.limit_price) == (plainly(0.02), 41_000)
        assert len(rig.accepted()) == 6  # the lost one and the edited one

        requests = rig.orders_sent()
        again = await guarded.recover()
        assert again.unresolved == again.held_elsewhere == ()
        repeats = {key: (await buy(guarded, key, price=RESTING))["id"] for key in states}
        assert repeats == {key: record[key].last.venue_order_id for key in states}
        assert rig.orders_sent() == requests
