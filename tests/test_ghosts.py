"""GhostOrderResolver: looks in every declared view until there is a verdict, and never guesses one."""

from __future__ import annotations

from decimal import Decimal

import anyio
import attrs
import pytest

from execsafe.core.ghosts import Sighting, Verdict
from execsafe.errors import InvalidInput
from execsafe.ghosts import GhostOrderResolver, LookPolicy, order_ref
from execsafe.model.intent import Attempt, AttemptState, Intent
from execsafe.model.order import OrderRequest, OrderStatus, Side
from execsafe.model.venue import LookUp, View
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from fakes import LISTS, PROFILE, FakeAdapter, FakeOrder, FakeVenue, NotFound, Refused

pytestmark = pytest.mark.anyio
INTENT = Intent(key="k", symbol="BTC/USDT", side="buy", quantity=1, limit_price=100)
QUICK = LookPolicy(interval_s=1.0, spacing_s=0.0, timeout_s=10.0)
MARGIN_MS = 2_500  # the fake profile's skew and lag


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class World:
    def __init__(self, profile=PROFILE, policy: LookPolicy = QUICK) -> None:
        self.clock = VirtualClock()
        self.venue = FakeVenue(self.clock, profile)
        self.adapter = FakeAdapter(self.venue)
        self.resolver = GhostOrderResolver(self.adapter, clock=self.clock, policy=policy)
        self.start_ms = self.clock.now_ms()

    def attempt(self, key: str = "k", *, dead_in_ms: int | None = 3_000) -> Attempt:
        intent = attrs.evolve(INTENT, key=key)
        return Attempt(
            number=1,
            client_order_id=self.adapter.client_order_id(intent, 0),
            quantity=Decimal(1),
            state=AttemptState.IN_DOUBT,
            deadline_ms=None if dead_in_ms is None else self.start_ms + dead_in_ms,
        )

    def place(self, attempt: Attempt) -> None:
        request = OrderRequest(
            symbol="BTC/USDT",
            side=Side.BUY,
            type="limit",
            quantity=attempt.quantity,
            client_order_id=attempt.client_order_id,
            deadline_ms=attempt.deadline_ms,
        )
        self.venue.orders.append(FakeOrder(request, "1", self.clock.now_ms()))

    async def resolve(self, attempt: Attempt, *, patience_s: float = 60, **more):
        return await self.resolver.resolve(INTENT, attempt, since_ms=self.start_ms, patience_s=patience_s, **more)

    def elapsed_ms(self) -> int:
        return self.clock.now_ms() - self.start_ms


async def test_an_order_is_found_in_the_first_view_that_has_it():
    """And the other views are not asked any more."""
    world = World(LISTS)
    attempt = world.attempt()
    world.place(attempt)
    found = await world.resolve(attempt)
    assert found.verdict is Verdict.FOUND
    assert found.report.venue_order_id == "1"
    assert found.looks == len(world.adapter.looks) == 1
    assert found.look.seen == {View.OPEN_ORDERS: Sighting.PRESENT}


@pytest.mark.guarantee(11)
async def test_g11_a_failing_view_does_not_hide_what_another_shows():
    """FI-34: visible in exactly one view."""
    world = World(LISTS)
    attempt = world.attempt()
    world.place(attempt)
    world.venue.orders[0].fill(1)
    world.adapter.reads.append(ConnectionError("no route"))
    found = await world.resolve(attempt)
    assert (found.verdict, found.looks) == (Verdict.FOUND, 1)
    assert found.look.seen == {View.OPEN_ORDERS: Sighting.UNREADABLE, View.CLOSED_ORDERS: Sighting.PRESENT}


