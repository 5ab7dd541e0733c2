"""URLs of stores and buses: how they are taken apart, and how the texts of their options are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from execsafe.errors import InvalidInput
from execsafe.model.values import shorten
from execsafe.ports import Durability

REDIS: Final = frozenset({"redis", "rediss", "valkey", "valkeys"})
URL_LENGTH_MAX: Final = 4_096
_DIGITS_MAX: Final = 9


def split(url: str, what: str, known: str) -> tuple[str, str, dict[str, str]]:
    """Scheme, everything between it and the query, and the options.

    *what* it is the URL of, and the *known* forms, are for the messages.

    Raises:
        InvalidInput: it is malformed. It is not repeated: it may hold a password.
    """
    if not isinstance(url, str):
        raise InvalidInput(f"a {what} URL is text, was {shorten(type(url).__name__)}")
    if len(url) > URL_LENGTH_MAX:
        raise InvalidInput(f"the {what} URL is too long: {len(url)} characters, at most {URL_LENGTH_MAX}")
    if not url.isprintable() or not unquote(url).isprintable():
        raise InvalidInput(f"the {what} URL holds characters that cannot be printed")
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError:
        # Neither the cause nor the text is shown: a URL may carry a password.
        raise InvalidInput(f"the {what} URL cannot be read; options look like ?name=value&name=value") from None
    if not url.lower().startswith(f"{parts.scheme}://") or not parts.scheme:
        raise InvalidInput(f"a {what} URL starts like {known}")
    if parts.fragment or url.endswith("#"):
        raise InvalidInput(f"a {what} URL has no fragment; write %23 for a # in a path")
    options = dict(pairs)
    if len(options) != len(pairs):
        raise InvalidInput(f"an option of the {what} URL is given twice")
    return parts.scheme, parts.netloc + parts.path, options


def read(options: Mapping[str, str], readers: Mapping[str, Callable[[str], Any]], what: str) -> dict[str, Any]:
    """The options' values by name.

    Raises:
        InvalidInput: one is unknown or malformed.
    """
    if not readers.keys() >= options.keys():  # not named: what follows a ? may be the rest of a password
        raise InvalidInput(f"an option is unknown: {what} has {', '.join(readers)}")
    return {name: readers[name](text) for name, text in options.items()}


def flag(name: str) -> Callable[[str], bool]:
    """A reader of ``true`` and ``false``, which raises InvalidInput for anything else."""

    def read(text: str) -> bool:
        if text not in {"true", "false"}:
            raise InvalidInput(f"{name} must be 'true' or 'false', was {shorten(text)}")
        return text == "true"

    return read


def seconds(name: str) -> Callable[[str], float]:
    """A reader of a number, which raises InvalidInput for anything else."""

    def read(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise InvalidInput(f"{name} must be a number of seconds, was {shorten(text)}") from None

    return read


def count(name: str) -> Callable[[str], int]:
    """A reader of a whole number, which raises InvalidInput for anything else."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX):
            raise InvalidInput(f"{name} must be a whole number, was {shorten(text)}")
        return int(text)

    return read


def durability(*accepted: Durability) -> Callable[[str], Durability]:
    """A reader of ``require``, which raises InvalidInput for anything but these."""
    known = {each.value: each for each in accepted}

    def read(text: str) -> Durability:
        if text not in known:
            raise InvalidInput(f"require must be {' or '.join(map(repr, known))}, was {shorten(text)}")
        return known[text]

    return read
