"""The real ccxt clients, offline: markets are made up, and what would go on the wire is caught and answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import attrs
import ccxt.async_support as ccxt

SPOT = "BTC/USDT"
SWAP = "BTC/USDT:USDT"
VENUES = (
    "binance",
    "binanceusdm",
    "bybit",
    "okx",
    "mexc",
    "kraken",
    "kucoin",
    "gate",
    "bitget",
    "coinbase",
    "htx",
    "hyperliquid",
    "deribit",
)
CONTRACT_ONLY = frozenset({"binanceusdm", "hyperliquid", "deribit"})
EC_KEY = (
    "-----BEGIN EC PRIVATE KEY-----\n"
    "MHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY/PuoAoGCCqGSM49\n"
    "AwEHoUQDQgAEPR3tU2Fta9ktY+6P9G0cWO+0kETA6SFs38GecTyudlHz6xvCdz8q\n"
    "EKTcWGekdmdDPsHloRNtsiCa697B2O9IFA==\n"
    "-----END EC PRIVATE KEY-----\n"
)
BINANCE_TYPES = ["LIMIT", "MARKET", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT", "STOP_MARKET", "TAKE_PROFIT_MARKET", "STOP"]


@attrs.frozen
class Sent:
    """One request as it would leave the machine."""

    method: str
    url: str
    headers: dict[str, str]
    body: str

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def fields(self) -> dict[str, Any]:
        """Query and body together; a JSON list counts by its first element."""
        found: dict[str, Any] = dict(parse_qsl(urlsplit(self.url).query))
        if self.body:
            try:
                body = json.loads(self.body)
            except ValueError:
                found.update(parse_qsl(self.body))
            else:
                found.update(body[0] if isinstance(body, list) else body)
        return found

    @property
    def everything(self) -> str:
        return f"{self.method} {self.url} {self.headers} {self.body}"


class Wire:
    """Takes the place of the network below ccxt's signing: remembers requests, answers from *answer*."""

    def __init__(self, exchange: Any, answer: Callable[[Sent], Any]) -> None:
        self.exchange = exchange
        self.answer = answer
        self.sent: list[Sent] = []
        exchange.fetch = self._fetch

    async def _fetch(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        sent = Sent(method, url, dict(headers or {}), body or "")
        self.sent.append(sent)
        answer = self.answer(sent)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, dict) and answer.get("_error"):
            text = json.dumps(answer["body"])
            self.exchange.handle_errors(answer["_error"], "Bad", url, method, {}, text, answer["body"], headers, body)
        return answer


def market(exchange: Any, symbol: str) -> dict[str, Any]:
    base, _, rest = symbol.partition("/")
    quote, _, settle = rest.partition(":")
    swap = bool(settle)
    ids = {
        "okx": "BTC-USDT-SWAP" if swap else "BTC-USDT",
        "mexc": "BTC_USDT" if swap else "BTCUSDT",
        "kraken": "XXBTZUSD",
        "kucoin": "XBTUSDTM" if swap else "BTC-USDT",
        "gate": "BTC_USDT",
        "coinbase": "BTC-USDT",
        "htx": "BTC-USDT" if swap else "btcusdt",
        "hyperliquid": "BTC/USDC:USDC",  # how ccxt names its markets there; any symbol will do
        "deribit": "BTC_USDT-PERPETUAL",
    }
    return {
        "id": ids.get(exchange.id, "BTCUSDT"),
        "symbol": symbol,
        "base": base,
        "quote": quote,
        "settle": settle or None,
        "baseId": "3" if exchange.id == "hyperliquid" else base,
        "quoteId": quote,
        "settleId": settle.lower() if exchange.id == "gate" else settle or None,
        "type": "swap" if swap else "spot",
        "spot": not swap,
        "swap": swap,
        "margin": False,
        "future": False,
        "option": False,
        "contract": swap,
        "linear": True if swap else None,
        "inverse": False if swap else None,
        "subType": "linear" if swap else None,
        "active": True,
        "contractSize": 1.0 if swap else None,
        "taker": 0.001,
        "maker": 0.001,
        "precision": {"amount": 0.00001, "price": 0.01, "base": 1e-8, "quote": 1e-8},
        "limits": {
            "amount": {"min": 0.00001, "max": 9000.0},
            "price": {"min": None, "max": None},
            "cost": {"min": 5.0, "max": None},
        },
        "info": {"orderTypes": BINANCE_TYPES, "altname": "XBTUSD", "symbol": "BTCUSDT", "marketSymbol": "BTC/USDT"},
    }


def make(name: str, **config: Any) -> Any:
    """A real ccxt exchange with two made-up markets and made-up keys."""
    exchange = getattr(ccxt, name)(
        {
            "apiKey": "APIKEYCANARY0123456789",
            "secret": EC_KEY if name == "coinbase" else "c2VjcmV0Q0FOQVJZMDEyMzQ1Njc4OQ==",
            "password": "PASSWORDCANARY",
            "uid": "1234567",
            "walletAddress": "0x" + "1" * 40,
            "privateKey": "0x" + "2" * 64,
            "enableRateLimit": False,
            **config,
        }
    )
    exchange.timeout_on_exit = 0  # close() would sleep a quarter of a second
    symbols = [SWAP] if name in CONTRACT_ONLY else [SPOT] if name in {"kraken", "coinbase"} else [SPOT, SWAP]
    currencies = {code: {"id": code, "code": code, "precision": 1e-8, "info": {}} for code in ("BTC", "USDT", "ETH")}
    exchange.set_markets([market(exchange, symbol) for symbol in symbols], currencies)
    if name == "kraken":
        exchange.options["marketsByAltname"] = {"XBTUSD": exchange.markets[SPOT]}
    return exchange
