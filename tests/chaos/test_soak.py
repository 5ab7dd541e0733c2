"""A day at two trading desks, in virtual time: everything that can go wrong does, and processes are killed.

One desk opens, protects, trails and closes positions; the other trades pairs, and rests orders besides. Both live in
one process, on one venue. Prices are recorded candles, scaled to several perpetuals and played back and forth. What the
day came to is judged by the venue's hidden ledger, the journals, and the living objects of the process.
"""

from __future__ import annotations

import gc
import itertools
import random
import tracemalloc
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

import execsafe
from burial import burying
from execsafe.bot.candles import Candle, recorded
from execsafe.bot.desk import Came, TradingDesk
from execsafe.bot.moments import Moment
from execsafe.bot.pairs import Pairs
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.runner import Runner
from execsafe.bot.strategy import Close, Decision, Desk, Strategy
from execsafe.bot.waves import Waves
from execsafe.core.positions import ORDERS_MAX
from execsafe.model.intent import IntentRecord
from execsafe.model.outcome import Operation
from execsafe.model.position import StopKind
from execsafe.model.venue import Dedup, LookUp, VenueProfile, View
from execsafe.ports import Batch, Lease
from execsafe.safety import TripReason
from execsafe.stores.memory import MemoryStore
from execsafe.testing.adapter import SIM_PROFILE, SimAdapter
from execsafe.testing.clock import EPOCH_MS, VirtualClock
from execsafe.testing.faults import APPLIES, Fault, FaultPlan, defensible
from execsafe.testing.loop import ProcessKilled, SimLoop, run_simulated, run_simulated_trio
from execsafe.testing.venue import SimVenue, linear

D = Decimal
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
CANDLE_MS = 5 * MINUTE_MS
START_MS = EPOCH_MS - EPOCH_MS % HOUR_MS + HOUR_MS
TIDE, PAIR, MAKER = ("BTC", "ETH", "LTC"), ("SOL", "XRP"), ("BNB",)
TTL_S, SWEEP_S = 7_200.0, 3_600.0
OPEN_FOR_MS = 100 * MINUTE_MS
DOWN_S = (5, 60)
WARM_UP = 96
LOOKS_S = 600.0
DRILL_MS = (65 * MINUTE_MS, 85 * MINUTE_MS)

GATEWAY = execsafe.GatewayPolicy(request_timeout_s=2.0)
PROTECTION = execsafe.ProtectionPolicy(interval_s=5.0)
COMMON: dict[str, Any] = {
    "notional": D(500),
    "leverage": 5,
    "gateway": GATEWAY,
    "looks": execsafe.LookPolicy(timeout_s=2.0),
    "signals": execsafe.SignalPolicy(retention_s=TTL_S),
    "protection": PROTECTION,
    "prices": execsafe.PricePolicy(hot_s=5.0, cold_s=10.0, soft_hot_s=5.0, soft_cold_s=10.0),
    "settle_s": 15.0,
    "retention_s": TTL_S,
    # Faults all day long are an emergency, and what goes wrong for the sixth time calls a person; until then this day
    # is to go on trading through it.
    "safety": execsafe.SafetyPolicy(cool_down_max_s=60.0),
    "sweep_s": SWEEP_S,
}

