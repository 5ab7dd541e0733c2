"""The demo's stage: a simulated venue with its prices and faults, behind the real ccxt client over HTTP on loopback."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Generic, Protocol, TypeVar

import anyio
import attrs

import execsafe
from execsafe.bot.candles import Candle
from execsafe.bot.screen import Progress, Watch
from execsafe.testing.faults import Fault, FaultPlan
from execsafe.testing.http import VenueServer
from execsafe.testing.venue import Market, SimVenue

# The demo's clockwork. The same figures configure the simulated venues and the profiles, so what a bot takes to
# be true of its venue is true; they are short so that an order in doubt is settled in about a second.
WINDOW_S: Final = 1.0  # for how long after signing the venue accepts a request (recvWindow)
TIMEOUT_S: Final = 0.4  # when the ccxt client gives up waiting
_START_TIMEOUT_S: Final = 20.0  # before anything is to be seen a busy machine may take its time
READ_LAG_S: Final = 0.08  # how old the state is that the venue's views show
SKEW_S: Final = 0.05

_REPEATED_RATIO: Final = 0.25
_Wish = TypeVar("_Wish")
_Wish_contra = TypeVar("_Wish_contra", contravariant=True)


@attrs.frozen(kw_only=True)
class DemoPolicy:
    """What to run: *seed* of faults and deliveries, how many *signals* per strategy at most, *faults* or none."""

    seed: int = 7
    signals: int = 48
    faults: bool = True


@attrs.frozen
class Cue(Generic[_Wish]):
    """A signal: its identity, the candle (Unix ms of its open) at which it comes, and what is wanted."""

    id: str
    at_ms: int
    wish: _Wish


@attrs.frozen
class Shown(Generic[_Wish]):
    """A cue, and when (Unix ms) it was first delivered to the bot."""

    cue: Cue[_Wish]
    started_at_ms: int


@attrs.frozen(kw_only=True)
class Scene(Generic[_Wish]):
    """A strategy's part of the demo.

    Attributes:
        name: of the strategy.
        face: the venue's, as ccxt calls it.
        markets: what is traded.
        moments: candles by symbol, oldest first.
        cues: the signals in these candles.
        rates: how often which fault.
        pause_s: how long a candle lasts, while signals are handled; None: until its signal has been handled.
    """

    name: str
    face: str
    markets: Mapping[str, Market]
    moments: Sequence[Mapping[str, Candle]]
    cues: Sequence[Cue[_Wish]]
    rates: Mapping[Fault, float]
    pause_s: float | None = None

    @property
    def instruments(self) -> dict[str, execsafe.Instrument]:
        """Trading rules by symbol."""
        return {symbol: market.instrument for symbol, market in self.markets.items()}


class Bot(Protocol[_Wish_contra]):
    """What the stage needs of a bot."""

    @property
    def name(self) -> str:
        """Shown to people."""
        ...

    async def handle(self, wish: _Wish_contra) -> None:
        """Carry out one delivery of a signal."""
        ...

    async def look(self, prices: Mapping[str, Decimal]) -> None:
        """A candle has closed."""
        ...

    async def finish(self) -> None:
        """Settle what is left at the end."""
        ...


def profile(face: str) -> execsafe.VenueProfile:
    """The venue's row with the short windows of the demo."""
    return attrs.evolve(
        execsafe.profile_for(face), expiry_window_s=WINDOW_S, read_lag_s=READ_LAG_S, clock_skew_s=SKEW_S
    )


def deliveries(cue_id: str, policy: DemoPolicy) -> tuple[int, int]:
    """How often a signal is delivered: at once, and again after it was handled. Mostly (1, 0), some five times."""
    rng = random.Random(f"{policy.seed}/deliveries/{cue_id}")  # noqa: S311 - a plan, not a secret
    return (3, 2) if policy.faults and rng.random() < _REPEATED_RATIO else (1, 0)


