"""TTLStore: records expire a fixed time after their end, live ones never; bounded, by time as well as by number."""

import gc
import random
import threading
import time
import tracemalloc

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from execsafe.clock import SystemClock
from execsafe.core.retention import check_retention, dedup_retention_ms
from execsafe.errors import CapacityExceeded, InvalidInput
from execsafe.retention import Sweep, TTLStore
from execsafe.retention._ends import NEVER
from execsafe.testing.clock import EPOCH_MS, ManualClock, VirtualClock
from execsafe.testing.loop import run_simulated, run_simulated_trio

TTL_MS = 7_200_000


def a_system_clock() -> SystemClock:
    """The system's clock, moved by hand like a :class:`ManualClock`; stores read it in nanoseconds."""
    elapsed_ns = 123_456_789

    def advance(*, ms=0, s=0):
        nonlocal elapsed_ns
        elapsed_ns += round((ms + s * 1_000) * 1_000_000)

    clock = SystemClock(elapsed_ns=lambda: elapsed_ns, wall_ns=lambda: EPOCH_MS * 1_000_000)
    clock.advance = advance
    return clock


@pytest.fixture(params=[ManualClock, a_system_clock], ids=["ms", "ns"])
def clock(request):
    return request.param()


@pytest.fixture
def store(clock) -> TTLStore[str, int]:
    return TTLStore(max_entries=None, clock=clock)


# --- Life cycle -----------------------------------------------------------------------------------------------


@pytest.mark.row("S1-39", "S1-44")
def test_a_live_record_stays_however_old_it_is(store, clock):
    """Age does not count before the end: the order that rests for a month is the one that must be known."""
    store.put_live("a", 1)
    clock.advance(s=30 * 86_400)

    assert store.sweep().removed == 0
    assert store.get("a") == 1
    assert store.is_live("a")


@pytest.mark.row("S1-39")
def test_age_counts_from_the_end_and_expiry_is_exact_to_the_millisecond(store, clock):
    store.put_live("a", 1)
    clock.advance(s=86_400)
    assert store.mark_ended("a")

    clock.advance(ms=TTL_MS - 1)
    assert store.get("a") == 1
    clock.advance(ms=1)
    assert store.get("a") is None


@pytest.mark.parametrize(
    "look",
    [
        lambda store: store.get("a") is None,
        lambda store: store.get("a", 7) == 7,
        lambda store: "a" not in store,
        lambda store: len(store) == 0,
        lambda store: list(store) == [],
        lambda store: store.items() == [],
        lambda store: store.pop("a") is None,
        lambda store: store.key_of("alias") is None,
        lambda store: not store.mark_ended("a"),
        lambda store: not store.add_alias("a", "b"),
    ],
)
def test_what_is_expired_is_gone_for_every_reader_without_any_sweep(look, store, clock):
    store.put_live("a", 1)
    store.add_alias("a", "alias")
    store.mark_ended("a")
    assert not look(store)
    clock.advance(ms=TTL_MS)

    assert look(store)


def test_of_two_ends_the_first_one_counts(store, clock):
    """A terminal report that is delivered twice does not prolong the record's life."""
    store.put_live("a", 1)
    store.mark_ended("a")
    clock.advance(ms=TTL_MS - 1)
    assert store.mark_ended("a")
    clock.advance(ms=1)

    assert "a" not in store


def test_a_record_that_comes_back_to_life_stays(store, clock):
    """Late evidence: an order believed dead has filled. Its earlier end is void."""
    store.put_ended("a", 1)
    clock.advance(ms=TTL_MS - 1)
    store.put_live("a", 2)
    clock.advance(ms=TTL_MS)
    assert store.get("a") == 2

    store.mark_ended("a")
    clock.advance(ms=TTL_MS - 1)
    assert store.get("a") == 2
    clock.advance(ms=1)
    assert store.get("a") is None


