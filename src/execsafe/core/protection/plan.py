"""What to do about the protection of one position: a function of the record, what is seen, and the time.

Rules:

1. A position is covered when a stop of its own is *known* to rest for all that is held: shown by a reading, or
   acknowledged so recently that no reading can show it yet. Its id says which position it belongs to.
2. A stop never loosens (:func:`tightened`).
3. Where a reduce-only order cannot open the other side, the new stop comes first and the old one goes afterwards. On
   spot, where a resting order locks the holding, the old one must be proven gone first.
4. What cannot be read changes nothing: an acknowledged order counts until a reading that could show it does not, and
   nothing is canceled because something else is missing.
5. What is not covered in time is closed, reduce-only, with the quantity that is really held.
6. A close that the venue refuses is tried again ever more rarely: as a rule there is nothing left to close.
7. On spot an exit keeps a position for as long as an order of it may still fill; the alarm is raised all the same.
8. What is too small for any order is called dust, once, and left as it is.

Every leg is in the record before it is sent, so that a restart sends the same leg again and never another.
"""

from __future__ import annotations

from decimal import Decimal

import attrs

from execsafe.core.dust import is_dust
from execsafe.core.protection.record import (
    WOULD_TRIGGER,
    Action,
    AttachStop,
    CancelLeg,
    Leg,
    LegView,
    Observation,
    Protection,
    ProtectionPolicy,
    ProtectionState,
    Purpose,
    Seen,
    SendLeg,
    enter,
    given_up,
    held_off,
    tightened,
)
from execsafe.model.order import ZERO
from execsafe.model.position import Position, StopKind

_S = ProtectionState


def decide(
    protection: Protection, seen: Observation, policy: ProtectionPolicy, *, now_ms: int
) -> tuple[Protection, tuple[Action, ...]]:
    """The record as it is now, and what to do."""
    if any(view.is_refused_close for view in seen.legs):
        protection = held_off(protection, policy, now_ms=now_ms)
    protection, seen = _settled(protection, seen)
    if seen.position is None or not seen.position.is_open:
        return _wind_up(protection, seen, now_ms)
    if protection.state is _S.DUST:
        return protection, ()
    if protection.state is _S.RELEASED:
        if now_ms < protection.released_until_ms:
            return protection, ()
        protection = exposure(protection, policy, now_ms)
        if seen.closing_elsewhere:
            return protection, ()  # a stop beside that order could sell the same a second time
        protection = enter(protection, _S.UNPROTECTED, acting_since_ms=now_ms)
    want = seen.instrument.floor_quantity(seen.position.quantity)
    if is_dust(want, seen.price, seen.instrument):
        if not _is_provided_for(protection, seen, want):
            return _leave(protection, seen, seen.position.quantity, now_ms)
        if want <= 0:
            return _cover(protection, want, now_ms), ()  # no order can be made of it: what is there may still end it
    protection = _on_time(protection, seen.position, want, now_ms)
    if protection.state is not _S.CLOSING:
        protection, actions = _protect(protection, seen, policy, want, now_ms)
        if protection.state is not _S.CLOSING:
            return protection, actions
    return _close(exposure(protection, policy, now_ms), seen, want, now_ms)


def _settled(protection: Protection, seen: Observation) -> tuple[Protection, Observation]:
    """Without the legs that are gone; a stop that was refused because it would trigger has triggered."""
    left = tuple(
        attrs.evolve(view, leg=attrs.evolve(view.leg, lost=view.leg.lost or view.seen is Seen.MISSING))
        for view in seen.legs
        if view.seen is not Seen.GONE
    )
    refused = [view for view in seen.legs if view.seen is Seen.GONE and view.leg.purpose is Purpose.STOP]
    if any(view.error in WOULD_TRIGGER for view in refused) and protection.state is not _S.RELEASED:
        protection = given_up(protection)
    return attrs.evolve(protection, legs=tuple(view.leg for view in left)), attrs.evolve(seen, legs=left)


def _wind_up(protection: Protection, seen: Observation, now_ms: int) -> tuple[Protection, tuple[Action, ...]]:
    sent = [view.leg for view in seen.legs if view.seen is not Seen.UNSENT]
    protection = attrs.evolve(_cover(protection, ZERO, now_ms), legs=tuple(sent), verified_price=None)
    if sent:
        return protection, tuple(CancelLeg(leg=leg) for leg in sent)
    return enter(protection, _S.CLOSED), ()


def _is_provided_for(protection: Protection, seen: Observation, want: Decimal) -> bool:
    """Whether something at the venue may cover or close it after all, however little it is."""
    if any(view.seen is Seen.IN_DOUBT or (view.rests and view.leg.purpose is Purpose.CLOSE) for view in seen.legs):
        return True
    if protection.kind is StopKind.ATTACHED:
        return protection.state is not _S.CLOSING  # such a stop covers any quantity
    return any(_resting(seen, purpose, want, None) is not None for purpose in (Purpose.STOP, Purpose.TAKE))


