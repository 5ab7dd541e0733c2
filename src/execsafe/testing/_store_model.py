"""What a store is, without any of the difficulty: the model that the contract suite compares stores with."""

from __future__ import annotations

from typing import Any, Final

import attrs

from execsafe.errors import ExecsafeError, InvalidInput, LeaseHeld, StaleFencingToken, VersionConflict
from execsafe.model.event import Event, EventType
from execsafe.model.intent import Intent, IntentRecord
from execsafe.ports import Batch, Lease, LeaseRequest, Put, Store

COLLECTION: Final = "intents"


def a_record(key: str = "k", number: int = 0) -> IntentRecord:
    """A record to store; *number* tells two apart."""
    intent = Intent(key=key, symbol="BTC/USDT", side="buy", quantity="0.01", limit_price="60000")
    return IntentRecord(intent=intent, quantity=intent.quantity, updated_at_ms=number)


def an_event(number: int = 0, at_ms: int = 0) -> Event:
    """An event to store; *number* tells two apart."""
    return Event(type=EventType.INTENT_RECORDED, at_ms=at_ms, subject=f"subject-{number}")


def a_put(key: str = "k", version: int = 0, **facts: object) -> Put:
    """A put of :func:`a_record`; *number* goes to the record, everything else to the put."""
    value = a_record(number=facts.pop("number", 0))  # type: ignore[arg-type]
    return Put(**{"collection": COLLECTION, "key": key, "value": value, "version": version} | facts)  # type: ignore[arg-type]


def a_batch(*puts: Put, now_ms: int = 0, **facts: object) -> Batch:
    """A batch of *puts*; everything else as :class:`~execsafe.ports.Batch` names it."""
    return Batch(now_ms=now_ms, puts=puts, **facts)  # type: ignore[arg-type]


def a_request(name: str = "lease", holder: str = "me", ttl_ms: int = 10) -> LeaseRequest:
    """A wish for a lease."""
    return LeaseRequest(name=name, holder=holder, ttl_ms=ttl_ms)


async def acquire(store: Store, now_ms: int = 0, **facts: Any) -> Lease:
    """A lease, gained from *store*; *facts* go to :func:`a_request`."""
    lease = await store.commit(a_batch(now_ms=now_ms, acquire=a_request(**facts)))
    assert lease is not None
    return lease


@attrs.define
class StoreModel:
    """One collection, its leases and its outbox, in plain dictionaries."""

    records: dict[str, Put] = attrs.Factory(dict)
    aliases: dict[str, str] = attrs.Factory(dict)
    leases: dict[str, Lease] = attrs.Factory(dict)
    events: list[tuple[int, Event]] = attrs.Factory(list)
    cursors: dict[str, int] = attrs.Factory(dict)
    granted: list[Lease] = attrs.Factory(list)
    last_seq: int = 0

    def version(self, key: str) -> int:
        """The stored version, 0 for none."""
        return self.records[key].version + 1 if key in self.records else 0

    def refusal(self, batch: Batch) -> type[ExecsafeError] | None:
        """The error with which a store must refuse *batch* now."""
        claims: dict[str, str] = {}
        if any(claims.setdefault(alias, put.key) != put.key for put in batch.puts for alias in put.aliases):
            return InvalidInput
        fence, request = batch.fence, batch.acquire
        if fence is not None:
            current = self.leases.get(fence.name)
            if current is None or current.token != fence.token:
                return StaleFencingToken
        if request is not None:
            current = self.leases.get(request.name)
            if current and current.holder != request.holder and current.expires_at_ms > batch.now_ms:
                return LeaseHeld
        for put in batch.puts:
            if self.version(put.key) != put.version:
                return VersionConflict
            if any(self.aliases.get(alias, put.key) != put.key for alias in put.aliases):
                return InvalidInput
        return None

    def apply(self, batch: Batch, lease: Lease | None, seqs: list[int]) -> None:
        """Carry out a batch that was not refused; *lease* and *seqs* are what the store answered."""
        for put in batch.puts:
            self.records[put.key] = put
            self.aliases.update(dict.fromkeys(put.aliases, put.key))
        assert seqs == sorted(set(seqs))
        assert not seqs or seqs[0] > self.last_seq
        self.last_seq = max([self.last_seq, *seqs])
        self.events += zip(seqs, batch.events, strict=True)
        if batch.acquire is not None:
            self._grant(batch.acquire, lease, batch.now_ms)
        else:
            assert lease is None
        if batch.release is not None:
            current = self.leases.get(batch.release.name)
            if current is not None and current.token == batch.release.token:
                del self.leases[batch.release.name]

    def _grant(self, request: LeaseRequest, lease: Lease | None, now_ms: int) -> None:
        assert lease is not None
        assert (lease.name, lease.holder) == (request.name, request.holder)
        assert lease.expires_at_ms == now_ms + request.ttl_ms
        current = self.leases.get(request.name)
        if current is not None and current.holder == request.holder:
            assert lease.token == current.token
        else:
            assert lease.token > max((known.token for known in self.granted), default=0)
        self.leases[request.name] = lease
        self.granted.append(lease)

    def purge(self, before_ms: int) -> int:
        """Forget what is old enough; returns how many records went."""
        old = [
            key
            for key, put in self.records.items()
            if not put.is_open and put.ended_at_ms is not None and put.ended_at_ms < before_ms
        ]
        for key in old:
            del self.records[key]
        self.aliases = {alias: key for alias, key in self.aliases.items() if key in self.records}
        passed = min(self.cursors.values(), default=self.last_seq)
        self.events = [(seq, e) for seq, e in self.events if seq > passed or e.at_ms >= before_ms]
        self.leases = {name: lease for name, lease in self.leases.items() if lease.expires_at_ms >= before_ms}
        return len(old)
