"""One leg at its venue: what its orders' records say, and how an order of it is sent, ended and read again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import TypeVar

import anyio
import attrs

from execsafe._calls import within
from execsafe.core.hedging import HedgeLeg, LegView, TurnedAway, turned_away_again, was_turned_away
from execsafe.core.hedging.decide import OPEN, UNWIND
from execsafe.core.safety import DenyReason
from execsafe.errors import (
    AlreadyInFlight,
    ExecsafeError,
    IntentConflict,
    OutcomeUnknown,
    StoreError,
    TradingDenied,
    VenueUnavailable,
)
from execsafe.gateway import OrderGateway, SubmitOutcome, Unknown
from execsafe.ghosts import order_ref
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent, IntentRecord
from execsafe.model.order import OrderReport, Side
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.position import PositionSide, Snapshot
from execsafe.model.values import EXACT, shorten, total
from execsafe.views import VenueReader

T = TypeVar("T")
_PREPARE_TIMEOUTS = 3  # loading a venue's markets takes several requests
_OVERTAKEN_MAX = 20
_CLOCKS_DIFFER_MS = 60_000


async def side_by_side(works: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """All results in order. All are seen to their end; then the first error is raised, if there was one."""
    if len(works) == 1:
        return [await works[0]()]
    results: dict[int, T] = {}
    errors: list[Exception] = []

    async def run(index: int, work: Callable[[], Awaitable[T]]) -> None:
        try:
            results[index] = await work()
        except Exception as error:  # noqa: BLE001 - raised below, without the group around it
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for index, work in enumerate(works):
            tasks.start_soon(run, index, work)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(works))]


@attrs.define
class Bench:
    """A leg, its gateway, and what this pass has seen of its orders."""

    leg: HedgeLeg
    index: int
    gateway: OrderGateway
    instrument: Instrument
    price: Decimal | None = None
    opening: tuple[IntentRecord, ...] = ()
    closing: tuple[IntentRecord, ...] = ()
    refusal: Exception | None = None
    turned_away: TurnedAway | None = None
    is_stuck: bool = False
    has_asked_trades: bool = False
    closes_tried: int = 0
    tried_at_ms: int = 0
    overtaken: int = 0

    def view(self) -> LegView:
        """What a decision sees."""
        return LegView(
            leg=self.leg,
            instrument=self.instrument,
            price=self.price,
            opening=self.opening,
            closing=self.closing,
            is_refused=self.refusal is not None,
            turned_away=self.turned_away,
            not_before_ms=self.gateway.adapter.not_before_ms(),
            is_stuck=self.is_stuck,
            has_asked_trades=self.has_asked_trades,
            closes_tried=self.closes_tried,
            tried_at_ms=self.tried_at_ms,
        )

    @property
    def records(self) -> tuple[IntentRecord, ...]:
        """All of the leg's orders."""
        return (*self.opening, *self.closing)

    async def load(self, key: str) -> None:
        """Read the newest records of all the leg's orders, under the names that they have by their number."""
        self.opening = await recorded(self.gateway, self.leg, self.index, key, OPEN)
        self.closing = await recorded(self.gateway, self.leg, self.index, key, UNWIND)

    # --- acting ----------------------------------------------------------------------------------

    async def submit(self, intent: Intent, *, now_ms: int) -> None:
        """Hand an order to the gateway. Whatever comes of it is read from its record afterwards.

        Raises:
            StoreError: it could not be journalled.
        """
        is_exit = intent.leg.startswith(f"{UNWIND}-")
        if is_exit:
            self.closes_tried, self.tried_at_ms = self.closes_tried + 1, now_ms
        try:
            outcome = await self.gateway.submit(intent, join=True, undoes=self.opening)
            self._note(outcome)
            if not is_exit:
                self._count_turned_away(was_turned_away(outcome.record))
        except StoreError:
            raise
        except OutcomeUnknown:
            self.is_stuck = True
        except (IntentConflict, AlreadyInFlight):
            # Another process was first: its record says what this order is. It is read before anything is decided.
            self.overtaken += 1
            self.is_stuck = self.overtaken >= _OVERTAKEN_MAX
            await anyio.sleep(self.gateway.resolver.policy.interval_s)
        except Exception as error:  # noqa: BLE001 - refused before sending, in whatever words
            if any(record.intent.leg == intent.leg for record in self.records):
                self.is_stuck = True  # it was sent before: what became of it could not be found out
            elif self.index and _passes_soon(error):
                self._count_turned_away(True)
            elif not is_exit:
                self.refusal = error

    async def cancel(self, record: IntentRecord) -> None:
        """End what rests of an order; a fill on the way counts."""
        intent = record.intent
        self._note(await self.gateway.cancel(intent.key, account=intent.account, leg=intent.leg))

    def _count_turned_away(self, is_away: bool) -> None:
        now_ms = self.gateway.registry.clock.now_ms()
        self.turned_away = turned_away_again(self.turned_away, now_ms=now_ms) if is_away else None

    def _note(self, outcome: SubmitOutcome) -> None:
        if isinstance(outcome, Unknown):
            self.is_stuck = True

    async def refresh(self, record: IntentRecord) -> None:
        """Read an order that rests."""
        await self.gateway.refresh(record)

    async def read_again(self) -> bool:
        """Look for every order once more, also for those that ended or never came to be; False: not all were readable.

        What is found is taken into the records, whatever their verdict was.
        """
        complete = True
        for record in self.records:
            for attempt in record.attempts:
                look = await self.gateway.resolver.look(order_ref(record.intent, attempt))
                if look.report is not None:
                    mine = attrs.evolve(look.report, client_order_id=attempt.client_order_id)
                    venue = self.gateway.adapter.venue_name
                    await self.gateway.registry.observe(mine, account=self.leg.account, venue=venue)
                elif any(sighting.value == "unreadable" for sighting in look.seen.values()):
                    complete = False
        return complete

    async def learn(self) -> None:
        """Read the trades of the orders that opened the leg into their records, with the fees; or do without."""
        self.has_asked_trades = True
        attempts = [a for record in self.opening for a in record.attempts if a.venue_order_id is not None]
        since_ms = min((record.created_at_ms for record in self.opening), default=0) - _CLOCKS_DIFFER_MS
        reading = await reader_of(self.gateway).executions(self.leg.symbol, since_ms=max(0, since_ms))
        if not isinstance(reading, Snapshot):
            return
        for attempt in attempts:
            mine = [e for e in reading.value if e.venue_order_id == attempt.venue_order_id]
            report = OrderReport(
                symbol=self.leg.symbol,
                client_order_id=attempt.client_order_id,
                venue_order_id=attempt.venue_order_id,
                fills=tuple(execution.fill for execution in mine),
            )
            venue = self.gateway.adapter.venue_name
            await self.gateway.registry.observe(report, account=self.leg.account, venue=venue)


