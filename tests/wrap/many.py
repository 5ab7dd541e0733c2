"""A process of its own that calls create_order many times at once, job by job; driven by test_one_of_many.py.

A job is a line of JSON with venue, URLs of the venue server and the store, how many calls and with which parameters.
Prints "ready" once the markets are loaded, waits for a line, and prints how the calls ended as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

import execsafe
from execsafe.testing.http import loopback_exchange, loopback_session
from wrap.rig import SYMBOL, buy, outcome, quick


async def work(*, name: str, server: str, store: str, calls: int, params: dict[str, object]) -> Counter[str]:
    session = loopback_session(server)
    exchange = loopback_exchange(name, session, {})
    profile = quick(name, expiry_window_s=2.0)
    looks = {"request_timeout_s": 2.0, "look_interval_s": 0.05}
    try:
        async with execsafe.wrap(exchange, store=store, profile=profile, **looks) as guarded:
            await guarded.adapter.prepare(SYMBOL[name])
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            ends = await asyncio.gather(*(outcome(buy(guarded, **params)) for _ in range(calls)))
    finally:
        await exchange.close()
        await session.close()
    return Counter(end["id"] if isinstance(end, dict) else type(end).__name__ for end in ends)


async def main() -> None:
    while job := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await work(**json.loads(job))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
