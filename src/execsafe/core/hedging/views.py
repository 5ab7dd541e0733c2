"""A plan's legs as a decision sees them: their orders' records, and what those add up to."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import attrs

from execsafe.core.hedging.quantities import residual_of, wanted
from execsafe.core.hedging.values import HedgeLeg, HedgeRecord, LegExposure, LegTotals
from execsafe.core.rejects import RejectClass, reject_class
from execsafe.model.instrument import Instrument
from execsafe.model.intent import IntentRecord, IntentState
from execsafe.model.order import ZERO, Side
from execsafe.model.values import EXACT, left_of, total


def totals(opening: Sequence[IntentRecord], closing: Sequence[IntentRecord]) -> LegTotals:
    """What a leg's orders add up to, each trade counted once."""
    records = (*opening, *closing)
    return LegTotals(
        filled=total(r.filled_quantity for r in opening),
        closed=total(r.filled_quantity for r in closing),
        in_doubt=total(a.leaves_quantity for r in records for a in r.attempts if a.state.may_still_fill),
    )


def was_turned_away(record: IntentRecord) -> bool:
    """Whether the venue turned an order away for now: too many requests, or never reached."""
    error = None if record.last is None else record.last.error
    is_refused = record.state is IntentState.REJECTED and record.filled_quantity <= 0
    return is_refused and error is not None and reject_class(error) is RejectClass.RETRY


@attrs.frozen(kw_only=True)
class TurnedAway:
    """Orders in a row that opened a leg in this pass and were turned away for now: first and last in Unix ms."""

    times: int
    since_ms: int
    at_ms: int


def turned_away_again(before: TurnedAway | None, *, now_ms: int) -> TurnedAway:
    """*before* with one more."""
    if before is None:
        return TurnedAway(times=1, since_ms=now_ms, at_ms=now_ms)
    return TurnedAway(times=before.times + 1, since_ms=before.since_ms, at_ms=now_ms)


@attrs.frozen(kw_only=True)
class LegView:
    """One leg: its orders' records in the order of their numbers, and what this pass knows besides.

    Attributes:
        leg, instrument: what is traded, and on which grid.
        price: for minimum values; None: not known.
        opening, closing: records of the orders that open and that unwind it.
        is_refused: an order that opens it was refused for good before it was sent, in this pass.
        turned_away: the orders that open it and were turned away for now, since the last one that was not.
        not_before_ms: when its venue wants to be asked again; None: now.
        is_stuck: one of its orders is in doubt, and this pass has looked long enough.
        has_asked_trades: its trades were read from the venue, in this pass.
        closes_tried, tried_at_ms: unwinding orders of this pass, and when the last one was begun.
    """

    leg: HedgeLeg
    instrument: Instrument
    price: Decimal | None = None
    opening: tuple[IntentRecord, ...] = ()
    closing: tuple[IntentRecord, ...] = ()
    is_refused: bool = False
    turned_away: TurnedAway | None = None
    not_before_ms: int | None = None
    is_stuck: bool = False
    has_asked_trades: bool = False
    closes_tried: int = 0
    tried_at_ms: int = 0

    @property
    def records(self) -> tuple[IntentRecord, ...]:
        """All of them."""
        return (*self.opening, *self.closing)

    @property
    def unsettled(self) -> tuple[IntentRecord, ...]:
        """Those that may or may not be at the venue, or are still to be sent."""
        return tuple(r for r in self.records if r.state is not IntentState.LIVE and not r.state.is_terminal)

    @property
    def live(self) -> tuple[IntentRecord, ...]:
        """Those that rest."""
        return tuple(r for r in self.records if r.state is IntentState.LIVE)

    @property
    def filled(self) -> Decimal:
        """Bought or sold to open the leg. Cumulative by trade, never by event."""
        return self.totals.filled

    @property
    def closed(self) -> Decimal:
        """Bought or sold to unwind it."""
        return self.totals.closed

    @property
    def held(self) -> Decimal:
        """What of it is still there; negative only if late evidence showed that too much was unwound."""
        return EXACT.subtract(self.filled, self.closed)

    @property
    def in_doubt(self) -> Decimal:
        """What may still fill."""
        return self.totals.in_doubt

    @property
    def totals(self) -> LegTotals:
        """What its orders add up to."""
        return totals(self.opening, self.closing)

    @property
    def fees_in_base(self) -> Decimal:
        """What a spot purchase paid with what it bought."""
        if self.leg.is_contract or self.leg.side is not Side.BUY:
            return ZERO
        base = self.instrument.base or self.leg.symbol.partition("/")[0]
        fills = (fill for r in self.opening for a in r.attempts for fill in a.fills)
        return total(fee.cost for fill in fills for fee in fill.fees if fee.currency == base)

    @property
    def lacks_trades(self) -> bool:
        """Whether a spot purchase is known by its quantity only, so that its fees are not."""
        if self.leg.is_contract or self.leg.side is not Side.BUY:
            return False
        return total(f.quantity for r in self.opening for a in r.attempts for f in a.fills) < self.filled

    @property
    def closable(self) -> Decimal:
        """What of it can be sold (or bought back), before rounding."""
        return left_of(left_of(self.filled, max(ZERO, self.fees_in_base)), self.closed)

    def want(self, lead: LegView, carried: Decimal) -> Fraction:
        """What this hedge leg should hold, as far as the leading leg is held."""
        return wanted(
            leg_quantity=self.leg.quantity, lead_quantity=lead.leg.quantity, lead_held=lead.held, carried=carried
        )


@attrs.frozen(kw_only=True)
class Reading:
    """What the venue shows beyond what the fills explain, by leg: signed; None where it was not compared.

    ``is_unavailable``: it could not be read. ``since_ms`` is when the first reading of the verification began.
    """

    gaps: tuple[Decimal | None, ...] = ()
    is_unavailable: bool = False
    since_ms: int = 0

    @property
    def agrees(self) -> bool:
        """Whether nothing was found against the fills."""
        return not self.is_unavailable and not any(self.gaps)


def exposures(record: HedgeRecord, legs: Sequence[LegView]) -> tuple[LegExposure, ...]:
    """What each leg has come to, exact."""
    return tuple(
        LegExposure(
            symbol=view.leg.symbol,
            side=view.leg.side,
            account=view.leg.account,
            venue=view.leg.venue,
            filled=view.filled,
            closed=view.closed,
            in_doubt=view.in_doubt,
            held=view.held,
            closable=view.closable,
            residual=residual_of(view.want(legs[0], carried), view.held) if index else ZERO,
        )
        for index, (view, carried) in enumerate(zip(legs, record.carried, strict=True))
    )
