"""Reconciler: venue, book and journal are compared; nothing is guessed, nothing is told or done twice."""

from __future__ import annotations

import contextlib
from decimal import Decimal

import anyio
import attrs
import pytest

from execsafe.core.ids import client_order_id
from execsafe.errors import InvalidInput, StoreUnavailable, TradingDenied, UnsupportedByVenue
from execsafe.gateway import Accepted, OrderGateway
from execsafe.model.event import EventType
from execsafe.model.intent import AttemptState, Intent, IntentState
from execsafe.model.order import OrderReport, OrderStatus, Side
from execsafe.model.outcome import Operation
from execsafe.model.venue import IdRule
from execsafe.reconcile import EntryBarrier, Kind, ReconcilePolicy, Reconciler, Source
from execsafe.testing.faults import Fault, Reading, Strike
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import NewOrder
from protection_rig import LOOKS, PERPETUAL, SPOT, NamesItsOwn, Process, World

pytestmark = pytest.mark.anyio
D = Decimal
E = EventType
TOLD = (
    E.RECONCILED, E.DIFFERENCE_FOUND, E.FOREIGN_ORDER_FOUND, E.ORPHAN_STOP_FOUND, E.FILL_INFERRED,
    E.STUCK_ORDER_FOUND, E.VIEW_UNAVAILABLE,
)  # fmt: skip


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class Bot(Process):
    """A process with a reconciler in front of its entries."""

    def __init__(self, world, *, policy=None, keeps_stops=False, symbols=(PERPETUAL,), **more) -> None:
        super().__init__(world, **more)
        self.free = self.gateway  # asks nobody
        self.entries = EntryBarrier()
        self.gateway = OrderGateway(
            self.adapter, self.registry, looks=LOOKS, clock=world.clock, policy=self.free.policy, checks=[self.entries]
        )
        self.world = world
        self.reconciler = Reconciler(
            self.gateway,
            self.book,
            policy=policy,
            listeners=[world.events.append],
            symbols=symbols,
            stops=self.manager if keeps_stops else None,
            entries=self.entries,
        )

    async def hold(self, quantity="1", *, symbol=PERPETUAL, side="buy", key="entry"):
        """A position as it was before the barrier."""
        outcome = await self.free.submit(Intent(key=key, symbol=symbol, side=side, quantity=quantity))
        assert isinstance(outcome, Accepted)
        await self.book.catch_up()
        await anyio.sleep(5)  # beyond the read lag

    async def passes(self, number, pause_s=11):
        for _ in range(number):
            await self.reconciler.reconcile()
            await anyio.sleep(pause_s)

    def held(self, symbol=PERPETUAL):
        position = self.book.position("default", symbol)
        return D(0) if position is None else position.signed_quantity

    def kinds(self):
        return [(found.kind, found.confirmed) for found in self.reconciler.findings]


def stranger(world, side, quantity, *, symbol=PERPETUAL, cid=None, **more):
    """Somebody else trades on the same account."""
    more.setdefault("type", "market")
    request = NewOrder(symbol=symbol, side=Side(side), quantity=D(quantity), client_order_id=cid, **more)
    return world.venue.submit(request, world.clock.now_ms())


def told(world):
    return world.kinds(*TOLD)


def sends(world):
    return len(world.venue.ledger.received())


def stop(key="stop", quantity="1", **more):
    return Intent(
        key=key, symbol=PERPETUAL, side="sell", quantity=quantity, trigger_price=50_000, reduce_only=True, **more
    )


# --- Agreement ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee(15)
@pytest.mark.row("S1-21", "S3-32")
async def test_g15_what_agrees_is_told_once_and_never_again_not_even_after_a_restart():
    world = World()
    bot = Bot(world)
    await bot.hold()
    await bot.passes(3)
    assert told(world) == [E.RECONCILED]
    [verified] = bot.reconciler.last.verified
    assert verified.quantity == 1
    again = Bot(world)
    await again.passes(2)
    assert told(world) == [E.RECONCILED]
    assert again.held() == world.held() == 1


@pytest.mark.row("S3-29", "S3-30")
async def test_each_source_says_a_quantity_and_the_result_is_what_two_agree_on():
    world = World()
    bot = Bot(world)
    await bot.hold("0.6")
    result = await bot.reconciler.reconcile()
    [verified] = result.verified
    assert {vote.source: vote.quantity for vote in verified.votes} == {
        Source.BOOK: D("0.6"), Source.POSITIONS: D("0.6"), Source.EXECUTIONS: None,
    }  # fmt: skip
    assert verified.quantity == D("0.6")


# --- The barrier --------------------------------------------------------------------------------------------


