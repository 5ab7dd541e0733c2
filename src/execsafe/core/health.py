"""Health and alerts as decisions: windows of counts, states of components, rules that raise once and clear once.

Time is an argument, in Unix ms. Nothing here reads a clock.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

import attrs

from execsafe.core.catalogue import Level
from execsafe.core.opening import OpeningState
from execsafe.errors import InvalidInput
from execsafe.model.event import Event, EventType
from execsafe.model.values import check_count, check_seconds, shorten

_BUCKETS: Final = 20
_T = EventType


# --- Counting within a window ------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Window:
    """Good and bad outcomes of the last *span_ms*, in buckets of a twentieth of it: bounded, whatever the rate.

    ``buckets`` are (begin, good, bad), oldest first. What leaves the window leaves it a bucket at a time, so a count
    covers the span, and at most a twentieth more.
    """

    span_ms: int
    buckets: tuple[tuple[int, int, int], ...] = ()

    def add(self, at_ms: int, *, good: int = 0, bad: int = 0) -> Window:
        """With more outcomes. One that is reported late counts in the newest bucket, never in the past."""
        width = max(1, self.span_ms // _BUCKETS)
        begin = at_ms - at_ms % width
        kept = [b for b in self.buckets if b[0] + width > at_ms - self.span_ms]
        if kept and kept[-1][0] >= begin:
            last = kept.pop()
            kept.append((last[0], last[1] + good, last[2] + bad))
        else:
            kept.append((begin, good, bad))
        return attrs.evolve(self, buckets=tuple(kept))

    def counts(self, now_ms: int) -> tuple[int, int]:
        """(good, bad) of the last span."""
        width = max(1, self.span_ms // _BUCKETS)
        kept = [b for b in self.buckets if b[0] + width > now_ms - self.span_ms]
        return sum(b[1] for b in kept), sum(b[2] for b in kept)


# --- Components --------------------------------------------------------------------------------------


class Health(enum.StrEnum):
    """How a component is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"  # failing, or silent; it is still being tried
    DOWN = "down"


