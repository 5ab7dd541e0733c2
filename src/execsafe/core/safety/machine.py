"""Trading state as a decision: what trips it, how long, and how it comes back.

Three states: ACTIVE, REDUCE_ONLY (no entries), HALTED (no entries, and only a person ends it). The state is never set
as such: it is the worst of the *breakers* that stand, so that two reasons cannot undo each other. Exits and cancels
pass in every state. Time is an argument, in Unix ms.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

import attrs

from execsafe.core.health import Health, Window
from execsafe.core.safety.tables import (
    AUTH_KINDS,
    ENDS,
    PROBE_BAD,
    PROBE_GOOD,
    PROBE_PROVES,
    RULES,
    STARTS,
    DenyReason,
    SafetyPolicy,
    TradingState,
    TripReason,
)
from execsafe.model.event import Event, EventType
from execsafe.model.intent import ErrorFacts
from execsafe.model.values import Params

CAUSES_MAX: Final = 200
_NOTE_MAX: Final = 200
_PROBE_FAILED: Final = "the probe failed"


# --- What is remembered ------------------------------------------------------------------------------


class BreakerPhase(enum.StrEnum):
    """Where one breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # the cool-down is over: one entry may try


@attrs.frozen(kw_only=True)
class Breaker:
    """One reason that tripped. ``ended_at_ms`` None while it stands; kept on for a while to count *times*.

    ``probes`` failed since it tripped. They make it wait longer, as each time does; only *times* lead to a halt: that
    the venue does not take orders well says nothing about the reason.
    """

    reason: TripReason
    state: TradingState
    by_hand: bool
    times: int = 1
    probes: int = 0
    since_ms: int = 0
    until_ms: int = 0
    ended_at_ms: int | None = None
    note: str = ""


@attrs.frozen(kw_only=True)
class Cause:
    """What a reason is about: an intent, a position, a component. While it lasts its breaker stays open.

    ``account`` is whose it is, where the event said so: a reconciliation ends the differences of its own account.
    """

    reason: TripReason
    subject: str
    account: str = ""


@attrs.frozen(kw_only=True)
class SafetyRecord:
    """Everything that must survive a restart. ``seq`` is how far the outbox was read."""

    breakers: tuple[Breaker, ...] = ()
    causes: tuple[Cause, ...] = ()
    probe: str = ""
    probe_at_ms: int = 0
    seq: int = 0

    def breaker(self, reason: TripReason) -> Breaker | None:
        """The breaker of a reason, standing or remembered."""
        return next((b for b in self.breakers if b.reason is reason), None)

    def count(self, reason: TripReason) -> int:
        """How many causes it has."""
        return sum(c.reason is reason for c in self.causes)


def phase_of(record: SafetyRecord, breaker: Breaker, policy: SafetyPolicy, *, now_ms: int) -> BreakerPhase:
    """Where a breaker stands now."""
    if breaker.ended_at_ms is not None:
        return BreakerPhase.CLOSED
    has_cause = record.count(breaker.reason) >= policy.limit(breaker.reason)
    return BreakerPhase.OPEN if breaker.by_hand or has_cause or now_ms < breaker.until_ms else BreakerPhase.HALF_OPEN


def state_of(record: SafetyRecord) -> TradingState:
    """The worst of the breakers that stand. A half-open one stands still."""
    standing = (b.state for b in record.breakers if b.ended_at_ms is None)
    return max(standing, key=lambda state: state.rank, default=TradingState.ACTIVE)


def reasons_of(record: SafetyRecord) -> tuple[TripReason, ...]:
    """Why the state is what it is; empty when ACTIVE."""
    return tuple(b.reason for b in record.breakers if b.ended_at_ms is None)


# --- What changes it ---------------------------------------------------------------------------------


