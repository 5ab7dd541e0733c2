"""ExitManager: one exit per position, never more than is held, never lost, never hammered.

All in virtual time, on both event loops, against the simulated venue, whose ledger is the truth.
"""

from __future__ import annotations

import itertools
from decimal import Decimal
from pathlib import Path

import anyio
import attrs
import pytest

from execsafe.core.exits import RejectClass
from execsafe.errors import InvalidInput, TradingDenied
from execsafe.exits import (
    Deduplicated,
    Dust,
    Exited,
    ExitPolicy,
    ExitReason,
    ExitState,
    Flat,
    Held,
    Hold,
    Mismatch,
    PartiallyExited,
    Stuck,
    UnknownExit,
)
from execsafe.exits._journal import COLLECTION
from execsafe.gateway import OrderGateway
from execsafe.locks import DedupLock
from execsafe.model.event import EventType
from execsafe.model.order import Side
from execsafe.model.position import Execution
from execsafe.protection import ProtectionManager
from execsafe.testing._orders import NewOrder
from execsafe.testing.faults import Fault, Strike
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import FillStep
from exit_rig import CALM, LONG, PERP, SHORT, SOON, SPOT, Desk

pytestmark = pytest.mark.anyio
D = Decimal
HELD = D("36.04")  # of 36.06 bought, 5 bps are gone as a fee; the rest is below one step


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


async def holding(symbol=SPOT, quantity="36.06", side="buy", **options) -> Desk:
    desk = Desk(**options)
    await desk.open(symbol, quantity, side)
    return desk


async def foreign(desk: Desk, symbol, quantity, price=None, side="sell") -> None:
    """Somebody else trades on the same account, behind the book's back."""
    kind = "market" if price is None else "limit"
    order = NewOrder(symbol=symbol, side=side, quantity=D(quantity), type=kind, limit_price=price and D(price))
    desk.venue.submit(order, desk.clock.now_ms())


# --- The plain ways -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "key"), [("buy", LONG), ("sell", SHORT)])
@pytest.mark.row("S0-35", "S1-06")
async def test_a_position_is_closed_within_the_slippage_and_told(side, key):
    desk = await holding(PERP, "0.5", side)
    result = await desk.exits.exit(key, ExitReason.TAKE_PROFIT)
    assert isinstance(result, Exited)
    assert (result.closed_quantity, result.average_price) == (D("0.5"), D(60_000))
    assert desk.at_venue() == 0
    [order] = desk.exit_orders(PERP)
    assert order.price == (D(59_700) if side == "buy" else D(60_300))
    assert order.reduce_only
    assert desk.kinds() == [EventType.EXIT_REGISTERED, EventType.EXIT_STEP, EventType.EXIT_CLEARED]
    cleared = desk.events[-1].details.thaw()
    assert cleared["duration_ms"] > 0
    assert isinstance(await desk.exits.exit(key, ExitReason.TAKE_PROFIT), Flat)


@pytest.mark.row("S0-10", "S0-33")
async def test_on_spot_what_the_fee_left_is_sold_in_one_order_and_the_crumb_is_dust():
    desk = await holding()
    result = await desk.exits.exit(SOON, ExitReason.TAKE_PROFIT)
    assert isinstance(result, Dust)
    assert (desk.sold(), result.quantity) == (HELD, D("0.00197"))
    assert len(desk.exit_orders()) == 1
    before = len(desk.events)
    again = await desk.exits.exit(SOON, ExitReason.PANIC)
    assert isinstance(again, Dust)
    assert len(desk.events) == before
    assert len(desk.exit_orders()) == 1


@pytest.mark.row("S0-36")
async def test_a_part_is_closed_exactly_and_the_rest_later():
    desk = await holding(PERP, "1")
    first = await desk.exits.exit(LONG, ExitReason.TAKE_PROFIT, quantity="0.4")
    assert (type(first), desk.at_venue()) == (Exited, D("0.6"))
    rest = await desk.exits.exit(LONG, ExitReason.STOP_LOSS)
    assert (type(rest), rest.closed_quantity, desk.at_venue()) == (Exited, D("0.6"), 0)
    with pytest.raises(InvalidInput):
        await desk.exits.exit(LONG, ExitReason.STOP_LOSS, quantity=0)


async def test_everything_can_be_closed_at_once():
    desk = await holding(PERP, "1")
    await desk.open(SPOT, "36.06", key="other")
    results = await desk.exits.exit_all()
    assert {key: type(result) for key, result in results.items()} == {LONG: Exited, SOON: Dust}
    assert (desk.at_venue(), desk.sold()) == (0, HELD)


async def test_what_is_not_held_is_not_sold():
    desk = Desk()
    await desk.book.open()
    assert isinstance(await desk.exits.exit(LONG, ExitReason.PANIC), Flat)
    await desk.open(PERP, "1")
    assert isinstance(await desk.exits.exit(SHORT, ExitReason.PANIC), Flat)
    assert desk.exit_orders(PERP) == []


# --- One at a time ------------------------------------------------------------------------------------------


