"""PositionBook: the single truth about positions, whatever is repeated, late, lost or killed in between."""

from __future__ import annotations

from decimal import Decimal

import anyio
import pytest

from execsafe.core import transitions
from execsafe.core.positions import ChangeKind
from execsafe.errors import StoreCorrupt, StoreUnavailable
from execsafe.gateway import OrderGateway
from execsafe.intents import IntentRegistry
from execsafe.model.event import EventType
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.order import Fee, Fill, OrderReport, OrderStatus, Side
from execsafe.model.position import Execution, PositionSide
from execsafe.ports import Batch, LeaseRequest, Put
from execsafe.positions import COLLECTION, CURSOR, PositionBook
from execsafe.stores.sqlite import SqliteStore
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import EPOCH_MS, ManualClock, VirtualClock
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import FillStep, SimVenue
from fakes import ScriptedStore

pytestmark = pytest.mark.anyio
SYMBOL = "BTC/USDT:USDT"
D = Decimal


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class World:
    """A registry that is told what filled, without a venue: the book sees nothing but records and events."""

    def __init__(self, store=None) -> None:
        self.clock = ManualClock()
        self.store = ScriptedStore() if store is None else store
        if store is None:
            self.store._is_open = True
        self.registry = IntentRegistry(self.store, clock=self.clock)
        self.events, self.seen = [], []
        self.book = self.new_book()

    def new_book(self, **more) -> PositionBook:
        book = PositionBook(self.store, self.registry, listeners=[self.events.append], **more)
        book.subscribe(self.seen.append)
        return book

    async def order(self, key, side="buy", quantity=10, *, symbol=SYMBOL, account="default", **more):
        intent = Intent(key=key, symbol=symbol, side=side, quantity=quantity, account=account, **more)
        now_ms = self.clock.now_ms()
        record = transitions.new_record(intent, quantity=intent.quantity, limit_price=None, now_ms=now_ms)
        record = transitions.begin(record, client_order_id=f"c-{key}", deadline_ms=None, now_ms=now_ms)
        lease = LeaseRequest(name=f"lease-{account}-{key}", holder="p", ttl_ms=1)
        return (await self.registry.create(record, acquire=lease))[0]

    async def fills(self, key, filled, price=100, *, status=OrderStatus.OPEN, fills=(), symbol=SYMBOL):
        """The venue says that so much has filled in all."""
        self.clock.advance(ms=10)
        report = OrderReport(
            symbol=symbol, status=status, client_order_id=f"c-{key}", venue_order_id=f"v-{key}",
            filled_quantity=D(filled), average_price=None if price is None else D(price), fills=tuple(fills),
        )  # fmt: skip
        return await self.registry.observe(report)

    def kinds(self):
        return [event.type for event in self.events]


@pytest.fixture
async def world():
    one = World()
    await one.book.open()
    return one


# --- What is held -------------------------------------------------------------------------------------------


@pytest.mark.row("S1-22", "S0-26")
async def test_a_symbol_without_fills_has_no_position(world):
    await world.order("a")
    await world.book.catch_up()
    assert world.book.position("default", SYMBOL) is None
    assert world.book.open_positions() == ()


@pytest.mark.row("S1-10", "S1-11", "S1-23", "D-08")
async def test_fills_of_entries_and_exits_make_one_net_position(world):
    await world.order("a")
    await world.order("b", "sell")
    await world.fills("a", "0.5")
    await world.fills("a", "1.5")
    await world.fills("b", "0.4", 110)
    await world.book.catch_up()
    held = world.book.position("default", SYMBOL)
    assert (held.side, held.quantity, held.entry_price, held.realized) == (PositionSide.LONG, D("1.1"), D(100), D(4))
    assert world.book.open_positions("default") == (held,)
    assert world.book.open_positions("other") == ()
    assert world.book.find(held.position_id) == held


