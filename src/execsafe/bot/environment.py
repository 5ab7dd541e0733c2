"""What comes from the environment and never from a file of the bot: keys, and URLs that hold a password."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl

import execsafe

STORE: Final = "EXECSAFE_STORE"
BUS: Final = "EXECSAFE_BUS"
_SECRET_OPTIONS: Final = ("password", "secret", "token", "passphrase")  # "sslkey" names a file


def variable(name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """The value of the variable *name*, or of the file that ``{name}_FILE`` names; None if neither is set.

    An empty variable counts as one that is not set: that is how a compose file hands on what nobody has set.

    Raises:
        InvalidInput: such a file cannot be read, or is empty.
    """
    environment = os.environ if environment is None else environment
    value = environment.get(name, "")
    file = environment.get(f"{name}_FILE", "")
    if value or not file:
        return value or None
    return _content(f"{name}_FILE", Path(file))


def _content(name: str, path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise execsafe.InvalidInput(f"the file that {name} names cannot be read: {why}") from None
    if not text:
        raise execsafe.InvalidInput(f"the file that {name} names is empty")
    return text


def store_url(given: str | None) -> str:
    """The store's URL as *given* on the command line, else from the environment.

    Raises:
        InvalidInput: neither says it.
    """
    url = given or variable(STORE)
    if url is None:
        raise execsafe.InvalidInput(f"which store? Give its URL, or set {STORE} (or {STORE}_FILE, which names a file)")
    return url


def has_password(url: str) -> bool:
    """Whether *url* may hold one."""
    before_host = url.partition("://")[2].rpartition("@")[0]
    return ":" in before_host or _names_a_secret(url)


def _names_a_secret(url: str) -> bool:
    """Whether an option is called like one; what cannot be read may hold anything."""
    query = url.partition("?")[2]
    try:
        names = [name.lower() for name, _ in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))]
    except ValueError:
        return True
    return any(word in name for name in names for word in _SECRET_OPTIONS)


def shown_url(url: str) -> str:
    """The URL, or as much of it as can hold no secret."""
    scheme, found, rest = url.partition("://")
    if not url or (found and "@" not in rest and not _names_a_secret(url)):
        return url
    return f"{scheme}://***" if found and scheme.isalpha() else "***"
