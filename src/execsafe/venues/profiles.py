"""One row per exchange: what can be proven there. Facts that nobody has verified take the weaker value.

``expiry_param`` says how a request's deadline travels:

- ``"timestamp+recvWindow"``: two parameters whose sum is the deadline in Unix ms (absolute);
- ``"deadline:rfc3339"``: a parameter of that name, as RFC 3339 text in UTC (absolute);
- ``"header:NAME"``: an HTTP header in Unix ms, added after signing (absolute);
- ``"options.NAME"``: ccxt's option, set to the window in ms before each order (relative);
- any other name: a parameter of that name in Unix ms (absolute).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from execsafe.model.values import Params
from execsafe.model.venue import Dedup, Expiry, IdEncoding, IdRule, LookUp, VenueProfile, View

_DAY_S: Final = 86_400.0

ID_PLACE: Final = "{client_order_id}"
"""Stands in ``LookUp.params`` and ``VenueProfile.cancel_params`` for the client order id."""


def _by_id(name: str = "clientOrderId", **more: Any) -> Params:
    return Params.of({name: ID_PLACE, **more})


_FETCH_ORDER: Final = LookUp(view=View.CLIENT_ID, method="fetch_order", params=_by_id())
_SCAN_OPEN: Final = LookUp(view=View.OPEN_ORDERS, method="fetch_open_orders", scan=True)
_SCAN_CLOSED: Final = LookUp(view=View.CLOSED_ORDERS, method="fetch_closed_orders", scan=True)

UNKNOWN: Final = VenueProfile(
    lookups=(_SCAN_OPEN, _SCAN_CLOSED),
    notes="Nothing is known: no expiry, hence no proof of absence; a doubt ends in UNRESOLVED.",
)
"""The weakest row, for exchanges that have none of their own."""

_BINANCE: Final = VenueProfile(
    name="binance",
    client_order_id=IdRule(length_max=36),
    dedup=Dedup.OPEN,
    expiry=Expiry.ABSOLUTE,
    expiry_param="timestamp+recvWindow",
    history_s=3 * _DAY_S,
    lookups=(_FETCH_ORDER,),
    cancel_params=_by_id(),
    definite_ack=True,
    notes="An id is free again once its order has ended: a resend after a fill would fill twice. The window is "
    "checked on receipt and before the matching engine, which may still answer 10 s later (inside the read lag).",
)

_ROWS: Final = (
    _BINANCE,
    attrs.evolve(_BINANCE, name="binanceusdm"),
    VenueProfile(
        name="bybit",
        client_order_id=IdRule(length_max=36),
        dedup=Dedup.FOREVER,
        expiry=Expiry.RELATIVE,
        expiry_param="options.recvWindow",
        history_s=_DAY_S,
        lookups=(
            LookUp(
                view=View.OPEN_ORDERS,
                method="fetch_open_orders",
                params=_by_id("orderLinkId", openOnly=0),
                scan=True,
            ),
            LookUp(
                view=View.CLOSED_ORDERS,
                method="fetch_canceled_and_closed_orders",
                params=_by_id("orderLinkId"),
                scan=True,
            ),
            LookUp(
                view=View.TRADES,
                method="fetch_order_trades",
                params=_by_id(),
                scan=True,
                id_field="info.orderLinkId",
            ),
        ),
        cancel_params=_by_id("orderLinkId"),
        attached_stops=True,
        notes="Only the raw orderLinkId is understood by look-ups; acknowledgements are asynchronous.",
    ),
    VenueProfile(
        name="okx",
        client_order_id=IdRule(length_max=32),
        expiry=Expiry.ABSOLUTE,
        expiry_param="header:expTime",
        history_s=7_200.0,
        lookups=(_FETCH_ORDER,),
        cancel_params=_by_id(),
        attached_stops=True,
        notes="Uniqueness unverified. Stop orders live in the algo namespace, where the deadline is not honoured.",
    ),
    VenueProfile(
        name="mexc",
        client_order_id=IdRule(length_max=32),
        expiry=Expiry.RELATIVE,
        expiry_param="options.recvWindow",
        history_s=7 * _DAY_S,
        lookups=(_FETCH_ORDER,),
        cancel_params=_by_id(),
        stop_orders=False,
        notes="Swap requests carry no window: there nothing can be proven absent. Stop parameters would go out as a "
        "plain order.",
    ),
    VenueProfile(
        name="kraken",
        dedup=Dedup.OPEN,
        expiry=Expiry.ABSOLUTE,
        expiry_param="deadline:rfc3339",
        lookups=(
            LookUp(view=View.OPEN_ORDERS, method="fetch_open_orders", params=_by_id(), scan=True),
            LookUp(view=View.CLOSED_ORDERS, method="fetch_closed_orders", params=_by_id(), scan=True),
        ),
        cancel_params=_by_id(),
        notes="The deadline must be 2 to 60 s ahead. fetch_order by client id is broken in ccxt.",
    ),
    VenueProfile(
        name="kucoin",
        client_order_id=IdRule(length_max=40),
        lookups=(_FETCH_ORDER,),
        cancel_params=_by_id(),
        notes="Duplicates are refused, how long is unverified. No expiry: absence cannot be proven.",
    ),
    VenueProfile(
        name="gate",
        client_order_id=IdRule(length_max=28),
        expiry=Expiry.ABSOLUTE,
        expiry_param="header:x-gate-exptime",
        history_s=30 * _DAY_S,
        lookups=(
            _FETCH_ORDER,
            attrs.evolve(_SCAN_CLOSED, id_field="info.text"),
            LookUp(view=View.TRADES, method="fetch_my_trades", scan=True, id_field="info.text"),
        ),
        definite_ack=True,
        stop_orders=False,
        notes="Ids are not unique. The look-up by id says 'not found' right after a full fill, hence the scans. Stop "
        "orders cannot be found again by our id.",
    ),
    VenueProfile(
        name="bitget",
        client_order_id=IdRule(length_max=32),
        history_s=7 * _DAY_S,
        lookups=(_FETCH_ORDER,),
        cancel_params=_by_id(),
        stop_orders=False,
        notes="Uniqueness unverified; no expiry. Plan orders cannot be found again by our id.",
    ),
    VenueProfile(
        name="coinbase",
        client_order_id=IdRule(length_max=128, param="client_order_id"),
        dedup=Dedup.FOREVER,
        lookups=(_SCAN_OPEN, LookUp(view=View.CLOSED_ORDERS, method="fetch_orders", scan=True)),
        notes="A repeated id returns the first order and places none. ccxt replaces the unified id by its own, so the "
        "raw name is used; no look-up by id.",
    ),
    VenueProfile(
        name="htx",
        client_order_id=IdRule(length_max=64),
        history_s=7_200.0,
        lookups=(_FETCH_ORDER,),
        cancel_params=_by_id(),
        stop_orders=False,
        notes="Ids are not unique, and ended orders are found by id for 2 h only. Swap ids are integers.",
    ),
    VenueProfile(
        name="hyperliquid",
        client_order_id=IdRule(encoding=IdEncoding.HEX128, length_max=34),
        lookups=(_FETCH_ORDER,),
        cancel_params=_by_id(),
        notes="No expiry on orders through ccxt. Market orders need a price (slippage bound).",
    ),
    VenueProfile(
        name="deribit",
        client_order_id=IdRule(length_max=64, param="label"),
        expiry=Expiry.ABSOLUTE,
        expiry_param="valid_until",
        history_s=_DAY_S,
        lookups=(
            attrs.evolve(_SCAN_OPEN, id_field="info.label"),
            attrs.evolve(_SCAN_CLOSED, params=Params.of({"include_unfilled": True}), id_field="info.label"),
        ),
        definite_ack=True,
        notes="Labels are not unique. Orders are placed with GET: silent re-sends of the HTTP client are turned off.",
    ),
)

PROFILES: Final[Mapping[str, VenueProfile]] = MappingProxyType({row.name: row for row in _ROWS})
"""The verified rows, by ccxt's exchange id."""

