"""What a waves bot really did: its orders, its positions and their stops, from the venue's hidden ledger.

Of a bot it is only asked what it *meant*: which orders it decided on. What it sent, and what came
of it, says the ledger.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final, TypeAlias

import attrs

import execsafe
from execsafe.bot.verdict import audit_journal, differences_of
from execsafe.model.intent import AttemptState
from execsafe.testing.ledger import Entry, Gap, Ledger

_ZERO: Final = Decimal(0)
_NEVER_THERE: Final = frozenset({AttemptState.NOT_SENT, AttemptState.ABSENT, AttemptState.REJECTED})

Prices: TypeAlias = Mapping[str, Decimal]


@attrs.frozen(kw_only=True)
class Meant:
    """An order that a bot decided on. *purpose* is ``"entry"``, ``"stop"`` or ``"exit"``; *at_ms* is when.

    ``client_order_ids``: those under which it may exist, where the bot gives ids; None: whatever fits belongs to it.
    """

    signal_id: str
    purpose: str
    symbol: str
    side: execsafe.Side
    quantity: Decimal
    at_ms: int
    client_order_ids: frozenset[str] | None = None


@attrs.frozen(kw_only=True)
class Bare:
    """A stretch of time (Unix ms) during which some of a position had no live stop; *quantity* is the most of it."""

    symbol: str
    from_ms: int
    to_ms: int
    quantity: Decimal

    @property
    def lasted_ms(self) -> int:
        """How long."""
        return self.to_ms - self.from_ms


@attrs.frozen(kw_only=True)
class WaveFindings:
    """The facts of one bot's run. Quantities are in base by symbol, ``_usdt`` figures in the quote currency.

    ``copies_max`` is how many orders came to exist where one was meant. ``excess`` is what entries filled beyond what
    was asked for. ``bare`` are all stretches without a stop, ``unprotected`` those beyond the deadline. ``flips`` are
    exits that opened the opposite position. ``strays`` are orders that nobody decided on.
    """

    signals: int
    opened: int
    orders_meant: int
    orders_accepted: int
    copies_max: int
    duplicates: int
    duplicates_by_signal: Mapping[str, int]
    orders_per_meant: Mapping[int, int]
    excess: Mapping[str, Decimal]
    excess_usdt: Decimal
    bare: tuple[Bare, ...]
    unprotected: tuple[Bare, ...]
    flips: int
    differences: Mapping[str, tuple[Decimal, Decimal]]
    difference_usdt: Decimal
    strays: int

    @property
    def longest_ms(self) -> int:
        """The longest stretch without a stop."""
        return max((stretch.lasted_ms for stretch in self.bare), default=0)


def judge_waves(
    ledger: Ledger,
    *,
    signals: int,
    meant: Sequence[Meant],
    book: Mapping[str, Decimal],
    prices: Prices,
    deadline_ms: int,
) -> WaveFindings:
    """Compare what was decided, what happened and what the bot believes.

    Args:
        ledger: the venue's.
        signals: how many were delivered.
        meant: the orders that the bot decided on, in their order.
        book: positions that the bot believes to have, by symbol.
        prices: by symbol, for values.
        deadline_ms: how long a position may be without a stop.
    """
    orders, strays = _orders_of(ledger, meant)
    copies = [_copies(item, found) for item, found in zip(meant, orders, strict=True)]
    surplus = [sum(count - 1 for count in counts) for counts in copies]
    by_signal: Counter[str] = Counter()
    for item, count in zip(meant, surplus, strict=True):
        by_signal[item.signal_id] += count
    excess = _excess(ledger, meant, orders)
    bare = tuple(stretch for symbol in sorted(prices) for stretch in stretches(symbol, ledger.protection_gaps(symbol)))
    differences = differences_of(ledger, book)
    return WaveFindings(
        signals=signals,
        opened=len({m.signal_id for m, found in zip(meant, orders, strict=True) if m.purpose == "entry" and found}),
        orders_meant=sum(_asked(item) for item in meant),
        orders_accepted=len(ledger.accepted()),
        copies_max=max((count for counts in copies for count in counts), default=0),
        duplicates=sum(surplus) + strays,
        duplicates_by_signal=+by_signal,
        orders_per_meant=Counter(count for counts in copies for count in counts),
        excess=excess,
        excess_usdt=sum((quantity * prices[symbol] for symbol, quantity in excess.items()), _ZERO),
        bare=bare,
        unprotected=tuple(stretch for stretch in bare if stretch.lasted_ms > deadline_ms),
        flips=sum(len(ledger.flips(symbol)) for symbol in prices),
        differences=differences,
        difference_usdt=sum((abs(a - b) * prices.get(s, _ZERO) for s, (a, b) in differences.items()), _ZERO),
        strays=strays,
    )


def stretches(symbol: str, gaps: Iterable[Gap]) -> Iterator[Bare]:
    """Gaps that follow each other without a pause, as one."""
    open_: Bare | None = None
    for gap in gaps:
        if open_ is not None and open_.to_ms == gap.from_ms:
            open_ = attrs.evolve(open_, to_ms=gap.to_ms, quantity=max(open_.quantity, gap.quantity))
            continue
        if open_ is not None:
            yield open_
        open_ = Bare(symbol=symbol, from_ms=gap.from_ms, to_ms=gap.to_ms, quantity=gap.quantity)
    if open_ is not None:
        yield open_


def meant_by(records: Iterable[execsafe.IntentRecord]) -> list[Meant]:
    """The orders that should exist, from the journal: those of each intent that were not definitely refused."""
    return [
        Meant(
            signal_id=record.intent.key,
            purpose=record.intent.leg.partition(".")[0],
            symbol=record.intent.symbol,
            side=record.intent.side,
            quantity=record.quantity,
            at_ms=record.created_at_ms,
            client_order_ids=frozenset(a.client_order_id for a in record.attempts if a.state not in _NEVER_THERE),
        )
        for record in records
    ]


def _asked(meant: Meant) -> int:
    """How many orders should exist for it: one; where ids are given, one for each (a replacement has its own)."""
    return 1 if meant.client_order_ids is None else len(meant.client_order_ids)


def _copies(meant: Meant, orders: Sequence[Entry]) -> list[int]:
    """How often each order that was meant came to exist; one that never did is not listed."""
    if meant.client_order_ids is None:
        return [len(orders)] if orders else []
    return list(Counter(entry.client_order_id for entry in orders).values())


def _orders_of(ledger: Ledger, meant: Sequence[Meant]) -> tuple[list[list[Entry]], int]:
    """The accepted orders of each decision, and how many belong to none."""
    by_id = {key: n for n, item in enumerate(meant) for key in item.client_order_ids or ()}
    orders: list[list[Entry]] = [[] for _ in meant]
    strays = 0
    for entry in ledger.accepted():
        owner = by_id.get(entry.client_order_id or "")
        if owner is None:
            fits = (n for n, item in enumerate(meant) if item.client_order_ids is None and _fits(entry, item))
            owner = max(fits, key=lambda n: meant[n].at_ms, default=None)
        if owner is None:
            strays += 1
        else:
            orders[owner].append(entry)
    return orders, strays


def _fits(entry: Entry, meant: Meant) -> bool:
    is_kind = entry.is_stop is (meant.purpose == "stop") and entry.reduce_only is (meant.purpose != "entry")
    is_same = (entry.symbol, entry.side) == (meant.symbol, meant.side)
    return is_kind and is_same and meant.at_ms <= entry.at_ms


def _excess(ledger: Ledger, meant: Sequence[Meant], orders: Sequence[Sequence[Entry]]) -> dict[str, Decimal]:
    filled: defaultdict[str | None, Decimal] = defaultdict(Decimal)
    for fill in ledger.fills():
        filled[fill.venue_order_id] += fill.quantity
    excess: defaultdict[str, Decimal] = defaultdict(Decimal)
    for item, found in zip(meant, orders, strict=True):
        if item.purpose == "entry":
            excess[item.symbol] += max(_ZERO, sum((filled[e.venue_order_id] for e in found), _ZERO) - item.quantity)
    return {symbol: quantity for symbol, quantity in excess.items() if quantity}


def wave_breaches(
    ledger: Ledger,
    records: Iterable[execsafe.IntentRecord],
    findings: WaveFindings,
    alarms: Iterable[execsafe.Event] = (),
) -> tuple[str, ...]:
    """The guarantees that were broken, one sentence each; empty is as promised.

    Args:
        ledger: the venue's.
        records: every intent in the journal.
        findings: of the same run.
        alarms: the events POSITION_UNPROTECTED: a position without a stop must not pass in silence.
    """
    records, alarms = list(records), list(alarms)
    broken = list(audit_journal(ledger, records, findings.differences))
    if findings.excess:
        broken.append(f"G1: signals came to own {findings.excess_usdt.normalize():f} USDT more than they asked for")
    if findings.flips:
        broken.append(f"G10: {findings.flips} exits opened the opposite position")
    for bare in findings.unprotected:
        told = [a for a in alarms if a.symbol == bare.symbol and bare.from_ms <= a.at_ms <= bare.to_ms]
        if not told:
            broken.append(f"G10: {bare.symbol} had no stop for {bare.lasted_ms} ms and nobody was told")
    return tuple(broken)
