"""What venues' codes mean where ccxt's class alone would be wrong or says nothing. Data only.

How rows are matched: :func:`execsafe.core.outcomes.classify`. Codes that ccxt maps to a class which already means
the right thing have no row. An unlisted code means what its class means, in the end UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from execsafe.core.outcomes import Rule
from execsafe.model.outcome import Meaning, Operation
from execsafe.venues.profiles import RELATIVES

_CREATE: Final = frozenset({Operation.CREATE})
_CANCEL: Final = frozenset({Operation.CANCEL})
_FINDING: Final = frozenset({Operation.CANCEL, Operation.LOOK_UP})
_LOOK_UP: Final = frozenset({Operation.LOOK_UP})
_LEVERAGE: Final = frozenset({Operation.SET_LEVERAGE})
_MARGIN: Final = frozenset({Operation.SET_MARGIN_MODE})
_SETTINGS: Final = _LEVERAGE | _MARGIN
_STOP: Final = frozenset({Operation.SET_STOP})
_ANY: Final = frozenset(Operation)

_Row = tuple[Meaning, frozenset[Operation], str, str]
"""Meaning, operations, code (or ``"~text"``: part of the message), reason."""


def _rules(*rows: _Row) -> tuple[Rule, ...]:
    return tuple(
        Rule(meaning=meaning, operations=operations, reason=reason, text=match[1:])
        if match.startswith("~")
        else Rule(meaning=meaning, operations=operations, reason=reason, code=match)
        for meaning, operations, match, reason in rows
    )


_BINANCE: Final = _rules(
    (Meaning.EXISTS, _CREATE, "~Duplicate order sent", "the id is taken by an open order; ccxt says InvalidOrder"),
    (Meaning.EXISTS, _CREATE, "-4116", "the id is taken by an open order; InvalidOrder or ExchangeError"),
    (Meaning.EXISTS, _CREATE, "-20132", "the id is taken by an open stop order; ccxt says BadRequest"),
    (Meaning.UNKNOWN, _ANY, "-1000", "unknown error while processing"),
    (Meaning.UNKNOWN, _ANY, "-1001", "internal error: unable to process"),
    (Meaning.UNKNOWN, _CREATE, "-1004", "server is busy; ccxt says BadRequest or OperationRejected"),
    (Meaning.UNKNOWN, _ANY, "-1006", "unexpected response from the matching engine; execution unknown"),
    (Meaning.UNKNOWN, _ANY, "-1007", "timeout at the back end; execution unknown"),
    (Meaning.UNKNOWN, _CREATE, "-2011", "unknown order: no answer to a create; ccxt may say OperationRejected"),
    (Meaning.REJECTED, _CREATE, "-1003", "too many requests: turned away before processing"),
    (Meaning.REJECTED, _CREATE, "-1015", "too many orders: turned away before processing"),
    (Meaning.REJECTED, _CREATE, "-1021", "timestamp outside of recvWindow: refused on receipt"),
    (Meaning.REJECTED, _CREATE, "-2015", "key refused; ccxt says DDoSProtection after an earlier success"),
    (Meaning.REJECTED, _CREATE, "-5028", "timestamp outside of the matching engine's recvWindow"),
    (Meaning.UNKNOWN, _LOOK_UP, "-2026", "archived: the order existed, this view no longer shows it"),
    (Meaning.NOT_FOUND, _CANCEL, "-20124", "stop order unknown or completed: read what became of it"),
    (Meaning.NO_CHANGE, _MARGIN, "-4046", "no need to change the margin type"),
    (Meaning.NO_CHANGE, _MARGIN, "~No need to change margin type", "the same, by message"),
    (Meaning.NO_CHANGE, _SETTINGS, "-4059", "no need to change the position side"),
)

OUTCOMES: Final[Mapping[str, tuple[Rule, ...]]] = MappingProxyType(
    {
        "binance": _BINANCE,
        "binanceusdm": _BINANCE,
        "bybit": _rules(
            (Meaning.EXISTS, _CREATE, "110072", "orderLinkId is duplicate (derivatives); InvalidOrder"),
            (Meaning.EXISTS, _CREATE, "170141", "duplicate clientOrderId (spot); InvalidOrder"),
            (Meaning.EXISTS, _CREATE, "10014", "invalid duplicate request; BadRequest"),
            (Meaning.EXISTS, _CREATE, "12141", "duplicate clientOrderId (spot, before v5); BadRequest"),
            (Meaning.EXISTS, _CREATE, "110030", "duplicate orderId; InvalidOrder"),
            (Meaning.EXISTS, _CREATE, "140030", "duplicate orderId; InvalidOrder"),
            (Meaning.EXISTS, _CREATE, "30001", "order_link_id is repeated; BadRequest"),
            (Meaning.UNKNOWN, _ANY, "170035", "submitted, and being processed; ccxt says BadRequest"),
            (Meaning.UNKNOWN, _ANY, "170146", "order creation timeout; ccxt says InvalidOrder"),
            (Meaning.UNKNOWN, _ANY, "170147", "order cancel timeout; ccxt says InvalidOrder"),
            (Meaning.UNKNOWN, _ANY, "170007", "timeout waiting for the back end"),
            (Meaning.UNKNOWN, _ANY, "10000", "server timeout"),
            (Meaning.UNKNOWN, _ANY, "10016", "server error"),
            (Meaning.UNKNOWN, _ANY, "429", "overload"),
            (Meaning.UNKNOWN, _ANY, "10429", "overload"),
            (Meaning.UNKNOWN, _ANY, "110079", "the order is being processed"),
            (Meaning.UNKNOWN, _ANY, "170191", "to be tried later; ccxt says InvalidOrder"),
            (Meaning.UNKNOWN, _ANY, "175002", "too many orders at once, to be tried later; ccxt says InvalidOrder"),
            (Meaning.UNKNOWN, _ANY, "175005", "too many orders at once, to be tried later; ccxt says InvalidOrder"),
            (Meaning.UNKNOWN, _ANY, "176018", "settlement in progress; ccxt says BadRequest"),
            (Meaning.UNKNOWN, _ANY, "176019", "liquidation in progress; ccxt says BadRequest"),
            (Meaning.REJECTED, _CREATE, "10006", "too many visits: turned away before processing"),
            (Meaning.REJECTED, _CREATE, "10018", "IP rate limit: turned away before processing"),
            (Meaning.NOT_FOUND, _CANCEL, "110008", "completed or canceled: read what became of it"),
            (Meaning.NOT_FOUND, _CANCEL, "110010", "already canceled: read what became of it"),
            (Meaning.NOT_FOUND, _CANCEL, "170139", "already filled: read what became of it"),
            (Meaning.NOT_FOUND, _CANCEL, "170142", "already canceled: read what became of it"),
            (Meaning.NOT_FOUND, _CANCEL, "170143", "not on the order book: read what became of it"),
            (Meaning.NO_CHANGE, _LEVERAGE, "110043", "leverage not modified; ccxt says BadRequest"),
            (Meaning.NO_CHANGE, _LEVERAGE, "140043", "leverage not modified; ccxt says BadRequest"),
            (Meaning.NO_CHANGE, _LEVERAGE, "34036", "leverage not modified; ccxt says BadRequest"),
            (Meaning.NO_CHANGE, _SETTINGS, "110025", "position mode not modified"),
            (Meaning.NO_CHANGE, _SETTINGS, "110026", "margin mode not modified"),
            (Meaning.NO_CHANGE, _SETTINGS | _STOP, "34040", "not modified; ccxt says ExchangeError"),
        ),
        "okx": _rules(
            (Meaning.EXISTS, _CREATE, "51016", "client order id already exists; InvalidOrder"),
            (Meaning.EXISTS, _CREATE, "51011", "order id is duplicated; InvalidOrder"),
            (Meaning.UNKNOWN, _ANY, "50004", "endpoint timeout: neither success nor failure"),
            (Meaning.UNKNOWN, _ANY, "4006", "abnormal disconnection; ccxt says BadRequest"),
            (Meaning.UNKNOWN, _ANY, "50026", "system error"),
            (Meaning.REJECTED, _CREATE, "50011", "rate limit: turned away before processing"),
            (Meaning.REJECTED, _CREATE, "50061", "order rate limit of the account; ccxt says ExchangeError"),
            (Meaning.REJECTED, _CREATE, "51023", "position does not exist; ccxt says ExchangeError"),
            (Meaning.REJECTED, _CREATE, "51169", "no position to reduce or close; ccxt says ExchangeError"),
        ),
        "mexc": _rules(
            (Meaning.UNKNOWN, _CREATE, "603", "repeated request: whether the first one stands is unverified"),
            (Meaning.UNKNOWN, _ANY, "500", "internal error"),
            (Meaning.UNKNOWN, _ANY, "513", "invalid request, to be tried later: what became of it is not said"),
            (Meaning.REJECTED, _CREATE, "429", "rate limit: turned away before processing"),
            (Meaning.REJECTED, _CREATE, "510", "rate limit: turned away before processing"),
            (Meaning.REJECTED, _CREATE, "30005", "oversold: less is free than sold; InsufficientFunds by text only"),
            (Meaning.REJECTED, _CREATE, "30004", "insufficient position"),
            (Meaning.REJECTED, _CREATE, "30002", "below the minimum value"),
            (Meaning.NOT_FOUND, _FINDING, "-2013", "order does not exist; ccxt says ExchangeError"),
            (Meaning.NOT_FOUND, _FINDING, "-2011", "unknown order sent; ccxt says BadRequest"),
            (Meaning.NOT_FOUND, _FINDING, "2040", "order does not exist (swap); ccxt says ExchangeError"),
        ),
        "kraken": _rules(
            (Meaning.NOT_FOUND, _FINDING, "~EOrder:Unknown order", "ccxt says InvalidOrder"),
            (Meaning.UNKNOWN, _CREATE, "~EOrder:Unknown order", "no answer to a create; ccxt says InvalidOrder"),
            (Meaning.REJECTED, _CREATE, "~EOrder:Rate limit exceeded", "turned away before processing"),
            (Meaning.REJECTED, _CREATE, "~EAPI:Rate limit exceeded", "turned away before processing"),
        ),
        "kucoin": _rules(
            (Meaning.EXISTS, _CREATE, "126044", "clientOid exists; InvalidOrder"),
            (Meaning.EXISTS, _CREATE, "126033", "duplicate order; InvalidOrder"),
            (Meaning.UNKNOWN, _ANY, "408000", "network timeout; ccxt says BadRequest"),
            (Meaning.EXISTS, _CREATE, "~clientOidDuplicated", "code 400100, BadRequest like any bad parameter"),
            (Meaning.REJECTED, _CREATE, "429000", "rate limit: turned away before processing"),
            (Meaning.NOT_FOUND, _CANCEL, "100004", "not in a cancelable state: read what became of it"),
        ),
        "gate": _rules(
            (Meaning.EXISTS, _CREATE, "REPEATED_CREATION", "the same order was created before; InvalidOrder"),
            (Meaning.NO_CHANGE, _SETTINGS, "NO_CHANGE", "already as asked for; ccxt says InvalidOrder"),
            (Meaning.REJECTED, _CREATE, "TOO_MANY_REQUESTS", "turned away before processing"),
            (Meaning.NOT_FOUND, _CANCEL, "ORDER_CLOSED", "already ended: read what became of it"),
            (Meaning.NOT_FOUND, _CANCEL, "ORDER_CANCELLED", "already ended: read what became of it"),
            (Meaning.NOT_FOUND, _CANCEL, "ORDER_FINISHED", "already ended: read what became of it"),
        ),
        "bitget": _rules(
            (Meaning.EXISTS, _CREATE, "40786", "duplicate clientOid; ccxt says ExchangeError"),
            (Meaning.UNKNOWN, _ANY, "40015", "system is abnormal"),
            (Meaning.UNKNOWN, _ANY, "50008", "network timeout"),
            (Meaning.REJECTED, _CREATE, "429", "rate limit: turned away before processing"),
            (Meaning.REJECTED, _CREATE, "22002", "no position to close; ccxt says ExchangeError"),
            (Meaning.NOT_FOUND, _CANCEL, "43025", "plan order does not exist; ccxt says InvalidOrder"),
        ),
        "coinbase": _rules(
            (Meaning.REJECTED, _CREATE, "INSUFFICIENT_FUND", "ccxt reads another field and says ExchangeError"),
            (Meaning.UNKNOWN, _ANY, "internal_server_error", "internal error"),
            (Meaning.REJECTED, _CREATE, "rate_limit_exceeded", "turned away before processing"),
        ),
        "htx": _rules(
            (Meaning.UNKNOWN, _ANY, "timeout", "timeout at the venue"),
            (Meaning.UNKNOWN, _ANY, "gateway-internal-error", "internal error"),
        ),
        "hyperliquid": _rules(
            (Meaning.REJECTED, _CREATE, "~Too many cumulative requests sent", "turned away before processing"),
        ),
        "deribit": _rules(
            (Meaning.REJECTED, _CREATE, "10028", "too many requests: turned away before processing"),
        ),
    }
)
"""Rows by ccxt's exchange id; the first that matches wins."""

_SAME_CODES: Final = MappingProxyType({**RELATIVES, "binancecoinm": "binance", "kucoinfutures": "kucoin"})


def codes_of(exchange_id: str) -> tuple[Rule, ...]:
    """The rows for an exchange. ccxt's subclasses of a listed one read the same table of errors, and need the same."""
    return OUTCOMES.get(_SAME_CODES.get(exchange_id, exchange_id), ())
