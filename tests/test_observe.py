"""Hooks: what happens is logged, counted and traced; no secrets, no labels without bound, nothing in the way."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from execsafe.core.catalogue import level_of
from execsafe.model.event import Event, EventType
from execsafe.model.intent import ErrorFacts
from execsafe.model.values import Params
from execsafe.observe import StructLog, log_events, otel_metrics, otel_spans, prometheus_metrics, structlog_events

T0 = 1_700_000_000_000
SECRET = "hunter2hunter2"


def event(kind: EventType, **facts) -> Event:
    return Event(**{"type": kind, "at_ms": T0, "subject": "i1", **facts})


def state_change(after: str) -> Event:
    details = Params.of({"before": "active", "after": after, "reasons": [], "by": "x"})
    return event(EventType.TRADING_STATE_CHANGED, subject="default", details=details)


def some_of_each_kind() -> list[Event]:
    """One of every type, with the details that hooks read."""
    special = {
        EventType.TRADING_STATE_CHANGED: {"after": "halted"},
        EventType.HEALTH_CHANGED: {"after": "down"},
        EventType.STORE_SWEPT: {"removed": 0, "remaining": 12, "live": 2, "oldest_age_ms": None},
        EventType.EXIT_CLEARED: {"duration_ms": 1_500},
        EventType.STOP_PLACED: {"exposed_total_ms": 250},
    }
    error = ErrorFacts(kind="InsufficientFunds", code="30005", message=f"https://x/y?signature={SECRET}")
    return [
        event(kind, symbol="SOON/USDT", error=error, details=Params.of(special.get(kind, {}))) for kind in EventType
    ]


# --- Logs ---------------------------------------------------------------------------------------------------


@pytest.mark.row("S3-33", "X-07")
def test_each_event_is_logged_once_at_the_level_of_its_type(caplog):
    listen = log_events()
    with caplog.at_level(logging.DEBUG, logger="execsafe"):
        for one in some_of_each_kind():
            listen(one)
    assert [(r.levelno, r.getMessage().split()[0]) for r in caplog.records] == [
        (int(level_of(kind)), kind.value) for kind in EventType
    ]
    assert all(record.execsafe["subject"] == "i1" for record in caplog.records)


def test_a_critical_alert_is_critical_and_what_gets_better_is_not_an_error(caplog):
    """In the log as in the metrics: whoever filters by level finds the one and is not called for the other."""
    registry = CollectorRegistry()
    better = Params.of({"before": "reduce_only", "after": "active"})
    with caplog.at_level(logging.DEBUG, logger="execsafe"):
        for listen in (log_events(), prometheus_metrics(registry)):
            listen(event(EventType.ALERT_RAISED, note="critical"))
            listen(event(EventType.TRADING_STATE_CHANGED, details=better))
    assert [record.levelname for record in caplog.records] == ["CRITICAL", "INFO"]
    for kind, level in (("alert_raised", "critical"), ("trading_state_changed", "info")):
        assert registry.get_sample_value("execsafe_events_total", {"type": kind, "level": level}) == 1


@pytest.mark.row("S2-42")
@pytest.mark.guarantee(16)
def test_g16_no_hook_lets_a_secret_through(caplog):
    registry, tracer = CollectorRegistry(), Tracer()
    lines: list[str] = []
    struct = structlog.wrap_logger(
        None, processors=[lambda *a: lines.append(repr(a)) or (_ for _ in ()).throw(structlog.DropEvent)]
    )
    hooks = [log_events(), structlog_events(struct), prometheus_metrics(registry), otel_spans(tracer)]
    told = Params.of({"url": f"https://h/p?api_key={SECRET}", "nested": {"a": [f"signature={SECRET}"]}})
    with caplog.at_level(logging.DEBUG, logger="execsafe"):
        for hook in hooks:
            hook(event(EventType.INTENT_RECORDED, note=f"token={SECRET}", details=told))
            for one in some_of_each_kind():
                hook(one)
        StructLog("execsafe.bot").error("failed", url=f"https://h/p?signature={SECRET}", error=ValueError(SECRET))
    from prometheus_client import generate_latest

    shown = caplog.text + "".join(lines) + generate_latest(registry).decode() + repr(tracer.spans)
    assert lines
    assert tracer.spans
    assert "***" in shown
    assert SECRET not in shown


def test_a_disabled_level_costs_nothing_and_says_nothing(caplog):
    with caplog.at_level(logging.ERROR, logger="execsafe"):
        log_events()(event(EventType.ORDER_FILL))
    assert caplog.records == []


@pytest.mark.row("S2-14")
def test_keywords_are_fine_and_a_percent_sign_is_text(caplog):
    """The standard library raises TypeError on the first line; this is what the second one does instead."""
    with pytest.raises(TypeError):
        logging.getLogger("bot").error("sent", symbol="BTC/USDT")
    log = StructLog("bot", account="a").bind(leg="x")
    with caplog.at_level(logging.DEBUG, logger="bot"):
        for name in ("debug", "info", "warning", "error", "critical"):
            getattr(log, name)("100 %s sent", symbol="BTC/USDT", quantity=1)
    assert [r.levelname for r in caplog.records] == ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    message, _, facts = caplog.records[0].getMessage().partition(" {")
    assert message == "100 %s sent"
    assert json.loads("{" + facts) == {"account": "a", "leg": "x", "symbol": "BTC/USDT", "quantity": 1}
    assert caplog.records[0].execsafe["symbol"] == "BTC/USDT"
    assert caplog.records[0].filename == "test_observe.py"


def test_structlog_gets_the_facts_as_pairs():
    out = io.StringIO()
    logger = structlog.wrap_logger(structlog.PrintLogger(out), processors=[structlog.processors.JSONRenderer()])
    structlog_events(_Leveled(logger))(event(EventType.STUCK_EXIT, symbol="SOON/USDT"))
    assert json.loads(out.getvalue()) == {"event": "stuck_exit", "at_ms": T0, "subject": "i1", "symbol": "SOON/USDT"}


class _Leveled:
    """A print logger has no ``log``; the filtering loggers that structlog makes by default do."""

    def __init__(self, logger) -> None:
        self._logger = logger

    def log(self, level, event, **facts):
        assert level == logging.CRITICAL
        return self._logger.msg(event, **facts)


def test_structlogs_own_default_logger_is_taken(capsys):
    structlog_events()(event(EventType.STUCK_EXIT))
    assert "stuck_exit" in capsys.readouterr().out


# --- Metrics ------------------------------------------------------------------------------------------------


def test_every_type_of_event_is_counted():
    registry = CollectorRegistry()
    listen = prometheus_metrics(registry)
    for one in some_of_each_kind():
        listen(one)
    for kind in EventType:
        labels = {"type": kind.value, "level": level_of(kind).name.lower()}
        assert registry.get_sample_value("execsafe_events_total", labels) == 1


@pytest.mark.row("S0-21", "S2-41")
def test_rejects_are_counted_by_symbol_class_and_code():
    registry = CollectorRegistry()
    listen = prometheus_metrics(registry)
    error = ErrorFacts(kind="InsufficientFunds", code="30005")
    for _ in range(3):
        listen(event(EventType.ORDER_REJECTED, symbol="SOON/USDT", error=error))
    labels = {"symbol": "SOON/USDT", "error": "InsufficientFunds", "code": "30005"}
    assert registry.get_sample_value("execsafe_order_rejects_total", labels) == 3


@pytest.mark.row("S0-23", "S2-41")
def test_states_are_gauges_that_come_back():
    registry = CollectorRegistry()
    listen = prometheus_metrics(registry)
    value = registry.get_sample_value
    listen(event(EventType.INTENT_UNRESOLVED))
    listen(event(EventType.STUCK_EXIT, subject="p1"))
    listen(event(EventType.STUCK_EXIT, subject="p1"))
    listen(state_change("halted"))
    listen(event(EventType.ALERT_RAISED, subject="entries", note="critical"))
    assert value("execsafe_intents_unresolved") == 1
    assert value("execsafe_exits_stuck") == 1
    assert value("execsafe_trading_state") == 2
    assert value("execsafe_alert", {"rule": "entries"}) == 3
    listen(event(EventType.ORDER_ADOPTED))
    listen(event(EventType.EXIT_CLEARED, subject="p1", details=Params.of({"duration_ms": 90_000})))
    listen(state_change("active"))
    listen(event(EventType.ALERT_CLEARED, subject="entries", note="critical"))
    assert value("execsafe_intents_unresolved") == 0
    assert value("execsafe_exits_stuck") == 0
    assert value("execsafe_trading_state") == 0
    assert value("execsafe_alert", {"rule": "entries"}) == 0
    assert value("execsafe_exit_duration_seconds_sum") == 90


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=60), st.integers(1, 5))
def test_labels_are_bounded_whatever_comes(names, most):
    registry = CollectorRegistry()
    listen = prometheus_metrics(registry, symbols_max=most)
    for name in names:
        error = ErrorFacts(kind=name, code=name)
        listen(event(EventType.ORDER_REJECTED, subject=name, symbol=name, error=error))
    samples = [s for m in registry.collect() for s in m.samples if s.name == "execsafe_order_rejects_total"]
    assert len({s.labels["symbol"] for s in samples}) <= most + 1
    assert len({s.labels["error"] for s in samples}) <= 51
    assert sum(s.value for s in samples) == len(names)


class Meter:
    """Stands for an OpenTelemetry meter: keeps what is written."""

    def __init__(self) -> None:
        self.values: dict = {}

    def _make(self, name, unit="", description=""):
        meter = self

        class Instrument:
            def add(self, amount, attributes):
                key = (name, *sorted(attributes.items()))
                meter.values[key] = meter.values.get(key, 0) + amount

            def put(self, amount, attributes):
                meter.values[(name, *sorted(attributes.items()))] = amount

            set = record = put

        return Instrument()

    create_counter = create_gauge = create_histogram = _make


def test_opentelemetry_gets_the_same_figures():
    meter = Meter()
    listen = otel_metrics(meter)
    for one in some_of_each_kind():
        listen(one)
    listen(state_change("reduce_only"))
    assert meter.values[("execsafe_trading_state",)] == 1
    assert meter.values[("execsafe_exit_duration_seconds",)] == 1.5
    assert meter.values[("execsafe_events", ("level", "critical"), ("type", "stuck_exit"))] == 1
    otel_metrics()(event(EventType.ORDER_FILL))  # without an SDK: nothing, and no error


# --- Spans --------------------------------------------------------------------------------------------------


class Span:
    def __init__(self, name, start_time) -> None:
        self.name, self.start, self.end_time, self.events, self.status, self.attributes = (
            name,
            start_time,
            None,
            [],
            None,
            {},
        )

    def set_attribute(self, name, value):
        self.attributes[name] = value

    def add_event(self, name, attributes, timestamp):
        self.events.append((name, attributes, timestamp))

    def set_status(self, status, description):
        self.status = (status, description)

    def end(self, end_time):
        self.end_time = end_time

    def __repr__(self) -> str:
        return repr(vars(self))


class Tracer:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def start_span(self, name, start_time):
        self.spans.append(Span(name, start_time))
        return self.spans[-1]


def test_an_intent_is_a_span_from_its_record_to_its_end():
    tracer = Tracer()
    listen = otel_spans(tracer)
    for n, kind in enumerate([EventType.INTENT_RECORDED, EventType.INTENT_UNRESOLVED, EventType.INTENT_FILLED]):
        listen(event(kind, at_ms=T0 + n))
    [span] = tracer.spans
    assert (span.name, span.start, span.end_time) == ("execsafe.intent", T0 * 10**6, (T0 + 2) * 10**6)
    assert [name for name, _, _ in span.events] == ["intent_recorded", "intent_unresolved", "intent_filled"]
    assert span.status == (trace.StatusCode.ERROR, "intent_unresolved")
    listen(event(EventType.ORDER_FILL))
    assert len(span.events) == 3
    otel_spans()(event(EventType.INTENT_RECORDED))  # without an SDK: nothing, and no error


def test_open_spans_are_bounded():
    tracer = Tracer()
    listen = otel_spans(tracer, open_max=2)
    for n in range(5):
        listen(event(EventType.INTENT_RECORDED, subject=str(n)))
    assert [span.end_time is None for span in tracer.spans] == [False, False, False, True, True]


# --- Being light ----------------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    code = (
        "import sys, logging, execsafe.observe\n"
        "heavy = {'prometheus_client', 'opentelemetry', 'structlog', 'ccxt'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert any(isinstance(h, logging.NullHandler) for h in logging.getLogger('execsafe').handlers)\n"
        "logging.getLogger('execsafe.x').error('unheard')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
