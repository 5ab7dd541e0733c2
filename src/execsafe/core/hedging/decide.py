"""What to do next with a plan: one decision that a new trade, a resumed one and a late fill all follow.

Everything is derived from the records of the plan's orders, so that deciding again after a crash comes to the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

import attrs

from execsafe.core.hedging.moves import Cancel, End, Learn, Move, Pause, Submit, Turn, Verify, Watch
from execsafe.core.hedging.quantities import at_most, hedge_target, is_placeable, up_to_step
from execsafe.core.hedging.values import Band, HedgePolicy, HedgeRecord, HedgeStage, Verdict
from execsafe.core.hedging.views import LegView, Reading, was_turned_away
from execsafe.model.event import EventType
from execsafe.model.intent import Intent, IntentRecord, IntentState
from execsafe.model.values import EXACT, plain

OPEN: Final = "open"
UNWIND: Final = "unwind"
_FLAT: Final = {HedgeStage.ABORTING: Verdict.ABORTED, HedgeStage.UNWINDING: Verdict.UNWOUND}


@attrs.frozen(kw_only=True)
class _Scene:
    """What every question needs."""

    record: HedgeRecord
    legs: Sequence[LegView]
    policy: HedgePolicy
    now_ms: int
    hurry: bool = False

    @property
    def lead(self) -> LegView:
        return self.legs[0]

    @property
    def rule(self) -> str:
        return self.policy.bands.rule(self.lead.filled, self.lead.opening[0].quantity)


def decide(
    record: HedgeRecord,
    legs: Sequence[LegView],
    policy: HedgePolicy,
    *,
    now_ms: int,
    hurry: bool = False,
    reading: Reading | None = None,
) -> tuple[Move, ...]:
    """The next moves, never none.

    Args:
        record: the plan and its stage.
        legs: its legs, the leading one first, with all their orders.
        policy: thresholds.
        now_ms: Unix ms.
        hurry: wait for no fill any more, and for no venue: the process is being shut down.
        reading: what the venue showed, if it was asked since something last changed.
    """
    scene = _Scene(record=record, legs=legs, policy=policy, now_ms=now_ms, hurry=hurry)
    resumed = _resume(legs, hurry=hurry)
    if resumed:
        return resumed
    if not scene.lead.opening:
        return (_begin(scene, hurry=hurry),)
    resting = _tend(scene, hurry=hurry)
    if resting:
        return resting
    if record.stage is not HedgeStage.HEDGING:
        return _unwind(scene, reading)
    return (_unknown(legs),) if scene.lead.is_stuck else _hedge(scene)


# --- Orders that stand open ------------------------------------------------------------------------


def _resume(legs: Sequence[LegView], *, hurry: bool) -> tuple[Move, ...]:
    """What may or may not be at the venue comes first: nothing is decided on top of a doubt."""
    moves: list[Move] = []
    for index, view in enumerate(legs):
        for record in () if view.is_stuck else view.unsettled:
            if hurry and record in legs[0].opening:
                moves.append(Cancel(index=index, record=record))  # no entry is sent on the way out
            else:
                moves.append(Submit(index=index, intent=record.intent))
    return tuple(moves)


def _begin(scene: _Scene, *, hurry: bool) -> Move:
    record, lead = scene.record, scene.lead
    if lead.is_refused or record.stage is not HedgeStage.HEDGING:
        return End(verdict=Verdict.NOT_STARTED, reason="the leading leg was refused before it was sent", is_done=True)
    if hurry:
        return End(verdict=Verdict.NOT_STARTED, reason="cancelled before anything was sent", is_done=True)
    if record.fresh_until_ms is not None and scene.now_ms > record.fresh_until_ms:
        return End(verdict=Verdict.NOT_STARTED, reason="its time had passed before anything was sent", is_done=True)
    leg = lead.leg
    intent = record.intent(
        0, OPEN, 1, side=leg.side, quantity=leg.quantity, limit_price=leg.limit_price, params=leg.params,
        time_in_force=leg.time_in_force, post_only=leg.post_only, fresh_until_ms=record.fresh_until_ms,
    )  # fmt: skip
    return Submit(index=0, intent=intent)


def _tend(scene: _Scene, *, hurry: bool) -> tuple[Move, ...]:
    """Orders that rest: wait for their fills, but not for ever."""
    policy, now_ms = scene.policy, scene.now_ms
    cancels: list[Move] = []
    live: list[tuple[int, IntentRecord]] = []
    until_ms = now_ms + _ms(policy.poll_interval_s)
    for index, view in enumerate(scene.legs):
        for order in () if view.is_stuck else view.live:
            is_lead = index == 0 and order in view.opening
            ends_ms = order.created_at_ms + _ms(policy.fill_timeout_s if is_lead else policy.hedge_timeout_s)
            has_enough = is_lead and policy.bands.judge(order.filled_quantity, order.quantity) is Band.FULL
            if hurry or has_enough or now_ms >= ends_ms or order.change is not None:
                cancels.append(Cancel(index=index, record=order))
            else:
                live.append((index, order))
                until_ms = min(until_ms, ends_ms)
    if cancels:
        return tuple(cancels)
    return (Watch(until_ms=until_ms, live=tuple(live)),) if live else ()


def _unknown(legs: Sequence[LegView]) -> End:
    doubtful = [r.intent.leg for v in legs if v.is_stuck for r in (*v.unsettled, *v.live)]
    return End(verdict=Verdict.UNKNOWN, reason=f"in doubt: {', '.join(doubtful)}", is_done=False)


# --- Hedging ---------------------------------------------------------------------------------------


def _hedge(scene: _Scene) -> tuple[Move, ...]:
    """All orders have ended: bring every hedge to its target, which follows what the leading leg filled."""
    legs, lead = scene.legs, scene.lead
    if lead.filled <= 0 and not any(view.held for view in legs):
        return (End(verdict=Verdict.ABORTED, reason=_why_nothing(lead), is_done=True),)
    if lead.filled <= 0 or scene.policy.bands.judge(lead.filled, lead.opening[0].quantity) is Band.ABORT:
        return (Turn(stage=HedgeStage.ABORTING, reason=scene.rule),)
    moves, lacking = _follow(scene)
    is_stuck = any(view.is_stuck for view in legs)
    bare = [index for index in lacking if _support(lead, legs[index], scene.record.carried[index]) <= 0]
    if bare and not is_stuck:  # whatever the other legs could still have
        return (Turn(stage=HedgeStage.UNWINDING, reason=f"nothing of {_names(legs, bare)} could be hedged"),)
    if moves:
        return _ends_last(moves)
    if is_stuck:
        return (_unknown(legs),)
    if lacking:
        return _trim(scene, lacking)
    if lead.held < 0:
        return (End(verdict=Verdict.RESIDUAL, reason=_too_much(legs), is_done=False),)
    return (End(verdict=Verdict.EXECUTED, reason=scene.rule, is_done=True),)


def _follow(scene: _Scene) -> tuple[list[Move], list[int]]:
    """What brings each hedge to its target, and which legs cannot follow."""
    lead = scene.lead
    moves: list[Move] = []
    lacking: list[int] = []
    for index, view in enumerate(scene.legs):
        if index == 0 or view.is_stuck:
            continue
        want = view.want(lead, scene.record.carried[index])
        if view.held > want:
            moves += _close_excess(scene, index, Fraction(view.held) - want)
            continue
        missing = at_most(view.instrument, EXACT.subtract(hedge_target(want, view.instrument), view.held))
        is_enough = is_placeable(view.instrument, missing, view.price)
        at_ms = _opens_at(scene, view) if is_enough else None
        if at_ms is not None:
            later = Pause(until_ms=at_ms)
            moves.append(later if scene.now_ms < at_ms else _open(scene.record, index, view, missing))
        elif is_enough or _is_bare(view, want, missing, scene.policy):
            lacking.append(index)
    return moves, lacking


def _is_bare(view: LegView, want: Fraction, missing: Decimal, policy: HedgePolicy) -> bool:
    """Too small to be ordered, and yet too much to be left: no hedge at all, or one below the full band."""
    if want > 0 and view.held <= 0:
        return True
    return missing > 0 and view.held < want * Fraction(policy.bands.full)


def _why_nothing(lead: LegView) -> str:
    last = lead.opening[-1]
    return "nothing of the leading leg filled" + (
        "; it was rejected" if last.state is IntentState.REJECTED else f" ({last.state.value})"
    )


def _opens_at(scene: _Scene, view: LegView) -> int | None:
    """When another hedging order may be sent, in Unix ms; None: none any more.

    Only after one that filled something or that was turned away for now, and neither for ever.
    """
    policy = scene.policy
    tried = [record for record in view.opening if not was_turned_away(record)]
    is_spent = len(tried) >= policy.hedge_attempts_max or any(record.filled_quantity <= 0 for record in tried)
    if view.is_refused or is_spent:
        return None
    away = view.turned_away
    if away is None:
        return 0
    paused_ms = away.at_ms + (_ms(policy.hedge_pause_s) << (away.times - 1))
    at_ms = max(paused_ms, view.not_before_ms or 0)
    ends_ms = scene.now_ms if scene.hurry else away.since_ms + _ms(policy.hedge_retry_s)
    return at_ms if at_ms <= ends_ms else None


def _open(record: HedgeRecord, index: int, view: LegView, quantity: Decimal) -> Submit:
    leg, number = view.leg, len(view.opening) + 1
    tif = leg.time_in_force if leg.time_in_force is not None or leg.limit_price is None else "IOC"
    intent = record.intent(
        index, OPEN, number, side=leg.side, quantity=quantity, limit_price=leg.limit_price, params=leg.params,
        time_in_force=tif, post_only=leg.post_only,
    )  # fmt: skip
    is_whole = quantity == leg.quantity
    tells = EventType.HEDGE_TOPPED_UP if number > 1 else None if is_whole else EventType.HEDGE_RECALCULATED
    return Submit(index=index, intent=intent, tells=tells)


def _close_excess(scene: _Scene, index: int, excess: Fraction) -> list[Move]:
    """More is held than wanted: late evidence, or another leg that could not follow."""
    view = scene.legs[index]
    quantity = min(up_to_step(excess, view.instrument), view.instrument.floor_quantity(view.closable))
    move = _close(scene, index, quantity, note="beyond the ratio", tells=EventType.HEDGE_TRIMMED)
    return [] if move is None else [move]


def _trim(scene: _Scene, lacking: Sequence[int]) -> tuple[Move, ...]:
    """A leg cannot follow: the leading leg goes back to what it supports."""
    lead, legs, carried = scene.lead, scene.legs, scene.record.carried
    support = min(_support(lead, legs[index], carried[index]) for index in lacking)
    drop = hedge_target(Fraction(lead.held) - support, lead.instrument)
    quantity = min(drop, lead.instrument.floor_quantity(lead.closable))
    why = f"{_names(legs, lacking)} could be hedged in part only"
    move = _close(scene, 0, quantity, note=why, tells=EventType.HEDGE_TRIMMED)
    if move is not None:
        return (move,)
    is_close = all(_is_close(legs[index], legs[index].want(lead, carried[index]), scene.policy) for index in lacking)
    verdict = Verdict.EXECUTED if is_close else Verdict.RESIDUAL
    return (End(verdict=verdict, reason=f"{why}; the rest is too small to be undone", is_done=True),)


def _is_close(view: LegView, want: Fraction, policy: HedgePolicy) -> bool:
    """Whether a hedge is complete to less than a step, or at least as far as the full band."""
    is_full = view.held >= want * Fraction(policy.bands.full)
    return is_full or want - Fraction(view.held) < Fraction(view.instrument.step_size or 0)


def _names(legs: Sequence[LegView], indices: Sequence[int]) -> str:
    return ", ".join(legs[index].leg.symbol for index in indices)


def _support(lead: LegView, view: LegView, carried: Decimal) -> Fraction:
    """How much of the leading leg is covered by what a hedge leg holds."""
    own = Fraction(view.held) - Fraction(carried)
    return max(Fraction(0), own * Fraction(lead.leg.quantity) / Fraction(view.leg.quantity))


# --- Unwinding -------------------------------------------------------------------------------------


def _close(
    scene: _Scene, index: int, quantity: Decimal, *, note: str = "", tells: EventType | None = None
) -> Move | None:
    """The next rung of one leg's unwinding; a pause before it; the end, if all were tried; None: too small."""
    view, policy = scene.legs[index], scene.policy
    if view.lacks_trades and not view.has_asked_trades:
        return Learn(index=index)
    quantity = at_most(view.instrument, quantity)
    if not is_placeable(view.instrument, quantity, view.price, reduce_only=view.leg.is_contract):
        return None
    if view.closes_tried >= policy.unwind_attempts_max:
        why = f"{plain(quantity)} {view.leg.symbol} could not be unwound in {view.closes_tried} orders"
        return End(verdict=Verdict.RESIDUAL, reason=why, is_done=False)
    if view.closes_tried:
        at_ms = view.tried_at_ms + (_ms(policy.unwind_pause_s) << (view.closes_tried - 1))
        if scene.now_ms < at_ms:
            return Pause(until_ms=at_ms)
    return Submit(index=index, intent=_exit(scene.record, index, view, quantity), tells=tells, note=note)


