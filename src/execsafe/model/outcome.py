"""What an answer, or the lack of one, means."""

from __future__ import annotations

import enum

import attrs

from execsafe.model.intent import ErrorFacts


class Operation(enum.StrEnum):
    """What was being done when an error came: the same code means different things."""

    CREATE = "create"
    CANCEL = "cancel"
    LOOK_UP = "look_up"
    SET_LEVERAGE = "set_leverage"
    SET_MARGIN_MODE = "set_margin_mode"
    SET_STOP = "set_stop"  # a stop attached to a position


class Meaning(enum.StrEnum):
    """What is true after an error. An unlisted error is UNKNOWN."""

    REJECTED = "rejected"  # definite no: nothing happened
    EXISTS = "exists"  # a duplicate-id reject: an order with this id exists or existed
    NOT_FOUND = "not_found"  # this view does not have it (no verdict by itself)
    NO_CHANGE = "no_change"  # already as asked for
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class Judged:
    """An error, classified: its meaning and the facts worth keeping (redacted)."""

    meaning: Meaning
    facts: ErrorFacts
