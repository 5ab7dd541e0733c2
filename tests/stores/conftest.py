"""Servers that the tests of stores share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from postgres_server import postgres_dsn, postgres_server, postgres_url  # noqa: F401 - fixtures
from servers import URL, RedisServer


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server is that keeps what it acknowledged through a kill. Each test takes a prefix of its own."""
    if os.environ.get(URL):
        yield os.environ[URL]
        return
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield f"redis://127.0.0.1:{server.port}/0"
