"""Reconciliation as a function: what the book, the journal and the venue say, and what follows from it.

A difference counts once a second, later reading shows the same (``Finding.confirmed``). A reading that failed decides
nothing: what was found before stands. Decisions take the instant of the observation as now, so the same observation
never decides anything twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from execsafe.core.findings import (
    OF_POSITIONS,
    Action,
    Backing,
    BookFill,
    CancelOrder,
    Finding,
    Findings,
    Kind,
    Observation,
    OrderSeen,
    Owner,
    ReconcilePolicy,
    Settle,
    Verified,
    inferred_fill,
    is_not_offered,
)
from execsafe.core.holdings import compare_positions, is_settled, is_spot, sides_of, symbols_of
from execsafe.core.safety import is_auth
from execsafe.model.event import Event, EventType
from execsafe.model.intent import ErrorFacts, IntentRecord
from execsafe.model.order import ZERO
from execsafe.model.position import Snapshot, Unavailable
from execsafe.model.values import EXACT, Params, plain

_EVENT_OF: Final = {
    Kind.FOREIGN_ORDER: EventType.FOREIGN_ORDER_FOUND,
    Kind.LOST_ORDER: EventType.FOREIGN_ORDER_FOUND,
    Kind.ORPHAN_STOP: EventType.ORPHAN_STOP_FOUND,
    Kind.STUCK_ORDER: EventType.STUCK_ORDER_FOUND,
}
_AT_ONCE: Final = frozenset({Kind.FOREIGN_ORDER, Kind.LOST_ORDER, Kind.STUCK_ORDER})  # one reading proves them
_ORDERS_MAX: Final = 500
_SHORT_LIVED: Final = frozenset({"IOC", "FOK"})


@attrs.frozen(kw_only=True)
class Reconciliation:
    """What one pass came to.

    Attributes:
        at_ms: when it began.
        record: what is to be remembered.
        verified: how much is held of each symbol that could be compared, source by source.
        actions: what to do now, in order.
        events: what is to be told: only what is new.
        unread: views that could not be read.
        error: why the first of them could not, where that is known.
        is_complete: every view was read, every symbol compared, every difference confirmed, every intent settled.
    """

    at_ms: int
    record: Findings
    verified: tuple[Verified, ...] = ()
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    unread: tuple[str, ...] = ()
    error: ErrorFacts | None = None
    is_complete: bool = False

    @property
    def differences(self) -> tuple[Finding, ...]:
        """What is confirmed."""
        return tuple(found for found in self.record.findings if found.confirmed)

    @property
    def lifts_barrier(self) -> bool:
        """Whether entries may begin: everything was seen since this pass began, and nothing is left to be done.

        What cannot be seen to end is settled again in every pass; it is known, and no reason to wait. One symbol that
        was not read keeps the entries of all others waiting: it may show an order with our marker that no journal
        knows, and the margin is the account's.
        """
        return self.is_complete and all(isinstance(action, Settle) for action in self.actions)

    @property
    def pending(self) -> tuple[Finding, ...]:
        """What was seen once, and waits for a second reading."""
        return tuple(found for found in self.record.findings if not found.confirmed)


def decide(record: Findings, seen: Observation, policy: ReconcilePolicy) -> Reconciliation:
    """What follows from *seen*, given what was found before."""
    held = compare_positions(record, seen)
    orders, listed = _compare_orders(seen, policy)
    fresh = [*held.differences, *orders, *_stuck(seen, policy)]
    findings = [_joined(record, found, taken_ms, seen, policy) for found, taken_ms in fresh]
    known = {found.what for found in findings}
    carried = [f for f in record.findings if f.what not in known and _stands(f, held.compared, listed)]
    acted, actions = _act(findings, seen, policy, {found.what: taken_ms for found, taken_ms in fresh})
    unread = _unread(seen)
    is_pending = any(not found.confirmed for found in (*acted, *carried))
    unsettled = any(not is_settled(intent) for intent in seen.intents)
    is_compared = held.compared >= _must_compare(record, seen)
    after = attrs.evolve(record, findings=_in_order((*acted, *carried)), unread=tuple(unread))
    is_sure = is_compared and not unread and not is_pending
    after, events = _tell(record, after, seen, unread, is_sure=is_sure)
    return Reconciliation(
        at_ms=seen.at_ms,
        record=after,
        verified=held.verified,
        actions=actions,
        events=events,
        unread=tuple(unread),
        error=next(filter(None, unread.values()), None),
        is_complete=is_sure and not unsettled,
    )


def _in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: (f.symbol, f.kind.value, f.subject)))


# --- Orders ----------------------------------------------------------------------------------------


def _compare_orders(
    seen: Observation, policy: ReconcilePolicy
) -> tuple[list[tuple[Finding, int]], set[tuple[str, bool]]]:
    """Findings about orders, and the (symbol, whether about stops) of which this pass could tell."""
    found: list[tuple[Finding, int]] = []
    listed: set[tuple[str, bool]] = set()
    for symbol, listing in seen.orders.items():
        if isinstance(listing, Unavailable):
            continue
        listed.add((symbol, False))
        is_flat = _is_flat(seen, symbol, policy)
        if is_flat is not None:
            listed.add((symbol, True))
        for order in listing.value:
            taken_ms = listing.taken_at_ms
            has_rested = taken_ms >= order.since_ms + round(policy.orphan_age_s * 1000)
            kinds = _kinds_of(order, may_be_orphan=is_flat is True and has_rested)
            found.extend((_order_finding(kind, order, taken_ms), taken_ms) for kind in kinds)
    return _first_of(found), listed


def _first_of(found: list[tuple[Finding, int]]) -> list[tuple[Finding, int]]:
    """At most so many, always the same ones: the record of an account in which others trade a lot stays small."""
    return sorted(found, key=lambda one: (one[0].kind is Kind.FOREIGN_ORDER, one[0].subject))[:_ORDERS_MAX]


def _kinds_of(order: OrderSeen, *, may_be_orphan: bool) -> tuple[Kind, ...]:
    orphan = (Kind.ORPHAN_STOP,) if may_be_orphan and order.is_stop and not order.is_kept else ()
    match order.owner:
        case Owner.ENDED:
            return ()
        case Owner.OURS:
            return orphan
        case Owner.LOST:
            return (Kind.LOST_ORDER, *orphan)
        case Owner.FOREIGN:
            return (Kind.FOREIGN_ORDER,)


def _is_flat(seen: Observation, symbol: str, policy: ReconcilePolicy) -> bool | None:
    """Whether the book and the venue agree that nothing is held, and nothing has moved for long; None: unknown.

    On spot a balance cannot tell whose it is, so a stop there is never known to be without its position.
    """
    if any(position.symbol == symbol for position in seen.book):
        return False
    if is_spot(symbol) or isinstance(seen.positions, Unavailable):
        return None
    quiet_ms = seen.active_ms.get(symbol, -1) + max(seen.lag_ms, round(policy.orphan_age_s * 1000))
    if symbol in seen.active_ms and seen.positions.taken_at_ms < quiet_ms:
        return None
    if any(intent.intent.symbol == symbol and not is_settled(intent) for intent in seen.intents):
        return None
    return not sides_of(seen, symbol)


def _order_finding(kind: Kind, order: OrderSeen, taken_ms: int) -> Finding:
    return Finding(
        kind=kind,
        symbol=order.symbol,
        subject=order.id,
        venue_quantity=order.quantity or ZERO,
        identity=order.identity,
        client_order_id=order.client_order_id,
        venue_order_id=order.venue_order_id,
        first_seen_ms=taken_ms,
        note=order.owner.value,
    )


def _stuck(seen: Observation, policy: ReconcilePolicy) -> list[tuple[Finding, int]]:
    found: list[tuple[Finding, int]] = []
    for record in seen.intents:
        since_ms = _should_have_ended_since(record)
        if since_ms is None or seen.at_ms < since_ms + round(policy.stuck_after_s * 1000):
            continue
        one = Finding(
            kind=Kind.STUCK_ORDER,
            symbol=record.intent.symbol,
            subject=record.intent.identity,
            venue_quantity=record.leaves_quantity,
            identity=record.intent.identity,
            first_seen_ms=seen.at_ms,
            note=record.state.value,
        )
        found.append((one, seen.at_ms))
    return found


def _should_have_ended_since(record: IntentRecord) -> int | None:
    """Since when this is open although it ends by itself; None: it may rest."""
    if record.state.is_terminal:
        return None
    if not is_settled(record):
        return record.updated_at_ms
    if record.change is not None:
        return record.change.asked_at_ms
    intent, last = record.intent, record.last
    ends_itself = (intent.time_in_force or "").upper() in _SHORT_LIVED or record.limit_price is None
    if intent.is_trigger or not ends_itself:
        return None
    return record.created_at_ms if last is None else last.prepared_at_ms


# --- From one pass to the next -----------------------------------------------------------------------


def _joined(record: Findings, found: Finding, taken_ms: int, seen: Observation, policy: ReconcilePolicy) -> Finding:
    """*found* with what is remembered of it. A second reading confirms, if it began long enough after the first."""
    if found.kind in _AT_ONCE:
        known = next((f for f in record.findings if f.what == found.what), None)
        return attrs.evolve(found, confirmed=True) if known is None else known
    known = next((f for f in record.findings if f.what == found.what), None)
    if known is None or known.confirmed:
        return found if known is None else known
    return attrs.evolve(known, confirmed=taken_ms >= known.first_seen_ms + _confirm_ms(seen, policy))


def _confirm_ms(seen: Observation, policy: ReconcilePolicy) -> int:
    return max(seen.lag_ms, round(policy.confirm_after_s * 1000))


def _stands(found: Finding, compared: frozenset[str], listed: set[tuple[str, bool]]) -> bool:
    """Whether an earlier finding that was not seen now could not be seen: then it stands."""
    if found.kind is Kind.STUCK_ORDER:
        return False
    if found.kind in OF_POSITIONS:
        return found.symbol not in compared
    return (found.symbol, found.kind is Kind.ORPHAN_STOP) not in listed


def _act(
    findings: list[Finding], seen: Observation, policy: ReconcilePolicy, taken_ms: dict[tuple[object, ...], int]
) -> tuple[list[Finding], tuple[Action, ...]]:
    """What is to be done about what this very pass has seen; again only once a later reading shows it still."""
    after: list[Finding] = []
    actions: list[Action] = []
    for found in findings:
        is_due = found.acted_at_ms is None or taken_ms[found.what] >= found.acted_at_ms + _confirm_ms(seen, policy)
        action = _action(found, seen, policy) if found.confirmed and is_due else None
        if action is not None:
            actions.append(action)
        # A fill is inferred once; booking it again, in case that was cut short, changes nothing.
        is_again = isinstance(action, BookFill) and found.acted_at_ms is not None
        after.append(found if action is None or is_again else attrs.evolve(found, acted_at_ms=seen.at_ms))
    # One look into everything settles all that is stuck.
    return after, tuple(dict.fromkeys(actions))


def _action(found: Finding, seen: Observation, policy: ReconcilePolicy) -> Action | None:
    if found.kind is Kind.STUCK_ORDER:
        return Settle()
    if found.kind is Kind.ORPHAN_STOP:
        is_ours = bool(found.identity)
        if not (policy.cancel_orphan_stops if is_ours else policy.cancel_lost_stops):
            return None
        return CancelOrder(
            symbol=found.symbol,
            identity=found.identity,
            client_order_id=found.client_order_id,
            venue_order_id=found.venue_order_id,
        )
    if found.kind not in OF_POSITIONS or found.kind is Kind.TWO_SIDED or not _may_infer(found, seen, policy):
        return None
    execution = inferred_fill(seen.account, found)
    return None if execution is None else BookFill(execution=execution)


def _may_infer(found: Finding, seen: Observation, policy: ReconcilePolicy) -> bool:
    """Whether a fill that nobody saw may be booked. Two sources that agree on the book forbid it."""
    held, shown = found.book_quantity, found.venue_quantity
    if is_spot(found.symbol):
        fee_max = EXACT.multiply(abs(held), policy.unstated_fee_ratio)
        return abs(found.difference) <= fee_max
    backing = seen.backing.get(found.symbol, Backing.UNREAD)
    reduces = abs(shown) < abs(held) and held * shown >= 0
    if not policy.infer_fills or not (reduces or policy.adopt_foreign):
        return False
    # What an order of ours filled must be known first: then it is no inference.
    return backing is Backing.NOT_OFFERED and isinstance(seen.orders.get(found.symbol), Snapshot)


# --- Telling -----------------------------------------------------------------------------------------


def _must_compare(record: Findings, seen: Observation) -> set[str]:
    """Spot holdings cannot be compared where the venue's adapter offers no balances; nothing waits for that."""
    symbols = symbols_of(record, seen)
    return {symbol for symbol in symbols if not is_spot(symbol)} if is_not_offered(seen.balances) else symbols


