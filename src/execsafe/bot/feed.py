"""Candles as they close: from a venue, or recorded ones."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Protocol

import anyio
import attrs

import execsafe
from execsafe.bot.candles import Candle
from execsafe.bot.moments import Gathering, Moment, together
from execsafe.buses.surviving import survived
from execsafe.clock import earliest_ms

_log = logging.getLogger("execsafe.bot.feed")
_UNITS_MS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PATIENCE_S: Final = 10.0  # most venues have published every candle by then
_RETRY_S: Final = 2.0
_MISSED_AGAIN_MS: Final = 3_600_000
_REASON_MAX: Final = 200
_NEAREST: Final = 3
_COLUMNS: Final = 5


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
        self._moments = list(together(candles, interval_ms))
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
    """Candles from a ccxt exchange, asked for when they have closed. One that is still growing is never passed on.

    Candles of one instant are shown together. A venue publishes some of them later than others: these are waited for,
    ten seconds, but at most a quarter of a candle and a third of *fresh_s*. Then the moment is shown without them, and
    who is missing is logged, of each symbol once an hour.

    A candle that comes later still is shown as well, by itself, with the instant at which it closed, even if later
    instants were shown meanwhile. So a strategy's memory of that symbol has no gap, and its age says whether anything
    is done about what is decided. A strategy that needs several symbols at once has missed that instant. A candle that
    is published more than ten candles late is lost.

    A venue that cannot be asked is asked again; what it missed meanwhile comes late, never twice. A symbol that cannot
    be asked is treated like one that is late; only at the start nothing is shown before each could be asked once.

    Args:
        exchange: a ccxt exchange, or anything with its ``fetch_ohlcv``.
        symbols: whose candles.
        timeframe: ccxt's name of the length, e.g. ``"5m"``.
        fresh_s: for how long a decision can be carried out.
        clock: source of Unix milliseconds.

    Raises:
        InvalidInput: a length that is not a number of minutes, hours or days, or that the exchange does not have.
    """

    def __init__(
        self,
        exchange: Any,
        symbols: Sequence[str],
        *,
        timeframe: str,
        fresh_s: float = 300.0,
        clock: execsafe.Clock | None = None,
    ) -> None:
        self._exchange = exchange
        self._symbols = list(symbols)
        self._timeframe = timeframe
        self._interval_ms = interval_ms(timeframe)
        _check_offered(exchange, timeframe)
        shares = (self._interval_ms / 4, fresh_s * 1000 / 3)
        self._patience_ms = round(min(_PATIENCE_S * 1000, *shares))
        self._clock = clock if clock is not None else execsafe.SystemClock()
        self._missed_ms: dict[str, int] = {}

    async def moments(self, warm_up: int) -> AsyncGenerator[Moment, None]:
        started_ms = earliest_ms(self._clock)
        gathering = Gathering(
            self._symbols,
            length_ms=self._interval_ms,
            patience_ms=self._patience_ms,
            after_ms=started_ms - started_ms % self._interval_ms - (warm_up + 1) * self._interval_ms,
        )
        while True:
            is_read = await survived(functools.partial(self._read, gathering), "reading candles", log=_log)
            for moment in gathering.take(self._clock.now_ms()):
                self._tell_missing(moment)
                yield attrs.evolve(moment, is_past=moment.closed_at_ms <= started_ms)
            await anyio.sleep(self._pause_s(gathering) if is_read else _RETRY_S)

    async def _read(self, gathering: Gathering) -> None:
        """Ask for what is due.

        The first symbol that cannot be asked ends the pass, so that a venue that is away is not asked for each; it is
        the last one in the next pass, so that it keeps no other from being read.

        Raises:
            VenueUnavailable: a symbol could not be asked.
        """
        now_ms = earliest_ms(self._clock)
        for symbol in tuple(self._symbols):
            self._symbols.remove(symbol)
            self._symbols.append(symbol)
            await self._read_symbol(symbol, gathering, now_ms)

    async def _read_symbol(self, symbol: str, gathering: Gathering, now_ms: int) -> None:
        """Page after page, until one brings nothing new or the latest candle is there."""
        while gathering.is_due(symbol, now_ms):
            try:
                rows = await self._exchange.fetch_ohlcv(symbol, self._timeframe, gathering.asked_ms(symbol) + 1)
                is_new = gathering.add(symbol, [_candle(row) for row in rows], now_ms)
            except Exception as error:  # whatever the client raises, or answers: the next question comes
                raise execsafe.VenueUnavailable(f"{symbol}: {type(error).__name__}: {error}"[:_REASON_MAX]) from error
            if not is_new:
                break
        gathering.note_read(symbol)

    def _pause_s(self, gathering: Gathering) -> float:
        pause_ms = gathering.pause_ms(earliest_ms(self._clock))
        left_ms = gathering.patience_left_ms(self._clock.now_ms())
        return (pause_ms if left_ms is None else min(pause_ms, left_ms)) / 1000

    def _tell_missing(self, moment: Moment) -> None:
        now_ms = self._clock.now_ms()
        news = [s for s in moment.missing if now_ms - self._missed_ms.get(s, -_MISSED_AGAIN_MS) >= _MISSED_AGAIN_MS]
        if news:
            self._missed_ms |= dict.fromkeys(news, now_ms)
            at = datetime.fromtimestamp(moment.closed_at_ms / 1000, tz=UTC).isoformat()
            _log.warning("the candles of %s are shown without %s: there are none so far", at, ", ".join(news))


def interval_ms(timeframe: str) -> int:
    """The length of a candle, from ccxt's name for it.

    Raises:
        InvalidInput: anything but minutes, hours and days.
    """
    number, unit = timeframe[:-1], timeframe[-1:]
    if unit not in _UNITS_MS or not (number.isascii() and number.isdecimal()) or int(number) < 1:
        raise execsafe.InvalidInput(f"candle must be like '5m', '1h' or '1d', was {timeframe[:10]!r}")
    return int(number) * _UNITS_MS[unit]


def _check_offered(exchange: Any, timeframe: str) -> None:
    """Refuse a length of which *exchange* says that it has none, instead of asking for it for ever."""
    offered: Mapping[str, object] = getattr(exchange, "timeframes", None) or {}
    if not offered or timeframe in offered:
        return
    name = getattr(exchange, "id", "the exchange")
    known = [one for one in offered if one[-1:] in _UNITS_MS and one[:-1].isdecimal()]
    wanted_ms = interval_ms(timeframe)
    near = sorted(known, key=lambda one: abs(math.log(interval_ms(one) / wanted_ms)))[:_NEAREST]
    hint = f"; the nearest are {', '.join(sorted(near, key=interval_ms))}" if near else ""
    raise execsafe.InvalidInput(f"{name} has no candles of {timeframe!r}{hint}")


def _candle(row: Sequence[Any]) -> Candle:
    if len(row) < _COLUMNS:
        raise execsafe.InvalidInput("a candle has a time, open, high, low and close")
    at_ms, _, high, low, close = row[:_COLUMNS]
    return Candle(int(at_ms), Decimal(repr(close)), Decimal(repr(high)), Decimal(repr(low)))
