"""What is asked before an entry goes out, as pure functions: (policy, intent, reading, now) -> finding.

Every finding carries its numbers, passed or not: what was read before an entry is part of the record of the entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Context, Decimal
from typing import Any, Final

import attrs

from execsafe.core.exposure import worst_case
from execsafe.core.safety.tables import DenyReason
from execsafe.errors import InvalidInput
from execsafe.model.intent import Intent, IntentRecord
from execsafe.model.order import ZERO, Side
from execsafe.model.position import BookLevel, OrderBook, Position
from execsafe.model.units import Percent, PriceFraction, PriceShare, share_validator, to_price_fraction
from execsafe.model.values import EXACT, check_count, check_seconds, left_of, plain, to_limit, to_positive, total

_ONE: Final = Decimal(1)
_SHOWN: Final = Context(prec=12)
_HALF: Final = Decimal("0.5")
_US: Final = 1_000_000


@attrs.frozen(kw_only=True)
class Finding:
    """What one check says. ``reason`` None: pass. ``warning``: passed, but worth a word. ``numbers`` are plain JSON."""

    check: str
    reason: DenyReason | None = None
    message: str = ""
    warning: bool = False
    numbers: Mapping[str, Any] = attrs.field(factory=dict, hash=False)


def unread(check: str, why: str) -> Finding:
    """A reading that failed: nothing is known, so nothing passes."""
    return Finding(check=check, reason=DenyReason.NO_READING, message=f"{check}: nothing could be read ({why})")


# --- The spread --------------------------------------------------------------------------------------


def _to_share(value: PriceShare | None) -> PriceFraction | None:
    return None if value is None else to_price_fraction(value)


@attrs.frozen(kw_only=True)
class SpreadGuard:
    """Spread = (ask - bid) / mid, mid = (ask + bid) / 2.

    Attributes:
        warn: above it the entry passes with a warning. 0.10 %.
        block: above it the entry is refused; None: never. 0.50 %: a round trip through it costs more than most targets.
            (A spread of 0.11 % was once warned of, and the position opened all the same: a check that only logs.)
    """

    warn: PriceFraction = attrs.field(
        default=Percent("0.10").as_fraction(),
        converter=to_price_fraction,
        validator=share_validator(least=ZERO, most=Decimal(2)),
    )
    block: PriceFraction | None = attrs.field(
        default=Percent("0.50").as_fraction(),
        converter=_to_share,
        validator=share_validator(least=ZERO, most=Decimal(2)),
    )

    def __attrs_post_init__(self) -> None:
        """Refuse a block below the warning."""
        if self.block is not None and self.block < self.warn:
            raise InvalidInput(f"block {self.block} must not be below warn {self.warn}")

    def judge(self, book: OrderBook) -> Finding:
        """What the best prices say."""
        best = _best(book)
        if best is None:
            return unread("spread", "one side of the book is empty")
        bid, ask = best
        gap, mid = EXACT.subtract(ask, bid), mid_of(bid, ask)
        if gap < 0:
            return unread("spread", "the book is crossed")
        ratio = _SHOWN.divide(gap, mid)
        numbers = {"bid": plain(bid), "ask": plain(ask), "spread_ratio": plain(ratio)}
        if self.block is not None and gap > self.block.of(mid):
            text = f"the spread is {PriceFraction(ratio)}, at most {self.block} is allowed"
            return Finding(check="spread", reason=DenyReason.SPREAD, message=text, numbers=numbers)
        is_wide = gap > self.warn.of(mid)
        text = f"the spread is {PriceFraction(ratio)}, above {self.warn}" if is_wide else ""
        return Finding(check="spread", warning=is_wide, message=text, numbers=numbers)


def mid_of(bid: Decimal, ask: Decimal) -> Decimal:
    """Middle of the two, exact."""
    return EXACT.multiply(EXACT.add(bid, ask), _HALF)


def _best(book: OrderBook) -> tuple[Decimal, Decimal] | None:
    if not book.bids or not book.asks or book.bids[0].price <= 0 or book.asks[0].price <= 0:
        return None
    return book.bids[0].price, book.asks[0].price


# --- Depth -------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class DepthGuard:
    """The book must hold the order near the middle, on the side that fills it and on the side that gets it out again.

    Attributes:
        within: how far from the middle quantity counts. 0.50 %.
        coverage: how many times the order's quantity must be there. 1.
        exit_side: also look at the side through which the position would be closed.
    """

    within: PriceFraction = attrs.field(
        default=Percent("0.50").as_fraction(),
        converter=to_price_fraction,
        validator=share_validator(least=ZERO, most=_ONE, above=True),
    )
    coverage: Decimal = attrs.field(default=_ONE, converter=to_positive)
    exit_side: bool = True

    def judge(self, intent: Intent, book: OrderBook) -> Finding:
        """Whether there is enough. A post-only order takes nothing, so only its way out counts."""
        best = _best(book)
        if best is None:
            return unread("depth", "one side of the book is empty")
        reach = self.within.of(mid_of(*best))
        mid, need = mid_of(*best), EXACT.multiply(intent.quantity, self.coverage)
        sides = [] if intent.post_only else [intent.side]
        sides += [intent.side.opposite] if self.exit_side else []
        found = {side: _near(book.levels(side), mid, reach) for side in sides}
        numbers = {f"{'entry' if s is intent.side else 'exit'}_depth": plain(q) for s, q in found.items()}
        numbers |= {"need": plain(need)}
        short = [side for side, quantity in found.items() if quantity < need]
        if not short:
            return Finding(check="depth", numbers=numbers)
        text = f"only {plain(found[short[0]])} within {self.within} to {short[0].value}, {plain(need)} is needed"
        return Finding(check="depth", reason=DenyReason.DEPTH, message=text, numbers=numbers)


def _near(levels: Iterable[BookLevel], mid: Decimal, reach: Decimal) -> Decimal:
    return total(level.quantity for level in levels if EXACT.subtract(level.price, mid).copy_abs() <= reach)


# --- The price band: fat fingers ---------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class PriceBand:
    """A limit price must not be worse than the middle by more than this; a stop order's, than its own trigger.

    Attributes:
        within: 5 %.
        both_sides: also refuse prices that are better by more: an order that can never fill is a typing error as well.
            Off, because ladders rest far away on purpose.
    """

    within: PriceFraction = attrs.field(
        default=Percent(5).as_fraction(),
        converter=to_price_fraction,
        validator=share_validator(least=ZERO, most=_ONE, above=True),
    )
    both_sides: bool = False

    def judge(self, intent: Intent, book: OrderBook) -> Finding:
        """Whether the price is believable. A market order has none: depth and spread speak for it."""
        best = _best(book)
        if best is None:
            return unread("price_band", "one side of the book is empty")
        if intent.limit_price is None:
            return Finding(check="price_band")
        base = mid_of(*best) if intent.trigger_price is None else intent.trigger_price
        away = EXACT.subtract(intent.limit_price, base)
        worse = away if intent.side is Side.BUY else away.copy_negate()
        distance = away.copy_abs() if self.both_sides else worse
        numbers = {
            "price": plain(intent.limit_price),
            "base": plain(base),
            "away_ratio": plain(_SHOWN.divide(worse, base)),
        }
        if distance <= self.within.of(base):
            return Finding(check="price_band", numbers=numbers)
        text = f"price {plain(intent.limit_price)} is more than {self.within} away from {plain(base)}"
        return Finding(check="price_band", reason=DenyReason.PRICE_BAND, message=text, numbers=numbers)


# --- The rate of orders: a token bucket --------------------------------------------------------------


@attrs.frozen(kw_only=True)
class RateLimit:
    """At most *orders* at once, refilled at *orders* per *per_s* seconds.

    The default of 10 in a second is far above what a strategy means, and far below what a loop that ran wild does.
    """

    orders: int = 10
    per_s: float = 1.0

    def __attrs_post_init__(self) -> None:
        """Refuse a bucket without bottom or top."""
        check_count(self.orders, "orders")
        check_seconds(self.per_s, "per_s", most=86_400.0)

    @property
    def span_us(self) -> int:
        """Time in which an empty bucket is full again."""
        return round(self.per_s * _US)


def take_token(limit: RateLimit, full_at_us: int, *, now_ms: int) -> tuple[int, int]:
    """Take a token from a bucket that will be full at *full_at_us*: (when it will be full now, ms to wait; 0: taken).

    The bucket is one number (the "theoretical arrival time" of the generic cell rate algorithm, ITU-T I.371), so
    nothing has to be refilled and integers keep it exact. A clock that steps back gives no tokens away.
    """
    now_us = now_ms * 1000
    step_us = -(-limit.span_us // limit.orders)  # rounded up: never faster than said
    full_us = max(full_at_us, now_us) + step_us
    over_us = full_us - now_us - step_us * limit.orders
    return (full_us, 0) if over_us <= 0 else (full_at_us, -(-over_us // 1000))


def rate_finding(limit: RateLimit, wait_ms: int) -> Finding:
    """What the bucket says."""
    numbers = {"orders": limit.orders, "per_s": limit.per_s, "wait_ms": wait_ms}
    if wait_ms <= 0:
        return Finding(check="rate", numbers=numbers)
    text = f"more than {limit.orders} entries in {limit.per_s:g} s; the next one in {wait_ms} ms"
    return Finding(check="rate", reason=DenyReason.RATE_LIMIT, message=text, numbers=numbers)


# --- Exposure ----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class ExposureLimits:
    """Upper bounds in quote currency; None: no bound. Symbols quoted in other currencies are summed as if in one.

    Attributes:
        max_order_notional: of one order.
        max_symbol_notional: of one symbol: position and everything that may still fill.
        max_gross_notional: of all symbols together, long and short added.
    """

    max_order_notional: Decimal | None = attrs.field(default=None, converter=to_limit)
    max_symbol_notional: Decimal | None = attrs.field(default=None, converter=to_limit)
    max_gross_notional: Decimal | None = attrs.field(default=None, converter=to_limit)

    @property
    def needs_exposure(self) -> bool:
        """Whether positions and open intents must be known."""
        return self.max_symbol_notional is not None or self.max_gross_notional is not None


@attrs.frozen(kw_only=True)
class Pending:
    """What an intent may still add to a symbol."""

    symbol: str
    side: Side
    quantity: Decimal


def pending_of(record: IntentRecord) -> Pending | None:
    """What a recorded intent may still add; None for exits. A doubt counts in full; nothing on the wire, too.

    What was recorded and not sent yet is about to be: it counts as meant.
    """
    if record.intent.reduce_only:
        return None
    may_own = max(worst_case(record), ZERO if record.state.is_terminal else record.quantity)
    left = left_of(may_own, record.filled_quantity)
    return Pending(symbol=record.intent.symbol, side=record.intent.side, quantity=left) if left > 0 else None


def worst_exposure(positions: Iterable[Position], pending: Iterable[Pending]) -> dict[str, Decimal]:
    """By symbol the largest absolute quantity that could come to be held, whichever of the orders fill."""
    held: dict[str, Decimal] = {}
    adds: dict[tuple[str, Side], Decimal] = {}
    for position in positions:
        held[position.symbol] = EXACT.add(held.get(position.symbol, ZERO), position.signed_quantity)
    for item in pending:
        key = (item.symbol, item.side)
        adds[key] = EXACT.add(adds.get(key, ZERO), item.quantity)
    found: dict[str, Decimal] = {}
    for symbol in held.keys() | {symbol for symbol, _ in adds}:
        now = held.get(symbol, ZERO)
        long = EXACT.add(now, adds.get((symbol, Side.BUY), ZERO))
        short = EXACT.subtract(now, adds.get((symbol, Side.SELL), ZERO))
        found[symbol] = max(now.copy_abs(), long.copy_abs(), short.copy_abs())
    return found


def order_finding(limits: ExposureLimits, notional: Decimal) -> Finding:
    """Whether one order is small enough."""
    most = limits.max_order_notional
    numbers = {"notional": plain(notional)} | ({} if most is None else {"limit": plain(most)})
    if most is None or notional <= most:
        return Finding(check="order_notional", numbers=numbers)
    text = f"the order is worth {plain(notional)}, at most {plain(most)} is allowed"
    return Finding(check="order_notional", reason=DenyReason.ORDER_NOTIONAL, message=text, numbers=numbers)


def exposure_finding(limits: ExposureLimits, symbol: str, notionals: Mapping[str, Decimal]) -> Finding:
    """Whether the worst case of the symbol, and of all, is small enough. *notionals* include the order asked about."""
    mine, gross = notionals.get(symbol, ZERO), total(notionals.values())
    numbers = {"symbol_notional": plain(mine), "gross_notional": plain(gross)}
    most = limits.max_symbol_notional
    if most is not None and mine > most:
        text = f"{symbol} could come to {plain(mine)}, at most {plain(most)} is allowed"
        return Finding(check="exposure", reason=DenyReason.SYMBOL_EXPOSURE, message=text, numbers=numbers)
    most = limits.max_gross_notional
    if most is not None and gross > most:
        text = f"all positions could come to {plain(gross)}, at most {plain(most)} is allowed"
        return Finding(check="exposure", reason=DenyReason.GROSS_EXPOSURE, message=text, numbers=numbers)
    return Finding(check="exposure", numbers=numbers)


# --- The feed ----------------------------------------------------------------------------------------


def feed_finding(age_ms: int | None, max_age_s: float) -> Finding:
    """Whether a price is young enough. *age_ms* None: there is none. One from the future is as old as it is early."""
    if age_ms is None:
        return unread("feed", "no price was ever read")
    numbers = {"age_ms": age_ms, "max_age_s": max_age_s}
    if abs(age_ms) <= max_age_s * 1000:
        return Finding(check="feed", numbers=numbers)
    text = f"the price is {age_ms} ms old, at most {max_age_s:g} s are allowed"
    return Finding(check="feed", reason=DenyReason.FEED_STALE, message=text, numbers=numbers)


# --- All together ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class PreTradePolicy:
    """Which checks are made. None leaves one out.

    Attributes:
        spread, depth, band: read the order book.
        rate: entries of this process.
        limits: bounds on what may come to be owned; none by default, because only the owner knows them.
        max_age_s: how old the order book may be, by the venue's own time stamp where it states one. 5 s.
        book_depth: levels to read. 20.
    """

    spread: SpreadGuard | None = SpreadGuard()
    depth: DepthGuard | None = DepthGuard()
    band: PriceBand | None = PriceBand()
    rate: RateLimit | None = RateLimit()
    limits: ExposureLimits = ExposureLimits()
    max_age_s: float = 5.0
    book_depth: int = 20

    def __attrs_post_init__(self) -> None:
        """Refuse values with which no price would ever do."""
        check_seconds(self.max_age_s, "max_age_s")
        check_count(self.book_depth, "book_depth")

    @property
    def needs_book(self) -> bool:
        """Whether the order book must be read."""
        return not (self.spread is None and self.depth is None and self.band is None)


def judge_book(policy: PreTradePolicy, intent: Intent, book: OrderBook, *, age_ms: int) -> tuple[Finding, ...]:
    """Everything that the order book tells about an entry."""
    found = [feed_finding(age_ms, policy.max_age_s)]
    if policy.spread is not None:
        found.append(policy.spread.judge(book))
    if policy.depth is not None:
        found.append(policy.depth.judge(intent, book))
    if policy.band is not None:
        found.append(policy.band.judge(intent, book))
    return tuple(found)
