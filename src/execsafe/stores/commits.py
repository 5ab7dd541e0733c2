"""Writing such that a cancelled caller leaves no doubt about what was written."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import anyio

from execsafe.errors import StoreUnavailable
from execsafe.ports import Batch, Lease, Store


def commit_shielded(store: Store, batch: Batch, *, timeout_s: float) -> Coroutine[Any, Any, Lease | None]:
    """``store.commit(batch)``, finished or known to have failed before it returns, whoever cancels the caller.

    Raises, once awaited:
        StoreUnavailable: no answer within *timeout_s*: nothing is known of the write.
        StoreError: what the store raises.
    """
    # What never waits cannot be cancelled.
    return store.commit(batch) if store.never_waits else _shielded(store, batch, timeout_s)


async def _shielded(store: Store, batch: Batch, timeout_s: float) -> Lease | None:
    with anyio.move_on_after(timeout_s, shield=True):
        return await store.commit(batch)
    raise StoreUnavailable(f"the store did not answer within {timeout_s:g} s")
