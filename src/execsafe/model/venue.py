"""What is known of a venue: identifiers, uniqueness, expiry, look-ups, lags. One value per exchange."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import attrs

from execsafe.errors import InvalidInput
from execsafe.model.values import (
    EMPTY_PARAMS,
    Params,
    check_seconds,
    optional_text_validator,
    shorten,
    text_validator,
    to_params,
)


class Word(enum.StrEnum):
    """One word of a closed list; any other is refused with the list."""

    @classmethod
    def _missing_(cls, value: object) -> None:
        words = ", ".join(repr(member.value) for member in cls)
        raise InvalidInput(f"{cls.__name__} must be one of {words}, was {shorten(value)}")


class Dedup(Word):
    """Among which orders the venue enforces that a client order id is unique."""

    NONE = "none"
    OPEN = "open"  # only among open orders: after a fill the same id is accepted again
    WINDOW = "window"
    FOREVER = "forever"


class Expiry(Word):
    """How a request's last possible acceptance is bounded."""

    NONE = "none"  # it may land at any time: absence can never be proven
    RELATIVE = "relative"  # a window counted from the moment of signing
    ABSOLUTE = "absolute"  # the request names the instant itself


class IdEncoding(Word):
    """Shape of a venue's client order ids."""

    TEXT = "text"
    HEX128 = "hex128"  # 0x + 32 hex digits
    INT63 = "int63"  # 1 … 2**63 - 1, in decimal


class View(Word):
    """One place where a venue shows orders. Absence counts only when every declared view says so."""

    CLIENT_ID = "client_id"  # single look-up by client order id, open and ended orders
    OPEN_ORDERS = "open_orders"
    CLOSED_ORDERS = "closed_orders"
    TRADES = "trades"


_Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]
_LENGTH_MIN: Final = 16  # a shorter id would let two intents share one


def _is(*kinds: type) -> _Validator:
    def validate(_instance: Any, attribute: attrs.Attribute[Any], value: object) -> None:
        if type(value) not in kinds:
            names = " or ".join(kind.__name__ for kind in kinds)
            raise InvalidInput(f"{attribute.name} must be {names}, was {shorten(type(value).__name__)}")

    return validate


def _length(_instance: Any, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or value < _LENGTH_MIN:
        raise InvalidInput(f"{attribute.name} must be a whole number of at least {_LENGTH_MIN}, was {shorten(value)}")


@attrs.frozen(kw_only=True)
class IdRule:
    """Alphabet and length of the venue's client order ids.

    The default is portable: at most 18 lower-case letters and digits, never starting with "t", which every
    venue in scope but hyperliquid and htx swaps accepts.
    """

    encoding: IdEncoding = attrs.field(default=IdEncoding.TEXT, converter=IdEncoding)
    length_max: int = attrs.field(default=18, validator=_length)
    param: str = attrs.field(
        default="clientOrderId", validator=text_validator("param", 64)
    )  # name under which the venue's client takes it on create


@attrs.frozen(kw_only=True)
class LookUp:
    """How to read one view through ccxt: method name and parameters.

    ``params`` may hold ``"{client_order_id}"``. ``scan`` says that the answer lists other orders too and must be
    filtered by client order id (ownership is by id only, never by similarity).
    """

    view: View = attrs.field(converter=View)
    method: str = attrs.field(validator=text_validator("method", 128))
    params: Params = attrs.field(default=EMPTY_PARAMS, converter=to_params)
    scan: bool = False
    id_field: str = "clientOrderId"  # where the answer carries the id; "info.label" reads the raw body


_DAY_S = 86_400.0
_YEARS_S = 10 * 366 * _DAY_S


def _seconds(_instance: Any, attribute: attrs.Attribute[float], value: object) -> None:
    check_seconds(value, attribute.name, least=0, most=_DAY_S)


def _history(_instance: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_seconds(value, attribute.name, most=_YEARS_S)


def _lookups(value: Iterable[LookUp]) -> tuple[LookUp, ...]:
    found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(lookup, LookUp) for lookup in found):
        raise InvalidInput("lookups must be a tuple of LookUp")
    return found


@attrs.frozen(kw_only=True)
class VenueProfile:
    """Facts about one venue that decide what can be proven there. Adjust a copy with ``attrs.evolve``.

    Attributes:
        name: ccxt's exchange id; ``"unknown"`` for the weakest row.
        dedup: enforced uniqueness of client order ids.
        expiry: what bounds a request's acceptance; ``expiry_window_s`` is the window asked for.
        expiry_param: the request parameter, option or header that carries it (see ``venues/profiles.py``).
        clock_skew_s: how far the venue's clock may be from ours.
        read_lag_s: how long a read may lag behind the matching engine. 20 s and more were seen on a major
            venue, hence the default of 30.
        history_s: how long all views still show an order that ended right after it was sent; None: that is
            not limited. Beyond that, "not found" proves nothing.
        lookups: the declared views, in the order in which they are asked.
        cancel_params: parameters with which an order is canceled by client id; None: only by venue id.
        definite_ack: whether a create answer states the order's status and filled quantity reliably.
        attached_stops, stop_orders: whether such parameters are understood (others would be dropped silently).
    """

    name: str = attrs.field(default="unknown", validator=text_validator("name", 64))
    client_order_id: IdRule = attrs.field(default=IdRule(), validator=_is(IdRule))
    dedup: Dedup = attrs.field(default=Dedup.NONE, converter=Dedup)
    expiry: Expiry = attrs.field(default=Expiry.NONE, converter=Expiry)
    expiry_window_s: float = attrs.field(default=10.0, validator=_seconds)
    expiry_param: str | None = attrs.field(default=None, validator=optional_text_validator("expiry_param", 64))
    clock_skew_s: float = attrs.field(default=1.0, validator=_seconds)
    read_lag_s: float = attrs.field(default=30.0, validator=_seconds)
    history_s: float | None = attrs.field(default=None, validator=_history)
    lookups: tuple[LookUp, ...] = attrs.field(default=(), converter=_lookups)
    cancel_params: Params | None = attrs.field(default=None, validator=_is(Params, type(None)))
    definite_ack: bool = attrs.field(default=False, validator=_is(bool))
    attached_stops: bool = attrs.field(default=False, validator=_is(bool))
    stop_orders: bool = attrs.field(default=True, validator=_is(bool))
    notes: str = ""

    @property
    def views(self) -> tuple[View, ...]:
        """The declared views, each once, in asking order."""
        return tuple(dict.fromkeys(lookup.view for lookup in self.lookups))
