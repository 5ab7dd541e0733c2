"""DedupLock within one process: sharing one run, and every interleaving of everything."""

import contextlib
import random
import threading

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from execsafe.errors import AlreadyInFlight
from execsafe.locks import DedupLock, OnBusy
from execsafe.testing.loop import count_steps, run_simulated, run_simulated_trio

KEY = ("exit", "acc", "BTC/USDT")


@pytest.fixture
def lock() -> DedupLock:
    return DedupLock()


@pytest.fixture(params=[run_simulated, run_simulated_trio], ids=["asyncio", "trio"])
def simulate(request):
    """Run an async function in virtual time; on asyncio a lost wake-up is reported as a deadlock."""
    return request.param


def idle(lock: DedupLock) -> bool:
    """Nothing is left behind."""
    now = lock.statistics()
    return now.in_flight == now.waiting == 0


# --- Joining ------------------------------------------------------------------------------------------------


async def join(lock, results, name, work):
    """One caller of a shared run; notes what it got."""
    try:
        results[name] = await lock.run(KEY, work, on_busy=OnBusy.JOIN)
    except Exception as error:
        results[name] = error


@pytest.mark.anyio
@pytest.mark.row("S4-31")
async def test_joiners_share_the_result_of_one_run(lock):
    release = anyio.Event()
    ran, results = [], {}

    async def work():
        ran.append(1)
        await release.wait()
        return object()

    async with anyio.create_task_group() as tg:
        for name in range(5):
            tg.start_soon(join, lock, results, name, work)
        await wait_all_tasks_blocked()
        release.set()

    assert len(ran) == 1
    assert len(results) == 5
    assert len(set(results.values())) == 1
    assert lock.statistics().joined == 4


@pytest.mark.anyio
async def test_joiners_share_the_exception_of_one_run(lock):
    release = anyio.Event()
    results = {}

    async def work():
        await release.wait()
        raise ZeroDivisionError("once")

    async with anyio.create_task_group() as tg:
        for name in range(5):
            tg.start_soon(join, lock, results, name, work)
        await wait_all_tasks_blocked()
        release.set()

    assert {repr(error) for error in results.values()} == {"ZeroDivisionError('once')"}


@pytest.mark.anyio
async def test_one_can_join_a_run_that_did_not_ask_for_company(lock):
    release = anyio.Event()
    results = {}

    async def work():
        await release.wait()
        return 7

    async with anyio.create_task_group() as tg:
        tg.start_soon(lock.run, KEY, work)
        await wait_all_tasks_blocked()
        tg.start_soon(join, lock, results, "joiner", checkpoint)
        await wait_all_tasks_blocked()
        release.set()

    assert results == {"joiner": 7}


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["claim", "hold"])
async def test_a_claim_without_a_result_cannot_be_joined(lock, how):
    """Waiting for it and then running would do the work a second time."""
    results = {}
    with anyio.fail_after(5):
        if how == "claim":
            with lock.claim(KEY):
                await join(lock, results, "joiner", checkpoint)
        else:
            async with lock.hold(KEY):
                await join(lock, results, "joiner", checkpoint)

    assert isinstance(results["joiner"], AlreadyInFlight)


@pytest.mark.anyio
async def test_when_the_leader_is_cancelled_exactly_one_joiner_takes_over(lock):
    """The others keep waiting and share what the new leader gets."""
    release = anyio.Event()
    began, results = [], {}
    leader = anyio.CancelScope()

    def work_of(name):
        async def work():
            began.append(name)
            await release.wait()
            return f"by {name}"

        return work

    async def lead():
        with leader:
            await lock.run(KEY, work_of("leader"), on_busy=OnBusy.JOIN)

    async with anyio.create_task_group() as tg:
        tg.start_soon(lead)
        await wait_all_tasks_blocked()
        for name in "abc":
            tg.start_soon(join, lock, results, name, work_of(name))
            await wait_all_tasks_blocked()
        leader.cancel()
        await wait_all_tasks_blocked()
        assert began == ["leader", "a"]
        assert results == {}
        release.set()

    assert results == dict.fromkeys("abc", "by a")
    assert idle(lock)


@pytest.mark.anyio
async def test_a_cancelled_joiner_affects_nobody_else(lock):
    release = anyio.Event()
    results = {}
    scope = anyio.CancelScope()

    async def work():
        await release.wait()
        return 7

    async def impatient():
        with scope:
            await join(lock, results, "impatient", work)

    async with anyio.create_task_group() as tg:
        tg.start_soon(join, lock, results, "leader", work)
        await wait_all_tasks_blocked()
        tg.start_soon(impatient)
        tg.start_soon(join, lock, results, "joiner", work)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        release.set()

    assert results == {"leader": 7, "joiner": 7}