def test_an_expired_record_does_not_lend_its_aliases_to_a_new_one(store, clock):
    """The key is used again after expiry, before any sweep: nothing of the old record clings to it."""
    store.put_live("a", 1)
    store.add_alias("a", "order-1")
    store.mark_ended("a")
    clock.advance(ms=TTL_MS)
    store.put_live("a", 2)

    assert store.key_of("order-1") is None


@pytest.mark.row("S1-36")
def test_the_time_of_the_end_is_the_stores_own(store, clock):
    """A given one may lie in the past (recovery), never in the future: that would keep a record for ever."""
    now_ms = clock.now_ms()
    store.put_ended("past", 1, now_ms - TTL_MS + 10)
    store.put_live("future", 2)
    store.mark_ended("future", now_ms + 10**12)
    store.put_ended("beyond", 3, now_ms + 10**12)

    clock.advance(ms=10)
    assert list(store) == ["future", "beyond"]
    clock.advance(ms=TTL_MS)
    assert list(store) == []


def test_an_end_reported_out_of_order_keeps_its_record_longer_never_shorter(store, clock):
    store.put_ended("new", 1)
    store.put_ended("old", 2, clock.now_ms() - TTL_MS)

    store.pop("new")

    assert store.sweep().oldest_age_ms == 0
    clock.advance(ms=TTL_MS)
    assert len(store) == 0


@pytest.mark.row("S1-40")
def test_a_clock_that_steps_back_loses_nothing(store, clock):
    store.put_ended("a", 1)
    clock.advance(s=-86_400)
    store.put_ended("b", 2)
    clock.advance(ms=TTL_MS - 1)
    assert list(store) == ["a", "b"]

    clock.advance(s=86_400)
    assert list(store) == ["a", "b"]
    clock.advance(ms=1)
    assert list(store) == []


def test_no_time_that_a_caller_gives_breaks_the_store(store, clock):
    """Records of another age, and sweeps by a time beyond all clocks."""
    store.put_live("old", 2)
    store.mark_ended("old", 0)
    store.put_ended("ancient", 1, -(10**15))
    assert store.sweep(10**18).removed == 2
    for number in range(2_000):
        store.put_ended(number, number, -(10**15))
    assert store.sweep().removed == 2_000
    with pytest.raises(TypeError):
        store.put_ended("in float milliseconds", 3, 1.5e12)
    assert len(store) == 0


def test_a_record_lives_out_its_last_nanosecond():
    clock = a_system_clock()
    store = TTLStore(max_entries=None, clock=clock)
    clock.advance(ms=0.999_999)
    store.put_ended("a", 1)
    clock.advance(ms=TTL_MS - 0.000_001)
    assert store.sweep(clock.now_ms()).removed == 0
    assert "a" in store
    clock.advance(ms=0.000_001)
    assert "a" not in store


# --- Aliases --------------------------------------------------------------------------------------------------


@pytest.mark.row("S1-37")
@pytest.mark.parametrize("leave", ["expire", "pop", "make room"])
def test_aliases_go_with_their_record(leave, clock):
    store = TTLStore(max_entries=1, clock=clock)
    store.put_live("intent-1", 1)
    assert store.add_alias("intent-1", "order-1")
    assert store.add_alias("intent-1", "order-1")
    assert store.add_alias("intent-1", ("binance", 42))
    assert store.key_of(("binance", 42)) == "intent-1"

    store.mark_ended("intent-1")
    if leave == "expire":
        clock.advance(ms=TTL_MS)
        store.sweep()
    elif leave == "pop":
        store.pop("intent-1")
    else:
        store.put_live("intent-2", 2)

    assert store._key_of == {}
    assert store._aliases == {}


def test_an_alias_leads_to_one_record_only(store):
    store.put_live("a", 1)
    store.put_live("b", 2)
    store.add_alias("a", "x")

    with pytest.raises(InvalidInput, match="another record"):
        store.add_alias("b", "x")
    assert store.key_of("x") == "a"
    assert not store.add_alias("unknown", "y")


