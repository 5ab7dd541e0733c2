"""PartialFillHedger: what filled is hedged, what cannot be hedged is undone, what is left is reported.

In virtual time, on both event loops, against the simulated venue; its ledger is the truth.
"""

from __future__ import annotations

from decimal import Decimal

import anyio
import attrs
import pytest

from execsafe.core.hedging import HedgeLeg, HedgePlan, HedgePolicy
from execsafe.errors import IntentConflict, InvalidInput, InvalidOrder, StoreError, TradingDenied, VenueUnavailable
from execsafe.hedging import (
    Aborted,
    Deduplicated,
    Executed,
    ExposureUnknown,
    PartialFillHedger,
    ResidualExposure,
    Unwound,
)
from execsafe.hedging.journal import PAIRS, PLANS
from execsafe.model.event import EventType
from execsafe.model.order import Side
from execsafe.model.outcome import Operation
from execsafe.stores import codec
from execsafe.testing.faults import Fault, Strike
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import FillStep, NewOrder, linear
from hedge_world import A, B, NoPositions, World, leg, pair

pytestmark = pytest.mark.anyio
D = Decimal
FLAT = (D(0), D(0))


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


@pytest.fixture
async def world():
    return await World().open()


def resting(a="1", **more):
    """A plan whose leading leg rests at its limit until the price comes."""
    return pair(a, lead={"limit_price": 2_000}, **more)


# --- The leading leg --------------------------------------------------------------------------------------


@pytest.mark.row("S4-01", "S4-02", "S4-03", "S4-30")
@pytest.mark.parametrize(("share", "hedge"), [(1, "1"), ("0.95", "0.95"), ("0.6", "0.6"), ("0.5", "0.5")])
async def test_what_filled_of_the_leading_leg_is_hedged_exactly(share, hedge, world):
    world.fills.add(A, share)
    result = await world.execute()
    assert isinstance(result, Executed)
    assert world.positions == (D(hedge), -D(hedge))
    assert [e.residual for e in result.exposures] == [0, 0]
    assert world.kinds()[-1] is EventType.HEDGE_COMPLETED
    assert (EventType.HEDGE_RECALCULATED in world.kinds()) is (hedge != "1")


@pytest.mark.guarantee(9)
@pytest.mark.row("S4-05", "S4-06", "D-07")
@pytest.mark.parametrize("share", ["0.1", "0.499", "0.001"])
async def test_g9_too_little_is_aborted_and_flat(share, world):
    world.fills.add(A, share)
    result = await world.execute()
    assert isinstance(result, Aborted)
    assert "below the abort band of 50 %" in result.reason
    assert world.positions == FLAT
    assert [symbol for symbol, *_ in world.orders()] == [A, A]
    assert world.accepted[1].reduce_only
    assert world.main.adapter.positions_read == 2  # before, and to see that it is flat


async def test_a_rejected_leading_leg_is_the_end(world):
    world.plan.strike_next(Operation.CREATE, Fault.REJECT_FUNDS)
    result = await world.execute()
    assert isinstance(result, Aborted)
    assert result.reason == "nothing of the leading leg filled; it was rejected"
    assert world.kinds() == [EventType.HEDGE_STARTED, EventType.HEDGE_ABORTED]
    assert world.accepted == []


@pytest.mark.row("S4-07")
async def test_a_leading_leg_that_rests_is_waited_for_then_its_remainder_is_canceled(world):
    task_result = []
    async with anyio.create_task_group() as tasks:

        async def run():
            task_result.append(await world.execute(resting()))

        tasks.start_soon(run)
        await anyio.sleep(1)
        [order] = world.venue.open_orders(A)
        world.venue.fill(order.venue_order_id, world.clock.now_ms(), D("0.7"))
        await anyio.sleep(1)
        assert world.position(B) == 0  # it may fill further
    assert isinstance(task_result[0], Executed)
    assert world.positions == (D("0.7"), D("-0.7"))
    assert world.venue.open_orders() == []


@pytest.mark.row("S4-07")
async def test_a_fill_during_the_cancel_counts(world):
    """FI-73: what fills while its cancel is on the way is hedged like everything else."""
    world.plan.strike_next(Operation.CANCEL, Fault.FILL_DURING_CANCEL, 800)
    assert isinstance(await world.execute(resting()), Executed)
    assert world.positions == (D("0.8"), D("-0.8"))


async def test_a_leading_leg_that_never_fills_is_canceled_and_nothing_else_is_sent(world):
    result = await world.execute(resting())
    assert isinstance(result, Aborted)
    assert len(world.accepted) == 1
    assert world.venue.open_orders() == []


@pytest.mark.row("S4-19", "S4-20", "D-06")
async def test_a_leading_leg_whose_reply_was_lost_is_adopted_and_hedged(world):
    world.fills.add(A, "0.6")
    world.plan.strike_next(Operation.CREATE, Fault.DROP_REPLY)
    assert isinstance(await world.execute(), Executed)
    assert world.positions == (D("0.6"), D("-0.6"))
    assert len(world.accepted) == 2


