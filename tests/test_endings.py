"""An order that its venue forgot: its end is proven, what it filled is known, and late evidence wins."""

from __future__ import annotations

from decimal import Decimal

import anyio
import attrs
import pytest

from execsafe.core.exposure import worst_case
from execsafe.gateway import Accepted, Unknown
from execsafe.model.event import EventType
from execsafe.model.intent import AttemptState, Intent, IntentState
from execsafe.model.order import Side
from execsafe.model.outcome import Operation
from execsafe.model.venue import Dedup
from execsafe.reconcile import Reconciler
from execsafe.testing.adapter import SIM_PROFILE
from execsafe.testing.faults import Fault
from execsafe.testing.loop import virtual_backends
from execsafe.testing.sim_errors import ExchangeNotAvailable
from execsafe.testing.venue import NewOrder
from protection_rig import PERPETUAL, World

pytestmark = pytest.mark.anyio
D = Decimal
LAG_S = SIM_PROFILE.read_lag_s + SIM_PROFILE.clock_skew_s


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


async def resting(process, **more):
    """An order that the venue will forget the moment it ends."""
    process.plan.strike_next(Operation.CREATE, Fault.PRUNED_AFTER_END)
    facts = {"symbol": PERPETUAL, "side": "buy", "quantity": 1, "limit_price": 10_000}
    outcome = await process.gateway.submit(Intent(key="k", **{**facts, **more}))
    assert isinstance(outcome, Accepted)
    return outcome.record


def end_at_venue(world, record):
    """Canceled by hand, on the venue's page."""
    world.venue.cancel(world.clock.now_ms(), symbol=PERPETUAL, venue_order_id=record.last.venue_order_id)


async def unreadable(*_args, **_more):
    raise ExchangeNotAvailable("502 Bad Gateway")


@pytest.mark.guarantee(4, 13)
@pytest.mark.row("S1-44")
async def test_g4_a_cancel_that_no_view_shows_ends_canceled_once_the_end_is_proven():
    world = World()
    process = world.process()
    await resting(process)
    began_ms = world.clock.now_ms()
    outcome = await process.gateway.cancel("k")
    assert isinstance(outcome, Accepted)
    assert (outcome.record.state, outcome.record.last.state) == (IntentState.CANCELED, AttemptState.VANISHED)
    assert world.clock.now_ms() - began_ms >= 2 * LAG_S * 1_000
    assert world.kinds(EventType.ORDER_VANISHED) == [EventType.ORDER_VANISHED]
    assert (await process.registry.open_records()) == []


@pytest.mark.guarantee(1, 11)
async def test_g11_what_it_filled_before_it_vanished_is_in_the_record_to_the_last_digit():
    world = World()
    process = world.process()
    record = await resting(process)
    world.venue.fill(record.last.venue_order_id, world.clock.now_ms(), D("0.3"))
    outcome = await process.gateway.cancel("k")
    assert outcome.record.state is IntentState.CANCELED
    assert outcome.record.filled_quantity == D("0.3") == world.held()
    assert outcome.record.average_price == 10_000
    await process.book.catch_up()
    assert process.book.position("default", PERPETUAL).quantity == D("0.3")


@pytest.mark.guarantee(18)
async def test_g18_without_the_list_of_fills_nothing_is_concluded_and_the_order_counts_in_full():
    world = World()
    process = world.process()
    await resting(process)
    fetch, process.adapter.fetch_executions = process.adapter.fetch_executions, unreadable
    outcome = await process.gateway.cancel("k")
    assert isinstance(outcome, Unknown)
    assert outcome.record.state is IntentState.LIVE
    assert worst_case(outcome.record) == 1
    process.adapter.fetch_executions = fetch
    await process.gateway.recover()
    assert (await process.registry.find("k")).state is IntentState.CANCELED


async def test_an_order_that_was_canceled_by_hand_and_forgotten_is_noticed_by_looking_twice():
    """Nobody asked for its end. One look cannot tell it from a list that lags."""
    world = World()
    process = world.process()
    record = await resting(process)
    end_at_venue(world, record)
    await anyio.sleep(LAG_S)
    await process.gateway.recover()
    assert (await process.registry.find("k")).state is IntentState.LIVE
    await anyio.sleep(LAG_S / 2)
    await process.gateway.recover()
    assert (await process.registry.find("k")).state is IntentState.LIVE
    await anyio.sleep(LAG_S)
    await process.gateway.recover()
    assert (await process.registry.find("k")).state is IntentState.CANCELED


