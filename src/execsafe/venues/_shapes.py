"""What the adapter needs of an exchange object, and the errors it raises itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from execsafe.errors import ExecsafeError


class AnswerUnusable(ExecsafeError):
    """The venue answered, and the answer does not say what became of the order: as good as none.

    No table knows this class, hence it means UNKNOWN.
    """


class CcxtLike(Protocol):
    """Any object of ``ccxt.async_support``'s shape.

    Only this method must exist; everything else (``id``, ``has``, ``options``, ``markets``, ``load_markets``,
    ``features``, ``sign``, ``session`` …) is used where it is there.
    """

    @property
    def create_order(self) -> Callable[..., Awaitable[Any]]:
        """``(symbol, type, side, amount, price, params)``: place one order, return ccxt's order structure."""
        ...


def options_of(exchange: object) -> dict[str, Any]:
    """The exchange's live options; an empty throw-away dict where there are none."""
    options = getattr(exchange, "options", None)
    return options if isinstance(options, dict) else {}


def markets_of(exchange: object) -> dict[str, Any]:
    """Loaded markets by unified symbol; empty where none are loaded."""
    markets = getattr(exchange, "markets", None)
    return markets if isinstance(markets, dict) else {}
