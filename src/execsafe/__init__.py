"""execsafe: composable execution-safety primitives for trading bots that use ccxt.

Two ways in: :func:`wrap` puts the guarantees around an existing ccxt exchange object; or compose
:func:`open_store`, :class:`CcxtAdapter`, :class:`IntentRegistry` and :class:`OrderGateway` by hand.

Names are resolved on first use, so that importing the package stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from execsafe.buses import open_bus
    from execsafe.buses.memory import MemoryBus
    from execsafe.clock import SystemClock
    from execsafe.core.prices import PricePolicy
    from execsafe.core.safety import DenyReason
    from execsafe.core.signals import DropReason, SignalPolicy
    from execsafe.core.trailing import TrailingPolicy
    from execsafe.errors import (
        AlreadyInFlight,
        BusUnavailable,
        CapacityExceeded,
        ExecsafeError,
        IntentConflict,
        InvalidInput,
        InvalidOrder,
        InvalidTimestamp,
        InvalidTransition,
        LeaseHeld,
        NoSafeStop,
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
    from execsafe.exits import ApprovalGate, ExitManager, ExitPolicy
    from execsafe.gateway import Accepted, GatewayPolicy, NeverPlaced, OrderGateway, Rejected, SubmitOutcome, Unknown
    from execsafe.ghosts import GhostOrderResolver, LookPolicy
    from execsafe.health import HealthMonitor, HealthPolicy
    from execsafe.hedging import FillBands, HedgeLeg, HedgePlan, HedgePolicy, PartialFillHedger
    from execsafe.intents import IntentRegistry
    from execsafe.levels import AdaptiveLevels, Levels, LevelsPolicy, PnlTracker
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
    from execsafe.model.signal import ExecutionMode, Signal, SignalSide
    from execsafe.model.units import Bps, Margin, MarginReturn, Notional, Percent, PriceFraction
    from execsafe.model.venue import Dedup, Expiry, IdEncoding, IdRule, LookUp, VenueProfile, View
    from execsafe.ports import Clock, Durability, ExchangeAdapter, Listener, OrderRef, PreTradeCheck, Store
    from execsafe.positions import PositionBook
    from execsafe.pretrade import PreTradeChecks, PreTradePolicy
    from execsafe.prices import NoPrice, Price, PriceBoard
    from execsafe.protection import (
        EntryPlan,
        OpeningPolicy,
        PositionOpener,
        ProtectionManager,
        ProtectionPolicy,
        StopRule,
    )
    from execsafe.reconcile import EntryBarrier, ReconcilePolicy, Reconciler
    from execsafe.retention import TTLStore
    from execsafe.safety import SafetyMonitor, SafetyPolicy, TradingState
    from execsafe.signals import SignalConsumer, SignalGate
    from execsafe.sizing import PositionSizer, SizingPolicy
    from execsafe.stores import open_store
    from execsafe.venues.ccxt_adapter import CcxtAdapter
    from execsafe.venues.profiles import profile_for
    from execsafe.views import VenueReader
    from execsafe.wrap import GuardedExchange, wrap

_HOMES = {
    "execsafe.buses": ("open_bus",),
    "execsafe.buses.memory": ("MemoryBus",),
    "execsafe.clock": ("SystemClock",),
    "execsafe.core.prices": ("PricePolicy",),
    "execsafe.core.safety": ("DenyReason",),
    "execsafe.core.signals": ("DropReason", "SignalPolicy"),
    "execsafe.core.trailing": ("TrailingPolicy",),
    "execsafe.errors": (
        "AlreadyInFlight",
        "BusUnavailable",
        "CapacityExceeded",
        "ExecsafeError",
        "IntentConflict",
        "InvalidInput",
        "InvalidOrder",
        "InvalidTimestamp",
        "InvalidTransition",
        "LeaseHeld",
        "NoSafeStop",
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
    "execsafe.exits": ("ApprovalGate", "ExitManager", "ExitPolicy"),
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
    "execsafe.health": ("HealthMonitor", "HealthPolicy"),
    "execsafe.hedging": ("FillBands", "HedgeLeg", "HedgePlan", "HedgePolicy", "PartialFillHedger"),
    "execsafe.intents": ("IntentRegistry",),
    "execsafe.levels": ("AdaptiveLevels", "Levels", "LevelsPolicy", "PnlTracker"),
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
    "execsafe.model.signal": ("ExecutionMode", "Signal", "SignalSide"),
    "execsafe.model.units": ("Bps", "Margin", "MarginReturn", "Notional", "Percent", "PriceFraction"),
    "execsafe.model.venue": ("Dedup", "Expiry", "IdEncoding", "IdRule", "LookUp", "VenueProfile", "View"),
    "execsafe.ports": ("Clock", "Durability", "ExchangeAdapter", "Listener", "OrderRef", "PreTradeCheck", "Store"),
    "execsafe.positions": ("PositionBook",),
    "execsafe.pretrade": ("PreTradeChecks", "PreTradePolicy"),
    "execsafe.prices": ("NoPrice", "Price", "PriceBoard"),
    "execsafe.protection": (
        "EntryPlan",
        "OpeningPolicy",
        "PositionOpener",
        "ProtectionManager",
        "ProtectionPolicy",
        "StopRule",
    ),
    "execsafe.reconcile": ("EntryBarrier", "ReconcilePolicy", "Reconciler"),
    "execsafe.retention": ("TTLStore",),
    "execsafe.safety": ("SafetyMonitor", "SafetyPolicy", "TradingState"),
    "execsafe.signals": ("SignalConsumer", "SignalGate"),
    "execsafe.sizing": ("PositionSizer", "SizingPolicy"),
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
    "AdaptiveLevels",
    "AlreadyInFlight",
    "ApprovalGate",
    "AttachedStop",
    "Attempt",
    "AttemptState",
    "Balance",
    "BookLevel",
    "Bps",
    "BusUnavailable",
    "CapacityExceeded",
    "CcxtAdapter",
    "Clock",
    "Dedup",
    "DedupLock",
    "DenyReason",
    "DropReason",
    "Durability",
    "EntryBarrier",
    "EntryPlan",
    "Event",
    "EventType",
    "ExchangeAdapter",
    "ExecsafeError",
    "Execution",
    "ExecutionMode",
    "ExitManager",
    "ExitPolicy",
    "Expiry",
    "Fee",
    "Fill",
    "FillBands",
    "GatewayPolicy",
    "GhostOrderResolver",
    "GuardedExchange",
    "HealthMonitor",
    "HealthPolicy",
    "HedgeLeg",
    "HedgePlan",
    "HedgePolicy",
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
    "InvalidTimestamp",
    "InvalidTransition",
    "Judged",
    "LeaseHeld",
    "Levels",
    "LevelsPolicy",
    "Listener",
    "LookPolicy",
    "LookUp",
    "Margin",
    "MarginReturn",
    "Meaning",
    "MemoryBus",
    "NeverPlaced",
    "NoPrice",
    "NoSafeStop",
    "NotPlaced",
    "Notional",
    "OnBusy",
    "OpeningPolicy",
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
    "PartialFillHedger",
    "Percent",
    "PnlTracker",
    "Position",
    "PositionBook",
    "PositionKey",
    "PositionOpener",
    "PositionSide",
    "PositionSizer",
    "PreTradeCheck",
    "PreTradeChecks",
    "PreTradePolicy",
    "Price",
    "PriceBoard",
    "PriceFraction",
    "PricePolicy",
    "ProtectionManager",
    "ProtectionPolicy",
    "Quote",
    "ReconcilePolicy",
    "Reconciler",
    "Rejected",
    "SafetyMonitor",
    "SafetyPolicy",
    "Side",
    "Signal",
    "SignalConsumer",
    "SignalGate",
    "SignalPolicy",
    "SignalSide",
    "SizingPolicy",
    "Snapshot",
    "StaleFencingToken",
    "StopHandle",
    "StopKind",
    "StopRule",
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
    "TradingState",
    "TrailingPolicy",
    "Unavailable",
    "Unknown",
    "UnsupportedByVenue",
    "VenuePosition",
    "VenueProfile",
    "VenueReader",
    "VenueUnavailable",
    "VersionConflict",
    "View",
    "open_bus",
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
