"""The adapter around ccxt and around anything of its shape: preparing, ids, parsing, secrets."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs
import ccxt.async_support as ccxt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.errors import InvalidInput, TradingDenied
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.order import OrderRequest, OrderStatus, Side
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.venue import Dedup, Expiry, IdRule, View
from execsafe.ports import OrderRef
from execsafe.venues._parsing import instrument, number, report
from execsafe.venues._shapes import AnswerUnusable
from execsafe.venues.ccxt_adapter import CcxtAdapter
from execsafe.venues.profiles import PROFILES, UNKNOWN, profile_for
from venues.offline import SPOT, SWAP, VENUES, Sent, Wire, make

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """ccxt's asynchronous clients run on asyncio only."""
    return "asyncio"


def intent(symbol: str = SPOT, **changes: Any) -> Intent:
    values = {"key": "k", "symbol": symbol, "side": "sell", "quantity": "2", "limit_price": "50000"}
    return Intent(**{**values, **changes})


# --- profiles --------------------------------------------------------------------------------------------------------


def test_the_thirteen_venues_have_a_row_and_others_get_the_weakest() -> None:
    """Facts are not passed on to relatives: their parameters differ."""
    assert set(PROFILES) == set(VENUES)
    for name in ("krakenfutures", "binancecoinm", "kucoinfutures", "nobody"):
        assert profile_for(name) == UNKNOWN
    assert (UNKNOWN.dedup, UNKNOWN.expiry, UNKNOWN.client_order_id) == (Dedup.NONE, Expiry.NONE, IdRule())


def test_an_unknown_exchange_gets_the_views_that_it_says_it_has() -> None:
    """And only those: a view that cannot be read can prove nothing."""

    class Some:
        id = "somewhere"

        def __init__(self) -> None:
            self.has = {"fetchOpenOrders": True, "fetchClosedOrders": False, "fetchOrders": "emulated"}

    assert [(x.view, x.method, x.scan) for x in profile_for(Some()).lookups] == [
        (View.OPEN_ORDERS, "fetch_open_orders", True)
    ]


def test_a_profile_is_adjusted_with_evolve_and_plain_strings() -> None:
    """Users state facts of their own without importing the enums."""
    mine = attrs.evolve(profile_for("binance"), expiry="none", dedup="forever", read_lag_s=5, clock_skew_s=0.5)
    assert (mine.expiry, mine.dedup, mine.read_lag_s) == (Expiry.NONE, Dedup.FOREVER, 5)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_every_row_is_complete(profile: Any) -> None:
    """An expiry names its parameter, there is a view, and ids in look-ups are filled in, not made up."""
    assert (profile.expiry_param is None) == (profile.expiry is Expiry.NONE)
    assert profile.lookups
    assert profile.notes
    for lookup in profile.lookups:
        assert lookup.scan or "{client_order_id}" in lookup.params.text


@pytest.mark.parametrize(
    ("detail", "fees"),
    [
        ({"BTC": "0.0001", "MNT": "0.5"}, [("BTC", 0.0001), ("MNT", 0.5)]),
        ({"MNT": "-0.5", "BTC": "0.0001", "X": ""}, [("MNT", -0.5), ("BTC", 0.0001)]),
        ({"BTC": "0.0001"}, [("BTC", 0.0001)]),
        ({}, []),
    ],
)
@pytest.mark.parametrize("name", ["bybit", "bybiteu"])
async def test_an_order_shows_its_fees_in_every_currency(name: str, detail: Any, fees: Any) -> None:
    """bybit charges in a second currency when the first runs out; ccxt keeps one."""
    exchange = make(name)
    raw = {"orderId": "7", "symbol": "BTCUSDT", "side": "Buy", "qty": "1", "cumExecQty": "1", "cumFeeDetail": detail}
    order = exchange.parse_order(raw, exchange.markets[SPOT])
    shown = CcxtAdapter(exchange).parse_report(order).raw
    assert shown is not None
    assert [(fee["currency"], fee["cost"]) for fee in shown["fees"]] == fees
    assert (shown["fee"] is not None) == (len(fees) == 1)
    await exchange.close()


# --- preparing -------------------------------------------------------------------------------------------------------


async def test_prepare_loads_markets_once_and_reads_the_trading_rules() -> None:
    """Steps, limits and contract size; what the venue does not state does not exist."""
    exchange = make("bybit")
    adapter = CcxtAdapter(exchange)
    wire = Wire(exchange, lambda s: {"retCode": 0, "result": {"unified": 1, "uta": 1, "unifiedMarginStatus": 6}})
    assert adapter.prepared(SWAP) is None
    rules = await adapter.prepare(SWAP)
    assert (rules.step_size, rules.tick_size) == (Decimal("0.00001"), Decimal("0.01"))
    assert (rules.min_notional, rules.max_quantity, rules.min_price) == (Decimal(5), Decimal(9000), None)
    asked = len(wire.sent)
    assert asked == 2  # the account's mode
    assert await adapter.prepare(SWAP) is rules
    assert adapter.prepared(SWAP) is rules
    assert len(wire.sent) == asked
    await exchange.close()


