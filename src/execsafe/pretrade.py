"""``PreTradeChecks``: what is asked of the market, the account and the feed before an entry goes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final

from execsafe.buses.telling import tell
from execsafe.core.health import Health
from execsafe.core.pretrade import (
    DepthGuard,
    ExposureLimits,
    Finding,
    Pending,
    PreTradePolicy,
    PriceBand,
    RateLimit,
    SpreadGuard,
    exposure_finding,
    feed_finding,
    judge_book,
    order_finding,
    pending_of,
    rate_finding,
    take_token,
    unread,
    worst_exposure,
)
from execsafe.core.safety import DenyReason
from execsafe.errors import ExecsafeError, InvalidInput, TradingDenied
from execsafe.health import HealthMonitor
from execsafe.intents import IntentRegistry
from execsafe.model.event import Event, EventType
from execsafe.model.instrument import Instrument
from execsafe.model.intent import Intent
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.position import Position, Quote, Unavailable
from execsafe.model.values import Number, Params, check_seconds, plain, shorten, to_positive
from execsafe.ports import Batch, Clock, ExchangeAdapter, Listener, PositionSource, Store
from execsafe.prices import NoPrice, PriceBoard
from execsafe.stores.commits import commit_shielded
from execsafe.views import VenueReader

__all__ = [
    "DepthGuard",
    "ExposureLimits",
    "FeedGate",
    "HealthGate",
    "LeverageCheck",
    "PreTradeChecks",
    "PreTradePolicy",
    "PriceBand",
    "RateLimit",
    "SpreadGuard",
]

_KEPT_MAX: Final = 1_000
_STORE_TIMEOUT_S: Final = 10.0


def _denial(intent: Intent, finding: Finding) -> TradingDenied:
    reason = DenyReason.CHECK_FAILED if finding.reason is None else finding.reason
    text = f"{intent.symbol}: {finding.message}"
    return TradingDenied(
        text, intent_key=intent.key, reason=reason.value, check=finding.check, numbers=dict(finding.numbers)
    )


def _event(kind: EventType, intent: Intent, findings: Iterable[Finding], now_ms: int) -> Event:
    told = tuple(findings)
    denied = next((finding for finding in told if finding.reason is not None), None)
    checks = {finding.check: dict(finding.numbers) for finding in told}
    details: dict[str, object] = {"checks": checks}
    if denied is not None and denied.reason is not None:
        details |= {"reason": denied.reason.value, "message": shorten(denied.message, 300)}
    details |= {"numbers": dict(denied.numbers)} if denied is not None else {}
    warnings = "; ".join(finding.message for finding in told if finding.warning)
    return Event(
        type=kind,
        at_ms=now_ms,
        subject=intent.identity,
        symbol=intent.symbol,
        quantity=intent.quantity,
        price=intent.limit_price,
        note=warnings if denied is None or denied.reason is None else denied.reason.value,
        details=Params.of(details),
    )


class PreTradeChecks:
    """Spread, depth, price band, rate and exposure, as one check for ``OrderGateway(checks=[…])``.

    Exits pass unasked. A reading that fails refuses the entry: nothing known is not nothing wrong. All findings, with
    their numbers, leave as one event whose subject is the intent: ``entry_checked``, or ``entry_denied``.

    Entries that passed count as exposure from then on, until the registry has them: two that are checked at the same
    time do not both get the last of a limit.

    Args:
        reader: the venue.
        policy: which checks, and their thresholds.
        registry: whose open intents count; needed for bounds on symbol or gross exposure.
        positions: what is held; needed for the same.
        account: whose intents and positions count; None: all.
        listeners: told of the findings. One that raises is logged and ignored.
        store: findings go into its outbox too, one commit more per entry; None: listeners only.
        reservation_s: how long an entry that passed counts if it never turns up in the registry. 30 s.
    """

    def __init__(
        self,
        reader: VenueReader,
        *,
        policy: PreTradePolicy | None = None,
        registry: IntentRegistry | None = None,
        positions: PositionSource | None = None,
        account: str | None = None,
        listeners: Sequence[Listener] = (),
        store: Store | None = None,
        reservation_s: float = 30.0,
    ) -> None:
        check_seconds(reservation_s, "reservation_s")
        self.policy: PreTradePolicy = policy if policy is not None else PreTradePolicy()
        if self.policy.limits.needs_exposure and (registry is None or positions is None):
            raise InvalidInput("bounds on symbol or gross exposure need registry= and positions=")
        self._reader = reader
        self._clock: Clock = reader.clock
        self._registry = registry
        self._positions = positions
        self._account = account
        self._listeners = tuple(listeners)
        self._store = store
        self._reservation_ms = round(reservation_s * 1000)
        self._reserved: dict[str, tuple[Pending, int]] = {}
        self._counted: dict[str, None] = {}  # identities that have had their token, oldest first
        self._full_at_us = 0

    async def check(self, intent: Intent, instrument: Instrument) -> None:
        """Let an entry pass, or refuse it.

        Raises:
            TradingDenied: with ``reason`` (a :class:`~execsafe.safety.DenyReason`), ``check`` and ``numbers``.
            StoreError: the findings, or what is open, could not be written or read: no entry.
        """
        if intent.reduce_only:
            return
        findings: list[Finding] = []
        try:
            await self._ask(intent, instrument, findings)
        except ExecsafeError as error:
            findings.append(unread("exposure", type(error).__name__))
        denied = next((finding for finding in findings if finding.reason is not None), None)
        kind = EventType.ENTRY_CHECKED if denied is None else EventType.ENTRY_DENIED
        event = _event(kind, intent, findings, self._clock.now_ms())
        if denied is not None:
            self._reserved.pop(intent.identity, None)
        await self._record(event)
        tell(self._listeners, event)
        if denied is not None:
            raise _denial(intent, denied)

    async def _ask(self, intent: Intent, instrument: Instrument, findings: list[Finding]) -> None:
        """Ask one after the other, the cheapest first, until one refuses."""
        for questions in (self._rate, self._book, self._exposure):
            findings += await questions(intent, instrument)
            if any(finding.reason is not None for finding in findings):
                return

    async def _rate(self, intent: Intent, _instrument: Instrument) -> tuple[Finding, ...]:
        limit = self.policy.rate
        if limit is None or intent.identity in self._counted:  # asked again before a resend
            return ()
        self._full_at_us, wait_ms = take_token(limit, self._full_at_us, now_ms=self._clock.now_ms())
        if wait_ms == 0:
            self._counted[intent.identity] = None
            while len(self._counted) > _KEPT_MAX:
                del self._counted[next(iter(self._counted))]
        return (rate_finding(limit, wait_ms),)

    async def _book(self, intent: Intent, _instrument: Instrument) -> tuple[Finding, ...]:
        if not self.policy.needs_book:
            return ()
        reading = await self._reader.order_book(intent.symbol, depth=self.policy.book_depth)
        if isinstance(reading, Unavailable):
            return (unread("book", reading.error.kind),)
        age_ms = self._clock.now_ms() - (reading.value.at_ms or reading.taken_at_ms)
        return judge_book(self.policy, intent, reading.value, age_ms=age_ms)

    async def _exposure(self, intent: Intent, instrument: Instrument) -> tuple[Finding, ...]:
        limits = self.policy.limits
        if limits.max_order_notional is None and not limits.needs_exposure:
            return ()
        mine = Pending(symbol=intent.symbol, side=intent.side, quantity=intent.quantity)
        if not limits.needs_exposure:
            worst = {intent.symbol: intent.quantity}
        else:
            # Before anything is awaited: another entry that is checked meanwhile sees this one.
            self._reserved[intent.identity] = (mine, self._clock.now_ms())
            worst = worst_exposure(*await self._owned())
        quotes = await self._reader.quotes(sorted(worst))
        if isinstance(quotes, Unavailable):
            return (unread("exposure", quotes.error.kind),)
        prices = {symbol: self._price(quotes.value.get(symbol)) for symbol in worst}
        missing = sorted(symbol for symbol, price in prices.items() if price is None)
        if missing:
            return (unread("exposure", f"no fresh price of {missing[0]}"),)
        sizes = {s: instrument if s == intent.symbol else await self._reader.adapter.prepare(s) for s in sorted(worst)}
        values = {s: sizes[s].notional(quantity, prices[s] or Decimal(0)) for s, quantity in worst.items()}
        price = max(intent.limit_price or Decimal(0), prices[intent.symbol] or Decimal(0))
        found = [order_finding(limits, instrument.notional(intent.quantity, price))]
        if limits.needs_exposure:
            found.append(exposure_finding(limits, intent.symbol, values))
        return tuple(found)

    async def _owned(self) -> tuple[tuple[Position, ...], list[Pending]]:
        """What is held and what may still fill, this entry included.

        Intents are read before positions: what fills in between counts twice, never not at all.
        """
        assert self._registry is not None  # noqa: S101 - the constructor refuses anything else
        assert self._positions is not None  # noqa: S101
        records = await self._registry.open_records(self._account)
        reserved = await self._open_reservations({r.intent.identity for r in records})
        pending = [pending_of(r) for r in records if r.intent.identity not in reserved]
        await self._positions.catch_up()
        everything = [p for p in pending if p is not None] + list(reserved.values())
        return self._positions.open_positions(self._account), everything

    async def _open_reservations(self, recorded: set[str]) -> dict[str, Pending]:
        """Entries that passed and are not in the registry yet; others have no need of a reservation any more."""
        assert self._registry is not None  # noqa: S101
        until_ms = self._clock.now_ms() - self._reservation_ms
        for identity, (_, at_ms) in list(self._reserved.items()):
            is_known = identity in recorded or await self._registry.find_identity(identity) is not None
            if is_known or at_ms < until_ms:
                self._reserved.pop(identity, None)
        return {identity: pending for identity, (pending, _) in self._reserved.items()}

    def _price(self, quote: Quote | None) -> Decimal | None:
        """The dearer side of a quote, so that a value is never too small."""
        if quote is None:
            return None
        if quote.at_ms and feed_finding(self._clock.now_ms() - quote.at_ms, self.policy.max_age_s).reason is not None:
            return None
        known = [price for price in (quote.ask, quote.bid, quote.last) if price is not None and price > 0]
        return max(known, default=None)

    async def _record(self, event: Event) -> None:
        if self._store is None:
            return
        await commit_shielded(self._store, Batch(now_ms=event.at_ms, events=(event,)), timeout_s=_STORE_TIMEOUT_S)


class LeverageCheck:
    """An entry goes out only at a leverage that the venue confirmed: it took the setting, or said "already so".

    Confirmed once per symbol and leverage, and again after *confirm_s*: somebody may change it by hand.

    Args:
        adapter: the venue.
        leverage: what is meant, for all symbols or by symbol. A symbol that is not in it is refused: nobody has said.
        clock: source of Unix milliseconds.
        listeners: told of ``leverage_confirmed`` and ``entry_denied``.
        confirm_s: how long a confirmation holds, seconds. An hour.
    """

    def __init__(
        self,
        adapter: ExchangeAdapter,
        leverage: Number | Mapping[str, Number],
        *,
        clock: Clock,
        listeners: Sequence[Listener] = (),
        confirm_s: float = 3_600.0,
    ) -> None:
        check_seconds(confirm_s, "confirm_s")
        self._adapter = adapter
        self._wanted = (
            {symbol: to_positive(value, "leverage") for symbol, value in leverage.items()}
            if isinstance(leverage, Mapping)
            else to_positive(leverage, "leverage")
        )
        self._clock = clock
        self._listeners = tuple(listeners)
        self._confirm_ms = round(confirm_s * 1000)
        self._confirmed: dict[str, int] = {}

    async def check(self, intent: Intent, instrument: Instrument) -> None:  # noqa: ARG002 - the port's face
        """Confirm the leverage, or refuse the entry.

        Raises:
            TradingDenied: with reason ``leverage``.
        """
        if intent.reduce_only:
            return
        wanted = self._wanted.get(intent.symbol) if isinstance(self._wanted, dict) else self._wanted
        now_ms = self._clock.now_ms()
        confirmed_at_ms = self._confirmed.get(intent.symbol)
        if confirmed_at_ms is not None and now_ms - confirmed_at_ms < self._confirm_ms:
            return
        why = "nobody said which" if wanted is None else await self._confirm(intent.symbol, wanted)
        if why:
            numbers = {} if wanted is None else {"leverage": plain(wanted)}
            text = f"the leverage is not confirmed ({why})"
            finding = Finding(check="leverage", reason=DenyReason.LEVERAGE, message=text, numbers=numbers)
            tell(self._listeners, _event(EventType.ENTRY_DENIED, intent, [finding], now_ms))
            raise _denial(intent, finding)
        self._confirmed[intent.symbol] = now_ms

    async def _confirm(self, symbol: str, wanted: Decimal) -> str:
        how = "set"
        try:
            await self._adapter.set_leverage(symbol, wanted)
        except Exception as error:  # noqa: BLE001 - whatever a client raises: judged, never guessed
            judged = self._adapter.judge(error, Operation.SET_LEVERAGE)
            if judged.meaning is not Meaning.NO_CHANGE:
                return judged.facts.kind
            how = "already so"
        event = Event(
            type=EventType.LEVERAGE_CONFIRMED,
            at_ms=self._clock.now_ms(),
            subject=symbol,
            symbol=symbol,
            note=how,
            details=Params.of({"leverage": plain(wanted), "how": how}),
        )
        tell(self._listeners, event)
        return ""


class FeedGate:
    """An entry goes out only while its price is fresh, by a :class:`~execsafe.prices.PriceBoard`.

    Args:
        board: the prices that the strategy decides by.
        clock: source of Unix milliseconds.
        listeners: told of ``entry_denied``.
        max_age_s: how old a price may be; what the board calls stale is refused in any case. 5 s.
    """

    def __init__(
        self, board: PriceBoard, *, clock: Clock, listeners: Sequence[Listener] = (), max_age_s: float = 5.0
    ) -> None:
        check_seconds(max_age_s, "max_age_s")
        self._board = board
        self._clock = clock
        self._listeners = tuple(listeners)
        self._max_age_s = max_age_s

    async def check(self, intent: Intent, instrument: Instrument) -> None:  # noqa: ARG002 - the port's face
        """Refuse an entry on a stale price.

        Raises:
            TradingDenied: with reason ``feed_stale``, or ``no_reading``.
        """
        if intent.reduce_only:
            return
        reading = await self._board.price(intent.symbol)
        if isinstance(reading, NoPrice):
            finding = feed_finding(None, self._max_age_s)
        else:
            finding = feed_finding(reading.age_ms, 0.0 if reading.is_stale else self._max_age_s)
        if finding.reason is not None:
            tell(self._listeners, _event(EventType.ENTRY_DENIED, intent, [finding], self._clock.now_ms()))
            raise _denial(intent, finding)


class HealthGate:
    """An entry goes out only while these components are healthy; one that never reported is not.

    Args:
        monitor: who knows.
        components: names.
        clock: source of Unix milliseconds.
        listeners: told of ``entry_denied``.
    """

    def __init__(
        self, monitor: HealthMonitor, components: Iterable[str], *, clock: Clock, listeners: Sequence[Listener] = ()
    ) -> None:
        self._monitor = monitor
        self._components = tuple(components)
        self._clock = clock
        self._listeners = tuple(listeners)

    async def check(self, intent: Intent, instrument: Instrument) -> None:  # noqa: ARG002 - the port's face
        """Refuse an entry while one of them is not healthy.

        Raises:
            TradingDenied: with reason ``health``.
        """
        if intent.reduce_only:
            return
        known = self._monitor.components()  # up to date: silence counts by now, not by the last tick
        states = {name: known[name].health.value if name in known else "unknown" for name in self._components}
        bad = sorted(name for name, state in states.items() if state != Health.HEALTHY)
        if not bad:
            return
        text = f"{bad[0]} is {states[bad[0]]}"
        finding = Finding(check="health", reason=DenyReason.HEALTH, message=text, numbers=dict(states))
        tell(self._listeners, _event(EventType.ENTRY_DENIED, intent, [finding], self._clock.now_ms()))
        raise _denial(intent, finding)
