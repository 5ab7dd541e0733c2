"""DedupLock within one process: one runs, the others are told at once, wait, or join."""

import gc
import threading
import time
import weakref

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from execsafe.clock import SystemClock
from execsafe.errors import AlreadyInFlight, InvalidInput
from execsafe.locks import DedupLock, OnBusy
from execsafe.testing.clock import ManualClock
from execsafe.testing.loop import run_simulated, run_simulated_trio

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


# --- Claims: synchronous ------------------------------------------------------------------------------------


def test_a_claimed_key_is_refused_to_everybody_also_to_the_same_caller(lock):
    """Claims belong to the object that was handed out, not to a task or thread: there is no re-entry."""
    assert lock.try_claim(KEY) is not None
    assert lock.try_claim(KEY) is None
    with pytest.raises(AlreadyInFlight) as refused:
        lock.claim(KEY)
    assert refused.value.context["key"] == '["exit","acc","BTC/USDT"]'


def test_a_released_key_is_free_again(lock):
    for _ in range(5):
        assert lock.claim(KEY).release()


def test_other_keys_are_unaffected(lock):
    assert all(lock.try_claim(("exit", "acc", symbol)) for symbol in ("BTC", "ETH", "XMR"))
    assert lock.in_flight(("exit", "acc", "BTC"))
    assert not lock.in_flight(("exit", "acc", "LTC"))


def test_only_the_current_claim_can_be_released(lock):
    """A caller that comes back late must not set free what a successor holds."""
    stale = lock.claim(KEY)
    assert stale.release()
    successor = lock.claim(KEY)

    assert not stale.release()
    assert not lock.release(stale)
    assert not DedupLock().release(successor)
    assert successor.is_valid(0)
    assert not stale.is_valid(0)
    assert lock.try_claim(KEY) is None


def test_a_with_block_releases_also_when_it_fails(lock):
    with pytest.raises(ZeroDivisionError), lock.claim(KEY):
        1 / 0  # noqa: B018

    assert idle(lock)


def test_tokens_only_grow(lock):
    tokens = [lock.claim(key).token for key in "abcd"]

    assert tokens == sorted(set(tokens))


def test_a_key_that_cannot_be_hashed_is_refused(lock):
    with pytest.raises(InvalidInput, match="hashable"):
        lock.try_claim(["a"])
    assert idle(lock)


class Yielding:
    """A key whose hash lets other threads run: between any look into the lock's table and the next one."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        time.sleep(0)
        return self.number

    def __eq__(self, other):
        return self.number == other.number


@pytest.mark.row("X-06")
def test_threads_that_claim_at_the_same_time_get_one_claim_between_them():
    lock = DedupLock()
    start = threading.Barrier(8)
    claims = []

    def race():
        start.wait()
        mine = [(number, lock.try_claim(Yielding(number))) for number in range(100)]
        claims.extend(mine)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    granted = [number for number, claim in claims if claim is not None]
    assert sorted(granted) == list(range(100))
    assert lock.statistics().rejected == 7 * 100


class Colliding:
    """A key that other keys are compared with in Python: any thread may run in the middle of a look-up."""

    def __init__(self, name, on_comparison):
        self.name, self.on_comparison = name, on_comparison

    def __hash__(self):
        return 1

    def __eq__(self, other):
        if self.name != other.name:
            self.on_comparison()
            other.on_comparison()
        return self.name == other.name


@pytest.mark.row("X-06")
def test_a_key_whose_comparison_lets_others_run_is_granted_once():
    """A dict's own setdefault() would grant it twice: it passes a place that is freed, and filled, behind its back."""
    lock = DedupLock()
    before, first = lock.claim(Colliding("before", lambda: None)), lock.claim(Colliding("first", lambda: None))
    before.release()  # leaves a place that a look-up passes and an insertion uses
    mine, theirs, in_lookup = [], [], threading.Event()

    def meanwhile():
        in_lookup.set()
        other.join(0.3)  # it must not get in; if it does, it is through long before

    def claim():
        in_lookup.wait(5)
        theirs.append(lock.try_claim(Colliding("second", lambda: None)))

    other = threading.Thread(target=claim, daemon=True)
    other.start()
    mine.append(lock.try_claim(Colliding("second", meanwhile)))
    other.join(5)

    assert sorted(claim is None for claim in mine + theirs) == [False, True]
    assert first.is_valid(0)


