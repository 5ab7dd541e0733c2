"""The in-process face: each fault has its effect, takes virtual time, and outlives its caller."""

from decimal import Decimal
from pathlib import Path

import anyio
import attrs
import pytest

from execsafe.errors import InvalidInput, UnsupportedByVenue
from execsafe.model.intent import Intent
from execsafe.model.order import OrderRequest, OrderStatus, Side
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.venue import Dedup, Expiry, LookUp, View
from execsafe.ports import OrderRef
from execsafe.testing.adapter import SIM_PROFILE, SimAdapter
from execsafe.testing.clock import EPOCH_MS, VirtualClock
from execsafe.testing.faults import Fault, FaultPlan, Strike
from execsafe.testing.ledger import Happened
from execsafe.testing.loop import ProcessKilled, run_simulated
from execsafe.testing.venue import SimVenue

pytestmark = pytest.mark.anyio

SYMBOL = "BTC/USDT"
REF = OrderRef(symbol=SYMBOL, client_order_id="a")
BY_ID, OPEN, CLOSED = SIM_PROFILE.lookups


class World:
    """A venue, a connection to it, and what is scripted to go wrong."""

    def __init__(self, *strikes, profile=SIM_PROFILE, **venue):
        self.clock = VirtualClock()
        self.venue = SimVenue(**venue)
        self.plan = FaultPlan.scripted(*strikes)
        self.adapter = SimAdapter(self.venue, clock=self.clock, plan=self.plan, profile=profile)

    def request(self, price="50000", **more):
        values = {"quantity": Decimal(1), "client_order_id": "a", "deadline_ms": self.clock.now_ms() + 5_000, **more}
        kind = "market" if price is None else "limit"
        return OrderRequest(symbol=SYMBOL, side=Side.BUY, type=kind, limit_price=price and Decimal(price), **values)

    async def create(self, price="50000", **more):
        return await self.adapter.create_order(self.request(price, **more))

    async def raised_by(self, call, *args):
        """The error of a call, with its ccxt class names."""
        try:
            await call(*args)
        except Exception as error:
            return error
        return None

    @property
    def accepted(self):
        self.venue.advance(self.clock.now_ms())
        return len(self.venue.ledger.accepted("a"))


def names(error):
    return [kind.__name__ for kind in type(error).__mro__]


async def test_a_calm_order_is_placed_found_and_canceled():
    world = World()
    placed = await world.create()
    assert (placed.status, placed.client_order_id, placed.filled_quantity) == (OrderStatus.OPEN, "a", 0)
    assert (await world.adapter.look_up(BY_ID, REF)).venue_order_id == placed.venue_order_id
    assert await world.adapter.look_up(CLOSED, REF) is None

    await world.adapter.cancel_order(REF)

    assert (await world.adapter.look_up(CLOSED, REF)).status is OrderStatus.CANCELED
    assert await world.adapter.look_up(OPEN, REF) is None
    assert world.clock.now_ms() > EPOCH_MS


# --- create -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error", "exists"),
    [
        (Fault.DROP_REQUEST, "RequestTimeout", False),
        (Fault.DROP_REPLY, "RequestTimeout", True),
        (Fault.HANG, "RequestTimeout", True),
        (Fault.TRUNCATED_BODY, "ExchangeError", True),
        (Fault.SERVER_ERROR_ACCEPTED, "ExchangeNotAvailable", True),
        (Fault.SERVER_ERROR_NOT_ACCEPTED, "ExchangeNotAvailable", False),
        (Fault.RATE_LIMITED, "RateLimitExceeded", False),
        (Fault.MAINTENANCE, "OnMaintenance", False),
        (Fault.TIMESTAMP_REJECT, "InvalidNonce", False),
        (Fault.REJECT_FUNDS, "InsufficientFunds", False),
        (Fault.REJECT_FILTER, "InvalidOrder", False),
    ],
)
async def test_what_the_caller_sees_and_whether_the_order_exists(fault, error, exists):
    world = World(Strike("create", 1, fault))

    raised = await world.raised_by(world.create)

    assert type(raised).__name__ == error
    assert world.accepted == exists
    assert world.plan.fired == {fault: 1}
    assert "BaseError" in names(raised)


