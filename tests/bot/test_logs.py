"""Log lines: whoever trades never waits for them, and whoever reads them can rely on each."""

import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from decimal import Decimal

import anyio
import pytest

import execsafe
from execsafe.bot import logs
from execsafe.bot.config import RunConfig
from execsafe.bot.desk import TradingDesk
from execsafe.bot.log_handler import PatientHandler
from execsafe.bot.policy import DeskPolicy
from execsafe.model.event import Event, EventType
from execsafe.observe import log_events
from execsafe.stores.memory import MemoryStore
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import VirtualClock
from execsafe.testing.loop import run_simulated
from execsafe.testing.venue import SimVenue, linear

SYMBOL = "BTC/USDT:USDT"
SIGNED = "GET https://api.example.com/order?signature=canary4711canary4711&apiKey=canary4711"
BOUND_S = 60  # of a process that would not end by itself
BOTH = pytest.mark.parametrize("formatter", [logs.TextLines, logs.JsonLines])


def record(message, *args, **facts):
    return logging.makeLogRecord(
        {"name": "x", "levelno": 30, "levelname": "WARNING", "msg": message, "args": args} | facts
    )


def message_of(formatter, one):
    """What a reader finds as the message."""
    text = formatter().format(one)
    return json.loads(text)["message"] if formatter is logs.JsonLines else text.partition("WARNING  ")[2]


def process(code, *, stderr=subprocess.PIPE, **environment):
    """A program that logs to its own standard error as the bot does."""
    program = (
        f"import logging, os, sys\nfrom execsafe.bot import logs\nfrom execsafe.bot.config import RunConfig\n{code}"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=stderr,
        timeout=BOUND_S,
        env={**os.environ, **environment},
        check=False,
    )


# --- Nobody waits -------------------------------------------------------------------------------------------

MANY_LINES = textwrap.dedent("""
    import anyio

    async def main():
        for _ in range(500):
            logging.getLogger("execsafe.bot").warning("x" * 500)
            await anyio.sleep(0)

    with logs.logging_to_terminal(RunConfig()):
        anyio.run(main)
    print("ended")
""")


def test_a_pipe_that_nobody_reads_neither_stops_the_loop_nor_keeps_the_process_from_its_end():
    """As of a pager that waits: the bot stood still until it was killed, and nobody looked after its stops."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 512)
    except BlockingIOError:
        os.set_blocking(writer, True)
    try:
        done = process(MANY_LINES, stderr=writer)
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.stdout, done.returncode) == (b"ended\n", 0)


def test_a_pipe_that_does_not_wait_gets_every_line():
    """Whoever started the process may have made it so: then a write that does not fit now is an error, not a wait."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got = []
    with os.fdopen(reader) as read_end:
        reading = threading.Thread(target=lambda: got.extend(read_end))
        reading.start()
        try:
            done = process(MANY_LINES, stderr=writer)
        finally:
            os.close(writer)
            reading.join(BOUND_S)
    assert (done.stdout, len(got)) == (b"ended\n", 500)


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk():
    if not os.path.exists("/dev/full"):
        pytest.skip("no full disk at hand")
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("broken", [closed_pipe, full_disk])
def test_what_cannot_be_written_harms_nobody(broken):
    writer = broken()
    try:
        done = process(MANY_LINES, stderr=writer)
    finally:
        os.close(writer)
    assert (done.stdout, done.returncode) == (b"ended\n", 0)


class Slow(io.StringIO):
    """Stands still in its first write until it is let go."""

    def __init__(self):
        super().__init__()
        self.is_reached, self.may_go = threading.Event(), threading.Event()

    def write(self, text):
        self.is_reached.set()
        assert self.may_go.wait(BOUND_S)
        return super().write(text)


class Full(io.StringIO):
    """Has no room for the first lines."""

    refuses = 2

    def write(self, text):
        self.refuses -= 1
        if self.refuses >= 0:
            raise OSError("no space left on device")
        return super().write(text)


def test_lines_that_do_not_fit_are_counted_and_told_where_they_are_missing():
    slow = Slow()
    handler = PatientHandler(slow, lines_max=3)
    handler.handle(record("line %d", 0))
    assert slow.is_reached.wait(BOUND_S)
    for number in range(1, 11):
        handler.handle(record("line %d", number))
    slow.may_go.set()
    handler.close()
    gap = "log lines dropped here, because they could not be written: 7"
    assert slow.getvalue().splitlines() == ["line 0", gap, "line 8", "line 9", "line 10"]


