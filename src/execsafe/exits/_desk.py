"""What every pass of one manager shares: collaborators, counters, and how things are told."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import Any

import anyio
import attrs

from execsafe.core import exits
from execsafe.core.exits import ExitPolicy, ExitRecord
from execsafe.exits._journal import ExitJournal
from execsafe.exits._sight import Eyes
from execsafe.exits.faces import ApprovalGate, MismatchHandler, PositionMismatch
from execsafe.exits.stats import Tally
from execsafe.gateway import OrderGateway
from execsafe.model.event import Event, EventType
from execsafe.model.intent import ErrorFacts
from execsafe.model.values import plain
from execsafe.ports import Clock, PositionSource, Protections

_log = logging.getLogger("execsafe.exits")
_HANDLER_TIMEOUT_S = 30.0


@attrs.frozen(kw_only=True, eq=False)
class Desk:
    """See the module's docstring."""

    gateway: OrderGateway
    positions: PositionSource
    eyes: Eyes
    policy: ExitPolicy
    protections: Protections | None
    approval: ApprovalGate
    handler: MismatchHandler | None
    journal: ExitJournal
    tally: Tally
    clock: Clock

    def event(
        self,
        kind: EventType,
        record: ExitRecord,
        *,
        quantity: Decimal | None = None,
        price: Decimal | None = None,
        error: ErrorFacts | None = None,
        note: str | None = None,
        **details: Any,
    ) -> Event:
        """An event about one exit. Its subject is the position; ``details["exit"]`` keys its orders."""
        facts = {name: plain(value) if isinstance(value, Decimal) else value for name, value in details.items()}
        return Event(
            type=kind,
            at_ms=self.clock.now_ms(),
            subject=record.position_id or record.intent_key,
            symbol=record.symbol,
            quantity=quantity,
            price=price,
            error=error,
            note=record.reason.value if note is None else note,
            details={"exit": record.intent_key, "account": record.account, **facts},
        )

    def tell(self, kind: EventType, record: ExitRecord, **facts: Any) -> None:
        """Tell the listeners of something that is not stored."""
        self.journal.tell(self.event(kind, record, **facts))

    def cleared(self, record: ExitRecord) -> Event:
        """The exit is over."""
        now_ms = self.clock.now_ms()
        return self.event(
            EventType.EXIT_CLEARED,
            record,
            quantity=record.closed_quantity,
            price=record.average_price,
            duration_ms=now_ms - record.started_at_ms,
            orders=record.legs,
            end=record.state.value,
        )

    def alarm(self, before: ExitRecord, after: ExitRecord) -> list[Event]:
        """The alarm that is due with this change, if one is."""
        if after.alarms <= before.alarms:
            return []
        self.tally.add("stuck")
        code = None if after.last_error is None else after.last_error.code or after.last_error.kind
        return [
            self.event(
                EventType.STUCK_EXIT,
                after,
                error=after.last_error,
                since_ms=after.progress_at_ms,
                attempts=after.legs,
                last_code=code,
                hold=None if after.hold is None else after.hold.value,
                alarm=after.alarms,
            )
        ]

    def raise_alarms(self, record: ExitRecord) -> ExitRecord:
        """*record* with the alarms that its standstill is worth by now."""
        due = exits.alarms_due(record, self.policy, now_ms=self.clock.now_ms())
        return record if due == record.alarms else attrs.evolve(record, alarms=due)

    def caught(self, what: str, error: BaseException) -> None:
        """Something outside failed where an exit cannot let it through: counted, logged by class."""
        self.tally.add("errors")
        _log.warning("%s failed (%s)", what, type(error).__name__)

    async def reconcile(self, mismatch: PositionMismatch) -> None:
        """Have the difference looked into; whatever that comes to, the exit reads again."""
        if self.handler is None:
            return
        try:
            with anyio.move_on_after(_HANDLER_TIMEOUT_S):
                await self.handler.reconcile(mismatch)
        except Exception as error:  # noqa: BLE001 - a failing handler corrects nothing, and stops nothing
            self.caught("reconciliation", error)
