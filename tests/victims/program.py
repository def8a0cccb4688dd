"""The victims program, compiled once, and its processes.

A ``Helper`` is one running process of ``victims.c``. It lives in a session of its own, so that Ctrl-C at the
terminal reaches the tests and not the victims; it gets its orders through a pipe whose only writer is this
process, so that it notices our death; and it is killed, if at all, through its pidfd.

Everything that can be left behind carries ``run_name()``, so that the check at the end of a run finds it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from tests.victims.processes import wait_for_pidfd

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MIB = 1 << 20

NAME_PREFIX = "oomreaper-test-"

# Names a program that is compiled already, for a run within a run.
PROGRAM_VARIABLE = "OOMREAPER_TEST_PROGRAM"

# How long a helper may take to reach the state it was started for. The slowest is a victim that touches its
# memory: 1 GiB takes 0.4 s here, ten times that on a machine under load.
READY_TIMEOUT_S = 30.0
# How long one may take to end once it was told to or killed. Exits of the largest victims take under 1 s here.
END_TIMEOUT_S = 15.0

_SOURCE = Path(__file__).with_name("victims.c")
_serial_numbers = itertools.count(1)
# Every helper that may still be alive, for the end of the run.
_helpers: weakref.WeakSet[Helper] = weakref.WeakSet()


class StageError(Exception):
    """A victim or its surroundings could not be set up or taken down: the test says nothing then."""


class NoAnswerError(StageError):
    """A helper lives and has not said in time what it was expected to say."""


def run_name() -> str:
    """The name that everything this run makes begins with; the pid keeps two runs apart."""
    return f"{NAME_PREFIX}{os.getpid()}-"


def fresh_name() -> str:
    """A name that this run has not used yet."""
    return f"{run_name()}{next(_serial_numbers)}"


@functools.cache
def run_directory() -> Path:
    """The one directory that this run writes to, removed at exit."""
    # Resolved, since the kernel names the files of loop devices and programs so.
    directory = Path(tempfile.mkdtemp(prefix=run_name())).resolve()
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    return directory


@functools.cache
def compiled_program() -> Path:
    """The victims program: compiled at the first call, or the one that the environment names.

    Raises:
        StageError: there is no compiler, or it refused.
    """
    if PROGRAM_VARIABLE in os.environ:
        return Path(os.environ[PROGRAM_VARIABLE])
    program = run_directory() / "victims"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(program), str(_SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        message = "no C compiler: install one that answers to `cc`"
        raise StageError(message) from error
    if done.returncode:
        message = f"cc refused {_SOURCE}:\n{done.stderr}"
        raise StageError(message)
    return program


class Helper:
    """One process of the victims program.

    Options become ``--name value``; those that are None are left out. One that ``cleans_up`` ends by itself when
    its stdin ends, and is never killed.
    """

    def __init__(
        self,
        command: str,
        *operands: object,
        cleans_up: bool = False,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self.command = command
        self._cleans_up = cleans_up
        self.facts: dict[str, str] = {}
        """What it said with its "ready"."""
        self._lines: list[str] = []
        self._unread = b""
        words = [str(compiled_program()), command, "--parent", str(os.getpid())]
        for name, value in (options or {}).items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        words += ["--", *map(str, operands)]
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        _helpers.add(self)
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def expect(self, word: str, timeout_s: float = READY_TIMEOUT_S) -> dict[str, str]:
        """Wait for the line that begins with ``word``; its ``key=value`` fields. Other lines wait their turn.

        Raises:
            NoAnswerError: it has not said it in time.
            StageError: it ended before.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            for line in self._lines:
                first, *fields = line.split()
                if first == word:
                    self._lines.remove(line)
                    return dict(field.split("=", 1) for field in fields)
            *complete, self._unread = (self._unread + self._read_some(deadline_s, word)).split(b"\n")
            self._lines += [line.decode() for line in complete]

    def become_ready(self) -> None:
        """Wait for its "ready" and keep what it said with it; raises what ``expect`` raises."""
        self.facts = self.expect("ready")

    def _read_some(self, deadline_s: float, word: str) -> bytes:
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
            message = f"{self.command} (pid {self.pid}) did not say {word!r} in time"
            raise NoAnswerError(message)
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        if not data:
            message = f"{self.command} (pid {self.pid}) ended before it said {word!r}; its stderr says why"
            raise StageError(message)
        return data

    def order(self) -> None:
        """Send the one order a helper understands; what it means is the helper's own. Nothing if it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")

    def close_stdin(self) -> None:
        """Say that it is over; most helpers end upon it."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """SIGKILL, through the pidfd; nothing if it has been waited for."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """Wait for the end and collect the zombie; the exit status, negative for a signal.

        Raises:
            StageError: it has not ended in time.
        """
        if self._process.returncode is None:
            if not wait_for_pidfd(self.pidfd, timeout_s):
                message = f"{self.command} (pid {self.pid}) does not end"
                raise StageError(message)
            os.close(self.pidfd)
            self._process.wait()
            assert self._process.stdout is not None
            self.close_stdin()
            self._process.stdout.close()
        return self._process.returncode

    def end(self) -> None:
        """Let a holder go: it undoes what it did and ends. Nothing if it has.

        Raises:
            StageError: it did not end, or could not undo something.
        """
        self.close_stdin()
        if not self._cleans_up and not self._has_ended(timeout_s=1.0):
            self.kill()
        status = self.wait()
        if self._cleans_up and status:
            message = f"{self.command} (pid {self.pid}) could not clean up: exit status {status}"
            raise StageError(message)

    def _has_ended(self, timeout_s: float) -> bool:
        return self._process.returncode is not None or wait_for_pidfd(self.pidfd, timeout_s)


@contextlib.contextmanager
def holder(command: str, *operands: object, cleans_up: bool = False, **options: object) -> Iterator[Helper]:
    """A helper that has said "ready", and is let go at the end of the block."""
    helper = Helper(command, *operands, cleans_up=cleans_up, options=options)
    try:
        helper.become_ready()
        yield helper
    finally:
        helper.end()


@contextlib.contextmanager
def killed_at_the_end(command: str, *operands: object, **options: object) -> Iterator[Helper]:
    """A helper that is killed at the end of the block, whatever it waits for."""
    helper = Helper(command, *operands, options=options)
    try:
        yield helper
    finally:
        helper.kill()
        helper.wait()


@contextlib.contextmanager
def guarded(*actions: str) -> Iterator[Helper]:
    """A guard that undoes what the block does, also if this process is killed in it.

    The actions are the guard's operands: ``write PATH TEXT``, ``swapoff PATH`` and ``rmdir PATH``, done in their order.
    """
    with holder("guard", *actions, cleans_up=True) as guard:
        yield guard


def mrelease_in_child(pid: int, timeout_s: float = 1.0) -> int | None:
    """Call process_mrelease on a pid from a process of its own.

    Returns:
        Its errno, 0 for success; None when it gave no answer in time, and the caller was killed for it.
    """
    with killed_at_the_end("mrelease", pid) as caller:
        caller.become_ready()
        try:
            return int(caller.expect("answer", timeout_s)["errno"])
        except NoAnswerError:
            return None


def end_what_is_left() -> None:
    """End every helper that its own block has not ended, the gentle way first."""
    with contextlib.ExitStack() as stack:
        for helper in list(_helpers):
            stack.callback(helper.end)
