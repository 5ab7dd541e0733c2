"""Batches for groups: of few names, so that they meet, and mostly such as could be accepted."""

from __future__ import annotations

import attrs
from hypothesis import strategies as st

from execsafe.errors import InvalidInput
from execsafe.ports import Batch, Lease, LeaseRequest
from execsafe.stores._group import to_commit
from execsafe.testing._store_model import a_put, an_event

few = st.sampled_from
puts = st.builds(
    lambda key, version, number, is_open, aliases: a_put(key, version, number=number, is_open=is_open, aliases=aliases),
    few("ab"),
    few([0, 0, 1]),
    st.integers(0, 9),
    st.booleans(),
    few([(), ("x",), ("y",), ("x", "y")]),
)
leases = st.builds(
    lambda name, holder, token: Lease(name=name, holder=holder, token=token, expires_at_ms=1),
    few("lm"),
    few("pq"),
    st.integers(1, 3),
)
requests = st.builds(lambda name, holder: LeaseRequest(name=name, holder=holder, ttl_ms=10), few("lm"), few("pq"))
writes = st.builds(
    lambda puts, events: Batch(now_ms=1, puts=tuple(puts), events=(an_event(),) * events),
    st.lists(puts, min_size=1, max_size=2, unique_by=lambda put: put.key),
    st.integers(0, 1),
)
acquisitions = st.builds(lambda now_ms, acquire: Batch(now_ms=now_ms, acquire=acquire), st.integers(0, 30), requests)
everything = st.builds(
    lambda write, acquire, fence, release: attrs.evolve(write, acquire=acquire, fence=fence, release=release),
    writes,
    st.none() | requests,
    st.none() | leases,
    st.none() | leases,
)
batches = writes | acquisitions | everything


def is_sound(batch: Batch) -> bool:
    try:
        to_commit(batch)
    except InvalidInput:
        return False
    return True
