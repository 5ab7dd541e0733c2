"""How fresh a price is, what may replace it, and what to refresh next. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import attrs

from execsafe.errors import InvalidInput
from execsafe.model.intent import ErrorFacts
from execsafe.model.position import Quote
from execsafe.model.values import check_count, check_seconds


@attrs.frozen(kw_only=True)
class PricePolicy:
    """How old prices may be. The seed's intervals: what is held is looked at three times as often.

    Attributes:
        hot_s, cold_s: age above which a price is refreshed before it is given out; and how often followed symbols are
            refreshed in the background. 1.5 s for symbols that are held, 5 s for others.
        soft_hot_s, soft_cold_s: age above which reading a price asks for a refresh in the background, and is served
            at once. 0.8 s and 2 s.
        held_ttl_s: how long the list of held symbols is believed where no change was reported. 1 s.
        retry_s: least time between two refreshes of a symbol after one failed. 0.5 s: two a second is no storm.
        symbols_max: how many symbols are remembered; held and followed ones are never forgotten. 1,000.
    """

    hot_s: float = 1.5
    cold_s: float = 5.0
    soft_hot_s: float = 0.8
    soft_cold_s: float = 2.0
    held_ttl_s: float = 1.0
    retry_s: float = 0.5
    symbols_max: int = 1_000

    def __attrs_post_init__(self) -> None:
        """Refuse ages that contradict each other."""
        for name in ("hot_s", "cold_s", "soft_hot_s", "soft_cold_s", "held_ttl_s", "retry_s"):
            check_seconds(getattr(self, name), name)
        check_count(self.symbols_max, "symbols_max")
        if self.hot_s > self.cold_s or self.soft_hot_s > self.hot_s or self.soft_cold_s > self.cold_s:
            raise InvalidInput("soft ages must not exceed hard ones, nor hot_s cold_s")

    def hard_ms(self, *, is_hot: bool) -> int:
        """Age above which a price must be refreshed before it is given out."""
        return round((self.hot_s if is_hot else self.cold_s) * 1_000)

    def soft_ms(self, *, is_hot: bool) -> int:
        """Age above which reading a price asks for a refresh."""
        return round((self.soft_hot_s if is_hot else self.soft_cold_s) * 1_000)

    @property
    def held_ttl_ms(self) -> int:
        """:attr:`held_ttl_s` in milliseconds."""
        return round(self.held_ttl_s * 1_000)

    @property
    def retry_ms(self) -> int:
        """:attr:`retry_s` in milliseconds."""
        return round(self.retry_s * 1_000)


class Freshness(enum.StrEnum):
    """Whether a price may be given out."""

    FRESH = "fresh"
    AGEING = "ageing"  # given out, and a refresh is asked for
    EXPIRED = "expired"  # too old, or invalidated: refreshed first
    MISSING = "missing"


@attrs.frozen(kw_only=True)
class PriceEntry:
    """What is known of one symbol.

    Attributes:
        quote: the last good one; it is kept through failures and invalidations.
        taken_at_ms: when the reading that gave it began.
        generation: grows with every invalidation. A reading that began under an earlier one is discarded.
        is_invalid: invalidated since the quote was taken.
        failed_at_ms, error: the last failure since the last success.
        is_wanted: read while ageing.
    """

    symbol: str
    quote: Quote | None = None
    taken_at_ms: int = 0
    generation: int = 0
    is_invalid: bool = False
    failed_at_ms: int | None = None
    error: ErrorFacts | None = None
    is_wanted: bool = False


def freshness(entry: PriceEntry, now_ms: int, policy: PricePolicy, *, is_hot: bool) -> Freshness:
    """How fresh the entry's quote is."""
    if entry.quote is None:
        return Freshness.MISSING
    age_ms = now_ms - entry.taken_at_ms
    if entry.is_invalid or age_ms > policy.hard_ms(is_hot=is_hot):
        return Freshness.EXPIRED
    return Freshness.AGEING if age_ms > policy.soft_ms(is_hot=is_hot) else Freshness.FRESH


def refreshed(entry: PriceEntry, quote: Quote, *, taken_at_ms: int, generation: int) -> PriceEntry:
    """*entry* with a new quote; *entry* itself where the reading is older than what is known.

    That is: it began before the last invalidation or before the reading that is known, or the venue itself dates it
    earlier (a replica that lags).
    """
    if generation < entry.generation or (entry.quote is not None and taken_at_ms < entry.taken_at_ms):
        return entry
    if entry.quote is not None and 0 < quote.at_ms < entry.quote.at_ms:
        return entry
    return PriceEntry(symbol=entry.symbol, quote=quote, taken_at_ms=taken_at_ms, generation=entry.generation)


def failed(entry: PriceEntry, error: ErrorFacts, *, at_ms: int, generation: int) -> PriceEntry:
    """*entry* after a failed refresh: the last good quote stays."""
    if generation < entry.generation:
        return entry
    return attrs.evolve(entry, failed_at_ms=at_ms, error=error)


def invalidated(entry: PriceEntry) -> PriceEntry:
    """*entry* after something made its quote worthless; also a refresh that is under way."""
    return attrs.evolve(entry, generation=entry.generation + 1, is_invalid=True, failed_at_ms=None, error=None)


def may_try(entry: PriceEntry, now_ms: int, policy: PricePolicy) -> bool:
    """Whether the last failure is long enough ago."""
    return entry.failed_at_ms is None or now_ms - entry.failed_at_ms >= policy.retry_ms


def due_at_ms(entry: PriceEntry, policy: PricePolicy, *, is_hot: bool) -> int:
    """When a followed symbol is to be refreshed in the background."""
    due_ms = 0
    if entry.quote is not None and not entry.is_invalid:
        wait_ms = policy.soft_ms(is_hot=is_hot) if entry.is_wanted else policy.hard_ms(is_hot=is_hot)
        due_ms = entry.taken_at_ms + wait_ms
    return due_ms if entry.failed_at_ms is None else max(due_ms, entry.failed_at_ms + policy.retry_ms)


def due(
    entries: Mapping[str, PriceEntry], followed: Iterable[str], now_ms: int, policy: PricePolicy, *, is_hot: bool
) -> tuple[str, ...]:
    """Which of *followed* are to be refreshed now, the longest overdue first."""
    known = {symbol: due_at_ms(_entry(entries, symbol), policy, is_hot=is_hot) for symbol in followed}
    return tuple(sorted((s for s in known if known[s] <= now_ms), key=lambda s: (known[s], s)))


def next_due_ms(
    entries: Mapping[str, PriceEntry], followed: Iterable[str], policy: PricePolicy, *, is_hot: bool
) -> int | None:
    """When the first of *followed* is due; None if there is none."""
    return min((due_at_ms(_entry(entries, s), policy, is_hot=is_hot) for s in followed), default=None)


def _entry(entries: Mapping[str, PriceEntry], symbol: str) -> PriceEntry:
    return entries.get(symbol) or PriceEntry(symbol=symbol)
