"""Pairs at the desk: an entry that is refused for now is tried again while it is fresh, and only then."""

from decimal import Decimal

import anyio
import attrs
import ccxt
import pytest

import execsafe
from burial import burying
from execsafe import hedging
from execsafe.bot.desk import TradingDesk
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.runner import _AT_ONCE, Runner
from execsafe.bot.strategy import Leg, Strategy, TradePair
from execsafe.bot.trades import PairClosed
from execsafe.core.backoff import Backoff
from execsafe.stores.memory import MemoryStore
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import ProcessKilled, run_simulated, virtual_backends
from execsafe.testing.venue import SimVenue, btc_usdt, eth_usdt, linear

BTC, ETH = "BTC/USDT:USDT", "ETH/USDT:USDT"
SPOT = ("BTC/USDT", "ETH/USDT")
POLICY = DeskPolicy(stop_positions=False)
FRESH_S = POLICY.signals.max_age_s
HEDGED = (Decimal("0.1"), Decimal("-1.5"))


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class Hazy(SimAdapter):
    """Order books cannot be read until a certain time."""

    until_ms = 0

    async def fetch_order_book(self, symbol, *, depth=20):
        if self.clock.now_ms() < self.until_ms:
            raise ccxt.NetworkError("no books now")
        return await super().fetch_order_book(symbol, depth=depth)


class Asked:
    """Notes when an entry of the leading leg was asked about; refuses it with *reason* if there is one."""

    def __init__(self, clock):
        self.clock = clock
        self.at_ms = []
        self.reason = None

    async def check(self, intent, instrument):
        if intent.symbol == BTC:
            self.at_ms.append(self.clock.now_ms())
            if self.reason is not None:
                raise execsafe.TradingDenied(f"no: {self.reason}", reason=self.reason)


class World:
    def __init__(self, policy=POLICY, hazy_s=0, *, is_spot=False):
        self.clock = VirtualClock()
        self.symbols = SPOT if is_spot else (BTC, ETH)
        markets = [btc_usdt(), eth_usdt()] if is_spot else [linear("BTC"), linear("ETH")]
        self.venue = SimVenue(markets, prices=dict(zip(self.symbols, (50_000, 3_000), strict=True)))
        self.store = MemoryStore()
        self.policy = policy
        self.asked = Asked(self.clock)
        self.began_ms = self.clock.now_ms()
        self.hazy_until_ms = self.began_ms + hazy_s * 1_000

    def desk(self):
        adapter = Hazy(self.venue, clock=self.clock)
        adapter.until_ms = self.hazy_until_ms
        return TradingDesk(
            adapter, self.store, self.policy, symbols=self.symbols, checks=[self.asked], clock=self.clock
        )

    def held(self):
        return tuple(self.venue.ledger.position(symbol) for symbol in self.symbols)

    def sent(self):
        return [(entry.symbol, entry.side.value) for entry in self.venue.ledger.accepted()]

    def passed_s(self):
        return (self.clock.now_ms() - self.began_ms) / 1_000


@pytest.fixture
async def world():
    return World()


def pair(side="buy", closes=None, name="pair"):
    is_buy = side == "buy"
    lead = Leg(
        symbol=BTC, side=execsafe.Side(side), quantity=Decimal("0.1"),
        limit_price=Decimal(51_000 if is_buy else 49_000), reverse_price=Decimal(49_000 if is_buy else 51_000),
    )  # fmt: skip
    hedge = Leg(
        symbol=ETH, side=execsafe.Side(side).opposite, quantity=Decimal("1.5"),
        limit_price=Decimal(2_900 if is_buy else 3_100), reverse_price=Decimal(3_100 if is_buy else 2_900),
    )  # fmt: skip
    return TradePair(id=name if closes is None else f"end of {name}", lead=lead, hedge=hedge, closes=closes)


@pytest.mark.anyio
async def test_an_entry_refused_because_a_book_could_not_be_read_passes_a_little_later_and_once():
    world = World(hazy_s=10)
    async with world.desk().running() as desk:
        came = await desk.carry_out(pair())
        assert isinstance(came, hedging.Executed), came
        assert 10 <= world.passed_s() < 30
        assert isinstance(await desk.carry_out(pair()), hedging.Deduplicated)
        assert world.held() == HEDGED
        assert world.sent() == [(BTC, "buy"), (ETH, "sell")]


