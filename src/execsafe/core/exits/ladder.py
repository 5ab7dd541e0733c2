"""How much to sell, at which price, and when to stop trying: the decisions of one pass."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Final, TypeAlias

import attrs

from execsafe.core.dust import has_minimum_value, is_below_quantity, is_below_value, is_dust
from execsafe.core.exits.policy import BPS, ExitPolicy
from execsafe.core.exits.record import ExitRecord, ExitState, Hold
from execsafe.errors import InvalidInput
from execsafe.model.instrument import Instrument
from execsafe.model.order import ZERO, Side
from execsafe.model.position import Position
from execsafe.model.values import EXACT, shorten

_BPS_DIGITS: Final = 4


def limit_from_slippage(side: Side, reference: Decimal, bps: int, instrument: Instrument) -> Decimal:
    """The worst price to accept: a sell at *reference* × (1 - bps / 10⁴), a buy at *reference* × (1 + bps / 10⁴).

    Args:
        side: of the order.
        reference: the best bid for a sell, the best ask for a buy; quote per base. Never the last price.
        bps: how far beyond it, in basis points.
        instrument: for the tick. Rounded to the safe side: a sell never lower, a buy never higher than computed.

    Returns:
        The limit price, exact; 0 or less where the tick is coarser than the price.

    Raises:
        InvalidInput: *reference* is not above 0, or *bps* not a whole number from 0 to 9,999.
    """
    if type(bps) is not int or not 0 <= bps < BPS:
        raise InvalidInput(f"bps must be a whole number from 0 to {BPS - 1}, was {shorten(bps)}")
    if not reference.is_finite() or reference <= 0:
        raise InvalidInput(f"the reference price must be above 0, was {shorten(reference)}")
    share = BPS - bps if side is Side.SELL else BPS + bps
    price = EXACT.scaleb(EXACT.multiply(reference, Decimal(share)), Decimal(-_BPS_DIGITS))
    return instrument.safe_limit_price(price, side)


def anchored(anchor: Decimal | None, reference: Decimal | None, side: Side) -> Decimal | None:
    """The price that slippage is counted from: the best one seen in this pass, if there is any now.

    An order that eats a thin best level makes the next best the best. Counted from that, "50 bps" would be 50 bps
    again and again, all the way down the book.
    """
    if reference is None or anchor is None:
        return reference
    return max(anchor, reference) if side is Side.SELL else min(anchor, reference)


@attrs.frozen(kw_only=True)
class Holding:
    """What the venue says is there of the position: in all, and ``free`` of locks. In the venue's order unit."""

    free: Decimal
    total: Decimal


def sellable(want: Decimal, holding: Holding | None, instrument: Instrument) -> Decimal:
    """How much of *want* one order may close: what is free, on the step, at most the venue's maximum; 0 for nothing.

    A *holding* can only make it less: what is held is for the book to say. None: the venue's word does not count.
    """
    have = want if holding is None else max(ZERO, min(want, holding.free))
    if instrument.max_quantity is not None:
        have = min(have, instrument.max_quantity)
    return instrument.floor_quantity(have)


def holding_that_counts(
    holding: Holding | None, *, taken_at_ms: int, changed_at_ms: int, lag_ms: int, trusts_venue: bool
) -> Holding | None:
    """The reading, if it is later than what it must show.

    A reading that began less than the venue's read lag after the position (or what locked it) last changed may still
    show how it was before. It counts all the same once the venue itself has refused for want of balance.
    """
    return holding if trusts_venue or taken_at_ms - changed_at_ms >= lag_ms else None


@attrs.frozen(kw_only=True)
class Sight:
    """What is seen before an order is decided on.

    Attributes:
        position: the book's, caught up with all fills; None: nothing is open.
        holding: the venue's, where it counts (see :func:`holding_that_counts`).
        reference: best bid for a sell, best ask for a buy; None: there is none.
    """

    position: Position | None
    holding: Holding | None = None
    reference: Decimal | None = None


@attrs.frozen(kw_only=True)
class Send:
    """Send an immediate-or-cancel order for *quantity* at *limit_price*, *slippage_bps* from the best price."""

    quantity: Decimal
    limit_price: Decimal
    slippage_bps: int


@attrs.frozen(kw_only=True)
class AskMarket:
    """Ask whether a market order for *quantity* may go out: the ladder is spent."""

    quantity: Decimal


@attrs.frozen(kw_only=True)
class Finish:
    """Nothing is left to do: CLOSED, or DUST of *quantity*."""

    state: ExitState
    quantity: Decimal = ZERO


