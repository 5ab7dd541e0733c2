"""What an event says, as plain named values, redacted."""

from __future__ import annotations

from typing import Any, Final

from execsafe.core.redaction import redact
from execsafe.model.event import Event
from execsafe.model.values import plain

OTHER: Final = "other"


def facts(event: Event) -> dict[str, Any]:
    """The event's fields that are set, with its details; every text redacted, once more (guarantee G16)."""
    named: dict[str, Any] = {
        "at_ms": event.at_ms,
        "subject": event.subject,
        "symbol": event.symbol or None,
        "attempt": event.attempt,
        "client_order_id": event.client_order_id,
        "venue_order_id": event.venue_order_id,
        "quantity": None if event.quantity is None else plain(event.quantity),
        "price": None if event.price is None else plain(event.price),
        "note": event.note or None,
    }
    if event.error is not None:
        named |= {"error": event.error.kind, "error_code": event.error.code, "error_message": event.error.message}
    found = {name: _clean(value) for name, value in named.items() if value is not None}
    details = {name: _clean(value) for name, value in event.details.thaw().items()}
    return found | ({"details": details} if details else {})


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(str(name)): _clean(item) for name, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


class Bounded:
    """Label values, as many as the bound allows; any further one is ``"other"``.

    A metric keeps a time series for every combination of label values for ever: a bot that scans a thousand symbols
    would have its monitoring hold a thousand times everything.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """The label for *value*."""
        if value in self._known:
            return value
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(value)
        return value