@pytest.mark.guarantee(6, 10)
@pytest.mark.row("S0-04", "S0-05", "S1-01", "S1-02", "S1-06", "S1-08", "D-04")
async def test_g10_of_five_identical_calls_one_runs_and_four_are_told_at_once():
    desk = await holding()
    results = []

    async def call():
        started_ms = desk.clock.now_ms()
        results.append((await desk.exits.exit(SOON, ExitReason.TAKE_PROFIT), desk.clock.now_ms() - started_ms))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(call)
    told = [(r, took_ms) for r, took_ms in results if isinstance(r, Deduplicated)]
    assert len(told) == 4
    assert all(r.reason == "exit_already_in_progress" for r, _ in told)
    assert all(r.existing_reason is ExitReason.TAKE_PROFIT for r, _ in told)
    assert max(took_ms for _, took_ms in told) < 25
    assert len(desk.exit_orders()) == 1
    assert desk.sold() == HELD
    stats = desk.exits.stats()
    assert (stats.deduplicated, stats.duplicates_executed, stats.begun) == (4, 0, 1)
    told_of = [e.details.thaw() for e in desk.events if e.type is EventType.EXIT_DEDUPLICATED]
    assert len(told_of) == 4
    assert {"existing_reason", "new_reason", "age_ms"} <= told_of[0].keys()


@pytest.mark.guarantee(10)
@pytest.mark.row("S0-02", "S0-03", "S1-05")
@pytest.mark.parametrize("shares", ["the store", "the lock"])
async def test_g10_two_managers_see_the_same_claim(shares):
    desk = await holding()
    locks = None if shares == "the store" else DedupLock(clock=desk.clock)
    one = desk.start(locks=locks)
    await desk.book.open()
    two = desk.start(locks=locks)
    await desk.book.open()
    results = []

    async def call(manager):
        results.append(await manager.exit(SOON, ExitReason.TAKE_PROFIT))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, one)
        tasks.start_soon(call, two)
    assert sorted(type(r).__name__ for r in results) == ["Deduplicated", "Dust"]
    assert len(desk.exit_orders()) == 1


@pytest.mark.guarantee(8, 10)
async def test_g10_holds_without_the_lock():
    """Each order is the next leg under one key, and the journal lets one caller have it."""
    desk = await holding(PERP, "1")
    desk.venue.schedule_fills(PERP, (FillStep(0, "0.3"),))
    managers = []
    for _ in range(3):
        managers.append(desk.start(locks=DedupLock(clock=desk.clock)))
        await desk.book.open()

    async def call(manager):
        await manager.exit(LONG, ExitReason.STOP_LOSS)

    async with anyio.create_task_group() as tasks:
        for manager in managers:
            tasks.start_soon(call, manager)
    legs = [e for e in desk.venue.ledger.accepted() if e.reduce_only]
    assert len({e.client_order_id for e in legs}) == len(legs)
    assert desk.sold(PERP) <= 1
    assert desk.at_venue() >= 0
    worst = desk.venue.ledger.worst_case([e.client_order_id for e in legs])
    assert worst <= 1


async def test_unrelated_positions_do_not_wait_for_each_other():
    desk = await holding(PERP, "1")
    await desk.open(SPOT, "36.06", key="other")
    desk.no_buyers()
    ends = {}

    async def call(key):
        await desk.exits.exit(key, ExitReason.STOP_LOSS)
        ends[key] = desk.clock.now_ms()

    started_ms = desk.clock.now_ms()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, SOON)
        tasks.start_soon(call, LONG)
    assert ends[LONG] - started_ms < 300 < ends[SOON] - started_ms


# --- Priorities ---------------------------------------------------------------------------------------------


@pytest.mark.row("S1-07", "D-18")
async def test_a_stop_loss_takes_over_a_slow_take_profit_and_goes_further_down():
    """The take-profit may give away 50 bps and finds nobody there; the stop-loss may go to where the buyers are."""
    desk = await holding()
    desk.venue.set_book(SPOT, [("0.6944", "0.01"), ("0.6820", "100")], [("0.7", "1")], desk.clock.now_ms())
    results = {}

    async def call(reason, after_s):
        await anyio.sleep(after_s)
        results[reason] = await desk.exits.exit(SOON, reason)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, ExitReason.TAKE_PROFIT, 0)
        tasks.start_soon(call, ExitReason.STOP_LOSS, 0.3)
        tasks.start_soon(call, ExitReason.TRAILING, 0.6)
    assert isinstance(results[ExitReason.STOP_LOSS], (Exited, Dust))
    assert isinstance(results[ExitReason.TRAILING], Deduplicated)
    assert results[ExitReason.TRAILING].existing_reason is ExitReason.STOP_LOSS
    assert desk.sold() == HELD
    assert desk.count(EventType.EXIT_UPGRADED) == 1
    upgraded = next(e for e in desk.events if e.type is EventType.EXIT_UPGRADED)
    assert upgraded.details.thaw()["existing_reason"] == "take_profit"
    assert desk.exits.stats().duplicates_executed == 0


@pytest.mark.row("S1-07", "D-18")
async def test_an_upgrade_outlives_the_caller_that_was_running():
    """The take-profit's task is cancelled; the stop-loss waits for its claim and finishes what it leaves."""
    desk = await holding()
    desk.no_buyers()
    results = []

    async def stop_loss():
        await anyio.sleep(0.5)
        results.append(await desk.exits.exit(SOON, ExitReason.STOP_LOSS))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_loss)
        with anyio.move_on_after(0.9):
            await desk.exits.exit(SOON, ExitReason.TAKE_PROFIT)
        desk.buyers()
    assert isinstance(results[0], Dust)
    assert desk.sold() == HELD


