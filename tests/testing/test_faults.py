"""Fault plans: deterministic per request, different per seed, exact when scripted, and honest about what fired."""

import attrs
import pytest

from execsafe.model.outcome import Operation
from execsafe.model.venue import Dedup, Expiry, LookUp, View
from execsafe.testing.adapter import SIM_PROFILE
from execsafe.testing.faults import APPLIES, DRAWN, Fault, FaultPlan, Reading, Strike, defensible

WIRE = frozenset(tuple(Fault)[: tuple(Fault).index(Fault.PARTIAL_FILL)])
CREATE, CANCEL, LOOK_UP = Operation.CREATE, Operation.CANCEL, Operation.LOOK_UP


def drawn(plan, operation=CREATE, count=50):
    return [frozenset(plan.draw(operation).faults) for _ in range(count)]


def test_the_same_seed_draws_the_same_faults_whatever_other_requests_come_between():
    calm, busy = FaultPlan(7), FaultPlan(7)
    expected = drawn(calm)

    for faults in expected:
        busy.draw(LOOK_UP)
        assert frozenset(busy.draw(CREATE).faults) == faults


def test_each_seed_enables_its_own_part_of_the_faults():
    """Swarm testing: few faults at a time, all of them over the seeds."""
    enabled = [set(FaultPlan(seed).rates) for seed in range(100)]

    assert set().union(*enabled) == set(DRAWN)
    assert len({frozenset(faults) for faults in enabled}) > 90
    assert sum(map(len, enabled)) / 100 == pytest.approx(len(DRAWN) / 4, rel=0.25)


def test_rates_are_kept_and_only_where_a_fault_applies():
    plan = FaultPlan(1, {Fault.PARTIAL_FILL: 0.2, Fault.LOOKUP_LAG: 1.0})

    assert drawn(plan, CREATE, 1_000).count(frozenset({Fault.PARTIAL_FILL})) == pytest.approx(200, abs=50)
    assert drawn(plan, LOOK_UP) == [frozenset({Fault.LOOKUP_LAG})] * 50


def test_at_most_one_fault_of_the_wire_strikes_a_request_and_each_gets_its_turn():
    plan = FaultPlan(1, dict.fromkeys(Fault, 1.0))
    wire = [faults & WIRE for faults in drawn(plan, count=400)]

    assert {len(faults) for faults in wire} == {1}
    assert set().union(*wire) == {fault for fault in WIRE if CREATE in APPLIES[fault]}


def test_enabled_limits_what_can_be_drawn():
    plan = FaultPlan(3, dict.fromkeys(Fault, 1.0), enabled={Fault.HANG})

    assert set(plan.rates) == {Fault.HANG}


def test_a_scripted_fault_strikes_exactly_the_request_it_names():
    plan = FaultPlan.scripted(Strike("create", 2, "drop_reply"), Strike(CANCEL, 1, Fault.HANG))

    assert drawn(plan, CREATE, 3) == [frozenset(), frozenset({Fault.DROP_REPLY}), frozenset()]
    assert drawn(plan, CANCEL, 1) == [frozenset({Fault.HANG})]


def test_the_next_request_can_be_struck_without_counting():
    plan = FaultPlan.none()
    drawn(plan, CREATE, 5)
    plan.strike_next("create", "empty_ok", 1)

    strikes = plan.draw(CREATE)

    assert strikes.has(Fault.EMPTY_OK)
    assert strikes.value(Fault.EMPTY_OK, 5, 9) == 1


def test_a_fault_that_cannot_strike_an_operation_cannot_be_scripted_for_it():
    with pytest.raises(ValueError, match="lookup_lag cannot strike a create"):
        FaultPlan.scripted(Strike("create", 1, "lookup_lag"))


def test_a_stopped_plan_lets_everything_through_until_it_resumes():
    plan = FaultPlan(0, {Fault.HANG: 1.0})
    plan.stop()
    assert set(drawn(plan)) == {frozenset()}

    plan.resume()

    assert set(drawn(plan)) == {frozenset({Fault.HANG})}


def test_a_fault_counts_as_fired_only_when_it_is_taken():
    plan = FaultPlan(0, {Fault.HANG: 1.0})
    strikes = plan.draw(CREATE)
    assert strikes.has(Fault.HANG)
    assert not plan.fired

    assert strikes.take(Fault.HANG)
    assert not strikes.take(Fault.DROP_REPLY)

    assert plan.fired == {Fault.HANG: 1}


def test_every_fault_applies_somewhere():
    assert set(APPLIES) == set(Fault)
    assert all(APPLIES.values())


def test_faults_of_positions_strike_only_where_a_plan_names_them():
    """A seed's faults stay what they were; what is new must be asked for."""
    new = set(Fault) - set(DRAWN)
    assert not any(new & FaultPlan(seed).rates.keys() for seed in range(200))

    plan = FaultPlan(1, dict.fromkeys(new, 1.0))

    assert frozenset(plan.draw(LOOK_UP, Reading.POSITIONS).faults) == new & {f for f in Fault if LOOK_UP in APPLIES[f]}
    assert frozenset(plan.draw(CREATE).faults) == {Fault.STOP_REJECTED, Fault.STOP_LOST}


def test_the_ordinals_of_one_reading_do_not_count_the_others():
    """A fault of one kind of reading waits for it; any other counts every look-up unless the strike says otherwise."""
    plan = FaultPlan.scripted(
        Strike(LOOK_UP, 2, Fault.POSITIONS_EMPTY),
        Strike(LOOK_UP, 2, Fault.LOOKUP_ERROR),
        Strike(LOOK_UP, 1, Fault.RATE_LIMITED, reading="order_book"),
    )
    order = ["positions", "balances", "positions", "order_book", "positions"]

    struck = [{fault.value for fault in plan.draw(LOOK_UP, Reading(reading)).faults} for reading in order]

    assert struck == [set(), {"lookup_error"}, {"positions_empty"}, {"rate_limited"}, set()]
    plan.strike_next("look_up", "maintenance", reading="quotes")
    assert not plan.draw(LOOK_UP, Reading.BALANCES).has(Fault.MAINTENANCE)
    assert plan.draw(LOOK_UP, Reading.QUOTES).has(Fault.MAINTENANCE)


def test_what_can_be_promised_depends_on_the_venue():
    strong = attrs.evolve(
        SIM_PROFILE, dedup=Dedup.FOREVER, lookups=(*SIM_PROFILE.lookups, LookUp(view=View.TRADES, method="m"))
    )
    weak = attrs.evolve(SIM_PROFILE, expiry=Expiry.NONE, lookups=SIM_PROFILE.lookups[:1])

    assert defensible(strong) == set(DRAWN)
    assert Fault.DUPLICATE_DELIVERY not in defensible(SIM_PROFILE)
    assert not {Fault.DELAY_REQUEST, Fault.LATE_ARRIVAL_AFTER_LOOK, Fault.ID_INDEX_LOST} & defensible(weak)