# What strikes readings, of which there are many each second, must be rare; what strikes few requests must be frequent.
RATE = 0.01
RATES = {
    Fault.RATE_LIMITED: 5e-4, Fault.TIMESTAMP_REJECT: 5e-4, Fault.MAINTENANCE: 5e-5,
    Fault.LOOKUP_LAG: 2e-3, Fault.LOOKUP_ERROR: 1e-3, Fault.LOOKUP_MISSES_CLOSED: 2e-3, Fault.ID_INDEX_LOST: 2e-4,
    Fault.POSITIONS_EMPTY: 2e-3, Fault.POSITIONS_LAG: 2e-3, Fault.BOOK_EMPTY: 2e-2,
    Fault.PARTIAL_FILL: 0.05, Fault.STOP_REJECTED: 0.15, Fault.STOP_LOST: 0.15, Fault.FILL_BEFORE_ACK: 0.2,
    Fault.FILL_DURING_CANCEL: 0.05, Fault.CANCEL_OK_STILL_LIVE: 0.05,
}  # fmt: skip
STRUCK = frozenset({Operation.CREATE, Operation.CANCEL, Operation.LOOK_UP, Operation.SET_STOP})
ABOUT_POSITIONS = (
    frozenset(Fault) - frozenset(defensible(attrs.evolve(SIM_PROFILE, dedup=Dedup.FOREVER))) - {Fault.PRUNED_AFTER_END}
)


@attrs.frozen(kw_only=True)
class Kind:
    """A kind of venue, and what can go wrong there."""

    profile: VenueProfile
    stops: StopKind
    left_out: frozenset[Fault] = frozenset()

    @property
    def faults(self) -> frozenset[Fault]:
        # An id is used again only once its order is proven absent: nothing of that id has ended then.
        return (defensible(self.profile) | ABOUT_POSITIONS) - {Fault.DUPLICATE_ID_THOUGH_DEAD} - self.left_out


TRADES = LookUp(view=View.TRADES, method="fetch_my_trades", scan=True)
KINDS = {
    # Ids unique among open orders only: what the network delivers twice nobody can tell from what is meant. Pruned
    # orders are shown by no declared view.
    "stop orders": Kind(profile=SIM_PROFILE, stops=StopKind.ORDER),
    # Ids unique for ever, unless the venue loses its index of them: then a duplicate delivery is a second order.
    "attached stops": Kind(
        profile=attrs.evolve(
            SIM_PROFILE, dedup=Dedup.FOREVER, attached_stops=True, lookups=(*SIM_PROFILE.lookups, TRADES)
        ),
        stops=StopKind.ATTACHED,
        left_out=frozenset({Fault.ID_INDEX_LOST}),
    ),
}


@pytest.fixture(autouse=True)
def _buried():
    with burying():
        yield


# --- the market ------------------------------------------------------------------------------------------------


def market(number: int) -> Iterator[Candle]:
    """Recorded candles, back and forth without an end: a jump where they meet would be no market."""
    rows = recorded(("ETH/BTC", "LTC/BTC")[number % 2])
    scale = D(1_000 + 100 * number) / rows[0].close
    rows = [Candle(c.opened_at_ms, *((p * scale).quantize(D("0.1")) for p in (c.close, c.high, c.low))) for c in rows]
    offset = 7 * number
    while True:
        yield from rows[offset:]
        yield from reversed(rows[offset:])


def symbol(base: str) -> str:
    return f"{base}/USDT:USDT"


class ClockFeed:
    """Candles as they close, by the clock of the run."""

    def __init__(self, candles: Mapping[str, list[Candle]], clock: VirtualClock, until_ms: int) -> None:
        self._candles = candles
        self._clock = clock
        self._until_ms = until_ms

    async def moments(self, warm_up: int) -> AsyncGenerator[Moment, None]:
        first = (self._clock.now_ms() - START_MS) // CANDLE_MS + WARM_UP  # the one that is growing now
        for index in range(first - warm_up, 10**9):
            closed_ms = START_MS + (index - WARM_UP + 1) * CANDLE_MS
            if closed_ms > self._until_ms:
                return
            await anyio.sleep(max(0, closed_ms - self._clock.now_ms()) / 1000)
            shown = {name: rows[index] for name, rows in self._candles.items()}
            yield Moment(closed_at_ms=closed_ms, candles=shown, is_past=index < first)


