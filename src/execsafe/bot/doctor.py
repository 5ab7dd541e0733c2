"""``execsafe doctor``: everything that can be checked before money is at stake, each with what to do about it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any, Final

import anyio
import attrs

import execsafe
from execsafe.bot import journal, reset
from execsafe.bot.config import BotConfig
from execsafe.bot.live import bus_of, check_bus, make_exchange, store_of
from execsafe.bot.runner import make_strategy
from execsafe.bot.waiting import CHECK_THE_KEY
from execsafe.core.safety import SafetyRecord

_TIMEOUT_S: Final = 20.0


@attrs.frozen(kw_only=True)
class Finding:
    """One thing looked at. ``is_fine`` None: worth knowing, neither good nor bad."""

    what: str
    says: str
    is_fine: bool | None = True


async def examine(config: BotConfig, *, exchange: Any = None, clock: execsafe.Clock | None = None) -> list[Finding]:
    """Look at the program, the store, the venue and the account. Sends no order and changes nothing."""
    clock = execsafe.SystemClock() if clock is None else clock
    findings = [*_program(), *_meaning(config)]
    try:
        check_bus(config, make_strategy(config.strategy))
        findings.append(Finding(what="strategy", says=config.strategy.name))
    except execsafe.ExecsafeError as error:
        findings.append(Finding(what="strategy", says=str(error), is_fine=False))
    findings += await _store(config, clock)
    findings += await _bus(config)
    try:
        exchange = make_exchange(config) if exchange is None else exchange
    except execsafe.ExecsafeError as error:
        return [*findings, Finding(what="venue", says=str(error), is_fine=False)]
    try:
        adapter = execsafe.CcxtAdapter(exchange)
        findings += [finding async for finding in _venue(config, adapter, exchange, clock)]
    except execsafe.ExecsafeError as error:
        findings.append(Finding(what="venue", says=str(error), is_fine=False))
    finally:
        with anyio.CancelScope(shield=True):
            await exchange.close()
    return findings


def _program() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [
        Finding(what="program", says=f"execsafe {execsafe.__version__}, Python {version}"),
        Finding(what="ccxt", says=metadata.version("ccxt")),
    ]


def _meaning(config: BotConfig) -> list[Finding]:
    if config.venue.live:
        return [Finding(what="money", says="LIVE: orders are real", is_fine=None)]
    return [Finding(what="money", says="sandbox: no real money")]


async def _store(config: BotConfig, clock: execsafe.Clock) -> list[Finding]:
    """The store as it is: a doctor that created it would say "ok" to a misspelt name."""
    try:
        store = store_of(config)
        path = getattr(store, "path", None)
        if path is not None and not path.exists():
            return [_not_there(f"{path} is not there yet")]
        if store.durability is execsafe.Durability.NONE:
            return [_kept(store, "it is in memory")]
        store = journal.open_existing(config.run.store)
        try:
            await store.open()
            open_records = await execsafe.IntentRegistry(store).open_records()
            state = await reset.stored_state(store)
        finally:
            await store.aclose()
    except execsafe.ExecsafeError as error:
        if journal.is_missing(error) and journal.may_be_created(config.run.store):
            return [_not_there("the server answers, and has no such store yet")]
        return [Finding(what="store", says=f"{type(error).__name__}: {error}", is_fine=False)]
    return [_kept(store, f"{len(open_records)} open intents"), *_trading(state, clock.now_ms())]


def _kept(store: execsafe.Store, what: str) -> Finding:
    survives = store.durability is not execsafe.Durability.NONE
    says = f"survives {store.durability if survives else 'nothing'}; {what}"
    return Finding(what="store", says=says, is_fine=survives)


def _not_there(says: str) -> Finding:
    return Finding(what="store", says=f"{says}; a run creates it", is_fine=None)


def _trading(state: SafetyRecord | None, now_ms: int) -> list[Finding]:
    """What an earlier run left that holds entries back."""
    if state is None or not (lines := reset.lines(state, now_ms=now_ms)):
        return []
    if reset.needs_a_person(state):
        says = f"{'; '.join(lines)}. No entry passes until you have looked, and said so: {reset.command()}"
        return [Finding(what="trading", says=says, is_fine=False)]
    return [Finding(what="trading", says="; ".join(lines), is_fine=None)]


async def _bus(config: BotConfig) -> list[Finding]:
    try:
        bus = bus_of(config)
        if bus is None:
            return []
        try:
            await bus.open()
            depth = await bus.depth(config.bus.signals, config.group) if config.bus.signals else None
        finally:
            await bus.aclose()
    except execsafe.ExecsafeError as error:
        return [Finding(what="bus", says=f"{type(error).__name__}: {error}", is_fine=False)]
    if depth is None:
        return [Finding(what="bus", says="it answers; no signals are read from it")]
    return [Finding(what="bus", says=f"it answers; {depth.waiting} signals wait, {depth.pending} are under way")]


async def _venue(
    config: BotConfig, adapter: execsafe.CcxtAdapter, exchange: Any, clock: execsafe.Clock
) -> AsyncIterator[Finding]:
    profile = adapter.profile
    proof = "an order in doubt can be proven absent" if profile.expiry is not execsafe.Expiry.NONE else (
        "a lost order can never be proven absent: doubts stay open until it is found"
    )  # fmt: skip
    fine = profile.expiry is not execsafe.Expiry.NONE
    yield Finding(what="profile", says=f"{profile.name}: {proof}", is_fine=fine or None)
    for symbol in config.strategy.symbols:
        yield await _symbol(adapter, symbol)
    yield await _skew(adapter, exchange, clock)
    yield await _account(adapter, clock)


async def _symbol(adapter: execsafe.CcxtAdapter, symbol: str) -> Finding:
    what = f"symbol {symbol}"
    try:
        with anyio.fail_after(_TIMEOUT_S):
            instrument = await adapter.prepare(symbol)
    except Exception as error:  # noqa: BLE001 - shown, redacted
        return Finding(what=what, says=_words(adapter, error), is_fine=False)
    step, least = instrument.step_size, instrument.min_notional or instrument.min_quantity
    return Finding(what=what, says=f"step {step}, minimum {least}, tick {instrument.tick_size}")


async def _skew(adapter: execsafe.CcxtAdapter, exchange: Any, clock: execsafe.Clock) -> Finding:
    if not callable(getattr(exchange, "fetch_time", None)) or not (exchange.has or {}).get("fetchTime"):
        return Finding(what="clock", says="this venue does not tell its time", is_fine=None)
    try:
        with anyio.fail_after(_TIMEOUT_S):
            before_ms = clock.now_ms()
            theirs_ms = await exchange.fetch_time()
            after_ms = clock.now_ms()
    except Exception as error:  # noqa: BLE001 - shown, redacted
        return Finding(what="clock", says=_words(adapter, error), is_fine=False)
    skew_s = abs(theirs_ms - (before_ms + after_ms) / 2) / 1000
    allowed_s = adapter.profile.clock_skew_s + (after_ms - before_ms) / 2000
    says = f"{skew_s:.2f} s apart, {adapter.profile.clock_skew_s:g} s are assumed at most"
    return Finding(what="clock", says=says, is_fine=skew_s <= allowed_s)


async def _account(adapter: execsafe.CcxtAdapter, clock: execsafe.Clock) -> Finding:
    reading = await execsafe.VenueReader(adapter, clock=clock, request_timeout_s=_TIMEOUT_S).balances()
    if isinstance(reading, execsafe.Unavailable):
        says = f"{reading.error.kind}: {reading.error.message}; {CHECK_THE_KEY}"
        return Finding(what="account", says=says, is_fine=False)
    held = {name: balance.total for name, balance in reading.value.items() if balance.total > 0}
    return Finding(what="account", says=", ".join(f"{v} {n}" for n, v in sorted(held.items())[:6]) or "empty")


def _words(adapter: execsafe.CcxtAdapter, error: Exception) -> str:
    return adapter.redact(f"{type(error).__name__}: {error}")[:300]