def _unread(seen: Observation) -> dict[str, ErrorFacts | None]:
    """The views that this pass has not read, and why. What was read before it began says nothing about now."""
    wanted = sorted({*seen.symbols, *seen.orders})
    views: dict[str, object] = {f"open orders of {symbol}": seen.orders.get(symbol) for symbol in wanted}
    # Where only spot is traded nothing is compared with positions, and many accounts may not read them at all.
    if not all(map(is_spot, [*wanted, *(position.symbol for position in seen.book)])):
        views["positions"] = seen.positions
    if seen.balances is not None and not is_not_offered(seen.balances):
        views["balances"] = seen.balances
    return {
        view: reading.error if isinstance(reading, Unavailable) else None
        for view, reading in views.items()
        if not _is_read(reading, seen)
    }


def _is_read(reading: object, seen: Observation) -> bool:
    return isinstance(reading, Snapshot) and reading.taken_at_ms >= seen.at_ms


def _tell(
    before: Findings, after: Findings, seen: Observation, unread: Mapping[str, ErrorFacts | None], *, is_sure: bool
) -> tuple[Findings, tuple[Event, ...]]:
    known = {found.what for found in before.findings if found.confirmed}
    acted = {found.what for found in before.findings if found.acted_at_ms is not None}
    booked = [f for f in after.findings if f.kind in OF_POSITIONS and f.acted_at_ms == seen.at_ms]
    events = [_event(found, seen) for found in after.findings if found.confirmed and found.what not in known]
    events += [inferred_event(found, seen.account, seen.at_ms) for found in booked if found.what not in acted]
    events += [
        Event(type=EventType.VIEW_UNAVAILABLE, at_ms=seen.at_ms, subject="reconciler", note=view, error=error)
        for view, error in unread.items()
        if view not in before.unread or is_auth(error)  # a key that is refused is told until it works
    ]
    is_news = any(event.type is EventType.DIFFERENCE_FOUND for event in events)
    if not is_sure:
        return (attrs.evolve(after, told=None) if is_news else after), tuple(events)
    # What is booked right now differs no more.
    count = sum(1 for found in after.findings if found.kind in OF_POSITIONS) - len(booked)
    if is_news or count != before.told:
        details = Params.of({"differences": count})
        events.append(Event(type=EventType.RECONCILED, at_ms=seen.at_ms, subject=seen.account, details=details))
    return attrs.evolve(after, told=count), tuple(events)


