"""Leverage, margin mode, and stops attached to a position: sent once, confirmed, "already so" told apart."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from execsafe.errors import ExecsafeError, InvalidInput, UnsupportedByVenue
from execsafe.model.instrument import is_contract
from execsafe.model.position import PositionSide, StopKind
from execsafe.model.values import plain, shorten
from execsafe.venues import _parsing, _wire
from execsafe.venues._account import account_of
from execsafe.venues._asking import Asker, at, method_of
from execsafe.venues._shapes import AnswerUnusable, markets_of

_MODES: Final = frozenset({"isolated", "cross"})


class AlreadySo(ExecsafeError):
    """The venue said that nothing had to change, and its client kept that to itself."""


def stop_kind(adapter: Asker, symbol: str) -> StopKind:
    """How the venue keeps the stop of a position in *symbol*."""
    attached = account_of(adapter).attached_stop and is_contract(symbol)
    return StopKind.ATTACHED if attached else StopKind.ORDER


async def set_leverage(adapter: Asker, symbol: str, leverage: Decimal) -> None:
    """Set the leverage, and see in the answer that it is set.

    Raises:
        UnsupportedByVenue: it cannot be set through this client, or not on this market; says why.
        InvalidInput: not a number of at least 1.
        AlreadySo: nothing had to change.
        AnswerUnusable: the answer does not confirm it.
        Exception: whatever ccxt raises.
    """
    row = account_of(adapter)
    _refuse(adapter, symbol, "leverage", row.no_leverage)
    if not leverage.is_finite() or leverage < 1:
        raise InvalidInput(f"leverage must be at least 1, was {shorten(str(leverage))}")
    await adapter.ready()
    number = int(leverage) if leverage == int(leverage) else float(leverage)
    answer = await _send(adapter, "set_leverage", number, symbol, {})
    echo = _parsing.number(at(answer, row.echo_at)) if row.echo_at else leverage
    if echo != leverage:
        raise AnswerUnusable(f"asked for a leverage of {plain(leverage)}, the answer says {echo}")


async def set_margin_mode(adapter: Asker, symbol: str, mode: str) -> None:
    """Set the margin mode. Some venues keep it per account (bybit's unified one): there it is set for all symbols.

    Raises:
        UnsupportedByVenue: it cannot be set through this client, or not on this market; says why.
        InvalidInput: neither "isolated" nor "cross".
        AlreadySo: nothing had to change.
        AnswerUnusable: the answer does not confirm it.
        Exception: whatever ccxt raises.
    """
    _refuse(adapter, symbol, "margin mode", account_of(adapter).no_margin_mode)
    if mode not in _MODES:
        raise InvalidInput(f"a margin mode is 'isolated' or 'cross', not {shorten(mode)}")
    await adapter.ready()
    await _send(adapter, "set_margin_mode", mode, symbol, {})


async def set_attached_stop(adapter: Asker, symbol: str, side: PositionSide, stop_price: Decimal | None) -> None:
    """Attach a stop-loss to the whole position (a market order when the last price gets there), or remove it (None).

    The account must be in one-way mode, in which *side* is the only position there is.

    Raises:
        UnsupportedByVenue: the venue's stops are orders, or ccxt would send another price.
        AnswerUnusable: the answer is none.
        Exception: whatever ccxt raises; "already so" among it.
    """
    del side  # one-way mode: the position is the only one
    method = account_of(adapter).attached_stop
    if not method or not is_contract(symbol):
        raise UnsupportedByVenue(f"{adapter.exchange_id}: the stop of {symbol} is an order of its own")
    await adapter.ready()
    market = markets_of(adapter.exchange).get(symbol)
    if not isinstance(market, Mapping):
        raise InvalidInput(f"{adapter.exchange_id} does not list {shorten(symbol)}")
    request = {
        "category": "linear" if market.get("linear") else "inverse",
        "symbol": market.get("id"),
        "tpslMode": "Full",
        "positionIdx": 0,
        "stopLoss": "0" if stop_price is None else _on_tick(adapter, symbol, stop_price),
    }
    await _send(adapter, method, request)


def _on_tick(adapter: Asker, symbol: str, price: Decimal) -> str:
    to_precision = getattr(adapter.exchange, "price_to_precision", None)
    text = plain(price)
    rounded = _parsing.number(to_precision(symbol, text)) if callable(to_precision) else price
    if rounded != price or price <= 0:
        raise UnsupportedByVenue(f"{symbol}: a stop at {text} is not on the price grid; round it first")
    return text


def _refuse(adapter: Asker, symbol: str, what: str, reason: str) -> None:
    if reason:
        raise UnsupportedByVenue(f"{adapter.exchange_id}: no {what}: {reason}")
    if not is_contract(symbol):
        raise UnsupportedByVenue(f"{symbol}: spot has no {what}")


async def _send(adapter: Asker, name: str, *arguments: Any) -> Mapping[str, Any]:
    """One request, sent once, and the venue's own answer to it."""
    call = method_of(adapter, name)
    with _wire.sending(), _wire.listening() as bodies:
        value = await call(*arguments)
    for said in (value, *bodies[-1:]):
        code = (
            _parsing.text(said.get("code")) or _parsing.text(said.get("retCode")) if isinstance(said, Mapping) else None
        )
        if code in account_of(adapter).already:
            raise AlreadySo(f"{adapter.exchange_id}: {name}: already so ({code})")
    body = bodies[-1] if bodies else None if _wire.is_hooked(adapter.exchange) else value
    if isinstance(body, list):  # gate in two-way mode: one per side
        body = body[0] if body else None
    if not isinstance(body, Mapping) or not body:
        raise AnswerUnusable(f"{name} was answered with something that is no answer")
    return body
