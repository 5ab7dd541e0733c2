"""Looks after one position at a time: look, decide, write down, act, look again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import anyio
import attrs

from execsafe.core.protection.plan import decide, exposure
from execsafe.core.protection.record import (
    Action,
    AttachStop,
    CancelLeg,
    Observation,
    Protection,
    ProtectionPolicy,
    ProtectionState,
    Seen,
    SendLeg,
    StopRule,
    enter,
    given_up,
    new_protection,
    refused,
    released,
    stop_price_for,
    tightened,
)
from execsafe.core.protection.story import narrate
from execsafe.core.trailing import Hold, MoveStop, TrailingStop, Triggered, needs_saving, step, with_stop
from execsafe.errors import StoreError, VenueUnavailable, VersionConflict
from execsafe.gateway import OrderGateway
from execsafe.intents import is_settled
from execsafe.model.instrument import Instrument
from execsafe.model.position import Position, StopKind
from execsafe.model.values import Number, to_positive
from execsafe.ports import Clock
from execsafe.protection._eyes import Eyes
from execsafe.protection._hands import Hands
from execsafe.protection._shelf import Shelf

_log = logging.getLogger("execsafe.protection")
_ROUNDS_MAX = 16  # steps in one pass over one position; the next pass goes on
_S = ProtectionState

RuleSource: TypeAlias = Callable[[Position], StopRule | None]
"""Says where the stop of a new position belongs; None: it does not know this one."""


class Keeper:
    """The records of protections and the one loop that changes them; each position has one turn at a time."""

    def __init__(
        self, gateway: OrderGateway, eyes: Eyes, shelf: Shelf[Protection], policy: ProtectionPolicy, *, clock: Clock
    ) -> None:
        self._gateway = gateway
        self._eyes = eyes
        self._shelf = shelf
        self._policy = policy
        self._clock = clock
        self._hands = Hands(gateway, policy)
        self._turns: dict[str, anyio.Lock] = {}
        self._wanted_by_exit: set[str] = set()
        self.rules: list[RuleSource] = []

    def turn(self, position_id: str) -> anyio.Lock:
        """Held while the record of a position may change."""
        return self._turns.setdefault(position_id, anyio.Lock())

    # --- records ---------------------------------------------------------------------------------

    async def known(self, position: Position, rule: StopRule | None = None) -> Protection:
        """The record of *position*, made if it is new."""
        known = self._shelf.records.get(position.position_id) or await self._shelf.reload(position.position_id)
        if known is not None and not known.is_over(position):
            return known
        issued = 0 if known is None else known.issued  # revived by late evidence, or grown: its legs go on counting
        now_ms = self._clock.now_ms()
        fresh = new_protection(position, kind=self._gateway.adapter.stop_kind(position.symbol), now_ms=now_ms)
        instrument = await self._eyes.instrument(position.symbol)
        made = self._shelf.records.get(position.position_id)
        if made is not None and not made.is_over(position):  # another call was first: its record must not be replaced
            return made
        found = rule or next((r for r in (source(position) for source in self.rules) if r is not None), None)
        default = StopRule(distance=self._policy.default_distance, trailing=self._policy.trailing)
        if known is not None and known.state is _S.DUST:  # exposed since it changed: before, nothing could be done
            fresh = attrs.evolve(fresh, exposed_since_ms=min(now_ms, position.updated_at_ms))
        fresh = ruled(attrs.evolve(fresh, issued=issued), position, found or default, instrument)
        try:
            events = narrate(None, fresh, now_ms=now_ms, held=position.quantity)
            await self._shelf.save(position.position_id, fresh, events)
        except VersionConflict:  # another process, or another call of ours, was first
            return await self._shelf.reload(position.position_id) or fresh
        return fresh

    async def save(self, before: Protection, after: Protection, seen: Observation | None = None) -> Protection | None:
        """Write *after* with what happened; None: somebody else changed the record meanwhile, so decide again."""
        if self._shelf.records.get(after.position_id) is not before:
            return None
        if after == before:
            return after
        events = narrate(before, after, now_ms=self._clock.now_ms(), held=self._eyes.held(after, seen))
        is_open = after.state is not _S.CLOSED
        try:
            await self._shelf.save(after.position_id, after, events, is_open=is_open)
        except VersionConflict:
            await self._shelf.reload(after.position_id)
            return None
        if not is_open:
            self._shelf.drop(after.position_id)
            self._turns.pop(after.position_id, None)
        return after

    async def change(self, position_id: str, change: Callable[[Protection], Protection]) -> None:
        """Apply a wish to the record, in its turn."""
        async with self.turn(position_id):
            known = self._shelf.records.get(position_id)
            while known is not None and await self.save(known, change(known)) is None:
                known = self._shelf.records.get(position_id)

    # --- the loop --------------------------------------------------------------------------------

    async def tend(self, position_id: str) -> Protection | None:
        """Look after one position until it is covered, or nothing more can be done now; None: it is closed."""
        failure: Exception | None = None
        async with self.turn(position_id), anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, position_id)
            try:
                await self._rounds(position_id)
            except Exception as error:  # noqa: BLE001 - raised below, not as a group
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return self._shelf.records.get(position_id)

    async def _rounds(self, position_id: str) -> None:
        tried: set[str] = set()
        for _ in range(_ROUNDS_MAX):
            known = self._shelf.records.get(position_id)
            if known is None or position_id in self._wanted_by_exit:
                break
            seen = await self._look(known)
            after, actions = decide(known, seen, self._policy, now_ms=self._clock.now_ms())
            saved = await self.save(known, _with_real_stop(after), seen)
            if saved is not None and not await self._go_on(saved, actions, tried):
                break

    async def _look(self, known: Protection) -> Observation:
        try:
            return await self._eyes.observe(known)
        except VenueUnavailable:
            # Nothing can be done, but the alarm must not wait for the venue.
            await self.save(known, self._overdue(known))
            raise

    async def _go_on(self, known: Protection, actions: Sequence[Action], tried: set[str]) -> bool:
        """Carry out what is to be done; False: leave it for the next pass."""
        due = [a for a in actions if not (isinstance(a, CancelLeg) and a.leg.name in tried)]
        if not due:
            pause_ms = self._pause_ms(known)
            if actions or known.is_covered or pause_ms <= 0:
                return False
            await anyio.sleep(pause_ms / 1000)
            return True
        tried.update(a.leg.name for a in due if isinstance(a, CancelLeg))
        for action in due:
            await self._act(known.position_id, action)
        return True

    def _pause_ms(self, known: Protection) -> int:
        """Until the next try, or until the alarm is due: nobody else may look before."""
        due = [known.retry_at_ms]
        if known.exposed_since_ms is not None and not known.alarmed:
            due.append(known.exposed_since_ms + round(self._policy.alert_after_s * 1000))
        now_ms = self._clock.now_ms()
        return min((at_ms - now_ms for at_ms in due if at_ms > now_ms), default=0)

    async def _act(self, position_id: str, action: Action) -> None:
        known, why = self._shelf.records[position_id], ""
        match action:
            case SendLeg(leg=leg, patient=patient):
                why = await self._hands.send(known, leg, patient=patient)
            case AttachStop(stop_price=price):
                why = await self._hands.attach(known, price)
            case CancelLeg(leg=leg, patient=patient):
                await self._hands.cancel(known, leg, patient=patient)
                if leg.lost:  # nowhere to be seen: asked for once, and its wish stays in the journal
                    await self._update(position_id, lambda p: _without(p, leg.name))
        if why:
            await self._update(position_id, lambda p: refused(p, why, self._policy, now_ms=self._clock.now_ms()))

    async def _update(self, position_id: str, change: Callable[[Protection], Protection]) -> None:
        """As :meth:`change`, by whoever has the turn."""
        known = self._shelf.records.get(position_id)
        while known is not None and await self.save(known, change(known)) is None:
            known = self._shelf.records.get(position_id)

    async def _watch(self, position_id: str) -> None:
        """Raise the alarm in time, however long a request or a reading takes."""
        alert_ms = round(self._policy.alert_after_s * 1000)
        while (known := self._shelf.records.get(position_id)) is not None:
            left_ms = alert_ms
            if known.exposed_since_ms is not None and not known.alarmed:
                left_ms = known.exposed_since_ms + alert_ms - self._clock.now_ms()
            if left_ms > 0:
                await anyio.sleep(left_ms / 1000)
                continue
            try:
                await self._update(position_id, self._overdue)
            except StoreError:
                _log.exception("an alarm could not be written down: position %s is unprotected", position_id)
                return

    def _overdue(self, known: Protection) -> Protection:
        return known if known.is_covered else exposure(known, self._policy, self._clock.now_ms())

    async def settle(self, position_id: str) -> None:
        """Resolve what is in doubt about a position's orders, however long it takes; without its turn."""
        known = self._shelf.records.get(position_id)
        if known is None:
            return
        for leg in known.legs:
            record = await self._gateway.registry.find(known.intent_key, account=known.account, leg=leg.name)
            if record is not None and not is_settled(record):
                await self._hands.send(known, leg, patient=True)

    # --- prices ----------------------------------------------------------------------------------

    async def trail(self, position_id: str, price: Number) -> None:
        """Let the trailing stop of a position follow *price*."""
        moved = False
        async with self.turn(position_id):
            known = self._shelf.records.get(position_id)
            if known is None or known.trailing is None or known.state not in {_S.STOP, _S.UNPROTECTED}:
                return
            trailing, decision = step(known.trailing, price, self._clock.now_ms())
            after = attrs.evolve(known, trailing=trailing)
            if isinstance(decision, MoveStop):
                after = tightened(after, decision.stop_price)
            elif isinstance(decision, Triggered):
                after = given_up(after)
            moved = not isinstance(decision, Hold)
            if moved or needs_saving(known.trailing, trailing):
                await self.save(known, after)
        if moved:
            await self.tend(position_id)

    # --- exits -----------------------------------------------------------------------------------

    async def release(self, position_id: str) -> str:
        """Cancel all that protects a position; what may be left, "" if nothing is."""
        self._wanted_by_exit.add(position_id)
        try:
            async with self.turn(position_id):
                known = self._shelf.records.get(position_id)
                if known is not None and known.state is _S.CLOSING:
                    return "it is being closed by its protection"
                await self._update(position_id, lambda p: released(p, self._policy, now_ms=self._clock.now_ms()))
                left = await self._clear(position_id)
                if left:
                    await self._update(position_id, self.taken_back)
                return left
        finally:
            self._wanted_by_exit.discard(position_id)

    def taken_back(self, protection: Protection) -> Protection:
        """A released position, to be protected again."""
        if protection.state is not _S.RELEASED:
            return protection
        return enter(protection, _S.UNPROTECTED, exposed_since_ms=self._clock.now_ms())

    async def _clear(self, position_id: str) -> str:
        left: list[str] = []
        for _ in range(self._policy.tries):
            known = self._shelf.records.get(position_id)
            if known is None:
                return ""
            seen = await self._eyes.observe(known)
            legs = tuple(view.leg for view in seen.legs if view.seen not in {Seen.GONE, Seen.UNSENT})
            await self._update(position_id, lambda p, legs=legs: attrs.evolve(p, legs=legs))  # type: ignore[misc]
            has_attached = known.kind is StopKind.ATTACHED and seen.position is not None
            attached = has_attached and (seen.attached_price is not None or not seen.readable)
            left = [leg.name for leg in legs] + (["the attached stop"] if attached else [])
            if not left:
                return ""
            for leg in legs:
                await self._hands.cancel(known, leg)
            if attached:
                await self._hands.attach(known, None)
        return f"{', '.join(left)} may still be there"