def on_spot(decision):
    lead, hedge = attrs.evolve(decision.lead, symbol=SPOT[0]), attrs.evolve(decision.hedge, symbol=SPOT[1])
    return attrs.evolve(decision, lead=lead, hedge=hedge)


@pytest.mark.anyio
async def test_the_end_of_a_trade_on_spot_that_is_refused_for_now_passes_a_little_later():
    """There, to close is to trade the other way: the same checks hold it back, and nothing else would end it."""
    world = World(is_spot=True)
    async with world.desk().running() as desk:
        assert isinstance(await desk.carry_out(on_spot(pair())), hedging.Executed)
        desk.adapter.until_ms = world.clock.now_ms() + 10_000
        assert isinstance(await desk.carry_out(on_spot(pair("sell", closes="pair"))), hedging.Executed)
        assert world.held() == (Decimal("0.0001"), 0), "what was bought, less the fee that was taken of it, is sold"


@pytest.mark.anyio
@pytest.mark.guarantee(5)
async def test_g5_the_same_entry_said_three_times_while_it_waits_is_one_trade():
    world = World(hazy_s=10)
    async with world.desk().running() as desk:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(desk.carry_out, pair())
        assert world.sent() == [(BTC, "buy"), (ETH, "sell")]


@pytest.mark.anyio
@pytest.mark.parametrize("reason", [execsafe.DenyReason.SPREAD, execsafe.DenyReason.HALTED, "of my own"])
async def test_an_entry_refused_for_good_is_asked_about_once(world, reason):
    world.asked.reason = reason
    async with world.desk().running() as desk:
        came = await desk.carry_out(pair())
        assert came.context["reason"] == reason
        await anyio.sleep(FRESH_S)
        assert len(world.asked.at_ms) == 1
        assert world.sent() == []


@pytest.mark.anyio
@pytest.mark.guarantee(12, 17)
async def test_g17_what_stays_unreadable_is_refused_when_the_decision_is_no_longer_fresh():
    world = World(hazy_s=10_000)
    async with world.desk().running() as desk:
        decided_at_ms = world.clock.now_ms() - 100_000
        came = await desk.carry_out(pair(), decided_at_ms=decided_at_ms)
        assert came.context["reason"] == execsafe.DenyReason.NO_READING
        assert world.clock.now_ms() <= decided_at_ms + FRESH_S * 1_000
        pauses_ms = [b - a for a, b in zip(world.asked.at_ms, world.asked.at_ms[1:], strict=False)]
        assert min(pauses_ms) >= 1_000
        assert max(pauses_ms) <= 16_000
        assert len(pauses_ms) >= 10
        assert world.sent() == []


@pytest.mark.anyio
async def test_pauses_and_their_number_are_the_policys():
    world = World(
        attrs.evolve(POLICY, entry_pauses=Backoff(base_s=2.0, factor=1.0, jitter=0.0, max_attempts=3)), 10_000
    )
    async with world.desk().running() as desk:
        assert isinstance(await desk.carry_out(pair()), execsafe.TradingDenied)
        first, second, third = world.asked.at_ms
        assert 2_000 <= second - first < 2_500
        assert 2_000 <= third - second < 2_500


def test_a_policy_without_a_pause_is_refused():
    with pytest.raises(execsafe.InvalidInput, match="entry_pauses"):
        DeskPolicy(entry_pauses=Backoff(base_s=0.0, max_attempts=None))


@pytest.mark.anyio
async def test_a_drained_desk_tries_no_more():
    world = World(hazy_s=20)
    came = []
    async with world.desk().running() as desk, anyio.create_task_group() as tasks:

        async def enter():
            came.append(await desk.carry_out(pair()))

        tasks.start_soon(enter)
        await anyio.sleep(10)
        desk.gate.mode = execsafe.ExecutionMode.DRAIN
        asked = len(world.asked.at_ms)
        await anyio.sleep(60)
        assert came[0].context["reason"] == execsafe.DenyReason.NO_READING
        assert len(world.asked.at_ms) == asked
        assert world.sent() == []


@pytest.mark.anyio
@pytest.mark.guarantee(13)
async def test_g13_a_cancelled_entry_is_not_tried_again():
    world = World(hazy_s=20)
    async with world.desk().running() as desk:
        with anyio.move_on_after(10):
            await desk.carry_out(pair())
        await anyio.sleep(FRESH_S)
        assert world.sent() == []


