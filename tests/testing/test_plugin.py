"""The pytest plugin: light to load, and its fixtures work together."""

import importlib.metadata
import os
import subprocess
import sys

SUITE = """
import pytest
from decimal import Decimal
from execsafe.model.order import OrderRequest, Side

pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"

async def test_all(execsafe_adapter, execsafe_venue, execsafe_clock, execsafe_faults, execsafe_store, execsafe_seed):
    request = OrderRequest(
        symbol="BTC/USDT", side=Side.BUY, type="market", quantity=Decimal(1), client_order_id="a",
        deadline_ms=execsafe_clock.now_ms() + 5_000,
    )
    await execsafe_adapter.create_order(request)
    await execsafe_store.open()
    await execsafe_store.aclose()
    assert execsafe_venue.ledger.filled_quantity("a") == 1
    assert execsafe_adapter.plan is execsafe_faults
    assert execsafe_seed == 7
"""


def run(*arguments, cwd=None):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_fixtures_work_together_and_the_seed_arrives(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE)
    installed = any(p.name == "execsafe" for p in importlib.metadata.entry_points(group="pytest11"))
    plugin = () if installed else ("-p", "execsafe.testing.plugin")

    ended = run("-m", "pytest", "-q", "-W", "error", *plugin, "--execsafe-seed=7", cwd=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout


def test_loading_the_plugin_imports_nothing_heavy():
    heavy = ("ccxt", "aiohttp", "sqlite3", "trio", "rich", "anyio", "attrs", "execsafe.testing.venue")
    ended = run("-c", f"import sys, execsafe.testing.plugin; print([m for m in {heavy!r} if m in sys.modules])")

    assert ended.stdout.strip() in {"[]", "['attrs']", "['anyio']", "['anyio', 'attrs']"}
