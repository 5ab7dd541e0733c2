"""What arrives on a bus, read strictly: envelope → payload → ``TradeIntent`` → ``Signal``. Pure.

Payloads come as typed JSON or, from streams, as text by name; both are read alike. Nothing is guessed: a missing
symbol, side or time is an error, never a default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import attrs

from execsafe.core.fields import NULL, decode_field
from execsafe.core.signals import (
    DeadLetter,
    DropReason,
    OnFlat,
    SignalPolicy,
    event_time_text,
    parse_event_time,
    parse_side,
)
from execsafe.errors import InvalidInput, InvalidTimestamp
from execsafe.model.signal import (
    SCHEMA_VERSION,
    SIGNAL_ID_LENGTH_MAX,
    Envelope,
    Signal,
    SignalSide,
    TradeIntent,
    fingerprint_of,
)
from execsafe.model.values import Params, plain, shorten, to_decimal

_SCIENTIFIC: Final = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?[eE][+-]?[0-9]{1,2}", re.ASCII)
_NUMBERS: Final = (
    "confidence",
    "atr_value",
    "volatility_factor",
    "leverage",
    "position_size_usd",
    "funding_rate",
    "exchange_divergence",
)
_TEXTS: Final = ("symbol", "side", "source", "regime", "trace_id", "signal_id")
_KNOWN: Final = frozenset({*_NUMBERS, *_TEXTS, "timestamp", "id"})
_RECORDED: Final = (*_NUMBERS, "source", "regime", "extra")
"""What a signal takes over from its payload unchanged."""


# --- Payloads ----------------------------------------------------------------------------------------


def unwrap(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The payload inside an envelope (a ``payload`` field, JSON text or mapping), or *fields* themselves.

    ``trace_id``, ``timestamp`` and ``source`` of the envelope count where the payload has none of its own.

    Raises:
        InvalidInput: *fields* is no mapping with text names, or the payload no JSON object.
    """
    outside = _object(fields, "a signal")
    if "payload" not in outside:
        return outside
    payload = outside["payload"]
    inner = _object(decode_field(payload) if isinstance(payload, str) else payload, "the payload of an envelope")
    outer: dict[str, Any] = {name: outside[name] for name in ("trace_id", "timestamp", "source") if name in outside}
    return {**outer, **{name: value for name, value in inner.items() if name not in outer or not _is_blank(value)}}


def read_trade_intent(fields: Mapping[str, Any]) -> TradeIntent:
    """Check the types of a trade-intent payload; unknown fields are kept.

    Raises:
        InvalidTimestamp: the timestamp is missing, or neither a number nor text.
        InvalidInput: anything else that is missing or of the wrong type; the message names the field.
    """
    payload = unwrap(fields)
    values: dict[str, Any] = {name: _text(name, payload.get(name)) for name in _TEXTS}
    values["signal_id"] = values["signal_id"] or _text("id", payload.get("id"))
    for name in ("symbol", "side"):
        if not values[name]:
            raise InvalidInput(f"{name} is missing; there is no default for it", field=name)
    for name in _NUMBERS:
        values[name] = _number(name, payload.get(name))
    extra = {name: value for name, value in payload.items() if name not in _KNOWN}
    try:
        return TradeIntent(**values, timestamp=_stamp(payload.get("timestamp")), extra=Params.of(extra))
    except InvalidTimestamp:
        raise
    except InvalidInput as error:
        raise InvalidInput(f"malformed trade intent: {error}") from None


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidInput(f"{what} must be a mapping with text names, was {shorten(type(value).__name__)}")
    return dict(value)


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in {"", NULL})


def _text(name: str, value: object) -> str:
    if _is_blank(value):
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be text, was {shorten(type(value).__name__)}", field=name)
    return _unquoted(value)


def _unquoted(text: str) -> str:
    """Text that could be read as something else travels quoted."""
    plain_text = decode_field(text) if text.startswith('"') else text
    return plain_text if isinstance(plain_text, str) else text


def _number(name: str, value: Any) -> Decimal | None:
    if _is_blank(value):
        return None
    number = _unquoted(value) if isinstance(value, str) else value
    if isinstance(number, str) and _SCIENTIFIC.fullmatch(number):  # how floats below 1e-4 print themselves
        number = Decimal(number)
    return to_decimal(number, name)


