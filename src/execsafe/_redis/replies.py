"""What errors of the server and of the connection mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import attrs

from execsafe.core.redaction import redact

_UNKNOWN: Final = "nothing is known of the write, if it was one"
# By the code with which the server begins its error, wherever it stands: older servers put it behind their own words.
_CODES: Final = {
    "READONLY": "the server is a replica: give the address of the primary",
    "WRONGTYPE": "something else is kept under the same name",
    "OOM": "the server's memory is full: raise maxmemory, or purge",
    "MISCONF": "the server cannot write to its disk",
    "NOREPLICAS": "the server has fewer replicas than it was told to have",
    "MASTERDOWN": "the server is a replica without a primary",
    "LOADING": "the server is still loading its data",
    "BUSY": "the server is busy with somebody's script",
    "NOAUTH": "the server wants a password",
    "WRONGPASS": "the server does not accept the user or password",
    "NOPERM": "the user may not do what is needed",
    "MOVED": "another node of the cluster has the slot: give that node's address",
    "CLUSTERDOWN": "the cluster is down",
}
# The client takes the code out of the text of these, and puts it into the name of their class.
_CLASSES: Final = {
    "ReadOnlyError": "READONLY",
    "WrongTypeError": "WRONGTYPE",
    "BusyLoadingError": "LOADING",
    "AuthenticationRequiredError": "NOAUTH",
    "AuthenticationFailureError": "WRONGPASS",
    "AuthorizationError": "NOPERM",
    "MovedError": "MOVED",
    "AskError": "MOVED",
    "ClusterDownError": "CLUSTERDOWN",
}
_CODE: Final = re.compile(rf"\b({'|'.join(_CODES)})\b")


# After these the server will say the same for good; behind its address another one may stand by now.
_OVER: Final = frozenset({"READONLY", "MASTERDOWN", "LOADING", "NOAUTH", "MOVED", "CLUSTERDOWN"})


class BadAuthorities(OSError):
    """The file with the authorities to trust cannot be used; nothing was sent."""


@attrs.frozen
class Meaning:
    """An error's code, or the name of its class, and a sentence about it."""

    code: str
    text: str


def meaning_of(error: Exception, secrets: Sequence[str]) -> Meaning:
    """What the client raised; the text never holds one of *secrets*."""
    name, code = type(error).__name__, _code_of(error)
    if code is not None:
        return Meaning(code, _CODES[code])
    if isinstance(error, BadAuthorities):
        return Meaning("ca_file", str(error))
    if isinstance(error, OSError):  # only while connecting: later, the client has errors of its own
        name = type(error.__cause__ if isinstance(error.__cause__, OSError) else error).__name__
        return Meaning(name, f"the server cannot be reached ({name}): nothing was sent")
    if "Connection" in name or name == "ProtocolError":
        return Meaning(name, f"the connection to the server failed ({name}): {_UNKNOWN}")
    said = redact(str(error), secrets)[:200]
    return Meaning(name, f"the server refused ({name}): {said}")


def is_over(error: Exception) -> bool:
    """Whether the connection on which *error* came is of no use any more: a new one may lead to another server."""
    return _code_of(error) in _OVER


def _code_of(error: Exception) -> str | None:
    code = _CLASSES.get(type(error).__name__)
    if code is None and (match := _CODE.search(str(error))):
        code = match[1]
    return code