@pytest.mark.row("S1-07", "S0-16")
async def test_a_rest_holds_back_the_same_reason_and_not_a_more_urgent_one():
    desk = await holding()
    desk.no_buyers()
    first = await desk.exits.exit(SOON, ExitReason.TAKE_PROFIT)
    assert (type(first), first.hold) == (Held, Hold.APPROVAL_DENIED)
    sent = len(desk.exit_orders())
    again = await desk.exits.exit(SOON, ExitReason.TAKE_PROFIT)
    assert (type(again), again.record.hold) == (Deduplicated, Hold.APPROVAL_DENIED)
    assert len(desk.exit_orders()) == sent
    desk.buyers()
    urgent = await desk.exits.exit(SOON, ExitReason.PANIC)
    assert isinstance(urgent, Dust)
    assert len(desk.exit_orders()) == sent + 1


# --- The ladder ---------------------------------------------------------------------------------------------


@pytest.mark.row("S0-11", "S0-17", "S0-06")
async def test_the_ladder_goes_down_with_growing_pauses_and_then_rests():
    desk = await holding()
    desk.no_buyers()
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert (type(result), result.hold) == (Held, Hold.APPROVAL_DENIED)
    orders = desk.exit_orders()
    assert [o.price for o in orders] == [D("0.6910"), D("0.6875"), D("0.6806"), D("0.6597")]
    assert {o.quantity for o in orders} == {HELD}
    gaps = [b.at_ms - a.at_ms for a, b in itertools.pairwise(orders)]
    assert [round(gap, -2) for gap in gaps] == [500, 900, 1_700]  # 400, 800, 1,600 and the reads between
    stats = desk.exits.stats()
    assert (stats.placed, stats.failed, stats.ioc_fallbacks, stats.market_fallbacks) == (4, 4, 3, 0)
    assert (stats.fill_rate, stats.failure_rate) == (0.0, 1.0)


@pytest.mark.guarantee(10)
@pytest.mark.row("S0-36")
async def test_g10_after_a_partial_fill_only_the_remainder_is_sent():
    """The field's bug: an order that ended canceled with 14 filled was sent again in full."""
    desk = await holding()
    desk.venue.set_book(
        SPOT, [("0.6944", "14"), ("0.6930", "10"), ("0.69", "100")], [("0.7", "1")], desk.clock.now_ms()
    )
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert isinstance(result, Dust)
    assert [o.quantity for o in desk.exit_orders()] == [HELD, D("12.04"), D("12.04")]
    assert desk.sold() == HELD
    assert desk.exits.stats().partial == 1


@pytest.mark.row("S0-35")
async def test_a_thin_book_is_not_followed_all_the_way_down():
    """Each sale eats the best level; the slippage counts from where the pass began."""
    desk = await holding()
    bids = [("0.6944", "8"), ("0.6900", "8"), ("0.6850", "8"), ("0.6800", "100")]
    desk.venue.set_book(SPOT, bids, [("0.7", "1")], desk.clock.now_ms())
    result = await desk.exits.exit(SOON, ExitReason.TAKE_PROFIT)
    assert (type(result), result.closed_quantity) == (PartiallyExited, D(8))
    assert all(fill.price >= D("0.6910") for fill in desk.venue.ledger.fills() if fill.reduce_only)


@pytest.mark.row("S0-19", "S0-35")
async def test_without_a_bid_nothing_is_sent_and_the_exit_goes_on_when_there_is_one():
    desk = await holding()
    desk.venue.set_book(SPOT, [], [("0.7", "1")], desk.clock.now_ms())
    result = await desk.exits.exit(SOON, ExitReason.PANIC)
    assert (type(result), result.hold) == (Held, Hold.NO_PRICE)
    assert desk.exit_orders() == []
    assert await desk.exits.tick() == ()
    desk.venue.clear_book(SPOT, desk.clock.now_ms())
    await anyio.sleep((result.record.recheck_at_ms - desk.clock.now_ms()) / 1000)
    [later] = await desk.exits.tick()
    assert isinstance(later, Dust)


@pytest.mark.row("S0-34")
async def test_one_deadline_covers_reading_and_sending():
    """Readings that take longer than the whole deadline: nothing is sent at prices of long ago."""
    desk = await holding(policy=attrs.evolve(CALM, exit_ioc_ttl_ms=50))
    desk.adapter.latency_ms = (200, 200)
    result = await desk.exits.exit(SOON, ExitReason.PANIC)
    assert (type(result), result.hold) == (Held, Hold.UNAVAILABLE)
    assert desk.exit_orders() == []
    assert (await desk.exits.exit(SOON, ExitReason.PANIC)).record.state is ExitState.HELD


async def test_a_venue_whose_readings_fail_does_not_keep_a_contract_from_being_closed():
    desk = await holding(PERP, "1")
    desk.plan.script([Strike("look_up", n, Fault.LOOKUP_ERROR, reading="positions") for n in range(1, 9)])
    assert isinstance(await desk.exits.exit(LONG, ExitReason.STOP_LOSS), Exited)


