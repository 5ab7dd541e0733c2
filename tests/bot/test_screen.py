"""Tables, bars and words: plain where it must be plain, complete in both, and data is never markup."""

import importlib.util
from decimal import Decimal

import attrs
import pytest

import execsafe
from execsafe.bot import report, screen
from execsafe.bot.demo import BotResult, DemoResult, StrategyResult
from execsafe.bot.journal import age
from execsafe.bot.scenes import STOP_RATES
from execsafe.bot.screen import Progress
from execsafe.bot.stage import DemoPolicy
from execsafe.bot.verdict import Findings
from execsafe.bot.verdict_waves import Bare, WaveFindings
from execsafe.testing.faults import Fault

needs_rich = pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="rich is an extra: execsafe[bot]")
ROWS = [("duplicates", "61", "0"), ("book", "by 3 BTC\nETH: [red]has[/red] 1", "0")]
CLEAN = Findings(
    signals=2, legs={}, orders_meant=4, orders_accepted=4, orders_per_signal_max=2, copies_max=1, duplicates=0,
    duplicates_by_signal={}, excess={}, excess_btc=Decimal(0), naked=(), naked_btc=Decimal(0), differences={},
    difference_btc=Decimal(0), strays=0,
)  # fmt: skip


CALM = WaveFindings(
    signals=2, opened=2, orders_meant=4, orders_accepted=4, copies_max=1, duplicates=0, duplicates_by_signal={},
    orders_per_meant={1: 4}, excess={}, excess_usdt=Decimal(0), bare=(), unprotected=(), flips=0, differences={},
    difference_usdt=Decimal(0), strays=0,
)  # fmt: skip


def told(counts):
    """So many events of each kind."""
    return tuple(
        execsafe.Event(type=kind, at_ms=0, subject="x") for kind, count in (counts or {}).items() for _ in range(count)
    )


def result(*, breaches=(), events=None, residuals=0, waves=CALM):
    naive = BotResult(name="plain ccxt", findings=CLEAN, fired={})
    guarded = BotResult(name="execsafe", findings=CLEAN, fired={}, told=told(events), residuals=residuals)
    beside = StrategyResult(
        naive=BotResult(name="plain ccxt", findings=waves, fired={}),
        guarded=BotResult(name="execsafe", findings=CALM, fired={}),
    )
    pairs = StrategyResult(naive=naive, guarded=guarded, breaches=tuple(breaches))
    return DemoResult(policy=DemoPolicy(), pairs=pairs, waves=beside)


def test_a_plain_table_aligns_cells_of_several_lines(capsys):
    screen.table("Title", ("", "plain", "execsafe"), ROWS, fancy=False)

    assert capsys.readouterr().out.splitlines() == [
        "Title",
        "            plain                  execsafe",
        "----------  ---------------------  --------",
        "duplicates  61                     0",
        "book        by 3 BTC               0",
        "            ETH: [red]has[/red] 1",
    ]


@needs_rich
def test_a_rich_table_shows_the_same_cells_and_takes_none_for_markup(capsys):
    screen.table("Title", ("", "plain", "execsafe"), ROWS, fancy=True)
    shown = capsys.readouterr().out

    for _, *cells in ROWS:
        for line in "\n".join(cells).split("\n"):
            assert line in shown


def test_progress_in_a_pipe_is_a_few_lines_each_once(capsys):
    with screen.watching({"a": 12, "b": 12}, fancy=False) as watch:
        for name in ("a", "b"):
            for done in (*range(13), 12):
                watch(Progress(name=name, done=done, total=12, orders_accepted=done))
    lines = capsys.readouterr().out.splitlines()

    assert len(lines) == len(set(lines)) == 6
    assert lines[-1].split() == ["b", "12", "of", "12", "signals,", "12", "orders"]


