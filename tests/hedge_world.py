"""Two legs at a simulated venue whose fills are scripted order by order; judged by its ledger."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import anyio
import attrs

from execsafe.core.hedging import HedgeLeg, HedgePlan, HedgePolicy
from execsafe.errors import UnsupportedByVenue, VenueUnavailable
from execsafe.gateway import GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.hedging import PartialFillHedger
from execsafe.intents import IntentRegistry
from execsafe.model.event import Event, EventType
from execsafe.model.order import OrderReport, Side
from execsafe.model.position import Execution, PositionSide, VenuePosition
from execsafe.model.venue import LookUp
from execsafe.ports import Batch, Lease, OrderRef, Stored
from execsafe.stores.memory import MemoryStore
from execsafe.testing import sim_errors
from execsafe.testing.adapter import SIM_PROFILE, SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.faults import FaultPlan
from execsafe.testing.ledger import Entry, Happened
from execsafe.testing.venue import FillStep, SimVenue, btc_usdt, eth_usdt, linear

A, B = "ETH/USDT:USDT", "BTC/USDT:USDT"
PROFILE = attrs.evolve(SIM_PROFILE, expiry_window_s=2.0, read_lag_s=0.5)
LOOKS = LookPolicy(interval_s=0.5, spacing_s=0.01)


def leg(symbol: str = A, side: str = "buy", quantity: Any = 1, **more: Any) -> HedgeLeg:
    return HedgeLeg(symbol=symbol, side=side, quantity=quantity, **more)


def pair(a: Any = 1, b: Any = 1, *, lead: dict[str, Any] | None = None, hedge: dict[str, Any] | None = None, **more):
    """Buy A, sell B."""
    return HedgePlan(legs=[leg(quantity=a, **(lead or {})), leg(B, "sell", b, **(hedge or {}))], **more)


class FillScript:
    """What the next orders of a symbol fill: a share at once, steps in time, or everything."""

    def __init__(self, venue: SimVenue) -> None:
        self._venue = venue
        self._next: defaultdict[str, deque[Any]] = defaultdict(deque)
        venue.ledger.on_append = self._appended

    def add(self, symbol: str, *shares: Any) -> None:
        self._next[symbol].extend(shares)

    def _appended(self, entry: Entry) -> None:
        if entry.what is not Happened.ACCEPTED:
            return
        queue = self._next[entry.symbol]
        share = queue.popleft() if queue else None
        steps = share if isinstance(share, Sequence) and not isinstance(share, str) else None
        if steps is None and share is not None:
            # Nothing is filled by a step that comes when the order is long gone.
            steps = [FillStep(0, share)] if Decimal(str(share)) else [FillStep(10**9, 1)]
        self._venue.schedule_fills(entry.symbol, steps)


class Adapter(SimAdapter):
    """Shows positions; may hide part of the fills, or refuse to be read."""

    caps: dict[str, Decimal]
    rejects: Sequence[str] = ()
    turns_away = 0  # so many of the next orders that hedge
    is_mute = False  # no order that reduces is answered
    is_blind = False
    hides_trades = False
    foreign: Decimal = Decimal(0)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.caps = {}
        self.positions_read = 0

    async def look_up(self, lookup: LookUp, order: OrderRef) -> OrderReport | None:
        if self.is_blind:
            await anyio.sleep(0.01)
            raise ConnectionError("cannot read")
        return self._capped(await super().look_up(lookup, order))

    async def create_order(self, request: Any) -> OrderReport:
        if request.symbol in self.rejects and not request.reduce_only:
            await anyio.sleep(0.01)
            raise sim_errors.InsufficientFunds("sim POST order")
        if request.symbol == B and not request.reduce_only and self.turns_away:
            self.turns_away -= 1
            raise VenueUnavailable("sim turned a request away for coming too often; nothing was sent")
        if request.reduce_only and self.is_mute:
            await anyio.sleep(60)
            raise ConnectionError("never sent")
        report = self._capped(await super().create_order(request))
        assert report is not None
        return report

    def _capped(self, report: OrderReport | None) -> OrderReport | None:
        if report is not None and self.hides_trades:
            report = attrs.evolve(report, fills=())
        cap = None if report is None else self.caps.get(report.symbol)
        if report is None or cap is None or report.filled_quantity is None or report.filled_quantity <= cap:
            return report
        return attrs.evolve(report, filled_quantity=cap, fills=())

    async def fetch_executions(self, symbol: str, *, since_ms: int) -> Sequence[Execution]:
        if self.is_blind:
            raise ConnectionError("cannot read")
        return await super().fetch_executions(symbol, since_ms=since_ms)

    async def fetch_positions(self) -> list[VenuePosition]:
        self.positions_read += 1
        if self.is_blind:
            raise ConnectionError("cannot read")
        shown = list(await super().fetch_positions())
        if self.foreign:
            shown.append(VenuePosition(symbol=A, side=PositionSide.LONG, quantity=self.foreign))
        return shown


class NoPositions(Adapter):
    async def fetch_positions(self) -> list[VenuePosition]:
        raise UnsupportedByVenue("no positions here")


class WaitingStore(MemoryStore):
    """Takes its time before and after everything, so that there is something to interrupt."""

    never_waits = False
    is_down = False

    async def commit(self, batch: Batch) -> Lease | None:
        await anyio.sleep(0.001)
        self._fail_if_down()
        lease = await super().commit(batch)
        await anyio.sleep(0.001)
        return lease

    async def find(self, collection: str, key: str) -> Stored | None:
        await anyio.sleep(0.001)
        self._fail_if_down()
        return await super().find(collection, key)

    def _fail_if_down(self) -> None:
        if self.is_down:
            from execsafe.errors import StoreUnavailable

            raise StoreUnavailable("the store is down")


@attrs.define(eq=False)
class Process:
    """One bot process."""

    adapter: Adapter
    gateway: OrderGateway
    hedger: PartialFillHedger


class World:
    """One venue, one store, any number of processes."""

    def __init__(self, *, policy: HedgePolicy | None = None, adapter: type[Adapter] = Adapter, markets=None) -> None:
        self.clock = VirtualClock()
        self.venue = SimVenue(markets or [linear("ETH"), linear("BTC"), linear("SOL"), btc_usdt(), eth_usdt()])
        self.fills = FillScript(self.venue)
        self.store = WaitingStore()
        self.plan = FaultPlan.none()
        self.policy = policy or HedgePolicy()
        self.adapter_type = adapter
        self.rejects: list[str] = []
        self.events: list[Event] = []
        self.checks: list[Any] = []
        self.main = self.process()

    async def open(self) -> World:
        await self.store.open()
        return self

    def process(self, **more: Any) -> Process:
        adapter = self.adapter_type(
            self.venue, clock=self.clock, plan=self.plan, profile=PROFILE, request_timeout_s=1.0
        )
        adapter.rejects = self.rejects
        registry = IntentRegistry(self.store, clock=self.clock)
        gateway = OrderGateway(
            adapter, registry, looks=LOOKS, policy=GatewayPolicy(request_timeout_s=1.5), checks=self.checks
        )
        options = {"policy": self.policy, "listeners": [self.events.append], "lease_ttl_s": 5.0, **more}
        return Process(adapter, gateway, PartialFillHedger(gateway, **options))

    @property
    def hedger(self) -> PartialFillHedger:
        return self.main.hedger

    async def execute(self, plan: HedgePlan | None = None, **more: Any) -> Any:
        return await self.hedger.execute(plan or pair(), **more)

    # --- the truth ---------------------------------------------------------------------------------------------

    def position(self, symbol: str) -> Decimal:
        self.venue.advance(self.clock.now_ms())
        return self.venue.ledger.position(symbol)

    @property
    def positions(self) -> tuple[Decimal, Decimal]:
        return self.position(A), self.position(B)

    @property
    def accepted(self) -> list[Entry]:
        self.venue.advance(self.clock.now_ms())
        return self.venue.ledger.accepted()

    def orders(self) -> list[tuple[str, str, Decimal]]:
        return [(entry.symbol, str(entry.side), entry.quantity) for entry in self.accepted]

    def kinds(self) -> list[EventType]:
        return [event.type for event in self.events]

    def worst_hedge(self) -> Decimal:
        """The largest short of B over long of A that there ever was."""
        held = {A: Decimal(0), B: Decimal(0)}
        worst = Decimal(0)
        for entry in self.venue.ledger.fills():
            held[entry.symbol] += entry.quantity if entry.side is Side.BUY else -entry.quantity
            worst = max(worst, -held[B] - held[A])
        return worst
