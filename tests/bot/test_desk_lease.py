"""One store, one desk: who works on a store has its lease, and who does not have it sends nothing."""

from decimal import Decimal

import anyio
import attrs
import pytest

import execsafe
from burial import burying
from execsafe import signals
from execsafe.bot import cli, live
from execsafe.bot.desk import TradingDesk
from execsafe.bot.policy import DeskPolicy
from execsafe.bot.strategy import Close, Open
from execsafe.locks import Leases
from execsafe.stores.memory import MemoryStore
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import ProcessKilled, run_simulated, virtual_backends
from execsafe.testing.venue import SimVenue, linear

BTC = "BTC/USDT:USDT"
POLICY = DeskPolicy(notional=Decimal(1000))
TTL_S = POLICY.lease_ttl_s
WISH = Open(id="signal-1", symbol=BTC, side="long")


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


class Moody(MemoryStore):
    """Cannot be written while it is away."""

    is_away = False

    async def commit(self, batch):
        if self.is_away:
            raise execsafe.StoreUnavailable("away")
        return await super().commit(batch)


class World:
    def __init__(self):
        self.clock = VirtualClock()
        self.venue = SimVenue([linear("BTC")], prices={BTC: 50_000})
        self.store = Moody()

    def desk(self, policy=POLICY):
        adapter = SimAdapter(self.venue, clock=self.clock)
        return TradingDesk(adapter, self.store, policy, symbols=(BTC,), clock=self.clock)

    def entries(self):
        return [entry for entry in self.venue.ledger.accepted() if not entry.reduce_only]

    async def taken_over(self):
        """Another desk takes the store: the lease of the first one ended while it stood still."""
        self.clock.skip(round(TTL_S * 3_000))
        await Leases(self.store, self.clock.now_ms, "another", 60_000).acquire("desk", waits=False, deadline=0)


@pytest.fixture
async def world():
    return World()


async def seconds(clock, start):
    """How long *start* took, and what it raised."""
    before_ms = clock.now_ms()
    error = None
    try:
        await start()
    except execsafe.ExecsafeError as raised:
        error = raised
    return (clock.now_ms() - before_ms) / 1_000, error


@pytest.mark.anyio
@pytest.mark.guarantee(7)
@pytest.mark.parametrize("decides", [True, False], ids=["run", "resolve"])
async def test_g7_a_second_desk_is_refused_and_told_what_to_do_and_the_first_goes_on(world, decides):
    async def start():
        async with world.desk().running(decides=decides):
            pytest.fail("two desks at once")

    async with world.desk().running() as desk:
        await anyio.sleep(60)  # it was renewed since
        took_s, error = await seconds(world.clock, start)
        assert isinstance(error, execsafe.LeaseHeld)
        assert "stop it first, or give this one a store of its own" in str(error)
        assert took_s <= TTL_S
        assert isinstance(await desk.carry_out(WISH), signals.Handled), "its store is open"
        assert desk.gate.mode is execsafe.ExecutionMode.LIVE


@pytest.mark.anyio
async def test_a_desk_that_ended_in_order_or_by_an_error_is_waited_for_by_nobody(world):
    async def start():
        async with world.desk().running():
            raise execsafe.InvalidInput("a defect")

    for _ in range(2):
        before_ms = world.clock.now_ms()
        with pytest.raises(ExceptionGroup):
            await start()
        assert world.clock.now_ms() - before_ms < 1_000
    with anyio.move_on_after(5):
        async with world.desk().running():
            await anyio.sleep_forever()
    assert world.store._leases.get("desk") is None


@pytest.mark.guarantee(13)
@pytest.mark.parametrize("down_ms", [0, 4_000, 60_000])
def test_g13_after_a_kill_the_next_desk_waits_for_the_lease_at_most_its_life_and_goes_on(down_ms):
    world = World()

    async def until_killed():
        async with world.desk().running() as desk:
            await desk.carry_out(WISH)
            await anyio.sleep(3_600)

    def on_step(_number):
        if world.entries() and world.clock.true_ms() > world.began_ms + 20_000:
            loops[0].kill()

    async def successor():
        before_ms = world.clock.now_ms()
        async with world.desk().running() as desk:
            waited_ms = world.clock.now_ms() - before_ms
            await desk.carry_out(WISH)
            return waited_ms, desk.position(BTC).quantity

    loops = []
    world.began_ms = world.clock.now_ms()
    with burying():
        with pytest.raises(ProcessKilled):
            run_simulated(until_killed, on_step=on_step, on_loop=loops.append)
        world.clock.skip(down_ms)
        waited_ms, quantity = run_simulated(successor)
    assert waited_ms <= max(0, TTL_S * 1_000 - down_ms) + 1_000
    assert quantity == world.venue.ledger.position(BTC)
    assert len(world.entries()) == 1


