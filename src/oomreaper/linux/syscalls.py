"""The system calls that Python does not wrap, declared and bound at import.

This module only declares: each function takes and returns what the kernel does and raises ``OSError`` with
the kernel's errno. Nothing is decided here but one thing: no signal leaves this process except through
a pidfd, and no pidfd is opened for a pid <= 1. Binding at import matters: a first ``ctypes.CDLL`` under
a real shortage cost 47 ms and lost the race with the victim's exit.

Numbers are the kernel's ABI (include/uapi/asm-generic/unistd.h and the tables of each architecture).
"""

from __future__ import annotations

import ctypes
import os
import signal

SYS_PIDFD_SEND_SIGNAL = 424
SYS_PIDFD_OPEN = 434
SYS_PROCESS_MADVISE = 440
SYS_PROCESS_MRELEASE = 448
# kcmp is older than the common numbering, so its number differs by architecture.
_SYS_KCMP_BY_MACHINE = {
    "x86_64": 312,
    "i386": 349,
    "i686": 349,
    "aarch64": 272,
    "riscv64": 272,
    "loongarch64": 272,
    "armv7l": 378,
    "ppc64le": 354,
    "ppc64": 354,
    "s390x": 343,
}
# On an architecture we do not know, -1 makes the kernel answer ENOSYS: "no kcmp here".
SYS_KCMP = _SYS_KCMP_BY_MACHINE.get(os.uname().machine, -1)
KCMP_VM = 1

MCL_CURRENT = 1
MCL_FUTURE = 2
MCL_ONFAULT = 4

MADV_PAGEOUT = 21

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15

# The lowest pid that may ever be signalled: 0 is "my own group", 1 is init, negatives are groups.
LOWEST_PID = 2

_libc = ctypes.CDLL(None, use_errno=True)

_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_mlockall = _libc.mlockall
_mlockall.argtypes = (ctypes.c_int,)
_mlockall.restype = ctypes.c_int

_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_prctl.restype = ctypes.c_int


