"""PreTradeChecks at the gateway, against the simulated venue: refused before anything is sent, with the numbers."""

from __future__ import annotations

import ast
from decimal import Decimal
from pathlib import Path

import anyio
import attrs
import pytest

import execsafe.safety
from execsafe.core.pretrade import ExposureLimits, PreTradePolicy, RateLimit
from execsafe.core.prices import PricePolicy
from execsafe.core.safety import DenyReason
from execsafe.errors import InvalidInput, TradingDenied
from execsafe.gateway import Accepted, GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.health import HealthMonitor, HealthPolicy
from execsafe.intents import IntentRegistry
from execsafe.model.event import Event, EventType
from execsafe.model.instrument import Instrument
from execsafe.model.intent import ErrorFacts, Intent
from execsafe.model.outcome import Judged, Meaning
from execsafe.model.position import BookLevel, OrderBook, Position, PositionSide, Quote
from execsafe.positions import PositionBook
from execsafe.pretrade import FeedGate, HealthGate, LeverageCheck, PreTradeChecks
from execsafe.prices import PriceBoard
from execsafe.reconcile import _barrier
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from execsafe.views import VenueReader
from fakes import HANGS, LISTS, FakeAdapter, FakeVenue, ScriptedStore

pytestmark = pytest.mark.anyio
INSTRUMENT = Instrument(symbol="BTC/USDT")
OFF = PreTradePolicy(spread=None, depth=None, band=None, rate=None)


class NoChange(Exception):
    """The setting is as asked already."""


class MarketAdapter(FakeAdapter):
    """The scripted venue with an order book, quotes and leverage; each can fail."""

    def __init__(self, venue) -> None:
        super().__init__(venue)
        self.bid, self.ask, self.depth = Decimal("99.95"), Decimal("100.05"), Decimal(10)
        self.stamp_ms = 0
        self.fails: Exception | None = None
        self.leverage_error: Exception | None = None
        self.leverages: list = []

    async def fetch_order_book(self, symbol, *, depth=20):
        await anyio.sleep(0.01)
        if self.fails is not None:
            raise self.fails
        return OrderBook(
            symbol=symbol,
            bids=(BookLevel(price=self.bid, quantity=self.depth),),
            asks=(BookLevel(price=self.ask, quantity=self.depth),),
            at_ms=self.stamp_ms,
        )

    async def fetch_quotes(self, symbols):
        await anyio.sleep(0.01)
        if self.fails is not None:
            raise self.fails
        return {s: Quote(symbol=s, bid=self.bid, ask=self.ask, at_ms=self.stamp_ms) for s in symbols if s != "NO/PRICE"}

    async def set_leverage(self, symbol, leverage):
        self.leverages.append((symbol, leverage))
        if self.leverage_error is not None:
            raise self.leverage_error

    def judge(self, error, operation):
        if isinstance(error, NoChange):
            return Judged(meaning=Meaning.NO_CHANGE, facts=ErrorFacts(kind="NoChange"))
        return super().judge(error, operation)


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.venue = FakeVenue(self.clock, LISTS)
        self.store = ScriptedStore()
        self.store._is_open = True
        self.adapter = MarketAdapter(self.venue)
        self.reader = VenueReader(self.adapter, clock=self.clock, request_timeout_s=1.0)
        self.registry = IntentRegistry(self.store, clock=self.clock)
        self.positions = PositionBook(self.store, self.registry)
        self.events: list[Event] = []

    def checks(self, policy=None, **more) -> PreTradeChecks:
        return PreTradeChecks(
            self.reader,
            policy=policy,
            registry=self.registry,
            positions=self.positions,
            listeners=[self.events.append],
            **more,
        )

    def gateway(self, *checks) -> OrderGateway:
        policy = GatewayPolicy(request_timeout_s=2.0, patience_s=3.0)
        looks = LookPolicy(interval_s=1.0, spacing_s=0.0, timeout_s=1.0)
        return OrderGateway(self.adapter, self.registry, policy=policy, looks=looks, checks=checks, clock=self.clock)

    async def reason(self, gateway, one) -> str | None:
        try:
            await gateway.submit(one)
        except TradingDenied as error:
            return error.context["reason"]
        return None


@pytest.fixture
async def world():
    return World()


def intent(key: str = "k", **changes) -> Intent:
    return Intent(**{"key": key, "symbol": "BTC/USDT", "side": "buy", "quantity": 1, "limit_price": 100, **changes})


@pytest.mark.row("S0-24")
async def test_what_was_read_before_an_entry_leaves_with_the_intent(world):
    gateway = world.gateway(world.checks(store=world.store))
    assert isinstance(await gateway.submit(intent()), Accepted)
    [event] = [e.event for e in await world.store.read_events(0) if e.event.type is EventType.ENTRY_CHECKED]
    assert event.subject == intent().identity
    checks = event.details.thaw()["checks"]
    assert checks["spread"] == {"bid": "99.95", "ask": "100.05", "spread_ratio": "0.001"}
    assert checks["depth"] == {"entry_depth": "10", "exit_depth": "10", "need": "1"}
    assert set(checks) == {"rate", "feed", "spread", "depth", "price_band"}


