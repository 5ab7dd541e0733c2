"""Units as types: shares of a price, returns on margin, and amounts of quote currency.

0.02 may be two percent or two hundredths of a percent, and a number cannot say which. A stop was once clamped in
one unit and published in the other: read as labelled, fifty times too near. Hence: each unit is a type, arithmetic and
comparison stay within one type, conversion is explicit and exact, and text is formatted by the type.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal
from typing import Any, ClassVar, Final, Self, TypeAlias

import attrs

from execsafe.errors import InvalidInput
from execsafe.model.values import EXACT, Number, plain, shorten, to_decimal, to_positive

# So chosen that the three shares convert into each other without ever leaving their range.
_FRACTION_DIGITS_MAX: Final = 26
_FRACTION_PLACES_MAX: Final = 40
_AMOUNT_DIGITS_MAX: Final = 60
_AMOUNT_PLACES_MAX: Final = 100  # a product of step, price and contract size
_READABLE: Final = Context(prec=8)


def _to_number(value: Number) -> Decimal:
    return value if isinstance(value, Decimal) else to_decimal(value)


@attrs.frozen(order=True, repr=False)
class _Measure:
    """A number with a unit. Adding, comparing and ordering work within one type only."""

    value: Decimal = attrs.field(converter=_to_number)

    _shift: ClassVar[int] = 0  # this unit is 10**_shift times finer than a fraction
    _places_max: ClassVar[int] = _FRACTION_PLACES_MAX

    @value.validator
    def _in_range(self, _attribute: attrs.Attribute[Decimal], value: Decimal) -> None:
        if not value.is_finite():
            raise InvalidInput(f"{type(self).__name__} must be finite, was {shorten(str(value))}")
        exponent = value.as_tuple().exponent
        places_max = self._places_max - self._shift
        is_fine = isinstance(exponent, int) and -exponent <= places_max
        if not is_fine or value.adjusted() >= _FRACTION_DIGITS_MAX + self._shift:
            raise InvalidInput(f"{type(self).__name__} is out of range: {shorten(str(value))}")

    def __add__(self, other: Self) -> Self:
        if type(other) is not type(self):
            return NotImplemented
        return type(self)(EXACT.add(self.value, other.value))

    def __sub__(self, other: Self) -> Self:
        if type(other) is not type(self):
            return NotImplemented
        return type(self)(EXACT.subtract(self.value, other.value))

    def __neg__(self) -> Self:
        return type(self)(self.value.copy_negate())

    def __abs__(self) -> Self:
        return type(self)(self.value.copy_abs())

    def __float__(self) -> float:
        """The number in this type's own unit: for plots and payloads, never for arithmetic."""
        return float(self.value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{plain(self.value)}')"


class _Share(_Measure):
    """What the three shares of a price have in common."""

    __slots__ = ()

    def as_fraction(self) -> PriceFraction:
        """The same share as a fraction of the price: exact."""
        return PriceFraction(self.value.scaleb(-self._shift, EXACT))

    def as_percent(self) -> Percent:
        """The same share in percent: exact."""
        return Percent(self.value.scaleb(Percent._shift - self._shift, EXACT))

    def as_bps(self) -> Bps:
        """The same share in basis points (1 bp = 0.01 %): exact."""
        return Bps(self.value.scaleb(Bps._shift - self._shift, EXACT))

    def of(self, price: Decimal) -> Decimal:
        """This share of *price*, exact: a distance in the price's own unit."""
        return EXACT.multiply(self.as_fraction().value, price)

    def roe(self, leverage: Number) -> MarginReturn:
        """Return on the margin of a position with *leverage* when the price moves by this share.

        Raises:
            InvalidInput: *leverage* is no number above 0.
        """
        return MarginReturn(EXACT.multiply(self.as_fraction().value, to_positive(leverage, "leverage")))


@attrs.frozen(order=True, repr=False)
class PriceFraction(_Share):
    """A share of a price as a plain fraction: 0.01 is one percent. The unit of everything computed inside."""

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, spec: str) -> str:
        """In percent, with its sign: ``f"{PriceFraction('0.02'):.3f}"`` is ``"2.000 %"``."""
        return format(self.as_percent(), spec)


@attrs.frozen(order=True, repr=False)
class Percent(_Share):
    """A share of a price in percent: 1 is one percent."""

    _shift: ClassVar[int] = 2

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, spec: str) -> str:
        """The number as *spec* says, and the unit."""
        return f"{_text(self.value, spec)} %"


@attrs.frozen(order=True, repr=False)
class Bps(_Share):
    """A share of a price in basis points: 1 is a hundredth of a percent."""

    _shift: ClassVar[int] = 4

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, spec: str) -> str:
        """The number as *spec* says, and the unit."""
        return f"{_text(self.value, spec)} bps"


