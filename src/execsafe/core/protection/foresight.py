"""The stop that an entry will need, and whether the venue would take it: decided before the entry is sent."""

from __future__ import annotations

from decimal import Decimal

from execsafe.core.approval import approve
from execsafe.core.dust import has_minimum_value
from execsafe.core.opening import EntryPlan, OpeningPolicy
from execsafe.core.protection.record import Leg, Purpose, stop_price_for
from execsafe.errors import InvalidInput, InvalidOrder
from execsafe.model.instrument import Instrument, is_contract
from execsafe.model.intent import Intent
from execsafe.model.values import EXACT, plain

_ONE = Decimal(1)


def planned_stop(plan: EntryPlan, instrument: Instrument, entry_price: Decimal | None, policy: OpeningPolicy) -> Leg:
    """The smallest stop that *plan* comes to need when all of it fills.

    Args:
        plan: what is to be opened.
        instrument: for step and tick.
        entry_price: about what will be paid; None where the plan's stop does not depend on it.
        policy: how much of a spot buy its fee may take.

    Raises:
        InvalidOrder: less than one step would be left.
        InvalidInput: the stop's distance cannot be counted from anything.
    """
    share = _ONE if is_contract(plan.symbol) else EXACT.subtract(_ONE, policy.base_fee_ratio_max)
    quantity = instrument.floor_quantity(EXACT.multiply(plan.quantity, share))
    if quantity <= 0:
        raise InvalidOrder(
            f"{plan.symbol}: of quantity {plain(plan.quantity)} less than one step would be left once its fee is paid",
            intent_key=plan.key,
        )
    return Leg(number=1, purpose=Purpose.STOP, quantity=quantity, price=_price(plan, instrument, entry_price))


def _price(plan: EntryPlan, instrument: Instrument, entry_price: Decimal | None) -> Decimal:
    if plan.stop.stop_price is not None:
        return instrument.safe_limit_price(plan.stop.stop_price, plan.side.closing)
    if entry_price is None or plan.stop.distance is None:
        raise InvalidInput(f"{plan.symbol}: no price is known from which the stop's distance counts")
    return stop_price_for(plan.side, entry_price, plan.stop.distance, instrument)


def check_stop(stop: Intent, instrument: Instrument, policy: OpeningPolicy, *, now_ms: int) -> None:
    """Return if the venue's limits leave room for *stop*.

    A venue judges the value of a stop at the stop's own price, below that of the entry. A bare pass is none: the price
    paid may be better than planned, and then the stop belongs lower still.

    Raises:
        InvalidOrder: a limit is broken; the message has the numbers.
    """
    approved = approve(stop, instrument, now_ms=now_ms)
    price, least = stop.trigger_price, instrument.min_notional
    if price is None or least is None or not has_minimum_value(instrument):
        return
    wanted = EXACT.multiply(least, EXACT.add(_ONE, policy.stop_margin_ratio))
    value = instrument.notional(approved.quantity, price)
    if value < wanted:
        raise InvalidOrder(
            f"{stop.symbol}: value {plain(value)} (quantity {plain(approved.quantity)} × price {plain(price)}) is too "
            f"close to the minimum of {plain(least)}; at least {plain(wanted)} is wanted",
            intent_key=stop.key,
        )
