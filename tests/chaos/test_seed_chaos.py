"""The seven chaos tests of a pair-trading engine, through the real ccxt client over HTTP.

Nothing of the engine is in here, and nothing is mocked: what happened is read from the venue's own ledger, and every
assertion is strict.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import attrs
import pytest

import execsafe
from execsafe.gateway import GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.hedging import Aborted, Deduplicated, Executed, HedgeLeg, HedgePlan, PartialFillHedger, Unwound
from execsafe.intents import IntentRegistry
from execsafe.model.order import OrderRequest
from execsafe.model.outcome import Operation
from execsafe.ports import Store
from execsafe.stores import open_store
from execsafe.testing.faults import Fault, Strike
from execsafe.testing.http import VenueServer
from execsafe.testing.ledger import Entry
from execsafe.testing.venue import SimVenue, btc_usdt, eth_usdt, linear
from execsafe.venues.ccxt_adapter import CcxtAdapter
from hedge_world import FillScript

pytestmark = [pytest.mark.anyio, pytest.mark.row("S4-13", "S4-18", "S4-35", "S4-36", "S4-39", "D-06")]
D = Decimal
VENUES = ("binance", "bybit")
SYMBOLS = {"binance": ("ETH/USDT", "BTC/USDT"), "bybit": ("ETH/USDT:USDT", "BTC/USDT:USDT")}
CREATES = {("POST", "/api/v3/order"), ("POST", "/v5/order/create")}
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
LATENCY_S = 0.4


@pytest.fixture(scope="module")
def anyio_backend():
    """ccxt's client runs on asyncio only, and the wire in real time."""
    return "asyncio"


class SlowAdapter(CcxtAdapter):
    """The real client, over a longer wire."""

    latency_s = 0.0

    async def create_order(self, request: OrderRequest) -> Any:
        await asyncio.sleep(self.latency_s)
        return await super().create_order(request)


@attrs.define(eq=False)
class Desk:
    """A venue server, a journal file, and a hedger between them."""

    name: str
    server: VenueServer
    store: Store
    fills: FillScript
    adapter: SlowAdapter
    hedger: PartialFillHedger

    @property
    def venue(self) -> SimVenue:
        return self.server.venues[self.name]

    @property
    def a(self) -> str:
        return SYMBOLS[self.name][0]

    @property
    def b(self) -> str:
        return SYMBOLS[self.name][1]

    def plan(self, **more: Any) -> HedgePlan:
        """Buy 1.0 of one, sell 1.0 of the other."""
        legs = [
            HedgeLeg(symbol=self.a, side="buy", quantity="1.0"),
            HedgeLeg(symbol=self.b, side="sell", quantity="1.0"),
        ]
        return HedgePlan(legs=legs, **more)

    async def execute(self, plan: HedgePlan | None = None, **more: Any) -> Any:
        return await self.hedger.execute(plan or self.plan(), **more)

    def strike(self, ordinal: int, fault: Fault) -> None:
        self.server.plans[self.name].script([Strike(Operation.CREATE, ordinal, fault)])

    # --- the truth ---------------------------------------------------------------------------------------------

    def accepted(self) -> list[Entry]:
        self.server.advance()
        return self.venue.ledger.accepted()

    def positions(self) -> tuple[Decimal, Decimal]:
        self.server.advance()
        return self.venue.ledger.position(self.a), self.venue.ledger.position(self.b)

    def owned(self) -> tuple[Decimal, Decimal]:
        """By the account itself, fees included."""
        self.server.advance()
        account = self.venue.account
        if self.name == "bybit":
            return account.position(self.a), account.position(self.b)
        return account.balances["ETH"] - 10_000_000, account.balances["BTC"] - 10_000_000

    def creates(self) -> int:
        """Requests on the wire that ask for an order."""
        return sum((method, path.partition("?")[0]) in CREATES for method, _, path in self.server.requests)


def quick(name: str) -> execsafe.VenueProfile:
    """The venue's own row, with windows for a test of a second or two."""
    profile = execsafe.profile_for(name)
    return attrs.evolve(profile, read_lag_s=0.2, clock_skew_s=0.1, expiry_window_s=0.8)


