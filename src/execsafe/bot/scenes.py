"""What is played in the demo: recorded candles, the signals in them, and the faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final

import attrs

import execsafe
from execsafe.bot import candles, pairs
from execsafe.bot.candles import Candle
from execsafe.bot.pairs import Signal
from execsafe.bot.stage import Cue, DemoPolicy, Scene
from execsafe.bot.strategy import Open
from execsafe.bot.waves import Waves
from execsafe.testing.faults import Fault
from execsafe.testing.venue import Market

RATES: Final[Mapping[Fault, float]] = {
    Fault.DROP_REQUEST: 0.05,
    Fault.DROP_REPLY: 0.07,
    Fault.DELAY_REQUEST: 0.04,
    Fault.LATE_ARRIVAL_AFTER_LOOK: 0.02,
    Fault.TRUNCATED_BODY: 0.03,
    Fault.RESET_CONNECTION: 0.04,
    Fault.SERVER_ERROR_ACCEPTED: 0.04,
    Fault.SERVER_ERROR_NOT_ACCEPTED: 0.03,
    Fault.EMPTY_OK: 0.03,
    Fault.RATE_LIMITED: 0.02,
    Fault.TIMESTAMP_REJECT: 0.02,
    Fault.REJECT_FUNDS: 0.02,
    Fault.PARTIAL_FILL: 0.15,
    Fault.LOOKUP_ERROR: 0.10,
}
"""How often what goes wrong. Far worse than any venue on any day, so that a minute shows what months would."""

STOP_RATES: Final[Mapping[Fault, float]] = {**RATES, Fault.STOP_REJECTED: 0.05, Fault.STOP_LOST: 0.05}
"""The same, and stops that are refused, or that the venue loses without a word."""

SCALE: Final = 11_500
"""Makes prices in USDT of prices in BTC: a fixed figure, about what a bitcoin cost in January 2018."""

CANDLE_S: Final = 0.11
"""How long a candle of five minutes lasts while waves are played."""

_FEE: Final = Decimal("0.0004")
_SHIFT: Final = 96  # candles: eight hours
_WAVES: Final[Mapping[str, object]] = {"every_minutes": 120, "window": 12, "least_move_bps": 20.0, "most": 4}
_BEFORE, _AFTER = 4, 40  # candles that are played before the first wave and after the last

# --- pairs ---------------------------------------------------------------------------------------------------

SPOT: Final[Mapping[str, execsafe.Instrument]] = {
    "ETH/BTC": execsafe.Instrument(
        symbol="ETH/BTC", base="ETH", quote="BTC", tick_size="0.000001", step_size="0.001",
        min_quantity="0.001", max_quantity="100000", min_notional="0.0001",
    ),
    "LTC/BTC": execsafe.Instrument(
        symbol="LTC/BTC", base="LTC", quote="BTC", tick_size="0.000001", step_size="0.01",
        min_quantity="0.01", max_quantity="100000", min_notional="0.0001",
    ),
}  # fmt: skip


def pair_signals(count: int) -> tuple[Signal, ...]:
    """The first *count* signals of the pairs strategy in the recorded candles."""
    return tuple(pairs.signals(_paired(), (SPOT["ETH/BTC"], SPOT["LTC/BTC"])))[:count]


def pairs_scene(policy: DemoPolicy) -> Scene[Signal]:
    """Pairs: spot at Binance."""
    return Scene(
        name="pairs",
        face="binance",
        # As for an account that pays its fees in another currency: what fills is what is owned.
        markets={symbol: Market(instrument=instrument, fee_in_base=False) for symbol, instrument in SPOT.items()},
        moments=[dict(zip(SPOT, pair, strict=True)) for pair in _paired()],
        cues=[Cue(signal.id, signal.at_ms, signal) for signal in pair_signals(policy.signals)],
        rates=RATES,
    )


def _paired() -> tuple[tuple[Candle, Candle], ...]:
    first, second = (candles.recorded(symbol) for symbol in SPOT)
    return candles.paired(first, second)


# --- waves ---------------------------------------------------------------------------------------------------


def _perpetual(base: str, tick_size: str, step_size: str) -> execsafe.Instrument:
    return execsafe.Instrument(
        symbol=f"{base}/USDT:USDT", base=base, quote="USDT", tick_size=tick_size, step_size=step_size,
        min_quantity=step_size, max_quantity="100000", min_notional="5",
    )  # fmt: skip


_OF: Final[Mapping[str, tuple[str, int, int, execsafe.Instrument]]] = {
    # symbol: the candles it is made of, what prices are multiplied with, by how many candles they are shifted
    "ETH/USDT:USDT": ("ETH/BTC", SCALE, 0, _perpetual("ETH", "0.01", "0.001")),
    "LTC/USDT:USDT": ("LTC/BTC", SCALE, 0, _perpetual("LTC", "0.01", "0.01")),
    "BCH/USDT:USDT": ("ETH/BTC", 2 * SCALE, _SHIFT, _perpetual("BCH", "0.01", "0.001")),
    "DASH/USDT:USDT": ("LTC/BTC", 4 * SCALE, _SHIFT, _perpetual("DASH", "0.01", "0.001")),
}
PERPETUALS: Final[Mapping[str, execsafe.Instrument]] = {symbol: made[3] for symbol, made in _OF.items()}
"""What waves trades. There are recorded candles for two of them only; the others are the same candles, eight hours
shifted and multiplied: other prices at every moment, and as real in their moves."""


class _Nothing:
    """A desk that holds nothing: signals do not depend on what a bot made of the ones before."""

    def instrument(self, symbol: str) -> execsafe.Instrument:
        return PERPETUALS[symbol]

    def position(self, _symbol: str) -> execsafe.Position | None:
        return None


def wave_cues() -> tuple[Cue[Open], ...]:
    """All signals of the waves strategy in the candles."""
    strategy, found = Waves(tuple(PERPETUALS), _WAVES), list[Cue[Open]]()
    for moment in wave_moments():
        at_ms = next(iter(moment.values())).opened_at_ms
        for decision in strategy.on_candles(moment, _Nothing()):
            if isinstance(decision, Open):
                found.append(Cue(decision.id, at_ms, decision))
    return tuple(found)


def waves_scene(policy: DemoPolicy) -> Scene[Open]:
    """Waves: perpetuals at Binance USD-M."""
    cues, moments = wave_cues()[: policy.signals], wave_moments()
    times = [next(iter(moment.values())).opened_at_ms for moment in moments]
    first, last = times.index(cues[0].at_ms), times.index(cues[-1].at_ms)
    return Scene(
        name="waves",
        face="binanceusdm",
        markets={
            symbol: Market(instrument=instrument, is_linear=True, maker_fee=_FEE, taker_fee=_FEE)
            for symbol, instrument in PERPETUALS.items()
        },
        moments=moments[max(0, first - _BEFORE) : last + _AFTER],
        cues=cues,
        rates=STOP_RATES,
        pause_s=CANDLE_S,
    )


def wave_moments() -> Sequence[Mapping[str, Candle]]:
    """Candles of the same instants, by symbol."""
    made = {symbol: list(moved(*of)) for symbol, of in _OF.items()}
    count = min(len(own) for own in made.values())
    return [{symbol: own[number] for symbol, own in made.items()} for number in range(count)]


def moved(source: str, scale: int, shift: int, instrument: execsafe.Instrument) -> Iterator[Candle]:
    """The candles of *source* from its candle number *shift* on, times *scale*, on the ticks of *instrument*."""
    recorded = candles.recorded(source)
    for candle, at in zip(recorded[shift:], recorded, strict=False):
        high, low, close = (
            instrument.safe_limit_price(price * scale, execsafe.Side.BUY)
            for price in (candle.high, candle.low, candle.close)
        )
        yield attrs.evolve(candle, opened_at_ms=at.opened_at_ms, close=close, high=high, low=low)
