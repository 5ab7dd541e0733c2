"""The case file of one intent: what the venue's ledger, the journal and the callers say about it.

This is a second, independent reading of the guarantees: nothing here asks ``core`` what it would decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal

import attrs

from execsafe.model.intent import Intent, IntentRecord
from execsafe.model.order import ZERO
from execsafe.model.venue import VenueProfile
from execsafe.testing._history import Call, History, Read, Send, Write
from execsafe.testing.ledger import Entry, Happened, Ledger


@attrs.define(eq=False, kw_only=True)
class Order:
    """One order as the venue's ledger has it. Times are true Unix milliseconds."""

    venue_order_id: str
    client_order_id: str | None
    quantity: Decimal
    accepted_ms: int
    filled: Decimal = ZERO
    ended_ms: int | None = None
    is_pruned: bool = False

    @property
    def leaves(self) -> Decimal:
        """What may still fill."""
        return ZERO if self.ended_ms is not None else self.quantity - self.filled

    def take(self, entry: Entry) -> None:
        """Fold one entry in."""
        if entry.what is Happened.FILLED:
            self.filled += entry.quantity
        elif entry.what is Happened.AMENDED:
            self.quantity = entry.quantity
        if entry.what in {Happened.CANCELED, Happened.EXPIRED} or self.filled >= self.quantity:
            self.ended_ms = entry.at_ms


@attrs.frozen(kw_only=True)
class Instant:
    """How much an intent owned or could own right after one entry of the ledger."""

    entry: Entry
    filled: Decimal
    exposure: Decimal


@attrs.define(eq=False, kw_only=True)
class CaseFile:
    """All evidence about one intent key."""

    key: str
    client_order_ids: set[str] = attrs.Factory(set)
    entries: list[Entry] = attrs.Factory(list)
    orders: dict[str, Order] = attrs.Factory(dict)
    instants: list[Instant] = attrs.Factory(list)
    sends: list[Send] = attrs.Factory(list)
    reads: list[Read] = attrs.Factory(list)
    versions: list[tuple[Write, IntentRecord]] = attrs.Factory(list)
    calls: list[Call] = attrs.Factory(list)
    final: IntentRecord | None = None

    @property
    def meant(self) -> Intent | None:
        """The payload that the key stands for: the first one recorded."""
        if self.versions:
            return self.versions[0][1].intent
        return None if self.final is None else self.final.intent

    @property
    def filled(self) -> Decimal:
        """What really filled."""
        return sum((order.filled for order in self.orders.values()), ZERO)

    def of_kind(self, kind: str) -> Iterator[Call]:
        """The calls of one kind."""
        return (call for call in self.calls if call.kind == kind)

    def authorised(self, at_ms: int) -> Decimal:
        """The most that anyone had asked for by then."""
        asked = [c.quantity for c in self.of_kind("replace") if c.quantity is not None and c.at_ms <= at_ms]
        meant = self.meant
        return max([ZERO if meant is None else meant.quantity, *asked])

    def in_force(self, before_n: int) -> Decimal:
        """The most that a request sent at *before_n* may bring the total to.

        A total is out of force once a later change, asked after the earlier one was answered, was carried out.
        """
        changes = [c for c in self.of_kind("replace") if c.quantity is not None and c.n < before_n]
        done = [c for c in changes if c.told == "Accepted" and c.told_n is not None and c.told_n < before_n]
        totals = [c.quantity for c in changes if not any(_answered_before(c, later) for later in done)]
        if self.meant is not None and not done:
            totals.append(self.meant.quantity)
        return max((total for total in totals if total is not None), default=ZERO)

    def build(self) -> None:
        """Fold the ledger's entries into orders and instants."""
        for entry in sorted(self.entries, key=lambda e: e.seq):
            order_id = entry.venue_order_id
            if entry.what is Happened.ACCEPTED and order_id is not None:
                self.orders[order_id] = Order(
                    venue_order_id=order_id,
                    client_order_id=entry.client_order_id,
                    quantity=entry.quantity,
                    accepted_ms=entry.at_ms,
                )
            elif order_id in self.orders and entry.what in _CHANGES:
                self.orders[order_id].take(entry)
            else:
                continue
            exposure = self.filled + sum((order.leaves for order in self.orders.values()), ZERO)
            self.instants.append(Instant(entry=entry, filled=self.filled, exposure=exposure))


_CHANGES = frozenset({Happened.FILLED, Happened.AMENDED, Happened.CANCELED, Happened.EXPIRED})


def _answered_before(earlier: Call, later: Call) -> bool:
    return earlier is not later and earlier.told_n is not None and earlier.told_n < later.n


@attrs.frozen(kw_only=True)
class Evidence:
    """Everything that is known about a run.

    Attributes:
        ledger: the venue's.
        history: what was recorded around the ports; None: only ledger and records are to be judged.
        final: the last record of every intent, by intent key.
        profile: what the run believed about the venue.
        venue_skew_ms: the venue's clock minus true time.
        pruned: venue ids of orders that left the venue's order views when they ended.
        unprovable: client order ids of which the venue once said falsely that they exist.
    """

    ledger: Ledger
    final: Mapping[str, IntentRecord]
    profile: VenueProfile
    history: History | None = None
    venue_skew_ms: int = 0
    pruned: frozenset[str] = frozenset()
    unprovable: frozenset[str] = frozenset()

    def case_files(self) -> tuple[dict[str, CaseFile], list[Entry]]:
        """The case file of every intent, and the acceptances that belong to none."""
        files: defaultdict[str, CaseFile] = defaultdict(lambda: CaseFile(key=""))
        owner: dict[str, str] = {}
        if self.history is not None:
            _file_history(files, self.history, owner)
        for key, record in self.final.items():
            files[key].final = record
            owner.update((attempt.client_order_id, key) for attempt in record.attempts)
        strays: list[Entry] = []
        for entry in self.ledger:
            its_owner = owner.get(entry.client_order_id or "")
            if its_owner is not None:
                files[its_owner].entries.append(entry)
            elif entry.what is Happened.ACCEPTED:
                strays.append(entry)
        for read in [] if self.history is None else self.history.reads:
            if (its_owner := owner.get(read.client_order_id or "")) is not None:
                files[its_owner].reads.append(read)
        for key, file in files.items():
            file.key = key
            file.client_order_ids = {cid for cid, its_key in owner.items() if its_key == key}
            file.build()
            for order_id in self.pruned & file.orders.keys():
                file.orders[order_id].is_pruned = True
        return dict(files), strays


def _file_history(files: Mapping[str, CaseFile], history: History, owner: dict[str, str]) -> None:
    for call in history.calls:
        if call.key:
            files[call.key].calls.append(call)
    for send in history.sends:
        files[send.key].sends.append(send)
        owner[send.request.client_order_id] = send.key
    for write in history.writes:
        for record in write.records():
            files[record.intent.key].versions.append((write, record))
            owner.update((attempt.client_order_id, record.intent.key) for attempt in record.attempts)


def last(items: Iterable[Read]) -> Read | None:
    """The last of *items*, None if there is none."""
    found = None
    for found in items:  # noqa: B007 - the last one is wanted
        pass
    return found
