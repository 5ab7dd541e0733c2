"""The desk: decisions in, protected positions and hedged pairs out, on a simulated venue in virtual time."""

from decimal import Decimal

import anyio
import attrs
import pytest

import execsafe
from execsafe import exits, hedging, protection, signals
from execsafe.bot.desk import TradingDesk
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.strategy import Close, Leg, Open, TradePair
from execsafe.bot.trades import PairClosed
from execsafe.locks import DedupLock
from execsafe.stores.memory import MemoryStore
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.faults import Fault
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import NewOrder, SimVenue, linear

pytestmark = pytest.mark.anyio
BTC, ETH = "BTC/USDT:USDT", "ETH/USDT:USDT"
SIZE = Decimal("0.019")  # of 1000 at a limit of 50,100
POLICY = DeskPolicy(notional=Decimal(1000), leverage=5)


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class World:
    def __init__(self, policy=POLICY):
        self.clock = VirtualClock()
        self.venue = SimVenue([linear("BTC"), linear("ETH")], prices={BTC: 50_000, ETH: 3_000})
        self.store = MemoryStore()
        self.policy = policy
        self.events = []

    def desk(self, adapter_class=SimAdapter):
        adapter = adapter_class(self.venue, clock=self.clock)
        return TradingDesk(
            adapter, self.store, self.policy, symbols=(BTC, ETH), listeners=[self.events.append], clock=self.clock
        )

    def position(self, symbol=BTC):
        return self.venue.ledger.position(symbol)


@pytest.fixture
async def world():
    return World()


def wish(number=1, **changes):
    return Open(**{"id": f"signal-{number}", "symbol": BTC, "side": "long", **changes})


async def test_an_open_decision_becomes_a_position_with_a_stop_and_targets(world):
    async with world.desk().running() as desk:
        came = await desk.carry_out(wish())
        assert isinstance(came, signals.Handled), came
        position = desk.position(BTC)
        assert position.quantity == world.position() == SIZE
        [stop] = [order for order in world.venue.open_orders(BTC) if order.request.trigger_price]
        assert stop.quantity == position.quantity
        assert stop.request.reduce_only
        targets = desk.harvester.targets(position.position_id)
        assert sum(leg.quantity for leg in targets.legs) == position.quantity


async def test_the_same_decision_five_times_is_one_position(world):
    async with world.desk().running() as desk:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(desk.carry_out, wish())
        await desk.carry_out(wish())
        assert world.position() == SIZE


async def test_targets_are_taken_part_by_part_and_the_stop_covers_the_rest(world):
    async with world.desk().running() as desk:
        await desk.carry_out(wish())
        for price in (50_500, 50_800, 51_200):
            world.venue.set_price(BTC, price, world.clock.now_ms())
            await anyio.sleep(40)
        fills = [entry.quantity for entry in world.venue.ledger.fills() if entry.side is execsafe.Side.SELL]
        assert sum(fills) <= SIZE
        assert len(fills) >= 2
        assert all(gap[1] - gap[0] < 10_000 for gap in world.venue.ledger.protection_gaps(BTC))


async def test_a_stop_that_triggers_ends_the_position_and_the_book_knows(world):
    async with world.desk().running() as desk:
        await desk.carry_out(wish(side="short", symbol=ETH))
        assert world.position(ETH) < 0
        world.venue.set_price(ETH, 3_200, world.clock.now_ms())
        await anyio.sleep(60)
        assert world.position(ETH) == 0
        assert desk.position(ETH) is None


async def test_a_close_decision_leaves_nothing(world):
    async with world.desk().running() as desk:
        await desk.carry_out(wish())
        await desk.carry_out(Close(id="out", symbol=BTC))
        await anyio.sleep(10)
        assert world.position() == 0
        assert world.venue.open_orders(BTC) == []
        assert isinstance(await desk.carry_out(Close(id="again", symbol=BTC)), execsafe.TradingDenied)


# --- Flat signals ----------------------------------------------------------------------------------


def exits_by_signal():
    return World(attrs.evolve(POLICY, signals=execsafe.SignalPolicy(on_flat="exit")))


