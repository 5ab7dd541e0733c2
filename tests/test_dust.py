"""An entry whose stop could not be placed is not sent; what can be neither protected nor closed is dust, told once."""

from decimal import Decimal

import pytest

from execsafe.core.opening import OpeningState
from execsafe.errors import InvalidOrder, UnsupportedByVenue, VenueUnavailable
from execsafe.model.event import EventType
from execsafe.model.outcome import Operation
from execsafe.model.units import Percent
from execsafe.protection import (
    Active,
    EntryDust,
    EntryFailed,
    EntryPlan,
    OpeningPolicy,
    ProtectionState,
    StopRule,
)
from execsafe.testing.faults import Fault, Strike
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import FillStep
from protection_rig import PERPETUAL, SPOT, World

pytestmark = pytest.mark.anyio
D = Decimal
E = EventType


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


def plan(**changes) -> EntryPlan:
    base = {"key": "k", "symbol": SPOT, "side": "long", "quantity": "0.01", "stop": StopRule(distance=Percent(4))}
    return EntryPlan(**{**base, **changes})


# --- Before the entry ---------------------------------------------------------------------------------------


def refuse_stops(intent):
    if intent.is_trigger:
        raise UnsupportedByVenue("stops would go out as plain orders")


def break_down(_intent):
    raise KeyError("a defect in a subclass, and a secret")


@pytest.mark.guarantee(10)
@pytest.mark.parametrize("symbol", [SPOT, PERPETUAL])
async def test_g10_where_no_stop_can_be_placed_nothing_is_bought(symbol):
    """Bought all the same, each signal would cost a round trip: the stop is refused, and the position is sold again."""
    world = World()
    process = world.process()
    process.adapter.check = refuse_stops
    outcome = await process.opener.open(plan(symbol=symbol, leverage=None if symbol == SPOT else 5))
    assert isinstance(outcome, EntryFailed)
    assert isinstance(outcome.error, UnsupportedByVenue)
    assert "no stop could be placed" in outcome.reason
    assert "plain orders" in outcome.reason
    assert world.venue.ledger.received() == []
    assert world.kinds(E.ENTRY_FAILED) == [E.ENTRY_FAILED]
    del process.adapter.check
    assert isinstance(await process.opener.open(plan(key="next", symbol=symbol)), Active), "the symbol is free again"


async def test_a_check_that_breaks_down_is_a_no_and_its_words_are_not_written_down():
    world = World()
    process = world.process()
    process.adapter.check = break_down
    outcome = await process.opener.open(plan())
    assert isinstance(outcome, EntryFailed)
    assert "no stop could be placed: KeyError" in outcome.reason
    assert "secret" not in outcome.reason
    assert world.venue.ledger.received() == []


@pytest.mark.guarantee(10)
@pytest.mark.parametrize(
    ("quantity", "stop"),
    [
        pytest.param("0.00009", StopRule(distance=Percent(4)), id="fee and step take it below the minimum value"),
        pytest.param("0.0001", StopRule(stop_price=30_000), id="at the stop's own price it is worth too little"),
        pytest.param("0.00001", StopRule(distance=Percent(4)), id="the fee takes it below one step"),
    ],
)  # fmt: skip
async def test_g10_an_entry_too_small_for_its_stop_is_refused(quantity, stop):
    world = World()
    limit = {"limit_price": "60600", "time_in_force": "IOC"}
    outcome = await world.process().opener.open(plan(quantity=quantity, stop=stop, **limit))
    assert isinstance(outcome, EntryFailed)
    assert isinstance(outcome.error, InvalidOrder)
    assert world.venue.ledger.received() == []


async def test_the_smallest_entry_that_passes_is_protected():
    world = World()
    outcome = await world.process().opener.open(plan(quantity="0.00011"))
    assert isinstance(outcome, Active)
    assert [quantity for quantity, _ in world.stops(SPOT)] == [D("0.0001")]


async def test_without_a_price_to_count_the_stop_from_nothing_is_sent():
    """A market order with a stop at a distance: the stop's place is only known from the market."""
    world = World()
    process = world.process()

    async def no_quotes(_symbols):
        return {}

    process.adapter.fetch_quotes = no_quotes
    outcome = await process.opener.open(plan())
    assert isinstance(outcome, EntryFailed)
    assert isinstance(outcome.error, VenueUnavailable)
    assert isinstance(await process.opener.open(plan(key="limit", limit_price=60_000)), Active), "it names its price"


