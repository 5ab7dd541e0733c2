"""Runs the store's scripts, and refuses a server that is not what it was."""

from __future__ import annotations

import secrets
from typing import Any, Final, TypeAlias

import attrs

from execsafe._redis.line import Line, evaluate
from execsafe._redis.link import Link
from execsafe._redis.script import Script
from execsafe.errors import StoreError, StoreUnavailable
from execsafe.ports import Durability
from execsafe.stores import _redis_scripts as scripts
from execsafe.stores._redis_errors import closed, refusal, translate
from execsafe.stores._redis_rows import padded
from execsafe.stores._redis_server import examine
from execsafe.stores._redis_settings import Settings

_SCHEMA: Final = b"%d" % scripts.SCHEMA_VERSION
_Answer: TypeAlias = tuple[bytes, list[Any]]  # "ok" and results, or why this call was refused and facts


@attrs.define(eq=False)
class Seen:
    """What this process knows of the store, whatever becomes of connections: it must never be older than this."""

    durability: Durability
    witness: bytes = attrs.field(init=False, factory=lambda: secrets.token_hex(8).encode())  # whose writes they are
    store_id: bytes = attrs.field(init=False, default=b"")
    revision: int = attrs.field(init=False, default=0)
    own_revision: int = attrs.field(init=False, default=0)  # of the last write that it knows to be its own

    def become_another(self) -> None:
        """In a forked child: its writes are not those of its parent."""
        self.witness, self.own_revision = secrets.token_hex(8).encode(), 0


class Client:
    """Talks to one server, in the event loop in which it was made.

    Args:
        settings: where it is.
        seen: kept by the store, as it outlives the client.
    """

    def __init__(self, settings: Settings, seen: Seen) -> None:
        self._settings = settings
        self._seen = seen
        self._keys = settings.keys
        self._line = Line(settings, greet=self._greet, failed=self._failed)

    @property
    def is_at_home(self) -> bool:
        """Whether this is the event loop in which it was made."""
        return self._line.is_at_home

    @property
    def is_live(self) -> bool:
        """Whether a connection is left, which only its own event loop can close."""
        return self._line.is_live

    async def open(self) -> None:
        """Connect and look at the server and the store; make the store if there was none, and write to it.

        Raises:
            StoreError: of the kind that fits. A store that was seen before is not made again.
        """
        self._line.refuse(None)
        await self.run(scripts.OPEN, self._new_id(), b"1")

    async def run(self, script: Script, *arguments: bytes) -> _Answer:
        """What *script* answers: ``ok`` and its results, or why it refused this call.

        Raises:
            StoreError: no answer, the server's refusal, or something is wrong with the store as a whole.
        """

        async def work(link: Link) -> _Answer:
            return await self._evaluate(link, script, arguments)

        return await self._line.call(work)

    async def aclose(self) -> None:
        """Let what is under way end, and the connection go."""
        await self._line.aclose(closed())

    # --- one call -----------------------------------------------------------------------------------

    async def _greet(self, link: Link) -> None:
        self._seen.durability = await examine(link, self._settings.require)
        await self._evaluate(link, scripts.OPEN, (self._new_id(), b"0"))

    async def _evaluate(self, link: Link, script: Script, arguments: tuple[bytes, ...]) -> _Answer:
        self._line.check()
        seen, keys = self._seen, self._keys
        known = (_SCHEMA, seen.store_id, padded(seen.revision), seen.witness, padded(seen.own_revision))
        reply = await evaluate(link, script, len(keys), *keys, *known, *arguments)
        if not isinstance(reply, list) or not reply:
            raise StoreUnavailable("the server gave an answer that no script of the store gives")
        kind, *facts = reply
        if kind == b"ok":
            revision, own, *facts = facts
            seen.revision = max(seen.revision, int(revision))
            seen.own_revision = max(seen.own_revision, int(own))
            if script is scripts.OPEN:
                seen.store_id = facts[0]
        elif (error := refusal(kind, facts)) is not None:
            # For good: a server that is behind may catch up with other writes, and then look as if nothing was lost.
            self._line.refuse(error)
            self._line.check()
        return kind, facts

    def _new_id(self) -> bytes:
        """The id of a store that has to be made; empty: it may not be."""
        return secrets.token_hex(16).encode() if self._settings.create else b""

    def _failed(self, error: Exception | None) -> StoreError:
        if error is not None:
            return translate(error, self._settings.secrets)
        return StoreUnavailable(
            f"the server did not answer within {self._settings.timeout_s:g} s: nothing is known of the write, if it was"
            " one"
        )
