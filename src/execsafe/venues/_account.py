"""Positions, balances, open orders and fills of an account, read through ccxt: complete, or an error. Never guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Protocol

import attrs

from execsafe.errors import InvalidInput, UnsupportedByVenue
from execsafe.model.instrument import is_contract
from execsafe.model.order import ZERO, OrderReport, OrderStatus, Side
from execsafe.model.position import Balance, Execution, PositionSide, VenuePosition
from execsafe.model.values import EXACT, Params, left_of
from execsafe.ports import OrderRef
from execsafe.venues import _parsing, _reading
from execsafe.venues._account_rows import ACCOUNTS, Account, Trades
from execsafe.venues._asking import Ask, Asker, Listing, ask, ask_all, at, exact, listed
from execsafe.venues._details import Details
from execsafe.venues._shapes import AnswerUnusable, markets_of

_UNLISTED: Final = Account()
_REQUESTS_MAX: Final = 400
_EVERY_SYMBOL: Final = frozenset({"kraken", "hyperliquid"})  # their fills are listed together
_AHEAD_MS: Final = 300_000  # the venue's clock may be ahead of ours: a fill of just now must not be cut off
_SIDES: Final = {"long": PositionSide.LONG, "short": PositionSide.SHORT}
_STOP_FIELDS: Final = ("triggerPrice", "stopPrice", "stopLossPrice", "takeProfitPrice")


class Reader(Asker, Protocol):
    """What reading an account needs of the adapter."""

    details: Details | None

    def parse_report(self, order: Mapping[str, Any], *, id_field: str = ...) -> OrderReport:
        """A unified ccxt order as a report."""
        ...

    def fill_in(self, params: Params, order: OrderRef) -> dict[str, Any]:
        """*params* with the places for ids filled in."""
        ...


def account_of(adapter: Asker) -> Account:
    """The venue's row, the weakest one for an unknown."""
    known = ACCOUNTS.get(adapter.family, _UNLISTED)
    if adapter.family == adapter.exchange_id:
        return known
    return attrs.evolve(known, spot_trades=None, contract_trades=None)  # how long a relative's pages are is not known


# --- Positions -------------------------------------------------------------------------------------


async def positions(adapter: Reader) -> Sequence[VenuePosition]:
    """All positions that are not flat.

    Raises:
        UnsupportedByVenue: the venue's positions cannot be listed; says why.
        AnswerUnusable: no list, a page too few, a row that lacks symbol, side or size, or one that the client dropped.
        Exception: whatever ccxt raises.
    """
    row = account_of(adapter)
    if row.positions is None:
        raise UnsupportedByVenue(f"{adapter.exchange_id}: no positions: {row.no_positions}")
    await adapter.ready()
    found: dict[tuple[str, PositionSide], VenuePosition] = {}
    for how in _per_settlement(adapter, row, row.positions):
        listing = await ask_all(adapter, "fetch_positions", None, how=how)
        held = [position for position in (_position(item, row) for item in listing.structures) if position is not None]
        _check_none_dropped(row, listing, len(held))
        for position in held:
            if found.setdefault((position.symbol, position.side), position) is not position:
                raise AnswerUnusable(f"two positions in {position.symbol} on the same side")
    return tuple(found.values())


def _per_settlement(adapter: Reader, row: Account, how: Ask) -> Iterator[Ask]:
    if row.settled is None:
        yield how
        return
    name, template = row.settled
    markets = [market for market in markets_of(adapter.exchange).values() if isinstance(market, Mapping)]
    settles = {str(market.get("settle")) for market in markets if market.get("swap") and market.get("linear")}
    for settle in sorted(settles) or ["USDT"]:
        more = {**how.params.thaw(), name: template.format(settle=settle, lower=settle.lower())}
        yield attrs.evolve(how, params=Params.of(more))


