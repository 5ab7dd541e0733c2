"""Takes secrets out of the exceptions of a venue's client (guarantee G16)."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from execsafe.errors import ExecsafeError

_CHAIN_MAX: Final = 20


def redact_chain(error: BaseException, redact: Callable[[str], str]) -> None:
    """Redact an exception and everything that it drags along: clients put signed URLs into texts and frames.

    The frames of a client's exceptions hold headers and signatures as local variables, which error trackers collect:
    they are dropped, and so are causes from the network layer, which hold whole requests.
    """
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if not isinstance(current, ExecsafeError):
            current.__traceback__ = None
        if isinstance(current, Exception):  # what cancels a task is compared by its text
            _redact_texts(current, redact)
        if isinstance(current, BaseExceptionGroup):
            todo.extend(current.exceptions)
        ends = len(seen) >= _CHAIN_MAX
        # Setting a cause also hides the context, which is not ours to decide.
        hides_context = current.__suppress_context__
        current.__cause__ = None if ends or _is_foreign(current.__cause__) else current.__cause__
        current.__context__ = None if ends or _is_foreign(current.__context__) else current.__context__
        current.__suppress_context__ = hides_context
        todo.extend((current.__cause__, current.__context__))


def _redact_texts(error: Exception, redact: Callable[[str], str]) -> None:
    error.args = tuple(_redacted(value, redact) for value in error.args)
    notes = getattr(error, "__notes__", None)
    if notes:
        error.__notes__ = [redact(str(note)) for note in notes]
    if isinstance(error, OSError):  # it prints these, and not its arguments
        error.strerror = None if error.strerror is None else redact(error.strerror)
        error.filename = _redacted(error.filename, redact)
    for name, value in vars(error).items():
        if isinstance(value, str):  # the document of a JSON error, a URL
            vars(error)[name] = redact(value)
    if isinstance(error, ExecsafeError):
        error.context = {name: _redacted(value, redact) for name, value in error.context.items()}


def _redacted(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    return (
        value if value is None or isinstance(value, (bool, int, float, Decimal, BaseException)) else redact(repr(value))
    )


def _is_foreign(error: BaseException | None) -> bool:
    return error is not None and type(error).__module__.split(".", 1)[0] in {"aiohttp", "aiosignal", "yarl"}