async def test_a_position_larger_than_one_order_goes_in_slices():
    desk = Desk()
    market = desk.venue.markets[PERP]
    await desk.open(PERP, "1")
    capped = attrs.evolve(market, instrument=attrs.evolve(market.instrument, max_quantity="0.15"))
    desk.venue.markets[PERP] = capped
    assert isinstance(await desk.exits.exit(LONG, ExitReason.TAKE_PROFIT), Exited)
    assert [o.quantity for o in desk.exit_orders(PERP)] == [D("0.15")] * 6 + [D("0.1")]


# --- Market orders ------------------------------------------------------------------------------------------


class Gate:
    def __init__(self, answer) -> None:
        self.answer = answer
        self.requests = []

    async def approve(self, request):
        self.requests.append(request)
        if self.answer == "hangs":
            await anyio.sleep_forever()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.row("S0-18", "S0-06")
async def test_an_approved_market_order_closes_what_the_ladder_could_not():
    desk = await holding()
    gate = Gate(True)
    desk.start(approval=gate)
    await desk.book.open()
    desk.venue.set_book(SPOT, [("0.6944", "1"), ("0.5", "100")], [("0.7", "1")], desk.clock.now_ms())
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert isinstance(result, Dust)
    assert desk.sold() == HELD
    [request] = gate.requests
    assert (request.quantity, request.reason) == (D("35.04"), ExitReason.STOP_LOSS)
    assert desk.exits.stats().market_fallbacks == 1
    assert desk.exit_orders()[-1].price is None


@pytest.mark.row("S0-18")
@pytest.mark.parametrize("answer", [False, "hangs", ValueError("?"), "yes", 1, None], ids=str)
async def test_whatever_is_not_a_yes_in_time_is_a_no(answer):
    desk = await holding()
    desk.start(approval=Gate(answer))
    await desk.book.open()
    desk.no_buyers()
    result = await desk.exits.exit(SOON, ExitReason.PANIC)
    assert (type(result), result.hold) == (Held, Hold.APPROVAL_DENIED)
    assert all(order.price is not None for order in desk.exit_orders())
    assert desk.count(EventType.APPROVAL_DENIED) == 1


@pytest.mark.row("S0-18", "S0-01")
async def test_never_market_sells_wins_over_everything():
    desk = await holding(policy=attrs.evolve(CALM, never_market_sells=True))
    gate = Gate(True)
    desk.start(approval=gate)
    await desk.book.open()
    desk.no_buyers()
    result = await desk.exits.exit(SOON, ExitReason.PANIC)
    assert (type(result), result.hold) == (Held, Hold.NO_LIQUIDITY)
    assert gate.requests == []
    assert all(order.price is not None for order in desk.exit_orders())


# --- Own protections ----------------------------------------------------------------------------------------


@pytest.mark.row("S1-13", "D-05")
async def test_a_take_profit_that_locks_the_balance_goes_first():
    desk = await holding()
    await desk.lock(SPOT, HELD, "0.8")
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert isinstance(result, Dust)
    assert len(desk.exit_orders()) == 1
    assert desk.venue.ledger.rejected() == []
    assert desk.sold() == HELD


@pytest.mark.guarantee(10)
@pytest.mark.row("S1-13")
async def test_g10_what_a_take_profit_sold_while_it_was_canceled_is_not_sold_again():
    desk = await holding()
    await desk.lock(SPOT, HELD, "0.8")
    desk.plan.strike_next("cancel", Fault.FILL_DURING_CANCEL, 600)
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert isinstance(result, Dust)
    assert desk.sold() == HELD
    assert sum(o.quantity for o in desk.exit_orders()) < D("14.5")


@pytest.mark.row("S1-13")
async def test_as_long_as_own_stops_may_be_there_nothing_is_sold_on_spot():
    desk = await holding()
    await desk.lock(SPOT, HELD, "0.8")
    desk.protections.is_stuck = True
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert (type(result), result.hold) == (Held, Hold.PROTECTED)
    assert desk.exit_orders() == []
    desk.protections.is_stuck = False
    await anyio.sleep(11)
    [later] = await desk.exits.tick()
    assert isinstance(later, Dust)


@pytest.mark.parametrize(("keeps", "before_the_order"), [(True, False), (False, True)])
async def test_a_contract_keeps_its_stop_until_it_is_closed(keeps, before_the_order):
    desk = await holding(PERP, "1", policy=attrs.evolve(CALM, keeps_stop_on_contracts=keeps))
    asked = []
    release = desk.protections.release

    async def spy(key):
        asked.append(len(desk.exit_orders(PERP)) == 0)
        return await release(key)

    desk.protections.release = spy
    assert isinstance(await desk.exits.exit(LONG, ExitReason.STOP_LOSS), Exited)
    assert asked == [before_the_order]


@pytest.mark.guarantee(10)
async def test_g10_what_is_left_gets_its_stop_back_when_the_exit_rests_or_closed_only_a_part():
    desk = await holding(quantity="360")
    desk.no_buyers()
    assert isinstance(await desk.exits.exit(SOON, ExitReason.STOP_LOSS), Held)
    assert desk.protections.resumed == 1
    desk.buyers()
    assert isinstance(await desk.exits.exit(SOON, ExitReason.PANIC, quantity=100), (Exited, Dust))
    await desk.open(PERP, "1", key="other")
    assert isinstance(await desk.exits.exit(LONG, ExitReason.PANIC), Exited)
    resumed = desk.protections.resumed
    assert isinstance(await desk.exits.exit(LONG, ExitReason.PANIC), Flat)
    assert desk.protections.resumed == resumed


