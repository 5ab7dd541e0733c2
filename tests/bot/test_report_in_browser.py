"""The report as a person meets it: in a browser, wide and narrow, without a network.

Needs Chromium or Chrome; without one it is skipped, unless EXECSAFE_REQUIRE_BROWSER=1 says that it must be there.
"""

import json
import os
import re
import shutil
import subprocess
from html import unescape

import pytest

from execsafe.bot import run_report
from execsafe.bot.demo import run_demo
from execsafe.bot.report_page import render
from execsafe.bot.stage import DemoPolicy

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_PROBE = """
<script>addEventListener("load", () => {
  const box = (e) => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const shown = (selector) => [...document.querySelectorAll(selector)].map(box).filter(([w, h]) => w > 0 || h > 0);
  const found = {
    title: document.title,
    text: document.body.innerText,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    width: document.documentElement.clientWidth,
    requests: performance.getEntriesByType("resource").map((e) => e.name),
    charts: shown("svg.chart"), stops: shown("path.line.stop"), prices: shown("path.line.price"),
    levels: shown("line.level"), names: [...document.querySelectorAll("text.name")].map((e) => e.textContent),
    bars: shown("rect.bar"), sections: [...document.querySelectorAll("section.strategy")].map((e) => e.id),
  };
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(found);
  document.body.append(out);
});</script>
"""


_FRAME = """<!doctype html><body style="margin:0">
<iframe id="page" src="report.html" style="width:WIDTHpx;height:900px;border:0"></iframe>
<script>addEventListener("load", () => document.body.append(
  document.getElementById("page").contentDocument.getElementById("probe").cloneNode(true)));</script></body>"""


@pytest.fixture(scope="module")
def anyio_backend():
    """ccxt runs on asyncio only."""
    return "asyncio"


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        remedy = f"no browser: install one of {', '.join(_NAMES)} (Debian: apt-get install chromium)"
        if os.environ.get("EXECSAFE_REQUIRE_BROWSER") == "1":
            pytest.fail(remedy)
        pytest.skip(remedy)
    return path


@pytest.fixture(scope="module")
async def page(browser, anyio_backend):
    """The page of a short run with faults."""
    return render(run_report.of_demo(await run_demo(DemoPolicy(seed=7, signals=6))))


@pytest.fixture(scope="module")
def seen(browser, page, tmp_path_factory):
    """What the browser says of the page, by the width of its window."""
    folder = tmp_path_factory.mktemp("browser")
    path = folder / "report.html"
    path.write_text(page.replace("</body>", f"{_PROBE}</body>"), encoding="utf-8")

    def look(width):
        # A headless window is never narrower than 500 px: a frame of the wanted width stands in for it.
        frame = folder / f"frame-{width}.html"
        frame.write_text(_FRAME.replace("WIDTH", str(width)), encoding="utf-8")
        done = subprocess.run(
            [browser, *_FLAGS, f"--user-data-dir={folder / f'profile-{width}'}", "--allow-file-access-from-files",
             "--window-size=1400,900", "--dump-dom", frame.as_uri()],
            capture_output=True, text=True, check=False, timeout=40,
        )  # fmt: skip
        probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
        assert probe, done.stderr[-2_000:]
        return json.loads(unescape(probe[1]))

    return {width: look(width) for width in (400, 1200)}


@pytest.fixture(params=[400, 1200])
def view(request, seen):
    return seen[request.param]


pytestmark = pytest.mark.anyio


def test_title_verdict_and_both_strategies_are_there(view):
    assert view["title"].startswith("execsafe demo")
    assert "Every guarantee held" in view["text"]
    assert view["sections"] == ["pairs", "waves"]
    for words in ("plain ccxt", "execsafe", "Duplicate orders", "Time unprotected", "Ghosts"):
        assert words.lower() in view["text"].lower()


def test_the_funnel_shows_its_numbers(view, page):
    funnel = re.search(r'aria-label="Funnel of signals">(.*?)</svg>', page, re.DOTALL)[1]
    counts = [int(count) for count in re.findall(r'class="count"[^>]*>(\d+)<', funnel)]

    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 6
    assert len(view["bars"]) >= 5


def test_a_position_is_drawn_with_its_price_its_levels_and_its_stop(view):
    assert any(width > 50 and height > 5 for width, height in view["prices"])
    assert any(width > 50 for width, _ in view["stops"])
    assert len([width for width, _ in view["levels"] if width > 50]) >= 4
    assert {"TP1", "TP2", "TP3", "SL", "entry", "stop", "price"} <= set(view["names"])
    assert all(width > 100 and height > 10 for width, height in view["charts"])


def test_nothing_sticks_out_sideways(view):
    assert view["overflow"] == 0
    assert view["width"] in {400, 385, 1200, 1185}  # with or without a scroll bar


def test_nothing_is_asked_of_any_network(view, page):
    assert view["requests"] == []
    assert not re.search(r"https?:", page)


def test_it_can_be_photographed(browser, page, tmp_path):
    path, picture = tmp_path / "report.html", tmp_path / "report.png"
    path.write_text(page, encoding="utf-8")
    subprocess.run(
        [browser, *_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2400",
         f"--screenshot={picture}", path.as_uri()],
        capture_output=True, check=False, timeout=40,
    )  # fmt: skip

    assert picture.stat().st_size > 30_000
