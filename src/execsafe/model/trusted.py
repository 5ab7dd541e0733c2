"""Making frozen values whose parts are known to be sound, at a quarter of the price."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

import attrs

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SOURCE: Final = """
def make(*, {names}):
    self = _new(_Draft)
    {fill}
    self.__class__ = _Frozen
    return self
"""


def trusted(frozen: Callable[_P, _T]) -> Callable[_P, _T]:
    """A constructor of the attrs class *frozen*, with the same arguments by name, that converts and checks nothing.

    A frozen value forbids assignment, and its own ``__init__`` pays for a way around that with every field. Here the
    value is filled in as a draft (a subclass with the same slots that forbids nothing) and then becomes what it is
    meant to be, as frozen as any other. The function is written out as text, as attrs does it for ``__init__``.

    For what every order passes through several times, and only where each part is already of its final type: what
    comes from outside goes through the class itself.

    Raises:
        TypeError: *frozen* is more than its arguments: it makes some of its fields itself.
    """
    cls: type[Any] = cast("type[Any]", frozen)
    fields = attrs.fields(cls)
    if hasattr(cls, "__attrs_post_init__") or not all(map(_is_plain, fields)):
        raise TypeError(f"{cls.__name__} is more than its arguments")
    mutable = {"__slots__": (), "__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    scope: dict[str, Any] = {"_new": object.__new__, "_Draft": type(cls.__name__, (cls,), mutable), "_Frozen": cls}
    names = [field.name for field in fields]
    source = _SOURCE.format(names=", ".join(names), fill="; ".join(f"self.{name} = {name}" for name in names))
    exec(source, scope)  # noqa: S102 - the names are those of our own fields
    make = scope["make"]
    make.__kwdefaults__ = {field.name: field.default for field in fields if field.default is not attrs.NOTHING}
    return cast("Callable[_P, _T]", make)


def _is_plain(field: attrs.Attribute[Any]) -> bool:
    """Whether it is an argument of its own name; such a name has no underscore in front."""
    return field.init and field.name == field.alias and not hasattr(field.default, "factory")
