"""Validation at the edge: how outside values become ``Decimal`` and safe text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from typing import Any, Final, TypeAlias

import attrs

from execsafe.errors import InvalidInput

Number: TypeAlias = Decimal | str | int | float
"""What is accepted wherever a number enters."""

_PLAIN_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?", re.ASCII)
# Far beyond any market (1e-18 … 1e18), yet small enough that exact arithmetic stays cheap.
_EXPONENT_MAX: Final = 30
SECONDS_MAX: Final = 3_155_760_000.0  # a hundred years; in milliseconds every store can hold it
_TEXT_NUMBER_LENGTH_MAX: Final = 64
_DEPTH_MAX: Final = 6
SYMBOL_LENGTH_MAX: Final = 64
KEY_LENGTH_MAX: Final = 200
PARAMS_BYTES_MAX: Final = 8_192
_ENCODE: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
# Bots set the current decimal context for their own arithmetic; what we add up must not be rounded by it.
# 400 digits: the exact product of three accepted numbers and any sum of them fit.
EXACT: Final = Context(prec=400, traps=[InvalidOperation, DivisionByZero, Overflow])
_AVERAGE: Final = Context(prec=28, traps=[InvalidOperation, DivisionByZero, Overflow])
_ZERO: Final = Decimal(0)
_SECRET_NAMES: Final = frozenset(
    {
        "apikey",
        "apisecret",
        "secret",
        "secretkey",
        "password",
        "passphrase",
        "privatekey",
        "signature",
        "token",
    }
)


def shorten(value: object, length: int = 40) -> str:
    """A printable, bounded rendering of an untrusted value for messages."""
    text = ascii(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def to_decimal(value: Number, name: str = "value") -> Decimal:
    """Convert *value* exactly; a float goes through its ``repr`` (0.1 becomes 0.1).

    Raises:
        InvalidInput: NaN, infinity, bool, exponent notation in text, more than 30 digits on either
            side of the point, or any other type.
    """
    if isinstance(value, bool) or not isinstance(value, (Decimal, str, int, float)):
        raise InvalidInput(f"{name} must be a Decimal, str, int or float, was {shorten(type(value).__name__)}")
    if isinstance(value, str):
        if len(value) > _TEXT_NUMBER_LENGTH_MAX or not _PLAIN_NUMBER.fullmatch(value):
            raise InvalidInput(f"{name} must be a plain decimal number such as '0.01', was {shorten(value)}")
        return Decimal(value)
    if isinstance(value, int) and abs(value) >= 10**_EXPONENT_MAX:
        raise InvalidInput(f"{name} is out of range: an integer of more than {_EXPONENT_MAX} digits")
    number = _exactly(value)
    if not number.is_finite():
        raise InvalidInput(f"{name} must be finite, was {shorten(value)}")
    exponent = number.as_tuple().exponent
    if number.adjusted() >= _EXPONENT_MAX or not isinstance(exponent, int) or exponent < -_EXPONENT_MAX:
        raise InvalidInput(f"{name} is out of range: more than {_EXPONENT_MAX} digits on one side of the point")
    return number


def _exactly(value: Decimal | int | float) -> Decimal:
    if isinstance(value, Decimal):
        return value
    # Subclasses (numpy's float64, IntEnum) may print themselves otherwise.
    return Decimal(float.__repr__(value)) if isinstance(value, float) else Decimal(int(value))


def total(numbers: Iterable[Decimal]) -> Decimal:
    """Their exact sum, whatever the current decimal context."""
    result = _ZERO
    for number in numbers:
        result = EXACT.add(result, number)
    return result


def left_of(whole: Decimal, part: Decimal) -> Decimal:
    """What is left of *whole* without *part*: exact, at least 0."""
    return EXACT.subtract(whole, part) if part < whole else _ZERO


def weighted_average(pairs: Iterable[tuple[Decimal, Decimal]]) -> Decimal | None:
    """Average of (weight, value) pairs to 28 digits; None without any weight."""
    known = tuple(pairs)
    weight = total(w for w, _ in known)
    return _AVERAGE.divide(total(EXACT.multiply(w, v) for w, v in known), weight) if weight else None


def to_positive(value: Number, name: str = "value") -> Decimal:
    """:func:`to_decimal`, refusing zero and negative numbers."""
    number = to_decimal(value, name)
    if number <= 0:
        raise InvalidInput(f"{name} must be greater than 0, was {shorten(str(number))}")
    return number


def check_seconds(value: object, name: str, *, least: float | None = None, most: float = SECONDS_MAX) -> float:
    """A duration in seconds as a float: at least *least* (None: above 0), at most *most* (a hundred years).

    Raises:
        InvalidInput: no number, NaN, infinity, bool, or out of range.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_enough = is_number and (value > 0 if least is None else value >= least)  # type: ignore[operator]
    if not is_enough or not value <= most:  # type: ignore[operator]
        bounds = f"above 0 and at most {most:.15g}" if least is None else f"{least:.15g} to {most:.15g}"
        raise InvalidInput(f"{name} must be {bounds} seconds, was {shorten(value)}")
    return float(value)  # type: ignore[arg-type]