@pytest.mark.anyio
@pytest.mark.guarantee(7, 12)
async def test_g7_a_desk_whose_lease_passed_to_another_sends_no_entry_and_ends(world):
    desk = world.desk()
    came = []
    entry = execsafe.Intent(key="k", symbol=BTC, side="buy", quantity="0.01", limit_price="50100")

    async def trade():
        async with desk.running():
            await world.taken_over()
            with anyio.CancelScope(shield=True):
                try:
                    came.append(await desk.gateway.submit(entry))
                except execsafe.TradingDenied as error:
                    came.append(error.context["reason"])
            await anyio.sleep_forever()

    with pytest.raises(execsafe.StaleFencingToken, match="another desk has taken this store over"):
        await trade()
    assert world.entries() == []
    assert came == [execsafe.DenyReason.STATE_UNKNOWN]
    assert desk.gate.mode is execsafe.ExecutionMode.DRAIN


@pytest.mark.anyio
@pytest.mark.guarantee(7)
async def test_g7_a_desk_that_only_waits_finds_out_within_a_third_of_the_leases_life(world):
    desk = world.desk()
    at_ms = []

    async def wait():
        async with desk.running():
            await world.taken_over()
            at_ms.append(world.clock.now_ms())
            await anyio.sleep_forever()

    with pytest.raises(execsafe.StaleFencingToken):
        await wait()
    assert world.clock.now_ms() - at_ms[0] <= TTL_S * 1_000 / 3 + 100


@pytest.mark.anyio
async def test_a_stop_that_is_under_way_ends_too_when_another_desk_has_taken_over(world):
    desk = world.desk()

    async def stop():
        async with desk.running():
            await desk.carry_out(WISH)
            world.venue.set_book(BTC, [], [])  # nothing can be sold: the stop would go on for a minute
            await world.taken_over()
            with anyio.CancelScope(shield=True):
                await desk.stop(flat=True, timeout_s=600)
            pytest.fail("it did not end")

    with pytest.raises(execsafe.StaleFencingToken):
        await stop()


@pytest.mark.anyio
async def test_a_successor_works_on_while_the_desk_that_lost_the_store_ends(world):
    """Also with the same store object, which the one that ends leaves open."""
    ends = []

    async def first():
        try:
            async with world.desk().running() as desk:
                await desk.carry_out(WISH)
                world.clock.skip(round(TTL_S * 3_000))
                await anyio.sleep_forever()
        except execsafe.StaleFencingToken as error:
            ends.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        while not world.entries():
            await anyio.sleep(0.01)
        async with world.desk().running() as desk:
            await anyio.sleep(60)
            assert len(ends) == 1
            await desk.carry_out(WISH)
            assert len(world.entries()) == 1
            await desk.carry_out(Close(id="out", symbol=BTC))
            assert world.venue.ledger.position(BTC) == 0


@pytest.mark.anyio
async def test_a_loop_that_stood_still_while_nobody_took_over_loses_nothing(world):
    async with world.desk().running() as desk:
        world.clock.skip(round(TTL_S * 3_000))
        assert isinstance((await desk.carry_out(WISH)).result, signals.Executed)
        world.clock.skip(round(TTL_S * 3_000))
        await anyio.sleep(60)
        await desk.carry_out(Close(id="out", symbol=BTC))
        assert world.venue.ledger.position(BTC) == 0


@pytest.mark.anyio
@pytest.mark.guarantee(12)
async def test_g12_a_store_that_is_away_ends_no_desk_and_lets_no_entry_pass(world):
    async with world.desk().running() as desk:
        world.store.is_away = True
        await anyio.sleep(TTL_S * 3)
        with pytest.raises(execsafe.TradingDenied) as denied:
            await desk._lease.check(execsafe.Intent(key="k", symbol=BTC, side="buy", quantity="1"), None)
        assert denied.value.context["reason"] == execsafe.DenyReason.STATE_UNKNOWN
        world.store.is_away = False
        await anyio.sleep(TTL_S)
        assert desk.is_lease_held


@pytest.mark.parametrize("ttl_s", [0, -1, 0.05, 3_601, float("nan"), float("inf")])
def test_a_life_that_is_none_is_refused(ttl_s):
    with pytest.raises(execsafe.InvalidInput, match="lease_ttl_s"):
        DeskPolicy(lease_ttl_s=ttl_s)


class Client:
    async def close(self):
        """As ccxt's."""


@pytest.mark.parametrize("command", ["run", "resolve"])
def test_a_command_on_a_store_that_is_in_use_ends_with_status_2_and_one_sentence(
    command, tmp_path, monkeypatch, capsys
):
    path, url = tmp_path / "bot.toml", f"sqlite:///{tmp_path}/bot.db"
    path.write_text(
        f'[venue]\nexchange = "binance"\n[strategy]\nname = "waves"\nsymbols = ["{BTC}"]\n[run]\nstore = "{url}"\n'
    )
    venue = SimVenue([linear("BTC")], prices={BTC: 50_000})
    policy = attrs.evolve(POLICY, lease_ttl_s=0.3)
    monkeypatch.setattr(live, "make_exchange", lambda _: Client())
    monkeypatch.setattr(
        live,
        "_desk",
        lambda *_, **__: TradingDesk(
            SimAdapter(venue, clock=execsafe.SystemClock()), execsafe.open_store(url), policy, symbols=(BTC,)
        ),
    )

    async def occupy():
        async with execsafe.open_store(url) as store:
            leases = Leases(store, execsafe.SystemClock().now_ms, "another", 60_000)
            await leases.acquire("desk", waits=False, deadline=0)

    anyio.run(occupy)
    assert cli.main([command, "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "another desk works on this store" in said