@pytest.mark.anyio
async def test_after_the_work_a_joiner_starts_a_new_run(lock):
    """Joining shares what is in flight; it is no cache."""
    ran = []

    async def work():
        ran.append(1)
        return len(ran)

    first = await lock.run(KEY, work, on_busy=OnBusy.JOIN)
    second = await lock.run(KEY, work, on_busy=OnBusy.JOIN)

    assert (first, second) == (1, 2)


# --- Every interleaving -------------------------------------------------------------------------------------


calls = st.lists(
    st.tuples(
        st.sampled_from(["hold", "run", "join", "wait_run", "wait_hold", "watch"]),
        st.integers(0, 1),  # key
        st.integers(0, 3),  # begins at
        st.integers(0, 4),  # works for
        st.integers(0, 6),  # is cancelled at; 0: never
        st.booleans(),  # fails
    ),
    min_size=2,
    max_size=9,
)


@given(calls=calls, seed=st.integers(0, 2**16), on_trio=st.booleans())
@pytest.mark.guarantee("G6")
def test_g6_one_runs_at_a_time_and_nobody_is_forgotten(calls, seed, on_trio):
    """Any mix of calls, work times, failures, cancellations and schedules: per key at most one works, every
    call ends, joiners get what a run that was under way got, and nothing is left behind.
    """
    inside = {0: 0, 1: 0}
    outcomes = {}

    async def main():
        lock = DedupLock()

        async def one(number, what, key, begins, works, cancelled, fails):  # noqa: PLR0917
            async def work():
                inside[key] += 1
                try:
                    assert inside[key] == 1
                    await anyio.sleep(works)
                    if fails:
                        raise ZeroDivisionError(number)
                    outcomes[number] = (key, number)
                    return key, number
                finally:
                    inside[key] -= 1

            await anyio.sleep(begins)
            with anyio.move_on_after(max(0, cancelled - begins) if cancelled else 1_000):
                try:
                    if what == "watch":
                        await lock.wait_free(key)
                    elif what.endswith("hold"):
                        on_busy = OnBusy.WAIT if what == "wait_hold" else OnBusy.FAIL
                        async with lock.hold(key, on_busy=on_busy):
                            await work()
                    else:
                        on_busy = {"run": "fail", "join": "join", "wait_run": "wait"}[what]
                        got = await lock.run(key, work, on_busy=OnBusy(on_busy))
                        assert outcomes[got[1]] == got
                        assert got[0] == key
                        assert what == "join" or got[1] == number
                except (AlreadyInFlight, ZeroDivisionError):
                    pass

        with anyio.fail_after(500):
            async with anyio.create_task_group() as tg:
                for number, call in enumerate(calls):
                    tg.start_soon(one, number, *call)
        assert idle(lock)

    (run_simulated_trio if on_trio else run_simulated)(main, seed=seed)


def test_cancelled_at_any_step_the_lock_is_left_clean():
    """Exhaustive: the whole crowd is cancelled before step 1, 2, 3 … of one run."""
    import asyncio

    locks = []

    async def main():
        lock = DedupLock()
        locks.append(lock)

        async def call(on_busy):
            try:
                await lock.run(KEY, lambda: anyio.sleep(1), on_busy=on_busy)
            except AlreadyInFlight:
                await lock.wait_free(KEY)

        async with anyio.create_task_group() as tg:
            for on_busy in [*OnBusy, *OnBusy]:
                tg.start_soon(call, on_busy)

    steps = count_steps(main)
    assert steps > 20
    for step in range(1, steps + 1):
        with contextlib.suppress(asyncio.CancelledError):
            run_simulated(main, cancel_at=step)
        assert all(idle(lock) for lock in locks), f"cancelled at step {step}"


def test_random_threads_and_waits_end(lock):
    """A stress run over threads, each with its own loop: every call comes to its end."""
    count = 0
    counted = threading.Lock()

    async def main(seed):
        nonlocal count
        chance = random.Random(seed)

        async def call():
            nonlocal count
            for _ in range(20):
                with anyio.move_on_after(0 if chance.random() < 0.3 else None):
                    with contextlib.suppress(AlreadyInFlight):
                        await lock.run(
                            chance.randrange(3), checkpoint, on_busy=OnBusy(chance.choice(["fail", "wait", "join"]))
                        )
                with counted:
                    count += 1

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tg:
                for _ in range(5):
                    tg.start_soon(call)

    threads = [
        threading.Thread(target=lambda n=n: anyio.run(main, n, backend=["asyncio", "trio"][n % 2])) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert count == 4 * 5 * 20
    assert idle(lock)
