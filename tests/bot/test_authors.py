"""What authors are promised: a strategy and an adapter are short, written from the documentation alone, and work."""

from __future__ import annotations

import pathlib
import re
import textwrap

import pytest

PAGES = pathlib.Path(__file__).parents[2] / "docs" / "content"
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page):
    return FENCE.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))


def code_lines(text):
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.row("S1-45")
@pytest.mark.parametrize(("page", "most"), [("strategies", 60), ("adapters", 40)])
def test_what_an_author_writes_is_short_and_runs(page, most, tmp_path, monkeypatch):
    own, *rest = blocks(page)
    assert len(code_lines(own)) < most
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join([own, *rest]), page, "exec"), {"__name__": page})


def test_a_strategy_from_the_page_is_loaded_by_its_name(tmp_path, monkeypatch):
    from execsafe.bot import config
    from execsafe.bot.runner import make_strategy

    (tmp_path / "my_module.py").write_text(blocks("strategies")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    chosen = config.StrategyConfig(name="my_module:Breakout", symbols=("ETH/USDT:USDT",), settings={"window": 12})
    assert type(make_strategy(chosen)).__name__ == "Breakout"


def test_a_strategy_from_the_page_decides_the_same_twice():
    from execsafe.bot.candles import recorded

    space = {"__name__": "strategies"}
    exec(compile(textwrap.dedent(blocks("strategies")[0]), "strategies", "exec"), space)

    class Flat:
        def position(self, symbol):
            return None

    def decided():
        made = space["Breakout"](["X"], {"window": 12})
        return [d for candle in recorded("ETH/BTC")[:200] for d in made.on_candles({"X": candle}, Flat())]

    first = decided()
    assert first
    assert first == decided()
    assert len({decision.id for decision in first}) == len(first)
