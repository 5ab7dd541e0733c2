"""What the outside must offer: a clock, a store, a venue, listeners.

Layer 1. Implement :class:`Store` or subclass :class:`ExchangeAdapter` to plug in your own; the contract
suites in ``execsafe.testing`` check an implementation.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Protocol, TypeAlias

import attrs

from execsafe.core.redaction import redact
from execsafe.errors import UnsupportedByVenue
from execsafe.model.event import Event
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.order import OrderReport, OrderRequest, Side
from execsafe.model.outcome import Judged, Operation
from execsafe.model.position import (
    Balance,
    Execution,
    OrderBook,
    Position,
    PositionKey,
    PositionSide,
    Quote,
    StopKind,
    VenuePosition,
)
from execsafe.model.venue import Expiry, LookUp, VenueProfile

Listener: TypeAlias = Callable[[Event], None]
"""A hook that is told of events. It must be quick; if it raises, order flow goes on."""


class Clock(Protocol):
    """Source of time. Waiting is done by anyio; a virtual clock moves with a virtual event loop."""

    def now_ms(self) -> int:
        """Current time in Unix milliseconds. Must not jump within a process; the wall clock alone does."""
        ...


# --- Store ---------------------------------------------------------------------------------------


class Durability(enum.StrEnum):
    """What survives."""

    NONE = "none"
    PROCESS = "process"  # kill -9
    POWER = "power"  # a power cut


@attrs.frozen(kw_only=True)
class Put:
    """Conditional write of one record. ``value`` is a frozen attrs value known to the codec.

    ``version`` is the stored version expected (0: must not exist); the stored one becomes ``version + 1``.
    ``is_open`` records are never purged; ``ended_at_ms`` starts the retention of the others. ``aliases`` are
    further keys under which :meth:`Store.find` returns the record; they are added, never removed before it.
    """

    collection: str
    key: str
    value: object
    version: int
    is_open: bool = True
    ended_at_ms: int | None = None
    aliases: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class LeaseRequest:
    """Wish for an exclusive lease. A holder that asks again renews and keeps its token."""

    name: str
    holder: str
    ttl_ms: int


@attrs.frozen(kw_only=True)
class Lease:
    """A granted lease. ``token`` only ever grows over the life of the store, whatever the name."""

    name: str
    holder: str
    token: int
    expires_at_ms: int


@attrs.frozen(kw_only=True)
class Batch:
    """Writes that become durable together or not at all.

    Checked in this order, before anything is written: ``fence`` (the lease must still be ours: same name,
    same token), ``acquire`` (free, expired or ours), then every put's version.
    """

    now_ms: int
    puts: tuple[Put, ...] = ()
    events: tuple[Event, ...] = ()
    fence: Lease | None = None
    acquire: LeaseRequest | None = None
    release: Lease | None = None


@attrs.frozen(kw_only=True)
class Stored:
    """A record as read."""

    key: str
    value: object
    version: int


@attrs.frozen(kw_only=True)
class StoredEvent:
    """An event as read from the outbox; ``seq`` grows without ever being reused."""

    seq: int
    event: Event


class Store(Protocol):
    """Durable memory. Every method may raise :class:`~execsafe.errors.StoreError`.

    A call that is cancelled may have been carried out: callers shield their writes.
    """

    @property
    def durability(self) -> Durability:
        """What an acknowledged commit survives."""
        ...

    @property
    def never_waits(self) -> bool:
        """Whether ``commit`` never yields to the event loop, so that it needs neither a shield nor a time-out."""
        ...

    async def open(self) -> None:
        """Make ready; idempotent."""
        ...

    async def aclose(self) -> None:
        """Release resources; idempotent. Leases are left to expire."""
        ...

    async def commit(self, batch: Batch) -> Lease | None:
        """Apply *batch* atomically; return the lease it acquired.

        Raises:
            StaleFencingToken: the fence's lease is no longer held with that token.
            LeaseHeld: somebody else has the lease; ``context["expires_at_ms"]`` says until when.
            VersionConflict: a record's version differs; ``context["version"]`` has the stored one.
        """
        ...

    async def find(self, collection: str, key: str) -> Stored | None:
        """The record with that key or alias."""
        ...

    async def scan_open(self, collection: str) -> Sequence[Stored]:
        """All open records, in key order."""
        ...

    async def read_events(self, after: int, limit: int = 1_000) -> Sequence[StoredEvent]:
        """Events with ``seq > after``, in order."""
        ...

    async def set_cursor(self, name: str, seq: int) -> None:
        """Remember how far a consumer has read; it never goes back. Named consumers hold back the purge."""
        ...

    async def get_cursor(self, name: str) -> int:
        """How far the consumer has read; 0 before its first."""
        ...

    async def delete_cursor(self, name: str) -> None:
        """Forget a consumer that does not come back, so that it no longer holds back the purge. Idempotent."""
        ...

    async def purge(self, ended_before_ms: int, limit: int = 10_000) -> int:
        """Delete at most *limit* ended records (with aliases) and as many events older than that.

        Expired leases go too; the fencing counter stays. Returns how many records were deleted.
        """
        ...


# --- Venue ---------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class OrderRef:
    """How to find one of our orders. ``venue_order_id`` only where the venue has told it."""

    symbol: str
    client_order_id: str | None
    venue_order_id: str | None = None
    side: Side | None = None
    type: str = "limit"
    is_trigger: bool = False
    sent_at_ms: int = 0


class ExchangeAdapter(abc.ABC):
    """A venue as execsafe needs it. Subclass it, or :class:`~execsafe.venues.ccxt_adapter.CcxtAdapter`.

    Methods raise whatever the venue's client raises: :meth:`judge` says what an error means, and an error it
    does not know means UNKNOWN.
    """

    profile: VenueProfile

    @property
    def venue_name(self) -> str:
        """Name under which this venue's intents are recorded, so that no other one ever looks for their orders."""
        return self.profile.name

    @abc.abstractmethod
    async def prepare(self, symbol: str) -> Instrument:
        """Make everything ready that create needs, so that a later network error belongs to the order itself.

        That is the markets, the account's mode, and whatever else the client would ask for on the way.

        Raises:
            InvalidInput: a symbol that the venue does not list.
        """

    def prepared(self, symbol: str) -> Instrument | None:
        """What :meth:`prepare` would return, if it is known without waiting; None otherwise."""
        return None

    @abc.abstractmethod
    def check(self, intent: Intent) -> None:
        """Refuse what this venue would misunderstand. Raises UnsupportedByVenue with the reason."""

    def expiry(self, intent: Intent) -> Expiry:
        """What bounds the acceptance of this intent's request: the profile's, unless it is not enforced for it."""
        return self.profile.expiry

    def not_before_ms(self) -> int | None:
        """When this venue may be asked again after it turned a request away for coming too often; None: now.

        By the same clock as the gateway's.
        """
        return None

    @abc.abstractmethod
    def client_order_id(self, intent: Intent, generation: int) -> str:
        """Pure function of account, intent key, leg and *generation* in the venue's alphabet and length."""

    @abc.abstractmethod
    async def create_order(self, request: OrderRequest) -> OrderReport:
        """Send one order, once. No retries of any kind below this call."""

    @abc.abstractmethod
    async def cancel_order(self, order: OrderRef) -> None:
        """Ask for cancellation. What became of the order is read afterwards."""

    @abc.abstractmethod
    async def look_up(self, lookup: LookUp, order: OrderRef) -> OrderReport | None:
        """Read one declared view. None: the read succeeded and the order is not in it."""

    @abc.abstractmethod
    def judge(self, error: BaseException, operation: Operation) -> Judged:
        """What *error* means, with redacted facts. Never raises."""

    def redact(self, text: str) -> str:
        """*text* without anything that looks like a credential. Override it where credentials are known."""
        return redact(text)

    # --- positions, balances, prices: for what surrounds an order. A venue without one of them refuses with the reason.

    async def fetch_positions(self) -> Sequence[VenuePosition]:
        """All positions that are not flat. Empty means flat; what cannot be read raises."""
        raise self._without("positions")

    async def fetch_balances(self) -> Mapping[str, Balance]:
        """Balances by currency; a currency that is not in it has none."""
        raise self._without("balances")

    async def fetch_open_orders(self, symbol: str) -> Sequence[OrderReport]:
        """Every open order of *symbol*, whoever placed it, stop orders in their own namespaces included."""
        raise self._without("a list of open orders")

    async def fetch_executions(self, symbol: str, *, since_ms: int) -> Sequence[Execution]:
        """Every fill of *symbol* at or after *since_ms*, oldest first, complete or raising."""
        raise self._without("a list of fills")

    async def fetch_order_book(self, symbol: str, *, depth: int = 20) -> OrderBook:
        """The best *depth* levels of both sides."""
        raise self._without("order books")

    async def fetch_quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        """Best prices by symbol; a symbol without an answer is left out."""
        raise self._without("quotes")

    async def set_leverage(self, symbol: str, leverage: Decimal) -> None:
        """Set the leverage. An answer "already so" raises, and :meth:`judge` calls it NO_CHANGE."""
        raise self._without("leverage")

    async def set_margin_mode(self, symbol: str, mode: str) -> None:
        """Set the margin mode, ``"isolated"`` or ``"cross"``; as :meth:`set_leverage`."""
        raise self._without("margin modes")

    def stop_kind(self, symbol: str) -> StopKind:
        """How this venue keeps the stop of a position in *symbol*."""
        return StopKind.ORDER

    async def set_attached_stop(self, symbol: str, side: PositionSide, stop_price: Decimal | None) -> None:
        """Attach a stop-loss to the whole position, or remove it (None). Verify it by reading the position back."""
        raise self._without("stops attached to positions")

    def _without(self, what: str) -> UnsupportedByVenue:
        return UnsupportedByVenue(f"{self.venue_name}: this adapter offers no {what}")


