"""Requests that ccxt would make inside create_order, made beforehand: afterwards an error belongs to the order."""

from __future__ import annotations

from typing import Any

from execsafe.venues._shapes import options_of


def adjust(exchange: Any, exchange_id: str) -> None:
    """Switch off what would send further requests together with every order."""
    if exchange_id == "hyperliquid" and hasattr(exchange, "initialize_client"):
        # It signs a builder-fee approval and a referral, before every order as long as either fails. Neither is
        # needed to trade, and neither is the caller's wish; without approval no builder fee is attached.
        async def nothing_to_initialize() -> bool:
            return True

        exchange.initialize_client = nothing_to_initialize


async def warm_up(exchange: Any, exchange_id: str) -> None:
    """Ask for the account's mode where ccxt's create_order would. Raises what ccxt raises.

    Some of these calls swallow their errors in ccxt and then take a unified account for a classic one, whose
    orders and look-ups go elsewhere: here they are asked directly, so that a failure shows.
    """
    options = options_of(exchange)
    if exchange_id == "bybit" and hasattr(exchange, "is_unified_enabled"):
        await exchange.is_unified_enabled()
    elif exchange_id == "kucoin" and hasattr(exchange, "is_uta_enabled"):
        await exchange.is_uta_enabled()
    elif exchange_id == "gate" and options.get("unifiedAccount") is None:
        await _warm_gate(exchange, options)
    elif exchange_id == "bitget" and options.get("uta") is None:
        await _warm_bitget(exchange, options)
    elif exchange_id == "htx" and hasattr(exchange, "load_accounts"):
        await exchange.load_accounts()


async def _warm_gate(exchange: Any, options: dict[str, Any]) -> None:
    ask = getattr(exchange, "privateAccountGetDetail", None)
    if ask is None:
        return
    answer = await ask()
    key = answer.get("key") if isinstance(answer, dict) else None
    options["unifiedAccount"] = str((key or {}).get("mode")) == "2"


async def _warm_bitget(exchange: Any, options: dict[str, Any]) -> None:
    ask = getattr(exchange, "privateUtaGetV3AccountSettings", None)
    if ask is None:
        return
    try:
        await ask()
    except Exception as error:
        # The venue refuses this call to classic accounts; a network failure says nothing about the account.
        if any(cls.__name__ == "OperationFailed" for cls in type(error).__mro__):
            raise
        if not any(cls.__name__ == "ExchangeError" for cls in type(error).__mro__):
            raise
        options["uta"] = False
    else:
        options["uta"] = True
