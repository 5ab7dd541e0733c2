"""Records in ccxt's shapes: unified order dictionaries and ccxt's exceptions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import attrs

from execsafe.errors import InvalidInput, OrderRejected, UnsupportedByVenue
from execsafe.gateway import Rejected
from execsafe.model.intent import STOP_PRICES, Intent, IntentRecord, IntentState
from execsafe.model.order import OrderReport
from execsafe.model.values import SYMBOL_LENGTH_MAX, Params, shorten, to_positive, to_text

_STATUS: Final = {
    IntentState.LIVE: "open",
    IntentState.FILLED: "closed",
    IntentState.CANCELED: "canceled",
    IntentState.EXPIRED: "expired",
    IntentState.REJECTED: "rejected",
}

# ccxt takes these in any case; the journal knows one spelling.
PLAIN_TYPES: Final = frozenset({"limit", "market"})
SIDES: Final = frozenset({"buy", "sell"})
_EDITABLE: Final = {"timeInForce": "time_in_force", "postOnly": "post_only", "freshUntilMs": "fresh_until_ms"}
_YEAR_10000_MS: Final = 253_402_300_800_000
_ORDER_ID_LENGTH_MAX: Final = 128


def in_lower_case(word: Any, words: frozenset[str]) -> Any:
    """*word* in lower case if that is one of *words*, else as it is."""
    return word.lower() if isinstance(word, str) and word.lower() in words else word


def to_mapping(params: object) -> Mapping[str, Any]:
    """ccxt's *params* argument; None is an empty one."""
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise InvalidInput(f"params must be a mapping, was {shorten(type(params).__name__)}")
    return params


def to_sequence(values: Sequence[Any], name: str) -> Sequence[Any]:
    """*values*, if they are a list or tuple."""
    if not isinstance(values, (list, tuple)):
        raise InvalidInput(f"{name} must be a list or tuple, was {shorten(type(values).__name__)}")
    return values


def trigger_price(params: dict[str, Any]) -> Any:
    """Take the trigger price out of *params*. ``stopPrice`` is ccxt's older name for it, used by its own siblings."""
    given = [params.pop(name) for name in ("triggerPrice", "stopPrice") if name in params]
    if len(given) > 1:
        raise InvalidInput("triggerPrice and stopPrice mean the same: give one of them")
    if given == [None]:
        raise InvalidInput("triggerPrice is None: leave it out for a plain order")  # which would go out at once
    return given[0] if given else None


def edited_terms(terms: Intent, params: Mapping[str, Any]) -> dict[str, Any]:
    """What *params* of an edit change of an order's *terms*, as fields of an amendment.

    Raises:
        UnsupportedByVenue: they hold something else than what the order was placed with, which would be lost.
        InvalidInput: another kind of stop, or a malformed value.
    """
    placed = {"reduceOnly": terms.reduce_only, "intentKey": terms.key, **terms.params.thaw()}
    changed: dict[str, Any] = {}
    for name, value in params.items():
        kind = "triggerPrice" if name == "stopPrice" else name
        if name == "clientOrderId":
            continue  # says which order is meant
        if kind in STOP_PRICES:
            if kind != terms.stop_name or "trigger_price" in changed:
                was = "no stop" if terms.stop_name is None else f"placed with {terms.stop_name}"
                raise InvalidInput(f"params[{name!r}]: an edit moves a stop under its own name; this order is {was}")
            changed["trigger_price"] = to_positive(value, name)
        elif name in _EDITABLE:
            changed[_EDITABLE[name]] = value
        elif name not in placed or placed[name] != value:
            raise UnsupportedByVenue(f"params[{shorten(name)}] cannot be edited: cancel the order and place a new one")
    attrs.evolve(terms, **{name: value for name, value in changed.items() if name != "trigger_price"})
    return changed


def check_reference(order_id: object, symbol: object, params: object, *, symbol_required: bool = True) -> None:
    """Refuse what cannot name an order: a venue id, or a client order id in *params*, and its symbol."""
    given = to_mapping(params)
    if "clientOrderId" in given:
        to_text(given["clientOrderId"], "clientOrderId", _ORDER_ID_LENGTH_MAX)
    else:
        to_text(order_id, "order id", _ORDER_ID_LENGTH_MAX)  # type: ignore[arg-type]
    if symbol_required or symbol is not None:
        to_text(symbol, "symbol", SYMBOL_LENGTH_MAX)  # type: ignore[arg-type]
    Params.of(given)


def check_terms(kind: object, side: object, amount: Any, price: Any) -> None:
    """Refuse the terms of an edit that are malformed; None leaves a term as it is."""
    if kind is not None:
        to_text(kind, "type", 32)  # type: ignore[arg-type]
    if side is not None and not (isinstance(side, str) and side.lower() in SIDES):
        raise InvalidInput(f"side must be 'buy' or 'sell', was {shorten(side)}")
    if amount is not None:
        to_positive(amount, "amount")
    if price is not None:
        to_positive(price, "price")


