"""What goes to the venue for one attempt, and until when it may land there."""

from __future__ import annotations

from typing import Final

from execsafe.gateway.policy import GatewayPolicy
from execsafe.model.intent import Attempt, Intent
from execsafe.model.order import OrderRequest
from execsafe.model.trusted import trusted
from execsafe.model.venue import Expiry
from execsafe.ports import Clock, ExchangeAdapter

_new_request: Final = trusted(OrderRequest)


class Requests:
    """Dates and builds the requests of one gateway, journalled or not: a proof of absence relies on every deadline."""

    def __init__(self, adapter: ExchangeAdapter, policy: GatewayPolicy, *, clock: Clock) -> None:
        self._adapter = adapter
        self._clock = clock
        self._timeout_ms = round(policy.request_timeout_s * 1000)
        self.window_ms: int = round(adapter.profile.expiry_window_s * 1000)

    def deadline(self, intent: Intent, now_ms: int) -> int | None:
        """When a request for *intent* that is made now can no longer land; None: it can for ever."""
        expiry = self._adapter.expiry(intent)
        if expiry is Expiry.NONE:
            return None
        if expiry is Expiry.ABSOLUTE:
            return now_ms + self.window_ms
        # Relative windows start when the request is signed: at the latest when our time-out ends the call.
        return now_ms + self.window_ms + self._timeout_ms

    def build(self, intent: Intent, attempt: Attempt) -> OrderRequest:
        """The request for *attempt*, to be sent now."""
        expires_in_ms = None
        if attempt.deadline_ms is not None and self._adapter.expiry(intent) is Expiry.ABSOLUTE:
            expires_in_ms = attempt.deadline_ms - self._clock.now_ms()
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
