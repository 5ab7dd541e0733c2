"""The life of an intent: no excess exposure, late evidence wins, and no edge outside of the tables.

Three searches of different kinds. One puts every piece of evidence to every reachable record of at most two
attempts, and so knows exactly which edges of the tables are used. One plays a venue with a ledger of its own, whose
answers arrive late, twice and in any order, and compares what may be owned *there* with what was meant. The rest are
the rules by example.
"""

from __future__ import annotations

import random
from collections import deque
from decimal import Decimal
from functools import cache, partial

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import strategies
from execsafe.core import transitions
from execsafe.core.exposure import excess, room, worst_case
from execsafe.core.steps import Step, next_step
from execsafe.core.transitions import ATTEMPT_TRANSITIONS, INTENT_TRANSITIONS, derive_state
from execsafe.errors import InvalidTransition
from execsafe.model.intent import Attempt, AttemptState, Change, ErrorFacts, Intent, IntentRecord, IntentState
from execsafe.model.order import Fill, OrderReport, OrderStatus

A = AttemptState
I = IntentState  # noqa: E741
S = OrderStatus
ERROR = ErrorFacts(kind="InsufficientFunds")
CANCEL = Change(asked_at_ms=0)


def new(quantity: int = 2) -> IntentRecord:
    intent = Intent(key="k", symbol="BTC/USDT", side="buy", quantity=quantity, limit_price=100)
    return transitions.new_record(intent, quantity=intent.quantity, limit_price=intent.limit_price, now_ms=0)


def begin(record: IntentRecord, *, now_ms: int = 0) -> IntentRecord:
    cid = f"c{transitions.generation(record)}"
    return transitions.begin(record, client_order_id=cid, deadline_ms=10, now_ms=now_ms)


def report(
    status: S = S.OPEN, filled: int | None = 0, *, cid: str | None = "c0", vid: str | None = "1", **more
) -> OrderReport:
    quantity = None if filled is None else Decimal(filled)
    return OrderReport(
        symbol="BTC/USDT", status=status, client_order_id=cid, venue_order_id=vid, filled_quantity=quantity, **more
    )


observed = partial(transitions.observed, now_ms=5)
doubted = partial(transitions.doubted, deadline_ms=10, now_ms=5)
absent = partial(transitions.proven_absent, now_ms=5)
unresolved = partial(transitions.left_unresolved, now_ms=5)
vanished = partial(transitions.vanished, now_ms=5)
revived = partial(transitions.revived, looked_at_ms=9, lag_ms=4, now_ms=9)
refused = partial(transitions.refused, now_ms=5)
not_sent = partial(transitions.not_sent, now_ms=5)
give_up = partial(transitions.give_up, now_ms=5)
ask = partial(transitions.ask_change, now_ms=5)


def replace(total: int, price: int | None = None) -> Change:
    return Change(asked_at_ms=0, quantity=Decimal(total), limit_price=None if price is None else Decimal(price))


# --- Every record of at most two attempts, and everything that can be said about it -------------------------


@attrs.frozen
class Bounds:
    """How large the searched world is: what is meant, what it may be changed to, and how often it is sent."""

    quantity: int = 1
    totals: tuple[int, ...] = (2,)
    attempts: int = 2
    fills: tuple[int, ...] = (0, 1, 2)


def steps_from(record: IntentRecord, bounds: Bounds):
    """What execsafe may do, and what a venue may say, in this state: everything that production could apply."""
    step = next_step(record, attempts_max=bounds.attempts, now_ms=0)
    if step is Step.SEND and len(record.attempts) < bounds.attempts:
        yield "begin", begin(record)
    if record.state is I.RECORDED or (record.attempts and record.state not in {I.SENDING, I.IN_DOUBT, I.UNRESOLVED}):
        # Decided while it was recorded; evidence may have come in before it is applied.
        yield "give up", give_up(record)
    for change in (CANCEL, *map(replace, bounds.totals)):
        yield "ask", ask(record, change)
    for attempt in record.attempts:
        n = attempt.number
        if attempt.state is A.SENDING:
            yield "not sent", not_sent(record, n)
        yield "refused", refused(record, n, ERROR)
        yield "doubted", doubted(record, n, None)
        yield "absent", absent(record, n)
        yield "unresolved", unresolved(record, n)
        is_there = doubted(record, n, None, exists=True) if attempt.state in {A.IN_DOUBT, A.UNRESOLVED} else record
        yield "vanished", vanished(is_there, n, attempt.fills)
        if attempt.filled_quantity == 0:
            traded = Fill(trade_id=f"{n}", quantity=Decimal(1), price=Decimal(100))
            yield "vanished", vanished(is_there, n, (traded,))
        yield "vanished, by hearsay", vanished(record, n, attempt.fills)
    for cid, vid in orders_of(record):
        for status in (S.OPEN, S.CANCELED, S.EXPIRED, S.REJECTED):  # closed acts as canceled, unknown as open
            for filled in (None, *bounds.fills):
                yield "report", observed(record, report(status, filled, cid=cid, vid=vid))
        yield "report", revived(record, report(cid=cid, vid=vid))


