"""What goes out although the journal fails: orders that can only reduce, once per key and process, and cancels."""

from __future__ import annotations

import contextlib

import attrs

from execsafe._calls import within
from execsafe._redacting import redact_chain
from execsafe.core import transitions
from execsafe.gateway.outcomes import SubmitOutcome, Unknown, outcome_of
from execsafe.gateway.requests import Requests
from execsafe.ghosts import GhostOrderResolver, order_ref
from execsafe.intents import conflict_of
from execsafe.model.intent import Intent, IntentRecord
from execsafe.model.outcome import Meaning, Operation
from execsafe.ports import Clock, ExchangeAdapter


class Unjournalled:
    """Sends without writing down, and remembers in memory what is to be written down once the journal works again.

    Only this process knows of it until then: killed before, its successor may send the same key once more.
    """

    def __init__(
        self,
        adapter: ExchangeAdapter,
        resolver: GhostOrderResolver,
        requests: Requests,
        *,
        clock: Clock,
        timeout_s: float,
    ) -> None:
        self._adapter = adapter
        self._resolver = resolver
        self._requests = requests
        self._clock = clock
        self._timeout_s = timeout_s
        self._sent: dict[str, IntentRecord] = {}

    def sent(self) -> tuple[Intent, ...]:
        """What went out, and is not written down yet."""
        return tuple(record.intent for record in self._sent.values())

    def find(self, intent: Intent) -> IntentRecord | None:
        """What is known of an intent that went out and is not written down yet.

        Raises:
            IntentConflict: another payload went out under its key.
        """
        record = self._sent.get(intent.identity)
        if record is not None and record.intent.fingerprint != intent.fingerprint:
            raise conflict_of(intent)
        return record

    def forget(self, identity: str) -> None:
        """It is written down."""
        self._sent.pop(identity, None)

    async def submit(self, record: IntentRecord) -> SubmitOutcome:
        """Send an order that can only reduce, unless this process has sent it; what is known of it."""
        identity = record.intent.identity
        if (known := self.find(record.intent)) is not None:
            return outcome_of(known)
        now_ms = self._clock.now_ms()
        cid = self._adapter.client_order_id(record.intent, 0)
        # Dated as if it were written down: once it is, its absence is proven by this deadline.
        deadline_ms = self._requests.deadline(record.intent, now_ms)
        record = transitions.begin(record, client_order_id=cid, deadline_ms=deadline_ms, now_ms=now_ms)
        self._sent[identity] = record
        try:
            with within(self._timeout_s):
                request = self._requests.build(record.intent, record.attempts[-1])
                report = await self._adapter.create_order(request)
                record = transitions.observed(record, attrs.evolve(report, client_order_id=cid), now_ms=now_ms)
                self._sent[identity] = record
                return outcome_of(record, report=report)
        except Exception as error:  # noqa: BLE001 - judged, never guessed
            judged = self._adapter.judge(error, Operation.CREATE)
            if judged.meaning is Meaning.REJECTED:
                self._sent[identity] = record = transitions.refused(record, 1, judged.facts, now_ms=now_ms)
                redact_chain(error, self._adapter.redact)
                return outcome_of(record, cause=error)
        return Unknown(record=record)

    async def cancel(self, record: IntentRecord) -> SubmitOutcome:
        """No order must stay in the market because the journal fails: ask once, and read once."""
        for attempt in record.attempts:
            if not attempt.state.may_still_fill:
                continue
            ref = order_ref(record.intent, attempt)
            with contextlib.suppress(Exception), within(self._timeout_s):
                await self._adapter.cancel_order(ref)
            look = await self._resolver.look(ref)
            if look.report is not None:
                mine = attrs.evolve(look.report, client_order_id=attempt.client_order_id)
                record = transitions.observed(record, mine, now_ms=self._clock.now_ms())
        return outcome_of(record) if record.state.is_terminal else Unknown(record=record)
