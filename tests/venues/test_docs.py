"""The page about venues is drawn from the profiles."""

from __future__ import annotations

from pathlib import Path

from execsafe.venues._account_rows import account_table
from execsafe.venues.profiles import profile_notes, profile_table

PAGE = Path(__file__).parents[2] / "docs" / "content" / "venues.md"


def test_the_page_shows_the_profiles_as_they_are() -> None:
    """Changing a fact changes the page: paste what profile_table() and profile_notes() print."""
    page = PAGE.read_text(encoding="utf-8")
    assert profile_table() in page
    assert account_table() in page
    assert profile_notes() in page
