"""What to do next with an intent: one decision that submit, cancel, edit and recover all follow."""

from __future__ import annotations

import enum
from typing import Final

from execsafe.core.approval import is_stale
from execsafe.model.intent import AttemptState, IntentRecord, IntentState

_BUSY: Final = frozenset({IntentState.RECORDED, IntentState.SENDING, IntentState.IN_DOUBT})
_BUSY_IF_TO_CHANGE: Final = _BUSY | {IntentState.LIVE}
_SPENT: Final = frozenset({AttemptState.ABSENT, AttemptState.NOT_SENT})


class Step(enum.StrEnum):
    """The next thing to do."""

    SEND = "send"  # journal the next attempt, then send it
    RESOLVE = "resolve"  # look until there is a verdict
    CANCEL = "cancel"  # end the live order: a cancel or a replacement was asked for
    GIVE_UP = "give_up"
    DONE = "done"  # nothing for us to do now


def next_step(record: IntentRecord, *, attempts_max: int, now_ms: int) -> Step:
    """Decide from the record alone; whatever happened in between is in it."""
    if is_done(record):
        return Step.DONE
    if record.state is IntentState.RECORDED:
        return Step.GIVE_UP if _is_hopeless(record, attempts_max, now_ms) else Step.SEND
    return Step.CANCEL if record.state is IntentState.LIVE else Step.RESOLVE


def is_done(record: IntentRecord) -> bool:
    """Whether nothing is left for us to do now, whatever the time."""
    return record.state not in (_BUSY if record.change is None else _BUSY_IF_TO_CHANGE)


def _is_hopeless(record: IntentRecord, attempts_max: int, now_ms: int) -> bool:
    spent = len([a for a in record.attempts if a.state in _SPENT])
    return spent >= attempts_max or is_stale(record.terms, now_ms=now_ms) or record.filled_quantity >= record.quantity
