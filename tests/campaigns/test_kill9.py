"""Real processes, a real journal on a real file, and SIGKILL: one order per intent, none lost, none twice.

The venue lives in this process and outlives the bots. Its orders fill at once, and it takes a client order id
again once the order before it has filled: whoever sends anything twice owns it twice.
"""

import json
import os
import random
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from execsafe.clock import SystemClock
from execsafe.intents import IntentRegistry
from execsafe.model.intent import IntentRecord
from execsafe.model.values import plain
from execsafe.model.venue import View
from execsafe.stores.sqlite import SqliteStore
from execsafe.testing._orders import NewOrder, SimOrder, VenueReject
from execsafe.testing.adapter import SIM_PROFILE
from execsafe.testing.auditor import Auditor, Evidence
from execsafe.testing.venue import SimVenue

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

CHILD = Path(__file__).with_name("kill9_child.py")
KEYS = ["market", "resting", "canceled", "replaced"]
RANDOM_KILLS = 60
CAMPAIGN_KILLS = 500
AT_ONCE = 8  # they mostly wait, for leases and for proofs
LIFE_MAX_S = 60.0
TRAVEL_S = 0.01
READ_LAG_MS = 50
WHOLE = {"market": "filled", "resting": "live", "canceled": "canceled", "replaced": "live"}


class TinyVenue(socketserver.ThreadingTCPServer):
    """A simulated venue behind a socket: one line with a request, one line with the answer."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.venue = SimVenue(read_lag_ms=READ_LAG_MS)
        self.lock = threading.Lock()
        self.clock = SystemClock()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed hears nothing; that is the point."""

    def answer(self, request: dict[str, Any]) -> Any:
        """Do what is asked, at this instant."""
        op, cid = request["op"], request["client_order_id"]
        with self.lock:
            now_ms = self.clock.now_ms()
            try:
                if op == "look":
                    shown = self.venue.look(View(request["view"]), now_ms, client_order_id=cid)
                    return _as_json(shown[-1]) if shown else None
                if op == "cancel":
                    return _as_json(self.venue.cancel(now_ms, symbol=request["symbol"], client_order_id=cid))
                price = request["limit_price"]
                order = NewOrder(
                    symbol=request["symbol"],
                    side=request["side"],
                    quantity=Decimal(request["quantity"]),
                    type="market" if price is None else "limit",
                    limit_price=None if price is None else Decimal(price),
                    client_order_id=cid,
                    deadline_ms=request["deadline_ms"],
                )
                return _as_json(self.venue.submit(order, now_ms))
            except VenueReject as reject:
                return {"reject": reject.reason.value}


class _Handler(socketserver.StreamRequestHandler):
    server: TinyVenue

    def handle(self) -> None:
        line = self.rfile.readline()
        if line.endswith(b"\n"):
            time.sleep(TRAVEL_S)
            answer = self.server.answer(json.loads(line))
            time.sleep(TRAVEL_S)
            self.wfile.write(json.dumps(answer).encode() + b"\n")


def _as_json(order: SimOrder) -> dict[str, Any]:
    return {
        "symbol": order.symbol,
        "status": order.status.value,
        "client_order_id": order.client_order_id,
        "venue_order_id": order.venue_order_id,
        "quantity": plain(order.quantity),
        "filled_quantity": plain(order.filled_quantity),
    }


@contextmanager
def serving() -> Iterator[TinyVenue]:
    with TinyVenue() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# --- lives of a bot -------------------------------------------------------------------------------


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
    def told(self) -> set[str]:
        return {line["told"] for line in self.said if line.get("outcome") == "Accepted"}


def live(server: TinyVenue, path: Path, *, recover: bool, kill_at: int | None, kill_after_s: float | None) -> Life:
    plan = {"port": server.port, "path": str(path), "keys": KEYS, "recover": recover, "kill_at": kill_at}
    command = [sys.executable, str(CHILD), json.dumps(plan)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout is not None
        lines.append(child.stdout.readline())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            child.kill()
        watchdog = threading.Timer(LIFE_MAX_S, child.kill)
        watchdog.start()
        lines += child.stdout.readlines()
        child.wait()
        watchdog.cancel()
    said = [json.loads(line) for line in lines if line.endswith("\n")]
    assert not any("failed" in line for line in said), said
    return Life(was_killed=child.returncode != 0, said=said)


def die_and_recover(plan: Plan, folder: Path) -> None:
    """The whole story of one journal: a death or two, a recovery, and the judgement."""
    folder.mkdir()
    path = folder / "orders.db"
    with serving() as server:
        first = live(server, path, recover=False, kill_at=plan.kill_at, kill_after_s=plan.kill_after_s)
        told = first.told
        assert told <= written(path), "what was acknowledged is not in the journal"
        if plan.kill_successor_after_s is not None:
            told |= live(server, path, recover=True, kill_at=None, kill_after_s=plan.kill_successor_after_s).told
        last = live(server, path, recover=True, kill_at=None, kill_after_s=None)
        assert not last.was_killed
        assert last.told == set(KEYS)
        judge(server, path, plan)


def written(path: Path) -> set[str]:
    return {key for key, record in records(path).items() if record.attempts} if path.exists() else set()


def records(path: Path) -> dict[str, IntentRecord]:
    async def read() -> dict[str, IntentRecord]:
        async with SqliteStore(path, commit="inline") as store:
            registry = IntentRegistry(store)
            found = {key: await registry.find(key) for key in KEYS}
            return {key: record for key, record in found.items() if record is not None}

    return anyio.run(read)


def judge(server: TinyVenue, path: Path, plan: Plan) -> None:
    ledger, final = server.venue.ledger, records(path)
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


def all_of(plans: Iterable[Plan], folder: Path) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(die_and_recover, plan, folder / str(n)) for n, plan in enumerate(plans)]
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


# --- tests ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crossings(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many crossings an undisturbed life has."""
    path = tmp_path_factory.mktemp("whole") / "orders.db"
    with serving() as server:
        life = live(server, path, recover=False, kill_at=None, kill_after_s=None)
        judge(server, path, Plan())
        return life.crossings


@pytest.mark.guarantee(1, 2, 3, 13)
def test_g2_killed_before_or_after_any_write_or_request_every_intent_happens_once(
    crossings: int, tmp_path: Path
) -> None:
    """Every crossing of an undisturbed life: before the journal, after it, before the send, after the reply, …"""
    assert crossings >= 20
    all_of([Plan(kill_at=number) for number in range(1, crossings + 1)], tmp_path)


@pytest.mark.guarantee(1, 2, 3, 13)
def test_g2_killed_at_any_moment_every_intent_happens_once(tmp_path: Path) -> None:
    """At random, one bot in four twice."""
    all_of(random_plans(1, RANDOM_KILLS), tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2, 4))
def test_g2_killed_at_any_moment_many_times(seed: int, tmp_path: Path) -> None:
    """The same, for longer."""
    all_of(random_plans(seed, CAMPAIGN_KILLS), tmp_path)


def test_a_bot_that_sends_again_after_a_kill_is_found_out(tmp_path: Path) -> None:
    """The judgement itself: an order sent twice under one id is not taken for one."""
    make: Callable[..., NewOrder] = NewOrder
    with serving() as server:
        path = tmp_path / "orders.db"
        live(server, path, recover=False, kill_at=None, kill_after_s=None)
        cid = records(path)["market"].attempts[0].client_order_id
        again = make(symbol="BTC/USDT", side="buy", quantity=Decimal("0.4"), type="market", client_order_id=cid)
        server.venue.submit(again, server.clock.now_ms())
        with pytest.raises(AssertionError):
            judge(server, path, Plan())
