"""What a bot really did: read from the venue's hidden ledger, and compared with what it believes.

Both bots are judged by the same functions. Nothing here asks a bot what it sent: an order belongs to the leg
whose symbol, side and limit price it has.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final, TypeAlias

import attrs

import execsafe
from execsafe.bot.pairs import Leg, Signal
from execsafe.testing.ledger import Entry, Happened, Ledger

_ZERO: Final = Decimal(0)
_NEVER_THERE: Final = frozenset({execsafe.IntentState.REJECTED, execsafe.IntentState.FAILED_FINAL})

LegKey: TypeAlias = tuple[str, str]
"""Signal id and leg name."""


@attrs.frozen
class Played:
    """A signal, and when (Unix ms) it was first delivered to the bot."""

    signal: Signal
    started_at_ms: int


@attrs.frozen(kw_only=True)
class LegFacts:
    """What the ledger has of one leg: accepted orders, filled quantity in base, and what was undone of it."""

    orders: int = 0
    filled: Decimal = _ZERO
    undone: Decimal = _ZERO

    @property
    def net(self) -> Decimal:
        """What is left of it."""
        return self.filled - self.undone


@attrs.frozen(kw_only=True)
class Findings:
    """The facts of one bot's run. Quantities are in base by symbol, ``_btc`` figures in the quote currency.

    ``copies_max`` is how many orders came to exist where one was meant. ``excess`` is what legs filled beyond what
    their signal asked for or, for one that closes a trade, beyond what the trade held. ``naked`` names the signals
    after which the two sides of their trade did not match. ``differences`` holds ledger position and book position
    where they are not equal. ``strays`` are orders that belong to no signal.
    """

    signals: int
    legs: Mapping[LegKey, LegFacts]
    orders_meant: int
    orders_accepted: int
    orders_per_signal_max: int
    copies_max: int
    duplicates: int
    duplicates_by_signal: Mapping[str, int]
    excess: Mapping[str, Decimal]
    excess_btc: Decimal
    naked: tuple[str, ...]
    naked_btc: Decimal
    differences: Mapping[str, tuple[Decimal, Decimal]]
    difference_btc: Decimal
    strays: int
    orders_per_meant: Mapping[int, int] = attrs.field(factory=dict)


def judge(
    ledger: Ledger,
    played: Sequence[Played],
    *,
    meant: Mapping[LegKey, int],
    book: Mapping[str, Decimal],
    instruments: Mapping[str, execsafe.Instrument],
    records: Iterable[execsafe.IntentRecord] = (),
) -> Findings:
    """Compare what was asked for, what happened and what the bot believes.

    Args:
        ledger: the venue's.
        played: the signals in the order in which they were delivered.
        meant: how many orders the bot means to exist, per leg; one that it sends again is still one.
        book: positions that the bot believes to have, by symbol.
        instruments: limits by symbol; what is too small to be traded is not called naked.
        records: the bot's journal, if it keeps one: it says which signal a market order belongs to.
    """
    legs, strays = _legs_of(ledger, played, _journalled(records, played))
    prices = {leg.symbol: leg.close for item in played for leg in item.signal.legs}
    excess: defaultdict[str, Decimal] = defaultdict(Decimal)
    excess_btc = _ZERO
    for leg, quantity in _excesses(played, legs):
        excess[leg.symbol] += quantity
        excess_btc += quantity * leg.close
    duplicates: Counter[str] = Counter()
    for (signal_id, name), facts in legs.items():
        duplicates[signal_id] += max(0, facts.orders - meant.get((signal_id, name), 0))
    naked = dict(_imbalances(played, legs, instruments))
    differences = differences_of(ledger, book)
    return Findings(
        signals=len(played),
        legs=legs,
        orders_meant=sum(meant.values()),
        orders_accepted=len(ledger.accepted()),
        orders_per_signal_max=max(_by_signal(legs).values(), default=0),
        copies_max=max((1 + facts.orders - max(1, meant.get(key, 0)) for key, facts in legs.items()), default=0),
        duplicates=sum(duplicates.values()) + strays,
        duplicates_by_signal=+duplicates,
        excess=dict(excess),
        excess_btc=excess_btc,
        naked=tuple(naked),
        naked_btc=sum(naked.values(), _ZERO),
        differences=differences,
        difference_btc=sum((abs(a - b) * prices.get(s, _ZERO) for s, (a, b) in differences.items()), _ZERO),
        strays=strays,
        orders_per_meant=_orders_per_meant(legs, meant),
    )


def _orders_per_meant(legs: Mapping[LegKey, LegFacts], meant: Mapping[LegKey, int]) -> Counter[int]:
    """How often one, two and more orders came to exist where one was meant: what is too much counts with the first."""
    counts: Counter[int] = Counter()
    for key, facts in legs.items():
        wanted = max(1, meant.get(key, 0))
        if facts.orders:
            counts[1 + max(0, facts.orders - wanted)] += 1
            counts[1] += min(facts.orders, wanted) - 1
    return +counts


def _by_signal(legs: Mapping[LegKey, LegFacts]) -> Counter[str]:
    orders: Counter[str] = Counter()
    for (signal_id, _), facts in legs.items():
        orders[signal_id] += facts.orders
    return orders


def _legs_of(
    ledger: Ledger, played: Sequence[Played], journalled: Mapping[str, tuple[LegKey, bool]]
) -> tuple[dict[LegKey, LegFacts], int]:
    """Each leg's facts, and how many orders belong to none."""
    asked: defaultdict[tuple[str, execsafe.Side, Decimal], list[tuple[int, LegKey, bool]]] = defaultdict(list)
    for item in played:
        for leg in item.signal.legs:
            key = item.signal.id, leg.name
            asked[leg.symbol, leg.side, leg.limit_price].append((item.started_at_ms, key, False))
            asked[leg.symbol, leg.side.opposite, leg.reverse_price].append((item.started_at_ms, key, True))
    facts: defaultdict[LegKey, LegFacts] = defaultdict(LegFacts)
    owners: dict[str | None, tuple[LegKey, bool]] = {}
    strays = 0
    for entry in ledger:
        if entry.what is Happened.ACCEPTED:
            owner = _owner(entry, asked) or journalled.get(entry.client_order_id or "")
            if owner is None:
                strays += 1
                continue
            owners[entry.venue_order_id] = owner
            facts[owner[0]] = attrs.evolve(facts[owner[0]], orders=facts[owner[0]].orders + 1)
        elif entry.what is Happened.FILLED and entry.venue_order_id in owners:
            key, is_undo = owners[entry.venue_order_id]
            name = "undone" if is_undo else "filled"
            facts[key] = attrs.evolve(facts[key], **{name: getattr(facts[key], name) + entry.quantity})
    return facts, strays


