"""Reading one process for the census: what is opened, what is kept open, and what each error means.

A descriptor of /proc/PID, and every file opened through it, stays bound to one life: once that is over it answers
ENOENT or ESRCH, also after the pid has been given to somebody else.

A kept file costs the kernel 4 KiB from its first read until it is closed (its seq_file buffer; 2,000 of them took
8 MiB, 2026-11, Linux 6.18). So only the front's are kept: all files of 10,000 processes would hold 120 MiB of the
memory that is to be watched over. Reading a kept file allocates nothing in the kernel, and so does not wait in a
shortage.
"""

from __future__ import annotations

import enum
import errno
import os
from typing import NamedTuple

from oomreaper.linux import proc

KEPT_PER_PROCESS = 4
_STATM_BYTES = 256
_STAT_BYTES = 2048
# Ordinarily 1.5 KiB. The list of supplementary groups stands before the memory: with thousands of them the swap and the
# page tables of a process are not seen.
_STATUS_BYTES = 16384
_ADJ_BYTES = 32
_READ_ONLY = os.O_RDONLY | os.O_CLOEXEC
# How many threads of an ended leader are asked for one that still lives.
_THREADS_ASKED = 16
# Field 38 of stat, exit_signal, counted from the state: -1 for every thread but the leader.
_EXIT_SIGNAL_FIELD = 35
_NO_EXIT_SIGNAL = b"-1"


class Trouble(enum.Enum):
    """What an error says of the process that was to be read."""

    GONE = enum.auto()
    REFUSED = enum.auto()  # not ours to see
    CROWDED = enum.auto()  # we, or the machine, have too many files open
    UNREAD = enum.auto()  # ENOMEM, EIO and whatever else: not this time


class Files(NamedTuple):
    """The kept files of one life. ``statm`` and ``status`` are a living thread's where the leader has ended."""

    statm: int
    stat: int
    status: int
    oom_score_adj: int


def tell_trouble(error: OSError) -> Trouble:
    """What an error of any call in this module means."""
    match error.errno:
        case errno.ENOENT | errno.ESRCH:
            return Trouble.GONE
        case errno.EACCES | errno.EPERM:
            return Trouble.REFUSED
        case errno.EMFILE | errno.ENFILE:
            return Trouble.CROWDED
        case _:
            return Trouble.UNREAD


def open_directory(proc_root: int, pid: int) -> int:
    """The directory of the process that holds ``pid`` now."""
    return os.open(str(pid), _READ_ONLY | os.O_DIRECTORY, dir_fd=proc_root)


def close_directory(directory: int) -> None:
    """The counterpart of ``open_directory``."""
    os.close(directory)


def read_euid(directory: int) -> int:
    """Who owns /proc/PID: its effective user id, also when it may not be dumped (task_dump_owner in fs/proc/base.c)."""
    return os.fstat(directory).st_uid


def open_files(directory: int, thread_id: int | None) -> Files:
    """Open all that is kept of a process; nothing stays open when one of them fails."""
    memory = "" if thread_id is None else f"task/{thread_id}/"
    opened: list[int] = []
    try:
        for name in (f"{memory}statm", "stat", f"{memory}status", "oom_score_adj"):
            opened.append(os.open(name, _READ_ONLY, dir_fd=directory))  # noqa: PERF401 - those before a failure are closed
    except OSError:
        close_files(opened)
        raise
    return Files(*opened)


def close_files(kept: Files | list[int]) -> None:
    """Close them all."""
    for file in kept:
        os.close(file)


def read_kept_statm(file: int) -> bytes:
    """The hot path: one call, no more."""
    return _filled(os.pread(file, _STATM_BYTES, 0))


def read_kept_stat(file: int) -> proc.Stat:
    """The stat line through a kept file."""
    return proc.parse_stat(_filled(os.pread(file, _STAT_BYTES, 0)))


def read_kept_status(file: int) -> proc.Status:
    """The status through a kept file."""
    return proc.parse_status(_filled(os.pread(file, _STATUS_BYTES, 0)))


def read_kept_oom_score_adj(file: int) -> int:
    """The user's wish through a kept file."""
    return int(_filled(os.pread(file, _ADJ_BYTES, 0)))


def read_stat_line(directory: int) -> bytes:
    """The stat line, unparsed: most numbers that are tried turn out to be threads."""
    return _read_once(directory, "stat", _STAT_BYTES)


def is_thread(stat_line: bytes) -> bool:
    """Whether this is a thread that leads no process: it can be opened by its number though it is not listed."""
    return stat_line[stat_line.rindex(b")") + 2 :].split()[_EXIT_SIGNAL_FIELD] == _NO_EXIT_SIGNAL


def read_statm(directory: int, thread_id: int | None) -> bytes:
    """The statm of the process, or of one thread of it."""
    return _read_once(directory, "statm" if thread_id is None else f"task/{thread_id}/statm", _STATM_BYTES)


def read_statm_by_pid(proc_root: int, pid: int) -> bytes:
    """The statm of whoever holds ``pid`` now: the cheapest look at a process of which nothing is kept."""
    return _read_once(proc_root, f"{pid}/statm", _STATM_BYTES)


def read_status(directory: int, thread_id: int | None) -> proc.Status:
    """The status of the process, or of one thread of it."""
    name = "status" if thread_id is None else f"task/{thread_id}/status"
    return proc.parse_status(_read_once(directory, name, _STATUS_BYTES))


def read_oom_score_adj(directory: int) -> int:
    """The user's wish for this process."""
    return int(_read_once(directory, "oom_score_adj", _ADJ_BYTES))


def find_thread_with_memory(directory: int) -> int | None:
    """A thread that still has the address space which its ended leader no longer shows."""
    tasks = os.open("task", _READ_ONLY | os.O_DIRECTORY, dir_fd=directory)
    try:
        with os.scandir(tasks) as threads:
            for _, thread in zip(range(_THREADS_ASKED), threads, strict=False):
                try:
                    pages = _read_once(tasks, f"{thread.name}/statm", _STATM_BYTES).split()
                except OSError as error:
                    if tell_trouble(error) is Trouble.GONE:
                        continue
                    raise
                if int(pages[1]):
                    return int(thread.name)
    finally:
        os.close(tasks)
    return None


def _read_once(directory: int, name: str, size_bytes: int) -> bytes:
    file = os.open(name, _READ_ONLY, dir_fd=directory)
    try:
        return _filled(os.read(file, size_bytes))
    finally:
        os.close(file)


def _filled(content: bytes) -> bytes:
    """The content; none at all is what some kernels show of a process that is just going."""
    if not content:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return content
