"""Flat fields: payloads for stores and streams that keep text by name and nothing else.

Such stores refuse None, lists and bools, and keep the old value of a field that is left out. So everything becomes
text, None becomes an explicit ``null``, and :func:`encode_fields` can be told every name that a record may have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any, Final, NoReturn

from execsafe.errors import InvalidInput
from execsafe.model.values import shorten

NULL: Final = "null"
_DEPTH_MAX: Final = 16
_INTEGER_BITS_MAX: Final = 4_096


def encode_fields(payload: Mapping[str, Any], *, names: Collection[str] = ()) -> dict[str, str]:
    """*payload* as text by name; :func:`decode_fields` gives it back.

    Text stays as it is, unless it could be read as something else (``"null"``, ``"1"``): then it is quoted. Numbers,
    bools, lists and mappings become JSON; a Decimal keeps every digit. None is ``null``, never left out.

    Args:
        payload: plain JSON values and Decimals.
        names: every field that such a record can have. One that the payload lacks is written as ``null``, so that
            writing over an older record leaves nothing of it behind. (The alternative is to delete and write in one
            transaction.)

    Raises:
        InvalidInput: a name is not text, or a value is not plain JSON (NaN and infinity are not).
    """
    fields = dict.fromkeys(names, NULL)
    for name, value in payload.items():
        fields[_checked_name(name)] = _field_text(value)
    return fields


def decode_fields(fields: Mapping[str, str]) -> dict[str, Any]:
    """What :func:`encode_fields` was given; numbers with a point come back as Decimal. Never raises on text."""
    return {name: decode_field(text) for name, text in fields.items()}


def decode_field(text: str) -> Any:
    """One field's value; text that is not JSON is itself."""
    try:
        return _loads(text)
    except (ValueError, RecursionError, ArithmeticError):
        return text


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidInput(f"names of fields must be text, found {shorten(name)}")
    return str(name)


def _field_text(value: object) -> str:
    if isinstance(value, str):
        text = str(value)
        return _quoted(text) if _is_ambiguous(text) else text
    return _json(value, 0)


def _is_ambiguous(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: only as an escape
        return True
    return decode_field(text) is not text


def _quoted(text: str) -> str:
    return json.dumps(text)


def _json(value: object, depth: int) -> str:
    if depth > _DEPTH_MAX:
        raise InvalidInput(f"a field is nested too deeply (more than {_DEPTH_MAX} levels)")
    if isinstance(value, str):
        return _quoted(str(value))
    if value is None or isinstance(value, (bool, int, float, Decimal)):
        return _scalar(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_name(k)}:{_json(v, depth + 1)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_json(item, depth + 1) for item in value) + "]"
    raise InvalidInput(f"a field holds plain JSON values only, found {shorten(type(value).__name__)}")


def _name(name: object) -> str:
    return _quoted(_checked_name(name))


def _scalar(value: bool | int | float | Decimal | None) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        if value.bit_length() > _INTEGER_BITS_MAX:
            raise InvalidInput(f"a number is too large for a field: {value.bit_length()} bits")
        return int.__repr__(value)
    if not math.isfinite(value):
        raise InvalidInput(f"a number must be finite, was {shorten(str(value))}")
    # The text of a Decimal is JSON but for its sign and its bare exponent ("1E+2" is fine).
    return float.__repr__(value) if isinstance(value, float) else str(value)


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


# NaN and Infinity are text to us; numbers with a point keep every digit.
_loads: Final = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse).decode
