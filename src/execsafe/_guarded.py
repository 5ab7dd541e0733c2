"""The object that :func:`execsafe.wrap` returns."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import anyio

from execsafe._calls import within
from execsafe._ccxt_calls import (
    GUARDED,
    OBSERVED,
    SIBLINGS,
    features,
    is_cancel,
    is_refused,
    refuse,
    snake_case,
    symbol_of_cancel,
)
from execsafe._ccxt_intent import check_no_cost, check_own_params, to_intent
from execsafe._ccxt_session import check_session, close_client, given_session, let_reconnect
from execsafe._ccxt_shape import (
    ccxt_order,
    check_reference,
    check_same,
    check_terms,
    edited_terms,
    recorded_error,
    to_mapping,
    why_unknown,
)
from execsafe._redacting import redact_chain
from execsafe._sweeper import Sweeper
from execsafe.errors import ExecsafeError, InvalidInput, NotPlaced, OutcomeUnknown, StoreError, UnsupportedByVenue
from execsafe.gateway import Accepted, GatewayPolicy, NeverPlaced, OrderGateway, Recovery, Rejected, SubmitOutcome
from execsafe.ghosts import LookPolicy
from execsafe.intents import IntentRegistry
from execsafe.model.intent import INSTANT_MAX, Amendment, IntentRecord
from execsafe.model.outcome import Meaning, Operation
from execsafe.model.values import shorten
from execsafe.model.venue import VenueProfile
from execsafe.ports import Clock, Listener, PreTradeCheck, Store
from execsafe.stores import open_store
from execsafe.venues._wire import check_verbose, sending
from execsafe.venues.ccxt_adapter import CcxtAdapter

_T = TypeVar("_T")
_READ_TIMEOUTS: Final = 3  # loading a venue's markets takes several requests, and so does looking at several orders


class GuardedExchange:
    """An exchange object whose ``create_order`` and siblings, ``edit_order`` and ``cancel_order`` are guarded.

    Everything else passes through to the wrapped object. Made by :func:`wrap`.

    ``params["intentKey"]`` is the idempotency key of a create: the same key with the same payload is never sent
    twice, in this process or after a restart. Without one, each call is its own intent.
    """

    def __init__(
        self,
        adapter: CcxtAdapter,
        exchange: Any,
        *,
        store: Store | str,
        account: str,
        policy: GatewayPolicy,
        looks: LookPolicy,
        fresh_for_s: float,
        clock: Clock | None,
        listeners: Sequence[Listener] = (),
        checks: Sequence[PreTradeCheck] = (),
    ) -> None:
        own = self.__dict__
        own["exchange"] = exchange
        own["adapter"] = adapter
        own["account"] = account
        own["store"] = open_store(store)
        own["registry"] = IntentRegistry(self.store, clock=clock, listeners=listeners)
        own["gateway"] = OrderGateway(adapter, self.registry, policy=policy, looks=looks, checks=checks)
        own["fresh_for_s"] = fresh_for_s
        own["sweeper"] = Sweeper(self.registry)
        own["is_closed"] = False
        own["given_session"] = None

    exchange: Any
    adapter: CcxtAdapter
    account: str
    store: Store
    registry: IntentRegistry
    gateway: OrderGateway
    fresh_for_s: float
    sweeper: Sweeper
    is_closed: bool
    given_session: Any

    @property
    def profile(self) -> VenueProfile:
        """What is taken to be true of the venue."""
        profile: VenueProfile = self.adapter.profile
        return profile

    async def __aenter__(self) -> GuardedExchange:
        await self.store.open()
        if self.is_closed:
            let_reconnect(self.exchange, self.given_session)
            self.__dict__["is_closed"] = False
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()
        let_reconnect(self.exchange, self.given_session)  # whoever has the exchange object may go on with it

    async def close(self) -> None:
        """Close the store and the exchange. Entering with ``async with`` opens both again."""
        own = self.__dict__
        own["is_closed"] = True
        own["given_session"] = given_session(self.exchange) or self.given_session
        with anyio.CancelScope(shield=True):
            try:
                await self.store.aclose()
            finally:
                await self._redacted(lambda: close_client(self.exchange))

    async def recover(self) -> Recovery:
        """Settle what an earlier process left behind. Call it at start, before new orders.

        An entry that is no longer fresh is not sent any more, but looked for until it is found, or proven never to
        have been placed. Records that ended longer ago than the retention are forgotten.
        """
        self._check_open()
        await self.store.open()
        recovery = await self.gateway.recover(self.account)
        await self.sweeper.sweep()
        return recovery

    # --- guarded ---------------------------------------------------------------------------------

    async def create_order(
        self,
        symbol: str,
        type: str,  # noqa: A002 - ccxt's own name
        side: str,
        amount: Any,
        price: Any = None,
        params: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """ccxt's ``create_order``, exactly once per ``params["intentKey"]``.

        Returns a ccxt order; ``clientOrderId`` is always set, quantities are what is known. ``id`` is None only for an
        order that the venue itself shows without one. ``params["freshUntilMs"]``: Unix ms after which an entry must no
        longer be sent, None for no limit; by default ``fresh_for_s`` from now.

        Raises:
            InvalidInput: malformed, against a limit (``InvalidOrder``), or closed. Nothing was sent.
            UnsupportedByVenue: it would do something else, as a spot market purchase with a price. Nothing was sent.
            IntentConflict: the key belongs to another payload. Nothing was sent.
            TradingDenied: the entry is no longer fresh, or a check refused it. Nothing was sent.
            AlreadyInFlight: the same key is being worked on; pass ``params={"join": True}`` to share its result.
            OutcomeUnknown: still in doubt after all patience. Never resend; ``recover()`` or repeat with the key.
            NotPlaced: proven not placed; attempts spent, or too late for another.
            VenueUnavailable: markets or account could not be read, or the client is closed. Nothing was sent.
            StoreError: it could not be journalled. Nothing was sent.
            ccxt's own exception: the venue definitely refused.
        """
        self._check_open()
        intent, join = to_intent(
            symbol,
            type,
            side,
            amount,
            price,
            params=params,
            account=self.account,
            fresh_until_ms=self._fresh_until_ms(),
        )
        check_no_cost(intent, price, self.adapter.details)
        outcome = await self._guarded(lambda: self.gateway.submit(intent, join=join))
        if self.sweeper.is_due():
            await self.sweeper.sweep()
        return self._answer(outcome)

    async def edit_order(
        self,
        id: str,  # noqa: A002 - ccxt's own name
        symbol: str,
        type: str | None = None,  # noqa: A002
        side: str | None = None,
        amount: Any = None,
        price: Any = None,
        params: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """ccxt's ``edit_order``. *amount* is the order's new total, fills included.

        Carried out as cancel, proof of the end, then a new order for the rest under the same intent. *params* may
        change the price at which a stop triggers (under the name with which it was placed), ``timeInForce`` and
        ``postOnly``; what else they hold must be as it was. ``freshUntilMs`` as for a create.

        Raises:
            InvalidInput: malformed, against a limit (``InvalidOrder``), not understood, or the order has ended.
            UnsupportedByVenue: the order is in no journal, or *params* cannot be edited. Nothing was sent.
            TradingDenied: a check refused what would be sent.
            OutcomeUnknown: the old order could not be seen to end, or the new one is in doubt.
        """
        self._check_open()
        check_reference(id, symbol, params)
        check_own_params(to_mapping(params))
        check_terms(type, side, amount, price)
        await self._check_listed(symbol)
        record = await self._guarded(lambda: self._mine(id, symbol, params))
        if record is None:
            raise UnsupportedByVenue(
                "that order is in no journal, and editing it could place an order past limits and checks: cancel it "
                "and create it anew, or use the wrapped exchange itself (`.exchange`)"
            )
        check_same(record, type, side)
        check_no_cost(record.intent, price, self.adapter.details, edits=True)
        intent, amendment = record.intent, self._amendment(record, params)
        outcome = await self._guarded(
            lambda: self.gateway.replace(
                intent.key,
                quantity=amount,
                limit_price=price,
                amendment=amendment,
                account=intent.account,
                leg=intent.leg,
            )
        )
        return self._answer(outcome)

    async def cancel_order(
        self,
        id: str,  # noqa: A002 - ccxt's own name
        symbol: str | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """ccxt's ``cancel_order``, confirmed by reading the order back; returns what became of it.

        A cancel stays possible when the store fails: then the venue is asked directly.
        """
        check_session(self.exchange)
        check_reference(id, symbol, params, symbol_required=False)
        await self._check_listed(symbol)
        try:
            record = await self._guarded(lambda: self._mine(id, symbol, params))
        except StoreError:
            record = None
        if record is None:
            return await self._redacted(lambda: self._cancel_unjournalled(id, symbol, dict(params or {})))
        intent = record.intent
        try:
            outcome = await self._guarded(
                lambda: self.gateway.cancel(intent.key, account=intent.account, leg=intent.leg)
            )
        except StoreError:
            return await self._redacted(lambda: self._cancel_unjournalled(id, symbol, dict(params or {})))
        return self._answer(outcome)

    # --- pass-through ----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        exchange = self.__dict__.get("exchange")
        if exchange is None or name.startswith("__"):
            raise AttributeError(name)
        snake = snake_case(name)
        if snake in GUARDED:
            return getattr(self, snake)
        value = getattr(exchange, name)
        if snake in SIBLINGS:
            return self._sibling(snake)
        if not callable(value) or inspect.isclass(value):
            return features(value) if name == "has" and isinstance(value, Mapping) else value
        if is_refused(snake):
            return functools.partial(refuse, name)
        if is_cancel(snake):
            return functools.wraps(value)(functools.partial(self._canceled_beside, snake, value))
        return self._passed_through(value, observe=OBSERVED.fullmatch(snake) is not None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "verbose":
            check_verbose(value, allowed=self.adapter.allow_verbose)
        setattr(self.exchange, name, value)

    def __dir__(self) -> list[str]:
        return sorted(set(object.__dir__(self)) | set(dir(self.exchange)))

    def __repr__(self) -> str:
        return f"<GuardedExchange {self.profile.name} account={self.account!r}>"

    def _sibling(self, name: str) -> Callable[..., Awaitable[Any]]:
        function = inspect.getattr_static(type(self.exchange), name, None)
        if not inspect.isfunction(function):
            raise UnsupportedByVenue(f"{name} cannot be guarded on this object: use create_order")
        return functools.partial(function, self)

    def _passed_through(self, function: Callable[..., Any], *, observe: bool) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            return self._awaited(result, observe=observe) if inspect.isawaitable(result) else result

        return call

    async def _awaited(self, result: Awaitable[Any], *, observe: bool) -> Any:
        self._check_quiet(result)
        value = await self._redacted(lambda: result)
        if observe:
            await self._observe(value)
        return value

    def _check_quiet(self, result: Awaitable[Any]) -> None:
        """Refuse to carry out a call while the exchange would print its keys; what was not begun is not left open."""
        try:
            check_verbose(getattr(self.exchange, "verbose", False), allowed=self.adapter.allow_verbose)
        except UnsupportedByVenue:
            if inspect.iscoroutine(result):
                result.close()
            raise

    async def _canceled_beside(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A cancel of several orders goes to the venue as it is; then the journal learns what became of its own.

        Even if it failed: the venue may have carried it out.
        """
        try:
            value = await self._redacted(lambda: function(*args, **kwargs))
        except Exception:
            await self._refresh_open(symbol_of_cancel(name, args, kwargs))
            raise
        await self._observe(value)
        await self._refresh_open(symbol_of_cancel(name, args, kwargs))
        return value

    async def _refresh_open(self, symbol: str | None) -> None:
        """Look once at own open orders. What cannot be read now is left to the next look: the cancel is done."""
        with (
            anyio.move_on_after(self.gateway.policy.request_timeout_s * _READ_TIMEOUTS),
            contextlib.suppress(ExecsafeError),
        ):
            await self.store.open()
            for record in await self.registry.open_records(self.account):
                if self.gateway.is_at_home(record) and symbol in {None, record.intent.symbol}:
                    await self.gateway.refresh(record)

    async def _observe(self, value: Any) -> None:
        """What the caller reads anyway is evidence: credit it. A failing store must not spoil a read."""
        for order in value if isinstance(value, list) else [value]:
            if isinstance(order, dict):
                try:
                    report = self.adapter.parse_report(order)
                    await self.registry.observe(report, account=self.account, venue=self.adapter.venue_name)
                except ExecsafeError:
                    return

    # --- inside ----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.is_closed:
            raise InvalidInput("this exchange is closed: enter it again with `async with` before it sends orders")
        check_session(self.exchange)

    def _fresh_until_ms(self) -> int | None:
        """Until when an entry that is asked for now may be sent."""
        if math.isinf(self.fresh_for_s):
            return None
        return self.registry.clock.now_ms() + round(self.fresh_for_s * 1000)

    def _amendment(self, record: IntentRecord, params: Mapping[str, Any] | None) -> Amendment:
        changed = edited_terms(record.terms, to_mapping(params))
        fresh_until_ms = changed.pop("fresh_until_ms") if "fresh_until_ms" in changed else self._fresh_until_ms()
        if fresh_until_ms is None and record.terms.fresh_until_ms is not None:
            fresh_until_ms = INSTANT_MAX  # an amendment's None leaves the time that is over
        return Amendment(fresh_until_ms=fresh_until_ms, **changed)

    async def _mine(self, order_id: str, symbol: str | None, params: Mapping[str, Any] | None) -> IntentRecord | None:
        client_order_id = (params or {}).get("clientOrderId")
        if client_order_id is not None:
            found = [await self.registry.find_client_order(self.account, client_order_id)]
        elif symbol is not None:
            found = [await self.registry.find_order(self.account, symbol, order_id, venue=self.adapter.venue_name)]
        else:
            found = [
                record
                for record in await self.registry.open_records(self.account)
                if any(a.venue_order_id == order_id for a in record.attempts)
            ]
        mine = [record for record in found if record is not None and self.gateway.is_at_home(record)]
        return mine[0] if len(mine) == 1 else None

    async def _check_listed(self, symbol: str | None) -> None:
        """Refuse a symbol that the venue does not list. A venue that cannot say so does not stand in the way."""
        if symbol is None:
            return
        try:
            with within(self.gateway.policy.request_timeout_s * _READ_TIMEOUTS):
                await self._redacted(lambda: self.adapter.prepare(symbol))
        except ExecsafeError:
            raise
        except Exception:  # noqa: BLE001 - whatever a client raises: the request itself will tell
            return

    async def _cancel_unjournalled(self, order_id: str, symbol: str | None, params: dict[str, Any]) -> dict[str, Any]:
        """An order that is not in the journal: ask the venue, and do not pretend to know more than it said."""
        why = "no answer in time"
        try:
            # Sent once, whatever the client was told about retries.
            with within(self.gateway.policy.request_timeout_s), sending():
                result = await self.exchange.cancel_order(order_id, symbol, params)
                return dict(result) if isinstance(result, Mapping) else {"info": result}
        except Exception as error:
            judged = self.adapter.judge(error, Operation.CANCEL)
            if judged.meaning is not Meaning.UNKNOWN:
                raise
            why = judged.facts.kind
        raise OutcomeUnknown(f"cancel_order of {shorten(order_id)}: {why}; read the order back")

    async def _guarded(self, call: Callable[[], Awaitable[_T]]) -> _T:
        await self.store.open()
        return await self._redacted(call)

    async def _redacted(self, call: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await call()
        except BaseException as error:  # cancellation too: its frames are the client's
            redact_chain(error, self.adapter.redact)
            raise

    def _answer(self, outcome: SubmitOutcome) -> dict[str, Any]:
        record = outcome.record
        facts = {
            "intent_key": record.intent.key,
            "client_order_id": record.last.client_order_id if record.last else None,
        }
        if isinstance(outcome, Accepted):
            return ccxt_order(record, outcome.report)
        if isinstance(outcome, Rejected):
            raise recorded_error(outcome, self.exchange)
        if isinstance(outcome, NeverPlaced):
            raise NotPlaced(
                f"intent {record.intent.key!r} is proven not to be at the venue after {len(record.attempts)} attempts",
                **facts,
            )
        raise OutcomeUnknown(why_unknown(record), **facts)