@pytest.mark.parametrize("done", [0, 1])
async def test_a_reset_connection_does_not_tell_whether_the_order_was_taken(done):
    world = World(Strike("create", 1, Fault.RESET_CONNECTION, done))

    raised = await world.raised_by(world.create)

    assert type(raised).__name__ == "ExchangeNotAvailable"
    assert world.accepted == done


async def test_a_time_out_takes_the_clients_patience_and_a_hang_takes_far_more():
    for fault, least_s in ((Fault.DROP_REPLY, 10), (Fault.HANG, 3_600)):
        world = World(Strike("create", 1, fault))
        start_s = anyio.current_time()
        await world.raised_by(world.create)
        assert least_s <= anyio.current_time() - start_s < least_s + 1


async def test_an_empty_answer_names_no_order_although_it_exists():
    world = World(Strike("create", 1, Fault.EMPTY_OK))

    answer = await world.create()

    assert (answer.venue_order_id, answer.client_order_id, answer.filled_quantity) == (None, None, None)
    assert world.accepted == 1


async def test_a_delayed_request_lands_after_the_caller_gave_up():
    """Within its expiry it is accepted, beyond it refused; the caller knows nothing of either."""
    for delay_ms, exists in ((12_000, 0), (4_999, 1)):
        world = World(Strike("create", 1, Fault.DELAY_REQUEST, delay_ms))
        await world.raised_by(world.create)
        await anyio.sleep(5)

        assert world.accepted == exists
        assert len(world.venue.ledger.received("a")) == 1


@pytest.mark.parametrize("skew_ms", [-500, 0, 500])
async def test_the_latest_arrival_is_the_last_millisecond_that_the_venue_still_allows(skew_ms):
    world = World(Strike("create", 1, Fault.LATE_ARRIVAL_AFTER_LOOK), skew_ms=skew_ms)
    deadline_ms = world.clock.now_ms() + 5_000
    await world.raised_by(world.create)

    [accepted] = world.venue.ledger.accepted("a")
    assert accepted.at_ms == deadline_ms - skew_ms


async def test_without_an_expiry_a_request_may_land_minutes_later():
    profile = attrs.evolve(SIM_PROFILE, expiry=Expiry.NONE)
    world = World(Strike("create", 1, Fault.LATE_ARRIVAL_AFTER_LOOK), profile=profile)
    await world.raised_by(world.create)
    assert world.accepted == 0

    await anyio.sleep(300)

    assert world.accepted == 1


async def test_a_relative_expiry_counts_from_the_clients_own_clock():
    profile = attrs.evolve(SIM_PROFILE, expiry=Expiry.RELATIVE)
    world = World(Strike("create", 1, Fault.LATE_ARRIVAL_AFTER_LOOK), profile=profile)
    world.adapter.client_clock = world.clock.skewed(-2_000)
    start_ms = world.clock.now_ms()
    await world.raised_by(world.create)

    assert world.venue.ledger.accepted("a")[0].at_ms == start_ms + 3_000


async def test_a_duplicate_delivery_fills_twice_where_ids_may_be_used_again():
    for dedup, filled in ((Dedup.OPEN, 2), (Dedup.FOREVER, 1)):
        world = World(Strike("create", 1, Fault.DUPLICATE_DELIVERY), dedup=dedup)
        answer = await world.create(price=None)
        assert answer.filled_quantity == 1
        await anyio.sleep(6)
        world.venue.advance(world.clock.now_ms())
        assert world.venue.ledger.filled_quantity("a") == filled