class Tides(Waves):
    """Waves that also go: what has been open for some time is closed."""

    def on_candles(self, candles: Mapping[str, Candle], desk: Desk) -> Iterable[Decision]:
        yield from super().on_candles(candles, desk)
        for name, candle in candles.items():
            held = desk.position(name)
            if held is not None and candle.opened_at_ms - held.opened_at_ms > OPEN_FOR_MS:
                yield Close(id=f"ebb/{name}/{candle.opened_at_ms}", symbol=name)


class TwoSided:
    """No entry where nobody buys: it could not be closed again."""

    def __init__(self, reader: execsafe.VenueReader) -> None:
        self._reader = reader

    async def check(self, intent: execsafe.Intent, instrument: execsafe.Instrument) -> None:
        book = await self._reader.order_book(intent.symbol, depth=1)
        if not isinstance(book, execsafe.Snapshot) or not book.value.bids:
            raise execsafe.TradingDenied(f"{intent.symbol}: there is no book with two sides", reason="book")


# --- the journal, watched --------------------------------------------------------------------------------------


class Journal(MemoryStore):
    """Remembers of every intent how much it may own, and under which ids; and when which id became durable."""

    def __init__(self) -> None:
        super().__init__()
        self.meant: dict[str, Decimal] = {}
        self.ids: dict[str, set[str]] = {}
        self.durable: dict[str, int] = {}

    async def commit(self, batch: Batch) -> Lease | None:
        lease = await super().commit(batch)
        for put in batch.puts:
            if isinstance(put.value, IntentRecord):
                record = put.value
                identity = record.intent.identity
                self.meant[identity] = max(record.quantity, self.meant.get(identity, D(0)))
                self.ids.setdefault(identity, set()).update(a.client_order_id for a in record.attempts)
                for attempt in record.attempts:
                    self.durable.setdefault(attempt.client_order_id, batch.now_ms)
        return lease

    @property
    def size(self) -> int:
        return sum(len(table.records) for table in self._tables.values())

    def filled(self) -> dict[str, Decimal]:
        """What each intent that is still remembered says to have filled, once it has ended."""
        records = (e.value for e in self._tables["intents"].records.values())
        return {
            r.intent.identity: r.filled_quantity for r in records if isinstance(r, IntentRecord) and r.state.is_terminal
        }

    def oldest_end_ms(self) -> int:
        ends = (e.ended_at_ms for t in self._tables.values() for e in t.records.values() if e.ended_at_ms is not None)
        return min(ends, default=10**15)


# --- the day ---------------------------------------------------------------------------------------------------


@attrs.frozen
class Halt:
    """A time during which a desk was halted."""

    desk: str
    from_ms: int
    to_ms: int
    reasons: tuple[TripReason, ...]


@attrs.define(eq=False)
class Sample:
    """What was there at one hour."""

    hour: int
    records: int
    events: int
    page_orders: int
    prices: int
    orders: int
    objects: Counter[str]
    kib: float


