"""The processes of one act, as seen by whoever started them: started, listened to, ended, and none left behind.

A ``Stage`` is one act's set of them. It waits in one ``poll`` for all; a role that was refused something by the
kernel, or ended before its time, is a ``RoleFailedError``. Leaving the stage ends every process, the one that holds
the victim first, also when Ctrl-C or SIGTERM comes in the middle: both are kept waiting while a process is
started and while all are ended, so that none is ever started and not known.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Self

from oomreaper.errors import KernelError
from oomreaper.linux import proc, syscalls
from oomreaper.linux.interpreter import python_command
from oomreaper.model.outcome import printable
from oomreaper.watch.errand import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

_NS_IN_MS = 1_000_000
# A role starts in 30 to 60 ms (2026-11), and 4 GiB are filled in 2.5 s; a machine under load may take ten times that.
_ANSWER_LIMIT_NS = 30_000 * _NS_IN_MS
# A killed role ends within 2 ms, a victim of 4 GiB that was not reaped within 400 ms (2026-11).
_END_LIMIT_MS = 10_000
# Between two looks at a process's state, which no event tells of.
_LOOK_INTERVAL_MS = 5
_READ_CHUNK_BYTES = 65536

_PROGRAM = "from oomreaper.demo import roles; roles.main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])"


class RoleFailedError(Exception):
    """A role was refused by the kernel (``number`` is the errno) or ended before its time (``number`` is None)."""

    def __init__(self, role: str, what: str, number: int | None = None) -> None:
        super().__init__(what)
        self.role = role
        self.what = what
        self.number = number


class Helper:
    """One process that plays a role; our own child until ``Stage`` ends it, so its pid is not given to another."""

    def __init__(self, role: str, arguments: tuple[str, ...], files: tuple[int, ...]) -> None:
        self.role = role
        command = python_command(_PROGRAM, role, str(os.getpid()), *arguments)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=files, start_new_session=True
        )
        self.pid = self._process.pid
        try:
            self.pidfd = syscalls.pidfd_open(self.pid)
        except OSError:
            self._process.kill()
            self._process.communicate()
            raise
        self.said: dict[str, list[str]] = {}
        """The last line of each kind that it said: its words after the first, by the first."""
        self.is_silent = False
        """Whether it will say nothing more."""
        self._unread = b""

    @property
    def output(self) -> int:
        """The descriptor to watch for what it says."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def read_stat(self) -> proc.Stat:
        """Its line of /proc; there as long as it has not been waited for."""
        with _open_directory(self.pid) as directory:
            stat = proc.read_stat(directory)
        assert stat is not None
        return stat

    def read_wchan(self) -> str | None:
        """Where in the kernel it waits; None when that is not told to us."""
        try:
            with _open_directory(self.pid) as directory:
                place = proc.read_file(directory, "wchan")
        except OSError:
            return None
        return printable(place) if place not in (None, b"", b"0") else None

    @property
    def target(self) -> Target:
        """Its identity."""
        return Target(self.pid, self.read_stat().starttime)

    @property
    def has_ended(self) -> bool:
        """Whether it is no more than an exit status."""
        return _is_ready(self.pidfd, 0)

    def order(self, word: str) -> None:
        """Tell it to do something; one that has ended is seen by its silence."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{word}\n".encode())

    def dismiss(self) -> None:
        """Tell it that no order follows: it ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def ask_to_end(self) -> None:
        """As ``dismiss``, and SIGTERM: for who has something to tidy up."""
        self.dismiss()
        with contextlib.suppress(ProcessLookupError):
            syscalls.pidfd_send_signal(self.pidfd, signal.SIGTERM)
        _is_ready(self.pidfd, _END_LIMIT_MS)

    def listen(self) -> list[list[str]]:
        """Read what can be read now; the lines, as words."""
        chunk = os.read(self.output, _READ_CHUNK_BYTES)
        self.is_silent = not chunk
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        said = [line.decode().split("\t") for line in lines]
        self.said.update((words[0], words[1:]) for words in said)
        return said

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            syscalls.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def why_ended(self) -> str:
        """How it ended, for a process that has or is about to."""
        status = self._process.poll() if _is_ready(self.pidfd, _END_LIMIT_MS) else None
        if status is None:
            return "said nothing more"
        return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"

    def bury(self) -> bool:
        """Wait for a killed process and let go of it; False when the kernel does not let it end."""
        is_gone = _is_ready(self.pidfd, _END_LIMIT_MS)
        if is_gone:
            self._process.wait()
        else:
            self._process.returncode = -signal.SIGKILL  # not ours to wait for any more: it would complain
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        os.close(self.pidfd)
        del self._process  # its __del__ runs here: there, Ctrl-C and SIGTERM would be swallowed
        return is_gone