async def test_a_reordered_create_arrives_right_after_the_cancel_that_found_nothing():
    world = World(Strike("create", 1, Fault.REORDER), profile=attrs.evolve(SIM_PROFILE, expiry_window_s=60))
    raised = await world.raised_by(lambda: world.create(deadline_ms=world.clock.now_ms() + 60_000))
    assert type(raised).__name__ == "RequestTimeout"

    missed = await world.raised_by(world.adapter.cancel_order, REF)
    await anyio.sleep(1)

    assert type(missed).__name__ == "OrderNotFound"
    assert world.accepted == 1
    order = [entry.what for entry in world.venue.ledger if entry.client_order_id == "a"]
    assert order.index(Happened.CANCEL_REJECTED) < order.index(Happened.ACCEPTED)
    assert len(world.venue.open_orders()) == 1
    await anyio.sleep(120)
    assert world.accepted == len(world.venue.ledger.received("a")) == 1


async def test_a_duplicate_reject_may_speak_of_an_order_that_is_dead():
    world = World(Strike("create", 2, Fault.DUPLICATE_ID_THOUGH_DEAD))
    await world.create(price=None)

    raised = await world.raised_by(world.create)

    assert world.adapter.judge(raised, Operation.CREATE).meaning is Meaning.EXISTS
    assert world.accepted == 1
    assert world.plan.fired == {Fault.DUPLICATE_ID_THOUGH_DEAD: 1}


async def test_a_duplicate_of_a_live_order_is_refused_as_one():
    world = World()
    await world.create()

    assert names(await world.raised_by(world.create))[0] == "DuplicateOrderId"


# --- matching -----------------------------------------------------------------------------------------------


async def test_a_partial_fill_leaves_a_rest():
    world = World(Strike("create", 1, Fault.PARTIAL_FILL, 400))

    placed = await world.create(price="60000")

    assert (placed.status, placed.filled_quantity) == (OrderStatus.OPEN, Decimal("0.4"))


async def test_an_order_may_fill_before_its_acknowledgement_says_so():
    world = World(Strike("create", 1, Fault.FILL_BEFORE_ACK))

    placed = await world.create()

    assert (placed.status, placed.filled_quantity) == (OrderStatus.OPEN, 0)
    assert (await world.adapter.look_up(CLOSED, REF)).filled_quantity == 1


@pytest.mark.parametrize(("per_mille", "found"), [(1_000, False), (300, True)])
async def test_an_order_may_fill_while_its_cancel_is_under_way(per_mille, found):
    world = World(Strike("cancel", 1, Fault.FILL_DURING_CANCEL, per_mille))
    await world.create()

    raised = await world.raised_by(world.adapter.cancel_order, REF)

    assert (raised is None) is found
    assert (await world.adapter.look_up(CLOSED, REF)).filled_quantity == Decimal(per_mille) / 1_000


@pytest.mark.parametrize(("value", "ends"), [(2_000, True), (-1, False)])
async def test_a_confirmed_cancel_may_leave_the_order_live_for_a_while_or_for_good(value, ends):
    world = World(Strike("cancel", 1, Fault.CANCEL_OK_STILL_LIVE, value))
    await world.create()
    await world.adapter.cancel_order(REF)
    assert (await world.adapter.look_up(OPEN, REF)).status is OrderStatus.OPEN

    await anyio.sleep(60)

    assert (await world.adapter.look_up(OPEN, REF) is None) is ends


@pytest.mark.parametrize(
    ("fault", "error", "canceled"),
    [
        (Fault.DROP_REQUEST, "RequestTimeout", False),
        (Fault.DROP_REPLY, "RequestTimeout", True),
        (Fault.SERVER_ERROR_ACCEPTED, "ExchangeNotAvailable", True),
        (Fault.RATE_LIMITED, "RateLimitExceeded", False),
    ],
)
async def test_cancels_meet_the_faults_of_the_wire_too(fault, error, canceled):
    world = World(Strike("cancel", 1, fault))
    await world.create()

    raised = await world.raised_by(world.adapter.cancel_order, REF)

    assert type(raised).__name__ == error
    assert (world.venue.open_orders() == []) is canceled


# --- reading ------------------------------------------------------------------------------------------------


async def test_a_lagging_look_up_shows_the_past_but_none_older_than_the_profile_says():
    world = World(Strike("look_up", 1, Fault.LOOKUP_LAG, 2_000), Strike("look_up", 2, Fault.LOOKUP_LAG, 2_000))
    await world.create()
    assert await world.adapter.look_up(BY_ID, REF) is None

    await anyio.sleep(2)

    assert await world.adapter.look_up(BY_ID, REF) is not None