def test_no_waiter_comes_between_the_look_for_waiters_and_the_release():
    """It would never be woken. The hash lets other threads run in between."""
    lock = DedupLock()
    rounds, barrier = 150, threading.Barrier(2)

    def release():
        for number in range(rounds):
            claim = lock.claim(Yielding(number))
            barrier.wait(5)
            claim.release()

    async def wait():
        with anyio.fail_after(20):
            for number in range(rounds):
                barrier.wait(5)
                if number % 2:
                    await lock.wait_free(Yielding(number))
                else:
                    async with lock.hold(Yielding(number), on_busy=OnBusy.WAIT):
                        pass

    releaser = threading.Thread(target=release, daemon=True)
    releaser.start()
    try:
        anyio.run(wait)
    finally:
        barrier.abort()
    releaser.join(5)
    assert idle(lock)


@pytest.mark.parametrize("had_it", [False, True])
@pytest.mark.parametrize("act", ["claim", "release"])
def test_an_interrupt_leaves_the_lock_to_the_other_threads(lock, act, had_it):
    """Ctrl-C while a thread waits for its turn, or in the moment in which it has got it."""
    held = lock.claim("held")
    acquire = lock._acquire

    def interrupted():
        if had_it:
            acquire()
        raise KeyboardInterrupt

    lock._acquire = interrupted
    with pytest.raises(KeyboardInterrupt):
        lock.try_claim("new") if act == "claim" else held.release()
    lock._acquire = acquire
    claims = []
    other = threading.Thread(target=lambda: claims.append(lock.try_claim("new")), daemon=True)
    other.start()
    other.join(5)

    assert [claim.key for claim in claims] == ["new"]
    assert held.is_valid(0)


def test_a_claim_tells_since_when_it_is_held_by_any_clock():
    clock = ManualClock()
    assert DedupLock(clock=clock).claim(KEY).claimed_at_ms == clock.now_ms()
    system = SystemClock(elapsed_ns=lambda: 1_999_999, wall_ns=lambda: 5_000_000)
    assert DedupLock(clock=system).claim(KEY).claimed_at_ms == system.now_ms() == 5


def test_statistics_tell_the_age_of_the_oldest_claim():
    """One that only grows belongs to a caller that hangs."""
    clock = ManualClock()
    lock = DedupLock(clock=clock)
    assert lock.statistics().oldest_age_ms is None

    first = lock.claim("a")
    clock.advance(ms=70)
    lock.claim("b")
    clock.advance(ms=30)
    assert lock.statistics().oldest_age_ms == 100
    first.release()
    lock.try_claim("b")

    now = lock.statistics()
    assert (now.claimed, now.rejected, now.in_flight, now.oldest_age_ms) == (2, 1, 1, 30)


class ClaimsMachine(RuleBasedStateMachine):
    """Against a model: the set of claims that are out, by key."""

    def __init__(self):
        super().__init__()
        self.lock = DedupLock(clock=ManualClock())
        self.current = {}
        self.ended = []

    @rule(key=st.integers(0, 4))
    def claim(self, key):
        claim = self.lock.try_claim(key)
        assert (claim is None) == (key in self.current)
        if claim is not None:
            self.current[key] = claim

    @rule(key=st.integers(0, 4))
    def release(self, key):
        claim = self.current.pop(key, None)
        if claim is not None:
            assert claim.release()
            self.ended.append(claim)

    @rule(data=st.data())
    def release_again(self, data):
        if self.ended:
            assert not data.draw(st.sampled_from(self.ended)).release()

    @invariant()
    def current_claims_are_valid(self):
        assert self.lock.statistics().in_flight == len(self.current)
        assert all(claim.is_valid(0) for claim in self.current.values())
        assert not any(claim.is_valid(0) for claim in self.ended)


test_claims_behave_like_a_set_of_keys = ClaimsMachine.TestCase


# --- Concurrent calls: G6 -----------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.guarantee("G6")
@pytest.mark.row("S4-23", "D-01")
async def test_g6_of_five_concurrent_identical_calls_one_runs_and_four_are_told(lock):
    """Even when the work has no latency at all: it does not end before the others could see it."""
    ran, told = [], []

    async def work():
        ran.append(1)

    async def call():
        try:
            await lock.run(KEY, work)
        except AlreadyInFlight:
            told.append(1)

    async with anyio.create_task_group() as tg:
        for _ in range(5):
            tg.start_soon(call)

    assert (len(ran), len(told)) == (1, 4)
    assert idle(lock)


@pytest.mark.anyio
@pytest.mark.guarantee("G6")
async def test_g6_the_others_are_told_at_once_not_after_the_work(lock):
    """The work ends only when all four have been told: if they had to wait for it, this would never end."""
    told = 0
    all_told = anyio.Event()

    async def call():
        nonlocal told
        try:
            async with lock.hold(KEY):
                await all_told.wait()
        except AlreadyInFlight:
            told += 1
            if told == 4:
                all_told.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            for _ in range(5):
                tg.start_soon(call)

    assert told == 4


