"""``PositionBook``: the single truth about positions, built from fills."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

import anyio
import attrs

from execsafe.buses.telling import tell
from execsafe.core.evidence import Growth, OrderEvidence, evidence_of, evidence_of_execution, foreign_key
from execsafe.core.positions import ChangeKind, Chapter, Page, PositionChange, absorb, changes, fold, learn
from execsafe.errors import StoreCorrupt, StoreUnavailable, VersionConflict
from execsafe.intents import IntentRegistry
from execsafe.model.event import Event, EventType
from execsafe.model.instrument import Instrument
from execsafe.model.intent import IntentRecord
from execsafe.model.order import OrderReport
from execsafe.model.position import Execution, Position
from execsafe.model.values import Params, check_seconds, plain
from execsafe.ports import Batch, Clock, Listener, Put, Store, StoredEvent
from execsafe.stores.codec import register
from execsafe.stores.commits import commit_shielded

_log = logging.getLogger("execsafe.positions")
COLLECTION: Final = "positions"
ABSORBED: Final = "position_orders"  # orders that left their page; read only when more becomes known of one
CURSOR: Final = "positions"
_CONFLICTS_MAX: Final = 50
_EVENTS_AT_ONCE: Final = 1_000
_TELLS_OF_FILLS: Final = frozenset(
    {EventType.ORDER_FILL, EventType.INTENT_FILLED, EventType.INTENT_CANCELED, EventType.INTENT_EXPIRED}
)
_EVENT_OF: Final = {
    ChangeKind.OPENED: EventType.POSITION_OPENED,
    ChangeKind.CHANGED: EventType.POSITION_CHANGED,
    ChangeKind.CLOSED: EventType.POSITION_CLOSED,
}

Subscriber: TypeAlias = Callable[[PositionChange], None]
"""A hook that is told of changes, in order. It must be quick; if it raises, the book goes on."""

register(Page, "PositionPage")
register(OrderEvidence, "OrderEvidence")


@attrs.frozen(kw_only=True)
class _Open:
    """A page as stored, and what it amounts to."""

    page: Page
    chapter: Chapter
    version: int = 0


class PositionBook:
    """What is held, by account and symbol: one net position each (one-way mode), built from fills and nothing else.

    The book reads the outbox after its own durable cursor, loads the intents that filled, and joins what they prove
    into one page per symbol. A page, its events and nothing else are written in one transaction; there is no second
    copy, no alias and no merge. Applying the same evidence twice changes nothing, so a kill between any two steps
    costs nothing but reading again.

    A fill beyond flat opens the other side. On spot, fees that the venue states in the base currency reduce what is
    held; a fee that no view states is not known to the book either (reconciliation finds the difference). Profits are
    those of spot and linear contracts.

    Several processes may keep a book over one store: writes are conditional, and the loser reads again.

    Args:
        store: where the pages live; the registry's own, because the outbox is read from it.
        registry: whose intents are followed.
        clock: source of Unix milliseconds; the registry's by default.
        listeners: told of every position event after it is durable. One that raises is logged and ignored.
        instruments: the instrument of a symbol if it is known (``ExchangeAdapter.prepared``); only the contract size
            is used, for profits. None: every contract size is 1.
        retention_s: how long closed positions are remembered, a week by default, as long as the registry's records.
        store_timeout_s: how long one write may take before :class:`~execsafe.errors.StoreUnavailable` is raised.
    """

    def __init__(
        self,
        store: Store,
        registry: IntentRegistry,
        *,
        clock: Clock | None = None,
        listeners: Sequence[Listener] = (),
        instruments: Callable[[str], Instrument | None] | None = None,
        retention_s: float = 7 * 86_400.0,
        store_timeout_s: float = 10.0,
    ) -> None:
        check_seconds(retention_s, "retention_s")
        check_seconds(store_timeout_s, "store_timeout_s")
        self.store = store
        self.registry = registry
        self.clock: Clock = clock if clock is not None else registry.clock
        self._listeners = tuple(listeners)
        self._subscribers: list[Subscriber] = []
        self._instruments = instruments
        self._retention_ms = round(retention_s * 1000)
        self._store_timeout_s = store_timeout_s
        self._pages: dict[tuple[str, str], _Open] = {}
        self._seq: int | None = None
        self._turn = anyio.Lock()

    # --- reading ---------------------------------------------------------------------------------

    def position(self, account: str, symbol: str) -> Position | None:
        """The open position, None if the book knows of none. As of the last :meth:`catch_up`."""
        known = self._pages.get((account, symbol))
        return None if known is None else known.chapter.position

    def open_positions(self, account: str | None = None) -> tuple[Position, ...]:
        """All open positions, optionally of one account, in order of account and symbol."""
        found = (self._pages[key].chapter.position for key in sorted(self._pages))
        return tuple(p for p in found if p is not None and account in {None, p.account})

    def closed_positions(self, account: str, symbol: str) -> tuple[Position, ...]:
        """Recently closed positions of a symbol, oldest first."""
        known = self._pages.get((account, symbol))
        return () if known is None else known.chapter.closed

    def find(self, position_id: str) -> Position | None:
        """A position by its id, open or recently closed."""
        chapters = (known.chapter for known in self._pages.values())
        found = (p for c in chapters for p in (c.position, *c.closed) if p is not None)
        return next((p for p in found if p.position_id == position_id), None)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Have *subscriber* told of every change from now on; call the result to end that."""
        self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

        return unsubscribe

    # --- following -------------------------------------------------------------------------------

    async def open(self) -> None:
        """Load what is stored, then catch up. Needed once before anything else; calling it again reads again.

        Raises:
            StoreError: the store could not be read.
        """
        async with self._turn:
            await self._load()
        await self.catch_up()

    async def catch_up(self) -> None:
        """Take in everything that was recorded since the last time.

        Raises:
            StoreError: the store failed. What was taken in stays; the rest is taken in next time.
        """
        async with self._turn:
            if self._seq is None:
                await self._load()
            while items := await self.store.read_events(self._seq or 0, _EVENTS_AT_ONCE):
                await self._take_in(items)
                self._seq = items[-1].seq
                await self.store.set_cursor(CURSOR, self._seq)
            self._forget()

    async def apply_execution(self, execution: Execution, account: str = "default") -> Position | None:
        """Take in one execution from elsewhere; return the position in its symbol.

        A fill of one of our own orders goes into that order's record and counts there. Any other counts by its trade
        id, once: ids of inferred fills must be pure functions of what they were inferred from.

        Raises:
            StoreError: nothing is known to be written; apply it again.
        """
        await self.catch_up()
        async with self._turn:
            record = await self._own(execution, account)
            now_ms = self.clock.now_ms()
            if record is not None:
                evidence = evidence_of(record, (), at_ms=now_ms)
            else:
                evidence = (evidence_of_execution(execution, at_ms=now_ms),)
            await self._fold_in(account, execution.symbol, evidence)
        return self.position(account, execution.symbol)

    async def has_booked(self, execution: Execution, account: str = "default") -> bool:
        """Whether *execution* counts here as a trade that belongs to no order of ours.

        Raises:
            StoreError: the store could not be read.
        """
        async with self._turn:
            page, key = (await self._known(account, execution.symbol)).page, foreign_key(execution)
        if any(order.key == key for order in page.orders):
            return True
        return await self.store.find(ABSORBED, _order_key(page, key)) is not None

    async def _known(self, account: str, symbol: str) -> _Open:
        return self._pages.get((account, symbol)) or await self._stored(account, symbol)

    async def _load(self) -> None:
        seq = await self.store.get_cursor(CURSOR)  # first: pages are never behind the cursor read before them
        for stored in await self.store.scan_open(COLLECTION):
            known = _opened(stored.value, stored.version, stored.key)
            earlier = self._pages.get((known.page.account, known.page.symbol))
            self._adopt(known, None if earlier is None else earlier.chapter)
        self._seq = max(self._seq or 0, seq)

    async def _take_in(self, items: Sequence[StoredEvent]) -> None:
        growths: dict[str, list[Growth]] = {}
        last_ms: dict[str, int] = {}
        for event in (item.event for item in items if item.event.type in _TELLS_OF_FILLS):
            steps = growths.setdefault(event.subject, [])
            last_ms[event.subject] = event.at_ms
            if event.type is EventType.ORDER_FILL and event.attempt is not None and event.quantity is not None:
                steps.append((event.attempt, event.at_ms, event.quantity))
        for subject, steps in growths.items():
            record = await self.registry.find_identity(subject)
            if record is None:
                _log.error("a fill of %s can no longer be credited: its record is gone; reconcile", subject)
                continue
            evidence = evidence_of(record, steps, at_ms=last_ms[subject])
            await self._fold_in(record.intent.account, record.intent.symbol, evidence)

    async def _own(self, execution: Execution, account: str) -> IntentRecord | None:
        """The record of our order that this is a fill of, with the fill in it; None for any other.

        Some venues fill a stop that was set off by an order with another id of theirs, and ours. Such a fill cannot be
        put into the stop's record, which counts it by its own quantity: it is ours all the same, and never foreign.
        """
        report = OrderReport(
            symbol=execution.symbol,
            client_order_id=execution.client_order_id,
            venue_order_id=execution.venue_order_id,
            side=execution.side,
            fills=(execution.fill,),
        )
        record = await self.registry.observe(report, account=account)
        if record is None or record.intent.is_trigger:
            return record
        ids = {fill.trade_id for attempt in record.attempts for fill in attempt.fills}
        return record if execution.trade_id in ids else None

    # --- writing ---------------------------------------------------------------------------------

    async def _fold_in(self, account: str, symbol: str, evidence: tuple[OrderEvidence, ...]) -> None:
        if not evidence:
            return
        known = await self._known(account, symbol)
        # What is open on a page that was not in memory, another process opened: news to our subscribers.
        is_known = (account, symbol) in self._pages
        before = known.chapter if is_known else attrs.evolve(known.chapter, position=None)
        for _ in range(_CONFLICTS_MAX):
            recalled = await self._recall(known.page, evidence)
            page = learn(self._sized(known.page), evidence, recalled)
            try:
                now_known = known if page == known.page else await self._write(known, page)
            except VersionConflict:
                known = await self._stored(account, symbol)
            else:
                self._adopt(now_known, before)
                return
        raise StoreUnavailable(f"the page of {symbol} kept changing for {_CONFLICTS_MAX} attempts to write it")

    async def _write(self, known: _Open, page: Page) -> _Open:
        now_ms = self.clock.now_ms()
        kept, gone = absorb(page, forget_before_ms=now_ms - self._retention_ms)
        chapter = fold(kept)
        events = tuple(_event(change, now_ms) for change in changes(known.chapter, chapter))
        is_open = chapter.position is not None or any(order.is_live for order in kept.orders)
        put = Put(
            collection=COLLECTION,
            key=_key(page.account, page.symbol),
            value=kept,
            version=known.version,
            is_open=is_open,
            ended_at_ms=None if is_open else now_ms,
        )
        moved = [await self._move_out(page, order, now_ms) for order in gone]
        await self._commit(Batch(now_ms=now_ms, puts=(put, *moved), events=events))
        self._tell(events)
        return _Open(page=kept, chapter=chapter, version=known.version + 1)

    async def _move_out(self, page: Page, order: OrderEvidence, now_ms: int) -> Put:
        key = _order_key(page, order.key)
        stored = await self.store.find(ABSORBED, key)
        version = 0 if stored is None else stored.version
        return Put(collection=ABSORBED, key=key, value=order, version=version, is_open=False, ended_at_ms=now_ms)

    async def _commit(self, batch: Batch) -> None:
        await commit_shielded(self.store, batch, timeout_s=self._store_timeout_s)

    async def _stored(self, account: str, symbol: str) -> _Open:
        stored = await self.store.find(COLLECTION, _key(account, symbol))
        if stored is None:
            return _Open(page=Page(account=account, symbol=symbol), chapter=Chapter())
        return _opened(stored.value, stored.version, stored.key)

    async def _recall(self, page: Page, evidence: Iterable[OrderEvidence]) -> list[OrderEvidence]:
        """Orders that left the page, and of which more may be known now."""
        here = {order.key for order in page.orders}
        wanted = [piece.key for piece in evidence if page.base_ms >= 0 and piece.key not in here]
        found = [await self.store.find(ABSORBED, _order_key(page, key)) for key in wanted]
        return [stored.value for stored in found if stored is not None and isinstance(stored.value, OrderEvidence)]

    def _sized(self, page: Page) -> Page:
        instrument = None if self._instruments is None else self._instruments(page.symbol)
        return page if instrument is None else attrs.evolve(page, contract_size=instrument.contract_size)

    # --- memory ----------------------------------------------------------------------------------

    def _adopt(self, known: _Open, before: Chapter | None) -> None:
        """Make this the current state, and tell the subscribers how it differs from *before* (None: nothing)."""
        self._pages[(known.page.account, known.page.symbol)] = known
        if before is not None:
            for change in changes(before, known.chapter):
                self._inform(change)

    def _forget(self) -> None:
        """Drop pages on which nothing is open and nothing recent is left; the store keeps them for its retention."""
        oldest_ms = self.clock.now_ms() - self._retention_ms
        for key, known in list(self._pages.items()):
            is_recent = any(p.updated_at_ms >= oldest_ms for p in known.chapter.closed)
            is_live = any(order.is_live for order in known.page.orders)
            if known.chapter.position is None and not is_recent and not is_live:
                del self._pages[key]

    def _inform(self, change: PositionChange) -> None:
        for subscriber in tuple(self._subscribers):
            try:
                subscriber(change)
            except Exception:  # noqa: BLE001 - whatever a subscriber raises
                _log.exception("a subscriber failed on %s", change.kind.value)

    def _tell(self, events: Sequence[Event]) -> None:
        tell(self._listeners, *events)


def _key(account: str, symbol: str) -> str:
    return json.dumps([account, symbol], ensure_ascii=False, separators=(",", ":"))


def _order_key(page: Page, order_key: str) -> str:
    return json.dumps([page.account, page.symbol, order_key], ensure_ascii=False, separators=(",", ":"))


def _opened(value: object, version: int, key: str) -> _Open:
    if not isinstance(value, Page):
        raise StoreCorrupt("a record of another kind was found among the positions", key=key)
    return _Open(page=value, chapter=fold(value), version=version)


def _event(change: PositionChange, now_ms: int) -> Event:
    position = change.position
    before = None if change.before is None else plain(change.before.quantity)
    details = {
        "account": position.account,
        "side": position.side.value,
        "realized": plain(position.realized),
        "before": before,
    }
    return Event(
        type=_EVENT_OF[change.kind],
        at_ms=now_ms,
        subject=position.position_id,
        symbol=position.symbol,
        quantity=position.quantity,
        price=position.entry_price,
        details=Params.of(details),
    )
