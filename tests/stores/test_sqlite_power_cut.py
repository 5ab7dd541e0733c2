"""Power cuts under an SQLite store, played from what the process really asked of the system.

A writer runs under strace. From its writes, flushes and acknowledgements every state is built that a disk may
be left in when the power fails at some point: what was flushed is there; what was not is there, missing or torn
in sectors, each independently. From each of them the store must open with everything that was acknowledged.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from execsafe.errors import StoreError
from execsafe.stores.sqlite import SqliteStore
from execsafe.testing._store_model import COLLECTION

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt install strace"),
]
CAMPAIGN = Path(__file__).with_name("kill_campaign.py")
SECTOR = 512
COMMITS = 6
CALLS = "openat,pwrite64,write,ftruncate,fdatasync,fsync,unlink,link"
LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)(?:<|$| )")
ESCAPED = re.compile(r"(?:\\x[0-9a-f]{2})+")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@attrs.define
class DiskFile:
    """What is on the disk for certain, and what may have reached it since the last flush."""

    flushed: bytearray = attrs.Factory(bytearray)
    pending: list[tuple[int, bytes | None]] = attrs.Factory(list)  # (offset, data), or (size, None)

    def flush(self) -> None:
        for where, data in self.pending:
            _do(self.flushed, where, data)
        self.pending.clear()

    def after_a_cut(self, chance: random.Random) -> bytes:
        content = bytearray(self.flushed)
        keep = chance.choice([0.0, 0.5, 0.9, 1.0])
        for where, data in self.pending:
            if data is None:
                if chance.random() < keep:
                    _do(content, where, None)
                continue
            for start in range(0, len(data), SECTOR):
                if chance.random() < keep:
                    _do(content, where + start, data[start : start + SECTOR])
        return bytes(content)


def _do(content: bytearray, where: int, data: bytes | None) -> None:
    if data is None:
        del content[where:]
        content.extend(bytes(where - len(content)))
        return
    content.extend(bytes(max(0, where - len(content))))
    content[where : where + len(data)] = data


@attrs.define
class Disk:
    """One directory. A name that was made or removed is certain only once the directory is flushed."""

    directory: str
    names: dict[str, DiskFile] = attrs.Factory(dict)
    flushed_names: dict[str, DiskFile] = attrs.Factory(dict)
    acknowledged: list[str] = attrs.Factory(list)

    def after_a_cut(self, chance: random.Random) -> dict[str, bytes]:
        present = {}
        for name in {**self.flushed_names, **self.names}:
            before, now = self.flushed_names.get(name), self.names.get(name)
            file = now if before is now or chance.random() < 0.5 else before
            if file is not None:
                present[name] = file.after_a_cut(chance)
        return present

    def play(self, log: str) -> Iterator[None]:
        """Carry out the calls one by one."""
        for line in log.splitlines():
            call = LINE.match(line)
            if call is None or int(call[3]) < 0:
                continue
            name, text = call[1], call[2]
            values = [bytes.fromhex(found.replace("\\x", "")) for found in ESCAPED.findall(text)]
            numbers = [int(n) for n in re.findall(r", (\d+)", text)]
            if self._carry_out(name, text, values, numbers):
                yield

    def _carry_out(self, name: str, text: str, values: list[bytes], numbers: list[int]) -> bool:
        if name == "write" and text.startswith("1<"):
            said = values[1].decode() if len(values) > 1 else ""
            self.acknowledged += re.findall(r"^k\d+$", said, re.MULTILINE)  # an imported module prints as well
            return True
        paths = [value.decode() for value in values if value.decode("latin1").startswith(self.directory)]
        if not paths:
            return False
        path = paths[-1]
        if name == "openat" and "O_CREAT" in text:
            self.names.setdefault(path, DiskFile())
        elif name == "pwrite64":
            data = values[1] if len(values) > 1 else b""
            assert len(data) == numbers[0], "the log is cut short"
            self.names[path].pending.append((numbers[1], data))
        elif name == "ftruncate":
            self.names[path].pending.append((numbers[0], None))
        elif name in {"fsync", "fdatasync"} and path == self.directory:
            self.flushed_names = dict(self.names)
        elif name in {"fsync", "fdatasync"}:
            self.names[path].flush()
        elif name == "unlink":
            del self.names[path]
        elif name == "link":
            self.names[path] = self.names[paths[0]]
        else:
            return False
        return True


def recorded(directory: Path, options: str, pragma: str = "") -> str:
    """The log of a writer."""
    log = directory.parent / "strace.log"
    strace = ["strace", "-f", "-y", "-xx", "-s", "100000", "-e", f"trace={CALLS}", "-o", str(log)]
    write = [sys.executable, str(CAMPAIGN), "write", str(directory / "orders.db"), options, str(COMMITS), pragma]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(strace + write, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [f"k{n}" for n in range(COMMITS)]
    return log.read_text()


async def lost_after_cuts(directory: Path, log: str, *, each: int) -> tuple[int, list[str]]:
    """Cut the power after every call, *each* times; how many cuts, and what was wrong after them."""
    disk = Disk(str(directory))
    chance = random.Random(1)
    cuts, wrong = 0, []
    # In memory where that exists: thousands of flushes of a real disk prove nothing here.
    room = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for _ in disk.play(log):
        if not disk.acknowledged:
            continue
        for _ in range(each):
            cuts += 1
            with tempfile.TemporaryDirectory(dir=room) as place:
                for path, content in disk.after_a_cut(chance).items():
                    file = Path(place) / Path(path).name
                    file.write_bytes(content)
                    file.chmod(0o600)
                try:
                    wrong += await missing(Path(place) / "orders.db", disk.acknowledged)
                except StoreError as error:
                    wrong.append(f"{type(error).__name__}: {error}")
    return cuts, wrong


async def missing(path: Path, acknowledged: list[str]) -> list[str]:
    async with SqliteStore(path, commit="inline") as store:
        stored = [s.key for s in await store.scan_open(COLLECTION)]
        lost = [key for key in acknowledged if key not in stored]
        halves = [key for key in stored if await store.find(COLLECTION, f"x-{key}") is None]
        if len(await store.read_events(0)) != len(stored):
            halves.append("events")
        return lost + halves


@pytest.mark.parametrize("options", ["commit=inline", "commit=inline&exclusive=true"])
async def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path, options: str) -> None:
    """Cut after every call to the system: nothing acknowledged is lost, nothing is there by halves."""
    directory = tmp_path / "store"
    directory.mkdir()
    cuts, wrong = await lost_after_cuts(directory, recorded(directory, options), each=6)
    assert cuts > 200
    assert wrong == []


@pytest.mark.parametrize(
    ("options", "pragma"),
    [
        ("commit=inline", "synchronous=OFF"),
        ("commit=inline&exclusive=true", "synchronous=NORMAL"),
    ],
)
async def test_a_store_that_did_not_flush_would_be_caught(tmp_path: Path, options: str, pragma: str) -> None:
    """The test of the test above: with the settings weakened, the same cuts lose what was acknowledged."""
    directory = tmp_path / "store"
    directory.mkdir()
    _, wrong = await lost_after_cuts(directory, recorded(directory, options, pragma), each=1)
    assert wrong
