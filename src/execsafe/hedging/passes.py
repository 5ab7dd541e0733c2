"""One pass over a plan: read what is recorded, ask for the next moves, make them, until the end."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import anyio
import attrs

from execsafe.buses.telling import tell
from execsafe.core.hedging import (
    Cancel,
    End,
    HedgePolicy,
    Learn,
    LegExposure,
    LegView,
    Move,
    Pause,
    Reading,
    Submit,
    Turn,
    Verdict,
    Verify,
    Watch,
    decide,
    exposures,
    put_off,
)
from execsafe.errors import StoreError
from execsafe.hedging.benches import Bench, positions_of, side_by_side
from execsafe.hedging.journal import Entry, HedgeJournal
from execsafe.model.event import Event, EventType
from execsafe.model.order import ZERO, Side
from execsafe.model.values import EXACT, plain, total
from execsafe.ports import Clock, Listener

_log = logging.getLogger("execsafe.hedging")
_ENDS: Final[Mapping[Verdict, EventType]] = {
    Verdict.EXECUTED: EventType.HEDGE_COMPLETED,
    Verdict.ABORTED: EventType.HEDGE_UNWOUND,
    Verdict.UNWOUND: EventType.HEDGE_UNWOUND,
    Verdict.RESIDUAL: EventType.RESIDUAL_EXPOSURE,
    Verdict.UNKNOWN: EventType.RESIDUAL_EXPOSURE,
    Verdict.NOT_STARTED: EventType.HEDGE_ABORTED,
}

_IDLE_ENDS: Final[Mapping[Verdict, EventType]] = {**_ENDS, Verdict.ABORTED: EventType.HEDGE_ABORTED}


class Pass:
    """A pass over one plan, under its claim. It may be run again after it was cancelled."""

    def __init__(
        self,
        entry: Entry,
        benches: Sequence[Bench],
        journal: HedgeJournal,
        policy: HedgePolicy,
        *,
        clock: Clock,
        listeners: Sequence[Listener],
        compares_positions: Callable[[], bool],
    ) -> None:
        self.entry: Entry = entry
        self._benches = tuple(benches)
        self._journal = journal
        self._policy = policy
        self._clock = clock
        self._listeners = tuple(listeners)
        self._compares_positions = compares_positions
        self._reading: Reading | None = None
        self._acts: dict[type[Move], Callable[[Sequence[Any]], Any]] = {
            Submit: self._submit,
            Cancel: self._cancel,
            Watch: self._watch,
            Pause: self._pause,
            Learn: self._learn,
            Turn: self._turn,
            Verify: self._verify,
            End: self._end,
        }

    @property
    def refusal(self) -> Exception | None:
        """Why the leading leg was not sent, if it was refused before."""
        return self._benches[0].refusal

    @property
    def is_begun(self) -> bool:
        """Whether an order of the plan is known to be recorded."""
        return any(bench.records for bench in self._benches)

    async def run(self, *, hurry: bool = False) -> Entry:
        """Go on from what is recorded until this pass has its end.

        Raises:
            StoreError: the journal failed.
        """
        has_ended = False
        while not has_ended:
            legs = await self.load()
            moves = decide(
                self.entry.record,
                legs,
                self._policy,
                now_ms=self._clock.now_ms(),
                hurry=hurry,
                reading=self._reading,
            )
            await self._acts[type(moves[0])](moves)
            has_ended = isinstance(moves[0], End)
        return self.entry

    async def load(self) -> list[LegView]:
        """The legs as they are recorded now."""
        for bench in self._benches:
            await bench.load(self.entry.record.key)
        return [bench.view() for bench in self._benches]

    async def read_again(self) -> bool:
        """Look for all orders once more; whether all could be read."""
        return all(await side_by_side([bench.read_again for bench in self._benches]))

    def tell_what_is_left(self) -> None:
        """Say what the plan holds, as far as is known: the process ends before it is hedged or undone."""
        found = self._exposures()
        if any(leg.held or leg.in_doubt for leg in found):
            why = "shut down before it was hedged or undone; recover() goes on"
            self._tell(EventType.RESIDUAL_EXPOSURE, note=why, quantity=found[0].filled, details=_details(found))

    def _exposures(self) -> tuple[LegExposure, ...]:
        return exposures(self.entry.record, [bench.view() for bench in self._benches])

    # --- moves -----------------------------------------------------------------------------------

    async def _submit(self, moves: Sequence[Submit]) -> None:
        self._reading = None
        now_ms = self._clock.now_ms()
        for move in moves:
            if move.tells is not None:
                self._tell(move.tells, symbol=move.intent.symbol, quantity=move.intent.quantity, note=move.note)
        await side_by_side(
            [functools.partial(self._benches[move.index].submit, move.intent, now_ms=now_ms) for move in moves]
        )

    async def _cancel(self, moves: Sequence[Cancel]) -> None:
        self._reading = None
        await side_by_side([functools.partial(self._benches[move.index].cancel, move.record) for move in moves])

    async def _watch(self, moves: Sequence[Watch]) -> None:
        for move in moves:
            await self._sleep_until(move.until_ms)
            live = [functools.partial(self._benches[index].refresh, record) for index, record in move.live]
            await side_by_side(live)

    async def _pause(self, moves: Sequence[Pause]) -> None:
        await self._sleep_until(moves[0].until_ms)

    async def _learn(self, moves: Sequence[Learn]) -> None:
        await side_by_side([self._benches[move.index].learn for move in moves])

    async def _turn(self, moves: Sequence[Turn]) -> None:
        move = moves[0]
        record = attrs.evolve(self.entry.record, stage=move.stage, reason=move.reason)
        if not self._compares_positions():  # known now, and not any more after a crash
            record = record.without_baselines()
        event = self._event(EventType.HEDGE_ABORTED, note=move.reason, details={"stage": move.stage.value})
        self.entry = await self._journal.save(self.entry, record, [event])
        tell(self._listeners, event)

    async def _verify(self, moves: Sequence[Verify]) -> None:
        await self._sleep_until(moves[0].not_before_ms)
        since_ms = self._clock.now_ms() if self._reading is None else self._reading.since_ms
        before = [view.records for view in await self.load()]
        is_complete = await self.read_again()
        legs = await self.load()
        if [view.records for view in legs] != before:
            self._reading = None  # late evidence: decide anew
            return
        gaps = await self._gaps(legs)
        is_blind = any(
            gap is None and bench.leg.is_contract and baseline is not None
            for gap, bench, baseline in zip(gaps, self._benches, self.entry.record.baselines, strict=True)
        )
        unavailable = not is_complete or (is_blind and self._compares_positions())
        self._reading = Reading(gaps=tuple(gaps), is_unavailable=unavailable, since_ms=since_ms)

    async def _gaps(self, legs: Sequence[LegView]) -> list[Decimal | None]:
        baselines = self.entry.record.baselines
        if not self._compares_positions() or not any(baseline is not None for baseline in baselines):
            return [None] * len(legs)
        gaps: list[Decimal | None] = []
        for shown, baseline, view in zip(await positions_of(self._benches), baselines, legs, strict=True):
            if shown is None or baseline is None:
                gaps.append(None)
                continue
            held = view.held if view.leg.side is Side.BUY else EXACT.minus(view.held)
            gaps.append(EXACT.subtract(shown, total((baseline, held))))
        return gaps

    async def _end(self, moves: Sequence[End]) -> None:
        move, now_ms, before = moves[0], self._clock.now_ms(), self.entry.record
        found = self._exposures()
        is_watched = move.is_done and move.verdict is not Verdict.NOT_STARTED and self._policy.watch_s > 0
        record = attrs.evolve(
            before,
            verdict=move.verdict,
            reason=move.reason,
            exposures=found,
            is_done=move.is_done,
            ended_at_ms=now_ms if move.is_done else None,
            watch_until_ms=now_ms + round(self._policy.watch_s * 1_000) if is_watched else None,
        )
        if not move.is_done:
            record = put_off(before, record, move, self._policy, now_ms=now_ms)
        # Where nothing filled, nothing had to be undone.
        kind = _ENDS[move.verdict] if any(leg.filled for leg in found) else _IDLE_ENDS[move.verdict]
        event = self._event(
            kind,
            note=move.reason,
            quantity=found[0].filled,
            details={"verdict": move.verdict.value, "handed_over": record.is_handed_over, **_details(found)},
        )
        if not move.is_done:
            self.entry = await self._journal.save(self.entry, record, [event])
        else:
            left = [leg.residual for leg in found] if move.verdict is Verdict.EXECUTED else before.carried
            kept = left if self._policy.carry_residual else [ZERO] * len(found)
            self.entry = await self._journal.finish(self.entry, record, kept, [event])
        tell(self._listeners, event)

    # --- helpers ---------------------------------------------------------------------------------

    async def _sleep_until(self, at_ms: int) -> None:
        await anyio.sleep(max(0, at_ms - self._clock.now_ms()) / 1_000)

    def _event(self, kind: EventType, **facts: Any) -> Event:
        return Event(type=kind, at_ms=self._clock.now_ms(), subject=self.entry.record.key, **facts)

    def _tell(self, kind: EventType, **facts: Any) -> None:
        if self._listeners:
            tell(self._listeners, self._event(kind, **facts))


def _details(found: Sequence[LegExposure]) -> dict[str, Any]:
    names = ("filled", "held", "in_doubt", "residual")
    return {"legs": [{name: plain(getattr(leg, name)) for name in names} | {"symbol": leg.symbol} for leg in found]}


def alarm(entry_key: str, error: StoreError, now_ms: int) -> Event:
    """What is told when the journal fails while something may be held; the store cannot be."""
    why = f"the journal failed: {type(error).__name__}"
    return Event(type=EventType.RESIDUAL_EXPOSURE, at_ms=now_ms, subject=entry_key, note=why)
