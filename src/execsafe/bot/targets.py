"""Takes profit part by part: a position's targets are written down when it opens, and taken as prices come by."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

import anyio
import attrs

import execsafe
from execsafe import exits
from execsafe.buses.surviving import survived
from execsafe.levels import HarvestLeg
from execsafe.ports import Batch, Put
from execsafe.stores import commit_shielded, register

_log = logging.getLogger("execsafe.bot.targets")
_COLLECTION = "bot_targets"
_STORE_TIMEOUT_S = 10.0


@attrs.frozen(kw_only=True)
class Targets:
    """The parts of one position that are to be taken, nearest first, and how many were."""

    position_id: str
    account: str
    symbol: str
    side: execsafe.PositionSide
    legs: tuple[HarvestLeg, ...]
    levels: tuple[Decimal, ...] = ()
    taken: int = 0
    is_open: bool = True

    @property
    def key(self) -> execsafe.PositionKey:
        """Whose targets they are."""
        return execsafe.PositionKey(account=self.account, symbol=self.symbol, side=self.side)

    def due(self, price: Decimal) -> tuple[HarvestLeg, ...]:
        """The parts whose target *price* has reached, and that were not taken yet."""
        ahead = self.legs[self.taken :]
        return tuple(leg for leg in ahead if (price - leg.price) * self.side.sign >= 0)


register(Targets, "BotTargets")


async def all_targets(store: execsafe.Store, position_ids: Iterable[str]) -> list[Targets]:
    """What *store* has of the targets of these positions, of closed ones too.

    Raises:
        StoreError: it cannot be read.
    """
    found = [await store.find(_COLLECTION, position_id) for position_id in dict.fromkeys(position_ids)]
    return [stored.value for stored in found if stored is not None and isinstance(stored.value, Targets)]


class Harvester:
    """Watches prices for the targets of open positions.

    A part is marked as taken *before* its exit is asked for: a crash between the two leaves that part to the stop,
    never sells it twice.
    """

    def __init__(
        self,
        *,
        store: execsafe.Store,
        book: execsafe.PositionBook,
        exits_: execsafe.ExitManager,
        stops: execsafe.ProtectionManager,
        prices: execsafe.PriceBoard,
        clock: execsafe.Clock,
        tell: Callable[[Sequence[execsafe.Event]], None],
        interval_s: float = 0.5,
    ) -> None:
        self._store = store
        self._book = book
        self._exits = exits_
        self._stops = stops
        self._prices = prices
        self._clock = clock
        self._tell = tell
        self._interval_s = interval_s
        self._known: dict[str, tuple[Targets, int]] = {}

    async def open(self) -> None:
        """Load the targets of an earlier process."""
        for stored in await self._store.scan_open(_COLLECTION):
            if isinstance(stored.value, Targets):
                self._known[stored.key] = stored.value, stored.version

    def targets(self, position_id: str) -> Targets | None:
        """The targets of an open position; None if it has none."""
        return self._known[position_id][0] if position_id in self._known else None

    async def follow(
        self,
        position: execsafe.Position,
        levels: execsafe.Levels,
        instrument: execsafe.Instrument,
        *events: execsafe.Event,
    ) -> None:
        """Write the targets of a new position down, and *events* with them; a second time nothing changes."""
        if position.position_id in self._known or position.entry_price is None:
            return
        prices = levels.prices(position.side, position.entry_price, instrument)
        plan = levels.harvest(position.quantity, prices, instrument)
        await self._save(
            Targets(
                position_id=position.position_id,
                account=position.account,
                symbol=position.symbol,
                side=position.side,
                legs=plan.legs,
                levels=(*prices.targets, prices.sl),
            ),
            *events,
        )

    async def run(self) -> None:
        """Look at the prices until cancelled. What fails is tried again with the next look."""
        while True:
            await anyio.sleep(self._interval_s)
            for targets, _ in list(self._known.values()):
                look = functools.partial(self._look, targets)
                await survived(look, f"a look at the targets of {targets.position_id}", log=_log)

    async def _look(self, targets: Targets) -> None:
        position = self._book.find(targets.position_id)
        if position is None or not position.is_open:
            await self._save(attrs.evolve(targets, is_open=False))
            return
        reading = await self._prices.price(targets.symbol)
        if not isinstance(reading, execsafe.Price) or reading.is_stale:
            return
        quote = reading.quote
        price = quote.bid if targets.side is execsafe.PositionSide.LONG else quote.ask  # at which it could be closed
        due = () if price is None else targets.due(price)
        if not due or self._exits.is_exiting(targets.key):
            return
        await self._save(attrs.evolve(targets, taken=targets.taken + len(due)))
        quantity = sum((leg.quantity for leg in due), Decimal(0))
        await self._exits.exit(targets.key, exits.ExitReason.TAKE_PROFIT, quantity=min(quantity, position.quantity))
        await self._stops.resume(targets.key)

    async def _save(self, targets: Targets, *events: execsafe.Event) -> None:
        now_ms = self._clock.now_ms()
        version = self._known[targets.position_id][1] if targets.position_id in self._known else 0
        put = Put(
            collection=_COLLECTION,
            key=targets.position_id,
            value=targets,
            version=version,
            is_open=targets.is_open,
            ended_at_ms=None if targets.is_open else now_ms,
        )
        batch = Batch(now_ms=now_ms, puts=(put,), events=events)
        await commit_shielded(self._store, batch, timeout_s=_STORE_TIMEOUT_S)
        if targets.is_open:
            self._known[targets.position_id] = targets, version + 1
        else:
            self._known.pop(targets.position_id, None)
        self._tell(events)
