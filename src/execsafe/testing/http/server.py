"""The HTTP face: one loopback server, many venues told apart by ``Host``, faults on the wire.

asyncio only (aiohttp). Time is real. What a fault does to the connection is done to the connection: silence,
resets, truncated bodies. Requests under way live in the venue, so a late one lands although its client is dead.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import aiohttp
import anyio
from aiohttp import web

from execsafe.clock import SystemClock
from execsafe.model.outcome import Operation
from execsafe.model.venue import Dedup
from execsafe.ports import Clock
from execsafe.testing._orders import VenueReject
from execsafe.testing._wire import SILENT, Delivery, dispatch, release
from execsafe.testing.faults import Fault, FaultPlan, Strikes
from execsafe.testing.http import control
from execsafe.testing.http._face import API_KEY, API_SECRET, Answer, Face, WireRequest
from execsafe.testing.http.binance import BinanceFace
from execsafe.testing.http.bybit import BybitFace
from execsafe.testing.http.mexc import MexcFace
from execsafe.testing.http.session import loopback_exchange, loopback_session
from execsafe.testing.http.usdm import UsdmFace
from execsafe.testing.venue import SimVenue

_T = TypeVar("_T")
_FACES: Final[Mapping[str, type[Face]]] = {face.name: face for face in (BinanceFace, UsdmFace, BybitFace, MexcFace)}
FACES: Final = tuple(_FACES)
"""The names of the faces: ccxt's exchange ids."""
_SILENCE_S: Final = 120.0  # longer than any client of a test waits
_EMPTY: Final = ("", "<html><body></body></html>", "[]")
_CALM: Final = FaultPlan.none()


class _OnDemand(dict[str, _T]):
    """A dictionary that makes what is asked for and not there yet."""

    def __init__(self, known: Mapping[str, _T], make: Callable[[str], _T]) -> None:
        super().__init__(known)
        self._make = make

    def __missing__(self, name: str) -> _T:
        self[name] = made = self._make(name)
        return made


def default_venue(name: str) -> SimVenue:
    """A venue for the face *name*, with what the real one enforces: which client ids, post-only, passed stops."""
    return {
        "binance": lambda: SimVenue(dedup=Dedup.OPEN),
        "binanceusdm": lambda: SimVenue(dedup=Dedup.OPEN, rejects_passed_stops=True),
        "bybit": lambda: SimVenue(dedup=Dedup.FOREVER, rejects_post_only=False),
        "mexc": lambda: SimVenue(dedup=Dedup.NONE, rejects_post_only=False),
    }[name]()


def default_venues() -> dict[str, SimVenue]:
    """The venues of a server of which nothing is said: Binance spot and Bybit."""
    return {name: default_venue(name) for name in ("binance", "bybit")}


