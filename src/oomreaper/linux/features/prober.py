"""The process that asks the kernel: one child for each question, so that a sandbox kills only the child.

It runs as ``python3 -I -S`` with one thread, started by ``interview``, in the same way as the process that
reaps: what it may do, that one may do. All children are forked first and then listened to, so the slowest
sets the time. A child bounds itself with an alarm: it needs no killing, and one that hangs in the kernel
beyond that holds nothing that anybody waits for.

Written to standard output: one line a question, ``name errno signal value`` with ``-`` for none, then an
empty line, then this process's /proc/self/status. ``interview.parse_report`` reads that: change both.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import stat
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from oomreaper.linux import syscalls
from oomreaper.linux.features.tree import RECORDED

if TYPE_CHECKING:
    from collections.abc import Callable

    # The kernel's errno (0 for success) and one word more; "" for none.
    Probe = Callable[[str], tuple[int, str]]

# Each call takes microseconds, closing a PSI trigger 10 to 20 ms (2026-11); the rest is a thrashing machine.
ANSWER_SECONDS = 2
# After its alarm a child is given this long to be gone.
_GRACE_SECONDS = 0.5

_PR_SET_DUMPABLE = 4

# The kernel takes 500 ms to 10 s, and only multiples of 2 s without CAP_SYS_RESOURCE.
_PSI_WINDOWS_MS = (500, 1000, 2000)


class _Question(NamedTuple):
    name: str
    pid: int
    reader: int


def main(proc_root: str) -> None:
    """Ask everything, and print the report."""
    # Both are inherited through exec: an ignored SIGCHLD would hide how a child ended, a blocked SIGALRM
    # would leave it unbounded.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

    # A child killed by a filter should leave no core dump. Tried first by itself: a filter may kill for this.
    is_quiet = _listen(_ask("forgo_core", _forgo_core, proc_root, is_quiet=False))[2] == 0
    questions = [_ask(name, probe, proc_root, is_quiet=is_quiet) for name, probe in PROBES.items()]
    lines = [
        f"{name} {'-' if number is None else number} {signal_number} {value or '-'}\n"
        for name, number, signal_number, value in map(_listen, questions)
    ]
    _write_all("".join(lines).encode("ascii") + b"\n" + _read_status(proc_root))


def _ask(name: str, probe: Probe, proc_root: str, *, is_quiet: bool) -> _Question:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer(writer, probe, proc_root, is_quiet=is_quiet)
    os.close(writer)
    return _Question(name, pid, reader)


def _answer(writer: int, probe: Probe, proc_root: str, *, is_quiet: bool) -> NoReturn:
    """In the child: ask, write what the kernel said, and end."""
    try:
        signal.alarm(ANSWER_SECONDS)
        for descriptor in (1, 2):  # what hangs must not keep our caller's pipes open
            os.close(descriptor)
        if is_quiet:
            _forgo_core(proc_root)
        try:
            number, value = probe(proc_root)
        except OSError as error:
            number, value = error.errno or 0, ""
        os.write(writer, f"{number} {value}".encode("ascii"))
    except Exception as error:  # noqa: BLE001 - our bug; its name is the answer, and the child must end here
        os.write(writer, f"- {type(error).__name__}".encode("ascii"))
    finally:
        os._exit(0)


def _listen(question: _Question) -> tuple[str, int | None, int, str]:
    """Hear the name, the errno or None, the signal that ended the child or 0, and the word more."""
    poller = select.poll()
    poller.register(question.reader, select.POLLIN)
    if not poller.poll((ANSWER_SECONDS + _GRACE_SECONDS) * 1000):
        return question.name, None, signal.SIGALRM, ""
    content = os.read(question.reader, select.PIPE_BUF).decode("ascii")
    os.close(question.reader)
    _, status = os.waitpid(question.pid, 0)
    if not content:
        return question.name, None, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, ""
    number, _, value = content.partition(" ")
    return question.name, None if number == "-" else int(number), 0, value


def _forgo_core(_proc_root: str) -> tuple[int, str]:
    result: int = ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return result, ""


def _probe_process_mrelease(_proc_root: str) -> tuple[int, str]:
    # With -1 and no flags, ever: on a kernel with PROCESS_MRELEASE_REAP_KILL a flag and a live pidfd kill.
    return syscalls.answer_of_mrelease_probe(), ""


def _probe_pidfd_open(_proc_root: str) -> tuple[int, str]:
    os.close(syscalls.pidfd_open(os.getpid()))
    return 0, ""


def _probe_pidfd_send_signal(_proc_root: str) -> tuple[int, str]:
    # Not through a pidfd of our own: it must be answered also where pidfd_open is not.
    syscalls.pidfd_send_signal(-1, 0)
    return 0, ""


def _probe_kcmp(_proc_root: str) -> tuple[int, str]:
    syscalls.is_same_mm(os.getpid(), os.getppid())
    return 0, ""


def _probe_sched_fifo(_proc_root: str) -> tuple[int, str]:
    syscalls.be_realtime()
    return 0, ""


def _probe_mlockall(_proc_root: str) -> tuple[int, str]:
    syscalls.lock_memory()
    return 0, ""


def _probe_psi_read(proc_root: str) -> tuple[int, str]:
    file = os.open(f"{proc_root}/pressure/memory", os.O_RDONLY | os.O_CLOEXEC)
    os.read(file, 1)
    return 0, ""


def _probe_psi_trigger(proc_root: str) -> tuple[int, str]:
    """Find the shortest window that the kernel takes, in milliseconds."""
    file = os.open(f"{proc_root}/pressure/memory", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode) and status.st_size > 0:
        return 0, RECORDED  # a file of procfs has no size; this is a copy, and not for us to overwrite
    for window_ms in _PSI_WINDOWS_MS:
        try:
            # A stall of the whole window, so that it never fires. The kernel overwrites the last byte.
            os.write(file, b"some %d %d\n" % (window_ms * 1000, window_ms * 1000))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return 0, str(window_ms)
    return errno.EINVAL, ""


PROBES: dict[str, Probe] = {
    "process_mrelease": _probe_process_mrelease,
    "pidfd_open": _probe_pidfd_open,
    "pidfd_send_signal": _probe_pidfd_send_signal,
    "kcmp": _probe_kcmp,
    "sched_fifo": _probe_sched_fifo,
    "mlockall": _probe_mlockall,
    "psi_read": _probe_psi_read,
    "psi_trigger": _probe_psi_trigger,
}


def _read_status(proc_root: str) -> bytes:
    try:
        with open(f"{proc_root}/self/status", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _write_all(content: bytes) -> None:
    while content:
        content = content[os.write(1, content) :]
