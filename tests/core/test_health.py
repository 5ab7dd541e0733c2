"""Health and alerts: states follow from failures and silence; an alert is raised once and cleared once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.catalogue import Level
from execsafe.core.health import (
    DEFAULT_RULES,
    ENTRIES,
    ROLLBACKS,
    STOP_CREATION,
    STOPS_PLACED,
    Alert,
    CountRule,
    DurationRule,
    Finding,
    FollowRule,
    Health,
    HealthPolicy,
    RatioRule,
    Turn,
    Window,
    assessed,
    check_rules,
    failed,
    new_component,
    succeeded,
    turn,
    worst,
)
from execsafe.errors import InvalidInput
from execsafe.model.event import EventType

T0 = 1_700_000_000_000
POLICY = HealthPolicy()


# --- Components ---------------------------------------------------------------------------------------------


@pytest.mark.row("S3-38")
def test_failures_are_counted_from_the_first_and_one_success_ends_the_row():
    """Eleven failures in a row were once shown as "degraded, attempt 0"."""
    one = new_component("signals", now_ms=T0)
    states = []
    for n in range(11):
        one = failed(one, POLICY, error="ConnectionError", now_ms=T0 + n)
        states.append((one.consecutive_failures, one.health))
    assert states[0] == (1, Health.DEGRADED)
    assert states[3] == (4, Health.DEGRADED)
    assert states[4] == (5, Health.DOWN)
    assert states[10] == (11, Health.DOWN)
    assert (one.since_ms, one.not_healthy_since_ms) == (T0 + 4, T0)
    one = succeeded(one, POLICY, now_ms=T0 + 20)
    assert (one.health, one.consecutive_failures, one.not_healthy_since_ms) == (Health.HEALTHY, 0, None)
    assert one.failures == 11


@pytest.mark.row("S2-39")
def test_it_knows_the_age_of_the_last_event_the_lag_the_crashes_and_the_uptime():
    one = new_component("consumer", now_ms=T0)
    one = succeeded(one, POLICY, now_ms=T0 + 1_000, lag_ms=250)
    one = failed(one, POLICY, error="ValueError", now_ms=T0 + 2_000, is_crash=True)
    assert (one.lag_ms, one.crashes, one.error) == (250, 1, "ValueError")
    assert one.uptime_ms(T0 + 480_000) == 480_000
    assert one.age_ms(T0 + 5_000) == 4_000


@pytest.mark.row("S2-39", "D-17")
def test_silence_is_a_failure_where_something_should_be_heard():
    policy = HealthPolicy(silent_after_s=10)
    one = new_component("feed", now_ms=T0)
    assert assessed(one, policy, now_ms=T0 + 9_999).health is Health.HEALTHY
    assert assessed(one, policy, now_ms=T0 + 10_000).health is Health.DEGRADED
    assert assessed(one, policy, now_ms=T0 + 20_000).health is Health.DOWN
    assert assessed(one, POLICY, now_ms=T0 + 10**9) is one


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20_000)), max_size=30))
def test_the_state_is_a_function_of_the_last_row_of_failures(history):
    one, now_ms, row, since = new_component("c", now_ms=T0), T0, 0, None
    for is_good, pause in history:
        now_ms += pause
        row = 0 if is_good else row + 1
        since = None if is_good else now_ms if since is None else since
        one = succeeded(one, POLICY, now_ms=now_ms) if is_good else failed(one, POLICY, error="E", now_ms=now_ms)
        expected = Health.DOWN if row >= 5 else Health.DEGRADED if row else Health.HEALTHY
        assert (one.health, one.consecutive_failures, one.not_healthy_since_ms) == (expected, row, since)


def test_the_whole_is_as_healthy_as_its_worst_part():
    good = new_component("a", now_ms=T0)
    bad = failed(new_component("b", now_ms=T0), POLICY, error="E", now_ms=T0)
    assert worst({}) is Health.HEALTHY
    assert worst({"a": good, "b": bad}) is Health.DEGRADED


# --- Windows ------------------------------------------------------------------------------------------------


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30_000), st.booleans()), max_size=60), st.integers(0, 200_000))
def test_a_window_counts_its_span_and_is_bounded(outcomes, wait_ms):
    """Nothing younger than the span is missing, nothing older than it and a bucket is counted."""
    span_ms, window, now_ms, at = 100_000, Window(span_ms=100_000), T0, []
    for pause, is_good in outcomes:
        now_ms += pause
        window = window.add(now_ms, good=int(is_good), bad=int(not is_good))
        at.append((now_ms, is_good))
    now_ms += wait_ms
    for index, wanted in enumerate((True, False)):
        counted = window.counts(now_ms)[index]
        least = sum(g is wanted and now_ms - t < span_ms for t, g in at)
        most = sum(g is wanted and now_ms - t < span_ms + span_ms // 20 for t, g in at)
        assert least <= counted <= most
    assert len(window.buckets) <= 22


# --- Rules --------------------------------------------------------------------------------------------------


@pytest.mark.row("S3-39")
def test_half_an_hour_is_worth_a_look_and_an_hour_is_worth_an_investigation():
    rule = DurationRule(name="signals", component="signals")
    one = failed(new_component("signals", now_ms=T0), POLICY, error="E", now_ms=T0)
    levels = [rule.judge(one, now_ms=T0 + s * 1000).level for s in (0, 1_799, 1_800, 3_599, 3_600)]
    assert levels == [None, None, Level.WARNING, Level.WARNING, Level.ERROR]
    assert rule.judge(None, now_ms=T0).level is None


@pytest.mark.row("S3-40")
@pytest.mark.parametrize(
    ("good", "bad", "level"),
    [
        (0, 9, None),  # below the minimum sample size
        (0, 10, Level.CRITICAL),
        (4, 6, Level.CRITICAL),
        (5, 5, Level.WARNING),  # the band from 50 to 80 %
        (7, 3, Level.WARNING),
        (8, 2, None),
        (10, 0, None),
    ],
)
def test_success_below_half_is_critical_and_below_the_target_a_warning_with_enough_samples(good, bad, level):
    finding = ENTRIES.judge(Window(span_ms=3_600_000).add(T0, good=good, bad=bad), now_ms=T0)
    assert finding.level is level
    assert finding.samples == good + bad


@pytest.mark.row("S3-40")
def test_a_stop_that_could_not_be_placed_is_critical_at_once_and_forgotten_after_the_window():
    window = Window(span_ms=3_600_000).add(T0, bad=1)
    assert STOP_CREATION.judge(window, now_ms=T0).level is Level.CRITICAL
    assert STOP_CREATION.judge(window, now_ms=T0 + 4_000_000).level is None


@pytest.mark.row("S3-41", "S1-16")
def test_the_targets_are_no_rollbacks_and_every_stop():
    assert {STOP_CREATION, ROLLBACKS, STOPS_PLACED, ENTRIES} == set(DEFAULT_RULES)
    assert ROLLBACKS.limit == 1
    assert STOPS_PLACED.target == 1.0
    window = Window(span_ms=86_400_000).add(T0, good=999)
    assert STOPS_PLACED.judge(window, now_ms=T0).level is None
    assert STOPS_PLACED.judge(window.add(T0, bad=1), now_ms=T0).level is Level.CRITICAL


# --- Alerts -------------------------------------------------------------------------------------------------


@pytest.mark.row("S0-16")
def test_an_alert_is_told_when_it_rises_gets_worse_and_ends_and_not_in_between():
    levels = [None, Level.WARNING, Level.WARNING, Level.CRITICAL, Level.CRITICAL, Level.WARNING, None, None]
    alert, told = Alert(rule="r"), []
    for n, level in enumerate(levels):
        alert, change = turn(alert, Finding(level=level), now_ms=T0 + n)
        told.append(change)
    assert told == [None, Turn.RAISED, None, Turn.RAISED, None, None, Turn.CLEARED, None]


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from([None, Level.WARNING, Level.ERROR, Level.CRITICAL]), max_size=40))
def test_raised_and_cleared_alternate_as_the_state_does(levels):
    alert, is_up = Alert(rule="r"), False
    for n, level in enumerate(levels):
        alert, change = turn(alert, Finding(level=level), now_ms=T0 + n)
        assert change is not Turn.CLEARED or is_up
        assert change is Turn.RAISED or is_up or level is None
        is_up = level is not None
        assert (alert.level is not None) is is_up
        assert level is None or alert.level >= level, "as loud as it ever was since it was raised"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: HealthPolicy(degraded_after=6, down_after=5),
        lambda: HealthPolicy(silent_after_s=0),
        lambda: DurationRule(name="d", component="c", warn_after_s=-1),
        lambda: RatioRule(name="r", good=frozenset(), bad=frozenset(), critical_below=0.9, target=0.8),
        lambda: RatioRule(name="r", good=frozenset({EventType.STOP_PLACED}), bad=frozenset({EventType.STOP_PLACED})),
        lambda: RatioRule(name="r", good=frozenset(), bad=frozenset(), samples_min=0),
        lambda: CountRule(name="c", events=frozenset(), limit=0),
        lambda: FollowRule(name="f", after=EventType.STOP_PLACED, expects=EventType.STOP_MOVED, target=1.1),
        lambda: check_rules([STOP_CREATION, STOP_CREATION]),
    ],
)
def test_a_rule_that_could_never_hold_or_never_end_is_refused(wrong):
    with pytest.raises(InvalidInput):
        wrong()