def _stamp(value: object) -> str:
    if _is_blank(value):
        raise InvalidTimestamp("timestamp is missing; a signal without a time is never executed")
    if isinstance(value, str):
        return _text("timestamp", value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise InvalidTimestamp(f"timestamp must be a number or text, was {shorten(type(value).__name__)}")
    try:
        return plain(to_decimal(value, "timestamp"))
    except InvalidInput as error:
        raise InvalidTimestamp(str(error)) from None


# --- Signals -----------------------------------------------------------------------------------------


def read_signal(fields: Mapping[str, Any], policy: SignalPolicy) -> Signal | DeadLetter:
    """Understand a payload, or say why it cannot be understood. Never raises, and never fills in what is missing.

    A signal's id is its ``signal_id`` (or ``id``); else its ``trace_id`` with the symbol, because one trace may lead
    to trades in several; else a digest of all that it says, its time included.
    """
    try:
        sent = read_trade_intent(fields)
    except InvalidTimestamp as error:
        return DeadLetter(reason=DropReason.INVALID_TIMESTAMP, note=str(error))
    except InvalidInput as error:
        return DeadLetter(reason=DropReason.MALFORMED, note=str(error))
    if policy.symbols is not None and sent.symbol not in policy.symbols:
        return DeadLetter(reason=DropReason.UNKNOWN_SYMBOL, note=f"{shorten(sent.symbol)} is not in the list")
    symbol = sent.symbol if policy.symbols is None else policy.symbols[sent.symbol]
    try:
        side = parse_side(sent.side, policy.side_aliases)
    except InvalidInput as error:
        return DeadLetter(reason=DropReason.UNKNOWN_SIDE, note=str(error))
    try:
        at_ms = _time_of(sent, side, policy)
        return _with_identity(sent, symbol, side, at_ms, policy)
    except InvalidTimestamp as error:
        return DeadLetter(reason=DropReason.INVALID_TIMESTAMP, note=str(error))
    except InvalidInput as error:
        return DeadLetter(reason=DropReason.MALFORMED, note=str(error))


def _time_of(sent: TradeIntent, side: SignalSide, policy: SignalPolicy) -> int:
    try:
        return parse_event_time(sent.timestamp)
    except InvalidTimestamp:
        # An exit is never refused for its age; without an identity it could not be told from its own repeat.
        if side is SignalSide.FLAT and policy.on_flat is OnFlat.EXIT and (sent.signal_id or sent.trace_id):
            return 0
        raise


def _with_identity(sent: TradeIntent, symbol: str, side: SignalSide, at_ms: int, policy: SignalPolicy) -> Signal:
    given = sent.signal_id or (_bounded(f"{sent.trace_id}:{symbol}") if sent.trace_id else "")
    taken_over = {name: getattr(sent, name) for name in _RECORDED}
    signal = Signal(id=given or "-", symbol=symbol, side=side, at_ms=at_ms, size_unit=policy.size_unit, **taken_over)
    own = given or f"content:{signal.fingerprint}"
    return attrs.evolve(signal, id=own, trace_id=sent.trace_id or own)


def _bounded(text: str) -> str:
    return text if len(text) <= SIGNAL_ID_LENGTH_MAX else f"trace:{fingerprint_of({'trace': text})}"


# --- Envelopes ---------------------------------------------------------------------------------------


def envelope_fields(envelope: Envelope) -> dict[str, Any]:
    """The envelope as plain JSON, ready for a bus: ``timestamp`` is ISO-8601 in UTC with its offset."""
    return {
        "event_type": envelope.event_type,
        "payload": envelope.payload.thaw(),
        "trace_id": envelope.trace_id,
        "timestamp": event_time_text(envelope.at_ms),
        "source": envelope.source,
        "unit": envelope.unit,
        "schema_version": envelope.schema_version,
    }


def read_envelope(fields: Mapping[str, Any]) -> Envelope:
    """The reverse of :func:`envelope_fields`, also of its text form.

    An empty trace id is replaced by a digest of the content: the same envelope always gets the same one.

    Raises:
        InvalidTimestamp: the timestamp names no instant.
        InvalidInput: malformed, or of a newer schema.
    """
    raw = fields.get("payload")
    payload = decode_field(raw) if isinstance(raw, str) else raw
    if not isinstance(payload, Mapping):
        raise InvalidInput("the payload of an envelope must be a JSON object")
    version = _number("schema_version", fields.get("schema_version"))
    if version is None or version != int(version) or not 1 <= version <= SCHEMA_VERSION:
        raise InvalidInput(f"schema_version must be 1 to {SCHEMA_VERSION}, was {shorten(fields.get('schema_version'))}")
    known = Params.of(payload)
    stamp = _stamp(fields.get("timestamp"))
    kind = _text("event_type", fields.get("event_type"))
    return Envelope(
        event_type=kind,
        payload=known,
        trace_id=_text("trace_id", fields.get("trace_id")) or new_trace_id(kind, known, stamp),
        at_ms=parse_event_time(stamp),
        source=_text("source", fields.get("source")),
        unit=_text("unit", fields.get("unit")),
        schema_version=int(version),
    )


def new_trace_id(*parts: Any) -> str:
    """A trace id for what came without one: a pure function of what it is about."""
    return "gen-" + fingerprint_of({"parts": json.dumps([str(part) for part in parts])})