def _position(structure: Mapping[str, Any], row: Account) -> VenuePosition | None:
    contracts = _parsing.signed(structure.get("contracts"))
    if contracts is None:
        raise AnswerUnusable("a position without its size")
    size = _exact_size(structure, row, contracts)
    if size == 0:
        return None
    side, symbol = _SIDES.get(str(structure.get("side")).lower()), _parsing.text(structure.get("symbol"))
    stated = not row.side_at or at(structure.get("info"), row.side_at) not in (None, "")
    if side is None or symbol is None or not stated:
        raise AnswerUnusable("a position without its symbol or its side")
    return VenuePosition(
        symbol=symbol,
        side=side,
        quantity=size,
        entry_price=_price(structure, "entryPrice"),
        mark_price=_price(structure, "markPrice"),
        liquidation_price=_price(structure, "liquidationPrice"),
        leverage=_price(structure, "leverage"),
        stop_price=_price(structure, "stopLossPrice"),
        take_profit_price=_price(structure, "takeProfitPrice"),
    )


def _exact_size(structure: Mapping[str, Any], row: Account, contracts: Decimal) -> Decimal:
    stated = [at(structure.get("info"), row.size_at)] if row.size_at else []
    found = exact(contracts, stated)
    return abs(contracts if found is None else found)


def _price(structure: Mapping[str, Any], name: str) -> Decimal | None:
    return _parsing.number(structure.get(name)) or None


def _check_none_dropped(row: Account, listing: Listing, held: int) -> None:
    """ccxt leaves out rows it does not like (binance: those without an entry price): that would look flat."""
    sizes = [_parsing.signed(at(raw, row.size_at)) for raw in listing.rows] if row.size_at else []
    if sum(1 for size in sizes if size) > held:
        raise AnswerUnusable("the venue listed a position, and its client left it out")


# --- Balances --------------------------------------------------------------------------------------


async def balances(adapter: Reader) -> Mapping[str, Balance]:
    """Balances by currency, of the account that the exchange object's ``defaultType`` names.

    ``free`` is what the venue says may be used, ``total`` what it says there is; ``used`` is the difference. A
    currency of which there is nothing is left out.

    Raises:
        AnswerUnusable: no list, or a currency of which only one figure is stated.
        Exception: whatever ccxt raises.
    """
    await adapter.ready()
    answer = await ask(adapter, "fetch_balance", how=account_of(adapter).balances)
    if not isinstance(answer.value, Mapping):
        raise AnswerUnusable("the answer holds no balances")
    texts = _texts_by_name(answer.body)
    known = {}
    for code, figures in answer.value.items():
        if isinstance(figures, Mapping) and code not in {"info", "free", "used", "total", "debt"}:
            names = {str(code), _currency_id(adapter, str(code))}
            known[str(code)] = _balance(str(code), figures, [text for name in names for text in texts.get(name, ())])
    return {code: balance for code, balance in known.items() if balance.free or balance.used or balance.total}


def _balance(code: str, figures: Mapping[str, Any], texts: Sequence[object]) -> Balance:
    stated = {name: _parsing.signed(figures.get(name)) for name in ("free", "used", "total")}
    free, used, total = (None if value is None else exact(value, texts) or value for value in stated.values())
    # The same float may have been read from another text: what can be added up is.
    if free is not None and used is not None and total is not None and float(EXACT.add(free, used)) == float(total):
        total = EXACT.add(free, used)
    if total is None and free is not None and used is not None:
        total = EXACT.add(free, used)
    if free is None and total is not None and used is not None:
        free = EXACT.subtract(total, used)
    if free is None or total is None:
        raise AnswerUnusable(f"the balance of {code} is not stated")
    free = max(free, ZERO)
    return Balance(free=free, used=left_of(total, free), total=total)


