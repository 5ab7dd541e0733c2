"""What can be traded, and on which grid."""

from __future__ import annotations

from decimal import Decimal

import attrs

from execsafe.model.order import Side
from execsafe.model.values import EXACT, SYMBOL_LENGTH_MAX, text_validator, to_contract_size, to_limit

ONE = Decimal(1)


def is_contract(symbol: str) -> bool:
    """Whether ccxt's unified *symbol* is a derivative's (``BTC/USDT:USDT``): reduce-only and positions exist there."""
    return ":" in symbol


def _on_grid(value: Decimal, step: Decimal, *, up: bool) -> Decimal:
    below = EXACT.multiply(EXACT.divide_int(value, step), step)
    return EXACT.add(below, step) if up and below < value else below


@attrs.frozen(kw_only=True)
class Instrument:
    """Trading rules of one symbol; ``None`` means that the venue states no such limit.

    Quantities are in the venue's order unit (contracts where ``contract_size`` is not 1), prices in
    quote per base. ``min_notional`` is in quote currency: quantity × price × contract size.
    """

    symbol: str = attrs.field(validator=text_validator("symbol", SYMBOL_LENGTH_MAX))
    base: str = ""
    quote: str = ""
    tick_size: Decimal | None = attrs.field(default=None, converter=to_limit)
    step_size: Decimal | None = attrs.field(default=None, converter=to_limit)
    min_quantity: Decimal | None = attrs.field(default=None, converter=to_limit)
    max_quantity: Decimal | None = attrs.field(default=None, converter=to_limit)
    min_price: Decimal | None = attrs.field(default=None, converter=to_limit)
    max_price: Decimal | None = attrs.field(default=None, converter=to_limit)
    min_notional: Decimal | None = attrs.field(default=None, converter=to_limit)
    max_notional: Decimal | None = attrs.field(default=None, converter=to_limit)
    contract_size: Decimal = attrs.field(default=ONE, converter=to_contract_size)

    def floor_quantity(self, quantity: Decimal) -> Decimal:
        """*quantity* rounded down to the step: never more than asked for."""
        return quantity if self.step_size is None else _on_grid(quantity, self.step_size, up=False)

    def safe_limit_price(self, price: Decimal, side: Side) -> Decimal:
        """*price* on the tick, to the safe side: a buy never higher, a sell never lower than asked."""
        if self.tick_size is None:
            return price
        return _on_grid(price, self.tick_size, up=side is Side.SELL)

    def notional(self, quantity: Decimal, price: Decimal) -> Decimal:
        """Value in quote currency (linear contracts and spot)."""
        return EXACT.multiply(EXACT.multiply(quantity, price), self.contract_size)
