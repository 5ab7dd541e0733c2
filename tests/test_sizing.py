"""The face of sizing: a policy, a budget, a quantity or a rejection."""

from __future__ import annotations

from decimal import Decimal

import pytest

from execsafe.core.sizing import min_cost, size_order
from execsafe.model.instrument import Instrument
from execsafe.sizing import Margin, Notional, PositionSizer, Sized, SizeLimit, SizeRejected, SizingPolicy

AVAX = Instrument(symbol="AVAX/USDT", step_size="0.001", min_quantity="1.0")


@pytest.mark.row("S3-20")
def test_a_sizer_decides_as_its_policy_says():
    match PositionSizer().size(Notional(6), "18.19", AVAX):
        case SizeRejected(reason=reason, required=required, allowed=allowed):
            assert (reason, required, allowed) == (SizeLimit.MIN_QUANTITY, Notional("18.19"), Notional("6.6"))
        case other:
            pytest.fail(f"was {other}")
    match PositionSizer(SizingPolicy(tolerance_ratio="0.25")).size(Notional(15), "18.19", AVAX):
        case Sized(quantity=quantity):
            assert quantity == 1
        case other:
            pytest.fail(f"was {other}")


@pytest.mark.row("S2-35")
def test_leverage_multiplies_margin_only():
    sizer = PositionSizer()
    assert sizer.size(Margin(6), 2, AVAX, leverage=20).quantity == 60
    assert sizer.size(Notional(6), 2, AVAX, leverage=20).quantity == 3


def test_a_sizer_adds_nothing_to_the_decision():
    sizer = PositionSizer()
    assert sizer.size(Margin(7), 3, AVAX, leverage=2) == size_order(sizer.policy, Margin(7), 3, AVAX, leverage=2)
    assert sizer.min_cost(AVAX, "18.19") == min_cost(AVAX, "18.19") == Notional(Decimal("18.19"))
