"""Keys, secrets and signatures stay in, whatever happens on the wire (guarantee 16, bar 7)."""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus

import ccxt
import pytest

import execsafe
from execsafe.core.redaction import MARK, redact
from execsafe.errors import OutcomeUnknown, UnsupportedByVenue
from execsafe.testing._orders import RejectReason
from execsafe.testing.faults import APPLIES, Fault, Strike
from execsafe.testing.http._face import Answer, Refusal
from wrap.rig import MARKETABLE, Rig, a_rig, at_both_venues, at_once, buy, outcome, quick

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(16)]

KEY, SECRET = "canary-key/+=0123456789abcdef", "canary-secret&?=fedcba9876543210"
KEYS = {KEY: SECRET}


def spellings(secret: str) -> set[str]:
    raw = secret.encode()
    in_base64 = base64.b64encode(raw).decode().rstrip("=")
    found = {secret, secret[:20], quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
    return found | {raw.hex(), raw.hex().upper(), in_base64, in_base64.replace("+", "-").replace("/", "_")}


CANARIES = spellings(KEY) | spellings(SECRET)


class Wire:
    """What must not be seen: the canaries, and every signature that went over the wire."""

    def __init__(self) -> None:
        self.signatures: set[str] = set()

    def watch(self, rig: Rig) -> None:
        for face in set(rig.server._faces.values()):
            face.read, read = self._reading(face.read), face.read
            assert read

    def _reading(self, read: Any) -> Any:
        def reading(request: Any) -> Any:
            self.signatures.update(re.findall(r"signature=([0-9a-f]{64})", request.query + request.body))
            self.signatures.update(filter(None, [request.headers.get("x-bapi-sign")]))
            return read(request)

        return reading

    def found_in(self, text: str) -> list[str]:
        signatures = self.signatures.intersection(re.findall("[0-9a-f]{64}", text))
        return [*signatures, *(secret for secret in CANARIES if secret in text)]


class Log(logging.Handler):
    """Everything that is logged anywhere, as a formatter would print it."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record) + repr(record.__dict__))


@pytest.fixture
def log() -> Iterator[Log]:
    """The root logger at DEBUG, and those of execsafe, ccxt and aiohttp with it."""
    handler, root = Log(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def chain_of(error: BaseException | None, seen: list[BaseException] | None = None) -> list[BaseException]:
    """The exception and all that hangs on it, suppressed contexts too."""
    seen = [] if seen is None else seen
    if error is not None and all(error is not other for other in seen):
        seen.append(error)
        for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
            chain_of(other, seen)
    return seen


def frames_of(tb: TracebackType | None) -> Iterator[str]:
    while tb is not None:
        # This module's own frames may know the canaries.
        if tb.tb_frame.f_code.co_filename != __file__:
            yield from (repr(value) for value in tb.tb_frame.f_locals.values())
        tb = tb.tb_next


def texts_of(error: BaseException) -> Iterator[str]:
    """All that a log line, a traceback with its local variables or an error tracker could take from it."""
    for one in chain_of(error):
        yield f"{one!r} {one} {one.args!r} {getattr(one, '__notes__', '')} {vars(one)!r}"
        yield from frames_of(one.__traceback__)


def leaks_of(wire: Wire, rig: Rig, errors: list[BaseException]) -> Iterator[tuple[str, Any]]:
    for error in errors:
        for text in texts_of(error):
            if found := wire.found_in(text):
                yield type(error).__name__, (found[0], text[:300])
    for event in rig.events:
        if wire.found_in(repr(event)):
            yield "event", event
    for file in rig.file.parent.iterdir():  # the database, its write-ahead log, its locks
        if found := wire.found_in(file.read_bytes().decode("latin-1")):
            yield file.name, found


async def everything(rig: Rig, exchange: Any, **settings: Any) -> list[BaseException]:
    """All guarded calls, and some that pass through; the exceptions they raised."""
    guarded = await rig.guard(exchange, **settings)
    symbol, ends = rig.symbol, []
    order = await outcome(buy(guarded))
    order_id = order["id"] if isinstance(order, dict) else "99"
    for call in (
        lambda: buy(guarded, "marketable", price=MARKETABLE),
        lambda: guarded.edit_order(order_id, symbol, "limit", "buy", 0.02, 41_000),
        lambda: guarded.cancel_order(order_id, symbol),
        lambda: guarded.cancel_order("98", symbol),
        lambda: guarded.edit_order("97", symbol, "limit", "buy", 0.02, 41_000),
        lambda: guarded.fetch_order("96", symbol),
        guarded.fetch_balance,
        lambda: guarded.fetch_open_orders(symbol),
        guarded.recover,
        lambda: asyncio.wait_for(buy(guarded, "given up"), 0.05),
    ):
        ends.append(await outcome(call()))  # noqa: PERF401 - one after another
    assert not CANARIES & {repr(guarded), repr(guarded.adapter), repr(guarded.registry), repr(guarded.gateway)}
    await guarded.store.aclose()
    return [end for end in [order, *ends] if isinstance(end, BaseException)]


async def hit_by(wire: Wire, name: str, fault: Fault, operation: Any) -> list[tuple[Any, ...]]:
    async with a_rig(name, keys=KEYS) as rig:
        wire.watch(rig)
        rig.plan.script([Strike(operation, ordinal, fault) for ordinal in range(1, 4)])
        profile = quick(name, expiry_window_s=0.2, read_lag_s=0.05, clock_skew_s=0.05)
        limits = {"profile": profile, "request_timeout_s": 0.15, "patience_s": 0.5}
        errors = await everything(rig, rig.exchange(apiKey=KEY, secret=SECRET, timeout=100), **limits)
        assert errors
        return [(name, fault.value, operation.value, *leak) for leak in leaks_of(wire, rig, errors)]


@at_both_venues
async def test_no_fault_on_the_wire_brings_a_key_a_secret_or_a_signature_out(name, log):
    wire = Wire()
    faults = [(fault, operation) for fault in Fault for operation in sorted(APPLIES[fault])]
    leaks = await at_once(*(hit_by(wire, name, *fault) for fault in faults))
    assert [leak for found in leaks for leak in found] == []
    assert len(wire.signatures) > len(faults)
    assert any(line.startswith("ccxt.base.exchange POST") for line in log.lines), "requests are logged, redacted"
    assert [line[:200] for line in log.lines if wire.found_in(line)] == []


ECHOES = {
    "as they are": f"{KEY} {SECRET}",
    "url-encoded": f"apiKey={quote(KEY, safe='')}&s={quote_plus(SECRET)}",
    "base64": base64.b64encode(f"x{KEY}:{SECRET}".encode()).decode(),
    "hex": KEY.encode().hex() + " " + SECRET.encode().hex().upper(),
    "json in json": json.dumps(json.dumps({"key": KEY, "secret": SECRET})),
}


async def echoed(wire: Wire, name: str, echo: str, code: int) -> list[tuple[Any, ...]]:
    """The venue's own words repeat the credentials, in a definite reject or in an error that says nothing."""

    def refuse(*_args: Any, **_options: Any) -> None:
        body = {"code": code, "msg": echo} if name == "binance" else {"retCode": code, "retMsg": echo, "result": {}}
        raise Refusal(Answer.of(body, 400 if name == "binance" else 200), RejectReason.BAD_REQUEST)

    async with a_rig(name, keys=KEYS) as rig:
        wire.watch(rig)
        rig.venue.submit = refuse  # type: ignore[method-assign]
        profile = quick(name, expiry_window_s=0.2, read_lag_s=0.05, clock_skew_s=0.05)
        limits = {"profile": profile, "request_timeout_s": 0.2, "patience_s": 0.8, "ready": False}
        errors = await everything(rig, rig.exchange(apiKey=KEY, secret=SECRET), **limits)
        again = await outcome(buy(await rig.guard(rig.exchange(apiKey=KEY, secret=SECRET), **limits)))
        assert not isinstance(again, dict)
        return [(name, echo, *leak) for leak in leaks_of(wire, rig, [*errors, again])]


@at_both_venues
async def test_a_venue_that_echoes_the_credentials_does_not_bring_them_out_either(name, log):
    wire, codes = Wire(), {"binance": (-1102, -9_999), "bybit": (10001, 99_999)}[name]
    leaks = await at_once(*(echoed(wire, name, echo, code) for echo in ECHOES.values() for code in codes))
    assert [leak for found in leaks for leak in found] == []
    assert [line[:200] for line in log.lines if wire.found_in(line)] == []


@at_both_venues
async def test_what_is_raised_still_says_what_happened(name):
    async with a_rig(name, keys=KEYS) as rig:
        guarded = await rig.guard(rig.exchange(apiKey=KEY, secret=SECRET))
        rig.strike(Fault.REJECT_FUNDS)
        error = await outcome(buy(guarded))
        assert isinstance(error, ccxt.InsufficientFunds)
        assert re.search(r"insufficient balance|not enough", str(error))
        if name == "binance":
            unknown = await outcome(guarded.fetch_order("1", rig.symbol))
            assert "Order does not exist" in str(unknown)


@at_both_venues
async def test_notes_chains_and_arguments_that_others_attach_are_redacted_too(name):
    """As a plug-in, a proxy or a subclass of the exchange might."""
    async with a_rig(name, keys=KEYS) as rig:
        exchange = rig.exchange(apiKey=KEY, secret=SECRET)
        guarded = await rig.guard(exchange, patience_s=0.2, profile=quick(name, expiry="none"))

        async def fails(*_args: Any, **_options: Any) -> None:
            request = {"headers": {"key": exchange.apiKey}}
            try:
                raise OSError(5, f"proxy refused {exchange.secret}")
            except OSError as cause:
                error = RuntimeError(f"sent with {exchange.apiKey}", request, exchange.secret.encode())
                error.add_note(f"tried {quote(exchange.secret)}")
                raise ExceptionGroup("two of them", [error, ValueError(exchange.apiKey)]) from cause

        exchange.fetch_balance = exchange.cancel_order = exchange.edit_order = exchange.fetch_ticker = fails
        exchange.create_order = fails
        wire, symbol = Wire(), rig.symbol
        calls = (
            guarded.fetch_balance(),
            guarded.fetch_ticker(symbol),
            guarded.cancel_order("1", symbol),
            guarded.edit_order("1", symbol, "limit", "buy", 0.01, 41_000),
            buy(guarded),
        )
        errors = [await outcome(call) for call in calls]
        assert [type(error) for error in errors] == [
            ExceptionGroup,
            ExceptionGroup,
            OutcomeUnknown,
            UnsupportedByVenue,
            OutcomeUnknown,
        ]
        assert list(leaks_of(wire, rig, errors)) == []
        assert MARK in str(errors[0].exceptions[0].args[0])


# --- verbose mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, 1, "yes"])
async def test_verbose_mode_cannot_be_turned_on_through_the_guard(value, capsys):
    async with a_rig(keys=KEYS) as rig:
        guarded = await rig.guard(rig.exchange(apiKey=KEY, secret=SECRET))
        with pytest.raises(UnsupportedByVenue, match="verbose"):
            guarded.verbose = value
        assert guarded.exchange.verbose is False
        guarded.verbose = False
        await guarded.fetch_open_orders(rig.symbol)
        assert capsys.readouterr().out == ""


async def test_while_the_wrapped_exchange_is_verbose_nothing_but_a_cancel_is_sent(capsys):
    async with a_rig(keys=KEYS) as rig:
        guarded = await rig.guard(rig.exchange(apiKey=KEY, secret=SECRET))
        order = await buy(guarded)
        guarded.exchange.verbose = True
        requests = len(rig.server.requests)
        for call in (
            lambda: guarded.fetch_open_orders(rig.symbol),
            guarded.fetchBalance,
            lambda: guarded.fetch_order(order["id"], rig.symbol),
            guarded.privateGetAccount,
            lambda: buy(guarded, "another"),
        ):
            with pytest.raises(UnsupportedByVenue, match="verbose"):
                await call()
        assert len(rig.server.requests) == requests
        assert capsys.readouterr().out == ""
        assert guarded.amount_to_precision(rig.symbol, 0.01) == "0.01"  # asks nobody
        guarded.exchange.verbose = False
        assert [found["id"] for found in await guarded.fetch_open_orders(rig.symbol)] == [order["id"]]


async def test_who_allows_it_may_have_it(monkeypatch):
    async with a_rig(keys=KEYS) as rig:
        guarded = await rig.guard(rig.exchange(apiKey=KEY, secret=SECRET))
        monkeypatch.setattr(type(guarded.adapter), "allow_verbose", True)
        guarded.verbose = True
        assert guarded.exchange.verbose is True
        guarded.verbose = False


# --- the library's own words -----------------------------------------------------------------------------------------

SOURCE = Path(execsafe.__file__).parent


def words_of(node: ast.expr) -> str | None:
    """A text in the source, with a word where a value would be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "value" for part in node.values)
    return None


def raised_texts() -> Iterator[tuple[str, int, str]]:
    """The message of every exception that is made in the library."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for call in ast.walk(node.exc) if isinstance(node, ast.Raise) and node.exc is not None else ():
                if isinstance(call, ast.Call) and call.args and (text := words_of(call.args[0])):
                    yield path.relative_to(SOURCE).as_posix(), node.lineno, text


def test_the_librarys_own_messages_survive_the_redaction():
    texts = list(raised_texts())
    assert len(texts) > 200
    assert [found for found in texts if redact(found[2]) != found[2]] == []
