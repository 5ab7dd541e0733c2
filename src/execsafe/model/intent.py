"""What was meant: intents, their attempts, and the record that the registry keeps."""

from __future__ import annotations

import enum
import hashlib
import json
from decimal import Decimal
from typing import Any, Final

import attrs

from execsafe.errors import InvalidInput
from execsafe.model.order import ZERO, Fill, Side
from execsafe.model.values import (
    EMPTY_PARAMS,
    KEY_LENGTH_MAX,
    SYMBOL_LENGTH_MAX,
    Params,
    left_of,
    optional_text_validator,
    plain,
    shorten,
    text_validator,
    to_params,
    to_price,
    to_quantity,
    to_text,
    total,
    weighted_average,
)


class IntentState(enum.StrEnum):
    """Where an intent stands. Derived from its attempts; the legal changes are in ``core/transitions.py``."""

    RECORDED = "recorded"  # nothing on the wire; may be sent
    SENDING = "sending"  # journalled as being sent
    IN_DOUBT = "in_doubt"  # may or may not exist at the venue; being resolved
    UNRESOLVED = "unresolved"  # still in doubt after all patience; escalated, counted, watched
    LIVE = "live"  # known to rest at the venue
    FILLED = "filled"
    CANCELED = "canceled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    FAILED_FINAL = "failed_final"  # proven not placed, attempts spent

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more is expected (late evidence may still revive it)."""
        return self in TERMINAL


INSTANT_MAX: Final = 2**63 - 1
"""The latest instant that can be stored, in Unix ms."""
TERMINAL: Final = frozenset(
    {
        IntentState.FILLED,
        IntentState.CANCELED,
        IntentState.EXPIRED,
        IntentState.REJECTED,
        IntentState.FAILED_FINAL,
    }
)
"""States in which nothing more is expected."""


class AttemptState(enum.StrEnum):
    """Where one submit stands."""

    SENDING = "sending"
    IN_DOUBT = "in_doubt"
    UNRESOLVED = "unresolved"
    LIVE = "live"
    NOT_SENT = "not_sent"  # journalled, provably never handed to the network
    ABSENT = "absent"  # proven not to exist
    REJECTED = "rejected"
    FILLED = "filled"
    CANCELED = "canceled"
    EXPIRED = "expired"
    VANISHED = "vanished"  # it rested, and every view has forgotten it: ended, with what the list of fills holds of it

    @property
    def may_still_fill(self) -> bool:
        """Whether the rest of its quantity counts as exposure."""
        return self in MAY_FILL


MAY_FILL: Final = frozenset({AttemptState.SENDING, AttemptState.IN_DOUBT, AttemptState.UNRESOLVED, AttemptState.LIVE})
"""States in which the rest of an attempt's quantity counts as exposure."""


def _side(value: Side | str) -> Side:
    try:
        return Side(value)
    except ValueError:
        raise InvalidInput(f"side must be 'buy' or 'sell', was {shorten(value)}") from None


STOP_PRICES: Final = ("triggerPrice", "stopLossPrice", "takeProfitPrice")
"""ccxt's unified parameters that make an order a stop order (not one with a stop attached)."""

TRAILING_PARAMS: Final = frozenset(
    {"trailingPercent", "trailingAmount", "trailingDelta", "trailingStop", "trailingPrice", "callbackRate"}
    | {"callbackRatio", "callbackSpread", "trailingTriggerPrice", "activationPrice", "activePrice"}
)
"""Parameters, unified and raw, that make an order a trailing stop."""


def _leg(_instance: Intent, _attribute: object, value: str) -> None:
    if value != "":
        to_text(value, "leg", 64)


def _flag(_instance: Intent, attribute: attrs.Attribute[bool], value: bool) -> None:
    if not isinstance(value, bool):
        raise InvalidInput(f"{attribute.name} must be True or False, was {shorten(value)}")


