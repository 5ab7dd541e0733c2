"""Which test shows which requirement: reads the marks in the tests, and writes ``docs/requirements.md`` from them.

    python tests/requirements.py

Rows and their texts are in ``docs/requirements.toml``. Tests carry ``@pytest.mark.row("S3-20", …)``; a module's
``pytestmark`` and a class's decorators count for every test in them.
"""

import ast
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "docs" / "requirements.toml"
PAGE = ROOT / "docs" / "requirements.md"
OUT_OF_SCOPE_MAX = 10

HEAD = """\
# Requirements

Drawn from an analysis of five earlier trading systems: what they did, where it failed, and what execsafe does instead.
Every row is shown by the tests named beside it; a row without a passing test fails the checks. This page is written by
`python tests/requirements.py`.

"""
SECTIONS = {
    "S0": "Exits on a spot venue",
    "S1": "Double exits, entry protection, caches and memory",
    "S2": "Signals in, levels out",
    "S3": "Waves of positions and their stops",
    "S4": "Pairs under fire",
    "X": "Everywhere",
    "D": "Faults in the earlier designs",
}


class Requirements(NamedTuple):
    rows: Mapping[str, Mapping[str, str]]
    out_of_scope: Mapping[str, str]


def read() -> Requirements:
    tree = tomllib.loads(ROWS.read_text(encoding="utf-8"))
    return Requirements(tree["rows"], tree["out_of_scope"])


def marked(folder: Path = ROOT / "tests") -> dict[str, list[str]]:
    """Row to the tests that carry it, as ``path::name``."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        name = path.relative_to(folder.parent).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for test, rows in _tests(tree.body, _module_rows(tree)):
            for row in dict.fromkeys(rows):
                found.setdefault(row, []).append(f"{name}::{test}")
    return found


def _module_rows(tree: ast.Module) -> list[str]:
    assigned = (node.value for node in tree.body if isinstance(node, ast.Assign) and _is_pytestmark(node))
    return [row for value in assigned for row in _rows_in(value)]


def _is_pytestmark(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)


def _tests(body: Iterable[ast.stmt], inherited: list[str]) -> Iterator[tuple[str, list[str]]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _tests(node.body, inherited + _decorated(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield node.name, inherited + _decorated(node)


def _decorated(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [row for decorator in node.decorator_list for row in _rows_in(decorator)]


def _rows_in(node: ast.expr) -> list[str]:
    return [
        argument.value
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "row"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]


def page(requirements: Requirements, tests: Mapping[str, list[str]]) -> str:
    lines = [HEAD.rstrip("\n"), ""]
    shown = sum(1 for row in requirements.rows if tests.get(row))
    lines += [f"{len(requirements.rows)} rows: {shown} shown, {len(requirements.out_of_scope)} out of scope.", ""]
    for prefix, title in SECTIONS.items():
        lines += [f"## {title}", "", "| row | met | execsafe | shown by |", "|---|---|---|---|"]
        for row, texts in requirements.rows.items():
            if row.split("-")[0] == prefix:
                cells = [row, texts.get("text", ""), texts["answer"], _shown(row, requirements, tests)]
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _shown(row: str, requirements: Requirements, tests: Mapping[str, list[str]]) -> str:
    if row in requirements.out_of_scope:
        return f"out of scope: {requirements.out_of_scope[row]}"
    return "<br>".join(f"`{test.removeprefix('tests/')}`" for test in tests.get(row, [])) or "**nothing yet**"


if __name__ == "__main__":
    known, tests = read(), marked()
    PAGE.write_text(page(known, tests), encoding="utf-8")
    missing = [row for row in known.rows if not tests.get(row) and row not in known.out_of_scope]
    print(f"{PAGE.relative_to(ROOT)} written; {len(missing)} rows without a test: {' '.join(missing)}")
