"""What is traded at the simulated venue, and who owns what: spot balances and linear positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

import attrs

from execsafe.model.instrument import Instrument
from execsafe.model.order import ZERO, Side
from execsafe.testing._orders import RejectReason, SimFill, SimOrder, Tracked, VenueReject

RICH: Final = Decimal(10_000_000)  # default balance: funds matter only to tests that say so


@attrs.frozen(kw_only=True)
class Market:
    """An instrument and how the venue trades it. Fees are ratios of the traded value.

    ``is_linear``: a perpetual settled in quote, else spot. ``fee_in_base``: a spot buy pays its fee from what
    it bought, as most venues do; everything else pays in quote.
    """

    instrument: Instrument
    is_linear: bool = False
    maker_fee: Decimal = Decimal("0.001")
    taker_fee: Decimal = Decimal("0.001")
    fee_in_base: bool = True
    leverage: Decimal = Decimal(10)

    @property
    def symbol(self) -> str:
        """Unified symbol."""
        return self.instrument.symbol


@attrs.frozen(kw_only=True)
class SimPosition:
    """A linear position: signed quantity (short is negative) and its average entry price."""

    quantity: Decimal = ZERO
    entry_price: Decimal = ZERO


def btc_usdt() -> Market:
    """Spot BTC/USDT with the limits of a large venue."""
    return Market(
        instrument=Instrument(
            symbol="BTC/USDT", base="BTC", quote="USDT", tick_size="0.01", step_size="0.00001",
            min_quantity="0.00001", max_quantity="9000", min_notional="5",
        )
    )  # fmt: skip


def eth_usdt() -> Market:
    """Spot ETH/USDT with the limits of a large venue."""
    return Market(
        instrument=Instrument(
            symbol="ETH/USDT", base="ETH", quote="USDT", tick_size="0.01", step_size="0.0001",
            min_quantity="0.0001", max_quantity="9000", min_notional="5",
        )
    )  # fmt: skip


def linear(base: str = "BTC") -> Market:
    """A USDT-settled perpetual."""
    return Market(
        instrument=Instrument(
            symbol=f"{base}/USDT:USDT", base=base, quote="USDT", tick_size="0.1", step_size="0.001",
            min_quantity="0.001", max_quantity="1000", min_notional="5",
        ),
        is_linear=True,
        maker_fee=Decimal("0.0002"),
        taker_fee=Decimal("0.00055"),
    )  # fmt: skip


class Account:
    """Balances, reservations and positions. Amounts are exact; totals may never go below zero on spot."""

    def __init__(self, markets: Mapping[str, Market], balances: Mapping[str, Decimal | str | int] | None) -> None:
        self._markets = markets
        currencies = {c for m in markets.values() for c in (m.instrument.base, m.instrument.quote)}
        start = dict.fromkeys(sorted(currencies), RICH) if balances is None else balances
        self.balances: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.balances.update({currency: Decimal(amount) for currency, amount in start.items()})
        self.reserved: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.positions: dict[str, SimPosition] = {}

    def free(self, currency: str) -> Decimal:
        """What an order may still use."""
        margin = sum((self._margin(symbol) for symbol in self.positions if self._quote(symbol) == currency), ZERO)
        return self.balances[currency] - self.reserved[currency] - margin

    def position(self, symbol: str) -> Decimal:
        """Signed quantity of a linear position."""
        return self.positions.get(symbol, SimPosition()).quantity

    def need(self, order: SimOrder, price: Decimal) -> dict[str, Decimal]:
        """What an order must reserve while it is open."""
        market, request = self._markets[order.symbol], order.request
        quantity = order.leaves_quantity
        value = market.instrument.notional(quantity, order.limit_price or order.request.trigger_price or price)
        if market.is_linear:
            return {} if request.reduce_only else {market.instrument.quote: value / market.leverage}
        if request.side is Side.SELL:
            return {market.instrument.base: quantity}
        return {market.instrument.quote: value if market.fee_in_base else value * (1 + market.taker_fee)}

    def check_funds(self, order: SimOrder, price: Decimal) -> None:
        """Raises VenueReject if the account cannot pay for the order."""
        for currency, amount in self.need(order, price).items():
            if amount > self.free(currency):
                message = f"needs {amount} {currency}, {self.free(currency)} is free"
                raise VenueReject(RejectReason.INSUFFICIENT_FUNDS, message)

    def reserve(self, tracked: Tracked, price: Decimal) -> None:
        """Set aside what the order needs now; nothing once it has ended."""
        for currency, amount in tracked.reserved.items():
            self.reserved[currency] -= amount
        tracked.reserved = self.need(tracked.now, price) if tracked.now.is_open else {}
        for currency, amount in tracked.reserved.items():
            self.reserved[currency] += amount

    def fee(self, order: SimOrder, quantity: Decimal, price: Decimal, is_maker: bool) -> tuple[Decimal, str]:
        """Cost and currency of the fee for one execution."""
        market = self._markets[order.symbol]
        ratio = market.maker_fee if is_maker else market.taker_fee
        if market.fee_in_base and order.side is Side.BUY and not market.is_linear:
            return quantity * ratio, market.instrument.base
        return market.instrument.notional(quantity, price) * ratio, market.instrument.quote

    def settle(self, order: SimOrder, fill: SimFill) -> None:
        """Book one execution."""
        market = self._markets[order.symbol]
        self.balances[fill.fee_currency] -= fill.fee
        signed = fill.quantity if order.side is Side.BUY else -fill.quantity
        if market.is_linear:
            self._settle_linear(order.symbol, signed, fill.price)
            return
        self.balances[market.instrument.base] += signed
        self.balances[market.instrument.quote] -= market.instrument.notional(signed, fill.price)

    def reducible(self, order: SimOrder) -> Decimal:
        """How much of the position an order on its side could close."""
        position = self.position(order.symbol)
        return max(ZERO, -position if order.side is Side.BUY else position)

    def _settle_linear(self, symbol: str, signed: Decimal, price: Decimal) -> None:
        instrument = self._markets[symbol].instrument
        old = self.positions.get(symbol, SimPosition())
        closed = min(abs(signed), abs(old.quantity)) if signed * old.quantity < 0 else ZERO
        direction = 1 if old.quantity > 0 else -1
        profit = instrument.notional(closed * direction, price - old.entry_price)
        self.balances[instrument.quote] += profit
        quantity = old.quantity + signed
        if quantity == 0:
            entry = ZERO
        elif closed == abs(old.quantity):  # new or flipped
            entry = price
        elif closed:
            entry = old.entry_price
        else:
            entry = (old.entry_price * old.quantity + price * signed) / quantity
        self.positions[symbol] = SimPosition(quantity=quantity, entry_price=entry)

    def _margin(self, symbol: str) -> Decimal:
        market, position = self._markets[symbol], self.positions[symbol]
        return market.instrument.notional(abs(position.quantity), position.entry_price) / market.leverage

    def _quote(self, symbol: str) -> str:
        return self._markets[symbol].instrument.quote
