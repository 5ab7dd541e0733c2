"""The tests of the tests: every bug that bots are known for, planted into the library, is found by simulation.

Each case replaces one part by a wrong one, runs seeds until the auditor objects, and says which guarantee must be
named. A bug that survives the seeds below means that the simulation is blind, not that the library is right.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import anyio
import attrs
import pytest

from execsafe import ghosts
from execsafe.core import steps, transitions
from execsafe.core.ghosts import Sighting, Verdict
from execsafe.errors import StoreUnavailable
from execsafe.gateway import OrderGateway, driver
from execsafe.gateway.driver import Driver
from execsafe.ghosts import GhostOrderResolver
from execsafe.intents import IntentRegistry
from execsafe.locks import DedupLock
from execsafe.model.intent import AttemptState, IntentState
from execsafe.model.order import OrderStatus
from execsafe.model.outcome import Judged, Meaning, Operation
from execsafe.ports import Batch, Lease, Put
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.faults import Fault
from execsafe.testing.simulation import Variant, simulate

SEEDS_MAX = 100

Patch = Callable[[], contextlib.AbstractContextManager[object]]


def patch(target: object, name: str, new: object) -> Patch:
    return lambda: mock.patch.object(target, name, new)


# --- Proof ----------------------------------------------------------------------------------------


def judge_at_once(doubt, views, seen, **_when):  # type: ignore[no-untyped-def]
    """Not found is absent, whenever it was looked."""
    if Sighting.PRESENT in seen.values():
        return Verdict.FOUND
    absent = all(seen.get(view) is Sighting.ABSENT for view in views)
    return Verdict.ABSENT if absent else Verdict.LOOK_AGAIN


real_judge = ghosts.judge


def judge_by_one_view(doubt, views, seen, **when):  # type: ignore[no-untyped-def]
    """One view that does not have it is enough."""
    if Sighting.ABSENT in seen.values() and Sighting.PRESENT not in seen.values():
        seen = dict.fromkeys(views, Sighting.ABSENT)
    return real_judge(doubt, views, seen, **when)


def judge_by_patience(doubt, views, seen, **when):  # type: ignore[no-untyped-def]
    """When patience is over the order is called absent."""
    verdict = real_judge(doubt, views, seen, **when)
    return Verdict.ABSENT if verdict is Verdict.UNRESOLVED else verdict


real_doubt_of = ghosts.doubt_of


def doubt_without_margin(attempt, profile, *, since_ms, patience_s):  # type: ignore[no-untyped-def]
    """Neither the clock's skew nor the views' lag is waited for."""
    doubt = real_doubt_of(attempt, profile, since_ms=since_ms, patience_s=patience_s)
    return attrs.evolve(doubt, proof_at_ms=doubt.proof_at_ms and attempt.deadline_ms)


def doubt_without_second_look(attempt, profile, *, since_ms, patience_s):  # type: ignore[no-untyped-def]
    """One look at lists that lag is enough, although an order may have moved from one to the other."""
    doubt = real_doubt_of(attempt, profile, since_ms=since_ms, patience_s=patience_s)
    return attrs.evolve(doubt, confirm_after_ms=0)


real_look = GhostOrderResolver.look


async def look_dated_at_its_end(self: GhostOrderResolver, ref: Any) -> ghosts.Look:
    look = await real_look(self, ref)
    return attrs.evolve(look, began_at_ms=self._clock.now_ms())


real_read = GhostOrderResolver._read


async def read_failure_as_empty(self: GhostOrderResolver, lookup: Any, ref: Any) -> Any:
    sighting, report = await real_read(self, lookup, ref)
    return (Sighting.ABSENT, None) if sighting is Sighting.UNREADABLE else (sighting, report)


def step_that_resends_at_once(record, *, attempts_max, now_ms):  # type: ignore[no-untyped-def]
    """What the journal says is being sent is taken for not sent."""
    if record.state is IntentState.SENDING:
        return steps.Step.SEND
    return steps.next_step(record, attempts_max=attempts_max, now_ms=now_ms)


def begin_over_a_sending_one(record, *, client_order_id, deadline_ms, now_ms):  # type: ignore[no-untyped-def]
    last = record.last
    if last is not None and last.state is AttemptState.SENDING:
        record = transitions.not_sent(record, last.number, now_ms=now_ms)
    return real_begin(record, client_order_id=client_order_id, deadline_ms=deadline_ms, now_ms=now_ms)


real_begin = transitions.begin


@contextlib.contextmanager
def recovery_that_resends_at_once() -> Iterator[None]:
    with (
        mock.patch.object(driver, "next_step", step_that_resends_at_once),
        mock.patch.object(transitions, "begin", begin_over_a_sending_one),
    ):
        yield


async def reopen_aloud(self: Driver, journey: Any) -> None:
    """Whatever is unresolved is journalled as in doubt again, and escalated again, by every pass."""
    for attempt in journey.record.attempts:
        if attempt.state is AttemptState.UNRESOLVED:
            await self._doubt(journey, attempt, None)


# --- Journal --------------------------------------------------------------------------------------


class JournalsAfterSending(IntentRegistry):
    """The attempt is written down together with what came of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pending: list[Batch] = []

    async def _write(self, batch: Batch) -> Lease | None:
        pending, self._pending = self._pending, []
        for held in pending:
            await super()._write(held)
        starts = any(put.value.last and put.value.last.state is AttemptState.SENDING for put in batch.puts)
        if not starts or batch.acquire is None:
            return await super()._write(batch)
        self._pending.append(batch)
        wish = batch.acquire
        return Lease(name=wish.name, holder=wish.holder, token=1, expires_at_ms=batch.now_ms + wish.ttl_ms)