async def test_a_spot_position_of_which_a_part_was_closed_is_protected_again():
    desk = await holding(quantity="360")
    assert isinstance(await desk.exits.exit(SOON, ExitReason.TAKE_PROFIT, quantity=100), Exited)
    assert desk.protections.resumed == 1


@pytest.mark.guarantee(10)
async def test_g10_no_stop_is_put_beside_an_order_in_doubt():
    desk = await holding()
    desk.plan.strike_next("create", Fault.DROP_REPLY)

    async def fails(_lookup, _order):
        raise ConnectionError("down")

    desk.adapter.look_up = fails
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert result.record.state is ExitState.UNKNOWN
    assert desk.protections.resumed == 0


async def test_protections_that_raise_hold_the_exit_and_hurt_nothing():
    desk = await holding()

    async def broken(_key):
        raise RuntimeError("?")

    desk.protections.release = broken
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert (type(result), result.hold) == (Held, Hold.PROTECTED)
    assert desk.exits.stats().errors == 1


# --- Less is there than the book says -------------------------------------------------------------------------


class Handler:
    """Reconciles by what the venue's own trade list says, if it is told to."""

    def __init__(self, desk, *, fixes=False) -> None:
        self.desk = desk
        self.fixes = fixes
        self.mismatches = []

    async def reconcile(self, mismatch):
        self.mismatches.append(mismatch)
        if not self.fixes:
            return
        ours = {e.trade_id for e in self.desk.venue.ledger.fills() if e.client_order_id}
        for e in self.desk.venue.ledger.fills():
            if e.trade_id not in ours:
                await self.desk.book.apply_execution(
                    Execution(
                        trade_id=e.trade_id, symbol=e.symbol, side=e.side, quantity=e.quantity, price=e.price,
                        venue_order_id=e.venue_order_id, at_ms=e.at_ms,
                    )
                )  # fmt: skip


@pytest.mark.row("S0-09", "S0-12", "D-05")
@pytest.mark.parametrize(("symbol", "quantity", "key"), [(SPOT, "36.04", SOON), (PERP, "1", LONG)])
async def test_a_phantom_position_is_reconciled_and_never_sold(symbol, quantity, key):
    desk = await holding(symbol, "36.06" if symbol == SPOT else "1")
    handler = Handler(desk, fixes=True)
    desk.start(handler=handler)
    await desk.book.open()
    await foreign(desk, symbol, quantity)
    await anyio.sleep(2)
    result = await desk.exits.exit(key, ExitReason.STOP_LOSS)
    assert isinstance(result, Mismatch)
    assert desk.exit_orders(symbol) == []
    [mismatch] = handler.mismatches
    assert (mismatch.key, mismatch.venue_quantity) == (key, D("0.00197") if symbol == SPOT else 0)
    assert mismatch.is_phantom or symbol == SPOT
    assert desk.count(EventType.EXIT_MISMATCH) == 1
    await anyio.sleep(11)
    [later] = await desk.exits.tick()
    assert isinstance(later, (Exited, Dust))
    assert desk.exit_orders(symbol) == []


@pytest.mark.guarantee(10, 18)
@pytest.mark.row("D-15")
async def test_g18_one_reading_that_wrongly_says_empty_is_not_believed():
    desk = await holding(PERP, "1")
    desk.plan.script([Strike("look_up", 1, Fault.POSITIONS_EMPTY)])
    assert isinstance(await desk.exits.exit(LONG, ExitReason.STOP_LOSS), Exited)
    assert desk.at_venue() == 0


@pytest.mark.row("S0-08", "S0-12", "S0-21", "D-05")
async def test_an_oversold_reject_is_reconciled_and_the_order_is_never_repeated():
    """The field's bug: the same order four times, then the same exit again, more than a hundred times."""
    desk = await holding()
    handler = Handler(desk)
    desk.start(handler=handler)
    await desk.book.open()
    desk.plan.strike_next("create", Fault.REJECT_FUNDS)
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert isinstance(result, Mismatch)
    assert len(desk.exit_orders()) == 1
    [mismatch] = handler.mismatches
    assert (mismatch.error.kind, mismatch.venue_quantity) == ("InsufficientFunds", None)
    assert result.record.state is ExitState.MISMATCH
    stats = desk.exits.stats()
    assert stats.oversold == 1
    [count] = stats.rejects
    assert (count.venue, count.symbol, count.kind, count.count) == ("sim", SPOT, RejectClass.POSITION, 1)
    await anyio.sleep(11)
    [later] = await desk.exits.tick()
    assert isinstance(later, Dust)
    assert desk.sold() == HELD


