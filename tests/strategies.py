"""Hypothesis strategies for the words of the domain, shared by every test."""

from __future__ import annotations

from decimal import Context, Decimal

from hypothesis import strategies as st

from execsafe.core import transitions
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent, IntentRecord
from execsafe.model.order import Fee, Fill, OrderReport, OrderStatus, Side
from execsafe.model.venue import Dedup, Expiry, LookUp, VenueProfile, View

NOW_MS = 1_700_000_000_000
_WIDE = Context(prec=200)

# Separators that a naive join would mix up, and quotes that JSON has to escape.
_TRICKY = st.sampled_from(["a", "b", "1", ":", "|", ",", "-", "/", "_", ".", '"', "\\", "[", "]", " x", "é", "買"])


def texts(length_max: int) -> st.SearchStrategy[str]:
    """Text that the edge accepts: printable, without spaces around it; rich in separators."""
    tricky = st.lists(_TRICKY, min_size=1, max_size=min(12, length_max)).map("".join)
    common = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=min(30, length_max))
    return st.one_of(tricky, common).map(str.strip).filter(lambda t: 1 <= len(t) <= length_max and t.isprintable())


def decimals(*, digits: int = 30, places: int = 30) -> st.SearchStrategy[Decimal]:
    """Exact positive numbers with up to *digits* before and *places* after the point."""
    return st.builds(
        lambda number, scale: Decimal(number).scaleb(-scale, _WIDE),
        st.integers(1, 10**digits - 1),
        st.integers(0, places),
    )


keys = texts(200)
accounts = texts(64)
legs = st.one_of(st.just(""), texts(64))
sides = st.sampled_from(list(Side))
symbols = st.sampled_from(["BTC/USDT", "ETH/USDT", "BTC/USDT:USDT", "ETH/BTC"])
quantities = decimals(digits=12, places=8)
prices = decimals(digits=12, places=8)
params = st.dictionaries(
    st.sampled_from(["timeInForce", "reduceOnly", "marginMode", "leverage", "tag", "positionSide"]),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**9), 10**9),
        st.text(max_size=10),
        st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9).filter(
            lambda x: x == 0 or abs(x) > 1e-9
        ),
        st.lists(st.integers(0, 9), max_size=3),
        st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 9), max_size=2),
    ),
    max_size=3,
)

intents = st.builds(
    Intent,
    key=keys,
    symbol=symbols,
    side=sides,
    quantity=quantities,
    limit_price=st.none() | prices,
    account=accounts,
    leg=legs,
    time_in_force=st.sampled_from([None, "GTC", "IOC", "FOK"]),
    post_only=st.booleans(),
    reduce_only=st.booleans(),
    trigger_price=st.none() | prices,
    fresh_until_ms=st.none() | st.integers(0, 2 * NOW_MS),
    params=params,
)


@st.composite
def instruments(draw: st.DrawFn) -> Instrument:
    """Grids from 1e-30 to 1e12, also ones that are no power of ten; limits that do not contradict each other."""
    grid = st.none() | decimals(digits=12, places=30) | st.integers(-18, 6).map(lambda e: Decimal(1).scaleb(e))
    return Instrument(symbol="BTC/USDT", tick_size=draw(grid), step_size=draw(grid))


fees = st.builds(Fee, cost=decimals(digits=3, places=6), currency=st.sampled_from(["USDT", "BNB"]))
fills = st.builds(
    Fill,
    trade_id=st.integers(1, 9).map(str),
    quantity=st.integers(1, 3).map(Decimal),
    price=prices,
    fees=st.lists(fees, max_size=1).map(tuple),
    filled_at_ms=st.none() | st.integers(0, NOW_MS),
)


@st.composite
def reports(draw: st.DrawFn, record: IntentRecord | None = None) -> OrderReport:
    """What a venue may say, sensible or not, about one of *record*'s orders or about none of them."""
    ids = [None, "foreign"] if record is None else [None, "foreign", *{a.client_order_id for a in record.attempts}]
    return OrderReport(
        symbol="BTC/USDT",
        status=draw(st.sampled_from(list(OrderStatus))),
        client_order_id=draw(st.sampled_from(ids)),
        venue_order_id=draw(st.sampled_from([None, "1", "2", "3"])),
        quantity=draw(st.none() | st.integers(1, 4).map(Decimal)),
        filled_quantity=draw(st.none() | st.integers(0, 4).map(Decimal)),
        average_price=draw(st.none() | st.integers(1, 9).map(Decimal)),
        fills=tuple(draw(st.lists(fills, max_size=2, unique_by=lambda f: f.trade_id))),
        reported_at_ms=draw(st.none() | st.integers(0, NOW_MS)),
    )


records = st.builds(
    lambda intent, now_ms: transitions.new_record(
        intent, quantity=intent.quantity, limit_price=intent.limit_price, now_ms=now_ms
    ),
    intents,
    st.integers(0, 2 * NOW_MS),
)

_LOOKUPS = st.sets(st.sampled_from(list(View))).map(
    lambda views: tuple(LookUp(view=v, method=v.value) for v in sorted(views))
)
profiles = st.builds(
    VenueProfile,
    dedup=st.sampled_from(list(Dedup)),
    expiry=st.sampled_from(list(Expiry)),
    expiry_window_s=st.integers(0, 60_000).map(lambda ms: ms / 1000),
    clock_skew_s=st.integers(0, 5_000).map(lambda ms: ms / 1000),
    read_lag_s=st.integers(0, 60_000).map(lambda ms: ms / 1000),
    lookups=_LOOKUPS,
)
