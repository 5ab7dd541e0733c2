"""Bringing the real ccxt client to the loopback: redirected below ccxt, so that it notices nothing.

ccxt builds, signs and reads its production URLs (and picks its error table by them); only the connection goes
elsewhere. Path, query and body arrive byte for byte, and ``Host`` still names the production host.
"""

from __future__ import annotations

from typing import Any, Final

import aiohttp
import yarl

from execsafe.testing.http._face import API_KEY, API_SECRET

_MARKETS: Final = {"binance": ["spot"], "binanceusdm": ["linear"]}


def loopback_session(base: str) -> aiohttp.ClientSession:
    """A session that sends everything to *base*, whatever host the URL names. Make it inside the running loop."""
    target = yarl.URL(base)

    async def redirect(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        path = request.url.raw_path_qs  # raw: signatures cover the exact bytes
        request.url = yarl.URL(f"{target.origin()}{path}", encoded=True)
        return await send(request)

    return aiohttp.ClientSession(middlewares=(redirect,))


def loopback_exchange(name: str, session: aiohttp.ClientSession, config: dict[str, Any]) -> Any:
    """A real ``ccxt.async_support`` exchange on *session*, with keys that the simulated venue knows.

    *config* is merged over the defaults, ``options`` one level deep.
    """
    import ccxt.async_support as ccxt

    options = {"fetchMarkets": {"types": _MARKETS.get(name, ["spot", "linear"])}}
    given = dict(config)
    exchange = getattr(ccxt, name)(
        {
            "apiKey": API_KEY,
            "secret": API_SECRET,
            "enableRateLimit": False,
            "timeout": 1_500,  # ms
            **given,
            "options": {**options, "fetchMargins": False, **given.get("options", {})},
        }
    )
    exchange.has["fetchCurrencies"] = False  # nothing to ask the venue about
    exchange.timeout_on_exit = 0  # without TLS there is nothing to wait for when closing
    exchange.session = session
    exchange.own_session = False
    return exchange
