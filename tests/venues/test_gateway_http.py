"""Guarded orders at the HTTP faces of Binance USD-M futures and MEXC spot, judged by the hidden ledger.

Through wrap(), the gateway, the adapter, the real ccxt client and a real socket. Windows are short but true.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import attrs
import ccxt.async_support as ccxt
import pytest

import execsafe
from execsafe.errors import UnsupportedByVenue
from execsafe.gateway import Accepted, Rejected
from execsafe.model.intent import Intent, IntentRecord, IntentState
from execsafe.model.outcome import Operation
from execsafe.ports import OrderRef
from execsafe.testing.faults import Fault
from execsafe.testing.http import VenueServer
from execsafe.testing.ledger import Entry, Happened
from execsafe.testing.venue import FillStep, SimVenue
from execsafe.venues._shapes import AnswerUnusable
from execsafe.venues.ccxt_adapter import CcxtAdapter
from execsafe.wrap import GuardedExchange

pytestmark = pytest.mark.anyio

SWAP, SPOT = "BTC/USDT:USDT", "BTC/USDT"
SYMBOL = {"binanceusdm": SWAP, "mexc": SPOT}
BOTH = pytest.mark.parametrize("name", list(SYMBOL))
RESTING, MARKETABLE = 40_000, 61_000
TIMEOUT_S = 0.4


@pytest.fixture
def anyio_backend() -> str:
    """ccxt runs on asyncio only, and the wire in real time."""
    return "asyncio"


@attrs.define(eq=False)
class Rig:
    """One face, one guard on it."""

    name: str
    server: VenueServer
    guarded: GuardedExchange

    @property
    def venue(self) -> SimVenue:
        return self.server.venues[self.name]

    @property
    def adapter(self) -> CcxtAdapter:
        adapter = self.guarded.adapter
        assert isinstance(adapter, CcxtAdapter)
        return adapter

    def strike(self, fault: Fault, value: int | None = None, operation: Operation = Operation.CREATE) -> None:
        self.server.plans[self.name].strike_next(operation, fault, value)

    def accepted(self) -> list[Entry]:
        self.server.advance()
        return self.venue.ledger.accepted()

    def move_price(self, price: float) -> None:
        self.venue.set_price(SYMBOL[self.name], price, self.server.clock.now_ms())

    async def buy(self, key: str = "k", price: float = RESTING, **params: Any) -> dict[str, Any]:
        return await self.guarded.create_order(
            SYMBOL[self.name], "limit", "buy", 0.01, price, {"intentKey": key, **params}
        )

    async def stop(self, key: str = "stop", kind: str = "market", price: float | None = None) -> dict[str, Any]:
        params = {"intentKey": key, "triggerPrice": 55_000, "reduceOnly": True}
        return await self.guarded.create_order(SYMBOL[self.name], kind, "sell", 0.01, price, params)

    async def record(self, key: str = "k") -> IntentRecord:
        record = await self.guarded.registry.find(key)
        assert record is not None
        return record


@contextlib.asynccontextmanager
async def a_rig(name: str) -> AsyncIterator[Rig]:
    profile = attrs.evolve(execsafe.profile_for(name), read_lag_s=0.2, clock_skew_s=0.1, expiry_window_s=0.8)
    with tempfile.TemporaryDirectory() as folder:
        async with VenueServer(client_timeout_ms=400) as server:
            exchange = server.exchange(name, timeout=10_000)
            guarded = execsafe.wrap(
                exchange,
                store=f"sqlite:///{folder}/orders.db",
                profile=profile,
                request_timeout_s=TIMEOUT_S,
                look_interval_s=0.05,
                patience_s=4.0,
            )
            async with guarded:
                exchange.options["recvWindow"] = 10_000  # the adapter sets its own with every order
                await guarded.adapter.prepare(SYMBOL[name])
                exchange.timeout = 1_500
                yield Rig(name=name, server=server, guarded=guarded)


# --- Lost in between ------------------------------------------------------------------------------------------------


@pytest.mark.row("S4-18")
@pytest.mark.guarantee(3, 4)
@pytest.mark.parametrize(
    ("fault", "value"),
    [(Fault.DROP_REPLY, None), (Fault.TRUNCATED_BODY, None), (Fault.SERVER_ERROR_ACCEPTED, 502),
     (Fault.EMPTY_OK, 0), (Fault.EMPTY_OK, 1), (Fault.EMPTY_OK, 2)],
)  # fmt: skip
@pytest.mark.parametrize("price", [RESTING, MARKETABLE])
@BOTH
async def test_an_order_whose_reply_is_lost_is_adopted(name: str, price: int, fault: Fault, value: int | None) -> None:
    async with a_rig(name) as rig:
        rig.strike(fault, value)

        order = await rig.buy(price=price)

        [mine] = rig.accepted()
        assert (order["id"], order["clientOrderId"]) == (_shown_id(rig, mine), mine.client_order_id)
        assert order["filled"] == (0.01 if price == MARKETABLE else 0)
        assert order["status"] == ("closed" if price == MARKETABLE else "open")


def _shown_id(rig: Rig, entry: Entry) -> str:
    return f"C02__{entry.venue_order_id}" if rig.name == "mexc" else str(entry.venue_order_id)


@pytest.mark.row("S4-18")
@pytest.mark.guarantee(3)
@pytest.mark.parametrize(("fault", "value"), [(Fault.DROP_REQUEST, None), (Fault.SERVER_ERROR_NOT_ACCEPTED, 503)])
@BOTH
async def test_an_order_whose_request_is_lost_is_sent_again_after_the_proof(
    name: str, fault: Fault, value: int | None
) -> None:
    async with a_rig(name) as rig:
        rig.strike(fault, value)
        order = await rig.buy()
        [mine] = rig.accepted()
        assert order["clientOrderId"] == mine.client_order_id


@BOTH
async def test_a_partial_fill_is_reported_as_what_filled(name: str) -> None:
    async with a_rig(name) as rig:
        rig.venue.schedule_fills(SYMBOL[name], (FillStep(0, "0.4"),))

        order = await rig.buy(price=MARKETABLE)
        canceled = await rig.guarded.cancel_order(order["id"], SYMBOL[name])

        assert (order["status"], order["filled"], order["remaining"]) == ("open", 0.004, 0.006)
        assert (canceled["status"], canceled["filled"]) == ("canceled", 0.004)
        assert (await rig.record()).filled_quantity == Decimal("0.004")


# --- USD-M: stop orders ---------------------------------------------------------------------------------------------


@pytest.mark.row("S3-10", "S3-31")
async def test_a_stop_order_is_placed_found_and_canceled_in_its_namespace() -> None:
    async with a_rig("binanceusdm") as rig:
        await rig.buy("entry", MARKETABLE)
        placed = await rig.stop()

        [listed] = await rig.adapter.fetch_open_orders(SWAP)
        assert (listed.client_order_id, listed.venue_order_id) == (placed["clientOrderId"], placed["id"])
        assert (listed.trigger_price, listed.reduce_only) == (55_000, True)
        again = await rig.stop()
        assert again["id"] == placed["id"]
        assert len(rig.accepted()) == 2

        ended = await rig.guarded.cancel_order(placed["id"], SWAP)
        assert ended["status"] == "canceled"
        assert list(await rig.adapter.fetch_open_orders(SWAP)) == []


@pytest.mark.row("S3-10", "S4-18")
@pytest.mark.guarantee(4, 10)
@pytest.mark.parametrize("fault", [Fault.DROP_REPLY, Fault.EMPTY_OK, Fault.SERVER_ERROR_ACCEPTED])
async def test_a_stop_order_whose_reply_is_lost_is_adopted(fault: Fault) -> None:
    async with a_rig("binanceusdm") as rig:
        await rig.buy("entry", MARKETABLE)
        rig.strike(fault)

        placed = await rig.stop()

        assert len(rig.accepted()) == 2
        assert [order.venue_order_id for order in await rig.adapter.fetch_open_orders(SWAP)] == [placed["id"]]


async def test_a_stop_order_that_would_trigger_at_once_is_a_definite_no() -> None:
    async with a_rig("binanceusdm") as rig:
        await rig.buy("entry", MARKETABLE)
        rig.move_price(54_000)
        with pytest.raises(ccxt.OrderImmediatelyFillable):
            await rig.stop()
        assert (await rig.record("stop")).state is IntentState.REJECTED


async def test_what_a_stop_order_filled_is_told_although_another_order_filled_it() -> None:
    async with a_rig("binanceusdm") as rig:
        await rig.buy("entry", MARKETABLE)
        await rig.stop()
        rig.move_price(54_000)

        await rig.guarded.recover()
        record = await rig.record("stop")

        assert (record.state, record.filled_quantity) == (IntentState.FILLED, Decimal("0.01"))


async def test_a_stop_limit_that_was_set_off_and_rests_can_still_be_canceled() -> None:
    async with a_rig("binanceusdm") as rig:
        await rig.buy("entry", MARKETABLE)
        placed = await rig.stop(kind="limit", price=58_000)
        rig.move_price(54_000)
        assert [order.status.value for order in rig.venue.open_orders()] == ["open"]

        ended = await rig.guarded.cancel_order(placed["id"], SWAP)

        assert (ended["status"], ended["filled"]) == ("canceled", 0)
        assert rig.venue.open_orders() == []


async def test_a_stop_that_filled_meanwhile_is_not_canceled_and_says_so() -> None:
    async with a_rig("binanceusdm") as rig:
        await rig.buy("entry", MARKETABLE)
        await rig.stop()
        rig.move_price(54_000)
        client_id = (await rig.record("stop")).attempts[-1].client_order_id
        order = OrderRef(symbol=SWAP, client_order_id=client_id, is_trigger=True)
        with pytest.raises(ccxt.OrderNotFound):
            await rig.adapter.cancel_order(order)
        assert len(rig.venue.ledger.of(None, Happened.CANCELED)) == 0


@pytest.mark.row("S2-27")
async def test_leverage_is_confirmed_before_the_order_that_counts_on_it() -> None:
    async with a_rig("binanceusdm") as rig:
        await rig.adapter.set_leverage(SWAP, Decimal(3))
        await rig.buy(price=MARKETABLE)
        assert rig.venue.account.leverage(SWAP) == 3
        kinds = [entry.what for entry in rig.venue.ledger.entries]
        assert kinds.index(Happened.LEVERAGE_SET) < kinds.index(Happened.ACCEPTED)


@pytest.mark.row("S2-28")
async def test_an_order_below_the_minimum_value_is_refused_and_was_never_sent() -> None:
    async with a_rig("binanceusdm") as rig:
        with pytest.raises(execsafe.InvalidOrder, match="minimum"):
            await rig.guarded.create_order(SWAP, "limit", "buy", 0.001, 1_000, {"intentKey": "k"})
        assert rig.venue.ledger.received() == []


# --- MEXC -----------------------------------------------------------------------------------------------------------


@pytest.mark.row("S0-08", "D-16")
async def test_an_oversold_sell_is_a_recorded_reject_with_the_venues_code() -> None:
    async with a_rig("mexc") as rig:
        rig.venue.account.balances["BTC"] = Decimal("0.5")
        intent = Intent(key="exit", symbol=SPOT, side="sell", quantity="1", type="market")

        outcome = await rig.guarded.gateway.submit(intent)

        assert isinstance(outcome, Rejected)
        assert outcome.error is not None
        assert outcome.error.code == "30005"
        assert rig.accepted() == []


async def test_a_stop_is_refused_at_mexc_before_anything_is_sent() -> None:
    async with a_rig("mexc") as rig:
        with pytest.raises(UnsupportedByVenue, match="mexc"):
            await rig.guarded.create_order(SPOT, "market", "sell", 0.01, None, {"stopLossPrice": 50_000})
        assert rig.venue.ledger.received() == []


async def test_a_page_of_html_is_not_taken_for_an_acknowledgement() -> None:
    async with a_rig("mexc") as rig:
        rig.strike(Fault.EMPTY_OK, 1)
        intent = Intent(key="k", symbol=SPOT, side="buy", quantity="0.01", limit_price=RESTING)
        outcome = await rig.guarded.gateway.submit(intent)
        assert isinstance(outcome, Accepted)
        assert (await rig.record()).attempts[-1].venue_order_id == "C02__1"

        rig.server.spoil("GET /api/v3/order", "<html></html>")
        [lookup] = rig.adapter.profile.lookups
        with pytest.raises(AnswerUnusable):
            await rig.adapter.look_up(lookup, OrderRef(symbol=SPOT, client_order_id="x"))
