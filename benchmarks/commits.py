"""What the benchmarks of stores commit, and how many callers at once are measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import anyio
import attrs

from execsafe.model.event import Event, EventType
from execsafe.model.intent import Attempt, Intent, IntentRecord, IntentState
from execsafe.ports import Batch, Put, Store
from execsafe.stores import codec

COLLECTION = "intents"
INTENT = Intent(key="signal-42", symbol="BTC/USDT", side="buy", quantity="0.01", limit_price="60000")
ATTEMPT = Attempt(
    number=1,
    client_order_id="ex0123456789abcdef",
    quantity=INTENT.quantity,
    limit_price=INTENT.limit_price,
    prepared_at_ms=1_700_000_000_000,
    deadline_ms=1_700_000_010_000,
)
RECORD = IntentRecord(
    intent=INTENT,
    quantity=INTENT.quantity,
    limit_price=INTENT.limit_price,
    attempts=(ATTEMPT,),
    state=IntentState.SENDING,
    created_at_ms=1_700_000_000_000,
    updated_at_ms=1_700_000_000_000,
    version=1,
)
BODY = codec.encode(RECORD)
EVENT = Event(type=EventType.ATTEMPT_SENDING, at_ms=1, subject=INTENT.identity, client_order_id=ATTEMPT.client_order_id)
EVENT_BODY = codec.encode(EVENT)


def batch(key: str, **facts: Any) -> Batch:
    """A record of an intent of its own: what the codec remembers of another one is of no use to it."""
    record = attrs.evolve(RECORD, intent=attrs.evolve(INTENT, key=key))
    put = Put(collection=COLLECTION, key=key, value=record, version=0, aliases=(f"x{key}",), **facts)
    return Batch(now_ms=1, puts=(put,))


async def side_by_side(
    store: Store, make: Callable[[str], Batch], raw: Callable[[list[str]], None], rounds: int
) -> tuple[float, float]:
    """Commits a second of 64 tasks that each commit as fast as they can, and of *raw* transactions of 64.

    Each commits 20 times: to start the tasks and to end them costs 1.5 ms, which is none of the store's.
    """
    ours, raws = [], []
    each, all_ = 20, 20 * 64

    async def commits(batches: list[Batch]) -> None:
        for batch_ in batches:
            await store.commit(batch_)

    for round_ in range(rounds):
        batches = [[make(f"{round_}-{task}-{number}") for number in range(each)] for task in range(64)]
        start = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for task in range(64):
                tasks.start_soon(commits, batches[task])
        ours.append(all_ / (time.perf_counter() - start))
        start = time.perf_counter()
        for number in range(each):
            raw([f"{round_}-{task}-{number}" for task in range(64)])
        raws.append(all_ / (time.perf_counter() - start))
    return median(ours), median(raws)