RELATIVES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "binanceus": "binance",
        "bybiteu": "bybit",
        "bybitid": "bybit",
        "gateeu": "gate",
        "myokx": "okx",
        "okxus": "okx",
    }
)
"""Exchanges whose client in ccxt is another's at another address: the same requests, fields and codes."""


def family_of(exchange_id: str) -> str:
    """The exchange whose requests, fields and codes this one's client uses; itself if it is nobody's relative."""
    return RELATIVES.get(exchange_id, exchange_id)


def _relative(name: str, client: str) -> VenueProfile:
    # How the client asks is known; what this venue enforces is not.
    return attrs.evolve(
        PROFILES[client],
        name=name,
        dedup=Dedup.NONE,
        expiry=Expiry.NONE,
        expiry_param=None,
        definite_ack=False,
        notes=f"Asked as {client} is. Uniqueness and expiry are unverified: absence cannot be proven.",
    )


_SCANS: Final = (
    ("fetchOpenOrders", "fetch_open_orders", View.OPEN_ORDERS),
    ("fetchClosedOrders", "fetch_closed_orders", View.CLOSED_ORDERS),
    ("fetchCanceledOrders", "fetch_canceled_orders", View.CLOSED_ORDERS),
    ("fetchCanceledAndClosedOrders", "fetch_canceled_and_closed_orders", View.CLOSED_ORDERS),
    ("fetchOrders", "fetch_orders", View.CLOSED_ORDERS),
)


