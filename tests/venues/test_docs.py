"""The page about venues is drawn from the profiles."""

from __future__ import annotations

from pathlib import Path

from execsafe.ports import ExchangeAdapter
from execsafe.venues._account_rows import account_table
from execsafe.venues.profiles import profile_notes, profile_table

PAGE = Path(__file__).parents[2] / "docs" / "content" / "venues.md"


def test_the_page_shows_the_profiles_as_they_are() -> None:
    """Changing a fact changes the page: paste what profile_table() and profile_notes() print."""
    page = PAGE.read_text(encoding="utf-8")
    assert profile_table() in page
    assert account_table() in page
    assert profile_notes() in page


def test_the_page_for_authors_counts_the_methods_that_an_adapter_must_have() -> None:
    """One more abstract method is one more to write."""
    words = dict(enumerate(["Five", "Six", "Seven", "Eight", "Nine", "Ten"], start=5))
    page = (PAGE.parent / "adapters.md").read_text(encoding="utf-8")
    assert f"{words[len(ExchangeAdapter.__abstractmethods__)]} methods place, cancel and find orders" in page
