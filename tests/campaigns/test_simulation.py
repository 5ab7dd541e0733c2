"""The guarantees under everything that can go wrong: whole runs in virtual time, judged by the auditor.

A run that breaks a guarantee is reported with the line that repeats it.
"""

import decimal
import functools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from multiprocessing import get_context

import anyio
import pytest

from execsafe.errors import InvalidInput
from execsafe.gateway import OrderGateway
from execsafe.intents import IntentRegistry
from execsafe.locks import Claim, DedupLock
from execsafe.model.intent import Intent, IntentRecord, IntentState
from execsafe.ports import Batch, Lease
from execsafe.stores.memory import MemoryStore
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.faults import DRAWN, Fault, FaultPlan, Strike
from execsafe.testing.loop import ProcessKilled, run_simulated
from execsafe.testing.simulation import ALL_FAULTS, HostFault, SimulationResult, StoreFault, Variant, simulate
from execsafe.testing.venue import SimVenue

SEEDS = 2_000
TRIO_SEEDS = 200
WORKERS = 2

# An id is sent again only after its order left no trace in any view: too rare to count on. It has a test of its own.
RARE = {Fault.DUPLICATE_ID_THOUGH_DEAD}


def campaign(seeds: Iterable[int], backend: str = "asyncio") -> list[SimulationResult]:
    """All results, from as many processes as there are cores to share."""
    # The library's own function: a fresh process can import it, wherever the tests are run from.
    run_one = functools.partial(simulate, backend=backend)
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        return list(pool.map(run_one, seeds, chunksize=25))


def assert_no_violation(results: list[SimulationResult]) -> None:
    broken = [result for result in results if result.violations]
    assert not broken, "\n".join(result.report() for result in broken[:10])


@pytest.fixture(scope="module")
def results() -> list[SimulationResult]:
    return campaign(range(SEEDS))


@pytest.mark.guarantee(1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15, 18)
def test_g1_to_g18_hold_over_twenty_thousand_intents_and_every_kind_of_fault(results: list[SimulationResult]) -> None:
    """No violation by any process, in any run, whatever was lost, late, twice, killed, frozen or refused."""
    assert_no_violation(results)
    assert sum(result.intents for result in results) == SEEDS * 10


@pytest.mark.row("S0-27", "X-08")
def test_every_kind_of_fault_has_struck(results: list[SimulationResult]) -> None:
    """A campaign in which a fault never happens says nothing about it."""
    fired: Counter[str] = sum((result.fired for result in results), Counter())
    counts = {str(kind.value): fired[kind.value] for kind in (*DRAWN, *HostFault, *StoreFault) if kind not in RARE}
    assert min(counts.values()) >= 20, sorted(counts.items(), key=lambda item: item[1])[:5]


def test_every_way_in_which_an_intent_can_end_was_met(results: list[SimulationResult]) -> None:
    """Also so that "no violation" is not the silence of runs in which nothing happens."""
    states: Counter[str] = sum((result.states for result in results), Counter())
    assert states.keys() >= {"filled", "canceled", "expired", "rejected", "failed_final", "live", "unresolved"}
    assert sum(result.accepted for result in results) > SEEDS * 5
    assert sum(result.requests for result in results) > sum(result.accepted for result in results)


@pytest.mark.guarantee(1, 3, 4, 13)
def test_g1_to_g18_hold_on_trio_as_well() -> None:
    """The same code on another scheduler, whose order of tasks is drawn in another way."""
    assert_no_violation(campaign(range(SEEDS, SEEDS + TRIO_SEEDS), "trio"))


@pytest.mark.row("S4-35")
def test_the_same_seed_gives_the_same_run(results: list[SimulationResult]) -> None:
    """One seed in a hundred again, here: whatever is found can be found again by the line it reports."""
    for result in results[::100]:
        again = simulate(result.seed)
        assert (again.trace_hash, again.fired, again.states) == (result.trace_hash, result.fired, result.states)
    for seed in range(SEEDS, SEEDS + 3):
        assert simulate(seed, backend="trio").trace_hash == simulate(seed, backend="trio").trace_hash


def test_a_run_does_not_depend_on_the_hash_seed_of_the_interpreter() -> None:
    """Sets and dicts of strings order nothing that matters."""
    code = "from execsafe.testing.simulation import simulate as s; print([s(n).trace_hash for n in (3, 19)])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip
    assert outputs == {f"{[simulate(n).trace_hash for n in (3, 19)]}\n"}


