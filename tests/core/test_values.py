"""What enters is exact and safe, or refused with a message that cannot be misused."""

from __future__ import annotations

import decimal
import enum
import json
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import strategies
from execsafe.errors import InvalidInput
from execsafe.model.intent import Intent
from execsafe.model.values import (
    EMPTY_PARAMS,
    PARAMS_BYTES_MAX,
    Params,
    plain,
    shorten,
    to_decimal,
    to_limit,
    to_positive,
    to_price,
    to_quantity,
    to_text,
)
from execsafe.model.venue import VenueProfile

MESSAGE_MAX = 400
HUGE = "9" * 1_000_000


class NumpyLikeFloat(float):
    """As numpy's float64: a float whose repr is no number."""

    def __repr__(self) -> str:
        return f"np.float64({float(self)!r})"


class Lots(enum.IntEnum):
    TWO = 2


BAD_NUMBERS = {
    "NaN": float("nan"),
    "signalling NaN": Decimal("sNaN"),
    "NaN as text": "NaN",
    "infinity": float("inf"),
    "negative infinity": Decimal("-Infinity"),
    "infinity as text": "Infinity",
    "exponent notation": "1e5",
    "capital exponent": "1E-5",
    "hex": "0x10",
    "underscores": "1_000",
    "thousands separator": "1,000",
    "comma": "0,5",
    "no digit before the point": ".5",
    "no digit after the point": "5.",
    "empty": "",
    "spaces": " 1 ",
    "newline at the end": "1\n",
    "control character": "1\x00",
    "escape sequence": "\x1b[31m1",
    "bidi override": "\u202e1",
    "full-width digits": "\uff11",
    "arabic digits": "\u0661",
    "two numbers": "1;2",
    "1 MB of digits": HUGE,
    "1 MB of noise": "\n\u202e" * 500_000,
    "31 digits": "1" * 31,
    "31 places": "0." + "1" * 31,
    "integer of 31 digits": 10**30,
    "integer of 5,000 digits": 10**5_000,
    "decimal of 31 digits": Decimal(10**30),
    "decimal far out of range": Decimal("1E+999999"),
    "decimal far too small": Decimal("1E-999999"),
    "float beyond any market": 1e300,
    "float below any market": 1e-300,
    "True": True,
    "False": False,
    "None": None,
    "bytes": b"1",
    "list": [1],
    "complex": 1j,
}


def refusal(function, *args, **kwargs) -> str:
    """The message with which *function* refuses, checked to be harmless wherever it is shown."""
    with pytest.raises(InvalidInput) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert len(message) <= MESSAGE_MAX
    assert message.isprintable()
    return message


@pytest.mark.parametrize("value", BAD_NUMBERS.values(), ids=BAD_NUMBERS.keys())
def test_a_malformed_number_is_refused_with_a_bounded_printable_message(value):
    """NaN, infinity, notation tricks, control characters, megabytes and foreign types never become a Decimal."""
    assert "amount" in refusal(to_decimal, value, "amount")


@pytest.mark.parametrize("convert", [to_positive, to_quantity])
@pytest.mark.parametrize("value", [0, 0.0, -0.0, "0", "-0", "0.000", Decimal("-0"), -1, "-0.5", -1e-9])
def test_zero_and_negative_quantities_are_refused(convert, value):
    """A quantity is greater than zero, however zero is spelled."""
    assert "greater than 0" in refusal(convert, value)


@pytest.mark.parametrize("convert", [to_price, to_limit])
def test_an_absent_price_or_limit_stays_absent_and_zero_is_not_absence(convert):
    assert convert(None) is None
    refusal(convert, 0)


@given(st.floats(min_value=1e-12, max_value=1e15))
@example(0.1)
@example(1e-7)
@example(123456789.123456789)
@example(0.1 + 0.2)
def test_a_float_is_taken_by_its_repr_and_so_survives_the_round_trip(value):
    """0.1 becomes Decimal("0.1"), not the 55 digits of the binary fraction."""
    assert to_decimal(value) == Decimal(repr(value))
    assert float(to_decimal(value)) == value


