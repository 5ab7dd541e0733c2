"""The codec: what comes out equals what went in, and nothing else ever comes out."""

from __future__ import annotations

import contextlib
import enum
import json
import re
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.errors import InvalidInput, StoreCorrupt
from execsafe.model.event import Event, EventType
from execsafe.model.intent import (
    Amendment,
    Attempt,
    AttemptState,
    Change,
    ErrorFacts,
    Intent,
    IntentRecord,
    IntentState,
)
from execsafe.model.order import Fee, Fill, Side
from execsafe.model.values import Params
from execsafe.stores import codec

# --- Any record that the library could store ---------------------------------------------------------

_texts = st.text(max_size=20)
_names = st.text("abcXYZ019-_:/", min_size=1, max_size=20)
_times = st.none() | st.integers(0, 2**53)
_positive = st.decimals(
    min_value=Decimal("1e-18"), max_value=Decimal("1e15"), allow_nan=False, allow_infinity=False, places=18
)
_computed = st.builds(lambda a, b: a / b, _positive, _positive)
_quantities = st.just(Decimal(0)) | _positive | _computed
_params = st.dictionaries(
    _names,
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.integers(-(10**9), 10**9).map(lambda n: n / 64)
    | _texts,
    max_size=4,
).map(Params.of)
_fees = st.builds(Fee, cost=_computed.map(lambda v: -v), currency=_names)
_fills = st.builds(
    Fill,
    trade_id=_texts,
    quantity=_quantities,
    price=_computed,
    fees=st.lists(_fees, max_size=2).map(tuple),
    filled_at_ms=_times,
)
_errors = st.builds(ErrorFacts, kind=_texts, message=_texts, code=st.none() | _texts)
_attempts = st.builds(
    Attempt,
    number=st.integers(1, 9),
    client_order_id=_names,
    quantity=_quantities,
    limit_price=st.none() | _positive,
    state=st.sampled_from(AttemptState),
    prepared_at_ms=st.integers(0, 2**53),
    deadline_ms=_times,
    venue_order_id=st.none() | _texts,
    filled_quantity=_quantities,
    average_price=st.none() | _computed,
    fills=st.lists(_fills, max_size=2).map(tuple),
    exists=st.booleans(),
    doubted_at_ms=_times,
    error=st.none() | _errors,
)
_intents = st.builds(
    Intent,
    key=_names,
    symbol=_names,
    side=st.sampled_from(Side),
    quantity=_positive,
    limit_price=st.none() | _positive,
    type=st.sampled_from(["limit", "market", "stop"]),
    account=_names,
    leg=st.just("") | _names,
    time_in_force=st.none() | st.just("IOC"),
    post_only=st.booleans(),
    reduce_only=st.booleans(),
    trigger_price=st.none() | _positive,
    fresh_until_ms=_times,
    params=_params,
)
_amendments = st.builds(
    Amendment,
    trigger_price=st.none() | _positive,
    time_in_force=st.none() | st.just("IOC"),
    post_only=st.none() | st.booleans(),
    fresh_until_ms=_times,
)
_records = st.builds(
    IntentRecord,
    intent=_intents,
    quantity=_positive,
    limit_price=st.none() | _positive,
    attempts=st.lists(_attempts, max_size=3).map(tuple),
    state=st.sampled_from(IntentState),
    change=st.none()
    | st.builds(
        Change,
        asked_at_ms=st.integers(0, 2**53),
        quantity=st.none() | _positive,
        amendment=st.none() | _amendments,
    ),
    amendment=st.none() | _amendments,
    given_up=st.booleans(),
    created_at_ms=st.integers(0, 2**53),
    updated_at_ms=st.integers(0, 2**53),
    ended_at_ms=_times,
    version=st.integers(0, 2**31),
)
_events = st.builds(
    Event,
    type=st.sampled_from(EventType),
    at_ms=st.integers(0, 2**53),
    subject=_texts,
    attempt=st.none() | st.integers(1, 9),
    client_order_id=st.none() | _texts,
    quantity=st.none() | _quantities,
    error=st.none() | _errors,
    note=_texts,
)


def _record() -> IntentRecord:
    intent = Intent(key="k", symbol="BTC/USDT", side="buy", quantity="0.010", limit_price=60000, params={"x": 1})
    attempt = Attempt(number=1, client_order_id="c1", quantity=intent.quantity)
    return IntentRecord(intent=intent, quantity=intent.quantity, attempts=(attempt,))


