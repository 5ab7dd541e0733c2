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
from execsafe.model.intent import Intent, IntentRecord
from execsafe.model.values import EMPTY_PARAMS, PARAMS_BYTES_MAX, Params, plain, shorten

ENCODED_BYTES_MAX: Final = 1_048_576
TAG: Final = "t"
# A computed average price has up to 28 digits at any scale: wider than what is accepted from outside.
_SCALE_MAX: Final = 100
_DECIMAL_TEXT: Final = re.compile(r"-?[0-9]{1,101}(\.[0-9]{1,200})?", re.ASCII)
_CANONICAL: Final = re.compile(r"0|-?[1-9][0-9]{0,60}|-?(0|[1-9][0-9]{0,60})\.[0-9]{0,60}[1-9]", re.ASCII)

# An intent is the same object in every version of its record.
_REMEMBERED: Final = frozenset({Intent})
_REMEMBERED_MAX: Final = 1_024

_T = TypeVar("_T")
_ToText = Callable[[Any], str]
_FromTree = Callable[[Any], Any]


@attrs.frozen
class _Converter:
    """How values of one type become JSON and come back.

    Plans compare ``kind`` and ``plain`` themselves: most fields then cost no call of ours at all.
    """

    kind: type
    write: _ToText  # only ever given a value of exactly that kind
    read: _FromTree
    plain: type | None = None  # JSON values of this type are the values themselves
    is_optional: bool = False

    def encode(self, value: Any) -> str:
        """JSON text of any value that fits."""
        if type(value) is self.kind:
            return self.write(value)
        if value is None and self.is_optional:
            return "null"
        raise InvalidInput(f"cannot store {shorten(type(value).__name__)} where {self.kind.__name__} belongs")


@attrs.frozen
class _Field:
    name: str
    argument: str
    omit: object  # the empty default; _NEVER: the field is required
    converter: _Converter


@attrs.frozen
class _Plan:
    """What to do with the fields of a class, as tuples that a loop takes apart at once."""

    cls: type
    required: frozenset[str]
    values: Callable[[Any], tuple[Any, ...]]  # all of an instance, in the order of the next two
    omits: tuple[object, ...]
    columns: tuple[tuple[str, type, _ToText, _ToText], ...]  # name as JSON, kind, write, encode
    by_name: dict[str, tuple[str, type | None, _FromTree]]  # argument, plain, read


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
        required=frozenset(field.name for field in fields if field.omit is _NEVER),
        values=_getter([field.name for field in fields]),
        omits=tuple(field.omit for field in fields),
        columns=tuple((f"{_quote(f.name)}:", f.converter.kind, f.converter.write, f.converter.encode) for f in fields),
        by_name={field.name: (field.argument, field.converter.plain, field.converter.read) for field in fields},
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
    return _Field(
        name=attribute.name,
        argument=attribute.alias or attribute.name,
        omit=default if is_omitted else _NEVER,
        converter=_converter(type_),
    )


def _without_none(type_: Any) -> Any:
    rest = [a for a in typing.get_args(type_) if a is not type(None)]
    return rest[0] if len(rest) == 1 and typing.get_origin(type_) in (typing.Union, types.UnionType) else type_


def _converter(type_: Any) -> _Converter:
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if (some := _without_none(type_)) is not type_:
        return _optional(_converter(some))
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:  # noqa: PLR2004
        return _sequence(_converter(arguments[0]))
    if origin is tuple:
        return _fixed([_converter(a) for a in arguments])
    if origin is dict and arguments[0] is str:
        return _mapping(_converter(arguments[1]))
    if type_ in _SCALARS:
        return _SCALARS[type_]
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        return _enum(type_)
    if isinstance(type_, type) and attrs.has(type_):
        plan = _plan(type_)
        write: _ToText = functools.partial(_encode_fields, plan)
        write = _remembering(write) if type_ in _REMEMBERED else write
        return _Converter(type_, write, functools.partial(_decode_fields, plan))
    raise TypeError(f"the codec cannot store a field of type {type_}")


def _encode_fields(plan: _Plan, value: object, *head: str) -> str:
    """JSON, written directly: a tree for the general encoder would cost as much again as the text."""
    members = list(head)
    for item, omit, column in zip(plan.values(value), plan.omits, plan.columns, strict=True):
        if item is not omit:
            name, kind, write, encode_ = column
            members.append(name + (write(item) if type(item) is kind else encode_(item)))
    return f"{{{','.join(members)}}}"


def _decode_fields(plan: _Plan, tree: Any) -> Any:
    if type(tree) is not dict:
        raise StoreCorrupt(f"{plan.cls.__name__}: not an object")
    by_name = plan.by_name
    arguments = {}
    for name, item in tree.items():
        if name not in by_name:
            raise StoreCorrupt(f"{plan.cls.__name__}: unknown field {shorten(name)}")
        argument, plain_, read = by_name[name]
        arguments[argument] = item if type(item) is plain_ else read(item)
    if not plan.required <= tree.keys():
        raise StoreCorrupt(f"{plan.cls.__name__}: a field is missing")
    return plan.cls(**arguments)