class VenueServer:
    """Simulated venues behind a loopback HTTP server, for the real ccxt client.

        async with VenueServer() as server:
            exchange = server.exchange("binance")
            order = await exchange.create_order("BTC/USDT", "limit", "buy", 0.01, 60000)
            assert server.venues["binance"].ledger.accepted()

    Args:
        venues: by face ("binance", "binanceusdm", "bybit", "mexc"); None: :func:`default_venues`, and the others as
            soon as they are asked for.
        plans: fault plan per face; those left out have none until something is scripted.
        clock: the venues' true time.
        port: 0 takes a free one.
        client_timeout_ms: what DELAY_REQUEST takes for the client's time-out.
        keys: API keys and their secrets.
    """

    def __init__(
        self,
        venues: Mapping[str, SimVenue] | None = None,
        *,
        plans: Mapping[str, FaultPlan] | None = None,
        clock: Clock | None = None,
        port: int = 0,
        client_timeout_ms: int = 1_500,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.url: str = ""
        self._port = port
        self._client_timeout_ms = client_timeout_ms
        self._keys: dict[str, str] = {API_KEY: API_SECRET} if keys is None else dict(keys)
        self._faces: dict[str, Face] = {}
        self._held: dict[str, list[Delivery[Answer]]] = {}
        given = default_venues() if venues is None else dict(venues)
        self.plans: dict[str, FaultPlan] = _OnDemand(plans or {}, lambda _: FaultPlan.none())
        self.venues: dict[str, SimVenue] = given if venues is not None else _OnDemand(given, self._open)
        for name, venue in given.items():
            self._face(name, venue)
        self._spoiled: dict[str, list[Answer]] = {}
        self._runner: web.AppRunner | None = None
        self._sessions: list[aiohttp.ClientSession] = []
        self._exchanges: list[Any] = []
        self.requests: list[tuple[str, str, str]] = []
        """What arrived: method, host and path with its query."""

    def _open(self, name: str) -> SimVenue:
        venue = default_venue(name)
        self._face(name, venue)
        return venue

    def _face(self, name: str, venue: SimVenue) -> None:
        face = _FACES[name](venue, self._keys)
        self._faces.update((host, face) for host in face.hosts)
        self._held[name] = []
        self.plans[name]  # made now, so that whoever lists them sees it

    async def __aenter__(self) -> VenueServer:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):  # whoever is interrupted leaves no open client behind either
            for exchange in self._exchanges:
                await exchange.close()
            for session in self._sessions:
                await session.close()
            if self._runner is not None:
                await asyncio.sleep(0.01)  # connections that are just being accepted become known, and are closed too
                await self._runner.cleanup()

    def exchange(self, name: str, **config: Any) -> Any:
        """A ready ccxt exchange bound to this server; closed with it. *config* goes to ccxt."""
        if name in _FACES and isinstance(self.venues, _OnDemand):
            self.venues[name]
        session = loopback_session(self.url)
        exchange = loopback_exchange(name, session, config)
        self._sessions.append(session)
        self._exchanges.append(exchange)
        return exchange

    def spoil(self, route: str, body: str, status: int = 200) -> None:
        """Answer the next request to *route* ("GET /api/v3/account") with *body*, whatever was done."""
        self._spoiled.setdefault(route, []).append(Answer(body=body, status=status))

    def advance(self) -> int:
        """Let everything due happen in every venue; returns the current time."""
        now_ms = self.clock.now_ms()
        for venue in self.venues.values():
            venue.advance(now_ms)
        return now_ms

    # --- serving ----------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/_sim/"):
            return self._control(request.method, request.path, await request.text())
        face = self._faces.get((request.host or "").partition(":")[0])
        if face is None:
            return _respond(Answer.html(404))
        wire = WireRequest(
            method=request.method,
            path=request.path,
            query=request.rel_url.raw_query_string,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.text(),
        )
        self.requests.append((wire.method, request.host, request.rel_url.raw_path_qs))
        return await self._play(face, wire, request)

    def _control(self, method: str, path: str, body: str) -> web.Response:
        what, _, name = path.removeprefix("/_sim/").partition("/")
        if name not in self.venues:
            return web.json_response({"error": f"no such venue; there are {sorted(self.venues)}"}, status=404)
        return control.handle(self.venues[name], self.plans[name], self.advance(), method, what, body)

    async def _play(self, face: Face, wire: WireRequest, request: web.Request) -> web.StreamResponse:
        job, now_ms = face.read(wire), self.advance()
        plan = self.plans[face.name] if job.operation else _CALM
        strikes = plan.draw(job.operation or Operation.LOOK_UP, job.reading)
        held = self._held[face.name]
        if job.operation is Operation.CANCEL:
            face.venue.at(now_ms, functools.partial(_release, face.venue, list(held)))
            held.clear()
        delivery = Delivery(job.act, strikes)
        fault, _ = dispatch(
            face.venue,
            delivery,
            strikes,
            held,
            now_ms=now_ms,
            arrival_ms=now_ms,
            dead_after_ms=job.dead_after_ms,
            timeout_ms=self._client_timeout_ms,
        )
        face.venue.advance(now_ms)
        if fault in SILENT:
            return await _silence(request)
        if fault is Fault.RESET_CONNECTION:
            return _abort(request)
        if fault in {Fault.SERVER_ERROR_ACCEPTED, Fault.SERVER_ERROR_NOT_ACCEPTED}:
            return _respond(_server_error(strikes, fault))
        if strikes.take(Fault.LOOKUP_ERROR):
            return _respond(_server_error(strikes, Fault.LOOKUP_ERROR))
        spoiled = self._spoiled.get(f"{wire.method} {wire.path}")
        if spoiled:
            return _respond(spoiled.pop(0))
        return await self._answer(face, delivery, strikes, fault, request)

    async def _answer(
        self,
        face: Face,
        delivery: Delivery[Answer],
        strikes: Strikes,
        fault: Fault | None,
        request: web.Request,
    ) -> web.StreamResponse:
        try:
            answer = delivery.result()
        except VenueReject as reject:
            answer = face.refuse(reject)
        if fault is Fault.TRUNCATED_BODY:
            return await _truncated(request, answer)
        if strikes.take(Fault.EMPTY_OK):
            body = _EMPTY[strikes.value(Fault.EMPTY_OK, 0, len(_EMPTY) - 1)]
            return _respond(Answer(body=body, content_type="text/html"))
        return _respond(answer)


def _release(venue: SimVenue, held: list[Delivery[Answer]], now_ms: int) -> None:
    release(venue, held, now_ms)


def _respond(answer: Answer) -> web.Response:
    return web.Response(
        text=answer.body, status=answer.status, headers=answer.headers, content_type=answer.content_type
    )


def _server_error(strikes: Strikes, fault: Fault) -> Answer:
    return Answer.html(strikes.value(fault, 502, 504))


def _abort(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _silence(request: web.Request) -> web.Response:
    """Say nothing until the client has gone away."""
    waited_s = 0.0
    while request.transport is not None and not request.transport.is_closing() and waited_s < _SILENCE_S:
        await asyncio.sleep(0.02)
        waited_s += 0.02
    return _abort(request)


async def _truncated(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Promise the whole body, send half of it, hang up."""
    body = answer.body.encode()
    response = web.StreamResponse(status=answer.status, headers={"Content-Length": str(len(body) + 1)})
    response.content_type = answer.content_type
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    await asyncio.sleep(0.01)  # let the half leave before the connection goes
    if request.transport is not None:
        request.transport.close()
    return response
