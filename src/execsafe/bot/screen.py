"""What a person sees: progress while it runs, plain tables, and rich's where it is installed and wanted."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs

WIDTH: Final = 100
_NARROWEST: Final = 20


@attrs.frozen(kw_only=True)
class Progress:
    """How far one bot is: signals (or candles) done of all there are, and orders that its venue accepted."""

    name: str
    done: int
    total: int
    orders_accepted: int


Watch: TypeAlias = Callable[[Progress], None]


def is_fancy(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether colours and moving bars are welcome: a terminal, rich at hand, and nobody asked for plain text."""
    plain = any(environment.get(name) for name in ("NO_COLOR", "CI")) or environment.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain and importlib.util.find_spec("rich") is not None


def width(environment: Mapping[str, str] = os.environ) -> int:
    """How wide text may be: what ``COLUMNS`` says, also when piped; never wider than is good to read."""
    said = environment.get("COLUMNS", "")
    return min(WIDTH, max(_NARROWEST, int(said))) if said.isdecimal() else WIDTH


def say(text: str = "") -> None:
    """Print a paragraph, wrapped; at once, also when piped."""
    print("\n".join(textwrap.wrap(text, width())) if text else "", flush=True)


def line(text: str) -> None:
    """Print a line that holds a path or a command: it is for copying, and never broken."""
    print(text, flush=True)


@contextlib.contextmanager
def watching(totals: Mapping[str, int], *, fancy: bool, unit: str = "signals") -> Iterator[Watch]:
    """Show progress; yields what is to be told of it. *totals*: how many *unit* each bot gets, by its name."""
    with _bars(totals, unit) if fancy else _lines(totals, unit) as watch:
        yield watch


@contextlib.contextmanager
def _lines(totals: Mapping[str, int], unit: str) -> Iterator[Watch]:
    """A line for every third of the way, for logs and pipes."""
    steps = {name: {round(total * part / 3) for part in range(1, 4)} for name, total in totals.items()}
    told: set[tuple[str, int]] = set()
    width = max(map(len, totals), default=0)

    def watch(progress: Progress) -> None:
        mark, total = (progress.name, progress.done), totals.get(progress.name, progress.total)
        if progress.done in steps.get(progress.name, ()) and mark not in told:
            told.add(mark)
            say(f"{progress.name:<{width}} {progress.done:>3} of {total} {unit}, {progress.orders_accepted:>3} orders")

    yield watch


@contextlib.contextmanager
def _bars(totals: Mapping[str, int], unit: str) -> Iterator[Watch]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<17}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + ", {task.fields[orders]} orders accepted"),
        TimeElapsedColumn(),
    )
    with Bars(*columns) as bars:
        tasks = {name: bars.add_task(name, total=total, orders=0) for name, total in totals.items()}
        yield lambda p: bars.update(tasks[p.name], completed=p.done, orders=p.orders_accepted)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, fancy: bool) -> None:
    """Print a table; a cell may have several lines."""
    if fancy:
        _rich_table(title, head, rows)
        return
    print(title, *_plain_table(head, rows), sep="\n", flush=True)


def _plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    cells = [[cell.split("\n") for cell in row] for row in (head, *rows)]
    widths = [max(len(line) for row in cells for line in row[column]) for column in range(len(head))]
    for number, row in enumerate(cells):
        for height in range(max(len(cell) for cell in row)):
            lines = [cell[height] if height < len(cell) else "" for cell in row]
            yield "  ".join(line.ljust(width) for line, width in zip(lines, widths, strict=True)).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)


def _rich_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown: Any = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in head:
        shown.add_column(name)
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))  # a cell is data, never markup
    Console().print(shown)
