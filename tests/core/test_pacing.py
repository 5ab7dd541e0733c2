"""A venue that says "too often" is left alone: for the time that it names, or for pauses that grow."""

from __future__ import annotations

import attrs
import ccxt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.core.outcomes import is_turned_away
from execsafe.core.pacing import Pace, PacingPolicy, asked_pause_s, eased, slowed
from execsafe.errors import InvalidInput

POLICY = PacingPolicy()
NOW_MS = 1_700_000_000_000
REFUSALS = st.lists(
    st.tuples(st.integers(0, 200_000), st.integers(0, 20_000), st.one_of(st.none(), st.floats(0, 10**7))), min_size=1
)


@given(REFUSALS)
def test_refusals_only_ever_lengthen_the_wait(refusals):
    """What one asked for no other shortens; the named time is kept, as far as it is believed."""
    pace, now_ms = Pace(), NOW_MS
    for passed_ms, took_ms, asked_s in refusals:
        now_ms += passed_ms
        later = slowed(pace, POLICY, retry_after_s=asked_s, began_ms=now_ms - took_ms, now_ms=now_ms)
        assert later.not_before_ms >= max(pace.not_before_ms, now_ms + 1_000)
        assert later.not_before_ms >= now_ms + min(asked_s or 0, POLICY.longest_s) * 1000 - 1
        assert later.not_before_ms <= max(pace.not_before_ms, now_ms + POLICY.longest_s * 1000)
        assert now_ms < later.urgent_from_ms <= now_ms + 60_000
        assert later.urgent_from_ms <= later.not_before_ms
        pace = later


def test_where_no_time_is_named_the_pauses_double_up_to_a_minute():
    """Each refusal comes right when the pause before it is over."""
    pace, now_ms, pauses = Pace(), NOW_MS, []
    for _ in range(8):
        pace = slowed(pace, POLICY, retry_after_s=None, began_ms=now_ms, now_ms=now_ms + 1)
        pauses.append((pace.not_before_ms - now_ms - 1) // 1000)
        now_ms = pace.not_before_ms
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_requests_that_are_refused_together_are_one_refusal():
    """Four under way at once would otherwise make eight seconds of one."""
    pace = Pace()
    for took_ms in (50, 60, 70, 80):
        pace = slowed(pace, POLICY, retry_after_s=None, began_ms=NOW_MS, now_ms=NOW_MS + took_ms)
    assert pace.refusals == 1
    assert pace.not_before_ms == NOW_MS + 80 + 1_000


@given(st.integers(-100_000, 10_000_000), st.integers(0, 10_000_000))
def test_an_answer_ends_the_wait_only_when_it_was_over(began_after_ms, took_ms):
    """What was under way says nothing; a later answer lets the urgent through, and the named time is obeyed."""
    pace = slowed(Pace(), POLICY, retry_after_s=3_600, began_ms=NOW_MS, now_ms=NOW_MS)
    began_ms = NOW_MS + began_after_ms
    after = eased(pace, began_ms=began_ms, now_ms=began_ms + took_ms)
    if began_after_ms <= 0:
        assert after == pace
    elif began_after_ms + took_ms < 3_600_000:
        assert after == attrs.evolve(pace, urgent_from_ms=0)
    else:
        assert after == Pace()


@pytest.mark.parametrize(
    ("headers", "message", "expected"),
    [
        ({"Retry-After": "7"}, "binance 429", 7.0),
        ({"retry-after": 12}, "binance 429", 12.0),
        ({"RETRY-AFTER": "1.5"}, "binance 429", 1.5),
        ({}, f"binance 418 IP banned until {NOW_MS + 90_000}", 90.0),
        ({"Retry-After": "120"}, f"binance 418 IP banned until {NOW_MS + 90_000}", 120.0),
        ({}, f"binance 418 IP banned until {NOW_MS - 90_000}", 0.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:50 GMT"}, "binance 429", 30.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:10 GMT"}, "binance 429", 0.0),
        ({"Retry-After": "Tue, 99 Nov 2023 22:13:10 GMT"}, "binance 429", None),
        ({"Retry-After": "later"}, "binance 429", None),
        ({"Retry-After": "-1"}, "binance 429", None),
        ({"Retry-After": "inf"}, "binance 429", None),
        ({"X": "7"}, "binance 429", None),
        ({}, "banned until 17000000000000000", None),
    ],
)
def test_what_the_venue_asks_for_is_read(headers, message, expected):
    """From its header or its words; what cannot be read is not guessed, and the pauses grow instead."""
    assert asked_pause_s(ccxt.DDoSProtection(message), headers, now_ms=NOW_MS) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ccxt.RateLimitExceeded("x"), True),
        (ccxt.DDoSProtection("x"), True),
        (ccxt.ExchangeNotAvailable("okx POST https://www.okx.com/api/v5/trade/order 429 Too Many Requests "), True),
        (ccxt.ExchangeNotAvailable("okx POST https://www.okx.com/api/v5/trade/order 503 busy"), False),
        (ccxt.RequestTimeout("x"), False),
        (type("RateLimitExceeded", (Exception,), {})("not ccxt's"), False),
    ],
)
def test_which_errors_ask_to_be_left_alone(error, expected):
    """ccxt's two classes, and the HTTP status wherever ccxt makes something else of it."""
    assert is_turned_away(error) is expected


def test_a_policy_without_end_is_refused():
    """Nobody is left alone for ever on a venue's word."""
    with pytest.raises(InvalidInput):
        PacingPolicy(longest_s=float("inf"))
