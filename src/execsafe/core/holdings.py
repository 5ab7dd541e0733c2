"""How much is held of each symbol, source by source: the part of a reconciliation that is about positions."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import attrs

from execsafe.core.findings import (
    OF_POSITIONS,
    Backing,
    Finding,
    Findings,
    Kind,
    Observation,
    ReconcilePolicy,
    Source,
    Verified,
    Vote,
)
from execsafe.model.instrument import is_contract
from execsafe.model.intent import IntentRecord, IntentState
from execsafe.model.order import ZERO, Side
from execsafe.model.position import Execution, Position, Snapshot, Unavailable, VenuePosition
from execsafe.model.values import EXACT, left_of, total


@attrs.frozen(kw_only=True)
class Comparison:
    """How book and venue compare: symbol by symbol, with the instant at which the venue's reading began."""

    verified: tuple[Verified, ...] = ()
    differences: tuple[tuple[Finding, int], ...] = ()
    compared: frozenset[str] = frozenset()


def tolerance(seen: Observation, symbol: str) -> Decimal:
    """Differences below this are rounding: a lot step, or nothing where none is known."""
    instrument = seen.instruments.get(symbol)
    return ZERO if instrument is None or instrument.step_size is None else instrument.step_size


def _is_equal(seen: Observation, symbol: str, one: Decimal, other: Decimal) -> bool:
    gap = abs(EXACT.subtract(one, other))
    return gap == 0 or gap < tolerance(seen, symbol)


def is_spot(symbol: str) -> bool:
    """Whether it is owned outright; a derivative's symbol names what it is settled in."""
    return not is_contract(symbol)


def symbols_of(record: Findings, seen: Observation) -> set[str]:
    """All whose quantities must be compared; spot only where the book holds some."""
    found = {position.symbol for position in seen.book}
    found |= {symbol for symbol in seen.orders if not is_spot(symbol)}
    found |= {one.symbol for one in record.findings if one.kind in OF_POSITIONS}
    if isinstance(seen.positions, Snapshot):
        found |= {shown.symbol for shown in seen.positions.value}
    return found


def compare_positions(record: Findings, seen: Observation) -> Comparison:
    """Compare whatever can be compared now: all readings there, nothing on its way."""
    book = {position.symbol: position for position in seen.book}
    verified: list[Verified] = []
    found: list[tuple[Finding, int]] = []
    for symbol in sorted(symbols_of(record, seen)):
        shown, taken_ms = _venue_quantity(seen, symbol, book)
        if shown is None or not is_quiet(seen, symbol, taken_ms):
            continue
        position = book.get(symbol)
        held = ZERO if position is None else position.signed_quantity
        verified.append(_vote(seen, symbol, held, shown))
        sides = sides_of(seen, symbol)
        if len(sides) > 1 or not _is_equal(seen, symbol, held, shown):
            found.append((_difference(symbol, position, sides, shown, taken_ms), taken_ms))
    compared = frozenset(one.symbol for one in verified)
    return Comparison(verified=tuple(verified), differences=tuple(found), compared=compared)


def sides_of(seen: Observation, symbol: str) -> list[VenuePosition]:
    """The venue's positions in *symbol*; none also where they could not be read."""
    if not isinstance(seen.positions, Snapshot):
        return []
    return [shown for shown in seen.positions.value if shown.symbol == symbol and shown.quantity]


def _venue_quantity(seen: Observation, symbol: str, book: dict[str, Position]) -> tuple[Decimal | None, int]:
    """What the venue holds, signed, and when that reading began; None: it is not known."""
    if is_spot(symbol):
        return _spot_quantity(seen, symbol, book)
    if isinstance(seen.positions, Unavailable):
        return None, 0
    shown = [EXACT.multiply(p.quantity, Decimal(p.side.sign)) for p in sides_of(seen, symbol)]
    return total(shown), seen.positions.taken_at_ms


