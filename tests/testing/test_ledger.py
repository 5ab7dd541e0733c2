"""The hidden ledger answers what tests must know."""

import json
from decimal import Decimal

import pytest

from execsafe.model.order import OrderStatus, Side
from execsafe.testing.clock import EPOCH_MS
from execsafe.testing.ledger import Happened
from execsafe.testing.venue import NewOrder, SimVenue, VenueReject


def order(key, quantity="1", price="50000", side=Side.BUY, **more):
    return NewOrder(
        symbol="BTC/USDT",
        side=side,
        quantity=Decimal(quantity),
        limit_price=Decimal(price),
        client_order_id=key,
        **more,
    )


def test_the_worst_case_counts_what_had_filled_and_could_fill_at_one_instant():
    """Two orders that never lived together are no excess; two that did are."""
    venue = SimVenue()
    venue.submit(order("a"), EPOCH_MS)
    venue.cancel(EPOCH_MS + 1, client_order_id="a")
    venue.submit(order("b"), EPOCH_MS + 2)
    assert venue.ledger.worst_case({"a", "b"}) == 1
    venue.cancel(EPOCH_MS + 2, client_order_id="b")
    assert venue.ledger.worst_case({"a", "b"}) == 1  # it was, although nothing is open now
    venue.submit(order("b"), EPOCH_MS + 2)

    venue.submit(order("c", "0.5"), EPOCH_MS + 3)

    assert venue.ledger.worst_case({"a", "b", "c"}) == Decimal("1.5")
    assert venue.ledger.excess({"a", "b", "c"}, Decimal(1)) == Decimal("0.5")
    assert venue.ledger.excess({"a", "b"}, Decimal(1)) == 0


def test_the_worst_case_sees_the_same_id_accepted_twice():
    venue = SimVenue()
    venue.submit(order("a", price="60000"), EPOCH_MS)  # fills at once, so that the id is free again
    venue.submit(order("a", price="60000"), EPOCH_MS + 1)

    assert venue.ledger.filled_quantity("a") == 2
    assert venue.ledger.excess({"a"}, Decimal(1)) == 1


def test_a_partly_filled_order_keeps_counting_its_rest_until_it_ends():
    venue = SimVenue()
    placed = venue.submit(order("a"), EPOCH_MS)
    venue.fill(placed.venue_order_id, EPOCH_MS + 1, Decimal("0.4"))
    assert (venue.ledger.filled_quantity("a"), venue.ledger.open_quantity("a")) == (Decimal("0.4"), Decimal("0.6"))

    venue.cancel(EPOCH_MS + 2, client_order_id="a")

    assert venue.ledger.open_quantity("a") == 0
    assert venue.ledger.position("BTC/USDT") == Decimal("0.4")


def test_an_amended_order_counts_with_its_new_total():
    venue = SimVenue()
    placed = venue.submit(order("a"), EPOCH_MS)
    venue.amend(EPOCH_MS + 1, venue_order_id=placed.venue_order_id, quantity=Decimal(3))

    assert venue.ledger.open_quantity("a") == 3
    assert venue.ledger.worst_case({"a"}) == 3


def test_refusals_are_recorded_with_their_reason():
    venue = SimVenue()
    with pytest.raises(VenueReject):
        venue.submit(order("a", quantity="0.000000001"), EPOCH_MS)

    assert [entry.reason for entry in venue.ledger.rejected("a")] == ["lot_size"]
    assert [len(venue.ledger.received("a")), len(venue.ledger.accepted("a"))] == [1, 0]


def test_the_dump_is_one_json_object_per_line_and_its_digest_follows_what_happened():
    venue, other = SimVenue(), SimVenue()
    for each in (venue, other):
        each.submit(order("a"), EPOCH_MS)
    lines = [json.loads(line) for line in venue.ledger.dump().splitlines()]
    assert [line["what"] for line in lines] == ["received", "accepted"]
    assert lines[1]["quantity"] == "1"
    assert venue.ledger.digest() == other.ledger.digest()

    venue.cancel(EPOCH_MS, client_order_id="a")

    assert venue.ledger.digest() != other.ledger.digest()


def test_entries_are_told_as_they_are_made():
    venue, told = SimVenue(), []
    venue.ledger.on_append = told.append
    assert venue.submit(order("a"), EPOCH_MS).status is OrderStatus.OPEN

    assert told == list(venue.ledger)
    assert [entry.what for entry in told] == [Happened.RECEIVED, Happened.ACCEPTED]


def test_orders_are_found_by_the_prefix_of_their_client_id():
    venue = SimVenue()
    for key in ("xs1", "xs2", "other"):
        venue.submit(order(key), EPOCH_MS)

    assert [entry.client_order_id for entry in venue.ledger.accepted_for_prefix("xs")] == ["xs1", "xs2"]