@pytest.mark.guarantee(10)
@pytest.mark.row("S0-08", "S0-10", "D-05")
async def test_g10_after_an_oversold_reject_what_is_really_free_is_sold():
    """Half of it went another way a moment ago, and the readings do not count yet: one reject, then half."""
    desk = await holding(quantity="60")
    handler = Handler(desk)
    desk.start(handler=handler)
    await desk.book.open()
    await desk.gateway.submit(entry("10"))  # the position just changed: a reading of now may show it as it was
    await foreign(desk, SPOT, "40")
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert isinstance(result, Mismatch)
    orders = desk.exit_orders()
    assert [o.quantity for o in orders] == [D("69.96"), D("29.96")]
    assert desk.sold() == D("69.96")
    assert len(desk.venue.ledger.rejected()) == 1
    assert handler.mismatches[0].error.kind == "InsufficientFunds"


def entry(quantity, key="entry-2"):
    from execsafe.model.intent import Intent

    return Intent(key=key, symbol=SPOT, side="buy", quantity=quantity)


@pytest.mark.row("D-05", "S1-13")
async def test_what_a_foreign_order_locks_stays_and_the_free_part_is_sold():
    desk = await holding(quantity="60")
    await foreign(desk, SPOT, "30", "0.9")
    await anyio.sleep(1)
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert (type(result), result.hold) == (PartiallyExited, Hold.LOCKED)
    assert desk.sold() == D("29.97")
    assert desk.venue.ledger.rejected() == []


async def test_a_handler_that_raises_or_hangs_stops_nothing():
    desk = await holding()

    class Broken:
        async def reconcile(self, _mismatch):
            raise RuntimeError("?")

    desk.start(handler=Broken())
    await desk.book.open()
    desk.plan.strike_next("create", Fault.REJECT_FUNDS)
    assert isinstance(await desk.exits.exit(SOON, ExitReason.STOP_LOSS), Mismatch)
    assert desk.exits.stats().errors == 1


# --- Refusals, rests, alarms ----------------------------------------------------------------------------------


@pytest.mark.row("S0-12", "S0-16", "S0-20", "S0-22", "S0-23", "S1-44")
async def test_a_venue_that_refuses_everything_is_asked_rarely_and_alarms_come_once_each():
    """Fifteen minutes, an exit asked for every second: the field's bot sent more than a hundred orders."""
    desk = await holding()
    desk.plan.rates = {Fault.REJECT_FILTER: 1.0}
    results = []
    for _ in range(15 * 60):
        results.append(await desk.exits.exit(SOON, ExitReason.STOP_LOSS))
        await anyio.sleep(1)
    assert len(desk.exit_orders()) <= 8
    assert desk.count(EventType.EXIT_HELD) == 1
    assert desk.count(EventType.BREAKER_TRIPPED) == 1
    assert desk.count(EventType.EXIT_REGISTERED) == 1
    alarms = [e for e in desk.events if e.type is EventType.STUCK_EXIT]
    assert 1 <= len(alarms) <= 3
    facts = alarms[-1].details.thaw()
    assert facts["last_code"] == "InvalidOrder"
    assert facts["attempts"] >= 3
    assert facts["since_ms"] < alarms[-1].at_ms
    driven = [r for r in results if not isinstance(r, Deduplicated)]
    assert isinstance(driven[0], Held)
    assert isinstance(driven[-1], Stuck)
    [open_exit] = desk.exits.stats().open_exits
    assert open_exit.unable_ms > 800_000
    assert open_exit.failed_attempts == open_exit.attempts == len(desk.exit_orders())
    desk.plan.rates = {}
    await anyio.sleep(400)
    [last] = await desk.exits.tick()
    assert isinstance(last, Dust)
    assert desk.exits.stats().open_exits == ()


@pytest.mark.row("S0-20", "S1-44")
async def test_alarms_come_although_nobody_asks_again():
    desk = await holding(policy=attrs.evolve(CALM, cool_down_ms=3_600_000, cool_down_max_ms=3_600_000))
    desk.venue.set_book(SPOT, [], [("0.7", "1")], desk.clock.now_ms())
    await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.exits.run)
        await anyio.sleep(1_000)
        tasks.cancel_scope.cancel()
    assert desk.count(EventType.STUCK_EXIT) == 3
    assert desk.exits.stats().stuck == 3


@pytest.mark.row("S0-12")
@pytest.mark.parametrize(("fault", "sent"), [(Fault.RATE_LIMITED, 2), (Fault.REJECT_FILTER, 1)])
async def test_what_was_turned_away_is_tried_again_at_the_same_price_and_what_is_wrong_is_not(fault, sent):
    desk = await holding()
    desk.plan.strike_next("create", fault)
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    orders = desk.exit_orders()
    assert len(orders) == sent
    assert {o.price for o in orders} == {D("0.6910")}
    assert isinstance(result, Dust if sent == 2 else Held)


async def test_what_our_own_checks_refuse_rests_and_is_not_repeated():
    desk = await holding()
    market = desk.venue.markets[SPOT]
    low = attrs.evolve(market, instrument=attrs.evolve(market.instrument, min_price="1"))
    desk.venue.markets[SPOT] = low
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert (type(result), result.hold) == (Held, Hold.REJECTED)
    assert result.record.last_error.kind == "InvalidOrder"
    assert desk.exit_orders() == []