@pytest.mark.guarantee(3)
@pytest.mark.parametrize("dead_in_ms", [0, 1, 2_999, 3_000])
async def test_g3_absence_is_proven_by_a_look_at_exactly_the_first_instant_that_allows_it(dead_in_ms):
    """Not a millisecond earlier, and none later than needed."""
    world = World()
    absent = await world.resolve(world.attempt(dead_in_ms=dead_in_ms))
    assert absent.verdict is Verdict.ABSENT
    assert absent.look.began_at_ms - world.start_ms == dead_in_ms + MARGIN_MS
    assert world.elapsed_ms() == dead_in_ms + MARGIN_MS
    assert absent.looks <= (dead_in_ms + MARGIN_MS) // 1_000 + 2


@pytest.mark.guarantee(3)
async def test_g3_where_several_lists_have_to_be_searched_a_second_look_confirms_the_first():
    """It begins a read lag after the first ended: an order that moves between two lists can be missed once."""
    world = World(LISTS)
    world.adapter.reads.extend(["works", 0.3] * 20)
    absent = await world.resolve(world.attempt(dead_in_ms=0))
    assert absent.verdict is Verdict.ABSENT
    first_ms = next(at for at in world.adapter.looks if at - world.start_ms >= MARGIN_MS)
    assert absent.look.began_at_ms == first_ms + 300 + 2_000


@pytest.mark.guarantee(1, 3)
async def test_g3_an_order_that_moved_between_two_lists_while_they_were_read_is_found():
    """FI-34: no longer in the open orders, not yet in the closed ones, at the very instant that would prove absence."""
    world = World(LISTS)
    attempt = world.attempt(dead_in_ms=0)

    def appears() -> None:
        if world.elapsed_ms() > MARGIN_MS and not world.venue.orders:
            world.place(attempt)
            world.venue.orders[0].fill(1)

    world.adapter.on_look = appears
    found = await world.resolve(attempt)
    assert found.verdict is Verdict.FOUND
    assert found.report.filled_quantity == 1


@pytest.mark.guarantee(3)
async def test_g3_a_look_that_began_too_early_proves_nothing_however_late_it_ends():
    """What counts is when the venue was asked, not when it answered."""
    world = World()
    world.adapter.reads.extend([2.6, "works"])  # begins at 0, ends after the proof instant
    absent = await world.resolve(world.attempt(dead_in_ms=0))
    assert (absent.verdict, absent.looks) == (Verdict.ABSENT, 2)
    assert absent.look.began_at_ms - world.start_ms >= MARGIN_MS


@pytest.mark.guarantee(18)
@pytest.mark.parametrize(
    "failure", [ConnectionError("no route"), Refused("key expired"), ValueError("not JSON"), "hangs"]
)
async def test_g18_a_read_that_fails_or_hangs_never_counts_as_absence(failure):
    """FI-40: until it succeeds nothing is proven; the other view's "absent" is not enough."""
    world = World(LISTS)
    world.adapter.reads.extend([failure, "works"] * 4)
    absent = await world.resolve(world.attempt(dead_in_ms=0))
    assert absent.verdict is Verdict.ABSENT
    assert absent.looks > 5


@pytest.mark.guarantee(18)
async def test_g18_views_that_stay_unreadable_end_unresolved_when_patience_is_over():
    world = World()
    world.adapter.reads_fail = True
    unresolved = await world.resolve(world.attempt(), patience_s=20)
    assert unresolved.verdict is Verdict.UNRESOLVED
    assert unresolved.report is None
    assert world.elapsed_ms() == 20_000
    assert set(unresolved.look.seen.values()) == {Sighting.UNREADABLE}


async def test_a_view_that_takes_two_reads_is_absent_only_if_both_say_so():
    """E.g. ordinary and trigger orders in two lists; the order of failure and success does not matter."""
    twice = (LookUp(view=View.OPEN_ORDERS, method="a"), LookUp(view=View.OPEN_ORDERS, method="b"))
    for script in (["works", ConnectionError()], [ConnectionError(), "works"]):
        world = World(attrs.evolve(PROFILE, lookups=twice))
        world.adapter.reads.extend(script)
        look = await world.resolver.look(order_ref(INTENT, world.attempt()))
        assert look.seen == {View.OPEN_ORDERS: Sighting.UNREADABLE}
        look = await world.resolver.look(order_ref(INTENT, world.attempt()))
        assert look.seen == {View.OPEN_ORDERS: Sighting.ABSENT}


