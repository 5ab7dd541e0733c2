"""What levels are, and what they are as prices."""

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Any

import attrs

from execsafe.core.grid import on_grid, to_average
from execsafe.core.harvest import HarvestPlan, split_harvest
from execsafe.core.levels._policy import to_position_side
from execsafe.core.seed_levels import SeedNumbers
from execsafe.errors import InvalidInput, NoSafeStop
from execsafe.model.instrument import Instrument
from execsafe.model.position import PositionSide
from execsafe.model.units import MarginReturn, PriceFraction
from execsafe.model.values import EXACT, Number, plain


class StopBound(enum.StrEnum):
    """What decided the stop's distance."""

    FORMULA = "formula"
    SL_MIN = "sl_min"
    SL_MAX = "sl_max"
    LIQUIDATION = "liquidation"


class LevelsWarning(enum.StrEnum):
    """What the levels do not look good for."""

    REWARD_BELOW_RISK = "reward_below_risk"  # the harvest's average target is nearer than the stop
    TARGET_BELOW_COSTS = "target_below_costs"  # the first target does not pay for fees and spread
    STOP_CUT_BY_LIQUIDATION = "stop_cut_by_liquidation"  # nearer than volatility asks for
    LADDER_LIFTED = "ladder_lifted"  # targets are at their floor


@attrs.frozen(kw_only=True)
class LevelPrices:
    """Levels of one position as prices on the tick.

    The stop is rounded toward the entry price (never farther away than computed), targets away from it.
    """

    symbol: str
    side: PositionSide
    entry_price: Decimal
    tp1: Decimal
    tp2: Decimal
    tp3: Decimal
    sl: Decimal

    @property
    def targets(self) -> tuple[Decimal, Decimal, Decimal]:
        """The three targets, nearest first."""
        return self.tp1, self.tp2, self.tp3


@attrs.frozen(kw_only=True)
class Levels:
    """Targets and stop as shares of the entry price, and what they came from.

    Attributes:
        symbol, leverage, side, volatility_factor: the inputs.
        tp1, tp2, tp3: distance of the targets from the entry price.
        sl: distance of the stop from it.
        lsf: leverage sensitivity factor.
        harvest_scheme: share of the position to take at each target.
        adjustment: the factor from recent results and confidence; 1 without feedback.
        avg_pnl_last_20: the average that was given, as a return on margin.
        bound: what decided the stop.
        reward_risk: average target, weighted by the harvest, ÷ stop.
        warnings: what to think about before trading these.
        published: the original's numbers, in compatibility mode only.
    """

    symbol: str
    leverage: Decimal
    side: PositionSide | None
    volatility_factor: Decimal
    tp1: PriceFraction
    tp2: PriceFraction
    tp3: PriceFraction
    sl: PriceFraction
    lsf: Decimal
    harvest_scheme: tuple[Decimal, ...]
    adjustment: Decimal
    avg_pnl_last_20: MarginReturn
    bound: StopBound
    reward_risk: Decimal
    warnings: tuple[LevelsWarning, ...] = ()
    published: SeedNumbers | None = None

    @property
    def targets(self) -> tuple[PriceFraction, PriceFraction, PriceFraction]:
        """The three targets, nearest first."""
        return self.tp1, self.tp2, self.tp3

    def to_payload(self, *, adjustment: bool = False) -> dict[str, Any]:
        """The seven published keys, as plain JSON. Levels are fractions of the price (0.01 is 1 %).

        In compatibility mode they are the original's numbers: targets in percent, the stop at 0.02.

        Args:
            adjustment: whether to add the key ``adjustment``, which consumers of the seven may not know.
        """
        numbers = self.published or SeedNumbers(
            lsf=float(self.lsf), tp1=float(self.tp1), tp2=float(self.tp2), tp3=float(self.tp3), sl=float(self.sl)
        )
        payload: dict[str, Any] = {
            "tp1": numbers.tp1,
            "tp2": numbers.tp2,
            "tp3": numbers.tp3,
            "sl": numbers.sl,
            "LSF": numbers.lsf,
            "harvest_scheme": [float(share) for share in self.harvest_scheme],
            "avg_pnl_last_20": float(self.avg_pnl_last_20),
        }
        return {**payload, "adjustment": float(self.adjustment)} if adjustment else payload

    def prices(self, side: PositionSide | str, entry_price: Number, instrument: Instrument) -> LevelPrices:
        """The levels of a position opened at *entry_price* (of the execution, not of the signal).

        Raises:
            NoSafeStop: one tick is more than the stop's distance, or a target would be at zero.
            InvalidInput: the levels were computed for the other side, or in compatibility mode.
        """
        opened = to_position_side(side)
        if opened is None or (self.side is not None and opened is not self.side):
            raise InvalidInput(f"these levels are for {self.side or 'either side'}, was {opened}; compute them again")
        if self.published is not None:
            raise InvalidInput("levels of the compatibility mode are for comparison only; compute them without it")
        return _to_prices(self, opened, to_average(entry_price, "entry_price"), instrument)

    def harvest(self, quantity: Number, prices: LevelPrices, instrument: Instrument) -> HarvestPlan:
        """Which part of *quantity* is taken at which target; see :func:`execsafe.core.harvest.split_harvest`."""
        return split_harvest(quantity, self.harvest_scheme, instrument, prices=prices.targets)


class DegradedReason(enum.StrEnum):
    """Why there are no levels."""

    NO_ROOM_BEFORE_LIQUIDATION = "no_room_before_liquidation"


@attrs.frozen(kw_only=True)
class Degraded:
    """No levels: at this leverage no stop that is far enough from the price is near enough to beat liquidation.

    Attributes:
        symbol, leverage, side: the inputs.
        reason: why.
        room: the farthest stop that would still beat liquidation; below zero where costs alone reach it.
        needed: the nearest stop allowed, ``sl_min``.
        leverage_fits: with this leverage, or less, there would be levels; below 1: with none.
    """

    symbol: str
    leverage: Decimal
    side: PositionSide | None
    reason: DegradedReason
    room: PriceFraction
    needed: PriceFraction
    leverage_fits: Decimal


def _to_prices(levels: Levels, side: PositionSide, entry: Decimal, instrument: Instrument) -> LevelPrices:
    def at(share: PriceFraction, sign: int) -> Decimal:
        distance = share.of(entry)
        price = EXACT.add(entry, distance) if sign > 0 else EXACT.subtract(entry, distance)
        # Up for a long, down for a short: the stop comes nearer, a target is never sold below what was computed.
        return on_grid(price, instrument.tick_size, up=side is PositionSide.LONG)

    tp1, tp2, tp3 = (at(share, side.sign) for share in levels.targets)
    stop = at(levels.sl, -side.sign)
    tick = "none" if instrument.tick_size is None else plain(instrument.tick_size)
    if stop >= entry if side is PositionSide.LONG else stop <= entry:
        raise NoSafeStop(
            f"{levels.symbol}: a stop {levels.sl} from {plain(entry)} is on the wrong side of it after rounding to the "
            f"tick ({tick})",
            symbol=levels.symbol,
        )
    if tp3 <= 0:
        raise NoSafeStop(
            f"{levels.symbol}: from {plain(entry)} a target reaches zero after rounding to the tick ({tick})"
        )
    return LevelPrices(symbol=levels.symbol, side=side, entry_price=entry, tp1=tp1, tp2=tp2, tp3=tp3, sl=stop)