@pytest.mark.guarantee(12)
async def test_g12_no_entry_passes_before_the_barrier_and_exits_always_do():
    world = World()
    bot = Bot(world)
    await bot.hold()
    entry = Intent(key="more", symbol=PERPETUAL, side="buy", quantity=1)
    with pytest.raises(TradingDenied) as caught:
        await bot.gateway.submit(entry)
    assert caught.value.context["reason"] == "not_reconciled"
    way_out = Intent(key="out", symbol=PERPETUAL, side="sell", quantity="0.5", reduce_only=True)
    assert isinstance(await bot.gateway.submit(way_out), Accepted)
    result = await bot.reconciler.barrier()
    assert result.is_complete
    assert bot.reconciler.has_passed
    assert isinstance(await bot.gateway.submit(entry), Accepted)


async def test_an_account_that_nobody_reconciles_stays_closed():
    with pytest.raises(TradingDenied):
        await EntryBarrier().check(Intent(key="k", symbol=SPOT, side="buy", quantity=1), None)


@pytest.mark.guarantee(13)
@pytest.mark.row("S1-44", "S2-11", "S3-09")
async def test_g13_the_barrier_settles_what_a_killed_process_left_in_flight():
    world = World()
    first = Bot(world)
    first.plan.strike_next(Operation.CREATE, Fault.HANG)
    with anyio.move_on_after(0.5):
        await first.free.submit(Intent(key="entry", symbol=PERPETUAL, side="buy", quantity=1))
    second = Bot(world)
    await second.reconciler.barrier()
    assert (await second.registry.find("entry")).state is IntentState.FILLED
    assert second.held() == world.held() == 1
    again = await second.gateway.submit(Intent(key="entry", symbol=PERPETUAL, side="buy", quantity=1))
    assert isinstance(again, Accepted)
    assert len(world.venue.ledger.received()) == len(world.venue.ledger.accepted()) == 1


@pytest.mark.guarantee(18)
async def test_g18_the_barrier_waits_while_a_view_cannot_be_read():
    world = World()
    bot = Bot(world)
    await bot.hold()
    for number in range(1, 8):
        bot.plan.script([("look_up", number, "maintenance")])
    with anyio.move_on_after(3):
        await bot.reconciler.barrier()
    assert not bot.reconciler.has_passed
    await bot.reconciler.barrier()
    assert bot.reconciler.has_passed
    assert bot.held() == 1


@pytest.mark.guarantee(18)
@pytest.mark.row("D-15", "S3-27")
async def test_g18_an_unreadable_view_is_told_once_and_leads_to_nothing_but_old_age():
    world = World()
    bot = Bot(world, policy=ReconcilePolicy(max_age_s=60))
    await bot.hold()
    await bot.reconciler.barrier()
    before = bot.reconciler.read_at_ms
    bot.adapter.fetch_positions = _broken
    await bot.passes(2)
    assert told(world) == [E.RECONCILED, E.VIEW_UNAVAILABLE]
    assert bot.reconciler.read_at_ms == before
    assert bot.held() == 1
    entry = Intent(key="more", symbol=PERPETUAL, side="buy", quantity=1)
    assert isinstance(await bot.gateway.submit(entry), Accepted)
    await anyio.sleep(60)
    with pytest.raises(TradingDenied) as caught:
        await bot.gateway.submit(attrs.evolve(entry, key="later"))
    assert caught.value.context["reason"] == "reconciliation_stale"


async def _broken(*_args, **_more):
    raise ConnectionError("down")


async def _not_offered(*_args, **_more):
    raise UnsupportedByVenue("no list of fills")


# --- Positions ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee(11)
@pytest.mark.row("S1-20", "D-08")
@pytest.mark.parametrize("closed", ["0.4", "1"])
async def test_g11_a_close_that_is_not_ours_is_found_in_the_fills_and_booked_once(closed):
    """A liquidation, an attached stop, a hand: the position is what the venue says, and no order is sent."""
    world = World()
    bot = Bot(world)
    await bot.hold()
    stranger(world, "sell", closed, reduce_only=True)
    await anyio.sleep(5)
    before = sends(world)
    await bot.reconciler.barrier()
    await bot.passes(2)
    assert bot.held() == world.held() == 1 - D(closed)
    assert sends(world) == before
    assert told(world) == [E.RECONCILED]


@pytest.mark.guarantee(11)
@pytest.mark.row("D-07")
async def test_g11_a_fill_that_no_answer_told_of_is_read_from_the_venue():
    world = World()
    bot = Bot(world)
    rest = Intent(key="rest", symbol=PERPETUAL, side="buy", quantity=1, limit_price=59_000)
    await bot.free.submit(rest)
    await anyio.sleep(5)
    world.price(58_900)
    await anyio.sleep(5)
    await bot.reconciler.barrier()
    assert (await bot.registry.find("rest")).state is IntentState.FILLED
    assert bot.held() == world.held() == 1