async def test_not_found_said_by_an_error_is_the_same_as_an_empty_answer():
    world = World(LISTS)
    world.adapter.reads.extend([NotFound("unknown order"), NotFound("unknown order")])
    look = await world.resolver.look(order_ref(INTENT, world.attempt()))
    assert set(look.seen.values()) == {Sighting.ABSENT}


@pytest.mark.guarantee(3)
@pytest.mark.parametrize("case", ["no views", "no expiry"])
async def test_g3_where_absence_cannot_be_proven_it_is_escalated(case):
    """FI-03 turned round: bounded in time and number of reads, and never a verdict of absence."""
    profile = attrs.evolve(PROFILE, lookups=()) if case == "no views" else PROFILE
    world = World(profile)
    attempt = world.attempt(dead_in_ms=None if case == "no expiry" else 0)
    unresolved = await world.resolve(attempt, patience_s=30)
    assert unresolved.verdict is Verdict.UNRESOLVED
    assert world.elapsed_ms() == 30_000
    assert unresolved.looks <= 32


@pytest.mark.guarantee(4)
async def test_g4_what_the_venue_says_exists_is_looked_for_until_two_looks_a_lag_apart_miss_it():
    world = World()
    attempt = attrs.evolve(world.attempt(dead_in_ms=None), exists=True)
    ended = await world.resolve(attempt, patience_s=30)
    assert ended.verdict is Verdict.ENDED
    assert world.elapsed_ms() == 2 * round((PROFILE.read_lag_s + PROFILE.clock_skew_s) * 1000)


async def test_an_order_that_shows_up_while_looking_is_found():
    world = World()
    attempt = world.attempt(dead_in_ms=3_000)
    world.adapter.on_look = lambda: len(world.adapter.looks) == 5 and world.place(attempt)
    found = await world.resolve(attempt)
    assert found.verdict is Verdict.FOUND
    assert found.report.status is OrderStatus.OPEN


async def test_all_orders_in_doubt_share_one_budget_of_reads():
    """Ten doubts at once do not become a request storm: reads are spaced, whoever they are for."""
    world = World(policy=LookPolicy(interval_s=1.0, spacing_s=0.25, timeout_s=10.0))
    async with anyio.create_task_group() as tasks:
        for n in range(10):
            tasks.start_soon(world.resolve, world.attempt(f"k{n}"))
    gaps = [b - a for a, b in zip(world.adapter.looks, world.adapter.looks[1:], strict=False)]
    assert len(gaps) > 20
    assert min(gaps) >= 250


async def test_the_caller_has_a_say_before_every_look():
    """It renews its lease there; what it raises ends the search before the venue is asked again."""
    world = World()
    calls = []

    async def before_look() -> None:
        calls.append(len(world.adapter.looks))
        if len(calls) == 3:
            raise RuntimeError("lease lost")

    with pytest.raises(RuntimeError, match="lease lost"):
        await world.resolve(world.attempt(), before_look=before_look)
    assert calls == [0, 1, 2]
    assert len(world.adapter.looks) == 2


async def test_a_cancelled_search_ends_at_once_and_leaves_nothing_behind():
    world = World()
    world.adapter.reads.append("hangs")
    with anyio.move_on_after(0.5) as scope:
        await world.resolve(world.attempt())
    assert scope.cancelled_caught
    assert world.elapsed_ms() == 500
    assert (await world.resolve(world.attempt(dead_in_ms=0))).verdict is Verdict.ABSENT


@pytest.mark.parametrize(
    "values",
    [
        {"interval_s": 0},
        {"interval_s": -1},
        {"interval_s": float("nan")},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"spacing_s": -0.1},
        {"spacing_s": float("nan")},
        {"interval_s": float("inf")},
    ],
)
def test_a_policy_that_would_hammer_the_venue_or_never_end_is_refused(values):
    with pytest.raises(InvalidInput):
        LookPolicy(**values)