def trip(
    record: SafetyRecord,
    reason: TripReason,
    policy: SafetyPolicy,
    *,
    now_ms: int,
    note: str = "",
    state: TradingState | None = None,
) -> SafetyRecord:
    """Open a breaker: for longer each time it trips again soon, and in the end until somebody looks.

    One that is open stays as it is, unless *state* is worse: a storm of one failure is one trip.
    """
    rule, known = RULES[reason], record.breaker(reason)
    wanted = rule.state if state is None else state
    times, probes = 1, 0
    if known is not None:
        phase = phase_of(record, known, policy, now_ms=now_ms)
        if phase is BreakerPhase.OPEN and wanted.rank <= known.state.rank:
            return record
        is_calm = phase is BreakerPhase.CLOSED and now_ms - (known.ended_at_ms or 0) >= policy.calm_s * 1000
        times = known.times if phase is BreakerPhase.OPEN else 1 if is_calm else known.times + 1
        probes = 0 if phase is BreakerPhase.CLOSED else known.probes
    is_escalated = times > policy.escalate_after
    opened = Breaker(
        reason=reason,
        state=TradingState.HALTED if is_escalated else wanted,
        by_hand=rule.by_hand or is_escalated,
        times=times,
        probes=probes,
        since_ms=now_ms,
        until_ms=now_ms + policy.cool_down_ms(times + probes),
        note=note[:_NOTE_MAX],
    )
    return _with(record, opened)


def add_cause(
    record: SafetyRecord,
    reason: TripReason,
    subject: str,
    policy: SafetyPolicy,
    *,
    now_ms: int,
    note: str = "",
    account: str = "",
) -> SafetyRecord:
    """Note a cause; with as many as the policy allows, trip."""
    cause = Cause(reason=reason, subject=subject, account=account)
    if cause in record.causes:
        return record
    if len(record.causes) >= CAUSES_MAX:
        # Too many to follow one by one: from here on only a person says that it is over.
        return trip(record, TripReason.MANUAL, policy, now_ms=now_ms, note="too many causes", state=TradingState.HALTED)
    count = record.count(reason) + 1
    if count >= policy.limit(reason):
        record = trip(record, reason, policy, now_ms=now_ms, note=note)
    return attrs.evolve(record, causes=(*record.causes, cause))


def remove_cause(
    record: SafetyRecord, reason: TripReason, subject: str, policy: SafetyPolicy, *, now_ms: int
) -> SafetyRecord:
    """A cause is over. When too few are left the cool-down begins."""
    kept = tuple(c for c in record.causes if (c.reason, c.subject) != (reason, subject))
    return _with_causes(record, reason, kept, policy, now_ms)


def reconciled(record: SafetyRecord, account: str, policy: SafetyPolicy, *, now_ms: int) -> SafetyRecord:
    """Venue and book of an account are equal: its mismatches are over."""
    gone = (TripReason.MISMATCH, account)
    kept = tuple(c for c in record.causes if (c.reason, c.account) != gone)
    return _with_causes(record, TripReason.MISMATCH, kept, policy, now_ms)


def _with_causes(
    record: SafetyRecord, reason: TripReason, kept: tuple[Cause, ...], policy: SafetyPolicy, now_ms: int
) -> SafetyRecord:
    if len(kept) == len(record.causes):
        return record
    after = attrs.evolve(record, causes=kept)
    known, limit = record.breaker(reason), policy.limit(reason)
    if known is None or known.ended_at_ms is not None or not after.count(reason) < limit <= record.count(reason):
        return after
    return _with(after, attrs.evolve(known, until_ms=now_ms + policy.cool_down_ms(known.times + known.probes)))


def probed(
    record: SafetyRecord, policy: SafetyPolicy, *, good: bool, now_ms: int, proves: TripReason | None = None
) -> SafetyRecord:
    """The probe came to something: every half-open breaker closes, or opens again for longer.

    A failure trips the reason that it *proves*, and counts for it; all others only wait longer.
    """
    after = attrs.evolve(record, probe="", probe_at_ms=0)
    for breaker in record.breakers:
        if phase_of(record, breaker, policy, now_ms=now_ms) is not BreakerPhase.HALF_OPEN:
            continue
        if good:
            after = _with(after, attrs.evolve(breaker, ended_at_ms=now_ms))
        elif breaker.reason is proves:
            after = trip(after, breaker.reason, policy, now_ms=now_ms, note=_PROBE_FAILED)
        else:
            after = _with(after, _waits_longer(breaker, policy, now_ms))
    return after


def _waits_longer(breaker: Breaker, policy: SafetyPolicy, now_ms: int) -> Breaker:
    probes = breaker.probes + 1
    until_ms = now_ms + policy.cool_down_ms(breaker.times + probes)
    return attrs.evolve(breaker, probes=probes, until_ms=until_ms, note=_PROBE_FAILED)


