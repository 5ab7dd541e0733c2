"""Draws a :class:`~execsafe.bot.report_page.story.RunReport` as one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from typing import Final

from execsafe.bot.report_page.story import (
    BotStory,
    GhostStory,
    Points,
    PositionStory,
    RunReport,
    StrategyStory,
    Verdict,
)
from execsafe.bot.report_page.svg import Level, Line, Span, bar_chart, line_chart

_KINDS: Final = ("first", "second", "third", "fourth")
_SHOWN: Final = 3
"""Positions that are drawn at once; the others are a click away."""
_LONG_MS: Final = 1_000


def render(report: RunReport) -> str:
    """The page, complete: style and drawings are in it, and it asks for nothing from anywhere."""
    style = (resources.files("execsafe.bot.report_page") / "page.css").read_text(encoding="utf-8")
    body = "".join(_body(report))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def _body(report: RunReport) -> Iterator[str]:
    yield f"<h1>{escape(report.title)}</h1><p>{escape(report.about)}</p>"
    if report.breaches is None:
        pass  # nobody judged
    elif report.breaches:
        items = "".join(f"<li>{escape(breach)}</li>" for breach in report.breaches)
        yield f'<section class="verdict bad"><h2>A guarantee was broken</h2><ul>{items}</ul></section>'
    else:
        yield '<section class="verdict good"><h2>Every guarantee held</h2></section>'
    if report.facts:
        yield _table(("", ""), report.facts.items(), kind="facts")
    for story in report.strategies:
        yield from _strategy(story)


def _strategy(story: StrategyStory) -> Iterator[str]:
    start_ms = min((at for bot in story.bots for at in _instants(bot)), default=0)
    name = escape(story.name)
    yield f'<section class="strategy" id="{name}"><h2>{name}</h2><p>{escape(story.about)}</p>'
    if story.verdicts:
        yield _comparison(story)
    for bot in story.bots:
        yield f"<h3>{escape(story.name)}: {escape(bot.name)}</h3>"
        yield from _bot(bot, start_ms)
    yield "</section>"


def _instants(bot: BotStory) -> Iterator[int]:
    for points in bot.exposure.values():
        yield from (at for at, _ in points[:1])
    yield from (position.opened_at_ms for position in bot.positions)
    yield from (ghost.doubted_at_ms for ghost in bot.ghosts)


def _comparison(story: StrategyStory) -> str:
    names = [bot.name for bot in story.bots]
    rows = []
    for verdict in story.verdicts:
        cells = "".join(f"<td{_mark(verdict, name)}>{_lines(verdict.answers.get(name, '–'))}</td>" for name in names)
        kind = ' class="sub"' if verdict.question.startswith(" ") else ""
        rows.append(f'<tr{kind}><th scope="row">{escape(verdict.question.strip())}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    table = f'<table class="comparison"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _mark(verdict: Verdict, name: str) -> str:
    if verdict.better is None:
        return ""
    return f' class="{"good" if name in verdict.better else "bad"}"'


def _lines(text: str) -> str:
    return "<br>".join(escape(line) for line in text.split("\n"))


def _bot(bot: BotStory, start_ms: int) -> Iterator[str]:
    if bot.funnel is not None:
        yield _figure("Signals, from arrival to position", bar_chart(bot.funnel.stages, title="Funnel of signals"))
        if bot.funnel.drops:
            drops = sorted(bot.funnel.drops.items(), key=lambda item: -item[1])
            yield _figure("Why the others were dropped", bar_chart(drops, title="Reasons for drops", kind="bar drop"))
    if bot.orders_per_signal:
        bars = [(f"{n} order{'' if n == 1 else 's'}", c) for n, c in sorted(bot.orders_per_signal.items())]
        yield _figure("Orders that came to exist where one was meant", bar_chart(bars, title="Orders per order meant"))
    if bot.exposure:
        lines = [
            Line(
                name=symbol.partition(":")[0],
                points=_seconds_since(points, start_ms),
                kind=_KINDS[n % len(_KINDS)],
                stepped=True,
            )
            for n, (symbol, points) in enumerate(sorted(bot.exposure.items()))
        ]
        chart = line_chart(lines, title="Exposure over time", unit="position, base")
        yield _figure("Exposure over time, from the venue's ledger", chart)
    if bot.positions:
        yield from _positions(bot.positions)
    if bot.ghosts:
        yield _ghosts(bot.ghosts, start_ms)


def _positions(positions: Sequence[PositionStory]) -> Iterator[str]:
    """The ones that tell most, and the rest behind a click."""
    drawn = sorted(positions, key=lambda p: (-p.unprotected_ms // _LONG_MS, -len(p.stop), p.opened_at_ms))
    yield "<h4>Positions: price, levels and stop</h4>"
    yield from (_position(position) for position in drawn[:_SHOWN])
    if drawn[_SHOWN:]:
        yield f"<details><summary>The other {len(drawn) - _SHOWN} positions</summary>"
        yield from (_position(p) for p in sorted(drawn[_SHOWN:], key=lambda p: p.opened_at_ms))
        yield "</details>"
    yield _unprotected(positions)


def _position(position: PositionStory) -> str:
    at_ms = position.opened_at_ms
    lines = []
    if position.prices:
        lines.append(Line(name="price", points=_seconds_since(position.prices, at_ms), kind="price"))
    if position.stop:
        lines.append(Line(name="stop", points=_seconds_since(position.stop, at_ms), kind="stop", stepped=True))
    levels = [Level(name=level.name, y=float(level.price)) for level in position.levels]
    if position.entry_price is not None:
        levels.append(Level(name="entry", y=float(position.entry_price), kind="entry"))
    spans = [
        Span(start=_since(start, at_ms), end=_since(end, at_ms), title=f"no stop for {_duration(end - start)}")
        for start, end in position.unprotected
    ]
    chart = line_chart(lines, levels=levels, spans=spans, title=f"{position.name}: price, levels, stop", unit="price")
    bare = f", {_duration(position.unprotected_ms)} without a stop" if position.unprotected else ""
    return _figure(f"{position.name}: {position.side}, {position.outcome or 'open'}{bare}", chart)


def _unprotected(positions: Iterable[PositionStory]) -> str:
    rows = [(p.name, p.side, p.outcome or "open", _duration(p.unprotected_ms)) for p in positions if p.unprotected]
    if not rows:
        return "<p>No position was without a stop.</p>"
    table = _table(("position", "side", "outcome", "time without a stop"), rows, kind="wide")
    return f"<h4>Time unprotected</h4>{table}"


def _ghosts(ghosts: Sequence[GhostStory], start_ms: int) -> str:
    has_looks = any(ghost.looks is not None for ghost in ghosts)
    rows = []
    for ghost in ghosts:
        lasted = "still open" if ghost.settled_at_ms is None else _duration(ghost.settled_at_ms - ghost.doubted_at_ms)
        at = f"{_since(ghost.doubted_at_ms, start_ms):.1f} s"
        looks = ("–" if ghost.looks is None else str(ghost.looks),) if has_looks else ()
        rows.append((ghost.key, at, ghost.cause, ghost.verdict, *looks, lasted))
    head = ("order", "in doubt at", "because", "settled as", *(("looks",) if has_looks else ()), "after")
    counts = Counter(ghost.verdict for ghost in ghosts)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    table = _table(head, rows, kind="wide")
    return (
        f"<h4>Ghosts: orders in doubt, and how each was settled</h4><p>{len(ghosts)} in doubt: {escape(told)}.</p>"
        f"<details{' open' if len(ghosts) <= _SHOWN else ''}><summary>Each of them</summary>{table}</details>"
    )


def _table(head: tuple[str, ...], rows: Iterable[Iterable[str]], *, kind: str) -> str:
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head) if any(head) else ""
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    thead = f"<thead><tr>{titles}</tr></thead>" if titles else ""
    return f'<div class="scroll"><table class="{kind}">{thead}<tbody>{lines}</tbody></table></div>'


def _figure(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>"


def _seconds_since(points: Points, start_ms: int) -> list[tuple[float, float]]:
    return [(_since(at, start_ms), float(value)) for at, value in points]


def _since(at_ms: int, start_ms: int) -> float:
    return (at_ms - start_ms) / 1_000


def _duration(duration_ms: int) -> str:
    return f"{duration_ms} ms" if duration_ms < 10_000 else f"{duration_ms / 1000:.1f} s"  # noqa: PLR2004