def orders_of(record: IntentRecord):
    """One order per client id; a second one only where an id was used twice, so that a proof of absence was wrong."""
    cids = [a.client_order_id for a in record.attempts]
    return {(cid, f"{cid}-{twin}") for cid in cids for twin in range(cids.count(cid))}


def situation(record: IntentRecord) -> IntentRecord:
    """*record* without what steers nothing here: times, reasons."""
    attempts = tuple(
        attrs.evolve(a, error=None, doubted_at_ms=None, deadline_ms=None, exists=a.state is A.LIVE, prepared_at_ms=0)
        for a in record.attempts
    )
    ended = None if record.ended_at_ms is None else 0
    return attrs.evolve(record, attempts=attempts, updated_at_ms=0, ended_at_ms=ended)


@attrs.frozen
class Explored:
    states: int
    attempt_edges: frozenset
    intent_edges: frozenset


@cache
def explore(bounds: Bounds = Bounds()) -> Explored:
    start = new(bounds.quantity)
    seen, queue = {start}, deque([start])
    attempt_edges, intent_edges = set(), set()
    while queue:
        before = queue.popleft()
        for what, reached in steps_from(before, bounds):
            if reached is before:
                continue
            check_step(what, before, reached)
            intent_edges.add((before.state, reached.state))
            for old, now in zip(before.attempts, reached.attempts, strict=False):
                attempt_edges.add((old.state, now.state))
            after = situation(reached)
            if after not in seen:
                seen.add(after)
                queue.append(after)
    return Explored(len(seen), frozenset(attempt_edges), frozenset(intent_edges))


def check_step(what: str, before: IntentRecord, after: IntentRecord) -> None:
    assert after.state is derive_state(after), (what, before, after)
    assert (after.ended_at_ms is not None) == after.state.is_terminal
    assert after.filled_quantity >= before.filled_quantity
    for old, now in zip(before.attempts, after.attempts, strict=False):
        assert now.filled_quantity >= old.filled_quantity
        assert set(old.fills) <= set(now.fills)
        assert now.venue_order_id == old.venue_order_id or old.venue_order_id is None
    assert (after.state is I.FILLED) == (
        after.filled_quantity >= after.quantity and not any(a.state.may_still_fill for a in after.attempts)
    )
    assert all((a.state is A.FILLED) == (a.filled_quantity >= a.quantity) for a in after.attempts)
    if after.state is I.FAILED_FINAL:
        # G4: never said of an order that the venue accepted, nor of one that may still come.
        assert all(a.state in {A.ABSENT, A.NOT_SENT} for a in after.attempts), (what, before, after)
    if what != "report":
        # Nothing that we do ourselves can add exposure beyond what is meant.
        assert excess(after) <= excess(before), (what, before, after)


def edges(table) -> set:
    return {(source, target) for source, targets in table.items() for target in targets}


def changes(taken) -> set:
    return {(source, target) for source, target in taken if source is not target}


# Edges that no evidence takes, each with its reason. None is left: an edge without use would only hide a defect.
UNREACHED_ATTEMPT_EDGES: dict = {}
UNREACHED_INTENT_EDGES: dict = {}


@pytest.mark.guarantee(4, 11)
def test_g11_no_evidence_is_ever_refused_as_an_illegal_transition():
    """A raised InvalidTransition would lose the evidence: every report is put to every reachable record."""
    assert explore().states > 2_000


def test_the_tables_hold_exactly_the_edges_that_are_used():
    """Every change that can happen is an edge, and every edge happens."""
    assert changes(explore().attempt_edges) == edges(ATTEMPT_TRANSITIONS) - set(UNREACHED_ATTEMPT_EDGES)
    assert changes(explore().intent_edges) == edges(INTENT_TRANSITIONS) - set(UNREACHED_INTENT_EDGES)


@pytest.mark.campaign
@pytest.mark.guarantee(4, 11)
@pytest.mark.parametrize(
    "bounds",
    [Bounds(quantity=2, totals=(1, 3), fills=(0, 1, 2, 3)), Bounds(attempts=3, fills=(0, 1))],
    ids=["two units", "three attempts"],
)
def test_g11_larger_worlds_take_no_other_edges(bounds):
    explored = explore(bounds)
    assert changes(explored.attempt_edges) <= edges(ATTEMPT_TRANSITIONS)
    assert changes(explored.intent_edges) <= edges(INTENT_TRANSITIONS)


# --- A venue with a ledger of its own, whose answers come late, twice, out of order -------------------------