async def test_an_unlisted_symbol_is_answered_with_near_matches() -> None:
    """The caller's mistake, told at once."""
    adapter = CcxtAdapter(make("binance"))
    with pytest.raises(InvalidInput, match="does not list 'BTC/USDX'; near: BTC/USDT"):
        await adapter.prepare("BTC/USDX")


@pytest.mark.parametrize("name", ["gate", "bitget"])
async def test_an_account_mode_that_cannot_be_read_is_not_guessed(name: str) -> None:
    """ccxt swallows the failure and takes the account for a classic one, whose orders go elsewhere."""
    exchange = make(name)
    adapter = CcxtAdapter(exchange)
    Wire(exchange, lambda s: ccxt.RequestTimeout("lost"))
    with pytest.raises(ccxt.RequestTimeout):
        await adapter.prepare(SPOT)
    assert exchange.options.get("unifiedAccount") is None
    assert exchange.options.get("uta") is None
    with pytest.raises(ccxt.RequestTimeout):  # and the next prepare asks again
        await adapter.prepare(SPOT)
    await exchange.close()


@pytest.mark.parametrize(("mode", "unified"), [(1, False), (2, True)])
async def test_gates_account_mode_is_read_like_ccxt_reads_it(mode: int, unified: bool) -> None:
    """Mode 2 is the unified account."""
    exchange = make("gate")
    Wire(exchange, lambda s: {"key": {"mode": mode}})
    await CcxtAdapter(exchange).prepare(SPOT)
    assert exchange.options["unifiedAccount"] is unified
    await exchange.close()


@pytest.mark.parametrize(
    ("market", "mode", "expected"),
    [
        ({"precision": {"amount": 3, "price": 2}}, 2, {"step_size": Decimal("0.001"), "tick_size": Decimal("0.01")}),
        ({"precision": {"amount": 0.5, "price": None}}, 4, {"step_size": Decimal("0.5"), "tick_size": None}),
        ({"precision": {"amount": 3, "price": 5}}, 3, {"step_size": None, "tick_size": None}),
        ({"limits": {"price": {}, "amount": {"min": 0}}}, 4, {"min_price": None, "min_quantity": None}),
        ({"limits": None, "precision": None, "contractSize": None}, 4, {"contract_size": Decimal(1)}),
        ({"contractSize": 0.01, "precision": {"amount": 1e-8}}, 4, {"contract_size": Decimal("0.01")}),
    ],
)
def test_trading_rules_in_every_shape_that_ccxt_has(market: Any, mode: int, expected: dict[str, Any]) -> None:
    """Step sizes, decimal places, significant digits (no grid), limits missing or None."""
    rules = instrument(SPOT, market, mode)
    assert {name: getattr(rules, name) for name in expected} == expected


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VENUES)
def test_client_order_ids_fit_the_venue_and_never_change(name: str) -> None:
    """A pure function of account, key, leg and generation, in the venue's alphabet and length."""
    adapter = CcxtAdapter(make(name))
    symbol = next(iter(adapter.exchange.markets))
    first = adapter.client_order_id(intent(symbol), 0)
    assert first == CcxtAdapter(make(name)).client_order_id(intent(symbol, quantity="1"), 0)
    assert first != adapter.client_order_id(intent(symbol), 1)
    assert first != adapter.client_order_id(intent(symbol, leg="b"), 0)
    if name == "hyperliquid":
        assert len(first) == 34
        assert int(first, 16) >= 0
    else:
        assert first.isalnum()
        assert first.islower()
        assert len(first) <= min(18, adapter.profile.client_order_id.length_max)
        assert not first.startswith("t")


def test_swaps_of_htx_take_integer_ids() -> None:
    """A text would be lost there."""
    found = CcxtAdapter(make("htx")).client_order_id(intent(SWAP), 0)
    assert 1 <= int(found) < 2**63


