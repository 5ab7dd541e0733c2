"""The ``execsafe`` command. Exit status: 0 as promised, 1 a guarantee was broken, 2 it could not be done."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio

import execsafe

_T = TypeVar("_T")
_SIGNALS_MAX: Final = 48
_SIGNALS_FAST: Final = 12
_STORE_HELP: Final = "e.g. sqlite:///orders.db; without it EXECSAFE_STORE, or the file that EXECSAFE_STORE_FILE names"
_BROKEN: Final = 1
_IMPOSSIBLE: Final = 2
_INTERRUPTED: Final = 130
_NOBODY_READS: Final = 141  # as of a command that SIGPIPE has ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    try:
        options = _parser().parse_args(arguments)
        status: int = options.run(options)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (execsafe.ExecsafeError, OSError, ExceptionGroup) as error:
        reason = _reason(error)
        if reason is None:
            raise
        if isinstance(reason, BrokenPipeError):
            return _read_by_nobody()
        print(f"execsafe: {reason}{_next_step(reason)}", file=sys.stderr)
        return _IMPOSSIBLE
    return status


def _read_by_nobody() -> int:
    """Whoever read the output has had enough (``| head``): no news, and nothing that is left can be shown to them."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _NOBODY_READS


def _reason(error: Exception) -> Exception | None:
    """What to tell a person; None for what only a developer can make sense of."""
    if not isinstance(error, ExceptionGroup):
        return error
    expected, unexpected = error.split((execsafe.ExecsafeError, OSError))
    if expected is None or unexpected is not None:
        return None
    first: Exception = expected
    while isinstance(first, ExceptionGroup):
        first = first.exceptions[0]
    return first


def _next_step(reason: Exception) -> str:
    """What to do about it, where the error itself cannot know."""
    if not isinstance(reason, execsafe.StoreCorrupt) or reason.context.get("is_missing"):
        return ""
    return (
        ". Keep a copy of the file. Then restore the last backup, or move the file away, look at the venue for what is "
        "open, and start with a new one: orders that its journal does not know hold back entries until they have ended"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="execsafe", description="Execution safety for trading bots on ccxt.")
    parser.add_argument("--version", action="version", version=f"execsafe {execsafe.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")

    demo = commands.add_parser(
        "demo", help="the same bot with plain ccxt and with execsafe, on a venue where much goes wrong"
    )
    demo.add_argument("--seed", type=int, default=7, help="of faults and repeated signals (default: %(default)s)")
    demo.add_argument("--signals", type=_signals, help=f"how many, 1 to {_SIGNALS_MAX} (default: all)")
    demo.add_argument("--faults", action=argparse.BooleanOptionalAction, default=True, help="let things go wrong")
    demo.add_argument("--fast", action="store_true", help=f"only {_SIGNALS_FAST} signals: about 20 seconds")
    demo.add_argument("--plain", action="store_true", help="plain text, also on a terminal")
    demo.add_argument("--report", type=Path, metavar="PATH", help="write the whole run as one HTML page")
    demo.set_defaults(run=_demo)

    intents = commands.add_parser("intents", help="list the intents in a store; changes nothing")
    intents.add_argument("store", nargs="?", help=_STORE_HELP)
    intents.add_argument("--all", action="store_true", help="also those that have ended")
    intents.set_defaults(run=_intents)

    report = commands.add_parser("report", help="make an HTML page of what a store tells; changes nothing")
    report.add_argument("store", nargs="?", help=_STORE_HELP)
    report.add_argument("--out", required=True, type=Path, metavar="PATH", help="where to write it")
    report.set_defaults(run=_report)

    run = commands.add_parser("run", help="trade at a venue: its sandbox, unless the configuration says live twice")
    run.add_argument("--config", required=True, type=Path, help="a TOML file; keys come from the environment")
    run.add_argument("--show", action="store_true", help="print what is in force, and stop")
    run.add_argument("--rehearse", action="store_true", help="at a simulated venue: no key, no network, no money")
    run.add_argument("--candles", type=int, default=240, help="of a rehearsal; four a second (default: %(default)s)")
    run.add_argument("--seed", type=int, default=7, help="of what goes wrong in a rehearsal (default: %(default)s)")
    run.add_argument("--faults", action=argparse.BooleanOptionalAction, default=True, help="let things go wrong in it")
    run.set_defaults(run=_run)

    resolve = commands.add_parser("resolve", help="settle at the venue what an earlier run left in doubt")
    which = resolve.add_mutually_exclusive_group()
    which.add_argument("--config", type=Path, help="the file of that run")
    which.add_argument("--store", help=f"with --absent: ask no venue, take your word; {_STORE_HELP}")
    resolve.add_argument("--absent", metavar="KEY", help="the unresolved intent whose order you saw not to be there")
    resolve.add_argument("--note", help="who looked, and where; kept in the record")
    resolve.add_argument("--account", default="default", help="of the intent (default: %(default)s)")
    resolve.add_argument("--leg", default="", help="of the intent, as `intents` shows it behind the #")
    resolve.set_defaults(run=_resolve)

    reset = commands.add_parser("reset", help="let entries pass again, after you have looked why they are held back")
    which = reset.add_mutually_exclusive_group()
    which.add_argument("--config", type=Path, help="the file of that run")
    which.add_argument("--store", help=_STORE_HELP)
    reset.add_argument("--reason", action="append", default=[], help="only this one; may be given several times")
    reset.add_argument("--note", required=True, help="who looked, and what was found; kept with the change of state")
    reset.set_defaults(run=_reset)

    doctor = commands.add_parser("doctor", help="check configuration, store, venue and account; changes nothing")
    doctor.add_argument("--config", required=True, type=Path, help="a TOML file")
    doctor.set_defaults(run=_doctor)
    return parser