class IgnoresRefusedWrites(IntentRegistry):
    """An attempt that could not be journalled is sent all the same."""

    async def create(self, record: Any, *, acquire: Any) -> Any:
        try:
            return await super().create(record, acquire=acquire)
        except StoreUnavailable:
            lease = Lease(name=acquire.name, holder=acquire.holder, token=0, expires_at_ms=2**50)
            return attrs.evolve(record, version=1), lease


class MarksBeforeApplying(IntentRegistry):
    """Evidence is marked as seen in one transaction and applied in the next."""

    async def _commit(self, before: Any, after: Any, **options: Any) -> Any:
        if before is not None and after.filled_quantity > before.filled_quantity:
            mark = f"{after.intent.identity}:{after.filled_quantity}"
            if await self.store.find("seen", mark) is not None:
                pairs = zip(before.attempts, after.attempts, strict=True)
                attempts = tuple(attrs.evolve(b, filled_quantity=a.filled_quantity) for a, b in pairs)
                return await super()._commit(before, attrs.evolve(after, attempts=attempts), **options)
            put = Put(collection="seen", key=mark, value=after, version=0)
            await self._write(Batch(now_ms=self.clock.now_ms(), puts=(put,)))
        return await super()._commit(before, after, **options)


class WritesWithoutFence(IntentRegistry):
    """A holder whose lease has passed on goes on writing."""

    async def _commit(self, *args: Any, fence: Any = None, **options: Any) -> Any:
        return await super()._commit(*args, **options)


class ForgetsConflicts(IntentRegistry):
    """The key alone decides; another payload under it is treated as the same."""

    async def recorded(self, intent: Any) -> Any:
        return await self._find(intent.identity)


# --- Venue ----------------------------------------------------------------------------------------

real_judge_error = SimAdapter.judge


def time_out_as_reject(self: SimAdapter, error: BaseException, operation: Operation) -> Judged:
    judged = real_judge_error(self, error, operation)
    unknown = operation is Operation.CREATE and judged.meaning is Meaning.UNKNOWN
    return attrs.evolve(judged, meaning=Meaning.REJECTED) if unknown else judged


real_ask_cancel = Driver._ask_cancel


async def cancel_believed(self: Driver, journey: Any, attempt: Any) -> None:
    """An answered cancel is taken for the order's end, and nothing is read back."""
    journey.cause = None
    await real_ask_cancel(self, journey, attempt)
    if journey.cause is None:
        ended = attrs.evolve(attempt, state=AttemptState.CANCELED)
        await self._advance(journey, lambda r: transitions._replace(r, ended, self._clock.now_ms()))


async def cancel_not_awaited(self: Driver, journey: Any, attempt: Any) -> None:
    """A replacement is sent as soon as the cancel was asked for."""
    await real_ask_cancel(self, journey, attempt)
    ended = attrs.evolve(attempt, state=AttemptState.CANCELED)
    await self._advance(journey, lambda r: transitions._replace(r, ended, self._clock.now_ms()))


real_observed = transitions.observed


def observed_without_late_fills(record, report, *, now_ms):  # type: ignore[no-untyped-def]
    """What has a verdict is never looked at again."""
    if record.state is not IntentState.SENDING and report.status is not OrderStatus.OPEN and record.state.is_terminal:
        return record
    if record.change is not None and record.state is IntentState.LIVE:
        report = attrs.evolve(report, filled_quantity=None, fills=())
    return real_observed(record, report, now_ms=now_ms)


# --- Locks ----------------------------------------------------------------------------------------


