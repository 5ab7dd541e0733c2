"""The wave: which 57 signals, which markets, and how a desk plays it. Shared by test_wave.py and its child process."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import anyio
import attrs

import execsafe
from execsafe import signals
from execsafe.bot.desk import TradingDesk
from execsafe.bot.policy import DeskPolicy
from execsafe.core.funnel import RATIOS, WavePlan
from execsafe.testing.venue import Market, linear

SIGNALS = 57
PLAN = WavePlan()  # 4 wanted, 3 more may be tried
BASES = tuple(f"W{number:02}" for number in range(28))
TOO_SMALL = BASES[:2]  # their least quantity costs more than a position may
POLICY = DeskPolicy(
    notional=Decimal(100),
    leverage=5,
    positions_max=PLAN.target,
    settle_s=2.0,
    gateway=execsafe.GatewayPolicy(request_timeout_s=1.0),
    signals=execsafe.SignalPolicy(symbols={f"{base}USDT": f"{base}/USDT:USDT" for base in BASES}),
)
_APART_S = 0.001
QUICK: dict[str, Any] = {"read_lag_s": 0.2, "clock_skew_s": 0.1, "expiry_window_s": 0.8}
"""Windows of a venue for a test of some seconds."""


def symbol(base: str) -> str:
    return f"{base}/USDT:USDT"


def markets() -> list[Market]:
    made = [linear(base) for base in BASES]
    return [
        attrs.evolve(m, instrument=attrs.evolve(m.instrument, min_quantity="1"))
        if m.instrument.base in TOO_SMALL
        else m
        for m in made
    ]


def payloads(at_ms: int) -> list[dict[str, Any]]:
    """57 signals, best first: 28 that could be traded, and 29 that go no further than the gate."""
    made = [_signal(f"good-{base}", base, at_ms) for base in BASES]
    made += [_signal(f"again-{base}", base, at_ms) for base in BASES[-4:]]  # the same content under another id
    made += [_signal(f"stale-{n}", BASES[n], at_ms - 400_000) for n in range(8)]
    made += [_signal(f"future-{n}", BASES[n], at_ms + 3_600_000) for n in range(2)]
    made += [_signal(f"hold-{n}", BASES[n], at_ms, side="HOLD") for n in range(6)]
    made += [_signal(f"flat-{n}", BASES[n], at_ms, side="FLAT") for n in range(4)]
    made += [_signal(f"unlisted-{n}", f"X{n}", at_ms) for n in range(3)]
    made += [{**_signal(f"timeless-{n}", BASES[n], at_ms), "timestamp": "yesterday"} for n in range(2)]
    assert len(made) == SIGNALS
    return made


def _signal(signal_id: str, base: str, at_ms: int, side: str = "LONG") -> dict[str, Any]:
    return {"signal_id": signal_id, "symbol": f"{base}USDT", "side": side, "timestamp": at_ms, "leverage": 5}


def wave_of(desk: TradingDesk) -> signals.Wave:
    """The wave of that desk; in its successor it is the same, with what was done by then."""
    return signals.Wave(PLAN, desk.openings.handle, clock=desk.clock, store=desk.store, name="the 57")


async def play(
    desk: TradingDesk, wave: list[dict[str, Any]], calm: Callable[[], object] | None = None
) -> dict[str, Any]:
    """Give the desk all signals, best first; return how each one ended, once nothing is unfinished."""
    gate, handler = desk.gate, desk.handler
    ends: dict[str, str] = {}

    async def one(payload: dict[str, Any]) -> None:
        outcome = await gate.run(payload, handler)
        while isinstance(outcome, signals.Unfinished):  # in doubt, or begun by a process that died: the desk goes on
            await anyio.sleep(1.0)
            record = await gate.find(payload["signal_id"])
            if record is not None and record.state.is_terminal:
                ends[payload["signal_id"]] = str(record.reason or record.state)
                return
            if record is None:
                outcome = await gate.run(payload, handler)
        ends[payload["signal_id"]] = await _end(desk, payload["signal_id"], outcome)

    async with anyio.create_task_group() as tasks:
        if calm is not None:
            tasks.start_soon(_later, calm)
        for payload in wave:
            tasks.start_soon(one, payload)
            await anyio.sleep(_APART_S)  # so many at once, and yet in their order: the first ones are the best ones
    await _quiet(desk)
    return {
        "ends": ends,
        "entered": dict(gate.funnel.entered),
        "dropped": {f"{stage}:{reason}": count for (stage, reason), count in gate.funnel.dropped.items()},
        "ratios": {name: gate.funnel.ratio(name).value for name in RATIOS},
    }


async def _later(calm: Callable[[], object]) -> None:
    await anyio.sleep(20)
    calm()


async def _end(desk: TradingDesk, signal_id: str, outcome: signals.SignalOutcome) -> str:
    match outcome:
        case signals.Handled(result=signals.Executed()):
            return "executed"
        case signals.Handled(result=signals.Refused(reason=reason)):
            return str(reason)
        case signals.Dropped(reason=execsafe.DropReason.DUPLICATE):  # it came before: as its record says
            record = await desk.gate.find(signal_id)
            assert record is not None
            return str(record.reason or record.state)
        case signals.Dropped(reason=reason) | signals.DeadLettered(reason=reason):
            return str(reason)
    raise AssertionError(outcome)


async def _quiet(desk: TradingDesk) -> None:
    """Until nothing is in doubt, and every position is covered."""
    for _ in range(120):
        await desk.settle()
        left = await desk.leftover()
        records = [desk.protection.protection(position.position_id) for position in left.positions]
        if not left.in_doubt and not desk.opener.openings() and all(r is not None and r.is_safe for r in records):
            return
        await anyio.sleep(1.0)
    raise AssertionError(f"not settled: {await desk.leftover()}")
