"""Ends that no view shows.

Some venues drop an order from every list the moment it has ended (an order canceled without a fill, above all). Its
end is then concluded, by the rules by which absence is proven (:mod:`execsafe.core.ghosts`):

* *It rests no more*: a look that **began** a read lag and the clock skew after the journal last learned of the order
  found it in no view of orders, and so did a second one, begun as much later than the first ended.
* *What it filled is known*: from the account's list of fills, read after the second look. Without that list nothing is
  concluded: it goes on resting, and counts in full.

A stop that was set off may fill under an order id of its own, and many lists name no other id than the venue's, which
is not known of an order that only a duplicate-id reject tells of. There the end is concluded only when every fill of
the symbol since the order was sent belongs to an order that the journal knows.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

from execsafe.core.ghosts import Sighting, of_orders, shows_what_rests
from execsafe.model.intent import Attempt
from execsafe.model.order import Fill
from execsafe.model.position import Execution
from execsafe.model.venue import View


class Trace(enum.StrEnum):
    """What a look says about an order that was known to rest."""

    SEEN = "seen"
    UNCLEAR = "unclear"  # a view could not be read, or the look came too early
    MISSING = "missing"  # in no view, for the first time or not yet for long enough
    GONE = "gone"  # proven to rest no more


def trace(
    views: Iterable[View],
    seen: Mapping[View, Sighting],
    *,
    looked_at_ms: int,
    known_at_ms: int,
    missing_since_ms: int | None,
    lag_ms: int,
) -> Trace:
    """Judge one look at an order that rested. Unix ms.

    Args:
        views: all declared views. Lists of trades say nothing about what rests, and are not asked.
        seen: what the look found in each.
        looked_at_ms: when the look **began**.
        known_at_ms: when the journal last learned anything of the order.
        missing_since_ms: when the first look that missed it **ended**; None: there was none.
        lag_ms: read lag and clock skew.
    """
    declared = of_orders(views)
    found = [seen.get(view) for view in declared]
    if Sighting.PRESENT in found:
        return Trace.SEEN
    is_late_enough = looked_at_ms >= known_at_ms + lag_ms
    if not shows_what_rests(declared) or not is_late_enough or any(one is not Sighting.ABSENT for one in found):
        return Trace.UNCLEAR
    is_confirmed = missing_since_ms is not None and looked_at_ms >= missing_since_ms + lag_ms
    return Trace.GONE if is_confirmed else Trace.MISSING


def fills_of(attempt: Attempt, executions: Iterable[Execution]) -> tuple[Fill, ...]:
    """All fills of the attempt's order in a list of the account's, by the venue's order id or by ours."""
    return tuple(
        one.fill
        for one in executions
        if one.venue_order_id == attempt.venue_order_id or one.client_order_id == attempt.client_order_id
    )
