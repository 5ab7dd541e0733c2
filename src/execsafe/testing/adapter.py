"""The in-process face of the simulated venue: an ExchangeAdapter for virtual time, on asyncio and trio.

Every call meets the fault plan, takes virtual time, and raises errors named as ccxt's. A request under way
lives in the venue's own queue: it lands at its instant although its caller was cancelled or killed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final, NoReturn, TypeVar

import anyio
import attrs

from execsafe.core.ids import client_order_id
from execsafe.core.outcomes import Rule, classify
from execsafe.errors import InvalidInput, UnsupportedByVenue
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.order import ZERO, OrderReport, OrderRequest, OrderStatus
from execsafe.model.outcome import Judged, Meaning, Operation
from execsafe.model.position import Balance, Execution, OrderBook, PositionSide, Quote, StopKind, VenuePosition
from execsafe.model.values import to_positive
from execsafe.model.venue import Dedup, Expiry, LookUp, VenueProfile, View
from execsafe.ports import Clock, ExchangeAdapter, OrderRef
from execsafe.testing import sim_errors as client
from execsafe.testing._orders import NewOrder, SimOrder, VenueReject
from execsafe.testing._wire import SILENT, Delivery, dispatch, release
from execsafe.testing.faults import Fault, FaultPlan, Reading, Strikes
from execsafe.testing.venue import SimVenue

SIM_PROFILE: Final = VenueProfile(
    name="sim",
    dedup=Dedup.OPEN,
    expiry=Expiry.ABSOLUTE,
    expiry_window_s=5.0,
    clock_skew_s=0.5,
    read_lag_s=2.0,
    lookups=(
        LookUp(view=View.CLIENT_ID, method="fetch_order"),
        LookUp(view=View.OPEN_ORDERS, method="fetch_open_orders", scan=True),
        LookUp(view=View.CLOSED_ORDERS, method="fetch_closed_orders", scan=True),
    ),
    definite_ack=True,
    attached_stops=False,
)
"""A venue much like Binance spot: ids unique among open orders, an absolute request deadline."""

T = TypeVar("T")

_HANG_MS: Final = 3_600_000
_TRIGGERS: Final = ("stopLossPrice", "takeProfitPrice", "triggerPrice", "stopPrice")
_RULES: Final = (
    Rule(meaning=Meaning.NO_CHANGE, reason="this stop is attached", operations=Operation.SET_STOP, kind="NoChange"),
)


class SimAdapter(ExchangeAdapter):
    """A bot's connection to a :class:`~execsafe.testing.venue.SimVenue`.

    Args:
        venue: shared with other adapters and with the test.
        clock: true time; the venue runs on it. With a virtual loop, a VirtualClock.
        client_clock: the bot machine's clock, which may be skewed; None: *clock*.
        plan: what goes wrong; None: nothing.
        profile: what the bot believes about the venue; :data:`SIM_PROFILE` unless given.
        latency_ms: least and greatest time of one way, drawn per request.
        request_timeout_s: when the client gives up waiting for an answer.
        stop_kind: how stops of linear positions are kept. ORDER, as on Binance: an order of its own. ATTACHED, as
            on Bybit: a property of the position, see ``set_attached_stop``. On spot a stop is always an order.

    Readings (positions, balances, open orders, executions, order book, quotes) are LOOK_UP to the fault plan, and
    so is every look-up of an order; ``Strike.reading`` counts one kind alone.
    """

    def __init__(
        self,
        venue: SimVenue,
        *,
        clock: Clock,
        client_clock: Clock | None = None,
        plan: FaultPlan | None = None,
        profile: VenueProfile = SIM_PROFILE,
        latency_ms: tuple[int, int] = (5, 50),
        request_timeout_s: float = 10.0,
        stop_kind: StopKind = StopKind.ORDER,
    ) -> None:
        self.venue = venue
        self.clock = clock
        self.client_clock: Clock = client_clock or clock
        self.plan: FaultPlan = FaultPlan.none() if plan is None else plan
        self.profile = profile
        self.latency_ms = latency_ms
        self.request_timeout_ms: int = round(request_timeout_s * 1000)
        self._stop_kind = stop_kind
        self._held: list[Delivery[SimOrder]] = []

    # --- the port ---------------------------------------------------------------------------------

    async def prepare(self, symbol: str) -> Instrument:
        await anyio.sleep(self.latency_ms[0] / 1000)
        if symbol not in self.venue.markets:
            raise InvalidInput(f"{symbol} is not listed; there are {', '.join(self.venue.markets)}")
        return self.venue.markets[symbol].instrument

    def check(self, intent: Intent) -> None:
        params = intent.params.thaw()
        if "stopLoss" in params or "takeProfit" in params:
            raise UnsupportedByVenue("attached stops are not understood here and would be dropped silently")
        if intent.post_only and intent.limit_price is None:
            raise UnsupportedByVenue("a market order cannot be post-only")
        if intent.type.endswith("limit") and intent.limit_price is None:
            raise UnsupportedByVenue("a limit order needs a limit price")

    def client_order_id(self, intent: Intent, generation: int) -> str:
        return client_order_id(
            account=intent.account,
            key=intent.key,
            leg=intent.leg,
            generation=generation,
            rule=self.profile.client_order_id,
        )

    async def create_order(self, request: OrderRequest) -> OrderReport:
        strikes = self.plan.draw(Operation.CREATE)
        order = self._new_order(request)
        delivery = Delivery(lambda now_ms, faults: self.venue.submit(order, now_ms, faults), strikes)
        await self._send(delivery, strikes, order.dead_after_ms, self._held)
        if strikes.take(Fault.EMPTY_OK):
            return OrderReport(symbol=request.symbol)
        return _result(delivery).report()

    async def cancel_order(self, order: OrderRef) -> None:
        strikes = self.plan.draw(Operation.CANCEL)
        held, self._held = self._held, []  # sent before this cancel, they arrive right after it

        def act(now_ms: int, faults: Strikes) -> SimOrder:
            release(self.venue, held, now_ms)
            by_client_id = order.client_order_id if order.venue_order_id is None else None
            return self.venue.cancel(
                now_ms,
                symbol=order.symbol,
                client_order_id=by_client_id,
                venue_order_id=order.venue_order_id,
                strikes=faults,
            )

        delivery = Delivery(act, strikes)
        await self._send(delivery, strikes, None, self._held)
        _result(delivery)

    async def look_up(self, lookup: LookUp, order: OrderRef) -> OrderReport | None:
        shown = await self._read(
            Reading.ORDER,
            lambda now_ms, lag_max_ms, strikes: self.venue.look(
                lookup.view,
                now_ms,
                symbol=order.symbol,
                client_order_id=order.client_order_id,
                venue_order_id=order.venue_order_id if order.client_order_id is None else None,
                strikes=strikes,
                lag_max_ms=lag_max_ms,
            ),
        )
        if not shown:
            return None
        return _trades_report(shown[-1]) if lookup.view is View.TRADES else shown[-1].report()

    def judge(self, error: BaseException, operation: Operation) -> Judged:
        return classify(error, operation, table=_RULES)

    # --- readings ---------------------------------------------------------------------------------

    async def fetch_positions(self) -> Sequence[VenuePosition]:
        return await self._read(
            Reading.POSITIONS,
            lambda now_ms, lag_ms, strikes: self.venue.fetch_positions(now_ms, strikes=strikes, lag_max_ms=lag_ms),
        )

    async def fetch_balances(self) -> Mapping[str, Balance]:
        return await self._read(
            Reading.BALANCES,
            lambda now_ms, lag_ms, strikes: self.venue.fetch_balances(now_ms, strikes=strikes, lag_max_ms=lag_ms),
        )

    async def fetch_open_orders(self, symbol: str) -> Sequence[OrderReport]:
        shown = await self._read(
            Reading.OPEN_ORDERS,
            lambda now_ms, lag_ms, strikes: self.venue.look(
                View.OPEN_ORDERS, now_ms, symbol=symbol, strikes=strikes, lag_max_ms=lag_ms
            ),
        )
        return [order.report() for order in shown]

    async def fetch_executions(self, symbol: str, *, since_ms: int) -> Sequence[Execution]:
        return await self._read(
            Reading.EXECUTIONS,
            lambda now_ms, lag_ms, strikes: self.venue.executions(
                symbol, now_ms, since_ms=since_ms, strikes=strikes, lag_max_ms=lag_ms
            ),
        )

    async def fetch_order_book(self, symbol: str, *, depth: int = 20) -> OrderBook:
        return await self._read(
            Reading.ORDER_BOOK,
            lambda now_ms, lag_ms, strikes: self.venue.order_book(
                symbol, now_ms, depth=depth, strikes=strikes, lag_max_ms=lag_ms
            ),
        )

    async def fetch_quotes(self, symbols: Sequence[str]) -> Mapping[str, Quote]:
        return await self._read(
            Reading.QUOTES,
            lambda now_ms, lag_ms, strikes: self.venue.quotes(symbols, now_ms, strikes=strikes, lag_max_ms=lag_ms),
        )

    async def _read(self, reading: Reading, answer: Callable[[int, int, Strikes], T]) -> T:
        strikes = self.plan.draw(Operation.LOOK_UP, reading)
        await self._travel(strikes.random)
        if strikes.take(Fault.LOOKUP_ERROR):
            if strikes.random.random() < 0.5:  # noqa: PLR2004 - a coin
                raise client.ExchangeNotAvailable(f"sim GET {reading.value} 502 Bad Gateway")
            await self._time_out(f"GET {reading.value}")
        try:
            shown = answer(self.clock.now_ms(), round(self.profile.read_lag_s * 1000), strikes)
        except VenueReject as reject:
            raise client.as_client_error(reject) from None
        await self._travel(strikes.random)
        return shown

    # --- settings ---------------------------------------------------------------------------------

    async def set_leverage(self, symbol: str, leverage: Decimal) -> None:
        await self._change(
            Operation.SET_LEVERAGE,
            lambda now_ms, strikes: self.venue.set_leverage(symbol, leverage, now_ms, strikes),
        )

    async def set_margin_mode(self, symbol: str, mode: str) -> None:
        await self._change(
            Operation.SET_MARGIN_MODE,
            lambda now_ms, strikes: self.venue.set_margin_mode(symbol, mode, now_ms, strikes),
        )

    def stop_kind(self, symbol: str) -> StopKind:
        market = self.venue.markets.get(symbol)
        return self._stop_kind if market is not None and market.is_linear else StopKind.ORDER

    async def set_attached_stop(self, symbol: str, side: PositionSide, stop_price: Decimal | None) -> None:
        if self.stop_kind(symbol) is not StopKind.ATTACHED:
            raise self._without("stops attached to positions")
        await self._change(
            Operation.SET_STOP,
            lambda now_ms, strikes: self.venue.set_attached_stop(
                symbol, stop_price, now_ms, side=side, strikes=strikes
            ),
        )

    async def _change(self, operation: Operation, act: Callable[[int, Strikes], None]) -> None:
        strikes = self.plan.draw(operation)
        delivery = Delivery(act, strikes)
        await self._send(delivery, strikes, None, [], what=operation.value)
        _result(delivery)

    # --- the wire ---------------------------------------------------------------------------------

    async def _send(
        self,
        delivery: Delivery[T],
        strikes: Strikes,
        dead_after_ms: int | None,
        held: list[Delivery[T]],
        what: str = "order",
    ) -> None:
        """Carry a request there and its answer back, through whatever is to happen to it.

        Returns once the answer is there; raises what the client sees where it is not.
        """
        now_ms, rng = self.clock.now_ms(), strikes.random
        fault, arrival_ms = dispatch(
            self.venue,
            delivery,
            strikes,
            held,
            now_ms=now_ms,
            arrival_ms=now_ms + rng.randint(*self.latency_ms),
            dead_after_ms=dead_after_ms,
            timeout_ms=self.request_timeout_ms,
        )
        if fault in SILENT:
            await self._time_out(f"POST {what}", _HANG_MS if fault is Fault.HANG else None)
        await self._wait_until(arrival_ms + rng.randint(*self.latency_ms))
        self._raise_broken_answer(fault, what)

    def _raise_broken_answer(self, fault: Fault | None, what: str) -> None:
        if fault is Fault.TRUNCATED_BODY:
            raise client.ExchangeError(f"sim POST {what}") from client.ClientPayloadError("not enough data")
        if fault is Fault.RESET_CONNECTION:
            raise client.ExchangeNotAvailable(f"sim POST {what}") from client.ServerDisconnectedError()
        if fault in {Fault.SERVER_ERROR_ACCEPTED, Fault.SERVER_ERROR_NOT_ACCEPTED}:
            raise client.ExchangeNotAvailable(f"sim POST {what} 502 Bad Gateway")

    async def _travel(self, rng: random.Random) -> None:
        await self._wait_until(self.clock.now_ms() + rng.randint(*self.latency_ms))

    async def _time_out(self, what: str, after_ms: int | None = None) -> NoReturn:
        await self._wait_until(self.clock.now_ms() + (after_ms or self.request_timeout_ms))
        raise client.RequestTimeout(f"sim {what}") from TimeoutError()

    async def _wait_until(self, at_ms: int) -> None:
        await anyio.sleep(max(0, at_ms - self.clock.now_ms()) / 1000)
        self.venue.advance(max(at_ms, self.clock.now_ms()))

    # --- requests ---------------------------------------------------------------------------------

    def _new_order(self, request: OrderRequest) -> NewOrder:
        expiry, now_ms = self.profile.expiry, self.client_clock.now_ms()
        params = request.params.thaw()
        trigger = request.trigger_price
        if trigger is None:
            given = next((params[name] for name in _TRIGGERS if name in params), None)
            trigger = None if given is None else to_positive(given, "trigger_price")
        takes_profit = "take_profit" in request.type or "takeProfitPrice" in params
        is_buy = request.side.value == "buy"
        is_limit = "limit" in request.type and request.limit_price is not None
        return NewOrder(
            symbol=request.symbol,
            side=request.side,
            quantity=request.quantity,
            type="limit" if is_limit else "market",
            limit_price=request.limit_price if is_limit else None,
            client_order_id=request.client_order_id,
            time_in_force=(request.time_in_force or "GTC").upper(),
            post_only=request.post_only or (request.time_in_force or "").upper() == "PO",
            reduce_only=request.reduce_only or bool(params.get("reduceOnly")),
            trigger_price=trigger,
            trigger_above=None if trigger is None else is_buy != takes_profit,
            signed_at_ms=None if expiry is Expiry.NONE else now_ms,
            window_ms=round(self.profile.expiry_window_s * 1000) if expiry is Expiry.RELATIVE else None,
            deadline_ms=request.deadline_ms if expiry is Expiry.ABSOLUTE else None,
        )


def _result(delivery: Delivery[T]) -> T:
    try:
        return delivery.result()
    except VenueReject as reject:
        raise client.as_client_error(reject) from None


def _trades_report(order: SimOrder) -> OrderReport:
    """What can be told from trades alone: that the order exists and what filled."""
    return attrs.evolve(
        order.report(),
        status=OrderStatus.UNKNOWN,
        quantity=None,
        limit_price=None,
        trigger_price=None,
        reduce_only=None,
        filled_quantity=sum((fill.quantity for fill in order.fills), ZERO),
    )