class _Range(ctypes.Structure):
    """struct iovec: an address and a length."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_long = ctypes.c_long
_ulong = ctypes.c_ulong
_get_errno = ctypes.get_errno
_ZERO = _ulong(0)
_SIGKILL = _long(signal.SIGKILL)
_SEND_SIGNAL_NUMBER = _long(SYS_PIDFD_SEND_SIGNAL)


try:
    _release = _libc.process_mrelease  # glibc 2.36
    _release.argtypes = (ctypes.c_int, ctypes.c_uint)
    _release.restype = ctypes.c_int
except AttributeError:

    def _release(pidfd: int, flags: int) -> int:  # type: ignore[misc] # called in the same way
        return int(_syscall(_long(SYS_PROCESS_MRELEASE), _long(pidfd), _ulong(flags)))


def pidfd_open(pid: int) -> int:
    """A close-on-exec descriptor that names the process which holds ``pid`` now, and never another.

    Raises:
        ValueError: ``pid`` is 1 or less; refused here, at the lowest layer, whoever asks.
        OSError: ESRCH (no such process), EINVAL or ENOENT (the id of a thread that leads no process),
            ENOSYS (before Linux 5.3), EMFILE.
    """
    if pid < LOWEST_PID:
        message = f"pid {pid} can never be a victim"
        raise ValueError(message)
    return _checked(_syscall(_long(SYS_PIDFD_OPEN), _long(pid), _ulong(0)))


def pidfd_send_signal(pidfd: int, signal_number: int) -> None:
    """Send a signal to the process that ``pidfd`` names; 0 asks only whether it exists and we may.

    Raises:
        OSError: ESRCH (it has been waited for), EPERM, EINVAL, EBADF.
    """
    _checked(_syscall(_long(SYS_PIDFD_SEND_SIGNAL), _long(pidfd), _long(signal_number), None, _ulong(0)))


def process_mrelease(pidfd: int) -> None:
    """Free the anonymous and swapped memory of the dying process that ``pidfd`` names.

    A return says little: verify the memory. It may block without bound on the victim's mmap_lock, and only
    the caller's own death ends that wait, so call it where a process may be lost.

    Raises:
        OSError: ESRCH, EINVAL, EAGAIN, ENOSYS, EPERM: see docs/how-it-works.md for their meanings.
    """
    _checked(_release(pidfd, 0))


def kill_and_release(pidfd: int) -> tuple[int, int | None]:
    """SIGKILL and process_mrelease back to back, nothing between: the race is lost by waiting.

    Measured: mrelease 1 ms after the signal finds the address space detached 39 times of 40.

    Returns:
        The errno of each call, 0 for success; the second is None when the first failed, since then
        nothing is dying and the second call was not made.
    """
    if _syscall(_SEND_SIGNAL_NUMBER, _long(pidfd), _SIGKILL, None, _ZERO) != 0:
        return _get_errno(), None
    if _release(pidfd, 0) != 0:
        return 0, _get_errno()
    return 0, 0


def process_madvise(pidfd: int, ranges: list[tuple[int, int]], advice: int) -> int:
    """Advise the kernel on (address, bytes) ranges of another process; how many bytes it took the advice for.

    It waits for the process's mmap_lock without bound: call it where a process may be lost.

    Raises:
        OSError: EPERM (it takes CAP_SYS_NICE and the right to look into the process), ESRCH, EINVAL (an advice that
            is not for others), ENOMEM (a range is not mapped any more), ENOSYS (before Linux 5.10).
    """
    vector = (_Range * len(ranges))(*(_Range(*each) for each in ranges))
    address = _ulong(ctypes.addressof(vector))
    return _checked(
        _syscall(_long(SYS_PROCESS_MADVISE), _long(pidfd), address, _ulong(len(ranges)), _long(advice), _ZERO)
    )


def is_same_mm(pid: int, other_pid: int) -> bool:
    """Whether two processes share one address space (kcmp, KCMP_VM).

    Raises:
        OSError: ESRCH (one has gone), EPERM (no right to look), ENOSYS (kernel without CONFIG_KCMP).
    """
    return _checked(_syscall(_long(SYS_KCMP), _long(pid), _long(other_pid), _long(KCMP_VM), _ZERO, _ZERO)) == 0


def lock_memory() -> None:
    """Keep every page of this process in memory once touched (MCL_ONFAULT: forked pages stay shared).

    Raises:
        OSError: EPERM or ENOMEM (RLIMIT_MEMLOCK, no CAP_IPC_LOCK), EINVAL (before Linux 4.4).
    """
    _checked(_mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))


def be_realtime(*, children_too: bool = False) -> None:
    """Take SCHED_FIFO at its lowest priority, for this process only or for those forked from it as well.

    Raises:
        OSError: EPERM (no CAP_SYS_NICE and no RLIMIT_RTPRIO, or a v1 cpu cgroup without rt_runtime),
            ENOSYS (a C library that refuses, such as musl).
    """
    reset_on_fork = 0 if children_too else os.SCHED_RESET_ON_FORK
    os.sched_setscheduler(0, os.SCHED_FIFO | reset_on_fork, os.sched_param(1))


def die_with_parent(signal_number: int) -> None:
    """Ask for a signal when the parent ends (PR_SET_PDEATHSIG)."""
    _checked(_prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def set_process_name(name: bytes) -> None:
    """What ps shows as this process's comm; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(name[:15])
    _checked(_prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0))


def answer_of_mrelease_probe() -> int:
    """The errno of process_mrelease(-1, 0): EBADF where it exists, ENOSYS where not; signals nobody."""
    try:
        process_mrelease(-1)
    except OSError as error:
        return error.errno or 0
    return 0


def _checked(result: int) -> int:
    if result < 0:
        number = _get_errno()
        raise OSError(number, os.strerror(number))
    return result
