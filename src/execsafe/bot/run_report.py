"""The values of a report: of a demo, or of what a store alone can tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import execsafe
from execsafe.bot import report, stories
from execsafe.bot.demo import BotResult, DemoResult, StrategyResult
from execsafe.bot.journal import all_records
from execsafe.bot.report import Row
from execsafe.bot.report_page import BotStory, PositionStory, RunReport, StrategyStory, Verdict
from execsafe.bot.targets import all_targets

_EVENTS_AT_ONCE: Final = 1_000
_GOOD_AT_ZERO: Final = frozenset({
    "duplicate orders", "for signals delivered once", "excess exposure", "naked legs", "ledger and book differ",
    "times without a stop for too long",
})  # fmt: skip


# --- The demo ------------------------------------------------------------------------------------------------


def of_demo(result: DemoResult) -> RunReport:
    """The report of a demo."""
    policy = result.policy
    return RunReport(
        title="execsafe demo: what each bot came to own",
        about=" ".join(report.opening(policy)[:1]),
        strategies=(
            _strategy("pairs", report.ABOUT_PAIRS, result.pairs, report.pair_rows(result.pairs)),
            _strategy("waves", report.ABOUT_WAVES, result.waves, report.wave_rows(result.waves)),
        ),
        breaches=result.breaches,
        facts={
            "seed": str(policy.seed),
            "signals": f"{result.pairs.naive.findings.signals} pairs, {result.waves.naive.findings.signals} waves",
            "faults": "on, far more often than on any real day" if policy.faults else "none",
            "venues": "simulated, behind the real ccxt client over HTTP; a request is accepted for one second",
        },
    )


def _strategy(name: str, about: str, result: StrategyResult[Any], rows: Sequence[Row]) -> StrategyStory:
    return StrategyStory(
        name=name,
        about=about,
        bots=(_bot(name, result.naive), _bot(name, result.guarded)),
        verdicts=tuple(_verdict(row, result) for row in rows),
    )


def _verdict(row: Row, result: StrategyResult[Any]) -> Verdict:
    label, *cells = row
    names = result.naive.name, result.guarded.name
    is_judged = label.strip() in _GOOD_AT_ZERO
    return Verdict(
        question=label,
        answers=dict(zip(names, cells, strict=True)),
        better=frozenset(name for name, cell in zip(names, cells, strict=True) if cell == "0") if is_judged else None,
    )


def _bot(strategy: str, result: BotResult[Any]) -> BotStory:
    ledger = result.ledger
    return BotStory(
        name=result.name,
        orders_per_signal=_copies(result),
        exposure=stories.exposure_of(ledger, sorted(result.tape)),
        positions=_positions(result) if strategy == "waves" else (),
        ghosts=stories.ghosts_of(result.told),
        funnel=None if result.funnel is None else stories.funnel_of(result.funnel),
    )


def _copies(result: BotResult[Any]) -> Mapping[int, int]:
    """How many orders came to exist where one was meant."""
    found: Mapping[int, int] = result.findings.orders_per_meant
    return {copies: count for copies, count in found.items() if copies}


def _positions(result: BotResult[Any]) -> tuple[PositionStory, ...]:
    found = [
        position
        for symbol, tape in sorted(result.tape.items())
        for position in stories.positions_in_ledger(result.ledger, symbol, tape)
    ]
    named = stories.named(found, result.told, result.targets) if result.told else tuple(found)
    return tuple(sorted(named, key=lambda position: position.opened_at_ms))


# --- A store -------------------------------------------------------------------------------------------------


async def of_store(store: execsafe.Store, name: str) -> RunReport:
    """What the journal alone can tell: intents, doubts, fills, positions. No venue was asked, no ledger is known.

    Opens *store* and closes it; changes nothing. *name* is shown.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        await store.open()
        records = await all_records(store)
        events = await _all_events(store)
        opened = [event.subject for event in events if event.type is execsafe.EventType.POSITION_OPENED]
        targets = await all_targets(store, opened)
    finally:
        await store.aclose()
    story = BotStory(
        name="as the journal has it",
        orders_per_signal=Counter(len(_existing(record)) for record in records if _existing(record)),
        positions=stories.positions_in_events(events, targets),
        ghosts=stories.ghosts_of(events),
        funnel=stories.funnel_of_events(events),
    )
    return RunReport(
        title="execsafe: what the journal tells",
        about="Read from the journal of a bot alone: what it meant, what it was in doubt about, and what it knows to "
        "hold. Whether the venue agrees is not known here.",
        strategies=(StrategyStory(name="journal", about="", bots=(story,)),),
        breaches=None,
        facts={"store": name, **_facts(records)},
    )


async def _all_events(store: execsafe.Store) -> list[execsafe.Event]:
    events: list[execsafe.Event] = []
    after = 0
    while page := await store.read_events(after, _EVENTS_AT_ONCE):
        events.extend(stored.event for stored in page)
        after = page[-1].seq
    return events


def _existing(record: execsafe.IntentRecord) -> set[str]:
    """The orders of an intent that came to exist, as far as the journal knows."""
    return {attempt.client_order_id for attempt in record.attempts if attempt.venue_order_id is not None}


def _facts(records: Iterable[execsafe.IntentRecord]) -> dict[str, str]:
    states = Counter(record.state for record in records)
    facts = {"intents": str(states.total())}
    facts.update((f"  {state.value.replace('_', ' ')}", str(count)) for state, count in sorted(states.items()))
    return facts
