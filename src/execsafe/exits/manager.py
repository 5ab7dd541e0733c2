"""``ExitManager``: the one way out of a position."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import anyio
import attrs

from execsafe.buses.surviving import survived
from execsafe.core import exits
from execsafe.core.exits import ExitPolicy, ExitReason, ExitRecord, ExitState
from execsafe.errors import AlreadyInFlight, StaleFencingToken, StoreError, VersionConflict
from execsafe.exits._blind import BlindExits
from execsafe.exits._desk import Desk
from execsafe.exits._journal import ExitJournal
from execsafe.exits._one_pass import Pass
from execsafe.exits._orders import Overtaken
from execsafe.exits._sight import Eyes
from execsafe.exits.faces import ApprovalGate, DenyMarket, MismatchHandler
from execsafe.exits.results import Deduplicated, Dust, ExitResult, Flat, UnknownExit, result_of
from execsafe.exits.stats import ExitStats, OpenExit, Tally
from execsafe.gateway import OrderGateway
from execsafe.locks import Claim, DedupLock, OnBusy
from execsafe.model.event import EventType
from execsafe.model.position import Position, PositionKey
from execsafe.model.values import Number, check_seconds, to_positive
from execsafe.ports import Clock, Listener, PositionSource, Protections
from execsafe.views import VenueReader

_log = logging.getLogger("execsafe.exits")
_AT_ONCE: Final = 8
_LOOKS_FOR_A_CLAIM_MAX: Final = 100
_CLAIM_PAUSE_S: Final = 0.01


class ExitManager:
    """Closes positions: one exit at a time per position, never more than is held, and never lost.

    Args:
        gateway: the door through which every order goes.
        positions: what is held; a :class:`~execsafe.positions.PositionBook`.
        policy: prices, attempts, rests, alarms.
        reader: the venue's readings; made from the gateway's adapter by default.
        protections: who keeps the stops and take-profits that must go before a sale. None: there are none.
        approval: who may allow a market order. Nobody by default.
        handler: who is told that the venue holds less than the book.
        locks: keeps two callers from working on one exit. By default with leases in the registry's store, so that
            other processes are kept out too; pass one to share it among managers.
        listeners: told of every event. One that raises is logged and ignored.
        clock: the registry's by default.
        store_timeout_s: how long one write may take. 10.
    """

    def __init__(
        self,
        gateway: OrderGateway,
        positions: PositionSource,
        *,
        policy: ExitPolicy | None = None,
        reader: VenueReader | None = None,
        protections: Protections | None = None,
        approval: ApprovalGate | None = None,
        handler: MismatchHandler | None = None,
        locks: DedupLock | None = None,
        listeners: Sequence[Listener] = (),
        clock: Clock | None = None,
        store_timeout_s: float = 10.0,
    ) -> None:
        check_seconds(store_timeout_s, "store_timeout_s")
        store = gateway.registry.store
        self.gateway = gateway
        self.policy: ExitPolicy = policy if policy is not None else ExitPolicy()
        self._clock: Clock = clock if clock is not None else gateway.registry.clock
        self._locks = locks if locks is not None else DedupLock(store=store, clock=self._clock)
        self._journal = ExitJournal(store, clock=self._clock, listeners=listeners, timeout_s=store_timeout_s)
        self._tally = Tally(gateway.adapter.venue_name)
        self._desk = Desk(
            gateway=gateway,
            positions=positions,
            eyes=Eyes(gateway.adapter, reader or VenueReader(gateway.adapter, clock=self._clock), positions),
            policy=self.policy,
            protections=protections,
            approval=approval if approval is not None else DenyMarket(),
            handler=handler,
            journal=self._journal,
            tally=self._tally,
            clock=self._clock,
        )
        self._blind = BlindExits(self._desk)

    # --- asking ----------------------------------------------------------------------------------

    async def exit(self, key: PositionKey, reason: ExitReason, *, quantity: Number | None = None) -> ExitResult:
        """Close a position, or *quantity* of it; return what this call came to.

        An exit that runs already is taken over by a more urgent reason: its ladder goes on with what that one allows,
        and this call waits for it and finishes what it leaves. A reason that is not more urgent is told at once.
        Failures of the venue are results, never exceptions.

        Raises:
            InvalidInput: *quantity* is not above 0.
        """
        wanted = None if quantity is None else to_positive(quantity, "quantity")
        try:
            return await self._enter(key, ExitReason(reason), wanted)
        except StoreError as error:
            self._desk.caught("store", error)
            return await self._blind.exit(key, ExitReason(reason), wanted)

    async def exit_all(
        self, reason: ExitReason = ExitReason.PANIC, *, account: str | None = None
    ) -> dict[PositionKey, ExitResult]:
        """Close every open position of the book at the same time; one that fails keeps no other from it."""
        with contextlib.suppress(StoreError):  # then as the book knows them
            await self._desk.positions.catch_up()
        results: dict[PositionKey, ExitResult] = {}
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def close(key: PositionKey) -> None:
            async with limiter:
                results[key] = await self.exit(key, reason)

        async with anyio.create_task_group() as tasks:
            for position in self._desk.positions.open_positions(account):
                tasks.start_soon(close, position.key)
        return results

    async def recover(self) -> tuple[ExitResult, ...]:
        """Go on with every exit that an earlier process, or a cancelled call, left behind; wait for its lease to end.

        Orders that were under way are settled first; nothing is sent twice. Exits that rest go on when they are due.

        Raises:
            StoreError: the open exits could not be read.
        """
        return await self._go_on(OnBusy.WAIT)

    async def tick(self) -> tuple[ExitResult, ...]:
        """Go on with every exit that is due and that nobody works on, and raise the alarms that are due.

        Raises:
            StoreError: the open exits could not be read.
        """
        return await self._go_on(OnBusy.FAIL)

    async def run(self, interval_s: float = 1.0) -> None:
        """:meth:`tick` for ever. What fails is logged and tried again with the next tick."""
        check_seconds(interval_s, "interval_s")
        while True:
            await survived(self.tick, "a pass over the exits", log=_log)
            await anyio.sleep(interval_s)

    # --- looking ---------------------------------------------------------------------------------

    def is_exiting(self, key: PositionKey) -> bool:
        """Whether an exit of that position has begun and not ended, as far as this process knows."""
        return key in self._journal.open

    def stats(self) -> ExitStats:
        """Counters and open exits, consistent with each other."""
        now_ms = self._clock.now_ms()
        return self._tally.reading(tuple(_open_exit(r, now_ms) for r in self._journal.open.values()))

    # --- inside ----------------------------------------------------------------------------------

    async def _enter(self, key: PositionKey, reason: ExitReason, wanted: Decimal | None) -> ExitResult:
        existing: ExitRecord | None = None
        for _ in range(_LOOKS_FOR_A_CLAIM_MAX):
            existing = await self._journal.find(key)
            takes_over = False
            if existing is not None and not existing.state.is_terminal:
                takes_over = reason.outranks(existing.reason)
                await self._merge(existing, reason, wanted)
            result = await self._claim_and_go(key, reason, wanted, takes_over=takes_over)
            if result is not None:
                return result
            existing = await self._journal.find(key)
            if existing is not None and not existing.state.is_terminal:
                if not reason.outranks(existing.reason):
                    break
            else:
                await anyio.sleep(_CLAIM_PAUSE_S)  # the other's claim is a moment old, or just ends
        return self._deduplicated(key, reason, existing)

    async def _claim_and_go(
        self, key: PositionKey, reason: ExitReason, wanted: Decimal | None, *, takes_over: bool
    ) -> ExitResult | None:
        """What came of it under the exit's claim; None: somebody else has it."""
        on_busy = OnBusy.WAIT if takes_over else OnBusy.FAIL
        try:
            async with contextlib.AsyncExitStack() as stack:
                claim = await self._claim(stack, key, on_busy)
                if claim is None:
                    return None
                return await self._claimed(key, reason, wanted, claim, takes_over=takes_over)
        except (Overtaken, StaleFencingToken):
            return self._deduplicated(key, reason, self._journal.open.get(key))

    async def _claim(self, stack: contextlib.AsyncExitStack, key: PositionKey, on_busy: OnBusy) -> Claim | None:
        name = ("exit", key.account, key.symbol, key.side.value)
        try:
            return await stack.enter_async_context(self._locks.hold(name, on_busy=on_busy))
        except AlreadyInFlight:
            return None

    async def _claimed(
        self, key: PositionKey, reason: ExitReason, wanted: Decimal | None, claim: Claim, *, takes_over: bool
    ) -> ExitResult:
        await self._blind.journal(key)
        await self._desk.positions.catch_up()
        position = self._position(key)
        record = await self._journal.find(key)
        if record is not None and not record.state.is_terminal:
            is_about_another = position is not None and not record.is_about(position)
            if not (takes_over or is_about_another or self._is_due(record)):
                return self._deduplicated(key, reason, record)
            result = await self._pass(record, claim)
            record = await self._journal.find(key)
            if not is_about_another or record is None or not record.state.is_terminal:
                return result
            position = self._position(key)
        if position is None:
            return Flat(key=key) if record is None or not takes_over else result_of(record)
        if record is not None and record.dust > 0 and record.is_about(position) and record.dust == position.quantity:
            return Dust(record=record, quantity=record.dust)
        return await self._pass(await self._begin(record, position, reason, wanted), claim)

    async def _begin(
        self, before: ExitRecord | None, position: Position, reason: ExitReason, wanted: Decimal | None
    ) -> ExitRecord:
        desk = self._desk
        now_ms = self._clock.now_ms()
        venue = self.gateway.adapter.venue_name
        record = exits.begun(before, position, reason, venue=venue, wanted=wanted, now_ms=now_ms)
        # A record that was purged must not bring its orders' keys back.
        while await self._is_used(record):
            record = attrs.evolve(record, sequence=record.sequence + 1)
        quantity = record.want_of(position)
        event = desk.event(
            EventType.EXIT_REGISTERED, record, quantity=quantity, display_id=exits.display_id(record, quantity)
        )
        try:
            record = await self._journal.write(record, [event])
        except VersionConflict as error:
            raise Overtaken from error
        self._tally.add("begun")
        return record

    async def _is_used(self, record: ExitRecord) -> bool:
        registry = self.gateway.registry
        return await registry.find(record.intent_key, account=record.account, leg=exits.leg_name(1)) is not None

    async def _pass(self, record: ExitRecord, claim: Claim) -> ExitResult:
        one = Pass(self._desk, record, lambda: claim.lease)
        try:
            return await one.run()
        except StoreError as error:
            if not one.has_sent:
                raise
            self._desk.caught("store", error)
            return UnknownExit(record=one.record)

    async def _merge(self, record: ExitRecord, reason: ExitReason, wanted: Decimal | None) -> None:
        """Put this wish into the stored record, where whoever works on it finds it."""
        current: ExitRecord | None = record
        while current is not None:
            now_ms = self._clock.now_ms()
            after = exits.merged(current, reason, wanted, now_ms=now_ms)
            if after == current:
                return
            events = []
            if after.reason is not current.reason:
                events = [
                    self._desk.event(
                        EventType.EXIT_UPGRADED,
                        after,
                        existing_reason=current.reason.value,
                        new_reason=reason.value,
                        age_ms=now_ms - current.started_at_ms,
                    )
                ]
            try:
                await self._journal.write(after, events)
            except VersionConflict:
                current = await self._journal.find(record.key)
            else:
                self._tally.add("upgraded", len(events))
                return

    def _deduplicated(self, key: PositionKey, reason: ExitReason, existing: ExitRecord | None) -> Deduplicated:
        self._tally.add("deduplicated")
        age_ms = 0 if existing is None else self._clock.now_ms() - existing.started_at_ms
        known = None if existing is None else existing.reason
        if existing is not None:
            self._desk.tell(
                EventType.EXIT_DEDUPLICATED,
                existing,
                existing_reason=existing.reason.value,
                new_reason=reason.value,
                age_ms=age_ms,
            )
        return Deduplicated(key=key, new_reason=reason, existing_reason=known, age_ms=age_ms, record=existing)

    def _position(self, key: PositionKey) -> Position | None:
        position = self._desk.positions.position(key.account, key.symbol)
        return position if position is not None and position.side is key.side and position.is_open else None

    def _is_due(self, record: ExitRecord) -> bool:
        return record.state is ExitState.WORKING or record.recheck_at_ms <= self._clock.now_ms()

    async def _go_on(self, on_busy: OnBusy) -> tuple[ExitResult, ...]:
        home = {"", self.gateway.adapter.venue_name}
        records = [r for r in await self._journal.open_records() if r.venue in home]
        results: list[ExitResult] = []
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def go_on(record: ExitRecord) -> None:
            async with limiter:
                result = await self._resume(record, on_busy)
            if result is not None:
                results.append(result)

        async with anyio.create_task_group() as tasks:
            for record in records:
                self._journal.open[record.key] = record
                tasks.start_soon(go_on, record)
        return tuple(results)

    async def _resume(self, record: ExitRecord, on_busy: OnBusy) -> ExitResult | None:
        """One that rests or was left behind. None: not due, or somebody works on it."""
        is_left_behind = on_busy is OnBusy.WAIT and record.state is ExitState.UNKNOWN
        try:
            if not (is_left_behind or self._is_due(record)):
                await self._raise_alarms(record)
                return None
            async with contextlib.AsyncExitStack() as stack:
                claim = await self._claim(stack, record.key, on_busy)
                newest = None if claim is None else await self._journal.find(record.key)
                if claim is None or newest is None or newest.state.is_terminal:
                    return None
                await self._blind.journal(record.key)
                return await self._pass(newest, claim)
        except (Overtaken, StaleFencingToken):
            return None
        except Exception as error:  # noqa: BLE001 - one that cannot go on now keeps no other from it
            self._desk.caught("store" if isinstance(error, StoreError) else "an exit", error)
            return None

    async def _raise_alarms(self, record: ExitRecord) -> None:
        after = self._desk.raise_alarms(record)
        if after is not record:
            with contextlib.suppress(VersionConflict):  # whoever changed it looks at the alarms themselves
                await self._journal.write(after, self._desk.alarm(record, after))


def _open_exit(record: ExitRecord, now_ms: int) -> OpenExit:
    return OpenExit(
        key=record.key,
        position_id=record.position_id,
        reason=record.reason,
        state=record.state,
        hold=record.hold,
        age_ms=now_ms - record.started_at_ms,
        unable_ms=now_ms - record.progress_at_ms,
        attempts=record.legs,
        failed_attempts=record.barren,
        closed_quantity=record.closed_quantity,
        last_error=record.last_error,
        recheck_at_ms=record.recheck_at_ms,
    )
