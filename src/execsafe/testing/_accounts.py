"""What is traded at the simulated venue, and who owns what: spot balances and linear positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Final

import attrs

from execsafe.model.instrument import Instrument
from execsafe.model.order import ZERO, Side
from execsafe.model.position import Balance
from execsafe.testing._orders import History, RejectReason, SimFill, SimOrder, Tracked, VenueReject, in_own_context

NOTHING: Final[Mapping[str, Decimal]] = MappingProxyType({})
RICH: Final = Decimal(10_000_000)  # default balance: funds matter only to tests that say so


@attrs.frozen(kw_only=True)
class Market:
    """An instrument and how the venue trades it. Fees are ratios of the traded value.

    ``is_linear``: a perpetual settled in quote, else spot. ``fee_in_base``: a spot buy pays its fee from what
    it bought, as most venues do; everything else pays in quote. ``leverage`` is what a symbol starts with,
    ``max_leverage`` the most that can be set, ``maintenance_ratio`` the part of a position's value that must stay
    covered (it decides the liquidation price that positions show).
    """

    instrument: Instrument
    is_linear: bool = False
    maker_fee: Decimal = Decimal("0.001")
    taker_fee: Decimal = Decimal("0.001")
    fee_in_base: bool = True
    leverage: Decimal = Decimal(10)
    max_leverage: Decimal = Decimal(125)
    maintenance_ratio: Decimal = Decimal("0.005")

    @property
    def symbol(self) -> str:
        """Unified symbol."""
        return self.instrument.symbol


@attrs.frozen(kw_only=True)
class SimPosition:
    """A linear position: signed quantity (short is negative), average entry price, and the stop attached to it."""

    quantity: Decimal = ZERO
    entry_price: Decimal = ZERO
    stop_price: Decimal | None = None


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

    def __init__(
        self,
        markets: Mapping[str, Market],
        balances: Mapping[str, Decimal | str | int] | None,
        now_ms: Callable[[], int],
    ) -> None:
        self._markets = markets
        self._now_ms = now_ms
        currencies = {c for m in markets.values() for c in (m.instrument.base, m.instrument.quote)}
        start = dict.fromkeys(sorted(currencies), RICH) if balances is None else balances
        self.balances: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.balances.update({currency: Decimal(amount) for currency, amount in start.items()})
        self.reserved: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.positions: dict[str, SimPosition] = {}
        self.leverages: dict[str, Decimal] = {}
        self.margin_modes: dict[str, str] = {}
        self._held: defaultdict[str, History[SimPosition]] = defaultdict(History)
        self._had: defaultdict[str, History[Balance]] = defaultdict(History)
        for currency, amount in self.balances.items():
            self._had[currency].note(now_ms(), Balance(free=amount, used=ZERO, total=amount))

    def leverage(self, symbol: str) -> Decimal:
        """What is set, or what the market starts with."""
        return self.leverages.get(symbol, self._markets[symbol].leverage)

    def margin_mode(self, symbol: str) -> str:
        """What is set; "cross" to begin with."""
        return self.margin_modes.get(symbol, "cross")

    def positions_as_of(self, at_ms: int) -> dict[str, SimPosition]:
        """What was held at that instant, by symbol; flat ones are left out."""
        held = {symbol: history.as_of(at_ms) for symbol, history in self._held.items()}
        return {symbol: position for symbol, position in held.items() if position is not None and position.quantity}

    def balances_as_of(self, at_ms: int) -> dict[str, Balance]:
        """What there was at that instant, by currency; what is not owned nor owed is left out."""
        had = {currency: history.as_of(at_ms) for currency, history in self._had.items()}
        return {currency: b for currency, b in had.items() if b is not None and (b.total or b.used)}

    def set_leverage(self, symbol: str, leverage: Decimal) -> None:
        """Change it, and with it the margin that is held back.

        Raises:
            VenueReject: as it is already, not offered, or too little is free for the margin that it takes.
        """
        market, before = self._markets[symbol], self.leverage(symbol)
        if leverage == before:
            raise VenueReject(RejectReason.LEVERAGE_UNCHANGED)
        if not 1 <= leverage <= market.max_leverage:
            raise VenueReject(RejectReason.BAD_REQUEST, f"leverage must be 1 to {market.max_leverage}")
        self.leverages[symbol] = leverage
        if leverage < before and self.free(market.instrument.quote) < 0:
            self.leverages[symbol] = before
            raise VenueReject(RejectReason.INSUFFICIENT_FUNDS, "not enough is free for the margin")
        self._note_balance(market.instrument.quote)

    def set_stop(self, symbol: str, stop_price: Decimal | None) -> None:
        """Attach a stop to the position as it is, or remove it."""
        self._hold(symbol, attrs.evolve(self.positions[symbol], stop_price=stop_price))

    @in_own_context
    def free(self, currency: str) -> Decimal:
        """What an order may still use."""
        return self._free(currency)

    def position(self, symbol: str) -> Decimal:
        """Signed quantity of a linear position."""
        return self.positions.get(symbol, SimPosition()).quantity

    @in_own_context
    def need(self, order: SimOrder, price: Decimal) -> dict[str, Decimal]:
        """What an order must reserve while it is open."""
        market, request = self._markets[order.symbol], order.request
        quantity = order.leaves_quantity
        value = market.instrument.notional(quantity, order.limit_price or order.request.trigger_price or price)
        if market.is_linear:
            return {} if request.reduce_only else {market.instrument.quote: value / self.leverage(order.symbol)}
        if request.side is Side.SELL:
            return {market.instrument.base: quantity}
        return {market.instrument.quote: value if market.fee_in_base else value * (1 + market.taker_fee)}

    def check_funds(self, order: SimOrder, price: Decimal, reserved: Mapping[str, Decimal] = NOTHING) -> None:
        """Raises VenueReject if the account cannot pay for the order, for which *reserved* is set aside already."""
        for currency, amount in self.need(order, price).items():
            free = self.free(currency) + reserved.get(currency, ZERO)
            if amount > free:
                message = f"needs {amount} {currency}, {free} is free"
                raise VenueReject(RejectReason.INSUFFICIENT_FUNDS, message)

    def reserve(self, tracked: Tracked, price: Decimal) -> None:
        """Set aside what the order needs now; nothing once it has ended."""
        for currency, amount in tracked.reserved.items():
            self.reserved[currency] -= amount
        before = tracked.reserved
        tracked.reserved = self.need(tracked.now, price) if tracked.now.is_open else {}
        for currency, amount in tracked.reserved.items():
            self.reserved[currency] += amount
        for currency in {**before, **tracked.reserved}:
            self._note_balance(currency)

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
            self._note_balance(market.instrument.quote)
            return
        self.balances[market.instrument.base] += signed
        self.balances[market.instrument.quote] -= market.instrument.notional(signed, fill.price)
        for currency in (market.instrument.base, market.instrument.quote):
            self._note_balance(currency)

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
        stop_price = old.stop_price if quantity * old.quantity > 0 else None  # it ends with its position
        self._hold(symbol, SimPosition(quantity=quantity, entry_price=entry, stop_price=stop_price))

    def _hold(self, symbol: str, position: SimPosition) -> None:
        self.positions[symbol] = position
        self._held[symbol].note(self._now_ms(), position)

    def _free(self, currency: str) -> Decimal:
        margin = sum((self._margin(symbol) for symbol in self.positions if self._quote(symbol) == currency), ZERO)
        return self.balances[currency] - self.reserved[currency] - margin

    def _note_balance(self, currency: str) -> None:
        owned, free = self.balances[currency], self._free(currency)
        self._had[currency].note(self._now_ms(), Balance(free=free, used=owned - free, total=owned))

    def _margin(self, symbol: str) -> Decimal:
        market, position = self._markets[symbol], self.positions[symbol]
        return market.instrument.notional(abs(position.quantity), position.entry_price) / self.leverage(symbol)

    def _quote(self, symbol: str) -> str:
        return self._markets[symbol].instrument.quote