def set_by_hand(
    record: SafetyRecord, state: TradingState, note: str, policy: SafetyPolicy, *, now_ms: int
) -> SafetyRecord:
    """Restrict trading by hand; ACTIVE takes back what was set by hand, and nothing else."""
    if state is TradingState.ACTIVE:
        return reset(record, (TripReason.MANUAL,))
    known = record.breaker(TripReason.MANUAL)
    if known is not None and known.ended_at_ms is None:
        return _with(record, attrs.evolve(known, state=state, note=note[:_NOTE_MAX]))
    fresh = reset(record, (TripReason.MANUAL,))
    return trip(fresh, TripReason.MANUAL, policy, now_ms=now_ms, note=note, state=state)


def reset(record: SafetyRecord, reasons: Iterable[TripReason] | None) -> SafetyRecord:
    """Close breakers by hand (None: all), with their causes and their history. Somebody has looked."""
    chosen = frozenset(TripReason if reasons is None else reasons)
    return attrs.evolve(
        record,
        breakers=tuple(b for b in record.breakers if b.reason not in chosen),
        causes=tuple(c for c in record.causes if c.reason not in chosen),
    )


def tidied(record: SafetyRecord, policy: SafetyPolicy, *, now_ms: int) -> SafetyRecord:
    """Without breakers that have been quiet for long enough."""
    calm_ms = policy.calm_s * 1000
    kept = tuple(b for b in record.breakers if b.ended_at_ms is None or now_ms - b.ended_at_ms < calm_ms)
    return record if len(kept) == len(record.breakers) else attrs.evolve(record, breakers=kept)


def _with(record: SafetyRecord, breaker: Breaker) -> SafetyRecord:
    others = tuple(b for b in record.breakers if b.reason is not breaker.reason)
    return attrs.evolve(record, breakers=(*others, breaker))


# --- What an entry is told ---------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Denial:
    """Why an entry may not go out."""

    reason: DenyReason
    message: str


def admit(
    record: SafetyRecord, identity: str, policy: SafetyPolicy, *, now_ms: int
) -> tuple[SafetyRecord, Denial | None]:
    """Whether an entry may go out, and the record with it as the probe where it goes out on trial."""
    standing = [b for b in record.breakers if b.ended_at_ms is None]
    if not standing:
        return record, None
    phases = {b.reason: phase_of(record, b, policy, now_ms=now_ms) for b in standing}
    closed = [b for b in standing if phases[b.reason] is BreakerPhase.OPEN]
    if closed:
        state = max((b.state for b in closed), key=lambda s: s.rank)
        why = ", ".join(_told(record, b, now_ms) for b in closed)
        return record, Denial(reason=DenyReason(state.value), message=f"trading is {state.value}: {why}")
    is_taken = record.probe not in {"", identity} and now_ms - record.probe_at_ms < policy.probe_timeout_s * 1000
    if is_taken:
        return record, Denial(reason=DenyReason.PROBING, message="one entry is on trial; wait for its outcome")
    if record.probe == identity:
        return record, None
    return attrs.evolve(record, probe=identity, probe_at_ms=now_ms), None


def _told(record: SafetyRecord, breaker: Breaker, now_ms: int) -> str:
    note = f" ({breaker.note})" if breaker.note else ""
    return f"{breaker.reason.value}{note} {_rest(record, breaker, now_ms)}"


def _rest(record: SafetyRecord, breaker: Breaker, now_ms: int) -> str:
    if breaker.by_hand:
        return "until reset by hand (execsafe reset)"
    if count := record.count(breaker.reason):
        return f"while {count} last"
    return f"for {max(0, breaker.until_ms - now_ms)} ms more"


# --- What events do ----------------------------------------------------------------------------------


def is_auth(error: ErrorFacts | None) -> bool:
    """Whether the venue refused the key itself."""
    return error is not None and error.kind in AUTH_KINDS


def matters(kind: EventType) -> bool:
    """Whether an event of this type can change anything here."""
    return kind in _RELEVANT


