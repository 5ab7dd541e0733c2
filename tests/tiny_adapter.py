"""How a bot in a process of its own reaches the venue of tiny_venue.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import anyio
import attrs

from execsafe.core.ids import client_order_id
from execsafe.core.outcomes import classify
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.order import OrderReport, OrderRequest, OrderStatus
from execsafe.model.outcome import Judged, Operation
from execsafe.model.venue import LookUp
from execsafe.ports import ExchangeAdapter, OrderRef
from execsafe.testing._orders import RejectReason, VenueReject
from execsafe.testing.adapter import SIM_PROFILE
from execsafe.testing.sim_errors import as_client_error

PROFILE = attrs.evolve(SIM_PROFILE, expiry_window_s=0.3, read_lag_s=0.05, clock_skew_s=0.05)


class SocketAdapter(ExchangeAdapter):
    """One connection per request, one line there, one line back."""

    profile = PROFILE

    def __init__(self, port: int, cross: Callable[[], None] = lambda: None) -> None:
        self._port = port
        self._cross = cross  # called before and after each request that may change something

    async def prepare(self, symbol: str) -> Instrument:
        return Instrument(symbol=symbol, step_size="0.00001", tick_size="0.01")

    def check(self, intent: Intent) -> None:
        pass

    def client_order_id(self, intent: Intent, generation: int) -> str:
        rule = self.profile.client_order_id
        return client_order_id(account=intent.account, key=intent.key, leg=intent.leg, generation=generation, rule=rule)

    async def create_order(self, request: OrderRequest) -> OrderReport:
        self._cross()
        answer = await self._ask(
            op="create",
            symbol=request.symbol,
            side=request.side.value,
            quantity=str(request.quantity),
            limit_price=None if request.limit_price is None else str(request.limit_price),
            client_order_id=request.client_order_id,
            deadline_ms=request.deadline_ms,
        )
        self._cross()
        return report(answer)

    async def cancel_order(self, order: OrderRef) -> None:
        self._cross()
        await self._ask(op="cancel", symbol=order.symbol, client_order_id=order.client_order_id)
        self._cross()

    async def look_up(self, lookup: LookUp, order: OrderRef) -> OrderReport | None:
        answer = await self._ask(op="look", view=lookup.view.value, client_order_id=order.client_order_id)
        return None if answer is None else report(answer)

    def judge(self, error: BaseException, operation: Operation) -> Judged:
        return classify(error, operation)

    async def _ask(self, **request: Any) -> Any:
        async with await anyio.connect_tcp("127.0.0.1", self._port) as stream:
            await stream.send(json.dumps(request).encode() + b"\n")
            received = b""
            while not received.endswith(b"\n"):
                received += await stream.receive()
        answer = json.loads(received)
        if isinstance(answer, dict) and "reject" in answer:
            raise as_client_error(VenueReject(RejectReason(answer["reject"])))
        return answer


def report(answer: dict[str, Any]) -> OrderReport:
    return OrderReport(
        symbol=answer["symbol"],
        status=OrderStatus(answer["status"]),
        client_order_id=answer["client_order_id"],
        venue_order_id=answer["venue_order_id"],
        quantity=Decimal(answer["quantity"]),
        filled_quantity=Decimal(answer["filled_quantity"]),
    )
