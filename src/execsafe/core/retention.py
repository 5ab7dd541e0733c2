"""How long finished work must be remembered, so that a repeat is recognised as one.

A message that is still acceptable (not older than the maximum age, by a clock that may be off) can be
delivered late. If its record were gone by then, it would be executed a second time. Hence the rule: what is
forgotten must be too old to be accepted.
"""

from __future__ import annotations

from execsafe.errors import InvalidInput
from execsafe.model.values import shorten


def dedup_retention_ms(max_age_ms: int, skew_ms: int, delivery_delay_ms: int) -> int:
    """Shortest time in milliseconds for which an ended record must be kept.

    Args:
        max_age_ms: age up to which a message is accepted.
        skew_ms: how far the sender's clock may be from ours.
        delivery_delay_ms: longest time a message may spend between the check of its age and its execution.

    Raises:
        InvalidInput: one of them is negative.
    """
    if min(max_age_ms, skew_ms, delivery_delay_ms) < 0:
        raise InvalidInput("max_age_ms, skew_ms and delivery_delay_ms must not be negative")
    return max_age_ms + skew_ms + delivery_delay_ms


def check_retention(ttl_ms: int, retain_ms: int) -> None:
    """Refuse a time to live that forgets too early.

    Raises:
        InvalidInput: ``ttl_ms < retain_ms``; the message has both numbers.
    """
    if ttl_ms < retain_ms:
        raise InvalidInput(
            f"records would be forgotten after {shorten(ttl_ms)} ms, but a repeat can come for "
            f"{shorten(retain_ms)} ms: it would be executed again"
        )
