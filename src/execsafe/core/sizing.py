"""How much to order for a budget, on the venue's grid, or why nothing fits.

The order of the steps is the point:

1. floor to the step (never more than the budget buys)
2. raise to the minimum quantity
3. raise to the minimum notional
4. ceil to the step (raised quantities only: what was floored is on it)
5. lower to the maximums
6. compare with budget × (1 + tolerance), last, so that nothing above can step over it

What comes out is never above that and never below a minimum; the property tests say so.
"""

from __future__ import annotations

import enum
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from typing import Any, Final, NamedTuple, TypeAlias

import attrs

from execsafe.core.grid import on_grid, to_average
from execsafe.errors import InvalidInput
from execsafe.model.instrument import Instrument
from execsafe.model.units import Margin, Notional
from execsafe.model.values import EXACT, Number, plain, shorten, to_decimal, to_positive

_ONE: Final = Decimal(1)
_UNIT: Final = Decimal("1e-18")  # grid where an instrument states no step: the finest unit of any coin in scope
_SHOWN: Final = Decimal("0.00000001")
_TRAPS: Final = [InvalidOperation, DivisionByZero, Overflow]
_UP: Final = Context(prec=60, rounding=ROUND_CEILING, traps=_TRAPS)
_DOWN: Final = Context(prec=60, rounding=ROUND_FLOOR, traps=_TRAPS)


def _tolerance(_instance: Any, _attribute: attrs.Attribute[Decimal], value: Decimal) -> None:
    if not 0 <= value <= 1:
        raise InvalidInput(f"tolerance_ratio must be 0 to 1, was {shorten(str(value))}")


@attrs.frozen(kw_only=True)
class SizingPolicy:
    """How far a size may exceed its budget to reach a minimum.

    Attributes:
        tolerance_ratio: 0.10, so a budget of 6 may become 6.60 but not 18.19. 0: never above the budget.
    """

    tolerance_ratio: Decimal = attrs.field(default=Decimal("0.10"), converter=to_decimal, validator=_tolerance)


class SizeLimit(enum.StrEnum):
    """What decided a quantity, or stood in its way."""

    STEP = "step"
    MIN_QUANTITY = "min_quantity"
    MIN_NOTIONAL = "min_notional"
    MAX_QUANTITY = "max_quantity"
    MAX_NOTIONAL = "max_notional"


@attrs.frozen(kw_only=True)
class Sized:
    """A quantity that can be ordered.

    Attributes:
        symbol: which.
        quantity: in the venue's order unit, on the step.
        price: at which it was valued.
        notional: what it is worth; at most budget × (1 + tolerance).
        margin: what must be put up for it at the leverage given.
        budget: what was asked for, as a notional.
        limits: what changed the quantity, in order; empty where the budget fell on the grid.
    """

    symbol: str
    quantity: Decimal
    price: Decimal
    notional: Notional
    margin: Margin
    budget: Notional
    limits: tuple[SizeLimit, ...] = ()


@attrs.frozen(kw_only=True)
class SizeRejected:
    """Nothing fits. All numbers, so that nobody has to compute them again.

    Attributes:
        symbol, price: which, valued at what.
        reason: the limit that the budget cannot reach, or that contradicts a minimum.
        budget: what was asked for, as a notional.
        allowed: budget × (1 + tolerance).
        quantity: what the budget buys, on the step.
        required_quantity: the smallest order possible.
        required: what that costs.
        min_quantity, min_notional, step_size, max_quantity, max_notional: the instrument's limits.
        hints: what could be changed.
    """

    symbol: str
    price: Decimal
    reason: SizeLimit
    budget: Notional
    allowed: Notional
    quantity: Decimal
    required_quantity: Decimal
    required: Notional
    min_quantity: Decimal | None = None
    min_notional: Decimal | None = None
    step_size: Decimal | None = None
    max_quantity: Decimal | None = None
    max_notional: Decimal | None = None
    hints: tuple[str, ...] = ()

    def __str__(self) -> str:
        smallest = f"{self.symbol}: the smallest order at {plain(self.price)} is {plain(self.required_quantity)}"
        if self.reason not in _MINIMUMS:
            return f"{smallest}, which is above the instrument's {self.reason}"
        return (
            f"{smallest} and costs {self.required}, more than the {self.allowed} allowed; a budget of {self.budget} "
            f"buys {plain(self.quantity)} ({self.reason})"
        )