@pytest.mark.row("S4-16", "S4-19", "X-04")
async def test_a_leading_leg_in_doubt_is_neither_hedged_nor_forgotten(world):
    """Nothing is guessed: the claim stays, an equal plan is refused, and recovery finishes it."""
    world.main.adapter.is_blind = True
    world.plan.strike_next(Operation.CREATE, Fault.DROP_REPLY)
    result = await world.execute()
    assert isinstance(result, ExposureUnknown)
    assert (result.exposures[0].filled, result.exposures[0].in_doubt) == (0, 1)
    assert world.position(B) == 0
    assert world.kinds()[-1] is EventType.RESIDUAL_EXPOSURE
    again = await world.execute()
    assert isinstance(again, Deduplicated)
    assert (again.reason, again.result) == ("unfinished", result)
    assert len(world.accepted) == 1
    world.main.adapter.is_blind = False
    recovery = await world.hedger.recover()
    assert [type(r) for r in recovery.settled] == [Executed]
    assert world.positions == (D(1), D(-1))
    assert isinstance(await world.execute(), Executed)


# --- The hedge --------------------------------------------------------------------------------------------


@pytest.mark.row("S4-12", "S4-13", "S4-18", "S4-20", "D-06")
@pytest.mark.parametrize(
    "fault", [Fault.DROP_REPLY, Fault.SERVER_ERROR_ACCEPTED, Fault.HANG, Fault.TRUNCATED_BODY, Fault.EMPTY_OK]
)
async def test_a_hedge_whose_reply_was_lost_is_looked_for_and_adopted(fault, world):
    world.plan.script([Strike(Operation.CREATE, 2, fault)])
    assert isinstance(await world.execute(), Executed)
    assert world.positions == (D(1), D(-1))
    assert len(world.accepted) == len(world.venue.ledger.received()) == 2


@pytest.mark.row("S4-15", "S4-21")
async def test_a_hedge_that_was_lost_is_sent_again_only_after_proof(world):
    world.plan.script([Strike(Operation.CREATE, 2, Fault.DROP_REQUEST)])
    start_ms = world.clock.now_ms()
    assert isinstance(await world.execute(), Executed)
    assert world.positions == (D(1), D(-1))
    assert world.accepted[1].at_ms - start_ms > 2_000 + 500 + 500  # deadline, skew and lag


@pytest.mark.row("S4-14")
async def test_an_order_that_only_looks_like_the_lost_hedge_is_somebody_elses(world):
    """Same symbol, side, size and second: ownership is by id, never by likeness."""
    world.plan.script([Strike(Operation.CREATE, 2, Fault.DROP_REQUEST)])
    twin = NewOrder(symbol=B, side="sell", quantity=D(1), type="market", client_order_id="not-ours")
    async with anyio.create_task_group() as tasks:

        async def trade_too():
            await anyio.sleep(0.3)
            world.venue.submit(twin, world.clock.now_ms())

        tasks.start_soon(trade_too)
        assert isinstance(await world.execute(), Executed)
    assert world.positions == (D(1), D(-2))
    assert len(world.accepted) == 3


@pytest.mark.row("S4-15", "S4-16", "X-04")
async def test_a_hedge_in_doubt_is_never_sent_again_nor_is_the_leading_leg_unwound(world):
    world.plan.script([Strike(Operation.CREATE, 2, Fault.DROP_REPLY)])
    async with anyio.create_task_group() as tasks:

        async def go_blind():
            while not world.accepted:
                await anyio.sleep(0.005)
            world.main.adapter.is_blind = True

        tasks.start_soon(go_blind)
        result = await world.execute()
    assert isinstance(result, ExposureUnknown)
    assert "open-2.1" in result.reason
    assert (result.exposures[0].held, result.exposures[1].in_doubt) == (1, 1)
    assert len(world.accepted) == 2
    world.main.adapter.is_blind = False
    await world.hedger.recover()
    assert world.positions == (D(1), D(-1))
    assert len(world.accepted) == 2


@pytest.mark.row("S4-10")
async def test_a_hedge_that_fills_in_part_is_topped_up(world):
    world.fills.add(B, "0.5", "0.5")
    result = await world.execute()
    assert isinstance(result, Executed)
    assert [q for s, _, q in world.orders() if s == B] == [D(1), D("0.5"), D("0.25")]
    assert world.positions == (D(1), D(-1))
    assert world.kinds().count(EventType.HEDGE_TOPPED_UP) == 2


@pytest.mark.guarantee(9)
@pytest.mark.row("S4-10", "D-07")
async def test_g9_a_hedge_that_can_only_be_had_in_part_trims_the_leading_leg_to_it(world):
    world.fills.add(B, "0.5", "0.5", "0.5")
    result = await world.execute()
    assert isinstance(result, Executed)
    assert world.positions == (D("0.875"), D("-0.875"))
    assert EventType.HEDGE_TRIMMED in world.kinds()
    assert world.accepted[-1].reduce_only
    assert result.exposures[0].closed == D("0.125")


@pytest.mark.guarantee(9)
@pytest.mark.row("S4-11", "D-07")
@pytest.mark.parametrize("how", ["rejected", "nothing filled"])
async def test_g9_a_hedge_that_cannot_be_had_unwinds_the_leading_leg_to_flat(how, world):
    if how == "rejected":
        world.plan.script([Strike(Operation.CREATE, 2, Fault.REJECT_FUNDS)])
    else:
        world.fills.add(B, 0)
    result = await world.execute(pair(hedge={"limit_price": 59_000}))
    assert isinstance(result, Unwound)
    assert result.reason == f"nothing of {B} could be hedged"
    assert world.positions == FLAT
    assert world.venue.open_orders() == []


