"""Asking a venue for a list through ccxt, and refusing answers that do not hold one.

ccxt makes an empty list of an answer that is none (HTML, an empty body, an error it does not know). Where a list
decides whether a position exists or a stop is alive, that is the most dangerous value there is: so the raw body is
looked at below ccxt, and must hold its list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from decimal import Decimal
from typing import Any, Final, Protocol

import attrs

from execsafe.errors import UnsupportedByVenue
from execsafe.model.values import EMPTY_PARAMS, Params
from execsafe.ports import Clock
from execsafe.venues import _parsing, _wire
from execsafe.venues._shapes import AnswerUnusable, markets_of

_PAGES_MAX: Final = 100


class Asker(Protocol):
    """What asking needs of the adapter."""

    exchange: Any
    exchange_id: str
    family: str

    @property
    def clock(self) -> Clock:
        """Unix milliseconds."""
        ...

    async def ready(self) -> None:
        """Know the markets, and the account's mode: without it some clients silently read another account."""
        ...

    def paced(self, *, urgent: bool) -> AbstractContextManager[None]:
        """Around one request: refused while the venue wants to be left alone."""
        ...


@attrs.frozen(kw_only=True)
class Ask:
    """One request of a list.

    Attributes:
        params: what it adds to ccxt's call.
        rows_at: dotted paths, one of which leads to the rows in the raw answer (``""``: the answer is the list;
            a number: an index; ``*``: the only member; ``{}`` at the end: a mapping of rows). Empty: not known, any
            JSON will do.
        page: how many rows an answer holds at most; a full one leaves the rest open.
        sends_limit: whether ``page`` is sent as ccxt's limit.
        cursor_at, cursor_as: where a full answer says how to go on, and the parameter that does.
        null_is_empty: whether the venue writes null for a list without rows.
    """

    params: Params = EMPTY_PARAMS
    rows_at: tuple[str, ...] = ()
    page: int | None = None
    sends_limit: bool = True
    cursor_at: str = ""
    cursor_as: str = "cursor"
    null_is_empty: bool = False

    @property
    def limit(self) -> int | None:
        """ccxt's ``limit``."""
        return self.page if self.sends_limit else None


@attrs.frozen(kw_only=True)
class Answer:
    """What ccxt made of an answer, the answer itself, its rows as the venue wrote them, and how to go on."""

    value: Any
    body: Any = None
    rows: tuple[Any, ...] = ()
    cursor: str = ""


@attrs.frozen(kw_only=True)
class Listing:
    """A complete list: ccxt's structures, and the rows as the venue wrote them."""

    structures: tuple[Mapping[str, Any], ...]
    rows: tuple[Any, ...]


def at(body: object, path: str) -> Any:
    """The value at a dotted path; ``*`` stands for the only member. None where there is none."""
    value: Any = body
    for name in path.split(".") if path else ():
        if isinstance(value, Mapping):
            value = next(iter(value.values())) if name == "*" and len(value) == 1 else value.get(name)
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


async def ask(
    adapter: Asker, method: str, *arguments: Any, how: Ask, params: Mapping[str, Any] | None = None
) -> Answer:
    """One request. Exits need what is read here, so it is tried again before a ban is over: once per pause.

    Raises:
        UnsupportedByVenue: the exchange object has no such method.
        VenueUnavailable: the venue asked to be left alone. Nothing was sent.
        AnswerUnusable: the raw answer holds no list.
        Exception: whatever ccxt raises.
    """
    call = method_of(adapter, method)
    with adapter.paced(urgent=True), _wire.listening() as bodies:
        value = await call(*arguments, {**how.params.thaw(), **(params or {})})
    if not _wire.is_hooked(adapter.exchange):  # not ccxt: its value is all there is
        return Answer(value=value, body=value, rows=tuple(value) if isinstance(value, list) else ())
    body = bodies[-1] if bodies else None
    cursor = at(body, how.cursor_at) if how.cursor_at else None
    return Answer(value=value, body=body, rows=_rows(body, how, method), cursor=str(cursor or ""))


async def ask_all(adapter: Asker, method: str, *arguments: Any, how: Ask) -> Listing:
    """Every row, page after page.

    Raises:
        AnswerUnusable: no list, or a full page without a way to go on.
    """
    structures: list[Mapping[str, Any]] = []
    rows: list[Any] = []
    extra: dict[str, Any] = {}
    for _ in range(_PAGES_MAX):
        answer = await ask(adapter, method, *arguments, how=how, params=extra)
        structures += listed(answer.value)
        rows += answer.rows
        if how.page is None or len(answer.rows) < how.page:
            return Listing(structures=tuple(structures), rows=tuple(rows))
        if not answer.cursor or answer.cursor == extra.get(how.cursor_as):
            raise AnswerUnusable(f"a full page of {how.page}: there may be more, and no way to ask for it")
        extra = {how.cursor_as: answer.cursor}
    raise AnswerUnusable(f"more than {_PAGES_MAX} pages")


def method_of(adapter: Asker, name: str) -> Any:
    """A method of the exchange object.

    Raises:
        UnsupportedByVenue: it has none, or says that the venue has none.
    """
    call = getattr(adapter.exchange, name, None)
    camel = "".join(part.capitalize() if index else part for index, part in enumerate(name.split("_")))
    told = getattr(adapter.exchange, "has", None)
    if not callable(call) or (isinstance(told, Mapping) and told.get(camel, True) is False):
        raise UnsupportedByVenue(f"{adapter.exchange_id}: its client offers no {camel}")
    return call


async def load_markets(adapter: Asker) -> None:
    """Load the markets, without which the client reads nothing; enough for what is public."""
    load = getattr(adapter.exchange, "load_markets", None)
    if not markets_of(adapter.exchange) and callable(load):
        await load()


def listed(value: object) -> list[Mapping[str, Any]]:
    """ccxt's list, of structures only.

    Raises:
        AnswerUnusable: it is none.
    """
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise AnswerUnusable("the answer is not a list")
    return value


def exact(number: Decimal, texts: Iterable[object]) -> Decimal | None:
    """The text that ccxt read *number* from, exactly: its floats hold 15 digits only. None where it is not there.

    Of several that fit, the smallest: it is never more than what there is.
    """
    wanted = abs(float(number))
    read = (_parsing.signed(text) for text in texts if isinstance(text, (str, int, float)))
    fitting = [abs(value) for value in read if value is not None and abs(float(value)) == wanted]
    return min(fitting).copy_sign(number) if fitting else None


def _rows(body: object, how: Ask, method: str) -> tuple[Any, ...]:
    if not isinstance(body, (Mapping, list)):
        raise AnswerUnusable(f"{method} was answered with something that is not JSON")
    for path in how.rows_at:
        rows = at(body, path.removesuffix("{}"))
        if isinstance(rows, Mapping) and path.endswith("{}"):
            return tuple(rows.values())
        if isinstance(rows, list):
            return tuple(rows)
        parent, _, name = path.rpartition(".")
        holder = at(body, parent)
        if how.null_is_empty and isinstance(holder, Mapping) and name in holder and holder[name] is None:
            return ()
    if how.rows_at or (isinstance(body, Mapping) and not body):
        raise AnswerUnusable(f"the answer to {method} lacks what was asked for")
    return ()
