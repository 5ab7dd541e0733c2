"""``execsafe demo``: two strategies, each twice, the same faults, and the venue's ledger as the judge.

Each of the four bots trades at a simulated venue of its own, through the real ccxt client over HTTP on loopback.
Prices, signals, repeated deliveries and faults follow from the seed. In ``pairs`` the n-th create request of a signal
meets the same fault at either venue, whatever went on before. ``waves`` runs in real time, with several positions at
once: there it is the n-th create request of the run, and what it is for depends on what the bot did before.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import anyio
import attrs

import execsafe
from execsafe.bot import guarded, verdict, verdict_waves
from execsafe.bot.guarded import GuardedBot
from execsafe.bot.naive import NaiveBot
from execsafe.bot.naive_waves import NaiveWaves
from execsafe.bot.pairs import Signal
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.scenes import pairs_scene, waves_scene
from execsafe.bot.screen import Watch
from execsafe.bot.stage import READ_LAG_S, DemoPolicy, Scene, Shown, Stage, deliveries
from execsafe.bot.strategy import Open
from execsafe.bot.targets import Targets, all_targets
from execsafe.bot.verdict import Findings, Played
from execsafe.bot.verdict_waves import WaveFindings
from execsafe.core.funnel import Funnel
from execsafe.testing.faults import Fault
from execsafe.testing.ledger import Ledger

_Facts = TypeVar("_Facts")
_Wish = TypeVar("_Wish")

KNOWABLE_S: Final = guarded.WAVES.gateway.request_timeout_s + READ_LAG_S + 2 * 0.15
"""How long after a fill a bot can know of it if the answer was lost: its time-out, the lag of the views, two looks."""


@attrs.frozen(kw_only=True)
class BotResult(Generic[_Facts]):
    """One bot's run: the findings, the faults it met, and what else is known of it.

    ``told`` are the events of execsafe's parts, ``residuals`` the signals whose rest could not be hedged. ``tape`` has
    the prices by symbol and ``ledger`` what happened at the venue; both are for reports.
    """

    name: str
    findings: _Facts
    fired: Mapping[Fault, int]
    told: tuple[execsafe.Event, ...] = ()
    retries: int = 0
    residuals: int = 0
    funnel: Funnel | None = None
    targets: tuple[Targets, ...] = ()
    ledger: Ledger = attrs.field(factory=Ledger, repr=False, eq=False)
    tape: Mapping[str, Sequence[tuple[int, Decimal]]] = attrs.field(factory=dict, repr=False)

    @property
    def events(self) -> Counter[execsafe.EventType]:
        """How often what was told."""
        return Counter(event.type for event in self.told)


@attrs.frozen(kw_only=True)
class StrategyResult(Generic[_Facts]):
    """Both runs of one strategy, which signals were delivered five times, and the guarantees that execsafe broke."""

    naive: BotResult[_Facts]
    guarded: BotResult[_Facts]
    repeated: frozenset[str] = frozenset()
    breaches: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class DemoResult:
    """All runs."""

    policy: DemoPolicy
    pairs: StrategyResult[Findings]
    waves: StrategyResult[WaveFindings]

    @property
    def breaches(self) -> tuple[str, ...]:
        """The guarantees that execsafe broke; none is as promised."""
        return (*self.pairs.breaches, *self.waves.breaches)


Audit: TypeAlias = Callable[..., tuple[str, ...]]
_Judged: TypeAlias = tuple[BotResult[_Facts], tuple[str, ...]]
_Run: TypeAlias = tuple[GuardedBot[_Wish], Stage[_Wish], list[Shown[_Wish]]]


@attrs.frozen(kw_only=True)
class Audits:
    """Who decides which guarantees were broken, by strategy."""

    pairs: Audit = verdict.breaches
    waves: Audit = verdict_waves.wave_breaches


async def run_demo(
    policy: DemoPolicy, *, watch: Watch = lambda _progress: None, audits: Audits | None = None
) -> DemoResult:
    """Run all four bots beside each other and judge them. Runs on asyncio, as ccxt does.

    *watch* is told of every signal that is done; *audits* decide which guarantees were broken.
    """
    audits = audits if audits is not None else Audits()
    pairs, waves = pairs_scene(policy), waves_scene(policy)
    done: dict[str, Any] = {}

    async def keep(name: str, run: Callable[[], Any]) -> None:
        done[name] = await run()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep, "pairs, naive", lambda: _naive_pairs(pairs, policy, watch))
        tasks.start_soon(keep, "pairs", lambda: _guarded_pairs(pairs, policy, watch, audits.pairs))
        tasks.start_soon(keep, "waves, naive", lambda: _naive_waves(waves, policy, watch))
        tasks.start_soon(keep, "waves", lambda: _guarded_waves(waves, policy, watch, audits.waves))
    return DemoResult(
        policy=policy,
        pairs=_side_by_side(done, "pairs", pairs, policy),
        waves=_side_by_side(done, "waves", waves, policy),
    )


def _side_by_side(done: Mapping[str, Any], name: str, scene: Scene[Any], policy: DemoPolicy) -> StrategyResult[Any]:
    result, breaches = done[name]
    repeated = frozenset(cue.id for cue in scene.cues if deliveries(cue.id, policy) != (1, 0))
    return StrategyResult(naive=done[f"{name}, naive"], guarded=result, repeated=repeated, breaches=breaches)


# --- pairs ---------------------------------------------------------------------------------------------------


def _played(shown: Sequence[Shown[Signal]]) -> list[Played]:
    return [Played(item.cue.wish, item.started_at_ms) for item in shown]


async def _naive_pairs(scene: Scene[Signal], policy: DemoPolicy, watch: Watch) -> BotResult[Findings]:
    async with Stage(scene, policy) as stage:
        bot = NaiveBot(stage.exchange)
        played = _played(await stage.play(bot, watch))
        ledger = stage.venue.ledger
        found = verdict.judge(ledger, played, meant=bot.meant, book=bot.positions(), instruments=scene.instruments)
        return _result(bot.name, found, stage, retries=bot.retries)


async def _guarded_pairs(scene: Scene[Signal], policy: DemoPolicy, watch: Watch, audit: Audit) -> _Judged[Findings]:
    async def judged(run: _Run[Signal]) -> _Judged[Findings]:
        bot, stage, shown = run
        played, ledger = _played(shown), stage.venue.ledger
        found = verdict.judge(
            ledger,
            played,
            meant=verdict.meant_of(bot.records, played),
            book=bot.positions(),
            instruments=scene.instruments,
            records=bot.records,
        )
        residuals = {e.subject for e in bot.events if e.type is execsafe.EventType.RESIDUAL_EXPOSURE}
        unsettled = {record.intent.key for record in bot.records if not record.state.is_terminal}
        breaches = audit(ledger, bot.records, found, residuals | unsettled)
        return _result(bot.name, found, stage, told=tuple(bot.events), residuals=len(residuals)), breaches

    return await _at_a_desk(scene, policy, watch, guarded.PAIRS, judged)


# --- waves ---------------------------------------------------------------------------------------------------


async def _naive_waves(scene: Scene[Open], policy: DemoPolicy, watch: Watch) -> BotResult[WaveFindings]:
    async with Stage(scene, policy) as stage:
        bot = NaiveWaves(stage.exchange)
        shown = await stage.play(bot, watch)
        found = _judge_waves(stage, shown, list(bot.meant.values()), bot.positions())
        return _result(bot.name, found, stage, retries=bot.retries)


async def _guarded_waves(scene: Scene[Open], policy: DemoPolicy, watch: Watch, audit: Audit) -> _Judged[WaveFindings]:
    async def judged(run: _Run[Open]) -> _Judged[WaveFindings]:
        bot, stage, shown = run
        found = _judge_waves(stage, shown, verdict_waves.meant_by(bot.records), bot.positions())
        alarms = [event for event in bot.events if event.type is execsafe.EventType.POSITION_UNPROTECTED]
        breaches = audit(stage.venue.ledger, bot.records, found, alarms)
        targets = await all_targets(bot.desk.store, _opened(bot.events))
        return (
            _result(
                bot.name, found, stage, told=tuple(bot.events), funnel=bot.desk.gate.funnel, targets=tuple(targets)
            ),
            breaches,
        )

    return await _at_a_desk(scene, policy, watch, guarded.WAVES, judged)


def _judge_waves(
    stage: Stage[Open], shown: Sequence[Shown[Open]], meant: Sequence[verdict_waves.Meant], book: Mapping[str, Decimal]
) -> WaveFindings:
    return verdict_waves.judge_waves(
        stage.venue.ledger,
        signals=len(shown),
        meant=meant,
        book=book,
        prices={symbol: tape[-1][1] for symbol, tape in stage.tape.items()},
        deadline_ms=round((guarded.WAVES.protection.deadline_s + KNOWABLE_S) * 1000),
    )


def _opened(events: Sequence[execsafe.Event]) -> list[str]:
    return [event.subject for event in events if event.type is execsafe.EventType.POSITION_OPENED]


# --- both ----------------------------------------------------------------------------------------------------


async def _at_a_desk(
    scene: Scene[_Wish],
    policy: DemoPolicy,
    watch: Watch,
    desk: DeskPolicy,
    judged: Callable[[_Run[_Wish]], Awaitable[_Judged[_Facts]]],
) -> _Judged[_Facts]:
    """Play a scene at a desk with a store of its own; what *judged* makes of it while both are still there."""
    with tempfile.TemporaryDirectory(prefix="execsafe-demo-") as folder:
        store = f"sqlite:///{quote(str(Path(folder, 'orders.db')))}"
        async with Stage(scene, policy) as stage, GuardedBot(scene, stage.exchange, store, desk) as bot:
            shown = await stage.play(bot, watch)
            return await judged((bot, stage, shown))


def _result(name: str, findings: _Facts, stage: Stage[Any], **more: Any) -> BotResult[_Facts]:
    return BotResult(
        name=name, findings=findings, fired=stage.fired, ledger=stage.venue.ledger, tape=stage.tape, **more
    )
