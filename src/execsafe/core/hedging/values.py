"""The words of a trade of several legs: its plan, its thresholds, and the record that survives a crash."""

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Any, Final, TypeAlias

import attrs

from execsafe.core.backoff import Backoff
from execsafe.errors import InvalidInput
from execsafe.model.instrument import is_contract
from execsafe.model.intent import Intent
from execsafe.model.order import ZERO, Side
from execsafe.model.values import (
    EMPTY_PARAMS,
    EXACT,
    KEY_LENGTH_MAX,
    SYMBOL_LENGTH_MAX,
    Number,
    Params,
    check_count,
    check_seconds,
    optional_text_validator,
    plain,
    shorten,
    text_validator,
    to_decimal,
    to_params,
    to_price,
    to_quantity,
)

_NAME_LENGTH_MAX: Final = 32
_LEGS_MIN: Final = 2
_LEGS_MAX: Final = 8
_DAY_S: Final = 86_400.0
_HUNDRED: Final = Decimal(100)

ContentKey: TypeAlias = tuple[str, str, tuple[tuple[str, str, str, str], ...]]
"""``("hedge", strategy, ((venue, account, symbol, side), …))``, the legs in canonical order."""

PairKey: TypeAlias = tuple[str, str, tuple[tuple[str, str, str], ...]]
"""``("pair", strategy, ((venue, account, symbol), …))``: both directions of a pair share it."""


# --- Thresholds ------------------------------------------------------------------------------------


class Band(enum.StrEnum):
    """How far the leading leg filled."""

    FULL = "full"
    PARTIAL = "partial"  # the hedge is recalculated
    ABORT = "abort"


def _share(value: Number) -> Decimal:
    share = to_decimal(value, "band")
    if not 0 <= share <= 1:
        raise InvalidInput(f"a band is a share from 0 to 1, was {shorten(str(share))}")
    return share


@attrs.frozen(kw_only=True)
class FillBands:
    """What a fill of the leading leg means, as shares of its quantity. Both edges belong to the better band.

    Attributes:
        full: from here on nothing more is waited for. 0.95.
        abort: below it the trade is undone instead of hedged. 0.50: less than half a pair costs more in fees and
            minimum sizes than it earns.
    """

    full: Decimal = attrs.field(default=Decimal("0.95"), converter=_share)
    abort: Decimal = attrs.field(default=Decimal("0.50"), converter=_share)

    def __attrs_post_init__(self) -> None:
        """Refuse bands in the wrong order."""
        if self.abort > self.full:
            raise InvalidInput(f"abort ({plain(self.abort)}) must not be above full ({plain(self.full)})")

    def judge(self, filled: Decimal, quantity: Decimal) -> Band:
        """The band of *filled* out of *quantity*: exact, without a division."""
        if filled >= EXACT.multiply(self.full, quantity):
            return Band.FULL
        return Band.ABORT if filled < EXACT.multiply(self.abort, quantity) else Band.PARTIAL

    def rule(self, filled: Decimal, quantity: Decimal) -> str:
        """The rule that fires for this fill, in words and with its numbers."""
        band = self.judge(filled, quantity)
        said = {
            Band.FULL: f"at or above the full band of {_percent(self.full)}",
            Band.PARTIAL: f"from {_percent(self.abort)} to below {_percent(self.full)}: the hedge is recalculated",
            Band.ABORT: f"below the abort band of {_percent(self.abort)}",
        }
        return f"{plain(filled)} of {plain(quantity)} filled, {said[band]}"


def _percent(share: Decimal) -> str:
    return f"{plain(EXACT.multiply(share, _HUNDRED))} %"


def _retries(_instance: object, attribute: attrs.Attribute[Backoff], value: object) -> None:
    if not isinstance(value, Backoff) or value.max_attempts is None or value.deadline_s is not None:
        raise InvalidInput(f"{attribute.name} must be a Backoff with max_attempts and without deadline_s")