def _owner(
    order: Entry, asked: Mapping[tuple[str, execsafe.Side, Decimal], Sequence[tuple[int, LegKey, bool]]]
) -> tuple[LegKey, bool] | None:
    """The leg that asked for such an order; where several did, the latest before it."""
    if order.side is None or order.price is None:
        return None
    owner = None
    for started_at_ms, key, is_undo in asked.get((order.symbol, order.side, order.price), ()):
        if started_at_ms <= order.at_ms:
            owner = key, is_undo
    return owner


def _journalled(records: Iterable[execsafe.IntentRecord], played: Sequence[Played]) -> dict[str, tuple[LegKey, bool]]:
    """The leg of each order in the journal that has no limit price, and whether it undoes it."""
    legs = {(item.signal.id, leg.symbol): leg for item in played for leg in item.signal.legs}
    owners: dict[str, tuple[LegKey, bool]] = {}
    for record in records:
        leg = legs.get((record.intent.key, record.intent.symbol))
        if leg is not None and record.intent.limit_price is None:
            owner = (record.intent.key, leg.name), record.intent.side is not leg.side
            owners.update((attempt.client_order_id, owner) for attempt in record.attempts)
    return owners


def _excesses(played: Sequence[Played], legs: Mapping[LegKey, LegFacts]) -> Iterator[tuple[Leg, Decimal]]:
    nothing = LegFacts()
    for signal in (item.signal for item in played):
        for leg in signal.legs:
            facts = legs.get((signal.id, leg.name), nothing)
            limit = leg.quantity
            if signal.closes is not None:
                limit = max(_ZERO, legs.get((signal.closes, leg.name), nothing).net)
            if facts.net > limit:
                yield leg, facts.net - limit


