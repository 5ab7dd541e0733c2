"""Positions as a function of what is known to have filled.

A :class:`Page` holds what is known about one symbol of one account, order by order, as joined pieces of evidence
(``core/evidence.py``). :func:`fold` walks through them by the instants at which they were learned. So the same evidence
gives the same positions, in whatever order and however often it arrives.

By when it was *learned*, not by the venue's own time: nothing is closed that was not known to be open, and late
evidence never rewrites a position that others already act upon. It is credited to what is held when it becomes known.

Old evidence is absorbed into a base that is only ever added to; a page stays small however long a bot runs.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
from collections.abc import Iterable
from decimal import Decimal
from typing import Final

import attrs

from execsafe.core.evidence import Level, OrderEvidence, curve_of, join
from execsafe.model.instrument import ONE
from execsafe.model.order import ZERO, Fee, Side
from execsafe.model.position import Position, PositionSide
from execsafe.model.values import EXACT, left_of, plain, total, weighted_average

ORDERS_MAX: Final = 64
"""Orders that a page keeps apart: evidence about them may come in any order. Older ones are absorbed."""

PIECES_MAX: Final = 1_024
"""Cumulative quantities and trades that a page keeps apart: some 150 kB as stored."""

CLOSED_MAX: Final = 32
"""Closed positions that are remembered per symbol, at most."""


# --- Pages -----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Chapter:
    """Where a symbol stands: the open position, if any, and those that closed, oldest first."""

    position: Position | None = None
    closed: tuple[Position, ...] = ()


@attrs.frozen(kw_only=True)
class Page:
    """What is known about one symbol. Evidence learned by ``base_ms`` is already in ``base``."""

    account: str
    symbol: str
    contract_size: Decimal = ONE
    base: Chapter = Chapter()
    base_ms: int = -1
    orders: tuple[OrderEvidence, ...] = ()


class ChangeKind(enum.StrEnum):
    """What happened to a position."""

    OPENED = "opened"
    CHANGED = "changed"
    CLOSED = "closed"


@attrs.frozen(kw_only=True)
class PositionChange:
    """One change of the book. ``before`` is None for a position that was not known to be open."""

    kind: ChangeKind
    position: Position
    before: Position | None = None


# --- Learning --------------------------------------------------------------------------------------


def learn(page: Page, evidence: Iterable[OrderEvidence], recalled: Iterable[OrderEvidence] = ()) -> Page:
    """*page* with more *evidence*; what is older than its base counts as learned right after it.

    *recalled* are orders that :func:`absorb` once moved out: what they say is in the base already.
    """
    orders = {order.key: order for order in page.orders}
    for order in recalled:
        orders.setdefault(order.key, order)
    for piece in evidence:
        fresh = _after_base(piece, page.base_ms)
        orders[piece.key] = join(orders.get(piece.key, fresh), fresh)
    found = _united(tuple(orders[key] for key in sorted(orders)))
    return page if found == page.orders else attrs.evolve(page, orders=found)


def _after_base(piece: OrderEvidence, base_ms: int) -> OrderEvidence:
    """Never earlier than the base, which does not have it; a join with what the base does have keeps that instant."""
    first_ms = base_ms + 1
    levels = (attrs.evolve(level, learned_at_ms=max(level.learned_at_ms, first_ms)) for level in piece.levels)
    trades = (attrs.evolve(trade, learned_at_ms=max(trade.learned_at_ms, first_ms)) for trade in piece.trades)
    return attrs.evolve(piece, levels=tuple(levels), trades=tuple(trades))


def _united(orders: tuple[OrderEvidence, ...]) -> tuple[OrderEvidence, ...]:
    """Trades that were first seen as foreign move into our order, once it is known to be theirs: counted once."""
    ours = {order.venue_order_id: order.key for order in orders if order.levels and order.venue_order_id is not None}
    united = {order.key: order for order in orders}
    for order in orders:
        owner = None if order.levels or order.venue_order_id is None else ours.get(order.venue_order_id)
        if owner is not None:
            del united[order.key]
            united[owner] = join(united[owner], attrs.evolve(order, is_live=united[owner].is_live))
    return tuple(united.values())


# --- Folding ---------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _Step:
    """One thing to book: a quantity (signed), or fees."""

    learned_at_ms: int
    key: str
    start: Decimal = ZERO  # what the order had filled before it
    signed: Decimal = ZERO
    price: Decimal | None = None
    fees: tuple[Fee, ...] = ()
    at_ms: int = 0

    @property
    def rank(self) -> tuple[int, bool, str, Decimal]:
        """In which order things are booked: what filled before what it cost."""
        return (self.learned_at_ms, bool(self.fees), self.key, self.start)


def fold(page: Page) -> Chapter:
    """The positions that the evidence amounts to."""
    return _book(page, _steps(page))


def _book(page: Page, steps: Iterable[_Step]) -> Chapter:
    position, closed = page.base.position, list(page.base.closed)
    for step in steps:
        if step.fees:
            position = _charge(page, position, closed, step)
        if step.signed:
            position = _fill(page, position, closed, step)
    return Chapter(position=position, closed=tuple(closed))


def _steps(page: Page) -> list[_Step]:
    steps = [step for order in page.orders for step in _steps_of(order)]
    return sorted((step for step in steps if step.learned_at_ms > page.base_ms), key=lambda step: step.rank)


def _steps_of(order: OrderEvidence) -> list[_Step]:
    sign = 1 if order.side is Side.BUY else -1
    levels = curve_of(order)
    overall = levels[-1].average_price if levels else None
    found: list[_Step] = []
    done, cost = ZERO, ZERO
    for level in levels:
        grown = EXACT.subtract(level.quantity, done)
        price = _price_between(level, cost, grown) or overall
        step = _Step(
            learned_at_ms=level.learned_at_ms,
            key=order.key,
            start=done,
            signed=EXACT.multiply(grown, Decimal(sign)),
            price=price,
            at_ms=_filled_at(order, level.learned_at_ms),
        )
        found.append(step)
        done, cost = level.quantity, _cost_at(level, EXACT.add(cost, EXACT.multiply(grown, price or ZERO)))
    found.extend(
        _Step(learned_at_ms=trade.learned_at_ms, key=order.key, fees=trade.fill.fees, start=Decimal(number))
        for number, trade in enumerate(order.trades)
        if trade.fill.fees
    )
    return found


def _price_between(level: Level, cost: Decimal, grown: Decimal) -> Decimal | None:
    if level.average_price is None:
        return None
    spent = EXACT.subtract(EXACT.multiply(level.average_price, level.quantity), cost)
    price = weighted_average([(grown, EXACT.divide(spent, grown))]) if spent > 0 else None
    return price or level.average_price  # averages that a venue rounds may contradict each other


def _cost_at(level: Level, estimate: Decimal) -> Decimal:
    return estimate if level.average_price is None else EXACT.multiply(level.average_price, level.quantity)


def _filled_at(order: OrderEvidence, learned_at_ms: int) -> int:
    times = [t.fill.filled_at_ms for t in order.trades if t.fill.filled_at_ms and t.learned_at_ms <= learned_at_ms]
    return max(times, default=learned_at_ms)


# --- Booking one step ------------------------------------------------------------------------------


def _fill(page: Page, position: Position | None, closed: list[Position], step: _Step) -> Position | None:
    side = PositionSide.LONG if step.signed > 0 else PositionSide.SHORT
    quantity = abs(step.signed)
    if position is None:
        return _opened(page, side, quantity, step, used=ZERO)
    if position.side is side:
        priced = [(q, p) for q, p in ((position.quantity, position.entry_price), (quantity, step.price)) if p]
        return attrs.evolve(
            position,
            quantity=EXACT.add(position.quantity, quantity),
            entry_price=weighted_average(priced),
            updated_at_ms=max(position.updated_at_ms, step.at_ms),
        )
    closing = min(quantity, position.quantity)
    rest = _reduced(page, position, closing, step)
    if rest.quantity > 0:
        return rest
    closed.append(rest)
    left = left_of(quantity, closing)
    return _opened(page, side, left, step, used=closing) if left > 0 else None


def _reduced(page: Page, position: Position, closing: Decimal, step: _Step) -> Position:
    realized = position.realized
    if position.entry_price is not None and step.price is not None:
        gain = EXACT.multiply(EXACT.subtract(step.price, position.entry_price), Decimal(position.side.sign))
        realized = EXACT.add(realized, EXACT.multiply(EXACT.multiply(gain, closing), page.contract_size))
    return attrs.evolve(
        position,
        quantity=left_of(position.quantity, closing),
        realized=realized,
        updated_at_ms=max(position.updated_at_ms, step.at_ms),
    )


def _opened(page: Page, side: PositionSide, quantity: Decimal, step: _Step, *, used: Decimal) -> Position:
    return Position(
        account=page.account,
        symbol=page.symbol,
        side=side,
        quantity=quantity,
        entry_price=step.price,
        position_id=_position_id(page, side, step.key, EXACT.add(step.start, used)),
        opened_at_ms=step.at_ms,
        updated_at_ms=step.at_ms,
    )


def _position_id(page: Page, side: PositionSide, order_key: str, start: Decimal) -> str:
    """Which fill opened it: the order, and how much of it had been used up before."""
    parts = [page.account, page.symbol, side.value, order_key, plain(start)]
    text = "execsafe/position/1 " + " ".join(f"{len(part)}:{part}" for part in parts)
    return "p" + hashlib.sha256(text.encode()).hexdigest()[:20]


def _charge(page: Page, position: Position | None, closed: list[Position], step: _Step) -> Position | None:
    """Book fees: to the position that is open, else to the one that closed last."""
    if position is None:
        if closed:
            closed[-1] = attrs.evolve(closed[-1], fees=_add_fees(closed[-1].fees, step.fees))
        return None
    charged = attrs.evolve(position, fees=_add_fees(position.fees, step.fees))
    taken = _taken_in_base(page.symbol, step.fees)
    if taken and position.side is PositionSide.LONG:
        rest = EXACT.subtract(position.quantity, min(taken, position.quantity))
        charged = attrs.evolve(charged, quantity=rest)
    if charged.quantity > 0:
        return charged
    closed.append(charged)
    return None


def _taken_in_base(symbol: str, fees: Iterable[Fee]) -> Decimal:
    """What a spot market took from the holding itself; a derivative's fee is paid from the margin."""
    pair, _, settled_in = symbol.partition(":")
    base = pair.partition("/")[0]
    return ZERO if settled_in else total(fee.cost for fee in fees if fee.currency == base)