class OneAtATime(OrderGateway):
    """One lock around everything, held for as long as a request takes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._everything = anyio.Lock()

    async def submit(self, intent: Any, *, join: bool = False) -> Any:
        async with self._everything:
            return await super().submit(intent, join=join)


class KeepsClaims(DedupLock):
    """A cancelled call leaves its claim behind."""

    def release(self, claim: Any) -> bool:
        is_cancelled = isinstance(sys.exception(), anyio.get_cancelled_exc_class())
        return False if is_cancelled else super().release(claim)


# --------------------------------------------------------------------------------------------------

CANCELING = (Fault.CANCEL_OK_STILL_LIVE, Fault.FILL_DURING_CANCEL, Fault.DROP_REPLY)
NAMELESS = (Fault.EMPTY_OK, Fault.MAINTENANCE, Fault.RATE_LIMITED)

# What is planted, the guarantees of which one must be named, and the faults under which it shows (none: any).
BUGS: dict[str, tuple[Variant, set[str], tuple[Fault, ...]]] = {
    "resend without waiting for the deadline": (
        Variant(name="no wait", patch=patch(ghosts, "judge", judge_at_once)), {"G3"}, (),
    ),
    "one view's not-found taken as absent": (
        Variant(name="one view", patch=patch(ghosts, "judge", judge_by_one_view)), {"G18"}, (),
    ),
    "the end of patience taken as absence": (
        Variant(name="patience", patch=patch(ghosts, "judge", judge_by_patience)), {"G3", "G18"}, (),
    ),
    "skew and read lag not waited for": (
        Variant(name="no margin", patch=patch(ghosts, "doubt_of", doubt_without_margin)), {"G3"}, (),
    ),
    "one look at lists between which an order moves": (
        Variant(name="one look", patch=patch(ghosts, "doubt_of", doubt_without_second_look)), {"G3"}, (),
    ),
    "a look dated at its end": (
        Variant(name="look end", patch=patch(GhostOrderResolver, "look", look_dated_at_its_end)), {"G3"}, (),
    ),
    "a failed read taken as an empty one": (
        Variant(name="failed read", patch=patch(GhostOrderResolver, "_read", read_failure_as_empty)), {"G18"}, (),
    ),
    "a new client order id per resend": (
        Variant(name="new id", patch=patch(transitions, "generation", lambda record: len(record.attempts))), {"G3"}, (),
    ),
    "recovery resends at once": (
        Variant(name="resend on recovery", patch=recovery_that_resends_at_once), {"G3", "G4"}, (),
    ),
    "every pass escalates the same doubt again": (
        Variant(name="aloud", patch=patch(Driver, "_reopen", reopen_aloud)), {"G15"}, (),
    ),
    "journal after send": (Variant(name="late journal", registry=JournalsAfterSending), {"G2"}, ()),
    "send although the store refuses": (Variant(name="fail open", registry=IgnoresRefusedWrites), {"G2", "G12"}, ()),
    "evidence marked as seen before it is applied": (
        Variant(name="mark first", registry=MarksBeforeApplying), {"G11", "G13"}, (),
    ),
    "writes without a fence": (Variant(name="no fence", registry=WritesWithoutFence), {"G7"}, ()),
    "a key stands for any payload": (Variant(name="any payload", registry=ForgetsConflicts), {"G5"}, ()),
    "a time-out taken for a reject": (
        Variant(name="time-out", patch=patch(SimAdapter, "judge", time_out_as_reject)), {"G4"}, (),
    ),
    "an answer without an id taken for an order": (
        Variant(name="nameless", patch=patch(driver, "_names_an_order", lambda report: True)), {"G11", "G13"}, NAMELESS,
    ),
    "an answered cancel taken for the end": (
        Variant(name="cancel", patch=patch(Driver, "_ask_cancel", cancel_believed)),
        {"G1", "G3", "G4", "G11"}, CANCELING,
    ),
    "a replacement before the old order's end is seen": (
        Variant(name="replace", patch=patch(Driver, "_ask_cancel", cancel_not_awaited)), {"G1", "G3"}, CANCELING,
    ),
    "fills during a cancel not counted": (
        Variant(name="fills", patch=patch(transitions, "observed", observed_without_late_fills)),
        {"G1", "G11"}, CANCELING,
    ),
    "a lock held across awaits": (Variant(name="one lock", gateway=OneAtATime), {"G6"}, ()),
    "a claim that a cancelled call leaves behind": (
        Variant(name="kept claim", locks=KeepsClaims), {"G13", "G14"}, (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_within_few_seeds_and_named_by_its_guarantee(bug: str) -> None:
    variant, expected, faults = BUGS[bug]
    for seed in range(SEEDS_MAX):
        run = simulate(seed, variant=variant, faults=faults or None)
        found = {violation.guarantee for violation in run.violations}
        if found & expected:
            return
    pytest.fail(f"{SEEDS_MAX} seeds did not find: {bug}")


def test_the_collection_of_planted_bugs_covers_the_guarantees_of_the_order_path() -> None:
    """So that a check of the auditor that finds nothing any more cannot go unnoticed."""
    named = set().union(*(expected for _, expected, _ in BUGS.values()))
    assert named >= {"G1", "G2", "G3", "G4", "G5", "G6", "G7", "G11", "G12", "G13", "G14", "G15", "G18"}
