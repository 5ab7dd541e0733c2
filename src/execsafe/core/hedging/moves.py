"""What a decision can ask the shell to do."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from execsafe.core.hedging.values import HedgeStage, Verdict
from execsafe.model.event import EventType
from execsafe.model.intent import Intent, IntentRecord


@attrs.frozen(kw_only=True)
class Submit:
    """Hand *intent* to the gateway of leg *index*: for the first time, or again where its record stands open."""

    index: int
    intent: Intent
    tells: EventType | None = None
    note: str = ""


@attrs.frozen(kw_only=True)
class Cancel:
    """End the remainder of an order that rests, and learn what had filled."""

    index: int
    record: IntentRecord


@attrs.frozen(kw_only=True)
class Watch:
    """Wait until then, and read the orders that rest."""

    until_ms: int
    live: tuple[tuple[int, IntentRecord], ...]


@attrs.frozen(kw_only=True)
class Pause:
    """Wait until then: the next rung of the unwinding."""

    until_ms: int


@attrs.frozen(kw_only=True)
class Learn:
    """Read the trades of leg *index*: what fees took from it is not known yet."""

    index: int


@attrs.frozen(kw_only=True)
class Turn:
    """Write down that from now on everything is undone, and why."""

    stage: HedgeStage
    reason: str


@attrs.frozen(kw_only=True)
class Verify:
    """Read the plan's orders, and the positions, once more."""

    not_before_ms: int = 0


@attrs.frozen(kw_only=True)
class End:
    """This pass is over. ``is_done``: no further pass would help. ``is_blind``: the venue could not be asked."""

    verdict: Verdict
    reason: str
    is_done: bool
    is_blind: bool = False


Move: TypeAlias = Submit | Cancel | Watch | Pause | Learn | Turn | Verify | End
"""One thing to do next; several of a kind are done side by side."""