async def test_events_and_subscribers_tell_opened_changed_closed(world):
    await world.order("a")
    await world.order("b", "sell")
    for key, filled in [("a", 1), ("a", 2), ("b", 2), ("b", 3)]:
        await world.fills(key, filled)
        await world.book.catch_up()
    kinds = [ChangeKind.OPENED, ChangeKind.CHANGED, ChangeKind.CLOSED, ChangeKind.OPENED]
    assert [change.kind for change in world.seen] == kinds
    assert [kind.value for kind in world.kinds()] == [f"position_{kind.value}" for kind in kinds]
    stored = [item.event for item in await world.store.read_events(0)]
    assert [event for event in stored if event.type.value.startswith("position")] == world.events
    [closed] = world.book.closed_positions("default", SYMBOL)
    assert closed.position_id == world.events[0].subject == world.events[2].subject


@pytest.mark.row("S1-27")
async def test_the_next_read_after_a_change_is_fresh(world):
    """What caches by position is told by the book itself; nobody has to remember to invalidate."""
    cache = {}

    def refresh(change):
        cache[change.position.symbol] = change.position.quantity

    unsubscribe = world.book.subscribe(refresh)
    await world.order("a")
    for filled in ("1", "2.5"):
        await world.fills("a", filled)
        await world.book.catch_up()
        assert cache == {SYMBOL: D(filled)}
    unsubscribe()
    await world.fills("a", 3)
    await world.book.catch_up()
    assert cache == {SYMBOL: D("2.5")}


async def test_a_listener_or_subscriber_that_raises_disturbs_nothing(world, caplog):
    def broken(_):
        raise RuntimeError("listener")

    book = world.new_book()
    book._listeners = (broken, *book._listeners)
    book.subscribe(broken)
    await book.open()
    await world.order("a")
    await world.fills("a", 1)
    await book.catch_up()
    assert book.position("default", SYMBOL).quantity == 1
    assert world.kinds() == [EventType.POSITION_OPENED]
    assert "a listener failed" in caplog.text
    assert "a subscriber failed" in caplog.text


async def test_the_contract_size_of_the_instrument_counts_in_profits(world):
    book = world.new_book(instruments=lambda symbol: Instrument(symbol=symbol, contract_size="0.01"))
    await world.order("a")
    await world.order("b", "sell")
    await world.fills("a", 5, 100)
    await world.fills("b", 5, 110)
    await book.open()
    assert book.closed_positions("default", SYMBOL)[0].realized == D("0.5")


@pytest.mark.row("S0-26")
async def test_fees_taken_in_base_reduce_what_is_held_on_spot(world):
    fee = Fee(cost=D("0.001"), currency="BTC")
    await world.order("a", symbol="BTC/USDT")
    fill = Fill(trade_id="1", quantity=D(1), price=D(100), fees=(fee,))
    await world.fills("a", 1, symbol="BTC/USDT", fills=[fill])
    await world.book.catch_up()
    held = world.book.position("default", "BTC/USDT")
    assert (held.quantity, held.fees) == (D("0.999"), (fee,))


# --- Executions from elsewhere ------------------------------------------------------------------------------


def execution(trade_id="t1", side=Side.BUY, quantity="1", **more) -> Execution:
    return Execution(trade_id=trade_id, symbol=SYMBOL, side=side, quantity=D(quantity), price=D(100), **more)


@pytest.mark.guarantee(15)
async def test_g15_a_foreign_fill_counts_once_however_often_it_is_told(world):
    for _ in range(3):
        held = await world.book.apply_execution(execution(at_ms=5))
    assert held.quantity == 1
    assert world.kinds() == [EventType.POSITION_OPENED]


