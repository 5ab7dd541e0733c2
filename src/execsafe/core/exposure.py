"""Worst-case exposure: the one function that everything asks before more is sent (guarantee G1)."""

from __future__ import annotations

from decimal import Decimal

from execsafe.model.intent import MAY_FILL, Attempt, IntentRecord
from execsafe.model.order import ZERO
from execsafe.model.values import left_of, total


def worst_case(record: IntentRecord) -> Decimal:
    """What the intent may own at the end: filled, plus the rest of every attempt that may still fill.

    An attempt in doubt counts in full: unknown is not zero.
    """
    attempts = record.attempts
    return _may_own(attempts[0]) if len(attempts) == 1 else total([_may_own(attempt) for attempt in attempts])


def _may_own(attempt: Attempt) -> Decimal:
    """Filled plus what is left of the quantity is the quantity, or what filled beyond it."""
    filled = attempt.filled_quantity
    return filled if attempt.state not in MAY_FILL or filled > attempt.quantity else attempt.quantity


def room(record: IntentRecord) -> Decimal:
    """How much more may be sent without exceeding what was meant."""
    return left_of(record.quantity, worst_case(record))


def excess(record: IntentRecord) -> Decimal:
    """By how much the worst case exceeds what was meant; above zero is an alarm."""
    worst = worst_case(record)
    return left_of(worst, record.quantity) if worst > record.quantity else ZERO
