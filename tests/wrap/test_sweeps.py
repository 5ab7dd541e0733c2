"""What ended longer ago than the retention is forgotten, though nobody runs a loop for it."""

from __future__ import annotations

import logging

import pytest

from execsafe.errors import StoreUnavailable
from execsafe.model.intent import IntentState
from wrap.rig import MARKETABLE, a_rig, buy

pytestmark = [pytest.mark.anyio, pytest.mark.guarantee(14)]
HOUR_MS, DAY_MS = 3_600_000, 86_400_000


class Clock:
    def __init__(self, rig) -> None:
        self.rig, self.ahead_ms = rig, 0

    def now_ms(self) -> int:
        return self.rig.server.clock.now_ms() + self.ahead_ms


@pytest.mark.parametrize("by", ["recover", "create"])
async def test_ended_records_are_forgotten_and_live_ones_never(by):
    async with a_rig() as rig:
        clock = Clock(rig)
        guarded = await rig.guard(clock=clock)
        await buy(guarded, "ended", price=MARKETABLE)
        await buy(guarded, "rests")
        clock.ahead_ms = 8 * DAY_MS
        if by == "recover":
            await guarded.recover()
        else:
            await buy(guarded, "next")
        assert await guarded.registry.find("ended") is None
        assert (await guarded.registry.find("rests")).state is IntentState.LIVE


async def test_a_create_sweeps_at_most_once_an_hour(monkeypatch):
    async with a_rig() as rig:
        clock, swept = Clock(rig), []
        guarded = await rig.guard(clock=clock)

        async def purge() -> int:
            swept.append(clock.ahead_ms)
            return 0

        monkeypatch.setattr(guarded.registry, "purge", purge)
        minutes = (0, 58, 61, 62, 119, 125, 126)
        for minute in minutes:
            clock.ahead_ms = minute * 60_000
            await buy(guarded, f"k{minute}")
        assert [at_ms // 60_000 for at_ms in swept] == [61, 125]


async def test_a_sweep_that_fails_is_logged_and_spoils_no_order(monkeypatch, caplog):
    async with a_rig() as rig:
        clock = Clock(rig)
        guarded = await rig.guard(clock=clock)

        async def purge() -> int:
            raise StoreUnavailable("locked")

        monkeypatch.setattr(guarded.registry, "purge", purge)
        clock.ahead_ms = 2 * HOUR_MS
        with caplog.at_level(logging.WARNING, "execsafe.wrap"):
            order = await buy(guarded)
        assert order["status"] == "open"
        assert "could not be purged (StoreUnavailable)" in caplog.text
        assert (await guarded.recover()).unresolved == ()
