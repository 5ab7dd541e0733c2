"""What the faces of the HTTP venue share: requests as read from the wire, answers, and the jobs between them."""

from __future__ import annotations

import abc
import hashlib
import hmac
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar, Final, TypedDict
from urllib.parse import parse_qsl

import attrs

from execsafe.model.outcome import Operation
from execsafe.model.venue import View
from execsafe.testing._orders import RejectReason, SimOrder, VenueReject
from execsafe.testing._wire import Act
from execsafe.testing.faults import Reading, Strikes
from execsafe.testing.venue import Market, SimVenue

API_KEY: Final = "sim-key"
API_SECRET: Final = "sim-secret"  # noqa: S105 - opens nothing but the simulated venue


@attrs.frozen(kw_only=True)
class WireRequest:
    """A request, byte for byte: signatures cover the raw query and body. Header names are lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: str

    def params(self) -> dict[str, str]:
        """Query and form parameters, or the members of a JSON body, as text."""
        values = dict(parse_qsl(self.query, keep_blank_values=True))
        if self.body.startswith("{"):
            values.update({key: _text(value) for key, value in json.loads(self.body).items()})
        else:
            values.update(parse_qsl(self.body, keep_blank_values=True))
        return values


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@attrs.frozen(kw_only=True)
class Answer:
    """What goes back: JSON text, or whatever a fault makes of it."""

    body: str
    status: int = 200
    headers: Mapping[str, str] = attrs.Factory(dict)
    content_type: str = "application/json"

    @classmethod
    def of(cls, value: object, status: int = 200, **headers: str) -> Answer:
        """An answer in JSON."""
        return cls(body=json.dumps(value, separators=(",", ":")), status=status, headers=headers)

    @classmethod
    def html(cls, status: int) -> Answer:
        """What a load balancer says when the venue behind it does not."""
        body = f"<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"
        return cls(body=body, status=status, content_type="text/html")


class Refusal(VenueReject):
    """A refusal for which only this one answer will do."""

    def __init__(self, answer: Answer, reason: RejectReason = RejectReason.BAD_REQUEST) -> None:
        super().__init__(reason, answer.body)
        self.answer = answer


@attrs.frozen(kw_only=True)
class Job:
    """A request, understood: what it is to a fault plan, and what it does when it arrives."""

    act: Act[Answer]
    operation: Operation | None = None
    dead_after_ms: int | None = None
    reading: Reading | None = None


class Face(abc.ABC):
    """One venue's wire format over a :class:`~execsafe.testing.venue.SimVenue`."""

    name: ClassVar[str]
    hosts: ClassVar[tuple[str, ...]]

    def __init__(self, venue: SimVenue, keys: Mapping[str, str], *, lag_max_ms: int = 2_000) -> None:
        self.venue = venue
        self.keys: dict[str, str] = dict(keys)
        self.lag_max_ms = lag_max_ms

    @abc.abstractmethod
    def read(self, request: WireRequest) -> Job:
        """Understand a request. Nothing is done yet."""

    @abc.abstractmethod
    def refuse(self, reject: VenueReject) -> Answer:
        """The venue's own words for a refusal."""

    def look(self, view: View, now_ms: int, strikes: Strikes, **filters: str | None) -> list[SimOrder]:
        """A view of the venue, as stale as faults may make it."""
        return self.venue.look(view, now_ms, strikes=strikes, lag_max_ms=self.lag_max_ms, **filters)

    def listed(self, is_linear: bool) -> dict[str, Market]:
        """Markets of one kind by the venue's own id."""
        markets = self.venue.markets.values()
        return {market_id(market): market for market in markets if market.is_linear is is_linear}


def market_id(market: Market) -> str:
    """The id on the wire: BTCUSDT."""
    return market.instrument.base + market.instrument.quote


def signed_with(secret: str, payload: str, signature: str) -> bool:
    """Whether *signature* is the HMAC-SHA256 of *payload* in hex."""
    digest = hmac.new(secret.encode(), payload.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(digest, signature)


def number(params: Mapping[str, str], name: str) -> Decimal | None:
    """A decimal parameter; None where it is absent, empty or zero."""
    text = params.get(name) or "0"
    try:
        return Decimal(text) or None
    except ArithmeticError:
        raise VenueReject(RejectReason.BAD_REQUEST, f"{name} is not a number") from None


def integer(params: Mapping[str, str], name: str, default: int = 0) -> int:
    """An integer parameter."""
    text = params.get(name, "")
    return int(text) if text.lstrip("-").isdigit() else default


class Reference(TypedDict):
    """Which order a request means: by the venue's id, else by ours."""

    venue_order_id: str | None
    client_order_id: str | None


def reference(params: Mapping[str, str], venue_name: str, client_name: str) -> Reference:
    """Read a reference; the venue's id outranks ours where both are given."""
    venue_id = params.get(venue_name) or None
    return {"venue_order_id": venue_id, "client_order_id": None if venue_id else params.get(client_name) or None}


def ordinary(act: Act[Any]) -> Act[Answer]:
    """*act*'s plain JSON value as an answer."""

    def answering(now_ms: int, strikes: Strikes) -> Answer:
        return Answer.of(act(now_ms, strikes))

    return answering
