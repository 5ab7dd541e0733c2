"""Signals are read without guessing, and judged by a table of reasons."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from execsafe.core.fields import decode_fields, encode_fields
from execsafe.core.funnel import RATIOS, Funnel, Stage, WavePlan, WaveStep, wave_step
from execsafe.core.payloads import envelope_fields, read_envelope, read_signal, read_trade_intent, unwrap
from execsafe.core.signals import (
    SIDE_ALIASES,
    Accept,
    DeadLetter,
    Drop,
    DropReason,
    OnFlat,
    OnFuture,
    Seen,
    SignalPolicy,
    age_ms,
    candle_closed_at_ms,
    decide,
    decide_content,
    event_time_text,
    is_superseded,
    parse_event_time,
    parse_side,
    said_at_ms,
)
from execsafe.errors import InvalidInput, InvalidTimestamp
from execsafe.model.signal import Envelope, ExecutionMode, Signal, SignalSide
from execsafe.model.units import Margin, Notional
from execsafe.model.values import Params

NOW_MS = 1_700_000_000_000
POLICY = SignalPolicy()
FIRST_MS, END_MS = 10**11, 10**14

PAYLOAD = {
    "symbol": "BTC/USDT:USDT",
    "side": "LONG",
    "source": "brain",
    "confidence": 0.85,
    "atr_value": "0.02",
    "volatility_factor": 1.5,
    "leverage": 20,
    "position_size_usd": 300.0,
    "funding_rate": "1e-05",
    "regime": "trend",
    "timestamp": NOW_MS,
    "exchange_divergence": 0.5,
    "trace_id": "t-1",
    "model_version": "v7",
}


def signal(**changes) -> Signal:
    base = {"id": "s-1", "symbol": "BTC/USDT", "side": SignalSide.LONG, "at_ms": NOW_MS}
    return Signal(**{**base, **changes})


def without(name: str) -> dict:
    return {key: value for key, value in PAYLOAD.items() if key != name}


# --- Time ---------------------------------------------------------------------------------------------------


@pytest.mark.row("S2-08")
@settings(max_examples=1_000, deadline=None)
@given(st.integers(FIRST_MS, END_MS - 1), st.integers(0, 999_999), st.sampled_from([-720, -90, 0, 60, 345, 840]))
def test_one_instant_reads_the_same_in_every_unit_and_notation(at_ms, nanos, offset_min):
    """Below a millisecond it is cut off, so that no signal is made younger."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    ns = at_ms * 1_000_000 + nanos
    assert parse_event_time(at_ms) == parse_event_time(str(at_ms)) == at_ms
    assert parse_event_time(ns) == parse_event_time(str(ns)) == at_ms
    assert parse_event_time(ns // 1_000) == at_ms
    assert parse_event_time(at_ms // 1_000) == at_ms // 1_000 * 1_000
    assert parse_event_time(Decimal(at_ms).scaleb(-3)) == at_ms
    assert parse_event_time(f"{at_ms // 1_000}.{at_ms % 1_000:03}") == at_ms
    if at_ms < 4 * 10**12:  # a float holds the milliseconds of any near date exactly
        assert parse_event_time(at_ms / 1_000) == at_ms
    assert parse_event_time(event_time_text(at_ms)) == at_ms
    try:
        shifted = moment.astimezone(timezone(timedelta(minutes=offset_min)))
    except OverflowError:
        return
    assert parse_event_time(shifted.isoformat()) == parse_event_time(shifted) == at_ms


@pytest.mark.row("S2-08")
@pytest.mark.parametrize(
    "text", ["2023-11-14T22:13:20Z", " 2023-11-14T23:13:20+01:00 ", "20231114T221320Z", "1700000000"]
)
def test_usual_notations_are_read(text):
    assert parse_event_time(text) == NOW_MS


@pytest.mark.row("S2-09", "S2-21", "S3-36", "D-11")
@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "now",
        "2023-11-14T22:13:20",  # no offset: it could be any of 24 instants
        "2023-11-14",
        datetime(2023, 11, 14),  # noqa: DTZ001 - the subject
        True,
        0,
        -1,
        12_345,
        10**20,
        float("nan"),
        float("inf"),
        "1e12",
        "\u0661\u0667" + "\u0660" * 8,  # digits, but not ASCII
        "-1700000000",
        "1700000000 ms",
        [NOW_MS],
        "9999-12-31T23:59:59+00:00",
        "0001-01-01T00:00:00+14:00",
    ],
)
def test_what_names_no_instant_is_refused_and_never_replaced_by_now(value):
    with pytest.raises(InvalidTimestamp):
        parse_event_time(value)