@pytest.mark.guarantee(11)
@pytest.mark.row("S1-20", "D-08")
@pytest.mark.parametrize("lists", ["as they are", "as they were"])
async def test_g11_the_trade_of_a_stop_that_was_set_off_is_booked_once_whatever_id_the_venue_gives_it(lists):
    """Under an id of its own it looks like somebody else's close. The stop may be gone from the list, or, in a list
    of a moment ago, be in it still: while it may explain the trade, the trade is its own, and its record will tell."""
    world = World()
    bot = Bot(world)
    await bot.hold()
    await bot.free.submit(stop())
    await anyio.sleep(5)
    venue = NamesItsOwn(bot, world)
    venue.is_blind = True
    world.price(49_000)
    if lists == "as they were":
        bot.plan.strike_next(Operation.LOOK_UP, Fault.LOOKUP_LAG, 2_000, Reading.OPEN_ORDERS)
    await bot.passes(3)
    assert bot.held() == 1, "nothing was looked up yet, and nothing is guessed"
    venue.is_blind = False
    await bot.passes(3)
    assert (await bot.registry.find("stop")).state is IntentState.FILLED
    assert (bot.held(), world.held(), bot.kinds()) == (0, 0, [])
    assert E.FILL_INFERRED not in told(world)


@pytest.mark.guarantee(11, 15)
@pytest.mark.parametrize("side", ["buy", "sell"])
async def test_g15_a_stops_trade_under_our_id_and_another_of_the_venues_is_booked_once_for_ever(side):
    """The next process asks for fills from before it, because somebody trades by hand: it is not booked again."""
    world = World()
    bot = Bot(world)
    NamesItsOwn(bot, world, labelled=True)
    await bot.hold()
    await bot.free.submit(stop())
    await anyio.sleep(5)
    world.price(49_000)
    await bot.passes(3)
    assert (bot.held(), world.held(), bot.kinds()) == (0, 0, [])
    stranger(world, side, "0.5")
    bot = Bot(world)
    NamesItsOwn(bot, world, labelled=True)
    await bot.book.open()
    await bot.passes(4)
    assert bot.held() == 0
    assert bot.kinds() == [(Kind.UNKNOWN_POSITION, True)], "what somebody else holds is told, and is theirs"


@pytest.mark.guarantee(11, 15)
@pytest.mark.row("S1-20", "D-08")
@pytest.mark.parametrize("closed_by", ["a liquidation", "a hand that sold half", "the stop itself"])
async def test_g11_a_close_beside_a_stop_that_the_venue_forgets_is_booked_and_the_stop_has_ended(closed_by):
    """Nothing tells what the stop filled. Once it is proven gone, and the venue has shown the same difference twice,
    the fills count as far as the difference goes; only then is the end of the stop known. No close is sent meanwhile.
    """
    world = World()
    bot = Bot(world)
    await bot.hold()
    bot.plan.strike_next(Operation.CREATE, Fault.PRUNED_AFTER_END)
    await bot.free.submit(stop())
    await anyio.sleep(5)
    await bot.passes(1)
    if closed_by == "the stop itself":
        NamesItsOwn(bot, world)
        world.price(49_000)
    else:
        stranger(world, "sell", "1" if closed_by == "a liquidation" else "0.5")
        [order] = world.venue.open_orders(PERPETUAL)
        world.venue.cancel(world.clock.now_ms(), symbol=PERPETUAL, venue_order_id=order.venue_order_id)
    before = sends(world)
    for _ in range(2):
        await anyio.sleep(5)
        await bot.gateway.recover()
    await bot.reconciler.reconcile()
    assert bot.held() == 1, "the stop is gone, but one reading of the position decides nothing"
    await bot.passes(4)
    assert bot.held() == world.held() == (D("0.5") if closed_by == "a hand that sold half" else 0)
    assert ((await bot.registry.find("stop")).state, bot.kinds()) == (IntentState.CANCELED, [])
    assert sends(world) == before
    bot = Bot(world)
    await bot.reconciler.barrier()
    assert (bot.held(), bot.kinds()) == (world.held(), [])


@pytest.mark.guarantee(11, 18)
async def test_g18_beside_a_stop_that_cannot_be_looked_up_no_close_of_somebody_else_is_booked():
    world = World()
    bot = Bot(world)
    await bot.hold()
    bot.plan.strike_next(Operation.CREATE, Fault.PRUNED_AFTER_END)
    await bot.free.submit(stop())
    await anyio.sleep(5)
    venue = NamesItsOwn(bot, world)
    venue.is_blind = True
    world.price(49_000)
    await bot.passes(8)
    assert bot.held() == 1
    assert bot.kinds() == [(Kind.PHANTOM_POSITION, True)]