# --- parsing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "status", "filled"),
    [
        ({"status": "closed", "filled": 0.4, "amount": 1.0, "info": {"cumExecQty": "0.4"}}, "closed", "0.4"),
        ({"status": "closed", "filled": 1.0, "amount": 1.0, "info": {"ordId": "1"}}, "closed", None),  # made up
        ({"status": "closed", "filled": 1.0, "amount": 1.0, "info": {"accFillSz": "1"}}, "closed", "1.0"),
        ({"status": "open", "filled": 0.0, "amount": 1.0, "info": {"orderId": 1}}, "open", None),  # made up
        ({"status": "open", "filled": 0.0, "amount": 1.0, "info": {"executedQty": "0"}}, "open", "0.0"),
        ({"status": "closed", "filled": 1.0, "amount": 1.0, "info": {}}, "closed", "1.0"),
        ({"status": "closed", "filled": 1.0, "amount": 1.0, "info": "<html>"}, "closed", None),
        ({"status": "rejected", "filled": 0.5, "info": {"cumExecQty": "0.5"}}, "canceled", "0.5"),
        ({"status": "rejected", "filled": 0, "info": {"cumExecQty": "0"}}, "rejected", "0"),
        ({"status": "canceling", "info": {}}, "open", None),
        ({"status": "expired_in_match", "info": {}}, "expired", None),
        ({"status": "waitingForTrigger"}, "unknown", None),
        ({"status": "ok"}, "unknown", None),
        ({"status": None, "filled": None}, "unknown", None),
        ({"status": 3, "filled": "nan"}, "unknown", None),
        ({"status": "open", "filled": -1}, "open", None),
    ],
)
def test_status_and_fills_are_what_the_venue_said(order: dict[str, Any], status: str, filled: str | None) -> None:
    """Unknown statuses are UNKNOWN; a fill that the client made up is dropped; a rejected rest is a cancel."""
    found = report(order, client_order_id=None)
    assert found.status is OrderStatus(status)
    assert found.filled_quantity == (None if filled is None else Decimal(filled))


def test_fees_and_executions() -> None:
    """Rebates are negative, incomplete fees are left out, an execution counts once."""
    trade = {"id": "t1", "amount": 0.1, "price": 5, "timestamp": 7, "fee": {"cost": -0.001, "currency": "BNB"}}
    junk = [{"id": None, "amount": 1, "price": 1}, {"id": "t2", "amount": 0, "price": 1}, "x", None]
    found = report({"trades": [trade, trade, *junk]}, client_order_id=None)
    assert [(f.trade_id, f.quantity, f.filled_at_ms) for f in found.fills] == [("t1", Decimal("0.1"), 7)]
    assert found.fills[0].fees[0].cost == Decimal("-0.001")
    assert (
        report({"trades": [{**trade, "fee": {"cost": None, "currency": None}}]}, client_order_id=None).fills[0].fees
        == ()
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
AMOUNTS = ("amount", "filled", "average", "price", "fee", "fees", "trades")
ORDER_FIELDS = st.sampled_from(("id", "clientOrderId", "symbol", "side", "status", "info", "timestamp", *AMOUNTS))


@given(st.dictionaries(ORDER_FIELDS, JSON))
def test_no_order_structure_makes_parsing_raise(order: dict[str, Any]) -> None:
    """A venue's surprise is None in the report, never an exception out of the order's path."""
    found = report(order, client_order_id=None)
    for value in (found.filled_quantity, found.quantity, found.average_price):
        assert value is None or (value.is_finite() and value >= 0)


@given(st.floats(min_value=1e-12, max_value=1e15))
def test_floats_are_taken_by_their_repr(value: float) -> None:
    """0.1 is 0.1, in scientific notation too."""
    assert number(value) == Decimal(repr(value)) == number(repr(value))


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), "1e999", "x", "", None, [], "9" * 100, -1, "1e40"])
def test_what_is_no_sensible_number_is_none(value: Any) -> None:
    """Also numbers far beyond any market."""
    assert number(value) is None


# --- objects of ccxt's shape -----------------------------------------------------------------------------------------