def _passes_soon(error: Exception) -> bool:
    """Whether an order that was refused before sending may pass in moments; what restricts trading lasts longer."""
    reason = error.context.get("reason") if isinstance(error, TradingDenied) else None
    return isinstance(error, VenueUnavailable) or reason in {DenyReason.NO_READING, DenyReason.RATE_LIMIT}


async def recorded(
    gateway: OrderGateway, leg: HedgeLeg, index: int, key: str, purpose: str
) -> tuple[IntentRecord, ...]:
    """The orders of a leg that open it, or that unwind it, as the journal has them."""
    found: list[IntentRecord] = []
    while True:
        label = f"{purpose}-{index + 1}.{len(found) + 1}"
        record = await gateway.registry.find(key, account=leg.account, leg=label)
        if record is None:
            return tuple(found)
        found.append(record)


async def prepare(leg: HedgeLeg, index: int, gateway: OrderGateway) -> Bench:
    """A leg that can be traded.

    Raises:
        InvalidInput: the venue does not list it.
        VenueUnavailable: the venue could not be asked.
    """
    adapter = gateway.adapter
    instrument = adapter.prepared(leg.symbol) or await _ask(leg, gateway)
    price = leg.price
    if price is None and instrument.min_notional is not None:
        price = await _quote(leg, gateway)
    return Bench(leg=leg, index=index, gateway=gateway, instrument=instrument, price=price)


async def _ask(leg: HedgeLeg, gateway: OrderGateway) -> Instrument:
    why = "no answer in time"
    try:
        with within(gateway.policy.request_timeout_s * _PREPARE_TIMEOUTS):
            return await gateway.adapter.prepare(leg.symbol)
    except ExecsafeError:
        raise
    except Exception as error:
        judged = gateway.adapter.judge(error, Operation.LOOK_UP)
        if judged.meaning is Meaning.REJECTED:  # a refused key: the client's own words say it best
            raise
        why = f"{judged.facts.kind}: {judged.facts.message}"
    raise VenueUnavailable(
        f"{gateway.adapter.venue_name} could not be asked for {leg.symbol} ({shorten(why, 300)}); nothing was sent",
        symbol=leg.symbol,
    )


async def _quote(leg: HedgeLeg, gateway: OrderGateway) -> Decimal | None:
    reading = await reader_of(gateway).quotes([leg.symbol])
    quote = reading.value.get(leg.symbol) if isinstance(reading, Snapshot) else None
    if quote is None:
        return None
    return (quote.bid if leg.side is Side.SELL else quote.ask) or quote.last


def reader_of(gateway: OrderGateway) -> VenueReader:
    """The venue's views, within the gateway's own time-out."""
    return VenueReader(
        gateway.adapter, clock=gateway.registry.clock, request_timeout_s=gateway.policy.request_timeout_s
    )


async def positions_of(benches: Sequence[Bench]) -> list[Decimal | None]:
    """The signed position of each contract leg; None for spot, and where it could not be read. One read per venue."""
    gateways = list({id(bench.gateway): bench.gateway for bench in benches if bench.leg.is_contract}.values())
    readings = await side_by_side([reader_of(gateway).positions for gateway in gateways]) if gateways else []
    by_gateway = {id(gateway): reading for gateway, reading in zip(gateways, readings, strict=True)}
    shown: list[Decimal | None] = []
    for bench in benches:
        reading = by_gateway.get(id(bench.gateway)) if bench.leg.is_contract else None
        if not isinstance(reading, Snapshot):
            shown.append(None)
            continue
        mine = [position for position in reading.value if position.symbol == bench.leg.symbol]
        shown.append(total(p.quantity if p.side is PositionSide.LONG else EXACT.minus(p.quantity) for p in mine))
    return shown
