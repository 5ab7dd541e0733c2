"""Hooks that carry events to logs, metrics and traces. Each is a listener; nothing is configured here.

``log_events`` and ``StructLog`` need the standard library only. ``structlog_events``, ``prometheus_metrics``,
``otel_spans`` and ``otel_metrics`` import their libraries (extra ``metrics``) when they are called.
"""

from __future__ import annotations

import logging

from execsafe.observe.logs import StructLog, log_events, structlog_events
from execsafe.observe.metrics import otel_metrics, prometheus_metrics
from execsafe.observe.spans import otel_spans

__all__ = ["StructLog", "log_events", "otel_metrics", "otel_spans", "prometheus_metrics", "structlog_events"]

# A library configures no logging: whoever does not either sees nothing, instead of lines on stderr.
logging.getLogger("execsafe").addHandler(logging.NullHandler())
