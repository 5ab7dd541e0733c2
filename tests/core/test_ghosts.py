"""Verdicts on orders in doubt: silence is not absence, and an early look proves nothing."""

from __future__ import annotations

import itertools
from functools import partial

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from execsafe.core.ghosts import (
    Doubt,
    Sighting,
    Verdict,
    default_patience_s,
    doubt_of,
    is_absent_everywhere,
    judge,
    next_look_ms,
)
from execsafe.model.intent import Attempt, AttemptState
from execsafe.model.order import ZERO
from execsafe.model.venue import Expiry, LookUp, VenueProfile, View

PRESENT, ABSENT, UNREADABLE = Sighting.PRESENT, Sighting.ABSENT, Sighting.UNREADABLE
VIEWS = (View.CLIENT_ID, View.OPEN_ORDERS, View.CLOSED_ORDERS)
DEADLINE = 100_000
PROFILE = VenueProfile(
    expiry=Expiry.ABSOLUTE,
    expiry_window_s=5,
    clock_skew_s=1,
    read_lag_s=30,
    lookups=tuple(LookUp(view=v, method="m") for v in VIEWS),
)
PROOF = DEADLINE + 1_000 + 30_000


def attempt(**changes) -> Attempt:
    base = {"number": 1, "client_order_id": "c", "quantity": ZERO, "state": AttemptState.IN_DOUBT}
    return Attempt(**{**base, "deadline_ms": DEADLINE, **changes})


def doubt(profile: VenueProfile = PROFILE, **changes) -> Doubt:
    return doubt_of(attempt(**changes), profile, since_ms=90_000, patience_s=60)


def all_say(sighting: Sighting) -> dict[View, Sighting]:
    return dict.fromkeys(VIEWS, sighting)


@pytest.mark.guarantee(3)
def test_g3_absence_is_proven_at_deadline_plus_skew_plus_lag_and_not_a_millisecond_earlier():
    """The exact bound: one tick below it there is a history with two orders (see the protocol model)."""
    one_view = attrs.evolve(PROFILE, lookups=PROFILE.lookups[:1])
    one = doubt(one_view)
    seen = {View.CLIENT_ID: ABSENT}
    assert (one.proof_at_ms, one.confirm_after_ms) == (PROOF, 0)
    assert judge(one, one_view.views, seen, looked_at_ms=PROOF - 1) is Verdict.LOOK_AGAIN
    assert judge(one, one_view.views, seen, looked_at_ms=PROOF) is Verdict.ABSENT


@pytest.mark.guarantee(3)
def test_g3_where_several_views_are_read_a_second_look_a_read_lag_later_confirms_the_first():
    """An order that moves from one list to another can be missed once by both; to the millisecond."""
    assert (doubt().proof_at_ms, doubt().confirm_after_ms) == (PROOF, 30_000)
    say = partial(judge, doubt(), VIEWS, all_say(ABSENT))
    assert say(looked_at_ms=PROOF - 1) is Verdict.LOOK_AGAIN
    assert say(looked_at_ms=PROOF) is Verdict.LOOK_AGAIN
    ended = PROOF + 7
    assert say(looked_at_ms=ended + 29_999, absent_since_ms=ended) is Verdict.LOOK_AGAIN
    assert say(looked_at_ms=ended + 30_000, absent_since_ms=ended) is Verdict.ABSENT
    assert not is_absent_everywhere(doubt(), VIEWS, all_say(ABSENT), looked_at_ms=PROOF - 1)
    assert is_absent_everywhere(doubt(), VIEWS, all_say(ABSENT), looked_at_ms=PROOF)


@pytest.mark.guarantee(3, 18)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("sighting", [UNREADABLE, None], ids=["unreadable", "not looked at"])
def test_g18_a_view_that_was_not_read_never_counts_as_absence(view, sighting):
    """FI-40: a failed read is not an empty read, however many others were empty and however late it is."""
    seen = all_say(ABSENT)
    if sighting is None:
        del seen[view]
    else:
        seen[view] = sighting
    assert judge(doubt(), VIEWS, seen, looked_at_ms=PROOF, absent_since_ms=0) is Verdict.LOOK_AGAIN
    assert judge(doubt(), VIEWS, seen, looked_at_ms=10 * PROOF, absent_since_ms=0) is Verdict.UNRESOLVED


@pytest.mark.guarantee(3)
def test_g3_a_venue_without_views_never_proves_absence():
    """Nothing seen in no place is not absence."""
    for seen in ({}, all_say(ABSENT)):
        assert judge(doubt(), (), seen, looked_at_ms=PROOF) is Verdict.LOOK_AGAIN
        assert judge(doubt(), (), seen, looked_at_ms=10 * PROOF) is Verdict.UNRESOLVED


