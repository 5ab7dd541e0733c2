"""Draws a :class:`~execsafe.bot.report_page.story.RunReport` as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
)
from execsafe.bot.report_page.svg import Level, Line, Span, bar_chart, line_chart

_KINDS: Final = ("first", "second", "third", "fourth")
_MINUTE_MS: Final = 60_000


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
    if report.breaches:
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
        cells = "".join(
            f'<td class="{"good" if name in verdict.better else "bad"}">{escape(verdict.answers.get(name, "–"))}</td>'
            for name in names
        )
        rows.append(f'<tr><th scope="row">{escape(verdict.question)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return f'<table class="comparison"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _bot(bot: BotStory, start_ms: int) -> Iterator[str]:
    if bot.funnel is not None:
        yield _figure("Signals, from arrival to position", bar_chart(bot.funnel.stages, title="Funnel of signals"))
        if bot.funnel.drops:
            drops = sorted(bot.funnel.drops.items(), key=lambda item: -item[1])
            yield _figure("Why the others were dropped", bar_chart(drops, title="Reasons for drops", kind="bar drop"))
    if bot.orders_per_signal:
        bars = [(f"{n} order{'' if n == 1 else 's'}", c) for n, c in sorted(bot.orders_per_signal.items())]
        yield _figure("Orders that came to exist per order meant", bar_chart(bars, title="Orders per order meant"))
    if bot.exposure:
        lines = [
            Line(name=symbol, points=_minutes(points, start_ms), kind=_KINDS[n % len(_KINDS)], stepped=True)
            for n, (symbol, points) in enumerate(sorted(bot.exposure.items()))
        ]
        chart = line_chart(lines, title="Exposure over time", unit="position, base")
        yield _figure("Exposure over time, from the venue's ledger", chart)
    if bot.positions:
        yield _unprotected(bot.positions)
        yield f"<details{' open' if len(bot.positions) < 4 else ''}><summary>Positions: {len(bot.positions)}</summary>"  # noqa: PLR2004
        yield from (_position(position) for position in bot.positions)
        yield "</details>"
    if bot.ghosts:
        yield _ghosts(bot.ghosts, start_ms)


def _position(position: PositionStory) -> str:
    at_ms = position.opened_at_ms
    lines = [Line(name="price", points=_minutes(position.prices, at_ms), kind="price")]
    if position.stop:
        lines.append(Line(name="stop", points=_minutes(position.stop, at_ms), kind="stop", stepped=True))
    levels = [Level(name=level.name, y=float(level.price)) for level in position.levels]
    if position.entry_price is not None:
        levels.append(Level(name="entry", y=float(position.entry_price), kind="entry"))
    spans = [
        Span(start=_minute(start, at_ms), end=_minute(end, at_ms), title=f"no stop for {_seconds(end - start)}")
        for start, end in position.unprotected
    ]
    chart = line_chart(lines, levels=levels, spans=spans, title=f"{position.name}: price, levels, stop", unit="price")
    bare = _seconds(position.unprotected_ms)
    text = f"{position.side} {position.symbol}, {position.outcome or 'open'}, unprotected {bare}"
    return _figure(f"{position.name}: {text}", chart)


def _unprotected(positions: Iterable[PositionStory]) -> str:
    rows = [(p.name, p.side, p.symbol, p.outcome or "open", _seconds(p.unprotected_ms)) for p in positions]
    table = _table(("position", "side", "symbol", "outcome", "time unprotected"), rows, kind="wide")
    return f"<h4>Time unprotected</h4>{table}"


def _ghosts(ghosts: Iterable[GhostStory], start_ms: int) -> str:
    rows = []
    for ghost in ghosts:
        lasted = "still open" if ghost.settled_at_ms is None else _seconds(ghost.settled_at_ms - ghost.doubted_at_ms)
        at = f"{_minute(ghost.doubted_at_ms, start_ms):.1f} min"
        rows.append((ghost.key, at, ghost.cause, ghost.verdict, str(ghost.looks), lasted))
    head = ("order", "in doubt at", "because", "settled as", "looks", "after")
    return f"<h4>Ghosts: orders in doubt, and how each was settled</h4>{_table(head, rows, kind='wide')}"


def _table(head: tuple[str, ...], rows: Iterable[Iterable[str]], *, kind: str) -> str:
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head) if any(head) else ""
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    thead = f"<thead><tr>{titles}</tr></thead>" if titles else ""
    return f'<div class="scroll"><table class="{kind}">{thead}<tbody>{lines}</tbody></table></div>'


def _figure(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>"


def _minutes(points: Points, start_ms: int) -> list[tuple[float, float]]:
    return [(_minute(at, start_ms), float(value)) for at, value in points]


def _minute(at_ms: int, start_ms: int) -> float:
    return (at_ms - start_ms) / _MINUTE_MS


def _seconds(duration_ms: int) -> str:
    return f"{duration_ms} ms" if duration_ms < 10_000 else f"{duration_ms / 1000:.1f} s"  # noqa: PLR2004