class Blinking(SimAdapter):
    """While it is blind, no order can be looked for."""

    is_blind = False

    async def look_up(self, lookup, order):
        if self.is_blind:
            raise execsafe.VenueUnavailable("blind")
        return await super().look_up(lookup, order)


def said(world, number, side, **changes):
    return {"id": f"said-{number}", "symbol": BTC, "side": side, "timestamp": world.clock.now_ms(), **changes}


async def test_a_flat_signal_closes_what_is_held_and_a_repeat_closes_nothing():
    world = exits_by_signal()
    async with world.desk().running() as desk:
        await desk.carry_out(wish())
        out = said(world, 1, "FLAT")
        closed = await desk.gate.run(out, desk.execute)
        assert closed.result == signals.Executed(note="Exited")
        assert world.position() == 0
        assert world.venue.open_orders(BTC) == [], "neither the exit nor the stop is left"
        await desk.carry_out(wish(2))
        assert isinstance(await desk.gate.run(out, desk.execute), signals.Dropped)
        assert world.position() == SIZE
        nothing = await desk.gate.run(said(world, 2, "FLAT", symbol=ETH), desk.execute)
        assert nothing.result == signals.Executed(note="nothing is held")


async def test_on_paper_a_flat_signal_closes_nothing():
    world = exits_by_signal()
    async with world.desk().running() as desk:
        await desk.carry_out(wish())
        desk.gate.mode = execsafe.ExecutionMode.PAPER
        played = await desk.gate.run(said(world, 1, "FLAT"), desk.execute)
        assert played.result.note == f"on paper: close {BTC}"
        assert world.position() == SIZE


async def test_a_flat_signal_waits_for_an_opening_in_doubt_and_closes_what_comes_of_it():
    """The entry's answer is lost and its order cannot be looked for; when it turns up, it is closed."""
    world = exits_by_signal()
    world.policy = attrs.evolve(world.policy, gateway=execsafe.GatewayPolicy(request_timeout_s=1, patience_s=2))
    async with world.desk(Blinking).running() as desk:
        desk.adapter.plan.strike_next("create", Fault.DROP_REPLY)
        desk.adapter.is_blind = True
        opening = await desk.gate.run(said(world, 1, "LONG"), desk.execute)
        assert isinstance(opening, signals.Unfinished)
        assert world.position() == SIZE
        waits = await desk.gate.run(said(world, 2, "FLAT"), desk.execute)
        assert isinstance(waits, signals.Unfinished), waits
        assert "has not ended" in waits.note
        assert world.position() == SIZE
        desk.adapter.is_blind = False
        await anyio.sleep(60)
        assert world.position() == 0
        assert desk.position(BTC) is None
        assert (await desk.gate.find("said-2")).state is signals.SignalState.EXECUTED


async def test_an_entry_right_after_a_flat_signal_waits_until_that_has_closed_the_position():
    """Nobody buys at first; then the position is turned around, although its entry came while it was still held."""
    world = exits_by_signal()
    async with world.desk().running() as desk:
        await desk.carry_out(wish())
        world.venue.set_book(BTC, [], [(50_000, 100)])
        held = await desk.gate.run(said(world, 1, "FLAT"), desk.execute)
        assert isinstance(held, signals.Handled)
        assert world.position() == SIZE
        turned = await desk.gate.run(said(world, 2, "SHORT"), desk.execute)
        assert isinstance(turned, signals.Unfinished), turned
        assert "still being closed" in turned.note
        world.venue.set_book(BTC, [(49_990, 100)], [(50_000, 100)])
        await anyio.sleep(120)
        assert world.position() < 0


class ExitsAway(MemoryStore):
    """The records of exits cannot be read for a moment."""

    is_away = False

    async def find(self, collection, key):
        if self.is_away and collection == "exits":
            raise execsafe.StoreUnavailable("away for a moment")
        return await super().find(collection, key)


