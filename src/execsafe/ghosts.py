"""``GhostOrderResolver``: turns UNKNOWN into found, absent or ended (proven), or unresolved (escalated)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import attrs

from execsafe._calls import within
from execsafe.clock import SystemClock
from execsafe.core.ghosts import (
    Doubt,
    Sighting,
    Verdict,
    doubt_of,
    is_absent_everywhere,
    judge,
    next_look_ms,
)
from execsafe.model.intent import Attempt, Intent
from execsafe.model.order import OrderReport
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.values import check_seconds
from execsafe.model.venue import LookUp, View
from execsafe.ports import Clock, ExchangeAdapter, OrderRef

_POLICY_MAX_S = 86_400.0


@attrs.frozen(kw_only=True)
class LookPolicy:
    """How often and how long to look.

    Attributes:
        interval_s: pause between two looks at one order. 1 s: a venue's query side rarely catches up faster.
        spacing_s: least time between two reads by this resolver, whatever the order: the look budget. 0.1 s is
            ten reads a second, below every venue's limit.
        timeout_s: how long one read may take; then it counts as unreadable, never as absence.
    """

    interval_s: float = 1.0
    spacing_s: float = 0.1
    timeout_s: float = 10.0

    def __attrs_post_init__(self) -> None:
        """Refuse values that would hammer the venue or never end."""
        check_seconds(self.interval_s, "interval_s", most=_POLICY_MAX_S)
        check_seconds(self.timeout_s, "timeout_s", most=_POLICY_MAX_S)
        check_seconds(self.spacing_s, "spacing_s", least=0, most=_POLICY_MAX_S)


@attrs.frozen(kw_only=True)
class Look:
    """One look through all declared views. ``began_at_ms`` is when it began: a look proves nothing later."""

    began_at_ms: int
    seen: dict[View, Sighting]
    report: OrderReport | None = None


@attrs.frozen(kw_only=True)
class Resolution:
    """A verdict and the look that led to it."""

    verdict: Verdict
    look: Look
    looks: int

    @property
    def report(self) -> OrderReport | None:
        """The order as found, for ``Verdict.FOUND``."""
        return self.look.report


def order_ref(intent: Intent, attempt: Attempt) -> OrderRef:
    """How to find an attempt's order."""
    return OrderRef(
        symbol=intent.symbol,
        client_order_id=attempt.client_order_id,
        venue_order_id=attempt.venue_order_id,
        side=intent.side,
        type=intent.type,
        is_trigger=intent.is_trigger,
        sent_at_ms=attempt.prepared_at_ms,
    )


class GhostOrderResolver:
    """Looks for an order in every declared view until a verdict is possible.

    The verdicts are decided by :mod:`execsafe.core.ghosts`; this class only reads and waits. A read that fails,
    hangs or cannot be understood is *unreadable*: it neither finds nor proves anything.
    """

    def __init__(
        self, adapter: ExchangeAdapter, *, clock: Clock | None = None, policy: LookPolicy | None = None
    ) -> None:
        self._adapter = adapter
        self._clock = clock if clock is not None else SystemClock()
        self.policy: LookPolicy = policy if policy is not None else LookPolicy()
        self._next_read_ms = 0
        self._asked_at_ms = 0

    async def resolve(
        self,
        intent: Intent,
        attempt: Attempt,
        *,
        since_ms: int,
        patience_s: float,
        before_look: Callable[[], Awaitable[None]] | None = None,
    ) -> Resolution:
        """Look until the order is found, proven absent, or *patience_s* after *since_ms* is over.

        *before_look* runs before every look (the caller renews its lease there); what it raises ends the search.
        """
        ref = order_ref(intent, attempt)
        doubt = doubt_of(attempt, self._adapter.profile, since_ms=since_ms, patience_s=patience_s)
        views = self._adapter.profile.views
        absent_since_ms: int | None = None
        looks = 0
        while True:
            if before_look is not None:
                await before_look()
            look = await self.look(ref)
            looks += 1
            began_ms = look.began_at_ms
            verdict = judge(doubt, views, look.seen, looked_at_ms=began_ms, absent_since_ms=absent_since_ms)
            if verdict is not Verdict.LOOK_AGAIN:
                return Resolution(verdict=verdict, look=look, looks=looks)
            if absent_since_ms is None and is_absent_everywhere(doubt, views, look.seen, looked_at_ms=began_ms):
                absent_since_ms = self._clock.now_ms()
            await self._pause(doubt, absent_since_ms)

    async def look(self, ref: OrderRef) -> Look:
        """Read the declared views in order until one has the order."""
        began_at_ms = self._clock.now_ms()
        seen: dict[View, Sighting] = {}
        for lookup in self._adapter.profile.lookups:
            sighting, report = await self._read(lookup, ref)
            # A view may take several reads: it is absent only if all of them say so.
            if seen.get(lookup.view) is not Sighting.UNREADABLE:
                seen[lookup.view] = sighting
            if report is not None:
                return Look(began_at_ms=began_at_ms, seen={**seen, lookup.view: sighting}, report=report)
        return Look(began_at_ms=began_at_ms, seen=seen)

    async def _read(self, lookup: LookUp, ref: OrderRef) -> tuple[Sighting, OrderReport | None]:
        await self._await_turn()
        try:
            with within(self.policy.timeout_s):
                report = await self._adapter.look_up(lookup, ref)
                return (Sighting.ABSENT if report is None else Sighting.PRESENT), report
        except Exception as error:  # noqa: BLE001 - whatever a client raises: judged, never guessed
            if self._adapter.judge(error, Operation.LOOK_UP).meaning is Meaning.NOT_FOUND:
                return Sighting.ABSENT, None
        return Sighting.UNREADABLE, None

    async def _await_turn(self) -> None:
        now_ms = self._clock.now_ms()
        # A clock that was set back must not keep looks waiting until it has caught up.
        turn_ms = now_ms if now_ms < self._asked_at_ms else max(now_ms, self._next_read_ms)
        self._asked_at_ms = now_ms
        self._next_read_ms = turn_ms + round(self.policy.spacing_s * 1000)
        if turn_ms > now_ms:
            await anyio.sleep((turn_ms - now_ms) / 1000)

    async def _pause(self, doubt: Doubt, absent_since_ms: int | None) -> None:
        now_ms, interval_ms = self._clock.now_ms(), max(1, round(self.policy.interval_s * 1000))
        at_ms = next_look_ms(doubt, now_ms=now_ms, interval_ms=interval_ms, absent_since_ms=absent_since_ms)
        # A venue that asked to be left alone is; a look at the end of the patience finds its views unreadable.
        at_ms = max(at_ms, min(self._adapter.not_before_ms() or 0, doubt.patience_ends_ms))
        await anyio.sleep((at_ms - now_ms) / 1000)
