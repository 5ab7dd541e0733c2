"""The public face: what `execsafe` exports, that it is documented, and that importing it stays light.

`public_names.txt` is the agreed list: a name comes or goes only on purpose. After a deliberate change:

    python -c "import execsafe; print(*sorted(execsafe.__all__), sep='\\n')" > tests/public_names.txt
"""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import execsafe

AGREED = Path(__file__).with_name("public_names.txt")
HEAVY = {"aiohttp", "ccxt", "coredis", "rich", "sqlite3", "trio"}


def is_private(name: str) -> bool:
    return name.startswith("_") and name != "__version__"


def test_the_public_names_are_the_agreed_ones():
    assert sorted(execsafe.__all__) == AGREED.read_text(encoding="utf-8").split()


def test_no_public_name_is_listed_twice_or_private():
    assert len(execsafe.__all__) == len(set(execsafe.__all__))
    assert [name for name in execsafe.__all__ if is_private(name)] == []


def test_dir_shows_every_public_name():
    """Names that are resolved lazily must not be invisible to completion."""
    assert set(execsafe.__all__) <= set(dir(execsafe))


@pytest.mark.parametrize("name", execsafe.__all__)
def test_a_public_name_resolves_and_is_documented(name):
    thing = getattr(execsafe, name)

    if inspect.isclass(thing):
        assert (vars(thing).get("__doc__") or "").strip(), "an inherited docstring describes something else"
    elif inspect.isroutine(thing):
        assert (thing.__doc__ or "").strip()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        execsafe.no_such_name  # noqa: B018


def test_importing_execsafe_stays_light():
    """ccxt alone costs 0.4 s and 100 MB; no user pays for what they do not use."""
    script = "import json, sys, execsafe; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert set(json.loads(done.stdout)) & HEAVY == set()
