"""Line and bar charts as inline SVG: no script, no font, no network. Colours are CSS classes of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

import attrs

_WIDTH: Final = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 96, 12, 28
_BAR_PX: Final = 26
_BAR_LABEL_PX: Final = 190
_TICKS: Final = 4
_LABEL_GAP_PX: Final = 12
_FLAT: Final = 1e-9  # a smaller difference is none: floats could not tell the ticks apart
_NOTHING: Final = 1e-12
_TIMES: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_NICE: Final = (1, 2, 2.5, 5, 10)


@attrs.frozen(kw_only=True)
class Line:
    """One curve: (x, y) points. ``stepped`` holds each value until the next; ``kind`` is its CSS class."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str
    stepped: bool = False


@attrs.frozen(kw_only=True)
class Level:
    """A horizontal line with its name at the right."""

    name: str
    y: float
    kind: str = "level"


@attrs.frozen(kw_only=True)
class Span:
    """A shaded stretch of x with what it means."""

    start: float
    end: float
    title: str


@attrs.frozen
class _Scale:
    low: float
    high: float
    start_px: float
    end_px: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start_px + share * (self.end_px - self.start_px), 1)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    unit: str,
    levels: Sequence[Level] = (),
    spans: Sequence[Span] = (),
    height: int = 220,
) -> str:
    """Curves over time: x in seconds, y in *unit*. *title* is what a screen reader says."""
    xs = [x for line in lines for x, _ in line.points] + [x for span in spans for x in (span.start, span.end)]
    ys = [y for line in lines for _, y in line.points] + [level.y for level in levels]
    if not xs or not ys:
        return f'<p class="empty">{escape(title)}: nothing to show.</p>'
    x = _Scale(*_padded(min(xs), max(xs), 0), _LEFT, _WIDTH - _RIGHT)
    y = _Scale(*_padded(min(ys), max(ys), 0.06), height - _BOTTOM, _TOP)
    parts = [*_grid(x, y, height, unit)]
    for span in spans:
        width = max(x(span.end) - x(span.start), 2)
        parts.append(
            f'<rect class="span" x="{x(span.start)}" y="{_TOP}" width="{width:.1f}" height="{height - _TOP - _BOTTOM}">'
            f"<title>{escape(span.title)}</title></rect>"
        )
    parts += [_level(level, y) for level in levels]
    parts += [_path(line, x, y) for line in lines]
    parts += _names(levels, lines, y, height)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def bar_chart(bars: Sequence[tuple[str, int]], *, title: str, kind: str = "bar") -> str:
    """Horizontal bars with their counts."""
    most = max((count for _, count in bars), default=0)
    if not most:
        return f'<p class="empty">{escape(title)}: nothing to show.</p>'
    x = _Scale(0, most, 0, _WIDTH - _BAR_LABEL_PX - 60)
    parts = []
    for row, (name, count) in enumerate(bars):
        y, width = row * _BAR_PX, max(x(count), 1)
        parts.append(
            f'<text x="{_BAR_LABEL_PX - 8}" y="{y + 17}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="{kind}" x="{_BAR_LABEL_PX}" y="{y + 4}" width="{width}" height="{_BAR_PX - 9}" rx="2"/>'
            f'<text class="count" x="{_BAR_LABEL_PX + width + 6}" y="{y + 17}">{count}</text>'
        )
    height = len(bars) * _BAR_PX
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if high - low <= max(abs(low), abs(high), _NOTHING / _FLAT) * _FLAT:
        pad = (abs(low) if abs(low) > _NOTHING else 1) * 0.05
        return low - pad, high + pad
    pad = (high - low) * share
    return low - pad, high + pad


def _grid(x: _Scale, y: _Scale, height: int, unit: str) -> Iterable[str]:
    for value in ticks(y.low, y.high):
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value)}" y2="{y(value)}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{_number(value)}</text>'
    size, name = next((item for item in _TIMES if x.high - x.low >= _TICKS / 2 * item[0]), _TIMES[-1])
    for value in ticks(x.low / size, x.high / size):
        yield f'<text x="{x(value * size)}" y="{height - 8}" text-anchor="middle">{_number(value)} {name}</text>'
    yield f'<text class="unit" x="{_LEFT}" y="{_TOP - 2}">{escape(unit)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between *low* and *high*, about four."""
    raw = (high - low) / _TICKS
    power = 10 ** math.floor(math.log10(raw))
    step = next(nice * power for nice in _NICE if nice * power >= raw * 0.999)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:.6g}"


def _level(level: Level, y: _Scale) -> str:
    return f'<line class="{level.kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(level.y)}" y2="{y(level.y)}"/>'


def _path(line: Line, x: _Scale, y: _Scale) -> str:
    steps: list[str] = []
    for number, (at, value) in enumerate(line.points):
        if line.stepped and number:
            steps.append(f"H{x(at)}")
        steps.append(f"{'L' if number else 'M'}{x(at)} {y(value)}")
    return f'<path class="line {line.kind}" d="{"".join(steps)}"><title>{escape(line.name)}</title></path>'


def _names(levels: Sequence[Level], lines: Sequence[Line], y: _Scale, height: int) -> list[str]:
    """Names at the right edge, moved apart where they would overlap."""
    wanted = [(y(level.y), level.name, level.kind) for level in levels]
    wanted += [(y(line.points[-1][1]), line.name, line.kind) for line in lines if line.points]
    places, last = [], float("-inf")
    for at, _, _ in sorted(wanted):
        last = max(at + 4, last + _LABEL_GAP_PX)
        places.append(last)
    too_low = max(0.0, last - (height - 4))  # then all move up together
    return [
        f'<text class="name {kind}" x="{_WIDTH - _RIGHT + 6}" y="{place - too_low:.1f}">{escape(name)}</text>'
        for place, (_, name, kind) in zip(places, sorted(wanted), strict=True)
    ]