@attrs.define
class VenueOrder:
    attempt: int
    cid: str
    vid: str
    quantity: Decimal
    filled: Decimal = Decimal(0)
    status: S = S.OPEN
    trades: tuple[Fill, ...] = ()

    @property
    def may_own(self) -> Decimal:
        return self.quantity if self.status is S.OPEN else self.filled


def choosing(**choices):
    """A rule whose arguments are chosen from a few values each, by Hypothesis or by a random walk."""

    def decorate(function):
        function.choices = choices
        return rule(**{name: st.sampled_from(values) for name, values in choices.items()})(function)

    return decorate


PICKS = range(4)  # which of several, counted round


def pick_from(items, pick: int):
    return items[pick % len(items)]


class HonestVenue(RuleBasedStateMachine):
    """An intent in production's hands and its venue. The venue accepts a request at most once; proofs are sound.

    ``wire`` holds what was handed to the network and may still land; ``mail`` what the venue said, to be read at
    any time, in any order, any number of times.
    """

    @initialize(quantity=st.integers(1, 4), is_live=st.booleans())
    def start(self, quantity, is_live):
        self.record = new(quantity)
        self.wire: dict[int, Decimal] = {}
        self.orders: list[VenueOrder] = []
        self.mail: list[OrderReport] = []
        self.rejects: set[int] = set()
        self.known_filled = Decimal(0)
        if is_live:  # most of what is interesting happens to an order that rests
            self.send()
            self.orders.append(VenueOrder(1, "c0", "v0", self.wire.pop(1)))
            self.apply(observed(self.record, report(vid="v0")))

    def apply(self, after: IntentRecord) -> None:
        check_step("model", self.record, after)
        self.record = after

    def attempts(self, *states: A) -> list[Attempt]:
        return [a for a in self.record.attempts if a.state in states]

    # What we do.

    @precondition(lambda self: next_step(self.record, attempts_max=9, now_ms=0) is Step.SEND)
    @choosing()
    def send(self):
        self.apply(begin(self.record))
        self.wire[self.record.last.number] = self.record.last.quantity

    @precondition(lambda self: next_step(self.record, attempts_max=2, now_ms=0) is Step.GIVE_UP)
    @choosing()
    def give_up(self):
        self.apply(give_up(self.record))

    @precondition(lambda self: self.record.change is None or self.record.state.is_terminal)
    @choosing(total=[1, 2, 3, 4, 5, 6, 7, 8, None])
    def wish(self, total):
        self.apply(ask(self.record, CANCEL if total is None else replace(total)))

    # What becomes of requests.

    @precondition(lambda self: self.wire)
    @choosing(pick=PICKS, fate=["accept", "accept", "drop", "reject"])
    def land(self, pick, fate):
        number = pick_from(sorted(self.wire), pick)
        quantity = self.wire.pop(number)
        if fate == "accept":
            cid = self.record.attempts[number - 1].client_order_id
            self.orders.append(VenueOrder(number, cid, f"v{len(self.orders)}", quantity))
        elif fate == "reject":
            self.rejects.add(number)

    @precondition(lambda self: any(o.status is S.OPEN for o in self.orders))
    @choosing(pick=PICKS, part=range(5), end=[None, S.CANCELED, S.EXPIRED, S.CLOSED])
    def trade(self, pick, part, end):
        order = pick_from([o for o in self.orders if o.status is S.OPEN], pick)
        part = min(Decimal(part), order.quantity - order.filled)
        if part:
            order.filled += part
            order.trades += (Fill(trade_id=f"{order.vid}-{order.filled}", quantity=part, price=Decimal(100)),)
        order.status = S.CLOSED if order.filled == order.quantity else end or S.OPEN

    # What we learn.

    @precondition(lambda self: self.orders)
    @choosing(
        pick=PICKS,
        shape=["full", "no fill", "no venue id", "no client id", "trades", "bare"],
        at_once=[True, False],
    )
    def read(self, pick, shape, at_once):
        order = pick_from(self.orders, pick)
        said = report(order.status, int(order.filled), cid=order.cid, vid=order.vid)
        if shape == "no fill":
            said = attrs.evolve(said, filled_quantity=None)
        elif shape == "no venue id" and len([o for o in self.orders if o.cid == order.cid]) == 1:
            said = attrs.evolve(said, venue_order_id=None)
        elif shape == "no client id":
            said = attrs.evolve(said, client_order_id=None)
        elif shape == "trades":
            said = attrs.evolve(said, status=S.UNKNOWN, filled_quantity=None, fills=order.trades)
        elif shape == "bare":
            said = attrs.evolve(said, status=S.UNKNOWN, filled_quantity=None)
        self.mail.append(said)
        if at_once:
            self.take_in(said)

    @precondition(lambda self: self.mail)
    @choosing(pick=range(100))
    def deliver(self, pick):
        self.take_in(pick_from(self.mail, pick))

    def take_in(self, said: OrderReport) -> None:
        self.apply(observed(self.record, said))
        assert observed(self.record, said) is self.record  # a second time it says nothing new

    @precondition(lambda self: self.rejects)
    @choosing(pick=PICKS)
    def learn_of_reject(self, pick):
        number = pick_from(sorted(self.rejects), pick)
        self.apply(refused(self.record, number, ERROR))
        assert refused(self.record, number, ERROR) is self.record

    @precondition(lambda self: self.attempts(A.SENDING, A.UNRESOLVED, A.IN_DOUBT))
    @choosing(exists=[False, True])
    def doubt(self, exists):
        attempt = self.attempts(A.SENDING, A.UNRESOLVED, A.IN_DOUBT)[0]
        self.apply(doubted(self.record, attempt.number, None, exists=exists))
        assert doubted(self.record, attempt.number, None, exists=exists) is self.record

    @precondition(lambda self: self.attempts(A.IN_DOUBT))
    @choosing()
    def lose_patience(self):
        self.apply(unresolved(self.record, self.attempts(A.IN_DOUBT)[0].number))

    @precondition(lambda self: self.attempts(A.IN_DOUBT))
    @choosing()
    def prove_absent(self):
        number = self.attempts(A.IN_DOUBT)[0].number
        if number not in self.wire and not any(o.attempt == number for o in self.orders):
            self.apply(absent(self.record, number))

    @precondition(lambda self: self.attempts(A.LIVE, A.IN_DOUBT, A.UNRESOLVED))
    @choosing()
    def conclude_the_end(self):
        """No view shows it any more, and the list of fills is complete: so says the proof, whose subject is over."""
        attempt = self.attempts(A.LIVE, A.IN_DOUBT, A.UNRESOLVED)[0]
        order = next((o for o in self.orders if o.attempt == attempt.number), None)
        if order is None or not attempt.exists:
            assert vanished(self.record, attempt.number, ()) is self.record or attempt.exists
        elif order.status is not S.OPEN:
            self.apply(vanished(self.record, attempt.number, order.trades))
            assert vanished(self.record, attempt.number, order.trades) is self.record

    @precondition(lambda self: any(a.number in self.wire for a in self.attempts(A.SENDING)))
    @choosing()
    def withhold(self):
        number = self.attempts(A.SENDING)[0].number
        del self.wire[number]
        self.apply(not_sent(self.record, number))

    # What must hold.

    @invariant()
    def nothing_in_excess_by_our_books(self):
        assert worst_case(self.record) <= self.record.quantity
        assert excess(self.record) == 0

    @invariant()
    def nothing_in_excess_at_the_venue(self):
        at_venue = sum((o.may_own for o in self.orders), Decimal(0))
        assert at_venue + sum(self.wire.values()) <= self.record.quantity

    @invariant()
    def fills_are_never_invented_nor_forgotten(self):
        assert self.known_filled <= self.record.filled_quantity <= sum((o.filled for o in self.orders), Decimal(0))
        self.known_filled = self.record.filled_quantity

    @invariant()
    def an_end_is_the_truth(self):
        """When we say that it ended, nothing is under way, and every fill is known."""
        if self.record.state.is_terminal:
            assert not self.wire
            assert all(o.status is not S.OPEN for o in self.orders)
            assert self.record.filled_quantity == sum((o.filled for o in self.orders), Decimal(0))