def _texts_by_name(body: object, name: str = "") -> dict[str, list[object]]:
    """The plain values of every structure in a raw answer, by the names (a currency's among them) it goes by."""
    found: dict[str, list[object]] = {}
    if isinstance(body, Mapping):
        values = [value for value in body.values() if not isinstance(value, (Mapping, list))]
        for own in {name, *(value for value in values if isinstance(value, str))}:
            found.setdefault(own, []).extend(values)
    items = (
        body.items() if isinstance(body, Mapping) else [(name, item) for item in body] if isinstance(body, list) else ()
    )
    for key, item in items:
        if isinstance(item, (Mapping, list)):
            for own, values in _texts_by_name(item, str(key)).items():
                found.setdefault(own, []).extend(values)
    return found


def _currency_id(adapter: Reader, code: str) -> str:
    currencies = getattr(adapter.exchange, "currencies", None)
    currency = currencies.get(code) if isinstance(currencies, Mapping) else None
    return str(currency.get("id")) if isinstance(currency, Mapping) else code


# --- Open orders -----------------------------------------------------------------------------------


async def open_orders(adapter: Reader, symbol: str) -> Sequence[OrderReport]:
    """Every open order of *symbol* in every namespace of the venue, stop orders included, each once.

    Raises:
        AnswerUnusable: no list, a full page, or an order without its id, symbol or side.
        Exception: whatever ccxt raises.
    """
    await adapter.ready()
    row = account_of(adapter)
    found: dict[object, OrderReport] = {}
    for how in row.contract_orders if is_contract(symbol) else row.spot_orders:
        listing = await ask_all(adapter, "fetch_open_orders", symbol, None, how.limit, how=how)
        for report in (_open_order(adapter, structure) for structure in listing.structures):
            if report.symbol == symbol and not report.status.is_terminal:
                # The ids of two namespaces may be equal.
                found[report.venue_order_id, report.client_order_id, report.trigger_price] = report
    return tuple(found.values())


def _open_order(adapter: Reader, structure: Mapping[str, Any]) -> OrderReport:
    report = _reading.unless_set_off(
        adapter.details or Details(), adapter.parse_report(structure, id_field=_id_field(adapter))
    )
    sides_are_wrong = (
        adapter.details is not None and adapter.details.contract_sides_wrong and is_contract(report.symbol)
    )
    if report.venue_order_id is None or not report.symbol or (report.side is None and not sides_are_wrong):
        raise AnswerUnusable("an open order without its id, its symbol or its side")
    triggers = [_parsing.number(structure.get(name)) for name in _STOP_FIELDS]
    reduces: object = structure.get("reduceOnly")
    status = OrderStatus.OPEN if report.status is OrderStatus.UNKNOWN else report.status
    return attrs.evolve(
        report,
        status=status,
        trigger_price=next((price for price in triggers if price), None),
        reduce_only=reduces if isinstance(reduces, bool) else None,
    )


def _id_field(adapter: Reader) -> str:
    return account_of(adapter).trade_id_at or "clientOrderId"


# --- Fills -----------------------------------------------------------------------------------------