@pytest.mark.guarantee(11)
@pytest.mark.row("D-08")
async def test_g11_beside_a_stop_that_still_rests_somebody_elses_close_is_booked():
    world = World()
    bot = Bot(world)
    await bot.hold()
    await bot.free.submit(stop())
    NamesItsOwn(bot, world)
    stranger(world, "sell", "0.4", reduce_only=True)
    await anyio.sleep(5)
    await bot.passes(1)
    assert bot.held() == world.held() == D("0.6")
    assert len(world.stops()) == 1


async def test_a_position_of_somebody_else_is_told_blocks_its_symbol_and_is_never_closed():
    world = World()
    stranger(world, "buy", 2)
    bot = Bot(world)
    await anyio.sleep(5)
    before = sends(world)
    await bot.reconciler.barrier()
    await bot.passes(3)
    assert bot.kinds() == [(Kind.UNKNOWN_POSITION, True)]
    assert told(world) == [E.DIFFERENCE_FOUND, E.RECONCILED]
    assert (sends(world), bot.held(), world.held()) == (before, 0, 2)
    with pytest.raises(TradingDenied) as caught:
        await bot.gateway.submit(Intent(key="more", symbol=PERPETUAL, side="buy", quantity=1))
    assert caught.value.context["reason"] == "difference"
    other = Intent(key="other", symbol=SPOT, side="buy", quantity="0.1")
    assert isinstance(await bot.gateway.submit(other), Accepted)


async def test_an_unknown_position_is_ours_once_somebody_adopts_it():
    world = World()
    stranger(world, "buy", 2)
    bot = Bot(world)
    await anyio.sleep(5)
    await bot.reconciler.barrier()
    position = await bot.reconciler.adopt(PERPETUAL)
    assert (position.quantity, position.entry_price) == (2, world.venue.account.positions[PERPETUAL].entry_price)
    await bot.passes(2)
    assert bot.kinds() == []
    assert bot.held() == 2
    assert told(world) == [E.DIFFERENCE_FOUND, E.RECONCILED, E.FILL_INFERRED, E.RECONCILED]
    with pytest.raises(InvalidInput):
        await bot.reconciler.adopt(PERPETUAL)


async def test_foreign_entries_are_booked_where_the_policy_says_so():
    world = World()
    stranger(world, "buy", 2)
    bot = Bot(world, policy=ReconcilePolicy(adopt_foreign=True))
    await anyio.sleep(5)
    await bot.reconciler.barrier()
    assert bot.held() == 2
    assert bot.kinds() == []


@pytest.mark.guarantee(18)
@pytest.mark.row("D-15", "S3-27", "S3-28")
async def test_g18_positions_that_are_empty_by_mistake_close_nothing_because_the_fills_contradict():
    """However often the wrong answer comes, two sources say that the position is there."""
    world = World()
    bot = Bot(world, keeps_stops=True)
    await bot.hold()
    await bot.manager.check()
    await bot.free.submit(stop("other"))
    await anyio.sleep(5)
    bot.adapter.fetch_positions = _nothing
    before = len(world.stops())
    await bot.passes(10)
    assert bot.held() == world.held() == 1
    assert len(world.stops()) == before == 2
    assert told(world) == [E.DIFFERENCE_FOUND, E.RECONCILED]
    [found] = bot.reconciler.findings
    assert (found.kind, found.confirmed) == (Kind.PHANTOM_POSITION, True)
    [verified] = bot.reconciler.last.verified
    assert verified.quantity == 1


async def _nothing(*_args, **_more):
    return []


@pytest.mark.guarantee(18)
@pytest.mark.row("S3-27", "S3-28")
@pytest.mark.parametrize("fault", [Fault.POSITIONS_EMPTY, Fault.POSITIONS_LAG])
async def test_g18_one_wrong_reading_is_no_finding(fault):
    world = World()
    bot = Bot(world)
    await bot.hold()
    bot.adapter.fetch_executions = _not_offered
    await bot.passes(1)
    bot.plan.strike_next(Operation.LOOK_UP, fault, 2_000 if fault is Fault.POSITIONS_LAG else None)
    await bot.passes(3)
    assert bot.plan.fired[fault] == 1
    assert bot.held() == 1
    assert bot.kinds() == []
    assert told(world) == [E.RECONCILED]


@pytest.mark.guarantee(15)
@pytest.mark.row("D-05", "S0-09")
async def test_g15_a_phantom_position_is_closed_by_one_inferred_fill_where_no_list_of_fills_exists():
    world = World()
    bot = Bot(world)
    await bot.hold()
    bot.adapter.fetch_executions = _not_offered
    stranger(world, "sell", 1, reduce_only=True)
    await anyio.sleep(5)
    before = sends(world)
    await bot.passes(1)
    assert bot.held() == 1  # seen once: nothing is done
    await bot.passes(4)
    assert bot.held() == 0
    assert bot.kinds() == []
    assert told(world) == [E.DIFFERENCE_FOUND, E.FILL_INFERRED, E.RECONCILED]
    assert sends(world) == before


