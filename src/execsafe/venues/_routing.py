"""Whether an order goes where its look-ups read, and where its symbol says.

Where it does not, "not found" is said of another account or market, and proves nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from execsafe.errors import UnsupportedByVenue
from execsafe.model.instrument import is_contract
from execsafe.venues._details import Details
from execsafe.venues._shapes import AnswerUnusable, markets_of, options_of


def with_defaults(names: Collection[str]) -> frozenset[str]:
    """*names*, and the second one that ccxt understands for each: ``subType``, ``defaultSubType``."""
    return frozenset(names) | {f"default{name[:1].upper()}{name[1:]}" for name in names}


ACCOUNTS: Final = with_defaults({"portfolioMargin", "papi", "uta", "hf", "unifiedAccount"})
"""What names an account. Among the exchange's options it holds for orders and look-ups alike."""
_OF_SPOT: Final = with_defaults({"marginMode", "subType", "stock"})


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


def option_apart(exchange: object, symbol: str, details: Details, methods: Iterable[str]) -> str | None:
    """The option by which orders and their look-ups go to different accounts, as one would write it; None: none.

    *methods* are the look-ups, by their names in Python. Options are read anew each time: users change them.
    """
    options, is_spot = options_of(exchange), not is_contract(symbol)
    for name, value in details.spot_options_apart.items() if is_spot else ():
        found = options.get(name)
        if found is not None and value in ("", found):
            return f"options[{name!r}]"
    for method in ("createOrder", *(_as_ccxt_writes(method) for method in methods)):
        own = options.get(method)  # an option of one method goes before the one of all
        names = sorted((ACCOUNTS | _OF_SPOT if is_spot else ACCOUNTS) & own.keys()) if isinstance(own, Mapping) else []
        if names:
            return f"options[{method!r}][{names[0]!r}]"
    return None


def _as_ccxt_writes(method: str) -> str:
    first, *others = method.split("_")
    return first + "".join(word.capitalize() for word in others)


def check_look_up(exchange: object, symbol: str, details: Details, method: str) -> None:
    """Raise AnswerUnusable where a look-up would read another market than the order's, or another account."""
    meant = symbol_meant(exchange, symbol)
    if meant is not None:
        raise AnswerUnusable(f"the client takes {symbol} for {meant}, by its options")
    apart = option_apart(exchange, symbol, details, [method])
    if apart is not None:
        raise AnswerUnusable(f"with {apart} the look-up reads another account than the order went to")