async def executions(adapter: Reader, symbol: str, since_ms: int) -> Sequence[Execution]:
    """Every fill of *symbol* at or after *since_ms*, oldest first.

    Asked period by period, as long as the venue allows; a period whose page is full is asked again in halves, so that
    neither the order of an answer nor the length of a page decides what is seen.

    Raises:
        UnsupportedByVenue: nothing is known of the venue's pages.
        InvalidInput: *since_ms* is so long ago that it would take hundreds of requests.
        AnswerUnusable: no list, a full page for a single instant, or a fill that lacks something.
        Exception: whatever ccxt raises.
    """
    await adapter.ready()
    row = account_of(adapter)
    trades = row.contract_trades if is_contract(symbol) else row.spot_trades
    if trades is None:
        raise UnsupportedByVenue(f"{adapter.exchange_id}: no list of fills: whether it is complete could not be told")
    end_ms = adapter.clock.now_ms() + _AHEAD_MS
    if since_ms < 0 or (end_ms - since_ms) // trades.window_ms > _REQUESTS_MAX:
        raise InvalidInput(f"{adapter.exchange_id}: fills are listed for at most {trades.window_ms * _REQUESTS_MAX} ms")
    found: dict[str, Execution] = {}
    windows = [
        (start, min(start + trades.window_ms, end_ms) - 1) for start in range(since_ms, end_ms, trades.window_ms)
    ]
    asked = 0
    while windows:
        start, end = windows.pop()
        asked += 1
        if asked > 2 * _REQUESTS_MAX:
            raise AnswerUnusable(f"more than {asked} requests for the fills of {symbol}")
        listing = await _period(adapter, symbol, trades, start, end)
        if listing is None:
            middle = (start + end) // 2
            windows += [(start, middle), (middle + 1, end)]
            continue
        found.update((fill.trade_id, fill) for fill in listing)
    return sorted(
        (fill for fill in found.values() if fill.at_ms >= since_ms),
        key=lambda fill: (fill.at_ms, _order(fill.trade_id)),
    )


async def _period(adapter: Reader, symbol: str, trades: Trades, start: int, end: int) -> list[Execution] | None:
    """The fills of one period; None if there may be more than were listed."""
    how = trades.how
    answer = await ask(adapter, "fetch_my_trades", symbol, start, how.limit, how=how, params={trades.until: end})
    if how.page is not None and len(answer.rows) >= how.page:
        if end - start < trades.grain_ms:
            raise AnswerUnusable(f"a full page of {how.page} fills within {trades.grain_ms} ms")
        return None
    structures = listed(answer.value)
    if len(answer.rows) > len(structures):
        _check_explained(adapter, symbol, start, answer.rows, {structure.get("id") for structure in structures})
    return [_execution(adapter, structure) for structure in structures if structure.get("symbol") in {symbol, None}]


def _check_explained(adapter: Reader, symbol: str, start: int, rows: Sequence[Any], listed_ids: set[Any]) -> None:
    """ccxt leaves out fills of other symbols, and those from before. Nothing else may be missing."""
    market = None if adapter.family in _EVERY_SYMBOL else markets_of(adapter.exchange).get(symbol)
    for row in rows:
        trade = adapter.exchange.parse_trade(row, market)
        at_ms: object = trade.get("timestamp")
        is_before = isinstance(at_ms, int) and at_ms < start
        if trade.get("symbol") == symbol and trade.get("id") not in listed_ids and not is_before:
            raise AnswerUnusable("the venue listed a fill, and its client left it out")


def _order(trade_id: str) -> tuple[int, str]:
    return len(trade_id), trade_id


def _execution(adapter: Reader, trade: Mapping[str, Any]) -> Execution:
    trade_id, side, symbol = (_parsing.text(trade.get(name)) for name in ("id", "side", "symbol"))
    quantity, price = _parsing.number(trade.get("amount")), _parsing.number(trade.get("price"))
    at_ms: object = trade.get("timestamp")
    if not trade_id or not symbol or side not in {"buy", "sell"} or not quantity or price is None:
        raise AnswerUnusable("a fill without its id, symbol, side, quantity or price")
    if not isinstance(at_ms, int) or isinstance(at_ms, bool):
        raise AnswerUnusable("a fill without its time")
    client_id = _parsing.text(_parsing.field(trade, account_of(adapter).trade_id_at or "clientOrderId"))
    prefix = (adapter.details or Details()).id_prefix
    texts = [value for _, value in _parsing.leaves(trade.get("info"))]
    return Execution(
        trade_id=trade_id,
        symbol=symbol,
        side=Side(side),
        quantity=exact(quantity, texts) or quantity,
        price=exact(price, texts) or price,
        venue_order_id=_parsing.text(trade.get("order")),
        client_order_id=client_id.removeprefix(prefix) if client_id is not None else None,
        fees=_parsing.fees(trade),
        at_ms=at_ms,
    )
