"""OrderGateway: each intent happens at most once, and what became of it is said truthfully.

All in virtual time, on both event loops, against a scripted venue whose ledger is the truth.
"""

from __future__ import annotations

from decimal import Decimal

import anyio
import attrs
import pytest

from execsafe.core.exposure import worst_case
from execsafe.errors import (
    AlreadyInFlight,
    IntentConflict,
    InvalidInput,
    InvalidOrder,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
    TradingDenied,
)
from execsafe.gateway import Accepted, GatewayPolicy, NeverPlaced, OrderGateway, Rejected, Unknown
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry, lease_name
from execsafe.locks import DedupLock
from execsafe.model.event import EventType
from execsafe.model.intent import Amendment, AttemptState, Intent, IntentState
from execsafe.model.order import OrderReport, OrderStatus
from execsafe.model.venue import Dedup, Expiry
from execsafe.ports import LeaseRequest
from execsafe.stores.memory import MemoryStore
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import virtual_backends
from fakes import (
    BLACK_HOLE,
    DROPPED,
    HANGS,
    LOST,
    OK,
    PROFILE,
    REJECTED,
    Duplicate,
    FakeAdapter,
    FakeVenue,
    Fate,
    NotFound,
    Refused,
    ScriptedStore,
    late,
)

pytestmark = pytest.mark.anyio
TIMEOUT_S = 1.0
POLICY = GatewayPolicy(request_timeout_s=TIMEOUT_S)
LOOKS = LookPolicy(interval_s=1.0, spacing_s=0.0, timeout_s=1.0)
RELATIVE = attrs.evolve(PROFILE, expiry=Expiry.RELATIVE)
UNBOUNDED = attrs.evolve(PROFILE, expiry=Expiry.NONE)
MARGIN_MS = 2_500  # skew and lag
WINDOW_MS = 5_000


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class World:
    """One venue, one store, any number of processes; the venue does its worst within its profile."""

    def __init__(self, profile=PROFILE, *, policy: GatewayPolicy = POLICY) -> None:
        self.clock = VirtualClock()
        self.profile = profile
        self.policy = policy
        self.venue = FakeVenue(self.clock, profile, worst=True)
        self.store = ScriptedStore()
        self.store._is_open = True
        self.events = []
        self.adapter, self.registry, self.gateway = self.process("p1")

    def process(self, holder: str, **more):
        adapter = FakeAdapter(self.venue)
        registry = IntentRegistry(self.store, clock=self.clock, listeners=[self.events.append])
        gateway = OrderGateway(
            adapter, registry, policy=self.policy, looks=LOOKS, holder=holder, clock=self.clock, **more
        )
        return adapter, registry, gateway

    @property
    def orders(self):
        self.venue.settle()
        return self.venue.orders

    def kinds(self) -> list[EventType]:
        return [event.type for event in self.events]

    async def record(self, key: str = "k"):
        return await self.registry.find(key)

    async def check(self, key: str = "k", quantity: object = 1) -> None:
        """G1 by the ledger and by the books, and the books not below the ledger."""
        record = await self.record(key)
        assert self.venue.may_own <= Decimal(str(quantity))
        assert worst_case(record) <= record.quantity
        assert worst_case(record) >= self.venue.may_own


@pytest.fixture
async def world():
    return World()


PERPETUAL = "BTC/USDT:USDT"


def intent(key: str = "k", **changes) -> Intent:
    return Intent(**{"key": key, "symbol": "BTC/USDT", "side": "buy", "quantity": 1, "limit_price": 100, **changes})


# --- The plain ways -----------------------------------------------------------------------------------------


async def test_an_accepted_order_rests_with_what_was_asked_on_the_grid(world):
    outcome = await world.gateway.submit(intent(quantity="1.019", limit_price="100.07"))
    assert isinstance(outcome, Accepted)
    assert outcome.report.venue_order_id == "1"
    assert outcome.record.state is IntentState.LIVE
    [sent] = world.adapter.sent
    assert (sent.quantity, sent.limit_price) == (Decimal("1.01"), Decimal("100.0"))
    assert sent.deadline_ms == world.adapter.sent_at_ms[0] + WINDOW_MS


@pytest.mark.guarantee(2)
@pytest.mark.row("S2-31", "S3-06")
async def test_g2_nothing_is_sent_before_the_attempt_is_durable(world):
    """At the moment of sending the journal holds the client order id, the quantity and the deadline."""
    journalled = []
    send = world.adapter.create_order

    async def spy(request):
        journalled.append((request, (await world.record()).last))
        return await send(request)

    world.adapter.create_order = spy
    world.adapter.creates.append(DROPPED)
    await world.gateway.submit(intent())
    assert len(journalled) == 2
    for request, attempt in journalled:
        assert attempt.state is AttemptState.SENDING
        assert (attempt.client_order_id, attempt.quantity, attempt.deadline_ms) == (
            request.client_order_id,
            request.quantity,
            request.deadline_ms,
        )


@pytest.mark.guarantee(5)
async def test_g5_a_repeat_returns_the_recorded_result_and_sends_nothing(world):
    first = await world.gateway.submit(intent())
    again = await world.gateway.submit(intent())
    assert again.record == first.record
    assert len(world.adapter.sent) == 1
    assert EventType.CALL_DEDUPLICATED in world.kinds()


@pytest.mark.guarantee(5)
async def test_g5_a_definite_reject_is_final_for_its_key(world):
    """The recorded reject is returned, nothing is sent; a new try is a new key."""
    world.adapter.creates.append(REJECTED)
    first = await world.gateway.submit(intent())
    again = await world.gateway.submit(intent())
    assert isinstance(first, Rejected)
    assert isinstance(first.cause, Refused)
    assert isinstance(again, Rejected)
    assert again.error == first.error
    assert again.cause is None
    assert len(world.adapter.sent) == 1
    assert isinstance(await world.gateway.submit(intent("k2")), Accepted)


@pytest.mark.guarantee(5)
@pytest.mark.parametrize("state", ["live", "rejected", "in flight"])
async def test_g5_the_same_key_with_another_payload_is_a_conflict_and_sends_nothing(state, world):
    if state == "in flight":
        world.adapter.creates.append(Fate(reply_s=0.5))
    elif state == "rejected":
        world.adapter.creates.append(REJECTED)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.gateway.submit, intent())
        await anyio.sleep(0.2)
        if state == "in flight":
            with pytest.raises(AlreadyInFlight):
                await world.gateway.submit(intent(quantity=2))
        else:
            with pytest.raises(IntentConflict):
                await world.gateway.submit(intent(quantity=2))
        other = world.process("p2")[2]
        with pytest.raises(IntentConflict):
            await other.submit(intent(quantity=2))
    assert len(world.adapter.sent) == 1


async def test_a_recorded_outcome_does_not_depend_on_todays_limits(world):
    """The minimum was raised since: the order that rests is still ours, and no error tells otherwise."""
    first = await world.gateway.submit(intent(quantity="0.05"))
    world.adapter.instrument = attrs.evolve(world.adapter.instrument, min_quantity="0.1")
    assert (await world.gateway.submit(intent(quantity="0.05"))).record == first.record
    with pytest.raises(InvalidOrder):
        await world.gateway.submit(intent("k2", quantity="0.05"))
    assert await world.record("k2") is None


# --- Doubt --------------------------------------------------------------------------------------------------


@pytest.mark.guarantee(1, 3)
@pytest.mark.parametrize("fate", [LOST, HANGS, Fate(arrive_s=0.9, reply_s=None)], ids=["reply lost", "hangs", "slow"])
@pytest.mark.parametrize("profile", [PROFILE, RELATIVE, UNBOUNDED], ids=lambda p: p.expiry.value)
async def test_g3_an_order_whose_reply_was_lost_is_adopted(fate, profile):
    """FI-01, FI-02, FI-12, FI-19: one order at the venue, one in the books, nothing sent twice."""
    world = World(profile)
    world.adapter.creates.append(fate)
    outcome = await world.gateway.submit(intent())
    assert isinstance(outcome, Accepted)
    assert outcome.record.state is IntentState.LIVE
    assert len(world.orders) == len(world.adapter.sent) == 1
    assert EventType.ORDER_ADOPTED in world.kinds()
    await world.check()


