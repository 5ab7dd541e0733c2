"""Reading one view of a venue through ccxt, and refusing answers that prove nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import attrs

from execsafe.model.instrument import is_contract
from execsafe.model.order import ZERO, OrderReport, OrderStatus
from execsafe.model.outcome import Judged, Meaning, Operation
from execsafe.model.values import EMPTY_PARAMS, Params
from execsafe.model.venue import LookUp, View
from execsafe.ports import OrderRef
from execsafe.venues import _parsing, _routing, _wire
from execsafe.venues._details import Details
from execsafe.venues._shapes import AnswerUnusable, markets_of
from execsafe.venues.profiles import ID_PLACE


class Reader(Protocol):
    """What reading needs of the adapter."""

    exchange: Any
    details: Details | None

    def parse_report(self, order: Mapping[str, Any], *, id_field: str = ...) -> OrderReport:
        """A unified ccxt order as a report."""
        ...

    def judge(self, error: BaseException, operation: Operation) -> Judged:
        """What an error means at this venue."""
        ...

    def fill_in(self, params: Params, order: OrderRef) -> dict[str, Any]:
        """*params* with the places for ids filled in."""
        ...


# Clocks differ, and some venues stamp an order later than we do: look from a little earlier.
_BEFORE_MS: Final = 120_000
_NO_PARAMS: Final = (EMPTY_PARAMS,)


async def read(adapter: Reader, lookup: LookUp, order: OrderRef) -> OrderReport | None:
    """The order in this view, None if it is definitely not in it."""
    if order.client_order_id is None and order.venue_order_id is None:
        raise AnswerUnusable("an order without any id cannot be looked up")
    details = adapter.details or Details()
    _routing.check_look_up(adapter.exchange, order.symbol, details, lookup.method)
    for special in details.contract_lookups if is_contract(order.symbol) else ():
        if special.view is lookup.view:
            lookup = special
    for extra in details.trigger_params if order.is_trigger else _NO_PARAMS:
        report = await _read_once(adapter, lookup, order, extra)
        if report is not None:
            return await _followed(adapter, order, report)
    return None


async def _read_once(adapter: Reader, lookup: LookUp, order: OrderRef, extra: Params) -> OrderReport | None:
    params = {**adapter.fill_in(lookup.params, order), **extra.thaw()}
    method = getattr(adapter.exchange, lookup.method)
    if lookup.method == "fetch_order":
        if order.client_order_id is None:
            answer = await method(order.venue_order_id, order.symbol, extra.thaw())
        else:
            answer = await method(None, order.symbol, params)
        return _single(adapter, lookup, order, answer)
    if not lookup.method.startswith("fetch_"):
        return _single(adapter, lookup, order, _unwrapped(adapter, order, await method(params)))
    return await _scan(adapter, lookup, order, params)


async def _scan(adapter: Reader, lookup: LookUp, order: OrderRef, params: dict[str, Any]) -> OrderReport | None:
    method = getattr(adapter.exchange, lookup.method)
    # Where the server filters by id, a period or a page could only hide the order.
    filtered = ID_PLACE in lookup.params.text
    since_ms = None if filtered or order.sent_at_ms <= _BEFORE_MS else order.sent_at_ms - _BEFORE_MS
    # An unknown venue may refuse our number.
    page = None if filtered or adapter.details is None else adapter.details.page
    with _wire.listening() as bodies:
        if lookup.method == "fetch_order_trades":
            answer = await method(order.venue_order_id, order.symbol, since_ms, page, params)
        elif lookup.view is View.OPEN_ORDERS:  # an old order may be open: no period
            answer = await method(order.symbol, None, page, params)
        else:
            answer = await method(order.symbol, since_ms, page, params)
    listed = _listed(adapter, lookup, bodies)
    report = _among(adapter, lookup, order, answer)
    if (
        report is None
        and order.client_order_id is not None
        and f'"{order.client_order_id}"' in json.dumps(bodies, default=str)
    ):
        raise AnswerUnusable("the venue listed an order with our id, and its client left it out")
    if report is None and page is not None and listed >= page:
        raise AnswerUnusable(f"a full page of {page}: the order may be on another one")
    return report


def _listed(adapter: Reader, lookup: LookUp, bodies: Sequence[Any]) -> int:
    """How many rows the venue itself listed: ccxt makes an empty list of an answer that is none."""
    if not _wire.is_hooked(adapter.exchange):
        return 0  # not ccxt: its list is all there is
    body = bodies[-1] if bodies else None
    if not isinstance(body, (Mapping, list)):
        raise AnswerUnusable("the look-up was answered with something that is not JSON")
    rows_at = adapter.details.rows_at.get(lookup.method) if adapter.details is not None else None
    if rows_at is None:
        if isinstance(body, Mapping) and not body:
            raise AnswerUnusable("the look-up was answered with an empty object")
        return 0
    rows = _parsing.field(body, rows_at) if rows_at and isinstance(body, Mapping) else body if not rows_at else None
    # kraken lists by id, the others in a list.
    if not isinstance(rows, list) and not (isinstance(rows, Mapping) and rows_at):
        raise AnswerUnusable("the look-up's answer lacks its list")
    return len(rows)


def _unwrapped(adapter: Reader, order: OrderRef, answer: object) -> object:
    """A raw answer of ccxt's implicit interface, parsed by ccxt."""
    body = answer.get("data", answer.get("result")) if isinstance(answer, Mapping) else None
    if isinstance(body, list):
        body = body[0] if len(body) == 1 else None
    if not isinstance(body, Mapping):
        raise AnswerUnusable("the look-up's answer holds no order")
    return adapter.exchange.parse_order(body, markets_of(adapter.exchange).get(order.symbol))


