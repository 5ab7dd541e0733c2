"""A machine whose clock is set while the bot runs: it is told, and no entry passes until the clocks agree."""

import logging

import anyio
import pytest

import execsafe
from execsafe import signals
from execsafe.bot import live
from execsafe.bot.clockwatch import ClockWatch
from execsafe.bot.config import BotConfig, RiskConfig, RunConfig, StrategyConfig, VenueConfig
from execsafe.bot.runner import make_strategy
from execsafe.bot.strategy import Close, Open
from execsafe.clock import SystemClock
from execsafe.core.safety import is_for_now
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from execsafe.testing.venue import SimVenue, linear

pytestmark = pytest.mark.anyio
BTC, ETH = "BTC/USDT:USDT", "ETH/USDT:USDT"
MS = 1_000_000
HOUR_S = 3_600


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class Machine:
    """Its wall clock is *wrong_s* ahead of the true time."""

    def __init__(self, wrong_s=0.0):
        self.true = VirtualClock()
        self.wrong_s = wrong_s

    def clock(self):
        return SystemClock(elapsed_ns=lambda: self.true.now_ms() * MS, wall_ns=self._wall_ns)

    def _wall_ns(self):
        return self.true.now_ms() * MS + round(self.wrong_s * 1000) * MS


async def denied(watch):
    """Why an entry is refused; None: it passes."""
    intent = execsafe.Intent(key="k", symbol=BTC, side="buy", quantity=1)
    try:
        await watch.check(intent, execsafe.Instrument(symbol=BTC))
    except execsafe.TradingDenied as error:
        return error
    return None


@pytest.mark.parametrize(
    ("wrong_s", "where"), [(HOUR_S, "3600.0 s behind"), (-2 * HOUR_S, "7200.0 s ahead of"), (1.5, "1.5 s behind")]
)
async def test_a_clock_that_is_put_right_after_the_start_refuses_entries_and_says_what_to_do(wrong_s, where, caplog):
    machine = Machine(wrong_s)
    watch = ClockWatch(machine.clock(), bound_s=1)
    assert await denied(watch) is None
    machine.wrong_s = 0
    error = await denied(watch)
    assert error.context["reason"] is execsafe.DenyReason.STATE_UNKNOWN
    assert is_for_now(error), "the entry may pass when the clock has come back"
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert f"the machine's clock is {where} the bot's" in record.getMessage()
    assert "Restart the bot" in record.getMessage()


@pytest.mark.parametrize("step_s", [0, 1, -1])
async def test_what_the_venues_clock_may_be_off_is_no_difference(step_s, caplog):
    machine = Machine()
    watch = ClockWatch(machine.clock(), bound_s=1)
    machine.wrong_s = step_s
    assert await denied(watch) is None
    assert not watch.look()
    assert not caplog.records


async def test_it_is_found_out_within_a_minute_and_told_every_ten_until_it_is_over(caplog):
    machine = Machine()
    watch = ClockWatch(machine.clock(), bound_s=1)
    with caplog.at_level(logging.INFO, logger="execsafe"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await anyio.sleep(90)
            assert not caplog.records
            machine.wrong_s = HOUR_S
            await anyio.sleep(60)
            assert len(caplog.records) == 1
            for _ in range(100):
                await denied(watch)
            await anyio.sleep(25 * 60)
            assert [record.levelname for record in caplog.records] == ["ERROR"] * 3
            machine.wrong_s = 0
            await anyio.sleep(60)
            tasks.cancel_scope.cancel()
    assert caplog.records[3].getMessage() == "the machine's clock and the bot's agree again: entries pass"
    assert len(caplog.records) == 4
    assert await denied(watch) is None


async def test_a_clock_of_ones_own_and_exits_are_never_refused(caplog):
    machine = Machine()
    assert await denied(ClockWatch(machine.true, bound_s=1)) is None
    watch = ClockWatch(machine.clock(), bound_s=0)
    machine.wrong_s = HOUR_S
    leaving = execsafe.Intent(key="k", symbol=BTC, side="sell", quantity=1, reduce_only=True)
    await watch.check(leaving, execsafe.Instrument(symbol=BTC))
    assert not caplog.records


@pytest.mark.parametrize("bound_s", [-1, float("nan"), "1"])
async def test_a_bound_that_is_no_time_is_refused(bound_s):
    with pytest.raises(execsafe.InvalidInput, match="bound_s must be"):
        ClockWatch(VirtualClock(), bound_s=bound_s)


def running_bot(machine, venue, monkeypatch):
    """The desk of ``execsafe run``, at a simulated venue."""
    monkeypatch.setattr(execsafe, "SystemClock", machine.clock)
    monkeypatch.setattr(execsafe, "CcxtAdapter", lambda _: SimAdapter(venue, clock=machine.true))
    settings = BotConfig(
        venue=VenueConfig(exchange="bybit"),
        strategy=StrategyConfig(name="waves", symbols=(BTC, ETH)),
        risk=RiskConfig(position_notional=500),
        run=RunConfig(store="memory://"),
    )
    return live._desk(settings, make_strategy(settings.strategy), None, ())


async def test_a_bot_whose_clock_was_put_right_opens_nothing_and_closes_what_it_holds(monkeypatch, caplog):
    machine = Machine(2)  # little enough for every other check
    venue = SimVenue([linear("BTC"), linear("ETH")], prices={BTC: 50_000, ETH: 3_000})
    async with running_bot(machine, venue, monkeypatch).running() as desk:
        opened = await desk.carry_out(Open(id="one", symbol=BTC, side="long"))
        assert isinstance(opened, signals.Handled), opened
        assert venue.ledger.position(BTC) > 0
        machine.wrong_s = 0
        await anyio.sleep(61)
        assert [r.levelname for r in caplog.records if r.name == "execsafe.bot.clockwatch"] == ["ERROR"]
        await desk.carry_out(Open(id="two", symbol=ETH, side="long"))
        assert venue.ledger.position(ETH) == 0
        await desk.carry_out(Close(id="out", symbol=BTC))
        assert (venue.ledger.position(BTC), venue.ledger.position(ETH)) == (0, 0)