@pytest.mark.guarantee(13)
async def test_g13_a_process_that_is_started_again_takes_both_looks_anew():
    world = World()
    record = await resting(world.process())
    end_at_venue(world, record)
    await anyio.sleep(LAG_S)
    await world.process().gateway.recover()
    await anyio.sleep(LAG_S)
    second = world.process()
    await second.gateway.recover()
    assert (await second.registry.find("k")).state is IntentState.LIVE
    await anyio.sleep(LAG_S)
    await second.gateway.recover()
    assert (await second.registry.find("k")).state is IntentState.CANCELED


@pytest.mark.guarantee(4)
async def test_g4_an_order_that_is_seen_again_between_two_looks_starts_the_proof_anew():
    world = World()
    process = world.process()
    await resting(process)
    look_up, missing = process.adapter.look_up, True

    async def sometimes(lookup, order):
        return None if missing else await look_up(lookup, order)

    process.adapter.look_up = sometimes
    await anyio.sleep(LAG_S)
    await process.gateway.recover()
    missing = False
    await process.gateway.recover()
    missing = True
    await anyio.sleep(LAG_S)
    await process.gateway.recover()
    assert (await process.registry.find("k")).state is IntentState.LIVE


@pytest.mark.guarantee(1)
async def test_g1_a_replaced_order_that_vanished_is_followed_by_what_is_left_of_the_new_total():
    world = World()
    process = world.process()
    record = await resting(process)
    world.venue.fill(record.last.venue_order_id, world.clock.now_ms(), D("0.4"))
    outcome = await process.gateway.replace("k", quantity=2, limit_price=9_000)
    assert isinstance(outcome, Accepted)
    assert [attempt.quantity for attempt in outcome.record.attempts] == [1, D("1.6")]
    open_now = world.venue.open_orders(PERPETUAL)
    assert [order.leaves_quantity for order in open_now] == [D("1.6")]
    assert world.held() + sum(order.leaves_quantity for order in open_now) == 2


@pytest.mark.guarantee(11)
async def test_g11_an_order_that_was_called_gone_and_rests_after_all_counts_again_and_is_canceled_again():
    """All views failed to show it for longer than the venue's lag. The wish to cancel it still stands."""
    world = World()
    process = world.process()
    await resting(process)
    look_up, cancel_order = process.adapter.look_up, process.adapter.cancel_order

    async def nothing(*_args):
        return None

    process.adapter.look_up, process.adapter.cancel_order = nothing, nothing
    assert (await process.gateway.cancel("k")).record.state is IntentState.CANCELED
    assert len(world.venue.open_orders(PERPETUAL)) == 1
    process.adapter.look_up, process.adapter.cancel_order = look_up, cancel_order
    reconciler = Reconciler(process.gateway, process.book, symbols=[PERPETUAL])
    await reconciler.reconcile()
    assert (await process.registry.find("k")).state is IntentState.CANCELED, "the listing may be from before"
    await anyio.sleep(LAG_S)
    await reconciler.reconcile()
    revived = await process.registry.find("k")
    assert revived.state is IntentState.LIVE
    assert worst_case(revived) == 1
    assert EventType.INTENT_REVIVED in world.kinds()
    await process.gateway.recover()
    assert world.venue.open_orders(PERPETUAL) == []


@pytest.mark.guarantee(4)
async def test_g4_of_an_order_older_than_the_venues_memory_nothing_is_concluded():
    """What it filled at first may be in no list any more."""
    world = World(profile=attrs.evolve(SIM_PROFILE, history_s=3_600.0))
    process = world.process()
    record = await resting(process)
    await anyio.sleep(3_600)
    end_at_venue(world, record)
    outcome = await process.gateway.cancel("k")
    assert isinstance(outcome, Unknown)
    assert outcome.record.state is IntentState.LIVE


async def stop_order(process):
    """A stop, placed after a position was opened."""
    await process.buy("1")
    facts = {"side": "sell", "limit_price": None, "trigger_price": 50_000, "reduce_only": True}
    return await resting(process, **facts)


async def test_a_stop_order_that_was_canceled_and_forgotten_has_ended_where_every_fill_is_known():
    world = World()
    process = world.process()
    await stop_order(process)
    outcome = await process.gateway.cancel("k")
    assert (outcome.record.state, outcome.record.filled_quantity) == (IntentState.CANCELED, 0)


@pytest.mark.guarantee(4)
async def test_g4_a_stop_order_beside_a_fill_that_nobody_knows_is_not_called_gone():
    """Some venues book what a stop filled under an order id of its own: the fill could be the stop's."""
    world = World()
    process = world.process()
    await stop_order(process)
    request = NewOrder(symbol=PERPETUAL, side=Side.SELL, quantity=D(1), type="market", client_order_id=None)
    world.venue.submit(request, world.clock.now_ms())
    outcome = await process.gateway.cancel("k")
    assert isinstance(outcome, Unknown)
    assert outcome.record.state is IntentState.LIVE


