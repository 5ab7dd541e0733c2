"""What to do about a position's stop: decisions as a function of record, sight and time."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execsafe.core.opening import OPENING_TRANSITIONS, Opening, OpeningPolicy, OpeningState, become, is_kept
from execsafe.core.protection.plan import decide
from execsafe.core.protection.record import (
    PROTECTION_TRANSITIONS,
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
    StopRule,
    enter,
    failed,
    given_up,
    new_protection,
    refused,
    released,
    resumed,
    stop_price_for,
    tightened,
)
from execsafe.core.protection.story import narrate
from execsafe.core.rejects import RejectClass
from execsafe.core.trailing import TrailingPolicy, TrailingStop
from execsafe.errors import InvalidInput, InvalidTransition
from execsafe.model.event import EventType
from execsafe.model.instrument import Instrument
from execsafe.model.position import Position, PositionSide, StopKind
from execsafe.model.units import Percent
from execsafe.stores.codec import decode, encode, register

register(Protection)

D = Decimal
S = ProtectionState
LONG, SHORT = PositionSide.LONG, PositionSide.SHORT
GRID = Instrument(symbol="BTC/USDT:USDT", step_size="0.001", tick_size="0.1")
POLICY = ProtectionPolicy()
ALERT_MS = 2_000
T0 = 1_000_000


def position(quantity="1", *, side=LONG, at_ms=T0, updated_ms=None) -> Position:
    return Position(
        account="default", symbol=GRID.symbol, side=side, quantity=D(quantity), entry_price=D(100), position_id="p1",
        opened_at_ms=at_ms, updated_at_ms=at_ms if updated_ms is None else updated_ms,
    )  # fmt: skip


def fresh(stop="96", **changes) -> Protection:
    one = attrs.evolve(
        new_protection(position(), kind=StopKind.ORDER, now_ms=T0), stop_price=None if stop is None else D(stop)
    )
    return attrs.evolve(one, **changes)


def see(*views, held=None, **more) -> Observation:
    return Observation(position=position() if held is None else held, instrument=GRID, legs=tuple(views), **more)


def stop(number=1, price="96", quantity="1", purpose=Purpose.STOP) -> Leg:
    return Leg(number=number, purpose=purpose, quantity=D(quantity), price=D(price))


def view(leg, seen=Seen.LIVE, leaves=None, error=None) -> LegView:
    return LegView(leg=leg, seen=seen, leaves=leg.quantity if leaves is None else D(leaves), error=error)


def go(protection, seen, now_ms=T0 + 10, policy=POLICY):
    legs = tuple(v.leg for v in seen.legs)
    return decide(
        attrs.evolve(protection, legs=legs, issued=max(protection.issued, len(legs))), seen, policy, now_ms=now_ms
    )


# --- Prices -------------------------------------------------------------------------------------------------


@pytest.mark.row("S3-11", "S3-32")
@given(
    st.decimals("0.5", 99_999, places=4), st.decimals("0.01", 90, places=3), st.sampled_from([LONG, SHORT]),
    st.sampled_from(["0.01", "0.1", "0.5", "5"]),
)  # fmt: skip
@settings(max_examples=1000, deadline=None)
def test_a_stop_is_on_the_tick_and_never_farther_than_allowed(entry, percent, side, tick):
    instrument = Instrument(symbol="X/Y:Y", tick_size=tick)
    price = stop_price_for(side, entry, Percent(percent), instrument)
    distance = (entry - price) * side.sign
    assert price % D(tick) == 0
    assert distance <= entry * percent / 100
    assert distance > entry * percent / 100 - D(tick)


@pytest.mark.parametrize("percent", [0, -1, 100, 250])
def test_a_distance_that_is_no_distance_is_refused(percent):
    with pytest.raises(InvalidInput):
        stop_price_for(LONG, D(100), Percent(percent), GRID)
    with pytest.raises(InvalidInput):
        ProtectionPolicy(default_distance=Percent(percent))


@pytest.mark.row("S3-14")
@given(st.lists(st.decimals(1, 200, places=1), min_size=1), st.sampled_from([LONG, SHORT]))
@settings(max_examples=1000, deadline=None)
def test_a_stop_never_loosens_and_long_and_short_are_mirror_images(prices, side):
    one = attrs.evolve(fresh(None), side=side)
    seen = []
    for price in prices:
        one = tightened(one, price)
        seen.append(one.stop_price)
    assert seen == sorted(seen, reverse=side is SHORT)
    assert one.stop_price == (max(prices) if side is LONG else min(prices))


# --- Decisions, one by one ----------------------------------------------------------------------------------


def test_a_bare_position_gets_a_stop_that_is_written_down_before_it_is_sent():
    after, actions = go(fresh(), see())
    assert actions == (SendLeg(leg=stop()),)
    assert (after.legs, after.issued) == ((stop(),), 1)


def test_a_stop_that_was_written_down_but_never_journalled_is_sent_not_another():
    after, actions = go(fresh(), see(view(stop(), Seen.UNSENT)))
    assert actions == (SendLeg(leg=stop()),)
    assert after.issued == 1


@pytest.mark.parametrize("seen", [Seen.LIVE, Seen.ACKNOWLEDGED])
def test_a_stop_that_rests_covers(seen):
    after, actions = go(fresh(), see(view(stop(), seen)))
    assert actions == ()
    assert (after.state, after.is_safe, after.verified_price, after.placed) == (S.STOP, True, D(96), True)
    assert after.exposed_ms == 10


@pytest.mark.parametrize("seen", [Seen.UNSENT, Seen.IN_DOUBT, Seen.MISSING, Seen.GONE])
def test_a_stop_that_is_not_known_to_rest_does_not_cover(seen):
    after, _ = go(fresh(), see(view(stop(), seen)))
    assert not after.is_covered
    assert not after.is_safe


def test_a_stop_for_less_than_is_held_does_not_cover_and_stays_until_the_new_one_rests():
    old = view(stop(quantity="0.4"))
    after, actions = go(fresh(), see(old))
    assert actions == (SendLeg(leg=stop(2)),)
    after, actions = go(after, see(old, view(stop(2))))
    assert actions == (CancelLeg(leg=old.leg),)
    assert after.is_safe


def test_on_spot_the_old_stop_goes_first():
    old = view(stop(quantity="0.4"))
    _, actions = go(fresh(), see(old, overlaps=False))
    assert actions == (CancelLeg(leg=old.leg),)
    _, actions = go(fresh(), see(view(old.leg, Seen.GONE), overlaps=False))
    assert [type(action) for action in actions] == [SendLeg]


def test_a_stop_in_doubt_is_doubled_where_both_can_only_reduce_and_waited_for_where_not():
    doubt = view(stop(), Seen.IN_DOUBT)
    _, actions = go(fresh(), see(doubt))
    assert actions == (SendLeg(leg=stop(2)),)
    _, actions = go(fresh(), see(doubt, overlaps=False))
    assert actions == (SendLeg(leg=stop(), patient=True),)


def test_a_stop_that_rests_elsewhere_covers_while_the_one_that_is_wanted_is_placed():
    after, actions = go(fresh("97"), see(view(stop())))
    assert after.is_covered
    assert after.verified_price == D(96)
    assert actions == (SendLeg(leg=stop(2, "97")),)


@pytest.mark.row("S3-07")
def test_three_failed_tries_close_the_position():
    one, waits = fresh(), []
    for _ in range(3):
        one = failed(one, POLICY, now_ms=T0)
        waits.append(one.retry_at_ms - T0)
    assert waits == [200, 400, 800]
    after, actions = go(attrs.evolve(one, acting_since_ms=T0), see())
    assert after.state is S.CLOSING
    assert actions == (SendLeg(leg=Leg(number=1, purpose=Purpose.CLOSE, quantity=D(1))),)


@pytest.mark.row("S3-07")
def test_the_deadline_closes_the_position_and_the_pause_between_tries_is_kept():
    one = attrs.evolve(failed(fresh(), POLICY, now_ms=T0), acting_since_ms=T0)
    assert go(one, see(), now_ms=T0 + 199)[1] == ()
    assert go(one, see(), now_ms=T0 + 200)[1] != ()
    assert go(one, see(), now_ms=T0 + 9_999)[0].state is S.UNPROTECTED
    assert go(one, see(), now_ms=T0 + 10_000)[0].state is S.CLOSING
    assert go(resumed(one), see(), now_ms=T0 + 60_000)[0].state is S.UNPROTECTED, "no process was there to try"


def test_the_alarm_is_due_at_the_alert_time():
    assert not go(fresh(), see(), now_ms=T0 + ALERT_MS - 1)[0].alarmed
    assert go(fresh(), see(), now_ms=T0 + ALERT_MS)[0].alarmed


def test_closing_takes_what_is_held_and_leaves_the_stops_where_they_can_only_reduce():
    one = given_up(fresh())
    resting = view(stop(quantity="0.4"))
    after, actions = go(one, see(resting, held=position("0.7")))
    assert actions == (SendLeg(leg=Leg(number=2, purpose=Purpose.CLOSE, quantity=D("0.7"))),)
    assert resting.leg in after.legs
    _, actions = go(one, see(resting, held=position("0.7"), overlaps=False))
    assert actions == (CancelLeg(leg=resting.leg),)


def test_a_close_that_fills_is_not_sent_again():
    close = Leg(number=1, purpose=Purpose.CLOSE, quantity=D(1))
    assert go(given_up(fresh()), see(view(close)))[1] == ()
    assert go(given_up(fresh()), see(view(close, Seen.IN_DOUBT), overlaps=False))[1] == (
        SendLeg(leg=close, patient=True),
    )


def test_once_flat_everything_goes_and_then_the_record_is_closed():
    flat = attrs.evolve(position(), quantity=D(0))
    views = (view(stop()), view(stop(2), Seen.IN_DOUBT), view(stop(3), Seen.UNSENT))
    after, actions = go(fresh(), see(*views, held=flat))
    assert actions == (CancelLeg(leg=stop()), CancelLeg(leg=stop(2)))
    after, actions = go(after, see(view(stop(), Seen.GONE), view(stop(2), Seen.GONE), held=flat))
    assert (after.state, actions, after.legs) == (S.CLOSED, (), ())


def test_a_stop_refused_because_it_would_trigger_has_triggered():
    gone = view(stop(), Seen.GONE, error="OrderImmediatelyFillable")
    assert go(fresh(), see(gone))[0].state is S.CLOSING
    assert refused(fresh(), "OrderImmediatelyFillable", POLICY, now_ms=T0).state is S.CLOSING
    assert refused(fresh(), "InvalidOrder", POLICY, now_ms=T0).failures == 1


def test_less_than_one_step_needs_no_stop():
    after, actions = go(fresh(), see(held=position("0.0009")))
    assert (after.is_covered, actions) == (True, ())


def test_a_position_without_a_wanted_stop_is_exposed_and_nothing_is_sent():
    after, actions = go(fresh(None), see(), now_ms=T0 + ALERT_MS)
    assert (after.alarmed, actions) == (True, ())


@pytest.mark.row("S3-10", "S3-26")
def test_an_attached_stop_covers_only_when_it_is_read_back():
    one = fresh(kind=StopKind.ATTACHED)
    assert go(one, see())[1] == (AttachStop(stop_price=D(96)),)
    after, actions = go(one, see(attached_price=D(96)))
    assert (after.is_safe, actions) == (True, ())
    after, actions = go(one, see(attached_price=D(90)))
    assert (after.is_covered, after.is_safe, actions) == (True, False, (AttachStop(stop_price=D(96)),))
    after, actions = go(one, see(attached_price=D(98)))
    assert (after.stop_price, after.is_safe, actions) == (D(98), True, ())


@pytest.mark.guarantee(18)
@pytest.mark.row("S3-28")
def test_g18_an_unreadable_position_changes_nothing_about_a_stop_that_was_seen():
    covered, _ = go(fresh(kind=StopKind.ATTACHED), see(attached_price=D(96)))
    assert go(covered, see(readable=False), now_ms=T0 + 99_999) == (covered, ())


def test_a_released_position_is_left_alone_until_its_time_is_over():
    one = released(go(fresh(), see(view(stop())))[0], POLICY, now_ms=T0)
    assert go(one, see(), now_ms=T0 + 29_999)[1] == ()
    after, actions = go(one, see(), now_ms=T0 + 30_000)
    assert (after.state, [type(a) for a in actions]) == (S.UNPROTECTED, [SendLeg])
    assert not after.alarmed, "its time without a stop begins now"


@pytest.mark.parametrize(
    ("refusal", "longest_s"),
    [(RejectClass.POSITION, 60), (RejectClass.STOP, 60), (RejectClass.RETRY, 5), (RejectClass.NO_FILL, 5)],
)
def test_a_close_that_the_venue_refuses_is_tried_again_after_doubling_pauses(refusal, longest_s):
    """Up to a minute, as there is nothing to close as a rule; what is turned away for now, or finds nobody, is not."""
    one, now_ms, pauses = attrs.evolve(fresh(), state=S.CLOSING), T0, []
    for _ in range(14):
        one, [sent] = decide(one, see(), POLICY, now_ms=now_ms)
        one = refused(one, "ExchangeError", POLICY, now_ms=now_ms)
        gone = LegView(leg=sent.leg, seen=Seen.GONE, error="ExchangeError", refusal=refusal)
        one, actions = decide(one, see(gone), POLICY, now_ms=now_ms)
        assert actions == ()
        pauses.append(one.retry_at_ms - now_ms)
        now_ms = one.retry_at_ms
    assert pauses == sorted(pauses)
    assert pauses[0] < 1_000
    assert pauses[-1] == longest_s * 1_000


@pytest.mark.guarantee(10)
def test_g10_a_released_position_whose_exit_may_still_sell_it_gets_no_stop_but_an_alarm():
    one = released(go(fresh(), see(view(stop())))[0], POLICY, now_ms=T0)
    doubtful = see(closing_elsewhere=True, overlaps=False)
    after, actions = go(one, doubtful, now_ms=T0 + 30_000)
    assert (after.state, actions, after.is_covered, after.alarmed) == (S.RELEASED, (), False, False)
    after, actions = go(after, doubtful, now_ms=T0 + 90_000)
    assert (after.state, actions, after.alarmed) == (S.RELEASED, (), True)
    after, actions = go(after, see(overlaps=False), now_ms=T0 + 90_001)
    assert (after.state, [type(a) for a in actions]) == (S.UNPROTECTED, [SendLeg]), "with all its tries still to come"
    assert after.exposed_since_ms == T0 + 30_000


@pytest.mark.row("S0-37")
def test_a_take_profit_is_switched_by_way_of_its_proven_end_on_spot():
    take = stop(1, "110", purpose=Purpose.TAKE)
    one = enter(fresh(), S.TAKE_PROFIT, take_profit_price=D(110))
    rests, actions = go(one, see(view(take), overlaps=False))
    assert (rests.is_safe, rests.verified_price, actions) == (True, None, ())
    switching = enter(rests, S.SWITCHING_TO_STOP)
    after, actions = go(switching, see(view(take), overlaps=False))
    assert (after.state, after.is_covered, actions) == (S.SWITCHING_TO_STOP, False, (CancelLeg(leg=take),))
    after, actions = go(after, see(view(take, Seen.GONE), overlaps=False))
    assert [action.leg.purpose for action in actions] == [Purpose.STOP]
    after, actions = go(after, see(view(stop(2)), overlaps=False))
    assert (after.state, actions) == (S.STOP, ())
    with pytest.raises(InvalidTransition):
        enter(switching, S.TAKE_PROFIT)


def test_a_take_profit_that_cannot_be_placed_becomes_a_stop_at_once():
    one = enter(fresh(failures=3, acting_since_ms=T0), S.TAKE_PROFIT, take_profit_price=D(110))
    after, actions = go(one, see())
    assert after.state is S.SWITCHING_TO_STOP
    assert [action.leg.purpose for action in actions] == [Purpose.STOP]


# --- Properties ---------------------------------------------------------------------------------------------

_seen = st.sampled_from(list(Seen))
_legs = st.builds(
    Leg,
    number=st.just(0),
    purpose=st.sampled_from(list(Purpose)),
    quantity=st.sampled_from([D("0.5"), D(1), D(2)]),
    price=st.sampled_from([D(95), D(96), D(97), D(110)]),
)


@st.composite
def situations(draw):
    views = []
    for number in range(draw(st.integers(0, 4))):
        leg = attrs.evolve(draw(_legs), number=number + 1, lost=draw(st.booleans()))
        if leg.purpose is Purpose.CLOSE:
            leg = attrs.evolve(leg, price=None)
        error = draw(st.sampled_from([None, "OrderImmediatelyFillable", "InvalidOrder"]))
        views.append(LegView(leg=leg, seen=draw(_seen), leaves=leg.quantity, error=error))
    held = draw(st.sampled_from([None, "0.0001", "0.5", "1", "2"]))
    seen = Observation(
        position=None if held is None else position(held, updated_ms=draw(st.integers(T0, T0 + 50))),
        instrument=GRID, legs=tuple(views), readable=draw(st.booleans()),
        attached_price=draw(st.sampled_from([None, D(95), D(96), D(98)])), overlaps=draw(st.booleans()),
        closing_elsewhere=draw(st.booleans()),
    )  # fmt: skip
    state = draw(st.sampled_from([s for s in S if s is not S.CLOSED]))
    protection = fresh(
        draw(st.sampled_from([None, "96", "97"])), state=state, kind=draw(st.sampled_from(list(StopKind))),
        take_profit_price=D(110), legs=tuple(v.leg for v in views), issued=len(views),
        failures=draw(st.integers(0, 4)), retry_at_ms=T0 + draw(st.integers(0, 500)),
        exposed_since_ms=None if state is S.DUST else draw(st.sampled_from([None, T0])),
        acting_since_ms=draw(st.sampled_from([None, T0])),
        verified_quantity=draw(st.sampled_from([D(0), D(1)])), released_until_ms=T0 + draw(st.integers(0, 200)),
    )  # fmt: skip
    return protection, seen, T0 + draw(st.integers(0, 20_000))


@pytest.mark.guarantee(10)
@settings(max_examples=2000, deadline=None)
@given(situations(), st.booleans())
def test_g10_whatever_is_seen_the_decision_is_sound(situation, closes):
    protection, seen, now_ms = situation
    policy = attrs.evolve(POLICY, close_unprotected=closes)
    after, actions = decide(protection, seen, policy, now_ms=now_ms)
    sends = [a.leg for a in actions if isinstance(a, SendLeg)]
    cancels = [a.leg for a in actions if isinstance(a, CancelLeg)]
    names = {leg.name for leg in after.legs}
    # Written down before it is sent; one new leg at most; numbers are never used again.
    assert {leg.name for leg in (*sends, *cancels)} <= names
    assert after.issued - protection.issued in {0, 1}
    assert len(sends) <= 1
    # Nothing that may be at the venue is forgotten.
    assert {v.leg.name for v in seen.legs if v.seen not in {Seen.GONE, Seen.UNSENT}} <= names
    # The stop never loosens, and nothing is sent for more than is held.
    assert protection.stop_price is None or after.stop_price >= protection.stop_price
    held = D(0) if seen.position is None else seen.position.quantity
    assert all(leg.quantity <= held for leg in sends if leg.number > protection.issued)
    # Where orders can sell too much, nothing is sent beside what may still be there.
    resolved = [v.leg for v in seen.legs if v.seen is Seen.IN_DOUBT and v.leg in sends]
    if sends and not resolved and not seen.overlaps:
        assert not [
            v for v in seen.legs if v.leg not in sends and v.seen in {Seen.LIVE, Seen.ACKNOWLEDGED, Seen.IN_DOUBT}
        ]
        assert protection.state is not S.RELEASED or not seen.closing_elsewhere
    # What covers everything is never canceled, unless the position is closed or another one covers too.
    if (
        held >= D("0.001")
        and after.state in {S.STOP, S.UNPROTECTED}
        and seen.overlaps
        and protection.kind is StopKind.ORDER
    ):
        resting = [v for v in seen.legs if v.rests and v.leg.purpose is Purpose.STOP and v.leaves >= held]
        assert not resting or [v for v in resting if v.leg not in cancels]
    # Exposure is counted, alarmed in time, and only ever closed when it may be.
    if (
        after.exposed_since_ms is not None
        and now_ms - after.exposed_since_ms >= ALERT_MS
        and after.state is not S.RELEASED
    ):
        assert after.alarmed
    refused_ = any(v.error == "OrderImmediatelyFillable" and v.leg.purpose is Purpose.STOP for v in seen.legs)
    if after.state is S.CLOSING and protection.state is not S.CLOSING and not refused_:
        assert closes
    assert decide(protection, seen, policy, now_ms=now_ms) == (after, actions)
    assert decode(encode(after)) == after


class Venue:
    """A venue in miniature: answers as it is told, and keeps what it accepted."""

    def __init__(self, *, overlaps):
        self.overlaps = overlaps
        self.held = D(1)
        self.seen: dict[str, Seen] = {}

    def observe(self, protection, now_ms):
        views = tuple(
            LegView(leg=leg, seen=self.seen.get(leg.name, Seen.UNSENT), leaves=leg.quantity) for leg in protection.legs
        )
        held = None if self.held == 0 else position(str(self.held))
        return Observation(position=held, instrument=GRID, legs=views, overlaps=self.overlaps)

    def act(self, action, answer):
        name = action.leg.name
        if isinstance(action, CancelLeg):
            if answer != "lost":
                self.seen[name] = Seen.GONE
        elif answer == "accept" or (self.seen.get(name) is Seen.IN_DOUBT and answer != "lost"):
            if action.leg.purpose is Purpose.CLOSE:
                self.held, self.seen[name] = D(0), Seen.GONE
            else:
                self.seen[name] = Seen.LIVE
        elif answer == "refuse":
            self.seen[name] = Seen.GONE
        else:
            self.seen[name] = Seen.IN_DOUBT
        return answer == "accept" or isinstance(action, CancelLeg)


@pytest.mark.guarantee(10)
@pytest.mark.row("X-03")
@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.sampled_from(["accept", "refuse", "lost"]), max_size=12),
    st.lists(st.sampled_from(["96", "97", "95", "98"]), max_size=4), st.booleans(),
)  # fmt: skip
def test_g10_whatever_the_venue_answers_the_position_ends_covered_or_flat(answers, wishes, overlaps):
    """Answers of all kinds, wishes to move the stop in between; in the end the venue works again."""
    venue, one, now_ms = Venue(overlaps=overlaps), fresh(), T0
    answers, wishes = list(answers), list(wishes)
    for _ in range(40):
        if wishes and one.state is S.STOP:
            one = tightened(one, D(wishes.pop(0)))
        one, actions = decide(one, venue.observe(one, now_ms), POLICY, now_ms=now_ms)
        now_ms = now_ms + 50 if actions else max(now_ms + 50, one.retry_at_ms)
        for action in actions:
            if not venue.act(action, answers.pop(0) if answers else "accept"):
                one = failed(one, POLICY, now_ms=now_ms)
        sells = [name for name, seen in venue.seen.items() if seen is Seen.LIVE]
        assert overlaps or len(sells) <= 1, "on spot one order at most rests"
    assert one.state is S.CLOSED or one.is_safe
    if one.is_safe:
        assert [name for name, seen in venue.seen.items() if seen in {Seen.LIVE, Seen.IN_DOUBT}] == [one.legs[0].name]
    else:
        assert venue.held == 0


# --- Tables, events, codec ----------------------------------------------------------------------------------


@pytest.mark.row("S1-12")
def test_every_protection_can_end_and_a_closed_one_stays_closed():
    assert set(PROTECTION_TRANSITIONS) == set(S)
    assert all(S.CLOSED in after for state, after in PROTECTION_TRANSITIONS.items() if state is not S.CLOSED)
    assert PROTECTION_TRANSITIONS[S.CLOSED] == frozenset()


@pytest.mark.row("S3-19")
def test_a_stop_is_told_once_and_then_moved_missed_and_restored():
    bare = fresh()
    covered, _ = go(bare, see(view(stop())))
    moved, _ = go(attrs.evolve(covered, stop_price=D(97)), see(view(stop(2, "97"))))
    lost, _ = go(moved, see(view(stop(2, "97"), Seen.MISSING)), now_ms=T0 + 20)
    alarmed, _ = go(lost, see(), now_ms=T0 + 20 + ALERT_MS)

    def told(before, after):
        return [event.type for event in narrate(before, after, now_ms=T0, held=D(1))]

    assert told(bare, covered) == [EventType.STOP_PLACED]
    assert told(covered, covered) == []
    assert told(covered, moved) == [EventType.STOP_MOVED]
    assert told(moved, lost) == [EventType.STOP_MISSING]
    assert told(lost, alarmed) == [EventType.POSITION_UNPROTECTED]
    assert told(alarmed, moved) == [EventType.STOP_MOVED]
    assert told(bare, failed(bare, POLICY, now_ms=T0)) == [EventType.STOP_FAILED]


def test_a_record_with_everything_in_it_survives_the_codec():
    trailing = TrailingStop(
        side=LONG, entry_price=D(100), tick_size=D("0.1"), policy=TrailingPolicy(), stop_price=D(96)
    )
    full = fresh(trailing=trailing, legs=(stop(), stop(2, "110", purpose=Purpose.TAKE)), alarmed=True, placed=True)
    assert decode(encode(full)) == full


def test_policies_refuse_what_could_not_work():
    for changes in ({"tries": 0}, {"deadline_s": 0}, {"alert_after_s": float("nan")}, {"interval_s": -1}):
        with pytest.raises(InvalidInput):
            ProtectionPolicy(**changes)
    for changes in ({"keep_ratio": 2}, {"keep_ratio": -1}, {"poll_s": 0}, {"setting_tries": 0}):
        with pytest.raises(InvalidInput):
            OpeningPolicy(**changes)
    with pytest.raises(InvalidInput):
        StopRule(stop_price=-1)


def test_an_opening_follows_its_table():
    from execsafe.core.opening import EntryPlan

    plan = EntryPlan(key="k", symbol="X/Y:Y", side="long", quantity=1, stop=StopRule(stop_price=1))
    for state, after in OPENING_TRANSITIONS.items():
        for other in OpeningState:
            one = Opening(plan=plan, state=state)
            if other in after or other is state:
                assert become(one, other, now_ms=5).state is other
            else:
                with pytest.raises(InvalidTransition):
                    become(one, other, now_ms=5)


def test_what_is_kept_of_a_partial_entry_is_a_matter_of_policy():
    half = OpeningPolicy(keep_ratio="0.5")
    assert is_kept(D("0.1"), D(1), OpeningPolicy())
    assert not is_kept(D(0), D(1), OpeningPolicy())
    assert is_kept(D("0.5"), D(1), half)
    assert not is_kept(D("0.499"), D(1), half)
