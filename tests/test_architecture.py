"""The house rules, read from the source: who may import whom, what `core/` may touch, how long things may be.

Nothing is imported or executed. The rules are pure functions of source texts, so the second half of this file
can plant each violation and see it reported.
"""

import ast
import graphlib
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1] / "src"

FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 70

# The first part of the name below `execsafe` decides. What is not listed is a primitive: they are the files
# at the top of the package.
LAYERS = {
    "errors": 0, "model": 0,
    "core": 1, "ports": 1, "clock": 1,
    "_urls": 1,
    "_redis": 2, "stores": 2, "venues": 2, "buses": 2,
    "testing": 3,
    "bot": 4,
}  # fmt: skip
PRIMITIVES = 3
# The facade re-exports everything, so only the bot, which is built from it, may import it.
FACADE = frozenset({"execsafe", "execsafe.__main__"})

# Everything else - clocks, chance, files, loops, logs, the network - is out of reach of a decision.
CORE_MAY_IMPORT = frozenset({
    "__future__", "base64", "collections", "collections.abc", "datetime", "decimal", "email.utils", "enum", "fractions",
    "functools", "hashlib", "itertools", "json", "math", "operator", "re", "string", "types", "typing",
    "urllib.parse",
    "attr", "attrs", "typing_extensions",
    "execsafe.core", "execsafe.errors", "execsafe.model",
})  # fmt: skip
CORE_MAY_NOT_CALL = frozenset({"__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"})
CLOCK_READS = frozenset({"now", "today", "utcnow"})  # datetime is there for formatting only


class Import(NamedTuple):
    importer: str
    target: str
    line: int
    at_module_level: bool


Trees = Mapping[str, ast.Module]


# --- Reading ------------------------------------------------------------------------------------------------


