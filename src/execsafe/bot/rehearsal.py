"""``execsafe run --rehearse``: the configured strategy at a simulated venue. No key, no network, no money.

The real ccxt client talks to it over HTTP on loopback, and much goes wrong on the way. A candle lasts a moment, so the
times are the demo's; what is at stake, and the strategy, are the configuration's.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import anyio
import attrs

import execsafe
from execsafe import pretrade
from execsafe.bot import guarded, live, scenes, stage
from execsafe.bot.candles import RECORDED, Candle
from execsafe.bot.config import BotConfig
from execsafe.bot.desk import TradingDesk
from execsafe.bot.feed import RecordedFeed, interval_ms
from execsafe.bot.listening import Listening
from execsafe.bot.moments import Moment
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.runner import Runner, RunResult
from execsafe.bot.screen import Progress, Watch
from execsafe.model.instrument import is_contract
from execsafe.model.values import check_count
from execsafe.testing.faults import Fault, FaultPlan
from execsafe.testing.http import VenueServer
from execsafe.testing.venue import Market, SimVenue

CANDLE_S: Final = 0.25
"""How long a candle lasts."""
_SHIFT: Final = 24  # candles between two symbols that are made of the same recording: other prices at every moment
_START_TIMEOUT_S: Final = 20.0
_FRESH_S_MIN: Final = 2.0  # an entry that is refused for a moment gets through in less
_STANDS_IN: Final[Mapping[bool, str]] = {True: "binanceusdm", False: "binance"}  # by: contracts
_FACES: Final[Mapping[bool, Sequence[str]]] = {True: ("binanceusdm", "bybit"), False: ("binance", "mexc")}
_FEE: Final = Decimal("0.0005")


@attrs.frozen(kw_only=True)
class RehearsalPolicy:
    """How long (candles), whether things go wrong, and the seed of what does."""

    candles: int = 240
    faults: bool = True
    seed: int = 7

    def __attrs_post_init__(self) -> None:
        """Refuse to play nothing."""
        check_count(self.candles, "candles")


@attrs.frozen(kw_only=True)
class Difference:
    """A symbol of which the venue's ledger and the bot's book say something else at the end."""

    symbol: str
    venue: Decimal
    book: Decimal


@attrs.frozen(kw_only=True)
class Rehearsal:
    """What came of it.

    Attributes:
        venue: which venue was played.
        run: the bot's own result.
        orders: how many orders the venue accepted.
        fired: how often each fault had its effect.
        differences: between the venue's hidden ledger and the bot's book.
        bare_ms: the longest that a position was without a stop at the venue; None if the strategy wants none.
    """

    venue: str
    run: RunResult
    orders: int
    fired: Mapping[Fault, int]
    differences: tuple[Difference, ...]
    bare_ms: int | None

    @property
    def is_sound(self) -> bool:
        """Whether nothing is in doubt, and the bot knows what it owns."""
        return not self.differences and not self.run.leftover.in_doubt


def venue_of(config: BotConfig) -> str:
    """Which simulated venue is played: the configured one, or one of its kind that stands in.

    Raises:
        InvalidInput: spot and contracts together.
    """
    kinds = {is_contract(symbol) for symbol in config.strategy.symbols}
    if len(kinds) > 1:
        raise execsafe.InvalidInput("a rehearsal trades spot or contracts, not both")
    has_contracts = kinds.pop()
    return config.venue.exchange if config.venue.exchange in _FACES[has_contracts] else _STANDS_IN[has_contracts]


async def rehearse(
    config: BotConfig,
    policy: RehearsalPolicy,
    *,
    listeners: Sequence[execsafe.Listener] = (),
    watch: Watch = lambda _progress: None,
) -> Rehearsal:
    """Play it; *watch* is told of every candle. A signal (SIGINT, SIGTERM) ends it early, in good order.

    Raises:
        InvalidInput: the configuration cannot be used, or its strategy needs more past candles than there are.
    """
    strategy = live.check(config)
    if isinstance(strategy, Listening):
        raise execsafe.InvalidInput("a rehearsal has no signals from outside: rehearse with another strategy")
    name = venue_of(config)
    markets = {symbol: _market(symbol) for symbol in config.strategy.symbols}
    candles = _candles(markets, strategy.warm_up + policy.candles)
    venue = SimVenue(
        list(markets.values()),
        prices={symbol: own[strategy.warm_up].close for symbol, own in candles.items()},
        read_lag_ms=round(stage.READ_LAG_S * 1000),
        account_lag_ms=round(stage.READ_LAG_S * 1000),
        rejects_passed_stops=name == "binanceusdm",
    )
    plan = FaultPlan(random.Random(policy.seed).getrandbits(32), _rates(strategy.protects) if policy.faults else {})  # noqa: S311
    async with VenueServer({name: venue}, client_timeout_ms=round(stage.TIMEOUT_S * 1000)) as server:
        exchange = await _client(server, name)
        server.plans[name] = plan

        def played(done: int) -> None:
            accepted = len(venue.ledger.accepted())
            watch(Progress(name=name, done=done, total=policy.candles, orders_accepted=accepted))

        feed = _PlayedFeed(server, venue, candles, interval_ms(config.strategy.candle), played)
        with tempfile.TemporaryDirectory(prefix="execsafe-") as folder:
            desk = TradingDesk(
                guarded.QuickAdapter(exchange, profile=stage.profile(name)),
                execsafe.open_store(f"sqlite:///{Path(folder) / 'rehearsal.db'}"),
                _desk_policy(config, protects=strategy.protects),
                symbols=config.strategy.symbols,
                listeners=listeners,
            )
            result = await _run(Runner(desk, strategy, feed), config)
        await anyio.sleep(stage.WINDOW_S + stage.SKEW_S)  # what is still under way lands now, or never
        server.advance()
    gaps = [gap for symbol in markets for gap in venue.ledger.protection_gaps(symbol)] if strategy.protects else None
    return Rehearsal(
        venue=name,
        run=result,
        orders=len(venue.ledger.accepted()),
        fired=Counter(plan.fired),
        differences=tuple(_differences(venue, result, markets)),
        bare_ms=None if gaps is None else max((gap.to_ms - gap.from_ms for gap in gaps), default=0),
    )


def opening(config: BotConfig, policy: RehearsalPolicy) -> list[str]:
    """What is about to be played, for people."""
    played = venue_of(config)
    stand_in = "" if played == config.venue.exchange else f" (it stands in for {config.venue.exchange})"
    wrong = "much goes wrong on the way" if policy.faults else "nothing goes wrong"
    return [
        f"Rehearsal: {config.strategy.name} at a simulated {played}{stand_in}, through the real ccxt client; {wrong}.",
        "Nothing is real: the prices are recorded ones of January 2018 under the names of your symbols, a candle lasts "
        f"{CANDLE_S:g} s, the journal is thrown away. What is at stake is as configured, times are short.",
    ]


def closing(result: Rehearsal) -> list[str]:
    """What came of it, for people."""
    told = [f"{result.orders} orders accepted by the venue; {sum(result.fired.values())} times something went wrong."]
    if result.bare_ms is not None:
        told.append(f"Longest time that a position was without a stop at the venue: {result.bare_ms / 1000:.1f} s.")
    told += [f"{d.symbol}: the venue has {d.venue:f}, the bot knows of {d.book:f}." for d in result.differences]
    if not result.differences:
        told.append("What the bot knows to own is what the venue's own ledger says.")
    return told


# --- the venue ---------------------------------------------------------------------------------------------


def _market(symbol: str) -> Market:
    """Rules and fees that are like those of most: of what the symbol is really worth nothing is known here."""
    pair, _, settle = symbol.partition(":")
    base, _, quote = pair.partition("/")
    tick, step, least = ("0.000001", "0.001", "0.0001") if quote == "BTC" else ("0.01", "0.001", "5")
    instrument = execsafe.Instrument(
        symbol=symbol, base=base, quote=quote, tick_size=tick, step_size=step, min_quantity=step,
        max_quantity="1000000", min_notional=least,
    )  # fmt: skip
    return Market(instrument=instrument, is_linear=bool(settle), maker_fee=_FEE, taker_fee=_FEE, fee_in_base=False)


def _candles(markets: Mapping[str, Market], count: int) -> dict[str, list[Candle]]:
    """*count* candles for each symbol: those that come with the package, each symbol at another place in them."""
    made: dict[str, list[Candle]] = {}
    sources = sorted(RECORDED)
    for number, (symbol, market) in enumerate(markets.items()):
        turn, which = divmod(number, len(sources))
        scale = 1 if market.instrument.quote == "BTC" else scenes.SCALE
        made[symbol] = list(scenes.moved(sources[which], scale, turn * _SHIFT, market.instrument))
    most = min(len(own) for own in made.values())
    if most < count:
        raise execsafe.InvalidInput(
            f"this strategy and these symbols can be rehearsed for {max(0, most - count)} candles only"
        )
    return {symbol: own[:count] for symbol, own in made.items()}


def _rates(protects: bool) -> Mapping[Fault, float]:
    return scenes.STOP_RATES if protects else scenes.RATES


async def _client(server: VenueServer, name: str) -> Any:
    """ccxt's, ready: its start meets no faults, and takes the time that a busy machine needs."""
    exchange = server.exchange(
        name, timeout=round(_START_TIMEOUT_S * 1000), options={"recvWindow": round(stage.WINDOW_S * 1000)}
    )
    await exchange.load_markets()
    exchange.timeout = round(stage.TIMEOUT_S * 1000)
    return exchange