def _spot_quantity(seen: Observation, symbol: str, book: dict[str, Position]) -> tuple[Decimal | None, int]:
    """On spot the balance is shared with everything else in that currency: only a shortage says something."""
    position = book.get(symbol)
    if not isinstance(seen.balances, Snapshot):
        return None, 0
    if position is None or position.signed_quantity < 0:
        return ZERO if position is None else position.signed_quantity, seen.balances.taken_at_ms
    base = _base(seen, symbol)
    held = [p for p in seen.book if is_spot(p.symbol) and _base(seen, p.symbol) == base and p.signed_quantity > 0]
    balance = seen.balances.value.get(base)
    # What is short is short of the first symbols, in their order, so that it is counted once.
    before = total(p.quantity for p in held if p.symbol > symbol)
    owned = left_of(ZERO if balance is None else balance.total, before)
    return min(position.quantity, owned), seen.balances.taken_at_ms


def _base(seen: Observation, symbol: str) -> str:
    instrument = seen.instruments.get(symbol)
    return symbol.partition("/")[0] if instrument is None or not instrument.base else instrument.base


def is_quiet(seen: Observation, symbol: str, taken_ms: int) -> bool:
    """Whether a reading that began then must show everything of ours, and nothing is on its way."""
    if any(intent.intent.symbol == symbol and not is_settled(intent) for intent in seen.intents):
        return False
    active_ms = seen.active_ms.get(symbol)
    return active_ms is None or taken_ms >= active_ms + seen.lag_ms


def is_settled(intent: IntentRecord) -> bool:
    """Whether it rests at the venue, or has ended."""
    return intent.state is IntentState.LIVE or intent.state.is_terminal


def _vote(seen: Observation, symbol: str, held: Decimal, shown: Decimal) -> Verified:
    backing = seen.backing.get(symbol, Backing.UNREAD)
    by_fills = {Backing.BACKS_BOOK: held, Backing.BACKS_VENUE: shown}.get(backing)
    source = Source.BALANCES if is_spot(symbol) else Source.POSITIONS
    votes = (
        Vote(source=Source.BOOK, quantity=held),
        Vote(source=source, quantity=shown),
        Vote(source=Source.EXECUTIONS, quantity=by_fills),
    )
    agreed = held if _is_equal(seen, symbol, held, shown) else by_fills
    return Verified(symbol=symbol, votes=votes, quantity=agreed)


def _difference(
    symbol: str, position: Position | None, sides: list[VenuePosition], shown: Decimal, at_ms: int
) -> Finding:
    if len(sides) > 1:
        kind = Kind.TWO_SIDED
    elif position is None:
        kind = Kind.UNKNOWN_POSITION
    else:
        kind = Kind.QUANTITY if shown else Kind.PHANTOM_POSITION
    marks = [p.mark_price for p in sides] if position is not None else []
    prices = [*marks, None if position is None else position.entry_price]
    prices += [price for p in sides for price in (p.entry_price, p.mark_price)]
    return Finding(
        kind=kind,
        symbol=symbol,
        subject=symbol if position is None else position.position_id,
        book_quantity=ZERO if position is None else position.signed_quantity,
        venue_quantity=shown,
        price=next((price for price in prices if price), None),
        first_seen_ms=at_ms,
    )


def was_seen_before(record: Findings, found: Finding, lag_ms: int) -> bool:
    """Whether a reading that began the read lag and clock skew earlier, or before that, showed the same difference."""
    return any(one.what == found.what and found.first_seen_ms >= one.first_seen_ms + lag_ms for one in record.findings)


# --- Fills -----------------------------------------------------------------------------------------


def next_foreign_fill(
    held: Decimal, shown: Decimal, step: Decimal, fills: Sequence[Execution], policy: ReconcilePolicy
) -> tuple[int | None, Backing]:
    """The first of *fills*, which are not ours, that explains a part of a difference; and what all of them say.

    Taken are those that bring the book nearer to what the venue shows: what reduces the position, by default.
    """
    gap = EXACT.subtract(shown, held)
    backing = Backing.BACKS_BOOK
    if not gap or abs(gap) < step:
        return None, backing
    side = Side.BUY if gap > 0 else Side.SELL
    opens = abs(shown) > abs(held) or shown * held < 0
    for number, fill in enumerate(fills):
        if fill.side is side and _is_within(fill.quantity, abs(gap), step):
            backing = Backing.BACKS_VENUE
            if not opens or policy.adopt_foreign:
                return number, backing
    return None, backing


def _is_within(quantity: Decimal, gap: Decimal, step: Decimal) -> bool:
    beyond = left_of(quantity, gap)
    return beyond == 0 or beyond < step
