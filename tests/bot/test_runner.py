"""A whole run: candles in, positions out, an orderly end; and the commands around it."""

from decimal import Decimal

import anyio
import pytest

import execsafe
from execsafe.bot import config as configuration
from execsafe.bot.candles import Candle
from execsafe.bot.desk import TradingDesk
from execsafe.bot.feed import RecordedFeed
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.runner import Runner, make_strategy
from execsafe.bot.strategy import Close, Open, Strategy
from execsafe.locks import Leases
from execsafe.stores.memory import MemoryStore
from execsafe.testing import sim_errors
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import SimVenue, linear

BTC = "BTC/USDT:USDT"
MINUTE = 60_000


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class Steps(Strategy):
    """Opens at its second candle, closes at its sixth, and fails at the fourth."""

    warm_up = 1

    def __init__(self, symbols, settings):
        super().__init__(symbols, settings)
        self.seen = 0

    def on_candles(self, candles, desk):
        self.seen += 1
        if self.seen in {1, 2}:
            yield Open(id=f"open-{self.seen}", symbol=BTC, side="long")
        if self.seen == 4:
            raise ZeroDivisionError
        if self.seen == 6:
            yield Close(id="close", symbol=BTC)


class World:
    def __init__(self, strategy):
        self.clock = VirtualClock()
        self.venue = SimVenue([linear("BTC")], prices={BTC: 50_000})
        self.told = []
        desk = TradingDesk(
            SimAdapter(self.venue, clock=self.clock), MemoryStore(), DeskPolicy(notional=Decimal(1000)),
            symbols=(BTC,), clock=self.clock,
        )  # fmt: skip
        candles = {BTC: [Candle(n * MINUTE, Decimal(50_000)) for n in range(9)]}
        feed = RecordedFeed(candles, interval_ms=MINUTE, pause_s=30.0)
        self.runner = Runner(desk, strategy, feed, tell=lambda decision, came: self.told.append((decision.id, came)))


@pytest.mark.anyio
async def test_a_strategy_that_fails_once_goes_on_and_what_it_decided_is_carried_out():
    world = World(Steps((BTC,), {}))
    result = await world.runner.run()
    assert result.leftover.is_nothing
    assert [name for name, _ in world.told] == ["open-2", "close"], "what was decided while warming up is not done"
    assert result.results["strategy failed"] == 1
    assert world.venue.ledger.position(BTC) == 0
    assert len(world.venue.ledger.fills()) == 2


@pytest.mark.anyio
async def test_a_stop_in_the_middle_ends_flat_when_that_is_asked_for():
    world = World(Steps((BTC,), {}))
    ends = []

    async def run():
        ends.append(await world.runner.run(flat=True))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.sleep(80)
        assert world.venue.ledger.position(BTC) > 0
        world.runner.request_stop()
    assert ends[0].leftover.is_nothing
    assert world.venue.ledger.position(BTC) == 0


@pytest.mark.anyio
async def test_a_stop_that_keeps_says_what_it_keeps():
    world = World(Steps((BTC,), {}))
    ends = []

    async def run():
        ends.append(await world.runner.run())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.sleep(80)
        world.runner.request_stop()
    [position] = ends[0].leftover.positions
    assert position.quantity == world.venue.ledger.position(BTC) > 0
    assert any(order.request.trigger_price for order in world.venue.open_orders(BTC)), "its stop stays"


class Rubbish(Strategy):
    """Opens a position, and wants something two candles later that is no decision."""

    def __init__(self, symbols, settings, value="open BTC", at=3):
        super().__init__(symbols, settings)
        self.value, self.at, self.seen = value, at, 0

    def on_candles(self, candles, desk):
        self.seen += 1
        if self.seen == 1:
            yield Open(id="open", symbol=BTC, side="long")
        if self.seen == self.at:
            yield self.value


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "kind"),
    [("open BTC", "str"), (None, "NoneType"), ({"symbol": BTC}, "dict"), (Open, "type"), ([], "list")],
)
async def test_what_is_no_decision_ends_the_run_at_once_by_name_and_type_and_in_good_order(value, kind):
    """Counted as one result among others, it would be noticed when the bot has done nothing for a week."""
    world = World(Rubbish((BTC,), {}, value))
    with pytest.raises(execsafe.InvalidInput, match=f"Rubbish wanted a {kind}; a decision is an Open"):
        await world.runner.run(flat=True)
    assert world.runner.strategy.seen == 3, "fails fast"
    assert [name for name, _ in world.told] == ["open"]
    assert world.venue.ledger.position(BTC) == 0, "what is held is ended as at any stop"


