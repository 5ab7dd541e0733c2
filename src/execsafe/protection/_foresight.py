"""Asks, before an entry is sent, whether its stop could be placed. Where that cannot be said, the answer is no."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from execsafe._calls import within
from execsafe.core.opening import EntryPlan, OpeningPolicy
from execsafe.core.protection.foresight import check_stop, planned_stop
from execsafe.core.protection.record import Protection
from execsafe.errors import VenueUnavailable
from execsafe.gateway import OrderGateway
from execsafe.model.order import Side
from execsafe.model.position import Snapshot, StopKind
from execsafe.protection._hands import intent_of
from execsafe.views import VenueReader

_TIMEOUT_S: Final = 30.0  # loading a venue's markets takes several requests


async def stop_refusal(
    gateway: OrderGateway, reader: VenueReader, plan: EntryPlan, policy: OpeningPolicy, *, now_ms: int
) -> Exception | None:
    """Why the stop of *plan* could not be placed; None: it could, as far as can be known before.

    A stop that the venue attaches to the position has neither quantity nor value of its own.
    """
    try:
        with within(_TIMEOUT_S):
            if gateway.adapter.stop_kind(plan.symbol) is StopKind.ATTACHED:
                return None
            await _check(gateway, reader, plan, policy, now_ms)
            return None
    except Exception as error:  # noqa: BLE001 - a question without an answer is a no
        return error
    return VenueUnavailable(f"{plan.symbol}: the venue's rules could not be read in time", intent_key=plan.key)


async def _check(
    gateway: OrderGateway, reader: VenueReader, plan: EntryPlan, policy: OpeningPolicy, now_ms: int
) -> None:
    adapter = gateway.adapter
    instrument = adapter.prepared(plan.symbol) or await adapter.prepare(plan.symbol)
    leg = planned_stop(plan, instrument, await _entry_price(reader, plan), policy)
    unborn = Protection(position_id=plan.key, account=plan.account, symbol=plan.symbol, side=plan.side)
    stop = intent_of(unborn, leg)
    adapter.check(stop)
    check_stop(stop, instrument, policy, now_ms=now_ms)


async def _entry_price(reader: VenueReader, plan: EntryPlan) -> Decimal | None:
    """About what will be paid; only read where neither entry nor stop says it."""
    if plan.limit_price is not None or plan.stop.stop_price is not None:
        return plan.limit_price
    reading = await reader.quotes([plan.symbol])
    quote = reading.value.get(plan.symbol) if isinstance(reading, Snapshot) else None
    best = None if quote is None else quote.ask if plan.side.opening is Side.BUY else quote.bid
    if quote is None or (best is None and quote.last is None):
        raise VenueUnavailable(f"{plan.symbol}: there is no price to count the stop from", intent_key=plan.key)
    return best if best is not None else quote.last