def read_package(root: Path) -> dict[str, str]:
    """Return the source of every module below *root* by dotted name; a package goes by `name.__init__`."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*.py"))
    }


def parse(sources: Mapping[str, str]) -> dict[str, ast.Module]:
    return {name: ast.parse(source, filename=name) for name, source in sources.items()}


def plain(name: str) -> str:
    return name.removesuffix(".__init__")


def imports_of(trees: Trees) -> list[Import]:
    """Return every import statement, also those in function bodies and behind TYPE_CHECKING."""
    modules = {plain(name) for name in trees}
    return [found for name, tree in trees.items() for found in _imports_in(name, tree, modules)]


def _imports_in(name: str, tree: ast.Module, modules: set[str]) -> Iterator[Import]:
    importer = plain(name)
    for node, at_module_level in _walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, node.lineno, at_module_level)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(name, node)
            members = (f"{base}.{alias.name}" for alias in node.names)
            for target in {member if member in modules else base for member in members}:
                yield Import(importer, target, node.lineno, at_module_level)


def _walk(node: ast.AST, at_module_level: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Walk the tree and say of each node whether it runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        yield child, at_module_level
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, at_module_level and not deferred)


def _absolute(name: str, node: ast.ImportFrom) -> str:
    """Spell a relative import out: one dot is the package that *name* lives in."""
    if node.level == 0:
        return node.module or ""
    package = name.split(".")[: -node.level]
    return ".".join([*package, *filter(None, [node.module])])


def room_of(module: str) -> str:
    """Return the part below `execsafe` that decides the layer: `execsafe.core.exposure` is in `core`."""
    return module.removeprefix("execsafe").lstrip(".").partition(".")[0]


def layer_of(module: str) -> int:
    return LAYERS.get(room_of(module), PRIMITIVES)


def is_own(module: str) -> bool:
    return module == "execsafe" or module.startswith("execsafe.")


# --- Rules: each returns the violations it found, one sentence each -----------------------------------------


def upward_imports(trees: Trees) -> list[str]:
    return [
        f"{found.importer}:{found.line}: imports {found.target}, which is above it"
        for found in imports_of(trees)
        if is_own(found.target) and found.importer not in FACADE and _is_upward(found)
    ]


def _is_upward(found: Import) -> bool:
    if found.target in FACADE:
        return room_of(found.importer) != "bot"
    return layer_of(found.target) > layer_of(found.importer)


def cycles(trees: Trees) -> list[str]:
    graph: dict[str, set[str]] = {}
    for found in imports_of(trees):
        if found.at_module_level and is_own(found.target) and found.target != found.importer:
            graph.setdefault(found.importer, set()).add(found.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return ["imports form a cycle: " + " -> ".join(reversed(error.args[1]))]
    return []


def ccxt_at_module_level(trees: Trees) -> list[str]:
    return [
        f"{found.importer}:{found.line}: imports {found.target} at module level"
        for found in imports_of(trees)
        if found.at_module_level and found.target.partition(".")[0] == "ccxt"
    ]


def impurities(trees: Trees) -> list[str]:
    core = {name: tree for name, tree in trees.items() if room_of(plain(name)) == "core"}
    foreign = [
        f"{found.importer}:{found.line}: imports {found.target}, which core may not"
        for found in imports_of(core)
        if not _core_may_import(found.target)
    ]
    acts = [
        f"{plain(name)}:{node.lineno}: {reason}"
        for name, tree in core.items()
        for node in ast.walk(tree)
        if (reason := _impurity(node))
    ]
    return foreign + acts


def _core_may_import(target: str) -> bool:
    own_room = "execsafe." + room_of(target) if is_own(target) else target
    return own_room in CORE_MAY_IMPORT


def _impurity(node: ast.AST) -> str | None:
    match node:
        case ast.AsyncFunctionDef() | ast.AsyncFor() | ast.AsyncWith() | ast.Await():
            return "waits"
        case ast.GeneratorExp() | ast.ListComp() | ast.SetComp() | ast.DictComp() if any(
            part.is_async for part in node.generators
        ):
            return "waits"
        case ast.Attribute(attr=attr) if attr in CLOCK_READS:
            return f"reads the clock with {attr}"
        case ast.Call(func=ast.Name(id=called)) if called in CORE_MAY_NOT_CALL:
            return f"calls {called}()"
    return None


def oversized(sources: Mapping[str, str]) -> list[str]:
    found = []
    for name, source in sources.items():
        lines = len(source.splitlines())
        if lines > FILE_LINES_MAX:
            found.append(f"{name}: {lines} lines, {FILE_LINES_MAX} at most")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    found.append(f"{name}:{node.lineno}: {node.name} has {length} lines, {FUNCTION_LINES_MAX} at most")
    return found


# --- The package as it is -----------------------------------------------------------------------------------

SOURCES = read_package(ROOT)
TREES = parse(SOURCES)


def test_the_package_was_found():
    """An empty reading would satisfy every rule below."""
    assert {"execsafe.__init__", "execsafe.errors", "execsafe.ports"} <= SOURCES.keys()


def test_imports_only_run_downwards():
    assert upward_imports(TREES) == []


def test_imports_form_no_cycle():
    assert cycles(TREES) == []


def test_core_decides_and_does_nothing_else():
    assert impurities(TREES) == []


def test_ccxt_is_never_imported_at_module_level():
    """It costs 0.4 s and 100 MB; whoever has an exchange object has paid already."""
    assert ccxt_at_module_level(TREES) == []


def test_every_file_and_function_fits_on_a_few_screens():
    assert oversized(SOURCES) == []


# --- The rules, each with its violation planted -------------------------------------------------------------


def planted(modules: Mapping[str, str]) -> dict[str, ast.Module]:
    """Parse a small package, given by the names below `execsafe`."""
    small = {"__init__": "", "gateway": "", "model.__init__": "", "core.__init__": "", **modules}
    return parse({f"execsafe.{name}": source for name, source in small.items()})


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        pytest.param("errors", "import execsafe.gateway", id="plain import"),
        pytest.param("core.ghost", "from execsafe.stores import Store", id="from import"),
        pytest.param("core.ghost", "from execsafe import gateway", id="submodule by way of the package"),
        pytest.param("core.ghost", "from .. import gateway", id="relative import"),
        pytest.param("core.__init__", "from ..gateway import OrderGateway", id="relative import in a package"),
        pytest.param("ports", "def f():\n    import execsafe.testing", id="inside a function"),
        pytest.param("ports", "if TYPE_CHECKING:\n    import execsafe.gateway", id="for typing only"),
        pytest.param("venues.ccxt", "import execsafe.testing.venue", id="from an adapter to shipped tests"),
        pytest.param("hedging", "import execsafe.bot.cli", id="from a primitive to the bot"),
        pytest.param("hedging", "from execsafe import Intent", id="from a primitive to the facade"),
    ],
)
def test_an_upward_import_is_reported(importer, source):
    [violation] = upward_imports(planted({importer: source}))

    assert violation.startswith(f"execsafe.{importer.removesuffix('.__init__')}:")


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        pytest.param("hedging", "import execsafe.model.ids, execsafe.core.hedge", id="downwards"),
        pytest.param("hedging", "from execsafe.gateway import OrderGateway", id="within the layer"),
        pytest.param("stores.sqlite", "from . import codec", id="within the room"),
        pytest.param("core.ghost", "import attrs\nfrom decimal import Decimal", id="to other packages"),
        pytest.param("bot.cli", "import execsafe", id="from the bot to the facade"),
        pytest.param("__init__", "from execsafe.bot import cli", id="from the facade"),
    ],
)
def test_a_downward_or_level_import_is_not_reported(importer, source):
    assert upward_imports(planted({importer: source})) == []


def test_a_cycle_is_reported():
    one, two, three = "from execsafe import levels", "import execsafe.sizing", "from .prices import Board"

    [violation] = cycles(planted({"prices": one, "levels": two, "sizing": three}))

    assert all(f"execsafe.{name}" in violation for name in ("prices", "levels", "sizing"))


def test_a_cycle_through_a_package_face_is_reported():
    face, member = "from execsafe.model.ids import Key", "from execsafe.model import Key"

    [violation] = cycles(planted({"model.__init__": face, "model.ids": member}))

    assert "execsafe.model.ids" in violation


def test_a_cycle_for_typing_only_is_reported():
    typing_only = "if TYPE_CHECKING:\n    from execsafe.prices import PriceBoard"

    assert cycles(planted({"prices": "import execsafe.levels", "levels": typing_only})) != []


def test_an_import_put_off_into_a_function_closes_no_cycle():
    put_off = "def open_store(url):\n    from execsafe.stores.sqlite import SQLiteStore"

    assert cycles(planted({"stores.__init__": put_off, "stores.sqlite": "import execsafe.stores"})) == []


@pytest.mark.parametrize(
    "source",
    [
        "async def decide(): ...",
        "async def decide():\n    await sleep(1)",
        "def decide(rows):\n    return (row async for row in rows)",
        "rows = {row: 1 async for row in ()}",
        "import time",
        "import random",
        "import logging",
        "import os.path",
        "from uuid import uuid4",
        "from secrets import token_hex",
        "from urllib.request import urlopen",
        "def decide():\n    import anyio",
        "import ccxt",
        "from execsafe.ports import Clock",
        "from execsafe import Intent",
        "import datetime\nNOW = datetime.datetime.now(datetime.UTC)",
        "from datetime import datetime as dt\nNOW = dt.utcnow()",
        "from datetime import date\nread = date.today",
        "open('journal')",
        "print('deciding')",
        "__import__('time')",
    ],
)
def test_an_impure_decision_is_reported(source):
    violations = impurities(planted({"core.ghost": source}))

    assert violations
    assert all(violation.startswith("execsafe.core.ghost:") for violation in violations)


def test_a_pure_decision_is_not_reported():
    source = """
        from __future__ import annotations
        from collections.abc import Mapping
        from datetime import UTC, datetime
        from decimal import Decimal
        import attrs
        from execsafe.core.exposure import worst_case
        from execsafe.errors import InvalidInput
        from execsafe.model import ids

        def shown(at_ms: int) -> str:
            return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
    """
    assert impurities(planted({"core.ghost": textwrap.dedent(source)})) == []


def test_a_shell_may_do_what_a_decision_may_not():
    assert impurities(planted({"gateway": "import time\nasync def submit(): await anyio.sleep(1)"})) == []


@pytest.mark.parametrize(
    "source",
    [
        "import ccxt",
        "import ccxt.async_support as ccxt",
        "from ccxt.base.errors import NetworkError",
        "try:\n    import ccxt.pro\nexcept ImportError:\n    pass",
        "class Adapter:\n    import ccxt",
    ],
)
def test_ccxt_at_module_level_is_reported(source):
    assert len(ccxt_at_module_level(planted({"venues.ccxt": source}))) == 1


def test_ccxt_inside_a_function_and_names_like_it_are_not_reported():
    source = "import ccxt_like\nfrom execsafe.venues import ccxt\ndef client():\n    import ccxt.pro"

    assert ccxt_at_module_level(planted({"bot.venue": source})) == []


def test_a_file_that_is_too_long_is_reported():
    fits = "x = 1\n" * FILE_LINES_MAX

    assert oversized({"execsafe.gateway": fits}) == []
    assert len(oversized({"execsafe.gateway": fits + "x = 1\n"})) == 1


@pytest.mark.parametrize("head", ["def f():", "async def f():", "class C:\n  def f(self):"])
def test_a_function_that_is_too_long_is_reported(head):
    fits = head + "\n    x = 1" * (FUNCTION_LINES_MAX - 1)

    assert oversized({"execsafe.gateway": fits}) == []
    assert len(oversized({"execsafe.gateway": fits + "\n    x = 1"})) == 1
