"""Every threshold of a desk in one frozen value."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import attrs

import execsafe
from execsafe.core.backoff import Backoff

_ENTRY_PAUSES: Final = Backoff(base_s=1.0, cap_s=15.0, jitter=0.0, max_attempts=None)
_LEASE_TTL_S_MIN: Final = 0.1
_LEASE_TTL_S_MAX: Final = 3_600.0


@attrs.frozen(kw_only=True)
class DeskPolicy:
    """Every threshold of the desk, by the part that it belongs to; each part's own defaults are the defaults here.

    Attributes:
        notional: value of one position, in quote currency.
        leverage: set and confirmed before a symbol's first entry; 1 changes nothing.
        positions_max: how many may be open or opening at once.
        entry_slippage_bps: how far beyond the best price an entry's limit is set.
        account: whose orders and positions.
        entry_pauses: pauses between two tries to enter a pair that was refused for now only (something could not be
            read, a cool-down), for as long as the decision is fresh. From one second, in which a venue answers again
            after a hiccup, to fifteen, so that a venue in trouble is not asked more often than it is anyway.
        settle_s: pause between two passes over what is in doubt or unfinished.
        targets_s: pause between two looks at the prices for targets that are reached.
        stop_positions: whether open positions get stops. Off for pairs, whose legs protect one another.
        retention_s: how long what has ended is remembered; a week. It must not be shorter than the signals' own
            retention: a repeat could outlive its record and be executed again.
        sweep_s: pause between two sweeps of what is older; one hour.
        lease_ttl_s: how long after a kill the desk's claim on its store lasts, and so how long a restart may wait until
            it begins; renewed every third of it. Ten seconds: a loop or a store that hangs for a moment must not let a
            second desk in, and positions must not be without their keeper for longer than a restart takes anyway.
    """

    notional: Decimal = Decimal(50)
    leverage: int = 1
    positions_max: int = 10
    entry_slippage_bps: Decimal = Decimal(20)
    account: str = "default"
    entry_pauses: Backoff = _ENTRY_PAUSES
    settle_s: float = 5.0
    targets_s: float = 0.5
    stop_positions: bool = True
    retention_s: float = 7 * 86_400.0
    sweep_s: float = 3_600.0
    lease_ttl_s: float = 10.0
    gateway: execsafe.GatewayPolicy = attrs.Factory(execsafe.GatewayPolicy)
    looks: execsafe.LookPolicy | None = None
    signals: execsafe.SignalPolicy = attrs.Factory(execsafe.SignalPolicy)
    exits: execsafe.ExitPolicy = attrs.Factory(execsafe.ExitPolicy)
    hedging: execsafe.HedgePolicy = attrs.Factory(execsafe.HedgePolicy)
    opening: execsafe.OpeningPolicy = attrs.Factory(execsafe.OpeningPolicy)
    protection: execsafe.ProtectionPolicy = attrs.Factory(execsafe.ProtectionPolicy)
    trailing: execsafe.TrailingPolicy | None = attrs.Factory(execsafe.TrailingPolicy)
    prices: execsafe.PricePolicy = attrs.Factory(execsafe.PricePolicy)
    pretrade: execsafe.PreTradePolicy = attrs.Factory(execsafe.PreTradePolicy)
    safety: execsafe.SafetyPolicy = attrs.Factory(execsafe.SafetyPolicy)
    reconcile: execsafe.ReconcilePolicy = attrs.Factory(execsafe.ReconcilePolicy)

    def __attrs_post_init__(self) -> None:
        """Refuse to forget what must still be recognised, and to go round without a pause."""
        if not self.retention_s >= self.signals.retention_s:
            raise execsafe.InvalidInput(
                f"retention_s must not be below the signals' retention ({self.signals.retention_s:g} s), "
                f"was {self.retention_s:g}"
            )
        if not self.entry_pauses.envelope_ms(1) > 0:
            raise execsafe.InvalidInput("entry_pauses must begin with a pause, or a refusal is asked for without end")
        if not _LEASE_TTL_S_MIN <= self.lease_ttl_s <= _LEASE_TTL_S_MAX:
            raise execsafe.InvalidInput(
                f"lease_ttl_s must be {_LEASE_TTL_S_MIN:g} to {_LEASE_TTL_S_MAX:g}, was {self.lease_ttl_s:g}"
            )
        if not self.sweep_s > 0:
            raise execsafe.InvalidInput(f"sweep_s must be above 0, was {self.sweep_s:g}")
