"""The trading desk: execsafe's parts put together once, for every strategy.

Everything here is assembled from the public face; there is no logic about orders in it. What a strategy decided goes
in (:meth:`TradingDesk.carry_out`), what came of it comes out, and between the two stand the parts that survive lost
replies, partial fills and kills.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel

import execsafe
from execsafe import exits, signals
from execsafe.bot import waiting
from execsafe.bot.closings import Closings
from execsafe.bot.lease import DeskLease
from execsafe.bot.leftover import Leftover, leftover_of
from execsafe.bot.openings import Openings
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.strategy import Close, Decision, Open, TradePair
from execsafe.bot.targets import Harvester
from execsafe.bot.trades import TradeResult, Trades
from execsafe.buses.surviving import survived

_log = logging.getLogger("execsafe.bot.desk")
_Loop: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


Came: TypeAlias = signals.SignalOutcome | TradeResult | exits.ExitResult | execsafe.ExecsafeError
"""What a decision came to. An error says that nothing was sent."""


class TradingDesk:
    """Carries decisions out. Open it with ``async with``; it is ready when everything from before is settled.

    One store has one desk at a time: its parts go on with every open record that they find there.

    Args:
        adapter: the venue.
        store: the journal, and the memory of every part. It is opened here, and closed at the end.
        policy: thresholds.
        symbols: what will be traded; their rules are loaded at the start.
        checks: asked before every entry, besides those of the desk.
        listeners: told of every event of every part.
        clock: source of Unix milliseconds.
    """

    def __init__(
        self,
        adapter: execsafe.ExchangeAdapter,
        store: execsafe.Store,
        policy: DeskPolicy | None = None,
        *,
        symbols: Sequence[str],
        checks: Sequence[execsafe.PreTradeCheck] = (),
        listeners: Sequence[execsafe.Listener] = (),
        clock: execsafe.Clock | None = None,
    ) -> None:
        self.policy: DeskPolicy = policy if policy is not None else DeskPolicy()
        self.adapter = adapter
        self.store = store
        self.symbols: tuple[str, ...] = tuple(symbols)
        self.clock: execsafe.Clock = clock if clock is not None else execsafe.SystemClock()
        self._instruments: dict[str, execsafe.Instrument] = {}
        self._venue_answers = False
        self._is_ready = False
        self.beside: list[_Loop] = []
        """Further loops, which run as long as the desk does: from before the barrier until the store is closed."""
        self.safety: execsafe.SafetyMonitor = execsafe.SafetyMonitor(
            store, clock=self.clock, policy=self.policy.safety, listeners=listeners
        )
        told = (self.safety.on_event, *listeners)
        self._lease: DeskLease = DeskLease(
            store, ttl_s=self.policy.lease_ttl_s, clock=self.clock, on_lost=self._stop_entries
        )
        self._entries: execsafe.EntryBarrier = execsafe.EntryBarrier()
        self._assemble_orders(tuple(checks), told)
        self._assemble_positions(told)
        self._assemble_decisions()

    def _assemble_orders(self, checks: tuple[execsafe.PreTradeCheck, ...], told: tuple[execsafe.Listener, ...]) -> None:
        """What an order goes through."""
        adapter, store, p = self.adapter, self.store, self.policy
        timeout_s = p.gateway.request_timeout_s
        self.registry: execsafe.IntentRegistry = execsafe.IntentRegistry(
            store, clock=self.clock, listeners=told, retention_s=p.retention_s
        )
        self.book: execsafe.PositionBook = execsafe.PositionBook(
            store, self.registry, listeners=told, instruments=self._instruments.get, retention_s=p.retention_s
        )
        self.reader: execsafe.VenueReader = execsafe.VenueReader(adapter, clock=self.clock, request_timeout_s=timeout_s)
        turns = execsafe.DedupLock(clock=self.clock)  # of this process alone: nobody else works on the store
        self.gate: execsafe.SignalGate = execsafe.SignalGate(
            store, p.signals, turns=turns, clock=self.clock, listeners=told
        )
        self.pretrade: execsafe.PreTradeChecks = execsafe.PreTradeChecks(
            self.reader,
            policy=p.pretrade,
            registry=self.registry,
            positions=self.book,
            account=p.account,
            listeners=told,
        )
        self.gateway: execsafe.OrderGateway = execsafe.OrderGateway(
            adapter,
            self.registry,
            policy=p.gateway,
            looks=p.looks,
            checks=(
                self._lease,
                self._entries,
                signals.ModeCheck(lambda: self.gate.mode),
                *checks,
                self.pretrade,
                self.safety,
            ),
        )

    def _assemble_positions(self, told: tuple[execsafe.Listener, ...]) -> None:
        """What looks after what is held."""
        p = self.policy
        self.protection: execsafe.ProtectionManager = execsafe.ProtectionManager(
            self.gateway, self.book, policy=p.protection, reader=self.reader, listeners=told, account=p.account
        )
        self.opener: execsafe.PositionOpener = execsafe.PositionOpener(
            self.gateway, self.protection, policy=p.opening, listeners=told
        )
        self.reconciler: execsafe.Reconciler = execsafe.Reconciler(
            self.gateway,
            self.book,
            policy=p.reconcile,
            reader=self.reader,
            listeners=told,
            account=p.account,
            symbols=self.symbols,
            stops=self.protection if p.stop_positions else None,
            entries=self._entries,
        )
        self.exits: execsafe.ExitManager = execsafe.ExitManager(
            self.gateway,
            self.book,
            policy=p.exits,
            reader=self.reader,
            protections=self.protection if p.stop_positions else None,
            handler=self.reconciler,
            listeners=told,
        )
        self.hedger: execsafe.PartialFillHedger = execsafe.PartialFillHedger(
            self.gateway, policy=p.hedging, listeners=told
        )
        self.prices: execsafe.PriceBoard = execsafe.PriceBoard(
            self.reader, positions=self.book, account=p.account, policy=p.prices, listeners=told, clock=self.clock
        )

    def _assemble_decisions(self) -> None:
        """What turns decisions into trades."""
        p = self.policy
        self.harvester: Harvester = Harvester(
            store=self.store,
            book=self.book,
            exits_=self.exits,
            stops=self.protection,
            prices=self.prices,
            clock=self.clock,
            tell=self.registry.tell,
            interval_s=p.targets_s,
        )
        self.closings: Closings = Closings(
            gate=self.gate, exits_=self.exits, opener=self.opener, book=self.book, account=p.account
        )
        self.openings: Openings = Openings(
            gate=self.gate,
            registry=self.registry,
            opener=self.opener,
            book=self.book,
            prices=self.prices,
            harvester=self.harvester,
            closings=self.closings,
            instrument=self.instrument,
            policy=p,
            clock=self.clock,
        )
        self.trades: Trades = Trades(
            gate=self.gate, hedger=self.hedger, exits_=self.exits, book=self.book, policy=p, clock=self.clock
        )
        self.handler: signals.SignalHandler = self.openings.handle
        """Who goes on with openings that are unfinished; set it to a ``Wave`` that lets through what is needed only."""

    # --- what a strategy may look at -------------------------------------------------------------

    def instrument(self, symbol: str) -> execsafe.Instrument:
        """Trading rules of *symbol*.

        Raises:
            InvalidInput: it is not one of the desk's symbols.
        """
        if symbol not in self._instruments:
            raise execsafe.InvalidInput(f"{symbol} is not one of the desk's symbols")
        return self._instruments[symbol]

    def position(self, symbol: str) -> execsafe.Position | None:
        """What the book holds in *symbol*."""
        return self.book.position(self.policy.account, symbol)

    @property
    def is_lease_held(self) -> bool:
        """Whether it could be written to the store lately that this desk works on it."""
        return self._lease.is_held

    # --- from start to stop ----------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, *, decides: bool = True) -> AsyncIterator[TradingDesk]:
        """Open everything, settle what an earlier process left, and keep positions looked after while inside.

        Args:
            decides: new entries are meant to follow: then what is inside begins only when every open intent is settled
                and venue, book and journal have been compared, however long that takes. Positions are looked after
                meanwhile, and every 15 s a warning is logged of what is missing. False: at once, and no entry passes.

        Raises:
            LeaseHeld: another desk works on the store. One that was killed is waited for, for as long as its lease
                lasts (``DeskPolicy.lease_ttl_s``).
            StaleFencingToken: another desk has taken over meanwhile; what is inside was cancelled.
        """
        if not decides:
            self._stop_entries()
        await self.store.open()
        try:
            async with self._lease.held():
                await self._prepare()
                await self.settle()
                async with self._looked_after(decides=decides):
                    yield self
        finally:
            self.prices.close()
            await self._close_store()

    @asynccontextmanager
    async def _looked_after(self, *, decides: bool) -> AsyncIterator[None]:
        """Everything that goes on while the desk runs; inside once it may decide."""
        async with anyio.create_task_group() as tasks:
            for loop in self._loops():
                tasks.start_soon(loop)
            try:
                if decides:
                    await self._barrier()
                self._is_ready = decides
                await _or_later(self._resume_signals)
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def _barrier(self) -> None:
        async with anyio.create_task_group() as telling:
            telling.start_soon(waiting.say_what_for, self.reconciler, self.safety, self.registry)
            await self.reconciler.barrier()
            telling.cancel_scope.cancel()

    def _stop_entries(self) -> None:
        self._is_ready = False  # what is unfinished is left to the next desk
        self.gate.mode = execsafe.ExecutionMode.DRAIN

    async def settle(self) -> tuple[execsafe.IntentRecord, ...]:
        """Bring everything unfinished to an end, as far as that is possible now; what is still in doubt.

        Openings first: protection asks them where stops belong. Each part goes on from its own records, so a kill
        anywhere in here costs nothing but doing it again.
        """
        recovery = await self.gateway.recover(self.policy.account)
        await self.book.catch_up()
        for step in (self.hedger.recover, self.opener.recover, *self._protected(), self.exits.recover):
            await _or_later(step)
        await self.book.catch_up()
        return recovery.unresolved

    async def stop(self, *, flat: bool, timeout_s: float = 60.0) -> Leftover:
        """End gracefully: no new entries; close positions if *flat*; say what is left.

        Raises:
            StaleFencingToken: another desk has taken over; it says what is left.
        """
        self._stop_entries()
        with anyio.move_on_after(timeout_s):
            while True:
                self._lease.require()
                if flat:
                    await self.exits.exit_all(exits.ExitReason.PANIC, account=self.policy.account)
                await self.settle()
                if (left := await self.leftover()).is_nothing or not (flat or left.in_doubt):
                    return left
                await anyio.sleep(min(self.policy.settle_s, 1.0))
        return await self.leftover()

    async def leftover(self) -> Leftover:
        """What is open, and what is in doubt, now."""
        await self.book.catch_up()
        return await self._recorded()

    async def on_record(self) -> Leftover:
        """What the store tells of after a start that was given up: as far as it was read, and without the venue.

        Only reads: another desk may work on the store.

        Raises:
            StoreError: it cannot be read.
        """
        await self.store.open()
        try:
            return await self._recorded()
        finally:
            await self._close_store()

    async def _recorded(self) -> Leftover:
        return await leftover_of(self.registry, self.book, self.policy.account)

    async def _close_store(self) -> None:
        if not self._lease.is_store_in_use:
            with anyio.CancelScope(shield=True):
                await self.store.aclose()

    async def _prepare(self) -> None:
        for symbol in self.symbols:
            self._instruments[symbol] = await self.adapter.prepare(symbol)
        await self.book.open()
        await self.safety.open(self.registry)
        self._venue_answers = await self.safety.self_check(self.reader)
        if not self._venue_answers:
            _log.warning("%s; no entry passes", waiting.refusal(self.safety))
        await self.harvester.open()

    def _protected(self) -> tuple[Callable[[], Awaitable[object]], ...]:
        return (self.protection.recover,) if self.policy.stop_positions else ()

    def _loops(self) -> tuple[_Loop, ...]:
        stops = (self.protection.run, self.harvester.run) if self.policy.stop_positions else ()
        return (
            *stops,
            self.exits.run,
            self.prices.run,
            self.safety.run,
            self.reconciler.run,
            self._settle_often,
            self._sweep_often,
            *self.beside,
        )

    async def _settle_often(self) -> None:
        while True:
            await anyio.sleep(self.policy.settle_s)
            for step in (
                self._ask_again,
                self._recover_orders,
                self.hedger.recover,
                self.opener.recover,
                self._resume_signals,
            ):
                await _or_later(step)

    async def _sweep_often(self) -> None:
        while True:  # at once, too: a bot that is started anew every hour sweeps as well
            is_done = await _or_later(self.sweep)
            await anyio.sleep(self.policy.sweep_s if is_done else min(self.policy.sweep_s, self.policy.settle_s))

    async def sweep(self) -> int:
        """Forget what ended longer ago than the retention, in all parts at once; how many records that were.

        Raises:
            StoreError: not all of it could be forgotten now.
        """
        removed = 0
        while count := await self.registry.purge():
            removed += count
            await anyio.lowlevel.checkpoint()
        swept = execsafe.Event(
            type=execsafe.EventType.STORE_SWEPT,
            at_ms=self.clock.now_ms(),
            subject="desk",
            quantity=Decimal(removed),
            details={"removed": removed},
        )
        self.registry.tell([swept])
        return removed

    async def _recover_orders(self) -> None:
        await self.gateway.recover(self.policy.account)

    async def _resume_signals(self) -> None:
        if self._is_ready:  # before the barrier and after a stop none of their entries would pass
            await self.gate.resume(self.execute)

    async def _ask_again(self) -> None:
        """A venue that could not be asked at the start is asked until it answers: only that ends the restriction."""
        if not self._venue_answers:
            self._venue_answers = await self.safety.self_check(self.reader)

    # --- decisions -------------------------------------------------------------------------------

    async def execute(self, work: signals.SignalWork) -> signals.SignalResult:
        """Execute a signal that has passed the gate, whoever said it: the handler of every consumer."""
        is_exit = work.signal.side is execsafe.SignalSide.FLAT
        return await (self.closings.handle(work) if is_exit else self.handler(work))

    async def carry_out(self, decision: Decision, *, decided_at_ms: int | None = None) -> Came:
        """Do what was decided, once, however often it is said; return what it came to.

        Args:
            decision: what a strategy yielded.
            decided_at_ms: when the market it saw was seen; now by default. What is too old is not carried out.
        """
        at_ms = self.clock.now_ms() if decided_at_ms is None else decided_at_ms
        try:
            match decision:
                case Open():
                    return await self.openings.run(decision, at_ms)
                case TradePair():
                    return await self.trades.run(decision, at_ms)
                case Close():
                    return await self.closings.close(decision.symbol)
        except execsafe.ExecsafeError as error:
            _log.warning("%s: %s", decision.id, error)
            return error


async def _or_later(step: Callable[[], Awaitable[object]]) -> bool:
    """A pass that fails is told and comes again: one part that cannot be asked now keeps no other from its work.

    Whether it came to its end.
    """
    name = getattr(step, "__qualname__", "a pass")

    async def attempt() -> None:
        try:
            await step()
        except execsafe.AlreadyInFlight as error:
            _log.debug("%s: %s", name, error)  # another caller is at it

    return await survived(attempt, name, log=_log)
