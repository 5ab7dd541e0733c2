"""What is fixed for a simulated run, drawn from its seed: the venue's nature, the policies, the faults."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import attrs

from execsafe.gateway import GatewayPolicy, OrderGateway
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry
from execsafe.locks import DedupLock
from execsafe.model.venue import Dedup, Expiry, LookUp, VenueProfile, View
from execsafe.testing.faults import DRAWN, Fault, defensible

_ENABLED_RATE: Final = 0.33
_RATE: Final = 0.25
# What strikes every kind of request, and for long, would drown everything else; what strikes few must strike often.
_RATES: Final = {
    Fault.MAINTENANCE: 0.03,
    Fault.RATE_LIMITED: 0.05,
    Fault.TIMESTAMP_REJECT: 0.05,
    Fault.LOOKUP_ERROR: 0.15,
    Fault.ID_INDEX_LOST: 0.05,
    Fault.FILL_DURING_CANCEL: 0.5,
    Fault.CANCEL_OK_STILL_LIVE: 0.5,
    Fault.PRUNED_AFTER_END: 0.5,
}
_LATE: Final = frozenset({Fault.DELAY_REQUEST, Fault.LATE_ARRIVAL_AFTER_LOOK, Fault.REORDER})


@attrs.frozen(kw_only=True)
class Variant:
    """Other parts in place of the library's own: planted bugs, or parts left out.

    Attributes:
        name: shown in reports.
        gateway, registry: called as the originals are.
        locks: makes each process's in-process lock; None: the gateway's own.
        patch: a context in which the run takes place.
        no_leases: the store grants every lease to everybody and refuses no fence.
        without: guarantees that cannot hold with these parts, and are not judged.
    """

    name: str
    gateway: Callable[..., OrderGateway] = OrderGateway
    registry: Callable[..., IntentRegistry] = IntentRegistry
    locks: Callable[..., DedupLock] | None = None
    patch: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    no_leases: bool = False
    without: frozenset[str] = frozenset()


PLAIN: Final = Variant(name="plain")


@attrs.frozen(kw_only=True)
class Setup:
    """What is fixed for a run: the venue's nature and the gateways' policies."""

    profile: VenueProfile
    venue_skew_ms: int
    view_lags_ms: dict[View, int]
    policy: GatewayPolicy
    looks: LookPolicy
    latency_ms: tuple[int, int]
    client_timeout_s: float
    faults: frozenset[str]
    pause_max_ms: int

    @property
    def can_prove(self) -> bool:
        """Whether every doubt can end at such a venue."""
        return self.profile.expiry is not Expiry.NONE and bool(self.profile.lookups)


def draw_setup(rng: random.Random) -> Setup:
    """A venue and policies, from a seed."""
    profile = VenueProfile(
        name="sim",
        dedup=rng.choice((Dedup.NONE, Dedup.OPEN, Dedup.FOREVER)),
        expiry=rng.choice((Expiry.ABSOLUTE, Expiry.ABSOLUTE, Expiry.RELATIVE, Expiry.NONE)),
        expiry_window_s=rng.choice((1.0, 3.0, 5.0)),
        clock_skew_s=rng.choice((0.0, 0.5, 1.0)),
        read_lag_s=rng.choice((0.0, 1.0, 4.0)),
        lookups=_draw_lookups(rng),
        definite_ack=rng.choice((False, True)),
        attached_stops=False,
    )
    skew_ms, lag_ms = round(profile.clock_skew_s * 1000), round(profile.read_lag_s * 1000)
    timeout_s = rng.choice((1.0, 3.0, 10.0))
    can_prove = profile.expiry is not Expiry.NONE
    patience_s = rng.choice((None, None, 4.0)) if can_prove else rng.choice((4.0, 8.0))
    faults = _allowed(profile)
    stops_zombies = profile.expiry is not Expiry.RELATIVE  # elsewhere a late request carries no late deadline
    return Setup(
        profile=profile,
        venue_skew_ms=rng.choice((0, -skew_ms, skew_ms)),
        view_lags_ms={view: rng.choice((0, lag_ms // 2, lag_ms)) for view in View},
        policy=GatewayPolicy(request_timeout_s=timeout_s, patience_s=patience_s, attempts_max=rng.choice((1, 2, 4))),
        looks=LookPolicy(interval_s=rng.choice((1.0, 3.0)), spacing_s=0.05, timeout_s=rng.choice((1.0, 5.0))),
        latency_ms=rng.choice(((1, 5), (5, 50), (20, 400))),
        client_timeout_s=rng.choice((0.8, 2.0, 12.0)),
        faults=faults,
        pause_max_ms=60_000 if stops_zombies else 1_500,
    )


def draw_rates(rng: random.Random, allowed: frozenset[str], wanted: frozenset[str] | None) -> dict[Fault, float]:
    """What is wanted, else a random third: runs with few kinds of faults reach states that runs with all never see."""
    drawn = [fault for fault in DRAWN if rng.random() < _ENABLED_RATE]
    chosen = drawn if wanted is None else [fault for fault in DRAWN if fault in wanted]
    return {fault: _RATES.get(fault, _RATE) for fault in chosen if fault in allowed}


def _allowed(profile: VenueProfile) -> frozenset[str]:
    """Faults under which the guarantees are promised. Late requests are: without an expiry nothing is resent."""
    allowed = set(defensible(profile)) | _LATE
    if Fault.DUPLICATE_DELIVERY in allowed:
        allowed.discard(Fault.ID_INDEX_LOST)  # together they make uniqueness for ever a matter of luck
    return frozenset(allowed)


def _draw_lookups(rng: random.Random) -> tuple[LookUp, ...]:
    by_id = LookUp(view=View.CLIENT_ID, method="fetch_order")
    lists = (
        LookUp(view=View.OPEN_ORDERS, method="fetch_open_orders", scan=True),
        LookUp(view=View.CLOSED_ORDERS, method="fetch_closed_orders", scan=True),
    )
    trades = LookUp(view=View.TRADES, method="fetch_my_trades", scan=True)
    return rng.choice(((by_id, *lists), (by_id, *lists), (by_id, *lists, trades), (by_id,), lists))
