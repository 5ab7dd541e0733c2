"""``Reconciler``: the shell around ``execsafe.core.reconcile``."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Final, NoReturn, Protocol

import anyio
import attrs

from execsafe._calls import within
from execsafe.buses.surviving import survived
from execsafe.buses.telling import tell
from execsafe.core.findings import (
    OF_POSITIONS,
    Action,
    BookFill,
    CancelOrder,
    Finding,
    Findings,
    Kind,
    Observation,
    ReconcilePolicy,
    Settle,
    inferred_fill,
)
from execsafe.core.protection.record import Protection
from execsafe.core.reconcile import Reconciliation, decide, inferred_event
from execsafe.errors import (
    ExecsafeError,
    InvalidInput,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    VersionConflict,
)
from execsafe.gateway import OrderGateway
from execsafe.model.event import Event
from execsafe.model.intent import Intent, IntentRecord
from execsafe.model.position import Position
from execsafe.model.values import check_seconds
from execsafe.ports import Batch, Clock, Listener, OrderRef, Put
from execsafe.positions import PositionBook
from execsafe.reconcile._barrier import EntryBarrier, denied
from execsafe.reconcile._eyes import Eyes
from execsafe.stores.codec import register
from execsafe.stores.commits import commit_shielded
from execsafe.views import VenueReader

_log = logging.getLogger("execsafe.reconcile")
COLLECTION: Final = "reconciliations"
_CONFLICTS_MAX: Final = 5
_TIMEOUT_S: Final = 10.0

register(Findings, "ReconciliationFindings")


class StopKeeper(Protocol):
    """Who looks after the stops of positions; :class:`~execsafe.protection.ProtectionManager` is one."""

    async def open(self) -> None:
        """Load what an earlier process left."""
        ...

    def protections(self) -> Sequence[Protection]:
        """All records that are not closed: their stops are nobody else's business."""
        ...


