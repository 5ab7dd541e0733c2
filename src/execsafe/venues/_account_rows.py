"""How each venue's positions, balances, orders and fills are read through ccxt 4.5.90. Data only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from execsafe.model.values import Params
from execsafe.venues._asking import Ask

_DAY_MS: Final = 86_400_000
_ANY: Final = Ask()


@attrs.frozen(kw_only=True)
class Trades:
    """How an account's fills are listed: ``page`` rows at most, of at most ``window_ms`` at once.

    ``until``: parameter of a period's end. ``grain_ms``: the finest period the venue tells apart.
    """

    how: Ask
    window_ms: int = 7 * _DAY_MS
    until: str = "until"
    grain_ms: int = 1


@attrs.frozen(kw_only=True)
class Account:
    """One venue's row.

    Attributes:
        positions: how they are listed; None where ``no_positions`` says why not.
        settled: a parameter that must be given per settlement currency, with its value (``{settle}``, ``{lower}``).
        size_at: raw field of a position's size, read exactly, and compared with what ccxt made of it.
        side_at: raw field without which ccxt would make up a position's side.
        balances: how they are listed.
        spot_orders, contract_orders: the namespaces in which open orders live.
        spot_trades, contract_trades: how fills are listed.
        trade_id_at: where a fill states our client order id.
        no_leverage, no_margin_mode: why they are not set through this client.
        echo_at: where the answer to a leverage change repeats the leverage.
        already: codes with which a setting is answered although ccxt raises nothing.
        attached_stop: method that attaches a stop to a whole position.
    """

    positions: Ask | None = _ANY
    no_positions: str = ""
    settled: tuple[str, str] | None = None
    size_at: str = ""
    side_at: str = ""
    balances: Ask = _ANY
    spot_orders: tuple[Ask, ...] = (_ANY,)
    contract_orders: tuple[Ask, ...] = (_ANY,)
    spot_trades: Trades | None = None
    contract_trades: Trades | None = None
    trade_id_at: str = ""
    no_leverage: str = ""
    no_margin_mode: str = ""
    echo_at: str = ""
    already: frozenset[str] = frozenset()
    attached_stop: str = ""


def _ask(*rows_at: str, page: int | None = None, sends_limit: bool = True, **params: Any) -> Ask:
    return Ask(rows_at=rows_at, page=page, sends_limit=sends_limit, params=Params.of(params))


def _null_or(how: Ask) -> Ask:
    return attrs.evolve(how, null_is_empty=True)


def _paged(how: Ask) -> Ask:
    return attrs.evolve(how, cursor_at="result.nextPageCursor")


def _each(how: Ask, *params: Mapping[str, Any]) -> tuple[Ask, ...]:
    """As it is, and once with each of *params*."""
    return how, *(attrs.evolve(how, params=Params.of(more)) for more in params)


_LEVERAGE_TOGETHER: Final = "the venue takes margin mode and leverage in one call, or with each order"
_PLAIN: Final = _ask("")
_OKX_ORDERS: Final = _each(
    _ask("data", page=100), {"trigger": True}, {"ordType": "conditional"}, {"ordType": "oco"}, {"trailing": True}
)

_BINANCE: Final = Account(
    positions=_PLAIN,
    size_at="positionAmt",
    side_at="notional",  # ccxt reads the side from its sign
    balances=_ask("balances", "assets"),
    spot_orders=(_PLAIN,),
    contract_orders=(_PLAIN, _ask("", trigger=True)),
    spot_trades=Trades(how=_ask("", page=1_000), window_ms=_DAY_MS),
    contract_trades=Trades(how=_ask("", page=1_000)),
    echo_at="leverage",
    already=frozenset({"-4046"}),
)

ACCOUNTS: Final[Mapping[str, Account]] = MappingProxyType(
    {
        "binance": _BINANCE,
        "binanceusdm": _BINANCE,
        "bybit": Account(
            positions=_paged(_ask("result.list", page=200, sends_limit=False)),
            settled=("settleCoin", "{settle}"),
            size_at="size",
            side_at="side",
            balances=_ask("result.list.0.coin"),
            spot_orders=_each(
                _paged(_ask("result.list", page=50)), {"orderFilter": "StopOrder"}, {"orderFilter": "tpslOrder"}
            ),
            contract_orders=_each(_paged(_ask("result.list", page=50)), {"orderFilter": "StopOrder"}),
            spot_trades=Trades(how=_paged(_ask("result.list", page=100))),
            contract_trades=Trades(how=_paged(_ask("result.list", page=100))),
            trade_id_at="info.orderLinkId",
            already=frozenset({"30084"}),
            attached_stop="privatePostV5PositionTradingStop",
        ),
        "okx": Account(
            positions=_ask("data", page=100, sends_limit=False),
            size_at="pos",
            balances=_ask("data.0.details"),
            spot_orders=_OKX_ORDERS,
            contract_orders=_OKX_ORDERS,
            spot_trades=Trades(how=_ask("data", page=100, sends_limit=False)),
            contract_trades=Trades(how=_ask("data", page=100, sends_limit=False)),
            trade_id_at="info.clOrdId",
            no_margin_mode="the venue takes the margin mode with each order: params={'marginMode': ...}",
        ),
        "mexc": Account(
            positions=_ask("data"),
            size_at="holdVol",
            side_at="positionType",  # ccxt calls whatever is not 1 a short
            balances=_ask("balances", "data"),
            spot_orders=(_PLAIN,),
            contract_orders=(
                _ask("data", page=100, sends_limit=False),
                _ask("data", page=100, sends_limit=False, trigger=True),
            ),
            spot_trades=Trades(how=_ask("", page=100), window_ms=_DAY_MS),
            contract_trades=Trades(how=_ask("data", page=100), until="end_time"),
            trade_id_at="info.clientOrderId",
            no_leverage="the venue takes the leverage with each order, or for a position by its id",
            no_margin_mode=_LEVERAGE_TOGETHER,
        ),
        "kraken": Account(
            positions=None,
            no_positions="this client trades spot, and margin positions are not kept per symbol there",
            balances=_ask("result{}"),
            spot_orders=(_ask("result.open{}"),),
            spot_trades=Trades(
                how=_ask("result.trades{}", page=50, sends_limit=False), window_ms=30 * _DAY_MS, grain_ms=1_000
            ),
        ),
        "kucoin": Account(
            positions=_ask("data", "data.items"),
            size_at="currentQty",
            balances=_ask("data", "data.accounts"),
            spot_orders=(_ask("data.items", "data", page=50), _ask("data.items", page=50, trigger=True)),
            contract_orders=(
                _ask("data.items", page=50, sends_limit=False),
                _ask("data.items", page=50, sends_limit=False, trigger=True),
            ),
            spot_trades=Trades(how=_ask("data.items", page=50)),
            contract_trades=Trades(how=_ask("data.items", page=50)),
        ),
        "gate": Account(
            positions=_PLAIN,
            settled=("settle", "{lower}"),
            size_at="size",
            balances=_ask("", "balances{}"),
            spot_orders=(_PLAIN, _ask("", page=100, trigger=True)),
            contract_orders=(_ask("", page=100), _ask("", page=100, trigger=True)),
            spot_trades=Trades(how=_ask("", page=1_000), grain_ms=1_000),
            contract_trades=Trades(how=_ask("", page=100), grain_ms=1_000),
            trade_id_at="info.text",
        ),
        "bitget": Account(
            positions=_null_or(_ask("data", "data.list")),
            settled=("productType", "{settle}-FUTURES"),
            size_at="total",
            balances=_ask("data.assets", "data"),
            spot_orders=(
                _null_or(_ask("data.list", "data", page=100)),
                _null_or(_ask("data.orderList", "data", page=100, trigger=True)),
            ),
            contract_orders=_each(
                _null_or(_ask("data.entrustedList", "data.list", page=100)),
                {"trigger": True},
                {"planType": "profit_loss"},
                {"trailing": True},
            ),
            spot_trades=Trades(how=_null_or(_ask("data.list", "data", page=100))),
            contract_trades=Trades(how=_null_or(_ask("data.fillList", "data.list", page=100))),
        ),
        "coinbase": Account(
            positions=None,
            no_positions="its client needs a portfolio's id to list them",
            balances=_ask("accounts", "data", "balance_summary{}"),
            spot_orders=(_ask("orders", page=100),),
            spot_trades=Trades(how=_ask("fills", page=100), window_ms=30 * _DAY_MS),
        ),
        "htx": Account(
            positions=_ask("data"),
            size_at="volume",
            side_at="direction",
            balances=_ask("data.list", "data.details"),
            spot_orders=(_ask("data", page=500),),
            contract_orders=_each(
                _ask("data", "data.orders", page=100),
                {"trigger": True},
                {"stopLossTakeProfit": True},
                {"trailing": True},
            ),
            spot_trades=Trades(how=_ask("data", page=500), window_ms=2 * _DAY_MS),
            contract_trades=Trades(how=_ask("data", "data.trades", page=100), window_ms=2 * _DAY_MS),
        ),
        "hyperliquid": Account(
            positions=_ask("assetPositions"),
            size_at="position.szi",
            balances=_ask("balances", "marginSummary{}"),
            spot_orders=(_PLAIN,),
            contract_orders=(_PLAIN,),
            spot_trades=Trades(how=_ask("", page=2_000)),
            contract_trades=Trades(how=_ask("", page=2_000)),
            trade_id_at="info.cloid",
            no_margin_mode=_LEVERAGE_TOGETHER,
        ),
        "deribit": Account(
            positions=_ask("result"),
            size_at="size",
            side_at="direction",  # ccxt calls whatever is not "buy" a short
            balances=_ask("result.summaries"),
            spot_orders=(_ask("result"),),
            contract_orders=(_ask("result"),),
            spot_trades=Trades(how=_ask("result.trades", page=1_000), window_ms=30 * _DAY_MS, until="end_timestamp"),
            contract_trades=Trades(
                how=_ask("result.trades", page=1_000), window_ms=30 * _DAY_MS, until="end_timestamp"
            ),
            trade_id_at="info.label",
            no_leverage="the venue has no leverage per instrument: margin belongs to the account",
            no_margin_mode="the venue's margin mode belongs to the account",
        ),
    }
)
"""The rows, by ccxt's exchange id. An exchange without one is read with less: fills, whose completeness needs the
page and the period of the venue, are not."""

_COLUMNS: Final[tuple[tuple[str, Callable[[Account], object]], ...]] = (
    ("positions", lambda row: "yes" if row.positions is not None else f"no: {row.no_positions}"),
    ("open orders: requests (spot / contracts)", lambda row: f"{len(row.spot_orders)} / {len(row.contract_orders)}"),
    ("fills: page and days per request (spot)", lambda row: _pace(row.spot_trades)),
    ("(contracts)", lambda row: _pace(row.contract_trades)),
    ("stop of a position", lambda row: "attached (contracts)" if row.attached_stop else "an order"),
)


def _pace(trades: Trades | None) -> str:
    return f"{trades.how.page}, {trades.window_ms // _DAY_MS}" if trades is not None else "-"


def account_table(rows: Mapping[str, Account] = ACCOUNTS) -> str:
    """The rows as a Markdown table, for the documentation."""
    lines = [["venue", *(title for title, _ in _COLUMNS)], ["---"] * (len(_COLUMNS) + 1)]
    lines += [[name, *(str(read(row)) for _, read in _COLUMNS)] for name, row in rows.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
