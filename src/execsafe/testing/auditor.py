"""The auditor: says whether a run kept the guarantees, from what really happened at the venue.

It reads the venue's hidden ledger, the journal's versions and what callers were told, and decides by its own
reading of the guarantees: it shares no rule with ``core``. What it finds are values; nothing is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

import attrs

from execsafe.model.intent import IntentState
from execsafe.model.order import ZERO
from execsafe.testing import _protocol as protocol
from execsafe.testing._evidence import CaseFile, Evidence, Order
from execsafe.testing._history import Call, History
from execsafe.testing._violation import Violation

__all__ = ["Auditor", "Evidence", "Violation"]

Check: TypeAlias = Callable[[Evidence, CaseFile], Iterable[Violation]]

_FAILURES: Final = {"Rejected", "NeverPlaced"}
_FAILED: Final = {IntentState.REJECTED, IntentState.FAILED_FINAL}
_PROMPT_MS: Final = 1_000  # from a call to its first write, where nothing disturbs it; normally 5 ms


class Auditor:
    """Judges one finished run.

    Args:
        evidence: what happened.
        seed: put into each violation, for its reproduction.
    """

    def __init__(self, evidence: Evidence, *, seed: int | None = None) -> None:
        self.evidence = evidence
        self._seed = seed

    def audit(self) -> tuple[Violation, ...]:
        """All violations, in the order of the guarantees' checks."""
        files, strays = self.evidence.case_files()
        found = [
            Violation("G2", "", entry.at_ms, f"order {entry.venue_order_id} belongs to no journalled intent")
            for entry in strays
        ]
        for key in sorted(files):
            for check in _CHECKS:
                found.extend(check(self.evidence, files[key]))
        if self.evidence.history is not None:
            found.extend(protocol.fencing(self.evidence.history))
            found.extend(protocol.quiet(self.evidence.history))
            found.extend(_typed_errors(self.evidence.history))
        return tuple(attrs.evolve(violation, seed=self._seed) for violation in found)


# --- from the ledger alone ------------------------------------------------------------------------


