"""From what happened to what a report shows: pure functions of events and of a venue's ledger."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final, TypeAlias

import attrs

import execsafe
from execsafe.bot.report_page import Funnel, GhostStory, LevelLine, PositionStory
from execsafe.bot.targets import Targets
from execsafe.core.funnel import Funnel as Counts
from execsafe.core.funnel import Stage
from execsafe.testing.ledger import Entry, Happened, Ledger

_ZERO: Final = Decimal(0)
_IDENTITY: Final = re.compile(r"(\d+)\.(\d+):(.*)", re.DOTALL)
_KIND = execsafe.EventType
_SETTLED: Final[Mapping[execsafe.EventType, str]] = {
    _KIND.ORDER_ADOPTED: "found at the venue, adopted",
    _KIND.ATTEMPT_ABSENT: "proven absent",
    _KIND.ORDER_REJECTED: "refused",
    _KIND.INTENT_UNRESOLVED: "unresolved: escalated, counted as exposure",
}
_STOP_ENDS: Final = frozenset({Happened.CANCELED, Happened.EXPIRED, Happened.TRIGGERED})
_STOP_TOLD: Final = frozenset({_KIND.STOP_PLACED, _KIND.STOP_MOVED})

Tape: TypeAlias = Sequence[tuple[int, Decimal]]
"""Prices and when they were set, Unix ms."""


# --- Signals -------------------------------------------------------------------------------------------------


def funnel_of(counts: Counts) -> Funnel:
    """The funnel as it is drawn."""
    drops: Counter[str] = Counter()
    for (_, reason), count in counts.dropped.items():
        drops[reason.value.replace("_", " ")] += count
    return Funnel(stages=tuple((stage.value, counts.at(stage)) for stage in Stage), drops=dict(drops))


def funnel_of_events(events: Iterable[execsafe.Event]) -> Funnel | None:
    """The same, as far as durable events tell it; None if no signal is among them."""
    told = [event for event in events if event.type.value.startswith("signal_")]
    kinds = Counter(event.type for event in told)
    drops = Counter(e.note.replace("_", " ") for e in told if e.type in {_KIND.SIGNAL_DROPPED, _KIND.SIGNAL_HANDLED})
    executed = drops.pop("executed", 0)
    if not told:
        return None
    stages = (("accepted", kinds[_KIND.SIGNAL_ACCEPTED]), ("handled", kinds[_KIND.SIGNAL_HANDLED]))
    return Funnel(stages=(*stages, ("executed", executed)), drops=dict(drops))


# --- Orders --------------------------------------------------------------------------------------------------


def ghosts_of(events: Iterable[execsafe.Event]) -> tuple[GhostStory, ...]:
    """Orders in doubt, in the order in which they came to be so, and how each was settled."""
    ghosts: list[GhostStory] = []
    open_: dict[tuple[str, int | None], int] = {}
    for event in events:
        key = event.subject, event.attempt
        if event.type is _KIND.ORDER_IN_DOUBT:
            open_[key] = len(ghosts)
            ghosts.append(_ghost(event))
            continue
        number = _of_doubt(event, open_)
        if number is not None:
            ghosts[number] = attrs.evolve(ghosts[number], settled_at_ms=event.at_ms, verdict=_SETTLED[event.type])
            if event.type is not _KIND.INTENT_UNRESOLVED:  # late evidence may still settle that
                open_.pop(key, None)
    return tuple(ghosts)


def _ghost(event: execsafe.Event) -> GhostStory:
    return GhostStory(
        key=order_name(event.subject),
        doubted_at_ms=event.at_ms,
        settled_at_ms=None,
        cause=event.error.kind if event.error is not None else "no answer",
        verdict="not settled",
    )


def _of_doubt(event: execsafe.Event, open_: Mapping[tuple[str, int | None], int]) -> int | None:
    if event.type not in _SETTLED:
        return None
    if event.type is _KIND.INTENT_UNRESOLVED and event.attempt is None:
        return next((number for (subject, _), number in open_.items() if subject == event.subject), None)
    return open_.get((event.subject, event.attempt))


def order_name(subject: str) -> str:
    """An intent's identity for people: its key and leg, and the account where it is not the default one."""
    match = _IDENTITY.match(subject)
    if match is None:
        return subject
    of_account, of_key, rest = int(match[1]), int(match[2]), match[3]
    account, key, leg = (
        rest[:of_account],
        rest[of_account + 1 : of_account + 1 + of_key],
        rest[of_account + of_key + 2 :],
    )
    named = f"{key} #{leg}" if leg else key
    return named if account == "default" else f"{account}: {named}"


