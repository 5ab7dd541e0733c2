"""Where plans are kept: written before the first order, and together with what their pair carries over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import attrs

from execsafe.core.hedging import HedgeLeg, HedgePlan, HedgeRecord, PairRecord, Verdict
from execsafe.errors import StoreCorrupt, StoreUnavailable, VersionConflict
from execsafe.model.event import Event
from execsafe.model.order import ZERO, Side
from execsafe.model.values import EXACT
from execsafe.ports import Batch, Clock, Put, Store, Stored
from execsafe.stores.codec import register
from execsafe.stores.commits import commit_shielded

PLANS: Final = "hedges"
PAIRS: Final = "hedge_pairs"
_CONFLICTS_MAX: Final = 50
_DIGEST_LENGTH: Final = 16

register(HedgeRecord)
register(PairRecord)


@attrs.frozen
class Entry:
    """A plan as it is stored, and its version there (0: not yet)."""

    record: HedgeRecord
    version: int = 0


class HedgeJournal:
    """Plans and pairs in a store. Writes are conditional on what was read, and shielded from cancellation."""

    def __init__(self, store: Store, clock: Clock, *, store_timeout_s: float) -> None:
        self.store = store
        self._clock = clock
        self._timeout_s = store_timeout_s

    async def find(self, key: str) -> Entry | None:
        """The plan of that key."""
        stored = await self.store.find(PLANS, key)
        return None if stored is None else _entry(stored)

    async def open_plans(self) -> list[Entry]:
        """All that are unfinished, or still watched for late fills."""
        return [_entry(stored) for stored in await self.store.scan_open(PLANS)]

    async def unfinished(self, plan: HedgePlan) -> Entry | None:
        """The plan of the same content that has not come to its end."""
        pair, _ = await self._pair(plan)
        key = pair.active.get(_text(plan.content_key))
        entry = None if key is None else await self.find(key)
        return None if entry is None or entry.record.is_done else entry

    async def begin(self, record: HedgeRecord, events: Sequence[Event], *, carries: bool) -> Entry:
        """Store a new plan; it takes over what earlier plans of its pair left to be hedged.

        *record* without a key gets one: a pure function of its content, its time and the number of the run.

        Raises:
            VersionConflict: a plan of that key is stored, and was started.
        """
        for _ in range(_CONFLICTS_MAX):
            pair, version = await self._pair(record.plan)
            known = await self.find(record.key) if record.key else None
            if known is not None and known.record.verdict is not Verdict.NOT_STARTED:
                raise VersionConflict("the plan is stored already", key=record.key, version=known.version)
            carried = tuple(_carried(pair, leg) if carries and index else ZERO for index, leg in _legs(record))
            started = attrs.evolve(record, key=record.key or _new_key(record, pair.runs), carried=carried)
            content = _text(record.plan.content_key)
            left = {
                name: rest
                for name, rest in pair.residuals.items()
                if not (carries and name in {_text(_name(leg)) for leg in record.plan.legs[1:]})
            }
            after = PairRecord(runs=pair.runs + 1, active={**pair.active, content: started.key}, residuals=left)
            named = [attrs.evolve(event, subject=started.key) for event in events]
            entry = Entry(started, 0 if known is None else known.version)
            try:
                return await self._commit(entry, named, pair=(after, version))
            except VersionConflict:
                continue
        raise StoreUnavailable("the pair's record kept changing", key=record.key)

    async def save(self, entry: Entry, record: HedgeRecord, events: Sequence[Event] = ()) -> Entry:
        """Store a change of a plan."""
        return await self._commit(Entry(record, entry.version), events)

    async def finish(
        self, entry: Entry, record: HedgeRecord, left: Sequence[Decimal], events: Sequence[Event]
    ) -> Entry:
        """Store a plan's end, and leave what is *left* by leg, in the leg's direction, to the next plan of the pair."""
        return await self._with_pair(entry, record, left, events)

    async def reopen(self, entry: Entry, record: HedgeRecord) -> Entry:
        """Go on with a plan that had ended."""
        return await self._with_pair(entry, record, [ZERO] * len(record.plan.legs), ())

    async def _with_pair(
        self, entry: Entry, record: HedgeRecord, left: Sequence[Decimal], events: Sequence[Event]
    ) -> Entry:
        content = _text(record.plan.content_key)
        for _ in range(_CONFLICTS_MAX):
            pair, version = await self._pair(record.plan)
            active = dict(pair.active)
            if not record.is_done:
                active.setdefault(content, record.key)
            elif active.get(content) == record.key:
                del active[content]
            residuals = dict(pair.residuals)
            for leg, rest in zip(record.plan.legs, left, strict=True):
                name = _text(_name(leg))
                residuals[name] = EXACT.add(residuals.get(name, ZERO), _signed(leg, rest))
            kept = {name: rest for name, rest in residuals.items() if rest}
            after = PairRecord(runs=pair.runs, active=active, residuals=kept)
            try:
                return await self._commit(Entry(record, entry.version), events, pair=(after, version))
            except VersionConflict:
                newer = await self.find(record.key)
                if newer is None or newer.version != entry.version:
                    raise
        raise StoreUnavailable("the pair's record kept changing", key=record.key)

    async def _pair(self, plan: HedgePlan) -> tuple[PairRecord, int]:
        stored = await self.store.find(PAIRS, _text(plan.pair_key))
        if stored is None:
            return PairRecord(), 0
        if not isinstance(stored.value, PairRecord):
            raise StoreCorrupt("a record of another kind was found among the pairs", key=stored.key)
        return stored.value, stored.version

    async def _commit(
        self, entry: Entry, events: Sequence[Event], *, pair: tuple[PairRecord, int] | None = None
    ) -> Entry:
        now_ms, record = self._clock.now_ms(), attrs.evolve(entry.record, updated_at_ms=self._clock.now_ms())
        is_open = not record.is_done or record.watch_until_ms is not None
        ended_at_ms = None if is_open else record.ended_at_ms or now_ms
        puts = [
            Put(
                collection=PLANS,
                key=record.key,
                value=record,
                version=entry.version,
                is_open=is_open,
                ended_at_ms=ended_at_ms,
            )
        ]
        if pair is not None:
            after, version = pair
            in_use = bool(after.active or after.residuals)
            puts.append(
                Put(
                    collection=PAIRS,
                    key=_text(record.plan.pair_key),
                    value=after,
                    version=version,
                    is_open=in_use,
                    ended_at_ms=None if in_use else now_ms,
                )
            )
        await self._write(Batch(now_ms=now_ms, puts=tuple(puts), events=tuple(events)))
        return Entry(record, entry.version + 1)

    async def _write(self, batch: Batch) -> None:
        await commit_shielded(self.store, batch, timeout_s=self._timeout_s)


def _entry(stored: Stored) -> Entry:
    if not isinstance(stored.value, HedgeRecord):
        raise StoreCorrupt("a record of another kind was found among the plans", key=stored.key)
    return Entry(stored.value, stored.version)


def _legs(record: HedgeRecord) -> enumerate[HedgeLeg]:
    return enumerate(record.plan.legs)


def _name(leg: HedgeLeg) -> tuple[str, str, str]:
    return leg.venue, leg.account, leg.symbol


def _text(key: object) -> str:
    """As JSON, because symbols and names may hold any separator themselves."""
    return json.dumps(key, ensure_ascii=False, separators=(",", ":"))


def _signed(leg: HedgeLeg, quantity: Decimal) -> Decimal:
    return quantity if leg.side is Side.BUY else EXACT.minus(quantity)


def _carried(pair: PairRecord, leg: HedgeLeg) -> Decimal:
    return _signed(leg, pair.residuals.get(_text(_name(leg)), ZERO))


def _new_key(record: HedgeRecord, runs: int) -> str:
    digest = hashlib.sha256(_text(record.plan.content_key).encode()).hexdigest()[:_DIGEST_LENGTH]
    return f"hedge-{digest}-{record.created_at_ms}-{runs + 1}"
