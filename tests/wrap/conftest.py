"""ccxt's client runs on asyncio only, and the wire in real time."""

import pytest


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"
