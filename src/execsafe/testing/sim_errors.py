"""Errors of the in-process venue: named and nested as ccxt's, so that they are classified as ccxt's are.

ccxt itself is not imported: execsafe judges an error by the class names in its MRO.
"""

from __future__ import annotations

from typing import Final

from execsafe.testing._orders import RejectReason, VenueReject


class BaseError(Exception):
    """Root, as in ccxt."""


class ExchangeError(BaseError):
    """Bare: anything that the client does not know. Nothing can be concluded from it."""


class AuthenticationError(ExchangeError):
    """Bad key or signature."""


class BadRequest(ExchangeError):
    """Malformed."""


class NoChange(BadRequest):
    """Already so."""


class MarginModeAlreadySet(NoChange):
    """Already in that margin mode."""


class OperationRejected(ExchangeError):
    """Not allowed in this state."""


class BadSymbol(BadRequest):
    """Not listed."""


class InsufficientFunds(ExchangeError):
    """The account cannot pay."""


class InvalidOrder(ExchangeError):
    """Outside the filters, or not allowed in this state."""


class OrderNotFound(InvalidOrder):
    """No such order, or none that is open."""


class OrderImmediatelyFillable(InvalidOrder):
    """A post-only order would take, or a stop would trigger at once."""


class DuplicateOrderId(InvalidOrder):
    """An order with this client order id exists."""


class OperationFailed(BaseError):
    """Bare: it may have happened."""


class NetworkError(OperationFailed):
    """Bare: it may have happened."""


class RateLimitExceeded(NetworkError):
    """429: refused."""


class DDoSProtection(NetworkError):
    """418: refused for a while."""


class ExchangeNotAvailable(NetworkError):
    """5xx or a broken connection: it may have happened."""


class OnMaintenance(ExchangeNotAvailable):
    """Refused, or half done: it may have happened."""


class InvalidNonce(NetworkError):
    """Outside the request window: refused."""


class RequestTimeout(NetworkError):
    """No answer: it may have happened."""


class ClientPayloadError(Exception):
    """The cause of a truncated answer, as in aiohttp."""


class ServerDisconnectedError(Exception):
    """The cause of a broken connection, as in aiohttp."""


_CLASSES: Final = {
    RejectReason.INSUFFICIENT_FUNDS: InsufficientFunds,
    RejectReason.LOT_SIZE: InvalidOrder,
    RejectReason.PRICE_FILTER: InvalidOrder,
    RejectReason.NOTIONAL: InvalidOrder,
    RejectReason.POST_ONLY: OrderImmediatelyFillable,
    RejectReason.REDUCE_ONLY: InvalidOrder,
    RejectReason.DUPLICATE_ID: DuplicateOrderId,
    RejectReason.UNKNOWN_ORDER: OrderNotFound,
    RejectReason.BAD_SYMBOL: BadSymbol,
    RejectReason.BAD_REQUEST: BadRequest,
    RejectReason.EXPIRED_REQUEST: InvalidNonce,
    RejectReason.TIMESTAMP_AHEAD: InvalidNonce,
    RejectReason.RATE_LIMITED: RateLimitExceeded,
    RejectReason.MAINTENANCE: OnMaintenance,
    RejectReason.BAD_KEY: AuthenticationError,
    RejectReason.STOP_WOULD_TRIGGER: OrderImmediatelyFillable,
    RejectReason.NO_POSITION: BadRequest,
    RejectReason.STOP_UNCHANGED: NoChange,
    RejectReason.LEVERAGE_UNCHANGED: NoChange,
    RejectReason.MARGIN_MODE_UNCHANGED: MarginModeAlreadySet,
    RejectReason.MARGIN_MODE_LOCKED: OperationRejected,
}


def as_client_error(reject: VenueReject) -> BaseError:
    """What a ccxt user would see of that refusal."""
    return _CLASSES[reject.reason](f"sim {reject}")