@pytest.mark.guarantee(18)
async def test_g18_a_list_of_fills_that_cannot_be_read_is_not_one_that_does_not_exist():
    world = World()
    bot = Bot(world)
    await bot.hold()
    fetch, bot.adapter.fetch_executions = bot.adapter.fetch_executions, _broken
    stranger(world, "sell", 1, reduce_only=True)
    await anyio.sleep(5)
    await bot.passes(5)
    assert bot.held() == 1
    assert bot.kinds() == [(Kind.PHANTOM_POSITION, True)]
    bot.adapter.fetch_executions = fetch
    await bot.passes(2)
    assert bot.held() == 0
    assert E.FILL_INFERRED not in told(world)
    assert told(world)[-1] is E.RECONCILED


@pytest.mark.guarantee(11)
async def test_g11_evidence_that_comes_after_a_fill_was_inferred_counts_and_the_book_ends_right():
    world = World()
    bot = Bot(world)
    await bot.hold()
    await bot.free.submit(stop())
    bot.adapter.fetch_executions = _not_offered
    stranger(world, "sell", 1, reduce_only=True)
    await bot.passes(4)
    assert bot.held() == world.held() == 0
    late = OrderReport(
        symbol=PERPETUAL,
        status=OrderStatus.CLOSED,
        client_order_id=(await bot.registry.find("stop")).last.client_order_id,
        filled_quantity=D(1),
        average_price=D(50_000),
    )
    await bot.registry.observe(late)  # it was the stop after all
    await anyio.sleep(5)
    await bot.passes(4)
    assert bot.held() == 0
    assert bot.kinds() == []
    assert told(world).count(E.FILL_INFERRED) == 2


@pytest.mark.guarantee(11)
async def test_g11_the_fill_of_a_stop_that_no_list_shows_any_more_is_looked_up_and_not_inferred():
    world = World()
    bot = Bot(world)
    await bot.hold()
    await bot.free.submit(stop())
    bot.adapter.fetch_executions = _not_offered
    await anyio.sleep(5)
    listing, bot.adapter.fetch_open_orders = bot.adapter.fetch_open_orders, _broken
    world.price(49_000)
    await anyio.sleep(5)
    await bot.passes(3)
    assert bot.held() == 1
    bot.adapter.fetch_open_orders = listing
    await bot.passes(2)
    assert (await bot.registry.find("stop")).state is IntentState.FILLED
    assert (bot.held(), bot.kinds()) == (0, [])
    assert E.FILL_INFERRED not in told(world)


@pytest.mark.guarantee(13)
async def test_g13_a_write_that_was_done_although_it_was_reported_as_failed_is_read_again():
    world = World()
    bot = Bot(world)
    stranger(world, "buy", 2)
    await anyio.sleep(5)
    world.store.fails_after = True
    with pytest.raises(StoreUnavailable):
        await bot.reconciler.reconcile()
    world.store.fails_after = False
    await anyio.sleep(11)
    await bot.passes(1)
    assert bot.kinds() == [(Kind.UNKNOWN_POSITION, True)]


@pytest.mark.guarantee(13)
@pytest.mark.parametrize("commits", [1, 2, 3])
async def test_g13_a_kill_around_an_inferred_fill_books_it_once(commits):
    world = World()
    bot = Bot(world)
    await bot.hold()
    stranger(world, "sell", "0.4", reduce_only=True)
    await anyio.sleep(5)
    bot.adapter.fetch_executions = _not_offered
    await bot.passes(1)
    left = commits

    def dies(_batch):
        nonlocal left
        left -= 1
        if left <= 0:
            raise StoreUnavailable("killed")

    world.store.hook = dies
    with contextlib.suppress(StoreUnavailable):
        await bot.reconciler.reconcile()
    world.store.hook = None
    again = Bot(world)
    again.adapter.fetch_executions = _not_offered
    await again.passes(4)
    assert again.held() == world.held() == D("0.6")
    assert told(world).count(E.DIFFERENCE_FOUND) == 1


async def test_a_holding_on_spot_that_lacks_an_unstated_fee_is_corrected_and_a_large_shortage_only_told():
    world = World()
    world.venue.account.balances["BTC"] = D("0.999")
    bot = Bot(world, symbols=())
    await bot.free.submit(Intent(key="s", symbol=SPOT, side="buy", quantity="0.1"))
    world.venue.account.balances["BTC"] = D("0.0999")
    world.venue.account._note_balance("BTC")
    await bot.book.catch_up()
    await anyio.sleep(5)
    await bot.passes(3)
    assert bot.held(SPOT) == D("0.0999")
    assert bot.kinds() == []
    world.venue.account.balances["BTC"] = D("0.05")
    world.venue.account._note_balance("BTC")
    await anyio.sleep(5)
    await bot.passes(3)
    assert bot.held(SPOT) == D("0.0999")
    assert [found.kind for found in bot.reconciler.findings] == [Kind.QUANTITY]


