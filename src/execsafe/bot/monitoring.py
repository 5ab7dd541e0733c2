"""What a running bot tells: alarms and steps as log lines, alerts, a line about its state, metrics for who scrapes."""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio

import execsafe
from execsafe.bot.config import RunConfig
from execsafe.bot.desk import TradingDesk
from execsafe.bot.wires import Wires
from execsafe.buses.surviving import survived
from execsafe.core.health import DEFAULT_RULES, HEDGING_RULES, DurationRule, Health
from execsafe.observe import log_events, prometheus_metrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_log: Final = logging.getLogger("execsafe.bot")
_EVERY_S: Final = 300.0
_EVERY_S_IN_TROUBLE: Final = 60.0
_FIRST_S: Final = 5.0
_LOOK_S: Final = 1.0
_SILENT_S_MIN: Final = 60.0
_REPEATED: Final = frozenset({execsafe.EventType.ENTRY_DENIED, execsafe.EventType.ENTRY_FAILED})
_REPEATED_MS: Final = 60_000
_REPEATED_MAX: Final = 1_000
VENUE: Final = "venue"
"""The component that is healthy while all that a comparison needs can be read."""
STORE: Final = "store"
"""The component that is healthy while the desk's lease is renewed there, which is a durable write."""
BUS: Final = "bus"
"""The component that is healthy while signals are read and events published."""
# (seconds until a warning, until an error) of what is not healthy. Without a store nothing is done about anything, and
# without a venue nothing is seen; a bus that is away for minutes costs signals.
_PATIENCE: Final = {STORE: (60.0, 300.0), VENUE: (120.0, 600.0), BUS: (300.0, 1_800.0)}