@pytest.mark.anyio
async def test_a_text_in_place_of_a_list_is_no_decision_either():
    class Text(Strategy):
        def on_candles(self, candles, desk):
            return "open"

    with pytest.raises(execsafe.InvalidInput, match="Text wanted a str"):
        await World(Text((BTC,), {})).runner.run()


def strategy(name, **more):
    return configuration.StrategyConfig(name=name, symbols=(BTC,), **more)


def test_strategies_are_found_by_name_or_by_module():
    assert type(make_strategy(strategy("waves"))).__name__ == "Waves"
    assert type(make_strategy(strategy("execsafe.bot.waves:Waves"))).__name__ == "Waves"


class Wanting(Strategy):
    """Refuses its settings in the way that they name."""

    def __init__(self, symbols, settings):
        super().__init__(symbols, settings)
        if settings["refuse"] == "by hand":
            raise ValueError("window must be a whole number from 2 to 48")
        raise execsafe.InvalidInput("window: said already")

    def on_candles(self, candles, desk):
        return []


class Unfinished(Strategy):
    """Has no on_candles."""


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Wanting", {"refuse": "by hand"}, "ValueError: window must be a whole number from 2 to 48"),
        ("Wanting", {}, "KeyError: 'refuse'"),
        ("Wanting", {"refuse": "typed"}, "^window: said already"),
        ("Unfinished", {}, "TypeError: Can't instantiate abstract class Unfinished"),
        ("NotThere", {}, f"there is no NotThere in the module {__name__}"),
    ],
)
def test_a_strategy_that_refuses_its_settings_or_is_not_there_is_said_in_one_sentence(name, settings, message):
    with pytest.raises(execsafe.InvalidInput, match=message):
        make_strategy(strategy(f"{__name__}:{name}", settings=settings))


