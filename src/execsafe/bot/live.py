"""``execsafe run``: the configured strategy at a real venue. The sandbox, unless two words say otherwise."""

from __future__ import annotations

import difflib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Final, TypeVar

import anyio
import attrs

import execsafe
from execsafe import pretrade
from execsafe.bot.anew import Again, Stop, Stoppable
from execsafe.bot.clockwatch import ClockWatch
from execsafe.bot.config import BotConfig, RiskConfig, RunConfig, credentials, key_variable
from execsafe.bot.desk import TradingDesk
from execsafe.bot.feed import Feed, SilentFeed, VenueFeed
from execsafe.bot.leftover import Leftover
from execsafe.bot.listening import Listening
from execsafe.bot.monitoring import Monitoring
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.runner import Runner, RunResult, make_strategy
from execsafe.bot.strategy import Strategy
from execsafe.bot.waiting import CHECK_THE_KEY
from execsafe.bot.wires import Wires, forget_unpublished, signal_policy
from execsafe.buses import ManagedBus
from execsafe.core.safety import is_auth
from execsafe.model.instrument import is_contract
from execsafe.observe import log_events

T = TypeVar("T")

_BINANCE_FUTURES: Final = "fapiPrivateV2"
_STOPS: Final = (signal.SIGINT, signal.SIGTERM)


def make_exchange(config: BotConfig) -> Any:
    """The ccxt exchange that is meant, in its sandbox unless live trading was said.

    Raises:
        InvalidInput: ccxt has none of that name, it has no sandbox for these symbols, or a credential that it needs is
            missing.
    """
    import ccxt.async_support as ccxt

    name = _exchange_name(config)
    keys = credentials(config.venue)
    exchange = getattr(ccxt, name)({**keys, "options": dict(config.venue.options), "enableRateLimit": True})
    missing = [need for need, needed in exchange.requiredCredentials.items() if needed and need not in keys]
    if missing:
        raise execsafe.InvalidInput(f"{name} needs {', '.join(missing)}: {_where_from(config, missing)}")
    if config.venue.sandbox:
        _enter_sandbox(exchange, config)
    return exchange


def _where_from(config: BotConfig, missing: Sequence[str]) -> str:
    variables = {need: key_variable(config.venue, need) for need in missing}
    unknown = sorted(need for need, variable in variables.items() if not variable)
    if unknown:
        return f"the bot has no variable for {', '.join(unknown)}"
    return f"set {' and '.join(variables.values())} in the environment"


def _enter_sandbox(exchange: Any, config: BotConfig) -> None:
    name = config.venue.exchange
    try:
        exchange.set_sandbox_mode(True)
    except Exception as error:  # noqa: BLE001 - ccxt says it in many ways
        why = type(error).__name__
        raise execsafe.InvalidInput(f"{name} has no sandbox ({why}); it can only be run live") from None
    if _BINANCE_FUTURES in exchange.urls["api"] and any(map(is_contract, config.strategy.symbols)):
        # The addresses are still there, so that nothing is refused before the first request is signed.
        try:
            exchange.sign("positionRisk", _BINANCE_FUTURES)
        except Exception as error:  # noqa: BLE001 - ccxt's own error, which is not imported here
            raise execsafe.InvalidInput(
                f"{name} has no sandbox for contracts any more (ccxt: {type(error).__name__}): try another venue's "
                "sandbox, such as bybit's; spot is not concerned"
            ) from None