# --- Orders -------------------------------------------------------------------------------------------------


@pytest.mark.row("S4-14", "S3-12")
async def test_a_foreign_order_is_told_once_never_touched_and_blocks_nothing():
    world = World()
    bot = Bot(world)
    await bot.free.submit(Intent(key="mine", symbol=PERPETUAL, side="buy", quantity=1, limit_price=50_000))
    stranger(world, "buy", 1, type="limit", limit_price=D(50_000), cid="theirs")
    await anyio.sleep(5)
    await bot.reconciler.barrier()
    await bot.passes(3)
    assert told(world) == [E.FOREIGN_ORDER_FOUND, E.RECONCILED]
    assert len(world.venue.open_orders(PERPETUAL)) == 2
    assert isinstance(await bot.gateway.submit(Intent(key="n", symbol=SPOT, side="buy", quantity="0.1")), Accepted)


async def test_an_order_with_our_marker_that_no_journal_knows_halts_entries_until_it_is_gone():
    world = World()
    bot = Bot(world)
    cid = client_order_id(account="default", key="lost", leg="", generation=0, rule=IdRule())
    order = stranger(world, "buy", 1, type="limit", limit_price=D(50_000), cid=cid)
    await bot.reconciler.barrier()
    entry = Intent(key="more", symbol=SPOT, side="buy", quantity="0.1")
    with pytest.raises(TradingDenied) as caught:
        await bot.gateway.submit(entry)
    assert caught.value.context["reason"] == "lost_order"
    assert len(world.venue.open_orders(PERPETUAL)) == 1
    world.venue.cancel(world.clock.now_ms(), symbol=PERPETUAL, venue_order_id=order.venue_order_id)
    await bot.passes(1)
    assert isinstance(await bot.gateway.submit(entry), Accepted)


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-28")
async def test_g10_a_stop_of_ours_without_position_is_removed_after_two_readings_and_some_age():
    world = World()
    bot = Bot(world)
    await bot.hold()
    await bot.free.submit(stop())
    stranger(world, "sell", 1, reduce_only=True)
    await bot.passes(5)
    assert len(world.stops()) == 1  # too young to judge
    await bot.passes(5)
    assert world.stops() == []
    assert (await bot.registry.find("stop")).state is IntentState.CANCELED
    assert told(world).count(E.ORPHAN_STOP_FOUND) == 1


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-28")
@pytest.mark.parametrize("blind", ["positions", "orders"])
async def test_g10_no_stop_is_removed_while_either_source_cannot_be_read(blind):
    world = World()
    bot = Bot(world)
    await bot.hold()
    await bot.free.submit(stop())
    stranger(world, "sell", 1, reduce_only=True)
    await bot.passes(2)
    setattr(bot.adapter, {"positions": "fetch_positions", "orders": "fetch_open_orders"}[blind], _broken)
    await bot.passes(12)
    assert len(world.stops()) == 1


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-28")
@pytest.mark.parametrize("liar", ["book", "venue"])
async def test_g10_one_source_that_says_flat_removes_no_stop(liar):
    world = World()
    bot = Bot(world)
    await bot.hold()
    await bot.free.submit(stop())
    if liar == "venue":
        bot.adapter.fetch_positions = _nothing
    else:
        bot.book.position = lambda *_: None
        bot.book.open_positions = lambda *_: ()
    await bot.passes(12)
    assert len(world.stops()) == 1
    assert world.held() == 1


async def test_a_stop_that_is_kept_is_nobody_elses_business():
    world = World()
    bot = Bot(world, keeps_stops=True)
    await bot.hold()
    await bot.manager.check()
    stranger(world, "sell", 1, reduce_only=True)
    await bot.passes(10)
    assert E.ORPHAN_STOP_FOUND not in told(world)
    await bot.manager.check()
    await bot.manager.check()
    assert world.stops() == []


@pytest.mark.guarantee(11)
@pytest.mark.row("S4-17")
async def test_g11_an_order_that_was_written_off_and_shows_up_is_ours_again_and_told():
    world = World()
    bot = Bot(world)
    bot.plan.strike_next(Operation.CREATE, Fault.REJECT_FUNDS)
    await bot.free.submit(Intent(key="late", symbol=PERPETUAL, side="buy", quantity=1, limit_price=50_000))
    record = await bot.registry.find("late")
    assert record.state is IntentState.REJECTED
    cid = record.last.client_order_id
    stranger(world, "buy", 1, type="limit", limit_price=D(50_000), cid=cid)
    await bot.reconciler.reconcile()
    assert (await bot.registry.find("late")).state is IntentState.LIVE
    assert world.kinds(E.INTENT_REVIVED, E.FOREIGN_ORDER_FOUND) == [E.INTENT_REVIVED]


