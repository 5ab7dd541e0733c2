"""Lua scripts: what the server runs as one atomic step."""

from __future__ import annotations

import hashlib

import attrs


@attrs.frozen
class Script:
    """A script, and the digest by which a server that has met it knows it."""

    text: bytes
    sha: bytes

    @classmethod
    def of(cls, text: str) -> Script:
        """With its digest."""
        source = text.encode()
        return cls(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())
