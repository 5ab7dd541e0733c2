"""What to do after a venue's definite no, as a table: by code where one is known, else by message, else by class.

A reject of an exit is most often about the *position*: less is held than the book says, or something locks it. That is
never a matter of liquidity (a book without buyers lets an order expire, it does not refuse it), and sending the
same order again cannot help.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from execsafe.model.intent import ErrorFacts


class RejectClass(enum.StrEnum):
    """What a reject asks for."""

    POSITION = "position"  # less is there than was to be sold: reconcile, read again, never repeat it
    NO_FILL = "no_fill"  # nothing to trade with at that price: the next price
    RETRY = "retry"  # turned away for now: the same again after a pause
    STOP = "stop"  # it would be refused again: rest


@attrs.frozen(kw_only=True)
class RejectRow:
    """One row: an error that meets every condition given is of *kind*. ``text`` is compared by letters and digits."""

    kind: RejectClass
    why: str
    code: str | None = None
    error: str | None = None
    text: str | None = None

    def matches(self, facts: ErrorFacts, letters: str) -> bool:
        """Whether *facts*, whose message has these *letters*, meet every condition."""
        return (
            (self.code is None or self.code == facts.code)
            and (self.error is None or self.error == facts.kind)
            and (self.text is None or self.text in letters)
        )


def _row(kind: RejectClass, why: str, code: str = "", *, error: str = "", text: str = "") -> RejectRow:
    return RejectRow(kind=kind, why=why, code=code or None, error=error or None, text=text or None)


_POSITION: Final = RejectClass.POSITION
REJECTS: Final[tuple[RejectRow, ...]] = (
    _row(_POSITION, "mexc: Oversold, more than is free", "30005"),
    _row(_POSITION, "mexc: insufficient balance", "30004"),
    _row(_POSITION, "binance spot: insufficient balance", "-2010", text="insufficientbalance"),
    _row(_POSITION, "binance USD-M: reduce-only order refused, as a rule already flat", "-2022"),
    _row(_POSITION, "bybit: the reduce-only quantity is zero", "110017"),
    _row(_POSITION, "okx: reduce-only not available", "51205"),
    _row(_POSITION, "okx: the position does not exist", "51023"),
    _row(_POSITION, "okx: more than can be closed of the position", "51112"),
    _row(_POSITION, "okx: no position in that direction to reduce or close", "51169"),
    _row(_POSITION, "gate: the position is empty", "POSITION_EMPTY"),
    # Codes that other venues might use for something else: the text must say it, too.
    _row(_POSITION, "mexc: the position does not exist, or is closed", "2009", text="position"),
    _row(_POSITION, "bitget: no position to close", "22002", text="noposition"),
    _row(RejectClass.STOP, "binance: the key is refused, called a rate limit after an earlier success", "-2015"),
    _row(RejectClass.RETRY, "binance: outside of the matching engine's request window", "-5028"),
    _row(RejectClass.RETRY, "okx: order rate limit of the account", "50061"),
    _row(_POSITION, "by class: what is to be sold is not there", error="InsufficientFunds"),
    _row(RejectClass.NO_FILL, "nothing to fill at once", error="OrderNotFillable"),
    _row(RejectClass.NO_FILL, "would not rest", error="OrderImmediatelyFillable"),
    _row(RejectClass.RETRY, "too many requests", error="RateLimitExceeded"),
    _row(RejectClass.RETRY, "too many requests", error="DDoSProtection"),
    _row(RejectClass.RETRY, "outside of the request window", error="InvalidNonce"),
    _row(RejectClass.RETRY, "never reached the venue", error="ExchangeNotAvailable"),
    _row(RejectClass.RETRY, "never reached the venue", error="NetworkError"),
    _row(RejectClass.RETRY, "never reached the venue", error="RequestTimeout"),
    _row(RejectClass.RETRY, "refused during maintenance", error="OnMaintenance"),
    _row(RejectClass.RETRY, "held back: the venue asked to be left alone", error="VenueUnavailable"),
    # After the classes: the messages of those above may quote the request, in which "reduceOnly" is a parameter.
    _row(_POSITION, "by message", text="oversold"),
    _row(_POSITION, "by message", text="reduceonly"),
)
"""The first row that matches decides; what matches none is STOP."""


def reject_class(facts: ErrorFacts) -> RejectClass:
    """What the venue's refusal of an order asks for."""
    letters = "".join(c for c in facts.message.lower() if c.isalnum())
    return next((row.kind for row in REJECTS if row.matches(facts, letters)), RejectClass.STOP)
