"""Each bot by itself: the plain ones must be fair opponents, the guarded ones hedge and protect what filled."""

from decimal import Decimal

import anyio
import ccxt
import pytest

import execsafe
from execsafe import hedging
from execsafe.bot import guarded
from execsafe.bot.demo import DemoPolicy
from execsafe.bot.desk import TradingDesk
from execsafe.bot.naive import NaiveBot
from execsafe.bot.naive_waves import NaiveWaves
from execsafe.bot.scenes import SPOT, pairs_scene
from execsafe.bot.strategy import Open
from execsafe.stores.memory import MemoryStore
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.faults import Fault, FaultPlan, Strike
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import SimVenue

pytestmark = pytest.mark.anyio
ETH = "ETH/USDT:USDT"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """The plain bots' back-off is no subject here."""
    monkeypatch.setattr("execsafe.bot.naive.BACKOFF_S", 0.0)


# --- pairs, guarded ---------------------------------------------------------------------------------------------


class Desk:
    """The desk of the demo's pairs at a venue in this process, in virtual time."""

    def __init__(self, *strikes):
        scene = pairs_scene(DemoPolicy())
        self.venue = SimVenue(list(scene.markets.values()), prices={s: c.close for s, c in scene.moments[0].items()})
        self.clock = VirtualClock()
        self.events = []
        self.adapter = SimAdapter(self.venue, clock=self.clock, plan=FaultPlan.scripted(*strikes))
        self.desk = TradingDesk(
            self.adapter,
            MemoryStore(),
            guarded.PAIRS,
            symbols=tuple(SPOT),
            listeners=[self.events.append],
            clock=self.clock,
        )

    async def trade(self, signal):
        for leg in signal.legs:
            self.venue.set_price(leg.symbol, leg.close, self.clock.now_ms())
        return await self.desk.carry_out(signal.as_trade())

    def held(self):
        return {symbol: self.venue.ledger.position(symbol) for symbol in SPOT}

    def unhedged(self, signal):
        """What one side holds without the other, in the base of the hedge."""
        lead, hedge = signal.legs
        held = self.held()
        return held[hedge.symbol] + held[lead.symbol] * hedge.quantity / lead.quantity


class TestPairsAtTheDesk:
    @pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
    def anyio_backend(self, request):
        return virtual_backends()[request.param]

    async def test_the_hedge_is_sized_by_what_the_leading_leg_filled(self, trade):
        world = Desk(Strike("create", 1, Fault.PARTIAL_FILL, 600))
        async with world.desk.running():
            assert isinstance(await world.trade(trade[0]), hedging.Executed)
            assert abs(world.held()["ETH/BTC"]) < trade[0].lead.quantity
            assert abs(world.unhedged(trade[0])) < Decimal("0.02")

    async def test_an_exit_closes_what_the_entry_left_and_not_what_it_asked_for(self, trade):
        world = Desk(Strike("create", 1, Fault.PARTIAL_FILL, 600))
        async with world.desk.running():
            for signal in trade:
                await world.trade(signal)
            assert world.held() == {"ETH/BTC": 0, "LTC/BTC": 0}

    async def test_a_leading_leg_that_cannot_be_hedged_is_undone(self, trade):
        world = Desk(*(Strike("create", n, Fault.REJECT_FUNDS) for n in range(2, 5)))
        async with world.desk.running():
            came = await world.trade(trade[0])
            assert isinstance(came, hedging.Unwound), came
            assert world.held() == {"ETH/BTC": 0, "LTC/BTC": 0}

    @pytest.mark.guarantee(5)
    async def test_g5_a_signal_that_is_delivered_again_sends_nothing(self, trade):
        world = Desk()
        async with world.desk.running():
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(world.trade, trade[0])
            assert isinstance(await world.trade(trade[0]), hedging.Deduplicated)
        assert len(world.venue.ledger.accepted()) == 2

    async def test_the_book_knows_both_legs_sold_ones_too(self, trade):
        world = Desk()
        async with world.desk.running():
            await world.trade(trade[0])
            positions = {p.symbol: p.side.sign * p.quantity for p in world.desk.book.open_positions("default")}
            assert positions == world.held()


# --- pairs, plain: a fair opponent -------------------------------------------------------------------------------


@pytest.fixture
def anyio_backend():
    """For the plain bots: what they are given here does not wait for anything."""
    return "asyncio"


async def test_plain_a_network_error_is_tried_again_and_a_refusal_is_not(scripted, trade):
    exchange = scripted(ccxt.RequestTimeout("?"), 1, ccxt.InsufficientFunds("no"))
    bot = NaiveBot(exchange)
    await bot.handle(trade[0])

    assert [order[0] for order in exchange.orders] == ["ETH/BTC"]
    assert (bot.retries, bot.given_up) == (1, 1)


