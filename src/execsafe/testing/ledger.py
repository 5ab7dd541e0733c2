"""The hidden ledger: what really happened at the simulated venue.

Append-only. Tests and checkers read it; no face of the venue serves it to the system under test.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from decimal import Decimal

import attrs

from execsafe.model.order import ZERO, Side
from execsafe.model.values import plain


class Happened(enum.StrEnum):
    """Kinds of entries."""

    RECEIVED = "received"  # a create reached the venue, whatever came of it
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FILLED = "filled"  # quantity and price of one execution
    CANCELED = "canceled"  # quantity: what was left
    EXPIRED = "expired"  # quantity: what was left
    AMENDED = "amended"  # quantity: the new total
    CANCEL_RECEIVED = "cancel_received"
    CANCEL_REJECTED = "cancel_rejected"


@attrs.frozen(kw_only=True)
class Entry:
    """One fact. ``at_ms`` is true time; ``seq`` orders facts of the same instant."""

    seq: int
    at_ms: int
    what: Happened
    symbol: str
    client_order_id: str | None = None
    venue_order_id: str | None = None
    side: Side | None = None
    quantity: Decimal = ZERO
    price: Decimal | None = None
    trade_id: str | None = None
    fee: Decimal = ZERO
    fee_currency: str | None = None
    reason: str | None = None
    reduce_only: bool = False

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values, without what is empty."""
        values = ((field.name, getattr(self, field.name)) for field in attrs.fields(Entry))
        return {
            name: plain(value) if isinstance(value, Decimal) else getattr(value, "value", value)
            for name, value in values
            if value is not None and value is not False
        }


class Ledger:
    """All entries of a venue, with the questions that tests ask. ``on_append`` is told of each new one."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.on_append: Callable[[Entry], None] | None = None
        self._by_client: defaultdict[str | None, list[Entry]] = defaultdict(list)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def append(self, entry: Entry) -> None:
        """Add a fact; only the venue does."""
        self.entries.append(entry)
        self._by_client[entry.client_order_id].append(entry)
        if self.on_append is not None:
            self.on_append(entry)

    def of(self, client_order_id: str | None = None, *kinds: Happened) -> list[Entry]:
        """Entries of one client order id (None: of all), of the given kinds (none given: all)."""
        entries = self.entries if client_order_id is None else self._by_client.get(client_order_id, [])
        return [entry for entry in entries if not kinds or entry.what in kinds]

    def received(self, client_order_id: str | None = None) -> list[Entry]:
        """Creates that reached the venue."""
        return self.of(client_order_id, Happened.RECEIVED)

    def accepted(self, client_order_id: str | None = None) -> list[Entry]:
        """Orders that came to exist."""
        return self.of(client_order_id, Happened.ACCEPTED)

    def accepted_for_prefix(self, prefix: str) -> list[Entry]:
        """Orders whose client order id begins with *prefix*."""
        return [entry for entry in self.accepted() if (entry.client_order_id or "").startswith(prefix)]

    def rejected(self, client_order_id: str | None = None) -> list[Entry]:
        """Creates that were refused; ``reason`` says why."""
        return self.of(client_order_id, Happened.REJECTED)

    def fills(self, client_order_id: str | None = None) -> list[Entry]:
        """Executions."""
        return self.of(client_order_id, Happened.FILLED)

    def filled_quantity(self, *client_order_ids: str) -> Decimal:
        """What filled over all the given ids."""
        fills = (entry for key in dict.fromkeys(client_order_ids) for entry in self.fills(key))
        return sum((entry.quantity for entry in fills), ZERO)

    def position(self, symbol: str) -> Decimal:
        """Bought minus sold, fees not counted."""
        fills = [entry for entry in self.fills() if entry.symbol == symbol]
        return sum((e.quantity if e.side is Side.BUY else -e.quantity for e in fills), ZERO)

    def worst_case(self, client_order_ids: Collection[str]) -> Decimal:
        """The largest quantity that, at any instant, had filled or could still fill over the given ids."""
        worst = filled = ZERO
        leaves: dict[str | None, Decimal] = {}
        totals: dict[str | None, Decimal] = {}
        for entry in sorted((e for i in set(client_order_ids) for e in self._by_client.get(i, [])), key=_seq):
            order = entry.venue_order_id
            if entry.what is Happened.ACCEPTED:
                totals[order] = leaves[order] = entry.quantity
            elif entry.what is Happened.FILLED:
                filled += entry.quantity
                leaves[order] -= entry.quantity
            elif entry.what is Happened.AMENDED:
                leaves[order] += entry.quantity - totals[order]
                totals[order] = entry.quantity
            elif entry.what in {Happened.CANCELED, Happened.EXPIRED}:
                leaves[order] = ZERO
            worst = max(worst, filled + sum(leaves.values(), ZERO))
        return worst

    def excess(self, client_order_ids: Collection[str], quantity: Decimal) -> Decimal:
        """How far the worst case went beyond *quantity*; 0 is as promised."""
        return max(ZERO, self.worst_case(client_order_ids) - quantity)

    def open_quantity(self, client_order_id: str) -> Decimal:
        """What could still fill now under that id."""
        entries = self._by_client.get(client_order_id, [])
        filled = self.filled_quantity(client_order_id)
        ended = sum((e.quantity for e in entries if e.what in {Happened.CANCELED, Happened.EXPIRED}), ZERO)
        total: dict[str | None, Decimal] = {}
        for entry in entries:
            if entry.what in {Happened.ACCEPTED, Happened.AMENDED}:
                total[entry.venue_order_id] = entry.quantity
        return sum(total.values(), ZERO) - filled - ended

    def dump(self) -> str:
        """All entries as JSON lines."""
        return "".join(json.dumps(entry.as_dict(), separators=(",", ":")) + "\n" for entry in self.entries)

    def digest(self) -> str:
        """SHA-256 of :meth:`dump`: equal for two runs in which the same happened."""
        return hashlib.sha256(self.dump().encode()).hexdigest()


def _seq(entry: Entry) -> int:
    return entry.seq
