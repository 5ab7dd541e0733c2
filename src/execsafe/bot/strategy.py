"""What a strategy author writes: a function from candles to decisions. Everything that can go wrong is elsewhere.

    class Breakout(Strategy):
        def on_candles(self, candles, desk):
            ...
            yield Open(id=f"breakout/{symbol}/{candle.opened_at_ms}", symbol=symbol, side="long")

A decision has an id that follows from what was seen, so that the same decision, made again after a restart or
delivered five times, is carried out once. Strategies do not wait, read no clock and send nothing: they can be run
on recorded candles as they are.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import ClassVar, Protocol, TypeAlias

import attrs

import execsafe
from execsafe.bot.candles import Candle
from execsafe.bot.config import amount


def _side(value: execsafe.PositionSide | str) -> execsafe.PositionSide:
    try:
        return execsafe.PositionSide(value)
    except ValueError:
        raise execsafe.InvalidInput(f"side must be 'long' or 'short', was {str(value)[:20]!r}") from None


@attrs.frozen(kw_only=True)
class Open:
    """Open a position, protected by a stop from its first fill on. Size, levels and stop follow from the settings.

    Attributes:
        id: stable identity of the decision; the same id is carried out once.
        symbol, side: what to open, ``"long"`` or ``"short"``.
        volatility_factor: how volatile the symbol is now; 1 is as usual, 0 calm. It widens the stop.
        confidence: 0 to 1; below 0.5 the levels are tightened where feedback is on.
    """

    id: str
    symbol: str
    side: execsafe.PositionSide = attrs.field(converter=_side)
    volatility_factor: Decimal = attrs.field(default=Decimal(1), converter=amount)
    confidence: Decimal = attrs.field(default=Decimal(1), converter=amount)


@attrs.frozen(kw_only=True)
class Close:
    """Close the position in *symbol*, whatever is left of it. *reason* is shown in reports."""

    id: str
    symbol: str
    reason: str = "strategy"


@attrs.frozen(kw_only=True)
class Leg:
    """One side of a pair: at most *quantity*, at *limit_price* or better; ``reverse_price`` is for undoing it."""

    symbol: str
    side: execsafe.Side
    quantity: Decimal
    limit_price: Decimal
    reverse_price: Decimal


@attrs.frozen(kw_only=True)
class TradePair:
    """Trade *lead*, then hedge what filled of it with *hedge*. ``closes`` names the trade that this one ends."""

    id: str
    lead: Leg
    hedge: Leg
    closes: str | None = None


Decision: TypeAlias = Open | Close | TradePair
"""What a strategy can want."""


class Desk(Protocol):
    """What a strategy may look at while it decides."""

    def instrument(self, symbol: str) -> execsafe.Instrument:
        """Trading rules of *symbol*."""
        ...

    def position(self, symbol: str) -> execsafe.Position | None:
        """What the book holds in *symbol* now; None if nothing."""
        ...


class Strategy(abc.ABC):
    """Base class for strategies. ``execsafe run`` loads yours by ``"module:Class"``.

    Attributes:
        symbols: whose candles it sees.
        warm_up: how many candles it must see before its decisions count; they are replayed at every start, so that
            its memory is rebuilt from the market and not from a file. Decisions made while warming up are dropped.
        protects: whether its positions get stops. False for trades whose legs protect one another.
    """

    warm_up: ClassVar[int] = 0
    protects: ClassVar[bool] = True

    def __init__(self, symbols: Sequence[str], settings: Mapping[str, object]) -> None:
        """*settings* is the table ``[strategy.settings]`` of the configuration; refuse what you do not know."""
        self.symbols: tuple[str, ...] = tuple(symbols)
        unknown = sorted(settings)
        if unknown and type(self).__init__ is Strategy.__init__:
            raise execsafe.InvalidInput(f"{type(self).__name__} takes no settings, was given {', '.join(unknown)}")

    @abc.abstractmethod
    def on_candles(self, candles: Mapping[str, Candle], desk: Desk) -> Iterable[Decision]:
        """What to do now that these candles have closed: one per symbol, all of the same instant.

        A symbol without a candle at this instant is not in *candles*. A candle that the venue publishes late comes in
        a call of its own, with others of its instant or alone, and maybe after candles of later instants; those of one
        symbol always come in their order.
        """
