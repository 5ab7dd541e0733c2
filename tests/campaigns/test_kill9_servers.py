"""Real processes with their journal on a real PostgreSQL or Valkey server: the bots are killed, and the servers too."""

from __future__ import annotations

import itertools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import attrs
import pytest

from bot_lives import AT_ONCE, KEYS, Plan, all_of, judge, live, random_plans
from postgres_server import Server, new_schema, postgres_server, with_option  # noqa: F401 - a fixture
from servers import RedisServer
from tiny_venue import TinyVenue, serving

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

# A sample in every run, each crossing and hundreds more in the campaign.
EVERY_NTH_CROSSING = 10
RANDOM_KILLS = 4
JOURNALS = 6
CAMPAIGN_KILLS = 250
CAMPAIGN_JOURNALS = 100
LIVES_MAX = 60
UP_S = (0.2, 1.2)
LONG_UP_S = (3.0, 6.0)  # every fourth time: also a slow machine comes to an end
DOWN_S = (0.0, 0.3)
# What a bot may say whose journal went away under it.
OF_THE_STORE = {"StoreUnavailable", "OutcomeUnknown", "TradingDenied"}


@attrs.frozen
class Place:
    """A server where bots keep their journals."""

    new_journal: Callable[[], str]
    kill: Callable[[], None]
    start: Callable[[], None]


@pytest.fixture(scope="module", params=["postgres", "redis"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if request.param == "postgres":
        server: Server = request.getfixturevalue("postgres_server")
        yield Place(
            lambda: with_option(server.dsn, f"schema={new_schema()}"),
            lambda: server.stop(immediately=True),
            server.start,
        )
        return
    numbers = itertools.count()
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="always") as redis:
        yield Place(lambda: redis.url(f"j{next(numbers)}", require="power"), redis.kill, redis.start)


def crossings_at(place: Place) -> int:
    """How many crossings an undisturbed life has."""
    journal = place.new_journal()
    with serving() as venue:
        life = live(venue, journal, recover=False, kill_at=None, kill_after_s=None)
        judge(venue, journal, Plan())
        return life.crossings


@pytest.mark.guarantee(1, 2, 3, 13)
def test_g2_a_bot_is_killed_and_its_journal_on_a_server_knows_every_intent(place: Place) -> None:
    """At a sample of its crossings and at random; one bot in four twice."""
    crossings = crossings_at(place)
    assert crossings >= 20
    plans = [Plan(kill_at=number) for number in range(1, crossings + 1, EVERY_NTH_CROSSING)]
    all_of([*plans, *random_plans(1, RANDOM_KILLS)], place.new_journal)


@pytest.mark.guarantee(1, 2, 3, 12, 13)
def test_g2_the_server_is_killed_under_the_bots_and_every_intent_happens_once(place: Place) -> None:
    """Again and again; each bot is started anew until it is through."""
    all_survive(place, seed=1, count=JOURNALS)


@pytest.mark.campaign
def test_g2_a_bot_is_killed_many_times(place: Place) -> None:
    """At every crossing, and at random for longer."""
    plans = [Plan(kill_at=number) for number in range(1, crossings_at(place) + 1)]
    all_of([*plans, *random_plans(2, CAMPAIGN_KILLS)], place.new_journal)


@pytest.mark.campaign
def test_g2_the_server_is_killed_many_times(place: Place) -> None:
    """The same, for longer."""
    all_survive(place, seed=2, count=CAMPAIGN_JOURNALS)


def all_survive(place: Place, *, seed: int, count: int) -> None:
    with killing(place, seed) as kills, ThreadPoolExecutor(AT_ONCE) as pool:
        journals = [place.new_journal() for _ in range(count)]
        survivors = list(pool.map(survive, journals))
    for journal, (venue, _) in zip(journals, survivors, strict=True):
        judge(venue, journal, Plan())
    assert len(kills) >= 3
    assert sum(failures for _, failures in survivors) >= 3, "no bot noticed"


def survive(journal: str) -> tuple[TinyVenue, int]:
    """Start a bot until one of its lives comes to its end; the venue, and how many lives did not."""
    with serving() as venue:
        for number in range(LIVES_MAX):
            life = live(venue, journal, recover=number > 0, kill_at=None, kill_after_s=None)
            assert not life.was_killed
            assert life.failed <= OF_THE_STORE, life.said
            if not life.failed and life.told == set(KEYS):
                return venue, number
    raise AssertionError("the bot never came to its end")


@contextmanager
def killing(place: Place, seed: int) -> Iterator[list[float]]:
    """Kill the server at random moments, and start it again; in the end it runs."""
    rng, is_over, kills = random.Random(seed), threading.Event(), []

    def run() -> None:
        while not is_over.wait(rng.uniform(*(LONG_UP_S if len(kills) % 4 == 3 else UP_S))):
            place.kill()
            kills.append(rng.uniform(*DOWN_S))
            is_over.wait(kills[-1])
            place.start()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield kills
    finally:
        is_over.set()
        thread.join()