@pytest.mark.guarantee(11)
async def test_g11_a_fill_of_our_own_order_told_from_elsewhere_goes_into_its_record(world):
    """By client order id or by the venue's; and it is not counted again when the order itself tells of it."""
    fee = Fee(cost=D("0.1"), currency="USDT")
    await world.order("a")
    await world.book.apply_execution(execution("t1", client_order_id="c-a", venue_order_id="v-a", fees=(fee,)))
    held = await world.book.apply_execution(execution("t2", quantity="0.5", venue_order_id="v-a"))
    assert held.quantity == D("1.5")
    assert held.fees == (fee,)
    assert (await world.registry.find("a")).filled_quantity == D("1.5")
    await world.fills("a", "1.5")
    await world.book.catch_up()
    assert world.book.position("default", SYMBOL).quantity == D("1.5")


async def test_fees_that_are_told_after_the_quantity_still_count(world):
    await world.order("a")
    await world.fills("a", 1)
    await world.book.catch_up()
    fee = Fee(cost=D("0.1"), currency="USDT")
    held = await world.book.apply_execution(execution("t1", client_order_id="c-a", fees=(fee,)))
    assert (held.quantity, held.fees) == (D(1), (fee,))


async def test_an_execution_under_a_reused_client_id_but_of_another_order_is_foreign(world):
    await world.order("a")
    await world.fills("a", 1)
    held = await world.book.apply_execution(execution("t9", client_order_id="c-a", venue_order_id="another"))
    assert held.quantity == 2


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("is_known", [True, False])
async def test_g11_a_fill_of_the_order_that_our_stop_became_is_counted_by_the_stops_own_record(is_known, world):
    """Under our id and another one of the venue's: whether its record knows of it yet or not, it is not foreign."""
    await world.order("entry")
    await world.fills("entry", 1)
    await world.order("stop", "sell", trigger_price=90, reduce_only=True)
    await world.fills("stop", 1 if is_known else 0)
    child = execution("t9", Side.SELL, client_order_id="c-stop", venue_order_id="another")
    for _ in range(2):
        held = await world.book.apply_execution(child)
    assert held is None if is_known else held.quantity == 1
    await world.fills("stop", 1)
    await world.book.catch_up()
    assert world.book.position("default", SYMBOL) is None


# --- Restarts, kills, repetition ----------------------------------------------------------------------------


@pytest.mark.row("S1-17", "S1-18", "S1-20", "S1-21")
async def test_a_restarted_book_is_equal_and_tells_nothing_again(world):
    await world.order("a")
    await world.order("b", "sell")
    await world.fills("a", 3)
    await world.fills("b", 1)
    await world.book.catch_up()
    told = list(world.events)
    second = world.new_book()
    await second.open()
    await second.open()
    assert second.open_positions() == world.book.open_positions()
    assert world.events == told


@pytest.mark.guarantee(15)
async def test_g15_reading_all_events_again_changes_nothing(world):
    """As after a kill between a page's write and the cursor's."""
    await world.order("a")
    await world.fills("a", 1)
    await world.fills("a", 2)
    await world.book.catch_up()
    told, version = list(world.events), (await world.store.find(COLLECTION, f'["default","{SYMBOL}"]')).version
    world.store._cursors.clear()
    again = world.new_book()
    await again.open()
    assert again.open_positions() == world.book.open_positions()
    assert world.events == told
    assert (await world.store.find(COLLECTION, f'["default","{SYMBOL}"]')).version == version


@pytest.mark.guarantee(13)
@pytest.mark.row("S1-11", "S1-17")
async def test_g13_a_book_killed_at_any_commit_ends_equal_to_an_undisturbed_one():
    """The store dies at the n-th write, before or after carrying it out; a new process opens the book."""

    class Killed(BaseException):
        pass

    async def history(world, kill_at, after):
        count = 0

        def hook(batch):
            nonlocal count
            if any(put.collection == COLLECTION for put in batch.puts):
                count += 1
                if count == kill_at and not after:
                    raise Killed
                if count == kill_at + 1 and after:
                    raise Killed

        world.store.hook = hook
        steps = [("a", 1, "buy"), ("b", 2, "sell"), ("a", 4, "buy"), ("c", 1, "buy"), ("b", 5, "sell")]
        for key, side in (("a", "buy"), ("b", "sell"), ("c", "buy")):
            await world.order(key, side)
        for key, filled, _ in steps:
            await world.fills(key, filled)
            try:
                await world.book.catch_up()
            except Killed:
                world.book = world.new_book()
                await world.book.open()
        await world.book.catch_up()
        return world

    plain = await history(World(), 0, False)
    for kill_at in range(1, 6):
        for after in (False, True):
            other = await history(World(), kill_at, after)
            assert other.book.open_positions() == plain.book.open_positions()
            assert other.book.closed_positions("default", SYMBOL) == plain.book.closed_positions("default", SYMBOL)
            assert len(other.events) == len(plain.events)