# --- Bound ----------------------------------------------------------------------------------------------------


@pytest.mark.row("S1-42")
def test_the_oldest_ended_record_makes_room(clock):
    evicted = []
    store = TTLStore(max_entries=3, clock=clock, on_evict=lambda key, value: evicted.append((key, value)))
    for number, key in enumerate("abc"):
        store.put_live(key, number)
    for key in "cb":
        store.mark_ended(key)
        clock.advance(ms=1)

    store.put_live("d", 3)
    store.put_ended("e", 4)

    assert evicted == [("c", 2), ("b", 1)]
    assert list(store) == ["a", "d", "e"]


@pytest.mark.row("S1-42")
def test_live_records_never_make_room_and_the_caller_is_told(clock):
    store = TTLStore(max_entries=2, clock=clock)
    store.put_live("a", 1)
    store.put_live("b", 2)

    for put in (store.put_live, store.put_ended):
        with pytest.raises(CapacityExceeded) as full:
            put("c", 3)
        assert full.value.context == {"live": 2, "ended": 0, "max_entries": 2}
    store.put_live("a", 10)
    assert store.items() == [("a", 10), ("b", 2)]
    store.pop("b")
    store.put_live("c", 3)


@pytest.mark.row("D-19")
def test_what_must_be_remembered_does_not_make_room_either(clock):
    """Forgetting a signal for lack of room would execute its repeat."""
    store = TTLStore(max_entries=1, retain_s=60, clock=clock)
    store.put_ended("a", 1)
    clock.advance(ms=59_999)
    with pytest.raises(CapacityExceeded):
        store.put_ended("b", 2)

    clock.advance(ms=1)
    store.put_ended("b", 2)
    assert list(store) == ["b"]


def test_expired_records_make_room_before_all_others(clock):
    evicted = []
    store = TTLStore(max_entries=3, clock=clock, on_evict=lambda key, value: evicted.append(key))
    store.put_ended("a", 1)
    store.put_ended("b", 2)
    clock.advance(ms=TTL_MS)
    store.put_ended("c", 3)
    store.put_ended("d", 4)

    assert sorted(evicted) == ["a", "b"]


# --- Sweeps ---------------------------------------------------------------------------------------------------


@pytest.mark.row("S1-41")
def test_a_sweep_reports_also_when_it_removed_nothing(store, clock):
    assert store.sweep() == Sweep(removed=0, remaining=0, live=0, oldest_age_ms=None)

    store.put_live("a", 1)
    store.put_ended("b", 2)
    clock.advance(s=60)
    store.put_ended("c", 3)
    assert store.sweep() == Sweep(removed=0, remaining=3, live=1, oldest_age_ms=60_000)
    clock.advance(ms=TTL_MS - 60_000)
    assert store.sweep() == Sweep(removed=1, remaining=2, live=1, oldest_age_ms=TTL_MS - 60_000)


def test_the_reported_age_is_of_a_record_that_exists(store, clock):
    """Not of one that was popped or came back to life meanwhile."""
    store.put_ended("a", 1)
    store.put_ended("b", 2)
    clock.advance(s=60)
    store.put_ended("c", 3)
    store.pop("a")
    store.put_live("b", 2)

    assert store.sweep().oldest_age_ms == 0


@pytest.mark.row("S1-32", "S1-33")
@pytest.mark.parametrize("simulate", [run_simulated, run_simulated_trio])
def test_time_alone_empties_the_store(simulate):
    """No traffic for hours: every interval a sweep, reported also if it removed nothing; a record's memory is
    returned at the latest one interval after it expired.
    """

    async def main():
        clock = VirtualClock()
        store = TTLStore(max_entries=None, clock=clock)
        sweeps = []

        def on_sweep(sweep):
            sweeps.append((sweep.removed, sweep.remaining, sweep.oldest_age_ms))
            raise ZeroDivisionError

        async with anyio.create_task_group() as tg:
            await tg.start(lambda task_status: store.run_sweeper(on_sweep=on_sweep, task_status=task_status))
            await anyio.sleep(1_800)
            for number in range(2_000):
                store.put_ended(number, number)
            await anyio.sleep(4 * 3_600)
            assert store._ended == {}
            tg.cancel_scope.cancel()

        assert sweeps == [(0, 2_000, 1_800_000), (0, 2_000, 5_400_000), (2_000, 0, None), (0, 0, None)]

    simulate(main)