async def test_a_look_up_may_fail_which_is_not_an_empty_answer():
    for seed in range(4):
        world = World(Strike("look_up", 1, Fault.LOOKUP_ERROR))
        world.plan.seed = seed
        await world.create()

        raised = await world.raised_by(world.adapter.look_up, BY_ID, REF)

        assert type(raised).__name__ in {"ExchangeNotAvailable", "RequestTimeout"}


async def test_the_id_view_may_miss_what_has_ended_while_the_list_shows_it():
    world = World(Strike("look_up", 1, Fault.LOOKUP_MISSES_CLOSED))
    await world.create(price=None)

    assert await world.adapter.look_up(BY_ID, REF) is None
    assert (await world.adapter.look_up(CLOSED, REF)).filled_quantity == 1
    assert await world.adapter.look_up(BY_ID, REF) is not None


async def test_a_lost_index_hides_the_order_from_the_id_view_for_good():
    world = World(Strike("look_up", 1, Fault.ID_INDEX_LOST))
    await world.create()

    assert [await world.adapter.look_up(BY_ID, REF) for _ in range(2)] == [None, None]
    assert await world.adapter.look_up(OPEN, REF) is not None


async def test_a_pruned_order_is_gone_from_every_order_view_but_not_from_the_trades():
    world = World(Strike("create", 1, Fault.PRUNED_AFTER_END))
    await world.create(price=None)

    assert [await world.adapter.look_up(view, REF) for view in SIM_PROFILE.lookups] == [None, None, None]
    traded = await world.adapter.look_up(LookUp(view=View.TRADES, method="fetch_my_trades"), REF)
    assert (traded.status, traded.filled_quantity) == (OrderStatus.UNKNOWN, 1)


def test_every_fault_is_shown_to_have_its_effect():
    """A fault that no test scripts would be a fault nobody has seen at work."""
    files = Path(__file__).parent.glob("test_[abps]*.py")  # adapter, books, positions, stops
    text = "".join(file.read_text(encoding="utf-8") for file in files)

    assert [fault.name for fault in Fault if f"Fault.{fault.name}" not in text] == []


# --- the port -----------------------------------------------------------------------------------------------


async def test_instruments_are_told_and_unlisted_symbols_refused():
    world = World()

    assert (await world.adapter.prepare(SYMBOL)).step_size == Decimal("0.00001")
    with pytest.raises(InvalidInput, match="DOGE/USDT is not listed"):
        await world.adapter.prepare("DOGE/USDT")


@pytest.mark.parametrize(
    "more",
    [
        {"params": {"stopLoss": {"triggerPrice": 1}}},
        {"post_only": True, "limit_price": None},
        {"type": "limit", "limit_price": None},
    ],
)
def test_what_the_venue_would_misunderstand_is_refused(more):
    intent = Intent(key="k", symbol=SYMBOL, side="buy", quantity="1", **{"limit_price": "1", **more})

    with pytest.raises(UnsupportedByVenue):
        World().adapter.check(intent)


def test_client_order_ids_are_a_pure_function_of_the_intent():
    intent = Intent(key="k", symbol=SYMBOL, side="buy", quantity="1")

    first, again, next_ = (World().adapter.client_order_id(intent, generation) for generation in (0, 0, 1))

    assert first == again != next_


def test_a_request_lands_although_its_process_is_killed():
    """Whatever has left the machine arrives."""
    world = World()

    def kill_when_sent(_step):
        if world.venue.next_event_ms is not None:
            loops[0].kill()

    loops = []
    with pytest.raises(ProcessKilled):
        run_simulated(world.create, on_loop=loops.append, on_step=kill_when_sent)
    world.clock.skip(1_000)

    assert world.accepted == 1


async def test_a_request_lands_although_its_caller_is_cancelled():
    world = World()
    with anyio.move_on_after(0.001):
        await world.create()
    assert world.accepted == 0

    await anyio.sleep(1)

    assert world.accepted == 1