@pytest.mark.guarantee(1)
async def test_g1_an_order_that_filled_before_anybody_looked_is_adopted_as_filled(world):
    """FI-09: gone from the open orders, and exactly then a resend with the same id would be accepted."""
    world.adapter.creates.append(Fate(filled=Decimal(1), error=TimeoutError()))
    outcome = await world.gateway.submit(intent())
    assert isinstance(outcome, Accepted)
    assert (outcome.record.state, outcome.record.filled_quantity) == (IntentState.FILLED, 1)
    assert len(world.orders) == len(world.adapter.sent) == 1


@pytest.mark.guarantee(1, 3)
@pytest.mark.parametrize("fate", [DROPPED, BLACK_HOLE], ids=["fails at once", "never answers"])
@pytest.mark.parametrize("profile", [PROFILE, RELATIVE], ids=lambda p: p.expiry.value)
async def test_g3_a_request_that_was_lost_is_sent_again_at_the_first_safe_millisecond(fate, profile):
    """Exactly one order after proof; the resend comes at deadline + skew + lag, neither earlier nor later."""
    world = World(profile)
    world.adapter.creates.append(fate)
    start_ms = world.clock.now_ms()
    outcome = await world.gateway.submit(intent())
    assert isinstance(outcome, Accepted)
    assert len(world.orders) == 1
    first, second = world.adapter.sent
    assert second.client_order_id == first.client_order_id  # should the proof be wrong, the venue may still stop it
    given_up_ms = 1_000 if fate is BLACK_HOLE and profile is RELATIVE else 0  # it may have been signed until then
    assert world.adapter.sent_at_ms[1] - start_ms == given_up_ms + WINDOW_MS + MARGIN_MS
    assert [a.state for a in outcome.record.attempts] == [AttemptState.ABSENT, AttemptState.LIVE]
    await world.check()


@pytest.mark.guarantee(1, 3)
@pytest.mark.parametrize("dedup", list(Dedup))
@pytest.mark.parametrize("profile", [PROFILE, RELATIVE], ids=lambda p: p.expiry.value)
@pytest.mark.parametrize("arrive_ms", [1, 2_000, 4_999, 5_000, 5_499, 5_500, 5_501, 9_000])
async def test_g3_a_request_that_arrives_late_never_becomes_a_second_order(profile, dedup, arrive_ms):
    """FI-10, FI-14: whenever it lands, on a venue whose clock is slow and whose views lag as far as they may."""
    world = World(attrs.evolve(profile, dedup=dedup))
    world.adapter.creates.append(late(arrive_ms / 1000))
    outcome = await world.gateway.submit(intent())
    assert isinstance(outcome, Accepted)
    await anyio.sleep(60)
    assert len(world.orders) == 1
    assert len(world.adapter.sent) == (1 if arrive_ms <= 5_500 else 2)
    await world.check()


@pytest.mark.guarantee(3, 4)
@pytest.mark.parametrize(("down_s", "state"), [(3_600, IntentState.LIVE), (7_200, IntentState.UNRESOLVED)])
async def test_g3_after_a_downtime_longer_than_the_venues_memory_absence_is_no_proof(down_s, state):
    """An order that was taken, and ended meanwhile, may be forgotten: nothing is sent again for not being found."""
    world = World(attrs.evolve(PROFILE, history_s=7_200))
    world.adapter.creates.append(DROPPED)
    with anyio.move_on_after(0.5):  # the process dies while it waits
        await world.gateway.submit(intent())
    await anyio.sleep(down_s)
    adapter, _, gateway = world.process("p2")
    await gateway.recover()
    assert (await world.record()).state is state
    assert len(adapter.sent) == (1 if state is IntentState.LIVE else 0)
    await world.check()


@pytest.mark.guarantee(3, 4)
@pytest.mark.parametrize("arrive_s", [None, 30.0, 3_600.0])
async def test_g3_without_request_expiry_nothing_is_ever_sent_twice(arrive_s):
    """Absence cannot be proven there: it is escalated, counted, and adopted when it turns up after all."""
    world = World(UNBOUNDED)
    world.adapter.creates.append(Fate(arrive_s=arrive_s, error=TimeoutError()))
    outcome = await world.gateway.submit(intent())
    assert isinstance(outcome, Unknown)
    assert outcome.record.state is IntentState.UNRESOLVED
    assert worst_case(outcome.record) == 1
    assert EventType.INTENT_UNRESOLVED in world.kinds()
    await anyio.sleep(4_000)
    recovery = await world.gateway.recover()
    assert len(world.adapter.sent) == 1
    if arrive_s is None:
        assert len(recovery.unresolved) == 1
    else:
        assert [r.state for r in recovery.settled] == [IntentState.LIVE]
        assert len(world.orders) == 1
    await world.check()


@pytest.mark.guarantee(4, 11, 18)
async def test_g4_an_order_that_cannot_be_looked_for_stays_unknown_until_it_can():
    """FI-02, FI-40: look-ups fail for as long as patience lasts; then recover() adopts, and it was never "failed"."""
    world = World()
    world.adapter.creates.append(Fate(filled=Decimal("0.4"), error=TimeoutError()))
    world.adapter.reads_fail = True
    outcome = await world.gateway.submit(intent())
    assert isinstance(outcome, Unknown)
    assert outcome.record.state is IntentState.UNRESOLVED
    assert worst_case(outcome.record) == 1
    again = await world.gateway.submit(intent())
    assert isinstance(again, Unknown)
    world.adapter.reads_fail = False
    recovery = await world.gateway.recover()
    [record] = recovery.settled
    assert (record.state, record.filled_quantity) == (IntentState.LIVE, Decimal("0.4"))
    assert len(world.orders) == len(world.adapter.sent) == 1


@pytest.mark.guarantee(11)
@pytest.mark.parametrize("state", [IntentState.UNRESOLVED, IntentState.IN_DOUBT])
async def test_g11_evidence_from_elsewhere_ends_a_doubt(state, world):
    """FI-01: the stream shows the order while the look-ups fail; nothing is resent, the caller is told the truth."""
    world.adapter.creates.append(LOST)
    world.adapter.reads_fail = True
    outcomes = []

    async def submit() -> None:
        outcomes.append(await world.gateway.submit(intent()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submit)
        await anyio.sleep(3 if state is IntentState.IN_DOUBT else 100)
        assert (await world.record()).state is state
        await world.registry.observe(world.orders[0].report())
    if state is IntentState.IN_DOUBT:
        assert isinstance(outcomes[0], Accepted)
    assert isinstance(await world.gateway.submit(intent()), Accepted)
    assert len(world.adapter.sent) == 1


@pytest.mark.guarantee(11)
async def test_g11_evidence_cancels_a_resend_that_was_due(world):
    """Seen a moment before the proof instant, by another way than the look-ups."""
    world.adapter.creates.append(late(5.5))
    world.venue.lag_ms = 10**9  # the views never show it
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.gateway.submit, intent())
        await anyio.sleep(7.4)
        await world.registry.observe(world.orders[0].report())
    assert len(world.adapter.sent) == len(world.orders) == 1


@pytest.mark.guarantee(3, 4)
async def test_g3_a_duplicate_id_reject_means_look_and_never_rejected(world):
    """FI-01: the id is taken, so there is an order; it is found."""
    await world.gateway.submit(intent())
    fresh = World()
    fresh.venue.orders.append(world.orders[0])  # an order of an earlier life whose journal was lost
    outcome = await fresh.gateway.submit(intent())
    assert isinstance(outcome, Accepted)
    assert len(fresh.orders) == 1


