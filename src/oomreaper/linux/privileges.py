"""Giving up, after the start, every right that the work does not need.

What it knows: which capabilities are kept and why (``NEEDED``, from which the unit's CapabilityBoundingSet is checked),
and how the rest is given up for good. What it refuses to know: who asks.

A watcher that was taken over would be root's: it must not load modules, mount, read every file as it likes by
CAP_SYS_ADMIN, or change its user. Workers forked later inherit what is left, and so does the clerk with its hooks: a
hook cannot gain a right by starting a set-user-id program (no_new_privs).

An ordinary user has no capabilities; for him only no_new_privs and the umask change.
"""

from __future__ import annotations

import ctypes
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

# Each with what is lost without it. A test takes each away and sees the kernel refuse what its sentence names.
NEEDED: Mapping[str, str] = MappingProxyType(
    {
        "CAP_DAC_OVERRIDE": (
            "writes oom_score_adj of other users' victims, and the control files of groups that belong to users "
            "(memory.reclaim, cgroup.procs); CAP_DAC_READ_SEARCH would be a part of it"
        ),
        "CAP_KILL": "signals other users' processes",
        "CAP_SYS_PTRACE": (
            "compares address spaces (kcmp), to find who shares a victim's memory; reads /proc/PID/exe, and sees other "
            "users' processes under hidepid"
        ),
        "CAP_IPC_LOCK": "locks the memory of a worker that replaces another, beyond RLIMIT_MEMLOCK",
        "CAP_SYS_NICE": (
            "takes real-time priority in a worker that replaces another, beyond RLIMIT_RTPRIO; moves out other "
            "processes' cold memory (process_madvise)"
        ),
        "CAP_SYS_RESOURCE": (
            "arms pressure triggers with windows that are no multiple of 2 s; lowers our oom_score_adj, so that the "
            "kernel's own killer spares us"
        ),
    }
)

# include/uapi/linux/capability.h
_BITS = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24,
}
_HIGHEST_BIT = 63  # the two words of capset(2) hold no more; the kernel's last one is found by asking

# include/uapi/linux/prctl.h
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_WORD_BITS = 32
_WORD_MASK = 0xFFFFFFFF

# Files that we make are nobody else's; the event socket is opened to all by its own bind.
_UMASK = 0o077

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_prctl.restype = ctypes.c_int


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class Kept(NamedTuple):
    """What is left. ``missing`` was to be kept and is not ours to keep; ``problems``: what could not be given up."""

    effective: frozenset[str]
    missing: frozenset[str]
    has_no_new_privs: bool
    problems: tuple[str, ...]


def drop_privileges(keep: frozenset[str] = frozenset(NEEDED)) -> Kept:
    """Keep these capabilities of NEEDED, as far as they are ours, and give up all others, for good.

    To be called once, after everything that needs more has been opened, and before workers are forked. Whether this
    process is dumpable does not change.

    Raises:
        KeyError: ``keep`` names one that is not in NEEDED.
    """
    wanted = 0
    for name in keep:
        wanted |= 1 << _BITS[name]
    problems = []
    os.umask(_UMASK)
    if not _succeeds(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)):
        problems.append(f"no_new_privs: {_problem()}")
    if not _succeeds(_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)):
        problems.append(f"ambient capabilities: {_problem()}")
    effective, permitted = read_capabilities()
    if permitted:  # an ordinary user may not reduce his bounding set, and has nothing that it bounds
        problems += _reduce_bounding_set(wanted)
    left = permitted & wanted
    try:
        _set_capabilities(left)
    except OSError as error:
        problems.append(f"capabilities: {error.strerror}")
    effective, _ = read_capabilities()
    kept = frozenset(name for name, bit in _BITS.items() if effective >> bit & 1)
    has_no_new_privs = _prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1
    return Kept(kept, frozenset(keep) - kept, has_no_new_privs, tuple(problems))


def read_capabilities() -> tuple[int, int]:
    """The effective and the permitted capabilities of this process, a bit each.

    Raises:
        OSError: EPERM or ENOSYS from a sandbox.
    """
    header, words = _Header(_CAPABILITY_VERSION_3, 0), (_Word * 2)()
    if _libc.capget(ctypes.byref(header), ctypes.byref(words)) != 0:
        raise OSError(ctypes.get_errno(), _problem())
    return (
        words[0].effective | words[1].effective << _WORD_BITS,
        words[0].permitted | words[1].permitted << _WORD_BITS,
    )


def _set_capabilities(left: int) -> None:
    header = _Header(_CAPABILITY_VERSION_3, 0)
    words = (_Word * 2)(
        _Word(left & _WORD_MASK, left & _WORD_MASK, 0), _Word(left >> _WORD_BITS, left >> _WORD_BITS, 0)
    )
    if _libc.capset(ctypes.byref(header), ctypes.byref(words)) != 0:
        raise OSError(ctypes.get_errno(), _problem())


def _reduce_bounding_set(wanted: int) -> list[str]:
    """Not even a program that root starts from here can have more. Needs CAP_SETPCAP, unless there is nothing to do."""
    for bit in range(_HIGHEST_BIT + 1):
        in_set = _prctl(_PR_CAPBSET_READ, bit, 0, 0, 0)
        if in_set < 0:
            break  # the kernel has no more
        if in_set and not wanted >> bit & 1 and not _succeeds(_prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0)):
            return [f"bounding set: {_problem()}"]
    return []


def _succeeds(result: int) -> bool:
    return result == 0


def _problem() -> str:
    return os.strerror(ctypes.get_errno())
