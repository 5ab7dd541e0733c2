"""The ``signals`` strategy: other programs decide, and the bot opens what they say over the bus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from execsafe.bot.candles import Candle
from execsafe.bot.strategy import Decision, Desk, Strategy


class Listening(Strategy):
    """Decides nothing itself. What comes over the bus is judged, sized, opened and protected as any other decision."""

    def on_candles(self, candles: Mapping[str, Candle], desk: Desk) -> Iterable[Decision]:  # noqa: ARG002
        """Nothing."""
        return ()
