"""Simulated processes: gateways with clocks of their own that share one store and one venue, and can die.

The library inside a process touches the world only through its store and its adapter. A killed process is one
whose store and adapter do nothing any more: whatever its tasks still do, nobody can see it. A frozen one is held,
beyond the reach of its own time-outs, at the next such call.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.abc
import attrs

from execsafe.errors import StoreUnavailable
from execsafe.gateway import OrderGateway
from execsafe.model.instrument import Instrument
from execsafe.model.order import OrderReport, OrderRequest
from execsafe.model.venue import LookUp
from execsafe.ports import Batch, Durability, Lease, OrderRef, Store, Stored, StoredEvent
from execsafe.testing._chaos import ChaosPlan, HostFault, StoreFault
from execsafe.testing._history import Arrival, Call, History, Send, WatchedStore, Write
from execsafe.testing._orders import NewOrder, SimOrder, VenueReject
from execsafe.testing._setup import Setup, Variant
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import SkewedClock, VirtualClock
from execsafe.testing.faults import FaultPlan, Strikes
from execsafe.testing.loop import ProcessKilled
from execsafe.testing.venue import SimVenue


@attrs.define(eq=False)
class Frame:
    """One call under way."""

    call: Call
    scope: anyio.CancelScope


FRAME: ContextVar[Frame | None] = ContextVar("frame", default=None)
"""The call on whose behalf the running task works."""


class WatchedVenue(SimVenue):
    """A venue that also notes which request each arrival is."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sends: dict[int, Send] = {}

    def expect(self, wire: NewOrder, send: Send) -> None:
        """*wire* is on its way."""
        send.wire = wire  # which keeps it alive, so that its identity is not reused
        self._sends[id(wire)] = send

    def submit(self, request: NewOrder, now_ms: int, strikes: Strikes | None = None) -> SimOrder:
        send = self._sends.get(id(request))
        try:
            order = super().submit(request, now_ms, strikes)
        except VenueReject as reject:
            if send is not None:
                send.arrivals.append(Arrival(at_ms=now_ms, reason=reject.reason.value))
            raise
        if send is not None:
            send.arrivals.append(Arrival(at_ms=now_ms, venue_order_id=order.venue_order_id))
        return order

    def pruned(self) -> frozenset[str]:
        """Venue ids of the orders that the order views no longer show."""
        return frozenset(key for key, tracked in self._orders.items() if tracked.pruned)


@attrs.define(eq=False, kw_only=True)
class Surroundings:
    """What all processes of a run share, and what may happen to them."""

    setup: Setup
    variant: Variant
    store: Store
    clock: VirtualClock
    history: History
    venue: WatchedVenue
    plan: FaultPlan
    chaos: ChaosPlan
    tasks: anyio.abc.TaskGroup = attrs.field(init=False)

    def host_fault(self, process: Process) -> HostFault | None:
        """What strikes *process* at a boundary."""
        fault = self.chaos.host()
        if fault is HostFault.PAUSE:
            longest_ms = self.setup.pause_max_ms
            process.freeze(min(longest_ms, self.chaos.random.choice((50, 1_500, 8_000, 40_000, 60_000))))
        if fault is not None:
            self.chaos.fired[fault] += 1
        return fault


class Process:
    """One process: its clock, its view of store and venue, its gateway, and the calls it is working on."""

    def __init__(self, world: Surroundings, name: str, skew_ms: int) -> None:
        self.world = world
        self.name = name
        self.clock = SkewedClock(world.clock, skew_ms)
        world.history.skews_ms[name] = skew_ms
        self.dead = False
        self.frozen_until_ms = 0
        self.died = anyio.Event()
        self.frames: list[Frame] = []
        self.store = ProcessStore(self)
        self.adapter = ProcessAdapter(self)
        self.registry = world.variant.registry(self.store, clock=self.clock)
        self.gateway: OrderGateway = world.variant.gateway(
            self.adapter,
            self.registry,
            policy=world.setup.policy,
            looks=world.setup.looks,
            locks=None if world.variant.locks is None else world.variant.locks(clock=self.clock),
            holder=name,
        )

    def kill(self) -> None:
        """Die now."""
        self.dead = True
        for frame in self.frames:
            frame.scope.cancel()
        self.died.set()

    def freeze(self, ms: int) -> None:
        """Stand still for *ms* milliseconds."""
        self.frozen_until_ms = max(self.frozen_until_ms, self.world.clock.true_ms() + ms)

    async def boundary(self) -> Frame | None:
        """Anything may happen here: between the library and the world outside of the process."""
        self._check_alive()
        frame = FRAME.get()
        fault = self.world.host_fault(self)
        if fault is HostFault.KILL:
            self.kill()
        elif fault is HostFault.CANCEL and frame is not None:
            frame.scope.cancel()
        self._check_alive()
        while (left_ms := self.frozen_until_ms - self.world.clock.true_ms()) > 0:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(left_ms / 1000)
            if frame is not None:
                frame.call.paused_ms += left_ms
        self._check_alive()
        return frame

    def _check_alive(self) -> None:
        if self.dead:
            raise ProcessKilled(self.name)