@pytest.mark.parametrize("exits_without_journal", [False, True])
async def test_a_flat_signal_whose_exit_could_not_be_written_down_comes_again(exits_without_journal):
    """Nobody buys while the store is away, so that an order without the journal does not fill either."""
    world = exits_by_signal()
    world.store = ExitsAway()
    gateway = execsafe.GatewayPolicy(exits_without_journal=exits_without_journal)
    world.policy = attrs.evolve(world.policy, gateway=gateway)
    async with world.desk().running() as desk:
        await desk.carry_out(wish())
        world.venue.set_book(BTC, [], [(50_000, 100)])
        world.store.is_away = True
        held = await desk.gate.run(said(world, 1, "FLAT"), desk.execute)
        assert isinstance(held, signals.Unfinished), held
        world.store.is_away = False
        world.venue.set_book(BTC, [(49_990, 100)], [(50_000, 100)])
        await anyio.sleep(120)
        assert world.position() == 0
        assert (await desk.gate.find("said-1")).state is signals.SignalState.EXECUTED


@pytest.mark.guarantee(13)
@pytest.mark.parametrize("by_signal", [True, False])
async def test_g13_an_exit_that_a_killed_process_still_has_the_claim_of_is_made_when_that_has_ended(by_signal):
    """The claim outlives the desk's own: the next desk is asked for an exit before it has lapsed."""
    world = exits_by_signal()
    dead = DedupLock(store=world.store, clock=world.clock)

    async def claim(key):
        async with dead.hold(("exit", key.account, key.symbol, key.side.value)):
            await anyio.sleep(20)

    async with world.desk().running() as desk, anyio.create_task_group() as tasks:
        await desk.carry_out(wish())
        tasks.start_soon(claim, desk.position(BTC).key)
        await anyio.sleep(1)
        if by_signal:
            waits = await desk.gate.run(said(world, 1, "FLAT"), desk.execute)
            assert isinstance(waits, signals.Unfinished), waits
        else:
            tasks.start_soon(desk.carry_out, Close(id="out", symbol=BTC))
        await anyio.sleep(10)
        assert world.position() == SIZE
        await anyio.sleep(60)
        assert world.position() == 0


async def test_a_position_is_turned_around_although_its_entry_and_its_exit_were_in_doubt():
    """The entry is settled first, then it is closed, then the other side is opened; none of the three is lost."""
    world = exits_by_signal()
    world.policy = attrs.evolve(world.policy, gateway=execsafe.GatewayPolicy(request_timeout_s=1, patience_s=2))
    async with world.desk(Blinking).running() as desk:
        desk.adapter.plan.strike_next("create", Fault.DROP_REPLY)
        desk.adapter.is_blind = True
        for number, side in enumerate(("LONG", "FLAT", "SHORT")):
            came = await desk.gate.run(said(world, number, side), desk.execute)
            assert isinstance(came, signals.Unfinished), came
            await anyio.sleep(1)
        desk.adapter.is_blind = False
        await anyio.sleep(240)
        assert world.position() < 0
        assert desk.safety.state is execsafe.TradingState.ACTIVE, "what is known again restricts nothing any more"


@pytest.mark.guarantee(13, 17)
async def test_g17_what_was_opened_and_not_recorded_yet_is_not_closed_by_an_exit_that_was_said_before():
    """The entry is open and protected; its signal could not be ended, as the store was away for a moment."""

    class EndsAway(MemoryStore):
        is_away = True

        async def commit(self, batch):
            states = {getattr(put.value, "state", None) for put in batch.puts}
            if self.is_away and signals.SignalState.EXECUTED in states:
                raise execsafe.StoreUnavailable("away for a moment")
            return await super().commit(batch)

    world = exits_by_signal()
    world.store = EndsAway()
    async with world.desk().running() as desk:
        await anyio.sleep(10)
        opened = await desk.gate.run(said(world, 1, "LONG"), desk.execute)
        assert isinstance(opened, signals.Unfinished)
        assert world.position() == SIZE
        before_ms = world.clock.now_ms() - 5_000
        await desk.gate.run(said(world, 2, "FLAT", timestamp=before_ms), desk.execute)
        world.store.is_away = False
        await anyio.sleep(30)
        assert world.position() == SIZE
        assert (await desk.gate.find("said-2")).reason is execsafe.DropReason.SUPERSEDED


