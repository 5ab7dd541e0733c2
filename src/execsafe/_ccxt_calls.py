"""Which of ccxt's methods are guarded, which pass, and which are refused because they could place orders unseen."""

from __future__ import annotations

import functools
import re
from typing import Final

GUARDED: Final = frozenset({"create_order", "edit_order", "cancel_order"})
# ccxt's unified siblings of these: each of them calls self.create_order, self.edit_order or self.cancel_order, so
# running them with the guarded object as `self` guards them.
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
        "create_market_order_with_cost",
        "create_market_buy_order_with_cost",
        "create_market_sell_order_with_cost",
        "edit_limit_order",
        "edit_limit_buy_order",
        "edit_limit_sell_order",
        "edit_order_with_client_order_id",
        "cancel_order_with_client_order_id",
    }
)
# What is not in this list and looks like a way to create orders is refused, because it would go past the guard.
REFUSED: Final = re.compile(r"(create|edit|replace|submit)_(.*_)?orders?(_.*)?")
OBSERVED: Final = re.compile(r"(fetch|watch)_(open_|closed_|canceled_|canceled_and_closed_)?orders?")
_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@functools.lru_cache(maxsize=4_096)
def snake_case(name: str) -> str:
    """ccxt has every method under two spellings; this is the one that the tables above use."""
    return _WORD.sub("_", name).lower()
