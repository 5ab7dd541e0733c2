"""The README's and the quickstart's code does what the text says."""

import gc
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import execsafe
from execsafe.testing.http import VenueServer

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TWO_COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install -e '.[bot]' && .venv/bin/execsafe demo",
    "python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s tests",
)


@pytest.fixture(scope="module")
def anyio_backend():
    """ccxt runs on asyncio only."""
    return "asyncio"


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text):
    return FENCE.findall(text)


def test_the_readme_is_short_and_has_the_two_commands_as_they_are(readme):
    assert len(readme.encode()) < 4_096
    for command in TWO_COMMANDS:
        assert f"    {command}\n" in readme


@pytest.mark.parametrize("page", ["README.md", "docs/content/index.md", "docs/content/quickstart.md"])
def test_every_page_that_is_linked_exists(page):
    """Pages that others are still writing are named in the site's navigation, which is the list to go by."""
    text, folder = (ROOT / page).read_text(encoding="utf-8"), (ROOT / page).parent
    known = re.findall(r": (\S+\.md)", (ROOT / "docs/mkdocs.yml").read_text(encoding="utf-8"))

    for link in re.findall(r"\]\(([^)#:]+\.md)\)", text):
        assert (folder / link).exists() or Path(link).name in known, link


@pytest.mark.anyio
async def test_both_ways_in_of_the_readme_place_one_order_each(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(readme):
        exec(compile(block, "README.md", "exec"), names)
    async with VenueServer() as server:
        names["ccxt"] = SimpleNamespace(binance=lambda config: server.exchange("binance", **config))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            order = await names["buy"]({})
            outcome = await names["submit"](server.exchange("binance"))
            gc.collect()
        assert [str(warning.message) for warning in told] == [], "neither leaves its store open"

        assert order["intentKey"] == "signal-42"
        assert isinstance(outcome, execsafe.Accepted)
        assert len(server.venues["binance"].ledger.accepted()) == 2
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".db"] == ["orders.db"]


def test_the_quickstart_runs_from_top_to_bottom():
    names = {}
    for block in blocks((ROOT / "docs/content/quickstart.md").read_text(encoding="utf-8")):
        exec(compile(block, "quickstart.md", "exec"), names)