def _add_fees(known: tuple[Fee, ...], new: Iterable[Fee]) -> tuple[Fee, ...]:
    costs: dict[str, Decimal] = {}
    for fee in (*known, *new):
        costs[fee.currency] = EXACT.add(costs.get(fee.currency, ZERO), fee.cost)
    return tuple(Fee(cost=costs[currency], currency=currency) for currency in sorted(costs))


# --- Keeping it small ------------------------------------------------------------------------------


def absorb(
    page: Page, *, forget_before_ms: int, orders_max: int = ORDERS_MAX
) -> tuple[Page, tuple[OrderEvidence, ...]]:
    """*page* with its oldest evidence moved into the base, and the orders that are no longer in it.

    Orders that may still fill stay. Closed positions that ended before *forget_before_ms* are forgotten, and all but
    the latest :data:`CLOSED_MAX`.
    """
    gone: tuple[OrderEvidence, ...] = ()
    if len(page.orders) > orders_max or sum(map(_weight, page.orders)) > PIECES_MAX:
        page, gone = _absorb_oldest(page, orders_max // 2)
    recent = tuple(p for p in page.base.closed if p.updated_at_ms >= forget_before_ms)[-CLOSED_MAX:]
    if recent != page.base.closed:
        page = attrs.evolve(page, base=attrs.evolve(page.base, closed=recent))
    return page, gone


def _absorb_oldest(page: Page, keep: int) -> tuple[Page, tuple[OrderEvidence, ...]]:
    newest_first = sorted((order for order in page.orders if not order.is_live), key=_last_learned, reverse=True)
    weights = itertools.accumulate(map(_weight, newest_first))
    kept_apart = sum(1 for number, weight in enumerate(weights) if number < keep and weight <= PIECES_MAX // 2)
    old = newest_first[kept_apart:]
    if not old:
        return page, ()
    until_ms = max(page.base_ms, _last_learned(old[0]))
    base = _book(page, [step for step in _steps(page) if step.learned_at_ms <= until_ms])
    gone = {order.key for order in newest_first if _last_learned(order) <= until_ms}
    kept = tuple(order for order in page.orders if order.key not in gone)
    left = tuple(order for order in page.orders if order.key in gone)
    return attrs.evolve(page, base=base, base_ms=until_ms, orders=kept), left


def _weight(order: OrderEvidence) -> int:
    return len(order.levels) + len(order.trades)


def _last_learned(order: OrderEvidence) -> int:
    instants = [level.learned_at_ms for level in order.levels]
    return max([*instants, *(trade.learned_at_ms for trade in order.trades)], default=0)


# --- Changes ---------------------------------------------------------------------------------------


def changes(before: Chapter, after: Chapter) -> tuple[PositionChange, ...]:
    """What happened between two states of the same symbol, oldest position first."""
    was = {p.position_id: p for p in _all(before)}
    found = [_change(was.get(p.position_id), p) for p in _all(after) if was.get(p.position_id) != p]
    known = {p.position_id for p in _all(after)}
    # A position that later evidence explains otherwise is gone under its old id.
    gone = [p for p in _all(before) if p.is_open and p.position_id not in known]
    withdrawn = [
        PositionChange(kind=ChangeKind.CLOSED, position=attrs.evolve(p, quantity=ZERO), before=p) for p in gone
    ]
    return (*withdrawn, *found)


def _all(chapter: Chapter) -> tuple[Position, ...]:
    return chapter.closed if chapter.position is None else (*chapter.closed, chapter.position)


def _change(before: Position | None, after: Position) -> PositionChange:
    if before is not None and not before.is_open and not after.is_open:
        return PositionChange(kind=ChangeKind.CHANGED, position=after, before=before)
    if not after.is_open:
        return PositionChange(kind=ChangeKind.CLOSED, position=after, before=before)
    if before is None or not before.is_open:
        return PositionChange(kind=ChangeKind.OPENED, position=after)
    return PositionChange(kind=ChangeKind.CHANGED, position=after, before=before)
