"""``execsafe demo``: one strategy, two bots, the same faults, and the venue's ledger as the judge.

Each bot trades at a simulated venue of its own, through the real ccxt client over HTTP on loopback. Prices,
signals, repeated deliveries and faults are the same for both and follow from the seed: the n-th create request
of a signal meets the same fault at either venue, whatever went on before.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

import anyio
import attrs

import execsafe
from execsafe.bot import candles, pairs, verdict
from execsafe.bot.guarded import GuardedBot
from execsafe.bot.journal import all_records
from execsafe.bot.naive import NaiveBot
from execsafe.bot.pairs import Signal
from execsafe.bot.screen import Progress, Watch
from execsafe.testing.faults import Fault, FaultPlan
from execsafe.testing.http import VenueServer
from execsafe.testing.venue import Market, SimVenue

# The demo's clockwork. The same figures configure the simulated venue and the profile, so what the bot takes to
# be true of the venue is true; they are short so that an order in doubt is settled in about a second.
WINDOW_S: Final = 1.0  # for how long after signing the venue accepts a request (recvWindow)
TIMEOUT_S: Final = 0.4  # when the ccxt client gives up waiting
READ_LAG_S: Final = 0.08  # how old the state is that the venue's views show
SKEW_S: Final = 0.05
LOOK_INTERVAL_S: Final = 0.15

INSTRUMENTS: Final[Mapping[str, execsafe.Instrument]] = {
    "ETH/BTC": execsafe.Instrument(
        symbol="ETH/BTC", base="ETH", quote="BTC", tick_size="0.000001", step_size="0.001",
        min_quantity="0.001", max_quantity="100000", min_notional="0.0001",
    ),
    "LTC/BTC": execsafe.Instrument(
        symbol="LTC/BTC", base="LTC", quote="BTC", tick_size="0.000001", step_size="0.01",
        min_quantity="0.01", max_quantity="100000", min_notional="0.0001",
    ),
}  # fmt: skip

RATES: Final[Mapping[Fault, float]] = {
    Fault.DROP_REQUEST: 0.05,
    Fault.DROP_REPLY: 0.07,
    Fault.DELAY_REQUEST: 0.04,
    Fault.LATE_ARRIVAL_AFTER_LOOK: 0.02,
    Fault.TRUNCATED_BODY: 0.03,
    Fault.RESET_CONNECTION: 0.04,
    Fault.SERVER_ERROR_ACCEPTED: 0.04,
    Fault.SERVER_ERROR_NOT_ACCEPTED: 0.03,
    Fault.EMPTY_OK: 0.03,
    Fault.RATE_LIMITED: 0.02,
    Fault.TIMESTAMP_REJECT: 0.02,
    Fault.REJECT_FUNDS: 0.02,
    Fault.PARTIAL_FILL: 0.15,
    Fault.LOOKUP_ERROR: 0.10,
}
"""How often what goes wrong. Far worse than any venue on any day, so that a minute shows what months would."""

_REPEATED_RATIO: Final = 0.25


class Bot(Protocol):
    """What the demo needs of a bot."""

    name: str

    async def handle(self, signal: Signal) -> None:
        """Carry out one delivery of a signal."""
        ...

    async def finish(self) -> None:
        """Settle what is left at the end."""
        ...


@attrs.frozen(kw_only=True)
class DemoPolicy:
    """What to run: *seed* of faults and deliveries, how many *signals* of those in the candles, *faults* or none."""

    seed: int = 7
    signals: int = 48
    faults: bool = True


@attrs.frozen(kw_only=True)
class BotResult:
    """One bot's run: the findings, the faults it met, and (execsafe only) what its events say."""

    name: str
    findings: verdict.Findings
    fired: Mapping[Fault, int]
    events: Mapping[execsafe.EventType, int] = attrs.field(factory=dict)
    retries: int = 0
    residuals: int = 0


@attrs.frozen(kw_only=True)
class DemoResult:
    """Both runs, which signals were delivered five times, and the guarantees that execsafe broke."""

    naive: BotResult
    guarded: BotResult
    repeated: frozenset[str]
    breaches: tuple[str, ...]


Audit = Callable[..., tuple[str, ...]]


def demo_signals(count: int) -> tuple[Signal, ...]:
    """The first *count* signals in the recorded candles."""
    return tuple(pairs.signals(_candles(), (INSTRUMENTS["ETH/BTC"], INSTRUMENTS["LTC/BTC"])))[:count]


def deliveries(signal: Signal, policy: DemoPolicy) -> tuple[int, int]:
    """How often a signal is delivered: at once, and again after it was handled. Mostly (1, 0), some five times."""
    rng = random.Random(f"{policy.seed}/deliveries/{signal.id}")  # noqa: S311 - a plan, not a secret
    return (3, 2) if policy.faults and rng.random() < _REPEATED_RATIO else (1, 0)


async def run_demo(
    policy: DemoPolicy, *, watch: Watch = lambda _progress: None, audit: Audit = verdict.breaches
) -> DemoResult:
    """Run both bots beside each other and judge them. Runs on asyncio, as ccxt does.

    *watch* is told of every signal that is done; *audit* decides which guarantees were broken.
    """
    signals = demo_signals(policy.signals)
    results: dict[str, Any] = {}

    async def naive() -> None:
        results["naive"] = await _run_naive(signals, policy, watch)

    async def guarded() -> None:
        results["guarded"], results["breaches"] = await _run_guarded(signals, policy, watch, audit)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(naive)
        tasks.start_soon(guarded)
    repeated = frozenset(signal.id for signal in signals if deliveries(signal, policy) != (1, 0))
    return DemoResult(repeated=repeated, **results)