@settings(max_examples=1_000, deadline=None)
@given(
    st.one_of(st.text(max_size=40), st.integers(), st.floats(), st.decimals(), st.binary(max_size=4), st.datetimes())
)
def test_any_value_is_an_instant_of_our_time_or_refused(value):
    with contextlib.suppress(InvalidTimestamp):
        assert FIRST_MS <= parse_event_time(value) < END_MS


# --- Side ---------------------------------------------------------------------------------------------------


@pytest.mark.row("S2-12", "S2-13")
def test_the_vocabulary_is_closed_unless_aliases_are_declared():
    """BUY may open a long or close a short: nobody guesses."""
    assert [parse_side(word) for word in ("LONG", "Short", "flat", "HOLD")] == list(SignalSide)
    with pytest.raises(InvalidInput, match=r"BUY.*alias"):
        parse_side("BUY")
    assert parse_side("BUY", SIDE_ALIASES) is SignalSide.LONG
    assert parse_side("sell", SIDE_ALIASES) is SignalSide.SHORT
    with pytest.raises(InvalidInput):
        parse_side("moon", SIDE_ALIASES)


# --- Payloads -----------------------------------------------------------------------------------------------


@pytest.mark.row("S2-02", "S2-36")
def test_a_payload_is_read_strictly_and_unknown_fields_are_kept():
    sent = read_trade_intent(PAYLOAD)
    assert (sent.symbol, sent.side, sent.timestamp) == ("BTC/USDT:USDT", "LONG", str(NOW_MS))
    assert sent.funding_rate == Decimal("0.00001")
    assert sent.extra == Params.of({"model_version": "v7"})
    found = read_signal(PAYLOAD, POLICY)
    assert isinstance(found, Signal)
    assert (found.leverage, found.position_size_usd, found.volatility_factor) == (20, 300, Decimal("1.5"))
    assert found.ilf_metadata.to_payload() == {
        "atr_value": "0.02",
        "exchange_divergence": "0.5",
        "funding_rate": "0.00001",
        "regime": "trend",
    }


@pytest.mark.row("S2-02")
def test_text_by_name_reads_like_typed_json():
    """Streams keep text only."""
    assert read_signal(encode_fields(PAYLOAD), POLICY) == read_signal(PAYLOAD, POLICY)
    odd = {**PAYLOAD, "trace_id": "1e5", "regime": "null", "leverage": None}
    assert read_trade_intent(encode_fields(odd)).trace_id == "1e5"