class Stage(Generic[_Wish]):
    """A venue with its prices, its faults, and a ccxt client that talks to it. An async context manager.

    Attributes:
        tape: the prices by symbol, with when (Unix ms) they were set.
        fired: how often each fault has had its effect.
    """

    def __init__(self, scene: Scene[_Wish], policy: DemoPolicy) -> None:
        self.scene = scene
        self.policy = policy
        self.venue: SimVenue = SimVenue(
            list(scene.markets.values()),
            prices={symbol: candle.close for symbol, candle in scene.moments[0].items()},
            read_lag_ms=round(READ_LAG_S * 1000),
            account_lag_ms=round(READ_LAG_S * 1000),
            rejects_passed_stops=scene.face == "binanceusdm",
        )
        self.server: VenueServer = VenueServer({scene.face: self.venue}, client_timeout_ms=round(TIMEOUT_S * 1000))
        self.exchange: Any = None
        self.tape: dict[str, list[tuple[int, Decimal]]] = {symbol: [] for symbol in scene.markets}
        self.fired: Counter[Fault] = Counter()
        self._plans: list[FaultPlan] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Stage[_Wish]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.server)
            self.exchange = self.server.exchange(
                self.scene.face,
                timeout=round(_START_TIMEOUT_S * 1000),
                options={"recvWindow": round(WINDOW_S * 1000)},
            )
            await self.exchange.load_markets()
            self.exchange.timeout = round(TIMEOUT_S * 1000)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()

    async def play(self, bot: Bot[_Wish], watch: Watch) -> list[Shown[_Wish]]:
        """Let the candles run by, deliver each signal at its candle, and wait until nothing is on its way."""
        shown: list[Shown[_Wish]] = []
        if self.scene.pause_s is not None:
            self._plan_faults("all")
        async with anyio.create_task_group() as tasks:
            began_s = anyio.current_time()
            for number, moment in enumerate(self.scene.moments, 1):
                now_ms = self._set_prices(moment)
                at_ms = max(candle.opened_at_ms for candle in moment.values())
                for cue in (cue for cue in self.scene.cues if cue.at_ms == at_ms):
                    shown.append(Shown(cue, now_ms))
                    if self.scene.pause_s is None:
                        await self._deliver(bot, cue)
                    else:
                        tasks.start_soon(self._deliver, bot, cue)
                    watch(self._progress(bot, len(shown)))
                if self.scene.pause_s is not None:
                    tasks.start_soon(bot.look, {symbol: candle.close for symbol, candle in moment.items()})
                    await anyio.sleep_until(began_s + number * self.scene.pause_s)
        await self._end(bot)
        watch(self._progress(bot, len(shown)))
        return shown

    def _set_prices(self, moment: Mapping[str, Candle]) -> int:
        now_ms = self.server.advance()
        for symbol, candle in moment.items():
            self.venue.set_price(symbol, candle.close, now_ms)
            self.tape[symbol].append((now_ms, candle.close))
        return now_ms

    async def _end(self, bot: Bot[_Wish]) -> None:
        """No more faults; what the bot has left, and what the wire still holds, comes to its end."""
        self._set_plan(FaultPlan.none())
        await bot.finish()
        if self.policy.faults:  # a request that is still under way lands within its window, or never
            await anyio.sleep(WINDOW_S + SKEW_S)
        self.server.advance()
        for plan in self._plans:
            self.fired.update(plan.fired)

    async def _deliver(self, bot: Bot[_Wish], cue: Cue[_Wish]) -> None:
        if self.scene.pause_s is None:  # one signal after the other: each meets faults of its own
            self._plan_faults(cue.id)
        at_once, again = deliveries(cue.id, self.policy)
        async with anyio.create_task_group() as tasks:
            for _ in range(at_once):
                tasks.start_soon(bot.handle, cue.wish)
        for _ in range(again):
            await bot.handle(cue.wish)

    def _plan_faults(self, about: str) -> None:
        seed = random.Random(f"{self.policy.seed}/faults/{about}").getrandbits(32)  # noqa: S311 - a plan
        self._set_plan(FaultPlan(seed, self.scene.rates if self.policy.faults else {}))

    def _set_plan(self, plan: FaultPlan) -> None:
        self._plans.append(plan)
        self.server.plans[self.scene.face] = plan

    def _progress(self, bot: Bot[_Wish], done: int) -> Progress:
        return Progress(
            name=f"{self.scene.name}, {bot.name}",
            done=done,
            total=len(self.scene.cues),
            orders_accepted=len(self.venue.ledger.accepted()),
        )
