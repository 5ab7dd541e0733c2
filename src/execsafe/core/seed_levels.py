"""The levels that the original system published, to the last digit. For comparison with old data; do not trade them.

Its ``tp`` numbers are percent. Its ``sl`` was computed in percent and then clamped by 0.02, a bound meant as a
fraction, so every published stop is the bound itself, whatever the leverage. Floats in the original's order of
operations, because the last digit depends on it.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Final

import attrs

_BASE_TP: Final = 1.0
_BASE_SL: Final = 0.5
_TP_LEAST: Final = 0.003
_SL_LEAST: Final = 0.0015
_SL_CLAMP: Final = (0.001, 0.02)


@attrs.frozen(kw_only=True)
class SeedNumbers:
    """Published numbers without a common unit: ``tp1`` to ``tp3`` in percent, ``sl`` at its clamp."""

    lsf: float
    tp1: float
    tp2: float
    tp3: float
    sl: float


def seed_numbers(*, leverage: Decimal, volatility_factor: Decimal, exchange_divergence: Decimal) -> SeedNumbers:
    """What the original published for these inputs."""
    lsf = 1.0 / (1.0 + math.log(float(leverage) + 1.0))
    unclamped = _BASE_SL * (1.0 + (1.0 - lsf) * 0.8)
    unclamped *= 1.0 + 0.4 * float(exchange_divergence) + 0.2 * float(volatility_factor)
    low, high = _SL_CLAMP
    return SeedNumbers(
        lsf=lsf,
        tp1=max(_BASE_TP * (0.6 + lsf), _TP_LEAST),
        tp2=max(_BASE_TP * (1.2 + lsf / 2.0), _TP_LEAST),
        tp3=max(_BASE_TP * (1.8 + lsf / 4.0), _TP_LEAST),
        sl=min(max(unclamped, _SL_LEAST, low), high),
    )