@attrs.frozen(kw_only=True)
class HedgePolicy:
    """How long to wait, how often to try.

    Attributes:
        bands: what the leading leg's fill means.
        fill_timeout_s: how long the leading leg may rest before its remainder is canceled. 5 s: until then what
            filled of it is naked.
        hedge_timeout_s: how long a hedging or unwinding order may rest before its remainder is canceled. 2 s.
        poll_interval_s: pause between two reads of an order that rests. 0.25 s.
        hedge_attempts_max: orders that may hedge one leg, the first and its top-ups. 3. One that fills nothing ends
            the hedging of its leg at once, unless it was turned away for now (too many requests, never reached).
        hedge_pause_s: pause after a hedging order that was turned away for now; it doubles from then on. 0.5 s.
        hedge_retry_s: how long after the first of these another may be sent. If the venue wants to be left alone for
            longer, the trade is undone at once: reductions get through earlier. 5 s: meanwhile the leading leg is
            naked, as it is while it fills.
        unwind_attempts_max: orders that may unwind one leg in one pass. 5; ``recover()`` begins another pass.
        retries: when ``recover()`` goes on with a plan whose passes change nothing. The second pass comes at once,
            the third after 5 s, then the pauses double up to 5 minutes. After half an hour of a venue that answers
            and refuses, the plan is handed over to a person.
        unwind_pause_s: pause after the first unwinding order that did not do it; it doubles from then on. 0.5 s.
        entry_window_s: how long after its begin the leading leg may still be sent, where the plan does not say so
            itself. 30 s: after a long outage the opportunity is gone.
        watch_s: how long after its end a plan's orders are read again by ``recover()`` for late fills. 120 s, longer
            than the read lag of every venue in scope.
        shutdown_grace_s: how long a cancelled call may go on to hedge or unwind what has filled. 5 s; 0 leaves it to
            ``recover()``.
        verify_positions: before the first order and after unwinding, read the positions of contract legs, and compare.
            Switch it off where something else trades the same symbols.
        verify_timeout_s: how long those readings may differ from the fills before it is an alarm. 10 s.
        carry_residual: what could not be hedged for being too small is added to the next plan of the same pair.
    """

    bands: FillBands = FillBands()
    fill_timeout_s: float = 5.0
    hedge_timeout_s: float = 2.0
    poll_interval_s: float = 0.25
    hedge_attempts_max: int = 3
    hedge_pause_s: float = 0.5
    hedge_retry_s: float = 5.0
    unwind_attempts_max: int = 5
    unwind_pause_s: float = 0.5
    entry_window_s: float = 30.0
    watch_s: float = 120.0
    shutdown_grace_s: float = 5.0
    verify_positions: bool = True
    verify_timeout_s: float = 10.0
    carry_residual: bool = True
    retries: Backoff = attrs.field(
        default=Backoff(base_s=5.0, cap_s=300.0, jitter=0.0, max_attempts=12), validator=_retries
    )

    def __attrs_post_init__(self) -> None:
        """Refuse values with which nothing could work."""
        for name in ("poll_interval_s", "entry_window_s", "hedge_pause_s"):
            check_seconds(getattr(self, name), name, most=_DAY_S)
        may_be_none = ("fill_timeout_s", "hedge_timeout_s", "hedge_retry_s", "unwind_pause_s", "watch_s")
        for name in (*may_be_none, "shutdown_grace_s"):
            check_seconds(getattr(self, name), name, least=0, most=_DAY_S)
        check_seconds(self.verify_timeout_s, "verify_timeout_s", least=0, most=_DAY_S)
        check_count(self.hedge_attempts_max, "hedge_attempts_max")
        check_count(self.unwind_attempts_max, "unwind_attempts_max")


# --- The plan --------------------------------------------------------------------------------------


def _side(value: Side | str) -> Side:
    try:
        return Side(value)
    except ValueError:
        raise InvalidInput(f"side must be 'buy' or 'sell', was {shorten(value)}") from None


