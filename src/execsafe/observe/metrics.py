"""Events as metrics. Names and labels are documented in ``docs/content/observability.md`` and stable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from execsafe.core.catalogue import level_of_event
from execsafe.core.health import Health
from execsafe.core.safety import TradingState
from execsafe.model.event import Event, EventType
from execsafe.model.values import check_count
from execsafe.observe._facts import Bounded
from execsafe.ports import Listener

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from prometheus_client import CollectorRegistry

_T = EventType
_SYMBOLS_MAX: Final = 100
_VALUES_MAX: Final = 50  # of any other label
_HEALTH: Final = {Health.HEALTHY: 0, Health.DEGRADED: 1, Health.DOWN: 2}
_LEVELS: Final = {"warning": 1, "error": 2, "critical": 3}
_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0)


@attrs.frozen
class _Metric:
    name: str
    help: str
    labels: tuple[str, ...]


_EVENTS: Final = _Metric("execsafe_events", "Events by type and level.", ("type", "level"))
_REJECTS: Final = _Metric(
    "execsafe_order_rejects", "Orders refused, by symbol, error class and code.", ("symbol", "error", "code")
)
_DENIALS: Final = _Metric("execsafe_entry_denials", "Entries refused before sending, by reason.", ("reason", "symbol"))
_DROPS: Final = _Metric("execsafe_signal_drops", "Signals not executed, by reason.", ("reason",))
_EXIT_TROUBLE: Final = _Metric("execsafe_exit_holds", "Exits that had to wait, by reason.", ("reason", "symbol"))
_STATE: Final = _Metric("execsafe_trading_state", "0 active, 1 reduce-only, 2 halted.", ())
_COMPONENT: Final = _Metric("execsafe_component_health", "0 healthy, 1 degraded, 2 down.", ("component",))
_ALERT: Final = _Metric("execsafe_alert", "0 quiet, 1 warning, 2 error, 3 critical.", ("rule",))
_IN_DOUBT: Final = _Metric("execsafe_intents_unresolved", "Intents whose fate is not known.", ())
_STUCK: Final = _Metric("execsafe_exits_stuck", "Exits that make no progress.", ())
_STORED: Final = _Metric("execsafe_store_records", "Records left after the last sweep.", ("store",))
_DURATION: Final = _Metric("execsafe_exit_duration_seconds", "From an exit's begin to its end.", ())
_EXPOSED: Final = _Metric("execsafe_unprotected_seconds", "From a fill to its verified stop.", ())

_Count: TypeAlias = Callable[[_Metric, tuple[str, ...]], None]
_Put: TypeAlias = Callable[[_Metric, tuple[str, ...], float], None]


class _Meters:
    """What an event does to the metrics, whoever keeps them. Subjects are never labels: they are without end."""

    def __init__(self, count: _Count, gauge: _Put, observe: _Put, symbols_max: int) -> None:
        self._count = count
        self._gauge = gauge
        self._observe = observe
        self._symbol = Bounded(symbols_max)
        self._bounds: dict[str, Bounded] = {}
        self._unresolved: set[str] = set()
        self._stuck: set[str] = set()

    def __call__(self, event: Event) -> None:
        kind = event.type
        self._count(_EVENTS, (kind.value, level_of_event(event).name.lower()))
        details = event.details.thaw()
        symbol = self._symbol(event.symbol) if event.symbol else ""
        if event.error is not None and kind in {_T.ORDER_REJECTED, _T.EXIT_MISMATCH, _T.BREAKER_TRIPPED}:
            names = (symbol, self._bound("error", event.error.kind), self._bound("code", event.error.code or ""))
            self._count(_REJECTS, names)
        elif kind is _T.ENTRY_DENIED:
            self._count(_DENIALS, (self._bound("denial", event.note), symbol))
        elif kind is _T.SIGNAL_DROPPED:
            self._count(_DROPS, (self._bound("drop", event.note),))
        elif kind is _T.EXIT_HELD:
            self._count(_EXIT_TROUBLE, (self._bound("hold", event.note), symbol))
        self._set_gauges(event, details)
        self._measure(event, details)

    def _bound(self, label: str, value: str) -> str:
        return self._bounds.setdefault(label, Bounded(_VALUES_MAX))(value)

    def _set_gauges(self, event: Event, details: dict[str, Any]) -> None:
        match event.type:
            case _T.TRADING_STATE_CHANGED:
                self._gauge(_STATE, (), float(TradingState(details["after"]).rank))
            case _T.HEALTH_CHANGED:
                self._gauge(_COMPONENT, (self._bound("component", event.subject),), _HEALTH[Health(details["after"])])
            case _T.ALERT_RAISED | _T.ALERT_CLEARED:
                level = _LEVELS.get(event.note, 1) if event.type is _T.ALERT_RAISED else 0
                self._gauge(_ALERT, (self._bound("rule", event.subject),), float(level))
            case _T.STORE_SWEPT if "remaining" in details:  # a desk sweeps all its parts at once, and counts none
                self._gauge(_STORED, (self._bound("store", event.subject),), float(details["remaining"]))
            case _T.INTENT_UNRESOLVED | _T.STUCK_EXIT:
                self._waiting(event.type).add(event.subject)
            case _:
                self._unresolved -= {event.subject} if event.type in _SETTLES else set()
                self._stuck -= {event.subject} if event.type is _T.EXIT_CLEARED else set()
        self._gauge(_IN_DOUBT, (), float(len(self._unresolved)))
        self._gauge(_STUCK, (), float(len(self._stuck)))

    def _waiting(self, kind: EventType) -> set[str]:
        return self._unresolved if kind is _T.INTENT_UNRESOLVED else self._stuck

    def _measure(self, event: Event, details: dict[str, Any]) -> None:
        if event.type is _T.EXIT_CLEARED and "duration_ms" in details:
            self._observe(_DURATION, (), details["duration_ms"] / 1000)
        elif event.type is _T.STOP_PLACED and "exposed_total_ms" in details:
            self._observe(_EXPOSED, (), details["exposed_total_ms"] / 1000)


_SETTLES: Final = frozenset(
    {
        _T.ORDER_ADOPTED,
        _T.ATTEMPT_ABSENT,
        _T.ORDER_REJECTED,
        _T.INTENT_FILLED,
        _T.INTENT_CANCELED,
        _T.INTENT_EXPIRED,
        _T.INTENT_FAILED,
    }
)


def prometheus_metrics(registry: CollectorRegistry | None = None, *, symbols_max: int = _SYMBOLS_MAX) -> Listener:
    """A listener that keeps Prometheus metrics; call it once per registry.

    Args:
        registry: where to; the client's default registry unless given.
        symbols_max: symbols that get a label of their own, first come; further ones are ``"other"``. 100.

    Raises:
        ImportError: prometheus-client is not installed (extra ``metrics``).
        ValueError: the registry has these metrics already.
    """
    from prometheus_client import REGISTRY, Counter, Gauge, Histogram

    check_count(symbols_max, "symbols_max")
    target = REGISTRY if registry is None else registry
    counters = {
        metric: Counter(metric.name, metric.help, metric.labels, registry=target)
        for metric in (_EVENTS, _REJECTS, _DENIALS, _DROPS, _EXIT_TROUBLE)
    }
    gauges = {
        metric: Gauge(metric.name, metric.help, metric.labels, registry=target)
        for metric in (_STATE, _COMPONENT, _ALERT, _IN_DOUBT, _STUCK, _STORED)
    }
    histograms = {
        metric: Histogram(metric.name, metric.help, metric.labels, registry=target, buckets=_SECONDS)
        for metric in (_DURATION, _EXPOSED)
    }

    def count(metric: _Metric, labels: tuple[str, ...]) -> None:
        counters[metric].labels(*labels).inc()

    def gauge(metric: _Metric, labels: tuple[str, ...], value: float) -> None:
        (gauges[metric].labels(*labels) if labels else gauges[metric]).set(value)

    def observe(metric: _Metric, labels: tuple[str, ...], value: float) -> None:
        (histograms[metric].labels(*labels) if labels else histograms[metric]).observe(value)

    return _Meters(count, gauge, observe, symbols_max)


def otel_metrics(meter: Meter | None = None, *, symbols_max: int = _SYMBOLS_MAX) -> Listener:
    """A listener that keeps the same metrics with OpenTelemetry.

    Args:
        meter: where to; ``opentelemetry.metrics.get_meter("execsafe")`` unless given.
        symbols_max: as for :func:`prometheus_metrics`.

    Raises:
        ImportError: opentelemetry-api is not installed (extra ``metrics``).
    """
    check_count(symbols_max, "symbols_max")
    if meter is None:
        from opentelemetry import metrics

        meter = metrics.get_meter("execsafe")
    counters = {
        metric: meter.create_counter(metric.name, description=metric.help)
        for metric in (_EVENTS, _REJECTS, _DENIALS, _DROPS, _EXIT_TROUBLE)
    }
    gauges = {
        metric: meter.create_gauge(metric.name, description=metric.help)
        for metric in (_STATE, _COMPONENT, _ALERT, _IN_DOUBT, _STUCK, _STORED)
    }
    histograms = {
        metric: meter.create_histogram(metric.name, unit="s", description=metric.help)
        for metric in (_DURATION, _EXPOSED)
    }

    def count(metric: _Metric, labels: tuple[str, ...]) -> None:
        counters[metric].add(1, dict(zip(metric.labels, labels, strict=True)))

    def gauge(metric: _Metric, labels: tuple[str, ...], value: float) -> None:
        gauges[metric].set(value, dict(zip(metric.labels, labels, strict=True)))

    def observe(metric: _Metric, labels: tuple[str, ...], value: float) -> None:
        histograms[metric].record(value, dict(zip(metric.labels, labels, strict=True)))

    return _Meters(count, gauge, observe, symbols_max)