@pytest.mark.guarantee(10, 11)
@pytest.mark.row("S4-17")
@pytest.mark.parametrize("can_stop", [True, False])
async def test_g11_an_order_that_arrives_long_after_it_was_proven_absent_is_adopted_covered_or_closed_and_told(
    can_stop,
):
    """The venue broke its word: the request was dead, and is carried out ten minutes later."""
    world = World()
    bot = Bot(world, keeps_stops=True)
    lost = [Strike(Operation.CREATE, n, Fault.DROP_REQUEST) for n in range(1, 5)]
    refused = [] if can_stop else [Strike(Operation.CREATE, n, Fault.STOP_REJECTED) for n in range(5, 30)]
    bot.plan.script([*lost, *refused])
    await bot.free.submit(Intent(key="late", symbol=PERPETUAL, side="buy", quantity=1))
    record = await bot.registry.find("late")
    assert (record.state, {a.state for a in record.attempts}) == (IntentState.FAILED_FINAL, {AttemptState.ABSENT})
    await bot.reconciler.barrier()
    await anyio.sleep(600)
    stranger(world, "buy", 1, cid=record.last.client_order_id)
    for _ in range(5):
        await bot.reconciler.reconcile()
        await bot.manager.check()
        await anyio.sleep(11)
    assert (await bot.registry.find("late")).state is IntentState.FILLED
    assert world.kinds(E.INTENT_REVIVED) == [E.INTENT_REVIVED]
    assert bot.held() == world.held() == (1 if can_stop else 0)
    assert [quantity for quantity, _ in world.stops()] == ([D(1)] if can_stop else [])
    assert bot.kinds() == []


async def test_a_lost_stop_with_our_marker_is_removed_where_the_policy_says_so():
    world = World()
    bot = Bot(world, policy=ReconcilePolicy(cancel_lost_stops=True, orphan_age_s=1))
    await bot.hold()
    cid = client_order_id(account="default", key="lost", leg="", generation=0, rule=IdRule())
    stranger(world, "sell", 1, type="market", trigger_price=D(50_000), reduce_only=True, cid=cid)
    stranger(world, "sell", 1, type="market", trigger_price=D(50_000), reduce_only=True, cid="theirs")
    await bot.passes(3)
    assert len(world.stops()) == 2
    stranger(world, "sell", 1, reduce_only=True)
    await bot.passes(4)
    [left] = world.venue.open_orders(PERPETUAL)
    assert left.request.client_order_id == "theirs"


@pytest.mark.row("S1-44", "S3-09")
async def test_an_intent_in_doubt_for_long_is_told_once_and_looked_into_again():
    world = World()
    bot = Bot(world, policy=ReconcilePolicy(stuck_after_s=100))
    bot.plan.strike_next(Operation.CREATE, Fault.DROP_REPLY)
    bot.adapter.look_up, look_up = _broken, bot.adapter.look_up
    await bot.free.submit(Intent(key="entry", symbol=PERPETUAL, side="buy", quantity=1, limit_price=50_000))
    assert (await bot.registry.find("entry")).state is not IntentState.LIVE
    bot.adapter.fetch_open_orders = _broken
    await bot.passes(12)
    assert told(world).count(E.STUCK_ORDER_FOUND) == 1
    bot.adapter.look_up = look_up
    await bot.passes(3)
    assert (await bot.registry.find("entry")).state is IntentState.LIVE


@pytest.mark.row("S1-44")
async def test_an_order_whose_end_no_view_shows_does_not_keep_the_barrier_closed():
    """The venue forgot it at once, and lists no fills: told as stuck, counted as exposure, and no reason to wait."""
    world = World()
    bot = Bot(world, policy=ReconcilePolicy(stuck_after_s=100))
    bot.adapter.fetch_executions = _not_offered
    bot.plan.strike_next(Operation.CREATE, Fault.PRUNED_AFTER_END)
    await bot.free.submit(Intent(key="rests", symbol=PERPETUAL, side="buy", quantity=1, limit_price=10_000))
    await bot.free.cancel("rests")
    await anyio.sleep(200)
    assert (await bot.registry.find("rests")).change is not None, "nobody could tell how it ended"
    with anyio.fail_after(600):
        await bot.reconciler.barrier()
    assert bot.reconciler.has_passed
    assert E.STUCK_ORDER_FOUND in told(world)


# --- Running ------------------------------------------------------------------------------------------------


