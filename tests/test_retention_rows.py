"""TTLStore against what an earlier system's clean-up got wrong, row by row."""

from __future__ import annotations

import threading

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.catalogue import CATALOGUE
from execsafe.core.retention import dedup_retention_ms
from execsafe.errors import CapacityExceeded, InvalidInput
from execsafe.model.event import Event, EventType
from execsafe.model.intent import TERMINAL, IntentState
from execsafe.retention import TTLStore, tell_sweeps
from execsafe.testing.clock import ManualClock, VirtualClock
from execsafe.testing.loop import run_simulated, run_simulated_trio

TTL_S, INTERVAL_S = 7_200, 3_600


@pytest.mark.row("S1-31", "S1-32")
@pytest.mark.row("D-09")
def test_orders_do_not_pile_up_and_none_is_older_than_life_and_interval():
    """45 orders ended long ago, 12 recently: the defaults (7200 s, 3600 s) keep the 12."""
    clock = ManualClock()
    store = TTLStore[int, str](max_entries=None, clock=clock)
    for n in range(45):
        store.put_ended(n, "filled")
    clock.advance(s=TTL_S - 10)
    for n in range(45, 57):
        store.put_ended(n, "filled")
    clock.advance(s=10)
    swept = store.sweep()
    assert (swept.removed, swept.remaining) == (45, 12)
    assert swept.oldest_age_ms < (TTL_S + INTERVAL_S) * 1000


@pytest.mark.row("S1-41", "S1-33", "S1-34")
@pytest.mark.parametrize("simulate", [run_simulated, run_simulated_trio])
def test_every_sweep_is_an_event_also_one_that_removed_nothing(simulate):
    """Once an interval for as long as it runs: not on every call, and not only with traffic."""

    async def main():
        clock = VirtualClock()
        events: list[Event] = []
        store = TTLStore[int, int](max_entries=None, clock=clock)
        on_sweep = tell_sweeps("orders", [events.append], clock=clock)
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda task_status: store.run_sweeper(on_sweep=on_sweep, task_status=task_status))
            await anyio.sleep(1_800)
            for n in range(45):
                store.put_ended(n, n)
            await anyio.sleep(4 * INTERVAL_S)
            tasks.cancel_scope.cancel()
        assert {(e.type, e.subject) for e in events} == {(EventType.STORE_SWEPT, "orders")}
        told = [e.details.thaw() for e in events]
        assert [t["removed"] for t in told] == [0, 0, 45, 0]
        assert [t["remaining"] for t in told] == [45, 45, 0, 0]
        assert all(set(t) == set(CATALOGUE[EventType.STORE_SWEPT].details) for t in told)

    simulate(main)


@pytest.mark.row("S1-41")
def test_a_listener_that_raises_does_not_end_the_sweeps():
    def bad(event):
        raise ZeroDivisionError

    clock = ManualClock()
    heard: list[Event] = []
    store = TTLStore[int, int](max_entries=None, clock=clock)
    tell_sweeps("orders", [bad, heard.append], clock=clock)(store.sweep())
    assert len(heard) == 1


@pytest.mark.row("S1-34")
@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 4_000_000), min_size=1, max_size=60))
def test_a_record_is_removed_once_however_often_it_is_swept(pauses):
    """What a sweep costs is what it removes: their sum is never more than what was put in."""
    clock = ManualClock()
    store = TTLStore[int, int](max_entries=None, clock=clock)
    removed = []
    for n, pause in enumerate(pauses):
        store._ended and removed.append(store.sweep().removed)
        store.put_ended(n, n)
        clock.advance(ms=pause)
    clock.advance(s=TTL_S)
    removed.append(store.sweep().removed)
    assert sum(removed) <= len(pauses)
    assert store.sweep().removed == 0
    assert len(store) == 0


@pytest.mark.row("S1-35")
def test_every_state_in_which_nothing_more_is_expected_is_terminal():
    """By the enum, not by a list of words: ``cancelled`` for ``canceled`` once kept everything for ever."""
    assert {state.value for state in TERMINAL} == {"filled", "canceled", "expired", "rejected", "failed_final"}
    clock = ManualClock()
    store = TTLStore[str, int](max_entries=None, clock=clock)
    for state in IntentState:
        (store.put_ended if state.is_terminal else store.put_live)(state.value, 1)
    clock.advance(s=TTL_S)
    assert set(store) == {state.value for state in IntentState} - {state.value for state in TERMINAL}


