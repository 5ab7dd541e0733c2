"""A running bot's bus: signals of other programs come in, and what happens goes out."""

from __future__ import annotations

import logging
from typing import Final

import anyio
import attrs

import execsafe
from execsafe.bot.config import BusConfig
from execsafe.bot.desk import TradingDesk
from execsafe.buses import ManagedBus
from execsafe.buses.publishing import EventRelay
from execsafe.buses.surviving import survived
from execsafe.core.backoff import Backoff
from execsafe.core.signals import SIDE_ALIASES
from execsafe.signals import SignalResult, SignalWork

_log = logging.getLogger("execsafe.bot.wires")
_PAUSES: Final = Backoff(base_s=0.5, cap_s=30.0, jitter=0.0, max_attempts=None)
_RELAY_S: Final = 1.0
_LAST_S: Final = 2.0
_CURSOR: Final = "bot events"  # whatever the topic is called


def signal_policy(config: BusConfig, symbols: tuple[str, ...], policy: execsafe.SignalPolicy) -> execsafe.SignalPolicy:
    """*policy*, for signals as the configured senders write them."""
    if not config.url:
        return policy
    known = {symbol: symbol for symbol in symbols} | config.symbols
    return attrs.evolve(policy, symbols=known, side_aliases=SIDE_ALIASES if config.buy_is_long else {})


def forget_events(desk: TradingDesk) -> None:
    """No events are published any more: what an earlier run left unpublished no longer has to be kept."""

    async def forget() -> None:
        await survived(lambda: desk.store.delete_cursor(_CURSOR), "forgetting what was to be published", log=_log)

    desk.beside.append(forget)


class Wires:
    """Reads signals from a bus, and publishes the desk's events to it.

    A bus that cannot be reached ends nothing: what the bot holds is looked after without it, and signals come once it
    can be reached again.

    Args:
        bus: not yet open; whoever made it closes it.
        config: which topics.
        group: whose signals; one that no other bot has.
        desk: opens what the signals say, and has the events; they are published for as long as it runs.
    """

    def __init__(self, bus: ManagedBus, config: BusConfig, desk: TradingDesk, *, group: str) -> None:
        self._bus = bus
        self._desk = desk
        self._listens = bool(config.signals)
        self._turn = anyio.Lock()
        self.consumer: execsafe.SignalConsumer = execsafe.SignalConsumer(
            bus, desk.gate, self._handle, topic=config.signals, group=group
        )
        self._relay = EventRelay(desk.store, bus, topic=config.events, name=_CURSOR)
        if config.events:
            desk.beside.append(self._tell)

    async def listen(self) -> None:
        """Have signals executed, until cancelled: what is under way then is gone on with by the next run."""
        if self._listens:
            await self._reach()
            await self.consumer.run()

    async def _tell(self) -> None:
        await self._reach()
        try:
            failures = 0
            while True:
                is_done = await survived(self._relay.relay, "publishing events", log=_log)
                failures = 0 if is_done else failures + 1
                await anyio.sleep(_RELAY_S if is_done else _PAUSES.envelope_ms(failures) / 1_000)
        finally:
            # What the end itself brought. What cannot be published now stays in the store for the next run.
            with anyio.move_on_after(_LAST_S, shield=True):
                await survived(self._relay.relay, "publishing the last events", log=_log)

    async def _reach(self) -> None:
        tries = 0
        async with self._turn:
            while not await survived(self._bus.open, "reaching the bus", log=_log):
                tries += 1
                await anyio.sleep(_PAUSES.envelope_ms(tries) / 1_000)

    async def _handle(self, work: SignalWork) -> SignalResult:
        return await self._desk.handler(work)  # whoever that is by then
