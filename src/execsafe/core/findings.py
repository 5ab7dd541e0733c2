"""What a reconciliation compares, what it finds, and its thresholds."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypeAlias

import attrs

from execsafe.core.backoff import Backoff
from execsafe.core.ids import MARKER, client_order_id
from execsafe.errors import InvalidInput
from execsafe.model.instrument import Instrument
from execsafe.model.intent import IntentRecord
from execsafe.model.order import ZERO, Side
from execsafe.model.position import Balance, Execution, Position, Snapshot, Unavailable, VenuePosition
from execsafe.model.values import EXACT, check_count, check_seconds, plain, to_decimal
from execsafe.model.venue import IdEncoding, IdRule

_FEE_RATIO_MAX: Final = Decimal("0.05")
_ID_LENGTH: Final = len(client_order_id(account="", key="", leg="", generation=0, rule=IdRule()))
_OURS: Final = re.compile(MARKER + "[a-z2-7]+", re.ASCII)
_NOT_OFFERED: Final = frozenset({"UnsupportedByVenue", "NotSupported"})


def _ratio(value: Any) -> Decimal:
    return to_decimal(value, "unstated_fee_ratio")


def _flag(_instance: Any, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidInput(f"{attribute.name} must be True or False")


def _bounded(_instance: Any, attribute: attrs.Attribute[Backoff], value: object) -> None:
    """A pass ends, whatever the venue does."""
    if not isinstance(value, Backoff) or value.max_attempts is None or value.deadline_s is None:
        raise InvalidInput(f"{attribute.name} must be a Backoff with max_attempts and deadline_s")


@attrs.frozen(kw_only=True)
class ReconcilePolicy:
    """When a difference counts, and what may be done about it.

    Attributes:
        interval_s: pause between two passes of ``run()``; 30 s, a few requests a minute.
        confirm_after_s: a difference is confirmed by a second reading that began so much later; 10 s, beyond the read
            lag of a healthy venue. The venue's declared read lag counts when it is longer.
        orphan_age_s: how long nothing may have moved in a symbol before a stop without position is removed; 60 s.
        stuck_after_s: an order that should have ended by itself and is still open after so long is stuck; 300 s.
        max_age_s: entries are denied once the last pass in which every view could be read is older; 300 s. None:
            never.
        lookback_s: how far back fills are asked for where no earlier agreement says since when; 3,600 s.
        unstated_fee_ratio: on spot, what may be missing of a holding as a fee that no view states; 0.2 %, twice the
            usual taker fee. It is booked; anything larger is only told.
        infer_fills: book what is missing as an inferred fill, when a venue that offers no list of fills shows less
            than the book, confirmed. Never when such a list was read and contradicts.
        adopt_foreign: book foreign fills that open or enlarge a position. False: a position that nobody here opened
            is somebody else's until :meth:`~execsafe.reconcile.Reconciler.adopt` is called. Foreign fills that reduce
            what the book holds (a liquidation, a close by hand) are always booked.
        cancel_orphan_stops: cancel stops of ours whose position is gone by the book and by the venue.
        cancel_lost_stops: the same for stops that bear our marker, and that no journal knows.
        lost_orders_halt: deny all entries while an order bears our marker and no journal knows it: another process
            trades with our ids, or our journal was lost.
        reads: when a view that failed is read again within the same pass, the others not. Up to five times each, none
            later than 30 s after the pass began: so much is the most by which two readings of a pass are apart.
        reads_at_once: how many reads are under way together. 4: a slow one holds up only a quarter.
        read_spacing_s: least time between the beginnings of two reads, the look budget. 0.1 s, as for doubts: ten a
            second are below every venue's limit.
    """

    interval_s: float = 30.0
    confirm_after_s: float = 10.0
    orphan_age_s: float = 60.0
    stuck_after_s: float = 300.0
    max_age_s: float | None = 300.0
    lookback_s: float = 3_600.0
    unstated_fee_ratio: Decimal = attrs.field(default=Decimal("0.002"), converter=_ratio)
    infer_fills: bool = attrs.field(default=True, validator=_flag)
    adopt_foreign: bool = attrs.field(default=False, validator=_flag)
    cancel_orphan_stops: bool = attrs.field(default=True, validator=_flag)
    cancel_lost_stops: bool = attrs.field(default=False, validator=_flag)
    lost_orders_halt: bool = attrs.field(default=True, validator=_flag)
    reads: Backoff = attrs.field(
        default=Backoff(base_s=0.5, cap_s=4.0, jitter=0.0, max_attempts=5, deadline_s=30.0), validator=_bounded
    )
    reads_at_once: int = 4
    read_spacing_s: float = 0.1

    def __attrs_post_init__(self) -> None:
        """Refuse values with which a single reading could decide, or nothing ever would."""
        for name in ("interval_s", "confirm_after_s", "orphan_age_s", "stuck_after_s", "lookback_s"):
            check_seconds(getattr(self, name), name, most=7 * 86_400.0)
        if self.max_age_s is not None:
            check_seconds(self.max_age_s, "max_age_s")
        check_count(self.reads_at_once, "reads_at_once")
        check_seconds(self.read_spacing_s, "read_spacing_s", least=0, most=60.0)
        if not 0 <= self.unstated_fee_ratio <= _FEE_RATIO_MAX:
            raise InvalidInput(f"unstated_fee_ratio must be 0 to {_FEE_RATIO_MAX}, was {self.unstated_fee_ratio}")


# --- What is seen ----------------------------------------------------------------------------------


class Owner(enum.StrEnum):
    """Whose an order is. Only ids decide; an order that merely looks like ours is foreign."""

    OURS = "ours"  # the journal knows it, and it has not ended
    ENDED = "ended"  # the journal knows that it has ended: the listing is older than that
    LOST = "lost"  # our marker, and unknown to the journal
    FOREIGN = "foreign"


@attrs.frozen(kw_only=True)
class OrderSeen:
    """One open order as the venue lists it.

    ``is_stop``: it can only close a position, once its trigger is reached. ``identity``: of the intent it belongs to.
    ``is_kept``: whoever keeps the stops of positions looks after it. ``since_ms``: when we last changed it.
    """

    symbol: str
    owner: Owner
    client_order_id: str | None = None
    venue_order_id: str | None = None
    side: Side | None = None
    quantity: Decimal | None = None
    is_stop: bool = False
    identity: str = ""
    is_kept: bool = False
    since_ms: int = 0

    @property
    def id(self) -> str:
        """The venue's id, else the client's."""
        return self.venue_order_id or self.client_order_id or "?"


def is_marked(order_id: str | None, rule: IdRule) -> bool:
    """Whether an id has the shape of ours: our marker, alphabet and length. Ids in digits cannot be recognised."""
    if order_id is None or rule.encoding is not IdEncoding.TEXT:
        return False
    return len(order_id) == min(_ID_LENGTH, rule.length_max) and _OURS.fullmatch(order_id) is not None


def is_not_offered(reading: object) -> bool:
    """Whether a view is missing for good, rather than unreadable now."""
    return isinstance(reading, Unavailable) and reading.error.kind in _NOT_OFFERED


class Backing(enum.StrEnum):
    """What the list of fills says about a symbol whose quantities differ."""

    UNREAD = "unread"  # not asked, or it could not be read
    NOT_OFFERED = "not_offered"
    BACKS_BOOK = "backs_book"  # read, and all that it shows is in the book
    BACKS_VENUE = "backs_venue"  # read, and somebody else's fills explain the difference


@attrs.frozen(kw_only=True)
class Observation:
    """All that one pass has seen. Pure data: the same observation leads to the same decision.

    Attributes:
        at_ms: when the pass began.
        symbols: whose open orders it was to read.
        lag_ms: how old a reading may be: the venue's read lag and clock skew.
        book: open positions.
        intents: records that have not ended, as read after the listings.
        active_ms: by symbol, when the position last changed, as the book has it.
        positions, balances: readings; balances None where nothing held is spot.
        orders: by symbol, ``Snapshot[tuple[OrderSeen, ...]]`` or ``Unavailable``.
        backing: by symbol, what the list of fills says; only for symbols that differ.
        instruments: by symbol, where known.
    """

    account: str
    at_ms: int
    symbols: frozenset[str] = frozenset()
    lag_ms: int = 0
    book: tuple[Position, ...] = ()
    intents: tuple[IntentRecord, ...] = ()
    active_ms: Mapping[str, int] = attrs.field(factory=dict)
    positions: Snapshot[Sequence[VenuePosition]] | Unavailable
    balances: Snapshot[Mapping[str, Balance]] | Unavailable | None = None
    orders: Mapping[str, Snapshot[tuple[OrderSeen, ...]] | Unavailable] = attrs.field(factory=dict)
    backing: Mapping[str, Backing] = attrs.field(factory=dict)
    instruments: Mapping[str, Instrument] = attrs.field(factory=dict)


# --- What is found ---------------------------------------------------------------------------------


class Kind(enum.StrEnum):
    """What can be wrong."""

    QUANTITY = "quantity"  # both hold, not the same
    PHANTOM_POSITION = "phantom_position"  # the book holds, the venue is flat
    UNKNOWN_POSITION = "unknown_position"  # the venue holds, the book is flat
    TWO_SIDED = "two_sided"  # the venue holds long and short: hedge mode, which the book does not keep
    FOREIGN_ORDER = "foreign_order"
    LOST_ORDER = "lost_order"
    ORPHAN_STOP = "orphan_stop"
    STUCK_ORDER = "stuck_order"


OF_POSITIONS: Final = frozenset({Kind.QUANTITY, Kind.PHANTOM_POSITION, Kind.UNKNOWN_POSITION, Kind.TWO_SIDED})
"""Differences between the book and the venue: no entry in their symbol until they are gone."""


@attrs.frozen(kw_only=True)
class Finding:
    """One difference. It stands until a reading that can tell no longer shows it.

    Attributes:
        subject: the position's id, the symbol where there is none, the order's id, or the intent's identity.
        book_quantity, venue_quantity: signed, for positions; ``venue_quantity`` is the order's quantity for orders.
        price: at which an inferred fill would be booked.
        identity: of the intent concerned, if it is one of ours.
        first_seen_ms: when the reading that showed it first began.
        confirmed: a second reading, old enough, showed the same.
        acted_at_ms: when something was last done about it.
        note: what else is to be known.
    """

    kind: Kind
    symbol: str
    subject: str
    book_quantity: Decimal = ZERO
    venue_quantity: Decimal = ZERO
    price: Decimal | None = None
    identity: str = ""
    client_order_id: str | None = None
    venue_order_id: str | None = None
    first_seen_ms: int = 0
    confirmed: bool = False
    acted_at_ms: int | None = None
    note: str = ""

    @property
    def what(self) -> tuple[object, ...]:
        """What must be the same in the second reading."""
        quantities = (self.book_quantity, self.venue_quantity) if self.kind in OF_POSITIONS else ()
        return (self.kind, self.symbol, self.subject, *quantities)

    @property
    def difference(self) -> Decimal:
        """What the venue holds beyond the book, signed."""
        return EXACT.subtract(self.venue_quantity, self.book_quantity)


@attrs.frozen(kw_only=True)
class Findings:
    """What one account's reconciliation remembers, durably: so that nothing is told twice, also after a restart.

    ``unread``: views that could not be read. ``told``: how many confirmed differences were last told; None: no pass
    has been told yet.
    """

    account: str
    findings: tuple[Finding, ...] = ()
    unread: tuple[str, ...] = ()
    told: int | None = None


class Source(enum.StrEnum):
    """Who says how much is held."""

    BOOK = "book"  # the registry's fills
    POSITIONS = "positions"
    BALANCES = "balances"
    EXECUTIONS = "executions"


@attrs.frozen(kw_only=True)
class Vote:
    """What one source says: a signed quantity, or None: it does not know."""

    source: Source
    quantity: Decimal | None


@attrs.frozen(kw_only=True)
class Verified:
    """What is held of a symbol. ``quantity`` is what at least two sources agree on, None: they do not (yet)."""

    symbol: str
    votes: tuple[Vote, ...]
    quantity: Decimal | None


# --- What to do ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class BookFill:
    """Take this inferred fill into the book."""

    execution: Execution


@attrs.frozen(kw_only=True)
class CancelOrder:
    """Cancel an order: through the gateway if it is an intent's (``identity``), else by its ids."""

    symbol: str
    identity: str = ""
    client_order_id: str | None = None
    venue_order_id: str | None = None


@attrs.frozen(kw_only=True)
class Settle:
    """Have the gateway look into everything that is not settled."""


Action: TypeAlias = BookFill | CancelOrder | Settle
"""What a pass does about its findings."""


def inferred_fill(account: str, finding: Finding) -> Execution | None:
    """The fill that would explain *finding*; None where no price is known.

    Its id is a pure function of the finding, which is durable before anything is done about it: however often it is
    inferred, it counts once.
    """
    if not finding.difference or finding.price is None or finding.kind not in OF_POSITIONS:
        return None
    parts = (
        account,
        finding.symbol,
        finding.subject,
        plain(finding.book_quantity),
        plain(finding.venue_quantity),
        str(finding.first_seen_ms),
    )
    text = "execsafe/inferred/1 " + " ".join(f"{len(part)}:{part}" for part in parts)
    return Execution(
        trade_id="inferred-" + hashlib.sha256(text.encode()).hexdigest()[:20],
        symbol=finding.symbol,
        side=Side.BUY if finding.difference > 0 else Side.SELL,
        quantity=abs(finding.difference),
        price=finding.price,
        at_ms=finding.first_seen_ms,
    )