@pytest.mark.guarantee(3, 4)
async def test_g3_an_order_that_exists_but_is_never_seen_is_never_sent_again(world):
    """The venue says "duplicate" and shows nothing: absent in all views, and still not absent."""
    world.adapter.creates.append(Fate(arrive_s=None, error=Duplicate()))
    outcome = await world.gateway.submit(intent())
    assert isinstance(outcome, Unknown)
    assert outcome.record.last.exists
    await world.gateway.recover()
    assert len(world.adapter.sent) == 1


@pytest.mark.guarantee(4)
async def test_g4_attempts_that_are_all_proven_absent_end_never_placed(world):
    """FI-03: bounded in attempts and in reads; a new key is safe, and the ledger agrees."""
    world.adapter.creates.extend([DROPPED] * 9)
    outcome = await world.gateway.submit(intent())
    assert isinstance(outcome, NeverPlaced)
    assert outcome.record.state is IntentState.FAILED_FINAL
    assert len(world.adapter.sent) == POLICY.attempts_max
    assert len(world.adapter.looks) < POLICY.attempts_max * 10
    await anyio.sleep(600)
    assert world.orders == []
    assert isinstance(await world.gateway.submit(intent()), NeverPlaced)


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("bug"), ValueError("not JSON"), OSError("reset")])
async def test_an_error_that_nobody_knows_means_unknown(error, world):
    """FI-06: an unlisted error is no answer; the order was there."""
    world.adapter.creates.append(Fate(error=error))
    assert isinstance(await world.gateway.submit(intent()), Accepted)
    assert len(world.adapter.sent) == 1


@pytest.mark.parametrize("exists", [True, False])
async def test_an_answer_that_names_no_order_proves_nothing(exists, world):
    """An empty success: looked for, and found or proven absent."""
    send = world.adapter.create_order

    async def nameless(request):
        if exists:
            await send(request)
        world.adapter.create_order = send
        return OrderReport(symbol=request.symbol)

    world.adapter.create_order = nameless
    assert isinstance(await world.gateway.submit(intent()), Accepted)
    assert len(world.orders) == len(world.adapter.sent) == 1


@pytest.mark.guarantee(1, 3)
async def test_g3_a_proof_of_an_earlier_attempt_does_not_shorten_the_wait_for_a_later_one():
    """Two processes take turns, and the later attempt reuses the client order id.

    The first one leaves its attempt unresolved. The second proves it absent, sends again and is killed. When the
    first one looks again, the new request may still land, whatever it remembers of the old one.
    """
    world = World(attrs.evolve(PROFILE, read_lag_s=10))
    world.adapter.creates.append(DROPPED)
    world.adapter.reads_fail = True
    assert isinstance(await world.gateway.submit(intent()), Unknown)
    world.adapter.reads_fail = False
    other, _, gateway = world.process("p2")
    other.creates.append(Fate(arrive_s=5.4, reply_s=None))

    with anyio.CancelScope() as life:

        async def killed_when_sent() -> None:
            await gateway.recover()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(killed_when_sent)
            while not other.sent:
                await anyio.sleep(0.1)
            world.store.is_down = True  # it dies: nothing more is written, the lease stays
            life.cancel()
    world.store.is_down = False
    assert (await world.record()).last.state is AttemptState.SENDING
    await world.gateway.recover()
    assert len(world.orders) == 1
    assert len(world.adapter.sent) == len(other.sent) == 1
    await world.check()


# --- Freshness ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee(17)
async def test_g17_a_stale_entry_is_refused_on_receipt_and_leaves_no_trace(world):
    with pytest.raises(TradingDenied) as caught:
        await world.gateway.submit(intent(fresh_until_ms=world.clock.now_ms() - 1))
    assert caught.value.context["reason"] == "stale"
    assert world.adapter.sent == []
    assert await world.record() is None
    exits = intent("exit", fresh_until_ms=0, side="sell", reduce_only=True)
    assert isinstance(await world.gateway.submit(exits), Accepted)


@pytest.mark.guarantee(17)
async def test_g17_an_entry_that_went_stale_is_not_sent_again(world):
    """Checked at the moment of sending, also of a resend: proven absent, and then too late."""
    world.adapter.creates.append(DROPPED)
    outcome = await world.gateway.submit(intent(fresh_until_ms=world.clock.now_ms() + 7_000))
    assert isinstance(outcome, NeverPlaced)
    assert len(outcome.record.attempts) == len(world.adapter.sent) == 1


@pytest.mark.guarantee(17)
async def test_g17_an_entry_that_went_stale_while_it_was_journalled_is_not_sent(world):
    """A slow disk is no reason to trade on an old signal."""
    world.store.hook = lambda _batch: anyio.sleep(0.5)
    outcome = await world.gateway.submit(intent(fresh_until_ms=world.clock.now_ms() + 100))
    assert isinstance(outcome, NeverPlaced)
    assert world.adapter.sent == []


