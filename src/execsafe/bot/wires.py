"""A running bot's bus: signals of other programs come in, and what happens goes out."""

from __future__ import annotations

import functools
import logging
from typing import Final

import anyio
import attrs

import execsafe
from execsafe.bot.config import BusConfig
from execsafe.bot.desk import TradingDesk
from execsafe.buses import ManagedBus
from execsafe.buses.publishing import EventRelay, LevelsRelay
from execsafe.buses.surviving import survived
from execsafe.core.backoff import Backoff
from execsafe.core.signals import SIDE_ALIASES, OnFlat

_log = logging.getLogger("execsafe.bot.wires")
_PAUSES: Final = Backoff(base_s=0.5, cap_s=30.0, jitter=0.0, max_attempts=None)
_RELAY_S: Final = 1.0
_LAST_S: Final = 2.0
# Cursors, whatever their topics are called.
_EVENTS: Final = "bot events"
_LEVELS: Final = "bot levels"


def signal_policy(config: BusConfig, symbols: tuple[str, ...], policy: execsafe.SignalPolicy) -> execsafe.SignalPolicy:
    """*policy*, for signals as the configured senders write them."""
    if not config.url:
        return policy
    known = {symbol: symbol for symbol in symbols} | config.symbols
    return attrs.evolve(
        policy,
        symbols=known,
        side_aliases=SIDE_ALIASES if config.buy_is_long else {},
        on_flat=OnFlat.EXIT if config.flat_closes else OnFlat.SKIP,
    )


def forget_unpublished(desk: TradingDesk, config: BusConfig) -> None:
    """Keep nothing back for topics to which nothing is published any more."""
    for cursor, topic in ((_EVENTS, config.events), (_LEVELS, config.levels)):
        if not (config.url and topic):
            desk.beside.append(functools.partial(_forget, desk.store, cursor))


async def _forget(store: execsafe.Store, cursor: str) -> None:
    await survived(lambda: store.delete_cursor(cursor), "forgetting what was to be published", log=_log)


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
        self._is_reached: bool | None = None  # None: nobody has tried so far
        self._failing: set[str] = set()  # topics to which nothing could be published
        self.consumer: execsafe.SignalConsumer = execsafe.SignalConsumer(
            bus, desk.gate, desk.execute, topic=config.signals, group=group
        )
        if config.events:
            self._publish(EventRelay(desk.store, bus, topic=config.events, name=_EVENTS))
        if config.levels:
            self._publish(LevelsRelay(desk.store, bus, topic=config.levels, name=_LEVELS))

    @property
    def trouble(self) -> str | None:
        """What does not work now, as a class of error; empty: all does. None: that is not known yet."""
        if not self._is_reached:
            return None if self._is_reached is None else "NotReached"
        if self.consumer.health().bus_failures_in_row:
            return "NotRead"
        return "NotPublished" if self._failing else ""

    async def listen(self) -> None:
        """Have signals executed, until cancelled: what is under way then is gone on with by the next run."""
        if self._listens:
            await self._reach()
            await self.consumer.run()

    def _publish(self, relay: EventRelay) -> None:
        self._desk.beside.append(functools.partial(self._tell, relay))

    async def _tell(self, relay: EventRelay) -> None:
        await self._reach()
        try:
            failures = 0
            while True:
                is_done = await survived(relay.relay, f"publishing {relay.topic}", log=_log)
                failures = 0 if is_done else failures + 1
                (self._failing.discard if is_done else self._failing.add)(relay.topic)
                await anyio.sleep(_RELAY_S if is_done else _PAUSES.envelope_ms(failures) / 1_000)
        finally:
            # What the end itself brought. What cannot be published now stays in the store for the next run.
            with anyio.move_on_after(_LAST_S, shield=True):
                await survived(relay.relay, f"publishing the last {relay.topic}", log=_log)

    async def _reach(self) -> None:
        tries = 0
        async with self._turn:
            while not await survived(self._bus.open, "reaching the bus", log=_log):
                tries += 1
                self._is_reached = False
                await anyio.sleep(_PAUSES.envelope_ms(tries) / 1_000)
            self._is_reached = True
