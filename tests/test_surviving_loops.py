"""A loop that looks after positions goes on, whatever one of its passes raises; cancellation ends it as ever."""

import logging

import anyio
import anyio.lowlevel
import pytest

from execsafe.bot.desk import _or_later
from execsafe.bot.targets import Harvester
from execsafe.buses.surviving import survived
from execsafe.errors import StoreUnavailable
from execsafe.exits import ExitManager
from execsafe.model.event import EventType
from execsafe.prices import PriceBoard
from execsafe.protection import ProtectionManager
from execsafe.reconcile import Reconciler
from execsafe.safety import SafetyMonitor
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
