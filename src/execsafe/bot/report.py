"""The demo's tables and its last words. Pure: findings in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

import execsafe
from execsafe.bot.demo import BotResult, DemoResult, StrategyResult
from execsafe.bot.scenes import SCALE, pair_signals, wave_cues
from execsafe.bot.stage import DemoPolicy
from execsafe.bot.verdict import Findings
from execsafe.bot.verdict_waves import WaveFindings
from execsafe.testing.faults import Fault

_KINDS: Final[Mapping[str, tuple[Fault, ...]]] = {
    "requests that never arrived": (Fault.DROP_REQUEST, Fault.SERVER_ERROR_NOT_ACCEPTED),
    "answers lost or unreadable": (
        Fault.DROP_REPLY, Fault.SERVER_ERROR_ACCEPTED, Fault.TRUNCATED_BODY, Fault.EMPTY_OK),
    "connections reset, order there or not": (Fault.RESET_CONNECTION,),
    "requests that arrived late": (Fault.DELAY_REQUEST, Fault.LATE_ARRIVAL_AFTER_LOOK),
    "refusals": (Fault.RATE_LIMITED, Fault.TIMESTAMP_REJECT, Fault.REJECT_FUNDS),
    "orders filled only in part": (Fault.PARTIAL_FILL,),
    "stops refused, or lost by the venue": (Fault.STOP_REJECTED, Fault.STOP_LOST),
    "look-ups that failed": (Fault.LOOKUP_ERROR,),
}  # fmt: skip

Row: TypeAlias = tuple[str, str, str]
"""What was looked at, plain ccxt's figure, execsafe's figure."""

NAMES: Final = ("plain ccxt", "execsafe")
"""The bots, in the order in which tables show them."""

ABOUT_PAIRS: Final = (
    "Sells what has become dear and buys what has become cheap of ETH/BTC and LTC/BTC, on recorded candles of January "
    "2018. The second leg hedges what the first one filled."
)
ABOUT_WAVES: Final = (
    f"Opens batches of positions in what has moved most, each with its stop and its targets. The prices of ETH and LTC "
    f"are the recorded candles, multiplied with {SCALE:,}; those of BCH and DASH are made of the same candles, eight "
    f"hours shifted and scaled, because there are no others in the package."
)


def amount(value: Decimal, places: int = 4) -> str:
    """A quantity for people, without trailing zeros."""
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds(duration_ms: int) -> str:
    """A duration for people."""
    return f"{duration_ms / 1000:.1f} s"


def _rows(result: StrategyResult[Any], *wanted: tuple[str, Callable[[BotResult[Any]], str]]) -> list[Row]:
    return [(label, cell(result.naive), cell(result.guarded)) for label, cell in wanted]


def pair_rows(result: StrategyResult[Findings]) -> list[Row]:
    """The table of the pairs strategy."""
    return _rows(
        result,
        ("signals", lambda bot: str(bot.findings.signals)),
        ("  of which delivered five times", lambda _: str(len(result.repeated))),
        ("orders meant", lambda bot: str(bot.findings.orders_meant)),
        ("orders that the venue accepted", lambda bot: str(bot.findings.orders_accepted)),
        ("  per signal, at most", lambda bot: str(bot.findings.orders_per_signal_max)),
        ("  where one was meant, at most", lambda bot: str(bot.findings.copies_max)),
        ("duplicate orders", lambda bot: str(bot.findings.duplicates)),
        ("  for signals delivered once", lambda bot: str(_duplicates_of_single(bot, result))),
        ("excess exposure", lambda bot: _excess(bot.findings.excess, bot.findings.excess_btc, "BTC")),
        ("naked legs", _naked),
        ("ledger and book differ", lambda bot: _differences(
            bot.findings.differences, bot.findings.difference_btc, "BTC")),
        ("after silence", _silence),
        *_faults(),
    )  # fmt: skip


def wave_rows(result: StrategyResult[WaveFindings]) -> list[Row]:
    """The table of the waves strategy."""
    return _rows(
        result,
        ("signals", lambda bot: str(bot.findings.signals)),
        ("  of which delivered five times", lambda _: str(len(result.repeated))),
        ("positions entered", lambda bot: str(bot.findings.opened)),
        ("orders meant", lambda bot: str(bot.findings.orders_meant)),
        ("orders that the venue accepted", lambda bot: str(bot.findings.orders_accepted)),
        ("  where one was meant, at most", lambda bot: str(bot.findings.copies_max)),
        ("duplicate orders", lambda bot: str(bot.findings.duplicates)),
        ("  for signals delivered once", lambda bot: str(_duplicates_of_single(bot, result))),
        ("excess exposure", lambda bot: _excess(bot.findings.excess, bot.findings.excess_usdt, "USDT")),
        ("times without a stop for too long", lambda bot: str(len(bot.findings.unprotected))),
        ("  longest time without a stop", lambda bot: seconds(bot.findings.longest_ms)),
        ("ledger and book differ", lambda bot: _differences(
            bot.findings.differences, bot.findings.difference_usdt, "USDT")),
        ("after silence", _silence),
        *_faults(),
    )  # fmt: skip


def tables(result: DemoResult) -> list[tuple[str, list[Row]]]:
    """All tables, with their titles."""
    return [
        ("pairs: what the venues' ledgers say", pair_rows(result.pairs)),
        ("waves: what the venues' ledgers say", wave_rows(result.waves)),
    ]


def runs(policy: DemoPolicy) -> dict[str, int]:
    """What is shown while it runs: each bot, and how many signals it gets."""
    counts = {"pairs": len(pair_signals(policy.signals)), "waves": len(wave_cues()[: policy.signals])}
    return {f"{strategy}, {name}": count for strategy, count in counts.items() for name in NAMES}


def _faults() -> list[tuple[str, Callable[[BotResult[Any]], str]]]:
    kinds: list[tuple[str, Callable[[BotResult[Any]], str]]] = [
        (f"  {kind}", lambda bot, f=faults: str(sum(bot.fired.get(fault, 0) for fault in f)))  # type: ignore[misc]
        for kind, faults in _KINDS.items()
    ]
    return [("faults met", lambda _: ""), *kinds]


def _duplicates_of_single(bot: BotResult[Any], result: StrategyResult[Any]) -> int:
    found = bot.findings.duplicates_by_signal
    return sum(count for signal_id, count in found.items() if signal_id not in result.repeated)


def _excess(excess: Mapping[str, Decimal], value: Decimal, currency: str) -> str:
    if not excess:
        return "0"
    parts = ", ".join(f"{amount(q)} {symbol.partition('/')[0]}" for symbol, q in sorted(excess.items()))
    return f"{amount(value)} {currency}\n({parts})"


def _naked(bot: BotResult[Findings]) -> str:
    found = bot.findings
    told = f", reported: {bot.residuals}" if bot.residuals else ""
    return f"{len(found.naked)} ({amount(found.naked_btc)} BTC{told})" if found.naked else "0"


def _differences(differences: Mapping[str, tuple[Decimal, Decimal]], value: Decimal, currency: str) -> str:
    if not differences:
        return "0"
    parts = [
        f"{symbol.partition('/')[0]}: has {amount(has)}, believes {amount(believes)}"
        for symbol, (has, believes) in differences.items()
    ]
    return "\n".join([f"by {amount(value)} {currency}", *parts])


def _silence(bot: BotResult[Any]) -> str:
    if not bot.told:
        return f"sent again {bot.retries} times without asking"
    doubts, found, absent, open_ = settled(bot)
    return f"{doubts} orders in doubt:\n{found} found at the venue\n{absent} proven absent\n{open_} not settled"


def settled(bot: BotResult[Any]) -> tuple[int, int, int, int]:
    """Orders in doubt, and of these: found, proven absent, not settled."""
    kinds, events = execsafe.EventType, bot.events
    doubts, found, absent = (
        events.get(kind, 0) for kind in (kinds.ORDER_IN_DOUBT, kinds.ORDER_ADOPTED, kinds.ATTEMPT_ABSENT)
    )
    return doubts, found, absent, max(0, doubts - found - absent)


def opening(policy: DemoPolicy) -> list[str]:
    """What is about to happen."""
    faults = (
        f"Requests and answers are lost, late or refused, orders fill in part, stops are refused or lost, signals come "
        f"five times, far more often than on any real day; the same is laid out for both (seed {policy.seed})"
        if policy.faults
        else "Nothing goes wrong (--no-faults)"
    )
    return [
        "Two strategies trade recorded candles, each twice: with plain ccxt and the usual catch-and-retry, and through "
        "execsafe. Each of the four bots has a simulated venue of its own, behind the real ccxt client over HTTP. "
        f"{faults}.",
        f"pairs: {ABOUT_PAIRS}",
        f"waves: {ABOUT_WAVES}",
        "The venues accept a request for 1 s and answer within moments, and all bots are configured for that, so "
        "that an order in doubt is settled in about a second. At a real venue it takes longer.",
    ]


def closing(result: DemoResult) -> list[str]:
    """What happened, in plain words."""
    told = [_of_plain(result)]
    if result.breaches:
        told.append("EXECSAFE BROKE WHAT IT PROMISES:")
        told.extend(f"- {breach}" for breach in result.breaches)
        return told
    told.append(_of_execsafe(result))
    return told


def _of_plain(result: DemoResult) -> str:
    pairs, waves = result.pairs.naive.findings, result.waves.naive.findings
    duplicates = pairs.duplicates + waves.duplicates
    is_harmed = duplicates or pairs.naked or pairs.differences or waves.differences or waves.unprotected
    if not is_harmed:
        return "Plain ccxt came through unharmed: this time nothing happened that it could not stand."
    return (
        f"Plain ccxt took silence for failure and sent again, and did at once what came twice at once: {duplicates} "
        f"orders nobody wanted, {len(pairs.naked)} signals after which one side of a pair was unprotected, "
        f"{len(waves.unprotected)} times a position without a stop for too long, up to {seconds(waves.longest_ms)}, "
        f"and books that are wrong by {amount(pairs.difference_btc)} BTC and {amount(waves.difference_usdt, 0)} USDT."
    )


def _of_execsafe(result: DemoResult) -> str:
    pairs, waves = result.pairs.guarded.findings, result.waves.guarded.findings
    counts = [settled(bot) for bot in (result.pairs.guarded, result.waves.guarded)]
    doubts, found, absent, open_ = (sum(column) for column in zip(*counts, strict=True))
    ghosts = (
        f"asked about each of the {doubts} orders in doubt until it was found ({found}), or proven "
        f"absent and only then sent again ({absent})" if doubts else "had no order in doubt"
    )  # fmt: skip
    left = f"; {open_} could not be settled and stay counted" if open_ else ""
    differs = pairs.differences or waves.differences
    book = (
        "books that are off where an order is not settled"
        if differs
        else "books that equal the venues' ledgers to the last digit"
    )
    sides = f", {len(pairs.naked)} sides that could not be hedged and were reported" if pairs.naked else ""
    bare = f", {len(waves.unprotected)} times a position without a stop for too long" if waves.unprotected else ""
    return (
        f"execsafe wrote each order down before it sent it, {ghosts}{left}. {pairs.duplicates + waves.duplicates} "
        f"duplicates, no excess exposure{sides}{bare}, no position without a stop for longer than "
        f"{seconds(waves.longest_ms)}, and {book}. No guarantee was broken."
    )