@pytest.mark.row("S1-43")
def test_others_run_between_the_steps_of_a_sweep():
    """A sweep of 5,000 records must not stop the event loop until it is through."""

    async def main():
        clock = VirtualClock()
        store = TTLStore(max_entries=None, clock=clock, ttl_s=60, sweep_interval_s=100)
        for number in range(5_000):
            store.put_ended(number, number)
        sizes = set()

        async with anyio.create_task_group() as tg:
            tg.start_soon(store.run_sweeper)
            await anyio.sleep(99.9)
            with anyio.move_on_after(1):
                while store._ended:
                    sizes.add(len(store._ended))
                    await anyio.sleep(0.1 if len(store._ended) == 5_000 else 0)
            tg.cancel_scope.cancel()
        assert len(sizes) > 3

    run_simulated(main, seed=None)


def test_after_a_sweep_readers_look_for_nothing_until_something_is_due(store, clock):
    """Otherwise every read would pay for a look into the queue."""
    store.put_ended("a", 1)
    clock.advance(ms=10)
    store.put_ended("b", 2)
    clock.advance(ms=TTL_MS - 10)
    store.sweep()
    assert store._due == store._ticks.at_ms(clock.now_ms() + 10)

    clock.advance(ms=10)
    store.sweep()
    assert store._due == NEVER


def test_a_hook_that_fails_disturbs_nobody(clock):
    def on_evict(key, value):
        raise ZeroDivisionError

    store = TTLStore(max_entries=None, clock=clock, on_evict=on_evict)
    store.put_ended("a", 1)
    clock.advance(ms=TTL_MS)

    assert store.sweep().removed == 1


def test_a_hook_may_use_the_store(clock):
    """It is called outside of the lock, when its record is gone."""
    store = TTLStore(max_entries=1, clock=clock, on_evict=lambda key, value: seen.append((key in store, len(store))))
    seen = []
    store.put_ended("a", 1)
    store.put_ended("b", 2)

    assert seen == [(False, 1)]


@pytest.mark.parametrize("had_it", [False, True])
@pytest.mark.parametrize("act", [
    lambda store: store.put_live("new", 1),
    lambda store: store.put_ended("new", 1),
    lambda store: store.mark_ended("live"),
])  # fmt: skip
def test_an_interrupt_leaves_the_store_to_the_other_threads(store, act, had_it):
    """Ctrl-C while a thread waits for the lock, or in the moment in which it has got it."""
    store.put_live("live", 0)
    acquire = store._acquire

    def interrupted():
        if had_it:
            acquire()
        raise KeyboardInterrupt

    store._acquire = interrupted
    with pytest.raises(KeyboardInterrupt):
        act(store)
    store._acquire = acquire
    other = threading.Thread(target=store.put_live, args=("other", 1), daemon=True)
    other.start()
    other.join(5)

    assert not other.is_alive()
    assert list(store) == ["live", "other"]


