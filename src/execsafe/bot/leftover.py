"""What a stop leaves."""

from __future__ import annotations

from typing import Final

import attrs

import execsafe

_IN_DOUBT: Final = frozenset(
    {execsafe.IntentState.SENDING, execsafe.IntentState.IN_DOUBT, execsafe.IntentState.UNRESOLVED}
)


@attrs.frozen(kw_only=True)
class Leftover:
    """What a stop could not end: positions that are open, and orders nobody knows the outcome of."""

    positions: tuple[execsafe.Position, ...] = ()
    in_doubt: tuple[execsafe.IntentRecord, ...] = ()

    @property
    def is_nothing(self) -> bool:
        """Whether the account is flat and everything is known."""
        return not self.positions and not self.in_doubt


async def leftover_of(registry: execsafe.IntentRegistry, book: execsafe.PositionBook, account: str) -> Leftover:
    """What is recorded of it.

    Raises:
        StoreError: it cannot be read.
    """
    records = await registry.open_records(account)
    return Leftover(
        positions=book.open_positions(account),
        in_doubt=tuple(record for record in records if record.state in _IN_DOUBT),
    )
