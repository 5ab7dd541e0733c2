"""Pure decisions: they are on the way of every trade, so they must not be what one waits for."""

from decimal import Decimal

import execsafe
from execsafe.core.trailing import TrailingPolicy
from execsafe.sizing import PositionSizer

INSTRUMENT = execsafe.Instrument(
    symbol="ETH/USDT", tick_size="0.01", step_size="0.0001", min_quantity="0.001", min_notional="5"
)


def test_levels(benchmark):
    """Floor: nothing; a ladder of three targets, a stop and its bounds are some fifty Decimal operations."""
    levels = execsafe.AdaptiveLevels()
    benchmark(levels.compute, symbol="ETH/USDT", leverage=20, volatility_factor=Decimal("1.5"), side="long")
    assert benchmark.disabled or benchmark.stats["median"] < 1e-3


def test_sizing(benchmark):
    sizer = PositionSizer()
    benchmark(sizer.size, execsafe.Notional(50), Decimal("3000.5"), INSTRUMENT, leverage=5)
    assert benchmark.disabled or benchmark.stats["median"] < 1e-3


def test_hedge_plan(benchmark):
    def plan():
        legs = [
            execsafe.HedgeLeg(symbol="ETH/USDT:USDT", side="buy", quantity="1.5", limit_price=3000),
            execsafe.HedgeLeg(symbol="BTC/USDT:USDT", side="sell", quantity="0.1", limit_price=50000),
        ]
        return execsafe.HedgePlan(key="k", legs=legs).content_key

    benchmark(plan)
    assert benchmark.disabled or benchmark.stats["median"] < 1e-3


def test_trailing_policy(benchmark):
    benchmark(TrailingPolicy)
