"""Running the user's programs: before a kill, with a deadline that the watcher waits for, and after it.

What it knows: how to start a program that cannot hold anything up, and how to be rid of it. What it refuses to know:
where records come from and where acknowledgements go (``serve``).

How a hook runs: in a session of its own; the record as JSON on its stdin, from memory, so that nobody waits until it is
read; its output read here and told line by line, up to 16 KiB, and thrown away beyond. When the program ends, or at its
deadline, its whole process group is killed. The program itself is waited for only after that: until then its pid,
which is the group's number, cannot become somebody else's. What is to live longer starts a session of its own
(``setsid``, ``systemd-run``).

Four run at a time. One more is not started, counted and said: a hook that hangs must not fill the machine that is short
of memory already.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.linux.notify import VARIABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Each hook is an interpreter or a shell of some MiB, on a machine that has none to spare.
CONCURRENT_LIMIT = 4
# A killed program leaves within milliseconds; one that stands in the kernel is looked after later, by the way.
_LAST_WAIT_MS = 100
# What is told of one hook's output; the rest is read, so that it does not wait for a reader, and thrown away.
_OUTPUT_LIMIT_BYTES = 16 * 1024
_READ_CHUNK_BYTES = 64 * 1024
# How much of a flood is read in one turn before others have theirs.
_READS_A_TURN = 16
# sh(1)'s own: not found, not executable.
NOT_STARTED_STATUS = 127
_FIELD_BY_VARIABLE = {
    "OOMREAPER_EVENT": "event",
    "OOMREAPER_INCIDENT": "incident",
    "OOMREAPER_PID": "pid",
    "OOMREAPER_START": "start_time_ticks",
    "OOMREAPER_UID": "uid",
    "OOMREAPER_COMM": "comm",
    "OOMREAPER_CMDLINE": "cmdline",
    "OOMREAPER_RULE": "rule",
    "OOMREAPER_SCOPE": "scope",
    "OOMREAPER_REASON": "reason",
    "OOMREAPER_OUTCOME": "outcome",
    "OOMREAPER_FREED_BYTES": "freed_bytes",
}
# execve(2) refuses a string longer than 128 KiB with its name.
_VALUE_CHARS = 32_000


class Ended(NamedTuple):
    """A hook has ended: its exit status, or minus the signal that ended it. ``is_overdue``: we ended it."""

    name: str
    token: str | None
    status: int
    is_overdue: bool


class Statistics(NamedTuple):
    """Counts since the start; ``running`` as of now."""

    running: int
    started: int
    skipped: int
    overdue: int
    not_started: int


class _Running:
    __slots__ = ("deadline_ns", "is_overdue", "name", "output", "output_bytes", "pidfd", "process", "rest", "token")

    def __init__(
        self, process: subprocess.Popen[bytes], *, name: str, token: str | None, output: int, deadline_ns: int
    ) -> None:
        self.name = name
        self.token = token
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)
        self.output: int | None = output
        self.output_bytes = 0
        self.rest = b""
        self.deadline_ns = deadline_ns
        self.is_overdue = False


class HookRunner:
    """Starts hooks and ends them. Who drives it watches ``filenos`` for input and calls ``serve``.

    Args:
        tell: Called with each line that people should see.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._running: list[_Running] = []
        self._leaving: list[subprocess.Popen[bytes]] = []  # killed, and still in the kernel
        self._started = self._skipped = self._overdue = self._not_started = 0

    def statistics(self) -> Statistics:
        """The counts."""
        return Statistics(len(self._running), self._started, self._skipped, self._overdue, self._not_started)

    def filenos(self) -> list[int]:
        """What to watch: it is readable when a hook has ended or has something to say."""
        return [fd for hook in self._running for fd in (hook.pidfd, hook.output) if fd is not None]

    def next_deadline_ns(self) -> int | None:
        """When ``serve`` must be called at the latest."""
        return min((hook.deadline_ns for hook in self._running), default=None)

    def start(
        self,
        name: str,
        command: tuple[str, ...],
        record: Mapping[str, object],
        *,
        token: str | None,
        timeout_ns: int,
        now_ns: int,
    ) -> int | None:
        """Start a hook; None when it runs, else why not as a status: NOT_STARTED_STATUS, or -1 for one too many."""
        if len(self._running) + len(self._leaving) >= CONCURRENT_LIMIT:
            self._skipped += 1
            self._tell(f"{name} hook not run: {CONCURRENT_LIMIT} are running already ({self._skipped} not run so far)")
            return -1
        reader = writer = stdin = -1
        process: subprocess.Popen[bytes] | None = None
        try:
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(writer, True)  # the program's own end: most expect that a write waits
            stdin = _as_file(record)
            process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=writer,
                stderr=writer,
                cwd="/",
                env={**_inherited(os.environ), **variables(record)},
                start_new_session=True,
            )
            hook = _Running(process, name=name, token=token, output=reader, deadline_ns=now_ns + timeout_ns)
        except (OSError, ValueError) as error:
            self._not_started += 1
            if process is not None:  # no descriptor was left to watch it by
                process.kill()
                self._leaving.append(process)
            self._tell(f"{name} hook cannot be started: {command[0]}: {getattr(error, 'strerror', None) or error}")
            if reader >= 0:
                os.close(reader)
            return NOT_STARTED_STATUS
        finally:
            for fd in (writer, stdin):
                if fd >= 0:
                    os.close(fd)
        self._started += 1
        self._running.append(hook)
        return None

    def serve(self, now_ns: int) -> list[Ended]:
        """Read what hooks say, end those that are overdue, and return those that have ended."""
        self._leaving = [process for process in self._leaving if process.poll() is None]
        ended = []
        for hook in list(self._running):
            self._read_output(hook)
            has_exited = _has_exited(hook.pidfd)
            if not has_exited and now_ns < hook.deadline_ns:
                continue
            hook.is_overdue = not has_exited
            self._running.remove(hook)
            ended.append(self._end(hook))
        return ended

    def close(self) -> None:
        """End all of them."""
        for hook in self._running:
            hook.is_overdue = True
            self._end(hook)
        self._running.clear()

    def _end(self, hook: _Running) -> Ended:
        # The group's leader has not been waited for, so the number still names this group, whatever is left of it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(hook.process.pid, signal.SIGKILL)
        status = -signal.SIGKILL
        if _has_exited(hook.pidfd, _LAST_WAIT_MS):
            status = hook.process.wait()
        else:
            self._leaving.append(hook.process)
        self._read_output(hook)
        if hook.rest:
            self._tell(f"{hook.name} hook: {_text(hook.rest)}")
        if hook.output is not None:
            os.close(hook.output)
        os.close(hook.pidfd)
        if hook.output_bytes > _OUTPUT_LIMIT_BYTES:
            more = hook.output_bytes - _OUTPUT_LIMIT_BYTES
            self._tell(f"{hook.name} hook: … {more} bytes more than are shown")
        if hook.is_overdue:
            self._overdue += 1
            self._tell(f"{hook.name} hook overdue: it was ended, with its process group")
        elif status:
            self._tell(f"{hook.name} hook ended with status {status}")
        return Ended(hook.name, hook.token, status, hook.is_overdue)

    def _read_output(self, hook: _Running) -> None:
        for _ in range(_READS_A_TURN):
            if hook.output is None:
                return
            try:
                content = os.read(hook.output, _READ_CHUNK_BYTES)
            except BlockingIOError:
                return
            if not content:
                os.close(hook.output)
                hook.output = None
                return
            shown = content[: max(0, _OUTPUT_LIMIT_BYTES - hook.output_bytes)]
            hook.output_bytes += len(content)
            *lines, hook.rest = (hook.rest + shown).split(b"\n")
            for line in lines:
                self._tell(f"{hook.name} hook: {_text(line)}")


def variables(record: Mapping[str, object]) -> dict[str, str]:
    """The environment that a hook has of a record; a field that is unknown or not ours to see is left out."""
    return {
        variable: str(value).replace("\0", " ")[:_VALUE_CHARS]
        for variable, field in _FIELD_BY_VARIABLE.items()
        if (value := record.get(field)) is not None
    }


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Without the service manager's, and without ours: they are this record's alone."""
    kept_back = (*VARIABLES, *_FIELD_BY_VARIABLE)
    return {name: value for name, value in environ.items() if name not in kept_back}


def _as_file(record: Mapping[str, object]) -> int:
    """The record as a file in memory: a pipe would have us wait for its reader when it is longer than 64 KiB."""
    file = os.memfd_create("record", os.MFD_CLOEXEC)
    content = memoryview(json.dumps(record).encode() + b"\n")
    while content:
        content = content[os.write(file, content) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _has_exited(pidfd: int, limit_ms: int = 0) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(limit_ms))


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")
