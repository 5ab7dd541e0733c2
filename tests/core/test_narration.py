"""Events are what changed between two versions of a record: nothing is told twice, nothing that did not happen."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from execsafe.core import transitions
from execsafe.core.exposure import excess
from execsafe.core.narration import narrate
from execsafe.model.event import EventType
from execsafe.model.intent import AttemptState, Change, ErrorFacts, Intent, IntentRecord, IntentState
from execsafe.model.order import OrderReport, OrderStatus

T = EventType
ERROR = ErrorFacts(kind="RequestTimeout", message="no answer", code="-1007")
S = OrderStatus


def new(quantity: int = 2) -> IntentRecord:
    intent = Intent(key="k", symbol="BTC/USDT", side="buy", quantity=quantity, limit_price=100)
    return transitions.new_record(intent, quantity=intent.quantity, limit_price=intent.limit_price, now_ms=0)


def begin(record: IntentRecord) -> IntentRecord:
    return transitions.begin(record, client_order_id="c0", deadline_ms=10, now_ms=0)


def see(record: IntentRecord, status: S, filled: int | None = 0, vid: str = "1") -> IntentRecord:
    quantity = None if filled is None else Decimal(filled)
    said = OrderReport(
        symbol="BTC/USDT", status=status, client_order_id="c0", venue_order_id=vid, filled_quantity=quantity
    )
    return transitions.observed(record, said, now_ms=0)


def doubt(record: IntentRecord, error: ErrorFacts | None = ERROR) -> IntentRecord:
    return transitions.doubted(record, len(record.attempts), error, deadline_ms=10, now_ms=0)


def absent(record: IntentRecord) -> IntentRecord:
    return transitions.proven_absent(record, len(record.attempts), now_ms=0)


def unresolved(record: IntentRecord) -> IntentRecord:
    return transitions.left_unresolved(record, 1, now_ms=0)


def refuse(record: IntentRecord) -> IntentRecord:
    return transitions.refused(record, 1, ERROR, now_ms=0)


def give_up(record: IntentRecord) -> IntentRecord:
    return transitions.give_up(record, now_ms=0)


def ask(record: IntentRecord, quantity: int | None = None) -> IntentRecord:
    change = Change(asked_at_ms=0, quantity=None if quantity is None else Decimal(quantity))
    return transitions.ask_change(record, change, now_ms=0)


def live() -> IntentRecord:
    return see(begin(new()), S.OPEN)


def kinds(before: IntentRecord | None, after: IntentRecord) -> list[EventType]:
    return [event.type for event in narrate(before, after, now_ms=0)]


STEPS = {
    "journalled and sent in one step": (lambda: (None, begin(new())), [T.INTENT_RECORDED, T.ATTEMPT_SENDING]),
    "recorded only": (lambda: (None, new()), [T.INTENT_RECORDED]),
    "sent": (lambda: (new(), begin(new())), [T.ATTEMPT_SENDING]),
    "acknowledged": (lambda: (begin(new()), live()), [T.ORDER_ACKNOWLEDGED]),
    "acknowledged with a fill": (
        lambda: (begin(new()), see(begin(new()), S.OPEN, 1)),
        [T.ORDER_ACKNOWLEDGED, T.ORDER_FILL],
    ),
    "filled at once": (
        lambda: (begin(new()), see(begin(new()), S.CLOSED, 2)),
        [T.ORDER_ACKNOWLEDGED, T.ORDER_FILL, T.INTENT_FILLED],
    ),
    "rejected": (lambda: (begin(new()), refuse(begin(new()))), [T.ORDER_REJECTED]),
    "doubted": (lambda: (begin(new()), doubt(begin(new()))), [T.ORDER_IN_DOUBT]),
    "adopted": (lambda: (doubt(begin(new())), see(doubt(begin(new())), S.OPEN)), [T.ORDER_ADOPTED]),
    "adopted, filled": (
        lambda: (doubt(begin(new())), see(doubt(begin(new())), S.CLOSED, 2)),
        [T.ORDER_ADOPTED, T.ORDER_FILL, T.INTENT_FILLED],
    ),
    "proven absent": (lambda: (doubt(begin(new())), absent(doubt(begin(new())))), [T.ATTEMPT_ABSENT]),
    "sent again": (
        lambda: (absent(doubt(begin(new()))), begin(absent(doubt(begin(new()))))),
        [T.ATTEMPT_SENDING],
    ),
    "escalated": (lambda: (doubt(begin(new())), unresolved(doubt(begin(new())))), [T.INTENT_UNRESOLVED]),
    "looked into again": (
        lambda: (unresolved(doubt(begin(new()))), doubt(unresolved(doubt(begin(new()))), None)),
        [T.ORDER_IN_DOUBT],
    ),
    "given up": (
        lambda: (absent(doubt(begin(new()))), give_up(absent(doubt(begin(new()))))),
        [T.INTENT_FAILED],
    ),
    "withheld": (
        lambda: (begin(new()), transitions.not_sent(begin(new()), 1, now_ms=0)),
        [],
    ),
    "filled in part": (lambda: (live(), see(live(), S.OPEN, 1)), [T.ORDER_FILL]),
    "filled": (lambda: (live(), see(live(), S.CLOSED, 2)), [T.ORDER_FILL, T.INTENT_FILLED]),
    "canceled": (lambda: (live(), see(live(), S.CANCELED, 0)), [T.INTENT_CANCELED]),
    "canceled with a fill": (lambda: (live(), see(live(), S.CANCELED, 1)), [T.ORDER_FILL, T.INTENT_CANCELED]),
    "expired": (lambda: (live(), see(live(), S.EXPIRED, 0)), [T.INTENT_EXPIRED]),
    "asked to cancel": (lambda: (live(), ask(live())), [T.CHANGE_ASKED]),
    "asked to replace": (lambda: (live(), ask(live(), 3)), [T.CHANGE_ASKED]),
    "ready to be replaced": (lambda: (ask(live(), 3), see(ask(live(), 3), S.CANCELED, 0)), []),
    "canceled before it was sent": (lambda: (new(), ask(new())), [T.CHANGE_ASKED, T.INTENT_CANCELED]),
    "nothing": (lambda: (live(), live()), []),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.row("S0-31", "X-07")
def test_each_step_tells_exactly_what_happened(name):
    make, expected = STEPS[name]
    assert kinds(*make()) == expected


REVIVED = {
    "failed": lambda: give_up(absent(doubt(begin(new())))),
    "rejected": lambda: refuse(begin(new())),
    "canceled before it was seen": lambda: absent(ask(doubt(begin(new())))),
}


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("name", REVIVED)
def test_g11_late_evidence_against_a_verdict_is_told_as_such(name):
    """Whoever acted on the verdict has to hear of it, also where a cancel was pending."""
    before = REVIVED[name]()
    after = see(before, S.OPEN, 1)
    told = narrate(before, after, now_ms=0)
    assert [e.type for e in told] == [T.INTENT_REVIVED, T.ORDER_ADOPTED, T.ORDER_FILL]
    assert told[0].note == before.state.value


@pytest.mark.guarantee(11)
@pytest.mark.row("S4-17")
@pytest.mark.parametrize("name", ["failed", "rejected"])
def test_g11_an_order_that_was_said_not_to_exist_is_told_as_such_even_if_it_is_filled_already(name):
    before = REVIVED[name]()
    told = narrate(before, see(before, S.CLOSED, 2), now_ms=0)
    assert [e.type for e in told] == [T.INTENT_REVIVED, T.ORDER_ADOPTED, T.ORDER_FILL, T.INTENT_FILLED]
    assert told[0].note == before.state.value


@pytest.mark.guarantee(11)
def test_g11_a_fill_after_the_end_is_told():
    ended = see(live(), S.CANCELED, 0)
    assert kinds(ended, see(ended, S.CANCELED, 1)) == [T.ORDER_FILL]
    assert kinds(ended, see(ended, S.CLOSED, 2)) == [T.ORDER_FILL, T.INTENT_FILLED]


@pytest.mark.guarantee(1)
def test_g1_excess_exposure_raises_an_alarm_once_with_the_amount():
    """Should a proof have been wrong and two orders be live, somebody has to know at once."""
    before = see(begin(absent(doubt(begin(new())))), S.OPEN, 0, vid="1")
    after = see(before, S.OPEN, 1, vid="2")
    told = narrate(before, after, now_ms=0)
    assert [e.type for e in told] == [T.ORDER_ADOPTED, T.ORDER_FILL, T.EXCESS_EXPOSURE]
    assert told[-1].quantity == excess(after) == 2
    later = see(after, S.OPEN, 2, vid="2")
    assert T.EXCESS_EXPOSURE not in kinds(after, later)


def test_events_carry_their_facts():
    """Which attempt, which ids, how much, and why; redacted facts only."""
    before, after = begin(new()), see(begin(new()), S.OPEN, 1)
    acknowledged, fill = narrate(before, after, now_ms=77)
    assert acknowledged.at_ms == fill.at_ms == 77
    assert acknowledged.subject == after.intent.identity
    assert (fill.attempt, fill.client_order_id, fill.venue_order_id, fill.quantity) == (1, "c0", "1", 1)
    [doubted] = narrate(before, doubt(before), now_ms=0)
    assert doubted.error == ERROR
    [rejected] = narrate(before, refuse(before), now_ms=0)
    assert rejected.error == ERROR
    [asked] = narrate(live(), ask(live(), 3), now_ms=0)
    assert (asked.note, asked.quantity) == ("replace", 3)
    [asked] = narrate(live(), ask(live()), now_ms=0)
    assert (asked.note, asked.quantity) == ("cancel", None)


@st.composite
def histories(draw: st.DrawFn) -> list[IntentRecord]:
    """The versions of one record, as any evidence may have made them."""
    record = new(draw(st.integers(1, 3)))
    versions = [record]
    for _ in range(draw(st.integers(1, 8))):
        if record.state is IntentState.RECORDED:
            record = begin(record) if draw(st.booleans()) else give_up(record)
        elif record.state in {IntentState.SENDING, IntentState.IN_DOUBT} and draw(st.booleans()):
            record = draw(st.sampled_from([doubt, absent]))(record)
        else:
            record = transitions.observed(record, draw(strategies.reports(record)), now_ms=0)
        versions.append(record)
    return versions


@given(histories())
def test_the_fills_that_are_told_add_up_to_what_filled(versions):
    """However the evidence came, and whether every version is narrated or some are skipped over."""
    pairs = zip([None, *versions], versions, strict=False)
    told = [event for before, after in pairs for event in narrate(before, after, now_ms=0)]
    assert sum((e.quantity for e in told if e.type is T.ORDER_FILL), Decimal(0)) == versions[-1].filled_quantity
    assert [e.type for e in told].count(T.INTENT_RECORDED) == 1
    in_one_go = narrate(None, versions[-1], now_ms=0)
    assert sum((e.quantity for e in in_one_go if e.type is T.ORDER_FILL), Decimal(0)) == versions[-1].filled_quantity


@given(histories())
def test_nothing_is_told_of_a_change_of_times_or_versions_only(versions):
    record = versions[-1]
    assert narrate(record, attrs.evolve(record, updated_at_ms=99, version=7), now_ms=0) == ()


@given(histories())
def test_sending_is_told_once_per_attempt(versions):
    """A consumer that counts requests counts right."""
    pairs = zip([None, *versions], versions, strict=False)
    told = [event for before, after in pairs for event in narrate(before, after, now_ms=0)]
    sent = [e.attempt for e in told if e.type is T.ATTEMPT_SENDING]
    assert sent == list(range(1, len(versions[-1].attempts) + 1))
    assert all(AttemptState.SENDING is not a.state or a.number in sent for a in versions[-1].attempts)


@given(histories())
def test_every_event_of_an_order_names_its_symbol_and_its_intent(versions):
    """Metrics count by symbol, and a person wants to know which: an identity alone says neither."""
    for before, after in zip([None, *versions], versions, strict=False):
        for event in narrate(before, after, now_ms=0):
            assert (event.symbol, event.subject) == ("BTC/USDT", after.intent.identity)


def test_wishes_and_overturned_verdicts_name_their_symbol_too():
    revived = narrate(refuse(begin(new())), see(refuse(begin(new())), S.OPEN, 1), now_ms=0)
    asked = narrate(live(), ask(live()), now_ms=0)
    assert {event.type for event in (*revived, *asked)} >= {T.INTENT_REVIVED, T.CHANGE_ASKED}
    assert {event.symbol for event in (*revived, *asked)} == {"BTC/USDT"}
