"""What an error means: a pure function of its class names, its venue code and the operation.

ccxt is never imported: its exceptions are known by the names in ``type(error).__mro__``. Two rules decide
everything that is not listed here or in a venue's table: *an unlisted error means UNKNOWN*, and broad classes
(``ExchangeError``, ``InvalidOrder`` …) speak only for themselves, never for subclasses nobody has looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, Final

import attrs

from execsafe.core.redaction import redact
from execsafe.errors import InvalidInput, TradingDenied, UnsupportedByVenue, VenueUnavailable
from execsafe.model.intent import ErrorFacts
from execsafe.model.outcome import Judged, Meaning, Operation

_MESSAGE_MAX: Final = 16_384
_CODE_LENGTH_MAX: Final = 80
_DEPTH_MAX: Final = 3
_SETTINGS: Final = frozenset({Operation.SET_LEVERAGE, Operation.SET_MARGIN_MODE})


def _operations(value: Collection[Operation] | Operation) -> frozenset[Operation]:
    return frozenset({value}) if isinstance(value, Operation) else frozenset(value)


def _some_condition(rule: Rule, _attribute: object, kind: str | None) -> None:
    if kind is None and rule.code is None and rule.text is None:
        raise InvalidInput("a rule needs a code, a text or a class name, else it would match every error")


@attrs.frozen(kw_only=True)
class Rule:
    """One row of a venue's table: errors that match every condition given mean *meaning*.

    Attributes:
        meaning: what is true after such an error.
        reason: why, in a few words; for readers and for the documentation.
        operations: for which operations it holds. The same code means different things: bybit 110043 is
            "already so" for a leverage change and says nothing about an order.
        code: the venue's code, compared exactly as text.
        text: part of the message, compared without regard to case.
        kind: name of the error's class or of one of its bases.
    """

    meaning: Meaning = attrs.field(converter=Meaning)
    reason: str
    operations: frozenset[Operation] = attrs.field(default=Operation.CREATE, converter=_operations)
    code: str | None = None
    text: str | None = None
    kind: str | None = attrs.field(default=None, validator=_some_condition)

    def matches(self, names: Collection[str], code: str | None, message: str, operation: Operation) -> bool:
        """Whether the row speaks for an error with these class names, code and (lower-case) message."""
        return (
            operation in self.operations
            and (self.code is None or self.code == code)
            and (self.text is None or self.text.lower() in message)
            and (self.kind is None or self.kind in names)
        )


# Counted only when the error is of exactly this class: too much is derived from them.
_EXACT: Final = {
    "BadRequest": Meaning.REJECTED,
    "InvalidOrder": Meaning.REJECTED,
    "OperationRejected": Meaning.REJECTED,
}
# Counted for subclasses too. The most derived listed class wins.
_NARROW: Final = {
    **dict.fromkeys(
        (
            "ArgumentsRequired",
            "NotSupported",
            "BadSymbol",
            "InvalidProxySettings",
            "InvalidAddress",
            "AddressPending",
            "AuthenticationError",
            "PermissionDenied",
            "AccountNotEnabled",
            "AccountSuspended",
            "InsufficientFunds",
            "ContractUnavailable",
            "OrderImmediatelyFillable",
            "OrderNotFillable",
            "MarketClosed",
            "ManualInteractionNeeded",
            "RestrictedLocation",
            "InvalidNonce",
        ),
        Meaning.REJECTED,
    ),
    "DuplicateOrderId": Meaning.EXISTS,
    "OrderNotFound": Meaning.NOT_FOUND,
    "NoChange": Meaning.NO_CHANGE,
}
_MEANINGFUL_FOR: Final = {
    Meaning.EXISTS: frozenset({Operation.CREATE}),
    Meaning.NOT_FOUND: frozenset({Operation.CANCEL, Operation.LOOK_UP}),
    Meaning.NO_CHANGE: _SETTINGS,
}
# ccxt raises these from aiohttp's error; they alone can stand for a connection that never came about.
_TRANSPORT: Final = frozenset({"ExchangeNotAvailable", "RequestTimeout", "NetworkError"})
_NEVER_CONNECTED: Final = frozenset({"ClientConnectorError", "ConnectionTimeoutError"})
_RATE_LIMITS: Final = frozenset({"RateLimitExceeded", "DDoSProtection"})
# As ccxt writes it: "<id> <method> <url> <status> <reason> <body>", or without method and URL (binance).
_TURNED_AWAY: Final = re.compile(r"\A[\w-]{1,40} (?:[A-Z]{3,6} \S{1,8000} )?(?:429|418)(?: |\Z)")


def classify(
    error: BaseException,
    operation: Operation,
    *,
    table: Sequence[Rule] = (),
    secrets: Sequence[str] = (),
) -> Judged:
    """Say what is true after *error*. Never raises.

    Args:
        error: whatever the venue's client raised, cancellation included.
        operation: what was being done.
        table: the venue's rows; the first that matches wins over the classes below.
        secrets: known secrets to keep out of the facts.

    Returns:
        The meaning and the redacted facts. REJECTED for a create means *definitely not placed*; NOT_FOUND
        comes only from a look-up or a cancel, NO_CHANGE only from a setting, EXISTS only from a create (or
        where a row says so); everything else is UNKNOWN. A connection that never came about (refused, name
        not resolved, TLS failed, connect time-out) is REJECTED: nothing was sent.
    """
    message = _text_of(error)
    code = venue_code(message)
    facts = ErrorFacts(kind=type(error).__name__, message=redact(message, secrets), code=code and redact(code, secrets))
    return Judged(meaning=_meaning(error, operation, table, code, message), facts=facts)


def _meaning(
    error: BaseException, operation: Operation, table: Sequence[Rule], code: str | None, message: str
) -> Meaning:
    if not isinstance(error, Exception):  # cancellation, interrupts: whatever was on the wire goes on
        return Meaning.UNKNOWN
    if isinstance(error, (UnsupportedByVenue, TradingDenied, VenueUnavailable)):  # raised before anything is sent
        return Meaning.REJECTED
    names = [cls.__name__ for cls in type(error).__mro__]
    from_ccxt = "BaseError" in names
    lowered = message.lower()
    for rule in table:
        if (from_ccxt or rule.kind is not None) and rule.matches(names, code, lowered, operation):
            return rule.meaning
    if _never_connected(error, names):
        return Meaning.REJECTED
    if not from_ccxt:
        return Meaning.UNKNOWN
    if names[0] in _RATE_LIMITS and _TURNED_AWAY.match(message):
        return Meaning.REJECTED
    found = _EXACT.get(names[0]) or next((_NARROW[name] for name in names if name in _NARROW), Meaning.UNKNOWN)
    return found if operation in _MEANINGFUL_FOR.get(found, (operation,)) else Meaning.UNKNOWN


def is_turned_away(error: BaseException) -> bool:
    """Whether the venue, or what stands before it, says that requests come too often."""
    names = [cls.__name__ for cls in type(error).__mro__]
    return "BaseError" in names and (not _RATE_LIMITS.isdisjoint(names) or bool(_TURNED_AWAY.match(_text_of(error))))


def _never_connected(error: BaseException, names: Sequence[str]) -> bool:
    # Only the direct cause: further down the chain may be the failure of a second try.
    cause = error.__cause__ if names[0] in _TRANSPORT else error
    return cause is not None and any(cls.__name__ in _NEVER_CONNECTED for cls in type(cause).__mro__)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:_MESSAGE_MAX]
    except Exception:  # noqa: BLE001 - a foreign __str__ may do anything
        return ""


# In order of how specific they are: okx states a batch code "1" and the true reason in data[0].sCode.
_CODE_NAMES: Final = ("sCode", "retCode", "code", "label", "err-code", "err_code", "error", "error_response")


def venue_code(message: str) -> str | None:
    """The venue's own code in a ccxt message (``"<exchange id> <JSON body>"``), None where there is none.

    Understands the shapes of the venues in ``venues/outcomes.py``. Looks at no more than 16 KiB.
    """
    message = message[:_MESSAGE_MAX]
    start = -1
    for _ in range(4):  # a brace in a URL or a reason phrase may come first
        start = message.find("{", start + 1)
        if start < 0:
            return None
        try:
            body, _end = json.JSONDecoder().raw_decode(message, start)
        except (ValueError, RecursionError):
            continue
        return _code_in(body, 0)
    return None


def _code_in(body: Any, depth: int) -> str | None:
    if depth > _DEPTH_MAX:
        return None
    if isinstance(body, list):
        return _code_in(body[0], depth + 1) if body else None
    if isinstance(body, (str, int)) and not isinstance(body, bool):
        return str(body)[:_CODE_LENGTH_MAX] or None
    if not isinstance(body, dict):
        return None
    rows = body.get("data")
    if isinstance(rows, list) and rows and isinstance(rows[0], dict) and str(rows[0].get("sCode", "0")) != "0":
        return _code_in(rows[0]["sCode"], depth + 1)
    for name in _CODE_NAMES:
        if body.get(name) not in (None, ""):
            return _code_in(body[name], depth + 1)
    return None