@pytest.mark.parametrize(
    ("value", "expected"), [(NumpyLikeFloat(0.1), "0.1"), (Lots.TWO, "2")], ids=["numpy-like float", "IntEnum"]
)
def test_subclasses_of_float_and_int_convert_by_value_whatever_their_repr(value, expected):
    """numpy's float64 is a float and prints itself otherwise; it is what pandas users pass."""
    assert to_decimal(value) == Decimal(expected)
    assert Params.of({"leverage": value}).thaw() == {"leverage": float(expected)}


@given(strategies.decimals())
def test_text_decimal_and_integer_convert_exactly(number):
    """Whatever the precision of the current decimal context."""
    with decimal.localcontext(prec=3):
        assert to_decimal(number) == number
        assert to_decimal(plain(number)) == number


@given(strategies.decimals(), st.integers(0, 5))
def test_plain_text_is_canonical(number, zeros):
    """Equal numbers have equal text, without exponent or trailing zeros, and the text means the number."""
    with decimal.localcontext(prec=200):
        padded = number.quantize(Decimal(1).scaleb(number.as_tuple().exponent - zeros))
        normalized = number.normalize()
    text = plain(number)
    assert plain(padded) == plain(normalized) == text
    assert Decimal(text) == number
    assert "E" not in text
    assert not ("." in text and text.endswith(("0", ".")))


@pytest.mark.parametrize(
    ("number", "text"),
    [("0", "0"), ("-0", "0"), ("-0.00", "0"), ("1E+3", "1000"), ("100", "100"), ("1.50", "1.5"), ("-2.0", "-2")],
)
def test_plain_text_of_corner_cases(number, text):
    assert plain(Decimal(number)) == text


BAD_TEXTS = {
    "empty": "",
    "too long": "x" * 65,
    "1 MB": "x" * 1_000_000,
    "newline": "a\nb",
    "carriage return": "a\r",
    "tab": "a\tb",
    "NUL": "a\0b",
    "escape sequence": "\x1b[31mred",
    "delete": "a\x7f",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "bidi override": "a\u202eb",
    "bidi isolate": "a\u2066b",
    "zero-width joiner": "a\u200db",
    "byte order mark": "\ufeffa",
    "no-break space": "a\u00a0b",
    "half a surrogate pair": "a\ud800",
    "space before": " a",
    "space after": "a ",
    "bytes": b"a",
    "number": 1,
    "None": None,
}


@pytest.mark.parametrize("value", BAD_TEXTS.values(), ids=BAD_TEXTS.keys())
def test_text_that_could_forge_a_log_line_is_refused(value):
    """Control, bidi and separator characters, padding, and sizes out of bounds."""
    assert "name" in refusal(to_text, value, "name", 64)


@given(st.text(max_size=100))
def test_what_text_is_accepted_is_one_printable_line(value):
    try:
        accepted = to_text(value, "name", 64)
    except InvalidInput:
        return
    assert accepted is value
    assert accepted.isprintable()
    assert len(accepted.splitlines()) == 1


@given(st.text() | st.binary() | st.integers() | st.floats(), st.integers(2, 100))
def test_a_shortened_value_is_bounded_and_printable(value, length):
    text = shorten(value, length)
    assert len(text) <= length
    assert text.isprintable()


