"""A bot in a process of its own, made to be killed: run by test_kill9.py with its plan as JSON in argv[1].

It talks to a venue that lives in the test's process, over a socket, and keeps its journal in a real file. With
``kill_at`` it kills itself at that crossing: a crossing is the moment before or after each write of the journal and
each request to the venue.
"""

import json
import os
import signal
import sys
from decimal import Decimal
from typing import Any

import anyio
import attrs

from execsafe.core.ids import client_order_id
from execsafe.core.outcomes import classify
from execsafe.errors import ExecsafeError
from execsafe.gateway import GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.order import OrderReport, OrderRequest, OrderStatus
from execsafe.model.outcome import Judged, Operation
from execsafe.model.venue import LookUp
from execsafe.ports import Batch, ExchangeAdapter, Lease, OrderRef
from execsafe.stores.sqlite import SqliteStore
from execsafe.testing._orders import RejectReason, VenueReject
from execsafe.testing.adapter import SIM_PROFILE
from execsafe.testing.sim_errors import as_client_error

PROFILE = attrs.evolve(SIM_PROFILE, expiry_window_s=0.3, read_lag_s=0.05, clock_skew_s=0.05)
POLICY = GatewayPolicy(request_timeout_s=0.3)
LOOKS = LookPolicy(interval_s=0.05, spacing_s=0.0, timeout_s=0.5)

INTENTS = {
    "market": {"side": "buy", "quantity": "0.4"},
    "resting": {"side": "buy", "quantity": "0.3", "limit_price": 50_000},
    "canceled": {"side": "sell", "quantity": "0.2", "limit_price": 70_000},
    "replaced": {"side": "buy", "quantity": "0.1", "limit_price": 40_000},
}
REPLACED_BY = {"quantity": "0.15", "limit_price": 41_000}


class Crossings:
    """Counts the moments at which the process may be killed, and kills it at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.count = 0
        self._kill_at = kill_at

    def cross(self) -> None:
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class CrossedStore(SqliteStore):
    crossings: Crossings

    async def commit(self, batch: Batch) -> Lease | None:
        self.crossings.cross()
        lease = await super().commit(batch)
        self.crossings.cross()
        return lease


class SocketAdapter(ExchangeAdapter):
    """One connection per request, one line there, one line back."""

    profile = PROFILE

    def __init__(self, port: int, crossings: Crossings) -> None:
        self._port = port
        self._crossings = crossings

    async def prepare(self, symbol: str) -> Instrument:
        return Instrument(symbol=symbol, step_size="0.00001", tick_size="0.01")

    def check(self, intent: Intent) -> None:
        pass

    def client_order_id(self, intent: Intent, generation: int) -> str:
        rule = self.profile.client_order_id
        return client_order_id(account=intent.account, key=intent.key, leg=intent.leg, generation=generation, rule=rule)

    async def create_order(self, request: OrderRequest) -> OrderReport:
        self._crossings.cross()
        answer = await self._ask(
            op="create",
            symbol=request.symbol,
            side=request.side.value,
            quantity=str(request.quantity),
            limit_price=None if request.limit_price is None else str(request.limit_price),
            client_order_id=request.client_order_id,
            deadline_ms=request.deadline_ms,
        )
        self._crossings.cross()
        return report(answer)

    async def cancel_order(self, order: OrderRef) -> None:
        self._crossings.cross()
        await self._ask(op="cancel", symbol=order.symbol, client_order_id=order.client_order_id)
        self._crossings.cross()

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


def say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def one(gateway: OrderGateway, key: str) -> None:
    """What a bot does about one intent; after a restart it simply does it again."""
    outcome = await gateway.submit(Intent(key=key, symbol="BTC/USDT", **INTENTS[key]), join=True)
    say(told=key, outcome=type(outcome).__name__)
    if key == "canceled":
        await gateway.cancel(key)
    record = await gateway.registry.find(key)
    if key == "replaced" and record is not None and record.quantity != Decimal(REPLACED_BY["quantity"]):
        await gateway.replace(key, **REPLACED_BY)


async def main(plan: dict[str, Any]) -> None:
    crossings = Crossings(plan["kill_at"])
    async with CrossedStore(plan["path"]) as store:
        store.crossings = crossings
        registry = IntentRegistry(store)
        gateway = OrderGateway(SocketAdapter(plan["port"], crossings), registry, policy=POLICY, looks=LOOKS)
        say(started=True)
        if plan["recover"]:
            await gateway.recover()
        async with anyio.create_task_group() as tasks:
            for key in plan["keys"]:
                tasks.start_soon(one, gateway, key)
        if plan["recover"]:
            await gateway.recover()
    say(finished=True, crossings=crossings.count)


if __name__ == "__main__":
    try:
        anyio.run(main, json.loads(sys.argv[1]))
    except* ExecsafeError as errors:
        say(failed=[repr(error) for error in errors.exceptions])
