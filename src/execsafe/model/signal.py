"""Signals: what a strategy says, as it arrives (``TradeIntent``) and as it is understood (``Signal``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import attrs

from execsafe.errors import InvalidInput
from execsafe.model.position import PositionSide
from execsafe.model.units import Margin, Notional
from execsafe.model.values import (
    EMPTY_PARAMS,
    SYMBOL_LENGTH_MAX,
    Number,
    Params,
    plain,
    shorten,
    text_validator,
    to_decimal,
    to_params,
    to_positive,
)
from execsafe.model.venue import Word

SIGNAL_ID_LENGTH_MAX: Final = 128
TEXT_LENGTH_MAX: Final = 128
SCHEMA_VERSION: Final = 1
"""Version of the envelope; a reader refuses what is newer."""

INSTANT_END_MS: Final = 100_000_000_000_000
"""Instants end in the year 5138: what is larger is in another unit."""

_ONE: Final = Decimal(1)


class SignalSide(Word):
    """What a signal wants the position to be."""

    LONG = "long"
    SHORT = "short"
    FLAT = "flat"  # nothing held: an exit
    HOLD = "hold"  # as it is: nothing to do

    @property
    def position_side(self) -> PositionSide | None:
        """The position that it opens; None where it opens none."""
        return _POSITION_SIDES.get(self)


_POSITION_SIDES: Final = {SignalSide.LONG: PositionSide.LONG, SignalSide.SHORT: PositionSide.SHORT}


class SizeUnit(Word):
    """What a sender means by the size of a position. The two differ by the leverage."""

    NOTIONAL = "notional"  # value of the position
    MARGIN = "margin"  # what is put down for it


class ExecutionMode(Word):
    """What is done with signals that pass."""

    LIVE = "live"
    DRAIN = "drain"  # consumed and acknowledged, never executed
    PAPER = "paper"  # executed, but never at a real venue


def to_optional_number(value: Number | None) -> Decimal | None:
    """Any finite number, or None."""
    return None if value is None else to_decimal(value)


def to_optional_positive(value: Number | None) -> Decimal | None:
    """A number above 0, or None."""
    return None if value is None else to_positive(value)


def to_optional_share(value: Number | None) -> Decimal | None:
    """A number from 0 to 1, or None."""
    if value is None:
        return None
    number = to_decimal(value)
    if not 0 <= number <= _ONE:
        raise InvalidInput(f"confidence must be from 0 to 1, was {plain(number)}")
    return number


def to_optional_amount(value: Number | None) -> Decimal | None:
    """A number of at least 0, or None."""
    if value is None:
        return None
    number = to_decimal(value)
    if number < 0:
        raise InvalidInput(f"value must be at least 0, was {plain(number)}")
    return number


def _short_text(_instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value != "":
        text_validator(attribute.name, TEXT_LENGTH_MAX)(_instance, attribute, value)


def _instant(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or not 0 <= value < INSTANT_END_MS:
        raise InvalidInput(f"{attribute.name} must be integer Unix milliseconds, was {shorten(value)}")


@attrs.frozen(kw_only=True)
class IlfMetadata:
    """What a leverage formula recorded about a trade. Stored and passed on, never used to decide."""

    atr_value: Decimal | None = attrs.field(default=None, converter=to_optional_amount)
    exchange_divergence: Decimal | None = attrs.field(default=None, converter=to_optional_number)
    funding_rate: Decimal | None = attrs.field(default=None, converter=to_optional_number)
    regime: str = attrs.field(default="", validator=_short_text)

    def to_payload(self) -> dict[str, Any]:
        """Plain JSON; numbers as text, because a binary float would change them."""
        return {
            "atr_value": _text_of(self.atr_value),
            "exchange_divergence": _text_of(self.exchange_divergence),
            "funding_rate": _text_of(self.funding_rate),
            "regime": self.regime or None,
        }


def _text_of(number: Decimal | None) -> str | None:
    return None if number is None else plain(number)


@attrs.frozen(kw_only=True)
class TradeIntent:
    """A trade-intent payload with its types checked, but nothing interpreted: ``side`` and ``timestamp`` are as sent.

    Made by :func:`execsafe.core.payloads.read_trade_intent`.

    Attributes:
        symbol, side, timestamp: as sent; there is no default for any of them.
        source: who said it.
        confidence: 0 to 1.
        leverage, volatility_factor, atr_value: above 0; at least 0 for the latter two.
        position_size_usd: quote currency, above 0. Whether it means notional or margin is for whoever sizes it to say.
        funding_rate, exchange_divergence, regime: as sent.
        trace_id, signal_id: identities given by the sender; empty where it gave none.
        extra: every other field, as plain JSON.
    """

    symbol: str = attrs.field(validator=text_validator("symbol", SYMBOL_LENGTH_MAX))
    side: str = attrs.field(validator=text_validator("side", 32))
    timestamp: str = attrs.field(validator=text_validator("timestamp", 64))
    source: str = attrs.field(default="", validator=_short_text)
    confidence: Decimal | None = attrs.field(default=None, converter=to_optional_share)
    atr_value: Decimal | None = attrs.field(default=None, converter=to_optional_amount)
    volatility_factor: Decimal | None = attrs.field(default=None, converter=to_optional_amount)
    leverage: Decimal | None = attrs.field(default=None, converter=to_optional_positive)
    position_size_usd: Decimal | None = attrs.field(default=None, converter=to_optional_positive)
    funding_rate: Decimal | None = attrs.field(default=None, converter=to_optional_number)
    exchange_divergence: Decimal | None = attrs.field(default=None, converter=to_optional_number)
    regime: str = attrs.field(default="", validator=_short_text)
    trace_id: str = attrs.field(default="", validator=_short_text)
    signal_id: str = attrs.field(default="", validator=_short_text)
    extra: Params = attrs.field(default=EMPTY_PARAMS, converter=to_params)


@attrs.frozen(kw_only=True)
class Signal:
    """A signal as it is understood.

    Attributes:
        id: identity. The same id is the same signal, however often it arrives; remembered in the store.
        symbol: unified symbol. *Used.*
        side: what the position should be. *Used.*
        at_ms: the event's own time, Unix ms. *Used*: it decides on freshness.
        source: who said it. *Recorded only.*
        leverage, volatility_factor, exchange_divergence, funding_rate: *used* by whoever computes levels and sizes
            (``AdaptiveLevels``, ``PositionSizer``); the gate does not look at them.
        position_size_usd: quote currency, in *size_unit*; *used* by whoever sizes the trade, as :attr:`position_size`.
        size_unit: whether that is notional or margin; set by the policy, because no payload says it.
        confidence, atr_value, regime: *recorded only*.
        trace_id: correlates what follows; the signal's id where the sender gave none. *Recorded only.*
        extra: unknown fields, kept as they came. *Recorded only.*
    """

    id: str = attrs.field(validator=text_validator("signal id", SIGNAL_ID_LENGTH_MAX))
    symbol: str = attrs.field(validator=text_validator("symbol", SYMBOL_LENGTH_MAX))
    side: SignalSide = attrs.field(converter=SignalSide)
    at_ms: int = attrs.field(validator=_instant)
    source: str = attrs.field(default="", validator=_short_text)
    confidence: Decimal | None = attrs.field(default=None, converter=to_optional_share)
    leverage: Decimal | None = attrs.field(default=None, converter=to_optional_positive)
    position_size_usd: Decimal | None = attrs.field(default=None, converter=to_optional_positive)
    volatility_factor: Decimal | None = attrs.field(default=None, converter=to_optional_amount)
    atr_value: Decimal | None = attrs.field(default=None, converter=to_optional_amount)
    funding_rate: Decimal | None = attrs.field(default=None, converter=to_optional_number)
    exchange_divergence: Decimal | None = attrs.field(default=None, converter=to_optional_number)
    regime: str = attrs.field(default="", validator=_short_text)
    trace_id: str = attrs.field(validator=text_validator("trace_id", SIGNAL_ID_LENGTH_MAX))
    extra: Params = attrs.field(default=EMPTY_PARAMS, converter=to_params)
    size_unit: SizeUnit = attrs.field(default=SizeUnit.NOTIONAL, converter=SizeUnit)

    @trace_id.default
    def _own_id(self) -> str:
        return self.id

    @property
    def position_size(self) -> Notional | Margin | None:
        """The size as a type that cannot be mistaken for the other one."""
        if self.position_size_usd is None:
            return None
        return (Margin if self.size_unit is SizeUnit.MARGIN else Notional)(self.position_size_usd)

    @property
    def ilf_metadata(self) -> IlfMetadata:
        """The part that leverage formulas record."""
        return IlfMetadata(
            atr_value=self.atr_value,
            exchange_divergence=self.exchange_divergence,
            funding_rate=self.funding_rate,
            regime=self.regime,
        )

    @property
    def content_key(self) -> tuple[str, str]:
        """What must not be done twice at the same time, whatever the identity: symbol and side."""
        return (self.symbol, self.side.value)

    @property
    def fingerprint(self) -> str:
        """Digest of everything that was said but the identity: what must be equal when the same id comes again."""
        return fingerprint_of(
            {
                "symbol": self.symbol,
                "side": self.side.value,
                "at_ms": self.at_ms,
                "source": self.source,
                "confidence": _text_of(self.confidence),
                "leverage": _text_of(self.leverage),
                "position_size_usd": _text_of(self.position_size_usd),
                "volatility_factor": _text_of(self.volatility_factor),
                **self.ilf_metadata.to_payload(),
                "extra": self.extra.text,
            }
        )


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """Digest of plain JSON; equal facts give equal digests in every process."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@attrs.frozen(kw_only=True)
class Envelope:
    """What goes over a bus about one thing that happened.

    Attributes:
        event_type: such as ``"adaptive_levels"``.
        payload: the facts, plain JSON.
        trace_id: correlates it with the signal; never empty.
        at_ms: when it happened, Unix ms; written as ISO-8601 with its offset, always UTC.
        source: who says it.
        unit: unit of the numbers that could be mistaken: ``"fraction"``, ``"percent"``, ``"bps"``; empty where
            there are none.
        schema_version: of this envelope.
    """

    event_type: str = attrs.field(validator=text_validator("event_type", TEXT_LENGTH_MAX))
    payload: Params = attrs.field(converter=to_params)
    trace_id: str = attrs.field(validator=text_validator("trace_id", SIGNAL_ID_LENGTH_MAX))
    at_ms: int = attrs.field(validator=_instant)
    source: str = attrs.field(validator=text_validator("source", TEXT_LENGTH_MAX))
    unit: str = attrs.field(default="", validator=_short_text)
    schema_version: int = SCHEMA_VERSION


@attrs.frozen
class PreviewId:
    """Identity of something computed but not traded. Its own type: it is no order id and cannot become one."""

    text: str
