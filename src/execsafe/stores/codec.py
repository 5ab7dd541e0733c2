"""The one codec of all durable stores: frozen attrs values ⇄ tagged JSON.

A value becomes ``{"t": <tag>, <field>: …}``; a nested value carries no tag, its field's type says what it is.
Decimals are plain text, enums their value. A field that *is* its default is left out, but only where the
default is empty (None, False, zero, "", (), no params): such defaults do not change from release to release.

Decoding is strict and goes through the class itself, so that its converters and validators run: what comes
out equals what went in, or :class:`~execsafe.errors.StoreCorrupt` is raised. Nothing is unpickled or imported.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import operator
import re
import types
import typing
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, TypeVar

import attrs

from execsafe.errors import InvalidInput, StoreCorrupt
from execsafe.model.event import Event
from execsafe.model.intent import IntentRecord
from execsafe.model.values import EMPTY_PARAMS, PARAMS_BYTES_MAX, Params, plain, shorten

ENCODED_BYTES_MAX: Final = 1_048_576
TAG: Final = "t"
# A computed average price has up to 28 digits at any scale: wider than what is accepted from outside.
_SCALE_MAX: Final = 100
_DECIMAL_TEXT: Final = re.compile(r"-?[0-9]{1,101}(\.[0-9]{1,200})?", re.ASCII)
_CANONICAL: Final = re.compile(r"0|-?[1-9][0-9]{0,60}|-?(0|[1-9][0-9]{0,60})\.[0-9]{0,60}[1-9]", re.ASCII)

_T = TypeVar("_T")
_ToText = Callable[[Any], str]
_FromTree = Callable[[Any], Any]


@attrs.frozen
class _Field:
    name: str
    argument: str
    is_required: bool
    omit: object  # the empty default, or _NEVER
    encode: _ToText
    decode: _FromTree


@attrs.frozen
class _Plan:
    cls: type
    fields: tuple[_Field, ...]
    by_name: dict[str, _Field]
    required: frozenset[str]
    # For encoding, the hot half: all values of an instance at once, and column by column what to do with them.
    values: Callable[[Any], tuple[Any, ...]]
    omits: tuple[object, ...]
    names: tuple[str, ...]
    encoders: tuple[_ToText, ...]


_NEVER: Final = object()
_plans: dict[type, _Plan] = {}
_tags: dict[type, str] = {}
_by_tag: dict[str, _Plan] = {}


def register(cls: type[_T], tag: str | None = None) -> type[_T]:
    """Allow *cls*, an attrs class, in durable stores; usable as a decorator. Idempotent.

    Fields may be str, int, bool, float, Decimal, an enum, Params, an attrs class, ``tuple[X, ...]``,
    ``tuple[X, Y]``, ``dict[str, X]`` and any of these or None.

    Args:
        cls: the class. Its fields' names and types are its stored format.
        tag: the name under which it is stored, the class's own by default. It stands for this format for
            ever.

    Raises:
        TypeError: a field's type cannot be stored, or the tag is another class's.
    """
    tag = tag or cls.__name__
    known = _by_tag.get(tag)
    if (known is not None and known.cls is not cls) or _tags.get(cls, tag) != tag:
        raise TypeError(f"{cls.__qualname__} cannot be {tag!r}: a class has one tag, and a tag one class")
    plan = _plan(cls)
    if TAG in plan.by_name:
        raise TypeError(f"{cls.__qualname__}: the field name {TAG!r} is taken by the tag")
    _tags[cls] = tag
    _by_tag[tag] = plan
    return cls


def encode(value: object) -> bytes:
    """The stored form of *value*.

    Raises:
        InvalidInput: its class is not registered, a field does not hold what its type says, or it is larger
            than 1 MiB.
    """
    tag = _tags.get(type(value))
    if tag is None:
        raise InvalidInput(f"{shorten(type(value).__name__)} is not registered with the codec")
    data = _encode_fields(_by_tag[tag], value, f'"{TAG}":{_quote(tag)}').encode("ascii")
    if len(data) > ENCODED_BYTES_MAX:
        raise InvalidInput(f"{tag} is too large to store: {len(data)} bytes, at most {ENCODED_BYTES_MAX}")
    return data


def decode(data: bytes) -> Any:
    """The value that :func:`encode` was given.

    Raises:
        StoreCorrupt: anything that :func:`encode` cannot have written.
    """
    if len(data) > ENCODED_BYTES_MAX:
        raise StoreCorrupt(f"a stored value is too large: {len(data)} bytes")
    try:
        tree = _loads(data.decode("ascii"))
        if type(tree) is not dict:
            raise StoreCorrupt("a stored value is not an object")
        plan = _by_tag.get(tree.pop(TAG, None))
        if plan is None:
            raise StoreCorrupt("a stored value is of an unknown kind")
        return _decode_fields(plan, tree)
    except StoreCorrupt:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        # The content is not shown: it belongs to whoever can read the store.
        raise StoreCorrupt(f"a stored value cannot be read ({type(error).__name__})") from None


# --- Plans: what to do with each field, worked out once per class -----------------------------------


def _plan(cls: type) -> _Plan:
    plan = _plans.get(cls)
    if plan is not None:
        return plan
    if not attrs.has(cls):
        raise TypeError(f"{cls.__qualname__} is not an attrs class")
    hints = typing.get_type_hints(cls)
    fields = tuple(_field(attribute, hints[attribute.name]) for attribute in attrs.fields(cls) if attribute.init)
    plan = _Plan(
        cls=cls,
        fields=fields,
        by_name={field.name: field for field in fields},
        required=frozenset(field.name for field in fields if field.is_required),
        values=_getter([field.name for field in fields]),
        omits=tuple(field.omit for field in fields),
        names=tuple(f"{_quote(field.name)}:" for field in fields),
        encoders=tuple(field.encode for field in fields),
    )
    _plans[cls] = plan
    return plan


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return operator.attrgetter(*names)
    return lambda value: tuple([getattr(value, name) for name in names])


def _field(attribute: attrs.Attribute[Any], type_: Any) -> _Field:
    default = attribute.default
    is_empty = default is EMPTY_PARAMS or (not default and not isinstance(default, attrs.Factory))  # type: ignore[arg-type]
    is_omitted = default is not attrs.NOTHING and is_empty
    encode_, decode_ = _converters(type_)
    if is_omitted and default is None:
        encode_ = _converters(_without_none(type_))[0]  # None never gets as far
    return _Field(
        name=attribute.name,
        argument=attribute.alias or attribute.name,
        is_required=not is_omitted,
        omit=default if is_omitted else _NEVER,
        encode=encode_,
        decode=decode_,
    )


def _without_none(type_: Any) -> Any:
    rest = [a for a in typing.get_args(type_) if a is not type(None)]
    return rest[0] if len(rest) == 1 and typing.get_origin(type_) in (typing.Union, types.UnionType) else type_


def _converters(type_: Any) -> tuple[_ToText, _FromTree]:
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if (some := _without_none(type_)) is not type_:
        return _optional(*_converters(some))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:  # noqa: PLR2004
        return _sequence(*_converters(arguments[0]))
    if origin is tuple:
        return _fixed([_converters(a) for a in arguments])
    if origin is dict and arguments[0] is str:
        return _mapping(*_converters(arguments[1]))
    if type_ in _SCALARS:
        return _SCALARS[type_]
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        return _enum(type_)
    if isinstance(type_, type) and attrs.has(type_):
        plan = _plan(type_)
        return (lambda value: _encode_nested(plan, value)), (lambda tree: _decode_fields(plan, tree))
    raise TypeError(f"the codec cannot store a field of type {type_}")


def _encode_nested(plan: _Plan, value: object) -> str:
    if type(value) is not plan.cls:
        raise _misfit(plan.cls, value)
    return _encode_fields(plan, value)


def _encode_fields(plan: _Plan, value: object, *head: str) -> str:
    """JSON, written directly: a tree for the general encoder would cost as much again as the text."""
    columns = zip(plan.values(value), plan.omits, plan.names, plan.encoders, strict=True)
    members = [name + encode_(item) for item, omit, name, encode_ in columns if item is not omit]
    return f"{{{','.join([*head, *members])}}}"


def _decode_fields(plan: _Plan, tree: Any) -> Any:
    if type(tree) is not dict:
        raise StoreCorrupt(f"{plan.cls.__name__}: not an object")
    by_name = plan.by_name
    arguments = {}
    for name, item in tree.items():
        field = by_name.get(name)
        if field is None:
            raise StoreCorrupt(f"{plan.cls.__name__}: unknown field {shorten(name)}")
        arguments[field.argument] = field.decode(item)
    if not plan.required <= tree.keys():
        raise StoreCorrupt(f"{plan.cls.__name__}: a field is missing")
    return plan.cls(**arguments)


# --- Converters -------------------------------------------------------------------------------------


def _misfit(expected: type, value: object) -> InvalidInput:
    return InvalidInput(f"cannot store {shorten(type(value).__name__)} where {expected.__name__} belongs")


def _exact(expected: type, write: _ToText) -> tuple[_ToText, _FromTree]:
    def to(value: Any) -> str:
        if type(value) is not expected:
            raise _misfit(expected, value)
        return write(value)

    def back(tree: Any) -> Any:
        if type(tree) is not expected:
            raise StoreCorrupt(f"found {type(tree).__name__} where {expected.__name__} belongs")
        return tree

    return to, back


def _write_float(value: float) -> str:
    if not math.isfinite(value):
        raise _misfit(float, value)
    return repr(value)


def _write_bool(value: bool) -> str:
    return "true" if value else "false"


def _encode_decimal(value: Any) -> str:
    if type(value) is not Decimal:
        raise _misfit(Decimal, value)
    return _number_text(str(value))


@functools.lru_cache(maxsize=1_024)  # a record names the same few numbers again and again
def _number_text(text: str) -> str:
    if _CANONICAL.fullmatch(text):
        return f'"{text}"'
    value = Decimal(text)
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or abs(exponent) > _SCALE_MAX or abs(value.adjusted()) > _SCALE_MAX:
        raise InvalidInput(f"cannot store the number {shorten(text)}: not finite, or out of range")
    return f'"{plain(value)}"'


def _decode_decimal(tree: Any) -> Decimal:
    if type(tree) is not str or not _DECIMAL_TEXT.fullmatch(tree):
        raise StoreCorrupt("a stored number is malformed")
    return Decimal(tree)


def _encode_params(value: Any) -> str:
    if type(value) is not Params:
        raise _misfit(Params, value)
    return _quote(value.text)


def _decode_params(tree: Any) -> Params:
    if type(tree) is not str or len(tree) > PARAMS_BYTES_MAX or type(_loads(tree)) is not dict:
        raise StoreCorrupt("stored params are malformed")
    return Params(tree)


def _enum(cls: type[enum.Enum]) -> tuple[_ToText, _FromTree]:
    texts = {member: json.dumps(member.value) for member in cls}
    members = {member.value: member for member in cls}

    def to(value: Any) -> str:
        if type(value) is not cls:
            raise _misfit(cls, value)
        return texts[value]

    return to, members.__getitem__


def _optional(to: _ToText, back: _FromTree) -> tuple[_ToText, _FromTree]:
    return (
        lambda value: "null" if value is None else to(value),
        lambda tree: None if tree is None else back(tree),
    )


def _sequence(to: _ToText, back: _FromTree) -> tuple[_ToText, _FromTree]:
    def encode_all(value: Any) -> str:
        if type(value) is not tuple:
            raise _misfit(tuple, value)
        return f"[{','.join([to(item) for item in value])}]"

    def decode_all(tree: Any) -> tuple[Any, ...]:
        if type(tree) is not list:
            raise StoreCorrupt("not a list")
        return tuple([back(item) for item in tree])

    return encode_all, decode_all


def _fixed(converters: list[tuple[_ToText, _FromTree]]) -> tuple[_ToText, _FromTree]:
    def encode_each(value: Any) -> str:
        if type(value) is not tuple or len(value) != len(converters):
            raise _misfit(tuple, value)
        return f"[{','.join([to(item) for (to, _), item in zip(converters, value, strict=True)])}]"

    def decode_each(tree: Any) -> tuple[Any, ...]:
        if type(tree) is not list or len(tree) != len(converters):
            raise StoreCorrupt("not a list of the right length")
        return tuple([back(item) for (_, back), item in zip(converters, tree, strict=True)])

    return encode_each, decode_each


def _mapping(to: _ToText, back: _FromTree) -> tuple[_ToText, _FromTree]:
    def encode_all(value: Any) -> str:
        if type(value) is not dict or not all(type(key) is str for key in value):
            raise _misfit(dict, value)
        return f"{{{','.join([f'{_quote(key)}:{to(item)}' for key, item in value.items()])}}}"

    def decode_all(tree: Any) -> dict[str, Any]:
        if type(tree) is not dict:
            raise StoreCorrupt("not an object")
        return {key: back(item) for key, item in tree.items()}

    return encode_all, decode_all


_quote: Final[_ToText] = json.encoder.encode_basestring_ascii
_SCALARS: Final[dict[Any, tuple[_ToText, _FromTree]]] = {
    str: _exact(str, _quote),
    int: _exact(int, int.__repr__),
    bool: _exact(bool, _write_bool),
    float: _exact(float, _write_float),
    Decimal: (_encode_decimal, _decode_decimal),
    Params: (_encode_params, _decode_params),
}


def _refuse_constant(name: str) -> None:
    raise StoreCorrupt(f"a stored number is {name}")


# One decoder for all: building it costs as much as a small record.
_loads: Final = json.JSONDecoder(parse_constant=_refuse_constant).decode

register(IntentRecord)
register(Event)
