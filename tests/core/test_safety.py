"""Trading state: what trips it, for how long, and how it comes back."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.health import Window
from execsafe.core.safety import (
    ENDS,
    RULES,
    STARTS,
    BreakerPhase,
    DenyReason,
    SafetyPolicy,
    SafetyRecord,
    TradingState,
    TripReason,
    add_cause,
    admit,
    narrate,
    observed,
    phase_of,
    probed,
    reasons_of,
    remove_cause,
    reset,
    set_by_hand,
    state_of,
    tidied,
    trip,
)
from execsafe.core.safety.machine import CAUSES_MAX
from execsafe.errors import InvalidInput
from execsafe.model.event import Event, EventType
from execsafe.model.intent import ErrorFacts
from execsafe.model.values import Params

POLICY = SafetyPolicy()
T0 = 1_700_000_000_000
COOL = 60_000
EMPTY = SafetyRecord()
WINDOW = Window(span_ms=300_000)


def event(kind: EventType, subject: str = "a", **facts) -> Event:
    return Event(type=kind, at_ms=T0, subject=subject, **facts)


def after(record: SafetyRecord, *events: Event, now_ms: int = T0, policy: SafetyPolicy = POLICY) -> SafetyRecord:
    answers = WINDOW
    for one in events:
        record, answers = observed(record, answers, one, policy, now_ms=now_ms)
    return record


def denied(record: SafetyRecord, now_ms: int, identity: str = "x") -> DenyReason | None:
    _, denial = admit(record, identity, POLICY, now_ms=now_ms)
    return None if denial is None else denial.reason


def test_the_table_has_every_reason_and_every_event_leads_to_one():
    assert RULES.keys() == set(TripReason)
    assert set(STARTS.values()) <= RULES.keys()
    assert {reason for reasons in ENDS.values() for reason in reasons} <= RULES.keys()
    assert not STARTS.keys() & ENDS.keys()


def test_nothing_tripped_means_active_and_every_entry_passes():
    assert state_of(EMPTY) is TradingState.ACTIVE
    assert admit(EMPTY, "x", POLICY, now_ms=T0) == (EMPTY, None)


@pytest.mark.parametrize(("kind", "reason"), STARTS.items(), ids=lambda v: v.value)
def test_each_listed_event_restricts_trading_at_once(kind, reason):
    record = after(EMPTY, event(kind))
    assert state_of(record) is RULES[reason].state
    assert reasons_of(record) == (reason,)
    assert denied(record, T0) is DenyReason(RULES[reason].state.value)


@pytest.mark.row("S2-22")
@pytest.mark.parametrize("kind", ["AuthenticationError", "PermissionDenied", "AccountSuspended"])
def test_a_refused_key_halts_until_somebody_looks(kind):
    record = after(EMPTY, event(EventType.ORDER_REJECTED, error=ErrorFacts(kind=kind)))
    assert state_of(record) is TradingState.HALTED
    assert denied(record, T0 + 10**12) is DenyReason.HALTED
    assert state_of(reset(record, [TripReason.AUTHENTICATION])) is TradingState.ACTIVE


def test_the_worst_reason_decides_and_the_end_of_one_does_not_end_another():
    record = after(EMPTY, event(EventType.STUCK_EXIT, "p1"), event(EventType.EXCESS_EXPOSURE, "i1"))
    assert state_of(record) is TradingState.HALTED
    record = reset(record, [TripReason.EXCESS_EXPOSURE])
    assert state_of(record) is TradingState.REDUCE_ONLY
    assert reasons_of(record) == (TripReason.STUCK_EXIT,)


@pytest.mark.row("S0-16")
def test_a_breaker_stays_open_while_its_cause_lasts_and_cools_down_from_its_end():
    record = after(EMPTY, event(EventType.STUCK_EXIT, "p1"))
    much_later = T0 + 10 * COOL
    assert denied(record, much_later) is DenyReason.REDUCE_ONLY
    record = after(record, event(EventType.EXIT_CLEARED, "p1"), now_ms=much_later)
    assert denied(record, much_later + COOL - 1) is DenyReason.REDUCE_ONLY
    assert denied(record, much_later + COOL) is None


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_in_which_reasons_came_does_not_matter(order):
    events = [event(EventType.STUCK_EXIT, "p1"), event(EventType.EXCESS_EXPOSURE, "i1"), event(EventType.EXIT_MISMATCH)]
    record = after(EMPTY, *events[::order])
    assert state_of(record) is TradingState.HALTED
    assert denied(record, T0) is DenyReason.HALTED


def test_another_subject_ends_nothing():
    record = after(EMPTY, event(EventType.STUCK_EXIT, "p1"))
    assert after(record, event(EventType.EXIT_CLEARED, "p2")) is record


def test_half_open_lets_one_entry_through_and_no_other():
    record = trip(EMPTY, TripReason.REJECT_RATIO, POLICY, now_ms=T0)
    now_ms = T0 + COOL
    record, denial = admit(record, "first", POLICY, now_ms=now_ms)
    assert denial is None
    assert denied(record, now_ms, "second") is DenyReason.PROBING
    assert denied(record, now_ms, "first") is None, "it is asked again right before a resend"
    assert denied(record, now_ms + 59_999, "second") is DenyReason.PROBING
    assert denied(record, now_ms + 60_000, "second") is None, "a probe without an answer gives its place away"


@pytest.mark.parametrize("kind", [EventType.ORDER_ACKNOWLEDGED, EventType.ORDER_FILL, EventType.ORDER_ADOPTED])
def test_a_probe_that_the_venue_took_closes_the_breaker(kind):
    record = trip(EMPTY, TripReason.REJECT_RATIO, POLICY, now_ms=T0)
    record, _ = admit(record, "probe", POLICY, now_ms=T0 + COOL)
    record = after(record, event(kind, "another"), now_ms=T0 + COOL)
    assert state_of(record) is TradingState.REDUCE_ONLY
    record = after(record, event(kind, "probe"), now_ms=T0 + COOL)
    assert state_of(record) is TradingState.ACTIVE


@pytest.mark.row("S0-16")
@pytest.mark.parametrize("kind", [EventType.ORDER_REJECTED, EventType.ORDER_IN_DOUBT, EventType.INTENT_FAILED])
def test_a_probe_that_failed_opens_the_breaker_for_twice_as_long(kind):
    record = trip(EMPTY, TripReason.REJECT_RATIO, POLICY, now_ms=T0)
    record, _ = admit(record, "probe", POLICY, now_ms=T0 + COOL)
    record = after(record, event(kind, "probe"), now_ms=T0 + COOL)
    assert denied(record, T0 + COOL + 2 * COOL - 1) is DenyReason.REDUCE_ONLY
    assert denied(record, T0 + COOL + 2 * COOL) is None


@pytest.mark.row("S0-16")
def test_a_breaker_that_trips_again_and_again_halts_until_somebody_looks():
    record, now_ms = EMPTY, T0
    for times in range(1, POLICY.escalate_after + 2):
        record = trip(record, TripReason.REJECT_RATIO, POLICY, now_ms=now_ms)
        breaker = record.breaker(TripReason.REJECT_RATIO)
        assert breaker.times == times
        now_ms = breaker.until_ms
    assert state_of(record) is TradingState.HALTED
    assert denied(record, now_ms + 10**12) is DenyReason.HALTED


def on_trial(record, kind, policy=POLICY):
    """The record after the probe that may come next, and what became of it."""
    now_ms = max(breaker.until_ms for breaker in record.breakers)
    record, denial = admit(record, "probe", policy, now_ms=now_ms)
    assert denial is None
    return after(record, event(kind, "probe"), now_ms=now_ms, policy=policy)


@pytest.mark.parametrize("kind", [EventType.ORDER_REJECTED, EventType.ORDER_IN_DOUBT, EventType.INTENT_FAILED])
def test_probes_that_fail_for_another_reason_never_halt_and_one_that_succeeds_brings_trading_back(kind):
    """A venue that loses answers for a whole day is no sixth missing stop: trading comes back with it, by itself."""
    record = after(EMPTY, event(EventType.POSITION_UNPROTECTED, "p"), event(EventType.STOP_PLACED, "p"))
    waits_ms = []
    for _ in range(30):
        before_ms = max(breaker.until_ms for breaker in record.breakers)
        record = on_trial(record, kind)
        assert state_of(record) is TradingState.REDUCE_ONLY
        waits_ms.append(record.breaker(TripReason.UNPROTECTED).until_ms - before_ms)
    assert waits_ms[:4] == [2 * COOL, 4 * COOL, 8 * COOL, 16 * COOL]
    assert waits_ms == sorted(waits_ms)
    assert waits_ms[-1] == POLICY.cool_down_max_s * 1_000
    assert state_of(on_trial(record, EventType.ORDER_ACKNOWLEDGED)) is TradingState.ACTIVE


@pytest.mark.parametrize(
    ("start", "kind", "reason"),
    [
        (None, EventType.ORDER_REJECTED, TripReason.REJECT_RATIO),
        (EventType.INTENT_UNRESOLVED, EventType.INTENT_UNRESOLVED, TripReason.UNRESOLVED),
    ],
)
def test_a_probe_that_fails_for_the_very_reason_counts_for_it_and_halts_in_the_end(start, kind, reason):
    first = trip(EMPTY, reason, POLICY, now_ms=T0) if start is None else after(EMPTY, event(start, "old"))
    record = after(first, event(EventType.INTENT_FILLED, "old"))
    for _ in range(POLICY.escalate_after):
        assert state_of(record) is TradingState.REDUCE_ONLY
        record = on_trial(record, kind)
        record = after(record, event(EventType.INTENT_FILLED, "probe"), now_ms=T0)  # its fate is known at last
    assert state_of(record) is TradingState.HALTED
    assert reasons_of(record) == (reason,)


def test_what_happens_again_and_again_halts_although_every_probe_between_succeeds():
    record, now_ms = EMPTY, T0
    for number in range(POLICY.escalate_after + 1):
        assert state_of(record) is TradingState.ACTIVE
        for kind in EventType.POSITION_UNPROTECTED, EventType.STOP_PLACED:
            record = after(record, event(kind, f"p{number}"), now_ms=now_ms)
        now_ms = record.breaker(TripReason.UNPROTECTED).until_ms
        if state_of(record) is TradingState.REDUCE_ONLY:
            record = on_trial(record, EventType.ORDER_ACKNOWLEDGED)
    assert state_of(record) is TradingState.HALTED


def test_a_trip_after_failed_probes_waits_no_shorter_than_they_did():
    record = after(EMPTY, event(EventType.STUCK_EXIT, "p"), event(EventType.EXIT_CLEARED, "p"))
    for _ in range(3):
        record = on_trial(record, EventType.ORDER_IN_DOUBT)
    known = record.breaker(TripReason.STUCK_EXIT)
    again = trip(record, TripReason.STUCK_EXIT, POLICY, now_ms=known.until_ms).breaker(TripReason.STUCK_EXIT)
    assert (again.times, again.probes) == (2, 3)
    assert again.until_ms - known.until_ms == 16 * COOL


def test_a_storm_of_one_failure_is_one_trip():
    record = trip(EMPTY, TripReason.REJECT_RATIO, POLICY, now_ms=T0)
    assert trip(record, TripReason.REJECT_RATIO, POLICY, now_ms=T0 + 1) is record


def test_after_a_calm_hour_a_breaker_starts_from_the_first_time():
    record = probed(trip(EMPTY, TripReason.REJECT_RATIO, POLICY, now_ms=T0), POLICY, good=True, now_ms=T0 + COOL)
    hour = 3_600_000
    soon = trip(record, TripReason.REJECT_RATIO, POLICY, now_ms=T0 + COOL + hour - 1)
    late = trip(record, TripReason.REJECT_RATIO, POLICY, now_ms=T0 + COOL + hour)
    assert soon.breaker(TripReason.REJECT_RATIO).times == 2
    assert late.breaker(TripReason.REJECT_RATIO).times == 1
    assert tidied(record, POLICY, now_ms=T0 + COOL + hour).breakers == ()
    assert tidied(record, POLICY, now_ms=T0 + COOL + hour - 1) is record


def test_too_many_rejects_trip_only_with_enough_answers():
    """Nine of nine rejected say less than five of ten."""
    nine = after(EMPTY, *[event(EventType.ORDER_REJECTED, str(n)) for n in range(9)])
    assert state_of(nine) is TradingState.ACTIVE
    good = [event(EventType.ORDER_ACKNOWLEDGED, f"g{n}") for n in range(5)]
    bad = [event(EventType.ORDER_REJECTED, f"b{n}") for n in range(5)]
    assert state_of(after(EMPTY, *good, *bad[:4])) is TradingState.ACTIVE
    assert reasons_of(after(EMPTY, *good, *bad)) == (TripReason.REJECT_RATIO,)
    assert state_of(after(EMPTY, *good, event(EventType.ORDER_ACKNOWLEDGED), *bad)) is TradingState.ACTIVE


def test_after_a_good_probe_old_rejects_say_nothing_any_more():
    record, answers = EMPTY, WINDOW
    for n in range(10):
        record, answers = observed(record, answers, event(EventType.ORDER_REJECTED, str(n)), POLICY, now_ms=T0)
    record, _ = admit(record, "probe", POLICY, now_ms=T0 + COOL)
    for kind, subject in [(EventType.ORDER_ACKNOWLEDGED, "probe"), (EventType.ORDER_REJECTED, "next")]:
        record, answers = observed(record, answers, event(kind, subject), POLICY, now_ms=T0 + COOL)
    assert state_of(record) is TradingState.ACTIVE


def test_the_number_of_unresolved_intents_that_restricts_trading_is_a_policy():
    policy = SafetyPolicy(unresolved_max=3)
    record = after(EMPTY, *[event(EventType.INTENT_UNRESOLVED, s) for s in "ab"], policy=policy)
    assert state_of(record) is TradingState.ACTIVE
    record = after(record, event(EventType.INTENT_UNRESOLVED, "b"), policy=policy)
    assert state_of(record) is TradingState.ACTIVE, "the same one counts once"
    record = after(record, event(EventType.INTENT_UNRESOLVED, "c"), policy=policy)
    assert state_of(record) is TradingState.REDUCE_ONLY
    breaker = record.breaker(TripReason.UNRESOLVED)
    assert phase_of(record, breaker, policy, now_ms=T0 + 10 * COOL) is BreakerPhase.OPEN
    record = after(record, event(EventType.ORDER_ADOPTED, "a"), policy=policy, now_ms=T0 + 10 * COOL)
    breaker = record.breaker(TripReason.UNRESOLVED)
    assert phase_of(record, breaker, policy, now_ms=T0 + 11 * COOL) is BreakerPhase.HALF_OPEN


def test_a_reconciliation_without_differences_ends_the_mismatches_of_its_account():
    def said(kind, subject, **details):
        return event(kind, subject, details=Params.of(details))

    found = (EventType.EXIT_MISMATCH, EventType.DIFFERENCE_FOUND)
    record = after(EMPTY, *[said(kind, kind.value, account="a") for kind in found])
    for details in ({}, {"differences": 1}):
        assert after(record, said(EventType.RECONCILED, "a", **details)) is record
    assert after(record, said(EventType.RECONCILED, "b", differences=0)) is record
    done = after(record, said(EventType.RECONCILED, "a", differences=0))
    assert denied(done, T0 + COOL) is None


@pytest.mark.row("S3-38")
def test_a_component_that_is_down_restricts_trading_until_it_is_healthy():
    def health(state, name="signals"):
        return event(EventType.HEALTH_CHANGED, name, details=Params.of({"after": state}))

    assert after(EMPTY, health("degraded")) is EMPTY
    record = after(EMPTY, health("down"))
    assert reasons_of(record) == (TripReason.HEALTH,)
    assert denied(after(record, health("degraded")), T0 + COOL) is DenyReason.REDUCE_ONLY
    assert denied(after(record, health("healthy")), T0 + COOL) is None
    only = SafetyPolicy(critical_components=frozenset({"prices"}))
    assert after(EMPTY, health("down"), policy=only) is EMPTY


def test_by_hand_both_states_can_be_set_and_only_a_hand_takes_them_back():
    halted = set_by_hand(EMPTY, TradingState.HALTED, "strange fills", POLICY, now_ms=T0)
    assert state_of(halted) is TradingState.HALTED
    assert denied(halted, T0 + 10**12) is DenyReason.HALTED
    eased = set_by_hand(halted, TradingState.REDUCE_ONLY, "looks fine", POLICY, now_ms=T0)
    assert state_of(eased) is TradingState.REDUCE_ONLY
    assert denied(eased, T0 + 10**12) is DenyReason.REDUCE_ONLY
    assert state_of(set_by_hand(eased, TradingState.ACTIVE, "", POLICY, now_ms=T0)) is TradingState.ACTIVE


def test_active_by_hand_does_not_undo_what_tripped_by_itself():
    record = after(EMPTY, event(EventType.STUCK_EXIT))
    assert state_of(set_by_hand(record, TradingState.ACTIVE, "", POLICY, now_ms=T0)) is TradingState.REDUCE_ONLY
    assert state_of(reset(record, None)) is TradingState.ACTIVE


def test_more_causes_than_can_be_followed_halt_instead_of_being_forgotten():
    record = EMPTY
    for n in range(CAUSES_MAX + 1):
        record = add_cause(record, TripReason.STUCK_EXIT, str(n), POLICY, now_ms=T0)
    assert len(record.causes) == CAUSES_MAX
    assert state_of(record) is TradingState.HALTED


@pytest.mark.row("X-07")
def test_each_trip_and_each_change_of_state_is_told_once():
    record = trip(EMPTY, TripReason.STUCK_EXIT, POLICY, now_ms=T0, note="p1")
    told = narrate(EMPTY, record, subject="s", by="stuck_exit", now_ms=T0)
    assert [e.type for e in told] == [EventType.BREAKER_TRIPPED, EventType.TRADING_STATE_CHANGED]
    assert told[0].details.thaw() == {
        "reason": "stuck_exit",
        "state": "reduce_only",
        "times": 1,
        "until_ms": T0 + COOL,
        "why": "p1",
    }
    assert told[1].details.thaw() == {
        "before": "active",
        "after": "reduce_only",
        "reasons": ["stuck_exit"],
        "by": "stuck_exit",
    }
    assert narrate(record, record, subject="s", by="", now_ms=T0) == ()
    longer = remove_cause(record, TripReason.STUCK_EXIT, "p1", POLICY, now_ms=T0)
    assert narrate(record, longer, subject="s", by="", now_ms=T0) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"unresolved_max": 0},
        {"reject_ratio": 0},
        {"reject_ratio": float("nan")},
        {"cool_down_s": 0},
        {"cool_down_factor": 0.5},
        {"escalate_after": 0},
    ],
    ids=str,
)
def test_a_policy_that_could_never_trip_or_never_end_is_refused(wrong):
    with pytest.raises(InvalidInput):
        SafetyPolicy(**wrong)


_EVENTS = st.tuples(
    st.sampled_from([*STARTS, *ENDS, EventType.ORDER_ACKNOWLEDGED]), st.sampled_from("abc"), st.integers(0, 200_000)
)


_DOUBTS = st.tuples(st.just(EventType.ORDER_IN_DOUBT), st.sampled_from("abc"), st.integers(0, 200_000))


@pytest.mark.guarantee(12)
@settings(max_examples=1000, deadline=None)
@given(st.lists(_EVENTS, max_size=30), st.integers(0, 200_000))
def test_g12_no_entry_passes_while_a_cause_lasts_or_a_hand_is_needed(history, wait_ms):
    """Whatever happened in whatever order. The causes are counted here, apart from the code under test."""
    record, answers, now_ms = EMPTY, WINDOW, T0
    lasting: set[tuple[TripReason, str]] = set()
    for kind, subject, pause_ms in history:
        now_ms += pause_ms
        record, answers = observed(record, answers, event(kind, subject), POLICY, now_ms=now_ms)
        lasting -= {(reason, subject) for reason in ENDS.get(kind, ())}
        lasting |= {(STARTS[kind], subject)} if kind in STARTS else set()
    now_ms += wait_ms
    after_, denial = admit(record, "new", POLICY, now_ms=now_ms)
    if lasting:
        assert denial is not None
        assert state_of(record) is not TradingState.ACTIVE
    if state_of(record) is TradingState.HALTED:
        assert denial is not None
        assert denial.reason is DenyReason.HALTED
    if denial is None and state_of(record) is not TradingState.ACTIVE:
        assert admit(after_, "other", POLICY, now_ms=now_ms)[1].reason is DenyReason.PROBING


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.tuples(_EVENTS | _DOUBTS, st.booleans()), max_size=60), st.integers(1, 3))
def test_trading_halts_only_for_what_happened_too_often_by_itself(history, escalate_after):
    """Whatever probes came to in between. What each reason was given by is counted here, apart from the code."""
    policy = attrs.evolve(POLICY, escalate_after=escalate_after, calm_s=10**9)
    record, answers, now_ms, given_ = EMPTY, WINDOW, T0, dict.fromkeys(TripReason, 0)
    for (kind, subject, pause_ms), is_entry in history:
        now_ms += pause_ms
        if is_entry:
            record, _ = admit(record, subject, policy, now_ms=now_ms)
        record, answers = observed(record, answers, event(kind, subject), policy, now_ms=now_ms)
        if kind in STARTS:
            given_[STARTS[kind]] += 1
        given_[TripReason.REJECT_RATIO] += kind is EventType.ORDER_REJECTED
    for breaker in record.breakers:
        assert breaker.times <= given_[breaker.reason]
        is_halt = breaker.state is TradingState.HALTED
        assert not is_halt or RULES[breaker.reason].by_hand or given_[breaker.reason] > escalate_after


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 400), st.floats(1, 100), st.floats(0.001, 10_000), st.floats(0.001, 100_000))
def test_the_cool_down_grows_and_stays_below_its_bound(times, factor, first_s, most_s):
    policy = attrs.evolve(POLICY, cool_down_factor=factor, cool_down_s=first_s, cool_down_max_s=most_s)
    now, after_ = policy.cool_down_ms(times), policy.cool_down_ms(times + 1)
    assert 0 <= now <= after_ <= round(most_s * 1000)