@pytest.mark.guarantee(9)
@pytest.mark.parametrize("times", [1, 3])
async def test_g9_a_hedge_that_meets_a_rate_limit_is_had_a_moment_later(times, world):
    world.main.adapter.turns_away = times
    start_ms = world.clock.now_ms()
    assert isinstance(await world.execute(), Executed)
    assert world.positions == (D(1), D(-1))
    assert len(world.accepted) == 2
    assert 500 * (2**times - 1) <= world.clock.now_ms() - start_ms < 500 * (2**times - 1) + 1_000


@pytest.mark.guarantee(9)
async def test_g9_a_rate_limit_that_lasts_unwinds_the_leading_leg(world):
    world.main.adapter.turns_away = 99
    start_ms = world.clock.now_ms()
    assert isinstance(await world.execute(), Unwound)
    assert world.clock.now_ms() - start_ms < 6_000
    assert world.positions == FLAT


@pytest.mark.guarantee(9, 13)
@pytest.mark.parametrize("grace_s", [0, 2])
async def test_g9_a_plan_that_a_shutdown_leaves_naked_is_told(grace_s):
    """The venue answers nobody any more: neither the hedge nor its undoing gets through in the grace."""
    world = World(policy=HedgePolicy(shutdown_grace_s=grace_s))
    await world.open()
    world.main.adapter.turns_away = 99
    with anyio.move_on_after(0.4):
        world.main.adapter.is_mute = True
        await world.execute()
    assert world.positions == (D(1), D(0))
    told = world.events[-1]
    assert told.type is EventType.RESIDUAL_EXPOSURE
    assert told.details.thaw()["legs"][0]["held"] == "1"
    assert "recover()" in told.note


@pytest.mark.parametrize("reason", ["rate_limit", "no_reading"])
async def test_a_hedge_that_a_check_held_back_for_a_moment_is_had_after_it(reason, world):
    class DenyOnce:
        is_over = False

        async def check(self, intent, instrument):
            if intent.symbol == B and not self.is_over:
                self.is_over = True
                raise TradingDenied("not now", reason=reason)

    world.checks.append(DenyOnce())
    world.main = world.process()
    assert isinstance(await world.execute(), Executed)
    assert world.positions == (D(1), D(-1))


@pytest.mark.row("S4-07")
async def test_a_hedge_that_rests_is_canceled_in_time_and_the_rest_had_otherwise(world):
    """FI-75: no hedge rests unnoticed; what filled of it counts."""
    world.fills.add(B, [FillStep(0, "0.4"), FillStep(10**9, "0.6")])
    plan = pair(hedge={"limit_price": 59_000, "time_in_force": "GTC"})
    start_ms = world.clock.now_ms()
    assert isinstance(await world.execute(plan), Executed)
    assert world.positions == (D(1), D(-1))
    assert 2_000 <= world.clock.now_ms() - start_ms < 4_000


async def test_a_hedge_that_is_denied_before_sending_unwinds_the_leading_leg(world):
    class Deny:
        async def check(self, intent, instrument):
            if intent.symbol == B:
                raise TradingDenied("no", reason="halted")

    world.checks.append(Deny())
    world.main = world.process()
    assert isinstance(await world.execute(), Unwound)
    assert world.positions == FLAT


# --- Unwinding --------------------------------------------------------------------------------------------


@pytest.mark.guarantee(9)
@pytest.mark.row("S4-05", "S4-11", "D-07")
async def test_g9_what_cannot_be_unwound_is_an_alarm_and_a_task_that_stays(world):
    world.fills.add(A, "0.1")
    world.plan.script([Strike(Operation.CREATE, n, Fault.REJECT_FILTER) for n in range(2, 9)])
    result = await world.execute()
    assert isinstance(result, ResidualExposure)
    assert not result.is_done
    assert result.exposures[0].held == world.position(A) == D("0.1")
    assert world.events[-1].type is EventType.RESIDUAL_EXPOSURE
    assert isinstance(await world.execute(), Deduplicated)
    first = await world.hedger.recover()
    assert [type(r) for r in first.unsettled + first.settled] == [Aborted]
    assert world.positions == FLAT
    assert len(world.venue.ledger.rejected()) == 7


@pytest.mark.row("S4-11")
async def test_unwinding_goes_on_until_all_is_gone(world):
    world.fills.add(A, "0.4", "0.5", "0.5")
    start_ms = world.clock.now_ms()
    assert isinstance(await world.execute(), Aborted)
    assert world.positions == FLAT
    assert [q for s, side, q in world.orders() if side == "sell"] == [D("0.4"), D("0.2"), D("0.1")]
    assert 1_500 <= world.clock.now_ms() - start_ms < 2_500  # 0.5 s, then 1 s


@pytest.mark.row("S4-19")
async def test_an_unwinding_order_in_doubt_is_resolved_like_every_other(world):
    world.fills.add(A, "0.3")
    world.plan.script([Strike(Operation.CREATE, 2, Fault.DROP_REPLY)])
    assert isinstance(await world.execute(), Aborted)
    assert world.positions == FLAT
    assert len(world.accepted) == 2