@pytest.mark.row("S2-13", "S2-09")
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (without("symbol"), DropReason.MALFORMED),
        (without("side"), DropReason.MALFORMED),
        ({**PAYLOAD, "symbol": ""}, DropReason.MALFORMED),
        (without("timestamp"), DropReason.INVALID_TIMESTAMP),
        ({**PAYLOAD, "timestamp": "yesterday"}, DropReason.INVALID_TIMESTAMP),
        ({**PAYLOAD, "timestamp": None}, DropReason.INVALID_TIMESTAMP),
        ({**PAYLOAD, "timestamp": {"s": 1}}, DropReason.INVALID_TIMESTAMP),
        ({**PAYLOAD, "side": "BUY"}, DropReason.UNKNOWN_SIDE),
        ({**PAYLOAD, "leverage": "lots"}, DropReason.MALFORMED),
        ({**PAYLOAD, "leverage": -3}, DropReason.MALFORMED),
        ({**PAYLOAD, "leverage": float("nan")}, DropReason.MALFORMED),
        ({**PAYLOAD, "confidence": 85}, DropReason.MALFORMED),
        ({**PAYLOAD, "position_size_usd": True}, DropReason.MALFORMED),
        ({**PAYLOAD, "source": ["a"]}, DropReason.MALFORMED),
        ({**PAYLOAD, "apiKey": "x"}, DropReason.MALFORMED),
        ({"payload": "[1]"}, DropReason.MALFORMED),
        ([], DropReason.MALFORMED),
        ({1: 2}, DropReason.MALFORMED),
    ],
)
def test_what_is_missing_or_malformed_goes_to_the_dead_letters_with_its_reason(payload, reason):
    found = read_signal(payload, POLICY)
    assert isinstance(found, DeadLetter)
    assert found.reason is reason
    assert found.note


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=1_000, deadline=None)
@given(st.dictionaries(st.sampled_from([*PAYLOAD, "payload", "id", "x"]), _JUNK, max_size=6))
def test_no_payload_breaks_the_reader(changes):
    assert isinstance(read_signal({**PAYLOAD, **changes}, POLICY), Signal | DeadLetter)


@pytest.mark.row("S2-12")
def test_symbols_are_translated_by_a_declared_list_only():
    listed = SignalPolicy(symbols={"BTCUSDT": "BTC/USDT:USDT"})
    found = read_signal({**PAYLOAD, "symbol": "BTCUSDT"}, listed)
    assert isinstance(found, Signal)
    assert found.symbol == "BTC/USDT:USDT"
    other = read_signal({**PAYLOAD, "symbol": "DOGEUSDT"}, listed)
    assert isinstance(other, DeadLetter)
    assert other.reason is DropReason.UNKNOWN_SYMBOL


@pytest.mark.row("S2-11", "S4-27", "D-03")
def test_the_identity_is_the_senders_or_a_pure_function_of_the_content():
    def id_of(**changes):
        found = read_signal({**PAYLOAD, **changes}, POLICY)
        assert isinstance(found, Signal)
        return found.id

    assert id_of(signal_id="s-9") == id_of(id="s-9") == "s-9"
    assert id_of() == "t-1:BTC/USDT:USDT"
    assert id_of(symbol="ETH/USDT") != id_of()  # one trace, two symbols
    assert id_of(trace_id="") == id_of(trace_id=None)
    assert id_of(trace_id="") != id_of(trace_id="", timestamp=NOW_MS + 1)
    assert id_of(trace_id="") != id_of(trace_id="", model_version="v8")
    assert len(id_of(trace_id="x" * 128)) <= 128


@pytest.mark.row("S2-21")
def test_a_missing_trace_id_is_generated_and_always_the_same():
    one, again = (read_signal({**PAYLOAD, "trace_id": ""}, POLICY) for _ in range(2))
    assert isinstance(one, Signal)
    assert one.trace_id == again.trace_id != ""


@pytest.mark.row("S2-35")
def test_the_size_is_notional_or_margin_as_the_policy_says_and_never_a_bare_number():
    notional, margin = (read_signal(PAYLOAD, SignalPolicy(size_unit=unit)) for unit in ("notional", "margin"))
    assert notional.position_size == Notional(300)
    assert margin.position_size == Margin(300)
    assert margin.position_size.at(20) == Notional(6_000)
    assert read_signal(without("position_size_usd"), POLICY).position_size is None


@pytest.mark.row("S3-36")
def test_a_candles_signal_is_as_old_as_its_close():
    assert candle_closed_at_ms("2023-11-14T22:10:00Z", 300) == parse_event_time("2023-11-14T22:15:00Z")
    with pytest.raises(InvalidInput):
        candle_closed_at_ms(NOW_MS, 0)


