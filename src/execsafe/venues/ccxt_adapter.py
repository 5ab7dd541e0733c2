"""A ccxt exchange as execsafe needs it: one request per order, our client order id in it, nothing guessed.

Subclass :class:`CcxtAdapter` to change ids (:meth:`~CcxtAdapter.client_order_id`), parameters
(:meth:`~CcxtAdapter.order_params`), classification (:meth:`~CcxtAdapter.judge`), parsing
(:meth:`~CcxtAdapter.parse_report`) or reading (:meth:`~CcxtAdapter.look_up`). ccxt itself is never imported.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import anyio
import attrs

from execsafe.clock import SystemClock
from execsafe.core import ids
from execsafe.core.outcomes import classify
from execsafe.core.pacing import PacingPolicy
from execsafe.core.redaction import redact
from execsafe.errors import InvalidInput, TradingDenied, UnsupportedByVenue
from execsafe.model.instrument import Instrument, is_contract
from execsafe.model.intent import Intent
from execsafe.model.order import OrderReport, OrderRequest, OrderStatus, Side
from execsafe.model.outcome import Judged, Meaning, Operation
from execsafe.model.values import Params, plain, shorten
from execsafe.model.venue import Expiry, IdRule, LookUp, VenueProfile
from execsafe.ports import Clock, OrderRef
from execsafe.venues import _checks, _parsing, _reading, _routing, _warmup, _wire
from execsafe.venues._ccxt_views import CcxtViews
from execsafe.venues._details import DETAILS, Details
from execsafe.venues._pacing import Pacer
from execsafe.venues._settings import AlreadySo
from execsafe.venues._shapes import AnswerUnusable, CcxtLike, markets_of, options_of
from execsafe.venues.outcomes import codes_of
from execsafe.venues.profiles import family_of, profile_for

_SECRETS: Final = ("apiKey", "secret", "password", "uid", "token", "privateKey", "login", "twofa")
_WINDOW_MAX_MS: Final = 60_000


class CcxtAdapter(CcxtViews):
    """Places, cancels and finds orders through a ``ccxt.async_support`` exchange (or any object of its shape).

    Args:
        exchange: the exchange object. Its options and methods are used, its session is never closed here.
        profile: what is known of the venue; None takes the row for ``exchange.id``.
        clock: Unix milliseconds for deadlines, for an exchange object that has no ``nonce()`` of its own.

    Raises:
        InvalidInput: not an asynchronous exchange.
        UnsupportedByVenue: ``verbose`` is on, which prints signed requests; a subclass may set
            ``allow_verbose``, and ``pacing``: how a venue is left alone that says "too many requests".
    """

    allow_verbose = False
    pacing: PacingPolicy = PacingPolicy()

    def __init__(self, exchange: CcxtLike, *, profile: VenueProfile | None = None, clock: Clock | None = None) -> None:
        self.exchange: Any = exchange
        self._clock = clock if clock is not None else SystemClock()
        if profile is not None and not isinstance(profile, VenueProfile):
            raise InvalidInput("profile must be a VenueProfile: attrs.evolve(execsafe.profile_for(...), ...)")
        self.profile: VenueProfile = profile if profile is not None else profile_for(exchange)
        name = getattr(exchange, "id", None)
        self.exchange_id: str = name if isinstance(name, str) else self.profile.name
        self.family: str = family_of(self.exchange_id)
        self.details: Details | None = DETAILS.get(self.family)
        self._warm = False
        self._preparing = anyio.Lock()
        self._instruments: dict[str, tuple[object, Instrument]] = {}
        self._pacer = Pacer(exchange, self.exchange_id, self._clock, self.pacing)
        self._check_exchange()
        _wire.hook(exchange)
        _wire.redact_log(exchange, self.redact)
        _warmup.adjust(exchange, self.family)
        self._set_window()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.exchange_id}>"

    @property
    def venue_name(self) -> str:
        """The exchange object's id."""
        return self.exchange_id

    # --- before sending --------------------------------------------------------------------------

    async def prepare(self, symbol: str) -> Instrument:
        """Load markets and account modes once, so that a later network error belongs to the order itself.

        Raises:
            InvalidInput: the venue does not list *symbol*, with near matches; its client takes it for another one.
        """
        await self.ready()
        return self._instrument(symbol)

    async def ready(self) -> None:
        """Load markets and account modes, once; raises whatever ccxt raises."""
        # One at a time: ccxt shares a load under way, and the first of its callers to be cancelled cancels it for all.
        async with self._preparing:
            load = getattr(self.exchange, "load_markets", None)
            if not markets_of(self.exchange) and callable(load):
                await load()
            if not self._warm:
                await _warmup.warm_up(self.exchange, self.family)
                self._warm = True

    def prepared(self, symbol: str) -> Instrument | None:
        """What :meth:`prepare` returns, once it has been awaited for any symbol; None before.

        Raises:
            InvalidInput: the venue does not list *symbol*.
        """
        return self._instrument(symbol) if self._warm else None

    def check(self, intent: Intent) -> None:
        """Refuse what this venue, or ccxt, would silently turn into something else.

        Raises:
            UnsupportedByVenue: with the reason. Nothing was sent.
            InvalidOrder: a market order above the venue's maximum for market orders.
            VenueUnavailable: the venue asked to be left alone, and until when. Nothing was sent.
        """
        self._check_verbose()
        _checks.check(intent, self.profile, self.details, self.exchange)
        self._pacer.check(urgent=intent.reduce_only)

    def not_before_ms(self) -> int | None:
        """When the venue may be asked again after it turned a request away for coming too often; None: now."""
        return self._pacer.not_before_ms()

    def paced(self, *, urgent: bool) -> contextlib.AbstractContextManager[None]:
        """Around one request: ``VenueUnavailable`` while the venue wants to be left alone; learns from the answer.

        *urgent* ones are let through once per pause, also before the time that the venue named.
        """
        return self._pacer.watching(urgent=urgent)

    def expiry(self, intent: Intent) -> Expiry:
        """What bounds the acceptance of this intent's request: the profile's, unless it is not enforced for it."""
        details = self.details or Details()
        if (details.has_no_expiry_on_stops and intent.is_trigger) or (
            details.has_no_expiry_on_contracts and is_contract(intent.symbol)
        ):
            return Expiry.NONE
        return self.profile.expiry

    def id_rule(self, symbol: str) -> IdRule:
        """Alphabet, length and field of client order ids for this kind of market."""
        special = self.details.contract_id if self.details is not None and is_contract(symbol) else None
        return special or self.profile.client_order_id

    def client_order_id(self, intent: Intent, generation: int) -> str:
        """Pure function of account, intent key, leg and *generation* in the venue's alphabet and length."""
        return ids.client_order_id(
            account=intent.account,
            key=intent.key,
            leg=intent.leg,
            generation=generation,
            rule=self.id_rule(intent.symbol),
        )

    # --- sending ---------------------------------------------------------------------------------

    def order_params(self, request: OrderRequest) -> dict[str, Any]:
        """Parameters for ccxt: the caller's own, our id in the field that arrives, flags, deadline."""
        details = self.details or Details()
        params = request.params.thaw()
        rule = self.id_rule(request.symbol)
        params[rule.param] = int(request.client_order_id) if rule.encoding.value == "int63" else request.client_order_id
        if request.time_in_force is not None:
            params["timeInForce"] = request.time_in_force
        if request.post_only:
            params["postOnly"] = True
        if request.reduce_only and (is_contract(request.symbol) or self.details is None):
            params["reduceOnly"] = True  # spot has none: there it would be a stray parameter
        if _checks.is_stop(request):
            params.update(dict.fromkeys(details.trigger_ids, request.client_order_id))
        if request.trigger_price is not None:
            params.update(self._stop_params(request, params))
        if _checks.is_market(request) and not is_contract(request.symbol) and not _checks.is_stop(request):
            params.update(details.spot_params.thaw())
        params.update(self._deadline_params(request))
        return params

    async def create_order(self, request: OrderRequest) -> OrderReport:
        """Send one order, once.

        The report states status and fills only where the venue's answer is known to (``definite_ack``); what a
        placeholder says is left out.

        Raises:
            UnsupportedByVenue: ccxt would alter quantity or price. Nothing was sent.
            TradingDenied: the deadline has passed. Nothing was sent.
            VenueUnavailable: the venue asked to be left alone. Nothing was sent.
            AnswerUnusable: the venue answered without an order id, or about another order.
            Exception: whatever ccxt raises.
        """
        self._check_verbose()
        self._set_window()
        if request.expires_in_ms is not None and request.expires_in_ms <= 0:
            raise TradingDenied(f"{request.symbol}: the request's deadline has passed before it was sent")
        amount, price, params = self._arguments(request)
        with self.paced(urgent=request.reduce_only), _wire.sending(self._deadline_headers(request)):
            answer = await self.exchange.create_order(
                request.symbol, request.type, request.side.value, amount, price, params
            )
        return self._acknowledged(answer, request)

    async def cancel_order(self, order: OrderRef) -> None:
        """Ask for cancellation, by venue id where it is known, else by our id. Each request is sent once.

        A stop order that has been set off lives on as another order on some venues: then that one is canceled.

        Raises:
            AnswerUnusable: the venue cannot cancel by our id, and no look-up shows the order.
            Exception: whatever ccxt raises.
        """
        details = self.details or Details()
        extra = details.trigger_cancel.thaw() if order.is_trigger else {}
        try:
            with self.paced(urgent=True), _wire.sending():
                await self._cancel(order, details, extra)
        except Exception:
            if not extra or self.not_before_ms() is not None:
                raise
            # Set off already? Venues have many words for that, and a lost answer none. What trades then is another
            # order, which only its own id cancels.
            triggered = None
            with contextlib.suppress(Exception):  # then what became of it is read, as after any such answer
                triggered = await _reading.triggered_id(self, self.profile.lookups, order)
            if triggered is None:
                raise
            with _wire.sending():
                await self.exchange.cancel_order(triggered, order.symbol, {})

    async def _cancel(self, order: OrderRef, details: Details, extra: dict[str, Any]) -> None:
        if order.venue_order_id is not None:
            await self.exchange.cancel_order(order.venue_order_id, order.symbol, extra)
        elif order.client_order_id is None:
            raise AnswerUnusable("an order without any id cannot be canceled")
        elif details.contract_cancel is not None and is_contract(order.symbol):
            method, template = details.contract_cancel
            await getattr(self.exchange, method)(self.fill_in(template, order))
        elif self.profile.cancel_params is not None:
            params = self.fill_in(self.profile.cancel_params, order)
            await self.exchange.cancel_order(None, order.symbol, {**params, **extra})
        elif details.id_prefix:
            await self.exchange.cancel_order(details.id_prefix + order.client_order_id, order.symbol, extra)
        else:
            await self.exchange.cancel_order(await self._venue_id_of(order), order.symbol, extra)

    # --- reading ---------------------------------------------------------------------------------

    async def look_up(self, lookup: LookUp, order: OrderRef) -> OrderReport | None:
        """Read one declared view. None: the read succeeded and the order is not in it.

        Raises:
            AnswerUnusable: the answer is about another order, lacks our id, or a full page leaves it open
                whether the order is on a further one.
            Exception: whatever ccxt raises, except for a definite "not found".
        """
        try:
            with self.paced(urgent=False):
                return await _reading.read(self, lookup, order)
        except Exception as error:
            if self.judge(error, Operation.LOOK_UP).meaning is Meaning.NOT_FOUND:
                return None
            raise

    def parse_report(self, order: Mapping[str, Any], *, id_field: str = "clientOrderId") -> OrderReport:
        """A unified ccxt order as a report; quantities as the venue states them (contracts stay contracts).

        Never raises: what cannot be understood stays None. *id_field* is the dotted path of the client order id.
        """
        own = _parsing.text(_parsing.field(order, id_field)) or _parsing.text(order.get("clientOrderId"))
        details = self.details or Details()
        if own is not None and details.id_prefix:
            own = own.removeprefix(details.id_prefix)
        if details.fees_at:
            order = _parsing.with_all_fees(order, details.fees_at)
        report = _parsing.report(order, client_order_id=own)
        if details.contract_sides_wrong and is_contract(report.symbol):
            return attrs.evolve(report, side=None)
        return report

    def fill_in(self, params: Params, order: OrderRef) -> dict[str, Any]:
        """*params* with the places for ids filled in."""
        market = markets_of(self.exchange).get(order.symbol)
        places = {
            "{client_order_id}": order.client_order_id or "",
            "{market_id}": str(market.get("id")) if isinstance(market, Mapping) else order.symbol,
        }
        return {k: places.get(v, v) if isinstance(v, str) else v for k, v in params.thaw().items()}

    # --- classification --------------------------------------------------------------------------

    def judge(self, error: BaseException, operation: Operation) -> Judged:
        """What *error* means at this venue, with redacted facts. Never raises."""
        judged = classify(error, operation, table=codes_of(self.exchange_id), secrets=self.secrets())
        return attrs.evolve(judged, meaning=Meaning.NO_CHANGE) if isinstance(error, AlreadySo) else judged

    def redact(self, text: str) -> str:
        """*text* without this exchange's credentials, nor anything that looks like one."""
        return redact(text, self.secrets())

    def secrets(self) -> tuple[str, ...]:
        """The exchange's credentials, as configured now."""
        values = (getattr(self.exchange, name, None) for name in _SECRETS)
        return tuple(value for value in values if isinstance(value, str) and value)

    # --- inside ----------------------------------------------------------------------------------

    def _instrument(self, symbol: str) -> Instrument:
        markets = markets_of(self.exchange)
        if not markets:
            return Instrument(symbol=symbol)
        _routing.check_symbol(self.exchange, symbol)
        market = markets.get(symbol)
        known = self._instruments.get(symbol)
        if known is not None and known[0] is market:  # reloading markets makes new ones
            return known[1]
        if not isinstance(market, Mapping):
            near = difflib.get_close_matches(symbol.upper(), list(markets)[:20_000], n=3)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise InvalidInput(f"{self.exchange_id} does not list {shorten(symbol)}{hint}")
        instrument = _parsing.instrument(symbol, market, getattr(self.exchange, "precisionMode", None))
        self._instruments[symbol] = market, instrument
        return instrument

    def _check_exchange(self) -> None:
        create = getattr(self.exchange, "create_order", None)
        if not callable(create) or inspect.isclass(self.exchange):
            raise InvalidInput(f"not an exchange: {shorten(type(self.exchange).__name__)} has no create_order")
        plain_function = inspect.isfunction(create) or inspect.ismethod(create)
        if plain_function and not inspect.iscoroutinefunction(create):
            raise InvalidInput(
                f"{shorten(type(self.exchange).__name__)} is a synchronous exchange: use ccxt.async_support"
            )
        self._check_verbose()

    def _check_verbose(self) -> None:
        _wire.check_verbose(getattr(self.exchange, "verbose", False), allowed=self.allow_verbose)

    def _set_window(self) -> None:
        param = self.profile.expiry_param or ""
        if self.profile.expiry is Expiry.RELATIVE and param.startswith("options."):
            options_of(self.exchange)[param.removeprefix("options.")] = round(self.profile.expiry_window_s * 1000)

    def _arguments(self, request: OrderRequest) -> tuple[Any, Any, dict[str, Any]]:
        try:
            details = self.details or Details()
            price = request.limit_price
            if _checks.is_market(request) and not details.price_for_market:
                price = None  # some venues would take quantity × price as an amount to spend
            params = self.order_params(request)
            self._check_unaltered("amount_to_precision", request.symbol, request.quantity)
            if price is not None and not _checks.is_market(request):
                self._check_unaltered("price_to_precision", request.symbol, price)
            return _parsing.exact(request.quantity), None if price is None else _parsing.exact(price), params
        except (UnsupportedByVenue, TradingDenied):
            raise
        except InvalidInput as error:
            raise UnsupportedByVenue(f"{request.symbol}: {error}") from None

    def _check_unaltered(self, method: str, symbol: str, value: Decimal) -> None:
        """ccxt truncates quantities and rounds prices on its own: refuse if that would change what is journalled."""
        to_precision = getattr(self.exchange, method, None)
        if not callable(to_precision) or symbol not in markets_of(self.exchange):
            return
        try:
            altered = _parsing.number(to_precision(symbol, _parsing.exact(value)))
        except Exception as error:  # noqa: BLE001 - ccxt refuses it already here: nothing was sent
            raise UnsupportedByVenue(f"{symbol}: {plain(value)}: {self.redact(str(error))}") from None
        if altered is not None and altered != value:
            what = method.removesuffix("_to_precision")
            raise UnsupportedByVenue(
                f"{symbol}: ccxt would send {what} {plain(altered)} instead of {plain(value)}; round it first"
            )

    def _stop_params(self, request: OrderRequest, params: Mapping[str, Any]) -> dict[str, Any]:
        assert request.trigger_price is not None  # noqa: S101 - by the caller's condition
        name = _checks.stop_name(request.symbol, self.details)
        stop = {name: _parsing.exact(request.trigger_price)}
        if self.family == "bybit" and is_contract(request.symbol) and "triggerDirection" not in params:
            # A stop: a sell triggers on the way down, a buy on the way up.
            stop["triggerDirection"] = "descending" if request.side is Side.SELL else "ascending"
        return stop

    def _deadline_params(self, request: OrderRequest) -> dict[str, Any]:
        param, deadline_ms = self.profile.expiry_param, self._venue_deadline_ms(request)
        if deadline_ms is None or param is None or request.expires_in_ms is None:
            return {}
        if param == "timestamp+recvWindow":
            # The sum is the deadline whenever the request leaves: time lost in a queue shortens what is left, and
            # after the deadline the venue refuses.
            window_ms = max(1, min(request.expires_in_ms, _WINDOW_MAX_MS))
            return {"timestamp": deadline_ms - request.expires_in_ms, "recvWindow": window_ms}
        if param == "deadline:rfc3339":
            moment = datetime.fromtimestamp(deadline_ms / 1000, tz=UTC)
            return {"deadline": moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{deadline_ms % 1000:03d}Z"}
        return {} if param.startswith("header:") else {param: deadline_ms}

    def _venue_deadline_ms(self, request: OrderRequest) -> int | None:
        """The deadline in the time that the exchange object signs with (its clock, less its measured difference)."""
        if self.profile.expiry is not Expiry.ABSOLUTE or request.expires_in_ms is None:
            return None
        nonce = getattr(self.exchange, "nonce", None)
        now = nonce() if callable(nonce) else self._clock.now_ms()
        return int(now) + request.expires_in_ms

    def _deadline_headers(self, request: OrderRequest) -> dict[str, str]:
        param, deadline_ms = self.profile.expiry_param or "", self._venue_deadline_ms(request)
        if deadline_ms is None or not param.startswith("header:"):
            return {}
        return {param.removeprefix("header:"): str(deadline_ms)}

    def _acknowledged(self, answer: object, request: OrderRequest) -> OrderReport:
        if not isinstance(answer, Mapping):
            raise AnswerUnusable(f"{self.exchange_id} answered the order with {shorten(type(answer).__name__)}")
        report = self.parse_report(answer)
        if report.venue_order_id is None:
            raise AnswerUnusable(f"{self.exchange_id} answered the order without an id")
        ours = request.client_order_id
        if report.client_order_id not in (None, ours) and not _parsing.mentions(answer.get("info"), (ours,)):
            raise AnswerUnusable(f"{self.exchange_id} answered about another order")
        if self.details is not None and not self.profile.definite_ack:
            report = attrs.evolve(report, status=OrderStatus.UNKNOWN, filled_quantity=None, average_price=None)
        return attrs.evolve(
            report, symbol=request.symbol, client_order_id=ours, side=request.side, quantity=request.quantity
        )

    async def _venue_id_of(self, order: OrderRef) -> str:
        for lookup in self.profile.lookups:
            report = await self.look_up(lookup, order)
            if report is not None and report.venue_order_id is not None:
                return report.venue_order_id
        raise AnswerUnusable(f"{self.exchange_id} cancels by its own id only, and no view shows the order")