@contextlib.asynccontextmanager
async def a_desk(name: str, *, markets: Any = None, **policy: Any) -> AsyncIterator[Desk]:
    if markets is None:
        markets = [eth_usdt(), btc_usdt()] if name == "binance" else [linear("ETH"), linear("BTC")]
    dedup = {"binance": "open", "bybit": "forever"}[name]
    venue = SimVenue(markets, dedup=dedup, rejects_post_only=name == "binance")
    async with VenueServer({name: venue}, client_timeout_ms=400) as server:
        exchange = server.exchange(name)
        exchange.ssl_context = NO_TLS  # it would load the system's certificates, a long time for nothing
        adapter = SlowAdapter(exchange, profile=quick(name))
        with tempfile.TemporaryDirectory() as folder:
            async with open_store(f"sqlite:///{folder}/orders.db") as store:
                gateway = OrderGateway(
                    adapter,
                    IntentRegistry(store),
                    policy=GatewayPolicy(**{"request_timeout_s": 1.0, "patience_s": 6.0, **policy}),
                    looks=LookPolicy(interval_s=0.05, spacing_s=0.005, timeout_s=1.0),
                )
                hedger = PartialFillHedger(gateway)
                await adapter.prepare(markets[0].symbol)
                yield Desk(name, server, store, FillScript(venue), adapter, hedger)


@pytest.mark.row("S4-01", "S4-02", "S4-03")
@pytest.mark.guarantee(9)
@pytest.mark.parametrize("name", VENUES)
async def test_t1_a_fill_of_sixty_percent_is_hedged_with_exactly_that(name):
    async with a_desk(name) as desk:
        desk.fills.add(desk.a, "0.6")
        result = await desk.execute()
        assert isinstance(result, Executed)
        assert desk.positions() == (D("0.6"), D("-0.6"))
        [lead, hedge] = desk.accepted()
        assert (lead.quantity, hedge.quantity) == (D(1), D("0.6"))
        assert (desk.creates(), len(desk.accepted())) == (2, 2)
        assert "the hedge is recalculated" in result.reason


@pytest.mark.row("S4-04", "S4-05", "D-07")
@pytest.mark.guarantee(9)
@pytest.mark.parametrize("name", VENUES)
async def test_t2_a_fill_of_ten_percent_is_aborted_and_flat(name):
    async with a_desk(name) as desk:
        desk.fills.add(desk.a, "0.1")
        result = await desk.execute()
        assert isinstance(result, Aborted)
        assert result.reason == "0.1 of 1 filled, below the abort band of 50 %"
        assert desk.owned() == (0, 0)
        [_, undone] = desk.accepted()
        assert undone.symbol == desk.a
        assert undone.reduce_only is (name == "bybit")


@pytest.mark.row("S4-12", "S4-15", "S4-21")
@pytest.mark.guarantee(3)
@pytest.mark.parametrize("name", VENUES)
async def test_t3_a_hedge_that_timed_out_is_looked_for_before_anything_else_is_sent(name):
    """It never arrived: sent again after the proof, and not before."""
    async with a_desk(name) as desk:
        desk.strike(2, Fault.DROP_REQUEST)
        result = await desk.execute()
        assert isinstance(result, Executed)
        assert desk.positions() == (D(1), D(-1))
        assert len(desk.accepted()) == 2
        sent = [n for n, (m, _, path) in enumerate(desk.server.requests) if (m, path.partition("?")[0]) in CREATES]
        assert len(sent) == 3
        looks = [
            path for m, _, path in desk.server.requests[sent[1] + 1 : sent[2]] if m == "GET" and "order" in path.lower()
        ]
        assert len(looks) >= 2


@pytest.mark.row("S4-11", "S4-15", "D-07")
@pytest.mark.guarantee(9)
@pytest.mark.parametrize("name", VENUES)
async def test_t3_a_hedge_that_is_proven_absent_and_not_to_be_tried_again_unwinds_the_other_leg(name):
    async with a_desk(name, attempts_max=1) as desk:
        desk.strike(2, Fault.DROP_REQUEST)
        assert isinstance(await desk.execute(), Unwound)
        assert desk.owned() == (0, 0)
        assert [entry.symbol for entry in desk.accepted()] == [desk.a, desk.a]


