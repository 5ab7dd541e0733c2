"""When to try again: exponential, jittered, bounded. Time and chance are arguments."""

from __future__ import annotations

import math
from typing import Any

import attrs

from execsafe.errors import InvalidInput
from execsafe.model.values import shorten


def _between(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    low, high = attribute.metadata["range"]
    if value is None and attribute.default is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidInput(f"{attribute.name} must be {low} to {high}, was {shorten(value)}")


def _count(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidInput(f"{attribute.name} must be a whole number from 1, was {shorten(value)}")


def _range(default: float | None, low: float, high: float) -> Any:
    return attrs.field(default=default, validator=_between, metadata={"range": (low, high)})


@attrs.frozen(kw_only=True)
class Backoff:
    """How long to wait between attempts, and when to give up.

    Attributes:
        base_s: upper bound of the first pause, seconds.
        factor: growth from pause to pause; 1 keeps it constant.
        cap_s: upper bound of every pause, seconds.
        jitter: share of the pause that is left to chance, 0 to 1. 1 ("full jitter", the default) spreads
            callers that failed together over the whole pause; 0 makes it exact.
        max_attempts: attempts, not repetitions: 4 means one attempt and three repetitions. None: no limit.
        deadline_s: seconds after the begin of the first attempt beyond which none begins. None: no limit.
    """

    base_s: float = _range(0.4, 0.0, 86_400.0)
    factor: float = _range(2.0, 1.0, 100.0)
    cap_s: float = _range(30.0, 0.0, 86_400.0)
    jitter: float = _range(1.0, 0.0, 1.0)
    max_attempts: int | None = attrs.field(default=4, validator=_count)
    deadline_s: float | None = _range(None, 0.0, 31_536_000.0)

    def envelope_ms(self, attempt: int) -> int:
        """Longest pause after attempt number *attempt* (from 1): never shorter than the one before it."""
        if attempt < 1:
            raise InvalidInput(f"attempts are numbered from 1, was {shorten(attempt)}")
        try:
            pause_s = min(self.cap_s, self.base_s * self.factor ** (attempt - 1))
        except OverflowError:
            pause_s = self.cap_s if self.base_s else 0.0
        return math.floor(pause_s * 1_000)

    def delay_ms(self, attempt: int, random_unit: float, *, elapsed_ms: int = 0, at_least_ms: int = 0) -> int | None:
        """Pause in milliseconds after attempt number *attempt* (from 1) failed; None: give up.

        Args:
            attempt: how many attempts were made so far.
            random_unit: a number drawn from [0, 1); the pause shrinks as it grows.
            elapsed_ms: time since the first attempt began.
            at_least_ms: what the other side asked for (``Retry-After``). It outweighs the cap; if it reaches
                beyond the deadline the answer is to give up now rather than to come too early.

        Raises:
            InvalidInput: *attempt* is below 1, *random_unit* outside of [0, 1] or a time is negative.
        """
        if not 0.0 <= random_unit <= 1.0 or elapsed_ms < 0 or at_least_ms < 0:
            raise InvalidInput("random_unit must be 0 to 1, elapsed_ms and at_least_ms not negative")
        pause_ms = math.floor(self.envelope_ms(attempt) * (1.0 - self.jitter * random_unit))
        if self.max_attempts is not None and attempt >= self.max_attempts:
            return None
        if self.deadline_s is None:
            return max(pause_ms, at_least_ms)
        left_ms = math.floor(self.deadline_s * 1_000) - elapsed_ms
        if left_ms <= 0 or at_least_ms > left_ms:
            return None
        return min(max(pause_ms, at_least_ms), left_ms)