@pytest.mark.guarantee(1, 4)
def test_g1_no_order_of_evidence_leads_to_more_than_was_meant():
    """By our books and by the venue's, at every step; and no end is reported that the venue would deny."""
    run_state_machine_as_test(
        HonestVenue,
        settings=settings(max_examples=60, stateful_step_count=30, suppress_health_check=[HealthCheck.filter_too_much]),
    )


@pytest.mark.guarantee(1, 4)
def test_g1_nor_does_any_of_a_thousand_random_walks():
    """The same machine, without Hypothesis' liking for small examples."""
    for seed in range(1_000):
        rng = random.Random(seed)
        machine = HonestVenue()
        machine.start(quantity=rng.randint(1, 4), is_live=rng.random() < 0.5)
        for _ in range(25):
            enabled = [r for r in machine.rules if all(holds(machine) for holds in r.preconditions)]
            chosen = rng.choice(enabled).function
            chosen(machine, **{name: rng.choice(values) for name, values in chosen.choices.items()})
            for check in machine.invariants:
                check.function(machine)


# --- Any evidence, sensible or not --------------------------------------------------------------------------


@st.composite
def lived(draw: st.DrawFn) -> IntentRecord:
    """A record after a few steps of its life."""
    record = new(draw(st.integers(1, 3)))
    for _ in range(draw(st.integers(0, 8))):
        record = draw(st.sampled_from([after for _, after in steps_from(record, Bounds(attempts=3))]))
    return record