class PreTradeCheck(Protocol):
    """A question that is asked before every entry goes out (never before an exit).

    Asked at submission and again right before each send; it may wait for readings, within the gateway's time-out.
    """

    async def check(self, intent: Intent, instrument: Instrument) -> None:
        """Raise :class:`~execsafe.errors.TradingDenied` with ``reason`` to refuse; return to allow."""
        ...


# --- Positions and what protects them --------------------------------------------------------------


class PositionSource(Protocol):
    """Where an exit reads what is held; :class:`~execsafe.positions.PositionBook` is one."""

    async def catch_up(self) -> object:
        """Take in every fill that has been recorded; afterwards :meth:`position` knows it."""
        ...

    def position(self, account: str, symbol: str) -> Position | None:
        """The open position, None if there is none."""
        ...

    def open_positions(self, account: str | None = None) -> tuple[Position, ...]:
        """All open positions, optionally of one account."""
        ...


@attrs.frozen(kw_only=True)
class Released:
    """None of our stops or take-profits of the position is left at the venue; what they filled is recorded.

    ``canceled`` is how many had to go just now, None where that is not known. Unless it is 0, readings of the balance
    may lag behind.
    """

    canceled: int | None = None


@attrs.frozen(kw_only=True)
class NotReleased:
    """At least one of them may still be there, and lock the balance or fill; ``reason`` says which or why."""

    reason: str


class Protections(Protocol):
    """Who keeps the stops and take-profits of positions."""

    async def release(self, key: PositionKey) -> Released | NotReleased:
        """Cancel all that protects this position; return once it is provably gone, or cannot be proven to be."""
        ...

    async def resume(self, key: PositionKey) -> object:
        """Protect again what is left of a position that was released: its exit rests, or is over."""
        ...