class _PlayedFeed:
    """Recorded candles; each moves the venue's prices before the strategy sees it. Afterwards nothing goes wrong."""

    def __init__(
        self,
        server: VenueServer,
        venue: SimVenue,
        candles: Mapping[str, Sequence[Candle]],
        length_ms: int,
        watch: Callable[[int], None],
    ) -> None:
        self._server = server
        self._venue = venue
        self._recorded = RecordedFeed(candles, interval_ms=length_ms, pause_s=CANDLE_S)
        self._watch = watch

    async def moments(self, warm_up: int) -> AsyncGenerator[Moment, None]:
        played = 0
        try:
            async with contextlib.aclosing(self._recorded.moments(warm_up)) as moments:
                async for moment in moments:
                    if not moment.is_past:
                        self._set_prices(moment)
                        played += 1
                        self._watch(played)
                    yield moment
        finally:  # also where a signal ends it early: the end is to be orderly
            for plan in self._server.plans.values():
                plan.stop()

    def _set_prices(self, moment: Moment) -> None:
        now_ms = self._server.advance()
        for symbol, candle in moment.candles.items():
            self._venue.set_price(symbol, candle.close, now_ms)


# --- the bot -----------------------------------------------------------------------------------------------


def _desk_policy(config: BotConfig, *, protects: bool) -> DeskPolicy:
    """What is at stake is the configuration's; times, and what depends on a real book, are the demo's."""
    risk, run = config.risk, config.run
    candles = run.signal_age_max_s * 1000 / interval_ms(config.strategy.candle)  # for so many a decision is fresh
    base = guarded.WAVES if protects else guarded.PAIRS
    return attrs.evolve(
        base,
        notional=risk.position_notional,
        leverage=risk.leverage,
        positions_max=risk.positions_max,
        entry_slippage_bps=Decimal(risk.slippage_bps),
        account=config.venue.account,
        signals=execsafe.SignalPolicy(mode=run.mode, max_age_s=max(_FRESH_S_MIN, candles * CANDLE_S)),
        pretrade=attrs.evolve(
            base.pretrade, limits=pretrade.ExposureLimits(max_gross_notional=risk.gross_notional_max)
        ),
    )


async def _run(runner: Runner, config: BotConfig) -> RunResult:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(live.stop_on_signal, runner)
        result = await runner.run(flat=config.run.stop == "flat", stop_timeout_s=config.run.stop_timeout_s)
        tasks.cancel_scope.cancel()
    return result


def _differences(venue: SimVenue, result: RunResult, symbols: Mapping[str, Market]) -> list[Difference]:
    booked = {held.symbol: held.side.sign * held.quantity for held in result.leftover.positions}
    both = [(symbol, venue.ledger.position(symbol), booked.get(symbol, Decimal(0))) for symbol in symbols]
    return [Difference(symbol=symbol, venue=owned, book=known) for symbol, owned, known in both if owned != known]