@attrs.frozen(kw_only=True)
class HealthPolicy:
    """When a component is degraded, and when it is down.

    Attributes:
        degraded_after: consecutive failures. 1: a failure is a fact.
        down_after: consecutive failures. 5: four retries were not enough. (A processor was once "degraded" for eleven
            failures with its attempts counted as zero.)
        silent_after_s: a component that reported, and has not for this long, is degraded; after twice as long it is
            down. None: silence means nothing. Silence is the one failure that nobody reports.
    """

    degraded_after: int = 1
    down_after: int = 5
    silent_after_s: float | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse values with which a state could never be reached."""
        check_count(self.degraded_after, "degraded_after")
        check_count(self.down_after, "down_after")
        if self.down_after < self.degraded_after:
            raise InvalidInput(f"down_after {self.down_after} must not be below degraded_after {self.degraded_after}")
        if self.silent_after_s is not None:
            check_seconds(self.silent_after_s, "silent_after_s")


@attrs.frozen(kw_only=True)
class ComponentHealth:
    """What is known of one component.

    Attributes:
        name: of the component, e.g. ``"signals"``.
        health: its state.
        since_ms: since when it is in this state.
        not_healthy_since_ms: since when it has not been healthy; None while it is.
        consecutive_failures: since the last success.
        failures, successes, crashes: since the start. A crash is a failure that ended the component.
        started_at_ms: first report.
        last_event_at_ms: last success; None before the first.
        lag_ms: how far behind it said it was, at its last report that said so.
        error: class of the last failure.
    """

    name: str
    health: Health = Health.HEALTHY
    since_ms: int = 0
    not_healthy_since_ms: int | None = None
    consecutive_failures: int = 0
    failures: int = 0
    successes: int = 0
    crashes: int = 0
    started_at_ms: int = 0
    last_event_at_ms: int | None = None
    lag_ms: int | None = None
    error: str = ""

    def uptime_ms(self, now_ms: int) -> int:
        """Time since the first report."""
        return max(0, now_ms - self.started_at_ms)

    def age_ms(self, now_ms: int) -> int:
        """Time since its last success, or since it started without one."""
        last_ms = self.started_at_ms if self.last_event_at_ms is None else self.last_event_at_ms
        return max(0, now_ms - last_ms)


def new_component(name: str, *, now_ms: int) -> ComponentHealth:
    """A component that begins now."""
    return ComponentHealth(name=name, since_ms=now_ms, started_at_ms=now_ms)


def succeeded(
    before: ComponentHealth, policy: HealthPolicy, *, now_ms: int, lag_ms: int | None = None
) -> ComponentHealth:
    """One success ends a row of failures."""
    after = attrs.evolve(
        before,
        successes=before.successes + 1,
        consecutive_failures=0,
        last_event_at_ms=now_ms,
        lag_ms=before.lag_ms if lag_ms is None else lag_ms,
    )
    return assessed(after, policy, now_ms=now_ms)


def failed(
    before: ComponentHealth, policy: HealthPolicy, *, error: str, now_ms: int, is_crash: bool = False
) -> ComponentHealth:
    """One failure more; *error* is a class name, never a message."""
    after = attrs.evolve(
        before,
        failures=before.failures + 1,
        crashes=before.crashes + is_crash,
        consecutive_failures=before.consecutive_failures + 1,
        error=error,
    )
    return assessed(after, policy, now_ms=now_ms)


def assessed(before: ComponentHealth, policy: HealthPolicy, *, now_ms: int) -> ComponentHealth:
    """The state that follows from failures and silence by now."""
    health = _health(before, policy, now_ms)
    if health is before.health:
        return before
    since_ms = before.not_healthy_since_ms if before.not_healthy_since_ms is not None else now_ms
    return attrs.evolve(
        before,
        health=health,
        since_ms=now_ms,
        not_healthy_since_ms=None if health is Health.HEALTHY else since_ms,
    )


def _health(component: ComponentHealth, policy: HealthPolicy, now_ms: int) -> Health:
    silent_ms = None if policy.silent_after_s is None else round(policy.silent_after_s * 1000)
    age_ms = component.age_ms(now_ms)
    if component.consecutive_failures >= policy.down_after or (silent_ms is not None and age_ms >= 2 * silent_ms):
        return Health.DOWN
    if component.consecutive_failures >= policy.degraded_after or (silent_ms is not None and age_ms >= silent_ms):
        return Health.DEGRADED
    return Health.HEALTHY


# --- Alert rules -------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Finding:
    """What a rule sees now. ``level`` None: all is well. ``value`` and ``limit`` are shares, counts or milliseconds."""

    level: Level | None = None
    value: float = 0.0
    limit: float = 0.0
    samples: int = 0
    for_ms: int = 0


@attrs.frozen(kw_only=True)
class DurationRule:
    """A component that has not been healthy for too long.

    The defaults are an operator's: after half an hour somebody should watch it, after an hour somebody should look.
    """

    name: str
    component: str
    warn_after_s: float = 1_800.0
    error_after_s: float = 3_600.0

    def __attrs_post_init__(self) -> None:
        """Refuse durations that make no sense."""
        check_seconds(self.warn_after_s, "warn_after_s")
        check_seconds(self.error_after_s, "error_after_s")

    def judge(self, component: ComponentHealth | None, *, now_ms: int) -> Finding:
        """Whether it holds now."""
        if component is None or component.not_healthy_since_ms is None:
            return Finding()
        for_ms = now_ms - component.not_healthy_since_ms
        warn_ms, error_ms = round(self.warn_after_s * 1000), round(self.error_after_s * 1000)
        level = Level.ERROR if for_ms >= error_ms else Level.WARNING if for_ms >= warn_ms else None
        limit = error_ms if level is Level.ERROR else warn_ms
        return Finding(level=level, value=float(for_ms), limit=float(limit), for_ms=for_ms)


@attrs.frozen(kw_only=True)
class RatioRule:
    """A success ratio that is too low, within a window, and only with enough samples.

    The defaults: below 50 % is critical, from 50 % to below 80 % is the warning band, 80 % is the target. Fewer than
    *samples_min* outcomes say nothing: one failure of one is 0 %, and no news.

    Attributes:
        good, bad: types of events that count as a success and as a failure.
    """

    name: str
    good: frozenset[EventType]
    bad: frozenset[EventType]
    critical_below: float = 0.50
    target: float = 0.80
    samples_min: int = 10
    window_s: float = 3_600.0

    def __attrs_post_init__(self) -> None:
        """Refuse bands that make no sense."""
        check_count(self.samples_min, "samples_min")
        check_seconds(self.window_s, "window_s")
        if not 0 <= self.critical_below <= self.target <= 1:
            raise InvalidInput(
                f"0 <= critical_below <= target <= 1 must hold, was {self.critical_below}, {self.target}"
            )
        if self.good & self.bad:
            raise InvalidInput(f"{self.name}: an event cannot be good and bad: {shorten(sorted(self.good & self.bad))}")

    def judge(self, window: Window, *, now_ms: int) -> Finding:
        """Whether it holds now."""
        good, bad = window.counts(now_ms)
        samples = good + bad
        if samples < self.samples_min:
            return Finding(samples=samples, value=good / samples if samples else 1.0)
        ratio = good / samples
        level = Level.CRITICAL if ratio < self.critical_below else Level.WARNING if ratio < self.target else None
        limit = self.critical_below if level is Level.CRITICAL else self.target
        return Finding(level=level, value=ratio, limit=limit, samples=samples)


@attrs.frozen(kw_only=True)
class CountRule:
    """An event that should not happen at all, or not so often.

    Attributes:
        events: types that count.
        limit: as many within the window raise it. 1: each one is worth an alert.
        level: how loud.
    """

    name: str
    events: frozenset[EventType]
    limit: int = 1
    level: Level = Level.CRITICAL
    window_s: float = 3_600.0

    def __attrs_post_init__(self) -> None:
        """Refuse limits that make no sense."""
        check_count(self.limit, "limit")
        check_seconds(self.window_s, "window_s")

    def judge(self, window: Window, *, now_ms: int) -> Finding:
        """Whether it holds now."""
        _, count = window.counts(now_ms)
        level = self.level if count >= self.limit else None
        return Finding(level=level, value=float(count), limit=float(self.limit), samples=count)


@attrs.frozen(kw_only=True)
class FollowRule:
    """Whatever *after* happened to must, within a time, be followed by *expects* for the same subject: a 100 % target.

    Subjects that wait still are no samples. One that ended meanwhile (*excused*) is none either.
    """

    name: str
    after: EventType
    expects: EventType
    excused: frozenset[EventType] = frozenset()
    within_s: float = 60.0
    target: float = 1.0
    level: Level = Level.CRITICAL
    window_s: float = 86_400.0

    def __attrs_post_init__(self) -> None:
        """Refuse targets that make no sense."""
        check_seconds(self.within_s, "within_s")
        check_seconds(self.window_s, "window_s")
        if not 0 < self.target <= 1:
            raise InvalidInput(f"target must be above 0 and at most 1, was {shorten(self.target)}")

    def judge(self, window: Window, *, now_ms: int) -> Finding:
        """Whether it holds now."""
        good, bad = window.counts(now_ms)
        samples = good + bad
        ratio = good / samples if samples else 1.0
        level = self.level if ratio < self.target else None
        return Finding(level=level, value=ratio, limit=self.target, samples=samples)


AlertRule: TypeAlias = DurationRule | RatioRule | CountRule | FollowRule
"""What may raise an alert."""

ENTRIES: Final = RatioRule(
    name="entries", good=frozenset({_T.STOP_PLACED}), bad=frozenset({_T.ENTRY_FAILED, _T.ENTRY_ROLLED_BACK})
)
STOP_CREATION: Final = CountRule(name="stop_creation", events=frozenset({_T.STOP_FAILED}))
ROLLBACKS: Final = CountRule(
    name="rollbacks", events=frozenset({_T.ENTRY_ROLLED_BACK}), level=Level.ERROR, window_s=86_400.0
)
STOPS_PLACED: Final = FollowRule(
    name="stops_placed",
    after=_T.POSITION_OPENED,
    expects=_T.STOP_PLACED,
    excused=frozenset({_T.POSITION_CLOSED, _T.POSITION_DUST}),
)
TRAILING_CREATED: Final = FollowRule(
    name="trailing_created",
    after=_T.POSITION_OPENED,
    expects=_T.TRAILING_STOP_CREATED,
    excused=frozenset({_T.POSITION_CLOSED, _T.POSITION_DUST}),
    level=Level.ERROR,
)
DEFAULT_RULES: Final[tuple[AlertRule, ...]] = (ENTRIES, STOP_CREATION, ROLLBACKS, STOPS_PLACED)
"""What every bot wants to know: entries that succeed, stops that fail, rollbacks, positions without a stop.

