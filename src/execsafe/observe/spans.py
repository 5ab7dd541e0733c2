"""Intents as spans."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from execsafe.core.catalogue import Level, level_of_event
from execsafe.model.event import Event, EventType
from execsafe.model.values import check_count
from execsafe.observe._facts import facts
from execsafe.ports import Listener

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_T = EventType
_NS_PER_MS: Final = 1_000_000
_BEGINS: Final = {
    _T.INTENT_RECORDED: "execsafe.intent",
    _T.EXIT_REGISTERED: "execsafe.exit",
    _T.HEDGE_STARTED: "execsafe.hedge",
    _T.ENTRY_STARTED: "execsafe.entry",
}
_ENDS: Final = frozenset(
    {
        _T.ORDER_REJECTED,
        _T.INTENT_FILLED,
        _T.INTENT_CANCELED,
        _T.INTENT_EXPIRED,
        _T.INTENT_FAILED,
        _T.EXIT_CLEARED,
        _T.HEDGE_COMPLETED,
        _T.HEDGE_UNWOUND,
        _T.RESIDUAL_EXPOSURE,
        _T.STOP_PLACED,
        _T.ENTRY_FAILED,
        _T.ENTRY_ROLLED_BACK,
    }
)


def otel_spans(tracer: Tracer | None = None, *, open_max: int = 1_000) -> Listener:
    """A listener that keeps a span for each intent, exit, entry and hedge, with its events on it.

    A span begins with the first event of its subject and ends with the last; times are the events' own. What an
    earlier process began has no span here.

    Args:
        tracer: where to; ``opentelemetry.trace.get_tracer("execsafe")`` unless given.
        open_max: spans that are open at once; beyond it the oldest is ended as it is. 1,000.

    Raises:
        ImportError: opentelemetry-api is not installed (extra ``metrics``).
    """
    check_count(open_max, "open_max")
    from opentelemetry import trace

    target = trace.get_tracer("execsafe") if tracer is None else tracer
    spans: OrderedDict[str, Span] = OrderedDict()

    def listen(event: Event) -> None:
        at_ns = event.at_ms * _NS_PER_MS
        if event.type in _BEGINS and event.subject not in spans:
            spans[event.subject] = target.start_span(_BEGINS[event.type], start_time=at_ns)
            spans[event.subject].set_attribute("execsafe.subject", facts(event)["subject"])
            if len(spans) > open_max:
                spans.popitem(last=False)[1].end(end_time=at_ns)
        span = spans.get(event.subject)
        if span is None:
            return
        span.add_event(event.type.value, _attributes(event), timestamp=at_ns)
        if level_of_event(event) >= Level.ERROR:
            span.set_status(trace.StatusCode.ERROR, event.type.value)
        if event.type in _ENDS:
            del spans[event.subject]
            span.end(end_time=at_ns)

    return listen


def _attributes(event: Event) -> dict[str, Any]:
    told = facts(event)
    details = told.pop("details", {})
    flat = {f"execsafe.{name}": value for name, value in {**details, **told}.items()}
    return {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in flat.items()}
