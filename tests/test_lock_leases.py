"""DedupLock across processes: leases in a store, their renewal, loss and release. Virtual time throughout.

Several locks over one store play several processes.
"""

import asyncio
import contextlib
import enum
from decimal import Decimal

import anyio
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.errors import (
    AlreadyInFlight,
    InvalidInput,
    StaleFencingToken,
    StoreError,
    StoreUnavailable,
)
from execsafe.locks import DedupLock, OnBusy
from execsafe.ports import Batch, Put
from execsafe.stores.memory import MemoryStore
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import ProcessKilled, count_steps, run_simulated, run_simulated_trio

KEY = ("exit", "acc", "BTC/USDT")
NAME = 'lock:["exit","acc","BTC/USDT"]'


@pytest.fixture(params=[run_simulated, run_simulated_trio], ids=["asyncio", "trio"])
def simulate(request):
    """Run an async function in virtual time."""
    return request.param


class Unreliable(MemoryStore):
    """A store that can be made to fail: ``fails(batch)`` → "before" (refused), "after" (reply lost), "hang"."""

    def __init__(self):
        super().__init__()
        self.commits = []
        self.fails = lambda batch: None

    async def commit(self, batch):
        self.commits.append(batch)
        how = self.fails(batch)
        await anyio.sleep(0.01)
        if how == "hang":
            await anyio.sleep_forever()
        if how == "before":
            raise StoreUnavailable("down")
        lease = await super().commit(batch)
        if how == "after":
            raise StoreUnavailable("reply lost")
        return lease

    def lease(self):
        return self._leases.get(NAME)


@attrs.define
class World:
    """A store, its clock, and as many processes as wanted."""

    store: Unreliable = attrs.Factory(Unreliable)
    clock: VirtualClock = attrs.Factory(VirtualClock)

    def process(self, **options):
        return DedupLock(**{"store": self.store, "clock": self.clock, "lease_ttl_s": 30.0, **options})


def in_world(simulate, main):
    """Run ``main(world)``."""

    async def run():
        world = World()
        await world.store.open()
        with anyio.fail_after(100_000):
            return await main(world)

    return simulate(run)


async def refused(lock, **how):
    """Whether the key is taken."""
    try:
        async with lock.hold(KEY, **how):
            return False
    except AlreadyInFlight:
        return True


# --- Exclusion ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G6")
def test_g6_processes_that_share_a_store_exclude_each_other(simulate):
    """Told at once, without waiting for the lease to expire; free again right after the block."""

    async def main(world):
        one, two = world.process(), world.process()
        async with one.hold(KEY) as claim:
            assert claim.lease == world.store.lease()
            assert claim.token == claim.lease.token
            began = anyio.current_time()
            assert await refused(two)
            assert anyio.current_time() - began < 0.1
            assert two.statistics().rejected == 1
            assert two.statistics().in_flight == 0
        assert world.store.lease() is None
        assert not await refused(two)

    in_world(simulate, main)


def test_unrelated_keys_are_held_in_parallel(simulate):
    async def main(world):
        lock = world.process()

        async def work(key):
            async with lock.hold(key):
                await anyio.sleep(5)

        began = anyio.current_time()
        async with anyio.create_task_group() as tg:
            for key in "abcde":
                tg.start_soon(work, key)
        assert anyio.current_time() - began < 6

    in_world(simulate, main)


def test_locks_of_the_same_name_do_not_mistake_each_others_lease_for_their_own(simulate):
    """The holder name is for people; a restarted process with the same name is another process."""

    async def main(world):
        one, two = world.process(holder="bot-1"), world.process(holder="bot-1")
        async with one.hold(KEY) as claim:
            assert claim.lease.holder.startswith("bot-1#")
            assert await refused(two)

    in_world(simulate, main)