def _imbalances(
    played: Sequence[Played], legs: Mapping[LegKey, LegFacts], instruments: Mapping[str, execsafe.Instrument]
) -> Iterator[tuple[str, Decimal]]:
    """Signals after which the sides of their trade do not match, with the value of what is not hedged."""
    nothing = LegFacts()
    for signal in (item.signal for item in played):
        held = [legs.get((signal.id, leg.name), nothing).net for leg in signal.legs]
        if signal.closes is not None:
            opened = [legs.get((signal.closes, leg.name), nothing).net for leg in signal.legs]
            held = [had - closed for had, closed in zip(opened, held, strict=True)]
        lead, hedge = signal.legs
        unhedged = abs(held[1] - held[0] * hedge.quantity / lead.quantity) * hedge.close
        if unhedged > _too_small(signal, instruments):
            yield signal.id, unhedged


def _too_small(signal: Signal, instruments: Mapping[str, execsafe.Instrument]) -> Decimal:
    """Value in quote currency that nobody could trade away: a lot step of each side, or a minimum order."""
    value = _ZERO
    for leg in signal.legs:
        instrument = instruments[leg.symbol]
        value += (instrument.step_size or _ZERO) * leg.close + (instrument.min_notional or _ZERO)
    return value


def differences_of(ledger: Ledger, book: Mapping[str, Decimal]) -> dict[str, tuple[Decimal, Decimal]]:
    """Ledger position and book position by symbol, where they are not equal."""
    symbols = sorted({entry.symbol for entry in ledger.fills()} | set(book))
    pairs = {symbol: (ledger.position(symbol), book.get(symbol, _ZERO)) for symbol in symbols}
    return {symbol: pair for symbol, pair in pairs.items() if pair[0] != pair[1]}


def meant_of(records: Iterable[execsafe.IntentRecord], played: Sequence[Played]) -> Counter[LegKey]:
    """Orders that should exist per leg, from the journal: one for each intent that was not definitely refused."""
    legs = {(item.signal.id, leg.symbol): (item.signal.id, leg.name) for item in played for leg in item.signal.legs}
    found = ((r.intent.key, r.intent.symbol) for r in records if r.state not in _NEVER_THERE)
    return Counter(legs[key] for key in found if key in legs)


def breaches(
    ledger: Ledger,
    records: Iterable[execsafe.IntentRecord],
    findings: Findings,
    reported: Iterable[str] = (),
) -> tuple[str, ...]:
    """The guarantees that were broken, one sentence each; empty is as promised.

    Args:
        ledger: the venue's.
        records: every intent in the journal.
        findings: of the same run.
        reported: signals of which the bot itself said that a side is not hedged, or not settled yet.
    """
    records = list(records)
    broken = list(audit_journal(ledger, records, findings.differences))
    if findings.excess:
        broken.append(f"G1: signals came to own {findings.excess_btc.normalize():f} BTC more than they asked for")
    silent = set(findings.naked) - set(reported)
    broken.extend(f"G9: {signal_id} ended with an unhedged side and nobody was told" for signal_id in sorted(silent))
    return tuple(broken)


def audit_journal(
    ledger: Ledger,
    records: Sequence[execsafe.IntentRecord],
    differences: Mapping[str, tuple[Decimal, Decimal]],
) -> Iterator[str]:
    """What a journal says against the ledger, whatever the strategy: one sentence for each guarantee that was broken.

    *differences* are those between ledger and book.
    """
    known = {a.client_order_id: record for record in records for a in record.attempts}
    for entry in ledger.accepted():
        if entry.client_order_id not in known:
            yield f"G2: order {entry.venue_order_id} was accepted, but the journal does not have it"
    for record in records:
        yield from _broken_by(record, ledger)
    unsettled = {record.intent.symbol for record in records if not record.state.is_terminal}
    for symbol, (ledger_position, book_position) in differences.items():
        if symbol not in unsettled:
            yield f"G11: {symbol}: the ledger has {ledger_position}, the book {book_position}"


def _broken_by(record: execsafe.IntentRecord, ledger: Ledger) -> Iterator[str]:
    key, ids = record.intent.key, {a.client_order_id for a in record.attempts}
    accepted = [entry for client_order_id in ids for entry in ledger.accepted(client_order_id)]
    excess = ledger.excess(ids, record.quantity)
    if excess:
        yield f"G1: {key} could have filled {excess} more than was meant ({len(accepted)} orders were accepted)"
    if accepted and record.state in _NEVER_THERE:
        yield f"G4: {key} is called {record.state.value}, but the venue accepted it"
    filled = ledger.filled_quantity(*ids)
    if record.state.is_terminal and filled != record.filled_quantity:
        yield f"G11: {key} filled {filled}, the journal says {record.filled_quantity}"
