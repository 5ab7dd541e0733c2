"""The connections of an exchange object: closing them, and opening them again."""

from __future__ import annotations

from typing import Any

from execsafe.errors import VenueUnavailable


def given_session(exchange: Any) -> Any:
    """The client session that the user gave to the exchange, if it has one: closing the exchange lets go of it."""
    return getattr(exchange, "session", None) if getattr(exchange, "own_session", True) is False else None


def check_session(exchange: Any) -> None:
    """Refuse to send through a client that was closed: the request could not leave, and would count as in doubt.

    Raises:
        VenueUnavailable: nothing was sent.
    """
    name = getattr(exchange, "id", type(exchange).__name__)
    if getattr(getattr(exchange, "session", None), "closed", False) is True:
        raise VenueUnavailable(f"{name}: its client session is closed, so that no order can leave: nothing was sent")
    if getattr(exchange, "closed_by_user", False) is True:
        raise VenueUnavailable(
            f"{name}: its client was closed, and sends nothing until open() is called: nothing was sent"
        )


async def close_client(exchange: Any) -> None:
    """Close the exchange object, if objects of its shape are closed."""
    close = getattr(exchange, "close", None)
    if callable(close):
        await close()


def let_reconnect(exchange: Any, given: Any) -> None:
    """Make a closed exchange usable again, with the session that was *given* to it before.

    ccxt makes a session of its own with the next request, but recent versions not after a close, unless told to.
    """
    if given is not None and getattr(exchange, "session", None) is None:
        exchange.session = given
    if getattr(exchange, "closed_by_user", False) is True:
        exchange.closed_by_user = False