FIELDS = {
    "key": BAD_TEXTS["newline"],
    "symbol": BAD_TEXTS["bidi override"],
    "type": BAD_TEXTS["NUL"],
    "account": BAD_TEXTS["1 MB"],
    "leg": BAD_TEXTS["tab"],
    "side": "hold\n" * 1_000,
    "quantity": HUGE,
    "limit_price": "1e5",
    "trigger_price": float("nan"),
    "time_in_force": BAD_TEXTS["1 MB"],
    "post_only": "no",
    "reduce_only": 1,
    "fresh_until_ms": float("nan"),
    "params": {"apiKey": "x"},
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_an_intent_is_checked_at_the_edge(field):
    """A malformed intent is never made, so nothing downstream has to look again."""
    good = {"key": "k", "symbol": "BTC/USDT", "side": "buy", "quantity": 1}
    Intent(**good)
    refusal(Intent, **{**good, field: FIELDS[field]})


@pytest.mark.guarantee(17)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, "1700000000000", True, -1])
def test_g17_an_unreadable_time_of_freshness_is_refused(value):
    """NaN compares false with everything: taken as a time, it would keep an intent fresh for ever."""
    refusal(Intent, key="k", symbol="BTC/USDT", side="buy", quantity=1, fresh_until_ms=value)


@pytest.mark.parametrize("value", [-1, 86_401, float("nan"), float("inf"), True, "5", None])
def test_a_venue_profile_refuses_durations_without_meaning(value):
    """They decide when absence is proven."""
    for name in ("expiry_window_s", "clock_skew_s", "read_lag_s"):
        assert name in refusal(VenueProfile, **{name: value})


# --- Params -------------------------------------------------------------------------------------------------


def nested(depth: int) -> dict:
    return {"a": nested(depth - 1)} if depth else {}


ENDLESS: dict = {}
ENDLESS["a"] = ENDLESS

BAD_PARAMS = {
    "not a mapping": [("a", 1)],
    "text": "{}",
    "too deep": nested(8),
    "too deep in lists": {"a": [[[[[[[[1]]]]]]]]},
    "endless": ENDLESS,
    "too large": {"a": "x" * PARAMS_BYTES_MAX},
    "1 MB name": {"x" * 1_000_000: 1},
    "name that is no text": {1: 1},
    "name with a newline": {"a\nb": 1},
    "empty name": {"": 1},
    "NaN": {"a": float("nan")},
    "infinity": {"a": {"b": [float("inf")]}},
    "huge integer": {"a": 10**40},
    "object": {"a": object()},
    "bytes": {"a": b"x"},
    "set": {"a": {1}},
}


@pytest.mark.parametrize("value", BAD_PARAMS.values(), ids=BAD_PARAMS.keys())
def test_params_that_are_not_plain_small_json_are_refused(value):
    refusal(Params.of, value)


@pytest.mark.guarantee(16)
@pytest.mark.parametrize(
    "name",
    [
        "apiKey", "api_key", "APIKEY", "api-key", "secret", "Secret", "apiSecret", "secretKey", "password",
        "passphrase", "privateKey", "private_key", "signature", "token",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: {"a": p}, lambda p: {"a": [{"b": p}]}], ids=["bare", "inside", "deeper"]
)
def test_g16_params_named_like_a_credential_are_refused_without_showing_them(name, wrap):
    """Params are journalled: a key in them would be written to disk."""
    message = refusal(Params.of, wrap({name: "CANARY0123456789"}))
    assert name in message
    assert "CANARY" not in message


@given(strategies.params)
def test_params_survive_the_round_trip_and_compare_by_content(value):
    """Frozen, they are canonical text; thawed, a fresh copy."""
    frozen = Params.of(value)
    assert frozen.thaw() == value
    assert frozen.thaw() is not frozen.thaw()
    reordered = Params.of(dict(reversed(value.items())))
    assert reordered == frozen
    assert hash(reordered) == hash(frozen)
    assert Params.of(frozen) is frozen
    assert frozen.text.isascii()
    assert json.loads(frozen.text) == value


def test_params_hold_decimals_as_canonical_text_and_none_as_nothing():
    assert Params.of({"stopPrice": Decimal("1.50")}).thaw() == {"stopPrice": "1.5"}
    assert Params.of(None) is Params.of({}) is EMPTY_PARAMS