def ruled(known: Protection, position: Position, rule: StopRule, instrument: Instrument) -> Protection:
    """*known* with the stop where *rule* says, on the tick toward the entry."""
    if rule.stop_price is not None:
        known = tightened(known, instrument.safe_limit_price(rule.stop_price, position.side.closing))
    elif rule.distance is not None and position.entry_price is not None:
        known = tightened(known, stop_price_for(position.side, position.entry_price, rule.distance, instrument))
    if rule.trailing is None or known.trailing is not None or position.entry_price is None:
        return known
    trailing = TrailingStop(
        side=position.side,
        entry_price=position.entry_price,
        tick_size=instrument.tick_size,
        policy=rule.trailing,
        stop_price=known.stop_price,
    )
    return attrs.evolve(known, trailing=trailing)


def wanted_take(known: Protection, price: Number, instrument: Instrument) -> Protection:
    """*known* with a take-profit in place of a stop, unless something protects it already."""
    if known.state is not _S.UNPROTECTED or known.legs:
        return known
    limit = instrument.safe_limit_price(to_positive(price, "take_profit_price"), known.side.closing)
    return enter(known, _S.TAKE_PROFIT, take_profit_price=limit)


def _with_real_stop(protection: Protection) -> Protection:
    """The trailing stop knows where the stop belongs, also when somebody else moved it."""
    trailing = protection.trailing
    if trailing is None or trailing.stop_price == protection.stop_price:
        return protection
    return attrs.evolve(protection, trailing=with_stop(trailing, protection.stop_price))


def _without(protection: Protection, name: str) -> Protection:
    return attrs.evolve(protection, legs=tuple(leg for leg in protection.legs if leg.name != name))