class Day:
    """Everything that outlives a process: venue, journals, clock, faults; and what was seen of it."""

    def __init__(self, kind: Kind, seed: int, hours: int, *, traced: bool = False) -> None:
        self.kind, self.hours, self.seed = kind, hours, seed
        self.random = random.Random(f"{seed}/soak")
        self.clock = VirtualClock(START_MS)
        self.end_ms = START_MS + hours * HOUR_MS
        self.plan = FaultPlan(seed, {fault: RATES.get(fault, RATE) for fault in kind.faults})
        names = [symbol(base) for base in (*TIDE, *PAIR, *MAKER)]
        count = WARM_UP + hours * 12 + 2
        self.candles = {name: list(_first(market(number), count)) for number, name in enumerate(names)}
        for rows in self.candles.values():
            rows[:] = [attrs.evolve(c, opened_at_ms=START_MS + (i - WARM_UP) * CANDLE_MS) for i, c in enumerate(rows)]
        # Two accounts: what one desk does would be somebody else's doing to the other.
        self.venues = {"tide": self._open(TIDE), "pairs": self._open((*PAIR, *MAKER))}
        self.stores = {"tide": Journal(), "pairs": Journal()}
        self.events: Counter[execsafe.EventType] = Counter()
        self.came: Counter[str] = Counter()
        self.swept = 0
        self.sweeps: list[execsafe.Sweep] = []
        self.orders = execsafe.TTLStore[str, str](
            ttl_s=TTL_S, sweep_interval_s=SWEEP_S, max_entries=None, clock=self.clock
        )
        self.samples: list[Sample] = []
        self.downs_ms: list[tuple[int, int]] = []
        self.halts: list[Halt] = []
        self.leftover: list[execsafe.bot.desk.Leftover] = []
        self.traced = traced

    def _open(self, bases: tuple[str, ...]) -> SimVenue:
        rows = {symbol(base): self.candles[symbol(base)] for base in bases}
        venue = SimVenue(
            [linear(base) for base in bases],
            prices={name: candles[WARM_UP - 1].close for name, candles in rows.items()},
            dedup=self.kind.profile.dedup,
            rejects_passed_stops=True,
        )
        for name, candles in rows.items():
            venue.set_path(name, _path(candles[WARM_UP:]))
        return venue

    @property
    def half(self) -> int:
        """The hour at which memory is measured first; the last kill is long over, and what it left is swept."""
        return (self.hours + 1) // 2

    # --- one process ---------------------------------------------------------------------------------

    def desk(self, name: str, bases: tuple[str, ...]) -> TradingDesk:
        adapter = SimAdapter(
            self.venues[name], clock=self.clock, plan=self.plan, profile=self.kind.profile, stop_kind=self.kind.stops
        )
        checks = [TwoSided(execsafe.VenueReader(adapter, clock=self.clock, request_timeout_s=2.0))]
        return TradingDesk(
            adapter,
            self.stores[name],
            DeskPolicy(**COMMON, account=name, stop_positions=name == "tide"),
            symbols=[symbol(base) for base in bases],
            checks=checks,
            listeners=[self.note],
            clock=self.clock,
        )

    def note(self, event: execsafe.Event) -> None:
        self.events[event.type] += 1
        if event.type is execsafe.EventType.STORE_SWEPT:
            self.swept += int(event.quantity or 0)
        if event.type is execsafe.EventType.INTENT_RECORDED:
            self.orders.put_live(event.subject, event.symbol)
        elif event.type in ENDS:
            self.orders.mark_ended(event.subject)

    async def live(self) -> None:
        """One process, from its start until it is killed or the day is over."""
        tide, pairs = self.desk("tide", TIDE), self.desk("pairs", (*PAIR, *MAKER))
        settings = {"every_minutes": 30, "window": 6, "least_move_bps": 5.0, "most": 2}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, tide, pairs)
            tasks.start_soon(self._strike)
            tasks.start_soon(lambda: self.orders.run_sweeper(on_sweep=self.sweeps.append))
            for desk in tide, pairs:
                tasks.start_soon(self._operate, desk)
                tasks.start_soon(self._drill, desk)
            async with anyio.create_task_group() as runs:
                runs.start_soon(self._run, tide, Tides([symbol(b) for b in TIDE], settings), None)
                pair = Pairs([symbol(b) for b in PAIR], {"window": 12, "entry_z": 1.5, "budget": 500})
                runs.start_soon(self._run, pairs, pair, self._make_market)
            tasks.cancel_scope.cancel()

    async def _run(self, desk: TradingDesk, strategy: Strategy, beside: Callable[..., Any] | None) -> None:
        names = strategy.symbols
        feed = ClockFeed({name: self.candles[name] for name in names}, self.clock, self.end_ms)
        runner = Runner(desk, strategy, feed, tell=self._tell)
        async with anyio.create_task_group() as tasks:
            if beside is not None:
                tasks.start_soon(beside, desk)
            result = await runner.run(flat=True, stop_timeout_s=600.0)
            tasks.cancel_scope.cancel()
        self.came += result.results
        self.leftover.append(result.leftover)

    def _tell(self, decision: Decision, came: Came) -> None:
        self.came[f"{type(decision).__name__} {type(came).__name__}"] += 1

    async def _make_market(self, desk: TradingDesk) -> None:
        """Orders that rest for a minute; what they fill is closed."""
        name = symbol(MAKER[0])
        while self.clock.now_ms() < self.end_ms - 10 * MINUTE_MS:
            await anyio.sleep(240)
            at_ms = self.clock.now_ms()
            price = desk.instrument(name).safe_limit_price(
                self.venues["pairs"].prices[name] * D("0.999"), execsafe.Side.BUY
            )
            intent = execsafe.Intent(
                key=f"rest/{at_ms}", symbol=name, side="buy", quantity="0.1", limit_price=price, account="pairs"
            )
            try:
                await desk.gateway.submit(intent)
                await anyio.sleep(60)
                await desk.gateway.cancel(intent.key, account="pairs")
            except execsafe.ExecsafeError as error:
                self.came[f"rest {type(error).__name__}"] += 1
            if desk.position(name) is not None:
                await desk.carry_out(Close(id=f"close/{at_ms}", symbol=name))

    async def _strike(self) -> None:
        """Besides what is drawn: each kind of fault in turn, those first that have not had their effect yet.

        One at a time for each operation: at a desk that sends little they would all strike the same request.
        """
        kinds = [
            (operation, fault) for fault in sorted(self.kind.faults) for operation in sorted(STRUCK & APPLIES[fault])
        ]
        struck_at: dict[Operation, int] = {}
        for turn in itertools.count():
            await anyio.sleep(60)
            due = [kind for kind in kinds if not self.plan.fired[kind[1]]] or kinds
            operation, fault = due[turn % len(due)]
            if struck_at.get(operation) != self.plan._ordinals[operation]:  # the last one has struck
                struck_at[operation] = self.plan._ordinals[operation]
                self.plan.strike_next(operation, fault)

    async def _operate(self, desk: TradingDesk) -> None:
        """Somebody who is called by a halt, looks until all its causes are over, and lets trading go on."""
        while True:
            await anyio.sleep(30)
            reasons, since_ms = desk.safety.reasons, self.clock.now_ms()
            if desk.safety.state is not execsafe.TradingState.HALTED or TripReason.MANUAL in reasons:
                continue
            await anyio.sleep(LOOKS_S)
            while desk.safety.record.causes:
                await anyio.sleep(30)
            self.halts.append(Halt(desk.policy.account, since_ms, self.clock.now_ms(), reasons))
            await desk.safety.reset(*reasons, note="all causes are over")

    async def _drill(self, desk: TradingDesk) -> None:
        """Once a day a desk is halted by hand, and let go."""
        from_ms, to_ms = (START_MS + at_ms for at_ms in DRILL_MS)
        if self.clock.now_ms() > from_ms:
            return
        await anyio.sleep((from_ms - self.clock.now_ms()) / 1000)
        await desk.safety.set(execsafe.TradingState.HALTED, note="a drill")
        await anyio.sleep((to_ms - self.clock.now_ms()) / 1000)
        self.halts.append(Halt(desk.policy.account, from_ms, self.clock.now_ms(), (TripReason.MANUAL,)))
        await desk.safety.set(execsafe.TradingState.ACTIVE, note="the drill is over")

    async def _watch(self, *desks: TradingDesk) -> None:
        """Count what is there every hour, and end the faults a while before the end: what remains must settle."""
        while True:
            left_ms = HOUR_MS - (self.clock.now_ms() - START_MS) % HOUR_MS
            await anyio.sleep(left_ms / 1000 - 1)
            self._sample((self.clock.now_ms() - START_MS) // HOUR_MS + 1, desks)
            if self.clock.now_ms() >= self.end_ms - 2_000:
                self.plan.stop()
            await anyio.sleep(2)

    def _sample(self, hour: int, desks: tuple[TradingDesk, ...]) -> None:
        for store in self.stores.values():  # nothing outlives its retention by more than a sweep
            oldest_ms = self.clock.now_ms() - round((TTL_S + SWEEP_S) * 1000) - 70_000
            assert store.oldest_end_ms() >= oldest_ms
        self.samples.append(
            Sample(
                hour=hour,
                records=sum(store.size for store in self.stores.values()),
                events=sum(len(store._events) for store in self.stores.values()),
                page_orders=max((len(p.page.orders) for desk in desks for p in desk.book._pages.values()), default=0),
                prices=sum(len(desk.prices) for desk in desks),
                orders=len(self.orders),
                objects=census() if hour in {self.half, self.hours} else Counter(),
                kib=traced_kib() if self.traced and hour in {self.half, self.hours} else 0.0,
            )
        )

    # --- the venue's view -----------------------------------------------------------------------------

    def excess(self) -> dict[str, Decimal]:
        """Intents that owned, or could own, more than was meant at any instant."""
        found = {}
        for name, store in self.stores.items():
            for identity, ids in store.ids.items():
                if beyond := self.venues[name].ledger.excess(ids, store.meant[identity]):
                    found[identity] = beyond
        return found

    def strays(self) -> list[Any]:
        """Orders whose id was not durable when they came to exist."""
        found = []
        for name, store in self.stores.items():
            ours = (e for e in self.venues[name].ledger.accepted() if e.client_order_id)  # others are attached stops
            found += [e for e in ours if store.durable.get(e.client_order_id or "", 10**15) > e.at_ms]
        return found

    def gaps_ms(self) -> list[int]:
        """How long positions had no live stop, without what a dead process could not do."""
        gaps = [gap for base in TIDE for gap in self.venues["tide"].ledger.protection_gaps(symbol(base))]
        return [gap.to_ms - gap.from_ms - self._down_ms(gap.from_ms, gap.to_ms) for gap in gaps]

    def _down_ms(self, from_ms: int, to_ms: int) -> int:
        return sum(max(0, min(to_ms, until) - max(from_ms, since)) for since, until in self.downs_ms)


ENDS = frozenset(
    {
        execsafe.EventType.INTENT_FILLED,
        execsafe.EventType.INTENT_CANCELED,
        execsafe.EventType.INTENT_EXPIRED,
        execsafe.EventType.INTENT_FAILED,
        execsafe.EventType.ORDER_REJECTED,
    }
)


def _first(candles: Iterator[Candle], count: int) -> Iterator[Candle]:
    return (next(candles) for _ in range(count))


def _path(rows: list[Candle]) -> Iterator[tuple[int, Decimal]]:
    for row in rows:
        for number, price in enumerate((row.low, row.high, (row.low + row.high) / 2, row.close)):
            yield row.opened_at_ms + 1 + number * CANDLE_MS // 4, price.quantize(D("0.1"))


def census() -> Counter[str]:
    """Living objects of the library, by type; the simulated venue's are not counted: its ledger keeps everything."""
    gc.collect()
    kinds = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())
    ours = ("execsafe.", "anyio.", "asyncio.")
    return Counter({k: n for k, n in kinds.items() if k.startswith(ours) and not k.startswith("execsafe.testing")})


