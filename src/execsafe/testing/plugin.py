"""pytest plugin: a simulated venue, its clock, an adapter and a store as fixtures.

    async def test_a_lost_reply_does_not_double_the_order(execsafe_adapter, execsafe_venue, execsafe_store): ...

Nothing heavy is imported until a fixture is asked for.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from execsafe.ports import Store
    from execsafe.testing.adapter import SimAdapter
    from execsafe.testing.clock import VirtualClock
    from execsafe.testing.faults import FaultPlan
    from execsafe.testing.venue import SimVenue


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--execsafe-seed``."""
    group = parser.getgroup("execsafe")
    group.addoption(
        "--execsafe-seed", type=int, default=0, metavar="N", help="seed of execsafe's fault plans and simulated loops"
    )


@pytest.fixture
def execsafe_seed(request: pytest.FixtureRequest) -> int:
    """The seed given with ``--execsafe-seed``; 0 by default."""
    seed: int = request.config.getoption("--execsafe-seed")
    return seed


@pytest.fixture
def execsafe_clock() -> VirtualClock:
    """A clock that follows the running event loop, real or virtual."""
    from execsafe.testing.clock import VirtualClock

    return VirtualClock()


@pytest.fixture
def execsafe_venue() -> SimVenue:
    """A simulated venue; its hidden ledger is ``execsafe_venue.ledger``."""
    from execsafe.testing.venue import SimVenue

    return SimVenue()


@pytest.fixture
def execsafe_faults() -> FaultPlan:
    """The fault plan of ``execsafe_adapter``: nothing goes wrong until something is scripted."""
    from execsafe.testing.faults import FaultPlan

    return FaultPlan.none()


@pytest.fixture
def execsafe_adapter(execsafe_venue: SimVenue, execsafe_clock: VirtualClock, execsafe_faults: FaultPlan) -> SimAdapter:
    """A connection to ``execsafe_venue``, for a gateway."""
    from execsafe.testing.adapter import SimAdapter

    return SimAdapter(execsafe_venue, clock=execsafe_clock, plan=execsafe_faults)


@pytest.fixture
def execsafe_store() -> Store:
    """A store in memory, open."""
    from execsafe.stores.memory import MemoryStore

    store = MemoryStore()
    with contextlib.suppress(StopIteration):
        store.open().send(None)  # it waits for nothing, so that no event loop is needed: any test may ask for it
    return store
