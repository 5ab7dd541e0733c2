"""What a venue states under ids of its own: the trade of our triggered stop must not be counted a second time."""

from decimal import Decimal

import anyio
import attrs
import pytest

from execsafe.model.order import Side
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import NewOrder
from protection_rig import PERPETUAL, World

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(10)]


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class NamesItsOwn:
    """Makes a venue state the trades of set-off stops under ids of its own, as Binance USD-M does.

    While ``is_blind``, no order can be looked up alone; lists of fills can be read.
    """

    def __init__(self, process, world):
        fetch = process.adapter.fetch_executions
        stops = {e.venue_order_id for e in world.venue.ledger.accepted() if e.is_stop}

        async def fetch_executions(symbol, *, since_ms):
            found = await fetch(symbol, since_ms=since_ms)
            return [
                attrs.evolve(e, client_order_id=None, venue_order_id=f"9{e.venue_order_id}")
                if e.venue_order_id in stops
                else e
                for e in found
            ]

        async def look_up(lookup, order):
            if self.is_blind:
                raise ConnectionError("not now")
            return await look(lookup, order)

        self.is_blind = False
        look = process.adapter.look_up
        process.adapter.fetch_executions = fetch_executions
        process.adapter.look_up = look_up


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
