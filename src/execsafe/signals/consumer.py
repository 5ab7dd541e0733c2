"""The consumer: reads a bus, hands signals to the gate, acknowledges what has ended."""

from __future__ import annotations

import logging
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus

from execsafe.buses import Bus, Message
from execsafe.core.backoff import Backoff
from execsafe.core.redaction import redact
from execsafe.core.signals import DropReason
from execsafe.errors import StoreError
from execsafe.model.values import check_count, check_seconds
from execsafe.signals.gate import SignalGate
from execsafe.signals.work import DeadLettered, SignalHandler, SignalOutcome, Unfinished

_log = logging.getLogger("execsafe.signals")
TRADE_INTENTS: Final = "trade.intent"
_PAUSES: Final = Backoff(base_s=0.5, cap_s=30.0, jitter=0.0, max_attempts=None)


@attrs.frozen(kw_only=True)
class ConsumerHealth:
    """How a consumer is doing.

    Attributes:
        started_at_ms: when it started to run, Unix ms; None before.
        last_event_at_ms: when the last message was read; None before the first.
        last_event_age_ms: time since then. That nothing comes may be silence, or a dead producer.
        lag_ms: how long the last message had been on the bus when it was read.
        read: messages read, redeliveries included.
        acknowledged: messages done with, dead letters included.
        failures: executions that failed.
        bus_failures: calls to the bus that failed; ``bus_failures_in_row`` of them since the last that worked.
        store_failures: signals put off because the store failed.
    """

    started_at_ms: int | None = None
    last_event_at_ms: int | None = None
    last_event_age_ms: int | None = None
    lag_ms: int | None = None
    read: int = 0
    acknowledged: int = 0
    failures: int = 0
    bus_failures: int = 0
    bus_failures_in_row: int = 0
    store_failures: int = 0


class SignalConsumer:
    """Reads a bus and has each signal executed once: at least once in, exactly one effect.

    A message is acknowledged only after the end of its signal is durable. Killed in between, it is delivered again
    and found to be ended; killed earlier, its execution is resumed under the same intent key.

    Args:
        bus: delivers at least once.
        gate: judges and remembers.
        handler: executes one signal.
        topic: where signals are published.
        group: consumers of one group share the messages.
        consumer: this consumer's name in the group.
        at_once: how many signals are executed at the same time; one per symbol in any case. 4.
        read_wait_s: how long one read waits for a message.
        resume_interval_s: how often signals without a message (lost with a bus that is not durable) are looked for.
    """

    def __init__(
        self,
        bus: Bus,
        gate: SignalGate,
        handler: SignalHandler,
        *,
        topic: str = TRADE_INTENTS,
        group: str = "execsafe",
        consumer: str = "1",
        at_once: int = 4,
        read_wait_s: float = 1.0,
        resume_interval_s: float = 60.0,
    ) -> None:
        self.bus: Bus = bus
        self.gate: SignalGate = gate
        self._handler = handler
        self._topic, self._group, self._consumer = topic, group, consumer
        self._at_once = check_count(at_once, "at_once")
        self._read_wait_s = check_seconds(read_wait_s, "read_wait_s")
        self._resume_interval_s = check_seconds(resume_interval_s, "resume_interval_s")
        self._health = ConsumerHealth()

    def health(self) -> ConsumerHealth:
        """How it is doing now."""
        last_ms = self._health.last_event_at_ms
        age_ms = None if last_ms is None else max(0, self.gate.clock.now_ms() - last_ms)
        return attrs.evolve(self._health, last_event_age_ms=age_ms)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Consume until cancelled; neither the bus nor the store nor a handler ends it."""
        policy = self.gate.policy
        _log.info(
            "mode %s: signals are executed within %g s of their own time; topic %s, group %s",
            self.gate.mode.value,
            policy.max_age_s,
            self._topic,
            self._group,
        )
        self._health = attrs.evolve(self._health, started_at_ms=self.gate.clock.now_ms())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_resuming)
            for _ in range(self._at_once):
                tasks.start_soon(self._keep_reading)
            task_status.started()

    async def drain(self) -> int:
        """Consume what is there now, one message after the other, and return; how many messages that were.

        Raises whatever the bus raises.
        """
        count = 0
        while messages := await self.bus.read(self._topic, self._group, self._consumer, wait_s=0):
            for message in messages:
                await self.consume(message)
                count += 1
        return count

    async def consume(self, message: Message) -> SignalOutcome:
        """Have one message executed, and acknowledge it if that has ended."""
        self._note_read(message)
        outcome = await self.gate.run(message.fields, self._handler, published_at_ms=message.published_at_ms)
        self._note_outcome(outcome)
        try:
            if isinstance(outcome, Unfinished):
                return outcome
            if isinstance(outcome, DeadLettered):
                await self.bus.dead_letter(self._group, message, outcome.reason.value)
            else:
                await self.bus.ack(self._topic, self._group, message.id)
            self._health = attrs.evolve(self._health, acknowledged=self._health.acknowledged + 1)
        except Exception as error:  # noqa: BLE001 - it will be delivered again, and found to have ended
            self._note_bus_failure("acknowledge", error)
        return outcome

    # --- Inside --------------------------------------------------------------------------------------

    async def _keep_reading(self) -> None:
        while True:
            try:
                messages = await self.bus.read(self._topic, self._group, self._consumer, wait_s=self._read_wait_s)
            except Exception as error:  # noqa: BLE001 - whatever a bus raises: it may work again later
                self._note_bus_failure("read", error)
                await anyio.sleep(_PAUSES.envelope_ms(self._health.bus_failures_in_row) / 1_000)
                continue
            self._health = attrs.evolve(self._health, bus_failures_in_row=0)
            for message in messages:
                await self.consume(message)

    async def _keep_resuming(self) -> None:
        while True:
            try:
                for outcome in await self.gate.resume(self._handler):
                    self._note_outcome(outcome)
            except StoreError as error:
                self._health = attrs.evolve(self._health, store_failures=self._health.store_failures + 1)
                _log.warning("unfinished signals could not be read (%s)", type(error).__name__)
            await anyio.sleep(self._resume_interval_s)

    def _note_read(self, message: Message) -> None:
        now_ms = self.gate.clock.now_ms()
        self._health = attrs.evolve(
            self._health,
            last_event_at_ms=now_ms,
            lag_ms=max(0, now_ms - message.published_at_ms),
            read=self._health.read + 1,
        )

    def _note_outcome(self, outcome: SignalOutcome) -> None:
        why = outcome.why if isinstance(outcome, Unfinished) else ""
        self._health = attrs.evolve(
            self._health,
            failures=self._health.failures + (why == "failed" or _is_poison(outcome)),
            store_failures=self._health.store_failures + (why == "store"),
        )

    def _note_bus_failure(self, what: str, error: Exception) -> None:
        self._health = attrs.evolve(
            self._health,
            bus_failures=self._health.bus_failures + 1,
            bus_failures_in_row=self._health.bus_failures_in_row + 1,
        )
        _log.warning("could not %s (%s: %s)", what, type(error).__name__, redact(str(error)))


def _is_poison(outcome: SignalOutcome) -> bool:
    return isinstance(outcome, DeadLettered) and outcome.reason is DropReason.POISON