def check_same(record: IntentRecord, kind: str | None, side: str | None) -> None:
    """Refuse an edit that names another type or side than the order has."""
    named = {"type": kind, "side": side}
    meant = {"type": record.intent.type.lower(), "side": record.intent.side.value}
    if any(value is not None and value.lower() != meant[name] for name, value in named.items()):
        raise InvalidInput(
            f"an edit cannot change type or side: the order is a {record.intent.type} {record.intent.side.value}",
            intent_key=record.intent.key,
        )


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def ccxt_order(record: IntentRecord, report: OrderReport | None) -> dict[str, Any]:
    """A unified ccxt order. What the venue has not said is None, never a guess."""
    raw = dict(report.raw) if report is not None and report.raw is not None else {}
    intent, last = record.terms, record.last
    stop = {} if intent.stop_name is None else {intent.stop_name: _float(intent.stop_price)}
    # A live order of which no reading has stated a fill yet: "0" would be a claim.
    is_silent = report is not None and report.filled_quantity is None
    unstated = is_silent and record.state is IntentState.LIVE and record.filled_quantity == 0
    filled = None if unstated else record.filled_quantity
    average = record.average_price
    at_ms = _instant(raw.get("timestamp"), record.created_at_ms)
    is_market = intent.type.lower() == "market"  # its price argument was at most a bound, and is not sent
    order: dict[str, Any] = {
        "info": raw.get("info", {}),
        "id": None if last is None else last.venue_order_id,
        "clientOrderId": None if last is None else last.client_order_id,
        "timestamp": at_ms,
        "datetime": _iso8601(at_ms),
        "lastTradeTimestamp": raw.get("lastTradeTimestamp"),
        "symbol": intent.symbol,
        "type": intent.type,
        "side": intent.side.value,
        "timeInForce": raw.get("timeInForce") or intent.time_in_force,
        "postOnly": intent.post_only,
        "reduceOnly": intent.reduce_only,
        "price": raw.get("price") if record.limit_price is None or is_market else _float(record.limit_price),
        "triggerPrice": _float(intent.stop_price),
        "stopLossPrice": stop.get("stopLossPrice"),
        "takeProfitPrice": stop.get("takeProfitPrice"),
        "amount": _float(record.quantity),
        "filled": _float(filled),
        "remaining": None if filled is None else _float(record.leaves_quantity),
        "average": _float(average),
        "cost": _float(average * record.filled_quantity) if average is not None else None,
        "status": None if unstated else _STATUS.get(record.state),
        "fee": raw.get("fee"),
        "fees": raw.get("fees") or [],
        "trades": raw.get("trades") or [],
        "intentKey": intent.key,
    }
    return order


def _instant(stated: object, otherwise: int) -> int:
    """The instant that a venue states, in Unix ms, if it is one: after acceptance nothing may raise."""
    is_instant = isinstance(stated, int) and not isinstance(stated, bool) and 0 < stated < _YEAR_10000_MS
    return stated if is_instant else min(otherwise, _YEAR_10000_MS - 1)  # type: ignore[return-value]


def _iso8601(at_ms: int) -> str:
    moment = datetime.fromtimestamp(at_ms / 1000, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at_ms % 1000:03d}Z"


def why_unknown(record: IntentRecord) -> str:
    """What is not known of it, and what to do."""
    key = record.intent.key
    if record.state is IntentState.LIVE and record.change is not None:
        then = "" if record.change.is_cancel else ", and nothing was placed in its stead"
        return (
            f"the order of intent {key!r} could not be seen to end: it rests at the venue, as far as is known{then}. "
            f"The wish is journalled: recover() goes on with it, or cancel it again"
        )
    if record.state is IntentState.LIVE:
        return f"the order of intent {key!r} rests at the venue; whether it was canceled is not known: read it back"
    return (
        f"nobody knows yet whether the venue has the order of intent {key!r}; do not resend: call recover(), or repeat "
        f"with the same intentKey"
    )


def recorded_error(outcome: Rejected, exchange: Any) -> BaseException:
    """The venue client's own exception for a definite reject, as raised first or rebuilt from the record."""
    if outcome.cause is not None:
        return outcome.cause
    error = outcome.error
    kind = _client_error(exchange, error.kind)
    if kind is not None:
        try:
            return kind(error.message)
        except TypeError:  # a client's class with another constructor
            pass
    message = error.message or "the venue shows the order as rejected, and gives no reason"
    return OrderRejected(f"{error.kind}: {message}", intent_key=outcome.record.intent.key, code=error.code)


def _client_error(exchange: Any, name: str) -> type[Exception] | None:
    """ccxt's class of that name, if ccxt is loaded (it is, wherever one of its exchanges exists)."""
    module = sys.modules.get("ccxt.base.errors")
    kind = getattr(module, name, None) or getattr(exchange, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, Exception) else None
