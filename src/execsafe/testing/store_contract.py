"""What every store must do.

Run it against your own::

    from execsafe.testing.store_contract import StoreContract


    class TestMyStore(StoreContract):
        def make_store(self, directory):
            return MyStore(directory / "my.db")

It needs pytest, hypothesis and anyio's pytest plugin, and runs on the event loops of your ``anyio_backend``
fixture. A store that forgets everything when it is closed overrides :meth:`StoreContract.reopen` as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execsafe.errors import LeaseHeld, StaleFencingToken, StoreUnavailable, VersionConflict
from execsafe.ports import Store, StoredEvent
from execsafe.testing._store_history import STEPS, History
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, a_record, a_request, acquire, an_event
from execsafe.testing._store_records import RecordRules

_FAR_MS: Final = 10**15
_TASKS: Final = 100


class StoreContract(RecordRules):
    """The suite; subclass it with :meth:`make_store`."""

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    def make_store(self, directory: Path) -> Store:
        """A store, not yet open, whose content belongs to *directory*: the same again for the same directory."""
        raise NotImplementedError

    async def reopen(self, store: Store, directory: Path) -> Store:
        """Close *store* and come back as another process would."""
        await store.aclose()
        again = self.make_store(directory)
        await again.open()
        return again

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        """An open, empty store."""
        store = self.make_store(tmp_path)
        await store.open()
        yield store
        await store.aclose()

    # --- leases -------------------------------------------------------------------------------------

    async def test_a_lease_has_one_holder_until_it_expires(self, store: Store) -> None:
        """The batch's own time decides; at the very end it is free."""
        first = await acquire(store, now_ms=100)
        with pytest.raises(LeaseHeld) as caught:
            await acquire(store, now_ms=109, holder="other")
        assert caught.value.context["expires_at_ms"] == 110  # noqa: PLR2004
        second = await acquire(store, now_ms=110, holder="other")
        assert second.token > first.token

    async def test_the_holder_renews_and_keeps_its_token(self, store: Store) -> None:
        """Also after the end, as long as nobody else has had it."""
        first = await acquire(store, now_ms=0)
        for now_ms in (5, 15, 1_000):
            again = await acquire(store, now_ms=now_ms)
            assert (again.token, again.expires_at_ms) == (first.token, now_ms + 10)

    async def test_a_fence_holds_until_somebody_else_has_the_lease(self, store: Store) -> None:
        """Fencing: the late write of a former holder is refused, whatever the time it claims."""
        mine = await acquire(store)
        await store.commit(a_batch(a_put("a"), fence=mine, now_ms=500))
        await acquire(store, now_ms=501, holder="other")
        with pytest.raises(StaleFencingToken):
            await store.commit(a_batch(a_put("b"), fence=mine, now_ms=5))
        assert await store.find(COLLECTION, "b") is None

    async def test_releasing_makes_the_lease_free_and_the_token_stale(self, store: Store) -> None:
        """A second release, or one of a lease that has passed on, does nothing."""
        mine = await acquire(store)
        await store.commit(a_batch(release=mine))
        theirs = await acquire(store, holder="other")
        assert theirs.token > mine.token
        await store.commit(a_batch(release=mine))
        await store.commit(a_batch(fence=theirs))
        with pytest.raises(StaleFencingToken):
            await store.commit(a_batch(fence=mine))

    async def test_tokens_only_grow_whatever_happens(self, store: Store, tmp_path: Path) -> None:
        """Over all names, releases, purges and restarts: an old token never becomes valid again."""
        tokens: list[int] = []
        for round_ in range(3):
            one = await acquire(store, now_ms=round_ * 100, name="one", holder=f"h{round_}")
            two = await acquire(store, now_ms=round_ * 100, name="two", holder=f"h{round_}")
            tokens += [one.token, two.token]
            await store.commit(a_batch(release=two))
            await store.purge(_FAR_MS)
            store = await self.reopen(store, tmp_path)
        assert tokens == sorted(set(tokens))
        await store.aclose()

    # --- outbox -------------------------------------------------------------------------------------

    async def test_events_come_in_order_page_by_page(self, store: Store) -> None:
        """The order of commits, and within one the order of the batch."""
        await store.commit(a_batch(events=(an_event(0), an_event(1), an_event(2))))
        await store.commit(a_batch(events=(an_event(3),)))
        seen: list[StoredEvent] = []
        after = 0
        while page := await store.read_events(after, limit=2):
            seen += page
            after = page[-1].seq
        assert [e.event for e in seen] == [an_event(n) for n in range(4)]
        assert [e.seq for e in seen] == sorted({e.seq for e in seen})
        assert await store.read_events(0, limit=0) == []

    async def test_a_cursor_starts_at_0_and_never_goes_back(self, store: Store, tmp_path: Path) -> None:
        """Two consumers have two cursors; they survive a restart."""
        assert await store.get_cursor("a") == 0
        for seq in (3, 5, 4):
            await store.set_cursor("a", seq)
        store = await self.reopen(store, tmp_path)
        assert (await store.get_cursor("a"), await store.get_cursor("b")) == (5, 0)
        await store.aclose()

    async def test_sequence_numbers_are_never_given_twice(self, store: Store, tmp_path: Path) -> None:
        """Not even when every event was purged before a restart: a consumer's cursor stays meaningful."""
        await store.commit(a_batch(events=(an_event(0), an_event(1))))
        last = (await store.read_events(0))[-1].seq
        await store.purge(_FAR_MS)
        assert await store.read_events(0) == []
        store = await self.reopen(store, tmp_path)
        await store.commit(a_batch(events=(an_event(2),)))
        assert (await store.read_events(0))[0].seq > last
        await store.aclose()

    # --- purge --------------------------------------------------------------------------------------

    async def test_purge_deletes_what_ended_before_and_nothing_else(self, store: Store) -> None:
        """Open records, those without an end, and younger ones stay; a purged key and alias are free again."""
        await store.commit(
            a_batch(
                a_put("old", is_open=False, ended_at_ms=99, aliases=("x",)),
                a_put("young", is_open=False, ended_at_ms=100),
                a_put("endless", is_open=False),
                a_put("open", ended_at_ms=1),
            )
        )
        assert await store.purge(100) == 1
        assert await store.purge(100) == 0
        assert [await store.find(COLLECTION, name) for name in ("old", "x")] == [None, None]
        for name in ("young", "endless", "open"):
            assert await store.find(COLLECTION, name) is not None
        await store.commit(a_batch(a_put("new", aliases=("x",)), a_put("old")))

    async def test_a_record_that_was_revived_is_not_purged(self, store: Store) -> None:
        """Late evidence wins: retention starts again when it ends again."""
        await store.commit(a_batch(a_put(is_open=False, ended_at_ms=10)))
        await store.commit(a_batch(a_put(version=1)))
        assert await store.purge(100) == 0
        await store.commit(a_batch(a_put(version=2, is_open=False, ended_at_ms=200)))
        assert await store.purge(100) == 0
        assert await store.purge(201) == 1

    async def test_a_lease_that_was_renewed_is_not_purged(self, store: Store) -> None:
        """Its latest end counts, also where its name was somebody else's before."""
        await acquire(store, now_ms=0, holder="other")
        mine = await acquire(store, now_ms=10)
        mine = await acquire(store, now_ms=500)
        await store.purge(510)
        await store.commit(a_batch(fence=mine))
        with pytest.raises(LeaseHeld):
            await acquire(store, now_ms=509, holder="other")
        await store.purge(511)
        with pytest.raises(StaleFencingToken):
            await store.commit(a_batch(fence=mine))

    async def test_purge_deletes_at_most_as_many_as_it_may(self, store: Store) -> None:
        """So that its length is bounded; the rest goes next time."""
        for number in range(5):
            await store.commit(a_batch(a_put(f"k{number}", is_open=False, ended_at_ms=number)))
        assert [await store.purge(100, limit=n) for n in (0, 2, 2, 2)] == [0, 2, 2, 1]

    async def test_purge_waits_for_the_slowest_consumer(self, store: Store) -> None:
        """An event goes when it is old and every named cursor has passed it."""
        await store.commit(a_batch(events=tuple(an_event(n, at_ms=n) for n in range(4))))
        seqs = [e.seq for e in await store.read_events(0)]
        await store.set_cursor("fast", seqs[3])
        await store.set_cursor("slow", seqs[0])
        await store.purge(_FAR_MS)
        assert [e.seq for e in await store.read_events(0)] == seqs[1:]
        await store.set_cursor("slow", seqs[3])
        await store.purge(2)
        assert [e.seq for e in await store.read_events(0)] == seqs[2:]

    async def test_a_consumer_that_does_not_come_back_is_forgotten(self, store: Store, tmp_path: Path) -> None:
        """It holds nothing back any more, and one of its name begins anew."""
        await store.commit(a_batch(events=tuple(an_event(n, at_ms=n) for n in range(4))))
        seqs = [e.seq for e in await store.read_events(0)]
        for name, seq in (("stays", seqs[2]), ("gone", seqs[0])):
            await store.set_cursor(name, seq)
        for _ in range(2):
            await store.delete_cursor("gone")
        await store.delete_cursor("never")
        await store.purge(_FAR_MS)
        assert [e.seq for e in await store.read_events(0)] == seqs[3:]
        store = await self.reopen(store, tmp_path)
        assert (await store.get_cursor("stays"), await store.get_cursor("gone")) == (seqs[2], 0)
        await store.set_cursor("gone", 1)
        assert await store.get_cursor("gone") == 1
        await store.aclose()

    # --- life ---------------------------------------------------------------------------------------

    async def test_open_and_close_may_be_repeated(self, store: Store) -> None:
        """And everything is there after a close and an open."""
        await store.open()
        await store.commit(a_batch(a_put(aliases=("x",))))
        await store.aclose()
        await store.aclose()
        await store.open()
        assert await store.find(COLLECTION, "x") is not None

    async def test_a_store_that_is_not_open_says_so(self, tmp_path: Path) -> None:
        """Before the first open and after the close, from every method."""
        store = self.make_store(tmp_path)
        for _ in range(2):
            calls = [
                store.commit(a_batch(a_put())),
                store.find(COLLECTION, "k"),
                store.scan_open(COLLECTION),
                store.read_events(0),
                store.set_cursor("c", 1),
                store.get_cursor("c"),
                store.delete_cursor("c"),
                store.purge(1),
            ]
            for call in calls:
                with pytest.raises(StoreUnavailable):
                    await call
            await store.open()
            await store.aclose()

    async def test_everything_survives_a_restart(self, store: Store, tmp_path: Path) -> None:
        """Records with their versions and aliases, events, leases and cursors."""
        lease = await acquire(store, ttl_ms=_FAR_MS)
        await store.commit(a_batch(a_put(number=4, aliases=("x",)), events=(an_event(),)))
        before = (await store.find(COLLECTION, "x"), await store.read_events(0))
        store = await self.reopen(store, tmp_path)
        assert (await store.find(COLLECTION, "x"), await store.read_events(0)) == before
        await store.commit(a_batch(fence=lease))
        with pytest.raises(LeaseHeld):
            await acquire(store, holder="other")
        await store.aclose()

    # --- concurrency --------------------------------------------------------------------------------

    async def test_compare_and_set_by_many_tasks_loses_nothing(self, store: Store) -> None:
        """A hundred tasks count on one record; a conflict is loaded and tried again."""
        await store.commit(a_batch(a_put(number=0)))

        async def count() -> None:
            while True:
                found = await store.find(COLLECTION, "k")
                assert found is not None
                number = found.value.updated_at_ms + 1  # type: ignore[attr-defined]
                try:
                    await store.commit(a_batch(a_put(version=found.version, number=number)))
                except VersionConflict:
                    continue
                return

        async with anyio.create_task_group() as tasks:
            for _ in range(_TASKS):
                tasks.start_soon(count)
        found = await store.find(COLLECTION, "k")
        assert found is not None
        assert (found.version, found.value) == (_TASKS + 1, a_record(number=_TASKS))

    async def test_one_of_many_tasks_gets_the_lease(self, store: Store) -> None:
        """And one of many makes the record: the others are told."""
        outcomes: list[str] = []

        async def claim(number: int) -> None:
            request = a_request(holder=f"h{number}")
            try:
                await store.commit(a_batch(a_put(f"k{number}"), acquire=request))
                outcomes.append("won")
            except LeaseHeld:
                outcomes.append("held")

        async with anyio.create_task_group() as tasks:
            for number in range(_TASKS):
                tasks.start_soon(claim, number)
        assert sorted(outcomes) == ["held"] * (_TASKS - 1) + ["won"]
        assert len(await store.scan_open(COLLECTION)) == 1

    async def test_a_cancelled_commit_is_whole_or_absent(self, store: Store) -> None:
        """The caller does not know which; the store still works, and knows."""
        for number in range(10):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await store.commit(a_batch(a_put(f"k{number}"), events=(an_event(number),)))
        stored = {s.key for s in await store.scan_open(COLLECTION)}
        assert stored == {f"k{e.event.subject[8:]}" for e in await store.read_events(0)}

    # --- everything against the model ---------------------------------------------------------------

    @given(data=st.data())
    @settings(
        max_examples=50,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    async def test_any_history_agrees_with_the_model(self, data: st.DataObject) -> None:
        """Refusals and contents are those of a few dictionaries, over restarts."""
        with tempfile.TemporaryDirectory() as name:
            run = History(self, Path(name), data)
            await run.store.open()
            try:
                for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=20)):
                    await getattr(run, step)()
                    await run.compare()
            finally:
                await run.store.aclose()