@pytest.mark.row("S2-20", "S2-21")
def test_an_envelope_survives_the_bus_with_its_unit_version_and_offset():
    sent = Envelope(
        event_type="adaptive_levels",
        payload=Params.of({"symbol": "BTC/USDT", "sl": "0.0104"}),
        trace_id="t-1",
        at_ms=NOW_MS,
        source="execsafe",
        unit="fraction",
    )
    fields = envelope_fields(sent)
    assert fields["timestamp"] == "2023-11-14T22:13:20.000+00:00"
    assert read_envelope(fields) == read_envelope(encode_fields(fields)) == sent
    blank = read_envelope({**fields, "trace_id": ""})
    assert blank.trace_id == read_envelope({**fields, "trace_id": None}).trace_id != ""
    with pytest.raises(InvalidTimestamp):
        read_envelope({**fields, "timestamp": "2023-11-14T22:13:20"})
    with pytest.raises(InvalidInput, match="schema_version"):
        read_envelope({**fields, "schema_version": 2})


@pytest.mark.row("S2-20")
def test_a_payload_inside_an_envelope_is_found_and_its_own_facts_go_first():
    inner = {**without("timestamp"), "trace_id": ""}
    fields = encode_fields({"payload": inner, "trace_id": "outer", "timestamp": NOW_MS, "source": "bus"})
    assert unwrap(fields)["trace_id"] == "outer"
    found = read_signal(fields, POLICY)
    assert isinstance(found, Signal)
    assert (found.at_ms, found.source, found.trace_id) == (NOW_MS, "brain", "outer")


# --- The decision -------------------------------------------------------------------------------------------


@pytest.mark.row("S2-04", "S2-06")
@pytest.mark.guarantee(17)
@settings(max_examples=1_000, deadline=None)
@given(st.integers(-20_000, 600_000))
@example(300_000)
@example(300_001)
@example(-5_000)
@example(-5_001)
def test_g17_an_entry_passes_from_five_seconds_ahead_to_five_minutes_old_both_included(age):
    decision = decide(signal(), NOW_MS + age, POLICY)
    if age < -5_000:
        assert isinstance(decision, Drop)
        assert decision.reason is DropReason.FUTURE
    elif age > 300_000:
        assert isinstance(decision, Drop)
        assert decision.reason is DropReason.STALE
        assert str(age) in decision.note
    else:
        assert decision == Accept(fresh_until_ms=min(NOW_MS, NOW_MS + age) + 300_000)


@pytest.mark.row("S2-10")
@pytest.mark.guarantee(17)
def test_g17_a_signal_may_not_grow_into_the_present_while_it_waits_on_the_bus():
    """25.3 s ahead when it was published, 60 s later it looks like the past."""
    decision = decide(signal(), NOW_MS + 34_700, POLICY, published_at_ms=NOW_MS - 25_300)
    assert isinstance(decision, Drop)
    assert decision.reason is DropReason.FUTURE
    clamping = SignalPolicy(on_future=OnFuture.CLAMP)
    decision = decide(signal(), NOW_MS + 34_700, clamping, published_at_ms=NOW_MS - 25_300)
    assert decision == Accept(fresh_until_ms=NOW_MS - 25_300 + 300_000)


@pytest.mark.row("S2-03", "S2-05", "S2-12")
@pytest.mark.parametrize(
    ("changes", "policy", "reason"),
    [
        ({"side": "hold"}, POLICY, DropReason.HOLD),
        ({"side": "flat"}, POLICY, DropReason.FLAT),
        ({}, SignalPolicy(mode="drain"), DropReason.DRAIN),
        ({"side": "flat"}, SignalPolicy(mode="drain", on_flat="exit"), DropReason.DRAIN),
    ],
)
def test_every_drop_has_its_reason(changes, policy, reason):
    decision = decide(signal(**changes), NOW_MS, policy)
    assert isinstance(decision, Drop)
    assert decision.reason is reason