class ProcessStore(WatchedStore):
    """A process's connection to the shared store."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.world.store, process.world.history, process.name)
        self._owner = process
        self._world = process.world

    async def apply(self, batch: Batch) -> Write:
        if not self._world.variant.no_leases:
            return await super().apply(batch)
        write = await super().apply(attrs.evolve(batch, fence=None, acquire=None, release=None))
        if batch.acquire is not None:  # everybody has it
            ends_ms = batch.now_ms + batch.acquire.ttl_ms
            write.granted = Lease(name=batch.acquire.name, holder=batch.acquire.holder, token=1, expires_at_ms=ends_ms)
        return write

    @property
    def durability(self) -> Durability:
        return self._world.store.durability

    async def commit(self, batch: Batch) -> Lease | None:
        frame = await self._owner.boundary()
        now_ms = self._world.clock.true_ms()
        if frame is not None and frame.call.first_commit_ms is None:
            frame.call.first_commit_ms = now_ms
        fault = self._world.chaos.store(now_ms, is_write=True)
        if fault in {StoreFault.STORE_REFUSES, StoreFault.STORE_OUTAGE}:
            raise StoreUnavailable("sim: nothing was written")
        delay_s = self._world.chaos.random.choice((0.3, 3.0, 9.5, 14.0)) if fault is not None else 0.0
        if fault is StoreFault.LATE_COMMIT:
            write = await self._apply_late(batch, delay_s)
        else:
            write = await self.apply(batch)
        write.call_n = None if frame is None else frame.call.n
        if fault is StoreFault.SLOW_REPLY:
            await anyio.sleep(delay_s)
        if fault is StoreFault.COMMIT_UNKNOWN:
            raise StoreUnavailable("sim: the connection broke after the commit")
        await self._owner.boundary()
        return self.acknowledge(write)

    async def _apply_late(self, batch: Batch, delay_s: float) -> Write:
        """A write that is on its way to the store gets there, whoever still waits for it."""
        done = anyio.Event()
        result: list[Write | Exception] = []

        async def apply() -> None:
            await anyio.sleep(delay_s)
            try:
                result.append(await self.apply(batch))
            except Exception as error:  # noqa: BLE001 - handed over to whoever waits
                result.append(error)
            done.set()

        self._world.tasks.start_soon(apply)
        await done.wait()
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]

    async def find(self, collection: str, key: str) -> Stored | None:
        await self._before_read()
        return await super().find(collection, key)

    async def scan_open(self, collection: str) -> Sequence[Stored]:
        await self._before_read()
        return await super().scan_open(collection)

    async def read_events(self, after: int, limit: int = 1_000) -> Sequence[StoredEvent]:
        await self._before_read()
        return await super().read_events(after, limit)

    async def _before_read(self) -> None:
        await self._owner.boundary()
        if self._world.chaos.store(self._world.clock.true_ms(), is_write=False) is not None:
            raise StoreUnavailable("sim: it cannot be read")


class ProcessAdapter(SimAdapter):
    """A process's connection to the venue; every request and every read is noted."""

    def __init__(self, process: Process) -> None:
        world = process.world
        super().__init__(
            world.venue,
            clock=world.clock,
            client_clock=process.clock,
            plan=world.plan,
            profile=world.setup.profile,
            latency_ms=world.setup.latency_ms,
            request_timeout_s=world.setup.client_timeout_s,
        )
        self._owner = process
        self._world = world
        self._sending: Send | None = None

    async def prepare(self, symbol: str) -> Instrument:
        await self._owner.boundary()
        return await super().prepare(symbol)

    async def create_order(self, request: OrderRequest) -> OrderReport:
        await self._owner.boundary()
        send = self._sending = self._world.history.add_send(self._owner.name, request)
        try:
            report = await super().create_order(request)
        finally:
            if not self._owner.dead:
                send.ended_n = self._world.history.tick("sent", send.n)
        await self._owner.boundary()
        return report

    def _new_order(self, request: OrderRequest) -> NewOrder:
        wire = super()._new_order(request)
        if self._sending is not None:
            self._world.venue.expect(wire, self._sending)
        return wire

    async def cancel_order(self, order: OrderRef) -> None:
        await self._owner.boundary()
        await super().cancel_order(order)
        await self._owner.boundary()

    async def look_up(self, lookup: LookUp, order: OrderRef) -> OrderReport | None:
        frame = await self._owner.boundary()
        read = self._world.history.add_read(self._owner.name, order.client_order_id, lookup.view)
        read.call_n = None if frame is None else frame.call.n
        report = await super().look_up(lookup, order)
        await self._owner.boundary()
        read.found = report is not None
        read.ended_n = self._world.history.tick("looked", read.n, read.found)
        read.ended_ms = self._world.clock.true_ms()
        return report
