"""Candles as they close: none twice, none half-grown, none lost to a venue that is away for a while."""

import contextlib
from decimal import Decimal

import pytest

import execsafe
from execsafe.bot.candles import Candle
from execsafe.bot.feed import RecordedFeed, VenueFeed, interval_ms
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends

pytestmark = pytest.mark.anyio
MINUTE = 60_000


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class Exchange:
    """Grows a candle a minute; the last one it shows has not closed."""

    def __init__(self, clock):
        self.clock = clock
        self.away = 0
        self.asked = 0

    async def fetch_ohlcv(self, symbol, timeframe, since):
        self.asked += 1
        if self.away:
            self.away -= 1
            raise ConnectionError
        first = -(-since // MINUTE)
        last = self.clock.now_ms() // MINUTE
        return [[n * MINUTE, 1.0, 3.0, 0.5, 1.0 + n % 7, 10.0] for n in range(first, last + 1)]


async def some(feed, warm_up, count):
    found = []
    async with contextlib.aclosing(feed.moments(warm_up)) as moments:
        async for moment in moments:
            found.append(moment)
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


async def test_a_venue_that_is_away_is_asked_again_and_nothing_is_lost():
    clock = VirtualClock()
    exchange = Exchange(clock)
    exchange.away = 40
    found = await some(VenueFeed(exchange, ["A"], timeframe="1m", clock=clock), 1, 6)
    times = [moment.closed_at_ms for moment in found]
    assert times == list(range(times[0], times[0] + 6 * MINUTE, MINUTE))


async def test_recorded_candles_are_shown_in_order_whatever_is_missing():
    candles = {
        "A": [Candle(n * MINUTE, Decimal(n + 1)) for n in range(4)],
        "B": [Candle(2 * MINUTE, Decimal(9))],
    }
    found = await some(RecordedFeed(candles, interval_ms=MINUTE), 1, 4)
    assert [sorted(moment.candles) for moment in found] == [["A"], ["A"], ["A", "B"], ["A"]]
    assert [moment.is_past for moment in found] == [True, False, False, False]
    assert found[0].closed_at_ms == MINUTE


@pytest.mark.parametrize("bad", ["", "m", "5", "0m", "5s", "-1h", "1.5h"])
async def test_a_length_that_is_none_is_refused(bad):
    with pytest.raises(execsafe.InvalidInput, match="candle must be like"):
        interval_ms(bad)
    assert interval_ms("15m") == 15 * MINUTE