@pytest.mark.row("S1-36", "S1-40")
def test_the_time_is_the_stores_own_whatever_the_record_says():
    clock = ManualClock()
    store = TTLStore[str, dict](max_entries=None, clock=clock)
    store.put_ended("no ts", {})
    store.put_ended("foreign ts", {"start_ts": 0, "ts": None})
    clock.advance(s=TTL_S)
    assert len(store) == 0


@pytest.mark.row("S1-37")
def test_the_index_by_order_id_goes_with_the_record():
    clock = ManualClock()
    store = TTLStore[str, int](max_entries=None, clock=clock)
    store.put_live("intent-1", 1)
    store.add_alias("intent-1", ("order", "77"))
    store.mark_ended("intent-1")
    clock.advance(s=TTL_S)
    store.sweep()
    assert store.key_of(("order", "77")) is None
    assert store._key_of == {}
    assert store._aliases == {}


@pytest.mark.row("S1-38", "D-19")
@settings(max_examples=1000, deadline=None)
@given(
    st.integers(1, 10**6), st.integers(0, 10**5), st.integers(0, 10**5), st.integers(0, 10**6), st.integers(0, 10**5)
)
def test_a_replay_is_remembered_or_too_old_to_be_accepted(max_age, skew, delay, replay_after, off):
    """For every replay: either the store still knows it, or its age is beyond what is accepted."""
    retain_ms = dedup_retention_ms(max_age, skew, delay)
    clock = ManualClock()
    store = TTLStore[str, int](max_entries=None, clock=clock, ttl_s=retain_ms / 1000, retain_s=retain_ms / 1000)
    store.put_ended("signal", 1)
    clock.advance(ms=replay_after)
    checked_age_ms = replay_after - min(off, delay) - min(off, skew)  # checked earlier, by a clock that is behind
    assert "signal" in store or checked_age_ms >= max_age
    with pytest.raises(InvalidInput):
        TTLStore(max_entries=None, ttl_s=retain_ms / 1000, retain_s=retain_ms / 1000 + 1)


@pytest.mark.row("S1-39", "S1-44")
def test_a_long_lived_order_has_its_full_life_after_its_end():
    clock = ManualClock()
    store = TTLStore[str, int](max_entries=None, clock=clock)
    store.put_live("rests for days", 1)
    clock.advance(s=10 * TTL_S)
    store.mark_ended("rests for days")
    clock.advance(s=TTL_S - 1)
    assert "rests for days" in store


@pytest.mark.row("S1-42")
def test_over_the_limit_ended_records_go_and_live_ones_push_back():
    clock = ManualClock()
    store = TTLStore[int, int](max_entries=100, clock=clock)
    for n in range(50):
        store.put_live(n, n)
    for n in range(50, 1_000):
        store.put_ended(n, n)
    assert len(store) == 100
    assert all(store.is_live(n) for n in range(50))
    for n in range(2_000, 2_050):
        store.put_live(n, n)
    with pytest.raises(CapacityExceeded):
        store.put_live(3_000, 1)


@pytest.mark.row("S1-43")
def test_the_lock_is_free_between_the_steps_of_a_sweep():
    """Whoever is told of an evicted record may use the store from another thread: the sweep does not hold it."""
    clock = ManualClock()
    sizes: list[int] = []

    def elsewhere(key, value):
        if len(sizes) < 3:
            reader = threading.Thread(target=lambda: sizes.append(len(store._ended)) or store.put_live(-key - 1, 1))
            reader.start()
            reader.join(5)
            assert not reader.is_alive(), "the sweep held the lock"

    store = TTLStore[int, int](max_entries=None, clock=clock, on_evict=elsewhere)
    for n in range(5_000):
        store.put_ended(n, n)
    clock.advance(s=TTL_S)
    store.sweep()
    assert len(sizes) == 3