NEVER = {
    "no expiry at this venue": doubt(VenueProfile(expiry=Expiry.NONE)),
    "no expiry, though a deadline was journalled": doubt(VenueProfile(expiry=Expiry.NONE), deadline_ms=1),
    "no deadline known": doubt(deadline_ms=None),
    "the venue said that it exists, and shows no orders that rest": doubt(
        attrs.evolve(PROFILE, lookups=PROFILE.lookups[2:]), exists=True
    ),
}


@pytest.mark.guarantee(3)
@pytest.mark.parametrize("name", NEVER)
def test_g3_without_a_bound_absence_is_never_proven_whatever_the_patience(name):
    """Two Generals: any finite wait has a counter-example, so it is escalated instead."""
    one = NEVER[name]
    assert one.proof_at_ms is None
    say = partial(judge, one, VIEWS, all_say(ABSENT), absent_since_ms=0)
    assert say(looked_at_ms=one.patience_ends_ms - 1) is Verdict.LOOK_AGAIN
    assert say(looked_at_ms=one.patience_ends_ms) is Verdict.UNRESOLVED
    assert say(looked_at_ms=10**15) is Verdict.UNRESOLVED


@pytest.mark.guarantee(3, 4)
def test_g4_what_the_venue_says_exists_and_two_looks_do_not_find_has_ended_and_was_never_absent():
    """Whatever rests is shown. To the millisecond, counted from when this process heard of it, or the deadline."""
    one = doubt(exists=True)
    assert (one.proof_at_ms, one.confirm_after_ms) == (PROOF, 31_000)
    assert doubt(exists=True, deadline_ms=None).proof_at_ms == 90_000 + 31_000
    say = partial(judge, one, VIEWS, all_say(ABSENT))
    assert say(looked_at_ms=PROOF - 1) is Verdict.LOOK_AGAIN
    assert say(looked_at_ms=PROOF) is Verdict.LOOK_AGAIN
    assert say(looked_at_ms=PROOF + 30_999, absent_since_ms=PROOF) is Verdict.LOOK_AGAIN
    assert say(looked_at_ms=PROOF + 31_000, absent_since_ms=PROOF) is Verdict.ENDED


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("view", list(View))
@pytest.mark.parametrize("others", list(Sighting))
def test_g11_one_sighting_is_enough_wherever_and_whenever(view, others):
    """FI-35: positive evidence from any view wins over emptier ones, also from one that was not declared."""
    seen = {**all_say(others), view: PRESENT}
    for at in (0, PROOF, 10 * PROOF):
        assert judge(doubt(), VIEWS, seen, looked_at_ms=at) is Verdict.FOUND


_ODDITIES = st.dictionaries(st.sampled_from(list(View)), st.sampled_from([*Sighting, None]), max_size=2)


@pytest.mark.guarantee(3)
@given(
    strategies.profiles,
    _ODDITIES,
    st.sampled_from([None, *range(0, 100_000, 9_000)]),
    st.sampled_from([False, False, True]),
    st.integers(0, 200_000),
    st.sampled_from([-1, 0, 1, -60_000, 60_000]),
    st.sampled_from([0, 10, 100]),
    st.sampled_from([None, 0, 1, -1, 60_000]),
)
def test_g3_absent_is_said_only_when_every_rule_holds(  # noqa: PLR0917 - drawn, not called
    profile, oddities, deadline, exists, since, offset, patience, gap
):
    """Over all sightings, venues and instants: the verdict follows the two rules and nothing else."""
    said = {**dict.fromkeys(profile.views, ABSENT), **oddities}
    seen = {view: sighting for view, sighting in said.items() if sighting is not None}
    one = doubt_of(attempt(deadline_ms=deadline, exists=exists), profile, since_ms=since, patience_s=patience)
    margin = round((profile.clock_skew_s + profile.read_lag_s) * 1000)
    at = max(0, (deadline or 0) + margin + offset)
    orders = [view for view in profile.views if view is not View.TRADES]
    if exists:
        can_be_proven = not {View.CLIENT_ID, View.OPEN_ORDERS}.isdisjoint(orders)
        declared, starts, lag = orders, max(since, deadline or 0), margin
        needs_two = margin > 0
    else:
        can_be_proven = profile.expiry is not Expiry.NONE and deadline is not None and len(profile.views) > 0
        declared, starts, lag = profile.views, deadline or 0, round(profile.read_lag_s * 1000)
        needs_two = len(profile.views) > 1 and lag > 0
    is_proof = can_be_proven and at >= starts + margin and all(seen.get(view) is ABSENT for view in declared)
    before = None if gap is None else at - lag - gap
    is_confirmed = not needs_two or (gap is not None and gap >= 0)
    verdict = judge(one, profile.views, seen, looked_at_ms=at, absent_since_ms=before)
    if PRESENT in seen.values():
        assert verdict is Verdict.FOUND
    elif is_proof:  # half a proof is brought to its end, whatever the patience
        proven = Verdict.ENDED if exists else Verdict.ABSENT
        assert verdict is (proven if is_confirmed else Verdict.LOOK_AGAIN)
    else:
        assert verdict is (Verdict.UNRESOLVED if at >= since + patience * 1000 else Verdict.LOOK_AGAIN)


