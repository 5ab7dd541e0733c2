"""Shared by every test: the two event loops, and how hard Hypothesis searches."""

import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import requirements
import servers

# A slow machine is not a finding, so no deadline and no complaint about slow generation; "ci" draws the same
# examples every time. `--hypothesis-profile=thorough` searches new ones.
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough",
    deadline=None,
    max_examples=2_000,
    stateful_step_count=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every test marked `anyio` runs once on each; narrow it in a module whose subject runs on one only."""
    return request.param


def pytest_report_header() -> str:
    return servers.header()


# --- Several processes (pytest-xdist): a file goes to one of them, and so does all that waits for real seconds --------

# These start servers, browsers and processes of their own, and would slow each other down.
_REAL_TIME = (
    "bot/",
    "buses/test_redis",
    "campaigns/test_kill9",
    "chaos/test_seed_chaos.py",
    "chaos/test_wave.py",
    "stores/test_postgres",  # all on one server
    "stores/test_redis",
    "test_docs.py",
    "testing/test_http",
    "testing/test_plugin.py",
    "venues/test_gateway_http.py",
    "venues/test_views_http.py",
    "wrap/",
)
_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = os.path.relpath(item.path, _HERE)
        item.add_marker(pytest.mark.xdist_group("real time" if file.startswith(_REAL_TIME) else file))


# --- Requirements: with --requirements, a row of docs/requirements.toml without a passing test fails the run ---------

_PASSED_ROWS: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--requirements", action="store_true", help="fail if a requirement has no passing test in this run"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport]:
    report = yield
    # As properties they reach the process that collects the reports of several (pytest-xdist).
    report.user_properties.extend(("row", str(row)) for mark in item.iter_markers("row") for row in mark.args)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _PASSED_ROWS.update(str(value) for name, value in report.user_properties if name == "row")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    is_worker = hasattr(session.config, "workerinput")
    if is_worker or not session.config.getoption("--requirements") or session.config.option.collectonly:
        return
    known = requirements.read()
    missing = sorted(set(known.rows) - set(known.out_of_scope) - _PASSED_ROWS)
    if missing:
        print(f"\nrequirements without a passing test in this run: {' '.join(missing)}", file=sys.stderr)
        session.exitstatus = max(exitstatus, pytest.ExitCode.TESTS_FAILED)