def _exchange_name(config: BotConfig) -> str:
    import ccxt.async_support as ccxt

    name = config.venue.exchange
    if name not in ccxt.exchanges:
        near = difflib.get_close_matches(name, ccxt.exchanges, n=1)
        raise execsafe.InvalidInput(f"ccxt has no exchange {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    return name


def check(config: BotConfig, *, decides: bool = True) -> Strategy:
    """Find what is wrong without asking anybody: the strategy, the exchange's name, the figures, the store's folder.

    *decides*: it is meant to trade, and so the bus counts as well.

    Raises:
        InvalidInput: it says what. Nothing was done.
    """
    strategy = make_strategy(config.strategy)
    _exchange_name(config)
    desk_policy(config, strategy)
    store_of(config)
    if decides:
        check_bus(config, strategy)
    return strategy


def store_of(config: BotConfig) -> execsafe.Store:
    """The store that is meant, not yet opened.

    Raises:
        InvalidInput: a malformed URL, or its folder is not there.
    """
    store = execsafe.open_store(config.run.store)
    path = getattr(store, "path", None)
    if path is not None and not path.absolute().parent.is_dir():
        raise execsafe.InvalidInput(f"there is no folder {path.absolute().parent} for the store: create it first")
    return store


def bus_of(config: BotConfig) -> ManagedBus | None:
    """The bus that is meant, not yet opened; None if there is none.

    Raises:
        InvalidInput: a malformed URL, or a bus that ends with this process.
    """
    if not config.bus.url:
        return None
    bus = execsafe.open_bus(config.bus.url)
    if isinstance(bus, execsafe.MemoryBus):
        raise execsafe.InvalidInput("a bus in memory reaches no other program: give a redis:// URL")
    return bus


def desk_policy(config: BotConfig, strategy: Strategy) -> DeskPolicy:
    """The desk's thresholds from the configuration; all others are the defaults of their parts."""
    risk, run = config.risk, config.run
    return DeskPolicy(
        notional=risk.position_notional,
        leverage=risk.leverage,
        positions_max=risk.positions_max,
        entry_slippage_bps=Decimal(risk.slippage_bps),
        account=config.venue.account,
        stop_positions=strategy.protects,
        signals=signal_policy(config.bus, config.strategy.symbols, _signals(run)),
        reconcile=_keyed(lambda: execsafe.ReconcilePolicy(interval_s=run.reconcile_s), interval_s="reconcile_s"),
        pretrade=_pretrade(risk),
        protection=_protection(risk, run),
    )


def _signals(run: RunConfig) -> execsafe.SignalPolicy:
    return _keyed(
        lambda: execsafe.SignalPolicy(mode=run.mode, max_age_s=run.signal_age_max_s), max_age_s="signal_age_max_s"
    )


def _protection(risk: RiskConfig, run: RunConfig) -> execsafe.ProtectionPolicy:
    alert_s = min(execsafe.ProtectionPolicy().alert_after_s, risk.unprotected_s / 2)  # before it is too late
    return _keyed(
        lambda: execsafe.ProtectionPolicy(
            alert_after_s=alert_s, deadline_s=risk.unprotected_s, interval_s=run.protect_s
        ),
        alert_after_s="unprotected_s",
        deadline_s="unprotected_s",
        interval_s="protect_s",
    )


def _pretrade(risk: RiskConfig) -> execsafe.PreTradePolicy:
    widest = execsafe.Bps(risk.spread_max_bps)
    spread = _keyed(
        lambda: pretrade.SpreadGuard(warn=min(widest, execsafe.Bps(10)), block=widest), block="spread_max_bps"
    )
    limits = _keyed(
        lambda: pretrade.ExposureLimits(max_gross_notional=risk.gross_notional_max), limit="gross_notional_max"
    )
    return execsafe.PreTradePolicy(spread=spread, limits=limits)


def _keyed(make: Callable[[], T], **keys: str) -> T:
    """What *make* makes of the file's figures. A refusal names the *keys* of the file, not the part's own words.

    Raises:
        InvalidInput: one of the figures cannot be.
    """
    try:
        return make()
    except execsafe.InvalidInput as error:
        figure, _, rest = str(error).partition(" ")
        told = f"{keys[figure]} {rest}" if figure in keys else f"{' or '.join(keys.values())}: {error}"
        raise execsafe.InvalidInput(told) from None


def check_bus(config: BotConfig, strategy: Strategy) -> None:
    """Find out whether signals would come, and be protected when they are opened.

    Raises:
        InvalidInput: it says what is in the way.
    """
    bus_of(config)
    listens = bool(config.bus.url and config.bus.signals)
    if isinstance(strategy, Listening) and not listens:
        raise execsafe.InvalidInput(
            "the strategy 'signals' opens what comes over a bus: give [bus] a url, or set EXECSAFE_BUS"
        )
    if listens and not strategy.protects:
        raise execsafe.InvalidInput(
            f"the strategy {config.strategy.name!r} has no stops, and positions that signals open need them: set"
            ' signals = "" under [bus], and let a bot of its own open them'
        )


async def run(config: BotConfig, *, exchange: Any = None, listeners: Sequence[execsafe.Listener] = ()) -> RunResult:
    """Trade until a signal ends it (SIGINT, SIGTERM); a second one ends it at once.

    A store that fails half way through a durable write (a disk that is full) is opened anew, with everything that was
    read of it.

    Raises:
        ExecsafeError: it could not be started. Nothing was sent.
    """
    strategy = check(config)
    exchange = make_exchange(config) if exchange is None else exchange
    stop, results, clock = Stop(), Counter[str](), execsafe.SystemClock()
    monitoring = Monitoring(config.run, protects=strategy.protects, clock=clock)

    def new_desk() -> TradingDesk:
        return _desk(config, strategy, exchange, (*monitoring.listeners, *listeners), clock=clock)

    async def once(is_first: bool) -> RunResult:
        async with _bus(config) as bus:
            desk = first if is_first else new_desk()
            desk.beside.append(again.note_begun)
            runner = _runner(config, desk, exchange, bus, monitoring)
            stop.follow(runner)
            try:
                return await runner.run(flat=config.run.stop == "flat", stop_timeout_s=config.run.stop_timeout_s)
            finally:
                results.update(runner.results)

    again = Again(once, stop, failed=monitoring.note_store_failed)
    try:
        first = new_desk()
        _feed(config, strategy, exchange, clock)  # refuses candles that the venue does not have
        with monitoring.serving():
            await _reach(first)  # before signals are listened to: until then one ends the process at once
            result = await _until_stopped(again.until_it_ends, stop, beside=monitoring.keep_looking)
            return attrs.evolve(result, results=results)
    finally:
        with anyio.CancelScope(shield=True):
            await exchange.close()


async def resolve(config: BotConfig, *, exchange: Any = None) -> Leftover:
    """Settle what an earlier run left, decide nothing new, and say what is left.

    Raises:
        ExecsafeError: store or venue cannot be asked.
    """
    strategy = check(config, decides=False)
    exchange = make_exchange(config) if exchange is None else exchange
    try:
        desk = _desk(config, strategy, exchange, (log_events(),))
        await _reach(desk)
        async with desk.running(decides=False):
            return await desk.stop(flat=False, timeout_s=config.run.stop_timeout_s)
    finally:
        with anyio.CancelScope(shield=True):
            await exchange.close()


def _desk(
    config: BotConfig,
    strategy: Strategy,
    exchange: Any,
    listeners: Sequence[execsafe.Listener],
    *,
    clock: execsafe.Clock | None = None,
) -> TradingDesk:
    adapter = execsafe.CcxtAdapter(exchange)
    clock = execsafe.SystemClock() if clock is None else clock
    watch = ClockWatch(clock, bound_s=adapter.profile.clock_skew_s)
    desk = TradingDesk(
        adapter,
        store_of(config),
        desk_policy(config, strategy),
        symbols=config.strategy.symbols,
        checks=(watch,),
        listeners=listeners,
        clock=clock,
    )
    desk.beside.append(watch.run)
    return desk


def _runner(
    config: BotConfig, desk: TradingDesk, exchange: Any, bus: ManagedBus | None, monitoring: Monitoring
) -> Runner:
    """A run of the strategy, which begins with an empty memory."""
    strategy = make_strategy(config.strategy)
    forget_unpublished(desk, config.bus)
    wires = None if bus is None else Wires(bus, config.bus, desk, group=config.group)
    monitoring.watch(desk, wires)
    feed = _feed(config, strategy, exchange, desk.clock)
    return Runner(desk, strategy, feed, beside=None if wires is None else wires.listen)


@asynccontextmanager
async def _bus(config: BotConfig) -> AsyncIterator[ManagedBus | None]:
    """The bus that is meant, closed in the end; whoever uses it opens it."""
    bus = bus_of(config)
    try:
        yield bus
    finally:
        if bus is not None:
            with anyio.CancelScope(shield=True):
                await bus.aclose()


def _feed(config: BotConfig, strategy: Strategy, exchange: Any, clock: execsafe.Clock) -> Feed:
    if isinstance(strategy, Listening):
        return SilentFeed()
    return VenueFeed(
        exchange,
        config.strategy.symbols,
        timeframe=config.strategy.candle,
        fresh_s=config.run.signal_age_max_s,
        clock=clock,
    )


async def _reach(desk: TradingDesk) -> None:
    """Read the rules of all symbols before anything else, which the desk then has at hand; see that the key works.

    A desk would wait for a key that is refused, and look after what it holds. Who has just started it wants to know.

    Raises:
        ExecsafeError: the venue cannot be asked, or refuses the key. Nothing was done.
    """
    try:
        for symbol in desk.symbols:
            await desk.adapter.prepare(symbol)
    except execsafe.ExecsafeError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the client raises: it could not be asked
        facts = desk.adapter.judge(error, execsafe.Operation.LOOK_UP).facts
        raise execsafe.VenueUnavailable(
            f"{desk.adapter.venue_name} could not be asked at the start, and nothing was done ({facts.kind}: "
            f"{facts.message})"
        ) from None
    reading = await desk.reader.balances()
    if isinstance(reading, execsafe.Unavailable) and is_auth(reading.error):
        raise execsafe.VenueUnavailable(
            f"the venue refuses the key ({reading.error.kind}: {reading.error.message}): {CHECK_THE_KEY}"
        )


async def _until_stopped(
    run: Callable[[], Awaitable[RunResult]], stop: Stop, *, beside: Callable[[], Coroutine[Any, Any, None]]
) -> RunResult:
    """What *run* comes to, ended in good order by a signal; *beside* goes on meanwhile."""
    came: list[RunResult | Exception] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_on_signal, stop)
        tasks.start_soon(beside)
        try:
            came.append(await run())
        except Exception as error:  # noqa: BLE001 - raised below, without the group around it
            came.append(error)
        tasks.cancel_scope.cancel()
    [end] = came
    if isinstance(end, Exception):
        raise end
    return end


async def stop_on_signal(runner: Stoppable) -> None:
    """End *runner* in good order at the first signal; the second one ends the process."""
    with anyio.open_signal_receiver(*_STOPS) as received:
        async for _ in received:
            break  # from here on a signal means what it usually does: at once
    runner.request_stop()
