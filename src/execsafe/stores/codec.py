"""The one codec of all durable stores: frozen attrs values ⇄ tagged JSON.

A value becomes ``{"t": <tag>, <field>: …}``; a nested value carries no tag, its field's type says what it is.
Decimals are plain text, enums their value. A field that *is* its default is left out, but only where the
default is empty (None, False, zero, "", (), no params): such defaults do not change from release to release.

Decoding is strict: what comes out equals what went in, and is a value that the class itself accepts, or
:class:`~execsafe.errors.StoreCorrupt` is raised. Nothing is unpickled or imported.
"""

from __future__ import annotations

import enum
import functools
import types
import typing
from typing import Any, Final, TypeVar

import attrs

from execsafe.errors import InvalidInput, StoreCorrupt
from execsafe.model.event import Event
from execsafe.model.intent import Attempt, Change, ErrorFacts, Intent, IntentRecord
from execsafe.model.order import Fee, Fill
from execsafe.model.values import EMPTY_PARAMS, shorten, to_params
from execsafe.stores import _codec_values as values
from execsafe.stores._codec_source import NEVER, Field, parser_of, writer_of
from execsafe.stores._codec_values import Converter, Parse, Write, parse_json, quote

ENCODED_BYTES_MAX: Final = 1_048_576
TAG: Final = "t"

# What every order passes through: their constructors do nothing but convert and check each value by itself, and what
# they make of it is found out once for each text (see _checked).
_FILLED: Final = frozenset({IntentRecord, Intent, Attempt, Change, Fill, Fee, Event, ErrorFacts})
_CHECKED_MAX: Final = 1_024

# An intent is the same object in every version of its record.
_REMEMBERED: Final = frozenset({Intent})
_REMEMBERED_MAX: Final = 1_024
_DAMAGE: Final = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)

_T = TypeVar("_T")


class _Plan:
    """The stored form of a class. Its functions are written out when they are first used: most never are."""

    def __init__(self, cls: type) -> None:
        hints = typing.get_type_hints(cls)
        self.cls = cls
        self._fields = tuple([_field(cls, each, hints[each.name]) for each in attrs.fields(cls) if each.init])
        self.names = frozenset(field.name for field in self._fields)

    @functools.cached_property
    def write(self) -> Write:
        """The JSON of an instance in another one."""
        return writer_of(self._fields)

    @functools.cached_property
    def write_tagged(self) -> Write:
        """The JSON of an instance by itself."""
        return writer_of(self._fields, f'"{TAG}":{quote(_tags[self.cls])}')

    @functools.cached_property
    def parse(self) -> Parse:
        """An instance from the object that its JSON is."""
        return parser_of(self.cls, self._fields, is_filled=self.cls in _FILLED)


_plans: dict[type, _Plan] = {}
_tags: dict[type, str] = {}
_by_tag: dict[str, _Plan] = {}
_by_class: dict[type, _Plan] = {}  # those with a tag