def _single(adapter: Reader, lookup: LookUp, order: OrderRef, answer: object) -> OrderReport:
    if not isinstance(answer, Mapping):
        raise AnswerUnusable("the look-up's answer is not an order")
    report = adapter.parse_report(answer, id_field=lookup.id_field)
    if report.venue_order_id is None:
        raise AnswerUnusable("the look-up's answer has no order id")
    if not _is_ours(adapter, order, report, answer):
        raise AnswerUnusable("the look-up answered about another order")
    return _checked(order, report)


def _is_ours(adapter: Reader, order: OrderRef, report: OrderReport, answer: Mapping[str, Any]) -> bool:
    if order.client_order_id is None:
        return report.venue_order_id == order.venue_order_id
    if report.client_order_id is not None:
        return report.client_order_id == order.client_order_id
    # Not stated where ccxt reads it: it must at least be in the raw answer, else it was not filtered by it.
    prefix = (adapter.details or Details()).id_prefix
    return _parsing.mentions(answer.get("info"), (order.client_order_id, prefix + order.client_order_id))


def _among(adapter: Reader, lookup: LookUp, order: OrderRef, answer: object) -> OrderReport | None:
    if not isinstance(answer, list):
        raise AnswerUnusable("the look-up's answer is not a list")
    mine = []
    for row in answer:
        if not isinstance(row, Mapping):
            raise AnswerUnusable("the look-up's list holds something that is not an order")
        report = adapter.parse_report(row, id_field=lookup.id_field)
        if _owns(order, report):
            mine.append((row, report))
    if not mine:
        return None
    if lookup.view is View.TRADES:
        rows = [row for row, _ in mine]
        if order.client_order_id is None:
            raise AnswerUnusable("executions are attributed by client order id only")
        return _parsing.report_of_trades(rows, symbol=order.symbol, client_order_id=order.client_order_id)
    if len({report.venue_order_id for _, report in mine}) > 1:
        raise AnswerUnusable("several orders carry the same client order id")
    return _checked(order, mine[-1][1])


