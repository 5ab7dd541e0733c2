"""Counting signals on their way to positions, and how many of a wave to attempt. Pure.

Rates of different stages are worthless without their denominators, so each ratio here declares its own.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeVar

import attrs

from execsafe.core.signals import DropReason
from execsafe.errors import InvalidInput
from execsafe.model.values import check_count, shorten

T = TypeVar("T")

# --- Funnel ------------------------------------------------------------------------------------------


class Stage(enum.StrEnum):
    """How far a signal came; each stage counts what entered it."""

    RECEIVED = "received"
    ADAPTED = "adapted"  # understood: symbol, side, time, identity
    VALIDATED = "validated"  # fresh, first of its kind, to be executed in this mode
    ATTEMPTED = "attempted"  # an order was to be placed
    OPENED = "opened"  # by the order's own state, not by the absence of an error


_STAGES: Final = tuple(Stage)


@attrs.frozen(kw_only=True)
class Ratio:
    """``numerator`` of ``denominator``: which stages these are is part of the value."""

    name: str
    numerator: Stage
    denominator: Stage
    count: int
    out_of: int

    @property
    def value(self) -> float | None:
        """Between 0 and 1; None while nothing entered the denominator's stage: no evidence is not success."""
        return self.count / self.out_of if self.out_of else None


RATIOS: Final[Mapping[str, tuple[Stage, Stage]]] = MappingProxyType(
    {
        "adapted_of_received": (Stage.ADAPTED, Stage.RECEIVED),
        "validated_of_adapted": (Stage.VALIDATED, Stage.ADAPTED),
        "attempted_of_validated": (Stage.ATTEMPTED, Stage.VALIDATED),
        "opened_of_attempted": (Stage.OPENED, Stage.ATTEMPTED),
        "opened_of_received": (Stage.OPENED, Stage.RECEIVED),
    }
)
"""Every named ratio: numerator and denominator."""


@attrs.frozen
class Funnel:
    """Counts by stage, and drops by the last stage reached and the reason. A value: each step gives a new one.

    At any time, of those that entered a stage: entered the next one + dropped + still in it = all of them.
    """

    entered: Mapping[Stage, int] = attrs.field(factory=dict)
    dropped: Mapping[tuple[Stage, DropReason], int] = attrs.field(factory=dict)

    def enter(self, stage: Stage) -> Funnel:
        """One more reached *stage*."""
        return attrs.evolve(self, entered={**self.entered, stage: self.at(stage) + 1})

    def drop(self, stage: Stage, reason: DropReason) -> Funnel:
        """One that had reached *stage* goes no further."""
        key = (stage, reason)
        return attrs.evolve(self, dropped={**self.dropped, key: self.dropped.get(key, 0) + 1})

    def at(self, stage: Stage) -> int:
        """How many entered *stage*."""
        return self.entered.get(stage, 0)

    def dropped_at(self, stage: Stage) -> int:
        """How many went no further than *stage*."""
        return sum(count for (at, _), count in self.dropped.items() if at is stage)

    def pending_at(self, stage: Stage) -> int:
        """How many are in *stage* now: neither further nor dropped."""
        index = _STAGES.index(stage)
        beyond = self.at(_STAGES[index + 1]) if index + 1 < len(_STAGES) else self.at(stage)
        return self.at(stage) - beyond - self.dropped_at(stage)

    def ratio(self, name: str) -> Ratio:
        """A named ratio.

        Raises:
            InvalidInput: no such name; the message lists them.
        """
        if name not in RATIOS:
            raise InvalidInput(f"no ratio {shorten(name)}; there are {', '.join(RATIOS)}")
        over, under = RATIOS[name]
        return Ratio(name=name, numerator=over, denominator=under, count=self.at(over), out_of=self.at(under))


# --- Waves -------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class WavePlan:
    """How many positions a wave of signals is to open, and how many more candidates may be tried for that.

    Attributes:
        target: positions wanted. 4, the seed's number per exchange.
        buffer: further candidates, in case some cannot be opened. 3, the seed's.
    """

    target: int = 4
    buffer: int = 3

    def __attrs_post_init__(self) -> None:
        """Refuse a wave that wants nothing."""
        check_count(self.target, "target")
        if type(self.buffer) is not int or self.buffer < 0:
            raise InvalidInput(f"buffer must be a whole number of at least 0, was {shorten(self.buffer)}")

    @property
    def candidates_max(self) -> int:
        """How many are attempted at most."""
        return self.target + self.buffer

    def split(self, candidates: Sequence[T]) -> tuple[tuple[T, ...], tuple[T, ...]]:
        """The best candidates (they come best first), and those that will not be attempted whatever happens."""
        return tuple(candidates[: self.candidates_max]), tuple(candidates[self.candidates_max :])


class WaveStep(enum.StrEnum):
    """What to do next in a wave."""

    ATTEMPT = "attempt"  # begin the next candidate
    WAIT = "wait"  # those under way may be enough
    STOP = "stop"  # target reached, or candidates spent


def wave_step(plan: WavePlan, *, opened: int, failed: int, under_way: int) -> WaveStep:
    """Decide from the counts. One in doubt is under way: it may own something, and may still come to nothing."""
    if opened >= plan.target or opened + failed >= plan.candidates_max:
        return WaveStep.STOP
    # One under way may still turn out to have been no attempt: only what has ended is spent.
    is_enough = opened + under_way >= plan.target or opened + failed + under_way >= plan.candidates_max
    return WaveStep.WAIT if is_enough else WaveStep.ATTEMPT


@attrs.frozen(kw_only=True)
class WaveProgress:
    """Which candidates of a wave were begun, by key, and what became of them. A value: each step gives a new one."""

    under_way: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def knows(self, key: str) -> bool:
        """Whether that candidate was begun."""
        return key in self.under_way or key in self.opened or key in self.failed

    def begin(self, key: str) -> WaveProgress:
        """That candidate is under way."""
        known = self.forget(key)
        return attrs.evolve(known, under_way=(*known.under_way, key))

    def end(self, key: str, *, opened: bool) -> WaveProgress:
        """That candidate came to something, or to nothing. Said again, the last word counts."""
        known = self.forget(key)
        if opened:
            return attrs.evolve(known, opened=(*known.opened, key))
        return attrs.evolve(known, failed=(*known.failed, key))

    def forget(self, key: str) -> WaveProgress:
        """That candidate was not attempted after all."""
        lists = ("under_way", "opened", "failed")
        return WaveProgress(**{name: tuple(k for k in getattr(self, name) if k != key) for name in lists})

    def step(self, plan: WavePlan) -> WaveStep:
        """What to do with the next candidate."""
        return wave_step(plan, opened=len(self.opened), failed=len(self.failed), under_way=len(self.under_way))
