"""When to go on with a plan that has no end yet, and when to leave it to a person.

A plan whose position was closed elsewhere, or that its venue refuses to unwind, comes to the same in every pass. Such
passes become rarer; and while the venue answers and refuses, they end. An order in doubt is never left: it is looked
for as rarely as the policy allows, for ever. New evidence outweighs every pause.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from execsafe.core.hedging.moves import End
from execsafe.core.hedging.values import HedgePolicy, HedgeRecord, LegTotals, Verdict


def put_off(before: HedgeRecord, after: HedgeRecord, end: End, policy: HedgePolicy, *, now_ms: int) -> HedgeRecord:
    """*after* a pass over *before* that came to an *end* that is none: when the next pass is due.

    A pass that changed something is progress: the next one comes at once.
    """
    is_same = totals_of(before) == totals_of(after)
    passes = before.passes + 1 if is_same else 1
    if passes == 1:
        return attrs.evolve(after, passes=1, retry_at_ms=now_ms, is_handed_over=False)
    pause_ms = policy.retries.delay_ms(passes - 1, 0.0)
    is_refused = end.verdict is Verdict.RESIDUAL and not end.is_blind
    if pause_ms is None and is_refused:
        return attrs.evolve(after, passes=passes, retry_at_ms=None, is_handed_over=True)
    rest_ms = policy.retries.envelope_ms(passes - 1) if pause_ms is None else pause_ms
    return attrs.evolve(after, passes=passes, retry_at_ms=now_ms + rest_ms, is_handed_over=False)


def is_due(record: HedgeRecord, totals: Sequence[LegTotals], policy: HedgePolicy, *, now_ms: int) -> bool:
    """Whether an unfinished plan is to be gone on with, given what its orders add up to now.

    A pause longer than any that the policy knows is a clock that was set back: it counts as over.
    """
    if record.verdict is None or tuple(totals) != totals_of(record):
        return True
    if record.is_handed_over:
        return False
    left_ms = 0 if record.retry_at_ms is None else record.retry_at_ms - now_ms
    return not 0 < left_ms <= policy.retries.envelope_ms(max(1, record.passes))


def totals_of(record: HedgeRecord) -> tuple[LegTotals, ...]:
    """What the orders of each leg added up to when *record* was written."""
    return tuple(exposure.totals for exposure in record.exposures)
