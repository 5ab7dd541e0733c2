"""PositionOpener: an entry ends protected, flat, or with nothing done, whatever fails in between."""

from __future__ import annotations

import asyncio
import contextlib
from decimal import Decimal

import anyio
import pytest

from execsafe.core.health import Level
from execsafe.core.opening import OPENING_TRANSITIONS, OpeningState
from execsafe.core.trailing import TrailingPolicy
from execsafe.errors import AlreadyInFlight, IntentConflict, InvalidInput, TradingDenied
from execsafe.health import HealthMonitor
from execsafe.model.event import EventType
from execsafe.model.intent import Intent
from execsafe.model.order import Side
from execsafe.model.outcome import Operation
from execsafe.model.units import Percent
from execsafe.protection import (
    Active,
    EntryFailed,
    EntryPlan,
    EntryUnknown,
    OpeningPolicy,
    ProtectionPolicy,
    RolledBack,
    StopRule,
)
from execsafe.testing.faults import Fault, FaultPlan, Strike
from execsafe.testing.ledger import Happened
from execsafe.testing.loop import ProcessKilled, count_steps, run_simulated, virtual_backends
from execsafe.testing.venue import FillStep, btc_usdt, linear
from protection_rig import PERPETUAL, SPOT, World

pytestmark = pytest.mark.anyio
D = Decimal
E = EventType
S = OpeningState
DEADLINE_MS = 10_000
ALERT_MS = 2_000


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


@pytest.fixture(params=["order", "attached"])
def kind(request):
    return request.param


def plan(**changes) -> EntryPlan:
    base = {
        "key": "wave-1",
        "symbol": PERPETUAL,
        "side": "long",
        "quantity": "0.1",
        "stop": StopRule(distance=Percent(6)),
    }
    return EntryPlan(**{**base, **changes})


def entries(world, symbol=PERPETUAL):
    """Orders that opened something, as the venue accepted them."""
    return [e for e in world.venue.ledger.accepted() if e.symbol == symbol and not e.reduce_only]


# --- The plain way ------------------------------------------------------------------------------------------


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-05", "S3-06", "S3-11", "S1-09", "S1-14")
@pytest.mark.parametrize(("side", "stop"), [("long", "56400.0"), ("short", "63600.0")])
async def test_g10_an_entry_comes_with_a_verified_stop_at_its_distance_from_the_price_paid(side, stop, kind):
    world = World(attached=kind == "attached")
    process = world.process()
    outcome = await process.opener.open(plan(side=side))
    assert isinstance(outcome, Active)
    assert outcome.opening.state is S.ACTIVE
    assert (outcome.position.quantity, outcome.protection.verified_price) == (D("0.1"), D(stop))
    assert abs(world.held()) == D("0.1")
    assert world.stops() == ([] if world.attached else [(D("0.1"), D(stop))])
    assert world.exposed_ms() < 300


@pytest.mark.row("S3-19", "S1-16", "S3-18", "S3-04")
async def test_each_opening_tells_of_one_entry_one_position_one_stop_and_one_trailing_stop():
    world = World(prices={"ETH/USDT:USDT": 3_000}, markets=markets())
    process = world.process(policy=ProtectionPolicy(trailing=TrailingPolicy()))
    for symbol in (PERPETUAL, "ETH/USDT:USDT"):
        stop = StopRule(distance=Percent(6), trailing=TrailingPolicy())
        assert isinstance(await process.opener.open(plan(key=f"k-{symbol}", symbol=symbol, stop=stop)), Active)
    for kind_ in (E.ENTRY_STARTED, E.POSITION_OPENED, E.STOP_PLACED, E.TRAILING_STOP_CREATED):
        assert world.kinds().count(kind_) == 2
    opened = [event.subject for event in world.events if event.type is E.POSITION_OPENED]
    assert [event.subject for event in world.events if event.type is E.STOP_PLACED] == opened
    assert all(p.trailing is not None and p.is_safe for p in process.manager.protections())


def markets():
    return [btc_usdt(), linear(), linear("ETH")]


@pytest.mark.guarantee(5)
async def test_g5_the_same_plan_again_is_the_same_opening_and_another_plan_is_refused():
    world = World()
    process = world.process()
    first = await process.opener.open(plan())
    again = await process.opener.open(plan())
    assert (again.opening, again.position) == (first.opening, first.position)
    with pytest.raises(IntentConflict):
        await process.opener.open(plan(quantity="0.2"))
    assert len(entries(world)) == 1


