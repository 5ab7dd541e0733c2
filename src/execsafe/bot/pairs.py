"""The ``pairs`` strategy: two symbols that move together, traded when their ratio strays from its mean.

A pure function of candles: the same candles give the same signals, with the same identities, on every
machine. Only additions, divisions and square roots of floats are used, which IEEE 754 rounds alike everywhere.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import ClassVar, Final, TypeAlias

import attrs

import execsafe
from execsafe.bot import config, strategy
from execsafe.bot.candles import Candle
from execsafe.bot.strategy import Decision, Desk, Strategy, TradePair

_BPS: Final = Decimal(10_000)
_WINDOW_MIN: Final = 2
_LEGS: Final = 2

_Pair: TypeAlias = tuple[Candle, Candle]
_Instruments: TypeAlias = tuple[execsafe.Instrument, execsafe.Instrument]


@attrs.frozen(kw_only=True)
class PairsPolicy:
    """When to trade, and how much.

    Attributes:
        window: candles over which mean and deviation of the ratio are taken; 36 of five minutes are three hours.
        entry_z: how many standard deviations from the mean open a trade.
        exit_z: how near to the mean closes it. Below ``entry_z``, or trades would flutter.
        budget: size of each leg, in quote currency.
        slippage_bps: how far the limit price is set beyond the close, so that the order fills at once.
    """

    window: int = 36
    entry_z: float = 2.0
    exit_z: float = 0.3
    budget: Decimal = Decimal("0.5")
    slippage_bps: Decimal = Decimal(20)

    def __attrs_post_init__(self) -> None:
        """Refuse values with which nothing sensible would come out."""
        if self.window < _WINDOW_MIN or not 0 <= self.exit_z < self.entry_z:
            raise execsafe.InvalidInput("window must be at least 2, and exit_z between 0 and entry_z")
        if self.budget <= 0 or not 0 <= self.slippage_bps < _BPS:
            raise execsafe.InvalidInput("budget must be above 0, slippage_bps 0 to below 10000")


@attrs.frozen(kw_only=True)
class Leg:
    """One side of a pair trade: at most *quantity* (in base), at *limit_price* or better (in quote).

    ``reverse_price`` is the limit for the opposite order, should what was done have to be undone.
    """

    name: str
    symbol: str
    side: execsafe.Side
    quantity: Decimal
    limit_price: Decimal
    reverse_price: Decimal
    close: Decimal


@attrs.frozen(kw_only=True)
class Signal:
    """A decision to trade two legs. ``id`` is the same whenever and wherever the decision is made again.

    ``closes`` is the signal whose trade this one ends; None: it opens one. The first leg leads, the second
    hedges what the first one filled.
    """

    id: str
    at_ms: int
    lead: Leg
    hedge: Leg
    z: float
    closes: str | None = None

    @property
    def legs(self) -> tuple[Leg, Leg]:
        """Both, in the order in which they are sent."""
        return self.lead, self.hedge

    def as_trade(self) -> TradePair:
        """As a decision for the desk."""
        lead, hedge = (
            strategy.Leg(
                symbol=leg.symbol,
                side=leg.side,
                quantity=leg.quantity,
                limit_price=leg.limit_price,
                reverse_price=leg.reverse_price,
            )
            for leg in self.legs
        )
        return TradePair(id=self.id, lead=lead, hedge=hedge, closes=self.closes)


def signals(
    candles: Iterable[_Pair],
    instruments: _Instruments,
    policy: PairsPolicy | None = None,
) -> Iterator[Signal]:
    """Signals for the two *instruments*, from candles of the same instants, in their order.

    They alternate: one that opens, then the one that closes it. A candle is judged against those before it.
    """
    policy = policy or PairsPolicy()
    history: deque[float] = deque(maxlen=policy.window)
    opened: Signal | None = None
    for pair in candles:
        signal = _judge(pair, history, opened, instruments, policy)
        if signal is not None:
            yield signal
            opened = signal if signal.closes is None else None


class Pairs(Strategy):
    """The same rule for ``execsafe run``: the first two symbols are the pair."""

    warm_up: ClassVar[int] = 72
    protects: ClassVar[bool] = False

    def __init__(self, symbols: Sequence[str], settings: Mapping[str, object]) -> None:
        super().__init__(symbols, settings)
        if len(self.symbols) != _LEGS:
            raise execsafe.InvalidInput(f"pairs takes two symbols, was given {len(self.symbols)}")
        self.policy: PairsPolicy = config.settings(PairsPolicy, settings)
        self._history: deque[float] = deque(maxlen=self.policy.window)
        self._opened: Signal | None = None

    def on_candles(self, candles: Mapping[str, Candle], desk: Desk) -> Iterable[Decision]:
        first, second = self.symbols
        if first not in candles or second not in candles:
            return ()
        pair = candles[first], candles[second]
        signal = _judge(
            pair, self._history, self._opened, (desk.instrument(first), desk.instrument(second)), self.policy
        )
        if signal is None:
            return ()
        self._opened = signal if signal.closes is None else None
        return (signal.as_trade(),)


def _judge(
    pair: _Pair, history: deque[float], opened: Signal | None, instruments: _Instruments, policy: PairsPolicy
) -> Signal | None:
    """What this pair of candles means; it is in *history* afterwards, and was not before it was judged."""
    ratio = float(pair[0].close) / float(pair[1].close)
    z = _z_score(ratio, history) if len(history) == policy.window else 0.0
    history.append(ratio)
    return _decide(z, opened, pair, instruments, policy)


def _z_score(value: float, history: Iterable[float]) -> float:
    known = list(history)
    mean = statistics.fmean(known)
    deviation = (statistics.fmean((x - mean) * (x - mean) for x in known)) ** 0.5
    return (value - mean) / deviation if deviation else 0.0


def _decide(
    z: float, opened: Signal | None, pair: _Pair, instruments: _Instruments, policy: PairsPolicy
) -> Signal | None:
    if opened is None:
        if abs(z) < policy.entry_z:
            return None
        # A high ratio means that the first is dear: sell it, buy the other.
        side = execsafe.Side.SELL if z > 0 else execsafe.Side.BUY
        sizes = [
            instrument.floor_quantity(policy.budget / candle.close)
            for candle, instrument in zip(pair, instruments, strict=True)
        ]
    else:
        was_dear = opened.lead.side is execsafe.Side.SELL
        if (z if was_dear else -z) > policy.exit_z:
            return None
        # The end of a trade is as large as its begin, whatever the prices have become.
        side = opened.lead.side.opposite
        sizes = [leg.quantity for leg in opened.legs]
    lead, hedge = (
        _leg(name, size, candle, instrument, side=leg_side, policy=policy)
        for name, size, candle, instrument, leg_side in zip(
            "ab", sizes, pair, instruments, (side, side.opposite), strict=True
        )
    )
    symbols = "~".join(instrument.symbol for instrument in instruments)
    return Signal(
        id=f"pairs/{symbols}/{pair[0].opened_at_ms}/{'exit' if opened else 'entry'}",
        at_ms=pair[0].opened_at_ms,
        lead=lead,
        hedge=hedge,
        z=z,
        closes=opened.id if opened else None,
    )


def _leg(
    name: str,
    quantity: Decimal,
    candle: Candle,
    instrument: execsafe.Instrument,
    *,
    side: execsafe.Side,
    policy: PairsPolicy,
) -> Leg:
    return Leg(
        name=name,
        symbol=instrument.symbol,
        side=side,
        quantity=quantity,
        limit_price=_marketable(candle.close, side, instrument, policy),
        reverse_price=_marketable(candle.close, side.opposite, instrument, policy),
        close=candle.close,
    )


def _marketable(close: Decimal, side: execsafe.Side, instrument: execsafe.Instrument, policy: PairsPolicy) -> Decimal:
    """A limit beyond *close*, rounded on the tick towards filling: the slippage allowed is never less than said."""
    is_buy = side is execsafe.Side.BUY
    price = close * (1 + (1 if is_buy else -1) * policy.slippage_bps / _BPS)
    if instrument.tick_size is None:
        return price
    rounding = ROUND_CEILING if is_buy else ROUND_FLOOR
    return (price / instrument.tick_size).to_integral_value(rounding=rounding) * instrument.tick_size
