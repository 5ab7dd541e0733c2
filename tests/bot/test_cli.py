"""The command line: what a person sees, piped or not, and the exit status that a script goes by."""

import functools
import hashlib
import os
import signal
import subprocess
import sys

import anyio
import attrs
import pytest

import execsafe
from execsafe.bot import cli, demo, verdict
from execsafe.bot.scenes import pair_signals, wave_cues
from execsafe.testing.adapter import SimAdapter
from execsafe.testing.clock import ManualClock
from execsafe.testing.venue import SimVenue

CALM = ["demo", "--signals", "2", "--no-faults"]


def run(*arguments, code=None, **environment):
    """Run the command in a process of its own, piped."""
    start = ["-m", "execsafe"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, "-W", "error", *start, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**sys_environment(), **environment},
    )


def sys_environment():
    return {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "NO_COLOR", "CI"))}


def cell(output, label, column):
    """A cell of the table on the page: column 1 is plain ccxt, 2 is execsafe."""
    line = next(line for line in output.splitlines() if line.startswith(label))
    return [part for part in line.split("  ") if part][column].strip()


# --- the whole command ------------------------------------------------------------------------------------------


def test_version():
    done = run("--version")

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"execsafe {execsafe.__version__}", "")


def test_without_a_command_it_says_what_there_is():
    done = run()

    assert done.returncode == 2
    assert "usage: execsafe" in done.stderr


def test_asking_for_help_costs_no_heavy_imports():
    code = "import sys; from execsafe.bot import cli, journal; cli._parser().print_help(); print('#', *sys.modules)"
    done = run(code=code)

    assert "demo" in done.stdout
    assert {"ccxt", "aiohttp", "rich", "sqlite3"} & set(done.stdout.partition("#")[2].split()) == set()


# --- demo -------------------------------------------------------------------------------------------------------


def test_a_piped_demo_is_plain_text_with_the_ledgers_figures_and_succeeds():
    done = run("demo", "--signals", "6", "--seed", "7")

    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert done.stdout.isascii()
    assert max(len(line) for line in done.stdout.splitlines()) <= 110
    for bot in ("pairs, plain ccxt", "pairs, execsafe  ", "waves, plain ccxt", "waves, execsafe  "):
        assert f"{bot}   6 of 6 signals" in done.stdout
    assert int(cell(done.stdout, "duplicate orders", 1)) > 0
    assert cell(done.stdout, "duplicate orders", 2) == "0"
    assert cell(done.stdout, "excess exposure", 2) == "0"
    assert cell(done.stdout, "naked legs", 2) == "0"
    assert cell(done.stdout, "ledger and book differ", 2) == "0"
    assert "No guarantee was broken." in done.stdout
    assert "demo --report report.html" in done.stdout
    assert cell(done.stdout, "times without a stop", 2) == "0"


def test_without_rich_the_demo_is_plain_and_works():
    code = "import sys; sys.modules['rich'] = None\nfrom execsafe.bot.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run(*CALM, code=code)

    assert (done.returncode, done.stderr) == (0, "")
    assert cell(done.stdout, "orders that the venue accepted", 1) == "4"


def test_the_naive_bots_failures_are_expected_and_a_broken_guarantee_is_not(monkeypatch, capsys):
    """Plant: after a clean run the ledger is given a second order for an intent. The status must say so."""

    def planted(ledger, records, findings, reported):
        twin = attrs.evolve(ledger.accepted()[0], seq=len(ledger) + 1, venue_order_id="twin")
        ledger.append(twin)
        return verdict.breaches(ledger, records, findings, reported)

    audits = demo.Audits(pairs=planted)
    monkeypatch.setattr(demo, "run_demo", functools.partial(demo.run_demo, audits=audits))

    assert cli.main(CALM) == 1
    output = capsys.readouterr().out
    assert "EXECSAFE BROKE WHAT IT PROMISES" in output
    assert "- G1: pairs/ETH/BTC~LTC/BTC/1516290900000/entry" in output
    assert "No guarantee was broken" not in output


