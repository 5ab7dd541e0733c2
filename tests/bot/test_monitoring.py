"""What a running bot tells: nothing that matters happens in silence."""

import json
import logging
import socket
import urllib.request
from decimal import Decimal

import anyio
import attrs
import pytest

import execsafe
from execsafe.bot import config, monitoring
from execsafe.bot.config import RunConfig
from execsafe.bot.desk import TradingDesk
from execsafe.bot.policy import DeskPolicy
from execsafe.core.catalogue import level_of
from execsafe.model.event import Event, EventType
from execsafe.model.outcome import ErrorFacts
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
    text = monitoring.TextLines().format(first)
    assert text.split()[:4] == [text.split()[0], first.levelname, kind.value, SYMBOL]
    assert text.startswith("20")
    line = json.loads(monitoring.JsonLines().format(first))
    assert (line["message"], line["level"], line["facts"]["symbol"]) == (kind.value, first.levelname.lower(), SYMBOL)


def test_a_line_for_people_has_no_lengths_in_it_and_is_short(caplog):
    intent = execsafe.Intent(key="signal-42", symbol=SYMBOL, side="buy", quantity=1)
    long = {"why": "x" * 500, "empty": ""}
    event = Event(
        type=EventType.ORDER_FILL, at_ms=1, subject=intent.identity, symbol=SYMBOL, quantity=Decimal(1), details=long
    )
    [record] = told(event, caplog=caplog)
    text = monitoring.TextLines().format(record)
    assert f"order_fill  {SYMBOL} 1 default/signal-42" in text
    assert "empty" not in text
    assert len(text) < 200


@pytest.mark.guarantee(16)
@pytest.mark.parametrize("formatter", [monitoring.TextLines, monitoring.JsonLines])
def test_g16_tracebacks_are_redacted(formatter):
    """What a strategy or a client raises may hold a signed URL."""
    try:
        raise RuntimeError("GET https://api.example.com/order?signature=canary4711canary4711&apiKey=canary4711")
    except RuntimeError:
        import sys

        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "the strategy failed", None, sys.exc_info())
    text = formatter().format(record)
    assert "RuntimeError" in text
    assert "the strategy failed" in text
    assert "canary" not in text


def test_other_lines_are_said_as_they_are():
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "%s, asked %d times", ("the bus", 3), None)
    assert monitoring.TextLines().format(record).endswith("WARNING  the bus, asked 3 times")
    assert json.loads(monitoring.JsonLines().format(record))["message"] == "the bus, asked 3 times"


def test_logging_goes_to_the_terminal_and_is_put_back_afterwards(capsys):
    before = (list(logging.getLogger().handlers), logging.getLogger("execsafe").level)
    for log, is_said in (("info", True), ("error", False)):
        with monitoring.logging_to_terminal(RunConfig(log=log)):
            logging.getLogger("execsafe.bot").info("long 1 BTC")
            logging.getLogger("somebody.else").info("noise")
        err = capsys.readouterr().err
        assert ("long 1 BTC" in err) is is_said
        assert "noise" not in err
    assert (list(logging.getLogger().handlers), logging.getLogger("execsafe").level) == before


def test_an_alert_is_told_like_any_other_event(caplog):
    """A stop that cannot be placed is an event; that it happened at all within the hour is an alert."""
    event = Event(type=EventType.STOP_FAILED, at_ms=1, subject="position-1", symbol=SYMBOL)
    records = told(event, caplog=caplog)
    assert [record.getMessage().split()[0] for record in records] == ["stop_failed", "alert_raised"]


def test_a_venue_that_cannot_be_read_is_a_component_that_fails():
    watch = monitoring.Monitoring(RunConfig(), clock=VirtualClock())

    def tell(event):
        for listener in watch.listeners:
            listener(event)

    error = ErrorFacts(kind="ExchangeNotAvailable", message="away")
    for _ in range(5):
        tell(Event(type=EventType.VIEW_UNAVAILABLE, at_ms=1, subject="positions", error=error))
    assert watch.health.components()[monitoring.VENUE].error == "ExchangeNotAvailable"
    assert watch.health.overall.value == "down"


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

    with caplog.at_level(logging.INFO, logger="execsafe.bot"):
        run_simulated(main)
    said = [r.getMessage() for r in caplog.records if r.name == "execsafe.bot"]
    ok = "no positions; nothing in doubt; trading is active; venue healthy; alerts: none"
    assert said[:2] == [ok, ok]
    assert said[-1] == ok
    assert any("venue down" in line for line in said)
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("health_changed")]
    assert [json.loads(text.partition(" ")[2])["note"] for text in told] == [
        "healthy->degraded", "degraded->down", "down->healthy",
    ]  # fmt: skip


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
