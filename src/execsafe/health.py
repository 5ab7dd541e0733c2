"""``HealthMonitor``: how the components are, which alerts hold, and how near the targets are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import anyio
import attrs
from anyio.abc import TaskStatus

from execsafe.buses.telling import tell
from execsafe.clock import SystemClock
from execsafe.core import health
from execsafe.core.catalogue import Level
from execsafe.core.health import (
    DEFAULT_RULES,
    STOPS_PLACED,
    TRAILING_CREATED,
    Alert,
    AlertRule,
    ComponentHealth,
    CountRule,
    DurationRule,
    Finding,
    FollowRule,
    Health,
    HealthPolicy,
    RatioRule,
    Turn,
    Window,
)
from execsafe.errors import CapacityExceeded
from execsafe.model.event import Event, EventType
from execsafe.model.values import Params, check_seconds, to_text
from execsafe.ports import Clock, Listener

__all__ = [
    "DEFAULT_RULES",
    "STOPS_PLACED",
    "TRAILING_CREATED",
    "Alert",
    "AlertRule",
    "ComponentHealth",
    "CountRule",
    "DurationRule",
    "FollowRule",
    "Health",
    "HealthMonitor",
    "HealthPolicy",
    "Level",
    "Measure",
    "RatioRule",
]

_NAME_MAX: Final = 64
_COMPONENTS_MAX: Final = 1_000
_AWAITED_MAX: Final = 10_000


@attrs.frozen(kw_only=True)
class Measure:
    """A rule's figure as of now. ``value`` is a share for ratios and targets, a count, or milliseconds."""

    rule: str
    value: float
    samples: int
    level: Level | None


