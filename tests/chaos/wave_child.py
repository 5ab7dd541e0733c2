"""A desk in a process of its own, made to be killed: run by test_wave.py with its plan as JSON in argv[1].

It trades a wave at a venue that lives in the test's process, over HTTP with the real ccxt client, and keeps its journal
in an SQLite file. With ``kill_at`` it kills itself right before or right after that write of the journal.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import attrs

sys.path.insert(0, str(Path(__file__).parents[1]))

import execsafe
from execsafe.bot.desk import TradingDesk
from execsafe.ports import Batch, Lease
from execsafe.stores.sqlite import SqliteStore
from execsafe.testing.http.session import loopback_exchange, loopback_session
from wave_world import BASES, POLICY, QUICK, payloads, play, symbol, wave_of


class DeadlyStore(SqliteStore):
    """Kills its process at one moment before or after a write."""

    kill_at = 0
    crossings = 0

    def cross(self) -> None:
        self.crossings += 1
        if self.crossings == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    async def commit(self, batch: Batch) -> Lease | None:
        self.cross()
        lease = await super().commit(batch)
        self.cross()
        return lease


async def main(plan: dict[str, Any]) -> None:
    name = plan["face"]
    session = loopback_session(plan["url"])
    exchange = loopback_exchange(name, session, {})
    profile = attrs.evolve(execsafe.profile_for(name), **QUICK)
    store = DeadlyStore(plan["path"])
    store.kill_at = plan["kill_at"]
    told: list[list[str]] = []
    desk = TradingDesk(
        execsafe.CcxtAdapter(exchange, profile=profile),
        store,
        attrs.evolve(POLICY, lease_ttl_s=2.0),  # a successor waits so long for the lease of a killed one
        symbols=[symbol(base) for base in BASES],
        listeners=[lambda event: told.append([event.type.value, event.subject, event.symbol])],
    )
    desk.handler = wave_of(desk)
    try:
        async with desk.running():
            report = await play(desk, payloads(plan["at_ms"]))
            positions = [position.symbol for position in desk.book.open_positions()]
    finally:
        await exchange.close()
        await session.close()
    print(json.dumps({**report, "positions": positions, "events": told, "crossings": store.crossings}))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
