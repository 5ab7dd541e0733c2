"""A broken guarantee, as a value."""

from __future__ import annotations

import attrs


@attrs.frozen
class Violation:
    """One broken guarantee.

    Attributes:
        guarantee: its number in the guarantees' document, or ``"errors"`` for an untyped exception.
        key: the intent concerned; empty where it is none.
        at_ms: when, in true Unix milliseconds.
        evidence: what was found, in words.
        seed: of the run.
    """

    guarantee: str
    key: str
    at_ms: int
    evidence: str
    seed: int | None = None

    def __str__(self) -> str:
        return f"{self.guarantee} {self.key} at {self.at_ms}: {self.evidence}"