@pytest.mark.parametrize("seed", range(2))
def test_a_finaliser_that_comes_back_in_the_middle_of_a_put_takes_nothing_away(seed):
    """The garbage collector runs it wherever an object is made: with this threshold, nearly everywhere."""
    chance = random.Random(seed)
    clock = a_system_clock()
    store = TTLStore(max_entries=None, clock=clock)
    keys = iter(range(10**6))
    is_over = False

    def put():
        clock.advance(ms=chance.random())
        if chance.random() < 0.5:
            store.put_ended(next(keys), Garbage())
        else:
            store.put_live(key := next(keys), Garbage())
            store.mark_ended(key)

    class Garbage:
        def __init__(self):
            self.itself = self  # a cycle: only the collector finds it

        def __del__(self):
            if not is_over:
                put()

    thresholds = gc.get_threshold()
    gc.set_threshold(3)
    try:
        for _ in range(3_000):
            Garbage()
            put()
    finally:
        gc.set_threshold(*thresholds)
        is_over = True
    count = next(keys)
    assert len(store) == count > 5_000
    clock.advance(ms=TTL_MS)
    assert store.sweep().removed == count
    assert len(store) == 0


class Yielding:
    """A key whose hash lets other threads run: between any two looks into the store."""

    def __hash__(self):
        time.sleep(0)
        return 1


def test_a_record_that_ends_and_comes_back_is_there_all_the_time(store):
    """A reader takes no lock as long as it finds what it looks for, wherever the record is just being moved to."""
    key, value = Yielding(), object()
    store.put_live(key, value)
    is_over = threading.Event()

    def move():
        for _ in range(1_500):
            store.mark_ended(key)
            store.put_live(key, value)
        is_over.set()

    mover = threading.Thread(target=move)
    mover.start()
    seen = []
    while not is_over.is_set():
        seen.append(store.get(key) is value and key in store and len(store) == 1)
    mover.join()

    assert all(seen)


def test_the_order_of_records_is_that_of_insertion_while_they_live_and_of_their_end_after(store):
    for key in "abcd":
        store.put_live(key, 0)
    store.put_live("b", 1)
    for key in "da":
        store.mark_ended(key)
    assert store.items() == [("b", 1), ("c", 0), ("d", 0), ("a", 0)]
    store.put_ended("d", 2)
    store.put_live("a", 2)
    assert list(store) == ["b", "c", "a", "d"]


