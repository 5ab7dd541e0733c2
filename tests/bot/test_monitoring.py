"""What a running bot tells: nothing that matters happens in silence."""

import json
import logging
import socket
import urllib.request

import anyio
import attrs
import pytest

import execsafe
from execsafe.bot import config, logs, monitoring
from execsafe.bot.config import RunConfig
from execsafe.bot.desk import TradingDesk
from execsafe.bot.policy import DeskPolicy
from execsafe.core.catalogue import level_of
from execsafe.core.health import Health
from execsafe.model.event import Event, EventType
from execsafe.stores.memory import MemoryStore
from execsafe.testing import sim_errors
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import run_simulated
from execsafe.testing.venue import SimVenue, linear

SYMBOL = "BTC/USDT:USDT"


def told(event, run=None, level=logging.DEBUG, caplog=None):
    with caplog.at_level(level, logger="execsafe"):
        for listener in monitoring.Monitoring(run or RunConfig(), clock=VirtualClock()).listeners:
            listener(event)
    return caplog.records


@pytest.mark.row("S1-45", "S2-41")
@pytest.mark.parametrize("kind", list(EventType))
def test_every_event_reaches_the_log_as_loud_as_it_is(kind, caplog):
    """An alarm that only a listener would hear, and nobody listens: that is no alarm."""
    details = {"before": "active", "after": "halted"} if kind is EventType.TRADING_STATE_CHANGED else {}
    details = {"before": "healthy", "after": "down"} if kind is EventType.HEALTH_CHANGED else details
    event = Event(type=kind, at_ms=1_700_000_000_000, subject="position-1", symbol=SYMBOL, details=details)
    [first, *_] = told(event, caplog=caplog)
    assert first.levelno == int(level_of(kind))
    assert first.getMessage().startswith(kind.value)
    text = logs.TextLines().format(first)
    assert text.split()[:4] == [text.split()[0], first.levelname, kind.value, SYMBOL]
    assert text.startswith("20")
    line = json.loads(logs.JsonLines().format(first))
    assert (line["message"], line["level"], line["facts"]["symbol"]) == (kind.value, first.levelname.lower(), SYMBOL)


def test_an_entry_that_is_refused_every_few_seconds_is_a_line_a_minute_and_counted_each_time(caplog):
    watch = monitoring.Monitoring(RunConfig(metrics="127.0.0.1:9464"), clock=VirtualClock())
    with caplog.at_level(logging.INFO, logger="execsafe"):
        for number in range(24):
            for subject, note in (("a", "reduce_only"), ("b", "reduce_only"), ("a", "spread" if number else "halted")):
                event = Event(type=EventType.ENTRY_DENIED, at_ms=number * 5_000, subject=subject, note=note)
                for listener in watch.listeners:
                    listener(event)
    told = [json.loads(r.getMessage().partition(" ")[2]) for r in caplog.records]
    assert [(line["subject"], line["note"]) for line in told if line["note"] == "reduce_only"] == [
        ("a", "reduce_only"), ("b", "reduce_only"), ("a", "reduce_only"), ("b", "reduce_only"),
    ]  # fmt: skip
    assert [line["note"] for line in told if line["note"] in {"halted", "spread"}] == ["halted", "spread", "spread"]
    counted = watch._registry.get_sample_value("execsafe_events_total", {"type": "entry_denied", "level": "warning"})
    assert counted == 72


def test_an_alert_is_told_like_any_other_event(caplog):
    """A stop that cannot be placed is an event; that it happened at all within the hour is an alert."""
    event = Event(type=EventType.STOP_FAILED, at_ms=1, subject="position-1", symbol=SYMBOL)
    records = told(event, caplog=caplog)
    assert [record.getMessage().split()[0] for record in records] == ["stop_failed", "alert_raised"]


@pytest.mark.parametrize(
    ("protects", "alerts"),
    [(True, {"stop_creation", "stops_placed"}), (False, {"residuals"})],
)
def test_a_strategy_without_stops_is_judged_by_its_hedges(protects, alerts):
    """A completed pair has positions without stops, and needs none: that is no alarm a minute later."""
    clock = VirtualClock()
    watch = monitoring.Monitoring(RunConfig(), protects=protects, clock=clock)
    kinds = [EventType.POSITION_OPENED, EventType.HEDGE_COMPLETED, EventType.STOP_FAILED, EventType.RESIDUAL_EXPOSURE]
    for number, kind in enumerate(kinds):
        for listener in watch.listeners:
            listener(Event(type=kind, at_ms=1, subject=f"s-{number}", symbol=SYMBOL))
    clock.skip(61_000)
    assert {alert.rule for alert in watch.health.alerts()} == alerts


