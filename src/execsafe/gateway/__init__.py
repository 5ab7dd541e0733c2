"""``OrderGateway``: the one door to the venue: check → journal → send → classify → resolve → record."""

from execsafe.gateway.door import OrderGateway
from execsafe.gateway.outcomes import Accepted, NeverPlaced, Recovery, Rejected, SubmitOutcome, Unknown
from execsafe.gateway.policy import GatewayPolicy

__all__ = [
    "Accepted",
    "GatewayPolicy",
    "NeverPlaced",
    "OrderGateway",
    "Recovery",
    "Rejected",
    "SubmitOutcome",
    "Unknown",
]
