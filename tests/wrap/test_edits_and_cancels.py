"""Edits change the total, cancels are confirmed by reading, whatever gets lost on the way."""

from __future__ import annotations

import asyncio

import ccxt
import pytest

from execsafe.errors import InvalidInput, InvalidOrder, OutcomeUnknown, TradingDenied, UnsupportedByVenue
from execsafe.model.intent import IntentState
from execsafe.model.outcome import Operation
from execsafe.testing.faults import Fault, Strike
from wrap.rig import MARKETABLE, RESTING, a_rig, at_both_venues, at_once, buy, journal_of, plainly, record_of

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(1)]


def own(rig):
    """Every id under which the intent's orders went out, and their worst case at any instant."""
    return {entry.client_order_id for entry in rig.accepted()}


async def partly_filled(rig, guarded, filled=0.004):
    order = await buy(guarded)
    if filled:
        rig.venue.fill(order["id"], rig.server.clock.now_ms(), plainly(filled))
    return order


def check_edit(rig, edited, *, total, filled, ever=0.01):
    """The result says what the venue knows of all the intent's orders together."""
    ids = own(rig)
    assert edited["filled"] == float(rig.ledger.filled_quantity(*ids)) == filled
    assert edited["amount"] == total
    assert plainly(edited["remaining"]) == plainly(total) - plainly(filled)
    assert rig.ledger.worst_case(ids) <= max(plainly(total), plainly(ever))
    still_open = sum(order.leaves_quantity for order in rig.venue.open_orders())
    assert still_open == (plainly(total) - plainly(filled) if edited["status"] == "open" else 0)


# --- edits -----------------------------------------------------------------------------------------------------------

EDITS = [
    # filled before, new amount, new price, total, filled afterwards, status
    (0, 0.02, None, 0.02, 0, "open"),
    (0, None, 41_000, 0.01, 0, "open"),
    (0.004, 0.02, 41_000, 0.02, 0.004, "open"),
    (0.004, 0.006, None, 0.006, 0.004, "open"),
    (0.004, 0.02, MARKETABLE, 0.02, 0.02, "closed"),
    (0.004, 0.004, None, 0.004, 0.004, "closed"),
]


async def edited_as_told(name, edit):
    filled, amount, price, total, filled_after, status = edit
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await partly_filled(rig, guarded, filled)
        edited = await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", amount, price)
        check_edit(rig, edited, total=total, filled=filled_after)
        assert edited["status"] == status
        if status == "open":
            assert rig.venue.open_orders()[0].limit_price == (price or RESTING)
        assert (await record_of(guarded)).filled_quantity == plainly(filled_after)


@at_both_venues
async def test_an_edited_amount_is_the_new_total_with_what_has_filled_already(name):
    await at_once(*(edited_as_told(name, edit) for edit in EDITS))


async def edited_below_what_filled(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await partly_filled(rig, guarded, 0.006)
        edited = await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.002)
        check_edit(rig, edited, total=0.006, filled=0.006)
        assert (edited["status"], rig.orders_sent()) == ("closed", 1)


@at_both_venues
async def test_a_total_below_what_has_filled_ends_the_order_and_sends_nothing(name):
    await edited_below_what_filled(name)


@at_both_venues
async def test_an_order_is_edited_again_and_again_by_any_of_its_ids(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        first = await partly_filled(rig, guarded)
        second = await guarded.edit_order(first["id"], rig.symbol, "limit", "buy", 0.02)
        third = await guarded.edit_order(first["id"], rig.symbol, None, None, None, 39_000)
        fourth = await guarded.edit_order(third["id"], rig.symbol, amount=0.03, price=38_000)
        fifth = await guarded.edit_limit_order(fourth["id"], rig.symbol, "buy", 0.01, 37_000)
        sixth = await guarded.edit_order(
            "", rig.symbol, "limit", "buy", 0.02, params={"clientOrderId": fifth["clientOrderId"]}
        )
        assert len({order["id"] for order in (first, second, third, fourth, fifth, sixth)}) == 6
        check_edit(rig, sixth, total=0.02, filled=0.004, ever=0.03)
        [last] = rig.venue.open_orders()
        assert last.limit_price == 37_000
        assert (await buy(guarded))["id"] == sixth["id"]


FAULTS_OF_AN_EDIT = [
    (Operation.CANCEL, Fault.DROP_REPLY, None),
    (Operation.CANCEL, Fault.DROP_REQUEST, None),
    (Operation.CANCEL, Fault.SERVER_ERROR_NOT_ACCEPTED, 503),
    (Operation.CANCEL, Fault.CANCEL_OK_STILL_LIVE, 300),
    (Operation.CREATE, Fault.DROP_REPLY, None),
    (Operation.CREATE, Fault.DROP_REQUEST, None),
    (Operation.CREATE, Fault.EMPTY_OK, 1),
    (Operation.LOOK_UP, Fault.LOOKUP_ERROR, 502),
]


async def edited_in_spite_of(name, operation, fault, value):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await partly_filled(rig, guarded)
        rig.strike(fault, value, operation)
        edited = await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.02, 41_000)
        check_edit(rig, edited, total=0.02, filled=0.004)
        assert rig.plan.fired[fault] == 1
        assert len(rig.accepted()) == 2


