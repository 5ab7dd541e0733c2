"""``PartialFillHedger``: pairs and multi-leg trades that end hedged, flat, or with what is left in plain sight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import anyio
import attrs

from execsafe.buses.telling import tell
from execsafe.core.hedging import (
    HedgePlan,
    HedgePolicy,
    HedgeRecord,
    HedgeStage,
    LegExposure,
    Verdict,
    check_plan,
    exposures,
)
from execsafe.errors import (
    AlreadyInFlight,
    IntentConflict,
    InvalidInput,
    VersionConflict,
)
from execsafe.gateway import OrderGateway
from execsafe.hedging.benches import Bench, positions_of
from execsafe.hedging.journal import Entry, HedgeJournal
from execsafe.hedging.results import Deduplicated, HandedOver, HedgeResult, SettledResult, in_the_dark, result_of
from execsafe.hedging.runner import PlanRunner
from execsafe.locks import DedupLock, OnBusy
from execsafe.model.event import Event, EventType
from execsafe.model.values import EXACT, plain
from execsafe.ports import Clock, Listener, Store

_RECOVER_AT_ONCE: Final = 8  # concurrent plans; their reads share the resolvers' spacing anyway
_STORE_TIMEOUT_S: Final = 10.0


@attrs.frozen(kw_only=True)
class HedgeRecovery:
    """What ``recover()`` came to, each plan once.

    ``settled`` have their end; ``unsettled`` are still in doubt, or still hold what could not be unwound: they are gone
    on with, at once or after a pause; ``handed_over`` wait for a person; ``held_elsewhere`` are keys of plans that
    somebody else is working on.
    """

    settled: tuple[SettledResult, ...] = ()
    unsettled: tuple[SettledResult, ...] = ()
    handed_over: tuple[HandedOver, ...] = ()
    held_elsewhere: tuple[str, ...] = ()


@attrs.frozen
class _Run:
    plan: HedgePlan
    result: HedgeResult


class PartialFillHedger:
    """Trades several legs such that the hedge is always a function of what really filled.

    The first leg leads. When it has ended, the others are brought to ``ratio × its cumulative fill``, rounded down to
    their step; what cannot be hedged is undone; what can neither be hedged nor undone is reported, never forgotten.

    Args:
        gateways: where the legs are traded: one for all, or by the name that the legs give as ``venue``.
        store: where plans are kept; None: the journal of the (first) gateway's intents.
        policy: thresholds, time-outs, attempts.
        listeners: told of every event after it is durable. A listener that raises is logged and ignored.
        locks: exclusion of equal trades; None: by claims in this process and leases in the store.
        lease_ttl_s: how long after a crash the plans of a process wait for ``recover()`` elsewhere. 30 s, as for
            :class:`~execsafe.locks.DedupLock`.
        clock: None: the first gateway's.
    """

    def __init__(
        self,
        gateways: OrderGateway | Mapping[str, OrderGateway],
        *,
        store: Store | None = None,
        policy: HedgePolicy | None = None,
        listeners: Sequence[Listener] = (),
        locks: DedupLock | None = None,
        lease_ttl_s: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        first = gateways if isinstance(gateways, OrderGateway) else next(iter(gateways.values()), None)
        if first is None:
            raise InvalidInput("a hedger needs at least one gateway")
        self.policy: HedgePolicy = policy if policy is not None else HedgePolicy()
        self._clock = clock if clock is not None else first.registry.clock
        kept_in = store if store is not None else first.registry.store
        self._journal = HedgeJournal(kept_in, self._clock, store_timeout_s=_STORE_TIMEOUT_S)
        self._listeners = tuple(listeners)
        self._lease_ttl_s = lease_ttl_s
        self._locks = (
            locks if locks is not None else DedupLock(store=kept_in, clock=self._clock, lease_ttl_s=lease_ttl_s)
        )
        self._runner = PlanRunner(gateways, self._journal, self.policy, clock=self._clock, listeners=self._listeners)

    # --- the public face ---------------------------------------------------------------------------

    async def execute(self, plan: HedgePlan, *, join: bool = False) -> HedgeResult:
        """Trade *plan*, and return what it came to.

        An equal trade (strategy, accounts, symbols, sides) that is in flight makes this call a duplicate: it is told
        so at once, or waits for that one's result with *join*. A plan with a key is traded once, however often it
        comes; one without a key is a new trade each time. A plan with a key that an earlier process left unfinished
        is finished.

        If the call is cancelled after the leading leg was sent, what filled is still hedged or unwound for up to
        ``shutdown_grace_s``; what is left after that is ``recover()``'s.

        Raises:
            InvalidInput: the plan is malformed, a leg is below its minimum, or the venue would misunderstand it.
                Nothing was sent.
            IntentConflict: the key belongs to another plan. Nothing was sent.
            TradingDenied: the leading leg was refused before it was sent. Nothing was sent.
            VenueUnavailable: a venue could not be asked for what must be known before. Nothing was sent.
            StoreError: the plan or its leading leg could not be journalled. Nothing was sent.
            StaleFencingToken: the plan's lease passed to another process, which goes on with it.
        """
        done = await self._done(plan)
        if done is not None:
            return done
        ran = False

        async def work() -> _Run:
            nonlocal ran
            ran = True
            return _Run(plan, await self._claimed(plan))

        try:
            run = await self._locks.run(plan.content_key, work, on_busy=OnBusy.JOIN if join else OnBusy.FAIL)
        except AlreadyInFlight:
            if ran:
                raise
            return self._duplicate(plan, "in flight")
        if ran or run.plan.is_same_as(plan):
            return run.result
        other = None if isinstance(run.result, Deduplicated) else run.result
        return self._duplicate(plan, "in flight", other)

    async def recover(self) -> HedgeRecovery:
        """Go on with every plan that is unfinished, and look for late fills of those that ended a moment ago.

        Call it at start-up and then regularly. One that cannot be settled now keeps no other from it; it is tried again
        after pauses that grow (``HedgePolicy.retries``), and at once when its orders show something new.

        Raises:
            ExecsafeError: at least one plan could not be worked on (journal, venue); all others were.
        """
        entries = await self._journal.open_plans()
        busy = {e.record.key for e in entries if self._locks.in_flight(e.record.plan.content_key)}
        ends: dict[str, Entry | None] = dict.fromkeys(busy)
        failures: list[Exception] = []
        limiter = anyio.CapacityLimiter(_RECOVER_AT_ONCE)

        async def settle(entry: Entry) -> None:
            async with limiter:
                try:
                    others = [other.record for other in entries if other is not entry]
                    ends[entry.record.key] = await self._recover_one(entry, others)
                except Exception as error:  # noqa: BLE001 - raised below, once all others are settled
                    failures.append(error)

        async with anyio.create_task_group() as tasks:
            for entry in entries:
                if entry.record.key not in busy:
                    tasks.start_soon(settle, entry)
        if failures:
            raise failures[0]
        found = [result_of(e.record) for _, e in sorted(ends.items()) if e is not None]
        results = [result for result in found if result is not None]
        unsettled = {e.record.key for e in ends.values() if e is not None and not e.record.is_done}
        return HedgeRecovery(
            settled=tuple(r for r in results if r.key not in unsettled),
            unsettled=tuple(r for r in results if r.key in unsettled and not isinstance(r, HandedOver)),
            handed_over=tuple(r for r in results if isinstance(r, HandedOver)),
            held_elsewhere=tuple(sorted(key for key, e in ends.items() if e is None)),
        )

    async def find(self, key: str) -> SettledResult | None:
        """What the plan of that key has come to so far; None while it runs, or if there is none."""
        entry = await self._journal.find(key)
        return None if entry is None else result_of(entry.record)

    async def has_begun(self, key: str) -> bool:
        """Whether the plan of that key was begun: not if there is none, nor if it ended before anything was sent.

        Raises:
            StoreError: the journal could not be read.
        """
        entry = await self._journal.find(key)
        return entry is not None and entry.record.verdict is not Verdict.NOT_STARTED

    async def settle(self, key: str, note: str) -> SettledResult | None:
        """Close an unfinished plan by hand, after its exposure was dealt with elsewhere. Nothing is sent.

        Raises:
            InvalidInput: there is no unfinished plan of that key.
            AlreadyInFlight: it is being worked on.
        """
        entry = await self._journal.find(key)
        if entry is None or entry.record.is_done:
            raise InvalidInput(f"no unfinished plan {key!r}", key=key)
        async with self._locks.hold(entry.record.plan.content_key):
            fresh = await self._journal.find(key) or entry
            now_ms = self._clock.now_ms()
            record = attrs.evolve(
                fresh.record,
                verdict=fresh.record.verdict or Verdict.RESIDUAL,
                reason=f"settled by hand: {note}",
                is_done=True,
                ended_at_ms=now_ms,
            )
            event = Event(type=EventType.HEDGE_COMPLETED, at_ms=now_ms, subject=key, note=record.reason)
            ended = await self._journal.finish(fresh, record, record.carried, [event])
        tell(self._listeners, event)
        return result_of(ended.record)

    # --- one call ----------------------------------------------------------------------------------

    async def _done(self, plan: HedgePlan) -> HedgeResult | None:
        """The answer for a signal that has been traded."""
        entry = None if plan.key is None else await self._known(plan)
        if entry is None or not entry.record.is_done or entry.record.verdict is Verdict.NOT_STARTED:
            return None
        return self._duplicate(plan, "done", result_of(entry.record))

    async def _known(self, plan: HedgePlan) -> Entry | None:
        entry = await self._journal.find(plan.key or "")
        if entry is not None and not entry.record.plan.is_same_as(plan):
            raise IntentConflict(f"plan key {plan.key!r} was already used for another plan", key=plan.key)
        return entry

    def _duplicate(self, plan: HedgePlan, reason: str, result: SettledResult | None = None) -> Deduplicated:
        key = plan.key or (result.key if result is not None else "")
        event = Event(
            type=EventType.CALL_DEDUPLICATED,
            at_ms=self._clock.now_ms(),
            subject=key or plan.strategy,
            note=reason,
            symbol=plan.lead.symbol,
        )
        tell(self._listeners, event)
        return Deduplicated(key=key, reason=reason, result=result)

    async def _claimed(self, plan: HedgePlan) -> HedgeResult:
        """Under the claim: a new plan, or one that was left unfinished."""
        done = await self._done(plan)  # another process may have traded it since
        if done is not None:
            return done
        unfinished = await self._journal.unfinished(plan)
        if unfinished is not None:
            if plan.key is None or unfinished.record.key != plan.key:
                return self._duplicate(plan, "unfinished", result_of(unfinished.record))
            return await self._worked_on(unfinished, await self._runner.benches(plan))
        benches = await self._runner.benches(plan)
        record = self._new_record(plan)
        check_plan(
            attrs.evolve(plan, fresh_until_ms=record.fresh_until_ms),
            [bench.instrument for bench in benches],
            [bench.price for bench in benches],
            self.policy.bands,
            now_ms=self._clock.now_ms(),
        )
        reads = self.policy.verify_positions and any(bench.leg.is_contract for bench in benches)
        baselines = await positions_of(benches) if reads else [None] * len(benches)
        return await self._begin(attrs.evolve(record, baselines=tuple(baselines)), benches)

    def _new_record(self, plan: HedgePlan) -> HedgeRecord:
        now_ms = self._clock.now_ms()
        window_ms = round(self.policy.entry_window_s * 1_000)
        fresh_until_ms = now_ms + window_ms if plan.fresh_until_ms is None else plan.fresh_until_ms
        return HedgeRecord(key=plan.key or "", plan=plan, fresh_until_ms=fresh_until_ms, created_at_ms=now_ms)

    async def _begin(self, record: HedgeRecord, benches: Sequence[Bench]) -> HedgeResult:
        plan = record.plan
        event = Event(
            type=EventType.HEDGE_STARTED,
            at_ms=self._clock.now_ms(),
            subject=record.key or plan.strategy,
            symbol=plan.lead.symbol,
            quantity=plan.lead.quantity,
            details={"legs": [f"{leg.side.value} {plain(leg.quantity)} {leg.symbol}" for leg in plan.legs]},
        )
        try:
            entry = await self._journal.begin(record, [event], carries=self.policy.carry_residual)
        except VersionConflict:
            # Another process had the same key, with other content (the same content was excluded).
            await self._known(plan)
            return self._duplicate(plan, "unfinished")
        tell(self._listeners, attrs.evolve(event, subject=entry.record.key))
        return await self._worked_on(entry, benches)

    async def _worked_on(self, entry: Entry, benches: Sequence[Bench]) -> SettledResult:
        ended = await self._runner.drive(entry, benches)
        result = result_of(ended.record)
        return result if result is not None else in_the_dark(ended.record)

    # --- recovery ----------------------------------------------------------------------------------

    async def _recover_one(self, entry: Entry, others: Sequence[HedgeRecord]) -> Entry | None:
        if not entry.record.is_done and not await self._runner.is_due(entry.record):
            return entry
        benches = await self._runner.benches(entry.record.plan)
        if entry.record.is_done:
            is_late = await self._is_late(entry, benches)
            if not is_late:
                return await self._stop_watching(entry)

        async def work() -> Entry:
            fresh = await self._journal.find(entry.record.key) or entry
            if fresh.record.is_done:
                fresh = await self._reopen(fresh)
            elif not await self._runner.is_due(fresh.record):
                return fresh  # another process has just tried
            if any(fresh.record.overlaps(other) for other in others):
                fresh = Entry(fresh.record.without_baselines(), fresh.version)
            return await self._runner.drive(fresh, benches)

        try:
            # The lease of a process that died ends by itself.
            wait_s = self._lease_ttl_s + 1
            return await self._locks.run(entry.record.plan.content_key, work, on_busy=OnBusy.WAIT, timeout_s=wait_s)
        except AlreadyInFlight:
            return None

    async def _is_late(self, entry: Entry, benches: Sequence[Bench]) -> bool:
        """Whether an ended plan's orders have filled more than is in its result."""
        one = self._runner.new_pass(entry, benches)
        await one.load()
        await one.read_again()
        return not _is_as_recorded(entry.record.exposures, exposures(entry.record, await one.load()))

    async def _stop_watching(self, entry: Entry) -> Entry:
        until_ms = entry.record.watch_until_ms
        if until_ms is None or self._clock.now_ms() < until_ms:
            return entry
        try:
            return await self._journal.save(entry, attrs.evolve(entry.record, watch_until_ms=None))
        except VersionConflict:
            return entry

    async def _reopen(self, entry: Entry) -> Entry:
        """Late fills of a hedged trade are hedged, those of one that was undone are undone."""
        before = entry.record
        was_executed = before.verdict is Verdict.EXECUTED
        # What it left to the next plan of the pair is that one's business now.
        left = [leg.residual for leg in before.exposures] if was_executed else before.carried
        carried = before.carried
        if self.policy.carry_residual:
            carried = tuple(EXACT.subtract(took, gave) for took, gave in zip(carried, left, strict=True))
        stage = before.stage
        if not was_executed and stage is HedgeStage.HEDGING:
            stage = HedgeStage.ABORTING
        record = attrs.evolve(
            before, stage=stage, carried=carried, verdict=None, is_done=False, ended_at_ms=None, watch_until_ms=None,
            passes=0, retry_at_ms=None, is_handed_over=False,
        )  # fmt: skip
        return await self._journal.reopen(entry, record)


def _is_as_recorded(recorded: Sequence[LegExposure], now: Sequence[LegExposure]) -> bool:
    return [(leg.filled, leg.closed) for leg in recorded] == [(leg.filled, leg.closed) for leg in now]