SizeResult: TypeAlias = Sized | SizeRejected
"""What :func:`size_order` returns."""

_MINIMUMS: Final = frozenset({SizeLimit.STEP, SizeLimit.MIN_QUANTITY, SizeLimit.MIN_NOTIONAL})


class _Edge(NamedTuple):
    """The smallest or largest quantity that can be ordered, and the limit that says so."""

    quantity: Decimal
    reason: SizeLimit


@attrs.frozen(kw_only=True)
class _Case:
    instrument: Instrument
    price: Decimal
    budget: Notional
    allowed: Notional
    bought: Decimal
    smallest: _Edge
    largest: _Edge | None


def size_order(
    policy: SizingPolicy, budget: Notional | Margin, price: Number, instrument: Instrument, *, leverage: Number = 1
) -> SizeResult:
    """The quantity for *budget*.

    Args:
        policy: how far the budget may be exceeded.
        budget: ``Notional`` is what the position will be worth, whatever the leverage; ``Margin`` is what is put up
            for it, so the position will be worth that × leverage. A bare number could be either and is refused.
        price: at which the order is valued, quote per base.
        instrument: its step, minimums, maximums and contract size.
        leverage: of the position.

    Raises:
        InvalidInput: a budget without its unit or of 0, a price or leverage that is not above 0, leverage below 1.
    """
    paid, times = to_average(price), to_positive(leverage, "leverage")
    if times < 1:
        raise InvalidInput(f"leverage must be at least 1, was {shorten(str(times))}")
    wanted = _to_notional(budget, times)
    case = _Case(
        instrument=instrument,
        price=paid,
        budget=wanted,
        allowed=Notional(EXACT.multiply(wanted.value, EXACT.add(_ONE, policy.tolerance_ratio))),
        bought=_afford(wanted.value, paid, instrument, up=False),
        smallest=_smallest(instrument, paid),
        largest=_largest(instrument, paid),
    )
    quantity, limits = _fit(case)
    notional = Notional(instrument.notional(quantity, paid))
    if quantity < case.smallest.quantity:
        return _reject(case, limits[-1])
    if notional > case.allowed:
        return _reject(case, case.smallest.reason)
    margin = _UP.divide(notional.value, times).quantize(_UNIT, rounding=ROUND_CEILING, context=EXACT)
    return Sized(
        symbol=instrument.symbol,
        quantity=quantity,
        price=paid,
        notional=notional,
        margin=Margin(margin),
        budget=wanted,
        limits=limits,
    )


def min_cost(instrument: Instrument, price: Number) -> Notional:
    """What the smallest order possible costs at *price*; 0 where the instrument states no minimum and no step.

    Filter symbols by this rather than by their price: a coin at 50,000 may be sold in crumbs, one at 18 only whole.

    Raises:
        InvalidInput: *price* is not above 0.
    """
    paid = to_average(price)
    if (instrument.step_size, instrument.min_quantity, instrument.min_notional) == (None, None, None):
        return Notional(0)
    return Notional(instrument.notional(_smallest(instrument, paid)[0], paid))


def _to_notional(budget: Notional | Margin, leverage: Decimal) -> Notional:
    if not isinstance(budget, (Notional, Margin)):
        raise InvalidInput(f"give the budget's meaning: Notional(6) or Margin(6), was {shorten(budget)}")
    if budget.value == 0:
        raise InvalidInput("the budget must be greater than 0")
    return budget if isinstance(budget, Notional) else budget.at(leverage)


