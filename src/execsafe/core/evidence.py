"""What is known of an order's fills, as pieces of evidence that are joined.

Cumulative quantities are kept by attempt, trades by trade id, and each piece keeps the earliest instant at which it was
learned. A join does not care about order or repetition: late, repeated and reordered evidence says the same in the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import TypeAlias

import attrs

from execsafe.model.intent import Attempt, IntentRecord
from execsafe.model.order import ZERO, Fill, Side
from execsafe.model.position import Execution
from execsafe.model.values import EXACT, total, weighted_average

Growth: TypeAlias = tuple[int, int, Decimal]
"""Attempt number, Unix ms, and by how much its filled quantity was seen to grow then."""


@attrs.frozen(kw_only=True)
class Level:
    """By ``learned_at_ms`` an order was known to have filled ``quantity`` in all, at ``average_price`` if stated."""

    quantity: Decimal
    learned_at_ms: int
    average_price: Decimal | None = None


@attrs.frozen(kw_only=True)
class Trade:
    """One execution by its trade id, and when it was learned."""

    fill: Fill
    learned_at_ms: int


@attrs.frozen(kw_only=True)
class OrderEvidence:
    """All that is known of what one order filled.

    One of ours has ``levels`` (one per cumulative quantity ever seen) and whatever trades the venue has named; a
    foreign trade stands alone. ``is_live``: more may come.
    """

    key: str
    side: Side
    venue_order_id: str | None = None
    levels: tuple[Level, ...] = ()
    trades: tuple[Trade, ...] = ()
    is_live: bool = False


def evidence_of(record: IntentRecord, growths: Iterable[Growth], *, at_ms: int) -> tuple[OrderEvidence, ...]:
    """What *record* proves about fills: one piece per attempt that filled anything.

    *growths* are the steps in which it was seen to fill, oldest first and up to the record as it is; what they do not
    cover counts as learned at *at_ms*.
    """
    steps = tuple(growths)
    return tuple(
        OrderEvidence(
            key=f"{attempt.client_order_id}#{attempt.number}",
            side=record.intent.side,
            venue_order_id=attempt.venue_order_id,
            levels=_levels(attempt, [step for step in steps if step[0] == attempt.number], at_ms),
            trades=tuple(Trade(fill=fill, learned_at_ms=at_ms) for fill in attempt.fills),
            is_live=attempt.state.may_still_fill,
        )
        for attempt in record.attempts
        if attempt.filled_quantity > 0
    )


def _levels(attempt: Attempt, steps: list[Growth], at_ms: int) -> tuple[Level, ...]:
    last_ms = steps[-1][1] if steps else at_ms
    found = [Level(quantity=attempt.filled_quantity, learned_at_ms=last_ms, average_price=attempt.average_price)]
    quantity = attempt.filled_quantity
    for (_, _, grown), (_, earlier_ms, _) in zip(reversed(steps), reversed(steps[:-1]), strict=False):
        quantity = EXACT.subtract(quantity, grown)
        if quantity > 0:
            found.append(Level(quantity=quantity, learned_at_ms=earlier_ms))
    return tuple(found)


def foreign_key(execution: Execution) -> str:
    """Key of the evidence of a trade that belongs to no order of ours."""
    return f"trade:{execution.trade_id}"


def evidence_of_execution(execution: Execution, *, at_ms: int) -> OrderEvidence:
    """A trade that belongs to no order of ours: foreign, or inferred from a difference."""
    return OrderEvidence(
        key=foreign_key(execution),
        side=execution.side,
        venue_order_id=execution.venue_order_id,
        trades=(Trade(fill=execution.fill, learned_at_ms=at_ms),),
    )


# --- Joining ---------------------------------------------------------------------------------------


def join(one: OrderEvidence, other: OrderEvidence) -> OrderEvidence:
    """All that either of two pieces of evidence about the same order says."""
    levels: dict[Decimal, Level] = {}
    for level in (*one.levels, *other.levels):
        known = levels.get(level.quantity)
        levels[level.quantity] = level if known is None else _join_levels(known, level)
    trades: dict[str, Trade] = {}
    for trade in (*one.trades, *other.trades):
        seen = trades.get(trade.fill.trade_id)
        trades[trade.fill.trade_id] = trade if seen is None else _join_trades(seen, trade)
    return OrderEvidence(
        key=one.key,
        side=one.side,
        venue_order_id=max(one.venue_order_id or "", other.venue_order_id or "") or None,
        levels=tuple(levels[quantity] for quantity in sorted(levels)),
        trades=tuple(trades[trade_id] for trade_id in sorted(trades)),
        is_live=one.is_live and other.is_live,
    )


def _join_levels(one: Level, other: Level) -> Level:
    prices = [level.average_price for level in (one, other) if level.average_price is not None]
    return Level(
        quantity=one.quantity,
        learned_at_ms=min(one.learned_at_ms, other.learned_at_ms),
        average_price=max(prices, default=None),
    )


def _join_trades(one: Trade, other: Trade) -> Trade:
    # The same id is the same fill; where two views of it differ, the one that says more is kept, whichever came first.
    fill = max(one.fill, other.fill, key=_says)
    return Trade(fill=fill, learned_at_ms=min(one.learned_at_ms, other.learned_at_ms))


def _says(fill: Fill) -> tuple[object, ...]:
    fees = tuple(sorted((fee.currency, fee.cost) for fee in fill.fees))
    return (len(fees), fees, fill.quantity, fill.price, fill.filled_at_ms or 0)


def curve_of(order: OrderEvidence) -> list[Level]:
    """Cumulative quantities by growing quantity and instant; knowing more implies knowing less."""
    levels = {level.quantity: level for level in order.levels}
    traded = total(trade.fill.quantity for trade in order.trades)
    if order.trades and traded > max(levels, default=ZERO):
        price = weighted_average((trade.fill.quantity, trade.fill.price) for trade in order.trades)
        known_ms = max(trade.learned_at_ms for trade in order.trades)
        levels[traded] = Level(quantity=traded, learned_at_ms=known_ms, average_price=price)
    found: list[Level] = []
    earliest_ms: int | None = None
    for quantity in sorted(levels, reverse=True):
        level = levels[quantity]
        if earliest_ms is None or level.learned_at_ms < earliest_ms:
            earliest_ms = level.learned_at_ms
            found.append(level)
    return found[::-1]
