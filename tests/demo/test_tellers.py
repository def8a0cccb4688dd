"""What is printed, from acts that were never played: every ending has its words, and they fit the screen."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING

import pytest

from oomreaper.demo.acts import ExitTrap, LockTrap, Moment, Performance, State
from oomreaper.demo.bounds import Size
from oomreaper.demo.tellers import JsonLines, Screen, Teller, summarize
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