class Away(SimAdapter):
    is_away = False

    async def fetch_positions(self):
        if self.is_away:
            raise sim_errors.ExchangeNotAvailable("away")
        return await super().fetch_positions()


@pytest.mark.row("S2-39", "S2-41")
def test_a_running_desk_says_how_it_is_going(caplog):
    async def main() -> None:
        clock = VirtualClock()
        adapter = Away(SimVenue([linear("BTC")], prices={SYMBOL: 50_000}), clock=clock)
        watch = monitoring.Monitoring(RunConfig(), clock=clock)
        store = execsafe.open_store("memory://")
        policy = DeskPolicy(pretrade=execsafe.PreTradePolicy(spread=None, depth=None, band=None))
        desk = TradingDesk(adapter, store, policy, symbols=[SYMBOL], listeners=watch.listeners, clock=clock)
        watch.watch(desk)
        async with desk.running():
            await anyio.sleep(310)
            adapter.is_away = True
            await anyio.sleep(600)
            adapter.is_away = False
            await anyio.sleep(300)

    with caplog.at_level(logging.INFO, logger="execsafe"):
        run_simulated(main)
    said = [r.getMessage() for r in caplog.records if r.name == "execsafe.bot"]
    ok = "no positions; nothing in doubt; trading is active; venue healthy, store healthy; alerts: none"
    assert said[:2] == [ok, ok]
    assert said[-1] == ok
    assert any("venue down (ExchangeNotAvailable)" in line for line in said)
    assert len(said) > 8, "oftener while something is wrong"
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("health_changed")]
    assert [json.loads(text.partition(" ")[2])["note"] for text in told] == [
        "healthy->degraded", "degraded->down", "down->healthy",
    ]  # fmt: skip
    levels = [r.levelname for r in caplog.records if r.getMessage().startswith("health_changed")]
    assert levels == ["WARNING", "WARNING", "INFO"], "what gets better is no trouble"


class Revoked(SimAdapter):
    """Refuses every reading of the positions with the error that is set."""

    error = None

    async def fetch_positions(self):
        if self.error is not None:
            raise self.error
        return await super().fetch_positions()


REFUSED = sim_errors.AuthenticationError("Invalid API-key, IP, or permissions for action")


@pytest.mark.row("S2-22")
def test_a_key_that_is_revoked_while_the_bot_runs_halts_entries_and_is_named(caplog):
    """Every reading is refused from one moment on; what is held is still looked after."""

    async def main() -> tuple[TradingDesk, execsafe.HealthMonitor]:
        clock = VirtualClock()
        adapter = Revoked(SimVenue([linear("BTC")], prices={SYMBOL: 50_000}), clock=clock)
        watch = monitoring.Monitoring(RunConfig(), clock=clock)
        store = execsafe.open_store("memory://")
        desk = TradingDesk(adapter, store, symbols=[SYMBOL], listeners=watch.listeners, clock=clock)
        watch.watch(desk)
        async with desk.running():
            await anyio.sleep(90)
            assert watch.health.components()[monitoring.VENUE].failures == 0
            adapter.error = REFUSED
            await anyio.sleep(130)
            return desk, watch.health

    with caplog.at_level(logging.INFO, logger="execsafe"):
        desk, health = run_simulated(main)
    assert desk.safety.state is execsafe.TradingState.HALTED
    venue = health.components()[monitoring.VENUE]
    assert venue.error == "AuthenticationError"
    assert venue.failures <= 4, "one for each comparison, whatever it missed"
    assert any("AuthenticationError" in r.getMessage() for r in caplog.records if "view_unavailable" in r.getMessage())


