"""What callers do in a simulated run: intents, repeats, conflicts, cancels and changes, drawn from a seed."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Final

import attrs

from execsafe.model.intent import Intent
from execsafe.testing._history import TAG

ACTIVE_MS: Final = 30_000
"""How long callers go on."""

_SYMBOLS: Final = {"BTC/USDT": (Decimal(60_000), Decimal("0.001")), "ETH/USDT": (Decimal(3_000), Decimal("0.01"))}
_PERCENT: Final = Decimal("0.01")
_JOIN_RATE: Final = 0.45
_CONFLICT_RATE: Final = 0.1
_CANCEL_RATE: Final = 0.5  # of all changes; the others are replacements …
_MOVE_RATE: Final = 0.5  # … of which so many move the price as well
_INTERRUPT_RATE: Final = 0.15


@attrs.frozen(kw_only=True)
class Planned:
    """One call to be made. *slot* says by which process; a call whose process is down is not made."""

    at_ms: int
    slot: int
    kind: str
    key: str
    intent: Intent | None = None
    join: bool = False
    quantity: Decimal | None = None
    limit_price: Decimal | None = None
    cancel_after_ms: int | None = None


def draw_script(rng: random.Random, intents: int, slots: int, *, cancels_calls: bool) -> list[Planned]:
    """All calls of a run, in no particular order."""
    planned: list[Planned] = []
    for number in range(intents):
        planned += _about_one(rng, f"i{number}", slots)
    planned += [
        Planned(at_ms=rng.randint(1_000, ACTIVE_MS), slot=rng.randrange(slots), kind="recover", key="")
        for _ in range(rng.choice((0, 0, 1, 3)))
    ]
    if cancels_calls:
        planned = [_perhaps_cancelled(rng, plan) for plan in planned]
    return planned


def draw_path(rng: random.Random, symbol: str, start_ms: int) -> list[tuple[int, Decimal]]:
    """A price path over the active time: small steps, now and then a larger one."""
    price, at_ms, path = _SYMBOLS[symbol][0], start_ms, []
    while at_ms < start_ms + 2 * ACTIVE_MS:
        at_ms += rng.randint(500, 5_000)
        change = rng.choice(("-0.01", "-0.002", "0", "0.002", "0.01"))
        price = (price * (1 + Decimal(change))).quantize(_PERCENT)
        path.append((at_ms, price))
    return path


def _about_one(rng: random.Random, key: str, slots: int) -> list[Planned]:
    intent = _draw_intent(rng, key)
    at_ms = rng.randint(0, ACTIVE_MS * 2 // 3)
    join = rng.random() < _JOIN_RATE
    calls = [Planned(at_ms=at_ms, slot=rng.randrange(slots), kind="submit", key=key, intent=intent, join=join)]
    for _ in range(rng.choice((0, 0, 0, 1, 2, 4))):
        later_ms = at_ms + rng.choice((0, 0, 1, 20, 300, 3_000, 15_000))
        calls.append(attrs.evolve(calls[0], at_ms=later_ms, slot=rng.randrange(slots), join=rng.random() < _JOIN_RATE))
    if rng.random() < _CONFLICT_RATE:
        other = attrs.evolve(intent, quantity=intent.quantity * 2, params={TAG: key, "other": True})
        later_ms = at_ms + rng.choice((0, 5, 500, 5_000))
        calls.append(attrs.evolve(calls[0], at_ms=later_ms, slot=rng.randrange(slots), intent=other))
    changes = rng.choice((0, 0, 0, 1, 2, 3))
    return calls + [_draw_change(rng, intent, at_ms, slots) for _ in range(changes)]


def _draw_intent(rng: random.Random, key: str) -> Intent:
    symbol = rng.choice(sorted(_SYMBOLS))
    price, step = _SYMBOLS[symbol]
    kind = rng.choice(("limit", "limit", "market", "ioc"))
    away = rng.choice((Decimal("-0.02"), Decimal("-0.003"), Decimal("0.01")))
    side = rng.choice(("buy", "sell"))
    limit_price = (price * (1 + away * (1 if side == "buy" else -1))).quantize(_PERCENT)
    return Intent(
        key=key,
        symbol=symbol,
        side=side,
        quantity=step * rng.randint(1, 400),
        limit_price=None if kind == "market" else limit_price,
        time_in_force="IOC" if kind == "ioc" else None,
        params={TAG: key},
    )


def _draw_change(rng: random.Random, intent: Intent, at_ms: int, slots: int) -> Planned:
    later_ms = at_ms + rng.choice((0, 50, 1_000, 6_000, 15_000))
    plan = Planned(at_ms=later_ms, slot=rng.randrange(slots), kind="cancel", key=intent.key)
    if rng.random() < _CANCEL_RATE:
        return plan
    ratio = Decimal(rng.choice(("0.5", "1", "1.5", "2")))
    moved = None
    if intent.limit_price is not None and rng.random() < _MOVE_RATE:
        moved = (intent.limit_price * Decimal(rng.choice(("0.99", "1.01")))).quantize(_PERCENT)
    _, step = _SYMBOLS[intent.symbol]
    quantity = max(step, (intent.quantity * ratio / step).to_integral_value() * step)
    return attrs.evolve(plan, kind="replace", quantity=quantity, limit_price=moved)


def _perhaps_cancelled(rng: random.Random, plan: Planned) -> Planned:
    if rng.random() >= _INTERRUPT_RATE:
        return plan
    return attrs.evolve(plan, cancel_after_ms=rng.choice((1, 10, 40, 80, 1_000, 2_500, 8_000, 20_000)))
