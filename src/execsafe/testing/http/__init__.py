"""The simulated venue over HTTP on loopback, in production wire formats, for the real ccxt client.

Needs aiohttp >= 3.12 (ccxt brings it). asyncio only.
"""

from execsafe.testing.http.server import FACES, VenueServer, default_venue, default_venues
from execsafe.testing.http.session import loopback_exchange, loopback_session

__all__ = ["FACES", "VenueServer", "default_venue", "default_venues", "loopback_exchange", "loopback_session"]
