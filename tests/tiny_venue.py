"""A venue in the test's process that outlives the bots which trade there, in processes of their own."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from execsafe.clock import SystemClock
from execsafe.model.values import plain
from execsafe.model.venue import View
from execsafe.testing._orders import NewOrder, SimOrder, VenueReject
from execsafe.testing.venue import Market, SimVenue

TRAVEL_S = 0.01
READ_LAG_MS = 50


class TinyVenue(socketserver.ThreadingTCPServer):
    """A simulated venue behind a socket: one line with a request, one line with the answer."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, markets: Sequence[Market] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        prices = None if markets is None else {market.instrument.symbol: 50_000 for market in markets}
        self.venue = SimVenue(markets, prices=prices, read_lag_ms=READ_LAG_MS)
        self.lock = threading.Lock()
        self.clock = SystemClock()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed hears nothing; that is the point."""

    def answer(self, request: dict[str, Any]) -> Any:
        """Do what is asked, at this instant."""
        op, cid = request["op"], request["client_order_id"]
        with self.lock:
            now_ms = self.clock.now_ms()
            try:
                if op == "look":
                    shown = self.venue.look(View(request["view"]), now_ms, client_order_id=cid)
                    return _as_json(shown[-1]) if shown else None
                if op == "cancel":
                    return _as_json(self.venue.cancel(now_ms, symbol=request["symbol"], client_order_id=cid))
                price = request["limit_price"]
                order = NewOrder(
                    symbol=request["symbol"],
                    side=request["side"],
                    quantity=Decimal(request["quantity"]),
                    type="market" if price is None else "limit",
                    limit_price=None if price is None else Decimal(price),
                    client_order_id=cid,
                    deadline_ms=request["deadline_ms"],
                )
                return _as_json(self.venue.submit(order, now_ms))
            except VenueReject as reject:
                return {"reject": reject.reason.value}


class _Handler(socketserver.StreamRequestHandler):
    server: TinyVenue

    def handle(self) -> None:
        line = self.rfile.readline()
        if line.endswith(b"\n"):
            time.sleep(TRAVEL_S)
            answer = self.server.answer(json.loads(line))
            time.sleep(TRAVEL_S)
            self.wfile.write(json.dumps(answer).encode() + b"\n")


def _as_json(order: SimOrder) -> dict[str, Any]:
    return {
        "symbol": order.symbol,
        "status": order.status.value,
        "client_order_id": order.client_order_id,
        "venue_order_id": order.venue_order_id,
        "quantity": plain(order.quantity),
        "filled_quantity": plain(order.filled_quantity),
    }


@contextmanager
def serving(markets: Sequence[Market] | None = None) -> Iterator[TinyVenue]:
    with TinyVenue(markets) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
