"""The demo, end to end: the real ccxt client over HTTP on loopback, faults on, the venue's ledger as the judge."""

import anyio
import attrs
import pytest

import execsafe
from execsafe.bot import demo, report
from execsafe.bot.demo import DemoPolicy, deliveries, demo_signals, run_demo
from execsafe.testing.faults import Fault

SHORT = DemoPolicy(seed=7, signals=10)


@pytest.fixture(scope="module")
def anyio_backend():
    """ccxt runs on asyncio only."""
    return "asyncio"


@pytest.fixture(scope="module")
async def runs(anyio_backend):
    """The same short run twice, and one without faults; beside each other, to save time."""
    done = {}

    async def run(name, policy):
        done[name] = await run_demo(policy)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, "first", SHORT)
        tasks.start_soon(run, "second", SHORT)
        tasks.start_soon(run, "calm", attrs.evolve(SHORT, faults=False))
    return done


pytestmark = pytest.mark.anyio


@pytest.mark.guarantee(1, 3, 5)
async def test_g1_execsafe_has_one_order_for_each_that_was_meant_and_no_excess(runs):
    found = runs["first"].guarded.findings

    assert found.orders_accepted == found.orders_meant
    assert (found.copies_max, found.duplicates, found.strays) == (1, 0, 0)
    assert found.excess == {}


@pytest.mark.guarantee(9, 11)
async def test_g9_execsafe_leaves_no_naked_leg_and_a_book_that_equals_the_ledger(runs):
    found = runs["first"].guarded.findings

    assert found.naked == ()
    assert found.differences == {}
    assert runs["first"].breaches == ()


async def test_plain_ccxt_is_harmed_by_the_same_faults(runs):
    found = runs["first"].naive.findings

    assert found.duplicates > 0
    assert found.excess_btc > 0
    assert found.naked
    assert found.differences


async def test_the_faults_were_really_met_and_every_doubt_was_settled(runs):
    guarded = runs["first"].guarded
    doubts, found, absent, unsettled = report.settled(guarded)

    assert sum(guarded.fired.values()) >= 5
    assert doubts >= 2
    assert (found + absent, unsettled) == (doubts, 0)


async def test_the_same_seed_gives_the_same_orders_and_fills(runs):
    first, second = (runs[name].guarded.findings for name in ("first", "second"))

    assert first.legs == second.legs
    assert len(first.legs) >= 2 * SHORT.signals - 2


async def test_without_faults_both_bots_do_exactly_what_was_meant(runs):
    for bot in (runs["calm"].naive, runs["calm"].guarded):
        found = bot.findings
        assert (found.orders_accepted, found.duplicates, found.excess, found.naked) == (20, 0, {}, ())
        assert found.differences == {}
    assert runs["calm"].naive.findings.legs == runs["calm"].guarded.findings.legs


def test_what_is_laid_out_depends_on_the_seed_and_the_signal_only():
    plans = [[deliveries(s, DemoPolicy(seed=seed)) for s in demo_signals(48)] for seed in (1, 1, 2)]

    assert plans[0] == plans[1] != plans[2]
    assert set(plans[0]) == {(1, 0), (3, 2)}


def test_what_the_profile_takes_for_true_is_true_of_the_venue():
    """Windows shorter than the venue keeps would let a proof come too early; the demo would then cheat or fail."""
    profile, stage = demo.demo_profile(), demo.Stage(SHORT)

    assert max(stage.venue.read_lag_ms.values()) <= profile.read_lag_s * 1000
    assert stage.venue.skew_ms <= profile.clock_skew_s * 1000
    assert profile.dedup is stage.venue.dedup is execsafe.Dedup.OPEN
    lags = {Fault.LOOKUP_LAG, Fault.LOOKUP_MISSES_CLOSED, Fault.ID_INDEX_LOST, Fault.PRUNED_AFTER_END}
    assert not lags & set(demo.RATES)


async def test_a_wrong_assumption_about_the_venue_is_found_out(monkeypatch):
    """Plant: absence is called proven before the request can no longer arrive. The judge must see the second order."""
    from execsafe.core import ghosts
    from execsafe.core.ghosts import Verdict

    def hasty(*args, **kwargs):
        found = judge(*args, **kwargs)
        return Verdict.ABSENT if found is Verdict.LOOK_AGAIN else found

    judge = ghosts.judge
    monkeypatch.setattr("execsafe.ghosts.judge", hasty)
    monkeypatch.setattr(demo, "RATES", {Fault.DELAY_REQUEST: 1.0})
    result = await run_demo(DemoPolicy(seed=1, signals=1))

    assert any(breach.startswith("G1") for breach in result.breaches)


async def test_the_audit_decides_about_breaches():
    audited = []

    def audit(*facts):
        audited.append(facts)
        return ("G0: planted",)

    result = await run_demo(DemoPolicy(signals=1, faults=False), audit=audit)

    assert result.breaches == ("G0: planted",)
    assert len(audited) == 1
