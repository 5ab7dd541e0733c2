"""Client order ids: the same in every process and for ever, in the venue's alphabet, never shared."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from execsafe.core.ids import MARKER, _base32, client_order_id
from execsafe.model.venue import IdEncoding, IdRule

RULES = {
    "portable": IdRule(),
    "short": IdRule(length_max=16),
    "long": IdRule(length_max=36),
    "hex": IdRule(encoding=IdEncoding.HEX128, length_max=34),
    "int": IdRule(encoding=IdEncoding.INT63, length_max=19),
}
ALPHABET = {
    IdEncoding.TEXT: set("0123456789abcdefghijklmnopqrstuvwxyz"),
    IdEncoding.HEX128: set("0123456789abcdefx"),
    IdEncoding.INT63: set("0123456789"),
}
PARTS = ["", "a", "b", "ab", ":", "a:", ":a", "|", ",", '"', '","', "[", "\\", "\\\\", "1", "0", "é", "e\u0301", "買"]


def make(account, key, leg, generation, rule):
    return client_order_id(account=account, key=key, leg=leg, generation=generation, rule=rule)


@pytest.mark.guarantee(1)
@given(strategies.accounts, strategies.keys, strategies.legs, st.integers(0, 99), st.sampled_from(list(RULES)))
@pytest.mark.row("S0-14")
def test_g1_an_id_fits_its_rule_and_is_recognisably_ours(account, key, leg, generation, name):
    """Alphabet, length, marker; and never "t" first, which one venue treats differently."""
    rule = RULES[name]
    made = make(account, key, leg, generation, rule)
    assert set(made) <= ALPHABET[rule.encoding]
    assert 1 <= len(made) <= rule.length_max
    assert not made.lower().startswith("t")
    if rule.encoding is IdEncoding.TEXT:
        assert made.startswith(MARKER)
        assert len(made) == min(18, rule.length_max)
    elif rule.encoding is IdEncoding.HEX128:
        assert made.startswith("0x")
        assert len(made) == 34
    else:
        assert 1 <= int(made) < 2**63
        assert made == str(int(made))


@pytest.mark.guarantee(1)
@pytest.mark.parametrize("name", RULES)
def test_g1_distinct_inputs_have_distinct_ids(name):
    """Over 13,000 names made of separators, so that no two can be glued into the same text."""
    inputs = list(itertools.product(PARTS[1:], PARTS[1:], PARTS, range(2)))
    assert len({make(*parts, RULES[name]) for parts in inputs}) == len(inputs)


@pytest.mark.guarantee(1)
@given(st.lists(st.tuples(strategies.accounts, strategies.keys, strategies.legs, st.integers(0, 9)), unique=True))
@pytest.mark.row("S0-14", "S0-13")
def test_g1_random_distinct_inputs_have_distinct_ids(inputs):
    assert len({make(*parts, RULES["portable"]) for parts in inputs}) == len(inputs)


_OTHER_PROCESS = """
import json, sys
from execsafe.core.ids import client_order_id
from execsafe.model.venue import IdRule
cases = json.load(sys.stdin)
print(json.dumps([client_order_id(account=a, key=k, leg=l, generation=g, rule=IdRule(encoding=e, length_max=m))
                  for a, k, l, g, e, m in cases]))
"""


@pytest.mark.guarantee(1)
def test_g1_another_process_derives_the_same_ids():
    """With another hash seed: a restarted bot finds the orders of the one that was killed."""
    cases = [
        (account, key, leg, generation, rule.encoding.value, rule.length_max)
        for rule in RULES.values()
        for account, key, leg, generation in itertools.product(["default", "買"], PARTS[1:], ["", "b"], [0, 7])
    ]
    here = [make(a, k, g, n, IdRule(encoding=e, length_max=m)) for a, k, g, n, e, m in cases]
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert json.loads(done.stdout) == here


@pytest.mark.guarantee(1)
@settings(max_examples=1000, deadline=None)
@given(st.binary(min_size=10, max_size=10))
def test_g1_an_ids_text_is_base_32(data):
    """The quick way of writing it and the standard library's agree."""
    assert _base32(data) == base64.b32encode(data).decode().lower()


@pytest.mark.guarantee(1)
def test_g1_ids_are_the_same_in_every_release():
    """A change of these would orphan every open order at the next upgrade."""
    assert make("default", "signal-42", "", 0, RULES["portable"]) == "xsnfgtvf7nfgnxu6u3"
    assert make("default", "signal-42", "", 1, RULES["portable"]) == "xs36t7z5lffogcnnb4"
    assert make("default", "signal-42", "", 0, RULES["hex"]) == "0x694d3a97ed299b7a7a9bb186d0388311"
    assert make("default", "signal-42", "", 0, RULES["int"]) == "3793892685691276733"