@pytest.mark.guarantee(13)
async def test_g13_a_book_that_is_cancelled_while_it_writes_loses_nothing(world):
    await world.order("a")
    await world.fills("a", 1)
    world.store.hook = lambda batch: anyio.sleep(0.05)
    with anyio.move_on_after(0.01):
        await world.book.catch_up()
    world.store.hook = None
    await world.book.catch_up()
    assert world.book.position("default", SYMBOL).quantity == 1
    assert world.kinds() == [EventType.POSITION_OPENED]


@pytest.mark.guarantee(12)
async def test_g12_a_store_that_fails_raises_and_leaves_the_book_as_it_was(world):
    await world.order("a")
    await world.fills("a", 1)

    def refuse(batch):
        raise StoreUnavailable("no")

    world.store.hook = refuse
    with pytest.raises(StoreUnavailable):
        await world.book.catch_up()
    assert world.book.open_positions() == ()
    world.store.hook = None
    await world.book.catch_up()
    assert world.book.position("default", SYMBOL).quantity == 1


async def test_two_books_over_one_store_agree_and_each_change_is_told_once(world):
    other_seen = []
    other = PositionBook(world.store, world.registry, listeners=[world.events.append])
    other.subscribe(other_seen.append)
    await other.open()
    await world.order("a")
    for filled in (1, 2, 3):
        await world.fills("a", filled)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.book.catch_up)
            tasks.start_soon(other.catch_up)
    assert other.open_positions() == world.book.open_positions()
    assert world.kinds() == [EventType.POSITION_OPENED, EventType.POSITION_CHANGED, EventType.POSITION_CHANGED]
    assert other_seen == world.seen, "subscribers of either book see every change"


@pytest.mark.row("S1-19")
async def test_a_record_of_another_kind_among_the_positions_is_refused(world):
    put = Put(collection=COLLECTION, key="x", value=await world.order("a"), version=0)
    await world.store.commit(Batch(now_ms=1, puts=(put,)))
    with pytest.raises(StoreCorrupt):
        await world.new_book().open()


# --- Bounds -------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(14)
async def test_g14_pages_that_are_flat_and_old_are_forgotten_but_not_while_an_order_rests(world):
    await world.order("a", quantity=1)
    await world.order("b", "sell")
    await world.fills("a", 1)
    await world.fills("b", 1)
    await world.book.catch_up()
    world.clock.advance(s=8 * 86_400)
    await world.book.catch_up()
    assert world.book.closed_positions("default", SYMBOL) != (), "b may still fill"
    await world.fills("b", 1, status=OrderStatus.CANCELED)
    await world.book.catch_up()
    world.clock.advance(s=8 * 86_400)
    await world.book.catch_up()
    assert world.book.closed_positions("default", SYMBOL) == ()
    await world.registry.purge()
    await world.order("c")
    await world.fills("c", 2)
    await world.book.catch_up()
    assert world.book.position("default", SYMBOL).quantity == 2