async def test_what_is_too_old_or_too_small_or_too_much_is_dropped_with_its_reason(world):
    world.policy = attrs.evolve(POLICY, positions_max=1)
    async with world.desk().running() as desk:
        old = await desk.carry_out(wish(1), decided_at_ms=world.clock.now_ms() - 301_000)
        assert isinstance(old, signals.Dropped)
        assert old.reason is execsafe.DropReason.STALE
        await desk.carry_out(wish(2))
        second = await desk.carry_out(wish(3, symbol=ETH))
        assert second.result.reason is execsafe.DropReason.RISK
    world.policy = attrs.evolve(POLICY, notional=Decimal(1))
    async with world.desk().running() as desk:
        small = await desk.carry_out(wish(4, symbol=ETH))
        assert small.result.reason is execsafe.DropReason.SIZE


async def test_a_pair_is_hedged_by_what_filled_and_closed_by_what_is_held(world):
    world.policy = attrs.evolve(POLICY, stop_positions=False)

    def pair(number, side, closes=None):
        other = execsafe.Side(side).opposite
        lead = Leg(
            symbol=BTC, side=execsafe.Side(side), quantity=Decimal("0.1"),
            limit_price=Decimal(51_000 if side == "buy" else 49_000),
            reverse_price=Decimal(49_000 if side == "buy" else 51_000),
        )  # fmt: skip
        hedge = Leg(
            symbol=ETH, side=other, quantity=Decimal("1.5"),
            limit_price=Decimal(2_900 if side == "buy" else 3_100),
            reverse_price=Decimal(3_100 if side == "buy" else 2_900),
        )  # fmt: skip
        return TradePair(id=f"pair-{number}", lead=lead, hedge=hedge, closes=closes)

    async with world.desk().running() as desk:
        assert isinstance(await desk.carry_out(pair(1, "buy")), hedging.Executed)
        assert (world.position(BTC), world.position(ETH)) == (Decimal("0.1"), Decimal("-1.5"))
        closed = await desk.carry_out(pair(2, "sell", closes="pair-1"))
        assert isinstance(closed, PairClosed)
        assert all(isinstance(leg, exits.Exited) for leg in closed.legs)
        assert (world.position(BTC), world.position(ETH)) == (0, 0)
        nothing = await desk.carry_out(pair(3, "sell", closes="never"))
        assert isinstance(nothing, execsafe.TradingDenied)


@pytest.mark.row("S2-03")
async def test_a_graceful_stop_ends_flat_or_says_what_is_left(world):
    async with world.desk().running() as desk:
        await desk.carry_out(wish())
        kept = await desk.stop(flat=False)
        assert [position.symbol for position in kept.positions] == [BTC]
        dropped = await desk.carry_out(wish(2, symbol=ETH))
        assert dropped.reason is execsafe.DropReason.DRAIN
        assert (await desk.stop(flat=True)).is_nothing
        assert world.position() == 0


async def test_a_desk_takes_up_what_another_one_left(world):
    async with world.desk().running() as desk:
        await desk.carry_out(wish())
        held = desk.position(BTC)
    async with world.desk().running() as desk:
        assert desk.position(BTC).position_id == held.position_id
        assert desk.harvester.targets(held.position_id) is not None
        record = desk.protection.protection(held.position_id)
        assert record.state is protection.ProtectionState.STOP
        assert isinstance(await desk.carry_out(wish()), signals.Dropped)
        assert world.position() == SIZE


@pytest.mark.row("X-01", "S0-02", "S0-03")
async def test_the_parts_share_one_registry_one_book_and_one_store(world):
    """No part has a private copy of what another one knows."""
    desk = world.desk()
    owners = desk.gateway, desk.opener.gateway, desk.exits.gateway, desk.book, desk
    registries = {id(owner.registry) for owner in owners}
    books = {id(book) for book in (desk.book, desk.protection.book)}
    stores = {id(part.store) for part in (desk, desk.registry, desk.book)}
    assert (len(registries), len(books), len(stores)) == (1, 1, 1)


async def test_a_spread_that_is_too_wide_opens_nothing_and_closes_all_the_same(world):
    async with world.desk().running() as desk:
        await desk.carry_out(wish())
        world.venue.set_book(ETH, [(2_990, 100)], [(3_010, 100)])
        wide = await desk.carry_out(wish(2, symbol=ETH))
        assert wide.result.reason is execsafe.DropReason.DENIED
        assert world.position(ETH) == 0