@attrs.frozen(kw_only=True)
class HedgeLeg:
    """One leg. Quantities are in the venue's order unit (contracts where the contract size is not 1).

    Attributes:
        symbol: unified ccxt symbol; one with a colon is a contract.
        side: ``"buy"`` or ``"sell"``.
        quantity: what is meant for a complete trade. Its ratio to the leading leg's is the hedge ratio.
        limit_price: None for a market order. A hedge with a limit is sent as immediate-or-cancel, so that it never
            rests unnoticed; the leading leg rests unless ``time_in_force`` says otherwise.
        exit_price: limit of the first unwinding order; None, and all later ones: market.
        reference_price: what the minimum value is judged by where there is no limit; None: a quote, if there is one.
        account: which account at the venue.
        venue: name of the gateway, where the hedger has several.
        time_in_force, post_only, params: of the orders that open the leg.
        exit_params: of the orders that unwind it.
    """

    symbol: str = attrs.field(validator=text_validator("symbol", SYMBOL_LENGTH_MAX))
    side: Side = attrs.field(converter=_side)
    quantity: Decimal = attrs.field(converter=to_quantity)
    limit_price: Decimal | None = attrs.field(default=None, converter=to_price)
    exit_price: Decimal | None = attrs.field(default=None, converter=to_price)
    reference_price: Decimal | None = attrs.field(default=None, converter=to_price)
    account: str = attrs.field(default="default", validator=text_validator("account", 64))
    venue: str = attrs.field(default="default", validator=text_validator("venue", _NAME_LENGTH_MAX))
    time_in_force: str | None = attrs.field(default=None, validator=optional_text_validator("time_in_force", 16))
    post_only: bool = False
    params: Params = attrs.field(default=EMPTY_PARAMS, converter=to_params)
    exit_params: Params = attrs.field(default=EMPTY_PARAMS, converter=to_params)

    @property
    def is_contract(self) -> bool:
        """Whether a position is held, rather than a balance."""
        return is_contract(self.symbol)

    @property
    def price(self) -> Decimal | None:
        """What a minimum value can be judged by."""
        return self.limit_price if self.limit_price is not None else self.reference_price


def _legs(value: Any) -> tuple[HedgeLeg, ...]:
    legs = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(leg, HedgeLeg) for leg in legs):
        raise InvalidInput("legs must be HedgeLeg values")
    if not _LEGS_MIN <= len(legs) <= _LEGS_MAX:
        raise InvalidInput(f"a plan has {_LEGS_MIN} to {_LEGS_MAX} legs, had {len(legs)}")
    if len({(leg.venue, leg.account, leg.symbol) for leg in legs}) != len(legs):
        raise InvalidInput("two legs trade the same symbol of the same account: they would net each other")
    return legs


@attrs.frozen(kw_only=True)
class HedgePlan:
    """A trade of two or more legs that is worth having only as a whole.

    Attributes:
        legs: the first leads; the others follow what it filled.
        key: identity of the signal, where it has one: however often it comes, it is traded once. None: each call is
            a trade of its own, and only identical ones *at the same time* are duplicates.
        strategy: keeps equal pairs of different strategies apart.
        fresh_until_ms: Unix ms after which the leading leg must not be sent any more; None: the policy's window.
    """

    legs: tuple[HedgeLeg, ...] = attrs.field(converter=_legs)
    key: str | None = attrs.field(default=None, validator=optional_text_validator("plan key", KEY_LENGTH_MAX))
    strategy: str = attrs.field(default="default", validator=text_validator("strategy", 64))
    fresh_until_ms: int | None = None

    @property
    def lead(self) -> HedgeLeg:
        """The leg that is sent first."""
        return self.legs[0]

    @property
    def content_key(self) -> ContentKey:
        """What must not run twice at the same time: strategy, accounts, symbols and sides, in whatever leg order."""
        legs = sorted((leg.venue, leg.account, leg.symbol, leg.side.value) for leg in self.legs)
        return ("hedge", self.strategy, tuple(legs))

    @property
    def pair_key(self) -> PairKey:
        """The pair itself, whichever way it is traded."""
        legs = sorted((leg.venue, leg.account, leg.symbol) for leg in self.legs)
        return ("pair", self.strategy, tuple(legs))

    def is_same_as(self, other: HedgePlan) -> bool:
        """Whether both mean the same trade; the time limit does not count."""
        return attrs.evolve(self, fresh_until_ms=None) == attrs.evolve(other, fresh_until_ms=None)


# --- The record ------------------------------------------------------------------------------------


class HedgeStage(enum.StrEnum):
    """What a plan is at. It never goes back to hedging once something is being undone."""

    HEDGING = "hedging"
    ABORTING = "aborting"  # too little of the leading leg filled
    UNWINDING = "unwinding"  # it filled, and could not be hedged


class Verdict(enum.StrEnum):
    """What a plan came to."""

    NOT_STARTED = "not_started"  # nothing was sent; the same key may come again
    EXECUTED = "executed"
    ABORTED = "aborted"  # flat
    UNWOUND = "unwound"  # flat
    RESIDUAL = "residual"  # something is left that could neither be hedged nor unwound
    UNKNOWN = "unknown"  # an order is in doubt

    @property
    def is_final(self) -> bool:
        """Whether nothing is left to do."""
        return self in {Verdict.NOT_STARTED, Verdict.EXECUTED, Verdict.ABORTED, Verdict.UNWOUND}


