"""Whole runs in virtual time: several processes, one store, one venue, everything going wrong, judged at the end.

    result = simulate(7)
    assert not result.violations, result.report()

A run is a function of its arguments: the same seed gives the same course of events in every process.
"""

from __future__ import annotations

import contextlib
import decimal
import gc
import hashlib
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import attrs

from execsafe.errors import InvalidInput
from execsafe.ports import Store
from execsafe.stores.memory import MemoryStore
from execsafe.testing._chaos import KINDS, HostFault, StoreFault
from execsafe.testing._setup import PLAIN, Variant
from execsafe.testing._world import World
from execsafe.testing.auditor import Auditor, Evidence, Violation
from execsafe.testing.faults import DRAWN
from execsafe.testing.loop import run_simulated, run_simulated_trio

__all__ = ["ALL_FAULTS", "PLAIN", "HostFault", "SimulationResult", "StoreFault", "Variant", "simulate"]

ALL_FAULTS: Final = frozenset({*DRAWN, *KINDS})
"""Every kind of fault: of the wire, the venue, the hosts and the store."""

_SQLITE_EVERY: Final = 20  # one seed in so many runs on a real SQLite file


@attrs.frozen(kw_only=True)
class SimulationResult:
    """What came of one run.

    Attributes:
        trace_hash: digest of everything that happened; equal for equal runs.
        violations: the auditor's findings; none is as promised.
        fired: how often each kind of fault had its effect.
        states: in which state how many intents ended.
        requests: create requests sent.
        accepted: orders at the venue.
        virtual_ms: how much time passed in the run.
    """

    seed: int
    intents: int
    backend: str
    variant: str
    trace_hash: str
    violations: tuple[Violation, ...]
    fired: Counter[str]
    states: Counter[str]
    requests: int
    accepted: int
    virtual_ms: int

    @property
    def reproduction(self) -> str:
        """One line that repeats the run."""
        options = "" if self.backend == "asyncio" else f", backend={self.backend!r}"
        options += "" if self.intents == _INTENTS else f", intents={self.intents}"
        code = f"from execsafe.testing.simulation import simulate; print(simulate({self.seed}{options}).report())"
        return f'python -c "{code}"'

    def report(self) -> str:
        """The findings, and how to see them again."""
        lines = [f"seed {self.seed} ({self.backend}, {self.variant}): {len(self.violations)} violations"]
        lines += [f"  {violation}" for violation in self.violations]
        return "\n".join([*lines, f"  {self.reproduction}"])


_INTENTS: Final = 10


def simulate(
    seed: int,
    *,
    intents: int = _INTENTS,
    faults: Collection[str] | None = None,
    processes: int = 3,
    backend: str = "asyncio",
    variant: Variant | None = None,
) -> SimulationResult:
    """Run *intents* through *processes* gateways while things go wrong, and audit what came of it.

    The venue's nature (expiry, uniqueness of ids, views, lags, skew), the policies, the callers' doings and the
    faults are all drawn from *seed*. Only faults under which the guarantees are promised at that venue strike.
    One seed in twenty runs on an SQLite file, the others in memory.

    Args:
        seed: any integer.
        intents: how many intents are submitted, each perhaps several times.
        faults: which kinds strike (names in ``ALL_FAULTS``); None: a random third of all in each run.
        processes: how many gateways share the store.
        backend: "asyncio" or "trio".
        variant: other parts in place of the library's own.

    Raises:
        InvalidInput: an unknown fault or backend.
    """
    unknown = frozenset() if faults is None else frozenset(faults) - ALL_FAULTS
    if unknown or backend not in {"asyncio", "trio"}:
        raise InvalidInput(f"unknown faults {sorted(unknown)} or backend {backend!r}")
    variant = PLAIN if variant is None else variant
    wanted = None if faults is None else frozenset(faults)
    with tempfile.TemporaryDirectory(prefix="execsafe-sim-") as folder:
        store = _make_store(seed, Path(folder))
        clock_start_ms, world = _run(seed, store, intents, wanted, processes, backend, variant)
    evidence = Evidence(
        ledger=world.venue.ledger,
        history=world.history,
        final=world.final,
        profile=world.setup.profile,
        venue_skew_ms=world.setup.venue_skew_ms,
        pruned=world.venue.pruned(),
    )
    found = [attrs.evolve(violation, seed=seed) for violation in world.violations]
    found += Auditor(evidence, seed=seed).audit()
    found = [violation for violation in found if violation.guarantee not in variant.without]
    trace = hashlib.sha256(f"{world.history.hash}{world.venue.ledger.digest()}".encode()).hexdigest()
    return SimulationResult(
        seed=seed,
        intents=intents,
        backend=backend,
        variant=variant.name,
        trace_hash=trace,
        violations=tuple(found),
        fired=Counter({str(kind.value): n for kind, n in world.plan.fired.items()}) + world.chaos.fired,
        states=Counter(record.state.value for record in world.final.values()),
        requests=len(world.history.sends),
        accepted=len(world.venue.ledger.accepted()),
        virtual_ms=world.clock.true_ms() - clock_start_ms,
    )


def _run(
    seed: int, store: Store, intents: int, faults: frozenset[str] | None, slots: int, backend: str, variant: Variant
) -> tuple[int, World]:
    made: list[World] = []

    async def main() -> int:
        world = World(seed, store=store, intents=intents, slots=slots, faults=faults, variant=variant)
        made.append(world)
        start_ms = world.clock.true_ms()
        await world.run()
        return start_ms

    runner = run_simulated if backend == "asyncio" else run_simulated_trio
    # Clients change the current context for good (ccxt: rounding and traps); what is drawn must not depend on that.
    with variant.patch(), _collector_paused(), decimal.localcontext(decimal.Context()):
        start_ms = runner(main, seed=seed)
    return start_ms, made[0]


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Killed processes leave coroutines behind, whose clean-up runs wherever the collector happens to find them.

    Inside a later run it would be one more, unpredictable, step. What is left is collected before a run, not in it.
    """
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _make_store(seed: int, folder: Path) -> Store:
    if seed % _SQLITE_EVERY != _SQLITE_EVERY - 1:
        return MemoryStore()
    from execsafe.stores.sqlite import SqliteStore  # only runs that use it load sqlite3

    return SqliteStore(folder / "orders.db", commit="inline")