def traced_kib() -> float:
    """Memory allocated by the library's own lines."""
    gc.collect()
    source = Path(execsafe.__file__).parent
    filters = [
        tracemalloc.Filter(True, f"{source}/*"),
        tracemalloc.Filter(False, f"{source}/testing/*"),
        tracemalloc.Filter(False, f"{source}/testing/http/*"),
    ]
    stats = tracemalloc.take_snapshot().filter_traces(filters).statistics("filename")
    return sum(stat.size for stat in stats) / 1024


def run_day(day: Day, kills: Iterable[int]) -> Day:
    """Lives of processes: each is killed at its hour, while a wave is being opened; the last one ends the day."""
    seeds = itertools.count(day.seed * 100)
    for kill_hour in [*kills, None]:
        loops: list[SimLoop] = []
        kill_ms = None if kill_hour is None else START_MS + kill_hour * HOUR_MS + day.random.randint(0, 4_000)
        steps_left = day.random.randint(0, 200)

        def on_step(_number: int, kill_ms: int | None = kill_ms, loops: list[SimLoop] = loops) -> None:
            nonlocal steps_left
            if kill_ms is not None and day.clock.true_ms() >= kill_ms:
                steps_left -= 1
                if steps_left < 0:
                    loops[0].kill()

        try:
            run_simulated(day.live, seed=next(seeds), on_step=on_step, on_loop=loops.append)
        except ProcessKilled:
            died_ms = day.clock.true_ms()
            day.clock.skip(day.random.randint(*DOWN_S) * 1000)
            day.downs_ms.append((died_ms, day.clock.true_ms()))
    return day


