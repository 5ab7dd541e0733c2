"""Clocks: one follows the loop, one is moved by hand."""

import anyio
import pytest

from execsafe.testing.clock import EPOCH_MS, ManualClock, VirtualClock

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("ms", [1, 3, 7, 100, 333])
async def test_the_virtual_clock_follows_the_loop_to_the_millisecond(ms):
    """Float seconds do not add up to whole milliseconds; the clock's do."""
    clock = VirtualClock()
    start_ms = clock.now_ms()
    for count in range(1, 300):
        await anyio.sleep(ms / 1000)
        assert clock.now_ms() == start_ms + count * ms


async def test_a_skewed_view_differs_by_its_skew_and_the_skew_can_step():
    clock = VirtualClock()
    machine = clock.skewed(-300)
    assert machine.now_ms() == clock.now_ms() - 300

    machine.skew_ms = 3_600_000
    start_ms = clock.now_ms()
    await anyio.sleep(1)

    assert machine.now_ms() == start_ms + 1_000 + 3_600_000


async def test_the_clocks_own_skew_moves_what_it_shows_but_not_true_time():
    clock = VirtualClock(skew_ms=250)

    assert clock.now_ms() - clock.true_ms() == 250


async def test_a_clock_starts_at_its_epoch_when_it_is_made():
    VirtualClock().now_ms()
    await anyio.sleep(5)

    assert VirtualClock().now_ms() == EPOCH_MS


def test_time_stands_still_outside_a_loop_unless_skipped():
    clock = VirtualClock()
    assert clock.now_ms() == clock.now_ms() == EPOCH_MS

    clock.skip(5_000)

    assert clock.now_ms() == EPOCH_MS + 5_000


@pytest.mark.row("X-02")
def test_the_manual_clock_moves_only_when_told():
    clock = ManualClock()

    assert clock.advance(ms=5, s=1.5) == EPOCH_MS + 1_505
    clock.set(7)
    assert clock.now_ms() == 7
    assert clock.advance(ms=-2) == 5
