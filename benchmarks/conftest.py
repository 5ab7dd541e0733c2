"""Shared by the benchmarks: measuring beside a floor in the same run, and the table of ratios at its end.

Absolute times belong to a machine; what travels is the ratio to a floor measured in the same minute on the same
machine. `EXECSAFE_STRICT_BENCH=1` asserts the ratios that are promised (*reach*); without it a benchmark fails only
where it is worse by a factor of four, which no busy machine explains. Where a prototype or a peer shows that more is
possible, the table says what is aimed at (*aim*) beside what is promised.
"""

import os
import time
from collections.abc import Awaitable, Callable

import attrs
import pytest

STRICT = os.environ.get("EXECSAFE_STRICT_BENCH") == "1"
LENIENCE = 1.0 if STRICT else 4.0


@attrs.frozen
class Row:
    name: str
    ours_ns: float
    floor_ns: float
    floor: str
    reach: float | None
    aim: float | None

    @property
    def ratio(self) -> float:
        return self.ours_ns / self.floor_ns


_rows: list[Row] = []


@pytest.fixture
def ratio() -> Callable[..., float]:
    """`ratio(name, ours_ns, floor_ns, floor="what it is", reach=2.5)`: note it for the table, check it, return it.

    *reach* is the largest ratio that is promised, None: for information; *aim* the one to get to, if that is another.
    Any unit will do, if both have the same.
    """

    def note(
        name: str,
        ours_ns: float,
        floor_ns: float,
        *,
        floor: str = "",
        reach: float | None = None,
        aim: float | None = None,
    ) -> float:
        row = Row(name, ours_ns, floor_ns, floor, reach, aim)
        _rows.append(row)
        assert reach is None or row.ratio <= reach * LENIENCE, f"{name}: {row.ratio:.2f}, promised {reach:.2f}"
        return row.ratio

    return note


@pytest.fixture
def beside() -> Callable[..., tuple[float, float]]:
    """`beside(ours, floor, per=1)`: the shortest of many short runs of each, taken in turns, in ns per unit.

    Turns, because a neighbour on the machine would otherwise meet one and spare the other. With *prepare*, two
    functions, each run works on what its own one has just made (which does not count).
    """

    def measure(
        ours: Callable[..., object],
        floor: Callable[..., object],
        *,
        per: int = 1,
        rounds: int = 60,
        prepare: tuple[Callable[[], object], Callable[[], object]] | None = None,
    ) -> tuple[float, float]:
        best = [float("inf"), float("inf")]
        for _ in range(rounds):
            for side, work in enumerate((ours, floor)):
                made = () if prepare is None else (prepare[side](),)
                best[side] = min(best[side], _timed(work, *made))
        return best[0] / per, best[1] / per

    return measure


@pytest.fixture
def beside_async() -> Callable[..., tuple[float, float]]:
    """The same for two coroutine functions, on one asyncio loop."""
    import anyio

    def measure(
        ours: Callable[[], Awaitable[object]],
        floor: Callable[[], Awaitable[object]],
        *,
        per: int = 1,
        rounds: int = 60,
    ) -> tuple[float, float]:
        async def main() -> tuple[float, float]:
            best = [float("inf"), float("inf")]
            for _ in range(rounds):
                for side, work in enumerate((ours, floor)):
                    began = time.perf_counter_ns()
                    await work()
                    best[side] = min(best[side], time.perf_counter_ns() - began)
            return best[0] / per, best[1] / per

        return anyio.run(main)

    return measure


def _timed(work: Callable[..., object], *args: object) -> int:
    began = time.perf_counter_ns()
    work(*args)
    return time.perf_counter_ns() - began


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _rows:
        return
    terminalreporter.section("ratios")
    width = max(len(row.name) for row in _rows)
    for row in _rows:
        terminalreporter.line(
            f"{row.name:<{width}}  {row.ours_ns:>12,.1f} / {row.floor_ns:>12,.1f}  = {row.ratio:7.2f}"
            + _beside(row.ratio, "reach", row.reach)
            + _beside(row.ratio, "aim", row.aim)
            + (f"   ({row.floor})" if row.floor else "")
        )


def _beside(ratio: float, word: str, most: float | None) -> str:
    return "" if most is None else f"  {word} {most:.2f}{'' if ratio <= most else ' MISSED'}"