def run_day_on_trio(day: Day) -> Day:
    run_simulated_trio(day.live, seed=day.seed)
    return day


# --- what a day must come to ------------------------------------------------------------------------------------

LANDS_S = GATEWAY.request_timeout_s + SIM_PROFILE.expiry_window_s + SIM_PROFILE.clock_skew_s
KNOWABLE_MS = round((LANDS_S + SIM_PROFILE.read_lag_s + 1.0) * 1000)
"""From a fill until it can be known, at worst: the answer is lost, the request may still land, readings lag, and one
look comes a second after the other."""

EXPOSED_MAX_MS = round(PROTECTION.deadline_s * 1000) + KNOWABLE_MS
"""The policy's deadline, counted from when the fill could be known. The ledger counts from the fill itself."""

BOUNDED_BY_PAGES = ("execsafe.core.evidence.", "execsafe.model.order.Fil", "execsafe.model.order.Fee")
KEPT_BY_THE_VENUE = ("execsafe.model.position.Balance", "execsafe.retention._store.Sweep")  # and by this test


def check_safety(day: Day) -> None:
    """G1, G2, G10: by the venue's own ledger."""
    assert day.excess() == {}
    assert day.strays() == []
    for venue in day.venues.values():
        assert [venue.ledger.flips(name) for name in venue.markets] == [[] for _ in venue.markets]
    late = [gap for gap in day.gaps_ms() if gap > EXPOSED_MAX_MS]
    assert late == []


