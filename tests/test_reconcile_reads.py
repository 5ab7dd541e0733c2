"""A pass over many symbols while reads fail: what failed is read again, alone, within the look budget."""

from __future__ import annotations

import itertools
from collections import Counter

import anyio
import pytest

from execsafe.core.backoff import Backoff
from execsafe.errors import TradingDenied
from execsafe.gateway import OrderGateway
from execsafe.intents import IntentRegistry
from execsafe.model.intent import Intent
from execsafe.positions import PositionBook
from execsafe.reconcile import EntryBarrier, ReconcilePolicy, Reconciler
from execsafe.stores.memory import MemoryStore
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.faults import Fault, FaultPlan
from execsafe.testing.loop import run_simulated, run_simulated_trio
from execsafe.testing.venue import SimVenue, linear

BASES = tuple(f"W{number:02}" for number in range(28))
SYMBOLS = tuple(f"{base}/USDT:USDT" for base in BASES)
RUNNERS = [pytest.param(run_simulated, id="asyncio"), pytest.param(run_simulated_trio, id="trio")]
SEEDS = 200


class Watched(SimAdapter):
    """Notes when which view was asked for, how many reads are under way, and which symbols were read."""

    def __init__(self, *args, **more) -> None:
        super().__init__(*args, **more)
        self.asked: list[tuple[str, float]] = []
        self.read: set[str] = set()
        self.broken: set[str] = set()
        self.under_way = self.most_under_way = 0

    def prepared(self, symbol):
        return self.venue.markets[symbol].instrument

    async def fetch_positions(self):
        return await self._watched("positions", super().fetch_positions)

    async def fetch_open_orders(self, symbol):
        found = await self._watched(symbol, lambda: super(Watched, self).fetch_open_orders(symbol))
        self.read.add(symbol)
        return found

    async def _watched(self, name, read):
        self.asked.append((name, anyio.current_time()))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if name in self.broken:
                raise ConnectionError("down")
            return await read()
        finally:
            self.under_way -= 1


class Account:
    """28 symbols, a book, a journal, and the reconciler that entries wait for."""

    def __init__(self, *, seed=0, rate=0.0, latency_ms=(5, 50), policy=None) -> None:
        clock = VirtualClock()
        self.venue = SimVenue([linear(base) for base in BASES], prices=dict.fromkeys(SYMBOLS, 1_000))
        plan = FaultPlan(seed, {Fault.LOOKUP_ERROR: rate})
        self.adapter = Watched(self.venue, clock=clock, plan=plan, latency_ms=latency_ms)
        self.store = MemoryStore()
        registry = IntentRegistry(self.store, clock=clock)
        entries = EntryBarrier()
        self.gateway = OrderGateway(self.adapter, registry, clock=clock, checks=[entries])
        self.reconciler = Reconciler(
            self.gateway, PositionBook(self.store, registry), symbols=SYMBOLS, entries=entries, policy=policy
        )

    async def barrier_s(self) -> float:
        """Pass the barrier; how long it took."""
        await self.store.open()
        began = anyio.current_time()
        await self.reconciler.barrier()
        return anyio.current_time() - began

    async def is_admitted(self, key: str) -> bool:
        try:
            await self.gateway.submit(Intent(key=key, symbol=SYMBOLS[0], side="buy", quantity=1))
        except TradingDenied:
            return False
        return True


