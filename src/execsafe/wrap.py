"""``wrap()``: the same guarantees around an existing ccxt exchange object, with ccxt's own call signatures."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Sequence
from typing import Any, Final

from execsafe._ccxt_shape import to_sequence
from execsafe._guarded import GuardedExchange
from execsafe.core.ghosts import default_patience_s
from execsafe.errors import InvalidInput
from execsafe.gateway import GatewayPolicy
from execsafe.ghosts import LookPolicy
from execsafe.model.values import check_seconds, to_text
from execsafe.model.venue import VenueProfile
from execsafe.ports import Clock, Listener, PreTradeCheck, Store
from execsafe.venues.ccxt_adapter import CcxtAdapter

__all__ = ["GuardedExchange", "wrap"]

_ACCOUNT_LENGTH_MAX: Final = 64
_FRESH_FOR_S: Final = 60.0


def wrap(
    exchange: Any,
    *,
    store: Store | str,
    account: str = "default",
    profile: VenueProfile | None = None,
    request_timeout_s: float = 10.0,
    look_interval_s: float = 1.0,
    patience_s: float | None = None,
    fresh_for_s: float | None = None,
    clock: Clock | None = None,
    listeners: Sequence[Listener] = (),
    checks: Sequence[PreTradeCheck] = (),
) -> GuardedExchange:
    """Guard an exchange object of ccxt's async shape; the calls stay as they are.

    Args:
        exchange: a ``ccxt.async_support`` (or ``ccxt.pro``) exchange, or any object of that shape.
        store: a URL for :func:`~execsafe.open_store` or a store. It is opened on first use.
        account: which account this is; part of every intent's identity.
        profile: what is known of the venue; None takes the row of ``exchange.id``.
        request_timeout_s: own time-out around each call to the venue. 10 s, as ccxt.
        look_interval_s: pause between two looks at an order in doubt. 1 s.
        patience_s: how long a doubt is looked into before :class:`~execsafe.OutcomeUnknown` is raised. None:
            long enough for a proof at this venue.
        fresh_for_s: how long after the call an *entry* (whatever is not ``reduceOnly``) may still be sent, by this
            process or by a later ``recover()``; ``params["freshUntilMs"]`` says it for one call. None: 60 s, a
            minute's candle, or as long as a lost request must be waited for at this venue where that is longer, so
            that it can be sent again once it is proven lost. ``math.inf``: for ever, at whatever price there is then.
        clock: source of Unix milliseconds.
        listeners: told of every event.
        checks: asked before every entry goes out, in this order, also before an edit or a resend; exits pass
            without. One that refuses raises :class:`~execsafe.TradingDenied`.

    Raises:
        InvalidInput: a synchronous exchange, or an unusable setting.
        UnsupportedByVenue: the exchange is configured in a way that defeats the guarantees.
    """
    to_text(account, "account", _ACCOUNT_LENGTH_MAX)
    check_seconds(look_interval_s, "look_interval_s")
    if fresh_for_s is not None and fresh_for_s != math.inf:
        check_seconds(fresh_for_s, "fresh_for_s")
    if not all(callable(listener) for listener in to_sequence(listeners, "listeners")):
        raise InvalidInput("listeners must be functions of one event")
    if not all(callable(getattr(check, "check", None)) for check in to_sequence(checks, "checks")):
        raise InvalidInput("checks must be objects with a method check(intent, instrument)")
    adapter = CcxtAdapter(exchange, profile=profile, clock=clock)
    policy = GatewayPolicy(request_timeout_s=request_timeout_s, patience_s=patience_s)
    if fresh_for_s is None:
        fresh_for_s = max(_FRESH_FOR_S, default_patience_s(adapter.profile, request_timeout_s))
    return GuardedExchange(
        adapter,
        exchange,
        store=store,
        account=account,
        policy=policy,
        looks=LookPolicy(
            interval_s=look_interval_s,
            spacing_s=min(0.1, look_interval_s / 10),
            timeout_s=request_timeout_s,
        ),
        fresh_for_s=fresh_for_s,
        clock=clock,
        listeners=tuple(listeners),
        checks=tuple(checks),
    )


class _CallableModule(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> GuardedExchange:
        return wrap(*args, **kwargs)


# The package has a function and a module of one name: whichever import comes first, `execsafe.wrap(...)` works.
sys.modules[__name__].__class__ = _CallableModule
