"""Tests of the test tools run in virtual time."""

import pytest

from execsafe.testing.loop import virtual_backends


@pytest.fixture(params=[0, 1], ids=["asyncio", "trio"])
def anyio_backend(request):
    """Both event loops, neither of which ever waits."""
    return virtual_backends()[request.param]