@at_both_venues
async def test_an_edit_of_which_something_gets_lost_leaves_one_order_for_the_rest(name):
    await at_once(*(edited_in_spite_of(name, *fault) for fault in FAULTS_OF_AN_EDIT))


@at_both_venues
async def test_what_fills_while_the_old_order_is_canceled_is_not_ordered_again(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        rig.strike(Fault.FILL_DURING_CANCEL, 700, Operation.CANCEL)
        edited = await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.02)
        check_edit(rig, edited, total=0.02, filled=0.007)

        rig.strike(Fault.FILL_DURING_CANCEL, 1_000, Operation.CANCEL)
        ended = await guarded.edit_order(edited["id"], rig.symbol, "limit", "buy", 0.02, 41_000)
        check_edit(rig, ended, total=0.02, filled=0.02)
        assert (ended["status"], rig.orders_sent()) == ("closed", 2)


@at_both_venues
async def test_an_edit_that_the_venue_refuses_says_that_the_order_is_canceled(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await partly_filled(rig, guarded)
        rig.strike(Fault.REJECT_FUNDS)
        edited = await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.02)
        assert (edited["status"], edited["filled"]) == ("canceled", 0.004)
        assert rig.venue.open_orders() == []


@at_both_venues
async def test_an_edit_that_could_not_stand_is_refused_before_the_order_is_touched(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        bad = [
            ((order["id"], rig.symbol, "limit", "buy", 0.000001), InvalidOrder),
            ((order["id"], rig.symbol, "limit", "buy", 1_000_000), InvalidOrder),
            ((order["id"], rig.symbol, "limit", "buy", 0.01, float("nan")), InvalidInput),
            ((order["id"], rig.symbol, "limit", "sell", 0.02), InvalidInput),
            ((order["id"], rig.symbol, "market", "buy", 0.02), InvalidInput),
        ]
        for arguments, kind in bad:
            with pytest.raises(kind):
                await guarded.edit_order(*arguments)
        assert rig.venue.order(order["id"]).is_open
        rig.move_price(39_000)
        await guarded.cancel_order(order["id"], rig.symbol)
        with pytest.raises(InvalidInput, match="has ended"):
            await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.02)
        assert rig.orders_sent() == 1