def _step(instrument: Instrument) -> Decimal:
    return _UNIT if instrument.step_size is None else instrument.step_size


def _afford(amount: Decimal, price: Decimal, instrument: Instrument, *, up: bool) -> Decimal:
    """The quantity that *amount* buys, on the step: exact, no division is rounded before the grid decides."""
    step = _step(instrument)
    one_step = instrument.notional(step, price)
    steps = EXACT.divide_int(amount, one_step)
    if up and EXACT.multiply(steps, one_step) < amount:
        steps = EXACT.add(steps, _ONE)
    return EXACT.multiply(steps, step)


def _smallest(instrument: Instrument, price: Decimal) -> _Edge:
    step = _step(instrument)
    edge = _Edge(step, SizeLimit.STEP)
    if instrument.min_quantity is not None and instrument.min_quantity > step:
        edge = _Edge(on_grid(instrument.min_quantity, step, up=True), SizeLimit.MIN_QUANTITY)
    if instrument.min_notional is not None and instrument.notional(edge.quantity, price) < instrument.min_notional:
        edge = _Edge(_afford(instrument.min_notional, price, instrument, up=True), SizeLimit.MIN_NOTIONAL)
    return edge


def _largest(instrument: Instrument, price: Decimal) -> _Edge | None:
    edge = None
    if instrument.max_quantity is not None:
        edge = _Edge(on_grid(instrument.max_quantity, _step(instrument), up=False), SizeLimit.MAX_QUANTITY)
    if instrument.max_notional is not None:
        most = _afford(instrument.max_notional, price, instrument, up=False)
        if edge is None or most < edge.quantity:
            edge = _Edge(most, SizeLimit.MAX_NOTIONAL)
    return edge


def _fit(case: _Case) -> tuple[Decimal, tuple[SizeLimit, ...]]:
    """The quantity within both edges, and what changed it."""
    on_step = case.instrument.notional(case.bought, case.price) == case.budget.value
    quantity, limits = case.bought, () if on_step else (SizeLimit.STEP,)
    if quantity < case.smallest.quantity:
        quantity, limits = case.smallest.quantity, (*limits, case.smallest.reason)
    if case.largest is not None and quantity > case.largest.quantity:
        quantity, limits = case.largest.quantity, (*limits, case.largest.reason)
    return quantity, tuple(dict.fromkeys(limits))


def _reject(case: _Case, reason: SizeLimit) -> SizeRejected:
    instrument = case.instrument
    required = Notional(instrument.notional(case.smallest.quantity, case.price))
    return SizeRejected(
        symbol=instrument.symbol,
        price=case.price,
        reason=reason,
        budget=case.budget,
        allowed=case.allowed,
        quantity=case.bought,
        required_quantity=case.smallest.quantity,
        required=required,
        min_quantity=instrument.min_quantity,
        min_notional=instrument.min_notional,
        step_size=instrument.step_size,
        max_quantity=instrument.max_quantity,
        max_notional=instrument.max_notional,
        hints=_hints(reason, case, required),
    )


def _hints(reason: SizeLimit, case: _Case, required: Notional) -> tuple[str, ...]:
    if reason not in _MINIMUMS:
        return ("the instrument's limits contradict each other at this price: leave it out",)
    enough = _UP.divide(EXACT.multiply(required.value, case.budget.value), case.allowed.value)
    enough = enough.quantize(_SHOWN, rounding=ROUND_CEILING, context=EXACT)
    over = _DOWN.divide(required.value, case.budget.value).quantize(
        Decimal("0.01"), rounding=ROUND_FLOOR, context=EXACT
    )
    return (
        f"raise the budget to a notional of at least {plain(enough)}",
        f"or leave out symbols whose min_cost is above the budget: here it is {plain(over)} times the budget",
    )
