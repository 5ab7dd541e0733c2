"""What to do next with an intent: one decision that submit, cancel, edit and recover all follow."""

from __future__ import annotations

import enum

from execsafe.core.approval import is_stale
from execsafe.model.intent import AttemptState, IntentRecord, IntentState


class Step(enum.StrEnum):
    """The next thing to do."""

    SEND = "send"  # journal the next attempt, then send it
    RESOLVE = "resolve"  # look until there is a verdict
    CANCEL = "cancel"  # end the live order: a cancel or a replacement was asked for
    GIVE_UP = "give_up"
    DONE = "done"  # nothing for us to do now


def next_step(record: IntentRecord, *, attempts_max: int, now_ms: int) -> Step:
    """Decide from the record alone; whatever happened in between is in it."""
    if record.state in {IntentState.SENDING, IntentState.IN_DOUBT}:
        return Step.RESOLVE
    if record.state is IntentState.LIVE:
        return Step.CANCEL if record.change is not None else Step.DONE
    if record.state is not IntentState.RECORDED:
        return Step.DONE
    return Step.GIVE_UP if _is_hopeless(record, attempts_max, now_ms) else Step.SEND


def _is_hopeless(record: IntentRecord, attempts_max: int, now_ms: int) -> bool:
    spent = sum(1 for a in record.attempts if a.state in {AttemptState.ABSENT, AttemptState.NOT_SENT})
    return spent >= attempts_max or is_stale(record.intent, now_ms=now_ms) or record.leaves_quantity <= 0