@pytest.mark.guarantee(11)
@given(lived(), st.data())
def test_g11_evidence_is_credited_at_once_and_only_once(record, data):
    """Whatever the state, a report never raises, never lowers a fill, and applied again changes nothing."""
    said = data.draw(strategies.reports(record))
    after = transitions.observed(record, said, now_ms=7)
    assert transitions.observed(after, said, now_ms=8) is after
    if after is not record:
        check_step("report", record, after)
        assert after.updated_at_ms == 7


@given(lived(), st.data())
def test_evidence_about_a_foreign_order_changes_nothing(record, data):
    """Ownership is by id only: not by symbol, side, quantity or time."""
    said = data.draw(strategies.reports())
    if said.venue_order_id is not None and said.venue_order_id != "foreign":
        said = attrs.evolve(said, venue_order_id="foreign")
    assert transitions.observed(record, said, now_ms=7) is record


@given(lived())
def test_room_and_worst_case_add_up(record):
    assert room(record) == max(0, record.quantity - worst_case(record))
    assert excess(record) == max(0, worst_case(record) - record.quantity)
    assert worst_case(record) >= record.filled_quantity


# --- Examples -----------------------------------------------------------------------------------------------


def sending(quantity: int = 2) -> IntentRecord:
    return begin(new(quantity))


def in_doubt(quantity: int = 2) -> IntentRecord:
    return doubted(sending(quantity), 1, None)


def live(quantity: int = 2, filled: int = 0) -> IntentRecord:
    return observed(sending(quantity), report(S.OPEN, filled))


VERDICTS = {
    "never sent": lambda: give_up(not_sent(sending(), 1)),
    "proven absent": lambda: give_up(absent(in_doubt(), 1)),
    "proven absent, to be sent again": lambda: absent(in_doubt(), 1),
    "rejected": lambda: refused(sending(), 1, ERROR),
    "unresolved": lambda: unresolved(in_doubt(), 1),
    "canceled before it was seen": lambda: absent(ask(in_doubt(), CANCEL), 1),
}


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize(
    ("status", "filled", "state"),
    [
        (S.OPEN, 0, I.LIVE),
        (S.UNKNOWN, None, I.LIVE),
        (S.OPEN, 1, I.LIVE),
        (S.CLOSED, 2, I.FILLED),
        (S.CANCELED, 1, I.CANCELED),
        (S.EXPIRED, 0, I.EXPIRED),
        (S.REJECTED, 0, I.REJECTED),
    ],
)
def test_g11_late_evidence_overturns_every_verdict(verdict, status, filled, state):
    """An order that turns up after all is taken over as it is, and nothing is sent beside it."""
    before = VERDICTS[verdict]()
    after = observed(before, report(status, filled))
    assert after.state is state
    assert after.filled_quantity == (filled or 0)
    assert next_step(after, attempts_max=4, now_ms=0) in {Step.DONE, Step.CANCEL}
    assert worst_case(after) <= after.quantity
    if state is I.LIVE:
        assert after.ended_at_ms is None
        with pytest.raises(InvalidTransition):
            begin(after)


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("end", [S.CANCELED, S.EXPIRED])
def test_g11_a_fill_after_the_end_is_credited(end):
    """FI-43: canceled with nothing filled is seen first, the fill comes later."""
    ended = observed(live(), report(end, 0))
    assert ended.filled_quantity == 0
    partly = observed(ended, report(end, 1))
    assert (partly.state, partly.filled_quantity) == (ended.state, 1)
    assert observed(partly, report(S.CLOSED, 2)).state is I.FILLED


def test_a_view_that_lags_does_not_bring_an_ended_order_back():
    ended = observed(live(), report(S.CANCELED, 1))
    for stale in (report(S.OPEN, 0), report(S.OPEN, 1), report(S.UNKNOWN, None), report(S.REJECTED, 0)):
        assert observed(ended, stale) is ended


@pytest.mark.parametrize(
    ("status", "filled", "state", "known"),
    [
        (S.CLOSED, 2, I.FILLED, 2),
        (S.CLOSED, 3, I.FILLED, 3),
        (S.OPEN, 2, I.FILLED, 2),
        (S.CANCELED, 2, I.FILLED, 2),
        (S.REJECTED, 2, I.FILLED, 2),
        (S.CLOSED, 1, I.CANCELED, 1),
        (S.CLOSED, 0, I.CANCELED, 0),
        (S.CANCELED, 1, I.CANCELED, 1),
        (S.EXPIRED, 1, I.EXPIRED, 1),
        (S.REJECTED, 1, I.CANCELED, 1),
        (S.REJECTED, 0, I.REJECTED, 0),
        (S.REJECTED, None, I.REJECTED, 0),
        (S.CLOSED, None, I.LIVE, 0),
        (S.CANCELED, None, I.LIVE, 0),
        (S.EXPIRED, None, I.LIVE, 0),
    ],
)
def test_quantities_and_never_the_status_are_the_truth_about_fills(status, filled, state, known):
    """FI-37, FI-38: closed is not filled. An end without its filled quantity leaves the order counted in full."""
    after = observed(live(), report(status, filled))
    assert (after.state, after.filled_quantity) == (state, known)


