"""The auditor's checks of the order of things: journal before send, proof before resend, fences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from execsafe.model.intent import Attempt, AttemptState, IntentRecord
from execsafe.model.venue import View
from execsafe.ports import Lease
from execsafe.testing._evidence import CaseFile, Evidence, last
from execsafe.testing._history import History, Read, Send, Write
from execsafe.testing._violation import Violation

_UNRESTRICTED = float("inf")


def write_ahead(_evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G2, G12: each request is one attempt that this process knew to be durable, and is sent once."""
    for send, write in _matched(file):
        if write is not None or send.request.reduce_only:
            continue  # exits have a declared policy of their own
        if any(w.n < send.n and _adds(w, file, send) for w, _ in file.versions):
            yield Violation("G12", file.key, send.at_ms, "sent although the journal's answer was no, or was lost")
        else:
            text = f"{send.request.client_order_id} was sent before an attempt for it was durable"
            yield Violation("G2", file.key, send.at_ms, text)


def called_unsent(_evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G4: what was handed to the network is never written down as not sent."""
    for send, write in _matched(file):
        number = next((len(r.attempts) for w, r in file.versions if w is write), 0)
        for later, record in file.versions:
            if 0 < number <= len(record.attempts) and record.attempts[number - 1].state is AttemptState.NOT_SENT:
                yield Violation("G4", file.key, later.at_ms, f"attempt {number} called not sent, request {send.n} was")
                return


def _matched(file: CaseFile) -> list[tuple[Send, Write | None]]:
    """Each request with the write that journalled it, told to its sender before; each write serves one request."""
    matched: list[tuple[Send, Write | None]] = []
    used: set[int] = set()
    for send in file.sends:
        found = next((w for w, _ in reversed(file.versions) if w.n not in used and _precedes(w, file, send)), None)
        if found is not None:
            used.add(found.n)
        matched.append((send, found))
    return matched


def _precedes(write: Write, file: CaseFile, send: Send) -> bool:
    was_told = write.acknowledged_n is not None and write.acknowledged_n < send.n
    return was_told and write.process == send.process and _adds(write, file, send)


def _adds(write: Write, file: CaseFile, send: Send) -> bool:
    added = _added_attempt(file, write)
    return (
        added is not None
        and added.client_order_id == send.request.client_order_id
        and added.quantity == send.request.quantity
        and added.deadline_ms == send.request.deadline_ms
    )


def _added_attempt(file: CaseFile, write: Write) -> Attempt | None:
    """The attempt that *write* journalled as being sent, if it did."""
    before = 0
    for other, record in file.versions:
        if other is write:
            is_new = len(record.attempts) > before and record.attempts[-1].state is AttemptState.SENDING
            return record.attempts[-1] if is_new else None
        before = len(record.attempts)
    return None


def proof_before_resend(evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G3: when a request is sent, every earlier one is dead at the venue: refused, expired, or ended for a change.

    Earlier is what was journalled earlier. A process that was frozen in between may still send an earlier one
    afterwards; then the venue must refuse it.
    """
    in_order = sorted(_matched(file), key=lambda pair: pair[0].n if pair[1] is None else pair[1].n)
    sends = [send for send, _ in in_order]
    for index, send in enumerate(sends):
        for earlier in sends[:index]:
            wrong = _still_alive(evidence, file, earlier, send)
            if wrong:
                yield Violation("G3", file.key, send.at_ms, f"{send.request.client_order_id} sent while {wrong}")
                return


def same_id_after_absence(_evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G3: a resend after proven absence keeps its id, so that the venue can stop it should the proof be wrong."""
    for write, record in file.versions:
        for before, after in itertools.pairwise(record.attempts):
            gone = before.state in {AttemptState.ABSENT, AttemptState.NOT_SENT}
            if gone and before.client_order_id != after.client_order_id:
                text = f"{before.client_order_id} was sent again as {after.client_order_id}"
                yield Violation("G3", file.key, write.at_ms, text)
                return


def _still_alive(evidence: Evidence, file: CaseFile, earlier: Send, send: Send) -> str | None:
    for arrival in earlier.accepted:
        if arrival.at_ms > send.at_ms:
            return f"an earlier request was to be accepted {arrival.at_ms - send.at_ms} ms later"
        order = file.orders[arrival.venue_order_id or ""]
        if order.ended_ms is None or order.ended_ms > send.at_ms:
            return f"order {order.venue_order_id} of an earlier request was open"
        is_changed = any(call.n < send.n for call in file.of_kind("replace"))
        if not is_changed and not (order.is_pruned and not order.filled):
            return f"order {order.venue_order_id} of an earlier request had been accepted"
    if earlier.n > send.n or any(arrival.at_ms <= send.at_ms for arrival in earlier.arrivals):
        return None
    dead_ms = dead_at_ms(evidence, earlier)
    if dead_ms >= send.at_ms:
        left = "for ever" if dead_ms == _UNRESTRICTED else f"for {dead_ms - send.at_ms:.0f} ms"
        return f"an earlier request could still be accepted {left}"
    return None


def dead_at_ms(evidence: Evidence, send: Send) -> float:
    """The last true instant at which the venue would accept *send*."""
    dead_after = None if send.wire is None else send.wire.dead_after_ms
    return _UNRESTRICTED if dead_after is None else dead_after - evidence.venue_skew_ms


def _certainly_dead_ms(evidence: Evidence, send: Send, reader: str) -> float:
    """From when on *reader* may rely on *send* being dead, in true time.

    Its own request's deadline plus the declared skew, by its own clock; another process's was found in the journal
    later than it was sent, and what counts is the venue's clock.
    """
    dead_after = None if send.wire is None else send.wire.dead_after_ms
    if dead_after is None or send.process != reader or evidence.history is None:
        return dead_at_ms(evidence, send)
    return dead_after + round(evidence.profile.clock_skew_s * 1000) - evidence.history.skews_ms.get(reader, 0)


def absence_was_proven(evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G3, G18: "absent" is written only after a read of every view that succeeded and began late enough."""
    if evidence.history is None:
        return
    lag_ms = round(evidence.profile.read_lag_s * 1000)
    for write, attempt in _called_absent(file):
        sends = [s for s in file.sends if s.n < write.n and s.request.client_order_id == attempt.client_order_id]
        safe_ms = max((_certainly_dead_ms(evidence, s, write.process) for s in sends), default=0) + lag_ms
        reads = [r for r in file.reads if _led_to(r, write, attempt)]
        cid = attempt.client_order_id
        for view in evidence.profile.views:
            read = last(r for r in reads if r.view is view)
            if read is None or not _says_absent(read, write):
                yield Violation("G18", file.key, write.at_ms, f"{cid} absent without a good read of {view.value}")
            elif read.began_ms < safe_ms:
                text = f"{cid} absent by a read {safe_ms - read.began_ms:.0f} ms too early"
                yield Violation("G3", file.key, write.at_ms, text)
            elif view is View.CLOSED_ORDERS and not _was_not_open_before(reads, read, write, safe_ms, lag_ms):
                text = f"{cid} absent by lists between which it may have moved"
                yield Violation("G3", file.key, write.at_ms, text)


def _says_absent(read: Read, write: Write) -> bool:
    return read.found is False and read.ended_n is not None and read.ended_n < write.n


def _was_not_open_before(reads: list[Read], closed: Read, write: Write, safe_ms: float, lag_ms: int) -> bool:
    """Whether the open list said no, so long before that what had ended by then must be among the closed."""
    opens = [r for r in reads if r.view is View.OPEN_ORDERS and _says_absent(r, write) and r.began_ms >= safe_ms]
    in_time = any(r.ended_ms is not None and r.ended_ms + lag_ms <= closed.began_ms for r in opens)
    return in_time or not any(r.view is View.OPEN_ORDERS for r in reads)


def _led_to(read: Read, write: Write, attempt: Attempt) -> bool:
    """Whether *read* was one of those after which *write* called *attempt* absent."""
    mine = read.process == write.process and (write.call_n is None or read.call_n == write.call_n)
    return mine and read.n < write.n and read.client_order_id == attempt.client_order_id


def _called_absent(file: CaseFile) -> Iterator[tuple[Write, Attempt]]:
    before: dict[int, AttemptState] = {}
    for write, record in file.versions:
        for attempt in record.attempts:
            if attempt.state is AttemptState.ABSENT and before.get(attempt.number) is not AttemptState.ABSENT:
                yield write, attempt
        before = {attempt.number: attempt.state for attempt in record.attempts}


def fencing(history: History) -> Iterator[Violation]:
    """G7: no write under a lease that has passed on; no new attempt without one; deadlines end inside it."""
    current: dict[str, Lease] = {}
    attempts: dict[str, int] = {}
    for write in history.writes:
        batch, fence = write.batch, write.batch.fence
        if fence is not None and fence.name in current and current[fence.name].token != fence.token:
            text = f"written with token {fence.token}, {current[fence.name].token} is current"
            yield Violation("G7", fence.name, write.at_ms, text)
        if write.granted is not None:
            current[write.granted.name] = write.granted
        for record in write.records():
            known = attempts.get(record.intent.identity, 0)
            attempts[record.intent.identity] = len(record.attempts)
            if len(record.attempts) > known:
                yield from _under_lease(write, record, fence or write.granted)
        if batch.release is not None and current.get(batch.release.name) == batch.release:
            del current[batch.release.name]


def _under_lease(write: Write, record: IntentRecord, lease: Lease | None) -> Iterator[Violation]:
    deadline_ms = record.attempts[-1].deadline_ms
    if lease is None:
        yield Violation("G7", record.intent.key, write.at_ms, "an attempt was journalled without a lease")
    elif deadline_ms is not None and deadline_ms > lease.expires_at_ms:
        text = f"a deadline {deadline_ms - lease.expires_at_ms} ms beyond its lease"
        yield Violation("G7", record.intent.key, write.at_ms, text)


def quiet(history: History) -> Iterator[Violation]:
    """G15: a second pass over the same venue writes no record and tells no event."""
    for write in history.writes:
        loud = write.batch.puts or write.batch.events
        if history.quiet_n is not None and write.n > history.quiet_n and loud:
            kinds = ", ".join(event.type.value for event in write.batch.events) or "a record"
            key = next((record.intent.key for record in write.records()), "")
            yield Violation("G15", key, write.at_ms, f"a second pass over the same venue wrote {kinds}")
