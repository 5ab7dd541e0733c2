"""From a signal to a protected position: size, levels, entry with its stop, targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Final

import execsafe
from execsafe import protection, signals, sizing
from execsafe.bot.closings import Closings
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.strategy import Open
from execsafe.bot.targets import Harvester
from execsafe.buses.publishing import ConfirmedOrder, LevelsFacts, levels_event
from execsafe.signals import SignalResult, SignalWork

_BPS: Final = Decimal(10_000)


class Openings:
    """Takes ``Open`` decisions through the gate; what passes is sized, opened and protected."""

    def __init__(
        self,
        *,
        gate: execsafe.SignalGate,
        registry: execsafe.IntentRegistry,
        opener: execsafe.PositionOpener,
        book: execsafe.PositionBook,
        prices: execsafe.PriceBoard,
        harvester: Harvester,
        closings: Closings,
        instrument: Callable[[str], execsafe.Instrument],
        policy: DeskPolicy,
        clock: execsafe.Clock,
    ) -> None:
        self._gate = gate
        self._registry = registry
        self._opener = opener
        self._book = book
        self._prices = prices
        self._harvester = harvester
        self._closings = closings
        self._instrument = instrument
        self._policy = policy
        self._clock = clock
        self._levels = execsafe.AdaptiveLevels()
        self._sizer = execsafe.PositionSizer()
        self._under_way: Counter[str] = Counter()  # symbols that handlers are at just now

    async def run(self, decision: Open, at_ms: int) -> signals.SignalOutcome:
        """Judge a decision as a signal, and carry it out if it may be. Made again later, it is the same signal."""
        known = await self._gate.find(decision.id)
        payload = {
            "id": decision.id,
            "symbol": decision.symbol,
            "side": decision.side.value.upper(),
            "timestamp": at_ms if known is None else known.signal.at_ms,
            "source": "strategy",
            "confidence": str(decision.confidence),
            "volatility_factor": str(decision.volatility_factor),
            "leverage": self._policy.leverage,
        }
        return await self._gate.run(payload, self.handle)

    async def handle(self, work: SignalWork) -> SignalResult:
        """Open one position. Called again for the same signal after a crash: what was decided then stands."""
        opening = await self._opener.find(work.key, account=self._policy.account)
        if opening is not None and opening.state is protection.OpeningState.NOT_SENT:
            opening = None  # nothing came of it yet: size and price are decided anew
        symbol = work.signal.symbol
        if opening is None:
            if work.is_late(self._clock.now_ms()):
                return signals.Refused(reason=execsafe.DropReason.STALE, note="too old before anything was sent")
            await self._book.catch_up()
            if self._closings.is_closing(symbol) or await self._closings.is_awaited(work):
                return signals.Pending(note="what is held is still being closed", attempted=False)
            if not self._has_room(symbol):
                note = f"{self._policy.positions_max} positions are open or opening"
                return signals.Refused(reason=execsafe.DropReason.RISK, note=note)
        self._under_way[symbol] += 1  # nothing was waited for since: many at once stay within the limit
        try:
            plan = await self._plan(work) if opening is None else opening.plan
            if not isinstance(plan, protection.EntryPlan):
                return plan
            if work.mode is execsafe.ExecutionMode.PAPER:
                return signals.Executed(note=f"on paper: {plan.side} {plan.quantity} {plan.symbol}")
            return await self._open(work, plan)
        finally:
            self._under_way[symbol] -= 1
            self._under_way += Counter()  # drops what is at zero

    def _has_room(self, symbol: str) -> bool:
        """Whether one more may be opened besides what is held, what is opening, and what is in doubt."""
        account = self._policy.account
        held = {position.symbol for position in self._book.open_positions(account)}
        opening = {known.plan.symbol for known in self._opener.openings() if known.plan.account == account}
        return len(held | opening | {symbol, *self._under_way}) <= self._policy.positions_max

    async def _plan(self, work: SignalWork) -> protection.EntryPlan | SignalResult:
        signal = work.signal
        side = signal.side.position_side
        if side is None:
            return signals.Refused(reason=execsafe.DropReason.FLAT)
        price = await self._entry_price(signal.symbol, side)
        if price is None:
            return signals.Pending(note="there is no fresh price", attempted=False)
        instrument = self._instrument(signal.symbol)
        sized = self._sizer.size(
            execsafe.Notional(self._policy.notional), price, instrument, leverage=self._policy.leverage
        )
        if isinstance(sized, sizing.SizeRejected):
            return signals.Refused(reason=execsafe.DropReason.SIZE, note=str(sized))
        levels = self._levels_of(signal, side)
        stop = protection.StopRule(distance=levels.sl, trailing=self._policy.trailing)
        return protection.EntryPlan(
            key=work.key,
            symbol=signal.symbol,
            side=side,
            quantity=sized.quantity,
            limit_price=price,
            time_in_force="IOC",
            stop=stop,
            account=self._policy.account,
            leverage=Decimal(self._policy.leverage) if self._policy.leverage > 1 else None,
            fresh_until_ms=work.fresh_until_ms,
        )

    def _levels_of(self, signal: execsafe.Signal, side: execsafe.PositionSide) -> execsafe.Levels:
        return self._levels.compute(
            symbol=signal.symbol,
            leverage=self._policy.leverage,
            side=side,
            volatility_factor=1 if signal.volatility_factor is None else signal.volatility_factor,
        )

    async def _entry_price(self, symbol: str, side: execsafe.PositionSide) -> Decimal | None:
        """A limit that fills at once and not at any price; None without a fresh quote of that side."""
        reading = await self._prices.price(symbol)
        if not isinstance(reading, execsafe.Price) or reading.is_stale:
            return None
        best = reading.quote.ask if side is execsafe.PositionSide.LONG else reading.quote.bid
        if best is None:
            return None
        price = best * (1 + side.sign * self._policy.entry_slippage_bps / _BPS)
        # Toward the fill: the slippage allowed is never less than said.
        return self._instrument(symbol).safe_limit_price(price, side.closing)

    async def _open(self, work: SignalWork, plan: protection.EntryPlan) -> SignalResult:
        match await self._opener.open(plan):
            case protection.Active(position=position):
                levels = self._levels_of(work.signal, position.side)
                told = await self._told(work, plan, position, levels)
                await self._harvester.follow(position, levels, self._instrument(position.symbol), *told)
                return signals.Executed(note=position.position_id)
            case protection.RolledBack(opening=opening) if opening.state is protection.OpeningState.ACTIVE:
                return signals.Executed(note="closed since")
            case protection.RolledBack(reason=reason):
                return signals.Refused(reason=execsafe.DropReason.ROLLED_BACK, note=reason)
            case protection.EntryDust(reason=reason):
                return signals.Executed(note=f"dust: {reason}")
            case protection.EntryFailed(reason=reason, is_for_now=True):
                return signals.Pending(note=reason, attempted=False)
            case protection.EntryFailed(reason=reason, error=error):
                return signals.Refused(reason=_reason(error), note=reason)
            case protection.EntryUnknown(reason=reason):
                return signals.Pending(note=reason)

    async def _told(
        self, work: SignalWork, plan: protection.EntryPlan, position: execsafe.Position, levels: execsafe.Levels
    ) -> list[execsafe.Event]:
        """The levels for whoever wants to know them. The entry's record says to which order they belong."""
        signal, intent = work.signal, plan.intent()
        entry = await self._registry.find(intent.key, account=intent.account, leg=intent.leg)
        if entry is None:
            return []
        facts = LevelsFacts(
            levels=levels.to_payload(),
            unit="fraction",
            trace_id=signal.trace_id,
            leverage=Decimal(self._policy.leverage),
            volatility_factor=signal.volatility_factor,
            ilf=signal.ilf_metadata,
        )
        order, now_ms = ConfirmedOrder.of(entry), self._clock.now_ms()
        return [levels_event(order, facts, subject=position.position_id, at_ms=now_ms)]


def _reason(error: BaseException | None) -> execsafe.DropReason:
    if isinstance(error, execsafe.TradingDenied):
        is_stale = error.context.get("reason") == execsafe.DenyReason.STALE
        return execsafe.DropReason.STALE if is_stale else execsafe.DropReason.DENIED
    if isinstance(error, execsafe.InvalidInput):
        return execsafe.DropReason.INVALID_ORDER
    return execsafe.DropReason.NOTHING_FILLED
