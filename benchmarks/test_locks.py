"""What a claim costs beside a bare awaited call under the cheapest lock that could replace it.

The promises are those of Python 3.13; 3.11 makes objects more slowly (claims: up to a quarter more).
"""

import asyncio
import contextlib

import anyio
from anyio.lowlevel import checkpoint

from execsafe.errors import AlreadyInFlight
from execsafe.locks import DedupLock, OnBusy
from execsafe.model.intent import Intent
from execsafe.retention import TTLStore
from execsafe.stores.memory import MemoryStore

N = 300
KEYS = [("exit", "acc", f"S{number}/USDT") for number in range(N)]


async def noop():
    pass


async def under_asyncio_lock():
    """The least that any async exclusion costs."""
    lock = asyncio.Lock()
    for _ in KEYS:
        async with lock:
            await noop()


async def under_anyio_lock():
    """Like `hold`, this one lets others run once."""
    lock = anyio.Lock()
    for _ in KEYS:
        async with lock:
            await noop()


def test_claim_and_release(benchmark, ratio, beside_async):
    lock = DedupLock()

    async def claims():
        for key in KEYS:
            claim = lock.try_claim(key)
            await noop()
            lock.release(claim)

    times = beside_async(claims, under_asyncio_lock, per=N, rounds=300)
    ratio("claim + no-op + release", *times, floor="asyncio.Lock + no-op", reach=2.1)
    benchmark(lambda: lock.release(lock.claim("k")))


def test_claim_remember_and_release_a_new_key(benchmark, ratio, beside_async):
    """Exclusion while in flight, and remembered as ended for two hours."""
    lock = DedupLock()

    async def claims():
        seen = TTLStore(max_entries=None)
        for key in KEYS:
            claim = lock.try_claim(key)
            await noop()
            seen.put_ended(key, None)
            lock.release(claim)

    async def claims_of_intents():
        seen = TTLStore(max_entries=None)
        for key in KEYS:
            intent = Intent(key=key[2], symbol=key[2], side="buy", quantity=1)
            claim = lock.try_claim(intent.identity)
            await noop()
            seen.put_ended(intent.identity, intent)
            lock.release(claim)

    def note(name, work, reach, aim):
        times = beside_async(work, under_asyncio_lock, per=N, rounds=300)
        ratio(name, *times, floor="asyncio.Lock + no-op", reach=reach, aim=aim)

    note("claim + no-op + remember + release", claims, reach=3.5, aim=2.5)
    # An intent is checked field by field when it is made, which is most of this.
    note("the same, with an Intent made for it", claims_of_intents, reach=16.0, aim=4.0)
    benchmark(lambda: lock.release(lock.claim("k")))


def test_a_repeat_of_a_remembered_key(benchmark, ratio, beside_async):
    """Told from memory, without a claim."""
    seen = TTLStore(max_entries=None)
    for key in KEYS:
        seen.put_ended(key, "result")

    async def repeats():
        for key in KEYS:
            assert seen.get(key) == "result"

    times = beside_async(repeats, under_asyncio_lock, per=N, rounds=300)
    ratio("repeat of a remembered key", *times, floor="asyncio.Lock + no-op", reach=0.55, aim=0.5)
    benchmark(seen.get, KEYS[0])


def test_a_refused_claim(benchmark, ratio, beside_async):
    lock = DedupLock()
    held = lock.claim("k")

    async def refused():
        for _ in range(N):
            lock.try_claim("k")

    async def raised():
        for _ in range(N):
            with contextlib.suppress(AlreadyInFlight):
                lock.claim("k")

    floor = "asyncio.Lock + no-op"
    ratio("refused: try_claim", *beside_async(refused, under_asyncio_lock, per=N), floor=floor, reach=1.15)
    ratio("refused: AlreadyInFlight", *beside_async(raised, under_asyncio_lock, per=N), floor=floor)
    benchmark(lock.try_claim, "k")
    held.release()


def test_hold_and_run(benchmark, ratio, beside_async):
    lock = DedupLock()

    async def hold():
        for key in KEYS:
            async with lock.hold(key):
                await noop()

    async def run():
        for key in KEYS:
            await lock.run(key, noop)

    floor = "anyio.Lock + no-op"
    ratio("hold + no-op", *beside_async(hold, under_anyio_lock, per=N), floor=floor, reach=1.3)
    ratio("run(no-op)", *beside_async(run, under_anyio_lock, per=N), floor=floor, reach=1.4)
    benchmark(lambda: None)


def test_sixty_four_callers_join_one_run(benchmark, ratio, beside_async):
    """Per caller, beside tasks that wait for one bare event."""
    lock = DedupLock()

    async def joined():
        async with anyio.create_task_group() as tg:
            for _ in range(64):
                tg.start_soon(lambda: lock.run("k", checkpoint, on_busy=OnBusy.JOIN))

    async def event():
        done = anyio.Event()
        async with anyio.create_task_group() as tg:
            for _ in range(64):
                tg.start_soon(done.wait)
            await checkpoint()
            done.set()

    times = beside_async(joined, event, per=64)
    ratio("run(JOIN), 64 callers, per caller", *times, floor="task waiting for an event", reach=2.5)
    benchmark(lambda: None)


def test_queueing_scales_with_the_number_of_callers(benchmark, ratio, beside_async):
    """500 callers queue for one key: a hand-over costs the same as with 25."""
    lock = DedupLock()

    async def queue(count):
        async with anyio.create_task_group() as tg:
            for _ in range(count):
                tg.start_soon(lambda: lock.run("k", noop, on_busy=OnBusy.WAIT))

    async def often_few():
        for _ in range(20):
            await queue(25)

    times = beside_async(lambda: queue(500), often_few, per=500, rounds=30)
    ratio("run(WAIT), 500 callers, per caller", *times, floor="25 callers, per caller", reach=2.0)
    benchmark(lambda: None)


def test_hold_with_a_lease(benchmark, ratio, beside_async):
    """Acquire, guard and release on the memory store: the lock's own share of a durable lease."""
    store = MemoryStore()
    lock = DedupLock(store=store)

    async def hold():
        await store.open()
        for key in KEYS[:30]:
            async with lock.hold(key):
                await noop()

    async def floor():
        for _ in range(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(noop)

    times = beside_async(hold, floor, per=30, rounds=100)
    ratio("hold + lease (memory)", *times, floor="task group with one task")
    benchmark(lambda: None)