async def test_run_passes_the_barrier_survives_failures_and_ends_when_cancelled():
    world = World()
    bot = Bot(world)
    world.store.is_down = True
    with anyio.move_on_after(100):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bot.reconciler.run, 5)
            await anyio.sleep(20)
            world.store.is_down = False
            await anyio.sleep(60)
            assert bot.reconciler.has_passed
            tasks.cancel_scope.cancel()
    assert told(world) == [E.RECONCILED]


@pytest.mark.guarantee(12)
async def test_g12_a_store_that_fails_leads_to_no_action():
    world = World()
    bot = Bot(world)
    await bot.hold()
    bot.adapter.fetch_executions = _not_offered
    stranger(world, "sell", 1, reduce_only=True)
    await anyio.sleep(5)
    await bot.passes(1)
    world.store.is_read_only = True
    with pytest.raises(StoreUnavailable):
        await bot.reconciler.reconcile()
    world.store.is_read_only = False
    assert bot.held() == 1
    await bot.passes(3)
    assert bot.held() == 0


@pytest.mark.guarantee(13)
async def test_g13_a_pass_that_is_cancelled_anywhere_is_made_up_for_by_the_next():
    for cut_ms in range(0, 300, 7):
        world = World()
        bot = Bot(world)
        await bot.hold()
        stranger(world, "sell", "0.4", reduce_only=True)
        await bot.free.submit(Intent(key="rest", symbol=PERPETUAL, side="buy", quantity=1, limit_price=59_000))
        world.price(58_900)
        await anyio.sleep(5)
        with anyio.move_on_after(cut_ms / 1000):
            await bot.reconciler.reconcile()
        again = Bot(world)
        await again.reconciler.barrier()
        await again.passes(1)
        assert again.held() == world.held() == D("1.6")
        assert again.kinds() == []
        assert E.DIFFERENCE_FOUND not in told(world)


@pytest.mark.guarantee(12)
async def test_g12_a_difference_denies_entries_even_if_it_could_not_be_written_down():
    world = World()
    bot = Bot(world)
    await bot.reconciler.barrier()
    stranger(world, "buy", 2)
    await anyio.sleep(5)
    world.store.is_read_only = True
    with pytest.raises(StoreUnavailable):
        await bot.reconciler.reconcile()
    with pytest.raises(TradingDenied) as caught:
        bot.reconciler.admit(Intent(key="more", symbol=PERPETUAL, side="buy", quantity=1))
    assert caught.value.context["reason"] == "difference"


async def test_a_listener_that_raises_disturbs_nothing():
    world = World()
    bot = Bot(world)

    def broken(_event):
        raise RuntimeError("listener")

    reconciler = Reconciler(bot.gateway, bot.book, listeners=[broken], symbols=[PERPETUAL])
    assert (await reconciler.barrier()).is_complete


async def test_two_processes_over_one_store_tell_everything_once():
    world = World()
    stranger(world, "buy", 2)
    one, other = Bot(world), Bot(world)
    await anyio.sleep(5)
    for _ in range(4):
        await one.passes(1)
        await other.passes(1)
    assert told(world) == [E.DIFFERENCE_FOUND, E.RECONCILED]


@pytest.mark.parametrize("name", ["interval_s", "confirm_after_s", "orphan_age_s", "stuck_after_s", "max_age_s"])
async def test_a_policy_that_never_waits_is_refused(name):
    with pytest.raises(InvalidInput):
        ReconcilePolicy(**{name: 0})


async def test_faulty_readings_of_every_kind_never_lead_to_a_send():
    world = World()
    bot = Bot(world)
    await bot.hold()
    for number in range(1, 30, 2):
        for reading in (Reading.POSITIONS, Reading.OPEN_ORDERS, Reading.EXECUTIONS):
            bot.plan.script([Strike(Operation.LOOK_UP, number, Fault.LOOKUP_LAG, 2_000, reading)])
    before = sends(world)
    await bot.passes(15, pause_s=3)
    assert sends(world) == before
    assert bot.held() == 1


@pytest.mark.guarantee(15)
@pytest.mark.row("S1-21")
@pytest.mark.parametrize("lag_ms", [0, 1_900])
async def test_g15_a_bot_that_trades_meanwhile_through_lagging_views_is_no_difference(lag_ms):
    world = World(account_lag_ms=lag_ms, read_lag_ms=lag_ms)
    bot = Bot(world, symbols=[PERPETUAL, SPOT])
    await bot.reconciler.barrier()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bot.reconciler.run, 0.7)
        for number in range(40):
            symbol = PERPETUAL if number % 3 else SPOT
            side = "sell" if number % 4 == 3 else "buy"
            await bot.free.submit(Intent(key=f"k{number}", symbol=symbol, side=side, quantity="0.5"))
            await anyio.sleep(0.3 * (number % 9))
        await anyio.sleep(30)
        tasks.cancel_scope.cancel()
    assert told(world) == [E.RECONCILED]
    assert bot.kinds() == []
    assert bot.held() == world.held()
