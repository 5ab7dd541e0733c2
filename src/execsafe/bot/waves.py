"""The ``waves`` strategy: every few hours, a batch of positions in what has moved most, each with its own stop.

A pure function of candles. Floats decide only *whether* to trade; what is traded is Decimal.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import ClassVar, Final

import attrs

import execsafe
from execsafe.bot import config
from execsafe.bot.candles import Candle
from execsafe.bot.strategy import Decision, Desk, Open, Strategy

_MINUTE_MS: Final = 60_000
_FACTOR_MAX: Final = 3.0


@attrs.frozen(kw_only=True)
class WavesPolicy:
    """When a wave comes, and what rides it.

    Attributes:
        every_minutes: distance between waves; 180 by default, so that positions have had time to end.
        window: candles over which a symbol's move and its volatility are measured.
        least_move_bps: how far a symbol must have moved over the window to be taken.
        most: how many positions one wave may want.
        follow: take positions in the direction of the move; False: against it.
    """

    every_minutes: int = 180
    window: int = 24
    least_move_bps: float = 30.0
    most: int = 8
    follow: bool = True

    def __attrs_post_init__(self) -> None:
        """Refuse values with which nothing sensible would come out."""
        if min(self.every_minutes, self.most) < 1 or self.window < 2 or not self.least_move_bps >= 0:  # noqa: PLR2004
            raise execsafe.InvalidInput("every_minutes and most must be at least 1, window 2, least_move_bps 0")


class Waves(Strategy):
    """Every ``every_minutes`` it wants positions in the symbols that have moved most since the last window."""

    warm_up: ClassVar[int] = 96

    def __init__(self, symbols: Sequence[str], settings: Mapping[str, object]) -> None:
        super().__init__(symbols, settings)
        self.policy: WavesPolicy = config.settings(WavesPolicy, settings)
        self._closes: dict[str, deque[float]] = {s: deque(maxlen=self.policy.window + 1) for s in self.symbols}
        self._ranges: dict[str, deque[float]] = {s: deque(maxlen=4 * self.policy.window) for s in self.symbols}
        self._wave_at_ms = 0
        self._wanted = 0

    def on_candles(self, candles: Mapping[str, Candle], desk: Desk) -> Iterable[Decision]:
        for symbol, candle in candles.items():
            self._closes[symbol].append(float(candle.close))
            self._ranges[symbol].append(float((candle.high - candle.low) / candle.close))
        at_ms = max((candle.opened_at_ms for candle in candles.values()), default=0)
        if at_ms // _MINUTE_MS % self.policy.every_minutes:
            return ()
        if at_ms != self._wave_at_ms:  # else candles that come late to a wave: it wants no more for that
            self._wave_at_ms, self._wanted = at_ms, 0
        wave = list(self._wave(at_ms, [symbol for symbol in candles if desk.position(symbol) is None]))
        self._wanted += len(wave)
        return wave

    def _wave(self, at_ms: int, symbols: Iterable[str]) -> Iterator[Decision]:
        moves = {symbol: self._move_bps(symbol) for symbol in symbols}
        chosen = sorted(
            (s for s, m in moves.items() if abs(m) >= self.policy.least_move_bps), key=lambda s: -abs(moves[s])
        )
        for symbol in chosen[: self.policy.most - self._wanted]:
            up = (moves[symbol] > 0) is self.policy.follow
            yield Open(
                id=f"waves/{symbol}/{at_ms}",
                symbol=symbol,
                side=execsafe.PositionSide.LONG if up else execsafe.PositionSide.SHORT,
                volatility_factor=self._volatility(symbol),
            )

    def _move_bps(self, symbol: str) -> float:
        closes = self._closes[symbol]
        return (closes[-1] / closes[0] - 1) * 10_000 if len(closes) == closes.maxlen else 0.0

    def _volatility(self, symbol: str) -> Decimal:
        """Mean range of the last window over that of a longer time, at most 3; two digits are enough."""
        ranges = list(self._ranges[symbol])
        usual = statistics.fmean(ranges)
        ratio = statistics.fmean(ranges[-self.policy.window :]) / usual if usual else 1.0
        return Decimal(f"{min(max(ratio, 0.01), _FACTOR_MAX):.2f}")
