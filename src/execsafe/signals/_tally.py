"""How far signals came: each counted once in every stage, however often it is handed out again."""

from __future__ import annotations

from typing import Final

from execsafe.core.funnel import Funnel, Stage
from execsafe.core.signals import DropReason

_STAGES: Final = tuple(Stage)
_COUNTED_MAX: Final = 10_000


class Tally:
    """The funnel of one gate, and which signals that have not ended were counted in it."""

    def __init__(self) -> None:
        self.funnel: Funnel = Funnel()
        self._counted: dict[str, Stage] = {}

    def __contains__(self, signal_id: str) -> bool:
        return signal_id in self._counted

    def count(self, signal_id: str, stage: Stage) -> None:
        """Count a signal in every stage up to *stage* in which it was not counted yet."""
        known = self._counted.pop(signal_id, None)
        first = 0 if known is None else _STAGES.index(known) + 1
        reached = _STAGES[first : _STAGES.index(stage) + 1]
        for entered in reached:
            self.funnel = self.funnel.enter(entered)
        self._counted[signal_id] = stage if reached or known is None else known
        if len(self._counted) > _COUNTED_MAX:  # ended by other processes, most likely: they stay "pending" here
            del self._counted[next(iter(self._counted))]

    def opened(self, signal_id: str) -> None:
        """It came to the last stage, and has ended there."""
        self.count(signal_id, Stage.OPENED)
        self._counted.pop(signal_id, None)

    def dropped(self, signal_id: str, reason: DropReason) -> None:
        """It goes no further than where it was counted last."""
        self.funnel = self.funnel.drop(self._counted.pop(signal_id, Stage.VALIDATED), reason)

    def dropped_at_once(self, stage: Stage, reason: DropReason) -> None:
        """One that came as far as *stage* and no further."""
        for entered in _STAGES[: _STAGES.index(stage) + 1]:
            self.funnel = self.funnel.enter(entered)
        self.funnel = self.funnel.drop(stage, reason)
