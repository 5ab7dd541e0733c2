"""The ghost protocol, explored exhaustively: one sender, two attempts, one crash, and a venue that does its worst.

The sender's decisions are production's own (`begin`, `doubted`, `doubt_of`, `judge`, `proven_absent`, `observed`,
`next_step`), so the model cannot drift from the code. The network drops, delays and hides as it likes within what a
venue's profile promises: a request is refused after its deadline, up to a clock skew late; a read may lag. One tick is
one millisecond. The search finds no history with two orders, nor one with an order after a final failure; and it does
find one as soon as any single rule is relaxed by one tick, which also shows that it looks in the right places.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import attrs
import pytest

from execsafe.core import transitions
from execsafe.core.ghosts import Doubt, Sighting, Verdict, doubt_of, judge
from execsafe.core.steps import Step, next_step
from execsafe.model.intent import AttemptState, Intent, IntentRecord, IntentState
from execsafe.model.order import ZERO, OrderReport, OrderStatus
from execsafe.model.venue import Dedup, Expiry, LookUp, VenueProfile, View

INTENT = Intent(key="k", symbol="BTC/USDT", side="buy", quantity=1)
START = transitions.new_record(INTENT, quantity=INTENT.quantity, limit_price=None, now_ms=0)
VIEWS = (View.CLIENT_ID,)
WINDOW = 1
NEVER = 10**6


class Order(NamedTuple):
    cid: str
    at: int
    is_open: bool


class Request(NamedTuple):
    """On the wire. The venue refuses it once its clock is past the deadline."""

    attempt: int
    cid: str
    deadline: int


class World(NamedTuple):
    t: int
    record: IntentRecord  # durable: survives a crash
    calling: int  # number of the attempt whose call is under way, 0: none; lost in a crash
    handed_over: bool
    wire: frozenset[Request]
    orders: tuple[Order, ...]
    crashes: int


@attrs.frozen
class Rules:
    """A venue, and how the sender judges there; the defaults of the latter are production's."""

    profile: VenueProfile
    attempts_max: int = 2
    doubt: Callable[[Doubt], Doubt] = lambda doubt: doubt
    unreadable_is_absent: bool = False
    sees_open_orders_only: bool = False
    resends_at_once: bool = False

    @property
    def skew(self) -> int:
        return round(self.profile.clock_skew_s * 1000)

    @property
    def lag(self) -> int:
        return round(self.profile.read_lag_s * 1000)

    @property
    def t_end(self) -> int:
        """Late enough for both attempts to be proven dead one after the other, and a tick more."""
        return self.attempts_max * (WINDOW + self.skew + self.lag) + 2


def profile(dedup: Dedup, expiry: Expiry, lag: int, skew: int) -> VenueProfile:
    return VenueProfile(
        dedup=dedup,
        expiry=expiry,
        expiry_window_s=WINDOW / 1000,
        clock_skew_s=skew / 1000,
        read_lag_s=lag / 1000,
        lookups=(LookUp(view=View.CLIENT_ID, method="fetch_order"),),
    )


# --- Production's decisions, remembered ---------------------------------------------------------------------


@cache
def begun(record: IntentRecord, deadline: int | None) -> IntentRecord:
    cid = f"c{transitions.generation(record)}"
    return transitions.begin(record, client_order_id=cid, deadline_ms=deadline, now_ms=0)


@cache
def doubted(record: IntentRecord, number: int, deadline: int | None, exists: bool = False) -> IntentRecord:
    return transitions.doubted(record, number, None, deadline_ms=deadline, exists=exists, now_ms=0)


@cache
def absent(record: IntentRecord, number: int) -> IntentRecord:
    return transitions.proven_absent(record, number, now_ms=0)


@cache
def not_sent(record: IntentRecord, number: int) -> IntentRecord:
    return transitions.not_sent(record, number, now_ms=0)


@cache
def seen(record: IntentRecord, order: Order) -> IntentRecord:
    said = OrderReport(
        symbol="BTC/USDT",
        status=OrderStatus.OPEN,
        client_order_id=order.cid,
        venue_order_id=f"v{order.at}",
        filled_quantity=ZERO,
    )
    return transitions.observed(record, said, now_ms=0)


@cache
def given_up(record: IntentRecord) -> IntentRecord:
    return transitions.give_up(record, now_ms=0)


@cache
def step_of(record: IntentRecord, attempts_max: int) -> Step:
    return next_step(record, attempts_max=attempts_max, now_ms=0)


# --- What may happen next -----------------------------------------------------------------------------------


