"""The pytest plugin: light to load, and its fixtures work together."""

import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

from execsafe.testing import plugin

SUITE = """
import pytest
import execsafe
from decimal import Decimal
from execsafe.model.order import OrderRequest, Side

pytestmark = pytest.mark.anyio

async def test_all(execsafe_adapter, execsafe_venue, execsafe_clock, execsafe_faults, execsafe_store, execsafe_seed):
    request = OrderRequest(
        symbol="BTC/USDT", side=Side.BUY, type="market", quantity=Decimal(1), client_order_id="a",
        deadline_ms=execsafe_clock.now_ms() + 5_000,
    )
    await execsafe_adapter.create_order(request)
    assert execsafe_venue.ledger.filled_quantity("a") == 1
    assert execsafe_adapter.plan is execsafe_faults
    assert execsafe_seed == 7

async def test_the_store_is_ready(execsafe_adapter, execsafe_store, execsafe_clock):
    gateway = execsafe.OrderGateway(execsafe_adapter, execsafe.IntentRegistry(execsafe_store, clock=execsafe_clock))
    outcome = await gateway.submit(execsafe.Intent(key="k", symbol="BTC/USDT", side="buy", quantity="0.01"))
    assert isinstance(outcome, execsafe.Accepted)
"""


def run(*arguments, cwd=None):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def plugin_options():
    installed = any(p.name == "execsafe" for p in importlib.metadata.entry_points(group="pytest11"))
    return () if installed else ("-p", "execsafe.testing.plugin")


def test_the_fixtures_work_together_and_the_seed_arrives(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    ended = run("-m", "pytest", "-q", "-W", "error", *plugin_options(), "--execsafe-seed=7", cwd=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 passed" in ended.stdout, "each on asyncio and on trio"


def test_the_tests_on_the_page_pass_and_every_fixture_is_on_it(tmp_path):
    """They are only defined where the page's examples are run from top to bottom."""
    page = (Path(__file__).parents[2] / "docs" / "content" / "testing.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    tests = next(code for code in fences if "import pytest" in code)
    imports = "import anyio, execsafe\nfrom execsafe.testing.faults import Fault\n"
    imports += "from execsafe.testing.loop import run_simulated\n"
    (tmp_path / "test_page.py").write_text(imports + tests)

    ended = run("-m", "pytest", "-q", "-W", "error", *plugin_options(), "--execsafe-seed=7", cwd=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "3 passed" in ended.stdout
    for name in re.findall(r"def (execsafe_\w+)", inspect.getsource(plugin)):
        assert f"| `{name}` |" in page


def test_loading_the_plugin_imports_nothing_heavy():
    heavy = ("ccxt", "aiohttp", "sqlite3", "trio", "rich", "anyio", "attrs", "execsafe.testing.venue")
    ended = run("-c", f"import sys, execsafe.testing.plugin; print([m for m in {heavy!r} if m in sys.modules])")

    assert ended.stdout.strip() in {"[]", "['attrs']", "['anyio']", "['anyio', 'attrs']"}
