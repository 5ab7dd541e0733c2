"""A bot that holds a position at the simulated venue, for tests of exits. Its ledger is the truth."""

from __future__ import annotations

from decimal import Decimal

import anyio
import attrs

from execsafe.core.backoff import Backoff
from execsafe.exits import ExitManager, ExitPolicy
from execsafe.gateway import GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry
from execsafe.model.event import EventType
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.order import Side
from execsafe.model.position import PositionKey, PositionSide
from execsafe.ports import NotReleased, Released
from execsafe.positions import PositionBook
from execsafe.stores.memory import MemoryStore
from execsafe.testing._accounts import Market, linear
from execsafe.testing.adapter import SIM_PROFILE, SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.faults import FaultPlan
from execsafe.testing.venue import FillStep, SimVenue

SPOT = "SOON/USDT"
PERP = "BTC/USDT:USDT"
SOON = PositionKey(account="default", symbol=SPOT, side=PositionSide.LONG)
LONG = PositionKey(account="default", symbol=PERP, side=PositionSide.LONG)
SHORT = PositionKey(account="default", symbol=PERP, side=PositionSide.SHORT)
PROFILE = attrs.evolve(SIM_PROFILE, expiry_window_s=2.0, read_lag_s=0.5)
CALM = ExitPolicy(backoff=Backoff(base_s=0.4, jitter=0.0))


def soon() -> Market:
    """The spot market of the field report: two digits, fee taken in base."""
    return Market(
        instrument=Instrument(
            symbol=SPOT, base="SOON", quote="USDT", tick_size="0.0001", step_size="0.01", min_quantity="0.01",
            min_notional="5",
        ),
        taker_fee=Decimal("0.0005"),
    )  # fmt: skip


class WaitingStore(MemoryStore):
    """Takes its time, so that there is something to interrupt; ``is_down`` makes it fail."""

    never_waits = False
    is_down = False

    async def commit(self, batch):
        await self._wait()
        lease = await super().commit(batch)
        await anyio.sleep(0.001)
        return lease

    async def find(self, collection, key):
        await self._wait()
        return await super().find(collection, key)

    async def _wait(self):
        from execsafe.errors import StoreUnavailable

        await anyio.sleep(0.001)
        if self.is_down:
            raise StoreUnavailable("the store is down")


class Locker:
    """Own orders that lock what is to be sold: cancels them when asked, unless told not to."""

    def __init__(self, gateway: OrderGateway) -> None:
        self.gateway = gateway
        self.keys: list[str] = []
        self.is_stuck = False
        self.asked = 0
        self.resumed = 0

    async def resume(self, key: PositionKey) -> None:
        self.resumed += 1

    async def release(self, key: PositionKey):
        self.asked += 1
        if self.is_stuck:
            return NotReleased(reason="the venue does not answer")
        canceled = len(self.keys)
        while self.keys:
            await self.gateway.cancel(self.keys[-1])
            self.keys.pop()
        return Released(canceled=canceled)


class Desk:
    """One venue and one store; ``start`` makes a process, the first or one that comes after it."""

    def __init__(self, *, seed: int = 0, rates=None, balances=None, policy: ExitPolicy = CALM, store=None) -> None:
        self.clock = VirtualClock()
        funds = {"USDT": 10_000_000, "SOON": 0} if balances is None else balances
        self.venue = SimVenue([soon(), linear()], prices={SPOT: "0.6944", PERP: 60_000}, balances=funds)
        self.store = WaitingStore() if store is None else store
        self.store._is_open = True
        self.plan = FaultPlan(seed, rates or {})
        self.policy = policy
        self.events = []
        self.parts = {}
        self.start()

    def start(self, **parts) -> ExitManager:
        self.parts.update(parts)
        self.adapter = SimAdapter(
            self.venue, clock=self.clock, plan=self.plan, profile=PROFILE, request_timeout_s=3.0, latency_ms=(5, 20)
        )
        self.registry = IntentRegistry(self.store, clock=self.clock)
        self.gateway = OrderGateway(
            self.adapter,
            self.registry,
            policy=GatewayPolicy(request_timeout_s=3.0),
            looks=LookPolicy(spacing_s=0.01, interval_s=0.5),
        )
        self.book = PositionBook(self.store, self.registry)
        self.protections = Locker(self.gateway)
        return self.start_exits(protections=self.protections)

    def start_exits(self, protections) -> ExitManager:
        self.exits = ExitManager(
            self.gateway,
            self.book,
            policy=self.policy,
            protections=protections,
            listeners=[self.events.append],
            **self.parts,
        )
        return self.exits

    # --- what tests arrange -----------------------------------------------------------------------

    async def open(self, symbol: str, quantity, side: str = "buy", key: str = "entry") -> None:
        await self.book.open()
        await self.gateway.submit(Intent(key=key, symbol=symbol, side=side, quantity=quantity))
        await self.book.catch_up()
        await anyio.sleep(2)  # the reads catch up

    async def lock(self, symbol: str, quantity, price, key: str = "take-profit") -> None:
        """A resting take-profit, which on spot locks what it would sell."""
        await self.gateway.submit(Intent(key=key, symbol=symbol, side="sell", quantity=quantity, limit_price=price))
        self.protections.keys.append(key)

    def no_buyers(self, symbol: str = SPOT) -> None:
        """There are prices, and nobody who would trade at them."""
        self.venue.schedule_fills(symbol, (FillStep(10**9, 1),))

    def buyers(self, symbol: str = SPOT) -> None:
        """Whoever meets the price trades again."""
        self.venue.schedule_fills(symbol, None)

    # --- what tests ask ---------------------------------------------------------------------------

    def kinds(self) -> list[EventType]:
        return [event.type for event in self.events]

    def count(self, kind: EventType) -> int:
        return self.kinds().count(kind)

    def sold(self, symbol: str = SPOT, side: Side = Side.SELL) -> Decimal:
        self.venue.advance(self.clock.now_ms())
        fills = (e for e in self.venue.ledger.fills() if e.symbol == symbol and e.side is side)
        return sum((e.quantity for e in fills), Decimal(0))

    def exit_orders(self, symbol: str = SPOT):
        """Requests to close that reached the venue."""
        self.venue.advance(self.clock.now_ms())
        return [e for e in self.venue.ledger.received() if e.symbol == symbol and e.reduce_only]

    def at_venue(self, symbol: str = PERP) -> Decimal:
        self.venue.advance(self.clock.now_ms())
        return self.venue.account.position(symbol)