@pytest.mark.guarantee(17)
def test_g17_an_exit_is_executed_when_it_is_old_or_from_the_future():
    exits = SignalPolicy(on_flat=OnFlat.EXIT)
    for age in (-(10**9), 0, 5 * 10**8):
        assert decide(signal(side="flat"), NOW_MS + age, exits) == Accept(fresh_until_ms=None)
    unreadable = read_signal({**PAYLOAD, "side": "flat", "timestamp": "?"}, exits)
    assert isinstance(unreadable, Signal)
    assert isinstance(read_signal({**PAYLOAD, "side": "flat", "timestamp": "?", "trace_id": ""}, exits), DeadLetter)
    assert isinstance(read_signal({**PAYLOAD, "timestamp": "?"}, exits), DeadLetter)


@pytest.mark.guarantee(14)
@pytest.mark.parametrize(
    ("at_ms", "published_at_ms"),
    [(NOW_MS, None), (NOW_MS, NOW_MS), (2 * NOW_MS, NOW_MS), (NOW_MS, NOW_MS + 900_000), (0, NOW_MS)],
)
def test_g14_an_exit_that_may_have_been_executed_and_forgotten_is_for_somebody_to_look_at(at_ms, published_at_ms):
    """Repeated from a stream that keeps everything, it would close what was opened since."""
    exits = SignalPolicy(on_flat=OnFlat.EXIT, retention_s=1_000, delivery_delay_s=0)
    sent = signal(side="flat", at_ms=at_ms)
    last = decide(sent, NOW_MS + 995_000, exits, published_at_ms=published_at_ms)
    assert last == Accept(fresh_until_ms=None)
    later = decide(sent, NOW_MS + 995_001, exits, published_at_ms=published_at_ms)
    assert isinstance(later, DeadLetter)
    assert later.reason is DropReason.STALE


def test_an_exit_without_a_time_is_executed_where_nobody_knows_better():
    exits = SignalPolicy(on_flat=OnFlat.EXIT)
    assert decide(signal(side="flat", at_ms=0), NOW_MS, exits) == Accept(fresh_until_ms=None)


@pytest.mark.parametrize(
    ("side", "said_ms", "is_undone"),
    [
        ("long", 9, True), ("short", 9, True), ("long", 10, False),  # an exit was said at 10
        ("flat", 19, True), ("flat", 20, False),  # an entry was said at 20, another one at 5
    ],
)  # fmt: skip
def test_what_was_said_before_what_it_would_undo_is_superseded(side, said_ms, is_undone):
    latest = {SignalSide.FLAT: 10, SignalSide.LONG: 20, SignalSide.SHORT: 5}
    assert is_superseded(SignalSide(side), said_ms, latest) is is_undone


def test_a_time_ahead_or_unknown_counts_as_the_moment_of_receipt():
    """A flat signal from next year would otherwise refuse every entry until then."""
    assert said_at_ms(signal(), NOW_MS + 1) == NOW_MS
    assert said_at_ms(signal(), NOW_MS - 1) == NOW_MS - 1
    assert said_at_ms(signal(at_ms=0), NOW_MS) == NOW_MS


@pytest.mark.row("S2-11", "D-03")
def test_what_is_remembered_decides_before_anything_else():
    one = signal()
    ended = Seen(fingerprint=one.fingerprint, is_ended=True)
    begun = Seen(fingerprint=one.fingerprint, is_ended=False, fresh_until_ms=5)
    foreign = Seen(fingerprint="other", is_ended=True)
    assert decide(one, NOW_MS, POLICY, ended) == Drop(reason=DropReason.DUPLICATE)
    assert decide(one, NOW_MS + 10**9, SignalPolicy(mode="drain"), begun) == Accept(fresh_until_ms=5, is_resumed=True)
    conflict = decide(one, NOW_MS, POLICY, foreign)
    assert isinstance(conflict, DeadLetter)
    assert conflict.reason is DropReason.CONFLICTING_ID


