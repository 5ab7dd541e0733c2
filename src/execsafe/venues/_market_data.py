"""Order books and quotes through ccxt. A missing bid is not a bid of zero, and no answer is not an empty book."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

import attrs

from execsafe.model.instrument import is_contract
from execsafe.model.position import BookLevel, OrderBook, Quote
from execsafe.model.values import check_count
from execsafe.venues import _parsing
from execsafe.venues._asking import Ask, Asker, ask, at, load_markets, method_of
from execsafe.venues._shapes import AnswerUnusable

_NAMES: Final = ("bids", "asks")


@attrs.frozen(kw_only=True)
class Books:
    """One venue's row.

    Attributes:
        sides: where the raw answer holds bids and asks, one pair per shape it may have; empty: not known.
        spot_depths, contract_depths: depths that may be asked for; empty: any.
        spot_quotes, contract_quotes: ccxt's methods that state best prices (None: one request per symbol).
        last_by: a further method for the last price, where quotes lack it.
        rows_at: where quotes' raw answers hold their rows.
    """

    sides: tuple[tuple[str, str], ...] = ()
    spot_depths: tuple[int, ...] = ()
    contract_depths: tuple[int, ...] = ()
    spot_quotes: str | None = "fetch_tickers"
    contract_quotes: str | None = "fetch_tickers"
    last_by: str = ""
    rows_at: tuple[str, ...] = ()


def _at(*holders: str, **more: Any) -> Books:
    sides = tuple((f"{holder}.bids", f"{holder}.asks") if holder else _NAMES for holder in holders)
    return Books(sides=sides, **more)


_BINANCE: Final = _at(
    "",
    contract_depths=(5, 10, 20, 50, 100, 500, 1_000),
    contract_quotes="fetch_bids_asks",  # its futures' 24 h statistics state no best prices
    last_by="fetch_last_prices",
)

BOOKS: Final[Mapping[str, Books]] = MappingProxyType(
    {
        "binance": _BINANCE,
        "binanceusdm": _BINANCE,
        "bybit": Books(sides=(("result.b", "result.a"),), rows_at=("result.list",)),
        "okx": _at("data.0", rows_at=("data",)),
        "mexc": _at("", "data"),
        "kraken": _at("result.*", rows_at=("result{}",)),
        "kucoin": _at("data", spot_depths=(20, 100), contract_depths=(20, 100), rows_at=("data.ticker", "data")),
        "gate": _at("", rows_at=("",)),
        "bitget": _at("data", rows_at=("data",)),
        "coinbase": _at("pricebook", spot_quotes="fetch_bids_asks", rows_at=("pricebooks",)),
        "htx": _at("tick", spot_depths=(5, 10, 20, 150)),
        "hyperliquid": Books(sides=(("levels.0", "levels.1"),)),
        "deribit": _at(
            "result",
            spot_depths=(1, 5, 10, 20, 50, 100, 1_000),
            contract_depths=(1, 5, 10, 20, 50, 100, 1_000),
            spot_quotes=None,
            contract_quotes=None,
        ),
    }
)
"""The rows, by ccxt's exchange id."""


async def order_book(adapter: Asker, symbol: str, depth: int) -> OrderBook:
    """The best *depth* levels of both sides, best first. A side without offers is empty.

    Raises:
        InvalidInput: *depth* is not a whole number of at least 1.
        AnswerUnusable: the answer does not state both sides.
        Exception: whatever ccxt raises.
    """
    check_count(depth, "depth")
    await load_markets(adapter)
    row = BOOKS.get(adapter.family, Books())
    allowed = row.contract_depths if is_contract(symbol) else row.spot_depths
    limit = next((size for size in allowed if size >= depth), allowed[-1] if allowed else depth)
    asked_at_ms = adapter.clock.now_ms()
    answer = await ask(adapter, "fetch_order_book", symbol, limit, how=Ask())
    book, stated = answer.value, [all(isinstance(at(answer.body, path), list) for path in pair) for pair in row.sides]
    if not isinstance(book, Mapping) or (stated and not any(stated) and answer.body is not book):
        raise AnswerUnusable("the answer holds no order book")
    bids, asks = (_levels(book.get(name), depth) for name in _NAMES)
    at_ms: object = book.get("timestamp")
    return OrderBook(
        symbol=symbol,
        bids=bids,
        asks=asks,
        at_ms=at_ms if _is_time(at_ms) else asked_at_ms,  # type: ignore[arg-type]
    )


