"""Exits while the store fails: once per position, and only where the venue itself keeps them from doing harm."""

from __future__ import annotations

from decimal import Decimal

import anyio
import attrs

from execsafe.core import exits
from execsafe.core.exits import ExitReason, ExitRecord, ExitState, Finish, Hold, Send, Sight
from execsafe.errors import ExecsafeError, InvalidInput, StoreError, VenueUnavailable
from execsafe.exits._desk import Desk
from execsafe.exits._orders import exit_order
from execsafe.exits.results import Deduplicated, Exited, ExitResult, Flat, Held, PartiallyExited, UnknownExit
from execsafe.gateway import Rejected
from execsafe.locks import DedupLock
from execsafe.model.intent import Intent
from execsafe.model.position import Position, PositionKey


class BlindExits:
    """One reduce-only order per position without the journal: a contract's venue refuses what would flip it.

    Not being able to close a position is the greater harm there. On spot, where nothing but the journal keeps two
    orders apart, the exit is held. What went out this way is put into the journal as soon as it works again.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._claims = DedupLock(clock=desk.clock)
        self._sent: dict[PositionKey, Intent] = {}

    async def exit(self, key: PositionKey, reason: ExitReason, wanted: Decimal | None) -> ExitResult:
        """Close what the book last knew of, at the furthest price that *reason* allows."""
        desk = self._desk
        position = desk.positions.position(key.account, key.symbol)
        if position is None or position.side is not key.side:
            return Flat(key=key)
        is_possible = exits.is_contract(key.symbol) and desk.gateway.policy.exits_without_journal
        if not is_possible or key in self._sent:
            return Held(record=None, hold=Hold.STORE)
        claim = self._claims.try_claim(key)
        if claim is None:
            return Deduplicated(key=key, new_reason=reason, existing_reason=None, age_ms=0)
        with claim:
            now_ms = desk.clock.now_ms()
            record = exits.begun(None, position, reason, wanted=wanted, now_ms=now_ms)
            return await self._close(attrs.evolve(record, sequence=0), position)

    async def _close(self, record: ExitRecord, position: Position) -> ExitResult:
        desk = self._desk
        outcome = None
        with anyio.move_on_after(desk.policy.exit_ioc_ttl_ms / 1000) as deadline:
            try:
                instrument = await desk.eyes.instrument(record.symbol, timeout_s=desk.gateway.policy.request_timeout_s)
                sight = Sight(position=position, reference=await desk.eyes.best_price(record))
                last = exits.Progress(rung=len(desk.policy.rungs(record.reason)) - 1)
                decision = exits.decide(record, sight, desk.policy, instrument, last)
                if isinstance(decision, Finish):
                    return Flat(key=record.key)
                if not isinstance(decision, Send):
                    return Held(record=None, hold=Hold.NO_PRICE)
                intent = exit_order(record, exits.leg_name(1), decision.quantity, decision.limit_price)
                self._sent[record.key] = intent
                outcome = await desk.gateway.submit(intent)
            except (VenueUnavailable, InvalidInput) as error:  # nothing was sent
                self._sent.pop(record.key, None)
                desk.caught("exit without journal", error)
            except ExecsafeError as error:
                desk.caught("exit without journal", error)
        if outcome is None and record.key not in self._sent:
            return Held(record=None, hold=Hold.UNAVAILABLE if deadline.cancelled_caught else Hold.STORE)
        if outcome is None or not outcome.record.state.is_terminal:
            return UnknownExit(record=record)
        order = outcome.record
        done = exits.settled(record, order.filled_quantity, order.average_price, now_ms=desk.clock.now_ms())
        if isinstance(outcome, Rejected) or done.closed_quantity <= 0:
            return Held(record=None, hold=Hold.STORE)
        if done.closed_quantity >= record.want_of(position):
            return Exited(record=exits.ended(done, ExitState.CLOSED, now_ms=desk.clock.now_ms()))
        return PartiallyExited(record=done, closed_quantity=done.closed_quantity, hold=Hold.STORE)

    async def journal(self, key: PositionKey) -> None:
        """Have the journal take in what went out without it. It is looked for, not sent again.

        Raises:
            StoreError: the journal still fails.
        """
        intent = self._sent.get(key)
        if intent is None:
            return
        try:
            await self._desk.gateway.submit(intent)
        except StoreError:
            raise
        except ExecsafeError as error:  # recorded, and in doubt: recovery settles it
            self._desk.caught("exit without journal", error)
        self._sent.pop(key, None)