@pytest.mark.row("S4-27")
def test_the_content_key_ignores_who_said_it_and_when():
    assert signal(id="a").content_key == signal(id="b", at_ms=NOW_MS + 1, source="x").content_key
    assert signal().content_key != signal(side="short").content_key
    spaced = SignalPolicy(content_interval_s=10)
    assert decide_content(NOW_MS, NOW_MS + 9_999, POLICY) is None
    assert decide_content(None, NOW_MS, spaced) is None
    assert decide_content(NOW_MS, NOW_MS + 10_000, spaced) is None
    too_soon = decide_content(NOW_MS, NOW_MS + 9_999, spaced)
    assert too_soon is not None
    assert too_soon.reason is DropReason.TOO_SOON


@pytest.mark.row("D-19")
@pytest.mark.guarantee(14)
def test_g14_forgetting_too_early_is_refused_at_construction():
    """300 s + 5 s + 600 s: one second less, and a repeat could outlive its record."""
    SignalPolicy(retention_s=905)
    with pytest.raises(InvalidInput, match="executed again"):
        SignalPolicy(retention_s=904.999)
    with pytest.raises(InvalidInput):
        SignalPolicy(content_interval_s=10**6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_age_s": 0},
        {"max_age_s": float("nan")},
        {"max_future_skew_s": -1},
        {"mode": "yolo"},
        {"on_flat": "maybe"},
        {"side_aliases": {"buy": "up"}},
        {"delivery_delay_s": True},
    ],
)
def test_a_policy_that_cannot_work_is_refused(wrong):
    with pytest.raises(InvalidInput):
        SignalPolicy(**wrong)


def test_the_age_is_by_our_clock():
    assert age_ms(signal(), NOW_MS + 7) == 7
    assert attrs.evolve(signal(), trace_id="t").id == "s-1"
    assert ExecutionMode("paper") is ExecutionMode.PAPER


# --- Fields -------------------------------------------------------------------------------------------------

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.text(st.characters(), max_size=12),
    st.sampled_from(["null", "1", "1e5", "true", "[]", '"x"', "NaN", " 1", "", "\ud800", "[" * 3_000]),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.row("S2-29", "S2-30", "D-12")
@settings(max_examples=1_500, deadline=None)
@given(st.dictionaries(st.text(max_size=6), _VALUES, max_size=5))
def test_every_payload_becomes_text_by_name_and_comes_back(payload):
    """Lists, bools and None too; nothing is filtered out."""
    fields = encode_fields(payload)
    assert fields.keys() == payload.keys()
    assert all(type(text) is str and (text.encode() or True) for text in fields.values())
    assert decode_fields(fields) == exact(payload)