# --- Dust ---------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(10)
async def test_g10_what_can_be_neither_protected_nor_closed_is_dust_told_once_and_left_alone():
    """0.00009 less the fee is 0.00008 on the step, worth 4.80: the venue takes neither a stop nor a sale of it."""
    world = World()
    process = world.process()
    position = await process.buy("0.00009", symbol=SPOT)
    for _ in range(20):
        await process.manager.check()
        world.clock.skip(5_000)
    record = process.manager.protection(position.position_id)
    assert (record.state, record.dust) == (ProtectionState.DUST, position.quantity)
    assert world.kinds(E.POSITION_DUST) == [E.POSITION_DUST]
    assert len(world.venue.ledger.received()) <= 3, "the entry, and a try or two"
    assert world.stops(SPOT) == []
    told = len(world.events)
    await process.manager.check()
    assert len(world.events) == told


async def test_less_than_one_step_is_dust_without_a_single_order():
    world = World(prices={SPOT: 600_000})
    process = world.process()
    position = await process.buy("0.00001", symbol=SPOT)
    await process.manager.check()
    assert process.manager.protection(position.position_id).state is ProtectionState.DUST
    assert len(world.venue.ledger.received()) == 1


async def test_dust_stays_dust_after_a_restart():
    world = World()
    first = world.process()
    position = await first.buy("0.00009", symbol=SPOT)
    await first.manager.check()
    second = world.process()
    [record] = await second.manager.recover()
    assert (record.position_id, record.state) == (position.position_id, ProtectionState.DUST)
    assert world.kinds(E.POSITION_DUST) == [E.POSITION_DUST]


@pytest.mark.guarantee(10)
async def test_g10_dust_that_grows_is_a_position_again_with_a_stop_of_its_own_place():
    """The old stop's price says nothing about what was bought since: it could trigger at once."""
    world = World()
    process = world.process()
    await process.buy("0.00009", symbol=SPOT)
    await process.manager.check()
    world.price(40_000, SPOT)
    position = await process.buy("0.01", symbol=SPOT, key="more")
    [record] = await process.manager.check()
    assert record.is_safe
    assert record.position_id == position.position_id
    assert record.stop_price < 40_000
    assert world.stops(SPOT) == [(D("0.01007"), record.stop_price)]


async def test_dust_is_tried_again_where_somebody_asks_for_it():
    """Its price has risen, so that it can be sold after all."""
    world = World()
    process = world.process()
    position = await process.buy("0.00009", symbol=SPOT)
    await process.manager.check()
    world.price(90_000, SPOT)
    await process.manager.close(position.position_id)
    assert process.book.find(position.position_id).quantity < D("0.00001")
    assert process.manager.protection(position.position_id).state is ProtectionState.DUST, "less than one step is left"


@pytest.mark.guarantee(10)
async def test_g10_an_entry_of_which_only_dust_filled_ends_as_dust_and_soon():
    world = World()
    process = world.process(opening=OpeningPolicy(entry_timeout_s=3.0))
    world.venue.schedule_fills(SPOT, [FillStep(0, D("0.005"))])
    began_ms = world.clock.now_ms()
    outcome = await process.opener.open(plan(limit_price=60_000))
    assert isinstance(outcome, EntryDust)
    assert outcome.opening.state is OpeningState.DUST
    assert outcome.position.quantity == D("0.00004995")
    assert "too little" in outcome.reason
    assert world.clock.now_ms() - began_ms < 10_000
    again = await process.opener.open(plan(limit_price=60_000))
    assert (type(again), again.reason) == (EntryDust, outcome.reason)
    assert await world.process().opener.recover() == ()


async def test_what_a_rollback_leaves_off_the_step_is_dust_too():
    world = World()
    process = world.process()
    process.plan.script([Strike(Operation.CREATE, n, Fault.REJECT_FILTER) for n in (2, 3, 4)])
    outcome = await process.opener.open(plan(quantity="0.01234"))
    assert isinstance(outcome, EntryDust)
    assert outcome.position.quantity == D("0.00000766")
    assert world.stops(SPOT) == []
