"""What every store checks in the same way: names, lease grants, and the errors of a refused batch."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from execsafe.errors import InvalidInput, LeaseHeld, StaleFencingToken, VersionConflict
from execsafe.model.trusted import trusted
from execsafe.model.values import shorten
from execsafe.ports import Batch, Durability, Lease, LeaseRequest, Put, Stored, StoredEvent

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

# Longest identity: account + key + leg as JSON, fully escaped; doubled for other collections' keys.
NAME_LENGTH_MAX: Final = 1_024
_INTEGER_MAX: Final = 2**63 - 1
_new_lease: Final = trusted(Lease)


def check_name(name: object, what: str) -> None:
    """Refuse what some database could not store unchanged.

    Raises:
        InvalidInput: not text, empty, longer than 1,024 characters, a NUL, or half a surrogate pair.
    """
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH_MAX or "\0" in name:
        raise InvalidInput(f"{what} must be text of 1 to {NAME_LENGTH_MAX} characters, was {shorten(name)}")
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"{what} is not valid Unicode: {shorten(name)}") from None


def check_integer(value: object, what: str, minimum: int = 0) -> None:
    """Refuse integers outside *minimum* … 2**63 - 1, and anything else.

    Raises:
        InvalidInput: the value, named.
    """
    if type(value) is not int or not minimum <= value <= _INTEGER_MAX:
        raise InvalidInput(f"{what} must be an integer of at least {minimum}, was {shorten(value)}")


def check_batch(batch: Batch) -> None:
    """Refuse a malformed batch before anything is looked at.

    Raises:
        InvalidInput: a bad name or number, or a record that is written twice.
    """
    check_integer(batch.now_ms, "now_ms")
    for put in batch.puts:
        _check_put(put)
    # The same object as the batch's own time, as a rule: checked already.
    for event in batch.events:
        if event.at_ms is not batch.now_ms:
            check_integer(event.at_ms, "at_ms")
    if len(batch.puts) > 1:
        _check_apart(batch.puts)
    if batch.acquire is not None:
        check_name(batch.acquire.name, "lease name")
        check_name(batch.acquire.holder, "lease holder")
        check_integer(batch.acquire.ttl_ms, "ttl_ms", 1)
        check_integer(batch.now_ms + batch.acquire.ttl_ms, "lease end")


def _check_put(put: Put) -> None:
    check_name(put.collection, "collection")
    check_name(put.key, "key")
    check_integer(put.version, "version")
    if put.ended_at_ms is not None:
        check_integer(put.ended_at_ms, "ended_at_ms")
    for alias in put.aliases:
        check_name(alias, "alias")


def _check_apart(puts: tuple[Put, ...]) -> None:
    if len({(put.collection, put.key) for put in puts}) != len(puts):
        raise InvalidInput("a batch writes each record once")
    claims: dict[tuple[str, str], str] = {}
    for put in puts:
        for alias in put.aliases:
            owner = claims.setdefault((put.collection, alias), put.key)
            if owner != put.key:
                raise alias_taken(put, alias, owner)


def check_fence(fence: Lease, current: Lease | None) -> None:
    """A fence holds while its lease is the latest of that name; its expiry alone passes it to nobody.

    Raises:
        StaleFencingToken: somebody else has the lease now, or it was released.
    """
    if current is None or current.token != fence.token:
        raise StaleFencingToken(
            f"lease {shorten(fence.name)} is no longer held with token {fence.token}",
            lease=fence.name,
            token=fence.token,
            current_token=None if current is None else current.token,
        )


def check_free(request: LeaseRequest, current: Lease | None, now_ms: int) -> None:
    """A lease can be had when it is free, expired or already ours.

    Raises:
        LeaseHeld: ``context["expires_at_ms"]`` says until when.
    """
    if current is not None and current.holder != request.holder and current.expires_at_ms > now_ms:
        raise LeaseHeld(
            f"lease {shorten(request.name)} is held by {shorten(current.holder)}",
            lease=request.name,
            holder=current.holder,
            expires_at_ms=current.expires_at_ms,
        )


def is_renewal(request: LeaseRequest, current: Lease | None) -> bool:
    """Whether the holder keeps its token: nobody else has had the lease in between."""
    return current is not None and current.holder == request.holder


def grant(request: LeaseRequest, token: int, now_ms: int) -> Lease:
    """The lease as granted at *now_ms*."""
    return _new_lease(name=request.name, holder=request.holder, token=token, expires_at_ms=now_ms + request.ttl_ms)


def version_conflict(put: Put, stored: int) -> VersionConflict:
    """The error for a record that is not at the expected version (0: absent)."""
    return VersionConflict(
        f"{put.collection} {shorten(put.key)} is at version {stored}, expected {put.version}",
        collection=put.collection,
        key=put.key,
        version=stored,
        expected=put.version,
    )


def alias_taken(put: Put, alias: str, owner: str) -> InvalidInput:
    """The error for an alias that already leads to another record. Nothing was written."""
    return InvalidInput(
        f"alias {shorten(alias)} of {put.collection} {shorten(put.key)} belongs to {shorten(owner)}",
        collection=put.collection,
        key=put.key,
        alias=alias,
        owner=owner,
    )


class ManagedStore(abc.ABC):
    """A :class:`~execsafe.ports.Store` that ``async with`` opens and closes."""

    @property
    @abc.abstractmethod
    def durability(self) -> Durability: ...

    @property
    def never_waits(self) -> bool:
        """Whether ``commit`` never yields to the event loop."""
        return False

    @abc.abstractmethod
    async def open(self) -> None: ...

    @abc.abstractmethod
    async def aclose(self) -> None: ...

    @abc.abstractmethod
    async def commit(self, batch: Batch) -> Lease | None: ...

    @abc.abstractmethod
    async def find(self, collection: str, key: str) -> Stored | None: ...

    @abc.abstractmethod
    async def scan_open(self, collection: str) -> Sequence[Stored]: ...

    @abc.abstractmethod
    async def read_events(self, after: int, limit: int = 1_000) -> Sequence[StoredEvent]: ...

    @abc.abstractmethod
    async def set_cursor(self, name: str, seq: int) -> None: ...

    @abc.abstractmethod
    async def get_cursor(self, name: str) -> int: ...

    @abc.abstractmethod
    async def delete_cursor(self, name: str) -> None: ...

    @abc.abstractmethod
    async def purge(self, ended_before_ms: int, limit: int = 10_000) -> int: ...

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