async def test_no_pre_trade_check_and_no_trading_state_keeps_an_exit_from_going_out():
    """On spot, too, where no order says that it only reduces."""
    desk = await holding()

    class Halted:
        async def check(self, intent, instrument):
            raise TradingDenied("halted", reason="halted")

    gateway = OrderGateway(desk.adapter, desk.registry, checks=[Halted()])
    desk.exits._desk = attrs.evolve(desk.exits._desk, gateway=gateway)
    assert isinstance(await desk.exits.exit(SOON, ExitReason.STOP_LOSS), Dust)
    with pytest.raises(TradingDenied):
        await gateway.submit(entry("10"))


async def test_a_listener_that_raises_disturbs_nothing():
    desk = await holding()

    def broken(_event):
        raise RuntimeError("?")

    desk.exits._journal._listeners = (broken,)
    assert isinstance(await desk.exits.exit(SOON, ExitReason.STOP_LOSS), Dust)


# --- Doubt --------------------------------------------------------------------------------------------------

LOST = [
    Fault.DROP_REQUEST, Fault.DROP_REPLY, Fault.HANG, Fault.DELAY_REQUEST, Fault.LATE_ARRIVAL_AFTER_LOOK,
    Fault.TRUNCATED_BODY, Fault.EMPTY_OK, Fault.SERVER_ERROR_ACCEPTED, Fault.SERVER_ERROR_NOT_ACCEPTED,
    Fault.REORDER,
]  # fmt: skip


@pytest.mark.guarantee(1, 10)
@pytest.mark.row("S1-04", "S0-34")
@pytest.mark.parametrize("fault", LOST)
@pytest.mark.parametrize(("symbol", "key"), [(SPOT, SOON), (PERP, LONG)])
async def test_g10_an_order_whose_answer_is_lost_is_looked_for_before_anything_else_is_sent(fault, symbol, key):
    desk = await holding(symbol, "36.06" if symbol == SPOT else "1")
    desk.plan.strike_next("create", fault)
    result = await desk.exits.exit(key, ExitReason.STOP_LOSS)
    assert isinstance(result, (Exited, Dust))
    assert desk.sold(symbol) == (HELD if symbol == SPOT else 1)
    await anyio.sleep(60)
    assert desk.sold(symbol) == (HELD if symbol == SPOT else 1)


@pytest.mark.guarantee(1, 4, 10)
@pytest.mark.row("S1-04")
async def test_g10_an_exit_in_doubt_is_quarantined_until_the_doubt_is_settled():
    """Look-ups fail for as long as patience lasts; the seed freed the symbol here, and sold twice."""
    desk = await holding()
    desk.plan.strike_next("create", Fault.DROP_REPLY)
    look_up = desk.adapter.look_up

    async def fails(_lookup, _order):
        raise ConnectionError("down")

    desk.adapter.look_up = fails
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert isinstance(result, (UnknownExit, Stuck))
    assert result.record.state is ExitState.UNKNOWN
    assert desk.exits.is_exiting(SOON)
    assert isinstance(await desk.exits.exit(SOON, ExitReason.STOP_LOSS), Deduplicated)
    await desk.exits.exit(SOON, ExitReason.PANIC)
    assert len(desk.exit_orders()) == 1
    desk.adapter.look_up = look_up
    [later] = await desk.exits.recover()
    assert isinstance(later, Dust)
    assert len(desk.exit_orders()) == 1
    assert desk.sold() == HELD
    assert not desk.exits.is_exiting(SOON)


async def test_an_order_that_rests_although_it_should_not_is_canceled_and_counted():
    """A venue that takes "immediate or cancel" for an ordinary limit."""
    desk = await holding()
    desk.venue.schedule_fills(SPOT, (FillStep(0, "0.5"), FillStep(900_000, "0.5")))
    make = desk.adapter._new_order
    desk.adapter._new_order = lambda request: attrs.evolve(make(request), time_in_force="GTC")
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert isinstance(result, (Dust, PartiallyExited))
    assert desk.venue.open_orders(SPOT) == []
    assert desk.sold() <= HELD
    assert desk.sold() == result.record.closed_quantity


# --- The store ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(12)
async def test_g12_without_a_store_a_contract_is_closed_once_and_known_afterwards():
    desk = await holding(PERP, "1")
    desk.store.is_down = True
    results = [await desk.exits.exit(LONG, ExitReason.STOP_LOSS) for _ in range(3)]
    assert isinstance(results[0], (Exited, UnknownExit))
    assert all(isinstance(r, Held) for r in results[1:])
    assert desk.at_venue() == 0
    assert len(desk.exit_orders(PERP)) == 1
    desk.store.is_down = False
    later = await desk.exits.exit(LONG, ExitReason.STOP_LOSS)
    assert isinstance(later, Flat)
    assert desk.book.position("default", PERP) is None
    assert len(desk.exit_orders(PERP)) == 1


@pytest.mark.guarantee(12)
async def test_g12_without_a_store_nothing_is_sold_on_spot():
    """There nothing but the journal keeps two orders apart."""
    desk = await holding()
    desk.store.is_down = True
    result = await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
    assert (type(result), result.hold) == (Held, Hold.STORE)
    assert desk.exit_orders() == []
    desk.store.is_down = False
    assert isinstance(await desk.exits.exit(SOON, ExitReason.STOP_LOSS), Dust)


