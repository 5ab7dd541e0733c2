"""Both bots against a scripted exchange: what each does with part fills, refusals and silence."""

from decimal import Decimal

import ccxt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import execsafe
from execsafe.bot.demo import INSTRUMENTS
from execsafe.bot.guarded import GuardedBot
from execsafe.bot.naive import NaiveBot

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """The naive bot's back-off is no subject here."""
    monkeypatch.setattr("execsafe.bot.naive._BACKOFF_S", 0.0)


def unhedged(exchange, entry):
    """What one side holds without the other, in the base of the hedge."""
    lead, hedge = entry.legs
    held = [exchange.held.get(leg.symbol, Decimal(0)) for leg in entry.legs]
    return held[1] + held[0] * hedge.quantity / lead.quantity


def is_dust(quantity, leg):
    """Whether it could not be traded away: below a lot step of either side, or a minimum order."""
    step = Decimal("0.01") + Decimal("0.001") * leg.quantity
    return abs(quantity) <= step


# --- guarded ----------------------------------------------------------------------------------------------------


async def test_the_hedge_is_sized_by_what_the_leading_leg_filled(scripted, trade):
    entry = trade[0]
    exchange = scripted(Decimal("0.6"))
    await GuardedBot(exchange, INSTRUMENTS).handle(entry)

    assert [order[2] for order in exchange.orders] == [Decimal("5.468"), Decimal("17.38")]  # 28.98 x 3.28/5.468
    assert abs(unhedged(exchange, entry)) < Decimal("0.02")


async def test_a_hedge_that_fills_in_part_is_topped_up_under_further_keys(scripted, trade):
    exchange = scripted(1, Decimal("0.5"), Decimal("0.5"))
    bot = GuardedBot(exchange, INSTRUMENTS)
    await bot.handle(trade[0])

    assert [key.rsplit("/", 1)[1] for key in exchange.known] == ["a", "b", "b-2", "b-3"]
    assert unhedged(exchange, trade[0]) == 0
    assert bot.positions() == exchange.held


async def test_a_leading_leg_that_cannot_be_hedged_is_undone(scripted, trade):
    refusals = [ccxt.InsufficientFunds("no") for _ in range(5)]
    exchange = scripted(1, *refusals)
    bot = GuardedBot(exchange, INSTRUMENTS)
    await bot.handle(trade[0])

    assert exchange.held["ETH/BTC"] == 0
    assert bot.residuals == {}


async def test_what_can_neither_be_hedged_nor_undone_is_reported(scripted, trade):
    exchange = scripted(1, *(ccxt.InsufficientFunds("no") for _ in range(10)))
    bot = GuardedBot(exchange, INSTRUMENTS)
    await bot.handle(trade[0])

    assert bot.residuals == {trade[0].id: trade[0].lead.quantity}


async def test_a_leading_leg_that_is_refused_leaves_nothing_to_hedge(scripted, trade):
    exchange = scripted(ccxt.InvalidOrder("no"))
    await GuardedBot(exchange, INSTRUMENTS).handle(trade[0])

    assert exchange.orders == []


async def test_an_exit_closes_what_the_entry_left_and_not_what_it_asked_for(scripted, trade):
    exchange = scripted(Decimal("0.6"))
    bot = GuardedBot(exchange, INSTRUMENTS)
    for signal in trade:
        await bot.handle(signal)

    assert exchange.held == {"ETH/BTC": 0, "LTC/BTC": 0}


async def test_an_order_that_rests_although_it_must_not_is_canceled_and_counted_as_it_ended(scripted, trade):
    class Resting(scripted):
        async def create_order(self, *call):
            order = await super().create_order(*call)
            return {**order, "status": "open", "filled": None}

        async def cancel_order(self, order_id, symbol):
            quantity = self.orders[int(order_id) - 1][3]
            return {"id": order_id, "status": "canceled", "filled": float(quantity)}

    exchange = Resting(1, 1)
    bot = GuardedBot(exchange, INSTRUMENTS)
    await bot.handle(trade[0])

    assert bot.positions() == exchange.held