def _leave(
    protection: Protection, seen: Observation, held: Decimal, now_ms: int
) -> tuple[Protection, tuple[Action, ...]]:
    """Dust: without orders of ours, and no exposure that an alarm could do anything about."""
    sent = _sent_except(seen, None)
    left = attrs.evolve(_cover(protection, ZERO, now_ms), legs=sent)
    if sent:
        return left, tuple(CancelLeg(leg=leg) for leg in sent)
    return enter(left, _S.DUST, dust=held), ()


def _protect(
    protection: Protection, seen: Observation, policy: ProtectionPolicy, want: Decimal, now_ms: int
) -> tuple[Protection, tuple[Action, ...]]:
    wants_take = protection.state is _S.TAKE_PROFIT
    if protection.kind is StopKind.ATTACHED and not wants_take:
        return _attach(protection, seen, policy, want, now_ms)
    purpose = Purpose.TAKE if wants_take else Purpose.STOP
    price = protection.take_profit_price if wants_take else protection.stop_price
    if price is None:
        return exposure(protection, policy, now_ms), ()
    keeper = _resting(seen, purpose, want, price)
    if keeper is None:
        fresh = Leg(number=protection.issued + 1, purpose=purpose, quantity=want, price=price)
        return _place(_meanwhile(protection, seen, policy, want, now_ms), seen, policy, fresh, now_ms)
    others = _sent_except(seen, keeper.leg)
    done = not any(leg.purpose is not purpose for leg in others)
    state = protection.state if wants_take or not done else _S.STOP
    covered = _cover(
        enter(protection, state, failures=0, retry_at_ms=0), keeper.leaves, now_ms, None if wants_take else price
    )
    covered = attrs.evolve(covered, legs=(keeper.leg, *others))
    return covered, tuple(CancelLeg(leg=leg) for leg in others)


def _meanwhile(
    protection: Protection, seen: Observation, policy: ProtectionPolicy, want: Decimal, now_ms: int
) -> Protection:
    """Covered by a stop that is not where it belongs yet, or exposed."""
    older = _resting(seen, Purpose.STOP, want, None)
    if older is not None:
        return _cover(protection, older.leaves, now_ms, price=older.leg.price)
    return exposure(protection, policy, now_ms)


def _attach(
    protection: Protection, seen: Observation, policy: ProtectionPolicy, want: Decimal, now_ms: int
) -> tuple[Protection, tuple[Action, ...]]:
    attached = seen.attached_price
    if attached is not None:
        protection = tightened(protection, attached)  # one that somebody has set closer is kept
    if protection.stop_price is None:
        return exposure(protection, policy, now_ms), ()
    others = _sent_except(seen, None)
    if attached == protection.stop_price:
        state = protection.state if others else _S.STOP
        covered = _cover(enter(protection, state, failures=0, retry_at_ms=0), want, now_ms, price=attached)
        return attrs.evolve(covered, legs=others), tuple(CancelLeg(leg=leg) for leg in others)
    if not seen.readable and protection.is_covered:
        return protection, ()
    covers = attached is not None  # at another price: being moved
    protection = _cover(protection, want, now_ms, attached) if covers else exposure(protection, policy, now_ms)
    if _is_over(protection, policy, now_ms):
        return given_up(protection), ()
    if now_ms < protection.retry_at_ms:
        return protection, ()
    return protection, (AttachStop(stop_price=protection.stop_price or ZERO),)


def _place(
    protection: Protection, seen: Observation, policy: ProtectionPolicy, fresh: Leg, now_ms: int
) -> tuple[Protection, tuple[Action, ...]]:
    """Bring the wanted leg to the venue, within the tries and the time that there are."""
    if _is_over(protection, policy, now_ms):
        if protection.state is _S.TAKE_PROFIT:
            protection = enter(protection, _S.SWITCHING_TO_STOP, failures=0, retry_at_ms=0, acting_since_ms=now_ms)
            return _protect(protection, seen, policy, fresh.quantity, now_ms)
        return given_up(protection), ()
    same = [v for v in seen.legs if _is_same(v.leg, fresh) and v.seen in {Seen.UNSENT, Seen.IN_DOUBT}]
    in_the_way = [v for v in seen.legs if v not in same and v.seen is not Seen.UNSENT]
    protection = attrs.evolve(protection, legs=tuple(v.leg for v in seen.legs if v in same or v in in_the_way))
    if in_the_way and not seen.overlaps:
        return protection, tuple(_cancel_first(view) for view in in_the_way)
    unsent = [v.leg for v in same if v.seen is Seen.UNSENT]
    doubtful = [v.leg for v in same if v.seen is Seen.IN_DOUBT]
    is_due = now_ms >= protection.retry_at_ms
    if doubtful and not seen.overlaps:
        return protection, (SendLeg(leg=doubtful[-1], patient=True),)  # two such orders could sell twice
    if unsent:
        return protection, (SendLeg(leg=unsent[-1]),) if is_due else ()
    if not is_due:
        return protection, ()
    return _issue(protection, fresh)


