"""The real ccxt client, guarded, at a simulated venue over loopback HTTP; judged by the venue's hidden ledger.

Windows are short but true: the simulated venue lags and skews by no more than the profile says. A rig is one venue
server with one journal file; several guards on it stand for several processes, or for one after its restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs

import execsafe
from execsafe.model.event import Event
from execsafe.model.intent import IntentRecord
from execsafe.model.order import OrderStatus
from execsafe.model.outcome import Operation
from execsafe.testing.faults import Fault, FaultPlan
from execsafe.testing.http import VenueServer, default_venues
from execsafe.testing.ledger import Entry, Ledger
from execsafe.testing.venue import SimVenue
from execsafe.wrap import GuardedExchange

VENUES = ("binance", "bybit")
SYMBOL = {"binance": "BTC/USDT", "bybit": "BTC/USDT:USDT"}
RESTING, MARKETABLE = 40_000, 61_000  # buy limits: the price is 60,000
READ_LAG_S, SKEW_S, WINDOW_S = 0.2, 0.1, 0.8
TIMEOUT_S, PATIENCE_S = 0.4, 4.0
_AT_ONCE = 12  # scenarios; with more, real time-outs would measure the machine
_CREATES = {("POST", "/api/v3/order"), ("POST", "/v5/order/create")}
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_WORDS = {
    OrderStatus.OPEN: "open",
    OrderStatus.CLOSED: "closed",
    OrderStatus.CANCELED: "canceled",
    OrderStatus.EXPIRED: "expired",
}


def quick(name: str, **changes: Any) -> execsafe.VenueProfile:
    """The venue's own row, with windows for a test of a second or two."""
    windows = {"read_lag_s": READ_LAG_S, "clock_skew_s": SKEW_S, "expiry_window_s": WINDOW_S}
    return attrs.evolve(execsafe.profile_for(name), **{**windows, **changes})


@attrs.define(eq=False)
class Rig:
    """A venue server, a journal file, and guards between them."""

    name: str
    server: VenueServer
    stack: contextlib.AsyncExitStack
    url: str
    events: list[Event] = attrs.Factory(list)

    @property
    def symbol(self) -> str:
        return SYMBOL[self.name]

    @property
    def venue(self) -> SimVenue:
        return self.server.venues[self.name]

    @property
    def ledger(self) -> Ledger:
        return self.venue.ledger

    @property
    def plan(self) -> FaultPlan:
        return self.server.plans[self.name]

    @property
    def file(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///"))

    def exchange(self, **config: Any) -> Any:
        exchange = self.server.exchange(self.name, **config)
        exchange.ssl_context = _NO_TLS  # it would load the system's certificates, a long time for nothing
        return exchange

    async def guard(self, exchange: Any = None, *, ready: bool = True, **settings: Any) -> GuardedExchange:
        """A guarded exchange on the rig's journal, whose next request is the one that is tested."""
        options = {
            "store": self.url,
            "profile": quick(self.name),
            "request_timeout_s": TIMEOUT_S,
            "look_interval_s": 0.05,
            "patience_s": PATIENCE_S,
            "listeners": (self.events.append,),
            **settings,
        }
        exchange = self.exchange() if exchange is None else exchange
        guarded = execsafe.wrap(exchange, **options)
        await self.stack.enter_async_context(guarded)
        if ready:
            exchange.timeout, tested = 10_000, exchange.timeout
            exchange.options["recvWindow"] = 10_000  # the adapter sets its own with every order
            await guarded.adapter.prepare(self.symbol)
            exchange.timeout = tested
        return guarded

    def strike(self, fault: Fault, value: int | None = None, operation: Operation = Operation.CREATE) -> None:
        """Let *fault* strike the next such request."""
        self.plan.strike_next(operation, fault, value)

    def move_price(self, price: float) -> None:
        self.venue.set_price(self.symbol, price, self.server.clock.now_ms())

    def orders_sent(self) -> int:
        """Requests on the wire that ask for an order."""
        return sum((method, path.partition("?")[0]) in _CREATES for method, _, path in self.server.requests)

    def accepted(self) -> list[Entry]:
        self.server.advance()
        return self.ledger.accepted()

    async def until_accepted(self, count: int = 1) -> None:
        while len(self.accepted()) < count:
            await asyncio.sleep(0.01)

    def assert_truthful(self, order: dict[str, Any], *, orders: int = 1) -> None:
        """There are so many orders, and *order* says of its own what the venue knows."""
        accepted = self.accepted()
        assert len(accepted) == orders, accepted
        [mine] = [entry for entry in accepted if entry.venue_order_id == order["id"]]
        true = self.venue.order(order["id"])
        assert order["clientOrderId"] == mine.client_order_id
        assert order["filled"] == float(self.ledger.filled_quantity(mine.client_order_id or ""))
        assert order["remaining"] == float(true.quantity - true.filled_quantity)
        assert order["amount"] == float(true.quantity)
        assert order["status"] == _WORDS[true.status]
        assert order["symbol"] == true.symbol
        assert order["side"] == true.side.value


@contextlib.asynccontextmanager
async def a_rig(
    name: str = "binance", venue: SimVenue | None = None, keys: Mapping[str, str] | None = None
) -> AsyncIterator[Rig]:
    """A calm venue, until a fault is scripted. *keys*: API keys it knows, and their secrets."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        venues = {name: venue if venue is not None else default_venues()[name]}
        server = await stack.enter_async_context(VenueServer(venues, client_timeout_ms=400, keys=keys))
        yield Rig(name=name, server=server, stack=stack, url=f"sqlite:///{folder}/orders.db")


async def buy(guarded: GuardedExchange, key: str | None = "k", *, price: float = RESTING, **params: Any) -> Any:
    """Buy 0.01 BTC with a limit; resting unless the price says otherwise."""
    symbol = SYMBOL[guarded.exchange.id]
    named = {} if key is None else {"intentKey": key}
    return await guarded.create_order(symbol, "limit", "buy", 0.01, price, {**named, **params})


async def outcome(work: Coroutine[Any, Any, Any]) -> Any:
    """The result, or the exception raised."""
    try:
        return await work
    except Exception as error:
        return error


async def at_once(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run independent scenarios side by side; the first failure fails all."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def run(work: Coroutine[Any, Any, Any]) -> Any:
        async with room:
            return await work

    try:
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(run(work)) for work in works]
    finally:
        for work in works:
            work.close()  # those that were never begun
    return [task.result() for task in started]


def at_both_venues(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """One test of *scenario(name, …)* at both venues, side by side."""

    async def noted(name: str, **given: Any) -> None:
        try:
            await scenario(name, **given)
        except BaseException as error:
            error.add_note(f"at {name}")
            raise

    async def test(**given: Any) -> None:
        await at_once(*(noted(name, **given) for name in VENUES))

    functools.update_wrapper(test, scenario)
    del test.__wrapped__
    _, *others = inspect.signature(scenario).parameters.values()
    test.__signature__ = inspect.Signature(others)  # type: ignore[attr-defined]
    return test


async def record_of(guarded: GuardedExchange, key: str = "k") -> IntentRecord:
    record = await guarded.registry.find(key)
    assert record is not None
    return record


async def journal_of(guarded: GuardedExchange) -> tuple[int, int]:
    """How many records are open, and how many events there are."""
    return len(await guarded.store.scan_open("intents")), len(await guarded.store.read_events(0))


def plainly(number: float | str) -> Decimal:
    return Decimal(str(number))


Scenario = Callable[[Rig], Coroutine[Any, Any, None]]
