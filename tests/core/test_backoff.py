"""Back-off: how long, how often, and when to give up."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.core.backoff import Backoff
from execsafe.errors import InvalidInput

seconds = st.floats(min_value=0, max_value=1_000, allow_nan=False)
policies = st.builds(
    Backoff,
    base_s=seconds,
    factor=st.floats(min_value=1, max_value=10),
    cap_s=seconds,
    jitter=st.floats(min_value=0, max_value=1),
    max_attempts=st.none() | st.integers(min_value=1, max_value=50),
    deadline_s=st.none() | seconds,
)
units = st.floats(min_value=0, max_value=1)
attempts = st.integers(min_value=1, max_value=60)


def test_the_default_policy_makes_four_attempts():
    """max_attempts counts attempts: one and three repetitions, no pause after the last."""
    policy = Backoff(jitter=0.0)

    assert [policy.delay_ms(n, 0.5) for n in (1, 2, 3, 4)] == [400, 800, 1_600, None]


def test_one_attempt_means_no_repetition():
    assert Backoff(max_attempts=1).delay_ms(1, 0.0) is None


def test_without_a_limit_the_pause_stays_at_the_cap_for_ever():
    """Growth beyond what a float can hold is still the cap."""
    policy = Backoff(max_attempts=None, jitter=0.0, cap_s=30.0)

    assert policy.delay_ms(10_000, 0.0) == 30_000


def test_no_base_means_no_pause_however_often():
    assert Backoff(base_s=0.0, max_attempts=None).delay_ms(100_000, 0.0) == 0


@given(policy=policies, attempt=attempts)
def test_the_envelope_never_shrinks_and_never_exceeds_the_cap(policy: Backoff, attempt: int):
    assert policy.envelope_ms(attempt) <= policy.envelope_ms(attempt + 1) <= policy.cap_s * 1_000


@given(policy=policies, attempt=attempts, unit=units, elapsed_ms=st.integers(0, 2_000_000))
def test_no_attempt_begins_beyond_the_deadline(policy: Backoff, attempt: int, unit: float, elapsed_ms: int):
    delay_ms = policy.delay_ms(attempt, unit, elapsed_ms=elapsed_ms)

    if delay_ms is not None and policy.deadline_s is not None:
        assert elapsed_ms + delay_ms <= policy.deadline_s * 1_000


@given(policy=policies, attempt=attempts, unit=units, at_least_ms=st.integers(0, 2_000_000))
def test_the_other_side_is_never_asked_earlier_than_it_allowed(policy, attempt, unit, at_least_ms):
    delay_ms = policy.delay_ms(attempt, unit, at_least_ms=at_least_ms)

    assert delay_ms is None or delay_ms >= at_least_ms


def test_a_demand_beyond_the_deadline_ends_the_attempts_now():
    """Neither waiting in vain nor coming too early."""
    policy = Backoff(deadline_s=10.0)

    assert policy.delay_ms(1, 0.0, elapsed_ms=4_000, at_least_ms=6_000) == 6_000
    assert policy.delay_ms(1, 0.0, elapsed_ms=4_000, at_least_ms=6_001) is None


def test_a_pause_that_would_pass_the_deadline_is_cut_to_it():
    """The last moment is used rather than wasted."""
    policy = Backoff(base_s=8.0, jitter=0.0, deadline_s=10.0)

    assert policy.delay_ms(1, 0.0, elapsed_ms=9_000) == 1_000
    assert policy.delay_ms(1, 0.0, elapsed_ms=10_000) is None


@given(policy=policies, attempt=attempts, unit=units)
def test_chance_takes_at_most_the_share_that_is_left_to_it(policy: Backoff, attempt: int, unit: float):
    """Full jitter spreads over the whole pause; none makes it exact."""
    delay_ms = policy.delay_ms(attempt, unit)

    if delay_ms is not None and policy.deadline_s is None:
        envelope_ms = policy.envelope_ms(attempt)
        assert math.floor(envelope_ms * (1 - policy.jitter)) - 1 <= delay_ms <= envelope_ms


@given(policy=policies, failures=st.integers(1, 60), unit=units)
def test_never_more_attempts_than_allowed(policy: Backoff, failures: int, unit: float):
    made = 1
    while made < failures and policy.delay_ms(made, unit) is not None:
        made += 1

    assert policy.max_attempts is None or made <= policy.max_attempts


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_s": -1.0},
        {"base_s": math.nan},
        {"base_s": None},
        {"factor": 0.5},
        {"cap_s": math.inf},
        {"jitter": 1.5},
        {"jitter": True},
        {"max_attempts": 0},
        {"max_attempts": 2.5},
        {"deadline_s": -1.0},
    ],
)
def test_a_senseless_policy_is_refused(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        Backoff(**wrong)


@pytest.mark.parametrize(
    ("attempt", "unit", "times"),
    [(0, 0.5, {}), (1, -0.1, {}), (1, 1.1, {}), (1, math.nan, {}), (1, 0.5, {"elapsed_ms": -1})],
)
def test_a_senseless_question_is_refused(attempt, unit, times):
    with pytest.raises(InvalidInput):
        Backoff().delay_ms(attempt, unit, **times)