@pytest.mark.guarantee(11, 14)
async def test_g11_what_a_resting_order_has_filled_is_never_purged_while_it_may_fill_more(world):
    await world.order("a")
    await world.order("b", "sell")
    await world.fills("a", 1, status=OrderStatus.CANCELED)
    await world.fills("b", 1)
    await world.book.catch_up()
    world.clock.advance(s=8 * 86_400)
    await world.registry.purge()
    again = world.new_book()
    await again.open()
    await world.fills("b", 3)
    await again.catch_up()
    assert again.position("default", SYMBOL).signed_quantity == -2


@pytest.mark.guarantee(11, 14)
async def test_g11_a_late_fill_of_an_order_that_left_its_page_counts_what_is_new(world):
    for number in range(80):
        await world.order(f"k{number}")
        await world.fills(f"k{number}", 1, status=OrderStatus.CANCELED)
        await world.book.catch_up()
    assert len((await world.store.find(COLLECTION, f'["default","{SYMBOL}"]')).value.orders) <= 64
    assert world.book.position("default", SYMBOL).quantity == 80
    for filled in (3, 4):
        await world.fills("k0", filled, status=OrderStatus.CANCELED)
        await world.book.catch_up()
    assert world.book.position("default", SYMBOL).quantity == 83
    for number in range(80, 160):
        await world.order(f"k{number}")
        await world.fills(f"k{number}", 1, status=OrderStatus.CANCELED)
        await world.book.catch_up()
    assert world.book.position("default", SYMBOL).quantity == 163
    again = world.new_book()
    await again.open()
    assert again.open_positions() == world.book.open_positions()


async def test_a_fill_whose_record_is_gone_is_logged_and_holds_nothing_up(world, caplog):
    await world.order("a")
    await world.fills("a", 1)
    del world.store._tables["intents"].records[(await world.registry.find("a")).intent.identity]
    await world.order("b")
    await world.fills("b", 2)
    await world.book.catch_up()
    assert world.book.position("default", SYMBOL).quantity == 2
    assert "reconcile" in caplog.text


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_book_works_over_a_durable_store(tmp_path, backend):
    """In real time: a file is written."""

    async def write() -> tuple:
        async with SqliteStore(tmp_path / "orders.db") as store:
            world = World(store)
            await world.book.open()
            await world.order("a")
            await world.fills("a", 2, fills=[Fill(trade_id="1", quantity=D(2), price=D(100))])
            await world.book.catch_up()
            assert await store.get_cursor(CURSOR) > 0
            return world.book.open_positions()

    async def read() -> tuple:
        async with SqliteStore(tmp_path / "orders.db") as store:
            book = PositionBook(store, IntentRegistry(store))
            await book.open()
            return book.open_positions()

    held = anyio.run(write, backend=backend)
    assert anyio.run(read, backend=backend) == held != ()


# --- Against the venue --------------------------------------------------------------------------------------


@pytest.mark.row("S0-36", "X-04")
async def test_the_book_agrees_with_the_venue_through_partial_fills_and_a_flip():
    clock = VirtualClock(EPOCH_MS)
    venue = SimVenue()
    adapter = SimAdapter(venue, clock=clock)
    store = ScriptedStore()
    store._is_open = True
    gateway = OrderGateway(adapter, IntentRegistry(store, clock=clock), clock=clock)
    book = PositionBook(store, gateway.registry)
    await book.open()
    venue.schedule_fills(SYMBOL, [FillStep(0, D("0.4")), FillStep(3_000, D("0.6"))])
    await gateway.submit(Intent(key="a", symbol=SYMBOL, side="buy", quantity="0.01", limit_price=60_000))
    await book.catch_up()
    assert book.position("default", SYMBOL).quantity == D("0.004")
    await anyio.sleep(4)
    await gateway.recover()
    await book.catch_up()
    assert book.position("default", SYMBOL).quantity == D("0.01")
    venue.schedule_fills(SYMBOL, None)
    await gateway.submit(Intent(key="b", symbol=SYMBOL, side="sell", quantity="0.025"))
    await book.catch_up()
    assert book.position("default", SYMBOL).signed_quantity == venue.ledger.position(SYMBOL) == D("-0.015")
