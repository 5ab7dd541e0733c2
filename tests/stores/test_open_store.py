"""`open_store`: which URL gives which store, and that nothing else gets through."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.errors import InvalidInput
from execsafe.ports import Durability
from execsafe.stores import open_store
from execsafe.stores.memory import MemoryStore
from execsafe.stores.sqlite import SqliteStore


def test_each_memory_url_is_a_store_of_its_own() -> None:
    """Nothing is shared by accident."""
    first, second = open_store("memory://"), open_store("memory://")
    assert isinstance(first, MemoryStore)
    assert first is not second
    assert first.durability is Durability.NONE


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///orders.db", "orders.db"),
        ("sqlite:///some/where/orders.db", "some/where/orders.db"),
        ("sqlite:////var/lib/orders.db", "/var/lib/orders.db"),
        ("SQLite:///orders.db", "orders.db"),
        ("sqlite:///a%20b%3F%23%25.db", "a b?#%.db"),
        ("sqlite:///Größe.db", "Größe.db"),
        ("sqlite:///orders.db?busy_timeout_s=0.5&commit=inline&exclusive=true&check=quick", "orders.db"),
    ],
)
def test_three_slashes_are_relative_and_four_are_absolute(url: str, path: str) -> None:
    """As everywhere else; nothing is touched before the store is opened."""
    store = open_store(url)
    assert isinstance(store, SqliteStore)
    assert store.path == Path(path)
    assert store.durability is Durability.POWER
    assert not Path("orders.db").exists()


def test_a_store_is_returned_as_it_is() -> None:
    """So that every function that takes a URL takes a store as well."""
    store = MemoryStore()
    assert open_store(store) is store


@pytest.mark.parametrize(
    ("scheme", "client", "extra"),
    [
        *[(scheme, "coredis", "redis") for scheme in ("redis", "rediss", "valkey", "valkeys")],
        *[(scheme, "psycopg", "postgres") for scheme in ("postgresql", "postgres")],
    ],
)
def test_a_store_whose_client_is_missing_names_its_extra(
    scheme: str, client: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message does not repeat the password of the URL."""
    monkeypatch.setitem(sys.modules, client, None)
    ours = (f"{client}.", f"execsafe.stores.{extra}", f"execsafe.stores._{extra}", f"execsafe._{extra}")
    for name in [name for name in sys.modules if name.startswith(ours)]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InvalidInput, match=rf"needs {client}.*execsafe\[{extra}\]") as caught:
        open_store(f"{scheme}://user:hunter2@host/0")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "memory:",
        "memory:/",
        "memory://name",
        "memory://?commit=inline",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite:////",
        "sqlite:///orders/",
        "sqlite:///..",
        "sqlite://host/orders.db",
        "sqlite:///:memory:",
        "sqlite:///orders.db#part",
        "sqlite:///orders.db#",
        "sqlite:///orders.db?mode",
        "sqlite:///orders.db?mode=ro",
        "sqlite:///orders.db?commit=thread&commit=inline",
        "sqlite:///orders.db?commit=later",
        "sqlite:///orders.db?commit=",
        "sqlite:///orders.db?busy_timeout_s=-1",
        "sqlite:///orders.db?busy_timeout_s=nan",
        "sqlite:///orders.db?busy_timeout_s=inf",
        "sqlite:///orders.db?busy_timeout_s=soon",
        "sqlite:///orders.db?exclusive=1",
        "sqlite:///orders.db?check=none",
        "sqlite:///orders.db?a=1;b=2",
        "sqlite:///or\nders.db",
        "sqlite:///orders.db\x00",
        "sqlite:///orders%00.db",
        "sqlite:///orders%0a.db",
        "sqlite:///orders\u202e.db",
        "sqlite:///orders.db?commit=in%0aline",
        "sqlite:///" + "a" * 1_048_576,
        "redis://",
        "redis:///0",
        "redis://:hunter2@/0",
        "redis://u:hunter2@host/db",
        "redis://u:hunter2@host:port/0",
        "redis://u:hunter2@host:70000/0",
        "redis://u:hunter2@host/0?hunter2=1",
        "redis://u:1?hunter2@host/0",
        "redis://u:1?hunter2=x@host/0",
        "redis://localhost?prefix=",
        "redis://localhost?prefix={a}",
        "redis://localhost?prefix=a%20b",
        "redis://localhost?prefix=%c3%a9",
        "redis://localhost?require=disk",
        "redis://localhost?create=no",
        "redis://localhost?timeout_s=0",
        "redis://localhost?timeout_s=nan",
        "redis://localhost?timeout_s=soon",
        "redis://localhost?ca_file=/etc/ca.pem",
        "mysql://host/db",
        "file:///orders.db",
        "orders.db",
        "http://[::1",
        "://",
    ],
    ids=lambda url: ascii(url[:50]),
)
def test_a_malformed_url_is_refused_with_a_short_message(url: str) -> None:
    """Typed, on one line, whatever was in it."""
    with pytest.raises(InvalidInput) as caught:
        open_store(url)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", [None, 7, b"memory://", Path("orders.db"), object()])
def test_what_is_neither_a_url_nor_a_store_is_refused(url: object) -> None:
    """At once, not at the first order."""
    with pytest.raises(InvalidInput):
        open_store(url)  # type: ignore[call-overload]


@given(text=st.text(max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    """A URL comes from a configuration file."""
    for url in (text, f"sqlite:///{text}", f"sqlite:///x.db?{text}", f"{text}://x"):
        with contextlib.suppress(InvalidInput):
            open_store(url)


def test_sqlite_is_loaded_only_where_it_is_used() -> None:
    """Importing the package, and using the memory store, stays light."""
    code = (
        "import sys, execsafe; from execsafe.stores import open_store; open_store('memory://');"
        "assert not {'sqlite3', 'trio', 'ccxt', 'coredis'} & set(sys.modules), 'heavy import'"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
