"""Bad input is refused at every public door: by a typed error that says what to do, with nothing sent or journalled."""

from __future__ import annotations

import math
from decimal import Decimal

import attrs
import ccxt
import ccxt.async_support
import pytest

import execsafe
from execsafe.errors import ExecsafeError, InvalidInput, InvalidOrder
from execsafe.intents import IntentRegistry
from execsafe.stores import open_store
from wrap.rig import SYMBOL, a_rig, at_both_venues, buy, journal_of, outcome

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(12)]

NAN, INF, HUGE = math.nan, math.inf, "x" * 1_000_000
NO_NUMBERS = [
    NAN, INF, -INF, True, False, "", "abc", "1e-3", "1,5", " 1", "1 ", "1\n", "0x10", "1_000", "\u0663", HUGE, b"1",
    [], {}, object(), 1j, Decimal("NaN"), Decimal("Infinity"), Decimal("1e-40"), 1e40, 10**40,
]  # fmt: skip
NOT_POSITIVE = [0, -1, -0.01, "0", "-0", "-1", Decimal("-0.1")]
NO_TEXTS = [
    True, 0, 1.5, b"k", "", " k", "k ", "a\nb", "a\x00b", "a\x1b[31mb", "a\u202eb", "a\u2028b", "a\ud800b", HUGE,
    [], {}, object(),
]  # fmt: skip
NO_FLAGS = [0, 1, 1.5, "", "false", "True", None, [], object()]
MESSAGE_MAX = 300


def says_what_to_do(error):
    assert isinstance(error, ExecsafeError), repr(error)[:300]
    assert 10 <= len(str(error)) <= MESSAGE_MAX, str(error)[:1_000]
    assert str(error).isprintable(), ascii(error)


def refuses(door, *values):
    """Every value is refused; a lambda in a table hides nothing."""
    for value in values:
        try:
            result = door(value)
        except Exception as error:
            says_what_to_do(error)
        else:
            raise AssertionError(f"{ascii(value)[:60]} was accepted: {ascii(result)[:200]}")


# --- the calls of a guarded exchange ---------------------------------------------------------------------------------


def bad_creates(symbol):
    """Positional arguments and parameters of create_order, each with one thing wrong."""
    for amount in [*NO_NUMBERS, *NOT_POSITIVE, None, 1e-9, 1e12]:
        yield (symbol, "limit", "buy", amount, 40_000), {}
    for price in [*NO_NUMBERS, *NOT_POSITIVE, None, 1e-9, 1e12]:
        yield (symbol, "limit", "buy", 0.01, price), {}
    for text in [*NO_TEXTS, None]:
        yield (text, "limit", "buy", 0.01, 40_000), {}
        yield (symbol, text, "buy", 0.01, 40_000), {}
        yield (symbol, "limit", text, 0.01, 40_000), {}
        yield (symbol, "limit", "buy", 0.01, 40_000), {"intentKey": text}
    for text in NO_TEXTS:
        yield (symbol, "limit", "buy", 0.01, 40_000), {"timeInForce": text}
        yield (symbol, "limit", "buy", 0.01, 40_000), text or [1]
    for flag in NO_FLAGS:
        for name in ("postOnly", "reduceOnly", "join"):
            yield (symbol, "limit", "buy", 0.01, 40_000), {name: flag}
    for number in [*NO_NUMBERS, *NOT_POSITIVE, None]:
        for name in ("triggerPrice", "stopPrice", "stopLossPrice", "takeProfitPrice"):
            yield (symbol, "limit", "sell", 0.01, 40_000), {name: number}
    yield (symbol, "limit", "sell", 0.01, 40_000), {"triggerPrice": 1e-9}
    yield (symbol, "limit", "sell", 0.01, 40_000), {"triggerPrice": 50_000, "stopPrice": 50_000}
    for unknown in ("NO/SUCH", "btc/usdt", "BTCUSDT", "BTC/USDT:USDT:X", "../../etc/passwd", "'; DROP TABLE"):
        yield (unknown, "limit", "buy", 0.01, 40_000), {}
    yield (symbol, "limit", "hold", 0.01, 40_000), {}
    yield (symbol, "teleport", "buy", 0.01, 40_000), {}
    yield (symbol, "limit", "buy", 0.0001, 40_000), {}  # 4 USDT
    for params in (
        {"apiKey": "x"}, {"clientOrderId": "mine"}, {"quoteOrderQty": 5}, {"maxRetriesOnFailure": 3}, {"a": object()},
        {1: 2}, {"": 1}, {"a\n": 1}, {"a": NAN}, {"a": HUGE}, {HUGE: 1}, {"a": "\ud800"}, {"a": [[[[[[[[1]]]]]]]]},
    ):  # fmt: skip
        yield (symbol, "limit", "buy", 0.01, 40_000), params


