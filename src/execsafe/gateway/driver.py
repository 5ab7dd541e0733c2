"""Carries one intent to where nothing is left to do. Decisions are in ``core``; here is only doing and waiting.

The driver works on an intent under its lease. Whatever interrupts it (cancellation, a kill, a lost reply, a failing
store), the journal says at least as much as the venue can know, and driving again from there reaches the same end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.lowlevel
import attrs

from execsafe._calls import within
from execsafe._redacting import redact_chain
from execsafe.clock import latest_ms
from execsafe.core import transitions
from execsafe.core.approval import is_stale
from execsafe.core.ghosts import Verdict
from execsafe.core.steps import Step, is_done, next_step
from execsafe.errors import LeaseHeld, OutcomeUnknown, StaleFencingToken, StoreError, TradingDenied
from execsafe.gateway.checks import EntryChecks
from execsafe.gateway.endings import Endings
from execsafe.gateway.policy import GatewayPolicy
from execsafe.gateway.requests import Requests
from execsafe.ghosts import GhostOrderResolver, order_ref
from execsafe.intents import IntentRegistry, Transition, lease_name
from execsafe.model.intent import Attempt, AttemptState, ErrorFacts, Intent, IntentRecord, IntentState
from execsafe.model.order import OrderReport, OrderStatus
from execsafe.model.outcome import Judged, Meaning, Operation
from execsafe.model.trusted import trusted
from execsafe.model.venue import Expiry
from execsafe.ports import Clock, ExchangeAdapter, Lease, LeaseRequest

_new_lease_request: Final = trusted(LeaseRequest)
_TIMED_OUT: Final = ErrorFacts(kind="TimeoutError", message="no answer within the request time-out")
_NAMELESS: Final = ErrorFacts(kind="EmptyAnswer", message="the answer names no order")
_INTERRUPTED: Final = ErrorFacts(kind="Cancelled", message="the call was cancelled while the request was under way")
_DOUBTFUL: Final = frozenset({AttemptState.IN_DOUBT, AttemptState.UNRESOLVED})
_CANCEL_PAUSE_FACTOR: Final = 2
_CANCEL_PAUSE_MAX_MS: Final = 8_000


@attrs.define
class Journey:
    """One drive: the newest record, the lease it is driven under, and what the venue's client last said."""

    record: IntentRecord
    lease: Lease | None = None
    report: OrderReport | None = None
    cause: BaseException | None = None
    stalled: bool = False
    is_cancel_taken: bool = False


class _Overtaken(Exception):
    """The attempt is no longer in doubt."""


