"""How fresh a price is, and what may replace it."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.prices import (
    Freshness,
    PriceEntry,
    PricePolicy,
    due,
    due_at_ms,
    failed,
    freshness,
    invalidated,
    may_try,
    next_due_ms,
    refreshed,
)
from execsafe.errors import InvalidInput
from execsafe.model.intent import ErrorFacts
from execsafe.model.position import Quote

POLICY = PricePolicy()
ERROR = ErrorFacts(kind="TimeoutError")


def quote(number: int = 1, at_ms: int = 0) -> Quote:
    return Quote(symbol="BTC/USDT", last=Decimal(number), at_ms=at_ms)


def entry(taken_at_ms: int = 1_000) -> PriceEntry:
    return PriceEntry(symbol="BTC/USDT", quote=quote(), taken_at_ms=taken_at_ms)


@pytest.mark.row("S1-29")
@pytest.mark.parametrize(
    ("is_hot", "age_ms", "expected"),
    [
        (True, 800, Freshness.FRESH),
        (True, 801, Freshness.AGEING),
        (True, 1_500, Freshness.AGEING),
        (True, 1_501, Freshness.EXPIRED),
        (False, 2_000, Freshness.FRESH),
        (False, 2_001, Freshness.AGEING),
        (False, 5_000, Freshness.AGEING),
        (False, 5_001, Freshness.EXPIRED),
    ],
)
def test_what_is_held_ages_faster(is_hot, age_ms, expected):
    assert freshness(entry(), 1_000 + age_ms, POLICY, is_hot=is_hot) is expected


@pytest.mark.row("S1-25")
def test_what_was_never_read_is_missing_and_due_at_once():
    never = PriceEntry(symbol="BTC/USDT")
    assert freshness(never, 10**12, POLICY, is_hot=True) is Freshness.MISSING
    assert due_at_ms(never, POLICY, is_hot=False) == 0


@pytest.mark.row("S1-30")
@settings(max_examples=1_000, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("begin"), st.integers(0, 3)),
            st.tuples(st.just("end"), st.integers(0, 3)),
            st.tuples(st.just("invalidate"), st.just(0)),
            st.tuples(st.just("fail"), st.integers(0, 3)),
        ),
        max_size=30,
    )
)
def test_only_a_reading_that_began_last_and_after_the_last_invalidation_counts(steps):
    """Readings that overlap, arrive out of order, or fail."""
    known, under_way, invalid_at, best = PriceEntry(symbol="BTC/USDT"), {}, -1, None
    for now, (step, number) in enumerate(steps):
        if step == "begin":
            under_way[number] = (now, known.generation)
        elif step == "invalidate":
            known, invalid_at = invalidated(known), now
        elif number in under_way:
            began, generation = under_way.pop(number)
            if step == "fail":
                known = failed(known, ERROR, at_ms=now, generation=generation)
            else:
                known = refreshed(known, quote(began), taken_at_ms=began, generation=generation)
                if began > invalid_at:
                    best = began if best is None else max(best, began)
        if best is not None:
            assert known.quote == quote(best)
            assert known.is_invalid == (invalid_at > best)


def test_a_quote_that_the_venue_dates_earlier_is_not_taken():
    """A replica that lags."""
    newer = PriceEntry(symbol="BTC/USDT", quote=quote(2, at_ms=500), taken_at_ms=1_000)
    assert refreshed(newer, quote(1, at_ms=499), taken_at_ms=2_000, generation=0) is newer
    assert refreshed(newer, quote(1, at_ms=500), taken_at_ms=2_000, generation=0).taken_at_ms == 2_000
    assert refreshed(newer, quote(1), taken_at_ms=2_000, generation=0).quote == quote(1)


@pytest.mark.row("S1-26")
def test_a_failure_keeps_the_last_good_quote_and_is_not_repeated_at_once():
    after = failed(entry(), ERROR, at_ms=3_000, generation=0)
    assert (after.quote, after.error) == (quote(), ERROR)
    assert not may_try(after, 3_499, POLICY)
    assert may_try(after, 3_500, POLICY)
    assert due_at_ms(after, POLICY, is_hot=True) == 3_500
    assert may_try(invalidated(after), 3_001, POLICY)
    assert failed(invalidated(entry()), ERROR, at_ms=1, generation=0).error is None


def test_what_is_longest_overdue_comes_first():
    entries = {"a": PriceEntry(symbol="a", quote=quote(), taken_at_ms=500), "b": entry(100), "c": entry(9_000)}
    assert due(entries, ["a", "b", "c", "new"], 2_000, POLICY, is_hot=True) == ("new", "b", "a")
    assert next_due_ms(entries, ["b", "c"], POLICY, is_hot=True) == 1_600
    assert next_due_ms(entries, [], POLICY, is_hot=True) is None


@pytest.mark.parametrize(
    "wrong", [{"hot_s": 0}, {"soft_hot_s": 2}, {"soft_cold_s": 6}, {"hot_s": 6}, {"symbols_max": 0}, {"retry_s": -1}]
)
def test_ages_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(InvalidInput):
        PricePolicy(**wrong)
