"""ptrace(2), as little of it as holds a process in its exit; declared only.

A tracee whose tracer asked for PTRACE_O_TRACEEXIT stops in PTRACE_EVENT_EXIT before it lets go of its memory, also
when it is killed, and stays there until the tracer lets it go on or ends. A tracer needs the tracee's user id (or
CAP_SYS_PTRACE) and the leave of the Yama module where that is loaded (/proc/sys/kernel/yama/ptrace_scope).
"""

from __future__ import annotations

import ctypes
import errno
import os

# include/uapi/linux/ptrace.h and prctl.h: the same on every architecture.
PTRACE_SEIZE = 0x4206
PTRACE_O_TRACEEXIT = 1 << 6
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = -1

_libc = ctypes.CDLL(None, use_errno=True)

_ptrace = _libc.ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long

_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_prctl.restype = ctypes.c_int


def seize(pid: int, options: int) -> None:
    """Become the tracer of ``pid``, which goes on running, with PTRACE_O_* ``options``.

    Raises:
        OSError: EPERM (another user's, traced already, Yama, seccomp), ESRCH, ENOSYS.
    """
    _checked(_ptrace(PTRACE_SEIZE, pid, None, options))


def allow_any_tracer() -> None:
    """Let any process of this user trace this one, where Yama would allow only its ancestors.

    Raises:
        OSError: EPERM or ENOSYS from a sandbox.
    """
    try:
        _checked(_prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0))
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: a kernel without Yama, which needs no leave
            raise


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