class Guard:
    """A pre-trade check that does as it is told."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def check(self, asked, instrument):
        self.asked.append((asked.key, instrument.symbol))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        if answer == "hangs":
            await anyio.sleep_forever()


@pytest.mark.guarantee(12)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (TradingDenied("halted", reason="halted"), "halted"),
        (KeyError("bug"), "check_failed"),
        ("hangs", "check_failed"),
    ],
)
@pytest.mark.row("X-05")
async def test_g12_an_entry_that_a_check_refuses_cannot_answer_or_leaves_open_is_not_sent(answer, reason, world):
    guard = Guard(answer)
    adapter, registry, gateway = world.process("p2", checks=[guard])
    with pytest.raises(TradingDenied) as caught:
        await gateway.submit(intent())
    assert caught.value.context["reason"] == reason
    assert (adapter.sent, await registry.find("k")) == ([], None)
    assert isinstance(await gateway.submit(intent("exit", side="sell", reduce_only=True)), Accepted)
    assert isinstance(await gateway.submit(intent()), Accepted)
    assert guard.asked == [("k", "BTC/USDT")] * 2, "exits are never asked about"


@pytest.mark.guarantee(12)
async def test_g12_a_check_is_asked_again_before_a_resend(world):
    guard = Guard(None, TradingDenied("halted meanwhile"))
    adapter, _, gateway = world.process("p2", checks=[guard])
    adapter.creates.append(DROPPED)
    outcome = await gateway.submit(intent())
    assert isinstance(outcome, NeverPlaced)
    assert len(outcome.record.attempts) == len(adapter.sent) == 1


@pytest.mark.guarantee(5, 17)
@pytest.mark.parametrize("ticks", range(8))
async def test_g17_an_entry_that_goes_stale_between_two_readings_of_the_clock_changes_no_other_record(ticks, world):
    """Whenever within the call its time is over, it is refused or given up, and touches nothing but itself."""
    await world.gateway.submit(intent())
    before = await world.record()

    class Ticking:
        now = world.clock.now_ms()

        def now_ms(self) -> int:
            self.now += 1
            return self.now

    clock = Ticking()
    registry = IntentRegistry(world.store, clock=clock)
    gateway = OrderGateway(world.adapter, registry, policy=POLICY, looks=LOOKS, clock=clock)
    with pytest.raises((IntentConflict, TradingDenied)):
        await gateway.submit(intent(quantity=3, fresh_until_ms=clock.now + ticks))
    assert await world.record() == before
    assert len(world.adapter.sent) == 1
    try:
        outcome = await gateway.submit(intent("k2", fresh_until_ms=clock.now + ticks))
    except TradingDenied:
        outcome = None
    assert len(world.adapter.sent) == (2 if isinstance(outcome, Accepted) else 1)
    assert outcome is None or isinstance(outcome, Accepted | NeverPlaced)


@pytest.mark.guarantee(17)
async def test_g17_a_stale_repeat_still_returns_the_recorded_outcome(world):
    one = intent(fresh_until_ms=world.clock.now_ms() + 1_000)
    first = await world.gateway.submit(one)
    await anyio.sleep(10)
    assert (await world.gateway.submit(one)).record == first.record


# --- In flight ----------------------------------------------------------------------------------------------


@pytest.mark.guarantee(6)
async def test_g6_of_fifty_concurrent_calls_one_runs_and_the_others_are_told_at_once(world):
    world.adapter.creates.append(Fate(reply_s=0.5))
    accepted, told_at = [], []

    async def submit() -> None:
        try:
            accepted.append(await world.gateway.submit(intent()))
        except AlreadyInFlight:
            told_at.append(anyio.current_time())

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(submit)
    assert (len(accepted), len(told_at)) == (1, 49)
    assert max(told_at) < 0.5 + min(told_at)
    assert len(world.adapter.sent) == len(world.orders) == 1
    assert world.kinds().count(EventType.CALL_DEDUPLICATED) == 49


@pytest.mark.guarantee(6)
async def test_g6_those_who_join_share_the_result(world):
    world.adapter.creates.append(Fate(reply_s=0.5))
    outcomes = []

    async def submit() -> None:
        outcomes.append(await world.gateway.submit(intent(), join=True))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(submit)
    assert len({o.record for o in outcomes}) == 1
    assert len(outcomes) == 20
    assert len(world.adapter.sent) == 1


@pytest.mark.guarantee(6)
async def test_g6_those_who_join_a_doubt_do_not_look_all_over_again():
    """Twenty callers of one order that stays unknown: told together, not one patience after the other."""
    world = World(UNBOUNDED)
    world.adapter.creates.append(BLACK_HOLE)
    outcomes = []

    async def submit() -> None:
        outcomes.append(await world.gateway.submit(intent(), join=True))

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(submit)
    assert all(isinstance(o, Unknown) for o in outcomes)
    assert anyio.current_time() - began < 2 * POLICY.patience_for(UNBOUNDED)
    assert len(world.adapter.sent) == 1


@pytest.mark.guarantee(6)
async def test_g6_unrelated_keys_do_not_wait_for_each_other(world):
    """FI-04, FI-05: one call hangs, another is in doubt; a third goes through at once."""
    world.adapter.creates.extend([HANGS, DROPPED])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.gateway.submit, intent("a"))
        await anyio.sleep(0.01)
        tasks.start_soon(world.gateway.submit, intent("b"))
        await anyio.sleep(0.01)
        began = anyio.current_time()
        assert isinstance(await world.gateway.submit(intent("c")), Accepted)
        assert anyio.current_time() - began < 0.01
    assert len(world.orders) == 3


@pytest.mark.guarantee(6)
async def test_g6_sequential_calls_all_run(world):
    for n in range(5):
        assert isinstance(await world.gateway.submit(intent(f"k{n}")), Accepted)
    assert len(world.orders) == 5


@pytest.mark.guarantee(6, 7)
async def test_g6_another_process_is_told_as_well(world):
    world.adapter.creates.append(Fate(reply_s=0.5))
    other = world.process("p2")[2]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.gateway.submit, intent())
        await anyio.sleep(0.1)
        with pytest.raises(AlreadyInFlight):
            await other.submit(intent())
        joined = await other.submit(intent(), join=True)
    assert isinstance(joined, Accepted)
    assert len(world.orders) == 1


# --- Without the lock, and without the lease ----------------------------------------------------------------


class AlwaysGrants(DedupLock):
    """The in-process lock, removed."""

    def try_claim(self, key):
        return DedupLock().try_claim(key)


FATES = {
    "works": [OK],
    "slow": [Fate(reply_s=0.5)],
    "reply lost": [LOST],
    "hangs": [HANGS],
    "request lost": [DROPPED],
    "request lost twice": [DROPPED, DROPPED],
    "queued in the client": [Fate(sign_s=0.9, arrive_s=5.4, reply_s=None)],
    "late": [late(5.4)],
    "rejected": [Fate(reply_s=0.1, rejected=True)] * 99,
}


@pytest.mark.guarantee(1, 8)
@pytest.mark.parametrize("name", FATES)
@pytest.mark.parametrize("profile", [PROFILE, RELATIVE], ids=lambda p: p.expiry.value)
@pytest.mark.parametrize("processes", [1, 4])
async def test_g8_the_lock_is_only_for_efficiency(name, profile, processes):
    """Twenty concurrent identical calls that nothing holds back, in one process or four: still one order."""
    world = World(attrs.evolve(profile, dedup=Dedup.NONE))
    world.store.hook = lambda _batch: anyio.sleep(0.001)  # everybody decides before anybody has written
    gateways = []
    for n in range(processes):
        adapter, _, gateway = world.process(f"p{n}", locks=AlwaysGrants(clock=world.clock))
        adapter.creates.extend(FATES[name])
        gateways.append(gateway)
    outcomes = []

    async def submit(gateway: OrderGateway) -> None:
        try:
            outcomes.append(await gateway.submit(intent()))
        except (AlreadyInFlight, OutcomeUnknown) as error:
            outcomes.append(error)

    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(submit, gateways[n % processes])
    await anyio.sleep(100)
    for gateway in gateways:
        await gateway.recover()
    assert len(outcomes) == 20
    assert len(world.orders) == (0 if name == "rejected" else 1)
    await world.check()


@pytest.mark.guarantee(7)
async def test_g7_a_holder_that_lost_its_lease_writes_nothing_and_says_unknown(world):
    """Paused longer than its lease lasts, in the middle of a request: the new holder settles it."""
    world.adapter.creates.append(Fate(reply_s=0.5))
    usurper = LeaseRequest(name=lease_name(intent()), holder="p2", ttl_ms=60_000)

    async def take_over() -> None:
        await anyio.sleep(0.2)
        world.clock.skip(20_000)  # the first process sleeps; its lease runs out
        await world.registry.take_lease(intent(), usurper)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_over)
        with pytest.raises(OutcomeUnknown) as caught:
            await world.gateway.submit(intent())
    assert caught.value.intent_key == "k"
    assert caught.value.client_order_id == world.adapter.sent[0].client_order_id
    assert (await world.record()).state is IntentState.SENDING
    assert len(world.adapter.sent) == 1


@pytest.mark.guarantee(7)
@pytest.mark.parametrize("profile", [PROFILE, RELATIVE, UNBOUNDED], ids=lambda p: p.expiry.value)
async def test_g7_a_request_cannot_outlive_its_lease(profile):
    """Its deadline, clock skew included, is inside the lease under which it was sent."""
    world = World(profile)
    world.adapter.creates.append(Fate(reply_s=0.5))
    leases = []
    world.adapter.on_look = lambda: None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.gateway.submit, intent())
        await anyio.sleep(0.2)
        leases.append(world.store._leases[lease_name(intent())])
    [sent] = world.adapter.sent
    ends_ms = world.adapter.sent_at_ms[0] + round(TIMEOUT_S * 1000) + 500
    assert leases[0].expires_at_ms > ends_ms
    if sent.deadline_ms is not None:
        assert leases[0].expires_at_ms > sent.deadline_ms + 500


@pytest.mark.guarantee(7, 12)
@pytest.mark.parametrize("pause_ms", [WINDOW_MS, 60_000])
async def test_g7_what_took_too_long_to_journal_is_not_sent_under_a_dead_deadline_or_lease(pause_ms, world):
    """The process was paused inside the commit: this attempt is withheld and another one made."""
    paused = []

    def hook(batch):
        if not paused and batch.puts:
            paused.append(True)
            world.clock.skip(pause_ms)

    world.store.hook = hook
    outcome = await world.gateway.submit(intent())
    assert isinstance(outcome, Accepted)
    assert [a.state for a in outcome.record.attempts] == [AttemptState.NOT_SENT, AttemptState.LIVE]
    assert len(world.adapter.sent) == len(world.orders) == 1
    assert world.adapter.sent[0].deadline_ms == world.adapter.sent_at_ms[0] + WINDOW_MS


# --- Cancel and replace -------------------------------------------------------------------------------------


async def rests(world: World) -> None:
    """An order that has been in the market long enough to be seen."""
    await world.gateway.submit(intent())
    await anyio.sleep(10)


async def test_a_live_order_is_canceled_and_the_end_read_back(world):
    await rests(world)
    outcome = await world.gateway.cancel("k")
    assert isinstance(outcome, Accepted)
    assert outcome.record.state is IntentState.CANCELED
    assert world.orders[0].status is OrderStatus.CANCELED
    assert len(world.adapter.canceled) == 1


@pytest.mark.parametrize("answer", [TimeoutError("lost"), ConnectionError(), RuntimeError("anything")])
async def test_a_cancel_whose_reply_was_lost_is_read_back(answer, world):
    """FI-44, FI-45, FI-49: whatever the cancel says, a read says what became of the order."""
    await rests(world)

    def effective(order) -> None:
        order.end()
        raise answer

    world.adapter.cancels.append(effective)
    outcome = await world.gateway.cancel("k")
    assert outcome.record.state is IntentState.CANCELED
    assert len(world.adapter.canceled) == 1


@pytest.mark.guarantee(11)
@pytest.mark.parametrize(("filled", "state"), [("1", IntentState.FILLED), ("0.4", IntentState.CANCELED)])
async def test_g11_a_fill_during_the_cancel_is_credited(filled, state, world):
    """FI-43: the cancel was too late for some of it, or for all of it."""
    await rests(world)

    def too_late(order) -> None:
        order.fill(filled)
        order.end()
        raise NotFound("unknown order")

    world.adapter.cancels.append(too_late)
    outcome = await world.gateway.cancel("k")
    assert isinstance(outcome, Accepted)
    assert (outcome.record.state, outcome.record.filled_quantity) == (state, Decimal(filled))


@pytest.mark.guarantee(1, 4)
async def test_g4_a_cancel_that_has_no_effect_leaves_the_order_counted(world):
    """FI-46, FI-50: the envelope says ok and the order rests: Unknown, still exposure, and recover() goes on."""
    await rests(world)
    world.adapter.cancels.extend([lambda order: None] * 99)
    outcome = await world.gateway.cancel("k")
    assert isinstance(outcome, Unknown)
    assert outcome.record.state is IntentState.LIVE
    assert worst_case(outcome.record) == 1
    assert len(world.adapter.canceled) < 20
    world.adapter.cancels.clear()
    recovery = await world.process("p2")[2].recover()
    assert [r.state for r in recovery.settled] == [IntentState.CANCELED]
    assert world.venue.may_own == 0


async def test_a_cancel_while_in_doubt_resolves_first(world):
    """What was never placed need not be canceled; what was placed is."""
    for fate, state in ((late(3), IntentState.CANCELED), (DROPPED, IntentState.CANCELED)):
        key = f"k{fate.arrive_s}"
        world.adapter.creates.append(fate)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.gateway.submit, intent(key))
            await anyio.sleep(1)
            outcome = await world.gateway.cancel(key)
        assert outcome.record.state is state
    await anyio.sleep(60)
    assert world.venue.may_own == 0
    assert len(world.adapter.sent) == 2


@pytest.mark.guarantee(12)
async def test_g12_a_cancel_reaches_the_venue_while_no_look_can_be_read(world):
    """The order is there, nobody can see it, and the venue takes a cancel by our own id: it ends at once."""
    world.adapter.creates.append(LOST)
    world.adapter.reads_fail = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.gateway.submit, intent())
        await anyio.sleep(5)
        assert world.orders[0].status is OrderStatus.OPEN
        tasks.start_soon(world.gateway.cancel, "k")
        await anyio.sleep(3)
        assert world.orders[0].status is OrderStatus.CANCELED
        assert len(world.adapter.canceled) == 1, "once it was taken it is not asked for again"
        world.adapter.reads_fail = False
    assert (await world.record()).state is IntentState.CANCELED


@pytest.mark.guarantee(4)
async def test_g4_a_cancel_that_finds_nothing_is_no_proof_that_there_is_nothing(world):
    """The request arrives after the cancel: it is asked for again before every look, and ends the late order."""
    world.adapter.creates.append(late(2.5))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.gateway.submit, intent())
        await anyio.sleep(0.5)
        tasks.start_soon(world.gateway.cancel, "k")
    assert len(world.adapter.canceled) > 1
    assert [order.status for order in world.orders] == [OrderStatus.CANCELED]
    assert (await world.record()).state is IntentState.CANCELED


async def test_canceling_what_has_ended_changes_and_sends_nothing(world):
    world.adapter.creates.append(Fate(filled=Decimal(1)))
    first = await world.gateway.submit(intent())
    assert (await world.gateway.cancel("k")).record == first.record
    assert world.adapter.canceled == []


async def test_an_intent_that_is_not_recorded_cannot_be_changed(world):
    with pytest.raises(InvalidInput):
        await world.gateway.cancel("nothing")
    with pytest.raises(InvalidInput):
        await world.gateway.replace("nothing", quantity=1)


@pytest.mark.guarantee(1)
@pytest.mark.parametrize("filled", ["0", "0.4"])
async def test_g1_a_replacement_never_adds_to_the_order_that_it_replaces(filled, world):
    """The new total, fills included, is sent only once the old order is seen to have ended."""
    await rests(world)
    world.orders[0].fill(filled)
    peak = []

    def watch() -> None:
        peak.append(world.venue.may_own)

    world.adapter.on_look = watch
    outcome = await world.gateway.replace("k", quantity="1.5", limit_price=101)
    assert isinstance(outcome, Accepted)
    assert outcome.record.state is IntentState.LIVE
    old, new = world.orders
    assert old.status is OrderStatus.CANCELED
    assert new.request.quantity == Decimal("1.5") - Decimal(filled)
    assert new.request.limit_price == 101
    assert new.request.client_order_id != old.request.client_order_id
    assert max(peak) <= Decimal("1.5")
    assert outcome.record.quantity == Decimal("1.5")


@pytest.mark.guarantee(1)
async def test_g1_a_fill_during_the_replacement_reduces_what_is_sent(world):
    """FI-43: the old order fills in part while it is being canceled."""
    await rests(world)

    def too_late(order) -> None:
        order.fill("0.7")
        order.end()

    world.adapter.cancels.append(too_late)
    await world.gateway.replace("k", quantity="1.5")
    assert world.orders[1].request.quantity == Decimal("0.8")
    await world.check(quantity="1.5")


@pytest.mark.guarantee(1)
async def test_g1_nothing_is_sent_while_the_old_order_may_still_fill(world):
    await rests(world)
    world.adapter.cancels.extend([TimeoutError()] * 99)
    outcome = await world.gateway.replace("k", quantity=3)
    assert isinstance(outcome, Unknown)
    assert len(world.orders) == 1
    assert outcome.record.quantity == 1
    await world.check()


async def test_a_replacement_within_the_fills_only_ends_the_order(world):
    await rests(world)
    world.orders[0].fill("0.6")
    outcome = await world.gateway.replace("k", quantity="0.5")
    assert (outcome.record.state, outcome.record.filled_quantity) == (IntentState.FILLED, Decimal("0.6"))
    assert len(world.orders) == 1


async def test_what_has_ended_cannot_be_replaced(world):
    world.adapter.creates.append(Fate(filled=Decimal(1)))
    await world.gateway.submit(intent())
    with pytest.raises(InvalidInput, match="ended"):
        await world.gateway.replace("k", quantity=2)


async def test_what_ends_while_it_is_to_be_replaced_is_said_to_have_ended(world):
    """The fill comes between the look at the record and the wish: nothing is sent beside it, and nobody is misled."""
    await rests(world)
    prepare = world.adapter.prepare

    async def meanwhile(symbol):
        world.orders[0].fill(1)
        await world.registry.observe(world.orders[0].report())
        return await prepare(symbol)

    world.adapter.prepare = meanwhile
    with pytest.raises(InvalidInput, match="ended"):
        await world.gateway.replace("k", quantity=2)
    assert len(world.orders) == 1


async def test_a_replacement_beyond_a_limit_is_refused_and_the_order_stays(world):
    await rests(world)
    with pytest.raises(InvalidOrder):
        await world.gateway.replace("k", quantity="0.001")
    assert world.orders[0].status is OrderStatus.OPEN
    assert world.adapter.canceled == []


class NoMoreThan:
    """Refuses intents of more than *most*, and remembers what it was asked."""

    def __init__(self, most) -> None:
        self.most = Decimal(most)
        self.asked = []

    async def check(self, asked, instrument) -> None:
        self.asked.append((asked.quantity, asked.limit_price))
        if asked.quantity > self.most:
            raise TradingDenied("too much", reason="too_much")


@pytest.mark.guarantee(12)
async def test_g12_a_check_judges_what_a_replacement_would_send_before_the_order_is_touched(world):
    """The rest at its new price; refused, the order rests as it was, and no wish is left behind."""
    check = NoMoreThan("1.5")
    adapter, registry, gateway = world.process("p2", checks=[check])
    await gateway.submit(intent())
    await anyio.sleep(10)
    world.orders[0].fill("0.4")
    with pytest.raises(TradingDenied):
        await gateway.replace("k", quantity=2, limit_price=99)
    assert check.asked[-1] == (Decimal("1.6"), Decimal(99))
    assert (adapter.canceled, (await registry.find("k")).change) == ([], None)
    await gateway.replace("k", quantity="1.9", limit_price=99)
    assert set(check.asked[2:]) == {(Decimal("1.5"), Decimal(99))}, "asked at the door, and again before it is sent"
    assert len(check.asked) == 4
    await world.check(quantity="1.9")


@pytest.mark.guarantee(12)
async def test_g12_a_check_that_refuses_only_when_the_old_order_has_ended_leaves_what_filled(world):
    """Halted between the wish and the new order: that one is not sent."""
    guard = Guard(None, None, TradingDenied("halted meanwhile"))
    adapter, _, gateway = world.process("p2", checks=[guard])
    await gateway.submit(intent())
    await anyio.sleep(10)
    world.orders[0].fill("0.4")
    outcome = await gateway.replace("k", quantity=2)
    assert (outcome.record.state, outcome.record.filled_quantity) == (IntentState.CANCELED, Decimal("0.4"))
    assert len(adapter.sent) == 1


async def test_a_replacement_is_held_against_the_limits_by_its_rest_and_not_by_its_total(world):
    """By the fills that a look finds, though nobody had told of them."""
    await rests(world)
    world.orders[0].fill("0.995")
    with pytest.raises(InvalidOrder, match="is below one step"):
        await world.gateway.replace("k", limit_price=99)
    assert world.orders[0].status is OrderStatus.OPEN
    assert (await world.record()).change is None


@pytest.mark.guarantee(17)
async def test_g17_a_replacement_is_as_fresh_as_its_own_decision(world):
    """The order's own time is over when it is edited; the edit's counts, also for what is sent after a proof."""
    await world.gateway.submit(intent(fresh_until_ms=world.clock.now_ms() + 10_000))
    await anyio.sleep(60)
    with pytest.raises(TradingDenied, match="stale"):
        await world.gateway.replace("k", limit_price=99)
    assert world.orders[0].status is OrderStatus.OPEN
    world.adapter.creates.append(DROPPED)
    until_ms = world.clock.now_ms() + 30_000
    outcome = await world.gateway.replace("k", limit_price=99, amendment=Amendment(fresh_until_ms=until_ms))
    assert (outcome.record.state, world.orders[1].request.limit_price) == (IntentState.LIVE, 99)
    assert outcome.record.terms.fresh_until_ms == until_ms


@pytest.mark.parametrize("named", [{"trigger_price": 90}, {"params": {"stopLossPrice": 90}}])
async def test_a_replacement_carries_its_new_terms_also_after_a_proof_and_a_later_edit(named, world):
    """Trigger, time in force and post-only, for every attempt until another edit changes them."""
    await world.gateway.submit(intent(**named))
    world.adapter.creates.append(DROPPED)
    await world.gateway.replace("k", amendment=Amendment(trigger_price="95", time_in_force="GTC", post_only=True))
    outcome = await world.gateway.replace("k", amendment=Amendment(time_in_force="GTD"))
    sent = [order.request for order in world.orders]
    stops = [r.trigger_price if "trigger_price" in named else r.params.thaw()["stopLossPrice"] for r in sent]
    assert [str(stop) for stop in stops] == ["90", "95", "95"]
    assert [(r.time_in_force, r.post_only) for r in sent] == [(None, False), ("GTC", True), ("GTD", True)]
    assert outcome.record.intent == intent(**named), "the key stands for what was first meant"
    assert isinstance(await world.gateway.submit(intent(**named)), Accepted)
    assert len(world.orders) == 3


async def test_a_plain_order_cannot_be_edited_into_a_stop(world):
    await rests(world)
    with pytest.raises(InvalidInput, match="stop order"):
        await world.gateway.replace("k", amendment=Amendment(trigger_price=90))
    assert world.adapter.canceled == []


@pytest.mark.guarantee(1)
async def test_g1_a_replacement_that_the_venue_rejects_leaves_what_filled(world):
    await rests(world)
    world.orders[0].fill("0.4")
    world.adapter.creates.append(REJECTED)
    outcome = await world.gateway.replace("k", quantity="1.5")
    assert outcome.record.filled_quantity == Decimal("0.4")
    assert outcome.record.state is IntentState.CANCELED
    assert len(world.orders) == 1


# --- A failing journal --------------------------------------------------------------------------------------


@pytest.mark.guarantee(12)
@pytest.mark.parametrize("how", ["down", "read-only"])
async def test_g12_without_a_journal_no_entry_is_sent(how, world):
    setattr(world.store, "is_down" if how == "down" else "is_read_only", True)
    with pytest.raises(StoreUnavailable):
        await world.gateway.submit(intent())
    assert world.adapter.sent == []


@pytest.mark.guarantee(12)
async def test_g12_a_commit_of_unknown_fate_is_never_followed_by_a_send(world):
    """The journal may say "sending": recover() finds nothing at the venue, proves it, and sends once."""
    world.store.fails_after = True
    with pytest.raises(StoreUnavailable):
        await world.gateway.submit(intent())
    world.store.fails_after = False
    assert world.adapter.sent == []
    assert (await world.record()).state is IntentState.SENDING
    start_ms = world.clock.now_ms()
    recovery = await world.gateway.recover()
    assert [r.state for r in recovery.settled] == [IntentState.LIVE]
    assert len(world.orders) == 1
    assert world.adapter.sent_at_ms[0] - start_ms >= WINDOW_MS + MARGIN_MS


@pytest.mark.guarantee(4, 12)
@pytest.mark.parametrize("fate", [Fate(reply_s=0.5), Fate(reply_s=0.5, error=TimeoutError()), HANGS])
async def test_g12_a_journal_that_fails_after_sending_leaves_the_outcome_unknown(fate, world):
    """Not a store error, which would say that nothing was sent; recover() settles it."""
    world.adapter.creates.append(fate)
    async with anyio.create_task_group() as tasks:

        async def fails() -> None:
            await anyio.sleep(0.2)
            world.store.is_down = True

        tasks.start_soon(fails)
        with pytest.raises(OutcomeUnknown) as caught:
            await world.gateway.submit(intent())
    assert not isinstance(caught.value, StoreError)
    assert caught.value.client_order_id == world.adapter.sent[0].client_order_id
    world.store.is_down = False
    [record] = (await world.gateway.recover()).settled
    assert record.state is IntentState.LIVE
    assert len(world.orders) == len(world.adapter.sent) == 1


@pytest.mark.guarantee(12)
async def test_g12_an_exit_goes_out_once_without_a_journal(world):
    """Not being able to close a position is the greater harm; a second one for the same key is never sent."""
    world.store.is_down = True
    exits = intent(symbol=PERPETUAL, reduce_only=True)
    outcome = await world.gateway.submit(exits)
    assert isinstance(outcome, Accepted)
    for _ in range(3):
        again = await world.gateway.submit(exits)
        assert again.record == outcome.record
    with pytest.raises(IntentConflict):
        await world.gateway.submit(attrs.evolve(exits, quantity=2))
    assert len(world.adapter.sent) == len(world.orders) == 1


@pytest.mark.guarantee(1, 12)
@pytest.mark.parametrize("fate", [OK, Fate(filled=Decimal(1)), LOST, DROPPED, REJECTED])
async def test_g12_recovery_writes_down_what_went_out_without_a_journal(fate, world):
    """So that the next process knows of it, whether or not anybody asks for its key again."""
    world.store.is_down = True
    world.adapter.creates.append(fate)
    exits = intent(symbol=PERPETUAL, reduce_only=True)
    await world.gateway.submit(exits)
    world.store.is_down = False
    await world.gateway.recover()
    sent = len(world.adapter.sent)
    _, _, second = world.process("p2")
    await second.submit(exits)
    assert len(world.adapter.sent) == sent
    assert len(world.orders) == (0 if fate is REJECTED else 1)
    assert (await world.record()).filled_quantity == sum(order.filled for order in world.orders)


@pytest.mark.guarantee(12)
async def test_g12_recovery_goes_on_while_something_cannot_be_written_down_yet(world):
    world.store.is_down = True
    await world.gateway.submit(intent(symbol=PERPETUAL, reduce_only=True))
    assert (await world.gateway.recover()).settled == ()
    world.store.is_down = False
    [record] = (await world.gateway.recover()).settled
    assert record.intent.key == "k"


@pytest.mark.guarantee(5, 12)
@pytest.mark.parametrize("fate", [OK, Fate(filled=Decimal(1)), LOST, DROPPED, late(3)])
async def test_g12_an_exit_that_went_out_without_a_journal_is_looked_for_once_there_is_one(fate, world):
    """The same key with the store back: journalled as sent, looked for, and sent only if proven absent."""
    world.store.is_down = True
    world.adapter.creates.append(fate)
    exits = intent(symbol=PERPETUAL, reduce_only=True)
    await world.gateway.submit(exits)
    world.store.is_down = False
    outcome = await world.gateway.submit(exits)
    assert isinstance(outcome, Accepted)
    assert len(world.orders) == 1
    await world.check()


@pytest.mark.guarantee(1, 3)
@pytest.mark.parametrize("expiry", [Expiry.ABSOLUTE, Expiry.RELATIVE])
async def test_g3_an_exit_without_a_journal_has_the_deadline_by_which_its_absence_is_proven(expiry):
    """Written up and proven absent, it is sent again; then the first request must not land any more."""
    world = World(attrs.evolve(PROFILE, expiry=expiry, dedup=Dedup.NONE))
    world.store.is_down = True
    world.adapter.creates.append(late(60))
    await world.gateway.submit(intent(symbol=PERPETUAL, reduce_only=True))
    [sent] = world.adapter.sent
    window_ms = WINDOW_MS if expiry is Expiry.ABSOLUTE else WINDOW_MS + round(TIMEOUT_S * 1000)
    assert sent.deadline_ms == world.adapter.sent_at_ms[0] + window_ms
    assert sent.expires_in_ms == (WINDOW_MS if expiry is Expiry.ABSOLUTE else None)
    world.store.is_down = False
    await world.gateway.recover()
    assert (await world.record()).attempts[0].deadline_ms is not None
    await anyio.sleep(120)
    assert len(world.orders) == 1
    await world.check()


@pytest.mark.guarantee(1, 3, 5)
@pytest.mark.parametrize("fate", [Fate(reply_s=0.5), Fate(reply_s=0.5, filled=Decimal(1)), HANGS, BLACK_HOLE])
async def test_g5_an_exit_whose_journal_fails_after_sending_is_not_sent_again_without_it(fate, world):
    """Only an intent that this process has never sent goes out unwritten; the journal settles the other one later."""
    world.adapter.creates.append(fate)
    exits = intent(symbol=PERPETUAL, reduce_only=True)
    async with anyio.create_task_group() as tasks:

        async def fails() -> None:
            await anyio.sleep(0.2)
            world.store.is_down = True

        tasks.start_soon(fails)
        with pytest.raises(OutcomeUnknown):
            await world.gateway.submit(exits)
    for _ in range(3):
        with pytest.raises(OutcomeUnknown, match="do not resend"):
            await world.gateway.submit(exits)
    with pytest.raises(IntentConflict):
        await world.gateway.submit(attrs.evolve(exits, quantity=2))
    assert len(world.adapter.sent) == 1
    world.store.is_down = False
    await world.gateway.recover()
    assert len(world.orders) == 1
    await world.check()


@pytest.mark.guarantee(5, 12)
@pytest.mark.parametrize("who", ["the process that sent it", "one that has recovered it", "one that has read it"])
async def test_g5_what_was_ever_seen_in_the_journal_does_not_go_out_again_without_it(who, world):
    """Filled, or resting: the store fails once the call is over, and the same key comes again."""
    exits = intent(symbol=PERPETUAL, reduce_only=True)
    world.adapter.creates.append(Fate(filled=Decimal(1)) if who == "one that has read it" else OK)
    await world.gateway.submit(exits)
    registry, gateway = world.registry, world.gateway
    if who != "the process that sent it":
        _, registry, gateway = world.process("p2")
        await (gateway.recover() if who == "one that has recovered it" else registry.find("k"))
    world.store.is_down = True
    with pytest.raises(OutcomeUnknown):
        await gateway.submit(exits)
    assert len(world.orders) == 1
    assert isinstance(await gateway.submit(attrs.evolve(exits, key="another")), Accepted)
    world.store.is_down = False
    assert isinstance(await gateway.submit(exits), Accepted)
    assert len(world.orders) == 2


@pytest.mark.guarantee(5, 12)
async def test_g5_an_exit_under_the_key_of_an_entry_is_refused_without_a_journal_too(world):
    await world.gateway.submit(intent(symbol=PERPETUAL))
    world.store.is_down = True
    with pytest.raises(IntentConflict):
        await world.gateway.submit(intent(symbol=PERPETUAL, side="sell", reduce_only=True))
    assert len(world.orders) == 1


@pytest.mark.guarantee(14)
async def test_g14_which_exits_were_sent_is_forgotten_with_the_retention_but_never_while_they_rest(world):
    exits = [intent(key, symbol=PERPETUAL, reduce_only=True) for key in ("rests", "ends")]
    for one in exits:
        await world.gateway.submit(one)
    await world.gateway.cancel("ends")
    await anyio.sleep(7 * 86_400 - 60)
    assert [world.registry.has_seen(one) for one in exits] == [True, True]
    await anyio.sleep(120)
    assert [world.registry.has_seen(one) for one in exits] == [True, False]


@pytest.mark.guarantee(12)
async def test_g12_an_exit_goes_out_although_a_store_that_never_waits_is_closed(world):
    """There the journal is read before it is written: that the reading fails must not keep an exit in."""
    registry = IntentRegistry(MemoryStore(), clock=world.clock)
    gateway = OrderGateway(world.adapter, registry, policy=POLICY, looks=LOOKS, clock=world.clock)
    with pytest.raises(StoreUnavailable):
        await gateway.submit(intent(key="entry"))
    assert world.orders == []
    assert isinstance(await gateway.submit(intent(symbol=PERPETUAL, reduce_only=True)), Accepted)
    assert len(world.orders) == 1


@pytest.mark.guarantee(5)
async def test_g5_a_repeat_on_a_store_that_never_waits_is_answered_from_it(world):
    async with MemoryStore() as store:
        registry = IntentRegistry(store, clock=world.clock)
        gateway = OrderGateway(world.adapter, registry, policy=POLICY, looks=LOOKS, clock=world.clock)
        first = await gateway.submit(intent())
        assert await gateway.submit(intent()) == first
        with pytest.raises(IntentConflict):
            await gateway.submit(intent(quantity=2))
    assert len(world.orders) == 1


@pytest.mark.guarantee(12)
async def test_g12_an_exit_that_the_venue_rejects_without_a_journal_is_rejected(world):
    world.store.is_down = True
    world.adapter.creates.append(REJECTED)
    assert isinstance(await world.gateway.submit(intent(symbol=PERPETUAL, reduce_only=True)), Rejected)


@pytest.mark.guarantee(12)
async def test_g12_on_spot_nothing_goes_out_without_a_journal(world):
    """No venue stops a second sale there: what the next process does not know of, it would sell again."""
    world.store.is_down = True
    with pytest.raises(StoreUnavailable):
        await world.gateway.submit(intent(side="sell", reduce_only=True))
    assert world.adapter.sent == []


@pytest.mark.guarantee(12)
async def test_g12_the_policy_can_forbid_exits_without_a_journal():
    world = World(policy=attrs.evolve(POLICY, exits_without_journal=False))
    world.store.is_down = True
    with pytest.raises(StoreUnavailable):
        await world.gateway.submit(intent(symbol=PERPETUAL, reduce_only=True))
    assert world.adapter.sent == []


@pytest.mark.guarantee(12)
async def test_g12_a_cancel_goes_out_although_it_cannot_be_journalled(world):
    """A disk that is full must not keep an order in the market."""
    await rests(world)
    world.orders[0].fill("0.4")
    world.store.is_read_only = True
    outcome = await world.gateway.cancel("k")
    assert world.orders[0].status is OrderStatus.CANCELED
    assert outcome.record.filled_quantity == Decimal("0.4")
    world.store.is_read_only = False
    assert (await world.gateway.recover()).settled[0].state is IntentState.CANCELED


# --- Recovery -----------------------------------------------------------------------------------------------


@pytest.mark.guarantee(13)
async def test_g13_recover_settles_each_intent_and_one_that_cannot_be_keeps_no_other_from_it(world):
    """FI-05: live ones are read, doubtful ones resolved, wishes carried out; what stays unknown is listed."""
    for key in ("live", "filled", "doubtful", "lost", "wish"):
        world.adapter.creates.append(LOST if key == "doubtful" else DROPPED if key == "lost" else OK)
        if key in {"doubtful", "lost"}:
            with anyio.move_on_after(0.001):
                world.adapter.reads.append("hangs")
                await world.gateway.submit(intent(key))
        else:
            await world.gateway.submit(intent(key))
    orders = {o.request.client_order_id: o for o in world.orders}
    orders[world.adapter.client_order_id(intent("filled"), 0)].fill(1)
    wish = await world.record("wish")
    await world.gateway.registry.advance(wish, asks_to_cancel)
    await anyio.sleep(60)
    gateway = world.process("p2")[2]
    recovery = await gateway.recover()
    assert {r.intent.key: r.state for r in recovery.settled} == {
        "live": IntentState.LIVE,
        "filled": IntentState.FILLED,
        "doubtful": IntentState.LIVE,
        "lost": IntentState.LIVE,
        "wish": IntentState.CANCELED,
    }
    assert recovery.unresolved == recovery.held_elsewhere == ()
    assert len(world.orders) == 5


def asks_to_cancel(record):
    from execsafe.core import transitions
    from execsafe.model.intent import Change

    return transitions.ask_change(record, Change(asked_at_ms=0), now_ms=0)


async def test_recover_leaves_to_a_living_process_what_it_is_working_on(world):
    """And waits no longer than a dead one's lease would last."""
    world.adapter.creates.append(DROPPED)
    world.policy = attrs.evolve(world.policy, patience_s=600)
    adapter, _, gateway = world.process("busy")
    adapter.creates.append(DROPPED)
    adapter.reads_fail = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gateway.submit, intent())
        await anyio.sleep(1)
        recovery = await world.gateway.recover()
        assert [r.intent.key for r in recovery.held_elsewhere] == ["k"]
        adapter.reads_fail = False
    assert len(world.orders) == 1


