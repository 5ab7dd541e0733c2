"""ccxt's structures become execsafe's values. What a venue has not stated stays None; nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from execsafe.errors import InvalidInput
from execsafe.model.instrument import Instrument
from execsafe.model.order import Fee, Fill, OrderReport, OrderStatus, Side
from execsafe.model.values import plain
from execsafe.venues._shapes import AnswerUnusable

_STATUSES: Final = {
    "open": OrderStatus.OPEN,
    "canceling": OrderStatus.OPEN,  # asked for, not done: it may still fill
    "closed": OrderStatus.CLOSED,
    "canceled": OrderStatus.CANCELED,
    "cancelled": OrderStatus.CANCELED,
    "expired": OrderStatus.EXPIRED,
    "expired_in_match": OrderStatus.EXPIRED,
    "rejected": OrderStatus.REJECTED,
}
# Raw fields in which venues state a cumulative filled quantity. Where none of them is in the answer, a "filled"
# of 0 or of the whole amount was made up by the client (a missing number read as 0; "closed" read as full).
_FILLED_FIELDS: Final = frozenset(
    {
        "executedQty",  # binance, mexc spot
        "executed_qty",
        "cumExecQty",  # bybit
        "accFillSz",  # okx
        "fillSz",
        "dealVol",  # mexc swap
        "vol_exec",  # kraken
        "dealSize",  # kucoin
        "filledSize",
        "dealFunds",
        "filled_amount",  # gate spot, deribit
        "filled_total",
        "left",  # gate
        "baseVolume",  # bitget
        "accBaseVolume",
        "filledQty",
        "filled_size",  # coinbase
        "field-amount",  # htx spot
        "filled-amount",
        "trade_volume",  # htx swap
        "totalSz",  # hyperliquid
        "origSz",  # beside "sz", what is left of it; okx's "sz" is the order's size
        "filled",
        "filledAmount",
        "filledQuantity",
        "cumQty",
        "actualQty",
    }
)
_IDENTIFIER: Final = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)
_DEPTH_MAX: Final = 5
_LEAVES_MAX: Final = 2_000
_EXPONENT_MAX: Final = 30
_DECIMAL_PLACES: Final = 2
_TICK_SIZE: Final = 4


def number(value: object) -> Decimal | None:
    """A finite Decimal ≥ 0, or None for whatever is none. Floats go through ``repr``."""
    found = signed(value)
    return found if found is not None and found >= 0 else None


def signed(value: object) -> Decimal | None:
    """A finite Decimal of sensible size, or None."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        return None
    if isinstance(value, str) and len(value) > 64:  # noqa: PLR2004 - longer than any price
        return None
    try:
        found = value if isinstance(value, Decimal) else Decimal(repr(value) if isinstance(value, float) else value)
    except (InvalidOperation, ValueError):
        return None
    if not found.is_finite() or abs(found.adjusted()) > _EXPONENT_MAX:
        return None
    return found


def exact(value: Decimal) -> float | str:
    """What ccxt reads as exactly *value*: a float if its repr is the same number, else text."""
    as_float = float(value)
    return as_float if Decimal(repr(as_float)) == value else plain(value)


def text(value: object) -> str | None:
    """A non-empty text; numbers that serve as ids become text."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    return str(value) or None


def identifier(value: object) -> str | None:
    """An id as venues give them. ccxt takes whatever text it gets for an id: at mexc, a page of HTML."""
    found = text(value)
    return found if found is not None and _IDENTIFIER.fullmatch(found) else None


def status(value: object) -> OrderStatus:
    """ccxt passes unknown raw statuses through verbatim: those are UNKNOWN."""
    return _STATUSES.get(value.lower(), OrderStatus.UNKNOWN) if isinstance(value, str) else OrderStatus.UNKNOWN


def field(structure: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path such as ``info.label``; None where there is none."""
    value: Any = structure
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def leaves(value: object, depth: int = 0) -> Iterator[tuple[str, object]]:
    """Name and value of the plain values inside a raw body (bounded)."""
    if depth > _DEPTH_MAX:
        return
    if isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, (Mapping, list, tuple)):
                yield from leaves(item, depth + 1)
            else:
                yield str(name), item
    elif isinstance(value, (list, tuple)):
        for item in value[:100]:
            yield from leaves(item, depth + 1)


def mentions(info: object, wanted: Iterable[str]) -> bool:
    """Whether a raw body holds one of the ids *wanted* as a whole value."""
    ids = frozenset(wanted)
    for count, (_, value) in enumerate(leaves(info)):
        if count > _LEAVES_MAX:
            break
        if text(value) in ids:
            return True
    return False


def _filled(order: Mapping[str, Any], quantity: Decimal | None) -> Decimal | None:
    filled = number(order.get("filled"))
    info = order.get("info")
    if filled is None or not isinstance(info, (Mapping, list)) or not info:
        # Without a raw body there is nothing to check against (objects of ccxt's shape that are not ccxt).
        return filled if info in (None, {}, []) else None
    if filled not in (0, quantity):
        return filled
    return filled if any(name in _FILLED_FIELDS for name, _ in leaves(info)) else None