``TRAILING_CREATED`` is for bots that trail every position."""
HEDGES: Final = RatioRule(
    name="hedges", good=frozenset({_T.HEDGE_COMPLETED}), bad=frozenset({_T.HEDGE_ABORTED, _T.RESIDUAL_EXPOSURE})
)
RESIDUALS: Final = CountRule(name="residuals", events=frozenset({_T.RESIDUAL_EXPOSURE}))
HEDGING_RULES: Final[tuple[AlertRule, ...]] = (HEDGES, RESIDUALS)
"""For bots whose positions have no stops, because legs protect one another: trades that are given up, and what is left
of them."""


# --- Alerts: one per change of state -----------------------------------------------------------------


class Turn(enum.StrEnum):
    """What a new finding means for an alert."""

    RAISED = "raised"  # also when it gets louder
    CLEARED = "cleared"


@attrs.frozen(kw_only=True)
class Alert:
    """An alert as it stands. ``level`` None: quiet."""

    rule: str
    level: Level | None = None
    since_ms: int = 0


def turn(before: Alert, finding: Finding, *, now_ms: int) -> tuple[Alert, Turn | None]:
    """The alert after a finding, and whether somebody is to be told: once when it rises, once when it ends.

    An alert stays as loud as it was until it ends: a ratio that goes up and down at a limit is one alert.
    """
    if finding.level is None:
        quiet = attrs.evolve(before, level=None, since_ms=now_ms)
        return (before, None) if before.level is None else (quiet, Turn.CLEARED)
    if before.level is None:
        return attrs.evolve(before, level=finding.level, since_ms=now_ms), Turn.RAISED
    if finding.level > before.level:
        return attrs.evolve(before, level=finding.level), Turn.RAISED
    return before, None


def tallied(rule: AlertRule, event: Event) -> tuple[int, int]:
    """What an event adds to a rule's window: (good, bad). What may come again has not failed."""
    kind = event.type
    if kind is EventType.ENTRY_FAILED and event.details.thaw().get("state") == OpeningState.NOT_SENT.value:
        return 0, 0
    match rule:
        case RatioRule():
            return int(kind in rule.good), int(kind in rule.bad)
        case CountRule():
            return 0, int(kind in rule.events)
        case _:
            return 0, 0


def check_rules(rules: Iterable[AlertRule]) -> tuple[AlertRule, ...]:
    """The rules, refusing two of one name: each would clear what the other raised."""
    found = tuple(rules)
    names = [rule.name for rule in found]
    if len(set(names)) != len(names):
        raise InvalidInput(f"two alert rules have one name: {shorten(sorted(names), 200)}")
    return found


def worst(components: Mapping[str, ComponentHealth]) -> Health:
    """The health of the whole: that of its worst part."""
    order = (Health.HEALTHY, Health.DEGRADED, Health.DOWN)
    return max((c.health for c in components.values()), key=order.index, default=Health.HEALTHY)