class Stage:
    """The processes of one act; ``on_sample`` gets what the meter says: when (monotonic) and how much is held."""

    def __init__(self, on_sample: Callable[[int, int], None]) -> None:
        self._on_sample = on_sample
        self._helpers: list[Helper] = []
        self._tidy: list[Helper] = []
        self._attended: dict[int, Callable[[], None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with undisturbed():
            # The last first: who holds the victim was started after it, and lets go of it by ending.
            for helper in reversed(self._helpers):
                if helper not in self._tidy:
                    helper.kill()
            left = [helper.pid for helper in reversed(self._helpers) if helper not in self._tidy and not helper.bury()]
            for helper in reversed(self._tidy):
                helper.ask_to_end()
                helper.kill()
            left += [helper.pid for helper in reversed(self._tidy) if not helper.bury()]
            self._helpers.clear()
            self._tidy.clear()
        if left:
            raise KernelError(f"the demo's processes {left} do not end; the kernel holds them: see /proc/PID/stack")

    def start(self, role: str, *arguments: str, files: tuple[int, ...] = (), is_tidy: bool = False) -> Helper:
        """Start a role; it inherits ``files``. One that ``is_tidy`` is asked to end at the end, after the others.

        Raises:
            KernelError: No process can be started here.
        """
        with undisturbed():
            try:
                helper = Helper(role, arguments, files)
            except OSError as error:
                raise KernelError(f"no process could be started for the demo: {error.strerror}") from error
            self._helpers.append(helper)
            if is_tidy:
                self._tidy.append(helper)
        return helper

    def attend(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """Listen to somebody else, too, until ``ignore``."""
        self._attended[descriptor] = on_readable

    def ignore(self, descriptor: int) -> None:
        """Listen to that one no more."""
        self._attended.pop(descriptor, None)

    def expect(self, helper: Helper, word: str) -> None:
        """Wait until ``helper`` says ``word``.

        Raises:
            RoleFailedError: It says that it was refused, ends, or says nothing for too long.
        """
        self.wait(lambda: word in helper.said or helper.is_silent, time.monotonic_ns() + _ANSWER_LIMIT_NS)
        if word in helper.said:
            return
        if "refused" in helper.said:
            number, what = helper.said["refused"]
            raise RoleFailedError(helper.role, what, int(number))
        if helper.is_silent:
            raise RoleFailedError(helper.role, f"the {helper.role} {helper.why_ended()}")
        raise RoleFailedError(helper.role, f"the {helper.role} did not answer in {_ANSWER_LIMIT_NS // 10**9} s")

    def wait_for_state(self, helper: Helper, letters: str, limit_ns: int) -> bool:
        """Whether ``helper`` came to one of these states of /proc/PID/stat in time, and was in one at the next look."""
        looks = [False, False]

        def is_steady() -> bool:
            looks.append(helper.read_stat().state in letters)
            return all(looks[-2:])

        return self.wait(is_steady, limit_ns, look_every_ms=_LOOK_INTERVAL_MS)

    def wait(self, is_done: Callable[[], bool], limit_ns: int, *, look_every_ms: int | None = None) -> bool:
        """Listen to all until ``is_done`` or the monotonic ``limit_ns``; whether it was done."""
        while not is_done():
            left_ms = -(-(limit_ns - time.monotonic_ns()) // _NS_IN_MS)
            if left_ms <= 0:
                return is_done()
            self._listen(left_ms if look_every_ms is None else min(left_ms, look_every_ms))
        return True

    def catch_up(self) -> None:
        """Take in what was said while nobody listened."""
        self._listen(0)

    def _listen(self, limit_ms: int) -> None:
        poll = select.poll()
        speakers = {helper.output: helper for helper in self._helpers if not helper.is_silent}
        for output in (*speakers, *self._attended):
            poll.register(output, select.POLLIN)
        for output, _ in poll.poll(limit_ms):
            if output not in speakers:
                self._attended[output]()
                continue
            for words in speakers[output].listen():
                if words[0] == "sample":
                    self._on_sample(int(words[1]), int(words[2]))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _open_directory(pid: int) -> Iterator[int]:
    root = proc.open_root()
    directory = proc.open_process(root, pid)
    os.close(root)
    if directory is None:
        raise KernelError(f"/proc does not show process {pid}, our own child: mount a procfs of this pid namespace")
    try:
        yield directory
    finally:
        os.close(directory)


def _is_ready(pidfd: int, limit_ms: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(limit_ms))