def test_wait_gets_the_lease_soon_after_its_release(simulate):
    async def main(world):
        one, two = world.process(), world.process()
        released_at = 0.0

        async def hold():
            nonlocal released_at
            async with one.hold(KEY):
                await anyio.sleep(7)
            released_at = anyio.current_time()

        async with anyio.create_task_group() as tg:
            tg.start_soon(hold)
            await anyio.sleep(1)
            async with two.hold(KEY, on_busy=OnBusy.WAIT):
                assert 0 <= anyio.current_time() - released_at < 1.1

    in_world(simulate, main)


def test_wait_ends_with_its_time_out(simulate):
    async def main(world):
        one, two = world.process(), world.process()
        async with one.hold(KEY):
            began = anyio.current_time()
            assert await refused(two, on_busy=OnBusy.WAIT, timeout_s=4)
            assert 4 <= anyio.current_time() - began < 4.1
        assert two.statistics().in_flight == 0

    in_world(simulate, main)


def test_within_a_process_waiting_calls_queue_and_ask_the_store_one_by_one(simulate):
    async def main(world):
        lock = world.process()
        tokens = []

        async def work():
            async with lock.hold(KEY, on_busy=OnBusy.WAIT) as claim:
                tokens.append(claim.token)
                await anyio.sleep(1)

        async with anyio.create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(work)
        assert tokens == sorted(set(tokens))
        assert len(tokens) == 3

    in_world(simulate, main)


def test_joining_works_within_a_process_and_not_beyond(simulate):
    """Another process's result is not here: its joiners are told."""

    async def main(world):
        one, two = world.process(), world.process()
        results = []

        async def work():
            await anyio.sleep(1)
            return 7

        async def join(lock):
            try:
                results.append(await lock.run(KEY, work, on_busy=OnBusy.JOIN))
            except AlreadyInFlight:
                results.append(None)

        async with anyio.create_task_group() as tg:
            tg.start_soon(join, one)
            await anyio.sleep(0.1)
            tg.start_soon(join, one)
            tg.start_soon(join, two)
            tg.start_soon(join, two)
        assert results == [None, None, 7, 7]

    in_world(simulate, main)


class Venue(enum.Enum):
    BINANCE = "binance"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("k", 'lock:"k"'),
        (("a", 1, True, None), 'lock:["a",1,true,null]'),
        ((Venue.BINANCE, ("x",)), 'lock:["binance",["x"]]'),
        (Decimal("1.50"), 'lock:{"decimal":"1.5"}'),
        ("ключ 🚀", 'lock:"ключ 🚀"'),
    ],
)
def test_a_lease_is_named_after_the_canonical_text_of_its_key(key, name, simulate):
    async def main(world):
        async with world.process().hold(key) as claim:
            assert claim.lease.name == name

    in_world(simulate, main)


@pytest.mark.parametrize("key", [1.5, b"k", frozenset("a"), ("a", (1.5,)), "k" * 1_000, Decimal("NaN"), object()])
def test_a_key_without_a_canonical_text_is_refused(key):
    with pytest.raises(InvalidInput):
        DedupLock(store=MemoryStore()).try_claim(key)


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf"), 86_401])
def test_a_senseless_lease_time_is_refused(ttl_s):
    with pytest.raises(InvalidInput, match="lease_ttl_s"):
        DedupLock(store=MemoryStore(), lease_ttl_s=ttl_s)


# --- Life of a lease ------------------------------------------------------------------------------------------


def test_work_may_take_many_times_the_lease_time(simulate):
    """The lease is renewed in the background and keeps its token."""

    async def main(world):
        one, two = world.process(lease_ttl_s=3), world.process()
        async with one.hold(KEY) as claim:
            token = claim.token
            for _ in range(100):
                await anyio.sleep(1)
                assert claim.is_valid(world.clock.now_ms())
                assert claim.token == token
            assert await refused(two)
        assert sum(batch.acquire is not None for batch in world.store.commits) < 120

    in_world(simulate, main)