@attrs.frozen(kw_only=True)
class LegTotals:
    """What the orders of one leg add up to: evidence, whatever is made of it."""

    filled: Decimal = ZERO
    closed: Decimal = ZERO
    in_doubt: Decimal = ZERO


@attrs.frozen(kw_only=True)
class LegExposure:
    """What one leg came to. Quantities in the leg's order unit.

    Attributes:
        symbol, side, account, venue: which leg.
        filled: by the orders that open it, cumulative, each trade counted once.
        closed: by the orders that unwind it.
        in_doubt: what may still fill of orders that have not ended.
        held: ``filled`` less ``closed``.
        closable: what of it can be sold again: on spot a fee taken in the bought currency is gone.
        residual: what the leg should hold by the ratio (with what was carried over) less what it holds. Exact; where
            the ratio has no finite decimal, cut towards zero at the 60th digit. 0 for the leading leg.
    """

    symbol: str
    side: Side
    account: str
    venue: str
    filled: Decimal = ZERO
    closed: Decimal = ZERO
    in_doubt: Decimal = ZERO
    held: Decimal = ZERO
    closable: Decimal = ZERO
    residual: Decimal = ZERO

    @property
    def totals(self) -> LegTotals:
        """What its orders add up to."""
        return LegTotals(filled=self.filled, closed=self.closed, in_doubt=self.in_doubt)


@attrs.frozen(kw_only=True)
class HedgeRecord:
    """A plan as it is stored: everything that its orders' own records do not say.

    Attributes:
        key: intent key of all its orders; the signal's where it has one.
        plan: what is meant.
        stage, reason: what it is at, and the rule that led there.
        carried: by leg, what earlier plans of the pair left to be hedged, in the leg's direction.
        baselines: by leg, the signed position before the first order; None: not known.
        verdict, exposures: what it came to, so far.
        is_done: nothing is left to do, but for late fills.
        watch_until_ms: until then late fills are looked for.
        passes: how many passes in a row have come to the same, without an end.
        retry_at_ms: when the next one is due; None: at once.
        is_handed_over: no further pass is due until the evidence changes or a person has acted.
    """

    key: str
    plan: HedgePlan
    stage: HedgeStage = HedgeStage.HEDGING
    reason: str = ""
    carried: tuple[Decimal, ...] = ()
    baselines: tuple[Decimal | None, ...] = ()
    fresh_until_ms: int | None = None
    verdict: Verdict | None = None
    exposures: tuple[LegExposure, ...] = ()
    is_done: bool = False
    created_at_ms: int = 0
    updated_at_ms: int = 0
    ended_at_ms: int | None = None
    watch_until_ms: int | None = None
    passes: int = 0
    retry_at_ms: int | None = None
    is_handed_over: bool = False

    def without_baselines(self) -> HedgeRecord:
        """For a plan whose positions others moved as well: they say nothing about its fills."""
        return attrs.evolve(self, baselines=(None,) * len(self.baselines))

    def overlaps(self, other: HedgeRecord) -> bool:
        """Whether *other* traded one of its symbols at the same time, or may have."""
        names = {(leg.venue, leg.account, leg.symbol) for leg in self.plan.legs}
        is_shared = any((leg.venue, leg.account, leg.symbol) in names for leg in other.plan.legs)
        ended_before = other.ended_at_ms is not None and other.ended_at_ms < self.created_at_ms
        return is_shared and not ended_before

    def intent(self, index: int, purpose: str, number: int, **order: Any) -> Intent:
        """An order of the plan. Its identity is a pure function of plan, leg, purpose and number."""
        leg = self.plan.legs[index]
        label = f"{purpose}-{index + 1}.{number}"
        return Intent(key=self.key, leg=label, symbol=leg.symbol, account=leg.account, **order)


@attrs.frozen(kw_only=True)
class PairRecord:
    """What is remembered of a pair between its plans.

    Attributes:
        runs: how many plans it has had.
        active: the unfinished plan by content, as text.
        residuals: by ``venue/account/symbol`` as text, what is left to be hedged: positive to buy, negative to sell.
    """

    runs: int = 0
    active: dict[str, str] = attrs.Factory(dict)
    residuals: dict[str, Decimal] = attrs.Factory(dict)
