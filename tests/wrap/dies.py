"""A process that is killed between two steps of each of its orders; driven by test_kills.py.

Arguments: venue, URL of the venue server, URL of the store. Places three orders, then begins two more, a cancel and
an edit, none of which gets an answer.
"""

from __future__ import annotations

import asyncio
import sys

import execsafe
from execsafe.testing.http import loopback_exchange, loopback_session
from wrap.rig import SYMBOL, buy, quick


async def main(name: str, server: str, store: str) -> None:
    symbol = SYMBOL[name]
    exchange = loopback_exchange(name, loopback_session(server), {"timeout": 10_000})
    async with execsafe.wrap(exchange, store=store, profile=quick(name), request_timeout_s=1.0) as guarded:
        await guarded.adapter.prepare(symbol)
        rests = [await buy(guarded, key) for key in ("rests", "is canceled", "is edited")]
        begun = [
            buy(guarded, "arrives"),
            buy(guarded, "is lost"),
            guarded.cancel_order(rests[1]["id"], symbol),
            guarded.edit_order(rests[2]["id"], symbol, "limit", "buy", 0.02, 41_000),
        ]
        for work in begun:
            begun[begun.index(work)] = asyncio.create_task(work)
            await asyncio.sleep(0.1)
        await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