def _owns(order: OrderRef, report: OrderReport) -> bool:
    if order.client_order_id is None:
        return report.venue_order_id is not None and report.venue_order_id == order.venue_order_id
    return report.client_order_id == order.client_order_id


def _checked(order: OrderRef, report: OrderReport) -> OrderReport:
    if report.symbol and report.symbol != order.symbol:
        raise AnswerUnusable("an order with our id has another symbol")
    if order.side is not None and report.side is not None and report.side is not order.side:
        raise AnswerUnusable("an order with our id has another side")
    return attrs.evolve(report, symbol=order.symbol, client_order_id=order.client_order_id or report.client_order_id)


async def triggered_id(adapter: Reader, lookups: Sequence[LookUp], order: OrderRef) -> str | None:
    """The id of the order that a conditional one became when it was set off; None where it did not, or nobody says."""
    details = adapter.details or Details()
    for lookup in lookups if order.client_order_id is not None and details.becomes else ():
        if lookup.method == "fetch_order":
            params = {**adapter.fill_in(lookup.params, order), **details.trigger_cancel.thaw()}
            answer = await adapter.exchange.fetch_order(None, order.symbol, params)
            return _became(details, _single(adapter, lookup, order, answer))
    return None


def _became(details: Details, report: OrderReport) -> str | None:
    named = _parsing.text(_info(report).get(details.becomes))
    return None if named in {None, "", "0"} else named


def _info(report: OrderReport) -> Mapping[str, Any]:
    info = report.raw.get("info") if report.raw is not None else None
    return info if isinstance(info, Mapping) else {}


def unless_set_off(details: Details, report: OrderReport) -> OrderReport:
    """A conditional order that names no order it became has not filled, unless it is called done."""
    silent = details.becomes in _info(report) and _became(details, report) is None and report.filled_quantity is None
    not_done = report.status not in {OrderStatus.UNKNOWN, OrderStatus.CLOSED}
    return attrs.evolve(report, filled_quantity=ZERO) if silent and not_done else report


async def _followed(adapter: Reader, order: OrderRef, report: OrderReport) -> OrderReport:
    """A triggered stop order lives on as another order: that one's status and fills count, whatever its own say."""
    details = adapter.details or Details()
    actual = _became(details, report) if order.is_trigger and details.becomes else None
    if actual is not None and actual != report.venue_order_id:  # on spot there is one order only
        return await _follow(adapter, order, report, actual)
    if not order.is_trigger or report.filled_quantity or actual is not None:
        return report
    if report.status is OrderStatus.CLOSED:
        return _exists_only(report)
    return unless_set_off(details, report)


def _exists_only(report: OrderReport) -> OrderReport:
    return attrs.evolve(report, status=OrderStatus.UNKNOWN, filled_quantity=None, average_price=None)


async def _follow(adapter: Reader, order: OrderRef, report: OrderReport, actual: str) -> OrderReport:
    several = _info(report).get("ordIdList")
    if isinstance(several, list) and len(several) > 1:
        return _exists_only(report)  # okx splits large ones; the order named first would state too little
    try:
        answer = await adapter.exchange.fetch_order(actual, order.symbol, {})
    except Exception as error:
        if adapter.judge(error, Operation.LOOK_UP).meaning is not Meaning.NOT_FOUND:
            raise
        return _exists_only(report)  # "not found" is said of the other order: ours was seen just now
    if not isinstance(answer, Mapping):
        raise AnswerUnusable("the triggered order's answer is not an order")
    triggered = adapter.parse_report(answer)
    # okx: ccxt shows it under the conditional order's id.
    details = adapter.details or Details()
    if triggered.venue_order_id != actual and _info(triggered).get(details.becomes) != actual:
        raise AnswerUnusable("the look-up of the triggered order answered about another one")
    return attrs.evolve(
        report,
        status=triggered.status,
        filled_quantity=triggered.filled_quantity,
        average_price=triggered.average_price,
        fills=triggered.fills,
    )