def moves(w: World, rules: Rules) -> Iterator[tuple[str, World]]:
    if w.t < rules.t_end:
        yield "tick", w._replace(t=w.t + 1)
    if w.calling:
        yield from call(w, rules)
        if w.crashes == 0:
            yield "crash", w._replace(calling=0, handed_over=False, crashes=1)
    else:
        yield from decide(w, rules)
    for request in w.wire:
        yield from land(w, request, rules)
    if rules.profile.dedup is Dedup.OPEN or rules.sees_open_orders_only:
        for n, order in enumerate(w.orders):
            if order.is_open:
                filled = (*w.orders[:n], order._replace(is_open=False), *w.orders[n + 1 :])
                yield "fill", w._replace(orders=filled)


def deadline_from(t: int, rules: Rules) -> int | None:
    """A request that is signed at the latest at *t* cannot land after this, by the sender's clock."""
    return None if rules.profile.expiry is Expiry.NONE else t + WINDOW


def decide(w: World, rules: Rules) -> Iterator[tuple[str, World]]:
    step = step_of(w.record, rules.attempts_max)
    if step is Step.SEND:
        record = begun(w.record, deadline_from(w.t, rules))
        yield "journal", w._replace(record=record, calling=len(record.attempts), handed_over=False)
    elif step is Step.GIVE_UP:
        yield "give up", w._replace(record=given_up(w.record))
    elif step is Step.RESOLVE:
        attempt = next(a for a in w.record.attempts if a.state in {AttemptState.SENDING, AttemptState.IN_DOUBT})
        if attempt.state is AttemptState.SENDING:  # found in the journal after a crash
            yield "doubt", w._replace(record=doubted(w.record, attempt.number, deadline_from(w.t, rules)))
        else:
            yield from look(w, attempt.number, rules)


def look(w: World, number: int, rules: Rules) -> Iterator[tuple[str, World]]:
    attempt = w.record.attempts[number - 1]
    mine = [o for o in w.orders if o.cid == attempt.client_order_id]
    visible = [o for o in mine if o.is_open or not rules.sees_open_orders_only]
    for order in visible:
        yield "found", w._replace(record=seen(w.record, order))
    must_be_seen = any(o.at + rules.lag <= w.t for o in visible)
    if must_be_seen and not rules.unreadable_is_absent:
        return  # else the read may lag: it shows nothing
    doubt = rules.doubt(doubt_of(attempt, rules.profile, since_ms=0, patience_s=NEVER))
    verdict = judge(doubt, VIEWS, {View.CLIENT_ID: Sighting.ABSENT}, looked_at_ms=w.t)
    if verdict is Verdict.ABSENT or rules.resends_at_once:
        yield "absent", w._replace(record=absent(w.record, number))


def call(w: World, rules: Rules) -> Iterator[tuple[str, World]]:
    number = w.calling
    attempt = w.record.attempts[number - 1]
    expiry = rules.profile.expiry
    if not w.handed_over:
        if expiry is Expiry.ABSOLUTE and attempt.deadline_ms is not None and w.t >= attempt.deadline_ms:
            yield "withhold", w._replace(record=not_sent(w.record, number), calling=0)
            return
        # A relative window starts when the request is signed: now.
        bound = attempt.deadline_ms if expiry is Expiry.ABSOLUTE else deadline_from(w.t, rules)
        request = Request(number, attempt.client_order_id, NEVER if bound is None else bound)
        yield "send", w._replace(handed_over=True, wire=w.wire | {request})
        return
    bound = attempt.deadline_ms if expiry is Expiry.ABSOLUTE else deadline_from(w.t, rules)
    yield "time out", w._replace(record=doubted(w.record, number, bound), calling=0, handed_over=False)


def land(w: World, request: Request, rules: Rules) -> Iterator[tuple[str, World]]:
    gone = w._replace(wire=w.wire - {request})
    yield "drop", gone
    if w.t > request.deadline + rules.skew:
        return
    is_waiting = w.calling == request.attempt and w.handed_over
    if is_taken(request.cid, w.orders, rules.profile.dedup):
        if is_waiting:
            bound = deadline_from(w.t, rules)
            record = doubted(w.record, request.attempt, bound, True)
            yield "duplicate", gone._replace(record=record, calling=0, handed_over=False)
        return
    order = Order(request.cid, w.t, True)
    accepted = gone._replace(orders=tuple(sorted((*w.orders, order))))
    yield "accept", accepted
    if is_waiting:
        yield "reply", accepted._replace(record=seen(w.record, order), calling=0, handed_over=False)


