"""Thresholds of the gateway, in one frozen value."""

from __future__ import annotations

import attrs

from execsafe.core.ghosts import default_patience_s
from execsafe.model.instrument import is_contract
from execsafe.model.intent import Intent
from execsafe.model.values import check_count, check_seconds
from execsafe.model.venue import Expiry, VenueProfile

_PATIENCE_MAX_S = 7 * 86_400.0
_LEASE_MARGIN_MS = 2_000
_REQUEST_TIMEOUT_MAX_S = 600.0


@attrs.frozen(kw_only=True)
class GatewayPolicy:
    """How long to wait, how often to try, and what to do when the store fails.

    Attributes:
        request_timeout_s: own time-out around every call to the venue. 10 s, ccxt's default.
        patience_s: how long one doubt is looked into before it is escalated as unresolved. None: long enough for
            a proof at this venue (time-out + expiry window + skew + read lag + 15 s).
        attempts_max: how many attempts may be made, counting the first. 4.
        confirm_acks: read the order once when the venue's answer to create does not say what became of it.
        exits_without_journal: when the store fails, still send *reduce-only* orders of contracts, once per key and
            process. The venue itself sees to it that they cannot add exposure, and not being able to close a position
            is the greater harm. Entries, and whatever sells on spot, are never sent without the journal; cancels always
            may be.
    """

    request_timeout_s: float = 10.0
    patience_s: float | None = None
    attempts_max: int = 4
    confirm_acks: bool = True
    exits_without_journal: bool = True

    def __attrs_post_init__(self) -> None:
        """Refuse values with which nothing could work."""
        check_seconds(self.request_timeout_s, "request_timeout_s", most=_REQUEST_TIMEOUT_MAX_S)
        if self.patience_s is not None:
            check_seconds(self.patience_s, "patience_s", least=0, most=_PATIENCE_MAX_S)
        check_count(self.attempts_max, "attempts_max")

    def patience_for(self, profile: VenueProfile) -> float:
        """The patience at one venue, in seconds."""
        return default_patience_s(profile, self.request_timeout_s) if self.patience_s is None else self.patience_s

    def goes_without_journal(self, intent: Intent) -> bool:
        """Whether this order may go out although it cannot be written down. Not on spot, where nothing stops a second.

        A spot sale that nobody remembers could be made again by the next process, out of what belongs to others.
        """
        return self.exits_without_journal and intent.reduce_only and is_contract(intent.symbol)

    def lease_ttl_ms(self, profile: VenueProfile) -> int:
        """A lease outlives one request: until it can no longer be signed, or no longer land, with a margin."""
        lasts_s = self.request_timeout_s
        if profile.expiry is Expiry.ABSOLUTE:
            lasts_s = max(lasts_s, profile.expiry_window_s)
        elif profile.expiry is Expiry.RELATIVE:
            lasts_s += profile.expiry_window_s  # the window starts when the request is signed
        return round((lasts_s + profile.clock_skew_s) * 1000) + _LEASE_MARGIN_MS
