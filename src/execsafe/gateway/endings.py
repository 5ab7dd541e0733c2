"""Concludes the ends that no view shows; the rules are in ``execsafe.core.endings``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import attrs

from execsafe.core import transitions
from execsafe.core.endings import Trace, fills_of, trace
from execsafe.ghosts import GhostOrderResolver, Look, order_ref
from execsafe.intents import IntentRegistry, Transition
from execsafe.model.intent import Attempt, AttemptState, IntentRecord
from execsafe.model.position import Execution, Snapshot
from execsafe.ports import Clock, ExchangeAdapter
from execsafe.views import VenueReader


class FillBook(Protocol):
    """Who knows of fills that are none of our orders'; :class:`~execsafe.positions.PositionBook` is one."""

    async def has_booked(self, execution: Execution, account: str) -> bool:
        """Whether *execution* counts as somebody else's."""
        ...


class Endings:
    """Remembers, from look to look, since when an order that rested has been missing.

    Only in memory: after a restart the two looks are taken anew, which costs a read lag and proves no less.
    """

    def __init__(
        self,
        resolver: GhostOrderResolver,
        registry: IntentRegistry,
        adapter: ExchangeAdapter,
        *,
        clock: Clock,
        timeout_s: float,
    ) -> None:
        self._resolver = resolver
        self._registry = registry
        self._clock = clock
        self._reader = VenueReader(adapter, clock=clock, request_timeout_s=timeout_s)
        profile = adapter.profile
        self._views = profile.views
        self._venue = adapter.venue_name
        self._lag_ms = round((profile.read_lag_s + profile.clock_skew_s) * 1000)
        self._history_ms = None if profile.history_s is None else round(profile.history_s * 1000) - self._lag_ms
        self._missing_since_ms: dict[tuple[str, int], int] = {}
        self._gone: set[tuple[str, int]] = set()  # rests no more, and what it filled is not known
        self._books: list[FillBook] = []

    def consult(self, book: FillBook) -> None:
        """Ask *book*, too, whose a fill is that no order of ours explains."""
        if book not in self._books:
            self._books.append(book)

    def is_gone(self, record: IntentRecord) -> bool:
        """Whether no order of *record* rests any more, as was proven by looking, though its end cannot be concluded."""
        open_ones = [(one.client_order_id, one.number) for one in record.attempts if one.state.may_still_fill]
        return bool(open_ones) and self._gone.issuperset(open_ones)

    async def refresh(self, record: IntentRecord) -> IntentRecord:
        """Look once at every order of *record* that may still fill, and take in what that proves.

        Raises:
            StoreError: it could not be written down; the next look finds it again.
        """
        for number, attempt in enumerate(record.attempts):
            if not attempt.state.may_still_fill:
                continue
            look = await self._resolver.look(order_ref(record.intent, attempt))
            if look.report is not None:
                # It answers our own look-up, so it is about this attempt, even where the venue does not repeat the id.
                report = attrs.evolve(look.report, client_order_id=attempt.client_order_id)
                seen = partial(transitions.observed, report=report, now_ms=self._clock.now_ms())
                record = await self._registry.advance(record, seen)
            ended = await self.after(record, record.attempts[number], look)
            if ended is not None:
                record = await self._registry.advance(record, ended)
        return record

    async def after(self, record: IntentRecord, attempt: Attempt, look: Look) -> Transition | None:
        """What *look* at a resting order proves of its end; None: nothing.

        The change returned holds for the versions of the record in which the order still rests.

        Raises:
            StoreError: the journal could not be asked whose a fill is.
        """
        name = (attempt.client_order_id, attempt.number)
        if attempt.state is not AttemptState.LIVE:
            self._forget(name)
            return None
        found = trace(
            self._views,
            look.seen,
            looked_at_ms=look.began_at_ms,
            known_at_ms=record.updated_at_ms,
            missing_since_ms=self._missing_since_ms.get(name),
            lag_ms=self._lag_ms,
        )
        if found is Trace.MISSING:
            self._missing_since_ms.setdefault(name, self._clock.now_ms())
        elif found is Trace.SEEN:
            self._forget(name)
        if found is not Trace.GONE:
            return None
        ended = await self.concluded(record, attempt)
        if ended is None:
            self._gone.add(name)
        else:
            self._forget(name)
        return ended

    def _forget(self, name: tuple[str, int]) -> None:
        self._missing_since_ms.pop(name, None)
        self._gone.discard(name)

    async def concluded(self, record: IntentRecord, attempt: Attempt) -> Transition | None:
        """The end of an order that was there and is proven to rest no more; None: what it filled is not known.

        Raises:
            StoreError: the journal could not be asked whose a fill is.
        """
        executions = await self._executions(record, attempt)
        if executions is None:
            return None
        fills, now_ms = fills_of(attempt, executions), self._clock.now_ms()
        return lambda r: transitions.vanished(r, attempt.number, fills, now_ms=now_ms)

    async def _executions(self, record: IntentRecord, attempt: Attempt) -> Sequence[Execution] | None:
        """The account's fills since the order was sent; None where they do not tell what it filled."""
        # An order that was taken for absent, and was there, has the id of the attempt that followed.
        namesakes = [one for one in record.attempts if one.client_order_id == attempt.client_order_id]
        sent_at_ms = min(one.prepared_at_ms for one in namesakes)
        age_ms = self._clock.now_ms() - sent_at_ms
        if self._history_ms is not None and age_ms > self._history_ms:
            return None  # its first fills may be older than anything the venue still shows
        reading = await self._reader.executions(record.intent.symbol, since_ms=max(0, sent_at_ms - self._lag_ms))
        if not isinstance(reading, Snapshot):
            return None
        fills_name_it = attempt.venue_order_id is not None and not record.intent.is_trigger
        if not fills_name_it and not await self._are_all_known(record, reading.value):
            return None
        return reading.value

    async def _are_all_known(self, record: IntentRecord, executions: Sequence[Execution]) -> bool:
        account, symbol = record.intent.account, record.intent.symbol
        for fill in executions:
            known = None
            if fill.client_order_id is not None:
                known = await self._registry.find_client_order(account, fill.client_order_id)
            if known is None and fill.venue_order_id is not None:
                known = await self._registry.find_order(account, symbol, fill.venue_order_id, venue=self._venue)
            is_ours = known is not None and known.venue in {"", self._venue}
            if not is_ours and not await self._is_booked(fill, account):
                return False
        return True

    async def _is_booked(self, fill: Execution, account: str) -> bool:
        """Whether it counts already as somebody else's: then it is not what the order filled."""
        return any([await book.has_booked(fill, account) for book in self._books])