@pytest.mark.guarantee("G7")
def test_g7_after_a_crash_the_lease_passes_on_when_it_expires_and_the_old_holder_is_fenced_off():
    """Killed while it holds the lease: nobody gets it before its time, then with a larger token."""
    world = World()

    async def crash():
        await world.store.open()
        async with world.process().hold(KEY) as claim:
            held.append(claim.lease)
            await anyio.sleep(1)

    async def successor():
        async with world.process().hold(KEY, on_busy=OnBusy.WAIT) as claim:
            assert world.clock.now_ms() >= world.store.commits[0].now_ms + 30_000
            assert world.clock.now_ms() <= held[0].expires_at_ms + 20  # asked in the very moment of its end
            assert claim.token > held[0].token
            with pytest.raises(StaleFencingToken):
                await world.store.commit(Batch(now_ms=world.clock.now_ms(), fence=held[0], puts=(put,)))
            await world.store.commit(Batch(now_ms=world.clock.now_ms(), fence=claim.lease, puts=(put,)))

    put = Put(collection="c", key="k", value=1, version=0)
    held = []
    for step in range(1, 200):
        if held:
            break
        world.store._leases.clear()
        with pytest.raises(ProcessKilled):
            run_simulated(crash, crash_at=step)
    run_simulated(successor)


def test_a_refused_renewal_cancels_the_work(simulate):
    """Somebody took the lease over (here: by a clock far ahead): stop writing, at the next renewal at the latest."""

    async def main(world):
        one = world.process()
        began = anyio.current_time()
        with pytest.raises(StaleFencingToken):  # noqa: PT012 - what the block itself sees is part of it
            async with one.hold(KEY) as claim:
                world.store._leases[NAME] = attrs.evolve(world.store.lease(), token=99, holder="thief")
                with pytest.raises(anyio.get_cancelled_exc_class()):
                    await anyio.sleep(1_000)
                assert not claim.is_valid(world.clock.now_ms())
                await anyio.sleep(1_000)
        assert anyio.current_time() - began < 10.1
        assert world.store.lease().holder == "thief"
        assert one.statistics().in_flight == 0

    in_world(simulate, main)


@pytest.mark.parametrize("how", ["before", "hang"])
def test_a_lease_that_cannot_be_renewed_ends_the_work_when_it_expires(how, simulate):
    """Not before, and not later: then somebody else may hold it."""

    async def main(world):
        one = world.process(lease_ttl_s=30)
        with pytest.raises(StaleFencingToken):  # noqa: PT012 - what the block itself sees is part of it
            async with one.hold(KEY) as claim:
                end_ms = claim.lease.expires_at_ms
                world.store.fails = lambda batch: how
                try:
                    await anyio.sleep(1_000)
                finally:
                    assert world.clock.now_ms() == end_ms
                    assert not claim.is_valid(end_ms)
        assert one.statistics().in_flight == 0

    in_world(simulate, main)


@pytest.mark.parametrize("how", ["before", "after", "hang"])
def test_an_outage_shorter_than_the_lease_goes_unnoticed(how, simulate):
    async def main(world):
        one = world.process(lease_ttl_s=30)
        async with one.hold(KEY) as claim:
            world.store.fails = lambda batch: how
            await anyio.sleep(25)
            world.store.fails = lambda batch: None
            await anyio.sleep(100)
            assert claim.is_valid(world.clock.now_ms())

    in_world(simulate, main)


def test_lost_at_the_last_moment_is_lost_too(simulate):
    """Work that ends without noticing must not be taken for work done under the lease."""

    async def main(world):
        one = world.process()

        async def stubborn():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(40)
            return "done"

        async with anyio.create_task_group():
            world.store.fails = lambda batch: "before" if batch.fence else None
            with pytest.raises(StaleFencingToken):
                await one.run(KEY, stubborn)

    in_world(simulate, main)