@pytest.mark.guarantee(6)
@pytest.mark.row("S3-37")
async def test_a_symbol_that_is_held_or_being_opened_is_refused():
    world = World()
    process, other = world.process(), world.process()
    answers = []

    async def attempt(opener, key):
        try:
            answers.append(type(await opener.open(plan(key=key))))
        except (TradingDenied, AlreadyInFlight) as error:
            answers.append(error.context.get("reason", type(error)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attempt, process.opener, "a")
        tasks.start_soon(attempt, process.opener, "a")
        tasks.start_soon(attempt, process.opener, "b")
        tasks.start_soon(attempt, other.opener, "c")
    await attempt(process.opener, "d")
    assert answers.count(Active) == 1
    assert answers.count(AlreadyInFlight) <= 1
    assert answers.count("duplicate_symbol") >= 3
    assert len(entries(world)) == 1


@pytest.mark.guarantee(6)
@pytest.mark.row("S4-34", "D-02")
async def test_g6_openings_exclude_each_other_by_key_and_by_symbol_and_no_others():
    """Six symbols, three calls for each, two of them under one key: six openings, in the time of one."""
    bases = [f"C{n}" for n in range(6)]
    symbols = [f"{base}/USDT:USDT" for base in bases]
    world = World(prices=dict.fromkeys(symbols, 3_000), markets=[linear(base) for base in bases])
    process = world.process()
    answers = []

    async def attempt(symbol, key):
        try:
            answers.append(type(await process.opener.open(plan(key=f"{symbol} {key}", symbol=symbol))))
        except (TradingDenied, AlreadyInFlight) as error:
            answers.append(error.context.get("reason", type(error)))

    began = anyio.current_time()
    await attempt(symbols[0], "a")
    one_s = anyio.current_time() - began
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for symbol in symbols[1:]:
            for key in "aab":
                tasks.start_soon(attempt, symbol, key)
    assert anyio.current_time() - began <= 1.5 * one_s
    assert answers.count(Active) == len(symbols)
    assert len(answers) - answers.count(Active) == 2 * 5
    assert [len(entries(world, symbol)) for symbol in symbols] == [1] * len(symbols)


@pytest.mark.guarantee(10)
@pytest.mark.row("S1-16", "S3-41")
async def test_g10_every_position_has_its_stop_in_time_or_the_ratio_of_stops_placed_raises_the_alarm():
    """Three openings: two get their stops; the third is protected by nobody, and is neither closed nor excused."""
    bases = [f"C{n}" for n in range(3)]
    symbols = [f"{base}/USDT:USDT" for base in bases]
    world = World(prices=dict.fromkeys(symbols, 3_000), markets=[linear(base) for base in bases])
    process = world.process(policy=ProtectionPolicy(default_distance=None))
    health = HealthMonitor(clock=world.clock, listeners=[world.events.append])
    heard = 0

    def listen():
        nonlocal heard
        for event in world.events[heard:]:
            health.on_event(event)
        heard = len(world.events)
        health.tick()
        return next(measure for measure in health.measures() if measure.rule == "stops_placed")

    for symbol in symbols[:2]:
        assert isinstance(await process.opener.open(plan(key=symbol, symbol=symbol)), Active)
    await anyio.sleep(61)
    assert (listen().value, listen().level) == (1.0, None)
    await process.buy(symbol=symbols[2], key="bare")
    assert listen().samples == 2, "it still has time"
    await anyio.sleep(61)
    measure = listen()
    assert (measure.value, measure.samples, measure.level) == (pytest.approx(2 / 3), 3, Level.CRITICAL)
    assert [e.subject for e in world.events if e.type is E.ALERT_RAISED] == ["stops_placed"]


async def test_a_symbol_is_free_again_once_its_position_is_closed():
    world = World()
    process = world.process()
    await process.opener.open(plan())
    world.price(50_000)
    await process.manager.check()
    assert isinstance(await process.opener.open(plan(key="wave-2")), Active)


def test_a_plan_without_a_stop_or_with_nonsense_is_refused():
    for changes in ({"stop": StopRule()}, {"quantity": 0}, {"leverage": 0}, {"side": "up"}, {"key": ""}):
        with pytest.raises((InvalidInput, ValueError)):
            plan(**changes)


def test_every_state_can_be_left_towards_an_end():
    ends = {state for state, after in OPENING_TRANSITIONS.items() if not after}
    assert ends == {S.ACTIVE, S.ROLLED_BACK, S.DUST, S.FAILED}
    assert set(OPENING_TRANSITIONS) == set(S)
    assert all(after & ends or state in ends for state, after in OPENING_TRANSITIONS.items())


# --- Leverage -----------------------------------------------------------------------------------------------


@pytest.mark.row("S2-27", "S3-25")
@pytest.mark.parametrize("leverage", [5, 10])
@pytest.mark.row("S3-47")
async def test_leverage_is_confirmed_before_anything_is_sent(leverage):
    """10 is what it is already: the venue's "no change" is a confirmation."""
    world = World()
    process = world.process()
    assert isinstance(await process.opener.open(plan(leverage=leverage)), Active)
    assert E.LEVERAGE_CONFIRMED in world.kinds()
    [shown] = await process.adapter.fetch_positions()
    assert shown.leverage == leverage


@pytest.mark.row("S2-27")
async def test_an_answer_about_leverage_that_is_lost_is_asked_for_again():
    world = World()
    process = world.process()
    process.plan.strike_next(Operation.SET_LEVERAGE, Fault.DROP_REPLY)
    assert isinstance(await process.opener.open(plan(leverage=7, margin_mode="isolated")), Active)


@pytest.mark.row("S2-27")
async def test_leverage_that_cannot_be_confirmed_ends_the_opening_before_it_begins():
    world = World()
    process = world.process()
    process.plan.script([Strike(Operation.SET_LEVERAGE, n, Fault.DROP_REQUEST) for n in range(1, 4)])
    outcome = await process.opener.open(plan(leverage=7))
    assert isinstance(outcome, EntryFailed)
    assert "leverage" in outcome.reason
    assert world.venue.ledger.received() == []
    assert E.ENTRY_FAILED in world.kinds()
    assert isinstance(await process.opener.open(plan(key="wave-2")), Active), "the symbol is free again"


# --- Entries that do not fill, or in part -------------------------------------------------------------------


async def test_a_refused_entry_failed_and_nothing_is_left():
    world = World()
    process = world.process()
    process.plan.strike_next(Operation.CREATE, Fault.REJECT_FUNDS)
    outcome = await process.opener.open(plan())
    assert isinstance(outcome, EntryFailed)
    assert outcome.opening.state is S.FAILED
    assert world.held() == 0
    again = await process.opener.open(plan())
    assert isinstance(again, EntryFailed)
    assert len(world.venue.ledger.received()) == 1


async def test_a_plan_below_the_instruments_minimum_fails_before_anything_is_sent():
    world = World()
    outcome = await world.process().opener.open(plan(quantity="0.0001"))
    assert isinstance(outcome, EntryFailed)
    assert outcome.error is not None
    assert world.venue.ledger.received() == []


async def test_an_entry_that_rests_too_long_is_canceled_and_failed():
    world = World()
    process = world.process(opening=OpeningPolicy(entry_timeout_s=3.0))
    outcome = await process.opener.open(plan(limit_price=55_000))
    assert isinstance(outcome, EntryFailed)
    assert "canceled" in outcome.reason
    assert world.venue.open_orders(PERPETUAL) == []


@pytest.mark.guarantee(10)
@pytest.mark.row("S1-15", "S0-36")
async def test_g10_each_part_of_an_entry_is_covered_as_it_fills():
    """40 % at once, the rest in two parts: the stop follows, and no part waits for the whole."""
    world = World()
    process = world.process()
    world.venue.schedule_fills(PERPETUAL, [FillStep(0, D("0.4")), FillStep(2_000, D("0.3")), FillStep(4_000, D("0.3"))])
    outcome = await process.opener.open(plan(limit_price=60_000))
    assert isinstance(outcome, Active)
    assert outcome.protection.verified_quantity == D("0.1")
    assert world.exposed_ms() < 1_000
    assert world.stops() == [(D("0.1"), outcome.protection.stop_price)]
    assert world.kinds().count(E.STOP_PLACED) == 1


@pytest.mark.guarantee(10)
@pytest.mark.row("S0-36", "S3-30")
async def test_g10_a_part_that_filled_is_kept_with_a_stop_of_its_size():
    world = World()
    process = world.process(opening=OpeningPolicy(entry_timeout_s=3.0))
    world.venue.schedule_fills(PERPETUAL, [FillStep(0, D("0.3"))])
    outcome = await process.opener.open(plan(limit_price=60_000))
    assert isinstance(outcome, Active)
    assert outcome.position.quantity == D("0.03")
    assert world.stops() == [(D("0.03"), outcome.protection.stop_price)]


@pytest.mark.row("D-07", "S3-08")
async def test_a_part_below_the_band_is_closed_again():
    world = World()
    process = world.process(opening=OpeningPolicy(entry_timeout_s=3.0, keep_ratio=D("0.5")))
    world.venue.schedule_fills(PERPETUAL, [FillStep(0, D("0.3"))])

    async def fill_the_rest_at_once():
        await anyio.sleep(2)
        world.venue.schedule_fills(PERPETUAL, None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fill_the_rest_at_once)
        outcome = await process.opener.open(plan(limit_price=60_000))
    assert isinstance(outcome, RolledBack)
    assert world.held() == 0
    assert world.venue.ledger.flips(PERPETUAL) == []


@pytest.mark.guarantee(10)
async def test_g10_a_stop_that_fires_during_a_partial_entry_closes_what_is_held_and_the_rest_is_canceled():
    world = World()
    process = world.process(opening=OpeningPolicy(entry_timeout_s=4.0))
    world.venue.schedule_fills(PERPETUAL, [FillStep(0, D("0.6"))])

    async def crash():
        await anyio.sleep(1)
        world.venue.schedule_fills(PERPETUAL, None)
        for order in world.venue.open_orders(PERPETUAL):
            if order.request.trigger_price is None:
                world.venue.cancel(world.clock.now_ms(), venue_order_id=order.venue_order_id)
        world.price(50_000)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(crash)
        outcome = await process.opener.open(plan(limit_price=60_000))
    assert isinstance(outcome, RolledBack)
    assert world.held() == 0
    assert world.venue.open_orders(PERPETUAL) == []


# --- Entries in doubt ---------------------------------------------------------------------------------------


@pytest.mark.guarantee(3, 10)
@pytest.mark.row("S3-06", "S3-09")
@pytest.mark.parametrize("fault", [Fault.DROP_REPLY, Fault.DROP_REQUEST, Fault.HANG, Fault.SERVER_ERROR_ACCEPTED])
async def test_g10_an_entry_in_doubt_is_resolved_and_then_protected(fault):
    world = World()
    process = world.process()
    process.plan.strike_next(Operation.CREATE, fault)
    outcome = await process.opener.open(plan())
    assert isinstance(outcome, Active)
    assert world.held() == D("0.1")
    assert len(entries(world)) == 1


@pytest.mark.guarantee(4, 10)
@pytest.mark.row("S3-09")
async def test_g4_an_entry_that_stays_in_doubt_is_called_unknown_and_covered_when_it_is_found():
    world = World()
    process = world.process()
    process.plan.strike_next(Operation.CREATE, Fault.DROP_REPLY)
    # The first reading is of the price from which the stop's distance counts: without it nothing would be sent.
    process.plan.script([Strike(Operation.LOOK_UP, n, Fault.LOOKUP_ERROR) for n in range(2, 400)])
    outcome = await process.opener.open(plan())
    assert isinstance(outcome, EntryUnknown)
    assert outcome.opening.state is S.UNPROTECTED_UNKNOWN
    assert E.POSITION_UNPROTECTED in world.kinds()
    process.plan.stop()
    [later] = await process.opener.recover()
    assert isinstance(later, Active)
    assert world.stops() == [(D("0.1"), D("56400.0"))]


# --- Stops that cannot be placed ----------------------------------------------------------------------------


@pytest.mark.guarantee(10)
@pytest.mark.row("S3-07", "S3-08", "D-07", "S1-14")
async def test_g10_an_entry_whose_stop_cannot_be_placed_is_rolled_back_with_what_is_held():
    world = World()
    process = world.process()
    process.plan.script([Strike(Operation.CREATE, n, Fault.REJECT_FILTER) for n in (2, 3, 4)])
    outcome = await process.opener.open(plan())
    assert isinstance(outcome, RolledBack)
    assert outcome.opening.state is S.ROLLED_BACK
    assert world.held() == 0
    assert world.exposed_ms() < DEADLINE_MS
    assert E.ENTRY_ROLLED_BACK in world.kinds()
    closes = [e for e in world.venue.ledger.of(None, Happened.FILLED) if e.side is Side.SELL]
    assert sum(e.quantity for e in closes) == D("0.1")


@pytest.mark.guarantee(10)
async def test_g10_a_stop_that_would_trigger_at_once_ends_the_opening_flat(kind):
    world = World(attached=kind == "attached")
    process = world.process()
    operation = Operation.SET_STOP if world.attached else Operation.CREATE
    process.plan.script([Strike(operation, 1 if world.attached else 2, Fault.STOP_REJECTED)])
    outcome = await process.opener.open(plan())
    assert isinstance(outcome, RolledBack)
    assert world.held() == 0


async def test_on_spot_an_opening_is_protected_too():
    world = World()
    outcome = await world.process().opener.open(plan(symbol=SPOT))
    assert isinstance(outcome, Active)
    assert world.stops(SPOT) == [(D("0.0999"), D("56400.00"))]


# --- Crashes ------------------------------------------------------------------------------------------------


async def finish(world):
    """A new process takes over, with nothing in its way."""
    second = world.process()
    await second.gateway.recover()
    for _ in range(3):
        await second.opener.recover()
        await second.manager.recover()
        await anyio.sleep(2)
        await second.gateway.recover()
    await second.manager.check()
    return second


async def check_end(world, process, *, parts=False):
    """Protected, or flat, or never begun; by the venue's ledger."""
    held = world.held()
    assert len(entries(world)) <= 1
    assert D(0) <= held <= D("0.1")
    assert parts or held in {D(0), D("0.1")}
    records = process.manager.protections()
    if held:
        [record] = records
        assert record.is_safe
        assert record.verified_price == D("56400.0")
        if not world.attached:
            [(covered, price)] = world.stops()
            assert (covered >= held, price) == (True, D("56400.0"))
    else:
        assert records == ()
        assert world.stops() == []
    assert await process.opener.recover() == ()
    assert world.venue.ledger.flips(PERPETUAL) == []


@pytest.mark.guarantee(10, 13)
@pytest.mark.row("S3-06", "S1-17")
@pytest.mark.parametrize("after_ms", range(0, 240, 6))
async def test_g13_an_opening_that_is_cancelled_anywhere_ends_protected_flat_or_unbegun(after_ms, kind):
    world = World(attached=kind == "attached")
    first = world.process()
    with anyio.move_on_after(after_ms / 1000):
        await first.opener.open(plan(leverage=5))
    await check_end(world, await finish(world))
    assert world.exposed_ms() < DEADLINE_MS


@pytest.mark.guarantee(10, 13)
@pytest.mark.row("S1-17", "S3-06")
@pytest.mark.parametrize("kill_at", range(1, 22))
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
async def test_g13_an_opening_that_is_killed_at_any_write_ends_protected_flat_or_unbegun(kill_at, done):
    class Killed(BaseException):
        pass

    world = World()
    first = world.process()
    count = 0

    def hook(_batch):
        nonlocal count
        count += 1
        if count == kill_at + done:
            world.store.hook = refuse
            raise Killed

    def refuse(_batch):
        raise Killed

    world.store.hook = hook
    with contextlib.suppress(Killed, BaseExceptionGroup):
        await first.opener.open(plan(leverage=5))
    world.store.hook = None
    await check_end(world, await finish(world))


def check_alarms(world):
    """From the moment at which a position is known: covered or closed within the alert time, else there is an alarm."""
    opened = {event.subject: event.at_ms for event in world.events if event.type is E.POSITION_OPENED}
    for subject, known_ms in opened.items():
        mine = [event for event in world.events if event.subject == subject]
        safe = [event.at_ms for event in mine if event.type in {E.STOP_PLACED, E.POSITION_CLOSED}]
        alarms = [event.at_ms for event in mine if event.type is E.POSITION_UNPROTECTED]
        if min(safe) > known_ms + ALERT_MS + 50:
            assert min(alarms) <= known_ms + ALERT_MS + 50, "the alarm is not in time"
        closes = [e.at_ms for e in world.venue.ledger.accepted() if e.reduce_only and e.trigger_price is None]
        assert min(safe + closes) <= known_ms + 2 * DEADLINE_MS, "neither covered nor being closed"


@pytest.mark.guarantee(10, 11, 13)
@pytest.mark.row("S3-07", "X-03")
@pytest.mark.parametrize("seed", range(60))
async def test_g10_under_random_faults_a_position_is_covered_closed_or_alarmed_in_time(seed, kind):
    """Requests and answers are lost, late, refused and cut at random, for entries, stops, cancels and readings."""
    rates = {
        Fault.DROP_REQUEST: 0.08, Fault.DROP_REPLY: 0.08, Fault.DELAY_REQUEST: 0.05, Fault.RATE_LIMITED: 0.05,
        Fault.SERVER_ERROR_ACCEPTED: 0.05, Fault.SERVER_ERROR_NOT_ACCEPTED: 0.05, Fault.REJECT_FILTER: 0.05,
        Fault.STOP_REJECTED: 0.05, Fault.LOOKUP_ERROR: 0.1, Fault.LOOKUP_LAG: 0.1, Fault.PARTIAL_FILL: 0.1,
        Fault.POSITIONS_EMPTY: 0.1, Fault.POSITIONS_LAG: 0.1, Fault.FILL_DURING_CANCEL: 0.1,
    }  # fmt: skip
    world = World(attached=kind == "attached")
    process = world.process(plan=FaultPlan(seed, rates), opening=OpeningPolicy(entry_timeout_s=5.0))
    await process.opener.open(plan(limit_price=60_100 if seed % 2 else None))
    process.plan.stop()
    for _ in range(4):
        await process.gateway.recover()
        await process.opener.recover()
        await process.manager.check()
        await process.manager.settle()
        await anyio.sleep(3)
    await process.manager.check()
    held, records = world.held(), process.manager.protections()
    assert D(0) <= held <= D("0.1")
    assert len(entries(world)) <= 1
    assert world.venue.ledger.flips(PERPETUAL) == []
    check_alarms(world)
    if held:
        [record] = records
        assert record.is_safe
        assert record.verified_quantity >= held
        if not world.attached:
            assert [q for q, _ in world.stops()] == [held] or world.stops()[0][0] >= held
    else:
        assert records == ()
        assert world.venue.open_orders(PERPETUAL) == []


@pytest.mark.guarantee(11)
async def test_g11_an_entry_that_turns_up_after_its_opening_failed_is_protected_all_the_same():
    """Proof said absent, and was wrong: whatever the book holds gets a stop."""
    world = World()
    process = world.process()
    process.plan.strike_next(Operation.CREATE, Fault.REJECT_FUNDS)
    await process.opener.open(plan())
    await process.gateway.submit(Intent(key="ghost", symbol=PERPETUAL, side="buy", quantity="0.1"))
    [record] = await process.manager.check()
    assert record.is_safe


class Run:
    """A process that opens a position, and dies before some step of its event loop; then another one takes over."""

    def __init__(self, attached: bool, trouble: bool) -> None:
        self.world = World(attached=attached)
        self.trouble = trouble

    async def first(self):
        process = self.world.process(opening=OpeningPolicy(entry_timeout_s=3.0))
        if self.trouble:
            parts = [FillStep(0, D("0.3")), FillStep(900, D("0.3")), FillStep(2_500, D("0.2"))]
            self.world.venue.schedule_fills(PERPETUAL, parts)
            process.plan.script(
                [Strike(Operation.CREATE, 2, Fault.DROP_REPLY), Strike(Operation.SET_STOP, 1, Fault.HANG)]
            )
        limit = 60_000 if self.trouble else None
        await process.opener.open(plan(leverage=5, limit_price=limit))

    async def second(self):
        await check_end(self.world, await finish(self.world), parts=self.trouble)


@pytest.mark.guarantee(10, 13)
@pytest.mark.row("S1-17", "S3-06", "X-03")
@pytest.mark.parametrize("how", ["crash_at", "cancel_at"])
@pytest.mark.parametrize("trouble", [False, True], ids=["plain", "trouble"])
@pytest.mark.parametrize("attached", [False, True], ids=["order", "attached"])
def test_g13_an_opening_that_is_interrupted_at_any_step_ends_protected_flat_or_unbegun(attached, trouble, how):
    """As by kill -9 no clean-up runs, or all of it does; what is on the wire lands all the same."""
    steps = count_steps(Run(attached, trouble).first)
    assert steps > 50
    for step in range(1, steps):
        run = Run(attached, trouble)
        with contextlib.suppress(ProcessKilled, asyncio.CancelledError):
            run_simulated(run.first, **{how: step})
        run.world.clock.skip(500)
        run_simulated(run.second)