def exact(value):
    """The value with its floats as the decimals that they print."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, list):
        return [exact(item) for item in value]
    return {key: exact(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.row("S2-29", "D-12")
def test_a_field_that_is_left_out_overwrites_its_old_value():
    record: dict[str, str] = {}
    names = ("tp1", "sl", "regime")
    record.update(encode_fields({"tp1": Decimal("0.0084"), "sl": 0.02, "regime": "trend"}, names=names))
    record.update(encode_fields({"tp1": Decimal("0.0090"), "regime": None}, names=names))
    assert decode_fields(record) == {"tp1": Decimal("0.0090"), "sl": None, "regime": None}


@pytest.mark.row("S2-30")
def test_levels_with_their_list_fit_into_a_hash():
    fields = encode_fields({"tp1": 0.847247979309735, "harvest_scheme": [0.4, 0.4, 0.2], "ok": True})
    assert fields == {"tp1": "0.847247979309735", "harvest_scheme": "[0.4,0.4,0.2]", "ok": "true"}


@pytest.mark.parametrize(
    "payload",
    [{"a": float("nan")}, {"a": Decimal("Infinity")}, {"a": object()}, {"a": {1: 2}}, {1: 2}, {"a": 1 << 5_000}],
)
def test_what_is_not_json_is_refused(payload):
    with pytest.raises(InvalidInput):
        encode_fields(payload)


def test_a_payload_without_a_bottom_is_refused():
    endless: list = []
    endless.append(endless)
    with pytest.raises(InvalidInput):
        encode_fields({"a": endless})


# --- Funnel and waves ---------------------------------------------------------------------------------------

_STAGES = list(Stage)


@pytest.mark.row("S3-01", "S3-03", "S3-46")
@settings(max_examples=1_000, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.none() | st.sampled_from(list(DropReason))), max_size=40))
def test_in_every_stage_what_entered_went_on_was_dropped_or_is_still_there(walks):
    funnel = Funnel()
    still_there = dict.fromkeys(_STAGES, 0)
    for reached, reason in walks:
        for stage in _STAGES[: reached + 1]:
            funnel = funnel.enter(stage)
        if reason is not None:
            funnel = funnel.drop(_STAGES[reached], reason)
        elif _STAGES[reached] is not Stage.OPENED:
            still_there[_STAGES[reached]] += 1
    for stage in _STAGES[:-1]:
        assert funnel.pending_at(stage) == still_there[stage]
    assert sum(funnel.dropped.values()) == sum(1 for _, reason in walks if reason is not None)


@pytest.mark.row("S3-01", "S3-02", "S3-03", "D-17")
def test_the_seeds_wave_has_one_rate_per_denominator():
    """57 received, 13 validated, 9 attempted, 8 opened: 8 of 9, and 8 of 57; the four not attempted are no failures."""
    funnel = Funnel(
        entered={
            Stage.RECEIVED: 57,
            Stage.ADAPTED: 57,
            Stage.VALIDATED: 13,
            Stage.ATTEMPTED: 9,
            Stage.OPENED: 8,
        },
        dropped={
            (Stage.ADAPTED, DropReason.DUPLICATE): 44,
            (Stage.VALIDATED, DropReason.NOT_ATTEMPTED): 4,
            (Stage.ATTEMPTED, DropReason.REJECTED): 1,
        },
    )
    assert [
        funnel.pending_at(stage) for stage in (Stage.RECEIVED, Stage.ADAPTED, Stage.VALIDATED, Stage.ATTEMPTED)
    ] == [0] * 4
    opened = funnel.ratio("opened_of_attempted")
    assert (opened.count, opened.out_of, opened.denominator) == (8, 9, Stage.ATTEMPTED)
    assert funnel.ratio("opened_of_received").out_of == 57
    assert {name: Funnel().ratio(name).value for name in RATIOS} == dict.fromkeys(RATIOS)
    with pytest.raises(InvalidInput):
        funnel.ratio("success")


@pytest.mark.row("S3-02")
@settings(max_examples=1_000, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.lists(st.booleans(), max_size=20), st.integers(1, 4))
def test_a_wave_stops_at_its_target_and_never_tries_more_than_target_and_buffer(target, buffer, fates, at_once):
    plan = WavePlan(target=target, buffer=buffer)
    opened = failed = attempted = under_way = 0
    for opens in fates:
        while (
            under_way == at_once or wave_step(plan, opened=opened, failed=failed, under_way=under_way) is WaveStep.WAIT
        ):
            under_way, opened, failed = under_way - 1, opened + opens, failed + (not opens)
        if wave_step(plan, opened=opened, failed=failed, under_way=under_way) is WaveStep.STOP:
            break
        attempted, under_way = attempted + 1, under_way + 1
        assert opened + under_way <= target
    assert attempted <= target + buffer
    if len(fates) > target + buffer and all(fates):
        assert attempted == target


def test_a_wave_that_wants_nothing_is_refused():
    with pytest.raises(InvalidInput):
        WavePlan(target=0)
    with pytest.raises(InvalidInput):
        WavePlan(buffer=-1)
    assert WavePlan().split("abcdefghij") == (tuple("abcdefg"), tuple("hij"))
