"""What is too small for any order: one meaning of dust, for exits, for protection, and for entries to come."""

from __future__ import annotations

from decimal import Decimal

from execsafe.model.instrument import Instrument, is_contract


def is_below_quantity(quantity: Decimal, instrument: Instrument) -> bool:
    """Whether no order can be made of it."""
    return quantity <= 0 or (instrument.min_quantity is not None and quantity < instrument.min_quantity)


def is_below_value(quantity: Decimal, price: Decimal, instrument: Instrument) -> bool:
    """Whether it is worth less than the venue's minimum."""
    return instrument.min_notional is not None and instrument.notional(quantity, price) < instrument.min_notional


def has_minimum_value(instrument: Instrument, *, contracts_exempt: bool = True) -> bool:
    """Whether what closes is held to the venue's minimum value: venues exempt the reduce-only orders of contracts."""
    return not (contracts_exempt and is_contract(instrument.symbol))


def is_dust(quantity: Decimal, price: Decimal | None, instrument: Instrument, *, contracts_exempt: bool = True) -> bool:
    """Whether *quantity* can be neither protected nor closed, as far as is known.

    Args:
        quantity: what is held.
        price: at which it could be closed; None: not known, and then its value says nothing.
        instrument: for the minimums and the step: what is judged is what an order could be for.
        contracts_exempt: see :func:`has_minimum_value`.
    """
    orderable = instrument.floor_quantity(quantity)
    if is_below_quantity(orderable, instrument):
        return True
    if price is None or not has_minimum_value(instrument, contracts_exempt=contracts_exempt):
        return False
    return is_below_value(orderable, price, instrument)