def check_end(day: Day) -> None:
    """G13: everything is settled, and the books agree with the venue to the last digit."""
    assert len(day.leftover) == 2
    assert all(left.is_nothing for left in day.leftover)
    for name, venue in day.venues.items():
        assert venue.open_orders() == []
        for each in venue.markets:
            assert venue.ledger.position(each) == venue.account.position(each) == 0
        booked = day.stores[name].filled()
        assert booked
        for identity, filled in booked.items():  # of those that are still remembered
            assert filled == venue.ledger.filled_quantity(*day.stores[name].ids[identity]), identity


def check_variety(day: Day) -> None:
    """A quiet day proves nothing."""
    assert day.kind.faults - set(day.plan.fired) == set()
    for event in execsafe.EventType.POSITION_OPENED, execsafe.EventType.STOP_PLACED, execsafe.EventType.STOP_MOVED:
        assert day.events[event] >= day.hours // 2
    for came in "Open Handled", "TradePair Executed", "TradePair PairClosed", "Close ":
        assert any(day.came[known] for known in day.came if known.startswith(came)), came


def check_halts(day: Day) -> None:
    """G12: while a desk was halted no entry reached the venue; afterwards some did. Only a person ended a halt."""
    assert {halt.desk for halt in day.halts if halt.reasons == (TripReason.MANUAL,)} == {"tide", "pairs"}
    for halt in day.halts:
        entries = [e for e in day.venues[halt.desk].ledger.accepted() if not e.reduce_only]
        lands_ms = halt.from_ms + round(LANDS_S * 1000)  # what was sent just before
        assert [e for e in entries if lands_ms < e.at_ms < halt.to_ms] == []
        assert any(e.at_ms > halt.to_ms for e in entries) or halt.to_ms > day.end_ms - HOUR_MS // 2