@at_both_venues
async def test_create_order_refuses_what_is_malformed_or_outside_the_limits(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        requests = len(rig.server.requests)
        for arguments, params in bad_creates(rig.symbol):
            end = await outcome(guarded.create_order(*arguments, params=params))
            assert isinstance(end, InvalidInput), (ascii(arguments)[:200], ascii(params)[:100], ascii(end)[:300])
            says_what_to_do(end)
        assert rig.server.requests[requests:] == []
        assert (len(rig.ledger), rig.events, await journal_of(guarded)) == (0, [], (0, 0))


@at_both_venues
async def test_a_broken_limit_is_named_with_its_number(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        for amount, price, words in (
            (0.000001, 40_000, "one step"),
            (100_000, 40_000, "above the maximum"),
            (0.0001 if name == "binance" else 0.001, 1_000, "below the minimum of 5"),
            (0.01, 0.001, "one tick"),
        ):
            with pytest.raises(InvalidOrder, match=words):
                await guarded.create_order(rig.symbol, "limit", "buy", amount, price)
        with pytest.raises(InvalidInput, match=f"near: .*{rig.symbol}"):
            await guarded.create_order(rig.symbol.lower(), "limit", "buy", 0.01, 40_000)


def bad_references(symbol):
    """Arguments of cancel_order and edit_order that cannot name an order."""
    for text in [*NO_TEXTS, None]:
        yield (text, symbol), {}
        yield ("", symbol), {"clientOrderId": text}
    for text in NO_TEXTS:
        yield ("123", text), {}
        yield ("123", symbol), text or [1]
    for unknown in ("NO/SUCH", "btc/usdt", "BTCUSDT", "'; DROP TABLE"):
        yield ("123", unknown), {}
    yield ("123", symbol), {"a": object()}


@at_both_venues
async def test_edit_and_cancel_refuse_what_cannot_name_an_order(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        requests, journal = len(rig.server.requests), await journal_of(guarded)
        for reference, params in bad_references(rig.symbol):
            for call in (guarded.cancel_order, guarded.edit_order):
                end = await outcome(call(*reference, params=params))
                assert isinstance(end, InvalidInput), (ascii(reference)[:200], ascii(params)[:100], ascii(end)[:300])
                says_what_to_do(end)
        assert isinstance(await outcome(guarded.edit_order("123", None)), InvalidInput)
        assert rig.server.requests[requests:] == []
        assert await journal_of(guarded) == journal
        assert rig.venue.order(order["id"]).is_open


@at_both_venues
async def test_edit_refuses_terms_that_are_malformed_for_an_order_of_its_own_and_for_a_foreign_one(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        requests, journal = len(rig.server.requests), await journal_of(guarded)
        terms = [
            *(("limit", "buy", number, 41_000) for number in [*NO_NUMBERS, *NOT_POSITIVE]),
            *(("limit", "buy", 0.02, number) for number in [*NO_NUMBERS, *NOT_POSITIVE]),
            *((text, "buy", 0.02, 41_000) for text in NO_TEXTS),
            *(("limit", text, 0.02, 41_000) for text in NO_TEXTS),
        ]
        for order_id in (order["id"], "123"):
            for given in terms:
                end = await outcome(guarded.edit_order(order_id, rig.symbol, *given))
                assert isinstance(end, InvalidInput), (order_id, ascii(given)[:200], ascii(end)[:300])
                says_what_to_do(end)
        assert rig.server.requests[requests:] == []
        assert await journal_of(guarded) == journal
        assert rig.venue.order(order["id"]).is_open


@at_both_venues
async def test_the_gateway_refuses_the_same(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        gateway, symbol = guarded.gateway, SYMBOL[name]
        intent = {"key": "k", "symbol": symbol, "side": "buy", "quantity": "0.01", "limit_price": "40000"}
        requests = len(rig.server.requests)
        for change in (
            {"symbol": "NO/SUCH"},
            {"quantity": "0.0000001"},
            {"quantity": "1000000"},
            {"limit_price": "0.0001"},
            {"limit_price": None, "type": "limit"},
            {"trigger_price": "0.0001"},
            {"params": {"stopLossPrice": None}},
            {"params": {"stopLossPrice": True}},
            {"params": {"trailingPercent": -1}},
            {"params": {"stopLoss": {"triggerPrice": None}}},
            {"params": {"orderLinkId": "mine"}},
            {"type": "teleport"},
        ):
            end = await outcome(gateway.submit(execsafe.Intent(**{**intent, **change})))
            assert isinstance(end, InvalidInput), (change, ascii(end)[:300])
            says_what_to_do(end)
        for key in [*NO_TEXTS, "unknown"]:
            for call in (gateway.cancel, gateway.replace):
                says_what_to_do(await outcome(call(key)))
        assert rig.server.requests[requests:] == []
        assert (rig.events, await journal_of(guarded)) == ([], (0, 0))


# --- values and settings ----------------------------------------------------------------------------------------------


def an_intent(**changes):
    return execsafe.Intent(
        **{"key": "k", "symbol": "BTC/USDT", "side": "buy", "quantity": 1, "limit_price": 1, **changes}
    )


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("quantity", [*NO_NUMBERS, *NOT_POSITIVE, None]),
        ("limit_price", [*NO_NUMBERS, *NOT_POSITIVE]),
        ("trigger_price", [*NO_NUMBERS, *NOT_POSITIVE]),
        ("key", [*NO_TEXTS, None]),
        ("symbol", [*NO_TEXTS, None]),
        ("side", [*NO_TEXTS, None, "hold", "BUY"]),
        ("type", [*NO_TEXTS, None]),
        ("account", [*NO_TEXTS, None]),
        ("leg", [text for text in NO_TEXTS if text != ""]),
        ("time_in_force", NO_TEXTS),
        ("post_only", NO_FLAGS),
        ("reduce_only", NO_FLAGS),
        ("fresh_until_ms", [NAN, INF, -1, True, 1.5, "1", 2**63, object()]),
        ("params", [True, 5, "x", b"x", [1], object(), {1: 2}, {"a": NAN}, {"a": HUGE}, {"secret": "x"}]),
    ],
)
def test_an_intent_cannot_be_made_of_it(field, values):
    refuses(lambda value: an_intent(**{field: value}), *values)


SECONDS = [NAN, INF, -INF, -1, True, "1", "1e-3", "", HUGE, b"1", [], {}, object(), 1j, Decimal("NaN"), 1e40, 10**400]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("read_lag_s", [*SECONDS, None]),
        ("clock_skew_s", [*SECONDS, None]),
        ("expiry_window_s", [*SECONDS, None]),
        ("expiry", [*NO_TEXTS, None, "sometimes"]),
        ("dedup", [*NO_TEXTS, None, "sometimes"]),
        ("name", [*NO_TEXTS, None]),
        ("client_order_id", [*NO_TEXTS, None]),
        ("lookups", [5, "fetch_order", ["fetch_order"], object(), None]),
        ("expiry_param", NO_TEXTS),
        ("cancel_params", [True, "x", {}, {"a": 1}]),
        ("definite_ack", NO_FLAGS),
        ("stop_orders", NO_FLAGS),
    ],
)
def test_a_profile_cannot_be_changed_to_it(field, values):
    profile = execsafe.profile_for("binance")
    refuses(lambda value: attrs.evolve(profile, **{field: value}), *values)


@pytest.mark.parametrize("length", [NAN, 0, -1, 5, None, "18", 18.0, True])
def test_a_client_order_id_cannot_be_of_that_length(length):
    refuses(lambda value: execsafe.IdRule(length_max=value), length)


STORES = [
    None, 5, b"memory://", "", HUGE, "memory:", "memory://name", "memory://?a=1", "sqlite://", "sqlite:///", "sqlite:x",
    "sqlite:///a\nb", "sqlite:///%00", "sqlite:///\u202e", "sqlite:///a\ud800", "sqlite:///x#f", "sqlite:///x?nope=1",
    "sqlite:///x?busy_timeout_s=nan", "sqlite:///x?busy_timeout_s=-1", "sqlite:///x?busy_timeout_s=",
    "sqlite:///x?commit=maybe", "sqlite:///x?a", "://", "http://user:password@host/x", [], object(),
]  # fmt: skip


def test_a_store_cannot_be_opened_by_it():
    refuses(open_store, *STORES)
    with pytest.raises(InvalidInput) as caught:
        open_store("http://user:password@host/x")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("door", "values"),
    [
        (lambda v: execsafe.GatewayPolicy(request_timeout_s=v), [*SECONDS, 0, None, 601]),
        (lambda v: execsafe.GatewayPolicy(patience_s=v), SECONDS),
        (lambda v: execsafe.GatewayPolicy(attempts_max=v), [0, -1, NAN, INF, True, 1.5, "4", None]),
        (lambda v: execsafe.LookPolicy(interval_s=v), [*SECONDS, 0, None]),
        (lambda v: execsafe.LookPolicy(timeout_s=v), [*SECONDS, 0, None]),
        (lambda v: execsafe.LookPolicy(spacing_s=v), [*SECONDS, None]),
        (lambda v: IntentRegistry(open_store("memory://"), retention_s=v), [*SECONDS, 0, None]),
        (lambda v: IntentRegistry(open_store("memory://"), store_timeout_s=v), [*SECONDS, 0, None]),
        (lambda v: execsafe.TTLStore(ttl_s=v, max_entries=5), [*SECONDS, 0, None]),
        (lambda v: execsafe.TTLStore(retain_s=v, max_entries=5), [*SECONDS, None]),
        (lambda v: execsafe.TTLStore(sweep_interval_s=v, max_entries=5), [*SECONDS, 0, None]),
        (lambda v: execsafe.TTLStore(max_entries=v), [0, -1, NAN, INF, True, 1.5, "5"]),
        (lambda v: execsafe.DedupLock(lease_ttl_s=v), [*SECONDS, 0, None]),
        (lambda v: execsafe.DedupLock().try_claim(v), [[], {}, ("a", []), {1}]),
    ],
)
def test_a_primitive_cannot_be_set_up_with_it(door, values):
    refuses(door, *values)


