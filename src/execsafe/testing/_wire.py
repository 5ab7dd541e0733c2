"""What every face shares: a request under way, and what the faults of the wire do to it."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from typing import Final, Generic, TypeAlias, TypeVar

from execsafe.model.outcome import Operation
from execsafe.testing._orders import VenueReject
from execsafe.testing.faults import Fault, FaultPlan, Strikes
from execsafe.testing.venue import SimVenue

T = TypeVar("T")
Act: TypeAlias = Callable[[int, Strikes], T]

SILENT: Final = frozenset(
    {
        Fault.DROP_REQUEST,
        Fault.DROP_REPLY,
        Fault.DELAY_REQUEST,
        Fault.LATE_ARRIVAL_AFTER_LOOK,
        Fault.REORDER,
        Fault.HANG,
    }
)
"""Faults after which the client hears nothing at all."""

_WIRE: Final = (
    *sorted(SILENT),
    Fault.DUPLICATE_DELIVERY,
    Fault.TRUNCATED_BODY,
    Fault.RESET_CONNECTION,
    Fault.SERVER_ERROR_ACCEPTED,
    Fault.SERVER_ERROR_NOT_ACCEPTED,
)
_LOST: Final = frozenset({Fault.DROP_REQUEST, Fault.SERVER_ERROR_NOT_ACCEPTED})
_UNBOUNDED_MS: Final = (60_000, 300_000)  # how late a request may land where no expiry bounds it
_CALM: Final = FaultPlan.none()


class Delivery(Generic[T]):
    """One request on its way: carried out at most once, at the instant it arrives, with its outcome kept."""

    def __init__(self, act: Act[T], strikes: Strikes) -> None:
        self._act, self._strikes = act, strikes
        self._arrived = False
        self._answer: list[T] = []
        self._reject: VenueReject | None = None

    def __call__(self, now_ms: int) -> None:
        if self._arrived:
            return
        self._arrived = True
        try:
            self._answer.append(self._act(now_ms, self._strikes))
        except VenueReject as reject:  # kept for whoever waits; nobody may wait any more
            self._reject = reject

    def again(self) -> Delivery[T]:
        """The same request once more, as a network would repeat it."""
        return Delivery(self._act, _CALM.draw(Operation.CREATE))

    def result(self) -> T:
        """The venue's answer.

        Raises:
            VenueReject: its refusal.
        """
        if self._reject is not None:
            raise self._reject
        return self._answer[0]


def dispatch(
    venue: SimVenue,
    delivery: Delivery[T],
    strikes: Strikes,
    held: MutableSequence[Delivery[T]],
    *,
    now_ms: int,
    arrival_ms: int,
    dead_after_ms: int | None,
    timeout_ms: int,
) -> tuple[Fault | None, int]:
    """Send a request on its way, through the wire fault that strikes it, if any.

    Returns:
        That fault, and the instant at which the request arrives (or would have).
    """
    fault, rng = strikes.first(*_WIRE), strikes.random
    if fault is Fault.DELAY_REQUEST:
        arrival_ms = now_ms + strikes.value(fault, timeout_ms, 2 * timeout_ms + 2_000)
    elif fault in {Fault.LATE_ARRIVAL_AFTER_LOOK, Fault.REORDER}:
        last_ms = arrival_ms + rng.randint(*_UNBOUNDED_MS)
        if dead_after_ms is not None:  # the last true instant at which the venue's clock still allows it
            last_ms = dead_after_ms - venue.skew_ms
        arrival_ms = max(arrival_ms, last_ms)
    elif fault is Fault.DUPLICATE_DELIVERY:
        again_ms = strikes.value(fault, 1, 5_000)
        venue.at(arrival_ms + again_ms, delivery.again())
    if fault is Fault.REORDER:
        held.append(delivery)
    done = bool(strikes.value(fault, 0, 1)) if fault is Fault.RESET_CONNECTION else fault not in _LOST
    if done:
        venue.at(arrival_ms, delivery)
    return fault, arrival_ms


def release(venue: SimVenue, held: MutableSequence[Delivery[T]], now_ms: int) -> None:
    """Let requests held back by REORDER arrive right after what arrives now."""
    for late in held:
        venue.at(now_ms + 1, late)
    held.clear()


__all__ = ["SILENT", "Act", "Delivery", "VenueReject", "dispatch", "release"]
