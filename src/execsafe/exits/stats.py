"""What exits did, counted; and how they stand now."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import attrs

from execsafe.core.exits import ExitReason, ExitState, Hold, RejectClass
from execsafe.model.intent import ErrorFacts
from execsafe.model.position import PositionKey


@attrs.frozen(kw_only=True)
class RejectCount:
    """Refusals of one class, by venue and symbol."""

    venue: str
    symbol: str
    kind: RejectClass
    count: int


@attrs.frozen(kw_only=True)
class OpenExit:
    """One exit that has not ended.

    Attributes:
        key, position_id: of which position.
        reason, state, hold: why it runs, where it stands, why it rests.
        age_ms: since it was asked for.
        unable_ms: since it last closed something, or began: how long the position could not be exited.
        attempts: its orders so far; ``failed_attempts``: those in a row that closed nothing.
        closed_quantity: what it closed so far.
        last_error: the latest refusal since then.
        recheck_at_ms: until when it rests, Unix ms.
    """

    key: PositionKey
    position_id: str
    reason: ExitReason
    state: ExitState
    hold: Hold | None
    age_ms: int
    unable_ms: int
    attempts: int
    failed_attempts: int
    closed_quantity: Decimal
    last_error: ErrorFacts | None
    recheck_at_ms: int


@attrs.frozen(kw_only=True)
class ExitStats:
    """Counters since the manager was made, and gauges now; one consistent reading.

    Attributes:
        begun: exits that were begun.
        placed: orders sent.
        filled: orders that filled in full; ``partial``: in part; ``failed``: not at all.
        closed: exits that closed what was wanted.
        ioc_fallbacks: orders that went further down the ladder than its first rung.
        market_fallbacks: market orders.
        approvals_denied: market orders that were not allowed.
        deduplicated: calls that were told that an exit runs already; ``upgraded``: calls that took one over.
        unknown: passes that ended in doubt.
        oversold: refusals because less was there than was to be sold, and readings that said so.
        held, dust, stuck: passes that came to rest; remainders below the minimum; alarms raised.
        duplicates_executed: orders sent while another order of the same position's exit was under way. Counted where
            orders are sent, without asking the lock: it must be 0.
        errors: exceptions of handlers, gates and protections that were caught at the boundary.
        rejects: refusals by venue, symbol and class.
        open_exits: exits that have not ended, as this process knows them.
    """

    begun: int = 0
    placed: int = 0
    filled: int = 0
    partial: int = 0
    failed: int = 0
    closed: int = 0
    ioc_fallbacks: int = 0
    market_fallbacks: int = 0
    approvals_denied: int = 0
    deduplicated: int = 0
    upgraded: int = 0
    unknown: int = 0
    oversold: int = 0
    held: int = 0
    dust: int = 0
    stuck: int = 0
    duplicates_executed: int = 0
    errors: int = 0
    rejects: tuple[RejectCount, ...] = ()
    open_exits: tuple[OpenExit, ...] = ()

    @property
    def fill_rate(self) -> float | None:
        """Share of the ended orders that filled in full; None before the first."""
        ended = self.filled + self.partial + self.failed
        return self.filled / ended if ended else None

    @property
    def failure_rate(self) -> float | None:
        """Share of the ended orders that did not fill at all; None before the first."""
        ended = self.filled + self.partial + self.failed
        return self.failed / ended if ended else None


class Tally:
    """The counters. Steps are single additions, never split by a wait: a reading is always consistent."""

    def __init__(self, venue: str) -> None:
        self._venue = venue
        self._counts: Counter[str] = Counter()
        self._rejects: Counter[tuple[str, RejectClass]] = Counter()
        self._under_way: Counter[PositionKey] = Counter()

    def add(self, name: str, count: int = 1) -> None:
        """Count one of :class:`ExitStats`'s counters up."""
        self._counts[name] += count

    def rejected(self, symbol: str, kind: RejectClass) -> None:
        """Count a refusal."""
        self._rejects[symbol, kind] += 1

    def sending(self, key: PositionKey) -> None:
        """An order of this position's exit goes out."""
        self.add("placed")
        self._under_way[key] += 1
        if self._under_way[key] > 1:
            self.add("duplicates_executed")

    def answered(self, key: PositionKey) -> None:
        """It is no longer under way."""
        self._under_way[key] -= 1
        if self._under_way[key] <= 0:
            del self._under_way[key]

    def reading(self, open_exits: tuple[OpenExit, ...]) -> ExitStats:
        """All of it now."""
        rejects = tuple(
            RejectCount(venue=self._venue, symbol=symbol, kind=kind, count=count)
            for (symbol, kind), count in sorted(self._rejects.items())
        )
        return ExitStats(**self._counts, rejects=rejects, open_exits=open_exits)
