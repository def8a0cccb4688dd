"""Runs a command under a seccomp filter that refuses some system calls: a sandbox of our own making.

::

    python tests/seccomp.py --deny process_mrelease=ENOSYS --deny kcmp=kill -- COMMAND...

Each ``--deny`` names a call and what the kernel does to it: an errno by name, ``kill`` (the process, with
SIGSYS) or ``trap`` (SIGSYS, which can be caught). Everything else is permitted. The filter cannot be taken
off and is inherited by all that COMMAND starts; no_new_privs is set, so that no privilege is needed.

The program is classic BPF over ``struct seccomp_data`` (seccomp(2)): load the number, compare, answer.
The architecture is not checked, since nothing here makes 32-bit calls; a real sandbox must.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import struct
import sys

_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2

# include/uapi/linux/seccomp.h
_RET_KILL_PROCESS = 0x80000000
_RET_TRAP = 0x00030000
_RET_ERRNO = 0x00050000
_RET_ALLOW = 0x7FFF0000

# include/uapi/linux/filter.h: load a word, jump if equal, return.
_LOAD_WORD = 0x20
_JUMP_IF_EQUAL = 0x15
_RETURN = 0x06
_OFFSET_OF_NUMBER = 0

# Numbers of x86-64, and of the architectures that use the common table (arm64, riscv64, loongarch64).
_NUMBERS = {
    "process_mrelease": (448, 448),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "ptrace": (101, 117),
    "userfaultfd": (323, 282),
    "sched_setscheduler": (144, 119),
    "mlockall": (151, 230),
    "prctl": (157, 167),
    "clone": (56, 220),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def number_of(call: str) -> int:
    """Look up a system call's number on this machine; KeyError for one that is not in the table."""
    return _NUMBERS[call][platform.machine() != "x86_64"]


def build_filter(denials: dict[str, str]) -> bytes:
    """Assemble the program that answers each call as told and permits the rest."""
    instructions = [_pack(_LOAD_WORD, 0, 0, _OFFSET_OF_NUMBER)]
    for call, verdict in denials.items():
        instructions.append(_pack(_JUMP_IF_EQUAL, 0, 1, number_of(call)))
        instructions.append(_pack(_RETURN, 0, 0, _encode(verdict)))
    instructions.append(_pack(_RETURN, 0, 0, _RET_ALLOW))
    return b"".join(instructions)


def install_filter(program: bytes) -> None:
    """Put this thread, and all that it starts, under the filter, for good.

    Raises:
        OSError: EINVAL (a kernel without CONFIG_SECCOMP_FILTER, or a malformed program).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    head = _Program(len(program) // 8, program)
    for option, argument, pointer in (
        (_PR_SET_NO_NEW_PRIVS, 1, None),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(head)),
    ):
        if libc.prctl(option, ctypes.c_ulong(argument), pointer, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main(arguments: list[str]) -> None:
    """Become the command, under the filter."""
    parser = argparse.ArgumentParser(description="Run a command under a seccomp filter.")
    parser.add_argument("--deny", action="append", default=[], metavar="CALL=ERRNO|kill|trap")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    denials = dict(denial.split("=", 1) for denial in options.deny)
    install_filter(build_filter(denials))
    os.execvp(options.command[0], options.command)


def _encode(verdict: str) -> int:
    if verdict == "kill":
        return _RET_KILL_PROCESS
    if verdict == "trap":
        return _RET_TRAP
    return _RET_ERRNO | int(getattr(errno, verdict))


def _pack(code: int, if_true: int, if_false: int, constant: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, constant)


if __name__ == "__main__":
    main(sys.argv[1:])