def _no_excess(_evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G1: at every instant, filled + open ≤ what was asked for by then; a reduced total counts once in force."""
    for instant in file.instants:
        allowed = file.authorised(instant.entry.at_ms)
        if instant.exposure > allowed:
            yield Violation(
                "G1", file.key, instant.entry.at_ms, f"{instant.exposure} owned or open, {allowed} authorised"
            )
            return
    for send in file.sends:
        for arrival in send.accepted:
            at = next((i for i in file.instants if i.entry.venue_order_id == arrival.venue_order_id), None)
            if at is not None and at.exposure > max(file.in_force(send.n), at.filled):
                text = f"{at.exposure} owned or open after a change to {file.in_force(send.n)} was confirmed"
                yield Violation("G1", file.key, arrival.at_ms, text)


def _no_false_failure(_evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G4: nobody is told "failed", and nothing is journalled as failed, of what the venue has or may still take."""
    is_changed = any(True for _ in file.of_kind("replace"))
    claims = [(c.told_ms, c.told) for c in file.calls if c.told in _FAILURES and c.told_ms is not None]
    claims += [(w.at_ms, f"journalled {r.state.value}") for w, r in file.versions if r.state in _FAILED]
    if file.final is not None and file.final.state in _FAILED and not file.versions:
        claims.append((file.final.updated_at_ms, f"journalled {file.final.state.value}"))
    for at_ms, claim in claims:
        wrong = [order for order in file.orders.values() if not _is_nothing(order, at_ms, is_changed)]
        if wrong:
            yield Violation("G4", file.key, at_ms, f"{claim}, but the venue accepted {wrong[0].venue_order_id}")
            return


def _is_nothing(order: Order, at_ms: int, is_changed: bool) -> bool:
    """Whether an accepted order had by then come to nothing in a way that is no failure to hide.

    A replaced order ends unfilled at our own wish; one that the venue pruned at its unfilled end was never to be
    seen again.
    """
    ended = order.ended_ms is not None and order.ended_ms <= at_ms and order.filled == ZERO
    return ended and (is_changed or order.is_pruned)


def _evidence_adopted(_evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G11: in the end the record says what the ledger says; on the way it never claimed more."""
    final = file.final
    if final is None:
        if file.orders:
            at_ms = next(iter(file.orders.values())).accepted_ms
            yield Violation("G2", file.key, at_ms, "orders of an intent that has no record")
        return
    if final.filled_quantity != file.filled and not _is_open_doubt(final.state):
        text = f"record {final.state.value} says {final.filled_quantity} filled, the ledger {file.filled}"
        yield Violation("G11", file.key, final.updated_at_ms, text)
    resting = [order for order in file.orders.values() if order.ended_ms is None]
    if final.state.is_terminal and resting:
        text = f"recorded {final.state.value}, but {resting[0].venue_order_id} still rests"
        yield Violation("G4", file.key, final.updated_at_ms, text)
    unseen = any(order.is_pruned for order in file.orders.values())
    if final.state is IntentState.LIVE and not resting and not unseen:
        yield Violation("G11", file.key, final.updated_at_ms, "recorded live, but nothing rests at the venue")


def _is_open_doubt(state: IntentState) -> bool:
    return state in {IntentState.UNRESOLVED, IntentState.IN_DOUBT}


def _no_false_fill(_evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G11: what callers are told to have filled had filled by then."""
    for call in file.calls:
        if call.record is None or call.told_ms is None:
            continue
        had = max((i.filled for i in file.instants if i.entry.at_ms <= call.told_ms), default=ZERO)
        if call.record.filled_quantity > had:
            text = f"told {call.record.filled_quantity} filled when {had} had"
            yield Violation("G11", file.key, call.told_ms, text)


# --- from the calls -------------------------------------------------------------------------------


def _same_key_same_effect(_evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G5: one payload per key reaches the venue, and only its callers are told of the outcome."""
    meant = file.meant
    if meant is None:
        return
    for send in file.sends:
        if send.request.params != meant.params:
            yield Violation("G5", file.key, send.at_ms, "a payload was sent that conflicts with the recorded one")
    for call in file.of_kind("submit"):
        is_other = call.intent is not None and call.intent.fingerprint != meant.fingerprint
        if call.record is not None and is_other:
            yield Violation("G5", file.key, call.at_ms, f"a conflicting call was told {call.told}")
        if call.told == "IntentConflict" and not is_other:
            yield Violation("G5", file.key, call.at_ms, "the key's own payload was called a conflict")


def _one_runs(_evidence: Evidence, file: CaseFile) -> Iterator[Violation]:
    """G6: in one process at most one request of an intent is under way, and no call waits for another key's."""
    under_way: dict[str, int] = {}
    for send in file.sends:
        if under_way.get(send.process, 0) > send.n:
            yield Violation("G6", file.key, send.at_ms, f"two requests under way at once in {send.process}")
        ended_n = send.ended_n if send.ended_n is not None else send.n
        under_way[send.process] = max(under_way.get(send.process, 0), ended_n)
    for call in file.of_kind("submit"):
        if _was_alone(file, call) and call.intent == file.meant:
            until = call.first_commit_ms if call.first_commit_ms is not None else call.told_ms
            waited = 0 if until is None else until - call.at_ms - call.paused_ms
            if waited > _PROMPT_MS:
                text = f"{waited} ms before the first write, with nothing else going on for this key"
                yield Violation("G6", file.key, call.at_ms, text)


def _was_alone(file: CaseFile, call: Call) -> bool:
    """Whether nobody else had anything to do with the key before the call was over."""
    ended_n = float("inf") if call.told_n is None else call.told_n
    return not any(other.n < ended_n for other in file.calls if other is not call)


def _typed_errors(history: History) -> Iterator[Violation]:
    """Callers are told in execsafe's own words."""
    for call in history.calls:
        if call.told is not None and call.told.startswith("!"):
            at_ms = call.at_ms if call.told_ms is None else call.told_ms
            yield Violation("errors", call.key, at_ms, f"{call.kind}() raised {call.error!r}")


_CHECKS: Final[tuple[Check, ...]] = (
    _no_excess,
    protocol.write_ahead,
    protocol.proof_before_resend,
    protocol.same_id_after_absence,
    protocol.called_unsent,
    _no_false_failure,
    _same_key_same_effect,
    _one_runs,
    protocol.absence_was_proven,
    _evidence_adopted,
    _no_false_fill,
)
