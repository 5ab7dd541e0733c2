"""Checks before sending. Only what passes here, as an ``Approved``, can be journalled and sent."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final

import attrs

from execsafe.errors import InvalidOrder, TradingDenied
from execsafe.model.instrument import Instrument, is_contract
from execsafe.model.intent import STOP_PRICES, TRAILING_PARAMS, Intent, IntentRecord
from execsafe.model.order import Side
from execsafe.model.trusted import trusted
from execsafe.model.values import plain, to_positive, total

_AT_ONCE: Final = frozenset({"IOC", "FOK"})
_ATTACHED: Final = frozenset({"stopLoss", "takeProfit"})


@attrs.frozen(kw_only=True)
class Approved:
    """An intent that may be sent, with its quantity and price on the instrument's grid."""

    intent: Intent
    quantity: Decimal
    limit_price: Decimal | None


_new_approved: Final = trusted(Approved)


def approve(intent: Intent, instrument: Instrument, *, now_ms: int) -> Approved:
    """Round to the safe side, then check every limit that the venue states.

    The quantity is rounded down, a buy's limit price down and a sell's up. The minimum notional is judged at the
    order's own price; orders without one, and reduce-only orders of contracts (which venues exempt), are not judged by
    it.

    Raises:
        InvalidOrder: a limit is broken; the message has the numbers.
        InvalidInput: a stop's price in the parameters is not a number above 0.
        TradingDenied: the intent is no longer fresh.
    """
    check_fresh(intent, now_ms=now_ms)
    _check_kind(intent)
    quantity = instrument.floor_quantity(intent.quantity)
    price = None if intent.limit_price is None else instrument.safe_limit_price(intent.limit_price, intent.side)
    _check_quantity(intent, instrument, quantity)
    if price is not None:
        _check_price(intent, instrument, price, intent.limit_price)
        _check_notional(intent, instrument, quantity, price)
    if intent.trigger_price is not None:
        floor = instrument.safe_limit_price(intent.trigger_price, Side.BUY)
        _check_price(intent, instrument, floor, intent.trigger_price)
    return _new_approved(intent=intent, quantity=quantity, limit_price=price)


def check_reduces(intent: Intent, undoes: Iterable[IntentRecord]) -> None:
    """Refuse an exit that nothing would hold to being one: a spot buy, unless it undoes what *undoes* have sold.

    On spot no venue knows reduce-only. A sale is bounded by what is owned; a purchase that merely calls itself an exit
    would pass every check that entries are held to.

    Raises:
        InvalidOrder: less was sold than is to be bought back.
    """
    if not intent.reduce_only or intent.side is not Side.BUY or is_contract(intent.symbol):
        return
    place = (intent.account, intent.symbol, Side.SELL)
    sold = [r.filled_quantity for r in undoes if (r.intent.account, r.intent.symbol, r.intent.side) == place]
    if total(sold) < intent.quantity:
        raise _deny(intent, "a spot purchase reduces nothing; leave reduce_only out, or name the sales that it undoes")


def is_stale(intent: Intent, *, now_ms: int) -> bool:
    """Whether it is an entry whose time has passed; exits are never too old."""
    return intent.fresh_until_ms is not None and now_ms > intent.fresh_until_ms and not intent.reduce_only


def check_fresh(intent: Intent, *, now_ms: int) -> None:
    """Refuse an entry whose time has passed."""
    if is_stale(intent, now_ms=now_ms):
        raise TradingDenied(
            f"the intent is stale: it was fresh until {intent.fresh_until_ms}, now is {now_ms}",
            intent_key=intent.key,
            reason="stale",
        )


def _check_kind(intent: Intent) -> None:
    """A limit has a price, and what is meant as a stop has a price to trigger at: without one it would go out plain."""
    if intent.limit_price is None and intent.type.lower() == "limit":
        raise _deny(intent, "a limit order needs a price; give one, or use a market order")
    if intent.post_only and intent.time_in_force in _AT_ONCE:
        raise _deny(intent, f"an order cannot be post-only and {intent.time_in_force}: one rests, the other never does")
    if intent.params.text == "{}":
        return  # as with most orders: nothing to read
    for name, value in intent.params.thaw().items():
        if name in STOP_PRICES or name in TRAILING_PARAMS:
            to_positive(value, name)
        elif name in _ATTACHED:
            attached: Any = value.get("triggerPrice") if isinstance(value, dict) else value
            to_positive(attached, f"{name}.triggerPrice")


def _deny(intent: Intent, text: str) -> InvalidOrder:
    return InvalidOrder(f"{intent.symbol}: {text}", intent_key=intent.key)


def _check_quantity(intent: Intent, instrument: Instrument, quantity: Decimal) -> None:
    least, most = instrument.min_quantity, instrument.max_quantity
    if quantity <= 0:
        why = f"below one step of {instrument.step_size}; order at least one step"
    elif least is not None and quantity < least:
        why = f"below the minimum of {plain(least)}"
    elif most is not None and quantity > most:
        why = f"above the maximum of {plain(most)}; split it"
    else:
        return
    raise _deny(intent, f"quantity {plain(intent.quantity)} is {why}")


def _check_price(intent: Intent, instrument: Instrument, price: Decimal, asked: Decimal | None) -> None:
    if price <= 0:
        raise _deny(intent, f"price {asked} is below one tick of {instrument.tick_size}")
    if instrument.min_price is not None and price < instrument.min_price:
        raise _deny(intent, f"price {plain(price)} is below the minimum of {plain(instrument.min_price)}")
    if instrument.max_price is not None and price > instrument.max_price:
        raise _deny(intent, f"price {plain(price)} is above the maximum of {plain(instrument.max_price)}")


def _check_notional(intent: Intent, instrument: Instrument, quantity: Decimal, price: Decimal) -> None:
    notional = instrument.notional(quantity, price)
    is_exempt = intent.reduce_only and is_contract(intent.symbol)
    if instrument.min_notional is not None and notional < instrument.min_notional and not is_exempt:
        raise _deny(
            intent,
            f"value {plain(notional)} (quantity {plain(quantity)} × price {plain(price)}) is below the minimum "
            f"of {plain(instrument.min_notional)}",
        )
    if instrument.max_notional is not None and notional > instrument.max_notional:
        raise _deny(intent, f"value {plain(notional)} is above the maximum of {plain(instrument.max_notional)}")