@attrs.frozen(kw_only=True)
class Postpone:
    """Rest, and look again later."""

    hold: Hold


@attrs.frozen(kw_only=True)
class Disagree:
    """The venue holds less than the book, too little to sell any of it."""

    position_quantity: Decimal
    venue_quantity: Decimal

    @property
    def is_phantom(self) -> bool:
        """Whether the venue holds nothing at all."""
        return self.venue_quantity <= 0


Decision: TypeAlias = Send | AskMarket | Finish | Postpone | Disagree
"""What to do next."""


@attrs.frozen(kw_only=True)
class Progress:
    """How far a pass has come: which ``rung`` of the ladder, and how many ``attempts`` were used up; both from 0."""

    rung: int = 0
    attempts: int = 0

    def after(self, *, quantity: Decimal, filled: Decimal, was_turned_away: bool = False) -> Progress:
        """After an order for *quantity*.

        A full fill uses up nothing, a part one attempt at the same price. Nothing at all moves on to the next rung,
        unless the order never got as far as the market (*was_turned_away*).
        """
        if filled >= quantity > 0:
            return self
        moves_on = filled <= 0 and not was_turned_away
        return Progress(rung=self.rung + int(moves_on), attempts=self.attempts + 1)


def decide(
    record: ExitRecord, sight: Sight, policy: ExitPolicy, instrument: Instrument, progress: Progress
) -> Decision:
    """The next thing to do.

    Once ``policy.attempts_max`` attempts of the pass are used up the ladder is spent. Its rungs are the present
    reason's, so that an upgrade takes effect at once.
    """
    position = sight.position
    if position is None or not position.is_open or not record.is_about(position):
        return Finish(state=ExitState.CLOSED)
    want = record.want_of(position)
    if want <= 0:
        return Finish(state=ExitState.CLOSED)
    if is_dust(want, None, instrument):
        return Finish(state=ExitState.DUST, quantity=want)
    quantity = sellable(want, sight.holding, instrument)
    if sight.holding is not None and is_below_quantity(quantity, instrument):
        return _short(position, sight.holding, want, instrument)
    if sight.reference is None or sight.reference <= 0:
        return Postpone(hold=Hold.NO_PRICE)
    return _at(sight.reference, record, want, quantity, progress, policy=policy, instrument=instrument)


def _at(
    reference: Decimal,
    record: ExitRecord,
    want: Decimal,
    quantity: Decimal,
    progress: Progress,
    *,
    policy: ExitPolicy,
    instrument: Instrument,
) -> Decision:
    contracts_exempt = not policy.skip_under_min
    if is_dust(want, reference, instrument, contracts_exempt=contracts_exempt):
        return Finish(state=ExitState.DUST, quantity=want)
    has_minimum = has_minimum_value(instrument, contracts_exempt=contracts_exempt)
    if has_minimum and is_below_value(quantity, reference, instrument):
        return Postpone(hold=Hold.LOCKED)  # what is free is not worth an order
    rungs = policy.rungs(record.reason)
    bps = rungs[min(progress.rung, len(rungs) - 1)]
    limit = limit_from_slippage(record.side.closing, reference, bps, instrument)
    # A venue judges the minimum value at the order's own price.
    is_sendable = limit > 0 and not (has_minimum and is_below_value(quantity, limit, instrument))
    if progress.attempts < policy.attempts_max and is_sendable:
        return Send(quantity=quantity, limit_price=limit, slippage_bps=bps)
    return Postpone(hold=Hold.NO_LIQUIDITY) if policy.never_market_sells else AskMarket(quantity=quantity)


def _short(position: Position, holding: Holding, want: Decimal, instrument: Instrument) -> Decision:
    """Too little is free: either something locks it, or it is not there."""
    if is_below_quantity(instrument.floor_quantity(min(want, holding.total)), instrument):
        return Disagree(position_quantity=position.quantity, venue_quantity=holding.total)
    return Postpone(hold=Hold.LOCKED)


def pause_ms(record: ExitRecord, policy: ExitPolicy, attempts: int) -> int:
    """How long to wait after that many attempts; not at all before the first, nor after the last.

    Jittered by a number that is a pure function of the exit and the order, so that a replay waits as long.
    """
    if not 1 <= attempts < policy.attempts_max:
        return 0
    return policy.backoff.delay_ms(attempts, _unit(record)) or 0


def _unit(record: ExitRecord) -> float:
    digest = hashlib.sha256(f"{record.intent_key}/{record.legs}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