def test_the_works_own_error_is_not_hidden_by_a_lost_lease(simulate):
    """It may say what became of an order."""

    async def main(world):
        world.store.fails = lambda batch: "before" if batch.fence else None
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - what the block itself sees is part of it
            async with world.process().hold(KEY):
                try:
                    await anyio.sleep(1_000)
                finally:
                    raise ZeroDivisionError

    in_world(simulate, main)


def test_the_works_own_error_comes_as_it_was_raised(simulate):
    """Not wrapped into a group by the task that renews."""

    async def main(world):
        with pytest.raises(ZeroDivisionError):
            async with world.process().hold(KEY):
                raise ZeroDivisionError
        with pytest.raises(ExceptionGroup) as raised:
            async with world.process().hold(KEY):
                raise ExceptionGroup("its own", [ZeroDivisionError()])
        assert raised.value.message == "its own"
        assert world.store.lease() is None

    in_world(simulate, main)


# --- The store says no: fail closed ---------------------------------------------------------------------------


@pytest.mark.guarantee("G12")
@pytest.mark.parametrize("how", ["before", "after", "hang"])
@pytest.mark.parametrize("on_busy", list(OnBusy))
def test_g12_without_the_stores_yes_nothing_runs(how, on_busy, simulate):
    """Refused, reply lost or no answer: StoreError, the key is free in this process, and for all others at the
    latest when a lease that was granted unheard expires.
    """

    async def main(world):
        ran = []

        async def work():
            ran.append(1)

        one, two = world.process(), world.process()
        world.store.fails = lambda batch: how
        with pytest.raises(StoreError):
            await one.run(KEY, work, on_busy=on_busy)
        assert ran == []
        assert one.statistics().in_flight == 0
        world.store.fails = lambda batch: None
        began = anyio.current_time()
        await two.run(KEY, work, on_busy=OnBusy.WAIT)
        assert ran == [1]
        assert anyio.current_time() - began < 32

    in_world(simulate, main)


def test_a_release_that_fails_hides_no_result(simulate):
    """The lease then expires by itself."""

    async def main(world):
        one, two = world.process(), world.process()
        world.store.fails = lambda batch: "before" if batch.release else None

        async def work():
            return 7

        assert await one.run(KEY, work) == 7
        world.store.fails = lambda batch: "hang" if batch.release else None
        assert await one.run(("other",), work) == 7
        assert await refused(two)
        await anyio.sleep(30)
        assert not await refused(two)

    in_world(simulate, main)


def test_after_a_failed_release_the_next_call_of_the_same_lock_waits_like_any_other(simulate):
    """It must not inherit the token of a claim that has ended: late writes of that one would pass the fence."""

    async def main(world):
        one = world.process()
        world.store.fails = lambda batch: "before" if batch.release else None
        async with one.hold(KEY) as claim:
            token = claim.token
        world.store.fails = lambda batch: None
        assert await refused(one)
        async with one.hold(KEY, on_busy=OnBusy.WAIT) as claim:
            assert claim.token > token

    in_world(simulate, main)


def test_work_that_is_done_is_not_undone_by_a_cancellation_during_the_release(simulate):
    """The caller gets its result, and so do those who joined: it is not done a second time."""

    async def main(world):
        one = world.process()
        ran, results = [], []

        async def work():
            ran.append(1)
            await anyio.sleep(1)
            return 7

        async def lead():
            with anyio.CancelScope() as scope:
                world.store.fails = lambda batch: scope.cancel() if batch.release else None
                results.append(await one.run(KEY, work))

        async def join():
            results.append(await one.run(KEY, work, on_busy=OnBusy.JOIN))

        async with anyio.create_task_group() as tg:
            tg.start_soon(lead)
            await anyio.sleep(0.5)
            tg.start_soon(join)
        assert results == [7, 7]
        assert len(ran) == 1

    in_world(simulate, main)


