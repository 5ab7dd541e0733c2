"""Values that are made without checks are the same values."""

from __future__ import annotations

import copy
import pickle
from decimal import Decimal

import attrs
import pytest

from execsafe.errors import InvalidInput
from execsafe.model.event import Event
from execsafe.model.intent import Attempt, Intent, IntentRecord
from execsafe.model.order import OrderRequest
from execsafe.model.trusted import trusted
from execsafe.model.values import Params, to_quantity
from execsafe.ports import Batch, Lease, LeaseRequest, Put


@attrs.frozen(kw_only=True)
class Lot:
    """A value with a converter, a validator, a default and a method."""

    name: str = attrs.field(validator=attrs.validators.instance_of(str))
    quantity: Decimal = attrs.field(converter=to_quantity)
    note: str = ""

    @property
    def twice(self) -> Decimal:
        return self.quantity * 2


_new_lot = trusted(Lot)
MADE = _new_lot(name="a", quantity=Decimal("0.5"))
CHECKED = Lot(name="a", quantity=Decimal("0.5"))


def test_it_is_the_same_value() -> None:
    """Of the very same type, equal, with the same hash and text; defaults and methods are there."""
    assert type(MADE) is Lot
    assert (MADE, hash(MADE), repr(MADE)) == (CHECKED, hash(CHECKED), repr(CHECKED))
    assert (MADE.note, MADE.twice) == ("", 1)


def test_it_is_as_frozen() -> None:
    """Neither assignment nor deletion, and no attribute that the class does not have."""
    for name in ("quantity", "other"):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(MADE, name, 1)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del MADE.quantity
    assert MADE == CHECKED


def test_it_can_be_copied_and_changed_like_any_other() -> None:
    """Copies, pickles and ``attrs.evolve`` start from the class itself: what is changed is checked again."""
    assert copy.copy(MADE) == pickle.loads(pickle.dumps(MADE)) == CHECKED
    assert attrs.evolve(MADE, quantity="2").twice == 4
    with pytest.raises(InvalidInput):
        attrs.evolve(MADE, quantity="-1")


def test_parts_are_taken_by_name_and_all_of_them() -> None:
    """A call that the class would not take is not taken here."""
    with pytest.raises(TypeError, match="quantity"):
        _new_lot(name="a")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="other"):
        _new_lot(name="a", quantity=Decimal(1), other=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        _new_lot("a", Decimal(1))  # type: ignore[misc]


@pytest.mark.parametrize("cls", [Attempt, Batch, Event, IntentRecord, Lease, LeaseRequest, OrderRequest, Put])
def test_every_part_goes_where_it_belongs(cls: type) -> None:
    """Whatever the fields are called: "value" is one of them."""
    parts = {field.name: Params(field.name) for field in attrs.fields(cls)}
    assert trusted(cls)(**parts) == cls(**parts)


def test_a_value_that_makes_some_of_its_parts_itself_is_refused() -> None:
    """They would be missing."""

    @attrs.frozen(kw_only=True)
    class Late:
        name: str
        length: int = attrs.field(init=False, default=0)

    @attrs.frozen(kw_only=True)
    class Private:
        _name: str

    @attrs.frozen(kw_only=True)
    class Fresh:
        names: list[str] = attrs.Factory(list)

    for cls in (Intent, Late, Private, Fresh):
        with pytest.raises(TypeError, match="more than its arguments"):
            trusted(cls)