def _levels(side: object, depth: int) -> tuple[BookLevel, ...]:
    if not isinstance(side, list):
        raise AnswerUnusable("the order book lacks a side")
    levels = []
    for level in side[:depth]:
        price, quantity = (_parsing.number(level[index]) if len(level) > index else None for index in (0, 1))
        if not price or quantity is None:
            raise AnswerUnusable("the order book holds a level without price or quantity")
        if quantity:
            levels.append(BookLevel(price=price, quantity=quantity))
    return tuple(levels)


async def quotes(adapter: Asker, symbols: Sequence[str]) -> Mapping[str, Quote]:
    """Best prices by symbol; a symbol of which the venue says nothing is left out.

    Raises:
        AnswerUnusable: the venue says nothing of any of them.
        Exception: whatever ccxt raises.
    """
    await load_markets(adapter)
    found: dict[str, Quote] = {}
    for contracts in (False, True):
        wanted = [symbol for symbol in dict.fromkeys(symbols) if is_contract(symbol) is contracts]
        if wanted:
            found.update(await _quotes(adapter, wanted, contracts=contracts))
    return found


async def _quotes(adapter: Asker, symbols: list[str], *, contracts: bool) -> dict[str, Quote]:
    row = BOOKS.get(adapter.family, Books())
    method = row.contract_quotes if contracts else row.spot_quotes
    asked_at_ms = adapter.clock.now_ms()
    tickers: dict[str, Any] = {}
    if method is None:
        for symbol in symbols:
            tickers[symbol] = (await ask(adapter, "fetch_ticker", symbol, how=Ask())).value
    else:
        answer = await ask(adapter, method, symbols, how=Ask(rows_at=row.rows_at))
        if not isinstance(answer.value, Mapping):
            raise AnswerUnusable("the answer holds no quotes")
        tickers.update(answer.value)
    lasts = await _lasts(adapter, symbols, row) if contracts and row.last_by else {}
    known = {symbol: tickers[symbol] for symbol in symbols if isinstance(tickers.get(symbol), Mapping)}
    found = {symbol: _quote(symbol, ticker, lasts.get(symbol), asked_at_ms) for symbol, ticker in known.items()}
    stated = {symbol: quote for symbol, quote in found.items() if quote.bid or quote.ask or quote.last}
    if not stated:
        raise AnswerUnusable("the answer quotes none of the symbols")
    return stated


async def _lasts(adapter: Asker, symbols: list[str], row: Books) -> dict[str, Decimal | None]:
    method_of(adapter, row.last_by)
    answer = await ask(adapter, row.last_by, symbols, how=Ask())
    entries = answer.value if isinstance(answer.value, Mapping) else {}
    return {symbol: _parsing.number(at(entries.get(symbol), "price")) or None for symbol in symbols}


def _quote(symbol: str, ticker: Mapping[str, Any], last: Decimal | None, asked_at_ms: int) -> Quote:
    bid, ask_price, closed = (_parsing.number(ticker.get(name)) or None for name in ("bid", "ask", "last"))
    at_ms: object = ticker.get("timestamp")
    return Quote(
        symbol=symbol,
        bid=bid,
        ask=ask_price,
        last=closed or last,
        at_ms=at_ms if _is_time(at_ms) else asked_at_ms,  # type: ignore[arg-type]
    )


def _is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