@pytest.mark.anyio
async def test_an_entry_that_waits_is_given_up_at_once_when_its_trade_is_to_be_closed():
    """Else it would be entered after the strategy has ended it, and nobody would close it."""
    world = World(hazy_s=20)
    came = []
    async with world.desk().running() as desk, anyio.create_task_group() as tasks:

        async def enter():
            came.append(await desk.carry_out(pair()))

        tasks.start_soon(enter)
        await anyio.sleep(10)
        before_ms = world.clock.now_ms()
        closed = await desk.carry_out(pair("sell", closes="pair"))
        assert closed.context["reason"] == "flat"
        assert world.clock.now_ms() == before_ms
        await anyio.sleep(FRESH_S)
        assert came[0].context["reason"] == execsafe.DenyReason.NO_READING
        assert world.sent() == []


@pytest.mark.anyio
async def test_an_entry_that_is_being_sent_is_closed_by_what_it_came_to(world):
    came = []
    async with world.desk().running() as desk, anyio.create_task_group() as tasks:
        tasks.start_soon(desk.carry_out, pair())
        while not world.sent():
            await anyio.sleep(0.001)
        came.append(await desk.carry_out(pair("sell", closes="pair")))
        assert isinstance(came[0], PairClosed), came
        assert world.held() == (0, 0)


@pytest.mark.anyio
async def test_a_trade_that_was_begun_is_gone_on_with_and_not_entered_again(world):
    """Whatever refuses the call then: its orders may be at the venue."""
    async with world.desk().running() as desk:
        world.asked.reason = execsafe.DenyReason.HALTED
        await desk.carry_out(pair())
        assert not await desk.hedger.has_begun("pair"), "nothing was sent"
        world.asked.reason = None
        await desk.carry_out(pair())
        assert await desk.hedger.has_begun("pair")
        calls = []

        async def unavailable(plan):
            calls.append(plan.key)
            raise execsafe.VenueUnavailable("not now")

        desk.hedger.execute = unavailable
        assert isinstance(await desk.carry_out(pair()), execsafe.VenueUnavailable)
        assert calls == ["pair"]


class Idle(Strategy):
    def on_candles(self, candles, desk):
        return ()


@pytest.mark.anyio
async def test_entries_that_wait_keep_no_trade_from_being_closed(world):
    async def waits(plan):
        await anyio.sleep(FRESH_S)

    async with world.desk().running() as desk:
        await desk.carry_out(pair())
        assert world.held() == HEDGED
        desk.trades._enter = waits
        runner = Runner(desk, Idle((BTC,), {}), None)
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        async with anyio.create_task_group() as tasks:
            for number in range(_AT_ONCE + 1):
                tasks.start_soon(runner._carry_out, limiter, pair(name=f"more-{number}"), world.clock.now_ms())
            await anyio.sleep(1)
            assert limiter.available_tokens == 0
            before_ms = world.clock.now_ms()
            await runner._carry_out(limiter, pair("sell", closes="pair"), before_ms)
            assert world.clock.now_ms() - before_ms < 5_000
            assert world.held() == (0, 0)
            tasks.cancel_scope.cancel()


@pytest.mark.guarantee(1, 13)
@pytest.mark.parametrize("part", range(1, 13))
def test_g13_killed_anywhere_between_the_tries_nothing_is_doubled(part):
    """The decision is made again by the successor, as after any restart."""

    def world_and_life():
        world = World(hazy_s=10)

        async def life():
            async with world.desk().running() as desk:
                came = await desk.carry_out(pair(), decided_at_ms=world.began_ms)
                await anyio.sleep(60)  # what a dead process has claimed is gone on with by then
                return came

        return world, life

    loops = []
    _, calm = world_and_life()
    assert isinstance(run_simulated(calm, seed=part, on_loop=loops.append), hedging.Executed)
    world, life = world_and_life()
    with burying():
        with pytest.raises(ProcessKilled):
            run_simulated(life, seed=part, crash_at=loops[0].main_steps * part // 13)
        world.clock.skip(15_000)
        run_simulated(life, seed=part)
        assert world.held() == HEDGED
        assert world.sent() == [(BTC, "buy"), (ETH, "sell")]