@pytest.mark.row("S3-34", "S3-46")
@pytest.mark.parametrize(
    ("change", "asked", "reason"),
    [
        ({"ask": "101"}, {}, "spread"),
        ({"depth": "0.5"}, {}, "depth"),
        ({}, {"limit_price": 106}, "price_band"),
        ({"ask": "99"}, {}, "no_reading"),
        ({"stamp_ms": 1}, {}, "feed_stale"),
        ({"fails": ConnectionError("no")}, {}, "no_reading"),
    ],
)
async def test_each_refusal_has_its_reason_and_nothing_was_sent(world, change, asked, reason):
    for name, value in change.items():
        setattr(world.adapter, name, Decimal(value) if isinstance(value, str) else value)
    gateway = world.gateway(world.checks())
    with pytest.raises(TradingDenied) as caught:
        await gateway.submit(intent(**asked))
    assert caught.value.context["reason"] == reason
    assert world.adapter.sent == []
    assert await world.registry.find("k") is None
    [event] = world.events
    assert (event.type, event.note) == (EventType.ENTRY_DENIED, reason)
    assert event.details.thaw()["reason"] == reason
    assert await world.reason(gateway, intent("exit", reduce_only=True, side="sell")) is None


@pytest.mark.row("S3-34")
async def test_a_wide_spread_is_a_warning_on_an_entry_that_passes(world):
    world.adapter.bid, world.adapter.ask = Decimal("99.945"), Decimal("100.055")
    assert await world.reason(world.gateway(world.checks()), intent()) is None
    assert "0.11 %" in world.events[0].note


@pytest.mark.row("X-05")
@pytest.mark.guarantee(12)
async def test_g12_a_reading_that_never_comes_refuses_in_time(world):
    async def hang(symbol, *, depth=20):
        await anyio.sleep_forever()

    world.adapter.fetch_order_book = hang
    began_ms = world.clock.now_ms()
    assert await world.reason(world.gateway(world.checks()), intent()) == "no_reading"
    assert world.clock.now_ms() - began_ms == 1_000


async def test_a_loop_that_ran_wild_is_slowed_and_a_resend_costs_no_second_token(world):
    gateway = world.gateway(world.checks(attrs.evolve(OFF, rate=RateLimit(orders=2, per_s=2.0))))
    assert [await world.reason(gateway, intent(k)) for k in "abc"] == [None, None, "rate_limit"]
    await anyio.sleep(1)
    checks = world.checks(attrs.evolve(OFF, rate=RateLimit(orders=1, per_s=60.0)))
    for _ in range(3):
        await checks.check(intent("same"), INSTRUMENT)


async def test_an_order_worth_too_much_is_refused_with_a_market_price_as_well(world):
    policy = attrs.evolve(OFF, limits=ExposureLimits(max_order_notional=100))
    gateway = world.gateway(PreTradeChecks(world.reader, policy=policy))
    assert await world.reason(gateway, intent("a", quantity="0.99")) is None
    assert await world.reason(gateway, intent("b", limit_price=None)) == "order_notional"  # 100.05 at the ask


@pytest.mark.guarantee(1)
async def test_g1_what_rests_what_is_held_and_what_is_in_doubt_count_together(world):
    policy = attrs.evolve(OFF, limits=ExposureLimits(max_symbol_notional=301))
    gateway = world.gateway(world.checks(policy))
    await world.positions.open()
    assert await world.reason(gateway, intent("rests")) is None
    world.venue.orders[0].fill("0.5")
    await gateway.refresh(await world.registry.find("rests"))
    world.adapter.creates.append(HANGS)
    world.adapter.reads_fail = True
    assert await world.reason(gateway, intent("doubt")) is None
    assert await world.reason(gateway, intent("third")) is None
    assert await world.reason(gateway, intent("fourth")) == "symbol_exposure"
    assert await world.reason(gateway, intent("other side", side="sell", quantity="3")) is None
    assert world.events[-2].details.thaw()["checks"]["exposure"]["symbol_notional"] == "400.2"


@pytest.mark.guarantee(1)
async def test_g1_two_entries_checked_at_the_same_time_do_not_both_get_the_last_of_a_limit(world):
    policy = attrs.evolve(OFF, limits=ExposureLimits(max_gross_notional=150))
    gateway = world.gateway(world.checks(policy))
    ends = []
    async with anyio.create_task_group() as tasks:
        for key in "ab":
            tasks.start_soon(lambda k=key: _end(world, gateway, k, ends))
    assert sum(end is None for end in ends) <= 1
    assert len(world.adapter.sent) <= 1
    await anyio.sleep(30)
    assert await world.reason(gateway, intent("later", quantity="0.4")) is None