def register(cls: type[_T], tag: str | None = None) -> type[_T]:
    """Allow *cls*, an attrs class, in durable stores; usable as a decorator. Idempotent.

    Fields may be str, int, bool, float, Decimal, an enum (of texts, or of whole numbers), Params, an attrs class,
    ``tuple[X, ...]``, ``tuple[X, Y]``, ``dict[str, X]`` and any of these or None.

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
    if TAG in plan.names:
        raise TypeError(f"{cls.__qualname__}: the field name {TAG!r} is taken by the tag")
    _tags[cls] = tag
    _by_tag[tag] = plan
    _by_class[cls] = plan
    return cls


def make_ready() -> None:
    """Write out the functions of all registered classes now, half a millisecond each, and not at the first order."""
    for plan in list(_plans.values()):
        plan.write, plan.parse  # noqa: B018 - properties that are made once
    for plan in list(_by_class.values()):
        plan.write_tagged  # noqa: B018


def encode(value: object) -> bytes:
    """The stored form of *value*.

    Raises:
        InvalidInput: its class is not registered, a field does not hold what its type says, or it is larger
            than 1 MiB.
    """
    plan = _by_class.get(type(value))
    if plan is None:
        raise InvalidInput(f"{shorten(type(value).__name__)} is not registered with the codec")
    try:
        data = plan.write_tagged(value).encode("ascii")
    except TypeError:  # a signalling NaN is the one number that cannot be looked up
        raise InvalidInput(f"{plan.cls.__name__} holds a number that cannot be stored") from None
    if len(data) > ENCODED_BYTES_MAX:
        raise InvalidInput(f"{plan.cls.__name__} is too large to store: {len(data)} bytes, at most {ENCODED_BYTES_MAX}")
    return data


def decode(data: bytes) -> Any:
    """The value that :func:`encode` was given.

    Raises:
        StoreCorrupt: anything that :func:`encode` cannot have written.
    """
    if len(data) > ENCODED_BYTES_MAX:
        raise StoreCorrupt(f"a stored value is too large: {len(data)} bytes")
    try:
        tree = parse_json(data.decode("ascii"))
        if type(tree) is not dict:
            raise StoreCorrupt("a stored value is not an object")
        plan = _by_tag.get(tree.pop(TAG, None))
        if plan is None:
            raise StoreCorrupt("a stored value is of an unknown kind")
        return plan.parse(tree)
    except StoreCorrupt:
        raise
    except _DAMAGE as error:
        # The content is not shown: it belongs to whoever can read the store.
        raise StoreCorrupt(f"a stored value cannot be read ({type(error).__name__})") from None


# --- Plans: what to do with each field, worked out once per class -----------------------------------


def _plan(cls: type) -> _Plan:
    plan = _plans.get(cls)
    if plan is None:
        if not attrs.has(cls):
            raise TypeError(f"{cls.__qualname__} is not an attrs class")
        plan = _plans[cls] = _Plan(cls)
    return plan


def _field(cls: type, attribute: attrs.Attribute[Any], type_: Any) -> Field:
    default = attribute.default
    is_empty = default is EMPTY_PARAMS or (not default and not isinstance(default, attrs.Factory))  # type: ignore[arg-type]
    is_omitted = default is not attrs.NOTHING and is_empty
    converter = _converter(type_)
    return Field(
        name=attribute.name,
        argument=attribute.alias or attribute.name,
        omit=default if is_omitted else NEVER,
        converter=_checked(attribute, converter) if cls in _FILLED else converter,
    )


def _checked(attribute: attrs.Attribute[Any], converter: Converter) -> Converter:
    """With what the class itself does to a value of this field when it is made (None and defaults it leaves alone)."""
    parse, validate = converter.parse, attribute.validator
    convert: Any = attribute.converter
    if convert is to_params:  # leaves Params as they are
        convert = None
    if convert is None and validate is None:
        return converter

    def check(tree: Any) -> Any:
        value = tree if parse is None else parse(tree)
        value = value if convert is None else convert(value)
        if validate is not None:
            validate(None, attribute, value)
        return value

    # Only texts: others have equals of another type, 1, 1.0 and True. And no keys: each is met once.
    is_remembered = converter.token is str and attribute.name != "key"
    return attrs.evolve(converter, parse=functools.lru_cache(_CHECKED_MAX)(check) if is_remembered else check)


def _without_none(type_: Any) -> Any:
    rest = [a for a in typing.get_args(type_) if a is not type(None)]
    return rest[0] if len(rest) == 1 and typing.get_origin(type_) in (typing.Union, types.UnionType) else type_


def _converter(type_: Any) -> Converter:
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if (some := _without_none(type_)) is not type_:
        return attrs.evolve(_converter(some), is_optional=True)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:  # noqa: PLR2004
        return values.sequence(_converter(arguments[0]))
    if origin is tuple:
        return values.fixed([_converter(a) for a in arguments])
    if origin is dict and arguments[0] is str:
        return values.mapping(_converter(arguments[1]))
    if type_ in values.SCALARS:
        return values.SCALARS[type_]
    if isinstance(type_, type) and issubclass(type_, enum.Enum):
        return values.enumeration(type_)
    if isinstance(type_, type) and attrs.has(type_):
        return _nested(type_)
    raise TypeError(f"the codec cannot store a field of type {type_}")


def _nested(cls: type) -> Converter:
    plan = _plan(cls)

    def write(value: Any) -> str:
        return plan.write(value)

    def parse(tree: Any) -> Any:
        return plan.parse(tree)

    return Converter(cls, _remembering(write) if cls in _REMEMBERED else write, dict, parse)


def _remembering(write: Write) -> Write:
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


register(IntentRecord)
register(Event)
