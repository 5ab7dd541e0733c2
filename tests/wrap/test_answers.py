"""After the venue has accepted, nothing in its answer can make a call fail as if it had not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import execsafe
from execsafe.errors import ExecsafeError, OrderRejected, OutcomeUnknown
from execsafe.model.intent import IntentState
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import run_simulated

pytestmark = pytest.mark.guarantee(4)


class Exchange:
    """An exchange of ccxt's shape whose answer to a create is *answer* on top of a sound one."""

    id = "some-venue"

    def __init__(self, answer) -> None:
        self.answer, self.orders, self.options, self.markets = answer, [], {}, {}

    async def create_order(self, symbol, type, side, amount, price=None, params=None):  # noqa: A002, PLR0917
        order = {"id": "1", "clientOrderId": params["clientOrderId"], "symbol": symbol, "type": type, "side": side}
        order |= {"amount": amount, "price": price, "filled": 0.0, "status": "open", "timestamp": 1_700_000_000_000}
        self.orders.append(order)
        return order | self.answer

    async def fetch_open_orders(self, symbol=None, since=None, limit=None, params=None):
        return list(self.orders)

    async def cancel_order(self, id, symbol=None, params=None):  # noqa: A002
        raise ConnectionError("nobody hears")

    async def close(self):
        pass


def buy(answer, *, cancel=False):
    """The order as told, or the error; the state in the journal; how many orders there are."""
    ends = []

    async def run():
        exchange = Exchange(answer)
        quick = {"request_timeout_s": 1.0, "look_interval_s": 0.5, "patience_s": 2.0}
        async with execsafe.wrap(exchange, store="memory://", clock=VirtualClock(), **quick) as guarded:
            try:
                end = await guarded.create_order("BTC/USDT", "limit", "buy", 1, 60_000, {"intentKey": "k"})
                if cancel:
                    end = await guarded.cancel_order(end["id"], "BTC/USDT")
            except ExecsafeError as error:
                end = error
            record = await guarded.registry.find("k")
            ends.append((end, record.state, len(exchange.orders)))

    run_simulated(run)
    return ends[0]


_odd = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_SAYS_NOTHING_OF_THE_END = (
    "timestamp datetime lastTradeTimestamp lastUpdateTimestamp type side timeInForce postOnly reduceOnly price "
    "triggerPrice stopPrice average cost fee fees trades info symbol amount remaining"
)
_INNOCENT, _ALL = _SAYS_NOTHING_OF_THE_END.split(), [*_SAYS_NOTHING_OF_THE_END.split(), "id", "status", "filled"]


@given(answer=st.dictionaries(st.sampled_from(_INNOCENT), _odd, max_size=6))
@settings(max_examples=300, deadline=None)
def test_g4_whatever_else_an_answer_holds_the_order_is_live_and_returned(answer):
    """Absent, of the wrong type, not a number, huge or nested."""
    order, state, count = buy({name: value for name, value in answer.items() if name != "trades"})
    assert isinstance(order, dict), order
    assert (order["id"], state, count) == ("1", IntentState.LIVE, 1)
    assert type(order["timestamp"]) is int
    assert order["datetime"].endswith("Z")


@given(answer=st.dictionaries(st.sampled_from(_ALL), _odd))
@settings(max_examples=300, deadline=None)
def test_g4_no_answer_whatever_raises_a_bare_error_or_has_the_order_fail(answer):
    order, state, count = buy(answer)
    assert isinstance(order, (dict, ExecsafeError))
    assert count == 1
    assert state not in {IntentState.FAILED_FINAL, IntentState.RECORDED, IntentState.SENDING}


@pytest.mark.parametrize("stated", [1_700_000_000_000.5, "2026-01-01T00:00:00Z", 10**18, -5, math.nan, True, [], {}])
def test_a_time_that_is_none_is_replaced_by_ours(stated):
    order, state, _ = buy({"timestamp": stated})
    assert (order["status"], state) == ("open", IntentState.LIVE)
    assert type(order["timestamp"]) is int


def test_an_instant_that_the_venue_states_is_told():
    order, _, _ = buy({"timestamp": 1_500_000_000_123})
    assert (order["timestamp"], order["datetime"]) == (1_500_000_000_123, "2017-07-14T02:40:00.123Z")


def test_a_rejection_without_a_reason_says_so():
    error, state, _ = buy({"status": "rejected"})
    assert state is IntentState.REJECTED
    assert isinstance(error, OrderRejected)
    assert "gives no reason" in str(error)


def test_a_cancel_that_cannot_be_confirmed_says_that_the_order_rests():
    """It is known to be there: what is unknown is its end, and the same key again would be no remedy."""
    error, state, _ = buy({}, cancel=True)
    assert isinstance(error, OutcomeUnknown)
    assert state is IntentState.LIVE
    assert "rests at the venue" in str(error)
    assert "intentKey" not in str(error)


def test_an_order_without_any_id_of_the_venue_is_returned_under_ours():
    order, state, _ = buy({"id": ""})
    assert (order["status"], state) == ("open", IntentState.LIVE)
    assert order["clientOrderId"]
