"""Worst-case exposure: the one function that everything asks before more is sent (guarantee G1)."""

from __future__ import annotations

from decimal import Decimal

from execsafe.model.intent import MAY_FILL, IntentRecord
from execsafe.model.order import ZERO
from execsafe.model.values import left_of, total


def worst_case(record: IntentRecord) -> Decimal:
    """What the intent may own at the end: filled, plus the rest of every attempt that may still fill.

    An attempt in doubt counts in full: unknown is not zero.
    """
    # Filled plus what is left of the quantity is the quantity, or what filled beyond it.
    each = [max(a.quantity, a.filled_quantity) if a.state in MAY_FILL else a.filled_quantity for a in record.attempts]
    return each[0] if len(each) == 1 else total(each)


def room(record: IntentRecord) -> Decimal:
    """How much more may be sent without exceeding what was meant."""
    return left_of(record.quantity, worst_case(record))


def excess(record: IntentRecord) -> Decimal:
    """By how much the worst case exceeds what was meant; above zero is an alarm."""
    worst = worst_case(record)
    return left_of(worst, record.quantity) if worst > record.quantity else ZERO