def test_a_run_does_not_depend_on_the_decimal_context_of_the_program_around_it() -> None:
    """ccxt changes rounding and traps of the current context for good."""
    plain = simulate(300).trace_hash
    with decimal.localcontext(decimal.Context(prec=6, rounding=decimal.ROUND_HALF_UP)):
        assert simulate(300).trace_hash == plain


# --- without locks --------------------------------------------------------------------------------


class NoLock(DedupLock):
    """Everybody gets every claim at once."""

    def try_claim(self, key: object) -> Claim | None:
        return Claim(self, (key, object()), key, 0, leaves_outcome=False)

    def release(self, claim: Claim) -> bool:
        return True


@pytest.mark.guarantee(8)
@pytest.mark.parametrize(
    "variant",
    [
        Variant(name="no lock", locks=NoLock, without=frozenset({"G6"})),
        Variant(name="no leases", no_leases=True, without=frozenset({"G6", "G7"})),
        Variant(name="neither", locks=NoLock, no_leases=True, without=frozenset({"G6", "G7"})),
    ],
    ids=lambda variant: variant.name,
)
def test_g8_all_else_holds_without_locks_and_without_leases(variant: Variant) -> None:
    """Exclusion saves work; what keeps exposure right is the journal, its versions and the proof."""
    assert_no_violation([simulate(seed, variant=variant) for seed in range(50)])


class FatefulStore(MemoryStore):
    """The process "late" freezes for minutes once it has proven an absence; "other" dies once it has sent."""

    async def commit(self, batch: Batch) -> Lease | None:
        record = next((put.value for put in batch.puts if isinstance(put.value, IntentRecord)), None)
        names = {lease.holder for lease in (batch.fence, batch.acquire, batch.release) if lease is not None}
        if names == {"other"} and (record is None or record.state is not IntentState.SENDING) and not batch.acquire:
            raise ProcessKilled("other")
        lease = await super().commit(batch)
        if names == {"late"} and record is not None and record.state is IntentState.RECORDED:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(200)
        return lease


@pytest.mark.guarantee(1, 7)
def test_g1_a_process_that_wakes_up_late_does_not_take_another_ones_attempt_for_its_own() -> None:
    """Frozen between its proof and its resend, it finds that another process has sent meanwhile, and died of it."""

    async def scenario() -> Decimal:
        clock, store, venue = VirtualClock(), FatefulStore(), SimVenue()
        await store.open()

        def gateway(name: str, fault: str) -> OrderGateway:
            adapter = SimAdapter(venue, clock=clock, plan=FaultPlan.scripted(Strike("create", 1, fault)))
            return OrderGateway(adapter, IntentRegistry(store, clock=clock), holder=name)

        async def late() -> None:
            await gateway("late", "drop_request").submit(Intent(key="k", symbol="BTC/USDT", side="buy", quantity=1))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late)
            await anyio.sleep(60)
            with pytest.raises(BaseExceptionGroup):
                await gateway("other", "drop_reply").recover()
        return venue.ledger.position("BTC/USDT")

    assert run_simulated(scenario) == 1


# --- of simulate itself ---------------------------------------------------------------------------


def test_an_undisturbed_run_settles_everything_and_sends_each_intent_once() -> None:
    """Without faults nothing is in doubt, whatever the callers repeat."""
    for seed in range(20):
        run = simulate(seed, faults=())
        assert_no_violation([run])
        assert not run.fired
        assert not run.states.keys() & {"unresolved", "failed_final", "in_doubt", "sending"}


def test_unknown_faults_and_backends_are_refused() -> None:
    with pytest.raises(InvalidInput):
        simulate(1, faults={"earthquake"})
    with pytest.raises(InvalidInput):
        simulate(1, backend="twisted")
    assert "kill" in ALL_FAULTS


def test_a_report_says_how_to_see_it_again() -> None:
    run = simulate(5, intents=3, backend="trio")
    assert "simulate(5, backend='trio', intents=3)" in run.report()


# --- the long ones --------------------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.parametrize("block", range(10))
def test_g1_to_g18_hold_over_a_million_intents(block: int) -> None:
    """Ten blocks of ten thousand runs, one in ten of them on trio."""
    first = 1_000_000 + block * 10_000
    assert_no_violation(campaign(range(first, first + 9_000)))
    assert_no_violation(campaign(range(first + 9_000, first + 10_000), "trio"))
