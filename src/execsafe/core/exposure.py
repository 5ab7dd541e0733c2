"""Worst-case exposure: the one function that everything asks before more is sent (guarantee G1)."""

from __future__ import annotations

from decimal import Decimal

from execsafe.model.intent import IntentRecord
from execsafe.model.values import left_of, total


def worst_case(record: IntentRecord) -> Decimal:
    """What the intent may own at the end: filled, plus the rest of every attempt that may still fill.

    An attempt in doubt counts in full: unknown is not zero.
    """
    may_fill = (a.leaves_quantity for a in record.attempts if a.state.may_still_fill)
    return total((record.filled_quantity, *may_fill))


def room(record: IntentRecord) -> Decimal:
    """How much more may be sent without exceeding what was meant."""
    return left_of(record.quantity, worst_case(record))


def excess(record: IntentRecord) -> Decimal:
    """By how much the worst case exceeds what was meant; above zero is an alarm."""
    return left_of(worst_case(record), record.quantity)
