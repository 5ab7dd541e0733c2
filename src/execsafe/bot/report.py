"""The demo's table and its last words. Pure: findings in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Final

import execsafe
from execsafe.bot.demo import BotResult, DemoPolicy, DemoResult
from execsafe.testing.faults import Fault

_KINDS: Final[Mapping[str, tuple[Fault, ...]]] = {
    "requests that never arrived": (Fault.DROP_REQUEST, Fault.SERVER_ERROR_NOT_ACCEPTED),
    "answers lost or unreadable": (
        Fault.DROP_REPLY, Fault.SERVER_ERROR_ACCEPTED, Fault.TRUNCATED_BODY, Fault.EMPTY_OK),
    "connections reset, order there or not": (Fault.RESET_CONNECTION,),
    "requests that arrived late": (Fault.DELAY_REQUEST, Fault.LATE_ARRIVAL_AFTER_LOOK),
    "refusals": (Fault.RATE_LIMITED, Fault.TIMESTAMP_REJECT, Fault.REJECT_FUNDS),
    "orders filled only in part": (Fault.PARTIAL_FILL,),
    "look-ups that failed": (Fault.LOOKUP_ERROR,),
}  # fmt: skip


def amount(value: Decimal, places: int = 4) -> str:
    """A quantity for people, without trailing zeros."""
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def rows(result: DemoResult) -> list[tuple[str, str, str]]:
    """The table: what, plain ccxt, execsafe."""
    both = result.naive, result.guarded

    def row(label: str, cell: Callable[[BotResult], str]) -> tuple[str, str, str]:
        return label, cell(both[0]), cell(both[1])

    return [
        row("signals", lambda bot: str(bot.findings.signals)),
        row("  of which delivered five times", lambda _: str(len(result.repeated))),
        row("orders meant", lambda bot: str(bot.findings.orders_meant)),
        row("orders that the venue accepted", lambda bot: str(bot.findings.orders_accepted)),
        row("  per signal, at most", lambda bot: str(bot.findings.orders_per_signal_max)),
        row("  where one was meant, at most", lambda bot: str(bot.findings.copies_max)),
        row("duplicate orders", lambda bot: str(bot.findings.duplicates)),
        row("  for signals delivered once", lambda bot: str(_duplicates_of_single(bot, result))),
        row("excess exposure", _excess),
        row("naked legs", _naked),
        row("ledger and book differ", _differences),
        row("after silence", _silence),
        row("faults met", lambda _: ""),
        *(row(f"  {kind}", lambda bot, f=faults: _count(bot, f)) for kind, faults in _KINDS.items()),  # type: ignore[misc]
    ]


def _count(bot: BotResult, faults: tuple[Fault, ...]) -> str:
    return str(sum(bot.fired.get(fault, 0) for fault in faults))


def _duplicates_of_single(bot: BotResult, result: DemoResult) -> int:
    found = bot.findings.duplicates_by_signal
    return sum(count for signal_id, count in found.items() if signal_id not in result.repeated)


def _excess(bot: BotResult) -> str:
    found = bot.findings
    if not found.excess:
        return "0"
    parts = ", ".join(f"{amount(q)} {symbol.partition('/')[0]}" for symbol, q in sorted(found.excess.items()))
    return f"{amount(found.excess_btc)} BTC\n({parts})"


def _naked(bot: BotResult) -> str:
    found = bot.findings
    told = f", reported: {bot.residuals}" if bot.residuals else ""
    return f"{len(found.naked)} ({amount(found.naked_btc)} BTC{told})" if found.naked else "0"


def _differences(bot: BotResult) -> str:
    found = bot.findings
    if not found.differences:
        return "0"
    parts = [
        f"{symbol.partition('/')[0]}: has {amount(has)}, believes {amount(believes)}"
        for symbol, (has, believes) in found.differences.items()
    ]
    return "\n".join([f"by {amount(found.difference_btc)} BTC", *parts])


def _silence(bot: BotResult) -> str:
    if not bot.events:
        return f"sent again {bot.retries} times without asking"
    doubts, found, absent, open_ = settled(bot)
    return f"{doubts} orders in doubt:\n{found} found at the venue\n{absent} proven absent\n{open_} not settled"


def settled(bot: BotResult) -> tuple[int, int, int, int]:
    """Orders in doubt, and of these: found, proven absent, not settled."""
    kinds = execsafe.EventType
    doubts, found, absent = (
        bot.events.get(kind, 0) for kind in (kinds.ORDER_IN_DOUBT, kinds.ORDER_ADOPTED, kinds.ATTEMPT_ABSENT)
    )
    return doubts, found, absent, max(0, doubts - found - absent)


def opening(policy: DemoPolicy) -> list[str]:
    """What is about to happen."""
    faults = (
        f"Requests and answers are lost, late or refused, orders fill in part, signals come five times, far more often "
        f"than on any real day; the same is laid out for both (seed {policy.seed})"
        if policy.faults
        else "Nothing goes wrong (--no-faults)"
    )
    return [
        "A pairs strategy trades recorded candles of ETH/BTC and LTC/BTC (January 2018) twice: with plain ccxt and "
        "the usual catch-and-retry, and with the same calls through execsafe. Each has a simulated venue of its own, "
        f"behind the real ccxt client over HTTP. {faults}.",
        "The venues accept a request for 1 s and answer within moments, and both bots are configured for that, so "
        "that an order in doubt is settled in about a second. At a real venue it takes longer.",
    ]


def closing(result: DemoResult) -> list[str]:
    """What happened, in plain words."""
    naive, guarded = result.naive.findings, result.guarded.findings
    doubts, found, absent, open_ = settled(result.guarded)
    told = []
    if naive.duplicates or naive.naked or naive.differences:
        told.append(
            f"Plain ccxt took silence for failure and sent again, and did at once what came twice at once: "
            f"{naive.duplicates} orders nobody wanted, {len(naive.naked)} signals after which one side of a trade was "
            f"unprotected, and a book that is wrong by {amount(naive.difference_btc)} BTC."
        )
    else:
        told.append("Plain ccxt came through unharmed: this time nothing happened that it could not stand.")
    if result.breaches:
        told.append("EXECSAFE BROKE WHAT IT PROMISES:")
        told.extend(f"- {breach}" for breach in result.breaches)
        return told
    ghosts = (
        f"asked about each of the {doubts} orders in doubt until it was found ({found}), or proven "
        f"absent and only then sent again ({absent})" if doubts else "had no order in doubt"
    )  # fmt: skip
    left = f"; {open_} could not be settled and stay counted" if open_ else ""
    book = (
        f"a book that is {amount(guarded.difference_btc)} BTC off where an order is not settled"
        if guarded.differences
        else "a book that equals the venue's ledger to the last digit"
    )
    sides = f", {len(guarded.naked)} sides that could not be hedged and were reported" if guarded.naked else ""
    told.append(
        f"execsafe wrote each order down before it sent it, {ghosts}{left}. {guarded.duplicates} duplicates, "
        f"{amount(guarded.excess_btc)} BTC of excess exposure{sides}, and {book}. No guarantee was broken."
    )
    return told
