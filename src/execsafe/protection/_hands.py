"""Carries out one action about a protecting order, within the time of one try. Decides nothing."""

from __future__ import annotations

import math
from decimal import Decimal

import anyio

from execsafe._calls import within
from execsafe.core.protection.record import Leg, Protection, ProtectionPolicy, Purpose
from execsafe.errors import AlreadyInFlight, ExecsafeError, InvalidInput
from execsafe.gateway import Accepted, OrderGateway, Rejected
from execsafe.model.intent import Intent
from execsafe.model.outcome import Meaning, Operation


def intent_of(protection: Protection, leg: Leg) -> Intent:
    """What a leg means; the same leg is the same intent, in every process and for ever."""
    is_stop = leg.purpose is Purpose.STOP
    return Intent(
        key=protection.intent_key,
        leg=leg.name,
        account=protection.account,
        symbol=protection.symbol,
        side=protection.side.closing,
        quantity=leg.quantity,
        limit_price=leg.price if leg.purpose is Purpose.TAKE else None,
        trigger_price=leg.price if is_stop else None,
        reduce_only=True,
    )


class Hands:
    """Sends, cancels and attaches. Whatever is not finished in time goes on in the journal."""

    def __init__(self, gateway: OrderGateway, policy: ProtectionPolicy) -> None:
        self._gateway = gateway
        self._timeout_s = policy.try_timeout_s

    async def send(self, protection: Protection, leg: Leg, *, patient: bool = False) -> str:
        """Submit a leg; "" once the venue has it, else why that is not known (a class name).

        *patient*: for as long as the gateway looks for what is in doubt.
        """
        why = "TimeoutError"
        try:
            with anyio.move_on_after(math.inf if patient else self._timeout_s):
                outcome = await self._gateway.submit(intent_of(protection, leg))
                if isinstance(outcome, Rejected):
                    return outcome.error.kind
                return "" if isinstance(outcome, Accepted) else type(outcome).__name__
        except AlreadyInFlight:
            return ""  # somebody is at it: look again
        except ExecsafeError as error:
            why = type(error).__name__
        return why

    async def cancel(self, protection: Protection, leg: Leg, *, patient: bool = False) -> None:
        """Cancel a leg; whether it is gone is for the next look to say."""
        try:
            with anyio.move_on_after(math.inf if patient else self._timeout_s):
                await self._gateway.cancel(protection.intent_key, account=protection.account, leg=leg.name)
        except (AlreadyInFlight, InvalidInput):
            return  # being worked on, or never journalled
        except ExecsafeError:
            return  # the wish is journalled, or will be: the next look decides again

    async def attach(self, protection: Protection, stop_price: Decimal | None) -> str:
        """Attach a stop, or remove it; "" if the venue did not refuse. Only reading it back proves anything."""
        adapter = self._gateway.adapter
        why = "TimeoutError"
        try:
            with within(self._timeout_s):
                await adapter.set_attached_stop(protection.symbol, protection.side, stop_price)
                return ""
        except Exception as error:  # noqa: BLE001 - judged, never guessed
            judged = adapter.judge(error, Operation.SET_STOP)
            why = "" if judged.meaning is Meaning.NO_CHANGE else judged.facts.kind
        return why
