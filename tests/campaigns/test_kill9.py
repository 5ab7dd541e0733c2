"""Real processes, a real journal in a real file, and SIGKILL: one order per intent, none lost, none twice."""

import itertools
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from bot_lives import KEYS, Plan, all_of, judge, live, random_plans, records
from execsafe.testing._orders import NewOrder
from tiny_venue import serving

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

RANDOM_KILLS = 60
CAMPAIGN_KILLS = 500


@pytest.fixture
def new_journal(tmp_path: Path) -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"sqlite:///{tmp_path}/{next(numbers)}.db"


@pytest.fixture(scope="module")
def crossings(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many crossings an undisturbed life has."""
    journal = f"sqlite:///{tmp_path_factory.mktemp('whole')}/orders.db"
    with serving() as server:
        life = live(server, journal, recover=False, kill_at=None, kill_after_s=None)
        judge(server, journal, Plan())
        return life.crossings


@pytest.mark.guarantee(1, 2, 3, 13)
def test_g2_killed_before_or_after_any_write_or_request_every_intent_happens_once(
    crossings: int, new_journal: Callable[[], str]
) -> None:
    """Every crossing of an undisturbed life: before the journal, after it, before the send, after the reply, …"""
    assert crossings >= 20
    all_of([Plan(kill_at=number) for number in range(1, crossings + 1)], new_journal)


@pytest.mark.guarantee(1, 2, 3, 13)
def test_g2_killed_at_any_moment_every_intent_happens_once(new_journal: Callable[[], str]) -> None:
    """At random, one bot in four twice."""
    all_of(random_plans(1, RANDOM_KILLS), new_journal)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2, 4))
def test_g2_killed_at_any_moment_many_times(seed: int, new_journal: Callable[[], str]) -> None:
    """The same, for longer."""
    all_of(random_plans(seed, CAMPAIGN_KILLS), new_journal)


def test_a_bot_that_sends_again_after_a_kill_is_found_out(new_journal: Callable[[], str]) -> None:
    """The judgement itself: an order sent twice under one id is not taken for one."""
    journal = new_journal()
    with serving() as server:
        live(server, journal, recover=False, kill_at=None, kill_after_s=None)
        cid = records(journal)["market"].attempts[0].client_order_id
        again = NewOrder(symbol="BTC/USDT", side="buy", quantity=Decimal("0.4"), type="market", client_order_id=cid)
        server.venue.submit(again, server.clock.now_ms())
        with pytest.raises(AssertionError):
            judge(server, journal, Plan())
    assert set(KEYS) == records(journal).keys()
