"""``PriceBoard``: prices of what is held first; invalidated by position events, not by hope."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

import anyio
import attrs
from anyio.abc import TaskStatus

from execsafe.buses.surviving import survived
from execsafe.buses.telling import tell
from execsafe.clock import SystemClock
from execsafe.core.positions import PositionChange
from execsafe.core.prices import (
    Freshness,
    PriceEntry,
    PricePolicy,
    due,
    failed,
    freshness,
    invalidated,
    may_try,
    next_due_ms,
    refreshed,
)
from execsafe.model.event import Event, EventType
from execsafe.model.intent import ErrorFacts
from execsafe.model.position import Position, Quote, Snapshot, Unavailable
from execsafe.ports import Clock, Listener

_log = logging.getLogger("execsafe.prices")
_TRIES_MAX: Final = 3  # of one reading: an invalidation during each refresh must not keep a reader for ever
_IDLE_S: Final = 1.0
_ALL: Final = "*"


class QuoteReader(Protocol):
    """Where prices come from; :class:`~execsafe.views.VenueReader` is one."""

    async def quotes(self, symbols: Sequence[str]) -> Snapshot[Mapping[str, Quote]] | Unavailable:
        """Best prices by symbol; a symbol without an answer is left out."""
        ...


class HeldPositions(Protocol):
    """What is held, and who says when that changes; :class:`~execsafe.positions.PositionBook` is one."""

    def open_positions(self, account: str | None = None) -> Sequence[Position]:
        """All open positions, optionally of one account."""
        ...

    def subscribe(self, subscriber: Callable[[PositionChange], None], /) -> Callable[[], None]:
        """Have *subscriber* told of every change; call the result to end that."""
        ...


@attrs.frozen(kw_only=True)
class Held:
    """Symbols that are held. ``is_stale``: the provider failed, and these are the last ones known."""

    symbols: frozenset[str]
    is_stale: bool = False


@attrs.frozen(kw_only=True)
class Price:
    """A quote and what it is worth.

    Attributes:
        quote: best prices.
        taken_at_ms: when its reading began, Unix ms.
        age_ms: time since then.
        is_stale: older than the policy allows, or invalidated, and it could not be refreshed (``error`` says why).
            Fit for display; not for a decision to buy.
    """

    quote: Quote
    taken_at_ms: int
    age_ms: int
    is_stale: bool
    error: ErrorFacts | None = None


@attrs.frozen(kw_only=True)
class NoPrice:
    """Nothing was ever read for this symbol; ``error`` says why, where it was tried."""

    symbol: str
    error: ErrorFacts | None = None


PriceReading: TypeAlias = Price | NoPrice
"""What the board says of one symbol."""


class PriceBoard:
    """Prices by symbol, refreshed in time; what is held comes first.

    Symbols of open positions are *hot*: they are refreshed more often, by requests of their own that no other symbol
    delays. A change of the position invalidates the symbol's price and the list of held symbols at once; a refresh
    that began before is discarded when it arrives. At most one request per symbol is under way. When the venue fails,
    the last good price stays, marked stale.

    Args:
        reader: reads quotes from the venue.
        positions: says what is held; None: nothing is hot.
        account: whose positions; None: all.
        symbols: followed in the background besides the held ones, while :meth:`run` runs.
        policy: how old prices may be.
        listeners: told of ``prices_…`` events. One that raises is logged and ignored.
        clock: source of Unix milliseconds.
    """

    def __init__(
        self,
        reader: QuoteReader,
        *,
        positions: HeldPositions | None = None,
        account: str | None = None,
        symbols: Iterable[str] = (),
        policy: PricePolicy | None = None,
        listeners: Sequence[Listener] = (),
        clock: Clock | None = None,
    ) -> None:
        self.policy: PricePolicy = policy if policy is not None else PricePolicy()
        self._reader = reader
        self._positions = positions
        self._account = account
        self._symbols = frozenset(symbols)
        self._listeners = tuple(listeners)
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._entries: dict[str, PriceEntry] = {}  # least recently used first
        self._in_flight: dict[str, anyio.Event] = {}
        self._told_stale: set[str] = set()
        self._held = Held(symbols=frozenset())
        self._held_until_ms = 0
        self._woken = anyio.Event()
        self._unsubscribe: Callable[[], None] = positions.subscribe(self._on_change) if positions else _nothing

    def close(self) -> None:
        """Stop listening to the positions; idempotent."""
        self._unsubscribe()
        self._unsubscribe = _nothing

    # --- Reading -------------------------------------------------------------------------------------

    async def price(self, symbol: str) -> PriceReading:
        """The price of one symbol, refreshed first if it is too old."""
        return (await self.prices((symbol,)))[symbol]

    async def prices(self, symbols: Sequence[str]) -> dict[str, PriceReading]:
        """The prices of several symbols, refreshed by one request where they are too old."""
        for _ in range(_TRIES_MAX):
            needed = tuple(symbol for symbol in dict.fromkeys(symbols) if self._needs_refresh(symbol))
            if not needed:
                break
            await self._refresh(needed)
        return {symbol: self._reading(symbol) for symbol in symbols}

    def peek(self, symbol: str) -> PriceReading:
        """What is known now, without asking anybody."""
        return self._reading(symbol)

    def held(self) -> Held:
        """Symbols that are held. A provider that fails does not empty the list: the last one stays, marked stale."""
        now_ms = self._clock.now_ms()
        if self._positions is None or now_ms < self._held_until_ms:
            return self._held
        try:
            symbols = frozenset(p.symbol for p in self._positions.open_positions(self._account))
            self._held = Held(symbols=symbols)
        except Exception as error:  # noqa: BLE001 - whatever a provider raises
            n = len(self._held.symbols)
            if not self._held.is_stale:
                _log.warning("held symbols could not be read (%s); the last %d stay", type(error).__name__, n)
            self._held = attrs.evolve(self._held, is_stale=True)
        self._held_until_ms = now_ms + self.policy.held_ttl_ms
        return self._held

    def __len__(self) -> int:
        """How many symbols are remembered."""
        return len(self._entries)

    # --- Invalidating --------------------------------------------------------------------------------

    def invalidate(self, symbol: str | None = None, *, reason: str = "") -> None:
        """Make what is known of *symbol* (None: of every symbol) too old, also what is under way just now."""
        known = [symbol] if symbol is not None else list(self._entries)
        for name in known:
            self._store(invalidated(self._entry(name)))
            self._in_flight.pop(name, None)  # whoever reads from here on does not wait for it
        self._held_until_ms = 0
        self._wake()
        details = {"symbol_count": len(known)}
        self._tell(EventType.PRICES_INVALIDATED, symbol or "", note=reason, details=details)

    def _on_change(self, change: PositionChange) -> None:
        if self._account in {None, change.position.account}:
            self.invalidate(change.position.symbol, reason=f"position {change.kind.value}")

    # --- Refreshing ----------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep held and followed symbols fresh until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_fresh, True)
            tasks.start_soon(self._keep_fresh, False)
            task_status.started()

    async def _keep_fresh(self, is_hot: bool) -> None:
        step = functools.partial(self._freshen, is_hot)
        while True:
            if not await survived(step, "refreshing prices", log=_log):
                await anyio.sleep(_IDLE_S)

    async def _freshen(self, is_hot: bool) -> None:
        """Refresh what is due, and wait until something else may be."""
        woken = self._woken
        hot = self.held().symbols
        followed = hot if is_hot else self._symbols - hot
        symbols = due(self._entries, followed, self._clock.now_ms(), self.policy, is_hot=is_hot)
        if symbols:
            await self._refresh(symbols)
        first_ms = next_due_ms(self._entries, followed, self.policy, is_hot=is_hot)
        wait_s = _IDLE_S if first_ms is None else (first_ms - self._clock.now_ms()) / 1_000
        with anyio.move_on_after(min(max(wait_s, 0.001), _IDLE_S)):
            await woken.wait()

    async def _refresh(self, symbols: Sequence[str]) -> None:
        """One request for what nobody asks for yet; wait for the rest."""
        others = {self._in_flight[symbol] for symbol in symbols if symbol in self._in_flight}
        mine = tuple(symbol for symbol in symbols if symbol not in self._in_flight)
        if mine:
            await self._ask(mine)
        for event in others:
            await event.wait()

    async def _ask(self, symbols: Sequence[str]) -> None:
        done = anyio.Event()
        self._in_flight.update(dict.fromkeys(symbols, done))
        generations = {symbol: self._entry(symbol).generation for symbol in symbols}
        try:
            self._take_in(await self._read(symbols), generations)
        finally:
            # Also when cancelled: those who wait look again, and one of them asks.
            for symbol in symbols:
                if self._in_flight.get(symbol) is done:
                    del self._in_flight[symbol]
            done.set()

    async def _read(self, symbols: Sequence[str]) -> Snapshot[Mapping[str, Quote]] | Unavailable:
        try:
            return await self._reader.quotes(symbols)
        except Exception as error:  # noqa: BLE001 - a reader of the user's own: nothing was read
            return Unavailable(error=ErrorFacts(kind=type(error).__name__), at_ms=self._clock.now_ms())

    def _take_in(self, reading: Snapshot[Mapping[str, Quote]] | Unavailable, generations: Mapping[str, int]) -> None:
        now_ms, changed = self._clock.now_ms(), 0
        for symbol, generation in generations.items():
            before = self._entry(symbol)
            after, error = before, _NO_QUOTE
            match reading:
                case Unavailable():
                    error = reading.error
                case Snapshot() if symbol in reading.value:
                    quote, error = reading.value[symbol], _OLDER_QUOTE
                    after = refreshed(before, quote, taken_at_ms=reading.taken_at_ms, generation=generation)
            if after is before:
                after = failed(before, error, at_ms=now_ms, generation=generation)
            else:
                changed += 1
                self._told_stale.discard(symbol)
            self._store(after)
            self._tell_if_stale(after, now_ms)
        if changed:
            held = self.held().symbols
            details = {"symbol_count": changed, "hot_count": len(held & generations.keys())}
            self._tell(EventType.PRICES_REFRESHED, "", details=details)

    # --- Inside --------------------------------------------------------------------------------------

    def _entry(self, symbol: str) -> PriceEntry:
        return self._entries.get(symbol) or PriceEntry(symbol=symbol)

    def _store(self, entry: PriceEntry) -> None:
        self._entries.pop(entry.symbol, None)
        self._entries[entry.symbol] = entry
        if len(self._entries) > self.policy.symbols_max:
            kept = self.held().symbols | self._symbols | {entry.symbol}
            oldest = next((symbol for symbol in self._entries if symbol not in kept), None)
            if oldest is not None:
                del self._entries[oldest]
                self._told_stale.discard(oldest)

    def _freshness(self, entry: PriceEntry) -> Freshness:
        is_hot = entry.symbol in self.held().symbols
        return freshness(entry, self._clock.now_ms(), self.policy, is_hot=is_hot)

    def _needs_refresh(self, symbol: str) -> bool:
        entry = self._entry(symbol)
        state = self._freshness(entry)
        if state is Freshness.AGEING and not entry.is_wanted:
            self._entries[symbol] = attrs.evolve(entry, is_wanted=True)
            self._wake()
        if state in {Freshness.FRESH, Freshness.AGEING}:
            return False
        return may_try(entry, self._clock.now_ms(), self.policy)

    def _reading(self, symbol: str) -> PriceReading:
        entry = self._entry(symbol)
        if entry.quote is None:
            return NoPrice(symbol=symbol, error=entry.error)
        return Price(
            quote=entry.quote,
            taken_at_ms=entry.taken_at_ms,
            age_ms=max(0, self._clock.now_ms() - entry.taken_at_ms),
            is_stale=self._freshness(entry) is Freshness.EXPIRED,
            error=entry.error,
        )

    def _tell_if_stale(self, entry: PriceEntry, now_ms: int) -> None:
        """Once per time that a symbol goes stale."""
        if entry.error is None or entry.symbol in self._told_stale:
            return
        if self._freshness(entry) in {Freshness.EXPIRED, Freshness.MISSING}:
            self._told_stale.add(entry.symbol)
            age_ms = None if entry.quote is None else now_ms - entry.taken_at_ms
            self._tell(EventType.PRICES_STALE, entry.symbol, note=entry.error.kind, details={"age_ms": age_ms})

    def _wake(self) -> None:
        self._woken.set()
        self._woken = anyio.Event()

    def _tell(self, kind: EventType, symbol: str, *, note: str = "", details: Mapping[str, object]) -> None:
        event = Event(
            type=kind, at_ms=self._clock.now_ms(), subject=symbol or _ALL, symbol=symbol, note=note, details=details
        )
        tell(self._listeners, event)


def _nothing() -> None:
    """Nothing to unsubscribe from."""


_NO_QUOTE: Final = ErrorFacts(kind="NoQuote", message="the venue's answer has no quote for this symbol")
_OLDER_QUOTE: Final = ErrorFacts(kind="OlderQuote", message="the reading is older than what is known")