class Reconciler:
    """Compares venue, book and journal of one account; and lets no entry pass before they have been compared.

    Give the gateway an :class:`EntryBarrier` among its ``checks`` and hand the same one over here; await
    :meth:`barrier` at the start, and keep :meth:`run` running.
    The decisions are in ``execsafe.core.reconcile``.

    Args:
        gateway: through which orders are settled and canceled.
        book: what is held; fills that it lacks are taken into it.
        policy: when a difference counts, and what may be done about it.
        reader: readings of the venue; of the gateway's adapter by default.
        clock: the registry's by default.
        listeners: told of every event after it is durable. One that raises is logged and ignored.
        account: whose orders and positions are compared.
        symbols: what is traded, besides what is found in the book, the journal and the venue's positions.
        stops: who keeps the stops of positions; what it looks after is no orphan.
        entries: where the gateway asks whether an entry may go out.
    """

    def __init__(
        self,
        gateway: OrderGateway,
        book: PositionBook,
        *,
        policy: ReconcilePolicy | None = None,
        reader: VenueReader | None = None,
        clock: Clock | None = None,
        listeners: Sequence[Listener] = (),
        account: str = "default",
        symbols: Collection[str] = (),
        stops: StopKeeper | None = None,
        entries: EntryBarrier | None = None,
    ) -> None:
        self.gateway = gateway
        self.book = book
        self.policy: ReconcilePolicy = policy if policy is not None else ReconcilePolicy()
        self.clock: Clock = clock if clock is not None else gateway.registry.clock
        self.account = account
        self._symbols = frozenset(symbols)
        self._stops = stops
        self._listeners = tuple(listeners)
        self._store = gateway.registry.store
        reader = reader if reader is not None else VenueReader(gateway.adapter, clock=self.clock)
        self._eyes = Eyes(gateway, book, reader, self.policy, account)
        gateway.endings.consult(book)
        self._findings: Findings | None = None  # as stored, None: to be read
        self._version = 0
        self._current: tuple[Finding, ...] = ()  # as seen: entries are denied even if it could not be stored
        self._turn = anyio.Lock()
        self._has_passed = False
        self._read_ms: int | None = None
        self._last: Reconciliation | None = None
        if entries is not None:
            entries.watch(account, self.admit)

    # --- reading ---------------------------------------------------------------------------------

    @property
    def has_passed(self) -> bool:
        """Whether the start-up barrier is behind us."""
        return self._has_passed

    @property
    def last(self) -> Reconciliation | None:
        """What the latest pass came to; it stands, and ages, while later ones fail."""
        return self._last

    @property
    def read_at_ms(self) -> int | None:
        """When the latest pass began in which every view could be read; None: there was none."""
        return self._read_ms

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All differences, the unconfirmed ones too, as of the latest pass."""
        return self._current

    # --- passes ----------------------------------------------------------------------------------

    async def barrier(self) -> Reconciliation:
        """Wait until everything from before is settled and compared; entries are denied until then.

        Every open intent is settled by the gateway, every view is read, and whatever differs has been seen twice:
        agreement or a classified difference, for each symbol. A difference goes on denying entries in its symbol.
        A view that fails is read again, the others are not; one symbol that cannot be read keeps them all waiting.

        There is no time-out: a venue that cannot be read is no reason to trade. Use ``anyio.fail_after`` for one.

        Raises:
            StoreError: the journal could not be read or written.
        """
        pause_s = min(self.policy.confirm_after_s, self.policy.interval_s) / 2
        while True:
            await self._settle()
            result = await self.reconcile()
            if result.lifts_barrier:
                self._has_passed = True
                return result
            await anyio.sleep(pause_s)

    async def reconcile(self, mismatch: object = None) -> Reconciliation:
        """One pass: read, take in what is proven, decide, remember, tell, act.

        Args:
            mismatch: what made an exit ask for it, so that this can be its ``MismatchHandler``. The pass reads all
                anew, but nothing twice: an exit is not kept waiting by a view that fails.

        Raises:
            StoreError: nothing was done about what was found; the next pass finds it again.
        """
        if mismatch is not None:
            self._eyes.hurry()
        async with self._turn:
            findings = await self._open()
            at_ms = self.clock.now_ms()
            kept = await self._kept_keys()
            seen = await self._eyes.observe(
                findings,
                self._symbols,
                at_ms=at_ms,
                is_kept=lambda record: record.intent.key in kept,
                hurried=mismatch is not None,
            )
            result = await self._decided(seen)
            self._last = result
            if not result.unread:
                self._read_ms = at_ms
            for action in result.actions:
                await self._carry_out(action)
            return result

    async def run(self, interval_s: float | None = None) -> NoReturn:
        """Pass the barrier, then pass after pass, until cancelled. What fails is logged and tried again.

        Args:
            interval_s: pause between two passes; the policy's by default.
        """
        pause_s = self.policy.interval_s if interval_s is None else check_seconds(interval_s, "interval_s")
        while True:
            await survived(self.reconcile if self._has_passed else self.barrier, "a pass", log=_log)
            await anyio.sleep(pause_s)

    async def adopt(self, symbol: str) -> Position | None:
        """Take what the venue shows of *symbol* for true: book the difference, confirmed as it is, as one fill.

        For somebody who has looked: a position opened by hand is to be managed from now on, or one that the list of
        fills does not explain is really gone. Returns the position afterwards.

        Raises:
            InvalidInput: no difference of quantity in *symbol* is confirmed, or no price is known for it.
            StoreError: nothing is known to be written; call it again.
        """
        await self.reconcile()
        async with self._turn:
            findings = await self._open()
            found = [f for f in findings.findings if f.symbol == symbol and f.kind in OF_POSITIONS and f.confirmed]
            execution = inferred_fill(self.account, found[0]) if found and found[0].kind is not Kind.TWO_SIDED else None
            if execution is None:
                raise InvalidInput(f"{symbol}: there is no confirmed difference of quantity that could be booked")
            position = await self.book.apply_execution(execution, self.account)
            event = inferred_event(found[0], self.account, self.clock.now_ms(), note="adopted")
            left = tuple(f for f in findings.findings if f.what != found[0].what)
            await self._save(attrs.evolve(findings, findings=left), (event,))
            self._current = left
            return position

    # --- entries ---------------------------------------------------------------------------------

    def admit(self, intent: Intent) -> None:
        """Return if an entry may go out, as far as reconciliation goes; for :class:`EntryBarrier`.

        Raises:
            TradingDenied: ``reason`` is "not_reconciled" (before the barrier), "reconciliation_stale", "difference"
                (in this symbol) or "lost_order".
        """
        reason = self._denial(intent.symbol)
        if reason is not None:
            raise denied(intent, reason)

    def _denial(self, symbol: str) -> str | None:
        if not self._has_passed or self._read_ms is None:
            return "not_reconciled"
        max_age_s = self.policy.max_age_s
        if max_age_s is not None and self.clock.now_ms() - self._read_ms > round(max_age_s * 1000):
            return "reconciliation_stale"
        if any(found.symbol == symbol and found.kind in OF_POSITIONS for found in self.findings):
            return "difference"
        if self.policy.lost_orders_halt and any(found.kind is Kind.LOST_ORDER for found in self.findings):
            return "lost_order"
        return None

    # --- inside ----------------------------------------------------------------------------------

    async def _settle(self) -> None:
        try:
            await self.gateway.recover(self.account)
        except StoreError:
            raise
        except ExecsafeError as error:
            _log.warning("not everything could be settled (%s: %s); it comes again", type(error).__name__, error)

    async def _kept_keys(self) -> frozenset[str]:
        if self._stops is None:
            return frozenset()
        await self._stops.open()
        return frozenset(known.intent_key for known in self._stops.protections())

    async def _decided(self, seen: Observation) -> Reconciliation:
        """Decide, and remember it before anything is done: an inferred fill is the same one after a crash."""
        for _ in range(_CONFLICTS_MAX):
            result = decide(await self._open(), seen, self.policy)
            self._current = result.record.findings
            try:
                await self._save(result.record, result.events)
            except VersionConflict:  # another process reconciles the same account: its findings count too
                self._findings = None
            else:
                return result
        raise StoreUnavailable(f"the findings kept changing for {_CONFLICTS_MAX} attempts to write them")

    async def _carry_out(self, action: Action) -> None:
        try:
            match action:
                case BookFill():
                    await self.book.apply_execution(action.execution, self.account)
                case CancelOrder():
                    await self._cancel(action)
                case Settle():
                    await self._settle()
        except ExecsafeError as error:
            _log.warning("%s failed (%s: %s); it comes again", type(action).__name__, type(error).__name__, error)

    async def _cancel(self, action: CancelOrder) -> None:
        if action.identity:
            record = await self.gateway.registry.find_identity(action.identity)
            if record is not None:
                await self._cancel_ours(record)
            return
        ref = OrderRef(
            symbol=action.symbol,
            client_order_id=action.client_order_id,
            venue_order_id=action.venue_order_id,
            is_trigger=True,
        )
        try:
            with within(_TIMEOUT_S):
                await self.gateway.adapter.cancel_order(ref)
        except Exception as error:  # noqa: BLE001 - whatever came of it, the next listing shows
            _log.warning("canceling an order that no journal knows: %s", type(error).__name__)

    async def _cancel_ours(self, record: IntentRecord) -> None:
        intent = record.intent
        await self.gateway.cancel(intent.key, account=intent.account, leg=intent.leg)

    async def _open(self) -> Findings:
        if self._findings is None:
            await self.book.open()
            stored = await self._store.find(COLLECTION, self.account)
            value = Findings(account=self.account) if stored is None else stored.value
            if not isinstance(value, Findings):
                raise StoreCorrupt("a record of another kind was found among the reconciliations", key=self.account)
            self._findings, self._version = value, 0 if stored is None else stored.version
        return self._findings

    async def _save(self, findings: Findings, events: tuple[Event, ...]) -> None:
        if findings == self._findings and not events:
            return
        put = Put(collection=COLLECTION, key=self.account, value=findings, version=self._version)
        batch = Batch(now_ms=self.clock.now_ms(), puts=(put,), events=events)
        # Until the write is acknowledged nothing is known of it: it is read again before deciding anew.
        known, self._findings = self._version, None
        await commit_shielded(self._store, batch, timeout_s=_TIMEOUT_S)
        self._findings, self._version = findings, known + 1
        self._tell(events)

    def _tell(self, events: Sequence[Event]) -> None:
        tell(self._listeners, *events)
