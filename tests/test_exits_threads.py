"""Exits asked for from several threads at once, each with an event loop of its own: one of them sells."""

from __future__ import annotations

import threading
from decimal import Decimal

import anyio
import attrs
import pytest

from execsafe.clock import SystemClock
from execsafe.exits import Deduplicated, Dust, ExitManager, ExitReason, Flat
from execsafe.gateway import OrderGateway
from execsafe.intents import IntentRegistry
from execsafe.model.intent import Intent
from execsafe.positions import PositionBook
from execsafe.stores.memory import MemoryStore
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.venue import SimVenue
from exit_rig import CALM, PROFILE, SOON, SPOT, soon

THREADS = 5


class SharedVenue(SimVenue):
    """One request at a time, whichever thread it comes from."""

    def __init__(self, *args, **options) -> None:
        self.mutex = threading.RLock()
        super().__init__(*args, **options)


def _locked(name: str):
    method = getattr(SimVenue, name)

    def call(self, *args, **options):
        with self.mutex:
            return method(self, *args, **options)

    return call


for _name in ("advance", "submit", "cancel", "look", "quotes", "order_book", "fetch_balances", "fetch_positions", "at"):
    setattr(SharedVenue, _name, _locked(_name))


@pytest.mark.guarantee(6, 10)
@pytest.mark.row("S0-04", "S0-05", "S1-01", "D-04")
def test_g10_of_five_threads_one_sells_and_nothing_is_sold_twice():
    """The seed's re-entrant lock let all five through: five sells, none deduplicated."""
    clock = SystemClock()
    venue = SharedVenue([soon()], prices={SPOT: "0.6944"}, balances={"USDT": 10_000})
    store = MemoryStore()
    anyio.run(store.open)
    profile = attrs.evolve(PROFILE, read_lag_s=0.0)
    barrier = threading.Barrier(THREADS)
    results: list[object] = []
    failures: list[BaseException] = []

    def desk() -> tuple[ExitManager, OrderGateway, PositionBook]:
        registry = IntentRegistry(store, clock=clock)
        adapter = SimAdapter(venue, clock=clock, profile=profile, latency_ms=(1, 5))
        gateway = OrderGateway(adapter, registry)
        book = PositionBook(store, registry)
        return ExitManager(gateway, book, policy=CALM), gateway, book

    async def enter() -> None:
        _, gateway, book = desk()
        await book.open()
        await gateway.submit(Intent(key="entry", symbol=SPOT, side="buy", quantity="36.06"))

    async def leave() -> None:
        exits, _, book = desk()
        await book.open()
        barrier.wait(timeout=10)
        results.append(await exits.exit(SOON, ExitReason.STOP_LOSS))

    def thread() -> None:
        try:
            anyio.run(leave)
        except BaseException as error:
            failures.append(error)

    anyio.run(enter)
    threads = [threading.Thread(target=thread) for _ in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(timeout=30)
    assert failures == []
    assert len(results) == THREADS
    assert all(isinstance(result, (Dust, Deduplicated, Flat)) for result in results), results
    sells = [entry for entry in venue.ledger.received() if entry.reduce_only]
    assert len(sells) == 1
    assert venue.ledger.filled_quantity(sells[0].client_order_id) == Decimal("36.04")
