"""Events as log lines, and structured logging over the standard library."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Final, Protocol

from execsafe.core.catalogue import level_of_event
from execsafe.core.redaction import redact
from execsafe.model.event import Event
from execsafe.observe._facts import facts
from execsafe.ports import Listener

_STACK_LEVEL: Final = 3  # the line that called info(), not ours


def log_events(logger: logging.Logger | logging.LoggerAdapter[Any] | None = None) -> Listener:
    """A listener that logs each event: its name as the message, its level by the catalogue, its facts behind it.

    A step that always happens is DEBUG however often the code passes it, and an alarm is CRITICAL. The facts are also
    on the record, as ``record.execsafe`` (a dict), for formatters that write JSON.

    Args:
        logger: where to; ``logging.getLogger("execsafe.events")`` unless given.
    """
    target = logger if logger is not None else logging.getLogger("execsafe.events")

    def listen(event: Event) -> None:
        level = int(level_of_event(event))
        if target.isEnabledFor(level):
            told = facts(event)
            target.log(level, "%s %s", event.type.value, _text(told), extra={"execsafe": told})

    return listen


class BoundLogger(Protocol):
    """What is needed of a structlog logger."""

    def log(self, level: int, event: str, **facts: Any) -> Any:
        """Log one event."""
        ...


def structlog_events(logger: BoundLogger | None = None) -> Listener:
    """A listener that gives each event to structlog, with its facts as key-value pairs.

    Args:
        logger: a structlog logger; ``structlog.get_logger("execsafe")`` unless given.

    Raises:
        ImportError: structlog is not installed (extra ``metrics``).
    """
    if logger is None:
        import structlog

        logger = structlog.get_logger("execsafe")
    target: BoundLogger = logger

    def listen(event: Event) -> None:
        target.log(int(level_of_event(event)), event.type.value, **facts(event))

    return listen


class StructLog:
    """Keyword arguments over the standard library's loggers, which raise TypeError on them in the middle of a trade.

    ``StructLog("bot").info("order sent", symbol="BTC/USDT", quantity=1)`` logs
    ``order sent {"quantity":1,"symbol":"BTC/USDT"}``, with the facts as ``record.execsafe``, too. Texts are redacted;
    of an exception only its class is said, because its text and its traceback may hold a signed URL.

    Args:
        logger: a logger, or its name.
        facts: said with every line.
    """

    def __init__(self, logger: logging.Logger | str, **facts: Any) -> None:
        self.logger: logging.Logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self._facts = facts

    def bind(self, **facts: Any) -> StructLog:
        """One that says these facts with every line, too."""
        return StructLog(self.logger, **{**self._facts, **facts})

    def log(self, level: int, message: str, /, **facts: Any) -> None:
        """Log *message* with facts. It is text, not a format: a ``%`` in it means nothing."""
        if self.logger.isEnabledFor(level):
            told = {name: _plain(value) for name, value in {**self._facts, **facts}.items()}
            text = f"{redact(message)} {_text(told)}" if told else redact(message)
            self.logger.log(level, "%s", text, extra={"execsafe": told}, stacklevel=_STACK_LEVEL)

    def debug(self, message: str, /, **facts: Any) -> None:
        """Log at DEBUG."""
        self.log(logging.DEBUG, message, **facts)

    def info(self, message: str, /, **facts: Any) -> None:
        """Log at INFO."""
        self.log(logging.INFO, message, **facts)

    def warning(self, message: str, /, **facts: Any) -> None:
        """Log at WARNING."""
        self.log(logging.WARNING, message, **facts)

    def error(self, message: str, /, **facts: Any) -> None:
        """Log at ERROR."""
        self.log(logging.ERROR, message, **facts)

    def critical(self, message: str, /, **facts: Any) -> None:
        """Log at CRITICAL."""
        self.log(logging.CRITICAL, message, **facts)


def _text(told: Mapping[str, Any]) -> str:
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"), default=str, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseException):
        return type(value).__name__
    return value if value is None or isinstance(value, (bool, int, float)) else redact(str(value))
