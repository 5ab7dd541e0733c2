"""Gives a server up that does not answer.

The server bounds its own statements, and the network is bounded by TCP. Neither bounds a commit that waits for a
standby which is gone, or for a disk that hangs: then the thread that asked would wait for ever, and with it whoever
closes the store.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Final

import psycopg

from execsafe.stores._postgres_script import Connection

# How often it looks in the time that an answer may take: that is how exact it is.
_LOOKS: Final = 4


class Watch:
    """A thread that ends the connection under whatever takes longer than *limit_s*."""

    def __init__(self, limit_s: float) -> None:
        self._period_s = limit_s / _LOOKS
        self._lock = threading.Lock()
        self._running: Connection | None = None
        self._looks = 0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the thread; once more after :meth:`stop`."""
        self._stopped = threading.Event()
        threading.Thread(target=self._run, args=(self._stopped,), name="execsafe-store-watch", daemon=True).start()

    @contextlib.contextmanager
    def over(self, connection: Connection) -> Iterator[None]:
        """Watch what is done within."""
        with self._lock:
            self._running, self._looks = connection, 0
        try:
            yield
        finally:
            with self._lock:
                self._running = None

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(self._period_s):
            with self._lock:  # nobody closes the connection meanwhile: its number would soon be another one's
                if self._running is None:
                    continue
                self._looks += 1
                if self._looks > _LOOKS:
                    _shut(self._running)


def _shut(connection: Connection) -> None:
    """Have the thread that waits for an answer see the end of the connection."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as copy,
    ):
        copy.shutdown(socket.SHUT_RDWR)
