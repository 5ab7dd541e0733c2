"""What ``submit`` returns: four different types, so that unknown cannot be mistaken for failed."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from execsafe.model.intent import ErrorFacts, IntentRecord, IntentState
from execsafe.model.order import OrderReport


@attrs.frozen(kw_only=True)
class Accepted:
    """The venue has, or had, the order. ``record`` says what became of it; fills count, not the status."""

    record: IntentRecord
    report: OrderReport | None = attrs.field(default=None, eq=False, repr=False)


@attrs.frozen(kw_only=True)
class Rejected:
    """The venue definitely refused. ``cause`` is the client's own exception when it happened in this call."""

    record: IntentRecord
    error: ErrorFacts
    cause: BaseException | None = attrs.field(default=None, eq=False, repr=False)


@attrs.frozen(kw_only=True)
class NeverPlaced:
    """Proven not to exist at the venue; all attempts are spent. A new intent key is safe."""

    record: IntentRecord


@attrs.frozen(kw_only=True)
class Unknown:
    """Still in doubt: counted as exposure, journalled, to be looked at again. Never send it anew."""

    record: IntentRecord


@attrs.frozen(kw_only=True)
class Recovery:
    """What ``recover()`` came to, each intent once."""

    settled: tuple[IntentRecord, ...] = ()
    unresolved: tuple[IntentRecord, ...] = ()
    held_elsewhere: tuple[IntentRecord, ...] = ()


SubmitOutcome: TypeAlias = Accepted | Rejected | NeverPlaced | Unknown
"""Everything that submitting can come to."""

_ACCEPTED = frozenset({IntentState.LIVE, IntentState.FILLED, IntentState.CANCELED, IntentState.EXPIRED})


def outcome_of(
    record: IntentRecord, *, report: OrderReport | None = None, cause: BaseException | None = None
) -> SubmitOutcome:
    """The outcome that a record stands for."""
    if record.state in _ACCEPTED:
        return Accepted(record=record, report=report)
    if record.state is IntentState.REJECTED:
        error = record.last.error if record.last is not None and record.last.error is not None else None
        return Rejected(record=record, error=error or ErrorFacts(kind="OrderRejected"), cause=cause)
    if record.state is IntentState.FAILED_FINAL:
        return NeverPlaced(record=record)
    return Unknown(record=record)