# --- Exposure ------------------------------------------------------------------------------------------------


def exposure_of(ledger: Ledger, symbols: Iterable[str]) -> dict[str, tuple[tuple[int, Decimal], ...]]:
    """What was held over time, by symbol; flat until the first fill, and to the end of what is known."""
    last_ms = max((entry.at_ms for entry in ledger), default=0)
    held = {}
    for symbol in symbols:
        curve = ledger.exposure_over_time(symbol)
        if curve:
            held[symbol] = ((curve[0][0], _ZERO), *curve, (last_ms, curve[-1][1]))
    return held


# --- Positions -----------------------------------------------------------------------------------------------


def positions_in_ledger(ledger: Ledger, symbol: str, tape: Tape) -> tuple[PositionStory, ...]:
    """Every position of *symbol*, from its first fill to its last, with the price and the stop that was live."""
    orders = {e.venue_order_id: e for e in ledger.accepted() if e.symbol == symbol}
    stops = list(_stops(ledger, symbol))
    gaps = [(gap.from_ms, gap.to_ms) for gap in ledger.protection_gaps(symbol)]
    last_ms = max([entry.at_ms for entry in ledger] + [at for at, _ in tape], default=0)
    found = []
    for number, fills in enumerate(_spells(ledger, symbol), 1):
        start_ms, is_closed = fills[0].at_ms, _sum(fills) == 0
        end_ms = fills[-1].at_ms if is_closed else last_ms
        closing = orders.get(fills[-1].venue_order_id)
        found.append(
            PositionStory(
                name=f"{symbol.partition('/')[0]} {number}",
                symbol=symbol,
                side="long" if fills[0].side is execsafe.Side.BUY else "short",
                opened_at_ms=start_ms,
                closed_at_ms=end_ms if is_closed else None,
                entry_price=fills[0].price,
                prices=_within(tape, start_ms, end_ms),
                stop=_stop_curve(stops, start_ms, end_ms),
                unprotected=tuple(_clipped(gaps, start_ms, end_ms)),
                outcome=_outcome(is_closed, closing),
            )
        )
    return tuple(found)


def named(
    positions: Iterable[PositionStory], events: Iterable[execsafe.Event], targets: Iterable[Targets]
) -> tuple[PositionStory, ...]:
    """The same positions with the levels that the bot had for them, where it knew of them."""
    told = list(events)
    opened = [event for event in told if event.type is _KIND.POSITION_OPENED]
    levels = {item.position_id: levels_of(item) for item in targets}
    taken: set[str] = set()
    result = []
    for position in positions:
        fits = [e for e in opened if e.symbol == position.symbol and e.subject not in taken
                and e.at_ms >= position.opened_at_ms
                and (position.closed_at_ms is None or e.at_ms <= position.closed_at_ms + _LATE_MS)]  # fmt: skip
        if not fits:
            result.append(position)
            continue
        taken.add(fits[0].subject)
        result.append(
            attrs.evolve(position, levels=levels.get(fits[0].subject, ()), outcome=_exit_note(position, told))
        )
    return tuple(result)


_LATE_MS: Final = 3_000
"""How much later than the ledger a bot may learn of a position."""


def positions_in_events(events: Iterable[execsafe.Event], targets: Iterable[Targets] = ()) -> tuple[PositionStory, ...]:
    """Positions as far as the bot's own events tell them: without prices, and with the stops that it verified."""
    told = list(events)
    levels = {item.position_id: levels_of(item) for item in targets}
    found: dict[str, PositionStory] = {}
    for event in told:
        if event.type is _KIND.POSITION_OPENED:
            found[event.subject] = _opened(event, levels.get(event.subject, ()))
        known = found.get(event.subject)
        if known is None:
            continue
        if event.type in _STOP_TOLD and event.price is not None:
            found[event.subject] = attrs.evolve(known, stop=(*known.stop, (event.at_ms, event.price)))
        elif event.type is _KIND.POSITION_CLOSED:
            stop = (*known.stop, (event.at_ms, known.stop[-1][1])) if known.stop else ()
            realized = event.details.thaw().get("realized")
            note = f"closed, realized {realized}" if realized is not None else "closed"
            found[event.subject] = attrs.evolve(known, closed_at_ms=event.at_ms, stop=stop, outcome=note)
    return tuple(found.values())


def levels_of(targets: Targets) -> tuple[LevelLine, ...]:
    """A position's levels: its targets, nearest first, and the stop it began with."""
    if not targets.levels:
        return ()
    *takes, stop = targets.levels
    lines = [LevelLine(name=f"TP{number}", price=price) for number, price in enumerate(takes, 1)]
    return (*lines, LevelLine(name="SL", price=stop))


