"""An intent is a value: it compares by what is meant, and names one thing for ever."""

from __future__ import annotations

import pickle
from decimal import Decimal

import attrs
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import strategies
from execsafe import errors
from execsafe.model.intent import Attempt, AttemptState, Change, Intent, IntentRecord, IntentState
from execsafe.model.order import Side

PAYLOAD = (
    "symbol", "side", "type", "quantity", "limit_price", "time_in_force", "post_only", "reduce_only",
    "trigger_price", "params",
)  # fmt: skip


def intent(**changes) -> Intent:
    return Intent(**{"key": "k", "symbol": "BTC/USDT", "side": "buy", "quantity": 1, **changes})


def payload(of: Intent) -> tuple:
    return tuple(getattr(of, name) for name in PAYLOAD)


@pytest.mark.guarantee(5)
@given(st.lists(strategies.intents, min_size=2, max_size=2))
def test_g5_fingerprints_are_equal_if_and_only_if_payloads_are(pair):
    """Key, account, leg and freshness say which and when; everything else says what."""
    one, other = pair
    assert (one.fingerprint == other.fingerprint) == (payload(one) == payload(other))


@pytest.mark.guarantee(5)
@given(strategies.intents, strategies.intents, st.sampled_from(PAYLOAD))
def test_g5_a_change_of_any_payload_field_changes_the_fingerprint(one, other, field):
    """Field by field, so that none is forgotten."""
    assume(getattr(one, field) != getattr(other, field))
    changed = attrs.evolve(one, **{field: getattr(other, field)})
    assert changed.fingerprint != one.fingerprint


@pytest.mark.guarantee(5)
@given(strategies.intents, strategies.keys, strategies.accounts, strategies.legs)
def test_g5_the_same_payload_under_another_name_or_age_has_the_same_fingerprint(one, key, account, leg):
    other = attrs.evolve(one, key=key, account=account, leg=leg, fresh_until_ms=1)
    assert other.fingerprint == one.fingerprint


@pytest.mark.guarantee(5)
@pytest.mark.parametrize("spelling", ["0.10", 0.1, Decimal("0.1"), Decimal("0.1000"), "+0.1", "00.1"])
def test_g5_spelling_a_number_otherwise_is_the_same_intent(spelling):
    """A restarted bot may read "0.10" from a file where it computed 0.1 before."""
    one, other = intent(quantity="0.1"), intent(quantity=spelling)
    assert one == other
    assert hash(one) == hash(other)
    assert one.fingerprint == other.fingerprint


_NAMES = st.tuples(strategies.accounts, strategies.keys, strategies.legs)


@pytest.mark.guarantee(5)
@given(_NAMES, _NAMES)
@example(("a", "b:c", ""), ("a:b", "c", ""))
@example(("a", 'b","c', ""), ("a", "b", "c"))
@example(("a", "b", "c"), ("a", "bc", ""))
def test_g5_identities_are_equal_if_and_only_if_account_key_and_leg_are(one, other):
    """No separator inside a name can make two intents share a record."""
    first, second = (intent(account=a, key=k, leg=g).identity for a, k, g in (one, other))
    assert (first == second) == (one == other)


@given(strategies.intents)
def test_an_intent_is_frozen_hashable_and_pickles(one):
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.quantity = Decimal(2)
    copy = pickle.loads(pickle.dumps(one))
    assert copy == one
    assert hash(copy) == hash(one)
    assert copy.fingerprint == one.fingerprint


def test_the_type_follows_from_the_price_unless_given():
    assert intent().type == "market"
    assert intent(limit_price=1).type == "limit"
    assert intent(limit_price=1, type="limit_maker").type == "limit_maker"


def test_side_is_an_enum_that_equals_its_text():
    assert intent(side="sell").side is Side.SELL
    assert Side.SELL == "sell"
    assert Side.SELL.opposite is Side.BUY
    assert Side.BUY.opposite is Side.SELL


@given(strategies.keys)
def test_an_equal_intent_from_reordered_params_is_equal(key):
    assert intent(key=key, params={"a": 1, "b": 2}) == intent(key=key, params={"b": 2, "a": 1})


# --- Records ------------------------------------------------------------------------------------------------


def attempt(number: int, quantity: str, filled: str, price: str | None = None) -> Attempt:
    return Attempt(
        number=number,
        client_order_id=f"c{number}",
        quantity=Decimal(quantity),
        filled_quantity=Decimal(filled),
        average_price=None if price is None else Decimal(price),
        state=AttemptState.CANCELED,
    )


def test_a_record_sums_its_attempts():
    """Filled quantity over all attempts, what is left of the whole, and the volume-weighted price."""
    record = IntentRecord(
        intent=intent(quantity=2),
        quantity=Decimal(2),
        attempts=(attempt(1, "2", "0.5", "100"), attempt(2, "1.5", "1", "130"), attempt(3, "0.5", "0", "999")),
    )
    assert record.filled_quantity == Decimal("1.5")
    assert record.leaves_quantity == Decimal("0.5")
    assert record.average_price == Decimal(120)
    assert record.last is record.attempts[-1]


def test_nothing_is_left_of_an_overfilled_order_and_no_price_is_made_up():
    record = IntentRecord(intent=intent(), quantity=Decimal(1), attempts=(attempt(1, "1", "1.5"),))
    assert record.leaves_quantity == 0
    assert record.attempts[0].leaves_quantity == 0
    assert record.average_price is None
    assert IntentRecord(intent=intent(), quantity=Decimal(1)).last is None


def test_states_say_whether_they_count_as_open():
    """Sending, in doubt, unresolved and live attempts may still fill; unknown is not zero."""
    assert {s for s in AttemptState if s.may_still_fill} == {
        AttemptState.SENDING, AttemptState.IN_DOUBT, AttemptState.UNRESOLVED, AttemptState.LIVE
    }  # fmt: skip
    assert {s for s in IntentState if not s.is_terminal} == {
        IntentState.RECORDED, IntentState.SENDING, IntentState.IN_DOUBT, IntentState.UNRESOLVED, IntentState.LIVE
    }  # fmt: skip
    assert Change(asked_at_ms=0).is_cancel
    assert not Change(asked_at_ms=0, quantity=Decimal(1)).is_cancel


# --- Errors -------------------------------------------------------------------------------------------------

ERRORS = sorted(
    (e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.ExecsafeError)),
    key=lambda e: e.__name__,
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_errors_pickle_with_their_context(error):
    """They cross process boundaries: task queues, multiprocessing."""
    original = error("what is true", intent_key="k", client_order_id="c", limit=Decimal("0.1"))
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is error
    assert str(copy) == "what is true"
    assert copy.context == {"intent_key": "k", "client_order_id": "c", "limit": Decimal("0.1")}
    assert (copy.intent_key, copy.client_order_id) == ("k", "c")


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_errors_without_context_have_none(error):
    assert error("x").context == {}
    assert error("x").intent_key is None
    assert error("x").client_order_id is None


def test_an_unknown_outcome_is_no_kind_of_failure():
    """Nobody who catches rejections, denials or bad input can swallow an unknown outcome by accident."""
    failures = (errors.OrderRejected, errors.NotPlaced, errors.InvalidInput, errors.TradingDenied, errors.StoreError)
    assert not issubclass(errors.OutcomeUnknown, failures)
    assert not any(issubclass(e, errors.OutcomeUnknown) for e in failures)
