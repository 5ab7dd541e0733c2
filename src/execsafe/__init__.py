"""execsafe: composable execution-safety primitives for trading bots that use ccxt.

Two ways in: :func:`wrap` puts the guarantees around an existing ccxt exchange object; or compose
:func:`open_store`, :class:`CcxtAdapter`, :class:`IntentRegistry` and :class:`OrderGateway` by hand.

Names are resolved on first use, so that importing the package stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from execsafe.clock import SystemClock
    from execsafe.errors import (
        AlreadyInFlight,
        CapacityExceeded,
        ExecsafeError,
        IntentConflict,
        InvalidInput,
        InvalidOrder,
        InvalidTransition,
        LeaseHeld,
        NotPlaced,
        OrderRejected,
        OutcomeUnknown,
        StaleFencingToken,
        StoreCorrupt,
        StoreError,
        StoreFull,
        StoreInsecure,
        StoreLocked,
        StorePoisoned,
        StoreReadOnly,
        StoreUnavailable,
        StoreVersionError,
        TradingDenied,
        UnsupportedByVenue,
        VenueUnavailable,
        VersionConflict,
    )
    from execsafe.gateway import (
        Accepted,
        GatewayPolicy,
        NeverPlaced,
        OrderGateway,
        Rejected,
        SubmitOutcome,
        Unknown,
    )
    from execsafe.ghosts import GhostOrderResolver, LookPolicy
    from execsafe.intents import IntentRegistry
    from execsafe.locks import DedupLock, OnBusy
    from execsafe.model.event import Event, EventType
    from execsafe.model.instrument import Instrument
    from execsafe.model.intent import Attempt, AttemptState, Intent, IntentRecord, IntentState
    from execsafe.model.order import Fee, Fill, OrderReport, OrderRequest, OrderStatus, Side
    from execsafe.model.outcome import Judged, Meaning, Operation
    from execsafe.model.position import (
        AttachedStop,
        Balance,
        BookLevel,
        Execution,
        OrderBook,
        OrderStop,
        Position,
        PositionKey,
        PositionSide,
        Quote,
        Snapshot,
        StopHandle,
        StopKind,
        Unavailable,
        VenuePosition,
    )
    from execsafe.model.venue import Dedup, Expiry, IdEncoding, IdRule, LookUp, VenueProfile, View
    from execsafe.ports import Clock, Durability, ExchangeAdapter, Listener, OrderRef, PreTradeCheck, Store
    from execsafe.retention import TTLStore
    from execsafe.stores import open_store
    from execsafe.venues.ccxt_adapter import CcxtAdapter
    from execsafe.venues.profiles import profile_for
    from execsafe.views import VenueReader
    from execsafe.wrap import GuardedExchange, wrap

_HOMES = {
    "execsafe.clock": ("SystemClock",),
    "execsafe.errors": (
        "AlreadyInFlight",
        "CapacityExceeded",
        "ExecsafeError",
        "IntentConflict",
        "InvalidInput",
        "InvalidOrder",
        "InvalidTransition",
        "LeaseHeld",
        "NotPlaced",
        "OrderRejected",
        "OutcomeUnknown",
        "StaleFencingToken",
        "StoreCorrupt",
        "StoreError",
        "StoreFull",
        "StoreInsecure",
        "StoreLocked",
        "StorePoisoned",
        "StoreReadOnly",
        "StoreUnavailable",
        "StoreVersionError",
        "TradingDenied",
        "UnsupportedByVenue",
        "VenueUnavailable",
        "VersionConflict",
    ),
    "execsafe.gateway": (
        "Accepted",
        "GatewayPolicy",
        "NeverPlaced",
        "OrderGateway",
        "Rejected",
        "SubmitOutcome",
        "Unknown",
    ),
    "execsafe.ghosts": ("GhostOrderResolver", "LookPolicy"),
    "execsafe.intents": ("IntentRegistry",),
    "execsafe.locks": ("DedupLock", "OnBusy"),
    "execsafe.model.event": ("Event", "EventType"),
    "execsafe.model.instrument": ("Instrument",),
    "execsafe.model.intent": ("Attempt", "AttemptState", "Intent", "IntentRecord", "IntentState"),
    "execsafe.model.order": ("Fee", "Fill", "OrderReport", "OrderRequest", "OrderStatus", "Side"),
    "execsafe.model.outcome": ("Judged", "Meaning", "Operation"),
    "execsafe.model.position": (
        "AttachedStop",
        "Balance",
        "BookLevel",
        "Execution",
        "OrderBook",
        "OrderStop",
        "Position",
        "PositionKey",
        "PositionSide",
        "Quote",
        "Snapshot",
        "StopHandle",
        "StopKind",
        "Unavailable",
        "VenuePosition",
    ),
    "execsafe.model.venue": ("Dedup", "Expiry", "IdEncoding", "IdRule", "LookUp", "VenueProfile", "View"),
    "execsafe.ports": ("Clock", "Durability", "ExchangeAdapter", "Listener", "OrderRef", "PreTradeCheck", "Store"),
    "execsafe.retention": ("TTLStore",),
    "execsafe.stores": ("open_store",),
    "execsafe.venues.ccxt_adapter": ("CcxtAdapter",),
    "execsafe.venues.profiles": ("profile_for",),
    "execsafe.views": ("VenueReader",),
    "execsafe.wrap": ("GuardedExchange", "wrap"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__version__ = "0.1.0"

__all__ = [
    "Accepted",
    "AlreadyInFlight",
    "AttachedStop",
    "Attempt",
    "AttemptState",
    "Balance",
    "BookLevel",
    "CapacityExceeded",
    "CcxtAdapter",
    "Clock",
    "Dedup",
    "DedupLock",
    "Durability",
    "Event",
    "EventType",
    "ExchangeAdapter",
    "ExecsafeError",
    "Execution",
    "Expiry",
    "Fee",
    "Fill",
    "GatewayPolicy",
    "GhostOrderResolver",
    "GuardedExchange",
    "IdEncoding",
    "IdRule",
    "Instrument",
    "Intent",
    "IntentConflict",
    "IntentRecord",
    "IntentRegistry",
    "IntentState",
    "InvalidInput",
    "InvalidOrder",
    "InvalidTransition",
    "Judged",
    "LeaseHeld",
    "Listener",
    "LookPolicy",
    "LookUp",
    "Meaning",
    "NeverPlaced",
    "NotPlaced",
    "OnBusy",
    "Operation",
    "OrderBook",
    "OrderGateway",
    "OrderRef",
    "OrderRejected",
    "OrderReport",
    "OrderRequest",
    "OrderStatus",
    "OrderStop",
    "OutcomeUnknown",
    "Position",
    "PositionKey",
    "PositionSide",
    "PreTradeCheck",
    "Quote",
    "Rejected",
    "Side",
    "Snapshot",
    "StaleFencingToken",
    "StopHandle",
    "StopKind",
    "Store",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreInsecure",
    "StoreLocked",
    "StorePoisoned",
    "StoreReadOnly",
    "StoreUnavailable",
    "StoreVersionError",
    "SubmitOutcome",
    "SystemClock",
    "TTLStore",
    "TradingDenied",
    "Unavailable",
    "Unknown",
    "UnsupportedByVenue",
    "VenuePosition",
    "VenueProfile",
    "VenueReader",
    "VenueUnavailable",
    "VersionConflict",
    "View",
    "open_store",
    "profile_for",
    "wrap",
]


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'execsafe' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
