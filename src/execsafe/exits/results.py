"""What an exit came to: one type per end, so that "told to wait" cannot be mistaken for "failed"."""

from __future__ import annotations

from decimal import Decimal
from typing import TypeAlias

import attrs

from execsafe.core.exits import ExitReason, ExitRecord, Hold
from execsafe.model.order import ZERO
from execsafe.model.position import PositionKey


@attrs.frozen(kw_only=True)
class Exited:
    """What was wanted is closed. ``closed_quantity`` is what this exit's orders closed, over all its passes."""

    record: ExitRecord

    @property
    def closed_quantity(self) -> Decimal:
        """In the venue's order unit."""
        return self.record.closed_quantity

    @property
    def average_price(self) -> Decimal | None:
        """Quote per base; None where nothing was closed by this exit (something else did)."""
        return self.record.average_price


@attrs.frozen(kw_only=True)
class PartiallyExited:
    """This call closed ``closed_quantity``; the rest waits until ``record.recheck_at_ms``."""

    record: ExitRecord
    closed_quantity: Decimal
    hold: Hold


@attrs.frozen(kw_only=True)
class Held:
    """This call closed nothing; nothing of it is at the venue; it rests until ``record.recheck_at_ms``."""

    record: ExitRecord | None
    hold: Hold


@attrs.frozen(kw_only=True)
class Dust:
    """What is left, ``quantity``, is below the venue's minimum. Final; it is not tried again."""

    record: ExitRecord
    quantity: Decimal


@attrs.frozen(kw_only=True)
class Mismatch:
    """The venue holds less than the book. Reconcile; the exit looks again at ``record.recheck_at_ms``."""

    record: ExitRecord


@attrs.frozen(kw_only=True)
class Stuck:
    """As :class:`Held`, :class:`Mismatch` or :class:`UnknownExit`, for so long that an alarm was raised: act."""

    record: ExitRecord
    hold: Hold
    attempts: int
    since_ms: int


@attrs.frozen(kw_only=True)
class UnknownExit:
    """An order of the exit is in doubt. Nothing else is sent before that is settled; never close by another way."""

    record: ExitRecord


@attrs.frozen(kw_only=True)
class Deduplicated:
    """Nothing was done by this call: an exit at least as urgent runs, or rests, already.

    ``existing_reason`` and ``record`` are None where it is only known that another caller is on it.
    """

    key: PositionKey
    new_reason: ExitReason
    existing_reason: ExitReason | None
    age_ms: int
    record: ExitRecord | None = None
    reason: str = "exit_already_in_progress"


@attrs.frozen(kw_only=True)
class Flat:
    """The book holds nothing there; nothing was done."""

    key: PositionKey


ExitResult: TypeAlias = Exited | PartiallyExited | Held | Dust | Mismatch | Stuck | UnknownExit | Deduplicated | Flat
"""Everything that an exit can come to."""


def result_of(record: ExitRecord, *, closed_now: Decimal = ZERO) -> ExitResult:
    """What a record stands for, after a pass that closed *closed_now*."""
    if record.dust > 0:
        return Dust(record=record, quantity=record.dust)
    if record.hold is None:
        return Exited(record=record)
    if record.alarms and closed_now <= 0:
        return Stuck(record=record, hold=record.hold, attempts=record.legs, since_ms=record.progress_at_ms)
    if record.hold is Hold.IN_DOUBT:
        return UnknownExit(record=record)
    if record.hold is Hold.MISMATCH:
        return Mismatch(record=record)
    if closed_now > 0:
        return PartiallyExited(record=record, closed_quantity=closed_now, hold=record.hold)
    return Held(record=record, hold=record.hold)
