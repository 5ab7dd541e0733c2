"""The door itself: who may pass, with which key, and what an earlier process left behind."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterable, Sequence
from decimal import Decimal

import anyio
import attrs

from execsafe._calls import within
from execsafe._redacting import redact_chain
from execsafe.core import transitions
from execsafe.core.approval import Approved, approve, check_reduces
from execsafe.errors import (
    AlreadyInFlight,
    ExecsafeError,
    IntentConflict,
    InvalidInput,
    LeaseHeld,
    OutcomeUnknown,
    StoreError,
    VenueUnavailable,
    VersionConflict,
)
from execsafe.gateway.checks import EntryChecks
from execsafe.gateway.driver import Driver, Journey
from execsafe.gateway.endings import Endings
from execsafe.gateway.outcomes import Recovery, SubmitOutcome, Unknown, outcome_of
from execsafe.gateway.policy import GatewayPolicy
from execsafe.gateway.requests import Requests
from execsafe.gateway.unjournalled import Unjournalled
from execsafe.ghosts import GhostOrderResolver, LookPolicy
from execsafe.intents import IntentRegistry, is_settled
from execsafe.locks import Claim, DedupLock
from execsafe.model.event import EventType
from execsafe.model.intent import Amendment, Change, Intent, IntentRecord, IntentState
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.values import shorten, to_price, to_quantity, total
from execsafe.ports import Clock, ExchangeAdapter, PreTradeCheck

_log = logging.getLogger("execsafe.gateway")
_PREPARE_TIMEOUTS = 3  # loading a venue's markets takes several requests
_RECOVER_AT_ONCE = 8  # concurrent intents; their reads share the resolver's spacing anyway


def new_holder() -> str:
    """A name for this process among lease holders; unique, so that a restart never mistakes itself for its past."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class OrderGateway:
    """Sends orders such that each intent happens at most once, and says truthfully what became of it.

    Args:
        adapter: the venue.
        registry: the journal. Nothing is sent that is not in it.
        policy: time-outs, patience, attempts.
        looks: how often to look for an order in doubt.
        locks: in-process exclusion; pass one to share it among gateways.
        checks: asked before every entry goes out, in this order; exits pass without.
        clock: defaults to the registry's.
        holder: this process's name in leases; unique per process start by default.
    """

    def __init__(
        self,
        adapter: ExchangeAdapter,
        registry: IntentRegistry,
        *,
        policy: GatewayPolicy | None = None,
        looks: LookPolicy | None = None,
        locks: DedupLock | None = None,
        checks: Sequence[PreTradeCheck] = (),
        clock: Clock | None = None,
        holder: str | None = None,
    ) -> None:
        self.adapter = adapter
        self.registry = registry
        self.policy: GatewayPolicy = policy if policy is not None else GatewayPolicy()
        self._clock = clock if clock is not None else registry.clock
        self._locks = locks if locks is not None else DedupLock(clock=self._clock)
        self.resolver: GhostOrderResolver = GhostOrderResolver(adapter, clock=self._clock, policy=looks)
        self.endings: Endings = Endings(
            self.resolver, registry, adapter, clock=self._clock, timeout_s=self.policy.request_timeout_s
        )
        self._checks = EntryChecks(adapter, checks, timeout_s=self.policy.request_timeout_s)
        requests = Requests(adapter, self.policy, clock=self._clock)
        self._driver = Driver(
            adapter,
            registry,
            self.resolver,
            self.policy,
            clock=self._clock,
            holder=holder if holder is not None else new_holder(),
            checks=self._checks,
            endings=self.endings,
            requests=requests,
        )
        self._unjournalled = Unjournalled(
            adapter, self.resolver, requests, clock=self._clock, timeout_s=self.policy.request_timeout_s
        )

    async def submit(self, intent: Intent, *, join: bool = False, undoes: Iterable[IntentRecord] = ()) -> SubmitOutcome:
        """Make *intent* happen once.

        A key that is already recorded is never sent again: its recorded outcome is returned, or its doubt is looked
        into again. While the same key is being worked on, a second caller is told at once, or waits and shares the
        result with *join*.

        A spot purchase may be ``reduce_only`` as far as it buys back what the orders of *undoes* have sold.

        Raises:
            InvalidInput: malformed, against a limit, or not understood by the venue. Nothing was sent.
            IntentConflict: the key belongs to another payload, or to an order at another venue. Nothing was sent.
            AlreadyInFlight: another caller is working on this key. Nothing was sent by this call.
            TradingDenied: the intent is stale, or a check refused it. Nothing was sent.
            VenueUnavailable: the venue could not be asked for what must be known before sending. Nothing was sent.
            the client's own exception, redacted: the venue refused to be asked (a key that it does not know). Nothing
                was sent.
            StoreError: it could not be journalled. Nothing was sent.
            OutcomeUnknown: the journal or the lease was lost half way, or the key is recorded and the journal that
                knows its outcome fails. ``recover()`` settles it.
        """
        claim, has_waited = await self._claim(intent, join=join)
        try:
            shared = await self._recorded(intent) if has_waited else None
            if shared is not None and shared.state is IntentState.UNRESOLVED:
                return outcome_of(shared)  # the call that was joined has looked long enough
            return await self._submit_claimed(intent, join=join, undoes=undoes)
        finally:
            self._locks.release(claim)

    async def cancel(self, key: str, *, account: str = "default", leg: str = "") -> SubmitOutcome:
        """Cancel what is still open of an intent; return what became of it, read back from the venue.

        The wish is journalled first, so that it survives a crash; if the journal fails it is sent all the same, once.
        ``Unknown``: the order could not be seen to end within the patience; it still counts, and ``recover()`` goes
        on cancelling.

        Raises:
            InvalidInput: no such intent.
        """
        record = await self._known(key, account, leg)
        return await self.change(record, Change(asked_at_ms=self._clock.now_ms()))

    async def replace(
        self,
        key: str,
        *,
        quantity: Decimal | str | int | float | None = None,
        limit_price: Decimal | str | int | float | None = None,
        amendment: Amendment | None = None,
        account: str = "default",
        leg: str = "",
    ) -> SubmitOutcome:
        """Change a live order's total quantity (fills included), its price, or with *amendment* more of its terms.

        Done as cancel, proof of the end, then a new order for what is left: slower than a venue's own amend, but
        never more than the new total at any instant, at every venue. What it could not be replaced by is refused
        before it is touched: limits and checks judge the rest that would be sent, by the fills that one look finds.

        Raises:
            InvalidInput: no such intent, or it has ended.
            InvalidOrder: the new order would break a limit. The old one stays as it is.
            TradingDenied: a check refused the new order, or it is stale. The old one stays as it is.
        """
        record = await self._known(key, account, leg)
        if record.state.is_terminal:
            raise _has_ended(record)
        record = await self.refresh(record)
        if record.state is IntentState.FILLED:
            return outcome_of(record)
        if record.state.is_terminal:
            raise _has_ended(record)
        wanted = attrs.evolve(
            record,
            quantity=record.quantity if quantity is None else to_quantity(quantity),
            limit_price=record.limit_price if limit_price is None else to_price(limit_price),
            amendment=record.amendment if amendment is None else amendment.after(record.amendment),
        )
        return await self.change(record, await self._approved_change(wanted))

    async def _approved_change(self, wanted: IntentRecord) -> Change:
        """The change that makes of a record what is *wanted*; refused before anything is asked of the venue."""
        now_ms, quantity, limit_price = self._clock.now_ms(), wanted.quantity, wanted.limit_price
        if wanted.leaves_quantity > 0:  # else it ends with what has filled: nothing is sent
            approved = await self._approve(wanted.rest)
            await self._checks.ask(wanted.rest)
            quantity, limit_price = total([wanted.filled_quantity, approved.quantity]), approved.limit_price
        return Change(asked_at_ms=now_ms, quantity=quantity, limit_price=limit_price, amendment=wanted.amendment)

    async def change(self, record: IntentRecord, change: Change) -> SubmitOutcome:
        """Journal a wish to cancel or replace, then carry it out.

        Raises:
            InvalidInput: it is to be replaced, and ended meanwhile.
            StoreError: the wish to replace could not be journalled; the order stays as it was.
        """
        now_ms = self._clock.now_ms()
        try:
            wanted = await self.registry.advance(record, lambda r: transitions.ask_change(r, change, now_ms=now_ms))
        except StoreError:
            if not change.is_cancel:
                raise
            return await self._unjournalled.cancel(record)
        if wanted.state.is_terminal and wanted.change != change and not change.is_cancel:
            raise _has_ended(wanted)
        claim, _ = await self._claim(wanted.intent, join=True)
        try:
            return await self._revisit(await self.registry.reload(wanted), join=True)
        finally:
            self._locks.release(claim)

    async def refresh(self, record: IntentRecord) -> IntentRecord:
        """Look once at what became of a live intent, and record it; a second look proves what one cannot."""
        return await self.endings.refresh(record)

    async def recover(self, account: str | None = None) -> Recovery:
        """Settle everything that an earlier process, or an earlier doubt, left open.

        Orders that rest at the venue are read once; attempts that may have been sent are looked for until found or
        proven absent, and only then sent again; wishes to cancel or replace are carried out.

        Raises:
            StoreError: the journal failed for at least one intent; all that could be settled are.
        """
        await self._write_up()
        records = [r for r in await self.registry.open_records(account) if self.is_at_home(r)]
        ends: list[tuple[str, IntentRecord]] = []
        failures: list[ExecsafeError] = []
        limiter = anyio.CapacityLimiter(_RECOVER_AT_ONCE)

        async def settle(record: IntentRecord) -> None:
            async with limiter:
                try:
                    ends.append(await self._recover_one(record))
                except ExecsafeError as error:  # one that cannot be settled now keeps no other from it
                    failures.append(error)

        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(settle, record)
        if failures:
            raise failures[0]
        ends.sort(key=lambda end: end[1].intent.identity)
        return Recovery(
            settled=tuple(r for kind, r in ends if kind == "settled"),
            unresolved=tuple(r for kind, r in ends if kind == "unresolved"),
            held_elsewhere=tuple(r for kind, r in ends if kind == "held"),
        )

    async def _write_up(self) -> None:
        """Journal what went out while the journal failed, and settle it."""
        for intent in self._unjournalled.sent():
            try:
                await self.submit(intent, join=True)
            except ExecsafeError as error:
                _log.warning("%r went out while the journal failed, and is not in it yet: %s", intent.key, error)

    def is_at_home(self, record: IntentRecord) -> bool:
        """Whether the intent is placed at this gateway's venue: one journal may serve several."""
        return record.venue in {"", self.adapter.venue_name}

    # --- inside ----------------------------------------------------------------------------------

    async def _claim(self, intent: Intent, *, join: bool) -> tuple[Claim, bool]:
        """The claim on *intent*, and whether another call had to be waited for."""
        has_waited = False
        while True:
            claim = self._locks.try_claim(intent.identity)
            if claim is not None:
                return claim, has_waited
            if not join:
                self.registry.note(EventType.CALL_DEDUPLICATED, intent)
                raise AlreadyInFlight(
                    f"intent {intent.key!r} is being worked on by another caller; nothing was sent by this call",
                    intent_key=intent.key,
                )
            await self._locks.wait_free(intent.identity)
            has_waited = True

    async def _submit_claimed(self, intent: Intent, *, join: bool, undoes: Iterable[IntentRecord]) -> SubmitOutcome:
        if (known := await self.registry.at_hand(intent)) is not None:
            return await self._revisit(self._checked_home(known), join=join)
        try:
            approved = await self._approve(intent)
            check_reduces(intent, undoes)
            await self._checks.ask(intent)
        except Exception:
            # A recorded intent has its recorded outcome, whatever has become of markets or limits since.
            if (existing := await self._recorded(intent)) is None:
                raise
            return await self._revisit(existing, join=join)
        record = transitions.new_record(
            intent,
            quantity=approved.quantity,
            limit_price=approved.limit_price,
            now_ms=self._clock.now_ms(),
            venue=self.adapter.venue_name,
        )
        try:
            journey = await self._driver.drive(await self._journey(record))
        except (VersionConflict, LeaseHeld) as error:
            if (existing := await self._recorded(intent)) is None:
                raise self._in_flight_elsewhere(intent) from error
            return await self._revisit(existing, join=join)
        except StoreError as error:
            if not self.policy.goes_without_journal(intent):
                raise
            if self.registry.has_seen(intent):
                raise _unreadable(intent) from error
            return await self._unjournalled.submit(record)
        return _end_of(journey)

    async def _approve(self, intent: Intent) -> Approved:
        self.adapter.check(intent)
        ready = self.adapter.prepared(intent.symbol)
        if ready is not None:
            return approve(intent, ready, now_ms=self._clock.now_ms())
        why = "no answer in time"
        try:
            with within(self.policy.request_timeout_s * _PREPARE_TIMEOUTS):
                instrument = await self.adapter.prepare(intent.symbol)
                return approve(intent, instrument, now_ms=self._clock.now_ms())
        except ExecsafeError:
            raise
        except Exception as error:
            judged = self.adapter.judge(error, Operation.LOOK_UP)
            if judged.meaning is Meaning.REJECTED:  # a refused key: the client's own words say it best
                redact_chain(error, self.adapter.redact)
                raise
            why = f"{judged.facts.kind}: {judged.facts.message}"
        raise VenueUnavailable(
            f"{self.adapter.profile.name} could not be asked for what is needed before sending ({shorten(why, 300)}); "
            f"nothing was sent",
            intent_key=intent.key,
        )

    async def _revisit(self, record: IntentRecord, *, join: bool) -> SubmitOutcome:
        """Never sends what is recorded as sent: returns its outcome, or goes on where it stands."""
        has_waited = False
        while True:
            wants_change = record.change is not None and not record.state.is_terminal
            shares_doubt = has_waited and record.state is IntentState.UNRESOLVED
            if (is_settled(record) or shares_doubt) and not wants_change:
                self.registry.note(EventType.CALL_DEDUPLICATED, record.intent)
                return outcome_of(record)
            try:
                lease = await self.registry.take_lease(record.intent, self._driver.lease_request(record.intent))
            except LeaseHeld as error:
                if not join:
                    raise self._in_flight_elsewhere(record.intent) from error
                await self._await_lease(error)
                record, has_waited = await self.registry.reload(record), True
                continue
            journey = Journey(record=await self.registry.reload(record), lease=lease)
            return _end_of(await self._driver.drive(journey))

    async def _await_lease(self, error: LeaseHeld) -> None:
        left_ms = max(0, int(error.context.get("expires_at_ms", 0)) - self._clock.now_ms())
        await anyio.sleep(min(left_ms / 1000 + 0.001, self.resolver.policy.interval_s))

    def _in_flight_elsewhere(self, intent: Intent) -> AlreadyInFlight:
        self.registry.note(EventType.CALL_DEDUPLICATED, intent)
        return AlreadyInFlight(
            f"intent {intent.key!r} is being worked on by another process; nothing was sent by this call",
            intent_key=intent.key,
        )

    async def _journey(self, record: IntentRecord) -> Journey:
        """From the beginning, unless it went out without the journal: then that is written down first."""
        sent = self._unjournalled.find(record.intent)
        if sent is None:
            return Journey(record=record)
        stored, lease = await self.registry.create(sent, acquire=self._driver.lease_request(record.intent))
        self._unjournalled.forget(record.intent.identity)
        return Journey(record=stored, lease=lease)

    async def _known(self, key: str, account: str, leg: str) -> IntentRecord:
        record = await self.registry.find(key, account=account, leg=leg)
        if record is None:
            raise InvalidInput(f"no intent {key!r} is recorded for account {account!r}", intent_key=key)
        return self._checked_home(record)

    async def _recorded(self, intent: Intent) -> IntentRecord | None:
        record = await self.registry.recorded(intent)
        return None if record is None else self._checked_home(record)

    def _checked_home(self, record: IntentRecord) -> IntentRecord:
        if not self.is_at_home(record):
            raise IntentConflict(
                f"intent key {record.intent.key!r} belongs to an order at {record.venue}; use a new key, or an account "
                "of its own for each venue",
                intent_key=record.intent.key,
            )
        return record

    async def _recover_one(self, record: IntentRecord) -> tuple[str, IntentRecord]:
        claim, _ = await self._claim(record.intent, join=True)
        try:
            record = await self.registry.reload(record)
            if record.state is IntentState.LIVE and record.change is None:
                return "settled", await self.refresh(record)
            for last_try in (False, True):
                try:
                    await self._revisit(record, join=False)
                    break
                except AlreadyInFlight as error:
                    if last_try or not isinstance(error.__cause__, LeaseHeld):
                        return "held", record
                    # Most likely the lease of the process that died: it ends by itself.
                    await self._outlive(error.__cause__)
            record = await self.registry.reload(record)
        except OutcomeUnknown:
            record = await self.registry.reload(record)
        finally:
            self._locks.release(claim)
        return ("settled" if is_settled(record) else "unresolved"), record

    async def _outlive(self, held: LeaseHeld) -> None:
        left_ms = int(held.context.get("expires_at_ms", 0)) - self._clock.now_ms() + 1
        longest_ms = self.policy.lease_ttl_ms(self.adapter.profile) * 2
        await anyio.sleep(max(0, min(left_ms, longest_ms)) / 1000)


def _has_ended(record: IntentRecord) -> InvalidInput:
    key = record.intent.key
    return InvalidInput(f"intent {key!r} has ended ({record.state.value}) and cannot be changed", intent_key=key)


def _unreadable(intent: Intent) -> OutcomeUnknown:
    key = intent.key
    return OutcomeUnknown(
        f"intent {key!r} is recorded, and the journal that knows its outcome fails; do not resend under another key",
        intent_key=key,
    )


def _end_of(journey: Journey) -> SubmitOutcome:
    if journey.stalled:
        return Unknown(record=journey.record)
    return outcome_of(journey.record, report=journey.report, cause=journey.cause)