class Monitoring:
    """Hands every event to the log, to alert rules and, if asked for, to metrics. Give ``listeners`` to the desk.

    Args:
        config: says where metrics are served, and how often venue and book are compared.
        protects: whether positions get stops. Without, hedges are what can go wrong.
        clock: source of Unix milliseconds.

    Raises:
        InvalidInput: metrics are asked for, and prometheus-client is not installed.
    """

    def __init__(self, config: RunConfig, *, protects: bool = True, clock: execsafe.Clock | None = None) -> None:
        self._config = config
        self._registry: CollectorRegistry | None = None
        self._last: object = None  # the latest comparison that was noted
        told: list[execsafe.Listener] = [_Sparing(log_events())]
        if config.metrics:
            self._registry = _new_registry()
            told.append(prometheus_metrics(self._registry))
        silent_s = max(_SILENT_S_MIN, 3 * config.reconcile_s)
        self.health: execsafe.HealthMonitor = execsafe.HealthMonitor(
            clock=clock,
            rules=(*(DEFAULT_RULES if protects else HEDGING_RULES), *_patience()),
            policies={VENUE: execsafe.HealthPolicy(silent_after_s=silent_s)},
            listeners=told,
        )
        self.listeners: tuple[execsafe.Listener, ...] = (*told, self.health.on_event)

    def watch(self, desk: TradingDesk, wires: Wires | None = None) -> None:
        """Judge alerts and say how it is going, for as long as *desk* runs. A defect in here does not end it."""

        async def look_often() -> None:
            while True:
                await survived(functools.partial(self._look, desk, wires), "looking how it is going", log=_log)
                await anyio.sleep(_LOOK_S)

        async def say_often() -> None:
            await anyio.sleep(_FIRST_S)
            while True:
                await survived(lambda: _say(desk, self.health), "saying how it is going", log=_log)
                is_well = self.health.overall is Health.HEALTHY
                await anyio.sleep(_EVERY_S if is_well else _EVERY_S_IN_TROUBLE)

        desk.beside += (look_often, say_often)

    async def keep_looking(self) -> None:
        """Let time do its part, also while no desk runs, until cancelled."""
        while True:
            await survived(self._judge, "judging alerts", log=_log)
            await anyio.sleep(_LOOK_S)

    async def _judge(self) -> None:
        self.health.tick()

    def note_store_failed(self, error: BaseException) -> None:
        """No desk runs, because the store cannot be opened."""
        self.health.failed(STORE, error)

    async def _look(self, desk: TradingDesk, wires: Wires | None) -> None:
        last = desk.reconciler.last
        if last is not None and last is not self._last:  # another pass, which counts once whatever it missed
            self._last = last
            unread = "" if not last.unread else "Unavailable" if last.error is None else last.error.kind
            self._note(VENUE, unread)
        self._note(STORE, "" if desk.is_lease_held else "NotWritten")
        trouble = None if wires is None else wires.trouble
        if trouble is not None:
            self._note(BUS, trouble)

    def _note(self, component: str, error: str) -> None:
        if error:
            self.health.failed(component, error)
        else:
            self.health.ok(component)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve the metrics for the length of the block, if they are asked for.

        Raises:
            InvalidInput: the address cannot be used.
        """
        if self._registry is None:
            yield
            return
        from prometheus_client import start_http_server

        host, _, port = self._config.metrics.rpartition(":")
        try:
            server, thread = start_http_server(int(port), host, self._registry)
        except OSError as error:
            raise execsafe.InvalidInput(
                f"metrics cannot be served at {self._config.metrics}: {error.strerror or type(error).__name__}"
            ) from None
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Sparing:
    """Leaves out what was told within the last minute: an entry that is refused for now is tried every few seconds."""

    def __init__(self, listener: execsafe.Listener) -> None:
        self._listener = listener
        self._told_ms: OrderedDict[tuple[str, str, str], int] = OrderedDict()  # the latest at the end

    def __call__(self, event: execsafe.Event) -> None:
        if event.type in _REPEATED and self._was_told(event):
            return
        self._listener(event)

    def _was_told(self, event: execsafe.Event) -> bool:
        key = (event.type.value, event.subject, event.note)
        told_ms = self._told_ms.get(key)
        if told_ms is not None and 0 <= event.at_ms - told_ms < _REPEATED_MS:
            return True
        self._told_ms[key] = event.at_ms
        self._told_ms.move_to_end(key)
        if len(self._told_ms) > _REPEATED_MAX:
            self._told_ms.popitem(last=False)
        return False


def _patience() -> list[DurationRule]:
    return [
        DurationRule(name=f"not_healthy:{name}", component=name, warn_after_s=warn_s, error_after_s=error_s)
        for name, (warn_s, error_s) in _PATIENCE.items()
    ]


def _new_registry() -> CollectorRegistry:
    try:
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
    except ModuleNotFoundError as error:
        raise execsafe.InvalidInput(f"metrics need {error.name}: pip install 'execsafe[metrics]'") from None
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


async def _say(desk: TradingDesk, health: execsafe.HealthMonitor) -> None:
    left = await desk.leftover()
    held = ", ".join(f"{p.side.value} {p.quantity:f} {p.symbol}" for p in left.positions) or "no positions"
    doubt = f"{len(left.in_doubt)} orders in doubt" if left.in_doubt else "nothing in doubt"
    alerts = ", ".join(alert.rule for alert in health.alerts()) or "none"
    _log.info(
        "%s; %s; trading is %s; %s; alerts: %s",
        held,
        doubt,
        _trading(desk.safety),
        _components(health),
        alerts,
    )


def _trading(safety: execsafe.SafetyMonitor) -> str:
    why = ", ".join(reason.value for reason in safety.reasons)
    return f"{safety.state.value} ({why})" if why else safety.state.value


def _components(health: execsafe.HealthMonitor) -> str:
    known = health.components()
    parts = [] if VENUE in known else [f"{VENUE} not compared yet"]
    for name, component in known.items():
        why = f" ({component.error})" if component.health is not Health.HEALTHY and component.error else ""
        parts.append(f"{name} {component.health.value}{why}")
    return ", ".join(sorted(parts, key=lambda part: not part.startswith(VENUE)))
