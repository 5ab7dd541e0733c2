"""PriceBoard: what is held first, invalidated by events, and never an old price as a new one."""

from __future__ import annotations

from decimal import Decimal

import anyio
import pytest

from execsafe.core.positions import ChangeKind, PositionChange
from execsafe.core.prices import PricePolicy
from execsafe.model.event import EventType
from execsafe.model.intent import ErrorFacts
from execsafe.model.position import Position, PositionSide, Quote, Snapshot, Unavailable
from execsafe.prices import NoPrice, Price, PriceBoard
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from execsafe.views import VenueReader
from fakes import FakeAdapter, FakeVenue

pytestmark = pytest.mark.anyio
BTC, ETH = "BTC/USDT", "ETH/USDT"


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class Venue(FakeAdapter):
    """A venue whose price of everything is the second at which it is read."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(FakeVenue(clock))
        self.calls: list[tuple[int, tuple[str, ...]]] = []
        self.latency_s = 0.1
        self.is_down = False
        self.missing: set[str] = set()
        self.slow: dict[str, float] = {}

    async def fetch_quotes(self, symbols):
        began_ms = self.clock.now_ms()
        self.calls.append((began_ms, tuple(symbols)))
        await anyio.sleep(max([self.latency_s, *(self.slow.get(s, 0) for s in symbols)]))
        if self.is_down:
            raise ConnectionError("down")
        return {s: Quote(symbol=s, last=Decimal(began_ms)) for s in symbols if s not in self.missing}

    def count(self, symbol: str) -> int:
        return sum(symbol in symbols for _, symbols in self.calls)


class Book:
    """Positions that a test opens and closes."""

    def __init__(self) -> None:
        self.open: dict[str, Position] = {}
        self.subscribers: list = []
        self.is_broken = False
        self.reads = 0

    def open_positions(self, account=None):
        self.reads += 1
        if self.is_broken:
            raise RuntimeError("no positions")
        return tuple(p for p in self.open.values() if account in {None, p.account})

    def subscribe(self, subscriber):
        self.subscribers.append(subscriber)
        return lambda: self.subscribers.remove(subscriber)

    def change(self, symbol: str, kind: ChangeKind, account: str = "default") -> None:
        position = Position(account=account, symbol=symbol, side=PositionSide.LONG, quantity=Decimal(1))
        if kind is ChangeKind.CLOSED:
            self.open.pop(symbol)
        else:
            self.open[symbol] = position
        for subscriber in tuple(self.subscribers):
            subscriber(PositionChange(kind=kind, position=position))


class World:
    def __init__(self, **more) -> None:
        self.clock = VirtualClock()
        self.venue = Venue(self.clock)
        self.book = Book()
        self.events = []
        reader = VenueReader(self.venue, clock=self.clock, request_timeout_s=3.0)
        self.board = PriceBoard(reader, positions=self.book, listeners=[self.events.append], clock=self.clock, **more)

    def kinds(self) -> list[EventType]:
        return [event.type for event in self.events]


@pytest.fixture
async def world():
    return World()


# --- Reading ------------------------------------------------------------------------------------------------


@pytest.mark.row("S1-24", "S1-29")
async def test_a_price_is_read_once_and_again_when_it_is_too_old(world):
    first = await world.board.price(BTC)
    assert isinstance(first, Price)
    assert (first.age_ms, first.is_stale) == (100, False)
    await anyio.sleep(4.9)
    assert (await world.board.price(BTC)).quote == first.quote
    await anyio.sleep(0.1)
    assert (await world.board.price(BTC)).quote != first.quote
    assert world.venue.count(BTC) == 2


@pytest.mark.row("S1-29")
async def test_what_is_held_is_read_again_after_a_second_and_a_half(world):
    world.book.change(BTC, ChangeKind.OPENED)
    await world.board.prices([BTC, ETH])
    await anyio.sleep(1.5)
    await world.board.prices([BTC, ETH])
    assert (world.venue.count(BTC), world.venue.count(ETH)) == (2, 1)


@pytest.mark.row("S1-24")
@pytest.mark.guarantee(6)
async def test_g6_a_hundred_readers_at_once_cost_one_request(world):
    readings = []

    async def read() -> None:
        readings.append(await world.board.price(BTC))

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(read)
    assert world.venue.count(BTC) == 1
    assert len({r.quote for r in readings}) == 1


async def test_a_reader_that_is_cancelled_leaves_nobody_waiting(world):
    readings = []

    async def read() -> None:
        readings.append(await world.board.price(BTC))

    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(0.05):
            tasks.start_soon(read)  # begins after us, and waits for us
            await world.board.price(BTC)
    assert isinstance(readings[0], Price)
    assert world.board._in_flight == {}


# --- Invalidation -------------------------------------------------------------------------------------------


@pytest.mark.row("S1-27", "S1-28", "D-10")
async def test_after_a_change_of_the_position_the_next_read_is_fresh(world):
    before = await world.board.price(BTC)
    assert world.board.held().symbols == frozenset()
    world.book.change(BTC, ChangeKind.OPENED)
    assert world.board.held().symbols == {BTC}
    after = await world.board.price(BTC)
    assert after.taken_at_ms > before.taken_at_ms
    world.book.change(BTC, ChangeKind.CLOSED)
    assert world.board.held().symbols == frozenset()
    assert (await world.board.price(BTC)).taken_at_ms > after.taken_at_ms
    invalidations = [e for e in world.events if e.type is EventType.PRICES_INVALIDATED]
    assert [(e.symbol, e.note) for e in invalidations] == [(BTC, "position opened"), (BTC, "position closed")]
    refreshes = [e for e in world.events if e.type is EventType.PRICES_REFRESHED]
    assert refreshes[1].details.thaw() == {"symbol_count": 1, "hot_count": 1}


@pytest.mark.row("S1-30")
async def test_a_refresh_that_began_before_the_change_is_discarded(world):
    """It arrives after the newer one, and must not overwrite it."""
    world.venue.slow = {BTC: 2.0}
    readings = {}

    async def read(name: str) -> None:
        readings[name] = await world.board.price(BTC)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read, "before")
        await anyio.sleep(1)
        world.book.change(BTC, ChangeKind.CHANGED)
        changed_ms = world.clock.now_ms()
        world.venue.slow = {}
        await read("after")
        assert world.clock.now_ms() - changed_ms == 100  # it did not wait for the older one
        assert readings["after"].taken_at_ms >= changed_ms
        newest = world.board.peek(BTC)
    assert world.board.peek(BTC).quote == newest.quote
    assert readings["before"].taken_at_ms >= changed_ms


async def test_invalidations_without_end_do_not_keep_a_reader_for_ever(world):
    await world.board.price(BTC)

    async def nag() -> None:
        while True:
            world.board.invalidate(BTC)
            await anyio.sleep(0.05)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(nag)
        await anyio.sleep(0.01)
        reading = await world.board.price(BTC)
        tasks.cancel_scope.cancel()
    assert reading.is_stale


async def test_changes_of_another_account_and_after_the_end_change_nothing():
    world = World(account="mine")
    await world.board.price(BTC)
    world.book.change(BTC, ChangeKind.OPENED, account="other")
    assert not world.board.peek(BTC).is_stale
    assert world.board.held().symbols == frozenset()
    world.board.close()
    world.board.close()
    assert world.book.subscribers == []


async def test_everything_can_be_invalidated_at_once(world):
    await world.board.prices([BTC, ETH])
    world.board.invalidate(reason="reconnected")
    assert world.board.peek(BTC).is_stale
    assert world.board.peek(ETH).is_stale
    assert world.events[-1].details.thaw() == {"symbol_count": 2}


# --- Failures -----------------------------------------------------------------------------------------------


@pytest.mark.row("S1-26", "D-10")
@pytest.mark.guarantee(18)
async def test_g18_a_venue_that_fails_leaves_the_last_good_price_marked_stale(world):
    good = await world.board.price(BTC)
    world.venue.is_down = True
    await anyio.sleep(6)
    bad = await world.board.price(BTC)
    assert (bad.quote, bad.is_stale, bad.error.kind) == (good.quote, True, "ConnectionError")
    assert bad.age_ms >= 6_000
    assert isinstance(await world.board.price(ETH), NoPrice)
    calls = len(world.venue.calls)
    await world.board.price(BTC)
    assert len(world.venue.calls) == calls  # not hammered
    stale = [e for e in world.events if e.type is EventType.PRICES_STALE]
    assert [(e.symbol, e.note) for e in stale] == [(BTC, "ConnectionError"), (ETH, "ConnectionError")]
    world.venue.is_down = False
    await anyio.sleep(0.5)
    assert not (await world.board.price(BTC)).is_stale


@pytest.mark.guarantee(18)
async def test_g18_a_symbol_that_is_left_out_is_not_a_symbol_without_a_price(world):
    good = (await world.board.prices([BTC, ETH]))[BTC]
    world.venue.missing = {BTC}
    await anyio.sleep(6)
    readings = await world.board.prices([BTC, ETH])
    assert (readings[BTC].quote, readings[BTC].is_stale, readings[BTC].error.kind) == (good.quote, True, "NoQuote")
    assert not readings[ETH].is_stale


@pytest.mark.row("S1-26", "D-10")
async def test_a_provider_of_positions_that_fails_keeps_the_priority_of_what_is_held(world, caplog):
    world.book.change(BTC, ChangeKind.OPENED)
    assert world.board.held().symbols == {BTC}
    world.book.is_broken = True
    await anyio.sleep(1.1)
    held = world.board.held()
    assert (held.symbols, held.is_stale) == ({BTC}, True)
    assert "RuntimeError" in caplog.text
    world.book.is_broken = False
    await anyio.sleep(1.1)
    assert not world.board.held().is_stale


@pytest.mark.row("S1-24")
async def test_the_list_of_held_symbols_is_believed_for_a_second(world):
    world.board.held()
    reads = world.book.reads
    await anyio.sleep(0.999)
    world.board.held()
    assert world.book.reads == reads
    await anyio.sleep(0.001)
    world.board.held()
    assert world.book.reads == reads + 1


async def test_a_reader_of_prices_that_raises_has_read_nothing():
    class Broken:
        async def quotes(self, symbols):
            raise KeyError("x")

    board = PriceBoard(Broken(), clock=VirtualClock())
    assert await board.price(BTC) == NoPrice(symbol=BTC, error=ErrorFacts(kind="KeyError"))


async def test_a_quote_dated_earlier_than_the_known_one_is_not_given_out():
    class Replica:
        def __init__(self) -> None:
            self.dates = iter([2_000, 1_000])

        async def quotes(self, symbols):
            at_ms = next(self.dates)
            value = {BTC: Quote(symbol=BTC, last=Decimal(at_ms), at_ms=at_ms)}
            return Snapshot(value=value, taken_at_ms=clock.now_ms())

    clock = VirtualClock()
    board = PriceBoard(Replica(), clock=clock)
    await board.price(BTC)
    await anyio.sleep(6)
    reading = await board.price(BTC)
    assert (reading.quote.last, reading.is_stale, reading.error.kind) == (2_000, True, "OlderQuote")


# --- In the background --------------------------------------------------------------------------------------


@pytest.mark.row("S1-29")
async def test_held_symbols_are_refreshed_more_often_and_slow_ones_do_not_delay_them():
    world = World(symbols=[BTC, ETH])
    world.book.change(BTC, ChangeKind.OPENED)
    world.venue.slow = {ETH: 2.9}
    async with anyio.create_task_group() as tasks:
        await tasks.start(world.board.run)
        await anyio.sleep(30)
        tasks.cancel_scope.cancel()
    assert 18 <= world.venue.count(BTC) <= 21
    assert 5 <= world.venue.count(ETH) <= 7
    assert not any(BTC in symbols and ETH in symbols for _, symbols in world.venue.calls)


@pytest.mark.row("S1-27", "S1-29", "D-10")
async def test_a_position_that_opens_is_refreshed_at_once(world):
    async with anyio.create_task_group() as tasks:
        await tasks.start(world.board.run)
        await anyio.sleep(10.01)
        world.book.change(BTC, ChangeKind.OPENED)
        opened_ms = world.clock.now_ms()
        await anyio.sleep(0.2)
        tasks.cancel_scope.cancel()
    assert world.venue.calls[-1] == (opened_ms, (BTC,))
    assert not world.board.peek(BTC).is_stale


@pytest.mark.row("S1-29")
async def test_reading_an_ageing_price_returns_at_once_and_asks_for_a_refresh():
    world = World(symbols=[BTC])
    async with anyio.create_task_group() as tasks:
        await tasks.start(world.board.run)
        await anyio.sleep(2.5)
        begun = anyio.current_time()
        ageing = await world.board.price(BTC)
        assert anyio.current_time() == begun
        assert (ageing.age_ms, ageing.is_stale) == (2_500, False)
        await anyio.sleep(0.2)
        assert world.board.peek(BTC).taken_at_ms > ageing.taken_at_ms
        tasks.cancel_scope.cancel()
    assert world.venue.count(BTC) == 2


async def test_a_venue_that_fails_is_asked_twice_a_second_at_most():
    world = World(symbols=[BTC])
    world.venue.is_down = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.board.run)
        await anyio.sleep(10)
        tasks.cancel_scope.cancel()
    assert 10 <= world.venue.count(BTC) <= 20
    assert world.kinds().count(EventType.PRICES_STALE) == 1


# --- Bounds -------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(14)
async def test_g14_the_board_forgets_symbols_that_nobody_holds_and_no_others():
    world = World(symbols=[ETH], policy=PricePolicy(symbols_max=5))
    world.book.change(BTC, ChangeKind.OPENED)
    await world.board.prices([BTC, ETH])
    for number in range(50):
        await world.board.price(f"C{number}/USDT")
    assert len(world.board) == 5
    assert isinstance(world.board.peek(BTC), Price)
    assert isinstance(world.board.peek(ETH), Price)
    assert world.board.peek("C0/USDT") == NoPrice(symbol="C0/USDT")


async def test_a_venue_without_quotes_is_unavailable_and_not_empty():
    clock = VirtualClock()
    reader = VenueReader(FakeAdapter(FakeVenue(clock)), clock=clock)
    assert isinstance(await reader.quotes([BTC]), Unavailable)
    board = PriceBoard(reader, clock=clock)
    assert (await board.price(BTC)).error.kind == "UnsupportedByVenue"
