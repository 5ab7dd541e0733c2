"""Candles of one instant, put together from what a venue publishes symbol by symbol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import attrs

from execsafe.bot.candles import Candle

_AFTER_CLOSE_MS: Final = 1_000  # venues publish a candle a moment after it has closed
_OVERDUE_MS: Final = (2_000, 30_000)  # shortest and longest pause before an overdue candle is asked for again
_OVERDUE_SHARE: Final = 5  # a candle that has been overdue for so many seconds is asked for a second later
_LATE_MAX: Final = 10  # candles; what the venue publishes later than that is not asked for any more


@attrs.frozen(kw_only=True)
class Moment:
    """The candles that closed at one instant (Unix ms), by symbol.

    Attributes:
        is_past: only shown to rebuild a strategy's memory.
        is_recorded: the instant is of another time; what follows from it was decided when it was shown.
        missing: whose candles are not here because the venue has not published them so far.
    """

    closed_at_ms: int
    candles: Mapping[str, Candle]
    is_past: bool = False
    is_recorded: bool = False
    missing: tuple[str, ...] = ()


def together(candles: Mapping[str, Iterable[Candle]], length_ms: int) -> Iterator[Moment]:
    """The moments of *candles*, oldest first."""
    by_time: dict[int, dict[str, Candle]] = {}
    for symbol, own in candles.items():
        for candle in own:
            by_time.setdefault(candle.opened_at_ms, {})[symbol] = candle
    for opened_at_ms in sorted(by_time):
        yield Moment(closed_at_ms=opened_at_ms + length_ms, candles=by_time[opened_at_ms])


class Gathering:
    """What was read of each symbol, what waits for candles of other symbols, and when to ask again. Asks nobody.

    Args:
        symbols: whose candles.
        length_ms: of a candle.
        patience_ms: how long a moment waits for candles that are missing.
        after_ms: the open of the candle before the first one.
    """

    def __init__(self, symbols: Sequence[str], *, length_ms: int, patience_ms: int, after_ms: int) -> None:
        self._length_ms = length_ms
        self._patience_ms = patience_ms
        self._read_ms = dict.fromkeys(symbols, after_ms)  # the open of the latest candle
        self._asked_ms = dict(self._read_ms)
        self._unread = set(symbols)
        self._shown_ms = after_ms
        self._held: dict[int, dict[str, Candle]] = {}
        self._until_ms: dict[int, int] = {}

    def is_due(self, symbol: str, now_ms: int) -> bool:
        """Whether a candle of *symbol* has closed that was not read."""
        return now_ms >= self._read_ms[symbol] + 2 * self._length_ms

    def asked_ms(self, symbol: str) -> int:
        """The candles that opened after this are asked for."""
        return self._asked_ms[symbol]

    def add(self, symbol: str, candles: Iterable[Candle], now_ms: int) -> bool:
        """Take what the venue answered; whether a candle that has closed was new. One that still grows is none."""
        before_ms = self._read_ms[symbol]
        for candle in candles:
            opened_at_ms = candle.opened_at_ms
            if before_ms < opened_at_ms <= now_ms - self._length_ms:
                self._held.setdefault(opened_at_ms, {})[symbol] = candle
                self._read_ms[symbol] = max(self._read_ms[symbol], opened_at_ms)
        is_new = self._read_ms[symbol] > before_ms
        # Some venues answer with the candles of a span that begins where they are asked from: it has to move on.
        late_ms = 0 if is_new else self._shown_ms - _LATE_MAX * self._length_ms
        self._asked_ms[symbol] = max(self._asked_ms[symbol], self._read_ms[symbol], late_ms)
        return is_new

    def note_read(self, symbol: str) -> None:
        """All that the venue has of *symbol* was read."""
        self._unread.discard(symbol)

    def take(self, now_ms: int) -> list[Moment]:
        """The moments that can be shown now: complete, waited for long enough, or late.

        None before every symbol could be read once: a memory that is built from some of them only is none.
        """
        if self._unread:
            return []
        for opened_at_ms in self._held:
            self._until_ms.setdefault(opened_at_ms, now_ms + self._patience_ms)
        ready: list[Moment] = []
        for opened_at_ms in sorted(self._held):
            missing = self._missing(opened_at_ms)
            if missing and now_ms < self._until_ms[opened_at_ms]:
                break
            ready.append(self._moment(opened_at_ms, missing))
        return ready

    def _missing(self, opened_at_ms: int) -> tuple[str, ...]:
        """Whose candles may still come. Who has a later one had none then; nobody is missed at what was shown."""
        if opened_at_ms <= self._shown_ms:
            return ()
        held = self._held[opened_at_ms]
        return tuple(s for s, read_ms in self._read_ms.items() if s not in held and read_ms < opened_at_ms)

    def _moment(self, opened_at_ms: int, missing: tuple[str, ...]) -> Moment:
        del self._until_ms[opened_at_ms]
        self._shown_ms = max(self._shown_ms, opened_at_ms)
        return Moment(
            closed_at_ms=opened_at_ms + self._length_ms, candles=self._held.pop(opened_at_ms), missing=missing
        )

    def pause_ms(self, now_ms: int) -> int:
        """When to ask again: after the next candle has closed, or, where one is overdue, in ever longer pauses."""
        return min(self._pause_of(symbol, now_ms) for symbol in self._read_ms)

    def _pause_of(self, symbol: str, now_ms: int) -> int:
        since_close_ms = (now_ms - self._read_ms[symbol]) % self._length_ms
        next_ms = self._length_ms - since_close_ms + _AFTER_CLOSE_MS
        if not self.is_due(symbol, now_ms):
            return next_ms
        shortest_ms, longest_ms = _OVERDUE_MS
        return min(max(shortest_ms, since_close_ms // _OVERDUE_SHARE), longest_ms, next_ms)

    def patience_left_ms(self, now_ms: int) -> int | None:
        """For how long the first moment that waits still does; None if none does."""
        return max(0, self._until_ms[min(self._until_ms)] - now_ms) if self._until_ms else None
