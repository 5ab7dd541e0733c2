"""Keys as text: the same in every process and on every machine."""

from __future__ import annotations

import enum
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from execsafe.errors import InvalidInput
from execsafe.model.values import plain, shorten

if TYPE_CHECKING:
    from collections.abc import Hashable

KEY_TEXT_LENGTH_MAX: Final = 1_000
"""Stores take lease names of up to 1,024 characters."""
_DEPTH_MAX: Final = 6


def _jsonable(value: object, depth: int = 0) -> Any:
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Decimal) and value.is_finite():
        return {"decimal": plain(value)}  # tagged: Decimal("1") and "1" are different keys
    if isinstance(value, tuple) and depth < _DEPTH_MAX:
        return [_jsonable(item, depth + 1) for item in value]
    raise InvalidInput(
        "a key shared between processes consists of text, int, bool, None, Decimal, enum members and tuples "
        f"of these (at most {_DEPTH_MAX} deep), found {shorten(type(value).__name__)}"
    )


def canonical(key: Hashable) -> str:
    """JSON of *key*; different keys have different texts.

    Raises:
        InvalidInput: the key holds something without a canonical text, or its text is longer than 1,000.
    """
    text = json.dumps(_jsonable(key), separators=(",", ":"), ensure_ascii=False)
    if len(text) > KEY_TEXT_LENGTH_MAX:
        raise InvalidInput(f"a key's text is too long: {len(text)} characters, at most {KEY_TEXT_LENGTH_MAX}")
    return text


def describe(key: Hashable) -> str:
    """Bounded text for events and messages, whatever the key is made of."""
    if isinstance(key, str):
        return key[:KEY_TEXT_LENGTH_MAX]
    try:
        return canonical(key)
    except InvalidInput:
        return shorten(key, 200)