def _remembering(write: _ToText) -> _ToText:
    """The same, keeping the texts of the latest objects that were written."""
    texts: dict[int, tuple[object, str]] = {}

    def remember(value: object) -> str:
        known = texts.get(id(value))
        if known is None:
            if len(texts) >= _REMEMBERED_MAX:
                texts.clear()
            known = texts[id(value)] = (value, write(value))  # with the object, so that no other one gets its id
        return known[1]

    return remember


# --- Converters -------------------------------------------------------------------------------------


def _plain(kind: type, write: _ToText) -> _Converter:
    def read(tree: Any) -> Any:  # given only what is no plain value
        raise StoreCorrupt(f"found {type(tree).__name__} where {kind.__name__} belongs")

    return _Converter(kind, write, read, plain=kind)


def _read(converter: _Converter, tree: Any) -> Any:
    return tree if type(tree) is converter.plain else converter.read(tree)


def _write_float(value: float) -> str:
    if not math.isfinite(value):
        raise InvalidInput(f"cannot store the number {value}")
    return repr(value)


def _write_decimal(value: Decimal) -> str:
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


def _read_decimal(tree: Any) -> Decimal:
    if type(tree) is not str:
        raise StoreCorrupt("a stored number is malformed")
    return _number(tree)


@functools.lru_cache(maxsize=1_024)
def _number(text: str) -> Decimal:
    if not _DECIMAL_TEXT.fullmatch(text):
        raise StoreCorrupt("a stored number is malformed")
    return Decimal(text)


def _write_params(value: Params) -> str:
    return _quote(value.text)


def _read_params(tree: Any) -> Params:
    if type(tree) is not str or len(tree) > PARAMS_BYTES_MAX or type(_loads(tree)) is not dict:
        raise StoreCorrupt("stored params are malformed")
    return Params(tree)


def _enum(cls: type[enum.Enum]) -> _Converter:
    texts = {member: json.dumps(member.value) for member in cls}
    members = {member.value: member for member in cls}
    return _Converter(cls, texts.__getitem__, members.__getitem__)


def _optional(some: _Converter) -> _Converter:
    def read(tree: Any) -> Any:
        return None if tree is None else some.read(tree)

    return attrs.evolve(some, read=read, is_optional=True)


def _sequence(each: _Converter) -> _Converter:
    def write(value: tuple[Any, ...]) -> str:
        return f"[{','.join([each.encode(item) for item in value])}]"

    def read(tree: Any) -> tuple[Any, ...]:
        if type(tree) is not list:
            raise StoreCorrupt("not a list")
        return tuple([_read(each, item) for item in tree])

    return _Converter(tuple, write, read)


def _fixed(converters: list[_Converter]) -> _Converter:
    def write(value: tuple[Any, ...]) -> str:
        if len(value) != len(converters):
            raise InvalidInput(f"cannot store a tuple of {len(value)} where {len(converters)} belong")
        return f"[{','.join([each.encode(item) for each, item in zip(converters, value, strict=True)])}]"

    def read(tree: Any) -> tuple[Any, ...]:
        if type(tree) is not list or len(tree) != len(converters):
            raise StoreCorrupt("not a list of the right length")
        return tuple([_read(each, item) for each, item in zip(converters, tree, strict=True)])

    return _Converter(tuple, write, read)


def _mapping(each: _Converter) -> _Converter:
    def write(value: dict[str, Any]) -> str:
        if not all(type(key) is str for key in value):
            raise InvalidInput("cannot store a dict with keys that are not text")
        return f"{{{','.join([f'{_quote(key)}:{each.encode(item)}' for key, item in value.items()])}}}"

    def read(tree: Any) -> dict[str, Any]:
        if type(tree) is not dict:
            raise StoreCorrupt("not an object")
        return {key: _read(each, item) for key, item in tree.items()}

    return _Converter(dict, write, read)


_quote: Final[_ToText] = json.encoder.encode_basestring_ascii
_SCALARS: Final[dict[Any, _Converter]] = {
    str: _plain(str, _quote),
    int: _plain(int, int.__repr__),
    bool: _plain(bool, {True: "true", False: "false"}.__getitem__),
    float: _plain(float, _write_float),
    Decimal: _Converter(Decimal, _write_decimal, _read_decimal),
    Params: _Converter(Params, _write_params, _read_params),
}


def _refuse_constant(name: str) -> None:
    raise StoreCorrupt(f"a stored number is {name}")


# One decoder for all: building it costs as much as a small record.
_loads: Final = json.JSONDecoder(parse_constant=_refuse_constant).decode

register(IntentRecord)
register(Event)
