"""The control routes under ``/_sim/``: for tests that run the venue in another process.

GET  /_sim/ledger/<face>   the hidden ledger, JSON lines
GET  /_sim/state/<face>    open orders, positions, balances, prices, fired faults
POST /_sim/price/<face>    {"symbol": …, "price": …}
POST /_sim/faults/<face>   [{"operation": …, "fault": …, "ordinal": n or null for the next, "value": …}]
POST /_sim/calm/<face>     no more faults
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from execsafe.model.values import plain
from execsafe.testing.faults import FaultPlan, Strike
from execsafe.testing.venue import SimVenue


def handle(venue: SimVenue, plan: FaultPlan, now_ms: int, method: str, what: str, body: str) -> web.Response:
    """Answer one control request; 400 with the reason for a malformed one."""
    try:
        if method == "GET" and what == "ledger":
            return web.Response(text=venue.ledger.dump(), content_type="application/x-ndjson")
        if method == "GET" and what == "state":
            return web.json_response(_state(venue, plan, now_ms))
        if method == "POST":
            _change(what, json.loads(body or "null"), venue, plan, now_ms)
            return web.json_response({"ok": True, "now_ms": now_ms})
    except (KeyError, TypeError, ValueError) as error:
        return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)
    return web.json_response({"error": "no such route"}, status=404)


def _change(what: str, body: Any, venue: SimVenue, plan: FaultPlan, now_ms: int) -> None:
    if what == "price":
        venue.set_price(body["symbol"], body["price"], now_ms)
    elif what == "faults":
        for row in body:
            if row.get("ordinal") is None:
                plan.strike_next(row["operation"], row["fault"], row.get("value"))
            else:
                plan.script([Strike(row["operation"], row["ordinal"], row["fault"], row.get("value"))])
    elif what == "calm":
        plan.stop()
    else:
        raise ValueError(f"unknown change {what}")


def _state(venue: SimVenue, plan: FaultPlan, now_ms: int) -> dict[str, Any]:
    orders = [
        {
            "client_order_id": order.client_order_id,
            "venue_order_id": order.venue_order_id,
            "symbol": order.symbol,
            "side": order.side.value,
            "quantity": plain(order.quantity),
            "filled_quantity": plain(order.filled_quantity),
        }
        for order in venue.open_orders()
    ]
    return {
        "now_ms": now_ms,
        "open_orders": orders,
        "positions": {symbol: plain(p.quantity) for symbol, p in venue.account.positions.items()},
        "balances": {currency: plain(amount) for currency, amount in venue.account.balances.items()},
        "prices": {symbol: plain(price) for symbol, price in venue.prices.items()},
        "fired": {fault.value: count for fault, count in plan.fired.items()},
    }
