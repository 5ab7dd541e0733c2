"""Why a position is closed, how urgent that is, and what may be tried for it."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, Final

import attrs

from execsafe.core.backoff import Backoff
from execsafe.errors import InvalidInput
from execsafe.model.values import check_count, check_seconds, shorten

BPS: Final = 10_000
_MS_MAX: Final = 7 * 86_400_000


class ExitReason(enum.StrEnum):
    """Why a position is to be closed. A more urgent reason takes over an exit that runs for a less urgent one."""

    PANIC = "panic"
    TTL = "ttl"  # held for longer than it was meant to be
    STOP_LOSS = "stop_loss"
    TAKE_PROFIT = "take_profit"
    TRAILING = "trailing"

    @property
    def priority(self) -> int:
        """1 is the most urgent, 5 the least."""
        return _PRIORITIES[self]

    def outranks(self, other: ExitReason) -> bool:
        """Whether this reason is more urgent than *other*."""
        return self.priority < other.priority


_PRIORITIES: Final = {reason: number for number, reason in enumerate(ExitReason, 1)}


def _bps(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or not 0 <= value < BPS:
        raise InvalidInput(f"{attribute.name} must be a whole number from 0 to {BPS - 1}, was {shorten(value)}")


def _ms(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or not 1 <= value <= _MS_MAX:
        raise InvalidInput(f"{attribute.name} must be 1 to {_MS_MAX} milliseconds, was {shorten(value)}")


def _flag(_instance: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if type(value) is not bool:
        raise InvalidInput(f"{attribute.name} must be True or False, was {shorten(value)}")


def _rising(value: Iterable[int]) -> tuple[int, ...]:
    found = tuple(value) if isinstance(value, (list, tuple)) else ()
    if not found or any(type(item) is not int for item in found) or list(found) != sorted(set(found)):
        raise InvalidInput(f"a ladder is a rising sequence of whole numbers, was {shorten(value)}")
    return found


def _rungs(_instance: object, attribute: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]) -> None:
    for item in value:
        _bps(_instance, attribute, item)  # type: ignore[arg-type]


def _times(_instance: object, attribute: attrs.Attribute[tuple[int, ...]], value: tuple[int, ...]) -> None:
    for item in value:
        _ms(_instance, attribute, item)  # type: ignore[arg-type]


def _count(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    check_count(value, attribute.name)


def _factor(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 100:  # noqa: PLR2004
        raise InvalidInput(f"{attribute.name} must be 1 to 100, was {shorten(value)}")


def _backoff(_instance: object, attribute: attrs.Attribute[Backoff], value: object) -> None:
    if not isinstance(value, Backoff) or value.max_attempts is None or value.deadline_s is not None:
        raise InvalidInput(f"{attribute.name} must be a Backoff with max_attempts and without deadline_s")


@attrs.frozen(kw_only=True)
class ExitPolicy:
    """What an exit may try, at which prices, and when it rests or raises an alarm.

    Attributes:
        max_slippage_bps: how far beyond the best price of the pass an exit may go. 50.
        ttl_slippage_bps, stop_loss_slippage_bps, panic_slippage_bps: the same for reasons that are worth more; the
            greater of the two counts. 200, 500 and 500: a stop-loss that cannot be filled costs more than that.
        ladder_bps: the steps in which it goes there, attempt by attempt. 50, 100, 200, 500.
        exit_ioc_ttl_ms: how old the prices and balances behind an order may be when its answer comes; one deadline
            for reading, sending and waiting. 3,000. What is not known by then is asked of the venue, not assumed.
        backoff: how many orders one pass may send, and the pauses between them. 4 orders; 0.4 s, 0.8 s, 1.6 s, up to
            half of each taken off by a number that depends on the exit, so that many do not come back at once.
        never_market_sells: never a market order, whoever approves it. False: the approval gate is asked.
        approval_timeout_s: how long the gate may take; silence is a no. 30.
        skip_under_min: a remainder below the venue's minimum *value* is dust on contracts too. False: it is sent
            there, because venues exempt reduce-only orders from that minimum.
        keeps_stop_on_contracts: contracts keep their stops while the exit runs, because reduce-only orders lock
            nothing and cannot flip the position; they are released once it is closed. On spot, where a resting order
            locks what is to be sold, they are always released first.
        cool_down_ms: how long an exit rests after a pass that closed nothing. 10,000; each further one rests
            ``cool_down_factor`` (2) times as long, up to ``cool_down_max_ms`` (300,000). A loop without it sent more
            than a hundred orders in a quarter of an hour.
        breaker_threshold: after so many rejects in a row with the same code it rests ``cool_down_max_ms`` at once. 3.
        confirm_pause_ms: a venue that holds less than the book is asked again after this long, and believed if both
            answers agree. 1,000.
        stuck_after_ms: how long nothing could be closed when the alarms are raised, one each. 1, 5 and 15 minutes.
        stuck_attempts: so many orders that closed nothing raise the first alarm, however fast they came. 12.

    Raises:
        InvalidInput: a value with which nothing could work; the message names it.
    """

    max_slippage_bps: int = attrs.field(default=50, validator=_bps)
    ttl_slippage_bps: int = attrs.field(default=200, validator=_bps)
    stop_loss_slippage_bps: int = attrs.field(default=500, validator=_bps)
    panic_slippage_bps: int = attrs.field(default=500, validator=_bps)
    ladder_bps: tuple[int, ...] = attrs.field(default=(50, 100, 200, 500), converter=_rising, validator=_rungs)
    exit_ioc_ttl_ms: int = attrs.field(default=3_000, validator=_ms)
    backoff: Backoff = attrs.field(default=Backoff(jitter=0.5), validator=_backoff)
    never_market_sells: bool = attrs.field(default=False, validator=_flag)
    approval_timeout_s: float = 30.0
    skip_under_min: bool = attrs.field(default=False, validator=_flag)
    keeps_stop_on_contracts: bool = attrs.field(default=True, validator=_flag)
    cool_down_ms: int = attrs.field(default=10_000, validator=_ms)
    cool_down_factor: float = attrs.field(default=2.0, validator=_factor)
    cool_down_max_ms: int = attrs.field(default=300_000, validator=_ms)
    breaker_threshold: int = attrs.field(default=3, validator=_count)
    confirm_pause_ms: int = attrs.field(default=1_000, validator=_ms)
    stuck_after_ms: tuple[int, ...] = attrs.field(
        default=(60_000, 300_000, 900_000), converter=_rising, validator=_times
    )
    stuck_attempts: int = attrs.field(default=12, validator=_count)

    def __attrs_post_init__(self) -> None:
        """Refuse what fits each alone, but not together."""
        check_seconds(self.approval_timeout_s, "approval_timeout_s", most=86_400.0)
        if self.cool_down_max_ms < self.cool_down_ms:
            raise InvalidInput("cool_down_max_ms must not be below cool_down_ms")

    @property
    def attempts_max(self) -> int:
        """How many orders one pass may send."""
        return self.backoff.max_attempts or 1

    def bound_bps(self, reason: ExitReason) -> int:
        """How far beyond the best price an exit for *reason* may go."""
        extra = {
            ExitReason.PANIC: self.panic_slippage_bps,
            ExitReason.TTL: self.ttl_slippage_bps,
            ExitReason.STOP_LOSS: self.stop_loss_slippage_bps,
        }
        return max(self.max_slippage_bps, extra.get(reason, 0))

    def rungs(self, reason: ExitReason) -> tuple[int, ...]:
        """The ladder for *reason*: its steps up to the bound, the last of which is the bound or below it."""
        bound = self.bound_bps(reason)
        within = tuple(step for step in self.ladder_bps if step <= bound)
        ends_short = not within or self.ladder_bps[-1] > within[-1]
        return (*within, bound) if ends_short and bound not in within else within

    def cool_down(self, fruitless: int) -> int:
        """How long to rest, in milliseconds, after that many fruitless passes in a row (from 1)."""
        try:
            rest_ms = self.cool_down_ms * self.cool_down_factor ** (fruitless - 1)
        except OverflowError:
            return self.cool_down_max_ms
        return int(min(self.cool_down_max_ms, rest_ms))
