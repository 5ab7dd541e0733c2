"""What opening a position can come to."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from execsafe.core.opening import Opening, OpeningState
from execsafe.core.protection.record import Protection
from execsafe.model.position import Position


@attrs.frozen(kw_only=True)
class Active:
    """Filled, and covered by a verified stop."""

    opening: Opening
    position: Position
    protection: Protection


@attrs.frozen(kw_only=True)
class RolledBack:
    """Filled, and closed again: verified flat. ``reason`` says why."""

    opening: Opening
    reason: str


@attrs.frozen(kw_only=True)
class EntryDust:
    """Filled, and what is left of it is below the venue's minimums: it can be neither protected nor closed.

    Nothing of it is at the venue, and nothing is tried again until the position changes.
    """

    opening: Opening
    position: Position
    reason: str


@attrs.frozen(kw_only=True)
class EntryFailed:
    """Nothing filled, and nothing can. ``error`` is what refused it, where something did."""

    opening: Opening
    reason: str
    error: BaseException | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def is_for_now(self) -> bool:
        """Whether it was refused for now only, or interrupted: nothing was sent, and its key may be opened again."""
        return self.opening.state is OpeningState.NOT_SENT


@attrs.frozen(kw_only=True)
class EntryUnknown:
    """What is held, or what covers it, is not known yet. Watched and alarmed; ``recover()`` goes on."""

    opening: Opening
    reason: str


OpenOutcome: TypeAlias = Active | RolledBack | EntryDust | EntryFailed | EntryUnknown
"""Everything that opening a position can come to."""