async def test_spot_is_unwound_net_of_the_fee_that_was_taken_in_what_was_bought():
    world = await World().open()
    world.fills.add("ETH/USDT", "0.4")
    plan = HedgePlan(legs=[leg("ETH/USDT", "buy", 1), leg(B, "sell", 1)])
    result = await world.execute(plan)
    assert isinstance(result, Aborted)
    [_, sold] = world.accepted
    assert (sold.quantity, sold.reduce_only) == (D("0.3996"), True)
    assert (result.exposures[0].held, result.exposures[0].closable) == (D("0.0004"), 0)


@pytest.mark.row("S4-08")
async def test_fees_that_no_order_report_told_are_read_from_the_trades():
    """The reply was lost, and the order's report has no trades: what can be sold is still known."""
    world = await World().open()
    world.main.adapter.hides_trades = True
    world.fills.add("ETH/USDT", "0.4")
    plan = HedgePlan(legs=[leg("ETH/USDT", "buy", 1), leg(B, "sell", 1)])
    assert isinstance(await world.execute(plan), Aborted)
    assert world.accepted[1].quantity == D("0.3996")


async def test_a_spot_rest_below_the_minimum_value_is_reported_and_closed():
    world = await World().open()
    plan = HedgePlan(legs=[leg("ETH/USDT", "buy", "0.01", reference_price=3_000), leg(B, "sell", "0.01")])
    world.fills.add("ETH/USDT", "0.1")
    result = await world.execute(plan)
    assert isinstance(result, ResidualExposure)
    assert result.is_done
    assert result.reason == "too small to be unwound: 0.0009 ETH/USDT"
    assert world.events[-1].type is EventType.RESIDUAL_EXPOSURE
    assert isinstance(await world.execute(plan), Executed)


@pytest.mark.row("D-07")
async def test_flat_by_the_fills_but_not_by_the_venue_is_an_alarm(world):
    world.fills.add(A, "0.1")
    adapter = world.main.adapter

    def appear(event):
        if event.type is EventType.HEDGE_ABORTED:
            adapter.foreign = D("0.05")

    hedger = PartialFillHedger(world.main.gateway, listeners=[appear])
    result = await hedger.execute(pair(key="s"))
    assert isinstance(result, ResidualExposure)
    assert result.reason == f"flat by its fills, but the venue shows 0.05 {A} besides"
    adapter.foreign = D(0)
    assert [type(r) for r in (await hedger.recover()).settled] == [Aborted]
    adapter.foreign = D(3)  # what was there before a plan does not count
    world.fills.add(A, "0.1")
    assert isinstance(await world.execute(), Aborted)


@pytest.mark.row("D-07", "X-04")
async def test_flat_that_cannot_be_read_is_not_called_flat(world):
    world.fills.add(A, "0.1")

    def go_blind(event):
        if event.type is EventType.HEDGE_ABORTED:
            world.main.adapter.is_blind = True

    hedger = PartialFillHedger(world.main.gateway, listeners=[go_blind])
    result = await hedger.execute(pair())
    assert isinstance(result, ResidualExposure)
    assert result.reason == "flat by its fills; the venue could not be read"
    assert world.positions == FLAT
    world.main.adapter.is_blind = False
    assert [type(r) for r in (await hedger.recover()).settled] == [Aborted]


async def test_where_positions_cannot_be_read_at_all_the_orders_are():
    world = await World(adapter=NoPositions).open()
    world.fills.add(A, "0.1")
    assert isinstance(await world.execute(), Aborted)


async def test_two_plans_on_one_symbol_do_not_take_each_other_for_a_difference(world):
    other = HedgePlan(legs=[leg(A), leg("SOL/USDT:USDT", "sell", 1)])
    world.fills.add(A, "0.1", 1)
    results = []
    async with anyio.create_task_group() as tasks:
        for plan in (pair(), other):

            async def run(plan=plan):
                results.append(await world.execute(plan))

            tasks.start_soon(run)
    assert sorted(type(r).__name__ for r in results) == ["Aborted", "Executed"]


# --- Before anything is sent ------------------------------------------------------------------------------


@pytest.mark.row("S4-09")
async def test_a_plan_with_a_leg_below_its_minimum_is_refused_before_anything_is_sent(world):
    """FI-71: all legs pass all local checks before the first one is sent."""
    with pytest.raises(InvalidOrder, match=r"hedge of 0 is below its minimum \(quantity 0.001"):
        await world.execute(pair(1, "0.001"))
    assert world.venue.ledger.received() == []
    assert not await world.store.scan_open(PLANS)
    assert isinstance(await world.execute(pair(1, "0.002")), Executed)


async def test_a_leading_leg_that_is_denied_raises_and_leaves_the_key_free(world):
    class Deny:
        closed = True

        async def check(self, intent, instrument):
            if self.closed:
                raise TradingDenied("no", reason="halted")

    deny = Deny()
    world.checks.append(deny)
    world.main = world.process()
    with pytest.raises(TradingDenied):
        await world.execute(pair(key="s"))
    deny.closed = False
    assert isinstance(await world.execute(pair(key="s")), Executed)


async def test_a_plan_whose_time_has_passed_is_refused(world):
    with pytest.raises(TradingDenied):
        await world.execute(pair(fresh_until_ms=world.clock.now_ms() - 1))
    assert world.venue.ledger.received() == []


