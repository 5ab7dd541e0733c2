"""Hooks below ccxt's unified methods, active only while this adapter sends or looks up an order.

Three things happen under ``create_order`` that no parameter can stop on every venue: ccxt re-sends failed
requests by option, aiohttp re-sends non-POST requests on a dropped connection, and some venues take their expiry
only as a header that ccxt never sets. All three are handled where a request is signed, per request: a context
variable carries what the order needs, so that other requests of the same exchange object are not touched.
A fourth is the reading side: ccxt turns an answer that is no answer (HTML, an empty body) into an empty list, so
look-ups listen to the bodies below it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

import attrs

from execsafe.errors import UnsupportedByVenue
from execsafe.venues._shapes import options_of

_MARK: Final = "_execsafe_hooked"
_RESENT_BY_AIOHTTP: Final = frozenset({"GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"})


@attrs.frozen(kw_only=True)
class Sending:
    """What the order being sent in this context asks of its request."""

    headers: Mapping[str, str]


_sending: ContextVar[Sending | None] = ContextVar("execsafe_sending", default=None)
_bodies: ContextVar[list[Any] | None] = ContextVar("execsafe_bodies", default=None)


@contextlib.contextmanager
def sending(headers: Mapping[str, str] | None = None) -> Iterator[None]:
    """Everything requested inside goes out at most once, with *headers* added after signing."""
    token = _sending.set(Sending(headers=dict(headers or {})))
    try:
        yield
    finally:
        _sending.reset(token)


@contextlib.contextmanager
def listening() -> Iterator[list[Any]]:
    """Collects the bodies answered inside, as parsed JSON, or as text where they were none."""
    bodies: list[Any] = []
    token = _bodies.set(bodies)
    try:
        yield bodies
    finally:
        _bodies.reset(token)


def is_hooked(exchange: Any) -> bool:
    """Whether the hooks are installed on this object."""
    return getattr(exchange, _MARK, False) is True


def hook(exchange: Any) -> bool:
    """Install the hooks on this instance, once. False where the object has no ``sign`` and ``fetch2``."""
    if is_hooked(exchange):
        return True
    fetch2, sign = getattr(exchange, "fetch2", None), getattr(exchange, "sign", None)
    if fetch2 is None or sign is None:
        return False

    async def fetch_once(path: str, *args: Any, **kwargs: Any) -> Any:
        if _sending.get() is not None:
            _forbid_retries(exchange, path)
        body = await fetch2(path, *args, **kwargs)
        bodies = _bodies.get()
        if bodies is not None:
            bodies.append(body)
        return body

    def sign_and_add(*args: Any, **kwargs: Any) -> Any:
        request = sign(*args, **kwargs)
        now = _sending.get()
        if now is None or not isinstance(request, dict):
            return request
        if str(request.get("method", "")).upper() in _RESENT_BY_AIOHTTP:
            _forbid_resends(exchange)
        if not now.headers:
            return request
        # The venues concerned sign time, path and body, not headers: adding one afterwards is safe.
        return {**request, "headers": {**(request.get("headers") or {}), **now.headers}}

    try:
        exchange.fetch2, exchange.sign = fetch_once, sign_and_add
        setattr(exchange, _MARK, True)
    except AttributeError:  # slots, frozen
        return False
    return True


class _RedactingLogger(logging.LoggerAdapter[Any]):
    """ccxt writes every request to its logger at DEBUG, with key and signature."""

    def __init__(self, logger: Any, redact: Callable[[str], str]) -> None:
        super().__init__(logger, {})
        self._redact = redact

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        try:
            text = self._redact(str(msg) % args if args else str(msg))
        except Exception:  # noqa: BLE001 - as while the interpreter shuts down; better no line than one with secrets
            return
        self.logger.log(level, "%s", text, **kwargs)


def redact_log(exchange: Any, redact: Callable[[str], str]) -> None:
    """Take the secrets out of what the exchange object logs."""
    logger = getattr(exchange, "logger", None)
    if isinstance(logger, logging.Logger):
        exchange.logger = _RedactingLogger(logger, redact)


def check_verbose(verbose: object, *, allowed: bool) -> None:
    """Refuse a value of ccxt's ``verbose`` with which it would print keys and signatures, past every log filter."""
    if verbose and not allowed:
        raise UnsupportedByVenue(
            "ccxt's verbose mode would print keys and signed requests. Turn it off, or subclass CcxtAdapter with "
            "allow_verbose = True"
        )


def _forbid_retries(exchange: Any, path: str) -> None:
    # By path and not in the parameters: some venues' bodies are lists or already signed, and there the
    # parameter would go out to the venue. ccxt looks here before it looks at the exchange-wide option.
    options = options_of(exchange)
    if isinstance(options.setdefault(path, {}), dict):
        options[path]["maxRetriesOnFailure"] = 0
    else:
        options["maxRetriesOnFailure"] = 0


def _forbid_resends(exchange: Any) -> None:
    # Done at the moment of signing, after every wait: the session that sends is the one that exists now, or a
    # new one whose first connection cannot have been dropped.
    sessions = [getattr(exchange, "session", None), *(getattr(exchange, "socks_proxy_sessions", None) or {}).values()]
    for session in sessions:
        if getattr(session, "_retry_connection", None) is True:
            session._retry_connection = False
