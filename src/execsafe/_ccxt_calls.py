"""Which of ccxt's methods are guarded, which pass, and which are refused because they could place orders unseen."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Final

from execsafe.errors import UnsupportedByVenue

GUARDED: Final = frozenset({"create_order", "edit_order", "cancel_order"})
# ccxt's unified siblings of these: each of them calls self.create_order, self.edit_order or self.cancel_order, so
# running them with the guarded object as `self` guards them. Not so `create_market_order_with_cost` and its like: they
# call create_order with the cost as amount and a price of 1, which is no quantity.
SIBLINGS: Final = frozenset(
    {
        "create_limit_order",
        "create_market_order",
        "create_limit_buy_order",
        "create_limit_sell_order",
        "create_market_buy_order",
        "create_market_sell_order",
        "create_post_only_order",
        "create_reduce_only_order",
        "create_stop_order",
        "create_stop_limit_order",
        "create_stop_market_order",
        "create_stop_loss_order",
        "create_take_profit_order",
        "create_trigger_order",
        "create_trailing_amount_order",
        "create_trailing_percent_order",
        "create_order_with_take_profit_and_stop_loss",
        "edit_limit_order",
        "edit_limit_buy_order",
        "edit_limit_sell_order",
        "edit_order_with_client_order_id",
        "cancel_order_with_client_order_id",
    }
)
# Whatever else looks like a way to place orders: unified methods, and those below them that send any request.
_UNIFIED: Final = re.compile(
    r"(create|edit|replace|submit|place|amend|modify)_(.*_)?orders?(_.*)?"
    r"|close_(all_)?positions?|create_convert_trade|sign_and_create_order|trade_request|request|fetch2"
)
# ccxt's implicit endpoints are named by namespace, verb and path. A POST, PUT or PATCH whose path speaks of orders or
# of what makes them; a GET only where a venue trades by GET (deribit). A DELETE cancels, and places nothing.
_WRITES: Final = re.compile(r"(?!.*_get_post_)(?:.*_)?(?:post|put|patch)_(?P<path>.+)")
# Where reading or canceling is a POST too.
_HARMLESS: Final = re.compile(
    r"(?:.*_)?(?:get|query|open|closed)_?orders?(?:_.*)?|.*_(?:history|hist|info|details?|status|openorders|hisorders)"
    r"|.*cancel(?!.*replace).*"
)
_TRADES: Final = re.compile(
    r"order|trade(?!s)|trading|(?<![a-z])(buys?|sells?|edit|reverse|algo|spread|quote|exchange|action)(?![a-z])|close_?(position|all)"
    r"|liquidat|convert|grid|dca|twap|vwap|oco|rfq|swap_fund|batch|execute"
    # Orders under other names: bitget's plans and copied positions, positions handed to another account, coins
    # swapped at a price, plans that buy again and again.
    r"|place_?(plan|positions|tpsl|trail)|modify_?(plan|tpsl)|trace_.*tpsl|close_?by|move_?positions"
    r"|(?<![a-z])swap(_now)?\Z|auto_?invest_(one_off|plans?_(add|create|update))"
)
_TRADES_BY_GET: Final = re.compile(r"(?:.*_)?private_get_(buy|sell|edit(_.*)?|close_position|execute_.*)")
OBSERVED: Final = re.compile(r"(fetch|watch)_(open_|closed_|canceled_|canceled_and_closed_)?orders?")
# A cancel that takes effect later (`cancel_all_orders_after`) proves nothing now.
_CANCELS: Final = re.compile(r"cancel_(.*_)?orders?(_ws|_for_symbols|_with_client_order_ids)?")
_SYMBOL_FIRST: Final = re.compile(r"cancel_all_.*")
_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@functools.lru_cache(maxsize=4_096)
def snake_case(name: str) -> str:
    """ccxt has every method under two spellings; this is the one that the tables above use."""
    return _WORD.sub("_", name).lower()


@functools.lru_cache(maxsize=4_096)
def is_refused(snake: str) -> bool:
    """Whether a call of that name could place an order that is in no journal."""
    if snake in GUARDED or snake in SIBLINGS:
        return False
    if _UNIFIED.fullmatch(snake) or _TRADES_BY_GET.fullmatch(snake):
        return True
    written = _WRITES.fullmatch(snake)
    return (
        written is not None and _TRADES.search(written["path"]) is not None and not _HARMLESS.fullmatch(written["path"])
    )


def features(has: Mapping[Any, Any]) -> dict[Any, Any]:
    """ccxt's statement of what an exchange can do, without what is refused here."""
    return {name: False if isinstance(name, str) and is_refused(snake_case(name)) else has[name] for name in has}


def is_cancel(snake: str) -> bool:
    """Whether a call of that name cancels orders beside the guard."""
    return snake not in GUARDED and snake not in SIBLINGS and _CANCELS.fullmatch(snake) is not None


def symbol_of_cancel(snake: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """The symbol to which a cancel is limited; None: it may concern any."""
    place = 0 if _SYMBOL_FIRST.fullmatch(snake) else 1
    given = kwargs.get("symbol", args[place] if len(args) > place else None)
    return given if isinstance(given, str) else None


async def refuse(name: str, *_args: Any, **_kwargs: Any) -> None:
    """What is called in place of a method of that name."""
    if snake_case(name).endswith("_with_cost"):
        raise UnsupportedByVenue(
            f"{name} names the money to spend, and no quantity that could be guarded: call create_order with the "
            "quantity in base currency, without a price"
        )
    raise UnsupportedByVenue(
        f"{name} would send orders past the guard; call create_order once for each order, or use the wrapped "
        f"exchange itself (`.exchange`) if you mean it"
    )
