"""Leaves a venue alone that turned a request away for coming too often."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from execsafe.core.outcomes import is_turned_away
from execsafe.core.pacing import Pace, PacingPolicy, asked_pause_s, eased, slowed
from execsafe.errors import VenueUnavailable
from execsafe.ports import Clock


class Pacer:
    """The pace of one exchange object. Decisions are in :mod:`execsafe.core.pacing`."""

    def __init__(self, exchange: Any, name: str, clock: Clock, policy: PacingPolicy) -> None:
        self._exchange = exchange
        self._name = name
        self._clock = clock
        self._policy = policy
        self._pace = Pace()

    def not_before_ms(self) -> int | None:
        """When the venue may be asked again, None: now."""
        at_ms = self._pace.not_before_ms
        return at_ms if at_ms > self._clock.now_ms() else None

    def check(self, *, urgent: bool) -> None:
        """Refuse what must not be sent now.

        Raises:
            VenueUnavailable: the venue asked to be left alone until then. Nothing was sent.
        """
        at_ms = self._pace.urgent_from_ms if urgent else self._pace.not_before_ms
        if at_ms > self._clock.now_ms():
            until = datetime.fromtimestamp(at_ms / 1000, tz=UTC).isoformat(timespec="seconds")
            raise VenueUnavailable(
                f"{self._name} turned a request away for coming too often: nothing is sent before {until}; "
                "nothing was sent",
                not_before_ms=at_ms,
            )

    @contextlib.contextmanager
    def watching(self, *, urgent: bool) -> Iterator[None]:
        """Refuse what must not be sent now; else learn from how the request inside ends.

        Raises:
            VenueUnavailable: as :meth:`check`.
        """
        self.check(urgent=urgent)
        began_ms = self._clock.now_ms()
        try:
            yield
        except Exception as error:
            if is_turned_away(error):
                now_ms = self._clock.now_ms()
                asked_s = asked_pause_s(error, self._headers(), now_ms=now_ms)
                self._pace = slowed(self._pace, self._policy, retry_after_s=asked_s, began_ms=began_ms, now_ms=now_ms)
            raise
        self._pace = eased(self._pace, began_ms=began_ms, now_ms=self._clock.now_ms())

    def _headers(self) -> Mapping[str, object]:
        headers = getattr(self._exchange, "last_response_headers", None)
        return headers if isinstance(headers, Mapping) else {}
