"""Carries one plan through a pass: its legs, its claim on symbols, and what happens when the pass is interrupted."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import anyio
import attrs

from execsafe.buses.telling import tell
from execsafe.core.hedging import HedgePlan, HedgePolicy, HedgeRecord, Verdict, exposures, is_due
from execsafe.core.hedging.decide import OPEN, UNWIND
from execsafe.core.hedging.views import totals
from execsafe.errors import InvalidInput, StoreError
from execsafe.gateway import OrderGateway
from execsafe.hedging.benches import Bench, prepare, recorded, side_by_side
from execsafe.hedging.journal import Entry, HedgeJournal
from execsafe.hedging.passes import Pass, alarm
from execsafe.ports import Clock, Listener

_log = logging.getLogger("execsafe.hedging")
_Symbol: TypeAlias = tuple[str, str, str]


class PlanRunner:
    """Drives plans that were claimed by its owner."""

    def __init__(
        self,
        gateways: OrderGateway | Mapping[str, OrderGateway],
        journal: HedgeJournal,
        policy: HedgePolicy,
        *,
        clock: Clock,
        listeners: Sequence[Listener],
    ) -> None:
        self._gateways = gateways
        self._journal = journal
        self._policy = policy
        self._clock = clock
        self._listeners = tuple(listeners)
        self._users: dict[_Symbol, set[str]] = {}
        self._shared: set[str] = set()

    async def benches(self, plan: HedgePlan) -> list[Bench]:
        """The plan's legs, ready to be traded.

        Raises:
            InvalidInput: a leg names no gateway, or a symbol that its venue does not list.
            VenueUnavailable: a venue could not be asked.
        """
        return await side_by_side(
            [functools.partial(prepare, leg, index, self._gateway(leg.venue)) for index, leg in enumerate(plan.legs)]
        )

    def _gateway(self, venue: str) -> OrderGateway:
        if isinstance(self._gateways, OrderGateway):
            return self._gateways
        gateway = self._gateways.get(venue)
        if gateway is None:
            raise InvalidInput(f"there is no gateway {venue!r}; there are {', '.join(sorted(self._gateways))}")
        return gateway

    async def is_due(self, record: HedgeRecord) -> bool:
        """Whether an unfinished plan is to be gone on with. Only the journal is asked.

        Raises:
            InvalidInput: a leg names no gateway.
            StoreError: the journal could not be read.
        """
        found = []
        for index, leg in enumerate(record.plan.legs):
            gateway = self._gateway(leg.venue)
            opening = await recorded(gateway, leg, index, record.key, OPEN)
            found.append(totals(opening, await recorded(gateway, leg, index, record.key, UNWIND)))
        return is_due(record, found, self._policy, now_ms=self._clock.now_ms())

    def new_pass(self, entry: Entry, benches: Sequence[Bench]) -> Pass:
        """A pass over a plan."""
        key = entry.record.key
        return Pass(
            entry,
            benches,
            self._journal,
            self._policy,
            clock=self._clock,
            listeners=self._listeners,
            compares_positions=lambda: self._policy.verify_positions and key not in self._shared,
        )

    async def drive(self, entry: Entry, benches: Sequence[Bench]) -> Entry:
        """Go on with a plan until this pass has its end.

        A journal that fails after the leading leg was sent is no error of this call: the verdict is UNKNOWN, an alarm
        is raised, and the stored plan stays open for ``recover()``.

        Raises:
            StoreError: the journal failed, and nothing was sent.
            Exception: whatever refused the leading leg before it was sent.
        """
        key = entry.record.key
        names = self._enter(key, benches)
        one = self.new_pass(entry, benches)
        try:
            ended = await one.run()
        except anyio.get_cancelled_exc_class():
            await self._hurry(one)
            raise
        except StoreError as error:
            tell(self._listeners, alarm(key, error, self._clock.now_ms()))
            if not one.is_begun:
                raise
            ended = _in_the_dark(one, benches, error)
        finally:
            self._leave(key, names)
        if ended.record.verdict is Verdict.NOT_STARTED and one.refusal is not None:
            raise one.refusal
        return ended

    async def _hurry(self, one: Pass) -> None:
        """Cancelled: what filled is not left naked if a few seconds are enough to hedge or unwind it."""
        grace_s = self._policy.shutdown_grace_s
        try:
            with anyio.move_on_after(grace_s, shield=True):
                if grace_s:  # none: nothing is begun, not even in the journal
                    await one.run(hurry=True)
                    return
        except Exception:  # noqa: BLE001 - the cancellation goes on; what is left is recover()'s
            _log.exception("plan %s is left to recover()", one.entry.record.key)
        one.tell_what_is_left()

    def _enter(self, key: str, benches: Sequence[Bench]) -> list[_Symbol]:
        """Note who trades which symbol: a position that two plans move cannot be compared with the fills of one."""
        names = [(bench.leg.venue, bench.leg.account, bench.leg.symbol) for bench in benches]
        for name in names:
            users = self._users.setdefault(name, set())
            users.add(key)
            if len(users) > 1:
                self._shared |= users
        return names

    def _leave(self, key: str, names: Sequence[_Symbol]) -> None:
        for name in names:
            self._users[name].discard(key)
            if not self._users[name]:
                del self._users[name]
        self._shared.discard(key)


def _in_the_dark(one: Pass, benches: Sequence[Bench], error: StoreError) -> Entry:
    """What is known without the journal; nothing of it is stored."""
    record = one.entry.record
    found = exposures(record, [bench.view() for bench in benches])
    why = f"the journal failed: {error}"
    return Entry(attrs.evolve(record, verdict=Verdict.UNKNOWN, exposures=found, reason=why), one.entry.version)
