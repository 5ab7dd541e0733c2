"""A tiny scripted venue with a ledger of its own, for tests of the shells in virtual time.

The venue is the truth that no code under test can reach but through an adapter. Each adapter is one process's
connection, with a script of what happens to its next requests. Nothing here runs in the background: what is on the
wire lands when the venue is next asked, at its own instant, whether or not anybody still waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import anyio
import attrs
from anyio.lowlevel import checkpoint

from execsafe.core.ids import client_order_id
from execsafe.errors import StoreUnavailable
from execsafe.model.instrument import Instrument
from execsafe.model.intent import ErrorFacts, Intent
from execsafe.model.order import ZERO, OrderReport, OrderRequest, OrderStatus
from execsafe.model.outcome import Judged, Meaning, Operation
from execsafe.model.venue import Dedup, Expiry, LookUp, VenueProfile, View
from execsafe.ports import Batch, Clock, ExchangeAdapter, Lease, OrderRef
from execsafe.stores.memory import MemoryStore

PROFILE = VenueProfile(
    name="fake",
    dedup=Dedup.OPEN,
    expiry=Expiry.ABSOLUTE,
    expiry_window_s=5.0,
    clock_skew_s=0.5,
    read_lag_s=2.0,
    lookups=(LookUp(view=View.CLIENT_ID, method="fetch_order"),),
    definite_ack=True,
)
LISTS = attrs.evolve(
    PROFILE,
    lookups=(
        LookUp(view=View.OPEN_ORDERS, method="fetch_open_orders", scan=True),
        LookUp(view=View.CLOSED_ORDERS, method="fetch_closed_orders", scan=True),
    ),
)
"""A venue that can only be searched list by list."""


class Refused(Exception):
    """A definite reject."""


class Duplicate(Exception):
    """The client order id is taken."""


class NotFound(Exception):
    """The venue does not know the order."""


@attrs.frozen
class Fate:
    """What becomes of one request. Times in seconds; ``None``: never.

    ``sign_s``: how long the client queues it before it is signed and leaves. ``arrive_s`` and ``reply_s`` count from
    then. ``error`` is raised instead of the reply. ``rejected``: the venue refuses it on arrival.
    """

    sign_s: float = 0
    arrive_s: float | None = 0
    reply_s: float | None = 0
    error: Exception | None = None
    rejected: bool = False
    filled: Decimal = ZERO


OK = Fate()
LOST = Fate(error=TimeoutError("reply lost"))
DROPPED = Fate(arrive_s=None, error=TimeoutError("request lost"))
HANGS = Fate(reply_s=None)
BLACK_HOLE = Fate(arrive_s=None, reply_s=None)
REJECTED = Fate(rejected=True)


def late(arrive_s: float) -> Fate:
    """The client gives up at once, the request arrives later."""
    return Fate(arrive_s=arrive_s, error=TimeoutError("late"))


@attrs.define
class FakeOrder:
    request: OrderRequest
    venue_order_id: str
    accepted_at_ms: int
    status: OrderStatus = OrderStatus.OPEN
    filled: Decimal = ZERO

    @property
    def may_own(self) -> Decimal:
        return self.request.quantity if self.status is OrderStatus.OPEN else self.filled

    def fill(self, quantity: Any) -> None:
        self.filled += Decimal(quantity)
        if self.filled >= self.request.quantity:
            self.status = OrderStatus.CLOSED

    def end(self, status: OrderStatus = OrderStatus.CANCELED) -> None:
        if self.status is OrderStatus.OPEN:
            self.status = status

    def report(self) -> OrderReport:
        return OrderReport(
            symbol=self.request.symbol,
            status=self.status,
            client_order_id=self.request.client_order_id,
            venue_order_id=self.venue_order_id,
            quantity=self.request.quantity,
            filled_quantity=self.filled,
        )


@attrs.define
class _Wire:
    at_ms: int
    dead_after_ms: int | None
    request: OrderRequest
    fate: Fate
    order: FakeOrder | None = None
    error: Exception | None = None
    landed: bool = False


class FakeVenue:
    """One exchange; ``orders`` is its ledger.

    Its clock is *skew_ms* behind ours, so it accepts that much too long; *lag_ms* is how old what it shows is.
    """

    def __init__(self, clock: Clock, profile: VenueProfile = PROFILE, *, worst: bool = False) -> None:
        self.clock = clock
        self.profile = profile
        self.skew_ms = round(profile.clock_skew_s * 1000) if worst else 0
        self.lag_ms = round(profile.read_lag_s * 1000) if worst else 0
        self.orders: list[FakeOrder] = []
        self.expired: list[OrderRequest] = []
        self._wire: list[_Wire] = []

    def send(self, request: OrderRequest, fate: Fate, *, signed_at_ms: int) -> _Wire:
        wire = _Wire(signed_at_ms, self._dead_after(request, signed_at_ms), request, fate)
        if fate.arrive_s is not None:
            wire.at_ms += round(fate.arrive_s * 1000)
            self._wire.append(wire)
        return wire

    def _dead_after(self, request: OrderRequest, signed_at_ms: int) -> int | None:
        if self.profile.expiry is Expiry.NONE:
            return None
        if self.profile.expiry is Expiry.ABSOLUTE:
            return request.deadline_ms
        return signed_at_ms + round(self.profile.expiry_window_s * 1000)

    def settle(self) -> None:
        """Let everything land that was due by now, in the order of arrival."""
        due = sorted((w for w in self._wire if w.at_ms <= self.clock.now_ms()), key=lambda w: w.at_ms)
        for wire in due:
            self._wire.remove(wire)
            wire.landed = True
            self._land(wire)

    def _land(self, wire: _Wire) -> None:
        if wire.dead_after_ms is not None and wire.at_ms - self.skew_ms > wire.dead_after_ms:
            self.expired.append(wire.request)
            wire.error = Refused("expired")
        elif wire.fate.rejected:
            wire.error = Refused("insufficient funds")
        elif self._is_taken(wire.request.client_order_id):
            wire.error = Duplicate("duplicate client order id")
        else:
            wire.order = FakeOrder(wire.request, str(len(self.orders) + 1), wire.at_ms)
            self.orders.append(wire.order)
            if wire.fate.filled:
                wire.order.fill(wire.fate.filled)

    def _is_taken(self, cid: str) -> bool:
        mine = [o for o in self.orders if o.request.client_order_id == cid]
        if self.profile.dedup is Dedup.OPEN:
            return any(o.status is OrderStatus.OPEN for o in mine)
        return bool(mine) and self.profile.dedup is not Dedup.NONE

    def held(self, cid: str | None) -> list[FakeOrder]:
        """What the matching engine has."""
        self.settle()
        return [o for o in self.orders if o.request.client_order_id == cid]

    def visible(self, cid: str | None) -> list[FakeOrder]:
        """What a read shows: new orders only after the lag."""
        shown_ms = self.clock.now_ms() - self.lag_ms
        return [o for o in self.held(cid) if o.accepted_at_ms <= shown_ms]

    @property
    def may_own(self) -> Decimal:
        """What the account owns, or may still come to own, by the ledger."""
        self.settle()
        return sum((o.may_own for o in self.orders), ZERO)


class FakeAdapter(ExchangeAdapter):
    """One process's connection. ``creates``, ``reads`` and ``cancels`` are scripts; when empty everything works."""

    def __init__(self, venue: FakeVenue, *, clock: Clock | None = None, profile: VenueProfile | None = None) -> None:
        self.venue = venue
        self.clock = clock if clock is not None else venue.clock
        self.profile = profile if profile is not None else venue.profile
        self.instrument = Instrument(symbol="BTC/USDT", step_size="0.01", tick_size="0.1")
        self.creates: deque[Fate] = deque()
        self.cancels: deque[Callable[[FakeOrder], None] | Exception | str] = deque()
        self.reads: deque[Exception | str | float] = deque()  # a number: seconds that it takes
        self.reads_fail = False
        self.on_look: Callable[[], None] = lambda: None
        self.sent: list[OrderRequest] = []
        self.sent_at_ms: list[int] = []
        self.looks: list[int] = []
        self.canceled: list[OrderRef] = []

    async def prepare(self, symbol: str) -> Instrument:
        await checkpoint()
        return attrs.evolve(self.instrument, symbol=symbol)

    def check(self, intent: Intent) -> None:
        pass

    def client_order_id(self, intent: Intent, generation: int) -> str:
        rule = self.profile.client_order_id
        return client_order_id(account=intent.account, key=intent.key, leg=intent.leg, generation=generation, rule=rule)

    async def create_order(self, request: OrderRequest) -> OrderReport:
        fate = self.creates.popleft() if self.creates else OK
        self.sent.append(request)
        self.sent_at_ms.append(self.venue.clock.now_ms())
        await anyio.sleep(fate.sign_s)
        wire = self.venue.send(request, fate, signed_at_ms=self.clock.now_ms())
        if fate.reply_s is None:
            await anyio.sleep_forever()
        await anyio.sleep(fate.reply_s or 0)
        self.venue.settle()
        if fate.error is not None:
            raise fate.error
        if wire.error is not None:
            raise wire.error
        assert wire.order is not None
        return wire.order.report()

    async def cancel_order(self, order: OrderRef) -> None:
        self.canceled.append(order)
        await checkpoint()
        shown = self.venue.held(order.client_order_id)
        what = self.cancels.popleft() if self.cancels else "works"
        if isinstance(what, Exception):
            raise what
        if not shown or (what == "works" and shown[-1].status is not OrderStatus.OPEN):
            raise NotFound("unknown order")
        if callable(what):
            what(shown[-1])
        elif what == "works":
            shown[-1].end()

    async def look_up(self, lookup: LookUp, order: OrderRef) -> OrderReport | None:
        self.looks.append(self.venue.clock.now_ms())
        self.on_look()
        await checkpoint()
        what = self.reads.popleft() if self.reads else "works"
        if what == "hangs":
            await anyio.sleep_forever()
        if isinstance(what, (int, float)):
            await anyio.sleep(what)
        if isinstance(what, Exception):
            raise what
        if self.reads_fail:
            raise ConnectionError("cannot read")
        shown = self.venue.visible(order.client_order_id)
        if lookup.view is View.OPEN_ORDERS:
            shown = [o for o in shown if o.status is OrderStatus.OPEN]
        elif lookup.view is View.CLOSED_ORDERS:
            shown = [o for o in shown if o.status is not OrderStatus.OPEN]
        return shown[-1].report() if shown else None

    def judge(self, error: BaseException, operation: Operation) -> Judged:
        meanings = {Refused: Meaning.REJECTED, Duplicate: Meaning.EXISTS, NotFound: Meaning.NOT_FOUND}
        meaning = meanings.get(type(error), Meaning.UNKNOWN)
        if meaning is Meaning.NOT_FOUND and operation is Operation.CREATE:
            meaning = Meaning.UNKNOWN
        return Judged(meaning=meaning, facts=ErrorFacts(kind=type(error).__name__, message=str(error)))


class ScriptedStore(MemoryStore):
    """A store whose commits meet *hook* first: it may wait, or raise. ``commits`` is what was written.

    With ``fails_after`` a commit is carried out and then reported as failed: commit unknown.
    """

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[Batch] = []
        self.hook: Callable[[Batch], Any] | None = None
        self.is_down = False
        self.is_read_only = False
        self.fails_after = False

    @property
    def never_waits(self) -> bool:
        return False

    async def commit(self, batch: Batch) -> Lease | None:
        if self.is_down or self.is_read_only:
            raise StoreUnavailable("the store is down")
        if self.hook is not None:
            waits = self.hook(batch)
            if waits is not None:
                await waits
        lease = await super().commit(batch)
        self.commits.append(batch)
        if self.fails_after:
            raise StoreUnavailable("the connection broke after COMMIT")
        return lease

    async def find(self, collection: str, key: str) -> Any:
        if self.is_down:
            raise StoreUnavailable("the store is down")
        await checkpoint()
        return await super().find(collection, key)
