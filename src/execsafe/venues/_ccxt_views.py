"""The half of the ccxt adapter that surrounds orders: positions, balances, lists, prices, settings."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from typing import Any

from execsafe.model.order import OrderReport
from execsafe.model.position import Balance, Execution, OrderBook, PositionSide, Quote, StopKind, VenuePosition
from execsafe.model.values import Params
from execsafe.ports import Clock, ExchangeAdapter, OrderRef
from execsafe.venues import _account, _market_data, _settings
from execsafe.venues._details import Details


class CcxtViews(ExchangeAdapter):
    """What :class:`~execsafe.venues.ccxt_adapter.CcxtAdapter` reads and sets besides orders.

    An answer that lacks what it must hold raises :class:`~execsafe.venues._shapes.AnswerUnusable`, never an empty
    list; whatever ccxt raises passes through.
    """

    exchange: Any
    exchange_id: str
    family: str
    details: Details | None
    _clock: Clock

    @abc.abstractmethod
    def parse_report(self, order: Mapping[str, Any], *, id_field: str = ...) -> OrderReport:
        """A unified ccxt order as a report."""

    @abc.abstractmethod
    def fill_in(self, params: Params, order: OrderRef) -> dict[str, Any]:
        """*params* with the places for ids filled in."""

    @abc.abstractmethod
    async def ready(self) -> None:
        """Know the markets and the account's mode."""

    @abc.abstractmethod
    def paced(self, *, urgent: bool) -> AbstractContextManager[None]:
        """Around one request: refused while the venue wants to be left alone."""

    @property
    def clock(self) -> Clock:
        """Source of Unix milliseconds."""
        return self._clock

    async def fetch_positions(self) -> Sequence[VenuePosition]:
        """All positions that are not flat; quantities as the venue states them (contracts stay contracts).

        Linear ones, per settlement currency where the venue lists them so.
        """
        return await _account.positions(self)

    async def fetch_balances(self) -> Mapping[str, Balance]:
        """Balances by currency, of the account that the exchange object's ``defaultType`` names."""
        return await _account.balances(self)

    async def fetch_open_orders(self, symbol: str) -> Sequence[OrderReport]:
        """Every open order of *symbol*, whoever placed it, stop orders in their own namespaces included."""
        return await _account.open_orders(self, symbol)

    async def fetch_executions(self, symbol: str, *, since_ms: int) -> Sequence[Execution]:
        """Every fill of *symbol* at or after *since_ms*, oldest first, complete or raising."""
        return await _account.executions(self, symbol, since_ms)

    async def fetch_order_book(self, symbol: str, *, depth: int = 20) -> OrderBook:
        """The best *depth* levels of both sides; fewer where the venue offers fewer."""
        return await _market_data.order_book(self, symbol, depth)

    async def fetch_quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        """Best prices by symbol; a symbol without an answer is left out."""
        return await _market_data.quotes(self, symbols)

    async def set_leverage(self, symbol: str, leverage: Decimal) -> None:
        """Set the leverage; where the answer repeats it, it must be the one asked for."""
        await _settings.set_leverage(self, symbol, leverage)

    async def set_margin_mode(self, symbol: str, mode: str) -> None:
        """Set the margin mode, ``"isolated"`` or ``"cross"``; on a unified bybit account it is the whole account's."""
        await _settings.set_margin_mode(self, symbol, mode)

    def stop_kind(self, symbol: str) -> StopKind:
        """How this venue keeps the stop of a position in *symbol*: attached on bybit's contracts, else an order."""
        return _settings.stop_kind(self, symbol)

    async def set_attached_stop(self, symbol: str, side: PositionSide, stop_price: Decimal | None) -> None:
        """Attach a stop-loss to the whole position, or remove it (None), in one-way mode."""
        await _settings.set_attached_stop(self, symbol, side, stop_price)