@pytest.mark.row("S4-12", "S4-20")
@pytest.mark.guarantee(1)
@pytest.mark.parametrize("fault", [Fault.DROP_REPLY, Fault.SERVER_ERROR_ACCEPTED, Fault.TRUNCATED_BODY])
@pytest.mark.parametrize("name", VENUES)
async def test_t4_a_ghost_is_verified_and_adopted_with_two_creates_in_all(name, fault):
    async with a_desk(name) as desk:
        desk.strike(2, fault)
        result = await desk.execute()
        assert isinstance(result, Executed)
        assert desk.positions() == (D(1), D(-1))
        assert (desk.creates(), len(desk.accepted())) == (2, 2)


@pytest.mark.row("S4-23", "S4-24", "S4-25", "D-01")
@pytest.mark.guarantee(6)
@pytest.mark.parametrize("name", VENUES)
async def test_t5_of_five_concurrent_equal_trades_one_runs_and_four_are_told_at_once(name):
    async with a_desk(name) as desk:
        desk.adapter.latency_s = 0.1
        told: list[float] = []

        async def one() -> Any:
            began = time.monotonic()
            result = await desk.execute()
            if isinstance(result, Deduplicated):
                told.append(time.monotonic() - began)
            return result

        results = await asyncio.gather(*(one() for _ in range(5)))
        assert sorted(type(r).__name__ for r in results) == ["Deduplicated"] * 4 + ["Executed"]
        assert max(told) < 0.1  # before even the first order was answered
        assert (desk.creates(), len(desk.accepted())) == (2, 2)
        assert desk.positions() == (D(1), D(-1))


@pytest.mark.row("S4-26", "S4-27", "S4-32", "D-03")
@pytest.mark.guarantee(6)
@pytest.mark.parametrize("name", VENUES)
async def test_t6_five_equal_trades_one_after_another_all_run(name):
    async with a_desk(name) as desk:
        for _ in range(5):
            assert isinstance(await desk.execute(), Executed)
        assert (desk.creates(), len(desk.accepted())) == (10, 10)
        assert desk.positions() == (D(5), D(-5))
        for _ in range(5):  # unless it is one signal
            await desk.execute(desk.plan(key="signal"))
        assert len(desk.accepted()) == 12


@pytest.mark.row("S4-28")
@pytest.mark.guarantee(6, 9)
@pytest.mark.parametrize("name", VENUES)
async def test_t7_a_partial_fill_amid_three_concurrent_equal_trades_is_hedged_once(name):
    async with a_desk(name) as desk:
        desk.adapter.latency_s = 0.05
        desk.fills.add(desk.a, "0.6")
        results = await asyncio.gather(*(desk.execute() for _ in range(3)))
        assert sorted(type(r).__name__ for r in results) == ["Deduplicated", "Deduplicated", "Executed"]
        assert (desk.creates(), len(desk.accepted())) == (2, 2)
        assert desk.positions() == (D("0.6"), D("-0.6"))


@pytest.mark.row("S4-34", "D-02")
@pytest.mark.guarantee(6)
async def test_unrelated_pairs_do_not_wait_for_each_other():
    bases = [f"C{n}" for n in range(12)]
    async with a_desk("bybit", markets=[linear(base) for base in bases]) as desk:
        symbols = [f"{base}/USDT:USDT" for base in bases]
        plans = [
            HedgePlan(legs=[HedgeLeg(symbol=a, side="buy", quantity=1), HedgeLeg(symbol=b, side="sell", quantity=1)])
            for a, b in zip(symbols[::2], symbols[1::2], strict=True)
        ]
        desk.adapter.latency_s = LATENCY_S
        began = time.monotonic()
        assert isinstance(await desk.execute(plans[0]), Executed)
        one_s = time.monotonic() - began
        began = time.monotonic()
        results = await asyncio.gather(*(desk.execute(plan) for plan in plans[1:]))
        assert time.monotonic() - began <= 1.5 * one_s
        assert [type(r) for r in results] == [Executed] * 5
        assert len(desk.accepted()) == 12
