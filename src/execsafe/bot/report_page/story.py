"""What a report tells, as plain values. Times are Unix milliseconds, quantities in base, prices in quote per base."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TypeAlias

import attrs

Points: TypeAlias = tuple[tuple[int, Decimal], ...]
"""A curve: instants and values, in order of time."""


@attrs.frozen(kw_only=True)
class Funnel:
    """What became of signals: how many reached each *stage*, in order, and why the others did not."""

    stages: tuple[tuple[str, int], ...]
    drops: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class LevelLine:
    """A level of a position: its name (TP1, SL, …) and its price."""

    name: str
    price: Decimal


@attrs.frozen(kw_only=True)
class PositionStory:
    """One position from its first fill to its last.

    Attributes:
        prices: what the market did meanwhile; empty where that is not known.
        stop: the price of the live stop, each change a point; a step curve.
        unprotected: spans without a live stop that covers it, as the venue's ledger has them.
    """

    name: str
    symbol: str
    side: str
    opened_at_ms: int
    closed_at_ms: int | None
    entry_price: Decimal | None
    prices: Points
    levels: tuple[LevelLine, ...] = ()
    stop: Points = ()
    unprotected: tuple[tuple[int, int], ...] = ()
    outcome: str = ""

    @property
    def unprotected_ms(self) -> int:
        """How long it had no stop, in all."""
        return sum(end - start for start, end in self.unprotected)


@attrs.frozen(kw_only=True)
class GhostStory:
    """One order in doubt: when, why, and how it was settled; after how many looks, where that is known."""

    key: str
    doubted_at_ms: int
    settled_at_ms: int | None
    cause: str
    verdict: str
    looks: int | None = None


@attrs.frozen(kw_only=True)
class BotStory:
    """One bot's run of one strategy, from the venue's ledger and from what the bot knows."""

    name: str
    orders_per_signal: Mapping[int, int] = attrs.field(factory=dict)
    exposure: Mapping[str, Points] = attrs.field(factory=dict)
    positions: tuple[PositionStory, ...] = ()
    ghosts: tuple[GhostStory, ...] = ()
    funnel: Funnel | None = None


@attrs.frozen(kw_only=True)
class Verdict:
    """One line of the comparison: what was looked at, and each bot's figure.

    A ``question`` that begins with a space belongs to the one before it.
    ``better``: the bots whose figure is as it should be; None for a figure that is neither good nor bad.
    """

    question: str
    answers: Mapping[str, str]
    better: frozenset[str] | None = None


@attrs.frozen(kw_only=True)
class StrategyStory:
    """One strategy: what it does in a sentence, and the bots that ran it."""

    name: str
    about: str
    bots: tuple[BotStory, ...]
    verdicts: tuple[Verdict, ...] = ()


@attrs.frozen(kw_only=True)
class RunReport:
    """The whole report. ``breaches`` are the guarantees that were broken; empty is as promised, None: not judged."""

    title: str
    about: str
    strategies: tuple[StrategyStory, ...]
    breaches: tuple[str, ...] | None = ()
    facts: Mapping[str, str] = attrs.field(factory=dict)