@needs_rich
def test_progress_on_a_terminal_is_a_bar_for_each(capsys):
    with screen.watching({"one": 4, "two": 4}, fancy=True) as watch:
        watch(Progress(name="one", done=4, total=4, orders_accepted=9))
    shown = capsys.readouterr().out

    assert "one" in shown
    assert "two" in shown
    assert "9 orders accepted" in shown


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}])
def test_whoever_asks_for_plain_text_gets_it_on_a_terminal_too(environment, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    assert not screen.is_fancy(environment)
    assert screen.is_fancy({}) is (importlib.util.find_spec("rich") is not None)


def test_the_table_tells_the_findings_of_each_bot_in_its_own_column():
    once, often = "pairs/x/1/entry", "pairs/x/2/entry"
    harmed = attrs.evolve(
        CLEAN, orders_accepted=9, copies_max=3, orders_per_signal_max=6, duplicates=5,
        duplicates_by_signal={once: 1, often: 4}, excess={"ETH/BTC": Decimal("2.5"), "LTC/BTC": Decimal(7)},
        excess_btc=Decimal("0.345"), naked=(once,), naked_btc=Decimal("0.1"), difference_btc=Decimal("0.2"),
        differences={"ETH/BTC": (Decimal(-1), Decimal("1.5"))},
    )  # fmt: skip
    fired = {Fault.DROP_REQUEST: 1, Fault.SERVER_ERROR_NOT_ACCEPTED: 2, Fault.EMPTY_OK: 4, Fault.LOOKUP_ERROR: 8}
    naive = BotResult(name="plain ccxt", findings=harmed, fired=fired, retries=6)
    run = result(events={execsafe.EventType.ORDER_IN_DOUBT: 1}).pairs
    run = attrs.evolve(run, naive=naive, repeated=frozenset({often}))
    table = {label.strip(): cells for label, *cells in report.pair_rows(run)}

    assert table["of which delivered five times"] == ["1", "1"]
    assert table["orders that the venue accepted"] == ["9", "4"]
    assert table["per signal, at most"] == ["6", "2"]
    assert table["where one was meant, at most"] == ["3", "1"]
    assert table["duplicate orders"] == ["5", "0"]
    assert table["for signals delivered once"] == ["1", "0"]
    assert table["excess exposure"] == ["0.345 BTC\n(2.5 ETH, 7 LTC)", "0"]
    assert table["naked legs"] == ["1 (0.1 BTC)", "0"]
    assert table["ledger and book differ"] == ["by 0.2 BTC\nETH: has -1, believes 1.5", "0"]
    assert table["after silence"][0] == "sent again 6 times without asking"
    assert table["after silence"][1].endswith("0 proven absent\n1 not settled")
    assert table["requests that never arrived"] == ["3", "0"]
    assert table["answers lost or unreadable"] == ["4", "0"]
    assert table["look-ups that failed"] == ["8", "0"]


def test_the_table_of_the_waves_tells_of_stops():
    bare = Bare(symbol="ETH/USDT:USDT", from_ms=0, to_ms=4_200, quantity=Decimal(1))
    harmed = attrs.evolve(CALM, bare=(bare,), unprotected=(bare,), excess={"ETH/USDT:USDT": Decimal(2)},
                          excess_usdt=Decimal("2000.5"), copies_max=4)  # fmt: skip
    table = {label.strip(): cells for label, *cells in report.wave_rows(result(waves=harmed).waves)}

    assert table["times without a stop for too long"] == ["1", "0"]
    assert table["longest time without a stop"] == ["4.2 s", "0.0 s"]
    assert table["excess exposure"] == ["2000.5 USDT\n(2 ETH)", "0"]
    assert table["where one was meant, at most"] == ["4", "1"]


def test_every_fault_of_the_demo_is_counted_in_some_row():
    assert {fault for faults in report._KINDS.values() for fault in faults} == set(STOP_RATES)


def test_the_last_words_name_each_breach():
    words = "\n".join(report.closing(result(breaches=["G1: twice", "G4: false"])))

    assert "EXECSAFE BROKE" in words
    assert "- G1: twice" in words
    assert "- G4: false" in words
    assert "No guarantee was broken" not in words


def test_the_last_words_own_up_to_what_is_not_settled():
    kinds = execsafe.EventType
    events = {kinds.ORDER_IN_DOUBT: 3, kinds.ORDER_ADOPTED: 1, kinds.ATTEMPT_ABSENT: 1}

    unsure = attrs.evolve(
        CLEAN, difference_btc=Decimal("0.5"), differences={"ETH/BTC": (Decimal(5), Decimal(0))}, naked=("pairs/x/1",)
    )
    run = result(events=events)
    pairs = attrs.evolve(run.pairs, guarded=attrs.evolve(run.pairs.guarded, findings=unsure))
    words = report.closing(attrs.evolve(run, pairs=pairs))[-1]

    assert "1 could not be settled and stay counted" in words
    assert "books that are off where an order is not settled" in words
    assert "1 sides that could not be hedged and were reported" in words
    assert "to the last digit" not in words


def test_a_harmless_run_is_not_blamed_on_plain_ccxt():
    assert "unharmed" in report.closing(result())[0]


def test_the_opening_says_what_is_laid_out_and_that_the_windows_are_short():
    words = " ".join(report.opening(DemoPolicy(seed=11)))

    assert "seed 11" in words
    assert "about a second" in words
    assert "multiplied with 11,500" in words  # where the prices of the perpetuals come from
    assert "--no-faults" in " ".join(report.opening(DemoPolicy(faults=False)))


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (59_999, "59 s"),
        (61_000, "1 min 1 s"),
        (3_660_000, "1 h 1 min"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_ages_have_two_units_at_most(ms, text):
    assert age(ms) == text


@pytest.mark.parametrize(
    ("value", "text"), [("0", "0"), ("12.0000", "12"), ("3.74246", "3.7425"), ("-0.5", "-0.5"), ("100", "100")]
)
def test_amounts_have_no_trailing_zeros(value, text):
    assert report.amount(Decimal(value)) == text


@pytest.mark.parametrize(
    ("columns", "expected"),
    [("40", 40), ("", 100), ("300", 100), ("5", 20), ("wide", 100)],
    ids=["as said", "unsaid", "no wider than is good to read", "no narrower than words", "nonsense"],
)
def test_text_is_as_wide_as_columns_says_also_when_piped(columns, expected, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    screen.say("word " * 100)
    longest = max(map(len, capsys.readouterr().out.splitlines()))
    assert expected - len("word ") < longest <= expected
