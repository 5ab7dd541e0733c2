"""The hidden ledger: what really happened at the simulated venue.

Append-only. Tests and checkers read it; no face of the venue serves it to the system under test.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from decimal import Decimal
from itertools import groupby
from typing import NamedTuple

import attrs

from execsafe.model.instrument import is_contract
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
    TRIGGERED = "triggered"  # a stop or a take-profit was set off; price: the price that did it
    STOP_ATTACHED = "stop_attached"  # to a whole position; side: of the order that would close it
    STOP_REMOVED = "stop_removed"  # from a position; reason: replaced, removed, flat, triggered, lost
    LEVERAGE_SET = "leverage_set"  # quantity: the leverage
    MARGIN_MODE_SET = "margin_mode_set"  # reason: the mode


@attrs.frozen(kw_only=True)
class Entry:
    """One fact. ``at_ms`` is true time; ``seq`` orders facts of the same instant.

    ``is_stop``: an order whose trigger guards against a loss, in contrast to a take-profit.
    """

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
    trigger_price: Decimal | None = None
    is_stop: bool = False

    def as_dict(self) -> dict[str, object]:
        """Plain JSON values, without what is empty."""
        values = ((field.name, getattr(self, field.name)) for field in attrs.fields(Entry))
        return {
            name: plain(value) if isinstance(value, Decimal) else getattr(value, "value", value)
            for name, value in values
            if value is not None and value is not False
        }


class Gap(NamedTuple):
    """A stretch of time, in Unix ms, during which *quantity* of a position had no live stop."""

    from_ms: int
    to_ms: int
    quantity: Decimal


class Ledger:
    """All entries of a venue, with the questions that tests ask. ``on_append`` is told of each new one.

    *now_ms*: the instant up to which everything is known; None: that of the latest entry.
    """

    def __init__(self, now_ms: Callable[[], int] | None = None) -> None:
        self._now_ms = now_ms
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

    # --- positions and their protection -----------------------------------------------------------

    def exposure_over_time(self, symbol: str) -> list[tuple[int, Decimal]]:
        """What was held after each instant at which it changed: Unix ms and signed quantity (short is negative).

        On spot, fees that were taken in the base currency are not held.
        """
        held, over_time = ZERO, []
        for at_ms, entries in groupby((e for e in self.entries if e.symbol == symbol), key=_at_ms):
            change = sum((_held(entry) for entry in entries if entry.what is Happened.FILLED), ZERO)
            if change:
                held += change
                over_time.append((at_ms, held))
        return over_time

    def protection_gaps(self, symbol: str, *, dust: Decimal = ZERO, until_ms: int | None = None) -> list[Gap]:
        """When some of a position had no live stop: each stretch of time with one uncovered quantity.

        A stop order counts with what may still fill, from its acceptance to its trigger or end, if it closes the
        position and, except on spot, is reduce-only; a take-profit does not count. A stop attached to the position
        covers all of it. What begins and ends in the same millisecond is no gap, unless it is there at the end.

        Args:
            symbol: which.
            dust: a position of at most that much needs no stop.
            until_ms: the end of a gap that is still there; None: the present.
        """
        entries = [e for e in self.entries if e.symbol == symbol and (until_ms is None or e.at_ms <= until_ms)]
        last_ms = max(self._now_ms() if self._now_ms is not None else 0, entries[-1].at_ms if entries else 0)
        coverage = _Coverage(symbol, dust)
        for at_ms, happened in groupby(entries, key=_at_ms):
            coverage.take(at_ms, happened)
        return coverage.gaps(last_ms if until_ms is None else until_ms)

    def flips(self, symbol: str) -> list[Entry]:
        """Fills with which an order that had reduced a position, or was just closing it, opened the opposite one."""
        held, side_before, reducers, flips = ZERO, 0, set[str | None](), []
        for entry in self.fills():
            if entry.symbol != symbol:
                continue
            change = _held(entry)
            if held * change < 0:
                reducers.add(entry.venue_order_id)
            held += change
            if held * side_before < 0 and entry.venue_order_id in reducers:
                flips.append(entry)
            side_before = (held > 0) - (held < 0) or side_before
        return flips

    # --- orders -----------------------------------------------------------------------------------

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


class _Coverage:
    """A position of one symbol and the stops that guard it, followed through the ledger."""

    def __init__(self, symbol: str, dust: Decimal) -> None:
        self._is_spot = not is_contract(symbol)
        self._dust = dust
        self._held = ZERO
        self._is_attached = False
        self._stops: dict[str | None, tuple[Side | None, Decimal]] = {}
        self._since_ms, self._bare = 0, ZERO
        self._gaps: list[Gap] = []

    def take(self, at_ms: int, happened: Iterable[Entry]) -> None:
        """Everything that happened in one millisecond: what counts is how it ended."""
        for entry in happened:
            self._follow(entry)
        bare = self._uncovered()
        if bare == self._bare:
            return
        if self._bare:
            self._gaps.append(Gap(self._since_ms, at_ms, self._bare))
        self._since_ms, self._bare = at_ms, bare

    def gaps(self, until_ms: int) -> list[Gap]:
        """All gaps, the one that is still there among them."""
        return [*self._gaps, Gap(self._since_ms, until_ms, self._bare)] if self._bare else self._gaps

    def _follow(self, entry: Entry) -> None:
        order = entry.venue_order_id
        guards = entry.what is Happened.ACCEPTED and entry.is_stop and (entry.reduce_only or self._is_spot)
        if guards or (entry.what is Happened.AMENDED and order in self._stops):
            self._stops[order] = entry.side, entry.quantity
        elif entry.what is Happened.FILLED:
            self._held += _held(entry)
            if order in self._stops:
                self._stops[order] = entry.side, self._stops[order][1] - entry.quantity
        elif entry.what in {Happened.TRIGGERED, Happened.CANCELED, Happened.EXPIRED}:
            self._stops.pop(order, None)
        elif entry.what in {Happened.STOP_ATTACHED, Happened.STOP_REMOVED}:
            self._is_attached = entry.what is Happened.STOP_ATTACHED

    def _uncovered(self) -> Decimal:
        size = max(ZERO, self._held) if self._is_spot else abs(self._held)
        if size <= self._dust or self._is_attached:
            return ZERO
        closing = Side.SELL if self._held > 0 else Side.BUY
        covered = sum((quantity for side, quantity in self._stops.values() if side is closing), ZERO)
        return max(ZERO, size - covered)


def _held(entry: Entry) -> Decimal:
    """By how much a fill changes what is held: a fee taken in the base currency is not."""
    if entry.side is Side.SELL:
        return -entry.quantity
    is_in_base = entry.fee_currency == entry.symbol.partition("/")[0]
    return entry.quantity - entry.fee if is_in_base else entry.quantity


def _seq(entry: Entry) -> int:
    return entry.seq


def _at_ms(entry: Entry) -> int:
    return entry.at_ms
