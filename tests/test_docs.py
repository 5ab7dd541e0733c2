"""Every Python example of the documentation runs as it stands."""

from __future__ import annotations

import pathlib
import re

import pytest

PAGES = pathlib.Path(__file__).parent.parent / "docs" / "content"
_FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def examples(page: pathlib.Path) -> str:
    """All examples of a page in order, as one module: a later one may build on an earlier one."""
    return "\n".join(match.group(1) for match in _FENCE.finditer(page.read_text()))


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    """From top to bottom, in an empty directory, without network or keys."""
    monkeypatch.chdir(tmp_path)
    exec(compile(examples(page), page.name, "exec"), {"__name__": page.stem})


def test_every_page_is_in_the_navigation():
    """A page that nobody can reach might as well not exist."""
    navigation = (PAGES.parent / "mkdocs.yml").read_text()
    assert [page.name for page in sorted(PAGES.glob("*.md")) if f" {page.name}\n" not in navigation] == []


def test_an_example_that_fails_would_be_noticed(tmp_path):
    """The runner runs what is in a fence, and nothing else."""
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\n```\n\n```console\n$ false\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        exec(compile(examples(page), page.name, "exec"), {})
