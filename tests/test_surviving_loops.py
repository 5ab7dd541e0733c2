"""A loop that looks after positions goes on, whatever one of its passes raises; cancellation ends it as ever."""

import functools
import itertools
import logging

import anyio
import anyio.lowlevel
import pytest

from execsafe.bot.desk import _or_later
from execsafe.bot.targets import Harvester
from execsafe.buses import surviving
from execsafe.buses.surviving import survived
from execsafe.errors import StoreUnavailable
from execsafe.exits import ExitManager
from execsafe.locks import Leases
from execsafe.model.event import EventType
from execsafe.prices import PriceBoard
from execsafe.protection import ProtectionManager
from execsafe.reconcile import Reconciler
from execsafe.safety import SafetyMonitor
from execsafe.stores.memory import MemoryStore
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from protection_rig import PERPETUAL, SPOT, World

pytestmark = pytest.mark.anyio
SECRET = "https://api.example.com/order?apiKey=AbCdEf123456&signature=0123456789abcdef"


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class Defect(Exception):
    """Of a user's adapter, store or listener."""


def fails(times, *, error=None):
    """A step that raises so often, and counts."""
    calls = []

    async def step(*_args, **_kwargs):
        calls.append(None)
        if len(calls) <= times:
            raise error or KeyError("a defect in a subclass")
        await anyio.lowlevel.checkpoint()

    return step, calls


async def test_what_a_pass_raises_is_logged_by_class_with_its_place_and_redacted(caplog):
    async def step():
        raise Defect(SECRET)

    assert not await survived(step, "a pass", log=logging.getLogger("execsafe"))
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "a pass failed (Defect" in record.message
    assert "test_surviving_loops.py" in record.message
    assert "AbCdEf123456" not in record.message
    assert "0123456789abcdef" not in record.message


async def test_each_failure_of_a_group_is_told_and_one_of_our_own_needs_no_place(caplog):
    async def step():
        raise ExceptionGroup("several", [StoreUnavailable("the disk is away"), ExceptionGroup("more", [Defect("x")])])

    assert not await survived(step, "a pass", log=logging.getLogger("execsafe"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]
    assert caplog.records[0].message == "a pass failed (StoreUnavailable: the disk is away); it comes again"


LOG = logging.getLogger("execsafe.loops")


async def runs(step, *, what="a pass", seconds=600, pause_s=1):
    """A loop as all are."""
    with anyio.move_on_after(seconds):
        while True:
            await survived(step, what, log=LOG)
            await anyio.sleep(pause_s)


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == LOG.name]


async def test_a_failure_is_told_at_once_then_once_a_minute_and_once_more_when_it_is_over(caplog):
    """An outage of fifty seconds came to three hundred warnings, among which nobody finds anything."""
    caplog.set_level(logging.INFO, logger=LOG.name)
    step, _ = fails(150, error=StoreUnavailable("away"))
    await runs(step)
    failed = "a pass failed (StoreUnavailable: away); it comes again"
    assert said(caplog) == [
        failed,
        f"{failed}, 61 failures in 60 s so far",
        f"{failed}, 121 failures in 120 s so far",
        "a pass works again after 150 failures in 150 s",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "WARNING", "INFO"]


async def test_a_single_failure_and_its_end_are_told(caplog):
    caplog.set_level(logging.INFO, logger=LOG.name)
    step, _ = fails(1, error=StoreUnavailable("away"))
    await runs(step)
    assert said(caplog) == [
        "a pass failed (StoreUnavailable: away); it comes again",
        "a pass works again after 1 failure in 1 s",
    ]


async def test_another_failure_is_told_at_once(caplog):
    errors = [StoreUnavailable("away")] * 10 + [Defect("wrong")] * 10

    async def step():
        raise errors.pop(0) if errors else StoreUnavailable("away")

    await runs(step, seconds=50)
    assert [line.partition("(")[2].partition(":")[0] for line in said(caplog)] == ["StoreUnavailable", "Defect"]
    assert "11 failures in 10 s so far" in said(caplog)[1]


async def test_failures_that_all_differ_and_such_that_come_and_go_are_told_five_times_a_minute(caplog):
    caplog.set_level(logging.INFO, logger=LOG.name)
    calls = itertools.count()

    async def differs():
        raise StoreUnavailable(f"request {next(calls)} was not answered")

    await runs(differs, seconds=119)
    assert len(said(caplog)) == 10
    caplog.clear()

    async def comes_and_goes():
        if next(calls) % 2:
            raise StoreUnavailable("away")

    await runs(comes_and_goes, what="another pass", seconds=119)
    assert len(said(caplog)) == 20, "each failure that is told has its end"


async def test_two_loops_of_one_name_fail_each_for_itself(caplog):
    """Two desks in one process: that one works says nothing of the other."""
    caplog.set_level(logging.INFO, logger=LOG.name)
    failing, _ = fails(10_000, error=StoreUnavailable("away"))
    working, _ = fails(0)
    async with anyio.create_task_group() as tasks:
        for step in (failing, working):
            tasks.start_soon(functools.partial(runs, step, seconds=590))
    assert len(said(caplog)) == 10
    assert not any("works again" in line for line in said(caplog))


