"""One venue, one store, and processes that protect what they hold, in virtual time."""

from __future__ import annotations

from decimal import Decimal

import attrs

from execsafe.gateway import GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry
from execsafe.model.intent import Intent
from execsafe.model.position import StopKind
from execsafe.positions import PositionBook
from execsafe.protection import PositionOpener, ProtectionManager, ProtectionPolicy
from execsafe.testing.adapter import SIM_PROFILE, SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.faults import FaultPlan
from execsafe.testing.venue import SimVenue
from fakes import ScriptedStore

PERPETUAL, SPOT = "BTC/USDT:USDT", "BTC/USDT"
D = Decimal
LOOKS = LookPolicy(interval_s=0.5, spacing_s=0.0, timeout_s=2.0)


class Process:
    """What one process of the bot is made of."""

    def __init__(self, world: World, *, plan=None, policy=None, opening=None) -> None:
        self.plan = FaultPlan.none() if plan is None else plan
        self.adapter = SimAdapter(
            world.venue,
            clock=world.clock,
            plan=self.plan,
            profile=world.profile,
            latency_ms=(5, 20),
            stop_kind=StopKind.ATTACHED if world.attached else StopKind.ORDER,
        )
        self.registry = IntentRegistry(world.store, clock=world.clock, listeners=[world.events.append])
        gates = GatewayPolicy(request_timeout_s=2.0)
        self.gateway = OrderGateway(self.adapter, self.registry, policy=gates, looks=LOOKS, clock=world.clock)
        self.book = PositionBook(world.store, self.registry, listeners=[world.events.append])
        self.manager = ProtectionManager(
            self.gateway, self.book, policy=policy or ProtectionPolicy(), listeners=[world.events.append]
        )
        self.opener = PositionOpener(self.gateway, self.manager, policy=opening, listeners=[world.events.append])

    async def buy(self, quantity="0.1", *, symbol=PERPETUAL, key="entry", side="buy"):
        """An entry that nobody has planned a stop for; returns the position."""
        await self.gateway.submit(Intent(key=key, symbol=symbol, side=side, quantity=quantity))
        await self.book.catch_up()
        return self.book.position("default", symbol)


class World:
    """The venue, the store and the clock, which outlive every process."""

    def __init__(self, *, attached=False, profile=SIM_PROFILE, **venue) -> None:
        self.clock = VirtualClock()
        self.attached = attached
        self.profile = attrs.evolve(profile, attached_stops=attached)
        self.venue = SimVenue(**venue)
        self.store = ScriptedStore()
        self.store._is_open = True
        self.events = []

    def process(self, **more) -> Process:
        return Process(self, **more)

    def kinds(self, *wanted):
        return [event.type for event in self.events if not wanted or event.type in wanted]

    def stops(self, symbol=PERPETUAL):
        """The truly resting stop orders: quantity and trigger price."""
        now_ms = self.clock.now_ms()
        self.venue.advance(now_ms)
        orders = [o for o in self.venue.open_orders(symbol) if o.request.trigger_price is not None]
        return [(o.leaves_quantity, o.request.trigger_price) for o in orders]

    def price(self, price, symbol=PERPETUAL):
        self.venue.set_price(symbol, price, self.clock.now_ms())

    def held(self, symbol=PERPETUAL):
        self.venue.advance(self.clock.now_ms())
        return self.venue.ledger.position(symbol)

    def exposed_ms(self, symbol=PERPETUAL, *, until_ms=None, dust=0):
        """How long, in all, some of the position had no live stop, by the venue's own ledger."""
        self.venue.advance(self.clock.now_ms())
        gaps = self.venue.ledger.protection_gaps(symbol, until_ms=until_ms, dust=dust)
        return max((gap.to_ms - gap.from_ms for gap in gaps), default=0)


class NamesItsOwn:
    """Makes a venue state the trades of set-off stops under ids of its own, as Binance USD-M does.

    *labelled*: beside our own id, as Deribit does, where orders are read without their trades.
    While ``is_blind``, no order can be looked up alone; lists of fills can be read.
    """

    def __init__(self, process, world, *, labelled=False):
        fetch = process.adapter.fetch_executions
        stops = {e.venue_order_id for e in world.venue.ledger.accepted() if e.is_stop}

        async def fetch_executions(symbol, *, since_ms):
            found = await fetch(symbol, since_ms=since_ms)
            return [
                attrs.evolve(
                    e,
                    client_order_id=e.client_order_id if labelled else None,
                    venue_order_id=f"9{e.venue_order_id}",
                )
                if e.venue_order_id in stops
                else e
                for e in found
            ]

        async def look_up(lookup, order):
            if self.is_blind:
                raise ConnectionError("not now")
            found = await look(lookup, order)
            return attrs.evolve(found, fills=()) if labelled and found is not None else found

        self.is_blind = False
        look = process.adapter.look_up
        process.adapter.fetch_executions = fetch_executions
        process.adapter.look_up = look_up
