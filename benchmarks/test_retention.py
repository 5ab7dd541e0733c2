"""TTLStore beside cachetools.TTLCache, which is neither thread-safe nor knows what is live."""

import time
import tracemalloc

import cachetools

from execsafe.clock import SystemClock
from execsafe.retention import TTLStore

N = 20_000
TTL_S = 7_200
KEYS = [f"intent-{number}" for number in range(N)]
VALUE = object()
JUST_GROWN = 2 * (1 << 20) // 3 + 1
"""A dict of 2 ** 20 places grows with the entry that would fill more than two thirds of them."""


def cache():
    return cachetools.TTLCache(maxsize=2 * N, ttl=TTL_S)


def fill_cache(target):
    for key in KEYS:
        target[key] = VALUE
    return target


def fill_live(target):
    put = target.put_live
    for key in KEYS:
        put(key, VALUE)
    return target


def fill_ended(target):
    put = target.put_ended
    for key in KEYS:
        put(key, VALUE)
    return target


def end_all(target):
    end = target.mark_ended
    for key in KEYS:
        end(key)


def store():
    return TTLStore(max_entries=2 * N)


def test_insert(benchmark, ratio, beside):
    def note(name, work, make, reach=None, aim=None):
        times = beside(work, fill_cache, per=N, rounds=15, prepare=(make, cache))
        ratio(name, *times, floor="cachetools insert", reach=reach, aim=aim)

    note("TTLStore.put_live", fill_live, store, reach=0.29)
    note("TTLStore.put_ended", fill_ended, store, reach=0.52, aim=1 / 3)
    note("TTLStore.mark_ended", end_all, lambda: fill_live(store()), reach=0.52, aim=1 / 3)
    benchmark.pedantic(fill_live, setup=lambda: ((store(),), {}), rounds=3)


def test_sweep(benchmark, ratio, beside):
    later_ms = SystemClock().now_ms() + 2 * TTL_S * 1_000
    later_s = time.monotonic() + 2 * TTL_S

    times = beside(
        lambda full: full.sweep(later_ms),
        lambda full: full.expire(later_s),
        per=N,
        rounds=15,
        prepare=(lambda: fill_ended(store()), lambda: fill_cache(cache())),
    )
    ratio("TTLStore.sweep, per record", *times, floor="cachetools expire", reach=1 / 5)
    benchmark.pedantic(lambda full: full.sweep(later_ms), setup=lambda: ((fill_ended(store()),), {}), rounds=3)


def test_get(benchmark, ratio, beside):
    def read(full):
        get = full.get
        for key in KEYS:
            get(key)

    full, cached = fill_ended(store()), fill_cache(cache())
    times = beside(lambda: read(full), lambda: read(cached), per=N, rounds=15)
    ratio("TTLStore.get", *times, floor="cachetools get", reach=0.18)
    benchmark(read, full)


def test_memory(benchmark, ratio):
    """Bytes an entry, without key and value: at a million entries, and where the tables have just grown."""

    def grown(make, put, count):
        keys = [str(number) for number in range(count)]
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        made = make()
        for key in keys:
            put(made, key)
        size = (tracemalloc.get_traced_memory()[0] - before) / len(keys)
        tracemalloc.stop()
        return size

    def note(name, count, reach_ended, reach_live):
        ended = grown(lambda: TTLStore(max_entries=None), lambda made, key: made.put_ended(key, VALUE), count)
        live = grown(lambda: TTLStore(max_entries=None), lambda made, key: made.put_live(key, VALUE), count)
        ratio(f"TTLStore, bytes an ended record{name}", ended, 64, floor="64 bytes", reach=reach_ended)
        ratio(f"TTLStore, bytes a live record{name}", live, 64, floor="64 bytes", reach=reach_live)

    note("", 1_000_000, 0.8, 0.55)
    note(" at worst", JUST_GROWN, 1.0, 0.75)
    benchmark(lambda: None)
