"""What goes to the venue for one attempt."""

from __future__ import annotations

from typing import Final

from execsafe.model.intent import Attempt, Intent
from execsafe.model.order import OrderRequest
from execsafe.model.trusted import trusted

_new_request: Final = trusted(OrderRequest)


def build_request(intent: Intent, attempt: Attempt, *, expires_in_ms: int | None) -> OrderRequest:
    """What goes to the venue for one attempt."""
    return _new_request(
        symbol=intent.symbol,
        side=intent.side,
        type=intent.type,
        quantity=attempt.quantity,
        client_order_id=attempt.client_order_id,
        limit_price=attempt.limit_price,
        time_in_force=intent.time_in_force,
        post_only=intent.post_only,
        reduce_only=intent.reduce_only,
        trigger_price=intent.trigger_price,
        deadline_ms=attempt.deadline_ms,
        expires_in_ms=expires_in_ms,
        params=intent.params,
    )
