"""What is printed, from acts that were never played: every ending has its words, and they fit the screen."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING

import pytest

from oomreaper.demo.acts import ExitTrap, LockTrap, Moment, Performance, State
from oomreaper.demo.bounds import Size
from oomreaper.demo.shortage import Cast, Shortage, Watched
from oomreaper.demo.tellers import JsonLines, Screen, Teller, describe, find_marks, summarize, summarize_watched
from oomreaper.model.outcome import Outcome, OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
SIZE_BYTES = 512 * MIB
MS = 1_000_000
# The figures of a run on this machine.
OUTCOME = Outcome(
    4711,
    409383,
    b"oomdemo-victim",
    OutcomeKind.REAPED,
    anon_before_bytes=SIZE_BYTES,
    freed_bytes=SIZE_BYTES,
    elapsed_ms=31.871,
    attempts=1,
    still_dying=True,
    reason="its memory is verified back after attempt 1",
)
SHOWN = Performance(
    SIZE_BYTES,
    [
        Moment(0, 0),
        Moment(200 * MS, SIZE_BYTES),
        Moment(1300 * MS, SIZE_BYTES),
        Moment(1330 * MS, 0),
        Moment(1500 * MS, 0),
    ],
    killed_ns=250 * MS,
    held_bytes=SIZE_BYTES,
    reaped_ns=1330 * MS,
    left_bytes=0,
    outcome=OUTCOME,
)


CAST = Cast(Shortage(), "/demo", SIZE_BYTES, 685, (687, 688), 690)
# What the watcher said in a run on this machine (2026-11), shortened.
WARNING: dict[str, object] = {
    "event": "warning",
    "monotonic_ns": 2000 * MS,
    "text": "memory is getting short: time_to_exhaustion is 0.25 s, below 2 s; mem_available is 9.96 %, below 10 %; "
    "swap_free is 0 %, below 10 %",
}
WHY = ["gives back 415 MiB", "grew by 414 MiB in the last 10 s: +827 MiB", "runs for 3 s only: +41 MiB"]
ANNOUNCE: dict[str, object] = {
    "event": "announce",
    "monotonic_ns": 2200 * MS,
    "pid": 685,
    "why": WHY,
    "reason": "mem_available is 3.96 %, below 4 %; swap_free is 0 %, below 10 %",
}
TERMINATED: dict[str, object] = {"event": "killed", "monotonic_ns": 2200 * MS, "pid": 685, "signal": "SIGTERM"}
KILLED: dict[str, object] = {"event": "killed", "monotonic_ns": 2310 * MS, "pid": 685, "signal": "SIGKILL"}
SETTLED: dict[str, object] = {
    "event": "settled",
    "incident": "6b07116c-1",
    "time": "2026-11-25T16:48:47.141Z",
    "monotonic_ns": 2320 * MS,
    "rule": "low",
    "pid": 685,
    "comm": "oomdemo-hog",
    "outcome": "reaped",
    "freed_bytes": 435_159_040,
    "elapsed_ms": 17.146,
    "attempts": 1,
    "still_dying": True,
    "reason": "its memory is verified back after attempt 1",
}
WATCHED = Watched(
    CAST,
    0,
    [
        Moment(100 * MS, 85 * MIB),
        Moment(1000 * MS, 260 * MIB),
        Moment(2200 * MS, 500 * MIB),
        Moment(2320 * MS, 84 * MIB),
        Moment(3100 * MS, 84 * MIB),
    ],
    [WARNING, ANNOUNCE, TERMINATED, KILLED, SETTLED],
    State("t", "ptrace_stop"),
    2,
)


def tell_watched(teller: Teller) -> None:
    """The main act."""
    teller.on_size(Size(SIZE_BYTES, ""), SIZE_BYTES)
    teller.on_cast(CAST, 0)
    teller.on_usage(WATCHED.moments[0])
    for record in WATCHED.records:
        teller.on_record(record, int(str(record["monotonic_ns"])))
    teller.on_watched(WATCHED)
    teller.on_released(CAST.act, 3 * MS, 3200 * MS)


def tell(teller: Teller) -> None:
    """An act that is shown, and one that is skipped."""
    trap = ExitTrap()
    teller.on_size(Size(SIZE_BYTES, ""), SIZE_BYTES)
    teller.on_begin(trap, 4711, 0)
    teller.on_sample(SHOWN.moments[1])
    teller.on_killed(State("t", "ptrace_stop"), SHOWN.killed_ns)
    teller.on_reaping(SHOWN.held_bytes)
    teller.on_outcome(SHOWN.outcome, SHOWN.reaped_ns)
    teller.on_performed(SHOWN)
    teller.on_released(trap, 2 * MS, 1600 * MS)
    teller.on_skipped(LockTrap(), "stopping a page fault of the kernel (userfaultfd) was refused: EPERM; it needs root")


def print_screen(
    play: Callable[[Teller], None] = tell, *, width: int = 80, use_color: bool = False, encoding: str = "utf-8"
) -> str:
    """What a screen of that kind would be sent."""
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as out:
        play(Screen(out, width=width, use_color=use_color))
        return raw.getvalue().decode(encoding)


def test_an_act_fits_a_screen() -> None:
    """With the record wrapped by the terminal, an act takes no more than 24 lines of 80 columns."""
    act = print_screen().split("\n\n")[1].splitlines()

    assert act[0].startswith("Act 1: ")
    assert sum(-(-len(line) // 80) for line in act) <= 24


@pytest.mark.parametrize("width", [22, 40, 80])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Every line but the record fits."""
    lines = [line for line in print_screen(width=width).splitlines() if not line.startswith("{")]

    assert max(map(len, lines)) <= width


