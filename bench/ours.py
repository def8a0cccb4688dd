"""The reaper's side of a comparison: a stand-in for the watcher, started beforehand, asked for one thing at a time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import oomreaper
from bench.machine import ROOT
from tests.victims.program import StageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Longer than any victim here may take: the largest needs half a second, one that is given up about a second.
_ANSWER_LIMIT_S = 30.0
# As the library starts its errand: no site, no user's environment.
_START = "import sys; sys.path[:0] = sys.argv[2:]; from bench import stand_in; stand_in.serve(sys.argv[1])"
_JOIN = 'echo 0 >"$0" && exec "$@"'
_SOURCE = str(Path(oomreaper.__file__).resolve().parent.parent)
_NS_IN_MS = 1_000_000


class Served(NamedTuple):
    """What came of one victim. Times are CLOCK_MONOTONIC in ns."""

    outcome: dict[str, Any]
    strikes: Sequence[dict[str, Any]]
    submitted_ns: int
    settled_ns: int

    @property
    def signal_ns(self) -> int | None:
        """When the worker sent the signal; None when no worker came back to tell."""
        return self.strikes[0]["signal_ns"] if self.strikes else None

    @property
    def first_answer(self) -> int | None:
        """The errno of the first process_mrelease, 0 for success; None when it never came back."""
        return self.strikes[0]["mrelease_errno"] if self.strikes else None

    @property
    def elapsed_ms(self) -> float:
        """From the signal to memory verified back, or to giving up: the record's own figure."""
        elapsed_ms = self.outcome["elapsed_ms"]
        assert isinstance(elapsed_ms, float)
        return elapsed_ms

    def must_be(self, *kinds: str) -> None:
        """Make sure that it ended so.

        Raises:
            StageError: It ended otherwise, and its times mean something else.
        """
        if self.outcome["outcome"] not in kinds:
            message = f"a victim was to be {' or '.join(kinds)}: {self.outcome}"
            raise StageError(message)


class Ours:
    """One running stand-in."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._unread = b""
        self._lines: list[dict[str, Any]] = []
        self.pid = process.pid
        self.start = self._expect("ready")
        """What it said when its workers were ready."""

    @property
    def worker_pids(self) -> list[int]:
        """The workers that it began with."""
        return list(self.start["workers"])

    @property
    def is_realtime(self) -> bool:
        """Whether every worker got SCHED_FIFO."""
        return all(is_realtime for _errno, _is_locked, is_realtime, _problem in self.start["hellos"])

    def scout(self, pid: int) -> None:
        """Have it look at a victim, as it would before there is need.

        Raises:
            StageError: It refuses that victim.
        """
        self._order("scout", pid)
        self._expect("scouted", pid)

    def kill(self, pid: int) -> None:
        """Have it kill a victim that it has looked at; ``wait_settled`` has the answer."""
        self._order("kill", pid)

    def wait_settled(self, pid: int) -> Served:
        """Wait for the outcome."""
        said = self._expect("settled", pid)
        return Served(said["outcome"], said["strikes"], said["submitted_ns"], said["settled_ns"])

    def _order(self, verb: str, pid: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {pid}\n".encode())

    def _expect(self, word: str, pid: int | None = None) -> dict[str, Any]:
        deadline_s = time.monotonic() + _ANSWER_LIMIT_S
        while True:
            for line in self._lines:
                if line["said"] == "refused" or (line["said"] == word and line.get("pid") == pid):
                    self._lines.remove(line)
                    if line["said"] == "refused":
                        message = f"pid {line['pid']} was refused: {line['reason']}"
                        raise StageError(message)
                    return line
            *complete, self._unread = (self._unread + self._read_some(deadline_s, word)).split(b"\n")
            self._lines += [json.loads(line) for line in complete]

    def _read_some(self, deadline_s: float, word: str) -> bytes:
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
        if time.monotonic() >= deadline_s or not (data := os.read(self._process.stdout.fileno(), 1 << 16)):
            message = f"the stand-in did not say {word!r}; its stderr says why"
            raise StageError(message)
        return data


@contextlib.contextmanager
def ours(priority: str = "fifo", *, group: Path | None = None) -> Iterator[Ours]:
    """A stand-in whose workers are ready, in the cgroup that is given; its end is awaited."""
    command = [sys.executable, "-I", "-S", "-c", _START, priority, _SOURCE, str(ROOT)]
    if group is not None:
        command = ["sh", "-c", _JOIN, str(group / "cgroup.procs"), *command]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Ours(process)
    finally:
        process.stdin.close()
        process.wait(_ANSWER_LIMIT_S)
        process.stdout.close()
