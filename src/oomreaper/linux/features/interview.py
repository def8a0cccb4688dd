"""Asking the kernel on behalf of a program that must come to no harm by it.

The questions are asked by ``prober``, in a new process, for three reasons. The caller may have threads: a
fork of it can deadlock, and is a DeprecationWarning since Python 3.12. It may be large: a fork copies its
page tables, and the question of mlockall would be about its gigabytes. And the process that reaps is started
in the same way, so the rights that survive an exec are those that count: capabilities are read there too.
"""

from __future__ import annotations

import errno
import signal
import sys
from typing import NamedTuple

from oomreaper.errors import KernelError
from oomreaper.linux.interpreter import python_command

# The prober answers in 50 ms; a thrashing machine may need seconds to start it. Its own children are bounded
# by prober.ANSWER_SECONDS.
_DEADLINE_SECONDS = 10
_AFTER_KILL_SECONDS = 1

_PROGRAM = "from oomreaper.linux.features.prober import main; main(sys.argv[1])"

_OUR_BUG = "our bug: "


class Answer(NamedTuple):
    """What became of one question.

    ``number`` is the kernel's errno, 0 for success, None when there was no answer; then ``signal_number``
    is what ended the child, if a signal did. ``word`` is what the question adds, or why nothing is known.
    """

    number: int | None
    signal_number: int = 0
    word: str = ""

    @property
    def is_our_bug(self) -> bool:
        """Whether the question failed in our own code."""
        return self.word.startswith(_OUR_BUG)

    @property
    def is_refused(self) -> bool:
        """Whether a right is missing or a sandbox said no."""
        return self.signal_number == signal.SIGSYS or self.number in (errno.EPERM, errno.EACCES)

    def __str__(self) -> str:
        """In the words of errno(3) and signal(7): ``EPERM``, ``killed by SIGSYS``."""
        if self.number is not None:
            return errno.errorcode.get(self.number, f"errno {self.number}") if self.number else "success"
        if self.signal_number == signal.SIGALRM:
            return "no answer in time"
        if self.signal_number:
            return f"killed by {_name_signal(self.signal_number)}"
        return self.word if self.is_our_bug else "not asked"


class Interview(NamedTuple):
    """All answers by question, and the prober's own /proc/self/status (empty when it could not be read)."""

    answers: dict[str, Answer]
    status: bytes = b""
    failure: str = "no such question"

    def answer_to(self, name: str) -> Answer:
        """Look an answer up; when the question was not asked, the answer says why."""
        return self.answers.get(name) or Answer(None, word=self.failure)


def interview_kernel(proc_root: str) -> Interview:
    """Start the prober, bounded by a deadline, and read what it found out. It never raises for a refusal."""
    import contextlib
    import subprocess  # 10 ms that only this function pays for

    try:
        command = python_command(_PROGRAM, proc_root)
    except KernelError as error:
        return Interview({}, failure=str(error))
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        return Interview({}, failure=f"{sys.executable} cannot be started: {error.strerror}")
    try:
        report, complaint = process.communicate(timeout=_DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may hang in the kernel; we do not hang with it
            process.communicate(timeout=_AFTER_KILL_SECONDS)
        return Interview({}, failure=f"no answer within {_DEADLINE_SECONDS} s")
    interview = parse_report(report)
    if not interview.answers:
        last_line = complaint.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]
        reason = last_line or f"exit status {process.returncode}"
        return Interview({}, failure=f"the prober failed: {reason}")
    return interview


def parse_report(report: bytes) -> Interview:
    """Parse what ``prober`` prints; no answers when it is not that."""
    head, separator, status = report.partition(b"\n\n")
    if not separator:
        return Interview({})
    try:
        answers = dict(_parse_line(line) for line in head.decode("ascii").split("\n"))
    except ValueError:
        return Interview({})
    return Interview(answers, status)


def _parse_line(line: str) -> tuple[str, Answer]:
    name, number, signal_number, word = line.split(" ")
    word = "" if word == "-" else word
    if number != "-":
        return name, Answer(int(number), word=word)
    if int(signal_number):
        return name, Answer(None, int(signal_number))
    return name, Answer(None, word=_OUR_BUG + word)


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal has no name
