"""Runs scripts on the server: connects when needed, looks at the server first, and bounds every call in time."""

from __future__ import annotations

import secrets
from typing import Any, Final, TypeAlias

import anyio
import attrs
from anyio.lowlevel import EventLoopToken, current_token
from coredis.exceptions import NoScriptError, RedisError

from execsafe.errors import ExecsafeError, StoreError, StoreUnavailable
from execsafe.ports import Durability
from execsafe.stores import _redis_scripts as scripts
from execsafe.stores._redis_errors import closed, refusal, translate
from execsafe.stores._redis_link import Link
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
        self._loop: EventLoopToken = current_token()
        self._lock = anyio.Lock()
        self._link: Link | None = None
        self._refusal: StoreError | None = None
        self._pending = 0
        self._is_idle = anyio.Event()
        self._secrets = [text for text in (settings.password, settings.username) if text]

    @property
    def is_at_home(self) -> bool:
        """Whether this is the event loop in which it was made."""
        return current_token() == self._loop

    @property
    def is_live(self) -> bool:
        """Whether a connection is left, which only its own event loop can close."""
        return self._link is not None and not self._link.is_over

    async def open(self) -> None:
        """Connect and look at the server and the store; make the store if there was none, and write to it.

        Raises:
            StoreError: of the kind that fits. A store that was seen before is not made again.
        """
        self._refusal = None
        await self._within_time(scripts.OPEN, (self._new_id(), b"1"))

    async def run(self, script: scripts.Script, *arguments: bytes) -> _Answer:
        """What *script* answers: ``ok`` and its results, or why it refused this call.

        Raises:
            StoreError: no answer, the server's refusal, or something is wrong with the store as a whole.
        """
        return await self._within_time(script, arguments)

    async def aclose(self) -> None:
        """Let what is under way end, and the connection go."""
        self._refusal = closed()
        with anyio.CancelScope(shield=True):
            while self._pending:  # each of them is bounded in time
                self._is_idle = anyio.Event()
                await self._is_idle.wait()
            link, self._link = self._link, None
            if link is not None:
                await link.aclose()

    # --- one call -----------------------------------------------------------------------------------

    async def _within_time(self, script: scripts.Script, arguments: tuple[bytes, ...]) -> _Answer:
        link: Link | None = None
        failure: StoreError = _timed_out(self._settings.timeout_s)
        self._pending += 1
        try:
            with anyio.move_on_after(self._settings.timeout_s):
                link = await self._connected()
                return await self._evaluate(link, script, arguments)
            if link is not None:
                link.close()  # as silent for everybody else
        except (RedisError, OSError) as error:
            failure = translate(error, self._secrets)
        finally:
            self._pending -= 1
            if not self._pending:
                self._is_idle.set()
        raise failure  # out here, without what led to it: what a server says may repeat a password

    async def _connected(self) -> Link:
        link = self._link
        if link is not None and link.is_usable:
            return link
        async with self._lock:
            link = self._link
            if link is not None and link.is_usable:
                return link
            self._check()
            link = await Link.dial(self._settings)
            try:
                self._seen.durability = await examine(link, self._settings.require)
                await self._evaluate(link, scripts.OPEN, (self._new_id(), b"0"))
            except BaseException:
                link.close()
                raise
            self._link = link
            return link

    async def _evaluate(self, link: Link, script: scripts.Script, arguments: tuple[bytes, ...]) -> _Answer:
        self._check()
        seen, keys = self._seen, self._keys
        known = (_SCHEMA, seen.store_id, padded(seen.revision), seen.witness, padded(seen.own_revision))
        try:
            reply = await link.ask(b"EVALSHA", script.sha, len(keys), *keys, *known, *arguments)
        except NoScriptError:  # a server that was restarted, or told to forget
            reply = await link.ask(b"EVAL", script.text, len(keys), *keys, *known, *arguments)
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
            self._refusal = error
            raise _copy(error)
        return kind, facts

    def _new_id(self) -> bytes:
        """The id of a store that has to be made; empty: it may not be."""
        return secrets.token_hex(16).encode() if self._settings.create else b""

    def _check(self) -> None:
        if self._refusal is not None:
            raise _copy(self._refusal)


def _timed_out(timeout_s: float) -> StoreUnavailable:
    return StoreUnavailable(
        f"the server did not answer within {timeout_s:g} s: nothing is known of the write, if it was one"
    )


def _copy(error: ExecsafeError) -> ExecsafeError:
    """One instance each: a raised exception collects the traceback of whoever raises it."""
    return type(error)(str(error), **error.context)
