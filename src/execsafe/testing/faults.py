"""What can go wrong between a bot and a venue, and plans that say when it does.

A plan is deterministic per (seed, operation, ordinal): the n-th create of a run meets the same faults
whatever else happened before it. Each seed enables its own random subset of faults ("swarm testing"):
runs with few faults reach states that runs with all of them never see.
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import attrs

from execsafe.model.outcome import Operation
from execsafe.model.venue import Dedup, Expiry, VenueProfile, View


class Fault(enum.StrEnum):
    """One kind of failure. The comment says what really happens, then what the caller sees."""

    # --- the wire
    DROP_REQUEST = "drop_request"  # never arrives; time-out
    DROP_REPLY = "drop_reply"  # done by the venue; time-out
    DELAY_REQUEST = "delay_request"  # time-out, then it arrives, within its expiry or beyond
    LATE_ARRIVAL_AFTER_LOOK = "late_arrival_after_look"  # time-out; arrives at the last instant its expiry allows
    DUPLICATE_DELIVERY = "duplicate_delivery"  # arrives twice; the answer is the first one's
    REORDER = "reorder"  # time-out; a create arrives after the cancel that was sent later
    TRUNCATED_BODY = "truncated_body"  # done by the venue; the answer breaks off: bare ExchangeError
    RESET_CONNECTION = "reset_connection"  # done or not, a coin decides; ExchangeNotAvailable
    HANG = "hang"  # done by the venue; no answer for an hour: the caller's own time-out must end it
    # --- the venue's front
    SERVER_ERROR_ACCEPTED = "server_error_accepted"  # 5xx although done
    SERVER_ERROR_NOT_ACCEPTED = "server_error_not_accepted"  # 5xx, nothing done
    EMPTY_OK = "empty_ok"  # 200 with an unusable body although done: an answer without an id
    RATE_LIMITED = "rate_limited"  # 429 or 418: refused
    MAINTENANCE = "maintenance"  # refused, and so is everything else for a while
    TIMESTAMP_REJECT = "timestamp_reject"  # -1021: refused
    REJECT_FUNDS = "reject_funds"  # refused
    REJECT_FILTER = "reject_filter"  # refused
    DUPLICATE_ID_THOUGH_DEAD = "duplicate_id_though_dead"  # refused as duplicate of an order that has ended
    # --- the matching engine
    PARTIAL_FILL = "partial_fill"  # fills in parts, the rest later or never
    FILL_BEFORE_ACK = "fill_before_ack"  # a resting order fills while its acknowledgement still says nothing filled
    FILL_DURING_CANCEL = "fill_during_cancel"  # fills, wholly or in part, just before the cancel is handled
    CANCEL_OK_STILL_LIVE = "cancel_ok_still_live"  # the cancel is confirmed, the order lives on for a while
    # --- reading
    LOOKUP_LAG = "lookup_lag"  # shows the state of a moment ago, as old as the profile's read lag allows
    LOOKUP_ERROR = "lookup_error"  # the view cannot be read
    LOOKUP_MISSES_CLOSED = "lookup_misses_closed"  # the look-up by client id does not know ended orders
    ID_INDEX_LOST = "id_index_lost"  # from now on no look-up by client id finds what came before; lists still do
    PRUNED_AFTER_END = "pruned_after_end"  # an ended order leaves the order views at once; its trades stay
    # --- positions and their stops: these strike only when a plan names them
    STOP_REJECTED = "stop_rejected"  # a stop is refused: it would trigger immediately
    STOP_LOST = "stop_lost"  # an accepted stop is gone a while later; nobody asked for it, nobody is told
    POSITIONS_EMPTY = "positions_empty"  # a reading of the positions answers that there are none
    POSITIONS_LAG = "positions_lag"  # a reading of the positions shows those of a moment ago
    BOOK_EMPTY = "book_empty"  # an order book is shown without bids


class Reading(enum.StrEnum):
    """What is read when an operation is LOOK_UP."""

    ORDER = "order"  # one of the declared views, for one order
    POSITIONS = "positions"
    BALANCES = "balances"
    OPEN_ORDERS = "open_orders"
    EXECUTIONS = "executions"
    ORDER_BOOK = "order_book"
    QUOTES = "quotes"


_C, _X, _L = Operation.CREATE, Operation.CANCEL, Operation.LOOK_UP
_STOP: Final = Operation.SET_STOP
_SETTINGS: Final = frozenset({_STOP, Operation.SET_LEVERAGE, Operation.SET_MARGIN_MODE})
_WIRE: Final = frozenset({_C, _X}) | _SETTINGS
_FRONT: Final = frozenset({_C, _X, _L}) | _SETTINGS

APPLIES: Final[Mapping[Fault, frozenset[Operation]]] = {
    Fault.DROP_REQUEST: _WIRE,
    Fault.DROP_REPLY: _WIRE,
    Fault.DELAY_REQUEST: _WIRE,
    Fault.LATE_ARRIVAL_AFTER_LOOK: frozenset({_C}),
    Fault.DUPLICATE_DELIVERY: _WIRE,
    Fault.REORDER: frozenset({_C}),
    Fault.TRUNCATED_BODY: _WIRE,
    Fault.RESET_CONNECTION: _WIRE,
    Fault.HANG: _WIRE,
    Fault.SERVER_ERROR_ACCEPTED: _WIRE,
    Fault.SERVER_ERROR_NOT_ACCEPTED: _WIRE,
    Fault.EMPTY_OK: frozenset({_C}),
    Fault.RATE_LIMITED: _FRONT,
    Fault.MAINTENANCE: _FRONT,
    Fault.TIMESTAMP_REJECT: _FRONT,
    Fault.REJECT_FUNDS: frozenset({_C}),
    Fault.REJECT_FILTER: frozenset({_C}),
    Fault.DUPLICATE_ID_THOUGH_DEAD: frozenset({_C}),
    Fault.PARTIAL_FILL: frozenset({_C}),
    Fault.FILL_BEFORE_ACK: frozenset({_C}),
    Fault.FILL_DURING_CANCEL: frozenset({_X}),
    Fault.CANCEL_OK_STILL_LIVE: frozenset({_X}),
    Fault.LOOKUP_LAG: frozenset({_L}),
    Fault.LOOKUP_ERROR: frozenset({_L}),
    Fault.LOOKUP_MISSES_CLOSED: frozenset({_L}),
    Fault.ID_INDEX_LOST: frozenset({_L}),
    Fault.PRUNED_AFTER_END: frozenset({_C}),
    Fault.STOP_REJECTED: frozenset({_C, _STOP}),
    Fault.STOP_LOST: frozenset({_C, _STOP}),
    Fault.POSITIONS_EMPTY: frozenset({_L}),
    Fault.POSITIONS_LAG: frozenset({_L}),
    Fault.BOOK_EMPTY: frozenset({_L}),
}
"""Which requests a fault can strike."""

# What is about positions comes last, and is for plans that ask for it: the draws of all others stay as they are.
DRAWN: Final = tuple(Fault)[: tuple(Fault).index(Fault.STOP_REJECTED)]
"""The faults of which a plan without rates makes its choice; the others strike only where a plan names them."""

_READING_OF: Final[Mapping[Fault, Reading]] = {
    Fault.POSITIONS_EMPTY: Reading.POSITIONS,
    Fault.POSITIONS_LAG: Reading.POSITIONS,
    Fault.BOOK_EMPTY: Reading.ORDER_BOOK,
}

# Of these at most one strikes a request: a request that was dropped cannot be answered with a 5xx as well.
_EXCLUSIVE: Final = frozenset(tuple(Fault)[: tuple(Fault).index(Fault.PARTIAL_FILL)])
_DRAWN_RATE: Final = 0.25  # how often an enabled fault strikes …
_ENABLED_RATE: Final = 0.25  # … and how many are enabled per seed; both as in FoundationDB's BUGGIFY


def defensible(profile: VenueProfile) -> frozenset[Fault]:
    """The faults under which "no excess exposure, no false failure" can be promised at such a venue.

    Left out: a request that the network delivers twice where ids may be used again (nobody can stop the
    second), late arrivals that no expiry bounds before an attempt is called dead, lost indexes and pruning
    where no declared view would still show the order. Only orders are judged: see :data:`DRAWN`.
    """
    left_out: set[Fault] = set()
    views = set(profile.views)
    lists = {View.OPEN_ORDERS, View.CLOSED_ORDERS}
    if profile.dedup is not Dedup.FOREVER:
        left_out.add(Fault.DUPLICATE_DELIVERY)
    if profile.expiry is Expiry.NONE:
        left_out |= {Fault.DELAY_REQUEST, Fault.LATE_ARRIVAL_AFTER_LOOK, Fault.REORDER}
    if not lists <= views:
        left_out |= {Fault.LOOKUP_MISSES_CLOSED, Fault.ID_INDEX_LOST}
    if View.TRADES not in views:
        left_out.add(Fault.PRUNED_AFTER_END)
    return frozenset(DRAWN) - left_out


@attrs.frozen
class Strike:
    """One scripted fault: the *ordinal*-th (from 1) request of *operation* meets *fault*.

    ``value`` fixes what is drawn otherwise: milliseconds for DELAY_REQUEST (until arrival), LOOKUP_LAG,
    POSITIONS_LAG, MAINTENANCE, STOP_LOST (until it is gone) and CANCEL_OK_STILL_LIVE (-1: for ever); filled
    per mille for PARTIAL_FILL and FILL_DURING_CANCEL; the HTTP status for server errors and rate limits; 1 or 0
    for RESET_CONNECTION (done or not).

    ``reading`` counts only the look-ups of that kind; None counts all of them, except for the faults that can
    strike one kind only (POSITIONS_EMPTY, POSITIONS_LAG, BOOK_EMPTY), which count those.
    """

    operation: Operation = attrs.field(converter=Operation)
    ordinal: int
    fault: Fault = attrs.field(converter=Fault)
    value: int | None = None
    reading: Reading | None = attrs.field(default=None, converter=attrs.converters.optional(Reading))

    @property
    def counted(self) -> Operation | Reading:
        """Which requests the ordinal counts."""
        return self.reading or _READING_OF.get(self.fault) or self.operation


class Strikes:
    """The faults of one request. A fault counts as fired when it has had its effect, see :meth:`take`."""

    def __init__(self, faults: Mapping[Fault, int | None], rng: random.Random, fired: Counter[Fault]) -> None:
        self.faults: dict[Fault, int | None] = dict(faults)
        self.random = rng
        self._fired = fired

    def has(self, fault: Fault) -> bool:
        """Whether *fault* is to strike."""
        return fault in self.faults

    def take(self, fault: Fault) -> bool:
        """Whether *fault* is to strike, counting it as fired, once."""
        if fault not in self.faults:
            return False
        self._fired[fault] += 1
        return True

    def first(self, *faults: Fault) -> Fault | None:
        """The first of *faults* that is to strike, counted as fired."""
        return next((fault for fault in faults if self.take(fault)), None)

    def value(self, fault: Fault, low: int, high: int) -> int:
        """The scripted value of *fault*, or one drawn from *low* … *high*."""
        scripted = self.faults.get(fault)
        return self.random.randint(low, max(low, high)) if scripted is None else scripted


class FaultPlan:
    """Decides which faults strike which request.

    Args:
        seed: same seed, same faults.
        rates: probability per fault, 0 to 1. None: a random quarter of *enabled*, each at 25 %, of :data:`DRAWN`.
        enabled: the faults that may be drawn; None: all.

    Attributes:
        fired: how often each fault has had its effect.
    """

    def __init__(
        self,
        seed: int = 0,
        rates: Mapping[Fault, float] | None = None,
        *,
        enabled: Collection[Fault] | None = None,
    ) -> None:
        self.seed = seed
        self.fired: Counter[Fault] = Counter()
        self._ordinals: Counter[Operation | Reading] = Counter()
        self._script: dict[tuple[Operation | Reading, int], dict[Fault, int | None]] = {}
        self._stopped = False
        allowed = [fault for fault in Fault if enabled is None or fault in enabled]
        self.rates: dict[Fault, float] = (
            self._swarm(allowed) if rates is None else {f: rates[f] for f in allowed if f in rates}
        )

    @classmethod
    def none(cls) -> FaultPlan:
        """A plan in which nothing ever goes wrong, until something is scripted."""
        return cls(rates={})

    @classmethod
    def scripted(cls, *strikes: Strike) -> FaultPlan:
        """A plan of nothing but *strikes*."""
        plan = cls.none()
        plan.script(strikes)
        return plan

    def script(self, strikes: Iterable[Strike | tuple[str, int, str]]) -> None:
        """Add one-shot faults at exact requests, besides what is drawn.

        Raises:
            ValueError: a fault that cannot strike that operation, a reading where nothing is looked up.
        """
        for item in strikes:
            strike = item if isinstance(item, Strike) else Strike(*item)
            if strike.operation not in APPLIES[strike.fault]:
                raise ValueError(f"{strike.fault.value} cannot strike a {strike.operation.value}")
            if strike.reading is not None and strike.operation is not Operation.LOOK_UP:
                raise ValueError(f"a {strike.operation.value} reads no {strike.reading.value}")
            self._script.setdefault((strike.counted, strike.ordinal), {})[strike.fault] = strike.value

    def strike_next(
        self,
        operation: Operation | str,
        fault: Fault | str,
        value: int | None = None,
        reading: Reading | str | None = None,
    ) -> None:
        """Script *fault* for the next request of *operation*; of look-ups, for the next one of that *reading*."""
        strike = Strike(operation, 0, fault, value, reading)
        self.script([attrs.evolve(strike, ordinal=self._ordinals[strike.counted] + 1)])

    def stop(self) -> None:
        """No more faults, drawn or scripted: what was promised to end must end now."""
        self._stopped = True

    def resume(self) -> None:
        """Undo :meth:`stop`."""
        self._stopped = False

    def draw(self, operation: Operation, reading: Reading | None = None) -> Strikes:
        """The faults of the next request of *operation*; for a look-up, *reading* says what is read."""
        self._ordinals[operation] += 1
        ordinal = self._ordinals[operation]
        # A text seed goes through SHA-512: independent of PYTHONHASHSEED.
        rng = random.Random(f"{self.seed}/{operation.value}/{ordinal}")
        faults = dict(self._script.get((operation, ordinal), {}))
        if reading is not None:
            self._ordinals[reading] += 1
            faults.update(self._script.get((reading, self._ordinals[reading]), {}))
        # Drawn for each, so that one fault's rate does not move the others.
        hits = [fault for fault, rate in self.rates.items() if rng.random() < rate]
        hits = [fault for fault in hits if operation in APPLIES[fault]]
        exclusive = [fault for fault in hits if fault in _EXCLUSIVE]
        scripted = any(fault in _EXCLUSIVE for fault in faults)
        kept = None if scripted or not exclusive else rng.choice(exclusive)
        for fault in hits:
            if fault not in _EXCLUSIVE or fault is kept:
                faults.setdefault(fault, None)
        return Strikes({} if self._stopped else faults, rng, self.fired)

    def _swarm(self, allowed: list[Fault]) -> dict[Fault, float]:
        rng = random.Random(f"{self.seed}/swarm")
        return {fault: _DRAWN_RATE for fault in allowed if fault in DRAWN and rng.random() < _ENABLED_RATE}
