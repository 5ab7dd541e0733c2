"""Several statements in one message.

One message costs one round trip, whatever is in it. And the server has all of it before it begins: it never waits for
us between two statements, while it holds the lock and counts us as working. Between two messages it counts us as idle
within a transaction, which it bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import psycopg

from execsafe.errors import StoreUnavailable

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
Rows: TypeAlias = list[tuple[Any, ...]]


class Script:
    """Statements, and where to find their answers."""

    def __init__(self) -> None:
        self._statements: list[str] = []
        self._values: list[Any] = []

    def __bool__(self) -> bool:
        return bool(self._statements)

    def add(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Append a statement; returns its place among the answers."""
        self._statements.append(statement)
        self._values += values
        return len(self._statements) - 1

    def run(self, connection: Connection) -> list[Rows]:
        """Send them; the rows of each, none for those that have none.

        Raises:
            psycopg.Error: the first that failed; those after it have not been carried out.
            StoreUnavailable: COMMIT has not committed.
        """
        # A client-side cursor puts the values into the text, as only one statement can have them apart from it.
        with psycopg.ClientCursor(connection) as cursor:
            cursor.execute(";\n".join(self._statements), self._values)
            answers: list[Rows] = []
            for statement in self._statements:
                answers.append(cursor.fetchall() if cursor.description else [])
                if statement == "COMMIT" and cursor.statusmessage != "COMMIT":
                    raise StoreUnavailable(f"the server answered COMMIT with {cursor.statusmessage}")
                cursor.nextset()
        return answers
