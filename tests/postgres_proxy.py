"""A wire to a server that can be cut exactly before or after a message arrives."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Listens on loopback and passes everything on; :meth:`cut` breaks a connection once."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._word: bytes | None = None
        self._keeps_reply = False
        self._ends: list[socket.socket] = []
        self._heard: set[socket.socket] = set()  # clients whose connection passes anything on
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        # Wakes accept(), which closing alone would not.
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self._listener.close()
        for end in self._ends:
            _close(end)

    def cut(self, word: bytes, *, delivered: bool) -> None:
        """Cut the next message that holds *word*: it is lost, or it is *delivered* and its reply is lost."""
        self._word, self._keeps_reply = word, delivered

    def silence(self) -> None:
        """Pass nothing on any more through the connections that are there, and tell nobody, as a firewall would."""
        self._heard.clear()

    @property
    def has_cut(self) -> bool:
        """Whether that has happened."""
        return self._word is None

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._ended:
                client.close()
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self._ends += [client, server]
            self._heard.add(client)
            threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()
            threading.Thread(target=self._to_client, args=(client, server), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                if client not in self._heard:
                    continue
                if self._word is None or self._word not in data:
                    server.sendall(data)
                    continue
                if self._keeps_reply:
                    self._heard.discard(client)
                    server.sendall(data)
                    threading.Event().wait(0.2)  # the server does what it was told
                self._word = None
                _close(client)
                break
        _close(server)

    def _to_client(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                if client in self._heard:
                    client.sendall(data)
        _close(client)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
