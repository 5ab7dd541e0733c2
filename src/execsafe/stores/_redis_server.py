"""What a store asks of its server before it relies on it."""

from __future__ import annotations

from execsafe._redis.link import Link
from execsafe._redis.server import read_server
from execsafe.errors import StoreReadOnly, StoreUnavailable
from execsafe.ports import Durability


async def examine(link: Link, require: Durability) -> Durability:
    """Ask the server, and refuse what a store cannot rely on.

    Raises:
        StoreReadOnly: a replica.
        StoreUnavailable: it evicts, promises less than *require*, is loading, or does not tell.
    """
    server = await read_server(link)
    if server.is_loading:
        raise StoreUnavailable("the server is still loading its data")
    if server.is_replica:
        raise StoreReadOnly("the server is a replica: give the address of the primary")
    if server.eviction != "noeviction":
        raise StoreUnavailable(
            f"the server may evict records (maxmemory-policy {server.eviction or 'unknown'}): set"
            " 'maxmemory-policy noeviction'",
            setting="maxmemory-policy",
        )
    if (weakness := server.why_too_weak(require)) is not None:
        setting, text = weakness
        raise StoreUnavailable(text, setting=setting, durability=str(server.durability))
    return server.durability
