"""Reading a venue such that a failed read can never be taken for an empty one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from execsafe._calls import within
from execsafe.model.intent import ErrorFacts
from execsafe.model.order import OrderReport
from execsafe.model.outcome import Operation
from execsafe.model.position import Balance, Execution, OrderBook, Quote, Snapshot, Unavailable, VenuePosition
from execsafe.model.values import check_seconds
from execsafe.ports import Clock, ExchangeAdapter

T = TypeVar("T")


class VenueReader:
    """A venue's views as sum types: each method returns a ``Snapshot``, or ``Unavailable`` with the reason.

    Args:
        adapter: the venue.
        clock: source of Unix milliseconds.
        request_timeout_s: own time-out around every read; 10 s, ccxt's default.
    """

    def __init__(self, adapter: ExchangeAdapter, *, clock: Clock, request_timeout_s: float = 10.0) -> None:
        check_seconds(request_timeout_s, "request_timeout_s")
        self.adapter = adapter
        self.clock = clock
        self._timeout_s = request_timeout_s

    async def positions(self) -> Snapshot[Sequence[VenuePosition]] | Unavailable:
        """All positions that are not flat."""
        return await self._read(self.adapter.fetch_positions)

    async def balances(self) -> Snapshot[Mapping[str, Balance]] | Unavailable:
        """Balances by currency."""
        return await self._read(self.adapter.fetch_balances)

    async def open_orders(self, symbol: str) -> Snapshot[Sequence[OrderReport]] | Unavailable:
        """Every open order of *symbol*, stop orders included."""
        return await self._read(lambda: self.adapter.fetch_open_orders(symbol))

    async def executions(self, symbol: str, *, since_ms: int) -> Snapshot[Sequence[Execution]] | Unavailable:
        """Every fill of *symbol* since then, oldest first."""
        return await self._read(lambda: self.adapter.fetch_executions(symbol, since_ms=since_ms))

    async def order_book(self, symbol: str, *, depth: int = 20) -> Snapshot[OrderBook] | Unavailable:
        """The best levels of both sides."""
        return await self._read(lambda: self.adapter.fetch_order_book(symbol, depth=depth))

    async def quotes(self, symbols: Sequence[str]) -> Snapshot[Mapping[str, Quote]] | Unavailable:
        """Best prices by symbol."""
        return await self._read(lambda: self.adapter.fetch_quotes(symbols))

    async def _read(self, read: Callable[[], Awaitable[T]]) -> Snapshot[T] | Unavailable:
        began_ms = self.clock.now_ms()
        facts = ErrorFacts(kind="TimeoutError", message=f"no answer in {self._timeout_s:g} s")
        try:
            with within(self._timeout_s):
                return Snapshot(value=await read(), taken_at_ms=began_ms)
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing was read
            facts = self.adapter.judge(error, Operation.LOOK_UP).facts
        return Unavailable(error=facts, at_ms=began_ms)
