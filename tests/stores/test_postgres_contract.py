"""The PostgreSQL store against the shipped contract suite, on a real server."""

from __future__ import annotations

from pathlib import Path

import pytest

import postgres_server
from execsafe.ports import Store
from execsafe.stores import open_store
from execsafe.testing.store_contract import StoreContract


class TestPostgres(StoreContract):
    @pytest.fixture(autouse=True)
    def _server(self, postgres_dsn: str):
        self.dsn = postgres_dsn
        self.schemas: dict[Path, str] = {}
        yield
        for schema in self.schemas.values():
            postgres_server.drop(postgres_dsn, schema)

    def make_store(self, directory: Path) -> Store:
        schema = self.schemas.setdefault(directory, postgres_server.new_schema())
        return open_store(postgres_server.with_option(self.dsn, f"schema={schema}"))