def _signals(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _SIGNALS_MAX:
        raise argparse.ArgumentTypeError(f"the candles give 1 to {_SIGNALS_MAX} signals, not {text}")
    return int(text)


def _demo(options: argparse.Namespace) -> int:
    try:
        from execsafe.bot import demo, report, run_report, screen, stage
    except ModuleNotFoundError as error:
        raise execsafe.InvalidInput(f"the demo needs {error.name}: pip install 'execsafe[bot]'") from None
    if options.report is not None:
        _writable(options.report)
    count = options.signals or (_SIGNALS_FAST if options.fast else _SIGNALS_MAX)
    policy = stage.DemoPolicy(seed=options.seed, signals=count, faults=options.faults)
    fancy = screen.is_fancy() and not options.plain
    for paragraph in (*report.opening(policy), ""):
        screen.say(paragraph)
    with screen.watching(report.runs(policy), fancy=fancy) as watch:
        result = anyio.run(_interruptible, functools.partial(demo.run_demo, policy, watch=watch))
    for title, rows in report.tables(result):
        screen.say()
        screen.table(title, ("", *report.NAMES), rows, fancy=fancy)
    screen.say()
    for paragraph in report.closing(result):
        screen.say(paragraph)
    if options.report is None:
        screen.say("The whole run as a page, with every position and every doubt:")
        screen.line("  execsafe demo --report report.html")
    else:
        _write_page(run_report.of_demo(result), options.report)
        screen.line(f"Report: {options.report}")
    return _BROKEN if result.breaches else 0


async def _interruptible(work: Callable[[], Awaitable[_T]]) -> _T:
    """What *work* comes to. Ctrl-C ends it: asyncio's own way cancels once, which a client may take for a time-out.

    Raises:
        KeyboardInterrupt: it was ended.
    """
    result: _T | None = None

    async def end_on_signal() -> None:
        with anyio.open_signal_receiver(signal.SIGINT) as received:
            async for _ in received:
                tasks.cancel_scope.cancel()  # again and again, until everything has ended
                break

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_on_signal)
        with contextlib.suppress(KeyboardInterrupt):
            result = await work()
        tasks.cancel_scope.cancel()
    if result is None:
        raise KeyboardInterrupt
    return result


def _report(options: argparse.Namespace) -> int:
    try:
        from execsafe.bot import environment, journal, run_report, screen
    except ModuleNotFoundError as error:
        raise execsafe.InvalidInput(f"reports need {error.name}: pip install 'execsafe[bot]'") from None
    url = environment.store_url(options.store)
    store = journal.open_existing(url)
    _writable(options.out)
    name = Path(url.partition("://")[2].partition("?")[0]).name if "@" not in url else "database"
    _write_page(anyio.run(run_report.of_store, store, name), options.out)
    screen.line(f"Report: {options.out}")
    return 0