async def test_a_leg_at_an_unknown_venue_or_symbol_is_refused(world):
    hedger = PartialFillHedger({"default": world.main.gateway})
    with pytest.raises(InvalidInput, match="no gateway 'x'"):
        await hedger.execute(pair(hedge={"venue": "x"}))
    with pytest.raises(InvalidInput, match="not listed"):
        await hedger.execute(HedgePlan(legs=[leg(), leg("NO/USDT:USDT")]))
    with pytest.raises(InvalidInput):
        PartialFillHedger({})


async def test_a_venue_that_cannot_be_asked_is_said_to_be_so(world):
    class Silent(type(world.main.adapter)):
        async def prepare(self, symbol):
            raise ConnectionError("down")

    world.adapter_type = Silent
    with pytest.raises(VenueUnavailable):
        await world.process().hedger.execute(pair())


async def test_legs_may_be_at_different_venues_and_accounts(world):
    """Two gateways, two venues; contracts of another size and step at the second."""
    hundredths = attrs.evolve(
        linear("BTC"),
        instrument=attrs.evolve(linear("BTC").instrument, contract_size="0.01", step_size=1, min_quantity=1),
    )
    other = await World(markets=[hundredths, linear("ETH")]).open()
    other.store = world.store
    other_process = other.process()
    world.fills.add(A, "0.777")
    hedger = PartialFillHedger({"one": world.main.gateway, "two": other_process.gateway})
    plan = HedgePlan(
        legs=[
            HedgeLeg(symbol=A, side="buy", quantity=1, venue="one"),
            HedgeLeg(symbol=B, side="sell", quantity=10, venue="two", account="sub"),
        ]
    )
    result = await hedger.execute(plan)
    assert isinstance(result, Executed)
    assert (world.position(A), other.position(B)) == (D("0.777"), D(-7))
    assert result.exposures[1].residual == D("0.77")


# --- The residual is carried ------------------------------------------------------------------------------


@pytest.mark.guarantee(9)
@pytest.mark.row("S4-09")
async def test_g9_what_is_too_small_to_be_hedged_is_exact_and_carried_to_the_next_plan(world):
    """FI-72: ten thirds of a step are not lost one by one."""
    first = await world.execute(pair("0.3", "0.1001"))
    assert world.position(B) == D("-0.1")
    assert first.exposures[1].residual == D("0.0001")
    for _ in range(8):
        last = await world.execute(pair("0.3", "0.1001"))
    assert (world.position(B), last.exposures[1].residual) == (D("-0.9"), D("0.0009"))
    last = await world.execute(pair("0.3", "0.1001"))
    assert (world.position(B), last.exposures[1].residual) == (D("-1.001"), 0)
    assert not await world.store.find(PAIRS, "x")


async def test_the_residual_counts_against_a_plan_of_the_other_direction(world):
    await world.execute(pair("0.3", "0.1009"))
    back = HedgePlan(legs=[leg(A, "sell", "0.3"), leg(B, "buy", "0.1009")])
    result = await world.execute(back)
    assert world.positions == FLAT
    assert result.exposures[1].residual == 0


async def test_an_aborted_plan_leaves_what_was_carried_to_the_next(world):
    await world.execute(pair("0.3", "0.1009"))
    world.fills.add(A, "0.1")
    assert isinstance(await world.execute(pair("0.3", "0.1")), Aborted)
    result = await world.execute(pair("0.3", "0.1001"))
    assert (world.position(B), result.exposures[1].residual) == (D("-0.201"), 0)


async def test_carrying_can_be_switched_off():
    world = await World(policy=HedgePolicy(carry_residual=False)).open()
    for _ in range(3):
        result = await world.execute(pair("0.3", "0.1009"))
    assert (world.position(B), result.exposures[1].residual) == (D("-0.3"), D("0.0009"))


# --- Equal trades at the same time ------------------------------------------------------------------------


async def all_at_once(*calls):
    results = [None] * len(calls)
    times = []

    async def run(index, call):
        began = anyio.current_time()
        results[index] = await call()
        times.append((anyio.current_time() - began, type(results[index]).__name__))

    async with anyio.create_task_group() as tasks:
        for index, call in enumerate(calls):
            tasks.start_soon(run, index, call)
    return results, times


@pytest.mark.guarantee(6)
@pytest.mark.row("S4-23", "S4-24", "S4-25", "S4-32", "D-01", "D-02")
async def test_g6_of_five_equal_trades_at_once_one_runs_and_four_are_told_at_once(world):
    results, times = await all_at_once(*[world.execute] * 5)
    assert sorted(type(r).__name__ for r in results) == ["Deduplicated"] * 4 + ["Executed"]
    assert len(world.accepted) == 2
    assert max(t for t, name in times if name == "Deduplicated") < 0.005
    assert all(r.reason == "in flight" for r in results if isinstance(r, Deduplicated))


@pytest.mark.guarantee(6)
@pytest.mark.row("S4-26", "D-03")
async def test_g6_five_equal_trades_one_after_another_all_run(world):
    for _ in range(5):
        assert isinstance(await world.execute(), Executed)
    assert len(world.accepted) == 10
    assert world.positions == (D(5), D(-5))


