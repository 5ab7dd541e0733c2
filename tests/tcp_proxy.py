"""A TCP proxy on loopback that loses answers, changes its target, and may speak TLS to its clients."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading


class TcpProxy:
    """Forwards every connection to ``127.0.0.1:target``; threads of its own do the work."""

    def __init__(self, target: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self._tls = tls
        self._loses_answer = threading.Event()
        self.has_lost = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._silent: set[int] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> TcpProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def lose_next_answer(self) -> None:
        """The next bytes from the target are read and thrown away, and their connection is closed."""
        self.has_lost.clear()
        self._loses_answer.set()

    def silence(self) -> None:
        """Nothing passes through the connections that are there, and nobody is told: a firewall that forgot them."""
        with self._lock:
            self._silent |= {id(each) for each in self._sockets}

    def cut(self) -> None:
        """End all connections, as a failover does."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for each in sockets:
            _end(each)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        try:
            client = self._tls.wrap_socket(raw, server_side=True) if self._tls else raw
            target = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            raw.close()
            return
        with self._lock:
            self._sockets += [client, target]
        threading.Thread(target=self._pump, args=(client, target), daemon=True).start()
        self._pump(target, client, is_answer=True)

    def _pump(self, source: socket.socket, sink: socket.socket, *, is_answer: bool = False) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(65_536):
                if is_answer and self._loses_answer.is_set():
                    self._loses_answer.clear()
                    self.has_lost.set()
                    break
                if id(source) not in self._silent:
                    sink.sendall(data)
        _end(source)
        _end(sink)


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
