"""The command line: exit statuses, what is printed for people, and that both are the contract's."""

from __future__ import annotations

import pytest

from oomreaper.faces import cli
from oomreaper.model.outcome import Outcome, OutcomeKind, printable
from oomreaper.model.process import ThreadReport

MIB = 1 << 20


def _outcome(kind: OutcomeKind | None, *, needs_permission: bool = False, comm: bytes = b"hog") -> Outcome:
    return Outcome(77, 5, comm, kind, 512 * MIB, 511 * MIB, 31.25, 1, reason="why", needs_permission=needs_permission)


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([], 0),
        ([_outcome(OutcomeKind.REAPED), _outcome(OutcomeKind.EXITED)], 0),
        ([_outcome(None)], 0),
        ([_outcome(OutcomeKind.REAPED), _outcome(OutcomeKind.LOST)], 1),
        ([_outcome(OutcomeKind.UNREAPABLE)], 1),
        ([_outcome(OutcomeKind.GONE)], 1),
        ([_outcome(OutcomeKind.REFUSED)], 1),
        ([_outcome(OutcomeKind.GONE), _outcome(OutcomeKind.REFUSED, needs_permission=True)], 3),
        ([_outcome(OutcomeKind.EXITED, needs_permission=True)], 0),
    ],
)
def test_the_exit_status_of_the_contract(outcomes: list[Outcome], status: int) -> None:
    """0 all back; 3 where other rights or another kernel would have helped; else 1."""
    assert status == cli.exit_status_of(outcomes)


def test_a_reaped_victim_in_one_line() -> None:
    """How much, how long, and that the process is not gone, in a line with units."""
    line = cli.describe(_outcome(OutcomeKind.REAPED)._replace(still_dying=True, sharers=(78, 79)))

    assert "\n" not in line
    assert line.startswith("reaped 77 (hog): 511 of 512 MiB back, 31.2 ms")
    assert "has not gone yet" in line
    assert "2 processes that shared its memory" in line


def test_a_victim_that_was_given_up_shows_where_it_stands() -> None:
    """Thread by thread: state, kernel function, stack."""
    thread = ThreadReport(78, b"hog\n", "D", "rwsem_down_write", None, ("down_write+0x1", "ext4_write+0x2"))
    text = cli.describe(_outcome(OutcomeKind.UNREAPABLE)._replace(threads=(thread,)))

    assert "thread 78 (hog\\n) D in rwsem_down_write" in text
    assert "    down_write+0x1" in text


@pytest.mark.parametrize("raw", [b"\x1b[2J", b"a\nb", b"\xff", "\u202e".encode(), b"\x00\x7f", "\u2028".encode()])
def test_hostile_names_are_escaped(raw: bytes) -> None:
    """Control characters, newlines, right-to-left marks and invalid UTF-8 never reach a terminal."""
    shown = printable(raw)

    assert shown.isprintable()
    assert raw.decode("utf-8", "replace") != shown
    assert printable("na\u00efve \u65e5\u672c".encode()) == "na\u00efve \u65e5\u672c"


@pytest.mark.parametrize("command", ["reap", "doctor", "demo"])
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help ends with 0 and names --json."""
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])

    assert stop.value.code == 0
    assert "--json" in capsys.readouterr().out
