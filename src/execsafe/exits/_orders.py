"""The orders of an exit: sent once each, found again by their leg, and brought to an end."""

from __future__ import annotations

from decimal import Decimal
from typing import TypeAlias

from execsafe.core.exits import ExitRecord, Hold, Postpone, Progress
from execsafe.errors import (
    AlreadyInFlight,
    ExecsafeError,
    IntentConflict,
    InvalidInput,
    OutcomeUnknown,
    StoreError,
    TradingDenied,
    VenueUnavailable,
)
from execsafe.exits._desk import Desk
from execsafe.model.event import EventType
from execsafe.model.intent import ErrorFacts, Intent, IntentRecord


class Overtaken(Exception):
    """Somebody else works on the exit's next order: theirs counts."""


Answer: TypeAlias = IntentRecord | ErrorFacts | Postpone | None
"""What sending came to: the order, our own refusal, why nothing was sent, or None: the journal knows."""


def exit_order(record: ExitRecord, leg: str, quantity: Decimal, limit: Decimal | None) -> Intent:
    """The intent of one order of an exit: immediate or cancel at *limit*, a market order without."""
    return Intent(
        key=record.intent_key,
        leg=leg,
        account=record.account,
        symbol=record.symbol,
        side=record.side.closing,
        quantity=quantity,
        limit_price=limit,
        time_in_force=None if limit is None else "IOC",
        # Also on spot, where adapters do not send it: it says that this is an exit, which no pre-trade check and no
        # trading state may refuse.
        reduce_only=True,
    )


class Orders:
    """See the module's docstring."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def send(
        self, record: ExitRecord, leg: str, quantity: Decimal, limit: Decimal | None, progress: Progress
    ) -> Answer:
        """Send one order.

        Raises:
            Overtaken: that leg is somebody else's already.
        """
        desk = self._desk
        desk.tally.sending(record.key)
        if progress.rung and limit is not None:
            desk.tally.add("ioc_fallbacks")
        desk.tell(EventType.EXIT_STEP, record, quantity=quantity, price=limit, leg=leg, attempt=progress.attempts + 1)
        try:
            return (await desk.gateway.submit(exit_order(record, leg, quantity, limit))).record
        except (AlreadyInFlight, IntentConflict) as error:
            raise Overtaken from error
        except (OutcomeUnknown, VenueUnavailable):
            return None
        except StoreError as error:
            desk.caught("journal", error)
            return Postpone(hold=Hold.STORE)
        except (InvalidInput, TradingDenied) as error:
            return ErrorFacts(kind=type(error).__name__, message=str(error))
        finally:
            desk.tally.answered(record.key)

    async def find(self, record: ExitRecord, leg: str) -> IntentRecord | None:
        """The order of that leg, None if it was never journalled."""
        return await self._desk.gateway.registry.find(record.intent_key, account=record.account, leg=leg)

    async def end(self, order: IntentRecord) -> IntentRecord | None:
        """The order's record once it can fill no more; None: in doubt."""
        if order.state.is_terminal:
            return order
        intent = order.intent
        try:
            # A wish to cancel also keeps a request that never left from being sent later, at a price of today.
            outcome = await self._desk.gateway.cancel(intent.key, account=intent.account, leg=intent.leg)
        except ExecsafeError as error:
            self._desk.caught("order in doubt", error)
            return None
        return outcome.record if outcome.record.state.is_terminal else None
