"""The functions that write and read the fields of one class, as source text: a loop over fields costs thrice as much.

For a class with the fields ``name: str`` and ``price: Decimal | None = None`` they are, but for the names::

    def write(value):
        item = value.name
        name = quote(item) if type(item) is str else encode_name(item)
        item = value.price
        price = (
            "" if item is None else f',"price":{write_decimal(item) if type(item) is Decimal else encode_price(item)}'
        )
        return f'{{"name":{name}{price}}}'


    def parse(tree):
        rest = len(tree) - 1
        item = tree["name"]
        name = item if type(item) is str else decode_name(item)
        if "price" in tree:
            rest -= 1
            item = tree["price"]
            price = parse_decimal(item) if type(item) is str else decode_price(item)
        else:
            price = None
        if rest:
            raise unknown(tree)
        return cls(name=name, price=price)

Where all that the class itself does is to convert and check each value by itself, and the readers of the values have
seen to that, the last line is, as in :mod:`execsafe.model.trusted`::

        self = new(Draft)
        self.name = name
        self.price = price
        self.__class__ = cls
        return self
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from execsafe.errors import StoreCorrupt
from execsafe.model.values import shorten
from execsafe.stores._codec_values import Converter, Parse, Write, quote

NEVER: Final = object()


@attrs.frozen
class Field:
    """One field of a class."""

    name: str
    argument: str  # of the class's own constructor
    omit: object  # the empty default; NEVER: the field is required
    converter: Converter


def writer_of(fields: Sequence[Field], head: str = "") -> Write:
    """A function that gives the JSON of an instance; *head* is a member that comes before those of its fields."""
    scope: dict[str, Any] = {"head": head}
    lines = ["def write(value):"]
    parts = ["{head}"] if head else []
    # This one needs no comma of its own; without it, and without a head, the last comma is cut off.
    first = -1 if head else next((n for n, field in enumerate(fields) if field.omit is NEVER), len(fields))
    for n, field in enumerate(fields):
        converter = field.converter
        scope |= {f"kind{n}": converter.kind, f"write{n}": converter.write, f"encode{n}": converter.encode}
        text = f"(write{n}(item) if type(item) is kind{n} else encode{n}(item))"
        name = f"{',' * (n > first)}{quote(field.name)}:".replace("\\", "\\\\")
        lines.append(f"    item = value.{field.name}")
        if field.omit is NEVER:
            lines.append(f"    text{n} = {text}")
            parts.append(f"{name}{{text{n}}}")
        else:
            scope[f"omit{n}"] = field.omit
            comma = "," * (n < first)
            lines.append(f"    text{n} = '' if item is omit{n} else f'{name}{{{text}}}{comma}'")
            parts.append(f"{{text{n}}}")
    members = "".join(parts)
    if first == len(fields):
        lines.append(f"    return '{{' + f'{members}'[:-1] + '}}'")
    else:
        lines.append(f"    return f'{{{{{members}}}}}'")
    return _compiled("write", lines, scope)


def parser_of(cls: type, fields: Sequence[Field], *, is_filled: bool) -> Parse:
    """A function that gives the instance of *cls* that an object's JSON stands for.

    *is_filled*: its fields are set without the class's own constructor, which would convert and check them again.
    """
    required = [field.name for field in fields if field.omit is NEVER]
    scope: dict[str, Any] = {"cls": cls, "unknown": _unknown(cls, fields)}
    lines = ["def parse(tree):", f"    rest = len(tree) - {len(required)}"]
    for n, field in enumerate(fields):
        converter = field.converter
        scope |= {f"token{n}": converter.token, f"parse{n}": converter.parse, f"decode{n}": converter.decode}
        parsed = "item" if converter.parse is None else f"parse{n}(item)"
        read = f"item = tree[{field.name!r}]; value{n} = {parsed} if type(item) is token{n} else decode{n}(item)"
        if field.omit is NEVER:
            lines.append(f"    {read}")
        else:
            scope[f"omit{n}"] = field.omit
            lines += [f"    if {field.name!r} in tree:", f"        rest -= 1; {read}", f"    else: value{n} = omit{n}"]
    lines.append("    if rest: raise unknown(tree)")
    lines += _filling(cls, fields, scope) if is_filled else [f"    return cls({_arguments(fields)})"]
    return _compiled("parse", lines, scope)


def _arguments(fields: Sequence[Field]) -> str:
    return ", ".join(f"{field.argument}=value{n}" for n, field in enumerate(fields))


def _filling(cls: type, fields: Sequence[Field], scope: dict[str, Any]) -> list[str]:
    mutable = {"__slots__": (), "__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    scope |= {"new": object.__new__, "Draft": type(cls.__name__, (cls,), mutable)}
    lines = ["    self = new(Draft)", *[f"    self.{field.name} = value{n}" for n, field in enumerate(fields)]]
    if hasattr(cls, "__attrs_post_init__"):
        lines.append("    self.__attrs_post_init__()")
    return [*lines, "    self.__class__ = cls", "    return self"]


def _unknown(cls: type, fields: Sequence[Field]) -> Callable[[dict[str, Any]], StoreCorrupt]:
    names = {field.name for field in fields}
    return lambda tree: StoreCorrupt(f"{cls.__name__}: unknown field {shorten(min(tree.keys() - names))}")


def _compiled(name: str, lines: Sequence[str], scope: dict[str, Any]) -> Callable[[Any], Any]:
    exec("\n".join(lines), scope)  # noqa: S102 - the names are those of fields, which are identifiers
    function: Callable[[Any], Any] = scope[name]
    return function
