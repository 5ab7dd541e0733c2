"""The life of an entry that comes with its stop: what is planned, and which state may follow which."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

import attrs

from execsafe.core.protection.record import StopRule
from execsafe.errors import InvalidInput, InvalidTransition
from execsafe.model.intent import Intent
from execsafe.model.position import PositionSide
from execsafe.model.values import EMPTY_PARAMS, Params, check_count, check_seconds, shorten, to_decimal, to_params

ENTRY_LEG: Final = "entry.1"


class OpeningState(enum.StrEnum):
    """Where an opening stands."""

    PENDING_ENTRY = "pending_entry"  # written down; the entry may have been sent
    ENTRY_PLACED = "entry_placed"  # the venue has, or may have, the entry
    PENDING_SL = "pending_sl"  # the entry has ended with something filled; its stop is not verified yet
    ACTIVE = "active"  # filled, and covered by a verified stop
    ROLLED_BACK = "rolled_back"  # filled, could not be covered or kept, and closed again: verified flat
    DUST = "dust"  # what is left of what filled is too small to be covered or closed
    FAILED = "failed"  # nothing filled, and nothing can
    NOT_SENT = "not_sent"  # refused for now, or interrupted, before anything was journalled: it may begin again
    UNPROTECTED_UNKNOWN = "unprotected_unknown"  # what is held or what covers it is not known: watched, alarmed


_S = OpeningState
_ENDS: Final = frozenset({_S.ACTIVE, _S.ROLLED_BACK, _S.DUST, _S.FAILED, _S.NOT_SENT})

OPENING_TRANSITIONS: Final[Mapping[OpeningState, frozenset[OpeningState]]] = {
    _S.PENDING_ENTRY: frozenset({_S.ENTRY_PLACED, _S.FAILED, _S.NOT_SENT, _S.UNPROTECTED_UNKNOWN}),
    _S.ENTRY_PLACED: frozenset({_S.PENDING_SL, _S.FAILED, _S.UNPROTECTED_UNKNOWN}),
    _S.PENDING_SL: frozenset({_S.ACTIVE, _S.ROLLED_BACK, _S.DUST, _S.UNPROTECTED_UNKNOWN}),
    _S.UNPROTECTED_UNKNOWN: _ENDS - {_S.NOT_SENT} | {_S.ENTRY_PLACED, _S.PENDING_SL},
    _S.ACTIVE: frozenset(),
    _S.ROLLED_BACK: frozenset(),
    _S.DUST: frozenset(),
    _S.FAILED: frozenset(),
    _S.NOT_SENT: frozenset({_S.PENDING_ENTRY, _S.FAILED}),
}
"""Which state may follow which. What a position does after ACTIVE is the protection's to know."""


def _quantity(value: Decimal | str | int | float) -> Decimal:
    return to_decimal(value, "quantity")


def _price(value: Decimal | str | int | float | None) -> Decimal | None:
    return None if value is None else to_decimal(value, "limit_price")


def _ratio(value: Decimal | str | int | float) -> Decimal:
    return to_decimal(value, "ratio")


def _leverage(value: Decimal | str | int | float | None) -> Decimal | None:
    return None if value is None else to_decimal(value, "leverage")


@attrs.frozen(kw_only=True)
class EntryPlan:
    """A position to be opened, and the stop that it must have.

    Attributes:
        key: identity of the decision; the key of the entry's intent. The same plan again is the same opening.
        symbol, side, account: what is opened. One opening or position per symbol at a time.
        quantity: in the venue's order unit.
        limit_price: None for a market order.
        stop: where the stop belongs: a distance counts from the price really paid.
        leverage, margin_mode: to be confirmed by the venue before anything is sent; None: left as they are.
        time_in_force, fresh_until_ms, params: of the entry's intent.
    """

    key: str
    symbol: str
    side: PositionSide = attrs.field(converter=PositionSide)
    quantity: Decimal = attrs.field(converter=_quantity)
    stop: StopRule
    limit_price: Decimal | None = attrs.field(default=None, converter=_price)
    account: str = "default"
    leverage: Decimal | None = attrs.field(default=None, converter=_leverage)
    margin_mode: str | None = None
    time_in_force: str | None = None
    fresh_until_ms: int | None = None
    params: Params = attrs.field(default=EMPTY_PARAMS, converter=to_params)

    def __attrs_post_init__(self) -> None:
        """Refuse what could not be sent or protected."""
        self.intent()
        if self.stop.stop_price is None and self.stop.distance is None:
            raise InvalidInput("an entry needs a stop: give a price or a distance", intent_key=self.key)
        if self.leverage is not None and self.leverage <= 0:
            raise InvalidInput(f"leverage must be above 0, was {shorten(str(self.leverage))}", intent_key=self.key)

    def intent(self) -> Intent:
        """The entry."""
        return Intent(
            key=self.key,
            leg=ENTRY_LEG,
            symbol=self.symbol,
            side=self.side.opening,
            quantity=self.quantity,
            limit_price=self.limit_price,
            account=self.account,
            time_in_force=self.time_in_force,
            fresh_until_ms=self.fresh_until_ms,
            params=self.params,
        )


