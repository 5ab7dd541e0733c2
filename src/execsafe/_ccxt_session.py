"""The connections of an exchange object: closing them, and opening them again."""

from __future__ import annotations

from typing import Any


def given_session(exchange: Any) -> Any:
    """The client session that the user gave to the exchange, if it has one: closing the exchange lets go of it."""
    return getattr(exchange, "session", None) if getattr(exchange, "own_session", True) is False else None


async def close_client(exchange: Any) -> None:
    """Close the exchange object, if objects of its shape are closed."""
    close = getattr(exchange, "close", None)
    if callable(close):
        await close()


def reopen_client(exchange: Any, given: Any) -> None:
    """Make a closed exchange usable again, with the session that was *given* to it before.

    ccxt makes a session of its own with the next request, but recent versions not after a close, unless told to.
    """
    if given is not None and getattr(exchange, "session", None) is None:
        exchange.session = given
    if getattr(exchange, "closed_by_user", False) is True:
        exchange.open()
