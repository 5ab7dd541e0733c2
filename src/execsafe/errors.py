"""Every error execsafe raises. Each class says what is now true and who acts next.

Layer 0: imports nothing of the package. All errors descend from :class:`ExecsafeError`,
carry their facts in :attr:`ExecsafeError.context`, and survive pickling.
"""

from __future__ import annotations

from typing import Any


def _rebuild(cls: type[ExecsafeError], message: str, context: dict[str, Any]) -> ExecsafeError:
    return cls(message, **context)


class ExecsafeError(Exception):
    """Root of all errors raised by execsafe.

    *context* holds the facts (intent key, client order id, limits, …) as plain values, so that a
    handler never has to parse the message.
    """

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(message)
        self.context: dict[str, Any] = context

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword-only facts do not pickle by default.
        return _rebuild, (type(self), str(self.args[0]), self.context)

    @property
    def intent_key(self) -> str | None:
        """Key of the intent concerned, where there is one."""
        return self.context.get("intent_key")

    @property
    def client_order_id(self) -> str | None:
        """Client order id of the attempt concerned, where there is one."""
        return self.context.get("client_order_id")


# --- The caller's mistake: nothing was sent, nothing was journalled ------------------------------


class InvalidInput(ExecsafeError, ValueError):
    """A value is malformed. Nothing was sent; correct the call."""


class InvalidTimestamp(InvalidInput):
    """A time is missing, unreadable, or names no instant (no offset). Nothing is executed on a guessed time."""


class InvalidOrder(InvalidInput):
    """The order breaks a limit of its instrument. Nothing was sent; the message has the numbers."""


class NoSafeStop(InvalidInput):
    """No stop fits between the closest one allowed and liquidation. Nothing was sent; the message has the numbers."""


class UnsupportedByVenue(InvalidInput):
    """The venue or its client would not do what was asked, or would silently do something else.

    Nothing was sent.
    """


class IntentConflict(InvalidInput):
    """The intent key is already taken by another payload. Nothing was sent; use a new key."""


# --- Told at once, nothing sent by this call -----------------------------------------------------


class AlreadyInFlight(ExecsafeError):
    """Another caller is working on this key. Nothing was sent by this call; wait, join or drop it."""


class TradingDenied(ExecsafeError):
    """The order was refused before sending (stale, reduce-only, halted, …). Nothing was sent."""


class CapacityExceeded(ExecsafeError):
    """No room: all that is kept is live or must still be remembered. Let some of it end, then try again."""


class VenueUnavailable(ExecsafeError):
    """The venue could not be asked for what is needed before sending (markets, account). Nothing was sent."""


# --- The venue's answer --------------------------------------------------------------------------


class OrderRejected(ExecsafeError):
    """The venue definitely refused the order. A new try is a new intent key."""


class NotPlaced(ExecsafeError):
    """The order is proven not to exist and all attempts are spent. A new key is safe."""


class OutcomeUnknown(ExecsafeError):
    """Nobody knows yet whether the venue acted. NEVER resend.

    The intent stays journalled, counts as exposure and stays watched; call ``recover()`` or repeat
    the call with the same key to look again. Once a person has seen at the venue that the order is not there,
    :meth:`IntentRegistry.declare_absent` (``execsafe resolve --absent``) ends it.
    """


# --- Leases --------------------------------------------------------------------------------------


class LeaseHeld(ExecsafeError):
    """Another holder has the lease. Wait until it is released or expires."""


class StaleFencingToken(ExecsafeError):
    """The lease passed to another holder. Stop writing: the new holder acts now."""


# --- The store -----------------------------------------------------------------------------------


class StoreError(ExecsafeError):
    """The store did not do what was asked. No new entry is sent until it works again."""


class VersionConflict(StoreError):
    """Someone else changed the record first. Load it again and decide again."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, timed out or is closed. Nothing is known of the last write."""


class StoreLocked(StoreUnavailable):
    """Another process holds the store's lock for longer than the time-out."""


class StoreFull(StoreError):
    """No space is left. Free some, then reopen the store."""


class StoreReadOnly(StoreError):
    """The store cannot be written. Correct its permissions, then reopen it."""


class StoreCorrupt(StoreError):
    """The store's content is damaged. Nothing is re-created: restore or repair it by hand."""


class StoreInsecure(StoreError):
    """The store's file is a symbolic link, belongs to somebody else, or is open to others."""


class StoreVersionError(StoreError):
    """The store was written by a newer execsafe, or is not an execsafe store at all."""


class StorePoisoned(StoreError):
    """A durable write failed half way (fsync). What is on disk is unknown until the store is reopened."""


# --- The bus -------------------------------------------------------------------------------------


class BusUnavailable(ExecsafeError):
    """The bus cannot be reached, refused, or is closed. What was asked of it may have happened.

    Ask again: messages come at least once in any case, and whoever executes them recognises those it knows.
    """


# --- Defects -------------------------------------------------------------------------------------


class InvalidTransition(ExecsafeError):
    """A state change that the transition table does not allow: a defect in the caller or in execsafe."""