def _close(
    protection: Protection, seen: Observation, want: Decimal, now_ms: int
) -> tuple[Protection, tuple[Action, ...]]:
    """Close what is held, reduce-only, one order at a time."""
    closing = [v for v in seen.legs if v.leg.purpose is Purpose.CLOSE]
    others = [v for v in seen.legs if v.leg.purpose is not Purpose.CLOSE and v.seen is not Seen.UNSENT]
    protection = attrs.evolve(protection, legs=tuple(v.leg for v in (*others, *closing)))
    if others and not seen.overlaps:
        return protection, tuple(_cancel_first(view) for view in others)
    unsent = [v.leg for v in closing if v.seen is Seen.UNSENT]
    if any(view.rests for view in closing):
        return protection, ()  # it is filling
    doubtful = [v.leg for v in closing if v.seen is Seen.IN_DOUBT]
    if doubtful and not seen.overlaps:
        return protection, (SendLeg(leg=doubtful[-1], patient=True),)
    lost = [v for v in closing if v.seen is Seen.MISSING]
    if lost and not seen.overlaps:
        return protection, tuple(_cancel_first(view) for view in lost)
    if now_ms < protection.retry_at_ms:
        return protection, ()
    if unsent:
        return protection, (SendLeg(leg=unsent[-1]),)
    # One in doubt is not waited for: both can only reduce.
    return _issue(protection, Leg(number=protection.issued + 1, purpose=Purpose.CLOSE, quantity=want))


def _cancel_first(view: LegView) -> CancelLeg:
    return CancelLeg(leg=view.leg, patient=view.seen is Seen.IN_DOUBT)


def _issue(protection: Protection, leg: Leg) -> tuple[Protection, tuple[Action, ...]]:
    issued = attrs.evolve(protection, legs=(*protection.legs, leg), issued=leg.number)
    return issued, (SendLeg(leg=leg),)


def _resting(seen: Observation, purpose: Purpose, want: Decimal, price: Decimal | None) -> LegView | None:
    """The newest leg that covers everything, at *price* (None: at any).

    Larger is fine where it can only reduce; on spot it would sell too much.
    """
    fits = [
        view
        for view in seen.legs
        if view.rests
        and view.leg.purpose is purpose
        and price in {None, view.leg.price}
        and (view.leaves >= want if seen.overlaps else view.leaves == want)
    ]
    return max(fits, key=lambda view: view.leg.number, default=None)


def _sent_except(seen: Observation, keeper: Leg | None) -> tuple[Leg, ...]:
    return tuple(v.leg for v in seen.legs if v.leg != keeper and v.seen is not Seen.UNSENT)


def _is_same(leg: Leg, fresh: Leg) -> bool:
    return (leg.purpose, leg.price, leg.quantity) == (fresh.purpose, fresh.price, fresh.quantity)


# --- The clock -------------------------------------------------------------------------------------


def _cover(protection: Protection, quantity: Decimal, now_ms: int, price: Decimal | None = None) -> Protection:
    gap_ms = 0 if protection.exposed_since_ms is None else max(0, now_ms - protection.exposed_since_ms)
    return attrs.evolve(
        protection,
        exposed_since_ms=None,
        exposed_ms=protection.exposed_ms + gap_ms,
        acting_since_ms=None,
        alarmed=False,
        placed=protection.placed or price is not None,
        verified_price=price,
        verified_quantity=quantity,
    )


def _on_time(protection: Protection, position: Position, want: Decimal, now_ms: int) -> Protection:
    """A position that grew is exposed since it did, not since somebody looked."""
    if protection.exposed_since_ms is None and want > protection.verified_quantity:
        return attrs.evolve(protection, exposed_since_ms=min(now_ms, position.updated_at_ms))
    return protection


def exposure(protection: Protection, policy: ProtectionPolicy, now_ms: int) -> Protection:
    """Not covered: since when, and whether that is long enough for the alarm."""
    since_ms = now_ms if protection.exposed_since_ms is None else protection.exposed_since_ms
    return attrs.evolve(
        protection,
        state=_S.UNPROTECTED if protection.state is _S.STOP else protection.state,
        exposed_since_ms=since_ms,
        acting_since_ms=now_ms if protection.acting_since_ms is None else protection.acting_since_ms,
        alarmed=protection.alarmed or now_ms - since_ms >= round(policy.alert_after_s * 1000),
        verified_price=None,
        verified_quantity=ZERO,
    )


def _is_over(protection: Protection, policy: ProtectionPolicy, now_ms: int) -> bool:
    """Whether the tries or the time are used up; never while something covers it."""
    if protection.is_covered or protection.acting_since_ms is None or not policy.close_unprotected:
        return False
    late = now_ms - protection.acting_since_ms >= round(policy.deadline_s * 1000)
    return late or protection.failures >= policy.tries