@pytest.mark.row("S2-22")
def test_a_key_that_is_refused_after_an_outage_or_a_hasty_reset_halts_as_well():
    """The view was unreadable before, for another reason; and it is again after somebody has said that all is well."""

    async def main() -> None:
        clock = VirtualClock()
        adapter = Revoked(SimVenue([linear("BTC")], prices={SYMBOL: 50_000}), clock=clock)
        desk = TradingDesk(adapter, execsafe.open_store("memory://"), symbols=[SYMBOL], clock=clock)
        async with desk.running():
            await anyio.sleep(90)
            adapter.error = sim_errors.NetworkError("away")
            await anyio.sleep(90)
            assert desk.safety.state is not execsafe.TradingState.HALTED
            adapter.error = REFUSED
            await anyio.sleep(130)
            assert desk.safety.state is execsafe.TradingState.HALTED
            await desk.safety.reset(note="surely it works now")
            assert desk.safety.state is not execsafe.TradingState.HALTED
            await anyio.sleep(130)
            assert desk.safety.state is execsafe.TradingState.HALTED

    run_simulated(main)


def test_a_venue_that_was_not_compared_yet_is_not_called_healthy(caplog):
    async def main() -> None:
        clock = VirtualClock()
        adapter = Away(SimVenue([linear("BTC")], prices={SYMBOL: 50_000}), clock=clock)
        adapter.is_away = True
        watch = monitoring.Monitoring(RunConfig(), clock=clock)
        desk = TradingDesk(adapter, execsafe.open_store("memory://"), symbols=[SYMBOL], clock=clock)
        desk.reconciler.reconcile = anyio.sleep_forever
        watch.watch(desk)
        with anyio.move_on_after(10):
            async with desk.running():
                pass

    with caplog.at_level(logging.INFO, logger="execsafe.bot"):
        run_simulated(main)
    [said] = [r.getMessage() for r in caplog.records if r.name == "execsafe.bot"]
    assert "venue not compared yet, store healthy" in said


class Wire:
    trouble = ""


def test_store_and_bus_are_components_of_their_own(caplog):
    """A store that is away stops everything; nobody else would say so."""

    async def main() -> execsafe.HealthMonitor:
        clock, wires = VirtualClock(), Wire()
        adapter = SimAdapter(SimVenue([linear("BTC")], prices={SYMBOL: 50_000}), clock=clock)
        watch = monitoring.Monitoring(RunConfig(), clock=clock)
        desk = TradingDesk(adapter, MemoryStore(), symbols=[SYMBOL], listeners=watch.listeners, clock=clock)
        watch.watch(desk, wires)
        async with desk.running():
            await anyio.sleep(10)
            assert watch.health.overall is Health.HEALTHY
            commit, wires.trouble = desk.store.commit, "NotRead"

            async def away(_batch):
                raise execsafe.StoreUnavailable("away")

            desk.store.commit = away
            await anyio.sleep(400)
            found = {name: (c.health.value, c.error) for name, c in watch.health.components().items()}
            assert found["store"] == ("down", "NotWritten")
            assert found["bus"] == ("down", "NotRead")
            assert {a.rule for a in watch.health.alerts()} >= {"not_healthy:store", "not_healthy:bus"}
            desk.store.commit, wires.trouble = commit, ""
            await anyio.sleep(60)
            return watch.health

    health = run_simulated(main)
    assert health.overall is Health.HEALTHY


def test_metrics_are_served_for_as_long_as_the_bot_runs():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    watch = monitoring.Monitoring(RunConfig(metrics=f"127.0.0.1:{port}"), clock=VirtualClock())
    swept = Event(type=EventType.STORE_SWEPT, at_ms=1, subject="desk", details={"removed": 3})  # as the desk tells it
    for event in (swept, Event(type=EventType.ORDER_REJECTED, at_ms=1, subject="x", symbol=SYMBOL)):
        for listener in watch.listeners:
            listener(event)
    with watch.serving():
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        other = monitoring.Monitoring(RunConfig(metrics=f"127.0.0.1:{port}"))
        with pytest.raises(execsafe.InvalidInput, match="metrics cannot be served"), other.serving():
            pass
    assert 'execsafe_events_total{level="warning",type="order_rejected"} 1.0' in page
    assert "process_resident_memory_bytes" in page
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


def test_metrics_without_their_library_are_said_in_one_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(
        execsafe.InvalidInput, match=r"metrics need prometheus_client: pip install 'execsafe\[metrics\]'"
    ):
        monitoring.Monitoring(RunConfig(metrics="127.0.0.1:9464"))


@pytest.mark.parametrize("wrong", ["9464", ":9464", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(wrong):
    with pytest.raises(execsafe.InvalidInput, match="must be like"):
        RunConfig(metrics=wrong)
    assert attrs.evolve(RunConfig(), metrics="127.0.0.1:9464").metrics
    assert "log" in attrs.fields_dict(config.RunConfig)
