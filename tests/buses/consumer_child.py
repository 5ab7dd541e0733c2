"""A consumer in a process of its own, made to be killed: run by test_redis_kill.py with its plan as JSON in argv[1]."""

import json
import sys
from pathlib import Path
from typing import Any

import anyio

from execsafe.buses import open_bus
from execsafe.core.signals import SignalPolicy
from execsafe.gateway import GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry
from execsafe.locks import DedupLock
from execsafe.model.intent import Intent
from execsafe.signals import SignalConsumer, SignalGate, SignalResult, SignalWork, result_of, submit_signal
from execsafe.stores import open_store
from tiny_adapter import SocketAdapter


async def main(plan: dict[str, Any]) -> None:
    async with open_store(plan["journal"]) as store, open_bus(plan["bus"]) as bus:
        registry = IntentRegistry(store)
        looks = LookPolicy(interval_s=0.05, spacing_s=0.0, timeout_s=0.5)
        policy = GatewayPolicy(request_timeout_s=0.3)
        gateway = OrderGateway(SocketAdapter(plan["port"]), registry, policy=policy, looks=looks)
        gate = SignalGate(store, SignalPolicy(), locks=DedupLock(store=store, lease_ttl_s=1.0), budget_s=10.0)

        async def handle(work: SignalWork) -> SignalResult:
            async def build() -> Intent:
                return work.intent(quantity=plan["quantity"])

            return result_of(await submit_signal(gateway, work, build))

        consumer = SignalConsumer(bus, gate, handle, consumer=plan["name"], read_wait_s=0.2, resume_interval_s=0.5)
        Path(plan["begun"]).touch()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consumer.run)
            while True:  # orders in doubt that no signal asks for any more
                await gateway.recover()
                await anyio.sleep(0.3)


if __name__ == "__main__":
    anyio.run(main, json.loads(sys.argv[1]))
