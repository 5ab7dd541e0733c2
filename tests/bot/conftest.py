"""Shared by the tests of the bots: a scripted exchange, and signals to trade."""

from decimal import Decimal

import pytest

from execsafe.bot.demo import INSTRUMENTS, demo_signals


class ScriptedExchange:
    """A ccxt-shaped exchange whose answers are scripted: a ratio filled, an error, or a function of the call.

    It answers a key that it knows as a guarded exchange would: with what was recorded, sending nothing.
    """

    def __init__(self, *answers):
        self.answers = list(answers)
        self.orders = []
        self.known = {}
        self.held = {}

    async def create_order(self, symbol, kind, side, amount, price, params):  # noqa: PLR0917 - ccxt's signature
        key = params.get("intentKey")
        if key in self.known:
            return self._told(self.known[key])
        answer = self.answers.pop(0) if self.answers else 1
        if isinstance(answer, BaseException):
            if key is not None:
                self.known[key] = answer
            raise answer
        quantity = INSTRUMENTS[symbol].floor_quantity(Decimal(str(amount)) * Decimal(str(answer)))
        self.orders.append((symbol, side, Decimal(str(amount)), quantity))
        self.held[symbol] = self.held.get(symbol, Decimal(0)) + (quantity if side == "buy" else -quantity)
        status = "closed" if quantity == Decimal(str(amount)) else "expired"
        order = {"id": str(len(self.orders)), "status": status, "filled": float(quantity), "key": key}
        if key is not None:
            self.known[key] = order
        return order

    def _told(self, recorded):
        if isinstance(recorded, BaseException):
            raise recorded
        return recorded

    def amount_to_precision(self, symbol, amount):
        return str(INSTRUMENTS[symbol].floor_quantity(Decimal(repr(amount))))

    async def recover(self):
        """Nothing to do."""


@pytest.fixture(scope="session")
def scripted():
    """The class: each test makes its own."""
    return ScriptedExchange


@pytest.fixture(scope="session")
def trade():
    """A signal that opens a trade and the one that closes it."""
    return demo_signals(2)