def test_a_process_that_slept_through_its_lease_while_asking_does_not_run(simulate):
    """Suspended between question and answer: the lease that was granted is over."""

    async def main(world):
        world.store.fails = lambda batch: world.clock.skip(30_000) if batch.acquire else None
        with pytest.raises(StoreUnavailable):
            async with world.process().hold(KEY):
                pytest.fail("entered with an expired lease")

    in_world(simulate, main)


def test_a_store_that_answers_after_the_lease_is_over_grants_nothing(simulate):
    async def main(world):
        with pytest.raises(StoreUnavailable):
            async with world.process(lease_ttl_s=0.01).hold(KEY):
                pytest.fail("entered with an expired lease")

    in_world(simulate, main)


# --- Cancellation at every step -------------------------------------------------------------------------------


def test_cancelled_at_any_step_no_lease_is_left_behind():
    """Exhaustive: cancelled before step 1, 2, 3 … the lease was given back and the key is free."""
    worlds = []

    async def main():
        world = World()
        worlds.append((world, world.process()))
        await world.store.open()
        lock = worlds[-1][1]
        async with lock.hold(KEY):
            await anyio.sleep(15)
        await lock.run(KEY, lambda: anyio.sleep(15))

    steps = count_steps(main)
    assert steps > 20
    for step in range(1, steps + 1):
        with contextlib.suppress(asyncio.CancelledError):
            run_simulated(main, cancel_at=step)
        world, lock = worlds[-1]
        assert world.store.lease() is None, f"cancelled at step {step}"
        assert lock.statistics().in_flight == 0


# --- Any history ------------------------------------------------------------------------------------------------


troubles = st.lists(
    st.tuples(
        st.integers(0, 120),  # begins at
        st.integers(1, 60),  # lasts
        st.sampled_from(["before", "after", "hang"]),
    ),
    max_size=4,
)
workers = st.lists(
    st.tuples(
        st.integers(0, 60),  # begins at
        st.integers(0, 90),  # works for
        st.integers(0, 3) | st.just(200),  # is cancelled after
        st.sampled_from(["fail", "wait"]),
    ),
    min_size=2,
    max_size=6,
)


@given(troubles=troubles, workers=workers, seed=st.integers(0, 2**16), on_trio=st.booleans())
@pytest.mark.guarantee("G6", "G7")
def test_g7_two_valid_claims_never_coexist_whatever_the_store_does(troubles, workers, seed, on_trio):
    """Processes, outages, lost replies and hangs at any time: work under a valid claim is exclusive, tokens grow
    from holder to holder, and work never outlasts its claim.
    """
    valid = {}
    tokens = []

    async def main(world):
        def fails(batch):
            now_s = (world.clock.now_ms() - began_ms) / 1_000
            return next((how for at, lasts, how in troubles if at <= now_s < at + lasts), None)

        began_ms = world.clock.now_ms()
        world.store.fails = fails

        async def one(number, begins, works, cancelled, on_busy):
            lock = world.process(lease_ttl_s=12)
            await anyio.sleep(begins)
            with anyio.move_on_after(cancelled):
                try:
                    async with lock.hold(KEY, on_busy=OnBusy(on_busy)) as claim:
                        valid[number] = claim
                        tokens.append(claim.token)
                        now_ms = world.clock.now_ms()
                        assert [n for n, c in valid.items() if c.is_valid(now_ms)] == [number]
                        for _ in range(works * 2):
                            await anyio.sleep(0.5)
                            assert claim.is_valid(world.clock.now_ms() - 1)  # at the very end: either
                except (AlreadyInFlight, StoreError, StaleFencingToken):
                    pass
            assert lock.statistics().in_flight == lock.statistics().waiting == 0

        async with anyio.create_task_group() as tg:
            for number, worker in enumerate(workers):
                tg.start_soon(one, number, *worker)
        assert tokens == sorted(set(tokens))

    in_world(lambda run: run_simulated_trio(run, seed=seed) if on_trio else run_simulated(run, seed=seed), main)
