"""The project itself: everything imports, everything is checked, and what is shipped is complete."""

import importlib
import pkgutil
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

import execsafe

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOXFILE = (ROOT / "noxfile.py").read_text()


def modules():
    return sorted(module.name for module in pkgutil.walk_packages(execsafe.__path__, "execsafe."))


@pytest.mark.row("S3-42", "S3-43", "S2-17")
@pytest.mark.parametrize("name", modules())
def test_every_module_can_be_imported(name):
    """Compiling finds no missing module; importing does, also what only an error path would have used."""
    assert name.endswith("__main__") or importlib.import_module(name)


@pytest.mark.row("S1-47", "S2-40", "S3-43")
@pytest.mark.row("S0-32")
def test_the_checks_are_strict_and_nothing_is_left_out_of_them():
    assert '"mypy", "--strict", "src", "tests/typing"' in NOXFILE
    assert '"--verifytypes", "execsafe"' in NOXFILE
    assert '"ruff", "check", "."' in NOXFILE
    chosen = set(PYPROJECT["tool"]["ruff"]["lint"]["select"])
    assert {"E", "F", "B", "BLE", "ASYNC", "S", "TRY", "DTZ"} <= chosen, "bare excepts and undefined names are errors"
    assert PYPROJECT["tool"]["pytest"]["ini_options"]["filterwarnings"] == ["error"]
    assert PYPROJECT["tool"]["mypy"]["strict"] is True


@pytest.mark.row("S4-37", "S0-30")
def test_a_change_passes_only_if_everything_passes():
    """One failing test of many is a failure; a partial run is not a run."""
    steps = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in steps
    assert "nox -s tests\n" in steps
    assert "nox -s lint typing" in steps
    assert "|| true" not in steps
    assert "--requirements" in NOXFILE


@pytest.mark.row("S3-45")
def test_what_the_package_needs_is_in_the_package():
    package = resources.files("execsafe")
    for name in ("py.typed", "bot/data/eth_btc-5m.csv", "bot/data/ltc_btc-5m.csv", "bot/report_page/page.css"):
        assert package.joinpath(name).is_file(), name


@pytest.mark.row("S2-37")
def test_the_version_is_one_and_is_told():
    assert execsafe.__version__ == PYPROJECT["project"]["version"]
    told = subprocess.run([sys.executable, "-m", "execsafe", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == f"execsafe {execsafe.__version__}"


@pytest.mark.row("X-10")
def test_what_must_be_fast_is_measured():
    sources = "\n".join(path.read_text() for path in sorted((ROOT / "benchmarks").glob("test_*.py")))
    for what in ("claim", "sweep", "hedge", "levels", "submit"):
        assert f"def test_{what}" in sources or f"_{what}" in sources, what


@pytest.mark.row("S0-25", "S4-33")
@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("oversold.md", ("30005", "reconcil", "balance")),
        ("ghosts.md", ("doubt", "absent", "unresolved")),
    ],
)
def test_operators_find_what_to_do(page, words):
    text = (ROOT / "docs" / "content" / page).read_text().lower()
    assert [word for word in words if word.lower() not in text] == []