def _opened(event: execsafe.Event, levels: tuple[LevelLine, ...]) -> PositionStory:
    return PositionStory(
        name=f"{event.symbol.partition('/')[0]} {event.subject[-8:]}",
        symbol=event.symbol,
        side=str(event.details.thaw().get("side", "")),
        opened_at_ms=event.at_ms,
        closed_at_ms=None,
        entry_price=event.price,
        prices=(),
        levels=levels,
    )


def _exit_note(position: PositionStory, events: Sequence[execsafe.Event]) -> str:
    """How it ended: by the bot's exit, if there was one, else as the ledger has it."""
    end_ms = position.closed_at_ms
    if end_ms is None or "stop" in position.outcome:
        return position.outcome
    exits = [
        event
        for event in events
        if event.type is _KIND.EXIT_REGISTERED
        and event.symbol == position.symbol
        and position.opened_at_ms <= event.at_ms <= end_ms
    ]
    reason = exits[-1].details.thaw().get("reason", exits[-1].note) if exits else ""
    return f"exit: {str(reason).replace('_', ' ')}" if reason else position.outcome


def _spells(ledger: Ledger, symbol: str) -> Iterator[list[Entry]]:
    """The fills of each position; one that turns a position around begins the next."""
    fills: list[Entry] = []
    held = _ZERO
    for fill in (entry for entry in ledger.fills() if entry.symbol == symbol):
        before, held = held, held + (fill.quantity if fill.side is execsafe.Side.BUY else -fill.quantity)
        if before * held < 0:  # turned around: the fill is the end of one and the begin of the next
            yield [*fills, attrs.evolve(fill, quantity=abs(before))]
            fills = [attrs.evolve(fill, quantity=abs(held))]
            continue
        fills.append(fill)
        if not held:
            yield fills
            fills = []
    if fills:
        yield fills


def _sum(fills: Iterable[Entry]) -> Decimal:
    return sum((f.quantity if f.side is execsafe.Side.BUY else -f.quantity for f in fills), _ZERO)


def _outcome(is_closed: bool, closing: Entry | None) -> str:
    if not is_closed:
        return "still held at the end"
    return "closed by its stop" if closing is not None and closing.is_stop else "closed"


def _stops(ledger: Ledger, symbol: str) -> Iterator[tuple[int, int | None, Decimal]]:
    """Each live stop of *symbol*: from when to when, and its trigger price."""
    began: dict[str | None, Entry] = {}
    for entry in (e for e in ledger if e.symbol == symbol):
        if entry.what is Happened.ACCEPTED and entry.is_stop and entry.trigger_price is not None:
            began[entry.venue_order_id] = entry
        elif entry.what in _STOP_ENDS and entry.venue_order_id in began:
            start = began.pop(entry.venue_order_id)
            yield start.at_ms, entry.at_ms, start.trigger_price or _ZERO
    for start in began.values():
        yield start.at_ms, None, start.trigger_price or _ZERO


def _stop_curve(
    stops: Iterable[tuple[int, int | None, Decimal]], start_ms: int, end_ms: int
) -> tuple[tuple[int, Decimal], ...]:
    live = sorted((at, to, price) for at, to, price in _ended(stops, end_ms) if at <= end_ms and to >= start_ms)
    points = [(max(at, start_ms), price) for at, _, price in live]
    return (*points, (min(live[-1][1], end_ms), live[-1][2])) if live else ()


def _ended(stops: Iterable[tuple[int, int | None, Decimal]], end_ms: int) -> Iterator[tuple[int, int, Decimal]]:
    for at, to, price in stops:
        yield at, end_ms if to is None else to, price


def _within(tape: Tape, start_ms: int, end_ms: int) -> tuple[tuple[int, Decimal], ...]:
    """The prices from the last one before the begin to the first one after the end."""
    before = [point for point in tape if point[0] < start_ms][-1:]
    after = [point for point in tape if point[0] > end_ms][:1]
    inside = [point for point in tape if start_ms <= point[0] <= end_ms]
    first = [(start_ms, before[0][1])] if before else []
    return (*first, *inside, *((end_ms, price) for _, price in after))


def _clipped(gaps: Iterable[tuple[int, int]], start_ms: int, end_ms: int) -> Iterator[tuple[int, int]]:
    for from_ms, to_ms in gaps:
        if from_ms < end_ms and to_ms > start_ms:
            yield max(from_ms, start_ms), min(to_ms, end_ms)