async def _run_naive(signals: Sequence[Signal], policy: DemoPolicy, watch: Watch) -> BotResult:
    async with Stage(policy) as stage:
        bot = NaiveBot(stage.exchange)
        played = await stage.play(bot, signals, watch)
        findings = verdict.judge(
            stage.venue.ledger, played, meant=bot.meant, book=bot.positions(), instruments=INSTRUMENTS
        )
        return BotResult(name=bot.name, findings=findings, fired=stage.fired, retries=bot.retries)


async def _run_guarded(
    signals: Sequence[Signal], policy: DemoPolicy, watch: Watch, audit: Audit
) -> tuple[BotResult, tuple[str, ...]]:
    events: Counter[execsafe.EventType] = Counter()
    with tempfile.TemporaryDirectory(prefix="execsafe-demo-") as folder:
        store = f"sqlite:///{quote(str(Path(folder, 'orders.db')))}"
        async with Stage(policy) as stage:
            guarded = execsafe.wrap(
                stage.exchange,
                store=store,
                profile=demo_profile(),
                request_timeout_s=TIMEOUT_S * 1.5,  # ccxt's own time-out comes first
                look_interval_s=LOOK_INTERVAL_S,
                listeners=(lambda event: events.update([event.type]),),
            )
            async with guarded:
                bot = GuardedBot(guarded, INSTRUMENTS)
                played = await stage.play(bot, signals, watch)
                records = await all_records(guarded.store)
            ledger = stage.venue.ledger
            findings = verdict.judge(
                ledger,
                played,
                meant=verdict.meant_of(records, played),
                book=bot.positions(),
                instruments=INSTRUMENTS,
            )
            breaches = audit(ledger, records, findings, {*bot.residuals, *bot.unsettled})
            result = BotResult(
                name=bot.name, findings=findings, fired=stage.fired, events=events, residuals=len(bot.residuals)
            )
            return result, breaches


def demo_profile() -> execsafe.VenueProfile:
    """Binance's row with the short windows of the demo's venue."""
    return attrs.evolve(
        execsafe.profile_for("binance"), expiry_window_s=WINDOW_S, read_lag_s=READ_LAG_S, clock_skew_s=SKEW_S
    )


class Stage:
    """A venue with its prices, its faults, and a ccxt client that talks to it. An async context manager."""

    def __init__(self, policy: DemoPolicy) -> None:
        self.policy = policy
        self.venue: SimVenue = SimVenue(
            # As for an account that pays its fees in another currency: what fills is what is owned.
            [Market(instrument=instrument, fee_in_base=False) for instrument in INSTRUMENTS.values()],
            read_lag_ms=round(READ_LAG_S * 1000),
        )
        self.server: VenueServer = VenueServer({"binance": self.venue}, client_timeout_ms=round(TIMEOUT_S * 1000))
        self.exchange: Any = None
        self.fired: Counter[Fault] = Counter()
        self._plans: list[FaultPlan] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Stage:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.server)
            self.exchange = self.server.exchange(
                "binance",
                timeout=round(TIMEOUT_S * 1000),
                options={"recvWindow": round(WINDOW_S * 1000)},
            )
            await self.exchange.load_markets()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()

    async def play(self, bot: Bot, signals: Sequence[Signal], watch: Watch) -> list[verdict.Played]:
        """Let the candles run by, deliver each signal at its candle, and wait until nothing is on its way."""
        at = {signal.at_ms: signal for signal in signals}
        played: list[verdict.Played] = []
        for pair in _candles():
            now_ms = self.server.advance()
            for symbol, candle in zip(INSTRUMENTS, pair, strict=True):
                self.venue.set_price(symbol, candle.close, now_ms)
            signal = at.get(pair[0].opened_at_ms)
            if signal is not None:
                played.append(verdict.Played(signal, now_ms))
                await self._deliver(bot, signal)
                watch(self._progress(bot, len(played), len(signals)))
        self._set_plan(FaultPlan.none())
        await bot.finish()
        if self.policy.faults:  # a request that the wire still holds lands within its window, or never
            await anyio.sleep(WINDOW_S + SKEW_S)
            self.server.advance()
        for plan in self._plans:
            self.fired.update(plan.fired)
        watch(self._progress(bot, len(played), len(signals)))
        return played

    async def _deliver(self, bot: Bot, signal: Signal) -> None:
        seed = random.Random(f"{self.policy.seed}/faults/{signal.id}").getrandbits(32)  # noqa: S311
        self._set_plan(FaultPlan(seed, RATES if self.policy.faults else {}))
        at_once, again = deliveries(signal, self.policy)
        async with anyio.create_task_group() as tasks:
            for _ in range(at_once):
                tasks.start_soon(bot.handle, signal)
        for _ in range(again):
            await bot.handle(signal)

    def _set_plan(self, plan: FaultPlan) -> None:
        self._plans.append(plan)
        self.server.plans["binance"] = plan

    def _progress(self, bot: Bot, done: int, total: int) -> Progress:
        return Progress(name=bot.name, done=done, total=total, orders_accepted=len(self.venue.ledger.accepted()))


def _candles() -> tuple[tuple[candles.Candle, candles.Candle], ...]:
    first, second = (candles.recorded(symbol) for symbol in INSTRUMENTS)
    return candles.paired(first, second)