@pytest.mark.row("S4-27", "D-03")
async def test_a_signal_with_an_identity_is_traded_once_however_often_it_comes(world):
    first = await world.execute(pair(key="signal-1"))
    assert first.key == "signal-1"
    for process in (world.main, world.process()):
        again = await process.hedger.execute(pair(key="signal-1"))
        assert isinstance(again, Deduplicated)
        assert (again.reason, again.result) == ("done", first)
    assert isinstance(await world.execute(pair(key="signal-2")), Executed)
    assert len(world.accepted) == 4
    with pytest.raises(IntentConflict):
        await world.execute(pair(2, 2, key="signal-1"))
    assert await world.hedger.find("signal-1") == first
    assert await world.hedger.find("signal-3") is None


@pytest.mark.row("S4-31")
async def test_a_duplicate_may_wait_and_share_the_result(world):
    results, _ = await all_at_once(*[lambda: world.execute(join=True)] * 3)
    assert isinstance(results[0], Executed)
    assert results == [results[0]] * 3
    assert len(world.accepted) == 2


async def test_a_joined_result_of_another_signal_is_not_taken_for_ones_own(world):
    calls = [lambda key=key: world.execute(pair(key=key), join=True) for key in ("s1", "s2")]
    results, _ = await all_at_once(*calls)
    [ran] = [r for r in results if isinstance(r, Executed)]
    [told] = [r for r in results if isinstance(r, Deduplicated)]
    assert (told.reason, told.result) == ("in flight", ran)
    assert told.key != ran.key


@pytest.mark.row("S4-28")
@pytest.mark.parametrize("delay_ms", [0, 1, 5, 20, 60, 100, 150, 200])
async def test_a_partial_fill_with_three_equal_trades_around_it_is_hedged_once(delay_ms, world):
    world.fills.add(A, "0.6")

    async def late(times):
        await anyio.sleep(times * delay_ms / 1000)
        return await world.execute()

    results, _ = await all_at_once(*[lambda n=n: late(n) for n in range(3)])
    runs = [r for r in results if isinstance(r, Executed)]
    if delay_ms < 60:
        assert len(runs) == 1
        assert world.positions == (D("0.6"), D("-0.6"))
        assert len(world.accepted) == 2
    assert world.positions[0] == -world.positions[1]
    assert len(world.accepted) == 2 * len(runs)


@pytest.mark.row("S4-29")
async def test_swapped_legs_are_the_same_trade_and_other_strategies_are_not(world):
    plan = pair()
    swapped = HedgePlan(legs=plan.legs[::-1])
    results, _ = await all_at_once(lambda: world.execute(plan), lambda: world.execute(swapped))
    assert sorted(type(r).__name__ for r in results) == ["Deduplicated", "Executed"]
    results, _ = await all_at_once(lambda: world.execute(plan), lambda: world.execute(pair(strategy="x")))
    assert [type(r).__name__ for r in results] == ["Executed"] * 2


@pytest.mark.guarantee(6)
@pytest.mark.row("S4-29", "D-01")
async def test_g6_equal_trades_of_two_processes_exclude_each_other(world):
    other = world.process()
    results, _ = await all_at_once(world.execute, lambda: other.hedger.execute(pair()))
    assert sorted(type(r).__name__ for r in results) == ["Deduplicated", "Executed"]
    assert len(world.accepted) == 2


@pytest.mark.row("S4-34", "D-02")
async def test_unrelated_pairs_run_side_by_side():
    bases = [f"C{n}" for n in range(10)]
    world = await World(markets=[linear(base) for base in bases]).open()
    plans = [
        HedgePlan(legs=[leg(f"{a}/USDT:USDT"), leg(f"{b}/USDT:USDT", "sell")])
        for a, b in zip(bases[::2], bases[1::2], strict=True)
    ]
    world.main = world.process(policy=HedgePolicy(verify_positions=False))
    began = anyio.current_time()
    await world.execute(attrs.evolve(plans[0], strategy="warm-up"))
    one_s = anyio.current_time() - began
    began = anyio.current_time()
    results, _ = await all_at_once(*[lambda plan=plan: world.execute(plan) for plan in plans])
    assert [type(r) for r in results] == [Executed] * 5
    assert anyio.current_time() - began <= 1.5 * one_s


# --- Late evidence ----------------------------------------------------------------------------------------


@pytest.mark.guarantee(9, 11)
@pytest.mark.row("S4-07", "S4-17")
async def test_g9_a_fill_that_shows_after_the_end_is_hedged_by_recovery(world):
    world.fills.add(A, "0.8")
    world.main.adapter.caps[A] = D("0.6")
    result = await world.execute()
    assert isinstance(result, Executed)
    assert world.positions == (D("0.8"), D("-0.6"))
    assert (await world.hedger.recover()).settled == (result,)  # nothing new
    world.main.adapter.caps.clear()
    recovery = await world.hedger.recover()
    assert [type(r) for r in recovery.settled] == [Executed]
    assert world.positions == (D("0.8"), D("-0.8"))
    assert EventType.HEDGE_TOPPED_UP in world.kinds()


@pytest.mark.guarantee(11)
@pytest.mark.row("S4-17")
@pytest.mark.parametrize("seen", ["0", "0.1"])
async def test_g11_a_fill_that_shows_after_an_abort_is_unwound(seen, world):
    world.fills.add(A, "0.8")
    world.main.adapter.caps[A] = D(seen)
    world.main = attrs.evolve(world.main, hedger=PartialFillHedger(world.main.gateway, policy=NO_POSITIONS))
    assert isinstance(await world.execute(), Aborted)
    world.main.adapter.caps.clear()
    recovery = await world.hedger.recover()
    assert [type(r) for r in recovery.settled] == [Aborted]
    assert world.positions == FLAT


