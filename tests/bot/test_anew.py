"""A bot whose store fails half way through a write: run again with everything read anew, as long as nobody stops it."""

import itertools
import logging
from decimal import Decimal

import anyio
import pytest

import execsafe
from execsafe.bot.anew import Again, Stop
from execsafe.bot.config import RunConfig
from execsafe.bot.desk import TradingDesk
from execsafe.bot.feed import SilentFeed
from execsafe.bot.listening import Listening
from execsafe.bot.monitoring import Monitoring
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.runner import Runner
from execsafe.stores.memory import MemoryStore
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import SimVenue, linear

pytestmark = pytest.mark.anyio
BTC = "BTC/USDT:USDT"


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class Fragile(MemoryStore):
    """Poisoned once a write fails half way; opened anew it works, unless the disk is full still."""

    is_full = False
    is_poisoned = False

    async def open(self):
        if self.is_full:
            raise execsafe.StoreFull("no space")
        self.is_poisoned = False
        await super().open()

    def _look(self):
        self.is_poisoned = self.is_poisoned or self.is_full
        if self.is_poisoned:
            raise execsafe.StorePoisoned("a durable write failed half way")

    async def commit(self, batch):
        self._look()
        return await super().commit(batch)

    async def find(self, collection, key):
        self._look()
        return await super().find(collection, key)

    async def get_cursor(self, name):
        self._look()
        return await super().get_cursor(name)


class Life:
    """A bot that is run as ``execsafe run`` does, at a simulated venue in virtual time."""

    def __init__(self):
        self.clock = VirtualClock()
        self.venue = SimVenue([linear("BTC")], prices={BTC: 50_000})
        self.store = Fragile()
        self.stop = Stop()
        self.monitoring = Monitoring(RunConfig(), clock=self.clock)
        self.again = Again(self._once, self.stop, failed=self.monitoring.note_store_failed)
        self.starts = []
        self.before_barrier = None  # what is done before the barrier of the second run

    async def _once(self, is_first):
        self.starts.append((anyio.current_time(), is_first))
        policy = DeskPolicy(notional=Decimal(1000))
        desk = TradingDesk(
            SimAdapter(self.venue, clock=self.clock), self.store, policy, symbols=(BTC,),
            listeners=self.monitoring.listeners, clock=self.clock,
        )  # fmt: skip
        desk.beside.append(self.again.note_begun)
        self.monitoring.watch(desk)
        if self.before_barrier is not None and not is_first:
            self._put_before_barrier(desk)
        runner = Runner(desk, Listening((BTC,), {}), SilentFeed())
        self.stop.follow(runner)
        return await runner.run()

    def _put_before_barrier(self, desk):
        barrier, before, self.before_barrier = desk.reconciler.barrier, self.before_barrier, None

        async def late():
            before()
            return await barrier()

        desk.reconciler.barrier = late

    async def run(self, story):
        """What it came to: a result, or an error."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.monitoring.keep_looking)
            tasks.start_soon(story)
            try:
                return await self.again.until_it_ends()
            except execsafe.ExecsafeError as error:
                return error
            finally:
                tasks.cancel_scope.cancel()


@pytest.fixture
async def life():
    return Life()


async def test_a_store_that_can_be_opened_again_is_one_more_run(life):
    async def story():
        await anyio.sleep(100)
        life.store.is_poisoned = True
        await anyio.sleep(100)
        life.stop.request_stop()

    result = await life.run(story)
    assert [is_first for _, is_first in life.starts] == [True, False]
    assert result.has_begun
    assert result.leftover.is_nothing


async def test_tries_become_rare_while_the_disk_is_full_and_a_stop_ends_them(life, caplog):
    async def story():
        await anyio.sleep(3_600)  # a long run before counts for nothing in the tries after it
        life.store.is_full = True
        await anyio.sleep(300)
        life.stop.request_stop()

    with caplog.at_level(logging.CRITICAL, logger="execsafe.bot"):
        error = await life.run(story)
    assert isinstance(error, execsafe.StoreFull)
    times = [at_s for at_s, _ in life.starts[1:]]
    pauses = [round(later - earlier) for earlier, later in itertools.pairwise(times)]
    assert pauses == [2, 4, 8, 16, 30, 30, 30, 30, 30, 30, 30, 30][: len(pauses)]
    assert len(pauses) >= 10
    told = [record for record in caplog.records if "nothing is looked after" in record.getMessage()]
    assert len(told) == len(life.starts)
    assert anyio.current_time() < 3_950, "the stop waits for no pause"


async def test_somebody_is_told_while_no_desk_runs(life):
    async def story():
        await anyio.sleep(120)
        life.store.is_full = True
        await anyio.sleep(900)
        assert life.monitoring.health.components()["store"].health.value == "down"
        assert "not_healthy:store" in {alert.rule for alert in life.monitoring.health.alerts()}
        life.store.is_full = False
        await anyio.sleep(120)
        assert life.monitoring.health.overall.value == "healthy"
        life.stop.request_stop()

    assert (await life.run(story)).has_begun


async def test_a_store_that_fails_during_the_barrier_is_one_more_run(life):
    """What the barrier raises comes in groups."""

    def poison():
        life.store.is_poisoned = True

    async def story():
        await anyio.sleep(30)
        life.before_barrier = poison
        life.store.is_poisoned = True
        await anyio.sleep(300)
        life.stop.request_stop()

    assert (await life.run(story)).has_begun
    assert len(life.starts) == 3


async def test_a_first_start_that_fails_is_not_tried_again(life):
    life.store.is_full = True
    assert isinstance(await life.run(anyio.sleep_forever), execsafe.StoreFull)
    assert len(life.starts) == 1


@pytest.mark.parametrize(
    "error", [execsafe.StoreCorrupt("damaged"), execsafe.LeaseHeld("another's"), RuntimeError("x")]
)
async def test_what_does_not_pass_by_itself_ends_it(error):
    async def run(is_first):
        await again.note_begun()
        await anyio.sleep(1)
        raise error

    again = Again(run, Stop())
    with pytest.raises(type(error)):
        await again.until_it_ends()
