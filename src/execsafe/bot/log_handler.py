"""Log lines on their way to who reads them: nobody who trades waits for that."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO, TypeAlias

LINES_MAX: Final = 10_000
_PATIENCE_S: Final = 1.0
_NAME: Final = "execsafe.bot"

_Write: TypeAlias = Callable[[str], bool]
"""Writes a text, for as long as that takes. Whether it could be written."""


class PatientHandler(logging.Handler):
    """Writes lines in a thread of its own; whoever logs only leaves them there.

    A pipe that nobody reads (a pager that waits, a terminal that is held) stops who writes into it, for ever. Were that
    the event loop, nobody would look after the stops. When too many lines wait, the oldest are dropped, and how many
    is told where they would have been. What cannot be written (a closed pipe, a full disk) is dropped in silence.

    Args:
        stream: where to; standard error unless given.
        lines_max: lines that wait at once.
    """

    def __init__(self, stream: TextIO | None = None, *, lines_max: int = LINES_MAX) -> None:
        super().__init__()
        self._write = _writing_to(sys.stderr if stream is None else stream)
        self._lines_max = lines_max
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._is_closed = False
        self._news = threading.Condition()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="execsafe-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Leave the line to the thread."""
        line = self._formatted(record)
        if os.getpid() != self._pid:  # forked: the thread and what it was about to do are the parent's
            self._write(f"{line}\n")
            return
        with self._news:
            if len(self._lines) >= self._lines_max:
                self._lines.popleft()
                self._dropped += 1
            self._lines.append(line)
            self._news.notify()

    def close(self) -> None:
        """Have the last lines written; wait no longer than a second for who does not read them."""
        if not self._is_closed and os.getpid() == self._pid:
            with self._news:
                self._is_closed = True
                self._news.notify()
            self._thread.join(_PATIENCE_S)
        super().close()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            dropped, line = taken
            if not self._write(f"{self._gap(dropped)}{line}\n"):
                with self._news:
                    self._dropped += dropped + 1

    def _take(self) -> tuple[int, str] | None:
        """The next line, and how many before it were dropped; None at the end."""
        with self._news:
            self._news.wait_for(lambda: self._lines or self._is_closed)
            if not self._lines:
                return None
            dropped, self._dropped = self._dropped, 0
            return dropped, self._lines.popleft()

    def _gap(self, dropped: int) -> str:
        if not dropped:
            return ""
        note = _record("log lines dropped here, because they could not be written: %d", dropped)
        return f"{self._formatted(note)}\n"

    def _formatted(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # noqa: BLE001 - whatever an object in somebody's message raises
            why = type(error).__name__
            return self.format(_record("a line of %s (%s) cannot be shown (%s)", record.name, record.levelname, why))


def _record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord(_NAME, logging.WARNING, __file__, 0, message, args, None)


def _writing_to(stream: TextIO | None) -> _Write:
    if stream is None:  # a process without a standard error
        return lambda _text: False
    try:
        fd = stream.fileno()
    except (OSError, ValueError, AttributeError):  # something of a person's own, or closed
        return _through(stream)
    return _straight(fd, stream.encoding or "utf-8")


def _straight(fd: int, encoding: str) -> _Write:
    """Past the stream's buffer: a thread that is stuck in there would keep the process from its end."""

    def write(text: str) -> bool:
        data = text.encode(encoding, "backslashreplace")
        try:
            while data:
                try:
                    data = data[os.write(fd, data) :]
                except BlockingIOError:  # who started this process made the pipe so
                    select.select([], [fd], [])
        except (OSError, ValueError):
            return False
        return True

    return write


def _through(stream: TextIO) -> _Write:
    def write(text: str) -> bool:
        try:
            stream.write(text)
            stream.flush()
        except Exception:  # noqa: BLE001 - a log that cannot be written is no reason to stop
            return False
        return True

    return write