NO_POSITIONS = HedgePolicy(verify_positions=False)


@pytest.mark.guarantee(9, 13)
@pytest.mark.row("S4-17", "D-07")
async def test_g9_what_began_to_be_undone_is_undone_to_the_end_whatever_shows_later(world):
    """The process is gone right after the decision to abort; then more turns out to have filled."""
    world.fills.add(A, "0.8")
    world.main.adapter.caps[A] = D("0.4")
    with anyio.CancelScope() as scope:

        def leave(event):
            if event.type is EventType.HEDGE_ABORTED:
                scope.cancel()

        policy = HedgePolicy(shutdown_grace_s=0)
        await PartialFillHedger(world.main.gateway, policy=policy, listeners=[leave]).execute(pair())
    assert world.position(A) == D("0.8")
    world.main = world.process()
    [order] = await world.main.gateway.registry.open_records() or [None]
    assert order is None  # it had ended, with less than was true
    [lead] = world.accepted
    late = world.venue.order(lead.venue_order_id).report()
    assert await world.main.gateway.registry.observe(late) is not None
    assert [type(r) for r in (await world.hedger.recover()).settled] == [Aborted]
    assert world.positions == FLAT
    assert {symbol for symbol, *_ in world.orders()} == {A}


@pytest.mark.row("S4-38")
async def test_an_ended_plan_is_watched_for_a_while_and_then_forgotten(world):
    await world.execute()
    assert len(await world.store.scan_open(PLANS)) == 1
    await anyio.sleep(121)
    await world.hedger.recover()
    assert not await world.store.scan_open(PLANS)
    assert not await world.store.scan_open(PAIRS)
    await world.store.purge(world.clock.now_ms() + 1)
    assert await world.store.find(PLANS, world.events[0].subject) is None


@pytest.mark.row("D-07")
async def test_after_a_crash_plans_that_shared_a_symbol_are_not_judged_by_its_position(world):
    """Two strategies on one symbol, both interrupted: what the other one moved is no difference."""
    world.main = world.process(policy=HedgePolicy(shutdown_grace_s=0))
    world.fills.add(A, "0.1", 1)
    with anyio.move_on_after(0.15):
        async with anyio.create_task_group() as tasks:
            for strategy in ("one", "two"):
                tasks.start_soon(world.execute, pair(strategy=strategy))
    world.main = world.process()
    recovery = await world.hedger.recover()
    assert sorted(type(r).__name__ for r in recovery.settled) == ["Aborted", "Executed"]
    assert recovery.unsettled == ()
    assert world.positions == (D(1), D(-1))


async def test_plans_and_pairs_survive_their_stored_form(world):
    """As a durable store keeps them."""
    await world.execute(pair("0.3", "0.1001", key="s", lead={"limit_price": 3_100, "params": {"positionIdx": 0}}))
    for collection in (PLANS, PAIRS):
        [stored] = await world.store.scan_open(collection)
        assert codec.decode(codec.encode(stored.value)) == stored.value


# --- Stores, listeners, hands ------------------------------------------------------------------------------


async def test_a_store_that_fails_before_the_first_order_means_that_nothing_is_sent(world):
    world.store.is_down = True
    with pytest.raises(StoreError):
        await world.execute()
    assert world.venue.ledger.received() == []
    world.store.is_down = False
    assert isinstance(await world.execute(), Executed)


async def test_a_store_that_fails_between_the_legs_is_an_alarm_and_recovery_hedges(world):
    async with anyio.create_task_group() as tasks:

        async def break_it():
            while not world.accepted:
                await anyio.sleep(0.001)
            await anyio.sleep(0.05)
            world.store.is_down = True

        tasks.start_soon(break_it)
        world.fills.add(A, [FillStep(1_000, 1)])
        result = await world.execute()
    assert isinstance(result, ExposureUnknown)
    assert "the journal failed" in result.reason
    assert world.kinds()[-1] is EventType.RESIDUAL_EXPOSURE
    world.store.is_down = False
    await anyio.sleep(6)
    assert [type(r) for r in (await world.hedger.recover()).settled] == [Executed]
    assert world.positions == (D(1), D(-1))


async def test_a_listener_that_raises_disturbs_nothing(world, caplog):
    def broken(_event):
        raise RuntimeError("mine")

    hedger = PartialFillHedger(world.main.gateway, listeners=[broken, world.events.append])
    assert isinstance(await hedger.execute(pair()), Executed)
    assert EventType.HEDGE_COMPLETED in world.kinds()
    assert "a listener failed" in caplog.text


async def test_the_end_of_a_plan_leaves_with_it_into_the_outbox(world):
    await world.execute(pair(key="s"))
    told = [item.event for item in await world.store.read_events(0)]
    mine = [event.type for event in told if event.subject == "s"]
    assert mine == [EventType.HEDGE_STARTED, EventType.HEDGE_COMPLETED]
    assert told[-1].details.thaw()["verdict"] == "executed"