@pytest.mark.guarantee(12, 18)
@pytest.mark.parametrize(("rate", "half_s", "most_s"), [(0.0, 4, 4), (0.04, 20, 45), (0.2, 45, 120)])
def test_g12_with_reads_that_fail_now_and_then_the_barrier_is_lifted_in_time_and_never_too_early(rate, half_s, most_s):
    """28 symbols; half of the failures hang until the client's time-out of 10 s."""
    took = []
    for seed in range(SEEDS if rate else 1):
        account = Account(seed=seed, rate=rate)
        took.append(run_simulated(account.barrier_s, seed=seed))
        assert account.adapter.read == set(SYMBOLS), "no symbol was passed over"
    assert sorted(took)[len(took) // 2] <= half_s
    assert max(took) <= most_s


@pytest.mark.guarantee(12)
@pytest.mark.parametrize("run", RUNNERS)
def test_g12_one_symbol_that_cannot_be_read_keeps_all_entries_waiting_until_it_can(run):
    """It may show an order with our marker that no journal knows; and the account's margin is one."""
    account = Account(rate=0.04)
    account.adapter.broken = {SYMBOLS[17]}

    async def main() -> None:
        await account.store.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(account.reconciler.run)
            for number in range(60):
                await anyio.sleep(10)
                assert not await account.is_admitted(f"early {number}")
            assert SYMBOLS[17] not in account.adapter.read
            account.adapter.broken = set()
            await anyio.sleep(60)
            assert await account.is_admitted("now")
            tasks.cancel_scope.cancel()

    run(main)


@pytest.mark.guarantee(18)
@pytest.mark.parametrize("run", RUNNERS)
def test_g18_only_what_failed_is_read_again_and_not_for_ever(run):
    account = Account()
    account.adapter.broken = {SYMBOLS[3]}

    async def main():
        await account.store.open()
        return await account.reconciler.reconcile()

    result = run(main)
    assert result.unread == (f"open orders of {SYMBOLS[3]}",)
    counts = Counter(name for name, _ in account.adapter.asked)
    assert counts == {"positions": 1, **dict.fromkeys(SYMBOLS, 1), SYMBOLS[3]: 5}
    times = [at for name, at in account.adapter.asked if name == SYMBOLS[3]]
    first, *pauses = [later - before for before, later in itertools.pairwise(times)]
    assert first >= 0.5, "it waits for its turn, too: the others come first"
    assert pauses == pytest.approx([1.0, 2.0, 4.0], abs=0.2)


@pytest.mark.parametrize("run", RUNNERS)
@pytest.mark.parametrize(("latency_ms", "most_s"), [((5, 10), 3.5), ((300, 400), 6.5)])
def test_reads_run_side_by_side_within_the_look_budget(run, latency_ms, most_s):
    """One after the other, 29 reads of 0.7 s take 20 s; four at once, a tenth of a second apart, they take 6."""
    account = Account(latency_ms=latency_ms)
    assert run(account.barrier_s) <= most_s
    adapter = account.adapter
    assert adapter.most_under_way <= account.reconciler.policy.reads_at_once
    apart = [later - before for (_, before), (_, later) in itertools.pairwise(adapter.asked)]
    assert min(apart) >= account.reconciler.policy.read_spacing_s - 1e-6


@pytest.mark.parametrize("run", RUNNERS)
def test_a_venue_that_never_answers_ends_a_pass_all_the_same(run):
    account = Account(policy=ReconcilePolicy(reads=Backoff(jitter=0.0, max_attempts=100, deadline_s=30.0)))

    async def hangs(*_args):
        await anyio.sleep_forever()

    account.adapter.fetch_positions = account.adapter.fetch_open_orders = hangs

    async def main() -> None:
        await account.store.open()
        began = anyio.current_time()
        result = await account.reconciler.reconcile()
        assert len(result.unread) == 1 + len(SYMBOLS)
        assert anyio.current_time() - began <= 30 + 10 * (1 + len(SYMBOLS) / 4)

    run(main)


@pytest.mark.guarantee(10)
@pytest.mark.parametrize("run", RUNNERS)
def test_g10_an_exit_that_asks_for_a_pass_is_not_kept_waiting_by_a_view_that_fails(run):
    """Neither by its own pass, which reads everything once, nor by the one under way, which it hurries."""
    account = Account(latency_ms=(5, 10))
    account.adapter.broken = {"positions", *SYMBOLS}

    async def main() -> None:
        await account.store.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(account.reconciler.run)
            await anyio.sleep(1)
            began, asked = anyio.current_time(), len(account.adapter.asked)
            await account.reconciler.reconcile("a position is smaller than the book says")
            assert anyio.current_time() - began <= 2 * 3.0 + 4.0
            assert len(account.adapter.asked) - asked <= 2 * (1 + len(SYMBOLS))
            tasks.cancel_scope.cancel()

    run(main)
