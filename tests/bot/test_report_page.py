"""The HTML report: complete in itself, true to its values, and safe whatever the values hold."""

import itertools
import re
from decimal import Decimal
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execsafe.bot.report_page import (
    BotStory,
    Funnel,
    GhostStory,
    LevelLine,
    PositionStory,
    RunReport,
    StrategyStory,
    Verdict,
    render,
)
from execsafe.bot.report_page.svg import Level, Line, bar_chart, line_chart, ticks

START = 1_700_000_000_000
MINUTE = 60_000


def curve(*values, every_ms=MINUTE):
    return tuple((START + n * every_ms, Decimal(str(value))) for n, value in enumerate(values))


def a_report(**changes):
    position = PositionStory(
        name="waves/1",
        symbol="ETH/USDT:USDT",
        side="long",
        opened_at_ms=START,
        closed_at_ms=START + 4 * MINUTE,
        entry_price=Decimal(100),
        prices=curve(100, 101, 103, 102, 101.5),
        levels=(LevelLine(name="TP1", price=Decimal("100.8")), LevelLine(name="SL", price=Decimal(99))),
        stop=curve(99, 99, 101.8),
        unprotected=((START, START + 240),),
        outcome="stopped in profit",
    )
    ghost = GhostStory(
        key="waves/1/entry",
        doubted_at_ms=START + 30_000,
        settled_at_ms=START + 31_500,
        cause="RequestTimeout",
        verdict="found, adopted",
        looks=2,
    )
    naive = BotStory(name="plain ccxt", orders_per_signal={1: 5, 2: 3}, exposure={"ETH/USDT:USDT": curve(0, 1, 2, 2)})
    guarded = BotStory(
        name="execsafe",
        orders_per_signal={1: 8},
        exposure={"ETH/USDT:USDT": curve(0, 1, 1, 0)},
        positions=(position,),
        ghosts=(ghost,),
        funnel=Funnel(stages=(("received", 57), ("opened", 8)), drops={"stale": 40, "target reached": 9}),
    )
    verdict = Verdict(
        question="Duplicate orders",
        answers={"plain ccxt": "3", "execsafe": "0"},
        better=frozenset({"execsafe"}),
    )
    story = StrategyStory(name="waves", about="Batches of positions.", bots=(naive, guarded), verdicts=(verdict,))
    values = {"title": "A run", "about": "Two bots.", "strategies": (story,), "facts": {"seed": "7"}, **changes}
    return RunReport(**values)


class Outline(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.outside = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [value for name, value in attrs if name in {"src", "href", "xlink:href"}]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_it_says_what_a_person_looks_for():
    text = " ".join(Outline(render(a_report())).text)
    for wanted in (
        "Every guarantee held",
        "Duplicate orders",
        "57",
        "target reached",
        "TP1",
        "SL",
        "entry",
        "stop",
        "240 ms",
        "RequestTimeout",
        "found, adopted",
        "1500 ms",
        "stopped in profit",
    ):
        assert wanted in text


def test_a_broken_guarantee_comes_first():
    page = render(a_report(breaches=("G1: 0.4 ETH too much",)))
    assert "Every guarantee held" not in page
    assert page.index("G1: 0.4 ETH too much") < page.index("Duplicate orders")


def test_the_page_is_well_formed_and_asks_for_nothing():
    page = render(a_report())
    outline = Outline(page)
    assert outline.open == []
    assert outline.outside == []
    assert not {"script", "link", "img", "iframe"} & set(outline.tags)
    assert not re.search(r"url\(|@import|https?:", page)


def test_what_comes_from_outside_is_shown_and_not_obeyed():
    page = render(a_report(title="<script>alert(1)</script>", facts={"<b>": '"><img src=x>'}))
    outline = Outline(page)
    assert not {"script", "img", "b"} & set(outline.tags)
    assert "<script>alert(1)</script>" in outline.text


def test_a_run_in_which_nothing_happened_can_be_shown():
    empty = StrategyStory(name="waves", about="", bots=(BotStory(name="execsafe"),))
    assert "A run" in render(a_report(strategies=(empty,)))
    assert "nothing to show" in line_chart([], title="x", unit="y")
    assert "nothing to show" in bar_chart([("a", 0)], title="x")


@given(st.lists(st.tuples(st.floats(0, 1e7), st.floats(-1e9, 1e9)), min_size=1, max_size=50).map(sorted))
def test_every_point_lies_inside_the_picture(points):
    drawing = line_chart([Line(name="a", points=points, kind="first")], title="t", unit="u", height=220)
    [path] = re.findall(r'd="([^"]+)"', drawing)
    coordinates = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", path)]
    assert all(0 <= x <= 720 for x in coordinates[::2])
    assert all(0 <= y <= 220 for y in coordinates[1::2])


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_and_lie_in_range(low, width):
    found = ticks(low, low + width)
    assert len(found) <= 6
    assert all(low - width * 1e-3 - 1e-6 <= tick <= low + width * 1.001 + 1e-6 for tick in found)


@pytest.mark.parametrize("count", [2, 8])
def test_names_of_levels_do_not_overlap(count):
    levels = [Level(name=f"L{n}", y=100 + n * 1e-6) for n in range(count)]
    drawing = line_chart(
        [Line(name="p", points=[(0, 100), (1, 200)], kind="price")], levels=levels, title="t", unit="u"
    )
    heights = sorted(float(y) for y in re.findall(r'class="name level" x="\d+" y="([\d.]+)"', drawing))
    assert all(b - a >= 10 for a, b in itertools.pairwise(heights))
