"""What a venue states under ids of its own: the trade of our triggered stop must not be counted a second time."""

from decimal import Decimal

import anyio
import pytest

from execsafe.model.event import EventType
from execsafe.model.order import Side
from execsafe.model.outcome import Operation
from execsafe.testing.faults import Fault
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import NewOrder
from protection_rig import PERPETUAL, NamesItsOwn, World

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(10)]


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


async def test_g10_the_trade_of_a_stop_that_was_set_off_is_counted_once():
    world = World()
    process = world.process()
    position = await process.buy()
    await process.manager.check()
    assert world.stops()
    venue = NamesItsOwn(process, world)
    venue.is_blind = True
    world.price(40_000)
    assert world.held() == 0

    await process.manager.close(position.position_id)  # refused: there is nothing to close
    for number in range(20):
        venue.is_blind = number < 10
        await process.manager.check()
        await anyio.sleep(1)

    assert process.book.position("default", PERPETUAL) is None
    assert process.book.open_positions() == ()


async def test_g10_what_somebody_else_closed_is_booked_up_to_what_the_venue_shows():
    world = World()
    process = world.process()
    position = await process.buy()
    await anyio.sleep(1)
    world.venue.submit(
        NewOrder(symbol=PERPETUAL, side=Side.SELL, quantity=Decimal("0.1"), type="market", reduce_only=True),
        world.clock.now_ms(),
    )
    assert world.held() == 0
    await process.manager.close(position.position_id)
    for _ in range(20):
        await process.manager.check()
        await anyio.sleep(1)

    assert process.book.position("default", PERPETUAL) is None


async def test_a_position_that_only_the_book_still_has_is_not_closed_over_and_over():
    """The venue has liquidated it and forgotten the stop, and nobody reconciles: the alarm stands, requests are few."""
    world = World()
    process = world.process()
    position = await process.buy()
    process.plan.strike_next(Operation.CREATE, Fault.PRUNED_AFTER_END)
    await process.manager.check()
    now_ms = world.clock.now_ms()
    world.venue.submit(
        NewOrder(symbol=PERPETUAL, side=Side.SELL, quantity=Decimal("0.1"), type="market", reduce_only=True), now_ms
    )
    for order in world.venue.open_orders(PERPETUAL):
        world.venue.cancel(now_ms, symbol=PERPETUAL, venue_order_id=order.venue_order_id)
    with anyio.move_on_after(3_600):
        await process.manager.run()
    assert process.book.find(position.position_id).is_open
    assert EventType.POSITION_UNPROTECTED in world.kinds()
    closes = [one for one in world.venue.ledger.received() if one.reduce_only and not one.is_stop]
    assert 30 <= len(closes) <= 80
