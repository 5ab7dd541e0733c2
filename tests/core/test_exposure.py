"""Worst-case exposure: filled, plus the rest of everything that may still fill. Unknown is not zero."""

from __future__ import annotations

import decimal
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from execsafe.core.exposure import excess, room, worst_case
from execsafe.model.intent import Attempt, AttemptState, Intent, IntentRecord

INTENT = Intent(key="k", symbol="BTC/USDT", side="buy", quantity=1)
WIDE = decimal.Context(prec=200)


def record(quantity, *attempts: tuple[AttemptState, object, object]) -> IntentRecord:
    return IntentRecord(
        intent=INTENT,
        quantity=Decimal(quantity),
        attempts=tuple(
            Attempt(number=n, client_order_id="c", quantity=Decimal(q), filled_quantity=Decimal(f), state=state)
            for n, (state, q, f) in enumerate(attempts, 1)
        ),
    )


def exactly(numbers) -> Decimal:
    result = Decimal(0)
    for number in numbers:
        result = WIDE.add(result, number)
    return result


@pytest.mark.guarantee(1)
@pytest.mark.parametrize("state", list(AttemptState))
def test_g1_what_may_still_fill_counts_in_full_and_what_may_not_counts_as_filled(state):
    """Sending, in doubt, unresolved, live: all of it. Everything else: its fills, which never go away."""
    one = record(10, (state, 4, 1))
    assert worst_case(one) == (4 if state.may_still_fill else 1)
    assert room(one) == 10 - worst_case(one)
    assert excess(one) == 0


@pytest.mark.guarantee(1)
def test_g1_excess_is_what_exceeds_the_intent_and_an_overfill_is_excess_too():
    two = record(3, (AttemptState.LIVE, 3, 1), (AttemptState.IN_DOUBT, 2, 0))
    assert (worst_case(two), room(two), excess(two)) == (5, 0, 2)
    over = record(3, (AttemptState.FILLED, 3, "3.5"))
    assert (worst_case(over), room(over), excess(over)) == (Decimal("3.5"), 0, Decimal("0.5"))


_ATTEMPTS = st.lists(
    st.tuples(st.sampled_from(list(AttemptState)), strategies.decimals(), strategies.decimals()), max_size=4
)


@pytest.mark.guarantee(1)
@given(strategies.decimals(), _ATTEMPTS, st.sampled_from([3, 8, 28]))
def test_g1_exposure_is_exact_whatever_the_current_decimal_context(quantity, attempts, precision):
    """A bot that sets ``getcontext().prec = 8`` must not make us round what we owe, or order more than was meant."""
    one = record(quantity, *attempts)
    with decimal.localcontext(prec=precision):
        owned = worst_case(one)
        free, over = room(one), excess(one)
    rests = (max(Decimal(0), WIDE.subtract(q, f)) for state, q, f in attempts if state.may_still_fill)
    assert owned == exactly([*(f for _, _, f in attempts), *rests])
    assert WIDE.subtract(free, over) == WIDE.subtract(quantity, owned)
    assert min(free, over) == 0
