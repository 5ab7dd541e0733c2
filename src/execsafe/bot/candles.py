"""Recorded candles: a small copy comes with the package, so that the demo needs no network."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from importlib import resources
from typing import Final

import attrs

import execsafe

RECORDED: Final[Mapping[str, str]] = {"ETH/BTC": "eth_btc-5m.csv", "LTC/BTC": "ltc_btc-5m.csv"}
"""Symbol to file in ``execsafe/bot/data``: public 5-minute candles of January 2018."""


def _close(candle: Candle) -> Decimal:
    return candle.close


@attrs.frozen
class Candle:
    """One candle: Unix milliseconds of its open, and prices in quote per base.

    Where only the close is known, high and low are it.
    """

    opened_at_ms: int
    close: Decimal
    high: Decimal = attrs.Factory(_close, takes_self=True)
    low: Decimal = attrs.Factory(_close, takes_self=True)


def parse(lines: Iterable[str]) -> Iterator[Candle]:
    """Candles from CSV text with the columns ``timestamp_ms`` and ``close``, and perhaps ``high`` and ``low``.

    Other columns are ignored.

    Raises:
        InvalidInput: a row that cannot be read, or candles that do not follow one another in time.
    """
    last_ms = -1
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            close = row["close"]
            high, low = (Decimal(row.get(name) or close) for name in ("high", "low"))
            candle = Candle(int(row["timestamp_ms"]), Decimal(close), high, low)
        except (KeyError, TypeError, ValueError, InvalidOperation):
            raise execsafe.InvalidInput(f"line {number} is not a candle") from None
        if candle.opened_at_ms <= last_ms or not _is_sound(candle):
            raise execsafe.InvalidInput(f"line {number}: a candle follows the one before it and has a price")
        last_ms = candle.opened_at_ms
        yield candle


def _is_sound(candle: Candle) -> bool:
    prices = candle.low, candle.close, candle.high
    return all(price.is_finite() for price in prices) and 0 < candle.low <= candle.close <= candle.high


def recorded(symbol: str) -> tuple[Candle, ...]:
    """The candles of *symbol* that come with the package.

    Raises:
        InvalidInput: there are none for it.
    """
    if symbol not in RECORDED:
        raise execsafe.InvalidInput(f"no candles of {symbol}; there are {', '.join(RECORDED)}")
    path = resources.files("execsafe.bot") / "data" / RECORDED[symbol]
    with path.open(encoding="ascii") as lines:
        return tuple(parse(lines))


def paired(first: Iterable[Candle], second: Iterable[Candle]) -> tuple[tuple[Candle, Candle], ...]:
    """Candles of the same instant; what only one side has is left out."""
    of_second = {candle.opened_at_ms: candle for candle in second}
    return tuple((candle, of_second[candle.opened_at_ms]) for candle in first if candle.opened_at_ms in of_second)