@pytest.mark.guarantee(10, 13)
async def test_g13_a_store_that_fails_at_any_moment_costs_no_fill():
    for at_ms in range(1, 120, 3):
        desk = await holding()

        async def fail(desk=desk, at_ms=at_ms):
            await anyio.sleep(at_ms / 1000)
            desk.store.is_down = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
        assert desk.sold() <= HELD
        desk.store.is_down = False
        await anyio.sleep(60)
        await desk.gateway.recover()
        await desk.exits.recover()
        await desk.exits.exit(SOON, ExitReason.STOP_LOSS)
        assert desk.sold() == HELD


# --- Memory ---------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(14)
async def test_g14_one_record_per_position_and_none_in_memory_once_it_is_closed():
    desk = await holding(PERP, "1")
    for n in range(5):
        await desk.exits.exit(LONG, ExitReason.STOP_LOSS)
        await desk.open(PERP, "1", key=f"entry-{n + 2}")
    assert len(desk.store._tables[COLLECTION].records) == 1
    assert desk.exits._journal.open == {}
    assert len(desk.exit_orders(PERP)) == 5


async def test_a_purged_record_does_not_bring_the_keys_of_its_orders_back():
    desk = await holding(PERP, "1")
    await desk.exits.exit(LONG, ExitReason.TAKE_PROFIT, quantity="0.4")
    del desk.store._tables[COLLECTION]
    assert isinstance(await desk.exits.exit(LONG, ExitReason.TAKE_PROFIT, quantity="0.3"), Exited)
    assert desk.at_venue() == D("0.3")


@pytest.mark.guarantee(10)
async def test_g10_an_exit_that_rested_never_closes_the_position_after_its_own():
    desk = await holding(PERP, "1")
    desk.venue.set_book(PERP, [], [("70000", "1")], desk.clock.now_ms())
    assert isinstance(await desk.exits.exit(LONG, ExitReason.TAKE_PROFIT), Held)
    desk.venue.clear_book(PERP, desk.clock.now_ms())
    await desk.gateway.submit(attrs.evolve(entry("1", "by hand"), symbol=PERP, side=Side.SELL))
    await desk.open(PERP, "1", key="next")
    await anyio.sleep(20)
    [result] = await desk.exits.tick()
    assert (type(result), result.closed_quantity) == (Exited, 0)
    assert desk.at_venue() == 1
    assert isinstance(await desk.exits.exit(LONG, ExitReason.TAKE_PROFIT), Exited)
    assert desk.at_venue() == 0


def test_the_policy_of_a_manager_is_the_default_one():
    desk = Desk()
    desk.parts = {}
    desk.policy = None
    assert desk.start().policy == ExitPolicy()


# --- With the protection that comes with it -------------------------------------------------------------------


@pytest.mark.guarantee(10)
@pytest.mark.row("S1-13")
@pytest.mark.parametrize(("symbol", "quantity", "key"), [(SPOT, "360", SOON), (PERP, "1", LONG)])
async def test_g10_a_protected_position_is_closed_and_its_stop_goes_with_it(symbol, quantity, key):
    desk = await holding(symbol, quantity)
    keeper = ProtectionManager(desk.gateway, desk.book)
    await keeper.check()
    assert len(desk.venue.open_orders(symbol)) == 1
    desk.start_exits(protections=keeper)
    result = await desk.exits.exit(key, ExitReason.STOP_LOSS)
    assert isinstance(result, (Exited, Dust))
    assert desk.venue.open_orders(symbol) == []
    assert desk.venue.ledger.rejected() == []
    assert desk.sold(symbol) == (D("359.82") if symbol == SPOT else 1)


@pytest.mark.guarantee(10)
async def test_g10_a_position_whose_exit_rests_has_its_stop_back():
    desk = await holding(SPOT, "360")
    keeper = ProtectionManager(desk.gateway, desk.book)
    await keeper.check()
    desk.start_exits(protections=keeper)
    desk.venue.set_book(SPOT, [], [("0.7", "1")], desk.clock.now_ms())
    assert isinstance(await desk.exits.exit(SOON, ExitReason.STOP_LOSS), Held)
    [stop] = desk.venue.open_orders(SPOT)
    assert stop.quantity == D("359.82")


@pytest.mark.row("S1-07")
async def test_a_larger_wish_that_comes_at_the_last_moment_is_not_lost():
    """It is told that an exit runs; that exit then closes as much as the larger of the two."""
    for after_ms in range(0, 160, 4):
        desk = await holding(PERP, "1")
        results = []

        async def more(desk=desk, after_ms=after_ms, results=results):
            await anyio.sleep(after_ms / 1000)
            results.append(await desk.exits.exit(LONG, ExitReason.TAKE_PROFIT, quantity="0.7"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(more)
            await desk.exits.exit(LONG, ExitReason.TAKE_PROFIT, quantity="0.4")
        assert desk.sold(PERP) in {D("0.7"), D(1)}, after_ms  # together, or one after the other
        assert desk.at_venue() == 1 - desk.sold(PERP)


@pytest.mark.row("S0-25")
def test_the_runbook_has_an_answer_to_every_reason_to_rest():
    page = (Path(__file__).parent.parent / "docs" / "content" / "oversold.md").read_text()
    assert [hold.value for hold in Hold if hold is not Hold.MISMATCH and f"| `{hold.value}` |" not in page] == []
    assert all(code in page for code in ("30005", "-2010", "-2022", "110017"))
