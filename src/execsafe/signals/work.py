"""What a handler gets and gives: accepted work, its result, and what became of a signal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import attrs

from execsafe.core.funnel import Stage
from execsafe.core.signals import DropReason, is_late
from execsafe.errors import (
    AlreadyInFlight,
    InvalidInput,
    LeaseHeld,
    OutcomeUnknown,
    StaleFencingToken,
    StoreError,
    VenueUnavailable,
)
from execsafe.gateway import Accepted, NeverPlaced, OrderGateway, Rejected, SubmitOutcome
from execsafe.model.intent import Intent, IntentState
from execsafe.model.order import Side
from execsafe.model.signal import ExecutionMode, Signal
from execsafe.model.values import Number

# --- Work --------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class SignalWork:
    """A signal to be executed.

    Attributes:
        signal: what was said.
        key: the intent key for everything that follows from it; distinguish several orders by ``leg``. It is the
            same after a crash, so that nothing is sent twice.
        fresh_until_ms: the last millisecond at which an entry may be sent; None for exits.
        mode: LIVE or PAPER, as accepted.
        is_resumed: an earlier run did not end: read back what it decided (:func:`submit_signal` does) before
            deciding anew.
    """

    signal: Signal
    key: str
    fresh_until_ms: int | None
    mode: ExecutionMode
    is_resumed: bool = False

    def is_late(self, now_ms: int) -> bool:
        """Whether an entry may no longer be sent."""
        return is_late(self.fresh_until_ms, now_ms)

    def intent(self, *, quantity: Number, side: Side | str | None = None, **more: Any) -> Intent:
        """An intent for this signal: its key, symbol and freshness.

        *side* defaults to the side that opens the position; *more* is taken by :class:`~execsafe.Intent`.

        Raises:
            InvalidInput: a flat signal, without a *side*; or a value that is malformed.
        """
        position_side = self.signal.side.position_side
        if side is None and position_side is None:
            raise InvalidInput("a flat signal does not say which side closes the position: pass side and reduce_only")
        known = side if side is not None else position_side.opening if position_side is not None else ""
        return Intent(
            key=self.key,
            symbol=self.signal.symbol,
            side=Side(known),
            quantity=quantity,
            **{"fresh_until_ms": self.fresh_until_ms, **more},
        )


# --- Results -----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Executed:
    """By the orders' own records, something was filled or rests at the venue."""

    note: str = ""


@attrs.frozen(kw_only=True)
class Refused:
    """It ended, and nothing came of it."""

    reason: DropReason
    note: str = ""


@attrs.frozen(kw_only=True)
class Pending:
    """It has not ended: something is in doubt, or could not be asked now. It will be handed out again.

    ``attempted``: whether an order was, or may have been, placed; False where nothing was tried yet.
    """

    note: str = ""
    attempted: bool = True


SignalResult: TypeAlias = Executed | Refused | Pending
"""What a handler returns."""

SignalHandler: TypeAlias = Callable[[SignalWork], Awaitable[SignalResult]]
"""Executes one signal. It may be cancelled, and called again for the same signal after a crash."""

NOT_NOW: Final = (AlreadyInFlight, OutcomeUnknown, StoreError, VenueUnavailable, LeaseHeld, StaleFencingToken)
"""Errors after which a signal comes again: something is in doubt, or could not be asked."""

_ATTEMPTED: Final = frozenset(
    {DropReason.REJECTED, DropReason.NOT_PLACED, DropReason.NOTHING_FILLED, DropReason.ROLLED_BACK}
)


def stage_of(refused: Refused) -> Stage:
    """How far a refused signal came: only what a venue was asked for was attempted."""
    return Stage.ATTEMPTED if refused.reason in _ATTEMPTED else Stage.VALIDATED


def result_of(outcome: SubmitOutcome) -> SignalResult:
    """What an order's record says, and nothing else: neither a reply nor the absence of an error counts."""
    record = outcome.record
    match outcome:
        case Rejected():
            return Refused(reason=DropReason.REJECTED, note=outcome.error.kind)
        case NeverPlaced():
            return Refused(reason=DropReason.NOT_PLACED)
        case Accepted() if record.filled_quantity > 0 or record.state is IntentState.LIVE:
            return Executed(note=record.state.value)
        case Accepted():
            return Refused(reason=DropReason.NOTHING_FILLED, note=record.state.value)
    return Pending(note=record.state.value)


async def submit_signal(
    gateway: OrderGateway,
    work: SignalWork,
    build: Callable[[], Awaitable[Intent]],
    *,
    account: str = "default",
    leg: str = "",
) -> SubmitOutcome:
    """Submit the signal's order, once, also after a crash.

    What *build* decides from live readings (a quantity, a price) may come out differently after a restart; so the
    intent that is already recorded is submitted again, and *build* is only called where there is none.

    Raises:
        InvalidInput: *build* returned an intent with another key, account or leg.
        Exception: whatever *build* and :meth:`~execsafe.OrderGateway.submit` raise.
    """
    record = await gateway.registry.find(work.key, account=account, leg=leg)
    intent = record.intent if record is not None else await build()
    if (intent.key, intent.account, intent.leg) != (work.key, account, leg):
        raise InvalidInput(
            f"the intent must have the key {work.key!r}, the account {account!r} and the leg {leg!r}",
            intent_key=intent.key,
        )
    return await gateway.submit(intent)


# --- What became of a signal -------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Handled:
    """Its execution ended, just now. ``result`` is never :class:`Pending`."""

    signal: Signal
    result: SignalResult


@attrs.frozen(kw_only=True)
class Dropped:
    """It is not executed. ``age_ms`` is its age on receipt."""

    signal: Signal
    reason: DropReason
    note: str = ""
    age_ms: int = 0


@attrs.frozen(kw_only=True)
class DeadLettered:
    """It is not executed, and somebody has to look at it. ``signal`` is None where it could not be understood."""

    reason: DropReason
    note: str = ""
    signal: Signal | None = None


@attrs.frozen(kw_only=True)
class Unfinished:
    """Nothing final can be said: do not acknowledge it, it must come again.

    ``why`` is ``"in_flight"`` (somebody works on it), ``"pending"`` (in doubt), ``"failed"`` (its handler did) or
    ``"store"`` (the store did: nothing is executed without it).
    """

    signal: Signal
    why: str
    note: str = ""


SignalOutcome: TypeAlias = Handled | Dropped | DeadLettered | Unfinished
"""Everything that running a signal can come to."""