@pytest.mark.guarantee(4)
async def test_a_stop_order_has_ended_beside_fills_that_count_as_somebody_elses_already():
    world = World()
    process = world.process()
    await stop_order(process)
    process.gateway.endings.consult(process.book)
    somebody_trades(world)
    assert isinstance(await process.gateway.cancel("k"), Unknown)
    for fill in await process.adapter.fetch_executions(PERPETUAL, since_ms=0):
        await process.book.apply_execution(fill)
    outcome = await process.gateway.cancel("k")
    assert (outcome.record.state, outcome.record.filled_quantity) == (IntentState.CANCELED, 0)


@pytest.mark.guarantee(4)
async def test_g4_without_the_venues_order_id_its_fills_cannot_be_told_from_others():
    world = World()
    process = world.process()
    record = await resting(process)
    nameless = attrs.evolve(record.last, venue_order_id=None)
    await process.registry.advance(record, lambda r: attrs.evolve(r, attempts=(nameless,)))
    somebody_trades(world)
    outcome = await process.gateway.cancel("k")
    assert isinstance(outcome, Unknown)
    assert outcome.record.state is IntentState.LIVE


# --- Orders that nothing but a duplicate-id reject tells of -------------------------------------------------


def somebody_trades(world):
    """A fill of the symbol that belongs to no order of ours."""
    request = NewOrder(symbol=PERPETUAL, side=Side.SELL, quantity=D(1), type="market", client_order_id=None)
    world.venue.submit(request, world.clock.now_ms())


ENDED_AT_ONCE = {"symbol": PERPETUAL, "side": "buy", "quantity": 1, "limit_price": 10_000, "time_in_force": "IOC"}


def misled(world, **more):
    """A process that loses the answer to its order; the order ends unseen, and a resend is called a duplicate."""
    process = world.process(**more)
    process.plan.strike_next(Operation.CREATE, Fault.DROP_REPLY)
    process.plan.strike_next(Operation.CREATE, Fault.PRUNED_AFTER_END)
    return process


@pytest.mark.guarantee(1, 4, 13)
async def test_g4_an_order_that_ended_unseen_and_that_a_resend_is_a_duplicate_of_ends_canceled():
    """It was taken for absent. Nothing is sent a third time, nothing stays open, and nobody is told that it failed."""
    world = World(dedup=Dedup.FOREVER)
    process = misled(world)
    outcome = await process.gateway.submit(Intent(key="k", **ENDED_AT_ONCE))
    assert isinstance(outcome, Accepted)
    states = [attempt.state for attempt in outcome.record.attempts]
    assert states == [AttemptState.ABSENT, AttemptState.VANISHED]
    assert (outcome.record.state, outcome.record.filled_quantity) == (IntentState.CANCELED, 0)
    assert world.kinds(EventType.ORDER_VANISHED) == [EventType.ORDER_VANISHED]
    assert (await process.registry.open_records()) == []
    assert len(world.venue.ledger.accepted()) == 1


@pytest.mark.guarantee(1, 11)
async def test_g11_what_it_filled_before_it_ended_unseen_is_credited():
    world = World(dedup=Dedup.FOREVER)
    process = misled(world)
    world.price(9_000)
    outcome = await process.gateway.submit(Intent(key="k", **ENDED_AT_ONCE))
    assert outcome.record.filled_quantity == world.held() == 1
    assert outcome.record.state is IntentState.FILLED


@pytest.mark.guarantee(4)
@pytest.mark.parametrize("doubt", ["a fill that nobody knows", "no list of fills"])
async def test_g4_where_its_fills_cannot_be_known_it_stays_unresolved_and_counts_in_full(doubt):
    world = World(dedup=Dedup.FOREVER)
    process = misled(world)
    fetch = process.adapter.fetch_executions
    if doubt == "no list of fills":
        process.adapter.fetch_executions = unreadable
    else:
        somebody_trades(world)
    outcome = await process.gateway.submit(Intent(key="k", **ENDED_AT_ONCE))
    assert isinstance(outcome, Unknown)
    assert outcome.record.state is IntentState.UNRESOLVED
    assert worst_case(outcome.record) == 1
    process.adapter.fetch_executions = fetch
    await process.gateway.recover()
    is_known = doubt == "no list of fills"
    assert (await process.registry.find("k")).state is (IntentState.CANCELED if is_known else IntentState.UNRESOLVED)