def observed(
    record: SafetyRecord, answers: Window, event: Event, policy: SafetyPolicy, *, now_ms: int
) -> tuple[SafetyRecord, Window]:
    """The record and the window of answered orders after an event. Seen again, it changes no cause."""
    before = record
    if event.subject == record.probe and record.probe:
        # First: what it proves is about breakers that were half open before it.
        if event.type in PROBE_GOOD:
            record = probed(record, policy, good=True, now_ms=now_ms)
            answers = Window(span_ms=answers.span_ms)  # what was refused before says nothing any more
        elif event.type in PROBE_BAD:
            record = probed(record, policy, good=False, now_ms=now_ms, proves=PROBE_PROVES.get(event.type))
    if is_auth(event.error):
        note = "" if event.error is None else event.error.kind
        record = trip(record, TripReason.AUTHENTICATION, policy, now_ms=now_ms, note=note)
    for reason in ENDS.get(event.type, ()):
        record = remove_cause(record, reason, event.subject, policy, now_ms=now_ms)
    started = STARTS.get(event.type)
    if started is not None:
        account = str(event.details.thaw().get("account", ""))
        note = event.type.value
        record = add_cause(record, started, event.subject, policy, now_ms=now_ms, note=note, account=account)
    if event.type is EventType.HEALTH_CHANGED:
        record = _after_health(record, event, policy, now_ms)
    if event.type is EventType.RECONCILED and event.details.thaw().get("differences") == 0:
        record = reconciled(record, event.subject, policy, now_ms=now_ms)
    if event.type in {EventType.ORDER_ACKNOWLEDGED, EventType.ORDER_REJECTED}:
        is_reject = event.type is EventType.ORDER_REJECTED
        answers = answers.add(now_ms, good=not is_reject, bad=is_reject)
        if is_reject and before is record:
            record = _after_reject(record, answers, policy, now_ms)
    return record, answers


def _after_health(record: SafetyRecord, event: Event, policy: SafetyPolicy, now_ms: int) -> SafetyRecord:
    critical = policy.critical_components
    if critical is not None and event.subject not in critical:
        return record
    health = event.details.thaw().get("after")
    if health == Health.DOWN:
        return add_cause(record, TripReason.HEALTH, event.subject, policy, now_ms=now_ms, note=event.subject)
    if health == Health.HEALTHY:
        return remove_cause(record, TripReason.HEALTH, event.subject, policy, now_ms=now_ms)
    return record


def _after_reject(record: SafetyRecord, answers: Window, policy: SafetyPolicy, now_ms: int) -> SafetyRecord:
    good, bad = answers.counts(now_ms)
    if good + bad < policy.reject_samples_min or bad < policy.reject_ratio * (good + bad):
        return record
    note = f"{bad} of {good + bad} rejected"
    return trip(record, TripReason.REJECT_RATIO, policy, now_ms=now_ms, note=note)


def _trial(breaker: Breaker) -> tuple[int, int, TradingState]:
    return breaker.times, breaker.probes, breaker.state


_RELEVANT: Final = (
    frozenset(STARTS)
    | frozenset(ENDS)
    | PROBE_GOOD
    | PROBE_BAD
    | {EventType.HEALTH_CHANGED, EventType.RECONCILED, EventType.ORDER_ACKNOWLEDGED, EventType.ORDER_REJECTED}
)


def narrate(before: SafetyRecord, after: SafetyRecord, *, subject: str, by: str, now_ms: int) -> tuple[Event, ...]:
    """What is to be told of a change: breakers that tripped, and the state if it is another one."""
    told: list[Event] = []
    for breaker in after.breakers:
        was = before.breaker(breaker.reason)
        is_new = was is None or was.ended_at_ms is not None or _trial(was) != _trial(breaker)
        if breaker.ended_at_ms is None and is_new:
            details = {
                "reason": breaker.reason.value,
                "state": breaker.state.value,
                "times": breaker.times,
                "until_ms": None if breaker.by_hand else breaker.until_ms,
                "why": breaker.note,
            }
            told.append(
                Event(
                    type=EventType.BREAKER_TRIPPED,
                    at_ms=now_ms,
                    subject=subject,
                    note=breaker.reason.value,
                    details=Params.of(details),
                )
            )
    was_state, state = state_of(before), state_of(after)
    if state is not was_state:
        reasons = [reason.value for reason in reasons_of(after)]
        changed = {"before": was_state.value, "after": state.value, "reasons": reasons, "by": by}
        told.append(
            Event(
                type=EventType.TRADING_STATE_CHANGED,
                at_ms=now_ms,
                subject=subject,
                note=f"{was_state.value}->{state.value}",
                details=Params.of(changed),
            )
        )
    return tuple(told)
