"""Real processes with their journal on a real PostgreSQL or Valkey server: the bots are killed, and the servers too."""

from __future__ import annotations

import functools
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

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
ROUNDS_MAX = 10
KILLS_EACH = 3  # while a bot lives that many of its lives; then it may come to its end
AFTER_S = (0.0, 0.6)
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
    """At least `count` bots; more of them until the server died twice and half of so many bots noticed.

    How often a server can die while a few bots live depends on how fast the machine starts it again.
    """
    kills = failures = 0
    for number in range(ROUNDS_MAX):
        with Killer(place, seed + number) as killer, ThreadPoolExecutor(AT_ONCE) as pool:
            journals = [place.new_journal() for _ in range(count)]
            survivors = list(pool.map(functools.partial(survive, killer=killer), journals))
        for journal, (venue, _) in zip(journals, survivors, strict=True):
            judge(venue, journal, Plan())
        kills += killer.kills
        failures += sum(failed for _, failed in survivors)
        if kills >= 2 and failures >= count / 2:
            return
    raise AssertionError(f"the server was killed {kills} times, and {failures} bots noticed")


def survive(journal: str, killer: Killer) -> tuple[TinyVenue, int]:
    """Start a bot until one of its lives comes to its end; the venue, and how many lives did not."""
    with serving() as venue:
        for number in range(LIVES_MAX):
            wish = killer.wish if number < KILLS_EACH else lambda: None
            life = live(venue, journal, recover=number > 0, kill_at=None, kill_after_s=None, on_start=wish)
            assert not life.was_killed
            assert life.failed <= OF_THE_STORE, life.said
            if not life.failed and life.told == set(KEYS):
                return venue, number
    raise AssertionError("the bot never came to its end")


class Killer:
    """Kills the server a moment after somebody wished it, and starts it again; in the end it runs."""

    def __init__(self, place: Place, seed: int) -> None:
        self.kills = 0
        self._place = place
        self._rng = random.Random(seed)
        self._wishes = threading.Semaphore(0)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def wish(self) -> None:
        self._wishes.release()

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            if not self._wishes.acquire(timeout=0.2):
                continue
            time.sleep(self._rng.uniform(*AFTER_S))
            self._place.kill()
            self.kills += 1
            time.sleep(self._rng.uniform(*DOWN_S))
            self._place.start()
            while self._wishes.acquire(blocking=False):
                pass  # that one was for all who had wished it by now