@pytest.mark.parametrize("count", ["0", "49", "-1", "1.5", "many"])
def test_a_number_of_signals_that_there_is_not_is_refused_in_plain_words(count, capsys):
    with pytest.raises(SystemExit) as refused:
        cli.main(["demo", f"--signals={count}"])

    assert refused.value.code == 2
    assert "1 to 48 signals" in capsys.readouterr().err


def test_all_signals_of_the_candles_are_on_offer():
    assert len(pair_signals(1_000)) == cli._SIGNALS_MAX >= len(wave_cues())


def test_a_failure_inside_the_demo_is_one_line_and_status_2(monkeypatch, capsys):
    async def failing(policy, *, watch):
        raise ExceptionGroup("tasks", [ExceptionGroup("more", [execsafe.StoreFull("no space is left")])])

    monkeypatch.setattr(demo, "run_demo", failing)

    assert cli.main(CALM) == 2
    assert capsys.readouterr().err == "execsafe: no space is left\n"


def test_a_defect_inside_the_demo_is_not_hidden(monkeypatch):
    async def failing(policy, *, watch):
        raise ExceptionGroup("tasks", [execsafe.StoreFull("no space is left"), ZeroDivisionError()])

    monkeypatch.setattr(demo, "run_demo", failing)

    with pytest.raises(ExceptionGroup):
        cli.main(CALM)


def test_an_interrupt_ends_quietly(monkeypatch):
    async def interrupted(policy, *, watch):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupted)

    assert cli.main(CALM) == 130