def check_memory(day: Day) -> None:
    """G14: sweeps happened and removed things; what is there does not grow."""
    assert day.events[execsafe.EventType.STORE_SWEPT] >= 2 * (day.hours - 1)
    assert day.swept > 10 * day.hours
    assert len(day.sweeps) >= day.hours - 1 - len(day.downs_ms)
    settled = [s for s in day.samples if s.hour > (TTL_S + SWEEP_S) / 3_600]
    first, second = [s for s in settled if s.hour <= day.half], [s for s in settled if s.hour > day.half]
    for what in ("records", "events", "orders"):
        before, after = (max(getattr(s, what) for s in half) for half in (first, second))
        assert after <= 1.3 * before + 20, what
    assert all(s.page_orders <= ORDERS_MAX and s.prices <= len(day.candles) for s in day.samples)
    then, now = (next(s for s in day.samples if s.hour == hour).objects for hour in (day.half, day.hours))
    grown = {
        kind: (then[kind], count)
        for kind, count in now.items()
        if not kind.startswith((*BOUNDED_BY_PAGES, *KEPT_BY_THE_VENUE)) and count > 1.3 * then[kind] + 30
    }
    assert grown == {}


@pytest.mark.guarantee(1, 2, 10, 12, 13, 14)
@pytest.mark.row("S0-29", "S1-46", "X-08", "X-09", "S3-18")
@pytest.mark.parametrize("name", list(KINDS))
def test_g1_g10_g13_g14_seven_hours_of_faults_and_kills_end_settled_and_flat(name):
    day = run_day(Day(KINDS[name], 1, 7), [1, 2])
    assert len(day.downs_ms) == 2
    check_safety(day)
    check_end(day)
    check_halts(day)
    check_variety(day)
    check_memory(day)


@pytest.mark.guarantee(1, 2, 10, 12, 13)
@pytest.mark.row("S1-46")
def test_g1_g10_g13_the_same_on_the_other_event_loop():
    day = run_day_on_trio(Day(KINDS["stop orders"], 2, 2))
    check_safety(day)
    check_end(day)
    check_halts(day)


@pytest.mark.campaign
@pytest.mark.guarantee(1, 2, 10, 12, 13, 14)
@pytest.mark.row("S1-46", "X-08", "X-09", "S3-18")
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", list(KINDS))
def test_g1_g10_g13_g14_twenty_four_hours_of_faults_and_kills_end_settled_and_flat(name, seed):
    day = run_day(Day(KINDS[name], seed, 24), [1, 3, 5, 8])
    assert len(day.downs_ms) == 4
    check_safety(day)
    check_end(day)
    check_halts(day)
    check_variety(day)
    check_memory(day)
    accepted = sum(len(venue.ledger.accepted()) for venue in day.venues.values())
    halts = [halt.reasons for halt in day.halts]
    print(f"{name} {seed}: {accepted} orders, exposed for at most {max(day.gaps_ms())} ms, halted for {halts}")


@pytest.mark.campaign
@pytest.mark.guarantee(14)
@pytest.mark.row("S1-46", "X-09")
def test_g14_a_day_allocates_nothing_that_stays():
    tracemalloc.start()
    try:
        day = run_day(Day(KINDS["stop orders"], 4, 24, traced=True), [])
    finally:
        tracemalloc.stop()
    then, now = (next(s for s in day.samples if s.hour == hour).kib for hour in (day.half, day.hours))
    print(f"{then:.0f} KiB at hour {day.half}, {now:.0f} KiB at hour {day.hours}")
    assert now <= 1.25 * then + 64