async def test_an_order_in_doubt_stops_its_signal_until_it_is_settled(scripted, trade):
    exchange = scripted(1, execsafe.OutcomeUnknown("?"))
    bot = GuardedBot(exchange, INSTRUMENTS)
    await bot.handle(trade[0])
    assert [order[0] for order in exchange.orders] == ["ETH/BTC"]
    assert list(bot.unsettled) == [trade[0].id]

    exchange.known.pop(trade[0].key(trade[0].hedge))  # recover() finds out that it was never there
    await bot.finish()

    assert bot.unsettled == {}
    assert unhedged(exchange, trade[0]) == 0


answers = st.lists(
    st.one_of(
        st.decimals("0", "1", places=3),
        st.sampled_from([ccxt.InsufficientFunds("no"), ccxt.RateLimitExceeded("no"), execsafe.NotPlaced("no")]),
    ),
    max_size=30,
)


@pytest.mark.guarantee(9)
@given(answers=answers, deliveries=st.integers(1, 5))
async def test_g9_a_trade_is_hedged_or_its_residual_reported_whatever_fills(scripted, trade, answers, deliveries):
    exchange = scripted(*answers)
    bot = GuardedBot(exchange, INSTRUMENTS)
    for signal in trade:
        for _ in range(deliveries):
            await bot.handle(signal)
        assert bot.residuals or is_dust(unhedged(exchange, trade[0]), trade[0].hedge)

    assert bot.positions() == {symbol: held for symbol, held in exchange.held.items() if symbol in bot.positions()}


@pytest.mark.guarantee(5)
@given(answers=answers)
async def test_g5_a_signal_that_is_delivered_again_sends_nothing(scripted, trade, answers):
    exchange = scripted(*answers)
    bot = GuardedBot(exchange, INSTRUMENTS)
    await bot.handle(trade[0])
    before, book = list(exchange.orders), bot.positions()
    await bot.handle(trade[0])

    assert (exchange.orders, bot.positions()) == (before, book)


# --- naive: it must be a fair opponent --------------------------------------------------------------------------


async def test_plain_a_network_error_is_tried_again_and_a_refusal_is_not(scripted, trade):
    exchange = scripted(ccxt.RequestTimeout("?"), 1, ccxt.InsufficientFunds("no"))
    bot = NaiveBot(exchange)
    await bot.handle(trade[0])

    assert [order[0] for order in exchange.orders] == ["ETH/BTC"]
    assert (bot.retries, bot.given_up) == (1, 1)


async def test_plain_a_signal_that_comes_again_later_is_not_carried_out_again(scripted, trade):
    exchange = scripted()
    bot = NaiveBot(exchange)
    await bot.handle(trade[0])
    await bot.handle(trade[0])

    assert len(exchange.orders) == 2


async def test_plain_a_calm_trade_is_opened_and_closed_exactly(scripted, trade):
    exchange = scripted()
    bot = NaiveBot(exchange)
    for signal in trade:
        await bot.handle(signal)

    assert exchange.held == {"ETH/BTC": 0, "LTC/BTC": 0}
    assert set(bot.positions().values()) == {0}


async def test_plain_an_exit_closes_what_the_book_says_was_filled(scripted, trade):
    exchange = scripted(Decimal("0.6"), Decimal("0.6"))
    bot = NaiveBot(exchange)
    for signal in trade:
        await bot.handle(signal)

    assert exchange.held == {"ETH/BTC": 0, "LTC/BTC": 0}


async def test_plain_three_silent_answers_are_taken_for_a_failure(scripted, trade):
    exchange = scripted(*(ccxt.RequestTimeout("?") for _ in range(3)))
    bot = NaiveBot(exchange)
    await bot.handle(trade[0])

    assert exchange.orders == []
    assert (bot.retries, bot.given_up) == (2, 1)
