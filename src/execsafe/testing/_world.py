"""One simulated run: a venue, a store, processes that come and go, callers, and the end at which all is judged."""

from __future__ import annotations

import random
from typing import Any, Final

import anyio
import anyio.abc

from execsafe.errors import ExecsafeError
from execsafe.gateway import OrderGateway
from execsafe.intents import COLLECTION
from execsafe.model.intent import IntentRecord, IntentState
from execsafe.ports import Store
from execsafe.testing._chaos import ChaosPlan, HostFault
from execsafe.testing._history import History
from execsafe.testing._processes import FRAME, Frame, Process, Surroundings, WatchedVenue
from execsafe.testing._script import ACTIVE_MS, Planned, draw_path, draw_script
from execsafe.testing._setup import Variant, draw_rates, draw_setup
from execsafe.testing._violation import Violation
from execsafe.testing.clock import VirtualClock
from execsafe.testing.faults import FaultPlan

_CALLS_MAX_MS: Final = 600_000  # how long calls may take once nothing goes wrong any more
_PASSES_MAX: Final = 8
_PASS_MAX_S: Final = 3_600.0
_DONE: Final = frozenset({IntentState.LIVE, IntentState.UNRESOLVED})


class World(Surroundings):
    """Everything there is in one run. The processes see of it what their store and adapter show."""

    def __init__(
        self, seed: int, *, store: Store, intents: int, slots: int, faults: frozenset[str] | None, variant: Variant
    ) -> None:
        self._random = rng = random.Random(f"{seed}/world")
        setup, clock = draw_setup(rng), VirtualClock()
        super().__init__(
            setup=setup,
            variant=variant,
            store=store,
            clock=clock,
            history=History(clock),
            venue=WatchedVenue(dedup=setup.profile.dedup, skew_ms=setup.venue_skew_ms, read_lag_ms=setup.view_lags_ms),
            plan=FaultPlan(seed, draw_rates(rng, setup.faults, faults)),
            chaos=ChaosPlan(seed, faults),
        )
        self.script = draw_script(rng, intents, slots, cancels_calls=self.chaos.allows(HostFault.CANCEL))
        self.keys = [f"i{number}" for number in range(intents)]
        self.alive: dict[int, Process] = {}
        self.final: dict[str, IntentRecord] = {}
        self.violations: list[Violation] = []
        self._slots = slots
        self._offsets_ms: dict[int, int] = {}
        self._is_over = False

    # --- the run ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the first call to the last recovery."""
        await self.store.open()
        start_ms = self.clock.true_ms()
        for symbol in ("BTC/USDT", "ETH/USDT"):
            self.venue.set_path(symbol, draw_path(self._random, symbol, start_ms))
        async with anyio.create_task_group() as tasks:
            self.tasks = tasks
            for slot in range(self._slots):
                tasks.start_soon(self._run_slot, slot)
            for plan in self.script:
                tasks.start_soon(self._play, plan)
            await anyio.sleep(ACTIVE_MS / 1000 + 0.5)
            self.plan.stop()
            self.chaos.stop()
            await self._await_calls()
            self._is_over = True
            self._look_for_leftovers()
            for process in self.alive.values():
                process.kill()
            await self._settle()
            tasks.cancel_scope.cancel()
        await self.store.aclose()

    def _boot(self, name: str, slot: int) -> Process:
        """Start a process, its clock as far from the venue's as the profile allows, and no farther."""
        skew_ms = round(self.setup.profile.clock_skew_s * 1000)
        before_ms = self._offsets_ms.get(slot)
        if before_ms is None or self.chaos.allows(HostFault.CLOCK_STEP):
            self._offsets_ms[slot] = self.chaos.random.choice((-skew_ms, 0, skew_ms))
            if before_ms is not None and self._offsets_ms[slot] != before_ms:
                self.chaos.fired[HostFault.CLOCK_STEP] += 1
        return Process(self, name, self.setup.venue_skew_ms + self._offsets_ms[slot])

    async def _run_slot(self, slot: int) -> None:
        """A machine: its process is started again whenever it has died."""
        generation = 0
        while not self._is_over:
            process = self.alive[slot] = self._boot(f"p{slot}.{generation}", slot)
            if generation:
                self.tasks.start_soon(self.call, process, Planned(at_ms=0, slot=slot, kind="recover", key=""))
            await process.died.wait()
            self.alive.pop(slot, None)
            generation += 1
            await anyio.sleep(self.chaos.random.choice((0.0, 0.5, 5.0)))

    async def _play(self, plan: Planned) -> None:
        await anyio.sleep(plan.at_ms / 1000)
        process = self.alive.get(plan.slot)
        if process is not None:
            await self.call(process, plan)

    async def call(self, process: Process, plan: Planned) -> None:
        """Make one call in *process*, and note what it was told."""
        call = self.history.add_call(process.name, plan.kind, plan.key, intent=plan.intent, quantity=plan.quantity)
        told, record = None, None
        error: Exception | None = None
        try:
            with anyio.CancelScope() as scope:
                frame = Frame(call, scope)
                process.frames.append(frame)
                FRAME.set(frame)
                if plan.cancel_after_ms is not None:
                    self.tasks.start_soon(_cancel_later, scope, plan.cancel_after_ms)
                try:
                    outcome = await _DO[plan.kind](process.gateway, plan)
                    told, record = type(outcome).__name__, getattr(outcome, "record", None)
                except ExecsafeError as known:
                    told, error = type(known).__name__, known
                except Exception as unknown:  # noqa: BLE001 - that is the finding
                    told, error = f"!{type(unknown).__name__}", unknown
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException:
            if not process.dead:
                raise  # else: whatever its last steps raised, nobody saw it
        process.frames = [frame for frame in process.frames if frame.call is not call]
        if told is not None and not process.dead:
            self.history.tell(call, told, record, error)

    async def _await_calls(self) -> None:
        ends_ms = self.clock.true_ms() + _CALLS_MAX_MS
        while any(process.frames for process in self.alive.values()):
            if self.clock.true_ms() > ends_ms:
                for process in self.alive.values():
                    for frame in process.frames:
                        self._blame("G13", frame.call.key, f"{frame.call.kind}() has not ended after 600 s of calm")
                return
            await anyio.sleep(1.0)

    # --- the end ----------------------------------------------------------------------------------

    def _look_for_leftovers(self) -> None:
        """G14: what the living processes still remember of finished work."""
        for process in self.alive.values():
            locks = process.gateway._locks.statistics()
            if not process.frames and (locks.in_flight or locks.waiting):
                self._blame("G14", "", f"{process.name} still holds {locks.in_flight} claims")

    async def _settle(self) -> None:
        """Time passes, everything that is under way lands, and the last process recovers until nothing moves."""
        last = self._boot("last", -1)
        steady_s = self.setup.profile.read_lag_s + 1.0
        for _ in range(_PASSES_MAX):
            await self._drain()
            await anyio.sleep(steady_s)
            before = len(self.history.writes)
            if not await self._recover_in_time(last):
                break
            open_records = await last.registry.open_records()
            steady = all(self._is_steady(record) for record in open_records)
            if steady and (len(self.history.writes) == before or not open_records):
                break
        for key in self.keys:
            record = await last.registry.find(key)
            if record is not None:
                self.final[key] = record
        self.history.quiet_n = self.history.tick("quiet")
        await self._recover_in_time(last)
        self._check_liveness()
        if last.gateway._locks.statistics().in_flight:
            self._blame("G14", "", "the last process still holds claims")
        await self._check_purge()

    def _is_steady(self, record: IntentRecord) -> bool:
        """Whether nothing is left to do; that the venue has forgotten an order takes two looks to prove."""
        is_forgotten = any(a.venue_order_id in self.venue.pruned() for a in record.attempts if a.state.may_still_fill)
        return record.state in _DONE and not _wants_change(record) and not is_forgotten

    async def _recover_in_time(self, process: Process) -> bool:
        with anyio.move_on_after(_PASS_MAX_S):
            await self.call(process, Planned(at_ms=0, slot=-1, kind="recover", key=""))
            return True
        self._blame("G13", "", f"recover() has not ended after {_PASS_MAX_S} s of calm")
        return False

    async def _drain(self) -> None:
        while (at_ms := self.venue.next_event_ms) is not None:
            left_ms = at_ms - self.clock.true_ms()
            if left_ms > 0:
                await anyio.sleep(left_ms / 1000)
            self.venue.advance(max(at_ms, self.clock.true_ms()))

    def _check_liveness(self) -> None:
        """G13: once nothing goes wrong any more, every doubt ends, where the venue lets it be ended."""
        for key, record in self.final.items():
            pruned = self.venue.pruned()
            excused = not self.setup.can_prove
            seen_no_more = any(a.venue_order_id in pruned for a in record.attempts)
            doubtful = record.state is IntentState.UNRESOLVED and excused
            resting = record.state is IntentState.LIVE and (not _wants_change(record) or seen_no_more)
            if not (record.state.is_terminal or doubtful or resting):
                self._blame("G13", key, f"never settled: {record.state.value}, change {record.change}")

    async def _check_purge(self) -> None:
        """G14: after the retention only what is open is left."""
        await self.store.purge(self.clock.true_ms() + 10 * _CALLS_MAX_MS)
        for key, record in self.final.items():
            is_there = await self.store.find(COLLECTION, record.intent.identity) is not None
            if is_there is record.state.is_terminal:
                self._blame("G14", key, f"recorded {record.state.value}, and {'kept' if is_there else 'forgotten'}")

    def _blame(self, guarantee: str, key: str, evidence: str) -> None:
        self.violations.append(Violation(guarantee, key, self.clock.true_ms(), evidence))


def _wants_change(record: IntentRecord) -> bool:
    return record.change is not None


async def _submit(gateway: OrderGateway, plan: Planned) -> Any:
    assert plan.intent is not None
    return await gateway.submit(plan.intent, join=plan.join)


async def _cancel(gateway: OrderGateway, plan: Planned) -> Any:
    return await gateway.cancel(plan.key)


async def _replace(gateway: OrderGateway, plan: Planned) -> Any:
    assert plan.quantity is not None
    return await gateway.replace(plan.key, quantity=plan.quantity, limit_price=plan.limit_price)


async def _recover(gateway: OrderGateway, _plan: Planned) -> Any:
    return await gateway.recover()


_DO: Final = {"submit": _submit, "cancel": _cancel, "replace": _replace, "recover": _recover}


async def _cancel_later(scope: anyio.CancelScope, after_ms: int) -> None:
    await anyio.sleep(after_ms / 1000)
    scope.cancel()
