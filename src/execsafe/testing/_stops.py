"""Stops attached to positions, leverage and margin modes at the simulated venue. Faults are not known here."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from execsafe.model.order import Side
from execsafe.model.position import PositionSide
from execsafe.testing._accounts import Market, SimPosition
from execsafe.testing._matching import Engine
from execsafe.testing._orders import NewOrder, RejectReason, SimOrder, VenueReject
from execsafe.testing.ledger import Happened

_MODES: Final = frozenset({"cross", "isolated"})


class Positions(Engine):
    """What belongs to a whole position rather than to an order.

    An attached stop covers whatever the position is. It ends with the position (flat or flipped) and when it
    triggers: then the venue closes the position with a reduce-only market order of its own, without a client id.
    """

    def attach_stop(self, symbol: str, side: PositionSide | None, stop_price: Decimal | None) -> None:
        """Attach a stop to the position, replace it, or remove it (None), as of now.

        Raises:
            VenueReject: not a linear market, no position (on that side), a price off the tick or beyond the
                market, or just this stop (or none) is there already.
        """
        market, position = self.linear(symbol), self.account.positions.get(symbol, SimPosition())
        if not position.quantity or side not in {None, _side(position)}:
            raise VenueReject(RejectReason.NO_POSITION, "there is no such position to attach a stop to")
        if stop_price == position.stop_price:
            raise VenueReject(RejectReason.STOP_UNCHANGED, "not modified")
        if stop_price is not None:
            instrument = market.instrument
            if stop_price <= 0 or instrument.safe_limit_price(stop_price, Side.BUY) != stop_price:
                raise VenueReject(RejectReason.PRICE_FILTER)
            if _is_reached(position, stop_price, self.prices[symbol]):
                raise VenueReject(RejectReason.STOP_WOULD_TRIGGER, f"{symbol} is at {self.prices[symbol]} already")
        if position.stop_price is not None:
            self._note(Happened.STOP_REMOVED, symbol, reason="removed" if stop_price is None else "replaced")
        self.account.set_stop(symbol, stop_price)
        if stop_price is not None:
            self._note(
                Happened.STOP_ATTACHED,
                symbol,
                side=_side(position).closing,
                quantity=abs(position.quantity),
                trigger_price=stop_price,
            )

    def lose_stop(self, symbol: str, stop_price: Decimal) -> None:
        """The stop attached at that price is gone, as if it had never been."""
        position = self.account.positions.get(symbol, SimPosition())
        if position.stop_price == stop_price:
            self.account.set_stop(symbol, None)
            self._note(Happened.STOP_REMOVED, symbol, reason="lost")

    def change_leverage(self, symbol: str, leverage: Decimal) -> None:
        """Set the leverage, as of now. Open orders are held to the new margin.

        Raises:
            VenueReject: not a linear market, as it is already, not offered, or too little is free.
        """
        self.linear(symbol)
        self.account.set_leverage(symbol, leverage)
        for tracked in self._open[symbol].values():
            self.account.reserve(tracked, self.prices[symbol])
        self._note(Happened.LEVERAGE_SET, symbol, quantity=leverage)

    def change_margin_mode(self, symbol: str, mode: str) -> None:
        """Set the margin mode, "cross" or "isolated", as of now.

        Raises:
            VenueReject: not a linear market, as it is already, no such mode, or a position or order is open.
        """
        self.linear(symbol)
        if mode not in _MODES:
            raise VenueReject(RejectReason.BAD_REQUEST, "the margin mode is cross or isolated")
        if mode == self.account.margin_mode(symbol):
            raise VenueReject(RejectReason.MARGIN_MODE_UNCHANGED)
        if self.account.position(symbol) or self._open[symbol]:
            raise VenueReject(RejectReason.MARGIN_MODE_LOCKED, "a position or an open order is in the way")
        self.account.margin_modes[symbol] = mode
        self._note(Happened.MARGIN_MODE_SET, symbol, reason=mode)

    def linear(self, symbol: str) -> Market:
        """The market. Raises VenueReject where it is not a linear one."""
        market = self.markets.get(symbol)
        if market is None or not market.is_linear:
            raise VenueReject(RejectReason.BAD_SYMBOL)
        return market

    # --- what happens by itself -------------------------------------------------------------------

    def _moved(self, symbol: str) -> None:
        position = self.account.positions.get(symbol)
        if position is not None and _is_reached(position, position.stop_price, self.prices[symbol]):
            self._close(symbol, position)
        super()._moved(symbol)

    def _close(self, symbol: str, position: SimPosition) -> None:
        """The attached stop is set off."""
        order = SimOrder(
            venue_order_id=str(self._last_id + 1),
            request=NewOrder(
                symbol=symbol,
                side=_side(position).closing,
                quantity=abs(position.quantity),
                type="market",
                reduce_only=True,
                trigger_price=position.stop_price,
            ),
            quantity=abs(position.quantity),
            limit_price=None,
            created_at_ms=self._now_ms,
            updated_at_ms=self._now_ms,
        )
        self.account.set_stop(symbol, None)
        self._note(Happened.STOP_REMOVED, symbol, reason="triggered")
        tracked = self._register(order)
        price = self.prices[symbol]
        self._log(Happened.TRIGGERED, order.request, order=order, quantity=order.quantity, price=price)
        self._trade(tracked, None, is_maker=False)


def _side(position: SimPosition) -> PositionSide:
    return PositionSide.LONG if position.quantity > 0 else PositionSide.SHORT


def _is_reached(position: SimPosition, stop_price: Decimal | None, price: Decimal) -> bool:
    if stop_price is None:
        return False
    return price <= stop_price if position.quantity > 0 else price >= stop_price