async def _end(world, gateway, key, ends):
    ends.append(await world.reason(gateway, intent(key)))


async def test_a_position_whose_value_is_not_known_refuses(world):
    class Held:
        async def catch_up(self):
            pass

        def open_positions(self, account=None):
            return (Position(account="default", symbol="NO/PRICE", side=PositionSide.LONG, quantity=Decimal(1)),)

    world.positions = Held()
    policy = attrs.evolve(OFF, limits=ExposureLimits(max_gross_notional=1_000))
    assert await world.reason(world.gateway(world.checks(policy)), intent()) == "no_reading"


@pytest.mark.guarantee(12)
async def test_g12_positions_that_cannot_be_read_refuse(world):
    checks = world.checks(attrs.evolve(OFF, limits=ExposureLimits(max_gross_notional=1_000)))
    world.store.is_down = True
    with pytest.raises(TradingDenied) as caught:
        await checks.check(intent(), INSTRUMENT)
    assert caught.value.context["reason"] == "no_reading"


async def test_bounds_on_exposure_need_somebody_who_knows_it(world):
    with pytest.raises(InvalidInput):
        PreTradeChecks(world.reader, policy=attrs.evolve(OFF, limits=ExposureLimits(max_gross_notional=1)))


@pytest.mark.row("S3-46")
def test_every_reason_for_which_an_entry_is_refused_is_in_the_enum():
    """Read from the source: whoever refuses an entry anywhere gives one of these reasons."""
    root = Path(execsafe.safety.__file__).parent
    given = {
        keyword.value.value
        for path in root.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "TradingDenied"
        for keyword in call.keywords
        if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant)
    }
    assert {"stale", "check_failed"} <= given
    assert given | set(_barrier._WHY) <= {reason.value for reason in DenyReason}


# --- Leverage, feed, health -----------------------------------------------------------------------------------


@pytest.mark.row("S2-27")
@pytest.mark.parametrize(
    ("error", "passes", "how"), [(None, True, "set"), (NoChange(), True, "already so"), (TimeoutError(), False, "")]
)
async def test_no_entry_at_a_leverage_that_the_venue_did_not_confirm(world, error, passes, how):
    world.adapter.leverage_error = error
    check = LeverageCheck(world.adapter, 5, clock=world.clock, listeners=[world.events.append])
    gateway = world.gateway(check)
    assert await world.reason(gateway, intent("a")) == (None if passes else "leverage")
    assert len(world.adapter.sent) == passes
    if passes:
        assert world.events[0].details.thaw() == {"leverage": "5", "how": how}
        await gateway.submit(intent("b"))
        assert len(world.adapter.leverages) == 1, "confirmed once"
        await anyio.sleep(3_600)
        await gateway.submit(intent("c"))
        assert len(world.adapter.leverages) == 2
    assert await world.reason(gateway, intent("exit", side="sell", reduce_only=True)) is None


@pytest.mark.row("S2-27")
async def test_a_symbol_without_a_leverage_is_refused(world):
    check = LeverageCheck(world.adapter, {"ETH/USDT": 3}, clock=world.clock)
    assert await world.reason(world.gateway(check), intent()) == "leverage"
    assert world.adapter.leverages == []


@pytest.mark.row("S3-17", "S3-38", "X-05")
async def test_entries_are_gated_when_the_feed_is_stale(world):
    board = PriceBoard(world.reader, policy=PricePolicy(), clock=world.clock)
    gateway = world.gateway(FeedGate(board, clock=world.clock, listeners=[world.events.append]))
    world.adapter.fails = ConnectionError("down")
    assert await world.reason(gateway, intent("never")) == "no_reading"
    world.adapter.fails = None
    await anyio.sleep(1)
    assert await world.reason(gateway, intent("fresh")) is None
    world.adapter.fails = ConnectionError("down")
    await anyio.sleep(6)
    assert await world.reason(gateway, intent("stale")) == "feed_stale"
    assert await world.reason(gateway, intent("exit", side="sell", reduce_only=True)) is None


@pytest.mark.row("S3-38", "S3-17", "D-17")
async def test_entries_are_gated_while_a_component_is_not_healthy_or_never_reported(world):
    monitor = HealthMonitor(clock=world.clock, policies={"feed": HealthPolicy(silent_after_s=10)})
    gateway = world.gateway(HealthGate(monitor, ["feed"], clock=world.clock, listeners=[world.events.append]))
    assert await world.reason(gateway, intent("unknown")) == "health"
    monitor.ok("feed")
    assert await world.reason(gateway, intent("good")) is None
    await anyio.sleep(10)
    assert await world.reason(gateway, intent("silent")) == "health"
    assert world.events[-1].details.thaw()["numbers"] == {"feed": "degraded"}
    assert await world.reason(gateway, intent("exit", side="sell", reduce_only=True)) is None
