"""The catalogue of events is complete, and the page that shows it is drawn from it."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest

from execsafe.core.catalogue import CATALOGUE, GROUPS, Level, as_markdown, level_of, level_of_event
from execsafe.core.health import Health
from execsafe.core.safety import TradingState
from execsafe.model.event import Event, EventType

PAGE = Path(__file__).parents[2] / "docs" / "content" / "events.md"
MARK = "<!-- catalogue -->\n"

# The kinds of log lines of the signal consumer that was learned from.
FIFTEEN = (
    "drain skip", "stale skip", "hold/flat skip", "intent received", "leverage error", "submit error", "ticker error",
    "main handler", "ILF stored", "ILF error", "levels error", "no ILF", "executed", "store error", "publish",
)  # fmt: skip
OTHERS = (
    "EXIT_DEDUPLICATED", "EXIT_INTENT_REGISTERED", "EXIT_INTENT_CLEARED", "ENTRY_HOOK_SUCCESS", "ORDER_ROUTER_CLEANUP",
    "MD_PORTFOLIO_CACHE_REFRESH", "MD_PORTFOLIO_CACHE_INVALIDATE", "position_created", "stop_loss_placed",
    "trailing_stop_created", "position_error", "ORDER_FAILED", "StuckExit",
)  # fmt: skip


@pytest.mark.row("X-07")
def test_every_event_is_in_the_catalogue_once():
    assert CATALOGUE.keys() == set(EventType)
    assert sum(len(group) for group in GROUPS.values()) == len(EventType)


@pytest.mark.row("X-07")
def test_the_values_are_stable():
    """They are stored and matched by users: a value is its name in lower case, for ever."""
    assert all(kind.value == kind.name.lower() for kind in EventType)


@pytest.mark.row("S2-15", "S1-06", "S1-16", "S1-41")
@pytest.mark.parametrize("name", [*FIFTEEN, *OTHERS])
def test_what_was_logged_elsewhere_has_its_event(name):
    assert [kind for kind, entry in CATALOGUE.items() if name in entry.seed]


@pytest.mark.row("S1-06")
def test_a_deduplicated_exit_tells_both_reasons_and_the_age():
    details = set(CATALOGUE[EventType.EXIT_DEDUPLICATED].details)
    assert {"existing_reason", "new_reason", "age_ms"} <= details
    assert "duration_ms" in CATALOGUE[EventType.EXIT_CLEARED].details


@pytest.mark.row("S3-33")
def test_levels_are_those_of_the_standard_library_and_follow_the_type():
    """Steps that every order takes are quiet, alarms are not; "debug messages at WARNING" cannot be written."""
    for level in Level:
        assert logging.getLevelName(int(level)) == level.name
    assert level_of(EventType.ATTEMPT_SENDING) is Level.DEBUG
    assert level_of(EventType.PRICES_REFRESHED) is Level.DEBUG
    alarms = {kind for kind in EventType if level_of(kind) is Level.CRITICAL}
    assert alarms == {
        EventType.INTENT_UNRESOLVED,
        EventType.EXCESS_EXPOSURE,
        EventType.RESIDUAL_EXPOSURE,
        EventType.POSITION_UNPROTECTED,
        EventType.STUCK_EXIT,
    }


def loud(kind, note="", **details):
    return level_of_event(Event(type=kind, at_ms=1, subject="x", note=note, details=details)).name


@pytest.mark.parametrize("level", ["warning", "error", "critical"])
def test_an_alert_is_as_loud_as_it_says(level):
    """A filter for what is critical must find the critical alert."""
    assert loud(EventType.ALERT_RAISED, level) == level.upper()
    assert loud(EventType.ALERT_CLEARED, level) == "INFO"


@pytest.mark.parametrize(
    ("kind", "states", "usual"),
    [(EventType.HEALTH_CHANGED, Health, "WARNING"), (EventType.TRADING_STATE_CHANGED, TradingState, "ERROR")],
)
def test_what_gets_better_is_no_trouble(kind, states, usual):
    for before, after in itertools.permutations(states, 2):
        order = list(states)  # from good to bad
        expected = "INFO" if order.index(after) < order.index(before) else usual
        assert loud(kind, before=before.value, after=after.value) == expected


def test_an_event_that_does_not_say_is_as_loud_as_its_type():
    for kind in EventType:
        assert loud(kind) == level_of(kind).name
        assert loud(kind, "whatever", before=["x"], after=None) == level_of(kind).name


def test_every_entry_is_a_sentence():
    for kind, entry in CATALOGUE.items():
        assert entry.meaning.endswith("."), kind
        assert len(set(entry.details)) == len(entry.details), kind


@pytest.mark.row("X-07")
def test_the_page_shows_the_catalogue_as_it_is():
    """To write it anew: everything below the mark is what ``as_markdown()`` returns."""
    text = PAGE.read_text()
    assert MARK in text
    shown = text.partition(MARK)[2]
    assert shown == as_markdown(), "docs/content/events.md is not what core/catalogue.py says"
