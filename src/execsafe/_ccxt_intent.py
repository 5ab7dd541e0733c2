"""A call of ccxt's ``create_order`` as an intent."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

from execsafe._ccxt_shape import PLAIN_TYPES, SIDES, in_lower_case, to_mapping, trigger_price
from execsafe.errors import InvalidInput, UnsupportedByVenue
from execsafe.model.instrument import is_contract
from execsafe.model.intent import Intent
from execsafe.model.order import Side
from execsafe.model.values import shorten
from execsafe.venues._details import Details

_OWN: Final = ("intentKey", "join", "freshUntilMs")
_OWN_BY_LETTERS: Final = {name.lower(): name for name in _OWN}
_YEAR_2001_MS: Final = 978_307_200_000
_NO_KEY: Final[Any] = object()  # a key that is None is a defect of the caller, and no wish for a new intent


def check_own_params(params: Mapping[Any, Any]) -> None:
    """Refuse a misspelt param of execsafe's own, and a time that is not in ms.

    Misspelt, it would go out to the venue, which ignores it: without its key every retry is another order.
    """
    for name in params:
        letters = name.lower().replace("_", "").replace("-", "") if isinstance(name, str) else ""
        own = _OWN_BY_LETTERS.get(letters, name)
        if own != name:
            raise InvalidInput(f"params[{shorten(name)}] is no parameter: write {own!r}")
    until = params.get("freshUntilMs")
    if isinstance(until, (int, float)) and not isinstance(until, bool) and until < _YEAR_2001_MS:
        raise InvalidInput(f"freshUntilMs is in Unix milliseconds: {shorten(until)} lies before the year 2001")


def to_intent(
    symbol: str,
    kind: str,
    side: str,
    amount: Any,
    price: Any,
    *,
    params: Mapping[str, Any] | None,
    account: str,
    fresh_until_ms: int | None,
) -> tuple[Intent, bool]:
    """The intent, and whether the caller would join one who is at it. *fresh_until_ms* applies where none is given."""
    extra = dict(to_mapping(params))
    check_own_params(extra)
    key = extra.pop("intentKey", _NO_KEY)
    join = extra.pop("join", False)
    if not isinstance(join, bool):
        raise InvalidInput(f"join must be True or False, was {shorten(join)}")
    if amount is None:
        raise InvalidInput("amount is required: an order by cost has no quantity that could be guarded")
    intent = Intent(
        key=f"call-{secrets.token_hex(16)}" if key is _NO_KEY else key,
        account=account,
        symbol=symbol,
        type=in_lower_case(kind, PLAIN_TYPES),
        side=in_lower_case(side, SIDES),
        quantity=amount,
        limit_price=price,
        time_in_force=extra.pop("timeInForce", None),
        post_only=extra.pop("postOnly", False),
        reduce_only=extra.pop("reduceOnly", False),
        trigger_price=trigger_price(extra),
        fresh_until_ms=extra.pop("freshUntilMs", fresh_until_ms),
        params=extra,
    )
    return intent, join


def check_no_cost(intent: Intent, price: object, details: Details | None, *, edits: bool = False) -> None:
    """Refuse a price with a spot market purchase, unless the venue needs it to bound the slippage.

    Clients read *amount* × *price* of such an order as money to spend: ccxt's own way to buy for 100 USDT is an
    amount of 100 and a price of 1. Taken for a quantity, it would buy 100 of the coin. With a sale they leave the
    price out, and so is done here: whoever must get out is not held up by it. *edits* are refused either way.
    """
    bounds_slippage = details is not None and details.price_for_market
    is_spot_market = intent.type.lower() == "market" and not is_contract(intent.symbol)
    if price is None or bounds_slippage or not is_spot_market or not (edits or intent.side is Side.BUY):
        return
    raise UnsupportedByVenue(
        f"{intent.symbol}: with a price, ccxt takes a spot market order for amount × price of money to spend, which is "
        "no quantity that could be guarded: give the quantity in base currency, without a price",
        intent_key=intent.key,
    )