@pytest.mark.guarantee(3)
@given(
    st.integers(0, 10**13),
    st.integers(0, 60_000),
    st.floats(0.1, 400_000),
    st.floats(0, 60),
    st.integers(-200_000, 10**9),
    st.one_of(st.none(), st.integers(0, 10**9)),
)
def test_g3_a_look_after_the_views_have_forgotten_proves_nothing(  # noqa: PLR0917 - drawn, not called
    prepared_at_ms, window_ms, history_s, lag_s, looked_after_ms, absent_since_after_ms
):
    """Absent is said only of a look within the venue's memory, less clock skew and lag; before, all is as ever."""
    mindful = attrs.evolve(PROFILE, history_s=history_s, read_lag_s=lag_s)
    forgetless = attrs.evolve(mindful, history_s=None)
    one = attempt(deadline_ms=prepared_at_ms + window_ms, prepared_at_ms=prepared_at_ms)
    at = prepared_at_ms + looked_after_ms
    before = None if absent_since_after_ms is None else prepared_at_ms + absent_since_after_ms

    def verdict(profile: VenueProfile) -> Verdict:
        watched = doubt_of(one, profile, since_ms=prepared_at_ms, patience_s=60)
        return judge(watched, VIEWS, all_say(ABSENT), looked_at_ms=at, absent_since_ms=before)

    margin_ms = round((mindful.clock_skew_s + lag_s) * 1000)
    if looked_after_ms >= round(history_s * 1000) - margin_ms:
        assert verdict(mindful) is (Verdict.UNRESOLVED if looked_after_ms >= 60_000 else Verdict.LOOK_AGAIN)
    else:
        assert verdict(mindful) is verdict(forgetless)


@pytest.mark.guarantee(3)
def test_g3_every_combination_of_sightings_over_the_declared_views():
    """All 64 of them, at the proof instant: only "absent" in every view proves it."""
    for states in itertools.product([*Sighting, None], repeat=3):
        seen = {view: s for view, s in zip(VIEWS, states, strict=True) if s is not None}
        verdict = judge(doubt(), VIEWS, seen, looked_at_ms=PROOF + 30_000, absent_since_ms=PROOF)
        expected = Verdict.ABSENT if set(states) == {ABSENT} else Verdict.UNRESOLVED
        assert verdict is (Verdict.FOUND if PRESENT in states else expected)


# --- When to look again -------------------------------------------------------------------------------------


def test_the_next_look_falls_exactly_on_the_instants_at_which_a_verdict_becomes_possible():
    """A proof is not waited for longer than needed, nor missed by a look a moment too early."""
    one = Doubt(proof_at_ms=10_000, patience_ends_ms=20_000)
    at, looks = 8_500, []
    while at < 21_000:
        looks.append(at)
        at = next_look_ms(one, now_ms=at, interval_ms=1_000)
    assert looks[:4] == [8_500, 9_500, 10_000, 11_000]
    assert looks[-2:] == [19_000, 20_000]


_INSTANT = st.integers(0, 10_000)


@given(st.none() | _INSTANT, _INSTANT, _INSTANT, st.integers(1, 3_000), st.none() | _INSTANT, st.integers(0, 3_000))
def test_the_next_look_is_later_within_the_interval_and_never_skips_an_instant(  # noqa: PLR0917
    proof, ends, now, interval, since, confirm
):
    one = Doubt(proof_at_ms=proof, patience_ends_ms=ends, confirm_after_ms=confirm)
    at = next_look_ms(one, now_ms=now, interval_ms=interval, absent_since_ms=since)
    assert now < at <= now + interval
    for instant in (proof, ends, None if since is None else since + confirm):
        assert instant is None or not now < instant < at


@given(strategies.profiles, st.integers(1, 60))
def test_the_default_patience_outlasts_the_proof(profile, timeout):
    """A request that timed out, counted from then: its proof comes before patience ends, with looks to spare."""
    patience_ms = default_patience_s(profile, timeout) * 1000
    if profile.expiry is not Expiry.NONE:
        window_ms = profile.expiry_window_s * 1000
        one = doubt_of(attempt(deadline_ms=round(window_ms)), profile, since_ms=0, patience_s=0)
        assert one.proof_at_ms is not None
        assert one.proof_at_ms + one.confirm_after_ms + 10_000 <= patience_ms
