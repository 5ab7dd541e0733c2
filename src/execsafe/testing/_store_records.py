"""The part of the store contract about records, aliases and batches."""

from __future__ import annotations

from typing import Any, Final

import attrs
import pytest

from execsafe.errors import InvalidInput, LeaseHeld, StaleFencingToken, VersionConflict
from execsafe.ports import Store
from execsafe.testing._store_model import COLLECTION, a_batch, a_put, a_record, a_request, acquire, an_event

_ODD_NAMES: Final = (
    "'; DROP TABLE records; --",
    '["default","signal-42","leg \\"a\\""]',
    "Ünïcödé ⟂ 漢字 🂡",
    "a" * 1_024,
    "%s {} \\ \n\t",
    " ",
)
_BAD_NAMES: Final = ("", "a\0b", "half \ud800 a pair", "a" * 1_025, 7, None, b"bytes")


class RecordRules:
    """Mixed into :class:`~execsafe.testing.store_contract.StoreContract`, which brings the ``store`` fixture."""

    # --- records ------------------------------------------------------------------------------------

    async def test_what_was_put_is_found_with_a_version_one_higher(self, store: Store) -> None:
        """Version 0 means "must not exist"; the stored version counts the puts."""
        assert await store.find(COLLECTION, "k") is None
        await store.commit(a_batch(a_put(number=1)))
        await store.commit(a_batch(a_put(version=1, number=2)))
        found = await store.find(COLLECTION, "k")
        assert found is not None
        assert (found.key, found.value, found.version) == ("k", a_record(number=2), 2)

    @pytest.mark.parametrize(("puts", "stored"), [(0, 1), (0, 7), (1, 0), (1, 2)])
    async def test_a_put_at_another_version_is_refused_and_told_the_stored_one(
        self, store: Store, puts: int, stored: int
    ) -> None:
        """The caller learns what to load again; nothing has changed."""
        for version in range(puts):
            await store.commit(a_batch(a_put(version=version, number=1)))
        with pytest.raises(VersionConflict) as caught:
            await store.commit(a_batch(a_put(version=stored, number=2)))
        assert caught.value.context["version"] == puts
        found = await store.find(COLLECTION, "k")
        assert (found and found.value) == (a_record(number=1) if puts else None)

    async def test_collections_do_not_see_each_other(self, store: Store) -> None:
        """The same key and alias may stand in two collections for two records."""
        await store.commit(a_batch(a_put(number=1, aliases=("x",))))
        await store.commit(a_batch(a_put(number=2, aliases=("x",), collection="other")))
        for collection, number in ((COLLECTION, 1), ("other", 2)):
            found = await store.find(collection, "x")
            assert found is not None
            assert found.value == a_record(number=number)
            assert len(await store.scan_open(collection)) == 1

    @pytest.mark.parametrize("name", _ODD_NAMES)
    async def test_names_are_kept_letter_for_letter(self, store: Store, name: str) -> None:
        """Nothing in a name is syntax to the store."""
        await store.commit(a_batch(a_put(name, collection=name, aliases=(name, name + "'"[: 1_024 - len(name)]))))
        found = await store.find(name, name)
        assert found is not None
        assert found.key == name
        assert [stored.key for stored in await store.scan_open(name)] == [name]
        lease = await acquire(store, name=name, holder=name)
        await store.commit(a_batch(fence=lease, release=lease))
        await store.set_cursor(name, 3)
        assert await store.get_cursor(name) == 3  # noqa: PLR2004

    @pytest.mark.parametrize("name", _BAD_NAMES)
    async def test_names_that_a_database_could_not_keep_are_refused(self, store: Store, name: Any) -> None:
        """Before anything is written, and as the caller's mistake."""
        batches = [
            a_batch(a_put(name)),
            a_batch(a_put(collection=name)),
            a_batch(a_put(aliases=(name,))),
            a_batch(acquire=a_request(name=name)),
            a_batch(acquire=a_request(holder=name)),
        ]
        for batch in batches:
            with pytest.raises(InvalidInput):
                await store.commit(batch)
        with pytest.raises(InvalidInput):
            await store.set_cursor(name, 1)
        with pytest.raises(InvalidInput):
            await store.delete_cursor(name)
        assert await store.scan_open(COLLECTION) == []

    @pytest.mark.parametrize("number", [-1, 2**63, True, 1.5, None])
    async def test_numbers_that_a_database_could_not_keep_are_refused(self, store: Store, number: Any) -> None:
        """Versions and times are integers from 0 to 2**63 - 1."""
        batches = [
            a_batch(a_put(version=number)),
            a_batch(now_ms=number),
            a_batch(acquire=a_request(ttl_ms=number)),
            a_batch(events=(an_event(at_ms=number),)),
        ]
        for batch in batches:
            with pytest.raises(InvalidInput):
                await store.commit(batch)

    async def test_a_batch_that_writes_a_record_twice_is_refused(self, store: Store) -> None:
        """Which of the two should stand is nobody's guess."""
        with pytest.raises(InvalidInput):
            await store.commit(a_batch(a_put(number=1), a_put(number=2)))
        assert await store.find(COLLECTION, "k") is None

    # --- aliases ------------------------------------------------------------------------------------

    async def test_a_record_is_found_under_every_alias_it_ever_had(self, store: Store) -> None:
        """Aliases are added by later puts and never removed before the record."""
        await store.commit(a_batch(a_put(aliases=("x", "y", "x"))))
        await store.commit(a_batch(a_put(version=1)))
        await store.commit(a_batch(a_put(version=2, aliases=("z", "x"))))
        for name in ("k", "x", "y", "z"):
            found = await store.find(COLLECTION, name)
            assert found is not None
            assert (found.key, found.version) == ("k", 3)

    async def test_an_alias_never_moves_to_another_record(self, store: Store) -> None:
        """One client order id stands for one intent; a second claim is refused, also within one batch."""
        await store.commit(a_batch(a_put("a", aliases=("x",))))
        with pytest.raises(InvalidInput) as caught:
            await store.commit(a_batch(a_put("b", aliases=("w", "x")), events=(an_event(),)))
        assert caught.value.context["owner"] == "a"
        with pytest.raises(InvalidInput):
            await store.commit(a_batch(a_put("c", aliases=("y",)), a_put("d", aliases=("y",))))
        found = await store.find(COLLECTION, "x")
        assert found is not None
        assert found.key == "a"
        assert [await store.find(COLLECTION, name) for name in ("b", "c", "d", "w", "y")] == [None] * 5
        assert await store.read_events(0) == []

    async def test_a_key_goes_before_an_alias_of_the_same_name(self, store: Store) -> None:
        """Whichever of the two came first."""
        await store.commit(a_batch(a_put("a", aliases=("b", "c"))))
        await store.commit(a_batch(a_put("b", number=1)))
        found = await store.find(COLLECTION, "b")
        assert found is not None
        assert found.key == "b"

    # --- open records -------------------------------------------------------------------------------

    async def test_open_records_are_listed_in_key_order(self, store: Store) -> None:
        """Those that ended are not listed; one that is revived is listed again."""
        for key in ("c", "a", "b", "Z", "é"):
            await store.commit(a_batch(a_put(key)))
        await store.commit(a_batch(a_put("a", 1, is_open=False, ended_at_ms=5), a_put("c", 1)))
        assert [stored.key for stored in await store.scan_open(COLLECTION)] == ["Z", "b", "c", "é"]
        await store.commit(a_batch(a_put("a", 2, number=9)))
        opened = await store.scan_open(COLLECTION)
        assert [stored.key for stored in opened] == ["Z", "a", "b", "c", "é"]
        assert (opened[1].value, opened[1].version) == (a_record(number=9), 3)

    # --- batches ------------------------------------------------------------------------------------

    async def test_a_refused_batch_leaves_no_trace(self, store: Store) -> None:
        """Neither its good records nor its events, aliases, leases or releases."""
        mine = await acquire(store)
        await store.commit(a_batch(a_put("z", is_open=False)))
        good = a_put("good", aliases=("x",))
        facts: dict[str, Any] = {
            "events": (an_event(),),
            "acquire": a_request("second"),
            "release": mine,
        }
        with pytest.raises(VersionConflict):
            await store.commit(a_batch(good, a_put("z", 7), **facts))
        with pytest.raises(StaleFencingToken):
            await store.commit(a_batch(good, fence=attrs.evolve(mine, token=mine.token + 1), **facts))
        with pytest.raises(LeaseHeld):
            await store.commit(a_batch(good, **facts | {"acquire": a_request(holder="other")}))
        assert await store.find(COLLECTION, "good") is None
        assert await store.find(COLLECTION, "x") is None
        assert await store.read_events(0) == []
        await acquire(store, name="second", holder="other")
        await store.commit(a_batch(fence=mine))

    async def test_a_batch_of_everything_is_applied_whole(self, store: Store) -> None:
        """Records, events, a lease gained and a lease given up: one commit."""
        mine = await acquire(store)
        batch = a_batch(
            a_put("a"),
            a_put("b"),
            events=(an_event(1), an_event(2)),
            fence=mine,
            acquire=a_request("second"),
            release=mine,
        )
        second = await store.commit(batch)
        assert second is not None
        assert (second.name, second.holder, second.expires_at_ms) == ("second", "me", 10)
        assert [stored.key for stored in await store.scan_open(COLLECTION)] == ["a", "b"]
        assert [e.event for e in await store.read_events(0)] == [an_event(1), an_event(2)]
        with pytest.raises(StaleFencingToken):
            await store.commit(a_batch(fence=mine))
        await store.commit(a_batch(fence=second))

    async def test_the_same_batch_twice_is_applied_once(self, store: Store) -> None:
        """A caller that does not know whether its commit arrived may repeat it."""
        batch = a_batch(a_put(), events=(an_event(),))
        await store.commit(batch)
        with pytest.raises(VersionConflict):
            await store.commit(batch)
        assert len(await store.read_events(0)) == 1
