"""Events as a pure function of two versions of a protection."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from execsafe.core.protection.record import Protection, ProtectionState
from execsafe.core.trailing import TrailingPhase
from execsafe.model.event import Event, EventType
from execsafe.model.order import ZERO
from execsafe.model.values import Params, plain

_SWITCHES = frozenset({ProtectionState.TAKE_PROFIT, ProtectionState.SWITCHING_TO_STOP})


def narrate(before: Protection | None, after: Protection, *, now_ms: int, held: Decimal = ZERO) -> tuple[Event, ...]:
    """What happened between the two; *held* is the quantity of the position now."""
    told: list[tuple[EventType, str]] = []
    if before is not None:
        told.extend(_about_stop(before, after, held))
        if after.failures > before.failures:
            told.append((EventType.STOP_FAILED, f"{after.state.value}: try {after.failures}"))
        if before.state is not after.state and after.state is ProtectionState.DUST:
            told.append((EventType.POSITION_DUST, before.state.value))
        elif before.state is not after.state and before.state in _SWITCHES:
            told.append((EventType.PROTECTION_SWITCHED, f"{before.state.value}->{after.state.value}"))
    if after.alarmed and not (before is not None and before.alarmed):
        told.append((EventType.POSITION_UNPROTECTED, after.state.value))
    told.extend(_about_trailing(before, after))
    return tuple(_event(kind, note, after, now_ms, held) for kind, note in told)


def _about_stop(before: Protection, after: Protection, held: Decimal) -> Iterator[tuple[EventType, str]]:
    if after.placed and not before.placed:
        yield EventType.STOP_PLACED, ""
    elif after.verified_price is not None and after.verified_price != before.verified_price:
        yield EventType.STOP_MOVED, "restored" if before.verified_price is None else "moved"
    elif after.verified_price is not None and after.verified_quantity != before.verified_quantity:
        yield EventType.STOP_MOVED, "resized"
    was_enough = before.verified_price is not None and ZERO < held <= before.verified_quantity
    if was_enough and after.verified_price is None and after.state is ProtectionState.UNPROTECTED:
        yield EventType.STOP_MISSING, ""


def _about_trailing(before: Protection | None, after: Protection) -> Iterator[tuple[EventType, str]]:
    if after.trailing is None:
        return
    was = None if before is None else before.trailing
    if was is None:
        yield EventType.TRAILING_STOP_CREATED, ""
        return
    if was.phase is not TrailingPhase.ACTIVE and after.trailing.phase is TrailingPhase.ACTIVE:
        yield EventType.TRAILING_STOP_ACTIVATED, ""
    if was.stop_price != after.trailing.stop_price and was.moved_at_ms != after.trailing.moved_at_ms:
        reached = after.trailing.phase is not TrailingPhase.ACTIVE
        yield (EventType.BREAKEVEN_REACHED if reached else EventType.TRAILING_STOP_MOVED), ""


def _event(kind: EventType, note: str, after: Protection, now_ms: int, held: Decimal) -> Event:
    exposed_ms = 0 if after.exposed_since_ms is None else max(0, now_ms - after.exposed_since_ms)
    details: dict[str, Any] = {
        "account": after.account,
        "side": after.side.value,
        "state": after.state.value,
        "held": plain(held),
        "exposed_ms": exposed_ms,
        "exposed_total_ms": after.exposed_ms + exposed_ms,
    }
    return Event(
        type=kind,
        at_ms=now_ms,
        subject=after.position_id,
        symbol=after.symbol,
        quantity=after.verified_quantity,
        price=after.verified_price if after.verified_price is not None else after.stop_price,
        note=note,
        details=Params.of(details),
    )
