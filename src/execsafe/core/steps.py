"""What to do next with an intent: one decision that submit, cancel, edit and recover all follow."""

from __future__ import annotations

import enum
from typing import Final

from execsafe.core.approval import is_stale
from execsafe.model.intent import AttemptState, IntentRecord, IntentState

_UNDECIDED: Final = frozenset({IntentState.SENDING, IntentState.IN_DOUBT})
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
    state = record.state
    if state is IntentState.RECORDED:
        return Step.GIVE_UP if _is_hopeless(record, attempts_max, now_ms) else Step.SEND
    if state is IntentState.LIVE:
        return Step.CANCEL if record.change is not None else Step.DONE
    return Step.RESOLVE if state in _UNDECIDED else Step.DONE


def _is_hopeless(record: IntentRecord, attempts_max: int, now_ms: int) -> bool:
    spent = len([a for a in record.attempts if a.state in _SPENT])
    return spent >= attempts_max or is_stale(record.intent, now_ms=now_ms) or record.filled_quantity >= record.quantity
