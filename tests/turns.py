"""Cancels a call at any turn of its event loop, in virtual time, on asyncio and on trio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import trio

from execsafe.testing.loop import run_simulated, run_simulated_trio

T = TypeVar("T")


class Turns:
    """Counts the turns of tasks while its ``scope`` is set, and cancels that at one of them. ``at`` None: at none."""

    def __init__(self, at: int | None = None) -> None:
        self.count = 0
        self.scope: anyio.CancelScope | None = None
        self._at = at

    def turn(self, _number: int = 0) -> None:
        if self.scope is not None:
            self.count += 1
            if self.count == self._at:
                self.scope.cancel()


class _TrioTurns(trio.abc.Instrument):
    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def before_task_step(self, task: Any) -> None:
        self._turns.turn()


def run_in_turns(backend: str, turns: Turns, play: Callable[..., Awaitable[T]], *args: Any) -> T:
    """What ``play(*args)`` returns, run in virtual time on *backend* with *turns* counting."""
    if backend == "asyncio":
        return run_simulated(play, *args, on_step=turns.turn)

    async def main() -> T:
        instrument = _TrioTurns(turns)
        trio.lowlevel.add_instrument(instrument)
        try:
            return await play(*args)
        finally:
            trio.lowlevel.remove_instrument(instrument)

    return run_simulated_trio(main)
