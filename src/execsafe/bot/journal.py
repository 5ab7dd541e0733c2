"""Reading a journal: the intents in a store, without changing anything."""

from __future__ import annotations

from typing import Final

import execsafe
from execsafe.intents import COLLECTION

_PAGE: Final = 1_000
_CREATE: Final = "create="
_EMBEDDED: Final = ("memory:", "sqlite:")
HEAD: Final = ("intent", "state", "symbol", "side", "quantity", "filled", "age")


def open_existing(url: str) -> execsafe.Store:
    """The store behind *url*, not yet opened, if there is one: looking must not create it.

    Raises:
        InvalidInput: a malformed URL, or nothing is there.
    """
    store = execsafe.open_store(url if url.startswith(_EMBEDDED) else _uncreated(url))
    path = getattr(store, "path", None)
    if path is not None and not path.exists():
        raise execsafe.InvalidInput(f"there is no store at {path}")
    if store.durability is execsafe.Durability.NONE:
        raise execsafe.InvalidInput("a store in memory ends with its process: there is nothing to list")
    return store


def _uncreated(url: str) -> str:
    """*url* of a server's store that opens it only if it is there."""
    address, _, options = url.partition("?")
    kept = [option for option in options.split("&") if option and not option.startswith(_CREATE)]
    return f"{address}?{'&'.join([*kept, f'{_CREATE}false'])}"


def may_be_created(url: str) -> bool:
    """Whether a run that is given *url* makes the store where there is none."""
    return f"{_CREATE}false" not in url.partition("?")[2].split("&")


def is_missing(error: execsafe.ExecsafeError) -> bool:
    """Whether a server was reached that has no such store."""
    return bool(error.context.get("is_missing"))


async def read(store: execsafe.Store, ended_too: bool) -> list[execsafe.IntentRecord]:
    """The intents in *store*: those that have not ended, or all. Opens and closes it.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        await store.open()
        return await all_records(store) if ended_too else await execsafe.IntentRegistry(store).open_records()
    finally:
        await store.aclose()


async def declare_absent(
    store: execsafe.Store, key: str, *, note: str, account: str, leg: str
) -> execsafe.IntentRecord:
    """End an unresolved intent whose order a person saw not to be at the venue. Opens and closes the store.

    Raises:
        InvalidInput: there is no such intent, or it is not unresolved.
        StoreError: it cannot be read or written.
    """
    try:
        await store.open()
        return await execsafe.IntentRegistry(store).declare_absent(key, note=note, account=account, leg=leg)
    finally:
        await store.aclose()


async def all_records(store: execsafe.Store) -> list[execsafe.IntentRecord]:
    """Every intent that the store still has, oldest first; found by way of its events."""
    found = [await store.find(COLLECTION, subject) for subject in await _subjects(store)]
    return [stored.value for stored in found if stored and isinstance(stored.value, execsafe.IntentRecord)]


async def _subjects(store: execsafe.Store) -> list[str]:
    subjects: dict[str, None] = {}
    after = 0
    while page := await store.read_events(after, _PAGE):
        subjects.update(dict.fromkeys(stored.event.subject for stored in page))
        after = page[-1].seq
    return list(subjects)


def row(record: execsafe.IntentRecord, *, now_ms: int) -> tuple[str, ...]:
    """One line of a table under :data:`HEAD`. Age counts from when the intent was recorded."""
    intent = record.intent
    return (
        f"{intent.key}#{intent.leg}" if intent.leg else intent.key,
        record.state.value,
        intent.symbol,
        intent.side.value,
        f"{record.quantity:f}",
        f"{record.filled_quantity:f}",
        age(now_ms - record.created_at_ms),
    )


def age(ms: int) -> str:
    """A duration for people: the two largest units."""
    seconds = max(0, ms) // 1000
    for size, unit, smaller, small_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller} {small_unit}"
    return f"{seconds} s"