def profile_for(exchange_or_id: object) -> VenueProfile:
    """The row for a ccxt exchange object or id; the weakest one, with the views it has, for an unknown.

    A relative with the same client (``gateeu``, ``okxus`` …) is asked in the same way, and promised nothing more
    than an unknown. Those whose parameters differ (``binancecoinm``, ``krakenfutures`` …) are unknown.
    """
    name = exchange_or_id if isinstance(exchange_or_id, str) else getattr(exchange_or_id, "id", None)
    known = PROFILES.get(name) if isinstance(name, str) else None
    if isinstance(name, str) and name in RELATIVES:
        known = _relative(name, RELATIVES[name])
    if known is not None or isinstance(exchange_or_id, str):
        return known or UNKNOWN
    has = getattr(exchange_or_id, "has", None)
    told = has if isinstance(has, Mapping) else {}
    lookups = [
        LookUp(view=view, method=method, scan=True)
        for unified, method, view in _SCANS
        if (told[unified] is True if unified in told else callable(getattr(exchange_or_id, method, None)))
    ]
    return attrs.evolve(UNKNOWN, lookups=tuple(lookups))


_COLUMNS: Final[tuple[tuple[str, Callable[[VenueProfile], object]], ...]] = (
    ("venue", lambda p: p.name),
    ("id: longest / field", lambda p: f"{p.client_order_id.length_max} / {p.client_order_id.param}"),
    ("unique among", lambda p: p.dedup.value),
    ("request expiry", lambda p: f"{p.expiry.value}: {p.expiry_param}" if p.expiry_param else p.expiry.value),
    ("views looked at", lambda p: ", ".join(view.value for view in p.views)),
    ("remembered for", lambda p: "-" if p.history_s is None else f"{p.history_s / 3600:g} h"),
    ("create states fills", lambda p: "yes" if p.definite_ack else "no"),
    ("stop orders", lambda p: "yes" if p.stop_orders else "refused"),
    ("attached stops", lambda p: "yes" if p.attached_stops else "refused"),
)


def profile_table(profiles: Iterable[VenueProfile] = (*PROFILES.values(), UNKNOWN)) -> str:
    """The rows as a Markdown table, for the documentation."""
    lines = [[title for title, _ in _COLUMNS], ["---"] * len(_COLUMNS)]
    lines += [[str(read(profile)) for _, read in _COLUMNS] for profile in profiles]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def profile_notes(profiles: Iterable[VenueProfile] = (*PROFILES.values(), UNKNOWN)) -> str:
    """What else is worth knowing of each venue, as a Markdown list, for the documentation."""
    return "".join(f"- **{profile.name}**: {profile.notes}\n" for profile in profiles)
