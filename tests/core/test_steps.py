"""One decision that submit, cancel, replace and recover all follow."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest

from execsafe.core.steps import Step, is_done, next_step
from execsafe.model.intent import Attempt, AttemptState, Change, Intent, IntentRecord, IntentState

A, I = AttemptState, IntentState  # noqa: E741
INTENT = Intent(key="k", symbol="BTC/USDT", side="buy", quantity=1, fresh_until_ms=100)


def record(state: IntentState, *attempts: AttemptState, **more) -> IntentRecord:
    return IntentRecord(
        intent=INTENT,
        quantity=Decimal(1),
        state=state,
        attempts=tuple(
            Attempt(number=n, client_order_id="c", quantity=Decimal(1), state=s) for n, s in enumerate(attempts, 1)
        ),
        **more,
    )


def step(of: IntentRecord, *, now_ms: int = 0, attempts_max: int = 2) -> Step:
    return next_step(of, attempts_max=attempts_max, now_ms=now_ms)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (I.RECORDED, Step.SEND),
        (I.SENDING, Step.RESOLVE),
        (I.IN_DOUBT, Step.RESOLVE),
        *((s, Step.DONE) for s in I if s not in {I.RECORDED, I.SENDING, I.IN_DOUBT}),
    ],
)
def test_the_state_decides(state, expected):
    """Found "sending", nobody knows whether it was sent: it is resolved, never sent again."""
    assert step(record(state)) is expected


@pytest.mark.parametrize("change", [Change(asked_at_ms=0), Change(asked_at_ms=0, quantity=Decimal(2))])
def test_a_live_order_that_is_to_change_is_canceled_and_one_in_doubt_resolved_first(change):
    assert step(record(I.LIVE, A.LIVE, change=change)) is Step.CANCEL
    assert step(record(I.IN_DOUBT, A.IN_DOUBT, change=change)) is Step.RESOLVE
    assert step(record(I.UNRESOLVED, A.UNRESOLVED, change=change)) is Step.DONE
    assert step(record(I.CANCELED, A.CANCELED, change=change)) is Step.DONE


def test_attempts_are_counted_by_what_never_became_an_order():
    """An order that was replaced does not use up a try."""
    assert step(record(I.RECORDED, A.ABSENT)) is Step.SEND
    assert step(record(I.RECORDED, A.ABSENT, A.NOT_SENT)) is Step.GIVE_UP
    assert step(record(I.RECORDED, A.CANCELED, A.EXPIRED, A.ABSENT)) is Step.SEND


@pytest.mark.guarantee(17)
def test_g17_a_resend_is_refused_once_the_intent_is_stale_but_an_exit_never():
    assert step(record(I.RECORDED, A.ABSENT), now_ms=100) is Step.SEND
    assert step(record(I.RECORDED, A.ABSENT), now_ms=101) is Step.GIVE_UP
    exits = attrs.evolve(record(I.RECORDED, A.ABSENT), intent=attrs.evolve(INTENT, reduce_only=True))
    assert step(exits, now_ms=10**15) is Step.SEND


@pytest.mark.guarantee(17)
@pytest.mark.parametrize("state", [s for s in I if s is not I.RECORDED])
def test_g17_age_changes_nothing_for_what_may_be_at_the_venue(state):
    """A stale order in doubt is still resolved, a stale live one still canceled when asked."""
    assert step(record(state), now_ms=10**15) is step(record(state))


def test_nothing_is_sent_for_nothing():
    filled = attrs.evolve(record(I.RECORDED), quantity=Decimal(0))
    assert step(filled) is Step.GIVE_UP


@pytest.mark.parametrize("state", I)
@pytest.mark.parametrize("change", [None, Change(asked_at_ms=0)])
def test_whether_all_is_done_depends_on_the_record_alone(state, change):
    """The lease goes back in the step that is the last one: what is then left must not depend on when it is asked."""
    of = record(state, change=change)
    for now_ms in (0, 100, 101):
        assert (step(of, now_ms=now_ms) is Step.DONE) is is_done(of)