async def test_a_key_shared_between_processes_has_one_text_or_is_refused():
    async with open_store("memory://") as store:
        lock = execsafe.DedupLock(store=store)
        for key in (NAN, HUGE, object(), b"x", ("a", object()), ((((((("deep",),),),),),),), Decimal("NaN")):
            with pytest.raises(InvalidInput) as caught:
                async with lock.hold(key):
                    pass
            says_what_to_do(caught.value)
        assert list(await store.read_events(0)) == []


class OfItsShape:
    """The least that looks like an exchange."""

    id = "binance"

    async def create_order(self, *order):
        raise NotImplementedError


def test_an_exchange_cannot_be_wrapped_that_is_none_or_not_asynchronous():
    exchanges = [None, 5, "binance", object(), ccxt.binance(), ccxt.async_support.binance]
    refuses(lambda exchange: execsafe.wrap(exchange, store="memory://"), *exchanges)
    refuses(execsafe.CcxtAdapter, *exchanges)
    verbose = ccxt.async_support.binance({"verbose": True})
    refuses(execsafe.CcxtAdapter, verbose)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("request_timeout_s", [*SECONDS, 0, None]),
        ("look_interval_s", [*SECONDS, 0, None]),
        ("patience_s", SECONDS),
        ("account", [*NO_TEXTS, None]),
        ("profile", [*NO_TEXTS, "binance"]),
        ("store", STORES),
        ("listeners", [None, 5, "x", [5], print]),
    ],
)
def test_wrap_refuses_settings_with_which_it_could_not_work(setting, values):
    refuses(lambda value: execsafe.wrap(OfItsShape(), **{"store": "memory://", setting: value}), *values)


@pytest.mark.parametrize("profile", ["binance", 5, object(), {}])
def test_an_adapter_cannot_be_made_with_it(profile):
    refuses(lambda value: execsafe.CcxtAdapter(OfItsShape(), profile=value), profile)
