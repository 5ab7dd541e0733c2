"""Whether an order goes where its look-ups read, and where its symbol says.

Where it does not, "not found" is said of another market, and proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from execsafe.errors import UnsupportedByVenue
from execsafe.venues._shapes import AnswerUnusable, markets_of


def symbol_meant(exchange: object, symbol: str) -> str | None:
    """The symbol that the client takes *symbol* for, if that is another one.

    With ``defaultType`` "swap", binance's client takes the name of a spot market for the perpetual.
    """
    resolve = getattr(exchange, "market", None)
    if not callable(resolve) or symbol not in markets_of(exchange):
        return None
    try:
        market = resolve(symbol)
    except Exception:  # noqa: BLE001 - then it says so again when the order is to be made
        return None
    meant = market.get("symbol") if isinstance(market, Mapping) else None
    return meant if isinstance(meant, str) and meant != symbol else None


def check_symbol(exchange: object, symbol: str) -> None:
    """Raise UnsupportedByVenue for a symbol that the client takes for another, whose rules are others."""
    meant = symbol_meant(exchange, symbol)
    if meant is not None:
        raise UnsupportedByVenue(
            f"{symbol}: the client takes this for {meant}, by its options: use {meant!r} if that is meant, "
            "else unset options['defaultType']"
        )


def check_look_up(exchange: object, symbol: str) -> None:
    """Raise AnswerUnusable where a look-up would read another market than the order's."""
    meant = symbol_meant(exchange, symbol)
    if meant is not None:
        raise AnswerUnusable(f"the client takes {symbol} for {meant}, by its options")