@given(value=_records | _events)
def test_what_comes_out_equals_what_went_in(value: object) -> None:
    """And encoding it again gives the same bytes: a record has one stored form."""
    data = codec.encode(value)
    back = codec.decode(data)
    assert back == value
    assert type(back) is type(value)
    assert codec.encode(back) == data
    assert data.isascii()


@given(value=_records | _events)
@settings(max_examples=1000, deadline=None)
def test_the_stored_form_is_the_general_encoders(value: object) -> None:
    """It is written directly, without a tree in between; each byte is as the standard library would write it."""
    data = codec.encode(value)
    assert json.dumps(json.loads(data), ensure_ascii=True, separators=(",", ":")).encode() == data


def test_the_stored_form_is_what_release_1_writes() -> None:
    """A store outlives the release that wrote it: a change here needs a new tag and a migration."""
    assert json.loads(codec.encode(_record())) == {
        "t": "IntentRecord",
        "intent": {
            "key": "k",
            "symbol": "BTC/USDT",
            "side": "buy",
            "quantity": "0.01",
            "limit_price": "60000",
            "type": "limit",
            "account": "default",
            "params": '{"x":1}',
        },
        "quantity": "0.01",
        "attempts": [
            {"number": 1, "client_order_id": "c1", "quantity": "0.01", "state": "sending"},
        ],
        "state": "recorded",
    }


def test_what_release_1_wrote_is_read_byte_for_byte() -> None:
    """Every field of every class that an order passes through, as bytes that lie in somebody's file."""
    record = (
        b'{"t":"IntentRecord","intent":{"key":"k","symbol":"BTC/USDT","side":"sell","quantity":"0.01",'
        b'"limit_price":"60000","type":"stop","account":"a","leg":"l","time_in_force":"IOC","post_only":true,'
        b'"reduce_only":true,"trigger_price":"1.5","fresh_until_ms":9,"params":"{\\"x\\":1}"},"quantity":"0.02",'
        b'"limit_price":"59000","attempts":[{"number":1,"client_order_id":"c1","quantity":"0.02","limit_price":"59000",'
        b'"state":"in_doubt","prepared_at_ms":3,"deadline_ms":4,"venue_order_id":"v","filled_quantity":"0.005",'
        b'"average_price":"58999.5","fills":[{"trade_id":"t\\u00e9","quantity":"0.005","price":"58999.5",'
        b'"fees":[{"cost":"-0.1","currency":"BNB"}],"filled_at_ms":5}],"exists":true,"doubted_at_ms":6,'
        b'"error":{"kind":"Timeout","message":"\\"late\\"","code":"-1"}}],"state":"in_doubt",'
        b'"change":{"asked_at_ms":7,"quantity":"1","limit_price":"2","type":"limit",'
        b'"amendment":{"trigger_price":"3","time_in_force":"GTC","post_only":false,"fresh_until_ms":8}},'
        b'"given_up":true,"created_at_ms":1,"updated_at_ms":2,"ended_at_ms":10,"version":11,"venue":"binance",'
        b'"amendment":{"post_only":true}}'
    )
    event = (
        b'{"t":"Event","type":"order_fill","at_ms":1,"subject":"s","attempt":2,"client_order_id":"c",'
        b'"venue_order_id":"v","quantity":"0.1","error":{"kind":"Timeout"},"note":"n","symbol":"BTC/USDT",'
        b'"price":"60000","details":"{\\"y\\":[]}"}'
    )
    for data in (record, event):
        assert codec.encode(codec.decode(data)) == data
    value = codec.decode(record)
    assert value.intent == Intent(
        key="k", symbol="BTC/USDT", side="sell", quantity="0.01", limit_price=60000, type="stop", account="a", leg="l",
        time_in_force="IOC", post_only=True, reduce_only=True, trigger_price="1.5", fresh_until_ms=9, params={"x": 1},
    )  # fmt: skip
    assert value.intent.identity == "1.1:a/k/l"
    assert value.attempts[0].fills[0].trade_id == "té"
    assert value.change.amendment == Amendment(trigger_price=3, time_in_force="GTC", post_only=False, fresh_until_ms=8)