@attrs.frozen(kw_only=True)
class OpeningPolicy:
    """How long an entry may rest, and what is done with a part of it.

    Attributes:
        entry_timeout_s: after which what has not filled is canceled; 10 s.
        poll_s: pause between two looks at a resting entry; 0.25 s, so that a partial fill is soon covered.
        keep_ratio: a fill below this share of the entry is closed again; 0 keeps (and protects) whatever filled. A
            strategy that is built on its full size may want the hedger's 0.5.
        setting_tries: how often leverage and margin mode are tried, when no answer comes; 3.
        settle_s: how long stop or flatness are waited for before the outcome is called unknown; 60 s.
        base_fee_ratio_max: the most that a spot buy's fee may take of what was bought; 0.005. An entry whose stop would
            be too small after it is not sent.
        stop_margin_ratio: how far the value of a stop must be above the venue's minimum; 0.05.
    """

    entry_timeout_s: float = 10.0
    poll_s: float = 0.25
    keep_ratio: Decimal = attrs.field(default=Decimal(0), converter=_ratio)
    setting_tries: int = 3
    settle_s: float = 60.0
    base_fee_ratio_max: Decimal = attrs.field(default=Decimal("0.005"), converter=_ratio)
    stop_margin_ratio: Decimal = attrs.field(default=Decimal("0.05"), converter=_ratio)

    def __attrs_post_init__(self) -> None:
        """Refuse values with which nothing could work."""
        check_seconds(self.entry_timeout_s, "entry_timeout_s", most=86_400.0)
        check_seconds(self.poll_s, "poll_s", most=3_600.0)
        check_seconds(self.settle_s, "settle_s", most=86_400.0)
        check_count(self.setting_tries, "setting_tries")
        for name in ("keep_ratio", "base_fee_ratio_max", "stop_margin_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(f"{name} must be 0 to 1, was {shorten(str(getattr(self, name)))}")


@attrs.frozen(kw_only=True)
class Opening:
    """The record of one opening. ``note`` says why it failed, was rolled back, left as dust or is not known."""

    plan: EntryPlan
    state: OpeningState = _S.PENDING_ENTRY
    position_id: str | None = None
    note: str = ""
    created_at_ms: int = 0
    updated_at_ms: int = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do for it. One that was not sent begins again only if it is asked for again."""
        return self.state in _ENDS


@attrs.frozen(kw_only=True)
class SymbolClaim:
    """Which opening has a symbol; ``active`` until it is over."""

    opening: str
    active: bool = True


def become(opening: Opening, state: OpeningState, *, now_ms: int, note: str = "") -> Opening:
    """*opening* in *state*.

    Raises:
        InvalidTransition: the table has no such edge.
    """
    if state is not opening.state and state not in OPENING_TRANSITIONS[opening.state]:
        raise InvalidTransition(f"an opening cannot go from {opening.state.value} to {state.value}")
    return attrs.evolve(opening, state=state, note=note or opening.note, updated_at_ms=now_ms)


def is_kept(filled: Decimal, quantity: Decimal, policy: OpeningPolicy) -> bool:
    """Whether a position of *filled* out of *quantity* is worth keeping."""
    return filled > 0 and filled >= policy.keep_ratio * quantity