class HealthMonitor:
    """Components report to it, it listens to events, and it tells when something changes: once per change.

    ``health_changed`` when a component's state changes; ``alert_raised`` when a rule begins to hold or gets worse;
    ``alert_cleared`` when it ends. Nothing is repeated while nothing changes.

    Args:
        clock: source of Unix milliseconds.
        rules: what raises an alert, each with its own name; :data:`~execsafe.core.health.DEFAULT_RULES` unless given.
            Every component that reports also gets a :class:`~execsafe.core.health.DurationRule` with the defaults
            (1,800 and 3,600 s), unless a rule for it is given.
        policy: when a component is degraded and when it is down.
        policies: other ones by component.
        listeners: told of the three events. One that raises is logged and ignored.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        rules: Iterable[AlertRule] = DEFAULT_RULES,
        policy: HealthPolicy | None = None,
        policies: Mapping[str, HealthPolicy] | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._policy = policy if policy is not None else HealthPolicy()
        self._policies = dict(policies or {})
        self._listeners = tuple(listeners)
        self._components: dict[str, ComponentHealth] = {}
        self._rules: dict[str, AlertRule] = {rule.name: rule for rule in health.check_rules(rules)}
        self._windows: dict[str, Window] = {
            rule.name: Window(span_ms=round(rule.window_s * 1000))
            for rule in self._rules.values()
            if not isinstance(rule, DurationRule)
        }
        self._awaited: dict[str, dict[str, int]] = {}  # by rule: subject -> until when, the oldest first
        self._alerts: dict[str, Alert] = {}

    # --- reports ---------------------------------------------------------------------------------

    def ok(self, component: str, *, lag_ms: int | None = None) -> None:
        """A component did its work; *lag_ms*: how far behind it is."""
        now_ms = self._clock.now_ms()
        before = self._component(component, now_ms)
        self._keep(before, health.succeeded(before, self._policy_of(component), now_ms=now_ms, lag_ms=lag_ms), now_ms)

    def failed(self, component: str, error: BaseException | str, *, is_crash: bool = False) -> None:
        """A component failed. Only the class of an exception is kept; text is taken for a class name."""
        now_ms = self._clock.now_ms()
        kind = error if isinstance(error, str) else type(error).__name__
        before = self._component(component, now_ms)
        policy = self._policy_of(component)
        after = health.failed(before, policy, error=kind[:_NAME_MAX], now_ms=now_ms, is_crash=is_crash)
        self._keep(before, after, now_ms)

    def on_event(self, event: Event) -> None:
        """Take in an event: a listener."""
        now_ms = self._clock.now_ms()
        touched: list[AlertRule] = []
        for rule in self._rules.values():
            if isinstance(rule, FollowRule):
                if self._follow(rule, event, now_ms):
                    touched.append(rule)
                continue
            good, bad = health.tallied(rule, event)
            if good or bad:
                self._windows[rule.name] = self._windows[rule.name].add(now_ms, good=good, bad=bad)
                touched.append(rule)
        for rule in touched:
            self._turn(rule, now_ms)

    # --- what it knows ---------------------------------------------------------------------------

    def components(self) -> Mapping[str, ComponentHealth]:
        """Every component that ever reported, as of now."""
        self._assess(self._clock.now_ms())
        return MappingProxyType(self._components)

    @property
    def overall(self) -> Health:
        """The health of the worst component."""
        return health.worst(self.components())

    def alerts(self) -> tuple[Alert, ...]:
        """The alerts that hold now."""
        self.tick()
        return tuple(alert for alert in self._alerts.values() if alert.level is not None)

    def measures(self) -> tuple[Measure, ...]:
        """Every rule's figure now: ratios and targets met, counts, durations."""
        now_ms = self._clock.now_ms()
        self._assess(now_ms)
        found = ((rule, self._judge(rule, now_ms)) for rule in self._rules.values())
        return tuple(Measure(rule=r.name, value=f.value, samples=f.samples, level=f.level) for r, f in found)

    # --- time ------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let time do its part: silence, durations, deadlines, and windows that empty."""
        now_ms = self._clock.now_ms()
        self._assess(now_ms)
        for rule in list(self._rules.values()):
            if isinstance(rule, FollowRule):
                self._overdue(rule, now_ms)
            self._turn(rule, now_ms)

    async def run(self, *, interval_s: float = 10.0, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Tick every *interval_s* until cancelled; run it in a task group."""
        check_seconds(interval_s, "interval_s")
        task_status.started()
        while True:
            self.tick()
            await anyio.sleep(interval_s)

    # --- inside ----------------------------------------------------------------------------------

    def _policy_of(self, component: str) -> HealthPolicy:
        return self._policies.get(component, self._policy)

    def _component(self, name: str, now_ms: int) -> ComponentHealth:
        known = self._components.get(name)
        if known is not None:
            return known
        to_text(name, "component", _NAME_MAX)
        if len(self._components) >= _COMPONENTS_MAX:
            raise CapacityExceeded(f"more than {_COMPONENTS_MAX} components: name what can fail, not what it works on")
        self._components[name] = health.new_component(name, now_ms=now_ms)
        if not any(isinstance(r, DurationRule) and r.component == name for r in self._rules.values()):
            rule = DurationRule(name=f"not_healthy:{name}", component=name)
            self._rules.setdefault(rule.name, rule)
        return self._components[name]

    def _keep(self, before: ComponentHealth, after: ComponentHealth, now_ms: int) -> None:
        self._components[after.name] = after
        if after.health is before.health:
            return
        details = {
            "before": before.health.value,
            "after": after.health.value,
            "consecutive_failures": after.consecutive_failures,
            "since_ms": after.since_ms,
            "crashes": after.crashes,
        }
        note = f"{before.health.value}->{after.health.value}"
        kind = EventType.HEALTH_CHANGED
        event = Event(type=kind, at_ms=now_ms, subject=after.name, note=note, details=Params.of(details))
        tell(self._listeners, event)

    def _assess(self, now_ms: int) -> None:
        for name, before in list(self._components.items()):
            self._keep(before, health.assessed(before, self._policy_of(name), now_ms=now_ms), now_ms)

    def _follow(self, rule: FollowRule, event: Event, now_ms: int) -> bool:
        """Whether the event settled a subject that the rule waits for."""
        awaited = self._awaited.setdefault(rule.name, {})
        if event.type is rule.after:
            awaited.setdefault(event.subject, now_ms + round(rule.within_s * 1000))
            if len(awaited) > _AWAITED_MAX:  # so many at once is itself a failure to follow
                del awaited[next(iter(awaited))]
                self._windows[rule.name] = self._windows[rule.name].add(now_ms, bad=1)
                return True
        elif event.type is rule.expects or event.type in rule.excused:
            until_ms = awaited.pop(event.subject, None)
            if until_ms is not None and event.type is rule.expects:
                is_late = now_ms > until_ms
                self._windows[rule.name] = self._windows[rule.name].add(now_ms, good=not is_late, bad=is_late)
                return True
        return False

    def _overdue(self, rule: FollowRule, now_ms: int) -> None:
        awaited = self._awaited.get(rule.name, {})
        late = [subject for subject, until_ms in awaited.items() if now_ms > until_ms]
        for subject in late:
            del awaited[subject]
        if late:
            self._windows[rule.name] = self._windows[rule.name].add(now_ms, bad=len(late))

    def _judge(self, rule: AlertRule, now_ms: int) -> Finding:
        if isinstance(rule, DurationRule):
            return rule.judge(self._components.get(rule.component), now_ms=now_ms)
        return rule.judge(self._windows[rule.name], now_ms=now_ms)

    def _turn(self, rule: AlertRule, now_ms: int) -> None:
        finding = self._judge(rule, now_ms)
        before = self._alerts.get(rule.name, Alert(rule=rule.name))
        after, change = health.turn(before, finding, now_ms=now_ms)
        self._alerts[rule.name] = after
        if change is None:
            return
        told: dict[str, object] = {"value": finding.value, "samples": finding.samples}
        if change is Turn.RAISED and after.level is not None:
            kind, level = EventType.ALERT_RAISED, after.level
            told |= {"limit": finding.limit, "for_ms": finding.for_ms}
        else:
            kind, level = EventType.ALERT_CLEARED, before.level or Level.INFO
            told |= {"lasted_ms": now_ms - before.since_ms}
        name = level.name.lower()
        event = Event(type=kind, at_ms=now_ms, subject=rule.name, note=name, details=Params.of({"level": name, **told}))
        tell(self._listeners, event)