class Minimal:
    """The least that is an exchange."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answer: Any = {"id": "1", "status": "closed", "filled": 2.0, "amount": 2.0, "average": 50000.0}

    async def create_order(self, *args: Any) -> Any:
        self.calls.append(args)
        return self.answer


def request(adapter: CcxtAdapter, **changes: Any) -> OrderRequest:
    values = {
        "symbol": SPOT,
        "side": Side.SELL,
        "type": "limit",
        "quantity": Decimal(2),
        "limit_price": Decimal(50000),
        "client_order_id": adapter.client_order_id(intent(), 0),
    }
    return OrderRequest(**{**values, **changes})


async def test_an_object_without_markets_or_options_works() -> None:
    """Permissive rules, the unified id, and its own word about fills: there is no client that could make them up."""
    exchange = Minimal()
    adapter = CcxtAdapter(exchange)
    assert await adapter.prepare(SPOT) == Instrument(symbol=SPOT)
    adapter.check(intent(trigger_price="40000", reduce_only=True))
    found = await adapter.create_order(request(adapter, reduce_only=True))
    assert (found.status, found.filled_quantity) == (OrderStatus.CLOSED, Decimal(2))
    ours = adapter.client_order_id(intent(), 0)
    assert exchange.calls == [
        (SPOT, "limit", "sell", 2.0, 50000.0, {"clientOrderId": ours, "reduceOnly": True}),
    ]


async def test_a_view_that_the_object_lacks_is_unreadable_not_empty() -> None:
    """A missing method is a failed read."""
    adapter = CcxtAdapter(Minimal(), profile=UNKNOWN)
    with pytest.raises(AttributeError) as raised:
        await adapter.look_up(UNKNOWN.lookups[0], OrderRef(symbol=SPOT, client_order_id="x"))
    assert adapter.judge(raised.value, Operation.LOOK_UP).meaning is Meaning.UNKNOWN


async def test_a_user_declared_expiry_parameter_reaches_the_exchange() -> None:
    """A venue of one's own states its deadline parameter in the profile; without nonce() the adapter's clock counts."""

    class Fixed:
        def now_ms(self) -> int:
            return 1_000_000

    exchange = Minimal()
    mine = attrs.evolve(UNKNOWN, expiry="absolute", expiry_param="goodUntil")
    adapter = CcxtAdapter(exchange, profile=mine, clock=Fixed())
    await adapter.create_order(request(adapter, expires_in_ms=500))
    assert exchange.calls[0][5]["goodUntil"] == 1_000_500


async def test_a_passed_deadline_is_not_sent() -> None:
    """It could only be refused, or, with clocks apart, accepted too late."""
    exchange = Minimal()
    adapter = CcxtAdapter(exchange)
    with pytest.raises(TradingDenied) as raised:
        await adapter.create_order(request(adapter, expires_in_ms=0))
    assert adapter.judge(raised.value, Operation.CREATE).meaning is Meaning.REJECTED
    assert exchange.calls == []


async def test_hooks_are_installed_once_and_do_not_touch_other_requests() -> None:
    """Several adapters share an exchange; plain reads see neither headers nor forbidden retries."""
    exchange = make("okx")
    exchange.options["maxRetriesOnFailure"] = 2
    CcxtAdapter(exchange)
    hooked = exchange.fetch2
    CcxtAdapter(exchange)
    assert exchange.fetch2 is hooked
    wire = Wire(exchange, lambda s: ccxt.RequestTimeout("lost"))
    with pytest.raises(ccxt.RequestTimeout):
        await exchange.fetch_open_orders(SPOT)
    assert len(wire.sent) == 3
    assert "expTime" not in wire.sent[0].headers
    await exchange.close()


# --- subclassing -----------------------------------------------------------------------------------------------------


async def test_a_subclass_changes_one_thing_and_keeps_the_rest() -> None:
    """Ids, parameters and classification are small methods of their own."""

    class Mine(CcxtAdapter):
        def client_order_id(self, intent: Intent, generation: int) -> str:
            return f"mine{generation}"

        def order_params(self, request: OrderRequest) -> dict[str, Any]:
            return {**super().order_params(request), "tag": "t"}

    exchange = Minimal()
    adapter = Mine(exchange)
    await adapter.create_order(request(adapter))
    assert exchange.calls[0][5] == {"clientOrderId": "mine0", "tag": "t"}


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VENUES)
async def test_g16_nothing_of_the_keys_is_in_what_the_adapter_says(name: str) -> None:
    """G16: errors with signed URLs, repr and redacted text hold no credential."""
    exchange = make(name)
    adapter = CcxtAdapter(exchange)

    def leak(sent: Sent) -> Any:
        return ccxt.RequestTimeout(f"{name} {sent.everything}")

    Wire(exchange, leak)
    exchange.options.update(enableUnifiedAccount=True, enableUnifiedMargin=False, uta=False, unifiedAccount=False)
    symbol = next(iter(exchange.markets))
    with pytest.raises(Exception) as raised:  # noqa: PT011
        await adapter.create_order(request(adapter, symbol=symbol))
    judged = adapter.judge(raised.value, Operation.CREATE)
    said = f"{judged} {adapter!r} {adapter.redact(str(raised.value))}"
    for secret in adapter.secrets():
        assert secret not in said
    assert "CANARY" not in said
    await exchange.close()


async def test_an_unusable_answer_is_unknown_to_every_table() -> None:
    """It has no rule and no ccxt ancestor."""
    for name in VENUES:
        assert CcxtAdapter(make(name)).judge(AnswerUnusable("x"), Operation.CREATE).meaning is Meaning.UNKNOWN
