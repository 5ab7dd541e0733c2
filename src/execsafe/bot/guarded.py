"""Both strategies at :class:`~execsafe.bot.desk.TradingDesk`: no logic of their own about orders, only thresholds.

Time constants are those of the demo's venues: short, so that what is in doubt is settled in about a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Generic, TypeVar

import attrs

import execsafe
from execsafe.bot import stage
from execsafe.bot.desk import Came, TradingDesk
from execsafe.bot.journal import all_records
from execsafe.bot.pairs import Signal
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.stage import Scene
from execsafe.bot.strategy import Close, Decision, Open
from execsafe.core.backoff import Backoff
from execsafe.core.pacing import PacingPolicy

_Wish = TypeVar("_Wish")
_REQUEST_S: Final = stage.TIMEOUT_S * 1.5  # ccxt's own time-out comes first
_STOP_S: Final = 8.0

_SHARED: Final = DeskPolicy(
    settle_s=0.5,
    entry_pauses=Backoff(base_s=0.1, cap_s=0.5, jitter=0.0, max_attempts=None),  # here, minutes are seconds
    reconcile=execsafe.ReconcilePolicy(interval_s=2.0, confirm_after_s=0.3),
    # Every tenth reading fails: whoever refuses an entry for each of them shows less of what is to be shown, and the
    # simulated venue has one price and no depth to judge.
    pretrade=execsafe.PreTradePolicy(spread=None, depth=None, band=None, rate=None),
    safety=execsafe.SafetyPolicy(cool_down_s=1.0, cool_down_max_s=2.0, escalate_after=100),
    gateway=execsafe.GatewayPolicy(request_timeout_s=_REQUEST_S),
    looks=execsafe.LookPolicy(interval_s=0.15, spacing_s=0.01, timeout_s=_REQUEST_S),
    prices=execsafe.PricePolicy(hot_s=0.2, cold_s=0.5, soft_hot_s=0.1, soft_cold_s=0.2, held_ttl_s=0.2, retry_s=0.05),
)

PAIRS: Final = attrs.evolve(
    _SHARED,
    stop_positions=False,
    # Each trade is judged by itself: nothing is carried over from one to the next.
    hedging=execsafe.HedgePolicy(
        poll_interval_s=0.05, unwind_pause_s=0.05, watch_s=5.0, verify_timeout_s=2.0, carry_residual=False
    ),
)

WAVES: Final = attrs.evolve(
    _SHARED,
    notional=Decimal(1_000),
    leverage=5,
    targets_s=0.1,
    opening=execsafe.OpeningPolicy(entry_timeout_s=1.0, poll_s=0.05, settle_s=5.0),
    protection=execsafe.ProtectionPolicy(
        deadline_s=3.0, tries=3, retry_s=0.05, try_timeout_s=_REQUEST_S, release_s=4.0, interval_s=0.15
    ),
    exits=execsafe.ExitPolicy(
        exit_ioc_ttl_ms=800,
        backoff=Backoff(base_s=0.05, jitter=0.5),
        cool_down_ms=300,
        cool_down_max_ms=2_000,
        confirm_pause_ms=200,
    ),
    trailing=execsafe.TrailingPolicy(
        activation=execsafe.Bps(80), callback=execsafe.Bps(50), breakeven=execsafe.Bps(40), min_interval_ms=150
    ),
)


class QuickAdapter(execsafe.CcxtAdapter):
    """A venue that turns a request away asks for a second; here minutes are seconds, and so it is less."""

    pacing: PacingPolicy = PacingPolicy(
        pauses=Backoff(base_s=0.05, cap_s=1.0, jitter=0.0, max_attempts=None), longest_s=0.05
    )


class GuardedBot(Generic[_Wish]):
    """A desk as the stage plays with it. An async context manager.

    Attributes:
        events: all that the desk told, in order.
        came: what every delivery came to, by the signal's id.
        records: every intent in the journal; after the end.
    """

    name = "execsafe"

    def __init__(self, scene: Scene[_Wish], exchange: Any, store: str, policy: DeskPolicy) -> None:
        self.policy = policy
        self.events: list[execsafe.Event] = []
        self.came: dict[str, list[Came]] = {}
        self.records: list[execsafe.IntentRecord] = []
        self.desk: TradingDesk = TradingDesk(
            QuickAdapter(exchange, profile=stage.profile(scene.face)),
            execsafe.open_store(store),
            policy,
            symbols=tuple(scene.markets),
            listeners=(self.events.append,),
        )
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> GuardedBot[_Wish]:
        await self._stack.enter_async_context(self.desk.running())
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._stack.__aexit__(*exc)

    async def handle(self, wish: _Wish) -> None:
        """Carry a signal out, or go on with it where it stands."""
        decision = self._decision(wish)
        self.came.setdefault(decision.id, []).append(await self.desk.carry_out(decision))

    async def look(self, prices: Mapping[str, Decimal]) -> None:
        """Nothing to do: the desk looks by itself."""

    async def finish(self) -> None:
        """End gracefully: waves flat, pairs as they are; then read what the journal has."""
        await self.desk.stop(flat=self.policy.stop_positions, timeout_s=_STOP_S)
        self.records = await all_records(self.desk.store)

    def positions(self) -> dict[str, Decimal]:
        """The book by symbol, for comparison with the venue's ledger."""
        held = self.desk.book.open_positions(self.policy.account)
        return {position.symbol: position.side.sign * position.quantity for position in held}

    def _decision(self, wish: _Wish) -> Decision:
        match wish:
            case Signal():
                return wish.as_trade()
            case Open() | Close():
                return wish
        raise TypeError(f"no signal: {wish!r}")