@pytest.mark.parametrize(
    "number",
    ["1E+5", "1e-20", "-0", "0E-9", "100", "0.500", "123456789012345678901234567890.5", "-3.10"],
)
def test_equal_numbers_have_one_text(number: str) -> None:
    """No exponent, no trailing zeros; the value is exact."""
    fill = Fill(trade_id="", quantity=Decimal(number), price=Decimal(1))
    attempt = attrs.evolve(_record().attempts[0], fills=(fill,))
    data = codec.encode(attrs.evolve(_record(), attempts=(attempt,)))
    text = json.loads(data)["attempts"][0]["fills"][0]["quantity"]
    assert Decimal(text) == Decimal(number)
    assert text == format(Decimal(text), "f")
    assert "." not in text or not text.endswith("0")


@pytest.mark.parametrize("number", ["NaN", "sNaN", "Infinity", "-Infinity", "1E+1000000", "1E-1000000"])
def test_numbers_that_are_none_are_refused_before_anything_is_stored(number: str) -> None:
    """Also those whose text would fill the disk."""
    with pytest.raises(InvalidInput):
        codec.encode(attrs.evolve(_record(), limit_price=Decimal(number)))


@pytest.mark.parametrize(
    "facts",
    [
        {"version": True},
        {"version": 1.0},
        {"given_up": 1},
        {"limit_price": 5},
        {"state": "recorded"},
        {"attempts": []},
        {"attempts": ({},)},
        {"attempts": (None,)},
        {"intent": None},
    ],
    ids=str,
)
def test_a_field_that_holds_another_type_is_refused(facts: dict[str, Any]) -> None:
    """Better now than when it is read back after a crash."""
    with pytest.raises(InvalidInput):
        codec.encode(attrs.evolve(_record(), **facts))


def test_what_is_not_registered_is_refused() -> None:
    """Plain values and attrs classes nobody allowed."""
    for value in (None, 1, {"t": "IntentRecord"}, _record().attempts[0], object()):
        with pytest.raises(InvalidInput):
            codec.encode(value)


def test_a_value_larger_than_1_mib_is_neither_written_nor_read() -> None:
    """A bound on what one record can cost."""
    event = Event(type=EventType.ORDER_FILL, at_ms=0, subject="x" * 1_048_576)
    with pytest.raises(InvalidInput):
        codec.encode(event)
    with pytest.raises(StoreCorrupt):
        codec.decode(b" " * 1_048_577)


# --- Damage ------------------------------------------------------------------------------------------


_INTENT = {"key": "k", "symbol": "s", "side": "buy", "quantity": "1", "type": "market", "account": "a"}


def _damaged(**changes: Any) -> bytes:
    return json.dumps(json.loads(codec.encode(_record())) | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"t":7}',
        b'{"t":[]}',
        b'{"t":"Nobody"}',
        b'{"t":"Attempt","number":1,"client_order_id":"c","quantity":"1"}',
        b'{"t":"Event","type":"intent_recorded","at_ms":1,"subject":"s"}{}',
        b'{"t":"Event","type":"no_such","at_ms":1,"subject":"s"}',
        b'{"t":"Event","type":{},"at_ms":1,"subject":"s"}',
        b'{"t":"Event","type":"intent_recorded","at_ms":NaN,"subject":"s"}',
        b'{"t":"Event","type":"intent_recorded","at_ms":' + b"9" * 5_000 + b',"subject":"s"}',
        b'{"t":"Event","type":"intent_recorded","at_ms":1}',
        b'{"t":' + b"[" * 100_000,
        b'{"a":' * 100_000,
        "{“t”:1}".encode(),
        b"\xff\xfe{}",
        _damaged(version="1"),
        _damaged(version=True),
        _damaged(given_up=0),
        _damaged(quantity=0.01),
        _damaged(quantity="1e5"),
        _damaged(quantity="NaN"),
        _damaged(quantity="٣"),
        _damaged(quantity="1" * 200),
        _damaged(state="RECORDED"),
        _damaged(state=None),
        _damaged(attempts={}),
        _damaged(attempts=[1]),
        _damaged(attempts=[{}]),
        _damaged(intent=None),
        _damaged(intent=_INTENT | {"key": ""}),
        _damaged(intent=_INTENT | {"params": "[]"}),
        _damaged(intent=_INTENT | {"params": "{"}),
        _damaged(intent=_INTENT | {"params": '{"x":NaN}'}),
        _damaged(intent=_INTENT | {"params": {}}),
        _damaged(extra=1),
        _damaged(__class__="os.system"),
    ],
    ids=lambda data: repr(data[:60]),
)
def test_anything_else_is_corrupt(data: bytes) -> None:
    """With one typed error that does not quote the content."""
    with pytest.raises(StoreCorrupt) as caught:
        codec.decode(data)
    assert caught.value.__cause__ is None
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("field", ["state", "intent", "quantity"])
def test_a_missing_field_is_corrupt(field: str) -> None:
    """Also one that has a default: only empty defaults are ever left out, and a state is not guessed."""
    tree = json.loads(codec.encode(_record()))
    del tree[field]
    with pytest.raises(StoreCorrupt):
        codec.decode(json.dumps(tree).encode())