async def test_a_plan_that_nothing_can_finish_is_closed_by_hand(world):
    world.fills.add(A, "0.1")
    world.plan.script([Strike(Operation.CREATE, n, Fault.REJECT_FILTER) for n in range(2, 7)])
    stuck = await world.execute()
    with pytest.raises(InvalidInput):
        await world.hedger.settle("nobody", "x")
    settled = await world.hedger.settle(stuck.key, "sold by hand")
    assert settled is not None
    assert (settled.reason, settled.is_done) == ("settled by hand: sold by hand", True)
    assert isinstance(await world.execute(), Executed)
    with pytest.raises(InvalidInput):
        await world.hedger.settle(stuck.key, "again")


@pytest.mark.guarantee(9, 13)
@pytest.mark.row("S4-05", "S4-11")
async def test_g9_a_plan_whose_position_was_closed_elsewhere_is_tried_ever_more_rarely_and_then_handed_over(world):
    """The venue refuses each time: there is nothing to reduce. What is left, and who acts next, is said by the type;
    a restart changes nothing about it."""
    world.fills.add(A, "0.1")
    world.plan.script([Strike(Operation.CREATE, n, Fault.REJECT_FILTER) for n in range(2, 7)])
    stuck = await world.execute()
    assert isinstance(stuck, ResidualExposure)
    by_hand = NewOrder(symbol=A, side=Side.SELL, quantity=D("0.1"), type="market", reduce_only=True)
    world.venue.submit(by_hand, world.clock.now_ms())
    sent = []
    for turn in range(460):
        if turn == 100:
            world.main = world.process()
        recovery = await world.hedger.recover()
        sent.append(len(world.venue.ledger.received()))
        assert len(world.venue.ledger.rejected()) <= 5 + 5 * 12
        await anyio.sleep(5)
    [left] = recovery.handed_over
    assert recovery.unsettled == recovery.settled == ()
    assert (left.key, left.exposures[0].held) == (stuck.key, D("0.1"))
    assert sent[-1] == sent[-50], "nothing is sent any more"
    alarms = [e for e in world.events if e.type is EventType.RESIDUAL_EXPOSURE]
    assert [e.details.thaw()["handed_over"] for e in alarms] == [False] * (len(alarms) - 1) + [True]
    assert len(alarms) <= 13
    again = await world.execute()
    assert (type(again), again.reason, again.result) == (Deduplicated, "unfinished", left)
    await world.hedger.settle(left.key, "closed by hand")
    assert (await world.hedger.recover()).handed_over == ()
    assert isinstance(await world.execute(), Executed)


@pytest.mark.guarantee(9)
async def test_g9_a_naked_leg_that_the_venue_lets_go_of_late_is_unwound_at_the_next_pass(world):
    world.fills.add(A, "0.1")
    world.plan.script([Strike(Operation.CREATE, n, Fault.REJECT_FILTER) for n in range(2, 37)])
    await world.execute()
    while not (await world.hedger.recover()).settled:
        await anyio.sleep(5)
    assert world.positions == FLAT
    assert len(world.venue.ledger.rejected()) == 35
    assert world.clock.now_ms() - world.venue.ledger.rejected()[-1].at_ms <= 300_000


@pytest.mark.guarantee(9, 11)
@pytest.mark.row("S4-17")
async def test_g11_a_resting_plan_is_gone_on_with_as_soon_as_its_order_in_doubt_is_known(world):
    world.plan.strike_next(Operation.CREATE, Fault.DROP_REPLY)
    world.main.adapter.is_blind = True
    assert isinstance(await world.execute(), ExposureUnknown)
    for _ in range(60):
        recovery = await world.hedger.recover()
        await anyio.sleep(5)
    [resting] = recovery.unsettled
    assert isinstance(resting, ExposureUnknown)
    assert resting.retry_at_ms > world.clock.now_ms() + 10_000
    world.main.adapter.is_blind = False
    await world.main.gateway.recover()
    assert [type(r) for r in (await world.hedger.recover()).settled] == [Executed]
    assert world.positions == (D(1), D(-1))


async def test_recovery_leaves_alone_what_is_being_worked_on(world):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.execute, resting())
        await anyio.sleep(1)
        recovery = await world.hedger.recover()
        assert len(recovery.held_elsewhere) == 1
    assert len(world.accepted) == 1


async def test_one_plan_that_cannot_be_settled_keeps_no_other_from_it(world):
    other = HedgePlan(legs=[leg("SOL/USDT:USDT"), leg("BTC/USDT", "sell", "0.5")])
    world.plan.strike_next(Operation.CREATE, Fault.DROP_REPLY)
    world.main.adapter.is_blind = True
    assert isinstance(await world.execute(pair()), ExposureUnknown)
    world.plan.strike_next(Operation.CREATE, Fault.DROP_REPLY)
    assert isinstance(await world.execute(other), ExposureUnknown)
    world.main.adapter.is_blind = False
    hedger = PartialFillHedger({"default": world.main.gateway})
    prepared = world.main.adapter.prepare

    async def prepare(symbol):
        if symbol == A:
            raise ConnectionError("down")
        return await prepared(symbol)

    world.main.adapter.prepare = prepare
    world.main.adapter.prepared = lambda symbol: None
    with pytest.raises(VenueUnavailable):
        await hedger.recover()
    assert world.position("SOL/USDT:USDT") == 1
    assert world.position("BTC/USDT") == D("-0.5")
    assert world.position(B) == 0
