"""Every store of the package against the shipped contract suite."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from execsafe.ports import Store
from execsafe.stores import open_store
from execsafe.testing.store_contract import StoreContract


class TestMemory(StoreContract):
    def make_store(self, directory: Path) -> Store:
        return open_store("memory://")

    async def reopen(self, store: Store, directory: Path) -> Store:
        await store.aclose()
        await store.open()
        return store


class TestSqliteInAThread(StoreContract):
    def make_store(self, directory: Path) -> Store:
        return open_store(f"sqlite:///{directory}/orders.db")


class TestSqliteInline(StoreContract):
    def make_store(self, directory: Path) -> Store:
        return open_store(f"sqlite:///{directory}/orders.db?commit=inline")


class TestSqliteExclusive(StoreContract):
    def make_store(self, directory: Path) -> Store:
        return open_store(f"sqlite:///{directory}/orders.db?exclusive=true")


class TestRedis(StoreContract):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self.url = redis_url

    def make_store(self, directory: Path) -> Store:
        prefix = hashlib.sha256(str(directory).encode()).hexdigest()[:20]
        return open_store(f"{self.url}?prefix={prefix}")
