"""What a run was seen to do: store writes, requests, reads and calls, each with its place in one order.

Recorded from outside by wrappers around the ports; the code under test neither sees nor needs any of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import attrs

from execsafe.model.intent import Intent, IntentRecord
from execsafe.model.order import OrderRequest
from execsafe.model.values import plain
from execsafe.model.venue import View
from execsafe.ports import Batch, Clock, Durability, Lease, Store, Stored, StoredEvent
from execsafe.testing._orders import NewOrder

TAG: Final = "simKey"
"""Name of the extra parameter by which a request is traced to its intent, whatever id it carries."""


@attrs.define(eq=False, kw_only=True)
class Write:
    """A batch that the store applied, for which call, and when its writer was told so (None: never)."""

    n: int
    at_ms: int
    process: str
    batch: Batch
    granted: Lease | None
    acknowledged_n: int | None = None
    call_n: int | None = None

    def records(self) -> list[IntentRecord]:
        """The intent records in it."""
        return _records(self.batch)


@attrs.define(eq=False, kw_only=True)
class Arrival:
    """A create request at the venue's door, and what came of it. ``at_ms`` is true time."""

    at_ms: int
    venue_order_id: str | None = None  # None: refused
    reason: str | None = None


@attrs.define(eq=False, kw_only=True)
class Send:
    """One create request handed to the client. Times are true Unix milliseconds."""

    n: int
    at_ms: int
    process: str
    key: str
    request: OrderRequest
    wire: NewOrder | None = None
    arrivals: list[Arrival] = attrs.Factory(list)
    ended_n: int | None = None

    @property
    def accepted(self) -> list[Arrival]:
        """Where it became an order."""
        return [arrival for arrival in self.arrivals if arrival.venue_order_id is not None]


@attrs.define(eq=False, kw_only=True)
class Read:
    """One read of one view. ``found`` None: it failed, or nobody heard its answer."""

    n: int
    began_ms: int
    process: str
    client_order_id: str | None
    view: View
    found: bool | None = None
    ended_n: int | None = None
    ended_ms: int | None = None
    call_n: int | None = None


@attrs.define(eq=False, kw_only=True)
class Call:
    """One call by a caller and what it was told: an outcome's class name, or an error's, or nothing."""

    n: int
    at_ms: int
    process: str
    kind: str
    key: str
    intent: Intent | None = None
    quantity: Decimal | None = None
    first_commit_ms: int | None = None
    paused_ms: int = 0
    told: str | None = None
    told_n: int | None = None
    told_ms: int | None = None
    record: IntentRecord | None = None
    error: BaseException | None = None


class History:
    """Everything that was seen, in one order.

    Args:
        clock: true time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._n = 0
        self._digest = hashlib.sha256()
        self.writes: list[Write] = []
        self.sends: list[Send] = []
        self.reads: list[Read] = []
        self.calls: list[Call] = []
        self.skews_ms: dict[str, int] = {}  # each process's clock minus true time
        self.quiet_n: int | None = None  # from here on nothing may be written

    @property
    def now_ms(self) -> int:
        """True time."""
        return self._clock.now_ms()

    def tick(self, *facts: object) -> int:
        """The next place in the order; *facts* go into the trace."""
        self._n += 1
        self._digest.update(repr((self._n, self.now_ms, *facts)).encode())
        return self._n

    @property
    def hash(self) -> str:
        """Digest of all that was seen; equal for equal runs."""
        return self._digest.hexdigest()

    def add_write(self, process: str, batch: Batch, granted: Lease | None) -> Write:
        """The store applied *batch*."""
        facts = [(r.intent.key, r.version, r.state.value, plain(r.filled_quantity)) for r in _records(batch)]
        n = self.tick("write", process, facts, granted and granted.token, len(batch.events))
        write = Write(n=n, at_ms=self.now_ms, process=process, batch=batch, granted=granted)
        self.writes.append(write)
        return write

    def add_send(self, process: str, request: OrderRequest) -> Send:
        """A create request is handed to the client."""
        key = str(request.params.thaw().get(TAG, ""))
        n = self.tick("send", process, request.client_order_id, plain(request.quantity), request.deadline_ms)
        send = Send(n=n, at_ms=self.now_ms, process=process, key=key, request=request)
        self.sends.append(send)
        return send

    def add_read(self, process: str, client_order_id: str | None, view: View) -> Read:
        """A view is about to be read."""
        n = self.tick("read", process, client_order_id, view.value)
        read = Read(n=n, began_ms=self.now_ms, process=process, client_order_id=client_order_id, view=view)
        self.reads.append(read)
        return read

    def add_call(self, process: str, kind: str, key: str, **facts: Any) -> Call:
        """Somebody calls."""
        n = self.tick("call", process, kind, key)
        call = Call(n=n, at_ms=self.now_ms, process=process, kind=kind, key=key, **facts)
        self.calls.append(call)
        return call

    def tell(self, call: Call, told: str, record: IntentRecord | None, error: BaseException | None = None) -> None:
        """The caller is told."""
        call.told_n = self.tick("told", call.n, told)
        call.told, call.told_ms, call.record, call.error = told, self.now_ms, record, error


def _records(batch: Batch) -> list[IntentRecord]:
    return [put.value for put in batch.puts if isinstance(put.value, IntentRecord)]


class WatchedStore:
    """A store whose applied writes are recorded; everything else passes through.

    Args:
        inner: the store.
        history: where to record.
        process: whose writes these are.
    """

    def __init__(self, inner: Store, history: History, process: str) -> None:
        self._inner = inner
        self._history = history
        self._process = process

    @property
    def durability(self) -> Durability:
        """The inner store's."""
        return self._inner.durability

    @property
    def never_waits(self) -> bool:
        """False: whatever the inner store does, this one may be held up."""
        return False

    async def open(self) -> None:
        """Open the inner store."""
        await self._inner.open()

    async def aclose(self) -> None:
        """Nothing: the inner store is shared and outlives this view of it."""

    async def apply(self, batch: Batch) -> Write:
        """Commit and record it."""
        granted = await self._inner.commit(batch)
        return self._history.add_write(self._process, batch, granted)

    def acknowledge(self, write: Write) -> Lease | None:
        """The writer is told that its batch is durable."""
        write.acknowledged_n = self._history.tick("ack", write.n)
        return write.granted

    async def commit(self, batch: Batch) -> Lease | None:
        """Apply, record, acknowledge."""
        return self.acknowledge(await self.apply(batch))

    async def find(self, collection: str, key: str) -> Stored | None:
        return await self._inner.find(collection, key)

    async def scan_open(self, collection: str) -> Sequence[Stored]:
        return await self._inner.scan_open(collection)

    async def read_events(self, after: int, limit: int = 1_000) -> Sequence[StoredEvent]:
        return await self._inner.read_events(after, limit)

    async def set_cursor(self, name: str, seq: int) -> None:
        await self._inner.set_cursor(name, seq)

    async def get_cursor(self, name: str) -> int:
        return await self._inner.get_cursor(name)

    async def delete_cursor(self, name: str) -> None:
        await self._inner.delete_cursor(name)

    async def purge(self, ended_before_ms: int, limit: int = 10_000) -> int:
        return await self._inner.purge(ended_before_ms, limit)
