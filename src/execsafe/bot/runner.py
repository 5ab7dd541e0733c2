"""Runs a strategy at a desk: candles in, decisions carried out, an orderly end."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import anyio
import attrs

import execsafe
from execsafe.bot.config import StrategyConfig
from execsafe.bot.desk import Came, TradingDesk
from execsafe.bot.feed import Feed
from execsafe.bot.leftover import Leftover
from execsafe.bot.listening import Listening
from execsafe.bot.moments import Moment
from execsafe.bot.pairs import Pairs
from execsafe.bot.strategy import Close, Decision, Open, Strategy, TradePair
from execsafe.bot.waves import Waves

_log = logging.getLogger("execsafe.bot.runner")
_AT_ONCE: Final = 8
BUILT_IN: Final[dict[str, type[Strategy]]] = {"pairs": Pairs, "waves": Waves, "signals": Listening}


@attrs.frozen(kw_only=True)
class RunResult:
    """What a run came to: how often each kind of result, and what the stop left.

    ``has_begun`` False: it was stopped while it was still starting. Then ``leftover`` is what the journal tells of,
    which was not compared with the venue.
    """

    results: Counter[str]
    leftover: Leftover
    has_begun: bool = True


def make_strategy(config: StrategyConfig) -> Strategy:
    """The strategy that the configuration names.

    Raises:
        InvalidInput: there is none of that name, it is no strategy, or it refuses its settings.
    """
    kind = _strategy_class(config.name)
    try:
        return kind(config.symbols, config.settings)
    except execsafe.ExecsafeError:
        raise
    except Exception as error:  # somebody's own: whatever it refuses its settings with
        raise execsafe.InvalidInput(f"strategy {config.name}: {type(error).__name__}: {error}") from error


def _strategy_class(wanted: str) -> type[Strategy]:
    module, _, name = wanted.partition(":")
    found: object = BUILT_IN.get(wanted)
    if name:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except Exception as error:  # somebody's own module: whatever its import comes to
            raise execsafe.InvalidInput(f"strategy {wanted}: {type(error).__name__}: {error}") from error
        if found is None:
            raise execsafe.InvalidInput(f"strategy {wanted}: there is no {name} in the module {module}")
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        known = ", ".join(sorted(BUILT_IN))
        raise execsafe.InvalidInput(f"no strategy {wanted!r}; there are {known}, or your own as module:Class")
    return found


class Runner:
    """One strategy at one desk.

    Args:
        desk: carries decisions out.
        strategy: makes them.
        feed: shows it the market.
        tell: is told of every decision and what it came to.
        beside: runs for as long as decisions are made, and is cancelled then.
    """

    def __init__(
        self,
        desk: TradingDesk,
        strategy: Strategy,
        feed: Feed,
        *,
        tell: Callable[[Decision, Came], None] = lambda _decision, _came: None,
        beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.desk = desk
        self.strategy = strategy
        self.feed = feed
        self.results: Counter[str] = Counter()
        self._tell = tell
        self._beside = beside
        self._is_stopping = False
        self._until_stop = anyio.CancelScope()
        self._refused: execsafe.InvalidInput | None = None

    def request_stop(self) -> None:
        """End after what is being carried out now, or give up a start; may be called from a signal handler."""
        self._is_stopping = True
        self._until_stop.cancel()

    async def run(self, *, flat: bool = False, stop_timeout_s: float = 60.0) -> RunResult:
        """Until the feed ends or :meth:`request_stop`: then end gracefully, and say what is left.

        Nothing new is decided before everything from before is settled (:meth:`TradingDesk.running`). That may take for
        ever (a venue that cannot be read), so a stop ends the wait, too: nothing is closed then, even if *flat*.

        Raises:
            InvalidInput: the strategy wanted something that is no decision. The run has ended as gracefully.
        """
        leftover: Leftover | None = None
        with self._ended_by_stop():
            async with self.desk.running():
                with self._ended_by_stop():
                    await self._play_and_listen()
                with anyio.CancelScope(shield=True):
                    leftover = await self.desk.stop(flat=flat, timeout_s=stop_timeout_s)
        if self._refused is not None:
            raise self._refused
        if leftover is None:
            return RunResult(results=self.results, leftover=await self.desk.on_record(), has_begun=False)
        return RunResult(results=self.results, leftover=leftover)

    def _ended_by_stop(self) -> anyio.CancelScope:
        """A scope that a stop ends. Only the latest one is: once decisions are made, a stop waits for their end."""
        self._until_stop = anyio.CancelScope()
        if self._is_stopping:
            self._until_stop.cancel()
        return self._until_stop

    async def _play_and_listen(self) -> None:
        async with anyio.create_task_group() as tasks:
            if self._beside is not None:
                tasks.start_soon(self._beside)
            await self._play()
            tasks.cancel_scope.cancel()

    async def _play(self) -> None:
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        moments = self.feed.moments(self.strategy.warm_up)
        async with contextlib.aclosing(moments), anyio.create_task_group() as tasks:
            async for moment in moments:
                decisions = self._decide(moment)
                self._refused = self._refusal(decisions)
                if self._refused is not None:
                    _log.error("%s", self._refused)
                    break
                if moment.is_past:
                    continue  # made in the past, and carried out then, or too late now
                for decision in decisions:
                    tasks.start_soon(self._carry_out, limiter, decision, self._time_of(moment))
                await anyio.lowlevel.checkpoint()

    def _decide(self, moment: Moment) -> list[Decision]:
        try:
            return list(self.strategy.on_candles(moment.candles, self.desk))
        except Exception:  # noqa: BLE001 - a defect in a strategy must not leave positions without their keepers
            _log.exception("the strategy failed on the candles of %d", moment.closed_at_ms)
            self.results["strategy failed"] += 1
            return []

    def _refusal(self, wanted: Sequence[object]) -> execsafe.InvalidInput | None:
        """Why what a strategy wanted cannot be carried out: a defect that no later candle mends."""
        for one in wanted:
            if not isinstance(one, Open | Close | TradePair):
                name, kind = type(self.strategy).__name__, type(one).__name__
                return execsafe.InvalidInput(f"{name} wanted a {kind}; a decision is an Open, a Close or a TradePair")
        return None

    def _time_of(self, moment: Moment) -> int:
        return self.desk.clock.now_ms() if moment.is_recorded else moment.closed_at_ms

    async def _carry_out(self, limiter: anyio.CapacityLimiter, decision: Decision, at_ms: int) -> None:
        # Entries may wait until they can pass; what ends a position waits for no entry.
        async with limiter if _is_entry(decision) else contextlib.nullcontext():
            try:
                came = await self.desk.carry_out(decision, decided_at_ms=at_ms)
            except Exception:  # noqa: BLE001 - one decision that cannot be carried out keeps no other from it
                _log.exception("%s could not be carried out", decision.id)
                self.results["failed"] += 1
                return
        self.results[_kind(decision, came)] += 1
        self._tell(decision, came)


def _is_entry(decision: Decision) -> bool:
    return isinstance(decision, Open) or (isinstance(decision, TradePair) and decision.closes is None)


def _kind(decision: Decision, came: Came) -> str:
    what = "pair" if isinstance(decision, TradePair) else type(decision).__name__.lower()
    return f"{what}: {type(came).__name__}"