@at_both_venues
async def test_an_order_that_filled_unseen_is_not_replaced(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        rig.move_price(39_000)
        edited = await guarded.edit_order(order["id"], rig.symbol, "limit", "buy", 0.01, 38_000)
        assert (edited["status"], edited["filled"], rig.orders_sent()) == ("closed", 0.01, 1)


@at_both_venues
async def test_of_edits_at_the_same_time_one_wish_stands_and_every_caller_is_told_which(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        totals = [0.011, 0.012, 0.013, 0.014, 0.015]
        wishes = (guarded.edit_order(order["id"], rig.symbol, "limit", "buy", total) for total in totals)
        edits = await asyncio.gather(*wishes)
        [standing] = rig.venue.open_orders()
        assert {edit["id"] for edit in edits} <= {entry.venue_order_id for entry in rig.accepted()}
        assert edits[-1]["amount"] in totals
        check_edit(rig, edits[-1], total=float(standing.quantity), filled=0, ever=0.015)


@at_both_venues
async def test_an_order_in_doubt_is_canceled_as_soon_as_it_is_found(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        rig.strike(Fault.DROP_REPLY)
        placing = asyncio.create_task(buy(guarded))
        while (record := await guarded.registry.find("k")) is None or record.last is None:
            await asyncio.sleep(0.01)
        ours = {"clientOrderId": record.last.client_order_id}
        ended, placed = await asyncio.gather(guarded.cancel_order("", rig.symbol, ours), placing)
        assert ended["status"] == placed["status"] == "canceled"
        rig.assert_truthful(ended)
        assert rig.orders_sent() == 1


# --- cancels ---------------------------------------------------------------------------------------------------------

FAULTS_OF_A_CANCEL = [
    (Operation.CANCEL, Fault.DROP_REPLY, None),
    (Operation.CANCEL, Fault.DROP_REQUEST, None),
    (Operation.CANCEL, Fault.HANG, None),
    (Operation.CANCEL, Fault.TRUNCATED_BODY, None),
    (Operation.CANCEL, Fault.RESET_CONNECTION, 0),
    (Operation.CANCEL, Fault.RESET_CONNECTION, 1),
    (Operation.CANCEL, Fault.SERVER_ERROR_ACCEPTED, 502),
    (Operation.CANCEL, Fault.SERVER_ERROR_NOT_ACCEPTED, 504),
    (Operation.CANCEL, Fault.RATE_LIMITED, None),
    (Operation.CANCEL, Fault.TIMESTAMP_REJECT, None),
    (Operation.CANCEL, Fault.CANCEL_OK_STILL_LIVE, 300),
    (Operation.LOOK_UP, Fault.LOOKUP_ERROR, 502),
]


async def canceled_in_spite_of(name, operation, fault, value):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await partly_filled(rig, guarded)
        rig.strike(fault, value, operation)
        ended = await guarded.cancel_order(order["id"], rig.symbol)
        rig.assert_truthful(ended)
        assert (ended["status"], ended["filled"]) == ("canceled", 0.004)
        assert rig.plan.fired[fault] == 1


@at_both_venues
async def test_a_cancel_is_confirmed_by_reading_whatever_becomes_of_its_reply(name):
    await at_once(*(canceled_in_spite_of(name, *fault) for fault in FAULTS_OF_A_CANCEL))


@at_both_venues
async def test_a_cancel_that_the_venue_confirms_and_does_not_carry_out_stays_unknown(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard(patience_s=0.6)
        order = await buy(guarded)
        rig.plan.script([Strike(Operation.CANCEL, n, Fault.CANCEL_OK_STILL_LIVE, -1) for n in range(1, 100)])
        with pytest.raises(OutcomeUnknown):
            await guarded.cancel_order(order["id"], rig.symbol)
        assert (await record_of(guarded)).state is IntentState.LIVE
        rig.plan.stop()
        recovery = await guarded.recover()
        assert [record.state for record in recovery.settled] == [IntentState.CANCELED]
        assert rig.venue.open_orders() == []


@at_both_venues
async def test_a_cancel_of_what_has_filled_says_so(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        unseen, seen, racing = await buy(guarded, "unseen"), await buy(guarded, "seen", price=MARKETABLE), None
        rig.move_price(39_000)
        for order in (unseen, seen):
            ended = await guarded.cancel_order(order["id"], rig.symbol)
            assert (ended["id"], ended["status"], ended["filled"]) == (order["id"], "closed", 0.01)
        rig.move_price(60_000)
        racing = await buy(guarded, "racing")
        rig.strike(Fault.FILL_DURING_CANCEL, 400, Operation.CANCEL)
        ended = await guarded.cancel_order(racing["id"], rig.symbol)
        assert (ended["status"], ended["filled"]) == ("canceled", 0.004)


@at_both_venues
async def test_an_order_is_canceled_by_any_of_its_names_and_canceled_again_without_asking(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        orders = [await buy(guarded, f"k{n}") for n in range(4)]
        await guarded.cancel_order(orders[0]["id"])
        await guarded.cancelOrder(orders[1]["id"], rig.symbol)
        await guarded.cancel_order("", rig.symbol, {"clientOrderId": orders[2]["clientOrderId"]})
        await guarded.cancel_order_with_client_order_id(orders[3]["clientOrderId"], rig.symbol)
        assert rig.venue.open_orders() == []
        requests = len(rig.server.requests)
        for order in orders:
            assert (await guarded.cancel_order(order["id"], rig.symbol))["status"] == "canceled"
        assert len(rig.server.requests) == requests


@at_both_venues
async def test_a_canceled_intent_is_not_placed_by_a_repeat(name):
    async with a_rig(name) as rig:
        guarded = await rig.guard()
        order = await buy(guarded)
        await guarded.cancel_order(order["id"], rig.symbol)
        again = await buy(guarded)
        assert (again["id"], again["status"], rig.orders_sent()) == (order["id"], "canceled", 1)


# --- orders that are not in the journal ------------------------------------------------------------------------------


class NoMoreThan:
    """A check of the user's own."""

    def __init__(self, most):
        self.most = plainly(most)

    async def check(self, intent, instrument):
        if intent.quantity > self.most:
            raise TradingDenied("more than I dare", reason="too_much")


@at_both_venues
async def test_a_foreign_order_is_not_edited_which_could_place_an_order_past_checks_and_journal(name):
    async with a_rig(name) as rig:
        guarded, bare = await rig.guard(checks=[NoMoreThan(0.015)]), rig.exchange()
        foreign = await bare.create_order(rig.symbol, "limit", "buy", 0.01, RESTING)
        journal = await journal_of(guarded)
        for edit in (guarded.edit_order, guarded.editOrder):
            with pytest.raises(UnsupportedByVenue, match=r"no journal.*cancel it and create it anew.*\.exchange"):
                await edit(foreign["id"], rig.symbol, "limit", "buy", 0.02, 41_000)
        with pytest.raises(UnsupportedByVenue, match="no journal"):
            await guarded.edit_limit_order(foreign["id"], rig.symbol, "buy", 0.02, 41_000)
        [resting] = rig.venue.open_orders()
        assert (resting.venue_order_id, float(resting.quantity), resting.limit_price) == (foreign["id"], 0.01, RESTING)
        assert len(rig.accepted()) == 1
        assert await journal_of(guarded) == journal


@at_both_venues
async def test_a_foreign_order_is_canceled_at_the_venue(name):
    async with a_rig(name) as rig:
        guarded, bare = await rig.guard(), rig.exchange()
        foreign = await bare.create_order(rig.symbol, "limit", "buy", 0.01, RESTING)
        ours = await buy(guarded)
        await guarded.cancel_order(foreign["id"], rig.symbol)
        assert [order.venue_order_id for order in rig.venue.open_orders()] == [ours["id"]]


@at_both_venues
async def test_a_foreign_cancel_without_an_answer_is_unknown_and_a_refusal_the_clients_own(name):
    async with a_rig(name) as rig:
        guarded, bare = await rig.guard(), rig.exchange()
        foreign = await bare.create_order(rig.symbol, "limit", "buy", 0.01, RESTING)
        for fault in (Fault.DROP_REQUEST, Fault.SERVER_ERROR_NOT_ACCEPTED):
            rig.strike(fault, 502, Operation.CANCEL)
            with pytest.raises(OutcomeUnknown, match="read the order back"):
                await guarded.cancel_order(foreign["id"], rig.symbol)
        with pytest.raises(ccxt.OrderNotFound):
            await guarded.cancel_order("987654321", rig.symbol)


@pytest.mark.parametrize("fault", [Fault.SERVER_ERROR_ACCEPTED, Fault.RESET_CONNECTION, Fault.TRUNCATED_BODY])
async def test_a_foreign_cancel_is_sent_once_whatever_the_client_was_told(fault):
    async with a_rig() as rig:
        guarded = await rig.guard(rig.exchange(options={"maxRetriesOnFailure": 3, "maxRetriesOnFailureDelay": 1}))
        foreign = await rig.exchange().create_order(rig.symbol, "limit", "buy", 0.01, RESTING)
        requests = len(rig.server.requests)
        rig.strike(fault, 1 if fault is Fault.RESET_CONNECTION else 502, Operation.CANCEL)
        with pytest.raises(OutcomeUnknown):
            await guarded.cancel_order(foreign["id"], rig.symbol)
        assert len(rig.server.requests) == requests + 1


@at_both_venues
async def test_an_order_of_another_account_is_foreign(name):
    async with a_rig(name) as rig:
        one, two = await rig.guard(account="one"), await rig.guard(account="two")
        order = await buy(one)
        assert await two.registry.find_order("two", rig.symbol, order["id"]) is None
        await two.cancel_order(order["id"], rig.symbol)
        ended = await one.cancel_order(order["id"], rig.symbol)
        assert ended["status"] == "canceled"


async def test_a_client_that_gives_up_the_cancel_of_a_foreign_order_by_itself_leaves_a_doubt():
    """Nobody has cancelled the caller: its task must not end for that."""
    async with a_rig("binance") as rig:
        guarded = await rig.guard()

        async def given_up(*_args):
            raise asyncio.CancelledError

        guarded.exchange.cancel_order = given_up
        with pytest.raises(OutcomeUnknown):
            await guarded.cancel_order("4711", rig.symbol)