class Driver:
    """See the module's docstring. One driver serves all intents of a gateway."""

    def __init__(
        self,
        adapter: ExchangeAdapter,
        registry: IntentRegistry,
        resolver: GhostOrderResolver,
        policy: GatewayPolicy,
        *,
        clock: Clock,
        holder: str,
        checks: EntryChecks,
        endings: Endings,
        requests: Requests,
    ) -> None:
        self._checks = checks
        self._endings = endings
        self._adapter = adapter
        self._registry = registry
        self._resolver = resolver
        self._policy = policy
        self._clock = clock
        self._holder = holder
        self._patience_s = policy.patience_for(adapter.profile)
        self._requests = requests
        self._ttl_ms = policy.lease_ttl_ms(adapter.profile)
        # When the requests of attempts in doubt can no longer land, by client order id and number (a resend has the
        # same id, and may be another process's). What this process sent is known exactly; what it found in the
        # journal is counted from when it was found, so that no clock step between two processes can make a proof
        # too early.
        self._deadlines: dict[tuple[str, int], int | None] = {}
        self._steps: dict[Step, Callable[[Journey], Awaitable[None]]] = {
            Step.SEND: self._send,
            Step.RESOLVE: self._resolve,
            Step.CANCEL: self._cancel,
            Step.GIVE_UP: self._give_up,
        }

    def lease_request(self, intent: Intent) -> LeaseRequest:
        """The lease under which *intent* is driven."""
        return _new_lease_request(name=lease_name(intent), holder=self._holder, ttl_ms=self._ttl_ms)

    async def drive(self, journey: Journey) -> Journey:
        """Do step after step until nothing is left to do, or until patience is over.

        Raises:
            OutcomeUnknown: the journal or the lease was lost while an order may be at the venue.
            StoreError: the journal failed before anything was sent.
        """
        try:
            if journey.record.state is IntentState.UNRESOLVED:
                await self._reopen(journey)
            while not journey.stalled and not is_done(journey.record):
                await self._steps[self._next(journey.record)](journey)
        except (StaleFencingToken, LeaseHeld) as error:
            if journey.record.version == 0:
                raise  # not journalled, hence not sent: another process has this key
            journey.lease = None
            raise self._lost(journey, "the lease passed to another process, which settles it") from error
        except StoreError as error:
            if journey.record.version == 0:
                raise  # not journalled, hence not sent
            raise self._lost(journey, "the journal failed while the order may be at the venue") from error
        finally:
            if journey.lease is not None:
                await self._release(journey, journey.lease)
        return journey

    async def _reopen(self, journey: Journey) -> None:
        """Look into an unresolved intent again; nothing is written, and nobody told, unless that changes something."""
        for attempt in journey.record.attempts:
            if attempt.state is AttemptState.UNRESOLVED:
                await self._look_into(journey, attempt)

    def _next(self, record: IntentRecord) -> Step:
        return next_step(record, attempts_max=self._policy.attempts_max, now_ms=self._clock.now_ms())

    async def _advance(self, journey: Journey, change: Transition) -> None:
        # Once everything is done the lease goes back in the same durable step.
        journey.record = await self._registry.advance(journey.record, change, lease=journey.lease, release_when=is_done)
        if is_done(journey.record):
            journey.lease = None

    async def _release(self, journey: Journey, lease: Lease) -> None:
        with contextlib.suppress(StoreError):  # then it expires by itself
            await self._registry.release_lease(lease)
        journey.lease = None

    # --- send ------------------------------------------------------------------------------------

    async def _send(self, journey: Journey) -> None:
        if journey.record.attempts:  # the first attempt was checked at the door
            try:
                await self._checks.ask(journey.record.rest)
            except TradingDenied:
                await self._give_up(journey)
                return
        attempt = await self._journal_attempt(journey)
        if attempt is None:
            return  # evidence came first
        if self._is_too_late(journey, attempt):
            # The journal took so long that the venue would refuse, that the lease may be another's, or that the
            # intent is no longer fresh.
            now_ms = self._clock.now_ms()
            await self._advance(journey, lambda r: transitions.not_sent(r, attempt.number, now_ms=now_ms))
            return
        await self._transmit(journey, attempt)

    async def _journal_attempt(self, journey: Journey) -> Attempt | None:
        record, now_ms = journey.record, self._clock.now_ms()
        acquire = self.lease_request(record.intent)
        if record.version == 0:
            journey.record, journey.lease = await self._registry.create(self._begin(record, now_ms), acquire=acquire)
            return journey.record.last
        is_ours = False

        def plan(current: IntentRecord) -> IntentRecord:
            # Asked again for every newer version: another process may have journalled an attempt, and sent it.
            nonlocal is_ours
            is_ours = self._next(current) is Step.SEND
            return self._begin(current, now_ms) if is_ours else current

        journey.lease = await self._registry.take_lease(record.intent, acquire)
        journey.record = await self._registry.advance(record, plan, lease=journey.lease)
        return journey.record.last if is_ours else None

    def _begin(self, record: IntentRecord, now_ms: int) -> IntentRecord:
        cid = self._adapter.client_order_id(record.intent, transitions.generation(record))
        deadline_ms = self._requests.deadline(record.intent, now_ms)
        return transitions.begin(record, client_order_id=cid, deadline_ms=deadline_ms, now_ms=now_ms)

    def _is_too_late(self, journey: Journey, attempt: Attempt) -> bool:
        now_ms, lease, terms = self._clock.now_ms(), journey.lease, journey.record.terms
        expired = attempt.deadline_ms is not None and now_ms >= attempt.deadline_ms
        lost = lease is None or now_ms >= lease.expires_at_ms
        return expired or lost or (terms.fresh_until_ms is not None and is_stale(terms, now_ms=latest_ms(self._clock)))

    async def _transmit(self, journey: Journey, attempt: Attempt) -> None:
        handed_over = False
        report: OrderReport | None = None
        judged: Judged | None = None
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
            handed_over = True
            with within(self._policy.request_timeout_s):
                report = await self._adapter.create_order(self._requests.build(journey.record.terms, attempt))
        except Exception as error:  # noqa: BLE001 - whatever a client raises: judged, never guessed
            judged = self._adapter.judge(error, Operation.CREATE)
            redact_chain(error, self._adapter.redact)
            journey.cause = error
        except BaseException:
            await self._interrupted(journey, attempt, handed_over=handed_over)
            raise
        await self._conclude(journey, attempt, report, judged)

    async def _conclude(
        self, journey: Journey, attempt: Attempt, report: OrderReport | None, judged: Judged | None
    ) -> None:
        if report is not None and _names_an_order(report):
            journey.report = report
            await self._take_in(journey, attempt, report)
            if journey.record.state is IntentState.LIVE:
                await self._confirm(journey, attempt, report)
        elif judged is not None and judged.meaning is Meaning.REJECTED:
            now_ms = self._clock.now_ms()
            facts = judged.facts
            await self._advance(journey, lambda r: transitions.refused(r, attempt.number, facts, now_ms=now_ms))
        else:
            exists = judged is not None and judged.meaning is Meaning.EXISTS
            self._deadlines[_name(attempt)] = self._deadline_after_send(journey, attempt)
            silence = _TIMED_OUT if report is None else _NAMELESS
            await self._doubt(journey, attempt, silence if judged is None else judged.facts, exists=exists)

    async def _interrupted(self, journey: Journey, attempt: Attempt, *, handed_over: bool) -> None:
        """Write down what is certain, whatever is being torn down; failing that, the journal says SENDING already."""
        with anyio.CancelScope(shield=True):
            try:
                if handed_over:
                    self._deadlines[_name(attempt)] = self._deadline_after_send(journey, attempt)
                    await self._doubt(journey, attempt, _INTERRUPTED)
                else:
                    now_ms = self._clock.now_ms()
                    await self._advance(journey, lambda r: transitions.not_sent(r, attempt.number, now_ms=now_ms))
            except (StoreError, StaleFencingToken):
                pass

    def _deadline_after_send(self, journey: Journey, attempt: Attempt) -> int | None:
        if self._adapter.expiry(journey.record.intent) is not Expiry.RELATIVE:
            return attempt.deadline_ms
        return self._clock.now_ms() + self._requests.window_ms

    async def _take_in(self, journey: Journey, attempt: Attempt, report: OrderReport) -> None:
        # The report answers our own request or look-up, so it is about this attempt, even where the venue does not
        # repeat the id.
        if report.client_order_id != attempt.client_order_id:
            report = attrs.evolve(report, client_order_id=attempt.client_order_id)
        now_ms = self._clock.now_ms()
        await self._advance(journey, lambda r: transitions.observed(r, report, now_ms=now_ms))

    async def _confirm(self, journey: Journey, attempt: Attempt, report: OrderReport) -> None:
        says_nothing = report.status is OrderStatus.UNKNOWN or report.filled_quantity is None
        if not (self._policy.confirm_acks and says_nothing):
            return
        look = await self._resolver.look(order_ref(journey.record.intent, journey.record.attempts[attempt.number - 1]))
        if look.report is not None:
            journey.report = look.report
            await self._take_in(journey, attempt, look.report)

    # --- resolve ---------------------------------------------------------------------------------

    async def _resolve(self, journey: Journey) -> None:
        attempt = next(a for a in journey.record.attempts if a.state in {AttemptState.SENDING, AttemptState.IN_DOUBT})
        if attempt.state is AttemptState.SENDING or _name(attempt) not in self._deadlines:
            await self._doubt(journey, attempt, None)
            attempt = journey.record.attempts[attempt.number - 1]
            if attempt.state is not AttemptState.IN_DOUBT:
                return
        await self._look_into(journey, attempt)

    async def _look_into(self, journey: Journey, attempt: Attempt) -> None:
        # The deadline in the record may be another process's, by another clock: judged is by what this one knows.
        intent = journey.record.intent
        watched = attrs.evolve(attempt, deadline_ms=self._watch_from_now(intent, attempt))
        try:
            resolution = await self._resolver.resolve(
                intent,
                watched,
                since_ms=self._clock.now_ms(),
                patience_s=self._patience_s,
                before_look=lambda: self._keep_watch(journey, attempt),
            )
        except _Overtaken:
            return
        if resolution.verdict is Verdict.FOUND and resolution.report is not None:
            journey.report = resolution.report
            await self._take_in(journey, attempt, resolution.report)
        else:
            await self._advance(journey, await self._proven(journey.record, attempt, resolution.verdict))
        self._forget_deadline(journey.record, attempt)

    async def _proven(self, record: IntentRecord, attempt: Attempt, verdict: Verdict) -> Transition:
        now_ms = self._clock.now_ms()
        if verdict is Verdict.ABSENT:
            return lambda r: _absent(r, attempt, now_ms)
        ended = await self._endings.concluded(record, attempt) if verdict is Verdict.ENDED else None
        if ended is not None:
            return ended
        return lambda r: transitions.left_unresolved(r, attempt.number, now_ms=now_ms)

    def _forget_deadline(self, record: IntentRecord, attempt: Attempt) -> None:
        if record.attempts[attempt.number - 1].state not in _DOUBTFUL:
            self._deadlines.pop(_name(attempt), None)

    async def _doubt(
        self, journey: Journey, attempt: Attempt, error: ErrorFacts | None, *, exists: bool = False
    ) -> None:
        now_ms = self._clock.now_ms()
        deadline_ms = self._watch_from_now(journey.record.intent, attempt)
        await self._advance(
            journey,
            lambda r: transitions.doubted(
                r, attempt.number, error, deadline_ms=deadline_ms, exists=exists, now_ms=now_ms
            ),
        )

    async def _keep_lease(self, journey: Journey) -> None:
        left_ms = 0 if journey.lease is None else journey.lease.expires_at_ms - self._clock.now_ms()
        if left_ms < self._ttl_ms // 2:
            intent = journey.record.intent
            journey.lease = await self._registry.take_lease(intent, self.lease_request(intent))

    def _watch_from_now(self, intent: Intent, attempt: Attempt) -> int | None:
        """When the attempt can no longer land, as far as this process can tell."""
        # Found in the journal, it may still be under way in a call that nothing excludes but a lease.
        found_in_journal = self._requests.deadline(intent, self._clock.now_ms())
        return self._deadlines.setdefault(_name(attempt), found_in_journal)

    async def _keep_watch(self, journey: Journey, attempt: Attempt) -> None:
        """Before every look: keep the lease, notice evidence that came another way, and ask for a cancel that is due.

        A cancel by our own id ends the order at once, should it be there. Its answer proves nothing, whatever it is.
        """
        await self._keep_lease(journey)
        journey.record = await self._registry.reload(journey.record)
        if journey.record.attempts[attempt.number - 1].state not in _DOUBTFUL:
            self._forget_deadline(journey.record, attempt)
            raise _Overtaken
        wanted = journey.record.change
        if wanted is not None and wanted.is_cancel and not journey.is_cancel_taken:
            journey.is_cancel_taken = await self._ask_cancel(journey, attempt)

    # --- cancel ----------------------------------------------------------------------------------

    async def _cancel(self, journey: Journey) -> None:
        """Ask and read until the order is seen to have ended: the answer to a cancel alone proves nothing."""
        attempt = next(a for a in journey.record.attempts if a.state is AttemptState.LIVE)
        ends_ms = self._clock.now_ms() + round(self._patience_s * 1000)
        pause_ms = max(1, round(self._resolver.policy.interval_s * 1000))
        while True:
            await self._keep_lease(journey)
            await self._ask_cancel(journey, attempt)
            look = await self._resolver.look(order_ref(journey.record.intent, attempt))
            if look.report is not None:
                journey.report = look.report
                await self._take_in(journey, attempt, look.report)
            else:
                journey.record = await self._registry.reload(journey.record)
            ended = await self._endings.after(journey.record, journey.record.attempts[attempt.number - 1], look)
            if ended is not None:
                await self._advance(journey, ended)
            if journey.record.attempts[attempt.number - 1].state is not AttemptState.LIVE:
                return
            if self._clock.now_ms() >= ends_ms:
                journey.stalled = True
                return
            await anyio.sleep(pause_ms / 1000)
            pause_ms = min(pause_ms * _CANCEL_PAUSE_FACTOR, _CANCEL_PAUSE_MAX_MS)

    async def _ask_cancel(self, journey: Journey, attempt: Attempt) -> bool:
        """Whether the venue took the request; that alone proves nothing."""
        try:
            with within(self._policy.request_timeout_s):
                await self._adapter.cancel_order(order_ref(journey.record.intent, attempt))
                return True
        except Exception:  # noqa: BLE001 - refused, lost or done: the look that follows tells
            return False
        return False  # no answer in time

    # --- give up ---------------------------------------------------------------------------------

    async def _give_up(self, journey: Journey) -> None:
        now_ms = self._clock.now_ms()
        await self._advance(journey, lambda r: transitions.give_up(r, now_ms=now_ms))

    def _lost(self, journey: Journey, why: str) -> OutcomeUnknown:
        last = journey.record.last
        return OutcomeUnknown(
            f"the outcome of intent {journey.record.intent.key!r} is unknown: {why}; "
            "do not resend, recover() settles it",
            intent_key=journey.record.intent.key,
            client_order_id=None if last is None else last.client_order_id,
            venue_order_id=None if last is None else last.venue_order_id,
        )


def _name(attempt: Attempt) -> tuple[str, int]:
    return attempt.client_order_id, attempt.number


def _names_an_order(report: OrderReport) -> bool:
    """An answer that does not say which order it made proves nothing."""
    return report.venue_order_id is not None or report.client_order_id is not None


def _absent(record: IntentRecord, attempt: Attempt, now_ms: int) -> IntentRecord:
    """A proof ends an unresolved attempt by way of its doubt."""
    doubted = transitions.doubted(record, attempt.number, None, deadline_ms=attempt.deadline_ms, now_ms=now_ms)
    return transitions.proven_absent(doubted, attempt.number, now_ms=now_ms)
