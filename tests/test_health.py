"""HealthMonitor: reports in, one event per change out."""

from __future__ import annotations

import anyio
import pytest

from execsafe.core.health import DEFAULT_RULES, TRAILING_CREATED, DurationRule
from execsafe.errors import CapacityExceeded, InvalidInput
from execsafe.health import Health, HealthMonitor, HealthPolicy, Level
from execsafe.model.event import Event, EventType
from execsafe.testing.clock import ManualClock, VirtualClock
from execsafe.testing.loop import virtual_backends


class World:
    def __init__(self, clock=None, **more) -> None:
        self.clock = clock if clock is not None else ManualClock()
        self.events: list[Event] = []
        self.monitor = HealthMonitor(clock=self.clock, listeners=[self.events.append], **more)

    def happen(self, kind: EventType, subject: str = "p1", times: int = 1) -> None:
        for _ in range(times):
            self.monitor.on_event(Event(type=kind, at_ms=self.clock.now_ms(), subject=subject))

    def told(self) -> list[tuple[str, str, str]]:
        return [(e.type.value, e.subject, e.note) for e in self.events]

    def measure(self, rule: str):
        return next(m for m in self.monitor.measures() if m.rule == rule)


@pytest.mark.row("S3-38")
def test_a_change_of_health_is_told_once_with_the_failures_counted():
    world = World()
    for _ in range(11):
        world.monitor.failed("signals", ConnectionError("wss://user:secret@host"))
    world.monitor.ok("signals")
    assert world.told() == [
        ("health_changed", "signals", "healthy->degraded"),
        ("health_changed", "signals", "degraded->down"),
        ("health_changed", "signals", "down->healthy"),
    ]
    assert world.events[0].details.thaw()["consecutive_failures"] == 1
    assert world.monitor.overall is Health.HEALTHY


@pytest.mark.guarantee(16)
def test_g16_of_an_error_only_its_class_is_kept():
    world = World()
    world.monitor.failed("signals", ConnectionError("apiKey=SECRETSECRET"))
    assert world.monitor.components()["signals"].error == "ConnectionError"
    assert "SECRET" not in repr(world.monitor.components()) + repr(world.events)


@pytest.mark.row("S2-39")
def test_a_consumer_shows_the_age_of_its_last_event_its_lag_and_its_crashes():
    world = World(policies={"consumer": HealthPolicy(silent_after_s=60)})
    world.monitor.ok("consumer", lag_ms=40)
    world.clock.advance(s=480)
    one = world.monitor.components()["consumer"]
    assert (one.lag_ms, one.crashes, one.uptime_ms(world.clock.now_ms())) == (40, 0, 480_000)
    assert one.age_ms(world.clock.now_ms()) == 480_000
    assert one.health is Health.DOWN
    world.monitor.failed("consumer", "Crash", is_crash=True)
    assert world.monitor.components()["consumer"].crashes == 1


@pytest.mark.row("S3-39")
def test_a_component_that_stays_degraded_raises_after_half_an_hour_and_gets_louder_after_one():
    world = World(rules=())
    world.monitor.failed("signals", "E")
    del world.events[:]
    for minutes in range(1, 91):
        world.clock.advance(s=60)
        world.monitor.tick()
        if minutes == 29:
            assert world.events == []
    world.monitor.ok("signals")
    world.monitor.tick()
    assert [e for e in world.told() if e[0].startswith("alert")] == [
        ("alert_raised", "not_healthy:signals", "warning"),
        ("alert_raised", "not_healthy:signals", "error"),
        ("alert_cleared", "not_healthy:signals", "error"),
    ]
    assert world.events[-1].details.thaw()["lasted_ms"] == 3_600_000


@pytest.mark.row("S3-40", "S0-16")
def test_a_low_success_ratio_is_one_alert_however_many_entries_fail():
    world = World()
    world.happen(EventType.STOP_PLACED, times=7)
    world.happen(EventType.ENTRY_FAILED, times=2)
    assert world.told() == []
    world.happen(EventType.ENTRY_FAILED)
    world.happen(EventType.ENTRY_FAILED, times=5)
    assert world.told() == [("alert_raised", "entries", "warning"), ("alert_raised", "entries", "critical")]
    assert world.measure("entries").samples == 15
    world.clock.advance(s=4_000)
    assert world.monitor.alerts() == ()
    assert world.told()[-1] == ("alert_cleared", "entries", "critical")


