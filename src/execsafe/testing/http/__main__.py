"""``python -m execsafe.testing.http``: a venue in a process of its own, which outlives the clients it serves.

Prints one line, ``{"url": "http://127.0.0.1:…"}``, once it serves, and runs until it is told to end. With
``--ledger-file`` each entry of the hidden ledgers is appended there, as it happens, with the venue's name.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from execsafe.testing.faults import Fault, FaultPlan
from execsafe.testing.http.server import FACES, VenueServer, default_venue
from execsafe.testing.ledger import Entry


def _writer(file: TextIO, venue: str) -> Callable[[Entry], None]:
    def write(entry: Entry) -> None:
        file.write(json.dumps({"venue": venue, **entry.as_dict()}) + "\n")
        file.flush()  # a reader must see it although this process is killed next

    return write


async def _serve(options: argparse.Namespace, file: TextIO | None) -> None:
    venues = {name: default_venue(name) for name in FACES}
    rates = {Fault(name): options.rate for name in options.faults.split(",") if name}
    plans = {name: FaultPlan(options.seed, rates) for name in venues}
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    if file is not None:
        for name, venue in venues.items():
            venue.ledger.on_append = _writer(file, name)
    async with VenueServer(venues, plans=plans, port=options.port) as server:
        sys.stdout.write(json.dumps({"url": server.url}) + "\n")
        sys.stdout.flush()
        await ended.wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m execsafe.testing.http", description="simulated venues")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--ledger-file", help="append every ledger entry to this file, JSON lines")
    parser.add_argument("--seed", type=int, default=0, help="of the random faults")
    parser.add_argument("--faults", default="", help="comma-separated fault names to draw from")
    parser.add_argument("--rate", type=float, default=0.1, help="probability of each of them per request")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        path = options.ledger_file
        file = stack.enter_context(Path(path).open("a", encoding="utf-8")) if path else None
        asyncio.run(_serve(options, file))


if __name__ == "__main__":
    main()
