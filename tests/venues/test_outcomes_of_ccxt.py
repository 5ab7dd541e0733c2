"""What ccxt's own tables of errors say between the lines: no duplicate and no doubt may count as a reject."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import ccxt.async_support as ccxt

from execsafe.core.outcomes import classify
from execsafe.model.outcome import Meaning, Operation
from execsafe.venues.outcomes import OUTCOMES
from execsafe.venues.profiles import PROFILES
from venues.test_outcomes import body_of

ROW = re.compile(r"^\s*'([^'\n]+)': [A-Z]\w+,[ \t]*#(.*)$", re.MULTILINE)
SUSPICIOUS = re.compile(
    r"duplic|repeat|time[ _-]?out|timed out|processing|in progress|submitted to|busy|unknown|try again|try later"
    r"|already exist|abnormal|internal|system error|server error|service error",
    re.IGNORECASE,
)
"""Words by which a row may stand for an order that exists, or for one that nobody knows about."""

_OTHER_WORK = "not an order's: transfers, loans, addresses, gift codes, settings"
_PARAMETER = "a parameter is refused before anything is done"
_LIMIT = "a limit or a balance is named that keeps the order out"
_BINANCE = {
    **dict.fromkeys(
        ["-4035", "-10045", "-10046", "-18002", "-18003", "-18004", "-18005", "-4115", "-4111", "-4171", "-4531"],
        _OTHER_WORK,
    ),
    "-1103": _PARAMETER,
    "-4400": "the account may only reduce",
}
DEFINITE: dict[str, dict[str, str]] = {
    "binance": _BINANCE,
    "binanceusdm": _BINANCE,
    "bybit": {
        **dict.fromkeys(["176014", "176021"], _OTHER_WORK),
        **dict.fromkeys(["-1197", "170197", "170198", "170199", "170200"], "the price band keeps the order out"),
        **dict.fromkeys(["175001", "175003", "175004", "175006"], _LIMIT),
        "-1103": _PARAMETER,
    },
    "okx": {
        **dict.fromkeys(["58224", "59216", "70066"], _OTHER_WORK),
        **dict.fromkeys(["51162", "51163", "54073"], "the account's state keeps the order out"),
        "51120": _LIMIT,
    },
    "mexc": {
        **dict.fromkeys(["10200", "730101"], _OTHER_WORK),
        "510": "too frequent: turned away before processing",
        "10098": "refused by the risk control",
    },
    "kraken": {
        **dict.fromkeys(["EFunding:Unknown withdraw key", "EFunding:Unknown asset"], _OTHER_WORK),
        "EQuery:Unknown asset": _PARAMETER,
    },
    "kucoin": {
        **dict.fromkeys(["330012", "330005"], "the order does not fit the account's mode"),
        "130302": "the account's rights are restricted",
        "260000": _OTHER_WORK,
    },
    "bitget": dict.fromkeys(["40302", "40304", "40406", "40708"], _PARAMETER),
    "deribit": {"11092": _OTHER_WORK},
}
"""Rows that sound like it and are definite all the same, with the reason."""


def _rows(table: Mapping[str, Any]) -> Iterator[tuple[str, type]]:
    """Code (or text) and class of every row, however deep ccxt nests its tables."""
    for code, found in table.items():
        if isinstance(found, Mapping):
            yield from _rows(found)
        elif isinstance(found, type):
            yield code, found


def _comments(venue: str) -> Mapping[str, list[str]]:
    """What ccxt's source says beside each code: its tables carry codes only."""
    found: dict[str, list[str]] = defaultdict(list)
    for cls in getattr(ccxt, venue).__mro__:
        if not cls.__module__.startswith("ccxt.async_support") or cls.__module__.endswith("exchange"):
            continue
        for code, comment in re.findall(
            r"^\s*'([^'\n]+)': [A-Z]\w+,[ \t]*#(.*)$", inspect.getsource(cls), re.MULTILINE
        ):
            found[code].append(comment.strip())
    return found


@functools.cache
def _suspects() -> list[tuple[str, str, type, str]]:
    found = {}
    for venue in PROFILES:
        comments = _comments(venue)
        for code, cls in _rows(getattr(ccxt, venue)().exceptions):
            for comment in comments.get(code) or [""]:
                if SUSPICIOUS.search(f"{code} {cls.__name__} {comment}"):
                    found[venue, code, cls.__name__, comment] = (venue, code, cls, comment)
    return list(found.values())


def _meaning_of(venue: str, code: str, cls: type, comment: str) -> Meaning:
    body = json.dumps(body_of(venue, code, comment or "refused"))
    return classify(cls(f"{venue} {body}"), Operation.CREATE, table=OUTCOMES[venue]).meaning


def test_g4_no_row_of_ccxt_that_speaks_of_duplicates_or_doubt_is_a_reject() -> None:
    """G4: a code that says duplicate, time-out, processing, busy, unknown or try again is a reject by name only."""
    wrong = [
        f"{venue} {code} {cls.__name__}: {comment}"
        for venue, code, cls, comment in _suspects()
        if code not in DEFINITE.get(venue, {}) and _meaning_of(venue, code, cls, comment) is Meaning.REJECTED
    ]
    assert not wrong, "\n".join(wrong)


def test_no_exemption_outlives_its_row() -> None:
    """A row that ccxt dropped, or that is no reject any more, needs no exemption."""
    needed = {
        (venue, code)
        for venue, code, cls, comment in _suspects()
        if _meaning_of(venue, code, cls, comment) is Meaning.REJECTED
    }
    assert {(venue, code) for venue, codes in DEFINITE.items() for code in codes} == needed