def test_the_average_price_is_the_venues_or_the_trades():
    first = Fill(trade_id="1", quantity=Decimal(1), price=Decimal(90))
    both = (first, Fill(trade_id="2", quantity=Decimal(1), price=Decimal(110)))
    record = observed(sending(4), report(S.OPEN, None, fills=(first,)))
    assert (record.filled_quantity, record.average_price) == (1, 90)
    record = observed(record, report(S.OPEN, None, fills=both))
    assert (record.filled_quantity, record.average_price) == (2, 100)
    assert observed(record, report(S.OPEN, 2, average_price=Decimal(1))).average_price == 100
    record = observed(record, report(S.OPEN, 3, average_price=Decimal(101)))
    assert (record.filled_quantity, record.average_price) == (3, 101)


def test_the_same_trade_from_two_sources_counts_once():
    """FI-22, FI-30: the poll states the total, the stream the trade; in either order, and again."""
    trade = Fill(trade_id="7", quantity=Decimal(1), price=Decimal(100))
    said = (report(S.OPEN, 1), report(S.OPEN, None, fills=(trade,)), report(S.OPEN, 1, fills=(trade, trade)))
    record = live()
    for one in (*said, *reversed(said)):
        record = observed(record, one)
        assert record.filled_quantity == 1


@pytest.mark.guarantee(1)
def test_g1_a_second_order_under_a_reused_id_is_credited_to_the_attempt_that_was_given_up_for_dead():
    """Should a proof have been wrong, both orders count, and the excess shows."""
    record = begin(absent(in_doubt(), 1))
    assert record.attempts[0].client_order_id == record.attempts[1].client_order_id
    record = observed(record, report(S.OPEN, 0, vid="1"))
    assert [a.state for a in record.attempts] == [A.ABSENT, A.LIVE]
    assert excess(record) == 0
    record = observed(record, report(S.OPEN, 1, vid="2"))
    assert [a.state for a in record.attempts] == [A.LIVE, A.LIVE]
    assert excess(record) == 2
    assert observed(record, report(S.OPEN, 1, vid="3")) is record


def test_an_id_is_reused_after_absence_and_renewed_after_an_acknowledged_end():
    record = absent(in_doubt(), 1)
    assert transitions.generation(record) == 0
    record = observed(begin(record), report(S.OPEN, 0))
    record = observed(ask(record, replace(3)), report(S.CANCELED, 0))
    assert transitions.generation(record) == 1
    assert begin(record).last.client_order_id == "c1"


# Replacing.


@pytest.mark.guarantee(1)
@pytest.mark.parametrize("filled", [0, 1, 2])
@pytest.mark.parametrize("total", [1, 2, 3, 5])
def test_g1_a_replacement_is_the_new_total_fills_included(filled, total):
    """What is sent is the total less all fills; nothing if they have reached it."""
    record = ask(live(2, 0), replace(total, price=101))
    record = observed(record, report(S.CANCELED if filled < 2 else S.CLOSED, filled))
    if filled >= total:
        assert record.state is I.FILLED
        assert record.quantity == filled
        return
    assert record.state is I.RECORDED
    assert (record.quantity, record.limit_price) == (total, 101)
    record = begin(record)
    assert (record.last.quantity, record.last.limit_price) == (total - filled, 101)
    assert record.change is None
    assert worst_case(record) == total


@pytest.mark.guarantee(1)
def test_g1_a_larger_total_is_authorised_only_once_the_old_order_has_ended():
    """Until then the old total holds, whatever was wished for."""
    record = ask(live(), replace(5))
    assert (record.state, record.quantity, room(record)) == (I.LIVE, 2, 0)
    with pytest.raises(InvalidTransition):
        begin(record)
    record = observed(record, report(S.OPEN, 1))
    assert record.quantity == 2
    assert observed(record, report(S.CANCELED, 1)).quantity == 5


def test_a_replacement_that_is_wished_for_while_in_doubt_waits_for_the_verdict():
    record = ask(in_doubt(), replace(5))
    assert (record.state, record.quantity) == (I.IN_DOUBT, 2)
    found = observed(record, report(S.OPEN, 0))
    assert next_step(found, attempts_max=4, now_ms=0) is Step.CANCEL
    gone = absent(record, 1)
    assert (gone.state, gone.quantity, begin(gone).last.quantity) == (I.RECORDED, 5, 5)


