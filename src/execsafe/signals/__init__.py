"""Signals in: understood, judged, remembered, and executed once while they are fresh.

:class:`SignalGate` decides and remembers; :class:`SignalConsumer` feeds it from a bus; :class:`Wave` lets a few of many
candidates through; :class:`ModeCheck` asks for the mode again where orders leave.
"""

from execsafe.signals.consumer import TRADE_INTENTS, ConsumerHealth, SignalConsumer
from execsafe.signals.gate import SignalGate
from execsafe.signals.modes import ModeCheck
from execsafe.signals.records import SignalRecord, SignalState
from execsafe.signals.wave import Wave
from execsafe.signals.work import (
    DeadLettered,
    Dropped,
    Executed,
    Handled,
    Pending,
    Refused,
    SignalHandler,
    SignalOutcome,
    SignalResult,
    SignalWork,
    Unfinished,
    result_of,
    submit_signal,
)

__all__ = [
    "TRADE_INTENTS",
    "ConsumerHealth",
    "DeadLettered",
    "Dropped",
    "Executed",
    "Handled",
    "ModeCheck",
    "Pending",
    "Refused",
    "SignalConsumer",
    "SignalGate",
    "SignalHandler",
    "SignalOutcome",
    "SignalRecord",
    "SignalResult",
    "SignalState",
    "SignalWork",
    "Unfinished",
    "Wave",
    "result_of",
    "submit_signal",
]
