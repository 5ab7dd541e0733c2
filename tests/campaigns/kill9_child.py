"""A bot in a process of its own, made to be killed: run by test_kill9.py with its plan as JSON in argv[1].

It talks to a venue that lives in the test's process, over a socket, and keeps its journal in a real store. With
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

from execsafe.errors import ExecsafeError
from execsafe.gateway import GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry
from execsafe.model.intent import Intent
from execsafe.ports import Batch, Lease
from execsafe.stores import open_store
from tiny_adapter import SocketAdapter

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


class Crossed:
    """A store whose writes are crossings."""

    def __init__(self, store: Any, crossings: Crossings) -> None:
        self._store = store
        self._crossings = crossings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, batch: Batch) -> Lease | None:
        self._crossings.cross()
        lease: Lease | None = await self._store.commit(batch)
        self._crossings.cross()
        return lease


def say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def flat(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [one for each in error.exceptions for one in flat(each)]


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
    async with open_store(plan["journal"]) as store:
        registry = IntentRegistry(Crossed(store, crossings))
        venue = SocketAdapter(plan["port"], crossings.cross)
        gateway = OrderGateway(venue, registry, policy=POLICY, looks=LOOKS)
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
        say(failed=sorted({type(error).__name__ for error in flat(errors)}))