def test_the_main_act_fits_a_tall_screen() -> None:
    """With the record wrapped by the terminal, the main act takes no more than 32 lines of 80 columns."""
    act = print_screen(tell_watched).split("\n\n")[1].splitlines()

    assert act[0].startswith("Act 1: ")
    assert sum(-(-len(line) // 80) for line in act) <= 32


@pytest.mark.parametrize("width", [22, 40, 80])
def test_the_main_act_is_no_wider_than_the_terminal(width: int) -> None:
    """Every line but the record fits."""
    lines = [line for line in print_screen(tell_watched, width=width).splitlines() if not line.startswith("{")]

    assert max(map(len, lines)) <= width


def test_the_main_act_says_what_the_watcher_did_and_when() -> None:
    """Each record of the watcher has its line with its time, and the chart its four marks."""
    text = print_screen(tell_watched, width=200)

    assert [line for line in text.splitlines() if re.match(r" +\d\.\d s  ", line)] == [
        f"   2.0 s  {WARNING['text']}",
        f"   2.2 s  chooses 685: {', '.join(WHY)}; because {ANNOUNCE['reason']}",
        "   2.2 s  SIGTERM to 685",
        "   2.3 s  SIGKILL to 685",
        "   2.3 s  reaped: 415 MiB back 17 ms after SIGKILL",
    ]
    marks = find_marks(WATCHED)
    assert marks == [
        (2000 * MS, "noticed"),
        (2200 * MS, "SIGTERM"),
        (2310 * MS, "SIGKILL"),
        (2320 * MS, "reaped"),
    ]
    assert all(f"{label} {at_ns / 1e9:.1f} s" in text for at_ns, label in marks)


def test_the_record_of_the_watcher_is_one_line_of_json() -> None:
    """``grep '^{'`` finds the watcher's record in the text: what people ask first."""
    (line,) = [line for line in print_screen(tell_watched, width=40).splitlines() if line.startswith("{")]
    record = json.loads(line)

    assert record == {name: SETTLED[name] for name in record}
    assert {"outcome", "freed_bytes", "elapsed_ms", "still_dying"} <= set(record)


def test_the_main_act_as_json() -> None:
    """Every step is a line: who is there, what the group holds, each record whole as it came, and the verdict."""
    raw = io.StringIO()
    tell_watched(JsonLines(raw))
    lines = [json.loads(line) for line in raw.getvalue().splitlines()]

    assert [line["event"] for line in lines] == [
        "size",
        "begin",
        "cast",
        "usage",
        *["record"] * 5,
        "watched",
        "released",
    ]
    assert {line["act"] for line in lines[1:]} == {"watch"}
    assert [line["record"] for line in lines if line["event"] == "record"] == WATCHED.records
    assert lines[-2]["is_shown"] is True


def test_a_record_of_an_unknown_kind_says_nothing() -> None:
    """A newer watcher may tell more; a record that lacks a number is told without it."""
    assert describe({"event": "some day"}) == ""
    assert describe({"event": "settled", "outcome": "lost", "freed_bytes": None, "elapsed_ms": None}) == (
        "lost: nothing back"
    )


@pytest.mark.parametrize(
    ("watched", "is_shown", "words"),
    [
        (
            WATCHED,
            True,
            "held 500 of 512 MiB, and now 84; process 685 still cannot die: state t (stopped by its tracer); nobody",
        ),
        (WATCHED._replace(records=[WARNING]), False, "the watcher did nothing about it"),
        (WATCHED._replace(state=None), False, "there was nothing to show"),
        (WATCHED._replace(idle_alive=1), False, "1 of 2 bystanders died"),
        (
            WATCHED._replace(records=[ANNOUNCE, {**SETTLED, "outcome": "unreapable", "reason": "its lock is held"}]),
            False,
            "did not come back: unreapable, its lock is held",
        ),
        (WATCHED._replace(moments=WATCHED.moments[:3]), False, "its memory did not come back"),
        (WATCHED._replace(records=[{**ANNOUNCE, "pid": 687}, *WATCHED.records]), False, "it also took 687."),
    ],
)
def test_each_end_of_the_main_act_has_its_sentence(watched: Watched, is_shown: bool, words: str) -> None:  # noqa: FBT001 - a parameter of pytest
    """Back by the gauge and by the watcher's word, a hog that is still there, nobody else touched: all must hold."""
    assert watched.is_shown == is_shown
    assert words in summarize_watched(watched)


def test_the_record_is_one_line_of_json() -> None:
    """``grep '^{'`` finds the record of ``oomreaper reap`` in the text, at 40 columns too."""
    (record,) = [line for line in print_screen(width=40).splitlines() if line.startswith("{")]

    assert json.loads(record) == OUTCOME.as_json()


def test_ascii_is_enough() -> None:
    """On an ASCII output the whole text is encoded without an error, and no chart is lost."""
    text = print_screen(encoding="ascii")

    assert "#####" in text
    assert "████" in print_screen()


def test_colour_adds_and_changes_nothing() -> None:
    """Without colour nothing is escaped; with it, the text is the same."""
    plain, coloured = print_screen(), print_screen(use_color=True)

    assert "\x1b" not in plain
    assert "\x1b" in coloured
    assert re.sub(r" +\n", "\n", re.sub(r"\x1b\[\d+m", "", coloured)) == plain


@pytest.mark.parametrize(
    ("performance", "is_shown", "words"),
    [
        (
            SHOWN,
            True,
            "Killed at 0.0 s: 512 MiB still held after 1.0 s; reaped: 512 MiB back in 32 ms while the process",
        ),
        (SHOWN._replace(outcome=OUTCOME._replace(still_dying=False)), True, "and the process went with it."),
        (SHOWN._replace(held_bytes=SIZE_BYTES // 2), False, "SIGKILL alone brought the memory back"),
        (
            SHOWN._replace(outcome=OUTCOME._replace(kind=OutcomeKind.UNREAPABLE, reason="no such call")),
            False,
            "did not bring it back: no such call",
        ),
        (SHOWN._replace(left_bytes=SIZE_BYTES // 2), False, "256 MiB are still held"),
    ],
)
def test_each_end_has_its_sentence(performance: Performance, is_shown: bool, words: str) -> None:  # noqa: FBT001
    """Whether memory stayed and came back decides, by the meter as well as by the reaper's word."""
    assert performance.is_shown == is_shown
    assert words in summarize(performance)


def test_what_did_not_end_is_said() -> None:
    """A victim that outlives its trap is no silence."""
    text = print_screen(lambda teller: teller.on_released(LockTrap(), None, 0))

    assert "still does not end" in text


def test_the_smaller_size_is_said() -> None:
    """Text and JSON both say that the victim is smaller than asked for, and why."""
    raw = io.StringIO()
    JsonLines(raw).on_size(Size(32 * MIB, "because"), SIZE_BYTES)
    text = print_screen(lambda teller: teller.on_size(Size(32 * MIB, "because"), SIZE_BYTES))

    assert text.splitlines()[-1] == "because"
    assert json.loads(raw.getvalue()) == {
        "event": "size",
        "size_bytes": 32 * MIB,
        "wanted_bytes": SIZE_BYTES,
        "why_less": "because",
    }