def test_a_module_that_fails_as_it_is_imported_is_said_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "half_written_strategy.py").write_text("class Mine(\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(execsafe.InvalidInput, match=r"half_written_strategy:Mine: SyntaxError: .* line 1"):
        make_strategy(strategy("half_written_strategy:Mine"))


@pytest.mark.parametrize("name", ["wave", "no.such.module:X", "execsafe.bot.waves:Nothing", "json:JSONDecoder"])
def test_a_strategy_that_is_none_is_refused(name):
    with pytest.raises(execsafe.InvalidInput):
        make_strategy(strategy(name))


# --- A stop before the barrier has passed -------------------------------------------------------------------


class Unreadable(SimAdapter):
    """Positions cannot be read, as with a wrong key: the barrier waits for ever."""

    reads = 0

    async def fetch_positions(self):
        self.reads += 1
        raise sim_errors.AuthenticationError("invalid key")


class Starting:
    """A store with an opening that was interrupted, and runs that begin with it."""

    def __init__(self):
        self.clock = VirtualClock()
        self.venue = SimVenue([linear("BTC")], prices={BTC: 50_000})
        self.store = MemoryStore()

    def desk(self, adapter=SimAdapter):
        policy = DeskPolicy(notional=Decimal(1000))
        return TradingDesk(adapter(self.venue, clock=self.clock), self.store, policy, symbols=(BTC,), clock=self.clock)

    def runner(self, adapter=SimAdapter):
        candles = {BTC: [Candle(n * MINUTE, Decimal(50_000)) for n in range(9)]}
        return Runner(self.desk(adapter), Idle((BTC,), {}), RecordedFeed(candles, interval_ms=MINUTE, pause_s=30.0))

    async def interrupted(self, after_s):
        async with self.desk().running() as desk:
            with anyio.move_on_after(after_s):
                await desk.carry_out(Open(id="signal-1", symbol=BTC, side="long"))

    async def stopped_after(self, runner, seconds, **how):
        """What a run came to that was told to stop after so long, and how many seconds its end took."""
        ends = []

        async def run():
            ends.append(await runner.run(**how))

        with anyio.fail_after(seconds + 60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await anyio.sleep(seconds)
                runner.request_stop()
                at_ms = self.clock.now_ms()
        return ends[0], (self.clock.now_ms() - at_ms) / 1_000


class Idle(Strategy):
    def on_candles(self, candles, desk):
        return []


@pytest.mark.anyio
@pytest.mark.parametrize("flat", [False, True])
async def test_a_stop_ends_a_start_whose_venue_cannot_be_read_and_gives_the_store_back(flat):
    world = Starting()
    runner = world.runner(Unreadable)
    result, took_s = await world.stopped_after(runner, 75, flat=flat)
    assert runner.desk.adapter.reads > 1, "it waited for the barrier"
    assert not result.has_begun
    assert took_s < 1
    assert world.store._leases.get("desk") is None, "the next run need not wait"
    assert world.venue.ledger.accepted() == []


@pytest.mark.anyio
async def test_a_stop_ends_the_wait_for_the_lease_of_a_desk_that_was_killed():
    world = Starting()
    await world.store.open()
    theirs = await Leases(world.store, world.clock.now_ms, "killed", 9_000).acquire("desk", waits=False, deadline=0)
    result, took_s = await world.stopped_after(world.runner(), 2)
    assert not result.has_begun
    assert took_s < 1
    assert world.store._leases["desk"].holder == theirs.holder


@pytest.mark.anyio
@pytest.mark.guarantee(13)
@pytest.mark.parametrize("stopped_ms", [0, 1, 5, 10, 30, 60, 100, 200, 400, 800, 1_500, 3_000])
async def test_g13_a_start_given_up_at_any_moment_says_what_is_left_and_costs_only_another_start(stopped_ms):
    world = Starting()
    await world.interrupted(after_s=0.1)
    result, took_s = await world.stopped_after(world.runner(), stopped_ms / 1_000)
    assert took_s < 10
    assert world.store._leases.get("desk") is None
    if not result.has_begun and result.leftover.positions:
        assert result.leftover.positions[0].quantity == world.venue.ledger.position(BTC)
    await world.runner().run(flat=True)
    assert world.venue.ledger.position(BTC) == 0
    assert len([entry for entry in world.venue.ledger.accepted() if not entry.reduce_only]) <= 1


@pytest.mark.anyio
async def test_a_stop_before_the_run_starts_nothing():
    world = Starting()
    runner = world.runner()
    runner.request_stop()
    assert not (await runner.run()).has_begun
    assert world.store._leases.get("desk") is None


class AwayForAMinute(SimAdapter):
    """Positions and balances cannot be read at first."""

    async def fetch_positions(self):
        self.answer()
        return await super().fetch_positions()

    async def fetch_balances(self):
        self.answer()
        return await super().fetch_balances()

    def answer(self):
        if self.clock.now_ms() < VirtualClock().now_ms() + MINUTE:
            raise sim_errors.ExchangeNotAvailable("away")


@pytest.mark.anyio
async def test_a_start_that_waits_says_every_quarter_of_a_minute_what_for_and_nothing_once_it_is_over(caplog):
    world = Starting()
    await world.interrupted(after_s=0.1)
    caplog.clear()
    result, _ = await world.stopped_after(world.runner(AwayForAMinute), 200)
    assert result.has_begun
    said = [record.message for record in caplog.records if record.name == "execsafe.bot.waiting"]
    assert 3 <= len(said) <= 5
    assert all(
        "no entry passes yet: the venue does not tell the balances (ExchangeNotAvailable)" in one for one in said
    )
    assert "could not be read: positions" in said[-1]


@pytest.mark.anyio
async def test_a_desk_that_is_used_by_hand_says_that_its_key_is_refused_and_waits(caplog):
    class Refused(Unreadable):
        async def fetch_balances(self):
            raise sim_errors.AuthenticationError("invalid key")

    world = Starting()
    await world.stopped_after(world.runner(Refused), 20)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "the venue refuses the key (AuthenticationError): check the key" in said[0]
    assert any(one.startswith("no entry passes yet: the venue refuses the key") for one in said)