def _instant(_instance: Intent, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    # Above all NaN, which is later than nothing: it would keep an intent fresh for ever.
    if value is not None and (type(value) is not int or not 0 <= value <= INSTANT_MAX):
        raise InvalidInput(f"{attribute.name} must be integer Unix milliseconds, was {shorten(value)}")


@attrs.frozen(kw_only=True)
class Intent:
    """One thing that the caller means to happen once.

    Args:
        key: the caller's stable identity of the decision, 1 to 200 printable characters. It stands for
            this intent for ever: the same key with another payload is refused.
        symbol: unified ccxt symbol, e.g. ``"BTC/USDT"``.
        side: ``"buy"`` or ``"sell"``.
        quantity: in the venue's order unit; > 0. Floats are taken by their ``repr``.
        limit_price: quote per base; None for a market order.
        type: the venue client's order type; by default "limit" with a price and "market" without.
        account: which account at the venue; part of the identity.
        leg: which part of a plan; part of the identity.
        trigger_price: for stop orders.
        fresh_until_ms: Unix ms after which an *entry* must no longer be sent. None: no limit. Exits
            (``reduce_only``) are never refused for age.
        params: extra parameters for the venue, plain JSON.

    Attributes:
        identity: key of the record in a store: account, intent key and leg. The lengths make it unambiguous.

    Raises:
        InvalidInput: any value that is malformed; the message names it.
    """

    key: str = attrs.field(validator=text_validator("intent key", KEY_LENGTH_MAX))
    symbol: str = attrs.field(validator=text_validator("symbol", SYMBOL_LENGTH_MAX))
    side: Side = attrs.field(converter=_side)
    quantity: Decimal = attrs.field(converter=to_quantity)
    limit_price: Decimal | None = attrs.field(default=None, converter=to_price)
    type: str = attrs.field(validator=text_validator("type", 32))
    account: str = attrs.field(default="default", validator=text_validator("account", 64))
    leg: str = attrs.field(default="", validator=_leg)
    time_in_force: str | None = attrs.field(default=None, validator=optional_text_validator("time_in_force", 16))
    post_only: bool = attrs.field(default=False, validator=_flag)
    reduce_only: bool = attrs.field(default=False, validator=_flag)
    trigger_price: Decimal | None = attrs.field(default=None, converter=to_price)
    fresh_until_ms: int | None = attrs.field(default=None, validator=_instant)
    params: Params = attrs.field(default=EMPTY_PARAMS, converter=to_params)
    # Made once: locks, leases, records and events all name the intent by it, and then share one text.
    identity: str = attrs.field(init=False, eq=False, repr=False)

    @type.default  # noqa: A003 - ccxt's own name
    def _plain_type(self) -> str:
        return "market" if self.limit_price is None else "limit"

    def __attrs_post_init__(self) -> None:
        """Name it, once its parts are known to be sound."""
        name = f"{len(self.account)}.{len(self.key)}:{self.account}/{self.key}/{self.leg}"
        object.__setattr__(self, "identity", name)

    @property
    def fingerprint(self) -> str:
        """Digest of the payload: what must be equal when the same key comes again."""
        payload = [
            self.symbol,
            self.side.value,
            self.type,
            plain(self.quantity),
            None if self.limit_price is None else plain(self.limit_price),
            self.time_in_force,
            self.post_only,
            self.reduce_only,
            None if self.trigger_price is None else plain(self.trigger_price),
            self.params.text,
        ]
        return hashlib.sha256(json.dumps(payload).encode()).hexdigest()[:32]

    @property
    def is_trigger(self) -> bool:
        """Whether this is a stop order of any kind; venues keep those where look-ups for others do not see them."""
        if self.trigger_price is not None:
            return True
        names = self.params.thaw().keys() if self.params is not EMPTY_PARAMS else ()
        return any(name in TRAILING_PARAMS or name in STOP_PRICES for name in names)

    @property
    def stop_name(self) -> str | None:
        """Under which of ccxt's names the price was given at which it triggers; None where it was given under none."""
        if self.trigger_price is not None:
            return "triggerPrice"
        names = self.params.thaw() if self.params is not EMPTY_PARAMS else {}
        return next((name for name in STOP_PRICES if name in names), None)

    @property
    def stop_price(self) -> Decimal | None:
        """The price at which it triggers, under whatever name it was given."""
        name = self.stop_name
        return (
            self.trigger_price if name is None or self.trigger_price is not None else to_price(self.params.thaw()[name])
        )


@attrs.frozen(kw_only=True)
class Amendment:
    """What edits changed of an intent's terms, besides quantity and price; None: as it was first meant.

    ``trigger_price`` is the price at which it triggers, whatever the name under which it was given at first.
    ``fresh_until_ms`` is the edit's own: an edit is a new decision, and it may be hours after the first.
    """

    trigger_price: Decimal | None = attrs.field(default=None, converter=to_price)
    time_in_force: str | None = None
    post_only: bool | None = None
    fresh_until_ms: int | None = None

    def after(self, earlier: Amendment | None) -> Amendment:
        """Both edits together: the earlier one's terms hold where this one has none."""
        return self if earlier is None else attrs.evolve(earlier, **self._stated())

    def _stated(self) -> dict[str, Any]:
        return attrs.asdict(self, filter=lambda _, value: value is not None)

    def applied_to(self, intent: Intent) -> Intent:
        """*intent* with these terms.

        Raises:
            InvalidInput: a term is malformed, or the intent has no price at which it triggers.
        """
        terms = self._stated()
        trigger_price, name = terms.pop("trigger_price", None), intent.stop_name
        if trigger_price is not None and name is None:
            raise InvalidInput("an edit cannot make a stop order of a plain one", intent_key=intent.key)
        if trigger_price is not None and intent.trigger_price is not None:
            terms["trigger_price"] = trigger_price
        elif trigger_price is not None:
            terms["params"] = {**intent.params.thaw(), str(name): plain(trigger_price)}
        return attrs.evolve(intent, **terms)


@attrs.frozen(kw_only=True)
class ErrorFacts:
    """What is kept of an error: class name, venue code and redacted message. Never the exception itself."""

    kind: str
    message: str = ""
    code: str | None = None


@attrs.frozen(kw_only=True)
class Attempt:
    """One submit of an intent. Times are Unix milliseconds.

    ``deadline_ms``: after it the request can no longer be accepted; None where the venue offers no expiry.
    ``filled_quantity`` is cumulative and only grows. ``exists`` is True once the venue said that an order
    with this id exists (a duplicate-id reject), even though no look has found it.
    """

    number: int
    client_order_id: str
    quantity: Decimal
    limit_price: Decimal | None = None
    state: AttemptState = AttemptState.SENDING
    prepared_at_ms: int = 0
    deadline_ms: int | None = None
    venue_order_id: str | None = None
    filled_quantity: Decimal = ZERO
    average_price: Decimal | None = None
    fills: tuple[Fill, ...] = ()
    exists: bool = False
    doubted_at_ms: int | None = None
    error: ErrorFacts | None = None

    @property
    def leaves_quantity(self) -> Decimal:
        """What has not filled; only exposure while ``state.may_still_fill``."""
        return left_of(self.quantity, self.filled_quantity)


@attrs.frozen(kw_only=True)
class Change:
    """A journalled wish to change a live order: cancel it (``quantity`` None) or replace it.

    ``quantity`` is the intent's new *total*, fills included. ``amendment`` is all that edits changed besides, this
    one included; None leaves it as it is.
    """

    asked_at_ms: int
    quantity: Decimal | None = None
    limit_price: Decimal | None = None
    type: str | None = None
    amendment: Amendment | None = None

    @property
    def is_cancel(self) -> bool:
        """Whether nothing is to replace the order."""
        return self.quantity is None


@attrs.frozen(kw_only=True)
class IntentRecord:
    """Everything known about one intent, as the registry stores it.

    ``quantity`` is what the intent may own at most (its authorised quantity: the request rounded to the
    step, or the last edit's total). ``version`` counts stored changes. ``given_up`` says that no further
    attempt will be made. ``venue`` is where it is placed (``ExchangeAdapter.venue_name``); "" where nobody said.
    ``intent`` stays as it was first meant, since its key stands for it; ``amendment`` is what edits made of it.
    """

    intent: Intent
    quantity: Decimal
    limit_price: Decimal | None = None
    attempts: tuple[Attempt, ...] = ()
    state: IntentState = IntentState.RECORDED
    change: Change | None = None
    given_up: bool = False
    created_at_ms: int = 0
    updated_at_ms: int = 0
    ended_at_ms: int | None = None
    version: int = 0
    venue: str = ""
    amendment: Amendment | None = None

    @property
    def terms(self) -> Intent:
        """The intent as edits left it, but for quantity and price: those are the record's own."""
        return self.intent if self.amendment is None else self.amendment.applied_to(self.intent)

    @property
    def rest(self) -> Intent:
        """What would be sent now: the terms, for all that has not filled, at the price that holds.

        Raises:
            InvalidInput: everything has filled.
        """
        return attrs.evolve(self.terms, quantity=self.leaves_quantity, limit_price=self.limit_price)

    @property
    def last(self) -> Attempt | None:
        """The latest attempt, None before the first."""
        return self.attempts[-1] if self.attempts else None

    @property
    def filled_quantity(self) -> Decimal:
        """Cumulative over all attempts."""
        attempts = self.attempts
        return attempts[0].filled_quantity if len(attempts) == 1 else total([a.filled_quantity for a in attempts])

    @property
    def leaves_quantity(self) -> Decimal:
        """What is still wanted."""
        return left_of(self.quantity, self.filled_quantity)

    @property
    def average_price(self) -> Decimal | None:
        """Volume-weighted over the attempts whose price is known."""
        return weighted_average((a.filled_quantity, a.average_price) for a in self.attempts if a.average_price)
