"""Two consumers of one group share a journal; they are killed, and the bus's server too. Each signal is one order."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import anyio
import pytest

from execsafe.buses import open_bus
from execsafe.intents import IntentRegistry
from execsafe.model.intent import IntentRecord
from execsafe.stores import open_store
from execsafe.testing.adapter import SIM_PROFILE
from execsafe.testing.auditor import Auditor, Evidence
from execsafe.testing.venue import linear
from servers import RedisServer
from tiny_venue import TinyVenue, serving

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

CHILD = Path(__file__).with_name("consumer_child.py")
TOPIC, GROUP = "trade.intent", "execsafe"
QUANTITY = Decimal("0.001")
SIGNALS = 40
CAMPAIGN_SIGNALS = 600
LONGEST_S = 60.0


class Crew:
    """Two consumers, each started again when it has died."""

    def __init__(self, folder: Path, **plan: object) -> None:
        self._folder = folder
        self._plan = plan
        self._members: dict[str, subprocess.Popen[bytes]] = {}
        self.deaths = 0

    def __enter__(self) -> Crew:
        for name in ("one", "other"):
            self._start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members.values():
            member.kill()
            member.wait()

    def _start(self, name: str) -> None:
        self._begun(name).unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        plan = json.dumps({**self._plan, "name": name, "begun": str(self._begun(name))})
        self._members[name] = subprocess.Popen([sys.executable, str(CHILD), plan], env=environment)

    def _begun(self, name: str) -> Path:
        return self._folder / f"{name}.begun"

    def wait_until_begun(self) -> None:
        deadline = time.monotonic() + LONGEST_S
        while not all(self._begun(name).exists() for name in self._members):
            assert time.monotonic() < deadline, "the consumers did not begin"
            time.sleep(0.05)

    def look_after(self) -> None:
        """Start again what has died: by our hand, or by itself, as its bus was away when it wanted to open it."""
        for name, member in self._members.items():
            if member.poll() is not None:
                self.deaths += 1
                self._start(name)

    def kill(self, name: str) -> None:
        """Kill one, if it has begun."""
        if self._begun(name).exists():
            self._members[name].kill()
            self._members[name].wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, appendfsync="always") as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def journal(request: pytest.FixtureRequest, redis: RedisServer, tmp_path: Path) -> str:
    return redis.url("journal") if request.param == "redis" else f"sqlite:///{tmp_path}/orders.db"


@pytest.mark.guarantee(1, 2, 3, 6, 13)
@pytest.mark.row("S2-11")
def test_g13_consumers_and_their_bus_are_killed_and_each_signal_is_one_order(
    journal: str, redis: RedisServer, tmp_path: Path
) -> None:
    """Every signal is published twice, as a sender does that had no answer."""
    play(tmp_path, journal, redis, seed=1, count=SIGNALS)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [2, 3])
def test_g13_consumers_and_their_bus_are_killed_many_times(
    journal: str, redis: RedisServer, tmp_path: Path, seed: int
) -> None:
    """The same, for longer."""
    play(tmp_path, journal, redis, seed=seed, count=CAMPAIGN_SIGNALS)


def play(folder: Path, journal: str, redis: RedisServer, *, seed: int, count: int) -> None:
    rng = random.Random(seed)
    bus = redis.url("bus:", redeliver_after_s="1")
    begun_ms = round(time.time() * 1000)
    # One symbol each: two signals with the same symbol and side exclude each other while one is in flight.
    markets = [linear(f"S{number}") for number in range(count)]
    with (
        serving(markets) as venue,
        Crew(folder, port=venue.port, bus=bus, journal=journal, quantity=str(QUANTITY)) as crew,
    ):
        crew.wait_until_begun()
        for number in range(count):
            for _ in range(2):
                publish(redis, number, at_ms=begun_ms)
            time.sleep(rng.uniform(0, 0.1))
            misfortune(rng, crew, redis)
        deadline = time.monotonic() + LONGEST_S + count / 10
        while not is_done(redis):
            assert time.monotonic() < deadline, "the group was never done with its messages"
            crew.look_after()
            time.sleep(0.05)
    assert crew.deaths >= count / 20
    judge(venue, journal, count)
    assert redis.say("EXISTS", f"bus:{TOPIC}:dead") == b":0"


def publish(redis: RedisServer, number: int, *, at_ms: int) -> None:
    facts = {"signal_id": f"s-{number}", "symbol": f"S{number}/USDT:USDT", "side": "LONG", "timestamp": str(at_ms)}
    redis.say("XADD", f"bus:{TOPIC}", "*", *(word for pair in facts.items() for word in pair))


def misfortune(rng: random.Random, crew: Crew, redis: RedisServer) -> None:
    crew.look_after()
    if rng.random() < 0.4:
        crew.kill(rng.choice(["one", "other"]))
    if rng.random() < 0.05:
        redis.kill()
        time.sleep(rng.uniform(0, 0.2))
        redis.start()


def is_done(redis: RedisServer) -> bool:
    async def depth() -> tuple[int, int]:
        async with open_bus(redis.url("bus:")) as bus:
            found = await bus.depth(TOPIC, GROUP)
            return found.waiting, found.pending

    return anyio.run(depth) == (0, 0)


def judge(venue: TinyVenue, journal: str, count: int) -> None:
    """From the venue's hidden ledger, and the journal."""
    records = anyio.run(_records, journal, count)
    assert len(records) == count
    assert {record.state.value for record in records.values()} == {"filled"}
    violations = Auditor(Evidence(ledger=venue.venue.ledger, final=records, profile=SIM_PROFILE)).audit()
    assert not violations, violations
    for key, record in records.items():
        ids = {attempt.client_order_id for attempt in record.attempts}
        assert sum(len(venue.venue.ledger.accepted(each)) for each in ids) == 1, key
    assert len(venue.venue.ledger.accepted()) == count
    assert {venue.venue.ledger.position(f"S{number}/USDT:USDT") for number in range(count)} == {QUANTITY}


async def _records(journal: str, count: int) -> dict[str, IntentRecord]:
    async with open_store(journal) as store:
        registry = IntentRegistry(store)
        found = {key: await registry.find(key) for key in (f"signals:s-{number}" for number in range(count))}
        return {key: record for key, record in found.items() if record is not None}