def is_taken(cid: str, orders: tuple[Order, ...], dedup: Dedup) -> bool:
    mine = [o for o in orders if o.cid == cid]
    if dedup is Dedup.OPEN:
        return any(o.is_open for o in mine)
    return bool(mine) and dedup is not Dedup.NONE


# --- The search ---------------------------------------------------------------------------------------------


class Found(NamedTuple):
    states: int
    happened: frozenset[str]
    attempts: int
    two_orders: tuple[str, ...] | None  # the shortest history
    false_failure: tuple[str, ...] | None


def search(rules: Rules, *, stop_at: str = "") -> Found:
    start = World(0, START, 0, False, frozenset(), (), 0)
    came_from: dict[World, tuple[World, str] | None] = {start: None}
    queue, happened, attempts = deque([start]), set(), 0
    bad: dict[str, World] = {}
    while queue and stop_at not in bad:
        world = queue.popleft()
        attempts = max(attempts, len(world.record.attempts))
        if len(world.orders) > 1:
            bad.setdefault("two orders", world)
        if world.orders and world.record.state is IntentState.FAILED_FINAL:
            bad.setdefault("false failure", world)
        for what, after in moves(world, rules):
            happened.add(what)
            if after not in came_from:
                came_from[after] = (world, what)
                queue.append(after)
    return Found(
        len(came_from),
        frozenset(happened),
        attempts,
        history(bad.get("two orders"), came_from),
        history(bad.get("false failure"), came_from),
    )


def history(world: World | None, came_from: dict) -> tuple[str, ...] | None:
    if world is None:
        return None
    told: list[str] = []
    while (step := came_from[world]) is not None:
        world, what = step
        told.append(f"{what} at {world.t}")
    return tuple(reversed(told))


# A lag covers at least the way of the look itself; one of 0 ticks would mean that reading takes no time at all.
CELLS = list(itertools.product(Dedup, Expiry, (1, 2), (0, 1)))
BOUNDED = [cell for cell in CELLS if cell[1] is not Expiry.NONE]


def name(cell) -> str:
    dedup, expiry, lag, skew = cell
    return f"{dedup.value}-{expiry.value}-lag{lag}-skew{skew}"


@pytest.mark.guarantee(1, 3, 4, 13)
@pytest.mark.parametrize("cell", CELLS, ids=name)
def test_g3_no_history_has_two_orders_or_a_false_failure(cell):
    """Every venue profile of the product, exhaustively; and without expiry nothing is ever sent twice."""
    found = search(Rules(profile(*cell)))
    assert found.two_orders is None
    assert found.false_failure is None
    always = {"journal", "send", "accept", "drop", "reply", "time out", "doubt", "found", "crash", "tick"}
    assert always <= found.happened
    if cell[1] is Expiry.NONE:
        assert found.attempts == 1
        assert found.happened.isdisjoint({"absent", "give up"})
    else:
        assert found.attempts == 2
        assert {"absent", "give up"} <= found.happened


@pytest.mark.guarantee(3)
@pytest.mark.parametrize("cell", BOUNDED, ids=name)
def test_g3_the_bound_is_tight_one_tick_less_and_a_history_with_a_wrong_end_exists(cell):
    """Waiting any shorter is unsafe, so waiting this long is not caution but necessity."""

    def one_tick_less(doubt: Doubt) -> Doubt:
        proof = doubt.proof_at_ms
        return attrs.evolve(doubt, proof_at_ms=None if proof is None else proof - 1)

    failed = search(Rules(profile(*cell), attempts_max=1, doubt=one_tick_less), stop_at="false failure")
    assert failed.false_failure is not None
    if cell[0] in {Dedup.NONE, Dedup.OPEN}:  # the others refuse the second order: there only the verdict is false
        assert search(Rules(profile(*cell), doubt=one_tick_less), stop_at="two orders").two_orders is not None


BROKEN = {
    "unreadable counts as absent": {"unreadable_is_absent": True},
    "open orders are the only view": {"sees_open_orders_only": True},
    "a time-out is enough to send again": {"resends_at_once": True},
}


@pytest.mark.guarantee(3, 18)
@pytest.mark.parametrize("rule", BROKEN)
@pytest.mark.parametrize("expiry", [Expiry.RELATIVE, Expiry.ABSOLUTE])
def test_g3_each_rule_is_needed(rule, expiry):
    """FI-09, FI-15, FI-40: with any one of them broken, the search finds a history with two orders."""
    found = search(Rules(profile(Dedup.OPEN, expiry, 2, 1), **BROKEN[rule]), stop_at="two orders")
    assert found.two_orders is not None
