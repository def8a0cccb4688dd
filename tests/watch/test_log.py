"""Lines for people: whatever stderr is, nothing waits and nothing falls; and no name out of the kernel is obeyed."""

from __future__ import annotations

import errno
import os
import pty
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from oomreaper.watch import log as log_module
from oomreaper.watch.log import NOTICE, Log, format_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A write that waits is ended after two seconds, and fails the test."""
    before = signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _on_alarm(_number: int, _frame: object) -> None:
    raise AssertionError("it waited")


def drain(fd: int) -> bytes:
    """All that can be read now."""
    os.set_blocking(fd, False)
    content = b""
    while True:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            return content
        if not chunk:
            return content
        content += chunk


def fill(log: Log) -> int:
    """Write numbered lines until some are lost; how many were written."""
    number = 0
    while log.lost_lines < 12:
        log.write(f"line {number} " + "x" * 80)
        number += 1
    return number


def check_full_and_read_again(log: Log, reader: int, prefix: bytes = b"") -> None:
    """Nothing waits; what fits arrives whole and in order; what was lost is counted and said."""
    written = fill(log)
    content = drain(reader)
    log.write("after")
    log.flush()
    while chunk := drain(reader):
        content += chunk
        log.flush()
    lines = content.split(b"\n")[:-1]

    expected = [prefix + b"line %d " % number + b"x" * 80 for number in range(written - 12)]
    assert expected == lines[:-2]
    assert lines[-2].endswith("… 12 lines lost".encode())
    assert lines[-1] == prefix + b"after"


def test_a_full_pipe_is_not_waited_for() -> None:
    """A reader that does not read costs lines, and their number is said."""
    reader, writer = os.pipe()
    log = Log(writer)

    assert os.get_blocking(writer) is True
    check_full_and_read_again(log, reader)
    assert os.get_blocking(writer) is True
    log.close()
    os.close(reader)
    os.close(writer)


def test_a_full_pipe_that_cannot_be_opened_again_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc, poll says whether there is room."""
    monkeypatch.setattr(log_module, "_open_again", lambda _: None)
    reader, writer = os.pipe()
    log = Log(writer)
    check_full_and_read_again(log, reader)
    log.close()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_full_socket_is_not_waited_for(kind: int) -> None:
    """The journal's stream is a socket; one that is not read costs lines, and lines are never glued together."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    found = os.fstat(ours.fileno())
    log = Log(ours.fileno(), f"{found.st_dev}:{found.st_ino}")

    assert log.is_journal
    check_full_and_read_again(log, theirs.fileno(), prefix=b"<6>")
    log.close()
    ours.close()
    theirs.close()


def test_a_terminal_is_written_to() -> None:
    """A terminal gets the line, and its own flags stay."""
    controller, terminal = pty.openpty()
    log = Log(terminal)
    log.write("hello")

    said = b""
    while not said.endswith(b"\n"):  # a terminal may hand a line over in pieces
        said += os.read(controller, 100)

    assert said == b"hello\r\n"
    assert os.get_blocking(terminal) is True
    log.close()
    os.close(controller)
    os.close(terminal)


def test_a_regular_file_gets_every_line(tmp_path: Path) -> None:
    """Also after another program has written to it, when both append."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    log = Log(fd)
    log.write("one")
    with path.open("a") as other:
        other.write("two\n")
    log.write("three")
    log.close()
    os.close(fd)

    assert path.read_text() == "one\ntwo\nthree\n"


