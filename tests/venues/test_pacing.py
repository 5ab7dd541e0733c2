"""Under a ban: no entry and no look goes out before the venue's time, exits and cancels are tried now and then."""

from __future__ import annotations

from typing import Any

import anyio
import attrs
import ccxt
import pytest

import execsafe
from execsafe.errors import VenueUnavailable
from execsafe.model.intent import Intent, IntentState
from execsafe.ports import OrderRef
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from execsafe.venues.ccxt_adapter import CcxtAdapter

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


@attrs.define(slots=False)
class Banning:
    """A client of ccxt's shape at a venue that turns requests away until ``banned_until_ms``, and counts them."""

    clock: VirtualClock
    retry_after: str | None = None
    banned_until_ms: int = 0
    loses_creates: bool = False
    asked: list[tuple[str, int]] = attrs.field(factory=list)
    id: str = "somewhere"
    orders: dict[str, dict[str, Any]] = attrs.field(factory=dict)

    @property
    def last_response_headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": self.retry_after}

    def _ask(self, what: str) -> None:
        self.asked.append((what, self.clock.now_ms()))
        if self.clock.now_ms() < self.banned_until_ms:
            raise ccxt.DDoSProtection("somewhere GET https://api.x/y 418 I'm a teapot {}")

    async def create_order(self, symbol, type, side, amount, price=None, params=None):  # noqa: A002, PLR0917 - ccxt's
        self._ask("create")
        order = {"id": str(len(self.asked)), "clientOrderId": params["clientOrderId"], "symbol": symbol, "side": side}
        self.orders[order["id"]] = {**order, "amount": amount, "filled": 0.0, "status": "open", "info": {}}
        if self.loses_creates:
            self.banned_until_ms = self.clock.now_ms() + 60_000
            raise ccxt.RequestTimeout("lost")
        return self.orders[order["id"]]

    async def cancel_order(self, id, symbol=None, params=None):  # noqa: A002 - ccxt's name
        self._ask("cancel")

    async def fetch_open_orders(self, symbol=None, since=None, limit=None, params=None):
        self._ask("look")
        return list(self.orders.values())

    fetch_closed_orders = fetch_open_orders

    async def fetch_balance(self, params=None):
        self._ask("balance")
        return {"USDT": {"free": 1.0, "used": 0.0, "total": 1.0}}

    async def fetch_tickers(self, symbols=None, params=None):
        self._ask("price")
        return {"BTC/USDT": {"symbol": "BTC/USDT", "bid": 1.0, "ask": 2.0, "last": 1.5}}

    def times(self, what: str) -> list[int]:
        return [at_ms for asked, at_ms in self.asked if asked == what]


def entry(key: str, **changes) -> Intent:
    base = {"key": key, "symbol": "BTC/USDT", "side": "buy", "quantity": "1", "limit_price": "1"}
    return Intent(**{**base, **changes})


async def gateway_of(exchange: Banning, stack_store) -> execsafe.OrderGateway:
    adapter = CcxtAdapter(exchange, clock=exchange.clock)
    return execsafe.OrderGateway(adapter, execsafe.IntentRegistry(stack_store, clock=exchange.clock))


@pytest.mark.guarantee(4)
@pytest.mark.parametrize("retry_after", ["45", None])
async def test_g4_a_lost_order_is_looked_for_when_the_ban_is_over_and_not_before(retry_after):
    """FI-52: one look tells of the ban; the next comes when the venue said, or after pauses that double."""
    exchange = Banning(VirtualClock(), retry_after=retry_after, loses_creates=True)
    async with execsafe.open_store("memory://") as store:
        gateway = await gateway_of(exchange, store)
        began_ms = exchange.clock.now_ms()
        outcome = await gateway.submit(entry("a"))
        looks = [(at_ms - began_ms) // 1000 for at_ms in exchange.times("look")]
        assert len(looks) <= (5 if retry_after else 9), looks
        if retry_after:
            assert not [s for s in looks if 1 < s < 45]
        assert isinstance(outcome, (execsafe.Accepted, execsafe.Unknown))
        await anyio.sleep(120)
        await gateway.recover()
        [record] = await gateway.registry.open_records()
        assert record.state is IntentState.LIVE  # found, and sent once
        assert len(exchange.times("create")) == 1


async def test_an_entry_under_a_ban_is_refused_before_anything_is_journalled_or_sent():
    """With the instant until when; afterwards the same key goes out."""
    exchange = Banning(VirtualClock(), retry_after="30")
    async with execsafe.open_store("memory://") as store:
        gateway = await gateway_of(exchange, store)
        exchange.banned_until_ms = exchange.clock.now_ms() + 30_000
        await gateway.submit(entry("first"))  # turned away: that is how the ban is known
        refused_at_ms = exchange.clock.now_ms()
        with pytest.raises(VenueUnavailable, match="nothing was sent") as refused:
            await gateway.submit(entry("second"))
        assert refused.value.context["not_before_ms"] == gateway.adapter.not_before_ms()
        assert refused_at_ms < refused.value.context["not_before_ms"] <= refused_at_ms + 30_000
        assert await gateway.registry.find("second") is None
        assert len(exchange.times("create")) == 1
        await anyio.sleep(31)
        assert isinstance(await gateway.submit(entry("second")), execsafe.Accepted)
        assert gateway.adapter.not_before_ms() is None


async def test_exits_and_cancels_are_tried_under_a_ban_but_no_more_often_than_the_pauses():
    """Whoever must get out asks on, and does not make the ban longer than it is."""
    exchange = Banning(VirtualClock(), retry_after="600")
    adapter = CcxtAdapter(exchange, clock=exchange.clock)
    exchange.banned_until_ms = exchange.clock.now_ms() + 600_000
    ref = OrderRef(symbol="BTC/USDT", client_order_id=None, venue_order_id="7")
    began_ms = exchange.clock.now_ms()
    for _ in range(300):
        with pytest.raises((VenueUnavailable, ccxt.DDoSProtection)):
            await adapter.cancel_order(ref)
        await anyio.sleep(1)
    assert [(at_ms - began_ms) // 1000 for at_ms in exchange.times("cancel")] == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]
    with pytest.raises(VenueUnavailable):
        adapter.check(entry("in"))
    await anyio.sleep(10)
    adapter.check(entry("out", side="sell", reduce_only=True))
    await anyio.sleep(600)
    await adapter.cancel_order(ref)
    adapter.check(entry("in"))


async def test_readings_share_the_pauses_whoever_asks_first_and_are_unreadable_in_between():
    """Pollers would make a ban longer; what an exit needs is tried again all the same, once per pause."""
    exchange = Banning(VirtualClock(), retry_after="600")
    adapter = CcxtAdapter(exchange, clock=exchange.clock)
    exchange.banned_until_ms = exchange.clock.now_ms() + 600_000
    began_ms = exchange.clock.now_ms()
    for _ in range(100):
        for read in (adapter.fetch_balances, lambda: adapter.fetch_quotes(["BTC/USDT"])):
            with pytest.raises((VenueUnavailable, ccxt.DDoSProtection)):
                await read()
        await anyio.sleep(1)
    asked = sorted((at_ms - began_ms) // 1000 for at_ms in exchange.times("balance") + exchange.times("price"))
    assert asked == [0, 1, 3, 7, 15, 31, 63]
    await anyio.sleep(600)
    assert (await adapter.fetch_balances())["USDT"].total == 1
    assert (await adapter.fetch_quotes(["BTC/USDT"]))["BTC/USDT"].bid == 1
