"""Candles as they close: none twice, none half-grown, none lost to a venue that is away for a while."""

import asyncio
import contextlib
import logging
import types
from decimal import Decimal

import anyio
import ccxt.async_support as ccxt
import pytest

import execsafe
from execsafe.bot import live
from execsafe.bot.candles import Candle
from execsafe.bot.config import BotConfig, RunConfig, StrategyConfig, VenueConfig
from execsafe.bot.feed import RecordedFeed, VenueFeed, interval_ms
from execsafe.bot.moments import Gathering
from execsafe.bot.runner import make_strategy
from execsafe.clock import SystemClock
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends

pytestmark = pytest.mark.anyio
MINUTE = 60_000


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class Exchange:
    """Grows a candle of each length; the last one it shows has not closed.

    Attributes:
        away: so many questions fail.
        late_s: by symbol, how long after its close a candle is published.
        silent: symbols that cannot be asked.
        page: most candles in an answer.
    """

    def __init__(self, clock, *, late_s=None, page=1_000):
        self.clock = clock
        self.away = 0
        self.late_s = late_s or {}
        self.silent = set()
        self.page = page
        self.asked = []

    async def fetch_ohlcv(self, symbol, timeframe, since):
        self.asked.append(symbol)
        if self.away:
            self.away -= 1
        elif symbol not in self.silent:
            length_ms = interval_ms(timeframe)
            first, last = -(-since // length_ms), self._last(symbol, length_ms)
            return [[n * length_ms, 1.0, 3.0, 0.5, 1.0 + n % 7, 10.0] for n in range(first, last + 1)][: self.page]
        raise ConnectionError("https://example.com/?signature=0123456789abcdef")

    def _last(self, symbol, length_ms):
        """The one that is growing; where candles are late, the last one that was published."""
        late_ms = self.late_s.get(symbol, 0) * 1000
        return (self.clock.now_ms() - late_ms) // length_ms - (1 if late_ms else 0)


def a_bot(*, candle, run=None):
    return BotConfig(
        venue=VenueConfig(exchange="bybit"),
        strategy=StrategyConfig(name="waves", symbols=("A", "B"), candle=candle),
        run=RunConfig(store="memory://") if run is None else run,
    )


async def some(feed, warm_up, count, watch=lambda _found: None):
    found = []
    with anyio.fail_after(4 * 3_600):
        async with contextlib.aclosing(feed.moments(warm_up)) as moments:
            async for moment in moments:
                found.append(moment)
                watch(found)
                if len(found) == count:
                    break
    return found


async def test_past_candles_come_first_then_each_one_as_it_closes():
    clock = VirtualClock()
    feed = VenueFeed(Exchange(clock), ["A", "B"], timeframe="1m", clock=clock)
    start_ms = clock.now_ms()
    found = await some(feed, 3, 8)
    times = [moment.closed_at_ms for moment in found]
    assert times == list(range(times[0], times[0] + 8 * MINUTE, MINUTE))
    assert [moment.is_past for moment in found] == [closed_ms <= start_ms for closed_ms in times]
    assert sum(moment.is_past for moment in found) >= 3
    assert all(set(moment.candles) == {"A", "B"} for moment in found)
    assert found[-1].closed_at_ms <= clock.now_ms() < found[-1].closed_at_ms + MINUTE


@pytest.mark.parametrize("symbols", [["A"], ["A", "B"]])
async def test_a_venue_that_is_away_is_asked_again_and_nothing_is_lost(symbols):
    clock = VirtualClock()
    exchange = Exchange(clock)
    exchange.away = 40
    found = await some(VenueFeed(exchange, symbols, timeframe="1m", clock=clock), 1, 6)
    times = [moment.closed_at_ms for moment in found]
    assert times == list(range(times[0], times[0] + 6 * MINUTE, MINUTE))
    assert all(set(moment.candles) == set(symbols) for moment in found)


async def test_an_outage_is_told_at_once_then_once_a_minute_and_when_it_is_over(caplog):
    clock = VirtualClock()
    exchange = Exchange(clock)
    exchange.away = 100  # asked every two seconds
    with caplog.at_level(logging.INFO, logger="execsafe"):
        await some(VenueFeed(exchange, ["A", "B"], timeframe="1m", clock=clock), 1, 8)
    told = [record.getMessage() for record in caplog.records]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 8 + ["INFO"], "of each symbol once a minute"
    assert told[0].startswith("reading candles failed (VenueUnavailable: A: ConnectionError: ")
    assert told[-2].endswith("so far")
    assert told[-1] == "reading candles works again after 100 failures in 200 s"
    assert "0123456789abcdef" not in "".join(told)
    assert len(exchange.asked) < 130, "while it is away it is asked one question at a time"


async def test_a_symbol_that_cannot_be_asked_keeps_no_other_from_being_shown_and_loses_nothing():
    clock = VirtualClock()
    exchange = Exchange(clock)

    def go_away_for_a_while(found):
        exchange.silent = {"A"} if 4 <= len(found) < 20 else set()

    feed = VenueFeed(exchange, ["A", "B", "C"], timeframe="1m", clock=clock)
    found = await some(feed, 2, 60, go_away_for_a_while)
    for symbol in "ABC":
        own = [m.closed_at_ms for m in found if symbol in m.candles]
        assert own == list(range(own[0], own[-1] + MINUTE, MINUTE)), "each candle once, in its order"
        assert own[-1] == found[-1].closed_at_ms
    assert all(len(m.candles) == 3 for m in found[:4])
    assert {"B", "C"} == set(found[4].candles)


async def test_nothing_is_shown_before_every_symbol_could_be_read():
    """A strategy for two symbols would begin with a memory of nothing."""
    clock = VirtualClock()
    exchange = Exchange(clock)
    exchange.silent = {"B"}
    feed = VenueFeed(exchange, ["A", "B"], timeframe="1m", clock=clock)
    found = []

    async def watch():
        found.extend(await some(feed, 20, 24))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await anyio.sleep(180)
        assert not found
        exchange.silent = set()
    assert all(set(moment.candles) == {"A", "B"} for moment in found)


@pytest.mark.parametrize("order", [["A", "B"], ["B", "A"]])
@pytest.mark.parametrize("late_s", [2, 4, 9])
async def test_candles_that_are_published_some_seconds_later_are_shown_together_with_the_others(order, late_s, caplog):
    clock = VirtualClock()
    feed = VenueFeed(Exchange(clock, late_s={"B": late_s}), order, timeframe="1m", clock=clock)
    found = await some(feed, 3, 30)
    times = [moment.closed_at_ms for moment in found]
    assert times == list(range(times[0], times[0] + 30 * MINUTE, MINUTE))
    assert all(set(moment.candles) == {"A", "B"} for moment in found)
    assert clock.now_ms() - times[-1] <= (late_s + 2) * 1000
    assert not caplog.records


@pytest.mark.parametrize(
    ("timeframe", "fresh_s", "within_s"),
    [
        pytest.param("1m", 300.0, 11, id="ten seconds"),
        pytest.param("4m", 300.0, 11, id="also of a longer candle"),
        pytest.param("1m", 6.0, 3, id="a third of the time for which decisions are fresh"),
    ],
)
async def test_the_wait_for_a_candle_that_is_missing_has_an_end(timeframe, fresh_s, within_s):
    clock = VirtualClock()
    exchange = Exchange(clock, late_s={"B": 50})
    settings = a_bot(candle=timeframe, run=RunConfig(signal_age_max_s=fresh_s))
    feed = live._feed(settings, make_strategy(settings.strategy), exchange, clock)
    shown = []

    def note_age(found):
        if "A" in found[-1].candles and not found[-1].is_past:
            shown.append(clock.now_ms() - found[-1].closed_at_ms)

    await some(feed, 0, 11, note_age)
    assert len(shown) >= 5
    assert all(1_000 < waited_ms <= within_s * 1000 for waited_ms in shown), shown


async def test_a_candle_that_comes_later_still_is_shown_by_itself_once_and_who_is_missing_is_told_once(caplog):
    clock = VirtualClock()
    feed = VenueFeed(Exchange(clock, late_s={"B": 20}), ["A", "B"], timeframe="1m", clock=clock)
    found = await some(feed, 3, 23)
    assert all(set(moment.candles) == {"A", "B"} for moment in found[:3])
    alone = found[3:]
    assert [sorted(moment.candles) for moment in alone] == [["A"], ["B"]] * 10
    assert [m.closed_at_ms for m in alone[::2]] == [m.closed_at_ms for m in alone[1::2]]
    assert not any(moment.is_past for moment in alone), "their age says what is done about what is decided"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "are shown without B: there are none so far" in record.getMessage()


@pytest.mark.parametrize("late_s", [70, 200, 590])
async def test_candles_that_are_always_late_by_more_than_their_length_are_all_shown(late_s):
    clock = VirtualClock()
    feed = VenueFeed(Exchange(clock, late_s={"B": late_s}), ["A", "B"], timeframe="1m", clock=clock)
    found = await some(feed, 30, 80)
    own = [m.closed_at_ms for m in found if "B" in m.candles]
    assert own == list(range(own[0], own[0] + len(own) * MINUTE, MINUTE))
    assert len(own) > 30
    assert clock.now_ms() - own[-1] < (late_s + 60) * 1000


async def test_a_symbol_without_a_candle_at_an_instant_is_not_waited_for_once_it_has_a_later_one():
    class Quiet(Exchange):
        async def fetch_ohlcv(self, symbol, timeframe, since):
            rows = await super().fetch_ohlcv(symbol, timeframe, since)
            return [row for row in rows if symbol == "A" or row[0] // MINUTE % 3 == 0]

    clock = VirtualClock()
    began_ms = clock.now_ms()
    found = await some(VenueFeed(Quiet(clock), ["A", "B"], timeframe="1m", clock=clock), 60, 55)
    assert clock.now_ms() == began_ms
    assert [len(m.candles) for m in found] == [2 if m.closed_at_ms // MINUTE % 3 == 1 else 1 for m in found]


async def test_a_symbol_that_was_listed_later_is_found_at_a_venue_that_answers_with_one_span():
    """Asked for candles from an instant on, it looks at a hundred of them: before the listing there are none."""

    class Spans(Exchange):
        async def fetch_ohlcv(self, symbol, timeframe, since):
            rows = await super().fetch_ohlcv(symbol, timeframe, since)
            listed_ms = began_ms - 5 * MINUTE if symbol == "B" else 0
            return [row for row in rows if listed_ms <= row[0] < since + 100 * MINUTE]

    clock = VirtualClock()
    began_ms = clock.now_ms()
    found = await some(VenueFeed(Spans(clock), ["A", "B"], timeframe="1m", clock=clock), 400, 420)
    own = [m.closed_at_ms for m in found if "B" in m.candles]
    assert own[0] <= began_ms - 3 * MINUTE
    assert own == list(range(own[0], own[-1] + MINUTE, MINUTE))
    assert set(found[-1].candles) == {"A", "B"}


async def test_a_symbol_whose_candles_are_rare_is_asked_for_ever_more_rarely():
    """A candle that nobody publishes must not cost a request every other second."""
    clock = VirtualClock()
    exchange = Exchange(clock, late_s={"B": 1_000_000})
    feed = VenueFeed(exchange, ["A", "B"], timeframe="1h", clock=clock)

    with anyio.move_on_after(2 * 3_600):
        await some(feed, 0, 100)
    assert 50 < exchange.asked.count("B") < 200


async def test_a_warm_up_of_many_pages_is_there_at_once():
    clock = VirtualClock()
    exchange = Exchange(clock, page=200)
    feed = VenueFeed(exchange, ["A", "B"], timeframe="1m", clock=clock)
    began_ms = clock.now_ms()
    found = await some(feed, 1_000, 1_000)
    assert clock.now_ms() == began_ms
    assert all(moment.is_past for moment in found)
    assert all(set(moment.candles) == {"A", "B"} for moment in found)
    assert len(exchange.asked) == 10


async def test_a_candle_that_grows_is_not_shown_although_the_bots_clock_went_ahead():
    """The machine booted an hour ahead, and its clock was put right after the start: candles go by the earlier time."""
    true, wrong_ms = VirtualClock(), [3_600_000]
    clock = SystemClock(
        elapsed_ns=lambda: true.now_ms() * 1_000_000, wall_ns=lambda: (true.now_ms() + wrong_ms[0]) * 1_000_000
    )
    wrong_ms[0] = 0
    feed = VenueFeed(Exchange(true), ["A"], timeframe="1m", clock=clock)

    def see_that_it_has_just_closed(found):
        assert found[-1].closed_at_ms <= true.now_ms() < found[-1].closed_at_ms + 2_000

    await some(feed, 0, 5, see_that_it_has_just_closed)


@pytest.mark.parametrize(
    ("offered", "message"),
    [
        (["1m", "3m", "5m", "15m", "1h", "1w"], "bybit has no candles of '7m'; the nearest are 3m, 5m, 15m$"),
        (["1w"], "bybit has no candles of '7m'$"),
    ],
)
async def test_a_length_that_the_exchange_does_not_have_is_refused_with_the_nearest(offered, message):
    exchange = types.SimpleNamespace(id="bybit", timeframes=dict.fromkeys(offered, "x"))
    with pytest.raises(execsafe.InvalidInput, match=message):
        VenueFeed(exchange, ["A"], timeframe="7m")


def test_a_run_with_candles_that_its_venue_does_not_have_ends_before_anything_is_asked():
    async def main():
        await live.run(a_bot(candle="7m"), exchange=ccxt.bybit())

    with pytest.raises(execsafe.InvalidInput, match=r"bybit has no candles of '7m'; the nearest are 3m, 5m, 15m$"):
        asyncio.run(main())


@pytest.mark.parametrize("offered", [None, {}, {"7m": "7"}])
async def test_an_exchange_that_names_no_lengths_is_asked(offered):
    VenueFeed(types.SimpleNamespace(timeframes=offered), ["A"], timeframe="7m")


async def test_recorded_candles_are_shown_in_order_whatever_is_missing():
    candles = {
        "A": [Candle(n * MINUTE, Decimal(n + 1)) for n in range(4)],
        "B": [Candle(2 * MINUTE, Decimal(9))],
    }
    found = await some(RecordedFeed(candles, interval_ms=MINUTE), 1, 4)
    assert [sorted(moment.candles) for moment in found] == [["A"], ["A"], ["A", "B"], ["A"]]
    assert [moment.is_past for moment in found] == [True, False, False, False]
    assert found[0].closed_at_ms == MINUTE


@pytest.mark.parametrize("bad", ["", "m", "5", "0m", "5s", "-1h", "1.5h", "7x", "1M", "\u0665m"])
async def test_a_length_that_is_none_is_refused(bad):
    with pytest.raises(execsafe.InvalidInput, match="candle must be like"):
        interval_ms(bad)
    assert interval_ms("15m") == 15 * MINUTE


def test_a_moment_that_waits_behind_an_earlier_one_asks_for_no_hurry():
    """The later one has waited long enough; the earlier one, of which a candle came since, has not."""
    length = 60_000

    def candle(at_ms):
        return Candle(at_ms, Decimal(1), Decimal(1), Decimal(1))

    gathering = Gathering(["X", "Y", "Z"], length_ms=length, patience_ms=10_000, after_ms=0)
    for symbol in "XYZ":
        gathering.add(symbol, [candle(length)], 3 * length)
        gathering.note_read(symbol)
    assert len(gathering.take(3 * length)) == 1
    now_ms = 4 * length + 1_000
    gathering.add("X", [candle(3 * length)], now_ms)  # nobody traded X in between
    assert gathering.take(now_ms) == []
    gathering.add("Y", [candle(2 * length)], now_ms + 5_000)
    assert gathering.take(now_ms + 5_000) == []
    assert gathering.take(now_ms + 10_000) == []
    assert gathering.patience_left_ms(now_ms + 10_000) == 5_000
    assert len(gathering.take(now_ms + 15_000)) == 2
