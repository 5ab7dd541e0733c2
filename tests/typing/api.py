"""The public face as a type checker sees it. Checked, never run."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, assert_never, assert_type

import attrs

import execsafe
from execsafe.buses import Bus
from execsafe.signals import SignalHandler


async def wrapped(client: Any) -> None:
    profile = attrs.evolve(execsafe.profile_for("binance"), read_lag_s=10, dedup="forever", expiry="absolute")
    async with execsafe.wrap(client, store="sqlite:///orders.db", profile=profile, patience_s=30) as exchange:
        assert_type(exchange, execsafe.GuardedExchange)
        order = await exchange.create_order("BTC/USDT", "limit", "buy", "0.01", 60_000, {"intentKey": "k"})
        assert_type(order, dict[str, Any])
        recovery = await exchange.recover()
        assert_type(recovery.settled, tuple[execsafe.IntentRecord, ...])


async def composed(client: Any, mine: execsafe.Store) -> Decimal:
    async with execsafe.open_store("memory://") as store:
        registry = execsafe.IntentRegistry(store, listeners=[listen])
        looks = execsafe.LookPolicy(interval_s=0.5)
        gateway = execsafe.OrderGateway(
            execsafe.CcxtAdapter(client), registry, policy=execsafe.GatewayPolicy(attempts_max=2), looks=looks
        )
        outcome = await gateway.submit(
            execsafe.Intent(key="k", symbol="BTC/USDT", side="sell", quantity=0.1, limit_price="1.5")
        )
        return filled(outcome)


def filled(outcome: execsafe.SubmitOutcome) -> Decimal:
    """Every outcome must be handled: leaving one out is a type error."""
    if isinstance(outcome, execsafe.Accepted):
        return outcome.record.filled_quantity
    if isinstance(outcome, execsafe.Rejected):
        return Decimal(0)
    if isinstance(outcome, execsafe.NeverPlaced):
        return Decimal(0)
    if isinstance(outcome, execsafe.Unknown):
        raise execsafe.OutcomeUnknown("look again", intent_key=outcome.record.intent.key)
    assert_never(outcome)


def listen(event: execsafe.Event) -> None:
    assert_type(event.type, execsafe.EventType)
    assert_type(event.quantity, Decimal | None)


class Mine(execsafe.CcxtAdapter):
    """An adapter of a strategy author."""

    def order_params(self, request: execsafe.OrderRequest) -> dict[str, Any]:
        return {**super().order_params(request), "tag": "mine"}


async def listens(gate: execsafe.SignalGate, handler: SignalHandler, mine: Bus) -> None:
    async with execsafe.open_bus("redis://localhost/0?prefix=bot:") as bus:
        consumer = execsafe.SignalConsumer(bus, gate, handler)
        assert_type(await consumer.drain(), int)
        for message in await bus.read("t", "g", "1"):
            assert_type(message.fields, Mapping[str, str])
    execsafe.SignalConsumer(mine, gate, handler)
    execsafe.SignalConsumer(execsafe.MemoryBus(), gate, handler)