async def test_names_without_end_are_bounded_and_so_is_what_is_told_of_them(caplog):
    """A look at the targets of each position has the position's id in its name."""

    async def failing():
        raise StoreUnavailable("away")

    for _ in range(5):
        for number in range(1_000):
            await survived(failing, f"a look at {number}", log=LOG)
        await anyio.sleep(1)
    assert len(said(caplog)) <= 201
    assert len(surviving._troubles.get()) <= 201
    await anyio.sleep(601)
    await survived(failing, "a look at one more", log=LOG)
    assert said(caplog)[-1].startswith("a look at one more failed")
    assert len(surviving._troubles.get()) <= 2, "what nobody tries any more is forgotten"


async def test_a_lease_that_cannot_be_renewed_is_told_likewise(caplog):
    caplog.set_level(logging.INFO)
    store, clock = Moody(), VirtualClock()
    await store.open()
    leases = Leases(store, clock.now_ms, "me", 30_000)
    lease = await leases.acquire("desk", waits=False, deadline=0)
    for store.mood in ["away"] * 70 + ["silent"] * 2 + ["fine"] * 2:
        renewed, _ = await leases.try_renew(lease, 500)
        assert renewed is not None
        await anyio.sleep(0.5 if store.mood == "silent" else 1)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "lease not renewed (StoreUnavailable)",
        "lease not renewed (StoreUnavailable), 61 failures in 60 s so far",
        "lease not renewed (no answer in time), 71 failures in 70 s so far",
        "lease renewed again after 72 failures in 72 s",
    ]


class Moody(MemoryStore):
    mood = "fine"

    async def commit(self, batch):
        if self.mood == "away":
            raise StoreUnavailable("away")
        if self.mood == "silent":
            await anyio.sleep_forever()
        return await super().commit(batch)


async def test_cancellation_and_what_ends_a_process_pass_through():
    async def killed():
        raise SystemExit

    with pytest.raises(SystemExit):
        await survived(killed, "a pass", log=logging.getLogger("execsafe"))
    with anyio.move_on_after(1) as scope:
        await survived(anyio.sleep_forever, "a pass", log=logging.getLogger("execsafe"))
    assert scope.cancelled_caught


# --- The loops ----------------------------------------------------------------------------------------------

LOOPS = [
    pytest.param(ProtectionManager, "check", id="protection"),
    pytest.param(ProtectionManager, "settle", id="protection settles"),
    pytest.param(ExitManager, "tick", id="exits"),
    pytest.param(Reconciler, "barrier", id="reconciliation"),
    pytest.param(SafetyMonitor, "refresh", id="safety"),
    pytest.param(PriceBoard, "_refresh", id="prices"),
    pytest.param(Harvester, "_look", id="targets"),
]


def part_of(cls, process, world):
    """One of the parts that run for ever, put together as a bot does."""
    if cls is ProtectionManager:
        return process.manager
    if cls is SafetyMonitor:
        return SafetyMonitor(world.store, clock=world.clock)
    if cls is PriceBoard:
        return PriceBoard(process.manager.reader, symbols=[PERPETUAL], clock=world.clock)
    if cls is Harvester:
        harvester = Harvester(
            store=world.store, book=process.book, exits_=None, stops=process.manager, prices=None, clock=world.clock,
            tell=process.registry.tell,
        )  # fmt: skip
        harvester._known["p"] = (Held(), 0)
        return harvester
    return cls(process.gateway, process.book)


class Held:
    position_id = "p"


@pytest.mark.guarantee(10)
@pytest.mark.parametrize(("cls", "step"), LOOPS)
async def test_g10_a_loop_goes_on_after_a_pass_that_raised_anything(cls, step, monkeypatch):
    """A KeyError from somebody's adapter ended all protection for good."""
    world = World()
    part = part_of(cls, world.process(), world)
    failing, calls = fails(10_000)
    monkeypatch.setattr(part, step, failing)
    with anyio.move_on_after(300) as scope:
        await part.run()
    assert scope.cancelled_caught, "it ends when it is cancelled, and not before"
    assert len(calls) > 2
    assert len(calls) < 3_000, "it waits between two passes that fail"


@pytest.mark.guarantee(10)
async def test_g10_a_defect_with_one_position_keeps_no_other_from_its_stop():
    world = World()
    process = world.process()
    original = process.adapter.stop_kind

    def breaks_down(symbol):
        if symbol == SPOT:
            raise KeyError("a defect in a subclass")
        return original(symbol)

    process.adapter.stop_kind = breaks_down
    await process.buy("0.1", symbol=SPOT, key="one")  # comes first, by its symbol
    await process.buy("0.1", symbol=PERPETUAL, key="other")
    with anyio.move_on_after(10):
        await process.manager.run()
    assert [quantity for quantity, _ in world.stops()] == [process.book.position("default", PERPETUAL).quantity]
    assert EventType.STOP_PLACED in world.kinds()
    process.adapter.stop_kind = original
    with anyio.move_on_after(10):
        await process.manager.run()
    assert world.stops(SPOT), "what was mended meanwhile is looked after again"


async def test_a_step_of_the_desk_that_raises_anything_comes_again(caplog):
    failing, calls = fails(1, error=Defect(SECRET))
    await _or_later(failing)
    await _or_later(failing)
    assert len(calls) == 2
    assert "AbCdEf123456" not in caplog.text
