"""Shared by every test: the two event loops, and how hard Hypothesis searches."""

import pytest
from hypothesis import HealthCheck, settings

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
