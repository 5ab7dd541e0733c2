"""``PositionOpener``: an entry and its stop as one saga that ends protected, flat, or with nothing done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import anyio
import attrs

from execsafe.core.opening import (
    ENTRY_LEG,
    EntryPlan,
    Opening,
    OpeningPolicy,
    OpeningState,
    SymbolClaim,
    become,
    is_kept,
)
from execsafe.core.protection.record import ProtectionState, StopRule
from execsafe.core.safety import is_for_now
from execsafe.errors import (
    AlreadyInFlight,
    ExecsafeError,
    IntentConflict,
    OutcomeUnknown,
    StoreError,
    TradingDenied,
    VersionConflict,
)
from execsafe.gateway import Accepted, NeverPlaced, OrderGateway, Rejected, Unknown
from execsafe.model.event import Event, EventType
from execsafe.model.instrument import is_contract
from execsafe.model.intent import IntentRecord, IntentState
from execsafe.model.position import Position, Snapshot
from execsafe.model.values import Params, plain, shorten
from execsafe.ports import Clock, Listener, Put
from execsafe.protection._foresight import stop_refusal
from execsafe.protection._outcomes import Active, EntryDust, EntryFailed, EntryUnknown, OpenOutcome, RolledBack
from execsafe.protection._settings import confirm_settings
from execsafe.protection._shelf import Shelf
from execsafe.protection.manager import ProtectionManager
from execsafe.stores.codec import register

COLLECTION: Final = "openings"
CLAIMS: Final = "opening_claims"
_S = OpeningState

register(Opening)
register(SymbolClaim)


class PositionOpener:
    """Opens positions that are protected or flat again, whatever fails in between.

    The steps: the plan and a claim on the symbol are written down; an entry whose stop the venue would not take is
    refused; leverage and margin mode are confirmed; the entry
    goes through the gateway; whatever fills is covered at once by the manager, at a distance from the price really
    paid, and sized to what filled; what rests too long is canceled. Every step can be repeated: after a crash
    :meth:`recover` goes on from the records.

    Args:
        gateway: through which the entry goes.
        manager: keeps the stops, and closes what cannot be covered.
        policy: how long an entry may rest, and what is done with a part of it.
        clock: the manager's by default.
        listeners: told of every event after it is durable. One that raises is logged and ignored.
    """

    def __init__(
        self,
        gateway: OrderGateway,
        manager: ProtectionManager,
        *,
        policy: OpeningPolicy | None = None,
        clock: Clock | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.gateway = gateway
        self.manager = manager
        self.policy: OpeningPolicy = policy if policy is not None else OpeningPolicy()
        self.clock: Clock = clock if clock is not None else manager.clock
        self._book = manager.book
        self._registry = gateway.registry
        self._store = gateway.registry.store
        self._shelf = Shelf(self._store, COLLECTION, Opening, clock=self.clock, listeners=listeners)
        self._busy: set[str] = set()
        self._is_open = False
        manager.add_rules(self._rule)

    async def open(self, plan: EntryPlan) -> OpenOutcome:
        """Open a position with its stop. The same plan again goes on, or returns what it came to.

        One of which nothing was sent (:attr:`EntryFailed.is_for_now`) begins again, also with other numbers: what it
        was to be is decided anew.

        Raises:
            TradingDenied: the symbol has a position, or another opening is at it. Nothing was sent.
            IntentConflict: the key belongs to another plan. Nothing was sent.
            AlreadyInFlight: this plan is being worked on.
            StoreError: the store failed; ``recover()`` goes on from what is written down.
        """
        await self._load()
        name = _name(plan)
        async with _Busy(self._busy, name):
            known = self._shelf.records.get(name) or await self._shelf.reload(name)
            if known is None or known.state is _S.NOT_SENT:
                known = await self._begin(plan, name, known)
            if known.plan != plan:
                raise IntentConflict(f"key {plan.key!r} belongs to another plan; use a new key", intent_key=plan.key)
            return await self._drive(name, known)

    async def recover(self) -> tuple[OpenOutcome, ...]:
        """Go on with every opening that is not over. Before the manager's ``recover()``: it asks for their stops.

        An entry that was never journalled is not sent by it; its key may be opened again.

        Raises:
            Exception: at least one could not be brought to an end now (all others were).
        """
        await self._load(again=True)
        outcomes: list[OpenOutcome] = []
        failures: list[Exception] = []

        async def go_on(name: str, known: Opening) -> None:
            try:
                async with _Busy(self._busy, name):
                    outcomes.append(await self._drive(name, known, resumed=True))
            except Exception as error:  # noqa: BLE001 - raised once all others have gone on
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            for name, known in sorted(self._shelf.records.items()):
                tasks.start_soon(go_on, name, known)
        if failures:
            raise failures[0]
        return tuple(outcomes)

    async def find(self, key: str, *, account: str = "default") -> Opening | None:
        """The opening of that key, also one that is over; None if there was none, or its retention has passed.

        Raises:
            StoreError: the store could not be read.
        """
        await self._load()
        name = _key(account, key)
        known = self._shelf.records.get(name) or await self._shelf.reload(name)
        if known is not None and known.is_over:
            self._shelf.drop(name)
        return known

    def openings(self) -> tuple[Opening, ...]:
        """All openings that are not over, as far as this process knows them: their symbols are taken."""
        return tuple(known for _, known in sorted(self._shelf.records.items()) if not known.is_over)

    async def _load(self, *, again: bool = False) -> None:
        await self.manager.open()
        if again or not self._is_open:
            await self._shelf.load()
            self._is_open = True

    def _rule(self, position: Position) -> StopRule | None:
        for opening in self._shelf.records.values():
            plan = opening.plan
            if (plan.account, plan.symbol, plan.side) == (position.account, position.symbol, position.side):
                return plan.stop
        return None

    # --- the beginning ---------------------------------------------------------------------------

    async def _begin(self, plan: EntryPlan, name: str, before: Opening | None) -> Opening:
        await self._book.catch_up()
        if self._book.position(plan.account, plan.symbol) is not None:
            raise TradingDenied(
                f"{plan.symbol}: there is a position already", intent_key=plan.key, reason="duplicate_symbol"
            )
        now_ms = self.clock.now_ms()
        opening = Opening(plan=plan, created_at_ms=now_ms, updated_at_ms=now_ms)
        events = [self._event(EventType.ENTRY_STARTED, opening)] if before is None else []  # one key is one entry
        try:
            claim = await self._claim(plan, name, active=True)
            await self._shelf.save(name, opening, events, also=[claim])
        except VersionConflict as error:  # somebody was first, here or elsewhere
            raise self._taken(plan) from error
        return opening

    async def _claim(self, plan: EntryPlan, name: str, *, active: bool) -> Put:
        key = json.dumps([plan.account, plan.symbol], ensure_ascii=False, separators=(",", ":"))
        stored = await self._store.find(CLAIMS, key)
        held = None if stored is None else stored.value
        if active and isinstance(held, SymbolClaim) and held.active and held.opening != name:
            raise self._taken(plan)
        return Put(
            collection=CLAIMS,
            key=key,
            value=SymbolClaim(opening=name, active=active),
            version=0 if stored is None else stored.version,
            is_open=active,
            ended_at_ms=None if active else self.clock.now_ms(),
        )

    def _taken(self, plan: EntryPlan) -> TradingDenied:
        return TradingDenied(f"{plan.symbol}: another opening is at it", intent_key=plan.key, reason="duplicate_symbol")

    # --- the saga --------------------------------------------------------------------------------

    async def _drive(self, name: str, opening: Opening, *, resumed: bool = False) -> OpenOutcome:
        if opening.is_over:
            self._shelf.drop(name)  # its stop rule is not for a later position
            return await self._recorded(opening)
        record = await self._registry.find(opening.plan.key, account=opening.plan.account, leg=ENTRY_LEG)
        if record is None:
            failed = await self._prepared(name, opening, resumed=resumed)
            if failed is not None:
                return failed
            if opening.plan.leverage is not None:
                self._shelf.tell([self._event(EventType.LEVERAGE_CONFIRMED, opening)])
        end = await self._enter(name, opening)
        if end is not None:
            return end
        if opening.state in {_S.PENDING_ENTRY, _S.UNPROTECTED_UNKNOWN}:
            opening = await self._save(name, become(opening, _S.ENTRY_PLACED, now_ms=self.clock.now_ms()))
        return await self._follow(name, opening)

    async def _prepared(self, name: str, opening: Opening, *, resumed: bool) -> OpenOutcome | None:
        """Make ready what must be before the entry goes out; None once it may."""
        if resumed:
            return await self._fail(name, opening, "interrupted before anything was sent", for_now=True)
        plan, now_ms = opening.plan, self.clock.now_ms()
        error = await stop_refusal(self.gateway, self.manager.reader, plan, self.policy, now_ms=now_ms)
        if error is not None:
            # The words of others may hold what must not be written down.
            text = f": {error}" if isinstance(error, ExecsafeError) else ""
            why = f"no stop could be placed: {type(error).__name__}{text}"
            for_now = is_for_now(error) or not isinstance(error, ExecsafeError)
            return await self._fail(name, opening, why, error, for_now=for_now)
        lack = await confirm_settings(self.gateway.adapter, plan, tries=self.policy.setting_tries)
        return None if lack is None else await self._fail(name, opening, lack.why, for_now=not lack.is_refused)

    async def _enter(self, name: str, opening: Opening) -> OpenOutcome | None:
        """Submit the entry (again: it is sent once); None once the venue has it."""
        try:
            outcome = await self.gateway.submit(opening.plan.intent())
        except (OutcomeUnknown, AlreadyInFlight) as error:
            return await self._unknown(name, opening, f"the entry's outcome is not known: {type(error).__name__}")
        except StoreError:
            raise
        except ExecsafeError as error:  # nothing was sent
            return await self._fail(
                name, opening, f"{type(error).__name__}: {error}", error, for_now=await self._is_for_now(opening, error)
            )
        match outcome:
            case Rejected(error=facts, cause=cause):
                return await self._fail(name, opening, f"rejected: {facts.kind}", cause)
            case NeverPlaced():
                return await self._fail(name, opening, "never placed")
            case Unknown():
                return await self._unknown(name, opening, "the entry is in doubt")
            case Accepted():
                return None

    async def _is_for_now(self, opening: Opening, error: ExecsafeError) -> bool:
        plan = opening.plan
        if not is_for_now(error) or opening.state is not _S.PENDING_ENTRY:
            return False
        return await self._registry.find(plan.key, account=plan.account, leg=ENTRY_LEG) is None

    async def _follow(self, name: str, opening: Opening) -> OpenOutcome:
        """Cover what fills as it fills, until the entry has ended."""
        ends_ms = opening.created_at_ms + round(self.policy.entry_timeout_s * 1000)
        covered = None
        while True:
            record = await self._entry(opening)
            if record.filled_quantity != covered and record.filled_quantity > 0:
                await self._cover(opening)
                covered = record.filled_quantity
            if record.state.is_terminal:
                break
            if self.clock.now_ms() >= ends_ms or record.state is not IntentState.LIVE:
                ended = await self.gateway.cancel(opening.plan.key, account=opening.plan.account, leg=ENTRY_LEG)
                if isinstance(ended, Unknown):
                    await self._cover(opening)
                    return await self._unknown(name, opening, "the entry could not be seen to end")
            else:
                await anyio.sleep(self.policy.poll_s)
                await self.gateway.refresh(record)
        if record.filled_quantity <= 0:
            return await self._fail(name, opening, f"not filled: {record.state.value}")
        return await self._settle(name, opening, record)

    async def _settle(self, name: str, opening: Opening, record: IntentRecord) -> OpenOutcome:
        """The entry has ended with something filled: covered, or flat again."""
        position = await self._cover(opening)
        position_id = opening.position_id if position is None else position.position_id
        opening = become(opening, _S.PENDING_SL, now_ms=self.clock.now_ms())
        opening = await self._save(name, attrs.evolve(opening, position_id=position_id))
        if position is not None and not is_kept(record.filled_quantity, record.quantity, self.policy):
            await self.manager.close(position.position_id)
        ends_ms = self.clock.now_ms() + round(self.policy.settle_s * 1000)
        while True:
            position = await self._position(opening)
            protection = None if position is None else self.manager.protection(position.position_id)
            if position is not None and protection is not None and protection.is_safe:
                done = await self._save(name, become(opening, _S.ACTIVE, now_ms=self.clock.now_ms()))
                return Active(opening=done, position=position, protection=protection)
            if position is not None and protection is not None and protection.state is ProtectionState.DUST:
                return await self._left_as_dust(name, opening, position)
            if position is None and await self._is_flat(opening):
                return await self._rolled_back(name, opening)
            if self.clock.now_ms() >= ends_ms:
                return await self._unknown(name, opening, "neither covered nor flat in time")
            await anyio.sleep(self.policy.poll_s)
            await self._cover(opening)

    async def _cover(self, opening: Opening) -> Position | None:
        position = await self._position(opening)
        if position is not None:
            await self.manager.protect(position, opening.plan.stop)
        return await self._position(opening)

    async def _position(self, opening: Opening) -> Position | None:
        await self._book.catch_up()
        position = self._book.position(opening.plan.account, opening.plan.symbol)
        return position if position is not None and position.side is opening.plan.side else None

    async def _is_flat(self, opening: Opening) -> bool:
        """The book says so; where the venue keeps positions, it must say so too."""
        if not is_contract(opening.plan.symbol):
            return True
        reading = await self.manager.reader.positions()
        return isinstance(reading, Snapshot) and all(p.symbol != opening.plan.symbol for p in reading.value)

    async def _entry(self, opening: Opening) -> IntentRecord:
        record = await self._registry.find(opening.plan.key, account=opening.plan.account, leg=ENTRY_LEG)
        if record is None:
            raise OutcomeUnknown("the entry's record is gone", intent_key=opening.plan.key)
        return record

    # --- ends ------------------------------------------------------------------------------------

    async def _fail(
        self, name: str, opening: Opening, reason: str, error: BaseException | None = None, *, for_now: bool = False
    ) -> OpenOutcome:
        note = shorten(reason, 300)
        done = become(opening, _S.NOT_SENT if for_now else _S.FAILED, now_ms=self.clock.now_ms(), note=note)
        await self._save(name, done, self._event(EventType.ENTRY_FAILED, done))
        return EntryFailed(opening=done, reason=note, error=error)

    async def _rolled_back(self, name: str, opening: Opening) -> OpenOutcome:
        reason = opening.note or "closed before its stop was verified"
        done = become(opening, _S.ROLLED_BACK, now_ms=self.clock.now_ms(), note=reason)
        await self._save(name, done, self._event(EventType.ENTRY_ROLLED_BACK, done))
        return RolledBack(opening=done, reason=reason)

    async def _left_as_dust(self, name: str, opening: Opening, position: Position) -> OpenOutcome:
        reason = f"{plain(position.quantity)} is left, too little to be protected or closed"
        done = await self._save(name, become(opening, _S.DUST, now_ms=self.clock.now_ms(), note=reason))
        return EntryDust(opening=done, position=position, reason=reason)

    async def _unknown(self, name: str, opening: Opening, reason: str) -> OpenOutcome:
        left = become(opening, _S.UNPROTECTED_UNKNOWN, now_ms=self.clock.now_ms(), note=reason)
        alarm = attrs.evolve(self._event(EventType.POSITION_UNPROTECTED, left), subject=left.plan.key)
        await self._save(name, left, alarm)
        return EntryUnknown(opening=left, reason=reason)

    async def _recorded(self, opening: Opening) -> OpenOutcome:
        """What an opening that is over came to."""
        if opening.state in {_S.FAILED, _S.NOT_SENT}:
            return EntryFailed(opening=opening, reason=opening.note)
        position = await self._position(opening)
        if opening.state is _S.DUST and position is not None:
            return EntryDust(opening=opening, position=position, reason=opening.note)
        protection = None if position is None else self.manager.protection(position.position_id)
        if opening.state is _S.ROLLED_BACK or position is None or protection is None:
            return RolledBack(opening=opening, reason=opening.note or "closed since")
        return Active(opening=opening, position=position, protection=protection)

    async def _save(self, name: str, opening: Opening, *events: Event) -> Opening:
        before = self._shelf.records.get(name)
        was_unknown = before is not None and before.state is _S.UNPROTECTED_UNKNOWN
        if was_unknown and opening.state is not _S.UNPROTECTED_UNKNOWN:  # ends the alarm, whatever is held by now
            events = (attrs.evolve(self._event(EventType.ENTRY_SETTLED, opening), subject=opening.plan.key), *events)
        also = [await self._claim(opening.plan, name, active=False)] if opening.is_over else []
        await self._shelf.save(name, opening, events, is_open=not opening.is_over, also=also)
        if opening.is_over:
            self._shelf.drop(name)
        return opening

    def _event(self, kind: EventType, opening: Opening) -> Event:
        plan = opening.plan
        details = {"account": plan.account, "side": plan.side.value, "state": opening.state.value}
        return Event(
            type=kind,
            at_ms=self.clock.now_ms(),
            subject=opening.position_id or plan.key,
            symbol=plan.symbol,
            quantity=plan.quantity,
            note=opening.note,
            details=Params.of(details),
        )


class _Busy:
    """Exclusive work on one opening within this process; others are told at once."""

    def __init__(self, busy: set[str], name: str) -> None:
        self._busy = busy
        self._name = name

    async def __aenter__(self) -> None:
        if self._name in self._busy:
            raise AlreadyInFlight("this opening is being worked on by another caller", intent_key=self._name)
        self._busy.add(self._name)

    async def __aexit__(self, *_: object) -> None:
        self._busy.discard(self._name)


def _name(plan: EntryPlan) -> str:
    return _key(plan.account, plan.key)


def _key(account: str, key: str) -> str:
    return json.dumps([account, key], ensure_ascii=False, separators=(",", ":"))
