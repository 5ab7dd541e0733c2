"""One pass over an exit: settle what went before, look, decide, send, learn, until it ends or must rest.

What may be sent is decided in ``core.exits`` from the book after every earlier order of the exit has ended, and each
order has the next leg number under one intent key. So two passes over one exit, be it by a killed process and its
successor or by two at the same time, can never send the same part twice: the journal lets one of them have the leg.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Final

import anyio
import attrs

from execsafe.core import exits
from execsafe.core.exits import (
    AskMarket,
    Disagree,
    ExitRecord,
    ExitState,
    Finish,
    Hold,
    Postpone,
    RejectClass,
    Send,
)
from execsafe.errors import StoreError, VersionConflict
from execsafe.exits._desk import Desk
from execsafe.exits._orders import Answer, Orders, Overtaken
from execsafe.exits.faces import MarketRequest, PositionMismatch
from execsafe.exits.results import ExitResult, result_of
from execsafe.model.event import EventType
from execsafe.model.instrument import Instrument
from execsafe.model.intent import AttemptState, ErrorFacts, IntentRecord, IntentState
from execsafe.model.order import ZERO
from execsafe.model.position import Position
from execsafe.model.values import EXACT, left_of
from execsafe.ports import Lease, Released

_LEGS_MAX: Final = 100  # orders of one pass; a position in a hundred slices of the venue's maximum goes on later

_NEVER_THERE: Final = frozenset({AttemptState.ABSENT, AttemptState.NOT_SENT})

_End = Finish | Postpone


class Pass:
    """See the module's docstring. Made for one pass, under the exit's claim."""

    def __init__(self, desk: Desk, record: ExitRecord, lease: Callable[[], Lease | None]) -> None:
        self._desk = desk
        self._orders = Orders(desk)
        self._lease = lease
        self._before = record
        self._was_tripped = exits.is_tripped(record, desk.policy)
        self.record = exits.resumed(record)
        self._closed = ZERO
        self._progress = exits.Progress()
        self._sent = 0
        self._released_at_ms = 0
        self._has_released = False
        self._seen: Position | None = None
        self._anchor: Decimal | None = None
        self._disagreed = False
        self._refused_quantity: Decimal | None = None
        self._may_market = False
        self._asked_market = False

    @property
    def has_sent(self) -> bool:
        """Whether an order may be at the venue."""
        return self._sent > 0

    async def run(self) -> ExitResult:
        """Go on until the exit ends or must rest; write that down.

        Raises:
            Overtaken: another caller or process is on its orders.
            StoreError: what it came to could not be written; what it sent is in the intents' journal.
        """
        end = await self._work()
        while isinstance(end, Finish) and not await self._finish(end):
            end = await self._work()
        if isinstance(end, Postpone):
            await self._rest(end.hold)
        # Not while an order is in doubt: a stop beside it could sell the same a second time. Dust takes no stop.
        if self._has_released and self.record.hold is not Hold.IN_DOUBT and self.record.dust <= 0:
            await self._resume_protection()
        return result_of(self.record, closed_now=self._closed)

    # --- the loop --------------------------------------------------------------------------------

    async def _work(self) -> _End:
        desk = self._desk
        if not await self._settle_earlier():
            return Postpone(hold=Hold.IN_DOUBT)
        try:
            instrument = await desk.eyes.instrument(self.record.symbol, timeout_s=desk.gateway.policy.request_timeout_s)
        except Exception as error:  # noqa: BLE001 - whatever the client raises: nothing was sent
            desk.caught("trading rules", error)
            return Postpone(hold=Hold.UNAVAILABLE)
        if self._must_release and not await self._release():
            return Postpone(hold=Hold.PROTECTED)
        while True:
            await self._take_over_wishes()
            end = await self._step(instrument)
            if end is not None:
                return end
            if self._sent >= _LEGS_MAX:
                return Postpone(hold=Hold.NO_LIQUIDITY)

    async def _step(self, instrument: Instrument) -> _End | None:
        """One look and at most one order, within one deadline. None: go on."""
        leg = exits.leg_name(self.record.legs + 1)
        sent_before = self._sent
        answer: Answer = None
        with anyio.move_on_after(self._desk.policy.exit_ioc_ttl_ms / 1000) as deadline:
            decision = await self._look_and_decide(instrument)
            if isinstance(decision, Send):
                answer = await self._send(leg, decision.quantity, decision.limit_price)
            elif isinstance(decision, AskMarket) and self._may_market:
                self._may_market = False
                self._desk.tally.add("market_fallbacks")
                answer = await self._send(leg, decision.quantity, None)
        if self._sent > sent_before:
            return await self._take_in(leg, None if deadline.cancelled_caught else answer)
        if deadline.cancelled_caught:
            return await self._try_again_or(Hold.UNAVAILABLE)
        match decision:
            case AskMarket():
                return await self._ask_market(decision)
            case Disagree():
                return await self._confirm(decision)
            case Finish() | Postpone():
                return decision
        return None

    async def _look_and_decide(self, instrument: Instrument) -> exits.Decision:
        desk = self._desk
        try:
            sight = await desk.eyes.look(self.record, instrument, grown_at_ms=self._grown_at)
        except StoreError as error:
            desk.caught("book", error)
            return Postpone(hold=Hold.STORE)
        self._anchor = exits.anchored(self._anchor, sight.reference, self.record.side.closing) or self._anchor
        if sight.reference is not None:
            sight = attrs.evolve(sight, reference=self._anchor)
        decision = exits.decide(self.record, sight, desk.policy, instrument, self._progress)
        refused = self._refused_quantity
        if refused is not None and isinstance(decision, (Send, AskMarket)) and decision.quantity >= refused:
            return Postpone(hold=Hold.MISMATCH)  # nothing was learnt that would make it acceptable
        return decision

    def _grown_at(self, position: Position) -> int:
        """When what is free last grew. Own sales make it less: readings that lag behind those show more, not less."""
        seen = self._seen
        if seen is None or position.quantity > seen.quantity:
            self._seen = position
        elif position.quantity < seen.quantity:
            self._seen = attrs.evolve(position, updated_at_ms=seen.updated_at_ms)
        return max(self._released_at_ms, (self._seen or position).updated_at_ms)

    # --- orders ----------------------------------------------------------------------------------

    async def _send(self, leg: str, quantity: Decimal, limit: Decimal | None) -> Answer:
        self._sent += 1
        return await self._orders.send(self.record, leg, quantity, limit, self._progress)

    async def _take_in(self, leg: str, answer: Answer) -> _End | None:
        match answer:
            case IntentRecord():
                return await self._learn(answer)
            case Postpone():
                return answer
            case ErrorFacts():
                self.record = exits.refused(self.record, answer)
                self._desk.tally.rejected(self.record.symbol, RejectClass.STOP)
                return Postpone(hold=Hold.REJECTED)
            case None:
                return await self._learn_later(leg)

    async def _learn_later(self, leg: str) -> _End | None:
        """The order was cut short: find out what became of it, and end it."""
        try:
            order = await self._orders.find(self.record, leg)
        except StoreError as error:
            self._desk.caught("journal", error)
            return Postpone(hold=Hold.IN_DOUBT)
        if order is None:
            return await self._try_again_or(Hold.UNAVAILABLE)  # not even journalled
        return await self._learn(order)

    async def _learn(self, order: IntentRecord) -> _End | None:
        """What the order came to; None: go on with the next."""
        done = await self._orders.end(order)
        if done is None:
            self._desk.tally.add("unknown")
            return Postpone(hold=Hold.IN_DOUBT)
        kind = self._count(done)
        turned_away = kind is RejectClass.RETRY or all(a.state in _NEVER_THERE for a in done.attempts)
        self._progress = self._progress.after(
            quantity=done.quantity, filled=done.filled_quantity, was_turned_away=turned_away
        )
        if kind is RejectClass.POSITION:
            return await self._disagreed_by_refusal(done)
        if kind is RejectClass.STOP:
            return Postpone(hold=Hold.REJECTED)
        if turned_away and self._progress.attempts >= self._desk.policy.attempts_max:
            return Postpone(hold=Hold.UNAVAILABLE)
        if done.filled_quantity < done.quantity:
            await self._pause()
        return None

    async def _try_again_or(self, hold: Hold) -> _End | None:
        """Nothing was sent: wait before the next attempt, or rest once all are used up."""
        self._progress = attrs.evolve(self._progress, attempts=self._progress.attempts + 1)
        if self._progress.attempts >= self._desk.policy.attempts_max:
            return Postpone(hold=hold)
        await self._pause()
        return None

    async def _pause(self) -> None:
        await anyio.sleep(exits.pause_ms(self.record, self._desk.policy, self._progress.attempts) / 1000)

    async def _settle_earlier(self) -> bool:
        """Count what earlier passes sent and did not see the end of. False: an order is in doubt."""
        while (order := await self._orders.find(self.record, exits.leg_name(self.record.legs + 1))) is not None:
            done = await self._orders.end(order)
            if done is None:
                self._desk.tally.add("unknown")
                return False
            self._count(done)
        return True

    def _count(self, done: IntentRecord) -> RejectClass | None:
        """Take an ended order into the exit's record; what kind of refusal it was, if it was one."""
        desk, now_ms = self._desk, self._desk.clock.now_ms()
        filled = done.filled_quantity
        before = self.record
        self.record = exits.settled(before, filled, done.average_price or done.limit_price, now_ms=now_ms)
        self._closed = EXACT.add(self._closed, left_of(self.record.closed_quantity, before.closed_quantity))
        desk.tally.add("filled" if filled >= done.quantity else "partial" if filled > 0 else "failed")
        if done.state is not IntentState.REJECTED:
            return None
        error = None if done.last is None else done.last.error
        facts = error if error is not None else ErrorFacts(kind="OrderRejected")
        kind = exits.reject_class(facts)
        desk.tally.rejected(before.symbol, kind)
        self.record = exits.refused(
            attrs.evolve(self.record, rejects=before.rejects), facts, is_about_position=kind is RejectClass.POSITION
        )
        return kind

    # --- what stands in the way ------------------------------------------------------------------

    @property
    def _must_release(self) -> bool:
        return not (exits.is_contract(self.record.symbol) and self._desk.policy.keeps_stop_on_contracts)

    async def _release(self) -> bool:
        """Cancel the position's own stops and take-profits. False: some may still be there."""
        protections = self._desk.protections
        if protections is None:
            return True
        self._has_released = True
        try:
            released = await protections.release(self.record.key)
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing is known to be released
            self._desk.caught("protections", error)
            return False
        if not isinstance(released, Released):
            return False
        if released.canceled != 0:
            self._released_at_ms = self._desk.clock.now_ms()
        return True

    async def _resume_protection(self) -> None:
        """What is left must not stay without its stop while the exit rests, nor after a part of it was closed."""
        protections, key = self._desk.protections, self.record.key
        position = self._desk.positions.position(key.account, key.symbol)
        if protections is None or position is None or position.side is not key.side:
            return
        try:
            await protections.resume(key)
        except Exception as error:  # noqa: BLE001 - its keeper tries again; the exit's own end is known already
            self._desk.caught("protections", error)

    async def _ask_market(self, asked: AskMarket) -> _End | None:
        desk, record = self._desk, self.record
        if self._asked_market:
            return Postpone(hold=Hold.NO_LIQUIDITY)
        self._asked_market = True
        request = MarketRequest(
            key=record.key,
            position_id=record.position_id,
            quantity=asked.quantity,
            reason=record.reason,
            since_ms=record.progress_at_ms,
            attempts=record.legs,
        )
        try:
            with anyio.move_on_after(desk.policy.approval_timeout_s):
                self._may_market = await desk.approval.approve(request) is True
        except Exception as error:  # noqa: BLE001 - only a yes is a yes
            desk.caught("approval", error)
        if self._may_market:
            return None
        desk.tally.add("approvals_denied")
        if self._before.hold is not Hold.APPROVAL_DENIED:
            desk.tell(EventType.APPROVAL_DENIED, record, quantity=asked.quantity)
        return Postpone(hold=Hold.APPROVAL_DENIED)

    async def _disagreed_by_refusal(self, done: IntentRecord) -> _End | None:
        """Once per pass: reconcile, release, read again, and sell less. A second refusal ends the pass."""
        position = self._desk.positions.position(self.record.account, self.record.symbol)
        held = done.quantity if position is None else position.quantity
        await self._mismatch(held, None, self.record.last_error)
        if self._refused_quantity is not None:
            return Postpone(hold=Hold.MISMATCH)
        self._refused_quantity = done.quantity
        await self._release()
        return None

    async def _confirm(self, found: Disagree) -> _End | None:
        """Believe a venue that holds less only if it says so twice."""
        if not self._disagreed:
            self._disagreed = True
            await anyio.sleep(self._desk.policy.confirm_pause_ms / 1000)
            return None
        await self._mismatch(found.position_quantity, found.venue_quantity, self.record.last_error)
        return Postpone(hold=Hold.MISMATCH)

    async def _mismatch(self, held: Decimal, at_venue: Decimal | None, error: ErrorFacts | None) -> None:
        desk, record = self._desk, self.record
        desk.tally.add("oversold")
        mismatch = PositionMismatch(
            key=record.key,
            position_id=record.position_id,
            position_quantity=held,
            venue_quantity=at_venue,
            error=error,
            at_ms=desk.clock.now_ms(),
        )
        if self._before.hold is not Hold.MISMATCH:
            desk.tell(EventType.EXIT_MISMATCH, record, quantity=held, error=error, venue_quantity=at_venue)
        await desk.reconcile(mismatch)

    # --- writing down ----------------------------------------------------------------------------

    async def _take_over_wishes(self) -> None:
        """A more urgent caller leaves its reason in the stored record."""
        newer = await self._desk.journal.find(self.record.key)
        if newer is None or newer.intent_key != self.record.intent_key or newer.state.is_terminal:
            raise Overtaken  # somebody else ended it
        was = self.record.reason
        self.record = exits.with_wish_of(self.record, newer)
        if self.record.reason is not was:
            self._progress, self._asked_market = exits.Progress(), False

    async def _finish(self, end: Finish) -> bool:
        """Write the end down. False: somebody wished for more meanwhile, so it is none yet."""
        desk = self._desk
        if end.state is ExitState.CLOSED and not self._must_release and self.record.wanted is None:
            await self._release()  # nothing is left that they would protect
        after = exits.ended(self.record, end.state, dust=end.quantity, now_ms=desk.clock.now_ms())
        events = [desk.cleared(after)]
        if end.state is ExitState.DUST:
            events.insert(0, desk.event(EventType.EXIT_DUST, after, quantity=end.quantity))
        try:
            self.record = await desk.journal.write(after, events, fence=self._lease())
        except VersionConflict:
            await self._take_over_wishes()
            return False
        desk.tally.add("dust" if end.state is ExitState.DUST else "closed")
        return True

    async def _rest(self, hold: Hold) -> None:
        desk = self._desk
        now_ms = desk.clock.now_ms()
        made_progress = self._closed > 0

        def rested(record: ExitRecord) -> ExitRecord:
            after = exits.rested(record, hold, desk.policy, made_progress=made_progress, now_ms=now_ms)
            return attrs.evolve(after, alarms=exits.alarms_due(after, desk.policy, now_ms=now_ms))

        after = rested(self.record)
        desk.tally.add("held")
        events = []
        if hold is not self._before.hold:
            events.append(desk.event(EventType.EXIT_HELD, after, note=hold.value, recheck_at_ms=after.recheck_at_ms))
        if exits.is_tripped(after, desk.policy) and not self._was_tripped:
            events.append(desk.event(EventType.BREAKER_TRIPPED, after, error=after.last_error, rejects=after.rejects))
        events += desk.alarm(self.record, after)
        while True:
            try:
                self.record = await desk.journal.write(rested(self.record), events, fence=self._lease())
                return
            except VersionConflict:
                await self._take_over_wishes()
