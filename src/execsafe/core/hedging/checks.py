"""Before the first order: could every leg be traded, also if only just enough of the first one fills?"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import attrs

from execsafe.core.approval import approve
from execsafe.core.hedging.quantities import hedge_target, is_placeable, up_to_step, wanted
from execsafe.core.hedging.values import FillBands, HedgeLeg, HedgePlan
from execsafe.errors import InvalidOrder
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.values import plain


def check_plan(
    plan: HedgePlan,
    instruments: Sequence[Instrument],
    prices: Sequence[Decimal | None],
    bands: FillBands,
    *,
    now_ms: int,
) -> None:
    """Refuse a plan of which some fill of the leading leg would be kept and could not be hedged.

    The hedges are judged at their whole quantity, and at the least fill that is not aborted. A minimum value is
    judged where a price is known: the leg's limit, its reference price, or a quote.

    Raises:
        InvalidOrder: a limit is broken; the message has the numbers.
        InvalidInput: a stop's price in the parameters is not a number above 0.
        TradingDenied: the plan is no longer fresh.
    """
    for index, (leg, instrument, price) in enumerate(zip(plan.legs, instruments, prices, strict=True)):
        approve(_trial(plan, leg, leg.quantity, price, is_lead=index == 0), instrument, now_ms=now_ms)
    lead_quantity = instruments[0].floor_quantity(plan.lead.quantity)
    least = _least_kept(lead_quantity, instruments[0], bands)
    for leg, instrument, price in zip(plan.legs[1:], instruments[1:], prices[1:], strict=True):
        want = wanted(leg_quantity=leg.quantity, lead_quantity=plan.lead.quantity, lead_held=least)
        hedge = hedge_target(want, instrument)
        if not is_placeable(instrument, hedge, price):
            raise InvalidOrder(
                f"{leg.symbol}: if only {plain(least)} of {plain(lead_quantity)} {plan.lead.symbol} fill, the hedge of "
                f"{plain(hedge)} is below its minimum ({_minimum(instrument, price)}); trade more, or raise the "
                f"abort band above {plain(bands.abort)}",
                symbol=leg.symbol,
                least_fill=least,
                hedge=hedge,
            )


def _least_kept(quantity: Decimal, instrument: Instrument, bands: FillBands) -> Decimal:
    """The smallest fill of the leading leg that is hedged: the abort band, up to the step, at least one step."""
    edge = up_to_step(Fraction(quantity) * Fraction(bands.abort), instrument)
    return edge if edge > 0 else (instrument.step_size or quantity)


def _trial(plan: HedgePlan, leg: HedgeLeg, quantity: Decimal, price: Decimal | None, *, is_lead: bool) -> Intent:
    intent = Intent(
        key=plan.key or "plan",
        symbol=leg.symbol,
        side=leg.side,
        quantity=quantity,
        limit_price=leg.limit_price,
        account=leg.account,
        post_only=leg.post_only,
        params=leg.params,
        fresh_until_ms=plan.fresh_until_ms if is_lead else None,
    )
    # A market order is judged by the value that is expected of it.
    return intent if leg.limit_price is not None else attrs.evolve(intent, limit_price=price)


def _minimum(instrument: Instrument, price: Decimal | None) -> str:
    known = []
    if instrument.min_quantity is not None:
        known.append(f"quantity {plain(instrument.min_quantity)}")
    if instrument.min_notional is not None:
        known.append(f"value {plain(instrument.min_notional)} at a price of {'?' if price is None else plain(price)}")
    return ", ".join(known) or f"one step of {instrument.step_size}"
