"""How values of single types become JSON and come back: plain ones, numbers, enums, and collections of them.

``kind`` and ``token`` are compared before anything is called: most values then cost one call, of a function in C.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import attrs

from execsafe.errors import InvalidInput, StoreCorrupt
from execsafe.model.values import PARAMS_BYTES_MAX, Params, plain, shorten

Write = Callable[[Any], str]
Parse = Callable[[Any], Any]

# A computed average price has up to 28 digits at any scale: wider than what is accepted from outside.
_SCALE_MAX: Final = 100
_DECIMAL_TEXT: Final = re.compile(r"-?[0-9]{1,101}(\.[0-9]{1,200})?", re.ASCII)
_CANONICAL: Final = re.compile(r"0|-?[1-9][0-9]{0,60}|-?(0|[1-9][0-9]{0,60})\.[0-9]{0,60}[1-9]", re.ASCII)


@attrs.frozen
class Converter:
    """One type of a field, and its form in JSON."""

    kind: type
    write: Write  # only ever given a value of exactly that kind
    token: type  # what the JSON reader makes of it
    parse: Parse | None = None  # only ever given exactly such a token; None: it is the value itself
    is_optional: bool = False

    def encode(self, value: Any) -> str:
        """JSON text of any value that fits."""
        if type(value) is self.kind:
            return self.write(value)
        if value is None and self.is_optional:
            return "null"
        raise InvalidInput(f"cannot store {shorten(type(value).__name__)} where {self.kind.__name__} belongs")

    def decode(self, tree: Any) -> Any:
        """The value of any JSON that fits."""
        if type(tree) is self.token:
            return tree if self.parse is None else self.parse(tree)
        if tree is None and self.is_optional:
            return None
        raise StoreCorrupt(f"found {type(tree).__name__} where {self.kind.__name__} belongs")


quote: Final[Write] = json.encoder.encode_basestring_ascii


def _refuse_constant(name: str) -> None:
    raise StoreCorrupt(f"a stored number is {name}")


# Without decode()'s own search for white space around it, which no stored text has.
_decoder: Final[Any] = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: Final[Callable[[str, int], tuple[Any, int]]] = _decoder.scan_once


def parse_json(text: str) -> Any:
    """What *text* says, which must be JSON from its first to its last character.

    Raises:
        ValueError, RecursionError: it is not.
    """
    try:
        tree, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("no JSON") from None
    if end != len(text):
        raise ValueError("more than JSON")
    return tree


# --- Single values ----------------------------------------------------------------------------------


def _write_float(value: float) -> str:
    if not math.isfinite(value):
        raise InvalidInput(f"cannot store the number {value}")
    return repr(value)


@functools.lru_cache(maxsize=1_024)  # a record names the same few numbers again and again; equal ones have one text
def _write_decimal(value: Decimal) -> str:
    text = str(value)
    if _CANONICAL.fullmatch(text):
        return f'"{text}"'
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or abs(exponent) > _SCALE_MAX or abs(value.adjusted()) > _SCALE_MAX:
        raise InvalidInput(f"cannot store the number {shorten(text)}: not finite, or out of range")
    return f'"{plain(value)}"'


@functools.lru_cache(maxsize=1_024)
def _parse_decimal(text: str) -> Decimal:
    if not _DECIMAL_TEXT.fullmatch(text):
        raise StoreCorrupt("a stored number is malformed")
    return Decimal(text)


def _write_params(value: Params) -> str:
    return quote(value.text)


def _parse_params(text: str) -> Params:
    if len(text) > PARAMS_BYTES_MAX or type(parse_json(text)) is not dict:
        raise StoreCorrupt("stored params are malformed")
    return Params(text)


SCALARS: Final[dict[Any, Converter]] = {
    str: Converter(str, quote, str),
    int: Converter(int, int.__repr__, int),
    bool: Converter(bool, {True: "true", False: "false"}.__getitem__, bool),
    float: Converter(float, _write_float, float),
    Decimal: Converter(Decimal, _write_decimal, str, _parse_decimal),
    Params: Converter(Params, _write_params, str, _parse_params),
}


def enumeration(cls: type[enum.Enum]) -> Converter:
    """By its values, which are all texts or all whole numbers.

    Raises:
        TypeError: they are not.
    """
    members = {member.value: member for member in cls}
    tokens = {type(value) for value in members}
    if tokens not in ({str}, {int}):
        raise TypeError(f"{cls.__qualname__}: the values of a stored enum are all text or all whole numbers")
    texts = {member: json.dumps(member.value) for member in cls}
    return Converter(cls, texts.__getitem__, tokens.pop(), members.__getitem__)


def _itself(token: Any) -> Any:
    return token


# --- Collections ------------------------------------------------------------------------------------


def sequence(each: Converter) -> Converter:
    """``tuple[X, ...]``."""
    kind, write_one, encode = each.kind, each.write, each.encode
    token, parse_one, decode = each.token, each.parse or _itself, each.decode

    def write(value: tuple[Any, ...]) -> str:
        return f"[{','.join([write_one(item) if type(item) is kind else encode(item) for item in value])}]"

    def parse(tree: list[Any]) -> tuple[Any, ...]:
        return tuple([parse_one(item) if type(item) is token else decode(item) for item in tree])

    return Converter(tuple, write, list, parse)


def fixed(converters: list[Converter]) -> Converter:
    """``tuple[X, Y]``."""

    def write(value: tuple[Any, ...]) -> str:
        if len(value) != len(converters):
            raise InvalidInput(f"cannot store a tuple of {len(value)} where {len(converters)} belong")
        return f"[{','.join([each.encode(item) for each, item in zip(converters, value, strict=True)])}]"

    def parse(tree: list[Any]) -> tuple[Any, ...]:
        if len(tree) != len(converters):
            raise StoreCorrupt("not a list of the right length")
        return tuple([each.decode(item) for each, item in zip(converters, tree, strict=True)])

    return Converter(tuple, write, list, parse)


def mapping(each: Converter) -> Converter:
    """``dict[str, X]``."""

    def write(value: dict[str, Any]) -> str:
        if not all(type(key) is str for key in value):
            raise InvalidInput("cannot store a dict with keys that are not text")
        return f"{{{','.join([f'{quote(key)}:{each.encode(item)}' for key, item in value.items()])}}}"

    def parse(tree: dict[str, Any]) -> dict[str, Any]:
        return {key: each.decode(item) for key, item in tree.items()}

    return Converter(dict, write, dict, parse)