def _exit(record: HedgeRecord, index: int, view: LegView, quantity: Decimal) -> Intent:
    """Within the band the first time; whatever the price after that."""
    leg, number = view.leg, len(view.closing) + 1
    price = leg.exit_price if number == 1 else None
    return record.intent(
        index, UNWIND, number, side=leg.side.opposite, quantity=quantity, limit_price=price,
        # On spot, too, where the adapter leaves it out: what closes is never held back by checks that are for entries.
        time_in_force=None if price is None else "IOC", reduce_only=True, params=leg.exit_params,
    )  # fmt: skip


def _ends_last(moves: Sequence[Move]) -> tuple[Move, ...]:
    """What can be learnt or sent comes first; then what can be waited for; only then is it the end."""
    for kind in (Learn, Submit, Pause):
        chosen = tuple(move for move in moves if isinstance(move, kind))
        if chosen:
            return (_earliest(chosen),) if kind is Pause else chosen
    return tuple(moves[:1])


def _earliest(pauses: Sequence[Move]) -> Move:
    return min(pauses, key=lambda move: move.until_ms if isinstance(move, Pause) else 0)


def _unwind(scene: _Scene, reading: Reading | None) -> tuple[Move, ...]:
    """Everything that is held goes, all legs side by side."""
    legs = scene.legs
    moves: list[Move] = []
    dust: list[str] = []
    for index, view in enumerate(legs):
        left = view.instrument.floor_quantity(view.closable)
        if left <= 0 or view.is_stuck:
            continue
        move = _close(scene, index, left)
        if move is None:
            dust.append(f"{plain(left)} {view.leg.symbol}")
        else:
            moves.append(move)
    if moves:
        return _ends_last(moves)
    if any(view.is_stuck for view in legs):
        return (_unknown(legs),)
    if any(view.held < 0 for view in legs):
        return (End(verdict=Verdict.RESIDUAL, reason=_too_much(legs), is_done=False),)
    if dust:
        why = f"too small to be unwound: {', '.join(dust)}"
        return (End(verdict=Verdict.RESIDUAL, reason=why, is_done=True),)
    return (_flat(scene, reading),)


def _too_much(legs: Sequence[LegView]) -> str:
    over = [f"{plain(-view.held)} {view.leg.symbol}" for view in legs if view.held < 0]
    return f"more was unwound than held: {', '.join(over)}"


def _flat(scene: _Scene, reading: Reading | None) -> Move:
    """Flat by its fills: believed once the venue was read again and shows nothing else."""
    policy, now_ms = scene.policy, scene.now_ms
    if reading is None:
        return Verify()
    if reading.agrees:
        return End(verdict=_FLAT[scene.record.stage], reason=scene.record.reason, is_done=True)
    if now_ms - reading.since_ms < _ms(policy.verify_timeout_s):
        return Verify(not_before_ms=now_ms + _ms(policy.poll_interval_s))
    if reading.is_unavailable:
        why = "flat by its fills; the venue could not be read"
        return End(verdict=Verdict.RESIDUAL, reason=why, is_done=False, is_blind=True)
    gaps = [f"{plain(gap)} {view.leg.symbol}" for view, gap in zip(scene.legs, reading.gaps, strict=True) if gap]
    why = f"flat by its fills, but the venue shows {', '.join(gaps)} besides"
    return End(verdict=Verdict.RESIDUAL, reason=why, is_done=False)


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)