def test_the_undamaged_twin_of_those_values_is_read() -> None:
    """So that each of them fails for its own reason."""
    assert codec.decode(_damaged(intent=_INTENT, version=3)).version == 3


def test_a_value_cut_short_is_corrupt() -> None:
    """At every length."""
    data = codec.encode(_record())
    for length in range(len(data)):
        with pytest.raises(StoreCorrupt):
            codec.decode(data[:length])


@given(data=st.data(), position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_a_whole_value_or_the_typed_error(data: st.DataObject, position: int, bit: int) -> None:
    """Never another exception, never half a record. (That the value changed is for the store's checksum to see.)"""
    good = bytearray(codec.encode(_record()))
    good[position % len(good)] ^= 1 << bit
    with contextlib.suppress(StoreCorrupt):
        assert isinstance(codec.decode(bytes(good)), IntentRecord | Event)


@given(data=st.binary(max_size=200))
def test_random_bytes_are_corrupt(data: bytes) -> None:
    """The decoder is safe to point at anything."""
    with pytest.raises(StoreCorrupt):
        codec.decode(data)


# --- Classes whose constructors are passed by ---------------------------------------------------------


@given(value=_records | _events)
def test_what_is_read_is_as_frozen_as_what_was_written(value: Any) -> None:
    """And prints and hashes alike: nobody can tell that it did not come from the class itself."""
    back = codec.decode(codec.encode(value))
    assert repr(back) == repr(attrs.evolve(back))
    assert hash(back) == hash(value)
    for part in (back, *([back.intent, *back.attempts] if isinstance(back, IntentRecord) else [])):
        assert type(part) in codec._FILLED
        for field in attrs.fields(type(part)):
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                setattr(part, field.name, getattr(part, field.name))
    if isinstance(back, IntentRecord):
        assert back.intent.identity == value.intent.identity


def test_classes_that_are_filled_do_nothing_else_when_they_are_made() -> None:
    """What they have besides is a name for themselves; a default that is not stored survives its own conversion."""
    for cls in codec._FILLED:
        for field in attrs.fields(cls):
            assert field.alias == field.name
            assert not field.init or hasattr(cls, field.name)  # a slot
            if field.converter is not None and field.default is not attrs.NOTHING and field.name != "type":
                assert field.converter(field.default) is field.default
        assert not hasattr(cls, "__attrs_pre_init__")
        assert hasattr(cls, "__attrs_post_init__") == (cls is Intent)


_stored_texts = st.sampled_from(["", " ", "k", "buy", "sell", "limit", " k", "k ", "a\tb", "é", "\u202e", "\ud800"]) | (
    st.integers(60, 210).map("x".__mul__)
)
_stored_numbers = st.sampled_from(["0", "-1", "1", "0.5", "-0", "1e5", "00", "1.", "", "NaN"]) | (
    st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda t: "1" * t[0] + "." + "1" * t[1])
)
_stored_values = (
    _stored_texts | _stored_numbers | st.sampled_from([True, False, None, 0, 1, -1, 1.0, 2**63 - 1, 2**63, [], {}])
)  # fmt: skip


@given(
    tree=st.fixed_dictionaries(
        {}, optional={field.name: _stored_values for field in attrs.fields(Intent) if field.name != "params"}
    ).map(lambda drawn: _INTENT | drawn)
)
@settings(max_examples=2_000, deadline=None)
def test_an_intent_is_read_if_and_only_if_the_class_accepts_it(tree: dict[str, Any]) -> None:
    """Its checks are not run by its own constructor, and each text is checked once; the verdict is the same."""
    data = json.dumps({"t": "IntentRecord", "intent": tree, "quantity": "1", "state": "recorded"}).encode()
    try:
        read = codec.decode(data).intent
    except StoreCorrupt:
        read = None
    assert read == _intent_by_its_class(tree)
    assert read is None or read.identity == _intent_by_its_class(tree).identity  # type: ignore[union-attr]