async def test_recover_of_another_account_touches_nothing(world):
    world.adapter.creates.append(LOST)
    world.adapter.reads_fail = True
    await world.gateway.submit(intent())
    looks = len(world.adapter.looks)
    recovery = await world.gateway.recover("other")
    assert recovery == type(recovery)()
    assert len(world.adapter.looks) == looks


@pytest.mark.guarantee(12, 13)
async def test_g13_recover_says_so_when_the_journal_fails_and_still_settles_the_others(world):
    """A plain store error, not a group of them."""
    for key in ("a", "b", "c"):
        world.adapter.creates.append(LOST)
        world.adapter.reads_fail = True
        await world.gateway.submit(intent(key))
    world.adapter.reads_fail = False

    def fails_for_b(batch):
        if any(put.value.intent.key == "b" for put in batch.puts):
            raise StoreUnavailable("this row is locked")

    world.store.hook = fails_for_b
    with anyio.fail_after(600):
        try:
            recovery = await world.process("p2")[2].recover()
        except StoreError:
            recovery = None
    assert recovery is None or [r.intent.key for r in recovery.unresolved] == ["b"]
    states = {key: (await world.record(key)).state for key in ("a", "b", "c")}
    assert states == {"a": IntentState.LIVE, "b": IntentState.UNRESOLVED, "c": IntentState.LIVE}


