"""Candles as they close: from a venue, or recorded ones."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Protocol

import anyio
import attrs

import execsafe
from execsafe.bot.candles import Candle

_log = logging.getLogger("execsafe.bot.feed")
_UNITS_MS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
_AFTER_CLOSE_S: Final = 1.0  # venues publish a candle a moment after it has closed
_RETRY_S: Final = 2.0
_COLUMNS: Final = 5


@attrs.frozen(kw_only=True)
class Moment:
    """The candles that closed at one instant (Unix ms), by symbol.

    Attributes:
        is_past: only shown to rebuild a strategy's memory.
        is_recorded: the instant is of another time; what follows from it was decided when it was shown.
    """

    closed_at_ms: int
    candles: Mapping[str, Candle]
    is_past: bool = False
    is_recorded: bool = False


class Feed(Protocol):
    """Where candles come from."""

    def moments(self, warm_up: int) -> AsyncGenerator[Moment, None]:
        """First *warm_up* past moments, then each one as it closes, oldest first, none twice."""
        ...


class RecordedFeed:
    """Recorded candles, one after the other, *pause_s* apart.

    Args:
        candles: by symbol, oldest first.
        interval_ms: length of a candle.
        pause_s: how long a candle takes; 0 as fast as they are taken.
    """

    def __init__(
        self, candles: Mapping[str, Sequence[Candle]], *, interval_ms: int = 300_000, pause_s: float = 0.0
    ) -> None:
        self._moments = list(_together(candles, interval_ms))
        self._pause_s = pause_s

    async def moments(self, warm_up: int) -> AsyncGenerator[Moment, None]:
        for number, moment in enumerate(self._moments):
            is_past = number < warm_up
            if not is_past:
                await anyio.sleep(self._pause_s)
            yield attrs.evolve(moment, is_past=is_past, is_recorded=True)


class SilentFeed:
    """No candles: for a strategy that looks at none."""

    async def moments(self, warm_up: int) -> AsyncGenerator[Moment, None]:  # noqa: ARG002
        await anyio.sleep_forever()
        yield Moment(closed_at_ms=0, candles={})  # never: it makes this a generator


class VenueFeed:
    """Candles from a ccxt exchange, asked for when they have closed.

    A venue that cannot be asked is asked again; what it missed meanwhile comes late, never twice. The candle that is
    still growing is never passed on.

    Args:
        exchange: a ccxt exchange, or anything with its ``fetch_ohlcv``.
        symbols: whose candles.
        timeframe: ccxt's name of the length, e.g. ``"5m"``.
        clock: source of Unix milliseconds.

    Raises:
        InvalidInput: a length that is not a number of minutes, hours or days.
    """

    def __init__(
        self, exchange: Any, symbols: Sequence[str], *, timeframe: str, clock: execsafe.Clock | None = None
    ) -> None:
        self._exchange = exchange
        self._symbols = tuple(symbols)
        self._timeframe = timeframe
        self._interval_ms = interval_ms(timeframe)
        self._clock = clock if clock is not None else execsafe.SystemClock()

    async def moments(self, warm_up: int) -> AsyncGenerator[Moment, None]:
        now_ms = self._clock.now_ms()
        done_ms = now_ms - now_ms % self._interval_ms - (warm_up + 1) * self._interval_ms
        started_ms = now_ms
        while True:
            try:
                found = await self._closed_since(done_ms)
            except Exception as error:  # noqa: BLE001 - whatever the client raises, the next question comes
                _log.warning("candles could not be read (%s); asking again", type(error).__name__)
                await anyio.sleep(_RETRY_S)
                continue
            for moment in found:
                done_ms = moment.closed_at_ms - self._interval_ms
                yield attrs.evolve(moment, is_past=moment.closed_at_ms <= started_ms)
            now_ms = self._clock.now_ms()
            until_ms = self._interval_ms - now_ms % self._interval_ms
            await anyio.sleep(until_ms / 1000 + _AFTER_CLOSE_S if found else _RETRY_S)

    async def _closed_since(self, opened_after_ms: int) -> list[Moment]:
        now_ms = self._clock.now_ms()
        candles: dict[str, list[Candle]] = {}
        for symbol in self._symbols:
            rows = await self._exchange.fetch_ohlcv(symbol, self._timeframe, opened_after_ms + 1)
            read = [_candle(row) for row in rows]
            candles[symbol] = [
                c for c in read if c.opened_at_ms > opened_after_ms and c.opened_at_ms + self._interval_ms <= now_ms
            ]
        return list(_together(candles, self._interval_ms))


def interval_ms(timeframe: str) -> int:
    """The length of a candle, from ccxt's name for it.

    Raises:
        InvalidInput: anything but minutes, hours and days.
    """
    number, unit = timeframe[:-1], timeframe[-1:]
    if unit not in _UNITS_MS or not number.isdecimal() or int(number) < 1:
        raise execsafe.InvalidInput(f"candle must be like '5m', '1h' or '1d', was {timeframe[:10]!r}")
    return int(number) * _UNITS_MS[unit]


def _together(candles: Mapping[str, Iterable[Candle]], length_ms: int) -> Iterable[Moment]:
    by_time: dict[int, dict[str, Candle]] = {}
    for symbol, own in candles.items():
        for candle in own:
            by_time.setdefault(candle.opened_at_ms, {})[symbol] = candle
    for opened_at_ms in sorted(by_time):
        yield Moment(closed_at_ms=opened_at_ms + length_ms, candles=by_time[opened_at_ms])


def _candle(row: Sequence[Any]) -> Candle:
    if len(row) < _COLUMNS:
        raise execsafe.InvalidInput("a candle has a time, open, high, low and close")
    at_ms, _, high, low, close = row[:_COLUMNS]
    return Candle(int(at_ms), Decimal(repr(close)), Decimal(repr(high)), Decimal(repr(low)))