def test_threads_share_a_store():
    """Concurrent inserts, ends, reads and sweeps: nothing is lost, nothing stays."""
    clock = ManualClock()
    store = TTLStore(max_entries=None, clock=clock)
    stop = threading.Event()

    def sweep():
        while not stop.is_set():
            clock.advance(ms=TTL_MS // 50)
            store.sweep()

    def work(thread):
        for number in range(2_000):
            store.put_live((thread, number), number)
            assert store.get((thread, number)) == number
            assert store.mark_ended((thread, number))

    sweeper = threading.Thread(target=sweep)
    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in [sweeper, *workers]:
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    sweeper.join()
    clock.advance(ms=TTL_MS)

    assert len(store) == 0
    assert store._live == {}


# --- Memory: G14 ------------------------------------------------------------------------------------------------


@pytest.mark.guarantee("G14")
@pytest.mark.row("X-09")
def test_g14_memory_is_flat_over_many_life_cycles(clock):
    """What counts is what is kept at a time, not what has passed through: 60,000 lives, at most 2,000 at once."""
    store = TTLStore(max_entries=None, clock=clock, ttl_s=100)

    def lives(count):
        for number in range(count):
            store.put_live(number, None)
            store.add_alias(number, -number)
            clock.advance(ms=50)
            store.mark_ended(number)
            if number % 3 == 0:
                store.pop(number)

    lives(20_000)
    tracemalloc.start()
    try:
        lives(20_000)
        before, _ = tracemalloc.get_traced_memory()
        lives(20_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(store) <= 2_000
    assert after - before < 20_000


@pytest.mark.campaign
@pytest.mark.guarantee("G14")
def test_g14_memory_is_flat_over_a_million_life_cycles(clock):
    """The long version: ten chunks of 100,000 lives, peak memory of the last no higher than of the second."""
    store = TTLStore(max_entries=None, clock=clock, ttl_s=100)
    peaks = []
    tracemalloc.start()
    try:
        for chunk in range(10):
            tracemalloc.reset_peak()
            for number in range(chunk * 100_000, (chunk + 1) * 100_000):
                store.put_live(number, None)
                store.mark_ended(number)
                clock.advance(ms=50)
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()

    assert peaks[-1] <= peaks[1] * 1.1


@pytest.mark.guarantee("G14")
def test_g14_a_key_that_comes_and_goes_leaves_nothing_behind(store):
    """Within the time to live, so that nothing ever expires: ended and popped, ended and revived, over and over."""
    for number in range(10_000):
        store.put_ended("a", number)
        store.pop("a")
        store.put_ended("b", number)
        store.put_live("b", number)

    queued = sum(len(block.keys) for block in store._ends._blocks) + len(store._ends.tail) / 2
    assert queued < 3_000


# --- Any history ------------------------------------------------------------------------------------------------


class RetentionMachine(RuleBasedStateMachine):
    """Against a naive model: a dict of (value, end or None), over hours of virtual time and hourly sweeps."""

    keys = st.integers(0, 12)

    @initialize(
        max_entries=st.none() | st.integers(1, 8),
        retain_s=st.sampled_from([0, 600, 7_200]),
        make_clock=st.sampled_from([ManualClock, a_system_clock]),
    )
    def make(self, max_entries, retain_s, make_clock):
        self.clock = make_clock()
        self.max_entries, self.retain_ms = max_entries, retain_s * 1_000
        self.evicted = []
        self.store = TTLStore(
            max_entries=max_entries,
            retain_s=retain_s,
            clock=self.clock,
            on_evict=lambda key, value: self.evicted.append((key, value)),
        )
        self.model = {}
        self.gone = []
        self.ends = 0  # ends of the same instant leave in the order in which they came

    # The model: what must be there, and what must have been evicted.

    def expire(self):
        now_ms = self.clock.now_ms()
        due = sorted((ended, key) for key, (_, ended) in self.model.items() if ended and ended[0] + TTL_MS <= now_ms)
        for _, key in due:
            self.gone.append((key, self.model.pop(key)[0]))

    def put(self, key, value, is_live):
        self.expire()
        if key not in self.model and self.max_entries is not None and len(self.model) >= self.max_entries:
            ended = [(end, k) for k, (_, end) in self.model.items() if end]
            oldest = min(ended, default=None)
            if oldest is None or oldest[0][0] > self.clock.now_ms() - self.retain_ms:
                return False
            self.gone.append((oldest[1], self.model.pop(oldest[1])[0]))
        self.model[key] = (value, None if is_live else self.end())
        return True

    def end(self):
        self.ends += 1
        return self.clock.now_ms(), self.ends

    # The operations.

    @rule(key=keys, value=st.integers(), is_live=st.booleans())
    def put_record(self, key, value, is_live):
        fits = self.put(key, value, is_live)
        put = self.store.put_live if is_live else self.store.put_ended
        if fits:
            put(key, value)
        else:
            with pytest.raises(CapacityExceeded):
                put(key, value)

    @rule(key=keys)
    def mark_ended(self, key):
        self.expire()
        assert self.store.mark_ended(key) == (key in self.model)
        if key in self.model and self.model[key][1] is None:
            self.model[key] = (self.model[key][0], self.end())

    @rule(key=keys)
    def pop(self, key):
        self.expire()
        assert self.store.pop(key) == self.model.pop(key, (None,))[0]

    @rule(key=keys)
    def alias(self, key):
        self.expire()
        assert self.store.add_alias(key, f"alias of {key}") == (key in self.model)

    @rule(s=st.sampled_from([0.001, 1, 300, 3_600, 7_199.999, 7_200]))
    def wait(self, s):
        self.clock.advance(s=s)

    @rule()
    def sweep(self):
        before = len(self.evicted)
        self.expire()
        swept = self.store.sweep()
        assert swept.removed == len(self.evicted) - before
        ends = [end[0] for _, end in self.model.values() if end]
        assert swept == Sweep(
            removed=swept.removed,
            remaining=len(self.model),
            live=len(self.model) - len(ends),
            oldest_age_ms=self.clock.now_ms() - min(ends) if ends else None,
        )

    @rule(key=keys)
    def get(self, key):
        self.expire()
        assert self.store.get(key) == self.model.get(key, (None,))[0]
        assert self.store.is_live(key) == (key in self.model and self.model[key][1] is None)

    @precondition(lambda self: self.model)
    @invariant()
    def same_content(self):
        self.expire()
        assert dict(self.store.items()) == {key: value for key, (value, _) in self.model.items()}
        assert self.evicted == self.gone

    @invariant()
    def bounded_and_no_alias_leaks(self):
        if not hasattr(self, "store"):
            return
        live, ended = set(self.store._live), set(self.store._ended)
        assert self.max_entries is None or len(live | ended) <= self.max_entries
        assert set(self.store._aliases) <= live | ended
        assert set(self.store._key_of.values()) <= live | ended
        assert not live & ended


test_g14_behaves_like_a_naive_model_over_hours = RetentionMachine.TestCase
test_g14_behaves_like_a_naive_model_over_hours.pytestmark = [pytest.mark.guarantee("G14")]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_the_queue_of_ends_keeps_its_order_over_many_blocks(seed):
    """Long histories with revivals: blocks are filled, cut and rebuilt; expiry stays exact."""
    chance = random.Random(seed)
    clock = ManualClock()
    store = TTLStore(max_entries=None, clock=clock, ttl_s=2)
    ends = {}
    slowness = chance.choice([1, 3, 30])
    for number in range(4_000):
        key = chance.randrange(700)
        if number % 1_000 == 999:
            now_ms = clock.now_ms()
            ends = {key: end for key, end in ends.items() if end + 2_000 > now_ms}
            assert set(store) == set(ends)
        if chance.random() < 0.3:
            clock.advance(ms=chance.randrange(slowness))
        elif chance.random() < 0.2:
            store.pop(key)
            ends.pop(key, None)
        else:
            store.put_ended(key, number)
            ends[key] = clock.now_ms()


# --- The rule of retention ----------------------------------------------------------------------------------


@pytest.mark.row("D-19", "S1-38")
def test_the_shortest_retention_covers_age_skew_and_delay():
    assert dedup_retention_ms(300_000, 2_000, 60_000) == 362_000


@given(age_ms=st.integers(0, 10**6), skew_ms=st.integers(-(10**5), 10**5), delay_ms=st.integers(0, 10**6))
def test_whatever_could_still_be_accepted_is_still_remembered(age_ms, skew_ms, delay_ms):
    """A message made at 0, stamped by a clock that is off by *skew_ms*, executed at once; and its repeat, checked
    in the last moment in which it is acceptable and executed after the longest delay: the record is still there.
    """
    last_check_ms = skew_ms + age_ms
    last_execution_ms = last_check_ms + delay_ms

    assert last_execution_ms <= dedup_retention_ms(age_ms, abs(skew_ms), delay_ms)


def test_a_store_that_forgets_too_early_is_refused():
    with pytest.raises(InvalidInput, match=r"7200000 ms.*7200001 ms"):
        TTLStore(max_entries=None, retain_s=7_200.001)
    check_retention(5, 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttl_s": 0},
        {"ttl_s": float("nan")},
        {"ttl_s": float("inf")},
        {"sweep_interval_s": 0},
        {"retain_s": -1},
        {"max_entries": 0},
    ],
)
def test_a_senseless_store_is_refused(wrong):
    with pytest.raises(InvalidInput):
        TTLStore(**{"max_entries": None, **wrong})


def test_negative_times_have_no_retention():
    with pytest.raises(InvalidInput):
        dedup_retention_ms(-1, 0, 0)
