"""What the options in the URLs of stores have in common: how their texts are read."""

from __future__ import annotations

from collections.abc import Callable

from execsafe.errors import InvalidInput
from execsafe.model.values import shorten
from execsafe.ports import Durability


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


def durability(*accepted: Durability) -> Callable[[str], Durability]:
    """A reader of ``require``, which raises InvalidInput for anything but these."""
    known = {each.value: each for each in accepted}

    def read(text: str) -> Durability:
        if text not in known:
            raise InvalidInput(f"require must be {' or '.join(map(repr, known))}, was {shorten(text)}")
        return known[text]

    return read
