"""The lives and deaths of bots, in processes of their own, and what must be true in the end.

The venue lives in this process and outlives the bots. Its orders fill at once, and it takes a client order id
again once the order before it has filled: whoever sends anything twice owns it twice.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import attrs

from execsafe.bot.journal import open_existing
from execsafe.errors import InvalidInput, StoreCorrupt
from execsafe.intents import IntentRegistry
from execsafe.model.intent import IntentRecord
from execsafe.testing.adapter import SIM_PROFILE
from execsafe.testing.auditor import Auditor, Evidence
from tiny_venue import TinyVenue, serving

CHILD = Path(__file__).parent / "campaigns" / "kill9_child.py"
KEYS = ["market", "resting", "canceled", "replaced"]
AT_ONCE = 8  # they mostly wait, for leases and for proofs
LIFE_MAX_S = 60.0
WHOLE = {"market": "filled", "resting": "live", "canceled": "canceled", "replaced": "live"}


@attrs.frozen(kw_only=True)
class Plan:
    """How one bot dies: at its n-th crossing, or some time after its start; then whether its successor dies as well."""

    kill_at: int | None = None
    kill_after_s: float | None = None
    kill_successor_after_s: float | None = None


@attrs.frozen(kw_only=True)
class Life:
    """What one process said before it ended."""

    was_killed: bool
    said: list[dict[str, Any]]

    @property
    def crossings(self) -> int:
        return int(next(line["crossings"] for line in self.said if "crossings" in line))

    @property
    def failed(self) -> set[str]:
        """The errors with which it ended, if it ended with any."""
        return {name for line in self.said for name in line.get("failed", ())}

    @property
    def told(self) -> set[str]:
        return {line["told"] for line in self.said if line.get("outcome") == "Accepted"}


def live(
    server: TinyVenue,
    journal: str,
    *,
    recover: bool,
    kill_at: int | None,
    kill_after_s: float | None,
    on_start: Callable[[], object] = lambda: None,
) -> Life:
    plan = {"port": server.port, "journal": journal, "keys": KEYS, "recover": recover, "kill_at": kill_at}
    command = [sys.executable, str(CHILD), json.dumps(plan)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout is not None
        lines.append(child.stdout.readline())
        on_start()
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            child.kill()
        watchdog = threading.Timer(LIFE_MAX_S, child.kill)
        watchdog.start()
        lines += child.stdout.readlines()
        child.wait()
        watchdog.cancel()
    return Life(was_killed=child.returncode != 0, said=[json.loads(line) for line in lines if line.endswith("\n")])


def die_and_recover(plan: Plan, journal: str) -> None:
    """The whole story of one journal: a death or two, a recovery, and the judgement."""
    with serving() as server:
        first = live(server, journal, recover=False, kill_at=plan.kill_at, kill_after_s=plan.kill_after_s)
        told = first.told
        assert told <= written(journal), "what was acknowledged is not in the journal"
        lives = [first]
        if plan.kill_successor_after_s is not None:
            lives.append(live(server, journal, recover=True, kill_at=None, kill_after_s=plan.kill_successor_after_s))
        last = live(server, journal, recover=True, kill_at=None, kill_after_s=None)
        assert not any(each.failed for each in [*lives, last]), [each.said for each in [*lives, last]]
        assert not last.was_killed
        assert last.told == set(KEYS)
        judge(server, journal, plan)


def written(journal: str) -> set[str]:
    return {key for key, record in records(journal).items() if record.attempts}


def records(journal: str) -> dict[str, IntentRecord]:
    """What is in the journal; nothing where there is none."""

    async def read() -> dict[str, IntentRecord]:
        try:
            store = open_existing(journal)
            await store.open()
        except (InvalidInput, StoreCorrupt):
            return {}
        try:
            registry = IntentRegistry(store)
            found = {key: await registry.find(key) for key in KEYS}
            return {key: record for key, record in found.items() if record is not None}
        finally:
            await store.aclose()

    return anyio.run(read)


def judge(server: TinyVenue, journal: str, plan: Plan) -> None:
    ledger, final = server.venue.ledger, records(journal)
    assert {key: record.state.value for key, record in final.items()} == WHOLE, plan
    evidence = Evidence(ledger=ledger, final=final, profile=SIM_PROFILE)
    violations = [v for v in Auditor(evidence).audit() if (v.guarantee, v.key) != ("G1", "replaced")]
    assert not violations, (plan, violations)
    for key, record in final.items():
        ids = {attempt.client_order_id for attempt in record.attempts}
        accepted = sum(len(ledger.accepted(i)) for i in ids)
        # A replacement is a cancel and a second order.
        assert accepted == (2 if key == "replaced" else 1), (plan, key, accepted)
        assert ledger.worst_case(ids) <= record.quantity, (plan, key)
    assert ledger.position("BTC/USDT") == Decimal("0.4"), plan


def all_of(plans: Iterable[Plan], new_journal: Callable[[], str]) -> None:
    """Every plan with a journal of its own, eight at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(die_and_recover, plan, new_journal()) for plan in plans]
        for job in jobs:
            job.result()


def random_plans(seed: int, count: int) -> list[Plan]:
    rng = random.Random(seed)

    def moment(longest_s: float) -> float:
        return rng.random() * longest_s

    return [
        Plan(kill_after_s=moment(0.25), kill_successor_after_s=moment(4.0) if rng.random() < 0.25 else None)
        for _ in range(count)
    ]