def _writable(path: Path) -> None:
    """Find out before a minute's work that its report could not be written."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise execsafe.InvalidInput(
            f"a report cannot be written to {path}: there must be a folder, and no folder there"
        )


def _write_page(report: Any, path: Path) -> None:
    from execsafe.bot.report_page import render

    path.write_text(render(report), encoding="utf-8")


def _run(options: argparse.Namespace) -> int:
    config, live, screen = _bot(options)
    from execsafe.bot import logs, reset
    from execsafe.bot.config import describe

    live.check(config)
    if options.rehearse:
        return _rehearse(options, config, screen)
    exchange = None if options.show else live.make_exchange(config)
    for line in describe(config):
        screen.say(line)
    if options.show:
        return 0
    screen.say()
    screen.say("LIVE: real orders. Ctrl-C ends it in good order." if config.venue.live else "Sandbox. Ctrl-C ends it.")
    listeners = (reset.teller(options.config),)
    with logs.logging_to_terminal(config.run):
        result = anyio.run(functools.partial(live.run, config, exchange=exchange, listeners=listeners))
    for name, count in sorted(result.results.items()):
        screen.say(f"{count:6}  {name}")
    if not result.has_begun:
        screen.say(
            "Stopped before it had begun: nothing new was decided, and the journal was not compared with the venue. "
            "Positions stay as they are."
        )
    return _told_what_is_left(screen, result.leftover, is_compared=result.has_begun)


def _rehearse(options: argparse.Namespace, config: Any, screen: Any) -> int:
    from execsafe.bot import rehearsal

    policy = rehearsal.RehearsalPolicy(candles=options.candles, faults=options.faults, seed=options.seed)
    name = rehearsal.venue_of(config)
    for paragraph in rehearsal.opening(config, policy):
        screen.say(paragraph)
    screen.say()
    with screen.watching({name: policy.candles}, fancy=screen.is_fancy(), unit="candles") as watch:
        result = anyio.run(functools.partial(rehearsal.rehearse, config, policy, watch=watch))
    screen.say()
    for name, count in sorted(result.run.results.items()):
        screen.say(f"{count:6}  {name}")
    for paragraph in rehearsal.closing(result):
        screen.say(paragraph)
    status = _told_what_is_left(screen, result.run.leftover, is_compared=result.run.has_begun)
    return status if result.is_sound else _BROKEN


def _resolve(options: argparse.Namespace) -> int:
    by_hand = [option is not None for option in (options.absent, options.note)]
    if any([options.store is not None, *by_hand]) and not (all(by_hand) and options.config is None):
        raise execsafe.InvalidInput("--store, --absent and --note go together: which order is not there, who says so")
    if all(by_hand):
        return _declare_absent(options)
    if options.config is None:
        raise execsafe.InvalidInput("what is to be settled? Give --config, or --absent and --note of one order")
    config, live, screen = _bot(options)
    from execsafe.bot import logs

    with logs.logging_to_terminal(config.run):
        leftover = anyio.run(live.resolve, config)
    return _told_what_is_left(screen, leftover)


def _declare_absent(options: argparse.Namespace) -> int:
    from execsafe.bot import environment, journal, screen

    store = journal.open_existing(environment.store_url(options.store))
    name = {"account": options.account, "leg": options.leg}
    record = anyio.run(functools.partial(journal.declare_absent, store, options.absent, note=options.note, **name))
    screen.say(f"{record.intent.key}: {record.state.value}. Nothing is sent for it any more.")
    return 0


def _reset(options: argparse.Namespace) -> int:
    from execsafe.bot import environment, journal, reset, screen

    reasons = reset.reasons_named(options.reason)
    url = environment.store_url(options.store) if options.config is None else _bot(options)[0].run.store
    came = anyio.run(functools.partial(reset.reset, journal.open_existing(url), reasons, note=options.note))
    now_ms = execsafe.SystemClock().now_ms()
    for line in reset.lines(came.before, now_ms=now_ms):
        screen.say(line)
    if came.ended:
        screen.say(f"Reset: {', '.join(came.ended)}. A bot that runs sees it within a second.")
    else:
        screen.say("Nothing to reset.")
    still = ", ".join(breaker.reason for breaker in reset.standing(came.after))
    screen.say(f"Still restricted by: {still}." if still else "Nothing restricts trading.")
    return _BROKEN if still else 0


def _told_what_is_left(screen: Any, leftover: Any, *, is_compared: bool = True) -> int:
    for position in leftover.positions:
        screen.say(f"open: {position.side} {position.quantity} {position.symbol} at {position.entry_price:.10g}")
    for record in leftover.in_doubt:
        screen.say(f"in doubt: {record.intent.key} ({record.state}), {record.intent.side} {record.quantity}")
    if leftover.is_nothing and is_compared:
        screen.say("Flat, and nothing is in doubt.")
    return _BROKEN if leftover.in_doubt else 0


def _doctor(options: argparse.Namespace) -> int:
    config, _, screen = _bot(options)
    from execsafe.bot import doctor

    findings = anyio.run(doctor.examine, config)
    marks = {True: "ok", False: "WRONG", None: "note"}
    rows = [(marks[finding.is_fine], finding.what, finding.says) for finding in findings]
    screen.table("What was found", ("", "what", "says"), rows, fancy=screen.is_fancy())
    return _BROKEN if any(finding.is_fine is False for finding in findings) else 0


def _bot(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    try:
        from execsafe.bot import config, live, screen
    except ModuleNotFoundError as error:
        raise execsafe.InvalidInput(f"the bot needs {error.name}: pip install 'execsafe[bot]'") from None
    return config.load(options.config), live, screen


def _intents(options: argparse.Namespace) -> int:
    from execsafe.bot import environment, journal, screen

    store = journal.open_existing(environment.store_url(options.store))
    records = anyio.run(journal.read, store, options.all)
    now_ms = execsafe.SystemClock().now_ms()
    rows = [journal.row(record, now_ms=now_ms) for record in records]
    kind = "" if options.all else "open "
    if rows:
        screen.table(f"{len(rows)} {kind}intents", journal.HEAD, rows, fancy=screen.is_fancy())
    else:
        screen.say(f"no {kind}intents")
    return 0