def test_a_cancel_is_never_displaced_by_a_replacement_but_displaces_one():
    wished = ask(live(), CANCEL)
    assert ask(wished, replace(3)) is wished
    assert ask(wished, CANCEL) is wished
    assert ask(ask(live(), replace(3)), CANCEL).change.is_cancel


ENDED = {
    "filled": lambda: observed(live(), report(S.CLOSED, 2)),
    "canceled": lambda: observed(live(), report(S.CANCELED, 1)),
    "expired": lambda: observed(live(), report(S.EXPIRED, 0)),
    "rejected": lambda: refused(sending(), 1, ERROR),
    "failed": lambda: give_up(absent(in_doubt(), 1)),
    "vanished": lambda: vanished(live(), 1, ()),
}


@pytest.mark.parametrize("name", ENDED)
@pytest.mark.parametrize("change", [CANCEL, replace(5), replace(1)], ids=["cancel", "more", "less"])
def test_what_has_ended_can_no_longer_be_changed(name, change):
    """A fill may come between the caller's look and the wish: the wish then changes nothing, and nothing is sent."""
    ended = ENDED[name]()
    assert ask(ended, change) is ended


def test_an_intent_that_was_canceled_before_anything_was_sent_ends_canceled():
    record = ask(new(), CANCEL)
    assert record.state is I.CANCELED
    with pytest.raises(InvalidTransition):
        begin(record)


@pytest.mark.guarantee(4)
def test_g4_a_replaced_order_whose_replacement_was_never_placed_has_not_failed():
    """There was an order, the venue had accepted it: "never placed" would be false."""
    record = begin(observed(ask(live(), replace(3)), report(S.CANCELED, 0)))
    record = give_up(absent(doubted(record, 2, None), 2))
    assert record.state is I.CANCELED


# Ends that no view shows, and ends that were none.


@pytest.mark.guarantee(11)
def test_g11_an_order_that_vanished_is_over_with_what_the_list_of_fills_holds():
    """Fills that were known already are not counted twice, and what comes later is credited."""
    known = Fill(trade_id="a", quantity=Decimal(1), price=Decimal(100))
    record = observed(live(), report(S.OPEN, 1, fills=(known,)))
    record = vanished(record, 1, (known,))
    assert (record.state, record.last.state, record.filled_quantity) == (I.CANCELED, A.VANISHED, 1)
    late = Fill(trade_id="b", quantity=Decimal(1), price=Decimal(102))
    record = observed(record, report(S.UNKNOWN, None, fills=(late,)))
    assert (record.state, record.filled_quantity, record.average_price) == (I.FILLED, 2, 101)


@pytest.mark.guarantee(4)
@pytest.mark.parametrize("is_late", [False, True], ids=["in doubt", "unresolved"])
def test_g4_only_what_the_venue_said_exists_can_have_vanished_unseen(is_late):
    """Nothing was ever seen of it but a duplicate-id reject: it ends canceled, is not sent again, and may come back."""
    hearsay = unresolved(in_doubt(), 1) if is_late else in_doubt()
    assert vanished(hearsay, 1, ()) is hearsay
    known = doubted(in_doubt(), 1, None, exists=True)
    record = vanished(unresolved(known, 1) if is_late else known, 1, ())
    assert (record.state, record.last.state, worst_case(record)) == (I.CANCELED, A.VANISHED, 0)
    assert next_step(record, attempts_max=9, now_ms=9) is Step.DONE
    assert observed(record, report(S.CLOSED, 2)).state is I.FILLED


def test_an_order_that_vanished_after_it_filled_is_filled():
    trades = tuple(Fill(trade_id=name, quantity=Decimal(1), price=Decimal(100)) for name in "ab")
    record = vanished(live(), 1, trades)
    assert (record.state, record.last.state) == (I.FILLED, A.FILLED)


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("name", ["canceled", "expired", "vanished"])
def test_g11_an_order_that_rests_although_it_had_ended_counts_again(name):
    """The end was acknowledged or concluded at 5: a reading that began a lag later and shows it resting is right."""
    ended = ENDED[name]()
    resting = report(S.OPEN, 0)
    assert transitions.revived(ended, resting, looked_at_ms=8, lag_ms=4, now_ms=9) is ended
    again = transitions.revived(ended, resting, looked_at_ms=9, lag_ms=4, now_ms=9)
    assert (again.state, again.last.state) == (I.LIVE, A.LIVE)
    assert worst_case(again) == 2
    assert again.given_up, "late evidence revives the order, not the sending"


@pytest.mark.parametrize("name", ["filled", "rejected", "failed"])
def test_what_filled_or_never_was_is_not_revived_by_a_reading_alone(name):
    ended = ENDED[name]()
    assert revived(ended, report(S.OPEN, 0)) is ended