def test_a_disk_that_has_room_again_is_told_how_much_is_missing():
    disk = Full()
    handler = PatientHandler(disk)
    for number in range(4):
        handler.handle(record("line %d", number))
    handler.close()
    gap = "log lines dropped here, because they could not be written: 2"
    assert disk.getvalue().splitlines() == [gap, "line 2", "line 3"]


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "raise KeyboardInterrupt", "raise RuntimeError"])
def test_the_last_lines_of_a_run_are_written_however_it_ends(end):
    done = process(
        textwrap.dedent(f"""
        with logs.logging_to_terminal(RunConfig()):
            for number in range(3_000):
                logging.getLogger("execsafe.bot").warning("line %d", number)
            {end}
        """)
    )
    said = [line for line in done.stderr.decode().splitlines() if "WARNING" in line]
    assert [line.rpartition(" ")[2] for line in said] == [str(number) for number in range(3_000)]


def test_what_a_fork_logs_is_written_too():
    done = process(
        textwrap.dedent("""
        with logs.logging_to_terminal(RunConfig()):
            child = os.fork()
            if child == 0:
                logging.getLogger("execsafe.bot").warning("the child")
                os._exit(0)
            os.waitpid(child, 0)
            logging.getLogger("execsafe.bot").warning("the parent")
        """)
    )
    said = [line.partition("WARNING  ")[2] for line in done.stderr.decode().splitlines()]
    assert [line for line in said if line.startswith("the ")] == ["the child", "the parent"]


def test_a_process_without_a_standard_error_logs_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with logs.logging_to_terminal(RunConfig()):
        logging.getLogger("execsafe.bot").warning("to nobody")


def test_logging_goes_to_the_terminal_and_is_put_back_afterwards(capsys):
    before = (list(logging.getLogger().handlers), logging.getLogger("execsafe").level, warnings.showwarning)
    for log, is_said in (("info", True), ("error", False)):
        with logs.logging_to_terminal(RunConfig(log=log)):
            logging.getLogger("execsafe.bot").info("long 1 BTC")
            logging.getLogger("somebody.else").info("noise")
        err = capsys.readouterr().err
        assert ("long 1 BTC" in err) is is_said
        assert "noise" not in err
    after = (list(logging.getLogger().handlers), logging.getLogger("execsafe").level, warnings.showwarning)
    assert after == before
    assert "execsafe-log" not in [thread.name for thread in threading.enumerate()]


# --- Each line can be relied on -----------------------------------------------------------------------------

ODD_LINES = textwrap.dedent(r"""
    import warnings
    from execsafe.model.event import Event, EventType
    from execsafe.observe import log_events

    class Broken:
        def __str__(self):
            raise ValueError("of somebody's own")

    with logs.logging_to_terminal(RunConfig(log_format="json")):
        log = logging.getLogger("execsafe.bot")
        log.info("two\nlines \u2028 x\xe9 \u4e2d \udc80 \x1b[31m")
        try:
            raise ValueError("x\xe9")
        except ValueError:
            log.exception("failed")
        log.warning("%d things", "no number")
        log.warning("%s", Broken())
        log.warning(Broken())
        log.warning("%s %s", "odd", "facts", extra={"execsafe": {"ratio": float("nan"), "a": [{1: float("inf")}]}})
        log_events()(Event(type=EventType.STUCK_EXIT, at_ms=1, subject="p", note="x\xe9\nx", details={"why": "a\nb"}))
        warnings.warn("an old way")
""")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_every_json_line_can_be_read_whatever_is_logged_and_however_the_terminal_is_encoded(encoding):
    done = process(ODD_LINES, PYTHONIOENCODING=encoding)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in done.stderr.decode("ascii").splitlines()]
    told = [line["message"] for line in lines]
    assert len(told) == 8
    assert told[0] == r"two\nlines \u2028 xé 中 \udc80 \x1b[31m"
    assert lines[1]["error"].endswith("ValueError: xé")
    assert told[2].startswith("%d things (its arguments do not fit, at ")
    assert told[3].startswith("%s (its arguments do not fit, at ")
    assert told[4] == "a line of execsafe.bot (WARNING) cannot be shown (ValueError)"
    assert lines[5]["facts"] == {"ratio": "nan", "a": [{"1": "inf"}]}
    assert "UserWarning: an old way" in told[7]


@BOTH
def test_a_message_is_one_line_whatever_is_in_it(formatter):
    """What a venue or a signal says must not look like another line, nor move the cursor."""
    text = formatter().format(record("%s", "no\r\n2026-11-28T22:17:40Z CRITICAL stuck_exit \x1b[2J\u2028end\n"))
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    said = message_of(formatter, record("%s", "one\ntwo\x1b[2J\n"))
    assert said == r"one\ntwo\x1b[2J"