@attrs.frozen(order=True, repr=False)
class MarginReturn(_Measure):
    """Profit as a fraction of the margin put up: 0.05 is five percent of it. Not a share of the price.

    With a leverage of 20, a price that moves by 1 % returns 20 % of the margin, before costs.
    """

    _places_max: ClassVar[int] = _FRACTION_PLACES_MAX + 30  # times a leverage

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, spec: str) -> str:
        """In percent of margin, the number as *spec* says."""
        return f"{_text(self.value.scaleb(2, EXACT), spec)} % of margin"


def _text(number: Decimal, spec: str) -> str:
    """As *spec* says; without one, to eight digits: text is for reading, ``value`` and ``repr`` are exact."""
    return format(number, spec) if spec else plain(_READABLE.plus(number))


PriceShare: TypeAlias = PriceFraction | Percent | Bps
"""A share of a price in any of its units."""


def to_price_fraction(value: PriceShare) -> PriceFraction:
    """A share of a price, in whatever unit, as a fraction. A bare number has no unit and is refused.

    Raises:
        InvalidInput: *value* is not a ``PriceFraction``, ``Percent`` or ``Bps``.
    """
    if not isinstance(value, (PriceFraction, Percent, Bps)):
        raise InvalidInput(f"give the unit: Percent(2), Bps(200) or PriceFraction('0.02'), was {shorten(value)}")
    return value.as_fraction()


def to_margin_return(value: MarginReturn | Number) -> MarginReturn:
    """A return on margin; a bare number is one already (0.05 is +5 % of the margin).

    Raises:
        InvalidInput: NaN, infinity, or a share of a price: without the leverage it says nothing about the margin.
    """
    if isinstance(value, _Share):
        raise InvalidInput(f"a return on margin is needed, was a share of a price: {value}; use its roe(leverage)")
    return value if isinstance(value, MarginReturn) else MarginReturn(to_decimal(value, "return on margin"))


# --- Amounts of quote currency ---------------------------------------------------------------------


def _to_amount(value: Number) -> Decimal:
    amount = value if isinstance(value, Decimal) else to_decimal(value, "amount")
    exponent = amount.as_tuple().exponent
    if not amount.is_finite() or not isinstance(exponent, int) or amount < 0:
        raise InvalidInput(f"an amount must be 0 or more, was {shorten(str(amount))}")
    if amount.adjusted() >= _AMOUNT_DIGITS_MAX or -exponent > _AMOUNT_PLACES_MAX:
        raise InvalidInput(f"an amount is out of range: {shorten(str(amount))}")
    return amount


@attrs.frozen(order=True, repr=False)
class Notional:
    """What a position is worth, in quote currency: quantity × price × contract size."""

    value: Decimal = attrs.field(converter=_to_amount)

    def __repr__(self) -> str:
        return f"Notional('{plain(self.value)}')"

    def __str__(self) -> str:
        return plain(self.value)

    def __format__(self, spec: str) -> str:
        """The number as *spec* says; all of it without one."""
        return format(self.value, spec) if spec else plain(self.value)


@attrs.frozen(order=True, repr=False)
class Margin:
    """What is put up for a position, in quote currency: notional ÷ leverage."""

    value: Decimal = attrs.field(converter=_to_amount)

    def at(self, leverage: Number) -> Notional:
        """What a position with this margin and *leverage* is worth: exact.

        Raises:
            InvalidInput: *leverage* is no number above 0, or the product is out of range.
        """
        return Notional(EXACT.multiply(self.value, to_positive(leverage, "leverage")))

    def __repr__(self) -> str:
        return f"Margin('{plain(self.value)}')"

    def __str__(self) -> str:
        return plain(self.value)

    def __format__(self, spec: str) -> str:
        """The number as *spec* says; all of it without one."""
        return format(self.value, spec) if spec else plain(self.value)


def share_validator(*, least: Decimal, most: Decimal, above: bool = False) -> Callable[[Any, Any, Any], None]:
    """An attrs validator: a share of a price from *least* (*above*: greater than it) to *most*, both as fractions.

    It lets None pass, for fields whose converter does.
    """

    def validate(_instance: Any, attribute: Any, share: PriceFraction | None) -> None:
        if share is None:
            return
        value = share.as_fraction()
        is_enough = value.value > least if above else value.value >= least
        if not is_enough or value.value > most:
            low = f"above {PriceFraction(least)}" if above else f"{PriceFraction(least)}"
            raise InvalidInput(f"{attribute.name} must be {low} to {PriceFraction(most)}, was {value}")

    return validate
