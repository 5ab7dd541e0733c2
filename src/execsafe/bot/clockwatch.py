"""Looks whether the machine's clock was set after the bot had started: until a restart, one of the two is wrong."""

from __future__ import annotations

import logging
from typing import Final, NoReturn

import anyio

import execsafe
from execsafe.clock import wall_ahead_ms
from execsafe.model.values import check_seconds

_log = logging.getLogger("execsafe.bot.clockwatch")
_EVERY_S: Final = 60.0
_AGAIN_MS: Final = 600_000


class ClockWatch:
    """Says so, and lets no entry pass, while the bot's clock and the wall clock are too far apart.

    The bot's clock took its time from the wall clock when it was made, and goes its own way since: no step of the wall
    clock changes a verdict of a running process (:class:`execsafe.SystemClock`). But a step mostly means that the time
    was wrong before, so that the bot goes by a wrong time. Candles then come late, and what is said of orders is proven
    for clocks that agree only. It is told as an error, at once and then every ten minutes; a restart puts it right. If
    the wall clock comes back, entries pass again.

    A pre-trade check; exits are not asked, and :meth:`run` looks once a minute.

    Args:
        clock: the clock that the bot goes by. One that knows of no other is always right.
        bound_s: how far they may be apart; the venue's ``clock_skew_s``, as guarantees hold up to that.

    Raises:
        InvalidInput: a bound that is no time.
    """

    def __init__(self, clock: execsafe.Clock, *, bound_s: float) -> None:
        check_seconds(bound_s, "bound_s", least=0)
        self._clock = clock
        self._bound_ms = round(bound_s * 1000)
        self._told_ms: int | None = None

    async def run(self) -> NoReturn:
        """Look once a minute, until cancelled."""
        while True:
            self.look()
            await anyio.sleep(_EVERY_S)

    def look(self) -> str:
        """What is wrong; empty: nothing."""
        ahead_ms = wall_ahead_ms(self._clock)
        if abs(ahead_ms) <= self._bound_ms:
            if self._told_ms is not None:
                self._told_ms = None
                _log.info("the machine's clock and the bot's agree again: entries pass")
            return ""
        where = "ahead of" if ahead_ms > 0 else "behind"
        wrong = (
            f"the machine's clock is {abs(ahead_ms) / 1000:.1f} s {where} the bot's, which goes on from the time of "
            f"its start; {self._bound_ms / 1000:g} s are allowed"
        )
        self._tell(wrong)
        return wrong

    def _tell(self, wrong: str) -> None:
        now_ms = self._clock.now_ms()
        if self._told_ms is None or now_ms - self._told_ms >= _AGAIN_MS:
            self._told_ms = now_ms
            _log.error(
                "%s: it was set meanwhile, or the machine was paused. No entry passes; positions are looked after. "
                "Restart the bot when the machine's clock is right",
                wrong,
            )

    async def check(self, intent: execsafe.Intent, instrument: execsafe.Instrument) -> None:  # noqa: ARG002 - a port's
        """Refuse an entry, for now, while the clocks are too far apart.

        Raises:
            TradingDenied: with the reason ``"state_unknown"``.
        """
        if not intent.reduce_only and (wrong := self.look()):
            raise execsafe.TradingDenied(
                f"{wrong}: restart the bot", intent_key=intent.key, reason=execsafe.DenyReason.STATE_UNKNOWN
            )