async def test_plain_a_signal_that_comes_again_later_is_not_carried_out_again(scripted, trade):
    exchange = scripted()
    bot = NaiveBot(exchange)
    await bot.handle(trade[0])
    await bot.handle(trade[0])

    assert len(exchange.orders) == 2


async def test_plain_a_calm_trade_is_opened_and_closed_exactly(scripted, trade):
    exchange = scripted()
    bot = NaiveBot(exchange)
    for signal in trade:
        await bot.handle(signal)

    assert exchange.held == {"ETH/BTC": 0, "LTC/BTC": 0}
    assert set(bot.positions().values()) == {0}


async def test_plain_an_exit_closes_what_the_book_says_was_filled(scripted, trade):
    exchange = scripted(Decimal("0.6"), Decimal("0.6"))
    bot = NaiveBot(exchange)
    for signal in trade:
        await bot.handle(signal)

    assert exchange.held == {"ETH/BTC": 0, "LTC/BTC": 0}


async def test_plain_three_silent_answers_are_taken_for_a_failure(scripted, trade):
    exchange = scripted(*(ccxt.RequestTimeout("?") for _ in range(3)))
    bot = NaiveBot(exchange)
    await bot.handle(trade[0])

    assert exchange.orders == []
    assert (bot.retries, bot.given_up) == (2, 1)


# --- waves, plain: a fair opponent -------------------------------------------------------------------------------


def wish(number=1, side="long"):
    return Open(id=f"waves/{ETH}/{number}", symbol=ETH, side=side)


def prices(price):
    return {ETH: Decimal(price)}


async def test_plain_waves_an_entry_gets_a_reduce_only_stop_on_the_losing_side(scripted):
    exchange = scripted()
    bot = NaiveWaves(exchange)
    await bot.handle(wish(side="short"))

    entry, stop = exchange.calls
    assert (entry[2], stop[2]) == ("sell", "buy")
    assert stop[5] == {"stopLossPrice": 1010.0, "reduceOnly": True}
    assert bot.positions() == {ETH: Decimal("-1.0")}


async def test_plain_waves_neither_a_held_symbol_nor_a_finished_signal_is_entered_again(scripted):
    exchange = scripted()
    bot = NaiveWaves(exchange)
    await bot.handle(wish(1))
    await bot.handle(wish(2))
    await bot.look(prices(1_013))  # target
    await bot.handle(wish(1))

    assert [call[2] for call in exchange.calls] == ["buy", "sell", "sell"]
    assert exchange.held == {ETH: 0}
    assert exchange.canceled == ["2"]


async def test_plain_waves_the_stop_sits_in_a_try_of_its_own_and_its_failure_is_not_looked_after(scripted):
    exchange = scripted(1, ccxt.InvalidOrder("would trigger"))
    bot = NaiveWaves(exchange)
    await bot.handle(wish())

    assert bot.held[ETH].stop_id is None
    assert bot.positions() == {ETH: Decimal("1.0")}


async def test_plain_waves_a_position_that_its_stop_must_have_closed_is_forgotten(scripted):
    exchange = scripted()
    bot = NaiveWaves(exchange)
    await bot.handle(wish())
    await bot.look(prices(980))

    assert bot.positions() == {}
    assert len(exchange.calls) == 2


async def test_plain_waves_a_position_without_a_stop_is_closed_when_it_has_lost_enough(scripted):
    exchange = scripted(1, ccxt.InvalidOrder("no"))
    bot = NaiveWaves(exchange)
    await bot.handle(wish())
    await bot.look(prices(980))

    assert exchange.held == {ETH: 0}


async def test_plain_waves_a_retry_is_no_decision_of_its_own(scripted):
    exchange = scripted(ccxt.RequestTimeout("?"), ccxt.RequestTimeout("?"), 1)
    bot = NaiveWaves(exchange)
    await bot.handle(wish())

    assert [meant.purpose for meant in bot.meant.values()] == ["entry", "stop"]
    assert bot.retries == 2


async def test_the_demo_is_configured_as_its_venue_is():
    """Windows shorter than the venue keeps would let a proof come too early; the demo would then cheat or fail."""
    from execsafe.bot import stage
    from execsafe.bot.scenes import waves_scene

    for scene in (pairs_scene(DemoPolicy()), waves_scene(DemoPolicy())):
        venue, profile = stage.Stage(scene, DemoPolicy()).venue, stage.profile(scene.face)
        assert max(venue.read_lag_ms.values()) <= profile.read_lag_s * 1000
        assert venue.account_lag_ms <= profile.read_lag_s * 1000
        assert venue.skew_ms <= profile.clock_skew_s * 1000
        assert profile.dedup is venue.dedup is execsafe.Dedup.OPEN
        lags = {Fault.LOOKUP_LAG, Fault.LOOKUP_MISSES_CLOSED, Fault.ID_INDEX_LOST, Fault.PRUNED_AFTER_END}
        assert not lags & set(scene.rates)
