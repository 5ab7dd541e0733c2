"""Shared by the tests of the bots: a scripted exchange, signals to trade, and a page that a demo left."""

from decimal import Decimal

import pytest

from execsafe.bot.scenes import SPOT, pair_signals


class ScriptedExchange:
    """A ccxt-shaped exchange whose answers are scripted: a ratio filled, an error, or a function of the call."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.orders = []
        self.calls = []
        self.canceled = []
        self.held = {}

    async def create_order(self, symbol, kind, side, amount, price, params):  # noqa: PLR0917 - ccxt's signature
        self.calls.append((symbol, kind, side, amount, price, params))
        answer = self.answers.pop(0) if self.answers else 1
        if isinstance(answer, BaseException):
            raise answer
        is_stop = "stopLossPrice" in params
        quantity = Decimal(0) if is_stop else floored(symbol, Decimal(str(amount)) * Decimal(str(answer)))
        self.orders.append((symbol, side, Decimal(str(amount)), quantity))
        self.held[symbol] = self.held.get(symbol, Decimal(0)) + (quantity if side == "buy" else -quantity)
        status = "open" if is_stop else "closed" if quantity == Decimal(str(amount)) else "expired"
        return {"id": str(len(self.orders)), "status": status, "filled": float(quantity), "average": None}

    async def cancel_order(self, order_id, _symbol, _params=None):
        self.canceled.append(order_id)
        return {"id": order_id, "status": "canceled"}

    async def fetch_ticker(self, _symbol):
        return {"last": 1000.0}

    def amount_to_precision(self, symbol, amount):
        return str(floored(symbol, Decimal(repr(amount))))

    def price_to_precision(self, _symbol, price):
        return f"{price:.2f}"

    def milliseconds(self):
        return 1_700_000_000_000 + len(self.calls)


def floored(symbol, quantity):
    return SPOT[symbol].floor_quantity(quantity) if symbol in SPOT else quantity.quantize(Decimal("0.001"))


@pytest.fixture(scope="session")
def scripted():
    """The class: each test makes its own."""
    return ScriptedExchange


@pytest.fixture(scope="session")
def trade():
    """A signal that opens a trade and the one that closes it."""
    return pair_signals(2)