def fees(structure: Mapping[str, Any]) -> tuple[Fee, ...]:
    """Fees whose cost and currency are both stated; a negative cost is a rebate."""
    listed = structure.get("fees")
    found = listed if isinstance(listed, list) and listed else [structure.get("fee")]
    known = []
    for fee in found:
        if isinstance(fee, Mapping):
            cost, currency = signed(fee.get("cost")), text(fee.get("currency"))
            if cost is not None and currency is not None:
                known.append(Fee(cost=cost, currency=currency))
    return tuple(known)


def with_all_fees(order: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """*order* with a fee for every currency of the raw field *name* (currency → cost): ccxt keeps the first only."""
    detail = field(order, f"info.{name}")
    if not isinstance(detail, Mapping) or len(detail) < 2:  # noqa: PLR2004 - one is what ccxt keeps
        return order
    costs = {currency: signed(cost) for currency, cost in detail.items()}
    stated = [{"cost": float(cost), "currency": currency} for currency, cost in costs.items() if cost is not None]
    return {**order, "fee": None, "fees": stated}


def fills(trades: object) -> tuple[Fill, ...]:
    """Executions by trade id, each once; those without id, quantity or price are left out."""
    found: dict[str, Fill] = {}
    for trade in trades if isinstance(trades, list) else ():
        if not isinstance(trade, Mapping):
            continue
        trade_id = text(trade.get("id"))
        quantity, price = number(trade.get("amount")), number(trade.get("price"))
        if trade_id is None or not quantity or price is None:
            continue
        at_ms = trade.get("timestamp")
        found[trade_id] = Fill(
            trade_id=trade_id,
            quantity=quantity,
            price=price,
            fees=fees(trade),
            filled_at_ms=at_ms if isinstance(at_ms, int) and not isinstance(at_ms, bool) else None,
        )
    return tuple(found.values())


def report(order: Mapping[str, Any], *, client_order_id: str | None) -> OrderReport:
    """A unified order as a report; *client_order_id* is the id as we know it (without a venue's prefix)."""
    quantity = number(order.get("amount"))
    filled = _filled(order, quantity)
    state = status(order.get("status"))
    if state is OrderStatus.REJECTED and filled:
        state = OrderStatus.CANCELED  # some venues call an order rejected whose rest was rejected
    side: object = order.get("side")
    at_ms = order.get("lastUpdateTimestamp") or order.get("lastTradeTimestamp") or order.get("timestamp")
    symbol = order.get("symbol")
    return OrderReport(
        symbol=symbol if isinstance(symbol, str) else "",
        status=state,
        client_order_id=client_order_id,
        venue_order_id=identifier(order.get("id")),
        side=Side(side) if isinstance(side, str) and side in {"buy", "sell"} else None,
        quantity=quantity or None,
        filled_quantity=filled,
        average_price=number(order.get("average")) or None,
        limit_price=number(order.get("price")) or None,
        fills=fills(order.get("trades")),
        reported_at_ms=at_ms if isinstance(at_ms, int) and not isinstance(at_ms, bool) else None,
        raw=order,
    )


def report_of_trades(trades: Sequence[Mapping[str, Any]], *, symbol: str, client_order_id: str) -> OrderReport:
    """Executions prove that the order exists and how much of it filled at least, not what became of the rest."""
    known = fills(list(trades))
    if not known:
        raise AnswerUnusable("executions of the order were listed without id, quantity or price")
    total = sum((fill.quantity for fill in known), Decimal(0))
    ids = {text(trade.get("order")) for trade in trades} - {None}
    sides = [side for side in Side if any(trade.get("side") == side.value for trade in trades)]
    return OrderReport(
        symbol=symbol,
        client_order_id=client_order_id,
        venue_order_id=ids.pop() if len(ids) == 1 else None,
        side=sides[0] if len(sides) == 1 else None,
        filled_quantity=total,
        average_price=sum((fill.quantity * fill.price for fill in known), Decimal(0)) / total,
        fills=known,
    )


def _step(value: object, mode: object) -> Decimal | None:
    found = number(value)
    if found is None:
        return None
    if mode == _DECIMAL_PLACES:
        return Decimal(1).scaleb(-int(found))
    return found or None if mode in (None, _TICK_SIZE) else None  # significant digits are no grid


def _limit(market: Mapping[str, Any], group: str, bound: str) -> Decimal | None:
    return number(field(market, f"limits.{group}.{bound}")) or None


def instrument(symbol: str, market: Mapping[str, Any], precision_mode: object) -> Instrument:
    """Trading rules from a ccxt market. Limits that are missing, None or 0 do not exist."""
    try:
        return Instrument(
            symbol=symbol,
            base=text(market.get("base")) or "",
            quote=text(market.get("quote")) or "",
            tick_size=_step(field(market, "precision.price"), precision_mode),
            step_size=_step(field(market, "precision.amount"), precision_mode),
            min_quantity=_limit(market, "amount", "min"),
            max_quantity=_limit(market, "amount", "max"),
            min_price=_limit(market, "price", "min"),
            max_price=_limit(market, "price", "max"),
            min_notional=_limit(market, "cost", "min"),
            max_notional=_limit(market, "cost", "max"),
            contract_size=number(market.get("contractSize")) or Decimal(1),
        )
    except InvalidInput as error:
        raise InvalidInput(f"the market of {symbol} cannot be understood: {error}") from None