async def test_a_halted_desk_opens_nothing_protects_and_closes(world):
    async with world.desk().running() as desk:
        await desk.carry_out(wish())
        await desk.safety.set(execsafe.TradingState.HALTED, note="by hand")
        refused = await desk.carry_out(wish(2, symbol=ETH))
        assert refused.result.reason is execsafe.DropReason.DENIED
        await desk.carry_out(Close(id="out", symbol=BTC))
        assert (world.position(BTC), world.position(ETH)) == (0, 0)


@pytest.mark.row("S3-09")
async def test_nothing_is_decided_before_venue_book_and_journal_agree(world):
    """Somebody opened a position by hand while nobody looked: entries wait for a person."""
    world.venue.submit(NewOrder(symbol=BTC, side="buy", quantity=Decimal("0.01"), type="market"), world.clock.now_ms())
    async with world.desk().running() as desk:
        kinds = {finding.kind.value for finding in desk.reconciler.findings}
        assert kinds, "the position of somebody else was found"
        refused = await desk.carry_out(wish())
        assert refused.result.reason is execsafe.DropReason.DENIED
        assert desk.safety.state is execsafe.TradingState.REDUCE_ONLY
        assert world.position() == Decimal("0.01"), "what is somebody else's is told, and left alone"


async def test_a_desk_that_only_settles_lets_no_entry_pass(world):
    async with world.desk().running(decides=False) as desk:
        refused = await desk.carry_out(wish())
        assert refused.reason is execsafe.DropReason.DRAIN
        assert world.position() == 0


@pytest.mark.guarantee(14)
async def test_g14_a_sweep_that_failed_comes_again_soon_and_not_a_sweep_later(world, monkeypatch):
    """Else what has ended would outlive its retention by two pauses."""
    tried = []
    purge = execsafe.IntentRegistry.purge

    async def fails_once(registry):
        tried.append(world.clock.now_ms())
        if len(tried) == 1:
            raise execsafe.StoreUnavailable("the disk is away")
        return await purge(registry)

    monkeypatch.setattr(execsafe.IntentRegistry, "purge", fails_once)
    async with world.desk().running():
        await anyio.sleep(POLICY.settle_s + 1)
    assert len(tried) == 2
    assert tried[1] - tried[0] <= POLICY.settle_s * 1_000 + 100


@pytest.mark.guarantee(13)
async def test_g13_a_stop_leaves_what_was_accepted_and_not_sent_to_the_next_desk(world):
    """Also one that takes its time: the mode of a stop is no answer to a signal."""
    asked = []

    async def wait(work):
        asked.append(work.mode)
        return signals.Pending(note="there is no fresh price", attempted=False)

    payload = {"id": "s-1", "symbol": BTC, "side": "LONG", "timestamp": world.clock.now_ms()}
    async with world.desk().running() as desk:
        desk.handler = wait
        await desk.gate.run(payload, wait)
        await anyio.sleep(7)
        assert len(asked) >= 2, "it is asked again while the desk runs"
        await desk.stop(flat=False)
        before = len(asked)
        await anyio.sleep(30)
        assert len(asked) == before, "nobody works on it any more"
        assert (await desk.gate.find("s-1")).state is signals.SignalState.ACCEPTED
    assert world.position() == 0
    async with world.desk().running() as desk:
        await anyio.sleep(10)
        assert (await desk.gate.find("s-1")).state is signals.SignalState.EXECUTED
    assert world.position() == SIZE


async def test_a_resume_that_meets_a_stop_half_way_is_not_refused_for_good(world):
    """The mode changes between the look at the signal and its order."""
    async with world.desk().running() as desk:
        payload = {"id": "s-1", "symbol": BTC, "side": "LONG", "timestamp": world.clock.now_ms()}

        async def stopped_half_way(work):
            desk.gate.mode = execsafe.ExecutionMode.DRAIN
            return await desk.openings.handle(work)

        came = await desk.gate.run(payload, stopped_half_way)
        assert isinstance(came, signals.Unfinished), came
        assert world.position() == 0
        desk.gate.mode = execsafe.ExecutionMode.LIVE
        [came] = await desk.gate.resume(desk.openings.handle)
        assert isinstance(came.result, signals.Executed)
        assert world.position() == SIZE
