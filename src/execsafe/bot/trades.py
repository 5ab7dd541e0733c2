"""From a decision about a pair to a hedged pair: entries while they are fresh, and the ends of earlier trades."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, TypeAlias

import anyio
import attrs

import execsafe
from execsafe import exits, hedging
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.strategy import Leg, TradePair
from execsafe.core.safety import is_for_now
from execsafe.model.instrument import is_contract

_ZERO: Final = Decimal(0)


@attrs.frozen(kw_only=True)
class PairClosed:
    """What closing each leg of a pair came to. What is not closed yet the desk goes on closing."""

    legs: tuple[exits.ExitResult, ...]


TradeResult: TypeAlias = hedging.HedgeResult | PairClosed | execsafe.TradingDenied
"""What a decision about a pair came to. An error says that nothing was sent."""


@attrs.define(eq=False)
class _Entry:
    """One call that enters a trade: whether it is to try no more, and whether it has returned."""

    given_up: anyio.Event = attrs.Factory(anyio.Event)
    ended: anyio.Event = attrs.Factory(anyio.Event)


class Trades:
    """Takes ``TradePair`` decisions to the hedger, or, where they close an earlier trade, to the exits."""

    def __init__(
        self,
        *,
        gate: execsafe.SignalGate,
        hedger: execsafe.PartialFillHedger,
        exits_: execsafe.ExitManager,
        book: execsafe.PositionBook,
        policy: DeskPolicy,
        clock: execsafe.Clock,
    ) -> None:
        self._gate = gate
        self._hedger = hedger
        self._exits = exits_
        self._book = book
        self._policy = policy
        self._clock = clock
        self._entering: dict[str, set[_Entry]] = {}  # by the decision's id, while its calls last

    async def run(self, decision: TradePair, at_ms: int) -> TradeResult:
        """Carry a decision out that was made at *at_ms*, once, however often it comes.

        Raises:
            ExecsafeError: nothing was sent, and why.
        """
        legs = (decision.lead, decision.hedge)
        wanted: tuple[Decimal, ...] = (decision.lead.quantity, decision.hedge.quantity)
        if decision.closes is None:
            return await self._enter(self._plan(decision, wanted, at_ms))
        if await self._give_up(decision.closes):
            at_ms = self._clock.now_ms()  # what it was waited for is newer than the decision, and meant by it
        wanted = await self._held(decision.closes)
        if not any(wanted):
            return execsafe.TradingDenied(f"{decision.id}: there is nothing to close", reason="flat")
        if all(is_contract(leg.symbol) for leg in legs):
            return await self._close_pair(legs, wanted, at_ms)
        if not all(wanted):
            return execsafe.TradingDenied(f"{decision.id}: one side is closed already", reason="flat")
        return await self._enter(self._plan(decision, wanted, at_ms))  # on spot, to close is to trade the other way

    async def _execute(self, plan: execsafe.HedgePlan) -> hedging.HedgeResult:
        if self._gate.mode is not execsafe.ExecutionMode.LIVE:
            raise execsafe.TradingDenied(f"{plan.key}: the desk is in {self._gate.mode} mode", reason="mode")
        result = await self._hedger.execute(plan)
        await self._book.catch_up()
        return result

    # --- entries -----------------------------------------------------------------------------------

    async def _enter(self, plan: execsafe.HedgePlan) -> hedging.HedgeResult:
        mine, key = _Entry(), str(plan.key)
        calls = self._entering.setdefault(key, set())
        calls.add(mine)
        try:
            return await self._while_fresh(plan, mine)
        finally:
            calls.discard(mine)
            if not calls:
                self._entering.pop(key, None)
            mine.ended.set()

    async def _while_fresh(self, plan: execsafe.HedgePlan, mine: _Entry) -> hedging.HedgeResult:
        """Try until it is no longer refused for now only, or no longer fresh; then the last refusal stands."""
        chance = random.Random(str(plan.key))  # noqa: S311 - spreads attempts, guards nothing
        for attempt in itertools.count(1):
            try:
                return await self._execute(plan)
            except (execsafe.TradingDenied, execsafe.VenueUnavailable) as error:
                refusal = error
            pause_ms = self._pause_ms(plan, attempt, chance.random()) if is_for_now(refusal) else None
            if pause_ms is None or await self._hedger.has_begun(str(plan.key)):
                raise refusal
            with anyio.move_on_after(pause_ms / 1_000):
                await mine.given_up.wait()
            if mine.given_up.is_set() or self._gate.mode is not execsafe.ExecutionMode.LIVE:
                raise refusal
        raise AssertionError  # the loop above does not end

    def _pause_ms(self, plan: execsafe.HedgePlan, attempt: int, chance: float) -> int | None:
        """How long to wait after that attempt; None: the next one would come too late, or is one too many."""
        pause_ms = self._policy.entry_pauses.delay_ms(attempt, chance)
        left_ms = (plan.fresh_until_ms or 0) - self._clock.now_ms()
        return pause_ms if pause_ms is not None and pause_ms < left_ms else None

    async def _give_up(self, key: str) -> bool:
        """A trade that is to be closed is not entered any more; whether it was being entered.

        What is being sent just now is seen to its end.
        """
        entries = tuple(self._entering.get(key, ()))
        for entry in entries:
            entry.given_up.set()
        for entry in entries:
            await entry.ended.wait()
        return bool(entries)

    # --- ends --------------------------------------------------------------------------------------

    async def _close_pair(self, legs: Sequence[Leg], wanted: Sequence[Decimal], at_ms: int) -> PairClosed:
        """Close each leg by itself, reduce-only, until it is closed.

        Not as a trade of two legs: should its second leg fail, the first would be undone, which means to open again
        what was just closed.
        """
        await self._book.catch_up()
        account = self._policy.account
        held = [(self._book.position(account, leg.symbol), leg, most) for leg, most in zip(legs, wanted, strict=True)]
        due = [
            (position.key, min(position.quantity, most))
            for position, leg, most in held
            if position is not None and position.side.closing is leg.side and position.opened_at_ms <= at_ms and most
        ]
        came: dict[execsafe.PositionKey, exits.ExitResult] = {}

        async def close(key: execsafe.PositionKey, quantity: Decimal) -> None:
            came[key] = await self._exits.exit(key, exits.ExitReason.TTL, quantity=quantity)

        async with anyio.create_task_group() as tasks:
            for key, quantity in due:
                tasks.start_soon(close, key, quantity)
        await self._book.catch_up()
        return PairClosed(legs=tuple(came[key] for key, _ in due))

    async def _held(self, key: str) -> tuple[Decimal, ...]:
        """What the legs of an earlier trade left, in their order."""
        found = await self._hedger.find(key)
        return (_ZERO,) if found is None else tuple(exposure.closable for exposure in found.exposures)

    # --- plans -------------------------------------------------------------------------------------

    def _plan(self, decision: TradePair, wanted: Sequence[Decimal], at_ms: int) -> execsafe.HedgePlan:
        legs = (decision.lead, decision.hedge)
        return execsafe.HedgePlan(
            key=decision.id,
            legs=[self._leg(leg, quantity) for leg, quantity in zip(legs, wanted, strict=True)],
            fresh_until_ms=at_ms + round(self._policy.signals.max_age_s * 1000),
        )

    def _leg(self, leg: Leg, quantity: Decimal) -> execsafe.HedgeLeg:
        return execsafe.HedgeLeg(
            symbol=leg.symbol,
            side=leg.side,
            quantity=quantity,
            limit_price=leg.limit_price,
            exit_price=leg.reverse_price,
            account=self._policy.account,
            time_in_force="IOC",
        )