def test_an_entry_that_was_refused_for_now_has_not_failed():
    """It comes again every few seconds while it is fresh; one signal must not make a success ratio of 0 %."""
    world = World()
    for _ in range(20):
        world.monitor.on_event(
            Event(type=EventType.ENTRY_FAILED, at_ms=1, subject="plan", details={"state": "not_sent"})
        )
    assert world.told() == []
    assert world.measure("entries").samples == 0


@pytest.mark.row("S3-40", "S3-41")
def test_a_failed_stop_and_a_rollback_are_told_at_once():
    world = World()
    world.happen(EventType.STOP_FAILED)
    world.happen(EventType.ENTRY_ROLLED_BACK)
    assert world.told() == [("alert_raised", "stop_creation", "critical"), ("alert_raised", "rollbacks", "error")]
    assert (world.measure("rollbacks").value, world.measure("stop_creation").value) == (1, 1)


@pytest.mark.row("S3-41", "S1-16")
def test_every_position_must_get_its_stop_and_its_trailing_stop_in_time():
    """Thirteen positions, thirteen stops, twelve trailing stops: one is missing, and that is told."""
    world = World(rules=(*DEFAULT_RULES, TRAILING_CREATED))
    for n in range(13):
        world.happen(EventType.POSITION_OPENED, f"p{n}")
        world.happen(EventType.STOP_PLACED, f"p{n}")
        if n:
            world.happen(EventType.TRAILING_STOP_CREATED, f"p{n}")
    assert (world.measure("stops_placed").value, world.measure("stops_placed").samples) == (1.0, 13)
    assert (world.measure("trailing_created").value, world.measure("trailing_created").samples) == (1.0, 12)
    world.clock.advance(s=60)
    world.monitor.tick()
    assert world.told() == []
    world.clock.advance(ms=1)
    world.monitor.tick()
    assert world.told() == [("alert_raised", "trailing_created", "error")]
    assert world.measure("trailing_created").value == 12 / 13


@pytest.mark.row("S3-41", "D-17")
def test_a_late_stop_is_a_miss_and_a_closed_position_is_no_sample():
    world = World()
    world.happen(EventType.POSITION_OPENED, "late")
    world.happen(EventType.POSITION_OPENED, "closed")
    world.happen(EventType.POSITION_CLOSED, "closed")
    world.clock.advance(s=61)
    world.happen(EventType.STOP_PLACED, "late")
    assert (world.measure("stops_placed").value, world.measure("stops_placed").samples) == (0.0, 1)


@pytest.mark.row("D-17")
def test_without_samples_nothing_is_claimed():
    """No orders, no errors: that is no evidence that all is well, so the number of samples is always there."""
    assert all(m.samples == 0 and m.level is None for m in World().monitor.measures())


def test_names_are_checked_and_bounded():
    world = World()
    with pytest.raises(InvalidInput):
        world.monitor.ok("")
    for n in range(1_000):
        world.monitor.ok(f"c{n}")
    with pytest.raises(CapacityExceeded):
        world.monitor.ok("one more")


def test_a_rule_of_ones_own_replaces_the_default_for_its_component():
    world = World(rules=(DurationRule(name="mine", component="signals", warn_after_s=1, error_after_s=2),))
    world.monitor.failed("signals", "E")
    assert [m.rule for m in world.monitor.measures()] == ["mine"]
    world.clock.advance(s=2)
    assert [a.level for a in world.monitor.alerts()] == [Level.ERROR]


def test_a_listener_that_raises_stops_nothing():
    def bad(event):
        raise ZeroDivisionError

    monitor = HealthMonitor(clock=ManualClock(), listeners=[bad])
    monitor.failed("x", "E")
    assert monitor.overall is Health.DEGRADED


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_backends()[request.param]


@pytest.mark.anyio
@pytest.mark.row("S3-39")
async def test_time_alone_raises_an_alert():
    world = World(VirtualClock(), rules=())
    world.monitor.failed("signals", "E")
    async with anyio.create_task_group() as tasks:
        await tasks.start(world.monitor.run)
        await anyio.sleep(1_815)
        tasks.cancel_scope.cancel()
    assert world.told()[-1] == ("alert_raised", "not_healthy:signals", "warning")
