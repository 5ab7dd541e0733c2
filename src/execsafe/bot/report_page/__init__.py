"""The report of a run: one HTML file that needs nothing else, drawn from plain values.

:class:`RunReport` says what there is to show; :func:`render` draws it.
"""

from execsafe.bot.report_page.page import render
from execsafe.bot.report_page.story import (
    BotStory,
    Funnel,
    GhostStory,
    LevelLine,
    PositionStory,
    RunReport,
    StrategyStory,
    Verdict,
)

__all__ = [
    "BotStory",
    "Funnel",
    "GhostStory",
    "LevelLine",
    "PositionStory",
    "RunReport",
    "StrategyStory",
    "Verdict",
    "render",
]
