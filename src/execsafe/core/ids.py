"""Client order ids: a pure function of account, intent key, leg and generation.

The same inputs give the same id in every process and for ever, so that an order can be found again after a
crash. SHA-256 makes different inputs collide with a probability below 2**-80 per pair; the marker makes our own
orders recognisable among foreign ones.
"""

from __future__ import annotations

import hashlib
from typing import Final

from execsafe.model.venue import IdEncoding, IdRule

MARKER: Final = "xs"
"""First characters of every textual id. Not "t": one venue treats ids that begin with it differently."""

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS: Final = tuple(first + second for first in _ALPHABET for second in _ALPHABET)  # two characters a look-up
_SHIFTS: Final = range(70, -1, -10)


def client_order_id(*, account: str, key: str, leg: str, generation: int, rule: IdRule) -> str:
    """Derive the id of one generation of an intent in the venue's alphabet.

    *generation* counts the ids that a venue has acknowledged the end of; a resend after proven absence keeps it.
    """
    # The lengths make the text unambiguous, whatever characters the parts hold.
    identity = f"execsafe/1 {len(account)}.{len(key)}.{len(leg)} {account}{key}{leg}{generation}"
    digest = hashlib.sha256(identity.encode()).digest()
    if rule.encoding is IdEncoding.TEXT:
        # With the marker 18 characters: the longest that every venue in scope accepts as free text.
        return (MARKER + _base32(digest[:10]))[: rule.length_max]
    if rule.encoding is IdEncoding.HEX128:
        return f"0x{digest[:16].hex()}"
    return str((int.from_bytes(digest[:8], "big") >> 1) or 1)


def _base32(data: bytes) -> str:
    """RFC 4648 base 32 of ten bytes, in lower case."""
    number = int.from_bytes(data, "big")
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])