def _event(found: Finding, seen: Observation) -> Event:
    details: dict[str, object] = {"kind": found.kind.value, "account": seen.account}
    if found.kind in OF_POSITIONS:
        backing = seen.backing.get(found.symbol, Backing.UNREAD)
        details |= {"book": plain(found.book_quantity), "venue": plain(found.venue_quantity), "fills": backing.value}
    return Event(
        type=_EVENT_OF.get(found.kind, EventType.DIFFERENCE_FOUND),
        at_ms=seen.at_ms,
        subject=found.subject,
        symbol=found.symbol,
        client_order_id=found.client_order_id,
        venue_order_id=found.venue_order_id,
        quantity=abs(found.difference) if found.kind in OF_POSITIONS else found.venue_quantity,
        price=found.price,
        note=found.note,
        details=Params.of(details),
    )


def inferred_event(found: Finding, account: str, at_ms: int, *, note: str = "") -> Event:
    """What is told when the fill that explains *found* is booked."""
    execution = inferred_fill(account, found)
    return Event(
        type=EventType.FILL_INFERRED,
        at_ms=at_ms,
        subject=found.subject if execution is None else execution.trade_id,
        symbol=found.symbol,
        quantity=abs(found.difference),
        price=found.price,
        note=note,
        details=Params.of({"account": account, "side": "buy" if found.difference > 0 else "sell"}),
    )