def check_count(value: object, name: str) -> int:
    """A whole number of at least 1.

    Raises:
        InvalidInput: anything else; bool and floats too.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"{name} must be a whole number of at least 1, was {shorten(value)}")
    return value


def to_text(value: str, name: str, length_max: int) -> str:
    """Accept printable text of 1 to *length_max* characters (no control, bidi or line separators)."""
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be text, was {shorten(type(value).__name__)}")
    if not 1 <= len(value) <= length_max:
        raise InvalidInput(f"{name} must have 1 to {length_max} characters, had {len(value)}")
    if not value.isprintable() or value != value.strip():
        raise InvalidInput(f"{name} must be printable, without spaces around it, was {shorten(value)}")
    return value


def text_validator(name: str, length_max: int) -> Callable[[Any, Any, str], None]:
    """:func:`to_text` as an attrs validator."""

    def validate(_instance: Any, _attribute: Any, value: str) -> None:
        to_text(value, name, length_max)

    return validate


def optional_text_validator(name: str, length_max: int) -> Callable[[Any, Any, str | None], None]:
    """:func:`to_text` as an attrs validator that lets None pass."""

    def validate(_instance: Any, _attribute: Any, value: str | None) -> None:
        if value is not None:
            to_text(value, name, length_max)

    return validate


def plain(number: Decimal) -> str:
    """Canonical text of a Decimal: no exponent, no trailing zeros. Equal numbers give equal text."""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def _jsonable(value: object, depth: int) -> Any:
    if depth > _DEPTH_MAX:
        raise InvalidInput(f"params are nested too deeply (more than {_DEPTH_MAX} levels)")
    if isinstance(value, str) and not _is_encodable(value):
        raise InvalidInput(f"params hold text that cannot be encoded: {shorten(value)}")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float, Decimal)):
        number = to_decimal(value, "params value")
        return plain(number) if isinstance(value, Decimal) else value
    if isinstance(value, Mapping):
        return {_param_name(key): _jsonable(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item, depth + 1) for item in value]
    raise InvalidInput(f"params may hold plain JSON values only, found {shorten(type(value).__name__)}")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _param_name(name: object) -> str:
    text = to_text(name, "params name", 64) if isinstance(name, str) else ""
    if not text:
        raise InvalidInput("params names must be text")
    if text.lower().replace("_", "").replace("-", "") in _SECRET_NAMES:
        raise InvalidInput(f"params must not carry credentials: {text} belongs in the exchange's configuration")
    return text


@attrs.frozen(slots=True)
class Params:
    """Extra venue parameters, frozen as canonical JSON so that they compare, hash and persist."""

    text: str = "{}"

    @classmethod
    def of(cls, value: Mapping[str, Any] | Params | None) -> Params:
        """Freeze *value*.

        Raises:
            InvalidInput: not plain JSON, larger than 8 KiB, nested deeper than 6, or named like a credential.
        """
        if isinstance(value, Params):
            return value
        if not value:
            return EMPTY_PARAMS
        if not isinstance(value, Mapping):
            raise InvalidInput(f"params must be a mapping, was {shorten(type(value).__name__)}")
        text = _ENCODE(_jsonable(value, 0))
        if len(text) > PARAMS_BYTES_MAX:
            raise InvalidInput(f"params are too large: {len(text)} bytes, at most {PARAMS_BYTES_MAX}")
        return cls(text)

    def thaw(self) -> dict[str, Any]:
        """A fresh, mutable copy."""
        value: dict[str, Any] = json.loads(self.text)
        return value


EMPTY_PARAMS: Final = Params()


# Named converters: attrs and its mypy plugin want functions.


def to_params(value: Mapping[str, Any] | Params | None) -> Params:
    """:meth:`Params.of`, as an attrs converter."""
    return value if type(value) is Params else Params.of(value)


def to_quantity(value: Number) -> Decimal:
    """A quantity: greater than 0."""
    return to_positive(value, "quantity")


def to_contract_size(value: Number) -> Decimal:
    """A contract size: greater than 0."""
    return to_positive(value, "contract_size")


def to_price(value: Number | None) -> Decimal | None:
    """A price, greater than 0, or None."""
    return None if value is None else to_positive(value, "price")


def to_limit(value: Number | None) -> Decimal | None:
    """A limit that an instrument states, greater than 0, or None where it states none."""
    return None if value is None else to_positive(value, "limit")