def test_a_reading_that_shows_no_resting_order_revives_nothing():
    ended = ENDED["canceled"]()
    assert revived(ended, report(S.UNKNOWN, None)) is ended
    assert revived(ended, report(S.OPEN, 0, cid="other", vid="9")) is ended


# Rejecting, doubting, giving up.


@pytest.mark.guarantee(4)
def test_g4_a_reject_counts_only_while_nothing_else_is_known():
    """FI-01: a reject (of a retry, of a duplicate) after a doubt or an ack says nothing about the order."""
    for known in (in_doubt(), live(), observed(live(), report(S.CLOSED, 2))):
        assert refused(known, 1, ERROR) is known
    rejected = refused(sending(), 1, ERROR)
    assert rejected.state is I.REJECTED
    assert rejected.last.error == ERROR
    assert rejected.given_up


def test_a_doubt_keeps_its_first_reason_and_beginning_until_it_is_reopened():
    record = transitions.doubted(sending(), 1, ERROR, deadline_ms=10, now_ms=3)
    again = transitions.doubted(record, 1, None, deadline_ms=10, exists=True, now_ms=9)
    assert (again.last.error, again.last.doubted_at_ms, again.last.exists) == (ERROR, 3, True)
    reopened = transitions.doubted(unresolved(again, 1), 1, None, deadline_ms=20, now_ms=50)
    assert (reopened.last.doubted_at_ms, reopened.last.exists, reopened.last.deadline_ms) == (50, True, 20)


ILLEGAL = {
    "a live order was not sent": lambda: not_sent(live(), 1),
    "a doubtful order was not sent": lambda: not_sent(in_doubt(), 1),
    "sending while sending": lambda: begin(sending()),
    "sending while in doubt": lambda: begin(in_doubt()),
    "sending while unresolved": lambda: begin(unresolved(in_doubt(), 1)),
    "sending while live": lambda: begin(live()),
    "sending what is filled": lambda: begin(observed(live(), report(S.CLOSED, 2))),
    "sending what was canceled": lambda: begin(observed(live(), report(S.CANCELED, 1))),
    "sending what was rejected": lambda: begin(refused(sending(), 1, ERROR)),
    "sending what was given up": lambda: begin(give_up(new())),
}


@pytest.mark.guarantee(1, 3)
@pytest.mark.parametrize("name", ILLEGAL)
def test_g3_an_illegal_transition_raises(name):
    """It would be a defect of the caller: never repaired silently."""
    with pytest.raises(InvalidTransition) as caught:
        ILLEGAL[name]()
    assert caught.value.intent_key == "k"


NO_CHANGE = {
    "absence of what is live": lambda r: absent(r, 1),
    "loss of patience with what is live": lambda r: unresolved(r, 1),
    "doubt about what is live": lambda r: doubted(r, 1, None),
}


@pytest.mark.parametrize("name", NO_CHANGE)
def test_a_verdict_that_evidence_overtook_changes_nothing(name):
    record = live()
    assert NO_CHANGE[name](record) is record


def _unresolved(record, _report):
    return unresolved(doubted(record, 1, None), 1)


@pytest.mark.parametrize("change", [observed, lambda record, _: refused(record, 1, ERROR), _unresolved])
def test_what_a_change_is_not_about_stays_as_it_was(change):
    """Records are written out field by field: one that was forgotten would fall back to its default."""
    record = attrs.evolve(begin(new()), change=CANCEL, created_at_ms=3, version=7, venue="here")
    attempt = attrs.evolve(record.attempts[0], doubted_at_ms=2, error=ERROR, prepared_at_ms=1, average_price=Decimal(9))
    record = attrs.evolve(record, attempts=(attempt,))
    after = change(record, report(filled=1))
    follows = {"attempts", "state", "given_up", "updated_at_ms", "ended_at_ms"}
    for name in {field.name for field in attrs.fields(IntentRecord)} - follows:
        assert getattr(after, name) == getattr(record, name), name
    for name in ("number", "client_order_id", "quantity", "limit_price", "prepared_at_ms", "deadline_ms", "error"):
        assert getattr(after.attempts[0], name) == getattr(attempt, name), name
    assert observed(record, report(filled=0)).attempts[0].doubted_at_ms == 2
    assert observed(record, report(filled=0)).attempts[0].average_price == 9


def test_times_follow_the_observations():
    record = transitions.observed(begin(new(), now_ms=3), report(S.CANCELED, 1), now_ms=8)
    assert (record.created_at_ms, record.updated_at_ms, record.ended_at_ms) == (0, 8, 8)
    late = transitions.observed(record, report(S.CLOSED, 2), now_ms=20)
    assert (late.updated_at_ms, late.ended_at_ms) == (20, 8)
