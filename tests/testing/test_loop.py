"""Virtual time: instant, seeded, deadlock-proof, and mortal at every step."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from execsafe.testing.clock import EPOCH_MS, VirtualClock
from execsafe.testing.loop import ProcessKilled, SimDeadlock, SimLoop, count_steps, run_simulated, run_simulated_trio

RUNNERS = [pytest.param(run_simulated, id="asyncio"), pytest.param(run_simulated_trio, id="trio")]


async def race(log):
    """Eight tasks contend for the same instants; then all of them are cancelled at once."""

    async def runner(number):
        try:
            for lap in range(3):
                await anyio.sleep(1)
                log.append((lap, number))
            await anyio.sleep_forever()
        finally:
            log.append(("stopped", number))

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(runner, number)
        await anyio.sleep(10)
        group.cancel_scope.cancel()
    return tuple(log)


@pytest.mark.parametrize("run", RUNNERS)
def test_a_week_of_sleep_takes_no_time_and_ends_exactly_then(run):
    async def main():
        start_s = anyio.current_time()
        await anyio.sleep(7 * 86_400)
        return anyio.current_time() - start_s

    assert run(main) == pytest.approx(7 * 86_400)


@pytest.mark.parametrize("run", RUNNERS)
def test_the_same_seed_gives_the_same_order_and_another_seed_another(run):
    orders = {seed: run(race, [], seed=seed) for seed in range(6)}

    assert all(run(race, [], seed=seed) == order for seed, order in orders.items())
    assert len(set(orders.values())) > 1


def test_without_a_seed_the_order_is_first_in_first_out():
    async def main():
        seen = []

        async def runner(number):
            for _ in range(3):
                seen.append(number)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(runner, number)
        return seen

    assert run_simulated(main, seed=None) == list(range(5)) * 3
    assert run_simulated(main, seed=0) != list(range(5)) * 3


@pytest.mark.parametrize("runner", ["run_simulated", "run_simulated_trio"])
def test_the_order_depends_neither_on_hash_seeds_nor_on_addresses(runner):
    """Sets of tasks are cancelled in address order; the loop sorts before it shuffles."""
    script = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from execsafe.testing.loop import *\nfrom test_loop import race\n"
        f"print([{runner}(race, [], seed=seed) for seed in range(5)])"
    )

    def run(hash_seed, junk):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        code = f"junk = [object() for _ in range({junk})]\n{script}"
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout

    assert len({run("0", 0), run("1", 1_001), run("2", 77_777)}) == 1


def test_the_fingerprint_tells_runs_apart():
    def fingerprint(seed):
        loops = []
        run_simulated(race, [], seed=seed, on_loop=loops.append)
        return loops[0].fingerprint

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)


def test_a_deadlock_is_an_error_not_a_hang():
    with pytest.raises(SimDeadlock, match="nothing is ready"):
        run_simulated(anyio.sleep_forever)


def test_waiting_with_a_time_out_is_no_deadlock():
    async def main():
        with anyio.move_on_after(60) as scope:
            await anyio.Event().wait()
        return scope.cancelled_caught

    assert run_simulated(main) is True


def test_a_kill_at_any_step_runs_no_clean_up():
    """As with kill -9: no finally block, no handler, not even at the end of the loop."""
    steps = count_steps(race, [])
    assert steps > 40

    for step in range(1, steps + 1):
        log = []
        with pytest.raises(ProcessKilled, match=f"before step {step}$"):
            run_simulated(race, log, crash_at=step)
        alive = [entry for entry in log if entry[0] != "stopped"]
        whole = run_simulated(race, [])
        assert log == list(whole[: len(log)])
        assert len(alive) == len(log) or len(alive) == 24  # clean-up only where the undisturbed run had it


def test_killed_runs_are_laid_to_rest_without_a_word(caplog):
    """Their frozen coroutines are closed long after, in silence; warnings are errors here."""
    for _ in range(70):
        with pytest.raises(ProcessKilled):
            run_simulated(race, [], crash_at=30)
    gc.collect()
    assert caplog.records == []


def test_a_cancel_at_any_step_runs_all_clean_up():
    async def main(log):
        try:
            for lap in range(5):
                await anyio.sleep(1)
                log.append(lap)
        finally:
            log.append("clean")

    for step in range(2, count_steps(main, []) + 1):
        log = []
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            run_simulated(main, log, cancel_at=step)
        assert type(caught.value).__name__ == "CancelledError"
        assert log[-1:] == ["clean"]


def test_time_runs_on_for_the_successor_of_a_killed_process():
    clock = VirtualClock()

    async def live():
        await anyio.sleep(3)
        clock.now_ms()
        await anyio.sleep(3)

    with pytest.raises(ProcessKilled):
        run_simulated(live, crash_at=count_steps(live) - 3)
    clock.skip(500)

    async def successor():
        await anyio.sleep(1)
        return clock.now_ms()

    assert run_simulated(successor) >= EPOCH_MS + 3_000 + 500 + 1_000


def test_work_for_an_executor_runs_inline():
    loop = SimLoop()

    async def main():
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)
        return await loop.run_in_executor(None, lambda: 42)

    assert loop.run_until_complete(main()) == 42
    loop.close()


def test_steps_can_be_watched():
    seen = []
    run_simulated(anyio.sleep, 1, on_step=seen.append)

    assert seen == list(range(1, len(seen) + 1))
