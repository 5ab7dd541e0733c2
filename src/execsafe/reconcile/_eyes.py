"""What one pass sees: readings of the venue first, then the journal and the book, which are never behind them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from functools import partial

import attrs

from execsafe._calls import within
from execsafe.core import transitions
from execsafe.core.findings import (
    Backing,
    Finding,
    Findings,
    Observation,
    OrderSeen,
    Owner,
    ReconcilePolicy,
    is_marked,
    is_not_offered,
)
from execsafe.core.holdings import compare_positions, is_spot, next_foreign_fill, tolerance, was_seen_before
from execsafe.gateway import OrderGateway
from execsafe.model.instrument import Instrument
from execsafe.model.intent import IntentRecord, IntentState
from execsafe.model.order import ZERO, OrderReport
from execsafe.model.position import Execution, Snapshot, Unavailable
from execsafe.positions import PositionBook
from execsafe.reconcile._reads import Reads
from execsafe.views import VenueReader

_PREPARE_TIMEOUT_S = 30.0  # loading a venue's markets takes several requests


class Eyes:
    """Reads, and takes in what is proven: reports of our own orders, and fills. Decides nothing."""

    def __init__(
        self, gateway: OrderGateway, book: PositionBook, reader: VenueReader, policy: ReconcilePolicy, account: str
    ) -> None:
        self._gateway = gateway
        self._registry = gateway.registry
        self._book = book
        self._reader = reader
        self._reads = Reads(policy)
        self._policy = policy
        self._account = account
        profile = gateway.adapter.profile
        self.lag_ms: int = round((profile.read_lag_s + profile.clock_skew_s) * 1000)
        self._agreed_ms: dict[str, int] = {}

    def hurry(self) -> None:
        """Somebody waits for the pass under way: what cannot be read now is not tried again in it."""
        self._reads.hurry()

    async def observe(
        self,
        record: Findings,
        symbols: Collection[str],
        *,
        at_ms: int,
        is_kept: Callable[[IntentRecord], bool],
        hurried: bool = False,
    ) -> Observation:
        """Everything that one pass needs. What a report or a list of fills proves is in the book afterwards.

        If *hurried*, every view is read once, whatever comes of it.

        Raises:
            StoreError: the journal or the book could not be read or written.
        """
        self._reads.begin(hurried=hurried)
        positions = await self._reads.one(self._reader.positions)
        wanted = {*symbols, *(found.symbol for found in record.findings)}
        wanted |= {held.symbol for held in self._book.open_positions(self._account)}
        wanted |= {one.intent.symbol for one in await self._records()}
        if isinstance(positions, Snapshot):
            wanted |= {shown.symbol for shown in positions.value}
        listings = await self._reads.all(
            {symbol: functools.partial(self._reader.open_orders, symbol) for symbol in sorted(wanted)}
        )
        balances = await self._reads.one(self._reader.balances) if any(map(is_spot, wanted)) else None
        orders = {symbol: await self._known(listing, is_kept) for symbol, listing in listings.items()}
        for symbol, listing in listings.items():
            await self._refresh_unlisted(symbol, listing)
        await self._book.catch_up()
        seen = Observation(
            account=self._account,
            at_ms=at_ms,
            symbols=frozenset(wanted),
            lag_ms=self.lag_ms,
            positions=positions,
            balances=balances,
            orders=orders,
            instruments={symbol: found for symbol in wanted if (found := await self._instrument(symbol)) is not None},
        )
        return await self._explained(record, await self._with_ours(seen))

    async def _records(self) -> list[IntentRecord]:
        records = await self._registry.open_records(self._account)
        return [record for record in records if self._gateway.is_at_home(record)]

    async def _with_ours(self, seen: Observation) -> Observation:
        """*seen* with the book and the journal as they are now."""
        book = self._book.open_positions(self._account)
        active_ms = {held.symbol: held.updated_at_ms for held in book}
        for symbol in {*seen.orders, *active_ms}:
            closed = self._book.closed_positions(self._account, symbol)
            instants = [held.updated_at_ms for held in closed] + [active_ms.get(symbol, 0)]
            active_ms[symbol] = max(instants)
        return attrs.evolve(seen, book=book, active_ms=active_ms, intents=tuple(await self._records()))

    async def _instrument(self, symbol: str) -> Instrument | None:
        adapter = self._gateway.adapter
        try:
            with within(_PREPARE_TIMEOUT_S):
                return adapter.prepared(symbol) or await adapter.prepare(symbol)
        except Exception:  # noqa: BLE001 - without its steps a symbol is compared to the last digit
            return None
        return None

    # --- orders ----------------------------------------------------------------------------------

    async def _known(
        self, listing: Snapshot[Sequence[OrderReport]] | Unavailable, is_kept: Callable[[IntentRecord], bool]
    ) -> Snapshot[tuple[OrderSeen, ...]] | Unavailable:
        if isinstance(listing, Unavailable):
            return listing
        taken_ms = listing.taken_at_ms
        orders = tuple([await self._whose(report, taken_ms, is_kept) for report in listing.value])
        return Snapshot(value=orders, taken_at_ms=listing.taken_at_ms)

    async def _whose(self, report: OrderReport, taken_ms: int, is_kept: Callable[[IntentRecord], bool]) -> OrderSeen:
        """Whose an order is, asked of the journal after the listing: ours are written down before they are sent."""
        venue = self._gateway.adapter.venue_name
        record = await self._registry.observe(report, account=self._account, venue=venue)
        if record is not None and record.state.is_terminal:
            now_ms = self._reader.clock.now_ms()
            late = partial(transitions.revived, report=report, looked_at_ms=taken_ms, lag_ms=self.lag_ms, now_ms=now_ms)
            record = await self._registry.advance(record, late)
        seen = OrderSeen(
            symbol=report.symbol,
            owner=Owner.FOREIGN,
            client_order_id=report.client_order_id,
            venue_order_id=report.venue_order_id,
            side=report.side,
            quantity=report.quantity,
            is_stop=report.trigger_price is not None and report.reduce_only is True,
        )
        if record is None:
            rule = self._gateway.adapter.profile.client_order_id
            return attrs.evolve(seen, owner=Owner.LOST) if is_marked(report.client_order_id, rule) else seen
        return attrs.evolve(
            seen,
            owner=Owner.ENDED if record.state.is_terminal else Owner.OURS,
            identity=record.intent.identity,
            is_stop=record.intent.is_trigger and record.intent.reduce_only,
            is_kept=is_kept(record),
            since_ms=record.updated_at_ms,
        )

    async def _refresh_unlisted(self, symbol: str, listing: Snapshot[Sequence[OrderReport]] | Unavailable) -> None:
        """Orders that rest by the journal, and that a list late enough does not show: look for each alone."""
        if isinstance(listing, Unavailable):
            return
        shown = {report.client_order_id for report in listing.value} | {r.venue_order_id for r in listing.value}
        for record in await self._records():
            last = record.last
            is_late = listing.taken_at_ms >= record.updated_at_ms + self.lag_ms
            if record.intent.symbol != symbol or record.state is not IntentState.LIVE or last is None or not is_late:
                continue
            if last.client_order_id not in shown and last.venue_order_id not in shown:
                await self._gateway.refresh(record)

    # --- fills -----------------------------------------------------------------------------------

    async def _explained(self, record: Findings, seen: Observation) -> Observation:
        """*seen* once the lists of fills of all symbols that differ are read, and what explains them is booked."""
        held = compare_positions(record, seen)
        differing = {found.symbol: found for found, _ in held.differences}
        for symbol, taken_ms in ((one.symbol, seen.at_ms) for one in held.verified):
            if symbol not in differing:
                self._agreed_ms[symbol] = taken_ms
        if not differing:
            return seen
        backing = {symbol: await self._book_fills(record, found, seen) for symbol, found in differing.items()}
        return await self._with_ours(attrs.evolve(seen, backing=backing))

    async def _book_fills(self, record: Findings, found: Finding, seen: Observation) -> Backing:
        since_ms = self._since_ms(found, seen)
        fills = await self._reads.one(lambda: self._reader.executions(found.symbol, since_ms=since_ms))
        if isinstance(fills, Unavailable):
            return Backing.NOT_OFFERED if is_not_offered(fills) else Backing.UNREAD
        foreign = []
        for fill in fills.value:
            ours = await self._record_of(fill)
            if ours is None:
                foreign.append(fill)
            elif all(known.trade_id != fill.trade_id for attempt in ours.attempts for known in attempt.fills):
                await self._book.apply_execution(fill, self._account)
        stops = [r for r in await self._records() if r.intent.symbol == found.symbol and r.intent.is_trigger]
        if was_seen_before(record, found, seen.lag_ms):
            # The record of a stop that is proven gone without a trace may never tell what it filled.
            stops = [r for r in stops if not self._gateway.endings.is_gone(r)]
        unclaimed = self._not_ours({r.intent.identity for r in stops}, foreign, seen.orders.get(found.symbol))
        return await self._book_foreign(found, unclaimed, seen)

    def _not_ours(
        self,
        stops: set[str],
        fills: list[Execution],
        listing: Snapshot[tuple[OrderSeen, ...]] | Unavailable | None,
    ) -> list[Execution]:
        """What no stop of ours may explain: some venues state a set-off stop's trade under an order id of their own."""
        if not stops:
            return fills
        if not isinstance(listing, Snapshot) or not stops <= {order.identity for order in listing.value}:
            return []  # one of them may have been set off; its record will tell
        return [fill for fill in fills if fill.at_ms < listing.taken_at_ms - self.lag_ms]

    async def _book_foreign(self, found: Finding, foreign: list[Execution], seen: Observation) -> Backing:
        step = tolerance(seen, found.symbol)
        while True:
            position = self._book.position(self._account, found.symbol)
            held = ZERO if position is None else position.signed_quantity
            number, backing = next_foreign_fill(held, found.venue_quantity, step, foreign, self._policy)
            if number is None:
                return backing
            await self._book.apply_execution(foreign.pop(number), self._account)

    def _since_ms(self, found: Finding, seen: Observation) -> int:
        agreed_ms = self._agreed_ms.get(found.symbol)
        if agreed_ms is None:
            opened = [held.opened_at_ms for held in seen.book if held.symbol == found.symbol]
            agreed_ms = min([*opened, seen.at_ms - round(self._policy.lookback_s * 1000)])
        return max(0, agreed_ms - self.lag_ms)

    async def _record_of(self, fill: Execution) -> IntentRecord | None:
        record = None
        if fill.client_order_id is not None:
            record = await self._registry.find_client_order(self._account, fill.client_order_id)
        if record is None and fill.venue_order_id is not None:
            record = await self._registry.find_order(
                self._account, fill.symbol, fill.venue_order_id, venue=self._gateway.adapter.venue_name
            )
        is_ours = record is not None and record.intent.symbol == fill.symbol and self._gateway.is_at_home(record)
        return record if is_ours else None