def test_where_no_report_can_be_written_is_found_out_before_the_run(tmp_path, capsys):
    assert cli.main([*CALM, "--report", str(tmp_path / "nowhere" / "report.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


# --- report -----------------------------------------------------------------------------------------------------


def test_a_store_alone_gives_a_page_of_what_it_knows(journal, tmp_path, capsys):
    page = tmp_path / "report.html"

    assert cli.main(["report", f"sqlite:///{journal}", "--out", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert "what the journal tells" in text
    assert "Every guarantee held" not in text  # nobody judged
    assert "intents" in text


def test_a_report_of_a_store_that_is_not_there_is_refused(tmp_path, capsys):
    assert cli.main(["report", f"sqlite:///{tmp_path}/orders.db", "--out", str(tmp_path / "x.html")]) == 2
    assert "there is no store at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- intents ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """A store with one intent that was filled and one that rests."""
    path = tmp_path_factory.mktemp("store") / "orders.db"

    async def fill():
        clock = ManualClock(execsafe.SystemClock().now_ms() - 90_000)
        adapter = SimAdapter(SimVenue(), clock=clock, latency_ms=(0, 0))
        async with execsafe.open_store(f"sqlite:///{path}") as store:
            gateway = execsafe.OrderGateway(adapter, execsafe.IntentRegistry(store, clock=clock))
            for key, price in (("filled-one", "61000"), ("resting-one", "59000")):
                await gateway.submit(
                    execsafe.Intent(key=key, symbol="BTC/USDT", side="buy", quantity="0.01", limit_price=price)
                )

    anyio.run(fill)
    return path


def test_open_intents_are_listed_with_their_state_and_age(journal):
    done = run("intents", f"sqlite:///{journal}")
    title, _, _, *rows = done.stdout.splitlines()

    assert (done.returncode, done.stderr, title) == (0, "", "1 open intents")
    assert [row.split()[:8] for row in rows] == [["resting-one", "live", "BTC/USDT", "buy", "0.01", "0", "1", "min"]]


def test_all_intents_include_those_that_have_ended(journal, capsys):
    assert cli.main(["intents", "--all", f"sqlite:///{journal}"]) == 0
    shown = capsys.readouterr().out

    assert shown.startswith("2 intents\n")
    assert "filled-one   filled  BTC/USDT  buy   0.01      0.01" in shown
    assert "resting-one  live" in shown


def test_looking_changes_nothing(journal):
    before = hashlib.sha256(journal.read_bytes()).hexdigest()
    cli.main(["intents", "--all", f"sqlite:///{journal}"])

    assert hashlib.sha256(journal.read_bytes()).hexdigest() == before


def test_looking_does_not_create_a_store(tmp_path, capsys):
    assert cli.main(["intents", f"sqlite:///{tmp_path}/orders.db"]) == 2
    assert "there is no store at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_store_in_memory_has_nothing_to_list(capsys):
    assert cli.main(["intents", "memory://"]) == 2
    assert "ends with its process" in capsys.readouterr().err


def test_an_empty_store_says_so(tmp_path, capsys):
    async def create():
        async with execsafe.open_store(f"sqlite:///{tmp_path}/orders.db"):
            pass

    anyio.run(create)

    assert cli.main(["intents", f"sqlite:///{tmp_path}/orders.db"]) == 0
    assert capsys.readouterr().out == "no open intents\n"


@pytest.mark.guarantee(16)
@pytest.mark.parametrize("command", ["intents", "report --out {folder}/page.html", "resolve --absent k --note seen"])
def test_g16_a_store_is_named_by_the_environment_so_that_no_password_stands_in_a_list_of_processes(
    command, journal, tmp_path, monkeypatch, capsys
):
    arguments = command.format(folder=tmp_path).split()
    (tmp_path / "store").write_text(f"sqlite:///{journal}\n")
    nowhere, reached = f"sqlite:///{tmp_path}/none.db", 2 if arguments[0] == "resolve" else 0
    cases = [
        ({"EXECSAFE_STORE": f"sqlite:///{journal}"}, reached, "'k'"),
        ({"EXECSAFE_STORE_FILE": str(tmp_path / "store"), "EXECSAFE_STORE": ""}, reached, "'k'"),
        ({"EXECSAFE_STORE": nowhere}, 2, "there is no store at"),
        ({}, 2, "which store? Give its URL, or set EXECSAFE_STORE"),
    ]
    for environment, status, message in cases:
        for name in ("EXECSAFE_STORE", "EXECSAFE_STORE_FILE"):
            monkeypatch.setenv(name, environment.get(name, ""))
        assert cli.main(arguments) == status
        told = capsys.readouterr()
        assert message in told.err or status == 0


def test_a_store_that_is_named_goes_before_the_environment(journal, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXECSAFE_STORE", f"sqlite:///{tmp_path}/none.db")
    assert cli.main(["intents", f"sqlite:///{journal}"]) == 0
    assert "resting-one" in capsys.readouterr().out


@pytest.mark.guarantee(16)
@pytest.mark.parametrize(
    "url", ["postgresql://bot:hunter2@db/x", "nosuch://bot:hunter2@db/x", "redis://:hunter2@127.0.0.1:1"]
)
def test_g16_a_password_in_a_store_url_is_not_repeated(url, capsys):
    assert cli.main(["intents", url]) == 2
    told = capsys.readouterr()
    assert "hunter2" not in told.out + told.err


# --- interrupted ------------------------------------------------------------------------------------------------


def test_whoever_reads_only_the_first_line_sees_no_error():
    """As with every tool in a pipe before ``head``."""
    with subprocess.Popen(
        [sys.executable, "-m", "execsafe", *CALM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=sys_environment(),
    ) as done:
        assert done.stdout.readline()
        done.stdout.close()
        errors = done.stderr.read()
    assert (done.returncode, errors) == (141, "")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_demo_closes_its_clients_and_says_nothing_more():
    with subprocess.Popen(
        [sys.executable, "-m", "execsafe", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=sys_environment(),
    ) as done:
        for line in done.stdout:
            if "orders" in line and "signals," in line:  # the bots are at work
                break
        done.send_signal(signal.SIGINT)
        _, errors = done.communicate(timeout=60)
    assert (done.returncode, errors) == (130, "")