def test_a_file_system_that_would_have_us_wait_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN of RWF_NOWAIT loses no line; EOPNOTSUPP is not asked for twice."""
    answers = [errno.EAGAIN, errno.EOPNOTSUPP]

    def refuse(_fd: int, _buffers: object, _offset: int, _flags: int) -> int:
        raise OSError(answers.pop(0), "refused")

    monkeypatch.setattr(os, "pwritev", refuse)
    with (tmp_path / "log").open("wb") as file:
        log = Log(file.fileno())
        for number in range(4):
            log.write(str(number))
        log.close()

    assert answers == []
    assert (tmp_path / "log").read_text() == "0\n1\n2\n3\n"


def test_a_full_disk_is_counted() -> None:
    """ENOSPC raises nothing and is counted."""
    fd = os.open("/dev/full", os.O_WRONLY)
    log = Log(fd)
    log.write("one")
    log.write("two")

    assert log.lost_lines == 2
    log.close()
    os.close(fd)


def test_a_closed_stderr_is_counted() -> None:
    """EBADF raises nothing, neither when it is closed from the start nor later."""
    reader, writer = os.pipe()
    os.close(reader)
    log = Log(writer)
    log.write("to nobody")  # EPIPE
    os.close(writer)
    never = Log(writer)
    never.write("nothing there")  # EBADF

    assert (log.lost_lines, never.lost_lines) == (1, 1)
    log.close()
    never.close()


def test_the_journal_is_known_by_its_stream() -> None:
    """The prefix is written only where JOURNAL_STREAM names this very descriptor."""
    reader, writer = os.pipe()
    found = os.fstat(writer)
    ours, others = Log(writer, f"{found.st_dev}:{found.st_ino}"), Log(writer, "8:1")
    ours.write("mine", NOTICE)
    others.write("not mine", NOTICE)

    assert drain(reader) == b"<5>mine\nnot mine\n"
    ours.close()
    others.close()
    os.close(reader)
    os.close(writer)


def test_one_event_is_one_line() -> None:
    """Newlines, escapes and half characters are shown, not obeyed; a line without end is cut."""
    reader, writer = os.pipe()
    log = Log(writer)
    log.write("a\nb\x1b[31m\udcff\u202e")
    log.write("é" * 5000)
    first, second, rest = drain(reader).split(b"\n")

    assert first == rb"a\nb\x1b[31m\xff\u202e"
    assert len(second) < 4096
    assert second.decode().endswith("…")
    assert rest == b""
    log.close()
    os.close(reader)
    os.close(writer)


ANNOUNCE = {
    "event": "announce",
    "pid": 1234,
    "comm": "tail",
    "uid": 1000,
    "gain_bytes": 4961 << 20,
    "signal": "SIGKILL",
    "reason": "mem_available is 3.1 %, below 4 %",
    "rule": "low",
    "scope": "machine",
}


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            ANNOUNCE,
            ("kill: 1234 (tail) uid 1000: 4961 MiB to come back; because mem_available is 3.1 %, below 4 % (rule low)"),
        ),
        (
            {**ANNOUNCE, "signal": "SIGTERM", "scope": "/jobs/7", "why": ["4961 MiB", "grew"], "cmdline": "tail x"},
            (
                "ask to end (SIGTERM): 1234 (tail) uid 1000: 4961 MiB to come back; because mem_available is 3.1 %, "
                'below 4 % (rule low in /jobs/7); chosen: 4961 MiB, grew; command line "tail x"'
            ),
        ),
        (
            {**ANNOUNCE, "member_count": 3, "unit": "cgroup", "unit_key": "/jobs/7"},
            (
                "kill: 1234 (tail) uid 1000: 4961 MiB to come back; because mem_available is 3.1 %, below 4 % "
                "(rule low); with 2 others of its cgroup /jobs/7"
            ),
        ),
        ({**ANNOUNCE, "event": "killed"}, "SIGKILL sent: 1234 (tail) uid 1000"),
        (
            {
                "event": "settled",
                "outcome": "reaped",
                "pid": 1234,
                "comm": "tail",
                "freed_bytes": 4961 << 20,
                "anon_before_bytes": 4961 << 20,
                "elapsed_ms": 212.4,
            },
            "settled: reaped 1234 (tail) 4961 of 4961 MiB back in 212 ms",
        ),
        (
            {
                "event": "settled",
                "outcome": "unreapable",
                "pid": 7,
                "comm": "x",
                "sharers": [8, 9],
                "sharer_count": 2,
                "still_dying": True,
                "reason": "mmap_lock is held",
            },
            "settled: unreapable 7 (x), with 2 that shared its memory; it has not gone yet: mmap_lock is held",
        ),
        ({"event": "warning", "text": "memory runs short", "scope": "/a"}, "warning: memory runs short (in /a)"),
        (
            {"event": "skipped", "text": "protected", "pid": 1, "comm": "init", "scope": "machine"},
            "nothing done: protected (1 (init))",
        ),
        ({"event": "later", "text": "news"}, "later: news"),
        ({}, "None: "),
    ],
)
def test_records_in_words(record: dict[str, object], line: str) -> None:
    """Each event has its words, with units; what is missing is left out."""
    assert format_line(record) == line
