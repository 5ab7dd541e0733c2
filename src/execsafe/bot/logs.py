"""How a running bot logs: a line for people or for machines, each safe to show and to read."""

from __future__ import annotations

import json
import logging
import math
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from execsafe.bot.config import RunConfig
from execsafe.bot.log_handler import PatientHandler
from execsafe.core.redaction import LENGTH_MAX, MARK, redact

_WORD_MAX: Final = 60
_INDENT: Final = "    "
_LENGTHS: Final = re.compile(r"^\d+\.\d+:")  # with which an intent's identity begins: nothing for people
_IN_ORDER: Final = ("symbol", "quantity", "price", "note", "subject", "client_order_id", "error", "error_code")


@contextmanager
def logging_to_terminal(config: RunConfig) -> Iterator[None]:
    """Log to standard error for the length of the block, as the configuration says; warnings, too.

    What was set up before is kept. The last lines are written before the block is left, unless nobody reads them.
    """
    handler = PatientHandler()
    handler.setFormatter(JsonLines() if config.log_format == "json" else TextLines())
    root, own = logging.getLogger(), logging.getLogger("execsafe")
    before = own.level
    own.setLevel(config.log.upper())
    root.addHandler(handler)
    try:
        with _warnings_logged():
            yield
    finally:
        root.removeHandler(handler)
        own.setLevel(before)
        handler.close()


@contextmanager
def _warnings_logged() -> Iterator[None]:
    before = warnings.showwarning
    logging.captureWarnings(True)
    is_new = warnings.showwarning is not before
    try:
        yield
    finally:
        if is_new:  # otherwise somebody had them logged before
            logging.captureWarnings(False)


class TextLines(logging.Formatter):
    """One line for people: the time (UTC), how loud, and what happened, the facts that matter first.

    Control characters are shown as escapes. A traceback follows on lines of its own, indented: whatever an error says,
    it looks like no line of the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        """As the class says."""
        event = _event_of(record)
        said = _message(record) if event is None else f"{event[0]}  {_in_words(event[1])}"
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        first = f"{at} {record.levelname:<8} {_shown(said)}"
        return "\n".join([first, *(_INDENT + line for line in _trace(self, record))])


class JsonLines(logging.Formatter):
    """One JSON object a line, for machines: ``time``, ``level``, ``logger``, ``message``, and an event's ``facts``."""

    def format(self, record: logging.LogRecord) -> str:
        """As the class says. It is ASCII, and so the same in every encoding."""
        event = _event_of(record)
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _shown(_message(record) if event is None else event[0]),
        }
        if event is not None:
            line["facts"] = _as_json(event[1])
        if trace := _trace(self, record):
            line["error"] = "\n".join(trace)
        return json.dumps(line, separators=(",", ":"), allow_nan=False)


def _event_of(record: logging.LogRecord) -> tuple[str, dict[str, Any]] | None:
    """Name and facts, if the record is an event's (:func:`execsafe.observe.log_events`)."""
    told = getattr(record, "execsafe", None)
    match record.args:
        case (str() as name, str()) if isinstance(told, dict):
            return name, told
    return None


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - somebody's own log call: what it says is worth more than how
        return f"{record.msg} (its arguments do not fit, at {record.filename}:{record.lineno})"


def _shown(text: str) -> str:
    """On one line and redacted: a client's message may hold a signed URL."""
    shown = redact(text.rstrip())
    return f"{shown}…" if len(shown) > LENGTH_MAX - len(MARK) else shown  # it was cut


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """Traceback and stack. Made here, and not what another handler left on the record: that is not redacted."""
    texts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    texts += [formatter.formatStack(record.stack_info)] if record.stack_info else []
    return [redact(line) for text in texts for line in text.splitlines()]


def _as_json(value: Any) -> Any:
    """With texts for what JSON has no word for."""
    if isinstance(value, dict):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _in_words(told: dict[str, Any]) -> str:
    told = {**told, "subject": _LENGTHS.sub("", str(told.get("subject", "")))}
    words = [str(told[name]) for name in _IN_ORDER if told.get(name) is not None]
    details = told.get("details") or {}
    return " ".join(
        [*words, *(f"{name}={_short(value)}" for name, value in details.items() if value is not None and value != "")]
    )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _WORD_MAX else text[:_WORD_MAX] + "…"