@pytest.mark.anyio
@pytest.mark.guarantee("G6")
@pytest.mark.row("S4-26")
async def test_g6_five_sequential_identical_calls_all_run(lock):
    ran = []

    async def work():
        ran.append(1)
        return len(ran)

    assert [await lock.run(KEY, work) for _ in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.anyio
@pytest.mark.guarantee("G6")
@pytest.mark.row("S4-34", "D-02")
@pytest.mark.parametrize("on_busy", list(OnBusy))
async def test_g6_unrelated_keys_never_wait_for_each_other(lock, on_busy):
    """All five are inside at the same time: each leaves only when the last has come."""
    inside = 0
    all_inside = anyio.Event()

    async def work():
        nonlocal inside
        inside += 1
        if inside == 5:
            all_inside.set()
        await all_inside.wait()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            for symbol in "ABCDE":
                tg.start_soon(lambda key: lock.run(key, work, on_busy=on_busy), symbol)

    assert inside == 5


@pytest.mark.anyio
async def test_an_exception_of_the_work_is_the_callers_and_frees_the_key(lock):
    async def work():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await lock.run(KEY, work)
    with pytest.raises(KeyError):
        async with lock.hold(KEY):
            raise KeyError

    assert idle(lock)


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_on_entering_leaves_the_key_free(lock):
    """The checkpoint after the claim is a place where cancellation arrives."""
    ran = []

    async def work():
        ran.append(1)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await lock.run(KEY, work)

    assert ran == []
    assert idle(lock)


@pytest.mark.anyio
async def test_a_block_has_nothing_to_join(lock):
    with pytest.raises(InvalidInput, match="run"):
        lock.hold(KEY, on_busy=OnBusy.JOIN)


@pytest.mark.anyio
@pytest.mark.parametrize("timeout_s", [-1.0, float("nan")])
async def test_a_senseless_time_out_is_refused(lock, timeout_s):
    with pytest.raises(InvalidInput, match="timeout_s"):
        await lock.wait_free(KEY, timeout_s)


@pytest.mark.anyio
async def test_listeners_hear_of_rejected_and_joined_calls_and_cannot_disturb():
    heard = []

    def listener(event):
        heard.append((event.type.value, event.subject, event.note, event.at_ms))
        raise ZeroDivisionError

    clock = ManualClock()
    lock = DedupLock(clock=clock, listener=listener)
    release = anyio.Event()
    async with anyio.create_task_group() as tg:
        tg.start_soon(lock.run, "k", release.wait)
        await wait_all_tasks_blocked()
        assert lock.try_claim("k") is None
        tg.start_soon(lambda: lock.run("k", release.wait, on_busy=OnBusy.JOIN))
        await wait_all_tasks_blocked()
        release.set()

    assert heard == [
        ("call_deduplicated", "k", "rejected", clock.now_ms()),
        ("call_deduplicated", "k", "joined", clock.now_ms()),
    ]


# --- Waiting --------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_waiters_get_the_key_one_at_a_time_in_order_of_arrival(lock):
    log = []

    async def call(name):
        async with lock.hold(KEY, on_busy=OnBusy.WAIT) as claim:
            assert claim.is_valid(0)
            log.append(f"{name} in")
            await checkpoint()
            log.append(f"{name} out")

    async with anyio.create_task_group() as tg:
        for name in "abc":
            tg.start_soon(call, name)
            await checkpoint()

    assert log == ["a in", "a out", "b in", "b out", "c in", "c out"]
    assert idle(lock)


@pytest.mark.anyio
async def test_a_newcomer_does_not_overtake_those_who_queue(lock):
    """The key passes on within the release itself; it is never free in between."""
    claim = lock.claim(KEY)
    order = []

    async def queue():
        async with lock.hold(KEY, on_busy=OnBusy.WAIT):
            order.append("queued")

    async with anyio.create_task_group() as tg:
        tg.start_soon(queue)
        await wait_all_tasks_blocked()
        claim.release()
        assert lock.try_claim(KEY) is None

    assert order == ["queued"]


def test_a_wait_ends_with_its_time_out(simulate):
    """Exactly then, with AlreadyInFlight, and without a trace."""

    async def main():
        lock = DedupLock()
        with lock.claim(KEY):
            began = anyio.current_time()
            with pytest.raises(AlreadyInFlight):
                async with lock.hold(KEY, on_busy=OnBusy.WAIT, timeout_s=2.5):
                    pytest.fail("got a key that is held")
            assert anyio.current_time() - began == pytest.approx(2.5)
            assert not await lock.wait_free(KEY, 1.5)
            with pytest.raises(AlreadyInFlight):
                await lock.run(KEY, checkpoint, on_busy=OnBusy.WAIT, timeout_s=0)
        assert idle(lock)
        assert lock.statistics().rejected == 2

    simulate(main)


@pytest.mark.anyio
async def test_wait_free_returns_when_the_claim_is_released(lock):
    assert await lock.wait_free(KEY)
    claim = lock.claim(KEY)
    seen = []

    async def watch():
        seen.append(await lock.wait_free(KEY))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(watch)
            await wait_all_tasks_blocked()
            assert seen == []
            claim.release()

    assert seen == [True] * 3
    assert lock.try_claim(KEY) is not None


@pytest.mark.anyio
async def test_a_watcher_sees_the_end_of_a_claim_even_if_the_key_passes_on(lock):
    claim = lock.claim(KEY)
    hold_on = anyio.Event()
    seen = []

    async def queue():
        async with lock.hold(KEY, on_busy=OnBusy.WAIT):
            await hold_on.wait()

    async def watch():
        seen.append(await lock.wait_free(KEY))
        hold_on.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            tg.start_soon(queue)
            tg.start_soon(watch)
            await wait_all_tasks_blocked()
            claim.release()

    assert seen == [True]


@pytest.mark.anyio
async def test_a_waiter_cancelled_in_the_moment_it_inherits_passes_the_key_on(lock):
    """Woken, but never to run: the wake-up must not be lost."""
    claim = lock.claim(KEY)
    got = []
    scopes = {}

    async def queue(name):
        with anyio.CancelScope() as scopes[name]:
            async with lock.hold(KEY, on_busy=OnBusy.WAIT):
                got.append(name)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            for name in "ab":
                tg.start_soon(queue, name)
                await wait_all_tasks_blocked()
            scopes["a"].cancel()
            claim.release()

    assert got[-1] == "b"
    assert idle(lock)


@pytest.mark.anyio
async def test_cancelled_waiters_leave_no_memory_behind(lock):
    """Bounded memory: waiting in vain for ever on a key that is never released."""
    claim = lock.claim(KEY)
    for _ in range(50):
        with anyio.move_on_after(0):
            await lock.wait_free(KEY)
        with anyio.move_on_after(0):
            await lock.run(KEY, checkpoint, on_busy=OnBusy.WAIT)

    assert lock.statistics().waiting == 0
    assert not claim._waiters.watching
    assert not claim._waiters.queueing


@pytest.mark.anyio
@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_waiters_in_another_threads_event_loop_are_woken(lock, other):
    """Also across the two kinds of loop, in both directions; hundreds of hand-overs, none lost."""
    rounds = 100
    inside = threading.Lock()
    done = []

    async def call():
        for _ in range(rounds):
            async with lock.hold(KEY, on_busy=OnBusy.WAIT):
                assert inside.acquire(blocking=False), "two inside at once"
                await checkpoint()
                inside.release()
        done.append(1)

    async def main():
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tg:
                tg.start_soon(call)
                tg.start_soon(call)

    async with anyio.create_task_group() as tg:
        tg.start_soon(anyio.to_thread.run_sync, lambda: anyio.run(main, backend=other))
        tg.start_soon(main)

    assert len(done) == 4
    assert idle(lock)


@pytest.mark.anyio
async def test_a_thread_without_any_event_loop_wakes_waiters(lock):
    claim = lock.claim(KEY)

    async with anyio.create_task_group() as tg:
        with anyio.fail_after(5):
            tg.start_soon(anyio.to_thread.run_sync, claim.release)
            assert await lock.wait_free(KEY)


def test_an_heir_whose_event_loop_is_gone_is_passed_over(lock):
    """A loop that was closed without cancelling its tasks must not take the key to its grave."""
    import asyncio

    claim = lock.claim(KEY)
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(lock.run(KEY, checkpoint, on_busy=OnBusy.WAIT)) for _ in range(3)]
    loop.run_until_complete(asyncio.sleep(0))
    assert lock.statistics().waiting == 3
    loop.close()

    assert claim.release()

    assert idle(lock)
    for task in tasks:
        task._log_destroy_pending = False  # the test buries them on purpose


@pytest.mark.anyio
async def test_the_lock_keeps_nothing_of_finished_work(lock):
    class Result:
        pass

    async def work():
        return Result()

    result = weakref.ref(await lock.run(KEY, work))
    gc.collect()

    assert result() is None