@pytest.mark.guarantee(13)
async def test_g13_recovering_twice_changes_nothing_the_second_time(world):
    world.adapter.creates.append(LOST)
    world.adapter.reads_fail = True
    await world.gateway.submit(intent())
    world.adapter.reads_fail = False
    await world.gateway.recover()
    events, commits = len(world.events), len([c for c in world.store.commits if c.puts])
    recovery = await world.gateway.recover()
    assert [r.state for r in recovery.settled] == [IntentState.LIVE]
    assert (len(world.events), len([c for c in world.store.commits if c.puts])) == (events, commits)


# --- Policy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"request_timeout_s": 0},
        {"request_timeout_s": float("nan")},
        {"request_timeout_s": 601},
        {"patience_s": -1},
        {"patience_s": float("nan")},
        {"patience_s": float("inf")},
        {"attempts_max": 0},
    ],
)
def test_a_policy_with_which_nothing_could_work_is_refused(values):
    with pytest.raises(InvalidInput):
        GatewayPolicy(**values)


# --- Secrets ------------------------------------------------------------------------------------------------


SIGNED = "venue POST https://api.example.com/order?apiKey=AKIDAKIDAKID&signature=c2VjcmV0c2VjcmV0"


@pytest.mark.guarantee(16)
async def test_g16_a_refusal_shows_no_signed_url(world):
    """Clients put the whole request into their messages; what submit hands on is redacted, with all it drags along."""
    error = Refused(SIGNED)
    error.__cause__ = OSError(5, SIGNED)
    world.adapter.creates.append(Fate(arrive_s=None, error=error))
    outcome = await world.gateway.submit(intent())
    assert isinstance(outcome, Rejected)
    shown = f"{outcome.cause!r} {outcome.cause.__cause__!r}"
    assert "AKIDAKID" not in shown
    assert "c2VjcmV0" not in shown


@pytest.mark.guarantee(16)
async def test_g16_nor_does_the_refusal_of_a_key_before_anything_was_sent(world):
    async def refused(symbol):
        raise Refused(SIGNED)

    world.adapter.prepare = refused
    with pytest.raises(Refused) as caught:
        await world.gateway.submit(intent())
    assert "AKIDAKID" not in str(caught.value)
    assert world.adapter.sent == []