@BOTH
def test_a_log_call_with_the_wrong_arguments_says_what_it_would_and_where_it_is(formatter):
    one = record("%d things", "no number", filename="mine.py", lineno=12)
    assert message_of(formatter, one) == "%d things (its arguments do not fit, at mine.py:12)"


@BOTH
def test_a_message_that_is_cut_says_so(formatter):
    said = message_of(formatter, record("x" * 5_000))
    assert said == "x" * 2_000 + "…"


@pytest.mark.guarantee(16)
@BOTH
def test_g16_what_any_logger_says_is_redacted(formatter):
    """Of a strategy, of asyncio, of a client: not only of our own."""
    text = formatter().format(record("Unclosed session\n%s", SIGNED))
    assert "Unclosed session" in text
    assert "canary" not in text


@pytest.mark.guarantee(16)
@BOTH
def test_g16_tracebacks_are_redacted(formatter):
    """What a strategy or a client raises may hold a signed URL. What another handler left on the record is not used."""
    try:
        raise RuntimeError(SIGNED)
    except RuntimeError:
        one = record("the strategy failed", exc_info=sys.exc_info(), stack_info=f"Stack:\n  {SIGNED}")
    logging.Formatter().format(one)
    text = formatter().format(one)
    assert "RuntimeError" in text
    assert "the strategy failed" in text
    assert "Stack:" in text
    assert "canary" not in text


def test_a_traceback_is_indented_and_looks_like_no_line_of_the_log():
    try:
        raise RuntimeError("no\n2026-11-28T22:17:40Z CRITICAL stuck_exit")
    except RuntimeError:
        text = logs.TextLines().format(record("failed", exc_info=sys.exc_info()))
    first, *others = text.splitlines()
    assert first.endswith("WARNING  failed")
    assert "Traceback" in others[0]
    assert "CRITICAL stuck_exit" in others[-1]
    assert all(line.startswith("    ") for line in others)


@BOTH
def test_other_lines_are_said_as_they_are(formatter):
    assert message_of(formatter, record("%s, asked %d times", "the bus", 3)) == "the bus, asked 3 times"


def test_a_line_for_people_has_no_lengths_in_it_and_is_short(caplog):
    intent = execsafe.Intent(key="signal-42", symbol=SYMBOL, side="buy", quantity=1)
    long = {"why": "x" * 500, "empty": ""}
    event = Event(
        type=EventType.ORDER_FILL, at_ms=1, subject=intent.identity, symbol=SYMBOL, quantity=Decimal(1), details=long
    )
    with caplog.at_level(logging.INFO, logger="execsafe"):
        log_events()(event)
    [one] = caplog.records
    text = logs.TextLines().format(one)
    assert f"order_fill  {SYMBOL} 1 default/signal-42" in text
    assert "empty" not in text
    assert len(text) < 200


def test_warnings_are_lines_of_the_log(capsys):
    with logs.logging_to_terminal(RunConfig(log_format="json")), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("an old way", DeprecationWarning, stacklevel=1)
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["logger"] == "py.warnings"
    assert "DeprecationWarning: an old way" in json.loads(line)["message"]


# --- Not the same over and over -----------------------------------------------------------------------------


class Away(MemoryStore):
    is_away = False

    async def _fail(self):
        if self.is_away:
            raise execsafe.StoreUnavailable("away")

    async def commit(self, batch):
        await self._fail()
        return await super().commit(batch)


def test_an_outage_of_the_store_is_told_in_a_few_lines_and_so_is_its_end(caplog):
    """Fifty seconds of it came to three hundred warnings."""

    async def main() -> None:
        clock, store = VirtualClock(), Away()
        adapter = SimAdapter(SimVenue([linear("BTC")], prices={SYMBOL: 50_000}), clock=clock)
        policy = DeskPolicy(pretrade=execsafe.PreTradePolicy(spread=None, depth=None, band=None))
        desk = TradingDesk(adapter, store, policy, symbols=[SYMBOL], clock=clock)
        async with desk.running():
            await anyio.sleep(30)
            store.is_away = True
            await anyio.sleep(50)
            store.is_away = False
            await anyio.sleep(120)

    with caplog.at_level(logging.INFO, logger="execsafe"):
        run_simulated(main)
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert "lease not renewed (StoreUnavailable)" in said
    assert len(said) <= 10
    assert [one.levelname for one in caplog.records if "lease renewed again after" in one.getMessage()] == ["INFO"]
