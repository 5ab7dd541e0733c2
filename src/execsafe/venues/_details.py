"""What the adapter must know of a venue beyond its profile: ccxt's traps, seen on the wire of ccxt 4.5.90."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from execsafe.model.values import EMPTY_PARAMS, Params
from execsafe.model.venue import IdEncoding, IdRule, LookUp, View
from execsafe.venues.profiles import ID_PLACE

_TRIGGER: Final = Params.of({"trigger": True})
_ALL_STOPS: Final = frozenset({"triggerPrice", "stopLossPrice", "takeProfitPrice"})


def _stop_kind(names: frozenset[str] = _ALL_STOPS, *, stop_as: str = "triggerPrice") -> Stops:
    return Stops(params=names, stop_as=stop_as)


# "cross" or "isolated": orders stay in the spot account and are looked up in the margin account, or the reverse.
_MARGIN: Final = MappingProxyType({"defaultMarginMode": "", "marginMode": ""})


@attrs.frozen(kw_only=True)
class Stops:
    """Which stop parameters a venue's client understands; others would leave a plain order on the wire.

    ``stop_as``: the name under which a stop order's trigger price goes out (sell: at or below, buy: at or above).
    """

    params: frozenset[str] = frozenset()
    stop_as: str = "triggerPrice"


@attrs.frozen(kw_only=True)
class Details:
    """Traps of one venue.

    Attributes:
        spot_stops, contract_stops: stop parameters understood there.
        trailing: whether trailing parameters keep our client order id.
        trigger_params: alternatives to add to a look-up for a stop order; absent only if all of them say so.
        trigger_cancel: what to add when a stop order is canceled by our id.
        trigger_ids: further fields that take our id when a stop order is created.
        becomes: raw field in which a conditional order names the order that it became when it was set off. Such a
            venue states no filled quantity of the conditional order itself.
        contract_id: rule for derivatives, where it differs from the profile's.
        contract_lookups, contract_cancel: how derivatives are read and canceled where ccxt's unified calls are
            broken (method names of ccxt's implicit interface).
        id_prefix: what the venue's answers and cancels put before our id.
        price_for_market: market orders need a price, which bounds the slippage.
        buys_by_cost: a spot market buy would take its quantity as an amount of quote currency.
        spot_options_apart: options of the client by which spot orders and their look-ups go to different accounts,
            with the value that does so (``""``: any).
        spot_params: always sent with spot market orders, so that the quantity stays in base currency.
        rows_at: where a scan's raw answer holds its rows, by ccxt method (``""``: the answer is the list). Without
            it there, the answer was none.
        fees_at: raw field with an order's fees by currency, where ccxt keeps the first of them only.
        page: how many orders a scan asks for at once; a full page is not proof of absence.
        contract_sides_wrong: ccxt reads the side of derivative orders wrongly (a close short as a sell).
        has_no_expiry_on_contracts, has_no_expiry_on_stops: where the profile's expiry is not enforced.
    """

    spot_stops: Stops = Stops()
    contract_stops: Stops = Stops()
    trailing: bool = False
    trigger_params: tuple[Params, ...] = (EMPTY_PARAMS,)
    trigger_cancel: Params = EMPTY_PARAMS
    trigger_ids: tuple[str, ...] = ()
    becomes: str = ""
    contract_id: IdRule | None = None
    contract_lookups: tuple[LookUp, ...] = ()
    contract_cancel: tuple[str, Params] | None = None
    id_prefix: str = ""
    price_for_market: bool = False
    buys_by_cost: bool = False
    spot_options_apart: Mapping[str, str] = MappingProxyType({})
    spot_params: Params = EMPTY_PARAMS
    rows_at: Mapping[str, str] = MappingProxyType({})
    fees_at: str = ""
    page: int = 100
    contract_sides_wrong: bool = False
    has_no_expiry_on_contracts: bool = False
    has_no_expiry_on_stops: bool = False


_BINANCE: Final = Details(
    spot_stops=_stop_kind(),
    contract_stops=_stop_kind(),
    trailing=True,
    trigger_params=(_TRIGGER,),  # contracts keep stops in a namespace of their own; on spot it is ignored
    trigger_cancel=_TRIGGER,
    becomes="actualOrderId",
    spot_options_apart={**_MARGIN, "defaultSubType": "", "subType": ""},  # look-ups read contracts then
)

DETAILS: Final[Mapping[str, Details]] = MappingProxyType(
    {
        "binance": _BINANCE,
        "binanceusdm": _BINANCE,
        "bybit": Details(
            spot_stops=_stop_kind(),
            contract_stops=_stop_kind(),
            trigger_params=(
                EMPTY_PARAMS,
                Params.of({"orderFilter": "StopOrder"}),
                Params.of({"orderFilter": "tpslOrder"}),
            ),
            # A unified account reads a spot market quantity as quote currency unless told so.
            spot_params=Params.of({"marketUnit": "baseCoin"}),
            rows_at={
                "fetch_open_orders": "result.list",
                "fetch_canceled_and_closed_orders": "result.list",
                "fetch_order_trades": "result.list",
            },
            fees_at="cumFeeDetail",
            page=50,
        ),
        "okx": Details(
            spot_stops=_stop_kind(),
            contract_stops=_stop_kind(),
            trigger_params=(_TRIGGER,),
            trigger_cancel=_TRIGGER,
            trigger_ids=("algoClOrdId",),  # the id that look-ups of stop orders use
            becomes="ordId",
            spot_params=Params.of({"tgtCcy": "base_ccy"}),
            has_no_expiry_on_stops=True,
        ),
        "mexc": Details(
            contract_lookups=(
                LookUp(
                    view=View.CLIENT_ID,
                    method="contractPrivateGetOrderExternalSymbolExternalOid",
                    params=Params.of({"symbol": "{market_id}", "external_oid": ID_PLACE}),
                ),
            ),
            contract_cancel=(
                "contractPrivatePostOrderCancelWithExternal",
                Params.of({"symbol": "{market_id}", "externalOid": ID_PLACE}),
            ),
            spot_options_apart={**_MARGIN, "defaultType": "margin"},
            contract_sides_wrong=True,
            has_no_expiry_on_contracts=True,
        ),
        "kraken": Details(
            # "triggerPrice" would go out as a stray parameter of a plain order.
            spot_stops=_stop_kind(_ALL_STOPS - {"triggerPrice"}, stop_as="stopLossPrice"),
            rows_at={"fetch_open_orders": "result.open", "fetch_closed_orders": "result.closed"},
            page=50,
        ),
        "kucoin": Details(
            spot_stops=_stop_kind(stop_as="stopLossPrice"), trigger_params=(_TRIGGER,), trigger_cancel=_TRIGGER
        ),
        "gate": Details(
            id_prefix="t-",
            buys_by_cost=True,
            rows_at={"fetch_closed_orders": "", "fetch_my_trades": ""},
            has_no_expiry_on_stops=True,
        ),
        "bitget": Details(buys_by_cost=True, spot_options_apart=_MARGIN),
        "coinbase": Details(
            # A plain "triggerPrice" of a sell would trigger upwards.
            spot_stops=_stop_kind(_ALL_STOPS - {"triggerPrice"}, stop_as="stopLossPrice"),
            buys_by_cost=True,
            rows_at={"fetch_open_orders": "orders", "fetch_orders": "orders"},
        ),
        "htx": Details(
            contract_id=IdRule(encoding=IdEncoding.INT63, length_max=19, param="client_order_id"),
            buys_by_cost=True,
        ),
        "hyperliquid": Details(
            spot_stops=_stop_kind(),
            contract_stops=_stop_kind(),
            price_for_market=True,
        ),
        "deribit": Details(
            # "triggerPrice" would go out as a stray parameter of a plain order.
            spot_stops=_stop_kind(_ALL_STOPS - {"triggerPrice"}, stop_as="stopLossPrice"),
            contract_stops=_stop_kind(_ALL_STOPS - {"triggerPrice"}, stop_as="stopLossPrice"),
            rows_at={"fetch_open_orders": "result", "fetch_closed_orders": "result"},
            page=1000,
        ),
    }
)
