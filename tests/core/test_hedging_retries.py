"""A plan without an end: passes become rarer, and end only where the venue answers and refuses."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.core.backoff import Backoff
from execsafe.core.hedging import (
    End,
    HedgeLeg,
    HedgePlan,
    HedgePolicy,
    HedgeRecord,
    LegExposure,
    LegTotals,
    Verdict,
    is_due,
    put_off,
)
from execsafe.errors import InvalidInput
from execsafe.model.order import Side

D = Decimal
T0 = 1_700_000_000_000
A, B = "ETH/USDT:USDT", "BTC/USDT:USDT"
POLICY = HedgePolicy()
PLAN = HedgePlan(legs=(HedgeLeg(symbol=A, side="buy", quantity=1), HedgeLeg(symbol=B, side="sell", quantity=1)))
REFUSED = End(verdict=Verdict.RESIDUAL, reason="refused", is_done=False)
UNREAD = End(verdict=Verdict.RESIDUAL, reason="not read", is_done=False, is_blind=True)
DOUBT = End(verdict=Verdict.UNKNOWN, reason="in doubt", is_done=False)


def record(filled="0.4", closed="0", in_doubt="0", **more):
    leg = LegExposure(
        symbol=A, side=Side.BUY, account="default", venue="default",
        filled=D(filled), closed=D(closed), in_doubt=D(in_doubt),
    )  # fmt: skip
    facts = {"key": "k", "plan": PLAN, "verdict": Verdict.RESIDUAL, "exposures": (leg,), **more}
    return HedgeRecord(**facts)


def totals(filled="0.4", closed="0", in_doubt="0"):
    return (LegTotals(filled=D(filled), closed=D(closed), in_doubt=D(in_doubt)),)


def passes(end, number, policy=POLICY):
    """The records of so many passes that change nothing, each made when it was due; and the pauses between them."""
    known, now_ms, after, pauses = HedgeRecord(key="k", plan=PLAN), T0, [], []
    for _ in range(number):
        known = put_off(known, record(verdict=end.verdict), end, policy, now_ms=now_ms)
        after.append(known)
        if known.is_handed_over:
            break
        pauses.append(known.retry_at_ms - now_ms)
        now_ms = known.retry_at_ms
    return after, pauses


@pytest.mark.guarantee(9)
def test_g9_passes_that_change_nothing_become_rarer_and_end_after_half_an_hour():
    after, pauses = passes(REFUSED, 100)
    assert pauses == [0, *(s * 1_000 for s in (5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300))]
    assert [one.is_handed_over for one in after] == [False] * 12 + [True]
    assert 1_500_000 <= sum(pauses) <= 1_900_000


@pytest.mark.guarantee(9)
@pytest.mark.parametrize("end", [DOUBT, UNREAD])
def test_g9_what_is_in_doubt_or_could_not_be_read_is_never_left(end):
    after, pauses = passes(end, 100)
    assert not any(one.is_handed_over for one in after)
    assert max(pauses) == 300_000


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("news", [{"filled": "0.5"}, {"closed": "0.1"}, {"in_doubt": "0.1"}])
def test_g11_new_evidence_makes_a_plan_due_at_once_and_its_next_pass_the_first(news):
    resting, handed = passes(REFUSED, 8)[0][-1], passes(REFUSED, 100)[0][-1]
    now_ms = resting.retry_at_ms - 1
    for known in resting, handed:
        assert not is_due(known, totals(), POLICY, now_ms=now_ms)
        assert is_due(known, totals(**news), POLICY, now_ms=now_ms)
        again = put_off(known, record(**news), REFUSED, POLICY, now_ms=now_ms)
        assert (again.passes, again.retry_at_ms, again.is_handed_over) == (1, now_ms, False)


def test_a_plan_that_a_crash_left_without_a_verdict_is_due():
    assert is_due(HedgeRecord(key="k", plan=PLAN), totals(), POLICY, now_ms=T0)


def test_a_clock_that_was_set_back_makes_no_plan_wait_longer_than_a_pause():
    resting = passes(REFUSED, 4)[0][-1]
    assert not is_due(resting, totals(), POLICY, now_ms=resting.retry_at_ms - 1)
    assert is_due(resting, totals(), POLICY, now_ms=resting.retry_at_ms)
    assert is_due(resting, totals(), POLICY, now_ms=resting.retry_at_ms - 3_600_000)


@given(
    st.builds(
        Backoff,
        base_s=st.floats(0.0, 100.0),
        factor=st.floats(1.0, 10.0),
        cap_s=st.floats(0.0, 1_000.0),
        jitter=st.just(0.0),
        max_attempts=st.integers(1, 30),
    ),
    st.sampled_from([REFUSED, UNREAD, DOUBT]),
)
def test_pauses_grow_stay_below_the_cap_and_the_number_of_passes_is_bounded(retries, end):
    after, pauses = passes(end, 40, HedgePolicy(retries=retries))
    assert pauses == sorted(pauses)
    assert max(pauses) <= retries.cap_s * 1_000
    assert after[-1].is_handed_over is (end is REFUSED)
    if end is REFUSED:
        assert len(after) == retries.max_attempts + 1
    assert all(is_due(attrs.evolve(one, retry_at_ms=None), totals(), POLICY, now_ms=T0) for one in after[:-1])


@pytest.mark.parametrize("retries", [None, 3, Backoff(max_attempts=None), Backoff(deadline_s=60.0)])
def test_a_policy_whose_retries_have_no_number_is_refused(retries):
    with pytest.raises(InvalidInput):
        HedgePolicy(retries=retries)