_NUMBERS = {"quantity", "limit_price", "trigger_price"}
_TOKENS = {"post_only": bool, "reduce_only": bool, "fresh_until_ms": int}
_MAY_BE_NONE = {"limit_price", "trigger_price", "time_in_force", "fresh_until_ms"}


def _intent_by_its_class(tree: dict[str, Any]) -> Intent | None:
    """What the class makes of the same values, if each is of its type and the numbers are as we write them."""
    values = dict(tree)
    for name, item in tree.items():
        if type(item) is not _TOKENS.get(name, str) and not (item is None and name in _MAY_BE_NONE):
            return None
        if name in _NUMBERS and item is not None:
            if not re.fullmatch(r"-?[0-9]{1,101}(\.[0-9]{1,200})?", item):
                return None
            values[name] = Decimal(item)
    try:
        return Intent(**values)
    except (InvalidInput, TypeError):  # the latter for a field that is made and not given
        return None


# --- Classes of later layers -------------------------------------------------------------------------


class _Colour(enum.Enum):
    RED = 1
    BLUE = 2


@attrs.frozen
class _Inner:
    name: str = ""


@attrs.frozen(kw_only=True)
class _Everything:
    _hidden: int
    ratio: float
    inner: _Inner | None
    pair: tuple[str, Decimal]
    colours: tuple[_Colour, ...] = ()
    by_name: dict[str, _Inner] = attrs.field(factory=dict)
    notes: str = "none"


codec.register(_Everything)


@given(
    value=st.builds(
        _Everything,
        hidden=st.integers(),
        ratio=st.floats(allow_nan=False, allow_infinity=False),
        inner=st.none() | st.builds(_Inner, _texts),
        pair=st.tuples(_texts, _computed),
        colours=st.lists(st.sampled_from(_Colour)).map(tuple),
        by_name=st.dictionaries(_texts, st.builds(_Inner, _texts), max_size=3),
        notes=_texts,
    )
)
def test_a_registered_class_is_stored_like_any_other(value: _Everything) -> None:
    """Private fields, enums, nested values, fixed and open tuples, mappings."""
    assert codec.decode(codec.encode(value)) == value


def test_names_are_text_and_nothing_else() -> None:
    """The functions for a class are made of source text: what its tag and its fields are called must not matter."""
    for n, tag in enumerate(["{value}", "'", '"', "\\", "\n", "é", "{0/0}", "}"]):
        for fields in ({"größe": attrs.field(default="", type=str)}, {"größe": attrs.field(type=str)}):
            cls = attrs.make_class(f"Odd{n}{len(fields)}", fields, frozen=True)
            codec.register(cls, f"{tag}{fields['größe']._default}")
            for text in ("", "{text0}", "'"):
                value = cls(text)
                assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), 1])
def test_a_float_is_finite_and_a_float(ratio: float) -> None:
    """JSON knows no others."""
    with pytest.raises(InvalidInput):
        codec.encode(_Everything(hidden=1, ratio=ratio, inner=None, pair=("", Decimal(1))))


def test_what_is_kept_of_an_intent_is_never_taken_for_another_one() -> None:
    """Its text is kept for the next version of its record; more intents than are kept, each gone before the next."""
    for number in range(3_000):
        intent = Intent(key=f"k{number}", symbol="BTC/USDT", side="buy", quantity=1)
        record = IntentRecord(intent=intent, quantity=intent.quantity, created_at_ms=1, updated_at_ms=1)
        for version in range(2):
            assert codec.decode(codec.encode(attrs.evolve(record, version=version))).intent.key == f"k{number}"


def test_registration_refuses_what_could_not_be_read_back() -> None:
    """At import time, not at the first order; and a tag belongs to one class for ever."""

    def with_type(type_: Any) -> type:
        return attrs.make_class("Bad", {"x": attrs.field(type=type_)})

    class Mixed(enum.Enum):
        ONE = 1
        TWO = "2"

    for type_ in (Mixed, object, bytes, list[int], set[str], int | str, dict[int, str], complex, Any):
        with pytest.raises(TypeError):
            codec.register(with_type(type_))
    with pytest.raises(TypeError):
        codec.register(int)
    with pytest.raises(TypeError):
        codec.register(attrs.make_class("Tagged", {"t": attrs.field(type=int)}))
    with pytest.raises(TypeError):
        codec.register(attrs.make_class("Other", []), tag="IntentRecord")
    with pytest.raises(TypeError):
        codec.register(IntentRecord, tag="Second")
    assert codec.register(IntentRecord) is IntentRecord
